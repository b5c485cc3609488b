//! The map against a plain ordered map, and its costs by counting.

use super::*;
use crate::error::Error;
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

const CHUNK: u32 = 65536;

/// Pages in memory, with what was asked of them counted.
#[derive(Default)]
struct Store {
    pages: Mutex<HashMap<ChunkId, Vec<u8>>>,
    puts: Mutex<Vec<u8>>,
    reads: Mutex<usize>,
}

impl PageStore for Store {
    fn page(&self, id: &ChunkId) -> Result<Arc<Page>> {
        *self.reads.lock() += 1;
        match self.pages.lock().get(id) {
            Some(bytes) => Page::decode(bytes).map(Arc::new),
            None => Err(Error::ChunkMissing { id: String::new() }),
        }
    }

    fn put_page(&self, encoded: &[u8]) -> Result<ChunkId> {
        let id = ChunkId(*blake3::hash(encoded).as_bytes());
        self.puts.lock().push(encoded[1]);
        self.pages.lock().insert(id, encoded.to_vec());
        Ok(id)
    }
}

impl Store {
    /// What `f` made, and how many pages it put and read.
    fn counted<T>(&self, f: impl FnOnce() -> Result<T>) -> (T, usize, usize) {
        self.puts.lock().clear();
        *self.reads.lock() = 0;
        let made = f().unwrap();
        (made, self.puts.lock().len(), *self.reads.lock())
    }
}

fn id(n: u64) -> ChunkId {
    ChunkId(*blake3::hash(&n.to_le_bytes()).as_bytes())
}

fn size(chunks: u64) -> u64 {
    chunks * u64::from(CHUNK)
}

fn sets(chunks: Range<u64>) -> Vec<(Range<u64>, Op<'static>)> {
    chunks.map(|at| (at..at + 1, Op::Set(id(at)))).collect()
}

/// A disk of `chunks` chunks that has the first `full` of them.
fn filled(store: &Store, chunks: u64, full: u64) -> Root {
    let empty = Root::empty(CHUNK, size(chunks));
    edit(store, &empty, size(chunks), &sets(0..full)).unwrap()
}

#[test]
fn one_changed_chunk_puts_one_page_a_level_and_the_same_chunk_none() {
    let store = Store::default();
    let chunks = 1 << 20;
    let root = filled(&store, chunks, 40_000);
    let set = |n| [(777..778, Op::Set(id(n)))];
    let (other, puts, _) = store.counted(|| edit(&store, &root, root.size, &set(1)));
    assert_eq!((root.height, puts), (3, 3));
    assert_ne!(other, root);
    let (same, puts, _) = store.counted(|| edit(&store, &root, root.size, &set(777)));
    assert_eq!((&same, puts), (&root, 0));
    let (back, _, _) = store.counted(|| edit(&store, &other, root.size, &set(777)));
    assert_eq!(back.encode(), root.encode());
    let (seen, _, reads) = store.counted(|| {
        let mut seen = vec![];
        diff(&store, &root, &other, &mut |at, a, b| {
            seen.push((at, a.copied(), b.copied()));
        })?;
        Ok(seen)
    });
    assert_eq!(seen, [(777, Some(id(777)), Some(id(1)))]);
    assert_eq!(reads, 6, "equal subtrees are not read");
}

#[test]
fn clearing_a_billion_chunks_puts_only_the_pages_on_the_edges() {
    let store = Store::default();
    let chunks = (1 << 30) + 1000;
    let empty = Root::empty(CHUNK, size(chunks));
    let far: Vec<_> = (0..1000)
        .map(|n| n * 1_073_741)
        .chain((1 << 30) + 500..(1 << 30) + 510)
        .map(|at| (at..at + 1, Op::Set(id(at))))
        .collect();
    let root = edit(&store, &empty, size(chunks), &far).unwrap();
    assert_eq!(root.count, 1010);
    let clear = [(3..(1 << 30) + 503, Op::Clear)];
    let (left, puts, reads) = store.counted(|| edit(&store, &root, root.size, &clear));
    assert_eq!(left.count, 1 + 7);
    assert!(
        puts <= 2 * 5 && reads <= 2 * 5,
        "{puts} puts, {reads} reads"
    );
    // The same by way of a smaller disk.
    let (small, puts, reads) = store.counted(|| edit(&store, &root, size(3), &[]));
    assert_eq!((small.count, small.height), (1, 1));
    assert!(puts == 0 && reads <= 6, "{puts} puts, {reads} reads");
}

