//! Making, dropping, freezing and replacing the live image.

use super::layer::BLOCK;
use super::opens::What as Opening;
use super::ranges::RangeGuard;
use super::*;
use crate::events::By;
use crate::manifest::{NUMBER_LIMIT, SnapshotKind};
use crate::name::SnapshotName;
use crate::snapshot::Notes;

/// How long what was dropped with a live image is kept.
const DROPPED_KEPT_NS: i64 = 7 * 24 * 3600 * 1_000_000_000;

/// Who wants a snapshot, and why.
#[derive(Clone, Debug)]
pub(crate) struct Taking {
    pub kind: SnapshotKind,
    pub by: By,
    /// When it ends, if ever.
    pub expires_ns: Option<i64>,
    /// The policy, by name.
    pub policy: Option<String>,
    /// The policy's slot.
    pub slot_ns: Option<i64>,
    /// The group.
    pub group: Option<Uuid>,
}

impl Taking {
    /// One that somebody wants by name.
    pub fn manual(by: By) -> Taking {
        Taking {
            kind: SnapshotKind::Manual,
            by,
            expires_ns: None,
            policy: None,
            slot_ns: None,
            group: None,
        }
    }
}

/// How long after its last writer an import is finished.
const IMPORT_DELAY: Duration = Duration::from_secs(2);
/// When it is tried again after a failure, such as for want of space.
const IMPORT_RETRY: Duration = Duration::from_secs(60);

/// A head that is about to be put above another.
pub(crate) struct Swap<'a> {
    old: Arc<Layer>,
    owner: Owner,
    next: Option<(State, HashSet<LayerId>)>,
    at_ns: i64,
    /// Keeps the size as it is until the swap.
    range: Option<RangeGuard<'a>>,
}

/// A view at one instant.
pub(crate) struct Frozen {
    pub base: Below,
    pub size: u64,
    pub owner: Owner,
    pub at_ns: i64,
}

/// Whether nobody deletes a snapshot before that time but by its name: no
/// policy, which goes by its own counts, and no date.
fn stays_until(notes: &Notes, until_ns: i64) -> bool {
    notes.kind != SnapshotKind::Automatic
        && notes.expires_ns.is_none_or(|ends_ns| ends_ns >= until_ns)
}

impl Disk {
    /// Makes an empty live image; durable when this returns.
    pub fn create_image(&self, owner: Owner) -> Result<()> {
        self.engine.check_open()?;
        self.engine.capacity.check_write(BLOCK)?;
        let _settling = self.engine.settling.read();
        let meta = self.meta.lock();
        let mut next = self.state.read().clone();
        if next.live.is_some() || (self.is_import() && !next.snapshots.is_empty()) {
            return Err(Error::Exists {
                what: "live image",
                name: format!("{}/disk.img", next.name),
            });
        }
        let head = self.engine.new_layer(Below::Empty, 0)?;
        let now = time::now_ns();
        head.set_modified_ns(now);
        next.live = Some(Live {
            head,
            generation: next.next_generation,
            owner,
            changed_ns: now,
        });
        next.next_generation += 1;
        next.modified_ns = now;
        self.commit(&meta, next)
            .inspect_err(|_| self.engine.work.raise(|work| work.seal = true))
    }

    /// Counts the live image as open. A finished import opens for reading
    /// only; a live image that is being replaced is [`Error::Busy`].
    pub fn open_live(self: &Arc<Self>, write: bool) -> Result<Opened> {
        if write && !self.image_writable() {
            return Err(Error::ReadOnly {
                what: format!("the image {}", self.name()),
            });
        }
        if let Some(head) = self.head() {
            // Else it would look like an image of another size.
            head.check_readable()?;
        }
        let what: &[Opening] = if write {
            &[Opening::Live, Opening::LiveForWriting]
        } else {
            &[Opening::Live]
        };
        self.opens.open(what).ok_or_else(|| Error::Busy {
            what: format!("the live image of {}", self.name()),
            by: vec!["it is being replaced".into()],
        })
    }

    /// Whether it can be written: false for a finished import.
    pub fn image_writable(&self) -> bool {
        self.state.read().live.is_some()
    }

    /// Whether anybody has the live image open.
    pub fn is_open(&self) -> bool {
        self.opens.count(Opening::Live) > 0
    }

