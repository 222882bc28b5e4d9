//! The facts of a container, in the words of the runtime specification.

use std::fmt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::engine::{Error, files};
use crate::sys::process::Origin;

/// A container as its engine's files describe it at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// The engine's id: a plain file name, unique at the engine.
    pub id: String,
    /// The engine's name for it, as it is; [`name::encode`](crate::engine::name::encode) makes a file name of it.
    pub name: String,
    /// Which engine has it: [`Engine::name`](crate::engine::Engine::name).
    pub engine: &'static str,
    /// What runs it for the engine, `runc` or `crun`; `None` where the files do not say, as for a stopped one of podman.
    pub runtime: Option<String>,
    /// What the engine would say now.
    pub status: Status,
    /// Its cgroup is frozen, by whomever: [`Status::Paused`] follows from it, and so it does when snapfs itself froze it.
    pub frozen: bool,
    /// Its first process, if that is alive.
    pub init: Option<Init>,
    /// The image's name, or its id where it has none; `None` for a bare bundle.
    pub image: Option<String>,
    /// When the container was created.
    pub created: Option<Timestamp>,
    /// The runtime specification's `config.json`; `None` until a container of podman is started for the first time.
    pub spec: Option<PathBuf>,
    /// Its root file system.
    pub root: RootFs,
    /// Its cgroups; none if no process is alive.
    pub cgroup: CgroupPaths,
}

impl Container {
    /// The runtime specification's configuration, byte for byte; `None` until there is one.
    pub fn read_spec(&self) -> Result<Option<Vec<u8>>, Error> {
        match &self.spec {
            Some(path) => files::read(path, files::STATE_LIMIT),
            None => Ok(None),
        }
    }

    /// The status but for the freezer: what to show while it is snapfs that froze the container.
    pub fn status_if_thawed(&self) -> Status {
        if self.status == Status::Paused { Status::Running } else { self.status }
    }
}

/// runtime-spec `runtime.md`, "State", and `paused`, which runtimes add.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// It is being made.
    Creating,
    /// It is made, and the user's program has not been started.
    Created,
    /// The user's program runs.
    Running,
    /// The user's program is frozen.
    Paused,
    /// The user's program has ended.
    Stopped,
}

impl Status {
    /// The specification's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Creating => "creating",
            Status::Created => "created",
            Status::Running => "running",
            Status::Paused => "paused",
            Status::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A process that cannot be mistaken for a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Init {
    /// Its number in the host's pid namespace.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc_pid_stat(5)).
    pub start_time: u64,
}

/// Where a container's files are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RootFs {
    /// An overlay: what the container changed is apart from what it started with.
    Overlay(Overlay),
    /// A directory, of which no earlier state is known.
    Directory(PathBuf),
}

impl RootFs {
    /// The whole tree as one path, if it can be seen now: an overlay that is not mounted has none.
    pub fn merged(&self) -> Option<&Path> {
        match self {
            RootFs::Overlay(overlay) => overlay.merged.as_deref(),
            RootFs::Directory(path) => Some(path),
        }
    }
}

/// The directories of an overlay (kernel: Documentation/filesystems/overlayfs.rst).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Overlay {
    /// The read-only layers, top first.
    pub lower: Vec<PathBuf>,
    /// What the container changed.
    pub upper: PathBuf,
    /// Where it is mounted: a path of the host, or `/proc/PID/root`; `None` if it is not mounted.
    pub merged: Option<PathBuf>,
    /// What the names of the overlay's own attributes begin with: [`TRUSTED`] or [`USER`].
    pub xattr_prefix: &'static str,
    /// The mount's other options as the kernel shows them, such as `redirect_dir=on`; empty if it is not mounted.
    pub options: Vec<String>,
}

/// The overlay's own attributes, unless it was mounted with `userxattr`.
pub const TRUSTED: &str = "trusted.overlay.";
/// The overlay's own attributes if it was mounted with `userxattr`.
pub const USER: &str = "user.overlay.";

/// The cgroups in which a container can be frozen: absolute paths on the host, reached without symbolic links, with the
/// container's first process in or below them and snapfs itself outside.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CgroupPaths {
    /// In the v1 freezer hierarchy.
    pub v1_freezer: Option<PathBuf>,
    /// In the v2 hierarchy; next to v1 (hybrid) it can freeze, too.
    pub v2: Option<PathBuf>,
}

impl CgroupPaths {
    /// Whether a thread is in one of them, or below.
    pub fn hold(&self, origin: &Origin) -> bool {
        let is_in = |path: &Option<PathBuf>, controller, roots: &[&str]| {
            let path = path.as_deref()?;
            let inside = roots.iter().find_map(|root| path.strip_prefix(root).ok())?;
            // The root of a hierarchy is no container's cgroup: everybody is in it.
            (!inside.as_os_str().is_empty()).then(|| origin.is_in(controller, &Path::new("/").join(inside)))
        };
        is_in(&self.v1_freezer, "freezer", &["/sys/fs/cgroup/freezer"]) == Some(true)
            || is_in(&self.v2, "", &["/sys/fs/cgroup/unified", "/sys/fs/cgroup"]) == Some(true)
    }
}
