//! System calls that the standard library lacks, as small safe functions.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).expect("a path has no zero byte")
}

fn check(result: libc::c_int) -> io::Result<()> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

fn check_length(result: isize) -> io::Result<usize> {
    usize::try_from(result).map_err(|_| io::Error::last_os_error())
}

/// Whether this is root.
pub fn is_root() -> bool {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() == 0 }
}

/// Sends a signal to a process.
pub fn kill(process: u32, signal: i32) -> io::Result<()> {
    let process = i32::try_from(process).expect("a process' number");
    // 0 and less are groups of processes.
    assert!(process > 1, "no daemon: {process}");
    // SAFETY: takes numbers only.
    check(unsafe { libc::kill(process, signal) })
}

/// Takes a mount out of the tree; it ends with its last user.
pub fn unmount(path: &Path) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: the path ends with a zero byte.
    check(unsafe { libc::umount2(path.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) })
}

/// `renameat2` with flags.
pub fn rename_with(from: &Path, to: &Path, flags: u32) -> io::Result<()> {
    let (from, to) = (c_path(from), c_path(to));
    let here = libc::AT_FDCWD;
    // SAFETY: both paths end with a zero byte.
    check(unsafe { libc::renameat2(here, from.as_ptr(), here, to.as_ptr(), flags) })
}

/// `mknod`; `mode` has the type in it. Devices get the number 0.
pub fn mknod(path: &Path, mode: u32) -> io::Result<()> {
    let path = c_path(path);
    // SAFETY: the path ends with a zero byte.
    check(unsafe { libc::mknod(path.as_ptr(), mode, 0) })
}

/// `fallocate` with flags; takes what it is given, also what no file can
/// have.
pub fn fallocate(file: &impl AsRawFd, mode: i32, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: takes numbers only; the descriptor is open, its owner being
    // borrowed.
    check(unsafe { libc::fallocate64(file.as_raw_fd(), mode, offset, len) })
}

/// `lseek`; the new position.
pub fn lseek(file: &impl AsRawFd, offset: i64, whence: i32) -> io::Result<i64> {
    // SAFETY: takes numbers only; the descriptor is open, its owner being
    // borrowed.
    match unsafe { libc::lseek64(file.as_raw_fd(), offset, whence) } {
        -1 => Err(io::Error::last_os_error()),
        position => Ok(position),
    }
}

/// `copy_file_range` at given offsets; how much was copied.
pub fn copy_file_range(
    source: &impl AsRawFd,
    from: i64,
    target: &impl AsRawFd,
    to: i64,
    len: usize,
) -> io::Result<usize> {
    let (mut from, mut to) = (from, to);
    // SAFETY: both offsets live through the call, both descriptors are open.
    check_length(unsafe {
        libc::copy_file_range(
            source.as_raw_fd(),
            &mut from,
            target.as_raw_fd(),
            &mut to,
            len,
            0,
        )
    })
}

/// `statvfs`.
pub fn statvfs(path: &Path) -> io::Result<libc::statvfs64> {
    let path = c_path(path);
    let mut found = MaybeUninit::<libc::statvfs64>::uninit();
    // SAFETY: the path ends with a zero byte and the buffer is as large as
    // the call writes.
    check(unsafe { libc::statvfs64(path.as_ptr(), found.as_mut_ptr()) })?;
    // SAFETY: the call succeeded, so it filled the buffer.
    Ok(unsafe { found.assume_init() })
}

/// One `getdents64` with a buffer of `bytes`: the next names of an open
/// directory, none at its end.
pub fn next_names(directory: &impl AsRawFd, bytes: usize) -> io::Result<Vec<String>> {
    let mut buf = vec![0u8; bytes];
    // SAFETY: the buffer is as long as the length says.
    let len = check_length(unsafe {
        libc::syscall(
            libc::SYS_getdents64,
            directory.as_raw_fd(),
            buf.as_mut_ptr(),
            buf.len(),
        ) as isize
    })?;
    let mut names = Vec::new();
    let mut rest = &buf[..len];
    // Inode 8, offset 8, length 2, type 1, then the name and zeros.
    while let Some(record) = rest.get(..19) {
        let length = usize::from(u16::from_le_bytes([record[16], record[17]]));
        let name = &rest[19..length];
        let end = name
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(name.len());
        names.push(String::from_utf8_lossy(&name[..end]).into_owned());
        rest = &rest[length..];
    }
    Ok(names)
}
