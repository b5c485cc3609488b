//! Where each chunk is: chunk id → pack and place.
//!
//! Three layers, none of them the only copy of anything: a table of
//! fingerprints in memory says which packs may hold a chunk; a pack's
//! directory says whether and where; sled has all directories. The table is
//! saved to a file now and then, so that opening reads no directories but
//! those of packs that came since. Which packs are not to be relied on is in
//! a file beside all that. Who looks for a chunk reads the directory
//! of a closed pack from the pack itself, and from sled only that of a pack
//! without one, so a stale index cannot make up a chunk (invariant 5).
//!
//! This module is the only user of sled.

use crate::backend::Backend;
use crate::chunk::ChunkId;
use crate::error::{Error, Result};
use crate::pack::{self, Contents, Directory, Entry, Finding, PackName, Reader};
use parking_lot::{Mutex, RwLock};
use quick_cache::sync::Cache;
use std::collections::{HashMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

mod db;
mod saved;
mod table;
mod unsound;

use db::{Cover, Db, Kept};
use saved::Saved;
use table::{MAX_PACKS, Table};
use unsound::Unsound;

/// Packs whose directories are kept in memory, in bytes.
const DIRECTORY_CACHE_BYTES: u64 = 32 << 20;
/// Packs of which one entry is looked up before the next look-up in the same
/// pack reads its directory.
const GLANCES: usize = 32;
/// Packs after which sled is flushed: often is slow, never takes memory.
const FLUSH_EVERY: u64 = 64;
/// The table is saved after so many chunks, or one for so many that it has,
/// whichever is more: their packs are what opening reads after a crash.
const SAVE_AFTER: u64 = 1 << 16;
const SAVE_AFTER_PART: u64 = 32;

/// A pack's number in this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackNumber(u32);

/// How far a pack is to be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Nothing is known against it.
    Sound,
    /// Something in it could not be read, which may pass: no dedupe hit until
    /// all of it has been read.
    Doubted,
    /// It could not be read when the store was opened: damaged in this run,
    /// doubted afterwards.
    Unread,
    /// Something in it is not as it was written: damaged for good.
    Damaged,
}

/// What is known of a pack without its directory.
#[derive(Clone, Debug)]
pub struct PackInfo {
    /// Its name.
    pub name: PackName,
    /// Bytes of its file that are on disk; what lies beyond does not count.
    pub file_len: u64,
    /// Whether its directory is in its file.
    pub closed: bool,
    /// Whether an earlier run wrote it.
    pub earlier: bool,
    /// How far it is to be relied on.
    pub health: Health,
    /// Records in it.
    pub records: u64,
    /// Bytes that the records take.
    pub record_bytes: u64,
    /// Bytes of the chunks when unpacked.
    pub plain_bytes: u64,
}

impl PackInfo {
    /// Whether something in it is damaged, as far as this run knows.
    pub fn is_damaged(&self) -> bool {
        matches!(self.health, Health::Unread | Health::Damaged)
    }

    fn count(&mut self, directory: &Directory) {
        let entries = directory.entries();
        self.records = entries.len() as u64;
        self.record_bytes = entries.iter().map(Entry::record_len).sum();
        self.plain_bytes = entries.iter().map(|entry| u64::from(entry.plain_len)).sum();
    }
}

/// A pack in the list: condemned ones are no longer looked at.
#[derive(Debug)]
struct Listed {
    info: PackInfo,
    visible: bool,
    /// How often something in it could not be read.
    doubts: u64,
}

#[derive(Debug, Default)]
struct State {
    table: Table,
    /// By number; None when the pack is gone. A number is not used again.
    packs: Vec<Option<Listed>>,
    numbers: HashMap<PackName, u32>,
}

impl State {
    fn add(&mut self, info: PackInfo) -> Result<u32> {
        let number = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
        if number >= MAX_PACKS {
            return Err(Error::Quota {
                what: "packs written since the store was opened".into(),
                limit: MAX_PACKS.into(),
            });
        }
        self.numbers.insert(info.name, number);
        self.packs.push(Some(Listed {
            info,
            visible: true,
            doubts: 0,
        }));
        Ok(number)
    }

    /// Takes in what was saved.
    fn restore(saved: Saved, health_of: &dyn Fn(&PackName) -> Health) -> Result<State> {
        let mut state = State {
            table: saved.table,
            ..State::default()
        };
        for info in saved.packs {
            let health = health_of(&info.name);
            state.add(PackInfo { health, ..info })?;
        }
        Ok(state)
    }

