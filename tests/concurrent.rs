//! Goal: whatever happens at once, every snapshot is its disk at one
//! instant, nothing in it ever changes, and nothing that was acknowledged is
//! lost (invariants 2, 4, 8).
//!
//! Method: writers, readers of disks and of snapshots, takers (of groups,
//! too), renamers, deleters, cloners, gc and verify on one store, each as fast
//! as it can, and beside them a disk that is rolled back. Every sector says
//! which write of it made it what it is. What a snapshot, or a read, may show
//! of a sector is bounded by the writes that had returned before it was asked
//! for and those that had begun when it was there.
//! `SNAPDISK_CONCURRENT_WRITES` sets for how many writes
//! a writer goes on. Then the same on files that lose what was not synced
//! (`common/faulty.rs`): the power fails in the middle of it, again and again
//! (`SNAPDISK_CONCURRENT_CRASHES`), and what was acknowledged must be there.

mod common;

use common::bytes::Random;
use common::env_number;
use common::faulty::FaultyFiles;
use common::library::{CHUNK, OWNER, assert_store_sound, make, memory_dir, new_files, open_files};
use snapdisk::disk::{AttributeChange, Disk, Source, Wait};
use snapdisk::error::{Error, Result};
use snapdisk::events::By;
use snapdisk::name::SnapshotName;
use snapdisk::progress::Quiet;
use snapdisk::store::{self, InitOptions, Options, Store};
use std::collections::{BTreeMap, BTreeSet, HashSet, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Barrier, Mutex, OnceLock};
use std::thread;
use std::time::SystemTime;

const SECTOR: usize = 512;
/// Of a disk.
const SECTORS: usize = 2048;
const DISKS: usize = 2;
/// Of a disk; each has sectors of its own.
const WRITERS: usize = 2;
/// Snapshots of a disk beyond which takers leave it to the deleters.
const MOST: usize = 40;

/// A disk and the versions of its sectors.
struct Tested {
    number: usize,
    disk: Arc<Disk>,
    /// Of writes that have begun.
    begun: Vec<AtomicU64>,
    /// Of writes that have returned.
    done: Vec<AtomicU64>,
    /// Of writes that had returned before something made them durable.
    safe: Vec<AtomicU64>,
    /// Sectors and versions that are holes, as all are at first.
    holes: Mutex<HashSet<(usize, u64)>>,
}

impl Tested {
    fn new(store: &Arc<Store>, number: usize) -> Arc<Tested> {
        let disk = make(store, &format!("d{number}")).expect("a disk");
        disk.truncate((SECTORS * SECTOR) as u64, false)
            .expect("its size");
        disk.flush().expect("its size is safe");
        let zeros = || (0..SECTORS).map(|_| AtomicU64::new(0)).collect();
        Arc::new(Tested {
            number,
            disk,
            begun: zeros(),
            done: zeros(),
            safe: zeros(),
            holes: Mutex::new((0..SECTORS).map(|at| (at, 0)).collect()),
        })
    }

    /// What a version of a sector is.
    fn sector(&self, sector: usize, version: u64) -> [u8; SECTOR] {
        let mut bytes = [0; SECTOR];
        let holes = self.holes.lock().expect("no panic with it");
        if !holes.contains(&(sector, version)) {
            for (at, part) in bytes.chunks_exact_mut(16).enumerate() {
                part[..8].copy_from_slice(&version.to_le_bytes());
                part[8] = self.number as u8;
                part[9..13].copy_from_slice(&(sector as u32).to_le_bytes());
                part[13] = at as u8;
            }
        }
        bytes
    }

    /// What the last versions are.
    fn content(&self) -> Vec<u8> {
        let versions = Tested::versions(&self.done);
        let sectors = versions.iter().enumerate();
        sectors.flat_map(|(at, v)| self.sector(at, *v)).collect()
    }

    /// Panics unless a read of some sectors from `first` on shows what was
    /// written by the writes `least` to `most` of each. One that is written
    /// meanwhile may be torn where the kernel copies, at 8 bytes.
    fn check_live(&self, first: usize, bytes: &[u8], least: &[u64], most: &[u64]) {
        for (at, found) in (first..).zip(bytes.chunks_exact(SECTOR)) {
            let versions = least[at]..=most[at];
            let wanted: Vec<[u8; SECTOR]> = versions.map(|v| self.sector(at, v)).collect();
            for (word, found) in found.chunks_exact(8).enumerate() {
                let is_there = |sector: &[u8; SECTOR]| sector[word * 8..word * 8 + 8] == *found;
                assert!(
                    wanted.iter().any(is_there),
                    "word {word} of sector {at} of disk {} is of none of the writes {} to {}: \
                     {found:02x?}",
                    self.number,
                    least[at],
                    most[at]
                );
            }
        }
    }

