//! The command: parse, run, exit code.

use clap::Parser;
use snapdisk::cli;
use std::process::ExitCode;

fn main() -> ExitCode {
    // Usage errors and --help end here, with 2 and 0.
    let arguments = match cli::arguments_of_mount(std::env::args_os()) {
        Some(None) => return ExitCode::SUCCESS,
        Some(Some(line)) => cli::Arguments::parse_from(line),
        None => cli::Arguments::parse(),
    };
    cli::run(arguments).unwrap_or_else(|error| cli::report(&error))
}
