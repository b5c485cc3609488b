use super::db::{Cover, Value, decode, encode};
use super::*;
use crate::backend::memory::MemoryBackend;
use crate::chunk::{Codec, Keys, Kind};
use crate::pack::{PackWriter, Stored};
use tempfile::TempDir;

const STORE: Uuid = Uuid::from_u128(4);
/// Of a closed pack whose length needs more than 32 bits.
const COVER: Cover = Cover {
    file_len: 1 << 33,
    closed: true,
};

impl Kept {
    fn into_value(self) -> Option<Value> {
        match self {
            Kept::Value(value) => Some(value),
            Kept::Nothing | Kept::Busy => None,
        }
    }
}

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
fn a_value_that_the_pack_does_not_confirm_is_not_believed_and_is_replaced() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let (name, right) = pack(&*backend, 20, true)?;
    let (index, _) = open(&backend, &dir)?;
    let cover = Cover {
        file_len: backend.settle(&name.key())?,
        closed: true,
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
    assert_eq!(index.rebuild_all(&|_, _| ()), 1);
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
    let directory = directory(100);
    let bytes = encode(&directory, COVER);
    let value = decode(&bytes).expect("it is sound");
    assert_eq!((value.directory, value.cover), (directory, COVER));
    for at in 0..bytes.len() {
        let mut bytes = bytes.clone();
        bytes[at] ^= 1;
        assert!(decode(&bytes).is_none(), "{at}");
    }
    for len in 0..bytes.len() {
        assert!(decode(&bytes[..len]).is_none(), "{len}");
    }
}

/// Packs of 20 records each, all of them closed, and an index that was closed
/// in good order. Returns their directories.
fn saved_index(
    backend: &Arc<MemoryBackend>,
    dir: &TempDir,
    packs: u8,
) -> Result<Vec<(PackName, Directory)>> {
    let made = (0..packs).map(|at| pack(&**backend, 20 + at, true));
    let made: Vec<_> = made.collect::<Result<_>>()?;
    let (index, opened) = open(backend, dir)?;
    assert_eq!(opened.rebuilt, u64::from(packs));
    index.close();
    Ok(made)
}

fn saved_file(dir: &TempDir) -> std::path::PathBuf {
    dir.path().join("index").join(saved::FILE)
}

fn finds_all(index: &Index, packs: &[(PackName, Directory)]) -> Result<()> {
    for (name, directory) in packs {
        let number = index.number(name).expect("it is known");
        assert_eq!(*index.directory(number)?, *directory);
        for entry in directory.entries() {
            assert!(index.candidates(&entry.id).contains(&number));
        }
    }
    Ok(())
}

/// Opening a store whose packs are all in the saved table reads nothing of
/// any of them.
#[test]
fn a_saved_table_spares_reading_directories() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let packs = saved_index(&backend, &dir, 3)?;
    let counted = {
        let (index, _) = open(&backend, &dir)?;
        index.packs()
    };
    // Sled has none of them any more.
    let (index, _) = open(&backend, &dir)?;
    for (name, _) in &packs {
        index.db.remove(name);
    }
    index.db.flush();
    drop(index);
    let (index, opened) = open(&backend, &dir)?;
    assert_eq!((opened.packs, opened.rebuilt), (3, 0));
    let facts = |packs: Vec<(PackNumber, PackInfo)>| {
        let mut facts: Vec<_> = packs
            .into_iter()
            .map(|(_, info)| (info.name, info.records, info.record_bytes, info.plain_bytes))
            .collect();
        facts.sort_unstable();
        facts
    };
    assert_eq!(facts(index.packs()), facts(counted));
    finds_all(&index, &packs)
}

/// Invariant 5: the index may be stale. What came after the table was saved
/// is read, what went is forgotten, and what is longer now is read again.
#[test]
fn a_saved_table_of_an_earlier_moment_is_brought_up_to_date() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let mut packs = saved_index(&backend, &dir, 3)?;
    let (gone, forgotten) = packs.remove(0);
    backend.delete(&gone.key())?;
    packs.push(pack(&*backend, 60, true)?);
    let (index, opened) = open(&backend, &dir)?;
    assert_eq!((opened.packs, opened.rebuilt), (3, 1));
    finds_all(&index, &packs)?;
    assert_eq!(index.number(&gone), None);
    // Its ids are those of others, too: none of them leads to a pack that
    // is not there.
    for entry in forgotten.entries() {
        for number in index.candidates(&entry.id) {
            assert!(index.info(number).is_some());
        }
    }
    assert_eq!(index.db.get(&gone).into_value(), None);
    Ok(())
}

