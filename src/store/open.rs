//! Opening and closing a store.

use super::*;
use crate::chunk::Keys;
use crate::chunk::store as chunk_store;
use crate::disk::sealed::Sealed;
use crate::disk::{Signal, layer};
use crate::pack::{self, PackName};
use crate::policy::run::{Clocks, quiet_from, quiet_until};
use crate::pool::Pool;
use crate::recover;
use crate::sys::ClockWatch;
use std::collections::HashMap;
use std::time::Instant;

/// Threads that answer fsyncs: at most one a disk is busy at a time.
const FLUSH_THREADS: usize = 8;

impl Store {
    /// Opens the store in `root`: takes its lock, recovers what an earlier
    /// run left, and starts the background threads. What was found goes to
    /// the log.
    pub fn open(root: &Path, options: Options, progress: &dyn Progress) -> Result<Arc<Store>> {
        let shown = root.display().to_string();
        let not_a_store = |detail: String| Error::NotAStore {
            path: shown.clone(),
            detail,
        };
        if !root.is_dir() {
            return Err(not_a_store("there is no such directory".into()));
        }
        if !is_store(root) {
            return Err(not_a_store(
                "it has no manifests/store; `snapdisk init` makes a store".into(),
            ));
        }
        let lock = StoreLock::take(root)?;
        let files: Arc<dyn Files> = Arc::new(LocalFiles::new(root));
        let store = Store::open_in(files, root, options, progress)?;
        *store.lock.lock() = Some(lock);
        Ok(store)
    }