    /// The packs that are not to be relied on.
    fn unsound(&self) -> Unsound {
        let listed = self.packs.iter().flatten();
        let unsound = listed.filter(|listed| listed.info.health != Health::Sound);
        unsound
            .map(|listed| (listed.info.name, listed.info.health))
            .collect()
    }

    /// The packs whose chunks are all in the table for good, with their
    /// numbers: nobody appends to them, and nothing is known against them.
    fn settled(&self) -> Vec<(u32, PackInfo)> {
        let listed = (0..).zip(&self.packs);
        let infos = listed.filter_map(|(number, listed)| {
            let info = &listed.as_ref()?.info;
            Some((number, info.clone()))
        });
        infos
            .filter(|(_, info)| (info.closed || info.earlier) && info.health == Health::Sound)
            .collect()
    }

    fn insert(&mut self, number: u32, entries: &[Entry]) {
        let State { table, packs, .. } = self;
        for entry in entries {
            table.insert(&entry.id, number, |pack| {
                packs.get(pack as usize).is_some_and(Option::is_some)
            });
        }
    }

    fn listed(&mut self, number: PackNumber) -> Option<&mut Listed> {
        self.packs.get_mut(number.0 as usize)?.as_mut()
    }
}

#[derive(Clone)]
struct DirectoryWeight;

impl quick_cache::Weighter<u32, Arc<Directory>> for DirectoryWeight {
    fn weight(&self, _: &u32, directory: &Arc<Directory>) -> u64 {
        size_of_val(directory.entries()) as u64 + 128
    }
}

/// The packs that were looked up without their directories last.
#[derive(Debug, Default)]
struct Glanced(VecDeque<PackNumber>);

impl Glanced {
    /// Whether a pack is not among them; it is from now on.
    fn is_first(&mut self, number: PackNumber) -> bool {
        let is_first = !self.0.contains(&number);
        if is_first {
            self.0.truncate(GLANCES - 1);
            self.0.push_front(number);
        }
        is_first
    }
}

/// What is known of a pack of an earlier run before it is read.
struct Earlier {
    /// Bytes of its file.
    len: u64,
    /// So many of them were on disk once.
    synced: u64,
    /// What was seen of it, in its records if its directory does not show it.
    health: Health,
    /// What sled has of a file of that length.
    kept: Option<db::Value>,
}

/// What opening the index found.
#[derive(Debug, Default)]
pub struct Opened {
    /// Packs in the store.
    pub packs: u64,
    /// Packs whose directory had to be read from the pack.
    pub rebuilt: u64,
    /// What is wrong with packs.
    pub findings: Vec<Finding>,
}

/// Chunk id → place.
#[derive(Debug)]
pub struct Index {
    backend: Arc<dyn Backend>,
    store: Uuid,
    /// A leaf but for the cache of directories, which has locks of its own;
    /// no file is touched under it.
    state: RwLock<State>,
    directories: Cache<u32, Arc<Directory>, DirectoryWeight>,
    /// A leaf.
    glanced: Mutex<Glanced>,
    db: Db,
    /// Directories put into sled since its last flush.
    unflushed: AtomicU64,
    dir: PathBuf,
    /// Chunks and other changes since the table was saved.
    unsaved: AtomicU64,
    /// Held from a look at how long a pack is to its being put into sled.
    /// Before `state` and sled; no pack is read under it.
    putting: Mutex<()>,
    /// Held while the table is saved. Before `state` and sled.
    saving: Mutex<()>,
    /// Held while the file of unsound packs is written. Before `state`.
    kept_health: Mutex<KeptHealth>,
}

/// What is known of the file of unsound packs.
#[derive(Debug)]
enum KeptHealth {
    /// It says this.
    Says(Unsound),
    /// Perhaps what it should not.
    Unknown,
    /// It is the next process's.
    Ended,
}

