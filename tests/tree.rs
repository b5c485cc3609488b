//! Goal: the mounted tree is what the contract says: names, refusals with
//! their errno, attributes, listings, permissions.
//!
//! Method: system calls on a real mount, looked at from the outside, as root
//! and as a second user.

mod common;

use common::*;
use libc::{EBUSY, EEXIST, EFBIG, EINVAL, ENAMETOOLONG, ENOENT, ENOTEMPTY};
use libc::{ENXIO, EOPNOTSUPP, EPERM, EROFS};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Bytes in a chunk of [`TestStore::new`].
const CHUNK: usize = 64 << 10;
/// The largest image (README: "up to 64 TiB").
const LIMIT: u64 = 64 << 40;

fn to_write(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().write(true).open(path)
}

fn to_read_and_write(path: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

/// Runs a line of shell as a user who is nobody.
fn as_nobody(script: &str) -> std::process::Output {
    let user = NOBODY.to_string();
    let mut command = command("setpriv", &["--clear-groups", "--reuid", &user]);
    command.args(["--regid", &user, "--", "bash", "-c", script]);
    command.output().expect("setpriv runs")
}

#[track_caller]
fn nobody_can(script: &str) {
    let output = as_nobody(script);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}: {said}");
}

#[track_caller]
fn nobody_cannot(script: &str, why: &str) {
    let output = as_nobody(script);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{script} was done");
    assert!(said.contains(why), "{script}: {said}, and not: {why}");
}

/// Contract: names are letters and digits of any script and `._-:+@=`, at
/// most 128 characters and 255 bytes, not starting with `.` or `-`; a bad one
/// is EINVAL, one of more than 255 bytes ENAMETOOLONG. The log says why.
#[test]
fn bad_names_are_refused_and_good_ones_taken() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"data");
    let snapshot = take(&web, "good");
    let places = [
        ("a disk", mount.point().to_owned()),
        ("a snapshot", web.join(".snapshots")),
    ];
    let bad: [(&[u8], i32); 12] = [
        (b".hidden", EINVAL),
        (b"-rf", EINVAL),
        (b"a b", EINVAL),
        (b"a*", EINVAL),
        (b"a\nb", EINVAL),
        (b"a\\b", EINVAL),
        (b"caf\xe9", EINVAL),
        (b"\xff\xfe", EINVAL),
        (&[b'x'; 129], EINVAL),
        (&[b'x'; 256], ENAMETOOLONG),
        (&[b'x'; 300], ENAMETOOLONG),
        ("数".repeat(86).leak().as_bytes(), ENAMETOOLONG),
    ];
    for (name, errno) in bad {
        let name = OsStr::from_bytes(name);
        for (what, place) in &places {
            let made = fs::create_dir(place.join(name));
            assert_errno(made, errno, &format!("{what} called {name:?}"));
        }
        let image = mount.path(".images").join(name);
        let linked = fs::hard_link(snapshot.join("disk.img"), &image);
        assert_errno(linked, errno, &format!("an image called {name:?}"));
        let imported = File::create(&image);
        assert_errno(imported, errno, &format!("an import called {name:?}"));
        let moved = fs::rename(&snapshot, web.join(".snapshots").join(name));
        assert_errno(moved, errno, &format!("a snapshot renamed to {name:?}"));
        let moved = fs::rename(&web, mount.point().join(name));
        assert_errno(moved, errno, &format!("a disk renamed to {name:?}"));
    }
    for (what, place) in &places {
        // The kernel knows this one.
        assert_errno(fs::create_dir(place.join("..")), EEXIST, what);
    }
    let point = mount.point().display().to_string();
    let said = snapdisk_usage(&["snapshot", "..", &format!("{point}/web")]);
    assert!(said.contains(".."), "{said}");

    // One character, what policies keep for themselves, and `latest`.
    let reserved = ["a", "auto", "auto-20261123T030000Z"];
    for name in reserved
        .into_iter()
        .chain(["policy.toml", "policy.rejected"])
    {
        let made = fs::create_dir(web.join(".snapshots").join(name));
        assert_errno(made, EINVAL, name);
        let moved = fs::rename(&snapshot, web.join(".snapshots").join(name));
        assert_errno(moved, EINVAL, name);
    }
    fs::create_dir(mount.path("empty"))?;
    let latest = fs::create_dir(mount.path("empty/.snapshots/latest"));
    assert_errno(latest, EINVAL, "a first snapshot called latest");

    let long = "x".repeat(128);
    let wide = "数".repeat(85);
    let good = [
        "2026-11-24T03:48:52+00:00",
        "数据库",
        "a@b=c_d.e",
        &long,
        &wide,
    ];
    for name in good {
        for (what, place) in &places {
            fs::create_dir(place.join(name)).map_err(|error| format!("{what} {name}: {error}"))?;
            assert!(place.join(name).is_dir());
        }
    }
    let log = store.log();
    for reason in [
        "it starts with '.' or '-'",
        "more than 128 characters",
        "not UTF-8",
    ] {
        assert!(log.contains(reason), "the log does not say {reason:?}");
    }
    Ok(())
}

/// Contract: exists is EEXIST, missing is ENOENT, a snapshot of a disk
/// without an image is ENOENT; a snapshot is never replaced by a rename.
#[test]
fn what_exists_and_what_is_missing_is_told() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"one");
    let snapshots = web.join(".snapshots");
    let first = take(&web, "first");
    fs::write(web.join("disk.img"), b"two")?;
    let second = take(&web, "second");

    assert_errno(fs::create_dir(&web), EEXIST, "a second disk called web");
    assert_errno(
        fs::create_dir(&first),
        EEXIST,
        "a second snapshot called first",
    );
    assert_errno(fs::rename(&first, &second), EEXIST, "mv onto a snapshot");
    let flags = libc::RENAME_NOREPLACE;
    let moved = sys::rename_with(&first, &second, flags);
    assert_errno(moved, EEXIST, "mv without replacing");
    let swapped = sys::rename_with(&first, &second, libc::RENAME_EXCHANGE);
    assert_errno(swapped, EINVAL, "two snapshots swapped");
    assert_eq!(fs::read(first.join("disk.img"))?, b"one");
    assert_eq!(fs::read(second.join("disk.img"))?, b"two");

    fs::create_dir(mount.path("db"))?;
    assert_errno(fs::rename(&web, mount.path("db")), EEXIST, "mv onto a disk");
    assert_errno(
        fs::create_dir(mount.path("db/.snapshots/one")),
        ENOENT,
        "a snapshot of nothing",
    );
    assert_errno(
        fs::remove_dir(snapshots.join("none")),
        ENOENT,
        "rmdir of nothing",
    );
    assert_errno(
        fs::remove_dir(mount.path("none")),
        ENOENT,
        "rmdir of no disk",
    );
    assert_errno(
        fs::remove_file(mount.path("db/disk.img")),
        ENOENT,
        "rm of no image",
    );
    assert_errno(
        fs::rename(snapshots.join("none"), snapshots.join("x1")),
        ENOENT,
        "mv of nothing",
    );
    assert_errno(
        File::open(mount.path(".images/none.img")),
        ENOENT,
        "no image",
    );

    sys::rename_with(&first, &snapshots.join("eldest"), flags)?;
    assert_eq!(fs::read(snapshots.join("eldest/disk.img"))?, b"one");
    Ok(())
}

