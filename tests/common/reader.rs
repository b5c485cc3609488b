//! A second reader of the store's format, made from what `snapdisk::pack`,
//! `snapdisk::map` and `snapdisk::manifest` say of it and sharing no code
//! with them. It takes nothing on trust and panics on whatever is not as the
//! format says: what it reads is a store that should be whole.

use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// What a record holds; the numbers are those on disk.
pub const DATA: u8 = 1;
pub const PAGE: u8 = 2;
pub const ROOT: u8 = 3;

pub type Id = [u8; 32];

/// One record of a pack, unpacked and checked against its id.
pub struct Record {
    pub pack: String,
    pub kind: u8,
    pub id: Id,
    /// Bytes of payload in the pack.
    pub stored: u64,
    pub plain: Vec<u8>,
}

/// A store's directory, and what its header says.
pub struct Reader {
    root: PathBuf,
    chunk_size: u64,
    store: [u8; 16],
    key: [u8; 32],
}

/// The body of a manifest: a first line with its hash, then JSON.
fn manifest(path: &Path) -> Value {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .expect("a line");
    let line = std::str::from_utf8(&bytes[..end]).expect("text");
    let words: Vec<&str> = line.split(' ').collect();
    assert_eq!(&words[..2], ["snapdisk-manifest", "1"], "{line}");
    let hash = blake3::hash(&bytes[end + 1..]).to_hex();
    assert_eq!(words[3], hash.as_str(), "hash of {}", path.display());
    serde_json::from_slice(&bytes[end + 1..]).expect("JSON")
}

fn unhex<const N: usize>(text: &str) -> [u8; N] {
    assert_eq!(text.len(), 2 * N, "{text}");
    std::array::from_fn(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).expect("hex"))
}

fn number<const N: usize>(bytes: &[u8], at: usize) -> u64 {
    (0..N)
        .rev()
        .fold(0, |sum, byte| sum << 8 | u64::from(bytes[at + byte]))
}

fn check_crc(bytes: &[u8], at: usize, what: &str) {
    let found = crc32fast::hash(&bytes[..at]);
    assert_eq!(
        u64::from(found),
        number::<4>(bytes, at),
        "checksum of {what}"
    );
}

impl Reader {
    pub fn open(root: &Path) -> Reader {
        let header = manifest(&root.join("manifests/store"));
        let text = |name: &str| header[name].as_str().expect(name).to_owned();
        Reader {
            root: root.to_owned(),
            chunk_size: header["chunk_size"].as_u64().expect("chunk_size"),
            store: unhex(&text("store").replace('-', "")),
            key: unhex(&text("key")),
        }
    }

    /// Name and bytes of every pack, oldest epoch first.
    pub fn packs(&self) -> Vec<(String, Vec<u8>)> {
        let mut packs: Vec<(String, Vec<u8>)> = fs::read_dir(self.root.join("packs"))
            .expect("packs/")
            .map(|entry| entry.expect("an entry of packs/").path())
            // gc may remove a pack while they are listed.
            .filter_map(|path| {
                let name = path.file_name()?.to_str()?.to_owned();
                Some((name, fs::read(&path).ok()?))
            })
            .filter(|(name, _)| !name.starts_with('.'))
            .collect();
        packs.sort();
        packs
    }

    /// Every record of every pack, from the records themselves: neither
    /// directories nor the index are asked.
    pub fn records(&self) -> Vec<Record> {
        let mut records = Vec::new();
        for (name, bytes) in self.packs() {
            self.read_pack(&name, &bytes, &mut records);
        }
        records
    }

