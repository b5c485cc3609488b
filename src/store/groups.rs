//! Groups: snapshots of several disks at one instant.
//!
//! All or none: a member's manifest names the group, and the member counts
//! only while the catalogue lists that group. So the catalogue's replacement
//! is the moment at which all members are there, or gone.

use super::*;
use crate::disk::{Swap, Taking};
use crate::events::{By, Event, What};
use crate::manifest::GroupRecord;
use crate::name::SnapshotName;
use crate::snapshot::Snapshot;

/// Disks of a group that are worked on at the same time; each waits for its
/// files to be on disk.
const AT_ONCE: usize = 8;

/// Does the same with each of several, some at a time, and answers what came
/// of it in their order.
fn on_each<A: Send, T: Send>(all: Vec<A>, work: impl Fn(A) -> Result<T> + Sync) -> Result<Vec<T>> {
    outcomes_of(all, After::Stop, work).into_iter().collect()
}

/// What becomes of those not begun yet when one has failed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum After {
    /// They are not begun.
    Stop,
    /// They are done all the same.
    GoOn,
}

/// [`on_each`] that answers the outcome of each that was begun.
fn outcomes_of<A: Send, T: Send>(
    all: Vec<A>,
    after_error: After,
    work: impl Fn(A) -> Result<T> + Sync,
) -> Vec<Result<T>> {
    let mut done: Vec<Result<T>> = Vec::new();
    let mut all = all.into_iter().peekable();
    while all.peek().is_some() && (after_error == After::GoOn || done.iter().all(Result::is_ok)) {
        let some: Vec<A> = all.by_ref().take(AT_ONCE).collect();
        let outcomes: Vec<Result<T>> = std::thread::scope(|scope| {
            let work = &work;
            let threads: Vec<_> = some
                .into_iter()
                .map(|one| scope.spawn(move || work(one)))
                .collect();
            let panicked = |_| {
                Err(Error::Poisoned {
                    what: "a group".into(),
                    cause: "a thread of it panicked".into(),
                })
            };
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(panicked))
                .collect()
        });
        done.extend(outcomes);
    }
    done
}

/// A group with those of its members that are there.
#[derive(Clone)]
pub struct Group {
    /// What is known of it.
    pub record: GroupRecord,
    /// By the disks' names.
    pub members: Vec<(Arc<Disk>, Arc<Snapshot>)>,
}

impl Store {
    /// Groups that have members, by name.
    pub fn groups(&self) -> Vec<Group> {
        let records: Vec<GroupRecord> = self.groups.lock().values().cloned().collect();
        let mut groups: Vec<Group> = records.into_iter().map(|one| self.group_of(one)).collect();
        groups.retain(|group| !group.members.is_empty());
        groups.sort_by(|a, b| a.record.name.cmp(&b.record.name));
        groups
    }

    /// The group of that name.
    pub fn group(&self, name: &str) -> Option<Group> {
        self.groups()
            .into_iter()
            .find(|group| group.record.name == name)
    }

    /// Writes a group's record in place of one that cannot be read.
    pub(crate) fn put_group(&self, record: GroupRecord) -> Result<()> {
        self.engine.manifests.replace_unreadable(&record)?;
        self.groups.lock().insert(record.id, record);
        Ok(())
    }

    /// The group of that number.
    pub fn group_by_number(&self, number: u32) -> Option<Group> {
        self.groups()
            .into_iter()
            .find(|group| group.record.number == number)
    }

    fn group_of(&self, record: GroupRecord) -> Group {
        let mut members: Vec<(Arc<Disk>, Arc<Snapshot>)> = record
            .members
            .iter()
            .filter_map(|(disk, snapshot)| {
                let disk = self.disk_by_id(*disk)?;
                let mut snapshots = disk.list_snapshots().into_iter();
                let snapshot = snapshots.find(|found| found.id == *snapshot)?;
                Some((disk, snapshot))
            })
            .collect();
        members.sort_by_key(|(disk, _)| disk.name());
        Group { record, members }
    }

