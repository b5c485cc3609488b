//! `snapdisk policy list`, `plan` and `check`.

use super::ask::{Place, ask};
use super::failure::Failure;
use super::out::say;
use super::table;
use super::value::{array, plain};
use crate::manifest::Settings;
use crate::policy::{self, Facts, Policy};
use crate::time;
use crate::verbs::{Request, Setting};
use clap::{Args, Subcommand};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Look at policies: which there are, what they will do, whether one is right
///
/// A policy is a file, policy.toml in a disk's .snapshots or one in
/// MNT/.policies that is attached with a symbolic link:
///   hours          = [0, 6, 12, 18]      # whole hours 0-23, at least one
///   weekdays       = ["mon", "thu"]      # default: every day
///   retain_days    = 30                  # 1-65536 or "forever"; default 30
///   timezone       = "Asia/Shanghai"     # default: the host's
///   skip_unchanged = false               # true: none if nothing was written
///
/// Examples:
///   snapdisk policy check nightly.toml
///   snapdisk policy plan /mnt/disks/web --days 30
///   snapdisk policy list /mnt/disks
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Policies {
    #[command(subcommand)]
    what: What,
}

#[derive(Subcommand, Debug)]
enum What {
    List(List),
    Plan(Plan),
    Check(Check),
}

/// List policies, the disks that each one holds, and their next slots
///
/// Example: snapdisk policy list /mnt/disks
#[derive(Args, Debug)]
struct List {
    /// The store, or where it is mounted
    #[arg(value_name = "STORE|MNT")]
    place: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Say which snapshots a policy is going to take and delete, when and why
///
/// Of a disk: with its own snapshots, the policy in force or one that is
/// only thought of. Of a file: for a disk without any snapshot.
///
/// Examples:
///   snapdisk policy plan /mnt/disks/web --days 30
///   snapdisk policy plan /mnt/disks/web --with new.toml --days 30
///   snapdisk policy plan new.toml --days 7 --json
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
struct Plan {
    /// A disk's directory in a mount, or a policy's file
    #[arg(value_name = "DISK-DIR|FILE")]
    of: PathBuf,
    /// How far ahead
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..=3660))]
    days: u32,
    /// A policy's file to take instead of the one that the disk has
    #[arg(long, value_name = "FILE")]
    with: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Check a policy's file
///
/// Example: snapdisk policy check nightly.toml
#[derive(Args, Debug)]
struct Check {
    /// The file
    file: PathBuf,
}

