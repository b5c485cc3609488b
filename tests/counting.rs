//! Goal: what the README says of costs is so, whatever the machine: a
//! snapshot writes what changed and nothing else, a write is one write, a
//! clone stores nothing, deleting reads no data, and a daemon that nobody
//! uses does nothing.
//!
//! Method: calls and bytes are counted where the store meets its files
//! (`common/counting.rs`), on a filesystem in memory, and every count is
//! compared with a bound that does not depend on time; mostly for a small
//! disk and for a large one, which have to cost the same. Nothing is kept in
//! memory of chunks' bytes, so that none is read unseen. Calls of the
//! threads that seal are told from those of whoever takes the snapshot.

mod common;

use common::bytes::{Random, open};
use common::counting::{Calls, CountingFiles, Op, Part};
use common::faulty::{Call, Fault, FaultyFiles};
use common::library::*;
use common::{
    Need, TestStore, assert_sound, command, disk_with, noise, run, sh, skipped, take, wait_ready,
    wait_until,
};
use snapdisk::disk::{Attempt, Disk, Source, Wait};
use snapdisk::error::Result;
use snapdisk::files::Files;
use snapdisk::progress::Quiet;
use snapdisk::store::{Options, Store};
use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

/// Bytes in a block.
const BLOCK: usize = 4096;
/// Entries of a map page: what is above one page is at most a page more for
/// each 128 times as many chunks.
const FANOUT: u64 = 128;
/// What a manifest of a disk with few snapshots may take, in bytes.
const MANIFEST: u64 = 16 << 10;
/// What a log's header, or its record of a few changes, may take, in bytes.
const RECORD: u64 = 128;
/// What a record of a pack takes beside its payload at most: header,
/// padding, and the mark of a sync before it.
const OVERHEAD: u64 = 88 + 63 + 64;

/// A store on files that count, without a cache of chunks.
struct Counted {
    memory: FaultyFiles,
    index: tempfile::TempDir,
}

impl Counted {
    fn new() -> Counted {
        Counted {
            memory: new_files(),
            index: memory_dir(),
        }
    }

    /// Opens it; whatever an earlier opening had in memory is not known.
    fn open(&self) -> Result<(Arc<Store>, CountingFiles)> {
        let files = CountingFiles::new(Arc::new(self.memory.clone()));
        let options = Options {
            cache_bytes: 0,
            pack_bytes: 2 << 20,
            ..Options::default()
        };
        let seam: Arc<dyn Files> = Arc::new(files.clone());
        let store = Store::open_in(seam, self.index.path(), options, &Quiet)?;
        Ok((store, files))
    }
}

/// A store, just opened, with a disk of `size` bytes, of which every chunk in
/// `step` has data, with three sealed snapshots, and synced blocks in its
/// head.
fn used(size: usize, step: usize) -> Result<(Counted, Arc<Store>, CountingFiles, Arc<Disk>)> {
    let counted = Counted::new();
    let (store, _) = counted.open()?;
    let mut random = Random(size as u64);
    let web = make(&store, "web")?;
    web.truncate(size as u64, true)?;
    for name in ["one", "two", "three"] {
        for at in (0..size).step_by(step * CHUNK) {
            web.write(at as u64, &random.bytes(CHUNK), Wait::Yes)?
                .waited();
        }
        take_of(&web, name)?;
        wait_all_sealed(&store);
        // Each in packs of its own.
        store.chunks().rotate()?;
    }
    store.close()?;
    let (store, files) = counted.open()?;
    let web = disk(&store, "web");
    Ok((counted, store, files, web))
}

/// Sizes of a small disk and a large one, and of which of their chunks there
/// is data: 64 of 1 MiB, 1024 of 1 TiB.
const DISKS: [(usize, usize); 2] = [(1 << 20, 1), (1 << 40, 1 << 16)];

/// Chunks of a disk that have data.
fn chunks_of((size, step): (usize, usize)) -> u64 {
    (size / CHUNK / step) as u64
}

/// Pages on the way from one chunk of a disk to its map's top.
fn height_of((size, _): (usize, usize)) -> u64 {
    let mut height = 1;
    let mut chunks = (size / CHUNK) as u64;
    while chunks > FANOUT {
        chunks = chunks.div_ceil(FANOUT);
        height += 1;
    }
    height
}

/// How often a manifest is replaced in these calls.
fn replacements(calls: &Calls) -> u64 {
    calls.count(Part::Manifest, Op::Rename)
}

