//! Chunks that are put together and become durable together.

use super::ChunkStore;
use crate::chunk::{ChunkId, Kind};
use crate::error::Result;
use crate::index::PackNumber;
use crate::pack::Stored;
use parking_lot::Mutex;
use rayon::prelude::*;
use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Bytes of chunks that are packed while those before are appended.
const WINDOW_BYTES: usize = 2 << 20;

/// What [`Batch::put_all`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutStats {
    /// Chunks that were not in the store.
    pub new: u64,
    /// Their bytes.
    pub new_plain_bytes: u64,
    /// Their bytes as stored, without records' headers.
    pub stored_bytes: u64,
}

/// A set of chunks, put and found, that somebody is about to rely on. Every
/// pack that it wrote to or hit is pinned: no sweep that runs at any time
/// while the batch is alive deletes it. So keep the batch until a manifest
/// that names the chunks is durable.
pub struct Batch {
    store: Arc<ChunkStore>,
    /// The packs that are pinned for it. Taken before the store's pins.
    pinned: Mutex<HashSet<PackNumber>>,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Batch({} packs)", self.pinned.lock().len())
    }
}

impl Batch {
    pub(super) fn new(store: Arc<ChunkStore>) -> Batch {
        Batch {
            store,
            pinned: Mutex::default(),
        }
    }

    /// Pins a pack unless it is condemned.
    fn pin(&self, number: PackNumber) -> bool {
        let mut pinned = self.pinned.lock();
        if pinned.contains(&number) {
            return true;
        }
        let is_visible = || self.store.index.is_visible(number);
        let is_pinned = self.store.pins.pin(number, is_visible);
        if is_pinned {
            pinned.insert(number);
        }
        is_pinned
    }

    /// Whether the store has a chunk, and will have it while the batch is
    /// alive. It is durable after [`Batch::sync`].
    pub fn contains(&self, kind: Kind, id: &ChunkId) -> bool {
        self.store.find(kind, id, |number| self.pin(number))
    }

    /// [`Batch::contains`] for packs that are not one of `without`.
    pub(in crate::chunk) fn contains_outside(
        &self,
        kind: Kind,
        id: &ChunkId,
        without: &HashSet<PackNumber>,
    ) -> bool {
        self.store.find(kind, id, |number| {
            !without.contains(&number) && self.pin(number)
        })
    }

    /// Stores a chunk unless the store has it; true if it had not. Durable
    /// after [`Batch::sync`].
    pub fn put(&self, kind: Kind, id: &ChunkId, plain: &[u8]) -> Result<bool> {
        self.store.check_poison()?;
        if self.contains(kind, id) {
            return Ok(false);
        }
        let stored = self.store.pack(kind, id, plain)?;
        self.append(&stored)
    }

    /// Stores a chunk as it lies in another pack.
    pub(in crate::chunk) fn append(&self, stored: &Stored) -> Result<bool> {
        self.store.append(stored, |number| self.pin(number))
    }

    /// Stores chunks of one kind, in their order, each once; packs those that
    /// are new in the threads of `pool`. Durable after [`Batch::sync`].
    /// After an error a part of them is stored.
    pub fn put_all<T: AsRef<[u8]> + Sync>(
        &self,
        pool: &rayon::ThreadPool,
        kind: Kind,
        chunks: &[(ChunkId, T)],
    ) -> Result<PutStats> {
        self.store.check_poison()?;
        let mut seen = HashSet::new();
        let new: Vec<&(ChunkId, T)> = chunks
            .iter()
            .filter(|(id, _)| seen.insert(*id) && !self.contains(kind, id))
            .collect();
        let window = (WINDOW_BYTES / self.store.options.chunk_size.max(1) as usize).max(8);

        let pack = |part: &[&(ChunkId, T)]| -> Result<Vec<Stored>> {
            part.par_iter()
                .map(|(id, plain)| self.store.pack(kind, id, plain.as_ref()))
                .collect()
        };
        let append = |part: Vec<Stored>| -> Result<PutStats> {
            let mut stats = PutStats::default();
            for stored in part {
                if self.append(&stored)? {
                    stats.new += 1;
                    stats.new_plain_bytes += u64::from(stored.plain_len);
                    stats.stored_bytes += stored.payload.len() as u64;
                }
            }
            Ok(stats)
        };
        // While one part is appended the next is packed.
        let mut stats = PutStats::default();
        let mut packed = Vec::new();
        for part in new.chunks(window).chain([&[][..]]) {
            let ready = std::mem::take(&mut packed);
            let (next, appended) =
                pool.install(|| rayon::join(|| pack(part), move || append(ready)));
            let appended = appended?;
            stats.new += appended.new;
            stats.new_plain_bytes += appended.new_plain_bytes;
            stats.stored_bytes += appended.stored_bytes;
            packed = next?;
        }
        Ok(stats)
    }

    /// When this returns, everything that the batch put or hit is on disk and
    /// resolves through the index.
    pub fn sync(&self) -> Result<()> {
        // A copy: whoever holds the writer's lock also pins.
        let pinned = self.pinned.lock().clone();
        self.store.sync_open(|number| pinned.contains(&number))
    }

    /// [`Batch::sync`], after which all of that is read from the disk and not
    /// from what is in memory since it was written.
    pub(in crate::chunk) fn settle(&self) -> Result<()> {
        self.sync()?;
        let pinned = self.pinned.lock().clone();
        let infos = (pinned.into_iter()).filter_map(|number| self.store.index.info(number));
        for info in infos {
            self.store.backend.settle(&info.name.key())?;
        }
        Ok(())
    }
}

impl Drop for Batch {
    fn drop(&mut self) {
        self.store.pins.unpin(self.pinned.get_mut().drain());
    }
}
