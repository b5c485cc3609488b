//! Open files and directories, by the number that the kernel gives back.

use super::control::Conversation;
use crate::disk::{Disk, Opened};
use crate::snapshot::OpenSnapshot;
use crate::tree::drafts::OpenDraft;
use crate::tree::{Listed, Node};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Something open.
pub enum Handle {
    /// A live image, or an import.
    Live {
        /// Its disk.
        disk: Arc<Disk>,
        /// Counts as one opening as long as it is there.
        _opened: Opened,
        /// Whether it was opened for writing.
        write: bool,
        /// The thread that opened it, as the kernel numbers it.
        thread: u32,
    },
    /// A snapshot's image.
    Snapshot(OpenSnapshot),
    /// An `info.toml` as it was when it was opened.
    Info {
        /// The text.
        text: String,
    },
    /// A policy, or a scratch file beside one, for writing.
    Draft(OpenDraft),
    /// A directory.
    Directory {
        /// Which one.
        node: Node,
        /// Its names when it was last read from the start. Held
        /// over the look at the tree, and not over a reply.
        names: Mutex<Option<Vec<Listed>>>,
    },
    /// A conversation with the command.
    Control(Arc<Conversation>),
}

const SHARDS: usize = 16;

/// All that is open.
pub struct Handles {
    next: AtomicU64,
    /// Leaves: taken for a look-up only.
    shards: [RwLock<HashMap<u64, Arc<Handle>>>; SHARDS],
}

impl Default for Handles {
    fn default() -> Handles {
        Handles {
            next: AtomicU64::new(1),
            shards: std::array::from_fn(|_| RwLock::default()),
        }
    }
}

impl Handles {
    fn shard(&self, number: u64) -> &RwLock<HashMap<u64, Arc<Handle>>> {
        &self.shards[number as usize % SHARDS]
    }

    /// Keeps a handle and gives it a number that was never used.
    pub fn insert(&self, handle: Handle) -> u64 {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.shard(number).write().insert(number, Arc::new(handle));
        number
    }

    /// The handle of a number.
    pub fn get(&self, number: u64) -> Option<Arc<Handle>> {
        self.shard(number).read().get(&number).cloned()
    }

    /// Lets a handle go, which ends its opening.
    pub fn release(&self, number: u64) {
        let handle = self.shard(number).write().remove(&number);
        let written_import = match handle.as_deref() {
            Some(Handle::Live {
                disk, write: true, ..
            }) if disk.is_import() => Some(disk.clone()),
            _ => None,
        };
        drop(handle);
        if let Some(disk) = written_import {
            disk.released();
        }
    }

    /// Lets everything go that the kernel will not release any more.
    pub fn clear(&self) {
        for shard in &self.shards {
            let handles = std::mem::take(&mut *shard.write());
            drop(handles);
        }
    }

    /// Whether `opener` has opened the live image of a disk for writing. An
    /// open with O_TRUNC truncates after it has opened, in the same thread,
    /// without naming its handle.
    pub fn has_writer_of(&self, number: u32, opener: u32) -> bool {
        let found = |handle: &Arc<Handle>| {
            matches!(
                &**handle,
                Handle::Live { disk, write: true, thread, .. }
                    if disk.number() == number && *thread == opener
            )
        };
        self.shards
            .iter()
            .any(|shard| shard.read().values().any(found))
    }
}
