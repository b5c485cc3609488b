//! [`Backend`] in a local directory.
//!
//! Nothing is ever changed in place but a pack that is being appended to: an
//! object is written under a temporary name in its directory, synced, and
//! renamed; then the directory is synced. A crash leaves the old or the new
//! object, and perhaps a temporary name, which nobody lists and
//! [`LocalBackend::settle_names`] removes.

use super::{Appender, Backend, Version};
use crate::error::{Error, Result};
use crate::files::{File, Files};
use parking_lot::Mutex;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// What objects are kept in.
const DIRS: [&str; 2] = ["packs", "manifests"];
/// What the names of unfinished objects start with; no object's name does.
const TEMPORARY: &str = ".tmp-";
/// Files kept open for reading.
const OPEN_FILES: usize = 64;

/// Objects as files below a directory.
#[derive(Debug)]
pub struct LocalBackend {
    files: Arc<dyn Files>,
    /// Makes "look, then rename" one step. Held over syncs: it is taken by
    /// changes of objects only, never by a reader. Taken before `open`.
    changes: Mutex<()>,
    /// A leaf: no other lock is taken while it is held.
    open: Mutex<OpenFiles>,
}

/// The files read last, the latest at the end. An object that is deleted or
/// replaced must not stay open: its space would not come back.
#[derive(Debug, Default)]
struct OpenFiles {
    files: Vec<(String, Arc<dyn File>)>,
    /// Counts removals. A reader opens without the lock: when something was
    /// removed meanwhile, what it opened may be just that, and is not kept.
    removals: u64,
}

impl OpenFiles {
    fn get(&mut self, key: &str) -> Option<Arc<dyn File>> {
        let at = self.files.iter().rposition(|(name, _)| name == key)?;
        let found = self.files.remove(at);
        let file = Arc::clone(&found.1);
        self.files.push(found);
        Some(file)
    }

    fn keep(&mut self, key: &str, file: &Arc<dyn File>) {
        if self.files.len() >= OPEN_FILES {
            self.files.remove(0);
        }
        self.files.push((key.to_owned(), Arc::clone(file)));
    }

    fn remove(&mut self, key: &str) {
        self.removals += 1;
        self.files.retain(|(name, _)| name != key);
    }
}

/// Directory and path of a key.
fn path_of(key: &str) -> Result<(&'static Path, PathBuf)> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '.';
    let found = key.split_once('/').and_then(|(dir, name)| {
        let dir = DIRS.into_iter().find(|known| *known == dir)?;
        let valid = !name.is_empty() && !name.starts_with('.') && name.chars().all(part);
        valid.then(|| (Path::new(dir), Path::new(dir).join(name)))
    });
    found.ok_or_else(|| Error::InvalidArgument {
        what: format!("{key:?} is no key of an object"),
    })
}

fn missing(key: &str) -> Error {
    Error::Missing {
        what: "object",
        name: key.to_owned(),
    }
}

fn version_of(bytes: &[u8]) -> Version {
    Version(*blake3::hash(bytes).as_bytes())
}

fn read_all(file: &dyn File) -> io::Result<Vec<u8>> {
    let len = usize::try_from(file.len()?).map_err(|_| io::ErrorKind::FileTooLarge)?;
    let mut bytes = Vec::new();
    bytes
        .try_reserve_exact(len)
        .map_err(|_| io::ErrorKind::OutOfMemory)?;
    bytes.resize(len, 0);
    let read = file.read_at(&mut bytes, 0)?;
    bytes.truncate(read);
    Ok(bytes)
}

impl LocalBackend {
    /// Objects below the directory of `files`; makes their directories,
    /// durably, if they are not there.
    pub fn new(files: Arc<dyn Files>) -> Result<LocalBackend> {
        let top = Path::new("");
        let there = files.list(top).map_err(Error::io("listing", "."))?;
        let mut made = false;
        for dir in DIRS {
            if !there.iter().any(|entry| entry.is_dir && entry.name == dir) {
                files
                    .create_dir(Path::new(dir))
                    .map_err(Error::io("making", dir))?;
                made = true;
            }
        }
        if made {
            files.sync_dir(top).map_err(Error::io("syncing", "."))?;
        }
        Ok(LocalBackend {
            files,
            changes: Mutex::new(()),
            open: Mutex::default(),
        })
    }