#[test]
fn an_aligned_copy_of_a_million_chunks_takes_whole_subtrees() {
    let store = Store::default();
    let from = filled(&store, 1 << 20, 300_000);
    let base = filled(&store, 1 << 30, 10);
    let at = 128u64.pow(3) * 5;
    let copy = [(
        at..at + (1 << 20),
        Op::Copy {
            from: &from,
            start: 0,
        },
    )];
    let (root, puts, reads) = store.counted(|| edit(&store, &base, base.size, &copy));
    assert_eq!(root.count, 300_010);
    assert!(puts <= 5, "{puts} puts");
    assert!(reads <= 10, "{reads} reads");
    assert_eq!(get(&store, &root, at + 299_999).unwrap(), Some(id(299_999)));
    assert_eq!(get(&store, &root, at + 300_000).unwrap(), None);
    let (n, _, reads) = store.counted(|| count(&store, &root, 9..at + 1001));
    assert_eq!((n, reads <= 10), (1002, true));
}

#[test]
fn an_unaligned_copy_of_a_hole_reads_few_pages() {
    let store = Store::default();
    let from = filled(&store, 1 << 30, 1000);
    let base = Root::empty(CHUNK, size(1 << 30));
    let end = (1 << 30) - 1;
    let copy = [(
        0..end,
        Op::Copy {
            from: &from,
            start: 1,
        },
    )];
    let (root, puts, reads) = store.counted(|| edit(&store, &base, base.size, &copy));
    assert_eq!(root.count, 999);
    assert!(puts < 16 && reads < 100, "{puts} puts, {reads} reads");
}

#[test]
fn runs_pass_absent_and_full_subtrees_without_reading_them() {
    let store = Store::default();
    let root = filled(&store, 1 << 30, 20_000);
    let (run, _, reads) = store.counted(|| next_run(&store, &root, 5));
    assert_eq!((run.end, run.present), (20_000, true));
    assert!(reads <= 10, "{reads} reads");
    let (run, _, reads) = store.counted(|| next_run(&store, &root, 20_000));
    assert_eq!((run.end, run.present), (1 << 30, false));
    assert!(reads <= 5, "{reads} reads");
    let past = next_run(&store, &root, 1 << 30).unwrap();
    assert!(!past.present && past.end.checked_mul(CHUNK.into()).is_some());
}

#[test]
fn looking_up_in_memory_never_reads() {
    let store = Store::default();
    let root = filled(&store, 1 << 20, 300);
    let mut kept = HashMap::new();
    let top = root.top.unwrap();
    kept.insert(top, store.page(&top).unwrap());
    let known =
        |kept: &HashMap<_, Arc<Page>>, at| get_cached(&|id| kept.get(id).cloned(), &root, at);
    assert_eq!(known(&kept, 130), None);
    assert_eq!(known(&kept, 900_000), Some(None));
    walk(
        &store,
        &root,
        &mut |page, _| {
            kept.insert(*page, store.page(page).unwrap());
            true
        },
        &mut |_, _| {},
    )
    .unwrap();
    assert_eq!(known(&kept, 130), Some(Some(id(130))));
    let range = get_range_cached(&|id| kept.get(id).cloned(), &root, 298, 4);
    assert_eq!(range, Some(vec![Some(id(298)), Some(id(299)), None, None]));
}

#[test]
fn ops_out_of_order_or_past_the_end_are_refused() {
    let store = Store::default();
    let empty = Root::empty(CHUNK, size(100));
    let other = Root::empty(4096, size(100));
    for ops in [
        vec![(5..6, Op::Clear), (4..5, Op::Clear)],
        vec![(5..7, Op::Clear), (6..8, Op::Clear)],
        vec![(99..101, Op::Clear)],
        vec![(5..7, Op::Set(id(1)))],
        vec![(
            0..1,
            Op::Copy {
                from: &other,
                start: 0,
            },
        )],
        vec![(
            0..2,
            Op::Copy {
                from: &empty,
                start: u64::MAX,
            },
        )],
        vec![(Range { start: 6, end: 5 }, Op::Clear)],
    ] {
        let refused = edit(&store, &empty, empty.size, &ops);
        assert!(
            matches!(refused, Err(Error::InvalidArgument { .. })),
            "{ops:?}"
        );
    }
    let huge = edit(&store, &empty, u64::MAX, &[]);
    assert!(matches!(huge, Err(Error::TooLarge { .. })));
}

