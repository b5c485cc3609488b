//! What takes how much room: for every snapshot what deleting it would free,
//! for every disk what it has stored, and what several snapshots take
//! together.
//!
//! Every record of the packs has a **colour**: whose views reach it. The map
//! pages of all roots are walked; a page that is reached again by somebody
//! new gets a new colour, and only then is walked again, so that what views
//! share is read once for each of the few colours that it passes through.
//! Memory is some 30 bytes a record while it lasts.

use crate::chunk::ChunkId;
use crate::disk::Disk;
use crate::disk::layer::Below;
use crate::disk::sealed::SealedRoot;
use crate::error::{Error, Result};
use crate::map::{FANOUT, Page, PageStore, span};
use crate::progress::Progress;
use crate::snapshot::Snapshot;
use crate::store::Store;
use serde::Serialize;
use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::Arc;

/// Times that a walk is begun again because packs were compacted under it.
const TRIES: usize = 3;

/// A snapshot in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct SnapshotUsage {
    /// Its name.
    pub name: String,
    /// Of the disk at that instant.
    pub size: u64,
    /// What it refers to, unpacked: chunks that are not zero.
    pub referred_bytes: Option<u64>,
    /// The same as stored, each chunk counted as often as it is in it.
    pub stored_bytes: Option<u64>,
    /// As stored, what nothing else refers to: what deleting it alone frees.
    /// None while it is being sealed.
    pub unique_bytes: Option<u64>,
}

/// A disk or image in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct DiskUsage {
    /// Its name.
    pub name: String,
    /// Whether it is an imported image.
    pub is_image: bool,
    /// Of the live image.
    pub size: Option<u64>,
    /// As stored, everything that the disk or its snapshots refer to, what
    /// others refer to too included.
    pub stored_bytes: u64,
    /// As stored, what only its snapshots refer to: what deleting all of
    /// them frees.
    pub chain_bytes: u64,
    /// In layers that are not sealed yet, the live image's head included.
    pub unsealed_bytes: u64,
    /// Manual and automatic ones that it has, and may have.
    pub manual: u64,
    /// Limit of the manual ones.
    pub max_manual: u64,
    /// Automatic ones that it has.
    pub automatic: u64,
    /// Limit of the automatic ones.
    pub max_automatic: u64,
    /// Oldest first.
    pub snapshots: Vec<SnapshotUsage>,
}

/// A whole store in bytes.
#[derive(Clone, Debug, Serialize)]
pub struct Usage {
    /// By name, images last.
    pub disks: Vec<DiskUsage>,
    /// What all snapshots and live images show, unpacked, each counted, but
    /// for what is not sealed yet.
    pub logical_bytes: u64,
    /// Unpacked, each chunk once.
    pub plain_bytes: u64,
    /// All packs.
    pub stored_bytes: u64,
    /// In layers that are not sealed yet.
    pub unsealed_bytes: u64,
    /// In packs and reached by nothing: gc frees it in time.
    pub unreached_bytes: u64,
    /// How often a chunk is used on average: `logical_bytes / plain_bytes`.
    pub deduplication: f64,
    /// `plain_bytes / stored_bytes`.
    pub compression: f64,
    /// Of the store's filesystem, for writers.
    pub free_bytes: u64,
    /// Of the store's filesystem.
    pub total_bytes: u64,
}

/// What deleting some snapshots together would free.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Reclaim {
    /// Snapshots.
    pub snapshots: u64,
    /// As stored, what only they refer to.
    pub bytes: u64,
    /// What each of them alone would free, added up: not the same.
    pub sum_of_unique_bytes: u64,
    /// Those of them that are not sealed yet, of which nothing is known.
    pub sealing: u64,
}

/// Which snapshots reach a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reached {
    One(u32),
    SeveralOf(u32),
    ByOthers,
}

/// Who reaches a record: which snapshots, and which disks with all that they
/// show.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Colour {
    snapshots: Reached,
    disks: Vec<u32>,
}

const NOBODY: u32 = 0;

/// Colours by number, and which two make which.
struct Palette {
    colours: Vec<Option<Colour>>,
    numbers: HashMap<Colour, u32>,
    joined: HashMap<(u32, u32), u32>,
    /// The disk of each snapshot.
    disk_of: Vec<u32>,
}

