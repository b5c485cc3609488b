//! Goal: recompression changes what a store takes and nothing else, and does
//! nothing unless it is wanted.
//!
//! Method: a store in memory with compressible data, and the two calls that
//! the background thread makes once a machine is idle.

mod common;

use common::bytes::Random;
use common::faulty::FaultyFiles;
use common::library::*;
use snapdisk::disk::Wait;
use snapdisk::error::Result;
use snapdisk::progress::Quiet;
use snapdisk::store::Store;
use snapdisk::store::recompress::COLD;
use std::path::Path;
use std::time::Instant;

const BYTES: usize = 40 * CHUNK;

/// A closed store with a sealed snapshot of compressible data in `web`.
fn sample(root: &Path) -> Result<(FaultyFiles, Vec<u8>)> {
    let files = new_files();
    let store = open_files(&files, root)?;
    let bytes = Random(7).pieces(BYTES);
    let web = make(&store, "web")?;
    write(&web, 0, &bytes)?;
    take_of(&web, "one")?;
    wait_all_sealed(&store);
    store.close()?;
    Ok((files, bytes))
}

fn assert_content(store: &Store, expected: &[u8]) -> Result<()> {
    let web = disk(store, "web");
    let one = web.snapshot("one").expect("it is there");
    let mut bytes = vec![0xaa; BYTES];
    web.read_snapshot(&one, 0, &mut bytes, Wait::Yes)?.waited();
    assert!(bytes == expected, "the snapshot");
    bytes.fill(0xaa);
    web.read(0, &mut bytes, Wait::Yes)?.waited();
    assert!(bytes == expected, "the live image");
    Ok(())
}

/// "Off by default"; and an hour passes before anything is cold.
#[test]
fn nothing_is_cold_unless_it_is_wanted_and_has_lain_for_an_hour() -> Result<()> {
    let index = memory_dir();
    let (files, _) = sample(index.path())?;
    let store = open_files(&files, index.path())?;
    let now = Instant::now();
    assert!(!store.is_recompressing());
    for at in [now, now + COLD, now + 2 * COLD] {
        let cold = store.cold_packs(at);
        assert!(cold.packs.is_empty() && cold.next.is_none(), "{cold:?}");
    }
    store.set_recompress(true)?;
    let now = Instant::now();
    let cold = store.cold_packs(now);
    assert!(cold.packs.is_empty(), "{cold:?}");
    let next = cold.next.expect("something is going to be cold");
    assert!(next <= now + COLD);
    assert!(!store.cold_packs(now + COLD).packs.is_empty());
    // It is a setting of the store, and stays.
    store.close()?;
    drop(store);
    let store = open_files(&files, index.path())?;
    assert!(store.is_recompressing());
    store.set_recompress(false)?;
    assert_eq!(store.cold_packs(now + 2 * COLD), Default::default());
    store.close()
}

/// Invariants 4 and 8: contents are the same, verify finds nothing, and the
/// packs are smaller. When all is done nothing is looked at any more, also
/// after the store was opened again; gc finds nothing to do.
#[test]
fn contents_stay_and_packs_get_smaller() -> Result<()> {
    let index = memory_dir();
    let (files, bytes) = sample(index.path())?;
    let store = open_files(&files, index.path())?;
    store.set_recompress(true)?;
    let before = store.chunks().stats();
    let mut now = Instant::now();
    let mut won = 0;
    // The new packs are looked at, too, once they are closed.
    for _ in 0..3 {
        store.chunks().rotate()?;
        store.cold_packs(now);
        now += COLD;
        let cold = store.cold_packs(now);
        won += store.recompress(&cold.packs, &|| true)?.bytes_freed;
    }
    let after = store.chunks().stats();
    assert_eq!(after.chunks, before.chunks);
    assert!(
        after.stored_bytes * 100 < before.stored_bytes * 98,
        "{before:?} {after:?}"
    );
    assert!(won > 0);
    let told = store.prometheus()?;
    let line = format!("snapdisk_recompressed_bytes_total {won}\n");
    assert!(told.contains(&line), "{told}");
    assert_content(&store, &bytes)?;
    assert_store_sound(&store, "recompression");
    assert_eq!(store.cold_packs(now + COLD), Default::default(), "all done");
    store.close()?;
    drop(store);

    let store = open_files(&files, index.path())?;
    assert_eq!(store.cold_packs(now), Default::default(), "remembered");
    assert_content(&store, &bytes)?;
    assert_store_sound(&store, "recompression");
    assert_eq!(store.gc(false, &Quiet)?.packs_deleted, 0);
    assert_content(&store, &bytes)?;
    store.close()
}
