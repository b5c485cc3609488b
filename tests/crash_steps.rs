//! Goal: wherever a crash comes in an operation, it was done or it was not,
//! and nothing else changed.
//!
//! Method: the same store again and again, on files that lose what was not
//! synced (`common/faulty.rs`). An operation is stopped after its first
//! effect on disk, after its second, and so on until it gets through; each
//! time the store is opened on what a power loss leaves, its whole content
//! compared with that before and after, and `verify` has to find nothing.
//! Then the same with the recovery stopped after each of its own effects, and
//! with a process that is killed there: the next one sees all that was
//! written, goes on from it, and only then the power fails.

mod common;

use common::bytes::Random;
use common::faulty::{Call, Fault, FaultyFiles};
use common::library::*;
use snapdisk::disk::{Disk, Source, Wait};
use snapdisk::error::Result;
use snapdisk::events::By;
use snapdisk::manifest::{PolicyText, Settings};
use snapdisk::name::{DiskName, ImageName, PolicyName, SnapshotName};
use snapdisk::progress::Quiet;
use snapdisk::snapshot::Snapshot;
use snapdisk::store::recompress::COLD;
use snapdisk::store::{Image, Store};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Everything that can be seen in a store: what it is called, and a hash.
type Content = BTreeMap<String, String>;

fn wait_sealed(disk: &Disk) {
    common::wait_until("everything is sealed", || {
        disk.snapshots().iter().all(|s| s.state() == "ready")
    });
}

/// Two disks with sealed and unsealed snapshots, a link, an import, dead
/// chunks, and a head with data; one with an empty image, and one with none.
fn sample(root: &Path) -> FaultyFiles {
    let files = new_files();
    let store = open_files(&files, root).expect("it opens");
    let made = (|| {
        let mut random = Random(5);
        let web = make(&store, "web")?;
        write(&web, 0, &random.bytes(12 * CHUNK))?;
        take_of(&web, "one")?;
        write(&web, 2 * CHUNK + 100, &random.bytes(3 * CHUNK))?;
        take_of(&web, "two")?;
        write(&web, CHUNK, &random.bytes(11 * CHUNK))?;
        take_of(&web, "gone")?;
        let db = make(&store, "db")?;
        write(&db, 0, &random.bytes(4 * CHUNK + 77))?;
        take_of(&db, "base")?;
        wait_sealed(&web);
        wait_sealed(&db);
        web.rollback("two", true)?;
        web.delete_snapshot("gone")?;
        store.link_image(&web, "one", ImageName::parse("golden.img".as_ref())?)?;
        let import = store.create_image(ImageName::parse("import.img".as_ref())?, OWNER)?;
        write(&import, 0, &random.bytes(2 * CHUNK))?;
        import.finish_import()?;
        take_group(&store, "night")?;
        set_named(&store, "named.toml", 1)?;
        store.attach_policy(&db, "named.toml")?;
        wait_sealed(&web);
        wait_sealed(&db);
        write(&web, 7 * CHUNK, &random.bytes(CHUNK))?;
        write(&db, 300, &random.bytes(CHUNK))?;
        make(&store, "blank")?;
        store.create_disk(DiskName::parse("bare".as_ref())?, OWNER)?;
        store.close()
    })();
    made.expect("a sample");
    files.fork()
}

fn take_group(store: &Store, name: &str) -> Result<()> {
    let name = SnapshotName::parse_manual(name.as_ref())?;
    store.take_group(name, None, OWNER).map(drop)
}

fn policy_text(hour: u8) -> PolicyText {
    PolicyText {
        text: format!("hours = [{hour}]\n"),
        owner: OWNER,
        // No slot comes while the test runs.
        modified_ns: snapdisk::time::now_ns() + 24 * 3_600_000_000_000,
    }
}

fn set_named(store: &Store, name: &str, hour: u8) -> Result<()> {
    let name = PolicyName::parse(name.as_ref())?;
    store.set_named_policy(name, policy_text(hour)).map(drop)
}

fn hash(read: impl FnOnce(&mut [u8]) -> Result<usize>) -> String {
    let mut bytes = vec![0xaa; 64 * CHUNK];
    match read(&mut bytes) {
        Ok(len) => format!("{len} {}", blake3::hash(&bytes[..len]).to_hex()),
        Err(error) => panic!("it cannot be read: {error}"),
    }
}

