//! Files that count what is done to them, by what of a store they are.

use snapdisk::files::{Entry, File, Files};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

/// What of a store a call is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// A layer's log.
    Log,
    /// A layer's data.
    Segment,
    /// The directory of layers, and names in it.
    Layers,
    /// Chunks of disks in a pack.
    Data,
    /// Map pages and root records in a pack.
    Map,
    /// The rest of a pack: its header, directory and trailer, and its name.
    Pack,
    /// Manifests and the catalogue.
    Manifest,
    /// The rest.
    Store,
}

/// What is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Op {
    Create,
    Open,
    Read,
    Len,
    Write,
    SetLen,
    Punch,
    Sync,
    WriteBack,
    DropCache,
    Rename,
    Unlink,
    SyncDir,
    List,
    Space,
}

/// Threads that nobody waits for.
const BACKGROUND: [&str; 8] = [
    "seal",
    "sealer",
    "sampler",
    "flusher",
    "collector",
    "finisher",
    "policies",
    "events",
];

/// One call.
#[derive(Clone, Debug)]
pub struct Seen {
    /// The thread's name, without its number.
    pub thread: String,
    pub part: Part,
    pub op: Op,
    /// Bytes read or written.
    pub bytes: u64,
}

/// Calls in the order in which they were made.
#[derive(Clone, Default)]
pub struct Calls(pub Vec<Seen>);

impl fmt::Debug for Calls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for seen in &self.0 {
            writeln!(
                f,
                "{}: {:?} {:?} {}",
                seen.thread, seen.part, seen.op, seen.bytes
            )?;
        }
        Ok(())
    }
}

impl Calls {
    /// Those made by this thread.
    pub fn mine(&self) -> Calls {
        let this = thread_name();
        self.filter(|seen| seen.thread == this)
    }

    /// Those made for whoever asked for something and waits for it: not by
    /// the threads that work in the background.
    pub fn asked(&self) -> Calls {
        self.filter(|seen| !BACKGROUND.contains(&&*seen.thread))
    }

    /// Those made by the threads that seal.
    pub fn sealers(&self) -> Calls {
        self.filter(|seen| matches!(&*seen.thread, "seal" | "sealer"))
    }

    /// Those of which this is true.
    pub fn filter(&self, keep: impl Fn(&Seen) -> bool) -> Calls {
        Calls(self.0.iter().filter(|seen| keep(seen)).cloned().collect())
    }

    /// What is done to what, in order.
    pub fn steps(&self) -> Vec<(Part, Op)> {
        self.0.iter().map(|seen| (seen.part, seen.op)).collect()
    }

    /// How often this is done.
    pub fn count(&self, part: Part, op: Op) -> u64 {
        self.filter(|seen| (seen.part, seen.op) == (part, op)).len()
    }

    /// Bytes of it.
    pub fn bytes(&self, part: Part, op: Op) -> u64 {
        let of = self.filter(|seen| (seen.part, seen.op) == (part, op));
        of.0.iter().map(|seen| seen.bytes).sum()
    }

    /// Bytes that are written to all of a store.
    pub fn written(&self) -> u64 {
        let writes = self.filter(|seen| seen.op == Op::Write);
        writes.0.iter().map(|seen| seen.bytes).sum()
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        self.0.len() as u64
    }
}

fn thread_name() -> String {
    let this = thread::current();
    let name = this.name().unwrap_or("?");
    let number = |c: char| c.is_ascii_digit() || c == '-';
    name.trim_end_matches(number).to_owned()
}

/// Files that note every call on the way to others. Clones share the notes.
#[derive(Clone, Debug)]
pub struct CountingFiles {
    files: Arc<dyn Files>,
    calls: Arc<Mutex<Calls>>,
}

impl CountingFiles {
    /// Counts calls to these.
    pub fn new(files: Arc<dyn Files>) -> CountingFiles {
        CountingFiles {
            files,
            calls: Arc::default(),
        }
    }

