//! What can be asked of a container.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::api::{Coming, Container, Error, ErrorKind, Snapfs};
use crate::capture;
use crate::checkpoint;
use crate::engine::{Engine, Listing, RootFs, Status};

/// A container for as long as it exists: its engine and its id, whatever its name becomes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerKey {
    /// The engine's name.
    pub engine: &'static str,
    /// The id at that engine.
    pub id: Arc<str>,
}

impl fmt::Display for ContainerKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.engine, self.id)
    }
}

/// One fact, one file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fact {
    /// The id at the engine.
    Id,
    /// The name at the engine.
    Name,
    /// The engine.
    Engine,
    /// The OCI runtime, if it is known.
    Runtime,
    /// runtime-spec's word: creating, created, running, stopped; or paused.
    Status,
    /// The pid of its first process on the host; 0 while there is none.
    Pid,
    /// The image it was started from, if the engine knows.
    Image,
    /// When it was created, RFC 3339.
    Created,
}

impl Snapfs {
    /// The names under which containers are listed.
    pub fn container_names(&self) -> Vec<String> {
        self.engines.containers().visible_names().map(str::to_owned).collect()
    }

    /// The container of that name, id, unique beginning of an id, or `NAME@ENGINE`.
    pub fn find_container(&self, name: &str) -> Option<ContainerKey> {
        let recent = self.engines.containers();
        // `podman run … && echo img > …/commit`: what is not in a recent listing may have come since.
        let listing = if recent.find(name).is_ok() { recent } else { self.engines.containers_now() };
        let container = listing.find(name).ok()?;
        Some(ContainerKey { engine: container.engine, id: Arc::from(container.id.as_str()) })
    }

    /// The container, as a recent listing has it.
    pub fn container(&self, key: &ContainerKey) -> Result<Arc<Container>, Error> {
        self.container_in(&self.engines.containers(), key)
    }

    /// The container as it is now, to be acted on.
    pub(super) fn container_now(&self, key: &ContainerKey) -> Result<Arc<Container>, Error> {
        self.container_in(&self.engines.containers_now(), key)
    }

    fn container_in(&self, listing: &Listing, key: &ContainerKey) -> Result<Arc<Container>, Error> {
        listing.by_id(key.engine, &key.id).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("{} has no container {} any more", key.engine, key.id))
        })
    }

    /// One fact, without a newline.
    pub fn fact(&self, key: &ContainerKey, fact: Fact) -> Result<String, Error> {
        let container = self.container(key)?;
        Ok(match fact {
            Fact::Id => container.id.clone(),
            Fact::Name => container.name.clone(),
            Fact::Engine => container.engine.to_owned(),
            Fact::Runtime => container.runtime.clone().unwrap_or_default(),
            Fact::Status => self.status(key, &container).to_string(),
            Fact::Pid => container.init.map_or(0, |init| init.pid).to_string(),
            Fact::Image => container.image.clone().unwrap_or_default(),
            Fact::Created => container.created.map(|created| created.to_string()).unwrap_or_default(),
        })
    }

    /// What we froze for a moment is not what its user paused.
    pub(super) fn status(&self, key: &ContainerKey, container: &Container) -> Status {
        let ours = self.frozen_by_us.lock().contains(key);
        if ours { container.status_if_thawed() } else { container.status }
    }

    /// The runtime specification's configuration, byte for byte.
    pub fn spec(&self, key: &ContainerKey) -> Result<Vec<u8>, Error> {
        let container = self.container(key)?;
        let none = || format!("{} has no spec.json before it is started for the first time", container.name);
        container.read_spec()?.ok_or_else(|| Error::new(ErrorKind::NoAttribute, none()))
    }

    /// The live root file system's path on the host.
    pub fn root_path(&self, key: &ContainerKey) -> Result<PathBuf, Error> {
        Ok(match &self.container(key)?.root {
            RootFs::Overlay(overlay) => overlay.merged.as_ref().unwrap_or(&overlay.upper).clone(),
            RootFs::Directory(path) => path.clone(),
        })
    }

    /// The engine's labels.
    pub fn container_labels(&self, key: &ContainerKey) -> Result<BTreeMap<String, String>, Error> {
        let container = self.container(key)?;
        Ok(self.engine(&container)?.labels(&container)?)
    }

    pub(super) fn engine(&self, container: &Container) -> Result<&dyn Engine, Error> {
        let missing = || Error::new(ErrorKind::NotFound, format!("no adapter for the engine {}", container.engine));
        self.engines.engine_of(container).ok_or_else(missing)
    }

    /// `yes`, or why the container could not be checkpointed, a reason a line. Programs are run for it, beside whoever asks.
    pub fn checkpointable(self: &Arc<Self>, key: ContainerKey) -> Result<Arc<Coming<Vec<u8>>>, Error> {
        self.beside(&self.scans, move |this, _| {
            let container = this.container_now(&key)?;
            let reasons = checkpoint::checkpointable(this.engine(&container)?, &container);
            let text = if reasons.is_empty() { "yes".to_owned() } else { reasons.join("\n") };
            Ok((text + "\n").into_bytes())
        })
    }

    /// What it changed in its image, now: `A|C|D path`, a line each. It is found out beside whoever asks.
    pub fn changes(self: &Arc<Self>, key: ContainerKey) -> Result<Arc<Coming<Vec<u8>>>, Error> {
        self.beside(&self.scans, move |this, progress| Ok(capture::changes(&*this.container(&key)?, progress)?))
    }
}
