//! runc without a daemon: `/run/runc/ID/state.json`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::engine::files;
use crate::engine::host::{Host, NamedCgroups};
use crate::engine::runtime::{self, Record, StateDirectory};
use crate::engine::{BaseImage, Container, Engine, Error, Inventory, Maker, Runtime, annotations, stop};

/// Containers that were started with `runc run` or `runc create`.
#[derive(Debug)]
pub struct Runc {
    states: StateDirectory,
    host: Host,
}

impl Runc {
    /// The state directories below `root`, which is `/run/runc` unless `runc --root` was given.
    pub fn new(root: impl Into<PathBuf>, host: Host) -> Runc {
        Runc { states: states(root.into()), host }
    }
}

impl Engine for Runc {
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

/// runc's state directories below `root`.
pub(crate) fn states(root: PathBuf) -> StateDirectory {
    StateDirectory { runtime: "runc", root, file: "state.json", parse }
}

/// The part of runc's state.json that is used.
#[derive(Deserialize)]
struct State {
    id: String,
    init_process_pid: i64,
    init_process_start: u64,
    #[serde(default)]
    created: String,
    #[serde(default)]
    cgroup_paths: Option<BTreeMap<String, PathBuf>>,
    config: Config,
}

#[derive(Deserialize)]
struct Config {
    rootfs: PathBuf,
    #[serde(default)]
    labels: Option<Vec<String>>,
}

fn parse(directory: &Path, bytes: &[u8]) -> Result<Record, Error> {
    let path = directory.join("state.json");
    let state: State = files::parse_json(&path, bytes)?;
    if directory.file_name() != Some(state.id.as_ref()) {
        return Err(Error::State { path, reason: format!("it is the state of container {:?}", state.id) });
    }
    let labels = state.config.labels.unwrap_or_default();
    let bundle = labels.iter().find_map(|label| label.strip_prefix("bundle="));
    let mut cgroups = state.cgroup_paths.unwrap_or_default();
    let (freezer, unified) = (cgroups.remove("freezer"), cgroups.remove(""));
    Ok(Record {
        init: runtime::init(state.init_process_pid, state.init_process_start),
        created: state.created.parse().ok(),
        rootfs: state.config.rootfs,
        spec: bundle.map(|bundle| Path::new(bundle).join("config.json")),
        cgroups: match (&freezer, &unified) {
            (None, None) => NamedCgroups::Unnamed,
            _ => NamedCgroups::Absolute { freezer, unified },
        },
    })
}
