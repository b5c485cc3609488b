//! The chunk store: chunks by their content address, in packs.
//!
//! One pack is open at a time and shared by all batches, a new one in every
//! run. What a batch puts is findable by everybody in this process at once,
//! and durable, and in the index, when the batch was synced.
//!
//! Locks, in the order in which they are taken: the writer's, then the open
//! pack's entries, then the pins, then those inside the index and the
//! backend. Only the writer's is held over appends and syncs, and no reader
//! takes it.

use crate::backend::Backend;
use crate::chunk::pins::Pins;
use crate::chunk::{self, ChunkId, Keys, Kind};
use crate::error::{Error, Result};
use crate::index::{Health, Index, PackNumber};
use crate::pack::{Entry, MAX_RECORDS, PackName, PackWriter, Stored};
use parking_lot::{Mutex, RwLock};
use quick_cache::sync::Cache;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use uuid::Uuid;

mod batch;
mod read;

pub use crate::pack::Finding;
pub use batch::{Batch, PutStats};

/// What a chunk store is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// The store's chunk size in bytes: the longest data chunk.
    pub chunk_size: u32,
    /// The store's uuid, which every pack carries.
    pub store: Uuid,
    /// The epoch of this run, which its packs are named after.
    pub epoch: u64,
    /// Where the index is kept.
    pub index_dir: PathBuf,
    /// Unpacked chunks that are kept in memory, in bytes.
    pub cache_bytes: u64,
    /// The length after which a pack is closed, in bytes.
    pub pack_bytes: u64,
}

/// What opening found.
#[derive(Clone, Debug, Default)]
pub struct Opened {
    /// Packs in the store.
    pub packs: u64,
    /// Records in them.
    pub chunks: u64,
    /// Packs of which the index did not know what is in them.
    pub rebuilt: u64,
    /// What is wrong with packs.
    pub findings: Vec<Finding>,
}

/// How much there is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Packs, the open one included.
    pub packs: u64,
    /// Records in them; a chunk that is in two packs counts twice.
    pub chunks: u64,
    /// Bytes of the packs' files.
    pub stored_bytes: u64,
    /// Bytes of the chunks when unpacked.
    pub plain_bytes: u64,
}

/// A chunk in memory.
pub type Bytes = Arc<Vec<u8>>;
type Cached = (Kind, Bytes);

#[derive(Clone)]
struct CacheWeight;

impl quick_cache::Weighter<ChunkId, Cached> for CacheWeight {
    fn weight(&self, _: &ChunkId, (_, bytes): &Cached) -> u64 {
        // Some overhead, so that small pages do not count for nothing.
        bytes.len() as u64 + 128
    }
}

/// The pack that is being written.
struct Writing {
    number: PackNumber,
    pack: PackWriter,
    /// Entries that are in the index already.
    published: usize,
}

#[derive(Default)]
struct Writer {
    writing: Option<Writing>,
    closed: bool,
}

/// What is in the open pack, synced or not.
struct OpenPack {
    number: PackNumber,
    name: PackName,
    entries: HashMap<ChunkId, Entry>,
    len: u64,
    plain_bytes: u64,
}

/// Chunks by content address.
pub struct ChunkStore {
    pub(super) backend: Arc<dyn Backend>,
    pub(super) keys: Keys,
    pub(super) options: Options,
    pub(super) index: Index,
    cache: Cache<ChunkId, Cached, CacheWeight>,
    writer: Mutex<Writer>,
    open: RwLock<Option<OpenPack>>,
    pub(super) pins: Pins<PackNumber>,
    /// The first error that made packs untrustworthy. A leaf.
    poison: Mutex<Option<String>>,
    /// Packs whose directories are still to be read because a chunk was in
    /// no pack that the index knows; None before the first such chunk: all.
    /// Held over the reading, before the index' locks.
    to_look_at: Mutex<Option<Vec<PackNumber>>>,
    /// Damaged packs of which something is needed: no sweep judges them. A
    /// leaf.
    pub(super) apart: Mutex<HashSet<PackName>>,
}