    /// Keeps the image of an import closed, to remove it.
    pub(crate) fn keep_closed(&self) -> Result<impl Drop + '_> {
        self.opens.keep_closed().ok_or_else(|| self.busy_open())
    }

    fn busy_open(&self) -> Error {
        Error::Busy {
            what: format!("the live image of {}", self.name()),
            by: vec![OPEN.into()],
        }
    }

    /// Freezes the head and puts a new one over it; answers the view as it
    /// was at the swap, synced with everything below it. Writers are not
    /// stopped. A head that nothing was written to stays, and what is below
    /// it is answered.
    pub(super) fn freeze(&self, meta: &Meta<'_>) -> Result<Frozen> {
        let head = self.head();
        if let Some(head) = head
            && head.is_untouched()
        {
            return self.freeze_untouched(&head);
        }
        let mut swap = self.begin_swap(meta)?;
        self.swap(meta, &mut swap);
        self.end_swap(swap)
    }

    fn freeze_untouched(&self, head: &Arc<Layer>) -> Result<Frozen> {
        let owner = self.writable_live()?.owner;
        let at_ns = time::now_ns();
        // It may have got there by a cut that is not on disk yet.
        if head.is_dirty() {
            self.sync_layer(head)?;
        }
        let base = head.below();
        if let Below::Layer(layer) = &base {
            self.sync_chain(layer)?;
        }
        Ok(Frozen {
            base,
            size: head.begin_size(),
            owner,
            at_ns,
        })
    }

    fn writable_live(&self) -> Result<Live> {
        self.check_poisoned()?;
        let live = self.state.read().live.clone();
        let live = live.ok_or_else(|| Error::NoImage { disk: self.name() })?;
        // Its size and what it refers to are in a log that cannot be read
        // now; what is written down of it without them would last.
        live.head.check_readable()?;
        Ok(live)
    }

    /// Makes a new head, which a durable manifest names above the old one.
    /// Nobody writes to it before [`Disk::swap`].
    pub(crate) fn begin_swap(&self, meta: &Meta<'_>) -> Result<Swap<'_>> {
        let live = self.writable_live()?;
        let old = live.head;
        let head = self
            .engine
            .new_layer(Below::Layer(old.clone()), old.size())?;
        head.prepare_like(&old)
            .inspect_err(|_| self.engine.work.raise(|work| work.seal = true))?;
        // The new head begins with the size that the old one ends with, so
        // nobody may change it meanwhile. All others go on.
        let range = loop {
            let size = old.size();
            let range = self.lock_end(size);
            if old.size() == size {
                break range;
            }
        };
        if old.is_end_unsettled() {
            self.sync_layer(&old)?;
        }
        head.begin_with(old.size());
        head.set_modified_ns(old.modified_ns());
        let mut next = self.state.read().clone();
        if let Some(live) = &mut next.live {
            live.head = head.clone();
        }
        // Durable before it is written to, or an fsync of the new head could
        // be answered and its layer never be found again.
        match self.write_manifest(meta, &mut next) {
            Ok(named) => Ok(Swap {
                old,
                owner: live.owner,
                next: Some((next, named)),
                at_ns: 0,
                range: Some(range),
            }),
            Err(error) => {
                self.engine.work.raise(|work| work.seal = true);
                Err(error)
            }
        }
    }

    /// From now on writers go to the new head. Waits for nothing.
    pub(crate) fn swap(&self, meta: &Meta<'_>, swap: &mut Swap<'_>) {
        if let Some((next, named)) = swap.next.take() {
            if let Some(live) = &next.live {
                live.head.set_modified_ns(swap.old.modified_ns());
            }
            self.show(meta, next, named);
        }
        swap.at_ns = time::now_ns();
    }

    /// Waits until nobody is left in the old head, and syncs it with
    /// everything below it.
    pub(crate) fn end_swap(&self, mut swap: Swap<'_>) -> Result<Frozen> {
        drop(swap.range.take());
        let old = swap.old;
        old.freeze();
        self.sync_chain(&old)?;
        self.engine.work.raise(|work| work.seal = true);
        Ok(Frozen {
            size: old.size(),
            base: Below::Layer(old),
            owner: swap.owner,
            at_ns: swap.at_ns,
        })
    }

    /// Whether a snapshot that `counts` shows just what the live image shows.
    fn is_kept(&self, state: &State, frozen: &Frozen, counts: impl Fn(&Notes) -> bool) -> bool {
        let record = base_record(&frozen.base);
        (record == BaseRecord::Empty && frozen.size == 0)
            || state.snapshots.iter().any(|(_, snapshot)| {
                snapshot.size == frozen.size
                    && base_record(&snapshot.base()) == record
                    && counts(&snapshot.notes())
            })
    }

    /// A name that no snapshot of `state` has.
    fn free_name(state: &State, wanted: String) -> String {
        let taken = |name: &str| state.snapshots.iter().any(|(other, _)| other == name);
        if !taken(&wanted) {
            return wanted;
        }
        (2..)
            .map(|n| format!("{wanted}-{n}"))
            .find(|name| !taken(name))
            .unwrap_or(wanted)
    }

    fn keep(
        &self,
        next: &mut State,
        prefix: &str,
        frozen: &Frozen,
        kept_ns: Option<i64>,
    ) -> String {
        let name = Self::free_name(next, format!("{prefix}-{}", time::compact(frozen.at_ns)));
        let snapshot = Snapshot::new(
            next.next_snapshot,
            SnapshotKind::Kept,
            frozen.base.clone(),
            frozen.size,
            frozen.at_ns,
            frozen.owner,
        );
        snapshot.set_notes(Notes {
            expires_ns: kept_ns.map(|kept| frozen.at_ns.saturating_add(kept)),
            ..snapshot.notes()
        });
        next.next_snapshot += 1;
        next.snapshots.push((name.clone(), Arc::new(snapshot)));
        name
    }

    /// Drops the live image. What no snapshot holds is first kept as
    /// `dropped-<time>`.
    pub fn drop_image(&self) -> Result<()> {
        let closed = self.opens.keep_closed().ok_or_else(|| self.busy_open())?;
        self.engine.sync_grafts()?;
        let _settling = self.engine.settling.read();
        let meta = self.meta.lock();
        // An image that failed cannot be kept, so it is not dropped either:
        // after the store is reopened it can be both.
        let frozen = self.freeze(&meta)?;
        let mut next = self.state.read().clone();
        let mut kept = None;
        let until_ns = frozen.at_ns.saturating_add(DROPPED_KEPT_NS);
        let stays = |notes: &Notes| stays_until(notes, until_ns);
        if !self.is_import() && !self.is_kept(&next, &frozen, stays) {
            let name = self.keep(&mut next, "dropped", &frozen, Some(DROPPED_KEPT_NS));
            tracing::info!("disk {}: its dropped image is kept as {name}", next.name);
            kept = Some(name);
        }
        next.live = None;
        next.modified_ns = time::now_ns();
        self.commit(&meta, next)?;
        if !self.is_import() {
            let mut event = Event::new(What::Dropped).disk(self.name());
            event.reason = kept.map(|name| format!("kept as {name} for 7 days"));
            self.engine.events.note(event);
        }
        drop(closed);
        self.engine.work.raise(|work| {
            work.expire = true;
            work.seal = true;
            work.collect = true;
        });
        Ok(())
    }

    /// Makes the live image what a snapshot is. What it was is kept as a
    /// snapshot, whose name is answered, unless `discard` or one has it
    /// already.
    pub fn rollback(self: &Arc<Self>, name: &str, discard: bool) -> Result<Option<String>> {
        self.engine.check_open()?;
        let _closed = self.opens.keep_closed().ok_or_else(|| self.busy_open())?;
        if discard {
            self.engine.sync_grafts()?;
        }
        let _settling = self.engine.settling.read();
        let meta = self.meta.lock();
        let target = self.find(name)?;
        if let Below::Lost(lost) = target.base() {
            return Err(lost.error());
        }
        let owner = self.state.read().live.as_ref().map(|live| live.owner);
        let frozen = match owner {
            Some(_) if !discard => Some(self.freeze(&meta)?),
            _ => None,
        };
        let mut next = self.state.read().clone();
        let kept = match &frozen {
            Some(frozen) if !self.is_kept(&next, frozen, |notes| stays_until(notes, i64::MAX)) => {
                Some(self.keep(&mut next, "before-rollback", frozen, None))
            }
            _ => None,
        };
        let head = self.engine.new_layer(target.base(), target.size)?;
        let now = time::now_ns();
        head.set_modified_ns(now);
        next.live = Some(Live {
            head,
            generation: next.next_generation,
            owner: owner.unwrap_or(target.owner),
            changed_ns: now,
        });
        next.next_generation += 1;
        next.modified_ns = now;
        let committed = self.commit(&meta, next);
        self.engine.work.raise(|work| {
            work.seal = true;
            work.collect |= discard;
        });
        committed?;
        *self.last_rollback.lock() = kept.clone().unwrap_or_default();
        let event = Event::new(What::RolledBack)
            .disk(self.name())
            .snapshot(name);
        self.engine.events.note(event.reason(match &kept {
            Some(kept) => format!("what the disk was is kept as {kept}"),
            None if discard => "what the disk was is discarded".to_owned(),
            None => "a snapshot has what the disk was".to_owned(),
        }));
        tracing::info!(
            "disk {}: rolled back to {name}{}",
            self.name(),
            match &kept {
                Some(kept) => format!(", what it was is kept as {kept}"),
                None => String::new(),
            }
        );
        Ok(kept)
    }

    /// The snapshot that the last rollback of this run kept; empty if none.
    pub fn last_rollback(&self) -> String {
        self.last_rollback.lock().clone()
    }

    /// Notes that the last writer of an import is gone. Programs close and
    /// open again between writing, so it is finished a little later.
    pub fn released(&self) {
        if self.is_import() && self.image_writable() {
            *self.finish_at.lock() = Some(Instant::now() + IMPORT_DELAY);
            self.engine.work.raise(|work| work.finish = true);
        }
    }

    /// When it is to be finished, if it is an import that nobody writes.
    pub(crate) fn finish_at(&self) -> Option<Instant> {
        *self.finish_at.lock()
    }

    /// Ends the import of an image, as [`Disk::finish_import`] does. If that
    /// cannot be done now, the image stays writable, can be read all the
    /// same, and is tried again later.
    pub(crate) fn finish_import_or_later(self: &Arc<Self>) {
        // One that failed stays so until the store is opened anew.
        if self.poisoned().is_some() {
            *self.finish_at.lock() = None;
            return;
        }
        // Not at each read.
        let mut retry_at = self.finish_not_before.lock();
        if retry_at.is_none_or(|at| at <= Instant::now()) {
            let Err(error) = self.finish_import() else {
                return;
            };
            tracing::warn!("image {} stays writable: {error}", self.name());
            *retry_at = Some(Instant::now() + IMPORT_RETRY);
        }
        if std::mem::replace(&mut *self.finish_at.lock(), *retry_at) != *retry_at {
            self.engine.work.raise(|work| work.finish = true);
        }
    }

    /// Ends the import of an image: from now on it is read-only. Nothing
    /// happens while somebody writes it, or when it is finished already.
    pub fn finish_import(self: &Arc<Self>) -> Result<()> {
        if !self.is_import() {
            return Ok(());
        }
        *self.finish_at.lock() = None;
        // What a writer put into the new head, and was told is safe, would
        // be in no snapshot.
        let Some(_closed) = self.opens.keep_unwritten() else {
            return Ok(());
        };
        let _settling = self.engine.settling.read();
        let meta = self.meta.lock();
        if self.state.read().live.is_none() {
            return Ok(());
        }
        let frozen = self.freeze(&meta)?;
        let mut next = self.state.read().clone();
        let name = SnapshotName::parse("image".as_ref())?;
        next.snapshots.push((
            name.into(),
            Arc::new(Snapshot::new(
                next.next_snapshot,
                SnapshotKind::Kept,
                frozen.base,
                frozen.size,
                frozen.at_ns,
                frozen.owner,
            )),
        ));
        next.next_snapshot += 1;
        next.live = None;
        self.commit(&meta, next)?;
        self.engine.work.raise(|work| work.seal = true);
        Ok(())
    }
}

