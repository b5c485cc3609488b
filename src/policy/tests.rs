//! A policy over years, without a store and without waiting.

use super::*;
use jiff::ZonedDateTime;

fn policy(text: &str) -> Policy {
    parse(text).expect("it is a policy")
}

fn at(text: &str) -> i64 {
    let zoned: ZonedDateTime = text.parse().expect("an instant");
    i64::try_from(zoned.timestamp().as_nanosecond()).expect("it fits")
}

fn utc(slots: &[i64]) -> Vec<String> {
    slots.iter().map(|slot| time::rfc3339(*slot)).collect()
}

const HOUR: i64 = DAY_NS / 24;

fn known(name: &str, automatic: bool) -> Known {
    Known {
        name: name.into(),
        automatic,
        manual: !automatic,
        expires_ns: None,
        held: false,
        sealing: false,
    }
}

fn facts<'a>(policy: &'a Policy, snapshots: &'a [Known], now_ns: i64) -> Facts<'a> {
    Facts {
        policy,
        since_ns: now_ns.saturating_sub(1000 * DAY_NS),
        slot_ns: Some(now_ns.saturating_sub(HOUR)),
        snapshots,
        unchanged: false,
        unable: None,
        settings: Settings::default(),
        now_ns,
    }
}

/// Every key missing, of the wrong type, out of range, doubled, unknown: each
/// is told with its place.
#[test]
fn what_is_no_policy_is_told_with_line_and_column() {
    for (text, place, words) in [
        ("", (1, 1), "`hours` is missing"),
        ("weekdays = [\"mon\"]\n", (2, 1), "`hours` is missing"),
        ("hours = []", (1, 9), "empty"),
        ("hours = 3", (1, 9), "array of whole hours"),
        ("hours = [0, 24]", (1, 13), "0 to 23"),
        ("hours = [-1]", (1, 10), "0 to 23"),
        ("hours = [0.5]", (1, 10), "whole hours"),
        ("hours = [\"0\"]", (1, 10), "whole hours"),
        ("hours = [3, 3]", (1, 13), "twice"),
        ("hours = [1]\nhours = [2]", (2, 1), "duplicate"),
        ("hours = [1]\nweekdays = [\"monday\"]", (2, 13), "\"mon\""),
        ("hours = [1]\nweekdays = []", (2, 12), "empty"),
        ("hours = [1]\nweekdays = \"mon\"", (2, 12), "array"),
        ("hours = [1]\nretain_days = 0", (2, 15), "1 to 65536"),
        ("hours = [1]\nretain_days = 65537", (2, 15), "1 to 65536"),
        ("hours = [1]\nretain_days = \"ever\"", (2, 15), "forever"),
        ("hours = [1]\nretain_days = true", (2, 15), "forever"),
        (
            "hours = [1]\ntimezone = \"Mars/Olympus\"",
            (2, 12),
            "Mars/Olympus",
        ),
        ("hours = [1]\ntimezone = 8", (2, 12), "name of a time zone"),
        (
            "hours = [1]\nskip_unchanged = \"yes\"",
            (2, 18),
            "true or false",
        ),
        ("hourz = [1]", (1, 1), "is it `hours`?"),
        (
            "hours = [1]\nretain_day = 3",
            (2, 1),
            "is it `retain_days`?",
        ),
        ("hours = [1]\n数 = 3", (2, 1), ""),
        ("hours = [1\n", (1, 1), ""),
        ("# é\nhours = [1] x", (2, 13), ""),
        ("[policy]\nhours = [1]", (1, 2), "there is no key `policy`"),
    ] {
        let rejection = parse(text).expect_err(text);
        assert!(rejection.reason.contains(words), "{text}: {rejection}");
        if !words.is_empty() && words != "duplicate" {
            assert_eq!(
                (rejection.line, rejection.column),
                place,
                "{text}: {rejection}"
            );
        }
    }
}

#[test]
fn what_is_left_out_has_its_default() {
    let policy = policy("hours = [6, 0x10]\n");
    assert_eq!(policy.hours, [6, 16].into());
    assert_eq!(policy.weekdays.len(), 7);
    assert_eq!(policy.retention, Retention::Days(30));
    assert!(!policy.skip_unchanged);
}

/// What is written in pieces is refused as soon as nothing can mend it, and
/// not before.
#[test]
fn an_unfinished_policy_is_refused_only_for_what_is_wrong_for_good() {
    for fine in [
        "",
        "hours = [99]",
        "hours = [\n",
        "hours = [\n  0,\n",
        "hours = [0]\n",
        "weekdays = [\"mon\"]\n",
        "hours = [0]\nretain_d",
        "# only words\n",
    ] {
        assert_eq!(check_so_far(fine), Ok(()), "{fine:?}");
    }
    for bad in [
        "hours = [99]\n",
        "hourz = [1]\n",
        "hours = [0] x\nretain",
        "= 3\n\n# x\n",
    ] {
        assert!(check_so_far(bad).is_err(), "{bad:?}");
    }
}

