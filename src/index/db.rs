//! sled, kept at arm's length: after an error or a panic of it, whatever it
//! does, nobody asks it again, and the index goes on without.
//!
//! One value a pack: its whole directory, cut into pieces of 4 KiB. Millions
//! of entries of their own would take gigabytes and minutes. But sled keeps
//! some 500 leaves in memory, whatever size of cache it is given, and writes
//! whole leaves: with a directory in one piece they took half a gigabyte.
//!
//! ```text
//! key    writer's epoch, the pack's uuid, the piece's number u16: 26 bytes,
//!        big-endian
//! value  the pieces one after the other:
//!        0 magic "SDX1"  4 flags u32: 2 closed
//!        8 length of the file that this describes u64   16 count u32
//!       20 CRC-32 of the entries     24 CRC-32 of 0..24
//!       28 entries as in a pack's directory
//! ```

use crate::pack::{Directory, ENTRY_BYTES, PackName, u32_at};
use crate::sandbox::without_programs;
use parking_lot::Mutex;
use std::fmt;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// With the default of 1024 such values are ten times slower.
const LEAF_FANOUT: usize = 16;
/// Bytes that sled may keep of what it has read.
const CACHE_BYTES: usize = 16 << 20;
/// Bytes put after which sled is opened anew: it never lets go of a leaf that
/// was written since it was opened (its own list of what is to do says so).
const REOPEN_AFTER: u64 = 16 << 20;
const MAGIC: &[u8; 4] = b"SDX1";
const HEADER_BYTES: usize = 28;
const PIECE_BYTES: usize = 4096;
const CLOSED: u32 = 2;

type Sled = sled::Db<LEAF_FANOUT>;

/// What a kept directory describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cover {
    /// The length of the file, in bytes.
    pub file_len: u64,
    /// Whether the file ends with its directory.
    pub closed: bool,
}

/// What is known of a pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Value {
    /// What it holds.
    pub directory: Directory,
    /// The checksum of the directory's entries, as a trailer has it.
    pub crc: u32,
    /// What that describes.
    pub cover: Cover,
}

/// An answer of sled's.
pub enum Kept {
    /// A sound value.
    Value(Value),
    /// None, or none that is sound.
    Nothing,
    /// Another call is under way.
    Busy,
}

/// The bytes of a value.
pub fn encode(directory: &Directory, cover: Cover) -> Vec<u8> {
    let flags = if cover.closed { CLOSED } else { 0 };
    let entries = directory.encode();
    let mut bytes = Vec::with_capacity(HEADER_BYTES + entries.len());
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(&flags.to_le_bytes());
    bytes.extend_from_slice(&cover.file_len.to_le_bytes());
    bytes.extend_from_slice(&(directory.entries().len() as u32).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&entries).to_le_bytes());
    bytes.extend_from_slice(&crc32fast::hash(&bytes).to_le_bytes());
    bytes.extend_from_slice(&entries);
    bytes
}

/// Reads a value; None unless it is sound.
pub fn decode(bytes: &[u8]) -> Option<Value> {
    let (header, entries) = bytes.split_at_checked(HEADER_BYTES)?;
    let number = |at: usize| {
        let bytes = header.get(at..at + 4)?.try_into().ok()?;
        Some(u32::from_le_bytes(bytes))
    };
    let file_len = u64::from(number(8)?) | u64::from(number(12)?) << 32;
    let (flags, crc) = (number(4)?, number(20)?);
    let sound = &header[..4] == MAGIC
        && crc32fast::hash(&header[..24]) == number(24)?
        && flags & !CLOSED == 0
        && entries.len() == number(16)? as usize * ENTRY_BYTES
        && crc32fast::hash(entries) == crc;
    if !sound {
        return None;
    }
    Some(Value {
        directory: Directory::decode(entries, file_len)?,
        crc,
        cover: Cover {
            file_len,
            closed: flags & CLOSED != 0,
        },
    })
}

/// The key of a piece.
fn key_of(pack: &PackName, piece: u16) -> [u8; 26] {
    let mut key = [0; 26];
    key[..8].copy_from_slice(&pack.epoch.to_be_bytes());
    key[8..24].copy_from_slice(pack.uuid.as_bytes());
    key[24..].copy_from_slice(&piece.to_be_bytes());
    key
}

fn name_of(key: &[u8]) -> Option<PackName> {
    if key.len() != 26 {
        return None;
    }
    Some(PackName {
        epoch: u64::from_be_bytes(key[..8].try_into().ok()?),
        uuid: Uuid::from_bytes(key[8..24].try_into().ok()?),
    })
}

/// The pieces of a pack that there are. By their keys: an iterator over those
/// with a prefix goes on to the last leaf of all once it has them, and reads
/// each.
fn pieces_of(sled: &Sled, pack: PackName) -> impl Iterator<Item = io::Result<Vec<u8>>> {
    (0..=u16::MAX).map_while(move |piece| {
        let found = sled.get(key_of(&pack, piece)).transpose()?;
        Some(found.map(|bytes| bytes.to_vec()))
    })
}

