//! Seeing that `cp` copies within the mount.
//!
//! GNU cp 9.1, Debian 12's, shares chunks (`copy_file_range`) only when a
//! file does not look sparse to it, that is when `st_blocks` covers its
//! size; from any other file it reads and writes every byte of data, which
//! makes of a clone in no time a copy of the whole disk. So a `cp` whose
//! destination lies in the mount is told that the image has no holes. Every
//! other program, and a `cp` to elsewhere, which has to keep the holes, gets
//! the truth.

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

/// Where a `cp` with these arguments copies to, by the options of GNU cp 9:
/// the value of `-t` if it has one, else the last argument that is no option.
fn destination<'a>(arguments: &[&'a OsStr]) -> Option<&'a OsStr> {
    let mut arguments = arguments.iter().filter(|argument| !argument.is_empty());
    let mut last = None;
    let mut only_files = false;
    arguments.next()?;
    while let Some(argument) = arguments.next() {
        match argument.as_bytes() {
            file if only_files || !file.starts_with(b"-") || file == b"-" => last = Some(*argument),
            b"--" => only_files = true,
            long if long.starts_with(b"--") => {
                let (name, value) = match long.iter().position(|byte| *byte == b'=') {
                    Some(at) => (&long[..at], Some(OsStr::from_bytes(&long[at + 1..]))),
                    None => (long, None),
                };
                // As long as it means one option only.
                let is = |option: &str, least: &str| {
                    name.starts_with(least.as_bytes()) && option.as_bytes().starts_with(name)
                };
                if is("--target-directory", "--t") {
                    return value.or_else(|| arguments.next().copied());
                }
                let takes_value = is("--suffix", "--su")
                    || is("--sparse", "--sp")
                    || is("--no-preserve", "--no-p");
                if takes_value && value.is_none() {
                    arguments.next();
                }
            }
            // Letters up to one that takes the rest, or the next argument.
            letters => {
                let taking = letters.iter().position(|letter| b"tS".contains(letter));
                let Some(at) = taking else { continue };
                let value = match &letters[at + 1..] {
                    [] => arguments.next().copied(),
                    rest => Some(OsStr::from_bytes(rest)),
                };
                if letters[at] == b't' {
                    return value;
                }
            }
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

    /// The destination is found in every form of the command line: a `cp` to
    /// elsewhere that was taken for one within would write out all holes.
    #[test]
    fn the_destination_is_the_last_file_or_the_option() {
        for (line, expected) in [
            (&["cp", "a", "/m/b", ""][..], Some("/m/b")),
            (&["cp", "-t", "/m", "a", ""], Some("/m")),
            (&["cp", "-at", "/m", "a"], Some("/m")),
            (&["cp", "-at/m", "a"], Some("/m")),
            (&["cp", "--target-directory=/m", "a"], Some("/m")),
            (&["cp", "--target-directory", "/m", "a"], Some("/m")),
            (&["cp", "--targ", "/m", "a"], Some("/m")),
            (&["cp", "--t=/m", "a"], Some("/m")),
            (&["cp", "a", "/m/b", "-v", "--sparse=always"], Some("/m/b")),
            (&["cp", "a", "/m/b", "--sparse", "always"], Some("/m/b")),
            (&["cp", "a", "/m/b", "-bS", ".old"], Some("/m/b")),
            (&["cp", "a", "/m/b", "-S.t"], Some("/m/b")),
            (&["cp", "a", "/m/b", "--no-preserve", "mode"], Some("/m/b")),
            (&["cp", "-T", "--", "a", "-t"], Some("-t")),
            (&["cp"], None),
            (&["cp", "-t"], None),
        ] {
            assert_eq!(to(line).as_deref(), expected, "{line:?}");
        }
    }

    /// Relative paths count from the process' directory.
    #[test]
    fn paths_are_made_normal_by_their_letters() {
        assert_eq!(normal(Path::new("/m/web/../x/./y")), Path::new("/m/x/y"));
        assert!(!normal(Path::new("/m/../n")).starts_with("/m"));
    }
}
