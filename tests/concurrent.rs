//! Goal: whatever happens at once, every snapshot is its disk at one
//! instant, nothing in it ever changes, and nothing that was acknowledged is
//! lost (invariants 2, 4, 8).
//!
//! Method: writers, readers, takers, deleters, cloners, gc and verify on one
//! store, each as fast as it can. Every sector says which write of it made
//! it what it is. What a snapshot may show of a sector is bounded by the
//! writes that had returned before it was asked for and those that had begun
//! when it was there. `SNAPDISK_CONCURRENT_WRITES` sets for how many writes
//! a writer goes on.

mod common;

use common::bytes::Random;
use common::library::{CHUNK, make};
use snapdisk::disk::{Disk, Source, Wait};
use snapdisk::error::{Error, Result};
use snapdisk::name::SnapshotName;
use snapdisk::progress::Quiet;
use snapdisk::store::{self, InitOptions, Options, Store};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;

const SECTOR: usize = 512;
/// Of a disk.
const SECTORS: usize = 2048;
const DISKS: usize = 2;
/// Of a disk; each has sectors of its own.
const WRITERS: usize = 2;
/// Snapshots of a disk beyond which takers leave it to the deleters.
const MOST: usize = 40;

/// What is written: odd versions are holes.
fn sector(disk: usize, sector: usize, version: u64) -> [u8; SECTOR] {
    let mut bytes = [0; SECTOR];
    if version.is_multiple_of(2) && version > 0 {
        for (at, part) in bytes.chunks_exact_mut(16).enumerate() {
            part[..8].copy_from_slice(&version.to_le_bytes());
            part[8] = disk as u8;
            part[9..13].copy_from_slice(&(sector as u32).to_le_bytes());
            part[13] = at as u8;
        }
    }
    bytes
}

/// A disk and the versions of its sectors.
struct Tested {
    number: usize,
    disk: Arc<Disk>,
    /// Of writes that have begun.
    begun: Vec<AtomicU64>,
    /// Of writes that have returned.
    done: Vec<AtomicU64>,
}

impl Tested {
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
    /// What it showed first.
    shown: OnceLock<blake3::Hash>,
}

impl Taken {
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
            let fits = (least..=most).any(|v| sector(self.disk.number, at, v) == found);
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

/// How often each thing was done.
type Counts = Mutex<BTreeMap<&'static str, u64>>;

struct World {
    store: Arc<Store>,
    disks: Vec<Arc<Tested>>,
    taken: Mutex<Vec<Arc<Taken>>>,
    counts: Counts,
    /// No more writers.
    over: AtomicBool,
    names: AtomicU64,
}

impl World {
    fn count(&self, what: &'static str) {
        *self
            .counts
            .lock()
            .expect("no panic with it")
            .entry(what)
            .or_default() += 1;
    }

    fn goes_on(&self) -> bool {
        !self.over.load(Ordering::SeqCst)
    }

    fn any(&self, random: &mut Random) -> Option<Arc<Taken>> {
        let taken = self.taken.lock().expect("no panic with it");
        let at = random.below(taken.len() as u64) as usize;
        taken.get(at).cloned()
    }

