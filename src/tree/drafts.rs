//! Where policies are written: `policy.toml` in a disk's `.snapshots`, named
//! ones in `.policies`, and the scratch files that editors make beside them.
//!
//! What is being written is a **draft** in memory. It becomes the policy when
//! whoever writes it closes it and it is one; until then, and if it is none,
//! the one in force stays. Scratch files are drafts under other names, which
//! become a policy by being renamed over it. An editor that first renames
//! the policy away hides it, but does not end it.

use super::{Attributes, LATEST, Node, Tree, missing};
use crate::error::{Error, Result};
use crate::events::{Event, What};
use crate::manifest::{Owner, PolicyText, PolicyUse};
use crate::name::{NAME_BYTES, PolicyName, SnapshotName};
use crate::policy::{self, POLICY_FILE, REJECTED_FILE, Rejection};
use crate::time;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Weak};
use std::time::SystemTime;

/// The number that `.policies` has among the places where policies are
/// written; the others have their disks' numbers.
pub const POLICIES: u32 = u32::MAX;
/// Bytes of a scratch file or policy.
const DRAFT_BYTES: usize = 64 << 10;
/// Scratch files in one place.
const DRAFTS_MAX: usize = 16;
/// Numbers of drafts are below this.
pub const DRAFT_NUMBERS: u32 = 1 << 24;

/// A file that is being written, or a symbolic link that waits for its name.
#[derive(Debug)]
pub struct Draft {
    place: u32,
    number: u32,
    /// How many have it open for writing; that of a scratch file is changed
    /// under [`Drafts::places`].
    opened: AtomicU32,
    /// Held while it is written or finished: what comes into force is what
    /// was there when the last one closed it. Before all other locks.
    writing: Mutex<()>,
    /// A leaf.
    body: Mutex<Body>,
}

#[derive(Debug)]
struct Body {
    bytes: Vec<u8>,
    link: Option<String>,
    owner: Owner,
    modified: SystemTime,
    /// Written to, or cut, since it was last looked at as a whole.
    unseen: bool,
    /// Written to, or cut, at all.
    changed: bool,
    /// The policy that it has become; what is written on changes that.
    installed: Option<(Becomes, String)>,
    /// A part of it was refused, so that the rest is not what was meant.
    refused: bool,
}

impl Draft {
    /// Reads, short at its end.
    pub fn read(&self, offset: u64, into: &mut [u8]) -> usize {
        let body = self.body.lock();
        let start = usize::try_from(offset).map_or(body.bytes.len(), |at| at.min(body.bytes.len()));
        let len = into.len().min(body.bytes.len() - start);
        into[..len].copy_from_slice(&body.bytes[start..start + len]);
        len
    }

    /// Bytes in it.
    pub fn len(&self) -> u64 {
        self.body.lock().bytes.len() as u64
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn text(&self) -> Result<String, Rejection> {
        let body = self.body.lock();
        String::from_utf8(body.bytes.clone()).map_err(|error| Rejection {
            line: 1,
            column: 1,
            reason: format!("it is no text: {error}"),
        })
    }
}

/// A policy, or a scratch file beside one, that is open for writing; closed
/// when dropped.
pub struct OpenDraft {
    tree: Arc<Tree>,
    node: Node,
    draft: Arc<Draft>,
}

impl OpenDraft {
    /// What is written so far.
    pub fn draft(&self) -> &Draft {
        &self.draft
    }

    /// Its path in the mount, for messages.
    pub fn path(&self) -> String {
        self.tree.path(self.node)
    }

    /// Writes. What can become no policy is refused at once, and not written.
    pub fn write(&self, offset: u64, data: &[u8]) -> Result<()> {
        self.tree.write_draft(self.node, &self.draft, offset, data)
    }

    /// What is written so far is whole: it comes into force, or is refused.
    pub fn finish(&self) -> Result<()> {
        self.tree.finish_draft(self.node, &self.draft)
    }
}

impl Drop for OpenDraft {
    /// With the last one goes what did not become a policy.
    fn drop(&mut self) {
        self.tree.drafts.close(&self.draft);
    }
}

/// What a whole draft becomes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Becomes {
    Own(u32),
    Named(PolicyName),
}

