//! The engines together: whose container a name means, and what each engine is able to do at the moment.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::engine::{Container, Engine, Error, Inventory, name};

/// How old a listing may be when it is given out again.
const FRESH: Duration = Duration::from_millis(50);
/// How many of an engine's unusable entries health names.
const SHOWN: usize = 5;

/// The engines in the order of the configuration: where two use one name, it belongs to the first.
#[derive(Debug)]
pub struct Engines {
    engines: Vec<Box<dyn Engine>>,
    latest: Mutex<Option<(Instant, Arc<Listing>)>>,
}

impl Engines {
    /// These engines, in this order.
    pub fn new(engines: Vec<Box<dyn Engine>>) -> Engines {
        Engines { engines, latest: Mutex::new(None) }
    }

    /// All containers, by a listing that is no older than 50 ms: reads files, starts and waits for nothing.
    pub fn containers(&self) -> Arc<Listing> {
        let mut latest = self.latest.lock();
        match &*latest {
            Some((taken, listing)) if taken.elapsed() < FRESH => listing.clone(),
            _ => self.take(&mut latest),
        }
    }

    /// All containers as of now, for whoever must not act on what was true 50 ms ago.
    ///
    /// Many who ask at once share one listing: what was begun after somebody asked is as of now to him.
    pub fn containers_now(&self) -> Arc<Listing> {
        let asked = Instant::now();
        let mut latest = self.latest.lock();
        match &*latest {
            Some((taken, listing)) if *taken > asked => listing.clone(),
            _ => self.take(&mut latest),
        }
    }

    fn take(&self, latest: &mut Option<(Instant, Arc<Listing>)>) -> Arc<Listing> {
        // The time before reading: what changes meanwhile is not older than it.
        let taken = Instant::now();
        let found = self.engines.iter().map(|engine| (engine.name(), engine.list())).collect();
        let listing = Arc::new(Listing::new(found));
        *latest = Some((taken, listing.clone()));
        listing
    }

    /// The first engine of that name.
    pub fn by_name(&self, name: &str) -> Option<&dyn Engine> {
        self.engines.iter().find(|engine| engine.name() == name).map(|engine| &**engine)
    }

    /// The engine that has the container.
    pub fn engine_of(&self, container: &Container) -> Option<&dyn Engine> {
        self.engines.iter().find(|engine| engine.name() == container.engine).map(|engine| &**engine)
    }

    /// One line an engine, `engine NAME ok|absent|error: REASON`, and one for each entry that it could not use.
    pub fn health(&self) -> Vec<String> {
        self.containers().health()
    }
}

/// Every container that the engines had at one moment, each under a name of its own.
#[derive(Debug)]
pub struct Listing {
    /// In the order of the engines, and within one as it lists them.
    containers: Vec<(String, Arc<Container>)>,
    by_name: HashMap<String, usize>,
    engines: Vec<(&'static str, Result<Reading, Error>)>,
}

#[derive(Debug)]
struct Reading {
    present: bool,
    skipped: Vec<Error>,
}

impl Listing {
    fn new(found: Vec<(&'static str, Result<Inventory, Error>)>) -> Listing {
        let mut listing = Listing { containers: Vec::new(), by_name: HashMap::new(), engines: Vec::new() };
        let mut containers = Vec::new();
        for (engine, found) in found {
            let reading = found.map(|inventory| {
                containers.extend(inventory.containers);
                Reading { present: inventory.present, skipped: inventory.skipped }
            });
            listing.engines.push((engine, reading));
        }
        // What an engine has a runtime run is that engine's, although the runtime lists it as well.
        let is_bare = |container: &Container| container.runtime.as_deref() == Some(container.engine);
        let engines_own: HashSet<String> =
            containers.iter().filter(|container| !is_bare(container)).map(|container| container.id.clone()).collect();
        containers.retain(|container| !is_bare(container) || !engines_own.contains(&container.id));
        for container in containers {
            listing.add(container);
        }
        listing
    }

    /// Shows the container under the first of its names that is still free: its name, `NAME@ENGINE`, its id.
    fn add(&mut self, container: Container) {
        let encoded = name::encode(&container.name);
        let at_engine = format!("{encoded}@{}", container.engine);
        let id_at_engine = format!("{}@{}", container.id, container.engine);
        let names = [encoded, at_engine, container.id.clone(), id_at_engine];
        let free = |name: &&String| name.len() <= name::LONGEST && !self.by_name.contains_key(*name);
        let Some(visible) = names.iter().find(free).cloned() else { return };
        self.by_name.insert(visible.clone(), self.containers.len());
        self.containers.push((visible, Arc::new(container)));
    }

    /// Whether every engine said what it has, and of all that it has.
    pub fn is_complete(&self) -> bool {
        self.engines.iter().all(|(_, reading)| reading.as_ref().is_ok_and(|reading| reading.skipped.is_empty()))
    }

    /// The names to list, each with its container.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Container>)> {
        self.containers.iter().map(|(name, container)| (name.as_str(), container))
    }

    /// The names to list: file names, each once.
    pub fn visible_names(&self) -> impl Iterator<Item = &str> {
        self.iter().map(|(name, _)| name)
    }

    /// The container that `name` means: a name to list, `NAME@ENGINE`, a full id, or the beginning of just one id.
    pub fn find(&self, name: &str) -> Result<&Arc<Container>, Error> {
        if let Some(&at) = self.by_name.get(name) {
            return Ok(&self.containers[at].1);
        }
        let containers = || self.containers.iter().map(|(_, container)| container);
        let is_at_engine = |container: &&Arc<Container>| {
            let (before, engine) = name.rsplit_once('@').unwrap_or_default();
            engine == container.engine && (before == name::encode(&container.name) || before == container.id)
        };
        if let Some(container) = containers().find(is_at_engine).or_else(|| containers().find(|c| c.id == name)) {
            return Ok(container);
        }
        let mut matching = containers().filter(|container| !name.is_empty() && container.id.starts_with(name));
        match (matching.next(), matching.count()) {
            (None, _) => Err(Error::NoContainer { name: name.to_owned() }),
            (Some(container), 0) => Ok(container),
            (Some(_), others) => Err(Error::Ambiguous { prefix: name.to_owned(), matches: others + 1 }),
        }
    }

    /// The container that `engine` calls `id`.
    pub fn by_id(&self, engine: &str, id: &str) -> Option<&Arc<Container>> {
        self.containers.iter().map(|(_, container)| container).find(|c| c.engine == engine && c.id == id)
    }

    /// As [`Engines::health`], of this listing.
    pub fn health(&self) -> Vec<String> {
        let mut lines = Vec::new();
        for (engine, reading) in &self.engines {
            match reading {
                Err(error) => lines.push(one_line(format!("engine {engine} error: {error}"))),
                Ok(Reading { present: false, .. }) => lines.push(format!("engine {engine} absent")),
                Ok(Reading { skipped, .. }) => {
                    lines.push(format!("engine {engine} ok"));
                    let shown = skipped.iter().take(SHOWN);
                    lines.extend(shown.map(|error| one_line(format!("engine {engine} skipped: {error}"))));
                    if skipped.len() > SHOWN {
                        lines.push(format!("engine {engine} skipped: and {} more", skipped.len() - SHOWN));
                    }
                }
            }
        }
        lines
    }
}

/// What others wrote must not make a second line, or act on a terminal.
fn one_line(text: String) -> String {
    let escape = |letter: char| {
        if letter.is_control() { letter.escape_default().to_string() } else { letter.to_string() }
    };
    text.chars().map(escape).collect()
}
