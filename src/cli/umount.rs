//! `snapdisk umount`.

use super::ask::mounts;
use super::bar::Bar;
use super::failure::Failure;
use crate::mountinfo::absolute;
use crate::progress::Progress;
use crate::sys;
use clap::Args;
use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// How often it is looked whether the daemon has ended.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(20);
/// When it is told what is waited for.
const TELL_AFTER: Duration = Duration::from_secs(10);

/// End a mount, cleanly
///
/// Unmounts and waits until the daemon has written out everything and let go
/// of the store, so that it can be mounted again at once. Data is safe either
/// way; without the wait the next mount might find the store still in use.
///
/// Refused while files in it are open, loop devices included, and while a part
/// of it is bind-mounted elsewhere.
///
/// Example: snapdisk umount /mnt/disks
#[derive(Args, Debug)]
pub(super) struct Umount {
    /// Where the store is mounted
    #[arg(value_name = "MNT")]
    point: PathBuf,
}

pub(super) fn run(umount: &Umount) -> anyhow::Result<ExitCode> {
    let what = format!("unmounting {}", umount.point.display());
    let point = absolute(&umount.point)
        .map_err(|error| Failure::system("unmounting", &umount.point, &error))?;
    let mounts = mounts()?;
    let mount = match mounts.at(&point) {
        Some(mount) if mount.is_own() => mount,
        Some(_) => {
            return Err(Failure::new(what, "another filesystem is mounted there")
                .hint("`umount` ends that; `findmnt -t fuse.snapdisk` shows ours")
                .into());
        }
        None => {
            return Err(Failure::new(what, "nothing is mounted there")
                .hint("`findmnt -t fuse.snapdisk` shows what is mounted")
                .into());
        }
    };
    let is_dead = mount.is_dead();
    // It would go on being served where a part of it is bound to.
    let mut parts = mounts
        .showing(&mount.source)
        .filter(|other| !other.is_whole());
    if !is_dead
        && mount.is_whole()
        && let Some(other) = parts.find(|other| !other.is_dead())
    {
        let other = other.point.display();
        return Err(Failure::new(what, format_args!("{other} shows it, too"))
            .hint(format_args!("`umount {other}` ends that bind mount"))
            .into());
    }
    unmount(&point, is_dead).map_err(|error| busy_or(&what, &point, &error))?;
    if !is_dead {
        wait_until_free(&mount.source)?;
    }
    Ok(ExitCode::SUCCESS)
}

fn busy_or(what: &str, point: &Path, error: &io::Error) -> Failure {
    if is_busy(error) {
        Failure::new(what, "it is in use").hint(format_args!(
            "close or unmount what uses it, then try again: `fuser -vm {}` and `losetup -a` show it",
            point.display()
        ))
    } else {
        Failure::system("unmounting", point, error)
    }
}

/// Whether an error of [`unmount`] says that the mount is in use.
pub(super) fn is_busy(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::ResourceBusy
}

/// Unmounts, for plain users with the help of fusermount3. With `lazy` it
/// leaves the tree at once; what uses it goes on until it ends.
pub(super) fn unmount(point: &Path, lazy: bool) -> io::Result<()> {
    match sys::unmount(point, lazy) {
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => fusermount(point, lazy),
        result => result,
    }
}

fn fusermount(point: &Path, lazy: bool) -> io::Result<()> {
    let output = Command::new("fusermount3")
        .arg(if lazy { "-uz" } else { "-u" })
        .arg("--")
        .arg(point)
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::new(error.kind(), format!("fusermount3: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let text = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    let kind = match text.contains("busy") {
        true => io::ErrorKind::ResourceBusy,
        false => io::ErrorKind::Other,
    };
    Err(io::Error::new(kind, text))
}

/// Whether no process has the store's lock.
pub(super) fn is_free(store: &Path) -> io::Result<bool> {
    match File::open(store.join("lock"))?.try_lock_shared() {
        Ok(()) => Ok(true),
        Err(TryLockError::WouldBlock) => Ok(false),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// Waits until no process has the store's lock, or it is mounted anew.
fn wait_until_free(store: &Path) -> Result<(), Failure> {
    let bar = Bar::new();
    let started = Instant::now();
    let mut was_told = false;
    loop {
        if started.elapsed() > TELL_AFTER && !std::mem::replace(&mut was_told, true) {
            bar.clear();
            eprintln!(
                "snapdisk: {} is still in use: its daemon writes out data, or something that cannot \
                 be seen from here has it mounted, such as a container",
                store.display()
            );
        }
        match is_free(store) {
            Ok(true) => return Ok(()),
            Ok(false) => {}
            // Somebody else's store: there is nothing to look at.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            Err(error) => {
                return Err(Failure::system("waiting for", &store.join("lock"), &error));
            }
        }
        if mounts()?.of_store(store).is_some() {
            return Ok(());
        }
        bar.update("waiting for the daemon to write out its data", 0, 0);
        thread::sleep(LOOK_EVERY);
    }
}
