//! Goal: whatever happens to the files of a store behind its back, no wrong
//! byte is served, what is damaged is found and named, everything else can
//! be used, and nothing is deleted on the strength of it (invariants 4, 5,
//! 8).
//!
//! Method: one sample store, again and again. In each cell of the matrix one
//! file is damaged in one way at one place: deleted, cut, a bit flipped,
//! zeroed, replaced by another one of its kind. Then the store is opened,
//! read, verified, used, collected, closed and opened again. At the end the
//! file is put back as it was: everything that the sample had must be there.
//! A second pass repairs instead, and compares what could be read before.

mod common;

use common::bytes::Random;
use common::faulty::FaultyFiles;
use common::library::*;
use snapdisk::disk::{Disk, Wait};
use snapdisk::error::{Error, Result};
use snapdisk::files::Files;
use snapdisk::manifest::PolicyText;
use snapdisk::name::{ImageName, PolicyName, SnapshotName};
use snapdisk::progress::Quiet;
use snapdisk::store::{Image, Options, Store};
use snapdisk::verify::Finding;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a view shows, chunk by chunk; None where it answers an error.
type View = Vec<Option<Vec<u8>>>;
/// By the name that a finding gives it.
type Views = BTreeMap<String, View>;

struct Sample {
    files: FaultyFiles,
    /// The index as the sample's run left it.
    index: PathBuf,
    views: Views,
}

/// Two disks with sealed snapshots, a group of both, layers that are not
/// sealed, a link, an import, a policy, dead chunks, several packs.
fn sample(seed: u64, root: &Path) -> Sample {
    let files = new_files();
    let store = open_files(&files, root).expect("it opens");
    let made = (|| -> Result<Views> {
        let mut random = Random(seed);
        let web = make(&store, "web")?;
        write(&web, 0, &random.bytes(12 * CHUNK))?;
        take_of(&web, "one")?;
        write(&web, 2 * CHUNK + 100, &random.bytes(3 * CHUNK))?;
        take_of(&web, "spare")?;
        take_of(&web, "twin")?;
        let db = make(&store, "db")?;
        write(&db, 0, &random.bytes(4 * CHUNK + 77))?;
        take_of(&db, "base")?;
        store.take_group(SnapshotName::parse("both".as_ref())?, None, OWNER)?;
        let policy = PolicyText {
            text: "hours = [3]\n".to_owned(),
            owner: OWNER,
            modified_ns: snapdisk::time::now_ns(),
        };
        store.set_named_policy(PolicyName::parse("nightly.toml".as_ref())?, policy)?;
        wait_all_sealed(&store);
        // Further packs: of the next run, and one with something dead in it.
        store.close()?;
        drop((web, db));
        let store = open_files(&files, root)?;
        let web = store.disk("web").expect("disk web");
        let db = store.disk("db").expect("disk db");
        write(&web, 6 * CHUNK, &random.bytes(4 * CHUNK))?;
        take_of(&web, "gone")?;
        wait_all_sealed(&store);
        web.delete_snapshot("gone")?;
        store.link_image(&web, "one", ImageName::parse("golden.img".as_ref())?)?;
        let import = store.create_image(ImageName::parse("import.img".as_ref())?, OWNER)?;
        write(&import, 0, &random.bytes(2 * CHUNK))?;
        import.finish_import()?;
        write(&web, 7 * CHUNK + 512, &random.bytes(CHUNK))?;
        write(&db, 300, &random.bytes(CHUNK))?;
        let views = views(&store);
        store.close()?;
        Ok(views)
    })();
    let views = made.expect("a sample");
    Sample {
        files: files.fork(),
        index: root.join("index"),
        views,
    }
}

fn chunks(size: u64, read: impl Fn(u64, &mut [u8]) -> Result<usize>) -> View {
    (0..size.div_ceil(CHUNK as u64))
        .map(|index| {
            let mut bytes = vec![0xaa; CHUNK];
            match read(index * CHUNK as u64, &mut bytes) {
                Ok(len) => {
                    bytes.truncate(len);
                    Some(bytes)
                }
                Err(
                    Error::Damaged { .. } | Error::ChunkMissing { .. } | Error::Poisoned { .. },
                ) => None,
                Err(error) => panic!("another error than that of damage: {error}"),
            }
        })
        .collect()
}

