//! What `info.toml` says of a snapshot.

use super::Snapshot;
use crate::disk::Disk;
use crate::disk::layer::Below;
use crate::error::{Error, Result};
use crate::time;
use serde::Serialize;
use std::collections::BTreeMap;

/// The key of what deleting a snapshot alone would free.
pub(crate) const UNIQUE: &str = "unique_bytes";
/// The largest integer of TOML: as many digits as [`UNIQUE`] can need.
const UNIQUE_MOST: u64 = i64::MAX as u64;

/// The keys of `info.toml`, in its order.
#[derive(Serialize)]
pub(crate) struct Info {
    id: String,
    disk_id: String,
    name: String,
    kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    state: &'static str,
    progress: u64,
    created: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    size: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    unique_bytes: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    root: Option<String>,
    encrypted: bool,
    held_by: Vec<String>,
    tags: BTreeMap<String, String>,
}

impl Snapshot {
    /// How much of its seal is done, in percent.
    fn progress(&self) -> u64 {
        match &*self.base.read() {
            // What is sealed and no manifest says so yet is not ready.
            Below::Layer(layer) => layer.seal_progress().min(99),
            _ => 100,
        }
    }
}

impl Disk {
    /// The text of a snapshot's `info.toml`. May read map pages.
    ///
    /// `unique_bytes` is what deleting this snapshot alone would free, as
    /// stored, and is there once the snapshot is sealed and as long as the
    /// maps can be read. Its line is as long whatever it says.
    pub fn snapshot_info(&self, snapshot: &Snapshot) -> Result<String> {
        let text = self.snapshot_outline(snapshot)?;
        let line = format!("{UNIQUE} = {UNIQUE_MOST}");
        if !text.contains(&line) {
            return Ok(text);
        }
        let found = match self.engine.unique_bytes(self, snapshot) {
            Ok(bytes) => format!("{UNIQUE} = {bytes}"),
            Err(error @ (Error::Damaged { .. } | Error::ChunkMissing { .. })) => {
                tracing::warn!("unique bytes of {}: {error}", snapshot.name());
                format!("# {UNIQUE} is not known")
            }
            Err(error) => return Err(error),
        };
        Ok(text.replacen(&line, &format!("{found:<0$}", line.len()), 1))
    }

    /// [`Disk::snapshot_info`] with a placeholder for what maps have to be
    /// read for: as long, and at once.
    pub fn snapshot_outline(&self, snapshot: &Snapshot) -> Result<String> {
        let info = Info {
            unique_bytes: match snapshot.base() {
                Below::Layer(_) => None,
                _ => Some(UNIQUE_MOST),
            },
            ..self.snapshot_facts(snapshot)
        };
        toml::to_string(&info).map_err(|error| Error::Damaged {
            what: format!("info.toml of {}", snapshot.name()),
            detail: error.to_string(),
        })
    }

    /// What is known of a snapshot without reading a map.
    pub(crate) fn snapshot_facts(&self, snapshot: &Snapshot) -> Info {
        let notes = snapshot.notes();
        Info {
            id: snapshot.id.to_string(),
            disk_id: self.id().to_string(),
            name: snapshot.name(),
            kind: notes.kind.as_str(),
            policy: notes.policy,
            state: snapshot.state(),
            progress: snapshot.progress(),
            created: snapshot.created_text(),
            expires: notes.expires_ns.map(time::rfc3339),
            size: snapshot.size,
            unique_bytes: None,
            root: snapshot.root().map(|root| root.to_string()),
            encrypted: false,
            held_by: self.held_by(snapshot),
            tags: notes.tags,
        }
    }
}
