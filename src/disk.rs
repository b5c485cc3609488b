//! A disk: its live image, its snapshots, and the manifest that names them.
//!
//! The live image is the view of its head layer. Metadata operations (take,
//! delete, rename, roll back, …) hold the disk's `meta` lock, work out the
//! disk's next state, write it as one manifest, and only then show it to
//! everybody by one assignment. So a manifest names only what is durable,
//! and what people see is what is on disk.
//!
//! Lock order: `Engine::settling` (shared), `meta`, a range of `ranges`,
//! `Engine::gate`, `durable_layers` or `state`, a layer's own locks. `state`
//! and `opens` are held for an assignment or a look, never across I/O.

pub mod layer;
pub mod log;
pub mod presence;
pub mod ranges;
pub mod sealed;

mod copy;
mod image;
mod live;
mod opens;

pub use copy::Source;
pub(crate) use image::{Swap, Taking};
pub use live::Seek;
pub use opens::Opened;
pub(crate) use opens::{KeptClosed, OPEN};
pub use sealed::{Attempt, Wait};

use crate::capacity::Capacity;
use crate::chunk::ChunkId;
use crate::error::{Error, Result};
use crate::events::{Event, EventLog, What};
use crate::files::Files;
use crate::manifest::{
    BaseRecord, DiskRecord, Encryption, ImageRecord, LayerId, LayerRecord, LinkRecord, Manifests,
    Owner, PolicyUse, Role, Settings,
};
use crate::metrics::Metrics;
use crate::pool::Pool;
use crate::snapshot::Snapshot;
use crate::sys::ClockWatch;
use crate::time;
use layer::{Below, Layer, LayerParts};
use log::GraftSource;
use opens::Opens;
use parking_lot::{Condvar, Mutex, MutexGuard, RwLock};
use ranges::RangeLocks;
use sealed::Sealed;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant, SystemTime};
use uuid::Uuid;

/// Unsealed layers of a disk over which `mkdir` waits for the sealer.
pub const UNSEALED_MAX: usize = 64;
/// Layers of a disk that cannot be sealed over which `mkdir` is refused:
/// every read has to go through all of them.
pub(crate) const STUCK_MAX: usize = 512;

/// What every disk of a store shares.
pub struct Engine {
    /// Where layers keep their files.
    pub files: Arc<dyn Files>,
    /// The chunk store, as the home of maps.
    pub sealed: Arc<Sealed>,
    /// Manifests and catalogue.
    pub manifests: Manifests,
    /// Room left.
    pub capacity: Capacity,
    /// This run of the program.
    pub epoch: u64,
    /// Every layer that has files. After `meta`, `settling`, a disk's
    /// `durable_layers` and the catalogue; before a layer's locks. Held for a
    /// look, but for closing: then over a layer's `log`.
    pub layers: Mutex<HashMap<LayerId, Arc<Layer>>>,
    /// Disks and imported images, for looking at what others show. Weak, as
    /// each holds the engine. After `meta` and the catalogue; before a disk's
    /// `state`. Never held over a sync.
    pub disks: RwLock<Vec<Weak<Disk>>>,
    /// Images that are links to snapshots, by name. A leaf.
    pub links: Mutex<BTreeMap<String, LinkRecord>>,
    /// Held, shared, by whatever has a layer in hand that no state of a disk
    /// names yet; exclusively while files of unnamed layers are removed.
    /// After `naming` and `collecting`, before `meta`.
    pub settling: RwLock<()>,
    /// What the background threads have to do.
    pub work: Signal,
    /// Why nothing is sealed at present, if so: `mkdir` must not wait for it.
    /// A leaf, after `work`.
    pub seal_trouble: Mutex<Option<SealTrouble>>,
    /// What happened.
    pub events: Arc<EventLog>,
    /// What was counted.
    pub metrics: Metrics,
    /// How many snapshots a disk may have. A leaf.
    pub settings: RwLock<Settings>,
    /// Whether cold chunks are packed denser when nothing else is to do.
    pub recompress: AtomicBool,
    /// Held, shared, by whatever looks for the head to write to, until it is
    /// counted there; exclusively while several disks get new heads at one
    /// instant. Held for a moment only. After `meta` and a range of blocks;
    /// before `state` and, exclusively, `durable_layers` and snapshots' names.
    pub gate: RwLock<()>,
    /// Tells when the wall clock is set; None where the system cannot.
    pub clock: Option<ClockWatch>,
    /// What deleting snapshots alone would free, by disk and number, with
    /// what that was worked out from. A leaf.
    pub unique: Mutex<HashMap<(Uuid, u32), (blake3::Hash, u64)>>,
    /// Answers fsyncs.
    pub flushes: Pool,
    /// Something was written since the flusher last looked.
    pub dirty: AtomicBool,
    /// The store is going down.
    pub closing: AtomicBool,
}

