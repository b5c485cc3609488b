//! Stores, mounts and commands for the tests that go through a real mount.
//!
//! Whatever a test makes is gone when its values are dropped, also when it
//! panics: a [`Mount`] ends its daemon, a [`LoopMount`] unmounts, a
//! [`TestStore`] removes its directory. Values are dropped in the reverse
//! order of their declaration, so declare the store first.

// Each test binary uses a part of it.
#![allow(dead_code, unused_imports)]

use std::fmt::Debug;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

pub mod bytes;
pub mod counting;
pub mod faulty;
pub mod library;
mod loops;
pub mod reader;
pub mod reference;
mod store;
pub mod sys;

pub use loops::{Filesystem, LoopMount};
pub use store::{Mount, TestStore};

/// The command under test.
pub const SNAPDISK: &str = env!("CARGO_BIN_EXE_snapdisk");
/// How long anything may take that a test waits for; nothing is expected to
/// take that long.
pub const DEADLINE: Duration = Duration::from_secs(120);
/// The second user.
pub const NOBODY: u32 = 65534;

/// What a test returns.
pub type Outcome = Result<(), Box<dyn std::error::Error>>;

/// What a test cannot do without.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Root and /dev/fuse.
    Mount,
    /// Root, /dev/fuse and loop devices.
    Loop,
    /// A program on the PATH.
    Program(&'static str),
}

impl Need {
    /// What of it this machine lacks.
    fn lacking(self) -> Option<String> {
        let writable = |path: &str| File::options().read(true).write(true).open(path).is_ok();
        match self {
            Need::Mount if !sys::is_root() => Some("root".into()),
            Need::Mount if !writable("/dev/fuse") => Some("/dev/fuse".into()),
            Need::Mount => None,
            Need::Loop => Need::Mount
                .lacking()
                .or_else(|| (!writable("/dev/loop-control")).then(|| "loop devices".to_owned())),
            Need::Program(name) => {
                let found = command("sh", &["-c", "command -v \"$0\"", name]).output();
                let is_there = found.is_ok_and(|output| output.status.success());
                (!is_there).then(|| name.to_owned())
            }
        }
    }
}

/// Whether a test has to be left out because this machine lacks something;
/// says so loudly, and panics instead if SNAPDISK_TEST_REQUIRE_ALL is set.
#[must_use]
pub fn skipped(needs: &[Need]) -> bool {
    let lacking: Vec<String> = needs.iter().filter_map(|need| need.lacking()).collect();
    if lacking.is_empty() {
        return false;
    }
    let name = thread::current().name().unwrap_or("a test").to_owned();
    let text = format!("SKIPPED: {name}: no {}", lacking.join(", no "));
    assert!(
        std::env::var_os("SNAPDISK_TEST_REQUIRE_ALL").is_none(),
        "{text}, but SNAPDISK_TEST_REQUIRE_ALL is set"
    );
    // The harness hides what a passing test prints with eprintln.
    writeln!(io::stderr(), "{text}").expect("stderr takes a line");
    true
}

/// A command with its arguments, in English and without input.
pub fn command(program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new(program);
    command
        .args(arguments)
        .env("LC_ALL", "C")
        .env("SNAPDISK", SNAPDISK)
        .stdin(Stdio::null());
    command
}

/// Runs a command to its end; panics with all that it said unless it
/// succeeds.
#[track_caller]
pub fn run(command: &mut Command) -> Output {
    let output = finish(command);
    assert!(output.status.success(), "{}", shown(command, &output));
    output
}