/// Panics unless nothing of any disk's data was written, and no file's bytes
/// but manifests, few, and records of logs.
#[track_caller]
fn assert_writes_no_data(calls: &Calls, manifests: u64, records: u64) {
    for part in [Part::Segment, Part::Data, Part::Map, Part::Pack] {
        assert_eq!(calls.count(part, Op::Write), 0, "{part:?} in\n{calls:?}");
    }
    assert!(replacements(calls) <= manifests, "{calls:?}");
    assert!(calls.count(Part::Log, Op::Write) <= records, "{calls:?}");
    let most = manifests * MANIFEST + records * RECORD;
    assert!(calls.written() <= most, "{calls:?}");
}

/// Panics unless no chunk of a disk was read, wherever it lies.
#[track_caller]
fn assert_reads_no_data(calls: &Calls) {
    for part in [Part::Segment, Part::Data] {
        assert_eq!(calls.count(part, Op::Read), 0, "{part:?} in\n{calls:?}");
    }
}

/// The crate's front page: "A write goes into the head at its own offset and
/// nowhere else"; an aligned one is one write, and reads and syncs nothing. What fsync then
/// does is bounded too: the data's sync alone if the blocks were there
/// already, else the data's, and after it (invariant 1) one record and the
/// log's.
#[test]
fn an_aligned_write_is_one_write_and_fsync_one_or_two_syncs() -> Result<()> {
    let (_counted, store, files, web) = used(1 << 20, 1)?;
    let bytes = Random(3).bytes(32 * BLOCK);
    // Its segment is made, and the filesystem asked for room, once.
    write(&web, 0, &bytes[..BLOCK])?;

    let only_write = [(Part::Segment, Op::Write)];
    let first_sync = [
        (Part::Segment, Op::Sync),
        (Part::Log, Op::Write),
        (Part::Log, Op::Sync),
    ];
    for (at, len) in [(8, 1), (16, 3), (64, 32)] {
        for fresh in [true, false] {
            let what = format!("{len} blocks at {at}, fresh: {fresh}");
            files.take();
            let data = &bytes[..len * BLOCK];
            web.write((at * BLOCK) as u64, data, Wait::Yes)?.waited();
            let calls = files.take().asked();
            assert_eq!(calls.steps(), only_write, "{what}:\n{calls:?}");
            assert_eq!(calls.written(), (len * BLOCK) as u64, "{what}");
            web.flush()?;
            let calls = files.take().asked();
            let expected = if fresh {
                &first_sync[..]
            } else {
                &first_sync[..1]
            };
            assert_eq!(calls.steps(), expected, "{what}:\n{calls:?}");
            assert!(calls.written() <= RECORD, "{what}:\n{calls:?}");
            web.flush()?;
            let calls = files.take().asked();
            assert_eq!(calls.steps(), [], "{what}, nothing new:\n{calls:?}");
        }
    }
    // One sync for many writes: scattered ones are one record of some bytes
    // each.
    for block in (128..192).step_by(2) {
        web.write(block * BLOCK as u64, &bytes[..BLOCK], Wait::Yes)?
            .waited();
    }
    files.take();
    web.flush()?;
    let calls = files.take().asked();
    assert_eq!(calls.steps(), first_sync, "{calls:?}");
    assert!(calls.written() <= 32 * 20 + RECORD, "{calls:?}");
    store.close()
}

/// Invariant 9: freeing data may wait until it is written out, on some
/// filesystems, so no thread does it that may not wait; it does nothing.
#[test]
fn a_thread_that_may_not_wait_frees_no_data() -> Result<()> {
    let (_counted, store, files, web) = used(1 << 20, 1)?;
    write(&web, 0, &Random(3).bytes(CHUNK))?;
    files.take();
    let len = CHUNK as u64;
    let punched = web.punch(0, len, false, Wait::No)?;
    assert_eq!(punched, Attempt::WouldBlock);
    let calls = files.take().asked();
    assert_eq!(calls.steps(), [], "{calls:?}");
    web.punch(0, len, false, Wait::Yes)?.waited();
    // Nothing is left to free.
    assert_eq!(web.punch(0, len, false, Wait::No)?, Attempt::Done(()));
    store.close()
}