/// Why nothing is sealed at present.
#[derive(Clone, Debug)]
pub enum SealTrouble {
    /// There is no room; it goes on when there is.
    NoSpace,
    /// An error that only reopening the store ends, in words.
    Stopped(String),
}

/// What there is to do in the background.
#[derive(Clone, Copy, Default)]
pub struct Work {
    /// Layers to seal, or files of layers to remove.
    pub seal: bool,
    /// Heads whose records should reach the log.
    pub flush: bool,
    /// Something was deleted: space may be won.
    pub collect: bool,
    /// The same, but not before everything is sealed.
    pub collect_sealed: bool,
    /// Imports whose writers are gone.
    pub finish: bool,
    /// Snapshots that may have a date on which they end.
    pub expire: bool,
    /// Packs that recompression may not know.
    pub recompress: bool,
}

/// Wakes the background threads.
#[derive(Default)]
pub struct Signal {
    /// What is to be done. After `meta`, ranges of blocks and the catalogue;
    /// before a disk's `state`, `seal_trouble`, a snapshot's `base`, a layer's
    /// `below` and `sources`, under which it is never taken.
    pub work: Mutex<Work>,
    /// Told when there is more, and when a seal is done.
    pub changed: Condvar,
}

impl Signal {
    /// Adds to what there is to do.
    pub fn raise(&self, add: impl FnOnce(&mut Work)) {
        add(&mut self.work.lock());
        self.changed.notify_all();
    }
}

impl Engine {
    /// [`Error::Closing`] once the store goes down.
    pub fn check_open(&self) -> Result<()> {
        if self.closing.load(Ordering::SeqCst) {
            return Err(Error::Closing);
        }
        Ok(())
    }

    /// To be called before something is deleted, durably and at once: what
    /// was copied from it by reference may be in no log yet, and a crash
    /// would lose both. Disks that failed already cannot be helped.
    pub(crate) fn sync_grafts(&self) -> Result<()> {
        let disks: Vec<Arc<Disk>> = self.disks.read().iter().filter_map(Weak::upgrade).collect();
        for disk in disks {
            let pending = disk.layers().iter().any(|layer| layer.has_pending_graft());
            if pending && disk.poisoned().is_none() {
                disk.sync_layers()?;
            }
        }
        Ok(())
    }

    /// Tells those who wait for layers to be sealed that nobody seals them.
    pub(crate) fn note_no_sealer(&self) {
        let cause = "the thread that seals has ended".to_owned();
        *self.seal_trouble.lock() = Some(SealTrouble::Stopped(cause));
        self.work.raise(|_| ());
    }

    /// Makes a layer that the registry knows.
    pub fn new_layer(&self, below: Below, size: u64) -> Result<Arc<Layer>> {
        let layer = Layer::create(LayerParts {
            files: self.files.clone(),
            below,
            size,
            chunk_size: self.sealed.chunk_size(),
        })?;
        self.layers.lock().insert(layer.id, layer.clone());
        Ok(layer)
    }
}

/// A live image.
#[derive(Clone)]
struct Live {
    head: Arc<Layer>,
    generation: u64,
    owner: Owner,
    changed_ns: i64,
}

/// A disk as everybody sees it.
#[derive(Clone)]
pub(crate) struct State {
    name: String,
    owner: Owner,
    created_ns: i64,
    modified_ns: i64,
    live: Option<Live>,
    next_snapshot: u32,
    next_generation: u64,
    /// By number. The names here count, not those in the snapshots.
    snapshots: Vec<(String, Arc<Snapshot>)>,
    policy: Option<PolicyUse>,
    slot_ns: Option<i64>,
    sequence: u64,
    nonce: Option<Uuid>,
}

