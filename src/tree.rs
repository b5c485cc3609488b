//! What each path of the mounted tree means, without FUSE: nodes, their
//! attributes, what is found under which name, and listings. What changes
//! them is in [`change`], extended attributes are in [`attribute`].
//!
//! ```text
//! /                        Root
//! ├── .images/             Images       .control  Control (not listed)
//! │   ├── linked.img       SnapshotImage of the snapshot that it depends on
//! │   └── imported.img     Import
//! └── web/                 Disk
//!     ├── disk.img         Live
//!     └── .snapshots/      Snapshots
//!         ├── policy.toml  PolicyFile, or PolicyLink to a named policy
//!         ├── latest       Latest, a symbolic link to the newest
//!         └── one/         Snapshot
//!             ├── disk.img     SnapshotImage
//!             └── info.toml    SnapshotInfo
//! ├── .policies/           Policies
//! │   └── nightly.toml     NamedPolicy
//! ├── .snapshots/          Groups
//! │   └── nightly/         Group
//! │       └── web          GroupMember, a symbolic link to the snapshot
//! └── .status/             Status, with StatusFiles
//! ```
//!
//! Nothing is kept per path: a node is a few numbers, and what they stand
//! for is asked of the store each time.

use crate::capacity::Space;
use crate::disk::{Attempt, Disk, Wait};
use crate::error::{Error, Result};
use crate::manifest::Owner;
use crate::name::NAME_BYTES;
use crate::policy::{POLICY_FILE, REJECTED_FILE};
use crate::snapshot::Snapshot;
use crate::store::{Group, Image, Store};
use crate::time;
use drafts::{POLICIES, place_of};
use parking_lot::Mutex;
use status::StatusFile;
use std::ffi::OsStr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

pub mod attribute;
pub mod change;
pub mod drafts;
pub mod guard;
pub mod status;
#[cfg(test)]
mod tests;

/// The directory of images.
pub const IMAGES: &str = ".images";
/// The directory of named policies.
pub const POLICIES_DIRECTORY: &str = ".policies";
/// The directory of what a store tells about itself.
pub const STATUS: &str = ".status";
/// The file through which the command talks to a mounted store.
pub const CONTROL: &str = ".control";
/// The raw image in a disk and in a snapshot.
pub const IMAGE_FILE: &str = "disk.img";
/// The directory of a disk's snapshots.
pub const SNAPSHOTS: &str = ".snapshots";
/// The symbolic link to a disk's newest snapshot.
pub const LATEST: &str = "latest";
/// What a snapshot tells about itself.
pub const INFO_FILE: &str = "info.toml";

/// Something that a path leads to. Disks and imports are meant by their
/// number, snapshots by their disk's and their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Node {
    /// The top.
    Root,
    /// `.images`.
    Images,
    /// `.control`.
    Control,
    /// A disk's directory.
    Disk(u32),
    /// A disk's live image.
    Live(u32),
    /// A disk's `.snapshots`.
    Snapshots(u32),
    /// `latest` in a disk's `.snapshots`.
    Latest(u32),
    /// A snapshot's directory.
    Snapshot(u32, u32),
    /// A snapshot's image, also under the names of images that depend on it.
    SnapshotImage(u32, u32),
    /// A snapshot's `info.toml`.
    SnapshotInfo(u32, u32),
    /// An image that depends on nothing.
    Import(u32),
    /// `.policies`.
    Policies,
    /// A named policy.
    NamedPolicy(u32),
    /// A disk's own `policy.toml`.
    PolicyFile(u32),
    /// A disk's `policy.toml` that is a link to a named one.
    PolicyLink(u32),
    /// `policy.rejected` of a place.
    Rejected(u32),
    /// A scratch file of a place, or a policy that is made.
    Draft(u32, u32),
    /// A symbolic link of a place that waits for its name.
    DraftLink(u32, u32),
    /// `.snapshots` in the top.
    Groups,
    /// A group's directory.
    Group(u32),
    /// The link to a group's member, by the numbers of group and disk.
    GroupMember(u32, u32),
    /// `.status`.
    Status,
    /// A file in it.
    StatusFile(StatusFile),
}

