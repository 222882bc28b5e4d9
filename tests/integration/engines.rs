//! What every engine must do, done to the fake, to recorded state and, in the lab, to the real ones.

mod lab;
mod listing;
mod recorded;
mod store;

use std::fs;

use snapfs::engine::{self, Container, Engine, Engines, Init, RootFs, Status};

use crate::harness::engine::{FakeEngine, check_image};

/// An engine, and a way to do to one container of it what its user would.
trait Subject {
    /// A new adapter for the engine.
    fn engine(&self) -> Box<dyn Engine>;
    /// Makes the container with the label or annotation `org.example.role=test`; returns its name.
    fn create(&mut self) -> String;
    /// Runs its program; returns the pid.
    fn start(&mut self) -> u32;
    fn pause(&mut self);
    fn unpause(&mut self);
    /// Ends its program.
    fn stop(&mut self);
    fn remove(&mut self);
    /// The runtime specification that it was made of.
    fn spec(&self) -> Vec<u8>;
    /// Whether it has an image, and whether it runs on an overlay.
    fn has_image_and_overlay(&self) -> (bool, bool);
    /// Whether labels come from the engine's program, which the test has not.
    fn labels_need_the_program(&self) -> bool {
        false
    }
    /// Whether the engine knows of no cgroups.
    fn is_fake(&self) -> bool {
        false
    }
}

/// The suite: a container's whole life, seen from outside.
fn conforms(subject: &mut dyn Subject) {
    let engines = Engines::new(vec![subject.engine()]);
    assert_eq!(engines.containers_now().visible_names().count(), 0);
    let name = subject.create();
    let created = one(&engines, &name, Status::Created);
    assert_eq!(created.engine, subject.engine().name());
    assert!(created.created.is_some());

    let pid = subject.start();
    let running = one(&engines, &name, Status::Running);
    assert_eq!(running.init.map(|init| init.pid), Some(pid));
    assert!(!running.frozen);
    assert_eq!(fs::read(running.spec.as_ref().unwrap()).unwrap(), subject.spec());
    assert!(running.root.merged().is_some());
    let (has_image, has_overlay) = subject.has_image_and_overlay();
    assert_eq!(matches!(running.root, RootFs::Overlay(_)), has_overlay, "{:?}", running.root);
    let cgroups = [&running.cgroup.v1_freezer, &running.cgroup.v2];
    assert!(subject.is_fake() || cgroups.iter().any(|path| path.is_some()), "{running:?}");
    assert!(cgroups.into_iter().flatten().all(|path| path.is_dir()), "{running:?}");

    subject.pause();
    let paused = one(&engines, &name, Status::Paused);
    assert!(paused.frozen);
    assert_eq!(paused.status_if_thawed(), Status::Running);
    assert_eq!((paused.init, &paused.cgroup), (running.init, &running.cgroup));
    subject.unpause();
    assert_eq!(one(&engines, &name, Status::Running).init, running.init);

    subject.stop();
    let stopped = one(&engines, &name, Status::Stopped);
    assert_eq!((stopped.init, stopped.frozen, &stopped.cgroup), (None, false, &Default::default()));
    for other in [&created, &running, &paused, &stopped] {
        assert_eq!((&other.id, &other.name, &other.image), (&stopped.id, &name, &stopped.image));
        assert_eq!(layers(other), layers(&stopped));
        assert_eq!(other.created, stopped.created);
    }

    let engine = engines.engine_of(&stopped).unwrap();
    let image = engine.base_image(&stopped).unwrap();
    assert_eq!(image.is_some(), has_image);
    assert_eq!(stopped.image.is_some(), has_image);
    image.iter().for_each(|image| _ = check_image(image));
    match engine.labels(&stopped) {
        Err(error) => assert!(subject.labels_need_the_program(), "{error}"),
        Ok(labels) => assert_eq!(labels.get("org.example.role").map(String::as_str), Some("test")),
    }
    assert_eq!(engines.health(), [format!("engine {} ok", engine.name())]);

    subject.remove();
    let listing = engines.containers_now();
    assert!(matches!(listing.find(&name), Err(engine::Error::NoContainer { .. })));
    assert_eq!(listing.visible_names().count(), 0);
}

/// The only container, found by its name, its id and the beginning of that.
fn one(engines: &Engines, name: &str, status: Status) -> Container {
    let listing = engines.containers_now();
    assert_eq!(listing.visible_names().collect::<Vec<_>>(), [name], "{:?}", listing.health());
    let container = listing.find(name).unwrap();
    for other in [container.id.clone(), container.id[..1].to_owned(), format!("{name}@{}", container.engine)] {
        assert_eq!(listing.find(&other).unwrap().id, container.id);
    }
    assert_eq!(container.status, status, "{container:?}");
    Container::clone(container)
}

/// What does not change while a container is started and stopped.
fn layers(container: &Container) -> String {
    match &container.root {
        RootFs::Overlay(overlay) => format!("{:?} {:?} {}", overlay.lower, overlay.upper, overlay.xattr_prefix),
        RootFs::Directory(path) => format!("{path:?}"),
    }
}

struct FakeSubject(FakeEngine);

const FAKE: &str = "box";

impl Subject for FakeSubject {
    fn engine(&self) -> Box<dyn Engine> {
        Box::new(self.0.clone())
    }

    fn create(&mut self) -> String {
        self.0.create(FAKE);
        self.0.set_base_image(FAKE, "example:1", vec![b"the lower tar".to_vec(), b"the upper tar".to_vec()]);
        FAKE.to_owned()
    }

    fn start(&mut self) -> u32 {
        self.0.start(FAKE, Init { pid: 42, start_time: 1 });
        42
    }

    fn pause(&mut self) {
        self.0.freeze(FAKE, true);
    }

    fn unpause(&mut self) {
        self.0.freeze(FAKE, false);
    }

    fn stop(&mut self) {
        self.0.stop(FAKE);
    }

    fn remove(&mut self) {
        self.0.remove(FAKE);
    }

    fn spec(&self) -> Vec<u8> {
        fs::read(self.0.directory_of(FAKE).join("config.json")).unwrap()
    }

    fn has_image_and_overlay(&self) -> (bool, bool) {
        (true, true)
    }

    fn is_fake(&self) -> bool {
        true
    }
}

#[test]
fn the_fake_conforms() {
    conforms(&mut FakeSubject(FakeEngine::new("fake")));
}
