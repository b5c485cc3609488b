//! Goal: when the disk below fails, nothing that was acknowledged is lost,
//! nothing wrong is served, and no fsync is acknowledged that did not write
//! (invariants 1, 3, 6).
//!
//! Method: one call on one kind of file fails with one error, once or from
//! then on, while a store is written, flushed, snapshotted, deleted from,
//! collected and read. Then the power fails as well. What the calls answered
//! says what must be there afterwards; the file system counts the syncs that
//! failed, and after each the image has to answer EIO until it is opened
//! again.

mod common;

use common::bytes::Random;
use common::faulty::{Call, Fault, FaultyFiles};
use common::library::*;
use common::{DEADLINE, Filesystem, Need, skipped};
use snapdisk::disk::{AttributeChange, Disk, Source, Wait};
use snapdisk::manifest::{EntryKind, Settings, entry_key};
use snapdisk::name::{DiskName, ImageName, SnapshotName};
use snapdisk::progress::Quiet;
use snapdisk::store::{Options, Store};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;

/// Chunks of a disk.
const CHUNKS: usize = 8;

/// What a disk's chunks may be: each one of these.
struct May(Vec<Vec<Vec<u8>>>);

impl May {
    fn new(bytes: &[u8]) -> May {
        May(bytes
            .chunks(CHUNK)
            .map(|chunk| vec![chunk.to_vec()])
            .collect())
    }

    /// A write of a chunk that may have happened.
    fn also(&mut self, chunk: usize, bytes: &[u8]) {
        self.0[chunk].push(bytes.to_vec());
    }

    /// Everything so far is on disk as it was last.
    fn settle(&mut self) {
        self.0
            .iter_mut()
            .for_each(|may| drop(may.drain(..may.len() - 1)));
    }

    /// Each sector is one of those that it may be.
    fn check(&self, what: &str, chunk: usize, found: &[u8]) {
        for (at, sector) in found.chunks(512).enumerate() {
            let range = at * 512..at * 512 + 512;
            let fits = self.0[chunk]
                .iter()
                .any(|may| may[range.clone()] == *sector);
            assert!(
                fits,
                "{what}: sector {at} of chunk {chunk} is none of what was written"
            );
        }
    }
}

struct Run<'a> {
    what: &'a str,
    live: BTreeMap<&'static str, May>,
    /// Snapshots that were acknowledged.
    taken: BTreeMap<(&'static str, &'static str), Vec<Vec<u8>>>,
    /// Syncs that were acknowledged.
    flushed: u64,
    refused: u64,
}

impl Run<'_> {
    fn write(&mut self, disk: &Arc<Disk>, name: &'static str, chunk: usize, bytes: &[u8]) {
        let at = (chunk * CHUNK) as u64;
        let may = self.live.get_mut(name).expect("it is known");
        may.also(chunk, bytes);
        let mut acknowledged = disk.write(at, bytes, Wait::Yes).is_ok();
        if acknowledged {
            // It is what is read from now on, flushed or not.
            let mut found = vec![0; CHUNK];
            if disk.read(at, &mut found, Wait::Yes).is_ok() {
                assert!(
                    found == bytes,
                    "{}: a write that returned is not read",
                    self.what
                );
            }
            acknowledged = disk.flush().is_ok();
        }
        if acknowledged {
            self.flushed += 1;
            may.settle();
        } else {
            self.refused += 1;
        }
    }

    fn take(&mut self, disk: &Arc<Disk>, name: &'static str, snapshot: &'static str) {
        if take_of(disk, snapshot).is_err() {
            self.refused += 1;
            return;
        }
        let found = disk.snapshot(snapshot).expect("it was taken");
        let mut chunks = Vec::new();
        for chunk in 0..CHUNKS {
            let mut bytes = vec![0; CHUNK];
            let at = (chunk * CHUNK) as u64;
            match disk.read_snapshot(&found, at, &mut bytes, Wait::Yes) {
                Ok(_) => self.live[name].check(self.what, chunk, &bytes),
                Err(_) => bytes.clear(),
            }
            chunks.push(bytes);
        }
        self.taken.insert((name, snapshot), chunks);
    }

    fn check_live(&self, disk: &Arc<Disk>, name: &str, must: bool) {
        for chunk in 0..CHUNKS {
            let mut bytes = vec![0; CHUNK];
            let read = disk.read((chunk * CHUNK) as u64, &mut bytes, Wait::Yes);
            match read {
                Ok(_) => self.live[name].check(self.what, chunk, &bytes),
                Err(error) => assert!(!must, "{}: {name}: {error}", self.what),
            }
        }
    }
}

fn sample(root: &Path) -> (FaultyFiles, Vec<u8>) {
    let files = new_files();
    let store = open_files(&files, root).expect("it opens");
    let bytes = Random(3).bytes(CHUNKS * CHUNK);
    for name in ["a", "b"] {
        let disk = make(&store, name).expect("a disk");
        write(&disk, 0, &bytes).expect("written");
        take_of(&disk, "base").expect("a snapshot");
        write(&disk, 0, &bytes[CHUNK..2 * CHUNK]).expect("written");
        take_of(&disk, "gone").expect("a snapshot");
        write(&disk, 0, &bytes[..CHUNK]).expect("written");
    }
    wait_all_sealed(&store);
    store.close().expect("closing");
    (files.fork(), bytes)
}

