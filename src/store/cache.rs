//! Facts that can be found out again, kept to save the work. Nothing depends on them: one that is lost or damaged is
//! found out again, and what one says is checked by whoever uses it.

use std::path::Path;

use crate::oci::Digest;
use crate::store::disk::parent;
use crate::store::record::{seal, unseal};
use crate::store::{Error, Inner, Store, layout};

/// The longest fact, in bytes.
const FACT_LIMIT: u64 = 16 << 20;

/// The longest fact about a blob, in bytes.
const ABOUT_LIMIT: u64 = 256 << 20;

impl Store {
    /// The fact that was remembered under `key`, if it is still there and whole.
    pub fn recall(&self, kind: &str, key: &str) -> Option<Vec<u8>> {
        let bytes = self.0.disk.read(&layout::fact(kind, key)?, FACT_LIMIT).ok()??;
        unseal(&bytes).map(<[u8]>::to_owned)
    }

    /// Remember a fact of at most 16 MiB. It may be forgotten at any time, a power cut included.
    ///
    /// Errors: a word that cannot be a file name, a fact that is too long, a full or failing disk.
    pub fn remember(&self, kind: &str, key: &str, fact: &[u8]) -> Result<(), Error> {
        self.write_fact(kind, key, fact, FACT_LIMIT)
    }

    fn write_fact(&self, kind: &str, key: &str, fact: &[u8], limit: u64) -> Result<(), Error> {
        let inner = &self.0;
        inner.disk.require_writable()?;
        let path =
            layout::fact(kind, key).ok_or_else(|| Error::InvalidKey { kind: kind.to_owned(), key: key.to_owned() })?;
        let bytes = seal(fact);
        if bytes.len() as u64 > limit {
            return Err(Error::TooLarge { path: inner.disk.full(&path), size: bytes.len() as u64, limit });
        }
        inner.disk.make_dir(parent(&path))?;
        let lease = Inner::lease(inner)?;
        // Not synced: the check line tells a torn fact, and a sync would cost more than the fact.
        let staged: &Path = &lease.stage_unsynced(&bytes)?;
        inner.disk.rename(staged, &path)
    }

    /// The fact about a blob that was remembered under `key`, if it is still there and whole, and the blob. Whether that is
    /// still there is for the caller to find out.
    pub fn recall_about(&self, key: &str) -> Option<(Digest, Vec<u8>)> {
        let (_, digest) = self.abouts().ok()?.into_iter().find(|(known, _)| known == key)?;
        let path = layout::fact(layout::ABOUT, &layout::about(key, &digest))?;
        let bytes = self.0.disk.read(&path, ABOUT_LIMIT).ok()??;
        unseal(&bytes).map(|fact| (digest, fact.to_owned()))
    }

    /// Remember a fact about a blob, instead of any other under this key. It is forgotten with the blob at the latest.
    ///
    /// Errors: as [`remember`](Self::remember), for facts of more than 256 MiB.
    pub fn remember_about(&self, key: &str, blob: &Digest, fact: &[u8]) -> Result<(), Error> {
        self.write_fact(layout::ABOUT, &layout::about(key, blob), fact, ABOUT_LIMIT)?;
        for (known, digest) in self.abouts()? {
            if known == key && digest != *blob {
                self.forget(&known, &digest)?;
            }
        }
        Ok(())
    }

    /// The keys under which facts about blobs are remembered.
    pub fn remembered_about(&self) -> Vec<String> {
        self.abouts().unwrap_or_default().into_iter().map(|(key, _)| key).collect()
    }

    /// Forget the fact about a blob that is remembered under `key`.
    pub fn forget_about(&self, key: &str) {
        for (known, digest) in self.abouts().unwrap_or_default() {
            if known == key
                && let Err(error) = self.forget(&known, &digest)
            {
                log::debug!("a fact stays although nobody wants it: {error}");
            }
        }
    }

    /// Forget the facts about blobs that are gone.
    pub(crate) fn forget_orphans(&self) -> Result<(), Error> {
        for (key, digest) in self.abouts()? {
            if self.0.blob_size(&digest)?.is_none() {
                self.forget(&key, &digest)?;
            }
        }
        Ok(())
    }

    fn forget(&self, key: &str, digest: &Digest) -> Result<(), Error> {
        match layout::fact(layout::ABOUT, &layout::about(key, digest)) {
            Some(path) if self.0.disk.stat(&path)?.is_some() => self.0.disk.remove_file(&path),
            _ => Ok(()),
        }
    }

    fn abouts(&self) -> Result<Vec<(String, Digest)>, Error> {
        let directory = Path::new(layout::CACHE).join(layout::ABOUT);
        if self.0.disk.stat(&directory)?.is_none() {
            return Ok(Vec::new());
        }
        let names = self.0.disk.list(&directory)?;
        Ok(names.into_iter().filter_map(|(name, _)| layout::parse_about(name.to_str()?)).collect())
    }
}
