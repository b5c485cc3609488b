//! Reading a layer once more, to find what is damaged by now.

use super::*;

/// Bytes read at a time.
const PIECE: u64 = 1 << 20;
/// Blocks of a layer that cannot be read, after which pieces are not split
/// any more to tell which of their blocks can: each may take the disk seconds.
const MOST_SPLIT: u64 = 1024;

impl Layer {
    /// Reads its log from the disk, beside whoever appends to it. An error
    /// unless it is whole as far as it was written.
    pub fn check_log(&self) -> Result<()> {
        let Some(end) = self.log_end() else {
            return Ok(());
        };
        let path = log_path(self.id);
        let path_text = text(&path);
        let file = self.files.open(&path, false);
        let file = file.map_err(Error::io("opening", &path_text))?;
        let replayed = log::replay(&*file, &path_text, self.id, &mut |_| Ok(()))?;
        replayed.check_reaches(end, &path_text)
    }

    /// Reads all of its own data; answers ranges in bytes that cannot be
    /// read, with why, beside those of [`Layer::lost_ranges`]. `read` is told
    /// of each number of bytes done.
    pub fn unreadable_data(&self, read: &mut dyn FnMut(u64)) -> Vec<(Range<u64>, String)> {
        let mut found: Vec<(Range<u64>, String)> = Vec::new();
        let mut bad_blocks = 0;
        let mut at = 0;
        while let Some(range) = self.data_from(at) {
            at = range.end;
            read(range.end - range.start);
            if self.lost.contains_key(&(range.start / SEGMENT)) || self.check(&range).is_ok() {
                continue;
            }
            let step = if bad_blocks < MOST_SPLIT {
                BLOCK
            } else {
                PIECE
            };
            for start in (range.start..range.end).step_by(step as usize) {
                let part = start..(start + step).min(range.end);
                let Err(error) = self.check(&part) else {
                    continue;
                };
                bad_blocks += 1;
                match found.last_mut() {
                    Some((before, _)) if before.end == part.start => before.end = part.end,
                    _ => found.push((part, error.to_string())),
                }
            }
        }
        found
    }

    /// The first of its data at or behind `offset`, in bytes: at most a piece,
    /// in one segment.
    fn data_from(&self, offset: u64) -> Option<Range<u64>> {
        let size = self.size();
        let content = self.content.read();
        let mut block = offset.div_ceil(BLOCK);
        loop {
            let start = block * BLOCK;
            if start >= size {
                return None;
            }
            let (state, end) = content.presence.run(block, size.div_ceil(BLOCK));
            if state == BlockState::Data {
                let segment_end = (start / SEGMENT + 1) * SEGMENT;
                let end = (end * BLOCK).min(size).min(segment_end);
                return Some(start..end.min(start + PIECE));
            }
            block = end;
        }
    }

    fn check(&self, range: &Range<u64>) -> Result<()> {
        let mut bytes = vec![0; (range.end - range.start) as usize];
        self.read_data(range.start, &mut bytes)
    }
}
