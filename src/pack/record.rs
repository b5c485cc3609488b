//! One chunk as it lies in a pack.

use super::{Entry, PackName, aligned, is_sealed, seal, u32_at};
use crate::backend::Backend;
use crate::chunk::{self, ChunkId, Codec, Keys, Kind};
use crate::error::Error;
use std::borrow::Cow;
use std::mem;

/// Bytes before the payload.
pub const HEADER_BYTES: usize = 88;
const MAGIC: &[u8; 4] = b"CHNK";

/// Bytes that a record with so much payload takes in a pack.
pub(super) fn record_len(stored_len: u32) -> u64 {
    aligned(HEADER_BYTES as u64 + u64::from(stored_len))
}

/// A chunk as it is stored: what compaction copies from pack to pack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The chunk.
    pub id: ChunkId,
    /// What it holds.
    pub kind: Kind,
    /// How the payload is packed.
    pub codec: Codec,
    /// Bytes when unpacked.
    pub plain_len: u32,
    /// The payload.
    pub payload: Vec<u8>,
}

impl Stored {
    /// Unpacks the payload and checks it against the id. The error says in
    /// words what is wrong.
    pub fn open(&self, keys: &Keys) -> Result<Vec<u8>, String> {
        self.check(keys, Cow::Borrowed(&self.payload))
    }

    /// [`Stored::open`] of what is not needed any more.
    pub fn into_plain(mut self, keys: &Keys) -> Result<Vec<u8>, String> {
        let payload = mem::take(&mut self.payload);
        self.check(keys, Cow::Owned(payload))
    }

    fn check(&self, keys: &Keys, payload: Cow<'_, [u8]>) -> Result<Vec<u8>, String> {
        let plain = chunk::decode(self.codec, payload, self.plain_len)?;
        let found = keys.id(self.kind, &plain);
        if found != self.id {
            return Err(format!("its content has the id {found}"));
        }
        Ok(plain)
    }

    /// Packs `plain`, which is what it holds, anew with more time; keeps
    /// what it has unless that gets shorter.
    pub fn repack(&mut self, plain: &[u8]) {
        let (codec, payload) = chunk::encode_dense(plain);
        if payload.len() < self.payload.len() {
            self.codec = codec;
            self.payload = payload.into_owned();
        }
    }

    /// Bytes that its record takes in a pack.
    pub fn record_len(&self) -> u64 {
        record_len(self.payload.len() as u32)
    }
}

/// The part of a record before its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub id: ChunkId,
    pub kind: Kind,
    pub codec: Codec,
    pub key: u32,
    pub plain_len: u32,
    pub stored_len: u32,
    pub payload_crc: u32,
}

impl Header {
    /// None unless these are the first bytes of a sound record.
    pub fn decode(bytes: &[u8]) -> Option<Header> {
        if bytes.len() < HEADER_BYTES || &bytes[..4] != MAGIC || !is_sealed(&bytes[..HEADER_BYTES])
        {
            return None;
        }
        let mut id = [0; 32];
        id.copy_from_slice(&bytes[48..80]);
        let header = Header {
            id: ChunkId(id),
            kind: Kind::from_number(bytes[4])?,
            codec: Codec::from_number(bytes[5])?,
            key: u32_at(bytes, 8),
            plain_len: u32_at(bytes, 12),
            stored_len: u32_at(bytes, 16),
            payload_crc: u32_at(bytes, 80),
        };
        let fits =
            header.plain_len <= header.kind.max_bytes() && header.stored_len <= header.plain_len;
        fits.then_some(header)
    }

    /// What is wrong with a payload, if anything is.
    pub fn check(&self, payload: &[u8]) -> Result<(), String> {
        if self.key != 0 {
            return Err(format!("it is encrypted with key {}", self.key));
        }
        if crc32fast::hash(payload) != self.payload_crc {
            return Err("the checksum of its bytes is wrong".to_owned());
        }
        Ok(())
    }
}

/// A whole record, padded.
pub(super) fn encode(stored: &Stored) -> Vec<u8> {
    let stored_len = stored.payload.len() as u32;
    let mut bytes = vec![0; record_len(stored_len) as usize];
    let (header, rest) = bytes.split_at_mut(HEADER_BYTES);
    header[..4].copy_from_slice(MAGIC);
    header[4] = stored.kind as u8;
    header[5] = stored.codec as u8;
    header[12..16].copy_from_slice(&stored.plain_len.to_le_bytes());
    header[16..20].copy_from_slice(&stored_len.to_le_bytes());
    header[48..80].copy_from_slice(&stored.id.0);
    header[80..84].copy_from_slice(&crc32fast::hash(&stored.payload).to_le_bytes());
    seal(header);
    rest[..stored.payload.len()].copy_from_slice(&stored.payload);
    bytes
}

/// Why a record could not be read.
#[derive(Debug)]
pub enum ReadError {
    /// The pack or the record is not where the index has it: it may be
    /// elsewhere. In words, what is there.
    Stale(String),
    /// The record is there and its bytes are wrong. In words, how.
    Damaged(String),
    /// The system did not read it.
    Io(Error),
}

impl ReadError {
    /// The same where nothing else than what is looked for may be there.
    pub fn or_damaged(self) -> ReadError {
        match self {
            ReadError::Stale(detail) => ReadError::Damaged(detail),
            error => error,
        }
    }
}

/// Reads the record of `entry` from its pack and checks everything but the
/// content against the id ([`Stored::open`] does).
pub fn read_record(
    backend: &dyn Backend,
    pack: &PackName,
    entry: &Entry,
) -> Result<Stored, ReadError> {
    let mut bytes = vec![0; HEADER_BYTES + entry.stored_len as usize];
    let read = match backend.get_range(&pack.key(), entry.offset(), &mut bytes) {
        Ok(read) => read,
        Err(Error::Missing { .. }) => {
            return Err(ReadError::Stale(format!("pack {pack} is missing")));
        }
        Err(error) => return Err(ReadError::Io(error)),
    };
    let place = || format!("pack {pack} at {}", entry.offset());
    if read < bytes.len() {
        return Err(ReadError::Stale(format!(
            "{}: the pack is too short",
            place()
        )));
    }
    let Some(header) = Header::decode(&bytes) else {
        return Err(ReadError::Stale(format!("{}: there is no record", place())));
    };
    if header.id != entry.id || header.kind != entry.kind {
        return Err(ReadError::Stale(format!(
            "{}: there is {} chunk {}",
            place(),
            header.kind,
            header.id
        )));
    }
    if (header.stored_len, header.plain_len) != (entry.stored_len, entry.plain_len) {
        return Err(ReadError::Stale(format!(
            "{}: its length is another",
            place()
        )));
    }
    bytes.drain(..HEADER_BYTES);
    let payload = bytes;
    header
        .check(&payload)
        .map_err(|detail| ReadError::Damaged(format!("{}: {detail}", place())))?;
    Ok(Stored {
        id: header.id,
        kind: header.kind,
        codec: header.codec,
        plain_len: header.plain_len,
        payload,
    })
}
