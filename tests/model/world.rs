//! A store and what it should hold.

use crate::common::bytes::Random;
use crate::common::faulty::{Call, Fault, FaultyFiles};
use crate::common::library::{assert_store_sound, memory_dir, options, wrong_with};
use crate::common::reference::Image;
use snapdisk::disk::{Disk, Seek, Source, Wait};
use snapdisk::error::{Error, Result};
use snapdisk::events::By;
use snapdisk::files::Files;
use snapdisk::manifest::Owner;
use snapdisk::name::{DiskName, ImageName, SnapshotName};
use snapdisk::progress::Quiet;
use snapdisk::store::{self, InitOptions, Store};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

const OWNER: Owner = Owner {
    uid: 0,
    gid: 0,
    mode: 0o644,
};
const CHUNK: u64 = 16 << 10;
/// Bytes of an image that the vectors stand for.
const MAX: u64 = 16 * CHUNK;
/// Where something ends inside an image: a page of a map with chunks of this
/// size, of a presence map, the next level of a map, a segment of a layer.
const EDGES: [u64; 4] = [2 << 20, 4 << 20, 256 << 20, 64 << 30];

/// How often each operation was done.
pub type Counts = BTreeMap<&'static str, u64>;

/// What a history has done so far, in words; others may look at it. Clones
/// share it.
#[derive(Clone, Default)]
pub struct Trail(Arc<Mutex<Vec<String>>>);

impl Trail {
    /// The lines. Empty between histories.
    pub fn lines(&self) -> Vec<String> {
        self.lock().clone()
    }

    fn push(&self, line: String) {
        self.lock().push(line);
    }

    fn begin(&self, line: String) {
        self.end();
        self.push(line);
    }

    /// Nothing is done any more.
    pub fn end(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes wrong in a history besides that the power fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing.
    None,
    /// Calls fail, with errors that a disk gives.
    Faults,
    /// There is no room now and then.
    Full,
}

/// What a disk should hold.
#[derive(Clone, Default)]
struct Expected {
    live: Option<Image>,
    snapshots: BTreeMap<String, Vec<u8>>,
}

/// What was under way when the power failed: done or not, both are right.
#[derive(Clone)]
enum UnderWay {
    Nothing,
    Create(String),
    CreateImage(String),
    Remove(String),
    Drop(String),
    Take(String, String),
    TakeGroup(String),
    /// Disk and snapshot of each member.
    DeleteGroup(Vec<(String, String)>),
    Delete(String, String),
    RenameSnapshot(String, String, String),
    RenameDisk(String, String),
    Rollback(String, String),
    Link(String, String, String),
    Unlink(String),
    RenameImage(String, String),
    Import(String),
}

struct World {
    random: Random,
    /// Of the index.
    root: tempfile::TempDir,
    files: FaultyFiles,
    store: Option<Arc<Store>>,
    disks: BTreeMap<String, Expected>,
    /// Images that are links: disk and snapshot.
    links: BTreeMap<String, (String, String)>,
    imports: BTreeMap<String, Vec<u8>>,
    counter: u64,
    counts: Counts,
    trouble: Trouble,
    /// An operation failed because of the trouble.
    failed: bool,
    /// The power is about to fail.
    is_failing: bool,
    /// The last operation found nothing to do.
    idle: bool,
    /// Where in an image its vector begins; before that it has nothing.
    base: u64,
    /// What was done.
    trail: Trail,
    /// Whether everything is compared after every operation.
    paranoid: bool,
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}\n--- end of it", self.trail.lines().join("\n"));
        }
    }
}

/// Often on an edge of a sector, block or chunk, else anywhere.
fn position(random: &mut Random, limit: u64) -> u64 {
    let unit = [1, 512, 4096, CHUNK][random.below(4) as usize];
    (random.below(limit + unit) / unit * unit).min(limit)
}

fn content(random: &mut Random, len: u64) -> Vec<u8> {
    let byte = random.next();
    match random.below(4) {
        0 => vec![0; len as usize],
        1 => vec![byte as u8; len as usize],
        _ => (0..len)
            .map(|i| (byte.wrapping_mul(i | 1) >> 24) as u8)
            .collect(),
    }
}

/// Runs a history; panics where it and the vectors differ.
pub fn run(seed: u64, steps: u64, crashes: u64, trouble: Trouble, trail: &Trail) -> Counts {
    trail.begin(format!("history {seed}"));
    let mut world = World::new(seed, trouble, trail.clone());
    // When the power begins to fail; later if it has not failed yet then.
    let mut failing: VecDeque<u64> = (0..crashes)
        .map(|part| (part * steps + world.random.below(steps)) / crashes)
        .collect();
    let mut step = 0;
    // One that is due comes, if it takes some more operations.
    while step < steps || !failing.is_empty() || world.is_failing {
        if !world.is_failing && failing.front().is_some_and(|at| *at <= step) {
            failing.pop_front();
            let effects = world.random.below(25);
            world.files.stop_after(effects);
            world.is_failing = true;
        }
        world.make_trouble();
        let (what, under_way) = world.step();
        world.note(format_args!("{step}: {what}"));
        let done = match std::mem::take(&mut world.idle) {
            true => "nothing to do",
            false => what,
        };
        *world.counts.entry(done).or_default() += 1;
        step += 1;
        let failed = std::mem::take(&mut world.failed);
        if world.files.is_stopped() {
            world.crash(under_way);
        } else if failed {
            world.go_on(under_way);
        } else if world.paranoid {
            world.check_content();
        }
    }
    world.end();
    std::mem::take(&mut world.counts)
}

