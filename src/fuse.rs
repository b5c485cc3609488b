//! The FUSE adapter: each operation is one call into the [tree](crate::tree)
//! or a [disk](crate::disk) and one reply.
//!
//! Threads (invariant 9): those that take requests from the kernel do not
//! wait. Data is tried at once and goes to a pool if it would have to wait
//! (`fuse/data.rs`); whatever changes or renders metadata goes to a pool of its
//! own; fsync is answered by whoever completes the flush. But the way to a
//! pool and back costs about as much as reading a chunk, so up to half of the
//! threads may wait themselves, for a read or a flush. No lock is held
//! across a reply.

use crate::error::Error;
use crate::tree::Node;
use crate::tree::attribute::{Mode, PREFIX, USER};
use crate::tree::change::{Caller, Change};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenAccMode, OpenFlags, RenameFlags,
    ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyIoctl,
    ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use handle::Handle;
use parking_lot::Mutex;
use request::{
    attributes_live, file_attr, file_type, is_image, name_lives, owner, process_of, reply_entry,
    reply_xattr, time,
};
use shared::Shared;
use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Instant, SystemTime};

pub mod control;
mod cp;
mod data;
pub mod errno;
mod handle;
pub mod inode;
mod mount;
mod open;
mod request;
mod shared;

pub use mount::{MountOptions, Unmounter, check_mount_point, serve};

/// The largest write that the kernel sends, in bytes.
const MAX_WRITE: u32 = 1024 * 1024;
/// Requests of read-ahead and direct I/O that may be under way.
const MAX_BACKGROUND: u16 = 64;
/// The unit that statfs counts in, in bytes.
const STATFS_BLOCK: u64 = 4096;

/// The filesystem that fuser calls.
struct Adapter(Arc<Shared>);

