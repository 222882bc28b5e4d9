//! What is kept on the disk beside the store's blobs to save work: indexes, layers made seekable, large files. All of it
//! can be made again; together it is no larger than the mount option `cache=` allows.

use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;

use parking_lot::Mutex;

use crate::store::{Spool, Store};
use crate::view::lru::Lru;

/// The directory, in the store's `cache/`, and what is in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Shelf {
    /// `<blob>`: a layer's index.
    Index,
    /// `<blob>`: a layer that its own blob cannot be read from at any place.
    Seekable,
    /// `<blob>-<offset>-<digest>`: a file's content.
    Content,
}

impl Shelf {
    const ALL: [Shelf; 3] = [Shelf::Index, Shelf::Seekable, Shelf::Content];

    fn name(self) -> &'static str {
        match self {
            Shelf::Index => "index",
            Shelf::Seekable => "seekable",
            Shelf::Content => "content",
        }
    }
}

/// The cache of a mount.
#[derive(Debug)]
pub(crate) struct Kept {
    store: Store,
    limit: u64,
    /// Filled when it is first asked, since a daemon starts before anybody looks into an image.
    files: OnceLock<Mutex<Lru<(Shelf, String), Facts>>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Facts {
    /// The name, if it is longer than the key.
    name: String,
    size: u64,
    /// Whether this daemon wrote or hashed it.
    is_verified: bool,
}

/// A large file's content that was kept by an earlier daemon, and is not hashed yet.
#[derive(Debug)]
pub(crate) struct Unverified {
    pub(crate) file: File,
    pub(crate) digest: String,
}

impl Kept {
    pub(crate) fn new(store: Store, limit: u64) -> Kept {
        Kept { store, limit, files: OnceLock::new() }
    }

    fn files(&self) -> &Mutex<Lru<(Shelf, String), Facts>> {
        self.files.get_or_init(|| {
            let mut files = Lru::new(self.limit);
            for shelf in Shelf::ALL {
                for (name, size) in self.store.kept(shelf.name()) {
                    let key = key(shelf, &name).to_owned();
                    for ((shelf, _), facts) in
                        files.insert((shelf, key), Facts { name, size, is_verified: false }, size)
                    {
                        self.store.forget(shelf.name(), &facts.name);
                    }
                }
            }
            Mutex::new(files)
        })
    }

    /// Whether a file of so many bytes would be kept.
    pub(crate) fn takes(&self, size: u64) -> bool {
        size <= self.limit
    }

    /// The bytes of a file of at most `limit` bytes.
    pub(crate) fn read(&self, shelf: Shelf, key: &str, limit: u64) -> Option<Vec<u8>> {
        let mut file = self.open(shelf, key)?;
        let size = file.metadata().ok()?.len();
        if size > limit {
            return None;
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).ok()?);
        file.read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    pub(crate) fn open(&self, shelf: Shelf, key: &str) -> Option<File> {
        let facts = self.files().lock().find(&(shelf, key.to_owned()))?;
        self.store.open_kept(shelf.name(), &facts.name)
    }

    /// The content of a large file, if it need not be hashed again.
    pub(crate) fn open_content(&self, key: &str, size: u64) -> Option<File> {
        let facts = self.files().lock().find(&(Shelf::Content, key.to_owned()))?;
        let file = self.store.open_kept(Shelf::Content.name(), &facts.name)?;
        (facts.is_verified && file.metadata().is_ok_and(|metadata| metadata.len() == size)).then_some(file)
    }

    /// The content of a large file, as an earlier daemon left it.
    pub(crate) fn open_unverified(&self, key: &str) -> Option<Unverified> {
        let facts = self.files().lock().find(&(Shelf::Content, key.to_owned()))?;
        let file = self.store.open_kept(Shelf::Content.name(), &facts.name)?;
        let digest = facts.name.rsplit('-').next()?.to_owned();
        Some(Unverified { file, digest })
    }

    /// It was hashed and found whole.
    pub(crate) fn verified(&self, key: &str) {
        let key = (Shelf::Content, key.to_owned());
        let mut files = self.files().lock();
        if let Some(facts) = files.find(&key) {
            let size = facts.size;
            files.insert(key, Facts { is_verified: true, ..facts }, size);
        }
    }

    /// Keep a file under `name`, which begins with its key; what was used longest ago makes room. One that is larger than
    /// the whole cache is not kept.
    pub(crate) fn keep(&self, spool: &Spool, shelf: Shelf, name: &str, size: u64) {
        if !self.takes(size) {
            return;
        }
        let mut files = self.files().lock();
        if let Err(error) = self.store.keep(spool, shelf.name(), name) {
            log::warn!("the cache does not take {name}: {error}");
            return;
        }
        let facts = Facts { name: name.to_owned(), size, is_verified: true };
        for ((shelf, _), gone) in files.insert((shelf, key(shelf, name).to_owned()), facts, size) {
            if gone.name != name {
                self.store.forget(shelf.name(), &gone.name);
            }
        }
    }

    /// Remove what turned out to be damaged.
    pub(crate) fn forget(&self, shelf: Shelf, key: &str) {
        if let Some(facts) = self.files().lock().remove(&(shelf, key.to_owned())) {
            self.store.forget(shelf.name(), &facts.name);
        }
    }
}

/// What a file is asked for by: all of its name, but for the digest of a content.
fn key(shelf: Shelf, name: &str) -> &str {
    match shelf {
        Shelf::Content => name.rsplit_once('-').map_or(name, |(key, _)| key),
        Shelf::Index | Shelf::Seekable => name,
    }
}