    fn note_safe(&self, versions: &[u64]) {
        for (safe, version) in self.safe.iter().zip(versions) {
            safe.fetch_max(*version, Ordering::SeqCst);
        }
    }

    fn versions(of: &[AtomicU64]) -> Vec<u64> {
        of.iter().map(|v| v.load(Ordering::SeqCst)).collect()
    }
}

/// A snapshot and what it may show.
struct Taken {
    disk: Arc<Tested>,
    name: String,
    least: Vec<u64>,
    most: Vec<u64>,
    /// What it showed first, whatever its name was then.
    shown: Arc<OnceLock<blake3::Hash>>,
}

impl Taken {
    /// What was asked for when the writes `least` had returned, and is there.
    fn new(disk: &Arc<Tested>, name: &str, least: Vec<u64>) -> Arc<Taken> {
        Arc::new(Taken {
            disk: disk.clone(),
            name: name.to_owned(),
            most: Tested::versions(&disk.begun),
            least,
            shown: Arc::default(),
        })
    }

    fn read(&self) -> Result<Vec<u8>> {
        let disk = &self.disk.disk;
        let snapshot = disk.snapshot(&self.name).ok_or_else(|| Error::Missing {
            what: "snapshot",
            name: self.name.clone(),
        })?;
        let mut bytes = vec![0xaa; SECTORS * SECTOR];
        let read = disk.read_snapshot(&snapshot, 0, &mut bytes, Wait::Yes)?;
        assert_eq!(read.waited(), bytes.len(), "size of {}", self.name);
        Ok(bytes)
    }

    fn check(&self, bytes: &[u8]) {
        for (at, found) in bytes.chunks_exact(SECTOR).enumerate() {
            let (least, most) = (self.least[at], self.most[at]);
            let fits = (least..=most).any(|v| self.disk.sector(at, v) == found);
            assert!(
                fits,
                "sector {at} of {} is of none of the writes {least} to {most}: {:02x?}",
                self.name,
                &found[..16]
            );
        }
        let hash = blake3::hash(bytes);
        let first = self.shown.get_or_init(|| hash);
        assert_eq!(*first, hash, "{} has changed", self.name);
    }
}

/// A disk that one thread alone changes, and what it should hold.
struct Rolled {
    disk: Arc<Disk>,
    live: Vec<u8>,
    kept: BTreeMap<String, Vec<u8>>,
}

impl Rolled {
    fn new(store: &Arc<Store>) -> Rolled {
        let disk = make(store, "rolled").expect("a disk");
        let live = vec![0; SECTORS * SECTOR];
        disk.truncate(live.len() as u64, false).expect("its size");
        Rolled {
            disk,
            live,
            kept: BTreeMap::new(),
        }
    }

    fn any(&self, random: &mut Random) -> Option<String> {
        let at = random.below(self.kept.len() as u64) as usize;
        self.kept.keys().nth(at).cloned()
    }

    fn write(&mut self, random: &mut Random) -> Result<()> {
        let len = 1 + random.below(64 * SECTOR as u64) as usize;
        let at = random.below((self.live.len() - len) as u64) as usize;
        let bytes: Vec<u8> = (0..len).map(|_| random.next() as u8).collect();
        self.disk.write(at as u64, &bytes, Wait::Yes)?.waited();
        self.live[at..at + len].copy_from_slice(&bytes);
        Ok(())
    }

    fn take(&mut self, name: &str) -> Result<()> {
        let parsed = SnapshotName::parse(name.as_ref()).expect("a name");
        self.disk.take_snapshot(parsed)?;
        self.kept.insert(name.to_owned(), self.live.clone());
        Ok(())
    }

    fn roll_back(&mut self, target: &str, discard: bool) -> Result<()> {
        if let Some(name) = self.disk.rollback(target, discard)? {
            self.kept.insert(name, self.live.clone());
        }
        self.live.clone_from(&self.kept[target]);
        Ok(())
    }

