//! Asking a store: through its mount if it has one, else by opening it.

use super::bar::Bar;
use super::failure::{Failure, of_library};
use super::log;
use crate::fuse::control::Verbs;
use crate::mountinfo::{Mounts, absolute};
use crate::store::{self, Options, Store};
use crate::tree::{CONTROL, IMAGE_FILE, IMAGES, SNAPSHOTS};
use crate::verbs::{Request, StoreVerbs};
use serde_json::Value;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where a store is to be found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Mounted here.
    Mounted(PathBuf),
    /// Its directory; nothing shows it.
    Unmounted(PathBuf),
}

/// Whether a directory is a store. An error if that cannot be told.
pub(super) fn is_store(path: &Path) -> io::Result<bool> {
    if store::is_store(path) {
        return Ok(true);
    }
    match fs::metadata(path.join("manifests")) {
        Ok(_) => Ok(false),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT | libc::ENOTDIR) => Ok(false),
            _ => Err(error),
        },
    }
}

/// Refuses to open another user's store as root: what root writes in it, if
/// only the next catalogue, its owner could not read any more.
pub(super) fn check_owner(store: &Path) -> Result<(), Failure> {
    let owner = |path: &Path| {
        fs::metadata(path)
            .map(|found| found.uid())
            .map_err(|error| Failure::system("opening", path, &error))
    };
    let header = store::header_file(store).unwrap_or_else(|| store.join("manifests/store"));
    // What is in /proc/self belongs to the effective user.
    let (user, owner) = (owner(Path::new("/proc/self"))?, owner(&header)?);
    if user != 0 || owner == 0 {
        return Ok(());
    }
    Err(Failure::new(
        format_args!("opening {}", store.display()),
        format_args!("the store belongs to user {owner}, who could not use it after root has"),
    )
    .hint(format_args!(
        "run this as its owner, with `sudo -u '#{owner}'`, or give the whole store to root, \
         with `chown -R root`"
    )))
}

/// The kernel's list of mounts.
pub(super) fn mounts() -> Result<Mounts, Failure> {
    Mounts::read()
        .map_err(|error| Failure::system("reading", Path::new("/proc/self/mountinfo"), &error))
}

impl Place {
    /// The store that a path means: a store, or anything in a mount of one.
    /// Without a path, the only one mounted.
    pub(super) fn find(given: Option<&Path>) -> Result<Place, Failure> {
        let mounts = mounts()?;
        let Some(given) = given else {
            let mut mounted = mounts.live_stores();
            return match (mounted.next(), mounted.next()) {
                (Some(only), None) => Ok(Place::Mounted(only.point.clone())),
                (None, _) => Err(Failure::usage("which store?", "none is mounted")
                    .hint("name a STORE, or where one is mounted")),
                (Some(one), Some(other)) => Err(Failure::usage(
                    "which store?",
                    format_args!(
                        "several are mounted, as on {} and {}",
                        one.point.display(),
                        other.point.display()
                    ),
                )
                .hint("name one of them")),
            };
        };
        let path = absolute(given).map_err(|error| Failure::system("opening", given, &error))?;
        if let Some(mount) = mounts.holding(&path)
            && mount.is_own()
        {
            if mount.is_dead() {
                let error = io::Error::from_raw_os_error(libc::ENOTCONN);
                return Err(Failure::system("opening", &path, &error));
            }
            let whole = mounts.of_store(&mount.source).unwrap_or(mount);
            return Ok(Place::Mounted(whole.point.clone()));
        }
        match is_store(&path) {
            Ok(true) => Ok(Place::of_store(&mounts, path)),
            Ok(false) => Err(Failure::new(
                path.display(),
                "this is neither a store nor where one is mounted",
            )
            .hint("`snapdisk init STORE` makes a store, `snapdisk mount STORE MNT` mounts one")),
            Err(error) => Err(Failure::system("opening", &path, &error)),
        }
    }

    /// A store that was named as one, as `--store` does.
    pub(super) fn find_store(given: &Path) -> Result<Place, Failure> {
        let path = absolute(given).map_err(|error| Failure::system("opening", given, &error))?;
        if !is_store(&path).map_err(|error| Failure::system("opening", &path, &error))? {
            return Err(Failure::new(path.display(), "this is no store")
                .hint("`snapdisk init STORE` makes one"));
        }
        Ok(Place::of_store(&mounts()?, path))
    }

    fn of_store(mounts: &Mounts, path: PathBuf) -> Place {
        match mounts.of_store(&path) {
            Some(mount) => Place::Mounted(mount.point.clone()),
            None => Place::Unmounted(path),
        }
    }
}

