//! What a layer knows of each block: nothing, its data, or that it is zero.
//!
//! Blocks stand in pages of 1024. A page whose blocks are all in one state
//! is part of a run in a range map, so that discarding a terabyte is one
//! entry; any other page has two bits a block.

use crate::range_map::{RangeMap, Shift};
use std::collections::BTreeMap;
use std::ops::Range;

/// Blocks in a page of the map.
const PAGE: u64 = 1024;
const WORDS: usize = (PAGE / 64) as usize;

/// What a layer knows of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BlockState {
    /// Nothing: what lies below shows through.
    Absent,
    /// The block's bytes are in the layer's segments.
    Data,
    /// The block is zero.
    Zero,
}

impl Shift for BlockState {
    fn shift(&self, _: u64) -> Self {
        *self
    }
    fn joins(&self, _: u64, next: &Self) -> bool {
        self == next
    }
}

/// A page with more than one state: at most one of the two bits is set.
struct Mixed {
    data: [u64; WORDS],
    zero: [u64; WORDS],
}

impl Mixed {
    fn filled(state: BlockState) -> Box<Mixed> {
        let all = |wanted| if state == wanted { u64::MAX } else { 0 };
        Box::new(Mixed {
            data: [all(BlockState::Data); WORDS],
            zero: [all(BlockState::Zero); WORDS],
        })
    }

    fn state(&self, index: u64) -> BlockState {
        let (word, bit) = ((index / 64) as usize, 1u64 << (index % 64));
        if self.data[word] & bit != 0 {
            BlockState::Data
        } else if self.zero[word] & bit != 0 {
            BlockState::Zero
        } else {
            BlockState::Absent
        }
    }

    fn set(&mut self, range: Range<u64>, state: BlockState) {
        let mut at = range.start;
        while at < range.end {
            let word = (at / 64) as usize;
            let stop = range.end.min((at / 64 + 1) * 64);
            let mask = mask(at % 64, stop - at);
            self.data[word] &= !mask;
            self.zero[word] &= !mask;
            match state {
                BlockState::Data => self.data[word] |= mask,
                BlockState::Zero => self.zero[word] |= mask,
                BlockState::Absent => {}
            }
            at = stop;
        }
    }

    /// The end of the run of equal states that begins at `index`.
    fn run_end(&self, index: u64, state: BlockState) -> u64 {
        let mut at = index;
        while at < PAGE {
            let word = (at / 64) as usize;
            let same = match state {
                BlockState::Data => self.data[word],
                BlockState::Zero => self.zero[word],
                BlockState::Absent => !(self.data[word] | self.zero[word]),
            };
            let others = !same & (u64::MAX << (at % 64));
            if others != 0 {
                return (word as u64) * 64 + u64::from(others.trailing_zeros());
            }
            at = (word as u64 + 1) * 64;
        }
        PAGE
    }

    fn count(&self) -> u64 {
        self.data.iter().map(|w| u64::from(w.count_ones())).sum()
    }
}

fn mask(first: u64, len: u64) -> u64 {
    if len == 64 {
        u64::MAX
    } else {
        ((1u64 << len) - 1) << first
    }
}

/// The states of all blocks of a layer.
#[derive(Default)]
pub struct Presence {
    /// Runs of whole pages in one state, by page number; absent ones are
    /// not in it.
    uniform: RangeMap<BlockState>,
    /// Pages in more than one state; never also in `uniform`.
    mixed: BTreeMap<u64, Box<Mixed>>,
    data_blocks: u64,
}

impl Presence {
    /// Blocks that the layer has the bytes of.
    pub fn data_blocks(&self) -> u64 {
        self.data_blocks
    }

    /// Whether nothing is known of any block.
    pub fn is_empty(&self) -> bool {
        self.uniform.is_empty() && self.mixed.is_empty()
    }

    /// What is known of one block.
    pub fn state(&self, block: u64) -> BlockState {
        self.run(block, block + 1).0
    }

