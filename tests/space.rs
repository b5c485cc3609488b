//! Goal: a series of snapshots of a system's disk takes no more room than
//! what is unique in it, compressed.
//!
//! Method: an ext4 in an image gets real files of this machine, then more of
//! them, a database, writes all over that, and an update; each time a
//! snapshot. What the store has on disk for it, everything counted, is
//! compared with the unique chunks of all snapshots, which the test reads
//! and compresses itself.

mod common;

use common::bytes::{Random, open};
use common::*;
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

const MIB: u64 = 1 << 20;
const CHUNK: usize = 64 << 10;
/// Bytes of the image.
const SIZE: u64 = 1024 * MIB;
/// Bytes of the database.
const DATABASE: u64 = 32 * MIB;

/// Regular files below a directory, in the order of their names, up to so
/// many bytes; large ones are passed over.
fn files_of(top: &str, most: u64) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = most;
    let mut stack = vec![PathBuf::from(top)];
    while let Some(path) = stack.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else {
            continue;
        };
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).into_iter().flatten();
            let mut below: Vec<PathBuf> = entries
                .filter_map(|entry| Some(entry.ok()?.path()))
                .collect();
            below.sort();
            stack.extend(below.into_iter().rev());
        } else if metadata.is_file() && metadata.len() <= (32 * MIB).min(left) {
            left -= metadata.len();
            found.push(path);
        }
    }
    found
}

/// Where a file of this machine goes to in another system.
fn place(root: &Path, file: &Path) -> PathBuf {
    root.join(file.strip_prefix("/").unwrap_or(file))
}

fn copy(root: &Path, file: &Path) {
    let to = place(root, file);
    fs::create_dir_all(to.parent().expect("it has one")).expect("its directory");
    fs::copy(file, &to).unwrap_or_else(|error| panic!("{to:?}: {error}"));
}

/// Rows of a table: keys that count, and values of little choice.
fn rows(random: &mut Random, len: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(len + 128);
    while bytes.len() < len {
        let (key, value) = (random.below(1 << 40), random.next());
        let state = ["open", "closed", "waiting"][random.below(3) as usize];
        writeln!(
            bytes,
            "{key:016}\t{state}\t{value:016x}\tuser{:05}",
            value % 50_000
        )
        .expect("a vector takes all");
    }
    bytes.truncate(len);
    bytes
}

/// Bytes of each unique chunk of an image that is not zero, compressed if
/// that makes it shorter, by its hash.
fn add_chunks(image: &Path, sizes: &mut HashMap<[u8; 32], u64>) {
    let file = File::open(image).expect("a snapshot's image");
    let size = file.metadata().expect("its size").len();
    let mut compressor = zstd::bulk::Compressor::new(1).expect("a compressor");
    let mut bytes = vec![0; CHUNK];
    let mut at = 0;
    while at < size {
        let Ok(data) = sys::lseek(&file, at as i64, libc::SEEK_DATA) else {
            break;
        };
        at = data as u64 / CHUNK as u64 * CHUNK as u64;
        file.read_exact_at(&mut bytes, at).expect("a chunk");
        at += CHUNK as u64;
        if bytes.iter().any(|byte| *byte != 0) {
            let hash = *blake3::hash(&bytes).as_bytes();
            sizes.entry(hash).or_insert_with(|| {
                let packed = compressor.compress(&bytes).expect("memory");
                packed.len().min(CHUNK) as u64
            });
        }
    }
}

/// Bytes of all files below a directory: their lengths, and what they take
/// of the disk.
fn bytes_of(directory: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    let mut stack = vec![directory.to_owned()];
    while let Some(path) = stack.pop() {
        let metadata = fs::symlink_metadata(&path).expect("it is there");
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).expect("a directory");
            stack.extend(entries.map(|entry| entry.expect("an entry").path()));
        } else {
            sum = (sum.0 + metadata.len(), sum.1 + metadata.blocks() * 512);
        }
    }
    sum
}

/// README: "snapshots are compressed, deduplicated chunks": a series of
/// system images takes at most 1.02 times its unique chunks at zstd level 1,
/// metadata included.
#[test]
fn a_series_of_images_takes_what_is_unique_in_it() {
    if skipped(&[Need::Loop, Need::Program("mkfs.ext4")]) {
        return;
    }
    let store = TestStore::new();
    let mount = store.mount();
    let web = ext4_disk(mount.point(), "web", SIZE);
    let image = web.join("disk.img");
    let system = LoopMount::new(&image, "discard");
    let mut snapshots = Vec::new();
    let mut snapshot = |name: &str| {
        run(command("sync", &["-f"]).arg(system.point()));
        let taken = take(&web, name);
        wait_ready(&taken);
        snapshots.push(taken);
    };
    let mut random = Random(1);

    let mut files = files_of("/usr/bin", 60 * MIB);
    files.extend(files_of("/usr/share", 110 * MIB));
    files.extend(files_of("/usr/lib", 130 * MIB));
    // What comes first and what later is mixed, as in a distribution.
    let (packages, base): (Vec<_>, Vec<_>) = (0..).zip(&files).partition(|(at, _)| at % 3 == 0);
    base.iter().for_each(|(_, file)| copy(system.point(), file));
    snapshot("fresh");
    packages
        .iter()
        .for_each(|(_, file)| copy(system.point(), file));
    snapshot("packages");
    let database = system.path("database");
    fs::write(&database, rows(&mut random, DATABASE as usize)).expect("a database");
    snapshot("database");
    let written = open(&database);
    for _ in 0..400 {
        let at = random.below(DATABASE / 4096) * 4096;
        let page = rows(&mut random, 4096);
        written.write_all_at(&page, at).expect("a page");
    }
    drop(written);
    snapshot("written");
    for (at, file) in base {
        let path = place(system.point(), file);
        if at % 40 == 1 {
            fs::remove_file(path).expect("it goes");
        } else if at % 20 == 2 {
            // Another build of it.
            let mut bytes = fs::read(&path).expect("it is there");
            let part = bytes.len() / 3;
            bytes.rotate_left(part);
            fs::remove_file(&path).expect("it goes");
            fs::write(&path, bytes).expect("it is new");
        }
    }
    run(command("fstrim", &[]).arg(system.point()));
    snapshot("updated");
    system.unmount();

    let mut sizes = HashMap::new();
    for taken in &snapshots {
        add_chunks(&taken.join("disk.img"), &mut sizes);
    }
    let unique: u64 = sizes.values().sum();
    // Packs and the index are whole after this.
    mount.unmount();
    let part = |name: &str| bytes_of(&store.path().join(name));
    let all = bytes_of(&store.path());
    let stored = all.1 - part("layers").1;
    let parts = ["packs", "manifests", "index", "layers"].map(|name| (name, part(name)));
    let ratio = stored as f64 / unique as f64;
    let said = format!(
        "{} unique chunks of {} MiB take {unique} bytes compressed, the store {stored}: {ratio:.4}; \
         lengths and bytes on disk: all {all:?}, {parts:?}",
        sizes.len(),
        (sizes.len() * CHUNK) >> 20,
    );
    println!("{said}");
    assert!(
        sizes.len() * CHUNK >= 200 << 20,
        "too little for a system: {said}"
    );
    assert!(ratio <= 1.02, "{said}");
}
