//! What `snapdisk status` says of a store.

use super::*;
use crate::disk::Engine;
use crate::disk::layer::Below;
use crate::manifest::DiskRecord;
use crate::map;
use serde::Serialize;
use std::collections::HashSet;

/// Answers of [`Engine::unique_bytes`] that are remembered.
const UNIQUE_KNOWN: usize = 4096;

/// A store in numbers. All sizes are bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its directory.
    pub store: String,
    /// Its own name.
    pub uuid: String,
    /// Format of its manifests.
    pub format: u32,
    /// Bytes in a chunk.
    pub chunk_size: u32,
    /// Disks.
    pub disks: u64,
    /// Images, linked and imported.
    pub images: u64,
    /// Snapshots of all disks.
    pub snapshots: u64,
    /// Bytes of all packs.
    pub stored_bytes: u64,
    /// Bytes of the chunks in them when unpacked.
    pub plain_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Chunks in them.
    pub chunks: u64,
    /// Frozen layers that wait to be sealed.
    pub unsealed_layers: u64,
    /// Bytes that unsealed layers hold, the live images' heads included.
    pub layer_bytes: u64,
    /// Bytes of the store's filesystem.
    pub total_bytes: u64,
    /// Bytes that writers may still have.
    pub free_bytes: u64,
    /// What needs attention, in words; empty if nothing does.
    pub attention: Vec<String>,
}

impl Store {
    /// The store in numbers.
    pub fn status(&self) -> Result<Status> {
        let stats = self.chunks().stats();
        let disks = self.all_disks();
        let mut attention: Vec<String> = {
            let damage = self.damage.lock();
            damage.iter().map(|damage| damage.text.clone()).collect()
        };
        let apart = self.chunks().apart().len();
        if apart > 0 {
            attention.push(format!(
                "{apart} damaged packs are set apart: `snapdisk verify --repair` says of what"
            ));
        }
        attention.extend(self.attention_of_policies(&disks));
        let space = self.space()?;
        if space.is_low() {
            attention.push(format!(
                "the store's filesystem is nearly full: {} MiB are left",
                space.free_bytes >> 20
            ));
        }
        for disk in &disks {
            for snapshot in disk.list_snapshots() {
                if snapshot.state() == "damaged" {
                    attention.push(format!("{} is damaged", disk.label_of(&snapshot)));
                }
            }
            if let Some(cause) = disk.poisoned() {
                attention.push(format!("disk {} answers errors: {cause}", disk.name()));
            }
        }
        if let Err(error) = self.engine.manifests.check_known() {
            attention.push(error.to_string());
        }
        if let Err(error) = self.chunks().check_poison() {
            attention.push(error.to_string());
        }
        let layers: Vec<_> = self.engine.layers.lock().values().cloned().collect();
        for layer in &layers {
            if let Some(cause) = layer.unsealable.get() {
                attention.push(format!("layer {} cannot be sealed: {cause}", layer.id));
            }
        }
        Ok(Status {
            store: self.root.display().to_string(),
            uuid: self.header.store.to_string(),
            format: manifest::FORMAT,
            chunk_size: self.header.chunk_size,
            disks: disks.iter().filter(|disk| !disk.is_import()).count() as u64,
            images: self.images().len() as u64,
            snapshots: disks
                .iter()
                .filter(|disk| !disk.is_import())
                .map(|disk| disk.list_snapshots().len() as u64)
                .sum(),
            stored_bytes: stats.stored_bytes,
            plain_bytes: stats.plain_bytes,
            packs: stats.packs,
            chunks: stats.chunks,
            unsealed_layers: layers
                .iter()
                .filter(|layer| layer.is_frozen() && layer.sealed().is_none())
                .count() as u64,
            layer_bytes: layers.iter().map(|layer| layer.data_bytes()).sum(),
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            attention,
        })
    }

    /// What needs attention of policies and quotas, in words.
    fn attention_of_policies(&self, disks: &[Arc<Disk>]) -> Vec<String> {
        let settings = self.settings();
        let mut attention = Vec::new();
        for disk in disks.iter().filter(|disk| !disk.is_import()) {
            let name = disk.name();
            let (manual, automatic) = disk.count_snapshots();
            let near =
                |count: usize, limit: u32| limit > 0 && count as u64 * 10 >= u64::from(limit) * 9;
            if near(manual, settings.max_manual_snapshots) {
                attention.push(format!(
                    "disk {name} has {manual} of {} manual snapshots",
                    settings.max_manual_snapshots
                ));
            }
            if let Some(limit) = settings.max_snapshots
                && near(manual + automatic, limit)
            {
                let count = manual + automatic;
                attention.push(format!("disk {name} has {count} of {limit} snapshots"));
            }
            let Some(in_force) = self.policy_of(disk) else {
                continue;
            };
            match &in_force.policy {
                Err(why) => attention.push(format!(
                    "the policy {} of disk {name} cannot be used: {why}",
                    in_force.label()
                )),
                Ok(policy) => {
                    let newest = disk.list_snapshots().into_iter().rev();
                    let newest = newest
                        .filter(|one| one.kind() == manifest::SnapshotKind::Automatic)
                        .map(|one| one.created_ns)
                        .next();
                    // Two slots that passed without one, and without a reason
                    // that the policy gives.
                    let since = newest.unwrap_or(in_force.since_ns).max(in_force.since_ns);
                    let passed = policy.slots(since, time::now_ns(), 3);
                    if !policy.skip_unchanged && passed.len() >= 2 {
                        attention.push(format!(
                            "disk {name} had no automatic snapshot since {}: `snapdisk events` \
                             says why",
                            time::rfc3339(since)
                        ));
                    }
                }
            }
        }
        attention
    }

