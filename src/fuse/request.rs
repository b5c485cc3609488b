//! Small things that every request needs: who asks, what is answered, what
//! is logged.

use super::inode;
use crate::manifest::Owner;
use crate::tree::{Attributes, Kind, Node};
use fuser::{
    Errno, FileAttr, FileType, Generation, INodeNo, ReplyEntry, ReplyXattr, Request, TimeOrNow,
};
use std::fs;
use std::time::{Duration, SystemTime};

const SECOND: Duration = Duration::from_secs(1);

/// Whether a node is the raw image of a disk, snapshot or import.
pub fn is_image(node: Node) -> bool {
    matches!(
        node,
        Node::Live(_) | Node::Import(_) | Node::SnapshotImage(..)
    )
}

/// Whether a node is a file of policies, which comes and goes by what is
/// written to others.
fn is_policy(node: Node) -> bool {
    matches!(
        node,
        Node::NamedPolicy(_)
            | Node::PolicyFile(_)
            | Node::PolicyLink(_)
            | Node::Rejected(_)
            | Node::Draft(..)
            | Node::DraftLink(..)
    )
}

/// How long the kernel may believe a node's attributes without asking. What
/// changes without a request through the mount is asked for each time, and
/// so are images, since the answer depends on who asks (`cp.rs`).
pub fn attributes_live(node: Node) -> Duration {
    match node {
        Node::SnapshotInfo(..) | Node::Latest(_) | Node::StatusFile(_) => Duration::ZERO,
        node if is_policy(node) => Duration::ZERO,
        node if is_image(node) => Duration::ZERO,
        _ => SECOND,
    }
}

/// How long the kernel may believe that a name leads to a node. A live image
/// is looked up each time, so that after a rollback every path leads to the
/// new generation at once, whether or not the notification has got through.
pub fn name_lives(node: Node) -> Duration {
    match node {
        Node::Live(_) | Node::Latest(_) | Node::Group(_) | Node::GroupMember(..) => Duration::ZERO,
        node if is_policy(node) => Duration::ZERO,
        _ => SECOND,
    }
}

/// A node's sort for the kernel.
pub fn file_type(node: Node) -> FileType {
    match node.kind() {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Link => FileType::Symlink,
    }
}

/// Attributes for the kernel.
pub fn file_attr(from: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(inode::number_of(from.node)),
        size: from.size,
        blocks: from.allocated.div_ceil(512),
        atime: from.modified,
        mtime: from.modified,
        ctime: from.changed,
        crtime: from.changed,
        kind: file_type(from.node),
        // Permission bits fit; nothing else is in there.
        perm: (from.owner.mode & 0o7777) as u16,
        nlink: from.links,
        uid: from.owner.uid,
        gid: from.owner.gid,
        rdev: 0,
        blksize: 4096,
        flags: 0,
    }
}

/// Answers with what a name leads to.
pub fn reply_entry(reply: ReplyEntry, found: &Attributes) {
    reply.entry_with_ttls(
        &attributes_live(found.node),
        &name_lives(found.node),
        &file_attr(found),
        Generation(found.generation),
    );
}

/// Answers with an attribute's value or a list of names, or with its length
/// if `size` is 0.
pub fn reply_xattr(reply: ReplyXattr, size: u32, value: &[u8]) {
    match size {
        0 => reply.size(value.len() as u32),
        _ if value.len() > size as usize => reply.error(Errno::ERANGE),
        _ => reply.data(value),
    }
}

/// The owner of what `request` makes. The kernel has applied the umask.
pub fn owner(request: &Request, mode: u32) -> Owner {
    Owner {
        uid: request.uid(),
        gid: request.gid(),
        mode,
    }
}

/// A time that was set.
pub fn time(given: TimeOrNow) -> SystemTime {
    match given {
        TimeOrNow::SpecificTime(time) => time,
        TimeOrNow::Now => SystemTime::now(),
    }
}

/// The process of a thread, both as the kernel numbers them in requests;
/// the thread itself if it is gone or in another pid namespace.
pub fn process_of(thread: u32) -> u32 {
    let status = fs::read_to_string(format!("/proc/{thread}/status")).unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("Tgid:")?.trim().parse().ok())
        .unwrap_or(thread)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_threads_of_a_process_are_one_process() {
        let thread = fs::read_link("/proc/thread-self").expect("/proc is mounted");
        let thread = thread.file_name().expect("it ends in the thread's number");
        let thread: u32 = thread.to_string_lossy().parse().expect("a number");
        assert_eq!(process_of(thread), std::process::id());
        assert_eq!(process_of(0), 0);
    }
}