/// The waiting fsyncs of a disk.
#[derive(Default)]
struct FlushQueue {
    waiting: Vec<Box<dyn FnOnce(Result<()>) + Send>>,
    running: bool,
}

/// The instants and owner of a directory.
#[derive(Clone, Copy, Debug)]
pub struct DiskAttributes {
    /// Who owns it.
    pub owner: Owner,
    /// When it was made.
    pub created: SystemTime,
    /// When something in it last changed.
    pub modified: SystemTime,
}

/// What `stat` says of a live image.
#[derive(Clone, Copy, Debug)]
pub struct LiveAttributes {
    /// Who owns it.
    pub owner: Owner,
    /// Bytes.
    pub size: u64,
    /// Last write.
    pub modified: SystemTime,
    /// Last write or change of attributes.
    pub changed: SystemTime,
    /// Differs whenever another image took the file's place.
    pub generation: u64,
}

/// A change of attributes; None leaves one as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct AttributeChange {
    /// New user id.
    pub uid: Option<u32>,
    /// New group id.
    pub gid: Option<u32>,
    /// New permission bits.
    pub mode: Option<u32>,
    /// New time of modification.
    pub modified: Option<SystemTime>,
}

impl AttributeChange {
    fn apply(&self, owner: Owner) -> Owner {
        Owner {
            uid: self.uid.unwrap_or(owner.uid),
            gid: self.gid.unwrap_or(owner.gid),
            mode: self.mode.map_or(owner.mode, |mode| mode & 0o7777),
        }
    }
}

/// A disk, or an imported image.
pub struct Disk {
    id: Uuid,
    number: u32,
    role: Role,
    pub(crate) engine: Arc<Engine>,
    /// Held by every metadata operation from its look to its manifest, over
    /// I/O and until writers have left a layer. After `naming`, `publishing`
    /// and `settling`, before all others of a disk, the catalogue and a
    /// layer's `log`; of several disks in the order of their numbers.
    meta: Mutex<()>,
    /// After `gate`, `work` and the lists of disks; before a snapshot's
    /// `notes` and `base`, a layer's `below` and `sources`. No thread reads it
    /// twice at a time.
    state: RwLock<State>,
    ranges: RangeLocks,
    /// A leaf; nobody is answered under it.
    flush_queue: Mutex<FlushQueue>,
    opens: Arc<Opens>,
    poisoned: OnceLock<String>,
    /// The unsealed layers that the manifest on disk names: their files stay.
    /// Lock order: before `Engine::layers`, a snapshot's `notes` and `base`,
    /// and a layer's own; never with `state`.
    durable_layers: Mutex<HashSet<LayerId>>,
    /// Of the manifest that was read, what nothing reaches because a log
    /// that names it could not be read: it stays named until it can.
    out_of_reach: Vec<LayerRecord>,
    /// A leaf.
    allocated: Mutex<Option<(LayerId, u64, u64)>>,
    /// A leaf.
    last_rollback: Mutex<String>,
    /// When an import that nobody writes any more is to be finished. A leaf.
    finish_at: Mutex<Option<Instant>>,
    /// When finishing it is tried again, after it failed. Held while it is
    /// tried; before all other locks.
    finish_not_before: Mutex<Option<Instant>>,
    /// No catalogue lists it any more: it gets no manifest again. Set under
    /// `meta`.
    forgotten: AtomicBool,
}

/// Shows that the `meta` lock is held.
pub(crate) type Meta<'a> = MutexGuard<'a, ()>;

impl Disk {
    /// A new disk without an image, in memory only.
    pub(crate) fn new(
        engine: Arc<Engine>,
        number: u32,
        role: Role,
        name: String,
        owner: Owner,
    ) -> Arc<Disk> {
        let now = time::now_ns();
        let state = State {
            name,
            owner,
            created_ns: now,
            modified_ns: now,
            live: None,
            next_snapshot: 1,
            next_generation: 1,
            snapshots: Vec::new(),
            policy: None,
            slot_ns: None,
            sequence: 0,
            nonce: None,
        };
        Arc::new(Disk::with(engine, Uuid::new_v4(), number, role, state))
    }

