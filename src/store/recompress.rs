//! Packing cold chunks denser while nothing else is to do, if that is wanted.
//!
//! Sealing compresses at the fastest level, since it has a backlog to work
//! off. What has lain in its pack for a while is worth a second try at a
//! denser one, pack by pack ([`ChunkStore::recompress`]), as long as nobody
//! wants anything of the store or of the machine.
//!
//! Packs that gain nothing are remembered by name, in a file that may be lost
//! at any moment: they are looked at once more then. What was packed denser
//! lies in packs of new names, finds itself gaining nothing, and so gets
//! there too; when all packs have, nothing is looked at any more until there
//! are new ones.

use super::*;
use crate::chunk::sweep::SweepReport;
use crate::idle::{self, Resource};
use crate::index::PackNumber;
use crate::pack::PackName;
use parking_lot::MutexGuard;
use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

/// How long a pack is closed before it is cold.
pub const COLD: Duration = Duration::from_secs(3600);
/// Time between two looks while something is cold.
const LOOK: Duration = Duration::from_secs(60);
/// How long there was no request through the mount before it starts.
const QUIET: Duration = Duration::from_secs(10);
/// How often it looks at the machine while it works.
const GLANCE: Duration = Duration::from_secs(1);
/// Bytes that writers have left at least: the new pack comes before the old
/// one goes.
const ROOM: u64 = 256 << 20;
const FILE: &str = "recompressed";

/// What is known of closed packs. None of it is needed.
#[derive(Default)]
pub(super) struct Recompression {
    /// When each was first seen closed.
    seen: HashMap<PackName, Instant>,
    /// Those that gain nothing; None until it was read.
    settled: Option<HashSet<PackName>>,
    /// An error ended it for as long as the store is open.
    stopped: bool,
}

/// Packs that have lain for long enough and may gain something.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ColdPacks {
    /// Which, the oldest run's first.
    pub packs: Vec<PackNumber>,
    /// When the first of the others is cold, if there are others.
    pub next: Option<Instant>,
}

impl Store {
    /// Whether cold chunks are packed denser when nothing else is to do.
    pub fn is_recompressing(&self) -> bool {
        self.engine.recompress.load(Ordering::SeqCst)
    }

    /// Switches that; durable when this returns.
    pub fn set_recompress(&self, on: bool) -> Result<()> {
        self.engine.check_open()?;
        let mut catalogue = self.lock_catalogue();
        let next = Catalogue {
            recompress: on,
            ..catalogue.clone()
        };
        self.replace_catalogue(&mut catalogue, next)?;
        self.engine.recompress.store(on, Ordering::SeqCst);
        self.engine.work.raise(|work| work.recompress |= on);
        Ok(())
    }

