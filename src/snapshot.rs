//! Snapshots: taking, deleting, renaming and reading them.

pub mod seal;

use crate::chunk::ChunkId;
use crate::disk::layer::{Below, read_below};
use crate::disk::sealed::SealedRoot;
use crate::disk::{Attempt, Disk, Wait};
use crate::error::Result;
use crate::manifest::{BaseRecord, Owner, SnapshotKind, SnapshotRecord};
use crate::time;
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, Ordering};
use std::time::SystemTime;
use uuid::Uuid;

mod info;
mod manage;
mod notes;

pub(crate) use info::UNIQUE;
pub use manage::OpenSnapshot;
pub use notes::Notes;

/// A disk as it was at one instant.
pub struct Snapshot {
    pub(crate) id: Uuid,
    pub(crate) number: u32,
    /// The group that it was taken with.
    pub(crate) group: Option<Uuid>,
    /// Bytes.
    pub(crate) size: u64,
    /// Owner of the live image at that instant.
    pub owner: Owner,
    pub(crate) created_ns: i64,
    /// Changed under the disk's `meta` only, as `name` and `base` are. A leaf.
    notes: RwLock<Notes>,
    /// A leaf.
    name: RwLock<String>,
    /// After the disk's `state`; before a layer's `sources` and `below`.
    base: RwLock<Below>,
    changed_ns: AtomicI64,
    /// Images that are links to it.
    links: AtomicU32,
    damaged: AtomicBool,
}

impl Snapshot {
    pub(crate) fn new(
        number: u32,
        kind: SnapshotKind,
        base: Below,
        size: u64,
        created_ns: i64,
        owner: Owner,
    ) -> Snapshot {
        Snapshot {
            id: Uuid::new_v4(),
            number,
            group: None,
            size,
            owner,
            created_ns,
            notes: RwLock::new(Notes {
                kind,
                ..Notes::default()
            }),
            name: RwLock::default(),
            base: RwLock::new(base.settled()),
            changed_ns: AtomicI64::new(created_ns),
            links: AtomicU32::new(0),
            damaged: AtomicBool::new(false),
        }
    }

    pub(crate) fn restore(record: &SnapshotRecord, base: Below) -> Snapshot {
        Snapshot {
            id: record.id,
            number: record.number,
            group: record.group,
            size: record.size,
            owner: record.owner,
            created_ns: record.created_ns,
            notes: RwLock::new(Notes {
                hold: record.hold.clone(),
                expires_ns: record.expires_ns,
                tags: record.tags.clone(),
                kind: record.kind,
                policy: record.policy.clone(),
            }),
            name: RwLock::new(record.name.clone()),
            base: RwLock::new(base),
            changed_ns: AtomicI64::new(record.changed_ns.max(record.created_ns)),
            links: AtomicU32::new(0),
            damaged: AtomicBool::new(record.damaged),
        }
    }

    pub(crate) fn record(&self, name: &str, base: BaseRecord) -> SnapshotRecord {
        let notes = self.notes();
        SnapshotRecord {
            id: self.id,
            number: self.number,
            name: name.to_owned(),
            kind: notes.kind,
            group: self.group,
            policy: notes.policy,
            base,
            size: self.size,
            created_ns: self.created_ns,
            changed_ns: self.changed_ns.load(Ordering::Relaxed),
            expires_ns: notes.expires_ns,
            hold: notes.hold,
            tags: notes.tags,
            owner: self.owner,
            damaged: self.damaged.load(Ordering::Relaxed),
        }
    }

    /// What is noted on it.
    pub fn notes(&self) -> Notes {
        self.notes.read().clone()
    }

    pub(crate) fn set_notes(&self, notes: Notes) {
        *self.notes.write() = notes;
    }

    /// Its number in the disk, which rises with every snapshot.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.name.read().clone()
    }

    pub(crate) fn set_name(&self, name: &str) {
        let mut current = self.name.write();
        if *current != name {
            *current = name.to_owned();
        }
    }

    /// Bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The instant.
    pub fn created(&self) -> SystemTime {
        time::to_system(self.created_ns)
    }

    /// When what `info.toml` says last changed.
    pub fn changed(&self) -> SystemTime {
        time::to_system(self.changed_ns.load(Ordering::Relaxed))
    }

    pub(crate) fn touch(&self) {
        self.changed_ns.fetch_max(time::now_ns(), Ordering::Relaxed);
    }

    /// Names that its image has: one more than there are images of it.
    pub fn links(&self) -> u32 {
        1 + self.links.load(Ordering::SeqCst)
    }

    pub(crate) fn link_count(&self) -> &AtomicU32 {
        &self.links
    }

    /// What it shows.
    pub(crate) fn base(&self) -> Below {
        self.base.read().settled()
    }

    /// Who wanted it.
    pub fn kind(&self) -> SnapshotKind {
        self.notes.read().kind
    }

    /// Lets go of a sealed layer; true if that is news.
    pub(crate) fn settle(&self) -> bool {
        let settled = self.base();
        let mut base = self.base.write();
        let news = matches!((&*base, &settled), (Below::Layer(_), Below::Root(_)));
        if news {
            *base = settled;
            drop(base);
            self.touch();
        }
        news
    }

    /// Its map, once sealed; None while sealing, and for zeros only.
    pub(crate) fn sealed(&self) -> Option<Arc<SealedRoot>> {
        match self.base() {
            Below::Root(root) => Some(root),
            _ => None,
        }
    }

    /// The root hash, once sealed.
    pub fn root(&self) -> Option<ChunkId> {
        self.sealed().map(|root| root.id)
    }

    /// Notes whether something of it is lost; true if that is news.
    pub(crate) fn mark_damaged(&self, damaged: bool) -> bool {
        let news = self.damaged.swap(damaged, Ordering::Relaxed) != damaged;
        if news {
            self.touch();
        }
        news
    }

    /// Whether it is going to be sealed some time.
    pub(crate) fn is_being_sealed(&self) -> bool {
        match &*self.base.read() {
            Below::Layer(layer) => !layer.is_stuck(),
            _ => false,
        }
    }

    /// "sealing", "ready" or "damaged".
    pub fn state(&self) -> &'static str {
        if self.damaged.load(Ordering::Relaxed) {
            return "damaged";
        }
        // A root that no manifest names yet is none.
        match &*self.base.read() {
            // Broken, or over something that is: it is never sealed.
            Below::Layer(layer) if layer.is_stuck() => "damaged",
            Below::Layer(_) => "sealing",
            Below::Lost(_) => "damaged",
            _ => "ready",
        }
    }
}

impl Disk {
    /// Reads from a snapshot, short at its end.
    pub fn read_snapshot(
        &self,
        snapshot: &Snapshot,
        offset: u64,
        buf: &mut [u8],
        wait: Wait,
    ) -> Result<Attempt<usize>> {
        let len = snapshot.size.saturating_sub(offset).min(buf.len() as u64) as usize;
        let base = snapshot.base();
        let part = &mut buf[..len];
        Ok(read_below(&self.engine.sealed, &base, offset, part, wait)?.map(|()| len))
    }
}
