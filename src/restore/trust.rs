//! Which images may start processes: those of this store's own snapshots, and those that root named.
//!
//! A checkpoint is the memory of processes and the rights that they had, so that to restore one is to run whatever its
//! maker chose, as root if he likes. A name says nothing, and neither do annotations: what counts is the digest of the
//! manifest, from which all else of the image follows. The store notes which manifests its own snapshots made; nothing that
//! is imported or pulled can have that note, unless it is the very same image.

use crate::oci::Digest;
use crate::store::{Record, Store};

/// The label on an image's name by which root trusts an image from elsewhere. Its value is the digest of the manifest: when
/// the name moves to another image, that one is not trusted.
pub const LABEL: &str = "io.snapfs.trust";

/// Where an image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    /// A snapshot of this store made it: what it says of its container is what the container had on this host.
    Here,
    /// It came from elsewhere, and root trusts it to run; what it says of the host is not believed.
    Elsewhere,
}

/// Where the image of that manifest comes from, if it may start processes under the name that has this record.
pub(super) fn judge(store: &Store, record: &Record, manifest: &Digest) -> Option<Origin> {
    if store.is_made_here(manifest) {
        return Some(Origin::Here);
    }
    let named = record.labels.get(LABEL).map(|value| value.trim());
    (named == Some(manifest.to_string().as_str())).then_some(Origin::Elsewhere)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, MEDIA_TYPE_MANIFEST};
    use crate::store::Replace;
    use jiff::Timestamp;

    #[test]
    fn only_a_note_of_the_store_and_the_digest_itself_count() {
        let place = tempfile::tempdir().unwrap();
        let store = Store::open_dir(place.path()).unwrap();
        let lease = store.lease().unwrap();
        let (config, size) = lease.put(b"{}").unwrap();
        let manifest = |n: u32| {
            let text = format!(
                r#"{{"schemaVersion":2,"config":{{"mediaType":"application/vnd.oci.image.config.v1+json","digest":"{config}","size":{size}}},"layers":[],"annotations":{{"n":"{n}","io.snapfs.kind":"checkpoint"}}}}"#
            );
            let (digest, size) = lease.put(text.as_bytes()).unwrap();
            Descriptor::new(MEDIA_TYPE_MANIFEST, digest, size)
        };
        let (ours, theirs) = (manifest(1), manifest(2));
        let at = Timestamp::from_second(1_700_000_000).unwrap();
        let own = Record { made_here: true, kind: Some("checkpoint".to_owned()), ..Record::new(ours.clone(), at) };
        store.tag(&lease, &"own".parse().unwrap(), own, Replace::Refused).unwrap();
        // Whatever it is called, and whatever is said of it.
        let mut other = Record { kind: Some("checkpoint".to_owned()), ..Record::new(theirs.clone(), at) };
        assert_eq!(judge(&store, &other, &theirs.digest), None);
        for value in ["yes", "", "sha256:", &ours.digest.to_string()] {
            other.labels.insert(LABEL.to_owned(), value.to_owned());
            assert_eq!(judge(&store, &other, &theirs.digest), None, "{value}");
        }
        other.labels.insert(LABEL.to_owned(), format!("{}\n", theirs.digest));
        assert_eq!(judge(&store, &other, &theirs.digest), Some(Origin::Elsewhere));
        // The same image that came back under another name.
        assert_eq!(judge(&store, &Record::new(ours.clone(), at), &ours.digest), Some(Origin::Here));
        // A note survives a restart, and goes with the name.
        drop(lease);
        drop(store);
        let store = Store::open_dir(place.path()).unwrap();
        assert!(store.is_made_here(&ours.digest) && !store.is_made_here(&theirs.digest));
        store.remove(&"own".parse().unwrap()).unwrap();
        assert!(!store.is_made_here(&ours.digest));
    }
}
