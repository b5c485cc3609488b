//! Goal: a disk's `disk.img` is a file like any other: every offset, length
//! and way of reading and writing, sizes, holes, copies, names.
//!
//! Method: real mounts. Each operation is also done on a plain vector, and
//! both are compared through the kernel's cache, past it, and after a
//! remount.

mod common;

use common::bytes::{Aligned, Map, Random, copy_all, open, open_with, read_direct};
use common::{
    Need, TestStore, assert_errno, assert_same, command, disk_with, held_by, noise, run, sh,
    skipped, state, sys, take, wait_ready, wait_until,
};
use libc::{FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, FALLOC_FL_ZERO_RANGE};
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const CHUNK: u64 = 64 * KIB;
const PUNCH: i32 = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;

/// Panics unless a file has these bytes, however it is read.
#[track_caller]
fn assert_content(path: &Path, expected: &[u8]) {
    let direct = read_direct(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    assert_same(&direct, expected, &format!("{path:?} read directly"));
    let cached = fs::read(path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    assert_same(
        &cached,
        expected,
        &format!("{path:?} read through the cache"),
    );
}

/// A disk of zeros; answers its image.
fn empty_disk(point: &Path, name: &str, size: u64) -> PathBuf {
    let image = disk_with(point, name, b"").join("disk.img");
    open(&image).set_len(size).expect("its size");
    image
}

/// Names in a directory, in order.
fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).expect("a directory");
    let name = |entry: std::io::Result<fs::DirEntry>| entry.expect("an entry").file_name();
    let mut names: Vec<String> = entries
        .map(|entry| name(entry).into_string().expect("text"))
        .collect();
    names.sort();
    names
}

/// Writes into a vector as into a file.
fn put(bytes: &mut Vec<u8>, at: u64, data: &[u8]) {
    let end = at as usize + data.len();
    if !data.is_empty() && bytes.len() < end {
        bytes.resize(end, 0);
    }
    if !data.is_empty() {
        bytes[at as usize..end].copy_from_slice(data);
    }
}

/// Makes a part of a vector zeros, without changing its length.
fn clear(bytes: &mut [u8], at: u64, len: u64) {
    let end = ((at + len) as usize).min(bytes.len());
    let start = (at as usize).min(end);
    bytes[start..end].fill(0);
}

/// Somewhere below `limit`, often at an edge of a sector, block or chunk.
fn place(random: &mut Random, limit: u64) -> u64 {
    let unit = [1, 512, 4 * KIB, CHUNK][random.below(4) as usize];
    (random.below(limit) / unit * unit).min(limit)
}

