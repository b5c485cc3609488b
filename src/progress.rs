//! How long work tells how far it is.

/// Receives the progress of something that can take over a second.
pub trait Progress: Sync {
    /// `done` of `total` units of `doing` are finished; a `total` of 0 is
    /// unknown.
    fn update(&self, doing: &str, done: u64, total: u64);
}

/// Tells nobody.
pub struct Quiet;

impl Progress for Quiet {
    fn update(&self, _: &str, _: u64, _: u64) {}
}