#[derive(Default)]
struct Place {
    /// Also the policy itself while it is made.
    files: BTreeMap<String, Arc<Draft>>,
    /// Names of policies that an editor renamed away, and their new names.
    hidden: HashMap<String, String>,
    rejected: Option<(String, SystemTime)>,
}

impl Place {
    fn by_number(&self, number: u32) -> Option<(String, Arc<Draft>)> {
        let mut files = self.files.iter();
        let found = files.find(|(_, draft)| draft.number == number);
        found.map(|(name, draft)| (name.clone(), draft.clone()))
    }
}

/// All that is being written.
#[derive(Default)]
pub struct Drafts {
    next: AtomicU32,
    /// A leaf.
    places: Mutex<HashMap<u32, Place>>,
    /// Of policies that are there, while somebody has them open for writing.
    /// A leaf.
    open: Mutex<HashMap<Node, Weak<Draft>>>,
}

impl Drafts {
    fn make(&self, place: u32, bytes: Vec<u8>, link: Option<String>, owner: Owner) -> Arc<Draft> {
        Arc::new(Draft {
            place,
            number: self.next.fetch_add(1, Ordering::Relaxed) % DRAFT_NUMBERS,
            opened: AtomicU32::new(0),
            writing: Mutex::default(),
            body: Mutex::new(Body {
                bytes,
                link,
                owner,
                modified: SystemTime::now(),
                unseen: false,
                changed: false,
                installed: None,
                refused: false,
            }),
        })
    }

    fn with<T>(&self, place: u32, look: impl FnOnce(&mut Place) -> T) -> T {
        look(self.places.lock().entry(place).or_default())
    }

    fn get(&self, place: u32, name: &str) -> Option<Arc<Draft>> {
        self.with(place, |place| place.files.get(name).cloned())
    }

    fn is_hidden(&self, place: u32, name: &str) -> bool {
        self.with(place, |place| place.hidden.contains_key(name))
    }

    /// The policy that an editor renamed to this; there is one at most.
    fn renamed_to(&self, place: u32, name: &str) -> Option<String> {
        self.with(place, |place| {
            let mut hidden = place.hidden.iter();
            let found = hidden.find(|(_, to)| *to == name);
            found.map(|(policy, _)| policy.clone())
        })
    }

    /// Adds a file, if there is room for one.
    fn add(&self, place: u32, name: &str, draft: Arc<Draft>) -> Result<()> {
        self.with(place, |place| {
            if place.files.len() >= DRAFTS_MAX && !place.files.contains_key(name) {
                return Err(Error::Quota {
                    what: "scratch files beside a policy".into(),
                    limit: DRAFTS_MAX as u64,
                });
            }
            place.files.insert(name.to_owned(), draft);
            Ok(())
        })
    }

    fn by_number(&self, place: u32, number: u32) -> Option<(String, Arc<Draft>)> {
        self.with(place, |place| place.by_number(number))
    }

    /// What somebody has open for writing of a policy that is there.
    fn opened(&self, node: Node) -> Option<Arc<Draft>> {
        self.open.lock().get(&node).and_then(Weak::upgrade)
    }

    /// Counts a draft as open, if it is in its place still.
    fn open(&self, place: u32, number: u32) -> Option<Arc<Draft>> {
        self.with(place, |place| {
            let (_, draft) = place.by_number(number)?;
            draft.opened.fetch_add(1, Ordering::Relaxed);
            Some(draft)
        })
    }

    /// Counts one less. With the last one goes what should have become a
    /// policy and did not.
    fn close(&self, draft: &Draft) {
        self.with(draft.place, |place| {
            if draft.opened.fetch_sub(1, Ordering::Relaxed) == 1
                && let Some((name, _)) = place.by_number(draft.number)
                && becomes(draft.place, &name).is_some()
            {
                place.files.remove(&name);
            }
        });
    }
}

fn node_of(draft: &Draft) -> Node {
    match draft.body.lock().link {
        Some(_) => Node::DraftLink(draft.place, draft.number),
        None => Node::Draft(draft.place, draft.number),
    }
}

/// The place that a directory is; None if no policies are written there.
pub fn place_of(directory: Node) -> Option<u32> {
    match directory {
        Node::Policies => Some(POLICIES),
        Node::Snapshots(disk) => Some(disk),
        _ => None,
    }
}