/// The parts of snapshots that need the disk's state.
impl Disk {
    pub(crate) fn list_snapshots(&self) -> Vec<Arc<Snapshot>> {
        let state = self.state.read();
        state.snapshots.iter().map(|(_, s)| s.clone()).collect()
    }

    pub(crate) fn find(&self, name: &str) -> Result<Arc<Snapshot>> {
        let state = self.state.read();
        let found = state.snapshots.iter().find(|(other, _)| other == name);
        found
            .map(|(_, snapshot)| snapshot.clone())
            .ok_or_else(|| Error::Missing {
                what: "snapshot",
                name: name.to_owned(),
            })
    }

    pub(crate) fn check_new_name(&self, name: &str) -> Result<()> {
        match self.find(name) {
            Ok(_) => Err(Error::Exists {
                what: "snapshot",
                name: name.to_owned(),
            }),
            Err(_) => Ok(()),
        }
    }

    /// Checks that there may be one more snapshot of a kind.
    pub(crate) fn check_quota(&self, kind: SnapshotKind) -> Result<()> {
        if self.state.read().next_snapshot >= NUMBER_LIMIT - 1 {
            return Err(Error::Quota {
                what: format!("numbers of snapshots of {}", self.name()),
                limit: NUMBER_LIMIT.into(),
            });
        }
        // What is kept before something is lost is kept at all events, and
        // for an automatic one a policy has found what makes room.
        if kind != SnapshotKind::Manual || self.is_import() {
            return Ok(());
        }
        self.check_manual_quota()?;
        let limit = self.engine.settings.read().max_snapshots;
        let (manual, automatic) = self.count_snapshots();
        match limit {
            Some(limit) if manual + automatic >= limit as usize => Err(Error::Quota {
                what: format!("snapshots of disk {}", self.name()),
                limit: limit.into(),
            }),
            _ => Ok(()),
        }
    }

