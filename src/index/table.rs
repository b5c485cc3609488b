//! Fingerprints of all chunk ids in memory: which packs may hold a chunk.
//!
//! A slot has eight bytes: 40 bits of the id and, below them, the pack's
//! number; ten more bits of the id choose one of 1024 shards. A chunk that
//! is nowhere is answered from here, up to one false candidate in 2^50
//! divided by the number of chunks.
//!
//! A shard's slots are in order but for the last few, which wait to be merged
//! in. They lie in pages of 4 KiB that are full but for a shard's last one: a
//! chunk takes little more than its eight bytes, and a table that grows never
//! needs a second copy of anything, nor leaves holes behind.

use crate::chunk::ChunkId;

/// Packs are numbered from 0, in 24 bits.
pub const MAX_PACKS: u32 = (1 << 24) - 1;
/// Ten bits of an id choose one.
pub const SHARDS: usize = 1024;
const PAGE_SLOTS: usize = 512;
/// Slots that may wait to be merged: every look-up goes through them.
const WAITING: usize = 128;

/// Chunk ids → numbers of packs.
#[derive(Debug)]
pub struct Table {
    shards: Vec<Shard>,
    /// Counts removals of packs: a shard that has not heard of all of them
    /// may have slots that nobody needs.
    removals: u64,
}

#[derive(Clone, Debug, Default)]
struct Shard {
    pages: Vec<Box<[u64; PAGE_SLOTS]>>,
    /// Slots in order, each once; those that wait come behind them.
    sorted: usize,
    len: usize,
    /// The removals that it has heard of.
    heard: u64,
}

/// Shard and the 40 bits that tell ids of a shard apart.
fn parts(id: &ChunkId) -> (usize, u64) {
    let b = &id.0;
    let shard = usize::from(b[0]) | usize::from(b[1] & 3) << 8;
    let print = u64::from_le_bytes([b[2], b[3], b[4], b[5], b[6], 0, 0, 0]);
    (shard, print)
}

fn slot(print: u64, pack: u32) -> u64 {
    print << 24 | u64::from(pack)
}

/// The number of a slot's pack.
pub fn pack_of(slot: u64) -> u32 {
    (slot & 0xff_ffff) as u32
}

/// The same slot for a pack with another number.
pub fn renumbered(slot: u64, pack: u32) -> u64 {
    slot & !0xff_ffff | u64::from(pack)
}

impl Shard {
    fn get(&self, at: usize) -> u64 {
        self.pages[at / PAGE_SLOTS][at % PAGE_SLOTS]
    }

    fn set(&mut self, at: usize, slot: u64) {
        self.pages[at / PAGE_SLOTS][at % PAGE_SLOTS] = slot;
    }

    fn push(&mut self, slot: u64) {
        if self.len == self.pages.len() * PAGE_SLOTS {
            self.pages.push(Box::new([0; PAGE_SLOTS]));
        }
        self.set(self.len, slot);
        self.len += 1;
    }

    /// The first slot in order that is not below `wanted`.
    fn lower_bound(&self, wanted: u64) -> usize {
        let (mut low, mut high) = (0, self.sorted);
        while low < high {
            let middle = low.midpoint(high);
            if self.get(middle) < wanted {
                low = middle + 1;
            } else {
                high = middle;
            }
        }
        low
    }

    fn insert(&mut self, wanted: u64, removals: u64, exists: impl Fn(u32) -> bool) {
        let at = self.lower_bound(wanted);
        let is_there = (at < self.sorted && self.get(at) == wanted)
            || (self.sorted..self.len).any(|at| self.get(at) == wanted);
        if is_there {
            return;
        }
        self.push(wanted);
        if self.len - self.sorted >= WAITING {
            self.merge();
            if self.heard != removals {
                self.retain(exists);
                self.heard = removals;
            }
        }
    }

    /// Puts the slots that wait where they belong.
    fn merge(&mut self) {
        let mut waiting: Vec<u64> = (self.sorted..self.len).map(|at| self.get(at)).collect();
        waiting.sort_unstable();
        // From the end: what is overwritten has been moved already.
        let (mut from, mut to) = (self.sorted, self.len);
        while let Some(last) = waiting.last() {
            to -= 1;
            if from > 0 && self.get(from - 1) > *last {
                from -= 1;
                self.set(to, self.get(from));
            } else {
                self.set(to, *last);
                waiting.pop();
            }
        }
        self.sorted = self.len;
    }

    /// Takes these slots, no more than it has, in place of its own.
    fn rewrite(&mut self, slots: &[u64]) {
        for (at, slot) in slots.iter().enumerate() {
            self.set(at, *slot);
        }
        (self.sorted, self.len) = (slots.len(), slots.len());
        self.pages.truncate(slots.len().div_ceil(PAGE_SLOTS));
    }

