//! The snapshot service on a real mount: quotas, groups, what is told of
//! capacity, events and health, comparing, and what other tools make of
//! snapshots.

mod common;

use common::bytes::{Random, open};
use common::*;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

const CHUNK: u64 = 64 << 10;
const MIB: u64 = 1 << 20;

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn ask(arguments: &[&str]) -> Value {
    let said = snapdisk(arguments);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{error}: {said}"))
}

fn names(dir: &Path) -> BTreeSet<String> {
    let entries = fs::read_dir(dir).unwrap_or_else(|error| panic!("{dir:?}: {error}"));
    entries
        .map(|entry| {
            entry
                .expect("an entry")
                .file_name()
                .to_string_lossy()
                .into_owned()
        })
        .collect()
}

/// An empty disk of some size.
fn sized(point: &Path, name: &str, size: u64) -> PathBuf {
    let disk = point.join(name);
    fs::create_dir(&disk).expect("a disk");
    File::create(disk.join("disk.img"))
        .and_then(|image| image.set_len(size))
        .expect("an image");
    disk
}

/// "256 + 256 a disk, settable, with a shared max_snapshots too; manual over
/// quota EDQUOT; a warning event at 90 %"; what is kept before a loss is
/// outside.
#[test]
fn a_quota_limits_what_people_take() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let point = shown(mount.point());
    assert_eq!(ask(&["set", "--json", &point])["max_manual_snapshots"], 256);
    snapdisk(&["set", &point, "max_manual_snapshots=10"]);
    let web = disk_with(mount.point(), "web", b"web");
    let image = open(&web.join("disk.img"));
    let taken = |name: &str| fs::create_dir(web.join(".snapshots").join(name));
    for number in 0..10 {
        taken(&format!("s{number}")).expect("within the quota");
    }
    assert_errno(taken("more"), libc::EDQUOT, "the eleventh");
    drop(image);
    mount.remount();
    assert_errno(taken("more"), libc::EDQUOT, "after a remount");
    let said = snapdisk_fails(&["snapshot", "more", &shown(&web)]);
    assert!(said.contains("snapdisk set"), "{said}");
    assert_errno(
        fs::create_dir(mount.path(".snapshots/all")),
        libc::EDQUOT,
        "a group with it",
    );
    let events = fs::read_to_string(mount.path(".status/events.jsonl")).expect("events");
    assert_eq!(events.matches("quota_near").count(), 1, "{events}");
    assert!(events.contains("9 of 10 manual snapshots"), "{events}");
    // It needs attention.
    let status = command(SNAPDISK, &["status", &point])
        .output()
        .expect("it runs");
    assert_eq!(status.status.code(), Some(1));
    let said = String::from_utf8_lossy(&status.stdout);
    assert!(
        said.contains("disk web has 10 of 10 manual snapshots"),
        "{said}"
    );

    // What a rollback or rm keeps is kept all the same.
    open(&web.join("disk.img"))
        .write_all_at(b"new", 0)
        .expect("a write");
    snapdisk(&["rollback", &shown(&web), "s1"]);
    assert!(
        names(&web.join(".snapshots"))
            .iter()
            .any(|name| name.starts_with("before-rollback"))
    );
    fs::remove_dir(web.join(".snapshots/s3")).expect("one goes");
    taken("more").expect("there is room again");
    snapdisk(&[
        "set",
        &point,
        "max_manual_snapshots=100",
        "max_snapshots=11",
    ]);
    taken("eleventh").expect("within the shared limit");
    assert_errno(taken("twelfth"), libc::EDQUOT, "over the shared limit");
    snapdisk(&["set", &point, "max_snapshots=none"]);
    taken("twelfth").expect("no shared limit");
    snapdisk_usage(&["set", &point, "max_manual_snapshots=none"]);
    snapdisk_usage(&["set", &point, "max_hourly=3"]);
    assert_eq!(ask(&["set", "--json", &point])["recompress"], false);
    assert!(snapdisk(&["set", &point, "recompress=on"]).contains("recompress=on"));
    snapdisk_usage(&["set", &point, "recompress=3"]);
    snapdisk_usage(&["set", &point, "max_snapshots=on"]);
    mount.remount();
    assert_eq!(ask(&["set", "--json", &point])["recompress"], true);
    assert_eq!(ask(&["set", "--json", &point])["max_manual_snapshots"], 100);
}

const BETWEEN: usize = 100;

