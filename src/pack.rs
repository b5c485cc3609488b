//! Packs: append-only files in which chunks are kept.
//!
//! ```text
//! offset 0      header, 64 bytes
//!        64     record, mark, record, …  each starts at a multiple of 64
//!        d      directory                only in a closed pack
//!        n-64   trailer, 64 bytes        only in a closed pack
//!
//! header     0 magic "SNAPPACK"   8 format u16      10 zero u16
//!           12 incompat flags u32 16 store uuid     32 writer's epoch u64
//!           40 pack uuid          56 zero u32       60 CRC-32 of 0..60
//! record     0 magic "CHNK"       4 kind u8          5 codec u8
//!            6 zero u16           8 key id u32      12 plain length u32
//!           16 stored length u32 20 room for a nonce, 24 bytes of zero
//!           44 zero u32          48 chunk id        80 CRC-32 of the payload
//!           84 CRC-32 of 0..84   88 payload, then zeros up to 64
//! mark       0 magic "PACKSYNC"   8 pack uuid       24 zero
//!           60 CRC-32 of 0..60
//! directory  0 magic "PACKDIR\0"  8 pack uuid       24 count u32
//!           28 CRC-32 of entries 32 zero            60 CRC-32 of 0..60
//!           64 entries of 48 bytes, ordered by id, then zeros up to 64:
//!                0 chunk id      32 kind u8         33 zero
//!               36 offset / 64 u32  40 stored u32   44 plain length u32
//! trailer    0 magic "PACKEND\0"  8 pack uuid       24 directory offset u64
//!           32 directory length u64                 40 count u32
//!           44 CRC-32 of entries 48 zero            60 CRC-32 of 0..60
//! ```
//!
//! All numbers are little-endian. The CRC-32 is that of IEEE 802.3.
//!
//! Why so: a record says all about itself, so a pack without its directory
//! (a crash came first) or with damage in it is read by scanning; records
//! start at multiples of 64 so that a scan finds its feet again. A payload
//! starts at 24 beyond a multiple of 64: the records of a pack that lies in
//! a guest's disk, where files start at multiples of 512, are never taken
//! for records of ours. A mark is written before the first record after a
//! sync: all that comes before it was on disk. So a scan tells damage from
//! what a crash left of writes that nobody was told of, which may be torn
//! anywhere, not only at the end. The directory, which is written after a
//! sync, is such a mark too. The directory lets an index be built and a sweep be
//! decided without reading any payload, and has no more entries than the
//! index keeps in one value. The trailer carries the pack's uuid, which a
//! guest cannot know.
//!
//! A pack is named `<epoch>-<uuid>`, is closed once and never changed
//! afterwards, and no name is used again: what was once read about a pack
//! stays true until the pack is gone.

use crate::error::Error;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;
use uuid::Uuid;

mod directory;
mod finding;
mod open;
mod reader;
mod record;
mod scan;
mod writer;

pub use directory::{Directory, ENTRY_BYTES, Entry};
pub use finding::Finding;
pub use open::Contents;
pub use reader::Reader;
pub use record::{HEADER_BYTES as RECORD_HEADER_BYTES, ReadError, Stored, read_record};
pub use writer::PackWriter;

/// Where packs are kept in the backend.
pub const PREFIX: &str = "packs/";
/// What records, directory and trailer are aligned to; also the length of the
/// header and the trailer.
pub const ALIGN: u64 = 64;
/// The most records of a pack, so that its directory stays under a megabyte.
pub const MAX_RECORDS: usize = 16384;
/// The newest format that is written and read.
pub const FORMAT: u16 = 1;

const PACK_MAGIC: &[u8; 8] = b"SNAPPACK";
const MARK_MAGIC: &[u8; 8] = b"PACKSYNC";
const DIRECTORY_MAGIC: &[u8; 8] = b"PACKDIR\0";
const TRAILER_MAGIC: &[u8; 8] = b"PACKEND\0";

/// What names a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackName {
    /// The epoch of its writer.
    pub epoch: u64,
    /// Never used twice.
    pub uuid: Uuid,
}

impl PackName {
    /// A name never used before.
    pub fn random(epoch: u64) -> PackName {
        PackName {
            epoch,
            uuid: Uuid::new_v4(),
        }
    }

    /// The pack's key in the backend.
    pub fn key(&self) -> String {
        format!("{PREFIX}{self}")
    }
}

impl fmt::Display for PackName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{}", self.epoch, self.uuid.simple())
    }
}

impl Serialize for PackName {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for PackName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<PackName, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl FromStr for PackName {
    type Err = Error;

    fn from_str(text: &str) -> Result<PackName, Error> {
        let parsed = text.split_once('-').and_then(|(epoch, uuid)| {
            Some(PackName {
                epoch: u64::from_str_radix(epoch, 16).ok()?,
                uuid: Uuid::try_parse(uuid).ok()?,
            })
        });
        match parsed {
            // One spelling only.
            Some(name) if name.to_string() == text => Ok(name),
            _ => Err(Error::InvalidArgument {
                what: format!("{text:?} is not the name of a pack"),
            }),
        }
    }
}

/// The 64 bytes that a pack starts with.
pub(crate) fn encode_header(name: &PackName, store: Uuid) -> [u8; ALIGN as usize] {
    let mut bytes = [0; ALIGN as usize];
    bytes[..8].copy_from_slice(PACK_MAGIC);
    bytes[8..10].copy_from_slice(&FORMAT.to_le_bytes());
    bytes[16..32].copy_from_slice(store.as_bytes());
    bytes[32..40].copy_from_slice(&name.epoch.to_le_bytes());
    bytes[40..56].copy_from_slice(name.uuid.as_bytes());
    seal(&mut bytes);
    bytes
}

/// What says that all before it was synced.
pub(crate) fn encode_mark(pack: Uuid) -> [u8; ALIGN as usize] {
    let mut bytes = [0; ALIGN as usize];
    bytes[..8].copy_from_slice(MARK_MAGIC);
    bytes[8..24].copy_from_slice(pack.as_bytes());
    seal(&mut bytes);
    bytes
}

/// Rounds up to where the next record starts.
pub(crate) fn aligned(len: u64) -> u64 {
    len.next_multiple_of(ALIGN)
}

/// Puts the checksum of all bytes before it into the last four.
pub(crate) fn seal(bytes: &mut [u8]) {
    let at = bytes.len() - 4;
    let crc = crc32fast::hash(&bytes[..at]);
    bytes[at..].copy_from_slice(&crc.to_le_bytes());
}

/// Whether the last four bytes are the checksum of those before.
pub(crate) fn is_sealed(bytes: &[u8]) -> bool {
    let at = bytes.len() - 4;
    u32_at(bytes, at) == crc32fast::hash(&bytes[..at])
}

/// Reads a number that the caller knows to be inside.
pub(crate) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// Reads a number that the caller knows to be inside.
pub(crate) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}

#[cfg(test)]
mod tests;