impl Palette {
    fn new(disk_of: Vec<u32>) -> Palette {
        Palette {
            colours: vec![None],
            numbers: HashMap::new(),
            joined: HashMap::new(),
            disk_of,
        }
    }

    fn number(&mut self, colour: Colour) -> u32 {
        if let Some(number) = self.numbers.get(&colour) {
            return *number;
        }
        let number = self.colours.len() as u32;
        self.colours.push(Some(colour.clone()));
        self.numbers.insert(colour, number);
        number
    }

    fn join(&mut self, a: u32, b: u32) -> u32 {
        if a == b || b == NOBODY {
            return a;
        }
        if a == NOBODY {
            return b;
        }
        if let Some(joined) = self.joined.get(&(a, b)) {
            return *joined;
        }
        let (Some(one), Some(other)) = (&self.colours[a as usize], &self.colours[b as usize])
        else {
            return a;
        };
        let mut disks = one.disks.clone();
        disks.extend(&other.disks);
        disks.sort_unstable();
        disks.dedup();
        let of = |reached: Reached| match reached {
            Reached::One(snapshot) => self.disk_of.get(snapshot as usize).copied(),
            Reached::SeveralOf(disk) => Some(disk),
            Reached::ByOthers => None,
        };
        let snapshots = match (one.snapshots, other.snapshots) {
            (one, other) if one == other => one,
            (one, other) => match (of(one), of(other)) {
                (Some(one), Some(other)) if one == other => Reached::SeveralOf(one),
                _ => Reached::ByOthers,
            },
        };
        let joined = self.number(Colour { snapshots, disks });
        self.joined.insert((a, b), joined);
        joined
    }
}

/// The ids are hashes already.
#[derive(Default)]
struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }
    fn write_u64(&mut self, value: u64) {
        self.0 = value;
    }
}

type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// The first half of an id's first half: two of a billion records share it
/// once in forty stores, and then are counted as one.
fn short(id: &ChunkId) -> u64 {
    let (words, _) = id.0.as_chunks::<8>();
    u64::from_le_bytes(words[0])
}

/// A record: its length in all packs together, and its colour.
#[derive(Clone, Copy, Default)]
struct Record {
    len: u32,
    colour: u32,
}

/// A root and the colour that it gives.
struct Paint {
    root: Arc<SealedRoot>,
    colour: u32,
    /// Whether it is a snapshot's, of which there may be many of one disk.
    is_snapshot: bool,
}

/// What the last root of a series had below one of its pages.
struct Trail {
    /// Short ids, by slot; 0 where there is none.
    below: [u64; FANOUT],
    /// Length of the records below each.
    bytes: [u64; FANOUT],
    /// Slots whose colour no root of the series changes any more.
    settled: u128,
}

/// Roots that are painted one after the other, each much like the one before.
#[derive(Default)]
struct Series {
    /// The disks in their colours, and whether they are snapshots.
    of: Option<(Vec<u32>, bool)>,
    /// By level and first chunk, of pages above those of chunks.
    trails: HashMap<(u8, u64), Box<Trail>>,
}

struct Accounts<'a> {
    pages: &'a dyn PageStore,
    palette: Palette,
    records: IdMap<u64, Record>,
    /// Colour of each page, and the length of the records of all chunks
    /// below it.
    walked: IdMap<u64, (u32, u64)>,
    series: Series,
    unpacked: u64,
}

