//! Goal: no bytes in a store's files, and no words on the command line, make
//! the program panic, hang, or take more memory than the record could hold.
//!
//! Method: sound records are changed at random (bits flipped, runs copied,
//! cut, extreme numbers put in), often with their checksums made right
//! again, so that what lies behind them is reached; an allocator counts. The
//! seeds are what the program itself writes, and `tests/corpus`: whatever
//! once made trouble. `SNAPDISK_HOSTILE_ROUNDS` runs more.
#![allow(unsafe_code)]

mod common;

use common::bytes::Random;
use common::env_number;
use common::faulty::FaultyFiles;
use common::library::*;
use snapdisk::backend::Backend;
use snapdisk::backend::memory::MemoryBackend;
use snapdisk::chunk::{ChunkId, Codec, Keys, Kind};
use snapdisk::disk::log;
use snapdisk::error::Result;
use snapdisk::events::{Event, EventLog, What};
use snapdisk::files::Files;
use snapdisk::manifest::{
    self, Catalogue, DiskRecord, GroupRecord, Header, LayerId, LinkRecord, PolicyRecord, PolicyText,
};
use snapdisk::map::{Page, Root};
use snapdisk::mountinfo::Mounts;
use snapdisk::name::{DiskName, ImageName, PolicyName, SnapshotName};
use snapdisk::pack::{self, PackName};
use snapdisk::progress::Quiet;
use snapdisk::store::history::History;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::Duration;
use uuid::Uuid;

/// Counts what a thread has allocated, and its most at a time.
struct Counting;

thread_local! {
    static NOW: Cell<isize> = const { Cell::new(0) };
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn count(by: isize) {
    // Not while a thread is being taken down.
    let _ = NOW.try_with(|now| {
        now.set(now.get() + by);
        let _ = MOST.try_with(|most| most.set(most.get().max(now.get())));
    });
}

// SAFETY: everything is passed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc(layout) }
    }
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as isize);
        // SAFETY: the caller's promise is passed on.
        unsafe { System.alloc_zeroed(layout) }
    }
    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as isize));
        // SAFETY: the caller's promise is passed on.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The most that a call holds at a time, in bytes.
fn most_of(call: impl FnOnce()) -> u64 {
    let before = NOW.get();
    MOST.set(before);
    call();
    (MOST.get() - before).max(0) as u64
}

fn rounds(default: u64) -> u64 {
    env_number("SNAPDISK_HOSTILE_ROUNDS").unwrap_or(default)
}

/// Changes some bytes.
fn mutate(random: &mut Random, bytes: &mut Vec<u8>) {
    for _ in 0..=random.below(3) {
        let len = bytes.len() as u64;
        if len == 0 {
            bytes.push(random.next() as u8);
            continue;
        }
        let at = random.below(len) as usize;
        match random.below(8) {
            0 | 1 => bytes[at] ^= 1 << random.below(8),
            2 => bytes[at] = random.next() as u8,
            3 => bytes.truncate(at),
            4 => {
                let end = (at + random.below(64) as usize).min(bytes.len());
                bytes.drain(at..end);
            }
            5 => {
                let end = (at + random.below(64) as usize).min(bytes.len());
                let run = bytes[at..end].to_vec();
                let to = random.below(len) as usize;
                bytes.splice(to..to, run);
            }
            _ => {
                let extremes = [
                    0,
                    1,
                    0x7f,
                    0xff,
                    1 << 16,
                    1 << 31,
                    1 << 48,
                    u64::MAX,
                    u64::MAX - 1,
                ];
                let number = extremes[random.below(9) as usize].to_le_bytes();
                let wide = [1, 2, 4, 8][random.below(4) as usize];
                let end = (at + wide).min(bytes.len());
                bytes[at..end].copy_from_slice(&number[..end - at]);
            }
        }
    }
}

fn put_crc(bytes: &mut [u8], over: std::ops::Range<usize>, at: usize) {
    if over.end <= bytes.len() && at + 4 <= bytes.len() {
        let crc = crc32fast::hash(&bytes[over]).to_le_bytes();
        bytes[at..at + 4].copy_from_slice(&crc);
    }
}

fn number(bytes: &[u8], at: usize) -> usize {
    match bytes.get(at..at + 4) {
        Some(four) => u32::from_le_bytes(four.try_into().expect("four bytes")) as usize,
        None => 0,
    }
}

