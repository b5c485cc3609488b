use super::fixture::{CHUNK, Fixture, check, noise, put};
use super::*;
use crate::index::PackInfo;
use crate::pack::{Entry, PackName};
use std::ops::Range;

fn ids_of(store: &ChunkStore, numbers: std::ops::Range<u64>) -> Vec<ChunkId> {
    numbers
        .map(|number| store.id(Kind::Data, &noise(number)))
        .collect()
}

#[test]
fn chunks_come_back_and_are_stored_once() -> Result<()> {
    let (store, _) = Fixture::new().open()?;
    let ids = put(&store, 0..10)?;
    put(&store, 0..10)?;
    check(&store, 0..10)?;
    assert_eq!(store.stats().chunks, 10);
    assert_eq!(store.stats().plain_bytes, 10 * CHUNK as u64);
    // The kind is part of what is asked for.
    assert!(matches!(
        store.get(Kind::Page, &ids[0]),
        Err(Error::ChunkMissing { .. })
    ));
    let unknown = store.id(Kind::Data, b"unknown");
    assert!(matches!(
        store.get(Kind::Data, &unknown),
        Err(Error::ChunkMissing { .. })
    ));
    Ok(())
}

#[test]
fn a_list_is_packed_in_parallel_and_duplicates_in_it_are_stored_once() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..3)?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(2)
        .build()
        .expect("a pool");
    let list: Vec<(ChunkId, Vec<u8>)> = (0..1500)
        .chain(0..100)
        .map(|number| (store.id(Kind::Data, &noise(number)), noise(number)))
        .collect();
    let batch = store.begin();
    let stats = batch.put_all(&pool, Kind::Data, &list)?;
    let bytes = 1497 * CHUNK as u64;
    assert_eq!(
        (stats.new, stats.new_plain_bytes, stats.stored_bytes),
        (1497, bytes, bytes)
    );
    batch.sync()?;
    assert_eq!(
        batch.put_all(&pool, Kind::Data, &list)?,
        PutStats::default()
    );
    // Full packs were closed on the way.
    assert!(fixture.backend.packs().len() >= 20);
    check(&store, 0..1500)
}

#[test]
fn sealing_often_goes_on_in_one_pack() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    for number in 0..20 {
        put(&store, number..number + 1)?;
    }
    assert_eq!(fixture.backend.packs().len(), 1);
    assert_eq!(fixture.backend.faults().syncs, 20);
    // Invariant 5: a later run does not append to it.
    let (store, _) = fixture.crash(store)?;
    put(&store, 20..21)?;
    assert_eq!(fixture.backend.packs().len(), 2);
    Ok(())
}

#[test]
fn a_synced_chunk_resolves_through_sled_alone() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let batch = store.begin();
    let (plain, id) = (noise(1), store.id(Kind::Data, &noise(1)));
    batch.put(Kind::Data, &id, &plain)?;
    assert_eq!(store.index().resolve_through_db(&id), None);
    batch.sync()?;
    let found = store.index().resolve_through_db(&id);
    assert_eq!(found.map(|(_, entry)| entry.id), Some(id));
    store.close()?;
    drop((batch, store));
    let (store, opened) = fixture.open()?;
    assert_eq!(opened.rebuilt, 0);
    let found = store.index().resolve_through_db(&id);
    assert_eq!(found.map(|(_, entry)| entry.id), Some(id));
    Ok(())
}

#[test]
fn a_store_without_its_index_loses_nothing() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..200)?;
    store.close()?;
    drop(store);
    fixture.delete_index();
    let (store, opened) = fixture.open()?;
    assert_eq!((opened.packs, opened.rebuilt, opened.chunks), (4, 4, 200));
    assert_eq!(opened.findings, []);
    check(&store, 0..200)?;
    put(&store, 0..200)?;
    assert_eq!(store.stats().chunks, 200);
    for id in ids_of(&store, 0..200) {
        assert!(store.index().resolve_through_db(&id).is_some());
    }
    Ok(())
}

