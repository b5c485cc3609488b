//! Where the log goes.

use super::failure::Failure;
use std::fs::{self, File};
use std::io::{self, IsTerminal};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Mutex;
use tracing::Level;

/// The log's name in the store.
pub(super) const FILE: &str = "snapdisk.log";
const ROTATED: &str = "snapdisk.log.1";
/// Bytes over which a log is put aside at the next mount.
const ROTATE_OVER: u64 = 16 << 20;

/// Puts a long log aside, in place of the one before it.
pub(super) fn rotate(store: &Path) -> Result<(), Failure> {
    let path = store.join(FILE);
    let rotated = match fs::metadata(&path) {
        Ok(log) if log.len() > ROTATE_OVER => fs::rename(&path, store.join(ROTATED)),
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    rotated.map_err(|error| Failure::system("rotating", &path, &error))
}

/// From now on the log goes to the end of the store's.
pub(super) fn to_store(store: &Path) -> Result<(), Failure> {
    let path = store.join(FILE);
    let file = File::options()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(&path)
        .map_err(|error| Failure::system("opening", &path, &error))?;
    let begun = tracing_subscriber::fmt()
        .with_max_level(Level::INFO)
        .with_target(false)
        .with_ansi(false)
        .with_writer(Mutex::new(file))
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
