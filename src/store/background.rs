//! The threads that work in the background: the sealer, the flusher, the
//! collector, the finisher of imports, the one that does what policies and
//! dates want, the one that is told when the clock is set, and the one that
//! writes events down. Each sleeps until there is something to do; an idle
//! store wakes none of them but that for policies and the one that samples
//! what is stored, once an hour each. The latter recompresses, too, if that
//! is wanted, and then looks once a minute as long as there is something cold.

use super::*;
use crate::chunk::store::Batch;
use crate::disk::SealTrouble;
use crate::disk::layer::Layer;
use crate::disk::sealed::SealedRoot;
use crate::manifest::LayerId;
use crate::policy::run::{Clocks, LOOK};
use crate::progress::Quiet;
use crate::snapshot::seal::SealPass;
use crate::sys;
use parking_lot::RwLockWriteGuard;
use std::collections::HashSet;
use std::sync::Weak;
use std::time::{Duration, Instant};

/// How long after the first write a head's records reach the log at the
/// latest (the kernel's own default for dirty pages).
const FLUSH_DELAY: Duration = Duration::from_secs(30);
/// How long what is deleted may gather before space is won back.
const COLLECT_DELAY: Duration = Duration::from_secs(2);
/// How long a seal that had no room, or files that could not be removed yet,
/// wait before the next try.
const RETRY_DELAY: Duration = Duration::from_secs(5);
/// Bytes of layers sealed in one pass, from which on it ends.
const PASS_BYTES: u64 = 1 << 30;
/// Layers sealed in one pass.
const PASS_LAYERS: usize = 64;

/// Map pages that a pass holds in memory, from which on it ends: some 10 KiB
/// each.
const PASS_PAGES: usize = 4096;

/// What a thread does until the store closes.
type Body = Box<dyn FnOnce(&Weak<Store>, &Engine) + Send>;

/// What a round of the sealer came to.
enum Round {
    /// There may be more to do.
    More,
    /// All is done.
    Done,
    /// Something could not be done yet.
    Later,
}

impl Store {
    /// Starts the threads. They hold the store weakly: it ends them.
    pub(super) fn start_background(self: &Arc<Self>, clocks: Clocks) {
        self.engine.events.note(Event::new(What::Opened));
        let root = self.root.clone();
        let ends = SealerEnds(self.engine.clone());
        let bodies: [(&str, Body); 8] = [
            (
                "events",
                Box::new(move |_, engine| engine.events.write_out(&root)),
            ),
            ("sampler", Box::new(sample_thread)),
            ("clock", Box::new(clock_thread)),
            (
                "sealer",
                Box::new(move |store, _| seal_thread(store, &ends)),
            ),
            ("flusher", Box::new(flush_thread)),
            ("collector", Box::new(collect_thread)),
            ("finisher", Box::new(finish_thread)),
            (
                "policies",
                Box::new(move |store, engine| policy_thread(store, engine, clocks)),
            ),
        ];
        let mut threads = self.threads.lock();
        for (name, body) in bodies {
            let store = Arc::downgrade(self);
            let engine = self.engine.clone();
            let spawned = std::thread::Builder::new()
                .name(name.to_owned())
                .spawn(move || body(&store, &engine));
            match spawned {
                Ok(thread) => threads.push(thread),
                Err(error) => tracing::error!("no {name} thread: {error}"),
            }
        }
        for disk in self.all_disks() {
            disk.released();
        }
        for damage in &*self.damage.lock() {
            let event = Event::new(What::Damage).reason(&damage.text);
            self.engine.events.note(event);
        }
        self.engine.work.raise(|work| work.seal = true);
    }

    /// Finishes the imports whose time has come; answers when the next one's
    /// comes.
    fn finish_imports(&self) -> Option<Instant> {
        let mut next: Option<Instant> = None;
        for disk in self.all_disks() {
            if disk.finish_at().is_some_and(|at| at <= Instant::now()) {
                disk.finish_import_or_later();
            }
            if let Some(at) = disk.finish_at() {
                next = Some(next.map_or(at, |next| next.min(at)));
            }
        }
        next
    }