/// "One instant over all disks": a program writes a counter to disk A and
/// then to disk B; no group ever shows B ahead of A. Durable, too: the daemon
/// is killed at the end.
#[test]
fn a_group_is_one_instant_of_all_disks() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let a = sized(mount.point(), "a", 4 * MIB);
    // Many in between, so that between the first and the last there is time.
    for number in 0..BETWEEN {
        sized(mount.point(), &format!("m{number}"), 4096);
    }
    let b = sized(mount.point(), "b", 4 * MIB);
    fs::create_dir(mount.path("bare")).expect("a disk without an image");
    let stop = AtomicBool::new(false);
    let rounds = AtomicU64::new(0);
    let groups = 12;
    thread::scope(|scope| {
        for writer in 0..3u64 {
            let (a, b) = (open(&a.join("disk.img")), open(&b.join("disk.img")));
            let (stop, rounds) = (&stop, &rounds);
            scope.spawn(move || {
                let at = writer * 8192;
                for counter in 1u64.. {
                    for image in [&a, &b] {
                        image
                            .write_all_at(&counter.to_le_bytes(), at)
                            .expect("a write");
                    }
                    rounds.fetch_add(1, Ordering::Relaxed);
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        for number in 0..groups {
            let before = rounds.load(Ordering::Relaxed);
            fs::create_dir(mount.path(&format!(".snapshots/g{number}"))).expect("a group");
            wait_until("the writers go on", || {
                rounds.load(Ordering::Relaxed) > before + 10
            });
        }
        stop.store(true, Ordering::Relaxed);
    });
    mount.kill9();
    mount.remount();
    let mut behind = 0;
    for number in 0..groups {
        let group = mount.path(&format!(".snapshots/g{number}"));
        assert_eq!(names(&group).len(), BETWEEN + 2);
        let read = |disk: &str, at: u64| {
            let mut bytes = [0; 8];
            let image = File::open(group.join(disk).join("disk.img")).expect("a member");
            image.read_exact_at(&mut bytes, at).expect("it can be read");
            u64::from_le_bytes(bytes)
        };
        for writer in 0..3 {
            let (a, b) = (read("a", writer * 8192), read("b", writer * 8192));
            assert!(a == b || a == b + 1, "group {number}: {a} on A, {b} on B");
            behind += u64::from(a != b);
        }
    }
    println!("{behind} times B was one behind, never ahead");
    assert_sound(mount.point());
}

/// Deleting a group, which makes the kernel forget names in other directories,
/// ends also while somebody tries to move something between these.
#[test]
fn a_group_goes_while_others_rename_across_its_directories() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let disk = disk_with(mount.point(), "web", b"web");
    let groups = mount.path(".snapshots");
    let device = fs::metadata(mount.point()).expect("stat").dev();
    let (over, moves) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
    );
    let movers: Vec<_> = [
        (groups.clone(), disk.join(".snapshots")),
        (disk.join(".snapshots"), groups.clone()),
    ]
    .into_iter()
    .map(|(from, to)| {
        let (over, moves) = (over.clone(), moves.clone());
        thread::spawn(move || {
            while !over.load(Ordering::SeqCst) {
                let moved = fs::rename(from.join("none"), to.join("none"));
                assert!(moved.is_err());
                moves.fetch_add(1, Ordering::SeqCst);
            }
        })
    })
    .collect();
    let (done, told) = mpsc::channel();
    let deleting = groups.clone();
    thread::spawn(move || {
        for number in 0..40 {
            let group = deleting.join(format!("g{number}"));
            fs::create_dir(&group).expect("a group");
            fs::remove_dir(&group).expect("it goes");
        }
        done.send(()).ok();
    });
    let ended = told.recv_timeout(common::DEADLINE);
    over.store(true, Ordering::SeqCst);
    if ended.is_err() {
        // Else nothing ends this, and not even the daemon can be killed.
        sh(&format!(
            "cd /sys/fs/fuse/connections; [ -d {0} ] || mount -t fusectl none .; echo 1 >$PWD/{0}/abort",
            device & 0xff | device >> 12 & 0xfff00
        ));
    }
    ended.expect("all groups went in time");
    for mover in movers {
        mover.join().expect("it ends");
    }
    assert!(moves.load(Ordering::SeqCst) > 40);
}

/// "All or none; rmdir deletes them all or none; a member deleted or renamed
/// alone, the group follows", and `snapshot NAME DISK…` for chosen disks.
#[test]
fn a_group_is_all_or_none() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    for name in ["a", "b", "c"] {
        disk_with(mount.point(), name, name.as_bytes());
    }
    let group = |name: &str| mount.path(&format!(".snapshots/{name}"));
    let member = |disk: &str, name: &str| mount.path(&format!("{disk}/.snapshots/{name}"));
    take(&mount.path("b"), "taken");
    assert_errno(
        fs::create_dir(group("taken")),
        libc::EEXIST,
        "b has one of that name",
    );
    assert!(!member("a", "taken").exists() && !group("taken").exists());
    // A scratch file beside the policy is no snapshot, and in nobody's way.
    fs::write(member("a", "scratch"), "x").expect("a scratch file");
    fs::create_dir(group("scratch")).expect("a group");
    wait_until("it is a snapshot", || {
        member("a", "scratch").join("disk.img").is_file()
    });
    fs::rename(member("a", "scratch"), member("a", "moved")).expect("it is renamed");
    assert_eq!(
        fs::read_to_string(member("a", "moved").join("disk.img")).expect("a"),
        "a"
    );
    fs::remove_dir(group("scratch")).expect("the group goes");
    assert!(!member("a", "moved").exists());
    fs::remove_file(member("a", "scratch")).expect("the file is there again");
    for bad in ["x", "auto-1", ".hidden", "latest"] {
        assert_errno(fs::create_dir(group(bad)), libc::EINVAL, bad);
    }

    fs::create_dir(group("one")).expect("a group");
    assert_errno(fs::create_dir(group("one")), libc::EEXIST, "again");
    assert_eq!(
        fs::read_to_string(group("one").join("c/disk.img")).expect("c"),
        "c"
    );
    // By another process: this one could not remove it for a while.
    let said = sh_fails(&format!("rm {}", group("one").join("a").display()));
    assert!(said.contains("Read-only"), "{said}");
    assert_errno(
        File::create(group("one").join("x")),
        libc::EROFS,
        "a file in it",
    );
    sh_fails(&format!("rm -rf {}", group("one").display()));
    assert!(member("a", "one").exists(), "rm -rf destroys none");

    // One held, or open: none goes.
    ::snapdisk::sys::set_xattr(&member("b", "one"), "snapdisk.hold", b"x").expect("a hold");
    assert_errno(fs::remove_dir(group("one")), libc::EBUSY, "b's is held");
    sh(&format!(
        "setfattr -x snapdisk.hold {}",
        member("b", "one").display()
    ));
    let opened = File::open(member("c", "one").join("disk.img")).expect("open");
    assert_errno(fs::remove_dir(group("one")), libc::EBUSY, "c's is open");
    drop(opened);
    assert!(
        ["a", "b", "c"]
            .iter()
            .all(|disk| member(disk, "one").exists())
    );
    // One renamed, one deleted: the group follows, also over a remount.
    fs::rename(member("a", "one"), member("a", "other")).expect("a rename");
    fs::remove_dir(member("b", "one")).expect("alone");
    fs::rename(group("one"), group("two")).expect("the group's name");
    let point = mount.point().to_owned();
    mount.remount();
    let group = |name: &str| point.join(".snapshots").join(name);
    let member = |disk: &str, name: &str| point.join(disk).join(".snapshots").join(name);
    assert_eq!(
        names(&group("two")),
        BTreeSet::from(["a".into(), "c".into()])
    );
    assert_eq!(
        fs::read_to_string(group("two").join("a/disk.img")).expect("a"),
        "a"
    );
    fs::remove_dir(group("two")).expect("all of them");
    assert!(!member("a", "other").exists() && !member("c", "one").exists());
    assert!(names(&point.join(".snapshots")).is_empty());
    // The last member takes its group with it.
    fs::create_dir(group("last")).expect("a group");
    for disk in ["a", "b", "c"] {
        fs::remove_dir(member(disk, "last")).expect("alone");
    }
    assert!(!group("last").exists());
    fs::create_dir(group("last")).expect("the name is free");

    // One of them has no image: none is taken, and the others' manifests say
    // what is written, also to the end of one that grows.
    fs::create_dir(point.join("bare")).expect("a disk without an image");
    snapdisk_fails(&[
        "snapshot",
        "none",
        &shown(&point.join("a")),
        &shown(&point.join("bare")),
    ]);
    assert!(!member("a", "none").exists());
    let long = noise(4, 300_000);
    fs::write(point.join("a/disk.img"), &long).expect("it grows");
    File::open(point.join("a/disk.img"))
        .and_then(|file| file.sync_all())
        .expect("a sync");
    mount.kill9();
    mount.remount();
    assert_same(
        &fs::read(point.join("a/disk.img")).expect("a"),
        &long,
        "what grew",
    );

    let (a, c) = (shown(&point.join("a")), shown(&point.join("c")));
    snapdisk(&["snapshot", "some", &a, &c]);
    assert_eq!(
        names(&group("some")),
        BTreeSet::from(["a".into(), "c".into()])
    );
    snapdisk_fails(&["snapshot", "some", &c, &shown(&point.join("b"))]);
    assert!(!member("b", "some").exists());
}