    /// Checks that there may be one more manual snapshot, whatever there is
    /// of others.
    pub(crate) fn check_manual_quota(&self) -> Result<()> {
        let limit = self.engine.settings.read().max_manual_snapshots;
        let (manual, _) = self.count_snapshots();
        match manual >= limit as usize {
            true => Err(Error::Quota {
                what: format!("manual snapshots of disk {}", self.name()),
                limit: limit.into(),
            }),
            false => Ok(()),
        }
    }

    /// Whether there is an image that can be swapped.
    pub(crate) fn check_live(&self) -> Result<()> {
        self.writable_live().map(drop)
    }

    /// Manual and automatic snapshots.
    pub(crate) fn count_snapshots(&self) -> (usize, usize) {
        let state = self.state.read();
        let of = |kind: SnapshotKind| {
            let snapshots = state.snapshots.iter();
            snapshots.filter(|(_, one)| one.kind() == kind).count()
        };
        (of(SnapshotKind::Manual), of(SnapshotKind::Automatic))
    }

    /// Says so when a disk has just come near to what it may have.
    fn warn_of_quota(&self, kind: SnapshotKind) {
        let settings = *self.engine.settings.read();
        let (manual, automatic) = self.count_snapshots();
        let near = |count: usize, limit: u32| {
            let begins = (u64::from(limit) * 9).div_ceil(10);
            limit > 0 && count as u64 == begins
        };
        let (count, limit, words) = match kind {
            SnapshotKind::Manual => (manual, settings.max_manual_snapshots, "manual"),
            SnapshotKind::Automatic => (automatic, settings.max_automatic_snapshots, "automatic"),
            SnapshotKind::Kept => return,
        };
        let both = settings
            .max_snapshots
            .filter(|limit| near(manual + automatic, *limit));
        let reason = match both {
            Some(limit) => format!("{} of {limit} snapshots", manual + automatic),
            None if near(count, limit) => format!("{count} of {limit} {words} snapshots"),
            None => return,
        };
        tracing::warn!("disk {}: {reason}", self.name());
        let event = Event::new(What::QuotaNear).disk(self.name());
        self.engine.events.note(event.reason(reason));
    }