    fn delete(&mut self, name: &str) -> Result<()> {
        self.disk.delete_snapshot(name)?;
        self.kept.remove(name);
        Ok(())
    }

    fn check(&self) {
        let mut bytes = vec![0xaa; self.live.len()];
        let read = self.disk.read(0, &mut bytes, Wait::Yes);
        assert_eq!(read.expect("the live image").waited(), bytes.len());
        assert!(bytes == self.live, "the disk that is rolled back");
        for (name, kept) in &self.kept {
            let snapshot = self.disk.snapshot(name).expect("it was taken");
            let read = self.disk.read_snapshot(&snapshot, 0, &mut bytes, Wait::Yes);
            assert_eq!(read.expect("a snapshot").waited(), bytes.len());
            assert!(bytes == *kept, "{name} of the disk that is rolled back");
        }
    }
}

/// How often each thing was done.
type Counts = Mutex<BTreeMap<&'static str, u64>>;

struct World {
    store: Arc<Store>,
    disks: Vec<Arc<Tested>>,
    taken: Mutex<Vec<Arc<Taken>>>,
    /// Members of groups, of every disk one.
    groups: Mutex<VecDeque<Vec<Arc<Taken>>>>,
    rolled: Mutex<Rolled>,
    /// Being taken, renamed or deleted when the power failed: they may be there.
    unsure: Mutex<Vec<Arc<Taken>>>,
    /// Where the power may fail.
    files: Option<FaultyFiles>,
    counts: Counts,
    /// No more writers.
    over: AtomicBool,
    names: AtomicU64,
}

impl World {
    fn new(store: Arc<Store>, files: Option<FaultyFiles>) -> World {
        World {
            disks: (0..DISKS).map(|n| Tested::new(&store, n)).collect(),
            rolled: Mutex::new(Rolled::new(&store)),
            store,
            taken: Mutex::default(),
            groups: Mutex::default(),
            unsure: Mutex::default(),
            files,
            counts: Counts::default(),
            over: AtomicBool::new(false),
            names: AtomicU64::new(0),
        }
    }

