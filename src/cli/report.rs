//! `snapdisk status`, `list`, `verify` and `gc`: questions about a store.

use super::ask::{Place, ask, mounts};
use super::failure::Failure;
use super::out::say;
use super::table;
use super::value::{array, plain, size};
use crate::mountinfo::absolute;
use crate::verbs::Request;
use clap::Args;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Component, Path, PathBuf};
use std::process::ExitCode;

/// Show a store in numbers
///
/// Space used and free, disks, snapshots, chunks, what waits to be sealed,
/// and what needs attention: then the exit code is 1. Without an argument, of
/// the only store that is mounted.
///
/// Example: snapdisk status /mnt/disks
#[derive(Args, Debug)]
pub(super) struct Status {
    /// The store, or where it is mounted
    #[arg(value_name = "STORE|MNT")]
    place: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// List disks and images, or a disk's snapshots
///
/// DATA is what is not a hole; UNIQUE is what deleting that snapshot alone
/// would free.
///
/// Examples:
///   snapdisk list /mnt/disks         disks and images
///   snapdisk list /mnt/disks/web     snapshots of web
///   snapdisk list --store /var/lib/snapdisk web
#[derive(Args, Debug)]
#[command(
    verbatim_doc_comment,
    override_usage = "snapdisk list [--json] [MNT|DISK-DIR|STORE]\n       \
                      snapdisk list [--json] --store STORE [DISK]"
)]
pub(super) struct List {
    /// Where a store is mounted, a disk's directory in it, or a store; with
    /// --store, a disk's name
    #[arg(value_name = "MNT|DISK-DIR|STORE|DISK")]
    what: Option<OsString>,
    /// The store, to name disks by their names
    #[arg(long)]
    store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Read everything and check that it is what was written
///
/// Every manifest, map page and chunk is read and compared with its checksum
/// and id. What is wrong is listed, and the exit code is then 1. Mounted
/// stores stay in use meanwhile.
///
/// With --repair, what can be mended is mended first: the index is made anew,
/// what is sound in damaged packs is copied out of them, another copy of a
/// damaged chunk is used where there is one, and what nothing names is
/// removed. Snapshots that lost something are marked and stay readable
/// elsewhere; gc leaves what may still be needed. Nothing is thrown away that
/// anything shows.
///
/// Examples:
///   snapdisk verify /mnt/disks
///   snapdisk verify --repair /var/lib/snapdisk
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Verify {
    /// The store, or where it is mounted
    #[arg(value_name = "STORE|MNT")]
    place: PathBuf,
    /// Mend what can be mended first
    #[arg(long)]
    repair: bool,
    /// With --repair: forget disks and images whose manifests are lost, so
    /// that what only they had is freed
    #[arg(long, requires = "repair")]
    forget_lost: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Free what nothing refers to
///
/// A mounted store does so by itself some time after something was deleted;
/// this does it now. It deletes nothing if anything in the store cannot be
/// read.
///
/// Example: snapdisk gc --dry-run /mnt/disks
#[derive(Args, Debug)]
pub(super) struct Gc {
    /// The store, or where it is mounted
    #[arg(value_name = "STORE|MNT")]
    place: PathBuf,
    /// Only say what it would free
    #[arg(long)]
    dry_run: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `status` shows first, in this order.
const FIRST: [&str; 16] = [
    "store",
    "uuid",
    "format",
    "chunk_size",
    "disks",
    "images",
    "snapshots",
    "stored_bytes",
    "plain_bytes",
    "packs",
    "chunks",
    "unsealed_layers",
    "layer_bytes",
    "total_bytes",
    "free_bytes",
    "attention",
];

pub(super) fn status(status: &Status) -> anyhow::Result<ExitCode> {
    let place = Place::find(status.place.as_deref())?;
    let mut answer = ask(&place, &Request::Status {}, &mut |_| ())?;
    let mounted_on = match &place {
        Place::Mounted(point) => Some(point.display().to_string()),
        Place::Unmounted(_) => None,
    };
    answer["mounted_on"] = json!(mounted_on);
    if status.json {
        say!("{answer}");
    } else {
        print_fields(&answer, &FIRST);
        if !needs_attention(&answer) {
            say!("nothing needs attention");
        }
    }
    Ok(match needs_attention(&answer) {
        true => ExitCode::FAILURE,
        false => ExitCode::SUCCESS,
    })
}

fn needs_attention(status: &Value) -> bool {
    !array(&status["attention"]).is_empty()
}

pub(super) fn list(list: &List) -> anyhow::Result<ExitCode> {
    let (place, disk) = match (&list.store, &list.what) {
        (Some(store), disk) => {
            let disk = disk
                .as_ref()
                .map(|disk| disk.to_string_lossy().into_owned());
            (Place::find_store(store)?, disk)
        }
        (None, None) => (Place::find(None)?, None),
        (None, Some(path)) => {
            let path = Path::new(path);
            (Place::find(Some(path))?, disk_of(path)?)
        }
    };
    let is_disk = disk.is_some();
    let answer = ask(&place, &Request::List { disk }, &mut |_| ())?;
    if list.json {
        say!("{answer}");
    } else if is_disk {
        print_snapshots(&answer);
    } else {
        print_disks(&answer);
    }
    Ok(ExitCode::SUCCESS)
}

/// The disk that a path in a mount means; None for the mount itself, and for
/// an unmounted store.
pub(super) fn disk_of(path: &Path) -> Result<Option<String>, Failure> {
    let path = absolute(path).map_err(|error| Failure::system("opening", path, &error))?;
    let now = mounts()?;
    let Some(mount) = now.holding(&path).filter(|mount| mount.is_own()) else {
        return Ok(None);
    };
    let inner = mount.inner(&path).unwrap_or_default();
    match inner.components().next() {
        Some(Component::Normal(disk)) => match disk.to_string_lossy() {
            special if special.starts_with('.') => {
                Err(Failure::new(path.display(), "this is not in a disk")
                    .hint("name where the store is mounted, or a disk's directory"))
            }
            disk => Ok(Some(disk.into_owned())),
        },
        _ => Ok(None),
    }
}

pub(super) fn verify(verify: &Verify) -> anyhow::Result<ExitCode> {
    let place = Place::find(Some(&verify.place))?;
    let mut findings = Vec::new();
    let request = Request::Verify {
        repair: verify.repair,
        forget_lost: verify.forget_lost,
    };
    let report = ask(&place, &request, &mut |finding| {
        if !verify.json {
            say!("damaged: {}", finding["text"].as_str().unwrap_or_default());
        }
        findings.push(finding.clone());
    })?;
    let is_whole = findings.is_empty();
    if verify.json {
        say!("{}", json!({ "report": report, "findings": findings }));
    } else {
        print_fields(&report["repair"], &["damaged_packs", "copied_chunks"]);
        print_fields(&report, &["manifests", "layers", "maps", "packs", "chunks"]);
        if is_whole {
            say!("all is well");
        }
    }
    if is_whole {
        return Ok(ExitCode::SUCCESS);
    }
    eprintln!("snapdisk: verify: {} found damaged", findings.len());
    eprintln!(
        "  hint: {}",
        if verify.repair {
            "copy what is still readable to another store, then delete the snapshots that \
             are damaged and repair again"
        } else {
            "`snapdisk verify --repair` mends what can be mended; before that, keep a copy of \
             the store if you can"
        }
    );
    Ok(ExitCode::FAILURE)
}

pub(super) fn gc(gc: &Gc) -> anyhow::Result<ExitCode> {
    let place = Place::find(Some(&gc.place))?;
    let request = Request::Gc {
        dry_run: gc.dry_run,
    };
    let report = ask(&place, &request, &mut |_| ())?;
    if gc.json {
        say!("{report}");
    } else {
        print_fields(
            &report,
            &["dry_run", "freed_bytes", "live_bytes", "dead_bytes"],
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints the fields of a report, those named `first` before the others.
fn print_fields(report: &Value, first: &[&str]) {
    let Some(fields) = report.as_object() else {
        return;
    };
    let others = fields
        .keys()
        .map(String::as_str)
        .filter(|key| !first.contains(key));
    for key in first.iter().copied().chain(others) {
        let name = key.strip_suffix("_bytes").unwrap_or(key).replace('_', " ");
        match fields.get(key) {
            None | Some(Value::Null | Value::Object(_)) => {}
            Some(Value::Array(lines)) => {
                for line in lines {
                    say!("{name:<16} {}", plain(line));
                }
            }
            Some(value) if key == "bytes" || key.ends_with("_bytes") || key == "chunk_size" => {
                say!("{name:<16} {}", size(value));
            }
            Some(value) => say!("{name:<16} {}", plain(value)),
        }
    }
}

fn rows(list: &Value, row: impl Fn(&Value) -> Vec<String>) -> Vec<Vec<String>> {
    array(list).iter().map(row).collect()
}

/// Says on stderr why a disk answers errors, or why something is not told.
fn complain(what: &Value, why: &Value) {
    if let Some(why) = why.as_str() {
        eprintln!("snapdisk: {}: {why}", plain(what));
    }
}

fn print_disks(answer: &Value) {
    for disk in array(&answer["disks"]) {
        complain(&disk["name"], &disk["error"]);
    }
    let disks = rows(&answer["disks"], |disk| {
        vec![
            plain(&disk["name"]),
            size(&disk["size"]),
            size(&disk["data_bytes"]),
            plain(&disk["snapshots"]),
        ]
    });
    if disks.is_empty() {
        say!("no disks; `mkdir MNT/NAME` makes one");
    }
    table::print(&["DISK", "SIZE", "DATA", "SNAPSHOTS"], 1, &disks);
    let images = rows(&answer["images"], |image| {
        vec![
            plain(&image["name"]),
            plain(&image["snapshot"]),
            size(&image["size"]),
        ]
    });
    if !images.is_empty() {
        say!();
    }
    table::print(&["IMAGE", "OF SNAPSHOT", "SIZE"], 2, &images);
}

fn print_snapshots(answer: &Value) {
    let disk = &answer["disk"];
    complain(&disk["name"], &disk["error"]);
    complain(&disk["name"], &answer["error"]);
    say!(
        "disk {}: size {}, data {}",
        plain(&disk["name"]),
        size(&disk["size"]),
        size(&disk["data_bytes"])
    );
    let snapshots = rows(&answer["snapshots"], |snapshot| {
        let state = match snapshot["state"].as_str() {
            Some("sealing") => format!("sealing {}%", plain(&snapshot["progress"])),
            _ => plain(&snapshot["state"]),
        };
        vec![
            plain(&snapshot["name"]),
            plain(&snapshot["created"]),
            state,
            size(&snapshot["size"]),
            size(&snapshot["unique_bytes"]),
        ]
    });
    if snapshots.is_empty() {
        say!("no snapshots; `mkdir DISK-DIR/.snapshots/NAME` takes one");
    }
    table::print(
        &["SNAPSHOT", "CREATED", "STATE", "SIZE", "UNIQUE"],
        3,
        &snapshots,
    );
}