impl Accounts<'_> {
    fn paint(&mut self, id: &ChunkId, colour: u32) -> u64 {
        let Some(record) = self.records.get(&short(id)).copied() else {
            return 0;
        };
        let joined = self.palette.join(record.colour, colour);
        if joined != record.colour {
            let colour = joined;
            self.records.insert(short(id), Record { colour, ..record });
        }
        u64::from(record.len)
    }

    /// Paints a root and all below it; answers the length of the records of
    /// its chunks, each counted as often as it is there.
    fn root(&mut self, paint: &Paint) -> Result<u64> {
        self.paint(&paint.root.id, paint.colour);
        let colour = self.palette.colours[paint.colour as usize].as_ref();
        let of = colour.map(|colour| (colour.disks.clone(), paint.is_snapshot));
        if self.series.of != of {
            self.series = Series {
                of,
                ..Series::default()
            };
        }
        let root = &paint.root.root;
        match &root.top {
            Some(top) => self.page(top, paint.colour, (root.height, 0)),
            None => Ok(0),
        }
    }

    /// Whether no other root of the series changes a colour.
    fn is_settled(&self, colour: u32) -> bool {
        let (Some(colour), Some((disks, are_snapshots))) =
            (&self.palette.colours[colour as usize], &self.series.of)
        else {
            return false;
        };
        let reached = match colour.snapshots {
            Reached::ByOthers => true,
            Reached::SeveralOf(of) => *are_snapshots && disks.iter().all(|disk| *disk == of),
            Reached::One(_) => false,
        };
        reached && disks.iter().all(|disk| colour.disks.contains(disk))
    }

    fn page(&mut self, id: &ChunkId, colour: u32, at: (u8, u64)) -> Result<u64> {
        let known = self.walked.get(&short(id)).copied();
        let before = known.map_or(NOBODY, |(colour, _)| colour);
        let joined = self.palette.join(before, colour);
        if let Some((_, bytes)) = known
            && joined == before
        {
            return Ok(bytes);
        }
        self.paint(id, colour);
        let page = self.pages.page(id)?;
        let bytes = match page.level() {
            1 => page
                .entries()
                .map(|(_, entry)| self.paint(&entry.id, colour))
                .sum(),
            _ => self.below(&page, colour, at)?,
        };
        self.walked.insert(short(id), (joined, bytes));
        Ok(bytes)
    }
}

impl Accounts<'_> {
    /// Paints what is below a page of pages; what the root before had there,
    /// and is settled, is not even looked up.
    fn below(&mut self, page: &Page, colour: u32, (level, start): (u8, u64)) -> Result<u64> {
        let before = self.series.trails.remove(&(level, start));
        let mut trail = before.unwrap_or_else(|| {
            Box::new(Trail {
                below: [0; FANOUT],
                bytes: [0; FANOUT],
                settled: 0,
            })
        });
        let mut bytes = 0;
        for (slot, entry) in page.entries() {
            let id = short(&entry.id);
            let bit = 1 << slot;
            if trail.below[slot] != id || trail.settled & bit == 0 {
                let at = (level - 1, start + slot as u64 * span(level - 1));
                trail.below[slot] = id;
                trail.bytes[slot] = self.page(&entry.id, colour, at)?;
                let colour = self.walked.get(&id).map_or(NOBODY, |(colour, _)| *colour);
                match self.is_settled(colour) {
                    true => trail.settled |= bit,
                    false => trail.settled &= !bit,
                }
            }
            bytes += trail.bytes[slot];
        }
        self.series.trails.insert((level, start), trail);
        Ok(bytes)
    }
}

fn root_of(below: &Below) -> Option<Arc<SealedRoot>> {
    match below.settled() {
        Below::Root(root) => Some(root),
        _ => None,
    }
}

/// Everything that shows something, by what it is.
struct Views {
    disks: Vec<Arc<Disk>>,
    /// Disk by its place in `disks`, snapshot, and its root if it is sealed.
    snapshots: Vec<(usize, Arc<Snapshot>, Option<Arc<SealedRoot>>)>,
    /// What else of a disk is shown: live images, layers, images.
    others: Vec<(usize, Arc<SealedRoot>)>,
}

impl Store {
    fn views(&self) -> Views {
        let mut disks = self.all_disks();
        disks.sort_by_key(|disk| (disk.is_import(), disk.name()));
        let mut views = Views {
            snapshots: Vec::new(),
            others: Vec::new(),
            disks,
        };
        for (at, disk) in views.disks.iter().enumerate() {
            for snapshot in disk.list_snapshots() {
                let root = root_of(&snapshot.base());
                match (disk.is_import(), root) {
                    (true, root) => views.others.extend(root.map(|root| (at, root))),
                    (false, root) => views.snapshots.push((at, snapshot, root)),
                }
            }
            for layer in disk.layers() {
                views
                    .others
                    .extend(root_of(&layer.below()).map(|root| (at, root)));
                for (_, source) in layer.sources() {
                    views.others.extend(root_of(&source).map(|root| (at, root)));
                }
            }
        }
        views
    }

