//! A filesystem in memory that loses what was not synced.
//!
//! It stands in for the files of a store. What was written to a file since
//! that file's last sync, and what was made, renamed or unlinked since the
//! last sync of its directory, may be lost: [`FaultyFiles::crash`] keeps an
//! arbitrary part of it, writes torn at 512 bytes, and leaves everything that
//! still uses the old one with errors. It can be told to stop after the n-th
//! effect, to be full, and to fail calls of one kind.

use super::bytes::Random;
use snapdisk::disk::layer;
use snapdisk::files::{Entry, File, Files};
use snapdisk::manifest::{self, Catalogue, DiskRecord, EntryKind, LayerId, Manifest};
use snapdisk::recover::ASIDE;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

const PAGE: u64 = 4096;
/// What a disk writes wholly or not at all.
pub const SECTOR: u64 = 512;

/// What can be done to files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// `create_new` and `create_dir`.
    Create,
    /// `open`.
    Open,
    /// `read_at`, `len`.
    Read,
    /// `write_all_at`, `set_len`.
    Write,
    /// `punch`.
    Punch,
    /// `sync_data`.
    Sync,
    /// `write_back`.
    WriteBack,
    /// `rename`.
    Rename,
    /// `unlink`.
    Unlink,
    /// `sync_dir`.
    SyncDir,
    /// `list`.
    List,
}

impl Call {
    /// Whether it changes what is on disk.
    fn is_effect(self) -> bool {
        !matches!(self, Call::Open | Call::Read | Call::List | Call::WriteBack)
    }
}

/// A call that fails.
#[derive(Clone, Debug)]
pub struct Fault {
    /// Which.
    pub call: Call,
    /// Only for paths that contain this.
    pub path: String,
    /// With this.
    pub errno: i32,
    /// How many of them go well before.
    pub after: u64,
    /// How many fail then.
    pub times: u64,
}

/// Pages that are not zero, and a length.
#[derive(Clone, Default)]
struct Content {
    pages: BTreeMap<u64, Box<[u8]>>,
    len: u64,
}

impl Content {
    fn read(&self, at: u64, buf: &mut [u8]) -> usize {
        let len = self.len.saturating_sub(at).min(buf.len() as u64) as usize;
        let mut done = 0;
        while done < len {
            let (page, inside) = ((at + done as u64) / PAGE, (at + done as u64) % PAGE);
            let part = (PAGE - inside).min((len - done) as u64) as usize;
            let to = &mut buf[done..done + part];
            match self.pages.get(&page) {
                Some(bytes) => to.copy_from_slice(&bytes[inside as usize..inside as usize + part]),
                None => to.fill(0),
            }
            done += part;
        }
        len
    }

    fn write(&mut self, at: u64, bytes: &[u8]) {
        let mut done = 0;
        while done < bytes.len() {
            let (page, inside) = ((at + done as u64) / PAGE, (at + done as u64) % PAGE);
            let part = (PAGE - inside).min((bytes.len() - done) as u64) as usize;
            let to = self
                .pages
                .entry(page)
                .or_insert_with(|| vec![0; PAGE as usize].into());
            to[inside as usize..inside as usize + part].copy_from_slice(&bytes[done..done + part]);
            done += part;
        }
        self.len = self.len.max(at + bytes.len() as u64);
    }

    fn zero(&mut self, at: u64, len: u64) {
        let end = at.saturating_add(len);
        let (first, last) = (at.div_ceil(PAGE), end / PAGE);
        if first < last {
            let whole: Vec<u64> = self
                .pages
                .range(first..last)
                .map(|(page, _)| *page)
                .collect();
            for page in whole {
                self.pages.remove(&page);
            }
        }
        let edges = match at / PAGE == end / PAGE {
            true => [at..end, end..end],
            false => [at..first * PAGE, last * PAGE..end],
        };
        for edge in edges.into_iter().filter(|edge| !edge.is_empty()) {
            if let Some(bytes) = self.pages.get_mut(&(edge.start / PAGE)) {
                let inside = (edge.start % PAGE) as usize;
                bytes[inside..inside + (edge.end - edge.start) as usize].fill(0);
            }
        }
    }