#[test]
fn an_index_of_an_earlier_moment_is_brought_up_to_date() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..100)?;
    store.close()?;
    drop(store);
    let old = fixture.dir.path().join("old");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        let status = std::process::Command::new("cp")
            .arg("-a")
            .args([from, to])
            .status();
        assert!(status.is_ok_and(|status| status.success()));
    };
    copy(&fixture.index_dir(), &old);
    let (store, _) = fixture.open()?;
    put(&store, 100..200)?;
    let run = store.sweep_begin()?;
    let dead: HashSet<ChunkId> = ids_of(&store, 0..60).into_iter().collect();
    let report = run.finish(&|_, id| !dead.contains(id), false, &|| true)?;
    assert!(report.packs_compacted > 0);
    store.close()?;
    drop(store);
    fixture.delete_index();
    copy(&old, &fixture.index_dir());

    let (store, opened) = fixture.open()?;
    assert!(opened.rebuilt > 0);
    check(&store, 60..200)?;
    for id in ids_of(&store, 0..60) {
        assert!(matches!(
            store.get(Kind::Data, &id),
            Err(Error::ChunkMissing { .. })
        ));
        assert!(!store.begin().contains(Kind::Data, &id));
    }
    Ok(())
}

#[test]
fn a_damaged_index_is_moved_aside_and_made_anew() -> Result<()> {
    for what in ["header", "garbage", "file"] {
        let mut fixture = Fixture::new();
        let (store, _) = fixture.open()?;
        put(&store, 0..200)?;
        store.close()?;
        drop(store);
        let dir = fixture.index_dir();
        let files = |dir: &std::path::Path| -> Vec<std::path::PathBuf> {
            let mut found = vec![];
            let mut dirs = vec![dir.to_owned()];
            while let Some(dir) = dirs.pop() {
                for entry in std::fs::read_dir(dir).expect("listed") {
                    let path = entry.expect("listed").path();
                    match path.is_dir() {
                        true => dirs.push(path),
                        false => found.push(path),
                    }
                }
            }
            found
        };
        match what {
            "file" => {
                std::fs::remove_dir_all(&dir).expect("removed");
                std::fs::write(&dir, b"a file").expect("written");
            }
            _ => {
                for path in files(&dir) {
                    let mut bytes = std::fs::read(&path).expect("read");
                    let start = if what == "header" { 0 } else { bytes.len() / 3 };
                    let part = bytes.len().min(start + 4096);
                    bytes[start..part].fill(0x5a);
                    std::fs::write(&path, bytes).expect("written");
                }
            }
        }
        let (store, opened) = fixture.open()?;
        assert_eq!((opened.chunks, opened.findings.len()), (200, 0), "{what}");
        check(&store, 0..200)?;
        assert!(store.index().has_db(), "{what}");
        for id in ids_of(&store, 0..200) {
            assert!(store.index().resolve_through_db(&id).is_some(), "{what}");
        }
    }
    Ok(())
}

#[test]
fn without_any_index_the_store_works() -> Result<()> {
    let mut fixture = Fixture::new();
    // A file where a directory would be made.
    std::fs::write(fixture.dir.path().join("file"), b"").expect("written");
    let nowhere = fixture.dir.path().join("file/index");
    fixture.epoch = 1;
    let backend = Arc::clone(&fixture.backend);
    let (store, _) = super::fixture::open_at(&nowhere, 1, backend.clone())?;
    assert!(!store.index().has_db());
    put(&store, 0..200)?;
    check(&store, 0..200)?;
    store.close()?;
    let (store, opened) = super::fixture::open_at(&nowhere, 2, backend)?;
    assert_eq!(opened.rebuilt, 4);
    put(&store, 0..200)?;
    assert_eq!(store.stats().chunks, 200);
    check(&store, 0..200)
}

#[test]
fn a_torn_pack_keeps_what_was_whole_and_is_no_damage() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..5)?;
    // Not synced: it may be lost.
    let batch = store.begin();
    batch.put(Kind::Data, &store.id(Kind::Data, &noise(5)), &noise(5))?;
    drop(batch);
    let key = fixture.backend.packs().remove(0);
    fixture
        .backend
        .tamper(&key, |bytes| bytes.truncate(bytes.len() - 1000))?;
    let (store, opened) = fixture.crash(store)?;
    assert_eq!(opened.rebuilt, 1);
    assert!(
        matches!(opened.findings[..], [Finding::TornTail { .. }]),
        "{:?}",
        opened.findings
    );
    assert!(!opened.findings[0].is_damage());
    check(&store, 0..5)?;
    assert!(
        !store
            .begin()
            .contains(Kind::Data, &store.id(Kind::Data, &noise(5)))
    );
    // Next time it is known already.
    store.close()?;
    let (_store, opened) = fixture.crash(store)?;
    assert_eq!((opened.rebuilt, opened.findings.len()), (0, 0));
    Ok(())
}

