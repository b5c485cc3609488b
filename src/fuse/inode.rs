//! Node ↔ inode number, both ways by arithmetic alone, so that numbers stay
//! the same across remounts (backup programs rely on it) and nothing has to
//! be remembered or forgotten.
//!
//! ```text
//!  63           32 31                    4 3    0
//! ┌───────────────┬───────────────────────┬──────┐
//! │ disk's number │ snapshot's number     │ kind │   1 root, 2 .images,
//! └───────────────┴───────────────────────┴──────┘   3 .control
//! ```
//! Numbers of disks and, within a disk, of snapshots are never used again,
//! so neither are inode numbers. Another live image in a disk's place has
//! the same number and a higher generation.

use crate::tree::Node;
use crate::tree::status::StatusFile;

const ROOT: u64 = 1;
const IMAGES: u64 = 2;
const CONTROL: u64 = 3;

// Kinds begin above the fixed numbers, which therefore meet no node of disk
// and snapshot 0.
const DISK: u64 = 4;
const LIVE: u64 = 5;
const SNAPSHOTS: u64 = 6;
const LATEST: u64 = 7;
const SNAPSHOT: u64 = 8;
const SNAPSHOT_IMAGE: u64 = 9;
const SNAPSHOT_INFO: u64 = 10;
const IMPORT: u64 = 11;
/// Numbers of group and disk.
const GROUP_MEMBER: u64 = 12;
/// What has no part in a snapshot: four bits of the snapshot's number say
/// what it is, the others number it.
const OTHER: u64 = 13;

const POLICIES: u32 = 0;
const NAMED_POLICY: u32 = 1;
const POLICY_FILE: u32 = 2;
const POLICY_LINK: u32 = 3;
const REJECTED: u32 = 4;
const DRAFT: u32 = 5;
const DRAFT_LINK: u32 = 6;
const GROUPS: u32 = 7;
const GROUP: u32 = 8;
const STATUS: u32 = 9;
const STATUS_FILE: u32 = 10;

const OTHER_BITS: u32 = 24;

const KIND_BITS: u32 = 4;
const SNAPSHOT_BITS: u32 = 28;

/// The highest number that a snapshot can have here; a disk with one
/// snapshot a second reaches it after eight years.
pub const MAX_SNAPSHOT_NUMBER: u32 = (1 << SNAPSHOT_BITS) - 1;

/// The inode number of a node.
pub fn number_of(node: Node) -> u64 {
    let number = |disk: u32, snapshot: u32, kind: u64| {
        debug_assert!(snapshot <= MAX_SNAPSHOT_NUMBER);
        let snapshot = u64::from(snapshot & MAX_SNAPSHOT_NUMBER);
        u64::from(disk) << (SNAPSHOT_BITS + KIND_BITS) | snapshot << KIND_BITS | kind
    };
    let other = |place: u32, what: u32, id: u32| {
        number(
            place,
            what << OTHER_BITS | id & ((1 << OTHER_BITS) - 1),
            OTHER,
        )
    };
    match node {
        Node::Root => ROOT,
        Node::Images => IMAGES,
        Node::Control => CONTROL,
        Node::Disk(disk) => number(disk, 0, DISK),
        Node::Live(disk) => number(disk, 0, LIVE),
        Node::Snapshots(disk) => number(disk, 0, SNAPSHOTS),
        Node::Latest(disk) => number(disk, 0, LATEST),
        Node::Snapshot(disk, snapshot) => number(disk, snapshot, SNAPSHOT),
        Node::SnapshotImage(disk, snapshot) => number(disk, snapshot, SNAPSHOT_IMAGE),
        Node::SnapshotInfo(disk, snapshot) => number(disk, snapshot, SNAPSHOT_INFO),
        Node::Import(disk) => number(disk, 0, IMPORT),
        Node::Policies => other(0, POLICIES, 0),
        Node::NamedPolicy(policy) => other(policy, NAMED_POLICY, 0),
        Node::PolicyFile(disk) => other(disk, POLICY_FILE, 0),
        Node::PolicyLink(disk) => other(disk, POLICY_LINK, 0),
        Node::Rejected(place) => other(place, REJECTED, 0),
        Node::Draft(place, draft) => other(place, DRAFT, draft),
        Node::DraftLink(place, draft) => other(place, DRAFT_LINK, draft),
        Node::Groups => other(0, GROUPS, 0),
        Node::Group(group) => other(group, GROUP, 0),
        Node::GroupMember(group, disk) => number(group, disk, GROUP_MEMBER),
        Node::Status => other(0, STATUS, 0),
        Node::StatusFile(file) => other(0, STATUS_FILE, file as u32),
    }
}

