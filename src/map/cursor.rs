//! Reading entries of one map, near ones without going through the pages
//! above them again.

use super::page::{Entry, MAX_HEIGHT, Page, damaged};
use super::{Root, slot, span};
use crate::chunk::ChunkId;
use crate::error::Result;
use std::sync::Arc;

/// How a page is got.
pub(super) type Read<'a> = &'a dyn Fn(&ChunkId) -> Result<Arc<Page>>;

/// Reads the page that `entry` leads to, of `level` and beginning at chunk
/// `start`, and checks what is known of it: its level, its count and that
/// nothing lies past the disk's last chunk.
pub(super) fn load(
    read: Read<'_>,
    root: &Root,
    level: u8,
    start: u64,
    entry: &Entry,
) -> Result<Arc<Page>> {
    let page = read(&entry.id)?;
    let what = || format!("page {} of a map", entry.id);
    if page.level() != level || page.count() != entry.count {
        return Err(damaged(
            &what(),
            format!(
                "level {} with {} chunks, where level {level} with {} was expected",
                page.level(),
                page.count(),
                entry.count
            ),
        ));
    }
    let last = start + page.last_slot() as u64 * span(level - 1);
    if last >= root.chunks() {
        let detail = format!("chunk {last} on a disk of {} chunks", root.chunks());
        return Err(damaged(&what(), detail));
    }
    Ok(page)
}

/// A place in a map: the pages on the way to the last chunk looked at.
pub(super) struct Cursor<'a> {
    read: Read<'a>,
    root: Root,
    /// By level, from 1: first chunk of the page, and the page.
    path: [Option<(u64, Arc<Page>)>; MAX_HEIGHT as usize],
}

impl<'a> Cursor<'a> {
    pub(super) fn new(read: Read<'a>, root: &Root) -> Self {
        Self {
            read,
            root: root.clone(),
            path: Default::default(),
        }
    }

    pub(super) fn root(&self) -> &Root {
        &self.root
    }

    /// Goes from the top towards `index` as long as `deeper` wants to, given
    /// the level and entry reached. Returns where it ended: 0 is the chunk
    /// itself, an absent entry ends it at any level up to the height.
    pub(super) fn descend(
        &mut self,
        index: u64,
        mut deeper: impl FnMut(u8, &Entry) -> bool,
    ) -> Result<(u8, Option<Entry>)> {
        let mut level = self.root.height;
        let mut at = self.root.top_entry().filter(|_| self.root.covers(index));
        while let Some(entry) = at
            && level > 0
            && deeper(level, &entry)
        {
            at = self.page(level, index, &entry)?.get(slot(index, level));
            level -= 1;
        }
        Ok((level, at))
    }

    /// The entry for the page of `level` that has chunk `index`, or for the
    /// chunk itself (level 0). The level is at most the map's height.
    pub(super) fn entry(&mut self, level: u8, index: u64) -> Result<Option<Entry>> {
        let (_, entry) = self.descend(index, |at, _| at > level)?;
        Ok(entry)
    }

    /// Present chunks before `index`.
    pub(super) fn count_before(&mut self, index: u64) -> Result<u64> {
        if index >= self.root.chunks() {
            return Ok(self.root.count);
        }
        let mut before = 0;
        let mut at = self.root.top_entry();
        for level in (1..=self.root.height).rev() {
            let Some(entry) = at else { break };
            let page = self.page(level, index, &entry)?;
            before += page.count_before(slot(index, level));
            at = page.get(slot(index, level));
        }
        Ok(before)
    }

    /// The page of `level` that has chunk `index`, to which `entry` leads.
    fn page(&mut self, level: u8, index: u64, entry: &Entry) -> Result<&Page> {
        let start = index - index % span(level);
        let kept = &mut self.path[level as usize - 1];
        if !matches!(kept, Some((at, _)) if *at == start) {
            let page = load(self.read, &self.root, level, start, entry)?;
            *kept = Some((start, page));
        }
        let (_, page) = kept.as_ref().expect("it was there or has been put there");
        Ok(page)
    }
}
