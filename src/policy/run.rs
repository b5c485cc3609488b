//! The worker that takes and deletes what policies and dates want.
//!
//! It sleeps until the next slot or date, and is woken when the clock is set.

use super::{Action, Decision, Facts, Known, Planned, decide, ended};
use crate::disk::{Disk, Taking};
use crate::error::{Error, Result};
use crate::events::{By, Event, What};
use crate::manifest::SnapshotKind;
use crate::store::{InForce, Store};
use crate::time;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// A wall clock that is this much ahead of the time that has passed was set,
/// and nobody knows which of the two was wrong.
const JUMP: Duration = Duration::from_secs(48 * 3600);
/// How long nothing is deleted then.
const AFTER_JUMP: Duration = Duration::from_secs(24 * 3600);
/// What is due and cannot be done yet is tried again this often.
pub(crate) const LOOK: Duration = Duration::from_secs(60);
/// The longest sleep: the clock that it is measured with goes at another pace
/// than the wall clock while that is being corrected, by half a thousandth at
/// most.
const SLEEP_MAX: Duration = Duration::from_secs(3600);
/// Missed slots that are told one by one; of more, the first and the last.
const MISSED_TOLD: usize = 3;

/// Until when nothing is deleted, by a clock that was at `seen_ns` when the
/// store was last seen (0: never) and is at `now_ns`; None if that is no jump.
pub(crate) fn quiet_until(seen_ns: i64, now_ns: i64) -> Option<i64> {
    let jumped = seen_ns != 0 && is_jump(i128::from(now_ns) - i128::from(seen_ns));
    jumped.then(|| quiet_from(now_ns))
}

/// Whether a clock that is so much ahead of the time that passed was set.
pub(crate) fn is_jump(ahead_ns: i128) -> bool {
    ahead_ns > JUMP.as_nanos() as i128
}

/// When a day of quiet that begins now ends.
pub(crate) fn quiet_from(now_ns: i64) -> i64 {
    now_ns.saturating_add(AFTER_JUMP.as_nanos() as i64)
}

/// The wall clock beside one that cannot be set.
pub struct Clocks {
    wall_ns: i64,
    at: Instant,
    quiet_until: Option<Instant>,
    /// A jump that nobody was told of yet, in hours.
    jump: Option<i64>,
}

impl Clocks {
    /// Both now, what the wall clock said when the store was last seen (0:
    /// never), and until when an earlier run wanted nothing deleted.
    pub fn new(seen_ns: i64, quiet_ns: i64, wall_ns: i64, at: Instant) -> Clocks {
        let mut clocks = Clocks {
            wall_ns,
            at,
            quiet_until: None,
            jump: None,
        };
        if seen_ns != 0 {
            // Nobody knows what passed in between: none, for all we know.
            clocks.wall_ns = seen_ns;
            clocks.trusted(wall_ns, at);
        }
        // One that is further away is of a clock that was set back since.
        let left =
            Duration::from_nanos(u64::try_from(quiet_ns.saturating_sub(wall_ns)).unwrap_or(0));
        if clocks.quiet_until.is_none() && left <= AFTER_JUMP {
            clocks.quiet_until = Some(at + left);
        }
        clocks
    }

    /// Takes in what both say now; whether what the wall clock says is
    /// reason enough to delete something (invariant 10).
    pub fn trusted(&mut self, wall_ns: i64, at: Instant) -> bool {
        let passed = at.saturating_duration_since(self.at);
        let shown = wall_ns.saturating_sub(self.wall_ns);
        let ahead = i128::from(shown) - passed.as_nanos() as i128;
        (self.wall_ns, self.at) = (wall_ns, at);
        if is_jump(ahead) {
            self.jump = Some((ahead / 3_600_000_000_000) as i64);
            self.quiet_until = Some(at + AFTER_JUMP);
        }
        self.quiet_until.is_none_or(|until| at >= until)
    }
}

impl Store {
    /// Does what is due by now; answers how long nothing need be done.
    pub(crate) fn look_after(&self, clocks: &mut Clocks) -> Duration {
        let now = time::now_ns();
        let trusted = clocks.trusted(now, Instant::now());
        if let Some(hours) = clocks.jump.take() {
            let reason = format!(
                "the clock is {hours} hours ahead of when the store was last seen: nothing is \
                 deleted for a day"
            );
            tracing::warn!("{reason}");
            if let Err(error) = self.note_quiet(quiet_from(now)) {
                tracing::warn!("noting that the clock was set: {error}");
            }
            self.events()
                .note(Event::new(What::ClockJump).reason(reason));
        }
        self.look_at_space();
        // While nothing is deleted there is something to come back for.
        let mut next = if trusted { SLEEP_MAX } else { LOOK };
        let mut wake_at = |at: Option<i64>| {
            if let Some(at) = at {
                let left = at.saturating_sub(time::now_ns()).max(0);
                next = next.min(Duration::from_nanos(left.unsigned_abs()));
            }
        };
        for disk in self.all_disks() {
            if let Some(in_force) = self.policy_of(&disk) {
                wake_at(self.serve_policy(&disk, &in_force, now));
            }
            if trusted && self.delete_ended(&disk, now) {
                wake_at(Some(now.saturating_add(LOOK.as_nanos() as i64)));
            }
            let dates = disk.list_snapshots().into_iter();
            let dates = dates.filter_map(|snapshot| snapshot.notes().expires_ns);
            wake_at(dates.filter(|at| *at > now).min());
        }
        next.max(Duration::from_millis(1))
    }

