//! Policies: which snapshots a disk gets by itself, and for how long. All of
//! this is pure: the clock, the snapshots and what was done are arguments,
//! so that a test can go through years in a moment. [`run`] carries it out.
//!
//! A **slot** is an instant at which a policy wants a snapshot. One in an
//! hour that daylight saving leaves out comes at the end of what is left out;
//! one in an hour that comes twice comes the first time.

use crate::manifest::Settings;
use crate::time;
use jiff::Timestamp;
use jiff::civil::{DateTime, Weekday};
use jiff::tz::{AmbiguousOffset, TimeZone};
use std::collections::BTreeSet;

mod parse;
pub mod run;
#[cfg(test)]
mod tests;

pub use parse::{Rejection, check_so_far, parse};

/// The file of a disk's policy.
pub const POLICY_FILE: &str = "policy.toml";
/// Why the last one that was written is none.
pub const REJECTED_FILE: &str = "policy.rejected";
/// Named policies that a store may have.
pub const POLICIES_MAX: usize = 100;

const DAY_NS: i64 = 24 * 3600 * 1_000_000_000;
/// A recorded instant that is this far ahead of the clock was recorded while
/// the clock was wrong.
const WRONG_CLOCK_NS: i64 = 2 * DAY_NS;
/// A snapshot that is taken so much after its slot has its own time in its
/// name.
const LATE_NS: i64 = 5 * 60 * 1_000_000_000;
/// Slots that are listed one by one when they passed unseen.
const MISSED_LISTED: usize = 1000;

/// How long an automatic snapshot is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retention {
    /// For so many days of 24 hours.
    Days(u32),
    /// Until somebody deletes it, or it has to make room.
    Forever,
}

/// What a `policy.toml` says.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// Hours of the day, 0 to 23; not empty.
    pub hours: BTreeSet<i8>,
    /// Days of the week; not empty.
    pub weekdays: Vec<Weekday>,
    /// How long snapshots are kept that are taken from now on.
    pub retention: Retention,
    /// Whose hours and days they are.
    pub timezone: TimeZone,
    /// Whether a slot without a write since the last snapshot takes none.
    pub skip_unchanged: bool,
}

impl Policy {
    /// The instants of one day's slots, in order. Empty where the calendar
    /// ends.
    fn slots_of(&self, date: jiff::civil::Date) -> Vec<i64> {
        if !self.weekdays.contains(&date.weekday()) {
            return Vec::new();
        }
        let slots = self.hours.iter().filter_map(|hour| {
            let at = self.instant(date.at(*hour, 0, 0, 0))?;
            i64::try_from(at.as_nanosecond()).ok()
        });
        let slots: BTreeSet<i64> = slots.collect();
        slots.into_iter().collect()
    }

    fn instant(&self, local: DateTime) -> Option<Timestamp> {
        let ambiguous = self.timezone.to_ambiguous_timestamp(local);
        match ambiguous.offset() {
            // The end of what is left out: the instant of the change.
            AmbiguousOffset::Gap { .. } => {
                let before = ambiguous.earlier().ok()?;
                let change = self.timezone.following(before).next()?;
                Some(change.timestamp())
            }
            _ => ambiguous.earlier().ok(),
        }
    }

    fn date(&self, ns: i64) -> Option<jiff::civil::Date> {
        let at = Timestamp::from_nanosecond(i128::from(ns)).ok()?;
        Some(self.timezone.to_datetime(at).date())
    }

