//! A layer: what was written to a disk between two snapshots.
//!
//! Its data lies in sparse segment files of 64 GiB, every block at its own
//! offset; which blocks are there is kept in memory and, sync by sync, in
//! its log. A layer is written while it is a disk's head; then it is frozen,
//! drained of the writers still in it, synced, and sealed into a map.
//!
//! Operations that change a layer hold the disk's lock of their block range
//! (`super::ranges`), so that two changes of one block never overlap,
//! whichever layer each is in.

use super::log::{self, GraftSource, Record};
use super::presence::{BlockState, Presence};
use super::sealed::SealedRoot;
use crate::chunk::ChunkId;
use crate::error::{Error, Result};
use crate::files::{File, Files};
use crate::manifest::LayerId;
use crate::range_map::{RangeMap, Shift};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

pub use crate::manifest::MAX_SIZE;

/// Bytes in a block: what a layer can hold or lack.
pub const BLOCK: u64 = 4096;
/// Bytes in a segment file; a file of ext4 ends at 16 TiB.
pub const SEGMENT: u64 = 64 << 30;
/// One more than the highest block there can be.
pub const MAX_BLOCK: u64 = MAX_SIZE / BLOCK;
/// Where layers keep their files.
pub const DIRECTORY: &str = "layers";

/// What shows through where nothing is written.
#[derive(Clone)]
pub enum Below {
    /// Zeros.
    Empty,
    /// A sealed map.
    Root(Arc<SealedRoot>),
    /// A frozen layer, over what is below it.
    Layer(Arc<Layer>),
    /// A map whose root record cannot be read: every read of it fails, and
    /// everything beside it goes on.
    Lost(Arc<LostRoot>),
}

/// The name of a map whose root record cannot be read.
pub struct LostRoot {
    /// Its content address.
    pub id: ChunkId,
    /// Why it cannot be read.
    pub cause: String,
}

impl LostRoot {
    /// What reading it fails with.
    pub fn error(&self) -> Error {
        Error::Damaged {
            what: format!("the map {}", self.id),
            detail: self.cause.clone(),
        }
    }
}

impl Below {
    /// The same, as a map if the layer has been sealed by now.
    pub fn settled(&self) -> Below {
        match self {
            Below::Layer(layer) => match layer.sealed.get() {
                Some(root) => Below::Root(root.clone()),
                None => self.clone(),
            },
            _ => self.clone(),
        }
    }

    /// Bytes that it has; None if that is not known.
    pub(super) fn size(&self) -> Option<u64> {
        match self {
            Below::Empty => Some(0),
            Below::Root(root) => Some(root.root.size),
            Below::Layer(layer) => Some(layer.size()),
            Below::Lost(_) => None,
        }
    }

    fn is(&self, other: &Below) -> bool {
        match (self, other) {
            (Below::Empty, Below::Empty) => true,
            (Below::Root(a), Below::Root(b)) => a.id == b.id,
            (Below::Layer(a), Below::Layer(b)) => a.id == b.id,
            (Below::Lost(a), Below::Lost(b)) => a.id == b.id,
            _ => false,
        }
    }
}

/// Chunks that are those of something else, from chunk `start` on.
#[derive(Clone)]
pub struct Graft {
    /// Whose chunks.
    pub source: Below,
    /// Which of them the first one is.
    pub start: u64,
}

impl Shift for Graft {
    fn shift(&self, by: u64) -> Self {
        Graft {
            source: self.source.clone(),
            start: self.start + by,
        }
    }
    fn joins(&self, len: u64, next: &Self) -> bool {
        self.start + len == next.start && self.source.is(&next.source)
    }
}

/// What a layer knows, under one lock.
#[derive(Default)]
pub(super) struct Content {
    pub presence: Presence,
    /// By chunk; a block that is present hides the graft under it.
    pub grafts: RangeMap<Graft>,
    /// What is not in the log yet, in the order in which it happened.
    pending: Vec<Record>,
}

impl Content {
    fn note(&mut self, record: Record) {
        if let (Some(Record::Data(last)), Record::Data(next)) = (self.pending.last_mut(), &record)
            && last.end == next.start
        {
            last.end = next.end;
            return;
        }
        self.pending.push(record);
    }
}

struct Segment {
    file: Arc<dyn File>,
    dirty: AtomicBool,
}

