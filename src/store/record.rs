//! What the store knows of an image name, and the check line that tells a whole file from a damaged one.

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::oci::{Descriptor, Digest, canonical_json};

/// The longest record file, in bytes: a generous number of labels, and no burden for a listing.
pub const RECORD_LIMIT: u64 = 1 << 20;

/// What an image name stands for. The name itself is not in it: it is the file's path, so that a rename is one step.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// The image's manifest or index.
    pub manifest: Descriptor,
    /// When the name was given to the image.
    #[serde(with = "rfc3339")]
    pub created: Timestamp,
    /// `commit`, `checkpoint`, or nothing for an image that came from elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// The manifest of the image that it stands on and does not hold itself: a checkpoint's files are the difference to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<Descriptor>,
    /// The index of the same checkpoint for containerd.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub containerd: Option<Descriptor>,
    /// A snapshot of this store's made the image: nothing that the image says of itself can have this set.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub made_here: bool,
    /// The operator's labels on the name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Set by [`Store::tag`](crate::store::Store::tag), and higher every time: two records of one name differ in it
    /// even if the image is the same.
    #[serde(default)]
    pub generation: u64,
}

impl Record {
    /// The images that the name keeps: its own, the one below, and its other form.
    pub(crate) fn images(&self) -> impl Iterator<Item = &Descriptor> {
        [&self.manifest].into_iter().chain(&self.base).chain(&self.containerd)
    }

    /// A record without kind and labels.
    pub fn new(manifest: Descriptor, created: Timestamp) -> Record {
        let labels = BTreeMap::new();
        Record { manifest, created, kind: None, base: None, containerd: None, made_here: false, labels, generation: 0 }
    }

    /// The bytes of a record file.
    pub(crate) fn encode(&self) -> serde_json::Result<Vec<u8>> {
        Ok(seal(&canonical_json(self)?))
    }

    /// The record in a record file's bytes, or what is wrong with them.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Record, String> {
        let rest = unseal(bytes).ok_or("its check line does not fit the rest of it")?;
        serde_json::from_slice(rest).map_err(|error| error.to_string())
    }
}

/// `content` below the line `sha256:<hex of the content>`.
pub(crate) fn seal(content: &[u8]) -> Vec<u8> {
    let mut bytes = format!("{}\n", Digest::of(content)).into_bytes();
    bytes.extend_from_slice(content);
    bytes
}

/// What [`seal`] was given; `None` if the bytes are not those that it made.
pub(crate) fn unseal(bytes: &[u8]) -> Option<&[u8]> {
    let line_end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (line, content) = (&bytes[..line_end], &bytes[line_end + 1..]);
    let digest: Digest = std::str::from_utf8(line).ok()?.parse().ok()?;
    (digest == Digest::of(content)).then_some(content)
}

mod rfc3339 {
    use jiff::Timestamp;
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(at)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MEDIA_TYPE_MANIFEST;
    use proptest::prelude::*;

    fn record() -> Record {
        let manifest = Descriptor::new(MEDIA_TYPE_MANIFEST, Digest::of(b"m"), 1);
        let mut record = Record::new(manifest, Timestamp::from_second(1_700_000_000).unwrap());
        record.labels.insert("key".to_owned(), "a\nb \u{1f980}".to_owned());
        record
    }

    #[test]
    fn the_bytes_are_fixed() {
        let text = String::from_utf8(record().encode().unwrap()).unwrap();
        let (line, json) = text.split_once('\n').unwrap();
        assert_eq!(line, Digest::of(json.as_bytes()).to_string());
        assert_eq!(
            json,
            concat!(
                r#"{"created":"2023-11-14T22:13:20Z","generation":0,"labels":{"key":"a\nb 🦀"},"manifest":{"digest":"#,
                r#""sha256:62c66a7a5dd70c3146618063c344e531e6d4b59e379808443ce962b3abd63c5a","mediaType":"#,
                r#""application/vnd.oci.image.manifest.v1+json","size":1}}"#
            )
        );
    }

    #[test]
    fn a_sealed_record_must_also_be_one() {
        for json in ["", "{}", "[]", "{\"created\":\"yesterday\"}"] {
            assert!(Record::decode(&seal(json.as_bytes())).is_err(), "{json}");
        }
    }

    proptest! {
        #[test]
        fn every_changed_bit_is_noticed(at in 0usize..300, bit in 0u8..8) {
            let mut bytes = record().encode().unwrap();
            prop_assert_eq!(Record::decode(&bytes).unwrap(), record());
            let at = at % bytes.len();
            bytes[at] ^= 1 << bit;
            prop_assert!(Record::decode(&bytes).is_err());
            bytes.truncate(at);
            prop_assert!(Record::decode(&bytes).is_err());
        }
    }
}
