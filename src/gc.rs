//! Winning space back: what no manifest, layer, graft or view reaches goes.
//!
//! Marking walks the map pages of every root, each page once; no chunk is
//! read. What is live is kept in a filter that may take a dead chunk for a
//! live one, which then waits for the next run, but never the reverse; the
//! pages walked are kept exactly, since a page wrongly taken for walked would
//! lose what it reaches.

use crate::chunk::sweep::SweepReport;
use crate::chunk::{ChunkId, Kind};
use crate::disk::layer::Below;
use crate::error::{Error, Result};
use crate::map;
use crate::progress::Progress;
use crate::store::Store;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::disk::sealed::SealedRoot;

/// What a run did, or with `dry_run` would have done.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct GcReport {
    /// Whether nothing was changed.
    pub dry_run: bool,
    /// Roots that were walked.
    pub roots: u64,
    /// Packs before.
    pub packs_before: u64,
    /// Packs deleted because nothing in them was live.
    pub packs_deleted: u64,
    /// Packs deleted after what was live in them had been copied.
    pub packs_compacted: u64,
    /// Bytes won.
    pub freed_bytes: u64,
    /// Bytes of live records in the packs that were judged.
    pub live_bytes: u64,
    /// Bytes of dead records that stay, in packs that are mostly live.
    pub dead_bytes: u64,
    /// Packs that were not judged because a seal relied on them.
    pub packs_protected: u64,
    /// Whether there was no room to compact everything worth it.
    pub no_space: bool,
}

impl fmt::Display for GcReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} bytes {} ({} of {} packs deleted, {} compacted; {} dead bytes stay)",
            self.freed_bytes,
            if self.dry_run {
                "would be freed"
            } else {
                "freed"
            },
            self.packs_deleted,
            self.packs_before,
            self.packs_compacted,
            self.dead_bytes
        )
    }
}

/// Bits of the filter for each chunk there is.
const BITS_A_CHUNK: u64 = 16;
/// Positions of a chunk in the filter. With 16 bits a chunk about 1 dead one
/// in 400 is taken for a live one (Bloom, 1970: (1 − e^(−4/16))^4 = 0.0024).
const POSITIONS: usize = 4;

/// A Bloom filter of chunk ids, salted, so that what is wrongly kept in one
/// run is not in the next.
pub struct LiveSet {
    words: Vec<u64>,
    salt: u64,
}

impl LiveSet {
    /// A filter for some number of chunks.
    pub fn new(chunks: u64, salt: u64) -> LiveSet {
        let bits = (chunks * BITS_A_CHUNK).max(1 << 20).next_power_of_two();
        LiveSet {
            words: vec![0; (bits / 64) as usize],
            salt,
        }
    }

    fn positions(&self, id: &ChunkId) -> [u64; POSITIONS] {
        let bits = self.words.len() as u64 * 64;
        let (words, _) = id.0.as_chunks::<8>();
        // The id is uniformly distributed already; the salt has to reach the
        // low bits, which choose the position.
        std::array::from_fn(|index| {
            let word = u64::from_le_bytes(words[index]) ^ self.salt;
            (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) % bits
        })
    }

    /// Adds a chunk.
    pub fn insert(&mut self, id: &ChunkId) {
        for bit in self.positions(id) {
            self.words[(bit / 64) as usize] |= 1 << (bit % 64);
        }
    }

    /// Whether a chunk was added, or looks as if.
    pub fn contains(&self, id: &ChunkId) -> bool {
        self.positions(id)
            .iter()
            .all(|bit| self.words[(bit / 64) as usize] & (1 << (bit % 64)) != 0)
    }
}

impl From<SweepReport> for GcReport {
    fn from(report: SweepReport) -> GcReport {
        GcReport {
            dry_run: false,
            roots: 0,
            packs_before: report.packs_before,
            packs_deleted: report.packs_deleted,
            packs_compacted: report.packs_compacted,
            freed_bytes: report.bytes_freed,
            live_bytes: report.live_bytes,
            dead_bytes: report.dead_bytes,
            packs_protected: report.packs_protected,
            no_space: report.no_space,
        }
    }
}