/// Contract: I/O of any offset and length, 512-byte sectors with O_DIRECT
/// and writes over the ends of blocks included, buffered, direct, mapped and
/// punched in any order, with snapshots in between and a remount.
#[test]
fn random_io_agrees_with_a_vector() {
    if skipped(&[Need::Mount]) {
        return;
    }
    const LIMIT: u64 = 3 * MIB;
    let store = TestStore::new();
    let mut mount = store.mount();
    for seed in 0..3 {
        println!("seed {seed}");
        let mut random = Random(seed);
        let image = empty_disk(mount.point(), &format!("web{seed}"), LIMIT / 2 + 777);
        let disk = image.parent().expect("its disk").to_owned();
        let mut bytes = vec![0; LIMIT as usize / 2 + 777];
        let mut snapshots: Vec<(PathBuf, Vec<u8>)> = vec![];
        for part in 0..2 {
            let buffered = open(&image);
            let direct = open_with(&image, libc::O_DIRECT).expect("O_DIRECT");
            for step in 0..250 {
                let at = place(&mut random, LIMIT);
                let len = place(&mut random, 3 * CHUNK).min(LIMIT - at);
                match random.below(12) {
                    0..=2 => {
                        let data = random.bytes(len as usize);
                        buffered.write_all_at(&data, at).expect("a write");
                        put(&mut bytes, at, &data);
                    }
                    3..=5 => {
                        let (at, len) = (at / 512 * 512, len.next_multiple_of(512));
                        let data = Aligned::from(&random.bytes(len as usize));
                        direct.write_all_at(&data, at).expect("a direct write");
                        put(&mut bytes, at, &data);
                    }
                    6 => {
                        let map = Map::new(&buffered, bytes.len()).expect("a mapping");
                        let at = at.min(bytes.len() as u64);
                        let len = len.min(bytes.len() as u64 - at) as usize;
                        let found = map.read(at as usize, len);
                        assert_same(&found, &bytes[at as usize..][..len], "a mapped read");
                        let data = random.bytes(len);
                        map.write(at as usize, &data);
                        put(&mut bytes, at, &data);
                        map.sync().expect("msync");
                    }
                    7 => {
                        if len > 0 {
                            let (at, len) = (at as i64, len as i64);
                            sys::fallocate(&buffered, PUNCH, at, len).expect("a punch");
                        }
                        clear(&mut bytes, at, len);
                    }
                    8 => {
                        if len > 0 {
                            let zero = FALLOC_FL_ZERO_RANGE;
                            let (at, len) = (at as i64, len as i64);
                            sys::fallocate(&buffered, zero, at, len).expect("zeros");
                            put(&mut bytes, at as u64, &vec![0; len as usize]);
                        }
                    }
                    9 => {
                        let mut found = vec![1; len as usize];
                        let read = buffered.read_at(&mut found, at).expect("a read");
                        let end = (at as usize + read).min(bytes.len());
                        let expected = &bytes[(at as usize).min(end)..end];
                        assert_same(&found[..read], expected, &format!("step {step}"));
                        let wanted = (bytes.len() as u64).saturating_sub(at).min(len);
                        assert_eq!(read as u64, wanted, "a short read");
                    }
                    10 => {
                        let at = at / 512 * 512;
                        let mut found = Aligned::zeroed(len.next_multiple_of(512) as usize);
                        let read = direct.read_at(&mut found, at).expect("a direct read");
                        let end = (at as usize + read).min(bytes.len());
                        let expected = &bytes[(at as usize).min(end)..end];
                        assert_same(&found[..read], expected, &format!("step {step}"));
                    }
                    _ if snapshots.len() < 12 => {
                        let name = format!("s{}", snapshots.len() + 10);
                        snapshots.push((take(&disk, &name), bytes.clone()));
                    }
                    _ => buffered.sync_all().expect("an fsync"),
                }
            }
            drop((buffered, direct));
            assert_content(&image, &bytes);
            if part == 0 {
                mount.remount();
                assert_content(&image, &bytes);
            }
        }
        for (snapshot, expected) in &snapshots {
            assert_content(&snapshot.join("disk.img"), expected);
        }
    }
}

/// Contract: O_SYNC, O_DSYNC, fsync, fdatasync and msync mean it
/// (invariant 1): what they acknowledged is there after the daemon was
/// killed.
#[test]
fn what_was_synced_survives_kill_9() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let mut images: Vec<(PathBuf, Vec<u8>)> = vec![];
    for (number, name) in (0..).zip(["sync", "dsync", "fsync", "fdatasync", "msync"]) {
        let image = empty_disk(mount.point(), name, MIB);
        let mut bytes = vec![0; MIB as usize];
        for round in 0..4 {
            let (at, data) = (round * 200_000 + 100, noise(100 * number + round, 9000));
            put(&mut bytes, at, &data);
            let flags = match name {
                "sync" => libc::O_SYNC,
                "dsync" => libc::O_DSYNC,
                _ => 0,
            };
            let file = open_with(&image, flags).expect("the image");
            if name == "msync" {
                let map = Map::new(&file, MIB as usize).expect("a mapping");
                map.write(at as usize, &data);
                map.sync().expect("msync");
            } else {
                file.write_all_at(&data, at).expect("a write");
            }
            match name {
                "fsync" => file.sync_all().expect("an fsync"),
                "fdatasync" => file.sync_data().expect("an fdatasync"),
                _ => (),
            }
        }
        images.push((image, bytes));
    }
    mount.kill9();
    mount.remount();
    for (image, bytes) in &images {
        assert_content(image, bytes);
    }
}

