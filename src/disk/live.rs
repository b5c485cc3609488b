//! Reading and writing the live image.

use super::layer::{self, BLOCK, Entered, MAX_BLOCK, MAX_SIZE, blocks_of};
use super::opens::What;
use super::ranges::RangeGuard;
use super::*;

/// What `lseek` looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seek {
    /// The next byte that may be data.
    Data,
    /// The next byte that is in a hole; the end of the file is one.
    Hole,
}

/// The answering of a disk's flushes. Whoever drops it without having
/// performed it, as a closed pool does and a panic, refuses them.
struct FlushDuty<D: std::ops::Deref<Target = Disk>> {
    disk: D,
    is_done: bool,
}

impl<D: std::ops::Deref<Target = Disk>> FlushDuty<D> {
    fn of(disk: D) -> Self {
        FlushDuty {
            disk,
            is_done: false,
        }
    }

    fn perform(mut self) {
        self.disk.answer_flushes();
        self.is_done = true;
    }
}

impl<D: std::ops::Deref<Target = Disk>> Drop for FlushDuty<D> {
    fn drop(&mut self) {
        if !self.is_done {
            self.disk.refuse_flushes();
        }
    }
}

impl Disk {
    fn no_image(&self) -> Error {
        Error::NoImage { disk: self.name() }
    }

    /// What `stat` says of the live image; None if there is none. A finished
    /// import has the attributes of what was imported.
    pub fn live(&self) -> Option<LiveAttributes> {
        let state = self.state.read();
        if let Some(live) = &state.live {
            let modified = live.head.modified_ns();
            return Some(LiveAttributes {
                owner: live.owner,
                size: live.head.size(),
                modified: time::to_system(modified),
                changed: time::to_system(modified.max(live.changed_ns)),
                generation: live.generation,
            });
        }
        let snapshot = self.imported_in(&state)?;
        Some(LiveAttributes {
            owner: Owner {
                mode: snapshot.owner.mode & !0o222,
                ..snapshot.owner
            },
            size: snapshot.size,
            modified: snapshot.created(),
            changed: snapshot.created(),
            generation: state.next_generation,
        })
    }

    fn imported_in(&self, state: &State) -> Option<Arc<Snapshot>> {
        if self.role != Role::Image {
            return None;
        }
        state
            .snapshots
            .first()
            .map(|(_, snapshot)| snapshot.clone())
    }

    pub(super) fn imported(&self) -> Option<Arc<Snapshot>> {
        self.imported_in(&self.state.read())
    }

    /// The head, counted into.
    pub(super) fn enter(&self) -> Result<Entered> {
        self.check_poisoned()?;
        let entered = {
            let _gate = self.engine.gate.read();
            let state = self.state.read();
            state.live.as_ref().map(|live| live.head.enter())
        };
        // Neither is held any more: what follows looks at the state again.
        match entered {
            Some(entered) => Ok(entered),
            None if self.imported().is_some() => Err(Error::ReadOnly {
                what: format!("the image {}", self.name()),
            }),
            None => Err(self.no_image()),
        }
    }

    /// Reads from the live image, short at its end.
    pub fn read(&self, offset: u64, buf: &mut [u8], wait: Wait) -> Result<Attempt<usize>> {
        self.check_poisoned()?;
        let Some(head) = self.head() else {
            return match self.imported() {
                Some(snapshot) => self.read_snapshot(&snapshot, offset, buf, wait),
                None => Err(self.no_image()),
            };
        };
        // Its size would be in the log, too.
        head.check_readable()?;
        let len = head.size().saturating_sub(offset).min(buf.len() as u64) as usize;
        Ok(head
            .read(&self.engine.sealed, offset, &mut buf[..len], wait)?
            .map(|()| len))
    }

    /// Writes to the live image, which grows if need be.
    pub fn write(&self, offset: u64, data: &[u8], wait: Wait) -> Result<Attempt<()>> {
        let end = check_end(offset, data.len() as u64)?;
        if end > MAX_SIZE {
            return Err(too_large(end));
        }
        self.engine.capacity.check_write(data.len() as u64)?;
        let blocks = blocks_of(offset, data.len() as u64);
        let range = match wait {
            Wait::No => match self.ranges.try_lock(blocks) {
                Some(range) => range,
                None => return Ok(Attempt::WouldBlock),
            },
            Wait::Yes => self.ranges.lock(blocks),
        };
        let head = self.enter()?;
        let attempt = head
            .write(&self.engine.sealed, offset, data, wait)
            .inspect_err(|error| self.after_error(&head, error))?;
        if attempt == Attempt::Done(()) {
            self.changed(&head);
        }
        drop(range);
        Ok(attempt)
    }

