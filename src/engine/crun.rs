//! crun without a daemon: `/run/crun/ID/status`, and the `config.json` that crun keeps beside it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::engine::files;
use crate::engine::host::{Host, NamedCgroups};
use crate::engine::runtime::{self, Record, StateDirectory};
use crate::engine::{BaseImage, Container, Engine, Error, Inventory, Maker, Runtime, annotations, stop};

/// Containers that were started with `crun run` or `crun create`.
#[derive(Debug)]
pub struct Crun {
    states: StateDirectory,
    host: Host,
}

impl Crun {
    /// The state directories below `root`, which is `/run/crun` unless `crun --root` was given.
    pub fn new(root: impl Into<PathBuf>, host: Host) -> Crun {
        Crun { states: states(root.into()), host }
    }
}

impl Engine for Crun {
    fn name(&self) -> &'static str {
        self.states.runtime
    }

    fn list(&self) -> Result<Inventory, Error> {
        self.states.list(&self.host.look()?)
    }

    fn base_image(&self, _: &Container) -> Result<Option<BaseImage>, Error> {
        Ok(None)
    }

    fn stop(&self, container: &Container, wanted: &dyn Fn() -> bool) -> Result<(), Error> {
        stop::with_runtime(&self.states, &self.host, container, wanted)
    }

    fn runtime(&self, _: &Container) -> Option<Runtime> {
        Some(Runtime { name: self.states.runtime.to_owned(), root: self.states.root.clone() })
    }

    fn maker(&self) -> Option<Maker> {
        Some(Maker::Runtime(Runtime { name: self.states.runtime.to_owned(), root: self.states.root.clone() }))
    }

    fn labels(&self, container: &Container) -> Result<BTreeMap<String, String>, Error> {
        annotations(container)
    }
}

/// crun's state directories below `root`.
pub(crate) fn states(root: PathBuf) -> StateDirectory {
    StateDirectory { runtime: "crun", root, file: "status", parse }
}

/// The part of crun's status that is used.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Status {
    pid: i64,
    process_start_time: u64,
    #[serde(default)]
    cgroup_path: PathBuf,
    rootfs: PathBuf,
    bundle: PathBuf,
    #[serde(default)]
    created: String,
}

fn parse(directory: &Path, bytes: &[u8]) -> Result<Record, Error> {
    let status: Status = files::parse_json(&directory.join("status"), bytes)?;
    Ok(Record {
        init: runtime::init(status.pid, status.process_start_time),
        created: status.created.parse().ok(),
        // As config.json has it: relative to the bundle, or absolute.
        rootfs: status.bundle.join(status.rootfs),
        // A copy of the bundle's file: what the container was made of, whatever became of the bundle since.
        spec: Some(directory.join("config.json")),
        cgroups: if status.cgroup_path.as_os_str().is_empty() {
            NamedCgroups::Unnamed
        } else {
            NamedCgroups::Relative(status.cgroup_path)
        },
    })
}
