//! The freeze, and the process that ends it whatever happens to this one.
//!
//! A cgroup that snapfs froze is thawed within 100 ms after it stops being needed, whatever dies. Three nets hang below
//! each other:
//!
//! 1. [`Frozen`] thaws when it is consumed, and when it is dropped.
//! 2. `snapfs-guard`, a process beside the daemon, is lent the freezer's files *before* each freeze, and thaws when the
//!    daemon ends, hangs longer than the freeze's limit, or lets go of it. [`Guard`] is the daemon's end.
//! 3. A file in the runtime directory says what is about to be frozen. [`thaw_leftovers`] reads what daemon and guard,
//!    killed together, left there: at the start of a daemon, and in `snapfs thaw` when the service has stopped.
//!
//! What must hold: no freeze without an acknowledged guard; a cgroup that its user froze is neither frozen nor thaws by
//! our hand; no more than one freeze of ours at a time in one cgroup.

mod frozen;
mod hold;
mod intent;
mod message;
mod watch;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use crate::guard::frozen::{Frozen, Init};
pub use crate::guard::hold::{Guard, Hold};
pub use crate::guard::intent::{Leftover, thaw_leftovers};
pub use crate::guard::watch::take_over;
use crate::sys::{cgroup, process};

/// Why a container was not frozen, or not thawed by us.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The guard could not be started, so that nothing may be frozen.
    #[error("cannot start snapfs-guard, without which nothing is frozen")]
    Start {
        /// The cause.
        source: process::Error,
    },
    /// The guard runs but does not answer, or not as it should; it was killed.
    #[error("snapfs-guard does not answer, and nothing is frozen without it: try again, and look for {program} on the disk", program = program.display())]
    NoAnswer {
        /// The program that was started as the guard.
        program: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// The guard watches as many freezes as it can.
    #[error("too many containers are frozen at once: try again when one of their snapshots is done")]
    Full,
    /// Another snapshot, perhaps of another daemon, has the container frozen.
    #[error("the cgroup {} is being frozen for another snapshot: try again when that is done", path.display())]
    Busy {
        /// The cgroup's directory.
        path: PathBuf,
    },
    /// The container's first process is not the one that was looked up, or has left the container's cgroup.
    #[error("process {pid} is no longer the container's: it ended or was started anew meanwhile; try again")]
    Replaced {
        /// The process's number.
        pid: u32,
    },
    /// The freeze lasted too long, and the guard ended it.
    #[error("the container was frozen longer than {} s and was let run again: mount with a longer freeze-limit=, or commit with pause=seal or none", limit.as_secs_f32())]
    LimitExceeded {
        /// The limit.
        limit: Duration,
    },
    /// Somebody else let the container run during the snapshot.
    #[error("the cgroup {} was thawed by somebody else during the snapshot: keep others from unpausing the container, or use pause=none", path.display())]
    Thawed {
        /// The cgroup's directory.
        path: PathBuf,
    },
    /// The file that says what is frozen could not be handled.
    #[error("cannot {step} {}, which would undo the freeze if snapfs were killed: the directory must be ours alone, on a tmpfs", path.display())]
    Intent {
        /// What was being done.
        step: &'static str,
        /// The file or its directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A file in the runtime directory is none of ours.
    #[error("{} is not a freeze intent of snapfs: look at it, thaw what it names, and remove it", path.display())]
    NotIntent {
        /// The file.
        path: PathBuf,
    },
    /// The cgroup could not be frozen, thawed or looked at.
    #[error(transparent)]
    Cgroup(#[from] cgroup::Error),
    /// The container's first process could not be looked at.
    #[error(transparent)]
    Process(#[from] process::Error),
}

#[cfg(test)]
mod tests;