#[test]
fn writes_that_a_power_loss_tore_in_the_middle_are_no_damage() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..5)?;
    let key = fixture.backend.packs().remove(0);
    let synced = fixture.backend.inner.settle(&key)? as usize;
    let batch = store.begin();
    for number in 5..8 {
        batch.put(
            Kind::Data,
            &store.id(Kind::Data, &noise(number)),
            &noise(number),
        )?;
    }
    drop((batch, store));
    // Of what was not synced the first half is lost, the rest is there.
    fixture
        .backend
        .tamper(&key, |bytes| bytes[synced + 64..synced + 8192].fill(0))?;
    for lose_index in [false, true] {
        if lose_index {
            fixture.delete_index();
        }
        let (store, opened) = fixture.open()?;
        assert!(
            !opened.findings.iter().any(Finding::is_damage),
            "{:?}",
            opened.findings
        );
        check(&store, 0..5)?;
        check(&store, 6..8)?;
        store.sweep_begin()?.finish(&|_, _| true, false, &|| true)?;
    }
    // The same before what was synced is damage, also without an index.
    fixture
        .backend
        .tamper(&key, |bytes| bytes[synced / 2..synced / 2 + 64].fill(0))?;
    fixture.delete_index();
    let (store, opened) = fixture.open()?;
    assert!(
        opened.findings.iter().any(Finding::is_damage),
        "{:?}",
        opened.findings
    );
    assert!(
        store
            .sweep_begin()?
            .finish(&|_, _| true, false, &|| true)
            .is_err()
    );
    Ok(())
}

#[test]
fn damage_of_the_open_pack_is_found_and_never_handed_out() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..3)?;
    let key = fixture.backend.packs().remove(0);
    for at in [64 + 20, 64 + 5000, 3 * CHUNK] {
        // Appenders hold the object itself, so it is changed and changed back.
        let mut findings = Vec::new();
        fixture.backend.inner.flip(&key, at);
        store.verify(&|_, _| (), &mut |finding| findings.push(finding))?;
        assert!(
            findings.iter().any(Finding::is_damage),
            "{at}: {findings:?}"
        );
        assert!(check(&store, 0..3).is_err());
        fixture.backend.inner.flip(&key, at);
        // It is remembered, though nothing can be seen of it any more.
        let verified = store.verify(&|_, _| (), &mut |finding| match finding {
            Finding::Directory { .. } => {}
            other => panic!("{other}"),
        })?;
        assert_eq!(verified.chunks, 3);
    }
    check(&store, 0..3)
}

/// A part of a pack.
#[derive(Clone, Copy, Debug)]
enum Part {
    /// Its header and first record.
    Start,
    Middle,
    /// Its trailer, if it is closed.
    End,
}

/// A pack of 60 records, the only one of its store, and where in it a sector
/// may go bad.
struct OnePack {
    info: PackInfo,
    entries: Vec<Entry>,
    sector: Range<u64>,
}

impl OnePack {
    fn new(fixture: &mut Fixture, part: Part, closed: bool) -> Result<(Arc<ChunkStore>, OnePack)> {
        let (store, _) = fixture.open()?;
        put(&store, 0..60)?;
        if closed {
            store.rotate()?;
        }
        let (store, _) = fixture.crash(store)?;
        let (number, info) = store.index().packs().remove(0);
        let entries = store.index().directory(number)?.by_offset();
        let at = match part {
            Part::Start => 0,
            Part::Middle => entries[30].offset() + 5000,
            Part::End => info.file_len - 64,
        };
        let sector = at / 4096 * 4096..(at / 4096 + 1) * 4096;
        let pack = OnePack {
            info,
            entries,
            sector,
        };
        Ok((store, pack))
    }

    fn is_in_sector(&self, entry: &Entry) -> bool {
        entry.offset() < self.sector.end && entry.end() > self.sector.start
    }
}

