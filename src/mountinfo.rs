//! What is mounted where.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The type that mounts of this program have.
const OWN_TYPE: &str = "fuse.snapdisk";

/// A mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Which directory of the filesystem is shown: `/` but for bind mounts.
    root: PathBuf,
    /// Where.
    pub point: PathBuf,
    /// The filesystem's type.
    kind: OsString,
    /// What is mounted; for mounts of this program: the store.
    pub source: PathBuf,
    /// For mounts of FUSE: who mounted it.
    user: Option<u32>,
}

impl Mount {
    /// Whether it shows a store.
    pub fn is_own(&self) -> bool {
        self.kind == OWN_TYPE
    }

    /// Whether it shows all of it, and not a part by a bind mount.
    pub fn is_whole(&self) -> bool {
        self.root == Path::new("/")
    }

    /// Whether root or the store's owner mounted it: whoever may use FUSE can
    /// give a mount any type and any source.
    fn is_of_owner(&self) -> bool {
        let owner = || fs::metadata(&self.source).map(|store| store.uid());
        match self.user {
            None => false,
            Some(0) => true,
            Some(user) => owner().is_ok_and(|owner| owner == user),
        }
    }

    /// Whether the daemon that served it is gone.
    pub fn is_dead(&self) -> bool {
        fs::symlink_metadata(&self.point)
            .is_err_and(|error| error.raw_os_error() == Some(libc::ENOTCONN))
    }

    /// What a path below it is called in the store's tree: relative to the
    /// top, bind mounts or not.
    pub fn inner(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.point).ok()?;
        let root = self.root.strip_prefix("/").unwrap_or(&self.root);
        Some(root.join(below))
    }
}

/// All mounts that this process can see, in the order they were made.
#[derive(Clone, Debug)]
pub struct Mounts(Vec<Mount>);

impl Mounts {
    /// Asks the kernel.
    pub fn read() -> io::Result<Mounts> {
        Ok(Mounts::parse(&fs::read("/proc/self/mountinfo")?))
    }

    /// What `/proc/self/mountinfo` says; lines that say nothing are left out.
    pub fn parse(text: &[u8]) -> Mounts {
        Mounts(
            text.split(|byte| *byte == b'\n')
                .filter_map(parse_line)
                .collect(),
        )
    }

    /// The topmost mount at exactly this path.
    pub fn at(&self, path: &Path) -> Option<&Mount> {
        self.0.iter().rfind(|mount| mount.point == path)
    }

    /// The mount that an absolute path lies in.
    pub fn holding(&self, path: &Path) -> Option<&Mount> {
        self.0
            .iter()
            .filter(|mount| path.starts_with(&mount.point))
            // The last of equally long ones is on top.
            .max_by_key(|mount| mount.point.components().count())
    }

    fn stores(&self) -> impl Iterator<Item = &Mount> {
        let mounts = self.0.iter();
        mounts.filter(|mount| mount.is_own() && mount.is_whole() && mount.is_of_owner())
    }

    /// Mounts of whole stores, those whose daemon is gone left out.
    pub fn live_stores(&self) -> impl Iterator<Item = &Mount> {
        self.stores().filter(|mount| !mount.is_dead())
    }

    /// Where a store or a part of it is shown, by bind mounts, too, and not
    /// covered by another mount.
    pub fn showing(&self, store: &Path) -> impl Iterator<Item = &Mount> {
        let shows =
            move |mount: &&Mount| mount.is_own() && mount.source == store && mount.is_of_owner();
        let is_on_top = |mount: &&Mount| self.at(&mount.point) == Some(*mount);
        self.0.iter().filter(shows).filter(is_on_top)
    }

    /// Where a store is mounted, whole and alive. Looks at no other mount,
    /// whose daemon might not answer.
    pub fn of_store(&self, store: &Path) -> Option<&Mount> {
        self.stores()
            .find(|mount| mount.source == store && !mount.is_dead())
    }
}

/// The absolute path without symbolic links, also of a mount point whose
/// daemon is gone, which cannot be looked at.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    match fs::canonicalize(path) {
        Err(error) if error.raw_os_error() == Some(libc::ENOTCONN) => {
            in_its_directory(path).unwrap_or(Err(error))
        }
        result => result,
    }
}

