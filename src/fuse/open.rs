//! What opening a node gives, and what the kernel may keep of it.

use super::control::Conversation;
use super::handle::Handle;
use super::shared::Shared;
use crate::error::{Error, Result};
use crate::tree::Node;
use fuser::FopenFlags;
use std::sync::Arc;

impl Shared {
    /// Opens a node for `thread`. Waits only for an `info.toml`.
    ///
    /// Cached pages are kept for what never changes, and for a live image
    /// that somebody else has open already. The first opening drops them: a
    /// rollback, which is refused while the image is open at all, relies on
    /// it.
    pub(super) fn open(
        &self,
        node: Node,
        write: bool,
        thread: u32,
    ) -> Result<(Handle, FopenFlags)> {
        match node {
            Node::Live(number) | Node::Import(number) => self.open_live(number, write, thread),
            Node::SnapshotImage(disk, snapshot) => {
                if write {
                    return Err(Error::ReadOnly {
                        what: "a snapshot's disk.img".into(),
                    });
                }
                let (disk, snapshot) = self.tree.snapshot(disk, snapshot)?;
                let opened = disk.open_snapshot(&snapshot)?;
                Ok((Handle::Snapshot(opened), FopenFlags::FOPEN_KEEP_CACHE))
            }
            Node::SnapshotInfo(disk, snapshot) => {
                if write {
                    return Err(Error::ReadOnly {
                        what: "a snapshot's info.toml".into(),
                    });
                }
                let (disk, snapshot) = self.tree.snapshot(disk, snapshot)?;
                let text = disk.snapshot_info(&snapshot)?;
                // Read past the cache and past the size that stat said: the
                // text may have another length by now.
                Ok((Handle::Info { text }, FopenFlags::FOPEN_DIRECT_IO))
            }
            Node::NamedPolicy(_) | Node::PolicyFile(_) | Node::Draft(..) if write => {
                let draft = self.tree.open_draft(node)?;
                Ok((Handle::Draft(draft), FopenFlags::FOPEN_DIRECT_IO))
            }
            Node::Draft(place, number) => {
                let draft = self.tree.draft(place, number)?;
                let mut bytes = vec![0; draft.len() as usize];
                let len = draft.read(0, &mut bytes);
                bytes.truncate(len);
                let text = String::from_utf8_lossy(&bytes).into_owned();
                Ok((Handle::Info { text }, FopenFlags::FOPEN_DIRECT_IO))
            }
            Node::NamedPolicy(_) | Node::PolicyFile(_) | Node::Rejected(_) => {
                if write {
                    return Err(Error::NotPermitted {
                        what: "writing to a rejection".into(),
                    });
                }
                let text = self.tree.text_of(node)?;
                Ok((Handle::Info { text }, FopenFlags::FOPEN_DIRECT_IO))
            }
            Node::StatusFile(file) => {
                if write {
                    return Err(Error::ReadOnly {
                        what: self.tree.path(node),
                    });
                }
                let text = file.render(self.tree.store())?;
                Ok((Handle::Info { text }, FopenFlags::FOPEN_DIRECT_IO))
            }
            Node::Control => Ok((
                Handle::Control(Arc::new(Conversation::default())),
                FopenFlags::FOPEN_DIRECT_IO
                    | FopenFlags::FOPEN_NONSEEKABLE
                    | FopenFlags::FOPEN_STREAM,
            )),
            Node::Root
            | Node::Images
            | Node::Disk(_)
            | Node::Snapshots(_)
            | Node::Latest(_)
            | Node::Snapshot(..)
            | Node::Policies
            | Node::PolicyLink(_)
            | Node::DraftLink(..)
            | Node::Groups
            | Node::Group(_)
            | Node::GroupMember(..)
            | Node::Status => Err(Error::InvalidArgument {
                what: "this is no file".into(),
            }),
        }
    }

    fn open_live(&self, number: u32, write: bool, thread: u32) -> Result<(Handle, FopenFlags)> {
        let disk = self.tree.disk(number)?;
        let opened = disk.open_live(write)?;
        let flags = match opened.first() && disk.image_writable() {
            true => FopenFlags::empty(),
            false => FopenFlags::FOPEN_KEEP_CACHE,
        };
        let handle = Handle::Live {
            disk,
            _opened: opened,
            write,
            thread,
        };
        Ok((handle, flags))
    }
}
