//! What is done with what an earlier run left: after a crash, and after an
//! orderly end, where there is nothing to do.
//!
//! Manifests say what there is. What they name but the store lacks is
//! damage and is reported; what the store has but they do not name was never
//! acknowledged, or was deleted.

use crate::chunk::ChunkId;
use crate::disk::layer::{self, Below, Layer, LayerParts, LostRoot};
use crate::disk::log::GraftSource;
use crate::disk::{Disk, Engine};
use crate::error::{Error, Result};
use crate::files::Files;
use crate::manifest::{
    self, BaseRecord, Catalogue, DiskRecord, EntryKind, GroupRecord, LayerId, LayerRecord,
    LinkRecord, PolicyRecord,
};
use crate::progress::Progress;
use crate::store::layer_files;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// Where files of layers go that nothing names while something is damaged.
pub const ASIDE: &str = "layers/unreached";

/// What recovery made of a store.
pub struct Recovered {
    /// Disks and imported images.
    pub disks: Vec<Arc<Disk>>,
    /// Named policies.
    pub policies: BTreeMap<Uuid, PolicyRecord>,
    /// Groups of snapshots.
    pub groups: BTreeMap<Uuid, GroupRecord>,
    /// One line for the log.
    pub summary: String,
    /// What is damaged.
    pub damage: Vec<Damage>,
}

/// Something that is not as a manifest or the catalogue says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Damage {
    /// In words.
    pub text: String,
    /// The entry of the catalogue that nothing could be made of, if it is
    /// one.
    pub entry: Option<Uuid>,
    /// Whether it was mended, and is only not relied on before the store is
    /// opened again.
    pub is_mended: bool,
}

impl Damage {
    fn of_entry(entry: Uuid, text: String) -> Damage {
        Damage {
            entry: Some(entry),
            ..Damage::other(text)
        }
    }

    fn other(text: String) -> Damage {
        Damage {
            text,
            entry: None,
            is_mended: false,
        }
    }
}

