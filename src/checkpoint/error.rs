//! Why there is no checkpoint: which step, on what, why, and what to do.

use std::path::PathBuf;

use crate::progress::Cancelled;
use crate::sys::process;
use crate::{capture, engine, image, store};

/// Why there is no checkpoint. Nothing of it is visible, and the container runs as before.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Another runtime than those that are known, or none that the engine's files tell of.
    #[error(
        "cannot tell which OCI runtime runs the container {name}; a checkpoint needs runc or crun with its state directory"
    )]
    NoRuntime {
        /// The container.
        name: String,
    },
    /// CRIU, or the runtime, is not installed or does not start.
    #[error("a checkpoint needs {program}: {source}")]
    Program {
        /// `criu`, `runc` or `crun`.
        program: String,
        /// Why not.
        source: process::Error,
    },
    /// CRIU is too old.
    #[error("CRIU {found} is too old; install CRIU 3.15 or later, and 4.1 or later for a kernel of 6.13 or later")]
    OldCriu {
        /// What `criu --version` says.
        found: String,
    },
    /// What was asked for cannot be had here.
    #[error("{0}")]
    Unsupported(String),
    /// CRIU or the runtime failed.
    #[error("the processes of {name} could not be dumped: {why}; the container runs on")]
    Dump {
        /// The container.
        name: String,
        /// Why, and what to do.
        why: String,
        /// What of that is a full disk.
        #[source]
        cause: Option<std::io::Error>,
    },
    /// The runtime said that it succeeded, and the container was not still all the time.
    #[error(
        "the container {name} was let run while it was dumped, so that its memory and its files are not of one moment; \
         nothing was kept: keep others from unpausing it, and write the command again"
    )]
    Moved {
        /// The container.
        name: String,
    },
    /// A file of the dump cannot be read or changed.
    #[error("cannot {step} {} of the dump", path.display())]
    Dumped {
        /// What was tried.
        step: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// A directory that belongs to the container cannot be read.
    #[error("cannot read {} into the checkpoint", path.display())]
    Mounted {
        /// The directory, on the host.
        path: PathBuf,
        /// Why not.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The container's specification is not there or is no JSON.
    #[error("cannot read the spec.json of the container {name}: {reason}")]
    Spec {
        /// The container.
        name: String,
        /// Why not.
        reason: String,
    },
    /// The image is there, and the container could not be ended.
    #[error(
        "the checkpoint is complete and has its name, but the container {name} could not be ended and runs on: {source}; \
         end it at its engine"
    )]
    NotEnded {
        /// The container.
        name: String,
        /// Why not.
        source: process::Error,
    },
    /// The container's files could not be captured.
    #[error(transparent)]
    Capture(capture::Error),
    /// The engine could not say what it should.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The image could not be built.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It was asked to stop.
    #[error("the checkpoint was cancelled; nothing of it was kept, and the container runs on")]
    Cancelled(#[from] Cancelled),
}

impl From<capture::Error> for Error {
    fn from(error: capture::Error) -> Error {
        match error {
            // What failed in the freeze is ours.
            capture::Error::During(error) => match error.downcast() {
                Ok(error) => *error,
                Err(error) => Error::Capture(capture::Error::During(error)),
            },
            capture::Error::Cancelled(cancelled) => Error::Cancelled(cancelled),
            error => Error::Capture(error),
        }
    }
}
