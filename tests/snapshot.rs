//! Goal: snapshots are the disk at one instant, whatever goes on meanwhile,
//! and stay so through sealing, crashes, remounts and a lost index.
//!
//! Method: real mounts and real writers. Every sector that a writer writes
//! says who wrote it and when, so that a snapshot can be held against what
//! had returned before it and what began after it.

mod common;

use common::bytes::{Random, open, open_with};
use common::*;
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

const SECTOR: usize = 512;
const MIB: u64 = 1 << 20;
/// Bytes that each writer has for itself.
const REGION: u64 = 2 * MIB;

/// One write: its number, and the sectors it covers in its writer's region.
type Write = (u64, std::ops::Range<u64>);

/// A writer's count of what it has begun and what has returned.
#[derive(Default)]
struct Writer {
    begun: AtomicU64,
    returned: AtomicU64,
    log: Mutex<Vec<Write>>,
}

impl Writer {
    /// Writes runs of sectors in its region, each filled with the write's
    /// number, until told to stop.
    fn run(&self, image: &Path, index: u64, stop: &AtomicBool) {
        let image = open_with(image, libc::O_DIRECT).expect("the image");
        let mut random = Random(index);
        for number in 1.. {
            if stop.load(Ordering::SeqCst) {
                return;
            }
            let sectors = REGION / SECTOR as u64;
            let first = random.below(sectors - 16);
            let range = first..first + 1 + random.below(16);
            let tag = (index << 48 | number).to_le_bytes();
            let len = (range.end - range.start) as usize * SECTOR;
            let bytes = bytes::Aligned::from(&tag.repeat(len / 8));
            self.log.lock().expect("the log").push((number, range));
            self.begun.store(number, Ordering::SeqCst);
            let at = index * REGION + first * SECTOR as u64;
            image.write_all_at(&bytes, at).expect("a write");
            self.returned.store(number, Ordering::SeqCst);
        }
    }

    /// Panics unless this writer's region of a snapshot has every write up
    /// to `before`, none after `after`, and every sector whole.
    fn check(&self, index: u64, region: &[u8], before: u64, after: u64) {
        let log = self.log.lock().expect("the log").clone();
        for (at, sector) in region.chunks_exact(SECTOR).enumerate() {
            let tag = &sector[..8];
            assert!(
                sector.chunks_exact(8).all(|word| word == tag),
                "writer {index}: sector {at} is torn"
            );
            let found = u64::from_le_bytes(tag.try_into().expect("8 bytes")) & 0xffff_ffff;
            let covers = |write: &&Write| write.1.contains(&(at as u64));
            let least = log.iter().filter(covers).filter(|w| w.0 <= before);
            let least = least.map(|write| write.0).max().unwrap_or(0);
            assert!(
                (least..=after).contains(&found),
                "writer {index}: sector {at} is of write {found}, expected {least} to {after}"
            );
        }
    }
}

