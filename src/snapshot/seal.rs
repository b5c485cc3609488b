//! Sealing: frozen layers become chunks and a map.
//!
//! A layer is sealed after the layers that it lies over or grafts from. The
//! chunks it touches are put together from its view, hashed, looked up, and
//! compressed and appended only if nobody has them; then its map is its
//! base's map with these changes. All that is durable before the layer's
//! root is named anywhere (invariant 3). The layer's files go when no
//! manifest names the layer as unsealed any more.
//!
//! Nothing of a seal is kept over a crash or an unmount but the chunks that
//! were already stored: it starts again, and finds them by their content.

use crate::chunk::store::{Batch, ChunkStore};
use crate::chunk::{ChunkId, Kind};
use crate::disk::Engine;
use crate::disk::layer::{Below, Graft, Layer};
use crate::disk::presence::BlockState;
use crate::disk::sealed::{Sealed, SealedRoot, Wait};
use crate::error::{Error, Result};
use crate::manifest::LayerId;
use crate::map::{self, FANOUT, Op, Page, PageStore, Root};
use crate::range_map::{RangeMap, Shift};
use parking_lot::Mutex;
use rayon::prelude::*;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Chunks read, hashed and compressed together. At 64 KiB a chunk, 8 MiB.
const GROUP: u64 = 128;
/// Bytes of touched chunks after which packs are synced and what was done is
/// taken into the map, so that neither memory nor the room needed grows with
/// the layer.
const SLICE: u64 = 1 << 30;

/// Chunks copied at a time, to a multiple of them, from where they lie
/// otherwise in their pages.
const COPY: u64 = (FANOUT * FANOUT) as u64;

/// A chunk that is not zero, with its bytes.
type ReadChunk = (ChunkId, Vec<u8>);

/// What a seal does with a range of chunks.
#[derive(Clone)]
enum Change {
    /// They are zero.
    Clear,
    /// They are another map's.
    Copy { from: Arc<SealedRoot>, start: u64 },
    /// They are read through the layer's view.
    Read,
}

impl Shift for Change {
    fn shift(&self, by: u64) -> Self {
        match self {
            Change::Copy { from, start } => Change::Copy {
                from: from.clone(),
                start: start + by,
            },
            other => other.clone(),
        }
    }
    fn joins(&self, len: u64, next: &Self) -> bool {
        match (self, next) {
            (Change::Clear, Change::Clear) | (Change::Read, Change::Read) => true,
            (
                Change::Copy { from, start },
                Change::Copy {
                    from: next_from,
                    start: next_start,
                },
            ) => from.id == next_from.id && start + len == *next_start,
            _ => false,
        }
    }
}

/// New map pages go into the batch, and are read back from here until the
/// batch is durable.
struct SealPages<'a> {
    sealed: &'a Sealed,
    batch: &'a Batch,
    /// A leaf.
    fresh: Mutex<HashMap<ChunkId, Arc<Page>>>,
}

/// Several layers sealed in one pass: one sync of the packs for all.
pub struct SealPass<'a> {
    engine: &'a Engine,
    batch: &'a Batch,
    pool: &'a rayon::ThreadPool,
    pages: SealPages<'a>,
    /// Not durable before [`SealPass::finish`].
    roots: HashMap<LayerId, Arc<SealedRoot>>,
}

impl PageStore for SealPages<'_> {
    fn page(&self, id: &ChunkId) -> Result<Arc<Page>> {
        if let Some(page) = self.fresh.lock().get(id) {
            return Ok(page.clone());
        }
        self.sealed.page(id)
    }

    fn put_page(&self, encoded: &[u8]) -> Result<ChunkId> {
        let chunks: &Arc<ChunkStore> = self.sealed.chunks();
        let id = chunks.id(Kind::Page, encoded);
        self.batch.put(Kind::Page, &id, encoded)?;
        let page = Arc::new(Page::decode(encoded)?);
        self.fresh.lock().insert(id, page);
        Ok(id)
    }
}

impl<'a> SealPass<'a> {
    /// A pass that stores into `batch` and works on the threads of `pool`.
    pub fn new(engine: &'a Engine, batch: &'a Batch, pool: &'a rayon::ThreadPool) -> Self {
        SealPass {
            engine,
            batch,
            pool,
            pages: SealPages {
                sealed: &engine.sealed,
                batch,
                fresh: Mutex::default(),
            },
            roots: HashMap::new(),
        }
    }

