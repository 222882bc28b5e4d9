//! What a snapshot stands on: the base image's layers, brought into our store once and shared by every later snapshot.

use std::io::{Read, Write};

use serde_json::{Map, Value, json};

use crate::capture::{Context, Error, source};
use crate::changeset::{self, tar};
use crate::engine::{BaseImage, BaseLayer, Container, Overlay, RootFs};
use crate::image::{self, Compression, Layer, LayerWriter, Parent};
use crate::oci::{Descriptor, Digest};
use crate::progress::Progress;
use crate::store::{Lease, Store};

/// Cache: diff_id and encoding → the layer's blob.
const BY_DIFF_ID: &str = "layer";
/// Cache: fingerprint of lower directories, and encoding → the base layer made of them.
const BY_FINGERPRINT: &str = "base";

/// How much of a base layer is copied between two looks at the progress.
const CHUNK: usize = 1 << 20;

/// The container's base image, with its layers in the store.
///
/// An engine's image is taken as it is: its layers are re-assembled byte for byte, so that their diff_ids are the
/// engine's own. A bare bundle has none: what lies below its upperdir becomes one base layer.
pub fn import(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    compression: Compression,
    progress: &Progress,
) -> Result<Parent, Error> {
    source::check_place(container)?;
    bring(context, lease, container, compression, progress).map(|(parent, _)| parent)
}

/// The same, and for a bare bundle the [fingerprint](changeset::fingerprint) of its lower directories.
pub(super) fn bring(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    compression: Compression,
    progress: &Progress,
) -> Result<(Parent, Option<Digest>), Error> {
    let importer = Importer { store: context.store, lease, compression, progress };
    if let Some(base) = context.engine.base_image(container)? {
        return Ok((importer.image(base)?, None));
    }
    let (layers, fingerprint) = match &container.root {
        RootFs::Overlay(overlay) => {
            let (layer, fingerprint) = importer.lowers(overlay)?;
            (vec![layer], Some(fingerprint))
        }
        RootFs::Directory(_) => (Vec::new(), None),
    };
    let spec = container.read_spec()?.unwrap_or_default();
    Ok((Parent { name: container.image.clone(), config: config_of_bundle(&spec), layers }, fingerprint))
}

/// Brings layers into the store, in the encoding that was asked for: a tool that cannot read one layer cannot read the image.
struct Importer<'a> {
    store: &'a Store,
    lease: &'a Lease,
    compression: Compression,
    progress: &'a Progress,
}

