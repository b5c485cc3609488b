//! Reading sealed maps: what a root shows at an offset.

use crate::chunk::store::{Bytes, ChunkStore};
use crate::chunk::{ChunkId, Kind};
use crate::error::{Error, Result};
use crate::map::{self, Page, PageStore, Root};
use quick_cache::sync::Cache;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

/// Decoded map pages kept in memory: at most some 5 KiB each.
const PAGE_CACHE: usize = 4096;

/// A sealed map with its name.
#[derive(Debug)]
pub struct SealedRoot {
    /// The root record's content address.
    pub id: ChunkId,
    /// The root record.
    pub root: Root,
}

/// Whether an operation may wait for packs and locks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// No: it answers [`Attempt::WouldBlock`] instead, with nothing done.
    No,
    /// Yes.
    Yes,
}

/// The outcome of something that could have had to wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attempt<T> {
    /// It is done.
    Done(T),
    /// It would have had to wait; nothing was done.
    WouldBlock,
}

impl<T> Attempt<T> {
    /// The same with another value.
    pub fn map<U>(self, f: impl FnOnce(T) -> U) -> Attempt<U> {
        match self {
            Attempt::Done(value) => Attempt::Done(f(value)),
            Attempt::WouldBlock => Attempt::WouldBlock,
        }
    }

    /// The value of what was asked for with [`Wait::Yes`].
    pub fn waited(self) -> T {
        match self {
            Attempt::Done(value) => value,
            Attempt::WouldBlock => unreachable!("an operation that may wait never answers so"),
        }
    }
}

/// The chunk store as the home of maps, with a cache of decoded pages.
pub struct Sealed {
    chunks: Arc<ChunkStore>,
    pages: Cache<ChunkId, Arc<Page>>,
    chunk_size: u32,
    /// Unpacks the chunks of one long read on all processors. Started by the
    /// first such read; None if the system gave no threads.
    unpackers: OnceLock<Option<rayon::ThreadPool>>,
    /// Long reads that unpack at present: a second one has a processor of
    /// its own, and passing its chunks around would only cost time.
    unpacking: AtomicUsize,
}

impl Sealed {
    /// Reads maps and chunks of `chunks`.
    pub fn new(chunks: Arc<ChunkStore>, chunk_size: u32) -> Sealed {
        Sealed {
            chunks,
            pages: Cache::new(PAGE_CACHE),
            chunk_size,
            unpackers: OnceLock::new(),
            unpacking: AtomicUsize::new(0),
        }
    }

    /// The store that chunks and pages come from.
    pub fn chunks(&self) -> &Arc<ChunkStore> {
        &self.chunks
    }

    /// Bytes in a chunk.
    pub fn chunk_size(&self) -> u64 {
        u64::from(self.chunk_size)
    }

    /// Reads a root record.
    pub fn root(&self, id: ChunkId) -> Result<Arc<SealedRoot>> {
        let bytes = self.chunks.get(Kind::Root, &id)?;
        let root = Root::decode(&bytes)?;
        if root.chunk_size != self.chunk_size {
            return Err(Error::Damaged {
                what: format!("the map {id}"),
                detail: format!(
                    "its chunks have {} bytes, the store's {}",
                    root.chunk_size, self.chunk_size
                ),
            });
        }
        Ok(Arc::new(SealedRoot { id, root }))
    }

    /// Fills `buf` with what `root` shows at `offset`; zeros past its end.
    pub fn read(
        &self,
        root: &SealedRoot,
        offset: u64,
        buf: &mut [u8],
        wait: Wait,
    ) -> Result<Attempt<()>> {
        if buf.is_empty() {
            return Ok(Attempt::Done(()));
        }
        let size = self.chunk_size();
        let end = offset + buf.len() as u64;
        let (first, last) = (offset / size, (end - 1) / size);
        let count = (last - first + 1) as usize;
        let ids = match wait {
            Wait::Yes => map::get_range(self, &root.root, first, count)?,
            Wait::No => {
                let in_memory = |id: &ChunkId| self.pages.get(id);
                match map::get_range_cached(&in_memory, &root.root, first, count) {
                    Some(ids) => ids,
                    None => return Ok(Attempt::WouldBlock),
                }
            }
        };
        let Some(chunks) = self.data(&ids, wait)? else {
            return Ok(Attempt::WouldBlock);
        };
        for (index, chunk) in (first..).zip(chunks) {
            let from = offset.max(index * size);
            let to = end.min((index + 1) * size);
            let part = &mut buf[(from - offset) as usize..(to - offset) as usize];
            let Some(chunk) = chunk else {
                part.fill(0);
                continue;
            };
            let inside = (from - index * size) as usize..(to - index * size) as usize;
            let bytes = chunk.get(inside).ok_or_else(|| Error::Damaged {
                what: format!("chunk {index} of the map {}", root.id),
                detail: format!("it has {} bytes, expected {size}", chunk.len()),
            })?;
            part.copy_from_slice(bytes);
        }
        Ok(Attempt::Done(()))
    }

