//! The log of a layer: which of its blocks hold what, in the order in which
//! it became so.
//!
//! ```text
//! header, 64 bytes:   0 magic "SNAPDLOG"   8 version u32   12 block size u32
//!                    16 layer id [16]     32 key id u32    36 zeros
//!                    60 CRC-32 of bytes 0..60
//! frame:              0 magic "FRAM"       4 payload length u32
//!                     8 sequence u64      16 CRC-32 of bytes 0..16 and the payload
//!                    20 payload: records, each a tag byte and its fields
//! ```
//!
//! Integers are little-endian. A frame is one sync's worth of records: it is
//! appended after the data that it speaks of is on disk, and acknowledged
//! when it is on disk itself (invariant 1). Nothing is appended before the
//! frame before is durable, so only the last frame can be torn; replay ends
//! at the first that is not whole. A whole frame behind one that is not
//! means that something acknowledged was lost: damage, not a torn end.

use crate::chunk::ChunkId;
use crate::error::{Error, Result};
use crate::files::File;
use crate::manifest::{LayerId, MAX_SIZE};
use std::ops::Range;
use uuid::Uuid;

/// Bytes before the first frame.
pub const HEADER: u64 = 64;
const MAGIC: &[u8; 8] = b"SNAPDLOG";
const VERSION: u32 = 1;
const FRAME_MAGIC: &[u8; 4] = b"FRAM";
const FRAME_HEADER: usize = 20;
/// No frame's payload is larger; more records go into several frames.
const FRAME_MAX: usize = 4 << 20;

/// What a graft shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GraftSource {
    /// A frozen layer over what lies below it.
    Layer(LayerId),
    /// A sealed map.
    Root(ChunkId),
}

/// One change of a layer. Ranges are half-open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Record {
    /// These blocks' bytes are in the segments.
    Data(Range<u64>),
    /// These blocks are zero.
    Zero(Range<u64>),
    /// These chunks are those of `source` from chunk `start` on.
    Graft {
        /// Chunks of this layer.
        chunks: Range<u64>,
        /// Whose chunks they are.
        source: GraftSource,
        /// The chunk of the source that the first one is.
        start: u64,
    },
    /// Cut to this size in bytes: what lay behind is gone.
    Cut(u64),
    /// Grown to at least this size in bytes.
    Grow(u64),
    /// The image's time of modification, nanoseconds since 1970.
    Modified(i64),
}

const TAG_DATA: u8 = 1;
const TAG_ZERO: u8 = 2;
const TAG_GRAFT_LAYER: u8 = 3;
const TAG_GRAFT_ROOT: u8 = 4;
const TAG_CUT: u8 = 5;
const TAG_GROW: u8 = 6;
const TAG_MODIFIED: u8 = 7;

impl Record {
    fn encode(&self, out: &mut Vec<u8>) {
        let mut put = |tag: u8, numbers: &[u64]| {
            out.push(tag);
            for number in numbers {
                out.extend_from_slice(&number.to_le_bytes());
            }
        };
        match self {
            Record::Data(blocks) => put(TAG_DATA, &[blocks.start, blocks.end]),
            Record::Zero(blocks) => put(TAG_ZERO, &[blocks.start, blocks.end]),
            Record::Graft {
                chunks,
                source,
                start,
            } => {
                let numbers = [chunks.start, chunks.end, *start];
                match source {
                    GraftSource::Layer(id) => {
                        put(TAG_GRAFT_LAYER, &numbers);
                        out.extend_from_slice(id.0.as_bytes());
                    }
                    GraftSource::Root(id) => {
                        put(TAG_GRAFT_ROOT, &numbers);
                        out.extend_from_slice(&id.0);
                    }
                }
            }
            Record::Cut(size) => put(TAG_CUT, &[*size]),
            Record::Grow(size) => put(TAG_GROW, &[*size]),
            Record::Modified(ns) => put(TAG_MODIFIED, &[*ns as u64]),
        }
    }