#[test]
fn a_page_that_contradicts_its_parent_is_damage_and_a_walk_can_go_on() {
    let store = Store::default();
    let root = filled(&store, 1000, 400);
    // One chunk fewer than the top page says of it.
    let mut leaves = vec![];
    let mut enter = |page: &ChunkId, level| {
        if level == 1 {
            leaves.push(*page);
        }
        true
    };
    walk(&store, &root, &mut enter, &mut |_, _| {}).unwrap();
    let mut slots = store.page(&leaves[1]).unwrap().slots();
    slots[9] = None;
    let fewer = Page::from_slots(1, &slots).unwrap().encode();
    store.pages.lock().insert(leaves[1], fewer);
    store.pages.lock().remove(&leaves[3]);

    assert!(matches!(
        get(&store, &root, 130),
        Err(Error::Damaged { .. })
    ));
    assert!(matches!(
        get(&store, &root, 390),
        Err(Error::ChunkMissing { .. })
    ));
    assert_eq!(get(&store, &root, 5).unwrap(), Some(id(5)));
    assert!(walk(&store, &root, &mut |_, _| true, &mut |_, _| {}).is_err());
    let (mut chunks, mut findings) = (vec![], vec![]);
    walk_findings(
        &store,
        &root,
        &mut |_, _| true,
        &mut |at, _| chunks.push(at),
        &mut |range, page, _| findings.push((range, *page)),
    );
    assert_eq!(chunks, (0..128).chain(256..384).collect::<Vec<_>>());
    assert_eq!(findings, [(128..256, leaves[1]), (384..512, leaves[3])]);

    // A chunk past the disk's end would be a second encoding of the disk.
    let shorter = Root {
        size: size(399),
        ..filled(&store, 1000, 400)
    };
    assert!(matches!(
        get(&store, &shorter, 390),
        Err(Error::Damaged { .. })
    ));
}

/// One step of a disk's history.
#[derive(Clone, Debug)]
struct Step {
    chunks: u64,
    ops: Vec<(u64, u64, Change)>,
}

#[derive(Clone, Debug)]
enum Change {
    Fill(u64),
    Clear,
    /// From which earlier state, and how far before (or, aligned, from how
    /// many pages on).
    Copy(usize, u64, bool),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let chunks = prop_oneof![
        0..3u64,
        1..300u64,
        16_000..17_000u64,
        2_090_000..2_110_000u64
    ];
    let gap = prop_oneof![0..3u64, 0..200u64, 0..20_000u64];
    let length = prop_oneof![0..3u64, 100..300u64, 16_000..40_000u64];
    let change = prop_oneof![
        3 => (0..4u64).prop_map(Change::Fill),
        1 => Just(Change::Clear),
        2 => (0..8usize, 0..20_000u64, any::<bool>()).prop_map(|(a, b, c)| Change::Copy(a, b, c)),
    ];
    let ops = proptest::collection::vec((gap, length, change), 0..8);
    let step = (chunks, ops).prop_map(|(chunks, ops)| Step { chunks, ops });
    proptest::collection::vec(step, 1..6)
}

type Model = BTreeMap<u64, ChunkId>;