    /// What was asked for; None if the power failed, which ends everything.
    fn lives<T>(&self, what: &str, result: Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                let failed = self.files.as_ref().is_some_and(FaultyFiles::is_stopped);
                assert!(failed, "{what}: {error}");
                self.over.store(true, Ordering::SeqCst);
                None
            }
        }
    }

    fn count(&self, what: &'static str) {
        *self
            .counts
            .lock()
            .expect("no panic with it")
            .entry(what)
            .or_default() += 1;
    }

    fn name(&self, prefix: &str) -> String {
        format!("{prefix}{}", self.names.fetch_add(1, Ordering::SeqCst))
    }

    /// Snapshots that are there, those of groups as well.
    fn all_taken(&self) -> Vec<Arc<Taken>> {
        let mut all = self.taken.lock().expect("no panic with it").clone();
        let groups = self.groups.lock().expect("no panic with it");
        all.extend(groups.iter().flatten().cloned());
        all
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::SeqCst)
    }

    fn any(&self, random: &mut Random) -> Option<Arc<Taken>> {
        let taken = self.taken.lock().expect("no panic with it");
        let at = random.below(taken.len() as u64) as usize;
        taken.get(at).cloned()
    }

    fn write(&self, tested: &Tested, writer: usize, times: u64, seed: u64) {
        let mut random = Random(seed + (tested.number * 10 + writer) as u64);
        let own = SECTORS / WRITERS;
        for _ in 0..times {
            let len = 1 + random.below(64) as usize;
            let first = writer * own + random.below((own - len) as u64) as usize;
            let sectors = first..first + len;
            let punch = random.below(5) == 0;
            let versions: Vec<u64> = sectors
                .clone()
                .map(|at| {
                    let next = tested.begun[at].load(Ordering::SeqCst) + 1;
                    if punch {
                        let mut holes = tested.holes.lock().expect("no panic with it");
                        holes.insert((at, next));
                    }
                    tested.begun[at].store(next, Ordering::SeqCst);
                    next
                })
                .collect();
            let at = (first * SECTOR) as u64;
            let done = if punch {
                tested
                    .disk
                    .punch(at, (len * SECTOR) as u64, false, Wait::Yes)
                    .map(drop)
            } else {
                let bytes: Vec<u8> = sectors
                    .clone()
                    .zip(&versions)
                    .flat_map(|(at, version)| tested.sector(at, *version))
                    .collect();
                tested.disk.write(at, &bytes, Wait::Yes).map(drop)
            };
            if self.lives("a write", done).is_none() {
                return;
            }
            for (at, version) in sectors.zip(versions) {
                tested.done[at].store(version, Ordering::SeqCst);
            }
            let flushes = if self.files.is_some() { 4 } else { 50 };
            if random.below(flushes) == 0 {
                let returned = Tested::versions(&tested.done);
                if self.lives("a flush", tested.disk.flush()).is_none() {
                    return;
                }
                tested.note_safe(&returned);
                self.count("flush");
            }
            self.count(if punch { "punch" } else { "write" });
        }
    }

    fn take(&self, random: &mut Random) {
        let tested = &self.disks[random.below(DISKS as u64) as usize];
        if tested.disk.snapshots().len() > MOST {
            thread::yield_now();
            return;
        }
        let name = self.name("s");
        let parsed = SnapshotName::parse(name.as_ref()).expect("a name");
        let least = Tested::versions(&tested.done);
        let done = self.lives(&name, tested.disk.take_snapshot(parsed));
        let taken = Taken::new(tested, &name, least);
        if done.is_none() {
            self.unsure.lock().expect("no panic with it").push(taken);
            return;
        }
        tested.note_safe(&taken.least);
        self.taken.lock().expect("no panic with it").push(taken);
        self.count("take");
    }

    /// Takes a group, and deletes an earlier one.
    fn group(&self, random: &mut Random) {
        let name = self.name("g");
        let parsed = SnapshotName::parse(name.as_ref()).expect("a name");
        let disks = self.disks.iter().map(|tested| tested.disk.clone());
        let disks: Vec<Arc<Disk>> = disks.collect();
        let least = self
            .disks
            .iter()
            .map(|tested| Tested::versions(&tested.done));
        let least: Vec<Vec<u64>> = least.collect();
        let done = self.lives(&name, self.store.take_group(parsed, Some(disks), OWNER));
        let members = self.disks.iter().zip(least);
        let members = members.map(|(tested, least)| Taken::new(tested, &name, least));
        let members: Vec<Arc<Taken>> = members.collect();
        if done.is_none() {
            return self
                .unsure
                .lock()
                .expect("no panic with it")
                .extend(members);
        }
        for taken in &members {
            taken.disk.note_safe(&taken.least);
            match taken.read() {
                Ok(bytes) => taken.check(&bytes),
                Err(error) => {
                    self.lives::<()>(&taken.name, Err(error));
                }
            }
        }
        self.count("take a group");
        let mut groups = self.groups.lock().expect("no panic with it");
        groups.push_back(members);
        if groups.len() as u64 > 1 + random.below(5)
            && let Some(members) = groups.pop_front()
        {
            let deleted = self.store.delete_group(&members[0].name, &By::Store);
            if self.lives(&members[0].name, deleted).is_none() {
                return self
                    .unsure
                    .lock()
                    .expect("no panic with it")
                    .extend(members);
            }
            self.count("delete a group");
        }
    }

    fn read_live(&self, random: &mut Random) {
        let tested = &self.disks[random.below(DISKS as u64) as usize];
        let len = 1 + random.below(256) as usize;
        let first = random.below((SECTORS - len) as u64) as usize;
        let mut bytes = vec![0xaa; len * SECTOR];
        let least = Tested::versions(&tested.done);
        let read = tested
            .disk
            .read((first * SECTOR) as u64, &mut bytes, Wait::Yes);
        if let Some(read) = self.lives("a read", read) {
            assert_eq!(read.waited(), bytes.len());
            let most = Tested::versions(&tested.begun);
            tested.check_live(first, &bytes, &least, &most);
            self.count("read a disk");
        }
    }

    fn rename(&self, random: &mut Random) {
        let taken = {
            let mut taken = self.taken.lock().expect("no panic with it");
            if taken.is_empty() {
                return;
            }
            let at = random.below(taken.len() as u64) as usize;
            taken.swap_remove(at)
        };
        let name = self.name("n");
        let parsed = SnapshotName::parse(name.as_ref()).expect("a name");
        let renamed = taken.disk.disk.rename_snapshot(&taken.name, parsed);
        let under_new = Arc::new(Taken {
            disk: taken.disk.clone(),
            name,
            least: taken.least.clone(),
            most: taken.most.clone(),
            shown: taken.shown.clone(),
        });
        if self.lives(&taken.name, renamed).is_none() {
            let mut unsure = self.unsure.lock().expect("no panic with it");
            return unsure.extend([taken, under_new]);
        }
        self.taken.lock().expect("no panic with it").push(under_new);
        self.count("rename");
    }

    fn roll(&self, random: &mut Random) {
        let mut rolled = self.rolled.lock().expect("no panic with it");
        let any = rolled.any(random);
        let (what, done) = match (random.below(8), any) {
            (0..=3, _) => ("write the other disk", rolled.write(random)),
            (4, _) | (_, None) => ("take of the other disk", rolled.take(&self.name("r"))),
            (5, Some(name)) => ("delete of the other disk", rolled.delete(&name)),
            (_, Some(name)) => ("rollback", rolled.roll_back(&name, random.below(2) == 0)),
        };
        if self.lives(what, done).is_some() {
            rolled.check();
            self.count(what);
        }
    }

    fn read(&self, random: &mut Random) {
        let Some(taken) = self.any(random) else {
            return;
        };
        match taken.read() {
            Ok(bytes) => taken.check(&bytes),
            // Deleted meanwhile.
            Err(Error::Missing { .. }) => {}
            Err(error) => {
                self.lives::<()>(&taken.name, Err(error));
            }
        }
        self.count("read");
    }

    fn delete(&self, random: &mut Random) {
        let taken = {
            let mut taken = self.taken.lock().expect("no panic with it");
            if taken.len() < MOST / 2 {
                thread::yield_now();
                return;
            }
            let at = random.below(taken.len() as u64) as usize;
            taken.swap_remove(at)
        };
        let deleted = taken.disk.disk.delete_snapshot(&taken.name);
        if self.lives(&taken.name, deleted).is_none() {
            self.unsure.lock().expect("no panic with it").push(taken);
            return;
        }
        self.count("delete");
    }

    fn clone_one(&self, random: &mut Random) {
        let Some(taken) = self.any(random) else {
            return;
        };
        let name = self.name("c");
        let cloned = (|| -> Result<Option<Arc<Disk>>> {
            let disk = make(&self.store, &name)?;
            let Some(snapshot) = taken.disk.disk.snapshot(&taken.name) else {
                return Ok(None);
            };
            let source = Source::Snapshot(taken.disk.disk.clone(), snapshot);
            let (mut at, len) = (0, (SECTORS * SECTOR) as u64);
            while at < len {
                at += disk.copy_range(&source, at, at, len - at)?;
            }
            Ok(Some(disk))
        })();
        match cloned {
            Ok(Some(disk)) => {
                // Its source may be gone by now, and a gc may have run.
                let mut bytes = vec![0xaa; SECTORS * SECTOR];
                let read = disk.read(0, &mut bytes, Wait::Yes);
                if self.lives(&name, read).is_none() {
                    return;
                }
                taken.check(&bytes);
                self.count("clone");
            }
            Ok(None) | Err(Error::Missing { .. }) => {}
            Err(error) => {
                self.lives::<()>(&name, Err(error));
                return;
            }
        }
        let disk = self.store.disk(&name).expect("it was made");
        let removed = (|| {
            disk.drop_image()?;
            for snapshot in disk.snapshots() {
                disk.delete_snapshot(&snapshot.name())?;
            }
            self.store.remove_disk(&name)
        })();
        self.lives(&name, removed);
    }

    fn gc(&self) {
        if self.lives("gc", self.store.gc(false, &Quiet)).is_some() {
            self.count("gc");
        }
    }

    fn verify(&self) {
        assert_store_sound(&self.store, "meanwhile");
        self.count("verify");
    }

    /// All of them at once, until each writer has written so often.
    fn run(&self, seed: u64, times: u64, others: &[fn(&World, &mut Random)]) {
        thread::scope(|scope| {
            let writers: Vec<_> = self
                .disks
                .iter()
                .flat_map(|tested| (0..WRITERS).map(move |writer| (tested, writer)))
                .map(|(tested, writer)| {
                    scope.spawn(move || self.write(tested, writer, times, seed))
                })
                .collect();
            for (number, act) in (1..).zip(others) {
                scope.spawn(move || go_on(self, seed + number, act));
            }
            for writer in writers {
                if writer.join().is_err() {
                    self.over.store(true, Ordering::SeqCst);
                }
            }
            self.over.store(true, Ordering::SeqCst);
        });
    }

    /// Everything, when nothing else happens.
    fn check_all(&self) {
        for tested in &self.disks {
            let mut bytes = vec![0xaa; SECTORS * SECTOR];
            let read = tested
                .disk
                .read(0, &mut bytes, Wait::Yes)
                .expect("the live image");
            assert_eq!(read.waited(), bytes.len());
            assert!(bytes == tested.content(), "disk {}", tested.number);
        }
        self.rolled.lock().expect("no panic with it").check();
        for taken in self.all_taken() {
            let bytes = taken.read();
            taken.check(&bytes.unwrap_or_else(|error| panic!("{}: {error}", taken.name)));
        }
    }
}

