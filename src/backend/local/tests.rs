use super::*;
use crate::backend::memory::suite;
use crate::files::{Entry, LocalFiles};

#[test]
fn a_local_directory_keeps_the_promises_of_a_backend() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::io("making", "a directory"))?;
    suite::all(&LocalBackend::new(Arc::new(LocalFiles::new(dir.path())))?)
}

#[test]
fn what_a_crash_left_is_not_listed_and_is_removed() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::io("making", "a directory"))?;
    let files = Arc::new(LocalFiles::new(dir.path()));
    let backend = LocalBackend::new(Arc::clone(&files) as Arc<dyn Files>)?;
    backend.put_new("packs/a", b"a")?;
    files
        .create_new(Path::new("packs/.tmp-1"))
        .map_err(Error::io("making", "a file"))?;
    assert_eq!(backend.list("packs/")?, [("packs/a".to_owned(), 1)]);
    assert_eq!(backend.settle_names()?, 1);
    assert_eq!(backend.settle_names()?, 0);
    assert_eq!(backend.list("packs/")?, [("packs/a".to_owned(), 1)]);
    Ok(())
}

#[test]
fn a_deleted_object_is_not_kept_open() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::io("making", "a directory"))?;
    let backend = LocalBackend::new(Arc::new(LocalFiles::new(dir.path())))?;
    for number in 0..2 * OPEN_FILES {
        let key = format!("packs/{number}");
        backend.put_new(&key, b"x")?;
        assert_eq!(backend.get_range(&key, 0, &mut [0; 2])?, 1);
    }
    assert_eq!(backend.open.lock().files.len(), OPEN_FILES);
    for number in 0..2 * OPEN_FILES {
        backend.delete(&format!("packs/{number}"))?;
    }
    assert!(backend.open.lock().files.is_empty());
    Ok(())
}

/// Files that fail on demand.
#[derive(Debug)]
struct Failing {
    inner: LocalFiles,
    sync_dir: Mutex<bool>,
    rename: Mutex<bool>,
    /// Bytes that a write of each file made from now on can still take.
    space: Mutex<Option<usize>>,
}

impl Failing {
    fn new(dir: &Path) -> Arc<Failing> {
        Arc::new(Failing {
            inner: LocalFiles::new(dir),
            sync_dir: Mutex::new(false),
            rename: Mutex::new(false),
            space: Mutex::new(None),
        })
    }
}

fn eio(fails: &Mutex<bool>) -> io::Result<()> {
    match *fails.lock() {
        true => Err(io::Error::from_raw_os_error(libc::EIO)),
        false => Ok(()),
    }
}

impl Files for Failing {
    fn create_dir(&self, dir: &Path) -> io::Result<()> {
        self.inner.create_dir(dir)
    }
    fn create_new(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inner = self.inner.create_new(path)?;
        let space = Mutex::new(*self.space.lock());
        Ok(Arc::new(SmallFile { inner, space }))
    }
    fn open(&self, path: &Path, writable: bool) -> io::Result<Arc<dyn File>> {
        self.inner.open(path, writable)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        eio(&self.rename)?;
        self.inner.rename(from, to)
    }
    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.inner.unlink(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        eio(&self.sync_dir)?;
        self.inner.sync_dir(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<Entry>> {
        self.inner.list(dir)
    }
    fn space(&self) -> io::Result<(u64, u64)> {
        self.inner.space()
    }
}

/// A file with so much room; what fits of a write is written.
#[derive(Debug)]
struct SmallFile {
    inner: Arc<dyn File>,
    space: Mutex<Option<usize>>,
}

impl File for SmallFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.inner.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        let mut space = self.space.lock();
        let fits = space.unwrap_or(usize::MAX).min(buf.len());
        self.inner.write_all_at(&buf[..fits], offset)?;
        if fits < buf.len() {
            *space = None;
            return Err(io::Error::from_raw_os_error(libc::ENOSPC));
        }
        *space = space.map(|space| space - fits);
        Ok(())
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.punch(offset, len)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.inner.set_len(len)
    }
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }
    fn sync_data(&self) -> io::Result<()> {
        self.inner.sync_data()
    }
    fn write_back(&self, offset: u64, len: u64, wait: bool) -> io::Result<()> {
        self.inner.write_back(offset, len, wait)
    }
    fn drop_cache(&self) -> io::Result<()> {
        self.inner.drop_cache()
    }
}

#[test]
fn an_error_of_the_rename_or_after_it_leaves_it_unknown() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::io("making", "a directory"))?;
    let files = Failing::new(dir.path());
    let backend = LocalBackend::new(Arc::clone(&files) as Arc<dyn Files>)?;
    let key = "manifests/m";
    let one = backend.replace(key, b"one", None)?;

    // Invariant 3. A filesystem may have renamed all the same.
    let unknown = |result: Result<()>| matches!(result, Err(Error::MetadataUnknown { .. }));
    *files.rename.lock() = true;
    assert!(unknown(backend.replace(key, b"two", Some(&one)).map(drop)));
    *files.rename.lock() = false;
    assert_eq!(backend.get(key)?, Some((b"one".to_vec(), one.clone())));
    assert_eq!(backend.settle_names()?, 0);

    *files.sync_dir.lock() = true;
    assert!(unknown(backend.replace(key, b"two", Some(&one)).map(drop)));
    assert!(unknown(backend.put_new("manifests/n", b"new")));
    assert!(unknown(backend.delete("manifests/n")));
    Ok(())
}

#[test]
fn without_space_an_object_ends_where_it_ended_and_goes_on() -> Result<()> {
    let dir = tempfile::tempdir().map_err(Error::io("making", "a directory"))?;
    let files = Failing::new(dir.path());
    let backend = LocalBackend::new(Arc::clone(&files) as Arc<dyn Files>)?;
    *files.space.lock() = Some(5);
    let full = |result: Result<()>| result.is_err_and(|error| error.is_no_space());
    assert!(full(backend.put_new("packs/whole", b"0123456789")));
    assert_eq!(backend.settle_names()?, 0);

    let mut appender = backend.append_new("packs/grows", b"")?;
    appender.append(b"abc")?;
    assert!(full(appender.append(b"0123456789")));
    assert_eq!(backend.list("packs/")?, [("packs/grows".to_owned(), 3)]);
    appender.append(b"def")?;
    appender.sync()?;
    let content = backend.get("packs/grows")?.map(|(bytes, _)| bytes);
    assert_eq!(content.as_deref(), Some(&b"abcdef"[..]));
    Ok(())
}
