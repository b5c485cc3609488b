//! Reading through a layer and changing it.

use super::*;
use crate::disk::sealed::{Attempt, Sealed, Wait};

/// Where a part of what is read comes from.
enum Piece {
    Data,
    Zero,
    Below,
    Graft(Graft),
}

/// Fills `buf` with what `below` shows at `offset`, zeros where there is
/// nothing.
pub fn read_below(
    sealed: &Sealed,
    below: &Below,
    offset: u64,
    buf: &mut [u8],
    wait: Wait,
) -> Result<Attempt<()>> {
    match below.settled() {
        Below::Empty => {
            buf.fill(0);
            Ok(Attempt::Done(()))
        }
        Below::Root(root) => sealed.read(&root, offset, buf, wait),
        Below::Layer(layer) => layer.read(sealed, offset, buf, wait),
        Below::Lost(lost) => Err(lost.error()),
    }
}

/// Whether there may be data at `block`, and the end of a run of blocks of
/// which the same is true.
pub fn run_below(
    sealed: &Sealed,
    below: &Below,
    block: u64,
    wait: Wait,
) -> Result<Attempt<(bool, u64)>> {
    match below.settled() {
        Below::Empty => Ok(Attempt::Done((false, u64::MAX))),
        Below::Root(root) => {
            let unit = sealed.chunk_size() / BLOCK;
            let run = sealed.run(&root, block / unit, wait)?;
            Ok(run.map(|(data, end)| (data, end.saturating_mul(unit))))
        }
        Below::Layer(layer) => layer.run(sealed, block, wait),
        // What cannot be read may be data.
        Below::Lost(_) => Ok(Attempt::Done((true, u64::MAX))),
    }
}

/// The runs of blocks in a range that are in the segments.
fn data_runs(content: &Content, blocks: Range<u64>) -> Vec<Range<u64>> {
    let mut runs = Vec::new();
    let mut at = blocks.start;
    while at < blocks.end {
        let (state, end) = content.presence.run(at, blocks.end);
        if state == BlockState::Data {
            runs.push(at..end);
        }
        at = end;
    }
    runs
}

impl Layer {
    /// The piece that begins at `block`, and its end at most at `limit`.
    fn piece(&self, content: &Content, block: u64, limit: u64) -> (Piece, u64) {
        let (state, end) = content.presence.run(block, limit);
        match state {
            BlockState::Data => return (Piece::Data, end),
            BlockState::Zero => return (Piece::Zero, end),
            BlockState::Absent => {}
        }
        let unit = self.chunk_blocks;
        let chunk = block / unit;
        match content.grafts.get(chunk) {
            Some((chunks, graft)) => (Piece::Graft(graft), end.min(chunks.end * unit)),
            None => {
                let next = content.grafts.next_start(chunk).unwrap_or(u64::MAX);
                (Piece::Below, end.min(next.saturating_mul(unit)))
            }
        }
    }

    /// [`Error::Damaged`] for a layer whose log cannot be read.
    pub(crate) fn check_readable(&self) -> Result<()> {
        match &self.broken {
            None => Ok(()),
            Some(cause) => Err(Error::Damaged {
                what: format!("layer {}", self.id),
                detail: cause.clone(),
            }),
        }
    }

    /// Fills `buf` with what a view of this layer shows at `offset`; zeros
    /// where there is nothing. What lies past the size is the caller's to
    /// cut off.
    pub fn read(
        &self,
        sealed: &Sealed,
        offset: u64,
        buf: &mut [u8],
        wait: Wait,
    ) -> Result<Attempt<()>> {
        if buf.is_empty() {
            return Ok(Attempt::Done(()));
        }
        self.check_readable()?;
        let end = offset + buf.len() as u64;
        let blocks = blocks_of(offset, buf.len() as u64);
        // What comes from where is decided at one instant; the bytes are
        // read after the lock is gone. A block only ever goes from one valid
        // state to another meanwhile.
        let mut pieces = Vec::new();
        {
            let content = self.content.read();
            let mut at = blocks.start;
            while at < blocks.end {
                let (piece, stop) = self.piece(&content, at, blocks.end);
                let from = (at * BLOCK).max(offset);
                let to = (stop * BLOCK).min(end);
                pieces.push((piece, from..to));
                at = stop;
            }
        }
        for (piece, range) in pieces {
            let part = &mut buf[(range.start - offset) as usize..(range.end - offset) as usize];
            let attempt = match piece {
                Piece::Data => {
                    self.read_data(range.start, part)?;
                    Attempt::Done(())
                }
                Piece::Zero => {
                    part.fill(0);
                    Attempt::Done(())
                }
                Piece::Graft(graft) => {
                    let unit = self.chunk_blocks * BLOCK;
                    // `start` is the source's chunk for the chunk of `range`.
                    let inside = range.start % unit;
                    let from = graft.start * unit + inside;
                    read_below(sealed, &graft.source, from, part, wait)?
                }
                Piece::Below => {
                    let cut = self.cut.load(Ordering::SeqCst);
                    let shown = cut.saturating_sub(range.start).min(part.len() as u64);
                    let (seen, hidden) = part.split_at_mut(shown as usize);
                    hidden.fill(0);
                    read_below(sealed, &self.below(), range.start, seen, wait)?
                }
            };
            if attempt == Attempt::WouldBlock {
                return Ok(Attempt::WouldBlock);
            }
        }
        Ok(Attempt::Done(()))
    }

