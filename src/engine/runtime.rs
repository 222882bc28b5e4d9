//! What runc and crun have in common: a directory of state directories, one a container.

use std::path::{Component, Path, PathBuf};

use jiff::Timestamp;

use crate::engine::files::{self, STATE_LIMIT};
use crate::engine::host::{NamedCgroups, View};
use crate::engine::name::is_plain_id;
use crate::engine::{CgroupPaths, Container, Error, Init, Inventory, Status};

/// A runtime's state directories, and how to read one's state file.
#[derive(Debug, Clone)]
pub(crate) struct StateDirectory {
    /// `runc` or `crun`.
    pub(crate) runtime: &'static str,
    /// What holds the state directories, such as `/run/runc`.
    pub(crate) root: PathBuf,
    /// The state file's name in a container's state directory.
    pub(crate) file: &'static str,
    /// Reads the bytes of the state file of the container in this state directory.
    pub(crate) parse: fn(&Path, &[u8]) -> Result<Record, Error>,
}

/// What a state file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) init: Option<Init>,
    pub(crate) created: Option<Timestamp>,
    pub(crate) rootfs: PathBuf,
    pub(crate) spec: Option<PathBuf>,
    pub(crate) cgroups: NamedCgroups,
}

/// What is so of a container now, by its state file and the kernel.
#[derive(Debug)]
pub(crate) struct Now {
    pub(crate) status: Status,
    pub(crate) frozen: bool,
    pub(crate) init: Option<Init>,
    pub(crate) cgroup: CgroupPaths,
}

impl StateDirectory {
    /// Every container with a state file.
    pub(crate) fn list(&self, view: &View<'_>) -> Result<Inventory, Error> {
        let Some(names) = files::names(&self.root)? else { return Ok(Inventory::absent()) };
        let mut inventory = Inventory::present();
        for name in names {
            let path = self.root.join(&name);
            // crun keeps a cache beside the containers.
            if name.as_encoded_bytes().starts_with(b".") {
                continue;
            }
            let Some(id) = name.to_str().filter(|id| is_plain_id(id)) else {
                let reason = "its name is not a container id".to_owned();
                inventory.skipped.push(Error::State { path, reason });
                continue;
            };
            inventory.add(self.container(id, view));
        }
        Ok(inventory)
    }

    fn container(&self, id: &str, view: &View<'_>) -> Result<Option<Container>, Error> {
        let Some(record) = self.record(id)? else { return Ok(None) };
        let now = self.now(id, &record, view)?;
        Ok(Some(Container {
            id: id.to_owned(),
            name: id.to_owned(),
            engine: self.runtime,
            runtime: Some(self.runtime.to_owned()),
            status: now.status,
            frozen: now.frozen,
            init: now.init,
            image: None,
            created: record.created,
            root: view.root_fs(&record.rootfs, now.init),
            spec: record.spec,
            cgroup: now.cgroup,
        }))
    }

    /// What the state file of the container `id` says; `None` while it has none: it is being made, or being deleted.
    pub(crate) fn record(&self, id: &str) -> Result<Option<Record>, Error> {
        let directory = self.root.join(id);
        let path = directory.join(self.file);
        let Some(bytes) = files::read(&path, STATE_LIMIT)? else { return Ok(None) };
        let record = (self.parse)(&directory, &bytes)?;
        let is_clean = |path: &Path| path.is_absolute() && !path.components().any(|part| part == Component::ParentDir);
        if !is_clean(&record.rootfs) || !record.spec.as_deref().is_none_or(is_clean) {
            let reason = format!("its paths are not absolute or hold \"..\": {:?} {:?}", record.rootfs, record.spec);
            return Err(Error::State { path, reason });
        }
        Ok(Some(record))
    }

    /// Status, first process and cgroups of the container `id`.
    pub(crate) fn now(&self, id: &str, record: &Record, view: &View<'_>) -> Result<Now, Error> {
        let stopped = Now { status: Status::Stopped, frozen: false, init: None, cgroup: CgroupPaths::default() };
        let Some(init) = record.init.filter(|init| view.is_alive(*init)) else { return Ok(stopped) };
        let cgroup = match view.cgroups(id, &record.cgroups, init) {
            Ok(cgroup) => cgroup,
            // A process that ends in these moments leaves its cgroups before anything else.
            Err(_) if !view.is_alive(init) => return Ok(stopped),
            Err(error) => return Err(error),
        };
        let frozen = view.is_frozen(&cgroup);
        // The user's program is started by opening this FIFO, which is then removed.
        let waits = self.root.join(id).join("exec.fifo").symlink_metadata().is_ok();
        let status = match (waits, frozen) {
            (true, _) => Status::Created,
            (false, true) => Status::Paused,
            (false, false) => Status::Running,
        };
        Ok(Now { status, frozen, init: Some(init), cgroup })
    }
}

/// A process, if the numbers can be one's.
pub(crate) fn init(pid: i64, start_time: u64) -> Option<Init> {
    let pid = u32::try_from(pid).ok().filter(|pid| *pid > 0)?;
    Some(Init { pid, start_time })
}
