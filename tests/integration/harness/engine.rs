//! An engine whose containers are values: tests say what is so, and see what was asked.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use snapfs::engine::{
    self, BaseImage, BaseLayer, CgroupPaths, Container, Engine, Init, Inventory, Overlay, RootFs, Status, TRUSTED,
};
use snapfs::oci::{DiffId, Digest};
use tempfile::TempDir;

/// Clones are one engine: a test keeps one and gives the other away.
#[derive(Debug, Clone)]
pub(crate) struct FakeEngine {
    name: &'static str,
    directory: Arc<TempDir>,
    state: Arc<Mutex<State>>,
    gate: Arc<Mutex<()>>,
}

#[derive(Debug, Default)]
struct State {
    containers: Vec<Fake>,
    failing: bool,
    log: Vec<String>,
    listed: Option<Instant>,
}

#[derive(Debug, Clone)]
struct Fake {
    container: Container,
    labels: BTreeMap<String, String>,
    image: Option<BaseImage>,
    /// What it was before it was stopped, and is again when it is started.
    again: Option<Init>,
}

impl FakeEngine {
    /// An engine without containers.
    pub(crate) fn new(name: &'static str) -> FakeEngine {
        let directory = Arc::new(crate::harness::rootfs::scratch());
        FakeEngine { name, directory, state: Arc::default(), gate: Arc::default() }
    }

