//! Blobs: written under a lease, published when whole, never changed.

use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::oci::{Descriptor, Digest, Hasher};
use crate::store::backend::{FileKind, Pending};
use crate::store::disk::Disk;
use crate::store::lease::Hold;
use crate::store::{Error, Inner, Store, layout};

/// How much is read at a time to hash a blob.
const CHUNK: usize = 256 << 10;

/// A blob that is being written. It exists once [`finish`](Self::finish) has returned; dropped before, it never did.
///
/// Every write goes to the disk as it is: give large pieces.
pub struct BlobWriter {
    hold: Arc<Hold>,
    path: PathBuf,
    /// Absent after a failed write.
    file: Option<Box<dyn Pending>>,
    failure: Option<Error>,
    hasher: Hasher,
}

impl fmt::Debug for BlobWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlobWriter").field("path", &self.path).field("hasher", &self.hasher).finish_non_exhaustive()
    }
}

impl BlobWriter {
    pub(crate) fn create(hold: &Arc<Hold>) -> Result<BlobWriter, Error> {
        let path = hold.new_path();
        let file = hold.inner().disk.create(&path)?;
        Ok(BlobWriter { hold: Arc::clone(hold), path, file: Some(file), failure: None, hasher: Hasher::new() })
    }

    /// What has been written so far, to read.
    ///
    /// Errors: the disk's.
    pub fn reopen(&self) -> Result<File, Error> {
        let disk = &self.hold.inner().disk;
        let gone = || Error::Corrupt { path: disk.full(&self.path), reason: "it is gone".to_owned() };
        disk.open(&self.path)?.ok_or_else(gone)
    }

    /// Make the bytes durable and the blob visible; returns its digest and length.
    ///
    /// The blob's *name* becomes durable with the first image that is named after it: [`Store::tag`] sees to that.
    ///
    /// Errors: the first write that failed, or a full or failing disk.
    pub fn finish(mut self) -> Result<(Digest, u64), Error> {
        let disk = &self.hold.inner().disk;
        let Some(file) = self.file.take() else {
            let lost = || Error::Corrupt { path: disk.full(&self.path), reason: "a write to it failed".to_owned() };
            return Err(self.failure.take().unwrap_or_else(lost));
        };
        file.sync().map_err(|source| disk.error("make durable", &self.path, source))?;
        let size = self.hasher.length();
        let digest = std::mem::take(&mut self.hasher).digest();
        self.hold.pin(digest);
        self.hold.inner().publish(&self.path, digest, size)?;
        Ok((digest, size))
    }
}

impl Write for BlobWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(file) = &mut self.file else {
            return Err(io::Error::other("an earlier write to this blob failed"));
        };
        match file.write(bytes) {
            Ok(count) => {
                self.hasher.update(&bytes[..count]);
                Ok(count)
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Err(error) => {
                let copy = error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
                let (kind, disk) = (error.kind(), &self.hold.inner().disk);
                self.failure = Some(disk.error("write", &self.path, copy));
                self.file = None;
                // Told with the file and the remedy: whoever writes may not come to ask `finish`.
                Err(io::Error::new(kind, disk.error("write", &self.path, error)))
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        // A published blob has its other name by now. What cannot be removed goes with the lease.
        let _ = self.hold.inner().disk.remove_file(&self.path);
    }
}

impl Inner {
    /// Give the durable file at `staged` its name among the blobs.
    fn publish(&self, staged: &Path, digest: Digest, size: u64) -> Result<(), Error> {
        let path = layout::blob(&digest);
        if !self.disk.link(staged, &path)? {
            let found = self.disk.stat(&path)?;
            if !self.is_sound(found, &path, &digest, size) {
                // Neither trusted nor destroyed: the good bytes take the name in one step, so that an image that needs
                // them never misses the blob.
                match found {
                    Some((FileKind::File, _)) => self.disk.quarantine_copy(&path)?,
                    _ => self.disk.quarantine(&path)?,
                };
                self.disk.rename(staged, &path)?;
            }
        }
        self.sound.lock().insert(digest);
        self.changed();
        Ok(())
    }

    /// Whether the blob that is there is the one it is named after. One that this daemon wrote or hashed is taken at
    /// its length; one that an earlier daemon left is hashed once.
    fn is_sound(&self, found: Option<(FileKind, u64)>, path: &Path, digest: &Digest, size: u64) -> bool {
        if found != Some((FileKind::File, size)) {
            return false;
        }
        let known = self.sound.lock().contains(digest);
        known || hash_file(&self.disk, path).is_ok_and(|found| found == Some(*digest))
    }

    /// The blob's length in bytes; `None` if there is no such blob.
    pub(crate) fn blob_size(&self, digest: &Digest) -> Result<Option<u64>, Error> {
        match self.disk.stat(&layout::blob(digest))? {
            Some((FileKind::File, size)) => Ok(Some(size)),
            _ => Ok(None),
        }
    }
}

impl Store {
    /// Open a blob to read. It can be read to its end even if it is collected meanwhile. Its bytes are not verified:
    /// see [`read_document`](Self::read_document) for small ones and [`fsck`](Self::fsck) for all.
    pub fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        self.0.disk.open(&layout::blob(digest))?.ok_or(Error::NoSuchBlob { digest: *digest })
    }

    /// A blob's length in bytes.
    pub fn blob_size(&self, digest: &Digest) -> Result<u64, Error> {
        self.0.blob_size(digest)?.ok_or(Error::NoSuchBlob { digest: *digest })
    }

    /// The bytes of a document that has the descriptor's digest and size, and at most `limit` bytes.
    pub fn read_document(&self, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, Error> {
        read_document(&self.0.disk, descriptor, limit)
    }
}

pub(crate) fn read_document(disk: &Disk, descriptor: &Descriptor, limit: u64) -> Result<Vec<u8>, Error> {
    let path = layout::blob(&descriptor.digest);
    if descriptor.size > limit {
        return Err(Error::TooLarge { path: disk.full(&path), size: descriptor.size, limit });
    }
    let bytes = disk.read(&path, limit)?.ok_or(Error::NoSuchBlob { digest: descriptor.digest })?;
    let corrupt = |reason| Err(Error::Corrupt { path: disk.full(&path), reason });
    if bytes.len() as u64 != descriptor.size {
        return corrupt(format!("it has {} bytes instead of {}", bytes.len(), descriptor.size));
    }
    match Digest::of(&bytes) {
        found if found == descriptor.digest => Ok(bytes),
        found => corrupt(format!("its digest is {found}")),
    }
}

/// The digest of a file's bytes; `None` if there is no file.
pub(crate) fn hash_file(disk: &Disk, path: &Path) -> Result<Option<Digest>, Error> {
    let Some(mut file) = disk.open(path)? else { return Ok(None) };
    let mut hasher = Hasher::new();
    let mut chunk = vec![0; CHUNK];
    loop {
        match file.read(&mut chunk) {
            Ok(0) => return Ok(Some(hasher.digest())),
            Ok(count) => hasher.update(&chunk[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => return Err(disk.error("read", path, source)),
        }
    }
}