    /// Takes one record from the front of `input`; None if it is not one.
    fn decode(input: &mut &[u8]) -> Option<Record> {
        fn take<'a>(input: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
            let (head, rest) = input.split_at_checked(len)?;
            *input = rest;
            Some(head)
        }
        fn number(input: &mut &[u8]) -> Option<u64> {
            Some(u64::from_le_bytes(take(input, 8)?.try_into().ok()?))
        }
        fn range(input: &mut &[u8]) -> Option<Range<u64>> {
            let range = number(input)?..number(input)?;
            // No position is so high: sums of positions never overflow.
            (range.start < range.end && range.end < 1 << 48).then_some(range)
        }
        let is_size = |size: &u64| *size <= MAX_SIZE;
        match take(input, 1)?[0] {
            TAG_DATA => range(input).map(Record::Data),
            TAG_ZERO => range(input).map(Record::Zero),
            tag @ (TAG_GRAFT_LAYER | TAG_GRAFT_ROOT) => {
                let chunks = range(input)?;
                let start = number(input).filter(|start| *start < 1 << 48)?;
                let source = if tag == TAG_GRAFT_LAYER {
                    let id = Uuid::from_slice(take(input, 16)?).ok()?;
                    GraftSource::Layer(LayerId(id))
                } else {
                    GraftSource::Root(ChunkId(take(input, 32)?.try_into().ok()?))
                };
                Some(Record::Graft {
                    chunks,
                    source,
                    start,
                })
            }
            TAG_CUT => number(input).filter(is_size).map(Record::Cut),
            TAG_GROW => number(input).filter(is_size).map(Record::Grow),
            TAG_MODIFIED => number(input).map(|ns| Record::Modified(ns as i64)),
            _ => None,
        }
    }
}

/// The header of a new log.
pub fn encode_header(layer: LayerId, key_id: u32, block_size: u32) -> [u8; HEADER as usize] {
    let mut header = [0; HEADER as usize];
    header[..8].copy_from_slice(MAGIC);
    header[8..12].copy_from_slice(&VERSION.to_le_bytes());
    header[12..16].copy_from_slice(&block_size.to_le_bytes());
    header[16..32].copy_from_slice(layer.0.as_bytes());
    header[32..36].copy_from_slice(&key_id.to_le_bytes());
    let crc = crc32fast::hash(&header[..60]);
    header[60..].copy_from_slice(&crc.to_le_bytes());
    header
}

/// Frames with `records`, numbered from `sequence` on. Each is to be on disk
/// before the next is appended, or a torn end would look like damage.
pub fn encode_frames(records: &[Record], sequence: u64) -> Vec<Vec<u8>> {
    let mut payloads = vec![Vec::new()];
    for record in records {
        let last = payloads.len() - 1;
        record.encode(&mut payloads[last]);
        if payloads[last].len() > FRAME_MAX - 128 {
            payloads.push(Vec::new());
        }
    }
    payloads.retain(|payload| !payload.is_empty());
    (sequence..)
        .zip(payloads)
        .map(|(sequence, payload)| {
            let mut frame = Vec::with_capacity(FRAME_HEADER + payload.len());
            frame.extend_from_slice(FRAME_MAGIC);
            frame.extend_from_slice(&(payload.len() as u32).to_le_bytes());
            frame.extend_from_slice(&sequence.to_le_bytes());
            let mut crc = crc32fast::Hasher::new();
            crc.update(&frame);
            crc.update(&payload);
            frame.extend_from_slice(&crc.finalize().to_le_bytes());
            frame.extend_from_slice(&payload);
            frame
        })
        .collect()
}

/// What a replay found.
pub struct Replayed {
    /// Where the next frame goes: behind the last whole one.
    pub end: u64,
    /// The number of the next frame.
    pub sequence: u64,
    /// Bytes behind `end` that are no whole frame.
    pub torn_bytes: u64,
}