impl Index {
    /// Opens the index in `dir` and brings it up to what the packs of the
    /// backend are: packs that it does not know are synced and read,
    /// damaged or missing values are rebuilt, those of packs that are gone
    /// are dropped. `progress` gets packs done and packs in all.
    pub fn open(
        backend: Arc<dyn Backend>,
        store: Uuid,
        dir: &Path,
        progress: &dyn Fn(u64, u64),
    ) -> Result<(Index, Opened)> {
        let mut opened = Opened::default();
        let mut packs = HashMap::new();
        for (key, len) in backend.list(pack::PREFIX)? {
            match key.strip_prefix(pack::PREFIX).map(str::parse::<PackName>) {
                Some(Ok(name)) => {
                    packs.insert(name, len);
                }
                _ => opened.findings.push(Finding::Foreign { key }),
            }
        }
        opened.packs = packs.len() as u64;
        let index = Index {
            backend,
            store,
            state: RwLock::default(),
            // Directories have some 1000 to 16384 entries; few shards, so
            // that each can hold the largest.
            directories: Cache::with_weighter(256, DIRECTORY_CACHE_BYTES, DirectoryWeight),
            glanced: Mutex::default(),
            db: Db::open(dir),
            unflushed: AtomicU64::new(0),
            dir: dir.to_owned(),
            unsaved: AtomicU64::new(0),
            putting: Mutex::new(()),
            saving: Mutex::new(()),
            kept_health: Mutex::new(KeptHealth::Unknown),
        };
        let unsound_path = unsound::path_beside(dir);
        let (unsound, others) = match unsound::read(&unsound_path) {
            Ok(unsound) => (unsound, Health::Sound),
            // Any may be one: each is relied on again once it was verified.
            Err(error) => {
                tracing::error!(
                    "{}: {error}: all packs are in doubt",
                    unsound_path.display()
                );
                (Unsound::new(), Health::Doubted)
            }
        };
        if others == Health::Sound {
            *index.kept_health.lock() = KeptHealth::Says(unsound.clone());
        }
        let health_of = |name: &PackName| unsound.get(name).copied().unwrap_or(others);
        let is_damaged = |name: &PackName| health_of(name) == Health::Damaged;

        // How much of a pack is known to have been on disk once.
        let mut synced: HashMap<PackName, u64> = HashMap::new();
        let mut gone = Vec::new();
        let wanted = |name: &PackName, len| packs.get(name) == Some(&len) && !is_damaged(name);
        let saved = saved::read(dir, store, wanted).unwrap_or_else(|error| {
            tracing::warn!("the saved table of the index is of no use: {error}");
            None
        });
        match saved {
            Some(mut saved) => {
                for (name, len) in std::mem::take(&mut saved.unwanted) {
                    match packs.contains_key(&name) {
                        true => drop(synced.insert(name, len)),
                        false => gone.push(name),
                    }
                }
                *index.state.write() = State::restore(saved, &health_of)?;
            }
            None => gone = index.learn_all(&packs, &health_of)?,
        }
        for name in gone {
            index.db.remove(&name);
        }

        let mut unknown: Vec<(PackName, u64)> = {
            let state = index.state.read();
            let packs = packs.iter().map(|(name, len)| (*name, *len));
            packs
                .filter(|(name, _)| !state.numbers.contains_key(name))
                .collect()
        };
        unknown.sort_unstable();
        let total = unknown.len() as u64;
        for (done, (name, len)) in (0..).zip(unknown) {
            progress(done, total);
            let mut earlier = Earlier {
                len,
                synced: synced.get(&name).copied().unwrap_or(0),
                health: health_of(&name),
                kept: None,
            };
            if let Kept::Value(value) = index.db.get(&name) {
                // A damaged one is looked at again, to tell of it.
                if value.cover.file_len == len && !is_damaged(&name) {
                    index.learn(name, value.cover, earlier.health, &value.directory)?;
                    continue;
                }
                earlier.synced = earlier.synced.max(value.cover.file_len);
                earlier.kept = Some(value).filter(|value| value.cover.file_len == len);
            }
            index.rebuild(name, &earlier, &mut opened.findings)?;
            opened.rebuilt += 1;
        }
        if opened.rebuilt > 0 {
            index.db.flush();
            index.unflushed.store(0, Ordering::Relaxed);
        }
        if total > 0 {
            progress(total, total);
        }
        index.state.write().table.settle();
        index.keep_health();
        index.save_if_due();
        Ok((index, opened))
    }

    /// Takes in what sled has of these packs. Returns those that are gone.
    fn learn_all(
        &self,
        packs: &HashMap<PackName, u64>,
        health_of: &dyn Fn(&PackName) -> Health,
    ) -> Result<Vec<PackName>> {
        let mut gone = Vec::new();
        let mut outcome = Ok(());
        let all = self.db.each(|name, value| match (packs.get(&name), value) {
            (None, _) => gone.push(name),
            (Some(len), Some(value)) if value.cover.file_len == *len && outcome.is_ok() => {
                match health_of(&name) {
                    Health::Damaged => {}
                    health => outcome = self.learn(name, value.cover, health, &value.directory),
                }
            }
            _ => {}
        });
        outcome?;
        if !all {
            *self.state.write() = State::default();
            self.db.start_anew();
        }
        Ok(gone)
    }