fn views(store: &Store) -> Views {
    let mut views = Views::new();
    let live = |disk: &Arc<Disk>| {
        let size = disk.live().map_or(0, |live| live.size);
        chunks(size, |at, bytes| {
            Ok(disk.read(at, bytes, Wait::Yes)?.waited())
        })
    };
    for disk in store.disks() {
        let name = disk.name();
        if disk.live().is_some() {
            // Whoever opens it asks for this first.
            let counted = disk.allocated(Wait::Yes);
            counted.unwrap_or_else(|error| panic!("stat of {name}: {error}"));
            views.insert(format!("disk {name}"), live(&disk));
        }
        for snapshot in disk.snapshots() {
            let counted = disk.allocated_snapshot(&snapshot, Wait::Yes);
            counted.unwrap_or_else(|error| panic!("stat of {name}: {error}"));
            let view = chunks(snapshot.size(), |at, bytes| {
                Ok(disk
                    .read_snapshot(&snapshot, at, bytes, Wait::Yes)?
                    .waited())
            });
            views.insert(format!("snapshot {name}@{}", snapshot.name()), view);
        }
    }
    for image in store.images() {
        if let Image::Import { name, disk } = image {
            views.insert(format!("image {name}"), live(&disk));
        }
    }
    views
}

/// Panics if anything is served that the sample did not have.
fn assert_nothing_wrong(what: &str, found: &Views, expected: &Views) {
    for (name, view) in found {
        let Some(right) = expected.get(name) else {
            assert!(name.ends_with("@after"), "{what}: {name} came from nowhere");
            continue;
        };
        assert_eq!(view.len(), right.len(), "{what}: size of {name}");
        for (at, (bytes, right)) in view.iter().zip(right).enumerate() {
            assert!(
                bytes.is_none() || bytes == right,
                "{what}: chunk {at} of {name} is wrong"
            );
        }
    }
}

/// The chunks of each view that cannot be had.
fn unreadable(found: &Views, expected: &Views) -> BTreeSet<(String, usize)> {
    let mut missing = BTreeSet::new();
    for (name, right) in expected {
        for at in 0..right.len() {
            let is_there = found.get(name).is_some_and(|view| view[at].is_some());
            if !is_there {
                missing.insert((name.clone(), at));
            }
        }
    }
    missing
}

/// What is done to a file.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Damage {
    Delete,
    Truncate(usize),
    Flip(usize),
    Zero(usize, usize),
    Replace(Vec<u8>),
    /// Two parts of this length change places.
    Swap(usize, usize, usize),
}

impl Damage {
    fn name(&self) -> &'static str {
        match self {
            Damage::Delete => "delete",
            Damage::Truncate(_) => "truncate",
            Damage::Flip(_) => "flip",
            Damage::Zero(..) => "zero",
            Damage::Replace(_) => "replace",
            Damage::Swap(..) => "swap",
        }
    }

    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Damage::Delete => unreachable!("that is done to the name"),
            Damage::Truncate(len) => bytes.truncate(*len),
            Damage::Flip(at) => bytes[*at] ^= 0x10,
            Damage::Zero(from, to) => bytes[*from..*to].fill(0),
            Damage::Replace(other) => *bytes = other.clone(),
            Damage::Swap(one, other, len) => {
                for at in 0..*len {
                    bytes.swap(one + at, other + at);
                }
            }
        }
    }
}

/// What kind of record a file holds at a place.
fn kind(path: &Path, bytes: &[u8]) -> &'static str {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or("");
    match path.parent().and_then(|dir| dir.to_str()) {
        Some("manifests") => match name {
            "store" => "store header",
            "store-copy" => "header copy",
            "catalogue" => "catalogue",
            _ if name.starts_with("link-") => "image link",
            _ if name.starts_with("policy-") => "policy manifest",
            _ if name.starts_with("group-") => "group manifest",
            _ if String::from_utf8_lossy(bytes).contains(r#""role":"image""#) => "image manifest",
            _ => "disk manifest",
        },
        Some("layers") if name.ends_with(".log") => "layer log",
        Some("layers") => "layer data",
        Some("packs") => "pack",
        _ => panic!("what is {path:?}?"),
    }
}

