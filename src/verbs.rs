//! What can be asked of a whole store. The same code answers for a mounted
//! store, through its control file, and for an unmounted one, called by the
//! command that opened it.

use crate::diff::Side;
use crate::disk::{Disk, Wait};
use crate::error::{Error, Result};
use crate::events::{Event, What};
use crate::fuse::control::Verbs;
use crate::manifest::Owner;
use crate::name::SnapshotName;
use crate::progress::Progress;
use crate::store::{Image, Store};
use crate::time;
use crate::verify::Finding;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Progress is told no more often than this.
const TELL_EVERY: Duration = Duration::from_millis(50);
/// The longest wait for an event, in seconds.
const MOST_PATIENCE_S: u32 = 60;
/// Lines that wait for whoever asked before the work waits.
const LINES: usize = 64;

/// What can be asked, as JSON: `{"verb": "gc", "dry_run": true}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "lowercase", deny_unknown_fields)]
pub enum Request {
    /// The store in numbers.
    Status {},
    /// Disks and images; or one disk and its snapshots.
    List {
        /// The disk's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<String>,
    },
    /// Reads and checks everything.
    Verify {
        /// Mends what can be mended first.
        #[serde(default)]
        repair: bool,
        /// With `repair`: forgets disks and images whose manifests are lost.
        #[serde(default)]
        forget_lost: bool,
    },
    /// What takes how much room: of one disk, or of all.
    Capacity {
        /// The disk's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        disk: Option<String>,
        /// Its history from then on, in nanoseconds since 1970.
        since_ns: i64,
        /// And up to then.
        until_ns: i64,
    },
    /// What deleting snapshots together would free.
    Reclaim {
        /// `disk@snapshot` each.
        snapshots: Vec<String>,
    },
    /// Where two disks, snapshots or images differ.
    Diff {
        /// `disk`, `disk@snapshot` or `.images/name`.
        a: String,
        /// The other.
        b: String,
    },
    /// Policies and the disks that they hold.
    Policies {},
    /// What a disk's policy is going to do.
    Plan {
        /// The disk's name.
        disk: String,
        /// A policy's text to take instead of the one in force.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        /// For how many days.
        days: u32,
    },
    /// What happened, from an event's number on.
    Events {
        /// The number; those before are left out.
        first: u64,
        /// Waits so many seconds for the first, if there is none.
        #[serde(default)]
        patience_s: u32,
    },
    /// How many snapshots a disk may have, and what is done when nothing
    /// else is to do: tells, or sets.
    Settings {
        /// By name: `max_manual_snapshots`, `max_automatic_snapshots`,
        /// `max_snapshots`, `recompress`.
        #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
        set: BTreeMap<String, Setting>,
    },
    /// Takes a snapshot of several disks at one instant.
    Group {
        /// The snapshots' name.
        name: String,
        /// The disks' names.
        disks: Vec<String>,
        /// Who wants it.
        uid: u32,
        /// And its group.
        gid: u32,
    },
    /// Frees what nothing refers to.
    Gc {
        /// Only says what it would do.
        #[serde(default)]
        dry_run: bool,
    },
}

/// What a setting is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Setting {
    /// On or off.
    Switch(bool),
    /// A number; None ends a limit.
    Limit(Option<u32>),
}

/// Answers [`Request`]s from an open store.
pub struct StoreVerbs {
    /// The store.
    pub store: Arc<Store>,
}

impl Verbs for StoreVerbs {
    fn run(&self, request: Value, out: &mut dyn FnMut(Value)) {
        let (lines, received) = sync_channel(LINES);
        // `out` belongs to this thread, and progress comes from any: the
        // work has a thread of its own, and this one passes on.
        thread::scope(|scope| {
            let work = thread::Builder::new()
                .name("verb".into())
                .spawn_scoped(scope, move || {
                    let teller = Teller {
                        lines,
                        last: Mutex::default(),
                    };
                    let last = match self.answer(request, &teller) {
                        Ok(result) => json!({ "result": result }),
                        Err(error) => {
                            tracing::warn!("{error}");
                            json!({ "error": error.to_string() })
                        }
                    };
                    teller.say(last);
                });
            if let Err(error) = &work {
                out(json!({ "error": format!("starting a thread: {error}") }));
            }
            for line in received {
                out(line);
            }
            if let Ok(work) = work
                && work.join().is_err()
            {
                out(json!({ "error": "the work ended in a panic; see the log" }));
            }
        });
    }
}

