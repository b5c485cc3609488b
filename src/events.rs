//! What happened in a store, one line of JSON each: taken, deleted and by
//! whom, refused and why, missed, damaged.
//!
//! Whoever notes an event never waits for a disk: lines go to memory, and a
//! thread of their own appends them to `events.jsonl` in the store. When that
//! is full it becomes `events.1.jsonl` and the one before is removed, so that
//! both together, and what is kept in memory, stay bounded. After a power
//! loss the last lines may be missing; nothing else depends on them.

use crate::time;
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of each of the two files; twice as many are kept in memory.
const FILE_BYTES: usize = 2 << 20;
/// The longest reason, in bytes.
const REASON_BYTES: usize = 2048;
/// The same refusal is told once in this time.
const SAME_REFUSAL: Duration = Duration::from_secs(1);

const CURRENT: &str = "events.jsonl";
const EARLIER: &str = "events.1.jsonl";

/// What sort of thing happened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    /// A snapshot was taken.
    Taken,
    /// A snapshot was sealed: `seconds` after it was taken, `bytes` read.
    Ready,
    /// A snapshot was deleted.
    Deleted,
    /// A snapshot, group or policy got another name.
    Renamed,
    /// A request was refused.
    Refused,
    /// A slot of a policy passed without a snapshot.
    Missed,
    /// A slot passed without a snapshot since nothing had changed.
    Unchanged,
    /// A disk was put back to a snapshot.
    RolledBack,
    /// A live image was dropped.
    Dropped,
    /// An image was made.
    ImageMade,
    /// An image was removed.
    ImageRemoved,
    /// A disk was made.
    DiskMade,
    /// A disk was removed.
    DiskRemoved,
    /// A policy came into force, or another text of it.
    PolicySet,
    /// A policy that was written is none.
    PolicyRejected,
    /// A policy ended.
    PolicyEnded,
    /// A disk has nearly as many snapshots as it may.
    QuotaNear,
    /// Space was won back: `bytes`.
    GcDone,
    /// Space could not be won back.
    GcFailed,
    /// Something is not what was stored.
    Damage,
    /// A disk, or sealing, stopped after an error.
    Stopped,
    /// The store's filesystem is nearly full: `bytes` are left.
    SpaceLow,
    /// The clock was set, so that nothing is deleted for a while.
    ClockJump,
    /// The store was opened.
    Opened,
    /// The store was closed in good order.
    Closed,
}

/// Who wanted it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum By {
    /// A user, by number.
    User(u32),
    /// A policy, by name.
    Policy(String),
    /// The number of automatic snapshots that a disk may have.
    Quota,
    /// The date on which the snapshot was to end.
    Date,
    /// snapdisk itself.
    Store,
}

impl By {
    /// The user that this program runs as.
    pub fn this_user() -> By {
        By::User(crate::sys::user())
    }
}

impl std::fmt::Display for By {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            By::User(uid) => write!(f, "user {uid}"),
            By::Policy(name) => write!(f, "policy {name}"),
            By::Quota => f.write_str("quota"),
            By::Date => f.write_str("its date"),
            By::Store => f.write_str("snapdisk"),
        }
    }
}

/// One event. What does not apply is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// Rises by one with each event of a store.
    pub sequence: u64,
    /// When, RFC 3339 with milliseconds, UTC.
    pub time: String,
    /// What sort of thing happened.
    pub event: What,
    /// The disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk: Option<String>,
    /// The snapshot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<String>,
    /// The group of snapshots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<String>,
    /// The policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The slot of the policy, RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<String>,
    /// The path in the mount, of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The operation that was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
    /// The error number's name, of a refusal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub errno: Option<String>,
    /// Who wanted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// How long it took.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds: Option<f64>,
    /// How much it was about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// In words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

macro_rules! setters {
    ($($field:ident: $doc:literal),*) => {$(
        #[doc = $doc]
        pub fn $field(mut self, value: impl Into<String>) -> Event {
            self.$field = Some(value.into());
            self
        }
    )*};
}

impl Event {
    /// An event that happens now.
    pub fn new(event: What) -> Event {
        Event {
            sequence: 0,
            time: String::new(),
            event,
            disk: None,
            snapshot: None,
            group: None,
            image: None,
            policy: None,
            slot: None,
            path: None,
            operation: None,
            errno: None,
            by: None,
            seconds: None,
            bytes: None,
            reason: None,
        }
    }