/// Places in a pack and what is there.
fn places(bytes: &[u8]) -> Vec<(&'static str, usize)> {
    let mut places = vec![("pack header", 9), ("pack header", 60)];
    let mut at = 64;
    let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().expect("4")) as usize;
    while at + 64 <= bytes.len() {
        match &bytes[at..at + 8] {
            b"PACKDIR\0" => {
                places.push(("pack directory", at + 25));
                places.push(("pack directory", at + 64 + 40));
                break;
            }
            b"PACKSYNC" => {
                places.push(("pack mark", at + 10));
                at += 64;
            }
            _ => {
                let name = match bytes[at + 4] {
                    1 => ["record header", "payload"],
                    2 => ["map page header", "map page"],
                    _ => ["root header", "root"],
                };
                places.push((name[0], at + 50));
                places.push((name[1], at + 88 + number(at + 16) / 2));
                at += (88 + number(at + 16)).next_multiple_of(64);
            }
        }
    }
    places.push(("pack trailer", bytes.len() - 30));
    places
}

/// Every cell: a file, the kind of record that is hit, and what is done.
fn cells(sample: &Sample, other: &Sample) -> Vec<(PathBuf, &'static str, Damage)> {
    let mut cells = Vec::new();
    for path in sample.files.paths() {
        let bytes = sample.files.bytes(&path);
        let kind = kind(&path, &bytes);
        let mut add = |kind, damage| cells.push((path.clone(), kind, damage));
        add(kind, Damage::Delete);
        for len in [0, 1, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            if len < bytes.len() {
                add(kind, Damage::Truncate(len));
            }
        }
        if kind == "layer data" {
            // What was written and is not sealed has no checksum.
            continue;
        }
        if kind == "pack" {
            for (kind, at) in places(&bytes) {
                add(kind, Damage::Flip(at));
                add(kind, Damage::Zero(at, (at + 24).min(bytes.len())));
            }
            // Chunks that do not compress are all as long.
            let record = (88 + CHUNK).next_multiple_of(64);
            let records = places(&bytes);
            let of_data = records.iter().filter(|(kind, _)| *kind == "record header");
            let mut starts = of_data.map(|(_, at)| at - 50);
            if let (Some(one), Some(other)) = (starts.next(), starts.next()) {
                assert_eq!(other, one + record, "two neighbours");
                add("two records", Damage::Swap(one, other, record));
            }
        } else if !bytes.is_empty() {
            for at in [0, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1] {
                add(kind, Damage::Flip(at));
            }
            let half = bytes.len() / 2;
            add(kind, Damage::Zero(half, bytes.len()));
        }
        // By another of its kind: of this store and of another one.
        for donor in [sample, other] {
            let another = donor.files.paths().into_iter().find_map(|candidate| {
                let other = donor.files.bytes(&candidate);
                let same_kind = self::kind(&candidate, &other) == kind;
                (same_kind && other != bytes).then_some(other)
            });
            if let Some(another) = another {
                add(kind, Damage::Replace(another));
            }
        }
    }
    cells
}

fn copy_index(from: &Path, root: &Path) {
    let to = root.join("index");
    let copied = common::command("cp", &["-a"]).arg(from).arg(&to).status();
    assert!(copied.expect("cp runs").success(), "copying the index");
}

/// How a cell ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    Refused,
    Found,
    Harmless,
    Unseen,
}

/// What findings say of a view's chunk.
fn is_named(findings: &[Finding], name: &str, chunk: usize) -> bool {
    let at = (chunk * CHUNK) as u64;
    findings.iter().any(|finding| match finding {
        Finding::Range { what, from, to, .. } => {
            what.split(", ").any(|what| what == name) && (*from..*to).contains(&at)
        }
        // A disk of which nothing is left is not in any list of views.
        Finding::Manifest { .. } => true,
        _ => false,
    })
}