/// Makes the checksums of a pack right again, as far as it looks like one.
fn reseal_pack(bytes: &mut [u8]) {
    put_crc(bytes, 0..60, 60);
    let mut at = 64;
    while at + 64 <= bytes.len() {
        match &bytes[at..at + 4] {
            b"CHNK" => {
                let stored = number(bytes, at + 16);
                let end = at.saturating_add(88).saturating_add(stored);
                put_crc(bytes, at + 88..end, at + 80);
                put_crc(bytes, at..at + 84, at + 84);
                at = end.next_multiple_of(64);
            }
            b"PACK" => {
                if bytes[at..].starts_with(b"PACKDIR\0") {
                    let end = at + 64 + number(bytes, at + 24).saturating_mul(48);
                    put_crc(bytes, at + 64..end, at + 28);
                    let crc = number(bytes, at + 28) as u32;
                    let trailer = bytes.len() - 64;
                    bytes[trailer + 44..trailer + 48].copy_from_slice(&crc.to_le_bytes());
                }
                put_crc(bytes, at..at + 60, at + 60);
                at += 64;
            }
            _ => at += 64,
        }
    }
    let trailer = bytes.len().saturating_sub(64);
    put_crc(bytes, trailer..trailer + 60, trailer + 60);
}

/// Makes the checksums of a log right again.
fn reseal_log(bytes: &mut [u8]) {
    put_crc(bytes, 0..60, 60);
    let mut at = 64;
    while at + 20 <= bytes.len() {
        let end = (at + 20).saturating_add(number(bytes, at + 4));
        if end > bytes.len() {
            break;
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(&bytes[at..at + 16]);
        crc.update(&bytes[at + 20..end]);
        bytes[at + 16..at + 20].copy_from_slice(&crc.finalize().to_le_bytes());
        at = end;
    }
}

/// Makes the hash of a manifest right again.
fn reseal_manifest(bytes: &mut Vec<u8>) {
    let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else {
        return;
    };
    let line = String::from_utf8_lossy(&bytes[..end]).into_owned();
    let mut words: Vec<&str> = line.split(' ').collect();
    let hash = blake3::hash(&bytes[end + 1..]).to_hex();
    if let Some(last) = words.last_mut() {
        *last = hash.as_str();
    }
    let line = words.join(" ");
    bytes.splice(..end, line.into_bytes());
}

/// Names and contents in `tests/corpus` that begin with a word.
fn corpus(kind: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus");
    let entries = fs::read_dir(directory).expect("tests/corpus");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str());
            name.is_some_and(|name| name.starts_with(kind))
        })
        .map(|path| fs::read(path).expect("a file of the corpus"))
        .collect()
}

/// Feeds `decode` with changed seeds; it may hold `limit` bytes beside ten
/// times its input.
fn feed(
    what: &str,
    seeds: &[Vec<u8>],
    times: u64,
    limit: u64,
    reseal: &dyn Fn(&mut Vec<u8>),
    decode: &dyn Fn(&[u8]),
) {
    let mut random = Random(what.len() as u64);
    let kept = corpus(what).into_iter().map(|mut bytes| {
        reseal(&mut bytes);
        bytes
    });
    let seeds: Vec<Vec<u8>> = seeds.iter().cloned().chain(kept).collect();
    let mut worst = 0;
    for round in 0..rounds(times) {
        let mut bytes = seeds[random.below(seeds.len() as u64) as usize].clone();
        // The seeds themselves first.
        if round >= seeds.len() as u64 {
            mutate(&mut random, &mut bytes);
            if random.below(3) > 0 {
                reseal(&mut bytes);
            }
        } else {
            bytes.clone_from(&seeds[round as usize]);
        }
        let decoded =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| most_of(|| decode(&bytes))));
        let held = decoded.unwrap_or_else(|_| {
            let kept = std::env::temp_dir().join(format!("{what}-{round}"));
            fs::write(&kept, &bytes).expect("writing what made it panic");
            panic!("{what}: a panic; what caused it is in {kept:?}, for tests/corpus");
        });
        let allowed = limit + 10 * bytes.len() as u64;
        assert!(
            held <= allowed,
            "{what}: {held} bytes held for {}",
            bytes.len()
        );
        worst = worst.max(held);
    }
    println!(
        "{what}: {} executions, {worst} bytes held at most",
        rounds(times)
    );
}