struct LogEnd {
    /// None: it was missing when the store was opened.
    file: Option<Arc<dyn File>>,
    end: u64,
    sequence: u64,
}

/// How much of a layer nobody has logged yet at most, in records, before a
/// sync is due.
pub const PENDING_MAX: usize = 1 << 15;

mod io;
mod verify;
mod writers;

use writers::Writers;

pub use io::{SealPlan, read_below, run_below};

/// A layer. See the module's page.
pub struct Layer {
    /// Its name.
    pub id: LayerId,
    /// The size when it began, in bytes.
    begin_size: AtomicU64,
    files: Arc<dyn Files>,
    /// Blocks in a chunk.
    chunk_blocks: u64,
    size: AtomicU64,
    /// The smallest size since the layer began: what is below shows through
    /// only under it. So a shrink and a grow read zeros.
    cut: AtomicU64,
    /// A leaf.
    below: RwLock<Below>,
    /// Lock order: last; no other lock is taken and no I/O is done in it, but
    /// when recovery, alone, replays a log.
    content: RwLock<Content>,
    /// Held exclusively over making a file.
    segments: RwLock<HashMap<u64, Arc<Segment>>>,
    /// A file was made since the directory was last synced.
    new_names: AtomicBool,
    /// Held by a sync from its start to its end. Lock order: a layer's
    /// before that of the layers it has grafts of, and of those below them;
    /// those were frozen before the graft was made, so the order has no cycle.
    /// Before all others of a layer.
    log: Mutex<LogEnd>,
    /// Why nothing can be trusted to reach the disk any more.
    failed: OnceLock<String>,
    /// Why its log could not be replayed: nothing in it can be read.
    broken: Option<String>,
    /// Something behind its end was cleared and may be on disk still: before
    /// it is synced no manifest may say that the disk is longer.
    cleared: AtomicBool,
    /// Segments that lack something that the log says is in them, with why:
    /// nothing more is written there, or what is lacking would read as zeros.
    lost: BTreeMap<u64, String>,
    /// Those of them that are there, and could not be opened or written out
    /// when the layer was.
    unsettled: BTreeSet<u64>,
    writers: Writers,
    frozen: AtomicBool,
    clean: AtomicBool,
    sealed: OnceLock<Arc<SealedRoot>>,
    /// Every source that a graft in the log may name, for as long as the log
    /// is there: after a crash an overwritten graft may show again. A leaf.
    sources: Mutex<Vec<(GraftSource, Below)>>,
    /// Rises with every change of what is present.
    changes: AtomicU64,
    modified_ns: AtomicI64,
    logged_modified_ns: AtomicI64,
    /// Chunks that its seal has to put together, and those done.
    seal_work: AtomicU64,
    seal_done: AtomicU64,
    /// Why sealing cannot go on, once it is known.
    pub(crate) unsealable: OnceLock<String>,
    /// A sync has taken a graft from what waits, and has not ended.
    syncing_graft: AtomicBool,
}

/// Counts its holder into a layer; drop it when the operation is over.
pub struct Entered(Arc<Layer>);

impl std::ops::Deref for Entered {
    type Target = Arc<Layer>;
    fn deref(&self) -> &Arc<Layer> {
        &self.0
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.writers.leave();
    }
}

fn log_path(id: LayerId) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{id}.log"))
}

fn segment_path(id: LayerId, index: u64) -> PathBuf {
    Path::new(DIRECTORY).join(format!("{id}.{index:04x}"))
}

/// The layer that a file in the layers' directory belongs to, and its
/// segment's number (None: the log).
pub fn parse_file_name(name: &str) -> Option<(LayerId, Option<u64>)> {
    let (id, part) = name.split_once('.')?;
    let id = id.parse().ok()?;
    match part {
        "log" => Some((id, None)),
        _ => Some((id, Some(u64::from_str_radix(part, 16).ok()?))),
    }
}