impl Store {
    /// Every root that something reaches, each with words on what does.
    pub(crate) fn roots(&self) -> HashMap<ChunkId, (Arc<SealedRoot>, Vec<String>)> {
        // No layer goes while this looks: what a disk has handed over and is
        // not its own any more is found among the layers then.
        let _settling = self.engine.settling.read();
        let mut roots: HashMap<ChunkId, (Arc<SealedRoot>, Vec<String>)> = HashMap::new();
        let mut add = |below: &Below, is_view: bool, what: &dyn Fn() -> String| {
            if let Below::Root(root) = below.settled() {
                let (_, views) = roots.entry(root.id).or_insert_with(|| (root, Vec::new()));
                // A layer is told of only if no view has the root.
                if is_view || views.is_empty() {
                    let what = what();
                    if views.last() != Some(&what) {
                        views.push(what);
                    }
                }
            }
        };
        for disk in self.all_disks() {
            for snapshot in disk.list_snapshots() {
                add(&snapshot.base(), true, &|| disk.label_of(&snapshot));
            }
            for layer in disk.layers() {
                add(&layer.below(), true, &|| disk.label());
            }
        }
        // Also layers that no disk names yet or any more: an operation may
        // have them in hand.
        for layer in self.engine.layers.lock().values() {
            let what = || format!("layer {}", layer.id);
            add(&layer.below(), false, &what);
            if let Some(root) = layer.sealed() {
                add(&Below::Root(root.clone()), false, &what);
            }
            for (_, source) in layer.sources() {
                add(&source, false, &what);
            }
        }
        roots
    }

    /// Whether packs may be deleted at all (invariants 3 and 8).
    pub(crate) fn check_deletable(&self) -> Result<()> {
        self.engine.check_open()?;
        self.engine.manifests.check_known()?;
        match self.damage.lock().first() {
            Some(damage) => Err(Error::Damaged {
                what: "the store".into(),
                detail: format!("nothing is deleted while {}", damage.text),
            }),
            None => Ok(()),
        }
    }

    /// Wins space back. Ends with an error, and nothing deleted, when
    /// anything is found wrong on the way (invariant 8).
    pub fn gc(&self, dry_run: bool, progress: &dyn Progress) -> Result<GcReport> {
        let _one = self.lock_collecting();
        self.check_deletable()?;
        let keep_going = || !self.engine.closing.load(Ordering::SeqCst);
        drop(self.publishing.lock());
        let engine = self.engine.clone();
        let run = self
            .chunks()
            .sweep_begin()?
            .asking_for_room(move |bytes| engine.capacity.has_room_for_work(bytes));
        let roots = self.roots();
        let salt = crate::time::now_ns() as u64;
        let mut live = LiveSet::new(self.chunks().stats().chunks, salt);
        let mut seen: HashSet<ChunkId> = HashSet::new();
        for (done, (id, (root, views))) in roots.iter().enumerate() {
            progress.update("marking", done as u64, roots.len() as u64);
            self.engine.check_open()?;
            live.insert(id);
            let mut pages = Vec::new();
            map::walk(
                &*self.engine.sealed,
                &root.root,
                &mut |page, _| {
                    let new = seen.insert(*page);
                    if new {
                        pages.push(*page);
                    }
                    new
                },
                &mut |_, chunk| live.insert(chunk),
            )
            .map_err(|error| Error::Damaged {
                what: views.join(", "),
                detail: error.to_string(),
            })?;
            pages.iter().for_each(|page| live.insert(page));
        }
        progress.update("sweeping", 0, 0);
        let is_live = |_: Kind, id: &ChunkId| live.contains(id);
        let report = run.finish(&is_live, dry_run, &keep_going)?;
        Ok(GcReport {
            dry_run,
            roots: roots.len() as u64,
            ..report.into()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> ChunkId {
        ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes())
    }

    /// Nothing that was added is ever missed, and little else is found.
    #[test]
    fn a_live_chunk_is_never_taken_for_dead() {
        let mut live = LiveSet::new(100_000, 77);
        (0..100_000).for_each(|n| live.insert(&id(n)));
        assert!((0..100_000).all(|n| live.contains(&id(n))));
        let wrong = (100_000..200_000)
            .filter(|n| live.contains(&id(*n)))
            .count();
        assert!(wrong < 600, "{wrong} of 100000");
    }
}