/// A sector that the disk cannot read costs the records that are in it: the
/// others are verified and copied to another pack.
#[test]
fn verify_and_salvage_go_on_behind_what_cannot_be_read() -> Result<()> {
    for (part, closed) in [
        (Part::Start, true),
        (Part::Middle, true),
        (Part::End, true),
        (Part::Start, false),
        (Part::Middle, false),
    ] {
        let what = format!("{part:?}, closed {closed}");
        let mut fixture = Fixture::new();
        let (store, pack) = OnePack::new(&mut fixture, part, closed)?;
        let entries = &pack.entries;
        let key = pack.info.name.key();
        fixture.backend.faults().unreadable = Some((key.clone(), pack.sector.clone()));
        let lost: Vec<u64> = entries
            .iter()
            .filter(|entry| pack.is_in_sector(entry))
            .map(Entry::offset)
            .collect();

        let mut findings = Vec::new();
        let verified = store.verify(&|_, _| (), &mut |finding| findings.push(finding))?;
        let named = findings.iter().filter_map(|finding| match finding {
            Finding::Chunk { offset, .. } => Some(*offset),
            _ => None,
        });
        assert_eq!(named.collect::<Vec<u64>>(), lost, "{what}: {findings:?}");
        let unreadable = findings.iter().filter_map(|finding| match finding {
            Finding::PackUnreadable { detail, .. } => Some(detail.as_str()),
            _ => None,
        });
        let wanted = format!(
            "the 4096 bytes at {}: input/output error",
            pack.sector.start
        );
        assert_eq!(unreadable.collect::<Vec<&str>>(), [wanted], "{what}");
        let left = entries.len() - lost.len();
        assert_eq!(verified.chunks as usize, left, "{what}");

        let run = store.sweep_begin()?;
        let salvaged = run.salvage(&[pack.info.name])?;
        assert_eq!(salvaged.copied.len(), left, "{what}");
        drop(salvaged);
        drop(run);
        // The rest of it goes, too.
        fixture.backend.tamper(&key, Vec::clear)?;
        fixture.backend.faults().unreadable = None;
        for entry in entries {
            let read = store.get(entry.kind, &entry.id);
            assert_eq!(read.is_err(), pack.is_in_sector(entry), "{what}");
        }
    }
    Ok(())
}

/// What is around a sector that cannot be read is found after a restart, with
/// the index and without, and what it hid is found once it can be read.
#[test]
fn a_pack_with_an_unreadable_sector_is_opened_around_it() -> Result<()> {
    for (part, closed, has_index, is_marked) in [
        (Part::Start, true, true, true),
        (Part::End, true, true, true),
        (Part::Middle, false, true, true),
        (Part::Start, false, true, false),
        (Part::Start, true, false, false),
        (Part::End, true, false, false),
        (Part::Start, false, false, false),
        (Part::Middle, false, false, false),
    ] {
        let what = format!("{part:?}, closed {closed}, index {has_index}, marked {is_marked}");
        let mut fixture = Fixture::new();
        let (store, pack) = OnePack::new(&mut fixture, part, closed)?;
        let rotten = pack.entries[40];
        let is_rotten = |entry: &Entry| is_marked && entry.id == rotten.id;
        let key = pack.info.name.key();
        if is_marked {
            let at = rotten.offset() as usize + 500;
            fixture.backend.tamper(&key, |bytes| bytes[at] ^= 1)?;
            assert!(store.get(rotten.kind, &rotten.id).is_err());
        }
        fixture.backend.faults().unreadable = Some((key, pack.sector.clone()));
        // Which may pass: it is in nobody's memory afterwards.
        store.verify(&|_, _| (), &mut |_| ())?;
        store.close()?;
        drop(store);
        if !has_index {
            fixture.delete_index();
        }
        let (store, opened) = fixture.open()?;
        let damaged = opened.findings.iter().any(Finding::is_damage);
        let findings = &opened.findings;
        assert_eq!(damaged, is_marked || !has_index, "{what}: {findings:?}");
        for entry in &pack.entries {
            let read = store.get(entry.kind, &entry.id);
            let is_lost = pack.is_in_sector(entry) || is_rotten(entry);
            assert_eq!(read.is_err(), is_lost, "{what}: {entry:?}");
        }
        // Nothing is deleted on the word of it.
        let swept = store
            .sweep_begin()?
            .finish(&|_, _| !damaged, false, &|| true);
        assert_eq!(swept.is_err(), damaged, "{what}");
        fixture.backend.faults().unreadable = None;
        for entry in &pack.entries {
            let read = store.get(entry.kind, &entry.id);
            assert_eq!(read.is_err(), is_rotten(entry), "{what}");
        }
    }
    Ok(())
}

