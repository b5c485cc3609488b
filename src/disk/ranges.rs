//! Locks on ranges of a disk's blocks.
//!
//! Two writes of one block that overlap in time, one of them completing the
//! block from below, would lose what the other wrote: A reads the rest of
//! the block, B writes the block and returns, A writes the block with the
//! rest as it was. So everything that changes blocks holds their range,
//! whichever layer it changes: a writer that is still in a frozen layer and
//! one that is in the new head meet here too.

use parking_lot::{Condvar, Mutex};
use std::ops::Range;

/// The ranges that are held. Lock order: before entering a layer.
#[derive(Default)]
pub struct RangeLocks {
    /// A leaf.
    held: Mutex<Vec<Range<u64>>>,
    released: Condvar,
}

/// A held range; released when dropped.
pub struct RangeGuard<'a> {
    locks: &'a RangeLocks,
    range: Range<u64>,
}

impl RangeLocks {
    fn is_free(held: &[Range<u64>], range: &Range<u64>) -> bool {
        !held
            .iter()
            .any(|other| other.start < range.end && range.start < other.end)
    }

    /// Takes a range if nobody holds any of it.
    pub fn try_lock(&self, range: Range<u64>) -> Option<RangeGuard<'_>> {
        let mut held = self.held.lock();
        Self::is_free(&held, &range).then(|| {
            held.push(range.clone());
            RangeGuard { locks: self, range }
        })
    }

    /// Waits until nobody holds any of a range, and takes it.
    pub fn lock(&self, range: Range<u64>) -> RangeGuard<'_> {
        let mut held = self.held.lock();
        while !Self::is_free(&held, &range) {
            self.released.wait(&mut held);
        }
        held.push(range.clone());
        RangeGuard { locks: self, range }
    }
}

impl Drop for RangeGuard<'_> {
    fn drop(&mut self) {
        let mut held = self.locks.held.lock();
        if let Some(index) = held.iter().position(|range| *range == self.range) {
            held.swap_remove(index);
        }
        drop(held);
        self.locks.released.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Overlapping ranges exclude each other, touching ones do not.
    #[test]
    fn only_overlaps_exclude() {
        let locks = RangeLocks::default();
        let first = locks.try_lock(10..20).expect("nothing is held");
        assert!(locks.try_lock(19..21).is_none());
        assert!(locks.try_lock(0..100).is_none());
        let second = locks.try_lock(20..30).expect("it only touches");
        drop(first);
        assert!(locks.try_lock(0..20).is_some());
        drop(second);
        assert!(locks.try_lock(0..100).is_some());
    }
}