/// Contract and invariant 2: a snapshot holds every write that had returned
/// before `mkdir` and none that began after it returned; each sector is old
/// or new; nothing written later ever shows in it, sealed or remounted.
#[test]
fn a_snapshot_under_load_is_one_instant() {
    if skipped(&[Need::Mount]) {
        return;
    }
    const WRITERS: u64 = 4;
    let store = TestStore::new();
    let mut mount = store.mount();
    let disk = disk_with(mount.point(), "web", b"");
    let image = disk.join("disk.img");
    open(&image).set_len(WRITERS * REGION).expect("its size");
    let (writers, stop) = (
        [const { 0 }; 4].map(|_: u64| Writer::default()),
        AtomicBool::new(false),
    );
    let mut taken: Vec<(PathBuf, Vec<u8>)> = Vec::new();
    thread::scope(|scope| {
        for (index, writer) in (0..).zip(&writers) {
            let (image, stop) = (&image, &stop);
            scope.spawn(move || writer.run(image, index, stop));
        }
        for round in 0..6 {
            wait_until("writers get on", || {
                let done =
                    |writer: &Writer| writer.returned.load(Ordering::SeqCst) > 50 * (round + 1);
                writers.iter().all(done)
            });
            let before = writers
                .each_ref()
                .map(|w| w.returned.load(Ordering::SeqCst));
            let snapshot = take(&disk, &format!("s{round}"));
            let after = writers.each_ref().map(|w| w.begun.load(Ordering::SeqCst));
            let bytes = fs::read(snapshot.join("disk.img")).expect("the snapshot");
            for (index, writer) in writers.iter().enumerate() {
                let region = &bytes[index * REGION as usize..][..REGION as usize];
                writer.check(index as u64, region, before[index], after[index]);
            }
            taken.push((snapshot, bytes));
        }
        stop.store(true, Ordering::SeqCst);
    });
    for (snapshot, _) in &taken {
        wait_ready(snapshot);
    }
    let same = |when: &str| {
        for (snapshot, bytes) in &taken {
            let found = bytes::read_direct(&snapshot.join("disk.img")).expect("it can be read");
            assert_same(&found, bytes, &format!("{snapshot:?} {when}"));
        }
    };
    same("once sealed");
    mount.remount();
    same("after a remount");
    assert_sound(mount.point());
}

/// Contract: several in a second, of a disk of 0 bytes, ENOENT without an
/// image; readable at once, `sealing` with its progress and then `ready`;
/// root hashes are equal if and only if the disks are.
#[test]
fn snapshots_are_there_at_once() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let empty = disk_with(mount.point(), "empty", b"");
    for name in ["one", "two"] {
        let snapshot = take(&empty, name);
        let size = fs::metadata(snapshot.join("disk.img")).expect("it is there");
        assert_eq!(size.len(), 0);
    }
    let none = mount.path("none");
    fs::create_dir(&none).expect("a disk");
    let refused = fs::create_dir(none.join(".snapshots/one"));
    assert_errno(refused, libc::ENOENT, "a snapshot without an image");

    let bytes = noise(1, 24 << 20);
    let web = disk_with(mount.point(), "web", &bytes);
    let image = open(&web.join("disk.img"));
    let mut taken = Vec::new();
    for round in 0..20u8 {
        image.write_all_at(&[round; 4096], 0).expect("a write");
        let snapshot = take(&web, &format!("s{round}"));
        let mut first = [0; 4096];
        let opened = File::open(snapshot.join("disk.img")).expect("it is there");
        opened.read_exact_at(&mut first, 0).expect("it can be read");
        assert_eq!(first, [round; 4096], "read at once");
        let info = info(&snapshot);
        let progress = info["progress"].as_integer().expect("a number");
        let sealing = info["state"].as_str() == Some("sealing") && (0..100).contains(&progress);
        let ready = info["state"].as_str() == Some("ready") && progress == 100;
        assert!(sealing || ready, "{info}");
        taken.push(snapshot);
    }
    image.write_all_at(&[3; 4096], 0).expect("a write");
    let again = take(&web, "again");
    taken
        .iter()
        .chain([&again])
        .for_each(|snapshot| wait_ready(snapshot));
    let root = |snapshot: &PathBuf| info(snapshot)["root"].as_str().map(str::to_owned);
    assert_eq!(root(&again), root(&taken[3]), "equal disks");
    assert_ne!(root(&again), root(&taken[4]), "different disks");
    let mut expected = bytes;
    expected[..4096].fill(7);
    let found = fs::read(taken[7].join("disk.img")).expect("it can be read");
    assert_same(&found, &expected, "the snapshot of round 7");
}

