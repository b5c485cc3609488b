//! Goal: the command says what it cannot do, why, and what to do about it,
//! and harms nothing; what it can do it does mounted and unmounted alike.
//!
//! Method: the binary itself, on real mounts and on stores that are none, of
//! a newer format, locked, read-only, full, damaged.

mod common;

use common::bytes::open;
use common::*;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;
use std::process::{Child, Command};

fn text(path: &Path) -> String {
    path.display().to_string()
}

fn json(arguments: &[&str]) -> serde_json::Value {
    let said = snapdisk(arguments);
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}\n{said}"))
}

/// Mounting has to fail with exit code 1 and words that contain `why`.
#[track_caller]
fn assert_no_mount(store: &Path, point: &Path, why: &str) {
    let said = snapdisk_fails(&["mount", &text(store), &text(point)]);
    assert!(said.contains(why), "{said}, and not: {why}");
}

/// Issue list of bad mount points and stores: each is refused with a clear
/// message and changes nothing.
#[test]
fn what_cannot_be_mounted_is_refused() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let (root, point) = (store.path(), store.point());
    assert_no_mount(&root, &store.scratch("none"), "no such file");
    assert_no_mount(&root, &root.join("manifests"), "in the store itself");
    let full = store.scratch("full");
    fs::create_dir(&full)?;
    fs::write(full.join("file"), "x")?;
    assert_no_mount(&root, &full, "still has");
    assert_no_mount(&root, &full.join("file"), "no directory");
    assert_no_mount(&full, &point, "no store");
    assert_no_mount(&store.scratch("none"), &point, "no such file");
    // A store below its own mount point would wait for itself.
    let above = store.scratch("above");
    fs::create_dir(&above)?;
    snapdisk(&["init", &text(&above.join("inner"))]);
    assert_no_mount(&above.join("inner"), &above, "below its own mount point");
    run(command("mount", &["-t", "tmpfs", "none"]).arg(&point));
    let refused = snapdisk_fails(&["mount", &text(&root), &text(&point)]);
    run(command("umount", &[]).arg(&point));
    assert!(refused.contains("is mounted there"), "{refused}");

    for (arguments, what) in [
        (["mount", "-o", "frobnicate", "s", "m"], "frobnicate"),
        (["mount", "-o", "threads=0", "s", "m"], "threads=0"),
    ] {
        let said = snapdisk_usage(&arguments);
        assert!(said.contains(what), "{said}");
    }

    // Whatever else somebody has mounted, under a name that is no text.
    let strange = store.scratch("").join(OsStr::from_bytes(b"a\xff\\040b\nc"));
    fs::create_dir(&strange)?;
    run(command("mount", &["-t", "tmpfs", "none"]).arg(&strange));
    let mount = store.mount();
    run(command("umount", &[]).arg(&strange));
    let second = store.scratch("second");
    fs::create_dir(&second)?;
    assert_no_mount(&root, &second, "it is mounted at");
    assert_no_mount(&root, &point, "it is mounted at");
    // Locked, as somebody sees it who cannot see the mount.
    let locked = "exec unshare --mount sh -c 'umount -l \"$0\" && \"$SNAPDISK\" status \"$1\"' \"$0\" \"$1\"";
    let mut other = command("sh", &["-c", locked]);
    let said = run_fails(other.arg(&point).arg(&root));
    let holder = format!("process {}", mount.process());
    assert!(
        said.contains(&holder) && said.contains(&text(&point)),
        "{said}"
    );
    Ok(())
}

/// A daemon that does not answer, of whatever store, holds up nothing that is
/// done to another one.
#[test]
fn a_daemon_that_hangs_holds_up_no_other_store() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    struct Stopped(String);
    impl Drop for Stopped {
        fn drop(&mut self) {
            sh(&format!("kill -CONT {}", self.0));
        }
    }
    let (hanging, store) = (TestStore::new(), TestStore::new());
    let mount = hanging.mount();
    let stopped = Stopped(mount.process().to_string());
    sh(&format!("kill -STOP {}", stopped.0));
    // A minute is for ever here, and ends the test.
    let status = command("timeout", &["60", env!("CARGO_BIN_EXE_snapdisk"), "status"])
        .arg(store.path())
        .status()?;
    assert!(status.success(), "{status}");
    drop(stopped);
    Ok(())
}