fn run(what: &str, sample: &(FaultyFiles, Vec<u8>), fault: &Fault, root: &Path) -> (u64, u64, u64) {
    let (files, bytes) = (sample.0.fork(), &sample.1);
    let mut random = Random(what.len() as u64);
    let store = open_files(&files, root).unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut run = Run {
        what,
        live: ["a", "b"].map(|name| (name, May::new(bytes))).into(),
        taken: BTreeMap::new(),
        flushed: 0,
        refused: 0,
    };
    let (a, b) = (disk(&store, "a"), disk(&store, "b"));
    files.fail(fault.clone());
    run.write(&a, "a", 2, &random.bytes(CHUNK));
    run.take(&a, "a", "one");
    run.write(&b, "b", 3, &random.bytes(CHUNK));
    run.write(&a, "a", 2, &random.bytes(CHUNK));
    run.refused += u64::from(a.delete_snapshot("gone").is_err());
    run.refused += u64::from(store.gc(false, &Quiet).is_err());
    run.take(&b, "b", "two");
    run.refused += u64::from(b.rollback("base", false).is_err());
    // Whichever of the two it is now: what it was is kept or still there.
    if b.snapshots()
        .iter()
        .any(|s| s.name().starts_with("before-rollback"))
    {
        run.live.insert("b", May::new(bytes));
    } else {
        for chunk in 0..CHUNKS {
            let old = bytes[chunk * CHUNK..][..CHUNK].to_vec();
            run.live
                .get_mut("b")
                .expect("it is known")
                .also(chunk, &old);
        }
    }
    run.check_live(&a, "a", false);
    run.check_live(&b, "b", false);
    let hits = files.hits();
    drop((a, b));
    // The power fails, the disk is well again.
    let left = files.crash(&mut random);
    drop(store);
    let store = open_files(&left, root).unwrap_or_else(|error| panic!("{what}: after: {error}"));
    for name in ["a", "b"] {
        let disk = disk(&store, name);
        run.check_live(&disk, name, true);
        assert!(
            disk.snapshot("base").is_some(),
            "{what}: {name}@base is gone"
        );
    }
    for ((name, snapshot), chunks) in &run.taken {
        let disk = disk(&store, name);
        let found = disk.snapshot(snapshot);
        let found = found.unwrap_or_else(|| panic!("{what}: {name}@{snapshot} is gone"));
        for (chunk, expected) in chunks.iter().enumerate() {
            let mut bytes = vec![0; CHUNK];
            let at = (chunk * CHUNK) as u64;
            let read = disk.read_snapshot(&found, at, &mut bytes, Wait::Yes);
            read.unwrap_or_else(|error| panic!("{what}: {name}@{snapshot}: {error}"));
            let same = expected.is_empty() || bytes == *expected;
            assert!(
                same,
                "{what}: chunk {chunk} of {name}@{snapshot} has changed"
            );
        }
    }
    assert_store_sound(&store, what);
    // And writing goes on.
    let again = disk(&store, "a");
    write(&again, 0, &bytes[..CHUNK]).unwrap_or_else(|error| panic!("{what}: again: {error}"));
    store
        .gc(false, &Quiet)
        .unwrap_or_else(|error| panic!("{what}: gc again: {error}"));
    store
        .close()
        .unwrap_or_else(|error| panic!("{what}: closing: {error}"));
    (hits, run.flushed, run.refused)
}

#[test]
fn whatever_call_fails_nothing_acknowledged_is_lost() {
    let home = memory_dir();
    let sample = sample(home.path());
    let calls = [
        Call::Create,
        Call::Open,
        Call::Read,
        Call::Write,
        Call::Punch,
        Call::Sync,
        Call::Rename,
        Call::Unlink,
        Call::SyncDir,
        Call::List,
    ];
    let (mut cells, mut hits, mut flushed, mut refused) = (0, 0, 0, 0);
    for call in calls {
        for path in [
            ".log",
            ".0000",
            "layers",
            "packs",
            "manifests/disk",
            "manifests/catalogue",
            // Where each of them is written first.
            "manifests/.tmp",
            "",
        ] {
            for errno in [libc::EIO, libc::EROFS, libc::ENOSPC] {
                for (after, times) in [(0, 1), (0, u64::MAX), (1, 1), (3, u64::MAX), (6, 2)] {
                    let fault = Fault {
                        call,
                        path: path.to_owned(),
                        errno,
                        after,
                        times,
                    };
                    let root = tempfile::tempdir_in(home.path()).expect("a directory");
                    let what = format!("{fault:?}");
                    let counted = run(&what, &sample, &fault, root.path());
                    cells += u64::from(counted.0 > 0);
                    hits += counted.0;
                    flushed += counted.1;
                    refused += counted.2;
                }
            }
        }
    }
    println!(
        "{cells} kinds of faults came to pass, {hits} calls failed, {refused} operations were \
         refused, {flushed} flushes acknowledged and none of them lost"
    );
    assert!(cells > 200, "only {cells} kinds of faults came to pass");
}

/// After a failed flush an image answers EIO until it is opened again, and
/// what was acknowledged before is there.
#[test]
fn a_failed_flush_is_final_until_the_store_is_opened_again() {
    let home = memory_dir();
    let (files, bytes) = sample(home.path());
    for path in [".log", ".0000"] {
        let files = files.fork();
        let store = open_files(&files, home.path()).expect("it opens");
        let a = disk(&store, "a");
        let fresh = Random(8).bytes(CHUNK);
        write(&a, 0, &fresh).expect("acknowledged");
        files.fail(Fault {
            call: Call::Sync,
            path: path.into(),
            errno: libc::EIO,
            after: 0,
            times: 1,
        });
        assert!(
            write(&a, CHUNK, &fresh).is_err(),
            "{path}: the flush failed"
        );
        // The disk is well again, and nobody knows what it has.
        for _ in 0..3 {
            assert!(a.flush().is_err(), "{path}: a later flush must not lie");
            assert!(a.write(0, &fresh, Wait::Yes).is_err(), "{path}: a write");
            assert!(
                a.read(0, &mut [0; 512], Wait::Yes).is_err(),
                "{path}: a read"
            );
            assert!(take_of(&a, "after").is_err(), "{path}: a snapshot");
        }
        assert_eq!(files.hits(), 1, "{path}: one sync failed");
        write(&disk(&store, "b"), 0, &fresh).expect("the other disk goes on");
        drop((a, store));
        let files = files.kill();
        let store = open_files(&files, home.path()).expect("it opens again");
        let a = disk(&store, "a");
        let mut found = vec![0; CHUNK];
        a.read(0, &mut found, Wait::Yes).expect("it answers again");
        assert!(found == fresh, "{path}: what was acknowledged");
        a.read(CHUNK as u64, &mut found, Wait::Yes)
            .expect("it answers again");
        let old = &bytes[CHUNK..2 * CHUNK];
        for (at, sector) in found.chunks(512).enumerate() {
            let range = at * 512..at * 512 + 512;
            assert!(
                sector == &old[range.clone()] || sector == &fresh[range],
                "{path}: sector {at} is neither old nor new"
            );
        }
        write(&a, CHUNK, &fresh).expect("it can be written again");
        store.close().expect("closing");
    }
}

