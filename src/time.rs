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

/// Reads a date as people write it: `2027-01-31` (its beginning),
/// `2027-01-31T12:00` (both in the host's time zone), or with an offset or a
/// zone, as RFC 3339 and 9557 have it. None for anything else.
pub fn parse(text: &str) -> Option<i64> {
    let text = text.trim();
    let local = || {
        let civil: jiff::civil::DateTime = text.parse().ok()?;
        Some(
            civil
                .to_zoned_datetime(jiff::tz::TimeZone::system())
                .ok()?
                .timestamp(),
        )
    };
    let zoned = || Some(text.parse::<jiff::ZonedDateTime>().ok()?.timestamp());
    let timestamp = text.parse::<jiff::Timestamp>().ok();
    let found = zoned().or(timestamp).or_else(local)?;
    i64::try_from(found.as_nanosecond()).ok()
}

/// `2026-11-23T03:00:00Z`, as `info.toml` has it.
pub fn rfc3339(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map(|time| format!("{time:.0}"))
        .unwrap_or_else(|_| format!("{ns} ns"))
}

/// `2026-11-23T03:00:00.123Z`, as events have it.
pub fn rfc3339_ms(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map(|time| format!("{time:.3}"))
        .unwrap_or_else(|_| format!("{ns} ns"))
}

/// `20261123T030000Z`, as names of snapshots have it.
pub fn compact(ns: i64) -> String {
    jiff::Timestamp::from_nanosecond(i128::from(ns))
        .map(|time| time.strftime("%Y%m%dT%H%M%SZ").to_string())
        .unwrap_or_else(|_| format!("{ns}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_as_people_write_them() {
        let utc = parse("2027-01-31T12:00:00Z");
        assert_eq!(utc.map(rfc3339).as_deref(), Some("2027-01-31T12:00:00Z"));
        assert_eq!(parse("2027-01-31T13:00:00+01:00"), utc);
        assert_eq!(parse("2027-01-31T20:00[Asia/Shanghai]"), utc);
        assert!(parse("2027-01-31").is_some() && parse(" 2027-01-31T12:00\n").is_some());
        for bad in [
            "",
            "tomorrow",
            "2027-13-01",
            "2027-02-30",
            "1e9",
            "9999-12-31",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
