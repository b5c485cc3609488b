//! The process that serves a mount, and how it goes to the background.
//!
//! It is forked before any thread is started. Until the mount is ready the
//! parent reads lines of JSON from a pipe and shows them: `{"progress": …}`,
//! then `{"ready": true}` or `{"error": …, "hint": …}`.

use super::ask::mounts;
use super::bar::Bar;
use super::failure::{Failure, of_library};
use super::log;
use super::umount::{is_busy, unmount};
use crate::error::Error;
use crate::fuse::{self, MountOptions};
use crate::progress::Progress;
use crate::sandbox::{self, Outside};
use crate::store::{self, Store};
use crate::sys;
use crate::verbs::StoreVerbs;
use parking_lot::Mutex;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Write};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

/// An earlier daemon may still be writing out its data after its mount is
/// gone; this long it is waited for.
const WAIT_FOR_EARLIER: Duration = Duration::from_secs(30);
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How often progress goes to the parent at most.
const TELL_EVERY: Duration = Duration::from_millis(50);

/// What is to be mounted.
pub(super) struct Daemon {
    /// The store, absolute.
    pub(super) store: PathBuf,
    /// Where, absolute.
    pub(super) point: PathBuf,
    pub(super) mount: MountOptions,
    pub(super) open: store::Options,
}

/// Serves in this process until unmounted, with the log on stderr.
pub(super) fn run_in_foreground(daemon: Daemon) -> Result<(), Failure> {
    log::to_stderr()?;
    daemon.serve(&Bar::new(), &|| ())
}

/// Starts the daemon and returns when its mount is ready.
pub(super) fn start(daemon: Daemon) -> Result<(), Failure> {
    let failed = |error| Failure::system("starting a daemon for", &daemon.store, &error);
    let (reader, writer) = std::io::pipe().map_err(failed)?;
    match sys::fork().map_err(failed)? {
        sys::Forked::Parent => {
            drop(writer);
            wait_until_ready(reader, &daemon.store)
        }
        sys::Forked::Child => {
            drop(reader);
            process::exit(run_in_background(&daemon, Parent::new(writer)));
        }
    }
}

fn run_in_background(daemon: &Daemon, parent: Parent) -> i32 {
    let outcome = enter_background(&daemon.store)
        .and_then(|()| daemon.serve(&parent, &|| parent.end(&json!({ "ready": true }))));
    let Err(error) = outcome else {
        return 0;
    };
    tracing::error!("{error}");
    parent.end(&json!({
        "error": { "what": error.what, "why": error.why },
        "hint": error.hint,
    }));
    1
}

fn enter_background(store: &Path) -> Result<(), Failure> {
    let failed = |error| Failure::system("starting a daemon for", store, &error);
    log::rotate(store)?;
    log::to_store(store)?;
    // Nobody sees stderr any more.
    std::panic::set_hook(Box::new(|panic| tracing::error!("{panic}")));
    std::env::set_current_dir("/").map_err(failed)?;
    sys::leave_terminal().map_err(failed)
}

fn wait_until_ready(reader: PipeReader, store: &Path) -> Result<(), Failure> {
    let bar = Bar::new();
    for line in BufReader::new(reader).lines() {
        let line: Value = line
            .and_then(|line| Ok(serde_json::from_str(&line)?))
            .map_err(|error| Failure::system("waiting for the daemon of", store, &error))?;
        if let Some(progress) = line.get("progress") {
            bar.show(progress);
        } else if line.get("ready").is_some() {
            return Ok(());
        } else if let Some(error) = line.get("error") {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(Failure {
                hint: line["hint"].as_str().map(str::to_owned),
                ..Failure::new(text(&error["what"]), text(&error["why"]))
            });
        }
    }
    Err(Failure::new(
        format_args!("mounting {}", store.display()),
        "the daemon ended before it was ready",
    )
    .hint(format_args!("see {}", store.join(log::FILE).display())))
}