    /// Waits until nobody else deletes packs, and holds that off;
    /// recompression makes way.
    pub(crate) fn lock_collecting(&self) -> MutexGuard<'_, ()> {
        self.collectors.fetch_add(1, Ordering::SeqCst);
        let collecting = self.collecting.lock();
        self.collectors.fetch_sub(1, Ordering::SeqCst);
        collecting
    }

    /// The closed packs that are cold at some instant; none while the setting
    /// is off. A pack's time counts from the first call that sees it closed.
    pub fn cold_packs(&self, now: Instant) -> ColdPacks {
        let mut cold = ColdPacks::default();
        let mut state = self.recompression.lock();
        if !self.is_recompressing() || state.stopped {
            return cold;
        }
        let mut packs = self.chunks().index().packs();
        let apart = self.chunks().apart();
        packs.retain(|(_, info)| info.closed && !info.is_damaged() && !apart.contains(&info.name));
        packs.sort_unstable_by_key(|(_, info)| info.name.epoch);
        let names: HashSet<PackName> = packs.iter().map(|(_, info)| info.name).collect();
        let settled = state.settled.get_or_insert_with(|| self.read_settled());
        settled.retain(|name| names.contains(name));
        packs.retain(|(_, info)| !settled.contains(&info.name));
        state.seen.retain(|name, _| names.contains(name));
        for (number, info) in packs {
            let at = *state.seen.entry(info.name).or_insert(now) + COLD;
            if at <= now {
                cold.packs.push(number);
            } else {
                cold.next = Some(cold.next.map_or(at, |next| next.min(at)));
            }
        }
        cold
    }

    /// Packs the records of these packs denser, where that gains something.
    /// `keep_going` is asked before every record; false ends it. The same
    /// finding that ends a gc ends this, with nothing more deleted
    /// (invariant 8).
    pub fn recompress(
        &self,
        packs: &[PackNumber],
        keep_going: &dyn Fn() -> bool,
    ) -> Result<SweepReport> {
        let Some(_one) = self.collecting.try_lock() else {
            return Ok(SweepReport::default());
        };
        self.check_deletable()?;
        let mut settled = Vec::new();
        let outcome = self
            .chunks()
            .recompress(packs, keep_going, &mut |name| settled.push(name));
        if !settled.is_empty() {
            self.settle(settled);
        }
        let report = outcome?;
        let won = &self.engine.metrics.recompressed_bytes;
        won.fetch_add(report.bytes_freed, Ordering::Relaxed);
        Ok(report)
    }

    fn read_settled(&self) -> HashSet<PackName> {
        match std::fs::read_to_string(self.root.join(FILE)) {
            Ok(text) => text.lines().filter_map(|line| line.parse().ok()).collect(),
            Err(_) => HashSet::new(),
        }
    }

    /// Remembers packs that gain nothing.
    fn settle(&self, names: Vec<PackName>) {
        let mut state = self.recompression.lock();
        let settled = state.settled.get_or_insert_default();
        settled.extend(names);
        let text: String = settled.iter().map(|name| format!("{name}\n")).collect();
        let (path, temporary) = (self.root.join(FILE), self.root.join("recompressed.new"));
        let mut options = crate::sys::private();
        let written = options
            .create(true)
            .write(true)
            .truncate(true)
            .open(&temporary)
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .and_then(|()| std::fs::rename(&temporary, path));
        if let Err(error) = written {
            tracing::debug!("{FILE}: {error}");
        }
    }

    /// Recompresses what is cold if nothing else is to do, until something
    /// is or `until` comes. Answers when to look again, if at all.
    pub(super) fn recompress_when_idle(&self, until: Instant) -> Option<Instant> {
        let cold = self.cold_packs(Instant::now());
        if cold.packs.is_empty() {
            return cold.next;
        }
        let requests = self.metrics().requests();
        self.wait_quietly();
        let go_on = || {
            !self.engine.closing.load(Ordering::SeqCst)
                && self.is_recompressing()
                && self.collectors.load(Ordering::SeqCst) == 0
                && self.metrics().requests() == requests
                && Instant::now() < until
        };
        let has_room = self
            .space()
            .is_ok_and(|space| !space.is_low() && space.free_bytes >= ROOM);
        // Its own reading is felt there.
        if has_room
            && go_on()
            && self.has_nothing_to_do()
            && idle::is_idle(Resource::Cpu)
            && idle::is_idle(Resource::Io)
        {
            let glanced = Cell::new(Instant::now());
            let keep_going = || {
                if glanced.get().elapsed() >= GLANCE {
                    glanced.set(Instant::now());
                    if !self.has_nothing_to_do() || !idle::is_idle(Resource::Cpu) {
                        return false;
                    }
                }
                go_on()
            };
            match self.recompress(&cold.packs, &keep_going) {
                Ok(report) if report.packs_compacted > 0 => tracing::info!(
                    "recompression: {} packs, {} bytes won",
                    report.packs_compacted,
                    report.bytes_freed
                ),
                Ok(_) => {}
                Err(Error::Closing) => return None,
                Err(error) if error.is_no_space() => {}
                Err(error) => {
                    tracing::error!("recompression has stopped: {error}");
                    let event = Event::new(What::Stopped);
                    let event = event.reason(format!("recompression: {error}"));
                    self.engine.events.note(event);
                    self.recompression.lock().stopped = true;
                    return None;
                }
            }
        }
        Some(Instant::now() + LOOK)
    }

    /// Waits to see whether there are requests.
    fn wait_quietly(&self) {
        let until = Instant::now() + QUIET;
        let mut work = self.engine.work.work.lock();
        while !self.engine.closing.load(Ordering::SeqCst) {
            let changed = &self.engine.work.changed;
            if changed.wait_until(&mut work, until).timed_out() {
                return;
            }
        }
    }

    /// Whether nothing is sealed or to be sealed, no snapshot is being taken,
    /// no space is to be won back.
    fn has_nothing_to_do(&self) -> bool {
        let is_asked = {
            let work = self.engine.work.work.lock();
            work.seal || work.collect || work.collect_sealed
        };
        !is_asked
            && !self.engine.settling.is_locked()
            && self.engine.seal_trouble.lock().is_none()
            && !self
                .engine
                .layers
                .lock()
                .values()
                .any(|layer| layer.is_frozen() && layer.sealed().is_none())
    }
}
