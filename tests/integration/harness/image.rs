//! Small images, made straight in a store.

use std::collections::BTreeSet;
use std::io::Read;

use serde_json::{Value, json};
use snapfs::oci::{
    Descriptor, DiffId, Digest, ImageName, MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_LAYER_GZIP,
    MEDIA_TYPE_LAYER_ZSTD, MEDIA_TYPE_MANIFEST,
};
use snapfs::store::{DOCUMENT_LIMIT, Error, Lease, Record, Replace, Store};
use snapfs::sys::clock::Clock;

/// A name, which must be one.
pub(crate) fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// The configuration, the manifest, and the record of an image with these layers.
fn documents(layers: &[&[u8]]) -> (Vec<u8>, Vec<u8>, Record) {
    let descriptor = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() });
    let layers: Vec<_> = layers.iter().map(|layer| descriptor(MEDIA_TYPE_LAYER, layer)).collect();
    let config = json!({ "layers": layers }).to_string().into_bytes();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_MANIFEST,
        "config": descriptor(MEDIA_TYPE_CONFIG, &config),
        "layers": layers,
    });
    let manifest = manifest.to_string().into_bytes();
    let named = serde_json::from_value(descriptor(MEDIA_TYPE_MANIFEST, &manifest)).unwrap();
    (config, manifest, Record::new(named, Clock::fixed(1_700_000_000).unwrap().now()))
}

/// The digest of the image with these layers.
pub(crate) fn digest(layers: &[&[u8]]) -> Digest {
    documents(layers).2.manifest.digest
}

/// Store an image with these layers and give it no name; a layer that is there is adopted.
pub(crate) fn build(lease: &Lease, layers: &[&[u8]]) -> Result<Record, Error> {
    for layer in layers {
        let digest = Digest::of(layer);
        if lease.adopt(&digest)?.is_none() {
            assert_eq!(lease.put(layer)?, (digest, layer.len() as u64));
        }
    }
    let (config, manifest, record) = documents(layers);
    lease.put(&config)?;
    lease.put(&manifest)?;
    Ok(record)
}

/// Make an image of these layers and name it.
pub(crate) fn commit(store: &Store, to: &str, layers: &[&[u8]]) -> Result<Digest, Error> {
    let lease = store.lease()?;
    let record = build(&lease, layers)?;
    store.tag(&lease, &name(to), record, Replace::Allowed).map(|record| record.manifest.digest)
}

/// Read a whole image and hold every byte against its digest; returns the blobs it consists of.
pub(crate) fn verify(store: &Store, record: &Record) -> BTreeSet<Digest> {
    let manifest = store.read_document(&record.manifest, DOCUMENT_LIMIT).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    let mut blobs = BTreeSet::from([record.manifest.digest]);
    for child in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        let child: Descriptor = serde_json::from_value(child.clone()).unwrap();
        let mut bytes = Vec::new();
        store.open_blob(&child.digest).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!((Digest::of(&bytes), bytes.len() as u64), (child.digest, child.size));
        blobs.insert(child.digest);
    }
    blobs
}

/// An image configuration whose layers have these tars, with `more` fields.
pub(crate) fn config_with(tars: &[Vec<u8>], more: &[(&str, Value)]) -> Vec<u8> {
    let mut config: Value = serde_json::from_slice(&crate::harness::engine::config_of(tars)).unwrap();
    for (field, value) in more {
        config[field] = value.clone();
    }
    serde_json::to_vec(&config).unwrap()
}

/// An image of a commit, read by other code than the product's.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) manifest: Value,
    pub(crate) config: Value,
    /// The layers' tars, bottom first.
    pub(crate) tars: Vec<Vec<u8>>,
    pub(crate) blobs: BTreeSet<Digest>,
}

/// Read a whole image, and hold every blob against its digest and its length, and every layer, unpacked, against its
/// diff id. The history tells of as many layers as there are.
pub(crate) fn read_whole(store: &Store, record: &Record) -> Whole {
    let blob = |descriptor: &Value| {
        let descriptor: Descriptor = serde_json::from_value(descriptor.clone()).unwrap();
        let mut bytes = Vec::new();
        store.open_blob(&descriptor.digest).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!((Digest::of(&bytes), bytes.len() as u64), (descriptor.digest, descriptor.size));
        bytes
    };
    let manifest: Value = serde_json::from_slice(&blob(&json!(record.manifest))).unwrap();
    assert_eq!(manifest["mediaType"], MEDIA_TYPE_MANIFEST);
    assert_eq!(manifest["config"]["mediaType"], MEDIA_TYPE_CONFIG);
    let config: Value = serde_json::from_slice(&blob(&manifest["config"])).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    let tars: Vec<Vec<u8>> =
        layers.iter().map(|layer| unpack(layer["mediaType"].as_str().unwrap(), &blob(layer))).collect();
    let diff_ids: Vec<DiffId> = tars.iter().map(|tar| DiffId::of(tar)).collect();
    assert_eq!(config["rootfs"]["diff_ids"], json!(diff_ids));
    let made = config["history"].as_array().unwrap().iter().filter(|entry| entry["empty_layer"] != json!(true));
    assert_eq!(made.count(), layers.len(), "{:#}", config["history"]);
    Whole { blobs: verify(store, record), manifest, config, tars }
}

fn unpack(media_type: &str, blob: &[u8]) -> Vec<u8> {
    match media_type {
        MEDIA_TYPE_LAYER => blob.to_vec(),
        MEDIA_TYPE_LAYER_ZSTD => zstd::stream::decode_all(blob).unwrap(),
        MEDIA_TYPE_LAYER_GZIP => {
            let mut tar = Vec::new();
            flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut tar).unwrap();
            tar
        }
        other => panic!("{other} is no layer's media type"),
    }
}

impl Whole {
    /// The paths in one layer, as Rust would print them, with the type flag of their tar headers.
    pub(crate) fn paths(&self, layer: usize) -> Vec<(String, char)> {
        let mut archive = tar::Archive::new(&self.tars[layer][..]);
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let flag = char::from(entry.header().entry_type().as_byte());
            (entry.path_bytes().escape_ascii().to_string(), flag)
        });
        entries.collect()
    }

    /// The bytes of a file in one layer.
    pub(crate) fn file(&self, layer: usize, path: &str) -> Option<Vec<u8>> {
        let mut archive = tar::Archive::new(&self.tars[layer][..]);
        let mut found = archive.entries().unwrap().map(Result::unwrap);
        let mut entry = found.find(|entry| &*entry.path_bytes() == path.as_bytes())?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }

    /// The bytes of a file in the topmost layer that has it.
    pub(crate) fn top(&self, path: &str) -> Option<Vec<u8>> {
        (0..self.tars.len()).rev().find_map(|layer| self.file(layer, path))
    }

    pub(crate) fn annotation(&self, key: &str) -> Option<&str> {
        self.manifest["annotations"][key].as_str()
    }
}