    fn set_len(&mut self, len: u64) {
        if len < self.len {
            self.zero(len, self.len - len);
        }
        self.len = len;
    }

    fn used(&self) -> u64 {
        self.pages.len() as u64 * PAGE
    }
}

/// A change of a file that may be lost.
#[derive(Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Punch(u64, u64),
    Len(u64),
}

impl Change {
    fn apply(&self, content: &mut Content) {
        match self {
            Change::Write(at, bytes) => content.write(*at, bytes),
            Change::Punch(at, len) => {
                let end = (at + len).min(content.len);
                content.zero(*at, end.saturating_sub(*at));
            }
            Change::Len(len) => content.set_len(*len),
        }
    }

    /// Some sectors of it.
    fn apply_torn(&self, content: &mut Content, random: &mut Random) {
        match self {
            Change::Write(at, bytes) => {
                let mut from = 0;
                while from < bytes.len() {
                    let inside = (at + from as u64) % SECTOR;
                    let to = (from + (SECTOR - inside) as usize).min(bytes.len());
                    if random.below(2) == 0 {
                        content.write(at + from as u64, &bytes[from..to]);
                    }
                    from = to;
                }
            }
            whole => whole.apply(content),
        }
    }
}

#[derive(Clone, Default)]
struct Inode {
    now: Content,
    durable: Content,
    /// Since the last sync.
    pending: Vec<Change>,
}

impl Inode {
    /// A file of which all is on disk.
    fn on_disk(content: Content) -> Inode {
        Inode {
            now: content.clone(),
            durable: content,
            pending: Vec::new(),
        }
    }
}

/// A change of names that may be lost.
#[derive(Clone)]
enum NameChange {
    Dir(PathBuf),
    Make(PathBuf, u64),
    Rename(PathBuf, PathBuf, u64),
    Unlink(PathBuf, u64),
}

impl NameChange {
    fn is_in(&self, dir: &Path) -> bool {
        let path = match self {
            NameChange::Dir(path) | NameChange::Make(path, _) | NameChange::Unlink(path, _) => path,
            NameChange::Rename(_, to, _) => to,
        };
        path.parent() == Some(dir)
    }

    fn apply(&self, names: &mut BTreeMap<PathBuf, u64>, dirs: &mut BTreeSet<PathBuf>) {
        let remove = |names: &mut BTreeMap<PathBuf, u64>, path: &PathBuf, inode: &u64| {
            if names.get(path) == Some(inode) {
                names.remove(path);
            }
        };
        match self {
            NameChange::Dir(path) => {
                dirs.insert(path.clone());
            }
            NameChange::Make(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            NameChange::Rename(from, to, inode) => {
                remove(names, from, inode);
                names.insert(to.clone(), *inode);
            }
            NameChange::Unlink(path, inode) => remove(names, path, inode),
        }
    }
}

#[derive(Default)]
struct State {
    names: BTreeMap<PathBuf, u64>,
    dirs: BTreeSet<PathBuf>,
    durable_names: BTreeMap<PathBuf, u64>,
    durable_dirs: BTreeSet<PathBuf>,
    pending_names: Vec<NameChange>,
    inodes: HashMap<u64, Inode>,
    next_inode: u64,
    effects: u64,
    stop_after: Option<u64>,
    stopped: bool,
    faults: Vec<Fault>,
    /// Calls that faults made fail since the last mend.
    hits: u64,
    calls: BTreeMap<Call, u64>,
    /// Bytes that files may take in all.
    room: Option<u64>,
    read_only: bool,
    /// Whether other threads are let in between two calls.
    yields: bool,
    /// Where a manifest named a layer whose log was gone.
    orphaned: Vec<String>,
    /// What part of a call that fails is done all the same.
    dice: u64,
}

/// What a file says, if it is a sound manifest of that kind.
fn decode<M: Manifest>(path: &Path, content: &Content) -> Option<M> {
    let mut bytes = vec![0; content.len as usize];
    content.read(0, &mut bytes);
    manifest::decode(&path.to_string_lossy(), &bytes).ok()
}

/// Layers that are there as files only, as a manifest says.
fn unsealed(disk: &DiskRecord) -> impl Iterator<Item = LayerId> {
    let layers = disk.layers.iter().filter(|layer| layer.root.is_none());
    layers.map(|layer| layer.id)
}

impl State {
    /// A manifest on disk, as the next process would read it.
    fn manifest<M: Manifest>(&self, path: &Path) -> Option<M> {
        decode(path, &self.inodes[self.durable_names.get(path)?].durable)
    }

