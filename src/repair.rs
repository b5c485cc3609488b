//! Mending what can be mended, and setting apart what cannot.
//!
//! Nothing is thrown away here that anything still shows or might show: a
//! damaged pack goes when everything that any map names can be read without
//! it, and stays, left alone by gc, as long as something cannot.

use crate::chunk::{ChunkId, Kind};
use crate::disk::layer::Below;
use crate::error::Result;
use crate::manifest::{self, Catalogue, GroupRecord, Owner};
use crate::pack::PackName;
use crate::progress::Progress;
use crate::recover;
use crate::store::{Store, policies};
use crate::verify::Finding;
use serde::Serialize;
use std::collections::{BTreeSet, HashMap, HashSet};
use uuid::Uuid;

/// Whose a group is whose manifest was lost.
const GROUP_OWNER: Owner = Owner {
    uid: 0,
    gid: 0,
    mode: 0o755,
};

/// What a repair did.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RepairReport {
    /// Packs whose places the index learned anew, from the packs.
    pub indexed_packs: u64,
    /// Packs with something damaged in them.
    pub damaged_packs: u64,
    /// Records that were sound, in damaged packs only, and are in a sound
    /// one now.
    pub copied_chunks: u64,
    /// Damaged packs that were removed, as nothing in them is needed.
    pub removed_packs: u64,
    /// Damaged packs that stay, as something in them is needed and may be
    /// nowhere else. gc leaves them.
    pub kept_packs: u64,
    /// Snapshots, disks and images of which a range is lost.
    pub damaged_views: u64,
    /// Files and manifests that nothing names, removed.
    pub orphans: u64,
    /// Disks and images whose manifests were lost, forgotten because that
    /// was asked for.
    pub forgotten: u64,
}

impl Store {
    /// Rebuilds the index, gets what is sound out of damaged packs, marks
    /// snapshots that lost something, and removes what is orphaned. `found`
    /// gets what could not be mended. With `forget_lost`, disks and images
    /// whose manifests are gone or unreadable are taken off the catalogue.
    pub fn repair(
        &self,
        forget_lost: bool,
        progress: &dyn Progress,
        found: &mut dyn FnMut(Finding),
    ) -> Result<RepairReport> {
        let _one = self.lock_collecting();
        self.engine.check_open()?;
        self.engine.manifests.check_known()?;
        let mut report = RepairReport::default();
        let chunks = self.chunks();
        // From here on no pack goes, and what others rely on is known.
        let run = chunks.sweep_begin()?;
        report.indexed_packs = chunks.index().rebuild_all(&|done, total| {
            progress.update("rebuilding the index", done, total);
        });
        let mut damaged: BTreeSet<PackName> = BTreeSet::new();
        chunks.verify(
            &|done, total| progress.update("reading packs (bytes)", done, total),
            &mut |finding| {
                if finding.is_damage() {
                    damaged.extend(finding.pack());
                    found(Finding::Pack(finding));
                }
            },
        )?;
        report.damaged_packs = damaged.len() as u64;
        let damaged: Vec<PackName> = damaged.into_iter().collect();
        progress.update("copying what is sound", 0, 0);
        let salvaged = run.salvage(&damaged)?;
        report.copied_chunks = salvaged.copied.len() as u64;

        let lacks = |kind: Kind, id: &ChunkId| {
            let is_there = chunks.has_sound(kind, id);
            (!is_there).then(|| format!("{kind} chunk {id} is in no sound pack"))
        };
        let lost = self.walk_maps(progress, &lacks, found)?;
        report.damaged_views = lost.values().filter(|lost| **lost).count() as u64;
        self.mark_snapshots(&lost)?;
        let unknown = !self.damage.lock().is_empty();
        let mut kept: BTreeSet<PackName> = damaged.iter().copied().collect();
        if report.damaged_views == 0 && !unknown {
            for (number, name) in &salvaged.packs {
                if run.delete(*number, name)? {
                    kept.remove(name);
                    report.removed_packs += 1;
                }
            }
        }
        report.kept_packs = kept.len() as u64;
        self.set_apart(kept)?;
        drop(salvaged);
        if forget_lost {
            report.forgotten = self.forget_lost()?;
        }
        if self.damage.lock().is_empty() {
            // Nobody adds a disk meanwhile.
            let catalogue = self.lock_catalogue();
            report.orphans = recover::remove_orphans(&self.engine, &catalogue)?;
        }
        for damage in self.damage.lock().iter().filter(|damage| !damage.is_mended) {
            found(Finding::Manifest {
                detail: damage.text.clone(),
            });
        }
        Ok(report)
    }

