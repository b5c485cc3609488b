//! One page of the map: up to 128 entries of one level.
//!
//! ```text
//! offset  bytes
//!      0      1  format (1)
//!      1      1  level: 1 holds chunks, each further level pages of the one below
//!      2     16  bitmap, little-endian: bit n is set if slot n has an entry
//!     18         the entries of the set bits, in order:
//!                  level 1   32 bytes chunk id
//!                  above     32 bytes page id, 8 bytes count of chunks below (LE)
//! ```
//!
//! Absent entries take no room, and what is absent is said in one way only:
//! there is no empty page and no entry with a count of 0. So equal content
//! is equal bytes and an equal id.

use super::span;
use crate::chunk::ChunkId;
use crate::error::{Error, Result};

/// Entries a page can have, at every level. 128 rather than more, because a
/// change of one chunk rewrites one page a level.
pub const FANOUT: usize = 128;
/// The most levels a map can have: 2^35 chunks, 64 TiB and more with chunks
/// of any size that a store can have.
pub const MAX_HEIGHT: u8 = 5;

/// The format of pages and of root records.
pub(super) const FORMAT: u8 = 1;
const WHAT: &str = "a page of a map";
const HEAD_BYTES: usize = 18;

/// What a slot of a page refers to: a chunk (of level 1) or a page of the
/// level below.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The content address.
    pub id: ChunkId,
    /// Present chunks below: 1 for a chunk itself.
    pub count: u64,
}

/// The slots of a page, all of them.
pub(super) type Slots = [Option<Entry>; FANOUT];

/// A page in memory, as decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    level: u8,
    bitmap: u128,
    /// One for each set bit, in order.
    ids: Box<[ChunkId]>,
    /// Likewise; empty at level 1, where every count is 1.
    counts: Box<[u64]>,
    /// The sum of the counts.
    count: u64,
}

impl Page {
    /// The page of `level` (1–[`MAX_HEIGHT`]) with these entries; None if
    /// there are none.
    pub(super) fn from_slots(level: u8, slots: &Slots) -> Option<Page> {
        let entries = || slots.iter().flatten();
        let bitmap = (slots.iter().enumerate())
            .filter(|(_, entry)| entry.is_some())
            .fold(0, |bits, (slot, _)| bits | 1u128 << slot);
        (bitmap != 0).then(|| Page {
            level,
            bitmap,
            ids: entries().map(|entry| entry.id).collect(),
            counts: match level {
                1 => Box::default(),
                _ => entries().map(|entry| entry.count).collect(),
            },
            count: entries().map(|entry| entry.count).sum(),
        })
    }

    /// The page as it is stored, in the one way that there is.
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes =
            Vec::with_capacity(HEAD_BYTES + size_of_val(&*self.ids) + size_of_val(&*self.counts));
        bytes.extend([FORMAT, self.level]);
        bytes.extend(self.bitmap.to_le_bytes());
        for (at, id) in self.ids.iter().enumerate() {
            bytes.extend(id.0);
            if let Some(count) = self.counts.get(at) {
                bytes.extend(count.to_le_bytes());
            }
        }
        bytes
    }

    /// Reads a stored page. [`Error::Damaged`] for anything that
    /// [`Page::encode`] does not write, [`Error::FormatNewer`] for a format
    /// that this program does not know.
    pub fn decode(bytes: &[u8]) -> Result<Page> {
        let mut rest = bytes;
        let [format] = take(&mut rest, WHAT)?;
        check_format(format, WHAT)?;
        let [level] = take(&mut rest, WHAT)?;
        if !(1..=MAX_HEIGHT).contains(&level) {
            return Err(damaged(WHAT, format!("level {level}")));
        }
        let bitmap = u128::from_le_bytes(take(&mut rest, WHAT)?);
        if bitmap == 0 {
            return Err(damaged(WHAT, "it has no entries".into()));
        }
        let entries = bitmap.count_ones() as usize;
        let mut ids = Vec::with_capacity(entries);
        let mut counts = Vec::with_capacity(if level == 1 { 0 } else { entries });
        for _ in 0..entries {
            ids.push(ChunkId(take(&mut rest, WHAT)?));
            if level > 1 {
                let count = u64::from_le_bytes(take(&mut rest, WHAT)?);
                if count == 0 || count > span(level - 1) {
                    let detail = format!("an entry of level {level} counts {count} chunks");
                    return Err(damaged(WHAT, detail));
                }
                counts.push(count);
            }
        }
        if !rest.is_empty() {
            let detail = format!("{} bytes after its last entry", rest.len());
            return Err(damaged(WHAT, detail));
        }
        let count = match level {
            1 => ids.len() as u64,
            _ => counts.iter().sum(),
        };
        Ok(Page {
            level,
            bitmap,
            ids: ids.into(),
            counts: counts.into(),
            count,
        })
    }

    /// 1 for a page of chunks, up to [`MAX_HEIGHT`].
    pub fn level(&self) -> u8 {
        self.level
    }

    /// Present chunks below.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Bytes that the page takes in memory, for a cache's accounts.
    pub fn memory_bytes(&self) -> usize {
        size_of::<Page>() + size_of_val(&*self.ids) + size_of_val(&*self.counts)
    }

    /// The entry of a slot (below [`FANOUT`]).
    pub fn get(&self, slot: usize) -> Option<Entry> {
        let present = slot < FANOUT && self.bitmap >> slot & 1 == 1;
        present.then(|| self.nth(self.rank(slot)))
    }

    /// The present entries in order, with their slots.
    pub fn entries(&self) -> impl Iterator<Item = (usize, Entry)> {
        (0..FANOUT)
            .filter(|slot| self.bitmap >> slot & 1 == 1)
            .enumerate()
            .map(|(at, slot)| (slot, self.nth(at)))
    }

    /// All slots.
    pub(super) fn slots(&self) -> Slots {
        let mut slots = [None; FANOUT];
        for (slot, entry) in self.entries() {
            slots[slot] = Some(entry);
        }
        slots
    }

    /// Present chunks below the slots before `slot`.
    pub(super) fn count_before(&self, slot: usize) -> u64 {
        let rank = self.rank(slot);
        match self.level {
            1 => rank as u64,
            _ => self.counts[..rank].iter().sum(),
        }
    }

    /// The last slot that has an entry.
    pub(super) fn last_slot(&self) -> usize {
        (u128::BITS - 1 - self.bitmap.leading_zeros()) as usize
    }

    /// Present entries before `slot`.
    fn rank(&self, slot: usize) -> usize {
        (self.bitmap & ((1 << slot) - 1)).count_ones() as usize
    }

    /// The `at`-th present entry.
    fn nth(&self, at: usize) -> Entry {
        Entry {
            id: self.ids[at],
            count: self.counts.get(at).copied().unwrap_or(1),
        }
    }
}

