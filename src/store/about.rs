//! Facts about blobs, in the cache: one for each key, forgotten with its blob at the latest.

use std::path::Path;

use crate::oci::Digest;
use crate::store::record::unseal;
use crate::store::{Error, Store, layout};

/// The longest fact about a blob, in bytes.
const ABOUT_LIMIT: u64 = 256 << 20;

impl Store {
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
                self.drop_about(&known, &digest)?;
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
                && let Err(error) = self.drop_about(&known, &digest)
            {
                log::debug!("a fact stays although nobody wants it: {error}");
            }
        }
    }

    /// Forget the facts about blobs that are gone.
    pub(crate) fn forget_orphans(&self) -> Result<(), Error> {
        for (key, digest) in self.abouts()? {
            if self.0.blob_size(&digest)?.is_none() {
                self.drop_about(&key, &digest)?;
            }
        }
        Ok(())
    }

    fn drop_about(&self, key: &str, digest: &Digest) -> Result<(), Error> {
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
