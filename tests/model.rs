//! Goal: whatever a user does, in whatever order, and whenever the power
//! fails, disks and snapshots hold just what plain vectors of bytes would.
//!
//! Method: random histories of operations on a store whose files lose what
//! was not synced (`common/faulty.rs`), and on vectors beside it. Every read
//! is compared. At random moments, in the middle of operations and of the
//! recovery from an earlier crash, nothing more reaches the disk; then the
//! store is opened on what was left. Acknowledged bytes must be there, each
//! other sector old or new, each acknowledged snapshot exact, none that was
//! deleted back, and `verify` must find nothing. The seed of a failing
//! history is in the panic's message; `SNAPDISK_MODEL_SEED` repeats it (the
//! background threads are not seeded), `SNAPDISK_MODEL_HISTORIES` says how
//! many there are.

mod common;
mod model {
    pub mod world;
}

use model::world::{Counts, run};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Histories of a run, unless told otherwise.
const HISTORIES: u64 = 2000;
/// Operations of a history.
const STEPS: u64 = 200;
/// Crashes of a history.
const CRASHES: u64 = 8;

fn number(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{name}={value}")))
}

/// Contract and invariants 1 to 5: see the goal above.
#[test]
fn random_histories_agree_with_vectors_also_after_crashes() {
    let seeds = match number("SNAPDISK_MODEL_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SNAPDISK_MODEL_HISTORIES").unwrap_or(HISTORIES),
    };
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let total = Mutex::new(Counts::default());
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    match catch_unwind(AssertUnwindSafe(|| run(seed, STEPS, CRASHES))) {
                        Ok(counts) => {
                            let mut total = total.lock().expect("nobody panics with it");
                            for (what, count) in counts {
                                *total.entry(what).or_default() += count;
                            }
                        }
                        Err(_) => {
                            let mut failed = failed.lock().expect("nobody panics with it");
                            failed.push(seed);
                        }
                    }
                }
            });
        }
    });
    println!("histories: {}", seeds.end - seeds.start);
    for (what, count) in total.into_inner().expect("nobody panicked with it") {
        println!("  {what}: {count}");
    }
    let failed = failed.into_inner().expect("nobody panicked with it");
    assert!(
        failed.is_empty(),
        "histories that failed; repeat one with SNAPDISK_MODEL_SEED: {failed:?}"
    );
}
