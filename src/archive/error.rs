//! Why an archive was not taken or cannot be given.

use std::io;

use crate::oci::{Digest, ImageName, InvalidName};
use crate::progress::Cancelled;
use crate::{image, store};

/// Why an archive was not taken or cannot be given.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// An image cannot be read.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The bytes ended before the archive did.
    #[error("the archive is incomplete: what was written ends before its end; write it again as a whole, in one go")]
    Truncated,
    /// The stream could not be read or decompressed.
    #[error("the archive cannot be read: {0}; make it again")]
    Stream(#[source] io::Error),
    /// It is no archive of images.
    #[error(
        "this is no archive of an image that can be trusted: {reason}; make it again with podman save, docker save or skopeo copy"
    )]
    Malformed {
        /// What is wrong.
        reason: String,
    },
    /// It is larger than any archive needs to be.
    #[error("the archive has {what}, which no image needs; it is not read any further")]
    Limit {
        /// Of what there is too much.
        what: String,
    },
    /// Its files do not fit into the store.
    #[error(
        "the archive's {path} has {size} bytes and the store has {free} left; remove images, or give the store more space"
    )]
    NoSpace {
        /// The entry.
        path: String,
        /// Its length.
        size: u64,
        /// What is free.
        free: u64,
    },
    /// A blob is not what its name or its descriptor says.
    #[error(
        "the archive's {path} has the digest {found}, not {expected}: it was damaged or tampered with; make it again"
    )]
    WrongDigest {
        /// The entry.
        path: String,
        /// What was promised.
        expected: Digest,
        /// What was found.
        found: Digest,
    },
    /// A kind of image that cannot be taken.
    #[error("{what}; {remedy}")]
    Unsupported {
        /// What it is.
        what: String,
        /// What to do instead.
        remedy: &'static str,
    },
    /// The first line is not what it may be.
    #[error("the line before the archive is wrong: {0}; it is \"as=NAME [replace]\"")]
    Request(String),
    /// The name given to the image is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// One name cannot stand for several images.
    #[error("the archive holds {count} images, and as= names one; leave it out, or save the images one by one")]
    Several {
        /// How many.
        count: usize,
    },
    /// Names that an archive brings never take the place of another image.
    #[error(
        "an image {name} exists already, and it is another one; move it out of the way first, write the line \"as=NAME\" \
         before the archive to give it another name, or \"replace\" to have it replaced"
    )]
    Exists {
        /// The name.
        name: ImageName,
    },
    /// An image has more layers than can be kept open at once.
    #[error("the image has {count} blobs, and an archive is given of {limit} at most")]
    ManyBlobs {
        /// How many.
        count: usize,
        /// The most.
        limit: usize,
    },
    /// A thread could not be started.
    #[error("no thread to decompress with: {0}")]
    Thread(#[source] io::Error),
    /// It was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

impl Error {
    /// A stream that ended early, was cancelled, or failed.
    pub(super) fn of_stream(error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated,
            _ if error.get_ref().is_some_and(|inner| inner.is::<Cancelled>()) => Error::Cancelled(Cancelled),
            _ => Error::Stream(error),
        }
    }

    pub(super) fn malformed(reason: impl Into<String>) -> Error {
        Error::Malformed { reason: reason.into() }
    }
}
