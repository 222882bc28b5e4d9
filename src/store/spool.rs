//! Files for what an operation puts aside: not durable, not blobs, gone with the lease.

use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::store::Error;
use crate::store::backend::Pending;
use crate::store::lease::Hold;

/// A file in the lease's directory that is written once, from its beginning to its end, and then read.
pub struct Spool {
    hold: Arc<Hold>,
    path: PathBuf,
    file: Box<dyn Pending>,
}

impl fmt::Debug for Spool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spool").field("path", &self.path).finish_non_exhaustive()
    }
}

impl Spool {
    pub(crate) fn create(hold: &Arc<Hold>) -> Result<Spool, Error> {
        let path = hold.new_path();
        let file = hold.inner().disk.create(&path)?;
        Ok(Spool { hold: Arc::clone(hold), path, file })
    }

    /// The file itself, where the store is a directory of the host: for what the kernel can do between two files.
    pub fn file(&self) -> Option<&File> {
        self.file.file()
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The error of a write, in words.
    pub fn error(&self, source: io::Error) -> Error {
        self.hold.inner().disk.error("write", &self.path, source)
    }

    /// The file, to be read.
    pub fn open(&self) -> Result<File, Error> {
        let lost = || self.hold.inner().disk.error("read", &self.path, io::ErrorKind::NotFound.into());
        self.hold.inner().disk.open(&self.path)?.ok_or_else(lost)
    }
}

impl Write for Spool {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Spool {
    fn drop(&mut self) {
        // What cannot be removed goes with the lease.
        let _ = self.hold.inner().disk.remove_file(&self.path);
    }
}
