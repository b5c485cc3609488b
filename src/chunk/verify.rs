//! Reading everything that the packs hold, to find what is damaged.

use crate::chunk::store::{ChunkStore, Finding};
use crate::error::{Error, Result};
use crate::index::{PackInfo, PackNumber};
use crate::pack::{self, PackName, Reader};
use std::collections::{HashMap, HashSet};

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    /// Packs.
    pub packs: u64,
    /// Records that are whole and match their ids.
    pub chunks: u64,
    /// Bytes read.
    pub bytes: u64,
}

impl ChunkStore {
    /// Reads every record of every pack, unpacks and hashes it, and compares
    /// packs with their directories. What is wrong goes to `report`; it
    /// never stops at the first. `progress` gets bytes done and bytes in all.
    /// Fails only when packs cannot be listed.
    pub fn verify(
        &self,
        progress: &dyn Fn(u64, u64),
        report: &mut dyn FnMut(Finding),
    ) -> Result<Verified> {
        let mut told = HashSet::new();
        let findings = &mut |finding: Finding, is_unread: bool| {
            let pack = finding.pack().filter(|_| finding.is_damage());
            told.extend(pack);
            let number = pack.and_then(|pack| self.index.number(&pack));
            match number {
                // It may be read the next time.
                Some(number) if is_unread => self.index.doubt(number),
                Some(number) => self.index.mark_damaged(number),
                None => {}
            }
            report(finding);
        };
        let open = self.open_pack();
        let known: HashMap<PackName, PackInfo> = self
            .index
            .packs()
            .into_iter()
            .map(|(_, info)| (info.name, info))
            .collect();
        let mut packs = Vec::new();
        for (key, len) in self.backend.list(pack::PREFIX)? {
            match key.strip_prefix(pack::PREFIX).map(str::parse::<PackName>) {
                Some(Ok(name)) => packs.push((name, len)),
                _ => findings(Finding::Foreign { key }, false),
            }
        }
        let total = packs.iter().map(|(_, len)| len).sum();
        let mut verified = Verified::default();
        let mut missing = known.clone();
        for (name, found) in packs {
            progress(verified.bytes, total);
            missing.remove(&name);
            // Such a pack never changes; others grow while this reads.
            let fixed = known.get(&name).filter(|info| info.closed || info.earlier);
            let len = match fixed {
                Some(info) => {
                    if info.file_len != found {
                        let finding = Finding::PackLength {
                            pack: name,
                            expected: info.file_len,
                            found,
                        };
                        findings(finding, false);
                    }
                    found
                }
                None => self.readable_len(&name, open).min(found),
            };
            // Some of one that is being written may not be read now.
            let number = fixed.and_then(|_| self.index.number(&name));
            let doubts = number.and_then(|number| Some((number, self.index.doubts(number)?)));
            let mut found_in_it = Vec::new();
            match self.verify_pack(&name, len, fixed.is_none(), &mut |finding| {
                found_in_it.push(finding);
            }) {
                Ok(chunks) => verified.chunks += chunks,
                // Swept meanwhile.
                Err(Error::Missing { .. }) if !self.is_listed(&name) => {}
                Err(error) => found_in_it.push(Finding::PackUnreadable {
                    pack: name,
                    detail: error.to_string(),
                }),
            }
            // What cannot be read looks like damage all around it.
            let unread = |finding: &Finding| matches!(finding, Finding::PackUnreadable { .. });
            let is_unread = found_in_it.iter().any(unread);
            let is_whole = !found_in_it.iter().any(Finding::is_damage);
            for finding in found_in_it {
                findings(finding, is_unread);
            }
            if let Some((number, doubts)) = doubts.filter(|_| is_whole) {
                self.index.trust(number, doubts);
            }
            verified.packs += 1;
            verified.bytes += found;
        }
        for (name, info) in missing {
            // Else it was swept, or had no name yet.
            if self.is_listed(&name) && (info.closed || info.earlier) {
                findings(Finding::PackMissing { pack: name }, false);
            }
        }
        // What was found when it was opened, or read, and cannot be seen now.
        for (_, info) in self.index.packs() {
            if info.is_damaged() && !told.contains(&info.name) {
                report(Finding::Directory {
                    pack: info.name,
                    detail: "something in it was found damaged before".to_owned(),
                });
            }
        }
        progress(total, total);
        Ok(verified)
    }

    /// Whether a pack is there and no sweep has condemned it.
    fn is_listed(&self, name: &PackName) -> bool {
        let number = self.index.number(name);
        number.is_some_and(|number| self.index.is_visible(number))
    }

    /// How much of a pack of this run was whole at some moment.
    fn readable_len(&self, name: &PackName, open: Option<(PackNumber, PackName, u64)>) -> u64 {
        if let Some((.., written)) = open.filter(|(_, open, _)| open == name) {
            return written;
        }
        let info = self
            .index
            .number(name)
            .and_then(|number| self.index.info(number));
        info.map_or(0, |info| info.file_len)
    }

    /// Returns the number of sound records.
    fn verify_pack(
        &self,
        name: &PackName,
        len: u64,
        is_open: bool,
        findings: &mut dyn FnMut(Finding),
    ) -> Result<u64> {
        let store = self.options.store;
        let pack = Reader::over_unreadable(&*self.backend, name);
        let contents = pack.contents(store, len)?;
        for finding in contents.findings {
            // A pack that is open ends where it ends.
            if !(is_open && matches!(finding, Finding::TornTail { .. })) {
                findings(finding);
            }
        }
        let mut sound = 0;
        let mut wrong = Vec::new();
        let mut seen = HashMap::new();
        let scanned = pack.scan(contents.end, |entry, stored| {
            seen.insert(entry.id, *entry);
            match stored.open(&self.keys) {
                Ok(_) => sound += 1,
                Err(detail) => wrong.push(Finding::of_record(*name, entry, detail)),
            }
        })?;
        pack.unreadable().into_iter().for_each(&mut *findings);
        wrong.into_iter().for_each(&mut *findings);
        let mut reported: Vec<u64> = Vec::new();
        for finding in scanned.findings {
            if let Finding::Chunk { offset, .. } = finding {
                reported.push(offset);
            }
            match finding {
                // What that scan found was found before.
                _ if !contents.closed => {}
                Finding::TornTail { pack, offset, len } => {
                    findings(Finding::Range { pack, offset, len });
                }
                other => findings(other),
            }
        }
        // What is known to have been in it: by its own directory, or by what
        // was published when it was synced.
        let published;
        let directory = match self.index.number(name) {
            Some(number) if !contents.closed => {
                published = self.index.directory(number)?;
                &*published
            }
            _ => &contents.directory,
        };
        for entry in directory.entries() {
            // What came to an open pack since this began.
            if is_open && entry.end() > len {
                continue;
            }
            if seen.get(&entry.id) != Some(entry) && !reported.contains(&entry.offset()) {
                let detail = "its record was stored and is not there".to_owned();
                findings(Finding::of_record(*name, entry, detail));
            }
        }
        Ok(sound)
    }
}