/// Invariants 1, 2 and 6: an error that the kernel tells while data is pushed
/// out ahead of a snapshot, and does not tell again, is as final as that of a
/// sync; so is one ahead of a pack's sync.
#[test]
fn a_failed_write_back_is_final_until_the_store_is_opened_again() {
    let home = memory_dir();
    let files = new_files();
    let store = open_files(&files, home.path()).expect("it opens");
    let a = make(&store, "a").expect("a disk");
    let old = Random(1).bytes(20 << 20);
    write(&a, 0, &old).expect("acknowledged");
    take_of(&a, "old").expect("a snapshot");
    wait_all_sealed(&store);
    // More than a snapshot leaves to its sync.
    let new = Random(2).bytes(20 << 20);
    a.write(0, &new, Wait::Yes).expect("a write");
    let fault = |path: &str| Fault {
        call: Call::WriteBack,
        path: path.into(),
        errno: libc::EIO,
        after: 0,
        times: 1,
    };
    files.fail(fault(".0000"));
    take_of(&a, "new").expect_err("pushing out failed");
    assert_eq!(files.hits(), 1, "one call failed");
    for _ in 0..2 {
        take_of(&a, "new").expect_err("a later snapshot must not lie");
        a.flush().expect_err("a later flush must not lie");
    }
    drop((a, store));
    let files = files.kill();
    // With packs of which some is written ahead of a sync.
    let large = Options {
        pack_bytes: 32 << 20,
        ..options()
    };
    let store = open_files_with(&files, home.path(), large).expect("it opens again");
    let a = disk(&store, "a");
    let mut found = vec![0; old.len()];
    a.read(0, &mut found, Wait::Yes).expect("it answers again");
    let is_old_or_new = (found.chunks(512).zip(old.chunks(512)))
        .zip(new.chunks(512))
        .all(|((found, old), new)| found == old || found == new);
    assert!(is_old_or_new, "what was acknowledged is there");

    // The pack that the seal writes is in doubt, and the layer stays.
    files.fail(fault("packs/"));
    write(&a, 0, &Random(3).bytes(20 << 20)).expect("a write");
    let content = {
        take_of(&a, "unsealed").expect("a snapshot");
        common::wait_until("sealing has failed", || {
            store.chunks().check_poison().is_err()
        });
        hash(&a)
    };
    drop((a, store));
    let store = open_files(&files.crash_losing_all(), home.path()).expect("it opens again");
    let a = disk(&store, "a");
    assert_eq!(hash(&a), content, "the live image");
    wait_all_sealed(&store);
    assert_eq!(hash(&a), content, "the live image, sealed");
    store.close().expect("closing");
}

fn hash(disk: &Arc<Disk>) -> blake3::Hash {
    let mut bytes = vec![0; 20 << 20];
    disk.read(0, &mut bytes, Wait::Yes).expect("it is read");
    blake3::hash(&bytes)
}

/// Invariants 1 and 3: when a rollback, a removal or a snapshot ends with the
/// metadata unknown, nothing is acknowledged any more that the manifest on
/// disk may not know of.
#[test]
fn nothing_is_acknowledged_on_a_head_that_may_not_be_named() {
    let home = memory_dir();
    let (files, _) = sample(home.path());
    type Operation = fn(&Arc<Disk>) -> snapdisk::error::Result<()>;
    let operations: [(&str, Operation); 3] = [
        ("a rollback", |disk| disk.rollback("base", false).map(drop)),
        ("a removal", |disk| disk.drop_image()),
        ("a snapshot", |disk| take_of(disk, "late")),
    ];
    for (what, operation) in operations {
        let mut failed = 0;
        // Each sync of the manifests' directory that it needs.
        for after in 0..4 {
            let files = files.fork();
            let store = open_files(&files, home.path()).expect("it opens");
            let a = disk(&store, "a");
            write(&a, 0, &Random(8).bytes(CHUNK)).expect("acknowledged");
            files.fail(Fault {
                call: Call::SyncDir,
                path: "manifests".into(),
                errno: libc::EIO,
                after,
                times: 1,
            });
            failed += u64::from(operation(&a).is_err());
            let fresh = Random(9 + after).bytes(CHUNK);
            // Also where the image ended before.
            let size = a.live().map_or(0, |live| live.size);
            let acknowledged = [0, size].map(|at| write(&a, at as usize, &fresh).is_ok());
            drop((a, store));
            // The power does not fail: what was renamed is there. Threads of
            // the old store may still be at work, and stop.
            let files = files.kill();
            let store = open_files(&files, home.path()).expect("it opens again");
            let a = disk(&store, "a");
            for (at, acknowledged) in [0, size].into_iter().zip(acknowledged) {
                let mut found = vec![0; CHUNK];
                let read = a.read(at, &mut found, Wait::Yes).map(|read| read.waited());
                let is_there = read.is_ok_and(|read| read == CHUNK) && found == fresh;
                assert!(
                    is_there || !acknowledged,
                    "{what}, {after}: what was acknowledged at {at} is gone"
                );
            }
        }
        assert!(failed > 0, "{what} was never refused");
    }
}