    /// Removes what a crash left of objects that were being written, and
    /// makes the names of all others durable: an earlier run may have ended
    /// between a new name and its sync, and whoever trusts the object would
    /// trust what a power loss takes away. Only before the first change of a
    /// run. Returns how many were removed.
    pub fn settle_names(&self) -> Result<u64> {
        let _changes = self.changes.lock();
        let mut removed = 0;
        for dir in DIRS {
            let path = Path::new(dir);
            for entry in self.files.list(path).map_err(Error::io("listing", dir))? {
                if entry.name.starts_with(TEMPORARY) && !entry.is_dir {
                    self.files
                        .unlink(&path.join(&entry.name))
                        .map_err(Error::io("removing", format!("{dir}/{}", entry.name)))?;
                    removed += 1;
                }
            }
            self.files
                .sync_dir(path)
                .map_err(Error::io("syncing", dir))?;
        }
        Ok(removed)
    }

    fn opened(&self, key: &str) -> Result<Option<Arc<dyn File>>> {
        let (_, path) = path_of(key)?;
        match self.files.open(&path, false) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io("opening", key)(error)),
        }
    }

    /// Writes an object under a temporary name, syncs and renames it; the
    /// caller holds `changes`. The new name is not synced yet.
    fn write(&self, key: &str, bytes: &[u8]) -> Result<Arc<dyn File>> {
        let (dir, path) = path_of(key)?;
        let temporary = dir.join(format!("{TEMPORARY}{}", Uuid::new_v4().simple()));
        let file = self
            .files
            .create_new(&temporary)
            .map_err(Error::io("making", key))?;
        let written = file
            .write_all_at(bytes, 0)
            .map_err(Error::io("writing", key))
            .and_then(|()| file.sync_data().map_err(Error::io("syncing", key)))
            .and_then(|()| {
                let renamed = self.files.rename(&temporary, &path);
                renamed.map_err(|error| match Error::io("renaming", key)(error) {
                    error if error.is_refused_write() => error,
                    // A filesystem may say anything else of what it has done.
                    error => Error::MetadataUnknown {
                        key: key.to_owned(),
                        cause: error.to_string(),
                    },
                })
            });
        if let Err(error) = written {
            // The name does no harm and the next run removes it, but on a
            // full disk its space is wanted now.
            if let Err(leftover) = self.files.unlink(&temporary) {
                tracing::debug!(
                    "{} stays until the next start: {leftover}",
                    temporary.display()
                );
            }
            return Err(error);
        }
        self.open.lock().remove(key);
        Ok(file)
    }

    fn write_and_sync(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.write(key, bytes)?;
        let (dir, _) = path_of(key)?;
        self.sync_names(key, dir)
    }

    fn check_new(&self, key: &str) -> Result<()> {
        match self.opened(key)? {
            None => Ok(()),
            Some(_) => Err(Error::Exists {
                what: "object",
                name: key.to_owned(),
            }),
        }
    }

    /// After a change of names; until it is done they may be old or new.
    fn sync_names(&self, key: &str, dir: &Path) -> Result<()> {
        self.files
            .sync_dir(dir)
            .map_err(|error| Error::MetadataUnknown {
                key: key.to_owned(),
                cause: format!("syncing {}: {error}", dir.display()),
            })
    }
}

impl Backend for LocalBackend {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<()> {
        let _changes = self.changes.lock();
        self.check_new(key)?;
        self.write_and_sync(key, bytes)
    }

    fn append_new(&self, key: &str, head: &[u8]) -> Result<Box<dyn Appender>> {
        let (dir, _) = path_of(key)?;
        let _changes = self.changes.lock();
        self.check_new(key)?;
        Ok(Box::new(LocalAppender {
            files: Arc::clone(&self.files),
            file: self.write(key, head)?,
            dir,
            key: key.to_owned(),
            len: head.len() as u64,
            given: 0,
            named: false,
            broken: None,
        }))
    }

    fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>> {
        let Some(file) = self.opened(key)? else {
            return Ok(None);
        };
        let bytes = read_all(&*file).map_err(Error::io("reading", key))?;
        let version = version_of(&bytes);
        Ok(Some((bytes, version)))
    }

