//! What a live image may be after a crash, with plain vectors.

use super::faulty::SECTOR;
use std::collections::HashMap;
use std::ops::Range;

type Sector = [u8; SECTOR as usize];

/// A live image: its bytes now, and what each sector was since the last
/// flush, each of which a crash may bring back.
#[derive(Clone, Default)]
pub struct Image {
    /// As it is read now.
    pub bytes: Vec<u8>,
    earlier: HashMap<u64, Vec<Sector>>,
    earlier_sizes: Vec<usize>,
}

impl Image {
    /// An image that is on disk as it is.
    pub fn durable(bytes: Vec<u8>) -> Image {
        Image {
            bytes,
            ..Image::default()
        }
    }

    fn sector(bytes: &[u8], index: u64) -> Sector {
        let mut sector = [0; SECTOR as usize];
        let from = ((index * SECTOR) as usize).min(bytes.len());
        let to = ((index + 1) * SECTOR) as usize;
        let part = &bytes[from..to.min(bytes.len())];
        sector[..part.len()].copy_from_slice(part);
        sector
    }

    /// Before a change of a range: what is there may come back.
    fn remember(&mut self, range: Range<usize>) {
        let sectors = range.start as u64 / SECTOR..(range.end as u64).div_ceil(SECTOR);
        for index in sectors {
            let now = Self::sector(&self.bytes, index);
            let earlier = self.earlier.entry(index).or_default();
            if earlier.last() != Some(&now) {
                earlier.push(now);
            }
        }
        self.earlier_sizes.push(self.bytes.len());
    }

    /// Writes, growing if need be.
    pub fn write(&mut self, at: usize, data: &[u8]) {
        if data.is_empty() {
            return;
        }
        let end = at + data.len();
        self.remember(at..end);
        if self.bytes.len() < end {
            self.bytes.resize(end, 0);
        }
        self.bytes[at..end].copy_from_slice(data);
    }

    /// Makes a range zeros; with `extend` it may reach past the end.
    pub fn zero(&mut self, range: Range<usize>, extend: bool) {
        self.remember(range.clone());
        if extend && self.bytes.len() < range.end {
            self.bytes.resize(range.end, 0);
        }
        let end = range.end.min(self.bytes.len());
        if range.start < end {
            self.bytes[range.start..end].fill(0);
        }
    }

    /// Cuts, or grows with zeros.
    pub fn resize(&mut self, size: usize) {
        self.remember(size.min(self.bytes.len())..size.max(self.bytes.len()));
        self.bytes.resize(size, 0);
    }

    /// Everything is on disk now.
    pub fn flushed(&mut self) {
        self.earlier.clear();
        self.earlier_sizes.clear();
    }

    /// Takes `found` for what is read now: an operation failed on the way,
    /// and nothing of it may have reached the disk yet.
    pub fn seen(&mut self, found: Vec<u8>) {
        let end = self.bytes.len().max(found.len());
        self.remember(0..end);
        self.bytes = found;
    }

    /// Whether a crash may have left `found`: each sector is as it is now or
    /// as it was some time since the last flush, and so is the size. Says
    /// where not.
    pub fn check_crashed(&self, found: &[u8]) -> Result<(), String> {
        if found.len() != self.bytes.len() && !self.earlier_sizes.contains(&found.len()) {
            return Err(format!(
                "its size is {}, expected {} or one of {:?}",
                found.len(),
                self.bytes.len(),
                self.earlier_sizes
            ));
        }
        if found == self.bytes {
            return Ok(());
        }
        for index in 0..(found.len() as u64).div_ceil(SECTOR) {
            let from = (index * SECTOR) as usize;
            let part = &found[from..(from + SECTOR as usize).min(found.len())];
            let fits = |sector: &Sector| sector[..part.len()] == *part;
            let earlier = self.earlier.get(&index).map_or(&[][..], Vec::as_slice);
            if !fits(&Self::sector(&self.bytes, index)) && !earlier.iter().any(fits) {
                let right = Self::sector(&self.bytes, index);
                let at = (0..part.len()).find(|at| part[*at] != right[*at]);
                let at = at.unwrap_or(0);
                let end = (at + 8).min(part.len());
                let earlier: Vec<&[u8]> = earlier.iter().map(|sector| &sector[at..end]).collect();
                return Err(format!(
                    "sector {index} has from byte {at} on {:02x?}, expected {:02x?} or one of \
                     {earlier:02x?}",
                    &part[at..end],
                    &right[at..end],
                ));
            }
        }
        Ok(())
    }
}
