use super::*;
use crate::backend::Backend;
use crate::chunk::store::fixture::{CHUNK, Fixture, PACK_BYTES, check, noise, put};

fn sweep(store: &Arc<ChunkStore>, live: &[ChunkId]) -> Result<SweepReport> {
    let live: HashSet<&ChunkId> = live.iter().collect();
    store
        .sweep_begin()?
        .finish(&|_, id| live.contains(id), false, &|| true)
}

/// Chunks 0 to 59 in packs of their own, and 60 to 119 in others; the ids of
/// the latter.
fn two_sets(store: &Arc<ChunkStore>) -> Result<Vec<ChunkId>> {
    put(store, 0..60)?;
    store.rotate()?;
    let ids = put(store, 60..120)?;
    store.rotate()?;
    Ok(ids)
}

#[test]
fn dead_packs_go_and_live_ones_stay_without_a_payload_being_read() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    // Two full packs and a bit.
    let dead = put(&store, 0..60)?;
    store.rotate()?;
    let live = put(&store, 60..120)?;
    store.rotate()?;
    fixture.backend.faults().reads.clear();
    let report = sweep(&store, &live)?;
    assert_eq!((report.packs_deleted, report.packs_compacted), (1, 0));
    assert!(report.bytes_freed > 60 * CHUNK as u64);
    let payload = fixture
        .backend
        .faults()
        .reads
        .iter()
        .any(|(_, range)| range.end - range.start > 8192);
    assert!(!payload);
    check(&store, 60..120)?;
    for id in dead {
        assert!(!store.begin().contains(Kind::Data, &id));
        assert!(matches!(
            store.get(Kind::Data, &id),
            Err(Error::ChunkMissing { .. })
        ));
    }
    let (store, opened) = fixture.crash(store)?;
    assert_eq!((opened.packs, opened.findings.len()), (1, 0));
    check(&store, 60..120)
}

#[test]
fn a_mostly_dead_pack_is_compacted_and_its_live_chunks_survive_a_crash() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = put(&store, 0..60)?;
    let report = sweep(&store, &ids[..20])?;
    assert_eq!((report.packs_deleted, report.packs_compacted), (0, 1));
    assert!(!fixture.backend.holds(&noise(30)[..64]));
    check(&store, 0..20)?;
    for id in &ids[..20] {
        assert!(store.index().resolve_through_db(id).is_some());
    }
    let (store, opened) = fixture.crash(store)?;
    assert_eq!((opened.chunks, opened.findings.len()), (20, 0));
    check(&store, 0..20)
}

/// Invariant 8: what was copied is read back from the disk before what it was
/// copied from goes.
#[test]
fn a_copy_that_reached_the_disk_wrong_costs_nothing() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = put(&store, 0..60)?;
    store.rotate()?;
    let before = fixture.backend.packs();
    // In the second record's payload.
    fixture.backend.faults().flips_when_settled = Some(CHUNK + 1000);
    assert!(sweep(&store, &ids[..20]).is_err());
    fixture.backend.faults().flips_when_settled = None;
    assert!(
        before
            .iter()
            .all(|key| fixture.backend.packs().contains(key))
    );
    check(&store, 0..20)
}

#[test]
fn a_mostly_live_pack_stays() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = put(&store, 0..60)?;
    let report = sweep(&store, &ids[..40])?;
    assert_eq!((report.packs_deleted, report.packs_compacted), (0, 0));
    assert!(report.dead_bytes > 20 * CHUNK as u64);
    assert!(fixture.backend.holds(&noise(50)[..64]));
    check(&store, 0..60)
}

