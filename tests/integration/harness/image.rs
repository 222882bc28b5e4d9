//! Small images, made straight in a store.

use std::collections::BTreeSet;
use std::io::Read;

use serde_json::json;
use snapfs::oci::{Descriptor, Digest, ImageName, MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST};
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