/// Reads every manifest that the catalogue lists and opens what they name.
/// A catalogue that was made anew, `is_anew`, may lack some.
pub fn recover(
    engine: &Arc<Engine>,
    catalogue: &Catalogue,
    is_anew: bool,
    progress: &dyn Progress,
) -> Result<Recovered> {
    let mut damage = Vec::new();
    if is_anew {
        let text = "the catalogue was made anew from the manifests that are there: nobody knows \
                    whether there were others; what nothing names is kept until the store is \
                    opened again";
        damage.push(Damage {
            is_mended: true,
            ..Damage::other(text.to_owned())
        });
    }
    let mut records = Vec::new();
    let mut links = Vec::new();
    let mut policies = BTreeMap::new();
    let mut groups = BTreeMap::new();
    let total = catalogue.entries.len() as u64;
    for (done, (id, kind)) in catalogue.entries.iter().enumerate() {
        progress.update("reading manifests", done as u64, total);
        let key = manifest::entry_key(id, *kind);
        let read = match kind {
            EntryKind::Disk => engine
                .manifests
                .read::<DiskRecord>(&key)
                .map(|record| record.map(|record| records.push(record))),
            EntryKind::Link => engine
                .manifests
                .read::<LinkRecord>(&key)
                .map(|record| record.map(|record| links.push(record))),
            EntryKind::Policy => engine
                .manifests
                .read::<PolicyRecord>(&key)
                .map(|record| record.map(|record| drop(policies.insert(record.id, record)))),
            EntryKind::Group => engine
                .manifests
                .read::<GroupRecord>(&key)
                .map(|record| record.map(|record| drop(groups.insert(record.id, record)))),
        };
        match read {
            Ok(Some(())) => {}
            Ok(None) => damage.push(Damage::of_entry(*id, format!("{key} is missing"))),
            Err(error) if error.is_unreadable() => {
                damage.push(Damage::of_entry(*id, error.to_string()));
            }
            Err(error) => return Err(error),
        }
    }
    let mut unfinished = HashSet::new();
    for record in &mut records {
        if forget_unlisted_members(record, catalogue) {
            unfinished.insert(record.id);
        }
    }
    let (mut files, strangers) = layer_files(&*engine.files)?;
    // An earlier run may have made them and ended before this; from now on
    // syncing a file that is there is enough.
    engine
        .files
        .sync_dir(Path::new(layer::DIRECTORY))
        .map_err(Error::io("syncing", layer::DIRECTORY))?;
    fetch_back(&*engine.files, &records, &mut files)?;
    let mut opener = Opener {
        engine,
        records: HashMap::new(),
        files: &files,
        log_ends: &catalogue.log_ends,
        opened: Mutex::default(),
        opening: Mutex::default(),
        lost: Mutex::default(),
    };
    for record in records.iter().flat_map(|disk| &disk.layers) {
        // Several manifests may name a layer, and not all of them may have
        // been told of what was sealed.
        let known = opener.records.entry(record.id).or_insert(record);
        if knowledge(record) > knowledge(known) {
            *known = record;
        }
    }
    let mut disks = Vec::new();
    for (done, record) in records.iter().enumerate() {
        progress.update("reading layers", done as u64, records.len() as u64);
        match Disk::restore(engine.clone(), record, &|base| opener.below(base)) {
            Ok(disk) => disks.push(disk),
            Err(error) if error.is_unreadable() => {
                let text = format!("disk {}: {error}", record.name);
                damage.push(Damage::of_entry(record.id, text));
            }
            Err(error) => return Err(error),
        }
    }
    for record in opener.records.values() {
        let opened = opener.opened.lock();
        if let BaseRecord::Layer(below) = record.base
            && opened.contains_key(&record.id)
            && let Some(below) = opened.get(&below)
            && below.broken().is_none()
        {
            below.recover_size(record.size);
        }
    }
    for disk in &disks {
        disk.settle_recovered()?;
    }
    // What a manifest says of layers and what its disk shows may differ: a
    // crash came when only some manifests had been told of a sealed layer, or
    // took the record that named one. What is named only so is about to be
    // removed, and whoever knew better may be the first to go: a layer that
    // another still says lies over it could not be opened. So all are told.
    let on_disk: HashMap<Uuid, &DiskRecord> = records.iter().map(|one| (one.id, one)).collect();
    for disk in &disks {
        let differs = |record: &&DiskRecord| disk.names_other_layers(record);
        if unfinished.contains(&disk.id()) || on_disk.get(&disk.id()).is_some_and(differs) {
            disk.publish()?;
        }
    }
    damage.extend(opener.lost.into_inner().into_iter().map(Damage::other));
    let opened = opener.opened.into_inner();
    let broken = opened.values().filter_map(|layer| layer.broken());
    damage.extend(broken.map(|text| Damage::other(text.to_owned())));
    engine.layers.lock().extend(opened);
    for link in links {
        let snapshot = disks
            .iter()
            .filter(|disk| disk.id() == link.disk)
            .flat_map(|disk| disk.list_snapshots())
            .find(|snapshot| snapshot.id == link.snapshot);
        match snapshot {
            Some(snapshot) => {
                snapshot.link_count().fetch_add(1, Ordering::SeqCst);
                engine.links.lock().insert(link.name.clone(), link);
            }
            None => damage.push(Damage::of_entry(
                link.id,
                format!("image {}: its snapshot is missing", link.name),
            )),
        }
    }
    let mut done = Vec::new();
    let named: HashSet<LayerId> = engine.layers.lock().keys().copied().collect();
    let unnamed: Vec<(LayerId, Vec<u64>)> = files
        .into_iter()
        .filter(|(id, _)| !named.contains(id))
        .collect();
    if !unnamed.is_empty() {
        done.push(remove_unnamed(engine, &unnamed, damage.is_empty())?);
    }
    if !strangers.is_empty() {
        tracing::warn!(
            "not of this program: layers/{}",
            strangers.join(", layers/")
        );
    }
    let left = remove_unlisted(engine, catalogue, damage.is_empty())?;
    if left > 0 {
        done.push(format!("{left} manifests of unfinished changes"));
    }
    for damage in &damage {
        tracing::error!("damage: {}", damage.text);
    }
    let summary = match (done.is_empty(), damage.is_empty()) {
        (true, true) => "nothing to recover".to_owned(),
        (false, true) => format!("removed {}", done.join(" and ")),
        (_, false) => format!(
            "{} things are damaged; {}",
            damage.len(),
            done.join(" and ")
        ),
    };
    Ok(Recovered {
        disks,
        policies,
        groups,
        summary,
        damage,
    })
}