/// Puts a value together from its pieces, of which there may be some left of
/// a longer one.
fn join(pieces: impl Iterator<Item = io::Result<Vec<u8>>>) -> io::Result<Option<Value>> {
    let mut bytes = Vec::new();
    for piece in pieces {
        bytes.extend_from_slice(&piece?);
    }
    if bytes.len() >= HEADER_BYTES {
        let count = u32_at(&bytes, 16) as usize;
        bytes.truncate(HEADER_BYTES + count * ENTRY_BYTES);
    }
    Ok(decode(&bytes))
}

/// Runs a call into sled; its panic becomes an error.
fn guarded<T>(call: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    catch_unwind(AssertUnwindSafe(call)).unwrap_or_else(|panic| {
        let words = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("for no reason given");
        Err(io::Error::other(format!("sled panicked: {words}")))
    })
}

/// The packs' directories in sled, as long as sled is well.
pub struct Db {
    /// Held over every call, sled's flushes included; who reads for a reader
    /// does not wait for it. No other lock is taken under it but by what
    /// [`Db::each`] calls.
    sled: Mutex<Option<Sled>>,
    /// Bytes put since it was opened.
    put: AtomicU64,
    path: PathBuf,
}

impl fmt::Debug for Db {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Db({})", self.path.display())
    }
}

/// Syncs a directory and all that is in it; nothing if it is not there.
fn sync_tree(dir: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        match entry.file_type()?.is_dir() {
            true => sync_tree(&entry.path())?,
            false => fs::File::open(entry.path())?.sync_all()?,
        }
    }
    fs::File::open(dir)?.sync_all()
}

fn open_sled(path: &Path) -> io::Result<Sled> {
    // Before 1970 it panics, and again while it unwinds.
    if crate::time::now_ns() < 0 {
        return Err(io::Error::other("the clock is before 1970"));
    }
    // What a killed process wrote may not be on disk yet, and sled takes
    // what it reads for safe. For that it runs `sync` twice, which waits for
    // everything that is dirty on every filesystem of the machine: it is
    // kept from it, and its own files are synced.
    sync_tree(path)?;
    let open = || {
        let config = sled::Config::new()
            .path(path)
            .cache_capacity_bytes(CACHE_BYTES)
            // Ids do not compress.
            .zstd_compression_level(1)
            .flush_every_ms(None);
        let db: Sled = config.open()?;
        if let Err(error) = db.check_error() {
            std::mem::forget(db); // as in `Db::give_up`
            return Err(error);
        }
        Ok(db)
    };
    without_programs(|| guarded(open))
}

impl Db {
    /// Opens or makes the database; a damaged one is moved aside, and where
    /// none can be made there is none.
    pub fn open(path: &Path) -> Db {
        let sled = open_sled(path).or_else(|error| {
            if !means_damage(&error) {
                return Err(error);
            }
            set_aside(path, &error)?;
            open_sled(path)
        });
        let sled = sled
            .inspect_err(|error| {
                tracing::warn!("the index {} cannot be used: {error}", path.display());
            })
            .ok();
        Db {
            sled: Mutex::new(sled),
            put: AtomicU64::new(0),
            path: path.to_owned(),
        }
    }

    /// Whether sled is in use.
    pub fn is_there(&self) -> bool {
        self.sled.lock().is_some()
    }

    /// Calls sled, if it is there; an error ends it for this run.
    fn with<T>(&self, call: impl FnOnce(&Sled) -> io::Result<T>) -> Option<T> {
        let result = {
            let sled = self.sled.lock();
            let sled = sled.as_ref()?;
            guarded(|| call(sled))
        };
        self.outcome(result)
    }

