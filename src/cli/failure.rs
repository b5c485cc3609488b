//! What the command says when it cannot: what, why, what to do.

use crate::error::Error;
use std::fmt;
use std::io;
use std::path::Path;

/// A failure of the command.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    /// What was tried.
    pub(super) what: String,
    /// Why it did not work.
    pub(super) why: String,
    /// What to do about it.
    pub(super) hint: Option<String>,
    /// Whether the command line is to blame.
    pub(super) is_usage: bool,
}

impl Failure {
    pub(super) fn new(what: impl fmt::Display, why: impl fmt::Display) -> Failure {
        Failure {
            what: what.to_string(),
            why: why.to_string(),
            hint: None,
            is_usage: false,
        }
    }

    pub(super) fn usage(what: impl fmt::Display, why: impl fmt::Display) -> Failure {
        Failure {
            is_usage: true,
            ..Failure::new(what, why)
        }
    }

    pub(super) fn hint(mut self, hint: impl fmt::Display) -> Failure {
        self.hint = Some(hint.to_string());
        self
    }

    /// What the system answered about a path.
    pub(super) fn system(what: impl fmt::Display, path: &Path, error: &io::Error) -> Failure {
        let what = format!("{what} {}", path.display());
        let (why, hint) = match error.raw_os_error() {
            Some(libc::ENOTCONN) => (
                "the daemon that served this mount is gone".into(),
                Some("mount the store there again with `snapdisk mount STORE MNT`"),
            ),
            Some(libc::EACCES | libc::EPERM) => (
                "permission denied".into(),
                Some("who may do this says `ls -ld` of the directory; root always may"),
            ),
            Some(libc::EIO) => (
                "the store could not be read or written".into(),
                Some("the daemon's log says why (STORE/snapdisk.log); `snapdisk verify` checks it"),
            ),
            Some(libc::ENOSPC) => (
                "the store is full".into(),
                Some("delete snapshots or make its filesystem larger; deleting still works"),
            ),
            Some(libc::ENOENT) => ("there is no such file or directory".into(), None),
            _ => (error.to_string(), None),
        };
        Failure {
            hint: hint.map(str::to_owned),
            ..Failure::new(what, why)
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.what, self.why)
    }
}

impl std::error::Error for Failure {}

/// An error of the library, as the outcome of what was tried.
pub(super) fn of_library(what: impl fmt::Display) -> impl FnOnce(Error) -> Failure {
    move |error| {
        let hint = hint_for(&error);
        Failure {
            hint: hint.map(str::to_owned),
            ..Failure::new(what, error)
        }
    }
}

/// What to do about an error of the library, where something can be done.
fn hint_for(error: &Error) -> Option<&'static str> {
    Some(match error {
        Error::NotAStore { .. } => "make one with `snapdisk init STORE`",
        Error::Locked { .. } => {
            "name the directory where it is mounted, or wait until the other process has ended"
        }
        Error::Full { .. } => {
            "delete snapshots or make its filesystem larger; deleting still works"
        }
        Error::Damaged { .. } | Error::ChunkMissing { .. } => {
            "`snapdisk verify STORE` lists all that is damaged, and with --repair mends what \
             can be mended"
        }
        Error::Poisoned { .. } | Error::MetadataUnknown { .. } => {
            "look at the disk below the store, then unmount and mount again"
        }
        Error::Missing { .. } => "`snapdisk list` shows what there is",
        Error::Exists { what: "store", .. } => "mount it with `snapdisk mount STORE MNT`",
        Error::NotEmpty { .. } => "choose an empty directory",
        _ => return None,
    })
}

/// What and why of an error, and what to do. Messages of the library have
/// their cause in them already.
pub(super) fn describe(error: &anyhow::Error) -> (String, Option<String>) {
    let mut parts = Vec::new();
    for cause in error.chain() {
        parts.push(cause.to_string());
        if let Some(failure) = cause.downcast_ref::<Failure>() {
            return (parts.join(": "), failure.hint.clone());
        }
        if let Some(error) = cause.downcast_ref::<Error>() {
            return (parts.join(": "), hint_for(error).map(str::to_owned));
        }
    }
    (parts.join(": "), None)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_message_says_each_cause_once_and_what_to_do() {
        let error = Error::io("opening", "lock")(io::Error::from_raw_os_error(libc::EACCES));
        let error = anyhow::Error::from(error).context("opening the store");
        let (text, hint) = describe(&error);
        assert_eq!(text.matches("denied").count(), 1, "{text}");
        assert_eq!(hint, None);

        let error: anyhow::Result<()> = Err(Failure::new("a", "b").hint("c")).context("top");
        let (text, hint) = describe(&error.expect_err("it is one"));
        assert_eq!((text.as_str(), hint.as_deref()), ("top: a: b", Some("c")));
    }
}