/// The absolute path of something that cannot be looked at itself, by its
/// directory; None if it has none.
pub fn in_its_directory(path: &Path) -> Option<io::Result<PathBuf>> {
    let path = match std::path::absolute(path) {
        Ok(path) => path,
        Err(error) => return Some(Err(error)),
    };
    let (parent, name) = (path.parent()?, path.file_name()?);
    Some(absolute(parent).map(|parent| parent.join(name)))
}

/// A line, as proc_pid_mountinfo(5) has it: id, parent, device, root, point,
/// options, any number of tags, a dash, type, source, options.
fn parse_line(line: &[u8]) -> Option<Mount> {
    let mut fields = line.split(|byte| *byte == b' ');
    let root = unescape(fields.nth(3)?);
    let point = unescape(fields.next()?);
    fields.find(|field| *field == b"-")?;
    let kind = unescape(fields.next()?);
    let source = unescape(fields.next()?);
    let mut options = fields
        .next()
        .unwrap_or_default()
        .split(|byte| *byte == b',');
    let user = options.find_map(|option| {
        let user = option.strip_prefix(b"user_id=")?;
        std::str::from_utf8(user).ok()?.parse().ok()
    });
    Some(Mount {
        root: root.into(),
        point: point.into(),
        kind,
        source: source.into(),
        user,
    })
}

/// Undoes `\040` and its like.
pub fn unescape(text: &[u8]) -> OsString {
    let mut plain = Vec::with_capacity(text.len());
    let mut at = 0;
    while at < text.len() {
        let code = match text.get(at..at + 4) {
            Some([b'\\', digits @ ..]) => std::str::from_utf8(digits)
                .ok()
                .and_then(|digits| u8::from_str_radix(digits, 8).ok()),
            _ => None,
        };
        plain.push(code.unwrap_or(text[at]));
        at += if code.is_some() { 4 } else { 1 };
    }
    OsString::from_vec(plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    const TEXT: &[u8] = b"22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
        30 22 0:40 / /mnt/my\\040disks rw,nosuid shared:9 master:2 - fuse.snapdisk /var/a\\134b\\040c rw\n\
        31 22 0:41 / /mnt/my\\040disks rw - tmpfs none rw\n\
        32 22 0:40 /web /srv/web rw - fuse.snapdisk /var/a\\134b\\040c rw\n\
        broken\n\
        33 22 0:42 / /\xff rw - ext4 x rw\n";

    #[test]
    fn escapes_and_optional_fields_are_understood() {
        let mounts = Mounts::parse(TEXT);
        assert_eq!(mounts.0.len(), 5);
        let own = &mounts.0[1];
        assert!(own.is_own());
        assert_eq!(own.point, Path::new("/mnt/my disks"));
        assert_eq!(own.source, Path::new("/var/a\\b c"));
        assert_eq!(mounts.0[4].point.as_os_str().as_bytes(), b"/\xff");
        assert_eq!(unescape(b"a\\04"), "a\\04");
        assert_eq!(unescape(b"a\\9999\\"), "a\\9999\\");
    }

    #[test]
    fn the_topmost_mount_counts() {
        let mounts = Mounts::parse(TEXT);
        let kind = |path: &str| mounts.at(Path::new(path)).map(|mount| mount.kind.clone());
        assert_eq!(kind("/mnt/my disks"), Some("tmpfs".into()));
        assert_eq!(kind("/mnt"), None);
        let holding = |path: &str| mounts.holding(Path::new(path)).map(|mount| &mount.kind);
        assert_eq!(holding("/mnt/my disks/web"), Some(&"tmpfs".into()));
        assert_eq!(holding("/mnt/my"), Some(&"ext4".into()));
    }

    #[test]
    fn a_path_below_a_bind_mount_names_the_same_disk() {
        let mounts = Mounts::parse(TEXT);
        let bound = &mounts.0[3];
        assert_eq!(bound.inner(Path::new("/srv/web")), Some("web/".into()));
        assert_eq!(
            bound.inner(Path::new("/srv/web/.snapshots")),
            Some("web/.snapshots".into())
        );
        assert_eq!(bound.inner(Path::new("/srv")), None);
        let own = &mounts.0[1];
        assert_eq!(own.inner(Path::new("/mnt/my disks/db")), Some("db".into()));
    }
}
