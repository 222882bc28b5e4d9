//! The image specification's words: digests, names, annotations and descriptors.
//!
//! Structures come from `oci-spec`; what it lacks is here: three digests that cannot be mixed up ([`Digest`] of stored
//! bytes, [`DiffId`] of a layer's tar, [`ChainId`] of a stack of layers), an [`ImageName`] that is safe as a path, and
//! JSON whose bytes depend on the value alone.

pub mod annotation;
mod crc64;
mod digest;
mod reference;

pub use crc64::Crc64;
pub use digest::{ChainId, DiffId, Digest, Hasher, InvalidDigest};
pub use reference::{ImageName, InvalidName};

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// What a manifest, an index or a name says of a blob: image-spec `descriptor.md`, the three required properties and the
/// annotations.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The media type of the bytes, as the image specification spells it.
    pub media_type: String,
    /// SHA-256 of the stored bytes.
    pub digest: Digest,
    /// Length of the stored bytes.
    pub size: u64,
    /// What readers of such a blob want to know before they fetch it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Without annotations.
    pub fn new(media_type: impl Into<String>, digest: Digest, size: u64) -> Descriptor {
        Descriptor { media_type: media_type.into(), digest, size, annotations: BTreeMap::new() }
    }
}

/// `application/vnd.oci.image.manifest.v1+json`
pub const MEDIA_TYPE_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// `application/vnd.oci.image.config.v1+json`
pub const MEDIA_TYPE_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// `application/vnd.oci.image.index.v1+json`
pub const MEDIA_TYPE_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// A layer stored as it is.
pub const MEDIA_TYPE_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// A layer compressed with gzip.
pub const MEDIA_TYPE_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// A layer compressed with zstd.
pub const MEDIA_TYPE_LAYER_ZSTD: &str = "application/vnd.oci.image.layer.v1.tar+zstd";

/// JSON with sorted keys and no white space: the same value always gives the same bytes, hence the same digest.
///
/// `serde_json::Value` keeps objects in a `BTreeMap` (as long as nobody enables `preserve_order`; a test holds that),
/// so going through it sorts what `oci-spec` keeps in hash maps.
pub fn canonical_json<T: Serialize>(value: &T) -> serde_json::Result<Vec<u8>> {
    serde_json::to_vec(&serde_json::to_value(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashMap;

    #[test]
    fn canonical_json_sorts_what_a_hash_map_shuffles() {
        let map: HashMap<String, u32> = (0..64).map(|n| (format!("k{n:02}"), n)).collect();
        let bytes = canonical_json(&map).unwrap();
        let again: HashMap<String, u32> = (0..64).rev().map(|n| (format!("k{n:02}"), n)).collect();
        assert_eq!(bytes, canonical_json(&again).unwrap());
        assert!(bytes.starts_with(br#"{"k00":0,"k01":1"#));
    }
}