/// Panics if more is missing than what was hit explains.
fn assert_nothing_else(what: &str, kind: &str, missing: &BTreeSet<(String, usize)>) {
    let owner = |name: &str| {
        let named = name.rsplit(' ').next().unwrap_or_default();
        named.split('@').next().unwrap_or_default().to_owned()
    };
    let owners: BTreeSet<String> = missing.iter().map(|(name, _)| owner(name)).collect();
    // No two disks have a chunk in common, and no disk has one twice.
    let places: BTreeSet<(String, usize)> = missing
        .iter()
        .map(|(name, at)| (owner(name), *at))
        .collect();
    let fits = match kind {
        "header copy" | "image link" | "policy manifest" | "pack mark" | "pack directory"
        | "pack trailer" => missing.is_empty(),
        "payload" | "record header" => places.len() <= 1,
        "two records" => places.len() <= 2,
        "layer log" | "layer data" | "disk manifest" | "image manifest" => owners.len() <= 1,
        "group manifest" => missing.iter().all(|(name, _)| name.ends_with("@both")),
        _ => true,
    };
    assert!(fits, "{what}: more than that is missing: {missing:?}");
}

fn findings_of(what: &str, store: &Store) -> Vec<Finding> {
    let mut findings = Vec::new();
    store
        .verify(&Quiet, &mut |finding| findings.push(finding))
        .unwrap_or_else(|error| panic!("{what}: verify: {error}"));
    findings
}

/// Uses a damaged store and puts the file back.
fn use_it(
    what: &str,
    kind: &str,
    sample: &Sample,
    files: &FaultyFiles,
    root: &Path,
    path: &Path,
) -> End {
    let store = match open_files(files, root) {
        Ok(store) => store,
        Err(Error::Damaged { what: named, .. }) => {
            let name = path.to_string_lossy();
            assert!(named.contains(&*name), "{what}: {named} is named");
            return End::Refused;
        }
        Err(Error::NotAStore { .. } | Error::FormatNewer { .. }) => return End::Refused,
        Err(error) => panic!("{what}: {error}"),
    };
    let found = views(&store);
    assert_nothing_wrong(what, &found, &sample.views);
    let missing = unreadable(&found, &sample.views);
    assert_nothing_else(what, kind, &missing);
    let findings = findings_of(what, &store);
    for (name, chunk) in &missing {
        assert!(
            is_named(&findings, name, *chunk),
            "{what}: chunk {chunk} of {name} cannot be read, and verify says {findings:?}"
        );
    }
    // Everything that can be done to a store.
    for disk in store.disks() {
        if disk.live().is_some() {
            refused_or_done(what, take_of(&disk, "after"));
        }
    }
    if let Some(web) = store.disk("web") {
        refused_or_done(what, web.delete_snapshot("spare"));
    }
    let collected = store.gc(false, &Quiet);
    if collected.is_ok() {
        // A layer that lacks data is not sealed; which chunks are needed is
        // known all the same, while its log is whole.
        let is_log = path.extension().is_some_and(|extension| extension == "log");
        let harmless = |finding: &Finding| match finding {
            Finding::Range { .. } => true,
            Finding::Layer { .. } => !is_log,
            _ => false,
        };
        assert!(
            findings.iter().all(harmless),
            "{what}: gc ran over {findings:?}"
        );
    }
    refused_or_done(what, collected.map(drop));
    assert_nothing_wrong(what, &views(&store), &sample.views);
    refused_or_done(what, store.close());
    drop(store);
    for _ in 0..2 {
        let store =
            open_files(files, root).unwrap_or_else(|error| panic!("{what}: again: {error}"));
        let again = views(&store);
        assert_nothing_wrong(what, &again, &sample.views);
        let before: BTreeSet<_> = missing.iter().collect();
        for lost in &unreadable(&again, &sample.views) {
            assert!(
                before.contains(lost) || lost.0.ends_with("@spare"),
                "{what}: {lost:?} could be read before"
            );
        }
        refused_or_done(what, store.gc(false, &Quiet).map(drop));
        refused_or_done(what, store.close());
    }
    match (findings.is_empty(), missing.is_empty()) {
        (false, _) => End::Found,
        (true, true) => End::Harmless,
        (true, false) => End::Unseen,
    }
}

fn refused_or_done(what: &str, done: Result<()>) {
    match done {
        Ok(())
        | Err(
            Error::Damaged { .. }
            | Error::ChunkMissing { .. }
            | Error::Poisoned { .. }
            | Error::Missing { .. },
        ) => {}
        Err(error) => panic!("{what}: {error}"),
    }
}