impl World {
    fn new(seed: u64, trouble: Trouble, trail: Trail) -> World {
        let files = FaultyFiles::new();
        let chunks = InitOptions {
            chunk_size: CHUNK as u32,
        };
        store::init_in(Arc::new(files.clone()), &chunks).expect("a new store");
        let mut world = World {
            random: Random(seed),
            root: memory_dir(),
            files,
            store: None,
            disks: BTreeMap::new(),
            links: BTreeMap::new(),
            imports: BTreeMap::new(),
            counter: 0,
            counts: Counts::new(),
            trouble,
            failed: false,
            is_failing: false,
            idle: false,
            base: 0,
            trail,
            paranoid: std::env::var_os("SNAPDISK_MODEL_PARANOID").is_some(),
        };
        if world.random.below(2) == 0 {
            let edge = EDGES[world.random.below(4) as usize];
            world.base = edge - MAX / 2;
        }
        if trouble == Trouble::Full {
            let room = (3 << 20) + world.random.below(2 << 20);
            world.files.set_room(Some(room));
        }
        world.store = Some(world.open().expect("the store opens"));
        world
    }

    fn note(&mut self, what: std::fmt::Arguments<'_>) {
        self.trail.push(what.to_string());
    }

    fn open(&self) -> Result<Arc<Store>> {
        let files: Arc<dyn Files> = Arc::new(self.files.clone());
        Store::open_in(files, self.root.path(), options(), &Quiet)
    }

    fn store(&self) -> &Arc<Store> {
        self.store.as_ref().expect("the store is open")
    }

    fn disk(&self, name: &str) -> Arc<Disk> {
        let disk = self.store().disk(name);
        disk.unwrap_or_else(|| panic!("disk {name} is there"))
    }

    fn name(&mut self, prefix: &str) -> String {
        self.counter += 1;
        format!("{prefix}{}", self.counter)
    }