    /// Opens the store in a directory tree that nobody else uses. `root` is
    /// where the index, a cache that may be lost at any moment, has its
    /// directory.
    pub fn open_in(
        files: Arc<dyn Files>,
        root: &Path,
        options: Options,
        progress: &dyn Progress,
    ) -> Result<Arc<Store>> {
        let local = LocalBackend::new(files.clone())?;
        local.settle_names()?;
        let backend: Arc<dyn Backend> = Arc::new(local);
        let manifests = Manifests::new(backend.clone());
        let header = manifests
            .header(check_features)?
            .ok_or_else(|| Error::NotAStore {
                path: root.display().to_string(),
                detail: "its header is missing".into(),
            })?;
        let mut is_anew = false;
        let mut catalogue = match read_catalogue(&manifests, &header) {
            Err(error) if error.is_unreadable() && options.mend_catalogue => {
                tracing::error!("{error}; it is made anew from the manifests that are there");
                let epoch = latest_pack(&*backend)?;
                let mut catalogue = manifests.catalogue_anew(header.store, epoch)?;
                // Numbers of disks that were removed are not known any more,
                // and whoever remembers their inodes should not meet them
                // again.
                let next_number = catalogue.next_number.saturating_add(1 << 16);
                catalogue.next_number = next_number.min(manifest::NUMBER_LIMIT);
                // Nor whether the clock was set since the store was last seen.
                catalogue.quiet_until_ns = quiet_from(crate::time::now_ns());
                manifests.replace_unreadable(&catalogue)?;
                is_anew = true;
                catalogue
            }
            read => read?,
        };
        // Names made in this run are told from those of every other.
        let now_ns = crate::time::now_ns();
        let seen_ns = catalogue.seen_ns;
        // With what was seen, or another run that comes before the policies
        // have had a look would trust a clock that jumped.
        if let Some(until_ns) = quiet_until(seen_ns, now_ns) {
            catalogue.quiet_until_ns = until_ns;
        }
        let quiet_ns = catalogue.quiet_until_ns;
        catalogue.epoch = catalogue.epoch.saturating_add(1);
        catalogue.seen_ns = now_ns;
        catalogue.sequence += 1;
        catalogue.store = Some(header.store);
        manifests.replace(&catalogue)?;

        let key = blake3::Hash::from_hex(&header.key).map_err(|error| Error::Damaged {
            what: manifest::header_key(),
            detail: format!("its key: {error}"),
        })?;
        let (chunks, opened) = ChunkStore::open(
            backend,
            Keys::new(key.as_bytes()),
            chunk_store::Options {
                chunk_size: header.chunk_size,
                store: header.store,
                epoch: catalogue.epoch,
                index_dir: root.join("index"),
                cache_bytes: options.cache_bytes,
                pack_bytes: options.pack_bytes,
            },
            &|done, total| progress.update("rebuilding the index", done, total),
        )?;
        chunks.set_apart(catalogue.apart.iter().copied());
        if opened.rebuilt > 0 {
            tracing::info!("index: entries of {} packs rebuilt", opened.rebuilt);
        }
        for finding in &opened.findings {
            tracing::error!("packs: {finding}");
        }
        let engine = Arc::new(Engine {
            files: files.clone(),
            sealed: Arc::new(Sealed::new(chunks, header.chunk_size)),
            manifests,
            capacity: Capacity::new(files),
            epoch: catalogue.epoch,
            layers: Mutex::default(),
            links: Mutex::default(),
            disks: RwLock::default(),
            settling: RwLock::default(),
            work: Signal::default(),
            seal_trouble: Mutex::default(),
            events: Arc::new(EventLog::open(root)),
            metrics: Metrics::default(),
            settings: RwLock::new(catalogue.settings),
            recompress: AtomicBool::new(catalogue.recompress),
            gate: RwLock::default(),
            clock: watch_clock(),
            unique: Mutex::default(),
            flushes: Pool::new("flush", FLUSH_THREADS),
            dirty: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        });
        let recovered = recover::recover(&engine, &catalogue, is_anew, progress)?;
        let disks: BTreeMap<u32, Arc<Disk>> = recovered
            .disks
            .into_iter()
            .map(|disk| (disk.number(), disk))
            .collect();
        tracing::info!(
            "opened: {} disks and images, {} packs with {} chunks, {} unsealed layers; {}",
            disks.len(),
            opened.packs,
            opened.chunks,
            engine.layers.lock().len(),
            recovered.summary
        );
        *engine.disks.write() = disks.values().map(Arc::downgrade).collect();
        let store = Arc::new(Store {
            root: root.to_owned(),
            header,
            engine,
            naming: Mutex::default(),
            catalogue: Mutex::new(catalogue),
            disks: RwLock::new(disks),
            policies: Mutex::new(recovered.policies),
            groups: Mutex::new(recovered.groups),
            threads: Mutex::default(),
            lock: Mutex::default(),
            publishing: Mutex::default(),
            collecting: Mutex::default(),
            collectors: AtomicU32::default(),
            recompression: Mutex::default(),
            history: History::open(root),
            space_low: AtomicBool::new(false),
            damage: Mutex::new(recovered.damage),
        });
        store.forget_unmade_images();
        store.start_background(Clocks::new(seen_ns, quiet_ns, now_ns, Instant::now()));
        Ok(store)
    }

    /// Ends the background work, flushes everything, closes packs and
    /// index, and lets go of the lock. A second call does nothing.
    pub fn close(&self) -> Result<()> {
        if self.engine.closing.swap(true, Ordering::SeqCst) {
            return Ok(());
        }
        // Under the lock, or a thread that is about to sleep misses it.
        self.engine.work.raise(|_| ());
        if let Some(Err(error)) = self.engine.clock.as_ref().map(ClockWatch::end) {
            tracing::error!("ending the watch of the clock: {error}");
        }
        self.engine.events.note(Event::new(What::Closed));
        self.engine.events.close();
        let this = std::thread::current().id();
        for thread in std::mem::take(&mut *self.threads.lock()) {
            // The last holder of the store may be one of them.
            if thread.thread().id() != this && thread.join().is_err() {
                tracing::error!("a background thread had panicked");
            }
        }
        self.engine.flushes.close();
        let mut outcome = Ok(());
        for disk in self.all_disks() {
            if disk.poisoned().is_some() {
                continue;
            }
            // One whose log cannot be read takes no record.
            if let Some(head) = disk.head().filter(|head| head.broken().is_none()) {
                head.note_modified();
            }
            if let Err(error) = disk.sync_layers() {
                tracing::error!("disk {}: {error}", disk.name());
                outcome = Err(error);
            }
        }
        if let Err(error) = self.chunks().close() {
            tracing::error!("closing packs and index: {error}");
            outcome = Err(error);
        }
        if outcome.is_ok()
            && let Err(error) = self.note_closed()
        {
            // The next opening takes it for a crash, which loses nothing.
            tracing::warn!("noting that the store was closed: {error}");
        }
        // A gc or a repair that somebody asked for ends at its next look at
        // `closing`; until it does, or the process ends, the store is taken.
        match self.collecting.try_lock() {
            Some(_alone) => *self.lock.lock() = None,
            None => tracing::info!("the store stays locked until the process ends"),
        }
        tracing::info!("closed");
        outcome
    }
}