impl StoreVerbs {
    fn answer(&self, request: Value, teller: &Teller) -> Result<Value> {
        let request: Request =
            serde_json::from_value(request).map_err(|error| Error::InvalidArgument {
                what: format!("the request: {error}"),
            })?;
        match request {
            Request::Status {} => Ok(to_json(&self.store.status()?)),
            Request::List { disk: None } => self.list(),
            Request::List { disk: Some(name) } => self.list_disk(&name, teller),
            Request::Verify {
                repair,
                forget_lost,
            } => {
                let mut found = |finding: Finding| {
                    let event = Event::new(What::Damage).reason(finding.to_string());
                    self.store.events().note(event);
                    teller.say(json!({ "finding": {
                        "text": finding.to_string(),
                        "details": to_json(&finding),
                    }}));
                };
                // What was found and mended is told as what was done.
                let repaired = match repair {
                    true => Some(self.store.repair(forget_lost, teller, &mut |finding| {
                        tracing::warn!("repair: {finding}");
                    })?),
                    false => None,
                };
                let report = self.store.verify(teller, &mut found)?;
                let mut report = to_json(&report);
                report["repair"] = to_json(&repaired);
                Ok(report)
            }
            Request::Gc { dry_run } => {
                let report = self.store.gc(dry_run, teller)?;
                if !dry_run {
                    self.store.note_collected(&report);
                }
                Ok(to_json(&report))
            }
            Request::Capacity {
                disk,
                since_ns,
                until_ns,
            } => self.capacity(disk.as_deref(), since_ns, until_ns, teller),
            Request::Reclaim { snapshots } => {
                let mut wanted = Vec::new();
                for name in &snapshots {
                    match self.store.side(name)? {
                        Side::Snapshot(disk, snapshot) => {
                            wanted.push((disk.name(), snapshot.name()));
                        }
                        Side::Live(_) => {
                            return Err(Error::InvalidArgument {
                                what: format!("{name} is no snapshot"),
                            });
                        }
                    }
                }
                Ok(to_json(&self.store.reclaim(&wanted, teller)?))
            }
            Request::Diff { a, b } => {
                let (a, b) = (self.store.side(&a)?, self.store.side(&b)?);
                let mut found = |range: Range<u64>| {
                    teller.say(json!({ "finding": {
                        "offset": range.start,
                        "length": range.end - range.start,
                    }}));
                };
                Ok(to_json(&self.store.diff(&a, &b, teller, &mut found)?))
            }
            Request::Policies {} => Ok(self.policies()),
            Request::Plan { disk, text, days } => self.plan(&disk, text.as_deref(), days),
            Request::Events { first, patience_s } => {
                let patience = Duration::from_secs(patience_s.min(MOST_PATIENCE_S).into());
                let events = self.store.events().since(first, patience);
                for event in &events {
                    teller.say(json!({ "finding": to_json(event) }));
                }
                let next = events.last().map_or(first, |event| event.sequence + 1);
                Ok(json!({ "next": next }))
            }
            Request::Settings { set } => self.settings(&set),
            Request::Group {
                name,
                disks,
                uid,
                gid,
            } => self.group(&name, &disks, uid, gid),
        }
    }

    fn disk(&self, name: &str) -> Result<Arc<Disk>> {
        self.store.disk(name).ok_or_else(|| Error::Missing {
            what: "disk",
            name: name.to_owned(),
        })
    }