    fn with(engine: Arc<Engine>, id: Uuid, number: u32, role: Role, state: State) -> Disk {
        Disk {
            id,
            number,
            role,
            engine,
            meta: Mutex::default(),
            state: RwLock::new(state),
            ranges: RangeLocks::default(),
            flush_queue: Mutex::default(),
            opens: Arc::default(),
            poisoned: OnceLock::new(),
            durable_layers: Mutex::default(),
            out_of_reach: Vec::new(),
            allocated: Mutex::default(),
            last_rollback: Mutex::default(),
            forgotten: AtomicBool::new(false),
            finish_at: Mutex::default(),
            finish_not_before: Mutex::default(),
        }
    }

    /// A disk from its manifest; `below` finds what a record names.
    pub(crate) fn restore(
        engine: Arc<Engine>,
        record: &DiskRecord,
        below: &dyn Fn(BaseRecord) -> Result<Below>,
    ) -> Result<Arc<Disk>> {
        let live = match &record.image {
            None => None,
            Some(image) => {
                let Below::Layer(head) = below(BaseRecord::Layer(image.head))? else {
                    return Err(Error::Damaged {
                        what: format!("the manifest of disk {}", record.name),
                        detail: format!("its head {} is sealed", image.head),
                    });
                };
                if head.modified_ns() == 0 {
                    head.set_modified_ns(image.modified_ns);
                }
                Some(Live {
                    head,
                    generation: image.generation,
                    owner: image.owner,
                    changed_ns: image.changed_ns.max(image.modified_ns),
                })
            }
        };
        let mut snapshots = Vec::new();
        for snapshot in &record.snapshots {
            let base = below(snapshot.base)?;
            snapshots.push((
                snapshot.name.clone(),
                Arc::new(Snapshot::restore(snapshot, base)),
            ));
        }
        let state = State {
            name: record.name.clone(),
            owner: record.owner,
            created_ns: record.created_ns,
            modified_ns: record.modified_ns,
            live,
            next_snapshot: record.next_snapshot,
            next_generation: record.next_generation,
            snapshots,
            policy: record.policy.clone(),
            slot_ns: record.slot_ns,
            sequence: record.sequence,
            nonce: Some(record.nonce),
        };
        let mut disk = Disk::with(engine, record.id, record.number, record.role, state);
        *disk.durable_layers.lock() = unsealed(record);
        if disk.layers().iter().any(|layer| layer.broken().is_some()) {
            let now = disk.record(&disk.state.read(), None).layers;
            let reached: HashSet<LayerId> = now.iter().map(|layer| layer.id).collect();
            let others = record.layers.iter();
            let others = others.filter(|layer| !reached.contains(&layer.id));
            disk.out_of_reach = others.cloned().collect();
        }
        Ok(Arc::new(disk))
    }

    /// After recovery: nothing is behind a layer's end, and every layer but
    /// the head is frozen, and on disk.
    pub(crate) fn settle_recovered(&self) -> Result<()> {
        let head = self.head().map(|head| head.id);
        for layer in self.layers() {
            if layer.broken().is_some() {
                continue;
            }
            match layer.settle_end(&self.engine.sealed) {
                // What is behind the end lies in a lost segment, or cannot
                // be read: then it must not show when the image grows.
                Err(error) if error.is_unreadable() => {
                    tracing::error!("layer {}: {error}", layer.id);
                    // Of the others nothing behind their ends is seen.
                    let is_gone = matches!(error, Error::Damaged { .. }) && !layer.is_end_unsure();
                    if Some(layer.id) == head && !is_gone {
                        layer.fail(&error);
                    }
                }
                settled => settled?,
            }
            if Some(layer.id) != head {
                layer.freeze();
                match layer.sync() {
                    // It or what it rests on failed just now, or is what
                    // could not be read above.
                    Err(error @ Error::Poisoned { .. }) => tracing::error!("{error}"),
                    synced => synced?,
                }
            }
        }
        Ok(())
    }

    /// What never changes and names it everywhere.
    pub fn id(&self) -> Uuid {
        self.id
    }

    /// Its part of inode numbers.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Its name.
    pub fn name(&self) -> String {
        self.state.read().name.clone()
    }

    /// Whether it is an imported image.
    pub fn is_import(&self) -> bool {
        self.role == Role::Image
    }

    /// Owner and times of its directory.
    pub fn attributes(&self) -> DiskAttributes {
        let state = self.state.read();
        DiskAttributes {
            owner: state.owner,
            created: time::to_system(state.created_ns),
            modified: time::to_system(state.modified_ns),
        }
    }