#[test]
fn dead_payload_leaves_small_packs_and_small_packs_are_joined() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let mut ids = put(&store, 0..10)?;
    assert!(10 * (CHUNK as u64) < PACK_BYTES / 4);
    let dead = ids.remove(3);
    let report = sweep(&store, &ids)?;
    assert_eq!(report.packs_compacted, 1);
    assert!(!fixture.backend.holds(&noise(3)[..64]));
    assert!(matches!(
        store.get(Kind::Data, &dead),
        Err(Error::ChunkMissing { .. })
    ));
    // Nothing is dead, but there are two.
    store.rotate()?;
    ids.extend(put(&store, 20..22)?);
    let report = sweep(&store, &ids)?;
    assert_eq!((report.packs_before, report.packs_compacted), (2, 2));
    // And once joined it is left alone.
    let report = sweep(&store, &ids)?;
    assert_eq!((report.packs_before, report.packs_compacted), (1, 0));
    check(&store, 0..3)?;
    check(&store, 20..22)
}

#[test]
fn a_pin_alive_at_any_time_of_a_run_protects_its_pack() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = put(&store, 0..60)?;
    store.rotate()?;
    let nothing = |_: Kind, _: &ChunkId| false;

    // Alive when it began, gone before it finished.
    let batch = store.begin();
    assert!(batch.contains(Kind::Data, &ids[0]));
    let run = store.sweep_begin()?;
    drop(batch);
    let report = run.finish(&nothing, false, &|| true)?;
    assert_eq!((report.packs_deleted, report.packs_protected), (0, 1));

    // Came and went between.
    let run = store.sweep_begin()?;
    assert!(store.begin().contains(Kind::Data, &ids[0]));
    assert_eq!(run.finish(&nothing, false, &|| true)?.packs_deleted, 0);

    // Comes while the packs are judged.
    let run = store.sweep_begin()?;
    let late = store.begin();
    let judging = |_: Kind, id: &ChunkId| {
        assert!(late.contains(Kind::Data, id));
        false
    };
    assert_eq!(run.finish(&judging, false, &|| true)?.packs_deleted, 0);
    drop(late);
    check(&store, 0..60)?;

    // What a batch writes during a run is judged in a later one only.
    let run = store.sweep_begin()?;
    put(&store, 100..103)?;
    store.rotate()?;
    assert_eq!(run.finish(&nothing, false, &|| true)?.packs_deleted, 1);
    check(&store, 100..103)?;

    // And now nobody relies on anything.
    assert_eq!(sweep(&store, &[])?.packs_deleted, 1);
    assert_eq!(fixture.backend.packs(), [""; 0]);
    Ok(())
}

/// Invariant 7: without room for the copies nothing is copied, and packs in
/// which nothing is live go all the same.
#[test]
fn without_room_for_copies_only_dead_packs_go() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = two_sets(&store)?;
    let live: HashSet<&ChunkId> = ids[..20].iter().collect();
    let is_live = |_: Kind, id: &ChunkId| live.contains(id);
    let run = store.sweep_begin()?.asking_for_room(|_| Ok(false));
    let report = run.finish(&is_live, false, &|| true)?;
    assert_eq!((report.packs_deleted, report.packs_compacted), (1, 0));
    assert!(report.no_space);
    assert_eq!(fixture.backend.packs().len(), 1);
    let run = store.sweep_begin()?.asking_for_room(|_| Ok(true));
    let report = run.finish(&is_live, false, &|| true)?;
    assert_eq!(report.packs_compacted, 1);
    check(&store, 60..80)
}

#[test]
fn one_sweep_at_a_time() -> Result<()> {
    let (store, _) = Fixture::new().open()?;
    let run = store.sweep_begin()?;
    assert!(matches!(store.sweep_begin(), Err(Error::Busy { .. })));
    drop(run);
    store.sweep_begin().map(drop)
}

#[test]
fn a_dry_run_changes_nothing_and_says_what_would_be() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = put(&store, 0..150)?;
    store.rotate()?;
    let before = fixture.backend.packs();
    let live: HashSet<ChunkId> = ids[..70].iter().copied().collect();
    let is_live = |_: Kind, id: &ChunkId| live.contains(id);
    let dry = store.sweep_begin()?.finish(&is_live, true, &|| true)?;
    assert_eq!(fixture.backend.packs(), before);
    let real = store.sweep_begin()?.finish(&is_live, false, &|| true)?;
    assert_eq!(dry.packs_deleted, real.packs_deleted);
    assert_eq!(dry.packs_compacted, real.packs_compacted);
    assert_eq!(dry.bytes_freed, real.bytes_freed);
    check(&store, 0..70)
}