    /// The state of `block` and the end, at most `limit`, of the run of
    /// blocks in that state that begins there. The run may go on after that
    /// end.
    pub fn run(&self, block: u64, limit: u64) -> (BlockState, u64) {
        let page = block / PAGE;
        if let Some(mixed) = self.mixed.get(&page) {
            let state = mixed.state(block % PAGE);
            let end = page * PAGE + mixed.run_end(block % PAGE, state);
            return (state, end.min(limit));
        }
        if let Some((pages, state)) = self.uniform.get(page) {
            return (state, pages.end.saturating_mul(PAGE).min(limit));
        }
        let next_uniform = self.uniform.next_start(page).unwrap_or(u64::MAX);
        let next_mixed = self
            .mixed
            .range(page..)
            .next()
            .map_or(u64::MAX, |(p, _)| *p);
        let end = next_uniform.min(next_mixed);
        (BlockState::Absent, end.saturating_mul(PAGE).min(limit))
    }

    /// Whether all of a range is in one state.
    pub fn all(&self, range: Range<u64>, wanted: BlockState) -> bool {
        let mut at = range.start;
        while at < range.end {
            let (state, end) = self.run(at, range.end);
            if state != wanted {
                return false;
            }
            at = end;
        }
        true
    }

    /// Sets a range of blocks.
    pub fn set(&mut self, range: Range<u64>, state: BlockState) {
        if range.is_empty() {
            return;
        }
        let first_whole = range.start.div_ceil(PAGE);
        let last_whole = range.end / PAGE;
        if first_whole < last_whole {
            self.set_in_page(range.start..(first_whole * PAGE).min(range.end), state);
            self.set_pages(first_whole..last_whole, state);
            self.set_in_page(last_whole * PAGE..range.end, state);
        } else {
            let split = (range.start / PAGE + 1).saturating_mul(PAGE).min(range.end);
            self.set_in_page(range.start..split, state);
            self.set_in_page(split..range.end, state);
        }
    }

    fn set_pages(&mut self, pages: Range<u64>, state: BlockState) {
        for (run, old) in self.uniform.iter_range(pages.clone()) {
            if old == BlockState::Data {
                self.data_blocks -= (run.end - run.start) * PAGE;
            }
        }
        while let Some((&page, mixed)) = self.mixed.range(pages.clone()).next() {
            self.data_blocks -= mixed.count();
            self.mixed.remove(&page);
        }
        match state {
            BlockState::Absent => self.uniform.remove(pages),
            _ => {
                if state == BlockState::Data {
                    self.data_blocks += (pages.end - pages.start) * PAGE;
                }
                self.uniform.insert(pages, state);
            }
        }
    }

    /// Sets blocks of one page.
    fn set_in_page(&mut self, range: Range<u64>, state: BlockState) {
        if range.is_empty() {
            return;
        }
        let page = range.start / PAGE;
        let inside = range.start % PAGE..range.start % PAGE + (range.end - range.start);
        let mixed = match self.mixed.get_mut(&page) {
            Some(mixed) => mixed,
            None => {
                let was = self
                    .uniform
                    .get(page)
                    .map_or(BlockState::Absent, |(_, state)| state);
                if was == state {
                    return;
                }
                self.uniform.remove(page..page + 1);
                self.mixed.entry(page).or_insert_with(|| Mixed::filled(was))
            }
        };
        let before = mixed.count();
        mixed.set(inside, state);
        let after = mixed.count();
        let whole = mixed.state(0) == state && mixed.run_end(0, state) == PAGE;
        self.data_blocks = self.data_blocks - before + after;
        if whole {
            self.mixed.remove(&page);
            if state != BlockState::Absent {
                self.uniform.insert(page..page + 1, state);
            }
        }
    }