    /// Slots after `after_ns` and up to `until_ns`, at most `limit`, the
    /// first of them.
    pub fn slots(&self, after_ns: i64, until_ns: i64, limit: usize) -> Vec<i64> {
        let mut slots = Vec::new();
        // A change of offset can bring a slot of one date into the next.
        let Some(first) = self.date(after_ns.saturating_sub(DAY_NS)) else {
            return slots;
        };
        for date in first.series(jiff::Span::new().days(1)) {
            for slot in self.slots_of(date) {
                if slot > until_ns || slots.len() >= limit {
                    return slots;
                }
                // A date that is left out as a whole comes with the next.
                if slot > after_ns && slots.last().is_none_or(|last| slot > *last) {
                    slots.push(slot);
                }
            }
            // The last hour of a date is a day after its first at most, and
            // somewhat more where the clock changes.
            if self
                .instant(date.at(0, 0, 0, 0))
                .is_none_or(|at| at.as_nanosecond() > i128::from(until_ns))
            {
                break;
            }
        }
        slots
    }

    /// The last slots after `after_ns` and up to `now_ns`, and how many there
    /// are; of very many the oldest are counted only roughly.
    fn passed(&self, after_ns: i64, now_ns: i64) -> Vec<i64> {
        // After years without a mount only the newest matter.
        let from = after_ns.max(now_ns.saturating_sub(MISSED_LISTED as i64 * DAY_NS / 2));
        self.slots(from, now_ns, usize::MAX)
    }

    /// The first slot after an instant; None where the calendar ends.
    pub fn next_slot(&self, after_ns: i64) -> Option<i64> {
        // Every weekday comes within a week, but for dates left out.
        let until = after_ns.saturating_add(16 * DAY_NS);
        self.slots(after_ns, until, 1).into_iter().next()
    }

    /// When a snapshot taken at an instant ends; None for never.
    pub fn expires(&self, taken_ns: i64) -> Option<i64> {
        match self.retention {
            Retention::Forever => None,
            Retention::Days(days) => Some(taken_ns.saturating_add(days_ns(days))),
        }
    }

    /// An instant as its time zone has it: `2026-11-23 03:00 +08`.
    pub fn local(&self, ns: i64) -> String {
        match Timestamp::from_nanosecond(i128::from(ns)) {
            Ok(at) => {
                let zoned = at.to_zoned_datetime(self.timezone.clone());
                zoned.strftime("%a %Y-%m-%d %H:%M %Z").to_string()
            }
            Err(_) => time::rfc3339(ns),
        }
    }
}

/// What a plan has to know of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// Whether a policy took it.
    pub automatic: bool,
    /// Whether a person took it.
    pub manual: bool,
    /// When it ends, if ever.
    pub expires_ns: Option<i64>,
    /// Whether it is held, open, or an image depends on it.
    pub held: bool,
    /// Whether it is being sealed.
    pub sealing: bool,
}

/// What is known at an instant of a disk that has a policy.
#[derive(Clone, Debug)]
pub struct Facts<'a> {
    /// The policy.
    pub policy: &'a Policy,
    /// When it came into force here; slots up to then are none.
    pub since_ns: i64,
    /// The last slot that was dealt with.
    pub slot_ns: Option<i64>,
    /// The snapshots, oldest first by their number, whatever the clock was.
    pub snapshots: &'a [Known],
    /// Whether a snapshot shows just what the live image shows.
    pub unchanged: bool,
    /// Why no snapshot can be taken, if so.
    pub unable: Option<String>,
    /// How many snapshots there may be.
    pub settings: Settings,
    /// The wall clock.
    pub now_ns: i64,
}

/// What is done about a slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// A snapshot is taken, then those are deleted that make room for it.
    Take {
        /// Its name; a number is added if it is taken.
        name: String,
        /// When it ends, if ever.
        expires_ns: Option<i64>,
        /// Names of automatic snapshots, the oldest.
        make_room: Vec<String>,
    },
    /// Nothing was written since the last snapshot.
    Unchanged,
    /// None is taken, for a reason.
    Skip(String),
}

/// What a policy wants at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing before the next slot, if there is one.
    Wait(Option<i64>),
    /// What was recorded is from a clock that was far ahead: the policy
    /// begins anew.
    Restart,
    /// Something about a slot.
    Slot {
        /// Which.
        slot_ns: i64,
        /// What.
        action: Action,
        /// Slots before it that passed unseen.
        missed: Vec<i64>,
    },
}

