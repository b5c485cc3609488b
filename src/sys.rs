//! The only unsafe code of the crate: system calls that the standard library
//! lacks, as small safe functions.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn offset(value: u64) -> io::Result<libc::off64_t> {
    libc::off64_t::try_from(value).map_err(|_| io::Error::from_raw_os_error(libc::EFBIG))
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Frees a range of a file, which then reads as zeros; the length stays.
/// `EOPNOTSUPP` where the filesystem has no holes.
pub fn punch_hole(file: BorrowedFd<'_>, start: u64, len: u64) -> io::Result<()> {
    let (start, len) = (offset(start)?, offset(len)?);
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: takes numbers only; the descriptor is borrowed, so it is open.
    check(unsafe { libc::fallocate64(file.as_raw_fd(), mode, start, len) })
}

/// Starts writing the dirty pages of a range to disk, and waits for them if
/// told to; neither metadata nor the drive's cache.
pub fn write_back(file: BorrowedFd<'_>, start: u64, len: u64, wait: bool) -> io::Result<()> {
    let (start, len) = (offset(start)?, offset(len)?);
    let flags = match wait {
        true => {
            libc::SYNC_FILE_RANGE_WAIT_BEFORE
                | libc::SYNC_FILE_RANGE_WRITE
                | libc::SYNC_FILE_RANGE_WAIT_AFTER
        }
        false => libc::SYNC_FILE_RANGE_WRITE,
    };
    // SAFETY: takes numbers only; the descriptor is borrowed, so it is open.
    check(unsafe { libc::sync_file_range(file.as_raw_fd(), start, len, flags) })
}

/// Drops the clean cached pages of a whole file.
pub fn drop_cache(file: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: takes numbers only; the descriptor is borrowed, so it is open.
    let code = unsafe { libc::posix_fadvise64(file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) };
    // This call returns its error instead of leaving it in errno.
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Bytes of the filesystem that holds `path`: (all, free for this user).
pub fn space(path: &Path) -> io::Result<(u64, u64)> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut found = MaybeUninit::<libc::statvfs64>::uninit();
    // SAFETY: the path ends with a zero byte and the buffer is as large as
    // the call writes.
    check(unsafe { libc::statvfs64(path.as_ptr(), found.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled the buffer.
    let found = unsafe { found.assume_init() };
    Ok((
        found.f_blocks.saturating_mul(found.f_frsize),
        found.f_bavail.saturating_mul(found.f_frsize),
    ))
}

/// Gives the calling thread the lowest CPU and I/O class: it works when
/// nobody else wants to. Where that is refused it stays as it is.
pub fn lowest_priority() {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    /// Class 3, idle, in the upper bits (linux/ioprio.h).
    const IOPRIO_IDLE: libc::c_int = 3 << 13;
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: both calls take numbers and a pointer to a value that lives
    // through the call, and concern the calling thread only.
    let refused = unsafe {
        libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameters) != 0
            || libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_IDLE) != 0
    };
    if refused {
        tracing::debug!("no idle priority: {}", io::Error::last_os_error());
    }
}

/// Lets nobody but the owner into a directory.
pub fn restrict_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o700))
}

fn c_path(path: &Path) -> io::Result<CString> {
    Ok(CString::new(path.as_os_str().as_bytes())?)
}

/// Unmounts what is mounted at `path`. With `lazy` it leaves the tree at
/// once and ends with its last user, else `EBUSY` while it has users.
pub fn unmount(path: &Path, lazy: bool) -> io::Result<()> {
    let path = c_path(path)?;
    let flags = libc::UMOUNT_NOFOLLOW | if lazy { libc::MNT_DETACH } else { 0 };
    // SAFETY: the path ends with a zero byte.
    check(unsafe { libc::umount2(path.as_ptr(), flags) })
}

/// Sets an extended attribute.
pub fn set_xattr(path: &Path, name: &str, value: &[u8]) -> io::Result<()> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    // SAFETY: both strings end with a zero byte, and the value is as long as
    // the length says.
    check(unsafe {
        libc::setxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_ptr().cast(),
            value.len(),
            0,
        )
    })
}