fn open(root: &Path) -> Arc<Store> {
    let options = Options {
        cache_bytes: 1 << 20,
        pack_bytes: 1 << 20,
        ..Options::default()
    };
    Store::open(root, options, &Quiet).unwrap_or_else(|error| panic!("opening: {error}"))
}

/// Calls `act` until there are no more writers, and ends them if it panics.
fn go_on(world: &World, seed: u64, act: impl Fn(&World, &mut Random)) {
    struct End<'a>(&'a World);
    impl Drop for End<'_> {
        fn drop(&mut self) {
            self.0.over.store(true, Ordering::SeqCst);
        }
    }
    let mut random = Random(seed);
    let end = End(world);
    while world.goes_on() {
        act(world, &mut random);
    }
    drop(end);
}

/// Contract: what several threads write, take and delete at once is whole.
#[test]
fn everything_at_once() {
    let home = tempfile::tempdir_in("/var/tmp").expect("a directory");
    let root = home.path().join("store");
    store::init(
        &root,
        &InitOptions {
            chunk_size: CHUNK as u32,
        },
    )
    .expect("a new store");
    let store = open(&root);
    let world = World::new(store, None);
    let times = env_number("SNAPDISK_CONCURRENT_WRITES").unwrap_or(20_000);
    world.run(
        0,
        times,
        &[
            World::take,
            World::read,
            World::read_live,
            World::delete,
            World::rename,
            World::group,
            World::clone_one,
            World::roll,
            |world, _| world.gc(),
            |world, _| world.verify(),
        ],
    );
    world.check_all();
    world.verify();
    println!("{:?}", world.counts.lock().expect("no panic with it"));
    // And after a restart.
    let taken = world.all_taken();
    let World { store, disks, .. } = world;
    store.close().expect("closing");
    let contents: Vec<(usize, Vec<u8>)> = disks
        .iter()
        .map(|tested| (tested.number, tested.content()))
        .collect();
    let before: Vec<(usize, String, Option<blake3::Hash>)> = taken
        .iter()
        .map(|taken| {
            (
                taken.disk.number,
                taken.name.clone(),
                taken.shown.get().copied(),
            )
        })
        .collect();
    drop((taken, disks, store));
    let store = open(&root);
    for (number, content) in contents {
        let disk = store.disk(&format!("d{number}")).expect("it is there");
        let mut bytes = vec![0xaa; SECTORS * SECTOR];
        disk.read(0, &mut bytes, Wait::Yes).expect("the live image");
        assert!(bytes == content, "disk {number} after a restart");
    }
    for (number, name, hash) in before {
        let disk = store.disk(&format!("d{number}")).expect("it is there");
        let snapshot = disk
            .snapshot(&name)
            .unwrap_or_else(|| panic!("{name} is gone"));
        let mut bytes = vec![0xaa; SECTORS * SECTOR];
        disk.read_snapshot(&snapshot, 0, &mut bytes, Wait::Yes)
            .expect("a snapshot");
        assert_eq!(Some(blake3::hash(&bytes)), hash, "{name} after a restart");
    }
    assert_store_sound(&store, "after a restart");
    store.close().expect("closing");
}