fn content(store: &Store) -> Content {
    let mut content = Content::new();
    let live =
        |disk: &Arc<Disk>| hash(|bytes| disk.read(0, bytes, Wait::Yes).map(|read| read.waited()));
    for disk in store.disks() {
        let name = disk.name();
        content.insert(name.clone(), String::new());
        if disk.live().is_some() {
            content.insert(format!("{name}/disk.img"), live(&disk));
        }
        if let Some(policy) = store.policy_of(&disk) {
            let hours = policy.policy.map(|policy| policy.hours);
            let label = format!("{name}/policy");
            content.insert(label, format!("{:?} {hours:?}", policy.name));
        }
        for snapshot in disk.snapshots() {
            // Names that say a time say another one in each run.
            let label = match snapshot.name() {
                kept if kept.starts_with("before-rollback-") => "before-rollback".into(),
                kept if kept.starts_with("dropped-") => "dropped".into(),
                other => other,
            };
            let read = hash(|bytes| {
                let read = disk.read_snapshot(&snapshot, 0, bytes, Wait::Yes)?;
                Ok(read.waited())
            });
            let hold = snapshot.notes().hold.clone().unwrap_or_default();
            content.insert(format!("{name}@{label}"), read + &hold);
        }
    }
    for group in store.groups() {
        let of = |(disk, snapshot): &(Arc<Disk>, Arc<Snapshot>)| {
            format!("{}@{}", disk.name(), snapshot.name())
        };
        let members: Vec<String> = group.members.iter().map(of).collect();
        content.insert(
            format!(".snapshots/{}", group.record.name),
            members.join(" "),
        );
    }
    for policy in store.policies() {
        content.insert(format!(".policies/{}", policy.name), policy.text.text);
    }
    content.insert("settings".into(), format!("{:?}", store.settings()));
    for image in store.images() {
        match image {
            Image::Link {
                name,
                disk,
                snapshot,
            } => {
                let of = format!("{}@{}", disk.name(), snapshot.name());
                content.insert(format!(".images/{name}"), of);
            }
            Image::Import { name, disk } => {
                content.insert(format!(".images/{name}"), live(&disk));
            }
        }
    }
    content
}

/// Something that happens as a whole or not at all.
type Operation = fn(&Arc<Store>) -> Result<()>;

/// Stops `operation` after each of its effects; answers how many there were.
fn crash_at_every_step(
    what: &str,
    sample: &FaultyFiles,
    index: &Path,
    operation: Operation,
) -> u64 {
    let index_of = |name: &str| {
        let root = index.join(name);
        std::fs::create_dir_all(&root).expect("a directory");
        root
    };
    let (before, after) = {
        let store = open_files(&sample.fork(), &index_of("expected")).expect("it opens");
        let before = content(&store);
        operation(&store).unwrap_or_else(|error| panic!("{what}: {error}"));
        let after = content(&store);
        store.close().expect("closing");
        (before, after)
    };
    let root = index_of("crashed");
    let mut random = Random(what.len() as u64);
    for effects in 0.. {
        let files = sample.fork();
        let store = open_files(&files, &root).unwrap_or_else(|error| panic!("{what}: {error}"));
        files.stop_after(effects);
        let done = operation(&store);
        let through = !files.is_stopped();
        if let Err(error) = &done {
            assert!(!through, "{what}: {error}");
        }
        files.stop();
        drop(store);
        for _ in 0..2 {
            let left = files.crash(&mut random);
            // What one crash left is not what another one would have: none
            // may see what the index learnt of the other.
            let root = copy_of(&root, &index.join("left"));
            check_left(
                what,
                effects,
                &left,
                &root,
                &[&before, &after],
                done.is_ok().then_some(&after),
            );
        }
        let root = copy_of(&root, &index.join("left"));
        let allowed: &[&Content] = match done {
            Ok(()) => &[&after],
            Err(_) => &[&before, &after],
        };
        let what = format!("{what}, killed after {effects}");
        check_killed(&what, &files.kill(), &root, allowed);
        if through {
            return effects;
        }
    }
    unreachable!()
}

