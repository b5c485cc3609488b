//! What is wrong with a pack.

use super::{Entry, PackName};
use crate::chunk::{ChunkId, Kind};
use serde::Serialize;
use std::fmt;

/// One thing that was found to be other than it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "finding", rename_all = "snake_case")]
pub enum Finding {
    /// The file's first 64 bytes are not the header of this pack of this
    /// store.
    PackHeader {
        /// The pack.
        pack: PackName,
        /// What is wrong.
        detail: String,
    },
    /// The pack's file is not there.
    PackMissing {
        /// The pack.
        pack: PackName,
    },
    /// The system could not read the pack.
    PackUnreadable {
        /// The pack.
        pack: PackName,
        /// Its answer.
        detail: String,
    },
    /// The file is shorter or longer than what was known to be in it.
    PackLength {
        /// The pack.
        pack: PackName,
        /// Bytes that were synced once.
        expected: u64,
        /// Bytes that are there, or are readable as records.
        found: u64,
    },
    /// A closed pack's directory or trailer is damaged; its records are found
    /// by scanning.
    Directory {
        /// The pack.
        pack: PackName,
        /// What is wrong.
        detail: String,
    },
    /// Bytes between records that are no record.
    Range {
        /// The pack.
        pack: PackName,
        /// Where they start.
        offset: u64,
        /// How many.
        len: u64,
    },
    /// A record whose bytes are not the chunk that it says it is.
    Chunk {
        /// The pack.
        pack: PackName,
        /// Where the record starts.
        offset: u64,
        /// Bytes that it takes.
        record_len: u64,
        /// What kind of chunk it says it is.
        kind: Kind,
        /// Which chunk it says it is.
        id: ChunkId,
        /// What is wrong.
        detail: String,
    },
    /// What a crash left of records that were being written and that nobody
    /// was told of. No damage.
    TornTail {
        /// The pack.
        pack: PackName,
        /// Where it starts.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// A file among the packs that is none. No damage.
    Foreign {
        /// Its key.
        key: String,
    },
}

impl Finding {
    /// That a record is not the chunk that it says it is.
    pub fn of_record(pack: PackName, entry: &Entry, detail: String) -> Finding {
        Finding::Chunk {
            pack,
            offset: entry.offset(),
            record_len: entry.record_len(),
            kind: entry.kind,
            id: entry.id,
            detail,
        }
    }

    /// The pack, unless it is none.
    pub fn pack(&self) -> Option<PackName> {
        match *self {
            Finding::PackHeader { pack, .. }
            | Finding::PackMissing { pack }
            | Finding::PackUnreadable { pack, .. }
            | Finding::PackLength { pack, .. }
            | Finding::Directory { pack, .. }
            | Finding::Range { pack, .. }
            | Finding::Chunk { pack, .. }
            | Finding::TornTail { pack, .. } => Some(pack),
            Finding::Foreign { .. } => None,
        }
    }

    /// Whether something that was stored is no longer as it was stored.
    pub fn is_damage(&self) -> bool {
        !matches!(self, Finding::TornTail { .. } | Finding::Foreign { .. })
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::PackHeader { pack, detail } => write!(f, "pack {pack}: header: {detail}"),
            Finding::PackMissing { pack } => write!(f, "pack {pack}: its file is missing"),
            Finding::PackUnreadable { pack, detail } => {
                write!(f, "pack {pack}: cannot be read: {detail}")
            }
            Finding::PackLength {
                pack,
                expected,
                found,
            } => write!(
                f,
                "pack {pack}: {expected} bytes were stored and {found} are there"
            ),
            Finding::Directory { pack, detail } => write!(f, "pack {pack}: directory: {detail}"),
            Finding::Range { pack, offset, len } => write!(
                f,
                "pack {pack}: the {len} bytes at {offset} are not readable as records"
            ),
            Finding::Chunk {
                pack,
                offset,
                kind,
                id,
                detail,
                ..
            } => write!(f, "pack {pack}: {kind} chunk {id} at {offset}: {detail}"),
            Finding::TornTail { pack, offset, len } => write!(
                f,
                "pack {pack}: the {len} bytes at {offset} were being written when a run ended"
            ),
            Finding::Foreign { key } => write!(f, "{key} is not a pack"),
        }
    }
}
