//! Data requests: read, write, punch, seek, copy. Each is tried at once on
//! the thread that took it, and goes to a pool if it would have to wait; a
//! read or a sync only if no spare thread may wait for it.

use super::handle::Handle;
use super::shared::Shared;
use crate::disk::{Attempt, Disk, Seek, Source, Wait};
use crate::error::{Error, Result};
use fuser::{Errno, ReplyData, ReplyEmpty, ReplyLseek, ReplyWrite};
use std::cell::RefCell;
use std::sync::Arc;
use std::time::Instant;

thread_local! {
    /// Where a thread reads into; as large as its largest read so far (the
    /// kernel asks for a megabyte at most).
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

fn with_buffer<T>(size: usize, work: impl FnOnce(&mut [u8]) -> T) -> T {
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        work(&mut buffer[..size])
    })
}

impl Handle {
    fn read(&self, offset: u64, into: &mut [u8], wait: Wait) -> Result<Attempt<usize>> {
        match self {
            Handle::Live { disk, .. } => disk.read(offset, into, wait),
            Handle::Snapshot(open) => {
                (open.disk()).read_snapshot(open.snapshot(), offset, into, wait)
            }
            Handle::Info { text } => {
                let start = usize::try_from(offset)
                    .unwrap_or(usize::MAX)
                    .min(text.len());
                let rest = &text.as_bytes()[start..];
                let length = rest.len().min(into.len());
                into[..length].copy_from_slice(&rest[..length]);
                Ok(Attempt::Done(length))
            }
            Handle::Draft(open) => Ok(Attempt::Done(open.draft().read(offset, into))),
            Handle::Directory { .. } | Handle::Control(_) => Err(no_data()),
        }
    }

    fn seek(&self, offset: u64, what: Seek, wait: Wait) -> Result<Attempt<Option<u64>>> {
        match self {
            Handle::Live { disk, .. } => disk.seek(offset, what, wait),
            Handle::Snapshot(open) => {
                (open.disk()).seek_snapshot(open.snapshot(), offset, what, wait)
            }
            // All of it is data; the hole begins at its end.
            Handle::Info { text } => {
                let end = text.len() as u64;
                Ok(Attempt::Done((offset < end).then_some(match what {
                    Seek::Data => offset,
                    Seek::Hole => end,
                })))
            }
            Handle::Draft(_) | Handle::Directory { .. } | Handle::Control(_) => Err(no_data()),
        }
    }

    /// An import whose first use reading through this would be. Opening it
    /// for reading is none: qemu-img and rsync do that between two of their
    /// writes.
    fn import_to_finish(&self) -> Option<&Arc<Disk>> {
        match self {
            Handle::Live {
                disk, write: false, ..
            } if disk.is_import() && disk.image_writable() => Some(disk),
            _ => None,
        }
    }

    /// The disk that can be written through this.
    fn writable(&self) -> Result<&Arc<Disk>> {
        match self {
            Handle::Live { disk, .. } => Ok(disk),
            Handle::Snapshot(_) | Handle::Info { .. } => Err(Error::ReadOnly {
                what: self.to_string(),
            }),
            Handle::Draft(_) | Handle::Directory { .. } | Handle::Control(_) => Err(no_data()),
        }
    }
}

fn no_data() -> Error {
    Error::InvalidArgument {
        what: "this file has no such data".into(),
    }
}

impl std::fmt::Display for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Handle::Live { disk, .. } => write!(f, "{}/disk.img", disk.name()),
            Handle::Snapshot(open) => {
                let (disk, snapshot) = (open.disk().name(), open.snapshot().name());
                write!(f, "{disk}/.snapshots/{snapshot}/disk.img")
            }
            Handle::Info { .. } => f.write_str("info.toml"),
            Handle::Draft(open) => f.write_str(&open.path()),
            Handle::Directory { node, .. } => write!(f, "{node:?}"),
            Handle::Control(_) => f.write_str(".control"),
        }
    }
}

/// Reads and answers.
pub fn read(shared: &Arc<Shared>, handle: Arc<Handle>, offset: u64, size: usize, reply: ReplyData) {
    let began = Instant::now();
    if handle.import_to_finish().is_some() {
        let this = shared.clone();
        shared.meta.run(move || {
            let shared = this;
            if let Some(import) = handle.import_to_finish() {
                import.finish_import_or_later();
            }
            read_and_wait(&shared, &handle, offset, size, began, reply);
        });
        return;
    }
    let reply = with_buffer(size, |buffer| {
        match handle.read(offset, buffer, Wait::No) {
            Ok(Attempt::Done(length)) => {
                let counted = &shared.tree.store().metrics().reads;
                counted.observe(began.elapsed(), length as u64);
                reply.data(&buffer[..length]);
            }
            Ok(Attempt::WouldBlock) => return Some(reply),
            Err(error) => reply.error(shared.refused("read", &*handle, &error)),
        }
        None
    });
    if let Some(reply) = reply {
        let this = shared.clone();
        let job = move || read_and_wait(&this, &handle, offset, size, began, reply);
        match shared.leave() {
            Some(_leave) => shared.reads.run_here(job),
            None => shared.reads.run(job),
        }
    }
}