/// Whatever cannot be read when the store is opened, the rest of it can be
/// used, nothing is deleted meanwhile, and it is there when it can be read
/// again.
#[test]
fn what_cannot_be_read_at_the_start_takes_nothing_else_with_it() {
    let home = memory_dir();
    let (files, bytes) = sample(home.path());
    let (mut refused, mut cells) = (0, 0);
    for path in ["manifests/disk-", ".log", "packs/", ".0000"] {
        for after in 0..6 {
            for call in [Call::Open, Call::Read, Call::Sync] {
                let files = files.fork();
                files.fail(Fault {
                    call,
                    path: path.into(),
                    errno: libc::EIO,
                    after,
                    times: 1,
                });
                let what = format!("{call:?} number {after} of {path}");
                let store = open_files(&files, home.path());
                let store = store.unwrap_or_else(|error| panic!("{what}: {error}"));
                cells += 1;
                let read = |store: &Store, name| {
                    let disk = store.disk(name)?;
                    let mut found = vec![0; CHUNK];
                    let read = disk.read(2 * CHUNK as u64, &mut found, Wait::Yes);
                    read.is_ok().then_some(found)
                };
                let found = ["a", "b"].map(|name| read(&store, name));
                // A file of a layer leaves no disk out.
                let is_of_layer = path == ".log" || path == ".0000";
                assert!(!is_of_layer || store.disks().len() == 2, "{what}");
                refused += u64::from(found.iter().any(Option::is_none));
                let right = &bytes[2 * CHUNK..3 * CHUNK];
                assert!(found.iter().any(Option::is_some), "{what}: no disk is left");
                assert!(found.iter().flatten().all(|found| found == right), "{what}");
                // Refused or not, it deletes nothing that is needed.
                let _ = store.gc(false, &Quiet);
                let _ = store.close();
                drop(store);
                files.mend();
                let store = open_files(&files, home.path()).expect("it opens again");
                for name in ["a", "b"] {
                    assert_eq!(read(&store, name).as_deref(), Some(right), "{what}: {name}");
                }
                store.close().expect("closing");
            }
        }
    }
    assert!(refused > 0, "nothing was unreadable in {cells} cells");
}

/// The logs of layers that are there.
fn logs_of(files: &FaultyFiles) -> BTreeSet<String> {
    let paths = files.paths().into_iter();
    let texts = paths.map(|path| path.to_string_lossy().into_owned());
    texts.filter(|path| path.ends_with(".log")).collect()
}

/// The one log that was not there before.
#[track_caller]
fn only_new(files: &FaultyFiles, before: &BTreeSet<String>) -> String {
    let now = logs_of(files);
    let new: Vec<&String> = now.difference(before).collect();
    assert_eq!(new.len(), 1, "{new:?}");
    new[0].clone()
}

/// Invariants 1 and 4: what a disk's log cannot be read for now is not
/// written down as if it were all: no snapshot is taken and nothing is rolled
/// back meanwhile, and when the log can be read again everything is there.
#[test]
fn a_log_that_cannot_be_read_now_costs_nothing_later() {
    let home = memory_dir();
    let files = new_files();
    let store = open_files(&files, home.path()).expect("it opens");
    let bytes = Random(4).bytes(4 * CHUNK);
    // One that never had a snapshot, so that only its log knows its size, and
    // one whose log refers to a layer that is not sealed.
    let before_young = logs_of(&files);
    let young = make(&store, "young").expect("a disk");
    write(&young, 0, &bytes).expect("written");
    let log_of_young = only_new(&files, &before_young);
    let source = make(&store, "source").expect("a disk");
    write(&source, 0, &bytes).expect("written");
    take_of(&source, "base").expect("a snapshot");
    let before_clone = logs_of(&files);
    let clone = make(&store, "clone").expect("a disk");
    let base = source.snapshot("base").expect("it was taken");
    let from = Source::Snapshot(source.clone(), base);
    let len = bytes.len() as u64;
    clone.copy_range(&from, 0, 0, len).expect("copied");
    clone.flush().expect("flushed");
    let logs = [log_of_young, only_new(&files, &before_clone)];
    drop((young, source, clone, from));
    let files = files.kill();
    drop(store);
    for (name, log) in ["young", "clone"].into_iter().zip(logs) {
        let files = files.fork();
        files.fail(Fault {
            call: Call::Read,
            path: log,
            errno: libc::EIO,
            after: 0,
            times: 1,
        });
        let store = open_files(&files, home.path()).expect("it opens");
        let broken = disk(&store, name);
        let mut found = vec![0; bytes.len()];
        assert!(broken.read(0, &mut found, Wait::Yes).is_err(), "{name}");
        assert!(take_of(&broken, "early").is_err(), "{name}");
        // Its manifest is written all the same, for another reason.
        let owner = AttributeChange {
            mode: Some(0o700),
            ..AttributeChange::default()
        };
        broken.set_attributes(owner).expect("changed");
        drop(broken);
        let _ = store.close();
        drop(store);
        files.mend();
        let store = open_files(&files, home.path()).expect("it opens again");
        let mended = disk(&store, name);
        let read = mended.read(0, &mut found, Wait::Yes);
        let read = read.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(read.waited(), bytes.len(), "{name}");
        assert!(found == bytes, "{name}: other bytes");
        take_of(&mended, "late").expect("a snapshot");
        wait_all_sealed(&store);
        assert_store_sound(&store, name);
        drop(mended);
        store.close().expect("closing");
    }
}

/// Invariant 1: neither does it if what a layer lies over is sealed while
/// nobody can say what the layer shows.
#[test]
fn a_log_that_cannot_be_read_while_others_are_sealed_costs_nothing_later() {
    let home = memory_dir();
    let files = new_files();
    let store = open_files(&files, home.path()).expect("it opens");
    // Nothing is sealed yet.
    files.fail(Fault {
        errno: libc::ENOSPC,
        ..unreadable(Call::Create, "packs/")
    });
    let (old, new) = (Random(4).bytes(4 * CHUNK), Random(5).bytes(4 * CHUNK));
    let web = make(&store, "web").expect("a disk");
    write(&web, 0, &old).expect("written");
    take_of(&web, "old").expect("a snapshot");
    write(&web, 0, &new).expect("written");
    take_of(&web, "new").expect("a snapshot");
    // The head lies over one layer and refers to one over that, which
    // nothing else shows any more.
    let before = logs_of(&files);
    web.rollback("old", true).expect("rolled back");
    let from = Source::Snapshot(web.clone(), web.snapshot("new").expect("it was taken"));
    web.copy_range(&from, 0, 0, new.len() as u64)
        .expect("copied");
    web.flush().expect("flushed");
    drop(from);
    web.delete_snapshot("new").expect("deleted");
    let log = only_new(&files, &before);
    drop(web);
    let files = files.kill();
    drop(store);
    files.mend();
    files.fail(Fault {
        times: 1,
        ..unreadable(Call::Read, &log)
    });
    let store = open_files(&files, home.path()).expect("it opens");
    let mut found = vec![0; new.len()];
    let read = disk(&store, "web").read(0, &mut found, Wait::Yes);
    assert!(read.is_err(), "its log was read");
    wait_all_sealed(&store);
    let _ = store.close();
    drop(store);
    files.mend();
    let store = open_files(&files, home.path()).expect("it opens again");
    let read = disk(&store, "web").read(0, &mut found, Wait::Yes);
    assert_eq!(read.expect("its log can be read").waited(), new.len());
    assert!(found == new, "other bytes");
    store.close().expect("closing");
}