/// The parent, as the daemon sees it until the mount is ready.
struct Parent(Mutex<Telling>);

struct Telling {
    /// None after the last line.
    pipe: Option<PipeWriter>,
    last: Option<std::time::Instant>,
}

impl Parent {
    fn new(pipe: PipeWriter) -> Parent {
        Parent(Mutex::new(Telling {
            pipe: Some(pipe),
            last: None,
        }))
    }

    /// The last line: the parent then ends.
    fn end(&self, line: &Value) {
        if let Some(mut pipe) = self.0.lock().pipe.take()
            && let Err(error) = writeln!(pipe, "{line}")
        {
            tracing::info!("whoever mounted this has gone: {error}");
        }
    }
}

impl Progress for Parent {
    fn update(&self, doing: &str, done: u64, total: u64) {
        let Some(mut telling) = self.0.try_lock() else {
            return;
        };
        if telling.last.is_some_and(|last| last.elapsed() < TELL_EVERY) {
            return;
        }
        telling.last = Some(std::time::Instant::now());
        let line = json!({"progress": {"doing": doing, "done": done, "total": total}});
        if let Some(pipe) = &mut telling.pipe
            && writeln!(pipe, "{line}").is_err()
        {
            // Interrupted by its user, maybe; the mount goes on.
            telling.pipe = None;
        }
    }
}

impl Daemon {
    /// Opens, mounts, serves, closes. `ready` is called when it is mounted.
    fn serve(&self, progress: &dyn Progress, ready: &dyn Fn()) -> Result<(), Failure> {
        let what = format!("mounting {}", self.store.display());
        if let Err(error) = sys::raise_file_limit() {
            tracing::warn!("the limit of open files stays as it is: {error}");
        }
        sys::limit_arenas();
        // Before threads are started, so that all have it.
        if let Err(error) = sys::become_io_flusher() {
            tracing::debug!("not an I/O flusher: {error}");
        }
        let mounting = Arc::new(AtomicBool::new(false));
        let outside = self
            .start_ender(mounting.clone())
            .and_then(|()| Outside::start())
            .map_err(|error| Failure::system("starting threads for", &self.store, &error))?;
        // All threads from here on, and this one, get at the store only.
        match sandbox::confine(&self.store) {
            Ok(confined) => tracing::info!("confined to the store: {confined:?}"),
            Err(error) => tracing::warn!("not confined to the store: {error}"),
        }
        let store = self.open_store(progress).map_err(of_library(&what))?;
        store.set_holder(&format!(
            "process {}, which mounted it on {}",
            process::id(),
            self.point.display()
        ));
        let verbs = Arc::new(StoreVerbs {
            store: store.clone(),
        });
        mounting.store(true, Ordering::SeqCst);
        let served = fuse::serve(
            store.clone(),
            &self.point,
            &self.mount,
            verbs,
            Arc::new(outside),
            |_| ready(),
        );
        let closed = store.close();
        served.map_err(of_library(&what))?;
        closed.map_err(of_library(format!("closing {}", self.store.display())))
    }

    /// Opens the store. While it is locked but not mounted, an earlier
    /// daemon is about to end, and is waited for.
    fn open_store(&self, progress: &dyn Progress) -> Result<Arc<Store>, Error> {
        let mut waited = Duration::ZERO;
        loop {
            match Store::open(&self.store, self.open.clone(), progress) {
                Err(Error::Locked { .. })
                    if waited < WAIT_FOR_EARLIER
                        && mounts().is_ok_and(|now| now.of_store(&self.store).is_none()) =>
                {
                    progress.update("waiting for another process to let go of the store", 0, 0);
                    thread::sleep(LOOK_EVERY);
                    waited += LOOK_EVERY;
                }
                opened => return opened,
            }
        }
    }