    /// The manifests of disks that the catalogue on disk lists, with their
    /// keys.
    fn disks(&self) -> Vec<(String, DiskRecord)> {
        let catalogue = self.manifest::<Catalogue>(Path::new(&manifest::catalogue_key()));
        let entries = catalogue.into_iter().flat_map(|one| one.entries);
        entries
            .filter(|(_, kind)| *kind == EntryKind::Disk)
            .map(|(id, kind)| manifest::entry_key(&id, kind))
            .filter_map(|key| Some((key.clone(), self.manifest(Path::new(&key))?)))
            .collect()
    }

    /// Notes it if `path` is the log of a layer that a manifest on disk names
    /// as unsealed. What is in memory does not count: the power may fail now.
    fn look_at_unlink(&mut self, path: &Path) {
        let id = path.strip_prefix("layers").ok().and_then(Path::to_str);
        let id = id.and_then(|name| name.strip_suffix(".log")?.parse::<LayerId>().ok());
        let Some(id) = id else { return };
        for (key, disk) in self.disks() {
            // Also a manifest that is in its place, and not on disk yet.
            let now = self.names.get(Path::new(&key));
            let now = now.and_then(|inode| decode(Path::new(&key), &self.inodes[inode].now));
            let named = now.iter().chain([&disk]).flat_map(unsealed);
            if named.into_iter().any(|one| one == id) {
                let path = path.display();
                self.orphaned
                    .push(format!("{path} is removed, and {key} names it"));
            }
        }
    }

    /// Notes it if what a power failure left has no log of a layer that a
    /// manifest names as unsealed.
    fn look_at_what_is_left(&mut self) {
        for (key, disk) in self.disks() {
            self.look_at_layers(&key, &disk);
        }
    }

    fn look_at_layers(&mut self, key: &str, disk: &DiskRecord) {
        for id in unsealed(disk) {
            // Aside it is while a manifest that may name it cannot be read.
            let homes = [layer::DIRECTORY, ASIDE];
            let is_there = |dir| {
                let log = Path::new(dir).join(format!("{id}.log"));
                self.names.contains_key(&log)
            };
            if !homes.into_iter().any(is_there) {
                self.orphaned
                    .push(format!("{key} names layer {id}, whose log is gone"));
            }
        }
    }

    /// Notes it if a manifest that was just put in place names a layer as
    /// unsealed whose log is not there.
    fn look_at_manifest(&mut self, path: &Path) {
        // What is laid aside may be a segment, of any length.
        if !path.starts_with("manifests") {
            return;
        }
        let content = &self.inodes[&self.names[path]].now;
        if let Some(disk) = decode::<DiskRecord>(path, content) {
            self.look_at_layers(&path.to_string_lossy(), &disk);
        }
    }

