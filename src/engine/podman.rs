//! podman, read from its files: containers/storage for what it is, runc's and crun's state for what it does.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::engine::container::{TRUSTED, USER};
use crate::engine::files::{self, STATE_LIMIT};
use crate::engine::host::{Host, NamedCgroups, View};
use crate::engine::labels::{Labels, Told};
use crate::engine::runtime::{Now, Record as State, StateDirectory};
use crate::engine::storage::{Record, Store, parse_storage_conf};
use crate::engine::{
    BaseImage, CRUN_ROOT, CgroupPaths, Container, Engine, Error, Inventory, Maker, Overlay, RUNC_ROOT, RootFs, Runtime,
    Status, crun, runc, stop,
};

/// Where root's podman keeps images and containers unless storage.conf(5) says otherwise.
pub const GRAPH_ROOT: &str = "/var/lib/containers/storage";
/// And what need not survive a reboot.
pub const RUN_ROOT: &str = "/run/containers/storage";

/// The containers of podman's own store, in any state.
#[derive(Debug)]
pub struct Podman {
    store: Store,
    runtimes: [StateDirectory; 2],
    host: Host,
    /// What tells the program `podman` which store it is about.
    arguments: Vec<OsString>,
    labels: Told,
}

impl Podman {
    /// The store that root's podman uses by default: `storage.conf(5)` says where, or it is
    /// `/var/lib/containers/storage`. The file is read once, here.
    pub fn system() -> Podman {
        let files = ["/etc/containers/storage.conf", "/usr/share/containers/storage.conf"];
        let text = files.iter().find_map(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let (graph_root, run_root) = parse_storage_conf(&text);
        let graph_root = graph_root.unwrap_or_else(|| GRAPH_ROOT.into());
        let run_root = run_root.unwrap_or_else(|| RUN_ROOT.into());
        let podman = Podman::new(graph_root, run_root, RUNC_ROOT, CRUN_ROOT, Host::default());
        Podman { labels: Told::new(Vec::new()), arguments: Vec::new(), ..podman }
    }

    /// The store in `graph_root` and `run_root`, whose containers runc and crun run with their state directories below
    /// `runc` and `crun`.
    pub fn new(
        graph_root: impl Into<PathBuf>,
        run_root: impl Into<PathBuf>,
        runc: impl Into<PathBuf>,
        crun: impl Into<PathBuf>,
        host: Host,
    ) -> Podman {
        let store = Store { graph_root: graph_root.into(), run_root: run_root.into() };
        let arguments: Vec<OsString> = vec![
            "--root".into(),
            store.graph_root.clone().into_os_string(),
            "--runroot".into(),
            store.run_root.clone().into_os_string(),
        ];
        let runtimes = [runc::states(runc.into()), crun::states(crun.into())];
        Podman { store, runtimes, host, labels: Told::new(arguments.clone()), arguments }
    }

    fn container(&self, record: Record, view: &View<'_>) -> Result<Container, Error> {
        let layer = self.store.layer(&record.layer);
        let upper = layer.join("diff");
        let state = self.state(&record.id)?;
        let (now, runtime) = match &state {
            Some((directory, state)) => (directory.now(&record.id, state, view)?, Some(directory.runtime.to_owned())),
            None => (self.now_without_state(&record.id, &upper, view)?, None),
        };
        let spec = [self.store.user_data(&record.id), self.store.run_data(&record.id)]
            .map(|directory| directory.join("config.json"))
            .into_iter()
            .find(|path| path.symlink_metadata().is_ok());
        let root = if record.image_id.is_empty() {
            let rootfs = match state {
                Some((_, state)) => Some(state.rootfs),
                None => spec.as_deref().map(rootfs_of).transpose()?,
            };
            let unknown = || {
                let reason =
                    "only podman's database says which directory it will run on, until it is started".to_owned();
                Error::State { path: self.store.user_data(&record.id), reason }
            };
            view.root_fs(&rootfs.ok_or_else(unknown)?, now.init)
        } else {
            self.root(&layer, upper, self.store.lower(&record.layer)?, &now, view)?
        };
        let never_started = now.init.is_none() && spec.is_none();
        let image = Some(record.image_name).filter(|name| !name.is_empty()).or(Some(record.image_id));
        Ok(Container {
            id: record.id,
            name: record.name,
            engine: self.name(),
            runtime,
            status: if never_started { Status::Created } else { now.status },
            frozen: now.frozen,
            init: now.init,
            image: image.filter(|image| !image.is_empty()),
            created: record.created,
            spec,
            root,
            cgroup: now.cgroup,
        })
    }

    fn state(&self, id: &str) -> Result<Option<(&StateDirectory, State)>, Error> {
        for runtime in &self.runtimes {
            if let Some(state) = runtime.record(id)? {
                return Ok(Some((runtime, state)));
            }
        }
        Ok(None)
    }

    /// A container that neither runc nor crun knows: it has ended, or another runtime runs it. That one's pid is in a file,
    /// which outlives the process: it counts if it has the container's root.
    fn now_without_state(&self, id: &str, upper: &Path, view: &View<'_>) -> Result<Now, Error> {
        let mut now = Now { status: Status::Stopped, frozen: false, init: None, cgroup: CgroupPaths::default() };
        let text = files::read(&self.store.run_data(id).join("pidfile"), STATE_LIMIT)?.unwrap_or_default();
        let pid = std::str::from_utf8(text.trim_ascii()).ok().and_then(|text| text.parse().ok());
        if let Some(init) = pid.and_then(|pid| view.init_with_upper(pid, upper)) {
            now.cgroup = view.cgroups(id, &NamedCgroups::Unnamed, init)?;
            now.frozen = view.is_frozen(&now.cgroup);
            now.status = if now.frozen { Status::Paused } else { Status::Running };
            now.init = Some(init);
        }
        Ok(now)
    }

    fn root(
        &self,
        layer: &Path,
        upper: PathBuf,
        lower: Vec<PathBuf>,
        now: &Now,
        view: &View<'_>,
    ) -> Result<RootFs, Error> {
        let merged = layer.join("merged");
        let mount = view.mounted_at(&merged);
        let overlay = mount.map(|mount| mount.overlay().filter(|options| options.upper == upper));
        let (user_xattrs, options) = match overlay {
            // Not an overlay of the kernel's, or mounted with relative paths: as a whole it can be read all the same.
            Some(None) if mount.is_some_and(|mount| mount.file_system != "overlay") => {
                return Ok(RootFs::Directory(merged));
            }
            None if self.store.has_mount_program() => {
                let reason = "its store is mounted by a program such as fuse-overlayfs, and it is not mounted now";
                return Err(Error::State { path: layer.to_owned(), reason: reason.to_owned() });
            }
            Some(Some(overlay)) => (overlay.user_xattrs, overlay.rest),
            Some(None) | None => (false, Vec::new()),
        };
        let merged = match (mount, now.init) {
            (Some(_), _) => Some(merged),
            (None, Some(init)) => Some(view.root_of(init)),
            (None, None) => None,
        };
        let xattr_prefix = if user_xattrs { USER } else { TRUSTED };
        Ok(RootFs::Overlay(Overlay { lower, upper, merged, xattr_prefix, options }))
    }
}

/// `root.path` of a runtime specification, which podman writes as an absolute path.
fn rootfs_of(spec: &Path) -> Result<PathBuf, Error> {
    #[derive(Deserialize)]
    struct Spec {
        root: Root,
    }
    #[derive(Deserialize)]
    struct Root {
        path: PathBuf,
    }
    let spec_text: Option<Spec> = files::read_json(spec, STATE_LIMIT)?;
    let path = spec_text.map(|spec| spec.root.path).unwrap_or_default();
    let is_clean = path.is_absolute() && !path.components().any(|part| part == std::path::Component::ParentDir);
    let bad = || Error::State { path: spec.to_owned(), reason: format!("its root {path:?} is not an absolute path") };
    if is_clean { Ok(path) } else { Err(bad()) }
}

impl Engine for Podman {
    fn name(&self) -> &'static str {
        "podman"
    }

