//! Why no container was made: which step, on what, why, and what to do.

use std::path::PathBuf;

use crate::oci::Digest;
use crate::progress::Cancelled;
use crate::sys::process;
use crate::{image, store, view};

/// Why there is no container. Nothing of it is left: no process, no mount, no directory.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image came from elsewhere, and root has not said that it may run.
    #[error(
        "{image} was not made by this daemon, and nothing of it is started: its processes would have whatever rights it says; \
         if you trust where it came from, write as root its digest into its label: \
         cat images/{image}/digest > images/{image}/labels/{label}"
    )]
    Untrusted {
        /// The image's name.
        image: String,
        /// The label that says otherwise.
        label: &'static str,
    },
    /// The name is another container's.
    #[error("the name {name} is taken at {engine}; write another one, or remove that container first")]
    Taken {
        /// The name.
        name: String,
        /// Whose it is.
        engine: &'static str,
    },
    /// Files of an earlier container of that name, which ended with the machine.
    #[error(
        "{} holds what a container named {name} had written before the machine was started again; keep what is needed of it, \
         remove the directory, and write the command again", path.display()
    )]
    Left {
        /// The name.
        name: String,
        /// Its directory.
        path: PathBuf,
    },
    /// No such engine, or its program is not there.
    #[error("no container can be made at {engine}: {reason}")]
    NoEngine {
        /// The engine.
        engine: String,
        /// Why not.
        reason: String,
    },
    /// What was asked for cannot be had.
    #[error("{0}")]
    Unsupported(String),
    /// The image that a checkpoint stands on is not there.
    #[error(
        "the checkpoint stands on the image {name}, which is not in the store; import or pull it, so that it has the digest \
         {digest}, and write the command again"
    )]
    NoBase {
        /// What it is called.
        name: String,
        /// Its manifest's digest, as far as it is known.
        digest: String,
    },
    /// The image is not what it should be.
    #[error("the image cannot be restored: {0}")]
    Malformed(String),
    /// Something that an image from elsewhere says of its container is not done.
    #[error("the image came from elsewhere, and of what its container had this is not taken from it: {0}")]
    Foreign(String),
    /// A program failed.
    #[error("{program} could not make the container {name}: {why}; nothing of it was kept")]
    Program {
        /// Which.
        program: String,
        /// The container.
        name: String,
        /// Why, and what to do.
        why: String,
    },
    /// A program is missing, or does not start.
    #[error("a restore needs {program}: {source}")]
    Missing {
        /// Which.
        program: String,
        /// Why not.
        source: process::Error,
    },
    /// A file or a directory could not be made.
    #[error("cannot {step} {}", path.display())]
    Files {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A file of the image could not be made.
    #[error("cannot unpack {path:?} of {what}")]
    Unpack {
        /// Of what.
        what: String,
        /// The path in it.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// A blob cannot be read.
    #[error("the blob {0} of the image is missing in the store; run snapfs fsck")]
    NoBlob(Digest),
    /// The image could not be read.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// Its files could not.
    #[error(transparent)]
    View(#[from] view::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It was asked to stop.
    #[error("the restore was cancelled; nothing of it was kept")]
    Cancelled(#[from] Cancelled),
}

impl Error {
    pub(super) fn files(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::Files { step, path, source }
    }
}