    fn get_range(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let (kept, removals) = {
            let mut open = self.open.lock();
            (open.get(key), open.removals)
        };
        let file = match kept {
            Some(file) => file,
            None => {
                let file = self.opened(key)?.ok_or_else(|| missing(key))?;
                let mut open = self.open.lock();
                if open.removals == removals {
                    open.keep(key, &file);
                }
                file
            }
        };
        file.read_at(buf, offset).map_err(Error::io("reading", key))
    }

    fn settle(&self, key: &str) -> Result<u64> {
        let file = self.opened(key)?.ok_or_else(|| missing(key))?;
        // First the pages that are clean although an earlier flush of them
        // failed, then what is still to be written.
        file.drop_cache().map_err(Error::io("re-reading", key))?;
        file.sync_data().map_err(Error::io("syncing", key))?;
        file.len().map_err(Error::io("reading", key))
    }

    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for dir in DIRS {
            let top = format!("{dir}/");
            if !top.starts_with(prefix) && !prefix.starts_with(&top) {
                continue;
            }
            let entries = self
                .files
                .list(Path::new(dir))
                .map_err(Error::io("listing", dir))?;
            let objects = entries
                .into_iter()
                .filter(|entry| !entry.is_dir && !entry.name.starts_with('.'))
                .map(|entry| (format!("{top}{}", entry.name), entry.len))
                .filter(|(key, _)| key.starts_with(prefix));
            found.extend(objects);
        }
        found.sort_unstable();
        Ok(found)
    }

    fn delete(&self, key: &str) -> Result<()> {
        let (dir, path) = path_of(key)?;
        let _changes = self.changes.lock();
        match self.files.unlink(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::io("deleting", key)(error)),
        }
        self.open.lock().remove(key);
        self.sync_names(key, dir)
    }

    fn replace(&self, key: &str, bytes: &[u8], expected: Option<&Version>) -> Result<Version> {
        let _changes = self.changes.lock();
        match self.get(key) {
            // Nobody else writes here, and what comes in its place is sound.
            Err(error) if error.is_unreadable() && expected.is_some() => {
                tracing::warn!("{error}; it is replaced");
            }
            present => {
                let present = present?.map(|(_, version)| version);
                if present.as_ref() != expected {
                    return Err(Error::VersionConflict {
                        key: key.to_owned(),
                    });
                }
            }
        }
        self.write_and_sync(key, bytes)?;
        Ok(version_of(bytes))
    }
}

/// Bytes after which the disk is asked to write what was appended: it works
/// while more is made, and the sync that follows is short.
const WRITE_BACK_BYTES: u64 = 4 << 20;

struct LocalAppender {
    files: Arc<dyn Files>,
    file: Arc<dyn File>,
    dir: &'static Path,
    key: String,
    len: u64,
    /// How much the disk was given to write already.
    given: u64,
    /// Whether the name is on disk.
    named: bool,
    /// Why what was appended may not be what is on disk.
    broken: Option<String>,
}

impl Appender for LocalAppender {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(bytes, self.len);
        if let Err(error) = written.map_err(Error::io("writing", &self.key)) {
            if error.is_no_space() {
                // A part may be there; the object ends where it ended.
                self.file
                    .set_len(self.len)
                    .map_err(Error::io("cutting", &self.key))?;
            }
            return Err(error);
        }
        self.len += bytes.len() as u64;
        if self.len - self.given >= WRITE_BACK_BYTES {
            let from = std::mem::replace(&mut self.given, self.len);
            let given = self.file.write_back(from, self.len - from, false);
            // The kernel says an error once: the next sync may not hear it.
            if let Err(error) = given {
                self.broken = Some(error.to_string());
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<()> {
        if let Some(cause) = &self.broken {
            let cause = io::Error::other(cause.clone());
            return Err(Error::io("syncing", &self.key)(cause));
        }
        self.file
            .sync_data()
            .map_err(Error::io("syncing", &self.key))?;
        if !self.named {
            self.files
                .sync_dir(self.dir)
                .map_err(Error::io("syncing", self.dir.to_string_lossy()))?;
            self.named = true;
        }
        Ok(())
    }

    fn len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
mod tests;
