//! Reading chunks, whatever the index believes.

use super::{Bytes, ChunkStore};
use crate::chunk::{ChunkId, Kind};
use crate::error::{Error, Result};
use crate::index::PackNumber;
use crate::pack::{self, Entry, PackName, ReadError};
use std::collections::HashSet;
use std::sync::Arc;

/// How a look-up went.
#[derive(Default)]
struct Look {
    found: Option<Vec<u8>>,
    /// The chunk's record is there and wrong, in words.
    damage: Option<String>,
    /// A pack could not be read.
    error: Option<Error>,
}

impl ChunkStore {
    /// A chunk that is in memory; never waits for a disk.
    pub fn cached(&self, kind: Kind, id: &ChunkId) -> Option<Bytes> {
        let (cached, bytes) = self.cache.get(id)?;
        (cached == kind).then_some(bytes)
    }

    /// A chunk's bytes, which have this id: read, unpacked and hashed
    /// (invariant 4). May wait for disks. [`Error::Damaged`] when only wrong
    /// bytes are there, [`Error::ChunkMissing`] when none are.
    pub fn get(&self, kind: Kind, id: &ChunkId) -> Result<Bytes> {
        if let Some(bytes) = self.cached(kind, id) {
            return Ok(bytes);
        }
        let bytes = Arc::new(self.stored(kind, id)?);
        self.cache.insert(*id, (kind, Arc::clone(&bytes)));
        Ok(bytes)
    }

    /// [`ChunkStore::get`] from a disk, whatever is in memory.
    pub fn stored(&self, kind: Kind, id: &ChunkId) -> Result<Vec<u8>> {
        let mut look = self.look(kind, id);
        if look.found.is_none() {
            // Meanwhile a compaction may have moved it to another pack.
            look = self.look(kind, id);
        }
        if look.found.is_none() && look.damage.is_none() && look.error.is_none() {
            self.look_everywhere()?;
            look = self.look(kind, id);
        }
        look.into_result(kind, id)
    }

    /// Tries every pack that may have a chunk.
    fn look(&self, kind: Kind, id: &ChunkId) -> Look {
        let mut look = Look::default();
        let mut open = None;
        if let Some((number, name, entry)) = self.in_open_pack(kind, id) {
            open = Some(number);
            match self.read(&name, &entry) {
                Ok(bytes) => {
                    look.found = Some(bytes);
                    return look;
                }
                Err(error) => {
                    // Nothing but this process knows of it: it is nowhere
                    // else.
                    let error = error.or_damaged();
                    self.mark(number, &error);
                    look.note(error);
                }
            }
        }
        for number in self.index.candidates(id) {
            if open == Some(number) {
                continue;
            }
            match self.read_from(number, kind, id) {
                Ok(Some(bytes)) => {
                    look.found = Some(bytes);
                    return look;
                }
                Ok(None) => {}
                Err(error) => {
                    self.mark(number, &error);
                    look.note(error);
                }
            }
        }
        look
    }

    /// Notes of a pack that something in it cannot be had: what is put again
    /// from now on is stored again. If it is other than it was written,
    /// nothing is deleted on the word of the pack, now and in later runs.
    pub(in crate::chunk) fn mark(&self, number: PackNumber, error: &ReadError) {
        match error {
            ReadError::Damaged(_) => self.index.mark_damaged(number),
            ReadError::Io(error) if error.is_unreadable() => self.index.doubt(number),
            ReadError::Io(_) | ReadError::Stale(_) => {}
        }
    }

