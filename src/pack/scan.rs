//! Reading a pack from end to end, over whatever damage there is.

use super::directory::is_directory;
use super::record::{HEADER_BYTES, Header};
use super::{ALIGN, Directory, Entry, Finding, Reader, Stored, encode_mark};
use crate::error::Result;

/// Bytes read at a time; more than the longest record.
const WINDOW: usize = 4 << 20;

/// A part of a pack in memory.
struct Window<'a> {
    reader: &'a Reader<'a>,
    start: u64,
    bytes: Vec<u8>,
    read: usize,
}

impl Window<'_> {
    /// The bytes at `offset`, fewer than `len` only at the pack's end.
    fn at(&mut self, offset: u64, len: usize) -> Result<&[u8]> {
        let inside = offset >= self.start && offset + len as u64 <= self.start + self.read as u64;
        if !inside {
            self.read = self.reader.read(offset, &mut self.bytes)?;
            self.start = offset;
        }
        let from = (offset - self.start) as usize;
        let to = (from + len).min(self.read);
        Ok(&self.bytes[from.min(to)..to])
    }
}

/// What a scan found besides what it handed out.
pub struct Scanned {
    /// The records that are whole.
    pub directory: Directory,
    /// Where the last whole record or mark ends.
    pub end: u64,
    /// Whether a directory of this pack follows the records.
    pub directory_follows: bool,
    /// What was damaged.
    pub findings: Vec<Finding>,
}

/// What was found and need not have been whole ever.
fn torn(finding: Finding, end: u64) -> Finding {
    match finding {
        Finding::Range { pack, offset, len } => Finding::TornTail {
            pack,
            offset,
            len: len.min(end - offset),
        },
        Finding::Chunk {
            pack,
            offset,
            record_len,
            ..
        } => Finding::TornTail {
            pack,
            offset,
            len: record_len,
        },
        other => other,
    }
}

impl Reader<'_> {
    /// Reads all records of a pack of which the first `len` bytes count, hands
    /// out each whole one, and steps over what is none: damage if a mark or the
    /// pack's directory comes after it, else torn.
    pub fn scan(&self, len: u64, mut visit: impl FnMut(&Entry, Stored)) -> Result<Scanned> {
        let pack = &self.pack;
        let mut window = Window {
            reader: self,
            start: 0,
            bytes: vec![0; WINDOW.min(len as usize)],
            read: 0,
        };
        let mut entries = Vec::new();
        let mut findings = Vec::new();
        // Found since the last mark: damage if another one follows.
        let mut pending: Vec<Finding> = Vec::new();
        let mut end = ALIGN.min(len);
        let mut at = end;
        let mut directory_follows = false;
        let mark = encode_mark(pack.uuid);
        while at < len {
            let left = usize::try_from(len - at).unwrap_or(usize::MAX);
            let head = window.at(at, HEADER_BYTES.min(left))?;
            if head.len() < HEADER_BYTES.min(left) {
                findings.push(Finding::PackLength {
                    pack: *pack,
                    expected: len,
                    found: at + head.len() as u64,
                });
                return Ok(Scanned {
                    directory: Directory::new(entries),
                    end,
                    directory_follows,
                    findings,
                });
            }
            if head.len() >= ALIGN as usize && is_directory(&head[..ALIGN as usize], pack.uuid) {
                directory_follows = true;
                break;
            }
            if head.starts_with(&mark) {
                findings.append(&mut pending);
                at += ALIGN;
                end = at;
                continue;
            }
            let found = Header::decode(head).and_then(|header| {
                let entry = Entry::new(
                    header.id,
                    header.kind,
                    at,
                    header.stored_len,
                    header.plain_len,
                )?;
                (entry.end() <= len).then_some((header, entry))
            });
            let Some((header, entry)) = found else {
                match pending.last_mut() {
                    Some(Finding::Range { offset, len, .. }) if *offset + *len == at => {
                        *len += ALIGN
                    }
                    _ => pending.push(Finding::Range {
                        pack: *pack,
                        offset: at,
                        len: ALIGN,
                    }),
                }
                at += ALIGN;
                continue;
            };
            let record = window.at(at, HEADER_BYTES + entry.stored_len as usize)?;
            let payload = record.get(HEADER_BYTES..).unwrap_or_default();
            match header.check(payload) {
                Ok(()) => {
                    let stored = Stored {
                        id: header.id,
                        kind: header.kind,
                        codec: header.codec,
                        plain_len: header.plain_len,
                        payload: payload.to_vec(),
                    };
                    entries.push(entry);
                    end = entry.end();
                    visit(&entry, stored);
                }
                Err(detail) => pending.push(Finding::of_record(*pack, &entry, detail)),
            }
            at = entry.end();
        }
        if directory_follows {
            findings.append(&mut pending);
        }
        findings.extend(pending.into_iter().map(|finding| torn(finding, len)));
        Ok(Scanned {
            directory: Directory::new(entries),
            end,
            directory_follows,
            findings,
        })
    }
}