    /// Takes in a pack of an earlier run; its chunks are found once the table
    /// is settled.
    fn learn(
        &self,
        name: PackName,
        cover: Cover,
        health: Health,
        directory: &Directory,
    ) -> Result<()> {
        let mut info = PackInfo {
            name,
            file_len: cover.file_len,
            closed: cover.closed,
            earlier: true,
            health,
            records: 0,
            record_bytes: 0,
            plain_bytes: 0,
        };
        info.count(directory);
        self.unsaved.fetch_add(1 + info.records, Ordering::Relaxed);
        let mut state = self.state.write();
        let number = state.add(info)?;
        for entry in directory.entries() {
            state.table.add(&entry.id, number);
        }
        Ok(())
    }

    /// Reads a pack of an earlier run.
    fn rebuild(
        &self,
        name: PackName,
        earlier: &Earlier,
        findings: &mut Vec<Finding>,
    ) -> Result<()> {
        let read = self
            .backend
            .settle(&name.key())
            .and_then(|len| Ok((len, self.read(&name, len)?)));
        let (len, contents) = match read {
            Ok(read) => read,
            // Nothing in the store can be judged by this program.
            Err(error @ Error::FormatNewer { .. }) => return Err(error),
            Err(error) => {
                findings.push(Finding::PackUnreadable {
                    pack: name,
                    detail: error.to_string(),
                });
                return self.learn_unreadable(name, earlier);
            }
        };
        let mut damage = contents.findings;
        for finding in &mut damage {
            match *finding {
                Finding::TornTail { pack, offset, len } if offset < earlier.synced => {
                    *finding = Finding::Range { pack, offset, len };
                }
                _ => {}
            }
        }
        if !contents.closed && contents.end < earlier.synced {
            damage.push(Finding::PackLength {
                pack: name,
                expected: earlier.synced,
                found: contents.end,
            });
        }
        let cover = Cover {
            file_len: len,
            closed: contents.closed,
        };
        let health = match damage.iter().any(Finding::is_damage) {
            true => Health::Damaged,
            false => earlier.health,
        };
        findings.append(&mut damage);
        if earlier.health == Health::Damaged {
            tracing::error!("pack {name} is damaged");
        }
        self.learn(name, cover, health, &contents.directory)?;
        self.db.put(&name, &contents.directory, cover);
        self.flush_if_due();
        Ok(())
    }

    /// Takes in what can be known of a pack that cannot be read as it should:
    /// what was known of it, or else what is around what cannot be read.
    /// Whoever looks for a chunk that this lacks tries again.
    fn learn_unreadable(&self, name: PackName, earlier: &Earlier) -> Result<()> {
        // In the next run it may be read.
        let health = match earlier.health {
            Health::Damaged => Health::Damaged,
            _ => Health::Unread,
        };
        if let Some(kept) = &earlier.kept {
            return self.learn(name, kept.cover, health, &kept.directory);
        }
        let around = self.read_around(&name, earlier.len);
        let directory = around.unwrap_or_else(|error| {
            tracing::error!("pack {name}: {error}");
            Directory::default()
        });
        let cover = Cover {
            file_len: earlier.len,
            closed: false,
        };
        self.learn(name, cover, health, &directory)
    }

    /// What a pack holds around what cannot be read.
    fn read_around(&self, name: &PackName, len: u64) -> Result<Directory> {
        let pack = Reader::over_unreadable(&*self.backend, name);
        Ok(pack.contents(self.store, len)?.directory)
    }

    fn read(&self, name: &PackName, len: u64) -> Result<Contents> {
        Reader::new(&*self.backend, name).contents(self.store, len)
    }

    /// After something was put.
    fn flush_if_due(&self) {
        if self.unflushed.fetch_add(1, Ordering::Relaxed) + 1 >= FLUSH_EVERY {
            self.unflushed.store(0, Ordering::Relaxed);
            self.db.flush();
        }
    }

    /// Saves the table if opening would have to read many directories.
    fn save_if_due(&self) {
        let unsaved = self.unsaved.load(Ordering::Relaxed);
        if unsaved >= SAVE_AFTER {
            let chunks = self.state.read().table.len() as u64;
            if unsaved >= chunks / SAVE_AFTER_PART {
                self.save();
            }
        }
    }

