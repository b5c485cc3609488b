//! `snapdisk init`.

use super::failure::of_library;
use super::out::say;
use super::size;
use crate::store::{self, InitOptions};
use clap::Args;
use std::path::PathBuf;
use std::process::ExitCode;

/// Make a store
///
/// STORE is a directory, made if it is not there; an existing one must be
/// empty. Everything lives in it: disks, snapshots, the log.
///
/// Disks are cut into chunks of one size, which is chosen here and never
/// changes. 64K suits most; smaller ones find more duplicates and need more
/// memory, larger ones the other way round.
///
/// Example: snapdisk init /var/lib/snapdisk
#[derive(Args, Debug)]
pub(super) struct Init {
    /// The directory
    store: PathBuf,
    /// Bytes in a chunk: a power of two from 16K to 1M
    #[arg(long, value_name = "SIZE", default_value = "64K", value_parser = size::parse_chunk)]
    chunk_size: u32,
}

pub(super) fn run(init: &Init) -> anyhow::Result<ExitCode> {
    let options = InitOptions {
        chunk_size: init.chunk_size,
    };
    let shown = init.store.display();
    store::init(&init.store, &options).map_err(of_library(format!("making the store {shown}")))?;
    say!("made the store {shown}; to mount it: snapdisk mount {shown} MNT");
    Ok(ExitCode::SUCCESS)
}