    /// What a plan has to know of a disk's snapshots.
    pub(crate) fn known_snapshots(disk: &Disk) -> Vec<Known> {
        let known = |snapshot: Arc<crate::snapshot::Snapshot>| {
            let kind = snapshot.kind();
            Known {
                name: snapshot.name(),
                automatic: kind == SnapshotKind::Automatic,
                manual: kind == SnapshotKind::Manual,
                expires_ns: snapshot.notes().expires_ns,
                held: !disk.held_by(&snapshot).is_empty(),
                sealing: snapshot.is_being_sealed(),
            }
        };
        disk.list_snapshots().into_iter().map(known).collect()
    }

    /// What a disk's policy is going to do up to an instant.
    pub(crate) fn plan_of(
        &self,
        disk: &Disk,
        policy: &super::Policy,
        since_ns: i64,
        until_ns: i64,
    ) -> Vec<Planned> {
        let snapshots = Store::known_snapshots(disk);
        let facts = Facts {
            policy,
            since_ns,
            slot_ns: disk.slot_ns(),
            snapshots: &snapshots,
            unchanged: false,
            unable: (!disk.image_writable()).then(|| "the disk has no disk.img".to_owned()),
            settings: self.settings(),
            now_ns: time::now_ns(),
        };
        super::plan(&facts, until_ns)
    }

    /// Does what a disk's policy wants now; answers when it wants more.
    fn serve_policy(&self, disk: &Arc<Disk>, in_force: &InForce, now_ns: i64) -> Option<i64> {
        let policy = match &in_force.policy {
            Ok(policy) => policy,
            // The status tells of it.
            Err(_) => return None,
        };
        let snapshots = Store::known_snapshots(disk);
        let unable = match (disk.poisoned(), disk.image_writable()) {
            (Some(cause), _) => Some(format!("the disk answers errors: {cause}")),
            (_, false) => Some("the disk has no disk.img".to_owned()),
            _ => None,
        };
        let decision = decide(&Facts {
            policy,
            since_ns: in_force.since_ns,
            slot_ns: disk.slot_ns(),
            snapshots: &snapshots,
            unchanged: disk.is_unchanged(),
            unable,
            settings: self.settings(),
            now_ns,
        });
        let (slot_ns, action, missed) = match decision {
            Decision::Wait(next) => return next,
            Decision::Restart => {
                if let Err(error) = self.restart_policy(disk, now_ns) {
                    tracing::error!("the policy of {}: {error}", disk.name());
                }
                return policy.next_slot(now_ns);
            }
            Decision::Slot {
                slot_ns,
                action,
                missed,
            } => (slot_ns, action, missed),
        };
        self.tell_missed(disk, in_force, &missed);
        let event = |what: What| {
            Event::new(what)
                .disk(disk.name())
                .policy(in_force.label())
                .slot(time::rfc3339(slot_ns))
        };
        let miss = |reason: String| {
            tracing::warn!("disk {}: no snapshot by its policy: {reason}", disk.name());
            self.metrics().missed.fetch_add(1, Ordering::Relaxed);
            self.events().note(event(What::Missed).reason(reason));
        };
        let outcome = match action {
            Action::Take {
                name,
                expires_ns,
                make_room,
            } => self.take_automatic(disk, in_force, slot_ns, &name, expires_ns, &make_room),
            Action::Unchanged => {
                self.events().note(event(What::Unchanged));
                disk.set_slot(slot_ns)
            }
            Action::Skip(reason) => {
                miss(reason);
                disk.set_slot(slot_ns)
            }
        };
        if let Err(error) = outcome
            && !matches!(error, Error::Closing)
        {
            miss(error.to_string());
            if let Err(error) = disk.set_slot(slot_ns) {
                tracing::error!("disk {}: noting a slot: {error}", disk.name());
            }
        }
        // Soon again: noting the slot may have failed.
        let soon = now_ns.saturating_add(LOOK.as_nanos() as i64);
        let next = policy.next_slot(slot_ns.max(now_ns));
        Some(next.map_or(soon, |next| next.min(soon)))
    }

    /// A clock that was far ahead was set back: slots begin with now.
    fn restart_policy(&self, disk: &Arc<Disk>, now_ns: i64) -> Result<()> {
        use crate::manifest::PolicyUse;
        if let Some(PolicyUse::Named { policy, .. }) = disk.policy()
            && let Some(record) = self.policies().into_iter().find(|one| one.id == policy)
        {
            self.set_policy_attributes(record.number, &|text| {
                text.modified_ns = text.modified_ns.min(now_ns);
            })?;
        }
        disk.change_policy(&|policy| match policy {
            PolicyUse::Own(text) => text.modified_ns = text.modified_ns.min(now_ns),
            PolicyUse::Named { since_ns, .. } => *since_ns = now_ns,
        })?;
        disk.set_slot(now_ns)
    }