    /// Saves the table, with sled flushed first: who knows a pack from the
    /// table does not look whether sled has it. Others go on meanwhile; what
    /// they add is in the file or not, and in no pack that is listed there.
    fn save(&self) {
        // Who has no sled may have lost the directory to another process.
        let Some(_saving) = self.saving.try_lock().filter(|_| self.has_db()) else {
            return;
        };
        self.db.flush();
        self.unsaved.store(0, Ordering::Relaxed);
        let (packs, slots) = {
            let state = self.state.read();
            (state.settled(), state.table.len() as u64)
        };
        let shard = |shard| self.state.read().table.slots(shard);
        if let Err(error) = saved::write(&self.dir, self.store, &packs, slots, shard) {
            tracing::warn!("the table of the index is not saved: {error}");
        }
    }

    /// The packs that may hold a chunk, the latest first.
    pub fn candidates(&self, id: &ChunkId) -> Vec<PackNumber> {
        let state = self.state.read();
        let mut found = state.table.candidates(id);
        found.retain(|number| {
            let listed = state.packs.get(*number as usize);
            listed.is_some_and(|listed| listed.as_ref().is_some_and(|listed| listed.visible))
        });
        found.sort_unstable_by(|a, b| b.cmp(a));
        found.into_iter().map(PackNumber).collect()
    }

    /// What is known of a pack; None when it is gone.
    pub fn info(&self, number: PackNumber) -> Option<PackInfo> {
        let state = self.state.read();
        let listed = state.packs.get(number.0 as usize)?.as_ref()?;
        Some(listed.info.clone())
    }

    /// The number of a pack that is not gone.
    pub fn number(&self, name: &PackName) -> Option<PackNumber> {
        self.state.read().numbers.get(name).copied().map(PackNumber)
    }

    /// All packs that are not condemned.
    pub fn packs(&self) -> Vec<(PackNumber, PackInfo)> {
        let state = self.state.read();
        let listed = (0..).zip(&state.packs);
        listed
            .filter_map(|(number, listed)| {
                let listed = listed.as_ref().filter(|listed| listed.visible)?;
                Some((PackNumber(number), listed.info.clone()))
            })
            .collect()
    }

    /// Whether what a pack has may be what cannot be had: something in it was
    /// found to be other than it was written, or could not be read.
    pub fn is_doubtful(&self, number: PackNumber) -> bool {
        let state = self.state.read();
        let listed = state.packs.get(number.0 as usize).and_then(Option::as_ref);
        listed.is_none_or(|listed| listed.info.health != Health::Sound)
    }

    /// Notes, for later runs, too, that something in a pack could not be
    /// read, which may pass: what is put again is stored again.
    pub fn doubt(&self, number: PackNumber) {
        let is_news = {
            let mut state = self.state.write();
            let Some(listed) = state.listed(number) else {
                return;
            };
            listed.doubts += 1;
            let is_news = listed.info.health == Health::Sound;
            if is_news {
                listed.info.health = Health::Doubted;
            }
            is_news
        };
        if is_news {
            self.keep_health();
        }
    }

    /// How often something in a pack could not be read in this run, if it is
    /// in doubt: for [`Index::trust`].
    pub fn doubts(&self, number: PackNumber) -> Option<u64> {
        let state = self.state.read();
        let listed = state.packs.get(number.0 as usize)?.as_ref()?;
        (listed.info.health == Health::Doubted).then_some(listed.doubts)
    }

    /// Takes back that a pack is in doubt: all of it was read since there
    /// were so many `doubts`, unless there are more now.
    pub fn trust(&self, number: PackNumber, doubts: u64) {
        let is_news = {
            let mut state = self.state.write();
            let listed = state.listed(number);
            let is_as_then = |listed: &&mut Listed| {
                listed.info.health == Health::Doubted && listed.doubts == doubts
            };
            let listed = listed.filter(is_as_then);
            listed
                .map(|listed| listed.info.health = Health::Sound)
                .is_some()
        };
        if is_news {
            self.keep_health();
        }
    }

