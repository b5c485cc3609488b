//! What the tests of the chunk store share: a backend that fails on demand
//! and counts, and a store on it.

use super::{ChunkStore, Opened, Options};
use crate::backend::memory::MemoryBackend;
use crate::backend::{Appender, Backend, Version};
use crate::chunk::{ChunkId, Keys, Kind};
use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use tempfile::TempDir;
use uuid::Uuid;

/// Objects in memory that can be damaged, with faults.
#[derive(Debug, Default)]
pub struct Faulty {
    pub inner: MemoryBackend,
    state: Arc<Mutex<Faults>>,
}

#[derive(Debug, Default)]
pub struct Faults {
    /// Bytes that can still be appended; None: as many as one likes.
    pub space: Option<u64>,
    /// Syncs fail with EIO.
    pub syncs_fail: bool,
    pub list_fails: bool,
    /// The byte there is another one once it is read from the disk: it was
    /// written wrong, and memory hides that.
    pub flips_when_settled: Option<usize>,
    /// Bytes that answer EIO, by their object's key.
    pub unreadable: Option<(String, Range<u64>)>,
    pub syncs: u64,
    /// Key and range of every read.
    pub reads: Vec<(String, Range<u64>)>,
}

impl Faults {
    fn take_space(&mut self, bytes: &[u8]) -> Result<()> {
        if let Some(space) = &mut self.space {
            *space = space
                .checked_sub(bytes.len() as u64)
                .ok_or_else(|| os_error(libc::ENOSPC))?;
        }
        Ok(())
    }
}

struct FaultyAppender {
    inner: Box<dyn Appender>,
    state: Arc<Mutex<Faults>>,
}

fn os_error(code: i32) -> Error {
    Error::io("writing", "a pack")(io::Error::from_raw_os_error(code))
}

impl Appender for FaultyAppender {
    fn append(&mut self, bytes: &[u8]) -> Result<()> {
        self.state.lock().take_space(bytes)?;
        self.inner.append(bytes)
    }

    fn sync(&mut self) -> Result<()> {
        let mut state = self.state.lock();
        state.syncs += 1;
        if state.syncs_fail {
            return Err(os_error(libc::EIO));
        }
        self.inner.sync()
    }

    fn len(&self) -> u64 {
        self.inner.len()
    }
}

impl Backend for Faulty {
    fn put_new(&self, key: &str, bytes: &[u8]) -> Result<()> {
        self.inner.put_new(key, bytes)
    }
    fn append_new(&self, key: &str, head: &[u8]) -> Result<Box<dyn Appender>> {
        self.state.lock().take_space(head)?;
        Ok(Box::new(FaultyAppender {
            inner: self.inner.append_new(key, head)?,
            state: Arc::clone(&self.state),
        }))
    }
    fn get(&self, key: &str) -> Result<Option<(Vec<u8>, Version)>> {
        self.inner.get(key)
    }
    fn get_range(&self, key: &str, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let range = offset..offset + buf.len() as u64;
        let mut state = self.state.lock();
        if let Some((bad_key, bad)) = &state.unreadable
            && bad_key == key
            && range.start.max(bad.start) < range.end.min(bad.end)
        {
            return Err(os_error(libc::EIO));
        }
        state.reads.push((key.to_owned(), range));
        self.inner.get_range(key, offset, buf)
    }
    fn settle(&self, key: &str) -> Result<u64> {
        let len = self.inner.settle(key)?;
        let at = self.state.lock().flips_when_settled;
        if let Some(at) = at.filter(|at| (*at as u64) < len) {
            self.inner.flip(key, at);
        }
        Ok(len)
    }
    fn list(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        if self.state.lock().list_fails {
            return Err(os_error(libc::EIO));
        }
        self.inner.list(prefix)
    }
    fn delete(&self, key: &str) -> Result<()> {
        self.inner.delete(key)
    }
    fn replace(&self, key: &str, bytes: &[u8], expected: Option<&Version>) -> Result<Version> {
        self.inner.replace(key, bytes, expected)
    }
}

