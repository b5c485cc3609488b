//! Extended attributes: `user.*` on a snapshot's directory are its tags, and
//! what `snapdisk.*` answers and does.

use super::{Node, Tree};
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::snapshot::{Snapshot, UNIQUE};
use crate::time;
use serde::Deserialize;
use std::ffi::OsStr;
use std::sync::Arc;

/// What the names of attributes begin with that are no tags; none is listed.
pub const PREFIX: &str = "snapdisk.";
/// What the names of tags begin with.
pub const USER: &str = "user.";
/// On a snapshot's directory: set to a reason, it keeps the snapshot from
/// being deleted.
pub const HOLD: &str = "snapdisk.hold";
/// On a snapshot's directory: the date on which the snapshot is deleted.
pub const EXPIRES: &str = "snapdisk.expires";
/// On a disk's directory: setting it rolls back, reading it gives the name
/// of the snapshot that the last rollback kept.
pub const ROLLBACK: &str = "snapdisk.rollback";

/// What setting an attribute has done, beyond the attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// None.
    None,
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

/// Whether an attribute may be there already, or must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Either.
    Any,
    /// It must be new.
    Create,
    /// It must be there.
    Replace,
}

impl Tree {
    /// The value of an attribute; None if there is none of that name. Waits.
    pub fn extended_attribute(&self, node: Node, name: &OsStr) -> Result<Option<Vec<u8>>> {
        let Some(name) = name.to_str() else {
            return Ok(None);
        };
        match node {
            Node::Disk(number) if name == ROLLBACK => {
                Ok(Some(self.disk(number)?.last_rollback().into_bytes()))
            }
            Node::Snapshot(disk, snapshot) => {
                let (disk, snapshot) = self.snapshot(disk, snapshot)?;
                if let Some(tag) = name.strip_prefix(USER) {
                    let value = snapshot.notes().tags.remove(tag);
                    return Ok(value.map(String::into_bytes));
                }
                if name == HOLD {
                    return Ok(snapshot.notes().hold.map(String::into_bytes));
                }
                let Some(key) = name.strip_prefix(PREFIX) else {
                    return Ok(None);
                };
                let text = match key {
                    UNIQUE => disk.snapshot_info(&snapshot)?,
                    _ => disk.snapshot_outline(&snapshot)?,
                };
                Ok(value_of(&text, key)?.map(String::into_bytes))
            }
            _ => Ok(None),
        }
    }

    /// The names that a listing of attributes shows: a snapshot's tags.
    pub fn extended_attributes(&self, node: Node) -> Result<Vec<String>> {
        let Node::Snapshot(disk, snapshot) = node else {
            return Ok(Vec::new());
        };
        let (_, snapshot) = self.snapshot(disk, snapshot)?;
        let tags = snapshot.notes().tags.into_keys();
        Ok(tags.map(|tag| format!("{USER}{tag}")).collect())
    }

    /// Sets an attribute: [`ROLLBACK`] on a disk rolls it back; on a snapshot
    /// tags, [`HOLD`] and [`EXPIRES`] can be set. None if `mode` does not
    /// allow for one that is there, or is not. Waits; durable when it
    /// returns.
    pub fn set_extended_attribute(
        &self,
        node: Node,
        name: &OsStr,
        value: &[u8],
        mode: Mode,
    ) -> Result<Option<Effect>> {
        if let (Node::Disk(number), true) = (node, name == ROLLBACK) {
            return self.rollback_by(number, value).map(Some);
        }
        let (disk, snapshot, attribute) = self.noted(node, name)?;
        let is_there = self.extended_attribute(node, name)?.is_some();
        if (mode == Mode::Create && is_there) || (mode == Mode::Replace && !is_there) {
            return Ok(None);
        }
        let invalid = |what: String| Error::InvalidArgument { what };
        let text = std::str::from_utf8(value)
            .map_err(|_| invalid(format!("the value of {attribute} is not UTF-8")))?;
        let expires = match attribute.as_str() {
            EXPIRES => Some(time::parse(text).ok_or_else(|| {
                invalid(format!(
                    "{EXPIRES} is set to a date like 2027-01-31 or 2027-01-31T12:00:00Z, \
                     not to {text:?}"
                ))
            })?),
            HOLD if text.trim().is_empty() => {
                return Err(invalid(format!("{HOLD} is set to the reason of the hold")));
            }
            _ => None,
        };
        disk.note(&snapshot, &|notes| {
            match attribute.as_str() {
                EXPIRES => notes.expires_ns = expires,
                HOLD => notes.hold = Some(text.trim().to_owned()),
                tag => drop(
                    notes
                        .tags
                        .insert(tag[USER.len()..].to_owned(), text.to_owned()),
                ),
            }
            Ok(())
        })?;
        Ok(Some(Effect::None))
    }

    fn rollback_by(&self, number: u32, value: &[u8]) -> Result<Effect> {
        let wanted: Rollback =
            serde_json::from_slice(value).map_err(|error| Error::InvalidArgument {
                what: format!("{ROLLBACK} is set to JSON like {{\"snapshot\": \"NAME\"}}: {error}"),
            })?;
        self.disk(number)?
            .rollback(&wanted.snapshot, wanted.discard)?;
        Ok(Effect::ImageReplaced(number))
    }

    /// Removes an attribute of a snapshot; false if it has none of that name.
    /// Waits; durable when it returns.
    pub fn remove_extended_attribute(&self, node: Node, name: &OsStr) -> Result<bool> {
        let (disk, snapshot, attribute) = self.noted(node, name)?;
        if self.extended_attribute(node, name)?.is_none() {
            return Ok(false);
        }
        disk.note(&snapshot, &|notes| {
            match attribute.as_str() {
                EXPIRES => notes.expires_ns = None,
                HOLD => notes.hold = None,
                tag => drop(notes.tags.remove(&tag[USER.len()..])),
            }
            Ok(())
        })?;
        Ok(true)
    }

    /// The snapshot whose attribute is to be changed, and the attribute.
    fn noted(&self, node: Node, name: &OsStr) -> Result<(Arc<Disk>, Arc<Snapshot>, String)> {
        let name = name.to_str().ok_or_else(|| not_supported(name))?;
        let is_tag = name.len() > USER.len() && name.starts_with(USER);
        match node {
            Node::Snapshot(disk, snapshot) if is_tag || name == HOLD || name == EXPIRES => {
                let (disk, snapshot) = self.snapshot(disk, snapshot)?;
                Ok((disk, snapshot, name.to_owned()))
            }
            // cp -a and rsync -X go on when told so.
            _ => Err(not_supported(OsStr::new(name))),
        }
    }
}

fn not_supported(name: &OsStr) -> Error {
    Error::NotSupported {
        what: format!(
            "the attribute {:?} here: a snapshot's directory takes user.*, {HOLD} and {EXPIRES}",
            name.to_string_lossy()
        ),
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
