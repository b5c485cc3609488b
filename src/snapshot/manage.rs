//! What `mkdir`, `rmdir` and `mv` in `.snapshots` do.

use super::{Notes, Snapshot};
use crate::disk::layer::Below;
use crate::disk::{
    Attempt, Disk, KeptClosed, OPEN, Opened, STUCK_MAX, SealTrouble, Seek, Taking, UNSEALED_MAX,
    Wait,
};
use crate::error::{Error, Result};
use crate::events::{By, Event, What};
use crate::manifest::SnapshotKind;
use crate::name::SnapshotName;
use crate::time;
use std::sync::Arc;

/// Fresh data in a head, in bytes, over which `mkdir` first pushes it out in
/// pieces, so that the sync after the swap is short.
const PUSH_OUT: u64 = 16 << 20;

/// A snapshot whose image is open; closed when dropped.
pub struct OpenSnapshot {
    disk: Arc<Disk>,
    snapshot: Arc<Snapshot>,
    opened: Option<Opened>,
}

impl OpenSnapshot {
    /// Whose it is.
    pub fn disk(&self) -> &Arc<Disk> {
        &self.disk
    }

    /// Which one.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

impl Drop for OpenSnapshot {
    fn drop(&mut self) {
        drop(self.opened.take());
        // It is part of what info.toml says.
        self.snapshot.touch();
        self.disk.let_go_of(&self.snapshot);
    }
}

impl Disk {
    /// Has a snapshot whose date has come looked at: it may be held no more.
    pub(crate) fn let_go_of(&self, snapshot: &Snapshot) {
        let ends = snapshot.notes().expires_ns;
        if ends.is_some_and(|at| at <= time::now_ns()) {
            self.engine.work.raise(|work| work.expire = true);
        }
    }

    /// All snapshots, oldest first.
    pub fn snapshots(&self) -> Vec<Arc<Snapshot>> {
        self.list_snapshots()
    }

    /// The snapshot of that name.
    pub fn snapshot(&self, name: &str) -> Option<Arc<Snapshot>> {
        self.find(name).ok()
    }

    /// The snapshot of that number.
    pub fn snapshot_by_number(&self, number: u32) -> Option<Arc<Snapshot>> {
        self.list_snapshots()
            .into_iter()
            .find(|snapshot| snapshot.number == number)
    }

    /// Counts a snapshot's image as open. [`Error::Missing`] if it is being or
    /// has been deleted since it was looked up.
    pub fn open_snapshot(self: &Arc<Self>, snapshot: &Arc<Snapshot>) -> Result<OpenSnapshot> {
        let opened = self.count_snapshot_open(snapshot.number);
        let opened = opened.filter(|_| self.snapshot_by_number(snapshot.number).is_some());
        match opened {
            Some(_) => {
                snapshot.touch();
                Ok(OpenSnapshot {
                    disk: self.clone(),
                    snapshot: snapshot.clone(),
                    opened,
                })
            }
            None => Err(Error::Missing {
                what: "snapshot",
                name: snapshot.name(),
            }),
        }
    }

    /// Takes a snapshot; durable, with every layer below it, when this
    /// returns (invariant 2).
    pub fn take_snapshot(self: &Arc<Self>, name: SnapshotName) -> Result<Arc<Snapshot>> {
        self.take_snapshot_as(name.as_str(), &Taking::manual(By::this_user()))
    }

    /// [`Disk::take_snapshot`] for somebody; the name is one that fits.
    pub(crate) fn take_snapshot_as(
        self: &Arc<Self>,
        name: &str,
        taking: &Taking,
    ) -> Result<Arc<Snapshot>> {
        self.prepare_to_take()?;
        self.check_new_name(name)?;
        let _settling = self.engine.settling.read();
        let meta = self.lock_meta();
        self.check_new_name(name)?;
        self.take(&meta, name, taking)
    }

    /// What can be done before a snapshot so that it is short: checks that
    /// there is room, waits for the sealer, pushes data out.
    pub(crate) fn prepare_to_take(&self) -> Result<()> {
        self.engine.check_open()?;
        self.engine.capacity.has_room_for_work(0).and_then(|room| {
            if room {
                Ok(())
            } else {
                self.engine.capacity.check_write(1 << 20)
            }
        })?;
        self.wait_for_sealer()?;
        if let Some(head) = self.head()
            && head.data_bytes() > PUSH_OUT
        {
            head.write_back().inspect_err(|error| self.poison(error))?;
        }
        Ok(())
    }

    /// Waits while too many layers of this disk wait to be sealed. Nothing
    /// is held meanwhile, so that the sealer gets on.
    pub(crate) fn wait_for_sealer(&self) -> Result<()> {
        let mut work = self.engine.work.work.lock();
        loop {
            self.engine.check_open()?;
            // What a failed sync left is not sealed before a new start.
            self.check_poisoned()?;
            let mut layers = self.layers();
            layers.retain(|layer| layer.is_frozen());
            let waiting = layers.iter().filter(|layer| !layer.is_stuck()).count();
            if layers.len() - waiting > STUCK_MAX {
                return Err(Error::Poisoned {
                    what: format!("sealing, with {} layers of this disk", layers.len()),
                    cause: "one of them cannot be sealed, as what lies below it is damaged: go \
                            back to an older snapshot, or clone one"
                        .to_owned(),
                });
            }
            if waiting <= UNSEALED_MAX {
                return Ok(());
            }
            match self.engine.seal_trouble.lock().clone() {
                None => {}
                Some(SealTrouble::NoSpace) => {
                    let space = self.engine.capacity.space()?;
                    return Err(Error::Full {
                        free: space.free_bytes + space.reserve_bytes,
                        reserve: space.reserve_bytes,
                    });
                }
                Some(SealTrouble::Stopped(cause)) => {
                    return Err(Error::Poisoned {
                        what: format!("sealing, with {waiting} layers waiting,"),
                        cause,
                    });
                }
            }
            work.seal = true;
            self.engine.work.changed.notify_all();
            self.engine.work.changed.wait(&mut work);
        }
    }