/// What sort of file a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Link,
}

impl Node {
    /// What sort of file it is.
    pub fn kind(self) -> Kind {
        match self {
            Node::Root
            | Node::Images
            | Node::Disk(_)
            | Node::Snapshots(_)
            | Node::Snapshot(..)
            | Node::Policies
            | Node::Groups
            | Node::Group(_)
            | Node::Status => Kind::Directory,
            Node::Control
            | Node::Live(_)
            | Node::SnapshotImage(..)
            | Node::SnapshotInfo(..)
            | Node::Import(_)
            | Node::NamedPolicy(_)
            | Node::PolicyFile(_)
            | Node::Rejected(_)
            | Node::Draft(..)
            | Node::StatusFile(_) => Kind::File,
            Node::Latest(_) | Node::PolicyLink(_) | Node::DraftLink(..) | Node::GroupMember(..) => {
                Kind::Link
            }
        }
    }

    /// The directory that holds a directory; the top holds itself.
    fn parent(self) -> Node {
        match self {
            Node::Snapshots(disk) => Node::Disk(disk),
            Node::Snapshot(disk, _) => Node::Snapshots(disk),
            Node::Group(_) => Node::Groups,
            _ => Node::Root,
        }
    }
}

/// What `stat` tells about a node.
#[derive(Clone, Copy, Debug)]
pub struct Attributes {
    /// The node.
    pub node: Node,
    /// Rises whenever another file takes the node's place.
    pub generation: u64,
    /// Owner and permission bits.
    pub owner: Owner,
    /// Length in bytes.
    pub size: u64,
    /// Bytes of data, holes left out.
    pub allocated: u64,
    /// Names that lead to it.
    pub links: u32,
    /// When its content last changed.
    pub modified: SystemTime,
    /// When its content or its attributes last changed.
    pub changed: SystemTime,
}

/// A name in a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The name.
    pub name: String,
    /// What it leads to.
    pub node: Node,
}

/// The tree of one mounted store.
pub struct Tree {
    store: Arc<Store>,
    /// Who owns what no disk's directory owns.
    owner: Owner,
    hide_snapshots: bool,
    /// When names in the top and in `.images` last changed. A leaf.
    touched: Mutex<Touched>,
    guard: guard::Guard,
    drafts: drafts::Drafts,
    /// Where it is mounted, if it is.
    mount_point: Option<PathBuf>,
}

struct Touched {
    root: SystemTime,
    images: SystemTime,
}

impl Tree {
    /// The tree of `store`. What belongs to no disk is owned by `uid` and
    /// `gid`; with `hide_snapshots`, `.snapshots` can be entered but is not
    /// listed.
    pub fn new(store: Arc<Store>, uid: u32, gid: u32, hide_snapshots: bool) -> Tree {
        let now = SystemTime::now();
        Tree {
            store,
            owner: Owner {
                uid,
                gid,
                mode: 0o755,
            },
            hide_snapshots,
            touched: Mutex::new(Touched {
                root: now,
                images: now,
            }),
            guard: guard::Guard::default(),
            drafts: drafts::Drafts::default(),
            mount_point: None,
        }
    }

    /// Also understands absolute paths below where it is mounted.
    pub fn mounted_on(mut self, mount_point: PathBuf) -> Tree {
        self.mount_point = Some(mount_point);
        self
    }

    /// The store that it shows.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// The disk or import of a number; [`Error::Missing`] once it is gone.
    pub fn disk(&self, number: u32) -> Result<Arc<Disk>> {
        self.store
            .disk_by_number(number)
            .ok_or_else(|| missing("disk", format!("number {number}")))
    }

    /// A snapshot and its disk; [`Error::Missing`] once it is gone.
    pub fn snapshot(&self, disk: u32, number: u32) -> Result<(Arc<Disk>, Arc<Snapshot>)> {
        let disk = self.disk(disk)?;
        let snapshot = disk
            .snapshot_by_number(number)
            .ok_or_else(|| missing("snapshot", format!("number {number}")))?;
        Ok((disk, snapshot))
    }

