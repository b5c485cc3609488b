//! How a store grew: what its disks had stored at the end of each hour, for
//! a year, as a table and as a drawing.

use super::*;
use crate::policy::run::is_jump;
use crate::progress::Quiet;
use crate::usage::Usage;
use plotters::prelude::*;
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::time::Duration;

/// Time between two samples.
const HOUR_NS: i64 = 3_600_000_000_000;
/// How long a sample is kept.
const KEPT_NS: i64 = 366 * 24 * HOUR_NS;
/// Rows that are kept at most, whatever their dates say.
const ROWS_MAX: usize = 500_000;
const FILE: &str = "capacity.csv";
const HEADER: &str =
    "time,disk,snapshots,size_bytes,stored_bytes,chain_bytes,unsealed_bytes,free_bytes\n";
/// Points of a line in the drawing.
const COLUMNS: usize = 960;
/// Disks that are drawn by themselves: those that have most.
const DRAWN: usize = 8;
/// A store with more chunks is sampled as a whole only: telling its disks
/// apart takes some 30 bytes of memory for each of them.
const TOLD_APART: u64 = 4 << 20;

/// What one disk, or the whole store, had at an instant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Nanoseconds since 1970.
    pub at_ns: i64,
    /// Its name; empty for the whole store.
    pub disk: String,
    /// Snapshots.
    pub snapshots: u64,
    /// Of the live image.
    pub size_bytes: u64,
    /// In packs.
    pub stored_bytes: u64,
    /// What deleting its snapshots would free; None if that was not counted.
    pub chain_bytes: Option<u64>,
    /// In layers.
    pub unsealed_bytes: u64,
    /// Of the store's filesystem, for writers; 0 for a disk.
    pub free_bytes: u64,
}

impl Row {
    fn to_line(&self) -> String {
        let chain = self.chain_bytes.map(|bytes| bytes.to_string());
        format!(
            "{},{},{},{},{},{},{},{}\n",
            time::rfc3339(self.at_ns),
            self.disk,
            self.snapshots,
            self.size_bytes,
            self.stored_bytes,
            chain.unwrap_or_default(),
            self.unsealed_bytes,
            self.free_bytes
        )
    }

    fn parse(line: &str) -> Option<Row> {
        let fields: Vec<&str> = line.split(',').collect();
        let [at, disk, numbers @ ..] = &fields[..] else {
            return None;
        };
        // Empty: it was not counted.
        let numbers: Vec<Option<u64>> = numbers
            .iter()
            .map(|n| match *n {
                "" => Some(None),
                n => n.parse().ok().map(Some),
            })
            .collect::<Option<_>>()?;
        let [
            Some(snapshots),
            Some(size_bytes),
            Some(stored_bytes),
            chain_bytes,
            Some(unsealed_bytes),
            Some(free_bytes),
        ] = numbers[..]
        else {
            return None;
        };
        Some(Row {
            at_ns: time::parse(at)?,
            disk: (*disk).to_owned(),
            snapshots,
            size_bytes,
            stored_bytes,
            chain_bytes,
            unsealed_bytes,
            free_bytes,
        })
    }
}

/// The samples of a store.
pub struct History {
    root: PathBuf,
    /// Oldest first. A leaf.
    rows: Mutex<VecDeque<Row>>,
}

impl History {
    /// What there is of it; what cannot be read is left out.
    pub fn open(root: &Path) -> History {
        let text = match std::fs::read_to_string(root.join(FILE)) {
            Ok(text) => text,
            Err(error) => {
                if error.kind() != std::io::ErrorKind::NotFound {
                    tracing::warn!("{FILE}: {error}");
                }
                String::new()
            }
        };
        let mut rows: VecDeque<Row> = text.lines().filter_map(Row::parse).collect();
        prune(&mut rows, time::now_ns());
        History {
            root: root.to_owned(),
            rows: Mutex::new(rows),
        }
    }