/// Contract: any change inside a snapshot or an image is EROFS, opening for
/// writing at once; the content stays.
#[test]
fn nothing_inside_a_snapshot_or_image_can_be_changed() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let content = noise(1, 3 * CHUNK);
    let web = disk_with(mount.point(), "web", &content);
    let snapshot = take(&web, "fixed");
    let linked = mount.path(".images/linked.img");
    fs::hard_link(snapshot.join("disk.img"), &linked)?;
    let imported = mount.path(".images/imported.img");
    fs::copy(snapshot.join("disk.img"), &imported)?;
    // The first use finishes an import.
    assert_same(&fs::read(&imported)?, &content, "the import");

    let info = snapshot.join("info.toml");
    for path in [&snapshot.join("disk.img"), &linked, &imported, &info] {
        let shown = path.display();
        assert_errno(to_write(path), EROFS, &format!("{shown} for writing"));
        assert_errno(to_read_and_write(path), EROFS, &format!("{shown} for both"));
        let truncating = OpenOptions::new().write(true).truncate(true).open(path);
        assert_errno(truncating, EROFS, &format!("O_TRUNC of {shown}"));
        let said = sh_fails(&format!(
            "python3 -c 'import os; os.truncate(\"{shown}\", 0)'"
        ));
        assert!(said.contains("Read-only file system"), "{said}");
        let mode = Permissions::from_mode(0o777);
        assert_errno(
            fs::set_permissions(path, mode),
            EROFS,
            &format!("chmod {shown}"),
        );
        assert_errno(
            chown(path, Some(NOBODY), None),
            EROFS,
            &format!("chown {shown}"),
        );
        let touched = File::open(path)?.set_modified(SystemTime::UNIX_EPOCH);
        assert_errno(touched, EROFS, &format!("touch {shown}"));
    }
    let (inside, image) = (snapshot.join("new"), snapshot.join("disk.img"));
    assert_errno(File::create(&inside), EROFS, "a file in a snapshot");
    assert_errno(fs::create_dir(&inside), EROFS, "a directory in a snapshot");
    assert_errno(symlink("x", &inside), EROFS, "a symlink in a snapshot");
    for kind in [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFBLK, libc::S_IFREG] {
        assert_errno(
            sys::mknod(&inside, kind | 0o600),
            EROFS,
            "mknod in a snapshot",
        );
    }
    assert_errno(fs::rename(&image, &inside), EROFS, "mv in a snapshot");
    assert_errno(
        fs::rename(&image, &info),
        EROFS,
        "mv onto a snapshot's file",
    );
    assert_errno(
        fs::rename(&image, mount.path("db.img")),
        EROFS,
        "mv out of a snapshot",
    );
    let into = fs::rename(web.join("disk.img"), &inside);
    assert_errno(into, EROFS, "mv into a snapshot");
    assert_errno(fs::hard_link(&image, &inside), EROFS, "ln in a snapshot");
    assert_errno(
        fs::hard_link(web.join("disk.img"), &inside),
        EROFS,
        "ln into a snapshot",
    );
    let mode = Permissions::from_mode(0o700);
    assert_errno(
        fs::set_permissions(&snapshot, mode),
        EROFS,
        "chmod of a snapshot",
    );
    assert_errno(
        chown(&snapshot, Some(NOBODY), None),
        EROFS,
        "chown of a snapshot",
    );
    // From another process: this one has to be able to delete it later.
    let said = sh_fails(&format!("rm -f '{}'", image.display()));
    assert!(said.contains("Read-only file system"), "{said}");

    for path in [&image, &linked, &imported] {
        assert_same(&fs::read(path)?, &content, &path.display().to_string());
    }
    // losetup falls back to a read-only device, which relies on EROFS.
    if !skipped(&[Need::Loop]) {
        let device = sh(&format!("losetup --find --show '{}'", image.display()));
        let read_only = sh(&format!(
            "blockdev --getro {0}; losetup -d {0}",
            device.trim()
        ));
        assert_eq!(read_only.trim(), "1");
        wait_until("the loop device lets go", || held_by(&snapshot).len() == 1);
    }
    fs::remove_file(&linked)?;
    fs::remove_file(&imported)?;
    fs::remove_dir(&snapshot)?;
    Ok(())
}