/// "A slot in the hour that is skipped runs once at its end, in the hour
/// that is doubled once."
#[test]
fn daylight_saving_neither_loses_nor_doubles_a_slot() {
    let berlin = policy("hours = [1, 2, 3]\ntimezone = \"Europe/Berlin\"\n");
    // Clocks go from 2 to 3 on 29 March 2026: the slots of 2 and 3 are one.
    let spring = berlin.slots(
        at("2026-03-29T00:00[Europe/Berlin]"),
        at("2026-03-30T00:00[Europe/Berlin]"),
        10,
    );
    assert_eq!(
        utc(&spring),
        ["2026-03-29T00:00:00Z", "2026-03-29T01:00:00Z"]
    );
    // And from 3 to 2 on 25 October: 2 comes twice, the first counts.
    let autumn = berlin.slots(
        at("2026-10-25T00:00[Europe/Berlin]"),
        at("2026-10-26T00:00[Europe/Berlin]"),
        10,
    );
    assert_eq!(
        utc(&autumn),
        [
            "2026-10-24T23:00:00Z",
            "2026-10-25T00:00:00Z",
            "2026-10-25T02:00:00Z"
        ]
    );
    // Half an hour is left out on Lord Howe: its end is 2:30.
    let howe = policy("hours = [2]\ntimezone = \"Australia/Lord_Howe\"\n");
    let slots = howe.slots(
        at("2026-10-04T00:00[Australia/Lord_Howe]"),
        at("2026-10-05T00:00[Australia/Lord_Howe]"),
        10,
    );
    assert_eq!(utc(&slots), ["2026-10-03T15:30:00Z"]);
    // A whole day was left out on Samoa: all its slots are one, at its end,
    // which is the midnight slot of the day after.
    let samoa = policy("hours = [0, 12]\ntimezone = \"Pacific/Apia\"\n");
    let slots = samoa.slots(
        at("2011-12-29T13:00[Pacific/Apia]"),
        at("2011-12-31T13:00[Pacific/Apia]"),
        10,
    );
    assert_eq!(
        utc(&slots),
        ["2011-12-30T10:00:00Z", "2011-12-30T22:00:00Z"]
    );
}

/// Years of slots, in several zones: as many as days, none twice, in order,
/// and `next_slot` goes through the same.
#[test]
fn years_of_slots_are_as_many_as_the_calendar_has() {
    for (zone, hours, from, to) in [
        (
            "UTC",
            "[0, 6, 12, 18]",
            "2024-01-01T00:00[UTC]",
            "2034-01-01T00:00[UTC]",
        ),
        (
            "Europe/Berlin",
            "[2]",
            "2024-01-01T00:00[Europe/Berlin]",
            "2034-01-01T00:00[Europe/Berlin]",
        ),
        (
            "America/New_York",
            "[2, 23]",
            "2024-01-01T00:00[America/New_York]",
            "2034-01-01T00:00[America/New_York]",
        ),
        (
            "Pacific/Chatham",
            "[3]",
            "2024-01-01T00:00[Pacific/Chatham]",
            "2034-01-01T00:00[Pacific/Chatham]",
        ),
    ] {
        let policy = policy(&format!("hours = {hours}\ntimezone = \"{zone}\"\n"));
        let (from, to) = (at(from) - 1, at(to) - 1);
        let slots = policy.slots(from, to, usize::MAX);
        assert_eq!(slots.len(), 3653 * policy.hours.len(), "{zone}");
        assert!(slots.windows(2).all(|pair| pair[0] < pair[1]));
        let mut now = from;
        for slot in slots {
            assert_eq!(policy.next_slot(now), Some(slot), "{zone}");
            now = slot;
        }
    }
}

#[test]
fn weekdays_are_those_of_the_zone() {
    let policy = policy("hours = [1]\nweekdays = [\"mon\"]\ntimezone = \"Asia/Shanghai\"\n");
    let slots = policy.slots(at("2026-11-01T00:00[UTC]"), at("2026-11-20T00:00[UTC]"), 10);
    // One o'clock on a Monday in Shanghai is Sunday in UTC.
    assert_eq!(
        utc(&slots),
        [
            "2026-11-01T17:00:00Z",
            "2026-11-08T17:00:00Z",
            "2026-11-15T17:00:00Z"
        ]
    );
}

