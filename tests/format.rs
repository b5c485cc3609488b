//! Goal: what lies in the store is what the format's description says, and
//! not more of it than needed.
//!
//! Method: work through a real mount; then a second reader of the format
//! (`common/reader.rs`), and for the index sled itself, look at the files.
//! Cost is counted in records and bytes, never timed.

mod common;

use common::bytes::{Random, copy_all, open, read_direct};
use common::reader::{DATA, Id, PAGE, ROOT, Reader};
use common::{Need, TestStore, assert_same, skipped, snapdisk, state, take, wait_ready};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const CHUNK: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

/// Records of each kind, and their payload in bytes.
fn counts(reader: &Reader) -> BTreeMap<u8, (u64, u64)> {
    let mut counts: BTreeMap<u8, (u64, u64)> = BTreeMap::new();
    for record in reader.records() {
        let count = counts.entry(record.kind).or_default();
        *count = (count.0 + 1, count.1 + record.stored);
    }
    counts
}

fn count(counts: &BTreeMap<u8, (u64, u64)>, kind: u8) -> u64 {
    counts.get(&kind).map_or(0, |(records, _)| *records)
}

/// Bytes of all packs.
fn pack_bytes(reader: &Reader) -> usize {
    reader.packs().iter().map(|(_, bytes)| bytes.len()).sum()
}

/// Bytes that the data of a disk's head takes in the store.
fn head_bytes(store: &Path, reader: &Reader, disk: &str) -> u64 {
    let manifest = reader.disk(disk);
    let head = manifest["image"]["head"].as_str().expect("a head");
    let head = head.replace('-', "");
    let files = fs::read_dir(store.join("layers")).expect("layers/");
    files
        .map(|file| file.expect("an entry of layers/"))
        .filter(|file| {
            let name = file.file_name().into_string().expect("text");
            name.starts_with(&head) && !name.ends_with(".log")
        })
        .map(|file| file.metadata().expect("a file of the head").blocks() * 512)
        .sum()
}

/// Bytes that the data of all layers takes in the store.
fn layer_bytes(store: &Path) -> u64 {
    let files = fs::read_dir(store.join("layers")).expect("layers/");
    files
        .map(|file| file.expect("an entry of layers/"))
        .filter(|file| file.path().extension().is_some_and(|end| end != "log"))
        .map(|file| file.metadata().expect("a layer's data").blocks() * 512)
        .sum()
}

/// A disk of zeros.
fn make_disk(point: &Path, name: &str, size: u64) -> PathBuf {
    let disk = point.join(name);
    fs::create_dir(&disk).expect("a disk");
    let image = fs::File::create_new(disk.join("disk.img")).expect("disk.img");
    image.set_len(size).expect("its size");
    disk
}

/// A snapshot that is sealed.
fn take_and_wait(disk: &Path, name: &str) -> PathBuf {
    let snapshot = take(disk, name);
    wait_ready(&snapshot);
    snapshot
}

/// Every chunk that sled's values have, and in which pack. Read as
/// `snapdisk::index` says: one value a pack, its directory, in pieces that
/// are numbered in the last two bytes of their keys.
fn chunks_in_sled(index: &Path) -> BTreeMap<Id, String> {
    let db: sled::Db<16> = sled::Config::new()
        .path(index)
        .open()
        .expect("sled opens the index");
    let mut values: BTreeMap<String, Vec<Vec<u8>>> = BTreeMap::new();
    for entry in db.iter() {
        let (key, piece) = entry.expect("an entry of sled's");
        let hex: Vec<String> = key.iter().map(|byte| format!("{byte:02x}")).collect();
        let pack = format!("{}-{}", hex[..8].concat(), hex[8..24].concat());
        let pieces = values.entry(pack).or_default();
        assert_eq!(key[24..], (pieces.len() as u16).to_be_bytes());
        pieces.push(piece.to_vec());
    }
    let mut chunks = BTreeMap::new();
    for (pack, pieces) in values {
        let value = pieces.concat();
        assert_eq!(&value[..4], b"SDX1", "value of {pack}");
        for entry in value[28..].chunks_exact(48) {
            chunks.insert(entry[..32].try_into().expect("32 bytes"), pack.clone());
        }
    }
    chunks
}

/// "After a seal every live chunk id resolves through sled": roots, pages
/// and data of every snapshot, with sled alone, in a pack that has them.
#[test]
fn every_live_chunk_resolves_through_sled_after_a_seal() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let disk = make_disk(mount.point(), "web", 64 * MIB);
    let image = open(&disk.join("disk.img"));
    let mut random = Random(1);
    for round in 0..4 {
        for _ in 0..40 {
            let at = random.below(64 * MIB - CHUNK);
            image
                .write_all_at(&random.bytes(9000), at)
                .expect("a write");
        }
        take_and_wait(&disk, &format!("s{round}"));
    }
    drop(image);
    mount.unmount();

    let reader = Reader::open(&store.path());
    let places: BTreeSet<(Id, String)> = (reader.records().into_iter())
        .map(|record| (record.id, record.pack))
        .collect();
    let sled = chunks_in_sled(&store.path().join("index"));
    let mut live = 0;
    for round in 0..4 {
        let root = reader.root("web", &format!("s{round}")).expect("sealed");
        for (kind, id) in reader.reached(root) {
            let pack = sled
                .get(&id)
                .unwrap_or_else(|| panic!("kind {kind} {id:x?} is not in sled"));
            assert!(places.contains(&(id, pack.clone())), "not in {pack}");
            live += 1;
        }
    }
    assert!(live > 4 * 40, "{live} chunks looked up");
}