fn read_and_wait(
    shared: &Shared,
    handle: &Handle,
    offset: u64,
    size: usize,
    began: Instant,
    reply: ReplyData,
) {
    with_buffer(size, |buffer| {
        match handle.read(offset, buffer, Wait::Yes).map(Attempt::waited) {
            Ok(length) => {
                let counted = &shared.tree.store().metrics().reads;
                counted.observe(began.elapsed(), length as u64);
                reply.data(&buffer[..length]);
            }
            Err(error) => reply.error(shared.refused("read", handle, &error)),
        }
    });
}

/// Writes and answers; with `synchronous` (O_SYNC, O_DSYNC) only when what
/// was written is on disk (invariant 1).
pub fn write(
    shared: &Arc<Shared>,
    handle: Arc<Handle>,
    offset: u64,
    data: &[u8],
    synchronous: bool,
    reply: ReplyWrite,
) {
    // The kernel's requests are far below 4 GiB.
    let length = data.len() as u32;
    if matches!(&*handle, Handle::Draft(_)) {
        // Whoever closes it has it until it is in force, which is on a disk.
        let (this, data) = (shared.clone(), data.to_vec());
        return shared.meta.run(move || {
            let written = match &*handle {
                Handle::Draft(open) => open.write(offset, &data),
                _ => Err(no_data()),
            };
            match written {
                Ok(()) => reply.written(length),
                Err(error) => reply.error(this.refused("write", &*handle, &error)),
            }
        });
    }
    let disk = match handle.writable() {
        Ok(disk) => disk.clone(),
        Err(error) => return reply.error(shared.refused("write", &*handle, &error)),
    };
    let (this, flusher, began) = (shared.clone(), shared.clone(), Instant::now());
    let done = move |outcome: Result<()>| match outcome {
        Ok(()) => {
            let counted = &this.tree.store().metrics().writes;
            counted.observe(began.elapsed(), length.into());
            reply.written(length);
        }
        Err(error) => reply.error(this.refused("write", &*handle, &error)),
    };
    let answer = move |disk: &Arc<Disk>, outcome: Result<()>| match outcome {
        Ok(()) if synchronous => flusher.flush(disk, Box::new(done)),
        outcome => done(outcome),
    };
    match disk.write(offset, data, Wait::No) {
        Ok(Attempt::Done(())) => answer(&disk, Ok(())),
        Err(error) => answer(&disk, Err(error)),
        Ok(Attempt::WouldBlock) => {
            let data = data.to_vec();
            shared.writes.run(move || {
                let outcome = disk.write(offset, &data, Wait::Yes).map(Attempt::waited);
                answer(&disk, outcome);
            });
        }
    }
}

/// Answers a close: what was written may become a policy now.
pub fn finish(shared: &Shared, handle: &Handle, reply: ReplyEmpty) {
    match handle {
        Handle::Draft(open) => match open.finish() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(shared.refused("close", handle, &error)),
        },
        _ => reply.ok(),
    }
}

/// Answers when everything written so far is on disk.
pub fn fsync(shared: &Arc<Shared>, handle: Arc<Handle>, reply: ReplyEmpty) {
    match &*handle {
        Handle::Live { disk, .. } => {
            let (disk, this, began) = (disk.clone(), shared.clone(), Instant::now());
            let done = move |outcome| match outcome {
                Ok(()) => {
                    let counted = &this.tree.store().metrics().syncs;
                    counted.observe(began.elapsed(), 0);
                    reply.ok();
                }
                Err(error) => reply.error(this.refused("fsync", &*handle, &error)),
            };
            shared.flush(&disk, Box::new(done));
        }
        // What they show was on disk before it was shown.
        _ => reply.ok(),
    }
}

