//! Making a map from another one.

use super::cursor::{Cursor, Read, load};
use super::page::{Entry, MAX_HEIGHT, Page, Slots};
use super::{FANOUT, PageStore, Root, span};
use crate::chunk::ChunkId;
use crate::error::{Error, Result};
use std::ops::Range;

/// What becomes of a range of chunks.
#[derive(Clone, Copy, Debug)]
pub enum Op<'a> {
    /// This chunk, which is not all zeros. The range has a length of 1.
    Set(ChunkId),
    /// Zeros.
    Clear,
    /// What chunk `start` of `from`, and so on, has; zeros past its end. The
    /// chunk sizes are the same.
    Copy {
        /// The map copied from.
        from: &'a Root,
        /// The first chunk copied.
        start: u64,
    },
}

/// The map that `base` becomes with a size of `new_size` bytes and `ops`
/// done. Chunks past the new size go; where it ends within a chunk that had
/// more, the caller sets that chunk anew, with zeros behind the end.
///
/// `ops` are sorted by range and disjoint, and lie below the new size;
/// anything else is an [`Error::InvalidArgument`], a size over what
/// [`MAX_HEIGHT`] levels cover an [`Error::TooLarge`].
///
/// Puts only pages that differ from those of `base`: a level's worth for
/// each edge of a change. Subtrees that an op covers whole are dropped or,
/// when a copy moves them by a multiple of their length, taken by id. A copy
/// that does not is done chunk by chunk, with a page a level in memory.
/// Pages put before an error stay behind, unreferenced.
pub fn edit(
    pages: &dyn PageStore,
    base: &Root,
    new_size: u64,
    ops: &[(Range<u64>, Op<'_>)],
) -> Result<Root> {
    let new = Root::empty(base.chunk_size, new_size);
    if new.height > MAX_HEIGHT {
        return Err(Error::TooLarge {
            size: new_size,
            limit: span(MAX_HEIGHT) * u64::from(base.chunk_size),
        });
    }
    check(&new, ops)?;
    let mut ops: Vec<_> = ops.iter().filter(|op| !op.0.is_empty()).cloned().collect();
    if new.chunks() < base.chunks() {
        ops.push((new.chunks()..base.chunks(), Op::Clear));
    }
    if new.height == 0 {
        return Ok(new);
    }
    let read = |id: &ChunkId| pages.page(id);
    let mut editor = Editor {
        pages,
        read: &read,
        base,
        source: Cursor::new(&read, base),
    };
    // Of a higher base, only what lies below its first slots is left.
    let old = match base.height > new.height {
        true => editor.source.entry(new.height, 0)?,
        false => base.top_entry(),
    };
    ops.retain(|(range, _)| range.start < span(new.height));
    let top = editor.node(new.height, 0, old, &ops)?;
    Ok(Root {
        count: top.map_or(0, |top| top.count),
        top: top.map(|top| top.id),
        ..new
    })
}

/// Refuses ops that [`edit`] cannot do.
fn check(new: &Root, ops: &[(Range<u64>, Op<'_>)]) -> Result<()> {
    let invalid = |range: &Range<u64>, why: &str| {
        Err(Error::InvalidArgument {
            what: format!("a change of chunks {}..{}: {why}", range.start, range.end),
        })
    };
    let mut done = 0;
    for (range, op) in ops {
        if range.start > range.end || range.start < done {
            return invalid(range, "not in order after the one before");
        }
        done = range.end;
        if range.end > new.chunks() {
            return invalid(range, "past the end of the disk");
        }
        match op {
            Op::Clear => {}
            Op::Set(_) => {
                if range.end - range.start != 1 {
                    return invalid(range, "one id is for one chunk");
                }
            }
            Op::Copy { from, start } => {
                if from.chunk_size != new.chunk_size {
                    return invalid(range, "copied from chunks of another size");
                }
                if start.checked_add(range.end - range.start).is_none() {
                    return invalid(range, "copied from beyond all numbers");
                }
            }
        }
    }
    Ok(())
}

struct Editor<'a> {
    pages: &'a dyn PageStore,
    read: Read<'a>,
    base: &'a Root,
    /// In the map that was last copied from.
    source: Cursor<'a>,
}

impl Editor<'_> {
    /// What takes the place of `old`, the base's entry for the page of
    /// `level` at chunk `start` (a chunk at level 0). `ops` are all those
    /// that meet its range, and may reach over it. Above the base's height
    /// `old` is the base's top, for lack of a page of that level.
    fn node(
        &mut self,
        level: u8,
        start: u64,
        old: Option<Entry>,
        ops: &[(Range<u64>, Op<'_>)],
    ) -> Result<Option<Entry>> {
        let end = start + span(level);
        let is_real = level <= self.base.height;
        match ops {
            [] if is_real || old.is_none() => return Ok(old),
            [(range, op)] if range.start <= start && end <= range.end => match op {
                Op::Clear => return Ok(None),
                Op::Set(id) => return Ok(Some(Entry { id: *id, count: 1 })),
                Op::Copy { from, start: first } => {
                    let at = first + (start - range.start);
                    if let Some(taken) = self.take(from, level, at)? {
                        return Ok(taken);
                    }
                }
            },
            _ => {}
        }

        let before: Slots = match &old {
            None => [None; FANOUT],
            Some(entry) if is_real => load(self.read, self.base, level, start, entry)?.slots(),
            Some(entry) => std::array::from_fn(|slot| (slot == 0).then_some(*entry)),
        };
        let mut after = before;
        let mut rest = ops;
        for (slot, entry) in after.iter_mut().enumerate() {
            let child = start + slot as u64 * span(level - 1);
            let child_end = child + span(level - 1);
            let met = rest.partition_point(|(range, _)| range.start < child_end);
            *entry = self.node(level - 1, child, *entry, &rest[..met])?;
            let done = rest[..met].partition_point(|(range, _)| range.end <= child_end);
            rest = &rest[done..];
        }
        if is_real && after == before {
            return Ok(old);
        }
        match Page::from_slots(level, &after) {
            None => Ok(None),
            Some(page) => Ok(Some(Entry {
                id: self.pages.put_page(&page.encode())?,
                count: page.count(),
            })),
        }
    }

    /// The entry that a copy from chunk `at` of `from` has for a whole page
    /// of `level`; None if it has to be put together from its parts.
    fn take(&mut self, from: &Root, level: u8, at: u64) -> Result<Option<Option<Entry>>> {
        if at >= from.chunks() {
            return Ok(Some(None));
        }
        if self.source.root() != from {
            self.source = Cursor::new(self.read, from);
        }
        if level <= from.height && at.is_multiple_of(span(level)) {
            return self.source.entry(level, at).map(Some);
        }
        // A hole as long as the page has no parts worth looking at.
        let before = self.source.count_before(at)?;
        let is_hole = self.source.count_before(at.saturating_add(span(level)))? == before;
        Ok(is_hole.then_some(None))
    }
}
