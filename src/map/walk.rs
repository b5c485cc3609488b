//! Going through whole maps.

use super::cursor::{Read, load};
use super::page::{Entry, Slots};
use super::{FANOUT, PageStore, Root, span};
use crate::chunk::ChunkId;
use crate::error::{Error, Result};
use std::ops::Range;

/// Goes through a map in the order of its chunks. `enter` gets each page's
/// id and level before it is read and answers whether to; `chunk` gets each
/// present chunk of the pages read. Ends at the first page that cannot be
/// read.
pub fn walk(
    pages: &dyn PageStore,
    root: &Root,
    enter: &mut dyn FnMut(&ChunkId, u8) -> bool,
    chunk: &mut dyn FnMut(u64, &ChunkId),
) -> Result<()> {
    let mut walker = Walker {
        read: &|id| pages.page(id),
        root,
        enter,
        chunk,
        unreadable: &mut |_, _, error| Err(error),
    };
    walker.whole()
}

/// [`walk`] that goes on: `finding` gets the chunks that each unreadable
/// page would say of (clipped to the disk), the page's id and the error.
pub fn walk_findings(
    pages: &dyn PageStore,
    root: &Root,
    enter: &mut dyn FnMut(&ChunkId, u8) -> bool,
    chunk: &mut dyn FnMut(u64, &ChunkId),
    finding: &mut dyn FnMut(Range<u64>, &ChunkId, Error),
) {
    let mut walker = Walker {
        read: &|id| pages.page(id),
        root,
        enter,
        chunk,
        unreadable: &mut |range, id, error| {
            finding(range, id, error);
            Ok(())
        },
    };
    walker.whole().expect("every error is a finding");
}

type Unreadable<'a> = dyn FnMut(Range<u64>, &ChunkId, Error) -> Result<()> + 'a;

struct Walker<'a> {
    read: Read<'a>,
    root: &'a Root,
    enter: &'a mut dyn FnMut(&ChunkId, u8) -> bool,
    chunk: &'a mut dyn FnMut(u64, &ChunkId),
    /// Ends the walk with an error, or lets it go on after the page.
    unreadable: &'a mut Unreadable<'a>,
}

impl Walker<'_> {
    fn whole(&mut self) -> Result<()> {
        match self.root.top_entry() {
            Some(top) => self.page(self.root.height, 0, &top),
            None => Ok(()),
        }
    }

    fn page(&mut self, level: u8, start: u64, entry: &Entry) -> Result<()> {
        if !(self.enter)(&entry.id, level) {
            return Ok(());
        }
        let page = match load(self.read, self.root, level, start, entry) {
            Ok(page) => page,
            Err(error) => {
                let end = (start + span(level)).min(self.root.chunks());
                return (self.unreadable)(start..end, &entry.id, error);
            }
        };
        for (slot, below) in page.entries() {
            let at = start + slot as u64 * span(level - 1);
            match level {
                1 => (self.chunk)(at, &below.id),
                _ => self.page(level - 1, at, &below)?,
            }
        }
        Ok(())
    }
}

/// What [`diff`] calls: a chunk's index, its id in the first map and in the
/// second.
pub type OnDifference<'a> = dyn FnMut(u64, Option<&ChunkId>, Option<&ChunkId>) + 'a;

/// Calls `f` for every chunk in which the maps differ, in order, with its
/// index and its ids in `a` and `b` (None: absent, which includes past the
/// disk's end). Equal subtrees are not read. [`Error::InvalidArgument`] if
/// the chunk sizes differ.
pub fn diff(pages: &dyn PageStore, a: &Root, b: &Root, f: &mut OnDifference<'_>) -> Result<()> {
    if a.chunk_size != b.chunk_size {
        return Err(Error::InvalidArgument {
            what: format!(
                "comparing chunks of {} bytes with chunks of {}",
                a.chunk_size, b.chunk_size
            ),
        });
    }
    let mut differ = Differ {
        read: &|id| pages.page(id),
        roots: [a, b],
        f,
    };
    let height = a.height.max(b.height);
    differ.page(height, 0, [a.top_entry(), b.top_entry()])
}

struct Differ<'a> {
    read: Read<'a>,
    roots: [&'a Root; 2],
    f: &'a mut OnDifference<'a>,
}

impl Differ<'_> {
    /// Compares what two entries lead to. Above the height of the lower map
    /// its top stands for the page that it has not.
    fn page(&mut self, level: u8, start: u64, entries: [Option<Entry>; 2]) -> Result<()> {
        if entries[0] == entries[1] {
            return Ok(());
        }
        if level == 0 {
            let [a, b] = &entries;
            (self.f)(start, a.as_ref().map(|a| &a.id), b.as_ref().map(|b| &b.id));
            return Ok(());
        }
        let a = self.slots(0, level, start, entries[0])?;
        let b = self.slots(1, level, start, entries[1])?;
        for slot in 0..FANOUT {
            let at = start + slot as u64 * span(level - 1);
            self.page(level - 1, at, [a[slot], b[slot]])?;
        }
        Ok(())
    }

    fn slots(&self, of: usize, level: u8, start: u64, entry: Option<Entry>) -> Result<Slots> {
        let root = self.roots[of];
        match entry {
            Some(entry) if level <= root.height => {
                Ok(load(self.read, root, level, start, &entry)?.slots())
            }
            // Above the top, which is its first and only slot.
            entry => Ok(std::array::from_fn(|slot| entry.filter(|_| slot == 0))),
        }
    }
}