    /// Starts the thread that SIGTERM, SIGINT and SIGHUP are for.
    fn start_ender(&self, mounting: Arc<AtomicBool>) -> std::io::Result<()> {
        sys::block_end_signals()?;
        let (store, point) = (self.store.clone(), self.point.clone());
        thread::Builder::new()
            .name("signals".into())
            .spawn(move || {
                loop {
                    let signal = match sys::wait_for_end() {
                        Ok(signal) => signal,
                        Err(error) => {
                            tracing::error!("waiting for signals: {error}");
                            return;
                        }
                    };
                    tracing::info!("{signal}: unmounting");
                    if !mounting.load(Ordering::SeqCst) {
                        // Nothing was acknowledged to anybody yet, and what
                        // was begun is taken up by the next mount.
                        tracing::info!("ended before it was mounted");
                        process::exit(1);
                    }
                    end(&store, &point);
                }
            })
            .map(drop)
    }
}

/// How often it is tried again to unmount what is in use.
const RETRY_EVERY: Duration = Duration::from_secs(1);

/// Unmounts our mount, bind mounts of it included, and nobody else's that has
/// taken its place; while it is in use, as soon as it no longer is: whoever
/// ends a service signals once.
fn end(store: &Path, point: &Path) {
    // The signal may come just before the mount is there.
    let mut looks = 20;
    let (mut was_busy, mut was_there) = (false, false);
    while looks > 0 {
        let shown: Vec<PathBuf> = match mounts() {
            Ok(now) => {
                let ours = now.at(point);
                let ours = ours.filter(|mount| mount.is_own() && mount.source == store);
                let mut shown: Vec<PathBuf> = Vec::from_iter(ours.map(|mount| mount.point.clone()));
                let all = now.showing(store).map(|mount| mount.point.clone());
                shown.extend(all.filter(|shown| shown != point));
                shown
            }
            Err(error) => {
                tracing::error!("{error}");
                return;
            }
        };
        if shown.is_empty() {
            if was_there {
                return;
            }
            looks -= 1;
            thread::sleep(LOOK_EVERY);
            continue;
        }
        was_there = true;
        let (mut is_in_use, mut is_refused) = (false, false);
        // What was mounted last may lie in what was mounted before.
        for shown in shown.iter().rev() {
            match unmount(shown, false) {
                Ok(()) => {}
                Err(error) if is_busy(&error) => {
                    is_in_use = true;
                    if !std::mem::replace(&mut was_busy, true) {
                        tracing::warn!(
                            "{} is in use: it is unmounted once what uses it is closed or unmounted",
                            shown.display()
                        );
                    }
                }
                Err(error) => {
                    tracing::error!("{}", Failure::system("unmounting", shown, &error));
                    is_refused = true;
                }
            }
        }
        match (is_in_use, is_refused) {
            (true, _) => thread::sleep(RETRY_EVERY),
            (false, true) => return,
            (false, false) => {}
        }
    }
    tracing::warn!("{} does not show the store (any more)", point.display());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parent_hears_of_progress_and_then_of_the_end_only_once()
    -> Result<(), Box<dyn std::error::Error>> {
        let (reader, writer) = std::io::pipe()?;
        let parent = Parent::new(writer);
        parent.update("rebuilding", 1, 2);
        parent.end(&json!({ "error": {"what": "a", "why": "b"}, "hint": "c" }));
        parent.end(&json!({ "ready": true }));
        let failure = wait_until_ready(reader, Path::new("/store")).expect_err("it failed");
        assert_eq!(failure, Failure::new("a", "b").hint("c"));
        Ok(())
    }

    #[test]
    fn a_daemon_that_dies_silently_is_an_error() -> Result<(), Box<dyn std::error::Error>> {
        let (reader, writer) = std::io::pipe()?;
        drop(writer);
        let failure = wait_until_ready(reader, Path::new("/store")).expect_err("it died");
        assert!(failure.hint.is_some_and(|hint| hint.contains(log::FILE)));
        Ok(())
    }
}