    /// Room in the store. May wait.
    pub fn space(&self) -> Result<Space> {
        self.store.space()
    }

    /// What `name` leads to in the directory `parent`. [`Error::Missing`] if
    /// nothing, [`Error::NameTooLong`] if nothing ever could.
    pub fn find(&self, parent: Node, name: &OsStr) -> Result<Node> {
        if name.len() > NAME_BYTES {
            return Err(Error::NameTooLong { bytes: name.len() });
        }
        // What is not UTF-8 was never given to anything.
        let text = name.to_str().unwrap_or_default();
        let nothing = || missing("file", name.to_string_lossy());
        match parent {
            Node::Root => match text {
                IMAGES => Ok(Node::Images),
                CONTROL => Ok(Node::Control),
                POLICIES_DIRECTORY => Ok(Node::Policies),
                SNAPSHOTS => Ok(Node::Groups),
                STATUS => Ok(Node::Status),
                _ => match self.store.disk(text) {
                    Some(disk) => Ok(Node::Disk(disk.number())),
                    None => Err(missing("disk", text)),
                },
            },
            Node::Images => match self.store.image(text) {
                Some(image) => Ok(node_of(&image)),
                None => Err(missing("image", text)),
            },
            Node::Disk(number) => {
                let disk = self.disk(number)?;
                match text {
                    SNAPSHOTS => Ok(Node::Snapshots(number)),
                    IMAGE_FILE if disk.live().is_some() => Ok(Node::Live(number)),
                    _ => Err(nothing()),
                }
            }
            Node::Snapshots(number) => {
                let disk = self.disk(number)?;
                if text == LATEST && !disk.snapshots().is_empty() {
                    return Ok(Node::Latest(number));
                }
                match disk.snapshot(text) {
                    Some(snapshot) => Ok(Node::Snapshot(number, snapshot.number())),
                    None => {
                        (self.find_draft(number, text)).ok_or_else(|| missing("snapshot", text))
                    }
                }
            }
            Node::Policies => {
                let found = self.find_draft(POLICIES, text);
                found.ok_or_else(|| missing("policy", text))
            }
            Node::Groups => match self.store.group(text) {
                Some(group) => Ok(Node::Group(group.record.number)),
                None => Err(missing("group", text)),
            },
            Node::Group(number) => {
                let group = self.group(number)?;
                let mut members = group.members.iter();
                match members.find(|(disk, _)| disk.name() == text) {
                    Some((disk, _)) => Ok(Node::GroupMember(number, disk.number())),
                    None => Err(nothing()),
                }
            }
            Node::Status => {
                let mut files = StatusFile::ALL.into_iter();
                let found = files.find(|file| file.name() == text);
                found.map(Node::StatusFile).ok_or_else(nothing)
            }
            Node::Snapshot(disk, snapshot) => match text {
                IMAGE_FILE => Ok(Node::SnapshotImage(disk, snapshot)),
                INFO_FILE => Ok(Node::SnapshotInfo(disk, snapshot)),
                _ => Err(nothing()),
            },
            _ => Err(nothing()),
        }
    }