    fn accounts(&self, disk_of: Vec<u32>, progress: &dyn Progress) -> Result<Accounts<'_>> {
        let mut records: IdMap<u64, Record> = IdMap::default();
        let mut unpacked = 0;
        let stats = self.chunks().stats();
        records.reserve(usize::try_from(stats.chunks).unwrap_or(0));
        self.chunks().each_record(&mut |done, total, entry| {
            if done.is_multiple_of(4096) {
                progress.update("reading directories", done, total);
            }
            let record = records.entry(short(&entry.id)).or_default();
            if record.len == 0 {
                unpacked += u64::from(entry.plain_len);
            }
            let len = u32::try_from(entry.record_len()).unwrap_or(u32::MAX);
            record.len = record.len.saturating_add(len);
        })?;
        Ok(Accounts {
            pages: &*self.engine.sealed,
            palette: Palette::new(disk_of),
            records,
            walked: IdMap::default(),
            series: Series::default(),
            unpacked,
        })
    }

    /// What takes how much room. Reads directories of packs and map pages;
    /// seconds for millions of chunks. Nobody waits for it.
    pub fn usage(&self, progress: &dyn Progress) -> Result<Usage> {
        self.retrying(|| self.usage_once(progress))
    }

    /// gc may move what is being read.
    fn retrying<T>(&self, mut work: impl FnMut() -> Result<T>) -> Result<T> {
        let mut outcome = work();
        for _ in 1..TRIES {
            match outcome {
                Err(Error::ChunkMissing { .. } | Error::Damaged { .. }) => outcome = work(),
                _ => break,
            }
        }
        outcome
    }

    fn usage_once(&self, progress: &dyn Progress) -> Result<Usage> {
        let views = self.views();
        let disk_of = views
            .snapshots
            .iter()
            .map(|(disk, ..)| *disk as u32)
            .collect();
        let mut accounts = self.accounts(disk_of, progress)?;
        let unit = self.engine.sealed.chunk_size();
        let total = (views.snapshots.len() + views.others.len()) as u64;
        let mut logical_bytes = 0;
        for (done, (disk, root)) in views.others.iter().enumerate() {
            progress.update("walking maps", done as u64, total);
            let colour = accounts.palette.number(Colour {
                snapshots: Reached::ByOthers,
                disks: vec![*disk as u32],
            });
            let root = root.clone();
            logical_bytes += root.root.count * unit;
            accounts.root(&Paint {
                root,
                colour,
                is_snapshot: false,
            })?;
        }
        let mut stored = Vec::new();
        for (number, (disk, _, root)) in views.snapshots.iter().enumerate() {
            let done = (views.others.len() + number) as u64;
            progress.update("walking maps", done, total);
            let Some(root) = root.clone() else {
                stored.push(None);
                continue;
            };
            let colour = accounts.palette.number(Colour {
                snapshots: Reached::One(number as u32),
                disks: vec![*disk as u32],
            });
            logical_bytes += root.root.count * unit;
            stored.push(Some(accounts.root(&Paint {
                root,
                colour,
                is_snapshot: true,
            })?));
        }
        let mut unique = vec![0; views.snapshots.len()];
        let mut chains = vec![0; views.disks.len()];
        let mut of_disks = vec![0; views.disks.len()];
        let mut unreached_bytes = 0;
        let mut by_colour: HashMap<u32, u64> = HashMap::new();
        for record in accounts.records.values() {
            *by_colour.entry(record.colour).or_default() += u64::from(record.len);
        }
        for (colour, bytes) in by_colour {
            let Some(colour) = &accounts.palette.colours[colour as usize] else {
                unreached_bytes = bytes;
                continue;
            };
            match colour.snapshots {
                Reached::One(snapshot) => {
                    unique[snapshot as usize] += bytes;
                    chains[accounts.palette.disk_of[snapshot as usize] as usize] += bytes;
                }
                Reached::SeveralOf(disk) => chains[disk as usize] += bytes,
                Reached::ByOthers => {}
            }
            for disk in &colour.disks {
                of_disks[*disk as usize] += bytes;
            }
        }
        let settings = self.settings();
        let disks = views.disks.iter().enumerate().map(|(at, disk)| {
            let (manual, automatic) = disk.count_snapshots();
            let own = views.snapshots.iter().enumerate();
            let own = own.filter(|(_, (of, ..))| *of == at);
            DiskUsage {
                name: disk.name(),
                is_image: disk.is_import(),
                size: disk.live().map(|live| live.size),
                stored_bytes: of_disks[at],
                chain_bytes: chains[at],
                unsealed_bytes: disk.layers().iter().map(|layer| layer.data_bytes()).sum(),
                manual: manual as u64,
                max_manual: settings.max_manual_snapshots.into(),
                automatic: automatic as u64,
                max_automatic: settings.max_automatic_snapshots.into(),
                snapshots: own
                    .map(|(number, (_, snapshot, root))| SnapshotUsage {
                        name: snapshot.name(),
                        size: snapshot.size(),
                        referred_bytes: root.as_ref().map(|root| root.root.count * unit),
                        stored_bytes: stored[number],
                        unique_bytes: stored[number].map(|_| unique[number]),
                    })
                    .collect(),
            }
        });
        let disks: Vec<DiskUsage> = disks.collect();
        let stats = self.chunks().stats();
        let space = self.space()?;
        let ratio = |a: u64, b: u64| match b {
            0 => 1.0,
            b => (a as f64 / b as f64 * 100.0).round() / 100.0,
        };
        let plain_bytes = accounts.unpacked;
        Ok(Usage {
            logical_bytes,
            plain_bytes,
            stored_bytes: stats.stored_bytes,
            unsealed_bytes: disks.iter().map(|disk| disk.unsealed_bytes).sum(),
            unreached_bytes,
            deduplication: ratio(logical_bytes, plain_bytes),
            compression: ratio(plain_bytes, stats.stored_bytes),
            free_bytes: space.free_bytes,
            total_bytes: space.total_bytes,
            disks,
        })
    }

    /// What deleting these snapshots, given by their disks' and their own
    /// names, would free together.
    pub fn reclaim(&self, wanted: &[(String, String)], progress: &dyn Progress) -> Result<Reclaim> {
        for (disk, snapshot) in wanted {
            let found = self.disk(disk).ok_or_else(|| Error::Missing {
                what: "disk",
                name: disk.clone(),
            })?;
            found.find(snapshot)?;
        }
        self.retrying(|| self.reclaim_once(wanted, progress))
    }

    fn reclaim_once(
        &self,
        wanted: &[(String, String)],
        progress: &dyn Progress,
    ) -> Result<Reclaim> {
        let views = self.views();
        let is_wanted = |disk: usize, snapshot: &Snapshot| {
            let (disk, snapshot) = (views.disks[disk].name(), snapshot.name());
            wanted.iter().any(|(d, s)| *d == disk && *s == snapshot)
        };
        let (chosen, rest): (Vec<_>, Vec<_>) =
            (views.snapshots.iter()).partition(|(disk, snapshot, _)| is_wanted(*disk, snapshot));
        // Each of them is a "snapshot" of one and the same "disk".
        let mut accounts = self.accounts(vec![0; chosen.len()], progress)?;
        let others = accounts.palette.number(Colour {
            snapshots: Reached::ByOthers,
            disks: Vec::new(),
        });
        let roots = views.others.iter().map(|(_, root)| root.clone());
        let roots = roots.chain(rest.into_iter().filter_map(|(_, _, root)| root.clone()));
        for root in roots {
            accounts.root(&Paint {
                root,
                colour: others,
                is_snapshot: false,
            })?;
        }
        let mut sealing = 0;
        for (number, (_, _, root)) in chosen.iter().enumerate() {
            let Some(root) = root.clone() else {
                sealing += 1;
                continue;
            };
            let colour = accounts.palette.number(Colour {
                snapshots: Reached::One(number as u32),
                disks: Vec::new(),
            });
            accounts.root(&Paint {
                root,
                colour,
                is_snapshot: true,
            })?;
        }
        let (mut bytes, mut sum_of_unique_bytes) = (0, 0);
        for record in accounts.records.values() {
            let colour = accounts.palette.colours[record.colour as usize].as_ref();
            match colour.map(|colour| colour.snapshots) {
                Some(Reached::One(_)) => {
                    bytes += u64::from(record.len);
                    sum_of_unique_bytes += u64::from(record.len);
                }
                Some(Reached::SeveralOf(_)) => bytes += u64::from(record.len),
                _ => {}
            }
        }
        Ok(Reclaim {
            snapshots: chosen.len() as u64,
            bytes,
            sum_of_unique_bytes,
            sealing,
        })
    }
}
