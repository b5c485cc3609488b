//! snapdisk: virtual disks as files, their snapshots as directories.
//!
//! # Words
//! - **block**, 4 KiB: what a layer can hold or lack. **chunk**, 64 KiB unless
//!   the store was made with another size: what is hashed, compressed and
//!   deduplicated, always at full length.
//! - **layer**: what was written to a disk between two snapshots
//!   ([`disk::layer`]), with a **log** that says which blocks it has
//!   ([`disk::log`]). The **head** is the layer being written; **frozen** ones
//!   wait to be sealed. **cut** and **graft** are explained there.
//! - **view**: a layer over what is below it, down to a map. Live image,
//!   snapshot, image and clone are all views.
//! - **map**: an immutable Merkle tree of chunk ids ([`map`]); its **root** is
//!   the name of a whole disk's content.
//! - **pack**: an append-only file of chunks and map pages ([`pack`]).
//! - **manifest**: the one small file that says what a disk is
//!   ([`manifest`]); the **catalogue** lists them.
//! - **index**: where each chunk is ([`index`]); rebuilt whenever in doubt.
//!
//! # The way of the data
//! A write goes into the head at its own offset and nowhere else. Taking a
//! snapshot puts a new head over the old one, whose blocks nobody changes any
//! more. The sealer turns frozen layers into chunks and a map in the
//! background. Reads go through the layers down to the map. Deleting replaces
//! one manifest; space comes back when nothing reaches a chunk any more.
//!
//! # Layers of the crate
//! Imports go one way: [`cli`] → [`verbs`] → [`fuse`] → [`tree`] → [`store`] →
//! {[`gc`], [`verify`], [`repair`], [`recover`], [`usage`], [`diff`],
//! [`policy`]} → [`snapshot`], [`disk`] → {[`map`], [`chunk`], [`events`],
//! [`metrics`]} → {[`pack`], [`index`], [`manifest`]} → [`backend`] →
//! [`files`] → [`error`], [`name`]. What a policy wants is worked out without
//! a store ([`policy::decide`]), and carried out by [`policy::run`]. Only
//! `fuse` knows fuser, only `index` knows sled, only `sys` has unsafe code,
//! only `sandbox` knows Landlock, only [`mountinfo`] knows what the kernel
//! says of mounts; everything below `fuse` is tested without a mount.
//!
//! # Invariants
//! 1. What an fsync, O_SYNC or O_DSYNC write acknowledged survives power
//!    loss. No record of a block is on disk before the block's data; no fsync
//!    is acknowledged on a head that no durable manifest names.
//! 2. What taking a snapshot acknowledged is durable together with every
//!    layer below it, and is the disk at one instant: every write that had
//!    returned is in it, none that began after it was acknowledged; of those
//!    in between each sector is old or new.
//! 3. A manifest names only what is durable already. After an error between
//!    a rename and its directory's sync the metadata is unknown: nothing more
//!    is changed or deleted until the store is reopened.
//! 4. A chunk's bytes are checked against its id when read from a pack. A
//!    missing pack or another id at that place means a stale index: look
//!    again. The right id with wrong bytes is damage: try another copy, else
//!    an error for that range; never zeros, never wrong bytes.
//! 5. The index may be lost or stale at any moment. A dedupe hit counts only
//!    if its pack is there, nothing in it was found damaged or unreadable, and
//!    the record lies in what was synced of it; recovery syncs a pack and its
//!    name before it trusts it and never appends to an earlier run's. Nothing
//!    is deleted because the index lacks it; an error of the index' database
//!    drops the database, never an operation.
//! 6. A failed sync, and a failed write but for lack of room, is final: a
//!    layer's ends its disk's service, a pack's ends sealing and deletion
//!    while reads and writes go on. It is never retried into success;
//!    recovery drops cached pages before it trusts a file, and syncs it.
//! 7. A full store refuses writes and still deletes, reads, seals in slices,
//!    unmounts and remounts.
//! 8. gc condemns only packs that were closed before it began; a dedupe hit
//!    pins its pack, and a pin alive at any time in a run holds for that run.
//!    Before compaction deletes a pack each live record has been read back by
//!    id from a synced one. Any finding ends gc with nothing more deleted;
//!    only packs that a repair set apart are passed over, and stay.
//! 9. A FUSE thread never waits for a disk flush, a fill from a pack, another
//!    request or backpressure: bounded pools do that work and answer later.
//!    One that waits for a flush or a fill itself counts as one of the pool
//!    for as long; at least half of all are always left to take requests.
//!    Lock order is written on the locks; none is held across a reply.
//! 10. Jumps of the wall clock delete nothing: after a gap of more than 48
//!     hours nothing is deleted for its date for 24. A policy never deletes
//!     its newest snapshot. "Oldest" follows numbers, not times.

#![deny(missing_docs)]
#![deny(unsafe_code)]

pub mod backend;
pub mod capacity;
pub mod chunk;
pub mod cli;
pub mod diff;
pub mod disk;
pub mod error;
pub mod events;
pub mod files;
pub mod fuse;
pub mod gc;
pub mod idle;
pub mod index;
pub mod manifest;
pub mod map;
pub mod metrics;
pub mod mountinfo;
pub mod name;
pub mod pack;
pub mod policy;
pub mod pool;
pub mod progress;
pub mod range_map;
pub mod recover;
pub mod repair;
pub mod sandbox;
pub mod snapshot;
pub mod store;
pub mod sys;
pub mod time;
pub mod tree;
pub mod usage;
pub mod verbs;
pub mod verify;