    /// What a layer lies over, if that is sealed by now or in this pass.
    fn settled(&self, below: &Below) -> Below {
        match below.settled() {
            Below::Layer(layer) => match self.roots.get(&layer.id) {
                Some(root) => Below::Root(root.clone()),
                None => Below::Layer(layer),
            },
            other => other,
        }
    }

    /// Whether the layer is frozen and on disk, and everything that it lies
    /// over or grafts from is sealed by now or in this pass.
    pub fn can_seal(&self, layer: &Layer) -> bool {
        let settled = |below: &Below| !matches!(self.settled(below), Below::Layer(_));
        layer.is_clean()
            && layer.unsealable.get().is_none()
            && layer.sealed().is_none()
            && !self.roots.contains_key(&layer.id)
            && settled(&layer.below())
            && layer.sources().iter().all(|(_, source)| settled(source))
    }

    /// Stores what the layer changes and its map.
    pub fn seal(&mut self, layer: &Layer) -> Result<()> {
        // Of one whose log is lost nobody knows what it changes.
        layer.check_readable()?;
        let root = self.seal_layer(layer)?;
        self.roots.insert(layer.id, Arc::new(root));
        Ok(())
    }

    /// Syncs all of it; from then on the roots may be named.
    pub fn finish(self) -> Result<HashMap<LayerId, Arc<SealedRoot>>> {
        self.batch.sync()?;
        Ok(self.roots)
    }

    /// New map pages that it holds in memory.
    pub fn pages(&self) -> usize {
        self.pages.fresh.lock().len()
    }

    /// Layers sealed so far.
    pub fn layers(&self) -> usize {
        self.roots.len()
    }

    /// What has to be done with which chunks of a layer over `base`.
    fn changes(&self, layer: &Layer, base: &Root) -> Result<(RangeMap<Change>, u64)> {
        let unit = self.engine.sealed.chunk_size();
        let plan = layer.plan();
        let chunks = plan.size.div_ceil(unit);
        let mut changes: RangeMap<Change> = RangeMap::new();
        // What is below shows through only under the cut; the chunk at the
        // cut is put together anew.
        let shown = plan.cut.div_ceil(unit);
        changes.insert(shown..base.chunks().max(shown), Change::Clear);
        if !plan.cut.is_multiple_of(unit) && plan.cut < base.size {
            changes.insert(shown - 1..shown, Change::Read);
        }
        for (range, graft) in plan.grafts {
            changes.insert(range, self.grafted(layer, graft)?);
        }
        // Behind the end of a map's last chunk are zeros, which its source may
        // not have.
        let (last, inside) = (plan.size / unit, plan.size % unit);
        if inside > 0
            && let Some((_, Change::Copy { from, start })) = changes.get(last)
            && from.root.size > start * unit + inside
        {
            changes.insert(last..last + 1, Change::Read);
        }
        for (range, state) in plan.touched {
            let change = match state {
                Some(BlockState::Zero) => Change::Clear,
                _ => Change::Read,
            };
            changes.insert(range, change);
        }
        changes.remove(chunks..u64::MAX);
        Ok((changes, plan.size))
    }

    fn grafted(&self, layer: &Layer, graft: Graft) -> Result<Change> {
        match self.settled(&graft.source) {
            Below::Empty => Ok(Change::Clear),
            Below::Root(from) => Ok(Change::Copy {
                from,
                start: graft.start,
            }),
            Below::Layer(source) => Err(out_of_order(layer, &source)),
            Below::Lost(lost) => Err(lost.error()),
        }
    }