impl Replayed {
    /// [`Error::Damaged`] if the log at `path` ends before `end`, in bytes,
    /// up to which it was whole once.
    pub fn check_reaches(&self, end: u64, path: &str) -> Result<()> {
        if self.end >= end {
            return Ok(());
        }
        Err(Error::Damaged {
            what: format!("the layer log {path}"),
            detail: format!("it is whole up to {} only, and was up to {end}", self.end),
        })
    }
}

fn read_up_to(file: &dyn File, buf: &mut [u8], offset: u64, path: &str) -> Result<usize> {
    file.read_at(buf, offset)
        .map_err(Error::io("reading", path))
}

/// Reads a log from its start, handing every record to `apply` in order.
/// A wrong header, or whole frames behind one that is not, is
/// [`Error::Damaged`].
pub fn replay(
    file: &dyn File,
    path: &str,
    layer: LayerId,
    apply: &mut dyn FnMut(Record) -> Result<()>,
) -> Result<Replayed> {
    let damaged = |detail: String| Error::Damaged {
        what: format!("the layer log {path}"),
        detail,
    };
    let len = file.len().map_err(Error::io("sizing", path))?;
    let mut header = [0; HEADER as usize];
    if read_up_to(file, &mut header, 0, path)? < header.len() {
        return Err(damaged(format!("{len} bytes are less than its header")));
    }
    if &header[..8] != MAGIC || header[60..] != crc32fast::hash(&header[..60]).to_le_bytes() {
        return Err(damaged("its header does not match its checksum".into()));
    }
    let version = u32::from_le_bytes([header[8], header[9], header[10], header[11]]);
    if version > VERSION {
        return Err(Error::FormatNewer {
            found: format!("layer log {version}"),
            known: VERSION.to_string(),
        });
    }
    if header[16..32] != *layer.0.as_bytes() {
        return Err(damaged("it is the log of another layer".into()));
    }
    let mut at = HEADER;
    let mut sequence = 0;
    while let Some((payload, end)) = read_frame(file, path, at, len, Some(sequence))? {
        let mut rest = &payload[..];
        while !rest.is_empty() {
            let record = Record::decode(&mut rest)
                .ok_or_else(|| damaged(format!("frame {sequence} holds an unknown record")))?;
            apply(record)?;
        }
        at = end;
        sequence += 1;
    }
    if let Some(found) = later_frame(file, path, at, len, sequence)? {
        return Err(damaged(format!(
            "frame {sequence} at {at} is not whole, but a later one is, at {found}"
        )));
    }
    Ok(Replayed {
        end: at,
        sequence,
        torn_bytes: len - at,
    })
}

/// The payload of the frame at `at` and where it ends; None if there is no
/// whole one with that number (None: with any).
fn read_frame(
    file: &dyn File,
    path: &str,
    at: u64,
    len: u64,
    sequence: Option<u64>,
) -> Result<Option<(Vec<u8>, u64)>> {
    let mut head = [0; FRAME_HEADER];
    if read_up_to(file, &mut head, at, path)? < FRAME_HEADER || &head[..4] != FRAME_MAGIC {
        return Ok(None);
    }
    let payload_len = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
    if payload_len > FRAME_MAX || at + (FRAME_HEADER + payload_len) as u64 > len {
        return Ok(None);
    }
    if sequence.is_some_and(|wanted| head[8..16] != wanted.to_le_bytes()) {
        return Ok(None);
    }
    let mut payload = vec![0; payload_len];
    if read_up_to(file, &mut payload, at + FRAME_HEADER as u64, path)? < payload_len {
        return Ok(None);
    }
    let mut crc = crc32fast::Hasher::new();
    crc.update(&head[..16]);
    crc.update(&payload);
    if head[16..] != crc.finalize().to_le_bytes() {
        return Ok(None);
    }
    Ok(Some((payload, at + (FRAME_HEADER + payload_len) as u64)))
}