/// Contract: `fallocate` punches, zeroes with and without a change of size,
/// and extends; a mode without a meaning is refused.
#[test]
fn fallocate_does_what_its_modes_say() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let mut bytes = noise(1, 300_000);
    let image = disk_with(mount.point(), "web", &bytes).join("disk.img");
    let file = open(&image);
    let size = |expected: usize| {
        assert_eq!(file.metadata().expect("its size").len(), expected as u64);
    };

    sys::fallocate(&file, PUNCH, 5000, 100_000).expect("a punch");
    clear(&mut bytes, 5000, 100_000);
    sys::fallocate(&file, PUNCH, 299_000, 50_000).expect("a punch over the end");
    clear(&mut bytes, 299_000, 50_000);
    assert_content(&image, &bytes);

    let keep = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE;
    sys::fallocate(&file, keep, 290_000, 50_000).expect("zeros, size kept");
    clear(&mut bytes, 290_000, 50_000);
    size(300_000);
    sys::fallocate(&file, FALLOC_FL_ZERO_RANGE, 280_000, 50_001).expect("zeros");
    clear(&mut bytes, 280_000, 50_001);
    bytes.resize(330_001, 0);
    size(330_001);
    assert_content(&image, &bytes);

    sys::fallocate(&file, FALLOC_FL_KEEP_SIZE, 0, 1 << 20).expect("size kept");
    size(330_001);
    sys::fallocate(&file, 0, 0, 1000).expect("inside");
    size(330_001);
    sys::fallocate(&file, 0, 330_000, 12_345).expect("extends");
    bytes.resize(342_345, 0);
    size(342_345);
    assert_content(&image, &bytes);

    let collapse = sys::fallocate(&file, libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
    assert_errno(collapse, libc::EOPNOTSUPP, "collapsing a range");
    assert_content(&image, &bytes);
}

/// The data that SEEK_DATA and SEEK_HOLE show, checked as a whole: it begins
/// and ends where they say, and there is a hole at the end.
fn data_ranges(image: &Path) -> Vec<(u64, u64)> {
    let file = File::open(image).expect("the image");
    let size = file.metadata().expect("its size").len();
    let mut ranges = vec![];
    let mut at = 0;
    while at < size {
        match sys::lseek(&file, at as i64, libc::SEEK_DATA) {
            Ok(data) => {
                let hole = sys::lseek(&file, data, libc::SEEK_HOLE).expect("there is a hole");
                assert!(data as u64 >= at && hole > data, "{data} {hole}");
                ranges.push((data as u64, hole as u64));
                at = hole as u64;
            }
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
                break;
            }
        }
    }
    for whence in [libc::SEEK_DATA, libc::SEEK_HOLE] {
        let past = sys::lseek(&file, size as i64, whence);
        assert_errno(past, libc::ENXIO, "seeking past the end");
    }
    ranges
}

fn allocated(path: &Path) -> u64 {
    fs::metadata(path).expect("its attributes").blocks() * 512
}

/// Contract: SEEK_DATA, SEEK_HOLE and `st_blocks` tell the truth, also of
/// data that is not flushed; of sealed data by whole chunks, never less.
#[test]
fn holes_and_blocks_are_told_truly() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let image = empty_disk(mount.point(), "web", 1 << 30);
    assert_eq!(allocated(&image), 0);
    assert_eq!(data_ranges(&image), []);

    let file = open(&image);
    for at in [0, 10 * MIB + 5000, 500 * MIB] {
        file.write_all_at(&noise(at, 10_000), at).expect("a write");
    }
    // By whole blocks: 10 MiB + 5000 lies in the second block after it.
    let blocks = [
        (0, 12 * KIB),
        (10 * MIB + 4 * KIB, 10 * MIB + 16 * KIB),
        (500 * MIB, 500 * MIB + 12 * KIB),
    ];
    assert_eq!(data_ranges(&image), blocks, "not yet flushed");
    assert_eq!(allocated(&image), 36 * KIB);
    file.sync_all().expect("an fsync");
    assert_eq!(data_ranges(&image), blocks, "flushed");
    drop(file);
    mount.remount();
    assert_eq!(data_ranges(&image), blocks, "remounted");

    let snapshot = take(image.parent().expect("its disk"), "s1");
    wait_ready(&snapshot);
    let chunks = [
        (0, CHUNK),
        (10 * MIB, 10 * MIB + CHUNK),
        (500 * MIB, 500 * MIB + CHUNK),
    ];
    for path in [&image, &snapshot.join("disk.img")] {
        assert_eq!(data_ranges(path), chunks, "sealed");
        assert_eq!(allocated(path), 3 * CHUNK);
    }
    let file = open(&image);
    file.write_all_at(&[1], 700 * MIB).expect("a write");
    sys::fallocate(&file, PUNCH, 0, 400 << 20).expect("a punch");
    let left = [
        (500 * MIB, 500 * MIB + CHUNK),
        (700 * MIB, 700 * MIB + 4 * KIB),
    ];
    assert_eq!(data_ranges(&image), left, "punched");
    assert_eq!(allocated(&image), CHUNK + 4 * KIB);
    assert_eq!(allocated(&snapshot.join("disk.img")), 3 * CHUNK);
    sys::fallocate(&file, PUNCH, 0, 1 << 30).expect("a punch of all");
    assert_eq!(data_ranges(&image), []);
    assert_eq!(allocated(&image), 0);
}

