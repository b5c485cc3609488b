//! `snapdisk events`, `explain` and `wait`: what happened, and why not.

use super::ask::{Place, ask, mounts};
use super::bar::Bar;
use super::failure::Failure;
use super::out::{self, say};
use super::size::human;
use crate::mountinfo::{absolute, in_its_directory};
use crate::sys;
use crate::verbs::Request;
use clap::Args;
use serde_json::{Value, json};
use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::{Duration, Instant};

/// A request for events waits so long for one before it is made again. Until
/// it is answered nothing ends this process, not even SIGKILL.
const PATIENCE_S: u32 = 2;

/// Show what happened in a store
///
/// Snapshots taken, ready, deleted and by whom; requests that were refused
/// and why; slots of policies that were missed; disks rolled back, space won
/// back, damage found. Oldest first; with --follow, goes on with what happens
/// from now on. MNT/.status/events.jsonl is the same as JSON.
///
/// Examples:
///   snapdisk events /mnt/disks | tail
///   snapdisk events --follow --json /mnt/disks
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Events {
    /// The store, or where it is mounted
    #[arg(value_name = "STORE|MNT")]
    place: Option<PathBuf>,
    /// Go on with what happens from now on
    #[arg(short, long)]
    follow: bool,
    /// Print a line of JSON each
    #[arg(long)]
    json: bool,
}

/// Say why the last request was refused
///
/// By the path that it was for, or by the error that it gave: EBUSY, EDQUOT,
/// EINVAL and so on. Says what was tried, when, why it was refused, and what
/// to do.
///
/// Examples:
///   rmdir /mnt/disks/web/.snapshots/old || snapdisk explain /mnt/disks/web/.snapshots/old
///   snapdisk explain EDQUOT /mnt/disks
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Explain {
    /// A path in a mount, or the name of an error
    #[arg(value_name = "PATH|ERROR")]
    what: PathBuf,
    /// With an error, where the store is mounted; else the only one that is
    #[arg(value_name = "MNT")]
    place: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Wait until a snapshot is sealed
///
/// It can be read at once; sealed, all of it is in the store's packs. The
/// exit code is 1 if it is damaged or deleted meanwhile.
///
/// Example: snapdisk wait /mnt/disks/web/.snapshots/before-upgrade
#[derive(Args, Debug)]
pub(super) struct Wait {
    /// The snapshot's directory
    #[arg(value_name = "SNAPSHOT-DIR")]
    snapshot: PathBuf,
    /// Give up after so many seconds, with exit code 1
    #[arg(long, value_name = "SECONDS")]
    timeout: Option<u64>,
}

pub(super) fn events(events: &Events) -> anyhow::Result<ExitCode> {
    let place = Place::find(events.place.as_deref())?;
    if events.follow && matches!(place, Place::Unmounted(_)) {
        return Err(Failure::new("events --follow", "the store is not mounted")
            .hint("nothing happens in it; without --follow, what happened is shown")
            .into());
    }
    let mut first = 0;
    loop {
        let request = Request::Events {
            first,
            patience_s: if events.follow { PATIENCE_S } else { 0 },
        };
        let answer = ask(&place, &request, &mut |event| match events.json {
            true => say!("{event}"),
            false => say!("{}", line(event)),
        })?;
        if !events.follow || !out::is_read() {
            return Ok(ExitCode::SUCCESS);
        }
        first = answer["next"].as_u64().unwrap_or(first);
    }
}

/// An event for people: when, what, of what, and why.
fn line(event: &Value) -> String {
    let text = |key: &str| event[key].as_str();
    let time = text("time").unwrap_or("-");
    let what = text("event").unwrap_or("-").replace('_', " ");
    let mut of: Vec<String> = Vec::new();
    match (text("disk"), text("snapshot")) {
        (Some(disk), Some(snapshot)) => of.push(format!("{disk}@{snapshot}")),
        (Some(disk), None) => of.push(disk.to_owned()),
        _ => {}
    }
    for key in ["group", "image", "policy", "slot"] {
        of.extend(text(key).map(|value| format!("{key} {value}")));
    }
    if let (Some(operation), Some(path)) = (text("operation"), text("path")) {
        let errno = text("errno").unwrap_or_default();
        of.push(format!("{operation} {path}: {errno}"));
    }
    of.extend(text("by").map(|by| format!("by {by}")));
    of.extend(
        event["seconds"]
            .as_f64()
            .map(|seconds| format!("after {seconds:.1} s")),
    );
    of.extend(event["bytes"].as_u64().map(human));
    of.extend(text("reason").map(|reason| format!("({reason})")));
    let time = time.get(..19).unwrap_or(time).replace('T', " ");
    format!("{time} {what:<12} {}", of.join(" "))
        .trim_end()
        .to_owned()
}

/// The absolute path, also of what is not there because it was refused: its
/// directory is.
fn absolute_or_refused(path: &Path) -> io::Result<PathBuf> {
    match absolute(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            in_its_directory(path).unwrap_or(Err(error))
        }
        result => result,
    }
}

