//! A disk whose syncs wait for as long as the test wants: what must not wait for it goes on.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::Arc;

use parking_lot::{RwLock, RwLockWriteGuard};
use snapfs::store::{Backend, DirBackend, FileKind, Pending};

/// Whether the disk is slow; clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Gate(Arc<RwLock<()>>);

impl Gate {
    /// No directory's names become durable before the value is dropped.
    pub(crate) fn close(&self) -> RwLockWriteGuard<'_, ()> {
        self.0.write()
    }
}

/// A directory behind a [`Gate`].
#[derive(Debug)]
pub(crate) struct SlowDisk {
    pub(crate) disk: DirBackend,
    pub(crate) gate: Gate,
}

impl Backend for SlowDisk {
    fn place(&self) -> &Path {
        self.disk.place()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Pending>> {
        self.disk.create(path)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        drop(self.gate.0.read());
        self.disk.sync_dir(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.make_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.disk.remove_dir(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.disk.open(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        self.disk.list(path)
    }

    fn stat(&self, path: &Path) -> io::Result<(FileKind, u64)> {
        self.disk.stat(path)
    }
}
