//! The yardstick of the benchmark: a FUSE daemon that does nothing but
//! `pread`, `pwrite` and `fdatasync` on one file, with the same settings
//! of the kernel's side as snapdisk. What it costs is FUSE itself.
//!
//! `bare FILE MNT [writeback]` shows FILE as `MNT/disk.img` and stays until
//! unmounted; with `writeback` the kernel keeps what is written for a while.

use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr,
    ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};
use std::cell::RefCell;
use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long the kernel may keep names and attributes.
const TTL: Duration = Duration::from_secs(1);
const IMAGE: INodeNo = INodeNo(2);

thread_local! {
    // One buffer a thread: zeroing a new one for every read would make the
    // yardstick slower than it has to be.
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

struct Bare {
    file: File,
    writeback: bool,
}

impl Bare {
    fn attr(&self, ino: INodeNo) -> io::Result<FileAttr> {
        let meta = self.file.metadata()?;
        let is_image = ino == IMAGE;
        Ok(FileAttr {
            ino,
            size: if is_image { meta.size() } else { 0 },
            blocks: if is_image { meta.blocks() } else { 0 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if is_image {
                FileType::RegularFile
            } else {
                FileType::Directory
            },
            perm: if is_image { 0o600 } else { 0o700 },
            nlink: 1,
            uid: meta.uid(),
            gid: meta.gid(),
            rdev: 0,
            blksize: 4096,
            flags: 0,
        })
    }
}

impl Filesystem for Bare {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // An older kernel may lack a capability; then both daemons do.
        let mut flags = vec![InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS];
        if self.writeback {
            flags.push(InitFlags::FUSE_WRITEBACK_CACHE);
        }
        for flag in flags {
            if let Err(missing) = config.add_capabilities(flag) {
                eprintln!("bare: the kernel lacks {missing:?}");
            }
        }
        let refused = |limit| io::Error::other(format!("refused, the limit is {limit}"));
        config.set_max_write(1 << 20).map_err(refused)?;
        config
            .set_max_background(64)
            .map_err(|limit| refused(limit.into()))?;
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if parent != INodeNo::ROOT || name != "disk.img" {
            return reply.error(Errno::ENOENT);
        }
        match self.attr(IMAGE) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(error) => reply.error(error.into()),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.attr(ino) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    // With the writeback cache the kernel tells the time of the last write.
    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let resized = size.map_or(Ok(()), |size| self.file.set_len(size));
        match resized.and_then(|()| self.attr(ino)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(error) => reply.error(error.into()),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        BUFFER.with_borrow_mut(|buffer| {
            let size = size as usize;
            if buffer.len() < size {
                buffer.resize(size, 0);
            }
            match self.file.read_at(&mut buffer[..size], offset) {
                Ok(read) => reply.data(&buffer[..read]),
                Err(error) => reply.error(error.into()),
            }
        });
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        match self.file.write_all_at(data, offset) {
            // At most `max_write`, so it fits.
            Ok(()) => reply.written(data.len() as u32),
            Err(error) => reply.error(error.into()),
        }
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        match self.file.sync_data() {
            Ok(()) => reply.ok(),
            Err(error) => reply.error(error.into()),
        }
    }

    fn readdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let entries = [
            (INodeNo::ROOT, FileType::Directory, "."),
            (INodeNo::ROOT, FileType::Directory, ".."),
            (IMAGE, FileType::RegularFile, "disk.img"),
        ];
        for (next, (ino, kind, name)) in (1u64..).zip(entries) {
            if next > offset && reply.add(ino, next, kind, name) {
                break;
            }
        }
        reply.ok();
    }
}

fn main() -> io::Result<()> {
    let mut args = std::env::args_os().skip(1);
    let (Some(path), Some(mount_point)) = (args.next(), args.next()) else {
        eprintln!("usage: bare FILE MNT [writeback]");
        std::process::exit(2);
    };
    let writeback = args.next().is_some_and(|word| word == "writeback");
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::FSName("bare".into()),
        // As given to the kernel: `Subtype` is left out when root mounts.
        MountOption::CUSTOM("subtype=snapdisk-bare".into()),
        MountOption::DefaultPermissions,
    ];
    config.n_threads = Some(4);
    config.clone_fd = true;
    fuser::mount(Bare { file, writeback }, mount_point, &config)
}
