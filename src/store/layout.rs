//! Every path of a store and its format version; pure.
//!
//! Paths are relative to the store's directory.

use std::path::{Path, PathBuf};

use crate::oci::{Digest, ImageName};

/// The format that this program writes.
pub(crate) const VERSION: u64 = 1;
/// The store's directory itself.
pub(crate) const ROOT: &str = ".";
/// Holds the format's version.
pub(crate) const VERSION_FILE: &str = "version";
/// The longest version file, in bytes.
pub(crate) const VERSION_LIMIT: u64 = 64;
/// Locked while a daemon has the store; holds its process id.
pub(crate) const LOCK_FILE: &str = "lock";
/// Blobs, named by their digest.
pub(crate) const BLOBS: &str = "blobs/sha256";
/// One record for every image name.
pub(crate) const NAMES: &str = "names";
/// The policy by which names are removed.
pub(crate) const RETENTION: &str = "retention";
/// Unfinished files, one directory for every lease.
pub(crate) const STAGE: &str = "stage";
/// Facts that can be found out again.
pub(crate) const CACHE: &str = "cache";
/// What could not be read, kept for a person to look at.
pub(crate) const QUARANTINE: &str = "quarantine";
/// Containers that a restore made: not the store's own, and not made by it.
pub(crate) const CONTAINERS: &str = "containers";
/// Images unpacked for them.
pub(crate) const ROOTS: &str = "roots";
/// The directories of a store, parents first.
pub(crate) const DIRECTORIES: [&str; 6] = ["blobs", BLOBS, NAMES, STAGE, CACHE, QUARANTINE];

/// The content of the version file.
pub(crate) fn version_line(version: u64) -> String {
    format!("snapfs-store {version}\n")
}

/// The version that a version file tells.
pub(crate) fn parse_version(bytes: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(bytes).ok()?.strip_prefix("snapfs-store ")?.strip_suffix('\n')?;
    digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok())?
}

/// Whether a name at the top of a directory may be there before the store is: ours from a first start that was cut
/// short, or what mkfs makes.
pub(crate) fn is_expected_at_top(name: &str) -> bool {
    let own = [VERSION_FILE, LOCK_FILE, "blobs", NAMES, RETENTION, STAGE, CACHE, QUARANTINE, CONTAINERS, ROOTS];
    own.contains(&name) || name == "lost+found"
}

/// Where a blob is.
pub(crate) fn blob(digest: &Digest) -> PathBuf {
    Path::new(BLOBS).join(digest.hex())
}

/// The digest that a file name in the blob directory tells.
pub(crate) fn blob_digest(file_name: &str) -> Option<Digest> {
    format!("sha256:{file_name}").parse().ok()
}

/// Where a name's record is.
pub(crate) fn record(name: &ImageName) -> PathBuf {
    Path::new(NAMES).join(name.as_str())
}

/// The directory of a lease: the `n`-th of the daemon's life.
pub(crate) fn stage(boot_id: &str, n: u64) -> PathBuf {
    Path::new(STAGE).join(format!("{boot_id}-{n}"))
}

/// Where a fact is; `None` if a word cannot be a file name.
pub(crate) fn fact(kind: &str, key: &str) -> Option<PathBuf> {
    let fits = |word: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | ':');
        !word.is_empty() && word.len() <= 255 && !word.starts_with('.') && word.chars().all(allowed)
    };
    (fits(kind) && fits(key)).then(|| Path::new(CACHE).join(kind).join(key))
}

/// The kind of facts about blobs.
pub(crate) const ABOUT: &str = "about";

/// The key of a fact about a blob: it says which one, so that the fact need not be read to know whether it is of use.
pub(crate) fn about(key: &str, digest: &Digest) -> String {
    format!("{key}.{}", digest.hex())
}

/// The key and the digest that such a key is made of.
pub(crate) fn parse_about(file_name: &str) -> Option<(String, Digest)> {
    let (key, hex) = file_name.rsplit_once('.')?;
    Some((key.to_owned(), blob_digest(hex)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_strictly() {
        assert_eq!(parse_version(version_line(VERSION).as_bytes()), Some(VERSION));
        assert_eq!(parse_version(b"snapfs-store 27\n"), Some(27));
        for bad in
            [&b""[..], b"snapfs-store 1", b"snapfs-store \n", b"snapfs-store +1\n", b"snapfs-store 1\n\n", b"\0\0\0"]
        {
            assert_eq!(parse_version(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn facts_stay_in_the_cache() {
        assert_eq!(fact("diff-id", "sha256:00").unwrap(), Path::new("cache/diff-id/sha256:00"));
        for (kind, key) in
            [("", "k"), ("k", ""), ("..", "k"), ("k", ".."), ("k", "a/b"), ("k", ".hidden"), ("k", "a\n")]
        {
            assert_eq!(fact(kind, key), None, "{kind:?} {key:?}");
        }
    }
}