/// Contract: `truncate` grows with zeros; what was cut off is gone and reads
/// as zeros when grown again, over sealed and unsealed data.
#[test]
fn what_was_cut_off_is_zeros_when_grown_again() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let full = noise(1, 500_000);
    for sealed in [false, true] {
        let disk = disk_with(mount.point(), &format!("sealed-{sealed}"), &full);
        let image = disk.join("disk.img");
        if sealed {
            wait_ready(&take(&disk, "full"));
        }
        let mut bytes = full.clone();
        for (cut, grown) in [
            (400_001, 450_000),
            (3 * CHUNK, 500_123),
            (3 * CHUNK - 100, 3 * CHUNK),
            (4096 * 3, 1_000_000),
            (777, 2 * MIB),
            (0, 10),
        ] {
            for size in [cut, grown] {
                open(&image).set_len(size).expect("a truncate");
                bytes.resize(size as usize, 0);
                assert_content(&image, &bytes);
            }
        }
        // A write far behind the end leaves zeros before it.
        open(&image).write_all_at(b"end", 300_000).expect("a write");
        put(&mut bytes, 300_000, b"end");
        assert_content(&image, &bytes);
        mount.remount();
        assert_content(&image, &bytes);
        if sealed {
            assert_content(&disk.join(".snapshots/full/disk.img"), &full);
        }
    }
}

/// Contract: shrinking or O_TRUNC while somebody else has the image open for
/// writing is EBUSY; growing is not, and who has it open alone may shrink.
#[test]
fn an_image_does_not_shrink_under_another_writer() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let mut bytes = noise(1, 200_000);
    let image = disk_with(mount.point(), "web", &bytes).join("disk.img");
    let truncate = || OpenOptions::new().write(true).truncate(true).open(&image);

    let writer = open(&image);
    let other = open(&image);
    assert_errno(other.set_len(1000), libc::EBUSY, "ftruncate");
    assert_errno(truncate(), libc::EBUSY, "O_TRUNC");
    let reader = File::open(&image).expect("the image");
    other.set_len(250_000).expect("growing while it is open");
    bytes.resize(250_000, 0);
    writer.write_all_at(b"new", 240_000).expect("a write there");
    put(&mut bytes, 240_000, b"new");
    let mut found = vec![0; 3];
    reader
        .read_exact_at(&mut found, 240_000)
        .expect("a read there");
    assert_eq!(found, b"new");
    assert_content(&image, &bytes);
    // A close that has just returned counts as closed.
    drop(writer);
    other.set_len(1000).expect("shrinking by the only writer");
    bytes.truncate(1000);
    assert_content(&image, &bytes);
    drop(other);
    truncate().expect("O_TRUNC");
    assert_content(&image, b"");
}

/// Contract: appending works as on any file.
#[test]
fn appended_bytes_go_to_the_end() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let mut bytes = noise(1, 5000);
    let image = disk_with(mount.point(), "web", &bytes).join("disk.img");
    for round in 0..30 {
        let mut file = OpenOptions::new().append(true).open(&image).expect("it");
        let data = noise(round, 3001);
        file.write_all(&data).expect("an append");
        bytes.extend_from_slice(&data);
    }
    assert_content(&image, &bytes);
}