/// A pack that could not be read when the store was opened, and can be read
/// since, counts as damaged until the next start and no longer.
#[test]
fn what_passed_since_the_start_is_no_damage_after_the_next() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..10)?;
    store.close()?;
    drop(store);
    fixture.delete_index();
    let key = fixture.backend.packs().remove(0);
    fixture.backend.faults().unreadable = Some((key, 0..64));
    let (store, opened) = fixture.open()?;
    assert!(opened.findings.iter().any(Finding::is_damage));
    fixture.backend.faults().unreadable = None;
    let (number, _) = store.index().packs().remove(0);
    store.index().reload(number)?;
    check(&store, 0..10)?;
    let run = store.sweep_begin()?;
    assert!(run.finish(&|_, _| true, false, &|| true).is_err());
    store.close()?;
    drop(store);
    let (store, opened) = fixture.open()?;
    assert!(!opened.findings.iter().any(Finding::is_damage));
    store.sweep_begin()?.finish(&|_, _| true, false, &|| true)?;
    check(&store, 0..10)
}

/// What could be read again, all of it, is a dedupe hit again, in this run and
/// in the next.
#[test]
fn what_can_be_read_again_is_trusted_again() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = put(&store, 0..10)?;
    store.rotate()?;
    let (_, info) = store.index().packs().remove(0);
    let sector = Some((info.name.key(), 0..4096));
    fixture.backend.faults().unreadable = sector.clone();
    assert!(ids.iter().any(|id| store.get(Kind::Data, id).is_err()));
    let (store, _) = fixture.crash(store)?;
    fixture.backend.faults().unreadable = None;
    let packs = fixture.backend.packs().len();
    // Reading some of it, and a start, prove nothing.
    check(&store, 3..6)?;
    let (store, _) = fixture.crash(store)?;
    let is_doubtful = |store: &ChunkStore| {
        let number = store.index().number(&info.name).expect("it is there");
        store.index().is_doubtful(number)
    };
    assert!(is_doubtful(&store));
    fixture.backend.faults().unreadable = sector;
    store.verify(&|_, _| (), &mut |_| ())?;
    assert!(is_doubtful(&store));
    fixture.backend.faults().unreadable = None;
    store.verify(&|_, _| (), &mut |finding| panic!("{finding}"))?;
    assert!(!is_doubtful(&store));
    let (store, _) = fixture.crash(store)?;
    assert!(!is_doubtful(&store));
    put(&store, 0..10)?;
    assert_eq!(fixture.backend.packs().len(), packs);
    Ok(())
}

/// A doubt is taken back by who has read all of the pack, and not what it was
/// when that began.
#[test]
fn what_came_after_a_verify_began_is_not_trusted_for_it() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..10)?;
    let (number, info) = store.index().packs().remove(0);
    let once = std::cell::Cell::new(true);
    let grows = |_, _| {
        if once.replace(false) {
            let ids = put(&store, 10..20).expect("they are put");
            let directory = store.index().directory(number).expect("it is there");
            let entry = directory.find(&ids[9]).expect("it is there");
            let bad = entry.offset()..entry.end();
            fixture.backend.faults().unreadable = Some((info.name.key(), bad));
            assert!(store.get(Kind::Data, &ids[9]).is_err());
        }
    };
    store.verify(&grows, &mut |finding| panic!("{finding}"))?;
    assert!(store.index().is_doubtful(number));
    put(&store, 10..20)?;
    check(&store, 0..20)
}