    /// Forgets packs that are gone.
    fn retain(&mut self, exists: impl Fn(u32) -> bool) {
        let mut kept = 0;
        for at in 0..self.len {
            let slot = self.get(at);
            if exists(pack_of(slot)) {
                self.set(kept, slot);
                kept += 1;
            }
        }
        (self.sorted, self.len) = (kept, kept);
        self.pages.truncate(kept.div_ceil(PAGE_SLOTS));
    }
}

impl Default for Table {
    fn default() -> Table {
        Table {
            shards: vec![Shard::default(); SHARDS],
            removals: 0,
        }
    }
}

impl Table {
    /// Adds a chunk of a pack; twice is once. `exists` says which packs are
    /// still there.
    pub fn insert(&mut self, id: &ChunkId, pack: u32, exists: impl Fn(u32) -> bool) {
        let (shard, print) = parts(id);
        self.shards[shard].insert(slot(print, pack), self.removals, exists);
    }

    /// Adds a chunk of a pack at no cost: nothing is found, and nothing may be
    /// inserted, before [`Table::settle`].
    pub fn add(&mut self, id: &ChunkId, pack: u32) {
        let (shard, print) = parts(id);
        self.shards[shard].push(slot(print, pack));
    }

    /// Puts in order what was added.
    pub fn settle(&mut self) {
        for number in 0..SHARDS {
            if self.shards[number].sorted < self.shards[number].len {
                let mut slots = self.slots(number);
                slots.dedup();
                self.shards[number].rewrite(&slots);
            }
        }
    }

    /// Notes that a pack is gone: bit by bit, its chunks are forgotten.
    pub fn note_removal(&mut self) {
        self.removals += 1;
    }

    /// The packs that may hold a chunk; removed ones may be among them.
    pub fn candidates(&self, id: &ChunkId) -> Vec<u32> {
        let (shard, print) = parts(id);
        let shard = &self.shards[shard];
        let is_wanted = |slot: &u64| slot >> 24 == print;
        let from = shard.lower_bound(slot(print, 0));
        let sorted = (from..shard.sorted).map(|at| shard.get(at));
        let waiting = (shard.sorted..shard.len).map(|at| shard.get(at));
        let found = sorted.take_while(is_wanted);
        found
            .chain(waiting.filter(is_wanted))
            .map(pack_of)
            .collect()
    }

    /// The slots of one shard, in order.
    pub fn slots(&self, shard: usize) -> Vec<u64> {
        let shard = &self.shards[shard];
        let mut slots: Vec<u64> = (0..shard.len).map(|at| shard.get(at)).collect();
        if shard.sorted < shard.len {
            slots.sort_unstable();
        }
        slots
    }

    /// Adds a slot to a shard, behind all that it has: they come in order.
    /// False, and nothing is added, if this one does not.
    pub fn append(&mut self, shard: usize, slot: u64) -> bool {
        let shard = &mut self.shards[shard];
        let in_order =
            shard.sorted == shard.len && (shard.len == 0 || shard.get(shard.len - 1) < slot);
        if in_order {
            shard.push(slot);
            shard.sorted = shard.len;
        }
        in_order
    }

    /// Slots in use.
    pub fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.len).sum()
    }

    /// Bytes that the slots take.
    pub fn bytes(&self) -> usize {
        let pages: usize = self.shards.iter().map(|shard| shard.pages.len()).sum();
        pages * PAGE_SLOTS * size_of::<u64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u64) -> ChunkId {
        ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes())
    }

    #[test]
    fn a_chunk_takes_little_more_than_eight_bytes_and_is_found() {
        let mut table = Table::default();
        let count = 2_000_000;
        for number in 0..count {
            table.insert(&id(number), (number / 1000) as u32, |_| true);
            table.insert(&id(number), (number / 1000) as u32, |_| true);
        }
        assert_eq!(table.len() as u64, count);
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
        table.note_removal();
        // Other chunks come until every shard was merged.
        for number in 2..300_000 {
            table.insert(&id(number), 5, |pack| pack == 5);
        }
        assert_eq!(table.candidates(&id(1)), [5]);
    }

    #[test]
    fn slots_come_out_in_order_and_go_in_again() {
        let mut table = Table::default();
        for number in 0..200_000 {
            table.add(&id(number), (number / 1000) as u32);
            table.add(&id(number), (number / 1000) as u32);
        }
        table.settle();
        assert_eq!(table.len(), 200_000);
        let mut copy = Table::default();
        for shard in 0..SHARDS {
            let slots = table.slots(shard);
            assert!(slots.is_sorted_by(|a, b| a < b));
            assert!(slots.iter().all(|slot| copy.append(shard, *slot)));
            assert!(slots.iter().all(|slot| !copy.append(shard, *slot)));
        }
        assert_eq!(copy.len(), 200_000);
        for number in 0..200_000 {
            assert_eq!(copy.candidates(&id(number)), [(number / 1000) as u32]);
        }
    }
}
