//! What the daemon gives up before it serves anybody.
//!
//! A thread that is confined, and every thread that it starts, can open
//! files below the store, `/dev/fuse` and, for reading, `/proc` and the time
//! zones; it cannot use TCP, gain privileges by running a program, signal
//! or trace other processes, or mount. What little has to be done beyond
//! that (mounting, looking at the command line of a `cp`) is asked of one
//! thread that was started before, [`Outside`].

use crate::error::{Error, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

/// The newest Landlock that is asked for; older kernels give what they have.
const NEWEST: ABI = ABI::V6;
/// What is read beyond the store: who asks, and time zones.
const READ: [&str; 3] = ["/proc", "/etc/localtime", "/usr/share/zoneinfo"];
/// Every thread that takes requests opens it.
const FUSE: &str = "/dev/fuse";

type Job = Box<dyn FnOnce() + Send>;

/// A thread that is not confined.
#[derive(Debug)]
pub struct Outside {
    jobs: Sender<Job>,
    /// Something that nobody waits for any more is not done yet.
    stuck: Arc<AtomicBool>,
}

/// What was begun has come to its end, whichever.
struct Ended(Arc<AtomicBool>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.store(false, Ordering::SeqCst);
    }
}

impl Outside {
    /// Starts it, to be done before [`confine`].
    pub fn start() -> std::io::Result<Outside> {
        let (jobs, work) = channel::<Job>();
        thread::Builder::new()
            .name("outside".into())
            .spawn(move || {
                for job in work {
                    if catch_unwind(AssertUnwindSafe(job)).is_err() {
                        tracing::error!("a job outside of the sandbox panicked");
                    }
                }
            })?;
        Ok(Outside {
            jobs,
            stuck: Arc::default(),
        })
    }

    /// [`Outside::ask`] for what may be made to wait by whom it concerns: None
    /// also after `patience`, and the job goes on. Until it is done others are
    /// told so at once.
    pub fn ask_within<T: Send + 'static>(
        &self,
        patience: Duration,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<T> {
        if self.stuck.load(Ordering::SeqCst) {
            return None;
        }
        let answered = self.begin(job)?;
        let answer = answered.recv_timeout(patience);
        if !matches!(answer, Err(RecvTimeoutError::Timeout)) {
            return answer.ok();
        }
        self.stuck.store(true, Ordering::SeqCst);
        // It may have ended just before that.
        let answer = answered.try_recv();
        if !matches!(answer, Err(TryRecvError::Empty)) {
            self.stuck.store(false, Ordering::SeqCst);
        }
        answer.ok()
    }

    /// Has it do something and waits for that; None if it panicked.
    pub fn ask<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        self.begin(job)?.recv().ok()
    }

    fn begin<T: Send + 'static>(
        &self,
        job: impl FnOnce() -> T + Send + 'static,
    ) -> Option<Receiver<T>> {
        let (answer, answered) = channel();
        let ended = Ended(self.stuck.clone());
        let job = Box::new(move || {
            let _ended = ended;
            // Nobody may wait any more.
            answer.send(job()).ok();
        });
        self.jobs.send(job).ok()?;
        Some(answered)
    }
}

/// How far [`confine`] got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confined {
    /// As far as is asked for.
    Fully,
    /// As far as this kernel can.
    Partly,
    /// No new privileges, and nothing else: the kernel has no Landlock.
    Hardly,
}

/// Confines the calling thread and all that it starts from now on to the
/// store, for good.
pub fn confine(store: &Path) -> Result<Confined> {
    let failed = |error: RulesetError| Error::Io {
        doing: "confining the daemon to",
        path: store.display().to_string(),
        source: std::io::Error::other(error),
    };
    let status = rules(store)
        .and_then(RulesetCreated::restrict_self)
        .map_err(failed)?;
    Ok(match status.ruleset {
        RulesetStatus::FullyEnforced => Confined::Fully,
        RulesetStatus::PartiallyEnforced => Confined::Partly,
        RulesetStatus::NotEnforced => Confined::Hardly,
    })
}