    /// One pass: layers that can be sealed become maps, manifests name the
    /// maps, files that nothing needs any more go.
    fn seal_round(&self, pool: &rayon::ThreadPool) -> Result<Round> {
        let chunks = self.chunks().clone();
        let batch = chunks.begin();
        let roots = self.seal_some(&batch, pool)?;
        let sealed = roots.len();
        // Whoever sees a snapshot ready, deletes it and asks for its space
        // must not find its packs pinned still.
        let publishing = self.publishing.lock();
        for (layer, root) in roots {
            layer.set_sealed(root);
        }
        // A failure before may have left roots that manifests do not name.
        self.publish_roots()?;
        drop(batch);
        drop(publishing);
        let removed = self.remove_sealed_layers()?;
        // `mkdir` may be waiting for this.
        self.engine.work.raise(|work| work.recompress |= sealed > 0);
        Ok(match (sealed, removed) {
            (0, true) => Round::Done,
            (0, false) => Round::Later,
            _ => Round::More,
        })
    }

    /// Seals layers, those below first; answers them with their roots, which
    /// are durable.
    fn seal_some(
        &self,
        batch: &Batch,
        pool: &rayon::ThreadPool,
    ) -> Result<Vec<(Arc<Layer>, Arc<SealedRoot>)>> {
        let mut pass = SealPass::new(&self.engine, batch, pool);
        let mut layers: Vec<Arc<Layer>> = Vec::new();
        let mut bytes = 0;
        'disks: for disk in self.all_disks() {
            for layer in disk.layers() {
                if !pass.can_seal(&layer) {
                    continue;
                }
                match pass.seal(&layer) {
                    Ok(()) => {
                        bytes += layer.data_bytes();
                        layers.push(layer);
                    }
                    Err(error)
                        if is_of_what_is_stored(&error) && self.chunks().check_poison().is_ok() =>
                    {
                        // Its blocks stay where they are and can be read.
                        tracing::error!("layer {} cannot be sealed: {error}", layer.id);
                        self.engine.events.note(
                            Event::new(What::Damage)
                                .disk(disk.name())
                                .reason(format!("layer {} cannot be sealed: {error}", layer.id)),
                        );
                        let _ = layer.unsealable.set(error.to_string());
                    }
                    // What is sealed already makes room.
                    Err(error) if error.is_no_space() && !layers.is_empty() => {
                        tracing::debug!("sealing layer {}: {error}", layer.id);
                        break 'disks;
                    }
                    Err(error) => return Err(error),
                }
                if bytes >= PASS_BYTES || layers.len() >= PASS_LAYERS || pass.pages() >= PASS_PAGES
                {
                    break 'disks;
                }
            }
        }
        if layers.is_empty() {
            return Ok(Vec::new());
        }
        let roots = pass.finish()?;
        let rooted = |layer: Arc<Layer>| roots.get(&layer.id).cloned().map(|root| (layer, root));
        Ok(layers.into_iter().filter_map(rooted).collect())
    }

    /// Replaces every manifest that still names a sealed layer as unsealed.
    fn publish_roots(&self) -> Result<()> {
        let sealed: HashSet<LayerId> = {
            let layers = self.engine.layers.lock();
            let sealed = layers.values().filter(|layer| layer.sealed().is_some());
            sealed.map(|layer| layer.id).collect()
        };
        for disk in self.all_disks() {
            if !disk.durable_layers().is_disjoint(&sealed) {
                disk.publish()?;
            }
            // Only now snapshots are ready.
            disk.settle();
        }
        Ok(())
    }

    /// Holds off whoever has a layer in hand that nothing names yet. On a
    /// store where there is always somebody, waits for a moment once many
    /// files are left to remove.
    fn settle_alone(&self) -> Option<RwLockWriteGuard<'_, ()>> {
        let settling = &self.engine.settling;
        settling.try_write().or_else(|| {
            let layers = self.engine.layers.lock();
            let sealed = layers.values().filter(|layer| layer.sealed().is_some());
            let many = sealed.count() >= PASS_LAYERS;
            drop(layers);
            many.then(|| settling.try_write_for(RETRY_DELAY)).flatten()
        })
    }

    /// Layers that a manifest names as unsealed or that something shows. One
    /// that is not among them never is again, unless somebody has it in hand.
    pub(crate) fn needed_layers(&self) -> HashSet<LayerId> {
        let mut needed = HashSet::new();
        for disk in self.all_disks() {
            needed.extend(disk.durable_layers());
            needed.extend(disk.layers().iter().map(|layer| layer.id));
        }
        needed
    }

    /// Removes the files of layers that no manifest names as unsealed and
    /// nothing shows any more. False if that has to wait, because somebody
    /// has a layer in hand that nothing names yet.
    fn remove_sealed_layers(&self) -> Result<bool> {
        let Some(_settling) = self.settle_alone() else {
            return Ok(false);
        };
        // While something is damaged, what nothing names may be what is
        // missing; and a manifest on disk may be one that we do not know.
        if !self.damage.lock().is_empty() || self.engine.manifests.check_known().is_err() {
            return Ok(true);
        }
        let needed = self.needed_layers();
        let unneeded: Vec<Arc<Layer>> = {
            let layers = self.engine.layers.lock();
            let unneeded = layers.values().filter(|layer| !needed.contains(&layer.id));
            unneeded.cloned().collect()
        };
        for layer in unneeded {
            Layer::unlink(&*self.engine.files, layer.id, &layer.segments())?;
            self.engine.layers.lock().remove(&layer.id);
        }
        Ok(true)
    }

    pub(crate) fn note_collected(&self, report: &crate::gc::GcReport) {
        let (freed, metrics) = (report.freed_bytes, &self.engine.metrics);
        metrics.freed_bytes.fetch_add(freed, Ordering::Relaxed);
        let event = Event::new(What::GcDone).bytes(freed);
        self.engine.events.note(event.reason(report.to_string()));
    }

    /// Says once when the store's filesystem has become nearly full.
    pub(crate) fn look_at_space(&self) {
        let Ok(space) = self.space() else { return };
        let low = space.is_low();
        if low && !self.space_low.swap(low, Ordering::Relaxed) {
            tracing::warn!(
                "the store is nearly full: {} bytes are left",
                space.free_bytes
            );
            let event = Event::new(What::SpaceLow).bytes(space.free_bytes);
            self.engine
                .events
                .note(event.reason("the store's filesystem is nearly full"));
        } else if !low {
            self.space_low.store(false, Ordering::Relaxed);
        }
    }

    /// Syncs every head that has something to sync.
    fn flush_heads(&self) {
        for disk in self.all_disks() {
            // An fsync of blocks that were there has logged none.
            if let Some(head) = disk.head().filter(|head| head.broken().is_none()) {
                head.note_modified();
            }
            let layers = disk.layers();
            if !layers.iter().any(|layer| layer.is_dirty()) {
                continue;
            }
            match disk.sync_layers() {
                // One that had no room when its snapshot was taken can be
                // sealed now.
                Ok(()) if layers.iter().any(|layer| layer.is_frozen()) => {
                    self.engine.work.raise(|work| work.seal = true);
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::error!("disk {}: {error}", disk.name());
                    if error.is_no_space() {
                        // Later again.
                        self.engine.dirty.store(true, Ordering::SeqCst);
                    }
                }
            }
        }
    }
}