/// README: "a snapshot costs what was written since the last one": taking it
/// writes a new head's log and two manifests, the same of a small disk and of
/// a large one, and reads and writes no data.
#[test]
fn taking_a_snapshot_writes_no_clean_data() -> Result<()> {
    let mut steps = Vec::new();
    for shape in DISKS {
        let (_counted, store, files, web) = used(shape.0, shape.1)?;

        // Nothing was written since the last: nothing has to be frozen.
        files.take();
        take_of(&web, "unchanged")?;
        let calls = files.take().mine();
        assert_writes_no_data(&calls, 1, 0);
        assert_reads_no_data(&calls);

        // What was written is on disk already.
        write(&web, 5 * CHUNK, &Random(4).bytes(BLOCK))?;
        files.take();
        take_of(&web, "changed")?;
        let calls = files.take().mine();
        assert_writes_no_data(&calls, 2, 1);
        assert_reads_no_data(&calls);
        assert_eq!(calls.count(Part::Segment, Op::Sync), 0, "{calls:?}");
        assert_eq!(calls.count(Part::Map, Op::Read), 0, "{calls:?}");
        println!(
            "{shape:?}: {} bytes in {} calls",
            calls.written(),
            calls.len()
        );
        steps.push(calls.steps());
        wait_all_sealed(&store);
        store.close()?;
    }
    assert_eq!(steps[0], steps[1], "one size and the other");
    Ok(())
}

/// README: "a snapshot costs what was written since the last one": sealing
/// stores as many chunks as changed, and the pages above them; of what did
/// not change it reads no chunk, and of what changed in part each once. A
/// chunk that is written again as it was is not stored again.
#[test]
fn sealing_stores_what_changed_and_reads_nothing_else() -> Result<()> {
    const CHANGED: u64 = 5;
    for shape in DISKS {
        for whole in [true, false] {
            let (_counted, store, files, web) = used(shape.0, shape.1)?;
            let mut random = Random(9);
            let len = if whole { CHUNK } else { BLOCK };
            let far = shape.1 * CHUNK;
            for index in 0..CHANGED as usize {
                write(&web, 3 * index * far, &random.bytes(len))?;
            }
            let mut same = vec![0; CHUNK];
            let at = 20 * far as u64;
            web.read(at, &mut same, Wait::Yes)?.waited();
            write(&web, at as usize, &same)?;
            files.take();
            take_of(&web, "four")?;
            wait_all_sealed(&store);
            let calls = files.take().sealers();
            let what = format!("{shape:?}, whole: {whole}:\n{calls:?}");

            assert_eq!(calls.count(Part::Data, Op::Write), CHANGED, "{what}");
            let most = CHANGED * (CHUNK as u64 + OVERHEAD);
            assert!(calls.bytes(Part::Data, Op::Write) <= most, "{what}");
            // Of each changed chunk the pages above it, and the root.
            let pages = (CHANGED + 1) * height_of(shape) + 1;
            assert!(calls.count(Part::Map, Op::Write) <= pages, "{what}");
            assert!(calls.count(Part::Map, Op::Read) <= pages, "{what}");
            // What is left of a chunk that changed in part comes from its
            // old one.
            let read = if whole { 0 } else { CHANGED };
            assert_eq!(calls.count(Part::Data, Op::Read), read, "{what}");
            let fresh = CHANGED * len as u64 + CHUNK as u64;
            assert_eq!(calls.bytes(Part::Segment, Op::Read), fresh, "{what}");
            assert_eq!(calls.count(Part::Segment, Op::Write), 0, "{what}");
            assert_eq!(replacements(&calls), 1, "{what}");
            println!(
                "{shape:?}, whole: {whole}: {} data, {} pages written, {} data read",
                calls.count(Part::Data, Op::Write),
                calls.count(Part::Map, Op::Write),
                calls.count(Part::Data, Op::Read)
            );
            store.close()?;
        }
    }
    Ok(())
}

/// The whole of a snapshot into a new disk, as `cp` does it, flushed.
fn clone(store: &Arc<Store>, from: &Arc<Disk>, snapshot: &str, to: &str) -> Result<Arc<Disk>> {
    let copy = make(store, to)?;
    let found = from.snapshot(snapshot).expect("it is there");
    let size = found.size();
    let source = Source::Snapshot(from.clone(), found);
    let mut done = 0;
    while done < size {
        done += copy.copy_range(&source, done, done, size - done)?;
    }
    copy.flush()?;
    Ok(copy)
}