impl fmt::Debug for ChunkStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkStore({})", self.options.store)
    }
}

impl ChunkStore {
    /// Opens the packs of a backend and brings the index up to them; packs
    /// that an earlier run left without a directory are synced and read
    /// first. `progress` gets packs done and packs to do, if there are any.
    pub fn open(
        backend: Arc<dyn Backend>,
        keys: Keys,
        options: Options,
        progress: &dyn Fn(u64, u64),
    ) -> Result<(Arc<ChunkStore>, Opened)> {
        let (index, found) = Index::open(
            Arc::clone(&backend),
            options.store,
            &options.index_dir,
            progress,
        )?;
        let items = options.cache_bytes / u64::from(options.chunk_size.max(1));
        let store = ChunkStore {
            backend,
            keys,
            index,
            cache: Cache::with_weighter(items as usize + 1, options.cache_bytes, CacheWeight),
            writer: Mutex::default(),
            open: RwLock::default(),
            pins: Pins::default(),
            poison: Mutex::default(),
            to_look_at: Mutex::default(),
            apart: Mutex::default(),
            options,
        };
        let opened = Opened {
            packs: found.packs,
            chunks: store.stats().chunks,
            rebuilt: found.rebuilt,
            findings: found.findings,
        };
        Ok((Arc::new(store), opened))
    }

    /// The content address of these bytes.
    pub fn id(&self, kind: Kind, plain: &[u8]) -> ChunkId {
        self.keys.id(kind, plain)
    }

    /// Where chunks are.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Finds a pack that a dedupe hit may rely on: the open one, which the
    /// batch's sync will sync, or one with the record below its synced
    /// length (invariant 5).
    pub(super) fn find(
        &self,
        kind: Kind,
        id: &ChunkId,
        mut take: impl FnMut(PackNumber) -> bool,
    ) -> bool {
        if let Some((number, ..)) = self.in_open_pack(kind, id)
            && !self.index.is_doubtful(number)
            && take(number)
        {
            return true;
        }
        self.index.candidates(id).into_iter().any(|number| {
            let entry = match self.index.find(number, id) {
                Ok(entry) => entry.filter(|entry| entry.kind == kind),
                Err(error) => {
                    // Storing the chunk again is always right.
                    tracing::warn!("looking for {kind} chunk {id}: {error}");
                    return false;
                }
            };
            // Afterwards: reading the directory may have shown damage.
            let Some(info) = self.index.info(number) else {
                return false;
            };
            let is_there = entry.is_some_and(|entry| entry.end() <= info.file_len);
            is_there && info.health == Health::Sound && take(number)
        })
    }

    /// Bytes that a chunk takes in its pack, header and all; None if no pack
    /// has it. Reads no chunk.
    pub fn stored_len(&self, kind: Kind, id: &ChunkId) -> Option<u64> {
        if let Some((.., entry)) = self.in_open_pack(kind, id) {
            return Some(entry.end() - entry.offset());
        }
        self.index.candidates(id).into_iter().find_map(|number| {
            let entry = self.index.find(number, id).ok().flatten();
            let entry = entry.filter(|entry| entry.kind == kind)?;
            Some(entry.end() - entry.offset())
        })
    }