    /// What is left when the power fails now: everything that was synced, and
    /// of the rest what `keeps` says.
    fn left(&self, random: &mut Random, keeps: impl Fn(&mut Random) -> bool) -> State {
        let mut new = State {
            durable_names: self.durable_names.clone(),
            durable_dirs: self.durable_dirs.clone(),
            next_inode: self.next_inode,
            room: self.room,
            orphaned: self.orphaned.clone(),
            ..State::default()
        };
        for change in &self.pending_names {
            if keeps(random) {
                change.apply(&mut new.durable_names, &mut new.durable_dirs);
            }
        }
        new.names = new.durable_names.clone();
        new.dirs = new.durable_dirs.clone();
        for id in new.names.values() {
            let inode = &self.inodes[id];
            let mut content = inode.durable.clone();
            for change in &inode.pending {
                if keeps(random) {
                    match random.below(3) {
                        0 => change.apply_torn(&mut content, random),
                        _ => change.apply(&mut content),
                    }
                }
            }
            new.inodes.insert(*id, Inode::on_disk(content));
        }
        new.look_at_what_is_left();
        new
    }

    /// Counts a call in, or refuses it.
    fn enter(&mut self, call: Call, path: &Path) -> io::Result<()> {
        let failed = |errno| Err(io::Error::from_raw_os_error(errno));
        if self.stopped {
            return failed(libc::EIO);
        }
        if call.is_effect() && self.stop_after.is_some_and(|last| self.effects >= last) {
            self.stopped = true;
            return failed(libc::EIO);
        }
        let text = path.to_string_lossy();
        for fault in &mut self.faults {
            if fault.call != call || !text.contains(&fault.path) {
                continue;
            }
            if fault.after > 0 {
                fault.after -= 1;
            } else if fault.times > 0 {
                fault.times -= 1;
                self.hits += 1;
                return failed(fault.errno);
            }
        }
        if self.read_only && call.is_effect() {
            self.hits += 1;
            return failed(libc::EROFS);
        }
        *self.calls.entry(call).or_default() += 1;
        if call.is_effect() {
            self.effects += 1;
        }
        Ok(())
    }

    fn random(&mut self) -> Random {
        self.dice += 1;
        Random(self.dice)
    }

    /// What a flush that failed leaves: some of what it was to write is on
    /// disk, all of it counts as clean (the kernel takes it for so), and a
    /// second one succeeds and writes nothing.
    fn lose_some(&mut self, id: u64) {
        let mut random = self.random();
        let inode = self.inodes.get_mut(&id).expect("an open file");
        for change in std::mem::take(&mut inode.pending) {
            match random.below(4) {
                0 => change.apply(&mut inode.durable),
                1 => change.apply_torn(&mut inode.durable, &mut random),
                _ => {}
            }
        }
    }

    fn used(&self) -> u64 {
        let named: BTreeSet<u64> = self.names.values().copied().collect();
        let inodes = self.inodes.iter().filter(|(id, _)| named.contains(id));
        inodes.map(|(_, inode)| inode.now.used()).sum()
    }

    /// Whether a write has the pages that it needs.
    fn check_room(&self, id: u64, at: u64, len: usize) -> io::Result<()> {
        let Some(room) = self.room else { return Ok(()) };
        let pages = at / PAGE..(at + len as u64).div_ceil(PAGE);
        let there = self.inodes[&id].now.pages.range(pages.clone()).count() as u64;
        match self.used() + (pages.end - pages.start - there) * PAGE > room {
            true => Err(error(libc::ENOSPC)),
            false => Ok(()),
        }
    }
}

/// The filesystem. Clones share it.
#[derive(Clone, Default)]
pub struct FaultyFiles(Arc<Mutex<State>>);

impl fmt::Debug for FaultyFiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FaultyFiles")
    }
}

impl FaultyFiles {
    /// An empty one.
    pub fn new() -> FaultyFiles {
        FaultyFiles::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().expect("no test panics with it")
    }

    /// Effects so far.
    pub fn effects(&self) -> u64 {
        self.state().effects
    }

    /// Calls of one kind so far.
    pub fn calls(&self, call: Call) -> u64 {
        self.state().calls.get(&call).copied().unwrap_or(0)
    }

    /// The n-th effect from now is the last; everything after it fails.
    pub fn stop_after(&self, effects: u64) {
        let mut state = self.state();
        state.stop_after = Some(state.effects + effects);
    }

    /// Nothing more happens from now on.
    pub fn stop(&self) {
        self.state().stopped = true;
    }