fn becomes(place: u32, name: &str) -> Option<Becomes> {
    match place {
        POLICIES => PolicyName::parse(OsStr::new(name)).ok().map(Becomes::Named),
        disk => (name == POLICY_FILE).then_some(Becomes::Own(disk)),
    }
}

impl Tree {
    /// The policy of a name in a place, whether or not it is hidden.
    fn policy_node(&self, place: u32, name: &str) -> Option<Node> {
        match place {
            POLICIES => {
                let policy = self.store.policy(name)?;
                Some(Node::NamedPolicy(policy.number))
            }
            disk if name == POLICY_FILE => match self.disk(disk).ok()?.policy()? {
                PolicyUse::Own(_) => Some(Node::PolicyFile(disk)),
                PolicyUse::Named { .. } => Some(Node::PolicyLink(disk)),
            },
            _ => None,
        }
    }

    /// What a name leads to among the files of policies.
    pub(super) fn find_draft(&self, place: u32, name: &str) -> Option<Node> {
        if name == REJECTED_FILE {
            let rejected = self.drafts.with(place, |place| place.rejected.is_some());
            return rejected.then_some(Node::Rejected(place));
        }
        if !self.drafts.is_hidden(place, name)
            && let Some(policy) = self.policy_node(place, name)
        {
            return Some(policy);
        }
        let draft = self.drafts.get(place, name)?;
        // A policy, a group or a rollback may have taken a snapshot of that
        // name since.
        let is_snapshot = self.has_snapshot(place, name);
        (!is_snapshot.is_ok_and(|is_one| is_one)).then(|| node_of(&draft))
    }

    /// Whether a place where policies are written has a snapshot of that name.
    fn has_snapshot(&self, place: u32, name: &str) -> Result<bool> {
        Ok(place != POLICIES && self.disk(place)?.snapshot(name).is_some())
    }

    /// Whether a name is one of a file of policies.
    pub(super) fn is_draft(&self, place: u32, name: &OsStr) -> bool {
        name.to_str()
            .is_some_and(|name| self.find_draft(place, name).is_some())
    }

    /// The names that [`Tree::find_draft`] finds.
    pub(super) fn list_drafts(&self, place: u32) -> Vec<(String, Node)> {
        let policies: Vec<String> = match place {
            POLICIES => self
                .store
                .policies()
                .into_iter()
                .map(|one| one.name)
                .collect(),
            _ => vec![POLICY_FILE.to_owned()],
        };
        let mut names: HashSet<String> = policies.into_iter().collect();
        names.extend(self.drafts.with(place, |place| {
            let files: Vec<String> = place.files.keys().cloned().collect();
            files
        }));
        names.insert(REJECTED_FILE.to_owned());
        let mut found: Vec<(String, Node)> = names
            .into_iter()
            .filter_map(|name| Some((name.clone(), self.find_draft(place, &name)?)))
            .collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        found
    }

    fn policy_text(&self, node: Node) -> Result<PolicyText> {
        let gone = || missing("policy", POLICY_FILE);
        match node {
            Node::PolicyFile(disk) => match self.disk(disk)?.policy() {
                Some(PolicyUse::Own(text)) => Ok(text),
                _ => Err(gone()),
            },
            Node::NamedPolicy(number) => {
                let policy = self.store.policy_by_number(number).ok_or_else(gone)?;
                Ok(policy.text)
            }
            _ => Err(gone()),
        }
    }

    /// The name and place of a policy's file.
    fn policy_place(&self, node: Node) -> Result<(u32, String)> {
        match node {
            Node::PolicyFile(disk) | Node::PolicyLink(disk) => Ok((disk, POLICY_FILE.into())),
            Node::NamedPolicy(number) => match self.store.policy_by_number(number) {
                Some(policy) => Ok((POLICIES, policy.name)),
                None => Err(missing("policy", format!("number {number}"))),
            },
            _ => Err(missing("policy", POLICY_FILE)),
        }
    }

