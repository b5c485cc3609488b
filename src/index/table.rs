//! Fingerprints of all chunk ids in memory: which packs may hold a chunk.
//!
//! Open addressing with linear probing in 1024 shards. A slot has eight
//! bytes: 40 bits of the id and, below them, the pack's number; ten more
//! bits of the id choose the shard. A chunk that is nowhere is answered from
//! here, up to one false candidate in 2^50 divided by the number of chunks.
//! A shard grows by an eighth when nine tenths of it are used, so a chunk
//! takes nine to ten bytes; removed packs are forgotten when a shard is
//! built anew.

use crate::chunk::ChunkId;

/// Packs are numbered from 0, in 24 bits.
pub const MAX_PACKS: u32 = (1 << 24) - 1;
const SHARDS: usize = 1024;
const EMPTY: u64 = 0;
const MIN_SLOTS: usize = 8;

/// Chunk ids → numbers of packs.
#[derive(Debug)]
pub struct Table {
    shards: Vec<Shard>,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    slots: Vec<u64>,
    used: usize,
}

/// Shard and the 40 bits that tell ids of a shard apart.
fn parts(id: &ChunkId) -> (usize, u64) {
    let b = &id.0;
    let shard = usize::from(b[0]) | usize::from(b[1] & 3) << 8;
    let print = u64::from_le_bytes([b[2], b[3], b[4], b[5], b[6], 0, 0, 0]);
    (shard, print)
}

fn slot(print: u64, pack: u32) -> u64 {
    // One more, so that no slot in use is EMPTY.
    print << 24 | u64::from(pack + 1)
}

fn pack_of(slot: u64) -> u32 {
    (slot & 0xff_ffff) as u32 - 1
}

impl Shard {
    fn home(&self, print: u64) -> usize {
        // 40 bits times a length below 2^24.
        ((print * self.slots.len() as u64) >> 40) as usize
    }

    /// The slot that has `wanted`, or the empty one where it belongs.
    fn place(&self, wanted: u64) -> usize {
        let mut at = self.home(wanted >> 24);
        while self.slots[at] != EMPTY && self.slots[at] != wanted {
            at = (at + 1) % self.slots.len();
        }
        at
    }

    fn insert(&mut self, wanted: u64, exists: impl Fn(u32) -> bool) {
        if (self.used + 1) * 10 > self.slots.len() * 9 {
            self.rebuild(exists);
        }
        let at = self.place(wanted);
        if self.slots[at] == EMPTY {
            self.slots[at] = wanted;
            self.used += 1;
        }
    }

    fn rebuild(&mut self, exists: impl Fn(u32) -> bool) {
        let mut old = std::mem::take(&mut self.slots);
        old.retain(|slot| *slot != EMPTY && exists(pack_of(*slot)));
        let len = (old.len() + 1) * 10 / 8;
        self.slots = vec![EMPTY; len.max(MIN_SLOTS)];
        self.used = old.len();
        for slot in old {
            let at = self.place(slot);
            self.slots[at] = slot;
        }
    }
}

impl Default for Table {
    fn default() -> Table {
        Table {
            shards: vec![Shard::default(); SHARDS],
        }
    }
}

impl Table {
    /// Adds a chunk of a pack; twice is once. `exists` says which packs are
    /// still there.
    pub fn insert(&mut self, id: &ChunkId, pack: u32, exists: impl Fn(u32) -> bool) {
        let (shard, print) = parts(id);
        self.shards[shard].insert(slot(print, pack), exists);
    }

    /// The packs that may hold a chunk; removed ones may be among them.
    pub fn candidates(&self, id: &ChunkId) -> Vec<u32> {
        let (shard, print) = parts(id);
        let shard = &self.shards[shard];
        let mut found = Vec::new();
        if shard.slots.is_empty() {
            return found;
        }
        let mut at = shard.home(print);
        while shard.slots[at] != EMPTY {
            if shard.slots[at] >> 24 == print {
                found.push(pack_of(shard.slots[at]));
            }
            at = (at + 1) % shard.slots.len();
        }
        found
    }

    /// Bytes that the slots take.
    pub fn bytes(&self) -> usize {
        let slots: usize = self.shards.iter().map(|shard| shard.slots.capacity()).sum();
        slots * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ChunkId {
        ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    #[test]
    fn a_chunk_takes_at_most_ten_bytes_and_is_found() {
        let mut table = Table::default();
        let count = 300_000;
        for number in 0..count {
            table.insert(&id(number), (number / 1000) as u32, |_| true);
            table.insert(&id(number), (number / 1000) as u32, |_| true);
        }
        assert!(table.bytes() as u64 <= count * 10, "{}", table.bytes());
        for number in 0..count {
            let found = table.candidates(&id(number));
            assert!(found.contains(&((number / 1000) as u32)));
        }
        let false_ones =
            (count..2 * count).filter(|number| !table.candidates(&id(*number)).is_empty());
        assert_eq!(false_ones.count(), 0);
    }

    #[test]
    fn a_chunk_may_be_in_several_packs_and_removed_packs_are_forgotten() {
        let mut table = Table::default();
        for pack in [0, 5, MAX_PACKS - 1] {
            table.insert(&id(1), pack, |_| true);
        }
        let mut found = table.candidates(&id(1));
        found.sort_unstable();
        assert_eq!(found, [0, 5, MAX_PACKS - 1]);
        // Other chunks come until every shard was built anew.
        for number in 2..100_000 {
            table.insert(&id(number), 5, |pack| pack == 5);
        }
        assert_eq!(table.candidates(&id(1)), [5]);
    }
}