    /// The state with one more snapshot, and that.
    pub(crate) fn with_snapshot(
        &self,
        name: &str,
        frozen: Frozen,
        taking: &Taking,
    ) -> (State, Arc<Snapshot>) {
        let mut next = self.state.read().clone();
        let mut snapshot = Snapshot::new(
            next.next_snapshot,
            taking.kind,
            frozen.base,
            frozen.size,
            frozen.at_ns,
            frozen.owner,
        );
        snapshot.group = taking.group;
        snapshot.set_notes(Notes {
            expires_ns: taking.expires_ns,
            policy: taking.policy.clone(),
            ..snapshot.notes()
        });
        let snapshot = Arc::new(snapshot);
        next.next_snapshot += 1;
        if let Some(slot_ns) = taking.slot_ns {
            next.slot_ns = Some(slot_ns);
        }
        next.snapshots.push((name.to_owned(), snapshot.clone()));
        (next, snapshot)
    }

    pub(crate) fn take(
        &self,
        meta: &Meta<'_>,
        name: &str,
        taking: &Taking,
    ) -> Result<Arc<Snapshot>> {
        self.check_quota(taking.kind)?;
        let frozen = self.freeze(meta)?;
        let (next, snapshot) = self.with_snapshot(name, frozen, taking);
        self.commit(meta, next)?;
        self.note_taken(&snapshot, taking);
        Ok(snapshot)
    }

