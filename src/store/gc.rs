//! Garbage collection: blobs that no name leads to and nobody holds.

use std::collections::HashSet;
use std::hash::Hash;
use std::path::{Path, PathBuf};

use crate::oci::Digest;
use crate::store::backend::{DirBackend, FileKind};
use crate::store::disk::Disk;
use crate::store::document::{DOCUMENT_LIMIT, children, is_document, spelled_digests};
use crate::store::record::RECORD_LIMIT;
use crate::store::{Change, Error, Store, layout};

/// What a collection removed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Collected {
    /// How many blobs.
    pub blobs: u64,
    /// Their length together.
    pub bytes: u64,
}

/// A blob to reach, and the type under which to read it; `None` for a leaf.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Node {
    digest: Digest,
    reading: Reading,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Reading {
    /// It names no other blob.
    Leaf,
    /// A manifest or index of this media type.
    Document(String),
    /// Something spelled it in a file that is damaged: it may be anything, so what it spells is kept as well.
    Unknown,
}

/// All that `roots` lead to, themselves included.
fn mark<T: Clone + Eq + Hash, E>(
    roots: impl IntoIterator<Item = T>,
    mut refs: impl FnMut(&T) -> Result<Vec<T>, E>,
) -> Result<HashSet<T>, E> {
    let mut marked = HashSet::new();
    let mut open: Vec<T> = roots.into_iter().collect();
    while let Some(node) = open.pop() {
        if marked.insert(node.clone()) {
            open.extend(refs(&node)?);
        }
    }
    Ok(marked)
}

impl Store {
    /// [`open_dir`](Self::open_dir) for a directory that must be there: a mistyped path makes no store.
    pub fn open_existing(place: &Path) -> Result<Store, Error> {
        DirBackend::open_unlocked(place)?;
        Store::open_dir(place)
    }

    /// Remove every blob that no name leads to and no lease holds. What a damaged file still spells counts as needed.
    ///
    /// Open blobs can be read to their end. Errors: a document or a record could not be read, and then nothing is
    /// removed; or the disk fails.
    pub fn gc(&self) -> Result<Collected, Error> {
        let inner = &self.0;
        inner.disk.require_writable()?;
        let _one_at_a_time = inner.collection.lock();
        if let Some(path) = &inner.unread {
            return Err(Error::Unread { path: path.clone() });
        }
        // The order matters: a name that is missing in the list below was given later, by a lease that holds all its
        // blobs and that `collecting` remembers.
        let collecting = inner.pins.begin_collection();
        let names = self.names();
        let images = names.values().flat_map(|record| record.images());
        let named = images.map(|manifest| Node::of(manifest.digest, &manifest.media_type));
        let spelled = quarantined_records(&inner.disk)?;
        let marked = mark(named.chain(spelled), |node| refs(&inner.disk, node))?;
        let live: HashSet<Digest> = marked.into_iter().map(|node| node.digest).collect();

        let mut collected = Collected::default();
        for (file_name, kind) in inner.disk.list(Path::new(layout::BLOBS))? {
            let Some(digest) = file_name.to_str().and_then(layout::blob_digest) else { continue };
            if kind != FileKind::File || live.contains(&digest) {
                continue;
            }
            let size = inner.blob_size(&digest)?.unwrap_or(0);
            let removed = collecting.unless_held(&digest, || {
                inner.sound.lock().remove(&digest);
                inner.disk.remove_file(&layout::blob(&digest))
            });
            if let Some(result) = removed {
                result?;
                collected.blobs += 1;
                collected.bytes += size;
            }
        }
        if let Err(error) = self.forget_orphans() {
            log::debug!("facts about blobs that are gone stay: {error}");
        }
        inner.changed();
        inner.watch.tell(&Change::Collected { blobs: collected.blobs, bytes: collected.bytes });
        Ok(collected)
    }
}

impl Node {
    fn of(digest: Digest, media_type: &str) -> Node {
        let reading = if is_document(media_type) { Reading::Document(media_type.to_owned()) } else { Reading::Leaf };
        Node { digest, reading }
    }

    fn unknown(digest: Digest) -> Node {
        Node { digest, reading: Reading::Unknown }
    }
}

fn refs(disk: &Disk, node: &Node) -> Result<Vec<Node>, Error> {
    let media_type = match &node.reading {
        Reading::Leaf => return Ok(Vec::new()),
        Reading::Document(media_type) => Some(media_type),
        Reading::Unknown => None,
    };
    let bytes = match disk.read(&layout::blob(&node.digest), DOCUMENT_LIMIT) {
        Ok(Some(bytes)) => bytes,
        // Missing, or no document at all: nothing is left that could name a blob.
        Ok(None) | Err(Error::TooLarge { .. } | Error::Corrupt { .. }) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let sound = Digest::of(&bytes) == node.digest;
    match media_type.map(|media_type| children(&bytes, media_type)) {
        Some(Ok(needed)) if sound => Ok(needed.iter().map(|child| Node::of(child.digest, &child.media_type)).collect()),
        _ => Ok(spelled_digests(&bytes).into_iter().map(Node::unknown).collect()),
    }
}

/// What the records in quarantine spell: somebody may still mend and put them back.
fn quarantined_records(disk: &Disk) -> Result<Vec<Node>, Error> {
    let mut nodes = Vec::new();
    let mut open: Vec<PathBuf> = Vec::new();
    for (n, kind) in disk.list(Path::new(layout::QUARANTINE))? {
        let names = Path::new(layout::QUARANTINE).join(n).join(layout::NAMES);
        if kind == FileKind::Directory && matches!(disk.stat(&names)?, Some((FileKind::Directory, _))) {
            open.push(names);
        }
    }
    while let Some(directory) = open.pop() {
        for (name, kind) in disk.list(&directory)? {
            let path = directory.join(name);
            match kind {
                FileKind::Directory => open.push(path),
                FileKind::File => match disk.read(&path, RECORD_LIMIT) {
                    Ok(bytes) => {
                        nodes.extend(spelled_digests(&bytes.unwrap_or_default()).into_iter().map(Node::unknown))
                    }
                    Err(Error::TooLarge { .. }) => {}
                    Err(error) => return Err(error),
                },
                FileKind::Other => {}
            }
        }
    }
    Ok(nodes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::convert::Infallible;

    #[test]
    fn marks_in_one_run_what_can_be_reached_and_survives_a_circle() {
        let refs = |node: &u32| {
            Ok::<_, Infallible>(match node {
                1 => vec![2, 3],
                3 => vec![4],
                4 => vec![1],
                _ => vec![],
            })
        };
        let marked = mark([1, 7], refs).unwrap();
        assert_eq!(marked, HashSet::from([1, 2, 3, 4, 7]));
        assert_eq!(mark([1], |_| Err::<Vec<u32>, _>("unreadable")), Err("unreadable"));
    }

    proptest! {
        /// Against the stupid way: repeat until nothing is added.
        #[test]
        fn marks_the_least_fixed_point(edges in prop::collection::vec((0u8..20, 0u8..20), 0..40), roots in prop::collection::vec(0u8..20, 0..4)) {
            let refs = |node: &u8| edges.iter().filter(|(from, _)| from == node).map(|(_, to)| *to).collect::<Vec<_>>();
            let marked = mark(roots.clone(), |node| Ok::<_, Infallible>(refs(node))).unwrap();
            let mut expected: HashSet<u8> = roots.into_iter().collect();
            for _ in 0..20 {
                expected.extend(expected.clone().iter().flat_map(refs));
            }
            prop_assert_eq!(marked, expected);
        }
    }
}
