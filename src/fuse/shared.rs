//! What the threads of a mount share, and the ways to their pools.

use super::Adapter;
use super::control::Verbs;
use super::errno::{errno, errno_name};
use super::handle::Handles;
use super::inode;
use super::mount::MountOptions;
use super::request::reply_entry;
use crate::disk::{Attempt, Disk, Wait};
use crate::error::{Error, Result};
use crate::events::{Event, EventLog, What};
use crate::pool::Pool;
use crate::sandbox::Outside;
use crate::store::Store;
use crate::tree::attribute::Effect;
use crate::tree::{Attributes, IMAGE_FILE, Node, Tree};
use fuser::{Errno, INodeNo, Notifier, ReplyEmpty, ReplyEntry};
use std::ffi::OsStr;
use std::fmt::Display;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

const READ_THREADS: usize = 4;
const WRITE_THREADS: usize = 4;
const META_THREADS: usize = 16;
/// How long an answer waits for the kernel to forget names; mostly none.
const FORGET_PATIENCE: Duration = Duration::from_millis(250);

/// What the threads of a mount share.
pub(super) struct Shared {
    pub(super) tree: Arc<Tree>,
    pub(super) mount_point: PathBuf,
    pub(super) handles: Handles,
    pub(super) verbs: Arc<dyn Verbs>,
    pub(super) events: Arc<EventLog>,
    /// Looks at what a confined thread cannot see.
    pub(super) outside: Arc<Outside>,
    /// Reads, seeks and attributes that wait for packs.
    pub(super) reads: Pool,
    /// Writes and punches that wait for packs or room.
    pub(super) writes: Pool,
    /// Changes of metadata, each durable when answered.
    pub(super) meta: Pool,
    /// Tells the kernel what to forget: a thread that serves nothing, since
    /// the kernel may wait in there for a lock that some request holds.
    notify: Pool,
    notifier: OnceLock<Notifier>,
    /// Threads that take requests and may wait now.
    spare: AtomicUsize,
}

/// Leave for a thread that takes requests to wait; it ends with this.
pub(super) struct Leave<'a>(&'a AtomicUsize);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Adapter {
    pub(super) fn new(
        store: Arc<Store>,
        mount_point: PathBuf,
        uid: u32,
        gid: u32,
        options: &MountOptions,
        verbs: Arc<dyn Verbs>,
        outside: Arc<Outside>,
    ) -> Adapter {
        Adapter(Arc::new(Shared {
            events: store.events().clone(),
            tree: Arc::new(
                Tree::new(store, uid, gid, options.hide_snapshots).mounted_on(mount_point.clone()),
            ),
            mount_point,
            handles: Handles::default(),
            verbs,
            outside,
            reads: Pool::new("fuse-read", READ_THREADS),
            writes: Pool::new("fuse-write", WRITE_THREADS),
            meta: Pool::new("fuse-meta", META_THREADS),
            notify: Pool::new("fuse-notify", 1),
            notifier: OnceLock::new(),
            // The larger half is always left.
            spare: AtomicUsize::new(options.threads / 2),
        }))
    }

    pub(super) fn shared(&self) -> Arc<Shared> {
        self.0.clone()
    }

    pub(super) fn meta(&self, job: impl FnOnce(&Shared) + Send + 'static) {
        let shared = self.shared();
        self.0.meta.run(move || job(&shared));
    }

    /// Gives a node's attributes to `then`: at once if nothing has to be
    /// waited for, else from a pool.
    pub(super) fn with_attributes(
        &self,
        node: Result<Node>,
        then: impl FnOnce(&Shared, Result<Attributes>) + Send + 'static,
    ) {
        let node = match node {
            Ok(node) => node,
            Err(error) => return then(&self.0, Err(error)),
        };
        match self.0.tree.attributes(node, Wait::No) {
            Ok(Attempt::Done(attributes)) => then(&self.0, Ok(attributes)),
            Err(error) => then(&self.0, Err(error)),
            Ok(Attempt::WouldBlock) => {
                let pool = match node {
                    Node::SnapshotInfo(..) | Node::StatusFile(_) => &self.0.meta,
                    _ => &self.0.reads,
                };
                let shared = self.shared();
                pool.run(move || then(&shared, shared.attributes(node)));
            }
        }
    }
}

impl Shared {
    pub(super) fn node(&self, number: INodeNo) -> Result<Node> {
        inode::node_of(number.0).ok_or_else(|| Error::Missing {
            what: "file",
            name: format!("inode {}", number.0),
        })
    }

    /// A node's path, for messages.
    pub(super) fn shown(&self, number: INodeNo) -> String {
        match inode::node_of(number.0) {
            Some(node) => self.tree.path(node),
            None => format!("inode {}", number.0),
        }
    }

    /// Logs a refusal with its reason, and returns its number.
    pub(super) fn refused(&self, operation: &str, on: impl Display, error: &Error) -> Errno {
        let number = errno(error);
        let on = on.to_string();
        let metrics = self.tree.store().metrics();
        metrics.refusals.fetch_add(1, Ordering::Relaxed);
        if number == Errno::EIO {
            metrics.errors.fetch_add(1, Ordering::Relaxed);
        }
        let is_news = self.events.note(
            Event::new(What::Refused)
                .operation(operation)
                .path(on.clone())
                .errno(errno_name(number))
                .reason(error.to_string()),
        );
        // Whoever repeats one does not fill the log with it.
        if is_news {
            tracing::info!(operation, on, errno = number.code(), reason = %error, "refused");
        }
        number
    }

