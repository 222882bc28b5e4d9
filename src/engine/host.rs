//! What the kernel says of containers: processes, mounts and cgroups, read as files.

use std::fs::{self, File};
use std::io;
use std::path::{Component, Path, PathBuf};

use crate::engine::container::{TRUSTED, USER};
use crate::engine::files::read_bounded;
use crate::engine::mountinfo::{self, Hierarchy, Mount, OverlayOptions};
use crate::engine::{CgroupPaths, Error, Init, Overlay, RootFs};
use crate::sys::inside::Inside;

/// The most that is read of a file of `/proc`, in bytes: mountinfo has 300 bytes a mount.
const PROC_LIMIT: u64 = 32 << 20;

/// Where the kernel shows itself: `/proc` and `/sys/fs/cgroup`, or a test's copy of them.
#[derive(Debug, Clone)]
pub struct Host {
    proc: PathBuf,
    cgroup: PathBuf,
}

impl Default for Host {
    fn default() -> Host {
        Host::at("/proc", "/sys/fs/cgroup")
    }
}

/// Which cgroups a state file names for its container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum NamedCgroups {
    /// Absolute paths below `/sys/fs/cgroup`, in the v1 freezer hierarchy and in the v2 hierarchy.
    Absolute { freezer: Option<PathBuf>, unified: Option<PathBuf> },
    /// One path, relative to each hierarchy.
    Relative(PathBuf),
    /// None: one is taken from the process if it carries the container's id.
    Unnamed,
}

impl Host {
    /// A host whose `/proc` and `/sys/fs/cgroup` are at other places.
    pub fn at(proc: impl Into<PathBuf>, cgroup: impl Into<PathBuf>) -> Host {
        Host { proc: proc.into(), cgroup: cgroup.into() }
    }

    /// Look at the mounts, once for a whole listing.
    pub(crate) fn look(&self) -> Result<View<'_>, Error> {
        let path = self.proc.join("self/mountinfo");
        let mounts = mountinfo::parse(&self.read(&path).map_err(|source| Error::Proc { path, source })?);
        let (freezer, unified) = (Hierarchy::freezer(&mounts), Hierarchy::unified(&mounts));
        let own_cgroups = mountinfo::parse_cgroups(&self.read(&self.proc.join("self/cgroup")).unwrap_or_default());
        Ok(View { host: self, mounts, freezer, unified, own_cgroups })
    }

    fn of_process(&self, pid: u32, file: &str) -> PathBuf {
        self.proc.join(pid.to_string()).join(file)
    }

    fn read(&self, path: &Path) -> io::Result<Vec<u8>> {
        read_bounded(File::open(path)?, PROC_LIMIT)?.ok_or_else(|| io::Error::from(io::ErrorKind::FileTooLarge))
    }

    /// When the process started, unless it has ended: a zombie is no longer a container's init.
    pub(super) fn start_time(&self, pid: u32) -> Option<u64> {
        let stat = self.read(&self.of_process(pid, "stat")).ok()?;
        let (state, start_time) = parse_stat(&stat)?;
        (!matches!(state, b'Z' | b'X' | b'x')).then_some(start_time)
    }
}

/// State (field 3) and start time (field 22) of the text of `/proc/PID/stat`. The second field is a name in parentheses
/// that can hold anything, parentheses and spaces too.
fn parse_stat(text: &[u8]) -> Option<(u8, u64)> {
    let after_name = text.iter().rposition(|&byte| byte == b')')? + 1;
    let mut fields = std::str::from_utf8(&text[after_name..]).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    Some((state, fields.nth(18)?.parse().ok()?))
}

/// The host at one moment.
#[derive(Debug)]
pub(crate) struct View<'a> {
    host: &'a Host,
    mounts: Vec<Mount>,
    freezer: Option<Hierarchy>,
    unified: Option<Hierarchy>,
    own_cgroups: (Option<PathBuf>, Option<PathBuf>),
}