/// The clock may say anything: before 1970, in 2100, at the ends of time.
#[test]
fn strange_clocks_break_nothing() {
    let policy = policy("hours = [0]\ntimezone = \"UTC\"\n");
    for now in [
        i64::MIN,
        -DAY_NS * 400,
        0,
        at("2100-02-28T12:00[UTC]"),
        i64::MAX - 1,
        i64::MAX,
    ] {
        for slot_ns in [None, Some(i64::MIN), Some(0), Some(i64::MAX)] {
            let facts = Facts {
                slot_ns,
                since_ns: now,
                ..facts(&policy, &[], now)
            };
            decide(&facts);
            plan(&facts, now.saturating_add(3 * DAY_NS));
        }
    }
    let slots = policy.slots(at("1969-12-30T12:00[UTC]"), at("1970-01-01T12:00[UTC]"), 10);
    assert_eq!(slots, [-DAY_NS, 0]);
    let after = policy.next_slot(at("2100-02-28T12:00[UTC]"));
    assert_eq!(
        after,
        Some(at("2100-03-01T00:00[UTC]")),
        "2100 is no leap year"
    );
}

/// "Forwards: one made up … backwards: none twice."
#[test]
fn of_several_slots_that_passed_the_last_is_made_up_for() {
    let policy = policy("hours = [0, 12]\ntimezone = \"UTC\"\n");
    let now = at("2026-11-26T13:30[UTC]");
    let long_ago = Facts {
        slot_ns: Some(at("2026-11-24T12:00[UTC]")),
        ..facts(&policy, &[], now)
    };
    let Decision::Slot {
        slot_ns,
        action,
        missed,
    } = decide(&long_ago)
    else {
        panic!("a slot has passed");
    };
    assert_eq!(time::rfc3339(slot_ns), "2026-11-26T12:00:00Z");
    assert_eq!(
        utc(&missed),
        [
            "2026-11-25T00:00:00Z",
            "2026-11-25T12:00:00Z",
            "2026-11-26T00:00:00Z"
        ]
    );
    // So late it is called by when it was taken.
    let Action::Take {
        name, expires_ns, ..
    } = action
    else {
        panic!("it is taken");
    };
    assert_eq!(name, "auto-20261126T133000Z");
    assert_eq!(expires_ns, Some(now + 30 * DAY_NS));
    // In time it is called by its slot.
    let now = at("2026-11-26T12:00:01[UTC]");
    let in_time = facts(&policy, &[], now);
    assert!(matches!(
        decide(&in_time),
        Decision::Slot { action: Action::Take { name, .. }, .. } if name == "auto-20261126T120000Z"
    ));
    // Done: the next, also when the clock goes back an hour over the slot.
    for back in [0, HOUR, 30 * HOUR] {
        let done = Facts {
            slot_ns: Some(at("2026-11-26T12:00[UTC]")),
            now_ns: now - back,
            ..facts(&policy, &[], now)
        };
        assert_eq!(
            decide(&done),
            Decision::Wait(Some(at("2026-11-27T00:00[UTC]"))),
            "{back}"
        );
    }
    // Slots before the policy are none of its.
    let new = Facts {
        since_ns: now - HOUR / 2,
        slot_ns: None,
        ..facts(&policy, &[], now + HOUR)
    };
    assert!(matches!(decide(&new), Decision::Slot { missed, .. } if missed.is_empty()));
    // What was recorded while the clock was a year ahead does not stop it.
    let ahead = Facts {
        slot_ns: Some(now + 365 * DAY_NS),
        ..facts(&policy, &[], now)
    };
    assert_eq!(decide(&ahead), Decision::Restart);
}

#[test]
fn a_slot_takes_none_for_a_reason() {
    let policy = policy("hours = [12]\ntimezone = \"UTC\"\nskip_unchanged = true\n");
    let now = at("2026-11-26T12:00:01[UTC]");
    let action = |facts: Facts<'_>| match decide(&facts) {
        Decision::Slot { action, .. } => action,
        other => panic!("{other:?}"),
    };
    let sealing = [Known {
        sealing: true,
        ..known("before", false)
    }];
    assert!(matches!(
        action(facts(&policy, &sealing, now)),
        Action::Skip(why) if why.contains("before") && why.contains("sealed")
    ));
    let unchanged = Facts {
        unchanged: true,
        ..facts(&policy, &[], now)
    };
    assert_eq!(action(unchanged), Action::Unchanged);
    let unable = Facts {
        unable: Some("no image".into()),
        ..facts(&policy, &[], now)
    };
    assert_eq!(action(unable), Action::Skip("no image".into()));
}

