//! Names on the disk: giving, moving and removing them. Each is one atomic step that is durable when it returns.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::oci::{Descriptor, ImageName};
use crate::store::blob::read_document;
use crate::store::disk::parent;
use crate::store::document::{DEEPEST, DOCUMENT_LIMIT, children, is_document};
use crate::store::record::{RECORD_LIMIT, Record};
use crate::store::{Change, Error, Inner, Lease, Store, layout};

/// Whether a name that stands for an image may move to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replace {
    /// The name moves.
    Allowed,
    /// The name must be new.
    Refused,
}

impl Store {
    /// Let `name` stand for the image of `record`, from now on and after a power cut. This is the commit point: before
    /// it nothing of the image can be seen, after it all of it can. Returns the record with its generation.
    ///
    /// The image's blobs are held by `lease`, which must be of this store, from here on.
    ///
    /// Errors: the image is incomplete or no image; the name is taken or in conflict; the disk is full or fails. The
    /// name then stands for what it stood for before.
    pub fn tag(
        &self,
        lease: &Lease,
        name: &ImageName,
        mut record: Record,
        replace: Replace,
    ) -> Result<Arc<Record>, Error> {
        let inner = &self.0;
        inner.disk.require_writable()?;
        debug_assert!(lease.is_of(inner), "a lease holds nothing in another store");
        for image in record.images() {
            inner.require_complete(lease, image)?;
        }
        // The order law: bytes were synced before their blob had a name; here the blobs' names; below the image's name.
        inner.disk.sync_dir(Path::new(layout::BLOBS))?;

        let mut turn = inner.turn.lock();
        inner.require_free(name, replace)?;
        record.generation = turn.generation + 1;
        let bytes = inner.encode(name, &record)?;
        let staged = lease.stage(&bytes)?;
        let path = layout::record(name);
        let made = inner.make_directories(name)?;
        if let Err(error) = inner.disk.rename(&staged, &path) {
            inner.prune(&made);
            return Err(error);
        }
        let record = Arc::new(record);
        turn.generation = record.generation;
        if let Err(error) = inner.disk.sync_dir(parent(&path)) {
            if Inner::put_back(inner, name).is_ok() {
                inner.prune(&made);
            } else {
                inner.names.write().insert(name.clone(), record);
            }
            return Err(error);
        }
        let replaced = self.record(name).is_some();
        inner.names.write().insert(name.clone(), Arc::clone(&record));
        inner.changed();
        let manifest = record.manifest.digest;
        inner.watch.tell(&Change::Named { name: name.clone(), manifest, replaced });
        Ok(record)
    }

    /// Whether an image could be given this name now; [`tag`](Self::tag) asks again.
    ///
    /// Errors: the name is taken, or in conflict.
    pub fn check_free(&self, name: &ImageName, replace: Replace) -> Result<(), Error> {
        self.0.require_free(name, replace)
    }

    /// Move a name: one atomic step, in which an image named `to` is replaced if that is allowed.
    ///
    /// Errors: there is no `from`, `to` is taken or in conflict, or the disk fails; then both stand for what they did.
    pub fn rename(&self, from: &ImageName, to: &ImageName, replace: Replace) -> Result<(), Error> {
        let inner = &self.0;
        inner.disk.require_writable()?;
        let _turn = inner.turn.lock();
        let record = self.record(from).ok_or_else(|| Error::NoSuchName { name: from.clone() })?;
        if from == to {
            return Ok(());
        }
        inner.require_free(to, replace)?;
        let replaced = self.record(to).is_some();
        let (old, new) = (layout::record(from), layout::record(to));
        let made = inner.make_directories(to)?;
        if let Err(error) = inner.disk.rename(&old, &new) {
            inner.prune(&made);
            return Err(error);
        }
        // Of the two directories the new name's comes first: better two names than none.
        let synced = inner.disk.sync_dir(parent(&new)).and_then(|()| match parent(&old) == parent(&new) {
            true => Ok(()),
            false => inner.disk.sync_dir(parent(&old)),
        });
        let take_back = || {
            // Each before the other goes, as far as the disk lets us: the directories were changed again, so these
            // syncs are no second tries.
            Inner::put_back(inner, from)?;
            let _ = inner.disk.sync_dir(parent(&old));
            Inner::put_back(inner, to)?;
            let _ = inner.disk.sync_dir(parent(&new));
            Ok::<(), Error>(())
        };
        let taken_back = synced.is_err() && take_back().is_ok();
        if taken_back {
            inner.prune(&made);
        } else {
            let vacated = {
                let mut names = inner.names.write();
                let vacated = names.remove(from);
                names.insert(to.clone(), record);
                vacated
            };
            inner.prune(&inner.still_empty(vacated));
            inner.changed();
            inner.watch.tell(&Change::Renamed { from: from.clone(), to: to.clone(), replaced });
        }
        synced
    }