/// Contract: what the tree has no meaning for is EPERM: stray files, mknod,
/// renames across directories, hard links of anything else.
#[test]
fn stray_files_and_renames_across_directories_are_refused() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"web");
    let db = disk_with(mount.point(), "db", b"db");
    let snapshot = take(&web, "one");
    take(&db, "two");
    let images = mount.path(".images");
    fs::hard_link(snapshot.join("disk.img"), images.join("i.img"))?;

    for place in [mount.point(), &web, &web.join(".snapshots")] {
        let name = place.join("stray");
        let what = |what: &str| format!("{what} in {}", place.display());
        // Beside a policy there may be a few scratch files, and links to
        // named policies.
        if place.ends_with(".snapshots") {
            assert_errno(symlink("web", &name), libc::EINVAL, &what("a symlink"));
        } else {
            assert_errno(File::create(&name), EPERM, &what("a file"));
            assert_errno(symlink("web", &name), EPERM, &what("a symlink"));
            assert_errno(
                sys::mknod(&name, libc::S_IFREG | 0o600),
                EPERM,
                &what("mknod"),
            );
        }
        for kind in [libc::S_IFIFO, libc::S_IFSOCK, libc::S_IFCHR] {
            assert_errno(sys::mknod(&name, kind | 0o600), EPERM, &what("mknod"));
        }
        let linked = fs::hard_link(snapshot.join("disk.img"), &name);
        assert_errno(linked, EPERM, &what("a hard link"));
    }
    assert_errno(
        fs::create_dir(web.join("stray")),
        EPERM,
        "a directory in a disk",
    );
    assert_errno(
        fs::create_dir(images.join("stray")),
        EPERM,
        "a directory in .images",
    );
    assert_errno(
        symlink("x", images.join("stray")),
        EPERM,
        "a symlink in .images",
    );
    let fifo = sys::mknod(&images.join("stray"), libc::S_IFIFO | 0o600);
    assert_errno(fifo, EPERM, "a fifo in .images");
    for source in [web.join("disk.img"), snapshot.join("info.toml")] {
        let linked = fs::hard_link(&source, images.join("x.img"));
        assert_errno(linked, EPERM, &format!("ln {}", source.display()));
    }

    let moves: [(PathBuf, PathBuf); 8] = [
        (snapshot.clone(), db.join(".snapshots/one")),
        (snapshot.clone(), mount.path("one")),
        (snapshot.clone(), images.join("one")),
        (web.clone(), db.join(".snapshots/web")),
        (web.clone(), images.join("web")),
        (web.join("disk.img"), images.join("live.img")),
        (images.join("i.img"), mount.path("db/x.img")),
        (web.join("disk.img"), web.join("other.img")),
    ];
    for (from, to) in moves {
        let what = format!("mv {} {}", from.display(), to.display());
        assert_errno(fs::rename(&from, &to), EPERM, &what);
    }
    // mv would copy after EXDEV, that is make snapshots and disks.
    let (one, two) = (snapshot.display(), db.join(".snapshots"));
    let said = sh_fails(&format!("mv '{one}' '{}'", two.display()));
    assert!(said.contains("Operation not permitted"), "{said}");

    let fixed = [web.join(".snapshots"), images.clone()];
    for path in fixed {
        let shown = path.display();
        let moved = fs::rename(&path, path.with_file_name("elsewhere"));
        assert_errno(moved, EPERM, &format!("mv {shown}"));
        let mode = Permissions::from_mode(0o777);
        assert_errno(
            fs::set_permissions(&path, mode),
            EPERM,
            &format!("chmod {shown}"),
        );
    }
    assert_errno(fs::remove_dir(&images), EPERM, "rmdir of .images");
    let latest = web.join(".snapshots/latest");
    assert_errno(fs::remove_file(&latest), EPERM, "rm of latest");
    assert_errno(
        fs::rename(&latest, web.join(".snapshots/x1")),
        EPERM,
        "mv of latest",
    );
    assert_errno(lchown(&latest, Some(1), None), EPERM, "chown of latest");

    // cp -a relies on it.
    let web = web.display();
    let said = sh_fails(&format!("setfattr -n trusted.x -v 1 '{web}/disk.img'"));
    assert!(said.contains("not supported"), "{said}");
    assert_eq!(fs::read(mount.path("web/disk.img"))?, b"web");
    assert_eq!(fs::read(mount.path("db/disk.img"))?, b"db");
    assert_eq!(fs::read_dir(mount.path("db/.snapshots"))?.count(), 2);
    Ok(())
}

/// Contract: a disk that still has snapshots or data is ENOTEMPTY; an image
/// that is open is EBUSY; what an image depends on is EBUSY, and held_by says
/// so before and after the attempt.
#[test]
fn what_is_in_use_is_not_removed() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"data");
    let image = web.join("disk.img");
    assert_errno(fs::remove_dir(&web), ENOTEMPTY, "a disk with data");
    let snapshot = take(&web, "kept");
    assert_errno(
        fs::remove_dir(web.join(".snapshots")),
        ENOTEMPTY,
        "snapshots",
    );

    let open = File::open(&image)?;
    assert_errno(fs::remove_file(&image), EBUSY, "an image that is open");
    drop(open);
    let writer = to_write(&image)?;
    let said = sh_fails(&format!("truncate -s 1 '{}'", image.display()));
    assert!(said.contains("Device or resource busy"), "{said}");
    let said = sh_fails(&format!("echo > '{}'", image.display()));
    assert!(said.contains("Device or resource busy"), "{said}");
    drop(writer);
    assert_eq!(fs::read(&image)?, b"data");
    fs::remove_file(&image)?;
    assert_errno(fs::remove_dir(&web), ENOTEMPTY, "a disk with a snapshot");

    let linked = mount.path(".images/i.img");
    fs::hard_link(snapshot.join("disk.img"), &linked)?;
    let because = |holders: Vec<String>| holders.iter().any(|holder| holder.contains("i.img"));
    assert!(because(held_by(&snapshot)), "{:?}", held_by(&snapshot));
    assert_errno(fs::remove_dir(&snapshot), EBUSY, "what an image depends on");
    assert!(because(held_by(&snapshot)), "{:?}", held_by(&snapshot));
    fs::remove_file(&linked)?;
    assert_eq!(held_by(&snapshot), Vec::<String>::new());

    let open = File::open(snapshot.join("disk.img"))?;
    assert!(held_by(&snapshot)[0].contains("open"));
    assert_errno(fs::remove_dir(&snapshot), EBUSY, "a snapshot that is open");
    // A close that has just returned counts as closed.
    drop(open);
    fs::remove_dir(&snapshot)?;
    fs::remove_dir(&web)?;
    assert_errno(fs::metadata(&web), ENOENT, "the disk");
    Ok(())
}

