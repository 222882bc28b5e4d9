//! Which images and containers a filter chooses.

use std::borrow::Cow;
use std::cell::Cell;
use std::sync::Arc;

use crate::api::{Container, ContainerKey, Error, ErrorKind, ImageName, Snapfs};
use crate::filter::{Filter, Subject};
use crate::oci::annotation;
use crate::store::Record;

/// What filters may ask for; `labels` and `annotations` with a key.
const FIELDS: &str = "name, kind, created, size, engine, image, id, status, labels.KEY and annotations.KEY";

/// How many parsed filters are kept.
const KEPT_FILTERS: usize = 64;

/// Something that a filter chose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// An image, by its name below `images/`.
    Image(String),
    /// A container, by its name below `containers/`, with its engine and id.
    Container {
        /// The name under which it is listed.
        name: String,
        /// Which it is.
        key: ContainerKey,
    },
}

struct ImageSubject<'a> {
    snapfs: &'a Snapfs,
    name: &'a str,
    record: &'a Record,
}

impl Subject for ImageSubject<'_> {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        let facts = || self.snapfs.facts(&self.record.manifest);
        let annotation = |key: &str| Some(Cow::Owned(facts()?.annotations.get(key)?.clone()));
        match path {
            [field] => match field.as_str() {
                "name" => Some(Cow::Borrowed(self.name)),
                "kind" => Some(Cow::Borrowed(self.record.kind.as_deref().unwrap_or("image"))),
                "created" => facts()?.created.clone().map(Cow::Owned),
                "size" => Some(Cow::Owned(facts()?.size.to_string())),
                "engine" => annotation(annotation::ENGINE),
                "image" => annotation(annotation::BASE_NAME),
                _ => None,
            },
            [field, key] if field == "labels" => self.record.labels.get(key).map(|value| Cow::Borrowed(value.as_str())),
            [field, key] if field == "annotations" => annotation(key),
            _ => None,
        }
    }
}

struct ContainerSubject<'a> {
    snapfs: &'a Snapfs,
    container: &'a Container,
    key: ContainerKey,
    /// An engine that did not tell one container's labels in time is not asked for others'.
    silent: &'a Cell<bool>,
}

impl Subject for ContainerSubject<'_> {
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
        let container = self.container;
        match path {
            [field] => match field.as_str() {
                "name" => Some(Cow::Borrowed(&container.name)),
                "kind" => Some(Cow::Borrowed("container")),
                "created" => container.created.map(|created| Cow::Owned(created.to_string())),
                "engine" => Some(Cow::Borrowed(container.engine)),
                "id" => Some(Cow::Borrowed(&container.id)),
                "status" => Some(Cow::Borrowed(self.snapfs.status(&self.key, container).as_str())),
                "image" => container.image.as_deref().map(Cow::Borrowed),
                _ => None,
            },
            [field, key] if field == "labels" && !self.silent.get() => match self.snapfs.container_labels(&self.key) {
                Ok(mut labels) => labels.remove(key).map(Cow::Owned),
                Err(error) => {
                    self.silent.set(error.kind == ErrorKind::Again);
                    None
                }
            },
            _ => None,
        }
    }
}

impl Snapfs {
    /// The filter that `text` is. Why it is none can be read afterwards: [`query_error`](Self::query_error).
    pub fn filter(&self, text: &str) -> Result<Arc<Filter>, Error> {
        if let Some(filter) = self.filters.lock().get(text) {
            return Ok(Arc::clone(filter));
        }
        match parse(text) {
            Ok(filter) => {
                let filter = Arc::new(filter);
                let mut filters = self.filters.lock();
                if filters.len() >= KEPT_FILTERS {
                    filters.clear();
                }
                filters.insert(text.to_owned(), Arc::clone(&filter));
                Ok(filter)
            }
            Err(error) => {
                let shown: String = text.chars().take(200).collect();
                let line = format!("{} {}: {error}\n", self.clock.now(), shown.escape_debug());
                *self.query_error.lock() = line;
                Err(error)
            }
        }
    }

    /// The last text that was not a filter, and why not.
    pub fn query_error(&self) -> String {
        self.query_error.lock().clone()
    }

    /// All that a filter chooses: images, then containers.
    pub fn query(&self, filter: &Filter) -> Vec<Match> {
        let names = self.store.names();
        let images = names.iter().filter_map(|(name, record)| {
            let name = self.local_name(name)?;
            let chosen = filter.matches(&ImageSubject { snapfs: self, name, record });
            chosen.then(|| Match::Image(name.to_owned()))
        });
        images.chain(self.query_containers(filter)).collect()
    }

    /// Only the containers that a filter chooses.
    pub fn query_containers(&self, filter: &Filter) -> Vec<Match> {
        let silent = Cell::new(false);
        let listing = self.engines.containers();
        let containers = listing.iter().filter_map(|(name, container)| {
            let key = ContainerKey { engine: container.engine, id: Arc::from(container.id.as_str()) };
            let subject = ContainerSubject { snapfs: self, container, key: key.clone(), silent: &silent };
            filter.matches(&subject).then(|| Match::Container { name: name.to_owned(), key })
        });
        containers.collect()
    }

    /// Whether a filter chooses the image of that name below `images/`.
    pub fn query_image(&self, filter: &Filter, name: &str) -> bool {
        let full = name.parse().ok().and_then(|name: ImageName| self.full_name(&name).ok());
        let record = full.and_then(|full| self.store.record(&full));
        record.is_some_and(|record| filter.matches(&ImageSubject { snapfs: self, name, record: &record }))
    }
}

fn parse(text: &str) -> Result<Filter, Error> {
    let invalid = |why: String| Error::new(ErrorKind::Invalid, format!("not a filter: {why}"));
    let filter = Filter::parse(text).map_err(|error| invalid(error.to_string()))?;
    let known = |path: &[String]| match path {
        [field] => ["name", "kind", "created", "size", "engine", "image", "id", "status"].contains(&field.as_str()),
        [field, _] => field == "labels" || field == "annotations",
        _ => false,
    };
    let unknown = filter.paths().find(|path| !known(path)).map(|path| path.join("."));
    match unknown {
        None => Ok(filter),
        Some(path) => Err(invalid(format!(
            "there is no field {path}; there are {FIELDS}, and a KEY with a dot stands in double quotes"
        ))),
    }
}