    setters! {
        disk: "With its disk.", snapshot: "With its snapshot.", group: "With its group.",
        image: "With its image.", policy: "With its policy.", slot: "With its slot.",
        path: "With its path.", operation: "With its operation.", errno: "With its error."
    }

    /// With who wanted it.
    pub fn by(mut self, by: &By) -> Event {
        self.by = Some(by.to_string());
        self
    }

    /// With how long it took.
    pub fn seconds(mut self, seconds: f64) -> Event {
        self.seconds = Some((seconds * 1000.0).round() / 1000.0);
        self
    }

    /// With how much it was about.
    pub fn bytes(mut self, bytes: u64) -> Event {
        self.bytes = Some(bytes);
        self
    }

    /// With words; the rest of very many is left out.
    pub fn reason(mut self, reason: impl Into<String>) -> Event {
        let mut reason = reason.into();
        reason.truncate(reason.floor_char_boundary(REASON_BYTES));
        self.reason = Some(reason);
        self
    }

    /// Whether it is the same but for when it happened.
    fn repeats(&self, other: &Event) -> bool {
        self.event == What::Refused
            && other.event == What::Refused
            && self.path == other.path
            && self.operation == other.operation
            && self.errno == other.errno
            && self.reason == other.reason
    }
}

#[derive(Default)]
struct State {
    lines: VecDeque<(u64, String)>,
    bytes: usize,
    /// The number of the next event.
    next: u64,
    /// The number of the next event that the file gets.
    written: u64,
    refusal: Option<(Instant, Event)>,
    closed: bool,
}

impl State {
    fn push(&mut self, sequence: u64, line: String) {
        self.bytes += line.len();
        self.lines.push_back((sequence, line));
        while self.bytes > 2 * FILE_BYTES
            && let Some((_, line)) = self.lines.pop_front()
        {
            self.bytes -= line.len();
        }
    }

    fn since(&self, first: u64) -> impl Iterator<Item = &(u64, String)> {
        let start = self.lines.partition_point(|(number, _)| *number < first);
        self.lines.range(start..)
    }
}

/// The events of a store.
#[derive(Default)]
pub struct EventLog {
    /// A leaf: held for a look or a push.
    state: Mutex<State>,
    /// There is another event, or the log was closed.
    changed: Condvar,
}

impl EventLog {
    /// The log of a store in a directory, with what happened before.
    /// What cannot be read of that is left out.
    pub fn open(root: &Path) -> EventLog {
        let mut state = State {
            next: 1,
            ..State::default()
        };
        for name in [EARLIER, CURRENT] {
            let bytes = match std::fs::read(root.join(name)) {
                Ok(bytes) => bytes,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => {
                    tracing::warn!("{name}: {error}");
                    continue;
                }
            };
            for line in String::from_utf8_lossy(&bytes).lines() {
                // The last one may have been cut off by a crash.
                if let Ok(event) = serde_json::from_str::<Event>(line)
                    && event.sequence >= state.next
                    && event.sequence < u64::MAX / 2
                {
                    state.next = event.sequence + 1;
                    state.push(event.sequence, format!("{line}\n"));
                }
            }
        }
        state.written = state.next;
        EventLog {
            state: Mutex::new(state),
            changed: Condvar::new(),
        }
    }

    /// Notes an event. Never waits for a disk.
    /// Answers whether it is kept.
    pub fn note(&self, mut event: Event) -> bool {
        let mut state = self.state.lock();
        if event.event == What::Refused {
            let now = Instant::now();
            if let Some((at, last)) = &state.refusal
                && now.duration_since(*at) < SAME_REFUSAL
                && event.repeats(last)
            {
                return false;
            }
            state.refusal = Some((now, event.clone()));
        }
        event.sequence = state.next;
        event.time = time::rfc3339_ms(time::now_ns());
        state.next += 1;
        if let Ok(line) = serde_json::to_string(&event) {
            state.push(event.sequence, line + "\n");
        }
        drop(state);
        self.changed.notify_all();
        true
    }

    /// All that is kept, oldest first, one line each.
    pub fn text(&self) -> String {
        let state = self.state.lock();
        state.lines.iter().map(|(_, line)| line.as_str()).collect()
    }

    /// Bytes of [`EventLog::text`].
    pub fn text_len(&self) -> u64 {
        self.state.lock().bytes as u64
    }

