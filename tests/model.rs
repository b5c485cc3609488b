//! Goal: whatever a user does, in whatever order, disks and snapshots hold
//! just what a plain vector of bytes would.
//!
//! Method: random histories of operations on a store and on vectors beside
//! it; every read is compared, everything is compared at the end of a
//! history, after a reopening, and `verify` finds nothing. The seed of a
//! failing history is in the panic's message; `SNAPDISK_MODEL_SEED` repeats
//! it, `SNAPDISK_MODEL_HISTORIES` says how many there are.

use snapdisk::disk::{Disk, Seek, Source, Wait};
use snapdisk::manifest::Owner;
use snapdisk::name::{DiskName, SnapshotName};
use snapdisk::progress::Quiet;
use snapdisk::store::{self, InitOptions, Options, Store};
use std::collections::BTreeMap;
use std::sync::Arc;

const OWNER: Owner = Owner {
    uid: 0,
    gid: 0,
    mode: 0o644,
};
const CHUNK: u64 = 16 << 10;
const MAX: u64 = 40 * CHUNK;

/// A small generator with a printable seed (Steele, Lea, Flood 2014:
/// SplitMix64).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }
    /// Often on an edge of a sector, block or chunk, else anywhere.
    fn position(&mut self, limit: u64) -> u64 {
        let unit = [1, 512, 4096, CHUNK][self.below(4) as usize];
        (self.below(limit + unit) / unit * unit).min(limit)
    }
    fn bytes(&mut self, len: u64) -> Vec<u8> {
        let byte = self.next();
        match self.below(4) {
            0 => vec![0; len as usize],
            1 => vec![byte as u8; len as usize],
            _ => (0..len)
                .map(|i| (byte.wrapping_mul(i | 1) >> 24) as u8)
                .collect(),
        }
    }
}

#[derive(Clone, Default)]
struct Reference {
    live: Option<Vec<u8>>,
    snapshots: BTreeMap<String, Vec<u8>>,
}

struct World {
    dir: tempfile::TempDir,
    store: Option<Arc<Store>>,
    disks: BTreeMap<String, Reference>,
    counter: u64,
    counts: BTreeMap<&'static str, u64>,
}

fn options() -> Options {
    Options {
        cache_bytes: 1 << 20,
        pack_bytes: 256 << 10,
    }
}

