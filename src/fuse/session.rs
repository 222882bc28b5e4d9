//! A mount, from the directory named to the last request.

use std::io;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::fuse::{Fuse, MAX_REQUEST};
use crate::sys::mount::{self, Flags, Mount, Place};
use crate::tree::Tree;

/// What mountinfo says of us: `fuse.snapfs`.
const SUBTYPE: &str = "snapfs";
const FS_TYPE: &str = "fuse.snapfs";

/// How long a file system may take to answer before it counts as stuck.
const PATIENCE: Duration = Duration::from_secs(2);

/// Read-ahead of the mount in KiB: one [`MAX_REQUEST`].
const READ_AHEAD: u32 = MAX_REQUEST / 1024;

/// Dead mounts that lie on one directory, at most: each failed start can leave one.
const STACKED: usize = 64;

/// A mount could not be made or served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory cannot be reached.
    #[error("cannot mount on {}: {source}; the mount point must be an existing directory", dir.display())]
    Directory {
        /// As given.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something on the way to the directory, or on it, does not answer.
    #[error(
        "cannot mount on {}: the file system there has not answered for two seconds; free it with `umount -f`",
        dir.display()
    )]
    Stuck {
        /// As given, or resolved where that was possible.
        dir: PathBuf,
    },
    /// A snapfs serves there.
    #[error("{} is already mounted: another snapfs serves it; `umount` it first", dir.display())]
    AlreadyMounted {
        /// Resolved.
        dir: PathBuf,
    },
    /// A dead mount could not be taken away.
    #[error("cannot detach the dead mount on {}: {source}", dir.display())]
    Detach {
        /// Resolved.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// mount(2) refused.
    #[error("cannot mount on {}: {source}; this needs root and the fuse module (`modprobe fuse`)", dir.display())]
    Mount {
        /// Resolved.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The kernel and the daemon did not agree, or the threads could not be started.
    #[error("cannot serve {}: {source}", dir.display())]
    Serve {
        /// Resolved.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// mount(2) refused to change the flags.
    #[error("cannot remount {}: {source}; is a snapfs mounted there?", dir.display())]
    Remount {
        /// As given.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A directory that a mount may be made on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(PathBuf);

impl Target {
    /// Resolve `dir`; detach what a dead snapfs left on it, refuse it where a live one serves. Other mounts may be
    /// mounted over. Never hangs on a stuck file system.
    pub fn prepare(dir: &Path) -> Result<Target, Error> {
        for _ in 0..STACKED {
            let place = locate(dir)?;
            let Some(mount) = place.mounted.filter(|mount| mount.fs_type == FS_TYPE) else {
                return Ok(Target(place.path));
            };
            let point = mount.point.clone();
            match mount::within(PATIENCE, move || mount::probe(&point)) {
                Ok(Some(Err(error))) if mount::is_dead(&error) => {}
                Ok(Some(_)) => return Err(Error::AlreadyMounted { dir: place.path }),
                Ok(None) => return Err(Error::Stuck { dir: place.path }),
                Err(source) => return Err(Error::Directory { dir: place.path, source }),
            }
            log::warn!("detaching the dead mount on {}: its daemon is gone", place.path.display());
            mount::detach(&place.path).map_err(|source| Error::Detach { dir: place.path, source })?;
        }
        Err(Error::AlreadyMounted { dir: dir.to_owned() })
    }

    /// The resolved path.
    pub fn path(&self) -> &Path {
        &self.0
    }
}

fn locate(dir: &Path) -> Result<Place, Error> {
    let owned = dir.to_owned();
    match mount::within(PATIENCE, move || mount::locate(&owned)) {
        Ok(Some(Ok(place))) => Ok(place),
        Ok(None) => Err(Error::Stuck { dir: dir.to_owned() }),
        Ok(Some(Err(source))) | Err(source) => Err(Error::Directory { dir: dir.to_owned(), source }),
    }
}

/// How to mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Options {
    /// What mountinfo and `df` show as the source; says nothing to us.
    pub source: String,
    /// `ro` and `noexec`
    pub flags: Flags,
}

/// A mount that is visible and whose first request was answered; [`run`](Session::run) serves the others.
#[derive(Debug)]
pub struct Session {
    inner: fuser::Session<Fuse>,
    unmounter: Unmounter,
}

impl Session {
    /// Mount `tree`. Needs root.
    pub fn mount(tree: Arc<Tree>, target: &Target, options: &Options) -> Result<Session, Error> {
        let dir = target.path();
        let serve = |source| Error::Serve { dir: dir.to_owned(), source };
        let fuse = Fuse::new(tree).map_err(serve)?;
        let device = mount::mount_fuse(&options.source, SUBTYPE, dir, options.flags, MAX_REQUEST)
            .map_err(|source| Error::Mount { dir: dir.to_owned(), source })?;
        let mounted = topmost(dir).map_err(serve).and_then(|mount| {
            // from_fd, so that fuser never unmounts: what it unmounts at the end need not be ours any more.
            let inner = fuser::Session::from_fd(fuse, device, fuser::SessionACL::All, config()).map_err(serve)?;
            Ok(Session { inner, unmounter: Unmounter { mount } })
        });
        match &mounted {
            Ok(session) => {
                let device = &session.unmounter.mount.device;
                if let Err(error) = mount::raise_read_ahead(device, READ_AHEAD) {
                    log::debug!("read-ahead stays as it is: {error}");
                }
            }
            Err(_) => {
                let _ = mount::detach(dir); // the first error is the one to report
            }
        }
        mounted
    }

    /// What takes the mount away, from any thread.
    pub fn unmounter(&self) -> Unmounter {
        self.unmounter.clone()
    }

    /// Serve until the file system is unmounted and its last file closed.
    pub fn run(self) -> Result<(), Error> {
        let Session { inner, unmounter } = self;
        inner.run().map_err(|source| Error::Serve { dir: unmounter.mount.point, source })
    }
}

fn config() -> fuser::Config {
    let mut config = fuser::Config::default();
    config.acl = fuser::SessionACL::All;
    let cores = thread::available_parallelism().map_or(2, NonZero::get);
    // No thread ever blocks on anything but a disk, so a few more than cores do.
    config.n_threads = Some((cores + 2).clamp(4, 10));
    config
}

/// The mount just made.
fn topmost(dir: &Path) -> io::Result<Mount> {
    let mount = mount::mounts()?.into_iter().rfind(|mount| mount.point == dir);
    mount.filter(|mount| mount.fs_type == FS_TYPE).ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))
}

/// Takes one certain mount away, and no other that came to lie in its place.
#[derive(Debug, Clone)]
pub struct Unmounter {
    mount: Mount,
}

impl Unmounter {
    /// Detach the mount if it is still there. Files that are open keep working until closed, or until the daemon ends.
    pub fn unmount(&self) -> io::Result<()> {
        let mounts = mount::mounts()?;
        let same = |mount: &&Mount| mount.id == self.mount.id && mount.device == self.mount.device;
        let Some(ours) = mounts.iter().find(same) else { return Ok(()) };
        let top = mounts.iter().rfind(|mount| mount.point == ours.point);
        if top != Some(ours) {
            // umount2(2) can only take the topmost away, which is somebody else's.
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, "another mount lies on top"));
        }
        mount::detach(&ours.point)
    }
}

/// Change the flags of the mount on `dir`: all that `mount -o remount` can do.
pub fn remount(dir: &Path, flags: Flags) -> Result<(), Error> {
    let fail = |source| Error::Remount { dir: dir.to_owned(), source };
    let place = locate(dir)?;
    if place.mounted.is_none_or(|mount| mount.fs_type != FS_TYPE) {
        return Err(fail(io::Error::from(io::ErrorKind::NotFound)));
    }
    mount::remount(&place.path, flags).map_err(fail)
}