/// A store of a newer format is refused politely, by its manifests' first
/// line and by features that this program does not know.
#[test]
fn a_newer_store_is_refused_politely() -> Outcome {
    let store = TestStore::new();
    let header = store.path().join("manifests/store");
    let bytes = fs::read_to_string(&header)?;
    let newer = bytes.replacen("snapdisk-manifest 1 ", "snapdisk-manifest 2 ", 1);
    fs::write(&header, newer)?;
    let said = snapdisk_fails(&["status", &text(&store.path())]);
    assert!(said.contains("newer"), "{said}");

    let (_, body) = bytes.split_once('\n').ok_or("two parts")?;
    let body = body.replace("\"incompat\":[]", "\"incompat\":[\"telepathy\"]");
    let hash = blake3::hash(body.as_bytes()).to_hex();
    fs::write(&header, format!("snapdisk-manifest 1 store {hash}\n{body}"))?;
    let said = snapdisk_fails(&["status", &text(&store.path())]);
    assert!(said.contains("telepathy"), "{said}");

    // Its copy is as good; without either there is no store.
    fs::write(&header, "rubbish")?;
    snapdisk(&["status", &text(&store.path())]);
    assert_eq!(fs::read_to_string(&header)?, bytes);
    fs::write(&header, "rubbish")?;
    fs::write(store.path().join("manifests/store-copy"), "rubbish")?;
    let said = snapdisk_fails(&["status", &text(&store.path())]);
    assert!(said.contains("manifests/store"), "{said}");
    fs::write(&header, &bytes)?;
    snapdisk(&["status", &text(&store.path())]);
    assert_eq!(
        fs::read_to_string(store.path().join("manifests/store-copy"))?,
        bytes
    );
    Ok(())
}

/// `init` refuses what is a store already or is not empty, and bad sizes;
/// stores with the smallest and the largest chunks work.
#[test]
fn init_makes_stores_of_every_chunk_size() -> Outcome {
    let store = TestStore::new();
    let root = text(&store.path());
    assert!(snapdisk_fails(&["init", &root]).contains("exists"));
    let other = store.scratch("other");
    fs::create_dir(&other)?;
    fs::write(other.join("file"), "x")?;
    assert!(snapdisk_fails(&["init", &text(&other)]).contains("still has"));
    for size in ["8K", "2M", "65K", "x"] {
        snapdisk_usage(&["init", "--chunk-size", size, &text(&store.scratch("bad"))]);
    }
    assert!(!store.scratch("bad").exists());
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    for size in ["16K", "1M"] {
        let store = TestStore::with_chunks(size);
        let mount = store.mount();
        let bytes = noise(1, 3_000_000);
        let disk = disk_with(mount.point(), "web", &bytes);
        let snapshot = take(&disk, "one");
        wait_ready(&snapshot);
        open(&disk.join("disk.img")).write_all_at(b"new", 77)?;
        assert_same(&fs::read(snapshot.join("disk.img"))?, &bytes, size);
        assert_sound(mount.point());
    }
    Ok(())
}

fn start_in_foreground(store: &TestStore) -> std::io::Result<Child> {
    let child = Command::new(SNAPDISK)
        .args(["mount", "-f"])
        .args([store.path(), store.point()])
        .stderr(std::process::Stdio::null())
        .spawn()?;
    wait_until("it is mounted", || store.point().join(".images").is_dir());
    Ok(child)
}

