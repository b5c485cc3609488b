//! Getting what is sound out of damaged packs.
//!
//! A damaged pack is never written to and never taken for a copy of
//! anything. What is sound in it is copied to the open pack; what is not may
//! be in another pack, or still in memory. When nothing that is needed is
//! left in it alone, it can go; else it is set apart: reads still try it,
//! gc leaves it.

use super::store::{Batch, ChunkStore};
use super::sweep::SweepRun;
use super::{ChunkId, Kind};
use crate::error::{Error, Result};
use crate::index::PackNumber;
use crate::pack::{Entry, PackName, Reader};
use std::collections::HashSet;

/// What was got out of damaged packs.
#[derive(Debug)]
pub struct Salvaged {
    /// Sound records that were in no sound pack and are now.
    pub copied: Vec<Entry>,
    /// The packs that could be read, damaged as they are.
    pub packs: Vec<(PackNumber, PackName)>,
    /// Keeps what was relied on until what names it is durable.
    batch: Batch,
}

impl ChunkStore {
    /// Sets packs apart: no sweep judges them, and nothing is taken for
    /// being there because they have it.
    pub fn set_apart(&self, packs: impl IntoIterator<Item = PackName>) {
        let packs: HashSet<PackName> = packs.into_iter().collect();
        for number in packs.iter().filter_map(|name| self.index.number(name)) {
            self.index.mark_damaged(number);
        }
        *self.apart.lock() = packs;
    }

    /// Packs that no sweep judges.
    pub fn apart(&self) -> HashSet<PackName> {
        self.apart.lock().clone()
    }

    /// Whether a pack that is not damaged has a chunk. Reads no chunk.
    pub fn has_sound(&self, kind: Kind, id: &ChunkId) -> bool {
        self.find(kind, id, |_| true)
    }
}

impl SweepRun {
    /// Copies what is sound in the damaged ones of `packs` and in no sound
    /// pack. Durable, and read back by id, when this returns.
    pub fn salvage(&self, packs: &[PackName]) -> Result<Salvaged> {
        let index = self.store.index();
        let mut salvaged = Salvaged {
            copied: Vec::new(),
            packs: Vec::new(),
            batch: self.store.begin(),
        };
        let open = self.store.open_pack().map(|(number, ..)| number);
        let numbered = packs
            .iter()
            .filter_map(|name| Some((index.number(name)?, *name)));
        let numbered: Vec<_> = numbered
            .filter(|(number, _)| Some(*number) != open)
            .collect();
        let from: HashSet<PackNumber> = numbered.iter().map(|(number, _)| *number).collect();
        let mut known: Vec<Entry> = Vec::new();
        for (number, name) in numbered {
            match self.salvage_pack(number, &name, &from, &mut salvaged) {
                Ok(()) if self.is_foreign(&name) => {
                    tracing::error!("pack {name} is another store's or another pack: it stays");
                }
                Ok(()) => salvaged.packs.push((number, name)),
                // Whatever it is that cannot be read: what else had it says.
                Err(error) if !error.is_no_space() && self.store.check_poison().is_ok() => {
                    tracing::error!("pack {name}: {error}");
                }
                Err(error) => return Err(error),
            }
            match index.directory(number) {
                Ok(directory) => known.extend(directory.entries()),
                Err(error) => tracing::error!("pack {name}: {error}"),
            }
        }
        for entry in &known {
            let (kind, id) = (entry.kind, &entry.id);
            if !self.has_elsewhere(&salvaged.batch, entry, &from)
                && let Some(bytes) = self.store.cached(kind, id)
                && salvaged.batch.put(kind, id, &bytes)?
            {
                salvaged.copied.push(*entry);
            }
        }
        salvaged.batch.settle()?;
        for entry in &salvaged.copied {
            self.store.read_back(entry, &from)?;
        }
        Ok(salvaged)
    }

    fn is_foreign(&self, name: &PackName) -> bool {
        let store = self.store.options.store;
        Reader::new(&*self.store.backend, name)
            .is_foreign(store)
            .unwrap_or(true)
    }

    fn salvage_pack(
        &self,
        number: PackNumber,
        name: &PackName,
        from: &HashSet<PackNumber>,
        salvaged: &mut Salvaged,
    ) -> Result<()> {
        let store = &self.store;
        let len = match store.index().info(number) {
            Some(info) => info.file_len,
            None => return Ok(()),
        };
        let mut failed: Option<Error> = None;
        let pack = Reader::over_unreadable(&*store.backend, name);
        pack.scan(len, |entry, stored| {
            if failed.is_some()
                || stored.open(&store.keys).is_err()
                || self.has_elsewhere(&salvaged.batch, entry, from)
            {
                return;
            }
            match salvaged.batch.append(&stored) {
                Ok(true) => salvaged.copied.push(*entry),
                Ok(false) => {}
                Err(error) => failed = Some(error),
            }
        })?;
        match failed {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
