//! `snapdisk mount`: what is checked before a daemon is started.

use super::ask::{check_owner, is_store, mounts};
use super::daemon::{self, Daemon};
use super::failure::{Failure, of_library};
use super::size;
use super::umount::{LOOK_EVERY, is_free, unmount};
use crate::fuse::{self, MountOptions};
use crate::mountinfo::{Mount as Mounted, absolute};
use crate::store;
use clap::Args;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;

/// How often it is looked whether a daemon that was killed is gone: two
/// seconds, and its files are closed within milliseconds.
const DYING_LOOKS: u32 = 100;

/// The least that the cache of decompressed chunks can do with, in bytes.
const CACHE_MIN: u64 = 1 << 20;

/// Mount a store
///
/// Returns when the mount is ready; a daemon then serves it in the
/// background and writes its log to snapdisk.log in the store. What a crash
/// left behind is put in order first. `snapdisk umount`, `umount` and SIGTERM
/// end the mount; SIGTERM does so as soon as no file in it is open.
///
/// MNT is an empty directory. If the daemon of an earlier mount there has
/// died, that is replaced.
///
/// Options: snapdir=hidden (leave .snapshots out of listings; it can still be
/// entered), snapdir=visible, threads=N (that take requests, 1 to 64, 4 by
/// default), cache=SIZE (memory for decompressed chunks, 48M by default),
/// allow_other (let other users in; always on for root), and noexec, nosuid,
/// nodev, noatime, sync, dirsync as for mount(8).
///
/// Example: snapdisk mount /var/lib/snapdisk /mnt/disks -o snapdir=hidden
#[derive(Args, Debug)]
pub(super) struct Mount {
    /// The store
    store: PathBuf,
    /// The directory where it is to appear
    #[arg(value_name = "MNT")]
    point: PathBuf,
    /// Stay in the foreground, with the log on stderr; Ctrl-C unmounts
    #[arg(short, long)]
    foreground: bool,
    /// Options, separated by commas
    #[arg(short, long, value_name = "OPT[,OPT]…")]
    options: Vec<String>,
}

