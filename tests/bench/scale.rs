//! Makes a store of a given size for the benchmark, without writing a
//! terabyte: packs, directories and the index have the shape and the number
//! of entries of a real one, the payloads do not.
//!
//! `scale STORE CHUNKS [SNAPSHOTS [DISKS]]` makes STORE if it is not there
//! and adds what it lacks. Of its packs, which have 1,500 records each, one
//! record is a real chunk: its number in eight bytes, then zeros. The others
//! have random ids and a few bytes that nobody reads (`snapdisk verify`
//! would find them damaged). All real chunks together are the content of the
//! disk `deep`, which is written and sealed like any other and finds every
//! one of them in the packs: reading it anywhere needs another pack than
//! reading it elsewhere. It gets SNAPSHOTS snapshots, with a block written
//! before each but the first, and DISKS - 1 disks stand beside it, with one
//! snapshot each.

use rayon::prelude::*;
use snapdisk::backend::Backend;
use snapdisk::backend::local::LocalBackend;
use snapdisk::chunk::{ChunkId, Codec, Keys, Kind, encode};
use snapdisk::disk::Disk;
use snapdisk::disk::sealed::Wait;
use snapdisk::error::{Error, Result};
use snapdisk::files::LocalFiles;
use snapdisk::manifest::{Manifests, Owner, Settings};
use snapdisk::name::{DiskName, SnapshotName};
use snapdisk::pack::{PREFIX, PackName, PackWriter, Stored};
use snapdisk::progress::Quiet;
use snapdisk::store::{self, InitOptions, Store};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use uuid::Uuid;

/// As many as a pack of 64 MiB has when chunks of 64 KiB shrink to two
/// thirds.
const RECORDS: u64 = 1500;
const CHUNK_BYTES: u32 = 64 << 10;
const DEEP: &str = "deep";
const OWNER: Owner = Owner {
    uid: 0,
    gid: 0,
    mode: 0o700,
};

/// The content of a real chunk.
fn content(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; CHUNK_BYTES as usize];
    // From 1: a chunk of zeros is never stored.
    bytes[..8].copy_from_slice(&(number + 1).to_le_bytes());
    bytes
}

/// The packs of the first so many chunks; a pack's number is in its uuid.
fn write_packs(root: &Path, chunks: u64) -> Result<u64> {
    let backend = LocalBackend::new(Arc::new(LocalFiles::new(root)))?;
    let header = Manifests::new(Arc::new(LocalBackend::new(Arc::new(LocalFiles::new(
        root,
    )))?))
    .header(|_| Ok(()))?
    .ok_or_else(|| invalid("it has no header"))?;
    let key = blake3::Hash::from_hex(&header.key).map_err(|error| invalid(&error.to_string()))?;
    let keys = Keys::new(key.as_bytes());
    let packs = chunks.div_ceil(RECORDS);
    let salt = u128::from_le_bytes(header.store.into_bytes());
    let is_there = |name: &PackName| backend.get_range(&name.key(), 0, &mut [0; 1]).is_ok();
    (0..packs).into_par_iter().try_for_each(|pack| {
        let uuid = salt ^ u128::from(blake3_u64(pack, 1)) << 64 ^ u128::from(blake3_u64(pack, 2));
        // Of no run: the first one that opens the store has the epoch 1.
        let name = PackName {
            epoch: 0,
            uuid: Uuid::from_u128(uuid),
        };
        if is_there(&name) {
            return Ok(());
        }
        let mut writer = PackWriter::create(&backend, name, header.store)?;
        let real = blake3_u64(pack, 3) % RECORDS;
        for record in 0..RECORDS.min(chunks - pack * RECORDS) {
            let number = pack * RECORDS + record;
            let stored = if record == real {
                let plain = content(pack);
                let (codec, payload) = encode(&plain);
                Stored {
                    id: keys.id(Kind::Data, &plain),
                    kind: Kind::Data,
                    codec,
                    plain_len: CHUNK_BYTES,
                    payload: payload.into_owned(),
                }
            } else {
                let hash = blake3::keyed_hash(key.as_bytes(), &number.to_le_bytes());
                Stored {
                    id: ChunkId(*hash.as_bytes()),
                    kind: Kind::Data,
                    codec: Codec::Zstd,
                    plain_len: CHUNK_BYTES,
                    payload: vec![0; 30],
                }
            };
            writer.append(&stored)?;
        }
        writer.close()?;
        writer.sync()
    })?;
    Ok(packs)
}

