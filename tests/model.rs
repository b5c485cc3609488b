//! Goal: whatever a user does, in whatever order, and whenever the power
//! fails, disks and snapshots hold just what plain vectors of bytes would.
//!
//! Method: random histories of operations on a store whose files lose what
//! was not synced (`common/faulty.rs`), and on vectors beside it. Every read
//! is compared. At random moments, in the middle of operations and of the
//! recovery from an earlier crash, nothing more reaches the disk; then the
//! store is opened on what was left. Acknowledged bytes must be there, each
//! other sector old or new, each acknowledged snapshot exact, none that was
//! deleted back, and `verify` must find nothing. Other histories have calls
//! that fail, or a store that is full now and then. The seed of a failing
//! history is in the panic's message; `SNAPDISK_MODEL_SEED` repeats it, or
//! begins there (the background threads are not seeded),
//! `SNAPDISK_MODEL_HISTORIES` says how many there are.

mod common;
mod model {
    pub mod world;
}

use common::env_number;
use model::world::{Counts, Trail, Trouble, run};
use std::io::{Write, stderr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

/// Operations of a history.
const STEPS: u64 = 200;
/// An operation that takes so long waits for what never comes: a whole
/// history takes a fraction of a second.
const HUNG: Duration = Duration::from_secs(240);

/// Ends the process when one of the histories that write these trails gets no
/// further, and says where it stands. Ends itself when told so.
fn watch(trails: &[Trail], ended: &Mutex<bool>, told: &Condvar) {
    let mut seen: Vec<(String, usize, Instant)> = trails
        .iter()
        .map(|_| (String::new(), 0, Instant::now()))
        .collect();
    let mut guard = ended.lock().expect("nobody panics with it");
    while !*guard {
        for (trail, seen) in trails.iter().zip(&mut seen) {
            let lines = trail.lines();
            let first = lines.first().cloned().unwrap_or_default();
            if lines.is_empty() || (&first, lines.len()) != (&seen.0, seen.1) {
                *seen = (first, lines.len(), Instant::now());
            } else if seen.2.elapsed() > HUNG {
                let (what, threads) = (lines.join("\n"), common::threads());
                // Not by a macro, whose output goes down with the process.
                writeln!(stderr(), "{what}\n--- gets no further; threads:\n{threads}").ok();
                std::process::abort();
            }
        }
        let waited = told.wait_timeout(guard, Duration::from_secs(5));
        guard = waited.expect("nobody panics with it").0;
    }
}

/// Runs histories, on all processors; panics if one fails.
fn run_histories(default: u64, crashes: u64, trouble: Trouble) {
    let histories = env_number("SNAPDISK_MODEL_HISTORIES");
    let seeds = match env_number("SNAPDISK_MODEL_SEED") {
        Some(seed) => seed..seed + histories.unwrap_or(1),
        None => 0..histories.unwrap_or(default),
    };
    let (next, failed) = (AtomicU64::new(seeds.start), Mutex::new(Vec::new()));
    let total = Mutex::new(Counts::default());
    let work = |trail: &Trail| {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds.end {
                trail.end();
                break;
            }
            match catch_unwind(AssertUnwindSafe(|| {
                run(seed, STEPS, crashes, trouble, trail)
            })) {
                Ok(counts) => {
                    let mut total = total.lock().expect("nobody panics with it");
                    for (what, count) in counts {
                        *total.entry(what).or_default() += count;
                    }
                }
                Err(_) => failed.lock().expect("nobody panics with it").push(seed),
            }
        }
    };
    let workers = std::thread::available_parallelism().map_or(2, usize::from);
    let trails: Vec<Trail> = (0..workers).map(|_| Trail::default()).collect();
    let (ended, told) = (Mutex::new(false), Condvar::new());
    std::thread::scope(|scope| {
        let working: Vec<_> = trails
            .iter()
            .map(|trail| scope.spawn(|| work(trail)))
            .collect();
        scope.spawn(|| watch(&trails, &ended, &told));
        for worker in working {
            worker.join().expect("a history's panic is caught");
        }
        *ended.lock().expect("nobody panics with it") = true;
        told.notify_all();
    });
    println!(
        "histories with trouble {trouble:?}: {}",
        seeds.end - seeds.start
    );
    for (what, count) in total.into_inner().expect("nobody panicked with it") {
        println!("  {what}: {count}");
    }
    let failed = failed.into_inner().expect("nobody panicked with it");
    assert!(
        failed.is_empty(),
        "histories that failed; repeat one with SNAPDISK_MODEL_SEED: {failed:?}"
    );
}

/// Contract and invariants 1 to 5: see the goal above.
#[test]
fn random_histories_agree_with_vectors_also_after_crashes() {
    run_histories(2000, 8, Trouble::None);
}

/// Invariant 6: after a failed call of any kind on any kind of file, what
/// was acknowledged is there, whether the store is closed, opened anew or
/// loses power; no fsync was acknowledged that did not happen; what is not
/// concerned can be read all the time.
#[test]
fn random_histories_agree_with_vectors_also_after_failed_calls() {
    run_histories(500, 2, Trouble::Faults);
}

/// Invariant 7: in a full store operations are refused and change nothing
/// else; reading and deleting go on, and so does everything once there is
/// room, without opening it anew.
#[test]
fn random_histories_agree_with_vectors_also_in_a_full_store() {
    run_histories(500, 2, Trouble::Full);
}