    /// A created container with the id `NAME-id`, an `overlay` root of empty directories, and a spec.
    pub(crate) fn create(&self, name: &str) -> Container {
        let directory = self.directory_of(name);
        for part in ["lower", "upper", "merged"] {
            fs::create_dir_all(directory.join(part)).unwrap();
        }
        let spec = directory.join("config.json");
        fs::write(&spec, r#"{"ociVersion":"1.2.0","annotations":{"org.example.role":"test"}}"#).unwrap();
        let container = Container {
            id: format!("{name}-id"),
            name: name.to_owned(),
            engine: self.name,
            runtime: None,
            status: Status::Created,
            frozen: false,
            init: None,
            image: None,
            created: Some("2001-02-03T04:05:06Z".parse().unwrap()),
            spec: Some(spec),
            root: RootFs::Overlay(Overlay {
                lower: vec![directory.join("lower")],
                upper: directory.join("upper"),
                merged: Some(directory.join("merged")),
                xattr_prefix: TRUSTED,
                options: Vec::new(),
            }),
            cgroup: CgroupPaths::default(),
        };
        let labels = [("org.example.role".to_owned(), "test".to_owned())].into();
        let fake = Fake { container: container.clone(), labels, image: None, again: None };
        self.state.lock().unwrap().containers.push(fake);
        container
    }

    /// Where the container's `lower`, `upper` and `merged` are.
    pub(crate) fn directory_of(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Change what is so of the container with this name.
    pub(crate) fn change(&self, name: &str, change: impl FnOnce(&mut Container)) {
        self.with(name, |fake| change(&mut fake.container));
    }

    /// Its program runs, as `init`.
    pub(crate) fn start(&self, name: &str, init: Init) {
        self.change(name, |container| (container.status, container.init) = (Status::Running, Some(init)));
    }

    /// Somebody froze it, or thawed it.
    pub(crate) fn freeze(&self, name: &str, frozen: bool) {
        self.change(name, |container| {
            container.frozen = frozen;
            container.status = if frozen { Status::Paused } else { Status::Running };
        });
    }

    /// Its program ended.
    pub(crate) fn stop(&self, name: &str) {
        self.change(name, |container| (container.status, container.init) = (Status::Stopped, None));
    }

    /// It is no more.
    pub(crate) fn remove(&self, name: &str) {
        self.state.lock().unwrap().containers.retain(|fake| fake.container.name != name);
    }

    /// It was started from an image that has these tars for layers, bottom first.
    pub(crate) fn set_base_image(&self, name: &str, image: &str, tars: Vec<Vec<u8>>) {
        let config = config_of(&tars);
        self.set_base_image_with(name, image, config, tars);
    }

    /// The same, with a configuration of the test's own.
    pub(crate) fn set_base_image_with(&self, name: &str, image: &str, config: Vec<u8>, tars: Vec<Vec<u8>>) {
        let layers = tars.into_iter().map(layer_of).collect();
        let image = BaseImage { name: Some(image.to_owned()), config, layers };
        self.with(name, |fake| {
            fake.container.image.clone_from(&image.name);
            fake.image = Some(image);
        });
    }

    /// The layers keep their digests and get other tars, as files that were damaged. The digest of the last, which no
    /// longer fits.
    pub(crate) fn lie_about_base(&self, name: &str, tars: Vec<Vec<u8>>) -> String {
        self.with(name, |fake| {
            let layers = &mut fake.image.as_mut().unwrap().layers;
            for (layer, tar) in layers.iter_mut().zip(tars) {
                let said = std::mem::replace(layer, layer_of(tar)).diff_id;
                layer.diff_id = said;
            }
            layers.last().unwrap().diff_id.to_string()
        })
    }

    /// Until the result is dropped, whoever asks for a base image waits: a commit stands still before it has begun to
    /// hold the container.
    pub(crate) fn hold_up(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap()
    }

    /// From now on every question is answered with an error, or no longer.
    pub(crate) fn set_failing(&self, failing: bool) {
        self.state.lock().unwrap().failing = failing;
    }

    /// What was asked so far: `list`, `base_image ID`, `labels ID`.
    pub(crate) fn log(&self) -> Vec<String> {
        self.state.lock().unwrap().log.clone()
    }

    /// When it was listed last.
    pub(crate) fn listed(&self) -> Option<Instant> {
        self.state.lock().unwrap().listed
    }

    fn with<T>(&self, name: &str, act: impl FnOnce(&mut Fake) -> T) -> T {
        let mut state = self.state.lock().unwrap();
        act(state.containers.iter_mut().find(|fake| fake.container.name == name).unwrap())
    }

    fn ask(&self, question: String) -> Result<Vec<Fake>, engine::Error> {
        let mut state = self.state.lock().unwrap();
        state.log.push(question);
        if state.failing {
            let source = std::io::Error::other("the fake was told to fail");
            return Err(engine::Error::Read { path: self.directory.path().to_owned(), source });
        }
        Ok(state.containers.clone())
    }

    fn ask_about(&self, question: &str, container: &Container) -> Result<Fake, engine::Error> {
        let found = self.ask(format!("{question} {}", container.id))?;
        let gone = || engine::Error::Gone { id: container.id.clone(), engine: self.name };
        found.into_iter().find(|fake| fake.container.id == container.id).ok_or_else(gone)
    }
}

impl Engine for FakeEngine {
    fn name(&self) -> &'static str {
        self.name
    }

    fn list(&self) -> Result<Inventory, engine::Error> {
        self.state.lock().unwrap().listed = Some(Instant::now());
        let containers = self.ask("list".to_owned())?.into_iter().map(|fake| fake.container).collect();
        Ok(Inventory { containers, ..Inventory::present() })
    }

    fn base_image(&self, container: &Container) -> Result<Option<BaseImage>, engine::Error> {
        let image = self.ask_about("base_image", container)?.image;
        // A test that failed while it held others up has said so already.
        let _waited = self.gate.lock();
        Ok(image)
    }

    fn stop(&self, container: &Container, _wanted: &dyn Fn() -> bool) -> Result<(), engine::Error> {
        self.ask_about("stop", container)?;
        self.with(&container.name, |fake| fake.again = fake.container.init);
        FakeEngine::stop(self, &container.name);
        Ok(())
    }

    fn start(&self, container: &Container) -> Result<bool, engine::Error> {
        let init = self.ask_about("start", container)?.again;
        if let Some(init) = init {
            FakeEngine::start(self, &container.name, init);
        }
        Ok(init.is_some())
    }

    fn labels(&self, container: &Container) -> Result<BTreeMap<String, String>, engine::Error> {
        Ok(self.ask_about("labels", container)?.labels)
    }
}

/// An image configuration whose layers have these tars.
pub(crate) fn config_of(tars: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<DiffId> = tars.iter().map(|tar| DiffId::of(tar)).collect();
    let rootfs = serde_json::json!({ "type": "layers", "diff_ids": diff_ids });
    let config = serde_json::json!({ "architecture": "amd64", "os": "linux", "config": {}, "rootfs": rootfs });
    serde_json::to_vec_pretty(&config).unwrap()
}

fn layer_of(tar: Vec<u8>) -> BaseLayer {
    let diff_id = DiffId::of(&tar);
    BaseLayer::new(diff_id, move || Ok(Box::new(Cursor::new(tar.clone())) as Box<dyn Read + Send>))
}

/// Every layer's tar has its diff id, and the configuration names these layers. The digest of the configuration.
pub(crate) fn check_image(image: &BaseImage) -> Digest {
    let config: serde_json::Value = serde_json::from_slice(&image.config).unwrap();
    let named: Vec<DiffId> = serde_json::from_value(config["rootfs"]["diff_ids"].clone()).unwrap();
    assert_eq!(named, image.layers.iter().map(|layer| layer.diff_id).collect::<Vec<_>>());
    for layer in &image.layers {
        let mut hasher = snapfs::oci::Hasher::new();
        std::io::copy(&mut layer.open().unwrap(), &mut hasher).unwrap();
        assert_eq!(hasher.diff_id(), layer.diff_id);
    }
    Digest::of(&image.config)
}

/// Writes `text` to `path`, and makes the directories on the way.
pub(crate) fn write(path: &Path, text: impl AsRef<[u8]>) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}