pub(super) fn explain(explain: &Explain) -> anyhow::Result<ExitCode> {
    let given = explain.what.to_string_lossy().into_owned();
    let is_error = given.starts_with('E') && given.bytes().all(|b| b.is_ascii_uppercase());
    let (place, inner) = match is_error {
        true => (Place::find(explain.place.as_deref())?, None),
        false => {
            let path = absolute_or_refused(&explain.what)
                .map_err(|error| Failure::system("opening", &explain.what, &error))?;
            let there = match path.parent() {
                Some(parent) if path.symlink_metadata().is_err() => parent,
                _ => &path,
            };
            let place = Place::find(Some(there))?;
            // As the store's tree has it, bind mounts or not.
            let inner = match &place {
                Place::Mounted(_) => mounts()?
                    .holding(&path)
                    .and_then(|mount| mount.inner(&path)),
                Place::Unmounted(_) => None,
            };
            (place, Some(inner.unwrap_or_default()))
        }
    };
    let mut last: Option<Value> = None;
    let request = Request::Events {
        first: 0,
        patience_s: 0,
    };
    ask(&place, &request, &mut |event| {
        let on = event["path"].as_str().unwrap_or_default();
        let fits = match &inner {
            None => event["errno"] == given.as_str(),
            Some(inner) => inner.as_os_str().is_empty() || concerns(on, inner),
        };
        if event["event"] == "refused" && fits {
            last = Some(event.clone());
        }
    })?;
    let Some(event) = last else {
        return Err(Failure::new(
            format_args!("explain {given}"),
            "no refusal is remembered that this is about",
        )
        .hint("`snapdisk events` shows everything that happened")
        .into());
    };
    if explain.json {
        say!("{event}");
        return Ok(ExitCode::SUCCESS);
    }
    let text = |key: &str| event[key].as_str().unwrap_or("-");
    say!("{:<8} {} of {}", "what", text("operation"), text("path"));
    say!("{:<8} {}", "when", text("time"));
    say!("{:<8} {}", "error", text("errno"));
    say!("{:<8} {}", "why", text("reason"));
    if let Some(hint) = advice(text("errno")) {
        say!("{:<8} {hint}", "to do");
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether a refusal of `on`, a path or `a to b`, concerns a path or what is
/// below it.
fn concerns(on: &str, inner: &Path) -> bool {
    on.split(" to ")
        .any(|path| Path::new(path).starts_with(inner))
}

fn advice(errno: &str) -> Option<&'static str> {
    Some(match errno {
        "EBUSY" => {
            "info.toml of a snapshot lists who holds it under held_by; `losetup -a` and \
             `fuser -v FILE` show who has an image open"
        }
        "EDQUOT" => {
            "delete snapshots that are not needed, or allow more with `snapdisk set MNT \
             max_manual_snapshots=…`, or `max_snapshots=…` if that is what is reached"
        }
        "EINVAL" => "names: letters, digits and ._-:+@=; `snapdisk policy check FILE` for policies",
        "EROFS" => "snapshots, images and .status never change; `cp` a snapshot's disk.img instead",
        "ENOTEMPTY" => "remove what is in it first; a snapshot goes with `rmdir` alone",
        "EPERM" => "README.md shows what the tree has a meaning for",
        "ENOSPC" => "delete snapshots, then `snapdisk gc`, or make the store's filesystem larger",
        "EIO" => "`snapdisk status` says what needs attention, `snapdisk verify` checks everything",
        _ => return None,
    })
}

pub(super) fn wait(wait: &Wait) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let what = || format!("waiting for {}", wait.snapshot.display());
    let mut pause = Duration::from_millis(20);
    let bar = Bar::new();
    loop {
        let state =
            sys::get_xattr(&wait.snapshot, "snapdisk.state").map_err(|error| {
                match error.raw_os_error() {
                    Some(libc::ENODATA | libc::EOPNOTSUPP) => {
                        Failure::new(what(), "this is no snapshot's directory")
                            .hint("name one in a disk's .snapshots")
                    }
                    _ => Failure::system("waiting for", &wait.snapshot, &error),
                }
            })?;
        match &state[..] {
            b"ready" => {
                bar.clear();
                return Ok(ExitCode::SUCCESS);
            }
            b"sealing" => {
                let done = sys::get_xattr(&wait.snapshot, "snapdisk.progress").unwrap_or_default();
                let done: u64 = String::from_utf8_lossy(&done).parse().unwrap_or(0);
                bar.show(&json!({ "doing": "sealing", "done": done, "total": 100 }));
            }
            other => {
                bar.clear();
                let state = String::from_utf8_lossy(other);
                return Err(Failure::new(what(), format_args!("it is {state}"))
                    .hint("`snapdisk verify` says what is damaged")
                    .into());
            }
        }
        let late = wait
            .timeout
            .is_some_and(|most| began.elapsed() >= Duration::from_secs(most));
        if late {
            bar.clear();
            let error = io::Error::from(io::ErrorKind::TimedOut);
            return Err(
                Failure::new(what(), format_args!("it is still being sealed: {error}")).into(),
            );
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_secs(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_for_people() {
        let taken = json!({"sequence": 3, "time": "2026-11-26T03:00:00.001Z", "event": "taken",
            "disk": "web", "snapshot": "s1", "by": "user 0", "bytes": 1024});
        assert_eq!(
            line(&taken),
            "2026-11-26 03:00:00 taken        web@s1 by user 0 1.0 KiB"
        );
        let refused = json!({"time": "2026-11-26T03:00:00.001Z", "event": "refused",
            "operation": "rmdir", "path": "web/.snapshots/s1", "errno": "EBUSY", "reason": "open"});
        assert!(line(&refused).ends_with("rmdir web/.snapshots/s1: EBUSY (open)"));
    }

    #[test]
    fn a_refusal_concerns_its_path_and_those_above_it() {
        assert!(concerns(
            "web/.snapshots/s1",
            Path::new("web/.snapshots/s1")
        ));
        assert!(concerns("web/.snapshots/s1", Path::new("web")));
        assert!(concerns("web to db", Path::new("db")));
        assert!(!concerns("web2", Path::new("web")));
    }
}