/// Puts a file back, as from a backup, and compares everything with the
/// sample.
fn put_back(what: &str, sample: &Sample, files: &FaultyFiles, path: &Path) {
    // One that looks as a crash leaves it may have been compacted and gone.
    files.put(path, &sample.files.bytes(path));
    let fresh = memory_dir();
    let store = open_files(files, fresh.path()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = views(&store);
    assert_nothing_wrong(what, &found, &sample.views);
    for (name, chunk) in unreadable(&found, &sample.views) {
        assert!(
            name.ends_with("@spare"),
            "{what}: chunk {chunk} of {name} is lost though the file is back"
        );
    }
    let findings = findings_of(what, &store);
    assert!(findings.is_empty(), "{what}: put back: {findings:?}");
}

/// Repairs a damaged store: what could be read can be read, and what could
/// not be is named.
fn repair_it(what: &str, sample: &Sample, files: &FaultyFiles, root: &Path) {
    let before = match open_files(files, root) {
        Ok(store) => {
            let found = views(&store);
            refused_or_done(what, store.close());
            found
        }
        Err(_) => Views::new(),
    };
    let dynamic: Arc<dyn Files> = Arc::new(files.clone());
    let options = Options {
        mend_catalogue: true,
        ..options()
    };
    let store = match Store::open_in(dynamic, root, options, &Quiet) {
        Ok(store) => store,
        Err(error) => {
            assert!(
                before.is_empty() && what.contains("store header"),
                "{what}: repair: {error}"
            );
            return;
        }
    };
    store
        .repair(false, &Quiet, &mut drop)
        .unwrap_or_else(|error| panic!("{what}: repair: {error}"));
    let repaired = views(&store);
    assert_nothing_wrong(what, &repaired, &sample.views);
    let missing = unreadable(&repaired, &sample.views);
    let missing_before = unreadable(&before, &sample.views);
    for lost in &missing {
        assert!(
            missing_before.contains(lost),
            "{what}: repair lost {lost:?}"
        );
    }
    let findings = findings_of(what, &store);
    for (name, chunk) in &missing {
        let named = is_named(&findings, name, *chunk);
        assert!(
            named,
            "{what}: {name} at {chunk} after repair: {findings:?}"
        );
    }
    // A chunk that a live image has written over is in a map still.
    let any_lost = findings.iter().any(|f| matches!(f, Finding::Range { .. }));
    let is_lost = |finding: &Finding| matches!(finding, Finding::Manifest { .. });
    if missing.is_empty() && !any_lost {
        // A lost manifest stays lost until it is to be forgotten.
        let mended = findings.iter().all(is_lost);
        assert!(mended, "{what}: repaired, but {findings:?}");
    }
    let lost_map = findings.iter().any(|finding| match finding {
        Finding::Manifest { .. } | Finding::Layer { .. } => true,
        Finding::Range { from, to, .. } => to - from > CHUNK as u64,
        Finding::Pack(_) => false,
    });
    // It goes on beside damaged data, and waits while it cannot know: of a
    // catalogue made anew it does after the next start.
    let is_anew = what.contains("manifests/catalogue");
    if let Err(error) = store.gc(false, &Quiet) {
        assert!(lost_map || is_anew, "{what}: gc after repair: {error}");
    }
    refused_or_done(what, store.close());
    drop(store);
    let store = open_files(files, root).unwrap_or_else(|error| panic!("{what}: repaired: {error}"));
    assert_eq!(unreadable(&views(&store), &sample.views), missing, "{what}");
    if let Err(error) = store.gc(false, &Quiet) {
        assert!(lost_map, "{what}: gc after the next start: {error}");
    }
}

#[test]
fn damage_is_found_named_and_kept_from_spreading() {
    matrix(true);
}

/// The same where the index does not remember what was in a pack.
#[test]
fn damage_is_found_also_without_an_index() {
    matrix(false);
}

fn matrix(with_index: bool) {
    let home = memory_dir();
    let roots: Vec<PathBuf> = ["one", "other"]
        .map(|name| {
            let root = home.path().join(name);
            fs::create_dir(&root).expect("a directory");
            root
        })
        .into();
    let first = sample(5, &roots[0]);
    let second = sample(6, &roots[1]);
    let mut ends: BTreeMap<(&str, &str), BTreeMap<&str, u64>> = BTreeMap::new();
    let cells = cells(&first, &second);
    for (path, kind, damage) in &cells {
        let how = format!("{damage:?}");
        let how = how.get(..60).unwrap_or(&how);
        let what = format!("{kind} of {path:?}, {how}, index {with_index}");
        let files = first.files.fork();
        if *damage == Damage::Delete {
            files.remove(path);
        } else {
            files.tamper(path, |bytes| damage.apply(bytes));
        }
        let root = |name: &str| {
            let root = tempfile::Builder::new()
                .prefix(name)
                .tempdir_in(home.path());
            let root = root.expect("a directory");
            if with_index {
                copy_index(&first.index, root.path());
            }
            root
        };
        let repaired = files.fork();
        let end = use_it(&what, kind, &first, &files, root("used").path(), path);
        if end != End::Harmless {
            put_back(&what, &first, &files, path);
        }
        assert!(end != End::Unseen, "{what}: nothing was found");
        repair_it(&what, &first, &repaired, root("repaired").path());
        assert_no_background_panic(&what);
        let word = match end {
            End::Refused => "the store is refused",
            End::Found => "found, rest usable",
            End::Harmless => "harmless",
            End::Unseen => unreachable!("refused above"),
        };
        let row = ends.entry((kind, damage.name())).or_default();
        *row.entry(word).or_default() += 1;
    }
    println!(
        "{} cells, index {with_index}, each used, put back and repaired",
        cells.len()
    );
    for ((kind, damage), ends) in &ends {
        let ends: Vec<String> = ends.iter().map(|(end, n)| format!("{n} {end}")).collect();
        println!("  {kind:<16} {damage:<9} {}", ends.join(", "));
    }
}

/// The files below a directory.
fn files_below(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).expect("a directory") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => files_below(&path, found),
            false => found.push(path),
        }
    }
}

