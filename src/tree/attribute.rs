//! Extended attributes: what `snapdisk.*` answers and does.

use super::{Node, Tree};
use crate::error::{Error, Result};
use serde::Deserialize;
use std::ffi::OsStr;

/// All names here begin so; none is listed.
pub const PREFIX: &str = "snapdisk.";
/// On a disk's directory: setting it rolls back, reading it gives the name
/// of the snapshot that the last rollback kept.
pub const ROLLBACK: &str = "snapdisk.rollback";

/// What setting an attribute has done, beyond the attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The live image of a disk is another one now.
    ImageReplaced(u32),
}

/// The value that [`ROLLBACK`] is set to, as JSON.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Rollback {
    /// The snapshot to go back to.
    snapshot: String,
    /// Whether what is rolled over is not kept.
    #[serde(default)]
    discard: bool,
}

impl Tree {
    /// The value of an attribute; None if there is none of that name. Waits.
    pub fn extended_attribute(&self, node: Node, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let Some(key) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else {
            return Ok(None);
        };
        match node {
            Node::Disk(number) if name == ROLLBACK => {
                Ok(Some(self.disk(number)?.last_rollback().into_bytes()))
            }
            Node::Snapshot(disk, snapshot) => {
                let (disk, snapshot) = self.snapshot(disk, snapshot)?;
                let text = self.info(&disk, &snapshot)?;
                Ok(value_of(&text, key)?.map(String::into_bytes))
            }
            _ => Ok(None),
        }
    }

    /// Sets an attribute: [`ROLLBACK`] on a disk rolls it back. Waits;
    /// durable when it returns.
    pub fn set_extended_attribute(&self, node: Node, name: &OsStr, value: &[u8]) -> Result<Effect> {
        let Node::Disk(number) = node else {
            return Err(not_supported(name));
        };
        if name != ROLLBACK {
            return Err(not_supported(name));
        }
        let wanted: Rollback =
            serde_json::from_slice(value).map_err(|error| Error::InvalidArgument {
                what: format!("{ROLLBACK} is set to JSON like {{\"snapshot\": \"NAME\"}}: {error}"),
            })?;
        self.disk(number)?
            .rollback(&wanted.snapshot, wanted.discard)?;
        Ok(Effect::ImageReplaced(number))
    }

    /// Removes an attribute: none can be.
    pub fn remove_extended_attribute(&self, name: &OsStr) -> Result<()> {
        Err(not_supported(name))
    }
}

fn not_supported(name: &OsStr) -> Error {
    Error::NotSupported {
        what: format!("setting the attribute {:?} here", name.to_string_lossy()),
    }
}

/// The value of a top-level key of an `info.toml`, as a person would write
/// it; lists are joined with ", ".
fn value_of(text: &str, key: &str) -> Result<Option<String>> {
    let table: toml::Table = text
        .parse()
        .map_err(|error: toml::de::Error| Error::Damaged {
            what: super::INFO_FILE.into(),
            detail: error.to_string(),
        })?;
    Ok(table.get(key).map(plain))
}

fn plain(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => text.clone(),
        toml::Value::Array(values) => values.iter().map(plain).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_info_toml_are_answered_as_plain_text() {
        let text = "id = \"x y\"\nsize = 4096\nencrypted = false\nheld_by = [\"a\", \"b\"]\n\
                    created = 2026-11-24T03:48:52Z\n[tags]\nenv = \"prod\"\n";
        let value = |key| value_of(text, key).expect("the text is TOML");
        assert_eq!(value("id").as_deref(), Some("x y"));
        assert_eq!(value("size").as_deref(), Some("4096"));
        assert_eq!(value("encrypted").as_deref(), Some("false"));
        assert_eq!(value("held_by").as_deref(), Some("a, b"));
        assert_eq!(value("created").as_deref(), Some("2026-11-24T03:48:52Z"));
        assert_eq!(value("absent"), None);
    }

    #[test]
    fn a_rollback_is_asked_for_in_json_and_nothing_unknown_is_ignored() {
        let asked: Rollback =
            serde_json::from_str(r#"{"snapshot": "s1"}"#).expect("discard is optional");
        assert_eq!((asked.snapshot.as_str(), asked.discard), ("s1", false));
        assert!(serde_json::from_str::<Rollback>(r#"{"snapshot": "s", "keep": 1}"#).is_err());
        assert!(serde_json::from_str::<Rollback>("s1").is_err());
    }
}