    fn list(&self) -> Result<Inventory, Error> {
        let found = self.store.containers()?;
        let mut inventory = Inventory { present: found.present, skipped: found.skipped, containers: Vec::new() };
        let view = self.host.look()?;
        for record in found.records {
            inventory.add(self.container(record, &view).map(Some));
        }
        Ok(inventory)
    }

    fn base_image(&self, container: &Container) -> Result<Option<BaseImage>, Error> {
        let record = self.store.containers()?.records.into_iter().find(|record| record.id == container.id);
        let record = record.ok_or_else(|| Error::Gone { id: container.id.clone(), engine: self.name() })?;
        if record.image_id.is_empty() {
            return Ok(None);
        }
        let name = Some(record.image_name).filter(|name| !name.is_empty());
        self.store.image(&record.image_id, name).map(Some)
    }

    fn is_whole(&self, container: &Container) -> Result<bool, Error> {
        let record = self.store.containers()?.records.into_iter().find(|record| record.id == container.id);
        match record {
            None => Ok(false),
            // `--rootfs`: the files are not podman's.
            Some(record) if record.image_id.is_empty() => Ok(true),
            Some(record) => self.store.is_whole(&record.layer),
        }
    }

    fn stop(&self, container: &Container, wanted: &dyn Fn() -> bool) -> Result<(), Error> {
        stop::run("podman", &self.arguments, &["stop", &container.id], stop::PODMAN, wanted)
    }

    fn start(&self, container: &Container) -> Result<bool, Error> {
        stop::run("podman", &self.arguments, &["start", &container.id], stop::PODMAN, &|| true).map(|()| true)
    }

    fn runtime(&self, container: &Container) -> Option<Runtime> {
        let name = container.runtime.as_deref()?;
        let runtime = self.runtimes.iter().find(|runtime| runtime.runtime == name)?;
        Some(Runtime { name: name.to_owned(), root: runtime.root.clone() })
    }

    fn maker(&self) -> Option<Maker> {
        Some(Maker::Podman(self.labels.arguments().to_vec()))
    }

    fn inspect(&self, container: &Container) -> Result<Option<serde_json::Value>, Error> {
        self.labels.inspect(&container.id).map(Some)
    }

    fn labels(&self, container: &Container) -> Result<Labels, Error> {
        self.labels.labels(&container.id)
    }
}
