//! What `mkdir`, `rmdir`, `rm`, `mv`, `ln`, `chmod` and `truncate` mean
//! where. All of it may wait for disks; what has returned is durable.

use super::drafts::{self, place_of};
use super::{
    CONTROL, IMAGE_FILE, IMAGES, LATEST, Node, POLICIES_DIRECTORY, SNAPSHOTS, STATUS, Tree,
};
use crate::disk::{AttributeChange, Taking};
use crate::error::{Error, Result};
use crate::events::By;
use crate::manifest::Owner;
use crate::name::{DiskName, ImageName, NAME_BYTES, SnapshotName};
use std::ffi::OsStr;
use std::time::{Instant, SystemTime};

/// The permission bits that a directory keeps; a file keeps no sticky bit.
const DIRECTORY_MODE: u32 = 0o1777;
const FILE_MODE: u32 = 0o777;

/// What is to change in a node's attributes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Change {
    /// The owner.
    pub uid: Option<u32>,
    /// The group.
    pub gid: Option<u32>,
    /// The permission bits; what else is in it is ignored.
    pub mode: Option<u32>,
    /// The time of modification.
    pub modified: Option<SystemTime>,
    /// The length in bytes.
    pub size: Option<u64>,
}

/// Who asks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caller {
    /// The process.
    pub process: u32,
    /// The user.
    pub user: u32,
}

/// Names in the top that no disk has, and that are there in every store.
const FIXED: [&str; 5] = [IMAGES, POLICIES_DIRECTORY, SNAPSHOTS, STATUS, CONTROL];

fn is_fixed(name: &OsStr) -> bool {
    FIXED.iter().any(|fixed| name == *fixed)
}

impl Tree {
    /// `mkdir`: in the top a disk, in `.snapshots` a snapshot, in the top's
    /// `.snapshots` one of every disk.
    pub fn make_directory(&self, parent: Node, name: &OsStr, owner: Owner) -> Result<Node> {
        match parent {
            Node::Root => {
                let name = DiskName::parse(name)?;
                let owner = masked(owner, DIRECTORY_MODE);
                let disk = self.store.create_disk(name, owner)?;
                self.touch_root();
                Ok(Node::Disk(disk.number()))
            }
            Node::Snapshots(number) => {
                let name = SnapshotName::parse_manual(name)?;
                self.check_no_draft(number, &name)?;
                let taking = Taking::manual(By::User(owner.uid));
                let disk = self.disk(number)?;
                let snapshot = disk.take_snapshot_as(name.as_str(), &taking)?;
                Ok(Node::Snapshot(number, snapshot.number()))
            }
            Node::Groups => {
                let name = SnapshotName::parse_manual(name)?;
                let owner = masked(owner, DIRECTORY_MODE);
                let group = self.store.take_group(name, None, owner)?;
                Ok(Node::Group(group.record.number))
            }
            Node::Disk(_) => {
                checked_length(name)?;
                Err(stray("a directory in a disk"))
            }
            _ => self.nothing_here(parent, name, "a directory there"),
        }
    }

    /// `rmdir`: deletes a disk that has nothing in it, or a snapshot, unless
    /// the same process has just tried to empty that snapshot.
    pub fn remove_directory(&self, parent: Node, name: &OsStr, caller: Caller) -> Result<()> {
        let by = By::User(caller.user);
        match parent {
            Node::Groups => {
                let name = text(name, "group")?;
                let group = self.store.group(name);
                if let Some(group) = group
                    && self.guard.has(
                        (caller.process, GROUPS, group.record.number),
                        Instant::now(),
                    )
                {
                    return Err(emptied(&format!("the group {name:?}")));
                }
                self.store.delete_group(name, &by)
            }
            Node::Root if !is_fixed(name) => {
                self.store.remove_disk(text(name, "disk")?)?;
                self.touch_root();
                Ok(())
            }
            Node::Disk(number) if name == SNAPSHOTS => {
                let left = self.disk(number)?.snapshots().len();
                match left {
                    0 => Err(stray("removing .snapshots, which every disk has")),
                    _ => Err(Error::NotEmpty {
                        what: SNAPSHOTS.into(),
                        content: format!("{left} snapshots"),
                    }),
                }
            }
            Node::Snapshots(number) => {
                let disk = self.disk(number)?;
                let text = text(name, "snapshot")?;
                if let Some(snapshot) = disk.snapshot(text)
                    && self
                        .guard
                        .has((caller.process, number, snapshot.number()), Instant::now())
                {
                    return Err(emptied(&format!("the snapshot {text:?}")));
                }
                disk.delete_snapshot_by(text, &by)
            }
            _ => self.nothing_here(parent, name, "removing this directory"),
        }
    }