/// Takes the next `N` bytes of the stored form of `what`.
pub(super) fn take<const N: usize>(bytes: &mut &[u8], what: &str) -> Result<[u8; N]> {
    let (first, rest) = bytes
        .split_first_chunk()
        .ok_or_else(|| damaged(what, format!("it ends {} bytes early", N - bytes.len())))?;
    *bytes = rest;
    Ok(*first)
}

/// Refuses a format other than the known one.
pub(super) fn check_format(found: u8, what: &str) -> Result<()> {
    match found {
        FORMAT => Ok(()),
        0 => Err(damaged(what, "format 0".into())),
        _ => Err(Error::FormatNewer {
            found: format!("format {found} of {what}"),
            known: format!("format {FORMAT}"),
        }),
    }
}

/// What is stored for `what` is not what this program stores.
pub(super) fn damaged(what: &str, detail: String) -> Error {
    Error::Damaged {
        what: what.to_owned(),
        detail,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn page(level: u8, slots: &[(usize, u64)]) -> Page {
        let mut all = [None; FANOUT];
        for &(slot, count) in slots {
            let id = ChunkId([slot as u8 + 1; 32]);
            all[slot] = Some(Entry { id, count });
        }
        Page::from_slots(level, &all).expect("a slot is given")
    }

    #[test]
    fn a_page_reads_back_as_it_was_and_its_layout_is_fixed() {
        let leaf = page(1, &[(0, 1), (5, 1), (127, 1)]);
        let bytes = leaf.encode();
        assert_eq!(bytes.len(), 18 + 3 * 32);
        assert_eq!(bytes[..4], [1, 1, 0b10_0001, 0]);
        assert_eq!(bytes[17..19], [0x80, 1]);
        assert_eq!(Page::decode(&bytes).unwrap(), leaf);
        assert_eq!((leaf.count(), leaf.last_slot()), (3, 127));
        assert_eq!(leaf.count_before(127), 2);
        assert_eq!(leaf.get(5).unwrap().id, ChunkId([6; 32]));
        assert_eq!(leaf.get(6), None);
        assert_eq!(leaf.get(128), None);

        let inner = page(2, &[(1, 7), (3, 128)]);
        let bytes = inner.encode();
        assert_eq!(bytes.len(), 18 + 2 * 40);
        assert_eq!(bytes[50..58], 7u64.to_le_bytes());
        assert_eq!(Page::decode(&bytes).unwrap(), inner);
        assert_eq!((inner.count(), inner.count_before(3)), (135, 7));
        let slots: Vec<_> = inner.entries().map(|(slot, _)| slot).collect();
        assert_eq!(slots, [1, 3]);
    }

    #[test]
    fn anything_but_the_one_encoding_is_damage() {
        let good = page(2, &[(1, 7), (3, 128)]).encode();
        let change = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            Page::decode(&bytes)
        };
        let count_of_129 = change(90, 129);
        let empty_child = change(50, 0);
        let missing_entry = change(2, 0b10);
        let extra_entry = change(2, 0b1011);
        let level_of_another_length = change(1, 1);
        let no_level = change(1, 0);
        let too_high = change(1, MAX_HEIGHT + 1);
        for bad in [
            count_of_129,
            empty_child,
            missing_entry,
            extra_entry,
            level_of_another_length,
            no_level,
            too_high,
            change(0, 0),
            Page::decode(&[]),
            Page::decode(&[1, 1]),
            Page::decode(&[&[1, 1][..], &[0; 16]].concat()),
        ] {
            assert!(matches!(bad, Err(Error::Damaged { .. })), "{bad:?}");
        }
        assert!(matches!(change(0, 2), Err(Error::FormatNewer { .. })));
    }

    proptest! {
        /// Bytes from a damaged disk never panic, and whatever is accepted
        /// is what would be written.
        #[test]
        fn any_bytes_decode_or_are_refused(
            level in 0u8..7, bits in proptest::array::uniform16(0u8..2),
            tail in proptest::collection::vec(0u8..3, 0..700),
        ) {
            let bytes = [&[1, level][..], &bits, &tail].concat();
            if let Ok(page) = Page::decode(&bytes) {
                prop_assert_eq!(page.encode(), bytes);
            }
        }
    }
}
