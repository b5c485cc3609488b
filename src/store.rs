//! A store: its disks, images and catalogue, and the threads that work in
//! the background.

use crate::backend::Backend;
use crate::backend::local::LocalBackend;
use crate::capacity::{Capacity, Space};
use crate::chunk::store::ChunkStore;
use crate::disk::{Disk, Engine};
use crate::error::{Error, Result};
use crate::events::{Event, EventLog, What};
use crate::files::{Files, LocalFiles};
use crate::manifest::{
    self, Catalogue, EntryKind, GroupRecord, Header, LinkRecord, Manifests, Owner, PolicyRecord,
    Role, Settings,
};
use crate::metrics::Metrics;
use crate::name::{DiskName, ImageName};
use crate::progress::Progress;
use crate::recover::Damage;
use crate::snapshot::Snapshot;
use crate::time;
use history::History;
use parking_lot::{Mutex, MutexGuard, RwLock};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use uuid::Uuid;

mod background;
mod groups;
pub mod history;
mod images;
mod lock;
mod open;
pub(crate) mod policies;
mod prometheus;
pub mod recompress;
mod status;

pub use groups::Group;
pub use lock::StoreLock;
pub(crate) use open::layer_files;
pub use policies::InForce;
pub use status::Status;

/// How a store is made.
pub struct InitOptions {
    /// Bytes in a chunk: a power of two from 16 KiB to 1 MiB.
    pub chunk_size: u32,
}

impl Default for InitOptions {
    fn default() -> Self {
        InitOptions {
            chunk_size: 64 << 10,
        }
    }
}

/// How a store is used.
#[derive(Clone, Debug)]
pub struct Options {
    /// Bytes of decompressed chunks kept in memory.
    pub cache_bytes: u64,
    /// Bytes in a pack, roughly.
    pub pack_bytes: u64,
    /// A catalogue that is missing or damaged is made anew from the
    /// manifests that are there.
    pub mend_catalogue: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            cache_bytes: 48 << 20,
            pack_bytes: 64 << 20,
            mend_catalogue: false,
        }
    }
}

/// An image as `.images` lists it.
#[derive(Clone)]
pub enum Image {
    /// A second name of a snapshot's image.
    Link {
        /// Its name.
        name: String,
        /// The snapshot's disk.
        disk: Arc<Disk>,
        /// The snapshot.
        snapshot: Arc<Snapshot>,
    },
    /// An imported image.
    Import {
        /// Its name.
        name: String,
        /// What holds its data.
        disk: Arc<Disk>,
    },
}

impl Image {
    /// Its name.
    pub fn name(&self) -> &str {
        match self {
            Image::Link { name, .. } | Image::Import { name, .. } => name,
        }
    }
}

/// An open store.
pub struct Store {
    root: PathBuf,
    pub(crate) header: Header,
    pub(crate) engine: Arc<Engine>,
    /// Held while a disk or image gets a name, or a policy changes. Lock
    /// order: before all others.
    naming: Mutex<()>,
    /// Held by every change of what the catalogue lists, over its manifest.
    /// Lock order: after a disk's `meta`; only that of a new disk, which is in
    /// no list yet, is taken under it.
    catalogue: Mutex<Catalogue>,
    /// Disks and imported images, by number. Held for a look only; before
    /// their `state`.
    disks: RwLock<BTreeMap<u32, Arc<Disk>>>,
    /// Named policies. Held for a look or an insertion; changes of what it
    /// lists hold `naming`. A leaf.
    policies: Mutex<BTreeMap<Uuid, PolicyRecord>>,
    /// Groups, those without members too. Held for a look or an insertion;
    /// changes of what it lists hold the catalogue. A leaf.
    groups: Mutex<BTreeMap<Uuid, GroupRecord>>,
    /// Before all that these take: closing waits for their ends under it.
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// A leaf, held over writing the file.
    lock: Mutex<Option<StoreLock>>,
    /// Held from the moment layers count as sealed until manifests say so
    /// and their packs are let go. Lock order: after `collecting`, before a
    /// disk's `meta`.
    pub(crate) publishing: Mutex<()>,
    /// Held by a gc from its start to its end, by recompression too. Taken
    /// by [`Store::lock_collecting`], so that the latter makes way. Before
    /// `publishing`, `settling` and all that these come before; never with
    /// `naming`.
    collecting: Mutex<()>,
    /// How many wait for that.
    collectors: AtomicU32,
    /// After `collecting`; held over its file.
    recompression: Mutex<recompress::Recompression>,
    /// How it grew.
    history: History,
    /// Whoever listens was told that there is little room.
    space_low: AtomicBool,
    /// What recovery found damaged: gc deletes nothing then. After
    /// the catalogue, `threads` and `Engine::layers`.
    pub(crate) damage: Mutex<Vec<Damage>>,
}