    /// Writes down, for later runs, which packs are not to be relied on, if
    /// that is news.
    fn keep_health(&self) {
        let mut kept = self.kept_health.lock();
        let now = self.state.read().unsound();
        match &*kept {
            KeptHealth::Ended => return,
            KeptHealth::Says(known) if *known == now => return,
            KeptHealth::Says(_) | KeptHealth::Unknown => {}
        }
        // Nor does the saved table list such a pack.
        self.unsaved.fetch_add(1, Ordering::Relaxed);
        let written = unsound::write(&unsound::path_beside(&self.dir), &now);
        *kept = match written {
            Ok(()) => KeptHealth::Says(now),
            // Tried again with the next pack, and when the store is closed.
            Err(error) => {
                tracing::warn!("which packs are unsound is not kept: {error}");
                KeptHealth::Unknown
            }
        };
    }

    /// Puts what a pack holds into sled, unless there is more of the pack by
    /// now.
    fn put(&self, number: PackNumber, directory: &Directory, cover: Cover) {
        let _putting = self.putting.lock();
        let now = self.info(number);
        let now = now.filter(|now| (now.file_len, now.closed) == (cover.file_len, cover.closed));
        if let Some(now) = now {
            self.db.put(&now.name, directory, cover);
        }
    }

    /// Whether look-ups see a pack.
    pub fn is_visible(&self, number: PackNumber) -> bool {
        let state = self.state.read();
        let listed = state.packs.get(number.0 as usize).and_then(Option::as_ref);
        listed.is_some_and(|listed| listed.visible)
    }

    /// The entry of a chunk in a pack that may have it. Of a closed pack that
    /// nobody has asked for lately only the part of the directory is read in
    /// which the entry should be: in a store of millions of chunks each
    /// look-up may be in another pack. What that says is not checked; the
    /// record that it leads to is, and [`Index::reload`] knows better.
    pub fn find(&self, number: PackNumber, id: &ChunkId) -> Result<Option<Entry>> {
        if let Some(directory) = self.directories.get(&number.0) {
            return Ok(directory.find(id).copied());
        }
        if let Some(info) = self.info(number)
            && info.closed
            && !info.is_damaged()
            && self.glanced.lock().is_first(number)
            && let Some(entry) = self.glance(&info, id)
        {
            return Ok(Some(entry));
        }
        Ok(self.directory(number)?.find(id).copied())
    }

    fn glance(&self, info: &PackInfo, id: &ChunkId) -> Option<Entry> {
        let (len, count) = (info.file_len, info.records);
        // Whoever reads all of the directory meets the same error.
        let seen = Reader::new(&*self.backend, &info.name).glance(len, count, id);
        seen.inspect_err(|error| tracing::debug!("pack {}: {error}", info.name))
            .ok()?
    }

    /// A pack's directory, which is what its trailer says if it has one.
    pub fn directory(&self, number: PackNumber) -> Result<Arc<Directory>> {
        if let Some(directory) = self.directories.get(&number.0) {
            return Ok(directory);
        }
        let info = self.info(number).ok_or_else(|| Error::Missing {
            what: "pack",
            name: number.0.to_string(),
        })?;
        if info.closed {
            // Two short reads at the pack's end; sled would read and unpack
            // every leaf that a piece of it is in.
            let contents = match self.read(&info.name, info.file_len) {
                Err(error @ Error::Io { .. }) => return self.directory_kept(number, &info, error),
                read => read?,
            };
            let is_as_known = contents.closed
                && contents.findings.is_empty()
                && contents.directory.entries().len() as u64 == info.records;
            return match is_as_known {
                true => Ok(self.cache(number, &info, contents.directory)),
                false => self.reload(number),
            };
        }
        match self.db.get(&info.name) {
            Kept::Value(value) if value.cover.file_len == info.file_len => {
                match self.confirms(&info, &value) {
                    Ok(true) => {}
                    Ok(false) => return self.reload(number),
                    // Each record still has to confirm it.
                    Err(error) if error.is_unreadable() => {
                        tracing::warn!("pack {}: {error}", info.name);
                    }
                    Err(error) => return Err(error),
                }
                Ok(self.cache(number, &info, value.directory))
            }
            Kept::Value(_) | Kept::Nothing => match self.reload(number) {
                Err(error) if error.is_unreadable() && info.is_damaged() => {
                    let around = self.read_around(&info.name, info.file_len)?;
                    Ok(self.cache(number, &info, around))
                }
                reloaded => reloaded,
            },
            Kept::Busy => Ok(self.load(number, &info)?.0),
        }
    }