/// A store with one of everything, in memory.
fn sample(root: &Path) -> FaultyFiles {
    let files = new_files();
    let store = open_files(&files, root).expect("it opens");
    let made = (|| -> Result<()> {
        let disk = store.create_disk(DiskName::parse("web".as_ref())?, OWNER)?;
        disk.create_image(OWNER)?;
        let text = b"the quick brown fox ".repeat(4000);
        disk.write(100, &text, snapdisk::disk::Wait::Yes)?.waited();
        disk.flush()?;
        disk.take_snapshot(SnapshotName::parse("one".as_ref())?)?;
        common::wait_until("it is sealed", || {
            disk.snapshots().iter().all(|s| s.state() == "ready")
        });
        store.link_image(&disk, "one", ImageName::parse("golden.img".as_ref())?)?;
        store.take_group(SnapshotName::parse("all".as_ref())?, None, OWNER)?;
        let policy = PolicyText {
            text: "hours = [3]\n".to_owned(),
            owner: OWNER,
            modified_ns: snapdisk::time::now_ns(),
        };
        store.set_named_policy(PolicyName::parse("nightly.toml".as_ref())?, policy)?;
        disk.write(9000, &text[..7000], snapdisk::disk::Wait::Yes)?
            .waited();
        disk.flush()?;
        store.close()
    })();
    made.expect("a sample");
    files.fork()
}

fn files_below(files: &FaultyFiles, prefix: &str) -> Vec<(String, Vec<u8>)> {
    let paths = files.paths().into_iter();
    let mut found: Vec<(String, Vec<u8>)> = paths
        .filter(|path| path.to_string_lossy().starts_with(prefix))
        .map(|path| (path.to_string_lossy().into_owned(), files.bytes(&path)))
        .collect();
    found.sort();
    found
}

#[test]
fn packs() {
    let home = memory_dir();
    let files = sample(home.path());
    let (path, bytes) = files_below(&files, "packs/").remove(0);
    let name: PackName = path["packs/".len()..].parse().expect("a pack's name");
    let keys = Keys::new(&[7; 32]);
    let store = Uuid::from_slice(&bytes[16..32]).expect("16 bytes");
    // One window, a few records, a directory.
    let limit = (4 << 20) + (4 << 20);
    let decode = |bytes: &[u8]| {
        let backend = MemoryBackend::new();
        let key = name.key();
        backend.put_new(&key, bytes).expect("a new object");
        let len = bytes.len() as u64;
        if let Ok(contents) = pack::Reader::new(&backend, &name).contents(store, len) {
            for entry in contents.directory.entries() {
                if let Ok(stored) = pack::read_record(&backend, &name, entry) {
                    drop(stored.open(&keys));
                }
            }
        }
        drop(
            pack::Reader::over_unreadable(&backend, &name).scan(len, |_, stored| {
                drop(stored.open(&keys));
            }),
        );
        drop(pack::Directory::decode(bytes, len));
    };
    let reseal = |bytes: &mut Vec<u8>| reseal_pack(bytes);
    feed("pack", &[bytes], 3000, limit, &reseal, &decode);
}

#[test]
fn map_pages_and_roots() {
    let mut seeds = Vec::new();
    let home = memory_dir();
    let files = sample(home.path());
    let (path, bytes) = files_below(&files, "packs/").remove(0);
    let name: PackName = path["packs/".len()..].parse().expect("a pack's name");
    let backend = MemoryBackend::new();
    backend.put_new(&name.key(), &bytes).expect("a new object");
    let scanned = pack::Reader::new(&backend, &name).scan(bytes.len() as u64, |entry, stored| {
        if entry.kind != Kind::Data {
            let plain = snapdisk::chunk::decode(
                stored.codec,
                (&stored.payload[..]).into(),
                stored.plain_len,
            );
            seeds.push(plain.expect("a sound record"));
        }
    });
    drop(scanned.expect("a sound pack"));
    assert!(seeds.len() >= 2, "a page and a root");
    let decode = |bytes: &[u8]| {
        if let Ok(page) = Page::decode(bytes) {
            assert_eq!(page.encode(), bytes, "one encoding only");
        }
        if let Ok(root) = Root::decode(bytes) {
            assert_eq!(root.encode(), bytes, "one encoding only");
        }
    };
    feed("page", &seeds, 50_000, 64 << 10, &|_| (), &decode);
}

