//! Why a container's files could not be captured: which step, on what, why.

use std::path::PathBuf;

use crate::capture::volumes::Volume;
use crate::changeset::{self, escape, tar};
use crate::oci::{DiffId, ImageName};
use crate::progress::Cancelled;
use crate::sys::{cgroup, process};
use crate::{engine, guard, image, squash, store};

/// Why there is no capture. Nothing of it is visible, and the container runs.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// It was stopped when the commit began, and runs.
    #[error("the container {0} was started while its files were read; nothing of it was kept: write the command again")]
    Started(String),
    /// It stands on an image that it reads through our own mount.
    #[error(
        "the container {0} was restored with lazy, and its files lie on snapfs's own mount, which snapfs does not read; \
         restore the image without lazy"
    )]
    OnOurMount(String),
    /// It was there when the commit began.
    #[error("the container {0} was removed while its files were read; nothing of it was kept")]
    Removed(String),
    /// What its user has mounted in it is not known.
    #[error(
        "what is mounted in the container {0} is known when it has been started; start it, or commit with volumes=skip"
    )]
    NoVolumes(String),
    /// A volume that cannot be in a snapshot.
    #[error("the volume {} cannot be included: {reason}; commit with volumes=declare or skip", destination.display())]
    Volume {
        /// Where it is in the container.
        destination: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The place of a volume is another than it was.
    #[error(
        "the path of the volume {} leads to another place than when the commit began; nothing was kept: write the command again",
        .0.display()
    )]
    VolumeMoved(PathBuf),
    /// It was about the files of a volume.
    #[error("in the volume {}", destination.display())]
    InVolume {
        /// Where it is in the container.
        destination: PathBuf,
        /// What went wrong.
        source: Box<Error>,
    },
    /// The kernel does not say what is mounted.
    #[error("cannot read {path}, which says what is mounted")]
    Mounts {
        /// The file.
        path: String,
        /// Why not.
        source: std::io::Error,
    },
    /// It was to be stopped, and its user had paused it.
    #[error("the container {0} is paused and cannot be stopped; unpause it, or commit with pause=seal")]
    Paused(String),
    /// It was to be stopped, and would be no more.
    #[error(
        "the container {0} is removed when it stops (podman run --rm), so that nothing would be left of it; commit with pause=seal"
    )]
    RemovedAtEnd(String),
    /// It was stopped for the capture, and does not run again.
    #[error(
        "the container {name} was stopped for the commit and cannot be started again; nothing was kept: start it by hand"
    )]
    NotStarted {
        /// The container.
        name: String,
        /// What its engine said.
        #[source]
        cause: engine::Error,
    },
    /// It ended, or was started anew, when it was to be frozen or while it was.
    #[error(
        "the container {name} ended or was started anew during the commit; nothing of it was kept: write the command again"
    )]
    Ended {
        /// The container.
        name: String,
        /// What was found.
        #[source]
        cause: guard::Error,
    },
    /// It has no process, and its files changed all the same.
    #[error(
        "the files of the container {0}, which does not run, changed while they were read, because it is being started or \
         removed; nothing of it was kept: write the command again"
    )]
    Unsettled(String),
    /// What it was to be done with needs a process.
    #[error("the container {name} is {status}: only one that runs has processes to checkpoint; start it, or commit it")]
    NotRunning {
        /// The container.
        name: String,
        /// What it is.
        status: &'static str,
    },
    /// What was to be done in the freeze failed.
    #[error(transparent)]
    During(Box<dyn std::error::Error + Send + Sync>),
    /// The engine could not say what it should.
    #[error(transparent)]
    Engine(#[from] engine::Error),
    /// The container could not be held still.
    #[error(transparent)]
    Freeze(#[from] guard::Error),
    /// The container's files could not be walked.
    #[error(transparent)]
    Changes(changeset::Error),
    /// A file could not be read into the layer.
    #[error(transparent)]
    Tar(tar::Error),
    /// The image could not be built.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// Layers of the store could not be made one.
    #[error(transparent)]
    Squash(squash::Error),
    /// What the container's processes have open could not be told.
    #[error(
        "cannot tell which files the container's processes have open, so that none can be read before it is frozen; commit with pause=full"
    )]
    InUse(#[source] std::io::Error),
    /// A file could not be put aside while the container was frozen.
    #[error("cannot put /{} of the container aside while that is frozen", escape(path))]
    Aside {
        /// The file, relative to the container's root.
        path: Vec<u8>,
        /// Why not.
        source: std::io::Error,
    },
    /// A file is in the changeset, and nobody has read it.
    #[error(
        "/{} has come into the container from outside while its files were read; stop what writes there, and commit again",
        escape(path)
    )]
    NotAside {
        /// The file, relative to the container's root.
        path: Vec<u8>,
    },
    /// There was more to do than the freeze may last.
    #[error(
        "the container would have been frozen longer than {} s and was let run again: {bytes} bytes had changed or are \
         mapped by its processes, and there were more, of /{}; mount with a longer freeze-limit=, or commit with pause=none",
        limit.as_secs_f32(), escape(path)
    )]
    Late {
        /// The limit.
        limit: std::time::Duration,
        /// What was put aside until then.
        bytes: u64,
        /// Which file it was at.
        path: Vec<u8>,
    },
    /// There is no such image to stand on.
    #[error("there is no image {0} to take the difference to; ls the images, or leave base= out")]
    NoBase(ImageName),
    /// The image named cannot be stood on.
    #[error(
        "the difference to {name} cannot be told: {reason}; {}",
        good.as_ref().map_or_else(|| "leave base= out, or use base=image".to_owned(), |good| format!("base={good} can be had, or leave base= out"))
    )]
    Base {
        /// The image.
        name: ImageName,
        /// Why not.
        reason: &'static str,
        /// One that can.
        good: Option<ImageName>,
    },
    /// The difference to the last snapshot is none that a layer can hold; whoever meets this takes the base image.
    #[error("the difference to the container's last snapshot cannot be told: {0}; use base=image")]
    Apart(&'static str),
    /// The engine's files do not make the layer that the engine says they are.
    #[error(
        "a layer of the base image is damaged: the engine's files make {found}, its records say {expected}; \
         pull the image anew at the engine"
    )]
    BaseDiffers {
        /// From the engine's records.
        expected: DiffId,
        /// From the engine's files.
        found: DiffId,
    },
    /// A layer of the base image could not be read.
    #[error("cannot read a layer of the base image: {0}")]
    BaseRead(#[source] std::io::Error),
    /// The base image's config is no JSON.
    #[error("cannot read the base image's config: {0}")]
    BaseConfig(#[source] serde_json::Error),
    /// It was asked to stop.
    #[error("the commit was cancelled; nothing of it was kept")]
    Cancelled(#[from] Cancelled),
}

// Whichever step notices that it was asked to stop, the commit was cancelled.

impl From<changeset::Error> for Error {
    fn from(error: changeset::Error) -> Error {
        match error {
            changeset::Error::Cancelled(cancelled) => Error::Cancelled(cancelled),
            error => Error::Changes(error),
        }
    }
}

impl From<squash::Error> for Error {
    fn from(error: squash::Error) -> Error {
        match error {
            squash::Error::Cancelled(cancelled) => Error::Cancelled(cancelled),
            error => Error::Squash(error),
        }
    }
}

impl From<tar::Error> for Error {
    fn from(error: tar::Error) -> Error {
        match error {
            tar::Error::Cancelled(cancelled) => Error::Cancelled(cancelled),
            error => Error::Tar(error),
        }
    }
}

impl Error {
    /// The same, about the files of `volume`.
    pub(super) fn of_volume(self, volume: &Volume) -> Error {
        match self {
            Error::Cancelled(cancelled) => Error::Cancelled(cancelled),
            late @ Error::Late { .. } => late,
            other => Error::InVolume { destination: volume.destination.clone(), source: Box::new(other) },
        }
    }

    /// The cgroup and the process that are gone are the container's: say that.
    pub(super) fn about(self, container: &str) -> Error {
        match self {
            Error::Freeze(
                cause @ (guard::Error::Replaced { .. }
                | guard::Error::Cgroup(cgroup::Error::Gone { .. })
                | guard::Error::Process(process::Error::Gone { .. })),
            ) => Error::Ended { name: container.to_owned(), cause },
            other => other,
        }
    }
}