/// Does something on a thread of its own which can start no program, and
/// neither can the threads that it starts; where the kernel has no Landlock,
/// they can. A panic goes on to the caller.
pub fn without_programs<T: Send>(job: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let done = scope.spawn(|| {
            if let Err(error) = deny_programs() {
                tracing::warn!("a thread may start programs: {error}");
            }
            job()
        });
        done.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

fn deny_programs() -> std::result::Result<(), RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::Execute)?
        .create()?
        .restrict_self()?;
    Ok(())
}

fn rules(store: &Path) -> std::result::Result<RulesetCreated, RulesetError> {
    let all = AccessFs::from_all(NEWEST);
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(all)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    let read = AccessFs::from_read(NEWEST);
    let fuse = AccessFs::from_file(NEWEST);
    let places = READ.iter().map(|place| {
        let place = Path::new(*place);
        // Of a file nothing can be listed.
        let is_file = place.is_file();
        (place, if is_file { read & fuse } else { read })
    });
    for (place, access) in places.chain([(store, all), (Path::new(FUSE), fuse)]) {
        // What is not there need not be let in.
        if let Ok(place) = PathFd::new(place) {
            rules = rules.add_rule(PathBeneath::new(place, access))?;
        }
    }
    Ok(rules)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A confined thread and those that it starts get at the store and at
    /// nothing else; the others go on as before.
    #[test]
    fn a_confined_thread_sees_the_store_only() -> std::io::Result<()> {
        let store = tempfile::tempdir()?;
        let other = tempfile::tempdir()?;
        fs::write(other.path().join("secret"), "x")?;
        let secret = other.path().join("secret");
        let outside = Outside::start()?;
        let confined = thread::scope(|scope| {
            let confined = scope.spawn(|| {
                let confined = confine(store.path()).expect("it can be confined");
                fs::write(store.path().join("own"), "y").expect("the store is there");
                if confined != Confined::Hardly {
                    let inner = thread::scope(|scope| {
                        let inner = scope.spawn(|| fs::read(&secret));
                        inner.join().expect("no panic")
                    });
                    let denied = [
                        fs::read(&secret).map(drop),
                        fs::write(other.path().join("new"), ""),
                        inner.map(drop),
                    ];
                    for denied in denied {
                        let error = denied.expect_err("it is out of bounds");
                        assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
                    }
                }
                let path = secret.clone();
                let read = outside.ask(move || fs::read(path)).expect("it answers");
                assert_eq!(read.expect("it is not confined"), b"x");
                confined
            });
            confined.join().expect("no panic")
        });
        assert!(confined != Confined::Hardly, "this kernel has no Landlock");
        assert_eq!(fs::read(&secret)?, b"x");
        Ok(())
    }

    /// A program is not started where none may be, also by a thread that was
    /// started there; elsewhere it is.
    #[test]
    fn no_program_is_started_where_none_may_be() -> std::io::Result<()> {
        let start = || std::process::Command::new("true").status();
        let (own, inner) = without_programs(|| {
            let inner = thread::scope(|scope| scope.spawn(start).join().expect("no panic"));
            (start(), inner)
        });
        for denied in [own, inner] {
            let error = denied.expect_err("no program may be started");
            assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
        }
        assert!(start()?.success());
        Ok(())
    }

    /// One job that hangs, which who it concerns may cause, makes one asker
    /// wait, not each.
    #[test]
    fn whoever_asks_while_a_job_hangs_is_told_at_once() -> std::io::Result<()> {
        let outside = Outside::start()?;
        let (release, held) = channel::<()>();
        let short = Duration::from_millis(1);
        assert_eq!(outside.ask_within(short, move || held.recv().is_ok()), None);
        // This would wait for ever if it were asked.
        assert_eq!(outside.ask_within(Duration::MAX, || 7), None);
        release.send(()).expect("it waits");
        // Jobs are done in turn.
        assert_eq!(outside.ask(|| 7), Some(7));
        assert_eq!(outside.ask_within(Duration::MAX, || 7), Some(7));
        Ok(())
    }

    /// A job that panics takes nobody with it.
    #[test]
    fn the_thread_outside_survives_a_panic() -> std::io::Result<()> {
        let outside = Outside::start()?;
        let panicked: Option<()> = outside.ask(|| panic!("on purpose"));
        assert!(panicked.is_none());
        assert_eq!(outside.ask(|| 7), Some(7));
        Ok(())
    }
}
