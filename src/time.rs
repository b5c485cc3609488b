//! Instants as the store keeps them: nanoseconds since 1970, UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The wall clock.
pub fn now_ns() -> i64 {
    from_system(SystemTime::now())
}

/// A system time; one out of range is the nearest that fits.
pub fn from_system(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_nanos()).unwrap_or(i64::MAX),
        Err(before) => i64::try_from(before.duration().as_nanos())
            .map(|ns| -ns)
            .unwrap_or(i64::MIN),
    }
}

/// The system time of an instant.
pub fn to_system(ns: i64) -> SystemTime {
    if ns >= 0 {
        UNIX_EPOCH + Duration::from_nanos(ns.unsigned_abs())
    } else {
        UNIX_EPOCH - Duration::from_nanos(ns.unsigned_abs())
    }
}

/// `2026-11-23T03:00:00Z`, as `info.toml` has it.
pub fn rfc3339(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map(|time| format!("{time:.0}"))
        .unwrap_or_else(|_| format!("{ns} ns"))
}

/// `20261123T030000Z`, as names of snapshots have it.
pub fn compact(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map(|time| time.strftime("%Y%m%dT%H%M%SZ").to_string())
        .unwrap_or_else(|_| format!("{ns}"))
}
