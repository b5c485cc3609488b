//! Mounting: options, checks before, and the life of a mount.

use super::Adapter;
use super::control::Verbs;
use crate::error::{Error, Result};
use crate::mountinfo::Mounts;
use crate::sandbox::Outside;
use crate::store::Store;
use fuser::{Config, MountOption, Session, SessionACL, SessionUnmounter};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// Threads that take requests from the kernel, unless told otherwise.
pub const THREADS: usize = 4;
const MOST_THREADS: usize = 64;
const FUSE_CONF: &str = "/etc/fuse.conf";
/// How long unmounting what nobody serves any more may take.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);

/// How to mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountOptions {
    /// Threads that take requests from the kernel, 1 to 64.
    pub threads: usize,
    /// Leave `.snapshots` out of listings.
    pub hide_snapshots: bool,
    /// Let other users in (the kernel checks their permissions). Without
    /// it they are let in if root mounts or `/etc/fuse.conf` allows it.
    pub allow_other: bool,
    /// Whatever else was asked for, for the kernel.
    pub others: Vec<String>,
}

impl Default for MountOptions {
    fn default() -> MountOptions {
        MountOptions {
            threads: THREADS,
            hide_snapshots: false,
            allow_other: false,
            others: Vec::new(),
        }
    }
}

impl MountOptions {
    /// Adds options as `-o` gives them, separated by commas.
    /// [`Error::InvalidArgument`] if a value is none.
    pub fn add(&mut self, list: &str) -> Result<()> {
        let invalid = |option: &str, values: &str| Error::InvalidArgument {
            what: format!("the mount option {option:?}: expected {values}"),
        };
        for option in list.split(',').filter(|option| !option.is_empty()) {
            match option.split_once('=') {
                Some(("snapdir", value)) => {
                    self.hide_snapshots = match value {
                        "hidden" => true,
                        "visible" => false,
                        _ => return Err(invalid(option, "hidden or visible")),
                    }
                }
                Some(("threads", value)) => {
                    self.threads = value
                        .parse()
                        .ok()
                        .filter(|threads| (1..=MOST_THREADS).contains(threads))
                        .ok_or_else(|| invalid(option, "a number from 1 to 64"))?;
                }
                // For mount(8) and systemd, which read them from fstab.
                None if ["defaults", "auto", "noauto", "nofail", "_netdev"].contains(&option) => {}
                _ if option.starts_with("x-") => {}
                None if option == "allow_other" => self.allow_other = true,
                _ => self.others.push(option.to_owned()),
            }
        }
        Ok(())
    }

    fn config(&self, store: &Path, root: bool) -> Config {
        let mut name = store.display().to_string();
        if !root {
            // fusermount splits its options at commas; root's options do
            // not go through it.
            name = name.replace('\\', "\\\\").replace(',', "\\,");
        }
        let mut config = Config::default();
        config.mount_options = vec![
            MountOption::FSName(name),
            // fuser gives its own Subtype to fusermount only; the kernel
            // takes it as well, and mountinfo then says fuse.snapdisk.
            MountOption::CUSTOM("subtype=snapdisk".into()),
            MountOption::DefaultPermissions,
            MountOption::NoSuid,
            MountOption::NoDev,
            MountOption::NoAtime,
        ];
        for option in &self.others {
            let known = match option.as_str() {
                "ro" => MountOption::RO,
                "rw" => MountOption::RW,
                "exec" => MountOption::Exec,
                "noexec" => MountOption::NoExec,
                "sync" => MountOption::Sync,
                "async" => MountOption::Async,
                "dirsync" => MountOption::DirSync,
                // Set already.
                "nosuid" | "nodev" | "noatime" | "default_permissions" => continue,
                other => MountOption::CUSTOM(other.to_owned()),
            };
            config.mount_options.push(known);
        }
        let others_allowed = || {
            let text = fs::read_to_string(FUSE_CONF).unwrap_or_default();
            text.lines().any(|line| line.trim() == "user_allow_other")
        };
        if self.allow_other || root || others_allowed() {
            config.acl = SessionACL::All;
        }
        config.n_threads = Some(self.threads.clamp(1, MOST_THREADS));
        config.clone_fd = true;
        config
    }
}

/// Checks that `mount_point` can take a store and returns its absolute path:
/// it must be an empty directory ([`Error::NotEmpty`]) where nothing is
/// mounted ([`Error::Busy`]) and that does not hold the store
/// ([`Error::InvalidArgument`]): serving it would wait for itself.
pub fn check_mount_point(store: &Path, mount_point: &Path) -> Result<PathBuf> {
    let shown = mount_point.display().to_string();
    let failed = |doing| Error::io(doing, shown.clone());
    let path = fs::canonicalize(mount_point).map_err(failed("opening the mount point"))?;
    let store = fs::canonicalize(store)
        .map_err(Error::io("opening the store", store.display().to_string()))?;
    let busy = |holder: String| Error::Busy {
        what: format!("the mount point {shown}"),
        by: vec![holder],
    };
    let mounts = Mounts::read().map_err(failed("reading what is mounted at"))?;
    if let Some(mount) = mounts.at(&path) {
        let source = mount.source.display();
        return Err(busy(format!("{source} is mounted there")));
    }
    if store.starts_with(&path) {
        return Err(Error::InvalidArgument {
            what: format!(
                "the store {} would lie below its own mount point {shown}",
                store.display()
            ),
        });
    }
    let mut entries = fs::read_dir(&path).map_err(failed("reading the mount point"))?;
    match entries.next() {
        None => Ok(path),
        Some(Ok(entry)) => Err(Error::NotEmpty {
            what: format!("the mount point {shown}"),
            content: format!("{:?}", entry.file_name()),
        }),
        Some(Err(error)) => Err(failed("reading the mount point")(error)),
    }
}

