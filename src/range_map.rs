//! Disjoint ranges of positions, each with a value that moves along with
//! its position.

use std::collections::BTreeMap;
use std::ops::Range;

/// A value of a range, which may differ from position to position in a
/// regular way ("the chunk 5 further on in that map").
pub trait Shift: Clone {
    /// The value `by` positions further on in the same range.
    fn shift(&self, by: u64) -> Self;
    /// Whether `next`, the value `len` positions further on, continues this
    /// one, so that both are kept as one range.
    fn joins(&self, len: u64, next: &Self) -> bool;
}

/// Disjoint half-open ranges with values. Touching ranges are one range
/// wherever [`Shift::joins`] allows it. Position `u64::MAX` cannot be held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeMap<V> {
    /// Start → (end, value at the start).
    ranges: BTreeMap<u64, (u64, V)>,
}

impl<V> Default for RangeMap<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V> RangeMap<V> {
    /// A map without ranges.
    pub const fn new() -> Self {
        Self {
            ranges: BTreeMap::new(),
        }
    }

    /// Whether no position has a value.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// How many ranges there are.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Forgets every range.
    pub fn clear(&mut self) {
        self.ranges.clear();
    }

    /// The first range, with the value at its start.
    pub fn first(&self) -> Option<(Range<u64>, &V)> {
        self.iter().next()
    }

    /// The last range, with the value at its start.
    pub fn last(&self) -> Option<(Range<u64>, &V)> {
        self.iter().next_back()
    }

    /// All ranges in order, each with the value at its start.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (Range<u64>, &V)> {
        self.ranges
            .iter()
            .map(|(&start, (end, value))| (start..*end, value))
    }

    /// The first start of a range at or after `pos`.
    pub fn next_start(&self, pos: u64) -> Option<u64> {
        self.ranges.range(pos..).next().map(|(&start, _)| start)
    }

    /// The start of the range that holds `pos`.
    fn holder(&self, pos: u64) -> Option<u64> {
        let (&start, &(end, _)) = self.ranges.range(..=pos).next_back()?;
        (pos < end).then_some(start)
    }
}

impl<V: Shift> RangeMap<V> {
    /// Gives `range` the value `value` at its start, instead of whatever it
    /// had. An empty range changes nothing.
    pub fn insert(&mut self, range: Range<u64>, value: V) {
        if range.is_empty() {
            return;
        }
        self.remove(range.clone());
        let (mut start, mut end, mut value) = (range.start, range.end, value);
        if let Some((&before, (before_end, before_value))) = self.ranges.range(..start).next_back()
            && *before_end == start
            && before_value.joins(start - before, &value)
        {
            value = before_value.clone();
            start = before;
        }
        if let Some((after_end, after_value)) = self.ranges.get(&end)
            && value.joins(end - start, after_value)
        {
            let after = end;
            end = *after_end;
            self.ranges.remove(&after);
        }
        self.ranges.insert(start, (end, value));
    }

    /// Takes the values of `range` away; ranges that reach over its edges
    /// keep what lies outside.
    pub fn remove(&mut self, range: Range<u64>) {
        if range.is_empty() {
            return;
        }
        self.split(range.start);
        self.split(range.end);
        while let Some(start) = self.next_start(range.start)
            && start < range.end
        {
            self.ranges.remove(&start);
        }
    }

    /// Makes `pos` a start if a range reaches over it.
    fn split(&mut self, pos: u64) {
        let Some(start) = self.holder(pos).filter(|&start| start < pos) else {
            return;
        };
        if let Some((end, value)) = self.ranges.get_mut(&start) {
            let rest = (*end, value.shift(pos - start));
            *end = pos;
            self.ranges.insert(pos, rest);
        }
    }

    /// The whole range that holds `pos`, and the value at `pos`.
    pub fn get(&self, pos: u64) -> Option<(Range<u64>, V)> {
        let start = self.holder(pos)?;
        let (end, value) = self.ranges.get(&start)?;
        Some((start..*end, value.shift(pos - start)))
    }

