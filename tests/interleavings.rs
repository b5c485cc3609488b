//! Goal: the pieces that threads meet at hold whatever turns they take: a
//! freeze waits for every writer, a block has one writer at a time, a sweep
//! deletes no pack that a manifest comes to name, what is kept closed is
//! open for nobody, and nobody waits for ever (invariants 2, 8, 9).
//!
//! Method: shuttle runs each model thousands of times, one thread at a time,
//! and decides at every lock and atomic who goes on: at random, and with few
//! switches at random places (PCT), which finds what needs a rare order. It
//! says how to repeat an order that fails. The pieces are the sources that
//! the program is built from, on shuttle's locks in place of parking_lot's;
//! how a disk and a seal use them is written down here again. A wait with a
//! deadline waits for ever here, so that whoever should have been woken and
//! was not shows. `SNAPDISK_INTERLEAVINGS` runs more orders.

// What these sources name `parking_lot` is this file.
extern crate self as parking_lot;

mod common;

#[path = "../src/disk/opens.rs"]
#[allow(dead_code, unused_imports)]
mod opens;
#[path = "../src/chunk/pins.rs"]
mod pins;
#[path = "../src/disk/ranges.rs"]
#[allow(dead_code, unused_imports)]
mod ranges;
#[path = "../src/disk/layer/writers.rs"]
#[allow(dead_code, unused_imports)]
mod writers;

use opens::{Opens, What};
use pins::Pins;
use ranges::RangeLocks;
use shuttle::scheduler::{PctScheduler, RandomScheduler, Scheduler};
use shuttle::sync::RwLock;
use shuttle::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use shuttle::{Config, Runner, thread};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Instant;
use writers::Writers;

/// shuttle's, as parking_lot has it.
pub struct Mutex<T>(shuttle::sync::Mutex<T>);

/// A lock that is held; without it only inside of a wait.
pub struct MutexGuard<'a, T>(Option<shuttle::sync::MutexGuard<'a, T>>);

impl<T> Mutex<T> {
    fn new(value: T) -> Mutex<T> {
        Mutex(shuttle::sync::Mutex::new(value))
    }

    fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().expect("nothing panics with it")))
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Mutex<T> {
        Mutex::new(T::default())
    }
}

impl<T> Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_ref().expect("it is held")
    }
}

impl<T> DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().expect("it is held")
    }
}

/// shuttle's, as parking_lot has it.
pub struct Condvar(shuttle::sync::Condvar);

/// That a wait did not end by its deadline.
pub struct Woken;

impl Woken {
    fn timed_out(&self) -> bool {
        false
    }
}

impl Default for Condvar {
    fn default() -> Condvar {
        Condvar(shuttle::sync::Condvar::new())
    }
}

impl Condvar {
    fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let held = guard.0.take().expect("it is held");
        guard.0 = Some(self.0.wait(held).expect("nothing panics with it"));
    }

    fn wait_until<T>(&self, guard: &mut MutexGuard<'_, T>, _: Instant) -> Woken {
        self.wait(guard);
        Woken
    }

    fn notify_all(&self) {
        self.0.notify_all();
    }
}

/// What one may change at a time, and nobody may look at meanwhile.
#[derive(Default)]
struct Alone {
    value: AtomicU64,
    changing: AtomicBool,
}

impl Alone {
    fn change(&self, change: impl FnOnce(u64) -> u64) {
        let other = self.changing.swap(true, Ordering::SeqCst);
        assert!(!other, "two change it");
        let value = self.value.load(Ordering::SeqCst);
        self.value.store(change(value), Ordering::SeqCst);
        self.changing.store(false, Ordering::SeqCst);
    }

    fn look(&self) -> u64 {
        let look = || {
            assert!(!self.changing.load(Ordering::SeqCst), "it is being changed");
            self.value.load(Ordering::SeqCst)
        };
        let (first, second) = (look(), look());
        assert_eq!(first, second, "it has changed meanwhile");
        first
    }
}

/// Writers that overlap in pairs hold their blocks alone.
fn ranges_exclude_each_other() {
    let locks = Arc::new(RangeLocks::default());
    let blocks: Arc<Vec<Alone>> = Arc::new((0..4).map(|_| Alone::default()).collect());
    let threads: Vec<_> = [0..3, 1..2, 2..4]
        .into_iter()
        .map(|range| {
            let (locks, blocks) = (locks.clone(), blocks.clone());
            thread::spawn(move || {
                let _held = locks.lock(range.clone());
                for block in &blocks[range.start as usize..range.end as usize] {
                    block.change(|value| value + 1);
                }
            })
        })
        .collect();
    for thread in threads {
        thread.join().expect("it ends");
    }
    let values = blocks.iter().map(Alone::look);
    assert_eq!(values.collect::<Vec<u64>>(), [1, 2, 2, 1]);
}

/// A layer of one block.
struct Layer {
    writers: Writers,
    block: Alone,
}

/// A disk as `Disk::enter` and the swap of its head use it.
struct Disk {
    ranges: RangeLocks,
    gate: RwLock<()>,
    head: AtomicUsize,
    layers: [Layer; 2],
    /// Of writes that have returned.
    returned: AtomicU64,
}