/// SIGTERM and `umount` end a mount cleanly; while files are open `umount` is
/// refused, and SIGTERM ends it once they are closed.
#[test]
fn mounts_end_cleanly() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mut child = start_in_foreground(&store)?;
    let image = disk_with(&store.point(), "web", b"kept").join("disk.img");
    // Another test's command that is just being started has our files open
    // for a moment, and then it only says that it is in use.
    let mut ended = None;
    wait_until("SIGTERM ends it", || {
        sys::kill(child.id(), libc::SIGTERM).expect("it is not waited for yet");
        ended = child.try_wait().expect("it is ours");
        ended.is_some()
    });
    assert!(ended.is_some_and(|status| status.success()), "exit code 0");
    assert!(!store.point().join(".images").exists());

    let mount = store.mount();
    assert_eq!(fs::read(&image)?, b"kept");
    let held = File::open(&image)?;
    let said = snapdisk_fails(&["umount", &text(&store.point())]);
    assert!(said.contains("in use") && said.contains("fuser"), "{said}");
    sys::kill(mount.process(), libc::SIGTERM)?;
    wait_until("the log says so", || store.log().contains("is in use"));
    assert_eq!(fs::read(&image)?, b"kept");
    drop(held);
    wait_until("it is unmounted", || !mount.path(".images").exists());
    let said = snapdisk_fails(&["umount", &text(&store.point())]);
    assert!(said.contains("nothing is mounted"), "{said}");
    Ok(())
}

/// A bind mount of a part keeps the daemon: `umount` names it instead of
/// waiting for ever, and SIGTERM ends it, too.
#[test]
fn a_bind_mount_is_told_of_and_ended() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"kept");
    let elsewhere = tempfile::tempdir()?;
    let bound = text(elsewhere.path());
    sh(&format!("mount --bind '{}' '{bound}'", web.display()));
    let said = snapdisk_fails(&["umount", &text(&store.point())]);
    assert!(said.contains(&bound), "{said}");
    assert_eq!(fs::read(web.join("disk.img"))?, b"kept");
    // It can be unmounted itself.
    snapdisk(&["umount", &bound]);
    assert!(!elsewhere.path().join("disk.img").exists());
    assert_eq!(fs::read(web.join("disk.img"))?, b"kept");
    sh(&format!("mount --bind '{}' '{bound}'", web.display()));
    sys::kill(mount.process(), libc::SIGTERM)?;
    wait_until("the store is let go of", || {
        File::open(store.path().join("lock")).is_ok_and(|lock| lock.try_lock().is_ok())
    });
    assert!(!elsewhere.path().join("disk.img").exists());
    assert!(!mount.path(".images").exists());
    Ok(())
}

/// Verbs answer the same for a mounted store and for the store itself; their
/// JSON has the documented keys.
#[test]
fn verbs_work_mounted_and_unmounted() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let (root, point) = (text(&store.path()), text(&store.point()));
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", &noise(1, 500_000));
    disk_with(mount.point(), "db", &noise(2, 100_000));
    fs::create_dir(mount.path("bare"))?;
    let (web, db) = (text(&web), text(&mount.path("db")));
    let taken = snapdisk(&["snapshot", "one", &web, &db]);
    assert_eq!(taken.lines().count(), 2, "{taken}");
    // All or none: one that cannot be taken keeps the others.
    let mut mixed = command(
        SNAPDISK,
        &[
            "snapshot",
            "--json",
            "two",
            &web,
            &text(&mount.path("bare")),
        ],
    );
    let output = mixed.output()?;
    assert_eq!(output.status.code(), Some(1));
    let said: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    assert_eq!(said["taken"].as_array().map(Vec::len), Some(0), "{said}");
    assert_eq!(said["failed"].as_array().map(Vec::len), Some(1), "{said}");
    assert!(!mount.path("web/.snapshots/two").exists());
    snapdisk(&["snapshot", "two", &web]);
    for name in ["one", "two"] {
        wait_ready(&mount.path("web/.snapshots").join(name));
    }

    let ask = |place: &str| {
        let status = json(&["status", "--json", place]);
        let list = json(&["list", "--json", place]);
        let verify = json(&["verify", "--json", place]);
        (status, list, verify)
    };
    let mounted = ask(&point);
    let in_mount = json(&["list", "--json", &web]);
    snapdisk(&["gc", "--dry-run", &point]);
    mount.unmount();
    let unmounted = ask(&root);
    for (status, list, verify) in [&mounted, &unmounted] {
        assert_eq!(status["disks"], 3, "{status}");
        assert_eq!(status["snapshots"], 3, "{status}");
        assert_eq!(status["attention"].as_array().map(Vec::len), Some(0));
        let names: Vec<_> = list["disks"]
            .as_array()
            .ok_or("disks")?
            .iter()
            .map(|d| &d["name"])
            .collect();
        assert_eq!(names, ["bare", "db", "web"]);
        assert!(verify.to_string().contains("\"findings\""), "{verify}");
    }
    assert_eq!(mounted.1["disks"], unmounted.1["disks"]);
    let in_store = json(&["list", "--json", "--store", &root, "web"]);
    assert_eq!(in_mount["snapshots"], in_store["snapshots"]);
    assert_eq!(in_store["snapshots"].as_array().map(Vec::len), Some(2));
    snapdisk(&["snapshot", "--store", &root, "web@three"]);
    snapdisk(&["rollback", "--store", &root, "web", "one"]);
    // What gc would free is what it frees.
    let (dry, done) = (
        json(&["gc", "--json", "--dry-run", &root]),
        json(&["gc", "--json", &root]),
    );
    assert_eq!(dry["freed_bytes"], done["freed_bytes"], "{dry} {done}");
    let said = snapdisk_fails(&["rollback", "--store", &root, "web", "none"]);
    assert!(said.contains("none"), "{said}");
    Ok(())
}