/// The names of a layer's files in their directory.
pub fn file_names(id: LayerId, segments: &[u64]) -> Vec<String> {
    let mut names = vec![format!("{id}.log")];
    names.extend(segments.iter().map(|index| format!("{id}.{index:04x}")));
    names
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// First and one past the last block that a byte range touches.
pub fn blocks_of(offset: u64, len: u64) -> Range<u64> {
    offset / BLOCK..(offset + len).div_ceil(BLOCK)
}

/// What a new or recovered layer is made of.
pub struct LayerParts {
    /// Where its files are.
    pub files: Arc<dyn Files>,
    /// What is below it.
    pub below: Below,
    /// Its size when it begins, in bytes.
    pub size: u64,
    /// Bytes in a chunk.
    pub chunk_size: u64,
}

impl Layer {
    /// Makes a new, empty layer. Its log and its name are durable when this
    /// returns.
    pub fn create(parts: LayerParts) -> Result<Arc<Layer>> {
        let id = LayerId::random();
        let files = parts.files.clone();
        let path = log_path(id);
        let file = files
            .create_new(&path)
            .map_err(Error::io("creating", text(&path)))?;
        let written = file
            .write_all_at(&log::encode_header(id, 0, BLOCK as u32), 0)
            .map_err(Error::io("writing", text(&path)))
            .and_then(|()| file.sync_data().map_err(Error::io("syncing", text(&path))))
            .and_then(|()| {
                files
                    .sync_dir(Path::new(DIRECTORY))
                    .map_err(Error::io("syncing", DIRECTORY))
            });
        if let Err(error) = written {
            // Nobody names it: a file that stays is found at the next start.
            if let Err(left) = files.unlink(&path) {
                tracing::warn!("{} stays behind: {left}", path.display());
            }
            return Err(error);
        }
        Ok(Arc::new(Layer::with(id, parts, Some(file))))
    }

    fn with(id: LayerId, parts: LayerParts, log: Option<Arc<dyn File>>) -> Layer {
        Layer {
            id,
            begin_size: AtomicU64::new(parts.size),
            files: parts.files,
            chunk_blocks: parts.chunk_size / BLOCK,
            size: AtomicU64::new(parts.size),
            cut: AtomicU64::new(parts.size),
            below: RwLock::new(parts.below),
            content: RwLock::default(),
            segments: RwLock::default(),
            new_names: AtomicBool::new(false),
            log: Mutex::new(LogEnd {
                file: log,
                end: log::HEADER,
                sequence: 0,
            }),
            failed: OnceLock::new(),
            broken: None,
            cleared: AtomicBool::new(false),
            lost: BTreeMap::new(),
            unsettled: BTreeSet::new(),
            writers: Writers::default(),
            frozen: AtomicBool::new(false),
            clean: AtomicBool::new(false),
            sealed: OnceLock::new(),
            sources: Mutex::default(),
            changes: AtomicU64::new(0),
            modified_ns: AtomicI64::new(0),
            logged_modified_ns: AtomicI64::new(0),
            seal_work: AtomicU64::new(0),
            seal_done: AtomicU64::new(0),
            unsealable: OnceLock::new(),
            syncing_graft: AtomicBool::new(false),
        }
    }

    /// Opens the layer of an earlier run: its files' cached pages are
    /// dropped, its log is replayed and its torn end cut off, and all of it
    /// is synced before anything in it is trusted (invariant 6).
    /// [`Layer::settle_end`] has still to be called.
    /// `segments` are the numbers of the segment files that there are;
    /// `source` finds what a graft names. A log that is missing or damaged
    /// makes a layer that answers every read with an error; so does one that
    /// does not reach `log_end`, in bytes, as it once did.
    pub fn recover(
        id: LayerId,
        parts: LayerParts,
        segments: &[u64],
        log_end: Option<u64>,
        source: &dyn Fn(GraftSource) -> Result<Below>,
    ) -> Result<Arc<Layer>> {
        let files = parts.files.clone();
        let path = log_path(id);
        let path_text = text(&path);
        let mut layer = Layer::with(id, parts, None);
        let recovered = match files.open(&path, true) {
            Ok(file) => layer.recover_log(file, &path_text, log_end, source),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                tracing::error!("layer {id}: its log {path_text} is missing");
                layer.broken = Some(format!("its log {path_text} is missing"));
                Ok(())
            }
            Err(error) => Err(Error::io("opening", path_text)(error)),
        };
        if let Err(error) = recovered {
            if !error.is_unreadable() {
                return Err(error);
            }
            tracing::error!("layer {id}: {error}");
            layer.broken = Some(error.to_string());
        }
        let mut unreadable = BTreeMap::new();
        for index in segments {
            let path = segment_path(id, *index);
            let mut note = |error: Error| match error.is_unreadable() {
                true => {
                    unreadable.insert(*index, error.to_string());
                    Ok(())
                }
                false => Err(error),
            };
            let file = match files.open(&path, true) {
                Ok(file) => file,
                Err(error) => {
                    note(Error::io("opening", text(&path))(error))?;
                    continue;
                }
            };
            if let Err(error) = settle(&*file, &text(&path)) {
                note(error)?;
            }
            let segment = Segment {
                file,
                dirty: AtomicBool::new(false),
            };
            layer.segments.get_mut().insert(*index, Arc::new(segment));
        }
        layer.lost = layer.look_for_lost()?;
        layer.unsettled = unreadable.keys().copied().collect();
        layer.lost.extend(unreadable);
        for why in layer.lost.values() {
            tracing::error!("layer {id}: {why}");
        }
        Ok(Arc::new(layer))
    }

    /// Segments that are missing or shorter than what is in them.
    fn look_for_lost(&self) -> Result<BTreeMap<u64, String>> {
        let segments = self.segments.read();
        // How far each segment has to reach: to the end of its last block, or
        // to the layer's end in it.
        let size = self.size();
        let mut needed: BTreeMap<u64, u64> = BTreeMap::new();
        for (blocks, state) in self.content.read().presence.runs() {
            if state != BlockState::Data {
                continue;
            }
            let mut at = blocks.start * BLOCK;
            while at < blocks.end * BLOCK {
                let index = at / SEGMENT;
                let end = (blocks.end * BLOCK).min((index + 1) * SEGMENT);
                let reached = end.min(size.max(end - BLOCK + 1));
                needed.insert(index, reached - index * SEGMENT);
                at = end;
            }
        }
        let mut lost = BTreeMap::new();
        for (index, needed) in needed {
            let path = text(&segment_path(self.id, index));
            let why = match segments.get(&index) {
                None => format!("{path} is missing"),
                Some(segment) => match segment.file.len() {
                    Ok(len) if len < needed => format!("{path} is cut off at {len} bytes"),
                    Ok(_) => continue,
                    Err(error) => match Error::io("sizing", path)(error) {
                        error if error.is_unreadable() => error.to_string(),
                        error => return Err(error),
                    },
                },
            };
            lost.insert(index, why);
        }
        Ok(lost)
    }

    /// Whether it cannot be sealed, or lies over one that cannot, or shows
    /// something of one.
    pub fn is_stuck(&self) -> bool {
        if self.is_unsealable() {
            return true;
        }
        let mut seen = HashSet::new();
        let mut next = self.needed();
        while let Some(needed) = next.pop() {
            match needed.settled() {
                Below::Lost(_) => return true,
                Below::Layer(layer) if seen.insert(layer.id) => {
                    if layer.is_unsealable() {
                        return true;
                    }
                    next.extend(layer.needed());
                }
                Below::Empty | Below::Root(_) | Below::Layer(_) => {}
            }
        }
        false
    }

    fn is_unsealable(&self) -> bool {
        self.unsealable.get().is_some() || self.broken.is_some()
    }

    /// What it lies over and what it has references to.
    fn needed(&self) -> Vec<Below> {
        let sources = self.sources().into_iter().map(|(_, source)| source);
        sources.chain([self.below()]).collect()
    }

    /// Whether there is a segment at its end that could not be opened or
    /// written out: what lies in it behind the end may show some time.
    pub fn is_end_unsure(&self) -> bool {
        self.unsettled.contains(&(self.size() / SEGMENT))
    }

    /// Whether it has to be synced before a manifest may say how long it is.
    pub fn is_end_unsettled(&self) -> bool {
        self.cleared.load(Ordering::SeqCst)
    }

    /// Ranges of it, in bytes, in which something is lost, with why.
    pub fn lost_ranges(&self) -> Vec<(Range<u64>, &str)> {
        let ranges = self.lost.iter().map(|(index, why)| {
            let from = index * SEGMENT;
            (from..from + SEGMENT, why.as_str())
        });
        ranges.collect()
    }

    fn recover_log(
        &mut self,
        file: Arc<dyn File>,
        path: &str,
        log_end: Option<u64>,
        source: &dyn Fn(GraftSource) -> Result<Below>,
    ) -> Result<()> {
        settle(&*file, path)?;
        let replayed = log::replay(&*file, path, self.id, &mut |record| {
            self.replay(record, source)
        })?;
        if let Some(end) = log_end {
            replayed.check_reaches(end, path)?;
        }
        if replayed.torn_bytes > 0 {
            tracing::info!(
                "layer {}: {} bytes of an unfinished sync dropped",
                self.id,
                replayed.torn_bytes
            );
            file.set_len(replayed.end)
                .and_then(|()| file.sync_data())
                .map_err(Error::io("truncating", path))?;
        }
        *self.log.get_mut() = LogEnd {
            file: Some(file),
            end: replayed.end,
            sequence: replayed.sequence,
        };
        Ok(())
    }

    fn replay(&self, record: Record, source: &dyn Fn(GraftSource) -> Result<Below>) -> Result<()> {
        let mut content = self.content.write();
        match record {
            Record::Data(blocks) => content.presence.set(blocks, BlockState::Data),
            Record::Zero(blocks) => content.presence.set(blocks, BlockState::Zero),
            Record::Graft {
                chunks,
                source: named,
                start,
            } => {
                let source = source(named)?;
                self.keep_named(named, &source);
                self.set_graft(&mut content, chunks, Graft { source, start });
            }
            Record::Cut(size) => self.set_cut(&mut content, size),
            Record::Grow(size) => {
                self.size.fetch_max(size, Ordering::SeqCst);
            }
            Record::Modified(ns) => {
                self.modified_ns.store(ns, Ordering::Relaxed);
                self.logged_modified_ns.store(ns, Ordering::Relaxed);
            }
        }
        Ok(())
    }

    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.size.load(Ordering::SeqCst)
    }

    /// The size when it began, in bytes.
    pub fn begin_size(&self) -> u64 {
        self.begin_size.load(Ordering::SeqCst)
    }

    /// Makes a new layer begin with another size than it was made with.
    /// Nobody else has it yet.
    pub fn begin_with(&self, size: u64) {
        for begin in [&self.begin_size, &self.size, &self.cut] {
            begin.store(size, Ordering::SeqCst);
        }
    }

    /// Makes the segment files of a new layer that writers will probably need
    /// when it takes the place of `old`, so that none of them has to: those
    /// that `old` has data in. Others would be handed on from layer to layer.
    pub fn prepare_like(&self, old: &Layer) -> Result<()> {
        const BLOCKS: u64 = SEGMENT / BLOCK;
        for index in old.segments() {
            let blocks = index * BLOCKS..(index + 1) * BLOCKS;
            if old.piece_of_data(blocks).is_some() {
                self.segment(index)?;
            }
        }
        Ok(())
    }

    /// Where its log ends on disk, in bytes; None if it has none.
    pub fn log_end(&self) -> Option<u64> {
        let log = self.log.lock();
        log.file.as_ref().map(|_| log.end)
    }

    /// Bytes of it that are in its own segments.
    pub fn data_bytes(&self) -> u64 {
        self.content.read().presence.data_blocks() * BLOCK
    }

    /// Rises with every change of what is present, cut or grown.
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::SeqCst)
    }

    /// Time of the last modification, nanoseconds since 1970; 0: none.
    pub fn modified_ns(&self) -> i64 {
        self.modified_ns.load(Ordering::Relaxed)
    }

    /// Notes the time of a modification.
    pub fn set_modified_ns(&self, ns: i64) {
        self.modified_ns.store(ns, Ordering::Relaxed);
    }

    /// Sees to it that the next sync logs the time of modification, which
    /// one of overwrites only would not.
    pub fn note_modified(&self) {
        let modified = self.modified_ns();
        if modified != self.logged_modified_ns.load(Ordering::Relaxed) {
            self.content.write().note(Record::Modified(modified));
        }
    }

    /// What shows through.
    pub fn below(&self) -> Below {
        let below = self.below.read().clone();
        let settled = below.settled();
        if matches!((&below, &settled), (Below::Layer(_), Below::Root(_))) {
            // Lets go of the sealed layer and so of its files.
            *self.below.write() = settled.clone();
        }
        settled
    }

    /// Its root, once sealed.
    pub fn sealed(&self) -> Option<&Arc<SealedRoot>> {
        self.sealed.get()
    }

    /// Says that everything in it is in a map whose name is durable.
    pub fn set_sealed(&self, root: Arc<SealedRoot>) {
        // A second seal of a layer has the same outcome.
        let _ = self.sealed.set(root);
    }

    /// Notes that a seal begins that has to put so many chunks together.
    pub fn set_seal_work(&self, chunks: u64) {
        self.seal_done.store(0, Ordering::Relaxed);
        self.seal_work.store(chunks, Ordering::Relaxed);
    }

    /// Notes that so many more chunks are done.
    pub fn add_seal_done(&self, chunks: u64) {
        self.seal_done.fetch_add(chunks, Ordering::Relaxed);
    }

    /// How much of its seal is done, in percent; 100 only when it is sealed.
    pub fn seal_progress(&self) -> u64 {
        if self.sealed.get().is_some() {
            return 100;
        }
        let work = self.seal_work.load(Ordering::Relaxed).max(1);
        (self.seal_done.load(Ordering::Relaxed) * 100 / work).min(99)
    }

    /// Whether it shows just what is below it: nothing has been written, cut
    /// or grown since it began, and it began with the size of that (a crash
    /// may have brought back an earlier size of what is below).
    pub fn is_untouched(&self) -> bool {
        let below = self.below().size();
        if below.is_some_and(|size| size != self.begin_size()) {
            return false;
        }
        let content = self.content.read();
        content.presence.is_empty()
            && content.grafts.is_empty()
            && self.size() == self.begin_size()
            && self.cut.load(Ordering::SeqCst) == self.begin_size()
            && self.broken.is_none()
    }

    /// Counts the caller in as somebody who changes it. Under the lock of
    /// the disk's head, so that nobody enters after the freeze.
    pub fn enter(self: &Arc<Self>) -> Entered {
        self.writers.enter();
        Entered(self.clone())
    }

    /// Waits until nobody is left in it. It is the head of no disk any more.
    pub fn freeze(&self) {
        self.frozen.store(true, Ordering::SeqCst);
        self.writers.wait_for_none();
    }

    /// Whether it was frozen.
    pub fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::SeqCst)
    }

    /// Whether it is frozen and all of it is on disk.
    pub fn is_clean(&self) -> bool {
        self.clean.load(Ordering::SeqCst)
    }

    /// Why nothing in it can be read, if so.
    pub fn broken(&self) -> Option<&str> {
        self.broken.as_deref()
    }

    /// Everything that its log may still show, under the names it has there.
    pub fn sources(&self) -> Vec<(GraftSource, Below)> {
        self.sources.lock().clone()
    }

    /// Notes that a graft of it may come.
    pub fn keep_source(&self, source: &Below) {
        if let Some(name) = name_of(source) {
            self.keep_named(name, source);
        }
    }

    fn keep_named(&self, name: GraftSource, source: &Below) {
        let mut sources = self.sources.lock();
        if !sources.iter().any(|(kept, _)| *kept == name) {
            sources.push((name, source.clone()));
        }
    }

    /// Replaces sealed layers that it points to by their maps, so that their
    /// files can go.
    pub fn settle_sources(&self) {
        self.below();
        for (_, source) in self.sources.lock().iter_mut() {
            *source = source.settled();
        }
        let mut content = self.content.write();
        let stale: Vec<(Range<u64>, Graft)> = content
            .grafts
            .iter()
            .filter(|(_, graft)| {
                matches!(&graft.source, Below::Layer(layer) if layer.sealed.get().is_some())
            })
            .map(|(chunks, graft)| (chunks, graft.clone()))
            .collect();
        for (chunks, graft) in stale {
            let source = graft.source.settled();
            content.grafts.insert(chunks, Graft { source, ..graft });
        }
    }

    /// Whether a graft waits for the next sync, or for the end of the one that
    /// is under way.
    pub fn has_pending_graft(&self) -> bool {
        let content = self.content.read();
        self.syncing_graft.load(Ordering::SeqCst) || content.pending.iter().any(is_graft)
    }

    /// Records that wait for the next sync.
    pub fn pending(&self) -> usize {
        self.content.read().pending.len()
    }

    pub(super) fn fail(&self, error: &Error) {
        let _ = self.failed.set(error.to_string());
    }

    /// [`Error::Poisoned`] once a write, punch or sync of it has failed.
    pub(super) fn check_failed(&self) -> Result<()> {
        match self.failed.get() {
            None => Ok(()),
            Some(cause) => Err(Error::Poisoned {
                what: format!("layer {}", self.id),
                cause: cause.clone(),
            }),
        }
    }

    /// Whether something is not on disk yet.
    pub fn is_dirty(&self) -> bool {
        self.pending() > 0
            || self
                .segments
                .read()
                .values()
                .any(|segment| segment.dirty.load(Ordering::SeqCst))
    }

    /// When this returns, every change that had returned before the call is
    /// on disk: the data first, then the records that speak of it (invariant
    /// 1). "No space" leaves everything as it was, to be tried again; any
    /// other error is final (invariant 6).
    pub fn sync(&self) -> Result<()> {
        let mut log = self.log.lock();
        self.check_failed()?;
        let result = self.sync_inner(&mut log);
        if let Err(error) = &result {
            if !error.is_no_space() {
                self.fail(error);
            }
            // Also where a sync was what found no space.
            self.check_failed()?;
        }
        result
    }

    fn sync_inner(&self, log: &mut LogEnd) -> Result<()> {
        let was_frozen = self.is_frozen() && self.writers.is_empty();
        // A graft must not be on disk before what it shows is.
        for (_, source) in self.sources() {
            if let Below::Layer(layer) = source {
                layer.sync_chain()?;
            }
        }
        let cleared = self.cleared.swap(false, Ordering::SeqCst);
        // Records are taken before the data is synced: what is appended
        // below speaks only of data that the sync covered.
        let mut records = {
            let mut content = self.content.write();
            let records = std::mem::take(&mut content.pending);
            let has_graft = records.iter().any(is_graft);
            self.syncing_graft.store(has_graft, Ordering::SeqCst);
            records
        };
        let modified = self.modified_ns();
        // Else it is logged with the next record, or by who notes it for itself.
        let logs_modified = !records.is_empty();
        if logs_modified && modified != self.logged_modified_ns.load(Ordering::Relaxed) {
            records.push(Record::Modified(modified));
        }
        let appended = self
            .sync_segments()
            .and_then(|()| self.append(log, &records));
        if appended.is_err() {
            self.cleared.fetch_or(cleared, Ordering::SeqCst);
            let mut content = self.content.write();
            records.append(&mut content.pending);
            content.pending = records;
        }
        self.syncing_graft.store(false, Ordering::SeqCst);
        appended?;
        if logs_modified {
            self.logged_modified_ns.store(modified, Ordering::Relaxed);
        }
        // Whoever syncs a disk goes down to the first clean layer.
        let rests_on_clean = match self.below() {
            Below::Layer(below) => below.is_clean(),
            Below::Empty | Below::Root(_) | Below::Lost(_) => true,
        };
        if was_frozen && rests_on_clean {
            self.clean.store(true, Ordering::SeqCst);
        }
        Ok(())
    }

    /// Syncs it and every layer below it that is not clean yet, the lowest
    /// first.
    pub fn sync_chain(self: &Arc<Layer>) -> Result<()> {
        let mut chain = Vec::new();
        let mut next = Below::Layer(self.clone()).settled();
        while let Below::Layer(layer) = next {
            if layer.is_clean() {
                break;
            }
            next = layer.below();
            chain.push(layer);
        }
        chain.iter().rev().try_for_each(|layer| layer.sync())
    }

    fn sync_segments(&self) -> Result<()> {
        let segments: Vec<(u64, Arc<Segment>)> = self
            .segments
            .read()
            .iter()
            .map(|(index, segment)| (*index, segment.clone()))
            .collect();
        if self.new_names.swap(false, Ordering::SeqCst) {
            self.files
                .sync_dir(Path::new(DIRECTORY))
                .map_err(Error::io("syncing", DIRECTORY))
                .inspect_err(|error| self.fail(error))?;
        }
        for (index, segment) in segments {
            if segment.dirty.swap(false, Ordering::SeqCst) {
                // Whatever the error, the kernel may have dropped the pages:
                // a second sync that succeeds would prove nothing.
                segment
                    .file
                    .sync_data()
                    .map_err(Error::io("syncing", text(&segment_path(self.id, index))))
                    .inspect_err(|error| self.fail(error))?;
            }
        }
        Ok(())
    }

    fn append(&self, log: &mut LogEnd, records: &[Record]) -> Result<()> {
        let path = || text(&log_path(self.id));
        for frame in log::encode_frames(records, log.sequence) {
            let file = log.file.as_ref().ok_or_else(|| Error::Damaged {
                what: format!("the layer log {}", path()),
                detail: "it is missing".into(),
            })?;
            file.write_all_at(&frame, log.end)
                .map_err(Error::io("writing", path()))?;
            file.sync_data()
                .map_err(Error::io("syncing", path()))
                .inspect_err(|error| self.fail(error))?;
            log.end += frame.len() as u64;
            log.sequence += 1;
        }
        Ok(())
    }

    /// Pushes dirty data towards the disk in pieces, so that a sync that
    /// follows is short and no writer meets a long queue. An error is final:
    /// the kernel says it once, and the sync would not learn of it (invariant
    /// 6).
    pub fn write_back(&self) -> Result<()> {
        let segments: Vec<(u64, Arc<Segment>)> = self
            .segments
            .read()
            .iter()
            .map(|(index, segment)| (*index, segment.clone()))
            .collect();
        for (index, segment) in segments {
            if !segment.dirty.load(Ordering::SeqCst) {
                continue;
            }
            let path = || text(&segment_path(self.id, index));
            let first = index * SEGMENT / BLOCK;
            let last = first + SEGMENT / BLOCK;
            let mut at = first;
            while let Some(piece) = self.piece_of_data(at..last) {
                segment
                    .file
                    .write_back(
                        (piece.start - first) * BLOCK,
                        (piece.end - piece.start) * BLOCK,
                        true,
                    )
                    .map_err(Error::io("writing back", path()))
                    .inspect_err(|error| self.fail(error))?;
                at = piece.end;
            }
        }
        Ok(())
    }

    /// The first blocks of a range that hold about 8 MiB of data, however far
    /// apart; None if there is none.
    fn piece_of_data(&self, blocks: Range<u64>) -> Option<Range<u64>> {
        const PIECE: u64 = (8 << 20) / BLOCK;
        let content = self.content.read();
        let mut start = None;
        let (mut at, mut found) = (blocks.start, 0);
        while at < blocks.end && found < PIECE {
            let (state, end) = content.presence.run(at, blocks.end);
            let end = match state {
                BlockState::Data => end.min(at + PIECE - found),
                _ => end,
            };
            if state == BlockState::Data {
                start.get_or_insert(at);
                found += end - at;
            }
            at = end;
        }
        start.map(|start| start..at)
    }

    /// Removes its files' names; whoever reads it goes on to do so.
    pub fn unlink(files: &dyn Files, id: LayerId, segments: &[u64]) -> Result<()> {
        // The log last: without it the segments mean nothing.
        for index in segments {
            unlink(files, &segment_path(id, *index))?;
        }
        unlink(files, &log_path(id))
    }

    /// The numbers of its segment files.
    pub fn segments(&self) -> Vec<u64> {
        self.segments.read().keys().copied().collect()
    }
}

/// How the log names a source; zeros need no name.
fn name_of(source: &Below) -> Option<GraftSource> {
    match source {
        Below::Empty => None,
        Below::Root(root) => Some(GraftSource::Root(root.id)),
        Below::Layer(layer) => Some(GraftSource::Layer(layer.id)),
        Below::Lost(lost) => Some(GraftSource::Root(lost.id)),
    }
}

fn unlink(files: &dyn Files, path: &Path) -> Result<()> {
    match files.unlink(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::io("removing", text(path))(error))
        }
        _ => Ok(()),
    }
}

fn is_graft(record: &Record) -> bool {
    matches!(record, Record::Graft { .. })
}

/// Drops a file's cached pages and syncs it, so that what is read next is
/// what is on disk.
fn settle(file: &dyn File, path: &str) -> Result<()> {
    let settled = file.drop_cache().and_then(|()| file.sync_data());
    if settled.is_err()
        // What could not be written is in memory still, and looks as if it
        // had been.
        && let Err(error) = file.drop_cache()
    {
        tracing::warn!("dropping what is in memory of {path}: {error}");
    }
    settled.map_err(Error::io("syncing", path))
}