/// The contract's "only chunks that nothing else refers to are freed, later
/// snapshots stay whole", with the letters that it is told with.
#[test]
fn deleting_the_middle_snapshot_frees_its_own_block_and_nothing_else() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let disk = make_disk(mount.point(), "web", 4 * CHUNK);
    let image = open(&disk.join("disk.img"));
    // Each letter a chunk that is like no other.
    let mut random = Random(2);
    let names = ["A", "B", "C", "D", "B1", "C1", "B2"];
    let letters: BTreeMap<&str, Vec<u8>> = (names.into_iter())
        .map(|name| (name, random.bytes(CHUNK as usize)))
        .collect();
    let write = |slot: u64, letter: &str| {
        image
            .write_all_at(&letters[letter], slot * CHUNK)
            .expect("a write");
    };
    for (slot, letter) in (0..).zip(["A", "B", "C", "D"]) {
        write(slot, letter);
    }
    take_and_wait(&disk, "s1");
    write(1, "B1");
    write(2, "C1");
    take_and_wait(&disk, "s2");
    write(1, "B2");
    take_and_wait(&disk, "s3");
    drop(image);

    let reader = Reader::open(&store.path());
    let kept = |name: &str| {
        let records = reader.records();
        records.iter().any(|record| record.plain == letters[name])
    };
    for name in names {
        assert!(kept(name), "{name} is in a pack before");
    }
    fs::remove_dir(disk.join(".snapshots/s2")).expect("rmdir of s2");
    snapdisk(&["gc", &mount.point().display().to_string()]);
    mount.unmount();

    assert!(!kept("B1"), "B1's payload is in a pack after gc");
    for name in ["A", "B", "C", "D", "C1", "B2"] {
        assert!(kept(name), "{name} is gone");
    }
    let whole = |names: [&str; 4]| names.map(|name| &letters[name][..]).concat();
    assert!(reader.content("web", "s1") == whole(["A", "B", "C", "D"]));
    assert!(reader.content("web", "s3") == whole(["A", "B2", "C1", "D"]));
    let mount = store.mount();
    let s3 = fs::read(mount.path("web/.snapshots/s3/disk.img")).expect("s3");
    assert!(s3 == whole(["A", "B2", "C1", "D"]), "s3 through the mount");
}

/// Packs go on across seals: 512 small ones are not 512 packs.
#[test]
fn many_small_seals_share_packs() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let disk = make_disk(mount.point(), "web", 16 * MIB);
    let image = open(&disk.join("disk.img"));
    // 256 snapshots are a disk's quota one day: two disks, sealed in turn.
    let other = make_disk(mount.point(), "db", 16 * MIB);
    let other_image = open(&other.join("disk.img"));
    let mut random = Random(3);
    for round in 0..256 {
        for (disk, image) in [(&disk, &image), (&other, &other_image)] {
            let block = random.bytes(4096);
            image
                .write_all_at(&block, random.below(4096) * 4096)
                .expect("a write");
            fs::create_dir(disk.join(format!(".snapshots/s{round}"))).expect("a snapshot");
        }
        // Waits for its seal now and then, so that there are many seals.
        if round % 4 == 0 {
            wait_ready(&disk.join(format!(".snapshots/s{round}")));
        }
    }
    for disk in [&disk, &other] {
        wait_ready(&disk.join(".snapshots/s255"));
    }
    let reader = Reader::open(&store.path());
    let counts = counts(&reader);
    assert!(count(&counts, DATA) >= 500, "{counts:?}");
    assert!(count(&counts, ROOT) >= 500, "{counts:?}");
    let packs = reader.packs().len();
    assert!(packs <= 8, "512 small seals made {packs} packs");
}