#[test]
fn chunks_and_zstd_bombs() {
    let (codec, packed) = snapdisk::chunk::encode(&[0; 1 << 20]);
    assert_eq!(codec, Codec::Zstd);
    let seeds = [
        packed.into_owned(),
        snapdisk::chunk::encode(b"abcabc").1.into_owned(),
    ];
    let decode = |bytes: &[u8]| {
        // A frame that claims a gigabyte gets what its record says.
        for plain_len in [0, 1, 4096, 65536] {
            drop(snapdisk::chunk::decode(
                Codec::Zstd,
                bytes.into(),
                plain_len,
            ));
            drop(snapdisk::chunk::decode(Codec::Raw, bytes.into(), plain_len));
        }
    };
    feed("zstd", &seeds, 20_000, 1 << 20, &|_| (), &decode);
}

#[test]
fn logs_of_layers() {
    let home = memory_dir();
    let files = sample(home.path());
    let logs = files_below(&files, "layers/");
    let (_, bytes) = logs
        .into_iter()
        .find(|(path, _)| path.ends_with(".log"))
        .expect("a log");
    let decode = |bytes: &[u8]| {
        let files = FaultyFiles::new();
        files.create_dir(Path::new("layers")).expect("a directory");
        let file = files.create_new(Path::new("layers/log")).expect("a file");
        file.write_all_at(bytes, 0).expect("written");
        let id = bytes.get(16..32).and_then(|id| Uuid::from_slice(id).ok());
        let id = LayerId(id.unwrap_or_default());
        drop(log::replay(&*file, "log", id, &mut |_| Ok(())));
    };
    let reseal = |bytes: &mut Vec<u8>| reseal_log(bytes);
    // The files in memory hold some copies; a frame has 4 MiB at most.
    feed("log", &[bytes], 10_000, 8 << 20, &reseal, &decode);
}

#[test]
fn manifests() {
    let home = memory_dir();
    let files = sample(home.path());
    let seeds: Vec<Vec<u8>> = files_below(&files, "manifests/")
        .into_iter()
        .map(|(_, bytes)| bytes)
        .collect();
    let decode = |bytes: &[u8]| {
        drop(manifest::decode::<Header>("key", bytes));
        drop(manifest::decode::<Catalogue>("key", bytes));
        drop(manifest::decode::<DiskRecord>("key", bytes));
        drop(manifest::decode::<LinkRecord>("key", bytes));
        drop(manifest::decode::<PolicyRecord>("key", bytes));
        drop(manifest::decode::<GroupRecord>("key", bytes));
        drop(serde_json::from_slice::<snapdisk::verbs::Request>(bytes));
    };
    feed(
        "manifest",
        &seeds,
        20_000,
        1 << 20,
        &reseal_manifest,
        &decode,
    );
}

#[test]
fn policies_and_times() {
    let seeds: Vec<Vec<u8>> = [
        "hours = [0, 6, 12, 18]\nhourly = 24\ndaily = 7\nweekly = 4\n",
        "# twice a day\nhours = [3, 15]\nminute = 30\nutc = true\nyearly = 9\n",
        "[[schedule]]\nevery = \"1h\"\nkeep = 24\n",
        "2026-11-27T04:05:06Z",
        "2026-11-27T04:05:06.789+01:00",
        "1d12h",
    ]
    .map(|text| text.as_bytes().to_vec())
    .into();
    let decode = |bytes: &[u8]| {
        let Ok(text) = std::str::from_utf8(bytes) else {
            return;
        };
        let whole = snapdisk::policy::parse(text).is_ok();
        // What is accepted in the end is accepted on the way.
        assert!(
            !whole || snapdisk::policy::check_so_far(text).is_ok(),
            "{text:?}"
        );
        let _ = snapdisk::time::parse(text);
    };
    feed("text", &seeds, 20_000, 4 << 20, &|_| (), &decode);
}

