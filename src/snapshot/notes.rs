//! What users note on a snapshot: tags, a hold, a date on which it ends.

use super::Snapshot;
use crate::disk::Disk;
use crate::error::{Error, Result};
use crate::manifest::SnapshotKind;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Bytes that the names and values of a snapshot's tags may have together;
/// ext4 has a block of 4 KiB for them.
pub const TAG_BYTES: usize = 4096;
/// Bytes of the reason of a hold.
const REASON_BYTES: usize = 1024;

/// What is noted on a snapshot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Notes {
    /// Why it must not be deleted, if so.
    pub hold: Option<String>,
    /// When it is to be deleted, if ever; nanoseconds since 1970.
    pub expires_ns: Option<i64>,
    /// By name, without the `user.` before it.
    pub tags: BTreeMap<String, String>,
    /// Who wanted it.
    pub kind: SnapshotKind,
    /// The policy that took it, by name.
    pub policy: Option<String>,
}

impl Notes {
    fn check(&self) -> Result<()> {
        let bytes: usize = self
            .tags
            .iter()
            .map(|(name, value)| name.len() + value.len())
            .sum();
        let reason = self.hold.as_ref().map_or(0, String::len);
        let (what, limit) = match (bytes > TAG_BYTES, reason > REASON_BYTES) {
            (true, _) => ("bytes of tags on a snapshot", TAG_BYTES),
            (_, true) => ("bytes of the reason of a hold", REASON_BYTES),
            _ => return Ok(()),
        };
        Err(Error::TooMuch {
            what: what.to_owned(),
            limit: limit as u64,
        })
    }
}

impl Disk {
    /// Changes what is noted on a snapshot; durable when this returns, and
    /// not changed at all if it fails.
    pub fn note(
        &self,
        snapshot: &Arc<Snapshot>,
        change: &dyn Fn(&mut Notes) -> Result<()>,
    ) -> Result<()> {
        self.engine.check_open()?;
        let meta = self.lock_meta();
        // It may have been deleted since it was found.
        if self.snapshot_by_number(snapshot.number).is_none() {
            return Err(Error::Missing {
                what: "snapshot",
                name: snapshot.name(),
            });
        }
        let before = snapshot.notes();
        let mut notes = before.clone();
        change(&mut notes)?;
        if notes == before {
            return Ok(());
        }
        notes.check()?;
        snapshot.set_notes(notes);
        snapshot.touch();
        self.publish_under(&meta).inspect_err(|_| {
            snapshot.set_notes(before.clone());
            self.let_go_of(snapshot);
        })?;
        // A hold may have gone, or a date have come.
        self.engine.work.raise(|work| work.expire = true);
        Ok(())
    }
}