/// Whoever finds that a record is not what it was, a compaction for one, says
/// so to whoever puts its bytes again.
#[test]
fn what_a_sweep_cannot_read_is_stored_again() -> Result<()> {
    for is_flipped in [true, false] {
        let mut fixture = Fixture::new();
        let (store, _) = fixture.open()?;
        let ids = put(&store, 0..10)?;
        store.rotate()?;
        let (number, info) = store.index().packs().remove(0);
        let entry = *(store.index().directory(number)?.find(&ids[5])).expect("it is there");
        let key = info.name.key();
        if is_flipped {
            let at = entry.offset() as usize + 500;
            fixture.backend.inner.flip(&key, at);
        } else {
            fixture.backend.faults().unreadable = Some((key, entry.offset()..entry.end()));
        }
        // Mostly dead, so what is live is to be copied.
        let is_live = |_, id: &ChunkId| *id == ids[5];
        let swept = store.sweep_begin()?.finish(&is_live, false, &|| true);
        assert!(swept.is_err());
        put(&store, 5..6)?;
        check(&store, 5..6)?;
    }
    Ok(())
}

/// The same where a record's header in the pack that is being written is
/// gone, and where the mark has to outlive sled: nothing of sled's is left,
/// or it was given up in that run.
#[test]
fn what_is_no_record_any_more_is_stored_again() -> Result<()> {
    for (restarts, without_sled) in [(false, false), (true, false), (true, true)] {
        let mut fixture = Fixture::new();
        let (mut store, _) = fixture.open()?;
        let ids = put(&store, 0..10)?;
        let (number, info) = store.index().packs().remove(0);
        let entry = *(store.index().directory(number)?.find(&ids[5])).expect("it is there");
        let at = entry.offset() as usize;
        if restarts {
            // Its directory stays as it is.
            store.rotate()?;
        }
        (at..at + 88).for_each(|at| fixture.backend.inner.flip(&info.name.key(), at));
        assert!(store.get(Kind::Data, &ids[5]).is_err());
        if restarts {
            store.close()?;
            (store, _) = fixture.crash(store)?;
        }
        if without_sled {
            drop(store);
            fixture.delete_index();
            (store, _) = fixture.open()?;
        }
        put(&store, 5..6)?;
        check(&store, 5..6)?;
    }
    Ok(())
}

/// A file that says which packs are unsound and cannot be understood makes
/// every pack doubtful, until it was verified.
#[test]
fn without_knowing_which_packs_are_unsound_none_is_relied_on() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..10)?;
    store.close()?;
    std::fs::write(fixture.dir.path().join("unsound"), "nonsense").expect("written");
    let (store, _) = fixture.crash(store)?;
    let count = || fixture.backend.packs().len();
    let before = count();
    put(&store, 0..10)?;
    assert_eq!(count(), before + 1);
    store.verify(&|_, _| (), &mut |finding| panic!("{finding}"))?;
    put(&store, 0..10)?;
    assert_eq!(count(), before + 1);
    assert!(!fixture.dir.path().join("unsound").exists());
    Ok(())
}

/// A chunk that cannot be read is stored again when its bytes are written
/// again, also after a restart: it is no dedupe hit.
#[test]
fn what_cannot_be_read_is_stored_again() -> Result<()> {
    for (closed, is_flipped, restarts) in [
        (true, false, false),
        (true, true, false),
        (false, false, false),
        (false, true, false),
        (true, true, true),
        (true, false, true),
        (false, false, true),
    ] {
        let what = format!("closed {closed}, flipped {is_flipped}, restarts {restarts}");
        let mut fixture = Fixture::new();
        let (mut store, _) = fixture.open()?;
        let ids = put(&store, 0..10)?;
        if closed {
            store.rotate()?;
        }
        let (number, info) = store.index().packs().remove(0);
        let directory = store.index().directory(number)?;
        let entry = *directory.find(&ids[5]).expect("it is there");
        let key = info.name.key();
        if is_flipped {
            fixture
                .backend
                .inner
                .flip(&key, entry.offset() as usize + 500);
        } else {
            let bad = entry.offset()..entry.end();
            fixture.backend.faults().unreadable = Some((key, bad));
        }
        assert!(store.get(Kind::Data, &ids[5]).is_err(), "{what}");
        // Its directory is as it was, and says nothing of this.
        assert!(store.index().reload(number).is_ok() || !closed, "{what}");
        store.index().rebuild_all(&|_, _| ());
        if restarts {
            store.close()?;
            (store, _) = fixture.crash(store)?;
        }
        assert_eq!(put(&store, 0..10)?, ids);
        check(&store, 0..10)?;
        store.rotate()?;
        check(&store, 0..10)?;
    }
    Ok(())
}

