//! Filesystems in files, on loop devices.

use super::{command, run, sys};
use std::fs::File;
use std::path::{Path, PathBuf};

/// An image that is mounted on a loop device, unmounted when dropped.
pub struct LoopMount {
    directory: tempfile::TempDir,
}

impl LoopMount {
    /// Mounts `image` with options besides `loop`, like `ro,noload`; no
    /// options is `""`.
    #[track_caller]
    pub fn new(image: &Path, options: &str) -> LoopMount {
        let directory = tempfile::Builder::new()
            .prefix("snapdisk-test-loop-")
            .tempdir_in("/var/tmp")
            .expect("a temporary directory");
        let options = match options {
            "" => "loop".to_owned(),
            more => format!("loop,{more}"),
        };
        run(command("mount", &["-o", &options])
            .arg(image)
            .arg(directory.path()));
        LoopMount { directory }
    }

    /// A path in it.
    pub fn path(&self, below: &str) -> PathBuf {
        self.directory.path().join(below)
    }

    /// Where it is mounted.
    pub fn point(&self) -> &Path {
        self.directory.path()
    }

    /// Unmounts; panics if it is in use.
    #[track_caller]
    pub fn unmount(self) {
        run(command("umount", &[]).arg(self.directory.path()));
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        let mut umount = command("umount", &[]);
        let ended = umount.arg(self.directory.path()).output();
        if !ended.is_ok_and(|output| output.status.success()) {
            // Unmounted already, or in use: then it leaves the tree and ends
            // with its last user. There is nobody left to tell.
            let _ = sys::unmount(self.directory.path());
        }
    }
}

/// A small ext4 filesystem of a test's own, in a file; gone when dropped.
pub struct Filesystem {
    mount: LoopMount,
    /// Removed after the unmounting.
    _image: tempfile::NamedTempFile,
}

impl Filesystem {
    /// Makes and mounts one of this many bytes.
    #[track_caller]
    pub fn new(bytes: u64) -> Filesystem {
        let image = tempfile::Builder::new()
            .prefix("snapdisk-test-fs-")
            .tempfile_in("/var/tmp")
            .expect("a temporary file");
        File::set_len(image.as_file(), bytes).expect("its length");
        run(command("mkfs.ext4", &["-q", "-m", "0"]).arg(image.path()));
        Filesystem {
            mount: LoopMount::new(image.path(), ""),
            _image: image,
        }
    }

    /// A path in it.
    pub fn path(&self, below: &str) -> PathBuf {
        self.mount.path(below)
    }

    /// Mounts it read-only or for writing again, once nothing of it is in use
    /// that stands against that: a process whose mount is gone may still be
    /// closing its files.
    #[track_caller]
    pub fn set_read_only(&self, read_only: bool) {
        let options = if read_only {
            "remount,ro"
        } else {
            "remount,rw"
        };
        super::wait_until("the filesystem can be remounted", || {
            let mut mount = command("mount", &["-o", options]);
            let done = mount.arg(self.mount.point()).output();
            done.is_ok_and(|done| done.status.success())
        });
    }
}