fn resize(bytes: &mut Vec<u8>, size: u64) {
    bytes.resize(size as usize, 0);
}

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let root = dir.path().join("store");
        store::init(
            &root,
            &InitOptions {
                chunk_size: CHUNK as u32,
            },
        )
        .expect("a new store");
        let mut world = World {
            dir,
            store: None,
            disks: BTreeMap::new(),
            counter: 0,
            counts: BTreeMap::new(),
        };
        world.open();
        world
    }

    fn open(&mut self) {
        let root = self.dir.path().join("store");
        self.store = Some(Store::open(&root, options(), &Quiet).expect("the store opens"));
    }

    fn store(&self) -> &Arc<Store> {
        self.store.as_ref().expect("the store is open")
    }

    fn disk(&self, name: &str) -> Arc<Disk> {
        self.store().disk(name).expect("the disk is there")
    }

    fn name(&mut self, prefix: &str) -> String {
        self.counter += 1;
        format!("{prefix}{}", self.counter)
    }

    fn pick(&self, random: &mut Random) -> Option<String> {
        let names: Vec<&String> = self.disks.keys().collect();
        (!names.is_empty()).then(|| names[random.below(names.len() as u64) as usize].clone())
    }

    fn add_disk(&mut self) -> String {
        let name = self.name("disk");
        let disk = self
            .store()
            .create_disk(DiskName::parse(name.as_ref()).expect("a name"), OWNER)
            .expect("a new disk");
        disk.create_image(OWNER).expect("a new image");
        self.disks.insert(
            name.clone(),
            Reference {
                live: Some(Vec::new()),
                snapshots: BTreeMap::new(),
            },
        );
        name
    }

    fn read(disk: &Disk, offset: u64, len: u64) -> Vec<u8> {
        let mut buf = vec![0xaa; len as usize];
        let read = disk
            .read(offset, &mut buf, Wait::Yes)
            .expect("a read")
            .waited();
        buf.truncate(read);
        buf
    }

    fn step(&mut self, random: &mut Random) -> &'static str {
        if self.disks.len() < 2 || (self.disks.len() < 5 && random.chance(40)) {
            self.add_disk();
            return "create";
        }
        let name = self.pick(random).expect("there are disks");
        let disk = self.disk(&name);
        let mut reference = self.disks[&name].clone();
        let live = reference.live.as_mut().expect("every disk has an image");
        let op = match random.below(22) {
            0..=6 => {
                let offset = random.position(MAX);
                let len = random.position(3 * CHUNK).min(MAX - offset);
                let data = random.bytes(len);
                disk.write(offset, &data, Wait::Yes)
                    .expect("a write")
                    .waited();
                if len > 0 {
                    let end = (offset + len) as usize;
                    if live.len() < end {
                        live.resize(end, 0);
                    }
                    live[offset as usize..end].copy_from_slice(&data);
                }
                "write"
            }
            7 => {
                let offset = random.position(MAX);
                let len = random.position(8 * CHUNK).min(MAX - offset);
                let extend = random.chance(3);
                disk.punch(offset, len, extend, Wait::Yes)
                    .expect("a punch")
                    .waited();
                let end = (offset + len) as usize;
                if extend && live.len() < end {
                    live.resize(end, 0);
                }
                let (from, to) = ((offset as usize).min(live.len()), end.min(live.len()));
                live[from..to].fill(0);
                "punch"
            }
            8 | 9 => {
                let size = random.position(MAX);
                disk.truncate(size, false).expect("a truncate");
                resize(live, size);
                "truncate"
            }
            10 | 11 => {
                let snapshot = self.name("snap");
                disk.take_snapshot(SnapshotName::parse(snapshot.as_ref()).expect("a name"))
                    .expect("a snapshot");
                reference.snapshots.insert(snapshot, live.clone());
                "snapshot"
            }
            12 => {
                let Some(victim) = reference.snapshots.keys().next().cloned() else {
                    return "none";
                };
                disk.delete_snapshot(&victim).expect("a deletion");
                reference.snapshots.remove(&victim);
                "delete"
            }
            13 => {
                let names: Vec<String> = reference.snapshots.keys().cloned().collect();
                if names.is_empty() {
                    return "none";
                }
                let to = &names[random.below(names.len() as u64) as usize];
                let discard = random.chance(2);
                let kept = disk.rollback(to, discard).expect("a rollback");
                if let Some(kept) = kept {
                    reference.snapshots.insert(kept, live.clone());
                }
                *live = reference.snapshots[to].clone();
                "rollback"
            }
            14..=16 => {
                // A copy from some disk or snapshot, aligned or not.
                let from_name = self.pick(random).expect("there are disks");
                let from_disk = self.disk(&from_name);
                let from_reference = self.disks[&from_name].clone();
                let names: Vec<String> = from_reference.snapshots.keys().cloned().collect();
                let (source, bytes) = if names.is_empty() || random.chance(2) {
                    let bytes = from_reference.live.expect("every disk has an image");
                    (Source::Live(from_disk), bytes)
                } else {
                    let snapshot = &names[random.below(names.len() as u64) as usize];
                    let found = from_disk.snapshot(snapshot).expect("the snapshot is there");
                    let bytes = from_reference.snapshots[snapshot].clone();
                    (Source::Snapshot(from_disk, found), bytes)
                };
                let (from, to) = match random.below(3) {
                    0 => (0, 0),
                    _ => (random.position(MAX), random.position(MAX)),
                };
                let len = random.position(MAX).min(MAX - to).min(MAX - from);
                // The source does not grow under a copy of what it holds.
                let len = len.min((bytes.len() as u64).saturating_sub(from));
                let same = from_name == name && matches!(source, Source::Live(_));
                if same && from < to + len && to < from + len {
                    return "none";
                }
                let mut done = 0;
                while done < len {
                    let copied = disk
                        .copy_range(&source, from + done, to + done, len - done)
                        .expect("a copy");
                    if copied == 0 {
                        break;
                    }
                    done += copied;
                }
                assert_eq!(done, len, "a copy ends at the source's end only");
                let end = (to + done) as usize;
                if done > 0 {
                    if live.len() < end {
                        live.resize(end, 0);
                    }
                    live[to as usize..end]
                        .copy_from_slice(&bytes[from as usize..(from + done) as usize]);
                }
                "copy"
            }
            17 => {
                disk.flush().expect("a flush");
                "flush"
            }
            18 => {
                let offset = random.position(MAX);
                let len = random.position(MAX);
                let read = Self::read(&disk, offset, len);
                let from = (offset as usize).min(live.len());
                let to = ((offset + len) as usize).min(live.len());
                assert!(read == live[from..to], "a read differs");
                "read"
            }
            19 => {
                self.store().gc(false, &Quiet).expect("a gc");
                "gc"
            }
            20 => {
                check_seek(&disk, live, random.position(MAX));
                "seek"
            }
            _ => {
                if random.chance(3) {
                    self.store
                        .take()
                        .expect("it is open")
                        .close()
                        .expect("closing");
                    self.open();
                    "reopen"
                } else {
                    let to = self.name("moved");
                    let parsed = DiskName::parse(to.as_ref()).expect("a name");
                    self.store().rename_disk(&name, parsed).expect("a rename");
                    self.disks.remove(&name);
                    self.disks.insert(to, reference);
                    return "rename";
                }
            }
        };
        self.disks.insert(name, reference);
        op
    }

    fn check(&self) {
        for (name, reference) in &self.disks {
            let disk = self.disk(name);
            let live = reference.live.as_ref().expect("every disk has an image");
            let attributes = disk.live().expect("a live image");
            assert_eq!(attributes.size, live.len() as u64, "size of {name}");
            compare(
                &format!("the live image of {name}"),
                live,
                &Self::read(&disk, 0, 2 * MAX),
            );
            let names: Vec<String> = disk.snapshots().iter().map(|s| s.name()).collect();
            let mut expected: Vec<String> = reference.snapshots.keys().cloned().collect();
            let mut found = names.clone();
            expected.sort();
            found.sort();
            assert_eq!(found, expected, "snapshots of {name}");
            for (snapshot, bytes) in &reference.snapshots {
                let found = disk.snapshot(snapshot).expect("the snapshot is there");
                let mut buf = vec![0xaa; (2 * MAX) as usize];
                let read = disk
                    .read_snapshot(&found, 0, &mut buf, Wait::Yes)
                    .expect("a read of a snapshot")
                    .waited();
                compare(&format!("{name}@{snapshot}"), bytes, &buf[..read]);
            }
        }
        let mut findings = Vec::new();
        self.store()
            .verify(&Quiet, &mut |finding| findings.push(finding.to_string()))
            .expect("verify runs");
        assert!(findings.is_empty(), "verify finds {findings:?}");
    }
}