/// Runs a command that has to fail, and answers what it said on stderr.
#[track_caller]
pub fn run_fails(command: &mut Command) -> String {
    let output = finish(command);
    assert!(!output.status.success(), "{}", shown(command, &output));
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Runs lines of shell, ending at the first that fails; answers what they
/// said on stdout.
#[track_caller]
pub fn sh(script: &str) -> String {
    let output = run(&mut command("bash", &["-euo", "pipefail", "-c", script]));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs lines of shell that have to fail; answers what they said on stderr.
#[track_caller]
pub fn sh_fails(script: &str) -> String {
    run_fails(&mut command("bash", &["-euo", "pipefail", "-c", script]))
}

/// Runs `snapdisk` and answers what it said on stdout.
#[track_caller]
pub fn snapdisk(arguments: &[&str]) -> String {
    let output = run(&mut command(SNAPDISK, arguments));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs `snapdisk`, which has to fail with exit code 1; answers what it said
/// on stderr.
#[track_caller]
pub fn snapdisk_fails(arguments: &[&str]) -> String {
    snapdisk_exits(1, arguments)
}

/// Runs `snapdisk` with arguments that nobody can mean: exit code 2; answers
/// what it said on stderr.
#[track_caller]
pub fn snapdisk_usage(arguments: &[&str]) -> String {
    snapdisk_exits(2, arguments)
}

#[track_caller]
fn snapdisk_exits(code: i32, arguments: &[&str]) -> String {
    let mut command = command(SNAPDISK, arguments);
    let output = finish(&mut command);
    assert_eq!(
        output.status.code(),
        Some(code),
        "{}",
        shown(&command, &output)
    );
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[track_caller]
fn finish(command: &mut Command) -> Output {
    match command.output() {
        Ok(output) => output,
        Err(error) => panic!("{command:?}: {error}"),
    }
}

fn shown(command: &Command, output: &Output) -> String {
    format!(
        "{command:?}: {}\nstdout: {}\nstderr: {}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

/// The errno that a system call failed with; panics if it succeeded.
#[track_caller]
pub fn errno_of<T: Debug>(result: io::Result<T>) -> i32 {
    let error = result.expect_err("this has to be refused");
    error
        .raw_os_error()
        .unwrap_or_else(|| panic!("no error of the system: {error}"))
}

/// Panics unless a system call failed with `errno`, naming both numbers.
#[track_caller]
pub fn assert_errno<T: Debug>(result: io::Result<T>, errno: i32, what: &str) {
    let name = io::Error::from_raw_os_error;
    match result {
        Ok(done) => panic!(
            "{what} was done ({done:?}) and not refused: {}",
            name(errno)
        ),
        Err(error) => assert_eq!(
            error.raw_os_error(),
            Some(errno),
            "{what}: {error}, and not: {}",
            name(errno)
        ),
    }
}

/// Looks again and again until something is so; panics if it never is.
#[track_caller]
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < DEADLINE, "never happened: {what}");
        thread::sleep(Duration::from_millis(10));
    }
}

/// A snapshot's `info.toml`.
#[track_caller]
pub fn info(snapshot: &Path) -> toml::Table {
    let path = snapshot.join("info.toml");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path:?}: {error}"));
    text.parse()
        .unwrap_or_else(|error| panic!("{path:?}: {error}\n{text}"))
}

/// The `state` in a snapshot's `info.toml`.
#[track_caller]
pub fn state(snapshot: &Path) -> String {
    let info = info(snapshot);
    info["state"].as_str().unwrap_or_default().to_owned()
}

/// The strings under `held_by` in a snapshot's `info.toml`.
#[track_caller]
pub fn held_by(snapshot: &Path) -> Vec<String> {
    let info = info(snapshot);
    let list = info["held_by"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|holder| holder.as_str().unwrap_or_default().to_owned())
        .collect()
}

/// Waits until a snapshot is sealed.
#[track_caller]
pub fn wait_ready(snapshot: &Path) {
    wait_until("state = \"ready\"", || state(snapshot) == "ready");
}

/// Takes a snapshot of a disk and answers its directory.
#[track_caller]
pub fn take(disk: &Path, name: &str) -> PathBuf {
    let snapshot = disk.join(".snapshots").join(name);
    fs::create_dir(&snapshot).unwrap_or_else(|error| panic!("mkdir {snapshot:?}: {error}"));
    snapshot
}

/// A disk with an image of this content, not yet flushed; answers its
/// directory.
#[track_caller]
pub fn disk_with(point: &Path, name: &str, content: &[u8]) -> PathBuf {
    let disk = point.join(name);
    fs::create_dir(&disk).unwrap_or_else(|error| panic!("mkdir {disk:?}: {error}"));
    let image = disk.join("disk.img");
    fs::write(&image, content).unwrap_or_else(|error| panic!("writing {image:?}: {error}"));
    disk
}

/// A disk with an image of `bytes` bytes that holds an empty ext4; answers its
/// directory.
#[track_caller]
pub fn ext4_disk(point: &Path, name: &str, bytes: u64) -> PathBuf {
    let disk = disk_with(point, name, b"");
    let image = disk.join("disk.img");
    bytes::open(&image).set_len(bytes).expect("its size");
    run(command("mkfs.ext4", &["-q"]).arg(&image));
    disk
}

/// Bytes that neither compress nor repeat, the same for the same seed
/// (Steele, Lea, Flood 2014: SplitMix64).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bytes.extend_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Panics unless two byte strings are the same, naming the first difference
/// and not printing megabytes.
#[track_caller]
pub fn assert_same(found: &[u8], expected: &[u8], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}: the length");
    if let Some(at) = (0..found.len()).find(|&at| found[at] != expected[at]) {
        let end = (at + 16).min(found.len());
        panic!(
            "{what}: differs from byte {at} (block {}) on: {:02x?}, and not {:02x?}",
            at / 4096,
            &found[at..end],
            &expected[at..end]
        );
    }
}

/// The number that a variable of the environment has, if it is there.
pub fn env_number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable}={text}")))
}

/// Panics unless `snapdisk verify` finds nothing in a store or mount.
#[track_caller]
pub fn assert_sound(place: &Path) {
    run(command(SNAPDISK, &["verify"]).arg(place));
}

/// The threads of this process, each with what it waits in, a line each.
pub fn threads() -> String {
    let of = |task: &Path, file: &str| {
        let text = fs::read_to_string(task.join(file)).unwrap_or_else(|error| error.to_string());
        text.trim().to_owned()
    };
    let line = |task: PathBuf| {
        let name = of(&task, "comm");
        let state = of(&task, "status");
        let state = state.lines().find(|line| line.starts_with("State:"));
        let state = state.unwrap_or_default().to_owned();
        format!("{name}: {state}, {}", of(&task, "wchan"))
    };
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten();
    let lines = tasks.flatten().map(|task| line(task.path()));
    lines.collect::<Vec<_>>().join("\n")
}