/// `verify` exits 1 when a byte of a pack is wrong, names the snapshot and
/// the range; reads of that range are EIO and all else can be read.
#[test]
fn verify_finds_a_flipped_byte() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let bytes = noise(1, 1 << 20);
    let disk = disk_with(mount.point(), "web", &bytes);
    let snapshot = take(&disk, "one");
    wait_ready(&snapshot);
    mount.unmount();
    let pack = fs::read_dir(store.path().join("packs"))?
        .next()
        .ok_or("a pack")??
        .path();
    let file = OpenOptions::new().read(true).write(true).open(&pack)?;
    // In the payload of the first chunk, behind the pack's header and its own.
    let mut byte = [0];
    file.read_exact_at(&mut byte, 64 + 88 + 1000)?;
    file.write_all_at(&[byte[0] ^ 1], 64 + 88 + 1000)?;
    let said = run_verify(&store.path(), 1);
    assert!(
        said.contains("web@one") && said.contains("bytes 0 to 65536"),
        "{said}"
    );
    mount.remount();
    let image = File::open(snapshot.join("disk.img"))?;
    let mut part = vec![0; 65536];
    assert_errno(
        image.read_exact_at(&mut part, 0),
        libc::EIO,
        "the damaged chunk",
    );
    for chunk in 1..16 {
        image.read_exact_at(&mut part, chunk * 65536)?;
        assert_same(
            &part,
            &bytes[chunk as usize * 65536..][..65536],
            "another chunk",
        );
    }
    drop(image);
    fs::remove_dir(take(&disk, "two"))?;
    let said = snapdisk_fails(&["gc", &text(mount.point())]);
    assert!(said.contains("is damaged"), "{said}");

    // A repair marks the snapshot; gc then goes on and leaves the pack.
    let said = run_verify_with(&["--repair"], mount.point(), 1);
    assert!(said.contains("web@one"), "{said}");
    assert_eq!(state(&snapshot), "damaged");
    snapdisk(&["gc", &text(mount.point())]);
    assert!(pack.exists(), "what is live stays, sound or not");
    assert_eq!(
        fs::read(snapshot.join("disk.img")).map_err(|e| e.raw_os_error()),
        Err(Some(libc::EIO))
    );

    // The same bytes are written again, and with them the snapshot is whole,
    // also if nobody has looked at the damaged ones since the store was
    // mounted.
    mount.remount();
    fs::write(disk.join("disk.img"), &bytes)?;
    let again = take(&disk, "again");
    wait_ready(&again);
    let said = run_verify_with(&["--repair"], mount.point(), 0);
    assert!(said.contains("all is well"), "{said}");
    assert_eq!(state(&snapshot), "ready");
    assert!(!pack.exists(), "nothing in it is needed any more");
    mount.remount();
    assert_same(
        &fs::read(snapshot.join("disk.img"))?,
        &bytes,
        "the snapshot",
    );
    run_verify(mount.point(), 0);
    Ok(())
}