/// Contract: `copy_file_range` is byte-exact whatever the alignment, from
/// snapshots, images and other live disks, sealed or not, and within a disk;
/// and changes nothing at its source.
#[test]
fn copies_of_ranges_are_byte_exact() {
    if skipped(&[Need::Mount]) {
        return;
    }
    const SIZE: u64 = 20 * CHUNK + 1234;
    let store = TestStore::new();
    let mut mount = store.mount();
    let mut random = Random(9);
    // Sources that do not change: sealed and not, linked and imported.
    let base = noise(1, SIZE as usize);
    let disk = disk_with(mount.point(), "base", &base);
    let snapshot = take(&disk, "s1").join("disk.img");
    let linked = mount.path(".images/linked.img");
    fs::hard_link(&snapshot, &linked).expect("a linked image");
    let imported = mount.path(".images/imported.img");
    fs::write(&imported, &base[CHUNK as usize..]).expect("an import");
    let fixed = [
        (snapshot.clone(), base.clone()),
        (linked, base.clone()),
        (imported, base[CHUNK as usize..].to_vec()),
    ];
    let mut disks: Vec<(PathBuf, Vec<u8>)> = (0..2)
        .map(|number| {
            let bytes = noise(2 + number, SIZE as usize / 2);
            let disk = disk_with(mount.point(), &format!("live{number}"), &bytes);
            (disk.join("disk.img"), bytes)
        })
        .collect();
    for step in 0..250 {
        let target = random.below(2) as usize;
        let (source, bytes) = match random.below(5) {
            number @ 0..3 => fixed[number as usize].clone(),
            number => disks[number as usize - 3].clone(),
        };
        let (mut from, mut to) = (place(&mut random, SIZE), place(&mut random, SIZE));
        let mut len = place(&mut random, 8 * CHUNK) + 1;
        match random.below(4) {
            // Chunks to chunks: shared, not copied.
            0 => {
                (from, to) = (from / CHUNK * CHUNK, to / CHUNK * CHUNK);
                len = len.next_multiple_of(CHUNK);
            }
            // To the end of the source.
            1 => len = SIZE,
            // Alike in their chunks, and not at their beginning.
            2 => to = to / CHUNK * CHUNK + from % CHUNK,
            _ => (),
        }
        let copied = len.min((bytes.len() as u64).saturating_sub(from));
        if source == disks[target].0 && from < to + len && to < from + len {
            continue;
        }
        let file = File::open(&source).expect("the source");
        let image = open(&disks[target].0);
        let done = copy_all(&file, from, &image, to, len).expect("a copy");
        assert_eq!(
            done, copied,
            "step {step}: {from} to {to}, {len} of {source:?}"
        );
        if copied > 0 {
            put(
                &mut disks[target].1,
                to,
                &bytes[from as usize..][..copied as usize],
            );
        }
        // Also after a write into what is shared, and over a snapshot.
        if random.below(3) == 0 {
            let (at, data) = (place(&mut random, SIZE), random.bytes(5000));
            image.write_all_at(&data, at).expect("a write");
            put(&mut disks[target].1, at, &data);
        }
        if random.below(30) == 0 {
            drop(image);
            take(
                disks[target].0.parent().expect("its disk"),
                &format!("s{step:03}"),
            );
        }
    }
    for round in 0..2 {
        for (path, bytes) in fixed.iter().chain(&disks) {
            assert_content(path, bytes);
        }
        if round == 0 {
            mount.remount();
        }
    }
}

/// Contract: "a directory's and an image's time can be set"; whatever date
/// somebody gives something, nothing of it is lost for that.
#[test]
fn dates_far_away_outlive_a_remount() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let disk = disk_with(mount.point(), "web", b"web");
    let snapshot = take(&disk, "kept");
    common::wait_ready(&snapshot);
    let (dir, image) = (disk.display(), disk.join("disk.img"));
    let days = "hours = [3]\nretain_days = 65536\n";
    fs::write(disk.join(".snapshots/policy.toml"), days).expect("a policy");
    sh(&format!(
        "touch -d 2250-01-01Z {dir} {0}; setfattr -n snapdisk.expires -v 2250-01-01 {1}",
        image.display(),
        snapshot.display()
    ));
    let times = || [&disk, &image].map(|path| fs::metadata(path).expect("stat").mtime());
    let before = times();
    assert_eq!(before[1], 8_835_955_200, "2250");
    let changed = || fs::metadata(&image).expect("stat").ctime();
    // The ctime never goes back with the mtime: who compares both sees a
    // change that hides behind an old mtime, after a remount, too.
    let now = jiff::Timestamp::now().as_second();
    sh(&format!("touch -d 2000-01-01Z {}", image.display()));
    assert!(changed() >= now, "{}", changed());
    mount.remount();
    assert!(changed() >= now, "{}", changed());
    sh(&format!("touch -d 2250-01-01Z {}", image.display()));
    mount.remount();
    assert_eq!(times()[1], before[1]);
    assert_content(&image, b"web");
    let info = common::info(&snapshot);
    assert!(info["expires"].to_string().contains("2250"), "{info}");
    // As far back, too.
    sh(&format!("touch -d 1700-01-01Z {dir}"));
    mount.remount();
    assert_content(&image, b"web");
}

