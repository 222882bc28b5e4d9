//! The one place where an error of the tree becomes an errno.

#![deny(clippy::wildcard_enum_match_arm)] // The table stays total.

use fuser::{Errno, INodeNo};

use crate::sys::abi;
use crate::tree::{self, ErrorKind};

/// What the caller of the system call sees. The sentence that goes with it is in the tree (`last_error`).
pub(crate) fn of(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::NotFound => Errno::ENOENT,
        ErrorKind::Exists => Errno::EEXIST,
        ErrorKind::NotEmpty => Errno::ENOTEMPTY,
        ErrorKind::IsDirectory => Errno::EISDIR,
        ErrorKind::NotDirectory => Errno::ENOTDIR,
        ErrorKind::Invalid => Errno::EINVAL,
        ErrorKind::Busy => Errno::EBUSY,
        ErrorKind::Denied => Errno::EPERM,
        ErrorKind::NoAccess => Errno::EACCES,
        ErrorKind::ReadOnly => Errno::EROFS,
        ErrorKind::NoSpace => Errno::ENOSPC,
        ErrorKind::Unsupported => Errno::EOPNOTSUPP,
        ErrorKind::External => Errno::from_i32(abi::EREMOTEIO),
        ErrorKind::Interrupted => Errno::EINTR,
        ErrorKind::Cancelled => Errno::ECANCELED,
        ErrorKind::TimedOut => Errno::ETIMEDOUT,
        ErrorKind::NameTooLong => Errno::ENAMETOOLONG,
        ErrorKind::TooBig => Errno::E2BIG,
        ErrorKind::Again => Errno::EAGAIN,
        ErrorKind::Stale => Errno::ESTALE,
        ErrorKind::CrossDevice => Errno::EXDEV,
        ErrorKind::NoAttribute => Errno::ENODATA,
        ErrorKind::Io => Errno::EIO,
    }
}

/// The errno of a failure. It is the user's, who finds the sentence in the tree: here it is for debugging only.
pub(crate) fn failed(operation: &'static str, ino: INodeNo, error: &tree::Error) -> Errno {
    // Programs look for files that are not there all the time.
    let level = if error.kind == ErrorKind::NotFound { log::Level::Trace } else { log::Level::Debug };
    log::log!(level, "{operation} of inode {ino}: {error}");
    of(error.kind)
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no message)")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_that_users_meet() {
        let message = |kind| {
            std::io::Error::from_raw_os_error(of(kind).code()).to_string().split(" (").next().unwrap().to_owned()
        };
        assert_eq!(message(ErrorKind::Busy), "Device or resource busy");
        assert_eq!(message(ErrorKind::External), "Remote I/O error");
        assert_eq!(message(ErrorKind::Denied), "Operation not permitted");
        assert_eq!(message(ErrorKind::NoAccess), "Permission denied");
        assert_eq!(message(ErrorKind::TooBig), "Argument list too long");
        assert_eq!(message(ErrorKind::Cancelled), "Operation canceled");
    }
}