/// Invariant 1: how far a log reached is known still after a run in which its
/// disk could not be read: a damaged end is no torn one.
#[test]
fn a_damaged_end_is_no_torn_one_after_a_run_without_the_disk() {
    let home = memory_dir();
    let (files, bytes) = sample(home.path());
    let store = open_files(&files, home.path()).expect("it opens");
    let before = logs_of(&files);
    let young = make(&store, "young").expect("a disk");
    write(&young, 0, &bytes[..CHUNK]).expect("written");
    write(&young, CHUNK, &bytes[CHUNK..2 * CHUNK]).expect("written");
    let log = only_new(&files, &before);
    let manifest = entry_key(&young.id(), EntryKind::Disk);
    drop(young);
    store.close().expect("closing");
    drop(store);
    files.fail(unreadable(Call::Read, &manifest));
    let store = open_files(&files, home.path()).expect("it opens");
    assert!(store.disk("young").is_none());
    let _ = store.close();
    drop(store);
    files.mend();
    // It may have been put aside meanwhile.
    let name = Path::new(&log).file_name().expect("a name");
    let mut paths = files.paths().into_iter();
    let log = paths.find(|path| {
        path.to_string_lossy()
            .contains(&name.to_string_lossy().into_owned())
    });
    files.tamper(&log.expect("it is there"), |log| {
        *log.last_mut().expect("it has records") ^= 1;
    });
    let store = open_files(&files, home.path()).expect("it opens again");
    let mut found = vec![0; 2 * CHUNK];
    let read = disk(&store, "young").read(0, &mut found, Wait::Yes);
    assert!(read.is_err(), "what was acknowledged is gone unseen");
}

/// Contract: what grows reads as zeros, also if a crash left something behind
/// the end that could not be cleared in the run that let it grow.
#[test]
fn nothing_shows_behind_an_end_that_could_not_be_looked_at() {
    let home = memory_dir();
    let files = new_files();
    let store = open_files(&files, home.path()).expect("it opens");
    let young = make(&store, "young").expect("a disk");
    write(&young, 0, &[7; 5000]).expect("written");
    // Nobody was told that this is on disk.
    let never_flushed = young.write(5000, &[8; 1000], Wait::Yes);
    never_flushed.expect("written").waited();
    drop(young);
    let files = files.kill();
    drop(store);
    files.fail(unreadable(Call::Open, ".0000"));
    let store = open_files(&files, home.path()).expect("it opens");
    let young = disk(&store, "young");
    let grown = young.truncate(8192, true).and_then(|()| young.flush());
    drop(young);
    let _ = store.close();
    drop(store);
    files.mend();
    let store = open_files(&files, home.path()).expect("it opens again");
    let mut found = vec![1; 8192];
    let read = disk(&store, "young").read(0, &mut found, Wait::Yes);
    let read = read.expect("it is read").waited();
    assert!(found[..5000] == [7; 5000]);
    if grown.is_ok() {
        assert_eq!(read, 8192);
        assert!(found[5000..] == [0; 3192], "what was never acknowledged");
    }
}

/// Invariant 6: what recovery could not write out is not shown as if it had
/// been: what is read is what is on disk.
#[test]
fn what_a_failed_sync_left_in_memory_is_not_shown() {
    let home = memory_dir();
    let (files, bytes) = sample(home.path());
    let store = open_files(&files, home.path()).expect("it opens");
    let a = disk(&store, "a");
    write(&a, 0, &bytes[..CHUNK]).expect("written");
    let never_flushed = a.write(0, &bytes[CHUNK..2 * CHUNK], Wait::Yes);
    never_flushed.expect("written").waited();
    drop(a);
    let files = files.kill();
    drop(store);
    files.fail(unreadable(Call::Sync, ".0000"));
    let read = |files: &FaultyFiles| {
        let store = open_files(files, home.path()).expect("it opens");
        let mut found = vec![0; CHUNK];
        let read = disk(&store, "a").read(0, &mut found, Wait::Yes);
        read.is_ok().then_some(found)
    };
    let shown = read(&files);
    assert!(files.hits() > 0, "nothing was synced");
    let files = files.crash_losing_all();
    files.mend();
    let on_disk = read(&files).expect("it can be read");
    if let Some(shown) = shown {
        assert!(shown == on_disk, "bytes that are on no disk");
    }
}

/// Invariant 4: a write that cannot be completed, because what lies below it
/// cannot be read, is refused, and nothing else of the disk is.
#[test]
fn what_cannot_be_read_refuses_one_write_and_not_the_disk() {
    let home = memory_dir();
    let (files, bytes) = sample(home.path());
    let store = open_files(&files, home.path()).expect("it opens");
    let a = disk(&store, "a");
    files.fail(Fault {
        call: Call::Read,
        path: "packs/".into(),
        errno: libc::EIO,
        after: 0,
        times: u64::MAX,
    });
    let partly = a.write(4 * CHUNK as u64 + 7, b"some", Wait::Yes);
    assert!(partly.is_err(), "{partly:?}");
    let whole = Random(6).bytes(CHUNK);
    write(&a, 3 * CHUNK, &whole).expect("a whole block needs nothing from below");
    files.mend();
    write(&a, 4 * CHUNK + 7, b"some").expect("written, now that it can be read");
    let mut expected = bytes.clone();
    expected[3 * CHUNK..4 * CHUNK].copy_from_slice(&whole);
    expected[4 * CHUNK + 7..][..4].copy_from_slice(b"some");
    let mut found = vec![0; expected.len()];
    a.read(0, &mut found, Wait::Yes).expect("it is read");
    assert!(found[CHUNK..] == expected[CHUNK..]);
    drop(a);
    store.close().expect("closing");
}