    /// The directory of a closed pack that cannot be read there: what sled has
    /// of it, else the error. Each record still has to confirm it.
    fn directory_kept(
        &self,
        number: PackNumber,
        info: &PackInfo,
        error: Error,
    ) -> Result<Arc<Directory>> {
        match self.db.get(&info.name) {
            Kept::Value(value)
                if value.cover.file_len == info.file_len
                    && value.directory.entries().len() as u64 == info.records =>
            {
                tracing::warn!("pack {}: {error}", info.name);
                Ok(self.cache(number, info, value.directory))
            }
            _ => Err(error),
        }
    }

    /// Keeps a directory in memory that is of the pack as `info` has it.
    fn cache(&self, number: PackNumber, info: &PackInfo, directory: Directory) -> Arc<Directory> {
        let directory = Arc::new(directory);
        let state = self.state.read();
        let listed = state.packs.get(number.0 as usize).and_then(Option::as_ref);
        // Its writer may have published more of it meanwhile.
        if listed.is_some_and(|listed| listed.info.file_len == info.file_len) {
            self.directories.insert(number.0, Arc::clone(&directory));
        }
        directory
    }

    /// Whether a pack that is not closed itself says the same as a value of
    /// sled's.
    fn confirms(&self, info: &PackInfo, value: &db::Value) -> Result<bool> {
        let pack = Reader::new(&*self.backend, &info.name);
        match pack.trailer(info.file_len)? {
            Some(trailer) => Ok(trailer.crc == value.crc
                && trailer.count as usize == value.directory.entries().len()),
            // What is known of it was read from it in this run, or covers all
            // of it and was synced.
            None => Ok(pack.check_header(self.store)?.is_none()),
        }
    }

    /// Reads a pack's directory from the pack, whatever the index thinks.
    pub fn reload(&self, number: PackNumber) -> Result<Arc<Directory>> {
        let info = self.info(number).ok_or_else(|| Error::Missing {
            what: "pack",
            name: number.0.to_string(),
        })?;
        let (directory, cover) = self.load(number, &info)?;
        self.put(number, &directory, cover);
        self.flush_if_due();
        Ok(directory)
    }

    /// What was known of a pack before it is read again.
    fn known(&self, number: PackNumber, info: &PackInfo) -> Option<Arc<Directory>> {
        if let Some(directory) = self.directories.get(&number.0) {
            return Some(directory);
        }
        match self.db.get(&info.name) {
            Kept::Value(value) if value.cover.file_len == info.file_len => {
                Some(Arc::new(value.directory))
            }
            _ => None,
        }
    }

    /// Takes in what the pack itself says.
    fn load(&self, number: PackNumber, info: &PackInfo) -> Result<(Arc<Directory>, Cover)> {
        let contents = self.read(&info.name, info.file_len)?;
        let cover = Cover {
            file_len: info.file_len,
            closed: contents.closed,
        };
        let mut is_damaged = contents.findings.iter().any(Finding::is_damage);
        for finding in &contents.findings {
            tracing::warn!("{finding}");
        }
        let mut directory = contents.directory;
        if !contents.closed
            && let Some(before) = self.known(number, info)
        {
            // A scan finds no damaged record; what was there before must not
            // be forgotten over it. What came meanwhile was not read.
            let lost: Vec<Entry> = before
                .entries()
                .iter()
                .filter(|entry| entry.end() <= info.file_len)
                .filter(|entry| directory.find(&entry.id).is_none())
                .copied()
                .collect();
            if !lost.is_empty() {
                is_damaged = true;
                directory = Directory::new([directory.entries(), &lost].concat());
            }
        }
        self.unsaved.fetch_add(1, Ordering::Relaxed);
        let directory = Arc::new(directory);
        let mut state = self.state.write();
        let Some(listed) = state.listed(number) else {
            return Ok((directory, cover));
        };
        // Its directory may be whole while a record is known not to be.
        if is_damaged {
            listed.info.health = Health::Damaged;
        }
        // Its writer may have published more of it while it was read, and
        // what the writer says is newer.
        if listed.info.file_len == info.file_len {
            listed.info.closed = cover.closed;
            listed.info.count(&directory);
            state.insert(number.0, directory.entries());
            self.directories.insert(number.0, Arc::clone(&directory));
        }
        drop(state);
        if is_damaged {
            self.keep_health();
        }
        Ok((directory, cover))
    }

    /// Gives a pack that is being written a number; nothing is found in it
    /// before [`Index::publish`].
    pub fn add(&self, name: PackName) -> Result<PackNumber> {
        let mut state = self.state.write();
        let number = state.add(PackInfo {
            name,
            file_len: 0,
            closed: false,
            earlier: false,
            health: Health::Sound,
            records: 0,
            record_bytes: 0,
            plain_bytes: 0,
        })?;
        Ok(PackNumber(number))
    }