    /// What the file of a policy in force, or of a rejection, says.
    pub fn text_of(&self, node: Node) -> Result<String> {
        match node {
            Node::Rejected(place) => {
                let rejected = self.drafts.with(place, |place| place.rejected.clone());
                let (text, _) = rejected.ok_or_else(|| missing("file", REJECTED_FILE))?;
                Ok(text)
            }
            policy => Ok(self.policy_text(policy)?.text),
        }
    }

    pub(super) fn draft_attributes(&self, node: Node) -> Result<Attributes> {
        let of = |owner: Owner, size: u64, modified: SystemTime| Attributes {
            node,
            generation: 0,
            owner,
            size,
            allocated: size,
            links: 1,
            modified,
            changed: modified,
        };
        match node {
            Node::Draft(place, number) | Node::DraftLink(place, number) => {
                let draft = self.draft(place, number)?;
                let body = draft.body.lock();
                let size = body.link.as_ref().map_or(body.bytes.len(), String::len);
                Ok(of(body.owner, size as u64, body.modified))
            }
            Node::Rejected(place) => {
                let rejected = self.drafts.with(place, |place| place.rejected.clone());
                let (text, when) = rejected.ok_or_else(|| missing("file", REJECTED_FILE))?;
                let owner = Owner {
                    mode: 0o444,
                    ..self.place_owner(place)?
                };
                Ok(of(owner, text.len() as u64, when))
            }
            Node::PolicyLink(disk) => {
                let size = self.target(node)?.len() as u64;
                let owner = Owner {
                    mode: 0o777,
                    ..self.place_owner(disk)?
                };
                let attributes = self.disk(disk)?.attributes();
                Ok(of(owner, size, attributes.modified))
            }
            policy => {
                let text = self.policy_text(policy)?;
                let open = self.drafts.opened(policy);
                let written = open.filter(|draft| draft.body.lock().changed);
                let size = written.map_or(text.text.len() as u64, |draft| draft.len());
                Ok(of(text.owner, size, time::to_system(text.modified_ns)))
            }
        }
    }

    fn place_owner(&self, place: u32) -> Result<Owner> {
        match place {
            POLICIES => Ok(self.owner),
            disk => Ok(self.disk(disk)?.attributes().owner),
        }
    }

    /// A scratch file, or a policy that is made.
    pub fn draft(&self, place: u32, number: u32) -> Result<Arc<Draft>> {
        let found = self.drafts.by_number(place, number).map(|(_, draft)| draft);
        // It may be a policy by now, and still be open.
        let node = Node::Draft(place, number);
        let open = || self.drafts.opened(node);
        found
            .or_else(open)
            .ok_or_else(|| missing("file", format!("scratch file {number}")))
    }

    pub(super) fn draft_name(&self, place: u32, number: u32) -> String {
        match self.drafts.by_number(place, number) {
            Some((name, _)) => name,
            None => format!("scratch file {number}"),
        }
    }

    /// Makes a scratch file, or what becomes a policy.
    pub(super) fn make_draft(&self, place: u32, name: &str, owner: Owner) -> Result<Node> {
        self.check_draft_name(place, name)?;
        // One that is renamed away counts already.
        if let Some(Becomes::Named(_)) = becomes(place, name)
            && self.store.policy(name).is_none()
        {
            self.store.check_room_for_policy()?;
        }
        let owner = Owner {
            mode: owner.mode & 0o666,
            ..owner
        };
        let draft = self.drafts.make(place, Vec::new(), None, owner);
        self.drafts.add(place, name, draft.clone())?;
        Ok(node_of(&draft))
    }

    fn check_draft_name(&self, place: u32, name: &str) -> Result<()> {
        let exists = || Error::Exists {
            what: "file",
            name: name.to_owned(),
        };
        if name == REJECTED_FILE || name == LATEST {
            return Err(Error::NotPermitted {
                what: format!("making {name}, which snapdisk makes itself"),
            });
        }
        if self.has_snapshot(place, name)? {
            return Err(exists());
        }
        match self.find_draft(place, name) {
            Some(_) => Err(exists()),
            None => Ok(()),
        }
    }

    /// Refuses a snapshot's name that a scratch file has.
    pub(super) fn check_no_draft(&self, disk: u32, name: &SnapshotName) -> Result<()> {
        match self.find_draft(disk, name.as_str()) {
            None => Ok(()),
            Some(_) => Err(Error::Exists {
                what: "scratch file",
                name: name.to_string(),
            }),
        }
    }