/// A group that fails at one disk leaves the others as they were: also those
/// that it had not come to are sealed and taken of afterwards.
#[test]
fn a_group_that_fails_at_one_disk_leaves_the_others_well() {
    let home = memory_dir();
    let files = new_files();
    let store = open_files(&files, home.path()).expect("it opens");
    let names: Vec<String> = (0..20).map(|number| format!("disk-{number}")).collect();
    let before = logs_of(&files);
    let mut first = None;
    for name in &names {
        let disk = make(&store, name).expect("a disk");
        write(&disk, 0, name.as_bytes()).expect("written");
        first.get_or_insert_with(|| only_new(&files, &before));
        disk.write(0, name.to_uppercase().as_bytes(), Wait::Yes)
            .expect("written");
    }
    let log = first.expect("a log");
    files.fail(Fault {
        call: Call::Sync,
        path: log.trim_end_matches("log").to_owned(),
        errno: libc::EIO,
        after: 0,
        times: 1,
    });
    let group = SnapshotName::parse("together".as_ref()).expect("a name");
    let taken = store.take_group(group, None, OWNER);
    assert!(taken.is_err() && files.hits() > 0);
    for name in &names[1..] {
        let disk = disk(&store, name);
        disk.write(0, name.as_bytes(), Wait::Yes).expect("written");
        take_of(&disk, "alone").unwrap_or_else(|error| panic!("{name}: {error}"));
        let alone = disk.snapshot("alone").expect("it was taken");
        common::wait_until("it is sealed", || alone.state() == "ready");
    }
}

/// Invariant 3: while the last writer's image is being finished nobody begins
/// to write to it: what is acknowledged is in the finished image.
#[test]
fn an_image_that_is_being_finished_takes_no_more_writes() {
    let home = memory_dir();
    let (files, _) = sample(home.path());
    files.let_others_in();
    let store = open_files(&files, home.path()).expect("it opens");
    let (mut late, mut early) = (0, 0);
    for round in 0..200 {
        let name = format!("image-{round}.img");
        let name = ImageName::parse(name.as_ref()).expect("a name");
        let image = store.create_image(name, OWNER).expect("an image");
        write(&image, 0, &[1; 9000]).expect("written");
        std::thread::scope(|scope| {
            scope.spawn(|| image.finish_import().expect("finished"));
            (0..round % 50).for_each(|_| std::thread::yield_now());
            let written = image.open_live(true).and_then(|opened| {
                write(&image, 0, &[2; 9000])?;
                drop(opened);
                Ok(())
            });
            if written.is_err() {
                late += 1;
                return;
            }
            early += 1;
            let mut found = vec![0; 9000];
            // Whether it is finished by now or not.
            common::wait_until("the image is read", || {
                image.read(0, &mut found, Wait::Yes).is_ok()
            });
            assert!(found == [2; 9000], "round {round}: the write is gone");
        });
        let mut found = vec![0; 9000];
        image.read(0, &mut found, Wait::Yes).expect("it is read");
        let expected = if found[0] == 2 { [2; 9000] } else { [1; 9000] };
        assert!(found == expected, "round {round}");
    }
    assert!(
        late > 0,
        "never while it was being finished ({early} before)"
    );
    store.close().expect("closing");
}

/// Invariant 6: whoever asks for a flush is answered, also when the store has
/// gone down: with an error, as nothing was synced.
#[test]
fn a_flush_after_the_end_is_refused_and_not_forgotten() {
    let index = memory_dir();
    let files = new_files();
    let store = open_files(&files, index.path()).expect("it opens");
    let web = make(&store, "web").expect("a disk");
    write(&web, 0, &[1; CHUNK]).expect("a write");
    store.close().expect("closing");
    for _ in 0..2 {
        let (send, receive) = mpsc::channel();
        web.flush_async(Box::new(move |outcome| {
            send.send(outcome.is_ok()).expect("somebody waits for it");
        }));
        assert_eq!(receive.recv_timeout(DEADLINE), Ok(false));
    }
}

/// Invariant 6: where the index is has no room any more. It is a cache:
/// sealing, deleting and closing go on without, and the next start has all.
#[test]
fn an_index_without_room_stops_nothing() {
    if skipped(&[Need::Loop]) {
        return;
    }
    let small = Filesystem::new(16 << 20);
    let files = new_files();
    let store = open_files(&files, &small.path("")).expect("it opens");
    let web = make(&store, "web").expect("a disk");
    let mut random = Random(3);
    let mut content = random.bytes(64 * CHUNK);
    write(&web, 0, &content).expect("a write");
    take_of(&web, "before").expect("a snapshot");
    wait_all_sealed(&store);
    // All that is left, to the last byte.
    let mut full = File::create(small.path("full")).expect("a file");
    while full.write_all(&[1; 4096]).is_ok() {}
    for round in 0..8 {
        content = random.bytes(64 * CHUNK);
        write(&web, 0, &content).expect("a write");
        take_of(&web, &format!("after{round}")).expect("a snapshot");
        wait_all_sealed(&store);
        store.gc(false, &Quiet).expect("a gc");
    }
    web.delete_snapshot("before").expect("a deletion");
    store.gc(false, &Quiet).expect("a gc");
    let (send, receive) = mpsc::channel();
    let closing = store.clone();
    let closes = thread::spawn(move || send.send(closing.close().is_ok()));
    assert_eq!(receive.recv_timeout(DEADLINE), Ok(true), "it closes");
    closes.join().expect("no panic").expect("it was waited for");
    drop((web, store));

    drop(full);
    let room = memory_dir();
    let store = open_files(&files, room.path()).expect("it opens again");
    let mut found = vec![0; content.len()];
    let web = disk(&store, "web");
    let read = web.read(0, &mut found, Wait::Yes).expect("it can be read");
    assert!(read.waited() == found.len() && found == content);
    assert_store_sound(&store, "without an index");
    store.close().expect("closing");
}

fn unreadable(call: Call, path: &str) -> Fault {
    Fault {
        call,
        path: path.into(),
        errno: libc::EIO,
        after: 0,
        times: u64::MAX,
    }
}

