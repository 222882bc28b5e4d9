//! Facts that can be found out again, kept to save the work. Nothing depends on them: one that is lost or damaged is
//! found out again, and what one says is checked by whoever uses it.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::store::disk::parent;
use crate::store::record::{seal, unseal};
use crate::store::{Error, FileKind, Inner, Spool, Store, layout};

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
        self.write_fact(kind, key, fact, FACT_LIMIT)
    }

    pub(crate) fn write_fact(&self, kind: &str, key: &str, fact: &[u8], limit: u64) -> Result<(), Error> {
        let inner = &self.0;
        inner.disk.require_writable()?;
        let path = fact_path(kind, key)?;
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

    /// The files that are kept under `kind`, with their lengths; facts are files too.
    pub fn kept(&self, kind: &str) -> Vec<(String, u64)> {
        let Some(directory) = layout::fact(kind, "key").map(|path| parent(&path).to_owned()) else { return Vec::new() };
        let entries = self.0.disk.list(&directory).unwrap_or_default().into_iter();
        let names = entries.filter_map(|(name, _)| name.into_string().ok());
        names
            .filter_map(|name| match self.0.disk.stat(&directory.join(&name)) {
                Ok(Some((FileKind::File, size))) => Some((name, size)),
                _ => None,
            })
            .collect()
    }

    /// Open the file that is kept under `key`. What is in it is for the caller to check: a power cut can tear it.
    pub fn open_kept(&self, kind: &str, key: &str) -> Option<File> {
        self.0.disk.open(&layout::fact(kind, key)?).ok().flatten()
    }

    /// Keep a file of any length under `key`, in place of what is there. It may be lost at any time, and is not synced.
    ///
    /// Errors: a word that cannot be a file name, a failing disk.
    pub fn keep(&self, spool: &Spool, kind: &str, key: &str) -> Result<(), Error> {
        self.0.disk.require_writable()?;
        let path = fact_path(kind, key)?;
        self.0.disk.make_dir(parent(&path))?;
        self.0.disk.rename(spool.path(), &path)
    }

    /// Remove what is kept under `key`. Who has it open reads on.
    pub fn forget(&self, kind: &str, key: &str) {
        if let Some(path) = layout::fact(kind, key) {
            // It need not be there.
            let _ = self.0.disk.remove_file(&path);
        }
    }
}

fn fact_path(kind: &str, key: &str) -> Result<PathBuf, Error> {
    layout::fact(kind, key).ok_or_else(|| Error::InvalidKey { kind: kind.to_owned(), key: key.to_owned() })
}