    /// What `stat` tells about a node; [`Error::Missing`] once it is gone.
    /// Waits for packs or an `info.toml` only with [`Wait::Yes`].
    pub fn attributes(&self, node: Node, wait: Wait) -> Result<Attempt<Attributes>> {
        let directory = |owner: Owner, subdirectories: usize, time: SystemTime| Attributes {
            node,
            generation: 0,
            owner,
            size: 0,
            allocated: 0,
            links: u32::try_from(subdirectories)
                .unwrap_or(u32::MAX)
                .saturating_add(2),
            modified: time,
            changed: time,
        };
        let file = |owner: Owner, size: u64, time: SystemTime| Attributes {
            node,
            generation: 0,
            owner,
            size,
            allocated: size,
            links: 1,
            modified: time,
            changed: time,
        };
        Ok(Attempt::Done(match node {
            Node::Root => {
                let disks = self.store.disks().len();
                let groups = usize::from(!self.hide_snapshots);
                directory(self.owner, disks + 3 + groups, self.touched.lock().root)
            }
            Node::Policies => {
                let times = self.store.policies().into_iter();
                let times = times.map(|policy| time::to_system(policy.text.modified_ns));
                let time = times.max().unwrap_or(self.touched.lock().root);
                directory(self.owner, 0, time)
            }
            Node::Groups => {
                let groups = self.store.groups();
                let times = groups
                    .iter()
                    .map(|one| time::to_system(one.record.created_ns));
                let time = times.max().unwrap_or(self.touched.lock().root);
                directory(self.owner, groups.len(), time)
            }
            Node::Group(number) => {
                let record = self.group(number)?.record;
                directory(record.owner, 0, time::to_system(record.created_ns))
            }
            Node::GroupMember(number, _) => {
                let record = self.group(number)?.record;
                let owner = Owner {
                    mode: 0o777,
                    ..record.owner
                };
                let size = self.target(node)?.len() as u64;
                Attributes {
                    allocated: 0,
                    ..file(owner, size, time::to_system(record.created_ns))
                }
            }
            Node::Status => directory(self.owner, 0, self.touched.lock().root),
            Node::StatusFile(kind) => {
                let owner = Owner {
                    mode: 0o444,
                    ..self.owner
                };
                let size = match (kind, wait) {
                    (StatusFile::Events, _) => self.store.events().text_len(),
                    (_, Wait::No) => return Ok(Attempt::WouldBlock),
                    (_, Wait::Yes) => kind.render(&self.store)?.len() as u64,
                };
                file(owner, size, SystemTime::now())
            }
            Node::NamedPolicy(_)
            | Node::PolicyFile(_)
            | Node::PolicyLink(_)
            | Node::Rejected(_)
            | Node::Draft(..)
            | Node::DraftLink(..) => self.draft_attributes(node)?,
            Node::Images => directory(self.owner, 0, self.touched.lock().images),
            Node::Control => {
                let owner = Owner {
                    mode: 0o600,
                    ..self.owner
                };
                file(owner, 0, self.touched.lock().root)
            }
            Node::Disk(number) => {
                let known = self.disk(number)?.attributes();
                let listed = usize::from(!self.hide_snapshots);
                directory(known.owner, listed, known.modified)
            }
            Node::Live(number) | Node::Import(number) => {
                return self.live_attributes(node, number, wait);
            }
            Node::Snapshots(number) => {
                let disk = self.disk(number)?;
                let snapshots = disk.snapshots();
                let known = disk.attributes();
                let time = snapshots.last().map_or(known.modified, |newest| {
                    known.modified.max(newest.created())
                });
                directory(known.owner, snapshots.len(), time)
            }
            Node::Latest(number) => {
                let disk = self.disk(number)?;
                let newest = newest(&disk)?;
                let owner = Owner {
                    mode: 0o777,
                    ..disk.attributes().owner
                };
                Attributes {
                    allocated: 0,
                    ..file(owner, newest.name().len() as u64, newest.created())
                }
            }
            Node::Snapshot(number, snapshot) => {
                let (disk, snapshot) = self.snapshot(number, snapshot)?;
                // With its disk's permissions, whoever may delete the
                // snapshot may also try to unlink in it: the refusal must
                // come from here, not from the kernel, so that the guard
                // hears of it.
                directory(disk.attributes().owner, 0, snapshot.created())
            }
            Node::SnapshotImage(number, snapshot) => {
                let (disk, snapshot) = self.snapshot(number, snapshot)?;
                let Attempt::Done(allocated) = disk.allocated_snapshot(&snapshot, wait)? else {
                    return Ok(Attempt::WouldBlock);
                };
                Attributes {
                    allocated,
                    links: snapshot.links(),
                    ..file(
                        read_only(snapshot.owner),
                        snapshot.size(),
                        snapshot.created(),
                    )
                }
            }
            Node::SnapshotInfo(number, number_in_disk) => {
                let (disk, snapshot) = self.snapshot(number, number_in_disk)?;
                let length = disk.snapshot_outline(&snapshot)?.len() as u64;
                let owner = Owner {
                    mode: 0o444,
                    ..disk.attributes().owner
                };
                file(owner, length, snapshot.changed())
            }
        }))
    }