/// Whether nobody has the other end of a pipe or socket any more.
pub fn is_hung_up(file: BorrowedFd<'_>) -> bool {
    let mut poll = libc::pollfd {
        fd: file.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: one pollfd that outlives the call.
    let ready = unsafe { libc::poll(&mut poll, 1, 0) };
    ready == 1 && poll.revents & (libc::POLLERR | libc::POLLHUP) != 0
}

/// The value of an extended attribute of at most 64 KiB, which is the most
/// that the kernel passes.
pub fn get_xattr(path: &Path, name: &str) -> io::Result<Vec<u8>> {
    let (path, name) = (c_path(path)?, CString::new(name)?);
    let mut value = vec![0; 65536];
    // SAFETY: both strings end with a zero byte, and the buffer is as long as
    // the length says.
    let len = unsafe {
        libc::getxattr(
            path.as_ptr(),
            name.as_ptr(),
            value.as_mut_ptr().cast(),
            value.len(),
        )
    };
    value.truncate(usize::try_from(len).map_err(|_| io::Error::last_os_error())?);
    Ok(value)
}

/// Which of the two a process is after [`fork`].
pub enum Forked {
    /// The one that called.
    Parent,
    /// The new one.
    Child,
}

/// How files are made that nobody else may read.
pub fn private() -> std::fs::OpenOptions {
    let mut options = std::fs::OpenOptions::new();
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Has glibc's malloc keep as many arenas as there are cores, instead of
/// eight times as many (mallopt(3)): what one thread frees stays in its arena
/// where others do not use it. Before threads are started.
pub fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let most = i32::try_from(cores.max(2)).unwrap_or(i32::MAX);
        // SAFETY: it sets a number; a refusal leaves the default.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, most) };
    }
}

/// The user that this program runs as.
pub fn user() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// The group that this program runs as.
pub fn group() -> u32 {
    // SAFETY: it takes nothing and cannot fail.
    unsafe { libc::getegid() }
}

// From linux/fs.h: _IOWR('X', 119, int) and _IOWR('X', 120, int).
const FIFREEZE: libc::Ioctl = 0xC004_5877_u32 as libc::Ioctl;
const FITHAW: libc::Ioctl = 0xC004_5878_u32 as libc::Ioctl;

/// Makes a filesystem, given by an open directory of it, write everything
/// out and hold all writers until it is thawed.
pub fn freeze(of: &std::fs::File) -> io::Result<()> {
    // SAFETY: the call takes no more than an open file.
    match unsafe { libc::ioctl(of.as_raw_fd(), FIFREEZE, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Lets a filesystem go on that [`freeze`] held.
pub fn thaw(of: &std::fs::File) -> io::Result<()> {
    // SAFETY: the call takes no more than an open file.
    match unsafe { libc::ioctl(of.as_raw_fd(), FITHAW, 0) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// Makes a second process like this one. Refused when this one has threads:
/// the child would have their locks without them.
pub fn fork() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::other("a process with threads cannot be forked"));
    }
    // SAFETY: there is no other thread, so the child is whole.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        _ => Ok(Forked::Parent),
    }
}

/// Leaves the session and its terminal: a session of its own, and /dev/null
/// as input, output and error output.
pub fn leave_terminal() -> io::Result<()> {
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null")?;
    // SAFETY: takes nothing.
    check(unsafe { libc::setsid() })?;
    for standard in 0..=2 {
        // SAFETY: takes numbers only; `null` is open, and what the standard
        // descriptors meant before is used by number only, by std.
        check(unsafe { libc::dup2(null.as_raw_fd(), standard) })?;
    }
    Ok(())
}

/// Raises the number of files that may be open to what the system allows.
pub fn raise_file_limit() -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the buffer is what the call writes.
    check(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) })?;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the buffer is what the call reads.
    check(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) })
}

/// Tells the kernel that this thread, and those that it starts, write what
/// others wait for to free memory (`PR_SET_IO_FLUSHER`): their own requests
/// for memory then do not wait for that. Needs `CAP_SYS_RESOURCE`.
pub fn become_io_flusher() -> io::Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    let (on, unused): (libc::c_ulong, libc::c_ulong) = (1, 0);
    // SAFETY: takes numbers only.
    check(unsafe { libc::prctl(PR_SET_IO_FLUSHER, on, unused, unused, unused) })
}