/// Whether sealing a layer failed because something that it needs cannot be
/// read: others can be sealed.
fn is_of_what_is_stored(error: &Error) -> bool {
    match error {
        Error::Damaged { .. } | Error::ChunkMissing { .. } => true,
        Error::Io { doing, .. } => {
            *doing == "reading" || *doing == "opening" && error.is_unreadable()
        }
        _ => false,
    }
}

/// Says that nobody seals any more, however the thread ends, or if it never
/// began.
struct SealerEnds(Arc<Engine>);

impl Drop for SealerEnds {
    fn drop(&mut self) {
        self.0.note_no_sealer();
    }
}

fn seal_thread(store: &Weak<Store>, SealerEnds(engine): &SealerEnds) {
    let pool = rayon::ThreadPoolBuilder::new()
        .thread_name(|index| format!("seal-{index}"))
        .start_handler(|_| sys::lowest_priority())
        .build();
    let pool = match pool {
        Ok(pool) => pool,
        Err(error) => {
            tracing::error!("no sealing threads: {error}");
            return;
        }
    };
    let mut later = false;
    loop {
        {
            let mut work = engine.work.work.lock();
            while !work.seal {
                if engine.closing.load(Ordering::SeqCst) {
                    return;
                }
                if later {
                    let waited = engine.work.changed.wait_for(&mut work, RETRY_DELAY);
                    if waited.timed_out() {
                        break;
                    }
                } else {
                    engine.work.changed.wait(&mut work);
                }
            }
            work.seal = false;
        }
        let Some(store) = store.upgrade() else { return };
        if engine.closing.load(Ordering::SeqCst) {
            return;
        }
        later = false;
        match store.seal_round(&pool) {
            Ok(round) => {
                *engine.seal_trouble.lock() = None;
                match round {
                    Round::Done => engine.work.raise(|work| {
                        work.collect |= std::mem::take(&mut work.collect_sealed);
                    }),
                    Round::More => engine.work.raise(|work| work.seal = true),
                    Round::Later => later = true,
                }
            }
            Err(Error::Closing) => return,
            Err(error) if error.is_no_space() => {
                if engine.seal_trouble.lock().is_none() {
                    tracing::warn!("sealing waits for room: {error}");
                    let reason = format!("sealing waits for room: {error}");
                    engine
                        .events
                        .note(Event::new(What::SpaceLow).reason(reason));
                }
                *engine.seal_trouble.lock() = Some(SealTrouble::NoSpace);
                engine.work.raise(|_| ());
                later = true;
            }
            Err(error) => {
                // Nothing was lost: what is not sealed stays in its layer.
                tracing::error!("sealing has stopped: {error}");
                let event = Event::new(What::Stopped).reason(format!("sealing: {error}"));
                engine.events.note(event);
                *engine.seal_trouble.lock() = Some(SealTrouble::Stopped(error.to_string()));
                engine.work.raise(|_| ());
            }
        }
    }
}