/// Forgetting what was lost forgets no snapshot of a group whose own manifest
/// was lost, with and without a catalogue that knew of the group.
#[test]
fn a_group_whose_manifest_is_lost_keeps_its_snapshots() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    for with_catalogue in [true, false] {
        let store = TestStore::new();
        let at = text(&store.path());
        let mount = store.mount();
        let mut disks = Vec::new();
        for name in ["one", "two"] {
            disks.push(disk_with(mount.point(), name, &noise(3, 300_000)));
        }
        snapdisk(&["snapshot", "night", &text(&disks[0]), &text(&disks[1])]);
        for disk in &disks {
            wait_ready(&disk.join(".snapshots/night"));
        }
        mount.unmount();
        let manifests = store.path().join("manifests");
        for entry in fs::read_dir(&manifests)? {
            let name = entry?.file_name();
            let name = name.to_string_lossy();
            if name.starts_with("group-") || (!with_catalogue && name == "catalogue") {
                fs::remove_file(manifests.join(&*name))?;
            }
        }
        run_verify_with(&["--repair"], &store.path(), 1);
        run_verify_with(&["--repair", "--forget-lost"], &store.path(), 0);
        snapdisk(&["gc", &at]);
        let mount = store.mount();
        for name in ["one", "two"] {
            let snapshot = mount.point().join(name).join(".snapshots/night");
            let found = fs::read(snapshot.join("disk.img"))?;
            assert_same(&found, &noise(3, 300_000), name);
        }
        // It is a group again, and is deleted as one.
        fs::remove_dir(mount.point().join(".snapshots/night"))?;
        for name in ["one", "two"] {
            assert!(!mount.point().join(name).join(".snapshots/night").exists());
        }
        mount.unmount();
        run_verify(&store.path(), 0);
    }
    Ok(())
}

/// A store survives the loss of its catalogue, and of a disk's manifest: what
/// is left is used, and what is lost is forgotten only when that is asked for.
#[test]
fn lost_manifests_are_told_of_and_forgotten_on_demand() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let at = text(&store.path());
    for disk in ["one", "two"] {
        let mount = store.mount();
        let disk = disk_with(mount.point(), disk, &noise(3, 300_000));
        wait_ready(&take(&disk, "first"));
        mount.unmount();
    }
    fs::remove_file(store.path().join("manifests/catalogue"))?;
    let said = snapdisk_fails(&["list", &at]);
    assert!(
        said.contains("catalogue") && said.contains("--repair"),
        "{said}"
    );
    run_verify_with(&["--repair"], &store.path(), 0);
    let listed = snapdisk(&["list", &at]);
    assert!(listed.contains("one") && listed.contains("two"), "{listed}");

    let manifests = fs::read_dir(store.path().join("manifests"))?;
    let disk = manifests
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(r#""name":"two""#)));
    let disk = disk.ok_or("the manifest of disk two")?;
    fs::write(&disk, "rubbish")?;
    let said = run_verify_with(&["--repair"], &store.path(), 1);
    assert!(said.contains("manifests/disk-"), "{said}");
    let said = snapdisk_fails(&["gc", &at]);
    assert!(said.contains("manifests/disk-"), "{said}");
    run_verify_with(&["--repair", "--forget-lost"], &store.path(), 0);
    snapdisk(&["gc", &at]);
    let listed = snapdisk(&["list", &at]);
    assert!(
        listed.contains("one") && !listed.contains("two"),
        "{listed}"
    );
    let name = disk
        .file_name()
        .and_then(|name| name.to_str())
        .ok_or("a name")?;
    let kept = store.path().join(format!("manifests/lost-{name}"));
    assert_eq!(fs::read_to_string(kept)?, "rubbish");
    run_verify(&store.path(), 0);
    Ok(())
}