#[test]
fn anything_wrong_ends_it_with_nothing_deleted() -> Result<()> {
    type Harm = fn(&Fixture, &str) -> Result<()>;
    let harms: [(&str, Harm); 4] = [
        ("missing", |fixture, key| fixture.backend.inner.delete(key)),
        ("shorter", |fixture, key| {
            fixture
                .backend
                .tamper(key, |bytes| bytes.truncate(bytes.len() - 64))
        }),
        ("another record", |fixture, key| {
            fixture.backend.tamper(key, |bytes| bytes[64 + 50] ^= 1)
        }),
        ("listing fails", |fixture, _| {
            fixture.backend.faults().list_fails = true;
            Ok(())
        }),
    ];
    for (what, harm) in harms {
        let mut fixture = Fixture::new();
        let (store, _) = fixture.open()?;
        put(&store, 0..60)?;
        store.rotate()?;
        let partly = put(&store, 60..70)?;
        store.rotate()?;
        let dead = fixture.backend.packs();
        let run = store.sweep_begin()?;
        let second = store.index().packs()[1].1.name.key();
        harm(&fixture, &second)?;
        let after = fixture.backend.packs();
        let live = |_: Kind, id: &ChunkId| partly[..2].contains(id);
        assert!(run.finish(&live, false, &|| true).is_err(), "{what}");
        if what == "another record" {
            // Its payload is read only when the dead pack is gone.
            assert!(fixture.backend.packs().contains(&second));
        } else {
            assert_eq!(fixture.backend.packs(), after, "{what}");
            assert!(dead.len() >= after.len());
        }
    }
    Ok(())
}

#[test]
fn without_space_for_copies_what_is_dead_goes_all_the_same() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = two_sets(&store)?;
    fixture.backend.faults().space = Some(CHUNK as u64 * 3);
    let report = sweep(&store, &ids[..10])?;
    assert!(report.no_space);
    assert_eq!((report.packs_deleted, report.packs_compacted), (1, 0));
    check(&store, 60..120)?;
    fixture.backend.faults().space = None;
    let report = sweep(&store, &ids[..10])?;
    assert!(report.packs_compacted >= 1);
    assert_eq!(store.stats().chunks, 10);
    check(&store, 60..70)
}

#[test]
fn a_failed_sync_of_the_copies_deletes_nothing() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = put(&store, 0..10)?;
    store.rotate()?;
    fixture.backend.faults().syncs_fail = true;
    assert!(sweep(&store, &ids[..5]).is_err());
    assert!(sweep(&store, &ids[..5]).is_err());
    fixture.backend.faults().syncs_fail = false;
    check(&store, 0..10)?;
    let (store, _) = fixture.crash(store)?;
    check(&store, 0..10)
}

#[test]
fn readers_and_dedupe_hits_go_on_while_packs_are_compacted() -> Result<()> {
    let mut fixture = Fixture::new();
    let (store, _) = fixture.open()?;
    let ids = put(&store, 0..300)?;
    let live: HashSet<ChunkId> = ids.iter().step_by(3).copied().collect();
    let done = std::sync::atomic::AtomicBool::new(false);
    use std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> Result<()> {
            let mut rounds = 0;
            while !done.load(Relaxed) || rounds < 2 {
                for number in (0..300).step_by(3) {
                    check(&store, number..number + 1)?;
                }
                rounds += 1;
            }
            Ok(())
        });
        let result = (0..3).try_for_each(|_| {
            let run = store.sweep_begin()?;
            run.finish(&|_, id| live.contains(id), false, &|| true)
                .map(drop)
        });
        done.store(true, Relaxed);
        reader.join().expect("no panic")?;
        result
    })?;
    assert_eq!(store.stats().chunks, 100);
    Ok(())
}