/// One sector that cannot be read does not keep a store from being opened:
/// the header has a copy, and the catalogue is made anew by a repair.
#[test]
fn a_store_opens_without_half_of_its_header_and_mends_its_catalogue() {
    let home = memory_dir();
    let (files, bytes) = sample(home.path());
    let check = |store: &Arc<Store>| {
        let mut found = vec![0; CHUNK];
        let a = disk(store, "a");
        a.read(CHUNK as u64, &mut found, Wait::Yes)
            .expect("it is read");
        assert!(found == bytes[CHUNK..2 * CHUNK]);
    };
    // Of the header, which is read first, and of its copy.
    let first = Fault {
        times: 1,
        ..unreadable(Call::Read, "manifests/store")
    };
    for fault in [first, unreadable(Call::Read, "manifests/store-copy")] {
        let what = fault.path.clone();
        files.fail(fault);
        let store = open_files(&files, home.path());
        let store = store.unwrap_or_else(|error| panic!("without {what}: {error}"));
        assert!(files.hits() > 0, "{what} was not read");
        check(&store);
        store.close().expect("closing");
        drop(store);
        files.mend();
    }
    files.fail(unreadable(Call::Read, "manifests/store"));
    let neither = open_files(&files, home.path()).map(drop);
    let error = neither.expect_err("neither can be read");
    assert!(error.to_string().contains("manifests/store"), "{error}");
    files.mend();
    files.fail(unreadable(Call::Read, "manifests/catalogue"));
    assert!(open_files(&files, home.path()).is_err());
    let options = Options {
        mend_catalogue: true,
        ..options()
    };
    // What comes in its place can be read.
    let fault = Fault {
        times: 2,
        ..unreadable(Call::Read, "manifests/catalogue")
    };
    files.mend();
    files.fail(fault);
    let store = open_files_with(&files, home.path(), options).expect("it is made anew");
    assert!(
        files.hits() > 1,
        "it was not replaced while it cannot be read"
    );
    check(&store);
    store.close().expect("closing");
}

/// Invariant 3: a disk that is gone gets no manifest again, whoever has it in
/// hand still; else a catalogue made anew would list it.
#[test]
fn a_removed_disk_gets_no_manifest_again() {
    let home = memory_dir();
    let (files, _) = sample(home.path());
    let store = open_files(&files, home.path()).expect("it opens");
    let gone = (store.create_disk(DiskName::parse("gone".as_ref()).expect("a name"), OWNER))
        .expect("a disk");
    let manifest = entry_key(&gone.id(), EntryKind::Disk);
    let is_there = || {
        let mut paths = files.paths().into_iter();
        paths.any(|path| path.to_string_lossy() == manifest)
    };
    assert!(is_there(), "{manifest}");
    store.remove_disk("gone").expect("it goes");
    assert!(!is_there());
    let refused = gone.set_attributes(AttributeChange {
        mode: Some(0o700),
        ..AttributeChange::default()
    });
    assert!(refused.is_err());
    assert!(!is_there());
}

/// README: disks whose manifests are lost are forgotten on demand, and what
/// is left of the manifests is kept aside, also when one of them cannot be
/// read at all.
#[test]
fn what_is_left_of_forgotten_manifests_stays() {
    let home = memory_dir();
    let (files, _) = sample(home.path());
    let manifest_of = |name: &str| {
        let text = format!("\"name\":\"{name}\"");
        let mut paths = files.paths().into_iter();
        let found = paths.find(|path| {
            path.to_string_lossy().contains("manifests/disk-")
                && String::from_utf8_lossy(&files.bytes(path)).contains(&text)
        });
        found.expect("its manifest")
    };
    let (a, b) = (manifest_of("a"), manifest_of("b"));
    files.tamper(&b, |bytes| bytes.extend(b"more"));
    let left = files.bytes(&b);
    files.fail(unreadable(Call::Read, &a.to_string_lossy()));
    let store = open_files(&files, home.path()).expect("it opens");
    let report = store.repair(true, &Quiet, &mut |_| {});
    assert_eq!(report.expect("it is mended").forgotten, 2);
    drop(store);
    files.mend();
    let files = files.kill();
    let store = open_files(&files, home.path()).expect("it opens again");
    assert!(store.disks().is_empty());
    let name = b.file_name().expect("a name").to_string_lossy();
    let aside = Path::new("manifests").join(format!("lost-{name}"));
    assert!(files.bytes(&aside) == left, "{aside:?}");
}

/// A manifest that cannot be read any more is in memory still: what is
/// written in its place is sound, and nothing stops.
#[test]
fn a_manifest_that_cannot_be_read_is_replaced() {
    let home = memory_dir();
    let (files, _) = sample(home.path());
    let store = open_files(&files, home.path()).expect("it opens");
    files.fail(unreadable(Call::Read, "manifests/disk"));
    take_of(&disk(&store, "a"), "after").expect("a snapshot");
    assert!(files.hits() > 0, "it was not read");
    drop(store);
    let store = open_files(&files.kill(), home.path()).expect("it opens again");
    assert!(disk(&store, "a").snapshot("after").is_some());
}

/// Opens a sample of which no pack that is there can be opened, and takes a
/// snapshot "stuck" of its disk "a" that cannot be sealed.
fn stuck(files: &FaultyFiles, root: &Path) -> Arc<Store> {
    let options = Options {
        cache_bytes: 0,
        ..options()
    };
    let store = open_files_with(files, root, options).expect("it opens");
    let paths = files.paths().into_iter();
    for pack in paths.filter(|path| path.starts_with("packs")) {
        files.fail(unreadable(Call::Open, &pack.to_string_lossy()));
    }
    let a = disk(&store, "a");
    // The rest of the chunk is in a pack.
    write(&a, CHUNK, &Random(6).bytes(4096)).expect("written");
    take_of(&a, "stuck").expect("a snapshot");
    store
}

