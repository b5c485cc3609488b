//! The seam below everything that the store keeps on a local filesystem:
//! layers, logs, packs and manifests open, write and sync their files
//! through it, so that a test can own the faults.

use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

mod local;
pub use local::LocalFiles;

/// One name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The last part of its path; not UTF-8 is replaced and never opens.
    pub name: String,
    /// Length in bytes.
    pub len: u64,
    /// Whether it is a directory.
    pub is_dir: bool,
}

/// A directory tree. Paths are relative to its top and never contain `..`.
pub trait Files: Send + Sync + fmt::Debug {
    /// Makes a directory (mode 0700). An existing one is left as it is.
    /// Durable after [`Files::sync_dir`] of its parent.
    fn create_dir(&self, dir: &Path) -> io::Result<()>;
    /// Makes a file (mode 0600) for reading and writing; an existing one is
    /// an error. Its name is durable after [`Files::sync_dir`].
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file for reading, and for writing if asked.
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>>;
    /// Renames, replacing `to`. Durable after [`Files::sync_dir`].
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Removes a name; open files go on. Durable after [`Files::sync_dir`].
    fn unlink(&self, path: &Path) -> io::Result<()>;
    /// When this returns, the names in `dir` are on disk as they are now.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// The names in `dir`, in no order.
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>>;
    /// Bytes in the filesystem: (all, free for this user).
    fn space(&self) -> io::Result<(u64, u64)>;
}

/// An open file. All offsets and lengths are in bytes.
pub trait File: Send + Sync + fmt::Debug {
    /// Reads; short at the end of the file only.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf`. In the system's cache when this returns.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes a range read as zeros and frees its space where the filesystem
    /// can; the length stays.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Cuts or grows (with zeros).
    fn set_len(&self, len: u64) -> io::Result<()>;
    /// Length in bytes.
    fn len(&self) -> io::Result<u64>;
    /// Whether there is nothing in it.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// When this returns, everything written before the call is on disk,
    /// with the length needed to read it (`fdatasync`).
    fn sync_data(&self) -> io::Result<()>;
    /// Starts writing a range to disk, and waits for it if told to; a hint
    /// that makes a later sync short, without its promise.
    fn write_back(&self, offset: u64, len: u64, wait: bool) -> io::Result<()>;
    /// Drops clean cached pages, so that what is read next comes from disk.
    fn drop_cache(&self) -> io::Result<()>;

    /// Reads exactly `buf`, or fails with `UnexpectedEof`.
    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.read_at(buf, offset)?;
        if read < buf.len() {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                format!("{read} of {} bytes at {offset}", buf.len()),
            ));
        }
        Ok(())
    }
}