    /// Deletes a snapshot; durable when this returns. Its space comes back
    /// later.
    pub fn delete_snapshot(self: &Arc<Self>, name: &str) -> Result<()> {
        self.delete_snapshot_by(name, &By::this_user())
    }

    /// [`Disk::delete_snapshot`] for somebody.
    pub(crate) fn delete_snapshot_by(self: &Arc<Self>, name: &str, by: &By) -> Result<()> {
        self.delete_snapshot_if(name, by, &|_| true).map(drop)
    }

    /// Deletes a snapshot if `check`, which is asked when nobody can change
    /// anything of it any more, agrees; answers whether it did.
    pub(crate) fn delete_snapshot_if(
        self: &Arc<Self>,
        name: &str,
        by: &By,
        check: &dyn Fn(&Snapshot) -> bool,
    ) -> Result<bool> {
        let number = self.find(name)?.number;
        let closed = self.snapshot_settles_closed(number);
        self.engine.sync_grafts()?;
        let _settling = self.engine.settling.read();
        let meta = self.lock_meta();
        let snapshot = self.find(name)?;
        if !check(&snapshot) {
            return Ok(false);
        }
        let kept_closed = match self.keep_to_delete(&snapshot) {
            Ok(_) if !closed => Err(vec![OPEN.into()]),
            kept_closed => kept_closed,
        };
        let _kept_closed = kept_closed.map_err(|held| {
            snapshot.touch();
            Error::Busy {
                what: format!("snapshot {name} of {}", self.name()),
                by: held,
            }
        })?;
        // Something may have been copied from it until it was kept closed.
        self.engine.sync_grafts()?;
        self.forget_snapshot(&meta, name)?;
        self.note_deleted(name, by);
        self.engine.work.raise(|work| {
            work.seal = true;
            work.collect = true;
        });
        Ok(true)
    }

    pub(crate) fn note_deleted(&self, name: &str, by: &By) {
        let event = Event::new(What::Deleted).disk(self.name()).snapshot(name);
        self.engine.events.note(event.by(by));
    }

    /// Renames a snapshot; durable when this returns. An automatic one is
    /// manual from then on; neither it nor what was kept of an image that
    /// was removed has a date any more.
    pub fn rename_snapshot(&self, from: &str, to: SnapshotName) -> Result<()> {
        let _settling = self.engine.settling.read();
        let meta = self.lock_meta();
        let snapshot = self.find(from)?;
        if from == to.as_str() {
            return Ok(());
        }
        self.check_new_name(to.as_str())?;
        let before = snapshot.notes();
        let kept = |kind| Notes {
            kind,
            expires_ns: None,
            ..before.clone()
        };
        match before.kind {
            SnapshotKind::Manual => {}
            SnapshotKind::Kept => snapshot.set_notes(kept(SnapshotKind::Kept)),
            SnapshotKind::Automatic => {
                self.check_manual_quota()?;
                snapshot.set_notes(kept(SnapshotKind::Manual));
            }
        }
        self.set_snapshot_name(&meta, from, to.as_str())
            .inspect_err(|_| snapshot.set_notes(before))?;
        snapshot.touch();
        let event = Event::new(What::Renamed)
            .disk(self.name())
            .snapshot(to.as_str());
        self.engine
            .events
            .note(event.reason(format!("it was {from}")));
        Ok(())
    }

    /// Why a snapshot cannot be deleted, in words; empty if it can.
    pub fn held_by(&self, snapshot: &Snapshot) -> Vec<String> {
        let mut by = Vec::new();
        if let Some(reason) = snapshot.notes().hold {
            by.push(format!("held: {reason}"));
        }
        by.extend(
            self.links_of(snapshot)
                .into_iter()
                .map(|image| format!("image {image} depends on it")),
        );
        if self.is_snapshot_open(snapshot.number) {
            by.push(OPEN.into());
        }
        by
    }

    /// Keeps a snapshot closed to delete it; else why it cannot be deleted, in
    /// words. The caller holds `meta`.
    pub(crate) fn keep_to_delete(
        &self,
        snapshot: &Snapshot,
    ) -> std::result::Result<KeptClosed<'_>, Vec<String>> {
        let kept_closed = self.keep_snapshot_closed(snapshot.number);
        let held = self.held_by(snapshot);
        match kept_closed {
            Some(kept_closed) if held.is_empty() => Ok(kept_closed),
            None if held.is_empty() => Err(vec![OPEN.into()]),
            _ => Err(held),
        }
    }

    /// Where data or a hole begins in a snapshot.
    pub fn seek_snapshot(
        &self,
        snapshot: &Snapshot,
        offset: u64,
        what: Seek,
        wait: Wait,
    ) -> Result<Attempt<Option<u64>>> {
        self.seek_below(&snapshot.base(), snapshot.size, offset, what, wait)
    }

    /// Bytes of data in a snapshot, whole blocks or chunks counted.
    pub fn allocated_snapshot(&self, snapshot: &Snapshot, wait: Wait) -> Result<Attempt<u64>> {
        match snapshot.base() {
            Below::Root(root) => Ok(Attempt::Done(
                (root.root.count * self.engine.sealed.chunk_size())
                    .min(snapshot.size.next_multiple_of(4096)),
            )),
            below => self.count_below(&below, snapshot.size, wait),
        }
    }
}

impl Snapshot {
    pub(super) fn created_text(&self) -> String {
        time::rfc3339(self.created_ns)
    }
}
