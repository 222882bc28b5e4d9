//! JSON that every reader reads in the same way.
//!
//! Where a key stands twice some readers take the first value and some the last, and Go's takes a key in any case for
//! the one it knows. An image must not look different to those who check it and those who run it (CVE-2021-41190).

use std::collections::BTreeSet;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The documents' keys that decide what an image is; in another case they must not appear.
const KNOWN: [&str; 15] = [
    "schemaVersion",
    "mediaType",
    "manifests",
    "config",
    "layers",
    "digest",
    "size",
    "platform",
    "annotations",
    "rootfs",
    "diff_ids",
    "Config",
    "RepoTags",
    "Layers",
    "history",
];

/// Objects whose keys are the user's, in which case says something.
const FREE: [&str; 5] = ["annotations", "Labels", "labels", "LayerSources", "Volumes"];

/// A document in which no object has a key twice.
pub(super) fn parse(bytes: &[u8]) -> Result<Value, String> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    Once.deserialize(&mut reader).and_then(|()| reader.end()).map_err(|error| error.to_string())?;
    serde_json::from_slice(bytes).map_err(|error| error.to_string())
}

/// A document that says what an image consists of: besides, no key is spelled like one that we know but for its case.
pub(super) fn parse_document(bytes: &[u8]) -> Result<Value, String> {
    let value = parse(bytes)?;
    check_case(&value)?;
    Ok(value)
}

fn check_case(value: &Value) -> Result<(), String> {
    match value {
        Value::Array(values) => values.iter().try_for_each(check_case),
        Value::Object(object) => {
            let mut folded = BTreeSet::new();
            for (key, value) in object {
                let other = KNOWN.iter().find(|known| known.eq_ignore_ascii_case(key) && *known != key);
                // docker's manifest.json has Config and Layers where the specification has config and layers.
                let is_either = KNOWN.contains(&key.as_str());
                if (other.is_some() && !is_either) || !folded.insert(key.to_ascii_lowercase()) {
                    return Err(format!("the key {key:?} can be taken for another"));
                }
                if !FREE.contains(&key.as_str()) {
                    check_case(value)?;
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

/// Reads everything and keeps nothing but the keys of the objects it is in.
struct Once;

impl<'de> DeserializeSeed<'de> for Once {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut values: A) -> Result<(), A::Error> {
        while values.next_element_seed(Once)?.is_some() {}
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut keys = BTreeSet::new();
        while let Some(key) = entries.next_key::<String>()? {
            if keys.contains(&key) {
                return Err(de::Error::custom(format!("the key {key:?} stands twice in one object")));
            }
            keys.insert(key);
            entries.next_value_seed(Once)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        let twice =
            [r#"{"layers":[1],"layers":[2]}"#, r#"{"a":[{"b":1,"b":1}]}"#, r#"{"a":1} {"a":1}"#, "\u{feff}{}", "{"];
        for text in twice {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
        let folded = [r#"{"Manifests":[]}"#, r#"{"layers":[1],"Layers":[2]}"#, r#"{"config":{"DIGEST":1}}"#];
        for text in folded {
            assert!(parse(text.as_bytes()).is_ok(), "{text}");
            assert!(parse_document(text.as_bytes()).is_err(), "{text}");
        }
    }

    #[test]
    fn what_tools_write_is_read() {
        let docker = br#"[{"Config":"a.json","RepoTags":["x:1"],"Layers":["b.tar"]}]"#;
        assert_eq!(parse_document(docker).unwrap()[0]["RepoTags"][0], "x:1");
        let labels = br#"{"config":{"Labels":{"A":"1","a":"2","Size":"x"}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        assert!(parse_document(labels).is_ok());
    }
}
