//! The only table from [`Error`] to the number that a system call fails
//! with.

use crate::error::Error;
use fuser::Errno;

/// The number for an error.
pub fn errno(error: &Error) -> Errno {
    match error {
        Error::NameInvalid { .. } | Error::InvalidArgument { .. } => Errno::EINVAL,
        Error::NameTooLong { .. } => Errno::ENAMETOOLONG,
        Error::TooLarge { .. } => Errno::EFBIG,
        Error::Exists { .. } => Errno::EEXIST,
        // ENOENT for a disk without an image, too: what is to be taken is
        // not there.
        Error::Missing { .. } | Error::NoImage { .. } => Errno::ENOENT,
        // The kernel looks the name up again.
        Error::Stale { .. } => Errno::ESTALE,
        Error::Quota { .. } => Errno::EDQUOT,
        // Locked is met when a store is opened, so no system call on a
        // mounted one meets it.
        Error::Busy { .. } | Error::Locked { .. } => Errno::EBUSY,
        Error::NotEmpty { .. } => Errno::ENOTEMPTY,
        Error::ReadOnly { .. } => Errno::EROFS,
        // EPERM and not EXDEV for a rename across directories: EXDEV makes
        // mv copy, which here would take snapshots and make disks.
        Error::NotPermitted { .. } => Errno::EPERM,
        Error::NotSupported { .. } => Errno::EOPNOTSUPP,
        // EDQUOT below is the store's filesystem being full for its owner;
        // EDQUOT above it would read as a quota of this tree.
        // As ext4 has it when a file's attributes are too large.
        Error::Full { .. } | Error::TooMuch { .. } => Errno::ENOSPC,
        Error::Io { .. } if error.is_no_space() => Errno::ENOSPC,
        // Whatever the system said about a file of the store (ENOENT,
        // EROFS), it is not the answer about the caller's file.
        Error::Io { .. }
        | Error::Damaged { .. }
        | Error::ChunkMissing { .. }
        | Error::Poisoned { .. }
        | Error::MetadataUnknown { .. }
        | Error::VersionConflict { .. }
        | Error::NotAStore { .. }
        | Error::FormatNewer { .. } => Errno::EIO,
        Error::Closing => Errno::ESHUTDOWN,
    }
}

/// The name of a number that [`errno`] gives.
pub fn errno_name(number: Errno) -> &'static str {
    match number.code() {
        libc::EINVAL => "EINVAL",
        libc::ENAMETOOLONG => "ENAMETOOLONG",
        libc::EFBIG => "EFBIG",
        libc::EEXIST => "EEXIST",
        libc::ENOENT => "ENOENT",
        libc::ESTALE => "ESTALE",
        libc::EDQUOT => "EDQUOT",
        libc::EBUSY => "EBUSY",
        libc::ENOTEMPTY => "ENOTEMPTY",
        libc::EROFS => "EROFS",
        libc::EPERM => "EPERM",
        libc::EOPNOTSUPP => "EOPNOTSUPP",
        libc::ENOSPC => "ENOSPC",
        libc::EIO => "EIO",
        libc::ESHUTDOWN => "ESHUTDOWN",
        _ => "another error",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn io(code: i32) -> Error {
        Error::io("writing", "layers/x")(io::Error::from_raw_os_error(code))
    }

    fn busy() -> Error {
        Error::Busy {
            what: "x".into(),
            by: vec![],
        }
    }

    #[test]
    fn refusals_have_the_numbers_that_the_contract_gives() {
        let text = String::new;
        let table = [
            (
                Error::NameInvalid {
                    name: text(),
                    reason: "",
                },
                Errno::EINVAL,
            ),
            (Error::NameTooLong { bytes: 300 }, Errno::ENAMETOOLONG),
            (Error::TooLarge { size: 2, limit: 1 }, Errno::EFBIG),
            (
                Error::Exists {
                    what: "disk",
                    name: text(),
                },
                Errno::EEXIST,
            ),
            (
                Error::Missing {
                    what: "disk",
                    name: text(),
                },
                Errno::ENOENT,
            ),
            (Error::NoImage { disk: text() }, Errno::ENOENT),
            (Error::Stale { what: text() }, Errno::ESTALE),
            (
                Error::Quota {
                    what: text(),
                    limit: 256,
                },
                Errno::EDQUOT,
            ),
            (busy(), Errno::EBUSY),
            (
                Error::NotEmpty {
                    what: text(),
                    content: text(),
                },
                Errno::ENOTEMPTY,
            ),
            (Error::ReadOnly { what: text() }, Errno::EROFS),
            (Error::NotPermitted { what: text() }, Errno::EPERM),
            (Error::NotSupported { what: text() }, Errno::EOPNOTSUPP),
            (
                Error::Full {
                    free: 0,
                    reserve: 0,
                },
                Errno::ENOSPC,
            ),
            (
                Error::Damaged {
                    what: text(),
                    detail: text(),
                },
                Errno::EIO,
            ),
            (Error::ChunkMissing { id: text() }, Errno::EIO),
            (
                Error::Poisoned {
                    what: text(),
                    cause: text(),
                },
                Errno::EIO,
            ),
        ];
        for (error, expected) in table {
            assert_eq!(errno(&error), expected, "{error}");
            assert!(errno_name(expected).starts_with('E'), "{error}");
        }
    }

    #[test]
    fn a_full_store_is_told_from_a_failing_one() {
        assert_eq!(errno(&io(libc::ENOSPC)), Errno::ENOSPC);
        assert_eq!(errno(&io(libc::EDQUOT)), Errno::ENOSPC);
        for code in [libc::EIO, libc::ENOENT, libc::EROFS, libc::EINVAL] {
            assert_eq!(errno(&io(code)), Errno::EIO, "{code}");
        }
    }
}