    /// A write error but "no space" leaves a file that nobody can trust.
    /// What could not be read on the way to a write is another matter.
    fn after_error(&self, head: &Layer, error: &Error) {
        if head.check_failed().is_err() {
            self.poison(error);
        }
    }

    pub(super) fn changed(&self, head: &Layer) {
        head.set_modified_ns(time::now_ns());
        if head.pending() >= layer::PENDING_MAX {
            self.engine.work.raise(|work| work.flush = true);
        } else if !self.engine.dirty.swap(true, Ordering::SeqCst) {
            self.engine.work.raise(|_| ());
        }
    }

    /// Makes a range of the live image zeros and frees its space; what lies
    /// past its end stays past its end unless `extend`.
    pub fn punch(&self, offset: u64, len: u64, extend: bool, wait: Wait) -> Result<Attempt<()>> {
        let end = check_end(offset, len)?;
        if end > MAX_SIZE {
            return Err(too_large(end));
        }
        let blocks = blocks_of(offset, len);
        let _range = match wait {
            Wait::No => match self.ranges.try_lock(blocks) {
                Some(range) => range,
                None => return Ok(Attempt::WouldBlock),
            },
            Wait::Yes => self.ranges.lock(blocks),
        };
        let head = self.enter()?;
        let stop = end.min(head.size());
        if offset < stop {
            let attempt = head
                .zero(&self.engine.sealed, offset..stop, wait)
                .inspect_err(|error| self.after_error(&head, error))?;
            if attempt == Attempt::WouldBlock {
                return Ok(attempt);
            }
        }
        if extend {
            head.grow(end);
        }
        self.changed(&head);
        Ok(Attempt::Done(()))
    }

    /// Makes sure that the live image reaches over a range. Space cannot be
    /// set aside for it: every snapshot needs new space for what is written.
    pub fn allocate(&self, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = check_end(offset, len)?;
        if end > MAX_SIZE {
            return Err(too_large(end));
        }
        self.engine.capacity.check_write(0)?;
        if !keep_size {
            let size = self.live().ok_or_else(|| self.no_image())?.size;
            if end > size {
                let _range = self.lock_end(size);
                let head = self.enter()?;
                head.grow(end);
                self.changed(&head);
            }
        }
        Ok(())
    }

    /// Cuts or grows the live image. Cutting is refused while somebody else
    /// has it open for writing.
    pub fn truncate(self: &Arc<Self>, size: u64, opened_for_write_by_caller: bool) -> Result<()> {
        if size > MAX_SIZE {
            return Err(too_large(size));
        }
        let current = self.live().ok_or_else(|| self.no_image())?.size;
        if opened_for_write_by_caller || !self.is_import() {
            return self.resize(current, size, opened_for_write_by_caller);
        }
        // By its path: the import must not be finished meanwhile.
        let opened = self.open_live(true)?;
        let outcome = self.resize(current, size, true);
        drop(opened);
        self.released();
        outcome
    }

