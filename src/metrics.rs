//! What a store counts while it is open, for monitoring.

use crate::manifest::SnapshotKind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the histograms' buckets, in microseconds; one without a
/// bound follows.
pub const BOUNDS_US: [u64; 11] = [
    10, 40, 160, 640, 2_560, 10_240, 40_960, 163_840, 655_360, 2_621_440, 10_485_760,
];

/// One kind of operation. All of it is counted since the store was opened.
#[derive(Debug, Default)]
pub struct Operation {
    buckets: [AtomicU64; BOUNDS_US.len() + 1],
    nanoseconds: AtomicU64,
    bytes: AtomicU64,
}

impl Operation {
    /// Counts one that took so long and moved so many bytes.
    pub fn observe(&self, took: Duration, bytes: u64) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let bucket = BOUNDS_US.partition_point(|bound| *bound < us);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(ns, Ordering::Relaxed);
        if bytes > 0 {
            self.bytes.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// How many there were in each bucket.
    pub fn counts(&self) -> [u64; BOUNDS_US.len() + 1] {
        std::array::from_fn(|at| self.buckets[at].load(Ordering::Relaxed))
    }

    /// Seconds that all of them took together.
    pub fn seconds(&self) -> f64 {
        self.nanoseconds.load(Ordering::Relaxed) as f64 / 1e9
    }

    /// Bytes that they moved.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
}

/// All that is counted.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Reads through the mount.
    pub reads: Operation,
    /// Writes through the mount.
    pub writes: Operation,
    /// Syncs through the mount.
    pub syncs: Operation,
    /// Snapshots taken through the mount.
    pub snapshots: Operation,
    taken: [AtomicU64; 3],
    /// Requests that were answered with EIO.
    pub errors: AtomicU64,
    /// Requests that were refused.
    pub refusals: AtomicU64,
    /// Slots of policies that passed without a snapshot, but for those in
    /// which nothing had changed.
    pub missed: AtomicU64,
    /// Bytes that were won back.
    pub freed_bytes: AtomicU64,
    /// Bytes that recompression won.
    pub recompressed_bytes: AtomicU64,
}

impl Metrics {
    /// Reads, writes, syncs and snapshots through the mount so far.
    pub fn requests(&self) -> u64 {
        let operations = [&self.reads, &self.writes, &self.syncs, &self.snapshots];
        let counts = operations.map(|operation| operation.counts().iter().sum::<u64>());
        counts.iter().sum()
    }

    /// Counts a snapshot.
    pub fn taken(&self, kind: SnapshotKind) {
        self.taken[kind as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Snapshots of a kind that were taken.
    pub fn count_taken(&self, kind: SnapshotKind) -> u64 {
        self.taken[kind as usize].load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A bound belongs to its bucket, as Prometheus' `le` has it.
    #[test]
    fn durations_fall_into_their_buckets() {
        let operation = Operation::default();
        for us in [0, 10, 11, 40, 20_000_000] {
            operation.observe(Duration::from_micros(us), 512);
        }
        let counts = operation.counts();
        assert_eq!((counts[0], counts[1], counts[11]), (2, 2, 1));
        assert_eq!(operation.bytes(), 5 * 512);
    }
}