    fn pick<'a, T>(random: &mut Random, all: impl Iterator<Item = &'a T>) -> Option<T>
    where
        T: Clone + 'a,
    {
        let all: Vec<&T> = all.collect();
        let at = random.below(all.len() as u64) as usize;
        all.get(at).map(|one| (*one).clone())
    }

    /// The outcome of an operation that must succeed unless the power has
    /// failed; None if it has.
    #[track_caller]
    fn done<T>(&mut self, what: &'static str, outcome: Result<T>) -> Option<T> {
        self.check_layers();
        match outcome {
            Ok(done) => Some(done),
            Err(_) if self.files.is_stopped() => None,
            Err(error)
                if self.files.hits() > 0
                    || (self.trouble == Trouble::Full && error.is_no_space()) =>
            {
                self.note(format_args!("{what}: {error}"));
                *self.counts.entry("failed operation").or_default() += 1;
                self.failed = true;
                None
            }
            Err(error) => panic!("{what}: {error}"),
        }
    }

    /// Now and then a call is going to fail, or room comes and goes.
    fn make_trouble(&mut self) {
        match self.trouble {
            Trouble::None => {}
            Trouble::Faults if self.random.below(12) == 0 => {
                const CALLS: [Call; 9] = [
                    Call::Create,
                    Call::Read,
                    Call::Write,
                    Call::Punch,
                    Call::Sync,
                    Call::Rename,
                    Call::Unlink,
                    Call::SyncDir,
                    Call::List,
                ];
                const PATHS: [&str; 7] = [
                    "",
                    ".log",
                    ".0000",
                    "packs",
                    "manifests/disk",
                    "manifests/catalogue",
                    "manifests/.tmp",
                ];
                let fault = Fault {
                    call: CALLS[self.random.below(9) as usize],
                    path: PATHS[self.random.below(7) as usize].to_owned(),
                    errno: [libc::EIO, libc::EIO, libc::EROFS][self.random.below(3) as usize],
                    after: self.random.below(4),
                    times: 1 + self.random.below(3),
                };
                self.note(format_args!("{fault:?}"));
                self.files.fail(fault);
            }
            Trouble::Faults => {}
            // The rest is filled by what is written.
            Trouble::Full => {
                if self.random.below(50) == 0 {
                    let room = self.files.used() + (5 << 18) + self.random.below(1 << 20);
                    self.note(format_args!("room for {room}"));
                    self.files.set_room(Some(room));
                }
            }
        }
    }

    fn make_room(&mut self) {
        self.note(format_args!("room"));
        self.files.set_room(None);
    }

    /// After an operation that failed in a store that goes on, or that has
    /// to be opened anew.
    fn go_on(&mut self, under_way: UnderWay) {
        if self.trouble == Trouble::Full {
            // Nothing but that operation was touched by it.
            self.resolve(under_way.clone());
            if self.files.is_stopped() {
                return self.crash(under_way);
            }
            let store = self.store.clone().expect("the store is open");
            for (name, expected) in &mut self.disks {
                let (Some(live), Some(disk)) = (&mut expected.live, store.disk(name)) else {
                    continue;
                };
                let Ok(found) = try_read_live(&disk, self.base) else {
                    assert!(self.files.is_stopped(), "{name} cannot be read");
                    return;
                };
                if let Err(differs) = live.check_crashed(&found) {
                    panic!("the live image of {name} in a full store: {differs}");
                }
                live.seen(found);
            }
            return;
        }
        *self.counts.entry("reopening after a fault").or_default() += 1;
        // Everything but the disk that failed can still be read.
        self.files.mend();
        if let Some(store) = self.store.take() {
            self.store = Some(store.clone());
            self.check_snapshots();
            if self.random.below(3) == 0 {
                self.files.stop();
            }
            // Whatever it says: what was acknowledged before is there.
            let closed = store.close();
            self.note(format_args!("closed: {closed:?}"));
            self.store = None;
        }
        // A power failure that is still to come does not come while what is
        // there is compared.
        self.files.stop_after(u64::MAX / 2);
        self.is_failing = false;
        if self.files.is_stopped() || self.random.below(3) == 0 {
            return self.crash(under_way);
        }
        let opened = self.open();
        let Some(store) = self.done("opening after a fault", opened) else {
            return self.crash(under_way);
        };
        self.store = Some(store);
        self.resolve(under_way);
        self.adopt();
        self.check();
    }

    fn image(&mut self, disk: &str) -> &mut Image {
        let expected = self.disks.get_mut(disk).expect("it is expected");
        expected.live.as_mut().expect("it has an image")
    }

    fn step(&mut self) -> (&'static str, UnderWay) {
        if self.disks.len() < 2 || (self.disks.len() < 4 && self.random.below(40) == 0) {
            return ("create", self.create());
        }
        let name = Self::pick(&mut self.random, self.disks.keys()).expect("there are disks");
        if self.disks[&name].live.is_none() {
            if self.disks[&name].snapshots.is_empty() {
                return ("remove disk", self.remove_disk(name));
            }
            return ("create image", self.create_image(name));
        }
        let nothing = UnderWay::Nothing;
        match self.random.below(36) {
            0..=8 => (self.write(&name), nothing),
            9 | 10 => (self.punch(&name), nothing),
            11 | 12 => (self.truncate(&name), nothing),
            13..=15 if self.random.below(6) == 0 => self.clone_disk(),
            13..=15 => {
                let is_whole = self.random.below(4) == 0;
                (self.copy(&name, is_whole), nothing)
            }
            16..=18 => ("flush", self.flush(&name)),
            19 => (self.read(&name), nothing),
            20 if self.random.below(3) == 0 => (self.verify_now(), nothing),
            20 => (self.seek(&name), nothing),
            21..=23 => ("take", self.take(name)),
            24 | 25 => ("delete", self.delete(name)),
            26 => ("rename snapshot", self.rename_snapshot(name)),
            27 => ("rollback", self.rollback(name)),
            28 => ("rename disk", self.rename_disk(name)),
            29 => ("link", self.link(name)),
            30 => ("change of images", self.change_images()),
            31 => ("import", self.import()),
            32 => (self.collect(), nothing),
            33 => ("take a group", self.take_group()),
            34 => ("delete a group", self.delete_group()),
            _ => match self.random.below(3) {
                0 => ("drop", self.drop_image(name)),
                _ => ("reopen", self.reopen()),
            },
        }
    }

    fn nothing(&mut self) -> UnderWay {
        self.idle = true;
        UnderWay::Nothing
    }

    fn create(&mut self) -> UnderWay {
        let name = self.name("disk");
        let parsed = DiskName::parse(name.as_ref()).expect("a name");
        let made = self.store().create_disk(parsed, OWNER);
        if self.done("creating a disk", made).is_none() {
            return UnderWay::Create(name);
        }
        self.disks.insert(name.clone(), Expected::default());
        self.create_image(name)
    }

    fn create_image(&mut self, name: String) -> UnderWay {
        let made = self.disk(&name).create_image(OWNER);
        if self.done("creating an image", made).is_none() {
            return UnderWay::CreateImage(name);
        }
        self.disks.get_mut(&name).expect("it is expected").live = Some(Image::default());
        UnderWay::Nothing
    }

    fn remove_disk(&mut self, name: String) -> UnderWay {
        let removed = self.store().remove_disk(&name);
        if self.done("removing a disk", removed).is_none() {
            return UnderWay::Remove(name);
        }
        self.disks.remove(&name);
        UnderWay::Nothing
    }

    fn write(&mut self, name: &str) -> &'static str {
        let offset = position(&mut self.random, MAX);
        let len = position(&mut self.random, 3 * CHUNK).min(MAX - offset);
        let data = content(&mut self.random, len);
        self.note(format_args!("{name}: write {offset} +{len}"));
        self.image(name).write(offset as usize, &data);
        let written = self.disk(name).write(self.base + offset, &data, Wait::Yes);
        self.done("a write", written);
        "write"
    }

    fn punch(&mut self, name: &str) -> &'static str {
        let offset = position(&mut self.random, MAX);
        let len = position(&mut self.random, 8 * CHUNK).min(MAX - offset);
        let extend = self.random.below(3) == 0;
        self.note(format_args!(
            "{name}: punch {offset} +{len}, extend {extend}"
        ));
        let range = offset as usize..(offset + len) as usize;
        self.image(name).zero(range, extend);
        let disk = self.disk(name);
        let punched = disk.punch(self.base + offset, len, extend, Wait::Yes);
        self.done("a punch", punched);
        "punch"
    }

    fn truncate(&mut self, name: &str) -> &'static str {
        let size = position(&mut self.random, MAX);
        self.note(format_args!("{name}: truncate {size}"));
        self.image(name).resize(size as usize);
        let cut = self.disk(name).truncate(self.base + size, false);
        self.done("a truncate", cut);
        "truncate"
    }

    /// Copies all of some disk or snapshot to a new disk.
    fn clone_disk(&mut self) -> (&'static str, UnderWay) {
        if self.disks.len() > 3 {
            return ("clone", self.nothing());
        }
        let under_way = self.create();
        if self.failed || self.files.is_stopped() {
            return ("create", under_way);
        }
        let name = format!("disk{}", self.counter);
        self.copy(&name, true);
        ("clone", UnderWay::Nothing)
    }

    /// Copies from some disk or snapshot: all of it, or a part, aligned or
    /// not.
    fn copy(&mut self, name: &str, is_whole: bool) -> &'static str {
        let from_name = Self::pick(&mut self.random, self.disks.keys()).expect("there are disks");
        let from_disk = self.disk(&from_name);
        let expected = &self.disks[&from_name];
        let snapshot = Self::pick(&mut self.random, expected.snapshots.keys());
        let live = expected.live.as_ref().map(|live| live.bytes.clone());
        let (source, bytes) = match (snapshot, live) {
            (Some(snapshot), live) if live.is_none() || self.random.below(2) == 0 => {
                let found = from_disk.snapshot(&snapshot).expect("it is there");
                let bytes = expected.snapshots[&snapshot].clone();
                (Source::Snapshot(from_disk, found), bytes)
            }
            (_, Some(bytes)) => (Source::Live(from_disk), bytes),
            _ => {
                self.idle = true;
                return "copy";
            }
        };
        let (from, to) = match self.random.below(3) {
            _ if is_whole => (0, 0),
            0 => (0, 0),
            1 => {
                let chunk = self.random.below(MAX / CHUNK) * CHUNK;
                (chunk, self.random.below(MAX / CHUNK) * CHUNK)
            }
            _ => (
                position(&mut self.random, MAX),
                position(&mut self.random, MAX),
            ),
        };
        let len = match is_whole {
            true => MAX,
            false => position(&mut self.random, MAX),
        };
        let len = len.min(MAX - to).min(MAX - from);
        let len = len.min((bytes.len() as u64).saturating_sub(from));
        // The nothing before the vector as well; of a live image it may be
        // copied byte by byte.
        let before = match source {
            Source::Snapshot(..) if is_whole => self.base,
            _ => 0,
        };
        let same = from_name == name && matches!(source, Source::Live(_));
        if len == 0 || (same && from < to + len && to < from + len) {
            self.idle = true;
            return "copy";
        }
        let disk = self.disk(name);
        let mut copied = 0;
        self.note(format_args!(
            "{name}: copy {from} to {to} +{len} from {from_name}, and {before} before it"
        ));
        while copied < before + len {
            let (source_at, target_at) = (self.base + from + copied, self.base + to + copied);
            let outcome = disk.copy_range(
                &source,
                source_at - before,
                target_at - before,
                before + len - copied,
            );
            let outcome = self.done("a copy", outcome);
            // Else any part of the rest may have been copied.
            let end = outcome.map_or(before + len, |step| copied + step);
            assert!(end > copied, "a copy ends at the source's end only");
            let first = copied.saturating_sub(before);
            let data =
                &bytes[(from + first) as usize..(from + end.saturating_sub(before)) as usize];
            self.image(name).write((to + first) as usize, data);
            copied = end;
        }
        "copy"
    }

    fn flush(&mut self, name: &str) -> UnderWay {
        let flushed = self.disk(name).flush();
        if self.done("a flush", flushed).is_some() {
            self.image(name).flushed();
        }
        UnderWay::Nothing
    }

    fn read(&mut self, name: &str) -> &'static str {
        let offset = position(&mut self.random, MAX);
        let len = position(&mut self.random, MAX);
        let mut buf = vec![0xaa; len as usize];
        let outcome = self
            .disk(name)
            .read(self.base + offset, &mut buf, Wait::Yes);
        if let Some(read) = self.done("a read", outcome) {
            let live = &self.image(name).bytes;
            let from = (offset as usize).min(live.len());
            let to = ((offset + len) as usize).min(live.len());
            compare("a read", &live[from..to], &buf[..read.waited()]);
        }
        "read"
    }

    /// Holes are zeros, and data that is not zero is never in a hole.
    fn seek(&mut self, name: &str) -> &'static str {
        let offset = position(&mut self.random, MAX);
        let disk = self.disk(name);
        let outcome = disk.seek(self.base + offset, Seek::Data, Wait::Yes);
        if let Some(found) = self.done("a seek", outcome) {
            let found = found.waited().map(|data| data - self.base);
            let live = &self.image(name).bytes;
            let data = found.unwrap_or(live.len() as u64);
            let hole = live.get(offset as usize..data as usize).unwrap_or_default();
            assert!(hole.iter().all(|byte| *byte == 0), "data in a hole");
        }
        "seek"
    }

    fn take(&mut self, name: String) -> UnderWay {
        let snapshot = self.name("snap");
        self.note(format_args!("{name}: take {snapshot}"));
        let parsed = SnapshotName::parse(snapshot.as_ref()).expect("a name");
        let taken = self.disk(&name).take_snapshot(parsed);
        if self.done("taking a snapshot", taken).is_none() {
            return UnderWay::Take(name, snapshot);
        }
        // It is durable together with all that it lies over.
        let image = self.image(&name);
        image.flushed();
        let bytes = image.bytes.clone();
        self.snapshots(&name).insert(snapshot, bytes);
        UnderWay::Nothing
    }

    fn take_group(&mut self) -> UnderWay {
        let name = self.name("group");
        self.note(format_args!("take {name} of all"));
        let parsed = SnapshotName::parse(name.as_ref()).expect("a name");
        let taken = self.store().take_group(parsed, None, OWNER);
        if self.done("taking a group", taken).is_none() {
            return UnderWay::TakeGroup(name);
        }
        // It is durable on every disk that has an image.
        self.all_flushed();
        self.group_taken(&name);
        UnderWay::Nothing
    }

    fn group_taken(&mut self, name: &str) {
        for expected in self.disks.values_mut() {
            if let Some(live) = &expected.live {
                expected
                    .snapshots
                    .insert(name.to_owned(), live.bytes.clone());
            }
        }
    }

    fn delete_group(&mut self) -> UnderWay {
        let groups = self.store().groups();
        let names: Vec<String> = groups.iter().map(|one| one.record.name.clone()).collect();
        let Some(name) = Self::pick(&mut self.random, names.iter()) else {
            return self.nothing();
        };
        let group = groups.iter().find(|group| group.record.name == name);
        let members: Vec<(String, String)> = group
            .into_iter()
            .flat_map(|group| &group.members)
            .map(|(disk, snapshot)| (disk.name(), snapshot.name()))
            .collect();
        self.note(format_args!("delete {name}: {members:?}"));
        let deleted = self.store().delete_group(&name, &By::Store);
        if members
            .iter()
            .any(|(disk, snapshot)| self.is_linked(disk, snapshot))
        {
            let trouble = self.files.is_stopped() || self.files.hits() > 0;
            assert!(
                matches!(deleted, Err(Error::Busy { .. })) || trouble,
                "a group that an image depends on: {deleted:?}"
            );
            return UnderWay::Nothing;
        }
        if self.done("deleting a group", deleted).is_none() {
            return UnderWay::DeleteGroup(members);
        }
        for (disk, snapshot) in members {
            self.snapshots(&disk).remove(&snapshot);
        }
        UnderWay::Nothing
    }

    fn snapshots(&mut self, disk: &str) -> &mut BTreeMap<String, Vec<u8>> {
        &mut self.disks.get_mut(disk).expect("it is expected").snapshots
    }

    fn is_linked(&self, disk: &str, snapshot: &str) -> bool {
        let mut links = self.links.values();
        links.any(|(of, name)| of == disk && name == snapshot)
    }

    fn pick_snapshot(&mut self, disk: &str) -> Option<String> {
        Self::pick(&mut self.random, self.disks[disk].snapshots.keys())
    }

    fn delete(&mut self, name: String) -> UnderWay {
        let Some(victim) = self.pick_snapshot(&name) else {
            return self.nothing();
        };
        let deleted = self.disk(&name).delete_snapshot(&victim);
        if self.is_linked(&name, &victim) {
            let trouble = self.files.is_stopped() || self.files.hits() > 0;
            assert!(
                matches!(deleted, Err(Error::Busy { .. })) || trouble,
                "a snapshot that an image depends on: {deleted:?}"
            );
            return UnderWay::Nothing;
        }
        if self.done("deleting a snapshot", deleted).is_none() {
            return UnderWay::Delete(name, victim);
        }
        self.snapshots(&name).remove(&victim);
        UnderWay::Nothing
    }

    fn rename_snapshot(&mut self, name: String) -> UnderWay {
        let Some(from) = self.pick_snapshot(&name) else {
            return self.nothing();
        };
        let to = self.name("again");
        let parsed = SnapshotName::parse(to.as_ref()).expect("a name");
        let renamed = self.disk(&name).rename_snapshot(&from, parsed);
        if self.done("renaming a snapshot", renamed).is_none() {
            return UnderWay::RenameSnapshot(name, from, to);
        }
        self.snapshot_renamed(&name, &from, to);
        UnderWay::Nothing
    }

    fn snapshot_renamed(&mut self, disk: &str, from: &str, to: String) {
        let bytes = self.snapshots(disk).remove(from).expect("it was there");
        for (of, name) in self.links.values_mut() {
            if of == disk && name == from {
                *name = to.clone();
            }
        }
        self.snapshots(disk).insert(to, bytes);
    }

    fn rollback(&mut self, name: String) -> UnderWay {
        let Some(target) = self.pick_snapshot(&name) else {
            return self.nothing();
        };
        let discard = self.random.below(2) == 0;
        self.note(format_args!(
            "{name}: roll back to {target}, discard {discard}"
        ));
        let outcome = self.disk(&name).rollback(&target, discard);
        let Some(kept) = self.done("a rollback", outcome) else {
            return UnderWay::Rollback(name, target);
        };
        let live = self.image(&name).bytes.clone();
        match kept {
            Some(kept) => {
                self.snapshots(&name).insert(kept, live);
            }
            None if !discard => self.assert_kept(&name, &live),
            None => {}
        }
        let bytes = self.disks[&name].snapshots[&target].clone();
        *self.image(&name) = Image::durable(bytes);
        UnderWay::Nothing
    }

    /// What goes without being kept is empty, or some snapshot has it.
    fn assert_kept(&self, disk: &str, live: &[u8]) {
        let mut kept = self.disks[disk].snapshots.values();
        assert!(
            live.is_empty() || kept.any(|bytes| bytes == live),
            "the live image of {disk} went without being kept"
        );
    }

    fn drop_image(&mut self, name: String) -> UnderWay {
        let dropped = self.disk(&name).drop_image();
        if self.done("dropping an image", dropped).is_none() {
            return UnderWay::Drop(name);
        }
        self.image_dropped(&name);
        UnderWay::Nothing
    }

    /// Finds what was kept of a live image that is gone.
    fn image_dropped(&mut self, name: &str) {
        let live = self.image(name).bytes.clone();
        self.disks.get_mut(name).expect("it is expected").live = None;
        match self.unexpected(name, "dropped-") {
            Some(kept) => {
                self.snapshots(name).insert(kept, live);
            }
            None => self.assert_kept(name, &live),
        }
    }

    /// A snapshot with this prefix that is not expected.
    fn unexpected(&self, disk: &str, prefix: &str) -> Option<String> {
        let expected = &self.disks[disk].snapshots;
        let names = self.disk(disk).snapshots().into_iter().map(|s| s.name());
        let mut new = names.filter(|name| name.starts_with(prefix) && !expected.contains_key(name));
        new.next()
    }

    fn rename_disk(&mut self, from: String) -> UnderWay {
        let to = self.name("moved");
        let parsed = DiskName::parse(to.as_ref()).expect("a name");
        let renamed = self.store().rename_disk(&from, parsed);
        if self.done("renaming a disk", renamed).is_none() {
            return UnderWay::RenameDisk(from, to);
        }
        self.disk_renamed(&from, to);
        UnderWay::Nothing
    }

    fn disk_renamed(&mut self, from: &str, to: String) {
        for (of, _) in self.links.values_mut() {
            if of == from {
                *of = to.clone();
            }
        }
        let expected = self.disks.remove(from).expect("it was there");
        self.disks.insert(to, expected);
    }

    fn link(&mut self, disk: String) -> UnderWay {
        let Some(snapshot) = self.pick_snapshot(&disk) else {
            return self.nothing();
        };
        let image = self.name("link");
        let parsed = ImageName::parse(image.as_ref()).expect("a name");
        let found = self.disk(&disk);
        let linked = self.store().link_image(&found, &snapshot, parsed);
        if self.done("linking an image", linked).is_none() {
            return UnderWay::Link(image, disk, snapshot);
        }
        self.links.insert(image, (disk, snapshot));
        UnderWay::Nothing
    }

    fn change_images(&mut self) -> UnderWay {
        let all = self.links.keys().chain(self.imports.keys());
        let Some(image) = Self::pick(&mut self.random, all) else {
            return self.nothing();
        };
        if self.random.below(2) == 0 {
            let removed = self.store().remove_image(&image);
            if self.done("removing an image", removed).is_none() {
                return UnderWay::Unlink(image);
            }
            self.links.remove(&image);
            self.imports.remove(&image);
            return UnderWay::Nothing;
        }
        let to = self.name("image");
        let parsed = ImageName::parse(to.as_ref()).expect("a name");
        let renamed = self.store().rename_image(&image, parsed, true);
        if self.done("renaming an image", renamed).is_none() {
            return UnderWay::RenameImage(image, to);
        }
        self.image_renamed(&image, to);
        UnderWay::Nothing
    }

    fn image_renamed(&mut self, from: &str, to: String) {
        if let Some(link) = self.links.remove(from) {
            self.links.insert(to, link);
        } else if let Some(bytes) = self.imports.remove(from) {
            self.imports.insert(to, bytes);
        }
    }

    fn import(&mut self) -> UnderWay {
        if self.imports.len() > 2 {
            return self.nothing();
        }
        let name = self.name("import");
        let parsed = ImageName::parse(name.as_ref()).expect("a name");
        let bytes = {
            let len = position(&mut self.random, MAX);
            content(&mut self.random, len)
        };
        let imported = self.store().create_image(parsed, OWNER).and_then(|disk| {
            disk.write(self.base, &bytes, Wait::Yes)?.waited();
            disk.finish_import()
        });
        if self.done("an import", imported).is_none() {
            return UnderWay::Import(name);
        }
        self.imports.insert(name, bytes);
        UnderWay::Nothing
    }

    /// What is there is sound at any time, also while it is being sealed.
    fn verify_now(&mut self) -> &'static str {
        // A call that fails is a finding, and stays one.
        if self.trouble == Trouble::Faults {
            self.idle = true;
            return "verify";
        }
        let wrong = wrong_with(self.store());
        if !self.files.is_stopped() {
            assert!(wrong.is_none(), "{}", wrong.unwrap_or_default());
        }
        "verify"
    }

    fn collect(&mut self) -> &'static str {
        let outcome = self.store().gc(false, &Quiet);
        self.done("a gc", outcome);
        "gc"
    }

    fn reopen(&mut self) -> UnderWay {
        let store = self.store.take().expect("it is open");
        let closed = store.close();
        drop(store);
        if self.done("closing", closed).is_some() {
            self.all_flushed();
            let mut opened = self.open();
            if let Ok(store) = &opened
                && self.files.hits() > 0
                && !self.files.is_stopped()
            {
                // What could not be read counts as damaged until it is
                // opened again.
                self.files.mend();
                match store.close() {
                    // A layer whose end could not be read takes no syncs.
                    Ok(()) | Err(Error::Poisoned { .. }) => {}
                    Err(error) => panic!("closing what was only opened: {error}"),
                }
                opened = self.open();
            }
            self.store = self.done("opening", opened);
        }
        UnderWay::Nothing
    }

    fn all_flushed(&mut self) {
        for expected in self.disks.values_mut() {
            if let Some(live) = &mut expected.live {
                live.flushed();
            }
        }
    }

    /// The power fails, or only the process is killed and what it wrote may
    /// still be lost later.
    fn end_abruptly(&mut self, crash: &'static str, kill: &'static str) {
        self.check_layers();
        let (what, files) = match self.random.below(3) {
            0 => (kill, self.files.kill()),
            _ => (crash, self.files.crash(&mut self.random)),
        };
        self.files = files;
        *self.counts.entry(what).or_default() += 1;
        self.note(format_args!("{what}"));
    }

    /// An abrupt end: what was not synced may be lost. Opens what is left and
    /// compares.
    fn crash(&mut self, under_way: UnderWay) {
        self.is_failing = false;
        drop(self.store.take());
        self.end_abruptly("crash", "kill");
        if self.random.below(4) == 0 {
            // The index is a cache: it may be lost at any moment.
            std::fs::remove_dir_all(self.root.path().join("index")).ok();
        }
        while self.random.below(3) == 0 {
            // Also in the middle of the recovery.
            self.files.stop_after(self.random.below(25));
            let opened = self.open();
            if let Some(store) = self.done("recovery", opened) {
                drop(store);
            }
            self.files.stop();
            self.end_abruptly("crash in recovery", "kill in recovery");
        }
        let opened = self.open();
        self.store = Some(opened.unwrap_or_else(|error| panic!("after a crash: {error}")));
        self.resolve(under_way);
        self.adopt();
        self.check();
    }

    /// Finds out whether what was under way was done.
    fn resolve(&mut self, under_way: UnderWay) {
        let store = self.store().clone();
        let has = |disk: &str, snapshot: &str| {
            let disk = store.disk(disk);
            disk.is_some_and(|disk| disk.snapshot(snapshot).is_some())
        };
        let has_image = |name: &str| store.image(name).is_some();
        match under_way {
            UnderWay::Nothing => {}
            UnderWay::Create(name) => {
                if store.disk(&name).is_some() {
                    self.disks.insert(name, Expected::default());
                }
            }
            UnderWay::Remove(name) => {
                if store.disk(&name).is_none() {
                    self.disks.remove(&name);
                }
            }
            UnderWay::CreateImage(name) => {
                if self.disk(&name).live().is_some() {
                    let expected = self.disks.get_mut(&name).expect("it is expected");
                    expected.live = Some(Image::default());
                }
            }
            UnderWay::Drop(name) => {
                if self.disk(&name).live().is_none() {
                    self.image_dropped(&name);
                }
            }
            UnderWay::Take(disk, name) => {
                if has(&disk, &name) {
                    let bytes = self.image(&disk).bytes.clone();
                    self.snapshots(&disk).insert(name, bytes);
                }
            }
            UnderWay::TakeGroup(name) => {
                let disks = self.disks.iter().filter(|(_, disk)| disk.live.is_some());
                let there: BTreeSet<bool> = disks.map(|(disk, _)| has(disk, &name)).collect();
                assert!(there.len() <= 1, "a part of the group {name} is there");
                if there.contains(&true) {
                    self.group_taken(&name);
                }
            }
            UnderWay::DeleteGroup(members) => {
                let there: BTreeSet<bool> =
                    members.iter().map(|(disk, name)| has(disk, name)).collect();
                assert!(there.len() <= 1, "a part of {members:?} is gone");
                if there.contains(&false) {
                    for (disk, name) in members {
                        self.snapshots(&disk).remove(&name);
                    }
                }
            }
            UnderWay::Delete(disk, name) => {
                if !has(&disk, &name) {
                    self.snapshots(&disk).remove(&name);
                }
            }
            UnderWay::RenameSnapshot(disk, from, to) => {
                if has(&disk, &to) {
                    self.snapshot_renamed(&disk, &from, to);
                }
            }
            UnderWay::RenameDisk(from, to) => {
                if store.disk(&to).is_some() {
                    self.disk_renamed(&from, to);
                }
            }
            UnderWay::Rollback(disk, target) => self.resolve_rollback(&disk, &target),
            UnderWay::Link(image, disk, snapshot) => {
                if has_image(&image) {
                    self.links.insert(image, (disk, snapshot));
                }
            }
            UnderWay::Unlink(image) => {
                if !has_image(&image) {
                    self.links.remove(&image);
                    self.imports.remove(&image);
                }
            }
            UnderWay::RenameImage(from, to) => {
                if has_image(&to) {
                    self.image_renamed(&from, to);
                }
            }
            UnderWay::Import(name) => {
                // Its content is anybody's guess.
                if has_image(&name)
                    && let Err(error) = store.remove_image(&name)
                {
                    // The power fails just then; it is looked for again.
                    assert!(self.files.is_stopped(), "removing it: {error}");
                }
            }
        }
    }

    fn resolve_rollback(&mut self, disk: &str, target: &str) {
        let live = self.image(disk).bytes.clone();
        let kept = self.unexpected(disk, "before-rollback-");
        let bytes = self.disks[disk].snapshots[target].clone();
        let found = read_live(&self.disk(disk), self.base);
        if let Some(kept) = kept {
            assert!(found == bytes, "half a rollback");
            self.snapshots(disk).insert(kept, live);
        }
        if found == bytes {
            *self.image(disk) = Image::durable(bytes);
        }
    }

    /// Takes the live images as the crash left them, if it may have.
    fn adopt(&mut self) {
        let store = self.store().clone();
        for (name, expected) in &mut self.disks {
            let (Some(live), Some(disk)) = (&mut expected.live, store.disk(name)) else {
                continue;
            };
            let found = read_live(&disk, self.base);
            if let Err(differs) = live.check_crashed(&found) {
                panic!("the live image of {name} after a crash: {differs}");
            }
            *live = Image::durable(found);
        }
    }

    fn check_content(&self) {
        for (name, expected) in &self.disks {
            let disk = self.disk(name);
            if let Some(live) = &expected.live {
                let what = format!("the live image of {name}");
                match try_read_live(&disk, self.base) {
                    Ok(found) => compare(&what, &live.bytes, &found),
                    Err(_) if self.files.is_stopped() => return,
                    Err(error) => panic!("{what}: {error}"),
                }
            }
        }
    }

    fn check_snapshots(&self) {
        for (name, expected) in &self.disks {
            let Some(disk) = self.store().disk(name) else {
                continue;
            };
            for (snapshot, bytes) in &expected.snapshots {
                // Renamed or deleted by what is under way, maybe.
                if disk.snapshot(snapshot).is_some() {
                    let what = format!("{name}@{snapshot}");
                    match try_read_snapshot(&disk, snapshot, self.base) {
                        Ok(found) => compare(&what, bytes, &found),
                        Err(_) if self.files.is_stopped() => return,
                        Err(error) => panic!("{what}: {error}"),
                    }
                }
            }
        }
    }

    /// At no moment was a file gone that a manifest on disk needs.
    fn check_layers(&self) {
        let orphaned = self.files.orphaned();
        assert!(orphaned.is_empty(), "removed too early: {orphaned:?}");
    }

    fn check(&self) {
        self.check_layers();
        let names: Vec<String> = self.store().disks().iter().map(|d| d.name()).collect();
        let expected: Vec<String> = self.disks.keys().cloned().collect();
        assert_eq!(names, expected, "disks");
        for (name, expected) in &self.disks {
            let disk = self.disk(name);
            match &expected.live {
                None => assert!(disk.live().is_none(), "{name} has no live image"),
                Some(live) => {
                    let what = format!("the live image of {name}");
                    compare(&what, &live.bytes, &read_live(&disk, self.base));
                }
            }
            let found: Vec<String> = disk.snapshots().iter().map(|s| s.name()).collect();
            let mut sorted = found.clone();
            sorted.sort();
            let names: Vec<String> = expected.snapshots.keys().cloned().collect();
            assert_eq!(sorted, names, "snapshots of {name}");
            for (snapshot, bytes) in &expected.snapshots {
                compare(
                    &format!("{name}@{snapshot}"),
                    bytes,
                    &read_snapshot(&disk, snapshot, self.base),
                );
            }
        }
        let images: Vec<String> = self
            .store()
            .images()
            .iter()
            .map(|i| i.name().to_owned())
            .collect();
        let mut names: Vec<String> = self
            .links
            .keys()
            .chain(self.imports.keys())
            .cloned()
            .collect();
        names.sort();
        assert_eq!(images, names, "images");
        for image in self.store().images() {
            if let store::Image::Import { name, disk } = image {
                compare(&name, &self.imports[&name], &read_live(&disk, self.base));
            }
        }
        self.verify();
    }

    fn verify(&self) {
        assert_store_sound(self.store(), "the store");
    }

    fn end(&mut self) {
        // No power failure or trouble that is still to come does.
        self.make_room();
        self.files.mend();
        if self.trouble == Trouble::Faults {
            // What failed in the background is told again when it closes.
            self.files.stop();
        }
        self.files.stop_after(u64::MAX / 2);
        self.is_failing = false;
        if self.files.is_stopped() {
            self.crash(UnderWay::Nothing);
        }
        self.check();
        self.reopen();
        self.check();
        let store = self.store.take().expect("it is open");
        store.close().expect("closing");
    }
}

