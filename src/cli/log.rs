//! Where the log goes.

use super::failure::Failure;
use crate::capacity;
use crate::sys;
use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use tracing::Level;

/// The log's name in the store.
pub(super) const FILE: &str = "snapdisk.log";
const ROTATED: &str = "snapdisk.log.1";
/// Bytes over which a log is put aside.
const ROTATE_OVER: u64 = 16 << 20;

/// Puts a long log aside, in place of the one before it.
pub(super) fn rotate(store: &Path) -> Result<(), Failure> {
    let path = store.join(FILE);
    let rotated = match fs::metadata(&path) {
        Ok(log) if log.len() > ROTATE_OVER => put_aside(store),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    rotated.map_err(|error| Failure::system("rotating", &path, &error))
}

fn put_aside(store: &Path) -> io::Result<()> {
    fs::rename(store.join(FILE), store.join(ROTATED))
}

/// The store's log while it is written.
struct Log {
    store: PathBuf,
    file: File,
    len: u64,
}

impl Log {
    fn open(store: &Path) -> io::Result<Log> {
        let file = File::options()
            .append(true)
            .create(true)
            .mode(0o600)
            .open(store.join(FILE))?;
        let len = file.metadata()?.len();
        Ok(Log {
            store: store.to_owned(),
            file,
            len,
        })
    }
}

impl Write for Log {
    /// Drops what would take the room that deleting needs on a full disk.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        if self.len > ROTATE_OVER {
            put_aside(&self.store)?;
            *self = Log::open(&self.store)?;
        }
        let (total, free) = sys::space(&self.store)?;
        if free < capacity::reserve(total) / 4 {
            return Ok(line.len());
        }
        let written = self.file.write(line)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// From now on the log goes to the end of the store's.
pub(super) fn to_store(store: &Path) -> Result<(), Failure> {
    let path = store.join(FILE);
    let log = Log::open(store).map_err(|error| Failure::system("opening", &path, &error))?;
    let begun = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_target(false)
        .with_ansi(false)
        .with_writer(Mutex::new(log))
        .try_init();
    begun.map_err(|error| Failure::new("starting the log", error))
}

/// From now on the log goes to stderr.
pub(super) fn to_stderr() -> Result<(), Failure> {
    let begun = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(io::stderr)
        .try_init();
    begun.map_err(|error| Failure::new("starting the log", error))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// It is put aside also while it is written, and what is written then is
    /// in the new one.
    #[test]
    fn a_log_that_gets_long_is_put_aside() -> Result<(), Box<dyn std::error::Error>> {
        let store = tempfile::tempdir()?;
        let mut log = Log::open(store.path())?;
        log.write_all(b"before")?;
        log.file.set_len(ROTATE_OVER + 1)?;
        log.len = ROTATE_OVER + 1;
        log.write_all(b"after")?;
        assert_eq!(fs::read(store.path().join(FILE))?, b"after");
        assert!(fs::read(store.path().join(ROTATED))?.starts_with(b"before"));
        Ok(())
    }

    #[test]
    fn only_a_long_log_is_put_aside() -> Result<(), Box<dyn std::error::Error>> {
        let store = tempfile::tempdir()?;
        rotate(store.path())?;
        fs::write(store.path().join(FILE), "short")?;
        rotate(store.path())?;
        assert!(!store.path().join(ROTATED).exists());
        File::options()
            .write(true)
            .open(store.path().join(FILE))?
            .set_len(ROTATE_OVER + 1)?;
        rotate(store.path())?;
        assert!(store.path().join(ROTATED).exists());
        assert!(!store.path().join(FILE).exists());
        Ok(())
    }
}
