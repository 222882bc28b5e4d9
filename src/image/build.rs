//! Parent + layer + words → config and manifest; pure but for [`Draft::write`].

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;
use oci_spec::image as spec;
use serde_json::{Map, Value, json};

use crate::image::change::{self, Change};
use crate::image::{Error, Layer};
use crate::oci::{Descriptor, DiffId, Digest, MEDIA_TYPE_CONFIG, MEDIA_TYPE_MANIFEST, canonical_json};
use crate::store::Lease;

/// What a snapshot stands on: the container's base image, with its layers in our store.
#[derive(Debug, Clone)]
pub struct Parent {
    /// The base image's name at its engine.
    pub name: Option<String>,
    /// The base image's config, with every field it has, known to us or not.
    pub config: Value,
    /// Its layers, bottom first.
    pub layers: Vec<Layer>,
}

impl Parent {
    /// Applies `changes` to the configuration that the snapshot will have, and declares `volumes` in it.
    ///
    /// # Errors
    /// [`Error::Change`], or [`Error::BaseConfig`] if there is no object to change.
    pub fn change(&mut self, changes: &[Change], volumes: &[String]) -> Result<(), Error> {
        if changes.is_empty() && volumes.is_empty() {
            return Ok(());
        }
        let no_object = || Error::BaseConfig("it is not a JSON object".to_owned());
        let config = self.config.as_object_mut().ok_or_else(no_object)?;
        let settings = change::object(config, "config");
        let declared = volumes.iter().map(|path| (path.clone(), json!({})));
        if !volumes.is_empty() {
            change::object(settings, "Volumes").extend(declared);
        }
        Ok(change::apply(changes, settings)?)
    }

    /// The same with one more layer on top; `None` if there is nothing in it.
    ///
    /// # Errors
    /// [`Error::BaseConfig`] if there is no history to add to.
    pub fn with(mut self, layer: Option<Layer>, history: History) -> Result<Parent, Error> {
        let draft = Draft { parent: &self, layer: layer.as_ref(), history, annotations: BTreeMap::new() };
        self.config = serde_json::from_slice(&draft.config()?)?;
        self.layers.extend(layer);
        Ok(self)
    }
}

impl Parent {
    /// The same with one layer in the place of all those above the lowest `below`. Their entries stay in the history; all but
    /// the last of them, or all if there is no `layer`, say that they made none.
    ///
    /// # Errors
    /// [`Error::BaseConfig`] if there is no history that tells of the layers.
    pub fn merged(mut self, below: usize, layer: Option<Layer>) -> Result<Parent, Error> {
        let config = self.config.as_object_mut();
        let config = config.ok_or_else(|| Error::BaseConfig("it is not a JSON object".to_owned()))?;
        let mut history = take_history(config)?;
        complete_history(&mut history, self.layers.len())?;
        let made = history.iter_mut().filter(|entry| made_a_layer(entry)).skip(below);
        let mut above: Vec<&mut Value> = made.collect();
        if layer.is_some() {
            above.pop();
        }
        for entry in above.into_iter().filter_map(Value::as_object_mut) {
            entry.insert("empty_layer".to_owned(), Value::Bool(true));
        }
        config.insert("history".to_owned(), Value::Array(history));
        self.layers.truncate(below);
        self.layers.extend(layer);
        Ok(self)
    }
}

/// The entry that a snapshot adds to the config's history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    /// When.
    pub created: Timestamp,
    /// By what command.
    pub created_by: String,
    /// By whom.
    pub author: Option<String>,
    /// Why.
    pub comment: Option<String>,
}

/// An image about to be written.
#[derive(Debug, Clone)]
pub struct Draft<'a> {
    /// What it stands on.
    pub parent: &'a Parent,
    /// The new layer; `None` if nothing changed.
    pub layer: Option<&'a Layer>,
    /// The new history entry.
    pub history: History,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
}

/// Fields of Docker's config that speak of the container the base image was made from, not of this one.
const FOREIGN: [&str; 4] = ["container", "container_config", "id", "parent"];

