//! What can go wrong with a store, and what to do about it.

use std::io;
use std::path::PathBuf;

use crate::oci::{Digest, ImageName};
use crate::store::names::Conflict;

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The disk or its quota is full.
    #[error("cannot {step} {}: the disk is full; remove images and let them be collected, or give the store more space", path.display())]
    NoSpace {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system refused an operation.
    #[error("cannot {step} {}: {source}; see the kernel's log for the disk, and the permissions of the path", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Another process has the store.
    #[error("the store {} is in use{}; stop that daemon first, or choose another store", place.display(), by(*pid))]
    Locked {
        /// The store's directory.
        place: PathBuf,
        /// Who has it, if that could be read.
        pid: Option<u32>,
    },
    /// The directory holds other things.
    #[error("{} is not a store: it holds {found:?}; give an empty or a new directory", place.display())]
    NotAStore {
        /// The directory.
        place: PathBuf,
        /// One of the things.
        found: String,
    },
    /// Another user owns the directory and could change it at any time.
    #[error("the store {} belongs to another user; chown it to the user that the daemon runs as", place.display())]
    ForeignOwner {
        /// The store's directory.
        place: PathBuf,
    },
    /// A newer program wrote the store.
    #[error("the store {} has format {found}, and this program knows formats up to {known}; use the newer snapfs", place.display())]
    NewerVersion {
        /// The store's directory.
        place: PathBuf,
        /// Its format.
        found: u64,
        /// The newest format that this program knows.
        known: u64,
    },
    /// A failed fsync left the disk's state unknown.
    #[error("the store takes no changes since the disk failed ({cause}); mend the disk and restart the daemon")]
    ReadOnly {
        /// The failure.
        cause: String,
    },
    /// An image and a directory of images cannot have one name.
    #[error("cannot name an image {name}: {conflict}; choose another name, or move the other one first")]
    NameConflict {
        /// The name asked for.
        name: ImageName,
        /// What is in its way.
        conflict: Conflict,
    },
    /// The name was to be new.
    #[error("an image {name} exists already; choose another name, or leave out \"create\" to move it")]
    NameExists {
        /// The name.
        name: ImageName,
    },
    /// No image has the name.
    #[error("there is no image {name}; see the names in images/")]
    NoSuchName {
        /// The name.
        name: ImageName,
    },
    /// No blob has the digest.
    #[error("the store has no blob {digest}; the image that needs it is gone or damaged: run fsck")]
    NoSuchBlob {
        /// The digest.
        digest: Digest,
    },
    /// The image lacks a blob and gets no name.
    #[error(
        "the image {manifest} is incomplete: its blob {missing} is not in the store; make or fetch the image again"
    )]
    Incomplete {
        /// The image's manifest or index.
        manifest: Digest,
        /// The first blob that is missing.
        missing: Digest,
    },
    /// A file does not hold what its name or its descriptor says.
    #[error("{} is damaged: {reason}; run fsck to see which images need it, and make or fetch those again", path.display())]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// A record could not be read when the store was opened, so nobody knows which blobs it needs.
    #[error("cannot collect blobs: {} could not be read at the start; check the disk and restart the daemon", path.display())]
    Unread {
        /// The record, or a directory of records.
        path: PathBuf,
    },
    /// A document cannot be an image's manifest or index.
    #[error("{digest} is no image manifest or index: {reason}; make or fetch the image again")]
    Malformed {
        /// The document.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// A file is longer than what may be read into memory.
    #[error("{} has {size} bytes, and {limit} is the most allowed; it is not what it should be", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// Its length in bytes.
        size: u64,
        /// The longest allowed, in bytes.
        limit: u64,
    },
    /// A record has too many labels.
    #[error("the labels of {name} need {size} bytes, and {limit} is the most a name can carry; shorten them")]
    RecordTooLarge {
        /// The name.
        name: ImageName,
        /// What the record needs, in bytes.
        size: u64,
        /// The longest record, in bytes.
        limit: u64,
    },
    /// A fact's kind or key cannot be a file name.
    #[error("{kind:?} and {key:?} cannot name a cached fact; use letters, digits, \".\", \"_\", \"-\" and \":\"")]
    InvalidKey {
        /// The kind.
        kind: String,
        /// The key.
        key: String,
    },
}

impl Error {
    /// The system refused to do `step` to `path`.
    pub(crate) fn io(step: &'static str, path: PathBuf, source: io::Error) -> Error {
        if matches!(source.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) {
            return Error::NoSpace { step, path, source };
        }
        Error::Io { step, path, source }
    }
}

fn by(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" by process {pid}"))
}