/// Contract: any size up to 64 TiB, over it EFBIG; offsets near 2^63 do no
/// harm.
#[test]
fn sizes_over_the_limit_and_offsets_near_the_end_of_numbers_are_refused() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"data");
    let image = to_read_and_write(&web.join("disk.img"))?;
    let end = i64::MAX as u64;

    image.set_len(LIMIT)?;
    image.write_all_at(b"last", LIMIT - 4)?;
    assert_eq!(image.metadata()?.len(), LIMIT);
    assert_errno(image.set_len(LIMIT + 1), EFBIG, "a size over the limit");
    assert_errno(image.set_len(end), EFBIG, "the largest size of all");
    assert_errno(image.write_at(b"x", LIMIT), EFBIG, "a write over the limit");
    // Page by page: what lies below the limit is written, and then refused.
    assert_errno(
        image.write_all_at(b"stxx", LIMIT - 2),
        EFBIG,
        "a write that ends over the limit",
    );
    assert_errno(image.write_at(b"x", end - 1), EFBIG, "a write near 2^63");
    assert_errno(image.write_at(b"x", end + 1), EINVAL, "a write at 2^63");
    let over = sys::fallocate(&image, 0, LIMIT as i64 - 1, 2);
    assert_errno(over, EFBIG, "fallocate over the limit");
    let over = sys::fallocate(&image, 0, i64::MAX - 1, 1);
    assert_errno(over, EFBIG, "fallocate near 2^63");
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    assert_errno(
        sys::fallocate(&image, punch, i64::MAX - 1, 8),
        EFBIG,
        "a hole past 2^63",
    );
    assert_errno(
        sys::fallocate(&image, punch, -1, 8),
        EINVAL,
        "a hole before the start",
    );

    let mut buf = [7; 8];
    assert_eq!(image.read_at(&mut buf, end - 8)?, 0, "a read near 2^63");
    assert_errno(image.read_at(&mut buf, end + 1), EINVAL, "a read at 2^63");
    assert_errno(
        sys::lseek(&image, i64::MAX, libc::SEEK_DATA),
        ENXIO,
        "SEEK_DATA near 2^63",
    );
    assert_errno(
        sys::lseek(&image, i64::MAX, libc::SEEK_HOLE),
        ENXIO,
        "SEEK_HOLE near 2^63",
    );
    let (from, to) = (0, i64::MAX - 2);
    assert_errno(
        sys::copy_file_range(&image, from, &image, to, 1),
        EFBIG,
        "a copy near 2^63",
    );
    let to = LIMIT as i64 - CHUNK as i64;
    let copied = sys::copy_file_range(&image, 0, &image, to, 2 * CHUNK);
    assert_errno(copied, EFBIG, "a copy that ends over the limit");

    // Nothing of it has left a trace, and what may be done can be done.
    assert_eq!(image.metadata()?.len(), LIMIT);
    image.read_exact_at(&mut buf[..4], LIMIT - 4)?;
    assert_eq!(&buf[..4], b"last");
    image.set_len(4)?;
    assert_eq!(fs::read(web.join("disk.img"))?, b"data");
    Ok(())
}

/// Contract: copy_file_range onto itself and overlapping is EINVAL, past the
/// end of the source it copies what there is; nothing else changes.
#[test]
fn copies_onto_themselves_are_refused_and_end_with_their_source() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let mut content = noise(2, 4 * CHUNK + 100);
    let web = disk_with(mount.point(), "web", &content);
    let db = disk_with(mount.point(), "db", b"");
    let image = to_read_and_write(&web.join("disk.img"))?;
    let other = to_read_and_write(&db.join("disk.img"))?;
    let (chunk, size) = (CHUNK as i64, content.len() as i64);

    for (from, to, len) in [
        (0, 0, CHUNK),
        (0, chunk, 2 * CHUNK),
        (chunk, 0, 2 * CHUNK),
        (10, 20, 11),
        (chunk, chunk + 1, 10),
    ] {
        let copied = sys::copy_file_range(&image, from, &image, to, len);
        assert_errno(copied, EINVAL, &format!("{len} bytes from {from} to {to}"));
    }
    assert_eq!(sys::copy_file_range(&image, size, &other, 0, CHUNK)?, 0);
    assert_eq!(sys::copy_file_range(&image, size + 5, &other, 0, CHUNK)?, 0);
    assert_eq!(other.metadata()?.len(), 0, "nothing was copied");

    // Past the end: what there is, in as many calls as it takes.
    let mut done = 0;
    loop {
        let from = 3 * chunk + done;
        match sys::copy_file_range(&image, from, &other, done, 10 * CHUNK)? {
            0 => break,
            copied => done += copied as i64,
        }
    }
    assert_eq!(done, chunk + 100);
    assert_same(
        &fs::read(db.join("disk.img"))?,
        &content[3 * CHUNK..],
        "the tail",
    );

    // Within one image, side by side, aligned and not.
    assert_eq!(
        sys::copy_file_range(&image, 0, &image, chunk, CHUNK)?,
        CHUNK
    );
    content.copy_within(0..CHUNK, CHUNK);
    assert_eq!(
        sys::copy_file_range(&image, 7, &image, 3 * chunk + 1, 500)?,
        500
    );
    content.copy_within(7..507, 3 * CHUNK + 1);
    assert_same(&fs::read(web.join("disk.img"))?, &content, "the image");
    Ok(())
}

/// Issue of long listings: a name that is there all the time is listed just
/// once, however many others come and go meanwhile (part 7, "readdir that
/// survives changes while it runs").
#[test]
fn a_listing_survives_what_comes_and_goes_meanwhile() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let name = |number: usize| format!("disk-{number:03}");
    const DISKS: usize = 150;
    for number in 0..DISKS {
        fs::create_dir(mount.path(&name(number)))?;
    }
    let directory = File::open(mount.point())?;
    let mut listed: Vec<String> = Vec::new();
    let mut removed = BTreeSet::new();
    let mut pieces = 0;
    loop {
        let piece = sys::next_names(&directory, 512)?;
        if piece.is_empty() {
            break;
        }
        pieces += 1;
        // One that was listed, one that was perhaps not, and new ones at
        // both ends.
        let was_listed = piece.iter().find(|name| name.starts_with("disk-"));
        let not_yet = name(DISKS - 1 - pieces);
        for gone in was_listed.into_iter().chain([&not_yet]) {
            if removed.insert(gone.clone()) {
                fs::remove_dir(mount.path(gone))?;
            }
        }
        fs::create_dir(mount.path(&format!("a-{pieces}")))?;
        fs::create_dir(mount.path(&format!("z-{pieces}")))?;
        listed.extend(piece);
    }
    assert!(pieces > 5, "the listing came in {pieces} pieces only");
    let distinct: BTreeSet<&String> = listed.iter().collect();
    assert_eq!(
        distinct.len(),
        listed.len(),
        "a name was listed twice: {listed:?}"
    );
    for name in (0..DISKS).map(name).filter(|name| !removed.contains(name)) {
        assert!(distinct.contains(&name), "{name} was not listed");
    }
    // A new listing shows what there is now.
    let now: BTreeSet<String> = fs::read_dir(mount.point())?
        .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
        .collect::<std::io::Result<_>>()?;
    assert!(removed.iter().all(|name| !now.contains(name)));
    assert_eq!(now.len(), DISKS - removed.len() + 2 * pieces + 4);
    Ok(())
}