    /// The calls since this was last asked.
    pub fn take(&self) -> Calls {
        std::mem::take(&mut *self.calls.lock().expect("no panic while it is held"))
    }

    fn note(&self, part: Part, op: Op, bytes: u64) {
        let thread = thread_name();
        let mut calls = self.calls.lock().expect("no panic while it is held");
        calls.0.push(Seen {
            thread,
            part,
            op,
            bytes,
        });
    }

    fn opened(&self, path: &Path, file: Arc<dyn File>) -> Arc<dyn File> {
        Arc::new(CountingFile {
            files: self.clone(),
            path: path.to_owned(),
            file,
        })
    }
}

/// What a path is of; the inside of packs not looked at.
fn part_of(path: &Path) -> Part {
    let text = path.to_string_lossy();
    match text.split_once('/') {
        None if text == "layers" => Part::Layers,
        None if text == "packs" => Part::Pack,
        None if text == "manifests" => Part::Manifest,
        Some(("layers", name)) if name.ends_with(".log") => Part::Log,
        Some(("layers", _)) => Part::Segment,
        Some(("packs", _)) => Part::Pack,
        Some(("manifests", _)) => Part::Manifest,
        _ => Part::Store,
    }
}

/// What bytes of a pack are, by the magic numbers that the pack's format has
/// for each of its parts: a record may come after the mark of a sync.
fn part_in_pack(bytes: &[u8]) -> Part {
    let record = match bytes.strip_prefix(b"PACKSYNC") {
        Some(_) => bytes.get(64..).unwrap_or_default(),
        None => bytes,
    };
    match record.get(..5) {
        Some(b"CHNK\x01") => Part::Data,
        Some(b"CHNK\x02" | b"CHNK\x03") => Part::Map,
        _ => Part::Pack,
    }
}

impl Files for CountingFiles {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.note(part_of(dir), Op::Create, 0);
        self.files.create_dir(dir)
    }

    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.note(part_of(path), Op::Create, 0);
        let file = self.files.create_new(path)?;
        Ok(self.opened(path, file))
    }

    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        self.note(part_of(path), Op::Open, 0);
        let file = self.files.open(path, writable)?;
        Ok(self.opened(path, file))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.note(part_of(to), Op::Rename, 0);
        self.files.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.note(part_of(path), Op::Unlink, 0);
        self.files.unlink(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.note(part_of(dir), Op::SyncDir, 0);
        self.files.sync_dir(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.note(part_of(dir), Op::List, 0);
        self.files.list(dir)
    }

    fn space(&self) -> io::Result<(u64, u64)> {
        self.note(Part::Store, Op::Space, 0);
        self.files.space()
    }
}

#[derive(Debug)]
struct CountingFile {
    files: CountingFiles,
    path: PathBuf,
    file: Arc<dyn File>,
}

impl CountingFile {
    fn note(&self, op: Op, bytes: &[u8]) {
        let part = match part_of(&self.path) {
            Part::Pack => part_in_pack(bytes),
            other => other,
        };
        self.files.note(part, op, bytes.len() as u64);
    }
}

impl File for CountingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        let read = self.file.read_at(buf, offset);
        let len = read.as_ref().map_or(0, |len| *len);
        self.note(Op::Read, &buf[..len]);
        read
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.note(Op::Write, buf);
        self.file.write_all_at(buf, offset)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.note(Op::Punch, &[]);
        self.file.punch(offset, len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.note(Op::SetLen, &[]);
        self.file.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        self.note(Op::Len, &[]);
        self.file.len()
    }

    fn sync_data(&self) -> io::Result<()> {
        self.note(Op::Sync, &[]);
        self.file.sync_data()
    }

    fn write_back(&self, offset: u64, len: u64, wait: bool) -> io::Result<()> {
        self.note(Op::WriteBack, &[]);
        self.file.write_back(offset, len, wait)
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.note(Op::DropCache, &[]);
        self.file.drop_cache()
    }
}
