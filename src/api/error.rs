//! [`Error`]: a kind for errno, a sentence for the operator.

use crate::{commit, engine, image, store};

/// What an error is to a program; `fuse::errno` gives each its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// ENOENT
    NotFound,
    /// EEXIST
    Exists,
    /// ENOTEMPTY
    NotEmpty,
    /// EISDIR
    IsDirectory,
    /// ENOTDIR
    NotDirectory,
    /// EINVAL
    Invalid,
    /// EBUSY
    Busy,
    /// EPERM
    Denied,
    /// EACCES
    NoAccess,
    /// EROFS
    ReadOnly,
    /// ENOSPC
    NoSpace,
    /// EOPNOTSUPP
    Unsupported,
    /// EREMOTEIO: a program outside snapfs failed.
    External,
    /// EINTR
    Interrupted,
    /// ECANCELED
    Cancelled,
    /// ETIMEDOUT
    TimedOut,
    /// ENAMETOOLONG
    NameTooLong,
    /// EFBIG
    TooBig,
    /// EAGAIN
    Again,
    /// ESTALE
    Stale,
    /// EXDEV
    CrossDevice,
    /// ENODATA
    NoAttribute,
    /// EIO
    Io,
}

/// What failed, on what, why, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// For a program.
    pub kind: ErrorKind,
    /// For a person: one sentence.
    pub message: String,
}

impl Error {
    /// An error that says `message`.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { kind, message: message.into() }
    }
}

impl From<store::Error> for Error {
    fn from(error: store::Error) -> Error {
        Error::new(store_kind(&error), error.to_string())
    }
}

impl From<engine::Error> for Error {
    fn from(error: engine::Error) -> Error {
        Error::new(engine_kind(&error), error.to_string())
    }
}

impl From<image::Error> for Error {
    fn from(error: image::Error) -> Error {
        Error::new(image_kind(&error), error.to_string())
    }
}

impl From<commit::OptionsError> for Error {
    fn from(error: commit::OptionsError) -> Error {
        let unsupported = matches!(error, commit::OptionsError::Unsupported { .. });
        let kind = if unsupported { ErrorKind::Unsupported } else { ErrorKind::Invalid };
        Error::new(kind, error.to_string())
    }
}