    /// Adds the samples of one instant, and drops those that are too old.
    fn add(&self, new: Vec<Row>, now_ns: i64) -> std::io::Result<()> {
        let mut lines = String::new();
        let pruned = {
            let mut rows = self.rows.lock();
            for row in new {
                lines += &row.to_line();
                rows.push_back(row);
            }
            prune(&mut rows, now_ns)
        };
        let path = self.root.join(FILE);
        // Once a day's worth of rows went, the file is written anew.
        if pruned > 0 || !path.exists() {
            let temporary = self.root.join("capacity.csv.new");
            let mut file = crate::sys::private()
                .create(true)
                .write(true)
                .truncate(true)
                .open(&temporary)?;
            std::io::Write::write_all(&mut file, self.to_csv().as_bytes())?;
            return std::fs::rename(temporary, path);
        }
        let mut file = std::fs::File::options().append(true).open(path)?;
        std::io::Write::write_all(&mut file, lines.as_bytes())
    }

    /// The samples between two instants, oldest first.
    pub fn rows(&self, since_ns: i64, until_ns: i64) -> Vec<Row> {
        let rows = self.rows.lock();
        let within = |row: &&Row| (since_ns..=until_ns).contains(&row.at_ns);
        rows.iter().filter(within).cloned().collect()
    }

    fn last_ns(&self) -> Option<i64> {
        self.rows.lock().back().map(|row| row.at_ns)
    }

    /// All of it, as a table with a line of names.
    pub fn to_csv(&self) -> String {
        let rows = self.rows.lock();
        let mut text = HEADER.to_owned();
        text.extend(rows.iter().map(Row::to_line));
        text
    }

    /// Stored bytes of each disk over time, as a drawing.
    pub fn to_svg(&self) -> Result<String> {
        let rows: Vec<Row> = self.rows.lock().iter().cloned().collect();
        let failed = |error: String| Error::Damaged {
            what: "the drawing of the capacity".into(),
            detail: error,
        };
        let mut text = String::new();
        draw(&rows, &mut text).map_err(failed)?;
        Ok(text)
    }
}

fn prune(rows: &mut VecDeque<Row>, now_ns: i64) -> usize {
    let before = rows.len();
    let earlier = rows.iter().rev().map(|row| row.at_ns);
    let earlier = earlier.filter(|at| *at < now_ns).max();
    // Nothing is too old on the word of a clock that was set, or that nobody
    // looked at for long.
    let now_ns = match earlier {
        Some(at) if is_jump(i128::from(now_ns) - i128::from(at)) => at,
        _ => now_ns,
    };
    let too_old = |row: &Row| row.at_ns < now_ns.saturating_sub(KEPT_NS);
    // A day later than need be, so that the file is not written every hour.
    let slack = |row: &Row| row.at_ns < now_ns.saturating_sub(KEPT_NS + 24 * HOUR_NS);
    if rows.front().is_some_and(slack) || rows.len() > ROWS_MAX + ROWS_MAX / 10 {
        while rows.front().is_some_and(too_old) || rows.len() > ROWS_MAX {
            rows.pop_front();
        }
    }
    before - rows.len()
}

/// A number of bytes with at most one place after the point.
fn short_bytes(bytes: f64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = bytes;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    match value.fract() == 0.0 || value >= 100.0 {
        true => format!("{value:.0} {}", UNITS[unit]),
        false => format!("{value:.1} {}", UNITS[unit]),
    }
}