    /// Opens a file of policies for writing. [`Error::Stale`] if it is gone
    /// since it was looked up.
    pub fn open_draft(self: &Arc<Self>, node: Node) -> Result<OpenDraft> {
        let draft = match node {
            Node::Draft(place, number) => {
                let stale = || Error::Stale {
                    what: format!("scratch file {number}"),
                };
                let draft = (self.drafts.open(place, number)).ok_or_else(stale)?;
                let mut open = self.drafts.open.lock();
                open.retain(|_, draft| draft.strong_count() > 0);
                open.insert(node, Arc::downgrade(&draft));
                draft
            }
            policy => {
                let draft = self.draft_of(policy)?;
                draft.opened.fetch_add(1, Ordering::Relaxed);
                draft
            }
        };
        Ok(OpenDraft {
            tree: self.clone(),
            node,
            draft,
        })
    }

    /// The draft that a policy is written through.
    fn draft_of(&self, policy: Node) -> Result<Arc<Draft>> {
        let text = self.policy_text(policy)?;
        let (place, _) = self.policy_place(policy)?;
        let mut open = self.drafts.open.lock();
        if let Some(draft) = open.get(&policy).and_then(Weak::upgrade) {
            return Ok(draft);
        }
        open.retain(|_, draft| draft.strong_count() > 0);
        let draft = self
            .drafts
            .make(place, text.text.into_bytes(), None, text.owner);
        open.insert(policy, Arc::downgrade(&draft));
        Ok(draft)
    }

    /// What a draft becomes, and under which name; None for scratch.
    fn purpose(&self, node: Node, draft: &Draft) -> Result<Option<(Becomes, String)>> {
        let (place, name) = match node {
            Node::Draft(place, number) => match self.drafts.by_number(place, number) {
                Some((name, _)) => (place, name),
                // A policy by now, or renamed over something, or removed, while
                // it was open.
                None => return Ok(draft.body.lock().installed.clone()),
            },
            policy => self.policy_place(policy)?,
        };
        Ok(becomes(place, &name).map(|becomes| (becomes, name)))
    }

    fn write_draft(&self, node: Node, draft: &Draft, offset: u64, data: &[u8]) -> Result<()> {
        let _writing = draft.writing.lock();
        let written = self.try_write_draft(node, draft, offset, data);
        if written.is_err() {
            let mut body = draft.body.lock();
            body.refused = true;
            body.unseen = true;
        }
        written
    }

    fn try_write_draft(&self, node: Node, draft: &Draft, offset: u64, data: &[u8]) -> Result<()> {
        let end = offset.saturating_add(data.len() as u64);
        if end > DRAFT_BYTES as u64 {
            return Err(Error::TooLarge {
                size: end,
                limit: DRAFT_BYTES as u64,
            });
        }
        let (start, end) = (offset as usize, end as usize);
        let mut bytes = draft.body.lock().bytes.clone();
        let appended = start >= bytes.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[start..end].copy_from_slice(data);
        // In the middle of an old text a new one may begin.
        if appended && let Some((becomes, name)) = self.purpose(node, draft)? {
            let text = String::from_utf8_lossy(&bytes);
            if let Err(rejection) = policy::check_so_far(&text) {
                return Err(self.reject(draft.place, &becomes, &name, &rejection));
            }
        }
        let mut body = draft.body.lock();
        body.bytes = bytes;
        body.modified = SystemTime::now();
        body.unseen = true;
        body.changed = true;
        Ok(())
    }

    /// Cuts a draft, or fills it up with zeros.
    pub(super) fn cut_draft(&self, draft: &Draft, size: u64) -> Result<()> {
        if size > DRAFT_BYTES as u64 {
            return Err(Error::TooLarge {
                size,
                limit: DRAFT_BYTES as u64,
            });
        }
        let mut body = draft.body.lock();
        // An empty one may be about to be written: only then it counts.
        body.unseen |= size > 0 && body.bytes.len() as u64 != size;
        body.changed = true;
        // Begun anew.
        body.refused &= size > 0;
        body.bytes.resize(size as usize, 0);
        body.modified = SystemTime::now();
        Ok(())
    }

