//! What tests of bytes need: a seeded generator, direct and mapped I/O.
#![allow(unsafe_code)]

use super::sys;
use std::fs::{File, OpenOptions};
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

/// A small generator (Steele, Lea, Flood 2014: SplitMix64).
pub struct Random(pub u64);

impl Random {
    /// The next number.
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }

    /// Bytes that do not compress.
    pub fn bytes(&mut self, len: usize) -> Vec<u8> {
        super::noise(self.next(), len)
    }

    /// Bytes that compress, and some percent more at a denser level: pieces
    /// of noise and of what came before.
    pub fn pieces(&mut self, len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        while bytes.len() < len {
            if bytes.is_empty() || self.below(10) < 3 {
                bytes.extend_from_slice(&self.next().to_le_bytes()[..4]);
            } else {
                let back = 1 + self.below(bytes.len().min(12 << 10) as u64) as usize;
                let piece = back.min(5 + self.below(35) as usize);
                let at = bytes.len() - back;
                bytes.extend_from_within(at..at + piece);
            }
        }
        bytes.truncate(len);
        bytes
    }
}

/// Opens for reading and writing.
#[track_caller]
pub fn open(path: &Path) -> File {
    match open_with(path, 0) {
        Ok(file) => file,
        Err(error) => panic!("{path:?}: {error}"),
    }
}

/// Opens for reading and writing with more flags (`libc::O_DIRECT`, …).
pub fn open_with(path: &Path, flags: i32) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags)
        .open(path)
}

/// All bytes of a file, from the daemon and not from the kernel's cache.
pub fn read_direct(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(path)?;
    let mut bytes = vec![];
    let mut piece = Aligned::zeroed(1 << 20);
    loop {
        match file.read_at(&mut piece, bytes.len() as u64)? {
            0 => return Ok(bytes),
            read => bytes.extend_from_slice(&piece[..read]),
        }
    }
}

/// copy_file_range(2) until all is copied or the source ends; how much.
pub fn copy_all(from: &File, at: u64, to: &File, to_at: u64, len: u64) -> io::Result<u64> {
    let mut done = 0;
    while done < len {
        let (at, to_at) = ((at + done) as i64, (to_at + done) as i64);
        match sys::copy_file_range(from, at, to, to_at, (len - done) as usize)? {
            0 => break,
            copied => done += copied as u64,
        }
    }
    Ok(done)
}

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// Bytes at an address that O_DIRECT takes.
pub struct Aligned {
    pages: Vec<Page>,
    len: usize,
}

impl Aligned {
    /// So many zeros.
    pub fn zeroed(len: usize) -> Aligned {
        let pages = vec![Page([0; 4096]); len.div_ceil(4096)];
        Aligned { pages, len }
    }

    /// A copy of these.
    pub fn from(bytes: &[u8]) -> Aligned {
        let mut aligned = Aligned::zeroed(bytes.len());
        aligned.copy_from_slice(bytes);
        aligned
    }
}

impl Deref for Aligned {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        // SAFETY: the pages are that many initialised bytes in one piece.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Aligned {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and they are borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pages.as_mut_ptr().cast(), self.len) }
    }
}

/// A shared, writable mapping of a file's first bytes.
pub struct Map {
    address: *mut libc::c_void,
    len: usize,
}

impl Map {
    /// Maps `len` bytes.
    pub fn new(file: &File, len: usize) -> io::Result<Map> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = file.as_raw_fd();
        // SAFETY: the kernel chooses the address; the descriptor is open.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                protection,
                libc::MAP_SHARED,
                fd,
                0,
            )
        };
        match address {
            libc::MAP_FAILED => Err(io::Error::last_os_error()),
            address => Ok(Map { address, len }),
        }
    }

    /// Bytes of it.
    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        assert!(at + len <= self.len);
        // SAFETY: inside the mapping, which lives as long as `self`.
        unsafe { std::slice::from_raw_parts(self.address.cast::<u8>().add(at), len) }.to_vec()
    }

    /// Changes bytes of it.
    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.len);
        // SAFETY: inside the mapping, which lives as long as `self`; no
        // slice of it is ever handed out.
        unsafe {
            let to = self.address.cast::<u8>().add(at);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// msync(2) of all of it.
    pub fn sync(&self) -> io::Result<()> {
        // SAFETY: this is the mapping.
        match unsafe { libc::msync(self.address, self.len, libc::MS_SYNC) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this is the mapping, and nobody has a pointer into it.
        unsafe { libc::munmap(self.address, self.len) };
    }
}