    /// Whether something was refused because it came after the last effect.
    pub fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// Lets calls fail.
    pub fn fail(&self, fault: Fault) {
        self.state().faults.push(fault);
    }

    /// How many calls failed since the last mend.
    pub fn hits(&self) -> u64 {
        self.state().hits
    }

    /// No call fails any more.
    pub fn mend(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.hits = 0;
        state.read_only = false;
    }

    /// Bytes that all files may take; None: any.
    pub fn set_room(&self, room: Option<u64>) {
        self.state().room = room;
    }

    /// Bytes that files take.
    pub fn used(&self) -> u64 {
        self.state().used()
    }

    /// After each sync and write other threads are let in, now and then for
    /// long, so that what is done between two calls is met by what they do.
    pub fn let_others_in(&self) {
        self.state().yields = true;
    }

    fn after_effect(&self, state: MutexGuard<'_, State>) {
        let (yields, effects) = (state.yields, state.effects);
        drop(state);
        if yields {
            let turns = [0, 1, 5, 30][(effects % 4) as usize];
            (0..turns).for_each(|_| std::thread::yield_now());
        }
    }

    /// Every change is EROFS from now on.
    pub fn turn_read_only(&self) {
        self.state().read_only = true;
    }

    /// Names of files, without their directories' own.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.state().names.keys().cloned().collect()
    }

    /// Changes a file behind everybody's back; durable.
    pub fn tamper(&self, path: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let mut state = self.state();
        let id = *state
            .names
            .get(path)
            .unwrap_or_else(|| panic!("{path:?} is there"));
        let inode = state.inodes.get_mut(&id).expect("named inodes are there");
        let mut bytes = vec![0; inode.now.len as usize];
        inode.now.read(0, &mut bytes);
        change(&mut bytes);
        let mut content = Content::default();
        content.write(0, &bytes);
        inode.now = content.clone();
        inode.durable = content;
        inode.pending.clear();
    }

    /// Puts a file there behind everybody's back; durable.
    pub fn put(&self, path: &Path, bytes: &[u8]) {
        {
            let mut state = self.state();
            let id = state.next_inode;
            state.next_inode += 1;
            state.inodes.insert(id, Inode::default());
            state.names.insert(path.to_owned(), id);
            state.durable_names.insert(path.to_owned(), id);
        }
        self.tamper(path, |content| content.extend_from_slice(bytes));
    }

    /// The bytes of a file as they are seen now.
    pub fn bytes(&self, path: &Path) -> Vec<u8> {
        let state = self.state();
        let inode = &state.inodes[&state.names[path]];
        let mut bytes = vec![0; inode.now.len as usize];
        inode.now.read(0, &mut bytes);
        bytes
    }

    /// Removes a file behind everybody's back; durable.
    pub fn remove(&self, path: &Path) {
        let mut state = self.state();
        state.names.remove(path);
        state.durable_names.remove(path);
    }

    /// Each moment at which a manifest on disk named a layer as unsealed and
    /// its log was gone, or about to go: after a power failure just then the
    /// layer would be lost.
    pub fn orphaned(&self) -> Vec<String> {
        self.state().orphaned.clone()
    }

    /// The same once more, with everything on disk as it is.
    pub fn fork(&self) -> FaultyFiles {
        let old = self.state();
        let inodes = old.names.values().map(|id| {
            let now = old.inodes[id].now.clone();
            (*id, Inode::on_disk(now))
        });
        FaultyFiles(Arc::new(Mutex::new(State {
            names: old.names.clone(),
            dirs: old.dirs.clone(),
            durable_names: old.names.clone(),
            durable_dirs: old.dirs.clone(),
            inodes: inodes.collect(),
            next_inode: old.next_inode,
            room: old.room,
            ..State::default()
        })))
    }

    /// What the next process finds after this one was killed: everything,
    /// but what was not synced may still be lost. This one fails from now on.
    pub fn kill(&self) -> FaultyFiles {
        let mut old = self.state();
        old.stopped = true;
        FaultyFiles(Arc::new(Mutex::new(State {
            names: old.names.clone(),
            dirs: old.dirs.clone(),
            durable_names: old.durable_names.clone(),
            durable_dirs: old.durable_dirs.clone(),
            pending_names: old.pending_names.clone(),
            inodes: old.inodes.clone(),
            next_inode: old.next_inode,
            room: old.room,
            orphaned: old.orphaned.clone(),
            ..State::default()
        })))
    }

    /// What is there after a power loss now: everything that was synced and
    /// an arbitrary part of the rest. This one fails from now on.
    pub fn crash(&self, random: &mut Random) -> FaultyFiles {
        // All, nothing, or some of what was not synced.
        match random.below(4) {
            0 => self.crash_keeping(random, |_| false),
            1 => self.crash_keeping(random, |_| true),
            _ => self.crash_keeping(random, |random| random.below(2) == 0),
        }
    }

    /// The same with nothing but what was synced.
    pub fn crash_losing_all(&self) -> FaultyFiles {
        self.crash_keeping(&mut Random(0), |_| false)
    }

    fn crash_keeping(
        &self,
        random: &mut Random,
        keeps: impl Fn(&mut Random) -> bool,
    ) -> FaultyFiles {
        let mut old = self.state();
        old.stopped = true;
        FaultyFiles(Arc::new(Mutex::new(old.left(random, keeps))))
    }

    fn file(&self, id: u64, path: &Path) -> Arc<dyn File> {
        Arc::new(FaultyFile {
            files: self.clone(),
            id,
            path: path.to_owned(),
        })
    }
}