/// Does the step to the model, and says it in ops.
fn model_step<'a>(step: &Step, past: &'a [(Root, Model)]) -> (Model, Vec<(Range<u64>, Op<'a>)>) {
    let mut model = past.last().expect("there is a first state").1.clone();
    model.retain(|&at, _| at < step.chunks);
    let (mut ops, mut at) = (vec![], 0);
    for (gap, length, change) in &step.ops {
        let start = (at + gap).min(step.chunks);
        let end = (start + length).min(step.chunks);
        at = end;
        match change {
            // Few different ids, so that pages come out equal.
            Change::Fill(n) => {
                at = end.min(start + 300);
                for chunk in start..at {
                    model.insert(chunk, id(chunk % 128 * n));
                    ops.push((chunk..chunk + 1, Op::Set(id(chunk % 128 * n))));
                }
            }
            Change::Clear => {
                model.retain(|chunk, _| !(start..end).contains(chunk));
                ops.push((start..end, Op::Clear));
            }
            Change::Copy(which, by, aligned) => {
                let (from, source) = &past[which % past.len()];
                let first = if *aligned {
                    start + by % 4 * 128
                } else {
                    start.abs_diff(*by)
                };
                model.retain(|chunk, _| !(start..end).contains(chunk));
                for (chunk, id) in source.range(first..first + (end - start)) {
                    model.insert(chunk - first + start, *id);
                }
                ops.push((start..end, Op::Copy { from, start: first }));
            }
        }
    }
    (model, ops)
}

proptest! {
    /// Whatever the history, the map says what a plain map says, and equal
    /// content is one root.
    #[test]
    fn it_agrees_with_a_plain_map(
        steps in steps(),
        probes in proptest::collection::vec(0..2_110_000u64, 6),
    ) {
        agrees_with_a_plain_map(&steps, &probes)?;
    }
}

fn agrees_with_a_plain_map(steps: &[Step], probes: &[u64]) -> Result<(), TestCaseError> {
    let store = Store::default();
    let mut past = vec![(Root::empty(CHUNK, 0), Model::new())];
    for step in steps {
        let (model, ops) = model_step(step, &past);
        let base = &past.last().expect("there is a first state").0;
        let root = edit(&store, base, size(step.chunks), &ops).unwrap();

        let all: Vec<_> = model
            .iter()
            .map(|(&at, &id)| (at..at + 1, Op::Set(id)))
            .collect();
        let empty = Root::empty(CHUNK, size(step.chunks));
        let anew = edit(&store, &empty, empty.size, &all).unwrap();
        prop_assert_eq!(&root, &anew);
        prop_assert_eq!(&Root::decode(&root.encode()).unwrap(), &root);
        prop_assert_eq!(root.count, model.len() as u64);

        let mut walked = Model::new();
        walk(&store, &root, &mut |_, _| true, &mut |at, id| {
            walked.insert(at, *id);
        })
        .unwrap();
        prop_assert_eq!(&walked, &model);

        for (old, old_model) in &past {
            let mut found = vec![];
            diff(&store, old, &root, &mut |at, a, b| {
                found.push((at, a.copied(), b.copied()))
            })
            .unwrap();
            let mut expected: Vec<_> = old_model
                .iter()
                .filter(|(at, id)| model.get(at) != Some(id))
                .map(|(&at, &id)| (at, Some(id), model.get(&at).copied()))
                .chain(
                    model
                        .iter()
                        .filter(|(at, _)| !old_model.contains_key(at))
                        .map(|(&at, &id)| (at, None, Some(id))),
                )
                .collect();
            expected.sort();
            prop_assert_eq!(found, expected);
        }

        // Random places, and the edges of what there is.
        let edges = [model.keys().next(), model.keys().next_back()];
        let edges = edges
            .into_iter()
            .flatten()
            .flat_map(|&at| [at.saturating_sub(1), at, at + 1]);
        let places: Vec<u64> = probes
            .iter()
            .map(|at| at % (step.chunks + 2))
            .chain(edges)
            .collect();
        for &at in &places {
            prop_assert_eq!(get(&store, &root, at).unwrap(), model.get(&at).copied());
            let range = get_range(&store, &root, at, 200).unwrap();
            let expected: Vec<_> = (at..at + 200).map(|at| model.get(&at).copied()).collect();
            prop_assert_eq!(range, expected);
            let between = at.min(places[0])..at.max(places[0]);
            let expected = model.range(between.clone()).count() as u64;
            prop_assert_eq!(count(&store, &root, between).unwrap(), expected);
            if at < step.chunks {
                let run = next_run(&store, &root, at).unwrap();
                let present = model.contains_key(&at);
                let end = match present {
                    true => (at..).find(|at| !model.contains_key(at)),
                    false => model.range(at..).next().map(|(&at, _)| at),
                };
                let end = end.unwrap_or(u64::MAX).min(step.chunks);
                prop_assert_eq!(run, Run { end, present });
            }
        }
        past.push((root, model));
    }
    Ok(())
}
