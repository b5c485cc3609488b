//! Printing answers: whoever reads them may have had enough (`| head`).

use crate::sys;
use std::fmt;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::process;

/// Whether anybody still reads what is printed: `| head` ends.
pub(super) fn is_read() -> bool {
    !sys::is_hung_up(io::stdout().as_fd())
}

/// Prints to stdout. That nobody reads it any more is no error; that it
/// cannot be written is one, and ends the command with 1.
pub(super) fn print(text: fmt::Arguments<'_>) {
    let printed = io::stdout().lock().write_fmt(text);
    if let Err(error) = printed
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        eprintln!("snapdisk: writing the answer: {error}");
        process::exit(1);
    }
}

/// Prints a line, as `println!` does.
macro_rules! say {
    () => { $crate::cli::out::print(format_args!("\n")) };
    ($($argument:tt)*) => {
        $crate::cli::out::print(format_args!("{}\n", format_args!($($argument)*)))
    };
}
pub(super) use say;