/// Contract: a snapshot's mtime and ctime are its instant; inode numbers,
/// times, owners and modes are the same after a remount and after a crash
/// (backup tools rely on it).
#[test]
fn inode_numbers_and_times_are_stable_across_remounts() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let web = disk_with(mount.point(), "web", &noise(3, 2 * CHUNK));
    disk_with(mount.point(), "gone", b"gone");
    let db = disk_with(mount.point(), "db", b"db");
    let before = SystemTime::now();
    let snapshot = take(&web, "one");
    let after = SystemTime::now();
    take(&web, "two");
    take(&db, "one");
    fs::hard_link(snapshot.join("disk.img"), mount.path(".images/linked.img"))?;
    fs::write(mount.path(".images/imported.img"), b"imported")?;
    fs::read(mount.path(".images/imported.img"))?;
    fs::set_permissions(web.join("disk.img"), Permissions::from_mode(0o640))?;
    chown(&db, Some(NOBODY), Some(NOBODY))?;
    let image = to_write(&db.join("disk.img"))?;
    image.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000))?;
    image.sync_all()?;
    drop(image);
    // Numbers are not given anew when a disk goes.
    fs::remove_file(mount.path("gone/disk.img"))?;
    for entry in fs::read_dir(mount.path("gone/.snapshots"))?.flatten() {
        if entry.file_type()?.is_dir() {
            fs::remove_dir(entry.path())?;
        }
    }
    fs::remove_dir(mount.path("gone"))?;
    for snapshot in [
        web.join(".snapshots/two"),
        db.join(".snapshots/one"),
        snapshot.clone(),
    ] {
        wait_ready(&snapshot);
    }

    for path in [snapshot.clone(), snapshot.join("disk.img")] {
        let found = fs::metadata(&path)?;
        let modified = found.modified()?;
        // The clocks of file times tick coarsely elsewhere, not here.
        assert!(
            (before..=after).contains(&modified),
            "{path:?}: {modified:?}"
        );
        assert_eq!(
            (found.ctime(), found.ctime_nsec()),
            (found.mtime(), found.mtime_nsec())
        );
    }
    let paths = [
        "web",
        "web/disk.img",
        "web/.snapshots",
        "web/.snapshots/one",
        "web/.snapshots/one/disk.img",
        "web/.snapshots/one/info.toml",
        "web/.snapshots/two/disk.img",
        "web/.snapshots/latest",
        "db",
        "db/disk.img",
        "db/.snapshots/one/disk.img",
        ".images/linked.img",
        ".images/imported.img",
    ];
    let look = |mount: &Mount| -> std::io::Result<Vec<String>> {
        let shown = |path: &&str| {
            let found = fs::symlink_metadata(mount.path(path))?;
            Ok(format!(
                "{path}: inode {}, mode {:o}, {} links, owner {}:{}, {} bytes, modified {}.{}",
                found.ino(),
                found.mode(),
                found.nlink(),
                found.uid(),
                found.gid(),
                found.len(),
                found.mtime(),
                found.mtime_nsec()
            ))
        };
        paths.iter().map(shown).collect()
    };
    let known = look(&mount)?;
    assert!(known[9].contains("modified 1000000000.0"), "{}", known[9]);
    mount.remount();
    assert_eq!(look(&mount)?, known, "after a remount");
    mount.kill9();
    mount.remount();
    assert_eq!(look(&mount)?, known, "after a crash");
    // None is used twice, but for the image that is the snapshot's.
    let inode = |path: &&str| fs::symlink_metadata(mount.path(path)).map(|found| found.ino());
    let inodes: BTreeSet<u64> = paths.iter().map(inode).collect::<Result<_, _>>()?;
    assert_eq!(inodes.len(), paths.len() - 1);
    Ok(())
}

/// Contract: link counts are honest: a directory's counts its directories, a
/// snapshot's image the images that depend on it.
#[test]
fn link_counts_count() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    // The kernel may believe attributes of directories for a second.
    let links = |path: &str, expected: u64| {
        let path = mount.path(path);
        wait_until(&format!("{path:?} has {expected} links"), || {
            fs::metadata(&path).is_ok_and(|found| found.nlink() == expected)
        });
    };
    links("", 6);
    let web = disk_with(mount.point(), "web", b"data");
    fs::create_dir(mount.path("db"))?;
    links("", 8);
    links("web", 3);
    links("web/.snapshots", 2);
    links("web/disk.img", 1);
    take(&web, "one");
    take(&web, "two");
    links("web/.snapshots", 4);
    links("web/.snapshots/one", 2);
    links("web/.snapshots/one/disk.img", 1);
    for name in ["a.img", "b.img"] {
        let image = web.join(".snapshots/one/disk.img");
        fs::hard_link(image, mount.path(".images").join(name))?;
    }
    for path in [
        "web/.snapshots/one/disk.img",
        ".images/a.img",
        ".images/b.img",
    ] {
        links(path, 3);
    }
    links("web/.snapshots/two/disk.img", 1);
    fs::remove_file(mount.path(".images/a.img"))?;
    links(".images/b.img", 2);
    fs::remove_dir(mount.path("db"))?;
    links("", 7);
    Ok(())
}

/// Contract: statfs has 4 KiB blocks and the real free space of the store's
/// filesystem.
#[test]
fn statfs_tells_the_real_space_in_blocks_of_4_kib() -> Outcome {
    if skipped(&[Need::Loop]) {
        return Ok(());
    }
    let filesystem = Filesystem::new(200 << 20);
    let store = TestStore::empty();
    let root = filesystem.path("store");
    snapdisk(&["init", &root.display().to_string()]);
    let mount = Mount::new(&root, &store.point(), &[]);
    let look = || -> std::io::Result<(u64, u64)> {
        let (here, below) = (sys::statvfs(mount.point())?, sys::statvfs(&root)?);
        assert_eq!((here.f_bsize, here.f_frsize), (4096, 4096));
        assert_eq!(here.f_blocks, below.f_blocks * below.f_frsize / 4096);
        Ok((here.f_bavail * 4096, below.f_bavail * below.f_frsize))
    };
    let (free, below) = look()?;
    assert!(free <= below, "{free} bytes free of {below}");
    assert!(
        free > below - (200 << 20) / 10,
        "too much is kept back: {free} of {below}"
    );

    let web = disk_with(mount.point(), "web", &noise(4, 40 << 20));
    File::open(web.join("disk.img"))?.sync_all()?;
    let (left, _) = look()?;
    assert!(
        left + (39 << 20) < free,
        "{free} bytes were free, {left} are"
    );
    let said = sh(&format!("df --output=fstype '{}'", mount.point().display()));
    assert!(said.contains("fuse.snapdisk"), "{said}");
    Ok(())
}