fn error(errno: i32) -> io::Error {
    io::Error::from_raw_os_error(errno)
}

impl Files for FaultyFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        if state.dirs.contains(dir) {
            return Ok(());
        }
        state.enter(Call::Create, dir)?;
        state.dirs.insert(dir.to_owned());
        state.pending_names.push(NameChange::Dir(dir.to_owned()));
        Ok(())
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        let parent = path.parent().unwrap_or(Path::new(""));
        if parent != Path::new("") && !state.dirs.contains(parent) {
            return Err(error(libc::ENOENT));
        }
        if state.names.contains_key(path) {
            return Err(error(libc::EEXIST));
        }
        state.enter(Call::Create, path)?;
        let id = state.next_inode;
        state.next_inode += 1;
        state.inodes.insert(id, Inode::default());
        state.names.insert(path.to_owned(), id);
        state
            .pending_names
            .push(NameChange::Make(path.to_owned(), id));
        drop(state);
        Ok(self.file(id, path))
    }

    fn open(&self, path: &Path, _: bool) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        state.enter(Call::Open, path)?;
        let id = *state.names.get(path).ok_or_else(|| error(libc::ENOENT))?;
        drop(state);
        Ok(self.file(id, path))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        let id = *state.names.get(from).ok_or_else(|| error(libc::ENOENT))?;
        state.enter(Call::Rename, to)?;
        state.names.remove(from);
        state.names.insert(to.to_owned(), id);
        let change = NameChange::Rename(from.to_owned(), to.to_owned(), id);
        state.pending_names.push(change);
        state.look_at_manifest(to);
        Ok(())
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        let id = *state.names.get(path).ok_or_else(|| error(libc::ENOENT))?;
        state.enter(Call::Unlink, path)?;
        state.look_at_unlink(path);
        state.names.remove(path);
        state
            .pending_names
            .push(NameChange::Unlink(path.to_owned(), id));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.enter(Call::SyncDir, dir)?;
        let state = &mut *state;
        let pending = std::mem::take(&mut state.pending_names);
        for change in pending {
            if change.is_in(dir) {
                change.apply(&mut state.durable_names, &mut state.durable_dirs);
            } else {
                state.pending_names.push(change);
            }
        }
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        let mut state = self.state();
        state.enter(Call::List, dir)?;
        let name = |path: &Path| {
            let name = path.file_name().unwrap_or_default();
            name.to_string_lossy().into_owned()
        };
        let files = state.names.iter().map(|(path, id)| (path, Some(id)));
        let dirs = state.dirs.iter().map(|path| (path, None));
        Ok(files
            .chain(dirs)
            .filter(|(path, _)| path.parent() == Some(dir))
            .map(|(path, id)| Entry {
                name: name(path),
                len: id.map_or(0, |id| state.inodes[id].now.len),
                is_dir: id.is_none(),
            })
            .collect())
    }

    fn space(&self) -> io::Result<(u64, u64)> {
        let state = self.state();
        let room = state.room.unwrap_or(1 << 40);
        Ok((room, room.saturating_sub(state.used())))
    }
}

