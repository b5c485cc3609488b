//! Where packs and manifests live: a small set of operations that a local
//! directory has today and an object store can have tomorrow.

use crate::error::Result;
use std::fmt;

pub mod local;
pub mod memory;

/// What an object was when it was read: a change that was computed from
/// another state is refused. Opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version(pub [u8; 32]);

/// Objects by key. A key is `packs/NAME` or `manifests/NAME`, where NAME
/// has letters, digits, `-` and `.` only.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Stores a new object; [`crate::error::Error::Exists`] if there is one.
    /// Durable, with its name, when this returns.
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<()>;
    /// Starts a new object that grows and begins with `head`. Its name is
    /// durable after the first [`Appender::sync`]; a crash before that leaves
    /// no object, or one that begins with all of `head`.
    fn append_new(&self, key: &str, head: &[u8]) -> Result<Box<dyn Appender>>;
    /// A whole object and its version; None if there is none.
    fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>>;
    /// Reads from `offset` into `buf`, short only at the object's end.
    /// [`crate::error::Error::Missing`] if there is no such object.
    fn get_range(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<usize>;
    /// Makes sure that an object left by an earlier run is on disk as it
    /// reads now: cached pages dropped, then synced. Returns its length.
    fn settle(&self, key: &str) -> Result<u64>;
    /// Keys and lengths of all objects whose key starts with `prefix`.
    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>>;
    /// Removes an object; durable when this returns. None there is no error.
    fn delete(&self, key: &str) -> Result<()>;
    /// Replaces an object (None: makes it) if it still is `expected`, else
    /// [`crate::error::Error::VersionConflict`]. Readers see all of the old
    /// or all of the new. Durable when this returns;
    /// [`crate::error::Error::MetadataUnknown`] if it may or may not be.
    fn replace(&self, key: &str, bytes: &[u8], expected: Option<&Version>) -> Result<Version>;
}

/// An object that grows at its end. Readers see what was appended, synced
/// or not.
pub trait Appender: Send {
    /// Appends; in the cache only when this returns. After a "no space"
    /// error the object ends where it ended before and can go on.
    fn append(&mut self, bytes: &[u8]) -> Result<()>;
    /// When this returns, all that was appended is on disk, with its name.
    fn sync(&mut self) -> Result<()>;
    /// Bytes so far.
    fn len(&self) -> u64;
    /// Whether nothing was appended yet.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