impl Store {
    /// Notes how far the logs reach, now that nothing is written any more.
    fn note_closed(&self) -> Result<()> {
        self.engine.manifests.check_known()?;
        let mut catalogue = self.lock_catalogue();
        let mut next = catalogue.clone();
        next.seen_ns = crate::time::now_ns();
        let layers = self.engine.layers.lock();
        // What could not be opened in this run may be in the next.
        if self.damage.lock().is_empty() {
            next.log_ends.retain(|id, _| layers.contains_key(id));
        }
        for layer in layers.values().filter(|layer| layer.broken().is_none()) {
            let end = layer.log_end();
            next.log_ends.extend(end.map(|end| (layer.id, end)));
        }
        drop(layers);
        self.replace_catalogue(&mut catalogue, next)
    }
}

fn watch_clock() -> Option<ClockWatch> {
    ClockWatch::new()
        .inspect_err(|error| tracing::warn!("the clock is looked at once a minute: {error}"))
        .ok()
}

fn read_catalogue(manifests: &Manifests, header: &Header) -> Result<Catalogue> {
    let key = manifest::catalogue_key();
    let damaged = |detail: &str| Error::Damaged {
        what: key.clone(),
        detail: detail.to_owned(),
    };
    let read: Option<Catalogue> = manifests.read(&key)?;
    let catalogue = read.ok_or_else(|| damaged("the catalogue is missing"))?;
    match catalogue.store {
        Some(store) if store != header.store => {
            Err(damaged("it is the catalogue of another store"))
        }
        _ => Ok(catalogue),
    }
}

/// The latest run that wrote a pack.
fn latest_pack(backend: &dyn Backend) -> Result<u64> {
    let packs = backend.list(pack::PREFIX)?;
    let names = packs
        .iter()
        .filter_map(|(key, _)| key.strip_prefix(pack::PREFIX));
    let epochs = names.filter_map(|name| name.parse().ok().map(|name: PackName| name.epoch));
    // No run of this program has such a number.
    let epochs = epochs.filter(|epoch| *epoch < manifest::COUNT_LIMIT / 2);
    Ok(epochs.max().unwrap_or(0))
}

fn check_features(header: &Header) -> Result<()> {
    let unknown: Vec<&str> = header
        .incompat
        .iter()
        .chain(&header.ro_compat)
        .map(String::as_str)
        .collect();
    if !unknown.is_empty() {
        return Err(Error::FormatNewer {
            found: format!("features {}", unknown.join(", ")),
            known: format!("format {} without them", manifest::FORMAT),
        });
    }
    if !header.chunk_size.is_power_of_two() || !(16 << 10..=1 << 20).contains(&header.chunk_size) {
        return Err(Error::Damaged {
            what: manifest::header_key(),
            detail: format!("its chunk size is {}", header.chunk_size),
        });
    }
    Ok(())
}

/// The segment files that each layer has.
pub(crate) type LayerFiles = HashMap<crate::manifest::LayerId, Vec<u64>>;

/// Lists the layers' directory.
pub(crate) fn layer_files(files: &dyn Files) -> Result<(LayerFiles, Vec<String>)> {
    let mut found = LayerFiles::new();
    let mut strangers = Vec::new();
    let entries = files
        .list(Path::new(layer::DIRECTORY))
        .map_err(Error::io("listing", layer::DIRECTORY))?;
    for entry in entries.into_iter().filter(|entry| !entry.is_dir) {
        match layer::parse_file_name(&entry.name) {
            Some((id, segment)) => found.entry(id).or_default().extend(segment),
            None => strangers.push(entry.name),
        }
    }
    Ok((found, strangers))
}
