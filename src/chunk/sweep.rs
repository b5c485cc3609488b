//! Taking back the space of chunks that nothing refers to.
//!
//! The story that the rules below are against: a sealer looks a chunk up,
//! finds it in pack P and writes a manifest that names it; meanwhile a sweep,
//! whose marking came before that manifest, finds P dead and deletes it. So
//! a look-up that is relied on pins its pack, under the lock under which a
//! sweep hides packs; a pin that was alive at any time since the sweep began
//! protects its pack for the whole sweep, since its manifest may have been
//! written after the marking passed; and only packs that were closed before
//! the sweep began are judged, since what is in a later one may be in no
//! manifest yet (invariant 8).
//!
//! Whoever deletes has to be sure: anything found wrong with any pack ends
//! the sweep before its first deletion, and an error ends it where it is.
//! Only packs that a repair set apart are passed over, and stay.

use crate::chunk::store::{Batch, ChunkStore, Finding};
use crate::chunk::{ChunkId, Kind};
use crate::error::{Error, Result};
use crate::index::{PackInfo, PackNumber};
use crate::pack::{self, Entry, PackName, ReadError};
use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

mod recompress;

/// What a sweep did, or with `dry_run` would have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SweepReport {
    /// Packs that were there.
    pub packs_before: u64,
    /// Packs that were deleted because nothing in them was live.
    pub packs_deleted: u64,
    /// Packs that were deleted after their live records had been copied.
    pub packs_compacted: u64,
    /// Packs that were not judged because a batch had them pinned.
    pub packs_protected: u64,
    /// Bytes of deleted packs, less those of the copies.
    pub bytes_freed: u64,
    /// Bytes of live records in the packs that were judged.
    pub live_bytes: u64,
    /// Bytes of dead records that stay, in packs that are mostly live.
    pub dead_bytes: u64,
    /// Whether it stopped early because it was told to.
    pub interrupted: bool,
    /// Whether compaction stopped early because there was no space for
    /// copies.
    pub no_space: bool,
}

/// A sweep that has begun. Dropping it without [`SweepRun::finish`] deletes
/// nothing.
pub struct SweepRun {
    pub(super) store: Arc<ChunkStore>,
    /// Closed before it began.
    candidates: Vec<(PackNumber, PackInfo)>,
    /// Whether copies of so many bytes have room.
    room: Option<Box<Room>>,
}

/// See [`SweepRun::asking_for_room`].
type Room = dyn Fn(u64) -> Result<bool> + Send + Sync;

impl fmt::Debug for SweepRun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SweepRun({} packs)", self.candidates.len())
    }
}

/// Whether a manifest, an open view or a graft reaches a chunk.
type IsLive<'a> = dyn Fn(Kind, &ChunkId) -> bool + Sync + 'a;

/// How compaction stores a record in its new pack.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Copying {
    /// As it lies in the old one.
    AsIs,
    /// Compressed anew, if that makes it shorter.
    Repacked,
}

/// A pack with its fate undecided.
struct Judged {
    number: PackNumber,
    info: PackInfo,
    live: u64,
    live_bytes: u64,
    dead_bytes: u64,
}

impl ChunkStore {
    /// Begins a sweep. What is live is marked after this and before
    /// [`SweepRun::finish`]. One at a time.
    pub fn sweep_begin(self: &Arc<Self>) -> Result<SweepRun> {
        self.check_poison()?;
        let candidates = self.rotate_and(|| {
            // One that has no record yet goes on.
            let open = self.open_pack().map(|(number, ..)| number);
            if !self.pins.begin_sweep() {
                return Err(Error::Busy {
                    what: "the store".to_owned(),
                    by: vec!["another sweep".to_owned()],
                });
            }
            let mut candidates = self.index.packs();
            let apart = self.apart.lock();
            candidates
                .retain(|(number, info)| Some(*number) != open && !apart.contains(&info.name));
            Ok(candidates)
        })?;
        Ok(SweepRun {
            store: Arc::clone(self),
            candidates,
            room: None,
        })
    }
}

impl Drop for SweepRun {
    fn drop(&mut self) {
        self.store.pins.end_sweep();
    }
}

impl SweepRun {
    /// Asks before it copies so many bytes whether they have room; it ends as
    /// on a full disk where they have not.
    pub fn asking_for_room(
        mut self,
        room: impl Fn(u64) -> Result<bool> + Send + Sync + 'static,
    ) -> SweepRun {
        self.room = Some(Box::new(room));
        self
    }

