use super::change::{Caller, Change};
use super::*;
use crate::progress::Quiet;
use crate::store::{InitOptions, Options, init};
use std::os::unix::ffi::OsStrExt;

const OWNER: Owner = Owner {
    uid: 7,
    gid: 8,
    mode: 0o750,
};
/// A process that has done nothing yet.
const NEWCOMER: u32 = 1;

fn caller(process: u32) -> Caller {
    Caller { process, user: 0 }
}

struct Fixture {
    tree: Arc<Tree>,
    store: Arc<Store>,
    _directory: tempfile::TempDir,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.store.close().expect("the store closes");
    }
}

fn fixture() -> Fixture {
    let directory = tempfile::tempdir().expect("a temporary directory");
    init(directory.path(), &InitOptions::default()).expect("a new store");
    let store = Store::open(directory.path(), Options::default(), &Quiet).expect("it opens");
    Fixture {
        tree: Arc::new(Tree::new(store.clone(), 1, 2, false)),
        store,
        _directory: directory,
    }
}

/// A disk `web` with an image of 1 MiB and a snapshot `first`; the disk's
/// number and the snapshot's.
fn with_snapshot(tree: &Tree) -> Result<(u32, u32)> {
    let Node::Disk(disk) = tree.make_directory(Node::Root, "web".as_ref(), OWNER)? else {
        panic!("a directory in the top is a disk");
    };
    let live = tree.make_file(Node::Disk(disk), IMAGE_FILE.as_ref(), OWNER)?;
    let size = Change {
        size: Some(1 << 20),
        ..Change::default()
    };
    tree.change(live, size, false)?;
    match tree.make_directory(Node::Snapshots(disk), "first".as_ref(), OWNER)? {
        Node::Snapshot(_, snapshot) => Ok((disk, snapshot)),
        other => panic!("a directory in .snapshots is a snapshot, not {other:?}"),
    }
}

fn names(tree: &Tree, node: Node) -> Result<Vec<String>> {
    Ok(tree.list(node)?.into_iter().map(|l| l.name).collect())
}

#[test]
fn what_is_made_is_found_and_listed_under_its_name() -> Result<()> {
    let fixture = fixture();
    let tree = &fixture.tree;
    let (disk, snapshot) = with_snapshot(tree)?;
    assert_eq!(
        names(tree, Node::Root)?,
        [
            ".",
            "..",
            ".images",
            ".policies",
            ".snapshots",
            ".status",
            "web"
        ]
    );
    assert_eq!(
        names(tree, Node::Disk(disk))?,
        [".", "..", "disk.img", ".snapshots"]
    );
    assert_eq!(
        names(tree, Node::Snapshots(disk))?,
        [".", "..", "latest", "first"]
    );
    assert_eq!(tree.target(Node::Latest(disk))?, "first");
    let directories = [
        Node::Root,
        Node::Images,
        Node::Disk(disk),
        Node::Snapshots(disk),
        Node::Snapshot(disk, snapshot),
    ];
    for directory in directories {
        for listed in tree.list(directory)?.iter().skip(2) {
            let found = tree.find(directory, listed.name.as_ref())?;
            assert_eq!(found, listed.node, "{}", listed.name);
            let told = tree.attributes(found, Wait::Yes)?.waited();
            assert_eq!(told.node, found);
        }
    }
    Ok(())
}