/// How much a manifest had been told of what was sealed when it named a layer:
/// most if it knows its root, least if it has it over another layer.
fn knowledge(record: &LayerRecord) -> (bool, bool) {
    let is_over_layer = matches!(record.base, BaseRecord::Layer(_));
    (record.root.is_some(), !is_over_layer)
}

/// Forgets snapshots of groups that the catalogue does not list: they were
/// not acknowledged, or were deleted. True if there were any.
fn forget_unlisted_members(record: &mut DiskRecord, catalogue: &Catalogue) -> bool {
    let before = record.snapshots.len();
    record.snapshots.retain(|snapshot| {
        let group = snapshot.group.as_ref();
        group.is_none_or(|group| catalogue.entries.contains_key(group))
    });
    record.snapshots.len() != before
}

/// Opens the layers that manifests name, each once, those below first.
struct Opener<'a> {
    engine: &'a Arc<Engine>,
    records: HashMap<LayerId, &'a LayerRecord>,
    files: &'a HashMap<LayerId, Vec<u64>>,
    log_ends: &'a BTreeMap<LayerId, u64>,
    /// One thread recovers: its locks have no order.
    opened: Mutex<HashMap<LayerId, Arc<Layer>>>,
    /// Being opened: none of them may need itself.
    opening: Mutex<HashSet<LayerId>>,
    /// Roots that cannot be read, in words.
    lost: Mutex<BTreeSet<String>>,
}

impl Opener<'_> {
    fn below(&self, base: BaseRecord) -> Result<Below> {
        match base {
            BaseRecord::Empty => Ok(Below::Empty),
            BaseRecord::Root(id) => self.root(id),
            BaseRecord::Layer(id) => self.layer(id),
        }
    }

    /// A map; one that cannot be read is noted and answers errors.
    fn root(&self, id: ChunkId) -> Result<Below> {
        match self.engine.sealed.root(id) {
            Ok(root) => Ok(Below::Root(root)),
            Err(error) if error.is_unreadable() => {
                let lost = LostRoot {
                    id,
                    cause: error.to_string(),
                };
                self.lost.lock().insert(lost.error().to_string());
                Ok(Below::Lost(Arc::new(lost)))
            }
            Err(error) => Err(error),
        }
    }

    fn layer(&self, id: LayerId) -> Result<Below> {
        if let Some(layer) = self.opened.lock().get(&id) {
            return Ok(Below::Layer(layer.clone()));
        }
        let record = self.records.get(&id).ok_or_else(|| Error::Damaged {
            what: format!("layer {id}"),
            detail: "no manifest says what it is".into(),
        })?;
        if let Some(root) = record.root {
            return self.root(root);
        }
        if !self.opening.lock().insert(id) {
            return Err(Error::Damaged {
                what: format!("layer {id}"),
                detail: "what it stands on stands on it".into(),
            });
        }
        let opened = self.open_layer(id, record);
        self.opening.lock().remove(&id);
        opened
    }

    fn open_layer(&self, id: LayerId, record: &LayerRecord) -> Result<Below> {
        let parts = LayerParts {
            files: self.engine.files.clone(),
            below: self.below(record.base)?,
            size: record.size,
            chunk_size: self.engine.sealed.chunk_size(),
        };
        let no_segments = Vec::new();
        let segments = self.files.get(&id).unwrap_or(&no_segments);
        let log_end = self.log_ends.get(&id).copied();
        let layer = Layer::recover(id, parts, segments, log_end, &|source| match source {
            GraftSource::Layer(id) => self.layer(id),
            GraftSource::Root(id) => self.root(id),
        })?;
        self.opened.lock().insert(id, layer.clone());
        Ok(Below::Layer(layer))
    }
}

