//! The one error of the library: what went wrong, with the nouns in its
//! fields. `fuse/errno.rs` is the only place that turns it into a number.

use std::io;

/// What an operation of the library can fail with.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refused a file operation of the store.
    #[error("{doing} {path}: {source}")]
    Io {
        /// What was tried, as a verb: "reading", "syncing".
        doing: &'static str,
        /// The file, relative to the store.
        path: String,
        /// The system's answer.
        #[source]
        source: io::Error,
    },
    /// A name that nothing may have.
    #[error("the name {name:?} cannot be used: {reason}")]
    NameInvalid {
        /// The name as given, unprintable bytes replaced.
        name: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// A name over 255 bytes.
    #[error("a name of {bytes} bytes is longer than the 255 that a name may have")]
    NameTooLong {
        /// Its length.
        bytes: usize,
    },
    /// Something of that name is there already.
    #[error("{what} {name:?} exists already")]
    Exists {
        /// "disk", "snapshot", "image".
        what: &'static str,
        /// Its name.
        name: String,
    },
    /// Nothing of that name is there.
    #[error("there is no {what} {name:?}")]
    Missing {
        /// "disk", "snapshot", "image".
        what: &'static str,
        /// The name asked for.
        name: String,
    },
    /// What was looked up has gone before it was opened: to be looked up
    /// again.
    #[error("{what} is there no more")]
    Stale {
        /// What it was.
        what: String,
    },
    /// A snapshot of a disk that has no live image.
    #[error("the disk {disk:?} has no disk.img to take a snapshot of")]
    NoImage {
        /// The disk.
        disk: String,
    },
    /// Refused because something uses it.
    #[error("{what} is in use: {}", by.join(", "))]
    Busy {
        /// What was to be changed.
        what: String,
        /// Who holds it, in words.
        by: Vec<String>,
    },
    /// A directory that still holds something.
    #[error("{what} still has {content}")]
    NotEmpty {
        /// The directory.
        what: String,
        /// What is left in it.
        content: String,
    },
    /// A change of something that never changes.
    #[error("{what} is read-only")]
    ReadOnly {
        /// What was to be changed.
        what: String,
    },
    /// Something that the tree has no meaning for.
    #[error("not permitted: {what}")]
    NotPermitted {
        /// What was tried and why there is no such thing.
        what: String,
    },
    /// Arguments that no file accepts.
    #[error("invalid argument: {what}")]
    InvalidArgument {
        /// What is wrong with them.
        what: String,
    },
    /// An operation that this file does not have.
    #[error("not supported: {what}")]
    NotSupported {
        /// What was tried.
        what: String,
    },
    /// A size over the largest that a disk may have.
    #[error("a size of {size} bytes is over the limit of {limit} bytes")]
    TooLarge {
        /// The size asked for.
        size: u64,
        /// The limit.
        limit: u64,
    },
    /// A number of things over what the store allows.
    #[error("quota: {what} (limit {limit})")]
    Quota {
        /// What there would be too many of.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// More of something than one thing may have.
    #[error("too much: {what} (limit {limit})")]
    TooMuch {
        /// What there would be too much of.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// No room for more data; deleting still works.
    #[error("the store is full: {free} bytes are left, of which {reserve} are kept for deleting")]
    Full {
        /// Bytes free in the store's filesystem.
        free: u64,
        /// Bytes that writers may not have.
        reserve: u64,
    },
    /// Something in the store is not what was written there.
    #[error("damaged: {what}: {detail}")]
    Damaged {
        /// Which file, record or range.
        what: String,
        /// What was expected and what was found.
        detail: String,
    },
    /// A chunk that no pack holds.
    #[error("chunk {id} is in no pack of the store")]
    ChunkMissing {
        /// The content address, in hexadecimal.
        id: String,
    },
    /// Refused since an earlier flush or write failed.
    #[error("{what} refuses since an earlier error, until it is reopened: {cause}")]
    Poisoned {
        /// The disk, or "the store's packs".
        what: String,
        /// The first error.
        cause: String,
    },
    /// A replacement of metadata that may or may not survive a power loss.
    #[error(
        "it is unknown whether the change of {key} is on disk ({cause}); \
         nothing more is changed or deleted until the store is reopened"
    )]
    MetadataUnknown {
        /// The manifest.
        key: String,
        /// The error that left it so.
        cause: String,
    },
    /// A manifest is not the version that a change was computed from.
    #[error("{key} was changed by somebody else")]
    VersionConflict {
        /// The manifest.
        key: String,
    },
    /// The directory is no store.
    #[error("{path} is not a snapdisk store: {detail}")]
    NotAStore {
        /// The directory.
        path: String,
        /// What is missing in it.
        detail: String,
    },
    /// The store was made by a newer version.
    #[error(
        "the store has format {found}, this program reads up to {known}: \
         use a newer snapdisk"
    )]
    FormatNewer {
        /// What the store's header says.
        found: String,
        /// What this program can read.
        known: String,
    },
    /// Another process has the store.
    #[error("the store {path} is in use by {holder}")]
    Locked {
        /// The store.
        path: String,
        /// Process id and mount point of the holder, as far as known.
        holder: String,
    },
    /// The store is going down.
    #[error("the store is being closed")]
    Closing,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An [`Error::Io`] for `path`, for use with `map_err`.
    pub fn io(doing: &'static str, path: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let path = path.into();
        move |source| Error::Io {
            doing,
            path,
            source,
        }
    }

    /// Whether something that is there cannot be read, whoever is to blame:
    /// it is damaged, or the disk answers EIO. All else can be read.
    pub fn is_unreadable(&self) -> bool {
        match self {
            Error::Io { source, .. } => source.raw_os_error() == Some(libc::EIO),
            Error::Damaged { .. } | Error::ChunkMissing { .. } => true,
            _ => false,
        }
    }

    /// Whether a write was refused before anything was lost: there is no room
    /// for it, or the store's filesystem has turned read-only. The file is as
    /// trustworthy as before; whether what it was given earlier reaches the
    /// disk, the next sync says.
    pub fn is_refused_write(&self) -> bool {
        let is_read_only = match self {
            Error::Io { source, .. } => source.raw_os_error() == Some(libc::EROFS),
            _ => false,
        };
        is_read_only || self.is_no_space()
    }

    /// Whether the store's filesystem had no room for it: the one kind of
    /// error after which a file, also one that was being synced, is as
    /// trustworthy as before.
    pub fn is_no_space(&self) -> bool {
        match self {
            Error::Io { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::ENOSPC) | Some(libc::EDQUOT)
            ),
            Error::Full { .. } => true,
            _ => false,
        }
    }
}
