//! Reading everything there is, to find what is damaged.

use crate::chunk::{ChunkId, Kind};
use crate::disk::layer::Below;
use crate::error::{Error, Result};
use crate::map;
use crate::pack;
use crate::progress::Progress;
use crate::store::Store;
use serde::Serialize;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

/// One thing that is not as it should be.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "in", rename_all = "snake_case")]
pub enum Finding {
    /// In a pack.
    Pack(pack::Finding),
    /// A manifest, or what it names.
    Manifest {
        /// What is wrong.
        detail: String,
    },
    /// A range of a snapshot, disk or image that cannot be read.
    Range {
        /// Whose.
        what: String,
        /// First byte.
        from: u64,
        /// One past the last byte.
        to: u64,
        /// Why.
        detail: String,
    },
    /// An unsealed layer that cannot be read or sealed.
    Layer {
        /// Which.
        layer: String,
        /// Why.
        detail: String,
    },
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Finding::Pack(finding) => finding.fmt(f),
            Finding::Manifest { detail } => f.write_str(detail),
            Finding::Range {
                what,
                from,
                to,
                detail,
            } => write!(f, "{what}: bytes {from} to {to}: {detail}"),
            Finding::Layer { layer, detail } => write!(f, "layer {layer}: {detail}"),
        }
    }
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct VerifyReport {
    /// Manifests, the catalogue and the header not counted.
    pub manifests: u64,
    /// Packs.
    pub packs: u64,
    /// Records of packs that are whole and match their ids.
    pub chunks: u64,
    /// Bytes of packs.
    pub bytes: u64,
    /// Maps that snapshots, disks and images show.
    pub maps: u64,
    /// What was found.
    pub findings: u64,
}

/// What in a chain of layers under a view of `size` bytes cannot be read,
/// beside what is in maps.
fn unreadable(below: &Below, size: u64) -> Vec<(Range<u64>, String)> {
    let mut found = Vec::new();
    let mut below = below.settled();
    loop {
        match below {
            Below::Empty | Below::Root(_) => return found,
            Below::Lost(lost) => {
                found.push((0..size, lost.error().to_string()));
                return found;
            }
            Below::Layer(layer) => {
                if let Some(broken) = layer.broken() {
                    found.push((0..size, broken.to_owned()));
                    return found;
                }
                for (range, why) in layer.lost_ranges() {
                    if range.start < size {
                        found.push((range.start..range.end.min(size), why.to_owned()));
                    }
                }
                for (_, source) in layer.sources() {
                    for (_, why) in unreadable(&source, size) {
                        found.push((0..size, format!("what was copied into it: {why}")));
                    }
                }
                below = layer.below().settled();
            }
        }
    }
}

impl Store {
    /// Reads every manifest, map page and chunk and compares each with its
    /// checksum or id; `found` gets what is wrong. It never stops at the
    /// first.
    pub fn verify(
        &self,
        progress: &dyn Progress,
        found: &mut dyn FnMut(Finding),
    ) -> Result<VerifyReport> {
        let mut report = VerifyReport::default();
        let mut count = 0;
        let mut found = |finding: Finding| {
            count += 1;
            found(finding);
        };
        self.verify_manifests(&mut report, &mut found)?;
        for layer in self.engine.layers.lock().values() {
            let why = layer
                .broken()
                .or(layer.unsealable.get().map(String::as_str));
            if let Some(detail) = why {
                found(Finding::Layer {
                    layer: layer.id.to_string(),
                    detail: detail.to_owned(),
                });
            }
        }
        let mut wrong = HashSet::new();
        let packs = self.chunks().verify(
            &|done, total| progress.update("reading packs (bytes)", done, total),
            &mut |finding| {
                if let pack::Finding::Chunk { id, .. } = &finding {
                    wrong.insert(*id);
                }
                // What a crash left behind the last acknowledged record.
                if !matches!(finding, pack::Finding::TornTail { .. }) {
                    found(Finding::Pack(finding));
                }
            },
        )?;
        report.packs = packs.packs;
        report.chunks = packs.chunks;
        report.bytes = packs.bytes;
        self.verify_maps(progress, &wrong, &mut report, &mut found)?;
        self.verify_views(&mut found);
        report.findings = count;
        Ok(report)
    }

    fn verify_manifests(
        &self,
        report: &mut VerifyReport,
        found: &mut dyn FnMut(Finding),
    ) -> Result<()> {
        let known = self.damage.lock().clone();
        let mut told: Vec<String> = known.into_iter().map(|damage| damage.text).collect();
        for detail in self.check_manifests(&mut report.manifests)? {
            if !told.contains(&detail) {
                told.push(detail);
            }
        }
        for detail in told {
            found(Finding::Manifest { detail });
        }
        Ok(())
    }

    /// Tells of snapshots, disks and images that stand on something of which
    /// nothing can be read.
    fn verify_views(&self, found: &mut dyn FnMut(Finding)) {
        for disk in self.all_disks() {
            let mut tell = |what: String, size: u64, below: &Below| {
                for (range, detail) in unreadable(below, size) {
                    found(Finding::Range {
                        what: what.clone(),
                        from: range.start,
                        to: range.end,
                        detail,
                    });
                }
            };
            for snapshot in disk.list_snapshots() {
                let what = disk.label_of(&snapshot);
                tell(what, snapshot.size(), &snapshot.base());
            }
            if let (Some(live), Some(head)) = (disk.live(), disk.head()) {
                tell(disk.label(), live.size, &Below::Layer(head));
            }
        }
    }

    /// Walks every map: its pages have to be there and consistent, and every
    /// chunk that it names has to be in some pack. Those that were found
    /// `wrong` in one are read, as another pack may have them whole.
    fn verify_maps(
        &self,
        progress: &dyn Progress,
        wrong: &HashSet<ChunkId>,
        report: &mut VerifyReport,
        found: &mut dyn FnMut(Finding),
    ) -> Result<()> {
        let roots = self.roots();
        let unit = self.engine.sealed.chunk_size();
        let mut whole = HashSet::new();
        for (done, (root, views)) in roots.values().enumerate() {
            progress.update("walking maps", done as u64, roots.len() as u64);
            self.engine.check_open()?;
            let mut bad: Vec<(Range<u64>, String)> = Vec::new();
            let mut missing = Vec::new();
            let mut pages = Vec::new();
            map::walk_findings(
                &*self.engine.sealed,
                &root.root,
                &mut |page, _| {
                    let new = !whole.contains(page);
                    if new {
                        pages.push(*page);
                    }
                    new
                },
                &mut |index, chunk| {
                    let chunks = self.chunks();
                    let there = if wrong.contains(chunk) {
                        chunks.get(Kind::Data, chunk).map(drop)
                    } else if chunks.stored_len(Kind::Data, chunk).is_none() {
                        Err(Error::ChunkMissing {
                            id: chunk.to_string(),
                        })
                    } else {
                        Ok(())
                    };
                    if let Err(error) = there {
                        missing.push((index..index + 1, error.to_string()));
                    }
                },
                &mut |chunks, _, error| bad.push((chunks, error.to_string())),
            );
            // A page is not walked again only if all below it was sound.
            if bad.is_empty() && missing.is_empty() {
                whole.extend(pages);
            }
            bad.extend(missing);
            for (chunks, detail) in bad {
                found(Finding::Range {
                    what: views.join(", "),
                    from: chunks.start * unit,
                    to: (chunks.end * unit).min(root.root.size),
                    detail,
                });
            }
            report.maps += 1;
        }
        Ok(())
    }
}