/// The index is a cache: whatever happens to its files, everything is there
/// and nothing is found damaged.
#[test]
fn a_damaged_index_costs_nothing() {
    let home = memory_dir();
    let root = |name: &str| {
        let root = home.path().join(name);
        fs::create_dir(&root).expect("a directory");
        root
    };
    let first = sample(5, &root("one"));
    let second = sample(6, &root("other"));
    let mut names = Vec::new();
    files_below(&first.index, &mut names);
    let mut others = Vec::new();
    files_below(&second.index, &mut others);
    let mut cells = 0;
    for name in &names {
        let bytes = fs::read(name).expect("a file of the index");
        let relative = name.strip_prefix(&first.index).expect("it is below");
        let mut damages = vec![
            Damage::Delete,
            Damage::Truncate(0),
            Damage::Truncate(bytes.len() / 2),
        ];
        if !bytes.is_empty() {
            let places = [0, bytes.len() / 3, bytes.len() / 2, bytes.len() - 1];
            damages.extend(places.map(Damage::Flip));
            damages.push(Damage::Zero(bytes.len() / 2, bytes.len()));
        }
        damages.extend(
            others
                .iter()
                .take(4)
                .map(|other| Damage::Replace(fs::read(other).expect("a file of the index"))),
        );
        for damage in damages {
            let what = format!("{relative:?}, {}", damage.name());
            let root = tempfile::tempdir_in(home.path()).expect("a directory");
            copy_index(&first.index, root.path());
            let path = root.path().join("index").join(relative);
            if damage == Damage::Delete {
                fs::remove_file(&path).expect("removing it");
            } else {
                let mut bytes = bytes.clone();
                damage.apply(&mut bytes);
                fs::write(&path, bytes).expect("writing it");
            }
            let files = first.files.fork();
            for _ in 0..2 {
                let store =
                    open_files(&files, root.path()).unwrap_or_else(|e| panic!("{what}: {e}"));
                let found = views(&store);
                assert_nothing_wrong(&what, &found, &first.views);
                assert!(unreadable(&found, &first.views).is_empty(), "{what}");
                let findings = findings_of(&what, &store);
                assert!(findings.is_empty(), "{what}: {findings:?}");
                store
                    .gc(false, &Quiet)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                store.close().unwrap_or_else(|e| panic!("{what}: {e}"));
            }
            cells += 1;
        }
    }
    println!("{cells} cells");
}
