//! The `snapdisk` command: what the filesystem's own operations cannot say.

use clap::{Parser, Subcommand};
use std::ffi::OsString;
use std::path::Path;
use std::process::ExitCode;

mod ask;
mod bar;
mod change;
mod daemon;
mod events;
mod failure;
mod freeze;
mod init;
mod log;
mod manual;
mod mount;
mod out;
mod policy;
mod report;
mod size;
mod table;
mod umount;
mod usage;
mod value;

/// The exit code of a command line that cannot be meant.
const USAGE: u8 = 2;

/// Virtual disks with snapshots, as a filesystem
///
/// A store holds disks and their snapshots. Mounted, a disk is a directory
/// with a raw image, disk.img, and a snapshot is a directory in .snapshots:
/// `mkdir` takes one, `rmdir` deletes it, `cp` clones it, `mount -o loop,ro`
/// looks into it. This command does what no file operation can.
#[derive(Parser, Debug)]
#[command(name = "snapdisk", version, max_term_width = 100, after_long_help = EXAMPLE)]
pub struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Give sizes in bytes
    #[arg(long, global = true)]
    bytes: bool,
}

const EXAMPLE: &str = "\
From nothing to a rollback:
  snapdisk init /var/lib/snapdisk
  snapdisk mount /var/lib/snapdisk /mnt/disks
  mkdir /mnt/disks/web && truncate -s 8G /mnt/disks/web/disk.img
  mkfs.ext4 /mnt/disks/web/disk.img
  mkdir /mnt/disks/web/.snapshots/fresh          # takes a snapshot
  snapdisk list /mnt/disks/web
  snapdisk rollback /mnt/disks/web fresh
  snapdisk umount /mnt/disks

A verb's own help has more: snapdisk help VERB.
Exit codes: 0 done; 1 failed, `verify` found damage, or `status` something that needs
attention; 2 the command line is wrong.";

#[derive(Subcommand, Debug)]
enum Verb {
    Init(init::Init),
    Mount(mount::Mount),
    Umount(umount::Umount),
    Status(report::Status),
    List(report::List),
    Snapshot(change::Snapshot),
    Wait(events::Wait),
    Rollback(change::Rollback),
    Diff(usage::Diff),
    Policy(policy::Policies),
    Set(policy::Set),
    Capacity(usage::Capacity),
    Reclaim(usage::Reclaim),
    Events(events::Events),
    Explain(events::Explain),
    Verify(report::Verify),
    Gc(report::Gc),
    Completions(manual::Completions),
    Man(manual::Man),
}

/// The name under which mount(8) looks for this program.
const MOUNT_HELPER: &str = "mount.snapdisk";

/// The command line that a call by mount(8) means (none if it is only to
/// try), None if this is no such call:
/// `mount.snapdisk STORE MNT [-sfnv] [-N NAMESPACE] [-t TYPE] [-o OPTIONS]`
/// (mount(8), "EXTERNAL HELPERS").
pub fn arguments_of_mount(line: impl Iterator<Item = OsString>) -> Option<Option<Vec<OsString>>> {
    let mut line = line.peekable();
    let name = line.next()?;
    if Path::new(&name).file_name()? != MOUNT_HELPER {
        return None;
    }
    let mut arguments: Vec<OsString> = vec!["snapdisk".into(), "mount".into()];
    while let Some(argument) = line.next() {
        match argument.to_str() {
            Some("-o") => {
                let options = line.next().unwrap_or_default();
                // What is for mount(8) itself, or is so anyway.
                let dropped = ["user", "users", "owner", "group", "suid", "dev", "relatime"];
                let options = options.to_string_lossy();
                let kept = options
                    .split(',')
                    .filter(|option| !dropped.contains(option));
                arguments.push("-o".into());
                arguments.push(kept.collect::<Vec<_>>().join(",").into());
            }
            Some("-t" | "-N") => drop(line.next()),
            Some(flags) if flags.starts_with('-') && flags.len() > 1 => {
                // A mount that is only tried: nothing is to be done.
                if flags.contains('f') {
                    return Some(None);
                }
            }
            _ => arguments.push(argument),
        }
    }
    Some(Some(arguments))
}

