//! The store's metadata: one small file per disk and per linked image, and
//! a catalogue that lists them all.
//!
//! A manifest is one line that says what it is, then a JSON body:
//!
//! ```text
//! snapdisk-manifest 1 disk 8d5f…(BLAKE3 of the body, hexadecimal)\n
//! {"id":"…", …}
//! ```
//!
//! The checksum tells damage from a mistake of ours, the text lets a person
//! with a broken store read what was in it. Every change of a disk (taking,
//! deleting, renaming, rolling back) is one replacement of one file, so it
//! happens wholly or not at all. What the catalogue lists but the backend
//! lacks is damage, never absence.

use crate::backend::{Backend, Version};
use crate::chunk::ChunkId;
use crate::error::{Error, Result};
use crate::pack::PackName;
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use uuid::Uuid;

/// The newest format of manifests that this program writes and reads.
pub const FORMAT: u32 = 1;
/// Where manifests are kept in the backend.
pub const PREFIX: &str = "manifests/";
const MAGIC: &str = "snapdisk-manifest";

/// What names a layer's files and its place in manifests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LayerId(pub Uuid);

impl LayerId {
    /// A name never used before.
    pub fn random() -> LayerId {
        LayerId(Uuid::new_v4())
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.simple())
    }
}

impl FromStr for LayerId {
    type Err = uuid::Error;
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        Uuid::try_parse(text).map(LayerId)
    }
}

/// What a layer, a snapshot or an image shows where nothing is written over
/// it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BaseRecord {
    /// Zeros.
    Empty,
    /// A frozen layer.
    Layer(LayerId),
    /// A sealed map, by its root.
    Root(ChunkId),
}

/// A layer that something shows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerRecord {
    /// Its name.
    pub id: LayerId,
    /// What it lies over.
    pub base: BaseRecord,
    /// The size when it began, in bytes.
    pub size: u64,
    /// Its map, once sealed; then it has no files and is kept only because
    /// a graft in some log names it.
    pub root: Option<ChunkId>,
    /// The key its data is encrypted with (0: none).
    pub key_id: u32,
}

/// How a disk's data is encrypted; never changes after its creation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Encryption {
    /// Not at all.
    None,
}

/// Owner and permission bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Owner {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
    /// Permission bits only.
    pub mode: u32,
}

/// Who wanted a snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotKind {
    /// A person or a script.
    #[default]
    Manual,
    /// A policy.
    Automatic,
    /// snapdisk itself, before something that would have lost data.
    Kept,
}

impl SnapshotKind {
    /// As `info.toml` says it.
    pub fn as_str(self) -> &'static str {
        match self {
            SnapshotKind::Manual => "manual",
            SnapshotKind::Automatic => "automatic",
            SnapshotKind::Kept => "kept",
        }
    }
}

/// A snapshot in its disk's manifest. Times are nanoseconds since 1970.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotRecord {
    /// Never used again.
    pub id: Uuid,
    /// Its number in the disk: age, and part of its inode numbers.
    pub number: u32,
    /// Its name.
    pub name: String,
    /// Who wanted it.
    pub kind: SnapshotKind,
    /// What it shows.
    pub base: BaseRecord,
    /// Bytes.
    pub size: u64,
    /// The instant.
    pub created_ns: i64,
    /// When what is said of it last changed.
    #[serde(default)]
    pub changed_ns: i64,
    /// When it is to be deleted, if ever.
    pub expires_ns: Option<i64>,
    /// Why it must not be deleted, if so.
    pub hold: Option<String>,
    /// The group that it was taken with: it counts only while the catalogue
    /// lists that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<Uuid>,
    /// The policy that took it, by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// What users noted on it.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// The live image's owner at that instant.
    pub owner: Owner,
    /// Something of it was found to be lost.
    #[serde(default)]
    pub damaged: bool,
}

/// The policy of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PolicyUse {
    /// Its own.
    Own(PolicyText),
    /// One of many disks.
    Named {
        /// Its manifest.
        policy: Uuid,
        /// Since when, in nanoseconds since 1970.
        since_ns: i64,
    },
}