    /// Remove a name. The blobs stay until they are collected.
    ///
    /// Errors: there is no such name, or the disk fails; then it is still there.
    pub fn remove(&self, name: &ImageName) -> Result<(), Error> {
        let inner = &self.0;
        inner.disk.require_writable()?;
        let _turn = inner.turn.lock();
        if self.record(name).is_none() {
            return Err(Error::NoSuchName { name: name.clone() });
        }
        let path = layout::record(name);
        inner.disk.remove_file(&path)?;
        let synced = inner.disk.sync_dir(parent(&path));
        if synced.is_ok() || Inner::put_back(inner, name).is_err() {
            let vacated = inner.names.write().remove(name);
            inner.prune(&inner.still_empty(vacated));
            inner.changed();
            inner.watch.tell(&Change::Removed { name: name.clone() });
        }
        synced
    }
}

impl Inner {
    /// Hold every blob of an image, and see that it is there with its size: what is named is complete.
    fn require_complete(&self, lease: &Lease, image: &Descriptor) -> Result<(), Error> {
        if !is_document(&image.media_type) {
            let reason = format!("its media type is {}", image.media_type);
            return Err(Error::Malformed { digest: image.digest, reason });
        }
        let mut open = vec![(image.clone(), 0)];
        while let Some((blob, depth)) = open.pop() {
            match lease.adopt(&blob.digest)? {
                None => return Err(Error::Incomplete { manifest: image.digest, missing: blob.digest }),
                Some(size) if size != blob.size => {
                    let reason = format!("it has {size} bytes instead of {}", blob.size);
                    return Err(Error::Corrupt { path: self.disk.full(&layout::blob(&blob.digest)), reason });
                }
                Some(_) => {}
            }
            if !is_document(&blob.media_type) {
                continue;
            }
            let malformed = |reason| Error::Malformed { digest: blob.digest, reason };
            if depth > DEEPEST {
                return Err(malformed(format!("it is more than {DEEPEST} indexes deep")));
            }
            let bytes = read_document(&self.disk, &blob, DOCUMENT_LIMIT)?;
            open.extend(
                children(&bytes, &blob.media_type).map_err(malformed)?.into_iter().map(|child| (child, depth + 1)),
            );
        }
        Ok(())
    }

    fn require_free(&self, name: &ImageName, replace: Replace) -> Result<(), Error> {
        let names = self.names.read();
        if let Some(conflict) = names.conflict(name) {
            return Err(Error::NameConflict { name: name.clone(), conflict });
        }
        match replace {
            Replace::Refused if names.get(name).is_some() => Err(Error::NameExists { name: name.clone() }),
            Replace::Refused | Replace::Allowed => Ok(()),
        }
    }

    /// Make the directories that a name needs, durably: a record that moves into one must not be lost with it. Returns
    /// the new ones, outermost first.
    fn make_directories(&self, name: &ImageName) -> Result<Vec<PathBuf>, Error> {
        let mut made: Vec<PathBuf> = Vec::new();
        for directory in self.names.read().missing_directories(name) {
            let path = Path::new(layout::NAMES).join(directory);
            // One that is there already is an empty rest: just as much in need of a sync.
            let result = self.disk.make_dir(&path);
            made.push(path);
            if let Err(error) = result.and_then(|_| self.disk.sync_dir(parent(&made[made.len() - 1]))) {
                self.prune(&made);
                return Err(error);
            }
        }
        Ok(made)
    }

    /// Take back a change whose durability failed: what memory says of the name goes to the disk again.
    pub(crate) fn put_back(inner: &Arc<Inner>, name: &ImageName) -> Result<(), Error> {
        let before = inner.names.read().get(name).cloned();
        let path = layout::record(name);
        match before {
            None => inner.disk.remove_file(&path),
            Some(record) => {
                let lease = Inner::lease(inner)?;
                inner.disk.rename(&lease.stage(&inner.encode(name, &record)?)?, &path)
            }
        }
    }

    /// Of directories that memory gave up, those that nothing was put into since, innermost first.
    fn still_empty(&self, vacated: Vec<String>) -> Vec<PathBuf> {
        let names = self.names.read();
        let mut paths: Vec<PathBuf> = vacated
            .iter()
            .filter(|directory| names.list(directory).is_none())
            .map(|directory| Path::new(layout::NAMES).join(directory))
            .collect();
        paths.reverse();
        paths
    }

    /// Remove empty directories, given outermost first. One that stays is removed at the next start.
    fn prune(&self, directories: &[PathBuf]) {
        for directory in directories.iter().rev() {
            let _ = self.disk.remove_dir(directory);
        }
    }

    pub(crate) fn encode(&self, name: &ImageName, record: &Record) -> Result<Vec<u8>, Error> {
        let path = layout::record(name);
        let bytes = record.encode().map_err(|error| self.disk.error("encode", &path, error.into()))?;
        match bytes.len() as u64 {
            size if size > RECORD_LIMIT => Err(Error::RecordTooLarge { name: name.clone(), size, limit: RECORD_LIMIT }),
            _ => Ok(bytes),
        }
    }
}