    /// Every byte of a layer that is read passes here, and every one that is
    /// written passes `write_data`: the place for a transform of both.
    pub(super) fn read_data(&self, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.each_segment(offset, buf.len() as u64, |index, inside, range| {
            let part = &mut buf[range];
            let segment = self.segments.read().get(&index).cloned();
            let path = || text(&segment_path(self.id, index));
            let segment = segment.ok_or_else(|| Error::Damaged {
                what: path(),
                detail: "the segment is missing".into(),
            })?;
            segment.file.read_exact_at(part, inside).map_err(|error| {
                if error.kind() == std::io::ErrorKind::UnexpectedEof {
                    Error::Damaged {
                        what: path(),
                        detail: format!("it is cut off: {error}"),
                    }
                } else {
                    Error::io("reading", path())(error)
                }
            })
        })
    }

    /// Calls `f(segment, offset inside it, range of the buffer)` for the
    /// parts of a byte range.
    fn each_segment(
        &self,
        offset: u64,
        len: u64,
        mut f: impl FnMut(u64, u64, Range<usize>) -> Result<()>,
    ) -> Result<()> {
        let mut done = 0;
        while done < len {
            let at = offset + done;
            let part = (SEGMENT - at % SEGMENT).min(len - done);
            f(
                at / SEGMENT,
                at % SEGMENT,
                done as usize..(done + part) as usize,
            )?;
            done += part;
        }
        Ok(())
    }

    /// Whether there may be data at `block` of the view, and the end of a
    /// run of blocks of which the same is true.
    pub fn run(&self, sealed: &Sealed, block: u64, wait: Wait) -> Result<Attempt<(bool, u64)>> {
        self.check_readable()?;
        let (piece, end) = self.piece(&self.content.read(), block, u64::MAX);
        let unit = self.chunk_blocks;
        match piece {
            Piece::Data => Ok(Attempt::Done((true, end))),
            Piece::Zero => Ok(Attempt::Done((false, end))),
            Piece::Graft(graft) => {
                let from = graft.start * unit + block % unit;
                let run = run_below(sealed, &graft.source, from, wait)?;
                Ok(run.map(|(data, stop)| {
                    let len = stop.saturating_sub(from);
                    (data, end.min(block.saturating_add(len)))
                }))
            }
            Piece::Below => {
                let cut = self.cut.load(Ordering::SeqCst).div_ceil(BLOCK);
                if block >= cut {
                    return Ok(Attempt::Done((false, end)));
                }
                let run = run_below(sealed, &self.below(), block, wait)?;
                Ok(run.map(|(data, stop)| (data, stop.min(end).min(cut))))
            }
        }
    }

