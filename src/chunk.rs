//! What a chunk is called and how its bytes are packed.
//!
//! A chunk is an immutable piece of bytes that is known by its content: the
//! id is a BLAKE3 hash keyed with the store's key, with a different key for
//! each kind, so that nobody can pass off a guest's data as a map page.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

pub mod pins;
pub mod salvage;
pub mod store;
pub mod sweep;
pub mod verify;

/// The longest data chunk, in bytes: the largest chunk size of a store.
pub const MAX_DATA_BYTES: u32 = 1 << 20;
/// The longest map page or root record, in bytes.
pub const MAX_PAGE_BYTES: u32 = 64 << 10;

/// A chunk's content address: 32 bytes, uniformly distributed.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ChunkId(pub [u8; 32]);

impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ChunkId({self})")
    }
}

impl FromStr for ChunkId {
    type Err = Error;

    fn from_str(text: &str) -> Result<ChunkId> {
        let invalid = || Error::InvalidArgument {
            what: format!("{text:?} is not a chunk id of 64 lower-case hexadecimal digits"),
        };
        let digits = text.as_bytes();
        if digits.len() != 64 {
            return Err(invalid());
        }
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(invalid()),
        };
        let mut id = [0; 32];
        for (byte, pair) in id.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = value(pair[0])? << 4 | value(pair[1])?;
        }
        Ok(ChunkId(id))
    }
}

impl From<ChunkId> for String {
    fn from(id: ChunkId) -> String {
        id.to_string()
    }
}

impl TryFrom<String> for ChunkId {
    type Error = Error;

    fn try_from(text: String) -> Result<ChunkId> {
        text.parse()
    }
}

/// What a chunk holds. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Kind {
    /// A piece of a disk.
    Data = 1,
    /// A page of a map.
    Page = 2,
    /// The root record of a map.
    Root = 3,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Kind; 3] = [Kind::Data, Kind::Page, Kind::Root];

    /// The kind that is `number` on disk.
    pub fn from_number(number: u8) -> Option<Kind> {
        Kind::ALL.into_iter().find(|kind| *kind as u8 == number)
    }

    /// The most bytes that a chunk of this kind may have when unpacked.
    pub fn max_bytes(self) -> u32 {
        match self {
            Kind::Data => MAX_DATA_BYTES,
            Kind::Page | Kind::Root => MAX_PAGE_BYTES,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Data => "data",
            Kind::Page => "page",
            Kind::Root => "root",
        })
    }
}

/// The keys that ids are computed with.
#[derive(Clone)]
pub struct Keys {
    data: [u8; 32],
    page: [u8; 32],
    root: [u8; 32],
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keys")
    }
}

impl Keys {
    /// Derives them from the store's key.
    pub fn new(store_key: &[u8; 32]) -> Keys {
        Keys {
            data: blake3::derive_key("snapdisk 1 chunk id of data", store_key),
            page: blake3::derive_key("snapdisk 1 chunk id of a map page", store_key),
            root: blake3::derive_key("snapdisk 1 chunk id of a map root", store_key),
        }
    }

    /// The id of these bytes as a chunk of this kind.
    pub fn id(&self, kind: Kind, plain: &[u8]) -> ChunkId {
        let key = match kind {
            Kind::Data => &self.data,
            Kind::Page => &self.page,
            Kind::Root => &self.root,
        };
        ChunkId(*blake3::keyed_hash(key, plain).as_bytes())
    }
}

/// How a chunk's bytes are stored. The numbers are on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Codec {
    /// As they are.
    Raw = 0,
    /// One zstd frame.
    Zstd = 1,
}

impl Codec {
    /// The codec that is `number` on disk.
    pub fn from_number(number: u8) -> Option<Codec> {
        match number {
            0 => Some(Codec::Raw),
            1 => Some(Codec::Zstd),
            _ => None,
        }
    }
}

/// The fastest level: 3 costs half as much again and gains 4 % on a system
/// image.
const FAST_LEVEL: i32 = 1;
/// The level where nobody waits.
const DENSE_LEVEL: i32 = 3;