/// "A sum of uniques is the wrong answer; test it against really deleting":
/// what `reclaim` says is what deleting and gc take out of the packs, to the
/// byte; so is what a snapshot says is unique to it.
#[test]
fn what_is_said_to_be_freed_is_freed() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let point = shown(mount.point());
    let mut random = Random(11);
    let web = sized(mount.point(), "web", 16 * MIB);
    let db = sized(mount.point(), "db", 16 * MIB);
    let shared = random.bytes(CHUNK as usize);
    // Chunks that several snapshots share, in every combination.
    for round in 0..6u64 {
        for disk in [&web, &db] {
            let image = open(&disk.join("disk.img"));
            for _ in 0..10 {
                let at = random.below(200) * CHUNK;
                image
                    .write_all_at(&random.bytes(CHUNK as usize), at)
                    .expect("a write");
            }
            image
                .write_all_at(&shared, (200 + round) * CHUNK)
                .expect("a write");
            wait_ready(&take(disk, &format!("s{round}")));
        }
    }
    let packs = || {
        let report = ask(&["gc", "--json", &point]);
        let status = ask(&["status", "--json", &point]);
        let stored = status["stored_bytes"].as_u64().expect("a number");
        (stored, report["dead_bytes"].as_u64().expect("a number"))
    };
    let capacity = ask(&["capacity", "--json", &point]);
    let unique_of = |disk: &str, snapshot: &str| {
        let disks = capacity["disks"].as_array().expect("disks");
        let disk = disks
            .iter()
            .find(|one| one["name"] == disk)
            .expect("the disk");
        let snapshots = disk["snapshots"].as_array().expect("snapshots");
        let found = snapshots.iter().find(|one| one["name"] == snapshot);
        found.expect("the snapshot")["unique_bytes"]
            .as_u64()
            .expect("a number")
    };
    let dir = |disk: &Path, name: &str| shown(&disk.join(".snapshots").join(name));
    let info = info(&web.join(".snapshots/s2"));
    assert_eq!(
        info["unique_bytes"].as_integer(),
        Some(unique_of("web", "s2") as i64)
    );
    packs();
    for victims in [
        vec![dir(&web, "s2")],
        vec![dir(&web, "s0"), dir(&web, "s1"), dir(&db, "s3")],
        vec![
            dir(&db, "s0"),
            dir(&db, "s1"),
            dir(&db, "s2"),
            dir(&web, "s3"),
        ],
    ] {
        let mut arguments = vec!["reclaim", "--json"];
        arguments.extend(victims.iter().map(String::as_str));
        let said = ask(&arguments);
        let bytes = said["bytes"].as_u64().expect("a number");
        let sum = said["sum_of_unique_bytes"].as_u64().expect("a number");
        match victims.len() {
            1 => assert_eq!((bytes, sum), (unique_of("web", "s2"), bytes)),
            _ => assert!(bytes > sum, "what they share counts: {said}"),
        }
        let live_before = live_bytes(&point);
        for victim in &victims {
            fs::remove_dir(victim).expect("rmdir");
        }
        packs();
        assert_eq!(live_before - live_bytes(&point), bytes, "{victims:?}");
    }
    snapdisk_fails(&["reclaim", &shown(&web)]);
    assert_sound(mount.point());
}

