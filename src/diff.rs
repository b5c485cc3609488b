//! Where two of the store's disks, snapshots and images differ, in time that
//! follows the difference: equal subtrees of their maps are not read, and of
//! layers that are not sealed only what they hold is.

use crate::disk::layer::{Below, Layer};
use crate::disk::{Attempt, Disk, Wait};
use crate::error::{Error, Result};
use crate::map::{self, Root};
use crate::progress::Progress;
use crate::snapshot::Snapshot;
use crate::store::{Image, Store};
use serde::Serialize;
use std::ops::Range;
use std::sync::Arc;

/// The unit in which differences are told, in bytes: a block.
const UNIT: usize = 4096;

/// Something that can be compared.
#[derive(Clone)]
pub enum Side {
    /// A disk's live image, as it is while it is read.
    Live(Arc<Disk>),
    /// A snapshot, or an image that is a link to one.
    Snapshot(Arc<Disk>, Arc<Snapshot>),
}

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// Bytes of the first.
    pub size_a: u64,
    /// Bytes of the second.
    pub size_b: u64,
    /// Bytes that differ, in whole blocks, what only one of them has
    /// included.
    pub changed_bytes: u64,
    /// Ranges of them.
    pub extents: u64,
    /// Bytes of each that were read.
    pub read_bytes: u64,
}

impl Store {
    /// What a name means: `disk`, `disk@snapshot`, or an image's name in
    /// `.images/`.
    pub fn side(&self, name: &str) -> Result<Side> {
        if let Some(image) = name.strip_prefix(".images/") {
            return match self.image(image) {
                Some(Image::Link { disk, snapshot, .. }) => Ok(Side::Snapshot(disk, snapshot)),
                Some(Image::Import { disk, .. }) => Ok(Side::Live(disk)),
                None => Err(missing("image", image)),
            };
        }
        // Both names may have an @, so every one is tried.
        for (at, _) in name.match_indices('@') {
            if let Some(disk) = self.disk(&name[..at])
                && let Some(snapshot) = disk.snapshot(&name[at + 1..])
            {
                return Ok(Side::Snapshot(disk, snapshot));
            }
        }
        match self.disk(name) {
            Some(disk) if disk.live().is_some() => Ok(Side::Live(disk)),
            Some(disk) => Err(Error::NoImage { disk: disk.name() }),
            None => Err(missing("disk or snapshot", name)),
        }
    }

    /// Tells `found` the ranges of bytes in which two sides differ, in order
    /// and as long as they can be.
    pub fn diff(
        &self,
        a: &Side,
        b: &Side,
        progress: &dyn Progress,
        found: &mut dyn FnMut(Range<u64>),
    ) -> Result<Difference> {
        let unit = self.engine.sealed.chunk_size();
        let (size_a, size_b) = (a.size()?, b.size()?);
        let (common, all) = (size_a.min(size_b), size_a.max(size_b));
        let mut difference = Difference {
            size_a,
            size_b,
            ..Difference::default()
        };
        let mut open: Option<Range<u64>> = None;
        let mut tell = |range: Range<u64>, difference: &mut Difference| {
            difference.changed_bytes += range.end - range.start;
            match &mut open {
                Some(before) if before.end == range.start => before.end = range.end,
                _ => {
                    if let Some(before) = open.replace(range) {
                        difference.extents += 1;
                        found(before);
                    }
                }
            }
        };
        let candidates = self.candidates(a, b)?;
        let total: u64 = candidates.iter().map(|range| range.end - range.start).sum();
        let (mut one, mut other) = (vec![0; unit as usize], vec![0; unit as usize]);
        for (done, chunk) in candidates.into_iter().flatten().enumerate() {
            progress.update("comparing chunks", done as u64, total);
            let start = chunk * unit;
            if start >= common {
                break;
            }
            let len = (common - start).min(unit) as usize;
            a.read(start, &mut one[..len])?;
            b.read(start, &mut other[..len])?;
            difference.read_bytes += len as u64;
            let blocks = one[..len].chunks(UNIT).zip(other[..len].chunks(UNIT));
            for (block, (one, other)) in blocks.enumerate() {
                if one != other {
                    let at = start + (block * UNIT) as u64;
                    tell(at..at + one.len() as u64, &mut difference);
                }
            }
        }
        if common < all {
            tell(common..all, &mut difference);
        }
        if let Some(last) = open {
            difference.extents += 1;
            found(last);
        }
        Ok(difference)
    }

