//! One process at a time.

use crate::error::{Error, Result};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

/// The lock of a store, held until dropped or until the process ends in
/// whatever way.
pub struct StoreLock {
    file: File,
    path: PathBuf,
}

impl Drop for StoreLock {
    fn drop(&mut self) {
        // Closing it would not do: a process that is just being started has
        // the open file as well, until it runs its program.
        if let Err(error) = self.file.unlock() {
            tracing::debug!("{}: {error}", self.path.display());
        }
    }
}

impl StoreLock {
    /// Takes the lock of the store in `root`; [`Error::Locked`] with who has
    /// it if it is taken.
    pub fn take(root: &Path) -> Result<StoreLock> {
        let path = root.join("lock");
        let shown = path.display().to_string();
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(Error::io("opening", shown.clone()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut holder = String::new();
                if file.read_to_string(&mut holder).is_err() || holder.trim().is_empty() {
                    holder = "another process".into();
                }
                return Err(Error::Locked {
                    path: root.display().to_string(),
                    holder: holder.trim().to_owned(),
                });
            }
            Err(TryLockError::Error(error)) => return Err(Error::io("locking", shown)(error)),
        }
        let lock = StoreLock { file, path };
        lock.set_holder(&format!("process {}", std::process::id()));
        Ok(lock)
    }

    /// Says who holds it, for those who find it taken.
    pub fn set_holder(&self, text: &str) {
        let mut file = &self.file;
        let written = file
            .set_len(0)
            .and_then(|()| file.seek(SeekFrom::Start(0)))
            .and_then(|_| file.write_all(text.as_bytes()));
        if let Err(error) = written {
            // Only the message that others see is poorer.
            tracing::debug!("{}: {error}", self.path.display());
        }
    }
}
