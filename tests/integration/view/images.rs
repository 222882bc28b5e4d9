//! Images whose layers are any bytes, packed in any way.

use std::io::Write;

use serde_json::{Value, json};
use snapfs::image::{Compression, LayerWriter};
use snapfs::oci::{
    Digest, MEDIA_TYPE_CONFIG, MEDIA_TYPE_LAYER, MEDIA_TYPE_LAYER_GZIP, MEDIA_TYPE_LAYER_ZSTD, MEDIA_TYPE_MANIFEST,
};
use snapfs::store::{Lease, Record, Replace, Store};
use snapfs::sys::clock::Clock;

use crate::harness::image::name;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    /// As snapfs does it.
    Own(Compression),
    /// In one piece, as docker does it.
    Gzip,
    /// In one piece, without a checksum, as podman does it.
    Zstd,
}

pub(crate) const PACKINGS: [Packing; 5] = [
    Packing::Own(Compression::Zstd { level: 1 }),
    Packing::Own(Compression::Gzip),
    Packing::Own(Compression::None),
    Packing::Gzip,
    Packing::Zstd,
];

fn put(lease: &Lease, media_type: &str, bytes: &[u8]) -> Value {
    let (digest, size) = lease.put(bytes).unwrap();
    json!({ "mediaType": media_type, "digest": digest, "size": size })
}

pub(crate) fn put_layer(lease: &Lease, tar: &[u8], packing: Packing) -> Value {
    match packing {
        Packing::Own(compression) => {
            let mut writer = LayerWriter::new(lease.blob().unwrap(), compression).unwrap();
            writer.write_all(tar).unwrap();
            json!(writer.finish().unwrap().descriptor)
        }
        Packing::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::new(1));
            encoder.write_all(tar).unwrap();
            put(lease, MEDIA_TYPE_LAYER_GZIP, &encoder.finish().unwrap())
        }
        Packing::Zstd => put(lease, MEDIA_TYPE_LAYER_ZSTD, &zstd::stream::encode_all(tar, 1).unwrap()),
    }
}

/// Make an image of these tars, bottom first, and name it.
pub(super) fn make(store: &Store, to: &str, tars: &[impl AsRef<[u8]>], packing: Packing) {
    let lease = store.lease().unwrap();
    let layers: Vec<Value> = tars.iter().map(|tar| put_layer(&lease, tar.as_ref(), packing)).collect();
    let diff_ids: Vec<Digest> = tars.iter().map(|tar| Digest::of(tar.as_ref())).collect();
    finish(store, &lease, to, layers, &diff_ids);
}

/// Make an image of one blob that is taken as it is.
pub(super) fn make_of_blob(store: &Store, to: &str, blob: &[u8], tar: &[u8]) {
    let lease = store.lease().unwrap();
    let layer = put(&lease, MEDIA_TYPE_LAYER, blob);
    finish(store, &lease, to, vec![layer], &[Digest::of(tar)]);
}

fn finish(store: &Store, lease: &Lease, to: &str, layers: Vec<Value>, diff_ids: &[Digest]) {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(lease, MEDIA_TYPE_CONFIG, config.to_string().as_bytes());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MEDIA_TYPE_MANIFEST, "config": config, "layers": layers,
    });
    let manifest = put(lease, MEDIA_TYPE_MANIFEST, manifest.to_string().as_bytes());
    let record = Record::new(serde_json::from_value(manifest).unwrap(), Clock::fixed(1_700_000_000).unwrap().now());
    store.tag(lease, &name(to), record, Replace::Allowed).unwrap();
}
