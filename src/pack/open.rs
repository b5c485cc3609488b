//! What a pack holds: by its trailer and directory, else by a scan.

use super::directory::{Trailer, find_among, is_directory, place_of};
use super::{
    ALIGN, Directory, Entry, FORMAT, Finding, PACK_MAGIC, PackName, Reader, encode_header,
    is_sealed,
};
use crate::chunk::ChunkId;
use crate::error::{Error, Result};
use uuid::Uuid;

/// What was learned from a pack itself.
#[derive(Debug)]
pub struct Contents {
    /// Its whole records.
    pub directory: Directory,
    /// Whether trailer and directory are sound.
    pub closed: bool,
    /// Where its records end.
    pub end: u64,
    /// What is wrong with it.
    pub findings: Vec<Finding>,
}

impl Reader<'_> {
    /// What is wrong with a pack's first 64 bytes, if anything is. A pack of a
    /// newer format is an error, not a finding: nothing in it can be judged.
    pub fn check_header(&self, store: Uuid) -> Result<Option<Finding>> {
        let finding = |detail: &str| {
            Ok(Some(Finding::PackHeader {
                pack: self.pack,
                detail: detail.to_owned(),
            }))
        };
        let Some(bytes) = self.read_all(0, ALIGN as usize)? else {
            return finding("the file is shorter than a header");
        };
        if !is_header(&bytes) {
            return finding("it is damaged");
        }
        let format = u16::from_le_bytes([bytes[8], bytes[9]]);
        if format > FORMAT || bytes[12..16] != [0; 4] {
            return Err(Error::FormatNewer {
                found: format!("pack format {format}, flags {:02x?}", &bytes[12..16]),
                known: format!("pack format {FORMAT} without flags"),
            });
        }
        if bytes != encode_header(&self.pack, store) {
            return finding("it belongs to another pack or another store");
        }
        Ok(None)
    }

    /// Whether a pack begins with a whole header that is another pack's or
    /// another store's: somebody put it there, and it may be all there is of it.
    pub fn is_foreign(&self, store: Uuid) -> Result<bool> {
        let header = self.read_all(0, ALIGN as usize)?;
        Ok(header
            .is_some_and(|header| is_header(&header) && header != encode_header(&self.pack, store)))
    }

    /// The trailer of a pack of `len` bytes; None if it has no sound one.
    pub fn trailer(&self, len: u64) -> Result<Option<Trailer>> {
        if len < 2 * ALIGN {
            return Ok(None);
        }
        let bytes = self.read_all(len - ALIGN, ALIGN as usize)?;
        Ok(bytes.and_then(|bytes| Trailer::decode(&bytes, self.pack.uuid, len)))
    }

    /// The entry of a chunk in a closed pack of `len` bytes and `count` records,
    /// looked for in the few kilobytes of the directory where it should be. They
    /// are not checked: the record has to confirm it. None proves nothing.
    pub fn glance(&self, len: u64, count: u64, id: &ChunkId) -> Result<Option<Entry>> {
        let Some((at, bytes)) = place_of(id, count, len) else {
            return Ok(None);
        };
        let bytes = self.read_all(at, bytes)?;
        Ok(bytes.and_then(|bytes| find_among(&bytes, id, count, len)))
    }

    /// What a pack of `len` bytes holds: by its directory if that is sound, else
    /// by reading all of it.
    pub fn contents(&self, store: Uuid, len: u64) -> Result<Contents> {
        let pack = &self.pack;
        let mut findings: Vec<Finding> = self.check_header(store)?.into_iter().collect();
        let trailer = self.trailer(len)?;
        if let Some(trailer) = trailer {
            let bytes = (len - ALIGN - trailer.offset) as usize;
            let bytes = self.read_all(trailer.offset, bytes)?;
            let entries = bytes
                .as_deref()
                .and_then(|bytes| sound_entries(bytes, pack, &trailer));
            let directory = entries.and_then(|entries| Directory::decode(entries, trailer.offset));
            if let Some(directory) = directory {
                return Ok(Contents {
                    directory,
                    closed: true,
                    end: trailer.offset,
                    findings,
                });
            }
            findings.push(Finding::Directory {
                pack: *pack,
                detail: "its entries are damaged".to_owned(),
            });
        }
        let end = trailer.map_or(len, |trailer| trailer.offset);
        let mut scanned = self.scan(end, |_, _| ())?;
        if trailer.is_none() && scanned.directory_follows {
            // A crash came while it was closed; its records were synced before.
            findings.push(Finding::TornTail {
                pack: *pack,
                offset: scanned.end,
                len: len - scanned.end,
            });
        }
        if let Some(trailer) = trailer {
            // It was closed, so its last records were whole once.
            for finding in &mut scanned.findings {
                if let Finding::TornTail { pack, offset, len } = *finding {
                    *finding = Finding::Range { pack, offset, len };
                }
            }
            if scanned.directory.entries().len() < trailer.count as usize
                && scanned.findings.is_empty()
            {
                findings.push(Finding::PackLength {
                    pack: *pack,
                    expected: end,
                    found: scanned.end,
                });
            }
        }
        findings.append(&mut scanned.findings);
        Ok(Contents {
            directory: scanned.directory,
            closed: false,
            end: scanned.end,
            findings,
        })
    }
}

/// Whether these bytes are a whole header of some pack.
fn is_header(bytes: &[u8]) -> bool {
    is_sealed(bytes) && &bytes[..8] == PACK_MAGIC
}

/// The entries' bytes, if directory and trailer agree on them.
fn sound_entries<'a>(bytes: &'a [u8], pack: &PackName, trailer: &Trailer) -> Option<&'a [u8]> {
    let (header, rest) = bytes.split_at_checked(ALIGN as usize)?;
    let entries = rest.get(..trailer.count as usize * super::ENTRY_BYTES)?;
    let sound = is_directory(header, pack.uuid)
        && super::u32_at(header, 24) == trailer.count
        && super::u32_at(header, 28) == trailer.crc
        && crc32fast::hash(entries) == trailer.crc;
    sound.then_some(entries)
}
