//! Reading a `policy.toml`: what is wrong with it is told with its place.

use super::{Policy, Retention};
use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use std::collections::BTreeSet;
use std::fmt;
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

const KEYS: [&str; 5] = [
    "hours",
    "weekdays",
    "retain_days",
    "timezone",
    "skip_unchanged",
];
const WEEKDAYS: [(&str, Weekday); 7] = [
    ("mon", Weekday::Monday),
    ("tue", Weekday::Tuesday),
    ("wed", Weekday::Wednesday),
    ("thu", Weekday::Thursday),
    ("fri", Weekday::Friday),
    ("sat", Weekday::Saturday),
    ("sun", Weekday::Sunday),
];
/// Days that snapshots are kept for where a policy does not say.
const RETAIN_DAYS: u32 = 30;
const RETAIN_DAYS_MAX: u32 = 65536;

/// Why a text is no policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// In words.
    pub reason: String,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {}, column {}: {}",
            self.line, self.column, self.reason
        )
    }
}

fn rejection(text: &str, at: usize, reason: impl Into<String>) -> Rejection {
    let before = &text[..text.floor_char_boundary(at.min(text.len()))];
    let line_start = before.rfind('\n').map_or(0, |end| end + 1);
    Rejection {
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        reason: reason.into(),
    }
}

/// Reads a whole policy.
pub fn parse(text: &str) -> Result<Policy, Rejection> {
    let table = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(text.len(), |span| span.start);
        rejection(text, at, error.message())
    })?;
    let mut fields = Fields::default();
    fields.take(text, table.get_ref())?;
    let hours = (fields.hours).ok_or_else(|| {
        rejection(
            text,
            text.len(),
            "`hours` is missing, as in hours = [0, 12]",
        )
    })?;
    Ok(Policy {
        hours,
        weekdays: (fields.weekdays).unwrap_or_else(|| WEEKDAYS.map(|(_, day)| day).to_vec()),
        retention: fields.retention.unwrap_or(Retention::Days(RETAIN_DAYS)),
        timezone: fields.timezone.unwrap_or_else(TimeZone::system),
        skip_unchanged: fields.skip_unchanged.unwrap_or(false),
    })
}

/// Whether what there is of a text up to now can become a policy: what is
/// wrong in its whole lines, whatever may follow.
pub fn check_so_far(text: &str) -> Result<(), Rejection> {
    let whole = match text.rfind('\n') {
        Some(end) => &text[..=end],
        None => return Ok(()),
    };
    let (table, errors) = DeTable::parse_recoverable(whole);
    // What is not closed yet may be closed by what follows: that is found
    // at the end of what there is, or runs up to it.
    let end = whole.trim_end().len();
    let open = |span: &Range<usize>| span.end >= end || span.start >= end;
    if let Some(error) = errors.first() {
        return match error.span() {
            Some(span) if !open(&span) => Err(rejection(whole, span.start, error.message())),
            _ => Ok(()),
        };
    }
    Fields::default().take(whole, table.get_ref())
}

#[derive(Default)]
struct Fields {
    hours: Option<BTreeSet<i8>>,
    weekdays: Option<Vec<Weekday>>,
    retention: Option<Retention>,
    timezone: Option<TimeZone>,
    skip_unchanged: Option<bool>,
}

impl Fields {
    fn take(&mut self, text: &str, table: &DeTable<'_>) -> Result<(), Rejection> {
        // In the order of the text, so that the first mistake is told.
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        for (key, value) in entries {
            let wrong = |reason: String| rejection(text, value.span().start, reason);
            match key.get_ref().as_ref() {
                "hours" => self.hours = Some(hours(text, value)?),
                "weekdays" => self.weekdays = Some(weekdays(text, value)?),
                "retain_days" => {
                    let retention = match value.get_ref() {
                        DeValue::String(word) if word.as_ref() == "forever" => {
                            Some(Retention::Forever)
                        }
                        other => integer(other)
                            .and_then(|days| u32::try_from(days).ok())
                            .filter(|days| (1..=RETAIN_DAYS_MAX).contains(days))
                            .map(Retention::Days),
                    };
                    self.retention = Some(retention.ok_or_else(|| {
                        wrong(format!(
                            "`retain_days` is a number from 1 to {RETAIN_DAYS_MAX}, or \"forever\""
                        ))
                    })?);
                }
                "timezone" => {
                    let DeValue::String(name) = value.get_ref() else {
                        return Err(wrong(
                            "`timezone` is the name of a time zone, as \"Europe/Berlin\"".into(),
                        ));
                    };
                    self.timezone = Some(TimeZone::get(name.as_ref()).map_err(|_| {
                        wrong(format!("there is no time zone {:?}", name.as_ref()))
                    })?);
                }
                "skip_unchanged" => match value.get_ref() {
                    DeValue::Boolean(skip) => self.skip_unchanged = Some(*skip),
                    _ => return Err(wrong("`skip_unchanged` is true or false".into())),
                },
                unknown => {
                    return Err(rejection(text, key.span().start, unknown_key(unknown)));
                }
            }
        }
        Ok(())
    }
}

fn unknown_key(key: &str) -> String {
    let near = KEYS
        .iter()
        .map(|known| (strsim::damerau_levenshtein(key, known), known))
        .min()
        .filter(|(distance, _)| *distance <= 4);
    match near {
        Some((_, known)) => format!("there is no key `{key}`; is it `{known}`?"),
        None => format!("there is no key `{key}`: there are {}", KEYS.join(", ")),
    }
}

fn integer(value: &DeValue<'_>) -> Option<i64> {
    match value {
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
        _ => None,
    }
}

/// The entries of an array that is not empty and has none twice.
fn entries<T: PartialEq>(
    text: &str,
    value: &Spanned<DeValue<'_>>,
    what: &str,
    read: impl Fn(&DeValue<'_>) -> Option<T>,
) -> Result<Vec<T>, Rejection> {
    let DeValue::Array(array) = value.get_ref() else {
        return Err(rejection(text, value.span().start, format!("it is {what}")));
    };
    let mut all = Vec::new();
    for entry in array.iter() {
        let wrong = |reason: String| rejection(text, entry.span().start, reason);
        let one = read(entry.get_ref()).ok_or_else(|| wrong(format!("it is {what}")))?;
        if all.contains(&one) {
            return Err(wrong("it is there twice".into()));
        }
        all.push(one);
    }
    match all.is_empty() {
        true => Err(rejection(
            text,
            value.span().start,
            format!("it is empty, and not {what}"),
        )),
        false => Ok(all),
    }
}

fn hours(text: &str, value: &Spanned<DeValue<'_>>) -> Result<BTreeSet<i8>, Rejection> {
    let what = "an array of whole hours from 0 to 23, as [0, 12]";
    let hours = entries(text, value, what, |entry| {
        let hour = integer(entry)?;
        i8::try_from(hour)
            .ok()
            .filter(|hour| (0..24).contains(hour))
    })?;
    Ok(hours.into_iter().collect())
}

fn weekdays(text: &str, value: &Spanned<DeValue<'_>>) -> Result<Vec<Weekday>, Rejection> {
    let what = "an array of \"mon\", \"tue\", \"wed\", \"thu\", \"fri\", \"sat\", \"sun\"";
    entries(text, value, what, |entry| match entry {
        DeValue::String(word) => WEEKDAYS
            .iter()
            .find(|(name, _)| *name == word.as_ref())
            .map(|(_, day)| *day),
        _ => None,
    })
}