#[test]
fn bad_names_are_refused_where_something_is_made() -> Result<()> {
    let fixture = fixture();
    let tree = &fixture.tree;
    let (disk, _) = with_snapshot(tree)?;
    let snapshots = Node::Snapshots(disk);
    let make = |parent, name: &[u8]| tree.make_directory(parent, OsStr::from_bytes(name), OWNER);
    let long = [b'x'; 300];
    for bad in [&b".x"[..], b"-x", b"a b", b"a\xff", &long[..129]] {
        for parent in [Node::Root, snapshots] {
            let made = make(parent, bad);
            assert!(matches!(made, Err(Error::NameInvalid { .. })), "{bad:?}");
        }
    }
    for reserved in [&b"a"[..], b"auto-x", b"latest", b"policy.toml"] {
        let made = make(snapshots, reserved);
        assert!(matches!(made, Err(Error::NameInvalid { .. })));
    }
    for parent in [Node::Root, snapshots, Node::Disk(disk), Node::Images] {
        let made = make(parent, &long);
        assert!(matches!(made, Err(Error::NameTooLong { bytes: 300 })));
        let found = tree.find(parent, OsStr::from_bytes(&long));
        assert!(matches!(found, Err(Error::NameTooLong { bytes: 300 })));
    }
    assert!(matches!(
        make(snapshots, b"first"),
        Err(Error::Exists { .. })
    ));
    assert!(matches!(
        make(Node::Root, b"web"),
        Err(Error::Exists { .. })
    ));
    Ok(())
}

#[test]
fn stray_things_mean_nothing() -> Result<()> {
    let fixture = fixture();
    let tree = &fixture.tree;
    let (disk, snapshot) = with_snapshot(tree)?;
    let name = OsStr::new("name");
    let mut refusals = vec![
        tree.make_directory(Node::Disk(disk), name, OWNER).err(),
        tree.make_directory(Node::Images, name, OWNER).err(),
        tree.make_file(Node::Root, name, OWNER).err(),
        tree.make_file(Node::Disk(disk), name, OWNER).err(),
        tree.make_other(Node::Snapshots(disk), name).err(),
        tree.make_other(Node::Disk(disk), IMAGE_FILE.as_ref()).err(),
        tree.link(Node::Live(disk), Node::Images, name).err(),
        tree.link(Node::SnapshotImage(disk, snapshot), Node::Disk(disk), name)
            .err(),
        tree.remove_file(Node::Snapshots(disk), LATEST.as_ref(), caller(NEWCOMER))
            .err(),
        tree.remove_directory(Node::Root, IMAGES.as_ref(), caller(NEWCOMER))
            .err(),
    ];
    let renames = [
        (
            Node::Snapshots(disk),
            "first",
            Node::Root,
            "a snapshot is no disk",
        ),
        (
            Node::Disk(disk),
            IMAGE_FILE,
            Node::Disk(disk),
            "its name is fixed",
        ),
        (
            Node::Disk(disk),
            IMAGE_FILE,
            Node::Images,
            "across directories",
        ),
    ];
    for (from, old, to, why) in renames {
        let renamed = tree.rename(from, old.as_ref(), to, name, false);
        assert!(renamed.is_err(), "{why}");
        refusals.push(renamed.err());
    }
    for refusal in refusals {
        assert!(
            matches!(refusal, Some(Error::NotPermitted { .. })),
            "{refusal:?}"
        );
    }
    Ok(())
}

#[test]
fn nothing_in_a_snapshot_can_be_changed() -> Result<()> {
    let fixture = fixture();
    let tree = &fixture.tree;
    let (disk, snapshot) = with_snapshot(tree)?;
    let inside = Node::Snapshot(disk, snapshot);
    let name = OsStr::new("name");
    let chmod = Change {
        mode: Some(0o777),
        ..Change::default()
    };
    let refusals = [
        tree.make_directory(inside, name, OWNER).err(),
        tree.make_file(inside, IMAGE_FILE.as_ref(), OWNER).err(),
        tree.make_other(inside, name).err(),
        tree.remove_file(inside, IMAGE_FILE.as_ref(), caller(4242))
            .err(),
        tree.rename(inside, IMAGE_FILE.as_ref(), inside, name, false)
            .err(),
        tree.rename(
            Node::Disk(disk),
            IMAGE_FILE.as_ref(),
            inside,
            IMAGE_FILE.as_ref(),
            false,
        )
        .err(),
        tree.link(Node::SnapshotImage(disk, snapshot), inside, name)
            .err(),
        tree.change(inside, chmod, false).err(),
        tree.change(Node::SnapshotImage(disk, snapshot), chmod, false)
            .err(),
        tree.change(Node::SnapshotInfo(disk, snapshot), chmod, false)
            .err(),
    ];
    for refusal in refusals {
        assert!(
            matches!(refusal, Some(Error::ReadOnly { .. })),
            "{refusal:?}"
        );
    }
    // The process that unlinked in there does not get to delete it.
    let remove = |process| tree.remove_directory(Node::Snapshots(disk), "first".as_ref(), process);
    assert!(matches!(remove(caller(4242)), Err(Error::NotEmpty { .. })));
    assert!(remove(caller(NEWCOMER)).is_ok());
    assert!(matches!(
        tree.attributes(inside, Wait::Yes),
        Err(Error::Missing { .. })
    ));
    Ok(())
}

