//! [`Error`]: a kind for errno, a sentence for the operator.

use std::io;

use crate::progress::Cancelled;
use crate::sys::{cgroup, process};
use crate::{archive, capture, changeset, checkpoint, engine, guard, image, line, restore, squash, store, view};

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

/// Each room's error becomes a kind and a sentence here, and nowhere else.
macro_rules! from_room {
    ($($error:ty => $kind:ident,)*) => {
        $(impl From<$error> for Error {
            fn from(error: $error) -> Error {
                Error::new(by_cause(&error).unwrap_or_else(|| $kind(&error)), sentence(&error))
            }
        })*
    };
}

from_room! {
    store::Error => store_kind,
    engine::Error => engine_kind,
    image::Error => image_kind,
    archive::Error => archive_kind,
    capture::Error => capture_kind,
    checkpoint::Error => checkpoint_kind,
    line::Error => line_kind,
    view::Error => view_kind,
    restore::Error => restore_kind,
}

/// Some causes decide the kind wherever they come from: a full disk, a cancelled job.
fn by_cause(error: &(dyn std::error::Error + 'static)) -> Option<ErrorKind> {
    chain(error).find_map(|cause| {
        if cause.is::<Cancelled>() {
            return Some(ErrorKind::Cancelled);
        }
        let io = cause.downcast_ref::<io::Error>()?;
        match io.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Some(ErrorKind::NoSpace),
            io::ErrorKind::ReadOnlyFilesystem => Some(ErrorKind::ReadOnly),
            _ => by_cause(io.get_ref()?),
        }
    })
}

fn chain<'a>(
    error: &'a (dyn std::error::Error + 'static),
) -> impl Iterator<Item = &'a (dyn std::error::Error + 'static)> {
    std::iter::successors(Some(error), |error| error.source())
}

