//! Writing one pack.

use super::record::{self, Stored};
use super::{ALIGN, Directory, Entry, PackName, encode_header, encode_mark};
use crate::backend::{Appender, Backend};
use crate::error::{Error, Result};
use uuid::Uuid;

/// A pack that is being written.
pub struct PackWriter {
    name: PackName,
    appender: Box<dyn Appender>,
    entries: Vec<Entry>,
    synced: u64,
    /// Whether a mark comes before the next record.
    mark_due: bool,
}

impl PackWriter {
    /// Starts a pack. Its name is durable after the first sync, its header
    /// never later than its name: a pack whose header is wrong is damaged,
    /// and not what a crash left.
    pub fn create(backend: &dyn Backend, name: PackName, store: Uuid) -> Result<PackWriter> {
        let appender = backend.append_new(&name.key(), &encode_header(&name, store))?;
        Ok(PackWriter {
            name,
            appender,
            entries: Vec::new(),
            synced: 0,
            mark_due: false,
        })
    }

    /// The pack's name.
    pub fn name(&self) -> PackName {
        self.name
    }

    /// Appends a record; durable after the next sync. After a "no space"
    /// error the pack is as before.
    pub fn append(&mut self, stored: &Stored) -> Result<Entry> {
        let mark = if self.mark_due { ALIGN } else { 0 };
        let offset = self.appender.len() + mark;
        let entry = Entry::new(
            stored.id,
            stored.kind,
            offset,
            u32::try_from(stored.payload.len()).unwrap_or(u32::MAX),
            stored.plain_len,
        )
        .ok_or_else(|| Error::InvalidArgument {
            what: format!("a {} chunk of {} bytes", stored.kind, stored.plain_len),
        })?;
        let mut bytes = record::encode(stored);
        if self.mark_due {
            bytes.splice(..0, encode_mark(self.name.uuid));
        }
        self.appender.append(&bytes)?;
        self.mark_due = false;
        self.entries.push(entry);
        Ok(entry)
    }

    /// When this returns, all records so far are on disk.
    pub fn sync(&mut self) -> Result<()> {
        if self.synced < self.appender.len() {
            self.appender.sync()?;
            self.synced = self.appender.len();
            self.mark_due = true;
        }
        Ok(())
    }

    /// Syncs, appends the directory, syncs, and appends the trailer, which is
    /// durable after the next sync. So a directory shows that the records
    /// before it were whole once, and a trailer that the directory was. No
    /// record may follow. After a "no space" error the pack is readable by
    /// scanning.
    pub fn close(&mut self) -> Result<()> {
        self.sync()?;
        let (directory, trailer) = self
            .directory()
            .encode_end(self.name.uuid, self.appender.len());
        self.appender.append(&directory)?;
        self.sync()?;
        self.appender.append(&trailer)
    }

    /// What it holds, in the order in which it was appended.
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// What it holds.
    pub fn directory(&self) -> Directory {
        Directory::new(self.entries.clone())
    }

    /// Bytes so far.
    pub fn len(&self) -> u64 {
        self.appender.len()
    }

    /// Whether there is no record in it.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether all of it is on disk.
    pub fn is_synced(&self) -> bool {
        self.synced == self.appender.len()
    }
}