/// Brings files of layers back that an earlier run moved aside because the
/// manifest that names them was not to be read.
fn fetch_back(
    files: &dyn Files,
    records: &[DiskRecord],
    there: &mut HashMap<LayerId, Vec<u64>>,
) -> Result<()> {
    let named: HashSet<LayerId> = records
        .iter()
        .flat_map(|disk| &disk.layers)
        .filter(|layer| layer.root.is_none())
        .map(|layer| layer.id)
        .collect();
    let mut fetched = false;
    for name in aside(files)? {
        if let Some((id, segment)) = layer::parse_file_name(&name)
            && named.contains(&id)
        {
            let home = Path::new(layer::DIRECTORY).join(&name);
            // A crash may have come when some were aside and some not yet.
            if files.open(&home, false).is_ok() {
                continue;
            }
            files
                .rename(&Path::new(ASIDE).join(&name), &home)
                .map_err(Error::io("fetching back", name))?;
            there.entry(id).or_default().extend(segment);
            fetched = true;
        }
    }
    if fetched {
        // In this order, or they might be in neither.
        for dir in [layer::DIRECTORY, ASIDE] {
            files
                .sync_dir(Path::new(dir))
                .map_err(Error::io("syncing", dir))?;
        }
    }
    Ok(())
}

/// Names of the files that were moved aside.
fn aside(files: &dyn Files) -> Result<Vec<String>> {
    match files.list(Path::new(ASIDE)) {
        Ok(entries) => {
            let entries = entries.into_iter().filter(|entry| !entry.is_dir);
            Ok(entries.map(|entry| entry.name).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io("listing", ASIDE)(error)),
    }
}

/// Removes what nothing names and what was kept only because something was
/// damaged. Nobody may be adding to the catalogue meanwhile.
pub fn remove_orphans(engine: &Engine, catalogue: &Catalogue) -> Result<u64> {
    let mut removed = 0;
    for name in aside(&*engine.files)? {
        engine
            .files
            .unlink(&Path::new(ASIDE).join(&name))
            .map_err(Error::io("removing", name))?;
        removed += 1;
    }
    Ok(removed + remove_unlisted(engine, catalogue, true)? as u64)
}

/// Removes files of layers that nothing names; while something is damaged
/// they may be what is missing, and are moved aside instead (invariant 8).
fn remove_unnamed(engine: &Engine, unnamed: &[(LayerId, Vec<u64>)], sound: bool) -> Result<String> {
    let files = &*engine.files;
    if sound {
        for (id, segments) in unnamed {
            Layer::unlink(files, *id, segments)?;
        }
    } else {
        files
            .create_dir(Path::new(ASIDE))
            .map_err(Error::io("creating", ASIDE))?;
        for (id, segments) in unnamed {
            for name in layer::file_names(*id, segments) {
                let (from, to) = (
                    Path::new(layer::DIRECTORY).join(&name),
                    Path::new(ASIDE).join(&name),
                );
                match files.rename(&from, &to) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(Error::io("moving aside", name)(error));
                    }
                    _ => {}
                }
            }
        }
        files
            .sync_dir(Path::new(ASIDE))
            .map_err(Error::io("syncing", ASIDE))?;
    }
    files
        .sync_dir(Path::new(layer::DIRECTORY))
        .map_err(Error::io("syncing", layer::DIRECTORY))?;
    let verb = if sound { "" } else { " (moved aside)" };
    Ok(format!("{} layers that nothing names{verb}", unnamed.len()))
}

/// Removes manifests that the catalogue does not list: of creations that
/// were not acknowledged, or of removals that were.
fn remove_unlisted(engine: &Engine, catalogue: &Catalogue, sound: bool) -> Result<usize> {
    let mut listed: HashSet<String> = catalogue
        .entries
        .iter()
        .map(|(id, kind)| manifest::entry_key(id, *kind))
        .collect();
    listed.insert(manifest::header_key());
    listed.insert(manifest::header_copy_key());
    listed.insert(manifest::catalogue_key());
    let unlisted: Vec<String> = engine
        .manifests
        .list()?
        .into_iter()
        .filter(|key| !listed.contains(key) && !key.starts_with(manifest::LOST))
        .collect();
    if !sound {
        return Ok(0);
    }
    for key in &unlisted {
        engine.manifests.delete(key)?;
    }
    Ok(unlisted.len())
}