#[test]
fn a_pack_shorter_than_what_was_synced_is_damage() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..5)?;
    let key = fixture.backend.packs().remove(0);
    fixture
        .backend
        .tamper(&key, |bytes| bytes.truncate(bytes.len() - 1000))?;
    let (store, opened) = fixture.crash(store)?;
    assert!(
        opened.findings.iter().any(Finding::is_damage),
        "{:?}",
        opened.findings
    );
    check(&store, 0..4)?;
    // Nothing is deleted then (invariant 8).
    let run = store.sweep_begin()?;
    assert!(run.finish(&|_, _| false, false, &|| true).is_err());
    assert_eq!(fixture.backend.packs(), [key]);
    Ok(())
}

#[test]
fn a_flipped_bit_is_never_handed_out() -> Result<()> {
    for bit_at in [
        0,
        4,
        5,
        8,
        13,
        17,
        21,
        45,
        50,
        81,
        85,
        90,
        5000,
        88 + CHUNK - 1,
    ] {
        let mut fixture = Fixture::new();
        let (store, _) = fixture.open()?;
        let ids = put(&store, 0..3)?;
        store.close()?;
        let (_, entry) = store
            .index()
            .resolve_through_db(&ids[1])
            .unwrap_or_else(|| {
                let (number, _) = store.index().packs()[0];
                let directory = store.index().directory(number).expect("read");
                let entry = *directory.find(&ids[1]).expect("there");
                (PackName::random(0), entry)
            });
        let key = fixture.backend.packs().remove(0);
        fixture
            .backend
            .tamper(&key, |bytes| bytes[entry.offset() as usize + bit_at] ^= 4)?;
        // With the index, and with one that is rebuilt from the packs.
        let (store, _) = fixture.crash(store)?;
        assert!(
            matches!(store.get(Kind::Data, &ids[1]), Err(Error::Damaged { .. })),
            "{bit_at}"
        );
        check(&store, 0..1)?;
        check(&store, 2..3)?;
        let mut findings = Vec::new();
        store.verify(&|_, _| (), &mut |finding| findings.push(finding))?;
        assert!(
            findings.iter().any(Finding::is_damage),
            "{bit_at}: {findings:?}"
        );
        store.close()?;
        drop(store);
        fixture.delete_index();
        let (store, _) = fixture.open()?;
        assert!(
            matches!(store.get(Kind::Data, &ids[1]), Err(Error::Damaged { .. })),
            "{bit_at}"
        );
        check(&store, 2..3)?;
    }
    Ok(())
}

#[test]
fn another_copy_is_read_where_there_is_one() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..3)?;
    store.close()?;
    let first = fixture.backend.packs().remove(0);
    let other = Fixture::new();
    let (store_two, _) =
        super::fixture::open_at(&other.index_dir(), 9, Arc::clone(&other.backend) as _)?;
    put(&store_two, 1..2)?;
    store_two.close()?;
    let second = other.backend.packs().remove(0);
    let (bytes, _) = other.backend.inner.get(&second)?.expect("there");
    fixture.backend.inner.put_new(&second, &bytes)?;
    fixture
        .backend
        .tamper(&first, |bytes| bytes[2 * CHUNK] ^= 1)?;
    let (store, _) = fixture.crash(store)?;
    check(&store, 0..3)?;
    fixture.backend.tamper(&second, |bytes| bytes[CHUNK] ^= 1)?;
    let id = store.id(Kind::Data, &noise(1));
    assert!(matches!(
        store.get(Kind::Data, &id),
        Err(Error::Damaged { .. })
    ));
    check(&store, 2..3)
}