    fn seal_layer(&self, layer: &Layer) -> Result<SealedRoot> {
        let unit = self.engine.sealed.chunk_size();
        let mut root = match self.settled(&layer.below()) {
            Below::Empty => Root::empty(unit as u32, 0),
            Below::Root(base) => base.root.clone(),
            Below::Layer(below) => return Err(out_of_order(layer, &below)),
            Below::Lost(lost) => return Err(lost.error()),
        };
        let (changes, size) = self.changes(layer, &root)?;
        layer.set_seal_work(
            changes
                .iter()
                .filter(|(_, change)| matches!(change, Change::Read))
                .map(|(range, _)| range.end - range.start)
                .sum(),
        );
        let mut ops: Vec<(Range<u64>, Op<'_>)> = Vec::new();
        let mut in_slice = 0;
        for (range, change) in changes.iter() {
            let mut first = range.start;
            while first < range.end {
                // What counts towards the slice are chunks and, like them,
                // new pages: those at both ends of a change, or all.
                let (op, end, new) = match change {
                    Change::Clear => (Some(Op::Clear), range.end, 2),
                    Change::Copy { from, start } => {
                        let op = Op::Copy {
                            from: &from.root,
                            start: start + first - range.start,
                        };
                        if range.start.abs_diff(*start).is_multiple_of(FANOUT as u64) {
                            // Whole pages are taken by id.
                            (Some(op), range.end, 2)
                        } else {
                            let end = range.end.min((first / COPY + 1) * COPY);
                            (Some(op), end, (end - first).div_ceil(FANOUT as u64) + 2)
                        }
                    }
                    Change::Read => {
                        let end = range.end.min(first + GROUP);
                        (None, end, end - first)
                    }
                };
                match op {
                    Some(op) => ops.push((first..end, op)),
                    None => {
                        self.engine.check_open()?;
                        self.seal_group(layer, first..end, size, &mut ops)?;
                        layer.add_seal_done(end - first);
                    }
                }
                first = end;
                in_slice += new * unit;
                if in_slice >= SLICE {
                    root = map::edit(&self.pages, &root, size, &ops)?;
                    self.batch.sync()?;
                    ops.clear();
                    self.pages.fresh.lock().clear();
                    in_slice = 0;
                }
            }
        }
        root = map::edit(&self.pages, &root, size, &ops)?;
        let record = root.encode();
        let id = self.engine.sealed.chunks().id(Kind::Root, &record);
        self.batch.put(Kind::Root, &id, &record)?;
        Ok(SealedRoot { id, root })
    }

    /// Reads a few chunks through the layer's view, stores those that nobody
    /// has, and adds what they are to `ops`.
    fn seal_group(
        &self,
        layer: &Layer,
        chunks: Range<u64>,
        size: u64,
        ops: &mut Vec<(Range<u64>, Op<'_>)>,
    ) -> Result<()> {
        let sealed = &self.engine.sealed;
        let unit = sealed.chunk_size();
        let needed = (chunks.end - chunks.start) * unit;
        if !self.engine.capacity.has_room_for_work(needed)? {
            let space = self.engine.capacity.space()?;
            return Err(Error::Full {
                free: space.free_bytes + space.reserve_bytes,
                reserve: space.reserve_bytes,
            });
        }
        let read: Vec<Result<Option<ReadChunk>>> = self.pool.install(|| {
            chunks
                .clone()
                .into_par_iter()
                .map(|index| {
                    let mut bytes = vec![0; unit as usize];
                    // Chunks are hashed at full length; behind the disk's
                    // end there are zeros.
                    let len = (size - index * unit).min(unit) as usize;
                    layer
                        .read(sealed, index * unit, &mut bytes[..len], Wait::Yes)?
                        .waited();
                    if is_zero(&bytes) {
                        return Ok(None);
                    }
                    Ok(Some((sealed.chunks().id(Kind::Data, &bytes), bytes)))
                })
                .collect()
        });
        let mut stored = Vec::with_capacity(read.len());
        for (index, chunk) in chunks.zip(read) {
            match chunk? {
                None => ops.push((index..index + 1, Op::Clear)),
                Some((id, bytes)) => {
                    ops.push((index..index + 1, Op::Set(id)));
                    stored.push((id, bytes));
                }
            }
        }
        self.batch.put_all(self.pool, Kind::Data, &stored)?;
        Ok(())
    }
}

fn out_of_order(layer: &Layer, needed: &Layer) -> Error {
    Error::InvalidArgument {
        what: format!("layer {} cannot be sealed before {}", layer.id, needed.id),
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    let (words, rest) = bytes.as_chunks::<8>();
    words.iter().all(|word| u64::from_ne_bytes(*word) == 0) && rest.iter().all(|byte| *byte == 0)
}