impl Faulty {
    pub fn faults(&self) -> parking_lot::MutexGuard<'_, Faults> {
        self.state.lock()
    }

    pub fn packs(&self) -> Vec<String> {
        let packs = self.inner.list("packs/").expect("memory lists");
        packs.into_iter().map(|(key, _)| key).collect()
    }

    /// Changes an object behind everybody's back.
    pub fn tamper(&self, key: &str, change: impl FnOnce(&mut Vec<u8>)) -> Result<()> {
        let (mut bytes, _) = self.inner.get(key)?.expect("the object is there");
        change(&mut bytes);
        self.inner.delete(key)?;
        self.inner.put_new(key, &bytes)
    }

    /// Whether `needle` stands anywhere in any pack.
    pub fn holds(&self, needle: &[u8]) -> bool {
        self.packs().iter().any(|key| {
            let object = self.inner.get(key).expect("memory reads");
            let bytes = object.map(|(bytes, _)| bytes).unwrap_or_default();
            bytes.windows(needle.len()).any(|window| window == needle)
        })
    }
}

/// A store on a faulty backend, with its index in a directory of its own.
pub struct Fixture {
    pub backend: Arc<Faulty>,
    pub dir: TempDir,
    pub epoch: u64,
}

pub const PACK_BYTES: u64 = 1 << 20;
pub const CHUNK: usize = 16 << 10;

impl Fixture {
    pub fn new() -> Fixture {
        Fixture {
            backend: Arc::default(),
            dir: tempfile::tempdir().expect("a temporary directory"),
            epoch: 0,
        }
    }

    pub fn index_dir(&self) -> std::path::PathBuf {
        self.dir.path().join("index")
    }

    pub fn open(&mut self) -> Result<(Arc<ChunkStore>, Opened)> {
        self.epoch += 1;
        open_at(
            &self.index_dir(),
            self.epoch,
            Arc::clone(&self.backend) as _,
        )
    }

    /// As after `kill -9`: nothing is closed.
    pub fn crash(&mut self, store: Arc<ChunkStore>) -> Result<(Arc<ChunkStore>, Opened)> {
        drop(store);
        self.open()
    }

    pub fn delete_index(&self) {
        std::fs::remove_dir_all(self.index_dir()).expect("the index is deleted");
    }
}

pub fn open_at(
    index: &Path,
    epoch: u64,
    backend: Arc<dyn Backend>,
) -> Result<(Arc<ChunkStore>, Opened)> {
    let options = Options {
        chunk_size: CHUNK as u32,
        store: Uuid::from_u128(7),
        epoch,
        index_dir: index.to_owned(),
        // Nothing is answered from memory that a test means to read.
        cache_bytes: 0,
        pack_bytes: PACK_BYTES,
    };
    ChunkStore::open(backend, Keys::new(&[3; 32]), options, &|_, _| ())
}

/// A chunk that does not compress, different for each number.
pub fn noise(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK];
    blake3::Hasher::new()
        .update(&number.to_le_bytes())
        .finalize_xof()
        .fill(&mut bytes);
    bytes
}

/// Puts and syncs chunks of noise and returns their ids.
pub fn put(store: &Arc<ChunkStore>, numbers: Range<u64>) -> Result<Vec<ChunkId>> {
    let batch = store.begin();
    let ids = numbers
        .map(|number| {
            let plain = noise(number);
            let id = store.id(Kind::Data, &plain);
            batch.put(Kind::Data, &id, &plain)?;
            Ok(id)
        })
        .collect::<Result<Vec<_>>>()?;
    batch.sync()?;
    Ok(ids)
}

/// Whether these chunks read back as they were put.
pub fn check(store: &ChunkStore, numbers: Range<u64>) -> Result<()> {
    for number in numbers {
        let plain = noise(number);
        let id = store.id(Kind::Data, &plain);
        assert_eq!(store.get(Kind::Data, &id)?[..], plain[..], "{number}");
    }
    Ok(())
}
