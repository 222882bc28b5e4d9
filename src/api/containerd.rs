//! A checkpoint as containerd takes it: an index, and the layout around it.

use serde_json::json;

use crate::api::{Error, ErrorKind, ImageKey, Snapfs};
use crate::oci::{Descriptor, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, annotation, canonical_json};

/// The largest index that is read.
const LARGEST: u64 = 4 << 20;

/// The part of an index that is used.
#[derive(serde::Deserialize)]
struct Named {
    manifests: Vec<Descriptor>,
}

impl Snapfs {
    /// The index of a checkpoint for containerd: a key of which only the layout is to be had.
    pub fn containerd_of(&self, key: &ImageKey) -> Option<ImageKey> {
        let record = self.store.record(&key.name).filter(|record| record.manifest == key.manifest)?;
        Some(ImageKey { name: key.name.clone(), manifest: record.containerd.clone()? })
    }

    /// All blobs of an image, or of an index: those of its images and whatever else it names.
    pub fn blobs(&self, key: &ImageKey) -> Result<Vec<Descriptor>, Error> {
        if key.manifest.media_type != MEDIA_TYPE_INDEX {
            return Ok(self.image(key)?.blobs().cloned().collect());
        }
        let mut blobs = vec![key.manifest.clone()];
        for named in self.named(key)? {
            if named.media_type == MEDIA_TYPE_MANIFEST {
                let manifest = Descriptor::new(named.media_type, named.digest, named.size);
                let image = self.image(&ImageKey { name: key.name.clone(), manifest })?;
                blobs.extend(image.blobs().cloned());
            } else {
                blobs.push(named);
            }
        }
        Ok(blobs)
    }

    /// `index.json` of the layout for containerd: the checkpoint and what it stands on, each under the name that it gets.
    pub(super) fn containerd_json(&self, key: &ImageKey) -> Result<Vec<u8>, Error> {
        let plain = key.name.to_string();
        let whole = if plain.contains('/') { plain } else { format!("localhost/{plain}") };
        let tag = key.name.tag().unwrap_or("latest");
        let name = if key.name.tag().is_some() { whole } else { format!("{whole}:{tag}") };
        let mut checkpoint = key.manifest.clone();
        checkpoint.annotations.insert(annotation::REF_NAME.to_owned(), tag.to_owned());
        checkpoint.annotations.insert(annotation::CONTAINERD_NAME.to_owned(), name);
        let below = self.named(key)?.into_iter();
        let below = below.filter(|named| named.annotations.contains_key(annotation::CONTAINERD_NAME));
        let manifests: Vec<Descriptor> = [checkpoint].into_iter().chain(below).collect();
        let index = json!({ "schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": manifests });
        canonical_json(&index).map_err(|error| Error::new(ErrorKind::Io, format!("index.json: {error}")))
    }

    fn named(&self, key: &ImageKey) -> Result<Vec<Descriptor>, Error> {
        let read = self.store.read_document(&key.manifest, LARGEST);
        let bytes = read.map_err(|error| self.unless_gone(key, error.into()))?;
        let bad = |error| Error::new(ErrorKind::Io, format!("the index {} is damaged: {error}", key.manifest.digest));
        Ok(serde_json::from_slice::<Named>(&bytes).map_err(bad)?.manifests)
    }
}