    /// Ranges of whole `unit`-block units (chunks) in which anything is
    /// known, in order and disjoint, each with the state if all of it is in
    /// one.
    pub fn touched(&self, unit: u64) -> Vec<(Range<u64>, Option<BlockState>)> {
        let mut pages: Vec<(Range<u64>, Option<BlockState>)> = self
            .uniform
            .iter_range(0..u64::MAX)
            .map(|(run, state)| (run, Some(state)))
            .chain(self.mixed.keys().map(|page| (*page..*page + 1, None)))
            .collect();
        pages.sort_unstable_by_key(|(run, _)| run.start);
        let mut units: Vec<(Range<u64>, Option<BlockState>)> = Vec::new();
        let mut push = |range: Range<u64>, state| match units.last_mut() {
            Some((last, known)) if last.end == range.start && *known == state => {
                last.end = range.end;
            }
            _ => units.push((range, state)),
        };
        for (run, state) in pages {
            let blocks = run.start * PAGE..run.end.saturating_mul(PAGE);
            // A page is a whole number of units: both are powers of two and
            // a unit (at most 1 MiB) is smaller than a page (4 MiB).
            let all = blocks.start / unit..blocks.end / unit;
            if state.is_some() {
                push(all, state);
                continue;
            }
            for index in all {
                let of_unit = index * unit..(index + 1) * unit;
                let (first, end) = self.run(of_unit.start, of_unit.end);
                if end < of_unit.end {
                    push(index..index + 1, None);
                } else if first != BlockState::Absent {
                    push(index..index + 1, Some(first));
                }
            }
        }
        units
    }

    /// Every known run, in order: for writing the whole map down.
    pub fn runs(&self) -> Vec<(Range<u64>, BlockState)> {
        let mut runs = Vec::new();
        for (units, _) in self.touched(PAGE) {
            let range = units.start * PAGE..units.end.saturating_mul(PAGE);
            let mut at = range.start;
            while at < range.end {
                let (state, end) = self.run(at, range.end);
                if state != BlockState::Absent {
                    runs.push((at..end, state));
                }
                at = end;
            }
        }
        runs
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn state() -> impl Strategy<Value = BlockState> {
        prop_oneof![
            Just(BlockState::Absent),
            Just(BlockState::Data),
            Just(BlockState::Zero)
        ]
    }

    proptest! {
        /// Any history of sets leaves the same states, counts and runs as
        /// the same history on a plain array.
        #[test]
        fn agrees_with_an_array(
            sets in prop::collection::vec((0u64..6000, 1u64..4000, state()), 1..60)
        ) {
            let mut presence = Presence::default();
            let mut array = vec![BlockState::Absent; 10_240];
            for (start, len, state) in sets {
                presence.set(start..start + len, state);
                array[start as usize..(start + len) as usize].fill(state);
                for block in [start, start + len - 1, start + len, start.saturating_sub(1)] {
                    prop_assert_eq!(presence.state(block), array[block as usize]);
                }
            }
            let data = array.iter().filter(|s| **s == BlockState::Data).count();
            prop_assert_eq!(presence.data_blocks(), data as u64);
            let mut at = 0;
            while at < array.len() as u64 {
                let (state, end) = presence.run(at, array.len() as u64);
                prop_assert!(end > at);
                for block in at..end {
                    prop_assert_eq!(array[block as usize], state);
                }
                at = end;
            }
            let mut rebuilt = vec![BlockState::Absent; array.len()];
            for (range, state) in presence.runs() {
                rebuilt[range.start as usize..range.end as usize].fill(state);
            }
            prop_assert!(rebuilt == array);
            let mut units = vec![false; array.len() / 16];
            for (range, state) in presence.touched(16) {
                for unit in range {
                    units[unit as usize] = true;
                    let blocks = &array[unit as usize * 16..(unit as usize + 1) * 16];
                    match state {
                        Some(state) => prop_assert!(blocks.iter().all(|b| *b == state)),
                        None => prop_assert!(blocks.iter().any(|b| *b != blocks[0])),
                    }
                }
            }
            for (unit, touched) in units.iter().enumerate() {
                let blocks = &array[unit * 16..(unit + 1) * 16];
                prop_assert_eq!(*touched, blocks.iter().any(|b| *b != BlockState::Absent));
            }
        }
    }

    /// Discarding a terabyte costs one entry.
    #[test]
    fn a_terabyte_of_zeros_is_one_run() {
        let mut presence = Presence::default();
        presence.set(0..1 << 28, BlockState::Zero);
        assert_eq!(presence.run(77, u64::MAX), (BlockState::Zero, 1 << 28));
        assert_eq!(presence.uniform.len(), 1);
        assert_eq!(presence.mixed.len(), 0);
    }
}