    /// Makes what a pack of this run holds findable: all of `directory` is on
    /// disk, `fresh` are its entries since the last time.
    pub fn publish(
        &self,
        number: PackNumber,
        directory: &Directory,
        fresh: &[Entry],
        file_len: u64,
        closed: bool,
    ) {
        {
            let mut state = self.state.write();
            state.insert(number.0, fresh);
            let Some(listed) = state.listed(number) else {
                return;
            };
            listed.info.file_len = file_len;
            listed.info.closed = closed;
            listed.info.count(directory);
            // Under the lock, so that nobody puts an older one in its place.
            self.directories
                .insert(number.0, Arc::new(directory.clone()));
        }
        self.unsaved
            .fetch_add(fresh.len() as u64 + u64::from(closed), Ordering::Relaxed);
        self.put(number, directory, Cover { file_len, closed });
        if closed {
            self.keep_health();
            self.flush_if_due();
            self.save_if_due();
        }
    }

    /// Hides a pack from look-ups, or shows it again. The caller holds the
    /// lock under which look-ups pin what they find.
    pub fn set_visible(&self, number: PackNumber, visible: bool) {
        if let Some(listed) = self.state.write().listed(number) {
            listed.visible = visible;
        }
    }

    /// Notes that something in a pack is not as it was written: nothing put
    /// later is taken for being there, and no sweep goes by it.
    pub fn mark_damaged(&self, number: PackNumber) {
        let marked = {
            let mut state = self.state.write();
            let listed = state.listed(number);
            let listed = listed.filter(|listed| listed.info.health != Health::Damaged);
            listed.map(|listed| {
                listed.info.health = Health::Damaged;
                listed.info.name
            })
        };
        if let Some(name) = marked {
            tracing::error!("pack {name} is damaged");
            self.keep_health();
        }
    }

    /// Reads the directory of every pack anew, from the pack, and starts
    /// sled anew if it was given up. Returns how many were read; those that
    /// cannot be read are noted as damaged.
    pub fn rebuild_all(&self, progress: &dyn Fn(u64, u64)) -> u64 {
        if !self.has_db() {
            self.db.start_anew();
        }
        let packs = self.packs();
        let total = packs.len() as u64;
        let mut read = 0;
        for (done, (number, info)) in (0..).zip(packs) {
            progress(done, total);
            // What is written in this run is known from writing it.
            if !info.earlier {
                continue;
            }
            match self.reload(number) {
                Ok(_) => read += 1,
                Err(error) => {
                    tracing::error!("pack {}: {error}", info.name);
                    self.mark_damaged(number);
                }
            }
        }
        self.db.flush();
        read
    }

    /// Forgets a pack that is gone.
    pub fn remove(&self, number: PackNumber) {
        let removed = {
            let mut state = self.state.write();
            let removed = state
                .packs
                .get_mut(number.0 as usize)
                .and_then(Option::take);
            if let Some(listed) = &removed {
                state.numbers.remove(&listed.info.name);
                state.table.note_removal();
            }
            removed
        };
        self.directories.remove(&number.0);
        if let Some(listed) = removed {
            self.db.remove(&listed.info.name);
            self.unsaved.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether sled is in use.
    pub fn has_db(&self) -> bool {
        self.db.is_there()
    }

    /// Where a chunk is by what sled has and nothing else: no table, no
    /// cache and no pack of this process is asked. Reads every value.
    pub fn resolve_through_db(&self, id: &ChunkId) -> Option<(PackName, Entry)> {
        let mut found = None;
        self.db.each(|name, value| {
            let entry = value.and_then(|value| value.directory.find(id).copied());
            if let (None, Some(entry)) = (&found, entry) {
                found = Some((name, entry));
            }
        });
        found
    }

    /// Bytes of memory that the table of fingerprints takes.
    pub fn table_bytes(&self) -> usize {
        self.state.read().table.bytes()
    }

    /// Saves the table, flushes and closes sled; look-ups go on without it.
    pub fn close(&self) {
        self.keep_health();
        *self.kept_health.lock() = KeptHealth::Ended;
        if self.unsaved.load(Ordering::Relaxed) > 0 {
            self.save();
        }
        self.db.close();
    }
}

#[cfg(test)]
mod tests;