/// What is to be done now. Of several slots that have passed only the last
/// is made up for.
pub fn decide(facts: &Facts<'_>) -> Decision {
    let now = facts.now_ns;
    let recorded = [Some(facts.since_ns), facts.slot_ns];
    let sound = |at: &i64| *at <= now.saturating_add(WRONG_CLOCK_NS);
    if !recorded.into_iter().flatten().all(|at| sound(&at)) {
        return Decision::Restart;
    }
    let done = recorded.into_iter().flatten().max().unwrap_or(now);
    let mut missed = facts.policy.passed(done, now);
    let Some(slot_ns) = missed.pop() else {
        return Decision::Wait(facts.policy.next_slot(done.max(now)));
    };
    Decision::Slot {
        slot_ns,
        action: action(facts, slot_ns),
        missed,
    }
}

fn action(facts: &Facts<'_>, slot_ns: i64) -> Action {
    if let Some(reason) = &facts.unable {
        return Action::Skip(reason.clone());
    }
    if let Some(newest) = facts.snapshots.last()
        && newest.sealing
    {
        let name = &newest.name;
        return Action::Skip(format!(
            "the snapshot before it, {name}, is still being sealed"
        ));
    }
    if facts.policy.skip_unchanged && facts.unchanged {
        return Action::Unchanged;
    }
    let settings = facts.settings;
    let automatic: Vec<&Known> = (facts.snapshots.iter())
        .filter(|snapshot| snapshot.automatic)
        .collect();
    let manual = facts.snapshots.iter().filter(|one| one.manual).count();
    let too_many = |count: usize, limit: u32| (count + 1).saturating_sub(limit as usize);
    let over = too_many(automatic.len(), settings.max_automatic_snapshots).max(
        settings
            .max_snapshots
            .map_or(0, |limit| too_many(automatic.len() + manual, limit)),
    );
    let free = automatic.iter().filter(|snapshot| !snapshot.held);
    let make_room: Vec<String> = free.take(over).map(|one| one.name.clone()).collect();
    if make_room.len() < over {
        return Action::Skip(format!(
            "the disk has {} automatic and {manual} manual snapshots, may have no more, and \
             nothing that may go makes room",
            automatic.len()
        ));
    }
    let taken_ns = match facts.now_ns.saturating_sub(slot_ns) {
        late if late > LATE_NS => facts.now_ns,
        _ => slot_ns,
    };
    Action::Take {
        name: format!("auto-{}", time::compact(taken_ns)),
        expires_ns: facts.policy.expires(facts.now_ns),
        make_room,
    }
}

/// Names of snapshots whose date has come and that nothing holds. While a
/// policy is in force the newest automatic one stays (invariant 10).
pub fn ended(snapshots: &[Known], has_policy: bool, now_ns: i64) -> Vec<String> {
    let newest = snapshots.iter().rposition(|snapshot| snapshot.automatic);
    let ends = |(at, snapshot): &(usize, &Known)| {
        snapshot.expires_ns.is_some_and(|expires| expires <= now_ns)
            && !snapshot.held
            && !(has_policy && newest == Some(*at))
    };
    let ended = snapshots.iter().enumerate().filter(ends);
    ended.map(|(_, snapshot)| snapshot.name.clone()).collect()
}

/// One line of what a policy is going to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Planned {
    /// When.
    pub at_ns: i64,
    /// Whether the snapshot is deleted then, instead of taken.
    pub deletes: bool,
    /// The snapshot; None if none is taken.
    pub snapshot: Option<String>,
    /// When it ends, if it is taken and ever ends.
    pub expires_ns: Option<i64>,
    /// Why, in words.
    pub reason: String,
}