/// Ends a mount from another thread.
pub struct Unmounter {
    session: SessionUnmounter,
    mount_point: PathBuf,
    root: bool,
}

impl Unmounter {
    /// Unmounts; [`serve`] returns afterwards. While files are open the mount
    /// only disappears from the tree, and [`serve`] returns when the last of
    /// them is closed; then this returns false.
    pub fn unmount(&mut self) -> Result<bool> {
        let Err(error) = self.session.unmount() else {
            return Ok(true);
        };
        tracing::info!(%error, "in use, so it is taken out of the tree and ends with its last user");
        let mut command = match self.root {
            true => Command::new("umount"),
            false => Command::new("fusermount3"),
        };
        match self.root {
            true => command.arg("--lazy"),
            false => command.args(["-u", "-z"]),
        };
        let failed = |error| Error::Io {
            doing: "unmounting",
            path: self.mount_point.display().to_string(),
            source: error,
        };
        let output = command
            .arg("--")
            .arg(&self.mount_point)
            .stdin(Stdio::null())
            .output()
            .map_err(failed)?;
        match output.status.success() {
            true => Ok(false),
            false => Err(failed(io::Error::other(
                String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            ))),
        }
    }
}

/// Mounts `store` and serves it until it is unmounted. `ready` is called
/// once it is mounted, before the first request is answered: it must not
/// touch the mount itself. What `verbs` are asked through the mount's
/// control file runs in threads of its own, which may outlive the mount.
/// The store stays open. The calling thread may be confined; `outside` is
/// not.
pub fn serve(
    store: Arc<Store>,
    mount_point: &Path,
    options: &MountOptions,
    verbs: Arc<dyn Verbs>,
    outside: Arc<Outside>,
    ready: impl FnOnce(Unmounter),
) -> Result<()> {
    let panicked = || io::Error::other("it panicked");
    let given = (store.root().to_owned(), mount_point.to_owned());
    let mount_point = outside
        .ask(move || check_mount_point(&given.0, &given.1))
        .unwrap_or_else(|| Err(Error::io("looking at", "the mount point")(panicked())))?;
    let failed = |doing| Error::io(doing, mount_point.display().to_string());
    let root = fs::canonicalize(store.root())
        .map_err(Error::io("opening", store.root().display().to_string()))?;
    // What is in /proc/self belongs to the effective user.
    let user = fs::metadata("/proc/self").map_err(Error::io("reading", "/proc/self"))?;
    let is_root = user.uid() == 0;
    let adapter = Adapter::new(
        store,
        mount_point.clone(),
        user.uid(),
        user.gid(),
        options,
        verbs,
        outside.clone(),
    );
    let shared = adapter.shared();
    let (point, options, of) = (mount_point.clone(), options.clone(), root.clone());
    let session = outside.ask(move || {
        let config = options.config(&of, is_root);
        Session::new(adapter, point, &config)
    });
    let mut session = session
        .unwrap_or_else(|| Err(panicked()))
        .map_err(failed("mounting"))?;
    let mut unmounter = session.unmount_callable();
    shared.set_notifier(session.notifier());
    tracing::info!(mount_point = %mount_point.display(), store = %root.display(), "mounted");
    ready(Unmounter {
        session: session.unmount_callable(),
        mount_point: mount_point.clone(),
        root: is_root,
    });
    let outcome = session.run();
    shared.close();
    // Where it did not end with the mount: this thread may not unmount. What
    // hangs outside must not keep the store from being closed.
    let ended = outside.ask_within(UNMOUNT_PATIENCE, move || unmounter.unmount());
    if let Some(Err(error)) = ended {
        tracing::debug!("unmounting: {error}");
    }
    tracing::info!(mount_point = %mount_point.display(), "unmounted");
    outcome.map_err(failed("serving"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_taken_as_mount_gives_them() {
        let mut options = MountOptions::default();
        let added = options.add("defaults,snapdir=hidden,threads=1,noexec,x-systemd.automount");
        assert!(added.is_ok());
        assert_eq!(
            options,
            MountOptions {
                threads: 1,
                hide_snapshots: true,
                allow_other: false,
                others: vec!["noexec".into()],
            }
        );
        for bad in ["snapdir=maybe", "threads=0", "threads=65", "threads=x"] {
            assert!(options.add(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_path_with_a_comma_is_one_option_for_fusermount() {
        let options = MountOptions::default();
        let name = |root| options.config(Path::new("/a,b\\c"), root).mount_options[0].clone();
        assert_eq!(name(true), MountOption::FSName("/a,b\\c".into()));
        assert_eq!(name(false), MountOption::FSName("/a\\,b\\\\c".into()));
    }

    #[test]
    fn bad_mount_points_are_refused() -> io::Result<()> {
        let store = tempfile::tempdir()?;
        let point = tempfile::tempdir()?;
        let check = |point: &Path| check_mount_point(store.path(), point);
        assert!(check(point.path()).is_ok());
        assert!(matches!(
            check(&point.path().join("none")),
            Err(Error::Io { .. })
        ));
        assert!(matches!(check(Path::new("/proc")), Err(Error::Busy { .. })));
        assert!(matches!(
            check(store.path()),
            Err(Error::InvalidArgument { .. })
        ));
        fs::write(point.path().join("file"), "")?;
        assert!(matches!(check(point.path()), Err(Error::NotEmpty { .. })));
        assert!(matches!(
            check(&point.path().join("file")),
            Err(Error::Io { .. })
        ));
        Ok(())
    }
}
