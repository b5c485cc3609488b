//! Packing the records of whole packs anew, with more time.
//!
//! A pack is compacted as if something in it were dead: its records go to
//! other packs, are read back from there, and then it is deleted. Whether
//! they are live is not asked, so nothing needs to be marked; dead ones wait
//! for gc as before.

use super::{ChunkStore, Copying, SweepReport, SweepRun};
use crate::error::Result;
use crate::index::PackNumber;
use crate::pack::PackName;
use std::sync::Arc;

/// Records of a pack that are packed anew to see what it would gain.
const SAMPLE: usize = 32;
/// Less than so many hundredths is not worth writing a pack.
const GAIN_PERCENT: u64 = 2;

impl ChunkStore {
    /// Packs the records of these packs anew where a sample says that it is
    /// worth it; `settled` is told of packs where it is not. `keep_going` is
    /// asked before every record; false ends it early. Not beside a sweep.
    ///
    /// Whenever it ends, every chunk is where it was, in a new pack that was
    /// synced and read back, or both (invariant 8).
    pub fn recompress(
        self: &Arc<Self>,
        packs: &[PackNumber],
        keep_going: &dyn Fn() -> bool,
        settled: &mut dyn FnMut(PackName),
    ) -> Result<SweepReport> {
        let mut report = SweepReport::default();
        let mut begun: Option<SweepRun> = None;
        for number in packs {
            if !keep_going() {
                report.interrupted = true;
                break;
            }
            let Some(info) = self.index.info(*number) else {
                continue;
            };
            if !self.is_worth_it(*number, &info.name)? {
                settled(info.name);
                continue;
            }
            // Only now, since it closes the open pack.
            let run = match &mut begun {
                Some(run) => run,
                none => {
                    let run = self.sweep_begin()?;
                    run.check_files(&mut report)?;
                    none.insert(run)
                }
            };
            if !run.candidates.iter().any(|(one, _)| one == number) {
                continue;
            }
            if run.is_protected(*number) {
                report.packs_protected += 1;
                continue;
            }
            let pack = run.judge(*number, &info, &|_, _| true)?;
            run.compact(
                vec![pack],
                Copying::Repacked,
                &|_, _| true,
                &mut report,
                keep_going,
            )?;
            if report.interrupted || report.no_space {
                break;
            }
        }
        Ok(report)
    }

    /// Whether a pack would get shorter by enough, by a sample of it.
    fn is_worth_it(&self, number: PackNumber, name: &PackName) -> Result<bool> {
        let entries = self.index.directory(number)?.by_offset();
        let step = entries.len().div_ceil(SAMPLE).max(1);
        let (mut before, mut after) = (0, 0);
        for entry in entries.iter().step_by(step) {
            let (mut stored, plain) = self.read_checked(number, name, entry)?;
            before += stored.record_len();
            stored.repack(&plain);
            after += stored.record_len();
        }
        Ok((before - after) * 100 > before * GAIN_PERCENT)
    }
}

#[cfg(test)]
mod tests;