    /// Deletes packs without live chunks and compacts those that are mostly
    /// dead, very small with something dead in them, or small beside other
    /// small ones. `is_live` must be true for every chunk that a manifest, an
    /// open view or a graft reaches; a false "true" costs space only.
    /// `keep_going` is asked now and then; false ends the sweep early.
    /// With `dry_run` nothing is changed.
    ///
    /// After it, dead records of packs below a quarter of a pack's length are
    /// in no file of the store, unless a batch protects their pack.
    pub fn finish(
        self,
        is_live: &(dyn Fn(Kind, &ChunkId) -> bool + Sync),
        dry_run: bool,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        self.store.check_poison()?;
        self.check_files(&mut report)?;

        let mut dead = Vec::new();
        let mut partly = Vec::new();
        for (number, info) in &self.candidates {
            if !keep_going() {
                report.interrupted = true;
                return Ok(report);
            }
            if self.is_protected(*number) {
                report.packs_protected += 1;
                continue;
            }
            let judged = self.judge(*number, info, is_live)?;
            report.live_bytes += judged.live_bytes;
            match judged.live {
                0 => dead.push(judged),
                _ => partly.push(judged),
            }
        }
        let compact = self.choose(partly, &mut report);

        if dry_run {
            report.packs_deleted = dead.len() as u64;
            report.packs_compacted = compact.len() as u64;
            let files = dead.iter().chain(&compact).map(|pack| pack.info.file_len);
            let copies: u64 = compact.iter().map(|pack| pack.live_bytes).sum();
            report.bytes_freed = files.sum::<u64>().saturating_sub(copies);
            return Ok(report);
        }
        for pack in &dead {
            if !keep_going() {
                report.interrupted = true;
                return Ok(report);
            }
            if self.delete(pack.number, &pack.info.name)? {
                report.packs_deleted += 1;
                report.bytes_freed += pack.info.file_len;
            } else {
                report.packs_protected += 1;
            }
        }
        self.compact(compact, Copying::AsIs, is_live, &mut report, keep_going)?;
        Ok(report)
    }

    fn is_protected(&self, number: PackNumber) -> bool {
        self.store.pins.is_protected(number)
    }

    /// Whether the files are what the index believes.
    fn check_files(&self, report: &mut SweepReport) -> Result<()> {
        let found: HashMap<String, u64> =
            self.store.backend.list(pack::PREFIX)?.into_iter().collect();
        report.packs_before = self.store.index.packs().len() as u64;
        for (number, info) in &self.candidates {
            if self
                .store
                .index
                .info(*number)
                .is_none_or(|info| info.is_damaged())
            {
                return Err(damaged_pack(info));
            }
            let finding = match found.get(&info.name.key()).copied() {
                Some(len) if len == info.file_len => continue,
                Some(found) => Finding::PackLength {
                    pack: info.name,
                    expected: info.file_len,
                    found,
                },
                None => Finding::PackMissing { pack: info.name },
            };
            match finding {
                // So the listing says of what it cannot look at now.
                Finding::PackLength { found: 0, .. } => self.store.index.doubt(*number),
                Finding::PackLength { found, .. } if found > info.file_len => {}
                _ => self.store.index.mark_damaged(*number),
            }
            return Err(ended(&finding));
        }
        Ok(())
    }

    /// The directory of a pack, which has all of its records.
    fn whole_directory(
        &self,
        number: PackNumber,
        info: &PackInfo,
    ) -> Result<(PackInfo, Arc<pack::Directory>)> {
        let index = &self.store.index;
        let mut directory = index.directory(number)?;
        if directory.entries().len() as u64 != info.records {
            // Whatever the reason is: a record that is not judged is lost.
            directory = index.reload(number)?;
        }
        // Reading the directory may just have shown it.
        let info = index.info(number).unwrap_or(info.clone());
        match info.is_damaged() || directory.entries().len() as u64 != info.records {
            true => Err(damaged_pack(&info)),
            false => Ok((info, directory)),
        }
    }

    /// Which records of a pack are live, by its directory.
    fn judge(&self, number: PackNumber, info: &PackInfo, is_live: &IsLive<'_>) -> Result<Judged> {
        let (info, directory) = self.whole_directory(number, info)?;
        let mut judged = Judged {
            number,
            info,
            live: 0,
            live_bytes: 0,
            dead_bytes: 0,
        };
        for entry in directory.entries() {
            if is_live(entry.kind, &entry.id) {
                judged.live_bytes += entry.record_len();
                judged.live += 1;
            } else {
                judged.dead_bytes += entry.record_len();
            }
        }
        Ok(judged)
    }

    /// Of the packs with live records, those that are worth copying.
    fn choose(&self, packs: Vec<Judged>, report: &mut SweepReport) -> Vec<Judged> {
        let small = self.store.options.pack_bytes / 4;
        let is_small =
            |pack: &Judged| pack.info.file_len < small || (pack.info.earlier && !pack.info.closed);
        let several = packs.iter().filter(|pack| is_small(pack)).count() >= 2;
        let mut chosen = Vec::new();
        for pack in packs {
            let mostly_dead = pack.dead_bytes > pack.live_bytes;
            let remains = pack.info.file_len < small && pack.dead_bytes > 0;
            if mostly_dead || remains || (several && is_small(&pack)) {
                chosen.push(pack);
            } else {
                report.dead_bytes += pack.dead_bytes;
            }
        }
        chosen
    }

    /// Hides a pack from look-ups, unless somebody relies on it.
    fn condemn(&self, number: PackNumber) -> bool {
        let hide = || self.store.index.set_visible(number, false);
        self.store.pins.condemn(number, hide)
    }