/// Bytes of records that something reaches, which is what deleting lessens.
fn live_bytes(point: &str) -> u64 {
    let capacity = ask(&["capacity", "--json", point]);
    let all: Value = ask(&["gc", "--json", "--dry-run", point]);
    let unreached = capacity["unreached_bytes"].as_u64().expect("a number");
    all["live_bytes"].as_u64().expect("a number") + all["dead_bytes"].as_u64().expect("a number")
        - unreached
}

/// "Changed extents between any two of snapshots, images and live disks,
/// cmp-proved on random disks; root hash equal if and only if the disks are."
#[test]
fn a_diff_is_what_cmp_finds() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let mut random = Random(5);
    let size = 256 * CHUNK + 5000;
    let web = sized(mount.point(), "web", size);
    let image = open(&web.join("disk.img"));
    let mut sides: Vec<PathBuf> = Vec::new();
    for round in 0..5u64 {
        for _ in 0..6 {
            let len = 1 + random.below(3 * CHUNK);
            let at = random.below(size - len);
            match random.below(4) {
                0 => ::snapdisk::sys::punch_hole(std::os::fd::AsFd::as_fd(&image), at, len)
                    .expect("a hole"),
                _ => image
                    .write_all_at(&random.bytes(len as usize), at)
                    .expect("a write"),
            }
        }
        if round == 3 {
            image.set_len(200 * CHUNK).expect("shorter");
            image.set_len(size + 3 * CHUNK + 7).expect("longer");
        }
        let snapshot = take(&web, &format!("s{round}"));
        if round % 2 == 0 {
            wait_ready(&snapshot);
        }
        sides.push(snapshot.join("disk.img"));
    }
    let copy = mount.path("copy");
    fs::create_dir(&copy).expect("a disk");
    sh(&format!(
        "cp {} {}",
        sides[1].display(),
        copy.join("disk.img").display()
    ));
    open(&copy.join("disk.img"))
        .write_all_at(b"differs", 77_777)
        .expect("a write");
    sides.push(copy.join("disk.img"));
    image
        .write_all_at(&[7; 9000], 5 * CHUNK - 100)
        .expect("a write");
    sides.push(web.join("disk.img"));
    fs::hard_link(&sides[0], mount.path(".images/first.img")).expect("an image");
    sides.push(mount.path(".images/first.img"));
    sh(&format!(
        "cp {} {}",
        sides[2].display(),
        mount.path(".images/own.img").display()
    ));
    sides.push(mount.path(".images/own.img"));

    let mut compared = 0;
    for a in &sides {
        for b in &sides {
            let said = ask(&["diff", "--json", &shown(a), &shown(b)]);
            let (left, right) = (fs::read(a).expect("a"), fs::read(b).expect("b"));
            let mut expected: Vec<(u64, u64)> = Vec::new();
            let (common, all) = (left.len().min(right.len()), left.len().max(right.len()));
            let mut add = |from: usize, to: usize| match expected.last_mut() {
                Some((at, len)) if *at + *len == from as u64 => *len += (to - from) as u64,
                _ => expected.push((from as u64, (to - from) as u64)),
            };
            for at in (0..common).step_by(4096) {
                let end = (at + 4096).min(common);
                if left[at..end] != right[at..end] {
                    add(at, end);
                }
            }
            if common < all {
                add(common, all);
            }
            let found: Vec<(u64, u64)> = said["extents"]
                .as_array()
                .expect("extents")
                .iter()
                .map(|one| {
                    (
                        one["offset"].as_u64().unwrap_or(0),
                        one["length"].as_u64().unwrap_or(0),
                    )
                })
                .collect();
            assert_eq!(found, expected, "{a:?} {b:?}: {}", said["changed_bytes"]);
            compared += 1;
        }
    }
    assert_eq!(compared, 81);
    // Equal roots are equal disks.
    for name in ["s1", "s2", "s3"] {
        wait_ready(&web.join(".snapshots").join(name));
    }
    let root = |path: &Path| info(path)["root"].as_str().map(str::to_owned);
    let (one, two) = (web.join(".snapshots/s1"), web.join(".snapshots/s2"));
    assert_ne!(root(&one), root(&two));
    drop(image);
    sh(&format!(
        "cp {} {}",
        one.join("disk.img").display(),
        copy.join("disk.img").display()
    ));
    let again = take(&copy, "again");
    wait_ready(&again);
    assert_eq!(root(&one), root(&again), "the same bytes by another way");
    // Little is read of what is equal.
    let said = ask(&["diff", "--json", &shown(&one), &shown(&again)]);
    assert_eq!(
        (&said["changed_bytes"], &said["read_bytes"]),
        (&json!(0), &json!(0))
    );
}

