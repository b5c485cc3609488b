//! `snapdisk completions` and `man`: generated from the command line itself.

use super::failure::Failure;
use super::out;
use clap::{Args, CommandFactory};
use clap_complete::Shell;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

/// Print completions for a shell
///
/// Examples:
///   snapdisk completions bash > /etc/bash_completion.d/snapdisk
///   snapdisk completions zsh > /usr/share/zsh/site-functions/_snapdisk
///   snapdisk completions fish > ~/.config/fish/completions/snapdisk.fish
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Completions {
    /// Which shell
    shell: Shell,
}

/// Print the manual page, or write those of all verbs into a directory
///
/// Examples:
///   snapdisk man | man -l -
///   snapdisk man /usr/local/share/man/man1
#[derive(Args, Debug)]
#[command(verbatim_doc_comment)]
pub(super) struct Man {
    /// Where the pages go, as snapdisk.1, snapdisk-mount.1 and so on
    directory: Option<PathBuf>,
}

pub(super) fn completions(completions: &Completions) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    let mut command = super::Arguments::command();
    clap_complete::generate(completions.shell, &mut command, "snapdisk", &mut text);
    out::print(format_args!("{}", String::from_utf8_lossy(&text)));
    Ok(ExitCode::SUCCESS)
}

pub(super) fn man(man: &Man) -> anyhow::Result<ExitCode> {
    let command = super::Arguments::command();
    match &man.directory {
        Some(directory) => {
            fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(command, directory))
                .map_err(|error| Failure::system("writing manual pages to", directory, &error))?;
        }
        None => {
            let mut text = Vec::new();
            clap_mangen::Man::new(command).render(&mut text)?;
            out::print(format_args!("{}", String::from_utf8_lossy(&text)));
        }
    }
    Ok(ExitCode::SUCCESS)
}