    /// Locks out whoever else changes the size of the live image: all that
    /// do touch the block in which it ends or one behind it. At the largest
    /// size that is the last block there is.
    pub(super) fn lock_end(&self, size: u64) -> RangeGuard<'_> {
        let block = (size / BLOCK).min(MAX_BLOCK - 1);
        self.ranges.lock(block..MAX_BLOCK)
    }

    fn resize(&self, current: u64, size: u64, opened_for_write_by_caller: bool) -> Result<()> {
        if size < current {
            let own = u64::from(opened_for_write_by_caller);
            if !self.opens.settles_at(What::LiveForWriting, own) {
                return Err(Error::Busy {
                    what: format!("the live image of {}", self.name()),
                    by: vec!["somebody else has it open for writing".into()],
                });
            }
        }
        let _range = self.lock_end(size.min(current));
        let head = self.enter()?;
        if size < head.size() {
            head.cut(&self.engine.sealed, size)
                .inspect_err(|error| self.after_error(&head, error))?;
        } else {
            head.grow(size);
        }
        self.changed(&head);
        Ok(())
    }

    /// Where data or a hole begins at or after `offset`; None past the end.
    pub fn seek(&self, offset: u64, what: Seek, wait: Wait) -> Result<Attempt<Option<u64>>> {
        self.check_poisoned()?;
        match self.head() {
            Some(head) => {
                let size = head.size();
                self.seek_below(&Below::Layer(head), size, offset, what, wait)
            }
            None => match self.imported() {
                Some(snapshot) => self.seek_snapshot(&snapshot, offset, what, wait),
                None => Err(self.no_image()),
            },
        }
    }

    /// Whether a block is data, and where the run of its like ends. What
    /// cannot be known is data to the end: looking at an image must not fail
    /// over a range that reads of it will answer with an error.
    fn run_or_data(&self, below: &Below, block: u64, wait: Wait) -> Result<Attempt<(bool, u64)>> {
        match layer::run_below(&self.engine.sealed, below, block, wait) {
            Err(
                error @ (Error::Damaged { .. } | Error::ChunkMissing { .. } | Error::Io { .. }),
            ) => {
                tracing::debug!("what disk {} has at block {block}: {error}", self.name());
                Ok(Attempt::Done((true, u64::MAX)))
            }
            run => run,
        }
    }

    pub(crate) fn seek_below(
        &self,
        below: &Below,
        size: u64,
        offset: u64,
        what: Seek,
        wait: Wait,
    ) -> Result<Attempt<Option<u64>>> {
        if offset >= size {
            return Ok(Attempt::Done(None));
        }
        let last = size.div_ceil(BLOCK);
        let mut block = offset / BLOCK;
        while block < last {
            let Attempt::Done((data, end)) = self.run_or_data(below, block, wait)? else {
                return Ok(Attempt::WouldBlock);
            };
            if data == (what == Seek::Data) {
                return Ok(Attempt::Done(Some(offset.max(block * BLOCK))));
            }
            block = end;
        }
        Ok(Attempt::Done((what == Seek::Hole).then_some(size)))
    }

    /// Bytes of data in the live image, whole blocks or chunks counted.
    pub fn allocated(&self, wait: Wait) -> Result<Attempt<u64>> {
        let Some(head) = self.head() else {
            return match self.imported() {
                Some(snapshot) => self.allocated_snapshot(&snapshot, wait),
                None => Err(self.no_image()),
            };
        };
        let changes = head.changes();
        if let Some((id, at, bytes)) = *self.allocated.lock()
            && id == head.id
            && at == changes
        {
            return Ok(Attempt::Done(bytes));
        }
        let size = head.size();
        let id = head.id;
        let counted = self.count_below(&Below::Layer(head), size, wait)?;
        if let Attempt::Done(bytes) = counted {
            *self.allocated.lock() = Some((id, changes, bytes));
        }
        Ok(counted)
    }

    pub(crate) fn count_below(&self, below: &Below, size: u64, wait: Wait) -> Result<Attempt<u64>> {
        let last = size.div_ceil(BLOCK);
        let (mut block, mut blocks) = (0, 0);
        let mut runs = 0;
        while block < last {
            // Counting a fragmented disk takes longer than a look.
            runs += 1;
            if wait == Wait::No && runs > 1000 {
                return Ok(Attempt::WouldBlock);
            }
            let Attempt::Done((data, end)) = self.run_or_data(below, block, wait)? else {
                return Ok(Attempt::WouldBlock);
            };
            let end = end.min(last);
            if data {
                blocks += end - block;
            }
            block = end;
        }
        Ok(Attempt::Done(blocks * BLOCK))
    }

    /// Calls `done` when everything that was written before this call is on
    /// disk, after a sync that began after this call. Callers that wait at
    /// one time share one sync.
    pub fn flush_async(self: &Arc<Self>, done: Box<dyn FnOnce(Result<()>) + Send>) {
        if self.queue_flush(done) {
            let duty = FlushDuty::of(self.clone());
            self.engine.flushes.run(move || duty.perform());
        }
    }

    /// [`Disk::flush_async`] in the calling thread, unless another one is
    /// answering flushes of this disk already.
    pub fn flush_here(&self, done: Box<dyn FnOnce(Result<()>) + Send>) {
        if self.queue_flush(done) {
            let duty = FlushDuty::of(self);
            self.engine.flushes.run_here(|| duty.perform());
        }
    }

    /// Whether nobody is answering: the caller has to see to it.
    fn queue_flush(&self, done: Box<dyn FnOnce(Result<()>) + Send>) -> bool {
        let mut queue = self.flush_queue.lock();
        queue.waiting.push(done);
        !std::mem::replace(&mut queue.running, true)
    }

    fn answer_flushes(&self) {
        loop {
            let waiting = {
                let mut queue = self.flush_queue.lock();
                if queue.waiting.is_empty() {
                    queue.running = false;
                    return;
                }
                std::mem::take(&mut queue.waiting)
            };
            let outcome = self.sync_layers();
            for done in waiting {
                done(match &outcome {
                    Ok(()) => Ok(()),
                    Err(error) => Err(again(error)),
                });
            }
        }
    }

    /// Answers those who wait that nobody will sync for them.
    fn refuse_flushes(&self) {
        let waiting = {
            let mut queue = self.flush_queue.lock();
            queue.running = false;
            std::mem::take(&mut queue.waiting)
        };
        for done in waiting {
            done(Err(Error::Closing));
        }
    }

    /// [`Disk::flush_async`], waited for.
    pub fn flush(self: &Arc<Self>) -> Result<()> {
        let (send, receive) = std::sync::mpsc::channel();
        self.flush_async(Box::new(move |outcome| {
            // The receiver waits below for as long as there is a sender.
            let _ = send.send(outcome);
        }));
        receive.recv().unwrap_or(Err(Error::Closing))
    }

    /// Syncs the head and every layer below it that is not clean yet.
    pub(crate) fn sync_layers(&self) -> Result<()> {
        self.check_poisoned()?;
        self.head().map_or(Ok(()), |head| self.sync_chain(&head))
    }

    /// Syncs a layer of this disk and every one below it that is not clean.
    pub(super) fn sync_chain(&self, layer: &Arc<Layer>) -> Result<()> {
        self.noting(layer.sync_chain())
    }

    pub(super) fn sync_layer(&self, layer: &Layer) -> Result<()> {
        self.noting(layer.sync())
    }

    /// The outcome of a sync: any error but "no space" ends the service.
    fn noting(&self, outcome: Result<()>) -> Result<()> {
        outcome.inspect_err(|error| {
            if !error.is_no_space() {
                self.poison(error);
            }
        })
    }

    /// Changes owner, mode or time of the live image. Owner and mode are
    /// durable when this returns.
    pub fn set_live_attributes(&self, change: AttributeChange) -> Result<()> {
        if let Some(modified) = change.modified {
            // Left again before `meta`: who has that may wait until nobody is
            // left in the head.
            let head = self.enter()?;
            head.set_modified_ns(time::from_system(modified));
            head.note_modified();
        }
        let _settling = self.engine.settling.read();
        let meta = self.meta.lock();
        let mut next = self.state.read().clone();
        let live = next.live.as_mut().ok_or_else(|| Error::ReadOnly {
            what: format!("the image {}", self.name()),
        })?;
        live.owner = change.apply(live.owner);
        // Setting the other time moves this one, too: who compares both sees
        // that there was something.
        live.changed_ns = time::now_ns();
        self.commit(&meta, next)
    }
}

/// The end of a range, or [`Error::TooLarge`].
fn check_end(offset: u64, len: u64) -> Result<u64> {
    offset.checked_add(len).ok_or_else(|| too_large(u64::MAX))
}

fn too_large(size: u64) -> Error {
    Error::TooLarge {
        size,
        limit: MAX_SIZE,
    }
}

/// One error for several callers.
fn again(error: &Error) -> Error {
    match error {
        Error::Full { free, reserve } => Error::Full {
            free: *free,
            reserve: *reserve,
        },
        _ if error.is_no_space() => Error::Full {
            free: 0,
            reserve: 0,
        },
        _ => Error::Poisoned {
            what: "the disk".into(),
            cause: error.to_string(),
        },
    }
}
