//! The table of fingerprints as a file: a store with millions of chunks is
//! opened by reading this one file instead of every pack's directory.
//!
//! ```text
//! header  0 magic "SNAPFPRT"   8 format u32      12 shards u32
//!        16 store uuid        32 packs u32       36 zero u32
//!        40 zero              60 CRC-32 of 0..60
//! pack    0 writer's epoch u64  8 uuid          24 length of its file u64
//!        32 records u64       40 their bytes u64
//!        48 the same unpacked u64               56 flags u32: 1 closed
//!        60 CRC-32 of 0..60
//! shard   0 slots u32          4 CRC-32 of them  8 slots of 8 bytes, in order
//! ```
//!
//! Header, packs, then every shard. All numbers are little-endian, the
//! CRC-32 is that of IEEE 802.3. A slot names its pack by its place in the
//! list; one that names a place behind the list is left out: when the file
//! was written, not all of that pack was in it.
//!
//! Why so: the slots are what the table has in memory, so nothing is hashed
//! or looked up in reading them. What the file says of a pack holds as long
//! as the pack's file has that length, since a name is never used again and
//! only packs are listed that nobody appends to. A file that is damaged, of
//! another format or of another store is no file.

use super::table::{SHARDS, Table, pack_of, renumbered};
use super::{Health, PackInfo};
use crate::chunk::Kind;
use crate::pack::{ALIGN, PackName, is_sealed, seal, u32_at, u64_at};
use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use uuid::Uuid;

/// Its name beside sled's files: who deletes those deletes it, too.
pub const FILE: &str = "fingerprints";
const MAGIC: &[u8; 8] = b"SNAPFPRT";
const FORMAT: u32 = 1;
const FRAME_BYTES: usize = 64;
const CLOSED: u32 = 1;
const BUFFER_BYTES: usize = 1 << 18;

/// A saved table.
pub struct Saved {
    /// Those of its packs that were wanted, in the order of their numbers.
    pub packs: Vec<PackInfo>,
    /// The packs that were not.
    pub unwanted: Vec<(PackName, u64)>,
    /// Their chunks.
    pub table: Table,
}

fn damaged(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

fn read_frame(file: &mut impl Read) -> io::Result<[u8; FRAME_BYTES]> {
    let mut frame = [0; FRAME_BYTES];
    file.read_exact(&mut frame)?;
    match is_sealed(&frame) {
        true => Ok(frame),
        false => Err(damaged("a checksum is wrong")),
    }
}

fn uuid_at(frame: &[u8; FRAME_BYTES], at: usize) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&frame[at..at + 16]);
    Uuid::from_bytes(bytes)
}

fn encode_header(store: Uuid, packs: u32) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..8].copy_from_slice(MAGIC);
    frame[8..12].copy_from_slice(&FORMAT.to_le_bytes());
    frame[12..16].copy_from_slice(&(SHARDS as u32).to_le_bytes());
    frame[16..32].copy_from_slice(store.as_bytes());
    frame[32..36].copy_from_slice(&packs.to_le_bytes());
    seal(&mut frame);
    frame
}

fn encode_pack(info: &PackInfo) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..8].copy_from_slice(&info.name.epoch.to_le_bytes());
    frame[8..24].copy_from_slice(info.name.uuid.as_bytes());
    frame[24..32].copy_from_slice(&info.file_len.to_le_bytes());
    frame[32..40].copy_from_slice(&info.records.to_le_bytes());
    frame[40..48].copy_from_slice(&info.record_bytes.to_le_bytes());
    frame[48..56].copy_from_slice(&info.plain_bytes.to_le_bytes());
    let flags = if info.closed { CLOSED } else { 0 };
    frame[56..60].copy_from_slice(&flags.to_le_bytes());
    seal(&mut frame);
    frame
}

fn decode_pack(frame: &[u8; FRAME_BYTES]) -> PackInfo {
    PackInfo {
        name: PackName {
            epoch: u64_at(frame, 0),
            uuid: uuid_at(frame, 8),
        },
        file_len: u64_at(frame, 24),
        closed: u32_at(frame, 56) & CLOSED != 0,
        earlier: true,
        health: Health::Sound,
        records: u64_at(frame, 32),
        record_bytes: u64_at(frame, 40),
        plain_bytes: u64_at(frame, 48),
    }
}