impl Filesystem for Adapter {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let wanted = [
            InitFlags::FUSE_ASYNC_DIO,
            InitFlags::FUSE_PARALLEL_DIROPS,
            // Nothing here ever has a set-user-id bit or capabilities, so
            // there is nothing to clear; without this the kernel would ask
            // for security.capability before every single write.
            InitFlags::FUSE_HANDLE_KILLPRIV_V2,
        ];
        for flag in wanted {
            if let Err(lacking) = config.add_capabilities(flag) {
                tracing::info!(?lacking, "this kernel lacks a capability of FUSE");
            }
        }
        // The nearest possible value otherwise.
        if let Err(nearest) = config.set_max_write(MAX_WRITE) {
            tracing::info!(nearest, "smaller writes than wanted");
        }
        if let Err(nearest) = config.set_max_background(MAX_BACKGROUND) {
            tracing::info!(nearest, "fewer background requests than wanted");
        }
        Ok(())
    }

    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let found = self.0.find(parent, name);
        let name = name.to_owned();
        self.with_attributes(found, move |shared, found| match found {
            Ok(found) => reply_entry(reply, &found),
            // Asking for what is not there is no refusal.
            Err(Error::Missing { .. }) => reply.error(Errno::ENOENT),
            Err(error) => {
                reply.error(shared.refused("lookup", shared.shown_in(parent, &name), &error))
            }
        });
    }

    fn getattr(&self, request: &Request, number: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        let thread = request.pid();
        self.with_attributes(self.0.node(number), move |shared, found| match found {
            Ok(mut found) => {
                if is_image(found.node)
                    && cp::copies_within(thread, &shared.mount_point, &shared.outside)
                {
                    found.allocated = found.allocated.max(found.size);
                }
                reply.attr(&attributes_live(found.node), &file_attr(&found));
            }
            Err(error) => reply.error(shared.refused("stat", shared.shown(number), &error)),
        });
    }

    fn setattr(
        &self,
        request: &Request,
        number: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _: Option<TimeOrNow>,
        modified: Option<TimeOrNow>,
        _: Option<SystemTime>,
        handle: Option<FileHandle>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change {
            uid,
            gid,
            mode,
            modified: modified.map(time),
            size,
        };
        let thread = request.pid();
        self.meta(move |shared| {
            let changed = shared.node(number).and_then(|node| {
                let writer = match (node, handle) {
                    (_, Some(_)) => true,
                    (Node::Live(disk) | Node::Import(disk), None) => {
                        shared.handles.has_writer_of(disk, thread)
                    }
                    _ => false,
                };
                shared.tree.change(node, change, writer)?;
                shared.attributes(node)
            });
            match changed {
                Ok(found) => reply.attr(&attributes_live(found.node), &file_attr(&found)),
                Err(error) => reply.error(shared.refused("setattr", shared.shown(number), &error)),
            }
        });
    }

    fn readlink(&self, _: &Request, number: INodeNo, reply: ReplyData) {
        match self
            .0
            .node(number)
            .and_then(|node| self.0.tree.target(node))
        {
            Ok(target) => reply.data(target.as_bytes()),
            Err(error) => reply.error(self.0.refused("readlink", self.0.shown(number), &error)),
        }
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let (name, owner) = (name.to_owned(), owner(request, mode));
        self.meta(move |shared| {
            shared.answer_made("mknod", parent, &name, reply, |parent| {
                match mode & libc::S_IFMT {
                    0 | libc::S_IFREG => shared.tree.make_file(parent, &name, owner),
                    _ => shared.tree.make_other(parent, &name),
                }
            });
        });
    }

    fn mkdir(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        reply: ReplyEntry,
    ) {
        let (name, owner) = (name.to_owned(), owner(request, mode));
        self.meta(move |shared| {
            let began = Instant::now();
            shared.answer_made("mkdir", parent, &name, reply, |parent| {
                let made = shared.tree.make_directory(parent, &name, owner)?;
                if let Node::Snapshot(..) | Node::Group(_) = made {
                    let counted = &shared.tree.store().metrics().snapshots;
                    counted.observe(began.elapsed(), 0);
                }
                Ok(made)
            });
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, thread, user) = (name.to_owned(), request.pid(), request.uid());
        self.meta(move |shared| {
            let caller = Caller {
                process: process_of(thread),
                user,
            };
            let removed = shared
                .node(parent)
                .and_then(|parent| shared.tree.remove_file(parent, &name, caller));
            match removed {
                Ok(()) => reply.ok(),
                Err(error) => {
                    reply.error(shared.refused("unlink", shared.shown_in(parent, &name), &error))
                }
            }
        });
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (name, thread, user) = (name.to_owned(), request.pid(), request.uid());
        let shared = self.shared();
        self.0.meta.run(move || {
            let caller = Caller {
                process: process_of(thread),
                user,
            };
            let members = shared.members_of_group(parent, &name);
            let removed = shared
                .node(parent)
                .and_then(|parent| shared.tree.remove_directory(parent, &name, caller));
            match removed {
                Ok(()) if members.is_empty() => reply.ok(),
                Ok(()) => shared.forget_snapshots(members, reply),
                Err(error) => {
                    reply.error(shared.refused("rmdir", shared.shown_in(parent, &name), &error))
                }
            }
        });
    }

    fn symlink(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        target: &Path,
        reply: ReplyEntry,
    ) {
        let (name, target) = (name.to_owned(), target.to_owned());
        let owner = owner(request, 0o777);
        self.meta(move |shared| {
            shared.answer_made("symlink", parent, &name, reply, |parent| {
                let target = target.as_os_str();
                shared.tree.make_symbolic_link(parent, &name, target, owner)
            });
        });
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (name, new_name) = (name.to_owned(), new_name.to_owned());
        self.meta(move |shared| {
            let renamed = (|| {
                if flags.intersects(RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_WHITEOUT) {
                    return Err(Error::InvalidArgument {
                        what: "exchanging names".into(),
                    });
                }
                shared.tree.rename(
                    shared.node(parent)?,
                    &name,
                    shared.node(new_parent)?,
                    &new_name,
                    flags.contains(RenameFlags::RENAME_NOREPLACE),
                )
            })();
            match renamed {
                Ok(()) => reply.ok(),
                Err(error) => {
                    let (from, to) = (
                        shared.shown_in(parent, &name),
                        shared.shown_in(new_parent, &new_name),
                    );
                    let on = format!("{from} to {to}");
                    reply.error(shared.refused("rename", on, &error));
                }
            }
        });
    }

    fn link(
        &self,
        _: &Request,
        number: INodeNo,
        new_parent: INodeNo,
        new_name: &OsStr,
        reply: ReplyEntry,
    ) {
        let new_name = new_name.to_owned();
        self.meta(move |shared| {
            shared.answer_made("link", new_parent, &new_name, reply, |parent| {
                let node = shared.node(number)?;
                shared.tree.link(node, parent, &new_name)
            });
        });
    }

    fn open(&self, request: &Request, number: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let write = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let thread = request.pid();
        let work = move |shared: &Shared| match shared
            .node(number)
            .and_then(|node| shared.open(node, write, thread))
        {
            Ok((handle, flags)) => {
                reply.opened(FileHandle(shared.handles.insert(handle)), flags);
            }
            Err(error) => reply.error(shared.refused("open", shared.shown(number), &error)),
        };
        match inode::node_of(number.0) {
            // Rendering waits.
            Some(Node::SnapshotInfo(..) | Node::StatusFile(_)) => self.meta(work),
            _ => work(&self.0),
        }
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (name, owner, thread) = (name.to_owned(), owner(request, mode), request.pid());
        let write = OpenFlags(flags).acc_mode() != OpenAccMode::O_RDONLY;
        self.meta(move |shared| {
            let created = (|| {
                let parent = shared.node(parent)?;
                let node = match shared.tree.make_file(parent, &name, owner) {
                    // Somebody else was faster, which O_CREAT alone allows.
                    Err(Error::Exists { .. }) if flags & libc::O_EXCL == 0 => {
                        shared.tree.find(parent, &name)
                    }
                    made => made,
                }?;
                let attributes = shared.attributes(node)?;
                let (handle, flags) = shared.open(node, write, thread)?;
                Ok((attributes, handle, flags))
            })();
            match created {
                Ok((attributes, handle, flags)) => reply.created(
                    // One time for name and attributes: the shorter.
                    &name_lives(attributes.node).min(attributes_live(attributes.node)),
                    &file_attr(&attributes),
                    Generation(attributes.generation),
                    FileHandle(shared.handles.insert(handle)),
                    flags,
                ),
                Err(error) => {
                    reply.error(shared.refused("create", shared.shown_in(parent, &name), &error))
                }
            }
        });
    }

    fn read(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Some(handle) = self.0.handles.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        match &*handle {
            Handle::Control(conversation) => conversation.read(size as usize, reply),
            _ => data::read(&self.0, handle, offset, size as usize, reply),
        }
    }

    fn write(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        bytes: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Some(handle) = self.0.handles.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        match &*handle {
            Handle::Control(conversation) => match conversation.write(bytes, &self.0.verbs) {
                Ok(()) => reply.written(bytes.len() as u32),
                Err(error) => reply.error(self.0.refused("write", &*handle, &error)),
            },
            _ => {
                // O_SYNC includes this bit.
                let synchronous = flags.0 & libc::O_DSYNC != 0;
                data::write(&self.0, handle, offset, bytes, synchronous, reply);
            }
        }
    }

    fn flush(&self, _: &Request, _: INodeNo, number: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        match self.0.handles.get(number.0) {
            Some(handle) if matches!(&*handle, Handle::Draft(_)) => {
                self.meta(move |shared| data::finish(shared, &handle, reply));
            }
            // close(2) promises nothing about the disk.
            _ => reply.ok(),
        }
    }

    fn release(
        &self,
        _: &Request,
        _: INodeNo,
        number: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        let handle = self.0.handles.get(number.0);
        if let Some(Handle::Control(conversation)) = handle.as_deref() {
            conversation.close();
        }
        drop(handle);
        self.0.handles.release(number.0);
        reply.ok();
    }

    fn fsync(&self, _: &Request, _: INodeNo, handle: FileHandle, _: bool, reply: ReplyEmpty) {
        match self.0.handles.get(handle.0) {
            Some(handle) => data::fsync(&self.0, handle, reply),
            None => reply.error(Errno::EBADF),
        }
    }

    fn opendir(&self, _: &Request, number: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        match self.0.node(number) {
            Ok(node) => {
                let names = Mutex::new(None);
                let handle = self.0.handles.insert(Handle::Directory { node, names });
                reply.opened(FileHandle(handle), FopenFlags::empty());
            }
            Err(error) => reply.error(self.0.refused("opendir", self.0.shown(number), &error)),
        }
    }

    fn readdir(
        &self,
        _: &Request,
        number: INodeNo,
        handle: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let Some(handle) = self.0.handles.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        let Handle::Directory { node, names } = &*handle else {
            return reply.error(Errno::ENOTDIR);
        };
        // Names are listed as they were when reading began, so that none is
        // left out or told twice while others come and go.
        let mut names = names.lock();
        if offset == 0 || names.is_none() {
            match self.0.tree.list(*node) {
                Ok(listed) => *names = Some(listed),
                Err(error) => {
                    drop(names);
                    return reply.error(self.0.refused("readdir", self.0.shown(number), &error));
                }
            }
        }
        let all = names.as_deref().unwrap_or_default();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (at, listed) in all.iter().enumerate().skip(start) {
            let number = INodeNo(inode::number_of(listed.node));
            if reply.add(number, at as u64 + 1, file_type(listed.node), &listed.name) {
                break;
            }
        }
        drop(names);
        reply.ok();
    }

    fn releasedir(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        _: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.0.handles.release(handle.0);
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        // Every change of a directory is durable when it is answered.
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        self.meta(move |shared| match shared.tree.space() {
            Ok(space) => {
                let total = space.total_bytes / STATFS_BLOCK;
                let free = space.free_bytes / STATFS_BLOCK;
                let unit = STATFS_BLOCK as u32;
                reply.statfs(total, free, free, 0, 0, unit, 255, unit);
            }
            Err(error) => reply.error(shared.refused("statfs", "the store", &error)),
        });
    }

    fn setxattr(
        &self,
        _: &Request,
        number: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.to_owned(), value.to_owned());
        let (mode, unfit) = match flags {
            libc::XATTR_CREATE => (Mode::Create, Errno::EEXIST),
            libc::XATTR_REPLACE => (Mode::Replace, Errno::ENODATA),
            _ => (Mode::Any, Errno::EINVAL),
        };
        let shared = self.shared();
        self.0.meta.run(move || {
            let set = shared.node(number).and_then(|node| {
                shared
                    .tree
                    .set_extended_attribute(node, &name, &value, mode)
            });
            match set {
                Ok(Some(effect)) => {
                    shared.take_effect(effect);
                    reply.ok();
                }
                Ok(None) => reply.error(unfit),
                Err(error) => reply.error(shared.refused("setxattr", shared.shown(number), &error)),
            }
        });
    }

    fn getxattr(&self, _: &Request, number: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        // The kernel and ls ask for others all the time.
        let asked = name.as_encoded_bytes();
        if !asked.starts_with(PREFIX.as_bytes()) && !asked.starts_with(USER.as_bytes()) {
            return reply.error(Errno::ENODATA);
        }
        let name = name.to_owned();
        self.meta(move |shared| {
            let value = shared
                .node(number)
                .and_then(|node| shared.tree.extended_attribute(node, &name));
            match value {
                Ok(None) => reply.error(Errno::ENODATA),
                Ok(Some(value)) => reply_xattr(reply, size, &value),
                Err(error) => reply.error(shared.refused("getxattr", shared.shown(number), &error)),
            }
        });
    }

    fn listxattr(&self, _: &Request, number: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self
            .0
            .node(number)
            .and_then(|node| self.0.tree.extended_attributes(node));
        match names {
            Ok(names) => {
                let list: String = names.iter().map(|name| format!("{name}\0")).collect();
                reply_xattr(reply, size, list.as_bytes());
            }
            Err(error) => reply.error(self.0.refused("listxattr", self.0.shown(number), &error)),
        }
    }

    fn removexattr(&self, _: &Request, number: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.meta(move |shared| {
            let removed = shared
                .node(number)
                .and_then(|node| shared.tree.remove_extended_attribute(node, &name));
            match removed {
                // It changes what is said of the snapshot, and nothing else.
                Ok(true) => reply.ok(),
                Ok(false) => reply.error(Errno::ENODATA),
                Err(error) => {
                    reply.error(shared.refused("removexattr", shared.shown(number), &error))
                }
            }
        });
    }

    fn fallocate(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(handle) = self.0.handles.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        data::fallocate(&self.0, handle, offset, length, mode, reply);
    }

    fn lseek(
        &self,
        _: &Request,
        _: INodeNo,
        handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let Some(handle) = self.0.handles.get(handle.0) else {
            return reply.error(Errno::EBADF);
        };
        data::lseek(&self.0, handle, offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        source: FileHandle,
        from: u64,
        _: INodeNo,
        target: FileHandle,
        to: u64,
        length: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let handles = &self.0.handles;
        let (Some(source), Some(target)) = (handles.get(source.0), handles.get(target.0)) else {
            return reply.error(Errno::EBADF);
        };
        data::copy(&self.0, source, from, target, to, length, reply);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }
}