pub(super) fn run(mount: &Mount) -> anyhow::Result<ExitCode> {
    let options = Options::parse(&mount.options)?;
    let (store, point) = check(&mount.store, &mount.point)?;
    let daemon = Daemon {
        store,
        point,
        mount: options.mount,
        open: options.open,
    };
    if mount.foreground {
        daemon::run_in_foreground(daemon)?;
    } else {
        daemon::start(daemon)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Checks both paths and clears a dead mount away, so that what is wrong is
/// said before anything is started. Returns both without symbolic links.
fn check(store: &Path, point: &Path) -> Result<(PathBuf, PathBuf), Failure> {
    let what = format!("mounting {}", store.display());
    let store = absolute(store).map_err(|error| {
        if_missing(
            Failure::system("mounting", store, &error),
            &error,
            "make a store with `snapdisk init STORE`",
        )
    })?;
    if !is_store(&store).map_err(|error| Failure::system("mounting", &store, &error))? {
        return Err(Failure::new(what, "it is no store").hint(format_args!(
            "make one there with `snapdisk init {}`",
            store.display()
        )));
    }
    check_owner(&store)?;
    let point = absolute(point).map_err(|error| {
        if_missing(
            Failure::system("mounting on", point, &error),
            &error,
            "make the directory first, with `mkdir`",
        )
    })?;
    let mut now = mounts()?;
    if let Some(mount) = now.at(&point)
        && mount.is_own()
        && is_dead_or_dying(mount)
    {
        unmount(&point, true)
            .map_err(|error| Failure::system("removing the dead mount at", &point, &error))?;
        now = mounts()?;
    }
    if let Some(mount) = now.of_store(&store) {
        let at = mount.point.display();
        return Err(
            Failure::new(what, format_args!("it is mounted at {at} already"))
                .hint(format_args!("`snapdisk umount {at}` ends that")),
        );
    }
    if !point.is_dir() {
        return Err(Failure::new(
            what,
            format_args!("{} is no directory", point.display()),
        ));
    }
    if point.starts_with(&store) {
        return Err(Failure::new(
            what,
            format_args!("{} lies in the store itself", point.display()),
        )
        .hint("mount it outside of the store"));
    }
    let point = fuse::check_mount_point(&store, &point).map_err(of_library(what))?;
    Ok((store, point))
}

/// Whether the daemon of a mount of ours is gone. One that was killed lets go
/// of its store a moment before the kernel knows that its mount is dead.
fn is_dead_or_dying(mount: &Mounted) -> bool {
    for _ in 0..DYING_LOOKS {
        if mount.is_dead() {
            return true;
        }
        if !matches!(is_free(&mount.source), Ok(true)) {
            return false;
        }
        thread::sleep(LOOK_EVERY);
    }
    false
}

fn if_missing(failure: Failure, error: &std::io::Error, hint: &str) -> Failure {
    match error.kind() {
        std::io::ErrorKind::NotFound => failure.hint(hint),
        _ => failure,
    }
}

/// What `-o` said.
#[derive(Clone, Debug, Default)]
struct Options {
    mount: MountOptions,
    open: store::Options,
}

/// Passed on as they are.
const GENERIC: [&str; 16] = [
    "allow_other",
    "async",
    "auto",
    "default_permissions",
    "defaults",
    "dirsync",
    "exec",
    "_netdev",
    "noatime",
    "noauto",
    "nodev",
    "noexec",
    "nofail",
    "nosuid",
    "rw",
    "sync",
];

impl Options {
    fn parse(lists: &[String]) -> Result<Options, Failure> {
        let mut options = Options::default();
        for option in lists.iter().flat_map(|list| list.split(',')) {
            let wrong = |why: &dyn std::fmt::Display| {
                Failure::usage(format_args!("option -o {option}"), why)
                    .hint("`snapdisk mount --help` lists the options")
            };
            match option.split_once('=') {
                Some(("cache", value)) => {
                    let bytes = size::parse(value).map_err(|error| wrong(&error))?;
                    if bytes < CACHE_MIN {
                        return Err(wrong(&"the cache has at least 1M"));
                    }
                    options.open.cache_bytes = bytes;
                }
                None if option == "ro" => {
                    return Err(wrong(
                        &"a store cannot be mounted read-only; snapshots are read-only always",
                    ));
                }
                Some(("snapdir" | "threads", _)) => {
                    options.mount.add(option).map_err(|error| wrong(&error))?;
                }
                _ if option.is_empty() => {}
                _ if GENERIC.contains(&option) || option.starts_with("x-") => {
                    options.mount.add(option).map_err(|error| wrong(&error))?;
                }
                _ => return Err(wrong(&"there is no such option")),
            }
        }
        Ok(options)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_unknown_ones_are_usage_errors() {
        let parse = |text: &str| Options::parse(&[text.to_owned()]);
        let options = parse("snapdir=hidden,threads=2,cache=64M,noexec,nosuid,nodev")
            .expect("all of them are known");
        assert!(options.mount.hide_snapshots);
        assert_eq!(options.mount.threads, 2);
        assert_eq!(options.open.cache_bytes, 64 << 20);
        assert!(parse("").is_ok());
        for bad in [
            "ro",
            "frob",
            "threads=0",
            "snapdir=x",
            "cache=x",
            "cache=1K",
            "fsname=x",
            "threads",
        ] {
            let failure = parse(bad).expect_err(bad);
            assert!(failure.is_usage && failure.hint.is_some(), "{bad}");
        }
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_with_what_to_do() -> std::io::Result<()> {
        let store = tempfile::tempdir()?;
        let point = tempfile::tempdir()?;
        let failure = check(store.path(), point.path()).expect_err("it is no store");
        assert!(
            failure
                .hint
                .is_some_and(|hint| hint.contains("snapdisk init"))
        );
        std::fs::create_dir(store.path().join("manifests"))?;
        std::fs::write(store.path().join("manifests/store"), "")?;
        assert!(check(store.path(), point.path()).is_ok());
        assert!(check(store.path(), &store.path().join("manifests")).is_err());
        assert!(check(store.path(), store.path()).is_err());
        assert!(check(store.path(), &point.path().join("none")).is_err());
        std::fs::write(point.path().join("file"), "")?;
        assert!(check(store.path(), point.path()).is_err());
        assert!(check(store.path(), &point.path().join("file")).is_err());
        Ok(())
    }
}