    fn live_attributes(&self, node: Node, number: u32, wait: Wait) -> Result<Attempt<Attributes>> {
        let disk = self.disk(number)?;
        let live = disk.live().ok_or_else(|| missing("file", IMAGE_FILE))?;
        let Attempt::Done(allocated) = disk.allocated(wait)? else {
            return Ok(Attempt::WouldBlock);
        };
        Ok(Attempt::Done(Attributes {
            node,
            generation: match node {
                Node::Live(_) => live.generation,
                // What an import holds is never replaced, only finished.
                _ => 0,
            },
            owner: live.owner,
            size: live.size,
            allocated,
            links: 1,
            modified: live.modified,
            changed: live.changed,
        }))
    }

    /// A node's path below the top, for messages: by numbers where names
    /// are gone already.
    pub fn path(&self, node: Node) -> String {
        let disk = |number: u32| match self.store.disk_by_number(number) {
            Some(disk) => disk.name(),
            None => format!("disk {number}"),
        };
        let snapshot = |number: u32, in_disk: u32| match self.snapshot(number, in_disk) {
            Ok((_, snapshot)) => format!("{}/{SNAPSHOTS}/{}", disk(number), snapshot.name()),
            Err(_) => format!("{}/{SNAPSHOTS}/snapshot {in_disk}", disk(number)),
        };
        match node {
            Node::Root => "/".into(),
            Node::Images => IMAGES.into(),
            Node::Control => CONTROL.into(),
            Node::Disk(number) => disk(number),
            Node::Live(number) => format!("{}/{IMAGE_FILE}", disk(number)),
            Node::Snapshots(number) => format!("{}/{SNAPSHOTS}", disk(number)),
            Node::Latest(number) => format!("{}/{SNAPSHOTS}/{LATEST}", disk(number)),
            Node::Snapshot(number, in_disk) => snapshot(number, in_disk),
            Node::SnapshotImage(number, in_disk) => {
                format!("{}/{IMAGE_FILE}", snapshot(number, in_disk))
            }
            Node::SnapshotInfo(number, in_disk) => {
                format!("{}/{INFO_FILE}", snapshot(number, in_disk))
            }
            Node::Import(number) => format!("{IMAGES}/{}", disk(number)),
            Node::Policies => POLICIES_DIRECTORY.into(),
            Node::NamedPolicy(number) => match self.store.policy_by_number(number) {
                Some(policy) => format!("{POLICIES_DIRECTORY}/{}", policy.name),
                None => format!("{POLICIES_DIRECTORY}/policy {number}"),
            },
            Node::PolicyFile(number) | Node::PolicyLink(number) => {
                format!("{}/{SNAPSHOTS}/{POLICY_FILE}", disk(number))
            }
            Node::Rejected(place) => format!("{}/{REJECTED_FILE}", self.place_path(place)),
            Node::Draft(place, number) | Node::DraftLink(place, number) => {
                let name = self.draft_name(place, number);
                format!("{}/{name}", self.place_path(place))
            }
            Node::Groups => SNAPSHOTS.into(),
            Node::Group(number) => match self.group(number) {
                Ok(group) => format!("{SNAPSHOTS}/{}", group.record.name),
                Err(_) => format!("{SNAPSHOTS}/group {number}"),
            },
            Node::GroupMember(group, number) => {
                format!("{}/{}", self.path(Node::Group(group)), disk(number))
            }
            Node::Status => STATUS.into(),
            Node::StatusFile(file) => format!("{STATUS}/{}", file.name()),
        }
    }

    fn place_path(&self, place: u32) -> String {
        match place {
            POLICIES => POLICIES_DIRECTORY.into(),
            disk => self.path(Node::Snapshots(disk)),
        }
    }

    fn group(&self, number: u32) -> Result<Group> {
        let group = self.store.group_by_number(number);
        group.ok_or_else(|| missing("group", format!("number {number}")))
    }