    fn read_pack(&self, name: &str, bytes: &[u8], records: &mut Vec<Record>) {
        let (epoch, uuid) = name.split_once('-').expect("<epoch>-<uuid>");
        let uuid: [u8; 16] = unhex(uuid);
        assert_eq!(&bytes[..8], b"SNAPPACK", "{name}");
        assert_eq!(number::<2>(bytes, 8), 1, "format of {name}");
        assert_eq!(bytes[16..32], self.store, "store of {name}");
        let epoch = u64::from_str_radix(epoch, 16).expect("an epoch");
        assert_eq!(number::<8>(bytes, 32), epoch, "epoch of {name}");
        assert_eq!(bytes[40..56], uuid, "uuid of {name}");
        check_crc(bytes, 60, name);

        let first = records.len();
        let mut places: BTreeMap<Id, u64> = BTreeMap::new();
        let mut at = 64;
        while at + 64 <= bytes.len() {
            let head = &bytes[at..];
            if head.starts_with(b"PACKDIR\0") {
                self.check_end(name, bytes, at, &places);
                return;
            }
            if head.starts_with(b"PACKSYNC") {
                assert_eq!(head[8..24], uuid, "mark of {name} at {at}");
                check_crc(head, 60, "a mark");
                at += 64;
                continue;
            }
            assert!(head.starts_with(b"CHNK"), "{name} at {at}: no record");
            check_crc(head, 84, "a record's header");
            let stored = number::<4>(head, 16);
            assert_eq!(number::<4>(head, 8), 0, "an encrypted record");
            let payload = &head[88..88 + stored as usize];
            let crc = u64::from(crc32fast::hash(payload));
            assert_eq!(crc, number::<4>(head, 80), "payload in {name} at {at}");
            let plain = match head[5] {
                0 => payload.to_vec(),
                1 => zstd::stream::decode_all(payload).expect("a zstd frame"),
                codec => panic!("codec {codec} in {name} at {at}"),
            };
            assert_eq!(plain.len() as u64, number::<4>(head, 12), "length");
            let id: Id = head[48..80].try_into().expect("32 bytes");
            assert_eq!(self.id(head[4], &plain), id, "id in {name} at {at}");
            places.insert(id, at as u64);
            records.push(Record {
                pack: name.to_owned(),
                kind: head[4],
                id,
                stored,
                plain,
            });
            at += (88 + stored as usize).next_multiple_of(64);
        }
        assert_eq!(
            records.len() - first,
            places.len(),
            "{name} has a chunk twice"
        );
    }

    /// Directory and trailer say what the records say.
    fn check_end(&self, name: &str, bytes: &[u8], at: usize, places: &BTreeMap<Id, u64>) {
        let head = &bytes[at..];
        check_crc(head, 60, "a directory");
        assert_eq!(
            number::<4>(head, 24),
            places.len() as u64,
            "count of {name}"
        );
        let entries = &head[64..64 + 48 * places.len()];
        let crc = u64::from(crc32fast::hash(entries));
        assert_eq!(crc, number::<4>(head, 28), "entries of {name}");
        for (entry, (id, place)) in entries.chunks_exact(48).zip(places) {
            assert_eq!(entry[..32], *id, "order of the directory of {name}");
            assert_eq!(number::<4>(entry, 36) * 64, *place, "a place in {name}");
        }
        let trailer = &bytes[bytes.len() - 64..];
        assert_eq!(&trailer[..8], b"PACKEND\0", "trailer of {name}");
        check_crc(trailer, 60, "a trailer");
        assert_eq!(number::<8>(trailer, 24), at as u64, "trailer of {name}");
        let len = bytes.len() - 64 - at;
        assert_eq!(number::<8>(trailer, 32), len as u64, "trailer of {name}");
    }

    fn id(&self, kind: u8, plain: &[u8]) -> Id {
        let context = match kind {
            DATA => "snapdisk 1 chunk id of data",
            PAGE => "snapdisk 1 chunk id of a map page",
            ROOT => "snapdisk 1 chunk id of a map root",
            other => panic!("kind {other}"),
        };
        *blake3::keyed_hash(&blake3::derive_key(context, &self.key), plain).as_bytes()
    }

    /// The manifest of a disk.
    pub fn disk(&self, name: &str) -> Value {
        let catalogue = manifest(&self.root.join("manifests/catalogue"));
        let entries = catalogue["entries"].as_object().expect("entries");
        let disks = entries.iter().filter(|(_, kind)| *kind == "disk");
        disks
            .map(|(id, _)| {
                let file = format!("manifests/disk-{}", id.replace('-', ""));
                manifest(&self.root.join(file))
            })
            .find(|disk| disk["name"] == name && disk["role"] == "disk")
            .unwrap_or_else(|| panic!("no manifest of disk {name}"))
    }

