//! Where containers come from: one adapter for each engine, each reading the files that the engine keeps.
//!
//! What must hold: [`Engine::list`] reads local files and nothing else, so that a listing is never slower than the disk,
//! whatever state an engine is in; a file that cannot be used costs its own container, with a reason in
//! [`Engines::health`], and no other; nothing outside an engine's directories is read because a file says so, but the
//! directories of a container's root file system, and those are not touched here.
//!
//! Begin with [`Engines`]; `docs/engines.md` says which files of which versions each adapter reads.

mod container;
mod crun;
mod error;
mod files;
mod host;
mod image;
mod labels;
mod listing;
pub mod mountinfo;
pub mod name;
pub mod podman;
mod runc;
mod runtime;
mod stop;
mod storage;
mod tar_split;

use std::collections::BTreeMap;
use std::fmt::Debug;

use serde::Deserialize;

pub use container::{CgroupPaths, Container, Init, Overlay, RootFs, Status, TRUSTED, USER};
pub use crun::Crun;
pub use error::Error;
pub use host::Host;
pub use image::{BaseImage, BaseLayer};
pub use listing::{Engines, Listing};
pub use podman::Podman;
pub use runc::Runc;

/// A program that makes containers and keeps files about them.
pub trait Engine: Send + Sync + Debug {
    /// The engine's name, as in `NAME@ENGINE`.
    fn name(&self) -> &'static str;

    /// Its containers, read from local files: no program is run and nothing is waited for.
    ///
    /// An error means that nothing is known of any of them; an engine that is not installed is no error.
    fn list(&self) -> Result<Inventory, Error>;

    /// The image that the container was started from; `None` if there is none, or the engine keeps none.
    fn base_image(&self, container: &Container) -> Result<Option<BaseImage>, Error>;

    /// Whether all of the container's files are there: an engine may remove them before its record of the container.
    fn is_whole(&self, _container: &Container) -> Result<bool, Error> {
        Ok(true)
    }

    /// Stops a container that runs, as the engine's own `stop` does, and waits for that as long as `wanted` says so.
    ///
    /// # Errors
    /// [`Error::Program`] with the words of the engine's program, [`Error::StillRuns`].
    fn stop(&self, container: &Container, wanted: &dyn Fn() -> bool) -> Result<(), Error>;

    /// Starts a container that was stopped; `false` if the engine cannot start one again.
    ///
    /// # Errors
    /// [`Error::Program`] with the words of the engine's program.
    fn start(&self, _container: &Container) -> Result<bool, Error> {
        Ok(false)
    }

    /// What runs the container, and where that keeps its state; none if the files do not say.
    fn runtime(&self, _container: &Container) -> Option<Runtime> {
        None
    }

    /// What makes a container at this engine; none if snapfs cannot have one made there.
    fn maker(&self) -> Option<Maker> {
        None
    }

    /// What only the engine's program can tell of a container, as its `inspect` does; none if there is no such program, or
    /// nothing more to tell. It is run, and waited for.
    fn inspect(&self, _container: &Container) -> Result<Option<serde_json::Value>, Error> {
        Ok(None)
    }

    /// The container's labels. An engine that must be asked for them is asked in the background: [`Error::NotYet`] if it has
    /// not told within half a second.
    fn labels(&self, container: &Container) -> Result<BTreeMap<String, String>, Error>;
}

/// A container's OCI runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Runtime {
    /// The program: `runc` or `crun`.
    pub name: String,
    /// Its `--root`.
    pub root: std::path::PathBuf,
}

/// What makes containers at an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Maker {
    /// An OCI runtime, from a bundle.
    Runtime(Runtime),
    /// podman, from an image: the arguments that tell it which store it is about.
    Podman(Vec<std::ffi::OsString>),
}

/// What an engine's files say.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The engine's files are there at all.
    pub present: bool,
    /// Its containers.
    pub containers: Vec<Container>,
    /// Why others are not among them.
    pub skipped: Vec<Error>,
}

impl Inventory {
    /// The engine is not installed, or was never used since the host was started.
    pub fn absent() -> Inventory {
        Inventory::default()
    }

    /// The engine is there and has no containers yet.
    pub fn present() -> Inventory {
        Inventory { present: true, ..Inventory::default() }
    }

    fn add(&mut self, container: Result<Option<Container>, Error>) {
        match container {
            Ok(container) => self.containers.extend(container),
            Err(error) => self.skipped.push(error),
        }
    }
}

/// The names of the engines that there are adapters for, in the order in which a name belongs to them by default.
pub const NAMES: [&str; 3] = ["podman", "runc", "crun"];

/// Where runc keeps the state of root's containers.
pub const RUNC_ROOT: &str = "/run/runc";
/// Where crun does.
pub const CRUN_ROOT: &str = "/run/crun";

/// The adapter `name` for the system's own engine.
///
/// # Errors
/// [`Error::UnknownEngine`].
pub fn system(name: &str) -> Result<Box<dyn Engine>, Error> {
    match name {
        "podman" => Ok(Box::new(Podman::system())),
        "runc" => Ok(Box::new(Runc::new(RUNC_ROOT, Host::default()))),
        "crun" => Ok(Box::new(Crun::new(CRUN_ROOT, Host::default()))),
        _ => Err(Error::UnknownEngine { name: name.to_owned() }),
    }
}

/// A runtime has no labels; the annotations of the runtime specification are what comes nearest.
fn annotations(container: &Container) -> Result<BTreeMap<String, String>, Error> {
    #[derive(Deserialize, Default)]
    struct Spec {
        #[serde(default)]
        annotations: Option<BTreeMap<String, String>>,
    }
    let Some(path) = &container.spec else { return Ok(BTreeMap::new()) };
    let spec: Option<Spec> = files::read_json(path, files::STATE_LIMIT)?;
    Ok(spec.unwrap_or_default().annotations.unwrap_or_default())
}