fn draw(rows: &[Row], text: &mut String) -> Result<(), String> {
    let shown = |error: &dyn std::fmt::Display| error.to_string();
    let seconds = |ns: i64| ns / 1_000_000_000;
    let (first, last) = match (rows.first(), rows.last()) {
        (Some(first), Some(last)) => (seconds(first.at_ns), seconds(last.at_ns)),
        _ => (0, 0),
    };
    let last = last.max(first + 3600);
    let most = rows.iter().map(|row| row.stored_bytes).max().unwrap_or(0);
    let top = (most as f64 * 1.05).max(1024.0 * 1024.0);
    let mut series: Vec<(&str, Vec<(i64, f64)>)> = Vec::new();
    for row in rows {
        let point = (seconds(row.at_ns), row.stored_bytes as f64);
        match series.iter_mut().find(|(disk, _)| *disk == row.disk) {
            Some((_, points)) => points.push(point),
            None => series.push((&row.disk, vec![point])),
        }
    }
    // The store first, then the largest disks.
    series.sort_by(|(a, a_points), (b, b_points)| {
        let size = |points: &[(i64, f64)]| points.last().map_or(0.0, |point| point.1);
        (!a.is_empty(), size(b_points))
            .partial_cmp(&(!b.is_empty(), size(a_points)))
            .unwrap_or(std::cmp::Ordering::Equal)
    });
    let area = SVGBackend::with_string(text, (960, 480)).into_drawing_area();
    area.fill(&WHITE).map_err(|error| shown(&error))?;
    let mut chart = ChartBuilder::on(&area)
        .caption("stored bytes, by disk", ("sans-serif", 20))
        .margin(12)
        .x_label_area_size(48)
        .y_label_area_size(84)
        .build_cartesian_2d(first..last, 0.0..top)
        .map_err(|error| shown(&error))?;
    let days = (last - first) / 86_400;
    chart
        .configure_mesh()
        .x_desc("time (UTC)")
        .y_desc("stored")
        .x_labels(8)
        .y_labels(8)
        .x_label_formatter(&|at| {
            let text = time::rfc3339(at * 1_000_000_000);
            let (from, to) = if days >= 3 { (0, 10) } else { (5, 16) };
            text.get(from..to).unwrap_or(&text).replace('T', " ")
        })
        .y_label_formatter(&|bytes| short_bytes(*bytes))
        .draw()
        .map_err(|error| shown(&error))?;
    for (number, (disk, points)) in series.into_iter().take(DRAWN + 1).enumerate() {
        let colour = match disk.is_empty() {
            true => BLACK.to_rgba(),
            false => Palette99::pick(number).to_rgba(),
        };
        // No more points than the drawing has columns.
        let step = points.len().div_ceil(COLUMNS).max(1);
        let points: Vec<(i64, f64)> = (points.chunks(step))
            .filter_map(|some| some.last().copied())
            .collect();
        let label = if disk.is_empty() { "whole store" } else { disk };
        let style = colour.stroke_width(if disk.is_empty() { 1 } else { 2 });
        chart
            .draw_series(LineSeries::new(points, style))
            .map_err(|error| shown(&error))?
            .label(label)
            .legend(move |(x, y)| PathElement::new(vec![(x, y), (x + 18, y)], style));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.3))
        .draw()
        .map_err(|error| shown(&error))?;
    area.present().map_err(|error| shown(&error))
}

