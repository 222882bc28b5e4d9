//! Manifests and indexes, as far as the store must know them: which blobs they need; pure.

use serde::Deserialize;

use crate::oci::{Descriptor, Digest, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST};

/// The longest manifest, index or configuration that is read, in bytes: what registries agree to take
/// (distribution-spec, "Pushing Manifests").
pub const DOCUMENT_LIMIT: u64 = 4 << 20;

/// How deep indexes may nest below a name.
pub(crate) const DEEPEST: usize = 4;

const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Whether blobs of this type name other blobs. An index may also name things of any other type (image-spec
/// `image-index.md`): those are leaves.
pub(crate) fn is_document(media_type: &str) -> bool {
    [MEDIA_TYPE_MANIFEST, MEDIA_TYPE_INDEX, DOCKER_MANIFEST, DOCKER_INDEX].contains(&media_type)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// The blobs that a manifest or index of the given type needs, or why it is neither.
///
/// A document that could be read as both is refused: two readers would see two images (CVE-2021-41190). `subject` is
/// not among them: image-spec `manifest.md` lets it be absent.
pub(crate) fn children(bytes: &[u8], media_type: &str) -> Result<Vec<Descriptor>, String> {
    let document: Document = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if let Some(own) = document.media_type.filter(|own| own != media_type) {
        return Err(format!("it says that it is {own}, and what names it says {media_type}"));
    }
    let is_index = media_type == MEDIA_TYPE_INDEX || media_type == DOCKER_INDEX;
    match (document.manifests, document.config, document.layers) {
        (Some(manifests), None, None) if is_index => Ok(manifests),
        (None, Some(config), Some(layers)) if !is_index => Ok([config].into_iter().chain(layers).collect()),
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err("it is both a manifest and an index".to_owned()),
        _ => Err(format!("it lacks what {media_type} needs")),
    }
}

/// Every digest that the bytes spell, whatever else is wrong with them.
pub(crate) fn spelled_digests(bytes: &[u8]) -> Vec<Digest> {
    const LENGTH: usize = "sha256:".len() + 64;
    let starts = bytes.windows(LENGTH).filter(|window| window.starts_with(b"sha256:"));
    starts.filter_map(|window| std::str::from_utf8(window).ok()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn descriptor(media_type: &str, content: &[u8]) -> serde_json::Value {
        json!({ "mediaType": media_type, "digest": Digest::of(content), "size": content.len() })
    }

    #[test]
    fn names_what_is_needed() {
        let (config, layer) = (descriptor("c", b"config"), descriptor("l", b"layer"));
        let manifest =
            json!({ "schemaVersion": 2, "config": config, "layers": [layer], "subject": descriptor("s", b"s") });
        let found = children(manifest.to_string().as_bytes(), MEDIA_TYPE_MANIFEST).unwrap();
        let digests: Vec<Digest> = found.iter().map(|child| child.digest).collect();
        assert_eq!(digests, [Digest::of(b"config"), Digest::of(b"layer")]);
        let index = json!({ "mediaType": MEDIA_TYPE_INDEX, "manifests": [descriptor(MEDIA_TYPE_MANIFEST, b"m")] });
        assert_eq!(children(index.to_string().as_bytes(), MEDIA_TYPE_INDEX).unwrap().len(), 1);
    }

    #[test]
    fn refuses_what_two_readers_would_read_differently() {
        let (c, m) = (descriptor("c", b""), descriptor(MEDIA_TYPE_MANIFEST, b""));
        let both = json!({ "config": c, "layers": [], "manifests": [m] }).to_string();
        let other_type = json!({ "mediaType": MEDIA_TYPE_INDEX, "config": c, "layers": [] }).to_string();
        let index_as_manifest = json!({ "manifests": [m] }).to_string();
        let twice = format!(r#"{{"config":{c},"layers":[],"layers":[]}}"#);
        let trailing = format!(r#"{{"config":{c},"layers":[]}} {{}}"#);
        let escape =
            json!({ "config": { "mediaType": "c", "digest": "sha256:../../x", "size": 0 }, "layers": [] }).to_string();
        let negative =
            json!({ "config": { "mediaType": "c", "digest": Digest::of(b""), "size": -1 }, "layers": [] }).to_string();
        let no_layers = json!({ "config": c }).to_string();
        for text in [both, other_type, index_as_manifest, twice, trailing, escape, negative, no_layers, String::new()] {
            assert!(children(text.as_bytes(), MEDIA_TYPE_MANIFEST).is_err(), "{text}");
        }
    }

    #[test]
    fn digests_are_found_in_ruins() {
        let digest = Digest::of(b"x");
        let ruin = format!("\0\0{{\"digest\":\"{digest}\",\"other\":\"sha256:short{digest}");
        assert_eq!(spelled_digests(ruin.as_bytes()), [digest, digest]);
        assert_eq!(spelled_digests(b"sha256:"), []);
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = children(&bytes, MEDIA_TYPE_MANIFEST);
            let _ = spelled_digests(&bytes);
        }
    }
}