impl Disk {
    fn write(&self, version: u64) {
        let held = self.ranges.lock(0..1);
        let layer = {
            let _gate = self.gate.read().expect("nothing panics with it");
            let layer = &self.layers[self.head.load(Ordering::SeqCst)];
            layer.writers.enter();
            layer
        };
        layer.block.change(|_| version);
        layer.writers.leave();
        drop(held);
        self.returned.fetch_max(version, Ordering::SeqCst);
    }

    /// What a snapshot shows.
    fn take(&self) -> u64 {
        {
            let _gate = self.gate.write().expect("nothing panics with it");
            self.head.store(1, Ordering::SeqCst);
        }
        let frozen = &self.layers[0];
        frozen.writers.wait_for_none();
        frozen.block.look()
    }
}

/// A snapshot has every write that had returned before it was asked for, and
/// nobody writes to what it shows.
fn a_freeze_waits_for_every_writer() {
    let layer = || Layer {
        writers: Writers::default(),
        block: Alone::default(),
    };
    let disk = Arc::new(Disk {
        ranges: RangeLocks::default(),
        gate: RwLock::new(()),
        head: AtomicUsize::new(0),
        layers: [layer(), layer()],
        returned: AtomicU64::new(0),
    });
    let writing = [1, 2].map(|version| {
        let disk = disk.clone();
        thread::spawn(move || disk.write(version))
    });
    let least = disk.returned.load(Ordering::SeqCst);
    let shown = disk.take();
    assert!(least == 0 || shown != 0, "write {least} is not in it");
    for thread in writing {
        thread.join().expect("it ends");
    }
    let found = disk.layers.iter().map(|layer| layer.block.look());
    let found: Vec<u64> = found.collect();
    assert_eq!(found[0], shown, "it has changed");
    assert!(found.iter().any(|version| *version != 0), "both are lost");
}

/// What a seal and a sweep both know.
struct Store {
    pins: Pins<u32>,
    visible: AtomicBool,
    /// Manifests that name the pack.
    names: AtomicU64,
    deleted: AtomicBool,
}

impl Store {
    /// A seal finds its chunk in the pack: a dedupe hit.
    fn seal(&self) {
        if self.pins.pin(7, || self.visible.load(Ordering::SeqCst)) {
            self.names.fetch_add(1, Ordering::SeqCst);
            self.pins.unpin([7].into_iter());
        }
    }

    fn sweep(&self) {
        if !self.pins.begin_sweep() {
            return;
        }
        let is_live = self.names.load(Ordering::SeqCst) > 0;
        let hide = || self.visible.store(false, Ordering::SeqCst);
        if !is_live && !self.pins.is_protected(7) && self.pins.condemn(7, hide) {
            self.deleted.store(true, Ordering::SeqCst);
        }
        self.pins.end_sweep();
    }
}

/// No pack is deleted that a manifest names, whenever that was written.
fn a_sweep_deletes_nothing_that_a_seal_found() {
    let store = Arc::new(Store {
        pins: Pins::default(),
        visible: AtomicBool::new(true),
        names: AtomicU64::new(0),
        deleted: AtomicBool::new(false),
    });
    let sealing = [(), ()].map(|()| {
        let store = store.clone();
        thread::spawn(move || store.seal())
    });
    store.sweep();
    for thread in sealing {
        thread.join().expect("it ends");
    }
    let names = store.names.load(Ordering::SeqCst);
    assert!(
        names == 0 || !store.deleted.load(Ordering::SeqCst),
        "{names} name it"
    );
}

/// Two that want the live image closed get it, one after the other, and who
/// opens it meanwhile is refused.
fn what_is_kept_closed_is_open_for_nobody() {
    let opens = Arc::new(Opens::default());
    let image = Arc::new(Alone::default());
    let closing = [(), ()].map(|()| {
        let (opens, image) = (opens.clone(), image.clone());
        thread::spawn(move || {
            let closed = opens.keep_closed().expect("without a deadline");
            image.change(|changes| changes + 1);
            drop(closed);
        })
    });
    if let Some(opened) = opens.open(&[What::Live]) {
        image.look();
        drop(opened);
    }
    for thread in closing {
        thread.join().expect("it ends");
    }
    assert_eq!(image.look(), 2);
}

fn main() {
    type Model = fn();
    let models: [(&str, Model); 4] = [
        ("ranges_exclude_each_other", ranges_exclude_each_other),
        (
            "a_freeze_waits_for_every_writer",
            a_freeze_waits_for_every_writer,
        ),
        (
            "a_sweep_deletes_nothing_that_a_seal_found",
            a_sweep_deletes_nothing_that_a_seal_found,
        ),
        (
            "what_is_kept_closed_is_open_for_nobody",
            what_is_kept_closed_is_open_for_nobody,
        ),
    ];
    // As the harness takes it: a part of the names that are meant.
    let wanted = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    for (name, model) in models {
        if wanted
            .as_ref()
            .is_some_and(|wanted| !name.contains(wanted.as_str()))
        {
            continue;
        }
        let orders = common::env_number("SNAPDISK_INTERLEAVINGS").unwrap_or(5000) as usize;
        let run = |scheduler: Box<dyn Scheduler + Send>| {
            Runner::new(scheduler, Config::default()).run(model)
        };
        let runs = run(Box::new(RandomScheduler::new(orders)))
            + run(Box::new(PctScheduler::new(3, orders)));
        assert_eq!(runs, 2 * orders, "{name}");
        println!("test {name} ... ok, {runs} orders");
    }
}