#[test]
fn a_missing_pack_is_missing_chunks_and_no_dedupe_hit() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = put(&store, 0..3)?;
    store.close()?;
    fixture.backend.inner.delete(&fixture.backend.packs()[0])?;
    let (store, opened) = fixture.crash(store)?;
    assert_eq!(opened.chunks, 0);
    assert!(matches!(
        store.get(Kind::Data, &ids[0]),
        Err(Error::ChunkMissing { .. })
    ));
    assert!(!store.begin().contains(Kind::Data, &ids[0]));
    // One that goes while the store is open.
    put(&store, 0..3)?;
    store.rotate()?;
    fixture.backend.inner.delete(&fixture.backend.packs()[0])?;
    assert!(matches!(
        store.get(Kind::Data, &ids[0]),
        Err(Error::ChunkMissing { .. })
    ));
    put(&store, 0..3)?;
    check(&store, 0..3)?;
    let mut findings = Vec::new();
    store.verify(&|_, _| (), &mut |finding| findings.push(finding))?;
    assert!(
        matches!(findings[..], [Finding::PackMissing { .. }]),
        "{findings:?}"
    );
    Ok(())
}

#[test]
fn a_full_store_refuses_goes_on_reading_and_recovers() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..3)?;
    fixture.backend.faults().space = Some(20_000);
    let error = put(&store, 3..6).expect_err("there is no space");
    assert!(error.is_no_space());
    check(&store, 0..4)?;
    // Closing needs space for the directory: without it is as after a crash.
    fixture.backend.faults().space = Some(10);
    store.rotate()?;
    assert!(
        put(&store, 5..6)
            .expect_err("there is no space")
            .is_no_space()
    );
    assert_eq!(fixture.backend.packs().len(), 1);
    check(&store, 0..4)?;
    fixture.backend.faults().space = None;
    put(&store, 3..6)?;
    let (store, opened) = fixture.crash(store)?;
    assert_eq!(opened.findings, []);
    check(&store, 0..6)
}

#[test]
fn a_failed_sync_ends_writing_but_not_reading() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..3)?;
    store.rotate()?;
    let batch = store.begin();
    batch.put(Kind::Data, &store.id(Kind::Data, &noise(3)), &noise(3))?;
    fixture.backend.faults().syncs_fail = true;
    assert!(matches!(batch.sync(), Err(Error::Io { .. })));
    fixture.backend.faults().syncs_fail = false;
    // Invariant 6: never retried into success.
    let poisoned = |result: Result<()>| matches!(result, Err(Error::Poisoned { .. }));
    assert!(poisoned(batch.sync()));
    assert!(poisoned(store.begin().sync()));
    assert!(poisoned(put(&store, 4..5).map(drop)));
    assert!(poisoned(put(&store, 0..1).map(drop)));
    assert!(poisoned(store.rotate()));
    assert!(poisoned(store.sweep_begin().map(drop)));
    check(&store, 0..3)?;
    assert!(poisoned(store.close()));
    drop(batch);
    let (store, _) = fixture.crash(store)?;
    check(&store, 0..3)?;
    put(&store, 4..5)?;
    check(&store, 4..5)
}

#[test]
fn an_open_pack_serves_batches_before_their_sync_and_many_threads_at_once() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4u64)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || -> Result<()> {
                    for round in 0..20 {
                        let start = (thread * 7 + round * 5) % 90;
                        put(store, start..start + 10)?;
                        check(store, start..start + 10)?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().expect("no panic"))
    })?;
    let (store, opened) = fixture.crash(store)?;
    assert_eq!(opened.findings, []);
    check(&store, 0..90)
}

#[test]
fn a_closed_store_takes_nothing_more() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..3)?;
    store.close()?;
    store.close()?;
    assert!(matches!(put(&store, 3..4), Err(Error::Closing)));
    check(&store, 0..3)?;
    // Closed packs are trusted as they are: opening reads no payload.
    fixture.backend.faults().reads.clear();
    let (_store, opened) = fixture.crash(store)?;
    assert_eq!(opened.rebuilt, 0);
    assert_eq!(fixture.backend.faults().reads, []);
    Ok(())
}

#[test]
fn too_long_a_chunk_is_refused() -> Result<()> {
    let (store, _) = Fixture::new().open()?;
    let plain = vec![0; CHUNK + 1];
    let id = store.id(Kind::Data, &plain);
    assert!(matches!(
        store.begin().put(Kind::Data, &id, &plain),
        Err(Error::InvalidArgument { .. })
    ));
    put(&store, 0..1).map(drop)
}