/// Tells when somebody sets the wall clock, and when the machine has slept.
#[derive(Debug)]
pub struct ClockWatch(OwnedFd);

impl ClockWatch {
    /// Watches from now on: a timer of the wall clock that is due in centuries
    /// and canceled whenever that clock is set (timerfd_create(2)).
    pub fn new() -> io::Result<ClockWatch> {
        const CENTURIES_S: libc::time_t = 7_258_118_400;
        // SAFETY: takes numbers only.
        let fd = unsafe { libc::timerfd_create(libc::CLOCK_REALTIME, libc::TFD_CLOEXEC) };
        check(fd)?;
        // SAFETY: it was just made, and nobody else has it.
        let watch = ClockWatch(unsafe { OwnedFd::from_raw_fd(fd) });
        let flags = libc::TFD_TIMER_ABSTIME | libc::TFD_TIMER_CANCEL_ON_SET;
        watch.arm(flags, CENTURIES_S, 0)?;
        Ok(watch)
    }

    fn arm(&self, flags: libc::c_int, tv_sec: libc::time_t, tv_nsec: i64) -> io::Result<()> {
        let timer = libc::itimerspec {
            it_interval: libc::timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: libc::timespec { tv_sec, tv_nsec },
        };
        // SAFETY: the descriptor is open, the timer lives through the call,
        // and the old one is not asked for.
        check(unsafe {
            libc::timerfd_settime(self.0.as_raw_fd(), flags, &timer, std::ptr::null_mut())
        })
    }

    /// Waits; true when the clock was set, false after [`ClockWatch::end`].
    pub fn wait(&self) -> io::Result<bool> {
        let mut times = 0u64;
        // SAFETY: the buffer is as long as the length says.
        let read = unsafe {
            let buf = std::ptr::from_mut(&mut times).cast();
            libc::read(self.0.as_raw_fd(), buf, size_of::<u64>())
        };
        match read {
            -1 => match io::Error::last_os_error() {
                error if error.raw_os_error() == Some(libc::ECANCELED) => Ok(true),
                error if error.kind() == io::ErrorKind::Interrupted => self.wait(),
                error => Err(error),
            },
            _ => Ok(false),
        }
    }

    /// Ends the waiting, also one that has not begun yet.
    pub fn end(&self) -> io::Result<()> {
        self.arm(0, 0, 1)
    }
}

/// The signals that ask a daemon to end.
fn end_signals() -> libc::sigset_t {
    let mut set = MaybeUninit::uninit();
    // SAFETY: the call fills the buffer.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP] {
        // SAFETY: the buffer has been filled above.
        unsafe { libc::sigaddset(set.as_mut_ptr(), signal) };
    }
    // SAFETY: the buffer has been filled above.
    unsafe { set.assume_init() }
}

/// Keeps SIGTERM, SIGINT and SIGHUP from ending this process; to be called
/// before threads are started, which inherit it. They wait for
/// [`wait_for_end`].
pub fn block_end_signals() -> io::Result<()> {
    let set = end_signals();
    // SAFETY: the set has been filled, and no old one is asked for.
    let code = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) };
    // This call returns its error instead of leaving it in errno.
    match code {
        0 => Ok(()),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

/// Waits for one of the signals that were blocked, and answers which.
pub fn wait_for_end() -> io::Result<&'static str> {
    let set = end_signals();
    let mut signal = 0;
    // SAFETY: the set has been filled, and the buffer is what the call
    // writes.
    match unsafe { libc::sigwait(&set, &mut signal) } {
        0 => Ok(match signal {
            libc::SIGTERM => "SIGTERM",
            libc::SIGINT => "SIGINT",
            _ => "SIGHUP",
        }),
        code => Err(io::Error::from_raw_os_error(code)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever waits for the clock to be set does not wait for ever, whether
    /// the end came before the waiting or after it began.
    #[test]
    fn a_watch_of_the_clock_can_be_ended() {
        let watch = ClockWatch::new().expect("a timer");
        watch.end().expect("it is set");
        assert!(!watch.wait().expect("it ends"));

        let watch = ClockWatch::new().expect("a timer");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| watch.wait());
            watch.end().expect("it is set");
            let waited = waiting.join().expect("no panic");
            assert!(!waited.expect("it ends"));
        });
    }
}