/// README: a rollback keeps what the disk was, and `rm` for 7 days: a snapshot
/// that shows the same, but ends by itself before, is no reason not to.
#[test]
fn a_snapshot_that_ends_by_itself_keeps_nothing() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let disk = disk_with(mount.point(), "web", b"one");
    let (image, snapshots) = (disk.join("disk.img"), disk.join(".snapshots"));
    take(&disk, "old");
    fs::write(&image, b"two").expect("a write");
    let now = take(&disk, "now");
    let kept = |prefix: &str| {
        let names = names(&snapshots).into_iter();
        let mut names = names.filter(|name| name.starts_with(prefix));
        names.next()
    };
    let end = |snapshot: &Path, date: &str| {
        let date = format!("$(date -u -d '{date}' +%FT%TZ)");
        sh(&format!(
            "setfattr -n snapdisk.expires -v {date} {}",
            snapshot.display()
        ));
    };
    let rollback =
        |target: &str| common::snapdisk(&["rollback", &disk.display().to_string(), target]);
    end(&now, "+30 days");
    rollback("old");
    let before = kept("before-rollback-").expect("what the disk was is kept");
    assert_content(&snapshots.join(before).join("disk.img"), b"two");
    // One that stays is reason enough.
    rollback("now");
    let before = names(&snapshots).into_iter();
    assert_eq!(before.filter(|name| name.starts_with("before-")).count(), 1);
    rollback("latest");
    assert_content(&image, b"two");
    rollback("old");
    assert_content(&image, b"one");
    end(&snapshots.join("old"), "+1 hour");
    fs::remove_file(&image).expect("it goes");
    let dropped = kept("dropped-").expect("what was dropped is kept");
    assert_content(&snapshots.join(dropped).join("disk.img"), b"one");
}

/// Contract: an image's mtime follows its content, over a restart, too: backup
/// tools go by it. What was written over blocks that were there, and synced,
/// needs no record of its own.
#[test]
fn the_time_of_the_last_write_outlives_the_mount() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let path = disk_with(mount.point(), "web", &noise(1, 200_000)).join("disk.img");
    let time = || {
        fs::metadata(&path)
            .expect("stat")
            .modified()
            .expect("its time")
    };
    open(&path).sync_all().expect("a sync");
    mount.remount();
    let before = time();
    let image = open(&path);
    image.write_all_at(&noise(2, 8192), 4096).expect("a write");
    image.sync_all().expect("a sync");
    drop(image);
    let written = time();
    assert!(written > before);
    mount.remount();
    assert_eq!(time(), written);
}

/// Contract: `rm disk.img` is EBUSY while it is open; what no snapshot holds
/// is kept as `dropped-<time>` that expires; an empty disk can then go.
#[test]
fn a_dropped_image_is_kept_if_nothing_else_holds_it() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let bytes = noise(1, 200_000);
    let disk = disk_with(mount.point(), "web", &bytes);
    let image = disk.join("disk.img");
    let snapshots = disk.join(".snapshots");

    let file = File::open(&image).expect("the image");
    assert_errno(fs::remove_file(&image), libc::EBUSY, "rm of an open image");
    drop(file);
    fs::remove_file(&image).expect("rm");
    assert!(!image.exists());
    let kept: Vec<String> = (names(&snapshots).into_iter())
        .filter(|name| name.starts_with("dropped-"))
        .collect();
    assert_eq!(kept.len(), 1, "{:?}", names(&snapshots));
    let kept = snapshots.join(&kept[0]);
    assert_content(&kept.join("disk.img"), &bytes);
    let info = common::info(&kept);
    assert!(info.contains_key("expires"), "{info}");
    // Whoever gives it a name of its own wants to have it.
    let rescued = snapshots.join("rescued");
    fs::rename(&kept, &rescued).expect("a name of its own");
    let info = common::info(&rescued);
    assert!(!info.contains_key("expires"), "{info}");
    let kept = rescued;
    assert_errno(
        fs::remove_dir(&disk),
        libc::ENOTEMPTY,
        "rmdir of a disk with a snapshot",
    );

    // A clone of it, dropped unchanged after a snapshot: nothing to keep.
    run(command("cp", &[]).arg(kept.join("disk.img")).arg(&image));
    take(&disk, "all");
    fs::remove_file(&image).expect("rm");
    let names = names(&snapshots);
    let dropped = names.iter().filter(|name| name.starts_with("dropped-"));
    assert_eq!(dropped.count(), 0, "{names:?}");
    for name in names.iter().filter(|name| *name != "latest") {
        fs::remove_dir(snapshots.join(name)).expect("rmdir of a snapshot");
    }
    fs::remove_dir(&disk).expect("rmdir of the disk");
    assert!(!disk.exists());
}