/// What a policy is going to take and delete up to an instant, if there are
/// writes between its slots, nobody does anything else, and the store is
/// mounted all the time.
pub fn plan(facts: &Facts<'_>, until_ns: i64) -> Vec<Planned> {
    let mut snapshots: Vec<Known> = facts.snapshots.to_vec();
    snapshots.iter_mut().for_each(|one| one.sealing = false);
    let mut planned = Vec::new();
    let mut slot_ns = facts.slot_ns;
    let mut now = facts.now_ns;
    loop {
        for name in ended(&snapshots, true, now) {
            planned.push(deletion(now, &name, "its date has come".into()));
            snapshots.retain(|snapshot| snapshot.name != name);
        }
        let decision = decide(&Facts {
            policy: facts.policy,
            since_ns: facts.since_ns.min(now),
            slot_ns: slot_ns.filter(|at| *at <= now.saturating_add(WRONG_CLOCK_NS)),
            snapshots: &snapshots,
            unchanged: false,
            unable: facts.unable.clone(),
            settings: facts.settings,
            now_ns: now,
        });
        if let Decision::Slot {
            slot_ns: slot,
            action,
            ..
        } = decision
        {
            slot_ns = Some(slot);
            let reason = match facts.policy.skip_unchanged {
                true => "its slot, if something changed",
                false => "its slot",
            };
            let mut line = Planned {
                at_ns: now,
                deletes: false,
                snapshot: None,
                expires_ns: None,
                reason: reason.to_owned(),
            };
            match action {
                Action::Take {
                    name,
                    expires_ns,
                    make_room,
                } => {
                    line.snapshot = Some(name.clone());
                    line.expires_ns = expires_ns;
                    planned.push(line);
                    snapshots.push(Known {
                        name,
                        automatic: true,
                        manual: false,
                        expires_ns,
                        held: false,
                        sealing: false,
                    });
                    for name in make_room {
                        let reason = "quota: makes room".into();
                        planned.push(deletion(now, &name, reason));
                        snapshots.retain(|snapshot| snapshot.name != name);
                    }
                }
                Action::Unchanged => {}
                Action::Skip(why) => {
                    line.reason = format!("{}: none, {why}", line.reason);
                    planned.push(line);
                }
            }
        }
        let newest = snapshots.iter().rposition(|snapshot| snapshot.automatic);
        let expiries = snapshots.iter().enumerate().filter_map(|(at, snapshot)| {
            let stays = snapshot.held || newest == Some(at);
            snapshot.expires_ns.filter(|at| !stays && *at > now)
        });
        let slots = facts.policy.next_slot(slot_ns.unwrap_or(now).max(now));
        match expiries.chain(slots).min() {
            Some(next) if next <= until_ns && next > now => now = next,
            _ => return planned,
        }
    }
}

fn deletion(at_ns: i64, name: &str, reason: String) -> Planned {
    Planned {
        at_ns,
        deletes: true,
        snapshot: Some(name.to_owned()),
        expires_ns: None,
        reason,
    }
}

/// Whole days as a span of time in nanoseconds; what is too long is the
/// longest there is.
pub fn days_ns(days: u32) -> i64 {
    i64::from(days).saturating_mul(DAY_NS)
}

/// A plan as JSON: `{"slots": [{"time", "local", "snapshot", "expires",
/// "reason"}], "deletions": [{"time", "local", "snapshot", "reason"}]}`, in
/// order.
pub fn plan_json(policy: &Policy, planned: &[Planned]) -> serde_json::Value {
    let line = |one: &Planned| {
        let mut line = serde_json::json!({
            "time": time::rfc3339(one.at_ns),
            "local": policy.local(one.at_ns),
            "snapshot": one.snapshot,
            "reason": one.reason,
        });
        if !one.deletes {
            line["expires"] = one.expires_ns.map(time::rfc3339).into();
        }
        line
    };
    let of = |deletes: bool| -> Vec<serde_json::Value> {
        let chosen = planned.iter().filter(|one| one.deletes == deletes);
        chosen.map(line).collect()
    };
    serde_json::json!({ "slots": of(false), "deletions": of(true) })
}