impl View<'_> {
    /// Whether this very process is alive.
    pub(crate) fn is_alive(&self, init: Init) -> bool {
        self.host.start_time(init.pid) == Some(init.start_time)
    }

    /// The process with the number `pid`, if its root is the overlay with the upper layer `upper`. For engines that note a
    /// pid without a start time: a later process with that number has another root.
    pub(crate) fn init_with_upper(&self, pid: u32, upper: &Path) -> Option<Init> {
        let start_time = self.host.start_time(pid)?;
        let options = self.root_mount(pid)?.overlay()?;
        (options.upper == upper).then_some(Init { pid, start_time })
    }

    /// What is mounted at `mount_point`.
    pub(crate) fn mounted_at(&self, mount_point: &Path) -> Option<&Mount> {
        mountinfo::find(&self.mounts, mount_point)
    }

    /// The process's root directory, as it can be reached from outside.
    pub(crate) fn root_of(&self, init: Init) -> PathBuf {
        self.host.of_process(init.pid, "root")
    }

    /// The root file system of a container whose runtime started it on the directory `rootfs`.
    ///
    /// What the host has mounted there is believed first. What the container's own mountinfo says is believed only of a
    /// process in our user namespace: in one of its own it can mount an overlay over any paths it likes to name. Paths are
    /// compared as text and none is touched: one could lie on our own mount.
    pub(crate) fn root_fs(&self, rootfs: &Path, init: Option<Init>) -> RootFs {
        let own = init.and_then(|init| Some((init, self.root_mount(init.pid)?)));
        if let Some(mount) = self.mounted_at(rootfs)
            && own.as_ref().is_none_or(|(_, own)| own.device == mount.device)
            && let Some(options) = mount.overlay()
        {
            return overlay(options, rootfs.to_owned());
        }
        let Some((init, own)) = own else { return RootFs::Directory(rootfs.to_owned()) };
        if self.in_our_user_namespace(init)
            && let Some(options) = own.overlay()
        {
            return overlay(options, self.root_of(init));
        }
        if mountinfo::locate(&self.mounts, rootfs) == Some((own.device, own.root)) {
            return RootFs::Directory(rootfs.to_owned());
        }
        RootFs::Directory(self.root_of(init))
    }

    fn root_mount(&self, pid: u32) -> Option<Mount> {
        let mounts = mountinfo::parse(&self.host.read(&self.host.of_process(pid, "mountinfo")).ok()?);
        mountinfo::find(&mounts, Path::new("/")).cloned()
    }

    fn in_our_user_namespace(&self, init: Init) -> bool {
        let of = |path: PathBuf| fs::read_link(path).ok();
        let ours = of(self.host.proc.join("self/ns/user"));
        ours.is_some() && of(self.host.of_process(init.pid, "ns/user")) == ours
    }

    /// The cgroups in which the container `id` can be frozen, each checked: it lies in its hierarchy, is no symbolic link,
    /// holds the container's first process and does not hold us.
    pub(crate) fn cgroups(&self, id: &str, named: &NamedCgroups, init: Init) -> Result<CgroupPaths, Error> {
        let refuse = |reason: String| Error::Cgroup { id: id.to_owned(), reason };
        let path = self.host.of_process(init.pid, "cgroup");
        let text = self.host.read(&path).map_err(|source| Error::Proc { path, source })?;
        let (in_freezer, in_unified) = mountinfo::parse_cgroups(&text);
        let (freezer, unified) = match named {
            NamedCgroups::Absolute { freezer, unified } => (freezer.clone(), unified.clone()),
            NamedCgroups::Relative(path) => {
                let relative = path.strip_prefix("/").unwrap_or(path);
                let below = |hierarchy: &Option<Hierarchy>| Some(hierarchy.as_ref()?.mount_point().join(relative));
                (below(&self.freezer), below(&self.unified))
            }
            NamedCgroups::Unnamed => {
                let own = |hierarchy: &Option<Hierarchy>, cgroup: &Option<PathBuf>| {
                    let cgroup = cgroup.as_ref().filter(|cgroup| carries_id(cgroup, id))?;
                    hierarchy.as_ref()?.directory(cgroup)
                };
                (own(&self.freezer, &in_freezer), own(&self.unified, &in_unified))
            }
        };
        let is_named = freezer.is_some() || unified.is_some();
        let check = |candidate: Option<PathBuf>, hierarchy: &Option<Hierarchy>, process: &Option<PathBuf>, us| {
            let Some(candidate) = candidate else { return Ok(None) };
            self.check_cgroup(candidate, hierarchy.as_ref(), process.as_deref(), us).map_err(refuse)
        };
        let paths = CgroupPaths {
            v1_freezer: check(freezer, &self.freezer, &in_freezer, self.own_cgroups.0.as_deref())?,
            v2: check(unified, &self.unified, &in_unified, self.own_cgroups.1.as_deref())?,
        };
        if is_named && paths == CgroupPaths::default() {
            return Err(refuse("its first process is in none of the cgroups that its state names".to_owned()));
        }
        Ok(paths)
    }

    /// `Ok(None)` for a cgroup that is not there or that the process is not in, an error for one that no engine names.
    fn check_cgroup(
        &self,
        candidate: PathBuf,
        hierarchy: Option<&Hierarchy>,
        process: Option<&Path>,
        us: Option<&Path>,
    ) -> Result<Option<PathBuf>, String> {
        let normal = |component: Component<'_>| matches!(component, Component::Normal(_) | Component::RootDir);
        let relative = candidate.strip_prefix(&self.host.cgroup).ok().filter(|_| candidate.components().all(normal));
        let Some(relative) = relative else {
            return Err(format!("its state names a cgroup that is not below {:?}: {candidate:?}", self.host.cgroup));
        };
        let Some(hierarchy) = hierarchy else { return Ok(None) };
        if candidate == hierarchy.mount_point() || !candidate.starts_with(hierarchy.mount_point()) {
            return Err(format!("its state names no cgroup of its own: {candidate:?}"));
        }
        let holds = |cgroup: Option<&Path>| {
            cgroup.and_then(|cgroup| hierarchy.directory(cgroup)).is_some_and(|path| path.starts_with(&candidate))
        };
        if holds(us) {
            return Err(format!("snapfs itself runs in its cgroup {candidate:?}"));
        }
        if !holds(process) {
            return Ok(None);
        }
        match Inside::open(&self.host.cgroup).and_then(|root| root.check_directory(relative)) {
            Ok(()) => Ok(Some(candidate)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("its cgroup {candidate:?} cannot be reached: {error}")),
        }
    }

    /// Whether one of the cgroups is frozen or being frozen (kernel: cgroup-v1/freezer-subsystem.rst, cgroup-v2.rst).
    pub(crate) fn is_frozen(&self, cgroups: &CgroupPaths) -> bool {
        let word = |directory: &Option<PathBuf>, file: &str| {
            let bytes = self.host.read(&directory.as_ref()?.join(file)).ok()?;
            Some(bytes.trim_ascii().to_vec())
        };
        let v1 = word(&cgroups.v1_freezer, "freezer.state");
        let v2 = word(&cgroups.v2, "cgroup.freeze");
        matches!(v1.as_deref(), Some(b"FROZEN" | b"FREEZING")) || v2.as_deref() == Some(b"1")
    }
}

/// Whether one component of the path is the id, or ends with it as engines and systemd write it.
fn carries_id(cgroup: &Path, id: &str) -> bool {
    cgroup.components().filter_map(|component| component.as_os_str().to_str()).any(|name| {
        let name = name.strip_suffix(".scope").unwrap_or(name);
        name == id || name.strip_suffix(id).is_some_and(|before| before.ends_with('-'))
    })
}

fn overlay(options: OverlayOptions, merged: PathBuf) -> RootFs {
    RootFs::Overlay(Overlay {
        lower: options.lower,
        upper: options.upper,
        merged: Some(merged),
        xattr_prefix: if options.user_xattrs { USER } else { TRUSTED },
        options: options.rest,
    })
}

#[cfg(test)]
mod tests;
