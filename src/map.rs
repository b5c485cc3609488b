//! The map of a disk: an immutable Merkle tree from chunk index to chunk id.
//!
//! A **page** of level 1 has the ids of up to 128 neighbouring chunks, a
//! page of each further level up to 128 pages of the level below. The
//! **root** record names the top page and the disk's size. **Absent** chunks
//! are zeros and take nothing: they have no entry, and a page without
//! entries does not exist. The height is the least for the size. So one
//! content has one encoding, equal roots mean equal disks, and two maps share
//! every page in which they agree.
//!
//! Whoever follows an entry knows the level and the count of what it leads
//! to, and where the disk ends; a page that contradicts them is damage, not
//! data. Pages are read by id and already checked against it.

use crate::chunk::ChunkId;
use crate::error::Result;
use std::sync::Arc;

mod cursor;
mod edit;
mod page;
mod read;
mod root;
#[cfg(test)]
mod tests;
mod walk;

pub use edit::{Op, edit};
pub use page::{Entry, FANOUT, MAX_HEIGHT, Page};
pub use read::{Run, count, get, get_cached, get_range, get_range_cached, next_run};
pub use root::{Root, RootId};
pub use walk::{OnDifference, diff, walk, walk_findings};

/// Where the pages are.
pub trait PageStore {
    /// The page with this id. A page that is missing, does not match its id
    /// or does not decode is an error.
    fn page(&self, id: &ChunkId) -> Result<Arc<Page>>;
    /// Stores an encoded page, which may be there already. Not durable when
    /// this returns: who publishes the root syncs the packs first.
    fn put_page(&self, encoded: &[u8]) -> Result<ChunkId>;
}

/// log2 of [`FANOUT`].
const FANOUT_BITS: u32 = FANOUT.trailing_zeros();

/// Chunks that one entry of a page of level `level + 1` covers: a chunk at
/// level 0, else a page of that level.
pub(crate) const fn span(level: u8) -> u64 {
    1 << (FANOUT_BITS * level as u32)
}

/// The slot for chunk `index` in its page of `level`.
const fn slot(index: u64, level: u8) -> usize {
    (index / span(level - 1)) as usize % FANOUT
}

/// The least height whose top page covers so many chunks.
fn height_for(chunks: u64) -> u8 {
    match chunks {
        0 => 0,
        1 => 1,
        _ => (u64::BITS - (chunks - 1).leading_zeros()).div_ceil(FANOUT_BITS) as u8,
    }
}
