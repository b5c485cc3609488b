//! Which chunks a pack holds, and where.

use super::{
    ALIGN, DIRECTORY_MAGIC, TRAILER_MAGIC, aligned, is_sealed, record, seal, u32_at, u64_at,
};
use crate::chunk::{ChunkId, Kind};
use uuid::Uuid;

/// Bytes of an entry on disk.
pub const ENTRY_BYTES: usize = 48;
const FRAME_BYTES: usize = ALIGN as usize;

/// Where one chunk lies in its pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The chunk.
    pub id: ChunkId,
    /// What it holds.
    pub kind: Kind,
    /// Bytes of payload.
    pub stored_len: u32,
    /// Bytes when unpacked.
    pub plain_len: u32,
    /// Where the record starts, in multiples of 64.
    unit: u32,
}

impl Entry {
    /// An entry for a record at `offset`; None if a pack cannot have one
    /// there or of that size.
    pub fn new(id: ChunkId, kind: Kind, offset: u64, stored: u32, plain: u32) -> Option<Entry> {
        let fits = offset.is_multiple_of(ALIGN)
            && offset >= ALIGN
            && plain <= kind.max_bytes()
            && stored <= plain;
        Some(Entry {
            id,
            kind,
            stored_len: stored,
            plain_len: plain,
            unit: u32::try_from(offset / ALIGN).ok().filter(|_| fits)?,
        })
    }

    /// Where the record starts in the pack.
    pub fn offset(&self) -> u64 {
        u64::from(self.unit) * ALIGN
    }

    /// Bytes that the record takes in the pack.
    pub fn record_len(&self) -> u64 {
        record::record_len(self.stored_len)
    }

    /// Where the record ends.
    pub fn end(&self) -> u64 {
        self.offset() + self.record_len()
    }

    /// Reads one back; None unless it is one of a record that ends at or
    /// before `end`.
    fn decode(bytes: &[u8], end: u64) -> Option<Entry> {
        let mut id = [0; 32];
        id.copy_from_slice(bytes.get(..32)?);
        let entry = Entry::new(
            ChunkId(id),
            Kind::from_number(bytes[32])?,
            u64::from(u32_at(bytes, 36)) * ALIGN,
            u32_at(bytes, 40),
            u32_at(bytes, 44),
        )?;
        (bytes[33..36] == [0; 3] && entry.end() <= end).then_some(entry)
    }
}

/// Where in a closed pack of `file_len` bytes and `count` records the entry
/// of a chunk should be: an offset and a length in bytes. Ids are spread
/// evenly, so that is where the share of `count` is that its value is of the
/// largest, give or take three standard deviations.
pub(super) fn place_of(id: &ChunkId, count: u64, file_len: u64) -> Option<(u64, usize)> {
    let b = &id.0;
    let share = u64::from_be_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]);
    let middle = ((u128::from(share) * u128::from(count)) >> 64) as u64;
    // Of a binomial distribution: at most the root of n/4.
    let reach = (count.isqrt() + 1) * 3 / 2 + 1;
    let from = middle.saturating_sub(reach);
    let to = (middle + reach + 1).min(count);
    let start = directory_start(count, file_len)? + ALIGN;
    Some((
        start + from * ENTRY_BYTES as u64,
        (to - from) as usize * ENTRY_BYTES,
    ))
}

/// Where the directory of a closed pack starts.
fn directory_start(count: u64, file_len: u64) -> Option<u64> {
    file_len.checked_sub(ALIGN + aligned(ALIGN + count * ENTRY_BYTES as u64))
}

/// The entry of a chunk among these, read from a directory of a closed pack.
pub(super) fn find_among(bytes: &[u8], id: &ChunkId, count: u64, file_len: u64) -> Option<Entry> {
    let mut entries = bytes.chunks_exact(ENTRY_BYTES);
    let found = entries.find(|bytes| bytes[..32] == id.0)?;
    Entry::decode(found, directory_start(count, file_len)?)
}

/// The entries of one pack, ordered by id, each id once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    entries: Vec<Entry>,
}

impl Directory {
    /// Orders the entries of a pack.
    pub fn new(mut entries: Vec<Entry>) -> Directory {
        entries.sort_unstable_by_key(|entry| (entry.id, entry.unit));
        entries.dedup_by_key(|entry| entry.id);
        Directory { entries }
    }

    /// The entries, ordered by id.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of a chunk.
    pub fn find(&self, id: &ChunkId) -> Option<&Entry> {
        let at = self
            .entries
            .binary_search_by_key(id, |entry| entry.id)
            .ok()?;
        Some(&self.entries[at])
    }

