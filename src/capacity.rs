//! How much room the store has, and who may have the last of it.
//!
//! Writers stop at a reserve that they cannot see (`statfs` hides it), so
//! that a full store can still delete, which needs a new manifest, and seal
//! and compact, which make room but need some first (invariant 7).

use crate::error::{Error, Result};
use crate::files::Files;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// The largest reserve, in bytes; a small filesystem gives a twentieth.
const RESERVE_MAX: u64 = 256 << 20;
/// The smallest: what manifests need to be replaced, and then some.
const RESERVE_MIN: u64 = 1 << 20;
/// How much may be written before the filesystem is asked again.
const GRAIN: i64 = 16 << 20;

/// The room of a store. All numbers are bytes.
pub struct Capacity {
    files: Arc<dyn Files>,
    /// What writers may still write before the filesystem is asked again.
    allowance: AtomicI64,
}

impl fmt::Debug for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Capacity").finish_non_exhaustive()
    }
}

/// What the store's filesystem has. All numbers are bytes.
#[derive(Clone, Copy, Debug)]
pub struct Space {
    /// All of it.
    pub total_bytes: u64,
    /// What writers may have: without the reserve.
    pub free_bytes: u64,
    /// What is kept from them.
    pub reserve_bytes: u64,
}

impl Space {
    /// Whether somebody should do something about it: less than a twentieth
    /// is left for writers.
    pub fn is_low(&self) -> bool {
        self.free_bytes < self.total_bytes / 20
    }
}

impl Capacity {
    /// The room where `files` are.
    pub fn new(files: Arc<dyn Files>) -> Capacity {
        Capacity {
            files,
            allowance: AtomicI64::new(0),
        }
    }

    /// Asks the filesystem.
    pub fn space(&self) -> Result<Space> {
        let (total, free) = self
            .files
            .space()
            .map_err(Error::io("measuring", "the store"))?;
        let reserve = reserve(total);
        Ok(Space {
            total_bytes: total,
            free_bytes: free.saturating_sub(reserve),
            reserve_bytes: reserve,
        })
    }

    /// [`Error::Full`] if writers may not have `len` more bytes. Asks the
    /// filesystem at most once in 16 MiB, more often when little is left.
    pub fn check_write(&self, len: u64) -> Result<()> {
        let len = len as i64;
        if self.allowance.fetch_sub(len, Ordering::Relaxed) >= len {
            return Ok(());
        }
        let space = self.space()?;
        let free = space.free_bytes as i64;
        if free < len {
            self.allowance.store(0, Ordering::Relaxed);
            return Err(Error::Full {
                free: space.free_bytes + space.reserve_bytes,
                reserve: space.reserve_bytes,
            });
        }
        // Others may write at the same time, and data has overhead.
        self.allowance
            .store((free / 4).min(GRAIN) - len, Ordering::Relaxed);
        Ok(())
    }

    /// Whether background work may add `len` bytes: it may have half of the
    /// reserve, the other half is for deleting.
    pub fn has_room_for_work(&self, len: u64) -> Result<bool> {
        let (total, free) = self
            .files
            .space()
            .map_err(Error::io("measuring", "the store"))?;
        Ok(free >= reserve(total) / 2 + len)
    }
}

/// Bytes kept free of a filesystem of `total` bytes.
pub(crate) fn reserve(total: u64) -> u64 {
    (total / 20).clamp(RESERVE_MIN, RESERVE_MAX)
}
