//! Reading everything there is, to find what is damaged.

use crate::chunk::{ChunkId, Kind};
use crate::disk::layer::{Below, Layer};
use crate::error::{Error, Result};
use crate::manifest::LayerId;
use crate::map;
use crate::pack;
use crate::progress::Progress;
use crate::store::Store;
use serde::Serialize;
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

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
    /// Unsealed layers.
    pub layers: u64,
    /// Bytes of their data.
    pub layer_bytes: u64,
    /// Maps that snapshots, disks and images show.
    pub maps: u64,
    /// What was found.
    pub findings: u64,
}

/// Ranges of layers, in bytes, that cannot be read, with why.
type Unreadable = HashMap<LayerId, Vec<(Range<u64>, String)>>;

/// What in a chain of layers under a view of `size` bytes cannot be read,
/// beside what is in maps. Of layers in `seen` all has been said.
fn unreadable(
    below: &Below,
    size: u64,
    known: &Unreadable,
    seen: &mut HashSet<LayerId>,
) -> Vec<(Range<u64>, String)> {
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
                if !seen.insert(layer.id) {
                    return found;
                }
                if let Some(broken) = layer.broken() {
                    found.push((0..size, broken.to_owned()));
                    return found;
                }
                let lost = layer.lost_ranges().into_iter();
                let lost = lost.map(|(range, why)| (range, why.to_owned()));
                let known_here = known.get(&layer.id).into_iter().flatten().cloned();
                for (range, why) in lost.chain(known_here) {
                    if range.start < size {
                        found.push((range.start..range.end.min(size), why));
                    }
                }
                for (_, source) in layer.sources() {
                    for (_, why) in unreadable(&source, size, known, seen) {
                        found.push((0..size, format!("what was copied into it: {why}")));
                    }
                }
                below = layer.below().settled();
            }
        }
    }
}