/// README: a clone shares the chunks, and so does a rollback: both write a few records and manifests, whatever the
/// disk's size, read no data, and store none when they are sealed.
#[test]
fn a_clone_and_a_rollback_store_nothing() -> Result<()> {
    for shape in DISKS {
        for sealed in [true, false] {
            let (counted, store, files, web) = used(shape.0, shape.1)?;
            let mut from = "two";
            if !sealed {
                // A sealer that cannot write packs leaves it unsealed.
                counted.memory.fail(Fault {
                    call: Call::Create,
                    path: "packs/".into(),
                    errno: libc::ENOSPC,
                    after: 0,
                    times: u64::MAX,
                });
                write(&web, 0, &Random(2).bytes(3 * CHUNK))?;
                take_of(&web, "fresh")?;
                from = "fresh";
            }
            let what = format!("{shape:?}, sealed: {sealed}");

            files.take();
            let copy = clone(&store, &web, from, "copy")?;
            let calls = files.take().asked();
            // The disk's manifest and the catalogue, the image, and the
            // layer that the clone shares; a log's header and one record.
            assert_writes_no_data(&calls, 5, 2);
            assert_reads_no_data(&calls);
            println!("{what}: {} bytes of a clone", calls.written());

            files.take();
            web.rollback(from, true)?;
            let calls = files.take().mine();
            assert_writes_no_data(&calls, 1, 1);
            assert_reads_no_data(&calls);
            println!("{what}: {} bytes of a rollback", calls.written());
            files.take();
            web.rollback("one", false)?;
            let calls = files.take().mine();
            assert_writes_no_data(&calls, 2, 2);
            assert_reads_no_data(&calls);

            if sealed {
                // Seen through the copy, it is the same map.
                files.take();
                take_of(&copy, "copied")?;
                wait_all_sealed(&store);
                let calls = files.take().sealers();
                for part in [Part::Data, Part::Map] {
                    assert_eq!(calls.count(part, Op::Write), 0, "{what}:\n{calls:?}");
                }
                assert_reads_no_data(&calls);
                let root = |disk: &Disk, name: &str| disk.snapshot(name).and_then(|s| s.root());
                assert_eq!(root(&copy, "copied"), root(&web, "two"), "{what}");
            }
            counted.memory.mend();
            store.close()?;
        }
    }
    Ok(())
}

/// README: "rmdir deletes one", by one manifest; the space comes back
/// without a look at any disk's data where packs are wholly dead or wholly
/// live: gc reads directories of packs and pages of maps.
#[test]
fn deleting_and_collecting_read_no_data() -> Result<()> {
    for shape in DISKS {
        let (_counted, store, files, web) = used(shape.0, shape.1)?;

        files.take();
        web.delete_snapshot("one")?;
        let calls = files.take().mine();
        assert_writes_no_data(&calls, 1, 0);
        assert_reads_no_data(&calls);
        assert_eq!(calls.count(Part::Map, Op::Read), 0, "{calls:?}");
        assert_eq!(replacements(&calls), 1, "{calls:?}");

        files.take();
        let report = store.gc(false, &Quiet)?;
        let calls = files.take().mine();
        let what = format!("{shape:?}: {report:?}\n{calls:?}");
        assert!(report.packs_deleted > 0, "{what}");
        assert_eq!(report.packs_compacted, 0, "{what}");
        let dead = chunks_of(shape) * CHUNK as u64;
        assert!(report.freed_bytes >= dead, "{what}");
        let unlinked = calls.count(Part::Pack, Op::Unlink);
        assert_eq!(unlinked, report.packs_deleted, "{what}");
        assert_reads_no_data(&calls);
        assert_eq!(calls.written(), 0, "{what}");
        // Two roots are left, with at most a path of pages for each chunk,
        // read once.
        let pages = 2 * (chunks_of(shape) * height_of(shape) + 1);
        assert!(calls.count(Part::Map, Op::Read) <= pages, "{what}");
        println!(
            "{shape:?}: gc read {} pages, {} bytes of directories, deleted {} packs",
            calls.count(Part::Map, Op::Read),
            calls.bytes(Part::Pack, Op::Read),
            report.packs_deleted
        );
        store.close()?;
    }
    Ok(())
}

/// How long a daemon is watched.
const WATCHED_S: &str = "60";

/// How often threads of a process have let go of a processor by themselves.
fn switches(process: u32) -> u64 {
    let tasks = format!("/proc/{process}/task");
    let of = |entry: std::io::Result<fs::DirEntry>| {
        let status = entry.ok()?.path().join("status");
        let text = fs::read_to_string(status).ok()?;
        let count = text.lines().find(|line| line.starts_with("voluntary"))?;
        count.split_whitespace().last()?.parse::<u64>().ok()
    };
    fs::read_dir(tasks)
        .expect("it runs")
        .filter_map(of)
        .sum::<u64>()
}