    /// Reads every manifest that the catalogue lists again; answers what is
    /// wrong with them, in words.
    pub(crate) fn check_manifests(&self, count: &mut u64) -> Vec<String> {
        let manifests = &self.engine.manifests;
        let catalogue = self.catalogue.lock();
        let mut wrong = Vec::new();
        wrong.extend(manifests.check::<Header>(&manifest::header_key()));
        wrong.extend(manifests.check::<Header>(&manifest::header_copy_key()));
        wrong.extend(manifests.check::<Catalogue>(&manifest::catalogue_key()));
        for (id, kind) in &catalogue.entries {
            let key = manifest::entry_key(id, *kind);
            wrong.extend(match kind {
                EntryKind::Disk => manifests.check::<DiskRecord>(&key),
                EntryKind::Link => manifests.check::<LinkRecord>(&key),
                EntryKind::Policy => manifests.check::<PolicyRecord>(&key),
                EntryKind::Group => manifests.check::<GroupRecord>(&key),
            });
            *count += 1;
        }
        wrong
    }
}

impl Engine {
    /// What every view of the store but one snapshot shows.
    fn other_views(&self, disk: &Disk, snapshot: &Snapshot) -> Vec<Below> {
        let disks: Vec<Arc<Disk>> = {
            let mut disks = self.disks.write();
            disks.retain(|disk| disk.strong_count() > 0);
            disks.iter().filter_map(|disk| disk.upgrade()).collect()
        };
        let mut views = Vec::new();
        for other in disks {
            let others = other.list_snapshots().into_iter();
            let others = others.filter(|s| other.id() != disk.id() || s.number != snapshot.number);
            views.extend(others.map(|snapshot| snapshot.base()));
            for layer in other.layers() {
                views.push(layer.below());
                views.extend(layer.sources().into_iter().map(|(_, source)| source));
            }
        }
        views
    }

    /// Bytes, as stored, that only this snapshot of the store refers to:
    /// what deleting it alone would free. Walks the map pages of every other
    /// root that are not shared with it.
    pub(crate) fn unique_bytes(&self, disk: &Disk, snapshot: &Snapshot) -> Result<u64> {
        let Below::Root(own) = snapshot.base() else {
            return Ok(0);
        };
        let mut others = Vec::new();
        for below in self.other_views(disk, snapshot) {
            if let Below::Root(root) = below.settled() {
                if root.id == own.id {
                    return Ok(0);
                }
                others.push(root);
            }
        }
        let chunks = self.sealed.chunks();
        // The same views in the same packs: the same answer.
        let mut ids: Vec<_> = others.iter().map(|root| root.id.0).collect();
        ids.sort_unstable();
        let mut state = blake3::Hasher::new();
        state.update(&chunks.stats().stored_bytes.to_le_bytes());
        state.update(&own.id.0);
        for id in &ids {
            state.update(id);
        }
        let (state, key) = (state.finalize(), (disk.id(), snapshot.number));
        if let Some((then, bytes)) = self.unique.lock().get(&key)
            && *then == state
        {
            return Ok(*bytes);
        }
        let mut seen: HashSet<crate::chunk::ChunkId> = HashSet::new();
        // Pages that others have too, with all that is below them, are not
        // its own.
        for other in &others {
            map::walk(
                &*self.sealed,
                &other.root,
                &mut |page, _| seen.insert(*page),
                &mut |_, _| (),
            )?;
        }
        let mut own_pages = Vec::new();
        let mut candidates = HashSet::new();
        map::walk(
            &*self.sealed,
            &own.root,
            &mut |page, _| {
                let is_own = !seen.contains(page);
                if is_own {
                    own_pages.push(*page);
                }
                is_own
            },
            &mut |_, chunk| {
                candidates.insert(*chunk);
            },
        )?;
        let mut walked: HashSet<crate::chunk::ChunkId> = HashSet::new();
        for other in &others {
            if candidates.is_empty() {
                break;
            }
            map::walk(
                &*self.sealed,
                &other.root,
                &mut |page, _| walked.insert(*page),
                &mut |_, chunk| {
                    candidates.remove(chunk);
                },
            )?;
        }
        let mut bytes = chunks
            .stored_len(crate::chunk::Kind::Root, &own.id)
            .unwrap_or(0);
        for page in &own_pages {
            bytes += chunks
                .stored_len(crate::chunk::Kind::Page, page)
                .unwrap_or(0);
        }
        for chunk in &candidates {
            bytes += chunks
                .stored_len(crate::chunk::Kind::Data, chunk)
                .unwrap_or(0);
        }
        let mut known = self.unique.lock();
        if known.len() >= UNIQUE_KNOWN {
            known.clear();
        }
        known.insert(key, (state, bytes));
        Ok(bytes)
    }
}