    /// The ranges that meet `range`, in order and clipped to it, each with
    /// the value at its clipped start.
    pub fn iter_range(&self, range: Range<u64>) -> impl Iterator<Item = (Range<u64>, V)> {
        let Range {
            start: low,
            end: high,
        } = range;
        self.ranges
            .range(self.holder(low).unwrap_or(low)..)
            .take_while(move |&(&start, _)| start < high && low < high)
            .map(move |(&start, (end, value))| {
                let clipped = start.max(low)..high.min(*end);
                let value = value.shift(clipped.start - start);
                (clipped, value)
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A graft as a layer has it: whose chunks, and from which on.
    #[derive(Clone, Debug, PartialEq, Eq)]
    struct Source {
        of: u8,
        at: u64,
    }

    impl Shift for Source {
        fn shift(&self, by: u64) -> Self {
            Source {
                of: self.of,
                at: self.at + by,
            }
        }
        fn joins(&self, len: u64, next: &Self) -> bool {
            self.shift(len) == *next
        }
    }

    fn source(of: u8, at: u64) -> Source {
        Source { of, at }
    }

    #[test]
    fn a_range_in_the_middle_splits_and_a_fitting_one_joins() {
        let mut map = RangeMap::new();
        map.insert(10..20, source(1, 100));
        map.insert(13..15, source(2, 0));
        assert_eq!(map.len(), 3);
        assert_eq!(map.get(16), Some((15..20, source(1, 106))));
        map.insert(13..15, source(1, 103));
        assert_eq!(map.len(), 1);
        assert_eq!(map.first(), Some((10..20, &source(1, 100))));
        assert_eq!(map.next_start(11), None);
        map.remove(12..14);
        assert_eq!(map.next_start(11), Some(14));
        assert_eq!(map.last(), Some((14..20, &source(1, 104))));
        map.clear();
        assert!(map.is_empty());
    }

    const END: u64 = 64;

    /// Two edges of a range, and whose chunks with which skew (None: removed).
    type Change = (u64, u64, Option<(u8, u64)>);

    fn changes() -> impl Strategy<Value = Vec<Change>> {
        let value = proptest::option::of((0u8..2, 0u64..2));
        proptest::collection::vec((0..=END, 0..=END, value), 0..40)
    }

    proptest! {
        /// Whatever the order of inserts and removals, every position has
        /// the value last given to it, and no two ranges could be one.
        #[test]
        fn it_agrees_with_an_array(changes in changes(), from in 0..=END, to in 0..=END) {
            let mut map = RangeMap::new();
            let mut model: Vec<Option<Source>> = vec![None; END as usize];
            for (a, b, value) in changes {
                let range = a.min(b)..a.max(b);
                match value {
                    // Values that follow the position join often.
                    Some((of, skew)) => {
                        let at = |pos: u64| source(of, 1000 * skew + pos);
                        map.insert(range.clone(), at(range.start));
                        range.for_each(|pos| model[pos as usize] = Some(at(pos)));
                    }
                    None => {
                        map.remove(range.clone());
                        range.for_each(|pos| model[pos as usize] = None);
                    }
                }
            }
            for pos in 0..END {
                prop_assert_eq!(map.get(pos).map(|(_, v)| v), model[pos as usize].clone());
                let start = (pos..END).find(|&p| {
                    let here = model[p as usize].as_ref();
                    let before = p.checked_sub(1).and_then(|p| model[p as usize].as_ref());
                    here.is_some_and(|h| !before.is_some_and(|b| b.joins(1, h)))
                });
                prop_assert_eq!(map.next_start(pos), start);
            }
            let mut pieces = vec![None; END as usize];
            let mut last_end = 0;
            for (piece, value) in map.iter_range(from..to) {
                prop_assert!(piece.start >= from.max(last_end) && piece.end <= to);
                last_end = piece.end;
                for pos in piece.clone() {
                    pieces[pos as usize] = Some(value.shift(pos - piece.start));
                }
            }
            for pos in 0..END {
                let inside = (from..to).contains(&pos);
                let expected = if inside { model[pos as usize].clone() } else { None };
                prop_assert_eq!(&pieces[pos as usize], &expected);
            }
            let whole: Vec<_> = map.iter().collect();
            for pair in whole.windows(2) {
                let ((a, v), (b, w)) = (&pair[0], &pair[1]);
                prop_assert!(a.end < b.start || a.end == b.start && !v.joins(a.end - a.start, w));
            }
        }
    }
}