    /// Changes owner, mode or time of its directory; durable when this
    /// returns.
    pub fn set_attributes(&self, change: AttributeChange) -> Result<()> {
        let _settling = self.engine.settling.read();
        let meta = self.meta.lock();
        let mut next = self.state.read().clone();
        next.owner = change.apply(next.owner);
        if let Some(modified) = change.modified {
            next.modified_ns = time::from_system(modified);
        }
        self.commit(&meta, next)
    }

    /// The `meta` lock.
    pub(crate) fn lock_meta(&self) -> Meta<'_> {
        self.meta.lock()
    }

    /// Renames it, in its own manifest only: the caller sees to uniqueness.
    pub(crate) fn set_name(&self, name: String) -> Result<()> {
        let _settling = self.engine.settling.read();
        let meta = self.meta.lock();
        let mut next = self.state.read().clone();
        next.name = name;
        self.commit(&meta, next)
    }

    /// Its policy.
    pub fn policy(&self) -> Option<PolicyUse> {
        self.state.read().policy.clone()
    }

    /// Gives it another policy, or none; durable when this returns.
    pub(crate) fn set_policy(&self, policy: Option<PolicyUse>) -> Result<()> {
        let _settling = self.engine.settling.read();
        let meta = self.meta.lock();
        let mut next = self.state.read().clone();
        next.policy = policy;
        self.commit(&meta, next)
    }

    /// Changes the policy that the disk has by then, if any; durable when this
    /// returns.
    pub(crate) fn change_policy(&self, change: &dyn Fn(&mut PolicyUse)) -> Result<()> {
        let _settling = self.engine.settling.read();
        let meta = self.meta.lock();
        let mut next = self.state.read().clone();
        let Some(policy) = &mut next.policy else {
            return Ok(());
        };
        change(policy);
        self.commit(&meta, next)
    }

    /// The last slot of a policy that was dealt with.
    pub(crate) fn slot_ns(&self) -> Option<i64> {
        self.state.read().slot_ns
    }

    /// Notes a slot as dealt with; durable when this returns.
    pub(crate) fn set_slot(&self, slot_ns: i64) -> Result<()> {
        let meta = self.meta.lock();
        let mut next = self.state.read().clone();
        next.slot_ns = Some(slot_ns);
        self.commit(&meta, next)
    }

    /// Writes its manifest as it is now: a new disk's first, or after layers
    /// were sealed.
    pub(crate) fn publish(&self) -> Result<()> {
        self.publish_under(&self.meta.lock())
    }

    /// [`Disk::publish`] for who holds the `meta` lock.
    pub(crate) fn publish_under(&self, meta: &Meta<'_>) -> Result<()> {
        if self.forgotten.load(Ordering::SeqCst) {
            return Ok(());
        }
        let state = self.state.read().clone();
        self.commit(meta, state)
    }

    /// Has it get no manifest any more; the caller holds `meta`, if others
    /// know of it.
    pub(crate) fn forget(&self) {
        self.forgotten.store(true, Ordering::SeqCst);
    }

    /// Makes `next` the disk's state: durable first, then visible. If it is
    /// unknown whether it is durable, nothing becomes visible.
    fn commit(&self, meta: &Meta<'_>, mut next: State) -> Result<()> {
        let named = self.write_manifest(meta, &mut next)?;
        self.show(meta, next, named);
        Ok(())
    }

    /// Makes `next` durable, and answers the unsealed layers that it names.
    pub(crate) fn write_manifest(
        &self,
        _meta: &Meta<'_>,
        next: &mut State,
    ) -> Result<HashSet<LayerId>> {
        if self.forgotten.load(Ordering::SeqCst) {
            return Err(Error::Missing {
                what: "disk",
                name: self.name(),
            });
        }
        let previous = next.nonce;
        next.sequence += 1;
        next.nonce = Some(Uuid::new_v4());
        // Until it is known which of the two is on disk, both count. What is
        // named counts from the moment at which it is looked at: whoever
        // removes what is sealed looks before or after both.
        let (record, named, before) = {
            let mut durable = self.durable_layers.lock();
            let record = self.record(next, previous);
            let (named, before) = (unsealed(&record), durable.clone());
            durable.extend(named.iter().copied());
            (record, named, before)
        };
        let replaced = self.engine.manifests.replace(&record);
        if let Err(error) = &replaced
            && error.is_no_space()
        {
            *self.durable_layers.lock() = before;
        }
        if let Err(error @ Error::MetadataUnknown { .. }) = &replaced {
            // What is written from now on would be in a head that the
            // manifest on disk may not name (invariant 1).
            let head = |live: &Option<Live>| live.as_ref().map(|live| live.head.id);
            if head(&next.live) != head(&self.state.read().live) {
                self.poison(error);
            }
        }
        replaced?;
        Ok(named)
    }

    /// Shows everybody a state that is durable.
    pub(crate) fn show(&self, _meta: &Meta<'_>, next: State, named: HashSet<LayerId>) {
        *self.durable_layers.lock() = named;
        for (name, snapshot) in &next.snapshots {
            snapshot.set_name(name);
        }
        *self.state.write() = next;
    }

    fn record(&self, state: &State, previous: Option<Uuid>) -> DiskRecord {
        let layers = Layers::of(state);
        let snapshots = state
            .snapshots
            .iter()
            .map(|(name, snapshot)| {
                // It may have been sealed since the layers were looked at:
                // then one is named too many.
                snapshot.record(name, base_record(&snapshot.base()))
            })
            .collect();
        DiskRecord {
            id: self.id,
            number: self.number,
            role: self.role,
            name: state.name.clone(),
            encryption: Encryption::None,
            epoch: self.engine.epoch,
            sequence: state.sequence,
            nonce: state.nonce.unwrap_or_default(),
            previous,
            owner: state.owner,
            created_ns: state.created_ns,
            modified_ns: state.modified_ns,
            image: state.live.as_ref().map(|live| ImageRecord {
                head: live.head.id,
                generation: live.generation,
                owner: live.owner,
                modified_ns: live.head.modified_ns(),
                changed_ns: live.changed_ns,
            }),
            next_snapshot: state.next_snapshot,
            next_generation: state.next_generation,
            policy: state.policy.clone(),
            slot_ns: state.slot_ns,
            layers: self.layer_records(layers),
            snapshots,
        }
    }

    /// What a manifest says of `layers`, and of those that nobody reaches.
    fn layer_records(&self, mut layers: Layers) -> Vec<LayerRecord> {
        for known in &self.out_of_reach {
            if layers.seen.insert(known.id) {
                // Another disk may reach it, and it may have been sealed, or
                // what it lies over: that is named no more then.
                let in_use = self.engine.layers.lock();
                let sealed = |id: &LayerId| {
                    let root = in_use.get(id).and_then(|layer| layer.sealed());
                    root.map(|root| root.id)
                };
                let base = match known.base {
                    BaseRecord::Layer(id) => sealed(&id).map_or(known.base, BaseRecord::Root),
                    base => base,
                };
                layers.records.push(LayerRecord {
                    base,
                    root: known.root.or_else(|| sealed(&known.id)),
                    ..known.clone()
                });
            }
        }
        layers.records
    }

    /// Whether a manifest written now would say something else of layers than
    /// `record` does: name others, or on another base, or with another root.
    pub(crate) fn names_other_layers(&self, record: &DiskRecord) -> bool {
        let says = |layers: &[LayerRecord]| -> HashMap<LayerId, (BaseRecord, Option<ChunkId>)> {
            let layers = layers.iter();
            layers
                .map(|layer| (layer.id, (layer.base, layer.root)))
                .collect()
        };
        let now = self.layer_records(Layers::of(&self.state.read()));
        says(&now) != says(&record.layers)
    }

    /// What a snapshot of it is and its name, for messages.
    pub(crate) fn label_of(&self, snapshot: &Snapshot) -> String {
        match self.is_import() {
            true => self.label(),
            false => format!("snapshot {}@{}", self.name(), snapshot.name()),
        }
    }

    /// What it is and its name, for messages.
    pub(crate) fn label(&self) -> String {
        match self.is_import() {
            true => format!("image {}", self.name()),
            false => format!("disk {}", self.name()),
        }
    }

    /// Every unsealed layer that its image, its snapshots and their grafts
    /// show, each after those that it depends on.
    pub(crate) fn layers(&self) -> Vec<Arc<Layer>> {
        Layers::of(&self.state.read()).ordered
    }

    /// The head of the live image.
    pub(crate) fn head(&self) -> Option<Arc<Layer>> {
        self.state
            .read()
            .live
            .as_ref()
            .map(|live| live.head.clone())
    }

    /// Unsealed layers that the manifest on disk names.
    pub(crate) fn durable_layers(&self) -> HashSet<LayerId> {
        self.durable_layers.lock().clone()
    }

    /// Lets go of layers that have been sealed.
    pub(crate) fn settle(&self) {
        let state = self.state.read().clone();
        for (_, snapshot) in &state.snapshots {
            if snapshot.settle() && !self.is_import() {
                let passed = time::now_ns().saturating_sub(snapshot.created_ns);
                self.engine.events.note(
                    Event::new(What::Ready)
                        .disk(self.name())
                        .snapshot(snapshot.name())
                        .seconds(passed.max(0) as f64 / 1e9)
                        .bytes(snapshot.size),
                );
            }
        }
        for layer in self.layers() {
            layer.settle_sources();
        }
    }

    pub(crate) fn poison(&self, error: &Error) {
        if self.poisoned.set(error.to_string()).is_ok() {
            let event = Event::new(What::Stopped).disk(self.name());
            self.engine.events.note(event.reason(error.to_string()));
            tracing::error!(
                "disk {} answers errors until it is reopened: {error}",
                self.name()
            );
        }
    }

    /// Why it answers errors only, if so.
    pub fn poisoned(&self) -> Option<&str> {
        self.poisoned.get().map(String::as_str)
    }

    pub(crate) fn check_poisoned(&self) -> Result<()> {
        match self.poisoned.get() {
            None => Ok(()),
            Some(cause) => Err(Error::Poisoned {
                what: format!("disk {}", self.name()),
                cause: cause.clone(),
            }),
        }
    }
}