/// What the kernel says of mounts that anybody may have made, and what
/// earlier runs left of events and samples.
#[test]
fn mounts_events_and_samples() {
    let mounts: &[&[u8]] = &[b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
          30 22 0:40 / /mnt/my\\040disks rw master:2 - fuse.snapdisk /var/a\\134b rw,user_id=0\n\
          33 22 0:42 / /\xff rw - ext4 x rw\n"];
    let seeds: Vec<Vec<u8>> = mounts.iter().map(|text| text.to_vec()).collect();
    let decode = |bytes: &[u8]| {
        let mounts = Mounts::parse(bytes);
        for path in ["/", "/mnt/my disks/web"].map(Path::new) {
            let mount = mounts.at(path).or(mounts.holding(path));
            let _ = mount.and_then(|mount| mount.inner(path));
        }
    };
    feed("mountinfo", &seeds, 20_000, 4 << 10, &|_| (), &decode);

    let directory = memory_dir();
    let event = Event::new(What::Deleted).disk("web").snapshot("a");
    let (log, current) = (EventLog::open(directory.path()), "events.jsonl");
    for _ in 0..3 {
        log.note(event.clone());
    }
    log.close();
    log.write_out(directory.path());
    let path = directory.path().join(current);
    let seeds = [fs::read(&path).expect("the events were written")];
    let decode = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("writing events");
        let log = EventLog::open(directory.path());
        let before = log.text().lines().count();
        assert!(log.note(event.clone()), "it goes on");
        assert_eq!(log.text().lines().count(), before + 1);
        assert!(log.since(0, Duration::ZERO).len() > before);
    };
    feed("events", &seeds, 3000, 1 << 20, &|_| (), &decode);

    let seeds = [
        "time,disk,snapshots,size_bytes,stored_bytes,chain_bytes,unsealed_bytes,free_bytes\n\
         2026-11-27T04:00:00Z,,3,100,50,,7,900\n\
         2026-11-27T04:00:00Z,web,3,100,50,,7,0\n\
         2026-11-27T05:00:00Z,,4,100,60,12,7,890\n\
         2026-11-27T05:00:00Z,web,4,100,60,12,7,0\n",
    ];
    let seeds = seeds.map(|text| text.as_bytes().to_vec());
    let path = directory.path().join("capacity.csv");
    let decode = |bytes: &[u8]| {
        fs::write(&path, bytes).expect("writing samples");
        let history = History::open(directory.path());
        let rows = history.rows(i64::MIN, i64::MAX).len();
        assert_eq!(history.to_csv().lines().count(), rows + 1);
        let _ = history.to_svg();
    };
    feed("samples", &seeds, 3000, 8 << 20, &|_| (), &decode);
}

#[test]
fn names_and_command_lines() {
    let seeds: Vec<Vec<u8>> = [
        "web",
        "before-upgrade",
        "auto-20261123T030000Z",
        ".images",
        "a\u{301}\u{202e}b",
        "snapdisk mount -o threads=4,cache=64M,snapdir=hidden store mnt",
        "snapdisk init --chunk-size 128K store",
        "snapdisk rollback --store s web first --discard",
        "snapdisk verify --repair --forget-lost --json s",
    ]
    .map(|text| text.replace(' ', "\0").into_bytes())
    .into();
    let decode = |bytes: &[u8]| {
        let name = OsStr::from_bytes(bytes);
        let parsed = [
            DiskName::parse(name).map(|name| name.as_str().to_owned()),
            SnapshotName::parse(name).map(|name| name.as_str().to_owned()),
            SnapshotName::parse_manual(name).map(|name| name.as_str().to_owned()),
            ImageName::parse(name).map(|name| name.as_str().to_owned()),
        ];
        for name in parsed.into_iter().flatten() {
            let plain = !name.contains('/') && !name.starts_with('.') && name.len() <= 255;
            assert!(plain, "{name:?} must not be a name");
        }
        drop("x".parse::<PackName>());
        if let Ok(text) = std::str::from_utf8(bytes) {
            drop(text.parse::<PackName>());
            drop(text.parse::<ChunkId>());
            drop(text.parse::<LayerId>());
            drop(snapdisk::fuse::MountOptions::default().add(text));
            let _ = snapdisk::disk::layer::parse_file_name(text);
        }
        let words = bytes.split(|byte| *byte == 0).map(OsStr::from_bytes);
        drop(<snapdisk::cli::Arguments as clap::Parser>::try_parse_from(
            words,
        ));
    };
    feed("words", &seeds, 5_000, 4 << 20, &|_| (), &decode);
}