/// The node of an inode number; None if no node has it.
pub fn node_of(number: u64) -> Option<Node> {
    let disk = (number >> (SNAPSHOT_BITS + KIND_BITS)) as u32;
    let snapshot = (number >> KIND_BITS) as u32 & MAX_SNAPSHOT_NUMBER;
    let kind = number & ((1 << KIND_BITS) - 1);
    match (number, kind, snapshot) {
        (ROOT, ..) => Some(Node::Root),
        (IMAGES, ..) => Some(Node::Images),
        (CONTROL, ..) => Some(Node::Control),
        (_, DISK, 0) => Some(Node::Disk(disk)),
        (_, LIVE, 0) => Some(Node::Live(disk)),
        (_, SNAPSHOTS, 0) => Some(Node::Snapshots(disk)),
        (_, LATEST, 0) => Some(Node::Latest(disk)),
        (_, SNAPSHOT, _) => Some(Node::Snapshot(disk, snapshot)),
        (_, SNAPSHOT_IMAGE, _) => Some(Node::SnapshotImage(disk, snapshot)),
        (_, SNAPSHOT_INFO, _) => Some(Node::SnapshotInfo(disk, snapshot)),
        (_, IMPORT, 0) => Some(Node::Import(disk)),
        (_, GROUP_MEMBER, _) if disk != 0 => Some(Node::GroupMember(disk, snapshot)),
        (_, OTHER, _) => other_node(
            disk,
            snapshot >> OTHER_BITS,
            snapshot & ((1 << OTHER_BITS) - 1),
        ),
        _ => None,
    }
}

fn other_node(place: u32, what: u32, id: u32) -> Option<Node> {
    match (what, place, id) {
        (POLICIES, 0, 0) => Some(Node::Policies),
        (NAMED_POLICY, _, 0) => Some(Node::NamedPolicy(place)),
        (POLICY_FILE, _, 0) => Some(Node::PolicyFile(place)),
        (POLICY_LINK, _, 0) => Some(Node::PolicyLink(place)),
        (REJECTED, _, 0) => Some(Node::Rejected(place)),
        (DRAFT, ..) => Some(Node::Draft(place, id)),
        (DRAFT_LINK, ..) => Some(Node::DraftLink(place, id)),
        (GROUPS, 0, 0) => Some(Node::Groups),
        (GROUP, _, 0) => Some(Node::Group(place)),
        (STATUS, 0, 0) => Some(Node::Status),
        (STATUS_FILE, 0, _) => {
            let mut files = StatusFile::ALL.into_iter();
            files.find(|file| *file as u32 == id).map(Node::StatusFile)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn some_nodes() -> Vec<Node> {
        let mut nodes = vec![Node::Root, Node::Images, Node::Control];
        nodes.extend([Node::Policies, Node::Groups, Node::Status]);
        nodes.extend(StatusFile::ALL.map(Node::StatusFile));
        nodes.extend([
            Node::GroupMember(1, 1),
            Node::GroupMember(u32::MAX, 0x0fff_ffff),
        ]);
        for disk in [0, 1, 2, 3, 4, 0x0fff_ffff, u32::MAX] {
            nodes.extend([
                Node::Disk(disk),
                Node::Live(disk),
                Node::Snapshots(disk),
                Node::Latest(disk),
                Node::Import(disk),
                Node::NamedPolicy(disk),
                Node::PolicyFile(disk),
                Node::PolicyLink(disk),
                Node::Rejected(disk),
                Node::Draft(disk, 0),
                Node::Draft(disk, (1 << 24) - 1),
                Node::DraftLink(disk, 7),
                Node::Group(disk),
            ]);
            for snapshot in [0, 1, 2, MAX_SNAPSHOT_NUMBER] {
                nodes.extend([
                    Node::Snapshot(disk, snapshot),
                    Node::SnapshotImage(disk, snapshot),
                    Node::SnapshotInfo(disk, snapshot),
                ]);
            }
        }
        nodes
    }

    #[test]
    fn every_node_has_a_number_of_its_own_that_leads_back_to_it() {
        let mut seen = HashSet::new();
        for node in some_nodes() {
            let number = number_of(node);
            assert_ne!(number, 0);
            assert_eq!(node_of(number), Some(node), "{number:#x}");
            assert!(seen.insert(number), "{node:?} shares {number:#x}");
        }
    }

    #[test]
    fn numbers_are_the_same_in_every_run() {
        assert_eq!(number_of(Node::Root), 1);
        assert_eq!(number_of(Node::Live(7)), 0x7_0000_0005);
        assert_eq!(number_of(Node::SnapshotImage(7, 3)), 0x7_0000_0039);
    }

    #[test]
    fn other_numbers_mean_nothing() {
        for number in [0, 0x14, 0xc, 0x7_0000_0000, 0x7_0000_0015, u64::MAX] {
            assert_eq!(node_of(number), None, "{number:#x}");
        }
    }
}