/// "`events -f` follows it and misses none", bounded, over a restart, and
/// `explain` tells the last refusal.
#[test]
fn a_follower_misses_no_event() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let point = shown(mount.point());
    let web = disk_with(mount.point(), "web", b"web");
    let mut follower = command(SNAPDISK, &["events", "--follow", "--json", &point])
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let lines = BufReader::new(follower.stdout.take().expect("a pipe")).lines();
    let reader = thread::spawn(move || {
        let mut seen: Vec<Value> = Vec::new();
        for line in lines {
            let event = serde_json::from_str(&line.expect("a line")).expect("JSON");
            seen.push(event);
            let last = seen.last().expect("one");
            if last["event"] == "deleted" && last["snapshot"] == "s199" {
                return seen;
            }
        }
        seen
    });
    thread::scope(|scope| {
        for half in 0..2 {
            let web = &web;
            scope.spawn(move || {
                for number in (half..200).step_by(2).filter(|number| *number != 199) {
                    let snapshot = take(web, &format!("s{number}"));
                    fs::remove_dir(snapshot).expect("rmdir");
                }
            });
        }
    });
    fs::remove_dir(take(&web, "s199")).expect("rmdir");
    let seen = reader.join().expect("the follower ended");
    follower.kill().expect("it runs still");
    follower.wait().expect("it ends");
    let numbers: Vec<u64> = seen
        .iter()
        .filter_map(|event| event["sequence"].as_u64())
        .collect();
    assert_eq!(numbers[0], 1);
    assert!(
        numbers.windows(2).all(|pair| pair[0] + 1 == pair[1]),
        "{numbers:?}"
    );
    for what in ["taken", "deleted"] {
        let count = seen.iter().filter(|event| event["event"] == what).count();
        assert_eq!(count, 200, "{what}");
    }
    let by = seen
        .iter()
        .find(|event| event["event"] == "deleted")
        .expect("one");
    assert_eq!(by["by"], "user 0");

    // A refusal is told with its reason.
    let held = take(&web, "held");
    ::snapdisk::sys::set_xattr(&held, "snapdisk.hold", b"the audit").expect("a hold");
    assert_errno(fs::remove_dir(&held), libc::EBUSY, "a held one");
    let said = snapdisk(&["explain", &shown(&held)]);
    for word in ["rmdir", "EBUSY", "the audit", "to do"] {
        assert!(said.contains(word), "{word} in {said}");
    }
    assert_eq!(
        ask(&["explain", "--json", "EBUSY", &point])["reason"],
        ask(&["explain", "--json", &shown(&held)])["reason"]
    );
    snapdisk_fails(&["explain", "EFBIG", &point]);
    // Also of what is not there because of it.
    let refused = web.join(".snapshots/auto-1");
    assert_errno(fs::create_dir(&refused), libc::EINVAL, "a reserved name");
    let said = snapdisk(&["explain", &shown(&refused)]);
    assert!(said.contains("mkdir") && said.contains("EINVAL"), "{said}");
    // A follower ends with whoever reads it.
    let first = sh(&format!("{SNAPDISK} events -f '{point}' | head -n 1"));
    assert_eq!(first.lines().count(), 1);
    let before = fs::read_to_string(mount.path(".status/events.jsonl")).expect("events");
    mount.remount();
    let after = fs::read_to_string(mount.path(".status/events.jsonl")).expect("events");
    assert!(after.starts_with(&before), "a restart forgets nothing");
    mount.unmount();
    let told = snapdisk(&["events", &shown(&store.path())]);
    assert!(told.contains("web@held"), "also unmounted");
}