    /// Condemns and deletes a pack; false if somebody relies on it.
    pub fn delete(&self, number: PackNumber, name: &PackName) -> Result<bool> {
        self.store.check_poison()?;
        if !self.condemn(number) {
            return Ok(false);
        }
        // After an error the file may be there or not. It stays hidden, so
        // that nobody relies on it.
        self.store
            .backend
            .delete(&name.key())
            .map_err(|error| self.store.poisoned_by(error))?;
        self.store.index.remove(number);
        Ok(true)
    }

    /// Copies live records to the open pack, in groups of about a pack, and
    /// deletes the packs that they came from.
    fn compact(
        &self,
        packs: Vec<Judged>,
        copying: Copying,
        is_live: &IsLive<'_>,
        report: &mut SweepReport,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<()> {
        let mut packs = packs.into_iter().peekable();
        while packs.peek().is_some() {
            let mut group = Vec::new();
            let mut bytes = 0;
            while let Some(pack) = packs.next_if(|pack| {
                group.is_empty() || bytes + pack.live_bytes <= self.store.options.pack_bytes
            }) {
                bytes += pack.live_bytes;
                group.push(pack);
            }
            if let Some(has_room) = &self.room
                && !has_room(bytes)?
            {
                report.no_space = true;
                return Ok(());
            }
            match self.compact_group(&group, copying, is_live, keep_going) {
                Ok(None) => {
                    report.interrupted = true;
                    return Ok(());
                }
                Ok(Some((deleted, freed))) => {
                    report.packs_protected += group.len() as u64 - deleted;
                    report.packs_compacted += deleted;
                    report.bytes_freed += freed;
                }
                Err(error) if error.is_no_space() => {
                    report.no_space = true;
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Returns how many packs were deleted and how many bytes that freed;
    /// None if it was told to stop before that. What it had copied then is
    /// found by the next one, and not copied again.
    fn compact_group(
        &self,
        group: &[Judged],
        copying: Copying,
        is_live: &IsLive<'_>,
        keep_going: &dyn Fn() -> bool,
    ) -> Result<Option<(u64, u64)>> {
        let from: HashSet<PackNumber> = group.iter().map(|pack| pack.number).collect();
        let batch = self.store.begin();
        let mut copied = 0;
        let mut live = Vec::new();
        for pack in group {
            let (_, directory) = self.whole_directory(pack.number, &pack.info)?;
            let mut entries = directory.by_offset();
            entries.retain(|entry| is_live(entry.kind, &entry.id));
            live.push((pack, entries));
        }
        for (pack, entries) in &live {
            for entry in entries {
                if !keep_going() {
                    return Ok(None);
                }
                if self.has_elsewhere(&batch, entry, &from) {
                    continue;
                }
                let (mut stored, plain) =
                    self.store
                        .read_checked(pack.number, &pack.info.name, entry)?;
                if copying == Copying::Repacked {
                    stored.repack(&plain);
                }
                if batch.append(&stored)? {
                    copied += stored.record_len();
                }
            }
        }
        batch.settle()?;
        // Before anything goes, everything is read back from where it is
        // now, by its id.
        for (_, entries) in &live {
            for entry in entries {
                if !keep_going() {
                    return Ok(None);
                }
                self.store.read_back(entry, &from)?;
            }
        }
        let (mut deleted, mut freed) = (0, 0);
        for pack in group {
            if self.delete(pack.number, &pack.info.name)? {
                deleted += 1;
                freed += pack.info.file_len;
            }
        }
        Ok(Some((deleted, u64::saturating_sub(freed, copied))))
    }

    /// Whether a chunk is sound in a pack that stays; pins that.
    pub(super) fn has_elsewhere(
        &self,
        batch: &Batch,
        entry: &Entry,
        from: &HashSet<PackNumber>,
    ) -> bool {
        batch.contains_outside(entry.kind, &entry.id, from)
            && self.store.read_back(entry, from).is_ok()
    }
}

impl ChunkStore {
    /// A record and what it holds, which has its id. If it has not, or
    /// cannot be read, that is noted of its pack.
    fn read_checked(
        &self,
        number: PackNumber,
        name: &PackName,
        entry: &Entry,
    ) -> Result<(pack::Stored, Vec<u8>)> {
        let read = pack::read_record(&*self.backend, name, entry);
        let checked = read.map_err(ReadError::or_damaged).and_then(|stored| {
            let plain = stored.open(&self.keys).map_err(ReadError::Damaged)?;
            Ok((stored, plain))
        });
        checked.map_err(|error| {
            self.mark(number, &error);
            match error {
                ReadError::Io(error) => error,
                ReadError::Stale(detail) | ReadError::Damaged(detail) => {
                    ended(&Finding::of_record(*name, entry, detail))
                }
            }
        })
    }
}

fn damaged_pack(info: &PackInfo) -> Error {
    Error::Damaged {
        what: format!("pack {}", info.name),
        detail: "nothing is deleted while a pack is damaged".to_owned(),
    }
}

/// What was found ends the sweep.
fn ended(finding: &Finding) -> Error {
    Error::Damaged {
        what: "the packs, so nothing more is deleted".to_owned(),
        detail: finding.to_string(),
    }
}

#[cfg(test)]
mod tests;