fn try_read_live(disk: &Arc<Disk>, base: u64) -> Result<Vec<u8>> {
    let mut buf = vec![0xaa; MAX as usize + 4096];
    let read = disk.read(base, &mut buf, Wait::Yes)?;
    buf.truncate(read.waited());
    Ok(buf)
}

fn read_live(disk: &Arc<Disk>, base: u64) -> Vec<u8> {
    try_read_live(disk, base).unwrap_or_else(|error| panic!("{}: {error}", disk.name()))
}

fn try_read_snapshot(disk: &Arc<Disk>, name: &str, base: u64) -> Result<Vec<u8>> {
    let snapshot = disk.snapshot(name).expect("the snapshot is there");
    let mut buf = vec![0xaa; MAX as usize + 4096];
    let read = disk.read_snapshot(&snapshot, base, &mut buf, Wait::Yes)?;
    buf.truncate(read.waited());
    Ok(buf)
}

fn read_snapshot(disk: &Arc<Disk>, name: &str, base: u64) -> Vec<u8> {
    try_read_snapshot(disk, name, base).unwrap_or_else(|error| panic!("reading {name}: {error}"))
}

#[track_caller]
fn compare(what: &str, expected: &[u8], found: &[u8]) {
    if expected == found {
        return;
    }
    assert_eq!(found.len(), expected.len(), "length of {what}");
    if let Some(at) = (0..expected.len()).find(|at| expected[*at] != found[*at]) {
        panic!(
            "{what} differs at {at} (chunk {}, block {}): {:#x}, expected {:#x}",
            at as u64 / CHUNK,
            at / 4096,
            found[at],
            expected[at]
        );
    }
}
