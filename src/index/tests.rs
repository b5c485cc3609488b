use super::db::{Cover, decode, encode};
use super::*;
use crate::backend::memory::MemoryBackend;
use crate::chunk::{Codec, Keys, Kind};
use crate::pack::{PackWriter, Stored};
use tempfile::TempDir;

const STORE: Uuid = Uuid::from_u128(4);

fn temporary() -> TempDir {
    tempfile::tempdir().expect("a temporary directory")
}

/// A pack with as many records.
fn pack(backend: &dyn Backend, records: u8, close: bool) -> Result<(PackName, Directory)> {
    let name = PackName::random(1);
    let mut writer = PackWriter::create(backend, name, STORE)?;
    for number in 0..records {
        let payload = vec![number; 40];
        writer.append(&Stored {
            id: Keys::new(&[0; 32]).id(Kind::Data, &payload),
            kind: Kind::Data,
            codec: Codec::Raw,
            plain_len: 40,
            payload,
        })?;
    }
    if close {
        writer.close()?;
    }
    writer.sync()?;
    Ok((name, writer.directory()))
}

fn open(backend: &Arc<MemoryBackend>, dir: &TempDir) -> Result<(Index, Opened)> {
    let backend = Arc::clone(backend) as Arc<dyn Backend>;
    Index::open(backend, STORE, &dir.path().join("index"), &|_, _| ())
}

#[test]
fn a_value_that_the_packs_trailer_does_not_confirm_is_replaced() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let (name, right) = pack(&*backend, 20, true)?;
    let (index, _) = open(&backend, &dir)?;
    let cover = Cover {
        file_len: backend.settle(&name.key())?,
        closed: true,
        damaged: false,
    };
    // Each entry with the place of another one.
    let offsets = right.entries().iter().map(Entry::offset).rev();
    let wrong = Directory::new(
        right
            .entries()
            .iter()
            .zip(offsets)
            .filter_map(|(entry, offset)| Entry::new(entry.id, Kind::Data, offset, 40, 40))
            .collect(),
    );
    assert_ne!(wrong, right);
    index.db.put(&name, &wrong, cover);
    index.close();
    drop(index);
    let (index, opened) = open(&backend, &dir)?;
    assert_eq!(opened.rebuilt, 0);
    let number = index.number(&name).expect("it is known");
    assert_eq!(*index.directory(number)?, right);
    let id = right.entries()[0].id;
    assert_eq!(
        index.resolve_through_db(&id),
        Some((name, right.entries()[0]))
    );
    Ok(())
}

#[test]
fn what_is_not_there_is_not_a_candidate_and_gone_packs_are_forgotten() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let (one, first) = pack(&*backend, 20, true)?;
    let (two, _) = pack(&*backend, 30, false)?;
    let (index, opened) = open(&backend, &dir)?;
    assert_eq!((opened.packs, opened.rebuilt), (2, 2));
    let id = first.entries()[0].id;
    assert_eq!(index.candidates(&id).len(), 2);
    assert_eq!(index.candidates(&ChunkId([1; 32])), []);
    let number = index.number(&one).expect("it is known");
    index.set_visible(number, false);
    assert_eq!(index.candidates(&id).len(), 1);
    index.remove(number);
    backend.delete(&one.key())?;
    assert_eq!(index.number(&one), None);
    index.close();
    drop(index);
    backend.delete(&two.key())?;
    let (index, opened) = open(&backend, &dir)?;
    assert_eq!((opened.packs, opened.rebuilt), (0, 0));
    assert_eq!(index.resolve_through_db(&id), None);
    Ok(())
}

#[test]
fn an_index_that_somebody_has_open_is_left_alone() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let (_, directory) = pack(&*backend, 20, true)?;
    let (first, _) = open(&backend, &dir)?;
    let (second, _) = open(&backend, &dir)?;
    assert!(first.has_db() && !second.has_db());
    let id = directory.entries()[0].id;
    for index in [&first, &second] {
        let number = index.candidates(&id)[0];
        assert_eq!(*index.directory(number)?, directory);
    }
    assert!(!dir.path().join("index.damaged").exists());
    Ok(())
}

fn directory(count: u64) -> Directory {
    Directory::new(
        (0..count)
            .filter_map(|number| {
                let id = ChunkId(*blake3::hash(&number.to_le_bytes()).as_bytes());
                Entry::new(id, Kind::Data, 64 + number * 128, 40, 50)
            })
            .collect(),
    )
}

#[test]
fn a_value_comes_back_and_a_damaged_one_does_not() {
    let cover = Cover {
        file_len: 1 << 33,
        closed: true,
        damaged: false,
    };
    let directory = directory(100);
    let bytes = encode(&directory, cover);
    let value = decode(&bytes).expect("it is sound");
    assert_eq!((value.directory, value.cover), (directory, cover));
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert!(decode(&bytes).is_none(), "{at}");
    }
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_none(), "{len}");
    }
}