/// A disk that cannot be sealed gets no more layers than it may have, also
/// where its live image is copied from again and again.
#[test]
fn copying_from_a_disk_that_is_never_sealed_piles_up_no_layers() {
    let home = memory_dir();
    let (files, _) = sample(home.path());
    let store = stuck(&files, home.path());
    let many = Settings {
        max_manual_snapshots: 1024,
        max_snapshots: Some(1024),
        ..Settings::default()
    };
    store.set_settings(many).expect("the settings");
    let a = disk(&store, "a");
    let fill = |number: u64| {
        let bytes = Random(number).bytes(CHUNK);
        write(&a, 3 * CHUNK, &bytes).expect("written");
        bytes
    };
    let mut taken = 0;
    loop {
        fill(taken);
        if take_of(&a, &format!("s{taken}")).is_err() {
            break;
        }
        taken += 1;
    }
    assert!(taken > 500, "only {taken} snapshots");
    let c = make(&store, "c").expect("a disk");
    let logs = || {
        let paths = files.paths().into_iter();
        paths
            .filter(|path| path.extension().is_some_and(|end| end == "log"))
            .count()
    };
    let before = logs();
    for number in 0..5 {
        let bytes = fill(1000 + number);
        let source = Source::Live(a.clone());
        let copied = c.copy_range(&source, 3 * CHUNK as u64, 0, CHUNK as u64);
        assert_eq!(copied.expect("copied"), CHUNK as u64);
        let mut found = vec![0; CHUNK];
        c.read(0, &mut found, Wait::Yes).expect("read");
        assert!(found == bytes, "copy {number}");
    }
    assert_eq!(logs(), before, "layers");
    store.close().expect("closing");
}

/// A pack that cannot be opened stops the sealing of what needs it, and of
/// nothing else.
#[test]
fn a_pack_that_cannot_be_opened_stops_no_other_disk() {
    let home = memory_dir();
    let (files, _) = sample(home.path());
    let store = stuck(&files, home.path());
    let a = disk(&store, "a");
    let c = make(&store, "c").expect("a disk");
    write(&c, 0, &Random(7).bytes(CHUNK)).expect("written");
    take_of(&c, "fine").expect("a snapshot");
    common::wait_until("the other is sealed", || {
        c.snapshots()
            .iter()
            .all(|snapshot| snapshot.state() == "ready")
    });
    let stuck = a.snapshot("stuck").expect("it was taken");
    common::wait_until("it is known to be stuck", || stuck.state() == "damaged");
    assert!(files.hits() > 0);
    store.close().expect("closing");
}

/// `verify` reads unsealed layers from the disk, too: data that cannot be
/// read is named with its disk and range, and a log that is not what it was.
#[test]
fn verify_finds_what_is_wrong_with_a_layer_that_is_in_use() {
    let home = memory_dir();
    let files = new_files();
    let store = open_files(&files, home.path()).expect("it opens");
    let a = make(&store, "a").expect("a disk");
    write(&a, 0, &Random(5).bytes(8 * CHUNK)).expect("written");
    assert_store_sound(&store, "before");
    let finds = |fault: Fault| {
        files.fail(fault);
        let mut found = Vec::new();
        let verified = store.verify(&Quiet, &mut |finding| found.push(finding.to_string()));
        let report = verified.expect("it goes through");
        assert_eq!(report.layers, 1);
        assert_eq!(report.layer_bytes, 8 * CHUNK as u64);
        files.mend();
        found
    };
    // The first call is of all of it, then each block is read by itself.
    let found = finds(Fault {
        times: 4,
        ..unreadable(Call::Read, ".0000")
    });
    let wanted = format!("disk a: bytes 0 to {}: ", 3 * 4096);
    assert!(
        matches!(&found[..], [one] if one.starts_with(&wanted)),
        "{found:?}"
    );
    let found = finds(unreadable(Call::Read, ".log"));
    assert!(
        matches!(&found[..], [one] if one.starts_with("layer ")),
        "{found:?}"
    );
    // A bit of its only frame.
    let mut paths = files.paths().into_iter();
    let log = paths.find(|path| path.extension().is_some_and(|end| end == "log"));
    let log = log.expect("a log");
    let flip = || files.tamper(&log, |bytes| bytes[64 + 30] ^= 1);
    flip();
    let found = finds(unreadable(Call::Read, "nothing"));
    assert!(
        matches!(&found[..], [one] if one.contains("it is whole up to 64 only")),
        "{found:?}"
    );
    flip();
    // Not one manifest ends it, either.
    let found = finds(unreadable(Call::Read, "manifests/"));
    assert_eq!(found.len(), 4, "{found:?}");
    assert_store_sound(&store, "afterwards");
    store.close().expect("closing");
}

/// The filesystem below turns read-only, as ext4 does after an error of its
/// own: everything can be read, changes are refused, and once it is writable
/// again and the store opened anew, all is there.
#[test]
fn a_filesystem_that_turns_read_only_refuses_changes_and_loses_nothing() {
    let home = memory_dir();
    let (files, bytes) = sample(home.path());
    let store = open_files(&files, home.path()).expect("it opens");
    let (a, b) = (disk(&store, "a"), disk(&store, "b"));
    let fresh = Random(9).bytes(CHUNK);
    write(&a, 2 * CHUNK, &fresh).expect("acknowledged");
    let read_all = |what: &str| {
        let mut expected = bytes.clone();
        expected[2 * CHUNK..3 * CHUNK].copy_from_slice(&fresh);
        let mut found = vec![0; CHUNKS * CHUNK];
        a.read(0, &mut found, Wait::Yes).expect(what);
        assert!(found == expected, "{what}: the image of a");
        let base = b.snapshot("base").expect("it is there");
        b.read_snapshot(&base, 0, &mut found, Wait::Yes)
            .expect(what);
        assert!(found == bytes, "{what}: b@base");
    };
    files.turn_read_only();
    read_all("read-only");
    for _ in 0..2 {
        assert!(a.write(0, &fresh, Wait::Yes).is_err(), "a write");
        assert!(take_of(&a, "after").is_err(), "a snapshot");
        assert!(b.delete_snapshot("gone").is_err(), "a deletion");
        assert!(b.rollback("base", false).is_err(), "a rollback");
        assert!(make(&store, "c").is_err(), "a new disk");
        read_all("after what was refused");
    }
    assert!(files.hits() > 0);
    drop((a, b));
    // Whatever it says: what was acknowledged is on disk.
    drop(store.close());
    drop(store);
    files.mend();
    let store = open_files(&files, home.path()).expect("it opens again");
    let a = disk(&store, "a");
    let mut found = vec![0; CHUNK];
    a.read(2 * CHUNK as u64, &mut found, Wait::Yes)
        .expect("read");
    assert!(found == fresh, "what was acknowledged");
    assert!(a.snapshot("after").is_none() && disk(&store, "b").snapshot("gone").is_some());
    write(&a, 0, &fresh).expect("writing goes on");
    assert_store_sound(&store, "writable again");
    store.close().expect("closing");
}
