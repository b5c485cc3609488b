//! Which packs are not to be relied on, for later runs: their directories do
//! not show it, so nothing can make this anew but reading all of a pack.
//!
//! A text beside the index and not in it, since that may be deleted or given
//! up at any moment. A line for each such pack: its name, `damaged` or
//! `doubted`, and the CRC-32 (IEEE 802.3) of what is before it, in
//! hexadecimal. No file if there is none.

use super::Health;
use crate::pack::PackName;
use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Its name in the store.
const FILE: &str = "unsound";
const DAMAGED: &str = "damaged";
const DOUBTED: &str = "doubted";

/// The packs that are not sound.
pub type Unsound = BTreeMap<PackName, Health>;

/// The file that belongs to an index.
pub fn path_beside(index: &Path) -> PathBuf {
    index.with_file_name(FILE)
}

/// What a file says; nothing if there is none. An error if any of it cannot
/// be read or understood: then any pack may be one of them.
pub fn read(path: &Path) -> io::Result<Unsound> {
    let text = match fs::read_to_string(path) {
        Err(error) if is_absent(&error) => return Ok(Unsound::new()),
        text => text?,
    };
    let parsed = text.lines().map(|line| {
        let wrong = || io::Error::new(io::ErrorKind::InvalidData, format!("{line:?} is no line"));
        parse(line).ok_or_else(wrong)
    });
    parsed.collect()
}

fn is_absent(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(error.kind(), Kind::NotFound | Kind::NotADirectory)
}

fn parse(line: &str) -> Option<(PackName, Health)> {
    let (said, crc) = line.rsplit_once(' ')?;
    if crc != checksum(said) {
        return None;
    }
    let (name, health) = said.split_once(' ')?;
    let health = match health {
        DAMAGED => Health::Damaged,
        DOUBTED => Health::Doubted,
        _ => return None,
    };
    Some((name.parse().ok()?, health))
}

fn checksum(said: &str) -> String {
    format!("{:08x}", crc32fast::hash(said.as_bytes()))
}

/// Writes a file in place of the one that is there; durable when this
/// returns. After an error the old one is there, or the new one.
pub fn write(path: &Path, unsound: &Unsound) -> io::Result<()> {
    let mut text = String::new();
    for (name, health) in unsound {
        let word = match health {
            Health::Sound => continue,
            // In the next run it may be read.
            Health::Doubted | Health::Unread => DOUBTED,
            Health::Damaged => DAMAGED,
        };
        let said = format!("{name} {word}");
        text.push_str(&format!("{said} {}\n", checksum(&said)));
    }
    if text.is_empty() {
        match fs::remove_file(path) {
            Err(error) if is_absent(&error) => return Ok(()),
            removed => removed?,
        }
    } else {
        let temporary = path.with_extension("new");
        let written = (|| {
            let mut options = crate::sys::private();
            let mut file = (options.write(true).create(true).truncate(true)).open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        })();
        if written.is_err() {
            // There may be none.
            let _ = fs::remove_file(&temporary);
        }
        written?;
    }
    let above = path.parent().unwrap_or(Path::new("/"));
    fs::File::open(above)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was written is read; whatever is wrong with it is seen.
    #[test]
    fn a_file_is_whole_or_an_error() -> io::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = path_beside(&dir.path().join("index"));
        assert_eq!(read(&path)?, Unsound::new());
        let names: Vec<PackName> = (0..4).map(PackName::random).collect();
        let healths = [
            Health::Damaged,
            Health::Sound,
            Health::Doubted,
            Health::Unread,
        ];
        let all: Unsound = names.iter().copied().zip(healths).collect();
        write(&path, &all)?;
        let kept = [
            (names[0], Health::Damaged),
            (names[2], Health::Doubted),
            (names[3], Health::Doubted),
        ];
        assert_eq!(read(&path)?, kept.into_iter().collect());
        let sound = fs::read(&path)?;
        for at in 0..sound.len() {
            for bit in [0x01, 0x10, 0x80] {
                let mut bytes = sound.clone();
                bytes[at] ^= bit;
                fs::write(&path, &bytes)?;
                assert!(read(&path).is_err(), "bit {bit:#x} of byte {at}");
            }
        }
        write(&path, &Unsound::new())?;
        assert!(!path.exists());
        write(&path, &Unsound::new())
    }
}
