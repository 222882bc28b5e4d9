//! Images by their names, against a map: whatever is done in whatever order, the tree says what the map says.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use snapfs::tree::{Error, ErrorKind};

use crate::harness::rootfs::file;
use crate::harness::world::World;
use crate::tree::names::{rename, rmdir};

const NAMES: [&str; 9] = ["a", "a/x", "b:1", "d", "d/x", "d/y:2", "d/e/z", "d/e", "h.example:5000/t/w"];

#[derive(Debug, Clone)]
enum Step {
    Commit {
        to: usize,
        create: bool,
    },
    Tag {
        from: usize,
        to: usize,
    },
    Move {
        from: usize,
        to: usize,
        no_replace: bool,
    },
    /// `mv images/FROM images/TO/`, where TO may be an image.
    MoveInto {
        from: usize,
        to: usize,
    },
    Remove {
        name: usize,
    },
    Collect,
}

fn step() -> impl Strategy<Value = Step> {
    let name = || 0..NAMES.len();
    prop_oneof![
        3 => (name(), any::<bool>()).prop_map(|(to, create)| Step::Commit { to, create }),
        2 => (name(), name()).prop_map(|(from, to)| Step::Tag { from, to }),
        2 => (name(), name(), any::<bool>()).prop_map(|(from, to, no_replace)| Step::Move { from, to, no_replace }),
        1 => (name(), name()).prop_map(|(from, to)| Step::MoveInto { from, to }),
        2 => name().prop_map(|name| Step::Remove { name }),
        1 => Just(Step::Collect),
    ]
}

/// Name → digest, as text.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Model(BTreeMap<String, String>);

impl Model {
    fn is_directory(&self, name: &str) -> bool {
        name.is_empty() || self.0.keys().any(|other| other.starts_with(&format!("{name}/")))
    }

    fn exists(&self, name: &str) -> bool {
        self.is_directory(name) || self.0.contains_key(name)
    }

    fn is_below_an_image(&self, name: &str) -> bool {
        self.0.keys().any(|other| name.starts_with(&format!("{other}/")))
    }

    fn check_free(&self, name: &str, replace: bool) -> Result<(), ErrorKind> {
        let conflict = self.is_directory(name) || self.is_below_an_image(name);
        let taken = !replace && self.0.contains_key(name);
        if conflict || taken { Err(ErrorKind::Exists) } else { Ok(()) }
    }

    fn rename(&mut self, from: &str, to: &str, no_replace: bool) -> Result<(), ErrorKind> {
        let parent = |name: &str| name.rsplit_once('/').map_or(String::new(), |(parent, _)| parent.to_owned());
        let last = |name: &str| name.rsplit('/').next().unwrap().to_owned();
        if !self.exists(&parent(from)) || !self.exists(&parent(to)) {
            return Err(ErrorKind::NotFound);
        }
        let Some(image) = self.0.get(from).cloned() else {
            return Err(if self.is_directory(from) { ErrorKind::Denied } else { ErrorKind::NotFound });
        };
        let mut to = to.to_owned();
        if self.0.contains_key(&parent(&to)) {
            if last(&to) != last(from) {
                return Err(ErrorKind::Denied);
            }
            to = parent(&to);
        }
        if from == to {
            return Ok(());
        }
        self.check_free(&to, !no_replace)?;
        self.0.remove(from);
        self.0.insert(to, image);
        Ok(())
    }

    /// What must come of the step; a commit is told apart by `made`, the new image's digest.
    fn apply(&mut self, step: &Step, made: &str) -> Result<(), ErrorKind> {
        match step {
            Step::Commit { to, create } => {
                self.check_free(NAMES[*to], !create)?;
                self.0.insert(NAMES[*to].to_owned(), made.to_owned());
            }
            Step::Tag { from, to } => {
                let image = self.0.get(NAMES[*from]).cloned().ok_or(ErrorKind::NotFound)?;
                self.check_free(NAMES[*to], true)?;
                self.0.insert(NAMES[*to].to_owned(), image);
            }
            Step::Move { from, to, no_replace } => self.rename(NAMES[*from], NAMES[*to], *no_replace)?,
            Step::MoveInto { from, to } => self.rename(NAMES[*from], &into(*from, *to), false)?,
            Step::Remove { name } => match self.0.remove(NAMES[*name]) {
                Some(_) => {}
                None if self.is_directory(NAMES[*name]) => return Err(ErrorKind::NotEmpty),
                None => return Err(ErrorKind::NotFound),
            },
            Step::Collect => {}
        }
        Ok(())
    }
}

fn into(from: usize, to: usize) -> String {
    format!("{}/{}", NAMES[to], NAMES[from].rsplit('/').next().unwrap())
}

fn act(world: &World, step: &Step) -> Result<(), Error> {
    match step {
        Step::Commit { to, create } => {
            world.commit("web", &format!("{}{}", NAMES[*to], if *create { " create" } else { "" }))
        }
        Step::Tag { from, to } => world.echo(NAMES[*to], &format!("images/{}/tag", NAMES[*from])),
        Step::Move { from, to, no_replace } => rename(world, NAMES[*from], NAMES[*to], *no_replace),
        Step::MoveInto { from, to } => rename(world, NAMES[*from], &into(*from, *to), false),
        Step::Remove { name } => rmdir(world, &format!("images/{}", NAMES[*name])),
        Step::Collect => world.store.gc().map(drop).map_err(Error::from),
    }
}

/// The tree below `images`, by nothing but look-ups and listings.
fn seen(world: &World) -> Model {
    let mut model = Model::default();
    let mut waiting = vec![String::new()];
    while let Some(directory) = waiting.pop() {
        let entries = world.list(&format!("images/{directory}")).unwrap();
        assert!(!entries.is_empty() || directory.is_empty(), "{directory} is an empty directory of images");
        for name in entries {
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            if world.ino(&format!("images/{path}/oci-layout")).is_ok() {
                let digest = world.line(&format!("images/{path}/digest"));
                model.0.insert(path, digest);
            } else {
                waiting.push(path);
            }
        }
    }
    model
}

#[test]
fn the_tree_says_what_the_model_says() {
    let Some(world) = World::new() else { return };
    world.plain("web");
    let count = std::cell::Cell::new(0);
    let config = Config { cases: 48, failure_persistence: None, ..Config::default() };
    let cases = proptest::collection::vec(step(), 1..25);
    let run = TestRunner::new(config).run(&cases, |steps| {
        for name in world.images() {
            rmdir(&world, &format!("images/{name}")).unwrap();
        }
        let (mut model, mut known) = (Model::default(), BTreeSet::new());
        for step in &steps {
            if matches!(step, Step::Commit { .. }) {
                // So that every commit is an image of its own.
                count.set(count.get() + 1);
                world.make("web", &[file("count", count.get().to_string())]);
            }
            let found = act(&world, step).map_err(|error| error.kind);
            let made = match step {
                Step::Commit { to, .. } if found.is_ok() => world.line(&format!("images/{}/digest", NAMES[*to])),
                _ => String::new(),
            };
            prop_assert!(made.is_empty() || known.insert(made.clone()), "{:?} gave an image of before", step);
            let before = model.clone();
            let expected = model.apply(step, &made);
            prop_assert_eq!(&found, &expected, "{:?} of {:?}", step, &before);
            prop_assert_eq!(&seen(&world), &model, "{:?} of {:?}", step, &before);
        }
        Ok(())
    });
    run.unwrap_or_else(|error| panic!("{error}"));
    world.assert_store_clean("after all");
}