    /// `open` with O_CREAT, or `mknod` of a regular file: `disk.img` in a
    /// disk, or an image that is going to be imported.
    pub fn make_file(&self, parent: Node, name: &OsStr, owner: Owner) -> Result<Node> {
        let owner = masked(owner, FILE_MODE);
        match parent {
            Node::Disk(number) if name == IMAGE_FILE => {
                // cp makes it with the permissions of its source, and those
                // of a snapshot's image let nobody write. A disk is for
                // writing.
                let owner = Owner {
                    mode: owner.mode | 0o200,
                    ..owner
                };
                self.disk(number)?.create_image(owner)?;
                Ok(Node::Live(number))
            }
            Node::Images => {
                let name = ImageName::parse_or_temporary(name)?;
                let disk = self.store.create_image(name, owner)?;
                self.touch_images();
                Ok(Node::Import(disk.number()))
            }
            _ => match place_of(parent) {
                Some(place) => self.make_draft(place, written(name)?, owner),
                None => self.nothing_here(parent, name, "a file of this name there"),
            },
        }
    }

    /// `symlink`: attaches a named policy.
    pub fn make_symbolic_link(
        &self,
        parent: Node,
        name: &OsStr,
        target: &OsStr,
        owner: Owner,
    ) -> Result<Node> {
        match place_of(parent) {
            Some(_) => {
                let target = target.to_str().ok_or_else(|| Error::InvalidArgument {
                    what: "a link to a path that is not UTF-8".into(),
                })?;
                self.make_link(parent, written(name)?, target, owner)
            }
            None => self.make_other(parent, name),
        }
    }

    /// Anything else that can be made under a name: devices, sockets,
    /// symbolic links.
    pub fn make_other(&self, parent: Node, name: &OsStr) -> Result<Node> {
        self.nothing_here(parent, name, "a special file or symbolic link")
    }

    /// `unlink`: drops a live image or an image. In a snapshot it is
    /// refused, and the caller is remembered.
    pub fn remove_file(&self, parent: Node, name: &OsStr, caller: Caller) -> Result<()> {
        match parent {
            Node::Disk(number) if name == IMAGE_FILE => self.disk(number)?.drop_image(),
            Node::Images => {
                self.store.remove_image(text(name, "image")?)?;
                self.touch_images();
                Ok(())
            }
            Node::Snapshot(disk, snapshot) => {
                let who = (caller.process, disk, snapshot);
                self.guard.note(who, Instant::now());
                self.nothing_here(parent, name, "unlinking in a snapshot")
            }
            Node::Group(group) => {
                let who = (caller.process, GROUPS, group);
                self.guard.note(who, Instant::now());
                self.nothing_here(parent, name, "unlinking in a group")
            }
            _ => match place_of(parent) {
                Some(place) if self.is_draft(place, name) => {
                    self.remove_draft(place, text(name, "file")?)
                }
                Some(_) if self.find(parent, name).is_err() => {
                    Err(super::missing("file", name.to_string_lossy()))
                }
                _ => self.nothing_here(parent, name, "unlinking this"),
            },
        }
    }

    /// `rename` within one directory: a disk, a snapshot, an image. With
    /// `no_replace` an existing target is [`Error::Exists`].
    pub fn rename(
        &self,
        parent: Node,
        name: &OsStr,
        new_parent: Node,
        new_name: &OsStr,
        no_replace: bool,
    ) -> Result<()> {
        for place in [parent, new_parent] {
            if let Node::Snapshot(..) = place {
                return self.nothing_here(place, new_name, "renaming in a snapshot");
            }
        }
        checked_length(new_name)?;
        if parent != new_parent {
            return Err(stray("renaming across directories"));
        }
        match parent {
            Node::Root if !is_fixed(name) => {
                let from = text(name, "disk")?;
                // A disk is never replaced, whether or not that was asked.
                self.store.rename_disk(from, DiskName::parse(new_name)?)?;
                self.touch_root();
                Ok(())
            }
            Node::Snapshots(number) if self.is_draft(number, name) => {
                let (from, to) = (text(name, "file")?, written(new_name)?);
                self.rename_draft(number, from, to, no_replace)
            }
            Node::Policies => {
                let (from, to) = (text(name, "policy")?, written(new_name)?);
                self.rename_draft(drafts::POLICIES, from, to, no_replace)
            }
            Node::Groups => {
                let from = text(name, "group")?;
                let to = SnapshotName::parse_manual(new_name)?;
                self.store.rename_group(from, to)
            }
            Node::Snapshots(number) if name != LATEST => {
                let from = text(name, "snapshot")?;
                let to = SnapshotName::parse_manual(new_name)?;
                self.check_no_draft(number, &to)?;
                self.disk(number)?.rename_snapshot(from, to)
            }
            Node::Images => {
                let from = text(name, "image")?;
                let to = ImageName::parse_or_temporary(new_name)?;
                self.store.rename_image(from, to, no_replace)?;
                self.touch_images();
                Ok(())
            }
            _ => self.nothing_here(parent, name, "renaming this"),
        }
    }