    /// The bytes of chunks, those that have to be unpacked side by side; the
    /// outer None if some have to and nobody may wait for it.
    fn data(&self, ids: &[Option<ChunkId>], wait: Wait) -> Result<Option<Vec<Option<Bytes>>>> {
        let in_memory = |id: &ChunkId| self.chunks.cached(Kind::Data, id);
        let mut found: Vec<Option<Bytes>> = Vec::with_capacity(ids.len());
        let mut missing = Vec::new();
        for (at, id) in ids.iter().enumerate() {
            let chunk = id.as_ref().and_then(in_memory);
            if chunk.is_none()
                && let Some(id) = id
            {
                if wait == Wait::No {
                    return Ok(None);
                }
                missing.push((at, *id));
            }
            found.push(chunk);
        }
        for (at, bytes) in self.unpack(&missing)? {
            found[at] = Some(bytes);
        }
        Ok(Some(found))
    }

    /// Reads and unpacks chunks, each with its place.
    fn unpack(&self, missing: &[(usize, ChunkId)]) -> Result<Vec<(usize, Bytes)>> {
        let get = |(at, id): &(usize, ChunkId)| Ok((*at, self.chunks.get(Kind::Data, id)?));
        if missing.len() <= 1 {
            return missing.iter().map(get).collect();
        }
        let alone = self.unpacking.fetch_add(1, Ordering::Relaxed) == 0;
        let unpacked = match self.unpackers().filter(|_| alone) {
            Some(pool) => pool.install(|| missing.par_iter().map(get).collect()),
            None => missing.iter().map(get).collect(),
        };
        self.unpacking.fetch_sub(1, Ordering::Relaxed);
        unpacked
    }

    fn unpackers(&self) -> Option<&rayon::ThreadPool> {
        let start = || {
            let pool =
                rayon::ThreadPoolBuilder::new().thread_name(|index| format!("unpack-{index}"));
            pool.build()
                .inspect_err(|error| tracing::warn!("no threads for unpacking: {error}"))
                .ok()
        };
        self.unpackers.get_or_init(start).as_ref()
    }

    /// Whether the chunk at `index` is there, and the end of a run of chunks
    /// of which the same is true.
    pub fn run(&self, root: &SealedRoot, index: u64, wait: Wait) -> Result<Attempt<(bool, u64)>> {
        if index >= root.root.chunks() {
            return Ok(Attempt::Done((false, u64::MAX)));
        }
        if wait == Wait::No && root.root.top.is_some() {
            // Cheap only when everything on the way is in memory; the run
            // itself may need one more page.
            return Ok(Attempt::WouldBlock);
        }
        let run = map::next_run(self, &root.root, index)?;
        Ok(Attempt::Done((run.present, run.end)))
    }

    /// How many chunks of a range are there.
    pub fn count(&self, root: &SealedRoot, chunks: Range<u64>) -> Result<u64> {
        map::count(self, &root.root, chunks)
    }
}

impl PageStore for Sealed {
    fn page(&self, id: &ChunkId) -> Result<Arc<Page>> {
        if let Some(page) = self.pages.get(id) {
            return Ok(page);
        }
        let bytes = self.chunks.get(Kind::Page, id)?;
        let page = Arc::new(Page::decode(&bytes)?);
        self.pages.insert(*id, page.clone());
        Ok(page)
    }

    /// Maps are written by a sealer, which brings its own batch.
    fn put_page(&self, _: &[u8]) -> Result<ChunkId> {
        Err(Error::NotSupported {
            what: "writing map pages outside a seal".into(),
        })
    }
}