/// Contract: a disk that is loop-mounted and busy can be snapshotted; what
/// its filesystem had synced is in it, and its journal makes it whole.
#[test]
fn a_mounted_filesystem_is_whole_in_its_snapshots() {
    if skipped(&[Need::Loop, Need::Program("mkfs.ext4")]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = ext4_disk(mount.point(), "web", 128 * MIB);
    let image = web.join("disk.img");
    let (stop, synced) = (AtomicBool::new(false), AtomicU64::new(0));
    let inner = LoopMount::new(&image, "discard");
    let mut snapshots = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            for number in 0u64.. {
                if stop.load(Ordering::SeqCst) {
                    return;
                }
                let path = inner.path(&format!("{}", number % 200));
                let file = File::create(&path).expect("a file");
                file.write_all_at(&noise(number, 20_000), 0)
                    .expect("a write");
                file.sync_all().expect("a sync");
                synced.store(number + 1, Ordering::SeqCst);
            }
        });
        for round in 0..3 {
            wait_until("files are synced", || {
                synced.load(Ordering::SeqCst) > 20 * (round + 1)
            });
            let count = synced.load(Ordering::SeqCst);
            snapshots.push((take(&web, &format!("s{round}")), count));
        }
        stop.store(true, Ordering::SeqCst);
    });
    inner.unmount();
    for (round, (snapshot, count)) in snapshots.iter().enumerate() {
        let clone = mount.path(&format!("clone{round}"));
        fs::create_dir(&clone).expect("a disk");
        let clone = clone.join("disk.img");
        run(command("cp", &[])
            .arg(snapshot.join("disk.img"))
            .arg(&clone));
        let inner = LoopMount::new(&clone, "");
        // The last 200 less one that may just have been begun anew.
        for number in count.saturating_sub(190)..*count {
            let found = fs::read(inner.path(&format!("{}", number % 200))).expect("a synced file");
            assert_same(&found, &noise(number, 20_000), &format!("file {number}"));
        }
        inner.unmount();
        run(command("e2fsck", &["-fn"]).arg(&clone));
    }
}

/// Files that the daemon has open.
fn open_files(mount: &Mount) -> usize {
    let list = fs::read_dir(format!("/proc/{}/fd", mount.process()));
    list.expect("the daemon runs").count()
}

fn layer_files(store: &TestStore) -> usize {
    fs::read_dir(store.path().join("layers"))
        .expect("layers")
        .count()
}

/// Part of "no unbounded memory or file handles": a thousand `mkdir` in a
/// row on an idle disk, and hundreds on a busy one.
#[test]
fn many_snapshots_hold_few_files() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let limit = "max_manual_snapshots=1000";
    snapdisk(&["set", &mount.point().display().to_string(), limit]);
    let idle = disk_with(mount.point(), "idle", &noise(1, 100_000));
    let busy = disk_with(mount.point(), "busy", &noise(2, 100_000));
    // Two for each layer that may wait, is being sealed, or has been and goes
    // with the next round (64 each), those of the index, packs; two for every
    // snapshot would be 1200.
    let few = 600;
    for number in 0..1000 {
        take(&idle, &format!("s{number}"));
    }
    assert!(
        open_files(&mount) < few,
        "{} files open",
        open_files(&mount)
    );
    let image = open(&busy.join("disk.img"));
    for number in 0..600u64 {
        let bytes = number.to_le_bytes();
        image.write_all_at(&bytes, number * 150).expect("a write");
        take(&busy, &format!("s{number}"));
        assert!(
            open_files(&mount) < few,
            "{} files open",
            open_files(&mount)
        );
    }
    for disk in [&idle, &busy] {
        for entry in fs::read_dir(disk.join(".snapshots")).expect("a list") {
            wait_ready(&entry.expect("an entry").path());
        }
    }
    wait_until("only the heads have files", || layer_files(&store) <= 4);
    assert!(
        open_files(&mount) < few,
        "{} files open",
        open_files(&mount)
    );
    let mut at = [0; 8];
    let snapshot = File::open(busy.join(".snapshots/s7/disk.img")).expect("it is there");
    snapshot
        .read_exact_at(&mut at, 7 * 150)
        .expect("it can be read");
    assert_eq!(at, 7u64.to_le_bytes());
    assert_eq!(
        fs::read_dir(idle.join(".snapshots"))
            .expect("a list")
            .count(),
        1001
    );
}