/// Manifests whose numbers and names are absurd, and whose hashes are right:
/// the whole store is opened, read, verified, repaired and closed on them.
#[test]
fn a_store_of_absurd_manifests() {
    let home = memory_dir();
    let files = sample(home.path());
    let mut targets = files_below(&files, "manifests/");
    targets.extend(
        files_below(&files, "layers/")
            .into_iter()
            .filter(|(path, _)| path.ends_with(".log")),
    );
    let mut random = Random(11);
    let mut opened = 0;
    let times = rounds(400);
    for _ in 0..times {
        let (path, bytes) = &targets[random.below(targets.len() as u64) as usize];
        let mut bytes = bytes.clone();
        if path.ends_with(".log") {
            mutate(&mut random, &mut bytes);
            reseal_log(&mut bytes);
        } else {
            absurd(&mut random, &mut bytes);
            reseal_manifest(&mut bytes);
        }
        let files = files.fork();
        files.tamper(Path::new(path), |content| *content = bytes.clone());
        let root = tempfile::tempdir_in(home.path()).expect("a directory");
        let used = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            use_store(&files, root.path())
        }));
        match used {
            Ok(is_open) => opened += u64::from(is_open),
            Err(_) => panic!("{path}: {}", String::from_utf8_lossy(&bytes)),
        }
        assert_no_background_panic(path);
    }
    println!("store: {times} executions, {opened} opened");
    assert!(opened > 0, "none opened");
}

fn use_store(files: &FaultyFiles, root: &Path) -> bool {
    let Ok(store) = open_files(files, root) else {
        return false;
    };
    let mut bytes = vec![0; 1 << 16];
    for disk in store.disks() {
        for at in [0, 1 << 12, 1 << 40] {
            drop(disk.read(at, &mut bytes, snapdisk::disk::Wait::Yes));
        }
        for snapshot in disk.snapshots() {
            drop(disk.read_snapshot(&snapshot, 0, &mut bytes, snapdisk::disk::Wait::Yes));
            drop(disk.snapshot_info(&snapshot));
        }
        if disk.live().is_some() {
            drop(disk.write(5, &bytes, snapdisk::disk::Wait::Yes));
            drop(disk.take_snapshot(SnapshotName::parse("after".as_ref()).expect("a name")));
        }
    }
    drop(store.verify(&Quiet, &mut drop));
    drop(store.repair(false, &Quiet, &mut drop));
    drop(store.gc(false, &Quiet));
    drop(store.close());
    true
}

/// Puts something else into one value of a manifest's JSON.
fn absurd(random: &mut Random, bytes: &mut Vec<u8>) {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .expect("a line")
        + 1;
    let mut body: serde_json::Value = serde_json::from_slice(&bytes[end..]).expect("JSON");
    for _ in 0..=random.below(2) {
        let mut paths = Vec::new();
        leaves(&body, &mut String::new(), &mut paths);
        let path = &paths[random.below(paths.len() as u64) as usize];
        let other = body
            .pointer(&paths[random.below(paths.len() as u64) as usize])
            .cloned();
        let value = body.pointer_mut(path).expect("it was found");
        let numbers = [
            0,
            1,
            1 << 16,
            (1 << 28) - 1,
            1 << 28,
            1 << 40,
            1 << 47,
            1 << 62,
            u64::MAX,
        ];
        *value = match random.below(5) {
            0 => serde_json::Value::Null,
            1 => other.expect("it was found"),
            2 => "../../etc/passwd".into(),
            _ => match value.is_i64() && random.below(4) == 0 {
                true => i64::MIN.into(),
                false => numbers[random.below(9) as usize].into(),
            },
        };
    }
    bytes.truncate(end);
    bytes.extend(serde_json::to_vec(&body).expect("JSON"));
}

fn leaves(value: &serde_json::Value, at: &mut String, found: &mut Vec<String>) {
    let len = at.len();
    let mut inner = |key: &str, value: &serde_json::Value| {
        at.push('/');
        at.push_str(key);
        leaves(value, at, found);
        at.truncate(len);
    };
    match value {
        serde_json::Value::Object(fields) => fields.iter().for_each(|(k, v)| inner(k, v)),
        serde_json::Value::Array(items) => {
            let items = items.iter().enumerate();
            items.for_each(|(at, item)| inner(&at.to_string(), item));
        }
        _ => found.push(at.clone()),
    }
}
