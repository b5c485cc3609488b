//! Keeps `rm -rf`, `find -delete` and their like from destroying a
//! snapshot.
//!
//! Such a program goes through the tree from below: it unlinks what is in a
//! directory, then removes the directory. The unlinking in a snapshot is
//! refused, but many go on regardless, and the `rmdir` that follows means
//! "delete this snapshot" here. A person's `rmdir` comes without the
//! unlinking. So a process that has just tried to unlink in a snapshot is
//! told that the snapshot's directory is not empty.

use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

/// How long an attempt to unlink is remembered.
pub const REMEMBERED: Duration = Duration::from_secs(10);

/// A process, a disk's number and the number of one of its snapshots.
pub type Attempted = (u32, u32, u32);

/// Who tried to unlink in which snapshot, lately.
#[derive(Default)]
pub struct Guard {
    /// A leaf.
    attempts: Mutex<HashMap<Attempted, Instant>>,
}

impl Guard {
    /// Remembers an attempt to unlink.
    pub fn note(&self, attempt: Attempted, now: Instant) {
        let mut attempts = self.attempts.lock();
        attempts.retain(|_, then| now.saturating_duration_since(*then) < REMEMBERED);
        attempts.insert(attempt, now);
    }

    /// Whether the process tried to unlink in that snapshot lately.
    pub fn has(&self, attempt: Attempted, now: Instant) -> bool {
        let attempts = self.attempts.lock();
        attempts
            .get(&attempt)
            .is_some_and(|then| now.saturating_duration_since(*then) < REMEMBERED)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_attempt_counts_for_its_process_and_snapshot_and_for_ten_seconds() {
        let guard = Guard::default();
        let start = Instant::now();
        guard.note((7, 1, 2), start);
        assert!(guard.has((7, 1, 2), start));
        assert!(guard.has((7, 1, 2), start + REMEMBERED - Duration::from_millis(1)));
        assert!(!guard.has((7, 1, 2), start + REMEMBERED));
        assert!(!guard.has((8, 1, 2), start), "another process");
        assert!(!guard.has((7, 1, 3), start), "another snapshot");
    }

    #[test]
    fn old_attempts_take_no_memory() {
        let guard = Guard::default();
        let start = Instant::now();
        for snapshot in 0..100 {
            guard.note((7, 1, snapshot), start);
        }
        guard.note((7, 1, 200), start + REMEMBERED);
        assert_eq!(guard.attempts.lock().len(), 1);
    }
}
