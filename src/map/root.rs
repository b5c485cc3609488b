//! The root record of a map: everything that makes a disk's content.
//!
//! ```text
//! offset  bytes
//!      0      1  format (1)
//!      1      4  chunk size in bytes, little-endian, a power of two
//!      5      8  disk size in bytes, LE
//!     13      1  height: the level of the top page, the least for the size
//!     14      8  count of present chunks, LE
//!     22     32  id of the top page; left out when the count is 0
//! ```

use super::page::{Entry, FORMAT, MAX_HEIGHT, check_format, damaged, take};
use super::{height_for, span};
use crate::chunk::ChunkId;
use crate::error::Result;
use serde::{Deserialize, Serialize};
use std::fmt;

const WHAT: &str = "the root of a map";
/// Chunk sizes that a record can have. A store narrows this further.
const CHUNK_SIZES: std::ops::RangeInclusive<u32> = 4096..=1 << 20;

/// The content address of an encoded [`Root`]: equal ids mean disks of equal
/// size and bytes (and chunk size). The root hash of a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct RootId(pub ChunkId);

impl fmt::Display for RootId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The content of a disk at one instant. A value: changing a map makes
/// another root.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Root {
    /// Bytes a chunk covers, a power of two.
    pub chunk_size: u32,
    /// Size of the disk in bytes; need not be whole chunks.
    pub size: u64,
    /// Level of the top page, whether there is one or not: 0 for a disk of 0
    /// bytes, else the least whose page covers [`Root::chunks`].
    pub height: u8,
    /// Present chunks. The others are zeros.
    pub count: u64,
    /// The top page; None if no chunk is present.
    pub top: Option<ChunkId>,
}

impl Root {
    /// A disk of `size` bytes, all zeros.
    pub fn empty(chunk_size: u32, size: u64) -> Root {
        Root {
            chunk_size,
            size,
            height: height_for(size.div_ceil(chunk_size.into())),
            count: 0,
            top: None,
        }
    }

    /// Chunks that the disk has, present or not; the last may reach over its
    /// end.
    pub fn chunks(&self) -> u64 {
        self.size.div_ceil(self.chunk_size.into())
    }

    /// The record as it is stored, in the one way that there is.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(54);
        bytes.push(FORMAT);
        bytes.extend(self.chunk_size.to_le_bytes());
        bytes.extend(self.size.to_le_bytes());
        bytes.push(self.height);
        bytes.extend(self.count.to_le_bytes());
        bytes.extend(self.top.iter().flat_map(|top| top.0));
        bytes
    }

    /// Reads a stored record. [`crate::error::Error::Damaged`] for anything
    /// that [`Root::encode`] does not write of a valid root,
    /// [`crate::error::Error::FormatNewer`] for an unknown format.
    pub fn decode(bytes: &[u8]) -> Result<Root> {
        let mut rest = bytes;
        let [format] = take(&mut rest, WHAT)?;
        check_format(format, WHAT)?;
        let chunk_size = u32::from_le_bytes(take(&mut rest, WHAT)?);
        if !chunk_size.is_power_of_two() || !CHUNK_SIZES.contains(&chunk_size) {
            return Err(damaged(WHAT, format!("chunks of {chunk_size} bytes")));
        }
        let size = u64::from_le_bytes(take(&mut rest, WHAT)?);
        let [height] = take(&mut rest, WHAT)?;
        let count = u64::from_le_bytes(take(&mut rest, WHAT)?);
        let empty = Root::empty(chunk_size, size);
        if height != empty.height || height > MAX_HEIGHT || count > empty.chunks() {
            let detail = format!("{size} bytes with height {height} and {count} chunks");
            return Err(damaged(WHAT, detail));
        }
        let top = match count {
            0 => None,
            _ => Some(ChunkId(take(&mut rest, WHAT)?)),
        };
        if !rest.is_empty() {
            return Err(damaged(WHAT, format!("{} bytes too many", rest.len())));
        }
        Ok(Root {
            count,
            top,
            ..empty
        })
    }

    /// The top page as an entry of a page above it would have it.
    pub(super) fn top_entry(&self) -> Option<Entry> {
        let top = self.top.filter(|_| self.height > 0);
        top.map(|id| Entry {
            id,
            count: self.count,
        })
    }

    /// Whether chunk `index` lies below the top page.
    pub(super) fn covers(&self, index: u64) -> bool {
        index < span(self.height)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Error;

    #[test]
    fn the_height_is_the_least_for_the_size() {
        for (chunks, height) in [
            (0, 0),
            (1, 1),
            (128, 1),
            (129, 2),
            (128 * 128, 2),
            (128 * 128 + 1, 3),
            (1 << 32, 5),
            (1 << 35, 5),
            ((1 << 35) + 1, 6),
        ] {
            assert_eq!(
                Root::empty(16384, chunks * 16384).height,
                height,
                "{chunks}"
            );
        }
        assert_eq!(Root::empty(4096, u64::MAX).height, 8);
        assert_eq!(Root::empty(4096, 4097).chunks(), 2);
    }

    #[test]
    fn a_root_reads_back_and_anything_else_is_damage() {
        let empty = Root::empty(65536, 1 << 40);
        assert_eq!(empty.encode().len(), 22);
        assert_eq!(Root::decode(&empty.encode()).unwrap(), empty);
        let root = Root {
            count: 3,
            top: Some(ChunkId([7; 32])),
            ..empty.clone()
        };
        let good = root.encode();
        assert_eq!(good.len(), 54);
        assert_eq!(Root::decode(&good).unwrap(), root);

        let change = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Root::decode(&bytes)
        };
        let no_power_of_two = change(1, 1);
        let height_too_great = change(13, 5);
        let top_of_nothing = change(14, 0);
        let more_than_the_disk_has = change(21, 1);
        for bad in [
            no_power_of_two,
            height_too_great,
            top_of_nothing,
            more_than_the_disk_has,
            change(0, 0),
            Root::decode(&good[..53]),
            Root::decode(&[]),
            Root::decode(&Root::empty(4096, 1 << 48).encode()),
        ] {
            assert!(matches!(bad, Err(Error::Damaged { .. })), "{bad:?}");
        }
        assert!(matches!(change(0, 9), Err(Error::FormatNewer { .. })));
    }
}
