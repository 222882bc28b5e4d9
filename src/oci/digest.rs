//! Three digests that are never mixed: of stored bytes, of a layer's tar, of a stack of layers.

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;
use std::fmt;
use std::io;
use std::str::FromStr;

/// A text that is not `sha256:` and 64 lower-case hexadecimal digits (image-spec `descriptor.md`, "Digests").
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a digest: expected \"sha256:\" and 64 lower-case hexadecimal digits")]
pub struct InvalidDigest {
    /// What was given, cut to a length that can be shown.
    pub text: String,
}

macro_rules! digest_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name([u8; 32]);

        impl $name {
            /// The digest of `bytes`.
            pub fn of(bytes: &[u8]) -> Self {
                Self(sha2::Sha256::digest(bytes).into())
            }

            /// The 32 bytes.
            pub fn as_bytes(&self) -> &[u8; 32] {
                &self.0
            }

            /// The 64 hexadecimal digits, without the algorithm.
            pub fn hex(&self) -> String {
                self.0.iter().map(|byte| format!("{byte:02x}")).collect()
            }
        }

        impl From<[u8; 32]> for $name {
            fn from(raw: [u8; 32]) -> Self {
                Self(raw)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "sha256:{}", self.hex())
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidDigest;

            fn from_str(text: &str) -> Result<Self, InvalidDigest> {
                parse(text).map(Self).ok_or_else(|| InvalidDigest { text: text.chars().take(100).collect() })
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

digest_type!(
    /// The digest of stored bytes: what names a blob.
    Digest
);
digest_type!(
    /// The digest of a layer's uncompressed tar: an entry of `rootfs.diff_ids`.
    DiffId
);
digest_type!(
    /// The identity of a stack of layers (image-spec `config.md`, "Layer ChainID").
    ChainId
);

impl Digest {
    /// The same bytes as a layer's tar: what a blob that is not compressed has for a DiffID.
    pub fn as_diff_id(&self) -> DiffId {
        DiffId(self.0)
    }
}

impl ChainId {
    /// The chain of `diff_ids`, bottom first; `None` for no layers.
    pub fn of_layers(diff_ids: &[DiffId]) -> Option<ChainId> {
        let (first, rest) = diff_ids.split_first()?;
        Some(rest.iter().fold(ChainId(first.0), |chain, diff_id| ChainId::of(format!("{chain} {diff_id}").as_bytes())))
    }
}

fn parse(text: &str) -> Option<[u8; 32]> {
    let hex = text.strip_prefix("sha256:")?.as_bytes();
    if hex.len() != 64 {
        return None;
    }
    let mut raw = [0; 32];
    for (byte, pair) in raw.iter_mut().zip(hex.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(raw)
}

fn nibble(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

/// SHA-256 of what passes through, with its length.
#[derive(Clone, Default)]
pub struct Hasher {
    state: sha2::Sha256,
    length: u64,
}

impl fmt::Debug for Hasher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hasher").field("length", &self.length).finish_non_exhaustive()
    }
}

impl Hasher {
    /// A hasher that has seen nothing.
    pub fn new() -> Hasher {
        Hasher::default()
    }

    /// Take in `bytes`.
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.length += bytes.len() as u64;
    }

    /// How many bytes were taken in.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The digest of stored bytes.
    pub fn digest(self) -> Digest {
        Digest(self.state.finalize().into())
    }

    /// The digest of a layer's tar.
    pub fn diff_id(self) -> DiffId {
        DiffId(self.state.finalize().into())
    }
}

impl io::Write for Hasher {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn text_round_trip() {
        assert_eq!(Digest::of(b"").to_string(), EMPTY);
        assert_eq!(EMPTY.parse::<Digest>().unwrap(), Digest::of(b""));
    }

    #[test]
    fn refuses_what_is_not_a_digest() {
        let upper = EMPTY.to_uppercase();
        let paths =
            ["", "sha256:", "sha256:../../../etc/passwd", "sha512:00", &upper, &EMPTY[..70], &format!("{EMPTY}0")];
        for text in paths {
            assert!(text.parse::<Digest>().is_err(), "{text}");
        }
    }

    #[test]
    fn chain_id_follows_the_specification() {
        let (a, b) = (DiffId::of(b"a"), DiffId::of(b"b"));
        assert_eq!(ChainId::of_layers(&[]), None);
        assert_eq!(ChainId::of_layers(&[a]).unwrap().to_string(), a.to_string());
        let both = ChainId::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of_layers(&[a, b]), Some(both));
    }

    #[test]
    fn hasher_equals_the_whole() {
        let mut hasher = Hasher::new();
        hasher.update(b"ab");
        hasher.update(b"c");
        assert_eq!(hasher.length(), 3);
        assert_eq!(hasher.digest(), Digest::of(b"abc"));
    }
}