/// Invariants 1, 2 and 8: what was acknowledged while several threads wrote,
/// flushed, took, deleted and cloned at once is there when the power fails in
/// the middle of it; each other sector is of one of the writes that had begun.
#[test]
fn the_power_fails_while_everything_goes_on() {
    let crashes = env_number("SNAPDISK_CONCURRENT_CRASHES").unwrap_or(100);
    let mut counts: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..crashes {
        let mut random = Random(seed);
        let index = memory_dir();
        let root = index.path();
        let files = new_files();
        files.let_others_in();
        let world = World::new(
            open_files(&files, root).expect("a new store"),
            Some(files.clone()),
        );
        let most = 1 << (8 + random.below(7));
        files.stop_after(random.below(most));
        world.run(
            seed * 1000,
            u64::MAX,
            &[
                World::take,
                World::delete,
                |world, random| {
                    world.rename(random);
                    world.group(random);
                },
                |world, random| {
                    world.clone_one(random);
                    world.gc();
                },
            ],
        );
        for (what, count) in world.counts.lock().expect("no panic with it").iter() {
            *counts.entry(what).or_default() += count;
        }
        let taken = world.all_taken();
        let World {
            store,
            disks,
            unsure,
            ..
        } = world;
        // Or the process is killed first.
        let left = match random.below(3) {
            0 => files.kill(),
            _ => files.crash(&mut random),
        };
        let unsure = unsure.into_inner().expect("no panic with it");
        drop(store);
        let store = open_files(&left, root).unwrap_or_else(|error| panic!("{seed}: {error}"));
        for tested in &disks {
            check_after_crash(seed, &store, tested, &taken, &unsure);
        }
        let of_groups = taken
            .iter()
            .chain(&unsure)
            .filter(|taken| taken.name.starts_with('g'));
        for name in of_groups.map(|taken| &taken.name) {
            let disks = (0..DISKS).map(|number| store.disk(&format!("d{number}")));
            let there = disks.map(|disk| disk.is_some_and(|disk| disk.snapshot(name).is_some()));
            let there: BTreeSet<bool> = there.collect();
            assert_eq!(
                there.len(),
                1,
                "{seed}: a part of the group {name} is there"
            );
        }
        assert_store_sound(&store, &format!("crash {seed}"));
    }
    println!("{crashes} crashes, {counts:?}");
}