/// `.status` is files that other programs read: Prometheus' text format,
/// CSV, SVG, TOML; none can be changed.
#[test]
fn the_status_is_files_for_other_programs() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", &noise(1, 300_000));
    File::open(web.join("disk.img"))
        .and_then(|file| file.sync_all())
        .expect("a sync");
    wait_ready(&take(&web, "one"));
    let read = |name: &str| fs::read_to_string(mount.path(".status").join(name)).expect("a file");
    let metrics = read("metrics.prom");
    let mut families = BTreeSet::new();
    for line in metrics.lines() {
        if let Some(rest) = line.strip_prefix("# ") {
            let words: Vec<&str> = rest.splitn(3, ' ').collect();
            assert!(
                matches!(words[0], "HELP" | "TYPE") && words.len() == 3,
                "{line}"
            );
            families.insert(words[1].to_owned());
            continue;
        }
        let (name, value) = line.rsplit_once(' ').expect("a name and a value");
        assert!(value.parse::<f64>().is_ok(), "{line}");
        let family = name.split('{').next().unwrap_or_default();
        let family = ["_bucket", "_sum", "_count"]
            .iter()
            .find_map(|end| family.strip_suffix(end))
            .unwrap_or(family);
        assert!(
            families.contains(family) && family.starts_with("snapdisk_"),
            "{line}"
        );
        assert!(name.ends_with('}') || !name.contains('{'), "{line}");
    }
    for needed in [
        "snapdisk_snapshots{disk=\"web\",kind=\"manual\"} 1",
        "snapdisk_operation_seconds_count{operation=\"snapshot\"} 1",
        "snapdisk_operation_seconds_bucket{operation=\"write\",le=\"+Inf\"}",
        "snapdisk_attention 0",
        "snapdisk_errors_total 0",
    ] {
        assert!(metrics.contains(needed), "{needed} in {metrics}");
    }
    let written = "snapdisk_io_bytes_total{operation=\"write\"} 300000";
    assert!(metrics.contains(written), "{metrics}");

    let status: toml::Table = read("store.toml").parse().expect("TOML");
    assert_eq!(status["disks"].as_integer(), Some(1));
    wait_until("the first sample", || {
        read("capacity.csv").lines().count() >= 2
    });
    let table = read("capacity.csv");
    let columns = table.lines().next().expect("a header").split(',').count();
    assert!(
        table.lines().all(|line| line.split(',').count() == columns),
        "{table}"
    );
    let xml = format!(
        "python3 -c 'import xml.dom.minidom, sys; xml.dom.minidom.parse(sys.argv[1])' {}",
        mount.path(".status/capacity.svg").display()
    );
    sh(&xml);
    for name in [
        "store.toml",
        "capacity.csv",
        "capacity.svg",
        "events.jsonl",
        "metrics.prom",
    ] {
        let path = mount.path(".status").join(name);
        let size = fs::metadata(&path).expect("it is there").len();
        assert!(size > 0, "{name}");
        let opened = File::options().write(true).open(&path);
        assert_errno(opened, libc::EROFS, name);
        assert_errno(fs::remove_file(&path), libc::EROFS, name);
    }
    assert_errno(
        File::create(mount.path(".status/x")),
        libc::EROFS,
        "a file there",
    );
    snapdisk(&["status", &shown(mount.point())]);
}

