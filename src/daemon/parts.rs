//! What the daemon is made of, from its options.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::api::{self, Snapfs, ViewSettings};
use crate::config::Options;
use crate::daemon::Error;
use crate::engine::{CRUN_ROOT, Crun, Engine, Engines, Host, Podman, RUNC_ROOT, Runc, podman};
use crate::guard::{Guard, thaw_leftovers};
use crate::store::Store;
use crate::sys::account::group_id;
use crate::sys::clock::Clock;
use crate::tree::Tree;

/// Where a daemon says what it is about to freeze; on a tmpfs, because a freeze does not survive a reboot either.
const INTENTS: &str = "/run/snapfs/frozen";

/// What serves a mount. The lifecycle knows no more of it than this.
#[derive(Debug)]
pub(super) struct Parts {
    /// The tree.
    pub(super) tree: Arc<Tree>,
    /// What the tree shows.
    pub(super) snapfs: Arc<Snapfs>,
}

/// Make the parts. Called with one thread and without `/dev/fuse` open: the guard is forked first, then all else.
pub(super) fn compose(options: &Options, dir: &Path) -> Result<Parts, Error> {
    // What an earlier daemon left frozen comes before everything that could fail.
    thaw()?;
    let group = match &options.group {
        None => 0,
        Some(name) => group_id(name).map_err(Error::Start)?.ok_or_else(|| Error::NoGroup(name.clone()))?,
    };
    let guard = Arc::new(Guard::start(Path::new(INTENTS))?);
    let store = Store::open_dir(&options.store)?;
    for fault in store.faults() {
        log::warn!("{fault}");
    }
    let clock = match options.source_date_epoch {
        None => Clock::system(),
        Some(seconds) => Clock::fixed(seconds).ok_or(Error::Epoch(seconds.to_string()))?,
    };
    let workers = options.jobs.map_or_else(default_workers, NonZero::get);
    let freeze_limit = options.freeze_limit.map(|seconds| Duration::from_secs(seconds.get()));
    let views = ViewSettings {
        cache: options.cache.unwrap_or(ViewSettings::default().cache),
        symlinks_in_root: options.symlinks_in_root,
    };
    let namespace = options.namespace.clone();
    let (engines, mount_point) = (engines(options), dir.to_owned());
    let parts = api::Parts { store, engines, guard, clock, workers, freeze_limit, views, namespace, mount_point };
    let snapfs = Snapfs::new(parts);
    Ok(Parts { tree: Arc::new(Tree::new(Arc::clone(&snapfs), group)), snapfs })
}

/// A job keeps about one processor busy, and waits for the disk for the rest.
fn default_workers() -> usize {
    std::thread::available_parallelism().map_or(2, NonZero::get).max(2)
}

/// In the order in which a name belongs to them: an engine's own view of its containers comes before its runtime's.
fn engines(options: &Options) -> Engines {
    let podman = match (&options.podman_root, &options.podman_runroot) {
        (None, None) => Podman::system(),
        (root, runroot) => {
            let or = |path: &Option<PathBuf>, default: &str| path.clone().unwrap_or_else(|| default.into());
            let (root, runroot) = (or(root, podman::GRAPH_ROOT), or(runroot, podman::RUN_ROOT));
            Podman::new(root, runroot, RUNC_ROOT, CRUN_ROOT, Host::default())
        }
    };
    let mut engines: Vec<Box<dyn Engine>> = vec![Box::new(podman)];
    let or_default = |roots: &[PathBuf], default: &str| match roots {
        [] => vec![default.into()],
        roots => roots.to_vec(),
    };
    for root in or_default(&options.runc_roots, RUNC_ROOT) {
        engines.push(Box::new(Runc::new(root, Host::default())));
    }
    for root in or_default(&options.crun_roots, CRUN_ROOT) {
        engines.push(Box::new(Crun::new(root, Host::default())));
    }
    Engines::new(engines)
}

/// Thaw what daemons that have ended left frozen, and say so.
pub(super) fn thaw() -> Result<(), Error> {
    for leftover in thaw_leftovers(Path::new(INTENTS))? {
        match leftover.result {
            Ok(()) => log::warn!("thawed {}, which a daemon that has ended left frozen", leftover.path.display()),
            Err(error) => log::error!("{} may still be frozen: {error}", leftover.path.display()),
        }
    }
    Ok(())
}