fn run_verify(place: &Path, code: i32) -> String {
    run_verify_with(&[], place, code)
}

fn run_verify_with(options: &[&str], place: &Path, code: i32) -> String {
    let mut verify = command(SNAPDISK, &["verify", &text(place)]);
    let output = verify.args(options).output();
    let output = output.expect("it runs");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let said = said + &String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    said
}

/// Invariant 7: a store whose filesystem is full refuses writes, and can be
/// read, deleted from, unmounted, mounted and written again once there is
/// room. One that is read-only is refused.
#[test]
fn a_full_store_goes_on_but_for_writing() -> Outcome {
    if skipped(&[Need::Loop]) {
        return Ok(());
    }
    let filesystem = Filesystem::new(96 << 20);
    let root = filesystem.path("store");
    snapdisk(&["init", &text(&root)]);
    let store = TestStore::empty();
    let mut mount = Mount::new(&root, &store.point(), &[]);
    let bytes = noise(1, 4 << 20);
    let web = disk_with(mount.point(), "web", &bytes);
    let snapshot = take(&web, "one");
    wait_ready(&snapshot);
    // An image that is still being written when there is no more room.
    let import = mount.path(".images/import.img");
    let importing = File::create(&import)?;
    importing.write_all_at(&bytes, 0)?;
    importing.sync_all()?;
    let other = disk_with(mount.point(), "other", b"");
    let image = open(&other.join("disk.img"));
    let mut at = 0;
    let refused = loop {
        match image.write_all_at(&noise(at, 1 << 20), at) {
            Ok(()) => at += 1 << 20,
            Err(error) => break error,
        }
        assert!(at < 96 << 20, "it is never full");
    };
    assert_eq!(refused.raw_os_error(), Some(libc::ENOSPC));
    let whole = |mount: &Mount| -> Outcome {
        assert_same(
            &fs::read(mount.path("web/.snapshots/one/disk.img"))?,
            &bytes,
            "the snapshot",
        );
        let found = fs::read(mount.path("other/disk.img"))?;
        for piece in 0..at >> 20 {
            let range = (piece << 20) as usize..((piece + 1) << 20) as usize;
            assert_same(
                &found[range],
                &noise(piece << 20, 1 << 20),
                "what was written",
            );
        }
        Ok(())
    };
    image.sync_all()?;
    drop(image);
    whole(&mount)?;
    // Others may take what was kept in reserve, to the last byte.
    let ballast = filesystem.path("ballast");
    let mut refused = std::io::copy(&mut std::io::repeat(1), &mut File::create(&ballast)?).err();
    assert_eq!(
        refused.take().and_then(|error| error.raw_os_error()),
        Some(libc::ENOSPC)
    );
    whole(&mount)?;
    // Its first reader cannot make it read-only, and reads it all the same.
    drop(importing);
    assert_same(&fs::read(&import)?, &bytes, "the image");
    assert!(OpenOptions::new().write(true).open(&import).is_ok());
    let no_space = |output: &std::process::Output| {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains("No space left"), "{said}");
    };
    assert_errno(
        fs::create_dir(mount.path("web/.snapshots/two")),
        libc::ENOSPC,
        "a snapshot",
    );
    let gc = command(SNAPDISK, &["gc", &text(mount.point())]).output()?;
    if !gc.status.success() {
        no_space(&gc);
    }
    whole(&mount)?;
    mount.unmount();
    let mounted = command(SNAPDISK, &["mount", &text(&root), &text(mount.point())]).output()?;
    match mounted.status.success() {
        true => mount.unmount(),
        false => no_space(&mounted),
    }
    fs::remove_file(&ballast)?;
    mount.remount();
    whole(&mount)?;
    assert_same(&fs::read(&import)?, &bytes, "the image");
    assert_errno(
        OpenOptions::new().write(true).open(&import),
        libc::EROFS,
        "writing a finished image",
    );
    assert_sound(mount.point());
    fs::remove_dir(mount.path("web/.snapshots/one"))?;
    run(command("truncate", &["-s", "1M"]).arg(mount.path("other/disk.img")));
    wait_until("there is room again", || {
        let image = open(&mount.path("web/disk.img"));
        image.write_all_at(&noise(3, 1 << 20), 0).is_ok() && image.sync_all().is_ok()
    });
    assert_sound(mount.point());
    mount.unmount();

    filesystem.set_read_only(true);
    let said = snapdisk_fails(&["mount", &text(&root), &text(&store.point())]);
    filesystem.set_read_only(false);
    assert!(said.to_lowercase().contains("read-only"), "{said}");
    Ok(())
}