impl Draft<'_> {
    /// The new config's bytes: the base's, with the layer and the history entry added.
    pub fn config(&self) -> Result<Vec<u8>, Error> {
        let mut config = match &self.parent.config {
            Value::Object(config) => config.clone(),
            _ => return Err(Error::BaseConfig("it is not a JSON object".to_owned())),
        };
        for field in FOREIGN {
            config.remove(field);
        }
        let base_layers = self.parent.layers.len();
        let mut history = take_history(&mut config)?;
        complete_history(&mut history, base_layers)?;
        history.push(self.history_entry());
        config.insert("history".to_owned(), Value::Array(history));
        config.insert("created".to_owned(), Value::String(self.history.created.to_string()));
        if let Some(author) = &self.history.author {
            config.insert("author".to_owned(), Value::String(author.clone()));
        }
        let diff_ids: Vec<DiffId> = self.layers().map(|layer| layer.diff_id).collect();
        config.insert("rootfs".to_owned(), json!({ "type": "layers", "diff_ids": diff_ids }));
        let platform = [("architecture", spec::Arch::default().to_string()), ("os", spec::Os::default().to_string())];
        for (field, value) in platform {
            config.entry(field).or_insert(Value::String(value));
        }
        Ok(canonical_json(&config)?)
    }

    /// The manifest's bytes, given what its config became.
    pub fn manifest(&self, config: &Descriptor) -> Result<Vec<u8>, Error> {
        let layers = self.layers().map(|layer| describe(&layer.descriptor)).collect::<Result<Vec<_>, _>>()?;
        let annotations: HashMap<String, String> = self.annotations.clone().into_iter().collect();
        let manifest = spec::ImageManifestBuilder::default()
            .schema_version(spec::SCHEMA_VERSION)
            .media_type(spec::MediaType::ImageManifest)
            .config(describe(config)?)
            .layers(layers)
            .annotations(annotations)
            .build()
            .map_err(|error| Error::BaseConfig(error.to_string()))?;
        Ok(canonical_json(&manifest)?)
    }

    /// Write config and manifest, in this order: a manifest's children are durable before it is.
    pub fn write(&self, lease: &Lease) -> Result<Descriptor, Error> {
        let config = put(lease, MEDIA_TYPE_CONFIG, &self.config()?)?;
        put(lease, MEDIA_TYPE_MANIFEST, &self.manifest(&config)?)
    }

    fn layers(&self) -> impl Iterator<Item = &Layer> {
        self.parent.layers.iter().chain(self.layer)
    }

    fn history_entry(&self) -> Value {
        let mut entry = Map::new();
        entry.insert("created".to_owned(), Value::String(self.history.created.to_string()));
        entry.insert("created_by".to_owned(), Value::String(self.history.created_by.clone()));
        let optional = [("author", &self.history.author), ("comment", &self.history.comment)];
        for (field, value) in optional {
            if let Some(value) = value {
                entry.insert(field.to_owned(), Value::String(value.clone()));
            }
        }
        if self.layer.is_none() {
            entry.insert("empty_layer".to_owned(), Value::Bool(true));
        }
        Value::Object(entry)
    }
}

impl Parent {
    /// Make an image of it, as it is: what a checkpoint's files are the difference to. Returns its manifest and its config.
    ///
    /// Errors: the disk's, and a config that is none.
    pub fn write(&self, lease: &Lease) -> Result<(Descriptor, Descriptor), Error> {
        let created =
            self.config["created"].as_str().and_then(|text| text.parse().ok()).unwrap_or(Timestamp::UNIX_EPOCH);
        let history = History { created, created_by: String::new(), author: None, comment: None };
        let draft = Draft { parent: self, layer: None, history, annotations: BTreeMap::new() };
        let mut config: Value = serde_json::from_slice(&draft.config()?)?;
        // Nothing was added.
        if let Some(history) = config["history"].as_array_mut() {
            history.pop();
        }
        let config = put(lease, MEDIA_TYPE_CONFIG, &canonical_json(&config)?)?;
        Ok((put(lease, MEDIA_TYPE_MANIFEST, &draft.manifest(&config)?)?, config))
    }
}

fn take_history(config: &mut Map<String, Value>) -> Result<Vec<Value>, Error> {
    match config.remove("history") {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::Array(entries)) => Ok(entries),
        Some(_) => Err(Error::BaseConfig("its history is not a list".to_owned())),
    }
}

fn made_a_layer(entry: &Value) -> bool {
    entry.get("empty_layer") != Some(&Value::Bool(true))
}

/// As many entries that made a layer as there are layers: podman and docker both refuse anything else.
fn complete_history(history: &mut Vec<Value>, layers: usize) -> Result<(), Error> {
    let made = history.iter().filter(|entry| made_a_layer(entry)).count();
    if made > layers {
        let reason = format!("its history tells of {made} layers, but it has {layers}");
        return Err(Error::BaseConfig(reason));
    }
    let missing = (made..layers).map(|_| json!({ "created_by": "base layer" }));
    history.splice(0..0, missing);
    Ok(())
}

fn put(lease: &Lease, media_type: &str, bytes: &[u8]) -> Result<Descriptor, Error> {
    let (digest, size) = lease.put(bytes)?;
    Ok(Descriptor::new(media_type, digest, size))
}

fn describe(descriptor: &Descriptor) -> Result<spec::Descriptor, Error> {
    let digest: spec::Digest = to_spec(&descriptor.digest)?;
    let mut described = spec::Descriptor::new(spec::MediaType::from(&*descriptor.media_type), descriptor.size, digest);
    if !descriptor.annotations.is_empty() {
        described.set_annotations(Some(descriptor.annotations.clone().into_iter().collect()));
    }
    Ok(described)
}