impl Store {
    /// Reads every manifest, layer, map page and chunk and compares each with
    /// its checksum or id, but the data of layers, which have none; `found`
    /// gets what is wrong. It never stops at the first.
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
        self.verify_manifests(&mut report, &mut found);
        let unread = self.verify_layers(progress, &mut report, &mut found)?;
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
        self.verify_views(&unread, &mut found);
        report.findings = count;
        Ok(report)
    }

    /// Reads every unsealed layer: its log has to be whole, its data to be
    /// there. Answers what of their data cannot be read.
    fn verify_layers(
        &self,
        progress: &dyn Progress,
        report: &mut VerifyReport,
        found: &mut dyn FnMut(Finding),
    ) -> Result<Unreadable> {
        let layers: Vec<Arc<Layer>> = self.engine.layers.lock().values().cloned().collect();
        let total = layers.iter().map(|layer| layer.data_bytes()).sum();
        let mut unread = Unreadable::new();
        for layer in layers {
            self.engine.check_open()?;
            let known = layer
                .broken()
                .or(layer.unsealable.get().map(String::as_str));
            let mut why = known.map(str::to_owned);
            let log = layer.check_log();
            let ranges = layer.unreadable_data(&mut |bytes| {
                report.layer_bytes += bytes;
                progress.update("reading layers (bytes)", report.layer_bytes, total);
            });
            report.layers += 1;
            // Else its files may be gone.
            let is_wrong = log.is_err() || !ranges.is_empty();
            if is_wrong && self.needed_layers().contains(&layer.id) {
                why = why.or(log.err().map(|error| error.to_string()));
                unread.insert(layer.id, ranges);
            }
            if let Some(detail) = why {
                found(Finding::Layer {
                    layer: layer.id.to_string(),
                    detail,
                });
            }
        }
        Ok(unread)
    }

    fn verify_manifests(&self, report: &mut VerifyReport, found: &mut dyn FnMut(Finding)) {
        let known = self.damage.lock().clone().into_iter();
        let known = known.filter(|damage| !damage.is_mended);
        let mut told: Vec<String> = known.map(|damage| damage.text).collect();
        for detail in self.check_manifests(&mut report.manifests) {
            if !told.contains(&detail) {
                told.push(detail);
            }
        }
        for detail in told {
            found(Finding::Manifest { detail });
        }
    }

    /// Tells of snapshots, disks and images that stand on something of which
    /// nothing can be read.
    fn verify_views(&self, unread: &Unreadable, found: &mut dyn FnMut(Finding)) {
        for disk in self.all_disks() {
            let mut tell = |what: String, size: u64, below: &Below| {
                for (range, detail) in unreadable(below, size, unread, &mut HashSet::new()) {
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

    /// Every chunk that a map names has to be in some pack. Those that were
    /// found `wrong` in one are read, as another pack may have them whole.
    fn verify_maps(
        &self,
        progress: &dyn Progress,
        wrong: &HashSet<ChunkId>,
        report: &mut VerifyReport,
        found: &mut dyn FnMut(Finding),
    ) -> Result<()> {
        let chunks = self.chunks();
        let lacks = |kind: Kind, id: &ChunkId| match kind {
            Kind::Data if wrong.contains(id) => {
                let read = chunks.stored(Kind::Data, id);
                read.err().map(|error| error.to_string())
            }
            Kind::Data if chunks.stored_len(Kind::Data, id).is_none() => {
                let missing = Error::ChunkMissing { id: id.to_string() };
                Some(missing.to_string())
            }
            _ => None,
        };
        report.maps = self.walk_maps(progress, &lacks, found)?.len() as u64;
        Ok(())
    }

    /// Walks every map: its pages have to be there and consistent. `lacks`
    /// is asked what is wrong with each thing that is named: with all of a
    /// map for its root and pages, with that chunk for data. Ranges that
    /// cannot be had go to `found`; answers for each root whether there are
    /// any.
    pub(crate) fn walk_maps(
        &self,
        progress: &dyn Progress,
        lacks: &dyn Fn(Kind, &ChunkId) -> Option<String>,
        found: &mut dyn FnMut(Finding),
    ) -> Result<HashMap<ChunkId, bool>> {
        let roots = self.roots();
        let unit = self.engine.sealed.chunk_size();
        let mut lost = HashMap::new();
        let mut whole = HashSet::new();
        for (done, (id, (root, views))) in roots.iter().enumerate() {
            progress.update("walking maps", done as u64, roots.len() as u64);
            self.engine.check_open()?;
            let all = 0..root.root.chunks();
            let mut bad: Vec<(Range<u64>, String)> = Vec::new();
            bad.extend(lacks(Kind::Root, id).map(|detail| (all.clone(), detail)));
            let mut missing = Vec::new();
            let mut pages = Vec::new();
            let mut page_lacks = None;
            map::walk_findings(
                &*self.engine.sealed,
                &root.root,
                &mut |page, _| {
                    let new = !whole.contains(page);
                    if new {
                        page_lacks = page_lacks.take().or_else(|| lacks(Kind::Page, page));
                        pages.push(*page);
                    }
                    new
                },
                &mut |index, chunk| {
                    let detail = lacks(Kind::Data, chunk);
                    missing.extend(detail.map(|detail| (index..index + 1, detail)));
                },
                &mut |chunks, _, error| bad.push((chunks, error.to_string())),
            );
            bad.extend(missing);
            if bad.is_empty() {
                // A page that is only in memory still.
                bad.extend(page_lacks.map(|detail| (all, detail)));
            }
            // A page is not walked again only if all below it was sound.
            if bad.is_empty() {
                whole.extend(pages);
            }
            // Deleted meanwhile: what it alone had may be gone.
            if !bad.is_empty() && !self.roots().contains_key(id) {
                continue;
            }
            lost.insert(*id, !bad.is_empty());
            for (chunks, detail) in bad {
                found(Finding::Range {
                    what: views.join(", "),
                    from: chunks.start * unit,
                    to: (chunks.end * unit).min(root.root.size),
                    detail,
                });
            }
        }
        Ok(lost)
    }
}