    /// The entries in the order in which their records lie in the pack.
    pub fn by_offset(&self) -> Vec<Entry> {
        let mut entries = self.entries.clone();
        entries.sort_unstable_by_key(|entry| entry.unit);
        entries
    }

    /// The entries as they stand on disk.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.entries.len() * ENTRY_BYTES);
        for entry in &self.entries {
            bytes.extend_from_slice(&entry.id.0);
            bytes.extend_from_slice(&[entry.kind as u8, 0, 0, 0]);
            bytes.extend_from_slice(&entry.unit.to_le_bytes());
            bytes.extend_from_slice(&entry.stored_len.to_le_bytes());
            bytes.extend_from_slice(&entry.plain_len.to_le_bytes());
        }
        bytes
    }

    /// Reads entries back; None unless they are what [`Directory::encode`]
    /// makes of some directory of records that end at or before `end`.
    pub fn decode(bytes: &[u8], end: u64) -> Option<Directory> {
        if !bytes.len().is_multiple_of(ENTRY_BYTES) {
            return None;
        }
        let mut entries: Vec<Entry> = Vec::with_capacity(bytes.len() / ENTRY_BYTES);
        for bytes in bytes.chunks_exact(ENTRY_BYTES) {
            let entry = Entry::decode(bytes, end)?;
            if entries.last().is_some_and(|last| last.id >= entry.id) {
                return None;
            }
            entries.push(entry);
        }
        Some(Directory { entries })
    }

    /// Directory and trailer of a pack whose records end at `offset`.
    pub(super) fn encode_end(&self, pack: Uuid, offset: u64) -> (Vec<u8>, Vec<u8>) {
        let entries = self.encode();
        let crc = crc32fast::hash(&entries);
        let count = self.entries.len() as u32;
        let len = aligned((FRAME_BYTES + entries.len()) as u64);

        let mut bytes = vec![0; len as usize + FRAME_BYTES];
        let (header, rest) = bytes.split_at_mut(FRAME_BYTES);
        header[..8].copy_from_slice(DIRECTORY_MAGIC);
        header[8..24].copy_from_slice(pack.as_bytes());
        header[24..28].copy_from_slice(&count.to_le_bytes());
        header[28..32].copy_from_slice(&crc.to_le_bytes());
        seal(header);
        rest[..entries.len()].copy_from_slice(&entries);
        let trailer = &mut bytes[len as usize..];
        trailer[..8].copy_from_slice(TRAILER_MAGIC);
        trailer[8..24].copy_from_slice(pack.as_bytes());
        trailer[24..32].copy_from_slice(&offset.to_le_bytes());
        trailer[32..40].copy_from_slice(&len.to_le_bytes());
        trailer[40..44].copy_from_slice(&count.to_le_bytes());
        trailer[44..48].copy_from_slice(&crc.to_le_bytes());
        seal(trailer);
        let trailer = bytes.split_off(len as usize);
        (bytes, trailer)
    }
}

/// Whether these 64 bytes start the directory of this pack.
pub(super) fn is_directory(bytes: &[u8], pack: Uuid) -> bool {
    bytes.len() == FRAME_BYTES
        && is_sealed(bytes)
        && &bytes[..8] == DIRECTORY_MAGIC
        && bytes[8..24] == *pack.as_bytes()
}

/// What the last 64 bytes of a closed pack say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trailer {
    /// Where the directory starts and the records end.
    pub offset: u64,
    /// How many records there are.
    pub count: u32,
    /// The checksum of the entries.
    pub crc: u32,
}

impl Trailer {
    /// Reads the end of a pack of `file_len` bytes; None if it is not a
    /// trailer of this pack with that length.
    pub(super) fn decode(bytes: &[u8], pack: Uuid, file_len: u64) -> Option<Trailer> {
        if bytes.len() != FRAME_BYTES
            || !is_sealed(bytes)
            || &bytes[..8] != TRAILER_MAGIC
            || bytes[8..24] != *pack.as_bytes()
        {
            return None;
        }
        let (offset, len) = (u64_at(bytes, 24), u64_at(bytes, 32));
        let count = u32_at(bytes, 40);
        let expected = aligned(ALIGN + u64::from(count) * ENTRY_BYTES as u64);
        let end = offset.checked_add(len)?.checked_add(ALIGN)?;
        let fits = offset >= ALIGN && offset.is_multiple_of(ALIGN) && end == file_len;
        (fits && len == expected).then_some(Trailer {
            offset,
            count,
            crc: u32_at(bytes, 44),
        })
    }
}