/// Part 3, "a crash or unmount at any point of a seal resumes it", with a
/// real kill.
#[test]
fn a_seal_goes_on_after_a_crash_and_an_unmount() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let mut bytes = noise(1, 48 << 20);
    let web = disk_with(mount.point(), "web", &bytes);
    let first = take(&web, "first");
    mount.kill9();
    mount.remount();
    let second = {
        let image = open(&web.join("disk.img"));
        image
            .write_all_at(&noise(2, 8 << 20), 5000)
            .expect("a write");
        take(&web, "second")
    };
    mount.remount();
    for _ in 0..3 {
        mount.kill9();
        mount.remount();
    }
    wait_ready(&first);
    wait_ready(&second);
    let read = |snapshot: &Path| fs::read(snapshot.join("disk.img")).expect("it can be read");
    assert_same(&read(&first), &bytes, "the first");
    bytes[5000..][..8 << 20].copy_from_slice(&noise(2, 8 << 20));
    assert_same(&read(&second), &bytes, "the second");
    assert_same(
        &fs::read(web.join("disk.img")).expect("the image"),
        &bytes,
        "the live image",
    );
    assert!(
        store.log().contains("opened: "),
        "the log says what was found"
    );
    assert_sound(mount.point());
}

/// Invariant 9: with one thread that takes requests, eight `mkdir`, eight
/// fsyncs and eight cold reads at once all finish.
#[test]
fn one_fuse_thread_serves_what_waits() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount_with(&["-o", "threads=1"]);
    let disks: Vec<PathBuf> = (0..8)
        .map(|number| {
            disk_with(
                mount.point(),
                &format!("d{number}"),
                &noise(number, 2 << 20),
            )
        })
        .collect();
    for disk in &disks {
        wait_ready(&take(disk, "cold"));
    }
    // Nothing of it is in anybody's cache then.
    mount.remount();
    thread::scope(|scope| {
        for (number, disk) in (0..).zip(&disks) {
            scope.spawn(move || {
                let image = open(&disk.join("disk.img"));
                image
                    .write_all_at(&noise(99, 200_000), 4096)
                    .expect("a write");
                image.sync_all().expect("an fsync");
            });
            scope.spawn(|| take(disk, "at-once"));
            scope.spawn(move || {
                let found = fs::read(disk.join(".snapshots/cold/disk.img")).expect("a read");
                assert_same(&found, &noise(number, 2 << 20), "a cold snapshot");
            });
        }
    });
}

fn pack_bytes(store: &TestStore) -> u64 {
    let packs = fs::read_dir(store.path().join("packs")).expect("packs");
    packs
        .map(|pack| {
            pack.and_then(|pack| pack.metadata())
                .map_or(0, |found| found.len())
        })
        .sum()
}

/// Contract: space comes back in the background, also when the daemon dies
/// in between, and what was deleted is never back.
#[test]
fn space_comes_back_after_a_deletion() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let web = disk_with(mount.point(), "web", &noise(1, 20 << 20));
    for crash in [false, true] {
        let snapshot = take(&web, "gone");
        wait_ready(&snapshot);
        let with = pack_bytes(&store);
        let image = open(&web.join("disk.img"));
        image.write_all_at(&vec![1; 20 << 20], 0).expect("a write");
        drop(image);
        // Nothing shows the old content but the snapshot.
        wait_ready(&take(&web, "kept"));
        fs::remove_dir(&snapshot).expect("rmdir");
        if crash {
            mount.kill9();
            mount.remount();
            assert!(!snapshot.exists(), "what was deleted stays away");
            snapdisk(&["gc", &mount.point().display().to_string()]);
        }
        wait_until("space comes back", || pack_bytes(&store) < with / 4);
        fs::remove_dir(web.join(".snapshots/kept")).expect("rmdir");
        let image = open(&web.join("disk.img"));
        image.write_all_at(&noise(7, 20 << 20), 0).expect("a write");
    }
    assert_sound(mount.point());
}