    /// Takes a snapshot of several disks at one instant, all or none;
    /// durable when this returns. Without `disks`, of all that have an image.
    pub fn take_group(
        &self,
        name: SnapshotName,
        disks: Option<Vec<Arc<Disk>>>,
        owner: Owner,
    ) -> Result<Group> {
        let name: String = name.into();
        self.check_new_group(&name)?;
        let named = disks.is_some();
        let mut disks = disks.unwrap_or_else(|| self.disks());
        disks.sort_by_key(|disk| disk.number());
        disks.dedup_by_key(|disk| disk.number());
        disks.retain(|disk| named || disk.image_writable());
        if disks.is_empty() {
            return Err(Error::NoImage {
                disk: "any disk of the store".into(),
            });
        }
        on_each(disks.iter().collect(), |disk| {
            disk.check_new_name(&name)?;
            disk.prepare_to_take()
        })?;
        let _settling = self.engine.settling.read();
        // In the order of their numbers, so that two groups do not wait for
        // each other.
        let metas: Vec<_> = disks.iter().map(|disk| disk.lock_meta()).collect();
        let taking = Taking {
            group: Some(Uuid::new_v4()),
            ..Taking::manual(By::User(owner.uid))
        };
        for disk in &disks {
            disk.check_new_name(&name)?;
            disk.check_quota(taking.kind)?;
            disk.check_live()?;
        }
        let each = || disks.iter().zip(&metas);
        // From here to the instant nobody can make these images longer.
        let begun = outcomes_of(each().collect(), After::Stop, |(disk, meta)| {
            disk.begin_swap(meta)
        });
        if begun.iter().any(Result::is_err) {
            // Manifests name new heads already: those have to be written to,
            // or what is written now is behind a layer's end after a crash.
            let mut outcome = Ok(());
            for ((disk, meta), begun) in each().zip(begun) {
                let ended = begun.and_then(|mut swap| {
                    disk.swap(meta, &mut swap);
                    disk.end_swap(swap)
                });
                outcome = outcome.and(ended.map(drop));
            }
            return Err(outcome.err().unwrap_or(Error::Closing));
        }
        let mut swaps: Vec<Swap<'_>> = begun.into_iter().flatten().collect();
        // The instant: while nobody can begin to write to any disk.
        {
            let _gate = self.engine.gate.write();
            for ((disk, meta), swap) in each().zip(&mut swaps) {
                disk.swap(meta, swap);
            }
        }
        // All, whatever fails: a head that was written to and is not frozen
        // could never be sealed, nor what lies over it.
        let ended = each().zip(swaps).collect();
        let ended = outcomes_of(ended, After::GoOn, |((disk, _), swap)| disk.end_swap(swap));
        let frozen = ended.into_iter().collect::<Result<Vec<_>>>()?;
        let taken = on_each(each().zip(frozen).collect(), |((disk, meta), frozen)| {
            let (mut next, snapshot) = disk.with_snapshot(&name, frozen, &taking);
            let named = disk.write_manifest(meta, &mut next)?;
            Ok((next, named, snapshot))
        })?;
        let mut catalogue = self.catalogue.lock();
        // Another one of this name, of other disks, may have been faster.
        self.check_new_group(&name)?;
        let mut next = catalogue.clone();
        let record = GroupRecord {
            id: taking.group.unwrap_or_default(),
            number: policies::take_number(&mut next)?,
            name,
            owner,
            created_ns: taken
                .first()
                .map_or(0, |(.., snapshot)| snapshot.created_ns),
            members: disks
                .iter()
                .zip(&taken)
                .map(|(disk, (.., snapshot))| (disk.id(), snapshot.id))
                .collect(),
        };
        self.forget_empty_groups(&catalogue, &mut next);
        next.entries.insert(record.id, EntryKind::Group);
        self.engine.manifests.replace(&record)?;
        self.replace_catalogue(&mut catalogue, next)?;
        self.groups.lock().insert(record.id, record.clone());
        let mut members = Vec::new();
        for ((disk, meta), (next, named, snapshot)) in each().zip(taken) {
            disk.show(meta, next, named);
            disk.note_taken(&snapshot, &taking);
            members.push((disk.clone(), snapshot));
        }
        // Not before its members show, or it looks as if it had none.
        drop(catalogue);
        drop(metas);
        let names: Vec<String> = disks.iter().map(|disk| disk.name()).collect();
        self.engine.events.note(
            Event::new(What::Taken)
                .group(&record.name)
                .by(&taking.by)
                .reason(format!("of {}", names.join(", "))),
        );
        Ok(Group { record, members })
    }