/// Where a whole frame numbered over `sequence` begins behind `at`: the sign
/// that a frame before it, which had been durable, was lost.
fn later_frame(
    file: &dyn File,
    path: &str,
    at: u64,
    len: u64,
    sequence: u64,
) -> Result<Option<u64>> {
    let mut window = vec![0; 1 << 16];
    let mut from = at + 1;
    while from + (FRAME_HEADER as u64) < len {
        let read = read_up_to(file, &mut window, from, path)?;
        for index in 0..read.saturating_sub(3) {
            if &window[index..index + 4] != FRAME_MAGIC {
                continue;
            }
            let candidate = from + index as u64;
            let mut number = [0; 8];
            if read_up_to(file, &mut number, candidate + 8, path)? == 8
                && u64::from_le_bytes(number) > sequence
                && read_frame(file, path, candidate, len, None)?.is_some()
            {
                return Ok(Some(candidate));
            }
        }
        if read < 4 {
            break;
        }
        from += (read - 3) as u64;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::files::{Files, LocalFiles};
    use std::path::Path;
    use std::sync::Arc;

    fn sample() -> Vec<Record> {
        vec![
            Record::Data(3..9),
            Record::Zero(100..1 << 34),
            Record::Graft {
                chunks: 4..8,
                source: GraftSource::Layer(LayerId::random()),
                start: 77,
            },
            Record::Graft {
                chunks: 1..2,
                source: GraftSource::Root(ChunkId([7; 32])),
                start: 0,
            },
            Record::Cut(12_345),
            Record::Grow(1 << 40),
            Record::Modified(-5),
        ]
    }

    fn written(frames: u64) -> (tempfile::TempDir, Arc<dyn File>, LayerId) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let files = LocalFiles::new(dir.path());
        let file = files.create_new(Path::new("log")).expect("a new file");
        let layer = LayerId::random();
        let mut bytes = encode_header(layer, 0, 4096).to_vec();
        for sequence in 0..frames {
            bytes.extend(encode_frames(&sample(), sequence).concat());
        }
        file.write_all_at(&bytes, 0).expect("writing");
        (dir, file, layer)
    }

    fn count(file: &dyn File, layer: LayerId) -> Result<(usize, Replayed)> {
        let mut count = 0;
        let replayed = replay(file, "log", layer, &mut |_| {
            count += 1;
            Ok(())
        })?;
        Ok((count, replayed))
    }

    /// Every record comes back as it was written.
    #[test]
    fn records_survive_a_round_trip() {
        let mut bytes = Vec::new();
        for record in sample() {
            record.encode(&mut bytes);
        }
        let mut rest = &bytes[..];
        for record in sample() {
            if let Record::Graft {
                source: GraftSource::Layer(_),
                ..
            } = record
            {
                assert!(Record::decode(&mut rest).is_some());
            } else {
                assert_eq!(Record::decode(&mut rest), Some(record));
            }
        }
        assert!(rest.is_empty());
    }

    /// Invariant 1: a log cut off anywhere replays every whole frame before
    /// the cut and nothing else.
    #[test]
    fn a_torn_end_loses_only_the_last_frame() {
        let (_dir, file, layer) = written(3);
        let len = file.len().expect("its length");
        let frame = (len - HEADER) / 3;
        for cut in (HEADER..len).rev() {
            file.set_len(cut).expect("cutting");
            let (records, replayed) = count(&*file, layer).expect("a torn end is no damage");
            assert_eq!(replayed.sequence, (cut - HEADER) / frame);
            assert_eq!(records as u64, replayed.sequence * sample().len() as u64);
        }
    }

    /// A flipped bit anywhere before the last frame is damage, never a
    /// shorter history.
    #[test]
    fn a_flipped_bit_in_the_middle_is_damage() {
        let (_dir, file, layer) = written(3);
        let len = file.len().expect("its length");
        let last = len - (len - HEADER) / 3;
        for at in 0..last {
            let mut byte = [0];
            file.read_exact_at(&mut byte, at).expect("reading");
            file.write_all_at(&[byte[0] ^ 0x10], at).expect("writing");
            assert!(count(&*file, layer).is_err(), "byte {at}");
            file.write_all_at(&byte, at).expect("writing");
        }
    }
}