/// A snapshot writes no clean chunk: one changed block costs one chunk and
/// one page a level, an unchanged disk nothing.
#[test]
fn a_snapshot_stores_only_what_changed() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    // 1024 chunks: two levels of the map.
    let disk = make_disk(mount.point(), "web", 64 * MIB);
    let image = open(&disk.join("disk.img"));
    let mut random = Random(4);
    image
        .write_all_at(&random.bytes(64 * MIB as usize), 0)
        .expect("a write");
    take_and_wait(&disk, "full");
    let reader = Reader::open(&store.path());
    let before = counts(&reader);
    assert_eq!(count(&before, DATA), 1024);
    assert_eq!(count(&before, PAGE), 8 + 1);

    image
        .write_all_at(&random.bytes(4096), 500 * CHUNK + 8192)
        .expect("a write");
    take_and_wait(&disk, "one-block");
    let after = counts(&reader);
    for (kind, more) in [(DATA, 1), (PAGE, 2), (ROOT, 1)] {
        assert_eq!(
            count(&after, kind),
            count(&before, kind) + more,
            "kind {kind}"
        );
    }
    let payload = |counts: &BTreeMap<u8, (u64, u64)>| counts.values().map(|(_, b)| b).sum::<u64>();
    let more = payload(&after) - payload(&before);
    assert!(more < CHUNK + 20_000, "one block cost {more} bytes");

    take_and_wait(&disk, "unchanged");
    // The same bytes again are no change either.
    let mut block = vec![0; 4096];
    image.read_exact_at(&mut block, 7 * CHUNK).expect("a read");
    image.write_all_at(&block, 7 * CHUNK).expect("a write");
    take_and_wait(&disk, "rewritten");
    assert_eq!(
        counts(&reader),
        after,
        "records after two snapshots of no change"
    );
    assert_eq!(
        reader.root("web", "unchanged"),
        reader.root("web", "rewritten")
    );
}

/// 1 GiB with 96 MiB of data here and there.
fn fill(disk: &Path, seed: u64) {
    let image = open(&disk.join("disk.img"));
    let mut random = Random(seed);
    for part in 0..96 {
        let data = random.bytes(MIB as usize);
        image.write_all_at(&data, part * 10 * MIB).expect("a write");
    }
    image.sync_all().expect("an fsync");
}

/// `copy_file_range` of a whole snapshot into a new disk.
fn clone(source: &Path, target: &Path) {
    let source = fs::File::open(source.join("disk.img")).expect("the source");
    let size = source.metadata().expect("its size").len();
    let image = fs::File::create_new(target.join("disk.img")).expect("disk.img");
    assert_eq!(copy_all(&source, 0, &image, 0, size).expect("a copy"), size);
}

/// Panics unless the clone reads like the snapshot.
fn assert_clone(snapshot: &Path, target: &Path) {
    let read = |of: &Path| read_direct(&of.join("disk.img")).expect("its bytes");
    assert_same(&read(target), &read(snapshot), "the clone");
}

/// A clone is a metadata operation: of a sealed snapshot of 1 GiB it writes
/// not a byte of payload, neither when it is made nor when it is sealed.
#[test]
fn a_clone_of_a_sealed_snapshot_writes_no_payload() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let disk = make_disk(mount.point(), "web", 1024 * MIB);
    fill(&disk, 5);
    let snapshot = take_and_wait(&disk, "s1");
    let reader = Reader::open(&store.path());
    let (packs, layers) = (pack_bytes(&reader), layer_bytes(&store.path()));

    let target = mount.path("copy");
    fs::create_dir(&target).expect("a disk");
    clone(&snapshot, &target);
    assert_eq!(pack_bytes(&reader), packs, "bytes of packs");
    assert_eq!(layer_bytes(&store.path()), layers, "bytes of layers' data");
    assert_clone(&snapshot, &target);

    let before = counts(&reader);
    take_and_wait(&target, "c1");
    assert_eq!(counts(&reader), before, "the clone's seal stored something");
    assert_eq!(reader.root("web", "s1"), reader.root("copy", "c1"));
}

/// The same of one that is still being sealed: the clone's layer stays
/// empty, and in the end every chunk is in the packs once.
#[test]
fn a_clone_of_an_unsealed_snapshot_writes_no_payload() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let reader = Reader::open(&store.path());
    // A seal may be faster than the copy, though hardly every time.
    let made = (0..5).find_map(|round| {
        let name = format!("web{round}");
        let disk = make_disk(mount.point(), &name, 1024 * MIB);
        fill(&disk, 6 + round);
        let snapshot = disk.join(".snapshots/s1");
        fs::create_dir(&snapshot).expect("a snapshot");
        let copy = format!("copy{round}");
        let target = mount.path(&copy);
        fs::create_dir(&target).expect("a disk");
        clone(&snapshot, &target);
        let sealing = state(&snapshot) == "sealing";
        assert_eq!(
            head_bytes(&store.path(), &reader, &copy),
            0,
            "data of the clone's head"
        );
        sealing.then_some((name, copy, snapshot, target))
    });
    let (name, copy, snapshot, target) = made.expect("a copy faster than the seal");
    assert_clone(&snapshot, &target);
    take_and_wait(&target, "c1");
    wait_ready(&snapshot);
    let root = reader.root(&name, "s1").expect("sealed");
    assert_eq!(Some(root), reader.root(&copy, "c1"));
    let mut seen = BTreeSet::new();
    for record in reader.records() {
        assert!(seen.insert(record.id), "a chunk is stored twice");
    }
    let (_, chunks) = reader.map(root);
    assert_eq!(chunks.len() as u64, 96 * MIB / CHUNK);
}