/// A pack that is written to is not in the saved table, even if the table is
/// saved meanwhile.
#[test]
fn a_pack_that_is_being_written_is_read_after_a_crash() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let (index, _) = open(&backend, &dir)?;
    let (name, directory) = pack(&*backend, 30, false)?;
    let number = index.add(name)?;
    let early = &directory.entries()[..10];
    let len = backend.settle(&name.key())?;
    // Half of it is published, and the file has its final length already.
    index.publish(number, &Directory::new(early.to_vec()), early, len, false);
    index.save();
    drop(index);
    let (index, _) = open(&backend, &dir)?;
    let number = index.number(&name).expect("it is known");
    // By the table saved, half of it would be known and the rest nowhere.
    let saved = saved::read(&dir.path().join("index"), STORE, |_, _| true);
    let saved = saved.expect("it is sound").expect("it is there");
    assert!(saved.packs.is_empty());
    assert!(index.candidates(&early[0].id).contains(&number));
    Ok(())
}

/// A saved table is believed only whole: damaged anywhere, cut anywhere, or
/// of another store, it is none, and everything is found all the same.
#[test]
fn a_damaged_saved_table_is_noticed_and_made_anew() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let packs = saved_index(&backend, &dir, 2)?;
    let sound = std::fs::read(saved_file(&dir)).expect("it is saved");
    let home = dir.path().join("index");
    let read = |store| saved::read(&home, store, |_, _| true);
    assert!(read(STORE).is_ok_and(|saved| saved.is_some()));
    assert!(read(Uuid::from_u128(5)).is_err());
    let put = |bytes: &[u8]| std::fs::write(saved_file(&dir), bytes).expect("written");
    for at in 0..sound.len() {
        let mut bytes = sound.clone();
        bytes[at] ^= 0x10;
        put(&bytes);
        assert!(read(STORE).is_err(), "byte {at}");
    }
    for len in (0..sound.len()).step_by(7) {
        put(&sound[..len]);
        assert!(read(STORE).is_err(), "cut at {len}");
    }
    put(&[&sound[..], &[0]].concat());
    assert!(read(STORE).is_err());
    // Room is made by the numbers in it, also where the checksums fit.
    put(&sound);
    let saved = read(STORE).expect("it is sound").expect("it is there");
    let info = saved.packs[0].clone();
    for absurd in [
        PackInfo {
            records: 1 << 60,
            ..info.clone()
        },
        PackInfo {
            record_bytes: u64::MAX,
            ..info.clone()
        },
        PackInfo {
            plain_bytes: u64::MAX,
            ..info.clone()
        },
    ] {
        saved::write(&home, STORE, &[(0, absurd)], 0, |_| Vec::new()).expect("written");
        assert!(read(STORE).is_err());
    }
    put(&sound[..sound.len() / 2]);
    let (index, opened) = open(&backend, &dir)?;
    assert_eq!(opened.rebuilt, 0, "sled has them");
    finds_all(&index, &packs)?;
    index.close();
    assert!(read(STORE).is_ok_and(|saved| saved.is_some()));
    Ok(())
}

/// What says that a pack is sound does not outlive the finding that it is not.
#[test]
fn a_damaged_pack_is_not_in_the_saved_table() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let packs = saved_index(&backend, &dir, 2)?;
    let (index, _) = open(&backend, &dir)?;
    index.mark_damaged(index.number(&packs[0].0).expect("it is known"));
    index.close();
    let saved = saved::read(&dir.path().join("index"), STORE, |_, _| true);
    let saved = saved.expect("it is sound").expect("it is there");
    let names: Vec<PackName> = saved.packs.iter().map(|info| info.name).collect();
    assert_eq!(names, [packs[1].0]);
    // Nor is it forgotten, though its directory is sound.
    let (index, _) = open(&backend, &dir)?;
    let is_damaged = |name: &PackName| {
        let number = index.number(name).expect("it is known");
        index.info(number).is_some_and(|info| info.is_damaged())
    };
    assert!(is_damaged(&packs[0].0));
    assert!(!is_damaged(&packs[1].0));
    Ok(())
}

