//! A pack that is read, over what the disk cannot read if that is wanted.

use super::{Finding, PackName};
use crate::backend::Backend;
use crate::error::Result;
use std::cell::RefCell;
use std::collections::BTreeSet;

/// What a disk cannot read it cannot read in blocks of this size at most
/// (the page of the system's cache and the block of most filesystems).
const BLOCK: u64 = 4096;
/// More blocks of a pack that cannot be read and it is given up: each may take
/// the disk seconds.
const MOST_UNREADABLE: usize = 1024;

/// Reads one pack.
#[derive(Debug)]
pub struct Reader<'a> {
    backend: &'a dyn Backend,
    /// Which pack.
    pub(super) pack: PackName,
    key: String,
    /// Numbers of blocks that read as zeros because they cannot be read;
    /// None: that they cannot be read is an error.
    unreadable: Option<RefCell<BTreeSet<u64>>>,
}

impl Reader<'_> {
    /// One to which it is an error that something cannot be read.
    pub fn new<'a>(backend: &'a dyn Backend, pack: &PackName) -> Reader<'a> {
        Reader {
            backend,
            pack: *pack,
            key: pack.key(),
            unreadable: None,
        }
    }

    /// One to which what the disk answers EIO for is zeros, and a finding. An
    /// error if there is very much of it.
    pub fn over_unreadable<'a>(backend: &'a dyn Backend, pack: &PackName) -> Reader<'a> {
        Reader {
            unreadable: Some(RefCell::default()),
            ..Reader::new(backend, pack)
        }
    }

    /// What could not be read so far, in its order.
    pub fn unreadable(&self) -> Vec<Finding> {
        let Some(blocks) = &self.unreadable else {
            return Vec::new();
        };
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for block in blocks.borrow().iter() {
            match ranges.last_mut() {
                Some((first, count)) if *first + *count == *block => *count += 1,
                _ => ranges.push((*block, 1)),
            }
        }
        let finding = |(first, count)| Finding::PackUnreadable {
            pack: self.pack,
            detail: format!(
                "the {} bytes at {}: input/output error",
                count * BLOCK,
                first * BLOCK
            ),
        };
        ranges.into_iter().map(finding).collect()
    }

    /// Reads from `offset` into `buf`, short only at the pack's end.
    pub(super) fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let Some(unreadable) = &self.unreadable else {
            return self.backend.get_range(&self.key, offset, buf);
        };
        let blocks = offset / BLOCK..(offset + buf.len() as u64).div_ceil(BLOCK);
        // What could not be read is not asked for again.
        if unreadable.borrow().range(blocks).next().is_none() {
            match self.backend.get_range(&self.key, offset, buf) {
                Err(error) if error.is_unreadable() => {}
                read => return read,
            }
        }
        self.read_blocks(offset, buf, &mut unreadable.borrow_mut())
    }

    /// Reads one block after the other.
    fn read_blocks(
        &self,
        offset: u64,
        buf: &mut [u8],
        unreadable: &mut BTreeSet<u64>,
    ) -> Result<usize> {
        let mut done = 0;
        while done < buf.len() {
            let at = offset + done as u64;
            let len = ((BLOCK - at % BLOCK) as usize).min(buf.len() - done);
            let piece = &mut buf[done..done + len];
            let read = match unreadable.contains(&(at / BLOCK)) {
                true => None,
                false => match self.backend.get_range(&self.key, at, piece) {
                    Ok(read) => Some(read),
                    Err(error) if !error.is_unreadable() => return Err(error),
                    Err(error) if unreadable.len() >= MOST_UNREADABLE => return Err(error),
                    Err(_) => {
                        unreadable.insert(at / BLOCK);
                        None
                    }
                },
            };
            if read.is_none() {
                piece.fill(0);
            }
            done += read.unwrap_or(len);
            if read.is_some_and(|read| read < len) {
                break;
            }
        }
        Ok(done)
    }

    /// Reads `len` bytes; None if the pack is shorter.
    pub(super) fn read_all(&self, offset: u64, len: usize) -> Result<Option<Vec<u8>>> {
        let mut bytes = vec![0; len];
        let read = self.read(offset, &mut bytes)?;
        Ok((read == len).then_some(bytes))
    }
}