    /// `truncate` of a file of policies: of what somebody writes, or else of
    /// the policy itself, if that then is one.
    pub(super) fn cut_policy(&self, node: Node, size: u64) -> Result<()> {
        if let Node::Draft(place, number) = node {
            return self.cut_draft(&*self.draft(place, number)?, size);
        }
        let open = self.drafts.opened(node);
        if let Some(draft) = open {
            return self.cut_draft(&draft, size);
        }
        let draft = self.draft_of(node)?;
        self.cut_draft(&draft, size)?;
        draft.body.lock().unseen = true;
        self.finish_draft(node, &draft)
    }

    /// A handle that may have written is closed: what is whole comes into
    /// force, what is not is refused.
    fn finish_draft(&self, node: Node, draft: &Arc<Draft>) -> Result<()> {
        let _writing = draft.writing.lock();
        if !std::mem::take(&mut draft.body.lock().unseen) {
            return Ok(());
        }
        let Some((becomes, name)) = self.purpose(node, draft)? else {
            return Ok(());
        };
        if draft.body.lock().refused {
            return Err(Error::InvalidArgument {
                what: format!("policy {name}: a part of it was refused"),
            });
        }
        let outcome = draft.text().and_then(|text| {
            policy::parse(&text)?;
            Ok(text)
        });
        match outcome {
            Ok(text) => {
                let owner = draft.body.lock().owner;
                self.install(draft.place, becomes.clone(), &name, text, owner)?;
                draft.body.lock().installed = Some((becomes, name));
                Ok(())
            }
            Err(rejection) => Err(self.reject(draft.place, &becomes, &name, &rejection)),
        }
    }

    fn install(
        &self,
        place: u32,
        becomes: Becomes,
        name: &str,
        text: String,
        owner: Owner,
    ) -> Result<()> {
        let text = PolicyText {
            text,
            owner,
            modified_ns: time::now_ns(),
        };
        match becomes {
            Becomes::Own(disk) => self.store.set_policy(&self.disk(disk)?, text)?,
            Becomes::Named(name) => self.store.set_named_policy(name, text).map(drop)?,
        }
        self.installed(place, name);
        Ok(())
    }

    fn installed(&self, place: u32, name: &str) {
        self.drafts.with(place, |place| {
            place.files.remove(name);
            place.hidden.remove(name);
            place.rejected = None;
        });
    }

    fn reject(&self, place: u32, becomes: &Becomes, name: &str, why: &Rejection) -> Error {
        let text = format!("{name}: {why}\n");
        self.drafts.with(place, |place| {
            place.rejected = Some((text, SystemTime::now()));
            // The one in force shows again.
            place.hidden.remove(name);
        });
        let mut event = Event::new(What::PolicyRejected)
            .policy(name)
            .reason(why.to_string());
        if let Becomes::Own(disk) = becomes
            && let Ok(disk) = self.disk(*disk)
        {
            event = event.disk(disk.name());
        }
        self.store.events().note(event);
        Error::InvalidArgument {
            what: format!("policy {name}: {why}"),
        }
    }

    /// The named policy that a symbolic link in a disk's `.snapshots` means.
    fn link_target(&self, target: &str) -> Result<String> {
        let invalid = |why: &str| Error::InvalidArgument {
            what: format!("a policy that is a link to {target:?}: {why}"),
        };
        let mut path = PathBuf::from("/");
        let target_path = Path::new(target);
        let inner = match (&self.mount_point, target_path.is_absolute()) {
            (_, false) => Path::new("/disk/.snapshots").join(target_path),
            (Some(mount), true) => match target_path.strip_prefix(mount) {
                Ok(inner) => Path::new("/").join(inner),
                Err(_) => return Err(invalid("it is not in this mount")),
            },
            (None, true) => return Err(invalid("it is not in this mount")),
        };
        for component in inner.components() {
            match component {
                Component::ParentDir => drop(path.pop()),
                Component::Normal(part) => path.push(part),
                _ => {}
            }
        }
        let name = (path.strip_prefix("/.policies").ok())
            .and_then(Path::to_str)
            .filter(|name| !name.is_empty() && !name.contains('/'))
            .ok_or_else(|| invalid("it leads to no file in .policies"))?;
        match self.store.policy(name) {
            Some(_) => Ok(name.to_owned()),
            None => Err(invalid("there is no such policy")),
        }
    }

