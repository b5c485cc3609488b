//! Who has what of a disk open.

use parking_lot::{Condvar, Mutex};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Why something that is open cannot be had, in words.
pub(crate) const OPEN: &str = "it is open, or mounted as a loop device";
/// How long a check waits for a close that has returned to its caller but
/// whose RELEASE is still on its way.
const RELEASE_WAIT: Duration = Duration::from_secs(1);

/// What can be open.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum What {
    Live,
    LiveForWriting,
    /// By number.
    Snapshot(u32),
}

#[derive(Default)]
struct Counts {
    open: HashMap<What, u64>,
    /// Nobody may open these meanwhile.
    closed: HashSet<What>,
}

/// The open files of a disk.
#[derive(Default)]
pub(super) struct Opens {
    /// A leaf.
    counts: Mutex<Counts>,
    /// Told when something is closed, or need not be any more.
    closed: Condvar,
}

/// An open file; closed when dropped.
pub struct Opened {
    opens: Arc<Opens>,
    what: Vec<What>,
    first: bool,
}

impl Opened {
    /// Whether nobody else had it open at that time.
    pub fn first(&self) -> bool {
        self.first
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        let mut counts = self.opens.counts.lock();
        for what in &self.what {
            if let Some(count) = counts.open.get_mut(what) {
                *count -= 1;
                if *count == 0 {
                    counts.open.remove(what);
                }
            }
        }
        drop(counts);
        self.opens.closed.notify_all();
    }
}

/// Keeps something closed; it may be opened again when this is dropped.
pub(crate) struct KeptClosed<'a> {
    opens: &'a Opens,
    what: What,
}

impl Drop for KeptClosed<'_> {
    fn drop(&mut self) {
        self.opens.counts.lock().closed.remove(&self.what);
        self.opens.closed.notify_all();
    }
}

impl Opens {
    /// Counts an open file; None while it is kept closed.
    pub fn open(self: &Arc<Self>, what: &[What]) -> Option<Opened> {
        let mut counts = self.counts.lock();
        if what.iter().any(|what| counts.closed.contains(what)) {
            return None;
        }
        let mut first = true;
        for what in what {
            let count = counts.open.entry(*what).or_default();
            first &= *count == 0 || *what == What::LiveForWriting;
            *count += 1;
        }
        Some(Opened {
            opens: self.clone(),
            what: what.to_vec(),
            first,
        })
    }

    /// How often it is open now.
    pub fn count(&self, what: What) -> u64 {
        self.counts.lock().open.get(&what).copied().unwrap_or(0)
    }

    /// Whether it is open at most `allowed` times, waiting a little for
    /// closes that are on their way.
    pub fn settles_at(&self, what: What, allowed: u64) -> bool {
        let deadline = Instant::now() + RELEASE_WAIT;
        let mut counts = self.counts.lock();
        loop {
            if counts.open.get(&what).copied().unwrap_or(0) <= allowed {
                return true;
            }
            if self.closed.wait_until(&mut counts, deadline).timed_out() {
                return false;
            }
        }
    }

    /// Keeps something closed, after a wait of at most `patience` until it is;
    /// None if it stays open.
    fn keep_closed_after(&self, what: What, patience: Duration) -> Option<KeptClosed<'_>> {
        let deadline = Instant::now() + patience;
        let mut counts = self.counts.lock();
        while counts.open.contains_key(&what) || counts.closed.contains(&what) {
            if self.closed.wait_until(&mut counts, deadline).timed_out() {
                return None;
            }
        }
        counts.closed.insert(what);
        Some(KeptClosed { opens: self, what })
    }

    /// Keeps a snapshot closed; None if it is open.
    pub fn keep_snapshot_closed(&self, number: u32) -> Option<KeptClosed<'_>> {
        self.keep_closed_after(What::Snapshot(number), Duration::ZERO)
    }

    /// Keeps everybody from opening the live image for writing; None if
    /// somebody has.
    pub fn keep_unwritten(&self) -> Option<KeptClosed<'_>> {
        self.keep_closed_after(What::LiveForWriting, Duration::ZERO)
    }

    /// Waits a little until the live image is closed, and keeps it so; None
    /// if it stays open.
    pub fn keep_closed(&self) -> Option<KeptClosed<'_>> {
        self.keep_closed_after(What::Live, RELEASE_WAIT)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A snapshot that is being deleted is opened by nobody, and one that is
    /// open is not kept closed.
    #[test]
    fn a_snapshot_is_open_or_kept_closed() {
        let opens = Arc::new(Opens::default());
        let open = |number| opens.open(&[What::Snapshot(number)]);
        let kept = opens.keep_snapshot_closed(3).expect("nobody has it open");
        assert!(open(3).is_none());
        let other = open(4).expect("another one");
        drop(kept);
        let opened = open(3).expect("it may be opened again");
        assert!(opens.keep_snapshot_closed(3).is_none());
        drop((opened, other));
        assert!(opens.keep_snapshot_closed(3).is_some());
    }
}