    pub(crate) fn note_taken(&self, snapshot: &Snapshot, taking: &Taking) {
        if self.is_import() {
            return;
        }
        let mut event = Event::new(What::Taken)
            .disk(self.name())
            .snapshot(snapshot.name())
            .by(&taking.by)
            .bytes(snapshot.size);
        event.slot = taking.slot_ns.map(time::rfc3339);
        self.engine.events.note(event);
        self.engine.metrics.taken(taking.kind);
        self.warn_of_quota(taking.kind);
    }

    /// Whether a snapshot shows just what the live image shows.
    pub(crate) fn is_unchanged(&self) -> bool {
        let state = self.state.read().clone();
        let Some(live) = &state.live else { return true };
        if !live.head.is_untouched() {
            return false;
        }
        let frozen = Frozen {
            base: live.head.below(),
            size: live.head.size(),
            owner: live.owner,
            at_ns: 0,
        };
        self.is_kept(&state, &frozen, |_| true)
    }

    /// Notes when what is said of a snapshot changed, also in the manifest.
    pub(crate) fn note_changed(&self, meta: &Meta<'_>, snapshot: &Snapshot) {
        snapshot.touch();
        let state = self.state.read().clone();
        if let Err(error) = self.commit(meta, state) {
            // Only the time that info.toml has after a remount is older.
            tracing::warn!("the time of {}: {error}", snapshot.name());
        }
    }

    pub(crate) fn forget_snapshot(&self, meta: &Meta<'_>, name: &str) -> Result<()> {
        let mut next = self.state.read().clone();
        next.snapshots.retain(|(other, _)| other != name);
        self.commit(meta, next)
    }

    /// Forgets a snapshot that counts no more, whether or not its manifest
    /// can say so by now.
    pub(crate) fn forget_now(&self, meta: &Meta<'_>, name: &str) -> Result<()> {
        let mut next = self.state.read().clone();
        next.snapshots.retain(|(other, _)| other != name);
        let shown = next.clone();
        self.commit(meta, next).inspect_err(|_| {
            let named = self.durable_layers();
            self.show(meta, shown, named);
        })
    }

    pub(crate) fn set_snapshot_name(&self, meta: &Meta<'_>, from: &str, to: &str) -> Result<()> {
        let mut next = self.state.read().clone();
        for (name, _) in &mut next.snapshots {
            if name == from {
                *name = to.to_owned();
            }
        }
        self.commit(meta, next)
    }

    /// Counts a snapshot as open; None while it is being deleted.
    pub(crate) fn count_snapshot_open(&self, number: u32) -> Option<Opened> {
        self.opens.open(&[Opening::Snapshot(number)])
    }

    pub(crate) fn is_snapshot_open(&self, number: u32) -> bool {
        self.opens.count(Opening::Snapshot(number)) > 0
    }

    /// Keeps a snapshot closed as long as the answer lives; None if it is
    /// open. The caller holds `meta`.
    pub(crate) fn keep_snapshot_closed(&self, number: u32) -> Option<KeptClosed<'_>> {
        self.opens.keep_snapshot_closed(number)
    }

    /// Whether a snapshot is closed, after a wait for a close on its way.
    pub(crate) fn snapshot_settles_closed(&self, number: u32) -> bool {
        self.opens.settles_at(Opening::Snapshot(number), 0)
    }

    /// Names of the images that are links to a snapshot.
    pub(crate) fn links_of(&self, snapshot: &Snapshot) -> Vec<String> {
        let links = self.engine.links.lock();
        links
            .iter()
            .filter(|(_, link)| link.disk == self.id && link.snapshot == snapshot.id)
            .map(|(name, _)| name.clone())
            .collect()
    }
}