/// Contract: the index is a cache. Deleted, truncated or overwritten while
/// unmounted, nothing is lost, and the log says that it was rebuilt.
#[test]
fn a_lost_index_loses_nothing() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let bytes = noise(1, 6 << 20);
    let web = disk_with(mount.point(), "web", &bytes);
    let snapshot = take(&web, "one");
    wait_ready(&snapshot);
    fn each_file(directory: &Path, change: &dyn Fn(&Path)) {
        for entry in fs::read_dir(directory).expect("a directory") {
            let path = entry.expect("an entry").path();
            match path.is_dir() {
                true => each_file(&path, change),
                false => change(&path),
            }
        }
    }
    type Harm<'a> = (&'a str, &'a dyn Fn(&Path));
    let harms: [Harm<'_>; 3] = [
        ("deleted", &|index| {
            fs::remove_dir_all(index).expect("removing it")
        }),
        ("truncated", &|index| {
            each_file(index, &|path| open(path).set_len(3).expect("truncating"));
        }),
        ("garbage", &|index| {
            each_file(index, &|path| {
                fs::write(path, noise(5, 5000)).expect("writing")
            });
        }),
    ];
    for (harm, harming) in harms {
        mount.unmount();
        harming(&store.path().join("index"));
        mount.remount();
        let found = fs::read(snapshot.join("disk.img")).expect("it can be read");
        assert_same(&found, &bytes, harm);
        assert_sound(mount.point());
    }
    let rebuilt = store.log().matches("index: entries of").count();
    assert!(rebuilt >= 3, "the log tells of {rebuilt}");
}

/// Contract: clones and rollbacks are whole when their source is deleted and
/// collected and the daemon dies; a rollback is refused while the image is
/// open, keeps what was there, and with --discard keeps nothing.
#[test]
fn clones_and_rollbacks_outlive_their_source() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let old = noise(1, 3 << 20);
    let web = disk_with(mount.point(), "web", &old);
    for name in ["unsealed", "sealed"] {
        let snapshot = take(&web, name);
        if name == "sealed" {
            wait_ready(&snapshot);
        }
        let clone = mount.path(&format!("clone-{name}"));
        fs::create_dir(&clone).expect("a disk");
        run(command("cp", &[])
            .arg(snapshot.join("disk.img"))
            .arg(clone.join("disk.img")));
    }
    let point = web.display().to_string();
    fs::write(web.join("disk.img"), b"new").expect("a write");
    let held = File::open(web.join("disk.img")).expect("the image");
    let said = snapdisk_fails(&["rollback", &point, "sealed"]);
    assert!(said.contains("open"), "{said}");
    drop(held);
    let said = snapdisk(&["rollback", &point, "sealed"]);
    assert_same(
        &fs::read(web.join("disk.img")).expect("it"),
        &old,
        "rolled back",
    );
    let kept = said
        .split_whitespace()
        .find(|word| word.contains("before-rollback-"));
    let kept = kept.unwrap_or_else(|| panic!("{said}"));
    let kept = kept.rsplit('@').next().expect("a name").to_owned();
    let kept = web.join(".snapshots").join(kept).join("disk.img");
    assert_eq!(fs::read(kept).expect("what was kept"), b"new");
    let count = || {
        fs::read_dir(web.join(".snapshots"))
            .expect("a list")
            .count()
    };
    fs::write(web.join("disk.img"), b"newer").expect("a write");
    let before = count();
    snapdisk(&["rollback", "--discard", &point, "unsealed"]);
    assert_eq!(count(), before);

    for name in ["unsealed", "sealed"] {
        fs::remove_dir(web.join(".snapshots").join(name)).expect("rmdir");
    }
    snapdisk(&["gc", &mount.point().display().to_string()]);
    mount.kill9();
    mount.remount();
    for disk in ["web", "clone-unsealed", "clone-sealed"] {
        let found = fs::read(mount.path(disk).join("disk.img")).expect("it can be read");
        assert_same(&found, &old, disk);
    }
    assert_sound(mount.point());
}
