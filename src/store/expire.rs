//! Deleting snapshots whose date has come.

use super::*;
use std::time::{Duration, Instant};

/// A wall clock that is this much ahead of the time that has passed was set,
/// and nobody knows which of the two was wrong.
const JUMP: Duration = Duration::from_secs(48 * 3600);
/// How long nothing is deleted then.
const AFTER_JUMP: Duration = Duration::from_secs(24 * 3600);
/// The wall clock is looked at this often, as it may be set.
const LOOK: Duration = Duration::from_secs(3600);

/// The wall clock beside one that cannot be set.
pub(super) struct Clocks {
    wall_ns: i64,
    at: Instant,
    quiet_until: Option<Instant>,
}

impl Clocks {
    pub(super) fn new(wall_ns: i64, at: Instant) -> Clocks {
        Clocks {
            wall_ns,
            at,
            quiet_until: None,
        }
    }

    /// Takes in what both say now; whether what the wall clock says is
    /// reason enough to delete something (invariant 10).
    pub(super) fn trusted(&mut self, wall_ns: i64, at: Instant) -> bool {
        let passed = at.saturating_duration_since(self.at);
        let shown = wall_ns.saturating_sub(self.wall_ns);
        let ahead = i128::from(shown) - passed.as_nanos() as i128;
        (self.wall_ns, self.at) = (wall_ns, at);
        if ahead > JUMP.as_nanos() as i128 {
            tracing::warn!(
                "the clock went forward by {} hours in {} s: nothing is deleted for a day",
                shown / 3_600_000_000_000,
                passed.as_secs()
            );
            self.quiet_until = Some(at + AFTER_JUMP);
        }
        self.quiet_until.is_none_or(|until| at >= until)
    }
}

impl Store {
    /// Deletes snapshots whose date has come and that nothing holds; answers
    /// how long nothing need be done.
    pub(super) fn expire(&self, clocks: &mut Clocks) -> Duration {
        let now = time::now_ns();
        let trusted = clocks.trusted(now, Instant::now());
        let mut next = LOOK;
        for disk in self.all_disks() {
            for snapshot in disk.list_snapshots() {
                let Some(at) = snapshot.notes().expires_ns else {
                    continue;
                };
                if at > now {
                    let left = Duration::from_nanos(at.saturating_sub(now).unsigned_abs());
                    next = next.min(left);
                } else if trusted {
                    expire_one(&disk, &snapshot, now);
                }
            }
        }
        next
    }
}

fn expire_one(disk: &Arc<Disk>, snapshot: &Snapshot, now: i64) {
    let name = snapshot.name();
    // It may have been renamed, or given another date, meanwhile.
    let deleted = disk.delete_snapshot_if(&name, &|found| {
        found.number() == snapshot.number() && found.notes().expires_ns.is_some_and(|at| at <= now)
    });
    match deleted {
        Ok(true) => tracing::info!("{}@{name} is deleted: its date had come", disk.name()),
        Ok(false) | Err(Error::Missing { .. } | Error::Closing) => {}
        Err(error) => tracing::info!("{}@{name} should have been deleted: {error}", disk.name()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: i64 = 3_600_000_000_000;

    /// Invariant 10: a clock that jumps deletes nothing for a day.
    #[test]
    fn a_clock_that_was_set_forward_is_not_trusted_for_a_day() {
        let start = Instant::now();
        let hours = |hours: u64| start + Duration::from_secs(hours * 3600);
        let mut clocks = Clocks::new(0, start);
        assert!(clocks.trusted(HOUR, hours(1)));
        // Forward by a day: that may be a mistake that was mended.
        assert!(clocks.trusted(26 * HOUR, hours(2)));
        // By 49 hours more than have passed.
        assert!(!clocks.trusted(76 * HOUR, hours(3)));
        assert!(!clocks.trusted(98 * HOUR, hours(26)));
        assert!(clocks.trusted(100 * HOUR, hours(28)));
        // Backwards nothing comes due.
        assert!(clocks.trusted(-1000 * HOUR, hours(29)));
        assert!(!clocks.trusted(100 * HOUR, hours(30)));
    }
}