    fn outcome<T>(&self, result: io::Result<T>) -> Option<T> {
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                tracing::warn!("the index is given up, packs are read instead: {error}");
                self.give_up();
                None
            }
        }
    }

    /// Does without sled after an error. It is not dropped: its destructors
    /// flush, and after a flush that failed the next one waits for ever. So
    /// its directory stays taken until the process ends.
    fn give_up(&self) {
        std::mem::forget(self.sled.lock().take());
    }

    /// Moves a database that proved damaged aside and starts an empty one.
    pub fn start_anew(&self) {
        self.give_up();
        let reason = io::Error::other("its content cannot be read");
        let fresh = set_aside(&self.path, &reason).and_then(|()| open_sled(&self.path));
        match fresh {
            Ok(fresh) => *self.sled.lock() = Some(fresh),
            Err(error) => tracing::warn!("the index {}: {error}", self.path.display()),
        }
    }

    /// What is kept of a pack. Never waits for another call.
    pub fn get(&self, pack: &PackName) -> Kept {
        let result = {
            let Some(sled) = self.sled.try_lock() else {
                return Kept::Busy;
            };
            let Some(sled) = sled.as_ref() else {
                return Kept::Nothing;
            };
            guarded(|| join(pieces_of(sled, *pack)))
        };
        match self.outcome(result).flatten() {
            Some(value) => Kept::Value(value),
            None => Kept::Nothing,
        }
    }

    /// Keeps a pack's directory; durable after a flush.
    pub fn put(&self, pack: &PackName, directory: &Directory, cover: Cover) {
        let value = encode(directory, cover);
        self.put.fetch_add(value.len() as u64, Ordering::Relaxed);
        self.with(|sled| {
            let mut batch = sled::Batch::default();
            for (piece, bytes) in (0..).zip(value.chunks(PIECE_BYTES)) {
                batch.insert(&key_of(pack, piece)[..], bytes);
            }
            sled.apply_batch(batch)
        });
    }

    /// Forgets a pack.
    pub fn remove(&self, pack: &PackName) {
        self.with(|sled| {
            for piece in 0..=u16::MAX {
                if sled.remove(key_of(pack, piece))?.is_none() {
                    break;
                }
            }
            Ok(())
        });
    }

    /// Forgets a key that is no pack's.
    fn remove_key(&self, key: &[u8]) {
        self.with(|sled| sled.remove(key).map(drop));
    }

    /// Hands out every pack with its value, None for one that is not sound;
    /// keys that name no pack are removed. False if sled failed on the way.
    pub fn each(&self, mut visit: impl FnMut(PackName, Option<Value>)) -> bool {
        if !self.is_there() {
            return true;
        }
        let mut strange = Vec::new();
        let done = self.with(|sled| {
            let mut pieces = Vec::new();
            let mut of = None;
            let mut end = |of: Option<PackName>, pieces: &mut Vec<Vec<u8>>| {
                if let Some(name) = of {
                    visit(name, join(pieces.drain(..).map(Ok))?);
                }
                io::Result::Ok(())
            };
            for item in sled.iter() {
                let (key, value) = item?;
                let Some(name) = name_of(&key) else {
                    strange.push(key.to_vec());
                    continue;
                };
                if of != Some(name) {
                    end(of.replace(name), &mut pieces)?;
                }
                pieces.push(value.to_vec());
            }
            end(of, &mut pieces)
        });
        for key in strange {
            self.remove_key(&key);
        }
        done.is_some()
    }

    /// Writes what was put and removed to disk.
    pub fn flush(&self) {
        self.with(|sled| sled.flush().map(drop));
        if self.put.load(Ordering::Relaxed) >= REOPEN_AFTER {
            self.open_anew();
        }
    }

    /// Closes sled and opens it again, so that it lets go of memory.
    fn open_anew(&self) {
        let mut sled = self.sled.lock();
        self.put.store(0, Ordering::Relaxed);
        let Some(old) = sled.take() else { return };
        let opened = guarded(|| {
            drop(old);
            Ok(())
        })
        .and_then(|()| open_sled(&self.path));
        match opened {
            Ok(opened) => *sled = Some(opened),
            Err(error) => {
                tracing::warn!("the index is given up, packs are read instead: {error}");
            }
        }
    }

    /// Leaves that were read from disk since it was opened last.
    #[cfg(test)]
    pub fn leaves_read(&self) -> u64 {
        let sled = self.sled.lock();
        sled.as_ref()
            .map_or(0, |sled| sled.stats().cache.cache_misses)
    }

    /// Flushes and lets go of sled; its directory is free then, unless it
    /// failed.
    pub fn close(&self) {
        self.flush();
        let sled = self.sled.lock().take();
        // It may flush, fail and panic in going.
        let dropped = guarded(|| {
            drop(sled);
            Ok(())
        });
        if let Err(error) = dropped {
            tracing::warn!("closing the index: {error}");
        }
    }
}

impl Drop for Db {
    fn drop(&mut self) {
        self.close();
    }
}

/// Whether an error is about what is on disk, rather than about the disk or
/// about somebody else who has it open.
fn means_damage(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    !matches!(
        error.kind(),
        Kind::WouldBlock
            | Kind::StorageFull
            | Kind::QuotaExceeded
            | Kind::ReadOnlyFilesystem
            | Kind::PermissionDenied
            | Kind::OutOfMemory
    )
}

/// Renames a damaged database to `NAME.damaged`, in place of an older one.
fn set_aside(path: &Path, reason: &io::Error) -> io::Result<()> {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    let aside = PathBuf::from(aside);
    tracing::warn!(
        "the index {} is unusable ({reason}); it is kept as {} and made anew",
        path.display(),
        aside.display()
    );
    let removed = match fs::symlink_metadata(&aside) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(&aside),
        Ok(_) => fs::remove_file(&aside),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    match fs::rename(path, &aside) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
