//! Small images, made straight in a store.

use std::collections::BTreeSet;
use std::io::Read;

use serde_json::json;
use snapfs::oci::{Descriptor, Digest, ImageName, MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST};
use snapfs::store::{DOCUMENT_LIMIT, Error, Lease, Record, Replace, Store};
use snapfs::sys::clock::Clock;

/// A name, which must be one.
pub fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

/// Store an image with these layers and give it no name; a layer that is there is adopted.
pub fn build(lease: &Lease, layers: &[&[u8]]) -> Result<Record, Error> {
    let mut descriptors = Vec::new();
    for layer in layers {
        let digest = Digest::of(layer);
        if lease.adopt(&digest)?.is_none() {
            assert_eq!(lease.put(layer)?, (digest, layer.len() as u64));
        }
        descriptors.push(json!({ "mediaType": MEDIA_TYPE_LAYER, "digest": digest, "size": layer.len() }));
    }
    let (config, config_size) = lease.put(json!({ "layers": descriptors }).to_string().as_bytes())?;
    let config = json!({ "mediaType": MEDIA_TYPE_CONFIG, "digest": config, "size": config_size });
    let manifest =
        json!({ "schemaVersion": 2, "mediaType": MEDIA_TYPE_MANIFEST, "config": config, "layers": descriptors });
    let (digest, size) = lease.put(manifest.to_string().as_bytes())?;
    let manifest = Descriptor { media_type: MEDIA_TYPE_MANIFEST.to_owned(), digest, size };
    Ok(Record::new(manifest, Clock::fixed(1_700_000_000).unwrap().now()))
}

/// Make an image of these layers and name it.
pub fn commit(store: &Store, to: &str, layers: &[&[u8]]) -> Result<Digest, Error> {
    let lease = store.lease()?;
    let record = build(&lease, layers)?;
    store.tag(&lease, &name(to), record, Replace::Allowed).map(|record| record.manifest.digest)
}

/// Read a whole image and hold every byte against its digest; returns the blobs it consists of.
pub fn verify(store: &Store, record: &Record) -> BTreeSet<Digest> {
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