    fn write(&self, tested: &Tested, writer: usize, times: u64) {
        let mut random = Random((tested.number * 10 + writer) as u64);
        let own = SECTORS / WRITERS;
        for _ in 0..times {
            let len = 1 + random.below(64) as usize;
            let first = writer * own + random.below((own - len) as u64) as usize;
            let sectors = first..first + len;
            let punch = random.below(5) == 0;
            let versions: Vec<u64> = sectors
                .clone()
                .map(|at| {
                    let last = tested.begun[at].load(Ordering::SeqCst);
                    let next = last + 1 + u64::from(last.is_multiple_of(2) != punch);
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
                    .flat_map(|(at, version)| sector(tested.number, at, *version))
                    .collect();
                tested.disk.write(at, &bytes, Wait::Yes).map(drop)
            };
            done.unwrap_or_else(|error| panic!("a write: {error}"));
            for (at, version) in sectors.zip(versions) {
                tested.done[at].store(version, Ordering::SeqCst);
            }
            if random.below(50) == 0 {
                tested
                    .disk
                    .flush()
                    .unwrap_or_else(|error| panic!("a flush: {error}"));
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
        let name = format!("s{}", self.names.fetch_add(1, Ordering::SeqCst) + 10);
        let parsed = SnapshotName::parse(name.as_ref()).expect("a name");
        let least = Tested::versions(&tested.done);
        tested
            .disk
            .take_snapshot(parsed)
            .unwrap_or_else(|error| panic!("taking {name}: {error}"));
        let most = Tested::versions(&tested.begun);
        let taken = Arc::new(Taken {
            disk: tested.clone(),
            name,
            least,
            most,
            shown: OnceLock::new(),
        });
        self.taken.lock().expect("no panic with it").push(taken);
        self.count("take");
    }

    fn read(&self, random: &mut Random) {
        let Some(taken) = self.any(random) else {
            return;
        };
        match taken.read() {
            Ok(bytes) => taken.check(&bytes),
            // Deleted meanwhile.
            Err(Error::Missing { .. }) => {}
            Err(error) => panic!("reading {}: {error}", taken.name),
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
        taken
            .disk
            .disk
            .delete_snapshot(&taken.name)
            .unwrap_or_else(|error| panic!("deleting {}: {error}", taken.name));
        self.count("delete");
    }

    fn clone_one(&self, random: &mut Random) {
        let Some(taken) = self.any(random) else {
            return;
        };
        let name = format!("c{}", self.names.fetch_add(1, Ordering::SeqCst));
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
                read.unwrap_or_else(|error| panic!("reading clone {name}: {error}"));
                taken.check(&bytes);
                self.count("clone");
            }
            Ok(None) | Err(Error::Missing { .. }) => {}
            Err(error) => panic!("clone {name} of {}: {error}", taken.name),
        }
        let disk = self.store.disk(&name).expect("it was made");
        disk.drop_image()
            .unwrap_or_else(|error| panic!("dropping {name}: {error}"));
        for snapshot in disk.snapshots() {
            let deleted = disk.delete_snapshot(&snapshot.name());
            deleted.unwrap_or_else(|error| panic!("{name}@{}: {error}", snapshot.name()));
        }
        self.store
            .remove_disk(&name)
            .unwrap_or_else(|error| panic!("removing {name}: {error}"));
    }

    fn verify(&self) {
        let mut findings = Vec::new();
        self.store
            .verify(&Quiet, &mut |finding| findings.push(finding.to_string()))
            .unwrap_or_else(|error| panic!("verify: {error}"));
        assert!(findings.is_empty(), "verify finds {findings:?}");
        self.count("verify");
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
            for (at, found) in bytes.chunks_exact(SECTOR).enumerate() {
                let version = tested.done[at].load(Ordering::SeqCst);
                let is_right = sector(tested.number, at, version) == found;
                assert!(is_right, "sector {at} of disk {}", tested.number);
            }
        }
        for taken in self.taken.lock().expect("no panic with it").iter() {
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
    let disks = (0..DISKS).map(|number| {
        let disk = make(&store, &format!("d{number}")).expect("a disk");
        disk.truncate((SECTORS * SECTOR) as u64, false)
            .expect("its size");
        Arc::new(Tested {
            number,
            disk,
            begun: (0..SECTORS).map(|_| AtomicU64::new(0)).collect(),
            done: (0..SECTORS).map(|_| AtomicU64::new(0)).collect(),
        })
    });
    let disks: Vec<Arc<Tested>> = disks.collect();
    let world = World {
        store,
        disks,
        taken: Mutex::default(),
        counts: Counts::default(),
        over: AtomicBool::new(false),
        names: AtomicU64::new(0),
    };
    let times = std::env::var("SNAPDISK_CONCURRENT_WRITES").ok();
    let times = times.map_or(20_000, |text| text.parse().expect("a number of writes"));
    thread::scope(|scope| {
        let world = &world;
        let writers: Vec<_> = world
            .disks
            .iter()
            .flat_map(|tested| (0..WRITERS).map(move |writer| (tested, writer)))
            .map(|(tested, writer)| scope.spawn(move || world.write(tested, writer, times)))
            .collect();
        scope.spawn(move || go_on(world, 1, World::take));
        scope.spawn(move || go_on(world, 2, World::read));
        scope.spawn(move || go_on(world, 3, World::delete));
        scope.spawn(move || go_on(world, 4, World::clone_one));
        scope.spawn(move || {
            go_on(world, 5, |world, _| {
                let collected = world.store.gc(false, &Quiet);
                collected.unwrap_or_else(|error| panic!("gc: {error}"));
                world.count("gc");
            });
        });
        scope.spawn(move || go_on(world, 6, |world, _| world.verify()));
        for writer in writers {
            let ended = writer.join();
            world.over.store(
                world.over.load(Ordering::SeqCst) || ended.is_err(),
                Ordering::SeqCst,
            );
        }
        world.over.store(true, Ordering::SeqCst);
    });
    world.check_all();
    world.verify();
    println!("{:?}", world.counts.lock().expect("no panic with it"));
    // And after a restart.
    let World {
        store,
        disks,
        taken,
        ..
    } = world;
    store.close().expect("closing");
    let names: Vec<(usize, Vec<u64>)> = disks
        .iter()
        .map(|tested| (tested.number, Tested::versions(&tested.done)))
        .collect();
    let taken: Vec<Arc<Taken>> = taken.into_inner().expect("no panic with it");
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
    for (number, versions) in names {
        let disk = store.disk(&format!("d{number}")).expect("it is there");
        let mut bytes = vec![0xaa; SECTORS * SECTOR];
        disk.read(0, &mut bytes, Wait::Yes).expect("the live image");
        for (at, found) in bytes.chunks_exact(SECTOR).enumerate() {
            assert!(
                sector(number, at, versions[at]) == found,
                "sector {at} of disk {number}"
            );
        }
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
    let mut findings = Vec::new();
    let verified = store.verify(&Quiet, &mut |finding| findings.push(finding.to_string()));
    verified.expect("verify");
    assert!(findings.is_empty(), "{findings:?}");
    store.close().expect("closing");
}