    fn tell_missed(&self, disk: &Disk, in_force: &InForce, missed: &[i64]) {
        let event = |slot_ns: &i64, reason: String| {
            self.metrics().missed.fetch_add(1, Ordering::Relaxed);
            let event = Event::new(What::Missed).disk(disk.name());
            let event = event.policy(in_force.label()).slot(time::rfc3339(*slot_ns));
            self.events().note(event.reason(reason));
        };
        let why = "the store was not mounted then, or the clock was set";
        match missed {
            [] => {}
            few if few.len() <= MISSED_TOLD => {
                few.iter().for_each(|slot| event(slot, why.to_owned()));
            }
            [first, .., last] => event(
                first,
                format!(
                    "this and {} more up to {}: {why}",
                    missed.len() - 1,
                    time::rfc3339(*last)
                ),
            ),
            [only] => event(only, why.to_owned()),
        }
    }

    fn take_automatic(
        &self,
        disk: &Arc<Disk>,
        in_force: &InForce,
        slot_ns: i64,
        name: &str,
        expires_ns: Option<i64>,
        make_room: &[String],
    ) -> Result<()> {
        let by = By::Policy(in_force.label().to_owned());
        let taking = Taking {
            kind: SnapshotKind::Automatic,
            expires_ns,
            policy: Some(in_force.label().to_owned()),
            slot_ns: Some(slot_ns),
            ..Taking::manual(by)
        };
        let taken = |name: &str| disk.snapshot(name).is_some();
        let name = match taken(name) {
            false => name.to_owned(),
            true => (2..1000)
                .map(|n| format!("{name}-{n}"))
                .find(|name| !taken(name))
                .ok_or_else(|| Error::Exists {
                    what: "snapshot",
                    name: name.to_owned(),
                })?,
        };
        disk.take_snapshot_as(&name, &taking)?;
        for name in make_room {
            match disk.delete_snapshot_by(name, &By::Quota) {
                Ok(()) | Err(Error::Missing { .. }) => {}
                // Held in this very moment: the next slot makes room.
                Err(error) => tracing::info!("{}@{name} makes no room: {error}", disk.name()),
            }
        }
        Ok(())
    }

    /// Deletes snapshots whose date has come and that nothing holds: whoever
    /// lets go of one that is held wakes this worker. True if one should have
    /// been deleted and is still there.
    fn delete_ended(&self, disk: &Arc<Disk>, now_ns: i64) -> bool {
        let has_policy = disk.policy().is_some();
        let dated = |disk: &Disk| {
            let snapshots = disk.list_snapshots();
            let dates = snapshots.iter().filter_map(|one| one.notes().expires_ns);
            dates.min().is_some_and(|at| at <= now_ns)
        };
        if !dated(disk) {
            return false;
        }
        for name in ended(&Store::known_snapshots(disk), has_policy, now_ns) {
            // It may have been renamed, or given another date, meanwhile.
            let deleted = disk.delete_snapshot_if(&name, &By::Date, &|found| {
                found.notes().expires_ns.is_some_and(|at| at <= now_ns)
            });
            match deleted {
                Ok(true) => tracing::info!("{}@{name} is deleted: its date had come", disk.name()),
                Ok(false) | Err(Error::Missing { .. } | Error::Closing) => {}
                Err(error) => {
                    tracing::info!("{}@{name} should have been deleted: {error}", disk.name());
                }
            }
        }
        !ended(&Store::known_snapshots(disk), has_policy, now_ns).is_empty()
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
        let mut clocks = Clocks::new(0, 0, 0, start);
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

    /// The same for a store that nobody has seen for days.
    #[test]
    fn a_store_that_was_not_seen_for_days_deletes_nothing_for_a_day() {
        let start = Instant::now();
        let later = start + Duration::from_secs(25 * 3600);
        let mut clocks = Clocks::new(HOUR, 0, 48 * HOUR, start);
        assert!(clocks.trusted(48 * HOUR, start), "47 hours");
        let mut clocks = Clocks::new(HOUR, 0, 50 * HOUR, start);
        assert!(!clocks.trusted(50 * HOUR, start), "49 hours");
        assert!(clocks.trusted(75 * HOUR, later));
        // A restart in between changes nothing.
        let mut clocks = Clocks::new(50 * HOUR, 74 * HOUR, 51 * HOUR, start);
        assert!(!clocks.trusted(51 * HOUR, start));
        assert!(clocks.trusted(75 * HOUR, later));
        let mut clocks = Clocks::new(HOUR, 74 * HOUR, 2 * HOUR, start);
        assert!(clocks.trusted(2 * HOUR, start), "the clock was set back");
    }
}