/// Layers in the order of their dependence, and their records.
#[derive(Default)]
struct Layers {
    seen: HashSet<LayerId>,
    ordered: Vec<Arc<Layer>>,
    records: Vec<LayerRecord>,
}

impl Layers {
    /// Those that the image and the snapshots show.
    fn of(state: &State) -> Layers {
        let mut layers = Layers::default();
        if let Some(live) = &state.live {
            layers.add(&live.head);
        }
        for (_, snapshot) in &state.snapshots {
            layers.add_below(&snapshot.base());
        }
        layers
    }

    fn add_below(&mut self, below: &Below) {
        if let Below::Layer(layer) = below.settled() {
            self.add(&layer);
        }
    }

    fn add(&mut self, layer: &Arc<Layer>) {
        if !self.seen.insert(layer.id) {
            return;
        }
        let below = layer.below();
        self.add_below(&below);
        for (name, source) in layer.sources() {
            // Looked at once: between two looks it may be sealed, and would be
            // named neither as a layer nor by its root.
            let root = match source.settled() {
                Below::Root(root) => Some((root.id, root.root.size)),
                // It cannot be read now, which may pass.
                Below::Lost(lost) => Some((lost.id, 0)),
                Below::Layer(layer) => {
                    self.add(&layer);
                    None
                }
                Below::Empty => None,
            };
            if let (GraftSource::Layer(id), Some((root, size))) = (name, root)
                && self.seen.insert(id)
            {
                // Its files are gone; the log that names it is not.
                self.records.push(LayerRecord {
                    id,
                    base: BaseRecord::Empty,
                    size,
                    root: Some(root),
                    key_id: 0,
                });
            }
        }
        self.ordered.push(layer.clone());
        self.records.push(LayerRecord {
            id: layer.id,
            base: base_record(&below),
            size: layer.begin_size(),
            root: None,
            key_id: 0,
        });
    }
}

fn base_record(below: &Below) -> BaseRecord {
    match below.settled() {
        Below::Empty => BaseRecord::Empty,
        Below::Root(root) => BaseRecord::Root(root.id),
        Below::Layer(layer) => BaseRecord::Layer(layer.id),
        Below::Lost(lost) => BaseRecord::Root(lost.id),
    }
}

fn unsealed(record: &DiskRecord) -> HashSet<LayerId> {
    record
        .layers
        .iter()
        .filter(|layer| layer.root.is_none())
        .map(|layer| layer.id)
        .collect()
}