    fn capacity(
        &self,
        disk: Option<&str>,
        since_ns: i64,
        until_ns: i64,
        teller: &Teller,
    ) -> Result<Value> {
        if let Some(name) = disk {
            self.disk(name)?;
        }
        let usage = self.store.usage(teller)?;
        let mut rows = self.store.history().rows(since_ns, until_ns);
        rows.retain(|row| disk.is_none_or(|disk| row.disk == disk));
        let history: Vec<Value> = rows
            .iter()
            .map(|row| {
                json!({
                    "time": time::rfc3339(row.at_ns),
                    "disk": row.disk,
                    "stored_bytes": row.stored_bytes,
                    "chain_bytes": row.chain_bytes,
                    "snapshots": row.snapshots,
                })
            })
            .collect();
        let mut answer = to_json(&usage);
        if let Some(disks) = answer["disks"].as_array_mut() {
            disks.retain(|one| disk.is_none_or(|disk| one["name"] == disk));
        }
        answer["history"] = history.into();
        Ok(answer)
    }

    fn policies(&self) -> Value {
        let disks = self.store.disks();
        let of = |disk: &Arc<Disk>| {
            let in_force = self.store.policy_of(disk)?;
            in_force.name.is_none().then(|| {
                json!({
                    "policy": format!("{}/.snapshots/policy.toml", disk.name()),
                    "named": false,
                    "disks": [disk.name()],
                    "next": next_slot(&in_force.policy),
                    "error": in_force.policy.as_ref().err(),
                })
            })
        };
        let named = self.store.policies().into_iter().map(|record| {
            let policy = crate::policy::parse(&record.text.text);
            let policy = policy.map_err(|rejection| rejection.to_string());
            json!({
                "policy": record.name,
                "named": true,
                "disks": self.store.disks_of_policy(record.id),
                "next": next_slot(&policy),
                "error": policy.as_ref().err(),
            })
        });
        let all: Vec<Value> = named.chain(disks.iter().filter_map(of)).collect();
        json!({ "policies": all })
    }

    fn plan(&self, disk: &str, text: Option<&str>, days: u32) -> Result<Value> {
        let disk = self.disk(disk)?;
        let now = time::now_ns();
        let invalid = |what: String| Error::InvalidArgument { what };
        let (policy, since_ns) = match text {
            Some(text) => {
                let policy = crate::policy::parse(text);
                (
                    policy.map_err(|rejection| invalid(rejection.to_string()))?,
                    now,
                )
            }
            None => {
                let in_force = self.store.policy_of(&disk).ok_or_else(|| Error::Missing {
                    what: "policy of disk",
                    name: disk.name(),
                })?;
                (in_force.policy.map_err(invalid)?, in_force.since_ns)
            }
        };
        let until = now.saturating_add(crate::policy::days_ns(days));
        let planned = self.store.plan_of(&disk, &policy, since_ns, until);
        Ok(crate::policy::plan_json(&policy, &planned))
    }

    fn settings(&self, set: &BTreeMap<String, Setting>) -> Result<Value> {
        let before = self.store.settings();
        let mut settings = before;
        let mut recompress = self.store.is_recompressing();
        for (key, value) in set {
            let invalid = |what: String| Err(Error::InvalidArgument { what });
            match (key.as_str(), *value) {
                ("max_manual_snapshots", Setting::Limit(Some(limit))) => {
                    settings.max_manual_snapshots = limit;
                }
                ("max_automatic_snapshots", Setting::Limit(Some(limit))) => {
                    settings.max_automatic_snapshots = limit;
                }
                ("max_snapshots", Setting::Limit(limit)) => settings.max_snapshots = limit,
                ("recompress", Setting::Switch(on)) => recompress = on,
                ("max_manual_snapshots" | "max_automatic_snapshots", _) => {
                    return invalid(format!("{key} is a number"));
                }
                ("max_snapshots", _) => return invalid(format!("{key} is a number or none")),
                ("recompress", _) => return invalid(format!("{key} is on or off")),
                _ => {
                    return invalid(format!(
                        "there is no setting {key}: there are max_manual_snapshots, \
                         max_automatic_snapshots, max_snapshots and recompress"
                    ));
                }
            }
        }
        if settings != before {
            self.store.set_settings(settings)?;
        }
        if recompress != self.store.is_recompressing() {
            self.store.set_recompress(recompress)?;
        }
        let mut answer = to_json(&settings);
        answer["recompress"] = recompress.into();
        Ok(answer)
    }

