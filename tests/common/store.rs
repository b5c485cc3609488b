//! A store of a test's own, and its mount.

use super::{SNAPDISK, command, run, sys, wait_until};
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// A new store with a mount point beside it, in a directory of its own that
/// goes with it. On a disk: /tmp may be memory.
pub struct TestStore {
    directory: tempfile::TempDir,
}

impl TestStore {
    /// A store with chunks of 64 KiB.
    pub fn new() -> TestStore {
        TestStore::with_chunks("64K")
    }

    /// A store with chunks of this size, as `--chunk-size` takes it.
    pub fn with_chunks(size: &str) -> TestStore {
        let store = TestStore::empty();
        run(command(SNAPDISK, &["init", "--chunk-size", size]).arg(store.path()));
        store
    }

    /// The directory and the mount point, without a store.
    pub fn empty() -> TestStore {
        let directory = tempfile::Builder::new()
            .prefix("snapdisk-test-")
            .tempdir_in("/var/tmp")
            .expect("a temporary directory");
        // The second user has to get to the mount.
        let everybody = fs::Permissions::from_mode(0o755);
        fs::set_permissions(directory.path(), everybody).expect("its permissions");
        let store = TestStore { directory };
        fs::create_dir(store.point()).expect("a mount point");
        store
    }

    /// The directory of the store.
    pub fn path(&self) -> PathBuf {
        self.scratch("store")
    }

    /// Where it is mounted by [`TestStore::mount`].
    pub fn point(&self) -> PathBuf {
        self.scratch("mnt")
    }

    /// A path for other files of the test, beside the store.
    pub fn scratch(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Mounts it.
    #[track_caller]
    pub fn mount(&self) -> Mount {
        self.mount_with(&[])
    }

    /// Mounts it with further arguments.
    #[track_caller]
    pub fn mount_with(&self, arguments: &[&str]) -> Mount {
        Mount::new(&self.path(), &self.point(), arguments)
    }

    /// What the daemons have logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.path().join("snapdisk.log")).unwrap_or_default()
    }
}

/// A mounted store, served by a daemon in the background. Unmounted when
/// dropped, by force if it is in use.
pub struct Mount {
    store: PathBuf,
    point: PathBuf,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    process: u32,
}

impl Mount {
    /// Mounts with the command.
    #[track_caller]
    pub fn new(store: &Path, point: &Path, arguments: &[&str]) -> Mount {
        Mount::with_environment(store, point, arguments, &[])
    }

    /// A mount whose daemon has more in its environment.
    #[track_caller]
    pub fn with_environment(
        store: &Path,
        point: &Path,
        arguments: &[&str],
        environment: &[(&str, String)],
    ) -> Mount {
        let mut mount = Mount {
            environment: environment
                .iter()
                .map(|(name, value)| ((*name).to_owned(), value.clone()))
                .collect(),
            store: store.to_owned(),
            point: point.to_owned(),
            arguments: arguments.iter().map(|&text| text.to_owned()).collect(),
            process: 0,
        };
        mount.start();
        mount
    }

    #[track_caller]
    fn start(&mut self) {
        run(command(SNAPDISK, &["mount"])
            .envs(self.environment.iter().cloned())
            .args(&self.arguments)
            .arg(&self.store)
            .arg(&self.point));
        // The lock's file names its holder.
        let holder = fs::read_to_string(self.store.join("lock")).expect("the lock's file");
        let process = holder
            .split(|character: char| !character.is_ascii_digit())
            .find_map(|word| word.parse().ok());
        self.process = process.unwrap_or_else(|| panic!("whose is the lock? {holder:?}"));
    }

    /// A path in the mount.
    pub fn path(&self, below: &str) -> PathBuf {
        self.point.join(below)
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        &self.point
    }

    /// The daemon's process.
    pub fn process(&self) -> u32 {
        self.process
    }

    /// Ends the daemon with SIGKILL and waits until it is gone. The mount
    /// stays, dead.
    pub fn kill9(&self) {
        sys::kill(self.process, libc::SIGKILL).expect("the daemon runs");
        self.wait_gone();
    }

    /// Waits until the daemon has let go of the store, which it does last.
    pub fn wait_gone(&self) {
        wait_until("the daemon's end", || self.is_gone());
    }

    fn is_gone(&self) -> bool {
        // A store whose file of the lock cannot be opened has no daemon.
        File::open(self.store.join("lock")).map_or(true, |file| file.try_lock_shared().is_ok())
    }

    /// Unmounts with the command; the store can then be used directly.
    #[track_caller]
    pub fn unmount(&self) {
        run(command(SNAPDISK, &["umount"]).arg(&self.point));
    }

    /// Mounts again at the same place: after [`Mount::unmount`], after
    /// [`Mount::kill9`] in place of the dead mount, else after unmounting.
    #[track_caller]
    pub fn remount(&mut self) {
        if !self.is_gone() {
            self.unmount();
        }
        self.start();
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let mut umount = command(SNAPDISK, &["umount"]);
        let ended = umount.arg(&self.point).output();
        if ended.is_ok_and(|output| output.status.success()) {
            return;
        }
        // In use, dead, or not mounted any more: nothing may stay behind.
        if self.process > 1 && !self.is_gone() && sys::kill(self.process, libc::SIGKILL).is_ok() {
            self.wait_gone();
        }
        while sys::unmount(&self.point).is_ok() {}
    }
}