    /// Events from number `first` on, after a wait of at most `patience` for
    /// the first of them. Empty if there is none by then.
    pub fn since(&self, first: u64, patience: Duration) -> Vec<Event> {
        let until = Instant::now() + patience;
        let mut state = self.state.lock();
        while state.next <= first && !state.closed {
            if self.changed.wait_until(&mut state, until).timed_out() {
                break;
            }
        }
        let lines: Vec<String> = state.since(first).map(|(_, line)| line.clone()).collect();
        drop(state);
        let parse = |line: &String| serde_json::from_str(line).ok();
        lines.iter().filter_map(parse).collect()
    }

    /// Appends to the files what is noted, until the log is closed.
    pub fn write_out(&self, root: &Path) {
        let mut out = Out {
            root: root.to_owned(),
            file: None,
            failed: false,
        };
        loop {
            let (text, closed) = {
                let mut state = self.state.lock();
                while state.written >= state.next && !state.closed {
                    self.changed.wait(&mut state);
                }
                let new = state.since(state.written);
                let text: String = new.map(|(_, line)| line.as_str()).collect();
                state.written = state.next;
                (text, state.closed)
            };
            out.append(&text);
            if closed {
                return;
            }
        }
    }

    /// Ends [`EventLog::write_out`] once all is written, and all waiting.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_all();
    }
}

struct Out {
    root: PathBuf,
    file: Option<(File, usize)>,
    failed: bool,
}

impl Out {
    fn append(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        // What has gathered may be longer than a file.
        let mut lines = text.split_inclusive('\n').peekable();
        let mut appended = Ok(());
        while lines.peek().is_some() && appended.is_ok() {
            let mut piece = String::new();
            while let Some(line) = lines.next_if(|line| piece.len() + line.len() <= FILE_BYTES / 4)
            {
                piece += line;
            }
            appended = self.try_append(&piece);
        }
        match appended {
            Ok(()) => self.failed = false,
            Err(error) => {
                if !self.failed {
                    tracing::warn!("{CURRENT}: {error}; events are kept in memory only");
                }
                self.failed = true;
                self.file = None;
            }
        }
    }

    fn try_append(&mut self, text: &str) -> io::Result<()> {
        let full = (self.file.as_ref()).is_some_and(|(_, len)| len + text.len() > FILE_BYTES);
        if full {
            self.file = None;
            std::fs::rename(self.root.join(CURRENT), self.root.join(EARLIER))?;
        }
        if self.file.is_none() {
            let path = self.root.join(CURRENT);
            let mut file = crate::sys::private().create(true).append(true).open(path)?;
            let len = file.metadata()?.len() as usize;
            if len > 0 {
                // After a crash the last line may have no end.
                file.write_all(b"\n")?;
            }
            self.file = Some((file, len + 1));
        }
        if let Some((file, len)) = &mut self.file {
            file.write_all(text.as_bytes())?;
            *len += text.len();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noted(log: &EventLog) -> Vec<u64> {
        let events = log.since(0, Duration::ZERO);
        events.iter().map(|event| event.sequence).collect()
    }

    /// Bounded, and numbers go on over a restart, also after a line was cut.
    #[test]
    fn events_survive_a_restart_and_are_bounded() {
        let root = tempfile::tempdir().expect("a directory");
        let count = |log: &EventLog, events: u64| {
            std::thread::scope(|scope| {
                scope.spawn(|| log.write_out(root.path()));
                for _ in 0..events {
                    log.note(Event::new(What::Taken).reason("r".repeat(1000)));
                }
                log.close();
            });
        };
        let log = EventLog::open(root.path());
        count(&log, 20_000);
        assert!(log.text_len() as usize <= 2 * FILE_BYTES);
        let kept = noted(&log);
        assert_eq!(kept.last(), Some(&20_000));
        assert!(kept.windows(2).all(|pair| pair[0] + 1 == pair[1]));

        let size = |name: &str| std::fs::metadata(root.path().join(name)).map_or(0, |m| m.len());
        assert!(size(CURRENT) + size(EARLIER) <= 2 * (FILE_BYTES as u64 + 2000));
        let mut file = File::options()
            .append(true)
            .open(root.path().join(CURRENT))
            .expect("it is there");
        file.write_all(b"{\"sequence\":").expect("a write");
        let log = EventLog::open(root.path());
        count(&log, 1);
        let log = EventLog::open(root.path());
        assert_eq!(noted(&log).last(), Some(&20_001));
    }

    #[test]
    fn a_refusal_that_is_repeated_at_once_is_told_once() {
        let log = EventLog::default();
        for path in ["a", "a", "b", "a"] {
            log.note(Event::new(What::Refused).path(path));
        }
        assert_eq!(log.since(0, Duration::ZERO).len(), 3);
    }
}