    /// `link`: a snapshot's image into `.images`.
    pub fn link(&self, node: Node, new_parent: Node, new_name: &OsStr) -> Result<Node> {
        match (node, new_parent) {
            (Node::SnapshotImage(disk, snapshot), Node::Images) => {
                let name = ImageName::parse(new_name)?;
                let (disk, snapshot) = self.snapshot(disk, snapshot)?;
                self.store.link_image(&disk, &snapshot.name(), name)?;
                self.touch_images();
                Ok(node)
            }
            _ => self.nothing_here(
                new_parent,
                new_name,
                "a hard link of anything but a snapshot's disk.img into .images",
            ),
        }
    }

    /// `chmod`, `chown`, `utimensat` and `truncate`. `writer` tells whether
    /// the caller itself has the file open for writing.
    pub fn change(&self, node: Node, change: Change, writer: bool) -> Result<()> {
        let attributes = |mask: u32| AttributeChange {
            uid: change.uid,
            gid: change.gid,
            mode: change.mode.map(|mode| mode & mask),
            modified: change.modified,
        };
        let any = change.uid.is_some()
            || change.gid.is_some()
            || change.mode.is_some()
            || change.modified.is_some();
        match node {
            Node::Live(number) | Node::Import(number) => {
                let disk = self.disk(number)?;
                if let Some(size) = change.size {
                    disk.truncate(size, writer)?;
                }
                match any {
                    true => disk.set_live_attributes(attributes(FILE_MODE)),
                    false => Ok(()),
                }
            }
            Node::Disk(number) => match any {
                true => self
                    .disk(number)?
                    .set_attributes(attributes(DIRECTORY_MODE)),
                false => Ok(()),
            },
            Node::Snapshot(..)
            | Node::SnapshotImage(..)
            | Node::SnapshotInfo(..)
            | Node::Group(_)
            | Node::GroupMember(..) => Err(Error::ReadOnly {
                what: "a snapshot".into(),
            }),
            Node::Status | Node::StatusFile(_) => Err(status_read_only()),
            Node::NamedPolicy(_)
            | Node::PolicyFile(_)
            | Node::PolicyLink(_)
            | Node::Draft(..)
            | Node::DraftLink(..) => {
                if let Some(size) = change.size {
                    self.cut_policy(node, size)?;
                }
                match any {
                    true => self.change_policy(node, &change),
                    false => Ok(()),
                }
            }
            // Opening it for a request may come with O_TRUNC.
            Node::Control if !any => Ok(()),
            Node::Root
            | Node::Images
            | Node::Control
            | Node::Snapshots(_)
            | Node::Latest(_)
            | Node::Policies
            | Node::Groups
            | Node::Rejected(_) => Err(stray("changing the attributes of what every store has")),
        }
    }

    /// The refusal of a change that means nothing in `parent`.
    fn nothing_here<T>(&self, parent: Node, name: &OsStr, what: &str) -> Result<T> {
        checked_length(name)?;
        match parent {
            Node::Snapshot(..) | Node::Group(_) => Err(Error::ReadOnly {
                what: "a snapshot".into(),
            }),
            Node::Status => Err(status_read_only()),
            _ => Err(stray(what)),
        }
    }

    fn touch_root(&self) {
        self.touched.lock().root = SystemTime::now();
    }

    fn touch_images(&self) {
        self.touched.lock().images = SystemTime::now();
    }
}

fn masked(owner: Owner, mask: u32) -> Owner {
    Owner {
        mode: owner.mode & mask,
        ..owner
    }
}

/// In the guard, in a disk's place: what follows is a group's number.
const GROUPS: u32 = u32::MAX;

fn status_read_only() -> Error {
    Error::ReadOnly {
        what: STATUS.into(),
    }
}

fn emptied(what: &str) -> Error {
    Error::NotEmpty {
        what: what.to_owned(),
        content: "what the same process has just tried to unlink; rmdir alone deletes it".into(),
    }
}

/// A name that is going to be given to a file of policies.
fn written(name: &OsStr) -> Result<&str> {
    checked_length(name)?;
    name.to_str().ok_or_else(|| Error::NameInvalid {
        name: name.to_string_lossy().into_owned(),
        reason: "it is not UTF-8",
    })
}

fn stray(what: &str) -> Error {
    Error::NotPermitted { what: what.into() }
}

fn checked_length(name: &OsStr) -> Result<()> {
    match name.len() {
        bytes if bytes > NAME_BYTES => Err(Error::NameTooLong { bytes }),
        _ => Ok(()),
    }
}

/// A name of something that should be there.
fn text<'a>(name: &'a OsStr, what: &'static str) -> Result<&'a str> {
    checked_length(name)?;
    name.to_str()
        .ok_or_else(|| super::missing(what, name.to_string_lossy()))
}