    /// The path of a name, for messages.
    pub(super) fn shown_in(&self, parent: INodeNo, name: &OsStr) -> String {
        match inode::node_of(parent.0) {
            Some(Node::Root) | None => name.display().to_string(),
            Some(parent) => format!("{}/{}", self.tree.path(parent), name.display()),
        }
    }

    /// May wait.
    pub(super) fn attributes(&self, node: Node) -> Result<Attributes> {
        self.tree.attributes(node, Wait::Yes).map(Attempt::waited)
    }

    pub(super) fn find(&self, parent: INodeNo, name: &OsStr) -> Result<Node> {
        self.tree.find(self.node(parent)?, name)
    }

    /// Makes something in a directory with `make` and answers with it.
    pub(super) fn answer_made(
        &self,
        operation: &str,
        parent: INodeNo,
        name: &OsStr,
        reply: ReplyEntry,
        make: impl FnOnce(Node) -> Result<Node>,
    ) {
        let made = self
            .node(parent)
            .and_then(make)
            .and_then(|node| self.attributes(node));
        match made {
            Ok(made) => reply_entry(reply, &made),
            Err(error) => reply.error(self.refused(operation, self.shown_in(parent, name), &error)),
        }
    }

    /// Does what setting an attribute entails.
    pub(super) fn take_effect(self: &Arc<Self>, effect: Effect) {
        match effect {
            Effect::None => {}
            Effect::ImageReplaced(disk) => self.forget_image(disk),
        }
    }

    /// Tells the kernel that a disk has another live image now.
    pub(super) fn forget_image(self: &Arc<Self>, disk: u32) {
        let shared = self.clone();
        self.notify.run(move || {
            let Some(notifier) = shared.notifier.get() else {
                return;
            };
            let parent = INodeNo(inode::number_of(Node::Disk(disk)));
            let image = INodeNo(inode::number_of(Node::Live(disk)));
            let told = notifier
                .inval_entry(parent, OsStr::new(IMAGE_FILE))
                .and_then(|()| notifier.inval_inode(image, 0, 0));
            if let Err(error) = told {
                // Harmless: the entry is looked up each time anyway, and an
                // open of an image that nobody has open drops its pages.
                tracing::info!(%error, "the kernel was not told of a rollback");
            }
        });
    }

    /// Disks and names of the snapshots that go with a group, if that is one.
    pub(super) fn members_of_group(&self, parent: INodeNo, name: &OsStr) -> Vec<(u32, String)> {
        let group = match inode::node_of(parent.0) {
            Some(Node::Groups) => name.to_str().and_then(|name| self.tree.store().group(name)),
            _ => None,
        };
        let members = group.into_iter().flat_map(|group| group.members);
        members
            .map(|(disk, snapshot)| (disk.number(), snapshot.name()))
            .collect()
    }

    /// Tells the kernel that snapshots are gone that nobody removed by their
    /// names, then answers. Waits for that in a thread of a pool, but not for
    /// ever: a rename may hold what the kernel locks for it, and wait for what
    /// the request that is to be answered holds.
    pub(super) fn forget_snapshots(self: &Arc<Self>, gone: Vec<(u32, String)>, reply: ReplyEmpty) {
        let shared = self.clone();
        let (done, told) = channel();
        self.notify.run(move || {
            for (disk, name) in gone {
                let parent = INodeNo(inode::number_of(Node::Snapshots(disk)));
                let told = shared.notifier.get().map(|notifier| {
                    // An error: the kernel has not looked it up, or forgets
                    // it by itself within a second.
                    notifier.inval_entry(parent, OsStr::new(&name))
                });
                tracing::debug!(?told, name, "forgotten with its group");
            }
            // Nobody listens any more if it took too long.
            let _ = done.send(());
        });
        if told.recv_timeout(FORGET_PATIENCE).is_err() {
            tracing::debug!("answered before the kernel had forgotten a group");
        }
        reply.ok();
    }

    /// Lets the calling thread, which took a request, wait for what it needs,
    /// if enough others are there to take the next ones (invariant 9).
    pub(super) fn leave(&self) -> Option<Leave<'_>> {
        let take = |spare: usize| spare.checked_sub(1);
        let taken = self
            .spare
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, take);
        taken.ok().map(|_| Leave(&self.spare))
    }

    /// Calls `done` when everything that was written to `disk` before is on
    /// disk; waits for that if the calling thread may.
    pub(super) fn flush(&self, disk: &Arc<Disk>, done: Box<dyn FnOnce(Result<()>) + Send>) {
        match self.leave() {
            Some(_leave) => disk.flush_here(done),
            None => disk.flush_async(done),
        }
    }

    pub(super) fn set_notifier(&self, notifier: Notifier) {
        // Set once, after mounting.
        let _ = self.notifier.set(notifier);
    }

    /// Ends what is under way and lets everything go that is still open.
    pub(super) fn close(&self) {
        for pool in [&self.reads, &self.writes, &self.meta, &self.notify] {
            pool.close();
        }
        self.handles.clear();
    }
}