/// One line of a terminal for each disk: `▁▂▅█`, from its least to its most.
pub fn sparkline(values: &[u64], width: usize) -> String {
    const BARS: [char; 8] = ['▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = values.iter().copied().max().unwrap_or(0).max(1);
    let step = values.len().div_ceil(width.max(1)).max(1);
    let mut line = String::new();
    for part in values.chunks(step) {
        let value = part.last().copied().unwrap_or(0);
        let level = (u128::from(value) * (BARS.len() as u128 - 1) / u128::from(most)) as usize;
        // Writing to a string cannot fail.
        let _ = line.write_char(BARS[level]);
    }
    line
}

impl Store {
    /// Adds a sample to the history if an hour has passed since the last;
    /// answers how long nothing need be done.
    pub(crate) fn sample(&self) -> Duration {
        let now = time::now_ns();
        let hour = Duration::from_secs(3600);
        if let Some(last) = self.history.last_ns()
            && last <= now
            && now - last < HOUR_NS
        {
            return Duration::from_nanos((HOUR_NS - (now - last)).unsigned_abs());
        }
        let rows = match self.chunks().stats().chunks > TOLD_APART {
            true => self.whole_row(now).map(|row| vec![row]),
            false => self.usage(&Quiet).map(|usage| rows_of(&usage, now)),
        };
        match rows {
            Ok(rows) => {
                if let Err(error) = self.history.add(rows, now) {
                    tracing::warn!("{FILE}: {error}");
                }
            }
            Err(Error::Closing) => {}
            Err(error) => tracing::warn!("sampling what is stored: {error}"),
        }
        hour
    }

    /// The row of the whole store, without looking into it.
    fn whole_row(&self, now_ns: i64) -> Result<Row> {
        let disks = self.disks();
        let unsealed_bytes = {
            let layers = self.engine.layers.lock();
            let unsealed = layers.values().filter(|layer| layer.sealed().is_none());
            unsealed.map(|layer| layer.data_bytes()).sum()
        };
        Ok(Row {
            at_ns: now_ns,
            disk: String::new(),
            snapshots: disks.iter().map(|disk| disk.snapshots().len() as u64).sum(),
            size_bytes: (disks.iter().filter_map(|disk| disk.live()))
                .map(|live| live.size)
                .sum(),
            stored_bytes: self.chunks().stats().stored_bytes,
            chain_bytes: None,
            unsealed_bytes,
            free_bytes: self.engine.capacity.space()?.free_bytes,
        })
    }
}

fn rows_of(usage: &Usage, now_ns: i64) -> Vec<Row> {
    let disks: Vec<_> = usage.disks.iter().filter(|disk| !disk.is_image).collect();
    let mut rows: Vec<Row> = disks
        .iter()
        .map(|disk| Row {
            at_ns: now_ns,
            disk: disk.name.clone(),
            snapshots: disk.snapshots.len() as u64,
            size_bytes: disk.size.unwrap_or(0),
            stored_bytes: disk.stored_bytes,
            chain_bytes: Some(disk.chain_bytes),
            unsealed_bytes: disk.unsealed_bytes,
            free_bytes: 0,
        })
        .collect();
    rows.push(Row {
        at_ns: now_ns,
        disk: String::new(),
        snapshots: disks.iter().map(|disk| disk.snapshots.len() as u64).sum(),
        size_bytes: disks.iter().filter_map(|disk| disk.size).sum(),
        stored_bytes: usage.stored_bytes,
        chain_bytes: Some(disks.iter().map(|disk| disk.chain_bytes).sum()),
        unsealed_bytes: usage.unsealed_bytes,
        free_bytes: usage.free_bytes,
    });
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(hour: i64, disk: &str, stored_bytes: u64) -> Row {
        Row {
            at_ns: hour * HOUR_NS,
            disk: disk.into(),
            snapshots: 3,
            size_bytes: 1 << 30,
            stored_bytes,
            chain_bytes: disk.starts_with('w').then_some(7),
            unsealed_bytes: 0,
            free_bytes: 0,
        }
    }

    /// A year is kept, also over a restart, and what is older goes.
    #[test]
    fn samples_are_kept_for_a_year() {
        let root = tempfile::tempdir().expect("a directory");
        let start = time::now_ns() / HOUR_NS - 400 * 24;
        let history = History::open(root.path());
        for day in 0..400 {
            let hour = start + day * 24;
            let now = hour * HOUR_NS;
            history
                .add(vec![row(hour, "web", 100), row(hour, "", 200)], now)
                .expect("it is written");
        }
        let again = History::open(root.path());
        let rows = again.rows(i64::MIN, i64::MAX);
        assert!((2 * 365..=2 * 369).contains(&rows.len()), "{}", rows.len());
        assert_eq!(rows.last().map(|row| row.stored_bytes), Some(200));
        // What was not counted is not 0 afterwards.
        assert!(history.rows(i64::MIN, i64::MAX).ends_with(&rows));
        assert_eq!(rows.last().and_then(|row| row.chain_bytes), None);
    }

    /// It has axes with units and a line for each disk, and is XML.
    #[test]
    fn the_drawing_has_axes_units_and_names() {
        let mut text = String::new();
        let rows: Vec<Row> = (0..200)
            .flat_map(|hour| {
                let stored = (hour as u64) << 24;
                [
                    row(hour, "web", stored),
                    row(hour, "db", stored / 2),
                    row(hour, "", stored * 2),
                ]
            })
            .collect();
        draw(&rows, &mut text).expect("it is drawn");
        for word in [
            "<svg",
            "web",
            "db",
            "whole store",
            "GiB",
            "time (UTC)",
            "1970-01-0",
            "</svg>",
        ] {
            assert!(text.contains(word), "{word} in {text}");
        }
        let mut empty = String::new();
        draw(&[], &mut empty).expect("so is nothing");
        assert!(empty.contains("</svg>"));
    }

    #[test]
    fn a_line_of_bars_rises_with_its_values() {
        assert_eq!(sparkline(&[0, 50, 100], 80), "▁▄█");
        assert_eq!(sparkline(&[], 80), "");
        assert_eq!(sparkline(&[1; 1000], 10).chars().count(), 10);
    }
}