/// Lengths of the logs of layers.
fn logs(store: &TestStore) -> Vec<u64> {
    let entries = fs::read_dir(store.path().join("layers")).expect("layers");
    let entries = entries.filter_map(|entry| entry.ok());
    let logs = entries.filter(|entry| entry.path().extension().is_some_and(|end| end == "log"));
    logs.filter_map(|log| Some(log.metadata().ok()?.len()))
        .collect()
}

/// README: an idle daemon makes no system call. With a disk, a sealed
/// snapshot, a policy and an index it makes none in a minute, once all that
/// follows a write and a deletion is done; nor with a snapshot whose date has
/// come and that cannot go yet, because it is open. It goes when it is closed.
#[test]
fn an_idle_daemon_makes_no_system_call() {
    let programs = ["strace", "unshare"].map(Need::Program);
    if skipped(&[Need::Mount]) || skipped(&programs) {
        return;
    }
    // Whoever looks through all mounts of a machine asks each of them
    // something: nobody sees one in a namespace of the test's own.
    const INSIDE: &str = "SNAPDISK_TEST_INSIDE";
    if std::env::var_os(INSIDE).is_none() {
        let this = std::env::current_exe().expect("this program");
        let name = std::thread::current().name().unwrap_or_default().to_owned();
        run(command("unshare", &["--mount"])
            .arg(this)
            .args(["--exact", &name, "--nocapture"])
            .env(INSIDE, "1"));
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", &noise(1, 4 << 20));
    // Its next slot is half a day away.
    let hour = sh("date -u -d '12 hours' +%H");
    let hour = hour.trim().trim_start_matches('0');
    let hour = if hour.is_empty() { "0" } else { hour };
    let policy = format!("hours = [{hour}]\ntimezone = \"UTC\"\n");
    fs::write(web.join(".snapshots/policy.toml"), policy).expect("a policy");
    wait_ready(&take(&web, "one"));
    let image = open(&web.join("disk.img"));
    image.write_all_at(&noise(2, 1 << 20), 0).expect("a write");
    let gone = take(&web, "two");
    wait_ready(&gone);
    image.write_all_at(&noise(3, 4096), 0).expect("a write");
    drop(image);
    fs::remove_dir(&gone).expect("rmdir");
    let ended = web.join(".snapshots/one");
    let reader = File::open(ended.join("disk.img")).expect("it opens");
    let set = ::snapdisk::sys::set_xattr(&ended, "snapdisk.expires", b"2001-01-01");
    set.expect("a date");
    // What the deletion freed is won back, and what was written and never
    // synced has reached the log of the only layer that is left.
    let events = mount.path(".status/events.jsonl");
    wait_until("space is won back", || {
        fs::read_to_string(&events).is_ok_and(|text| text.contains("gc_done"))
    });
    wait_until(
        "the write is in the log",
        || matches!(logs(&store)[..], [log] if log > 64),
    );
    let mut last = 0;
    wait_until("all threads sleep", || {
        let now = switches(mount.process());
        std::mem::replace(&mut last, now) == now
    });

    let trace = store.scratch("trace");
    let mut strace = command("timeout", &["--signal=INT", WATCHED_S, "strace", "-f"]);
    strace.arg("-o").arg(&trace);
    let watched = strace.args(["-p", &mount.process().to_string()]).output();
    let said = String::from_utf8_lossy(&watched.expect("strace").stderr).into_owned();
    assert!(said.contains("attached with"), "{said}");
    // Attaching and detaching interrupt what each thread waits in, which then
    // goes on; the thread that waits for signals asks again. Nothing else
    // came to an end, and so nothing else was begun.
    let trace = fs::read_to_string(trace).expect("what strace saw");
    let artefact = |line: &&str| {
        line.ends_with("<detached ...>")
            || line.ends_with("<unfinished ...>")
            || line.contains("= ? ERESTART")
            || (line.contains("rt_sigtimedwait") && line.contains("EINTR"))
            || line.contains("--- SIGSTOP")
    };
    let made: Vec<&str> = trace.lines().filter(|line| !artefact(line)).collect();
    assert_eq!(made, [""; 0], "in\n{trace}");
    println!("{} threads wait:\n{trace}", trace.lines().count());
    assert!(ended.exists());
    drop(reader);
    wait_until("its date has come", || !ended.exists());
    assert_sound(mount.point());
}
