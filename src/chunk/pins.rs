//! Which packs must stay (invariants 5 and 8): whoever relies on what is in a
//! pack pins it, and a sweep condemns none that was pinned at any time since
//! it began.
//!
//! Both decide under one lock: either a sweep sees the pin, or whoever would
//! pin sees that the pack is condemned.

use parking_lot::Mutex;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;

/// The pins on packs, which go by numbers of some kind. The lock comes after
/// the pack writer's and a batch's, before the index'.
pub struct Pins<Pack>(Mutex<State<Pack>>);

struct State<Pack> {
    /// How many rely on a pack.
    counts: HashMap<Pack, u32>,
    /// While a sweep runs: all packs pinned at any time since it began.
    protected: Option<HashSet<Pack>>,
}

impl<Pack: Eq + Hash> State<Pack> {
    fn is_protected(&self, pack: &Pack) -> bool {
        let protected = self.protected.as_ref();
        protected.is_none_or(|protected| protected.contains(pack))
    }
}

impl<Pack> Default for Pins<Pack> {
    fn default() -> Pins<Pack> {
        Pins(Mutex::new(State {
            counts: HashMap::new(),
            protected: None,
        }))
    }
}

impl<Pack: Copy + Eq + Hash> Pins<Pack> {
    /// Pins a pack if it is visible, that is not condemned.
    pub fn pin(&self, pack: Pack, is_visible: impl FnOnce() -> bool) -> bool {
        let mut state = self.0.lock();
        if !is_visible() {
            return false;
        }
        *state.counts.entry(pack).or_default() += 1;
        if let Some(protected) = &mut state.protected {
            protected.insert(pack);
        }
        true
    }

    /// Takes back one pin of each of these packs.
    pub fn unpin(&self, packs: impl Iterator<Item = Pack>) {
        let mut state = self.0.lock();
        for pack in packs {
            if let Some(count) = state.counts.get_mut(&pack) {
                *count -= 1;
                if *count == 0 {
                    state.counts.remove(&pack);
                }
            }
        }
    }

    /// A sweep begins; false if another one runs.
    #[must_use]
    pub fn begin_sweep(&self) -> bool {
        let mut state = self.0.lock();
        if state.protected.is_some() {
            return false;
        }
        state.protected = Some(state.counts.keys().copied().collect());
        true
    }

    /// The sweep is over.
    pub fn end_sweep(&self) {
        self.0.lock().protected = None;
    }

    /// Whether the sweep that runs has to leave a pack. True for all without
    /// one.
    pub fn is_protected(&self, pack: Pack) -> bool {
        self.0.lock().is_protected(&pack)
    }

    /// Hides a pack, unless it is protected.
    pub fn condemn(&self, pack: Pack, hide: impl FnOnce()) -> bool {
        let state = self.0.lock();
        if state.counts.contains_key(&pack) || state.is_protected(&pack) {
            return false;
        }
        hide();
        true
    }
}