/// The daemon's files are 0600 and its directories 0700, whatever the umask,
/// and names do not become file names in the store.
#[test]
fn nobody_else_sees_into_the_store() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::empty();
    sh(&format!(
        "umask 0 && \"$SNAPDISK\" init '{}'",
        text(&store.path())
    ));
    let mount = store.mount();
    let disk = disk_with(mount.point(), "a=b@c:d", &noise(1, 200_000));
    wait_ready(&take(&disk, "snap=shot"));
    fs::hard_link(
        disk.join(".snapshots/snap=shot/disk.img"),
        mount.path(".images/i@j.img"),
    )?;
    fn look(directory: &Path, seen: &mut u32) -> Outcome {
        let mode = |path: &Path| fs::metadata(path).map(|found| found.permissions().mode() & 0o777);
        assert_eq!(mode(directory)?, 0o700, "{directory:?}");
        for entry in fs::read_dir(directory)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            assert!(!name.contains(['=', '@', ':']), "{path:?}");
            match path.is_dir() {
                // Sled's own: below a directory that nobody may enter.
                true if name == "index" => {}
                true => look(&path, seen)?,
                false => assert_eq!(mode(&path)?, 0o600, "{path:?}"),
            }
            *seen += 1;
        }
        Ok(())
    }
    let mut seen = 0;
    look(&store.path(), &mut seen)?;
    assert!(seen > 8, "{seen} files");
    Ok(())
}

/// `snapdisk … | head` ends quietly when head has had enough; a full disk
/// under the answer is told.
#[test]
fn an_answer_that_nobody_reads_is_no_error() -> Outcome {
    let store = TestStore::new();
    for verb in ["status", "list", "verify"] {
        let (reader, writer) = std::io::pipe()?;
        drop(reader);
        let mut command = command(SNAPDISK, &[verb, &text(&store.path())]);
        let output = command.stdout(writer).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{verb}: {said}");
        let mut command = common::command(SNAPDISK, &[verb, &text(&store.path())]);
        let full = OpenOptions::new().write(true).open("/dev/full")?;
        let output = command.stdout(full).output()?;
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{verb}: {said}");
        assert!(said.contains("No space left"), "{verb}: {said}");
    }
    Ok(())
}

/// README: before the daemon serves anybody its threads give up new
/// privileges, but for the two that it names. (What they cannot open any more
/// is tested where that is set up.)
#[test]
fn a_mounted_daemon_has_given_up_privileges() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    // Whatever starts threads later.
    wait_ready(&take(
        &disk_with(mount.point(), "web", &noise(1, 1 << 20)),
        "one",
    ));
    let mut free = Vec::new();
    let mut confined = 0;
    for task in fs::read_dir(format!("/proc/{}/task", mount.process()))? {
        let task = task?.path();
        // One that has ended meanwhile does nothing any more.
        let (Ok(name), Ok(status)) = (
            fs::read_to_string(task.join("comm")),
            fs::read_to_string(task.join("status")),
        ) else {
            continue;
        };
        match status.lines().any(|line| line == "NoNewPrivs:\t1") {
            true => confined += 1,
            false => free.push(name.trim().to_owned()),
        }
    }
    free.sort();
    assert_eq!(free, ["outside", "signals"]);
    assert!(confined >= 4, "{confined} threads");
    Ok(())
}