/// Whether a directory looks like a store: it has a header, or its copy.
pub fn is_store(root: &Path) -> bool {
    header_file(root).is_some()
}

/// The file of a store's header, or that of its copy; None if neither is
/// there.
pub fn header_file(root: &Path) -> Option<PathBuf> {
    [manifest::header_key(), manifest::header_copy_key()]
        .map(|key| root.join(key))
        .into_iter()
        .find(|path| path.exists())
}

/// Makes a store in `root`, which is made if it is not there.
pub fn init(root: &Path, options: &InitOptions) -> Result<()> {
    if !options.chunk_size.is_power_of_two() || !(16 << 10..=1 << 20).contains(&options.chunk_size)
    {
        return Err(Error::InvalidArgument {
            what: format!(
                "a chunk size of {} bytes: it is a power of two from 16 KiB to 1 MiB",
                options.chunk_size
            ),
        });
    }
    let shown = root.display().to_string();
    match std::fs::read_dir(root) {
        Ok(mut entries) => {
            if is_store(root) {
                return Err(Error::Exists {
                    what: "store",
                    name: shown,
                });
            }
            // A store whose making was cut short has these only, and a new
            // filesystem the last.
            let known = ["packs", "manifests", "layers", "lock", "lost+found"];
            let stranger = entries.find_map(|entry| {
                let name = entry.ok()?.file_name();
                (!known.iter().any(|known| name == *known)).then_some(name)
            });
            if let Some(name) = stranger {
                return Err(Error::NotEmpty {
                    what: shown,
                    content: name.to_string_lossy().into_owned(),
                });
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            make_directory(root).map_err(Error::io("creating", shown.clone()))?;
        }
        Err(error) => return Err(Error::io("reading", shown)(error)),
    }
    crate::sys::restrict_directory(root).map_err(Error::io("restricting", shown.clone()))?;
    let _lock = StoreLock::take(root)?;
    // Somebody else may have made it since.
    if is_store(root) {
        return Err(Error::Exists {
            what: "store",
            name: shown,
        });
    }
    let files: Arc<dyn Files> = Arc::new(LocalFiles::new(root));
    init_in(files, options)
}

/// Makes a directory and those above it that are not there, durably: a store
/// is no safer than its name.
fn make_directory(path: &Path) -> std::io::Result<()> {
    let above = |dir: &Path| match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let missing: Vec<&Path> = path
        .ancestors()
        .take_while(|dir| !dir.as_os_str().is_empty() && !dir.exists())
        .collect();
    std::fs::create_dir_all(path)?;
    for dir in missing {
        std::fs::File::open(above(dir))?.sync_all()?;
    }
    Ok(())
}

/// Makes a store in an empty directory tree. The header comes last: what has
/// one is whole.
pub fn init_in(files: Arc<dyn Files>, options: &InitOptions) -> Result<()> {
    for dir in ["packs", "manifests", crate::disk::layer::DIRECTORY] {
        files
            .create_dir(Path::new(dir))
            .map_err(Error::io("creating", dir))?;
    }
    files
        .sync_dir(Path::new(""))
        .map_err(Error::io("syncing", "."))?;
    let backend: Arc<dyn Backend> = Arc::new(LocalBackend::new(files)?);
    let key: [u8; 32] = {
        let mut hasher = blake3::Hasher::new();
        for _ in 0..4 {
            hasher.update(Uuid::new_v4().as_bytes());
        }
        *hasher.finalize().as_bytes()
    };
    let header = Header {
        store: Uuid::new_v4(),
        incompat: Vec::new(),
        ro_compat: Vec::new(),
        compat: Vec::new(),
        chunk_size: options.chunk_size,
        key: blake3::Hash::from_bytes(key).to_hex().to_string(),
        created_ns: time::now_ns(),
    };
    let manifests = Manifests::new(backend.clone());
    let catalogue = manifests.catalogue_anew(header.store, 0)?;
    // One is there if an earlier making was cut short.
    manifests.replace_unreadable(&catalogue)?;
    backend.put_new(&manifest::header_copy_key(), &manifest::encode(&header)?)?;
    backend.put_new(&manifest::header_key(), &manifest::encode(&header)?)
}

impl Store {
    /// Its directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Says in the lock file who holds the store.
    pub fn set_holder(&self, text: &str) {
        if let Some(lock) = &*self.lock.lock() {
            lock.set_holder(text);
        }
    }

    /// Disks, by name.
    pub fn disks(&self) -> Vec<Arc<Disk>> {
        let mut disks: Vec<Arc<Disk>> = self
            .disks
            .read()
            .values()
            .filter(|disk| !disk.is_import())
            .cloned()
            .collect();
        disks.sort_by_key(|disk| disk.name());
        disks
    }

    /// Disks and imported images.
    pub(crate) fn all_disks(&self) -> Vec<Arc<Disk>> {
        self.disks.read().values().cloned().collect()
    }

    /// The disk of that name.
    pub fn disk(&self, name: &str) -> Option<Arc<Disk>> {
        let disks = self.disks.read();
        disks
            .values()
            .find(|disk| !disk.is_import() && disk.name() == name)
            .cloned()
    }

    /// The disk or imported image of that number.
    pub fn disk_by_number(&self, number: u32) -> Option<Arc<Disk>> {
        self.disks.read().get(&number).cloned()
    }

    pub(crate) fn disk_by_id(&self, id: Uuid) -> Option<Arc<Disk>> {
        let disks = self.disks.read();
        disks.values().find(|disk| disk.id() == id).cloned()
    }

    /// Makes a disk without an image; durable when this returns.
    pub fn create_disk(&self, name: DiskName, owner: Owner) -> Result<Arc<Disk>> {
        let _naming = self.naming.lock();
        let mut catalogue = self.catalogue.lock();
        if self.disk(name.as_str()).is_some() {
            return Err(Error::Exists {
                what: "disk",
                name: name.into(),
            });
        }
        self.add_disk(&mut catalogue, Role::Disk, name.into(), owner)
    }

    /// Writes a new disk's manifest, then the catalogue that lists it.
    fn add_disk(
        &self,
        catalogue: &mut Catalogue,
        role: Role,
        name: String,
        owner: Owner,
    ) -> Result<Arc<Disk>> {
        self.engine.check_open()?;
        self.engine.capacity.check_write(1 << 16)?;
        let mut next = catalogue.clone();
        let number = policies::take_number(&mut next)?;
        let disk = Disk::new(self.engine.clone(), number, role, name, owner);
        disk.publish()?;
        next.entries.insert(disk.id(), EntryKind::Disk);
        self.replace_catalogue(catalogue, next)?;
        self.disks.write().insert(number, disk.clone());
        self.engine.disks.write().push(Arc::downgrade(&disk));
        if role == Role::Disk {
            let event = Event::new(What::DiskMade).disk(disk.name());
            self.engine.events.note(event);
        }
        Ok(disk)
    }

    /// Holds on to the catalogue. Lock order: after a disk's `meta`.
    pub(crate) fn lock_catalogue(&self) -> MutexGuard<'_, Catalogue> {
        self.catalogue.lock()
    }

    pub(crate) fn replace_catalogue(
        &self,
        catalogue: &mut Catalogue,
        mut next: Catalogue,
    ) -> Result<()> {
        next.sequence += 1;
        self.engine.manifests.replace(&next)?;
        *catalogue = next;
        Ok(())
    }

    /// Removes a disk that has neither an image nor snapshots.
    pub fn remove_disk(&self, name: &str) -> Result<()> {
        let disk = self.disk(name).ok_or_else(|| Error::Missing {
            what: "disk",
            name: name.to_owned(),
        })?;
        let meta = disk.lock_meta();
        let mut catalogue = self.catalogue.lock();
        let content = match (disk.image_writable(), disk.list_snapshots().len()) {
            (true, _) => "a live image: remove its disk.img first".to_owned(),
            (false, 0) => String::new(),
            (false, count) => format!("{count} snapshots: remove them first"),
        };
        if !content.is_empty() {
            return Err(Error::NotEmpty {
                what: format!("disk {name}"),
                content,
            });
        }
        self.forget_disk(&mut catalogue, &disk)?;
        drop(meta);
        self.engine
            .events
            .note(Event::new(What::DiskRemoved).disk(name));
        Ok(())
    }

    /// Takes a disk off the catalogue, then removes its manifest.
    fn forget_disk(&self, catalogue: &mut Catalogue, disk: &Arc<Disk>) -> Result<()> {
        let mut next = catalogue.clone();
        next.entries.remove(&disk.id());
        self.replace_catalogue(catalogue, next)?;
        disk.forget();
        self.disks.write().remove(&disk.number());
        self.engine
            .manifests
            .delete(&manifest::entry_key(&disk.id(), EntryKind::Disk))
    }

    /// Renames a disk. Another disk is never replaced.
    pub fn rename_disk(&self, from: &str, to: DiskName) -> Result<()> {
        // Names are given under this lock only, so nobody takes it meanwhile.
        let _naming = self.naming.lock();
        let disk = self.disk(from).ok_or_else(|| Error::Missing {
            what: "disk",
            name: from.to_owned(),
        })?;
        if from == to.as_str() {
            return Ok(());
        }
        if self.disk(to.as_str()).is_some() {
            return Err(Error::Exists {
                what: "disk",
                name: to.into(),
            });
        }
        disk.set_name(to.into())
    }

    /// What happened.
    pub fn events(&self) -> &Arc<EventLog> {
        &self.engine.events
    }

    /// What was counted.
    pub fn metrics(&self) -> &Metrics {
        &self.engine.metrics
    }

    /// How it grew.
    pub fn history(&self) -> &History {
        &self.history
    }

    /// How many snapshots a disk may have.
    pub fn settings(&self) -> Settings {
        *self.engine.settings.read()
    }

    /// Notes that nothing is deleted for its date before then.
    pub(crate) fn note_quiet(&self, quiet_until_ns: i64) -> Result<()> {
        let mut catalogue = self.catalogue.lock();
        let next = Catalogue {
            quiet_until_ns,
            ..catalogue.clone()
        };
        self.replace_catalogue(&mut catalogue, next)
    }

    /// Changes how many snapshots a disk may have; durable when this
    /// returns. Those there are stay; with the next automatic snapshot of a
    /// disk the oldest of its automatic ones above the limit go.
    pub fn set_settings(&self, settings: Settings) -> Result<()> {
        self.engine.check_open()?;
        let mut catalogue = self.catalogue.lock();
        let next = Catalogue {
            settings,
            ..catalogue.clone()
        };
        self.replace_catalogue(&mut catalogue, next)?;
        *self.engine.settings.write() = settings;
        Ok(())
    }

    /// Room in the store.
    pub fn space(&self) -> Result<Space> {
        self.engine.capacity.space()
    }

    /// The chunk store.
    pub fn chunks(&self) -> &Arc<ChunkStore> {
        self.engine.sealed.chunks()
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        if !self.engine.closing.load(Ordering::SeqCst)
            && let Err(error) = self.close()
        {
            tracing::error!("closing the store: {error}");
        }
    }
}