    fn check_new_group(&self, name: &str) -> Result<()> {
        match self.group(name) {
            None => Ok(()),
            Some(_) => Err(Error::Exists {
                what: "group",
                name: name.to_owned(),
            }),
        }
    }

    /// Takes groups off the catalogue whose members were all deleted.
    /// One of a disk that could not be read may still have them.
    fn forget_empty_groups(&self, catalogue: &Catalogue, next: &mut Catalogue) {
        let records: Vec<GroupRecord> = self.groups.lock().values().cloned().collect();
        for record in records {
            let id = record.id;
            let known = record.members.iter().all(|(disk, _)| {
                self.disk_by_id(*disk).is_some() || !catalogue.entries.contains_key(disk)
            });
            if known && self.group_of(record).members.is_empty() {
                next.entries.remove(&id);
                self.groups.lock().remove(&id);
            }
        }
    }

    /// Deletes all members of a group, or none.
    pub fn delete_group(&self, name: &str, by: &By) -> Result<()> {
        let missing = || Error::Missing {
            what: "group",
            name: name.to_owned(),
        };
        let found = self.group(name).ok_or_else(missing)?;
        let closed = |(disk, snapshot): &(Arc<Disk>, Arc<Snapshot>)| {
            disk.snapshot_settles_closed(snapshot.number)
        };
        let open: Vec<String> = (found.members.iter().filter(|member| !closed(member)))
            .map(|(disk, _)| format!("the one of {} is open", disk.name()))
            .collect();
        self.engine.sync_grafts()?;
        let _settling = self.engine.settling.read();
        let mut disks: Vec<Arc<Disk>> =
            found.members.iter().map(|(disk, _)| disk.clone()).collect();
        disks.sort_by_key(|disk| disk.number());
        let metas: Vec<_> = disks.iter().map(|disk| disk.lock_meta()).collect();
        let found = self.group_of(found.record);
        let mut held = open;
        let mut kept_closed = Vec::new();
        for (disk, snapshot) in &found.members {
            match disk.keep_to_delete(snapshot) {
                Ok(kept) => kept_closed.push(kept),
                Err(why) => {
                    snapshot.touch();
                    held.push(format!("{}: {}", disk.name(), why.join(", ")));
                }
            }
        }
        if !held.is_empty() {
            return Err(Error::Busy {
                what: format!("the group {name}"),
                by: held,
            });
        }
        // And since then, from what was open still.
        self.engine.sync_grafts()?;
        let mut catalogue = self.catalogue.lock();
        let mut next = catalogue.clone();
        next.entries.remove(&found.record.id);
        self.replace_catalogue(&mut catalogue, next)?;
        self.groups.lock().remove(&found.record.id);
        drop(catalogue);
        let mut outcome = Ok(());
        for (disk, snapshot) in &found.members {
            let at = disks
                .iter()
                .position(|other| other.number() == disk.number());
            let Some(meta) = at.and_then(|at| metas.get(at)) else {
                continue;
            };
            // It is gone whatever becomes of this.
            let name = snapshot.name();
            outcome = outcome.and(disk.forget_now(meta, &name));
            disk.note_deleted(&name, by);
        }
        drop(metas);
        let event = Event::new(What::Deleted).group(name).by(by);
        self.engine.events.note(event);
        self.engine.work.raise(|work| {
            work.seal = true;
            work.collect = true;
        });
        outcome?;
        self.engine
            .manifests
            .delete(&manifest::entry_key(&found.record.id, EntryKind::Group))
    }

    /// Renames a group; its members keep their names.
    pub fn rename_group(&self, from: &str, to: SnapshotName) -> Result<()> {
        // Nobody takes the name, or deletes the group, before this is done.
        let _catalogue = self.catalogue.lock();
        let found = self.group(from).ok_or_else(|| Error::Missing {
            what: "group",
            name: from.to_owned(),
        })?;
        if from == to.as_str() {
            return Ok(());
        }
        self.check_new_group(to.as_str())?;
        let record = GroupRecord {
            name: to.into(),
            ..found.record
        };
        self.engine.manifests.replace(&record)?;
        let event = Event::new(What::Renamed).group(&record.name);
        self.engine
            .events
            .note(event.reason(format!("it was {from}")));
        self.groups.lock().insert(record.id, record);
        Ok(())
    }
}