    fn group(&self, name: &str, disks: &[String], uid: u32, gid: u32) -> Result<Value> {
        let name = SnapshotName::parse_manual(OsStr::new(name))?;
        let disks = disks
            .iter()
            .map(|disk| self.disk(disk))
            .collect::<Result<Vec<_>>>()?;
        let owner = Owner {
            uid,
            gid,
            mode: 0o755,
        };
        let group = self.store.take_group(name, Some(disks), owner)?;
        let names: Vec<String> = group.members.iter().map(|(disk, _)| disk.name()).collect();
        Ok(json!({ "group": group.record.name, "disks": names }))
    }

    fn list(&self) -> Result<Value> {
        let disks: Vec<Value> = self
            .store
            .disks()
            .iter()
            .map(describe)
            .collect::<Result<_>>()?;
        let images: Vec<Value> = self.store.images().iter().map(describe_image).collect();
        Ok(json!({
            "store": self.store.root().display().to_string(),
            "disks": disks,
            "images": images,
        }))
    }

    fn list_disk(&self, name: &str, teller: &Teller) -> Result<Value> {
        let disk = self.disk(name)?;
        // What each takes is told by one walk over all maps, not one each;
        // where maps are damaged the rest is told without it.
        let (usage, unknown) = match self.store.usage(teller) {
            Ok(usage) => (Some(usage), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let usage = usage.and_then(|usage| {
            let mut disks = usage.disks.into_iter();
            disks.find(|one| !one.is_image && one.name == name)
        });
        let mut snapshots = Vec::new();
        for snapshot in disk.snapshots() {
            let mut info = to_json(&disk.snapshot_facts(&snapshot));
            let own = usage.as_ref().and_then(|usage| {
                usage
                    .snapshots
                    .iter()
                    .find(|one| one.name == snapshot.name())
            });
            if let Some(own) = own {
                info["referred_bytes"] = json!(own.referred_bytes);
                info["stored_bytes"] = json!(own.stored_bytes);
                info["unique_bytes"] = json!(own.unique_bytes);
            }
            snapshots.push(info);
        }
        Ok(json!({
            "disk": describe(&disk)?,
            "snapshots": snapshots,
            "stored_bytes": usage.as_ref().map(|usage| usage.stored_bytes),
            "chain_bytes": usage.as_ref().map(|usage| usage.chain_bytes),
            "error": unknown,
        }))
    }
}

fn next_slot(policy: &std::result::Result<crate::policy::Policy, String>) -> Option<String> {
    let next = policy.as_ref().ok()?.next_slot(time::now_ns())?;
    Some(time::rfc3339(next))
}

fn describe(disk: &Arc<Disk>) -> Result<Value> {
    let live = disk.live();
    let data_bytes = match live {
        Some(_) => Some(disk.allocated(Wait::Yes)?.waited()),
        None => None,
    };
    Ok(json!({
        "name": disk.name(),
        "id": disk.id().to_string(),
        // Null for a disk without an image.
        "size": live.map(|live| live.size),
        "data_bytes": data_bytes,
        "snapshots": disk.snapshots().len(),
        "error": disk.poisoned(),
    }))
}

fn describe_image(image: &Image) -> Value {
    match image {
        Image::Link {
            name,
            disk,
            snapshot,
        } => json!({
            "name": name,
            "size": snapshot.size(),
            "snapshot": format!("{}@{}", disk.name(), snapshot.name()),
        }),
        Image::Import { name, disk } => json!({
            "name": name,
            "size": disk.live().map(|live| live.size),
            "snapshot": null,
        }),
    }
}

fn to_json(report: &impl Serialize) -> Value {
    serde_json::to_value(report).expect("reports have text for keys, so they are JSON")
}

/// Passes lines on to whoever asked.
struct Teller {
    lines: SyncSender<Value>,
    /// When progress was last told. A leaf.
    last: Mutex<Option<Instant>>,
}

impl Teller {
    fn say(&self, line: Value) {
        // Fails only if whoever asked has gone: then nobody wants to know.
        self.lines.send(line).ok();
    }
}

impl Progress for Teller {
    fn update(&self, doing: &str, done: u64, total: u64) {
        let Some(mut last) = self.last.try_lock() else {
            return;
        };
        let now = Instant::now();
        if last.is_none_or(|last| now - last >= TELL_EVERY) {
            *last = Some(now);
            // A full queue: there is newer progress before that is read.
            self.lines
                .try_send(json!({"progress": {"doing": doing, "done": done, "total": total}}))
                .ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::name::DiskName;
    use crate::progress::Quiet;
    use crate::store::{self, InitOptions, Options};

    fn ask(verbs: &StoreVerbs, request: Value) -> Vec<Value> {
        let mut lines = Vec::new();
        verbs.run(request, &mut |line| lines.push(line));
        lines.retain(|line| line.get("progress").is_none());
        lines
    }

    #[test]
    fn requests_are_the_json_that_is_documented() -> serde_json::Result<()> {
        for (text, request) in [
            (r#"{"verb":"status"}"#, Request::Status {}),
            (r#"{"verb":"list"}"#, Request::List { disk: None }),
            (
                r#"{"verb":"gc","dry_run":true}"#,
                Request::Gc { dry_run: true },
            ),
        ] {
            assert_eq!(serde_json::from_str::<Request>(text)?, request);
            assert_eq!(serde_json::to_string(&request)?, text);
        }
        for bad in [r#"{"verb":"x"}"#, r#"{"verb":"gc","now":1}"#, "{}", "3"] {
            assert!(serde_json::from_str::<Request>(bad).is_err(), "{bad}");
        }
        Ok(())
    }

    #[test]
    fn every_verb_ends_with_one_result_or_error() -> Result<()> {
        let root = tempfile::tempdir().map_err(Error::io("creating", "a directory"))?;
        store::init(root.path(), &InitOptions::default())?;
        let store = Store::open(root.path(), Options::default(), &Quiet)?;
        let owner = Owner {
            uid: 0,
            gid: 0,
            mode: 0o755,
        };
        let disk = store.create_disk(DiskName::parse(OsStr::new("web"))?, owner)?;
        disk.create_image(owner)?;
        disk.truncate(8192, false)?;
        disk.take_snapshot(SnapshotName::parse_manual(OsStr::new("first"))?)?;
        let verbs = StoreVerbs {
            store: store.clone(),
        };

        let listed = ask(&verbs, json!({"verb": "list"}));
        assert_eq!(listed[0]["result"]["disks"][0]["name"], "web");
        assert_eq!(listed[0]["result"]["disks"][0]["size"], 8192);
        let listed = ask(&verbs, json!({"verb": "list", "disk": "web"}));
        assert_eq!(listed[0]["result"]["snapshots"][0]["name"], "first");
        for request in [
            json!({"verb": "status"}),
            json!({"verb": "verify"}),
            json!({"verb": "gc", "dry_run": true}),
            json!({"verb": "capacity", "since_ns": 0, "until_ns": i64::MAX}),
            json!({"verb": "reclaim", "snapshots": ["web@first"]}),
            json!({"verb": "diff", "a": "web", "b": "web@first"}),
            json!({"verb": "policies"}),
            json!({"verb": "settings", "set": {"max_snapshots": 7}}),
            json!({"verb": "events", "first": 1000}),
            json!({"verb": "group", "name": "all", "disks": ["web"], "uid": 0, "gid": 0}),
        ] {
            let lines = ask(&verbs, request.clone());
            assert_eq!(lines.len(), 1, "{request}: {lines:?}");
            assert!(lines[0]["result"].is_object(), "{request}: {lines:?}");
        }
        for request in [
            json!({"verb": "list", "disk": "none"}),
            json!({"verb": "plan", "disk": "web", "days": 3}),
            json!({"verb": "settings", "set": {"max": 7}}),
            json!({"verb": "reclaim", "snapshots": ["web"]}),
            json!({"verb": "diff", "a": "web", "b": "web@none"}),
            json!(7),
        ] {
            let lines = ask(&verbs, request.clone());
            assert_eq!(lines.len(), 1, "{request}: {lines:?}");
            assert!(lines[0]["error"].is_string(), "{request}: {lines:?}");
        }
        store.close()
    }
}
