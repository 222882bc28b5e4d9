//! [`Image`]: a manifest and its config, read once and checked.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::image::Error;
use crate::oci::{Descriptor, DiffId, Digest, MEDIA_TYPE_MANIFEST, annotation};
use crate::store::Store;

/// The largest manifest and config that are read: image-spec `manifest.md` lets a registry refuse more than 4 MiB.
const LARGEST_DOCUMENT: u64 = 4 << 20;

/// An image of the store.
#[derive(Debug)]
pub struct Image {
    /// Where its manifest is.
    pub manifest: Descriptor,
    /// The manifest's exact bytes.
    pub manifest_bytes: Vec<u8>,
    /// Where its config is.
    pub config: Descriptor,
    /// The config's exact bytes.
    pub config_bytes: Vec<u8>,
    /// The manifest's annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its layers, bottom first.
    pub layers: Vec<LayerView>,
    /// When it was made, RFC 3339, if the config says so.
    pub created: Option<String>,
}

/// A layer as its image tells of it.
#[derive(Debug, Clone)]
pub struct LayerView {
    /// The blob.
    pub descriptor: Descriptor,
    /// SHA-256 of the uncompressed tar.
    pub diff_id: DiffId,
    /// The command that made it, from the history.
    pub created_by: String,
}

impl Image {
    /// Read the image whose manifest is `manifest`, verifying the digests of manifest and config.
    pub fn open(store: &Store, manifest: &Descriptor) -> Result<Image, Error> {
        let manifest_bytes = store.read_document(manifest, LARGEST_DOCUMENT)?;
        let document = Document::parse("the manifest", manifest.digest, &manifest_bytes)?;
        document.check_manifest()?;
        let config = document.descriptor(&document.value["config"], "its config's descriptor")?;
        let config_bytes = store.read_document(&config, LARGEST_DOCUMENT)?;
        let config_document = Document::parse("the image config", config.digest, &config_bytes)?;
        let layers = layers(&document, &config_document)?;
        let annotations = strings(&document.value["annotations"]);
        let created = config_document.value["created"].as_str().map(str::to_owned);
        let manifest = manifest.clone();
        Ok(Image { manifest, manifest_bytes, config, config_bytes, annotations, layers, created })
    }

    /// `commit`, `checkpoint`, or `image` for one that snapfs did not make.
    pub fn kind(&self) -> &str {
        self.annotations.get(annotation::KIND).map_or("image", String::as_str)
    }

    /// What it was made on: the digest of an earlier snapshot, or the base image's name.
    pub fn parent(&self) -> Option<&str> {
        let parent = [annotation::PARENT, annotation::BASE_NAME].into_iter().find_map(|key| self.annotations.get(key));
        parent.map(String::as_str)
    }

    /// All its blobs: manifest, config, layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        [&self.manifest, &self.config].into_iter().chain(self.layers.iter().map(|layer| &layer.descriptor))
    }

    /// The bytes of all its blobs, each counted once.
    pub fn size(&self) -> u64 {
        let sizes: BTreeMap<Digest, u64> = self.blobs().map(|blob| (blob.digest, blob.size)).collect();
        sizes.values().sum()
    }
}

struct Document {
    what: &'static str,
    digest: Digest,
    value: Value,
}

impl Document {
    fn parse(what: &'static str, digest: Digest, bytes: &[u8]) -> Result<Document, Error> {
        match serde_json::from_slice(bytes) {
            Ok(value) => Ok(Document { what, digest, value }),
            Err(error) => Err(Error::Malformed { what, digest, reason: error.to_string() }),
        }
    }

    fn malformed(&self, reason: impl Into<String>) -> Error {
        Error::Malformed { what: self.what, digest: self.digest, reason: reason.into() }
    }

    /// A document that could be read as two things is neither (CVE-2021-41190).
    fn check_manifest(&self) -> Result<(), Error> {
        let media_type = self.value["mediaType"].as_str().unwrap_or(MEDIA_TYPE_MANIFEST);
        if media_type != MEDIA_TYPE_MANIFEST {
            return Err(self.malformed(format!("it says that it is {media_type}")));
        }
        if self.value.get("manifests").is_some() {
            return Err(self.malformed("it is both a manifest and an index"));
        }
        Ok(())
    }

    fn descriptor(&self, value: &Value, what: &str) -> Result<Descriptor, Error> {
        serde_json::from_value(value.clone()).map_err(|error| self.malformed(format!("{what}: {error}")))
    }
}

fn layers(manifest: &Document, config: &Document) -> Result<Vec<LayerView>, Error> {
    let none = Vec::new();
    let descriptors = manifest.value["layers"].as_array().unwrap_or(&none);
    let diff_ids = config.value["rootfs"]["diff_ids"].as_array().unwrap_or(&none);
    if descriptors.len() != diff_ids.len() {
        let reason = format!("it has {} diff_ids, its manifest {} layers", diff_ids.len(), descriptors.len());
        return Err(config.malformed(reason));
    }
    let history = config.value["history"].as_array().unwrap_or(&none);
    let mut made = history.iter().filter(|entry| entry["empty_layer"] != Value::Bool(true));
    let mut layers = Vec::with_capacity(descriptors.len());
    for (descriptor, diff_id) in descriptors.iter().zip(diff_ids) {
        let diff_id = diff_id.as_str().and_then(|text| text.parse().ok());
        let created_by = made.next().and_then(|entry| entry["created_by"].as_str()).unwrap_or_default();
        layers.push(LayerView {
            descriptor: manifest.descriptor(descriptor, "a layer's descriptor")?,
            diff_id: diff_id.ok_or_else(|| config.malformed("a diff_id is not a digest"))?,
            created_by: created_by.to_owned(),
        });
    }
    Ok(layers)
}

fn strings(value: &Value) -> BTreeMap<String, String> {
    let pairs = value.as_object().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}