/// Does what the command line says. The exit code is not 0 only if it was
/// done and found damage.
pub fn run(arguments: Arguments) -> anyhow::Result<ExitCode> {
    if arguments.bytes {
        size::show_exact();
    }
    match arguments.verb {
        Verb::Init(verb) => init::run(&verb),
        Verb::Mount(verb) => mount::run(&verb),
        Verb::Umount(verb) => umount::run(&verb),
        Verb::Status(verb) => report::status(&verb),
        Verb::List(verb) => report::list(&verb),
        Verb::Snapshot(verb) => change::snapshot(&verb),
        Verb::Rollback(verb) => change::rollback(&verb),
        Verb::Verify(verb) => report::verify(&verb),
        Verb::Gc(verb) => report::gc(&verb),
        Verb::Wait(verb) => events::wait(&verb),
        Verb::Diff(verb) => usage::diff(&verb),
        Verb::Policy(verb) => policy::run(&verb),
        Verb::Set(verb) => policy::set(&verb),
        Verb::Capacity(verb) => usage::capacity(&verb),
        Verb::Reclaim(verb) => usage::reclaim(&verb),
        Verb::Events(verb) => events::events(&verb),
        Verb::Explain(verb) => events::explain(&verb),
        Verb::Completions(verb) => manual::completions(&verb),
        Verb::Man(verb) => manual::man(&verb),
    }
}

/// Says on stderr what failed, why and what to do, and gives the exit code.
pub fn report(error: &anyhow::Error) -> ExitCode {
    let (text, hint) = failure::describe(error);
    eprintln!("snapdisk: {text}");
    if let Some(hint) = hint {
        eprintln!("  hint: {hint}");
    }
    match error.downcast_ref::<failure::Failure>() {
        Some(failure) if failure.is_usage => ExitCode::from(USAGE),
        _ => ExitCode::FAILURE,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent_and_every_verb_has_an_example() {
        let mut command = Arguments::command();
        command.clone().debug_assert();
        command.build();
        for verb in command.get_subcommands_mut() {
            if verb.get_name() == "help" {
                continue;
            }
            let help = verb.render_long_help().to_string();
            assert!(help.contains("Example"), "{help}");
        }
    }

    #[test]
    fn a_line_of_fstab_is_a_mount() {
        let of = |line: &str| {
            let words = line.split(' ').map(OsString::from);
            let found = arguments_of_mount(words)??;
            Some(found.join(" ".as_ref()).to_string_lossy().into_owned())
        };
        assert_eq!(of("/usr/bin/snapdisk mount s m"), None);
        assert_eq!(
            of("/sbin/mount.snapdisk /var/s /mnt -n -t snapdisk -o rw,user,threads=2").as_deref(),
            Some("snapdisk mount /var/s /mnt -o rw,threads=2")
        );
        assert_eq!(
            of("mount.snapdisk s m -s").as_deref(),
            Some("snapdisk mount s m")
        );
    }

    #[test]
    fn command_lines_that_cannot_be_meant_are_usage_errors() {
        for line in [
            "snapdisk",
            "snapdisk frobnicate",
            "snapdisk init",
            "snapdisk init s --chunk-size 8K",
            "snapdisk mount s",
            "snapdisk rollback",
            "snapdisk snapshot",
            "snapdisk verify",
            "snapdisk verify --forget-lost m",
            "snapdisk capacity m --since tomorrow",
            "snapdisk set m max_snapshots",
            "snapdisk completions nosuchshell",
            "snapdisk policy plan f --days 0",
        ] {
            let error = Arguments::try_parse_from(line.split(' ')).expect_err(line);
            assert_eq!(error.exit_code(), i32::from(USAGE), "{line}");
        }
        for line in [
            "snapdisk init s --chunk-size 128K",
            "snapdisk mount -f s m -o threads=1,cache=64M -o allow_other",
            "snapdisk list --store s web --json",
            "snapdisk rollback --store s web first --discard",
            "snapdisk snapshot --store s web@one db@one",
            "snapdisk gc --dry-run m",
            "snapdisk verify --repair m",
            "snapdisk verify --repair --forget-lost m",
            "snapdisk snapshot --freeze nightly m/web m/db",
            "snapdisk --bytes list m",
            "snapdisk capacity m/web --since 2026-11-01 --until 2026-12-01",
            "snapdisk policy plan f.toml --days 30 --json",
            "snapdisk set m max_manual_snapshots=512 max_snapshots=none",
            "snapdisk events -f m",
            "snapdisk completions fish",
        ] {
            assert!(Arguments::try_parse_from(line.split(' ')).is_ok(), "{line}");
        }
    }
}
