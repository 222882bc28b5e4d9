//! What an operation holds while it makes an image: a directory for its unfinished files, and the blobs that garbage
//! collection must leave alone.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::oci::Digest;
use crate::store::blob::BlobWriter;
use crate::store::spool::Spool;
use crate::store::{Error, Inner, Store, layout};

/// The digests that are held, by how many.
#[derive(Debug, Default)]
pub(crate) struct Pins(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    counts: HashMap<Digest, usize>,
    /// While a collection runs: all that was held at any time since it began. An operation that pins, names and lets
    /// go within that time is unknown to the collection's list of names.
    since_collection: Option<HashSet<Digest>>,
}

impl Pins {
    pub(crate) fn pin(&self, digest: Digest) {
        let mut held = self.0.lock();
        *held.counts.entry(digest).or_default() += 1;
        if let Some(kept) = &mut held.since_collection {
            kept.insert(digest);
        }
    }

    pub(crate) fn is_held(&self, digest: &Digest) -> bool {
        self.0.lock().counts.contains_key(digest)
    }

    fn unpin(&self, digest: &Digest) {
        let mut held = self.0.lock();
        if let Some(count) = held.counts.get_mut(digest) {
            *count -= 1;
            if *count == 0 {
                held.counts.remove(digest);
            }
        }
    }

    /// Begin to remember what is held, until the result is dropped. One collection runs at a time.
    pub(crate) fn begin_collection(&self) -> Collecting<'_> {
        let mut held = self.0.lock();
        held.since_collection = Some(held.counts.keys().copied().collect());
        Collecting(self)
    }
}

/// A collection is running.
#[derive(Debug)]
pub(crate) struct Collecting<'pins>(&'pins Pins);

impl Collecting<'_> {
    /// Do `remove` unless the digest was held since the collection began; nobody can pin it meanwhile.
    pub(crate) fn unless_held<T>(&self, digest: &Digest, remove: impl FnOnce() -> T) -> Option<T> {
        let held = self.0.0.lock();
        let is_held = held.since_collection.as_ref().is_some_and(|kept| kept.contains(digest));
        (!is_held).then(remove)
    }
}

impl Drop for Collecting<'_> {
    fn drop(&mut self) {
        self.0.0.lock().since_collection = None;
    }
}

/// Permission to add to the store. What was written or adopted under it is safe from garbage collection until it and
/// its writers are dropped; what was not finished by then is removed.
pub struct Lease(Arc<Hold>);

/// A lease's substance, which its writers share.
pub(crate) struct Hold {
    inner: Arc<Inner>,
    directory: PathBuf,
    files: AtomicU64,
    pinned: Mutex<Vec<Digest>>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.0.directory).finish()
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Hold").field(&self.directory).finish()
    }
}

impl Store {
    /// Begin to add to the store.
    ///
    /// Errors: the disk is full, fails, or has failed before.
    pub fn lease(&self) -> Result<Lease, Error> {
        self.0.disk.require_writable()?;
        Inner::lease(&self.0)
    }
}

impl Inner {
    /// A lease even after the disk has failed: taking a change back needs one.
    pub(crate) fn lease(inner: &Arc<Inner>) -> Result<Lease, Error> {
        loop {
            let n = inner.leases.fetch_add(1, Ordering::Relaxed);
            let directory = layout::stage(&inner.boot_id, n);
            // A directory that an earlier daemon left and this one could not remove keeps its number.
            if inner.disk.make_dir(&directory)? {
                let hold = Hold {
                    inner: Arc::clone(inner),
                    directory,
                    files: AtomicU64::new(0),
                    pinned: Mutex::new(Vec::new()),
                };
                return Ok(Lease(Arc::new(hold)));
            }
        }
    }
}

impl Lease {
    /// Begin a new blob.
    pub fn blob(&self) -> Result<BlobWriter, Error> {
        BlobWriter::create(&self.0)
    }

    /// Store `bytes` as a blob; returns its digest and length.
    pub fn put(&self, bytes: &[u8]) -> Result<(Digest, u64), Error> {
        let mut blob = self.blob()?;
        // A failure stays with the writer, and finish tells it with the file's name.
        let _ = blob.write_all(bytes);
        blob.finish()
    }

    /// Hold a blob that may exist; returns its length in bytes if it does.
    ///
    /// It is held before the look, so a blob that was found stays.
    pub fn adopt(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        self.0.pin(*digest);
        self.0.inner.blob_size(digest)
    }

    /// Begin a file for what is needed no longer than the lease, and is not durable.
    pub fn spool(&self) -> Result<Spool, Error> {
        Spool::create(&self.0)
    }

    /// A new directory for a program that leaves files: its path on the host. It and they go with the lease.
    ///
    /// Errors: the disk is full or fails.
    pub fn room(&self) -> Result<PathBuf, Error> {
        let path = self.0.new_path();
        self.0.inner.disk.make_dir(&path)?;
        Ok(self.0.inner.disk.full(&path))
    }

    /// Write a file into the lease's directory and make its bytes durable.
    pub(crate) fn stage(&self, bytes: &[u8]) -> Result<PathBuf, Error> {
        let path = self.0.new_path();
        self.0.inner.disk.write_synced(&path, bytes)?;
        Ok(path)
    }

    /// Write a file into the lease's directory, for what may be lost.
    pub(crate) fn stage_unsynced(&self, bytes: &[u8]) -> Result<PathBuf, Error> {
        let path = self.0.new_path();
        self.0.inner.disk.write(&path, bytes)?;
        Ok(path)
    }

    /// Whether the lease is of this store.
    pub(crate) fn is_of(&self, inner: &Arc<Inner>) -> bool {
        Arc::ptr_eq(&self.0.inner, inner)
    }
}

impl Hold {
    pub(crate) fn inner(&self) -> &Inner {
        &self.inner
    }

    pub(crate) fn pin(&self, digest: Digest) {
        self.inner.pins.pin(digest);
        self.pinned.lock().push(digest);
    }

    /// A path in the lease's directory that was not given before.
    pub(crate) fn new_path(&self) -> PathBuf {
        self.directory.join(self.files.fetch_add(1, Ordering::Relaxed).to_string())
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // What stays behind because the disk fails is removed at the next start.
        let _ = self.inner.disk.remove_tree(&self.directory);
        for digest in self.pinned.lock().iter() {
            self.inner.pins.unpin(digest);
        }
    }
}
