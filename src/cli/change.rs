//! `snapdisk snapshot` and `rollback`: changes of a disk.
//!
//! In a mount they are file operations, so that the kernel checks who may;
//! on an unmounted store they are calls of the library.

use super::ask::{Place, ask, close, mounts, open, things_of};
use super::bar::Bar;
use super::failure::{Failure, of_library};
use super::out::say;
use crate::disk::Disk;
use crate::error::Error;
use crate::manifest::Owner;
use crate::mountinfo::absolute;
use crate::name::SnapshotName;
use crate::store::Store;
use crate::sys;
use crate::tree::attribute::ROLLBACK;
use crate::tree::{LATEST, SNAPSHOTS};
use crate::verbs::Request;
use clap::Args;
use serde_json::{Value, json};
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

/// Take a snapshot of disks
///
/// Durable when this returns. The same as `mkdir DISK-DIR/.snapshots/NAME`;
/// of several disks at one instant, all or none, and together they are the
/// group MNT/.snapshots/NAME.
///
/// With --freeze, filesystems that are mounted from the disks' images, by
/// loop devices of this machine, are held still meanwhile, so that the
/// snapshot mounts without recovery. Only root may.
///
/// Examples:
///   snapdisk snapshot nightly /mnt/disks/web /mnt/disks/db
///   snapdisk snapshot --freeze before-upgrade /mnt/disks/web
///   snapdisk snapshot --store /var/lib/snapdisk web@nightly
#[derive(Args, Debug)]
#[command(
    verbatim_doc_comment,
    override_usage = "snapdisk snapshot [--freeze] [--json] NAME DISK-DIR…\n       \
                      snapdisk snapshot [--json] --store STORE DISK@NAME…"
)]
pub(super) struct Snapshot {
    /// The snapshot's name, then disks' directories; with --store, DISK@NAME
    #[arg(required = true, value_name = "NAME DISK-DIR…|DISK@NAME")]
    names: Vec<OsString>,
    /// The store, to name disks by their names
    #[arg(long, conflicts_with = "freeze")]
    store: Option<PathBuf>,
    /// Hold filesystems mounted from the disks still meanwhile
    #[arg(long)]
    freeze: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Put a disk back to what a snapshot holds
///
/// At once, whatever the size; newer snapshots stay. NAME may be latest, the
/// newest. What the disk is now is first kept as a snapshot, before-rollback-…,
/// whose name is printed; with --discard it is lost. Refused while disk.img is
/// open, as by a loop mount.
///
/// Examples:
///   snapdisk rollback /mnt/disks/web before-upgrade
///   snapdisk rollback --store /var/lib/snapdisk web before-upgrade
#[derive(Args, Debug)]
#[command(
    verbatim_doc_comment,
    override_usage = "snapdisk rollback [--discard] [--json] DISK-DIR NAME\n       \
                      snapdisk rollback [--discard] [--json] --store STORE DISK NAME"
)]
pub(super) struct Rollback {
    /// The disk's directory in the mount; with --store, its name
    #[arg(value_name = "DISK-DIR|DISK")]
    disk: OsString,
    /// The snapshot
    #[arg(value_name = "NAME")]
    snapshot: String,
    /// The store, to name the disk by its name
    #[arg(long)]
    store: Option<PathBuf>,
    /// Do not keep what the disk is now
    #[arg(long)]
    discard: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn snapshot(snapshot: &Snapshot) -> anyhow::Result<ExitCode> {
    let outcomes = match &snapshot.store {
        None => take_in_mount(&snapshot.names, snapshot.freeze)?,
        Some(store) => take_in_store(store, &snapshot.names)?,
    };
    let mut taken = Vec::new();
    let mut failed = Vec::new();
    for (disk, name, outcome) in outcomes {
        match outcome {
            Ok(()) => taken.push(json!({ "disk": disk, "name": name })),
            Err(failure) => failed.push((disk, failure)),
        }
    }
    if snapshot.json {
        let failed: Vec<Value> = failed
            .iter()
            .map(|(disk, failure)| json!({ "disk": disk, "error": failure.to_string() }))
            .collect();
        say!("{}", json!({ "taken": taken, "failed": failed }));
    } else {
        for one in &taken {
            say!("{}@{}", text(&one["disk"]), text(&one["name"]));
        }
    }
    if failed.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for (_, failure) in failed {
        super::report(&failure.into());
    }
    if !taken.is_empty() {
        let disks: Vec<&str> = taken.iter().map(|one| text(&one["disk"])).collect();
        eprintln!("snapdisk: taken all the same: {}", disks.join(", "));
    }
    Ok(ExitCode::FAILURE)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

/// A disk, a snapshot, and what became of it.
type Outcome = (String, String, Result<(), Failure>);

fn take_in_mount(names: &[OsString], freeze: bool) -> Result<Vec<Outcome>, Failure> {
    let [name, disks @ ..] = names else {
        return Err(missing_disk());
    };
    if disks.is_empty() {
        return Err(missing_disk());
    }
    let shown = name.to_string_lossy().into_owned();
    if Path::new(name).components().count() != 1 || Path::new(name).file_name().is_none() {
        return Err(Failure::usage(
            format_args!("snapshot {shown:?}"),
            "a snapshot's name comes first, then the disks' directories",
        ));
    }
    let dirs = disks
        .iter()
        .map(|disk| disk_directory(Path::new(disk)))
        .collect::<Result<Vec<_>, _>>()?;
    let frozen = match freeze {
        true => super::freeze::freeze(&dirs)?,
        false => None,
    };
    if freeze && frozen.is_none() {
        eprintln!(
            "snapdisk: note: no filesystem that can be written is mounted from {} here, so none \
             was held still",
            match dirs.len() {
                1 => "this disk's image",
                _ => "these disks' images",
            }
        );
    }
    let outcome = match &dirs[..] {
        [dir] => take(dir, name),
        several => take_group(several, name),
    };
    drop(frozen);
    let all = disks.iter().map(|disk| disk.to_string_lossy().into_owned());
    Ok(all_or_none(all.collect(), &shown, outcome))
}

fn take_group(dirs: &[PathBuf], name: &OsStr) -> Result<(), Failure> {
    let (place, disks) = things_of(dirs)?;
    ask_for_group(&place, &name.to_string_lossy(), disks)
}

/// Takes a snapshot of several disks at one instant, through the mount.
fn ask_for_group(place: &Place, name: &str, disks: Vec<String>) -> Result<(), Failure> {
    let request = Request::Group {
        name: name.to_owned(),
        disks,
        uid: sys::user(),
        gid: sys::group(),
    };
    ask(place, &request, &mut |_| ()).map(drop)
}

/// The same in a store that nobody has mounted.
fn take_group_opened(store: &Store, name: &str, disks: &[String]) -> Result<(), Error> {
    let name = SnapshotName::parse_manual(OsStr::new(name))?;
    let disks = disks
        .iter()
        .map(|disk| find(store, disk))
        .collect::<Result<Vec<_>, _>>()?;
    let owner = Owner {
        uid: sys::user(),
        gid: sys::group(),
        mode: 0o755,
    };
    store.take_group(name, Some(disks), owner).map(drop)
}

/// What became of disks of which all were taken, or none.
fn all_or_none(disks: Vec<String>, name: &str, taken: Result<(), Failure>) -> Vec<Outcome> {
    match taken {
        Ok(()) => disks
            .into_iter()
            .map(|disk| (disk, name.to_owned(), Ok(())))
            .collect(),
        Err(failure) => vec![(disks.join(", "), name.to_owned(), Err(failure))],
    }
}

fn missing_disk() -> Failure {
    Failure::usage("snapshot", "which disks?")
        .hint("snapdisk snapshot NAME DISK-DIR…, or snapdisk snapshot --store STORE DISK@NAME…")
}

fn take(dir: &Path, name: &OsStr) -> Result<(), Failure> {
    let Err(error) = fs::create_dir(dir.join(SNAPSHOTS).join(name)) else {
        return Ok(());
    };
    let shown = name.to_string_lossy();
    let what = format!("snapshot {shown} of {}", dir.display());
    Err(match error.raw_os_error() {
        Some(libc::EEXIST) => Failure::new(what, "a snapshot of that name exists")
            .hint("choose another name, or `rmdir` that one first"),
        Some(libc::ENOENT) => Failure::new(what, "the disk has no disk.img").hint(format_args!(
            "`truncate -s 8G {}/disk.img` makes one",
            dir.display()
        )),
        Some(libc::EINVAL | libc::ENAMETOOLONG) => match SnapshotName::parse_manual(name) {
            Err(error) => Failure::new(what, error),
            Ok(_) => Failure::system("snapshot of", dir, &error),
        },
        Some(libc::EDQUOT) => Failure::new(what, "the disk has as many snapshots as it may").hint(
            "`rmdir` one that is not needed any more, or allow more with `snapdisk set MNT \
             max_manual_snapshots=…`, or `max_snapshots=…` if that is what is reached",
        ),
        _ => Failure {
            what,
            ..Failure::system("snapshot of", dir, &error)
        },
    })
}

/// Checks that a path is a disk's directory in a mount.
fn disk_directory(path: &Path) -> Result<PathBuf, Failure> {
    let dir = absolute(path).map_err(|error| Failure::system("opening", path, &error))?;
    let now = mounts()?;
    let depth = now
        .holding(&dir)
        .filter(|mount| mount.is_own())
        .and_then(|mount| mount.inner(&dir))
        .filter(|inner| !inner.to_string_lossy().starts_with('.'))
        .map(|inner| inner.components().count());
    match depth {
        Some(1) => Ok(dir),
        _ => Err(
            Failure::new(path.display(), "this is no disk of a mounted store").hint(
                "name the disk's directory in the mount, as MNT/web; \
             `--store STORE` takes disks of a store that is not mounted",
            ),
        ),
    }
}

fn take_in_store(store: &Path, names: &[OsString]) -> Result<Vec<Outcome>, Failure> {
    let mut wanted = Vec::new();
    for given in names {
        let shown = given.to_string_lossy().into_owned();
        // The last @: both names may have one, and a date never has.
        let Some((disk, name)) = shown.rsplit_once('@') else {
            return Err(Failure::usage(
                format_args!("snapshot {shown:?}"),
                "with --store this is DISK@NAME",
            ));
        };
        wanted.push((disk.to_owned(), name.to_owned()));
    }
    let place = Place::find_store(store)?;
    let (disks, names): (Vec<String>, Vec<String>) = wanted.iter().cloned().unzip();
    if names.len() > 1 && names.iter().all(|name| *name == names[0]) {
        let name = &names[0];
        let taken = match place {
            Place::Mounted(_) => ask_for_group(&place, name, disks.clone()),
            Place::Unmounted(root) => {
                let store = open(&root, &Bar::new())?;
                let taken = take_group_opened(&store, name, &disks)
                    .map_err(of_library(format!("snapshot {name}")));
                close(&store)?;
                taken
            }
        };
        return Ok(all_or_none(disks, name, taken));
    }
    let take_each = |take: &dyn Fn(&str, &str) -> Result<(), Failure>| {
        wanted
            .iter()
            .map(|(disk, name)| (disk.clone(), name.clone(), take(disk, name)))
            .collect()
    };
    match place {
        Place::Mounted(point) => Ok(take_each(&|disk, name| {
            take(&disk_directory(&point.join(disk))?, OsStr::new(name))
        })),
        Place::Unmounted(root) => {
            let store = open(&root, &Bar::new())?;
            let outcomes = take_each(&|disk, name| {
                take_opened(&store, disk, name)
                    .map_err(of_library(format!("snapshot {name} of {disk}")))
            });
            close(&store)?;
            Ok(outcomes)
        }
    }
}

fn take_opened(store: &Store, disk: &str, name: &str) -> Result<(), Error> {
    let name = SnapshotName::parse_manual(OsStr::new(name))?;
    find(store, disk)?.take_snapshot(name).map(drop)
}

fn find(store: &Store, disk: &str) -> Result<Arc<Disk>, Error> {
    store.disk(disk).ok_or_else(|| Error::Missing {
        what: "disk",
        name: disk.to_owned(),
    })
}

pub(super) fn rollback(rollback: &Rollback) -> anyhow::Result<ExitCode> {
    let shown = rollback.disk.to_string_lossy().into_owned();
    let (name, kept) = match &rollback.store {
        None => roll_back_mounted(&disk_directory(Path::new(&rollback.disk))?, rollback)?,
        Some(store) => match Place::find_store(store)? {
            Place::Mounted(point) => {
                roll_back_mounted(&disk_directory(&point.join(&rollback.disk))?, rollback)?
            }
            Place::Unmounted(root) => {
                let store = open(&root, &Bar::new())?;
                let done = find(&store, &shown)
                    .and_then(|disk| roll_back_opened(&disk, rollback))
                    .map_err(of_library(format!("rolling back {shown}")));
                close(&store)?;
                done?
            }
        },
    };
    if rollback.json {
        let answer = json!({ "disk": shown, "snapshot": name, "kept": kept });
        say!("{answer}");
    } else {
        say!("{shown} is as it was at {name}");
        match kept {
            Some(kept) => say!("what it was before is kept as snapshot {kept}"),
            None if rollback.discard => say!("what it was before is discarded"),
            None => say!("nothing had to be kept"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The snapshot that it is rolled back to, and the one that keeps what was
/// there, if there is one.
type RolledBack = (String, Option<String>);

impl Rollback {
    /// The snapshot's name; of `latest`, that of the newest if there is one.
    fn target(&self, newest: impl FnOnce() -> Option<String>) -> String {
        let newest = (self.snapshot == LATEST).then(newest).flatten();
        newest.unwrap_or_else(|| self.snapshot.clone())
    }
}

fn roll_back_opened(disk: &Arc<Disk>, rollback: &Rollback) -> Result<RolledBack, Error> {
    let name = rollback.target(|| Some(disk.snapshots().pop()?.name()));
    let kept = disk.rollback(&name, rollback.discard)?;
    Ok((name, kept))
}

/// Rolls back through the mount.
fn roll_back_mounted(dir: &Path, rollback: &Rollback) -> Result<RolledBack, Failure> {
    let name = rollback.target(|| {
        let newest = fs::read_link(dir.join(SNAPSHOTS).join(LATEST)).ok()?;
        Some(newest.to_string_lossy().into_owned())
    });
    let value = json!({ "snapshot": name, "discard": rollback.discard }).to_string();
    sys::set_xattr(dir, ROLLBACK, value.as_bytes())
        .map_err(|error| rollback_failure(dir, &name, &error))?;
    let kept = sys::get_xattr(dir, ROLLBACK).map_err(|error| {
        Failure::system(
            "it is rolled back, but not known what was kept:",
            dir,
            &error,
        )
    })?;
    let kept = String::from_utf8_lossy(&kept).into_owned();
    Ok((name, Some(kept).filter(|kept| !kept.is_empty())))
}

fn rollback_failure(dir: &Path, name: &str, error: &io::Error) -> Failure {
    let what = format!("rolling back {}", dir.display());
    match error.raw_os_error() {
        Some(libc::EBUSY) => Failure::new(what, "its disk.img is open or mounted").hint(
            "close or unmount it first: `losetup -a`, `fuser -v DISK-DIR/disk.img` show by what",
        ),
        Some(libc::ENOENT) => Failure::new(what, format_args!("there is no snapshot {name}")).hint(
            format_args!("`snapdisk list {}` shows which there are", dir.display()),
        ),
        _ => Failure {
            what,
            ..Failure::system("rolling back", dir, error)
        },
    }
}