    /// Writes `data` at `offset`. Blocks of which only a part is written
    /// and which are not here yet are completed from what shows through,
    /// which is why this may have to wait; nothing was done then. The
    /// caller holds the lock of the block range and is counted in.
    pub fn write(
        &self,
        sealed: &Sealed,
        offset: u64,
        data: &[u8],
        wait: Wait,
    ) -> Result<Attempt<()>> {
        self.check_failed()?;
        self.check_readable()?;
        if data.is_empty() {
            return Ok(Attempt::Done(()));
        }
        let end = offset + data.len() as u64;
        let blocks = blocks_of(offset, data.len() as u64);
        let (head, tail, all_there) = {
            let content = self.content.read();
            let presence = &content.presence;
            let lacks = |block| presence.state(block) != BlockState::Data;
            (
                !offset.is_multiple_of(BLOCK) && lacks(blocks.start),
                !end.is_multiple_of(BLOCK) && lacks(blocks.end - 1),
                presence.all(blocks.clone(), BlockState::Data),
            )
        };
        if head || tail {
            let from = if head { blocks.start * BLOCK } else { offset };
            let to = if tail { blocks.end * BLOCK } else { end };
            let mut whole = vec![0; (to - from) as usize];
            let (before, after) = ((offset - from) as usize, (end - from) as usize);
            if self.read(sealed, from, &mut whole[..before], wait)? == Attempt::WouldBlock
                || self.read(sealed, end, &mut whole[after..], wait)? == Attempt::WouldBlock
            {
                return Ok(Attempt::WouldBlock);
            }
            whole[before..after].copy_from_slice(data);
            self.write_or_undo(from, &whole)?;
        } else {
            self.write_or_undo(offset, data)?;
        }
        if !all_there {
            let mut content = self.content.write();
            content.presence.set(blocks.clone(), BlockState::Data);
            content.note(Record::Data(blocks));
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
        self.grow(end);
        Ok(Attempt::Done(()))
    }

    /// Writes; what a failed write leaves behind the end is zeros again.
    fn write_or_undo(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.write_data(offset, data).inspect_err(|error| {
            let size = self.size();
            if error.is_refused_write()
                && blocks_of(offset, data.len() as u64).contains(&(size / BLOCK))
                && let Err(left) = self.clear_rest(size)
            {
                self.fail(&left);
            }
        })
    }

    fn write_data(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.each_segment(offset, data.len() as u64, |index, inside, range| {
            let segment = self.segment(index)?;
            let written = segment.file.write_all_at(&data[range], inside);
            // Also after a failure: some of it may be in the cache.
            segment.dirty.store(true, Ordering::SeqCst);
            written
                .map_err(Error::io("writing", text(&segment_path(self.id, index))))
                .inspect_err(|error| {
                    if !error.is_refused_write() {
                        self.fail(error);
                    }
                })
        })
    }

    /// The segment file, made if there is none yet.
    pub(super) fn segment(&self, index: u64) -> Result<Arc<Segment>> {
        if let Some(why) = self.lost.get(&index) {
            return Err(Error::Damaged {
                what: format!("layer {}", self.id),
                detail: why.clone(),
            });
        }
        if let Some(segment) = self.segments.read().get(&index) {
            return Ok(segment.clone());
        }
        let mut segments = self.segments.write();
        if let Some(segment) = segments.get(&index) {
            return Ok(segment.clone());
        }
        let path = segment_path(self.id, index);
        let file = self
            .files
            .create_new(&path)
            .map_err(Error::io("creating", text(&path)))?;
        self.new_names.store(true, Ordering::SeqCst);
        // As long as it can get: a write that makes a file longer waits for
        // its filesystem's journal, one into a hole does not.
        let len = self.size().saturating_sub(index * SEGMENT).min(SEGMENT);
        if let Err(error) = file.set_len(len) {
            unlink(&*self.files, &path)?;
            return Err(Error::io("sizing", text(&path))(error));
        }
        let segment = Arc::new(Segment {
            file,
            dirty: AtomicBool::new(true),
        });
        segments.insert(index, segment.clone());
        Ok(segment)
    }

    /// Grows to at least `size`.
    pub fn grow(&self, size: u64) {
        if self.size() < size {
            let mut content = self.content.write();
            if self.size.fetch_max(size, Ordering::SeqCst) < size {
                content.note(Record::Grow(size));
                self.changes.fetch_add(1, Ordering::SeqCst);
            }
        }
    }

    /// Makes a byte range read as zeros. The caller holds the lock of the
    /// block range and is counted in. May have to wait: for the parts of
    /// blocks at its edges, and where there is data to be freed, since the
    /// host's filesystem may write that out before it punches a hole. Then
    /// nothing was done.
    pub fn zero(&self, sealed: &Sealed, range: Range<u64>, wait: Wait) -> Result<Attempt<()>> {
        self.check_failed()?;
        self.check_readable()?;
        let first = range.start.div_ceil(BLOCK);
        let last = range.end / BLOCK;
        if wait == Wait::No && first < last && self.piece_of_data(first..last).is_some() {
            return Ok(Attempt::WouldBlock);
        }
        const ZEROS: [u8; BLOCK as usize] = [0; BLOCK as usize];
        let mut edges = Vec::new();
        if first > last {
            edges.push(range.clone());
        } else {
            edges.push(range.start..first * BLOCK);
            edges.push(last * BLOCK..range.end);
        }
        let size = self.size();
        for edge in edges {
            if edge.is_empty()
                || self.content.read().presence.state(edge.start / BLOCK) == BlockState::Zero
            {
                continue;
            }
            let zeros = &ZEROS[..(edge.end - edge.start) as usize];
            if self.write(sealed, edge.start, zeros, wait)? == Attempt::WouldBlock {
                // An edge that was written already is zero as it should be.
                return Ok(Attempt::WouldBlock);
            }
        }
        // Only writing grows a disk; zeros past its end were there before.
        debug_assert!(self.size() == size || range.end > size);
        if first < last {
            self.zero_blocks(first..last)?;
        }
        Ok(Attempt::Done(()))
    }

    fn zero_blocks(&self, blocks: Range<u64>) -> Result<()> {
        let freed;
        {
            let mut content = self.content.write();
            freed = data_runs(&content, blocks.clone());
            content.presence.set(blocks.clone(), BlockState::Zero);
            content.note(Record::Zero(blocks));
            self.changes.fetch_add(1, Ordering::SeqCst);
        }
        // Before the record is on disk a crash may show these blocks as data
        // again; that data reads as zeros, which is what was asked for.
        for run in freed {
            self.punch_data(run)?;
        }
        Ok(())
    }

    fn punch_data(&self, blocks: Range<u64>) -> Result<()> {
        let len = (blocks.end - blocks.start) * BLOCK;
        self.each_segment(blocks.start * BLOCK, len, |index, inside, range| {
            let Some(segment) = self.segments.read().get(&index).cloned() else {
                return Ok(());
            };
            let punched = segment.file.punch(inside, (range.end - range.start) as u64);
            segment.dirty.store(true, Ordering::SeqCst);
            punched
                .map_err(Error::io("punching", text(&segment_path(self.id, index))))
                .inspect_err(|error| {
                    if !error.is_refused_write() {
                        self.fail(error);
                    }
                })
        })
    }

    /// Cuts to `size` bytes: what lay behind is gone, and reads as zeros
    /// when the layer grows again. The caller holds the lock of all blocks
    /// from there on, is counted in, and waits.
    pub fn cut(&self, sealed: &Sealed, size: u64) -> Result<()> {
        self.check_failed()?;
        self.check_readable()?;
        let block_end = size.div_ceil(BLOCK) * BLOCK;
        if size < block_end && size < self.size() {
            // The rest of the last block is zeroed in place. Should the cut
            // itself be lost in a crash, these zeros are a part of it.
            let end = block_end.min(self.size());
            self.zero(sealed, size..end, Wait::Yes)?;
        }
        let freed = data_runs(&self.content.read(), size.div_ceil(BLOCK)..MAX_BLOCK);
        self.cut_to(size);
        // As in `zero_blocks`: what was cut off reads as zeros if a crash
        // brings the size back.
        for run in freed {
            self.punch_data(run)?;
        }
        Ok(())
    }

    /// After recovery: gives a layer the size that the layer over it began
    /// with, as a durable manifest says. Its own log may not have got so far.
    pub fn recover_size(&self, size: u64) {
        if self.size() < size {
            self.grow(size);
        } else if self.size() > size {
            self.cut_to(size);
        }
    }

    /// After recovery: makes sure that nothing is behind the end, where a
    /// write may have left something that never was acknowledged: blocks
    /// whose record reached the log when the size did not, and the rest of
    /// the last block. It would show when the disk grows.
    pub fn settle_end(&self, sealed: &Sealed) -> Result<()> {
        let size = self.size();
        let first = size.div_ceil(BLOCK);
        let is_clear = {
            let content = self.content.read();
            let grafted = content
                .grafts
                .iter_range(first.div_ceil(self.chunk_blocks)..u64::MAX);
            grafted.count() == 0 && content.presence.all(first..MAX_BLOCK, BlockState::Absent)
        };
        if !is_clear {
            self.cut_to(size);
            self.cleared.store(true, Ordering::SeqCst);
        }
        self.clear_rest(size)?;
        self.own_end(sealed, size)
    }

    /// Makes the block that `size` lies in the layer's own, with zeros behind
    /// the end, if a graft shows it: what the graft has there would show when
    /// the disk grows. What cannot be read stays; a seal will not get by it.
    fn own_end(&self, sealed: &Sealed, size: u64) -> Result<()> {
        let (block, inside) = (size / BLOCK, (size % BLOCK) as usize);
        let is_grafted = {
            let content = self.content.read();
            content.presence.state(block) == BlockState::Absent
                && content.grafts.get(block / self.chunk_blocks).is_some()
        };
        if inside == 0 || !is_grafted {
            return Ok(());
        }
        let mut bytes = [0; BLOCK as usize];
        let read = self.read(sealed, block * BLOCK, &mut bytes[..inside], Wait::Yes);
        if let Err(error) = read {
            tracing::warn!("layer {}: the end of it: {error}", self.id);
            return Ok(());
        }
        self.cleared.store(true, Ordering::SeqCst);
        self.write_data(block * BLOCK, &bytes)?;
        let mut content = self.content.write();
        content.presence.set(block..block + 1, BlockState::Data);
        content.note(Record::Data(block..block + 1));
        self.changes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn cut_to(&self, size: u64) {
        let mut content = self.content.write();
        content.note(Record::Cut(size));
        self.set_cut(&mut content, size);
        self.changes.fetch_add(1, Ordering::SeqCst);
    }

    /// Zeros the rest of the block that `size` lies in, if it is here.
    fn clear_rest(&self, size: u64) -> Result<()> {
        let rest = (size.next_multiple_of(BLOCK) - size) as usize;
        if rest == 0 || self.content.read().presence.state(size / BLOCK) != BlockState::Data {
            return Ok(());
        }
        let mut bytes = vec![0; rest];
        self.read_data(size, &mut bytes)?;
        if bytes.iter().any(|byte| *byte != 0) {
            self.cleared.store(true, Ordering::SeqCst);
            self.write_data(size, &vec![0; rest])?;
        }
        Ok(())
    }

    pub(super) fn set_cut(&self, content: &mut Content, size: u64) {
        let unit = self.chunk_blocks;
        let first = size.div_ceil(BLOCK);
        content.presence.set(first..MAX_BLOCK, BlockState::Absent);
        content.grafts.remove(first.div_ceil(unit)..MAX_BLOCK);
        if !first.is_multiple_of(unit) && content.grafts.get(first / unit).is_some() {
            // The rest of a chunk whose first part still shows the graft.
            let rest = first..first.next_multiple_of(unit);
            content.presence.set(rest, BlockState::Zero);
        }
        self.cut.fetch_min(size, Ordering::SeqCst);
        self.size.store(size, Ordering::SeqCst);
    }

    /// Shows chunks of `source` from its chunk `start` on, instead of what
    /// was there. The caller holds the lock of the block range and is
    /// counted in; a manifest names `source` durably if it is a layer.
    pub fn graft(&self, chunks: Range<u64>, source: &Below, start: u64) -> Result<()> {
        self.check_failed()?;
        self.check_readable()?;
        let source = source.settled();
        let Some(name) = name_of(&source) else {
            return self
                .zero_blocks(chunks.start * self.chunk_blocks..chunks.end * self.chunk_blocks);
        };
        self.keep_source(&source);
        let mut content = self.content.write();
        content.note(Record::Graft {
            chunks: chunks.clone(),
            source: name,
            start,
        });
        self.set_graft(&mut content, chunks, Graft { source, start });
        self.changes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    pub(super) fn set_graft(&self, content: &mut Content, chunks: Range<u64>, graft: Graft) {
        let unit = self.chunk_blocks;
        // What was there stays in the segments until the layer goes: after a
        // crash that loses this record it must still be found.
        content
            .presence
            .set(chunks.start * unit..chunks.end * unit, BlockState::Absent);
        content.grafts.insert(chunks, graft);
    }

    /// Whether anything in a byte range is the layer's own: written, zeroed,
    /// grafted or cut off.
    pub fn touches(&self, range: Range<u64>) -> bool {
        let blocks = blocks_of(range.start, range.end - range.start);
        let unit = self.chunk_blocks;
        let content = self.content.read();
        range.end > self.cut.load(Ordering::SeqCst)
            || !content.presence.all(blocks.clone(), BlockState::Absent)
            || content
                .grafts
                .iter_range(blocks.start / unit..blocks.end.div_ceil(unit))
                .next()
                .is_some()
    }

    /// What a seal has to look at.
    pub fn plan(&self) -> SealPlan {
        let content = self.content.read();
        SealPlan {
            size: self.size(),
            begin_size: self.begin_size(),
            cut: self.cut.load(Ordering::SeqCst),
            touched: content.presence.touched(self.chunk_blocks),
            grafts: content
                .grafts
                .iter()
                .map(|(chunks, graft)| (chunks, graft.clone()))
                .collect(),
        }
    }
}

/// What a layer changes, for its seal. Ranges are of chunks.
pub struct SealPlan {
    /// Size in bytes.
    pub size: u64,
    /// Size when it began, in bytes.
    pub begin_size: u64,
    /// What is below shows through only under this many bytes.
    pub cut: u64,
    /// Chunks with known blocks, with their state if it is one for all.
    pub touched: Vec<(Range<u64>, Option<BlockState>)>,
    /// Chunks of other maps or layers, under the touched ones.
    pub grafts: Vec<(Range<u64>, Graft)>,
}
