//! `snapdisk capacity`, `reclaim` and `diff`: what takes how much room, and
//! what changed.

use super::ask::{Place, ask, things_of};
use super::failure::Failure;
use super::out::say;
use super::size::human;
use super::table;
use super::value::{array, plain, size};
use crate::store::history::sparkline;
use crate::time;
use crate::verbs::Request;
use clap::Args;
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Columns of a line of bars.
const BARS: usize = 40;

/// Show what takes how much room, and how it grew
///
/// Of each disk: what it and its snapshots have stored (STORED), what
/// deleting all its snapshots would free (CHAIN), and how many snapshots it
/// has of how many. What disks share counts for each of them. With a disk,
/// the same of each snapshot: UNIQUE is what deleting it alone would free.
/// The line of bars is its history, sampled once an hour and kept for a year;
/// MNT/.status has it as capacity.csv and, drawn, as capacity.svg.
///
/// Examples:
///   snapdisk capacity /mnt/disks
///   snapdisk capacity /mnt/disks/web --since 2026-11-01 --until 2026-12-01
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Capacity {
    /// Where a store is mounted, a disk's directory in it, or a store
    #[arg(value_name = "MNT|DISK-DIR|STORE")]
    place: Option<PathBuf>,
    /// The history from then on, as 2026-11-01 or 2026-11-01T12:00
    #[arg(long, value_name = "DATE", value_parser = date)]
    since: Option<i64>,
    /// The history up to then
    #[arg(long, value_name = "DATE", value_parser = date)]
    until: Option<i64>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Say what deleting snapshots would free
///
/// Together: what only two of them share is freed when both go, so this is
/// more than what each alone would free. Nothing is deleted.
///
/// Examples:
///   snapdisk reclaim /mnt/disks/web/.snapshots/auto-*
///   snapdisk reclaim --store /var/lib/snapdisk web@monday web@tuesday
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Reclaim {
    /// The snapshots' directories in the mount; with --store, DISK@NAME
    #[arg(required = true, value_name = "SNAPSHOT")]
    snapshots: Vec<OsString>,
    /// The store, to name snapshots by their names
    #[arg(long)]
    store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Show where two snapshots, disks or images differ
///
/// Lines of offset and length in bytes, in order, in blocks of 4 KiB; then
/// the sum on stderr. It takes time by what changed, not by the size. If the
/// sizes differ, what only one has counts as changed. A live disk is compared
/// as it is while it is read.
///
/// Examples:
///   snapdisk diff /mnt/disks/web/.snapshots/monday /mnt/disks/web
///   snapdisk diff --store /var/lib/snapdisk web@monday web@tuesday
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Diff {
    /// A snapshot's or disk's directory, or an image; with --store, DISK,
    /// DISK@NAME or .images/NAME
    a: OsString,
    /// The other
    b: OsString,
    /// The store, to name things by their names
    #[arg(long)]
    store: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn date(text: &str) -> Result<i64, String> {
    time::parse(text).ok_or_else(|| format!("{text:?} is no date like 2026-11-01"))
}

pub(super) fn capacity(capacity: &Capacity) -> anyhow::Result<ExitCode> {
    let place = Place::find(capacity.place.as_deref())?;
    let disk = match &capacity.place {
        Some(path) => super::report::disk_of(path)?,
        None => None,
    };
    let request = Request::Capacity {
        disk: disk.clone(),
        since_ns: capacity.since.unwrap_or(i64::MIN),
        until_ns: capacity.until.unwrap_or(i64::MAX),
    };
    let answer = ask(&place, &request, &mut |_| ())?;
    if capacity.json {
        say!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    match disk {
        Some(_) => print_snapshots(&answer["disks"][0]),
        None => print_store(&answer),
    }
    print_history(&answer["history"], disk.as_deref());
    Ok(ExitCode::SUCCESS)
}

fn print_store(answer: &Value) {
    for (name, key) in [
        ("shown by all", "logical_bytes"),
        ("unpacked", "plain_bytes"),
        ("stored", "stored_bytes"),
        ("not sealed", "unsealed_bytes"),
        ("to be freed", "unreached_bytes"),
        ("free", "free_bytes"),
    ] {
        say!("{name:<16} {}", size(&answer[key]));
    }
    say!("{:<16} {}", "deduplication", answer["deduplication"]);
    say!("{:<16} {}\n", "compression", answer["compression"]);
    let rows: Vec<Vec<String>> = array(&answer["disks"])
        .iter()
        .map(|disk| {
            vec![
                plain(&disk["name"]),
                size(&disk["size"]),
                size(&disk["stored_bytes"]),
                size(&disk["chain_bytes"]),
                size(&disk["unsealed_bytes"]),
                format!("{}/{}", disk["manual"], disk["max_manual"]),
                format!("{}/{}", disk["automatic"], disk["max_automatic"]),
            ]
        })
        .collect();
    let header = [
        "DISK", "SIZE", "STORED", "CHAIN", "UNSEALED", "MANUAL", "AUTO",
    ];
    table::print(&header, 1, &rows);
}

fn print_snapshots(disk: &Value) {
    say!(
        "disk {}: size {}, stored {}, its {} snapshots {}",
        plain(&disk["name"]),
        size(&disk["size"]),
        size(&disk["stored_bytes"]),
        array(&disk["snapshots"]).len(),
        size(&disk["chain_bytes"])
    );
    let rows: Vec<Vec<String>> = array(&disk["snapshots"])
        .iter()
        .map(|snapshot| {
            vec![
                plain(&snapshot["name"]),
                size(&snapshot["size"]),
                size(&snapshot["referred_bytes"]),
                size(&snapshot["stored_bytes"]),
                size(&snapshot["unique_bytes"]),
            ]
        })
        .collect();
    table::print(
        &["SNAPSHOT", "SIZE", "REFERS TO", "STORED", "UNIQUE"],
        1,
        &rows,
    );
}

fn print_history(history: &Value, disk: Option<&str>) {
    let rows = array(history);
    let mut names: Vec<String> = rows.iter().map(|row| plain(&row["disk"])).collect();
    names.sort();
    names.dedup();
    names.retain(|name| disk.is_some() || !name.is_empty() || rows.len() > 1);
    let lines: Vec<Vec<String>> = names
        .iter()
        .filter_map(|name| {
            let of: Vec<&Value> = rows
                .iter()
                .filter(|row| plain(&row["disk"]) == *name)
                .collect();
            let values: Vec<u64> = of
                .iter()
                .filter_map(|row| row["stored_bytes"].as_u64())
                .collect();
            if values.len() < 2 {
                return None;
            }
            let shown = if name.is_empty() { "(store)" } else { name };
            let from = plain(&of.first()?["time"]);
            Some(vec![
                shown.to_owned(),
                from.get(..10).unwrap_or(&from).to_owned(),
                sparkline(&values, BARS),
                human(values.last().copied().unwrap_or(0)),
            ])
        })
        .collect();
    if !lines.is_empty() {
        say!();
    }
    table::print(&["STORED BY", "SINCE", "HISTORY", "NOW"], 3, &lines);
}

/// The place and the names of things: by their paths in a mount, or by their
/// names in a store.
fn things(store: Option<&Path>, given: &[OsString]) -> Result<(Place, Vec<String>), Failure> {
    if let Some(store) = store {
        let names = given.iter().map(|name| name.to_string_lossy().into_owned());
        return Ok((Place::find_store(store)?, names.collect()));
    }
    things_of(given)
}

pub(super) fn reclaim(reclaim: &Reclaim) -> anyhow::Result<ExitCode> {
    let (place, snapshots) = things(reclaim.store.as_deref(), &reclaim.snapshots)?;
    let answer = ask(&place, &Request::Reclaim { snapshots }, &mut |_| ())?;
    if reclaim.json {
        say!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    say!(
        "deleting {} snapshots frees {}",
        answer["snapshots"],
        size(&answer["bytes"])
    );
    say!(
        "each of them alone, added up: {}",
        size(&answer["sum_of_unique_bytes"])
    );
    if answer["sealing"] != json!(0) {
        say!(
            "{} of them are being sealed and not counted",
            answer["sealing"]
        );
    }
    Ok(ExitCode::SUCCESS)
}

pub(super) fn diff(diff: &Diff) -> anyhow::Result<ExitCode> {
    let given = [diff.a.clone(), diff.b.clone()];
    let (place, names) = things(diff.store.as_deref(), &given)?;
    let [a, b] = &names[..] else {
        return Err(Failure::usage("diff", "two things are compared").into());
    };
    let request = Request::Diff {
        a: a.clone(),
        b: b.clone(),
    };
    let mut extents = Vec::new();
    let answer = ask(&place, &request, &mut |extent| match diff.json {
        true => extents.push(extent.clone()),
        false => say!("{} {}", extent["offset"], extent["length"]),
    })?;
    if diff.json {
        let mut answer = answer;
        answer["a"] = json!(a);
        answer["b"] = json!(b);
        answer["extents"] = extents.into();
        say!("{answer}");
    } else {
        eprintln!(
            "{} in {} extents differ, of {} and {}",
            size(&answer["changed_bytes"]),
            answer["extents"],
            size(&answer["size_a"]),
            size(&answer["size_b"])
        );
    }
    Ok(ExitCode::SUCCESS)
}