fn blake3_u64(number: u64, use_: u8) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&number.to_le_bytes()).update(&[use_]);
    let hash = hasher.finalize();
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&hash.as_bytes()[..8]);
    u64::from_le_bytes(bytes)
}

fn invalid(what: &str) -> Error {
    Error::InvalidArgument { what: what.into() }
}

fn disk(store: &Arc<Store>, name: &str, size: u64) -> Result<Arc<Disk>> {
    if let Some(disk) = store.disk(name) {
        return Ok(disk);
    }
    let disk = store.create_disk(DiskName::parse(name.as_ref())?, OWNER)?;
    disk.create_image(OWNER)?;
    disk.truncate(size, false)?;
    Ok(disk)
}

fn write(disk: &Disk, offset: u64, bytes: &[u8]) -> Result<()> {
    disk.write(offset, bytes, Wait::Yes)?.waited();
    Ok(())
}

/// Brings a disk to so many snapshots, each sealed.
fn take_snapshots(disk: &Arc<Disk>, wanted: u64) -> Result<()> {
    let there = disk.snapshots().len() as u64;
    for number in there..wanted {
        if number > 0 {
            let block = blake3::hash(&number.to_le_bytes());
            let at = blake3_u64(number, 4) % disk.live().map_or(1, |live| live.size >> 12);
            write(disk, at << 12, &block.as_bytes().repeat(128))?;
        }
        disk.take_snapshot(SnapshotName::parse(format!("s{number:05}").as_ref())?)?;
    }
    for snapshot in disk.snapshots() {
        while snapshot.state() == "sealing" {
            std::thread::sleep(Duration::from_millis(10));
        }
        if snapshot.state() != "ready" {
            return Err(invalid(&format!(
                "{} is {}",
                snapshot.name(),
                snapshot.state()
            )));
        }
    }
    Ok(())
}

fn step(what: &str, since: Instant) -> Instant {
    eprintln!("{what}: {:.1} s", since.elapsed().as_secs_f64());
    Instant::now()
}

fn make(root: &Path, chunks: u64, snapshots: u64, disks: u64) -> Result<()> {
    let mut since = Instant::now();
    if !store::is_store(root) {
        store::init(
            root,
            &InitOptions {
                chunk_size: CHUNK_BYTES,
            },
        )?;
    }
    let packs = write_packs(root, chunks)?;
    since = step("packs", since);
    let store = Store::open(root, store::Options::default(), &Quiet)?;
    since = step("opening", since);
    let limit = u32::try_from(snapshots).map_err(|error| invalid(&error.to_string()))?;
    store.set_settings(Settings {
        max_manual_snapshots: limit.max(256) + 256,
        ..Settings::default()
    })?;
    let is_new = store.disk(DEEP).is_none();
    let size = (packs * u64::from(CHUNK_BYTES)).max(1 << 30);
    let deep = disk(&store, DEEP, size)?;
    if is_new {
        for number in 0..packs {
            write(&deep, number * u64::from(CHUNK_BYTES), &content(number))?;
        }
        deep.flush()?;
    }
    take_snapshots(&deep, snapshots)?;
    since = step("snapshots", since);
    for number in 1..disks {
        let name = format!("disk{number:05}");
        let other = disk(&store, &name, 1 << 30)?;
        if other.snapshots().is_empty() {
            write(&other, number << 16, &number.to_le_bytes().repeat(512))?;
        }
        take_snapshots(&other, 1)?;
    }
    since = step("disks", since);
    let stats = store.chunks().stats();
    store.close()?;
    step("closing", since);
    println!("{PREFIX}: {} packs, {} chunks", stats.packs, stats.chunks);
    Ok(())
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |at: usize| {
        args.get(at)
            .map_or(Some(1), |text| text.parse::<u64>().ok())
    };
    let (Some(root), Some(chunks), Some(snapshots), Some(disks), true) = (
        args.first(),
        number(1),
        number(2),
        number(3),
        args.len() >= 2,
    ) else {
        eprintln!("usage: scale STORE CHUNKS [SNAPSHOTS [DISKS]]");
        std::process::exit(2);
    };
    if let Err(error) = make(Path::new(root), chunks, snapshots, disks) {
        eprintln!("scale: {error}: {error:?}");
        std::process::exit(1);
    }
}
