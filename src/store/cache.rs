//! Facts that can be found out again, kept to save the work. Nothing depends on them: one that is lost or damaged is
//! found out again, and what one says is checked by whoever uses it.

use std::path::Path;

use crate::store::disk::parent;
use crate::store::record::{seal, unseal};
use crate::store::{Error, Inner, Store, layout};

/// The longest fact, in bytes.
const FACT_LIMIT: u64 = 16 << 20;

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
        let inner = &self.0;
        inner.disk.require_writable()?;
        let path =
            layout::fact(kind, key).ok_or_else(|| Error::InvalidKey { kind: kind.to_owned(), key: key.to_owned() })?;
        let bytes = seal(fact);
        if bytes.len() as u64 > FACT_LIMIT {
            return Err(Error::TooLarge { path: inner.disk.full(&path), size: bytes.len() as u64, limit: FACT_LIMIT });
        }
        inner.disk.make_dir(parent(&path))?;
        let lease = Inner::lease(inner)?;
        // Not synced: the check line tells a torn fact, and a sync would cost more than the fact.
        let staged: &Path = &lease.stage_unsynced(&bytes)?;
        inner.disk.rename(staged, &path)
    }
}
