use super::*;
use crate::chunk::store::fixture::{CHUNK, Fixture, check, noise, put};
use crate::chunk::{ChunkId, Kind};
use crate::error::Error;
use std::cell::Cell;

/// Chunks in a pack of these tests.
const COUNT: u64 = 60;

/// Pieces of noise and of what came before, different for each number: a
/// denser level makes it some percent shorter.
fn text(number: u64) -> Vec<u8> {
    let mut bytes: Vec<u8> = Vec::new();
    for choice in noise(number).as_chunks::<8>().0.iter().cycle() {
        let at = usize::from(u16::from_le_bytes([choice[0], choice[1]]));
        if bytes.is_empty() || choice[2] % 10 < 3 {
            bytes.extend_from_slice(&choice[4..]);
        } else {
            let piece = at % bytes.len()..bytes.len();
            let len = 5 + usize::from(choice[3]) % 35;
            bytes.extend_from_within(piece.start..piece.end.min(piece.start + len));
        }
        if bytes.len() >= CHUNK {
            break;
        }
    }
    bytes.truncate(CHUNK);
    bytes
}

fn id(store: &ChunkStore, number: u64) -> ChunkId {
    store.id(Kind::Data, &text(number))
}

/// A closed pack of text.
fn put_text(store: &Arc<ChunkStore>) -> Result<()> {
    let batch = store.begin();
    for number in 0..COUNT {
        batch.put(Kind::Data, &id(store, number), &text(number))?;
    }
    batch.sync()?;
    store.rotate()
}

fn check_text(store: &ChunkStore) -> Result<()> {
    for number in 0..COUNT {
        let found = store.get(Kind::Data, &id(store, number))?;
        assert!(found[..] == text(number), "chunk {number}");
    }
    Ok(())
}

/// Recompresses every closed pack; answers also how many were settled.
fn recompress(
    store: &Arc<ChunkStore>,
    keep_going: &dyn Fn() -> bool,
) -> (Result<SweepReport>, usize) {
    let packs = store.index.packs().into_iter();
    let closed: Vec<PackNumber> = packs
        .filter(|(_, info)| info.closed)
        .map(|(number, _)| number)
        .collect();
    let mut settled = 0;
    let report = store.recompress(&closed, keep_going, &mut |_| settled += 1);
    (report, settled)
}

/// Invariants 4 and 8: what a chunk holds stays, also after a crash, and it
/// takes less; what was recompressed once is not again.
#[test]
fn the_same_chunks_take_less() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put_text(&store)?;
    let before = store.stats();
    let (report, settled) = recompress(&store, &|| true);
    let report = report?;
    assert_eq!((report.packs_compacted, settled), (1, 0));
    let after = store.stats();
    assert_eq!(after.chunks, COUNT);
    assert_eq!(after.plain_bytes, before.plain_bytes);
    assert!(
        after.stored_bytes * 100 < before.stored_bytes * 98,
        "{before:?} {after:?}"
    );
    assert!(report.bytes_freed > 0);
    check_text(&store)?;
    store.rotate()?;
    let (store, opened) = fixture.crash(store)?;
    assert_eq!((opened.chunks, opened.findings.len()), (COUNT, 0));
    check_text(&store)?;
    let (report, settled) = recompress(&store, &|| true);
    assert_eq!((report?.packs_compacted, settled), (0, 1));
    check_text(&store)
}

/// "Where that gains more than 2 %": nothing is written for less.
#[test]
fn a_pack_that_gains_nothing_stays_and_is_told_of() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put(&store, 0..COUNT)?;
    store.rotate()?;
    // What is open is not disturbed either.
    put(&store, 100..103)?;
    let before = fixture.backend.packs();
    let (report, settled) = recompress(&store, &|| true);
    assert_eq!((report?.packs_compacted, settled), (0, 1));
    assert_eq!(fixture.backend.packs(), before);
    assert!(store.open_pack().is_some());
    check(&store, 0..COUNT)
}

/// "It stops as soon as": wherever it is told to stop, it does so without
/// another record, nothing is lost, and the next one ends with each chunk
/// there once.
#[test]
fn it_can_be_stopped_at_any_record() -> Result<()> {
    for stop_at in (0..=2 * COUNT).step_by(7) {
        let mut fixture = Fixture::new();
        let (store, _) = fixture.open()?;
        put_text(&store)?;
        let asked = Cell::new(0);
        let keep_going = || {
            asked.set(asked.get() + 1);
            asked.get() <= stop_at
        };
        let report = recompress(&store, &keep_going).0?;
        assert!(report.interrupted, "at {stop_at}");
        assert_eq!(asked.get(), stop_at + 1);
        assert_eq!(report.packs_compacted, 0);
        check_text(&store)?;
        let report = recompress(&store, &|| true).0?;
        assert_eq!(report.packs_compacted, 1, "at {stop_at}");
        check_text(&store)?;
        assert_eq!(store.stats().chunks, COUNT, "at {stop_at}");
        let (store, opened) = fixture.crash(store)?;
        assert_eq!((opened.chunks, opened.findings.len()), (COUNT, 0));
        check_text(&store)?;
    }
    Ok(())
}

/// Invariant 8: any finding ends it with nothing deleted.
#[test]
fn damage_ends_it_with_nothing_deleted() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put_text(&store)?;
    let packs = fixture.backend.packs();
    let directory = store.index.directory(store.index.packs()[0].0)?;
    // One that no sample has.
    let victim = directory.by_offset()[1];
    fixture.backend.tamper(&packs[0], |bytes| {
        bytes[victim.offset() as usize + 200] ^= 1;
    })?;
    let error = recompress(&store, &|| true).0.expect_err("it is damaged");
    assert!(matches!(error, Error::Damaged { .. }), "{error}");
    assert!(fixture.backend.packs().contains(&packs[0]));
    let sound = (0..COUNT).filter(|number| id(&store, *number) != victim.id);
    for number in sound {
        store.get(Kind::Data, &id(&store, number))?;
    }
    Ok(())
}

/// Invariant 7: without room it stops, and goes on when there is some.
#[test]
fn without_room_it_stops_and_nothing_is_lost() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put_text(&store)?;
    fixture.backend.faults().space = Some(CHUNK as u64 * 3);
    let report = recompress(&store, &|| true).0?;
    assert!(report.no_space);
    assert_eq!(report.packs_compacted, 0);
    check_text(&store)?;
    fixture.backend.faults().space = None;
    assert_eq!(recompress(&store, &|| true).0?.packs_compacted, 1);
    assert_eq!(store.stats().chunks, COUNT);
    check_text(&store)
}

/// Invariants 5 and 8: a dedupe hit during the run keeps its pack.
#[test]
fn a_dedupe_hit_keeps_its_pack() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    put_text(&store)?;
    let packs = fixture.backend.packs();
    let late = store.begin();
    let asked = Cell::new(0);
    let keep_going = || {
        asked.set(asked.get() + 1);
        // Some records have been copied, this one has not.
        asked.get() != 10 || late.contains(Kind::Data, &id(&store, 40))
    };
    let report = recompress(&store, &keep_going).0?;
    assert_eq!((report.packs_compacted, report.packs_protected), (0, 1));
    assert!(fixture.backend.packs().contains(&packs[0]));
    drop(late);
    check_text(&store)
}