/// A policy as it was written.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyText {
    /// TOML.
    pub text: String,
    /// Owner of the file.
    pub owner: Owner,
    /// When it was written, in nanoseconds since 1970.
    pub modified_ns: i64,
}

/// The live image in its disk's manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ImageRecord {
    /// The layer that is written.
    pub head: LayerId,
    /// Raised whenever another image takes the file's place.
    pub generation: u64,
    /// Owner of `disk.img`.
    pub owner: Owner,
    /// Its time of modification when this was written.
    pub modified_ns: i64,
    /// When its owner, mode or times were last set.
    #[serde(default)]
    pub changed_ns: i64,
}

/// What a disk manifest is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// A disk with its snapshots.
    Disk,
    /// An imported image: live while it is written, then one snapshot.
    Image,
}

/// The manifest of a disk or of an imported image.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Never used again.
    pub id: Uuid,
    /// Part of its inode numbers; never used again.
    pub number: u32,
    /// Disk or image.
    pub role: Role,
    /// Its name, unique among its kind.
    pub name: String,
    /// How its data is encrypted.
    pub encryption: Encryption,
    /// Run of the program that wrote this.
    pub epoch: u64,
    /// Rises with every replacement.
    pub sequence: u64,
    /// Tells two writers of one sequence number apart.
    pub nonce: Uuid,
    /// The nonce of the manifest that this one replaced.
    pub previous: Option<Uuid>,
    /// Owner of its directory.
    pub owner: Owner,
    /// When it was made.
    pub created_ns: i64,
    /// When something in its directory last changed.
    pub modified_ns: i64,
    /// The live image, if there is one.
    pub image: Option<ImageRecord>,
    /// The number that the next snapshot gets.
    pub next_snapshot: u32,
    /// The generation that the next live image gets.
    pub next_generation: u64,
    /// Its policy, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicyUse>,
    /// The last slot of a policy that was dealt with, whatever became of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot_ns: Option<i64>,
    /// Every layer that the image, the snapshots or a graft need.
    pub layers: Vec<LayerRecord>,
    /// By number.
    pub snapshots: Vec<SnapshotRecord>,
}

/// The manifest of an image that is a link to a snapshot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkRecord {
    /// Never used again.
    pub id: Uuid,
    /// Its name, unique among images.
    pub name: String,
    /// The snapshot's disk.
    pub disk: Uuid,
    /// The snapshot.
    pub snapshot: Uuid,
    /// When it was made.
    pub created_ns: i64,
}

/// The manifest of a named policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyRecord {
    /// Never used again.
    pub id: Uuid,
    /// Part of its inode number; never used again.
    pub number: u32,
    /// Its name, with `.toml`, unique among policies.
    pub name: String,
    /// What it says.
    pub text: PolicyText,
}

/// The manifest of a group: snapshots of several disks at one instant.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupRecord {
    /// Never used again.
    pub id: Uuid,
    /// Part of its inode number; never used again.
    pub number: u32,
    /// Its name, unique among groups.
    pub name: String,
    /// Owner of its directory.
    pub owner: Owner,
    /// The instant, in nanoseconds since 1970.
    pub created_ns: i64,
    /// Disk and snapshot of each member. Those that are not there any more
    /// were deleted since.
    pub members: Vec<(Uuid, Uuid)>,
}

/// How many snapshots a disk may have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Of those that people take.
    pub max_manual_snapshots: u32,
    /// Of those that policies take.
    pub max_automatic_snapshots: u32,
    /// Of both together, if that is limited.
    #[serde(default)]
    pub max_snapshots: Option<u32>,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            max_manual_snapshots: 256,
            max_automatic_snapshots: 256,
            max_snapshots: None,
        }
    }
}

/// What kind of manifest a catalogue entry names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EntryKind {
    /// A [`DiskRecord`].
    Disk,
    /// A [`LinkRecord`].
    Link,
    /// A [`PolicyRecord`].
    Policy,
    /// A [`GroupRecord`].
    Group,
}