/// Tables fit a terminal of 80 columns, `--bytes` gives exact sizes,
/// completions and manual pages are what shells and man read.
#[test]
fn the_command_is_pleasant() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let point = shown(mount.point());
    let web = disk_with(mount.point(), "production-web-1", &noise(1, 3_000_000));
    for name in ["before-upgrade", "2026-11-26T10:00:00+00:00"] {
        wait_ready(&take(&web, name));
    }
    fs::write(
        web.join(".snapshots/policy.toml"),
        "hours = [0, 12]\nretain_days = 1\n",
    )
    .expect("a policy");
    let disk = shown(&web);
    for arguments in [
        vec!["list", &point],
        vec!["list", &disk],
        vec!["capacity", &point],
        vec!["capacity", &disk],
        vec!["policy", "plan", "--days", "3", &disk],
        vec!["status", &point],
    ] {
        let said = snapdisk(&arguments);
        for line in said
            .lines()
            .filter(|line| !line.contains(store.path().to_str().unwrap_or("/")))
        {
            assert!(line.chars().count() <= 80, "{arguments:?}: {line}");
        }
    }
    let exact = snapdisk(&["list", "--bytes", &disk]);
    assert!(exact.contains("3000000"), "{exact}");
    snapdisk(&["wait", &shown(&web.join(".snapshots/before-upgrade"))]);
    snapdisk_fails(&["wait", &disk]);
    for shell in ["bash", "zsh", "fish"] {
        let text = snapdisk(&["completions", shell]);
        assert!(text.contains("rollback"), "{shell}");
    }
    sh("\"$SNAPDISK\" completions bash | bash -n");
    let pages = store.scratch("man");
    snapdisk(&["man", &shown(&pages)]);
    let pages = names(&pages);
    for page in ["snapdisk.1", "snapdisk-mount.1", "snapdisk-policy-plan.1"] {
        assert!(pages.contains(page), "{page} in {pages:?}");
    }
    let bad = store.scratch("bad.toml");
    fs::write(&bad, "hours = [1]\nretain_day = 3\n").expect("a file");
    let said = snapdisk_fails(&["policy", "check", &shown(&bad)]);
    assert!(
        said.contains("line 2, column 1") && said.contains("`retain_days`"),
        "{said}"
    );
    let plan = ask(&["policy", "plan", "--json", &disk]);
    assert!(
        plan["slots"]
            .as_array()
            .is_some_and(|slots| slots.len() == 14),
        "{plan}"
    );
}

/// `snapshot --freeze` holds the filesystem that is mounted from the image
/// still: the snapshot mounts without recovery, and writers go on after it.
#[test]
fn a_frozen_snapshot_needs_no_recovery() {
    if skipped(&[Need::Loop]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = ext4_disk(mount.point(), "web", 64 * MIB);
    let live = LoopMount::new(&web.join("disk.img"), "");
    let recovers = |snapshot: &Path| {
        let image = snapshot.join("disk.img");
        let said = sh(&format!("dumpe2fs -h {} 2>&1", image.display()));
        said.contains("needs_recovery")
    };
    fs::write(live.path("before"), noise(1, 100_000)).expect("a write");
    assert!(
        recovers(&take(&web, "plain")),
        "without it the journal is in use"
    );
    snapdisk(&["snapshot", "--freeze", "still", &shown(&web)]);
    let still = web.join(".snapshots/still");
    assert!(!recovers(&still));
    fs::write(live.path("after"), b"it goes on").expect("not frozen any more");
    let old = LoopMount::new(&still.join("disk.img"), "ro");
    assert_same(
        &fs::read(old.path("before")).expect("before"),
        &noise(1, 100_000),
        "before",
    );
    assert!(!old.path("after").exists());
    old.unmount();
    // A snapshot that is refused leaves nothing frozen.
    snapdisk_fails(&["snapshot", "--freeze", "still", &shown(&web)]);
    fs::write(live.path("again"), b"x").expect("not frozen");
    live.unmount();
    // No loop device: nothing to hold still.
    let mut unmounted = command(SNAPDISK, &["snapshot", "--freeze", "unmounted"]);
    let output = run(unmounted.arg(&web));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("none was held still"), "{said}");
}