/// The error and its causes in one sentence; a cause that is already told is not told again.
fn sentence(error: &(dyn std::error::Error + 'static)) -> String {
    chain(error).fold(String::new(), |told, cause| {
        let text = cause.to_string();
        if told.is_empty() {
            text
        } else if told.contains(&text) {
            told
        } else {
            format!("{told}: {text}")
        }
    })
}

fn store_kind(error: &store::Error) -> ErrorKind {
    use store::Error as E;
    match error {
        E::NoSpace { .. } => ErrorKind::NoSpace,
        E::ReadOnly { .. } => ErrorKind::ReadOnly,
        E::NameConflict { .. } | E::NameExists { .. } => ErrorKind::Exists,
        E::NoSuchName { .. } => ErrorKind::NotFound,
        E::RecordTooLarge { .. } => ErrorKind::Invalid,
        E::Locked { .. } => ErrorKind::Busy,
        _ => ErrorKind::Io,
    }
}

fn engine_kind(error: &engine::Error) -> ErrorKind {
    use engine::Error as E;
    match error {
        E::NoContainer { .. } | E::Ambiguous { .. } | E::Gone { .. } | E::UnknownEngine { .. } => ErrorKind::NotFound,
        E::Program { .. } | E::Untold { .. } => ErrorKind::External,
        E::NotYet { .. } => ErrorKind::Again,
        E::StillRuns { .. } => ErrorKind::Busy,
        _ => ErrorKind::Io,
    }
}

fn image_kind(error: &image::Error) -> ErrorKind {
    match error {
        image::Error::Store(error) => store_kind(error),
        image::Error::Change(_) => ErrorKind::Invalid,
        image::Error::Write(_)
        | image::Error::ReadBack(_)
        | image::Error::NotInLayer { .. }
        | image::Error::Malformed { .. }
        | image::Error::BaseConfig(_)
        | image::Error::Encode(_) => ErrorKind::Io,
    }
}

fn view_kind(error: &view::Error) -> ErrorKind {
    match error {
        view::Error::Store { source, .. } => match &**source {
            // The image that had it is deleted, or else its name would not be seen.
            store::Error::NoSuchBlob { .. } => ErrorKind::Stale,
            source => store_kind(source),
        },
        view::Error::NoFile => ErrorKind::Stale,
        view::Error::Refused { .. }
        | view::Error::Unmergeable(_)
        | view::Error::Differs { .. }
        | view::Error::Read { .. } => ErrorKind::Io,
    }
}

fn archive_kind(error: &archive::Error) -> ErrorKind {
    use archive::Error as E;
    match error {
        E::Store(error) => store_kind(error),
        E::Image(error) => image_kind(error),
        E::NoSpace { .. } => ErrorKind::NoSpace,
        E::Exists { .. } => ErrorKind::Exists,
        E::Unsupported { .. } => ErrorKind::Unsupported,
        E::ManyBlobs { .. } => ErrorKind::TooBig,
        E::Thread(_) => ErrorKind::Again,
        E::Cancelled(_) => ErrorKind::Cancelled,
        // What was written cannot be taken, whatever the disk is like.
        _ => ErrorKind::Invalid,
    }
}

fn line_kind(error: &line::Error) -> ErrorKind {
    let unsupported = matches!(error, line::Error::Unsupported { .. });
    if unsupported { ErrorKind::Unsupported } else { ErrorKind::Invalid }
}

fn capture_kind(error: &capture::Error) -> ErrorKind {
    use capture::Error as E;
    match error {
        E::Started(_) | E::Unsettled(_) | E::Paused(_) => ErrorKind::Busy,
        E::RemovedAtEnd(_) | E::NoVolumes(_) | E::Volume { .. } | E::Base { .. } | E::Apart(_) => {
            ErrorKind::Unsupported
        }
        E::VolumeMoved(_) => ErrorKind::Busy,
        E::InVolume { source, .. } => capture_kind(source),
        E::Mounts { .. } => ErrorKind::Io,
        E::NotStarted { cause, .. } => engine_kind(cause),
        E::Removed(_) | E::Ended { .. } | E::NoBase(_) => ErrorKind::NotFound,
        E::Late { .. } => ErrorKind::TimedOut,
        E::OnOurMount(_) => ErrorKind::Unsupported,
        E::NotRunning { .. } => ErrorKind::Invalid,
        E::Engine(error) => engine_kind(error),
        E::Freeze(error) => freeze_kind(error),
        E::Changes(changeset::Error::WhiteoutName { .. }) => ErrorKind::Invalid,
        E::Image(error) => image_kind(error),
        E::Store(error) | E::Squash(squash::Error::Store(error)) => store_kind(error),
        E::Squash(squash::Error::Image(error)) => image_kind(error),
        E::Cancelled(_) => ErrorKind::Cancelled,
        E::Squash(_)
        | E::Changes(_)
        | E::Tar(_)
        | E::InUse(_)
        | E::During(_)
        | E::Aside { .. }
        | E::NotAside { .. }
        | E::BaseDiffers { .. }
        | E::BaseRead(_)
        | E::BaseConfig(_) => ErrorKind::Io,
    }
}

fn checkpoint_kind(error: &checkpoint::Error) -> ErrorKind {
    use checkpoint::Error as E;
    match error {
        E::NoRuntime { .. } | E::OldCriu { .. } | E::Unsupported(_) => ErrorKind::Unsupported,
        E::Program { source: process::Error::Missing { .. }, .. } => ErrorKind::Unsupported,
        E::Program { .. } | E::Dump { .. } | E::NotEnded { .. } => ErrorKind::External,
        E::Moved { .. } => ErrorKind::Busy,
        E::Capture(error) => capture_kind(error),
        E::Engine(error) => engine_kind(error),
        E::Image(error) => image_kind(error),
        E::Store(error) => store_kind(error),
        E::Cancelled(_) => ErrorKind::Cancelled,
        E::Dumped { .. } | E::Mounted { .. } | E::Spec { .. } => ErrorKind::Io,
    }
}

fn restore_kind(error: &restore::Error) -> ErrorKind {
    use restore::Error as E;
    match error {
        E::Untrusted { .. } | E::Foreign(_) => ErrorKind::Denied,
        E::Taken { .. } | E::Left { .. } => ErrorKind::Exists,
        E::NoEngine { .. } | E::Unsupported(_) | E::Missing { .. } => ErrorKind::Unsupported,
        E::NoBase { .. } => ErrorKind::NotFound,
        E::Program { .. } => ErrorKind::External,
        E::Malformed(_) | E::Files { .. } | E::Unpack { .. } | E::NoBlob(_) => ErrorKind::Io,
        E::Image(error) => image_kind(error),
        E::View(error) => view_kind(error),
        E::Store(error) => store_kind(error),
        E::Cancelled(_) => ErrorKind::Cancelled,
    }
}

fn freeze_kind(error: &guard::Error) -> ErrorKind {
    use guard::Error as E;
    match error {
        // A process that is ending leaves its cgroup before it leaves the process table.
        E::Replaced { .. }
        | E::Cgroup(cgroup::Error::Gone { .. } | cgroup::Error::NotMember { .. })
        | E::Process(process::Error::Gone { .. }) => ErrorKind::NotFound,
        E::Full | E::Busy { .. } | E::Thawed { .. } | E::Cgroup(cgroup::Error::NotFrozen { .. }) => ErrorKind::Busy,
        E::LimitExceeded { .. } => ErrorKind::TimedOut,
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_any_depth() {
        let full = || io::Error::from(io::ErrorKind::StorageFull);
        let wrapped = io::Error::other(image::Error::Write(full()));
        let error: Error = capture::Error::BaseRead(wrapped).into();
        assert_eq!(error.kind, ErrorKind::NoSpace);
        let error: Error = capture::Error::from(image::Error::Write(full())).into();
        assert_eq!(error.kind, ErrorKind::NoSpace);
    }

    #[test]
    fn a_sentence_tells_each_cause_once() {
        let error: Error = image::Error::Write(io::Error::other("the cause")).into();
        assert_eq!(error.message, "cannot write the layer: the cause");
        let error: Error = capture::Error::from(Cancelled).into();
        assert_eq!(error.kind, ErrorKind::Cancelled);
    }
}