fn flush_thread(store: &Weak<Store>, engine: &Engine) {
    loop {
        {
            let mut work = engine.work.work.lock();
            while !work.flush && !engine.dirty.load(Ordering::SeqCst) {
                if engine.closing.load(Ordering::SeqCst) {
                    return;
                }
                engine.work.changed.wait(&mut work);
            }
            let until = Instant::now() + FLUSH_DELAY;
            while !work.flush && !engine.closing.load(Ordering::SeqCst) {
                if engine.work.changed.wait_until(&mut work, until).timed_out() {
                    break;
                }
            }
            work.flush = false;
        }
        if engine.closing.load(Ordering::SeqCst) {
            return;
        }
        engine.dirty.store(false, Ordering::SeqCst);
        let Some(store) = store.upgrade() else { return };
        store.flush_heads();
        // There is less room than before.
        store.look_at_space();
    }
}

fn finish_thread(store: &Weak<Store>, engine: &Engine) {
    let mut next: Option<Instant> = None;
    loop {
        {
            let mut work = engine.work.work.lock();
            while !work.finish && !engine.closing.load(Ordering::SeqCst) {
                match next {
                    None => engine.work.changed.wait(&mut work),
                    Some(at) => {
                        if engine.work.changed.wait_until(&mut work, at).timed_out() {
                            break;
                        }
                    }
                }
            }
            work.finish = false;
        }
        if engine.closing.load(Ordering::SeqCst) {
            return;
        }
        let Some(store) = store.upgrade() else { return };
        next = store.finish_imports();
    }
}

