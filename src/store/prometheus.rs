//! `metrics.prom`: the text format of Prometheus, version 0.0.4
//! (<https://prometheus.io/docs/instrumenting/exposition_formats/>).

use super::*;
use crate::manifest::SnapshotKind;
use crate::metrics::{BOUNDS_US, Operation};
use std::fmt::Write as _;

/// Writes lines; writing to a string cannot fail.
struct Text(String);

impl Text {
    fn family(&mut self, name: &str, sort: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {sort}");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: f64) {
        let _ = writeln!(self.0, "{name}{} {value}", braced(labels));
    }

    fn one(&mut self, name: &str, sort: &str, help: &str, value: f64) {
        self.family(name, sort, help);
        self.value(name, &[], value);
    }
}

fn braced(labels: &[(&str, &str)]) -> String {
    let escaped = |text: &str| {
        text.replace('\\', "\\\\")
            .replace('"', "\\\"")
            .replace('\n', "\\n")
    };
    let pairs: Vec<String> = labels
        .iter()
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    match pairs.is_empty() {
        true => String::new(),
        false => format!("{{{}}}", pairs.join(",")),
    }
}

impl Store {
    /// What monitoring wants to know.
    pub fn prometheus(&self) -> Result<String> {
        let status = self.status()?;
        let metrics = self.metrics();
        let disks = self.disks();
        let mut text = Text(String::new());
        let gauges: [(&str, &str, u64); 10] = [
            ("stored_bytes", "Bytes of all packs.", status.stored_bytes),
            (
                "plain_bytes",
                "Bytes of the chunks in packs, unpacked.",
                status.plain_bytes,
            ),
            (
                "layer_bytes",
                "Bytes in layers that are not sealed.",
                status.layer_bytes,
            ),
            (
                "free_bytes",
                "Bytes that writers may still have.",
                status.free_bytes,
            ),
            (
                "total_bytes",
                "Bytes of the store's filesystem.",
                status.total_bytes,
            ),
            ("packs", "Packs.", status.packs),
            ("chunks", "Chunks in packs.", status.chunks),
            ("disks", "Disks.", status.disks),
            ("images", "Images.", status.images),
            (
                "seal_backlog_layers",
                "Frozen layers that wait to be sealed.",
                status.unsealed_layers,
            ),
        ];
        for (name, help, value) in gauges {
            text.one(&format!("snapdisk_{name}"), "gauge", help, value as f64);
        }
        text.one(
            "snapdisk_attention",
            "gauge",
            "Things that need attention, as `snapdisk status` lists them.",
            status.attention.len() as f64,
        );
        let name = "snapdisk_snapshots";
        text.family(name, "gauge", "Snapshots of a disk, by who took them.");
        for disk in &disks {
            let (manual, automatic) = disk.count_snapshots();
            for (kind, count) in [("manual", manual), ("automatic", automatic)] {
                let labels = [("disk", &*disk.name()), ("kind", kind)];
                text.value(name, &labels, count as f64);
            }
        }
        let name = "snapdisk_policy_last_success_timestamp_seconds";
        text.family(
            name,
            "gauge",
            "When a disk's policy last took a snapshot that is there.",
        );
        for disk in &disks {
            let Some(in_force) = self.policy_of(disk) else {
                continue;
            };
            let snapshots = disk.list_snapshots().into_iter();
            let taken = snapshots.filter(|one| one.kind() == SnapshotKind::Automatic);
            if let Some(last) = taken.map(|one| one.created_ns).max() {
                let labels = [("disk", &*disk.name()), ("policy", in_force.label())];
                text.value(name, &labels, last as f64 / 1e9);
            }
        }
        let name = "snapdisk_snapshots_taken_total";
        text.family(
            name,
            "counter",
            "Snapshots taken since the store was mounted.",
        );
        for kind in [SnapshotKind::Manual, SnapshotKind::Automatic] {
            let count = metrics.count_taken(kind);
            text.value(name, &[("kind", kind.as_str())], count as f64);
        }
        let counters = [
            (
                "errors_total",
                "Requests answered with EIO.",
                &metrics.errors,
            ),
            (
                "refusals_total",
                "Requests that were refused.",
                &metrics.refusals,
            ),
            (
                "policy_missed_total",
                "Slots of policies that passed unused.",
                &metrics.missed,
            ),
            (
                "freed_bytes_total",
                "Bytes that gc won back.",
                &metrics.freed_bytes,
            ),
            (
                "recompressed_bytes_total",
                "Bytes that recompression of cold chunks won.",
                &metrics.recompressed_bytes,
            ),
        ];
        for (name, help, counter) in counters {
            let value = counter.load(Ordering::Relaxed);
            text.one(&format!("snapdisk_{name}"), "counter", help, value as f64);
        }
        let operations: [(&str, &Operation); 4] = [
            ("read", &metrics.reads),
            ("write", &metrics.writes),
            ("sync", &metrics.syncs),
            ("snapshot", &metrics.snapshots),
        ];
        let name = "snapdisk_io_bytes_total";
        text.family(name, "counter", "Bytes read and written through the mount.");
        for (operation, counted) in &operations[..2] {
            text.value(name, &[("operation", operation)], counted.bytes() as f64);
        }
        let name = "snapdisk_operation_seconds";
        text.family(
            name,
            "histogram",
            "How long operations through the mount took.",
        );
        for (operation, counted) in operations {
            let counts = counted.counts();
            let mut so_far = 0;
            for (at, count) in counts.iter().enumerate() {
                so_far += count;
                let bound = match BOUNDS_US.get(at) {
                    Some(us) => format!("{}", *us as f64 / 1e6),
                    None => "+Inf".to_owned(),
                };
                let labels = [("operation", operation), ("le", &*bound)];
                text.value(&format!("{name}_bucket"), &labels, so_far as f64);
            }
            let labels = [("operation", operation)];
            text.value(&format!("{name}_sum"), &labels, counted.seconds());
            text.value(&format!("{name}_count"), &labels, so_far as f64);
        }
        Ok(text.0)
    }
}