/// Opens what a killed process left, goes on with it, and loses what is not
/// synced even then.
fn check_killed(what: &str, left: &FaultyFiles, root: &Path, allowed: &[&Content]) {
    let store = open_files(left, root).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = content(&store);
    assert!(allowed.contains(&&found), "{what}: found {found:#?}");
    for disk in store.disks() {
        if disk.live().is_some() {
            write(&disk, 100, &[7; 1000]).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
        wait_sealed(&disk);
        disk.flush()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
    let acknowledged = content(&store);
    let files = left.crash_losing_all();
    drop(store);
    let store = open_files(&files, root).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = content(&store);
    assert_eq!(found, acknowledged, "{what}, and then the power failed");
    assert_store_sound(&store, what);
    store.close().expect("closing");
}

/// A copy of a directory in place of another. A store that was dropped without
/// being closed may still be at work in it for a moment: then again.
fn copy_of(from: &Path, to: &Path) -> PathBuf {
    std::fs::create_dir_all(to.parent().expect("not the top")).expect("a directory");
    common::wait_until("nobody changes what is copied", || {
        if to.exists() {
            std::fs::remove_dir_all(to).expect("it goes");
        }
        let mut copy = common::command("cp", &["-r"]);
        let copied = copy.arg(from).arg(to).output();
        copied.is_ok_and(|output| output.status.success())
    });
    to.to_owned()
}

/// Opens what a crash left and compares; also with the recovery stopped.
fn check_left(
    what: &str,
    effects: u64,
    left: &FaultyFiles,
    root: &Path,
    allowed: &[&Content],
    acknowledged: Option<&Content>,
) {
    let what = format!("{what}, stopped after {effects}");
    // The recovery of this crash is stopped, too, somewhere.
    let mut random = Random(effects);
    let files = left.fork();
    let stopped = copy_of(root, &root.with_extension("stopped"));
    files.stop_after(random.below(8));
    drop(open_files(&files, &stopped));
    files.stop();
    let crashed = files.crash(&mut random);
    for (files, root) in [(left.fork(), root), (crashed, &stopped)] {
        let store = open_files(&files, root).unwrap_or_else(|error| panic!("{what}: {error}"));
        let found = content(&store);
        match acknowledged {
            Some(after) => assert_eq!(&found, after, "{what}: acknowledged"),
            None => assert!(
                allowed.contains(&&found),
                "{what}: found {found:#?}\nexpected one of {allowed:#?}"
            ),
        }
        assert_store_sound(&store, &what);
        store
            .close()
            .unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

const OPERATIONS: [(&str, Operation); 28] = [
    ("take", |store| take_of(&disk(store, "web"), "new")),
    ("delete", |store| disk(store, "web").delete_snapshot("two")),
    ("gc with compaction", |store| {
        store.gc(false, &Quiet).map(drop)
    }),
    ("roll back", |store| {
        disk(store, "web").rollback("one", false).map(drop)
    }),
    ("roll back and discard", |store| {
        disk(store, "web").rollback("two", true).map(drop)
    }),
    ("rename a snapshot", |store| {
        let name = SnapshotName::parse("other".as_ref())?;
        disk(store, "web").rename_snapshot("two", name)
    }),
    ("rename a disk", |store| {
        store.rename_disk("web", DiskName::parse("www".as_ref())?)
    }),
    ("drop an image", |store| disk(store, "db").drop_image()),
    ("link", |store| {
        let name = ImageName::parse("second.img".as_ref())?;
        store.link_image(&disk(store, "db"), "base", name)
    }),
    ("unlink", |store| store.remove_image("golden.img")),
    ("make an image", |store| {
        let name = ImageName::parse("late.img".as_ref())?;
        store.create_image(name, OWNER).map(drop)
    }),
    ("remove an import", |store| store.remove_image("import.img")),
    ("rename an image", |store| {
        let name = ImageName::parse("other.img".as_ref())?;
        store.rename_image("golden.img", name, true)
    }),
    ("make a disk", |store| {
        let name = DiskName::parse("empty".as_ref())?;
        store.create_disk(name, OWNER).map(drop)
    }),
    ("remove a disk", |store| store.remove_disk("bare")),
    ("hold a snapshot", |store| {
        let web = disk(store, "web");
        let one = web.snapshot("one").expect("it is there");
        web.note(&one, &|notes| {
            notes.hold = Some("the audit".to_owned());
            Ok(())
        })
    }),
    ("repair", |store| {
        store.repair(false, &Quiet, &mut drop).map(drop)
    }),
    ("take a group", |store| take_group(store, "all")),
    ("delete a group", |store| {
        store.delete_group("night", &By::Store)
    }),
    ("delete a member of a group", |store| {
        disk(store, "db").delete_snapshot("night")
    }),
    ("rename a group", |store| {
        store.rename_group("night", SnapshotName::parse("day".as_ref())?)
    }),
    ("make a named policy", |store| {
        set_named(store, "new.toml", 2)
    }),
    ("change a named policy", |store| {
        set_named(store, "named.toml", 2)
    }),
    ("attach a policy", |store| {
        store.attach_policy(&disk(store, "web"), "named.toml")
    }),
    ("give a disk a policy of its own", |store| {
        store.set_policy(&disk(store, "db"), policy_text(3))
    }),
    ("change a setting", |store| {
        store.set_settings(Settings {
            max_snapshots: Some(9),
            ..Settings::default()
        })
    }),
    ("clone a whole disk", |store| {
        let (from, to) = (disk(store, "db"), disk(store, "blank"));
        let base = from.snapshot("base").expect("it is there");
        let size = base.size();
        let source = Source::Snapshot(from.clone(), base);
        assert_eq!(to.copy_range(&source, 0, 0, size)?, size, "at once");
        to.flush()
    }),
    ("clone into an image that is there", |store| {
        let (from, to) = (disk(store, "db"), disk(store, "web"));
        let base = from.snapshot("base").expect("it is there");
        let source = Source::Snapshot(from.clone(), base);
        // One chunk, so one record.
        to.copy_range(&source, 0, 0, CHUNK as u64)?;
        to.flush()
    }),
];

/// Invariants 1 to 3 and 8, for each operation that changes more than one
/// thing on disk.
#[test]
fn a_crash_at_any_step_leaves_the_state_before_or_after() {
    let index = memory_dir();
    let sample = sample(index.path());
    {
        let store = open_files(&sample.fork(), index.path()).expect("it opens");
        let report = store.gc(false, &Quiet).expect("a gc");
        assert!(
            report.packs_compacted > 0,
            "the sample tests too little: {report}"
        );
        store.close().expect("closing");
    }
    let mut points = 0;
    for (what, operation) in OPERATIONS {
        let effects = crash_at_every_step(what, &sample, index.path(), operation);
        println!("{what}: {effects} effects, each of which was the last");
        points += effects;
    }
    println!("crash points: {points}");
}

/// Invariants 3, 4 and 8: a crash at any step of recompression loses nothing.
#[test]
fn a_crash_at_any_step_of_recompression_loses_nothing() {
    let index = memory_dir();
    let files = new_files();
    let store = open_files(&files, index.path()).expect("it opens");
    let made = (|| {
        let web = make(&store, "web")?;
        write(&web, 0, &Random(8).pieces(24 * CHUNK))?;
        take_of(&web, "one")?;
        wait_sealed(&web);
        store.set_recompress(true)?;
        store.close()
    })();
    made.expect("a sample");
    let recompress: Operation = |store| {
        let now = Instant::now();
        store.cold_packs(now);
        let cold = store.cold_packs(now + COLD);
        let report = store.recompress(&cold.packs, &|| true)?;
        assert!(report.packs_compacted > 0, "the sample tests too little");
        Ok(())
    };
    let effects = crash_at_every_step("recompression", &files, index.path(), recompress);
    println!("recompression: {effects} effects, each of which was the last");
}

/// Invariants 2, 3 and 5: a crash at any step of a seal loses nothing, and
/// the seal is done after it.
#[test]
fn a_crash_at_any_step_of_a_seal_loses_nothing() {
    let index = memory_dir();
    let sample = sample(index.path());
    let mut random = Random(3);
    std::fs::create_dir(index.path().join("killed")).expect("a directory");
    let expected = {
        let store = open_files(&sample.fork(), index.path()).expect("it opens");
        take_of(&disk(&store, "web"), "new").expect("a snapshot");
        let expected = content(&store);
        store.close().expect("closing");
        expected
    };
    for effects in 0.. {
        let files = sample.fork();
        let store = open_files(&files, index.path()).expect("it opens");
        let web = disk(&store, "web");
        take_of(&web, "new").expect("a snapshot");
        files.stop_after(effects);
        common::wait_until("the seal ends or the power fails", || {
            files.is_stopped() || web.snapshots().iter().all(|s| s.state() == "ready")
        });
        let through = !files.is_stopped();
        files.stop();
        drop((web, store));
        let root = copy_of(
            &index.path().join("index"),
            &index.path().join("killed/index"),
        );
        let what = format!("a seal, killed after {effects}");
        let root = root.parent().expect("it has one");
        check_killed(&what, &files.kill(), root, &[&expected]);
        let left = files.crash(&mut random);
        let store = open_files(&left, index.path()).expect("it opens after a crash");
        assert_eq!(content(&store), expected, "stopped after {effects}");
        wait_sealed(&disk(&store, "web"));
        assert_eq!(content(&store), expected, "sealed after {effects}");
        assert_store_sound(&store, "after a seal that was stopped");
        store.close().expect("closing");
        if through {
            println!("a seal: {effects} effects, each of which was the last");
            break;
        }
    }
}

/// Recovery of a crash in the middle of everything, stopped after each of its
/// own effects, and again.
#[test]
fn a_crash_at_any_step_of_recovery_loses_nothing() {
    let index = memory_dir();
    let sample = sample(index.path());
    let mut random = Random(9);
    // Layers unsealed, manifests unlisted, packs torn.
    let files = sample.fork();
    let store = open_files(&files, index.path()).expect("it opens");
    let web = disk(&store, "web");
    write(&web, 3 * CHUNK, &Random(4).bytes(2 * CHUNK)).expect("a write");
    take_of(&web, "new").expect("a snapshot");
    let expected = content(&store);
    files.stop();
    drop((web, store));
    let mut points = 0;
    for round in 0..10 {
        let left = files.crash(&mut random);
        for effects in 0.. {
            let files = left.fork();
            files.stop_after(effects);
            // Threads of a run that was stopped write to its index a little
            // longer: no other run may see that.
            let root = index.path().join(format!("run-{round}-{effects}"));
            copy_of(&index.path().join("index"), &root.join("index"));
            let opened = open_files(&files, &root);
            let through = !files.is_stopped();
            if let Err(error) = &opened {
                assert!(!through, "round {round}: {error}");
            }
            files.stop();
            drop(opened);
            let again = files.crash(&mut random);
            let after = index.path().join("after");
            copy_of(&root.join("index"), &after.join("index"));
            let store = open_files(&again, &after).expect("it opens after two crashes");
            assert_eq!(content(&store), expected, "round {round}, after {effects}");
            assert_store_sound(&store, "after a recovery that was stopped");
            store.close().expect("closing");
            points += 1;
            if through {
                break;
            }
        }
    }
    println!("recovery: {points} crash points");
}

/// Found by the model: a write over the end was in the file when the power
/// failed, its size was not in the log; recovery cleared what lay behind the
/// end, and before that was synced the image had grown, a snapshot's manifest
/// said so, and the power failed again.
#[test]
fn what_lay_behind_the_end_stays_hidden_through_two_crashes() {
    let index = memory_dir();
    let files = new_files();
    let store = open_files(&files, index.path()).expect("it opens");
    let web = make(&store, "web").expect("a disk");
    let (end, block) = (5 * CHUNK + 392, 4096);
    write(&web, 0, &vec![1; end]).expect("written");
    store.close().expect("closing");
    drop((web, store));
    // The write over the end, as far as it got.
    let segment = files
        .paths()
        .into_iter()
        .find(|path| path.to_string_lossy().ends_with(".0000"))
        .expect("a segment");
    files.tamper(&segment, |bytes| {
        bytes.resize(bytes.len().max(5 * CHUNK + block), 0);
        bytes[end..5 * CHUNK + block].fill(0x6d);
    });
    for effects in 0.. {
        let files = files.fork();
        let store = open_files(&files, index.path()).expect("it opens");
        let web = disk(&store, "web");
        web.write(9 * CHUNK as u64, &vec![2; CHUNK], Wait::Yes)
            .expect("a write");
        files.stop_after(effects);
        let taken = take_of(&web, "one");
        let through = !files.is_stopped();
        assert!(taken.is_ok() || !through, "{taken:?}");
        drop((web, store));
        let store = open_files(&files.crash_losing_all(), index.path()).expect("it opens again");
        let web = disk(&store, "web");
        let mut bytes = vec![0xaa; 10 * CHUNK];
        let read = web.read(0, &mut bytes, Wait::Yes).expect("a read").waited();
        let behind = &bytes[end..read.max(end)];
        let is_clear = behind.iter().all(|byte| matches!(byte, 0 | 2));
        assert!(
            is_clear,
            "after {effects} effects what never was acknowledged shows"
        );
        if through {
            break;
        }
    }
}

/// Found by the model: a run had made a segment and ended before it synced
/// the directory. The next one found the segment there, wrote to it and
/// synced it, and the power took the name that nobody had synced.
#[test]
fn a_segment_that_an_earlier_run_made_keeps_its_name() {
    let index = memory_dir();
    let files = new_files();
    let store = open_files(&files, index.path()).expect("it opens");
    let web = make(&store, "web").expect("a disk");
    store.close().expect("closing");
    drop((web, store));
    let store = open_files(&files, index.path()).expect("it opens");
    let web = disk(&store, "web");
    files.fail(Fault {
        call: Call::Write,
        path: ".0000".into(),
        errno: libc::EIO,
        // After it got its length.
        after: 1,
        times: 1,
    });
    write(&web, 0, &[1; CHUNK]).expect_err("the write fails, the segment is there");
    store.close().expect("closing");
    drop((web, store));

    files.mend();
    let store = open_files(&files, index.path()).expect("it opens again");
    let web = disk(&store, "web");
    write(&web, 0, &[2; CHUNK]).expect("a write");
    web.flush().expect("it is acknowledged");
    drop((web, store));
    let store = open_files(&files.crash_losing_all(), index.path()).expect("after the crash");
    let mut bytes = vec![0; CHUNK];
    let web = disk(&store, "web");
    let read = web.read(0, &mut bytes, Wait::Yes);
    assert_eq!(read.expect("it can be read").waited(), CHUNK);
    assert!(bytes == [2; CHUNK], "what was acknowledged is there");
}

/// Found by the model: a disk's last block was shown by a clone's reference
/// when the manifest that said how long the disk is by now was on disk and
/// the log that said so was not. Recovery cut the layer off there, and sealing
/// copied the reference: what the source has behind that place showed when
/// the disk had grown.
#[test]
fn what_a_reference_has_behind_the_end_stays_hidden() {
    const SIZE: usize = 14 * CHUNK + 13864;
    let index = memory_dir();
    let files = new_files();
    {
        let store = open_files(&files, index.path()).expect("it opens");
        let from = make(&store, "from").expect("a disk");
        write(&from, 0, &Random(1).bytes(15 * CHUNK + 75)).expect("a write");
        take_of(&from, "base").expect("a snapshot");
        wait_sealed(&from);
        let web = make(&store, "web").expect("a disk");
        let source = Source::Snapshot(from.clone(), from.snapshot("base").expect("it was taken"));
        let copied = web.copy_range(&source, 0, 0, 15 * CHUNK as u64);
        assert_eq!(copied.expect("a clone"), 15 * CHUNK as u64);
        store.close().expect("closing");
    }
    let mut named = 0;
    for effects in 0.. {
        let files = files.fork();
        let store = open_files(&files, index.path()).expect("it opens");
        let web = disk(&store, "web");
        web.truncate(5 * CHUNK as u64, false).expect("it is cut");
        let at = SIZE - 9768;
        web.write(at as u64, &Random(2).bytes(9768), Wait::Yes)
            .expect("a write");
        files.stop_after(effects);
        let through = take_of(&web, "late").is_ok();
        files.stop();
        drop((web, store));
        let left = files.crash_losing_all();
        let store = open_files(&left, index.path()).expect("it opens after the crash");
        let web = disk(&store, "web");
        let size = web.live().map_or(0, |live| live.size);
        named += u64::from(size == SIZE as u64);
        web.truncate(16 * CHUNK as u64, false).expect("it grows");
        take_of(&web, "longer").expect("a snapshot");
        wait_sealed(&web);
        let mut behind = vec![1; 16 * CHUNK - size as usize];
        let read = web.read(size, &mut behind, Wait::Yes);
        assert_eq!(read.expect("it is read").waited(), behind.len());
        let is_zero = behind.iter().all(|byte| *byte == 0);
        assert!(is_zero, "stopped after {effects}, cut at {size}");
        assert_store_sound(&store, "after it had grown");
        store.close().expect("closing");
        if through {
            break;
        }
    }
    assert!(
        named > 0,
        "no crash came when only the manifest said its size"
    );
}

/// Invariant 2: a crash comes when one of two disks that share a layer has
/// been told that what lies below it is sealed, and then that disk lets go of
/// it. The other still has all of it, though its own manifest said that it
/// lies over files that are gone.
#[test]
fn a_shared_layer_outlives_the_disk_that_knew_what_is_below_it() {
    // As many as are sealed in one pass: not the shared one above them.
    const BELOW: u8 = 64;
    let index = memory_dir();
    let files = new_files();
    // Nothing is sealed while no pack can be made.
    let no_packs = Fault {
        call: Call::Create,
        path: "packs".into(),
        errno: libc::ENOSPC,
        after: 0,
        times: u64::MAX,
    };
    files.fail(no_packs.clone());
    let store = open_files(&files, index.path()).expect("it opens");
    let knowing = make(&store, "knowing").expect("a disk");
    // Of two records of a layer the first counts, by the disks' ids; and
    // manifests are told in the order in which disks were made.
    let other = (0..)
        .map(|n| make(&store, &format!("other{n}")).expect("a disk"))
        .find(|other| other.id() > knowing.id())
        .expect("one of them is later");
    let name = other.name();
    for n in 1..=BELOW {
        write(&knowing, 0, &[n; CHUNK]).expect("a write");
        take_of(&knowing, &format!("s{n}")).expect("a snapshot");
    }
    write(&knowing, CHUNK, &[99; CHUNK]).expect("a write");
    let source = Source::Live(knowing.clone());
    let copied = other.copy_range(&source, 0, 0, 2 * CHUNK as u64);
    assert_eq!(copied.expect("a clone"), 2 * CHUNK as u64);
    other.flush().expect("it is acknowledged");
    // The pass tells the first disk and fails at the second.
    files.mend();
    files.fail(Fault {
        call: Call::Rename,
        path: format!("disk-{}", other.id().simple()),
        errno: libc::EIO,
        after: 0,
        times: u64::MAX,
    });
    let nudge = make(&store, "nudge").and_then(|nudge| take_of(&nudge, "now"));
    common::wait_until("it is told of what is sealed", || files.hits() > 0);
    drop((nudge, knowing, other, source, store));
    let files = files.crash_losing_all();

    files.fail(no_packs);
    let store = open_files(&files, index.path()).expect("after the crash");
    let knowing = disk(&store, "knowing");
    for n in 2..=BELOW {
        knowing
            .delete_snapshot(&format!("s{n}"))
            .expect("a deletion");
    }
    knowing.rollback("s1", true).expect("a rollback");
    store.close().expect("closing");
    drop((knowing, store));

    files.mend();
    let store = open_files(&files, index.path()).expect("it opens again");
    let other = disk(&store, &name);
    let mut bytes = vec![0; 2 * CHUNK];
    let read = other.read(0, &mut bytes, Wait::Yes);
    assert_eq!(read.expect("it can be read").waited(), bytes.len());
    let (first, second) = bytes.split_at(CHUNK);
    assert!(
        first == [BELOW; CHUNK] && second == [99; CHUNK],
        "its content"
    );
    assert_store_sound(&store, "what is left");
    store.close().expect("closing");
    assert_eq!(files.orphaned(), Vec::<String>::new());
}
