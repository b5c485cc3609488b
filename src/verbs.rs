//! What can be asked of a whole store. The same code answers for a mounted
//! store, through its control file, and for an unmounted one, called by the
//! command that opened it.

use crate::disk::{Disk, Wait};
use crate::error::{Error, Result};
use crate::fuse::control::Verbs;
use crate::progress::Progress;
use crate::store::{Image, Store};
use crate::verify::Finding;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::{Duration, Instant};

/// Progress is told no more often than this.
const TELL_EVERY: Duration = Duration::from_millis(50);
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
    /// Frees what nothing refers to.
    Gc {
        /// Only says what it would do.
        #[serde(default)]
        dry_run: bool,
    },
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
            Request::List { disk: Some(name) } => self.list_disk(&name),
            Request::Verify {
                repair,
                forget_lost,
            } => {
                let mut found = |finding: Finding| {
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
            Request::Gc { dry_run } => Ok(to_json(&self.store.gc(dry_run, teller)?)),
        }
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

    fn list_disk(&self, name: &str) -> Result<Value> {
        let disk = self.store.disk(name).ok_or_else(|| Error::Missing {
            what: "disk",
            name: name.to_owned(),
        })?;
        let mut snapshots = Vec::new();
        for snapshot in disk.snapshots() {
            let text = disk.snapshot_info(&snapshot)?;
            let mut info: serde_json::Map<String, Value> =
                toml::from_str(&text).map_err(|error| Error::Damaged {
                    what: format!("info.toml of {}", snapshot.name()),
                    detail: error.to_string(),
                })?;
            info.insert("name".into(), snapshot.name().into());
            snapshots.push(Value::Object(info));
        }
        Ok(json!({ "disk": describe(&disk)?, "snapshots": snapshots }))
    }
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
    use crate::manifest::Owner;
    use crate::name::{DiskName, SnapshotName};
    use crate::progress::Quiet;
    use crate::store::{self, InitOptions, Options};
    use std::ffi::OsStr;

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
        ] {
            let lines = ask(&verbs, request.clone());
            assert_eq!(lines.len(), 1, "{request}: {lines:?}");
            assert!(lines[0]["result"].is_object(), "{request}: {lines:?}");
        }
        for request in [json!({"verb": "list", "disk": "none"}), json!(7)] {
            let lines = ask(&verbs, request.clone());
            assert_eq!(lines.len(), 1, "{request}: {lines:?}");
            assert!(lines[0]["error"].is_string(), "{request}: {lines:?}");
        }
        store.close()
    }
}