/// Contract: `mv` renames a disk, open or not, snapshots and all, and never
/// over another.
#[test]
fn disks_are_renamed() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let mut bytes = noise(1, 100_000);
    let (web, shop) = (mount.path("web"), mount.path("shop"));
    disk_with(mount.point(), "web", &bytes);
    disk_with(mount.point(), "db", b"another");
    take(&web, "s1");
    let before = fs::metadata(&web).expect("it is there").ino();
    let onto = fs::rename(&web, mount.path("db"));
    assert_errno(onto, libc::EEXIST, "renaming onto a disk");

    let open = open(&web.join("disk.img"));
    run(command("mv", &[]).arg(&web).arg(&shop));
    open.write_all_at(b"still open", 50).expect("a write");
    put(&mut bytes, 50, b"still open");
    drop(open);
    for _ in 0..2 {
        assert!(!web.exists());
        assert_content(&shop.join("disk.img"), &bytes);
        assert_content(&shop.join(".snapshots/s1/disk.img"), &noise(1, 100_000));
        assert_eq!(fs::metadata(&shop).expect("it is there").ino(), before);
        mount.remount();
    }
}

/// Contract: `ln` of a snapshot's image makes an image that depends on it:
/// the link count shows it, the snapshot cannot be deleted and says why;
/// `rm` ends that.
#[test]
fn a_linked_image_holds_its_snapshot() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let bytes = noise(1, 300_000);
    let disk = disk_with(mount.point(), "web", &bytes);
    let snapshot = take(&disk, "s1");
    let links = || fs::metadata(snapshot.join("disk.img")).expect("s1").nlink();
    let (golden, moved) = (
        mount.path(".images/golden.img"),
        mount.path(".images/moved.img"),
    );
    assert_eq!(links(), 1);
    run(command("ln", &[])
        .arg(snapshot.join("disk.img"))
        .arg(&golden));
    assert_eq!(links(), 2);
    open(&disk.join("disk.img"))
        .write_all_at(b"later", 0)
        .expect("a write");
    assert_content(&golden, &bytes);
    assert_errno(
        open_with(&golden, 0),
        libc::EROFS,
        "opening an image for writing",
    );
    assert_errno(
        fs::remove_dir(&snapshot),
        libc::EBUSY,
        "rmdir of its snapshot",
    );
    assert!(
        held_by(&snapshot)
            .iter()
            .any(|by| by.contains("golden.img"))
    );
    let again = fs::hard_link(snapshot.join("disk.img"), &golden);
    assert_errno(again, libc::EEXIST, "an image of the same name");
    let live = fs::hard_link(disk.join("disk.img"), mount.path(".images/live.img"));
    assert_errno(live, libc::EPERM, "ln of a live image");

    run(command("mv", &[]).arg(&golden).arg(&moved));
    mount.remount();
    assert_eq!(names(&mount.path(".images")), ["moved.img"]);
    assert_content(&moved, &bytes);
    assert_errno(
        fs::remove_dir(&snapshot),
        libc::EBUSY,
        "rmdir of its snapshot",
    );
    assert!(held_by(&snapshot).iter().any(|by| by.contains("moved.img")));
    fs::remove_file(&moved).expect("rm of the image");
    assert_eq!(links(), 1);
    assert_eq!(held_by(&snapshot), [""; 0]);
    fs::remove_dir(&snapshot).expect("rmdir of the snapshot");
}