/// The store and the name of a disk (`web`), a snapshot (`web@first`) or an
/// image (`.images/golden.img`), by a path in its mount: a directory, or the
/// raw image in it.
fn thing_of(given: &Path) -> Result<(Place, String), Failure> {
    // Through links, as `latest` and those of groups are.
    let path =
        fs::canonicalize(given).map_err(|error| Failure::system("opening", given, &error))?;
    let mounts = mounts()?;
    let inner = mounts
        .holding(&path)
        .filter(|mount| mount.is_own())
        .and_then(|mount| mount.inner(&path));
    let parts: Vec<String> = inner
        .iter()
        .flat_map(|inner| inner.components())
        .map(|part| part.as_os_str().to_string_lossy().into_owned())
        .collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    let name = match parts[..] {
        [IMAGES, image] => format!("{IMAGES}/{image}"),
        [disk] | [disk, IMAGE_FILE] if !disk.starts_with('.') => disk.to_owned(),
        [disk, SNAPSHOTS, snapshot] | [disk, SNAPSHOTS, snapshot, IMAGE_FILE] => {
            format!("{disk}@{snapshot}")
        }
        _ => {
            return Err(Failure::new(
                given.display(),
                "this is no disk, snapshot or image of a mounted store",
            )
            .hint("name its directory or its disk.img; `--store STORE` takes names"));
        }
    };
    Ok((Place::find(Some(&path))?, name))
}

/// [`thing_of`] several, which have to be of one store.
pub(super) fn things_of(given: &[impl AsRef<Path>]) -> Result<(Place, Vec<String>), Failure> {
    let mut place = None;
    let mut names = Vec::new();
    for path in given.iter().map(AsRef::as_ref) {
        let (found, name) = thing_of(path)?;
        if place.as_ref().is_some_and(|place| *place != found) {
            return Err(Failure::usage(
                path.display(),
                "this is in another store than the one before it",
            ));
        }
        place = Some(found);
        names.push(name);
    }
    let place = place.ok_or_else(|| Failure::usage("which?", "nothing is named"))?;
    Ok((place, names))
}

/// Opens an unmounted store for one command; its log takes what is found.
pub(super) fn open(root: &Path, bar: &Bar) -> Result<Arc<Store>, Failure> {
    open_with(root, Options::default(), bar)
}

fn open_with(root: &Path, options: Options, bar: &Bar) -> Result<Arc<Store>, Failure> {
    check_owner(root)?;
    log::to_store(root)?;
    let what = format!("opening {}", root.display());
    Store::open(root, options, bar).map_err(of_library(what))
}

/// Closes a store that [`open`] opened; what was done counts only then.
pub(super) fn close(store: &Store) -> Result<(), Failure> {
    let what = format!("closing {}", store.root().display());
    store.close().map_err(of_library(what))
}

/// Asks and waits for the answer; findings go to `found` as they come.
pub(super) fn ask(
    place: &Place,
    request: &Request,
    found: &mut dyn FnMut(&Value),
) -> Result<Value, Failure> {
    let bar = Bar::new();
    let mut answer = Answer {
        bar: &bar,
        found,
        last: None,
    };
    match place {
        Place::Mounted(point) => ask_mount(&point.join(CONTROL), request, &mut answer)?,
        Place::Unmounted(root) => {
            let options = Options {
                mend_catalogue: matches!(request, Request::Verify { repair: true, .. }),
                ..Options::default()
            };
            let store = open_with(root, options, &bar)?;
            let verbs = StoreVerbs {
                store: store.clone(),
            };
            verbs.run(to_json(request), &mut |line| answer.take(line));
            close(&store)?;
        }
    }
    let last = answer.last;
    bar.clear();
    let request = to_json(request);
    let what = request["verb"].as_str().unwrap_or("asking");
    match last {
        Some(Ok(result)) => Ok(result),
        Some(Err(why)) => Err(Failure::new(what, why)),
        None => Err(Failure::new(what, "the answer broke off")
            .hint("was the store unmounted? Its log (STORE/snapdisk.log) says")),
    }
}

fn to_json(request: &Request) -> Value {
    serde_json::to_value(request).expect("requests have text for keys, so they are JSON")
}

fn ask_mount(control: &Path, request: &Request, answer: &mut Answer<'_>) -> Result<(), Failure> {
    let failed = |error: io::Error| match error.raw_os_error() {
        Some(libc::EACCES | libc::EPERM) => Failure::new(control.display(), "permission denied")
            .hint(
                "the whole store is for root and for who mounted it; \
                 snapshots of your disks are in DISK/.snapshots",
            ),
        _ => Failure::system("asking", control, &error),
    };
    let mut file = File::options()
        .read(true)
        .write(true)
        .open(control)
        .map_err(failed)?;
    let mut line = to_json(request).to_string();
    line.push('\n');
    file.write_all(line.as_bytes()).map_err(failed)?;
    for line in BufReader::new(file).lines() {
        let line = line.map_err(failed)?;
        let line = serde_json::from_str(&line)
            .map_err(|error| Failure::new(control.display(), format_args!("{error}: {line}")))?;
        answer.take(line);
    }
    Ok(())
}

/// What came so far.
struct Answer<'a> {
    bar: &'a Bar,
    found: &'a mut dyn FnMut(&Value),
    last: Option<Result<Value, String>>,
}

impl Answer<'_> {
    fn take(&mut self, mut line: Value) {
        if let Some(progress) = line.get("progress") {
            self.bar.show(progress);
        } else if let Some(finding) = line.get("finding") {
            self.bar.suspend(|| (self.found)(finding));
        } else if let Some(result) = line.get_mut("result") {
            self.last = Some(Ok(result.take()));
        } else if let Some(error) = line.get("error") {
            let text = error.as_str().map(str::to_owned);
            self.last = Some(Err(text.unwrap_or_else(|| error.to_string())));
        }
    }
}