fn compare(what: &str, expected: &[u8], found: &[u8]) {
    assert_eq!(expected.len(), found.len(), "length of {what}");
    if let Some(at) = (0..expected.len()).find(|at| expected[*at] != found[*at]) {
        panic!(
            "{what} differs at {at} (chunk {}, block {}): {:#x}, expected {:#x}",
            at as u64 / CHUNK,
            at / 4096,
            found[at],
            expected[at]
        );
    }
}

/// Holes are zeros, and data that is not zero is never in a hole.
fn check_seek(disk: &Disk, live: &[u8], offset: u64) {
    let found = disk
        .seek(offset, Seek::Data, Wait::Yes)
        .expect("a seek")
        .waited();
    if offset >= live.len() as u64 {
        assert_eq!(found, None);
        return;
    }
    let data = found.unwrap_or(live.len() as u64);
    assert!(data >= offset);
    assert!(
        live[offset as usize..data as usize].iter().all(|b| *b == 0),
        "data in a hole"
    );
}

fn run(seed: u64, steps: u64) -> BTreeMap<&'static str, u64> {
    let mut random = Random(seed);
    let mut world = World::new();
    for _ in 0..steps {
        let op = world.step(&mut random);
        *world.counts.entry(op).or_default() += 1;
    }
    world.check();
    world
        .store
        .take()
        .expect("it is open")
        .close()
        .expect("closing");
    world.open();
    world.check();
    world
        .store
        .take()
        .expect("it is open")
        .close()
        .expect("closing");
    world.counts
}

/// Contract and invariants 2 and 4: a live image, every snapshot and every
/// clone read back byte for byte after any history, and after a reopening.
#[test]
fn random_histories_agree_with_plain_vectors() {
    let from_env = |name: &str| std::env::var(name).ok().and_then(|v| v.parse::<u64>().ok());
    if let Some(seed) = from_env("SNAPDISK_MODEL_SEED") {
        run(seed, 200);
        return;
    }
    let histories = from_env("SNAPDISK_MODEL_HISTORIES").unwrap_or(60);
    let mut counts: BTreeMap<&str, u64> = BTreeMap::new();
    for seed in 0..histories {
        let outcome = std::panic::catch_unwind(|| run(seed, 200));
        match outcome {
            Ok(counted) => {
                for (op, count) in counted {
                    *counts.entry(op).or_default() += count;
                }
            }
            Err(cause) => {
                let text = cause
                    .downcast_ref::<String>()
                    .cloned()
                    .or_else(|| cause.downcast_ref::<&str>().map(|s| s.to_string()))
                    .unwrap_or_default();
                panic!("SNAPDISK_MODEL_SEED={seed}: {text}");
            }
        }
    }
    println!("{histories} histories: {counts:?}");
}