    /// `symlink` beside policies: attaches a named one, or waits under
    /// another name to be renamed.
    pub(super) fn make_link(
        &self,
        parent: Node,
        name: &str,
        target: &str,
        owner: Owner,
    ) -> Result<Node> {
        let Node::Snapshots(disk) = parent else {
            return Err(Error::NotPermitted {
                what: "a symbolic link there; in a disk's .snapshots one to a named policy is one"
                    .into(),
            });
        };
        self.check_draft_name(disk, name)?;
        let policy = self.link_target(target)?;
        if name == POLICY_FILE {
            self.store.attach_policy(&self.disk(disk)?, &policy)?;
            self.installed(disk, name);
            return Ok(Node::PolicyLink(disk));
        }
        let link = Some(target.to_owned());
        let draft = self.drafts.make(disk, Vec::new(), link, owner);
        self.drafts.add(disk, name, draft.clone())?;
        Ok(node_of(&draft))
    }

    /// Where a link among policies leads.
    pub(super) fn draft_target(&self, node: Node) -> Result<String> {
        match node {
            Node::PolicyLink(number) => {
                let disk = self.disk(number)?;
                let name = self.store.policy_of(&disk).and_then(|policy| policy.name);
                let name = name.ok_or_else(|| missing("policy", POLICY_FILE))?;
                Ok(format!("../../{}/{name}", super::POLICIES_DIRECTORY))
            }
            Node::DraftLink(place, number) => {
                let draft = self.draft(place, number)?;
                let link = draft.body.lock().link.clone();
                link.ok_or_else(|| missing("file", "link"))
            }
            _ => Err(missing("file", "link")),
        }
    }

    /// `unlink` beside policies: a scratch file, a rejection, or a policy.
    pub(super) fn remove_draft(&self, place: u32, name: &str) -> Result<()> {
        match self.find_draft(place, name) {
            None => Err(missing("file", name)),
            Some(Node::Rejected(place)) => {
                self.drafts.with(place, |place| place.rejected = None);
                Ok(())
            }
            Some(Node::Draft(..) | Node::DraftLink(..)) => {
                // With the file that a policy was renamed to goes the policy,
                // unless another came in its place.
                // It may be refused, and the file stays then.
                self.end_renamed_to(place, name)?;
                self.drafts.with(place, |place| place.files.remove(name));
                Ok(())
            }
            Some(_) => self.end_policy_at(place, name),
        }
    }

    /// Ends the policy that an editor renamed to this, if there is one: the
    /// file goes.
    fn end_renamed_to(&self, place: u32, name: &str) -> Result<()> {
        match self.drafts.renamed_to(place, name) {
            Some(policy) => self.end_policy_at(place, &policy),
            None => Ok(()),
        }
    }

    fn end_policy_at(&self, place: u32, name: &str) -> Result<()> {
        match place {
            POLICIES => self.store.remove_policy(name)?,
            disk => self.store.end_policy(&self.disk(disk)?)?,
        }
        self.drafts.with(place, |place| place.hidden.remove(name));
        Ok(())
    }