impl EntryKind {
    const ALL: [EntryKind; 4] = [
        EntryKind::Disk,
        EntryKind::Link,
        EntryKind::Policy,
        EntryKind::Group,
    ];

    fn word(self) -> &'static str {
        match self {
            EntryKind::Disk => "disk",
            EntryKind::Link => "link",
            EntryKind::Policy => "policy",
            EntryKind::Group => "group",
        }
    }
}

/// Lists every manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Catalogue {
    /// The store's own name; none in a store that was made before this was
    /// written.
    #[serde(default)]
    pub store: Option<Uuid>,
    /// Raised at every opening of the store, before anything is written.
    pub epoch: u64,
    /// Rises with every replacement.
    pub sequence: u64,
    /// The number that the next disk or image gets.
    pub next_number: u32,
    /// Kind of each manifest, by its uuid.
    pub entries: BTreeMap<Uuid, EntryKind>,
    /// How many snapshots a disk may have.
    #[serde(default)]
    pub settings: Settings,
    /// Whether cold chunks are packed denser when nothing else is to do. Not
    /// one of the settings, as programs that do not know it refuse those.
    #[serde(default)]
    pub recompress: bool,
    /// What the wall clock said when the store was last opened or closed:
    /// one that has gone on for days since may have been set.
    #[serde(default)]
    pub seen_ns: i64,
    /// Nothing is deleted for its date before then, as the clock was set.
    #[serde(default)]
    pub quiet_until_ns: i64,
    /// How far each unsealed layer's log reached when the store was last
    /// closed, in bytes: one that is shorter has lost something, and not in
    /// a crash.
    #[serde(default)]
    pub log_ends: BTreeMap<LayerId, u64>,
    /// Damaged packs of which something is needed: gc leaves them.
    #[serde(default)]
    pub apart: BTreeSet<PackName>,
}

/// The header of the store, written once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Header {
    /// The store's own name.
    pub store: Uuid,
    /// Features that a program must know to read or write here.
    pub incompat: Vec<String>,
    /// Features that a program must know to write here.
    pub ro_compat: Vec<String>,
    /// Features that a program may ignore.
    pub compat: Vec<String>,
    /// Bytes in a chunk: a power of two from 16 KiB to 1 MiB.
    pub chunk_size: u32,
    /// Key of the content addresses, hexadecimal; public while nothing is
    /// encrypted, and different in every store.
    pub key: String,
    /// When it was made.
    pub created_ns: i64,
}

/// A kind of manifest: its word in the first line and its key.
pub trait Manifest: Serialize + DeserializeOwned {
    /// The word in the first line.
    const KIND: &'static str;
    /// Its key in the backend.
    fn key(&self) -> String;
    /// What in it no program has written, in words: numbers that could not
    /// be counted on from. Times are not among them: people set them as they
    /// like, and all arithmetic with them saturates.
    fn absurdity(&self) -> Option<&'static str> {
        None
    }
}

/// Counters stay below this.
pub const COUNT_LIMIT: u64 = 1 << 62;