#[test]
fn attributes_are_honest() -> Result<()> {
    let fixture = fixture();
    let tree = &fixture.tree;
    let (disk, snapshot) = with_snapshot(tree)?;
    let told = |node| tree.attributes(node, Wait::Yes).map(Attempt::waited);
    let image = told(Node::SnapshotImage(disk, snapshot))?;
    assert_eq!((image.size, image.allocated, image.links), (1 << 20, 0, 1));
    assert_eq!(
        (image.owner.uid, image.owner.gid, image.owner.mode),
        (7, 8, 0o550)
    );
    assert_eq!(
        image.modified,
        told(Node::Snapshot(disk, snapshot))?.modified
    );
    assert_eq!(told(Node::Disk(disk))?.owner.mode, 0o750);
    assert_eq!(told(Node::Snapshots(disk))?.links, 3);
    assert_eq!(told(Node::Control)?.owner.mode, 0o600);
    let info = told(Node::SnapshotInfo(disk, snapshot))?;
    let (of, it) = tree.snapshot(disk, snapshot)?;
    assert_eq!(info.size, of.snapshot_info(&it)?.len() as u64);

    let name = "golden.img";
    let linked = tree.link(image.node, Node::Images, name.as_ref())?;
    assert_eq!(linked, image.node, "both names are one file");
    assert_eq!(told(linked)?.links, 2);
    assert_eq!(names(tree, Node::Images)?, [".", "..", name]);
    Ok(())
}

#[test]
fn a_copy_of_a_read_only_image_makes_a_disk_that_can_be_written() -> Result<()> {
    let fixture = fixture();
    let tree = &fixture.tree;
    let disk = tree.make_directory(Node::Root, "copy".as_ref(), OWNER)?;
    let read_only = Owner {
        mode: 0o444,
        ..OWNER
    };
    let live = tree.make_file(disk, IMAGE_FILE.as_ref(), read_only)?;
    let told = tree.attributes(live, Wait::Yes)?.waited();
    assert_eq!(told.owner.mode, 0o644);
    Ok(())
}

/// Contract: a policy comes into force when it was written, also if somebody
/// who has made its file, as `touch` does, closes that only then. The file is
/// gone once nobody has it open any more; who has found it before that looks
/// again.
#[test]
fn a_policy_is_written_while_another_closes_its_file() -> Result<()> {
    let fixture = fixture();
    let tree = &fixture.tree;
    let (disk, _) = with_snapshot(tree)?;
    let snapshots = Node::Snapshots(disk);
    let made = tree.make_file(snapshots, POLICY_FILE.as_ref(), OWNER)?;
    let toucher = tree.open_draft(made)?;
    let writer = tree.open_draft(made)?;
    drop(toucher);
    writer.write(0, b"hours = [3]\n")?;
    writer.finish()?;
    drop(writer);
    let policy = tree.find(snapshots, POLICY_FILE.as_ref())?;
    assert_eq!(tree.text_of(policy)?, "hours = [3]\n");

    let made = tree.make_file(Node::Policies, "daily.toml".as_ref(), OWNER)?;
    drop(tree.open_draft(made)?);
    assert!(matches!(
        tree.find(Node::Policies, "daily.toml".as_ref()),
        Err(Error::Missing { .. })
    ));
    assert!(matches!(tree.open_draft(made), Err(Error::Stale { .. })));
    Ok(())
}
