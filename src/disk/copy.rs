//! `copy_file_range`: whole chunks are shared, only the rest is copied.

use super::layer::{MAX_BLOCK, MAX_SIZE};
use super::*;

/// Bytes copied through memory in one call at most; the caller asks again.
const COPY_MAX: u64 = 16 << 20;
/// Bytes read and written at a time.
const COPY_PIECE: u64 = 1 << 20;

/// What is copied from.
pub enum Source {
    /// The live image of a disk, or an imported image.
    Live(Arc<Disk>),
    /// A snapshot of a disk.
    Snapshot(Arc<Disk>, Arc<Snapshot>),
}

impl Source {
    fn size(&self) -> Result<u64> {
        match self {
            Source::Live(disk) => Ok(disk
                .live()
                .ok_or_else(|| Error::NoImage { disk: disk.name() })?
                .size),
            Source::Snapshot(_, snapshot) => Ok(snapshot.size),
        }
    }

    fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let attempt = match self {
            Source::Live(disk) => disk.read(offset, buf, Wait::Yes)?,
            Source::Snapshot(disk, snapshot) => {
                disk.read_snapshot(snapshot, offset, buf, Wait::Yes)?
            }
        };
        Ok(attempt.waited())
    }

    /// What shows this range of it and never changes.
    fn fixed(&self, range: std::ops::Range<u64>) -> Result<Below> {
        match self {
            Source::Snapshot(_, snapshot) => Ok(snapshot.base()),
            Source::Live(disk) => disk.fixed(range),
        }
    }
}

impl Disk {
    /// What shows a range of the live image and never changes: what is below
    /// the head if the head does not touch the range, else the head, frozen.
    fn fixed(&self, range: std::ops::Range<u64>) -> Result<Below> {
        if let Some(snapshot) = self.imported() {
            return Ok(snapshot.base());
        }
        self.check_poisoned()?;
        let meta = self.meta.lock();
        let head = self
            .head()
            .ok_or_else(|| Error::NoImage { disk: self.name() })?;
        if !head.touches(range) {
            return Ok(head.below());
        }
        Ok(self.freeze(&meta)?.base)
    }

    /// Copies up to `len` bytes from `from` of the source to `to` of this
    /// disk's live image and answers how many: fewer where the rest is
    /// copied in another way or is past the source's end. Ranges that lie
    /// alike in their chunks share the chunks.
    pub fn copy_range(
        self: &Arc<Self>,
        source: &Source,
        from: u64,
        to: u64,
        len: u64,
    ) -> Result<u64> {
        let source_size = source.size()?;
        let len = len.min(source_size.saturating_sub(from));
        if len == 0 {
            return Ok(0);
        }
        let end = to
            .checked_add(len)
            .filter(|end| *end <= MAX_SIZE)
            .ok_or(Error::TooLarge {
                size: to.saturating_add(len),
                limit: MAX_SIZE,
            })?;
        let same = matches!(source, Source::Live(disk) if disk.id == self.id);
        if same && from < end && to < from + len {
            return Err(Error::InvalidArgument {
                what: "the ranges overlap".into(),
            });
        }
        let unit = self.engine.sealed.chunk_size();
        if from % unit != to % unit {
            return self.copy_bytes(source, from, to, len.min(COPY_MAX));
        }
        let lead = to.next_multiple_of(unit) - to;
        if lead > 0 {
            return self.copy_bytes(source, from, to, len.min(lead));
        }
        // A last part of a chunk may be shared as well if it ends both: what
        // follows is zeros in the source's chunk, and nothing here.
        let size = self.live().map_or(0, |live| live.size);
        let ends_both = from + len == source_size && end >= size;
        let shared = if ends_both { len } else { len - len % unit };
        // A live image is frozen to be shared, like for a snapshot; where that
        // would be one layer too many, its bytes are copied.
        let is_too_many = match source {
            Source::Live(disk) => disk.wait_for_sealer().is_err(),
            Source::Snapshot(..) => false,
        };
        if shared == 0 || is_too_many {
            return self.copy_bytes(source, from, to, len.min(COPY_MAX));
        }
        self.share_chunks(source, from, to, shared)
    }

    fn copy_bytes(&self, source: &Source, from: u64, to: u64, len: u64) -> Result<u64> {
        let mut buf = vec![0; len.min(COPY_PIECE) as usize];
        let mut done = 0;
        while done < len {
            let want = (len - done).min(COPY_PIECE) as usize;
            let copied = source
                .read(from + done, &mut buf[..want])
                .and_then(|read| match read {
                    0 => Ok(0),
                    _ => {
                        let written = self.write(to + done, &buf[..read], Wait::Yes)?;
                        written.waited();
                        Ok(read)
                    }
                });
            match copied {
                Ok(0) => break,
                Ok(copied) => done += copied as u64,
                // What was copied is told first: the kernel drops its pages.
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        Ok(done)
    }

    fn share_chunks(&self, source: &Source, from: u64, to: u64, len: u64) -> Result<u64> {
        self.engine.check_open()?;
        self.engine.capacity.check_write(layer::BLOCK)?;
        let unit = self.engine.sealed.chunk_size();
        let blocks = unit / layer::BLOCK;
        // Whatever is in hand here and in no manifest yet keeps its files.
        let _settling = self.engine.settling.read();
        // To the end of the last chunk: what follows the source's end in it
        // is shared as well, and has to be zeros.
        let base = source.fixed(from..(from + len).next_multiple_of(unit))?;
        if let Below::Lost(lost) = &base {
            return Err(lost.error());
        }
        // The source may have grown since its size was looked at.
        let whole = len;
        let len = match len.is_multiple_of(unit) || base.size() == Some(from + len) {
            true => len,
            false => len - len % unit,
        };
        if len == 0 {
            // Nothing of it can be shared.
            return self.copy_bytes(source, from, to, whole);
        }
        let meta = self.meta.lock();
        if let Below::Layer(layer) = &base
            && !self.durable_layers.lock().contains(&layer.id)
        {
            // The manifest names the layer before a log can name it.
            let head = self
                .head()
                .ok_or_else(|| Error::NoImage { disk: self.name() })?;
            head.keep_source(&base);
            let state = self.state.read().clone();
            self.commit(&meta, state)?;
        }
        let blocks_of = |len: u64| to / unit * blocks..(to + len).div_ceil(unit) * blocks;
        let range = self
            .ranges
            .lock(blocks_of(len).start..blocks_of(len).end.min(MAX_BLOCK));
        let head = self.enter()?;
        // This disk may have grown, and have something behind the range in its
        // last chunk.
        let len = match len.is_multiple_of(unit) || head.size() <= to + len {
            true => len,
            false => len - len % unit,
        };
        if len == 0 {
            drop((head, range, meta));
            return self.copy_bytes(source, from, to, whole);
        }
        let chunks = to / unit..(to + len).div_ceil(unit);
        // In this order: a log may have the first of two records only.
        head.grow(to + len);
        head.graft(chunks, &base, from / unit)?;
        self.changed(&head);
        Ok(len)
    }
}