impl Manifest for Header {
    const KIND: &'static str = "store";
    fn key(&self) -> String {
        header_key()
    }
}
impl Manifest for Catalogue {
    const KIND: &'static str = "catalogue";
    fn key(&self) -> String {
        catalogue_key()
    }
    fn absurdity(&self) -> Option<&'static str> {
        (self.epoch >= COUNT_LIMIT
            || self.sequence >= COUNT_LIMIT
            || self.next_number > NUMBER_LIMIT)
            .then_some("its counters are beyond all counting")
    }
}
impl Manifest for DiskRecord {
    const KIND: &'static str = "disk";
    fn key(&self) -> String {
        entry_key(&self.id, EntryKind::Disk)
    }
    fn absurdity(&self) -> Option<&'static str> {
        let sizes = self.layers.iter().map(|layer| layer.size);
        let mut sizes = sizes.chain(self.snapshots.iter().map(|snapshot| snapshot.size));
        let mut numbers = self.snapshots.iter().map(|snapshot| snapshot.number);
        let image = self.image.as_ref();
        if self.number >= NUMBER_LIMIT
            || self.next_snapshot > NUMBER_LIMIT
            || self.sequence >= COUNT_LIMIT
            || self.epoch >= COUNT_LIMIT
            || self.next_generation >= COUNT_LIMIT
            || image.is_some_and(|image| image.generation >= COUNT_LIMIT)
            || numbers.any(|number| number >= NUMBER_LIMIT)
        {
            return Some("its counters are beyond all counting");
        }
        if sizes.any(|size| size > MAX_SIZE) {
            return Some("a size in it is over the limit");
        }
        None
    }
}
impl Manifest for LinkRecord {
    const KIND: &'static str = "link";
    fn key(&self) -> String {
        entry_key(&self.id, EntryKind::Link)
    }
}
impl Manifest for PolicyRecord {
    const KIND: &'static str = "policy";
    fn key(&self) -> String {
        entry_key(&self.id, EntryKind::Policy)
    }
    fn absurdity(&self) -> Option<&'static str> {
        (self.number >= NUMBER_LIMIT).then_some("its number is beyond all counting")
    }
}
impl Manifest for GroupRecord {
    const KIND: &'static str = "group";
    fn key(&self) -> String {
        entry_key(&self.id, EntryKind::Group)
    }
    fn absurdity(&self) -> Option<&'static str> {
        (self.number >= NUMBER_LIMIT).then_some("its number is beyond all counting")
    }
}

/// Key of the store's header.
pub fn header_key() -> String {
    format!("{PREFIX}store")
}

/// Key of the catalogue.
pub fn catalogue_key() -> String {
    format!("{PREFIX}catalogue")
}

/// Key of the header's second copy: without a header nothing of a store can
/// be read.
pub fn header_copy_key() -> String {
    format!("{PREFIX}store-copy")
}

/// What the keys of manifests begin with that nothing lists and that stay,
/// since they could not be read.
pub const LOST: &str = "manifests/lost-";
/// Copies of one lost manifest, of different times.
const MOST_ASIDE: usize = 8;

/// The catalogue entry that a key names; None if it names none.
pub fn entry_of(key: &str) -> Option<(Uuid, EntryKind)> {
    let name = key.strip_prefix(PREFIX)?;
    let (word, id) = name.split_once('-')?;
    let kind = EntryKind::ALL
        .into_iter()
        .find(|kind| kind.word() == word)?;
    let id = Uuid::try_parse(id).ok()?;
    (entry_key(&id, kind) == key).then_some((id, kind))
}

/// Key of a manifest that the catalogue lists.
pub fn entry_key(id: &Uuid, kind: EntryKind) -> String {
    format!("{PREFIX}{}-{}", kind.word(), id.simple())
}

/// The largest size of a disk, in bytes.
pub const MAX_SIZE: u64 = 64 << 40;

/// Numbers of disks and of a disk's snapshots stay below this: both are parts
/// of inode numbers.
pub const NUMBER_LIMIT: u32 = 1 << 28;

/// A manifest as it is stored.
pub fn encode<M: Manifest>(manifest: &M) -> Result<Vec<u8>> {
    let body = serde_json::to_vec(manifest).map_err(|error| Error::Damaged {
        what: manifest.key(),
        detail: format!("it cannot be written as JSON: {error}"),
    })?;
    let mut bytes = format!(
        "{MAGIC} {FORMAT} {} {}\n",
        M::KIND,
        blake3::hash(&body).to_hex()
    )
    .into_bytes();
    bytes.extend_from_slice(&body);
    Ok(bytes)
}