    /// Chunks in which two sides may differ, in order.
    fn candidates(&self, a: &Side, b: &Side) -> Result<Vec<Range<u64>>> {
        let unit = self.engine.sealed.chunk_size();
        let (mut a, mut b) = (a.chain()?, b.chain()?);
        let mut ranges = Vec::new();
        // What both stand on does not differ.
        while let (Some(one), Some(other)) = (a.layers.last(), b.layers.last()) {
            if one.id != other.id {
                break;
            }
            a.layers.pop();
            b.layers.pop();
            a.root = None;
            b.root = None;
        }
        let empty = Root::empty(unit as u32, 0);
        let root = |chain: &Chain| chain.root.clone().unwrap_or_else(|| empty.clone());
        map::diff(
            &*self.engine.sealed,
            &root(&a),
            &root(&b),
            &mut |chunk, _, _| {
                ranges.push(chunk..chunk + 1);
            },
        )?;
        for layer in a.layers.iter().chain(&b.layers) {
            let plan = layer.plan();
            ranges.extend(plan.touched.into_iter().map(|(range, _)| range));
            ranges.extend(plan.grafts.into_iter().map(|(range, _)| range));
            // Below the cut nothing shows of what there was.
            ranges.push(plan.cut / unit..plan.begin_size.div_ceil(unit));
        }
        ranges.retain(|range| !range.is_empty());
        ranges.sort_by_key(|range| range.start);
        let mut joined: Vec<Range<u64>> = Vec::new();
        for range in ranges {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        Ok(joined)
    }
}

/// What a side shows: layers, the topmost first, over a map.
struct Chain {
    layers: Vec<Arc<Layer>>,
    root: Option<Root>,
}

impl Side {
    fn size(&self) -> Result<u64> {
        match self {
            Side::Live(disk) => {
                let live = disk.live();
                let live = live.ok_or_else(|| Error::NoImage { disk: disk.name() })?;
                Ok(live.size)
            }
            Side::Snapshot(_, snapshot) => Ok(snapshot.size()),
        }
    }

    fn chain(&self) -> Result<Chain> {
        let mut below = match self {
            Side::Live(disk) => match (disk.head(), disk.list_snapshots().first()) {
                (Some(head), _) => Below::Layer(head),
                // A finished import.
                (None, Some(image)) => image.base(),
                (None, None) => return Err(Error::NoImage { disk: disk.name() }),
            },
            Side::Snapshot(_, snapshot) => snapshot.base(),
        };
        let mut layers = Vec::new();
        loop {
            below = match below.settled() {
                Below::Layer(layer) => {
                    let next = layer.below();
                    layers.push(layer);
                    next
                }
                Below::Root(root) => {
                    let root = Some(root.root.clone());
                    return Ok(Chain { layers, root });
                }
                Below::Empty => return Ok(Chain { layers, root: None }),
                Below::Lost(lost) => return Err(lost.error()),
            };
        }
    }

    /// Reads; what is behind the end is zeros.
    fn read(&self, offset: u64, into: &mut [u8]) -> Result<()> {
        let read = match self {
            Side::Live(disk) => disk.read(offset, into, Wait::Yes)?,
            Side::Snapshot(disk, snapshot) => {
                disk.read_snapshot(snapshot, offset, into, Wait::Yes)?
            }
        };
        into[Attempt::waited(read)..].fill(0);
        Ok(())
    }
}

fn missing(what: &'static str, name: &str) -> Error {
    Error::Missing {
        what,
        name: name.to_owned(),
    }
}
