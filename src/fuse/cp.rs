//! Seeing that `cp` copies within the mount.
//!
//! GNU cp 9.1, Debian 12's, shares chunks (`copy_file_range`) only when a
//! file does not look sparse to it, that is when `st_blocks` covers its
//! size; from any other file it reads and writes every byte of data, which
//! makes of a clone in no time a copy of the whole disk. So a `cp` whose
//! destination lies in the mount is told that the image has no holes. Every
//! other program, and a `cp` to elsewhere, which has to keep the holes, gets
//! the truth. A wrong guess costs time only: the bytes are the same.

use crate::sandbox::Outside;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

/// How long a look at a process may take; mostly some 20 us.
const PATIENCE: Duration = Duration::from_millis(200);

/// Whether the process with this thread is a `cp` to somewhere below
/// `mount_point`. False for what cannot be seen.
pub fn copies_within(thread: u32, mount_point: &Path, outside: &Outside) -> bool {
    if !fs::read(format!("/proc/{thread}/comm")).is_ok_and(|comm| comm == b"cp\n") {
        return false;
    }
    // The rest is seen only by who may trace that process.
    let mount_point = mount_point.to_owned();
    // Looking at a process waits while its memory is being changed, and that
    // may wait for a request that we have still to answer.
    let copies = outside.ask_within(PATIENCE, move || is_copy_to(thread, &mount_point));
    copies.unwrap_or(false)
}

fn is_copy_to(thread: u32, mount_point: &Path) -> bool {
    if let Ok(line) = fs::read(format!("/proc/{thread}/cmdline"))
        && let Ok(directory) = fs::read_link(format!("/proc/{thread}/cwd"))
    {
        let arguments: Vec<&OsStr> = line
            .split(|byte| *byte == 0)
            .map(OsStr::from_bytes)
            .collect();
        return destination(&arguments)
            .is_some_and(|to| normal(&directory.join(to)).starts_with(mount_point));
    }
    false
}

/// Where a `cp` with these arguments copies to: the value of its option `-t`
/// if it has one, else its last argument.
fn destination<'a>(arguments: &[&'a OsStr]) -> Option<&'a OsStr> {
    let mut arguments = arguments.iter().filter(|argument| !argument.is_empty());
    let mut last = None;
    arguments.next()?;
    while let Some(argument) = arguments.next() {
        match argument.as_bytes() {
            b"-t" | b"--target-directory" => return arguments.next().copied(),
            long if long.starts_with(b"--target-directory=") => {
                return Some(OsStr::from_bytes(&long[b"--target-directory=".len()..]));
            }
            _ => last = Some(*argument),
        }
    }
    last
}

/// A path without `.` and `..`, by its letters: nothing is looked up, since
/// a look-up could lead back into this mount.
fn normal(path: &Path) -> PathBuf {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                normal.pop();
            }
            Component::CurDir => {}
            part => normal.push(part),
        }
    }
    normal
}

#[cfg(test)]
mod tests {
    use super::*;

    fn to(line: &[&str]) -> Option<String> {
        let arguments: Vec<&OsStr> = line.iter().map(OsStr::new).collect();
        destination(&arguments).map(|to| to.to_string_lossy().into_owned())
    }

    /// The destination is found in every form of the command line.
    #[test]
    fn the_destination_is_the_last_argument_or_the_option() {
        assert_eq!(to(&["cp", "a", "/m/b", ""]).as_deref(), Some("/m/b"));
        assert_eq!(to(&["cp", "-t", "/m", "a", ""]).as_deref(), Some("/m"));
        let long = ["cp", "--target-directory=/m", "a"];
        assert_eq!(to(&long).as_deref(), Some("/m"));
        assert_eq!(to(&["cp"]), None);
    }

    /// Relative paths count from the process' directory.
    #[test]
    fn paths_are_made_normal_by_their_letters() {
        assert_eq!(normal(Path::new("/m/web/../x/./y")), Path::new("/m/x/y"));
        assert!(!normal(Path::new("/m/../n")).starts_with("/m"));
    }
}