/// Reads a stored manifest; anything but what [`encode`] made is
/// [`Error::Damaged`], a newer format [`Error::FormatNewer`].
pub fn decode<M: Manifest>(key: &str, bytes: &[u8]) -> Result<M> {
    let damaged = |detail: String| Error::Damaged {
        what: key.to_owned(),
        detail,
    };
    let end = bytes
        .iter()
        .take(256)
        .position(|b| *b == b'\n')
        .ok_or_else(|| damaged("it has no first line".into()))?;
    let line = std::str::from_utf8(&bytes[..end])
        .map_err(|_| damaged("its first line is not text".into()))?;
    let body = &bytes[end + 1..];
    let words: Vec<&str> = line.split(' ').collect();
    let [MAGIC, format, kind, hash] = words[..] else {
        return Err(damaged(format!("its first line is {line:?}")));
    };
    match format.parse::<u32>() {
        Ok(FORMAT) => {}
        Ok(newer) if newer > FORMAT => {
            return Err(Error::FormatNewer {
                found: newer.to_string(),
                known: FORMAT.to_string(),
            });
        }
        _ => return Err(damaged(format!("its format is {format:?}"))),
    }
    if kind != M::KIND {
        return Err(damaged(format!("it is a {kind}, expected a {}", M::KIND)));
    }
    let found = blake3::hash(body).to_hex();
    if found.as_str() != hash {
        return Err(damaged(format!("its checksum is {found}, expected {hash}")));
    }
    let manifest: M = serde_json::from_slice(body).map_err(|error| damaged(error.to_string()))?;
    match manifest.absurdity() {
        None => Ok(manifest),
        Some(detail) => Err(damaged(detail.to_owned())),
    }
}

/// A manifest in another's place is damage.
fn check_key<M: Manifest>(key: &str, manifest: &M) -> Result<()> {
    match manifest.key() {
        own if own == key => Ok(()),
        other => Err(Error::Damaged {
            what: key.to_owned(),
            detail: format!("it is {other}"),
        }),
    }
}

/// The manifests of a store, each with the version last read or written.
pub struct Manifests {
    backend: Arc<dyn Backend>,
    /// Taken for a look-up only, never across I/O.
    versions: Mutex<HashMap<String, Version>>,
    /// Why nothing may be changed any more, once that is so (invariant 3).
    /// A leaf.
    unknown: Mutex<Option<String>>,
}

impl fmt::Debug for Manifests {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Manifests").finish_non_exhaustive()
    }
}

impl Manifests {
    /// Manifests in `backend`; none is read yet.
    pub fn new(backend: Arc<dyn Backend>) -> Manifests {
        Manifests {
            backend,
            versions: Mutex::default(),
            unknown: Mutex::default(),
        }
    }

    /// Reads one; None if there is none.
    pub fn read<M: Manifest>(&self, key: &str) -> Result<Option<M>> {
        let Some((bytes, version)) = self.backend.get(key)? else {
            return Ok(None);
        };
        let manifest: M = decode(key, &bytes)?;
        check_key(key, &manifest)?;
        self.versions.lock().insert(key.to_owned(), version);
        Ok(Some(manifest))
    }

    /// Replaces a manifest by a newer state of it, or makes it. Durable when
    /// this returns. Callers hold the lock of what the manifest describes.
    pub fn replace<M: Manifest>(&self, manifest: &M) -> Result<()> {
        let key = manifest.key();
        self.check_known()?;
        let bytes = encode(manifest)?;
        let expected = self.versions.lock().get(&key).cloned();
        match self.backend.replace(&key, &bytes, expected.as_ref()) {
            Ok(version) => {
                self.versions.lock().insert(key, version);
                Ok(())
            }
            Err(error) => {
                // Nothing was changed if there was no room; after any other
                // error of the disk nobody knows (invariants 3 and 6).
                let of_disk = matches!(error, Error::MetadataUnknown { .. } | Error::Io { .. });
                if of_disk && !error.is_no_space() {
                    self.poison(&error);
                }
                Err(error)
            }
        }
    }

    /// [`Manifests::replace`] of one that may be there and unreadable.
    pub fn replace_unreadable<M: Manifest>(&self, manifest: &M) -> Result<()> {
        let key = manifest.key();
        match self.backend.get(&key) {
            Ok(Some((_, version))) => drop(self.versions.lock().insert(key, version)),
            Ok(None) => {}
            // What it was cannot be compared with anything.
            Err(error) if error.is_unreadable() => self.backend.delete(&key)?,
            Err(error) => return Err(error),
        }
        self.replace(manifest)
    }