    /// The root id of a snapshot; None while it is not sealed.
    pub fn root(&self, disk: &str, snapshot: &str) -> Option<Id> {
        let disk = self.disk(disk);
        let snapshots = disk["snapshots"].as_array().expect("snapshots");
        let snapshot = (snapshots.iter())
            .find(|found| found["name"] == snapshot)
            .unwrap_or_else(|| panic!("no snapshot {snapshot}"));
        let base = &snapshot["base"];
        let root = match base["layer"].as_str() {
            // The layer may be sealed and the snapshot not told yet.
            Some(layer) => {
                let layers = disk["layers"].as_array().expect("layers");
                let layer = layers.iter().find(|found| found["id"] == layer)?;
                layer["root"].as_str()?
            }
            None => base["root"].as_str()?,
        };
        Some(unhex(root))
    }

    /// Chunk index and id of every present chunk, and the size in bytes, of
    /// what a root names.
    pub fn map(&self, root: Id) -> (u64, BTreeMap<u64, Id>) {
        let (size, chunks, _) = self.walk(root);
        (size, chunks)
    }

    /// Every id that a root reaches: itself, pages and chunks.
    pub fn reached(&self, root: Id) -> Vec<(u8, Id)> {
        let (_, chunks, pages) = self.walk(root);
        let mut all = vec![(ROOT, root)];
        all.extend(pages.into_iter().map(|id| (PAGE, id)));
        all.extend(chunks.into_values().map(|id| (DATA, id)));
        all
    }

    fn walk(&self, root: Id) -> (u64, BTreeMap<u64, Id>, Vec<Id>) {
        let records = self.by_id();
        let record = &records[&root];
        assert_eq!((record.kind, record.plain[0]), (ROOT, 1), "a root");
        let plain = &record.plain;
        assert_eq!(number::<4>(plain, 1), self.chunk_size);
        let (size, height, count) = (number::<8>(plain, 5), plain[13], number::<8>(plain, 14));
        let (mut chunks, mut pages) = (BTreeMap::new(), Vec::new());
        if count > 0 {
            let top: Id = plain[22..54].try_into().expect("32 bytes");
            let found = walk_page(&records, top, height, 0, &mut chunks, &mut pages);
            assert_eq!(found, count, "chunks below the root");
        }
        (size, chunks, pages)
    }

    fn by_id(&self) -> BTreeMap<Id, Record> {
        let records = self.records().into_iter();
        records.map(|record| (record.id, record)).collect()
    }

    /// All bytes of a sealed snapshot.
    pub fn content(&self, disk: &str, snapshot: &str) -> Vec<u8> {
        let root = self.root(disk, snapshot).expect("it is sealed");
        let (size, chunks) = self.map(root);
        let records = self.by_id();
        let mut bytes = vec![0; size.next_multiple_of(self.chunk_size) as usize];
        for (index, id) in chunks {
            let plain = &records[&id].plain;
            assert_eq!(plain.len() as u64, self.chunk_size, "a chunk is whole");
            let at = (index * self.chunk_size) as usize;
            bytes[at..at + plain.len()].copy_from_slice(plain);
        }
        let behind = bytes.split_off(size as usize);
        assert!(behind.iter().all(|byte| *byte == 0), "zeros behind the end");
        bytes
    }
}

fn walk_page(
    records: &BTreeMap<Id, Record>,
    id: Id,
    level: u8,
    first: u64,
    chunks: &mut BTreeMap<u64, Id>,
    pages: &mut Vec<Id>,
) -> u64 {
    let record = &records[&id];
    let plain = &record.plain;
    assert_eq!(
        (record.kind, plain[0], plain[1]),
        (PAGE, 1, level),
        "a page"
    );
    pages.push(id);
    let bitmap = u128::from_le_bytes(plain[2..18].try_into().expect("16 bytes"));
    let (mut at, mut sum) = (18, 0);
    for slot in (0..128).filter(|slot| bitmap >> slot & 1 == 1) {
        let entry: Id = plain[at..at + 32].try_into().expect("32 bytes");
        let index = first + (slot << (7 * (u32::from(level) - 1)));
        if level == 1 {
            chunks.insert(index, entry);
            (at, sum) = (at + 32, sum + 1);
        } else {
            let count = walk_page(records, entry, level - 1, index, chunks, pages);
            assert_eq!(count, number::<8>(plain, at + 32), "count of a page");
            (at, sum) = (at + 40, sum + count);
        }
    }
    assert_eq!(at, plain.len(), "bytes after the last entry");
    sum
}