/// "Automatic over quota deletes the oldest automatic one that nothing
/// holds, and if there is none, records a missed slot."
#[test]
fn an_automatic_snapshot_over_the_quota_makes_room() {
    let policy = policy("hours = [12]\ntimezone = \"UTC\"\n");
    let now = at("2026-11-26T12:00:01[UTC]");
    let settings = Settings {
        max_manual_snapshots: 5,
        max_automatic_snapshots: 2,
        max_snapshots: None,
    };
    let room = |snapshots: &[Known], settings: Settings| match decide(&Facts {
        settings,
        ..facts(&policy, snapshots, now)
    }) {
        Decision::Slot {
            action: Action::Take { make_room, .. },
            ..
        } => Ok(make_room),
        Decision::Slot {
            action: Action::Skip(why),
            ..
        } => Err(why),
        other => panic!("{other:?}"),
    };
    let mut snapshots = vec![known("a", true), known("m", false), known("b", true)];
    assert_eq!(room(&snapshots, settings), Ok(vec!["a".to_owned()]));
    snapshots[0].held = true;
    assert_eq!(room(&snapshots, settings), Ok(vec!["b".to_owned()]));
    snapshots[2].held = true;
    assert!(room(&snapshots, settings).is_err());
    snapshots.iter_mut().for_each(|one| one.held = false);
    // More are there than may be, since the limit was lowered.
    let one = Settings {
        max_automatic_snapshots: 1,
        ..settings
    };
    assert_eq!(
        room(&snapshots, one),
        Ok(vec!["a".to_owned(), "b".to_owned()])
    );
    let none = Settings {
        max_automatic_snapshots: 0,
        ..settings
    };
    assert!(room(&snapshots, none).is_err());
    // Both kinds together.
    let shared = Settings {
        max_automatic_snapshots: 9,
        max_snapshots: Some(3),
        ..settings
    };
    assert_eq!(room(&snapshots, shared), Ok(vec!["a".to_owned()]));
    assert_eq!(room(&snapshots[..2], shared), Ok(Vec::new()));
}

/// Invariant 10: a policy never deletes its newest snapshot; what is held
/// stays.
#[test]
fn the_newest_automatic_snapshot_outlives_its_date() {
    let dated = |name: &str, automatic: bool, at: i64| Known {
        expires_ns: Some(at),
        ..known(name, automatic)
    };
    let snapshots = [
        dated("a", true, 5),
        Known {
            held: true,
            ..dated("b", true, 5)
        },
        dated("c", true, 5),
        dated("m", false, 5),
        dated("later", false, 50),
    ];
    assert_eq!(ended(&snapshots, true, 10), ["a", "m"]);
    assert_eq!(ended(&snapshots, false, 10), ["a", "c", "m"]);
    assert!(ended(&snapshots, true, 4).is_empty());
}

/// A year as sanoid would have it: what is planned is what a worker that
/// looks at every slot ends up with.
#[test]
fn a_plan_is_what_deciding_slot_by_slot_comes_to() {
    let policy = policy("hours = [0, 6, 12, 18]\nretain_days = 14\ntimezone = \"Europe/Berlin\"\n");
    let start = at("2026-01-01T00:30[Europe/Berlin]");
    let until = start + 365 * DAY_NS;
    let begin = Facts {
        since_ns: start,
        slot_ns: None,
        ..facts(&policy, &[], start)
    };
    let planned = plan(&begin, until);
    let (mut snapshots, mut slot_ns) = (Vec::<Known>::new(), None);
    let (mut taken, mut deleted) = (Vec::new(), Vec::new());
    let mut now = start;
    while now <= until {
        for name in ended(&snapshots, true, now) {
            snapshots.retain(|one| one.name != name);
            deleted.push(name);
        }
        let look = Facts {
            slot_ns,
            snapshots: &snapshots,
            now_ns: now,
            ..begin.clone()
        };
        if let Decision::Slot {
            slot_ns: slot,
            action,
            missed,
        } = decide(&look)
        {
            assert!(missed.is_empty());
            slot_ns = Some(slot);
            if let Action::Take {
                name, expires_ns, ..
            } = action
            {
                taken.push(name.clone());
                snapshots.push(Known {
                    expires_ns,
                    ..known(&name, true)
                });
            }
        }
        now += HOUR / 2;
    }
    let of = |deletes: bool| -> Vec<String> {
        let chosen = planned.iter().filter(|one| one.deletes == deletes);
        chosen.filter_map(|one| one.snapshot.clone()).collect()
    };
    assert_eq!(of(false), taken);
    assert_eq!(of(true), deleted);
    assert_eq!(taken.len(), 365 * 4);
    assert_eq!(snapshots.len(), 14 * 4);
}