    /// Keeps a copy of one that is to be forgotten, if there are bytes of it,
    /// under a name that nobody looks at.
    pub fn keep_aside(&self, key: &str) -> Result<()> {
        let bytes = match self.backend.get(key) {
            Ok(Some((bytes, _))) => bytes,
            Ok(None) => return Ok(()),
            Err(error) if error.is_unreadable() => {
                tracing::error!("nothing can be kept of {key}: {error}");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let name = key.strip_prefix(PREFIX).unwrap_or(key);
        let mut aside = format!("{LOST}{name}");
        for _ in 0..MOST_ASIDE {
            match self.backend.put_new(&aside, &bytes) {
                Err(Error::Exists { .. }) => {}
                Err(error) if error.is_unreadable() => {}
                kept => return kept,
            }
            // That of an earlier time may have other bytes.
            match self.backend.get(&aside) {
                Ok(Some((before, _))) if before == bytes => return Ok(()),
                _ => aside.push_str(".again"),
            }
        }
        Err(Error::Exists {
            what: "object",
            name: aside,
        })
    }

    /// Reads the store's header, from its copy if need be, and sees to it
    /// that both are there and sound. None if neither is. Nothing is written
    /// in a store that `check` refuses.
    pub fn header(&self, check: impl Fn(&Header) -> Result<()>) -> Result<Option<Header>> {
        let (key, copy_key) = (header_key(), header_copy_key());
        let first = self.read::<Header>(&key);
        // What the disk cannot read now it may read later: it is left alone.
        let cannot_be_read =
            |error: &Error| matches!(error, Error::Io { .. }) && error.is_unreadable();
        let is_unread = first.as_ref().is_err_and(cannot_be_read);
        if matches!(first, Err(Error::FormatNewer { .. } | Error::Io { .. })) && !is_unread {
            return first;
        }
        let mut is_copy_unread = false;
        let copy = match self.backend.get(&copy_key) {
            Ok(Some((bytes, version))) => (decode::<Header>(&copy_key, &bytes).ok(), Some(version)),
            Ok(None) => (None, None),
            Err(error) if cannot_be_read(&error) => {
                tracing::error!("{error}");
                is_copy_unread = true;
                (None, None)
            }
            Err(error) => return Err(error),
        };
        let (copy, version) = copy;
        let own = match (&first, &copy) {
            (Ok(Some(header)), Some(copy)) if header.store != copy.store => {
                // One of them is another store's. The catalogue knows.
                let catalogue: Option<Catalogue> = self.read(&catalogue_key())?;
                let store = catalogue.and_then(|catalogue| catalogue.store);
                if store != Some(header.store) && store != Some(copy.store) {
                    return Err(Error::Damaged {
                        what: key,
                        detail: "it and its copy are of two stores".into(),
                    });
                }
                store == Some(header.store)
            }
            (Ok(Some(_)), _) => true,
            _ => false,
        };
        match (first, copy) {
            (Ok(Some(header)), copy) if own => {
                check(&header)?;
                if copy.as_ref() != Some(&header) && !is_copy_unread {
                    self.backend
                        .replace(&copy_key, &encode(&header)?, version.as_ref())?;
                }
                Ok(Some(header))
            }
            (first, Some(header)) => {
                check(&header)?;
                let why = match first {
                    Ok(Some(_)) => "it is another store's".to_owned(),
                    Ok(None) => "it is missing".to_owned(),
                    Err(error) => error.to_string(),
                };
                if is_unread {
                    tracing::error!("its copy is used: {why}");
                } else {
                    tracing::error!("{key} is written anew from its copy: {why}");
                    self.replace_unreadable(&header)?;
                }
                Ok(Some(header))
            }
            (first, None) => first,
        }
    }

    /// The catalogue of all manifests that are there, for a store that has
    /// lost its own. `pack_epoch` is the latest run that wrote a pack.
    pub fn catalogue_anew(&self, store: Uuid, pack_epoch: u64) -> Result<Catalogue> {
        let mut catalogue = Catalogue {
            store: Some(store),
            epoch: pack_epoch,
            sequence: 0,
            next_number: 1,
            entries: BTreeMap::new(),
            settings: Settings::default(),
            recompress: false,
            seen_ns: 0,
            quiet_until_ns: 0,
            log_ends: BTreeMap::new(),
            apart: BTreeSet::new(),
        };
        let most = |kind, disk: &DiskRecord| {
            let of_kind = disk.snapshots.iter().filter(|one| one.kind == kind);
            u32::try_from(of_kind.count()).unwrap_or(u32::MAX)
        };
        for key in self.list()? {
            let Some((id, kind)) = entry_of(&key) else {
                continue;
            };
            catalogue.entries.insert(id, kind);
            let number = match kind {
                EntryKind::Disk => self.read::<DiskRecord>(&key).ok().flatten().map(|disk| {
                    catalogue.epoch = catalogue.epoch.max(disk.epoch);
                    // The limits are lost, and with lower ones the next
                    // automatic snapshot would make others go.
                    let limits = &mut catalogue.settings;
                    let manual = most(SnapshotKind::Manual, &disk);
                    let automatic = most(SnapshotKind::Automatic, &disk);
                    limits.max_manual_snapshots = limits.max_manual_snapshots.max(manual);
                    limits.max_automatic_snapshots = limits.max_automatic_snapshots.max(automatic);
                    // Also one whose manifest is gone: without it its members
                    // would count as never acknowledged.
                    let groups = disk.snapshots.iter().filter_map(|snapshot| snapshot.group);
                    for group in groups {
                        catalogue.entries.insert(group, EntryKind::Group);
                    }
                    disk.number
                }),
                EntryKind::Policy => {
                    let policy = self.read::<PolicyRecord>(&key).ok().flatten();
                    policy.map(|policy| policy.number)
                }
                EntryKind::Group => {
                    let group = self.read::<GroupRecord>(&key).ok().flatten();
                    group.map(|group| group.number)
                }
                EntryKind::Link => None,
            };
            let after = number.map_or(0, |number| number.saturating_add(1));
            catalogue.next_number = catalogue.next_number.max(after);
        }
        Ok(catalogue)
    }

    /// Removes a manifest; durable when this returns.
    pub fn delete(&self, key: &str) -> Result<()> {
        self.check_known()?;
        self.backend.delete(key).inspect_err(|error| {
            self.poison(error);
        })?;
        self.versions.lock().remove(key);
        Ok(())
    }

    /// Reads and checks one again; why it is not as it should be, if so.
    pub fn check<M: Manifest>(&self, key: &str) -> Option<String> {
        let read = match self.backend.get(key) {
            Ok(None) => return Some(format!("{key} is missing")),
            Ok(Some((bytes, _))) => decode::<M>(key, &bytes),
            Err(error) => Err(error),
        };
        let checked = read.and_then(|manifest| match key == header_copy_key() {
            true => Ok(()),
            false => check_key(key, &manifest),
        });
        checked.err().map(|error| error.to_string())
    }

    /// The keys of all manifests that the backend has.
    pub fn list(&self) -> Result<Vec<String>> {
        Ok(self
            .backend
            .list(PREFIX)?
            .into_iter()
            .map(|(key, _)| key)
            .collect())
    }

    /// Whether changes are still possible: after an error that leaves
    /// metadata unknown they are not, until the store is reopened.
    pub fn check_known(&self) -> Result<()> {
        match &*self.unknown.lock() {
            None => Ok(()),
            Some(cause) => Err(Error::Poisoned {
                what: "the store's metadata".into(),
                cause: cause.clone(),
            }),
        }
    }

    fn poison(&self, error: &Error) {
        tracing::error!("{error}");
        self.unknown.lock().get_or_insert_with(|| error.to_string());
    }
}
