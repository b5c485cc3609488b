//! Names of disks, snapshots and images, checked when they are parsed.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::ffi::OsStr;
use std::fmt;

/// The most characters a name may have.
pub const NAME_CHARS: usize = 128;
/// The most bytes a name may have (`NAME_MAX` of Linux).
pub const NAME_BYTES: usize = 255;

/// What `.snapshots` keeps for itself.
const RESERVED_IN_SNAPSHOTS: [&str; 3] = ["policy.toml", "policy.rejected", "latest"];

fn check(name: &OsStr) -> Result<&str> {
    if name.len() > NAME_BYTES {
        return Err(Error::NameTooLong { bytes: name.len() });
    }
    let invalid = |reason| Error::NameInvalid {
        name: name.to_string_lossy().into_owned(),
        reason,
    };
    let text = name.to_str().ok_or_else(|| invalid("it is not UTF-8"))?;
    if text.is_empty() {
        return Err(invalid("it is empty"));
    }
    if text.starts_with(['.', '-']) {
        return Err(invalid("it starts with '.' or '-'"));
    }
    if text.chars().count() > NAME_CHARS {
        return Err(invalid("it has more than 128 characters"));
    }
    if !text
        .chars()
        .all(|c| c.is_alphanumeric() || "._-:+@=".contains(c))
    {
        return Err(invalid(
            "only letters, digits and the characters . _ - : + @ = may be in it",
        ));
    }
    Ok(text)
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = Error;
            fn try_from(name: String) -> Result<Self> {
                Self::parse(OsStr::new(&name))
            }
        }
    };
}

name_type! {
    /// The name of a disk.
    DiskName
}
name_type! {
    /// The name of a snapshot, automatic or manual.
    SnapshotName
}
name_type! {
    /// The name of an image, with its `.img` if it has one.
    ImageName
}

name_type! {
    /// The name of a policy of many disks, with its `.toml`.
    PolicyName
}

impl PolicyName {
    /// Checks a name that a user gave.
    pub fn parse(name: &OsStr) -> Result<Self> {
        let text = check(name)?;
        match text.strip_suffix(".toml") {
            Some(stem) if !stem.is_empty() => Ok(Self(text.to_owned())),
            _ => Err(Error::NameInvalid {
                name: text.to_owned(),
                reason: "a policy's name ends in .toml",
            }),
        }
    }
}

impl DiskName {
    /// Checks a name that a user gave.
    pub fn parse(name: &OsStr) -> Result<Self> {
        check(name).map(|name| Self(name.to_owned()))
    }
}

impl ImageName {
    /// Checks a name that a user gave.
    pub fn parse(name: &OsStr) -> Result<Self> {
        check(name).map(|name| Self(name.to_owned()))
    }

    /// Checks a name that a user gave, or the hidden temporary name under
    /// which rsync writes a file before it is renamed (`.NAME.XXXXXX`).
    pub fn parse_or_temporary(name: &OsStr) -> Result<Self> {
        match name.to_str().and_then(|name| name.strip_prefix('.')) {
            Some(rest) if rest.contains('.') => {
                check(OsStr::new(rest))?;
                if name.len() > NAME_BYTES {
                    return Err(Error::NameTooLong { bytes: name.len() });
                }
                Ok(Self(format!(".{rest}")))
            }
            _ => Self::parse(name),
        }
    }
}

impl SnapshotName {
    /// Checks any name that a snapshot can have.
    pub fn parse(name: &OsStr) -> Result<Self> {
        let text = check(name)?;
        let invalid = |reason| Error::NameInvalid {
            name: text.to_owned(),
            reason,
        };
        if RESERVED_IN_SNAPSHOTS.contains(&text) {
            return Err(invalid("it is reserved"));
        }
        if text.chars().count() < 2 {
            return Err(invalid("a snapshot's name has at least 2 characters"));
        }
        Ok(Self(text.to_owned()))
    }

    /// Checks a name that a user gives a snapshot: `auto…` is kept for
    /// those that a policy takes.
    pub fn parse_manual(name: &OsStr) -> Result<Self> {
        let parsed = Self::parse(name)?;
        if parsed.0.starts_with("auto") {
            return Err(Error::NameInvalid {
                name: parsed.0,
                reason: "names that start with \"auto\" are kept for automatic snapshots",
            });
        }
        Ok(parsed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn names_of_any_script_are_taken_and_paths_are_not() {
        for good in ["web", "数据库", "2026-11-24T03:48:52+00:00", "a@b=c_d.e"] {
            assert!(DiskName::parse(OsStr::new(good)).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", ".x", "-x", "a/b", "a b", "a\n", "a\0b", "a*"] {
            assert!(DiskName::parse(OsStr::new(bad)).is_err(), "{bad:?}");
        }
        assert!(DiskName::parse(OsStr::from_bytes(b"a\xff")).is_err());
        assert!(DiskName::parse(OsStr::new(&"x".repeat(128))).is_ok());
        assert!(matches!(
            DiskName::parse(OsStr::new(&"x".repeat(129))),
            Err(Error::NameInvalid { .. })
        ));
        assert!(matches!(
            DiskName::parse(OsStr::new(&"x".repeat(300))),
            Err(Error::NameTooLong { bytes: 300 })
        ));
    }

    #[test]
    fn reserved_names_of_snapshots_are_refused() {
        for bad in [
            "a",
            "auto",
            "auto-1",
            "policy.toml",
            "policy.rejected",
            "latest",
        ] {
            assert!(
                SnapshotName::parse_manual(OsStr::new(bad)).is_err(),
                "{bad}"
            );
        }
        assert!(SnapshotName::parse(OsStr::new("auto-20261123T030000Z")).is_ok());
    }

    #[test]
    fn temporary_names_are_for_images_only() {
        assert!(ImageName::parse_or_temporary(OsStr::new(".ubuntu.img.Xa81bQ")).is_ok());
        assert!(ImageName::parse_or_temporary(OsStr::new(".hidden")).is_err());
        assert!(ImageName::parse_or_temporary(OsStr::new("..")).is_err());
    }
}
