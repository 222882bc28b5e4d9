//! The policy by which names are removed: a text that the store keeps and does not read.

use std::path::Path;

use crate::store::{Error, Store, layout};

/// The longest policy, in bytes.
pub const RETENTION_LIMIT: u64 = 64 << 10;

impl Store {
    /// The policy's text, which may be empty.
    pub fn retention(&self) -> Result<Vec<u8>, Error> {
        Ok(self.0.disk.read(Path::new(layout::RETENTION), RETENTION_LIMIT)?.unwrap_or_default())
    }

    /// Replace the policy by what `change` makes of it, durably and at one stroke.
    ///
    /// Errors: what `change` says; the disk is full or fails. The policy is then what it was.
    pub fn set_retention<E: From<Error>>(&self, change: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, E>) -> Result<(), E> {
        let inner = &self.0;
        inner.disk.require_writable()?;
        let lease = self.lease()?;
        let _turn = inner.turn.lock();
        let staged = lease.stage(&change(self.retention()?)?)?;
        inner.disk.rename(&staged, Path::new(layout::RETENTION))?;
        Ok(inner.disk.sync_dir(Path::new(layout::ROOT))?)
    }
}