fn to_spec(digest: &Digest) -> Result<spec::Digest, Error> {
    digest.to_string().parse().map_err(|error: oci_spec::OciSpecError| Error::BaseConfig(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MEDIA_TYPE_LAYER_ZSTD;

    fn layer(seed: &str) -> Layer {
        let digest = Digest::of(seed.as_bytes());
        let descriptor = Descriptor::new(MEDIA_TYPE_LAYER_ZSTD, digest, 7);
        Layer { descriptor, diff_id: DiffId::of(seed.as_bytes()) }
    }

    fn parent(config: Value, layers: &[&str]) -> Parent {
        Parent { name: None, config, layers: layers.iter().map(|seed| layer(seed)).collect() }
    }

    fn draft<'a>(parent: &'a Parent, layer: Option<&'a Layer>) -> Draft<'a> {
        let created = Timestamp::from_second(1_700_000_000).unwrap();
        let history = History { created, created_by: "snapfs commit img".to_owned(), author: None, comment: None };
        let annotations = (0..9).map(|n| (format!("org.example.k{n}"), "v".to_owned())).collect();
        Draft { parent, layer, history, annotations }
    }

    fn config(draft: &Draft<'_>) -> Value {
        serde_json::from_slice(&draft.config().unwrap()).unwrap()
    }

    #[test]
    fn keeps_every_field_of_the_base_and_adds_the_layer() {
        let base = json!({
            "architecture": "riscv64", "os": "linux", "container_config": {}, "x-unknown": [1],
            "config": { "Cmd": ["sh"], "Healthcheck": { "Test": ["NONE"] }, "OnBuild": ["RUN x"] },
            "history": [{ "created_by": "FROM" }, { "created_by": "ENV", "empty_layer": true }],
            "rootfs": { "type": "layers", "diff_ids": [DiffId::of(b"a")] },
        });
        let (parent, top) = (parent(base.clone(), &["a"]), layer("b"));
        let config = config(&draft(&parent, Some(&top)));
        assert_eq!(config["config"], base["config"]);
        assert_eq!(config["x-unknown"], base["x-unknown"]);
        assert_eq!(config["architecture"], "riscv64");
        assert_eq!(config["container_config"], Value::Null);
        assert_eq!(config["rootfs"]["diff_ids"], json!([DiffId::of(b"a"), DiffId::of(b"b")]));
        assert_eq!(config["history"].as_array().unwrap().len(), 3);
        assert_eq!(config["created"], "2023-11-14T22:13:20Z");
    }

    #[test]
    fn history_counts_the_layers_even_if_the_base_has_none() {
        let (parent, top) = (parent(json!({}), &["a", "b"]), layer("c"));
        let counts = |config: &Value| {
            let made = |entry: &&Value| entry["empty_layer"] != Value::Bool(true);
            let entries = config["history"].as_array().unwrap();
            (entries.iter().filter(made).count(), config["rootfs"]["diff_ids"].as_array().unwrap().len())
        };
        assert_eq!(counts(&config(&draft(&parent, Some(&top)))), (3, 3));
        assert_eq!(counts(&config(&draft(&parent, None))), (2, 2));
    }

    #[test]
    fn merged_layers_leave_their_history() {
        let history = json!([
            { "created_by": "a" }, { "created_by": "ENV", "empty_layer": true }, { "created_by": "b" }, { "created_by": "c" },
        ]);
        let parent = parent(json!({ "config": { "Cmd": ["x"] }, "history": history }), &["a", "b", "c"]);
        let top = layer("top");
        let merged = |below, one: Option<&str>| {
            let merged = parent.clone().merged(below, one.map(layer)).unwrap();
            let config = config(&draft(&merged, Some(&top)));
            assert_eq!(config["config"], json!({ "Cmd": ["x"] }));
            let entries = config["history"].as_array().unwrap();
            let made: Vec<&str> = entries
                .iter()
                .filter(|entry| made_a_layer(entry))
                .filter_map(|entry| entry["created_by"].as_str())
                .collect();
            assert_eq!(entries.len(), 5, "no entry is lost");
            assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), made.len());
            made.join(" ")
        };
        assert_eq!(merged(1, Some("bc")), "a c snapfs commit img");
        assert_eq!(merged(1, None), "a snapfs commit img");
        assert_eq!(merged(0, None), "snapfs commit img");
    }

    #[test]
    fn a_base_that_lies_is_refused() {
        let history = json!([{ "created_by": "a" }, { "created_by": "b" }]);
        let lying = parent(json!({ "history": history }), &["a"]);
        assert!(draft(&lying, None).config().is_err());
        let no_object = parent(json!([]), &[]);
        assert!(draft(&no_object, None).config().is_err());
    }

    #[test]
    fn the_same_draft_gives_the_same_bytes() {
        let (parent, top) = (parent(json!({}), &["a"]), layer("b"));
        let draft = draft(&parent, Some(&top));
        let config = Descriptor::new(MEDIA_TYPE_CONFIG, Digest::of(b"c"), 1);
        let first = draft.manifest(&config).unwrap();
        for _ in 0..20 {
            assert_eq!(draft.manifest(&config).unwrap(), first);
        }
        let manifest: Value = serde_json::from_slice(&first).unwrap();
        assert_eq!(manifest["layers"][1]["mediaType"], MEDIA_TYPE_LAYER_ZSTD);
        assert_eq!(manifest["mediaType"], MEDIA_TYPE_MANIFEST);
        assert_eq!(manifest["schemaVersion"], 2);
    }
}