thread_local! {
    /// A context is some hundred kilobytes that would be cleared for every
    /// chunk. With its level; a thread uses one.
    static COMPRESSOR: RefCell<Option<(i32, zstd::bulk::Compressor<'static>)>> =
        const { RefCell::new(None) };
    static DECOMPRESSOR: RefCell<Option<zstd::bulk::Decompressor<'static>>> =
        const { RefCell::new(None) };
}

/// Packs a chunk's bytes: zstd where that saves at least a sixteenth, else as
/// they are. Never longer than `plain`.
pub fn encode(plain: &[u8]) -> (Codec, Cow<'_, [u8]>) {
    encode_at(FAST_LEVEL, plain)
}

/// [`encode`] at a level that takes longer and mostly gets smaller.
pub fn encode_dense(plain: &[u8]) -> (Codec, Cow<'_, [u8]>) {
    encode_at(DENSE_LEVEL, plain)
}

fn encode_at(level: i32, plain: &[u8]) -> (Codec, Cow<'_, [u8]>) {
    let packed = COMPRESSOR.with_borrow_mut(|compressor| {
        let (_, compressor) = match compressor {
            Some(made) if made.0 == level => made,
            other => other.insert((level, zstd::bulk::Compressor::new(level)?)),
        };
        let mut packed = vec![0; plain.len() - plain.len() / 16];
        let len = compressor.compress_to_buffer(plain, &mut packed[..])?;
        packed.truncate(len);
        std::io::Result::Ok(packed)
    });
    match packed {
        Ok(packed) if packed.len() <= plain.len() - plain.len().div_ceil(16) => {
            (Codec::Zstd, Cow::Owned(packed))
        }
        // An error is a result that does not fit: not smaller enough.
        _ => (Codec::Raw, Cow::Borrowed(plain)),
    }
}

/// Unpacks to exactly `plain_len` bytes, whatever `stored` claims; the caller
/// has checked that length against [`Kind::max_bytes`]. The error says what
/// is wrong, in words.
pub fn decode(codec: Codec, stored: Cow<'_, [u8]>, plain_len: u32) -> Result<Vec<u8>, String> {
    match codec {
        Codec::Raw if stored.len() == plain_len as usize => Ok(stored.into_owned()),
        Codec::Raw => Err(format!("{} bytes instead of {plain_len}", stored.len())),
        Codec::Zstd => DECOMPRESSOR.with_borrow_mut(|decompressor| {
            let decompressor = match decompressor {
                Some(decompressor) => decompressor,
                none => {
                    none.insert(zstd::bulk::Decompressor::new().map_err(|error| error.to_string())?)
                }
            };
            let mut plain = Vec::with_capacity(plain_len as usize);
            decompressor
                .decompress_to_buffer(&stored, &mut plain)
                .map_err(|error| format!("its zstd frame does not unpack: {error}"))?;
            if plain.len() != plain_len as usize {
                return Err(format!("{} bytes instead of {plain_len}", plain.len()));
            }
            Ok(plain)
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_bytes_have_another_id_in_another_kind_and_store() {
        let (one, two) = (Keys::new(&[1; 32]), Keys::new(&[2; 32]));
        let ids = [
            one.id(Kind::Data, b"x"),
            one.id(Kind::Page, b"x"),
            one.id(Kind::Root, b"x"),
            two.id(Kind::Data, b"x"),
        ];
        for (at, id) in ids.iter().enumerate() {
            assert!(!ids[..at].contains(id));
        }
        assert_eq!(one.id(Kind::Data, b"x"), ids[0]);
    }

    #[test]
    fn an_id_is_64_digits_both_ways() -> Result<()> {
        let id = Keys::new(&[0; 32]).id(Kind::Data, b"");
        assert_eq!(id.to_string().parse::<ChunkId>()?, id);
        let json = serde_json::to_string(&id).map_err(|error| Error::InvalidArgument {
            what: error.to_string(),
        })?;
        assert_eq!(json, format!("\"{id}\""));
        let text = id.to_string();
        for bad in [
            "",
            &text[1..],
            &text.to_uppercase(),
            &format!("é{}", &text[2..]),
        ] {
            assert!(bad.parse::<ChunkId>().is_err(), "{bad}");
        }
        Ok(())
    }

    #[test]
    fn bytes_come_back_and_are_packed_only_where_that_saves_a_sixteenth() {
        let text = b"the same again ".repeat(4000);
        let (codec, stored) = encode(&text);
        assert_eq!(codec, Codec::Zstd);
        assert!(stored.len() < text.len() / 10);
        assert_eq!(decode(codec, stored, text.len() as u32), Ok(text.clone()));

        let mut noise = vec![0; 65536];
        blake3::Hasher::new().finalize_xof().fill(&mut noise);
        let (codec, stored) = encode(&noise);
        assert_eq!((codec, &stored[..]), (Codec::Raw, &noise[..]));
        assert_eq!(encode(&[]).0, Codec::Raw);
    }

    #[test]
    fn a_frame_that_unpacks_to_more_or_less_is_refused() {
        let (codec, bomb) = encode(&[0; 1 << 20]);
        assert!(decode(codec, bomb.clone(), 65536).is_err());
        assert!(decode(codec, bomb.clone(), (1 << 20) + 1).is_err());
        assert!(decode(codec, bomb[..bomb.len() - 1].into(), 1 << 20).is_err());
        assert!(decode(Codec::Zstd, b"nonsense"[..].into(), 8).is_err());
        assert!(decode(Codec::Raw, b"four"[..].into(), 5).is_err());
    }
}