fn policy_thread(store: &Weak<Store>, engine: &Engine, mut clocks: Clocks) {
    loop {
        let wait = {
            let Some(store) = store.upgrade() else { return };
            store.look_after(&mut clocks)
        };
        let until = Instant::now() + wait;
        let mut work = engine.work.work.lock();
        while !work.expire {
            if engine.closing.load(Ordering::SeqCst) {
                return;
            }
            if engine.work.changed.wait_until(&mut work, until).timed_out() {
                break;
            }
        }
        work.expire = false;
        if engine.closing.load(Ordering::SeqCst) {
            return;
        }
    }
}

/// Has policies look at the clock when somebody set it, or else, where the
/// system cannot tell, once in a while.
fn clock_thread(_: &Weak<Store>, engine: &Engine) {
    if let Some(clock) = &engine.clock {
        loop {
            match clock.wait() {
                Ok(true) => engine.work.raise(|work| work.expire = true),
                Ok(false) => break,
                Err(error) => {
                    tracing::warn!("the clock is looked at once a minute: {error}");
                    break;
                }
            }
        }
    }
    while !engine.closing.load(Ordering::SeqCst) {
        let until = Instant::now() + LOOK;
        let mut work = engine.work.work.lock();
        while !engine.closing.load(Ordering::SeqCst) {
            if engine.work.changed.wait_until(&mut work, until).timed_out() {
                break;
            }
        }
        drop(work);
        engine.work.raise(|work| work.expire = true);
    }
}

/// What can wait until nobody wants anything else.
fn sample_thread(store: &Weak<Store>, engine: &Engine) {
    // It walks all maps, also soon after a mount.
    sys::lowest_priority();
    let mut sample_at = Instant::now();
    let mut look_at = Some(sample_at);
    loop {
        {
            let Some(store) = store.upgrade() else { return };
            if Instant::now() >= sample_at {
                let wait = store.sample();
                sample_at = Instant::now() + wait;
            }
            if look_at.is_some_and(|at| Instant::now() >= at) {
                look_at = store.recompress_when_idle(sample_at);
            }
        }
        let until = look_at.map_or(sample_at, |at| at.min(sample_at));
        let mut work = engine.work.work.lock();
        loop {
            if engine.closing.load(Ordering::SeqCst) {
                return;
            }
            if std::mem::take(&mut work.recompress) {
                look_at = Some(Instant::now());
                break;
            }
            if engine.work.changed.wait_until(&mut work, until).timed_out() {
                break;
            }
        }
    }
}

fn collect_thread(store: &Weak<Store>, engine: &Engine) {
    loop {
        {
            let mut work = engine.work.work.lock();
            while !work.collect {
                if engine.closing.load(Ordering::SeqCst) {
                    return;
                }
                engine.work.changed.wait(&mut work);
            }
            // Deletions come in rows: `rm -r`, a policy.
            let until = Instant::now() + COLLECT_DELAY;
            while !engine.closing.load(Ordering::SeqCst) {
                if engine.work.changed.wait_until(&mut work, until).timed_out() {
                    break;
                }
            }
            work.collect = false;
        }
        if engine.closing.load(Ordering::SeqCst) {
            return;
        }
        let Some(store) = store.upgrade() else { return };
        match store.gc(false, &Quiet) {
            Ok(report) => {
                tracing::info!("space: {report}");
                store.note_collected(&report);
                let protected = report.packs_protected > 0;
                engine.work.raise(|work| work.collect_sealed |= protected);
            }
            Err(Error::Closing) => return,
            Err(error) => {
                tracing::error!("no space is won back: {error}");
                let event = Event::new(What::GcFailed).reason(error.to_string());
                engine.events.note(event);
            }
        }
        // Sealing may have waited for room.
        engine.work.raise(|work| {
            work.seal = true;
            work.recompress = true;
        });
    }
}