/// Allocates, punches or zeroes a range. `mode` is as in fallocate(2).
pub fn fallocate(
    shared: &Arc<Shared>,
    handle: Arc<Handle>,
    offset: u64,
    length: u64,
    mode: i32,
    reply: ReplyEmpty,
) {
    const KEEP: i32 = libc::FALLOC_FL_KEEP_SIZE;
    const PUNCH: i32 = libc::FALLOC_FL_PUNCH_HOLE | KEEP;
    const ZERO: i32 = libc::FALLOC_FL_ZERO_RANGE;
    const ZERO_AND_KEEP: i32 = ZERO | KEEP;
    // posix_fallocate(3) then writes zeros; no refusal to tell of.
    if matches!(&*handle, Handle::Draft(_)) {
        return reply.error(Errno::EOPNOTSUPP);
    }
    let refuse = |error: Error, reply: ReplyEmpty| {
        reply.error(shared.refused("fallocate", &*handle, &error));
    };
    let disk = match handle.writable() {
        Ok(disk) => disk.clone(),
        Err(error) => return refuse(error, reply),
    };
    match offset.checked_add(length) {
        Some(end) if i64::try_from(end).is_ok() => {}
        _ => {
            return refuse(
                Error::TooLarge {
                    size: offset.saturating_add(length),
                    limit: i64::MAX as u64,
                },
                reply,
            );
        }
    }
    match mode {
        0 | KEEP => {
            let this = shared.clone();
            shared
                .meta
                .run(move || match disk.allocate(offset, length, mode == KEEP) {
                    Ok(()) => reply.ok(),
                    Err(error) => reply.error(this.refused("fallocate", &*handle, &error)),
                });
        }
        PUNCH | ZERO | ZERO_AND_KEEP => {
            let extend = mode == ZERO;
            let this = shared.clone();
            match disk.punch(offset, length, extend, Wait::No) {
                Ok(Attempt::Done(())) => reply.ok(),
                Err(error) => refuse(error, reply),
                Ok(Attempt::WouldBlock) => shared.writes.run(move || {
                    match disk
                        .punch(offset, length, extend, Wait::Yes)
                        .map(Attempt::waited)
                    {
                        Ok(()) => reply.ok(),
                        Err(error) => reply.error(this.refused("fallocate", &*handle, &error)),
                    }
                }),
            }
        }
        _ => refuse(
            Error::NotSupported {
                what: format!("fallocate of mode {mode:#x}"),
            },
            reply,
        ),
    }
}

/// Finds the next data or hole.
pub fn lseek(
    shared: &Arc<Shared>,
    handle: Arc<Handle>,
    offset: i64,
    whence: i32,
    reply: ReplyLseek,
) {
    let what = match whence {
        libc::SEEK_DATA => Seek::Data,
        libc::SEEK_HOLE => Seek::Hole,
        // The kernel does the others itself.
        _ => return reply.error(Errno::EINVAL),
    };
    let Ok(from) = u64::try_from(offset) else {
        return reply.error(Errno::ENXIO);
    };
    fn answer(shared: &Shared, handle: &Handle, outcome: Result<Option<u64>>, reply: ReplyLseek) {
        match outcome.map(|found| found.map(i64::try_from)) {
            Ok(Some(Ok(found))) => reply.offset(found),
            // Beyond the end, or no data up to it: not worth a line.
            Ok(_) => reply.error(Errno::ENXIO),
            Err(error) => reply.error(shared.refused("lseek", handle, &error)),
        }
    }
    match handle.seek(from, what, Wait::No) {
        Ok(Attempt::Done(found)) => answer(shared, &handle, Ok(found), reply),
        Err(error) => answer(shared, &handle, Err(error), reply),
        Ok(Attempt::WouldBlock) => {
            let this = shared.clone();
            shared.reads.run(move || {
                let what = match whence {
                    libc::SEEK_DATA => Seek::Data,
                    _ => Seek::Hole,
                };
                let outcome = handle.seek(from, what, Wait::Yes).map(Attempt::waited);
                answer(&this, &handle, outcome, reply);
            })
        }
    }
}

/// Copies within the store, by reference where it can.
pub fn copy(
    shared: &Arc<Shared>,
    source: Arc<Handle>,
    from: u64,
    target: Arc<Handle>,
    to: u64,
    length: u64,
    reply: ReplyWrite,
) {
    // The answer has 32 bits; whoever wants more asks again.
    const MOST: u64 = (u32::MAX as u64) & !4095;
    // The kernel, or `cp`, then reads and writes; no refusal to tell of.
    if matches!(&*target, Handle::Draft(_)) {
        return reply.error(Errno::EOPNOTSUPP);
    }
    let this = shared.clone();
    shared.meta.run(move || {
        let outcome = (|| {
            let disk = target.writable()?;
            if let Some(import) = source.import_to_finish() {
                import.finish_import_or_later();
            }
            let source = match &*source {
                Handle::Live { disk, .. } => Source::Live(disk.clone()),
                Handle::Snapshot(open) => {
                    Source::Snapshot(open.disk().clone(), open.snapshot().clone())
                }
                // The kernel then copies by reading and writing.
                _ => {
                    return Err(Error::NotSupported {
                        what: "copying a range of this file by reference".into(),
                    });
                }
            };
            disk.copy_range(&source, from, to, length.min(MOST))
        })();
        match outcome {
            Ok(copied) => reply.written(copied as u32),
            Err(error) => reply.error(this.refused("copy_file_range", &*target, &error)),
        }
    });
}
