//! Parts of an answer, as they are shown.

use super::size::human;
use serde_json::Value;

/// The entries of a list; none of what is no list.
pub(super) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

/// A word, a number, yes or no; `-` for what is not there.
pub(super) fn plain(value: &Value) -> String {
    match value {
        Value::Null => "-".into(),
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A number of bytes; `-` for what is none.
pub(super) fn size(value: &Value) -> String {
    value.as_u64().map_or_else(|| "-".into(), human)
}