fn check_after_crash(
    seed: u64,
    store: &Store,
    tested: &Tested,
    taken: &[Arc<Taken>],
    unsure: &[Arc<Taken>],
) {
    let disk = store.disk(&format!("d{}", tested.number));
    let disk = disk.unwrap_or_else(|| panic!("{seed}: disk {} is gone", tested.number));
    let mut bytes = vec![0xaa; SECTORS * SECTOR];
    let read = disk.read(0, &mut bytes, Wait::Yes).expect("the live image");
    assert_eq!(read.waited(), bytes.len(), "{seed}");
    let (safe, begun) = (
        Tested::versions(&tested.safe),
        Tested::versions(&tested.begun),
    );
    for (at, found) in bytes.chunks_exact(SECTOR).enumerate() {
        let fits = (safe[at]..=begun[at]).any(|v| tested.sector(at, v) == found);
        assert!(
            fits,
            "{seed}: sector {at} of disk {} is of none of the writes {} to {}: {:02x?}",
            tested.number,
            safe[at],
            begun[at],
            &found[..16]
        );
    }
    let is_own = |taken: &&Arc<Taken>| taken.disk.number == tested.number;
    for taken in taken.iter().filter(is_own) {
        let there = disk.snapshot(&taken.name).is_some();
        assert!(there, "{seed}: {} was acknowledged", taken.name);
    }
    for snapshot in disk.snapshots() {
        let name = snapshot.name();
        let mut known = taken.iter().chain(unsure).filter(is_own);
        let taken = known
            .find(|taken| taken.name == *name)
            .unwrap_or_else(|| panic!("{seed}: {name} had been deleted"));
        let read = disk.read_snapshot(&snapshot, 0, &mut bytes, Wait::Yes);
        assert_eq!(read.expect("a snapshot").waited(), bytes.len(), "{seed}");
        taken.check(&bytes);
    }
}