    /// Every record of every pack, with how many there are before it and in
    /// all. Those of the pack that is written may come in any order.
    pub fn each_record(&self, f: &mut dyn FnMut(u64, u64, &Entry)) -> Result<()> {
        let total = self.stats().chunks;
        let mut done = 0;
        let mut tell = |entry: &Entry| {
            f(done, total, entry);
            done += 1;
        };
        let (open, entries) = {
            let open = self.open.read();
            let entries = open
                .as_ref()
                .map(|open| open.entries.values().copied().collect());
            let entries: Vec<Entry> = entries.unwrap_or_default();
            (open.as_ref().map(|open| open.number), entries)
        };
        entries.iter().for_each(&mut tell);
        for (number, _) in self.index.packs() {
            if Some(number) == open {
                continue;
            }
            match self.index.directory(number) {
                Ok(directory) => directory.entries().iter().for_each(&mut tell),
                // Compacted meanwhile.
                Err(_) if self.index.info(number).is_none() => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Starts a batch of chunks that belong together.
    pub fn begin(self: &Arc<Self>) -> Batch {
        Batch::new(Arc::clone(self))
    }

    /// [`Error::Poisoned`] since an error made packs untrustworthy.
    pub fn check_poison(&self) -> Result<()> {
        match &*self.poison.lock() {
            Some(cause) => Err(Error::Poisoned {
                what: "the store's packs".to_owned(),
                cause: cause.clone(),
            }),
            None => Ok(()),
        }
    }

    /// Any error of a sync, and any of a write but "no space", ends writing
    /// (invariant 6).
    pub(super) fn poisoned_by(&self, error: Error) -> Error {
        let mut poison = self.poison.lock();
        if poison.is_none() {
            tracing::error!("nothing more is written to packs: {error}");
            *poison = Some(error.to_string());
        }
        error
    }

    fn write_error(&self, error: Error) -> Error {
        if error.is_no_space() || matches!(error, Error::InvalidArgument { .. }) {
            return error;
        }
        self.poisoned_by(error)
    }

    /// Appends a record to the open pack, unless that has the chunk. Calls
    /// `pin` with the pack before anybody can close it. True if it is new.
    fn append(&self, stored: &Stored, pin: impl Fn(PackNumber) -> bool) -> Result<bool> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        if writer.closed {
            return Err(Error::Closing);
        }
        let is_full = writer.writing.as_ref().is_some_and(|writing| {
            writing.pack.len() >= self.options.pack_bytes
                || writing.pack.entries().len() >= MAX_RECORDS
                // What it has of a chunk may be what is damaged.
                || self.index.is_doubtful(writing.number)
        });
        if is_full {
            self.close_pack(&mut writer)?;
        }
        if let Some((number, ..)) = self.in_open_pack(stored.kind, &stored.id)
            && pin(number)
        {
            return Ok(false);
        }
        let writing = match &mut writer.writing {
            Some(writing) => writing,
            none => none.insert(self.start_pack()?),
        };
        let entry = writing
            .pack
            .append(stored)
            .map_err(|error| self.write_error(error))?;
        if let Some(open) = &mut *self.open.write() {
            open.entries.insert(entry.id, entry);
            open.len = writing.pack.len();
            open.plain_bytes += u64::from(entry.plain_len);
        }
        pin(writing.number);
        Ok(true)
    }

    fn start_pack(&self) -> Result<Writing> {
        let name = PackName::random(self.options.epoch);
        let pack = PackWriter::create(&*self.backend, name, self.options.store)
            .map_err(|error| self.write_error(error))?;
        let number = self.index.add(name)?;
        *self.open.write() = Some(OpenPack {
            number,
            name,
            entries: HashMap::new(),
            len: pack.len(),
            plain_bytes: 0,
        });
        Ok(Writing {
            number,
            pack,
            published: 0,
        })
    }

    /// Makes what is in the open pack durable and findable through the index.
    fn sync_pack(&self, writing: &mut Writing) -> Result<()> {
        // Whatever a failed sync left in doubt stays so.
        self.check_poison()?;
        if writing.pack.is_synced() && writing.published == writing.pack.entries().len() {
            return Ok(());
        }
        self.publish_pack(writing, false)
    }

    fn publish_pack(&self, writing: &mut Writing, closed: bool) -> Result<()> {
        writing
            .pack
            .sync()
            .map_err(|error| self.poisoned_by(error))?;
        let entries = writing.pack.entries();
        self.index.publish(
            writing.number,
            &writing.pack.directory(),
            &entries[writing.published..],
            writing.pack.len(),
            closed,
        );
        writing.published = entries.len();
        Ok(())
    }

    /// Ends the open pack: directory, trailer, sync.
    fn close_pack(&self, writer: &mut Writer) -> Result<()> {
        self.check_poison()?;
        let Some(writing) = &mut writer.writing else {
            return Ok(());
        };
        if writing.pack.is_empty() {
            // Nobody can rely on it. It goes on, there is nothing in it yet.
            return Ok(());
        }
        let closed = match writing.pack.close() {
            Ok(()) => true,
            // It is read by scanning then, as after a crash.
            Err(error) if error.is_no_space() && writing.pack.is_synced() => {
                tracing::warn!(
                    "pack {} stays without a directory: {error}",
                    writing.pack.name()
                );
                false
            }
            Err(error) => return Err(self.poisoned_by(error)),
        };
        // Also without its trailer it may have got longer.
        self.publish_pack(writing, closed)?;
        writer.writing = None;
        *self.open.write() = None;
        Ok(())
    }

    /// Syncs the open pack if `concerns` says so of its number.
    fn sync_open(&self, concerns: impl Fn(PackNumber) -> bool) -> Result<()> {
        let mut writer = self.writer.lock();
        self.check_poison()?;
        match &mut writer.writing {
            Some(writing) if concerns(writing.number) => self.sync_pack(writing),
            _ => Ok(()),
        }
    }

    /// Closes the open pack: what is put from now on goes to another one.
    pub fn rotate(&self) -> Result<()> {
        self.rotate_and(|| Ok(()))
    }

    /// Closes the open pack and calls `then` before another one is started.
    pub(super) fn rotate_and<T>(&self, then: impl FnOnce() -> Result<T>) -> Result<T> {
        let mut writer = self.writer.lock();
        self.close_pack(&mut writer)?;
        then()
    }

    /// Closes the open pack and the index. Chunks can be read still, and
    /// nothing can be put.
    pub fn close(&self) -> Result<()> {
        let mut writer = self.writer.lock();
        if std::mem::replace(&mut writer.closed, true) {
            return Ok(());
        }
        let result = self.close_pack(&mut writer).and_then(|()| {
            // Only one without any record is left.
            let Some(empty) = writer.writing.take() else {
                return Ok(());
            };
            *self.open.write() = None;
            self.index.remove(empty.number);
            self.backend.delete(&empty.pack.name().key())
        });
        self.index.close();
        result
    }

    /// How much there is.
    pub fn stats(&self) -> Stats {
        let open = self.open.read();
        let mut stats = Stats::default();
        let open_number = open.as_ref().map(|open| open.number);
        for (number, info) in self.index.packs() {
            stats.packs += 1;
            if Some(number) != open_number {
                stats.chunks += info.records;
                stats.stored_bytes += info.file_len;
                stats.plain_bytes += info.plain_bytes;
            }
        }
        if let Some(open) = &*open {
            stats.chunks += open.entries.len() as u64;
            stats.stored_bytes += open.len;
            stats.plain_bytes += open.plain_bytes;
        }
        stats
    }

    /// The pack that is being written and how much of it is.
    pub(super) fn open_pack(&self) -> Option<(PackNumber, PackName, u64)> {
        let open = self.open.read();
        open.as_ref().map(|open| (open.number, open.name, open.len))
    }

    /// Packs a chunk's bytes, after a check of their length.
    fn pack(&self, kind: Kind, id: &ChunkId, plain: &[u8]) -> Result<Stored> {
        let limit = match kind {
            Kind::Data => self.options.chunk_size.min(kind.max_bytes()),
            Kind::Page | Kind::Root => kind.max_bytes(),
        };
        if plain.len() > limit as usize {
            return Err(Error::InvalidArgument {
                what: format!(
                    "a {kind} chunk of {} bytes, the limit is {limit}",
                    plain.len()
                ),
            });
        }
        debug_assert_eq!(self.keys.id(kind, plain), *id);
        let (codec, payload) = chunk::encode(plain);
        Ok(Stored {
            id: *id,
            kind,
            codec,
            plain_len: plain.len() as u32,
            payload: payload.into_owned(),
        })
    }
}

#[cfg(test)]
pub(super) mod fixture;
#[cfg(test)]
mod tests;