impl Importer<'_> {
    fn image(&self, base: BaseImage) -> Result<Parent, Error> {
        let config = serde_json::from_slice(&base.config).map_err(Error::BaseConfig)?;
        let layers = base.layers.iter().map(|layer| self.layer(layer)).collect::<Result<_, _>>()?;
        Ok(Parent { name: base.name, config, layers })
    }

    fn layer(&self, layer: &BaseLayer) -> Result<Layer, Error> {
        let key = layer.diff_id.hex();
        if let Some(known) = self.known(BY_DIFF_ID, &key)? {
            return Ok(known);
        }
        let mut tar = layer.open()?;
        let mut writer = LayerWriter::new(self.lease.blob()?, self.compression)?;
        let mut chunk = vec![0; CHUNK];
        loop {
            self.progress.check()?;
            let read = match tar.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::BaseRead(error)),
            };
            writer.write_all(&chunk[..read]).map_err(image::Error::Write)?;
            self.progress.add_bytes(read as u64);
        }
        let imported = writer.finish_for(self.progress)?;
        if imported.diff_id != layer.diff_id {
            return Err(Error::BaseDiffers { expected: layer.diff_id, found: imported.diff_id });
        }
        self.remember(BY_DIFF_ID, &key, &imported);
        self.progress
            .log(format!("imported base layer {}, {} bytes stored", imported.diff_id, imported.descriptor.size));
        Ok(imported)
    }

    fn lowers(&self, overlay: &Overlay) -> Result<(Layer, Digest), Error> {
        let fingerprint = changeset::fingerprint(&overlay.lower, self.progress)?;
        if let Some(known) = self.known(BY_FINGERPRINT, &fingerprint.hex())? {
            return Ok((known, fingerprint));
        }
        let changes = changeset::flatten(&overlay.lower, source::namespace(overlay), self.progress)?;
        let mut writer = LayerWriter::new(self.lease.blob()?, self.compression)?;
        tar::write(&changes, &mut writer, self.progress, tar::Options::default())?;
        let layer = writer.finish_for(self.progress)?;
        self.remember(BY_FINGERPRINT, &fingerprint.hex(), &layer);
        self.progress.log(format!("made base layer {} of the lower directories", layer.diff_id));
        Ok((layer, fingerprint))
    }

    /// A cached fact is believed only as far as the blob it names is there, with its size; `adopt` keeps it from then on.
    fn known(&self, kind: &str, key: &str) -> Result<Option<Layer>, Error> {
        let Some(bytes) = self.store.recall(kind, &self.keyed(key)) else { return Ok(None) };
        let Ok((descriptor, diff_id)) = serde_json::from_slice::<(Descriptor, _)>(&bytes) else { return Ok(None) };
        let size = self.lease.adopt(&descriptor.digest)?;
        Ok((size == Some(descriptor.size)).then_some(Layer { descriptor, diff_id }))
    }

    /// The cache only saves time: without it the layer is made again.
    fn remember(&self, kind: &str, key: &str, layer: &Layer) {
        let fact = serde_json::to_vec(&(&layer.descriptor, &layer.diff_id)).map_err(image::Error::from);
        let remembered = fact.and_then(|fact| Ok(self.store.remember(kind, &self.keyed(key), &fact)?));
        if let Err(error) = remembered {
            log::warn!("a base layer is not remembered, and will be made again: {error}");
        }
    }

    fn keyed(&self, key: &str) -> String {
        format!("{key}.{}", encoding(self.compression))
    }
}

/// Whatever the level: a layer that is there already is not compressed again for a better one.
pub(super) fn encoding(compression: Compression) -> &'static str {
    match compression {
        Compression::Zstd { .. } => "zstd",
        Compression::ZstdChunked => "zstd-chunked",
        Compression::Gzip => "gzip",
        Compression::None => "tar",
    }
}

/// An image config for a container that came from no image: enough that `podman run` starts what the bundle started.
///
/// Of the environment only PATH is kept: the rest was set for this container and may hold secrets.
fn config_of_bundle(spec: &[u8]) -> Value {
    let spec: Value = serde_json::from_slice(spec).unwrap_or_default();
    let process = &spec["process"];
    let mut config = Map::new();
    if let Some(args) = process["args"].as_array().filter(|args| !args.is_empty()) {
        config.insert("Cmd".to_owned(), Value::Array(args.clone()));
    }
    let environment = process["env"].as_array().into_iter().flatten();
    let path: Vec<_> =
        environment.filter(|entry| entry.as_str().is_some_and(|text| text.starts_with("PATH="))).collect();
    if !path.is_empty() {
        config.insert("Env".to_owned(), json!(path));
    }
    if let Some(directory) = process["cwd"].as_str() {
        config.insert("WorkingDir".to_owned(), json!(directory));
    }
    let (uid, gid) = (process["user"]["uid"].as_u64().unwrap_or(0), process["user"]["gid"].as_u64().unwrap_or(0));
    if (uid, gid) != (0, 0) {
        config.insert("User".to_owned(), json!(format!("{uid}:{gid}")));
    }
    json!({ "config": config })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bundle_s_config_starts_what_the_bundle_started_and_leaks_nothing() {
        let spec = br#"{"process":{"args":["sh","-c","x"],"cwd":"/srv","user":{"uid":7,"gid":8},
                        "env":["PATH=/bin","PASSWORD=hunter2"]}}"#;
        let config = config_of_bundle(spec);
        let expected = json!({"Cmd": ["sh", "-c", "x"], "Env": ["PATH=/bin"], "WorkingDir": "/srv", "User": "7:8"});
        assert_eq!(config["config"], expected);
        assert_eq!(config_of_bundle(b"no json")["config"], json!({}));
    }
}