/// A name is one group's, whoever else is given it at that moment.
#[test]
fn a_groups_name_goes_to_one() {
    let index = memory_dir();
    let store = open_files(&new_files(), index.path()).expect("a new store");
    let disks = ["a", "b"].map(|name| make(&store, name).expect("a disk"));
    let parsed = |name: &str| SnapshotName::parse(name.as_ref()).expect("a name");
    let take = |name: &str, disk: &Arc<Disk>| {
        let taken = store.take_group(parsed(name), Some(vec![disk.clone()]), OWNER);
        taken.map(drop)
    };
    let (mut renamed, mut random) = (0, Random(1));
    for number in 0..300 {
        let (old, new) = (format!("old{number}"), format!("new{number}"));
        take(&old, &disks[0]).expect("a group");
        let (start, take, store) = (Barrier::new(2), &take, &store);
        let outcomes = thread::scope(|scope| {
            let taking = scope.spawn(|| {
                start.wait();
                take(&new, &disks[1])
            });
            start.wait();
            // Taking is the longer way to a name.
            for _ in 0..random.below(40_000) {
                std::hint::spin_loop();
            }
            let renaming = store.rename_group(&old, parsed(&new));
            [taking.join().expect("no panic"), renaming]
        });
        renamed += u32::from(outcomes[1].is_ok());
        let got = outcomes.iter().filter(|outcome| outcome.is_ok()).count();
        assert_eq!(got, 1, "{number}: {outcomes:?}");
        for group in store.groups() {
            let deleted = store.delete_group(&group.record.name, &By::Store);
            deleted.expect("it is there");
        }
    }
    assert!(
        (1..300).contains(&renamed),
        "the two did not meet: {renamed}"
    );
    store.close().expect("closing");
}

/// Contract: what a write put behind a clone's end while the clone was made
/// is there: a last chunk is shared as a whole only if nothing follows.
#[test]
fn a_clone_of_a_tail_takes_nothing_from_who_writes_behind_it() {
    let index = memory_dir();
    let store = open_files(&new_files(), index.path()).expect("a new store");
    let from = make(&store, "from").expect("a disk");
    // Ends in its second chunk, as the clone does.
    let (chunk, end) = (CHUNK as u64, CHUNK as u64 + 5000);
    let written = vec![7; 3000];
    let mut random = Random(1);
    for number in 0..200 {
        from.write(end - 4096, &[number as u8; 4096], Wait::Yes)
            .expect("a write")
            .waited();
        let to = make(&store, &format!("to{number}")).expect("a disk");
        to.truncate(end, false).expect("its size");
        let (source, start) = (Source::Live(from.clone()), Barrier::new(2));
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                let mut at = chunk;
                while at < end {
                    at += to.copy_range(&source, at, at, end - at).expect("a copy");
                }
            });
            start.wait();
            for _ in 0..random.below(20_000) {
                std::hint::spin_loop();
            }
            to.write(end + 100, &written, Wait::Yes)
                .expect("a write")
                .waited();
            to.flush().expect("a flush");
        });
        let mut found = vec![0; written.len()];
        let read = to.read(end + 100, &mut found, Wait::Yes).expect("a read");
        assert_eq!(read.waited(), found.len(), "{number}");
        assert!(found == written, "{number}: what was written is gone");
        let mut copied = vec![0; 4096];
        to.read(end - 4096, &mut copied, Wait::Yes)
            .expect("a read")
            .waited();
        assert!(copied == [number as u8; 4096], "{number}: the clone");
    }
    store.close().expect("closing");
}

/// Who takes a snapshot waits until nobody is left in the head, and holds the
/// disk's metadata meanwhile: nobody waits for that in the head. Else this
/// hangs.
#[test]
fn times_are_set_while_snapshots_are_taken() {
    let home = memory_dir();
    let store = open_files(&new_files(), home.path()).expect("it opens");
    let disk = make(&store, "web").expect("a disk");
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !ended.load(Ordering::SeqCst) {
                    let change = AttributeChange {
                        modified: Some(SystemTime::now()),
                        ..AttributeChange::default()
                    };
                    disk.set_live_attributes(change).expect("it is set");
                }
            });
        }
        for number in 0..200u8 {
            // Else nothing is put over the head.
            let written = disk.write(0, &[number; SECTOR], Wait::Yes);
            written.expect("written").waited();
            let name = format!("s{number}");
            let parsed = SnapshotName::parse(name.as_ref()).expect("a name");
            disk.take_snapshot(parsed).expect("taken");
            disk.delete_snapshot(&name).expect("deleted");
        }
        ended.store(true, Ordering::SeqCst);
    });
    store.close().expect("closing");
}