/// Contract: chmod and chown on a disk's directory and image stick, and the
/// kernel enforces them: a second user does only what modes allow, with
/// images, snapshots, deletion and rollback.
#[test]
fn a_second_user_may_what_the_modes_allow() -> Outcome {
    if skipped(&[Need::Mount, Need::Program("setpriv")]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let denied = "Permission denied";
    let root_disk = disk_with(mount.point(), "web", b"data of root");
    let snapshot = take(&root_disk, "kept");
    fs::set_permissions(root_disk.join("disk.img"), Permissions::from_mode(0o600))?;
    take(&root_disk, "secret");
    disk_with(mount.point(), "closed", b"closed");
    fs::set_permissions(mount.path("closed"), Permissions::from_mode(0o700))?;
    fs::create_dir(mount.path("theirs"))?;
    chown(mount.path("theirs"), Some(NOBODY), Some(NOBODY))?;

    for round in ["at first", "after a remount"] {
        let point = mount.point().display().to_string();
        let web = format!("{point}/web");
        eprintln!("{round}");
        nobody_can(&format!("ls -l {point} {web} {web}/.snapshots/kept"));
        nobody_can(&format!(
            "cat {web}/.snapshots/kept/disk.img {web}/.snapshots/kept/info.toml"
        ));
        nobody_cannot(&format!("cat {web}/disk.img"), denied);
        nobody_cannot(&format!("cat {web}/.snapshots/secret/disk.img"), denied);
        nobody_cannot(&format!("echo x >> {web}/disk.img"), denied);
        nobody_cannot(&format!("truncate -s 0 {web}/disk.img"), denied);
        nobody_cannot(&format!("rm -f {web}/disk.img"), denied);
        nobody_cannot(&format!("chmod 777 {web}"), "not permitted");
        nobody_cannot(&format!("mkdir {web}/.snapshots/mine"), denied);
        nobody_cannot(&format!("rmdir {web}/.snapshots/kept"), denied);
        nobody_cannot(
            &format!("mv {web}/.snapshots/kept {web}/.snapshots/mine"),
            denied,
        );
        let rollback = format!("{SNAPDISK} rollback {web} kept");
        assert!(
            !as_nobody(&rollback).status.success(),
            "{rollback} was done"
        );
        nobody_cannot(&format!("ls {point}/closed"), denied);
        nobody_cannot(&format!("mkdir {point}/mine"), denied);
        nobody_cannot(&format!("rmdir {point}/closed"), denied);
        nobody_cannot(&format!("mv {point}/web {point}/mine"), denied);
        nobody_cannot(&format!("cat {point}/.control"), denied);
        let linked = format!("{point}/.images/mine.img");
        nobody_cannot(
            &format!("ln {web}/.snapshots/kept/disk.img {linked}"),
            "not permitted",
        );
        nobody_cannot(
            &format!("cp {web}/.snapshots/kept/disk.img {linked}"),
            denied,
        );
        nobody_cannot(&format!("ls {}", store.path().display()), denied);

        // On a disk of their own they may all of it.
        let theirs = format!("{point}/theirs");
        nobody_can(&format!(
            "set -e; cd {theirs}; echo one > disk.img; mkdir .snapshots/s1"
        ));
        nobody_can(&format!(
            "set -e; cd {theirs}; echo two > disk.img; cat .snapshots/s1/disk.img"
        ));
        nobody_can(&format!("{SNAPDISK} rollback {theirs} s1"));
        nobody_can(&format!("test one = \"$(cat {theirs}/disk.img)\""));
        nobody_can(&format!(
            "set -e; cd {theirs}/.snapshots; mv s1 s2; rmdir s2 before-*"
        ));
        assert_eq!(fs::metadata(mount.path("theirs/disk.img"))?.uid(), NOBODY);
        nobody_can(&format!(
            "rm {theirs}/disk.img; rmdir {theirs}/.snapshots/dropped-*"
        ));
        mount.remount();
    }
    assert_eq!(fs::read(root_disk.join("disk.img"))?, b"data of root");
    assert!(snapshot.is_dir() && mount.path("closed/disk.img").exists());
    Ok(())
}

/// Contract: `latest` is a symlink to the newest snapshot.
#[test]
fn latest_leads_to_the_newest_snapshot() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"1");
    let latest = web.join(".snapshots/latest");
    assert_errno(fs::read_link(&latest), ENOENT, "latest of none");
    for content in ["1", "2", "3"] {
        fs::write(web.join("disk.img"), content)?;
        // Not in the order of the alphabet.
        let name = format!("s{}", 9 - content.parse::<u32>()?);
        take(&web, &name);
        assert_eq!(fs::read_link(&latest)?, Path::new(&name));
        assert_eq!(fs::read_to_string(latest.join("disk.img"))?, content);
    }
    fs::rename(web.join(".snapshots/s6"), web.join(".snapshots/renamed"))?;
    assert_eq!(fs::read_link(&latest)?, Path::new("renamed"));
    fs::remove_dir(web.join(".snapshots/renamed"))?;
    assert_eq!(fs::read_link(&latest)?, Path::new("s7"));
    fs::remove_dir(web.join(".snapshots/s7"))?;
    fs::remove_dir(web.join(".snapshots/s8"))?;
    assert_errno(fs::read_link(&latest), ENOENT, "latest of none again");
    Ok(())
}

/// Contract: `rm -rf`, `find -delete` and their like cannot destroy a
/// snapshot: unlinking inside one is EROFS, and the same process then gets
/// ENOTEMPTY from `rmdir` of it; `rmdir` alone deletes.
#[test]
fn what_empties_directories_cannot_destroy_a_snapshot() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"precious");
    let snapshot = take(&web, "kept");
    let other = take(&web, "other");
    for name in ["disk.img", "info.toml"] {
        assert_errno(fs::remove_file(snapshot.join(name)), EROFS, name);
    }
    assert_errno(fs::remove_dir(&snapshot), ENOTEMPTY, "rmdir after unlink");
    // All threads of a process are the same process.
    let path = snapshot.clone();
    let removed = std::thread::spawn(move || fs::remove_dir(path)).join();
    let removed = removed.expect("the thread ends");
    assert_errno(removed, ENOTEMPTY, "rmdir of another thread");
    fs::remove_dir(&other)?;

    let (shown, snapshots) = (snapshot.display(), web.join(".snapshots"));
    let snapshots = snapshots.display();
    for attempt in [
        format!("rm -rf '{shown}'"),
        format!("rm -rf '{snapshots}'"),
        format!("find '{shown}' -delete"),
        format!("find '{snapshots}' -depth -mindepth 1 -delete"),
        format!("python3 -c 'import shutil; shutil.rmtree(\"{shown}\")'"),
        format!("python3 -c 'import shutil; shutil.rmtree(\"{snapshots}\")'"),
    ] {
        sh_fails(&attempt);
        let content = fs::read(snapshot.join("disk.img"));
        assert_eq!(content.ok().as_deref(), Some(&b"precious"[..]), "{attempt}");
    }
    // The whole disk: its live image goes, its snapshots stay.
    sh_fails(&format!("rm -rf '{}'", web.display()));
    assert_eq!(fs::read(snapshot.join("disk.img"))?, b"precious");
    sh(&format!("rmdir '{shown}'"));
    assert!(!snapshot.exists());
    Ok(())
}