    /// Reads a chunk from a pack that may have it.
    fn read_from(
        &self,
        number: PackNumber,
        kind: Kind,
        id: &ChunkId,
    ) -> Result<Option<Vec<u8>>, ReadError> {
        let Some(info) = self.index.info(number) else {
            return Ok(None);
        };
        let unread = |error| match error {
            Error::Missing { .. } => {
                // One that was deleted was hidden before.
                if self.index.is_visible(number) {
                    self.index.mark_damaged(number);
                }
                ReadError::Stale(format!("pack {} is missing", info.name))
            }
            error => ReadError::Io(error),
        };
        let known = self.index.find(number, id).map_err(unread)?;
        let Some(entry) = known.filter(|entry| entry.kind == kind) else {
            // A fingerprint in common, or a record that was lost with others.
            let damaged = self
                .index
                .info(number)
                .is_some_and(|info| info.is_damaged());
            return match damaged {
                true => Err(ReadError::Damaged(format!(
                    "pack {}, which may have had it, is damaged",
                    info.name
                ))),
                false => Ok(None),
            };
        };
        let stale = match self.read(&info.name, &entry) {
            Err(ReadError::Stale(detail)) => detail,
            result => return result.map(Some),
        };
        let directory = self.index.reload(number).map_err(unread)?;
        match directory.find(id).copied() {
            Some(now) if now.kind == kind && now != entry => self.read(&info.name, &now).map(Some),
            _ if !self.index.is_visible(number) => Ok(None),
            _ => Err(ReadError::Damaged(stale)),
        }
    }

    /// Reads, unpacks and checks one record.
    fn read(&self, name: &PackName, entry: &Entry) -> Result<Vec<u8>, ReadError> {
        let stored = pack::read_record(&*self.backend, name, entry)?;
        stored.into_plain(&self.keys).map_err(|detail| {
            ReadError::Damaged(format!("pack {name} at {}: {detail}", entry.offset()))
        })
    }

    /// Reads the directory of every pack from the pack, once in a run, and
    /// again where that failed: the index may be wrong about a chunk that
    /// nobody can do without.
    fn look_everywhere(&self) -> Result<()> {
        let mut to_look_at = self.to_look_at.lock();
        let packs = to_look_at.take().unwrap_or_else(|| {
            tracing::warn!("a chunk is in no known pack, so all packs are looked at again");
            let open = self.open.read().as_ref().map(|open| open.number);
            let others = self.index.packs().into_iter().map(|(number, _)| number);
            others.filter(|number| Some(*number) != open).collect()
        });
        let mut unread = Vec::new();
        for number in packs {
            // What is gone by now cannot be looked at either.
            if self.index.info(number).is_some()
                && let Err(error) = self.index.reload(number)
            {
                tracing::warn!("a pack whose directory cannot be read: {error}");
                unread.push(number);
            }
        }
        *to_look_at = Some(unread);
        Ok(())
    }

    /// What the open pack has of a chunk.
    pub(super) fn in_open_pack(
        &self,
        kind: Kind,
        id: &ChunkId,
    ) -> Option<(PackNumber, PackName, Entry)> {
        let open = self.open.read();
        let open = open.as_ref()?;
        let entry = open.entries.get(id).filter(|entry| entry.kind == kind)?;
        Some((open.number, open.name, *entry))
    }

    /// Reads a chunk from a synced pack that is not one of `without`, by its
    /// id, and checks it.
    pub(in crate::chunk) fn read_back(
        &self,
        entry: &Entry,
        without: &HashSet<PackNumber>,
    ) -> Result<()> {
        let mut look = Look::default();
        for number in self.index.candidates(&entry.id) {
            let damaged = self.index.info(number).is_none_or(|info| info.is_damaged());
            if without.contains(&number) || damaged {
                continue;
            }
            match self.read_from(number, entry.kind, &entry.id) {
                Ok(Some(_)) => return Ok(()),
                Ok(None) => {}
                Err(error) => {
                    self.mark(number, &error);
                    look.note(error);
                }
            }
        }
        look.into_result(entry.kind, &entry.id).map(drop)
    }
}

impl Look {
    fn note(&mut self, error: ReadError) {
        match error {
            ReadError::Io(error) => self.error = Some(error),
            ReadError::Damaged(detail) => self.damage = Some(detail),
            // The pack is not there: its records may be elsewhere.
            ReadError::Stale(detail) => tracing::warn!("{detail}"),
        }
    }

    fn into_result(self, kind: Kind, id: &ChunkId) -> Result<Vec<u8>> {
        match (self.found, self.error, self.damage) {
            (Some(bytes), ..) => Ok(bytes),
            (None, Some(error), _) => Err(error),
            (None, None, Some(detail)) => Err(Error::Damaged {
                what: format!("{kind} chunk {id}"),
                detail,
            }),
            (None, None, None) => Err(Error::ChunkMissing { id: id.to_string() }),
        }
    }
}