/// Contract: `cp` into `.images/` imports an image that depends on nothing;
/// it becomes read-only when the last writer let go or at first use; disks
/// are made from it; `mv` renames and `rm` removes it.
#[test]
fn an_imported_image_becomes_read_only() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let bytes = noise(1, 300_000);
    let file = store.scratch("any.img");
    fs::write(&file, &bytes).expect("a file outside");
    let (image, moved) = (
        mount.path(".images/any.img"),
        mount.path(".images/some.img"),
    );
    run(command("cp", &[]).arg(&file).arg(&image));
    // First use.
    assert_content(&image, &bytes);
    assert_errno(open_with(&image, 0), libc::EROFS, "opening it for writing");
    assert_errno(open_with(&image, libc::O_TRUNC), libc::EROFS, "O_TRUNC");
    assert_eq!(fs::metadata(&image).expect("it is there").nlink(), 1);

    // Another one, which nobody reads: read-only by itself.
    let unread = mount.path(".images/unread.img");
    fs::write(&unread, &bytes).expect("an import");
    // Opening it to write would put that off.
    wait_until("an unread import is read-only", || {
        let mode = fs::metadata(&unread).expect("it is there").mode();
        mode & 0o222 == 0
    });
    assert_errno(open_with(&unread, 0), libc::EROFS, "opening it for writing");
    assert_content(&unread, &bytes);
    let held = File::open(&unread).expect("the image");
    assert_errno(fs::remove_file(&unread), libc::EBUSY, "rm of an open image");
    drop(held);
    fs::remove_file(&unread).expect("rm");

    run(command("mv", &[]).arg(&image).arg(&moved));
    fs::create_dir(mount.path("new")).expect("a disk");
    let new = mount.path("new/disk.img");
    run(command("cp", &[]).arg(&moved).arg(&new));
    open(&new)
        .write_all_at(b"mine", 7)
        .expect("a disk from an image is writable");
    mount.remount();
    assert_eq!(names(&mount.path(".images")), ["some.img"]);
    assert_content(&moved, &bytes);
    assert_errno(open_with(&moved, 0), libc::EROFS, "opening it for writing");
    fs::remove_file(&moved).expect("rm");
    let mut changed = bytes;
    put(&mut changed, 7, b"mine");
    assert_content(&new, &changed);
}

/// Contract: `qemu-img convert` closes and opens again while it writes an
/// image, `qemu-img` makes live images too, and rsync's hidden temporary
/// names are taken.
#[test]
fn qemu_img_and_rsync_write_images() {
    let programs = [Need::Program("qemu-img"), Need::Program("rsync")];
    if skipped(&[&[Need::Mount][..], &programs].concat()) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let mut bytes = noise(1, 3 * MIB as usize);
    clear(&mut bytes, MIB, MIB);
    let raw = store.scratch("any.raw");
    fs::write(&raw, &bytes).expect("a file outside");
    let script = format!(
        "cd {}; raw={}; mkdir web new
         qemu-img convert -f raw -O qcow2 $raw $raw.qcow2
         qemu-img convert -O raw $raw.qcow2 .images/converted.img
         qemu-img convert -f raw -O raw $raw .images/raw.img
         qemu-img convert -O raw $raw.qcow2 web/disk.img
         qemu-img create -q -f raw new/disk.img 10M
         rsync $raw .images/rsynced.img
         cp $raw $raw.img; rsync -a $raw.img .images/",
        mount.point().display(),
        raw.display(),
    );
    sh(&script);
    let images = ["any.raw.img", "converted.img", "raw.img", "rsynced.img"];
    assert_eq!(names(&mount.path(".images")), images);
    for image in images {
        let image = mount.path(".images").join(image);
        assert_content(&image, &bytes);
        assert_errno(open_with(&image, 0), libc::EROFS, "opening it for writing");
    }
    assert_content(&mount.path("web/disk.img"), &bytes);
    assert_content(&mount.path("new/disk.img"), &vec![0; 10 * MIB as usize]);
    let snapshot = take(&mount.path("web"), "s1");
    wait_ready(&snapshot);
    assert_eq!(state(&snapshot), "ready");
    // Over a live image: a plain restore.
    sh(&format!(
        "qemu-img convert -f raw -O raw {0}/.images/raw.img {0}/new/disk.img",
        mount.point().display()
    ));
    assert_content(&mount.path("new/disk.img"), &bytes);
}