/// Contract: the keys of `info.toml`, the same values as extended attributes,
/// and an mtime that follows its content.
#[test]
fn info_toml_tells_what_a_snapshot_is() -> Outcome {
    if skipped(&[Need::Mount, Need::Program("getfattr")]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let content = noise(5, 3 * CHUNK);
    let web = disk_with(mount.point(), "web", &content);
    let before = SystemTime::now();
    let snapshot = take(&web, "one");
    wait_ready(&snapshot);
    let path = snapshot.join("info.toml");
    let table = info(&snapshot);
    let text = |key: &str| {
        table[key]
            .as_str()
            .unwrap_or_else(|| panic!("{key}: {table:?}"))
    };
    let number = |key: &str| table[key].as_integer().unwrap_or(-1);

    assert_eq!(text("kind"), "manual");
    assert_eq!(text("state"), "ready");
    assert_eq!(number("progress"), 100);
    assert_eq!(number("size"), content.len() as i64);
    let unique = number("unique_bytes");
    // The live disk shares it all.
    assert!((0..content.len() as i64).contains(&unique), "{unique}");
    assert_eq!(table["encrypted"].as_bool(), Some(false));
    assert_eq!(table["held_by"].as_array().map(Vec::len), Some(0));
    assert_eq!(table["tags"].as_table().map(toml::Table::len), Some(0));
    assert!(!table.contains_key("expires"), "a manual snapshot stays");
    for key in ["id", "disk_id"] {
        assert_eq!(text(key).len(), 36, "{key} is a UUID");
    }
    let root = text("root");
    assert!(
        root.len() == 64 && root.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{root}"
    );
    let created: jiff::Timestamp = text("created").parse()?;
    let instant = fs::metadata(&snapshot)?;
    assert_eq!(created.as_second(), instant.mtime());
    assert!(instant.modified()? >= before);

    // Each key, as getfattr asks for it; none is listed.
    let shown = snapshot.display();
    for (key, value) in &table {
        let expected = match value {
            toml::Value::String(text) => text.clone(),
            toml::Value::Array(_) | toml::Value::Table(_) => continue,
            other => other.to_string(),
        };
        let said = sh(&format!(
            "getfattr --only-values -n snapdisk.{key} '{shown}'"
        ));
        assert_eq!(said, expected, "snapdisk.{key}");
    }
    assert_eq!(sh(&format!("getfattr -m - '{shown}'")), "");
    let said = sh_fails(&format!("getfattr -n snapdisk.nonsense '{shown}'"));
    assert!(said.contains("No such attribute"), "{said}");

    // Its length and time follow its content.
    let (length, modified) = (fs::metadata(&path)?.len(), fs::metadata(&path)?.modified()?);
    assert_eq!(fs::read(&path)?.len() as u64, length);
    fs::hard_link(snapshot.join("disk.img"), mount.path(".images/i.img"))?;
    let now = fs::metadata(&path)?;
    assert_eq!(fs::read(&path)?.len() as u64, now.len());
    assert!(
        now.len() > length && now.modified()? > modified,
        "held_by has one more"
    );
    assert!(held_by(&snapshot)[0].contains("i.img"));
    fs::rename(mount.path(".images/i.img"), mount.path(".images/j.img"))?;
    let renamed = fs::metadata(&path)?.modified()?;
    assert!(renamed > now.modified()?, "held_by has another name");
    let open = File::open(snapshot.join("disk.img"))?;
    let opened = fs::metadata(&path)?.modified()?;
    assert!(opened > renamed, "held_by has one more");
    drop(open);
    wait_until("held_by has one less", || {
        fs::metadata(&path).is_ok_and(|now| now.modified().is_ok_and(|at| at > opened))
    });
    fs::rename(mount.path(".images/j.img"), mount.path(".images/i.img"))?;

    // What only this snapshot has is what deleting it would free.
    fs::remove_file(mount.path(".images/i.img"))?;
    fs::write(web.join("disk.img"), noise(6, 3 * CHUNK))?;
    let second = take(&web, "two");
    wait_ready(&second);
    wait_until("the live image leaves the first", || {
        let unique = info(&snapshot)["unique_bytes"].as_integer();
        unique.is_some_and(|bytes| bytes >= content.len() as i64)
    });
    assert_ne!(
        info(&second)["root"].as_str(),
        Some(root),
        "another content"
    );
    assert_eq!(info(&second)["disk_id"], table["disk_id"]);
    Ok(())
}

/// Contract: extended attributes of other namespaces are EOPNOTSUPP, and so
/// is setting what `info.toml` says; a rollback in words that mean nothing is
/// EINVAL, of no snapshot ENOENT.
#[test]
fn attributes_that_mean_nothing_are_refused() -> Outcome {
    if skipped(&[Need::Mount]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"data");
    let snapshot = take(&web, "one");
    let set = |path: &Path, name: &str, value: &[u8]| snapdisk::sys::set_xattr(path, name, value);
    assert_errno(set(&web, "trusted.x", b"1"), EOPNOTSUPP, "trusted.x");
    assert_errno(set(&snapshot, "security.x", b"1"), EOPNOTSUPP, "security.x");
    assert_errno(
        set(&snapshot, "snapdisk.size", b"1"),
        EOPNOTSUPP,
        "snapdisk.size",
    );
    assert_errno(set(&web, "snapdisk.rollback", b"one"), EINVAL, "no JSON");
    let missing = set(&web, "snapdisk.rollback", br#"{"snapshot": "none"}"#);
    assert_errno(missing, ENOENT, "a rollback to nothing");
    let open = File::open(web.join("disk.img"))?;
    let busy = set(&web, "snapdisk.rollback", br#"{"snapshot": "one"}"#);
    assert_errno(busy, EBUSY, "a rollback of an open image");
    drop(open);
    let made = fs::create_dir(mount.path("web/.snapshots/one/x"));
    assert_errno(made, EROFS, "a directory in a snapshot");
    assert_eq!(errno_of(fs::read_dir(web.join("disk.img"))), libc::ENOTDIR);
    Ok(())
}

/// Contract: tags are `user.*` attributes of a snapshot's directory, listed,
/// kept over a rename and a restart; their limits and errors are ext4's.
#[test]
fn tags_are_attributes_of_a_snapshot() -> Outcome {
    if skipped(&[Need::Mount, Need::Program("setfattr")]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let web = disk_with(mount.point(), "web", b"data");
    let snapshot = take(&web, "one");
    let set = |path: &Path, name: &str, value: &[u8]| snapdisk::sys::set_xattr(path, name, value);
    let shown = snapshot.display();
    sh(&format!("setfattr -n user.env -v prod '{shown}'"));
    sh(&format!("setfattr -n user.team -v 'a b' '{shown}'"));
    sh(&format!("setfattr -n user.env -v staging '{shown}'"));
    let listed = sh(&format!("getfattr -d '{shown}'"));
    assert!(listed.contains("user.env=\"staging\""), "{listed}");
    assert!(listed.contains("user.team=\"a b\""), "{listed}");
    assert_eq!(listed.matches("user.").count(), 2, "{listed}");
    assert_eq!(info(&snapshot)["tags"]["env"].as_str(), Some("staging"));

    let renamed = web.join(".snapshots/renamed");
    fs::rename(&snapshot, &renamed)?;
    mount.remount();
    let listed = sh(&format!("getfattr -d '{}'", renamed.display()));
    assert!(listed.contains("user.env=\"staging\""), "{listed}");
    sh(&format!("setfattr -x user.env '{}'", renamed.display()));
    let said = sh_fails(&format!("setfattr -x user.env '{}'", renamed.display()));
    assert!(said.contains("No such attribute"), "{said}");
    assert!(info(&renamed)["tags"].get("env").is_none());

    // As on ext4: a block for all of them, names of 255 bytes.
    let large = set(&renamed, "user.large", &[b'x'; 5000]);
    assert_errno(large, libc::ENOSPC, "a tag of 5000 bytes");
    set(&renamed, "user.large", &[b'x'; 4000])?;
    let second = set(&renamed, "user.second", &[b'x'; 100]);
    assert_errno(second, libc::ENOSPC, "more than fits in all");
    let long = format!("user.{}", "n".repeat(251));
    assert_errno(
        set(&renamed, &long, b""),
        libc::ERANGE,
        "a name of 256 bytes",
    );
    assert_errno(set(&renamed, "user.raw", &[0xff, 0xfe]), EINVAL, "no text");
    // A disk and its image have none.
    assert_errno(set(&web, "user.x", b"1"), EOPNOTSUPP, "a tag of a disk");
    let image = web.join("disk.img");
    assert_errno(set(&image, "user.x", b"1"), EOPNOTSUPP, "a tag of an image");
    // Only who owns the snapshot may.
    nobody_cannot(
        &format!("setfattr -n user.mine -v 1 '{}'", renamed.display()),
        "Permission denied",
    );
    nobody_cannot(
        &format!("setfattr -n snapdisk.hold -v mine '{}'", renamed.display()),
        "Permission denied",
    );
    Ok(())
}

/// Contract: a held snapshot is deleted by nothing until the attribute is
/// removed; `held_by` says why.
#[test]
fn a_held_snapshot_stays() -> Outcome {
    if skipped(&[Need::Mount, Need::Program("setfattr")]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mut mount = store.mount();
    let web = disk_with(mount.point(), "web", b"data");
    let snapshot = take(&web, "one");
    let set = |name: &str, value: &[u8]| snapdisk::sys::set_xattr(&snapshot, name, value);
    assert_errno(
        set("snapdisk.hold", b"  "),
        EINVAL,
        "a hold without a reason",
    );
    set("snapdisk.hold", b"audit of 2026")?;
    assert_errno(fs::remove_dir(&snapshot), EBUSY, "a held snapshot");
    // Its date comes, and it stays.
    set("snapdisk.expires", b"2001-01-01")?;
    mount.remount();
    assert_errno(fs::remove_dir(&snapshot), EBUSY, "a held snapshot");
    assert_eq!(held_by(&snapshot), ["held: audit of 2026"]);
    let shown = snapshot.display();
    let said = sh(&format!(
        "getfattr --only-values -n snapdisk.hold '{shown}'"
    ));
    assert_eq!(said, "audit of 2026");
    sh(&format!("setfattr -x snapdisk.expires '{shown}'"));
    sh(&format!("setfattr -x snapdisk.hold '{shown}'"));
    fs::remove_dir(&snapshot)?;
    Ok(())
}

/// Contract: `snapdisk.expires` lets a snapshot end on a date; removing it
/// undoes that.
#[test]
fn a_snapshot_ends_when_its_date_has_come() -> Outcome {
    if skipped(&[Need::Mount, Need::Program("setfattr")]) {
        return Ok(());
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = disk_with(mount.point(), "web", b"data");
    let set = |path: &Path, value: &[u8]| snapdisk::sys::set_xattr(path, "snapdisk.expires", value);
    let (later, past, undone) = (
        take(&web, "later"),
        take(&web, "past"),
        take(&web, "undone"),
    );
    assert_errno(set(&later, b"tomorrow"), EINVAL, "no date");
    set(&later, b"2201-12-31T12:00:00Z")?;
    assert_eq!(
        info(&later)["expires"].as_str(),
        Some("2201-12-31T12:00:00Z")
    );
    set(&undone, b"2201-12-31")?;
    sh(&format!(
        "setfattr -x snapdisk.expires '{}'",
        undone.display()
    ));
    assert!(!info(&undone).contains_key("expires"));
    set(&past, b"2001-01-01")?;
    wait_until("its date has come", || !past.exists());
    // Also one that comes while the daemon runs.
    let soon = take(&web, "soon");
    let date = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(1);
    set(&soon, date.to_string().as_bytes())?;
    wait_until("its date comes", || !soon.exists());
    assert!(later.exists() && undone.exists());
    assert!(
        store
            .log()
            .contains("web@past is deleted: its date had come")
    );
    Ok(())
}
