//! Looking chunks up.

use super::cursor::Cursor;
use super::{Page, PageStore, Root, span};
use crate::chunk::ChunkId;
use crate::error::{Error, Result};
use std::ops::Range;
use std::sync::Arc;

/// Neighbouring chunks that are all present or all absent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The chunk after its last one.
    pub end: u64,
    /// Whether they are present; else they are zeros.
    pub present: bool,
}

/// The id of chunk `index`; None if it is absent or past the disk's end.
/// Reads at most one page a level.
pub fn get(pages: &dyn PageStore, root: &Root, index: u64) -> Result<Option<ChunkId>> {
    let read = |id: &ChunkId| pages.page(id);
    let entry = Cursor::new(&read, root).entry(0, index)?;
    Ok(entry.map(|entry| entry.id))
}

/// The ids of `count` chunks from `first` on, absent ones None. Reads every
/// page that has one of them once.
pub fn get_range(
    pages: &dyn PageStore,
    root: &Root,
    first: u64,
    count: usize,
) -> Result<Vec<Option<ChunkId>>> {
    range_of(Cursor::new(&|id| pages.page(id), root), first, count)
}

/// [`get`] with the pages that `cached` has. The outer None: another page
/// would be needed, or one is not what it should be and [`get`] says why.
pub fn get_cached(
    cached: &dyn Fn(&ChunkId) -> Option<Arc<Page>>,
    root: &Root,
    index: u64,
) -> Option<Option<ChunkId>> {
    let read = |id: &ChunkId| cached(id).ok_or_else(not_cached);
    let entry = Cursor::new(&read, root).entry(0, index).ok()?;
    Some(entry.map(|entry| entry.id))
}

/// [`get_range`] with the pages that `cached` has, None as in
/// [`get_cached`].
pub fn get_range_cached(
    cached: &dyn Fn(&ChunkId) -> Option<Arc<Page>>,
    root: &Root,
    first: u64,
    count: usize,
) -> Option<Vec<Option<ChunkId>>> {
    let read = |id: &ChunkId| cached(id).ok_or_else(not_cached);
    range_of(Cursor::new(&read, root), first, count).ok()
}

/// Ends a look-up; nobody sees it. Allocates nothing.
fn not_cached() -> Error {
    Error::ChunkMissing { id: String::new() }
}

fn range_of(mut cursor: Cursor<'_>, first: u64, count: usize) -> Result<Vec<Option<ChunkId>>> {
    let mut ids = vec![None; count];
    let end = first
        .saturating_add(count as u64)
        .min(cursor.root().chunks());
    let mut index = first;
    while index < end {
        let (level, entry) = cursor.descend(index, |_, _| true)?;
        if let Some(entry) = entry {
            ids[(index - first) as usize] = Some(entry.id);
        }
        index = next_after(index, level);
    }
    Ok(ids)
}

/// The chunk after all those of the page of `level` that has chunk `index`.
fn next_after(index: u64, level: u8) -> u64 {
    (index / span(level) + 1) * span(level)
}

/// The whole rest of the run that chunk `index` is in. It ends at the disk's
/// end at the latest; past that everything is absent, to the last chunk whose
/// place in bytes is a number. Absent and full subtrees are passed without
/// reading them, so this reads at most two pages a level.
pub fn next_run(pages: &dyn PageStore, root: &Root, index: u64) -> Result<Run> {
    let chunks = root.chunks();
    if index >= chunks {
        let last = u64::MAX / u64::from(root.chunk_size);
        return Ok(Run {
            end: last.max(index.saturating_add(1)),
            present: false,
        });
    }
    let read = |id: &ChunkId| pages.page(id);
    let mut cursor = Cursor::new(&read, root);
    let present = cursor.entry(0, index)?.is_some();
    let mut end = index;
    while end < chunks {
        let (level, entry) = cursor.descend(end, |level, entry| {
            // A page that lacks nothing says enough without its entries.
            let start = end - end % span(level);
            let room = span(level).min(chunks - start);
            entry.count < room
        })?;
        if entry.is_some() != present {
            break;
        }
        end = next_after(end, level).min(chunks);
    }
    Ok(Run { end, present })
}

/// How many chunks of `range` are present, by the counts in the pages:
/// reads at most two pages a level. What lies past the disk's end is absent.
pub fn count(pages: &dyn PageStore, root: &Root, range: Range<u64>) -> Result<u64> {
    if range.is_empty() {
        return Ok(0);
    }
    let read = |id: &ChunkId| pages.page(id);
    let mut cursor = Cursor::new(&read, root);
    let before = cursor.count_before(range.start)?;
    Ok(cursor.count_before(range.end)? - before)
}