    /// Notes durably which packs gc leaves.
    fn set_apart(&self, packs: BTreeSet<PackName>) -> Result<()> {
        let mut catalogue = self.lock_catalogue();
        if catalogue.apart != packs {
            let mut next = catalogue.clone();
            next.apart = packs.clone();
            self.replace_catalogue(&mut catalogue, next)?;
        }
        self.chunks().set_apart(packs);
        Ok(())
    }

    /// Notes on every sealed snapshot whether something of it is lost.
    fn mark_snapshots(&self, lost: &HashMap<ChunkId, bool>) -> Result<()> {
        for disk in self.all_disks() {
            let mut changed = false;
            for snapshot in disk.list_snapshots() {
                if let Below::Root(root) = snapshot.base()
                    && let Some(lost) = lost.get(&root.id)
                {
                    changed |= snapshot.mark_damaged(*lost);
                }
            }
            if changed {
                disk.publish()?;
            }
        }
        Ok(())
    }

    /// Records of those of these groups that have members, made from them.
    fn groups_by_members(
        &self,
        lost: &HashSet<Uuid>,
        next: &mut Catalogue,
    ) -> Result<Vec<GroupRecord>> {
        let mut groups: Vec<GroupRecord> = Vec::new();
        for disk in self.all_disks() {
            for snapshot in disk.list_snapshots() {
                let Some(id) = snapshot.group.filter(|id| lost.contains(id)) else {
                    continue;
                };
                let member = (disk.id(), snapshot.id);
                if let Some(group) = groups.iter_mut().find(|group| group.id == id) {
                    group.members.push(member);
                    continue;
                }
                let wanted = snapshot.name();
                let is_taken = |name: &str| {
                    self.group(name).is_some() || groups.iter().any(|group| group.name == name)
                };
                let free = (1..)
                    .map(|count| match count {
                        1 => wanted.clone(),
                        _ => format!("{wanted}-{count}"),
                    })
                    .find(|name| !is_taken(name));
                groups.push(GroupRecord {
                    id,
                    number: policies::take_number(next)?,
                    name: free.unwrap_or(wanted),
                    owner: GROUP_OWNER,
                    created_ns: snapshot.created_ns,
                    members: vec![member],
                });
            }
        }
        Ok(groups)
    }

    /// Takes entries off the catalogue of which recovery could make nothing.
    /// Their manifests stay aside, for whoever can read more of them.
    fn forget_lost(&self) -> Result<u64> {
        let lost: HashSet<Uuid> = {
            let damage = self.damage.lock();
            damage.iter().filter_map(|damage| damage.entry).collect()
        };
        let mut catalogue = self.lock_catalogue();
        let mut next = catalogue.clone();
        // A group is known by its members, and without it they would be taken
        // for such as were never acknowledged.
        let groups = self.groups_by_members(&lost, &mut next)?;
        let lost: HashSet<Uuid> = lost
            .into_iter()
            .filter(|id| !groups.iter().any(|group| group.id == *id))
            .collect();
        next.entries.retain(|id, _| !lost.contains(id));
        let keys: Vec<String> = catalogue
            .entries
            .iter()
            .filter(|(id, _)| lost.contains(id))
            .map(|(id, kind)| manifest::entry_key(id, *kind))
            .collect();
        // Before anything is changed: what no catalogue lists the next start
        // removes.
        for key in &keys {
            self.engine.manifests.keep_aside(key)?;
        }
        if !keys.is_empty() || !groups.is_empty() {
            self.replace_catalogue(&mut catalogue, next)?;
        }
        for group in groups {
            tracing::warn!("group {} is made anew from its members", group.name);
            self.put_group(group)?;
        }
        for key in &keys {
            tracing::warn!("{key} is forgotten");
            self.engine.manifests.delete(key)?;
        }
        self.damage.lock().retain(|damage| damage.entry.is_none());
        Ok(keys.len() as u64)
    }
}
