//! Short names for what tests do to a store without a mount.

use super::faulty::FaultyFiles;
use snapdisk::disk::{Disk, Wait};
use snapdisk::error::Result;
use snapdisk::files::Files;
use snapdisk::manifest::Owner;
use snapdisk::name::{DiskName, SnapshotName};
use snapdisk::progress::Quiet;
use snapdisk::store::{self, InitOptions, Options, Store};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Once};

/// Whose disks are.
pub const OWNER: Owner = Owner {
    uid: 0,
    gid: 0,
    mode: 0o644,
};
/// Bytes in a chunk.
pub const CHUNK: usize = 16 << 10;

/// Small packs and little cache.
pub fn options() -> Options {
    Options {
        cache_bytes: 1 << 20,
        pack_bytes: 128 << 10,
        ..Options::default()
    }
}

/// Files with a new store in them.
pub fn new_files() -> FaultyFiles {
    let files = FaultyFiles::new();
    let init = InitOptions {
        chunk_size: CHUNK as u32,
    };
    store::init_in(Arc::new(files.clone()), &init).expect("a new store");
    files
}

static BACKGROUND_PANICS: AtomicU64 = AtomicU64::new(0);

/// From now on panics of a store's own threads are counted: nobody joins them
/// to see.
fn count_background_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            let thread = std::thread::current();
            let name = thread.name().unwrap_or_default();
            let of_store = [
                "sealer",
                "flusher",
                "collector",
                "finisher",
                "policies",
                "events",
                "sampler",
                "clock",
            ];
            let of_pool = ["seal-", "unpack-", "pool-"];
            if of_store.contains(&name) || of_pool.iter().any(|pool| name.starts_with(pool)) {
                BACKGROUND_PANICS.fetch_add(1, Ordering::SeqCst);
            }
            before(info);
        }));
    });
}

/// Panics if a thread of some store has.
#[track_caller]
pub fn assert_no_background_panic(what: &str) {
    let panics = BACKGROUND_PANICS.load(Ordering::SeqCst);
    assert_eq!(panics, 0, "{what}: threads of a store panicked");
}

/// Opens the store in `files`, with its index below `root`.
pub fn open_files(files: &FaultyFiles, root: &Path) -> Result<Arc<Store>> {
    open_files_with(files, root, options())
}

/// [`open_files`] with other options.
pub fn open_files_with(files: &FaultyFiles, root: &Path, options: Options) -> Result<Arc<Store>> {
    count_background_panics();
    let files: Arc<dyn Files> = Arc::new(files.clone());
    Store::open_in(files, root, options, &Quiet)
}

/// Panics unless verify finds nothing in an open store.
#[track_caller]
pub fn assert_store_sound(store: &Store, what: &str) {
    assert_no_background_panic(what);
    let wrong = wrong_with(store);
    assert!(wrong.is_none(), "{what}: {}", wrong.unwrap_or_default());
}

/// What verify says of an open store, if it finds anything or fails.
pub fn wrong_with(store: &Store) -> Option<String> {
    let mut findings = Vec::new();
    let verified = store.verify(&Quiet, &mut |finding| findings.push(finding.to_string()));
    match verified {
        Err(error) => Some(format!("verify: {error}")),
        Ok(_) if findings.is_empty() => None,
        Ok(_) => Some(format!("verify finds {findings:?}")),
    }
}

/// The disk of that name.
pub fn disk(store: &Store, name: &str) -> Arc<Disk> {
    store.disk(name).unwrap_or_else(|| panic!("disk {name}"))
}

/// A disk with an empty image.
pub fn make(store: &Store, name: &str) -> Result<Arc<Disk>> {
    let disk = store.create_disk(DiskName::parse(name.as_ref())?, OWNER)?;
    disk.create_image(OWNER)?;
    Ok(disk)
}

/// Writes and flushes.
pub fn write(disk: &Arc<Disk>, at: usize, bytes: &[u8]) -> Result<()> {
    disk.write(at as u64, bytes, Wait::Yes)?.waited();
    disk.flush()
}

/// Takes a snapshot.
pub fn take_of(disk: &Arc<Disk>, name: &str) -> Result<()> {
    let name = SnapshotName::parse(name.as_ref())?;
    disk.take_snapshot(name).map(drop)
}

/// Waits until every snapshot of every disk is sealed.
pub fn wait_all_sealed(store: &Store) {
    super::wait_until("everything is sealed", || {
        let disks = store.disks();
        let mut snapshots = disks.iter().flat_map(|disk| disk.snapshots());
        snapshots.all(|snapshot| snapshot.state() == "ready")
    });
}

/// A directory in memory if there is one: for an index, which nobody may
/// rely on.
pub fn memory_dir() -> tempfile::TempDir {
    let shared_memory = Path::new("/dev/shm");
    let made = match shared_memory.is_dir() {
        true => tempfile::tempdir_in(shared_memory),
        false => tempfile::tempdir(),
    };
    made.expect("a temporary directory")
}