pub(super) fn run(policies: &Policies) -> anyhow::Result<ExitCode> {
    match &policies.what {
        What::List(verb) => list(verb),
        What::Plan(verb) => plan(verb),
        What::Check(verb) => {
            read(&verb.file)?;
            say!("{} is a policy", verb.file.display());
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn read_text(file: &Path) -> Result<String, Failure> {
    fs::read_to_string(file).map_err(|error| Failure::system("reading", file, &error))
}

fn read(file: &Path) -> Result<(Policy, String), Failure> {
    let text = read_text(file)?;
    let policy = policy::parse(&text).map_err(|rejection| {
        Failure::new(file.display(), rejection)
            .hint("`snapdisk policy --help` shows what may be in it")
    })?;
    Ok((policy, text))
}

fn list(list: &List) -> anyhow::Result<ExitCode> {
    let place = Place::find(list.place.as_deref())?;
    let answer = ask(&place, &Request::Policies {}, &mut |_| ())?;
    if list.json {
        say!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = array(&answer["policies"])
        .iter()
        .map(|policy| {
            let disks: Vec<String> = array(&policy["disks"]).iter().map(plain).collect();
            vec![
                plain(&policy["policy"]),
                match policy["error"].as_str() {
                    Some(error) => format!("unusable: {error}"),
                    None => plain(&policy["next"]),
                },
                disks.len().to_string(),
                disks.join(" "),
            ]
        })
        .collect();
    if rows.is_empty() {
        say!("no policies; `snapdisk policy --help` shows how to make one");
    }
    table::print(&["POLICY", "NEXT", "DISKS", "WHICH"], 4, &rows);
    Ok(ExitCode::SUCCESS)
}

fn plan(plan: &Plan) -> anyhow::Result<ExitCode> {
    let answer = if plan.of.is_dir() {
        let disk = super::report::disk_of(&plan.of)?.ok_or_else(|| {
            Failure::new(plan.of.display(), "this is no disk of a mounted store")
                .hint("name a disk's directory in the mount, or a policy's file")
        })?;
        let text = match &plan.with {
            Some(file) => Some(read(file)?.1),
            None => None,
        };
        let request = Request::Plan {
            disk,
            text,
            days: plan.days,
        };
        ask(&Place::find(Some(&plan.of))?, &request, &mut |_| ())?
    } else {
        if plan.with.is_some() {
            return Err(Failure::usage("policy plan", "--with is for a disk").into());
        }
        of_file(&read(&plan.of)?.0, plan.days)
    };
    if plan.json {
        say!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let line = |verb: &'static str| {
        move |one: &Value| {
            let key = one["time"].as_str().unwrap_or_default().to_owned();
            let snapshot = plain(&one["snapshot"]);
            let verb = if snapshot == "-" { "-" } else { verb };
            let cells = vec![
                plain(&one["local"]),
                verb.to_owned(),
                snapshot,
                plain(&one["reason"]),
            ];
            (key, cells)
        }
    };
    let slots = array(&answer["slots"]).iter().map(line("take"));
    let deletions = array(&answer["deletions"]).iter().map(line("delete"));
    let mut lines: Vec<(String, Vec<String>)> = slots.chain(deletions).collect();
    // A slot comes before what makes room for it.
    lines.sort_by(|a, b| a.0.cmp(&b.0));
    let rows: Vec<Vec<String>> = lines.into_iter().map(|(_, cells)| cells).collect();
    if rows.is_empty() {
        say!("nothing in {} days", plan.days);
    }
    table::print(&["WHEN", "", "SNAPSHOT", "WHY"], 4, &rows);
    Ok(ExitCode::SUCCESS)
}

/// What a policy would do with a disk that has no snapshot.
fn of_file(policy: &Policy, days: u32) -> Value {
    let now_ns = time::now_ns();
    let facts = Facts {
        policy,
        since_ns: now_ns,
        slot_ns: None,
        snapshots: &[],
        unchanged: false,
        unable: None,
        settings: Settings::default(),
        now_ns,
    };
    let planned = policy::plan(&facts, now_ns.saturating_add(policy::days_ns(days)));
    policy::plan_json(policy, &planned)
}

/// Change how many snapshots a disk may have, or whether to recompress
///
/// max_manual_snapshots and max_automatic_snapshots are 256 each,
/// max_snapshots, of both together, is not limited. Nothing is deleted by
/// setting one; with the next automatic snapshot the oldest automatic ones
/// above it go. With recompress=on, what was sealed more than
/// an hour ago is compressed again, more densely, while nothing goes through
/// the mount and the machine is idle; it is off. Without a setting, tells
/// what they are.
///
/// Examples:
///   snapdisk set /mnt/disks max_manual_snapshots=512
///   snapdisk set /var/lib/snapdisk max_snapshots=none
///   snapdisk set /mnt/disks recompress=on
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Set {
    /// The store, or where it is mounted
    #[arg(value_name = "STORE|MNT")]
    place: PathBuf,
    /// NAME=NUMBER, max_snapshots=none, or recompress=on or off
    #[arg(value_name = "NAME=VALUE", value_parser = setting)]
    settings: Vec<(String, Setting)>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What can be set.
const SETTINGS: [&str; 4] = [
    "max_manual_snapshots",
    "max_automatic_snapshots",
    "max_snapshots",
    "recompress",
];

fn setting(text: &str) -> Result<(String, Setting), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| format!("{text:?} is not NAME=VALUE"))?;
    if !SETTINGS.contains(&name) {
        return Err(format!(
            "there is no setting {name}: there are {}",
            SETTINGS.join(", ")
        ));
    }
    let setting = match value {
        "none" => Setting::Limit(None),
        "on" => Setting::Switch(true),
        "off" => Setting::Switch(false),
        number => Setting::Limit(Some(number.parse().map_err(|_| {
            format!("{number:?} is no number, and not `none`, `on` or `off`")
        })?)),
    };
    let fits = match setting {
        Setting::Switch(_) => name == "recompress",
        Setting::Limit(None) => name == "max_snapshots",
        Setting::Limit(Some(_)) => name != "recompress",
    };
    if !fits {
        return Err(format!("{name} cannot be {value}"));
    }
    Ok((name.to_owned(), setting))
}

pub(super) fn set(set: &Set) -> anyhow::Result<ExitCode> {
    let place = Place::find(Some(&set.place))?;
    let request = Request::Settings {
        set: set.settings.iter().cloned().collect(),
    };
    let answer = ask(&place, &request, &mut |_| ())?;
    if set.json {
        say!("{answer}");
        return Ok(ExitCode::SUCCESS);
    }
    let all = answer.as_object().into_iter().flatten();
    for (name, value) in all {
        match value {
            Value::Null => say!("{name}=none"),
            Value::Bool(true) => say!("{name}=on"),
            Value::Bool(false) => say!("{name}=off"),
            value => say!("{name}={value}"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_names_and_values() {
        let set = |name: &str, value| Ok((name.to_owned(), value));
        let (limit, switch) = ("max_snapshots", "recompress");
        for (text, expected) in [
            ("max_snapshots=7", set(limit, Setting::Limit(Some(7)))),
            ("max_snapshots=none", set(limit, Setting::Limit(None))),
            ("recompress=on", set(switch, Setting::Switch(true))),
            ("recompress=off", set(switch, Setting::Switch(false))),
        ] {
            assert_eq!(setting(text), expected);
        }
        for bad in ["", "=", "=-1", "=x", "=99999999999", "=on"] {
            assert!(setting(&format!("{limit}{bad}")).is_err(), "{bad}");
        }
        for bad in ["recompress=3", "max_manual_snapshots=none", "max_hourly=3"] {
            assert!(setting(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_plan_of_a_file_needs_no_store() {
        let policy = policy::parse("hours = [0, 12]\nretain_days = 1\n").expect("a policy");
        let plan = of_file(&policy, 4);
        assert!((7..=9).contains(&array(&plan["slots"]).len()), "{plan}");
        assert!(!array(&plan["deletions"]).is_empty(), "{plan}");
        assert_eq!(plan["slots"][0]["reason"], "its slot");
    }
}