    /// `rename` beside policies.
    pub(super) fn rename_draft(
        &self,
        place: u32,
        from: &str,
        to: &str,
        no_replace: bool,
    ) -> Result<()> {
        let node = self
            .find_draft(place, from)
            .ok_or_else(|| missing("file", from))?;
        if to.len() > NAME_BYTES {
            return Err(Error::NameTooLong { bytes: to.len() });
        }
        let taken = || Error::Exists {
            what: "file",
            name: to.to_owned(),
        };
        if to == REJECTED_FILE || to == LATEST || self.has_snapshot(place, to)? {
            return Err(taken());
        }
        if no_replace && self.find_draft(place, to).is_some() {
            return Err(taken());
        }
        match node {
            _ if from == to => Ok(()),
            Node::Draft(..) | Node::DraftLink(..) => self.rename_scratch(place, from, to),
            Node::Rejected(_) => Err(Error::NotPermitted {
                what: format!("renaming {REJECTED_FILE}"),
            }),
            Node::NamedPolicy(_) if becomes(place, to).is_some() => {
                let new = PolicyName::parse(OsStr::new(to))?;
                self.store.rename_policy(from, new, no_replace)?;
                self.installed(place, to);
                Ok(())
            }
            // An editor's backup.
            policy => {
                let draft = match policy {
                    Node::PolicyLink(_) => {
                        let link = Some(self.draft_target(policy)?);
                        self.drafts
                            .make(place, Vec::new(), link, self.place_owner(place)?)
                    }
                    _ => {
                        let text = self.policy_text(policy)?;
                        self.drafts
                            .make(place, text.text.into_bytes(), None, text.owner)
                    }
                };
                self.end_renamed_to(place, to)?;
                self.drafts.add(place, to, draft)?;
                self.drafts.with(place, |place| {
                    place.hidden.insert(from.to_owned(), to.to_owned())
                });
                Ok(())
            }
        }
    }

    fn rename_scratch(&self, place: u32, from: &str, to: &str) -> Result<()> {
        let draft = self
            .drafts
            .get(place, from)
            .ok_or_else(|| missing("file", from))?;
        if let Some(becomes) = becomes(place, to) {
            let link = draft.body.lock().link.clone();
            if let Some(target) = link {
                let policy = self.link_target(&target)?;
                self.store.attach_policy(&self.disk(place)?, &policy)?;
                self.installed(place, to);
            } else {
                let text = draft.text().and_then(|text| {
                    policy::parse(&text)?;
                    Ok(text)
                });
                let text =
                    text.map_err(|rejection| self.reject(place, &becomes, to, &rejection))?;
                let owner = draft.body.lock().owner;
                // A policy that was renamed to this is what gets the name.
                if let Becomes::Named(name) = &becomes
                    && let Some(policy) = self.drafts.renamed_to(place, from)
                    && policy != to
                {
                    self.store.rename_policy(&policy, name.clone(), false)?;
                    self.drafts
                        .with(place, |place| place.hidden.remove(&policy));
                }
                self.install(place, becomes, to, text, owner)?;
            }
            self.drafts.with(place, |place| place.files.remove(from));
            return Ok(());
        }
        self.end_renamed_to(place, to)?;
        self.drafts.with(place, |place| {
            place.files.remove(from);
            place.files.insert(to.to_owned(), draft);
            for hidden in place.hidden.values_mut().filter(|hidden| *hidden == from) {
                *hidden = to.to_owned();
            }
        });
        Ok(())
    }

    /// `chmod`, `chown` and `utimensat` of a file of policies.
    pub(super) fn change_policy(&self, node: Node, change: &super::change::Change) -> Result<()> {
        let apply = |owner: &mut Owner, modified: &mut SystemTime| {
            owner.uid = change.uid.unwrap_or(owner.uid);
            owner.gid = change.gid.unwrap_or(owner.gid);
            owner.mode = change.mode.map_or(owner.mode, |mode| mode & 0o666);
            *modified = change.modified.unwrap_or(*modified);
        };
        let apply_to_text = |text: &mut PolicyText| {
            // Its time is when it came into force; a file's may be anything.
            let mut modified = time::to_system(text.modified_ns);
            apply(&mut text.owner, &mut modified);
        };
        let apply_to_draft = |draft: &Draft| {
            let mut body = draft.body.lock();
            let Body {
                owner, modified, ..
            } = &mut *body;
            apply(owner, modified);
        };
        if let Node::Draft(place, number) | Node::DraftLink(place, number) = node {
            apply_to_draft(&*self.draft(place, number)?);
            return Ok(());
        }
        // What is being written of a policy comes into force with its owner.
        if let Some(draft) = self.drafts.opened(node) {
            apply_to_draft(&draft);
        }
        match node {
            Node::PolicyFile(number) => self.disk(number)?.change_policy(&|policy| match policy {
                PolicyUse::Own(text) => apply_to_text(text),
                PolicyUse::Named { .. } => {}
            }),
            Node::NamedPolicy(number) => self.store.set_policy_attributes(number, &apply_to_text),
            _ => Ok(()),
        }
    }
}