/// A directory in sled that became shorter has pieces of the longer one
/// behind it.
#[test]
fn a_value_comes_back_from_its_pieces() {
    let dir = temporary();
    let db = Db::open(&dir.path().join("index"));
    let (one, two) = (PackName::random(1), PackName::random(1));
    for (name, counts) in [(one, [1500, 200]), (two, [16, 0])] {
        for count in counts {
            db.put(&name, &directory(count), COVER);
            let value = db.get(&name).into_value().expect("it is there");
            assert_eq!((value.directory, value.cover), (directory(count), COVER));
        }
    }
    let mut found = HashMap::new();
    assert!(db.each(|name, value| {
        found.insert(name, value.map(|value| value.directory));
    }));
    assert_eq!(found.get(&one), Some(&Some(directory(200))));
    assert_eq!(found.get(&two), Some(&Some(directory(0))));
    db.remove(&one);
    assert_eq!(db.get(&one).into_value(), None);
    assert!(db.get(&two).into_value().is_some());
}

/// What was put does not stay in memory, and one look-up reads the leaves
/// that have the value and not all that follow, whether it is there or not.
#[test]
fn what_was_put_leaves_memory_and_is_read_leaf_by_leaf() {
    let dir = temporary();
    let db = Db::open(&dir.path().join("index"));
    let directory = directory(1500);
    let names: Vec<PackName> = (0..600).map(|_| PackName::random(1)).collect();
    for (number, name) in (1u64..).zip(&names) {
        db.put(name, &directory, COVER);
        if number.is_multiple_of(FLUSH_EVERY) {
            db.flush();
        }
    }
    // A value has 18 pieces, and a leaf up to 16.
    let early = &names[..64];
    let before = db.leaves_read();
    for name in early {
        let value = db.get(name).into_value().expect("it is there");
        assert_eq!(value.directory, directory);
    }
    let read = db.leaves_read() - before;
    assert!((64..64 * 5).contains(&read), "{read} leaves for 64 values");
    let before = db.leaves_read();
    for _ in early {
        assert_eq!(db.get(&PackName::random(1)).into_value(), None);
    }
    let read = db.leaves_read() - before;
    assert!(read <= 64, "{read} leaves for 64 values that are not there");
    for name in early {
        db.remove(name);
        assert_eq!(db.get(name).into_value(), None);
    }
    let mut left = 0;
    assert!(db.each(|_, value| left += u64::from(value.is_some())));
    assert_eq!(left, 600 - 64);
}

/// Every chunk is found, by a glance or by the directory, and one that is not
/// there is not; a second look-up in a pack keeps its directory.
#[test]
fn a_chunk_is_found_with_and_without_its_packs_directory() -> Result<()> {
    let backend = Arc::new(MemoryBackend::new());
    let dir = temporary();
    let (name, directory) = pack(&*backend, 200, true)?;
    let (index, _) = open(&backend, &dir)?;
    let number = index.number(&name).expect("it is there");
    let (first, rest) = directory.entries().split_at(1);
    assert_eq!(index.find(number, &first[0].id)?, Some(first[0]));
    assert!(
        index.directories.peek(&number.0).is_none(),
        "it was a glance"
    );
    for entry in rest {
        assert_eq!(index.find(number, &entry.id)?, Some(*entry));
    }
    assert!(index.directories.peek(&number.0).is_some());
    assert_eq!(index.find(number, &ChunkId([1; 32]))?, None);
    // Other packs are looked up meanwhile, and its directory is let go of.
    index.directories.clear();
    for other in 1..=GLANCES as u32 {
        index.glanced.lock().is_first(PackNumber(number.0 + other));
    }
    assert_eq!(index.find(number, &first[0].id)?, Some(first[0]));
    assert!(
        index.directories.peek(&number.0).is_none(),
        "a glance again"
    );
    Ok(())
}