/// Writes a table in place of the one in `dir`. `packs` are those whose
/// chunks are all in it, with their numbers; `shard` has a shard's slots.
/// After an error the old file is there, or none.
pub fn write(
    dir: &Path,
    store: Uuid,
    packs: &[(u32, PackInfo)],
    slots: u64,
    shard: impl Fn(usize) -> Vec<u64>,
) -> io::Result<()> {
    let temporary = dir.join(format!("{FILE}.new"));
    let written = (|| {
        // About as much is written; a store that is nearly full has better
        // uses for its last bytes.
        let (_, free) = crate::sys::space(dir)?;
        if free < 8 * (slots * 8 + (packs.len() * FRAME_BYTES) as u64) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let mut options = crate::sys::private();
        let file = options
            .write(true)
            .create(true)
            .truncate(true)
            .open(&temporary)?;
        let mut out = BufWriter::with_capacity(BUFFER_BYTES, &file);
        write_to(&mut out, store, packs, shard)?;
        out.flush()?;
        drop(out);
        file.sync_data()?;
        fs::rename(&temporary, dir.join(FILE))
    })();
    if written.is_err() {
        // There may be none.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_to(
    out: &mut impl Write,
    store: Uuid,
    packs: &[(u32, PackInfo)],
    shard: impl Fn(usize) -> Vec<u64>,
) -> io::Result<()> {
    let last = packs.iter().map(|(number, _)| *number as usize + 1).max();
    let mut places = vec![u32::MAX; last.unwrap_or(0)];
    for (place, (number, _)) in (0..).zip(packs) {
        places[*number as usize] = place;
    }
    let place_of = |slot: u64| places.get(pack_of(slot) as usize).copied();
    out.write_all(&encode_header(store, packs.len() as u32))?;
    for (_, info) in packs {
        out.write_all(&encode_pack(info))?;
    }
    let mut bytes = Vec::new();
    for number in 0..SHARDS {
        bytes.clear();
        for slot in shard(number) {
            if let Some(place) = place_of(slot).filter(|place| *place != u32::MAX) {
                bytes.extend_from_slice(&renumbered(slot, place).to_le_bytes());
            }
        }
        out.write_all(&((bytes.len() / 8) as u32).to_le_bytes())?;
        out.write_all(&crc32fast::hash(&bytes).to_le_bytes())?;
        out.write_all(&bytes)?;
    }
    Ok(())
}

/// Reads the table in `dir`, without the packs that `wanted` does not want
/// with that length; None if there is no file.
pub fn read(
    dir: &Path,
    store: Uuid,
    wanted: impl Fn(&PackName, u64) -> bool,
) -> io::Result<Option<Saved>> {
    let file = match File::open(dir.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let len = file.metadata()?.len();
    read_from(
        &mut BufReader::with_capacity(BUFFER_BYTES, file),
        len,
        store,
        wanted,
    )
    .map(Some)
}

fn read_from(
    file: &mut impl Read,
    len: u64,
    store: Uuid,
    wanted: impl Fn(&PackName, u64) -> bool,
) -> io::Result<Saved> {
    let header = read_frame(file)?;
    if &header[..8] != MAGIC
        || u32_at(&header, 8) != FORMAT
        || u32_at(&header, 12) as usize != SHARDS
        || uuid_at(&header, 16) != store
    {
        return Err(damaged("it is of another format or another store"));
    }
    let mut saved = Saved {
        packs: Vec::new(),
        unwanted: Vec::new(),
        table: Table::default(),
    };
    // By the place in the file's list, the number in this one.
    let mut numbers = Vec::new();
    for _ in 0..u32_at(&header, 32) {
        let info = decode_pack(&read_frame(file)?);
        // Room is made by these.
        let is_possible = info.records <= info.file_len / ALIGN
            && info.record_bytes <= info.file_len
            && info.plain_bytes <= info.records.saturating_mul(Kind::Data.max_bytes().into());
        if !is_possible {
            return Err(damaged("a pack has more than it has room for"));
        }
        if wanted(&info.name, info.file_len) {
            numbers.push(saved.packs.len() as u32);
            saved.packs.push(info);
        } else {
            numbers.push(u32::MAX);
            saved.unwanted.push((info.name, info.file_len));
        }
    }
    let mut bytes = Vec::new();
    for shard in 0..SHARDS {
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        let wanted_len = u64::from(u32_at(&head, 0)) * 8;
        if wanted_len > len {
            return Err(damaged("a shard is longer than the file"));
        }
        bytes.resize(wanted_len as usize, 0);
        file.read_exact(&mut bytes)?;
        if crc32fast::hash(&bytes) != u32_at(&head, 4) {
            return Err(damaged("a checksum is wrong"));
        }
        for slot in bytes.chunks_exact(8) {
            let slot = u64_at(slot, 0);
            let Some(number) = numbers.get(pack_of(slot) as usize) else {
                return Err(damaged("a chunk is in no pack"));
            };
            let kept = *number == u32::MAX || saved.table.append(shard, renumbered(slot, *number));
            if !kept {
                return Err(damaged("its chunks are in no order"));
            }
        }
    }
    match file.read(&mut [0])? {
        0 => Ok(saved),
        _ => Err(damaged("more follows than it should have")),
    }
}