    /// Where a symbolic link leads.
    pub fn target(&self, node: Node) -> Result<String> {
        match node {
            Node::Latest(number) => Ok(newest(&*self.disk(number)?)?.name()),
            Node::PolicyLink(_) | Node::DraftLink(..) => self.draft_target(node),
            Node::GroupMember(group, number) => {
                let members = self.group(group)?.members;
                let mut members = members.iter();
                match members.find(|(disk, _)| disk.number() == number) {
                    Some((disk, snapshot)) => Ok(format!(
                        "../../{}/{SNAPSHOTS}/{}",
                        disk.name(),
                        snapshot.name()
                    )),
                    None => Err(missing("snapshot", format!("of disk {number}"))),
                }
            }
            _ => Err(Error::InvalidArgument {
                what: "this is no symbolic link".into(),
            }),
        }
    }

    /// The names in a directory as they are now, `.` and `..` first.
    pub fn list(&self, node: Node) -> Result<Vec<Listed>> {
        let listed = |name: &str, node| Listed {
            name: name.to_owned(),
            node,
        };
        let mut names = vec![listed(".", node), listed("..", node.parent())];
        match node {
            Node::Root => {
                names.push(listed(IMAGES, Node::Images));
                names.push(listed(POLICIES_DIRECTORY, Node::Policies));
                if !self.hide_snapshots {
                    names.push(listed(SNAPSHOTS, Node::Groups));
                }
                names.push(listed(STATUS, Node::Status));
                for disk in self.store.disks() {
                    names.push(listed(&disk.name(), Node::Disk(disk.number())));
                }
            }
            Node::Images => {
                for image in self.store.images() {
                    names.push(listed(image.name(), node_of(&image)));
                }
            }
            Node::Disk(number) => {
                if self.disk(number)?.live().is_some() {
                    names.push(listed(IMAGE_FILE, Node::Live(number)));
                }
                if !self.hide_snapshots {
                    names.push(listed(SNAPSHOTS, Node::Snapshots(number)));
                }
            }
            Node::Snapshots(number) => {
                let snapshots = self.disk(number)?.snapshots();
                if !snapshots.is_empty() {
                    names.push(listed(LATEST, Node::Latest(number)));
                }
                for snapshot in snapshots {
                    let node = Node::Snapshot(number, snapshot.number());
                    names.push(listed(&snapshot.name(), node));
                }
            }
            Node::Groups => {
                for group in self.store.groups() {
                    names.push(listed(&group.record.name, Node::Group(group.record.number)));
                }
            }
            Node::Group(number) => {
                for (disk, _) in self.group(number)?.members {
                    names.push(listed(
                        &disk.name(),
                        Node::GroupMember(number, disk.number()),
                    ));
                }
            }
            Node::Policies => {}
            Node::Status => {
                for file in StatusFile::ALL {
                    names.push(listed(file.name(), Node::StatusFile(file)));
                }
            }
            Node::Snapshot(disk, snapshot) => {
                self.snapshot(disk, snapshot)?;
                names.push(listed(IMAGE_FILE, Node::SnapshotImage(disk, snapshot)));
                names.push(listed(INFO_FILE, Node::SnapshotInfo(disk, snapshot)));
            }
            _ => {
                return Err(Error::InvalidArgument {
                    what: "this is no directory".into(),
                });
            }
        }
        if let Some(place) = place_of(node) {
            let files = self.list_drafts(place).into_iter();
            names.extend(files.map(|(name, node)| Listed { name, node }));
        }
        Ok(names)
    }
}

fn newest(disk: &Disk) -> Result<Arc<Snapshot>> {
    let newest = disk.snapshots().into_iter().next_back();
    newest.ok_or_else(|| missing("file", LATEST))
}

fn node_of(image: &Image) -> Node {
    match image {
        Image::Link { disk, snapshot, .. } => Node::SnapshotImage(disk.number(), snapshot.number()),
        Image::Import { disk, .. } => Node::Import(disk.number()),
    }
}

fn missing(what: &'static str, name: impl Into<String>) -> Error {
    Error::Missing {
        what,
        name: name.into(),
    }
}

fn read_only(owner: Owner) -> Owner {
    Owner {
        mode: owner.mode & !0o222,
        ..owner
    }
}