/// Backup tools read snapshots as plain files, and what is the same is not
/// read twice: inode numbers and times are stable, over a remount too.
#[test]
fn backup_tools_read_snapshots() {
    if skipped(&[
        Need::Mount,
        Need::Program("restic"),
        Need::Program("qemu-img"),
    ]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let web = sized(mount.point(), "web", 64 * MIB);
    open(&web.join("disk.img"))
        .write_all_at(&noise(1, 8 << 20), 9 * MIB)
        .expect("a write");
    let snapshot = take(&web, "one");
    wait_ready(&snapshot);
    let repository = store.scratch("restic");
    let restic = |arguments: &str| {
        sh(&format!(
            "export RESTIC_PASSWORD=x RESTIC_REPOSITORY={} HOME={}; restic {arguments}",
            repository.display(),
            store.scratch("home").display()
        ))
    };
    restic("init");
    let image = shown(&snapshot.join("disk.img"));
    restic(&format!("backup --json {image}"));
    mount.remount();
    let second = restic(&format!("backup --json {image}"));
    let summary: Value = second
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find(|line| line["message_type"] == "summary")
        .expect("a summary");
    assert_eq!(summary["files_unmodified"], 1, "{summary}");
    assert_eq!(summary["files_changed"], 0, "{summary}");

    let scratch = store.scratch("copies");
    fs::create_dir(&scratch).expect("a directory");
    sh(&format!(
        "cd {}; rsync --sparse {image} by-rsync; cp --sparse=always {image} by-cp; \
         qemu-img compare -f raw -F raw by-rsync {image}; qemu-img compare by-cp {image}; \
         test $(du -k by-cp | cut -f1) -lt 20000",
        scratch.display()
    ));
}

/// "512 snapshots on one disk, where `ls -l .snapshots` reads no chunk";
/// they are listed, counted and told of in a moment.
#[test]
fn hundreds_of_snapshots_are_listed_without_a_chunk() {
    if skipped(&[Need::Mount]) {
        return;
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let point = shown(mount.point());
    snapdisk(&["set", &point, "max_manual_snapshots=512"]);
    let web = sized(mount.point(), "web", 1 << 40);
    let image = open(&web.join("disk.img"));
    let mut random = Random(3);
    for number in 0..512u64 {
        let at = random.below(1 << 22) * CHUNK;
        image
            .write_all_at(&random.bytes(4096), at)
            .expect("a write");
        take(&web, &format!("s{number:03}"));
    }
    drop(image);
    for entry in fs::read_dir(web.join(".snapshots")).expect("a list") {
        wait_ready(&entry.expect("an entry").path());
    }
    mount.remount();
    // Without its packs nothing can be read but what is in memory.
    let packs = store.path().join("packs");
    let aside = store.path().join("packs.aside");
    fs::rename(&packs, &aside).expect("a rename");
    fs::create_dir(&packs).expect("no packs");
    let listed = sh(&format!("ls -l {}", web.join(".snapshots").display()));
    assert_eq!(
        listed.lines().count(),
        1 + 512 + 1,
        "total, snapshots, latest"
    );
    fs::remove_dir(&packs).expect("it is empty");
    fs::rename(&aside, &packs).expect("they are back");
    let list = ask(&["list", "--json", &shown(&web)]);
    let snapshots = list["snapshots"].as_array().expect("snapshots");
    assert_eq!(snapshots.len(), 512);
    assert!(
        snapshots.iter().all(|one| one["unique_bytes"].is_u64()),
        "{}",
        snapshots[7]
    );
    let capacity = ask(&["capacity", "--json", &shown(&web)]);
    let chain = capacity["disks"][0]["chain_bytes"]
        .as_u64()
        .expect("a number");
    let uniques = snapshots
        .iter()
        .filter_map(|one| one["unique_bytes"].as_u64());
    assert!(chain >= uniques.sum::<u64>());
}
