//! Holding the filesystems still that are mounted from a disk's image, while
//! a snapshot is taken, so that it mounts without recovery.
//!
//! A filesystem that stayed frozen would stop whoever writes to it for good.
//! So another process thaws them, when this one says so or ends, however it
//! ends.

use super::failure::Failure;
use crate::sys::{self, Forked};
use crate::tree::IMAGE_FILE;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Filesystems that are frozen; dropping it thaws them.
pub(super) struct Frozen {
    thaw: Option<io::PipeWriter>,
    done: io::PipeReader,
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.thaw.take());
        // The end of the pipe: they are thawed.
        let mut rest = Vec::new();
        if let Err(error) = self.done.read_to_end(&mut rest) {
            eprintln!("snapdisk: waiting for the thaw: {error}");
        }
    }
}

/// The block devices of loop devices that have a disk's image as their file,
/// and of their partitions, each as `major:minor` and as `/dev/NAME`: btrfs
/// shows the latter only.
fn devices_of(disk: &Path) -> Result<Vec<String>, Failure> {
    let image = disk.join(IMAGE_FILE);
    let wanted =
        fs::metadata(&image).map_err(|error| Failure::system("opening", &image, &error))?;
    let block = Path::new("/sys/block");
    let failed = |error: io::Error| Failure::system("looking for loop devices in", block, &error);
    let mut devices = Vec::new();
    for entry in fs::read_dir(block).map_err(failed)? {
        let entry = entry.map_err(failed)?.path();
        let Ok(file) = fs::read_to_string(entry.join("loop/backing_file")) else {
            continue;
        };
        let same = fs::metadata(file.trim_end_matches('\n'))
            .is_ok_and(|found| (found.dev(), found.ino()) == (wanted.dev(), wanted.ino()));
        if !same {
            continue;
        }
        let mut add = |path: &Path| -> io::Result<()> {
            devices.push(fs::read_to_string(path.join("dev"))?.trim().to_owned());
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            devices.push(format!("/dev/{name}"));
            Ok(())
        };
        add(&entry).map_err(failed)?;
        for part in fs::read_dir(&entry).map_err(failed)? {
            let part = part.map_err(failed)?.path();
            if part.join("partition").exists() {
                add(&part).map_err(failed)?;
            }
        }
    }
    Ok(devices)
}

/// Where filesystems of these devices are mounted, each once, without those
/// that are read-only.
fn mounted_on(devices: &[String]) -> Result<Vec<PathBuf>, Failure> {
    let list = Path::new("/proc/self/mountinfo");
    let text =
        fs::read_to_string(list).map_err(|error| Failure::system("reading", list, &error))?;
    let mut seen = Vec::new();
    let mut points = Vec::new();
    for line in text.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, _, device, _, point, ..] = fields[..] else {
            continue;
        };
        let [.., source, options] = fields[..] else {
            continue;
        };
        let writable = options.split(',').any(|option| option == "rw");
        let is_one = devices.iter().any(|one| one == device || one == source);
        if writable && is_one && !seen.contains(&device) {
            seen.push(device);
            points.push(PathBuf::from(crate::mountinfo::unescape(point.as_bytes())));
        }
    }
    Ok(points)
}

/// Freezes every filesystem that is mounted from the images of these disks;
/// None if there is none. Only root may.
pub(super) fn freeze(disks: &[PathBuf]) -> Result<Option<Frozen>, Failure> {
    let mut devices = Vec::new();
    for disk in disks {
        devices.extend(devices_of(disk)?);
    }
    let points = mounted_on(&devices)?;
    if points.is_empty() {
        return Ok(None);
    }
    let mut files = Vec::new();
    for point in &points {
        let file = File::open(point).map_err(|error| Failure::system("opening", point, &error))?;
        files.push(file);
    }
    let failed = |error: io::Error| Failure::new("freezing", error);
    let (mut end, thaw) = io::pipe().map_err(failed)?;
    let (done, thawed) = io::pipe().map_err(failed)?;
    if let Forked::Child = sys::fork().map_err(failed)? {
        drop((thaw, done));
        // Nothing of the terminal's may end it before it has thawed them.
        if let Err(error) = sys::block_end_signals() {
            eprintln!("snapdisk: {error}");
        }
        // Whatever this says, it is the end; before it come the numbers of
        // those that somebody else has frozen.
        let mut others = Vec::new();
        let _ = end.read_to_end(&mut others);
        for (number, file) in files.iter().enumerate() {
            if !others.iter().any(|other| usize::from(*other) == number) {
                // EINVAL: this one was not frozen.
                let _ = sys::thaw(file);
            }
        }
        drop(thawed);
        std::process::exit(0);
    }
    drop((end, thawed));
    let mut frozen = Frozen {
        thaw: Some(thaw),
        done,
    };
    for (number, (file, point)) in files.iter().zip(&points).enumerate() {
        let Err(error) = sys::freeze(file) else {
            continue;
        };
        if let (Some(thaw), Ok(number)) = (&mut frozen.thaw, u8::try_from(number)) {
            thaw.write_all(&[number]).map_err(failed)?;
        }
        return Err(match error.raw_os_error() {
            Some(libc::EBUSY) => Failure::new(
                format_args!("freezing {}", point.display()),
                "somebody else has frozen it",
            ),
            _ => Failure::system("freezing", point, &error),
        });
    }
    Ok(Some(frozen))
}