#[derive(Debug)]
struct FaultyFile {
    files: FaultyFiles,
    id: u64,
    path: PathBuf,
}

impl FaultyFile {
    fn change(&self, call: Call, change: Change) -> io::Result<()> {
        let mut state = self.files.state();
        let entered = state.enter(call, &self.path);
        let change = match (&entered, change) {
            // A call that fails may have done the first part of its work.
            (Err(error), Change::Write(at, mut bytes))
                if !state.stopped && error.raw_os_error() != Some(libc::EROFS) =>
            {
                let part = state.random().below(bytes.len() as u64 + 1) / SECTOR * SECTOR;
                if part == 0 {
                    return entered;
                }
                bytes.truncate(part as usize);
                Change::Write(at, bytes)
            }
            (Err(_), _) => return entered,
            (Ok(()), change) => change,
        };
        if let Change::Write(at, bytes) = &change {
            state.check_room(self.id, *at, bytes.len())?;
        }
        let inode = state.inodes.get_mut(&self.id).expect("an open file");
        change.apply(&mut inode.now);
        let change = match change {
            // Whole sectors go to a disk, as they are in memory then.
            Change::Write(at, bytes) => {
                let from = at / SECTOR * SECTOR;
                let end = (at + bytes.len() as u64).next_multiple_of(SECTOR);
                let mut whole = vec![0; (end.min(inode.now.len) - from) as usize];
                inode.now.read(from, &mut whole);
                Change::Write(from, whole)
            }
            other => other,
        };
        inode.pending.push(change);
        self.files.after_effect(state);
        entered
    }
}

impl File for FaultyFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut state = self.files.state();
        state.enter(Call::Read, &self.path)?;
        Ok(state.inodes[&self.id].now.read(offset, buf))
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.change(Call::Write, Change::Write(offset, buf.to_vec()))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(Call::Punch, Change::Punch(offset, len))
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(Call::Write, Change::Len(len))
    }

    fn len(&self) -> io::Result<u64> {
        let mut state = self.files.state();
        state.enter(Call::Read, &self.path)?;
        Ok(state.inodes[&self.id].now.len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.files.state();
        let entered = state.enter(Call::Sync, &self.path);
        if let Err(error) = entered {
            if !state.stopped {
                state.lose_some(self.id);
            }
            return Err(error);
        }
        let inode = state.inodes.get_mut(&self.id).expect("an open file");
        for change in std::mem::take(&mut inode.pending) {
            change.apply(&mut inode.durable);
        }
        self.files.after_effect(state);
        Ok(())
    }

    fn write_back(&self, _: u64, _: u64, _: bool) -> io::Result<()> {
        let mut state = self.files.state();
        let entered = state.enter(Call::WriteBack, &self.path);
        if entered.is_err() && !state.stopped {
            // Told here, and not again at the next sync.
            state.lose_some(self.id);
        }
        entered
    }

    fn drop_cache(&self) -> io::Result<()> {
        let mut state = self.files.state();
        // Clean pages go; what a failed flush left in memory alone is gone.
        let inode = state.inodes.get_mut(&self.id).expect("an open file");
        let mut now = inode.durable.clone();
        for change in &inode.pending {
            change.apply(&mut now);
        }
        inode.now = now;
        Ok(())
    }
}
