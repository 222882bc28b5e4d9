//! The backend with the store's errors: each failure names its step and its file, and a failed directory fsync ends
//! all writing.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::store::backend::{Backend, FileKind, Pending};
use crate::store::{Error, layout};
use crate::sys::space::Space;

/// A backend, and whether it can still be trusted with changes.
#[derive(Debug, Clone)]
pub(crate) struct Disk {
    backend: Arc<dyn Backend>,
    failure: Arc<OnceLock<String>>,
}

impl Disk {
    pub(crate) fn new(backend: Arc<dyn Backend>) -> Disk {
        Disk { backend, failure: Arc::new(OnceLock::new()) }
    }

    /// The path as a person finds it.
    pub(crate) fn full(&self, path: &Path) -> PathBuf {
        if path == Path::new(layout::ROOT) { self.place().to_owned() } else { self.place().join(path) }
    }

    /// Where the store is.
    pub(crate) fn place(&self) -> &Path {
        self.backend.place()
    }

    /// The failure after which nothing may be written, if there was one.
    pub(crate) fn failure(&self) -> Option<&str> {
        self.failure.get().map(String::as_str)
    }

    /// Refuse a change after a failed directory fsync.
    pub(crate) fn require_writable(&self) -> Result<(), Error> {
        self.failure().map_or(Ok(()), |cause| Err(Error::ReadOnly { cause: cause.to_owned() }))
    }

    pub(crate) fn error(&self, step: &'static str, path: &Path, source: io::Error) -> Error {
        Error::io(step, self.full(path), source)
    }

    pub(crate) fn create(&self, path: &Path) -> Result<Box<dyn Pending>, Error> {
        self.backend.create(path).map_err(|source| self.error("create", path, source))
    }

    /// Write a whole new file.
    pub(crate) fn write(&self, path: &Path, bytes: &[u8]) -> Result<Box<dyn Pending>, Error> {
        let mut file = self.create(path)?;
        file.write_all(bytes).map_err(|source| self.error("write", path, source))?;
        Ok(file)
    }

    /// Write a whole new file and make its bytes durable.
    pub(crate) fn write_synced(&self, path: &Path, bytes: &[u8]) -> Result<(), Error> {
        self.write(path, bytes)?.sync().map_err(|source| self.error("make durable", path, source))
    }

    /// Give the file a second name; `false` if that exists.
    pub(crate) fn link(&self, from: &Path, to: &Path) -> Result<bool, Error> {
        match self.backend.link(from, to) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(source) => Err(self.error("publish", to, source)),
        }
    }

    pub(crate) fn rename(&self, from: &Path, to: &Path) -> Result<(), Error> {
        self.backend.rename(from, to).map_err(|source| self.error("move a file to", to, source))
    }

    /// Make the names in a directory durable. After a failure nobody can say which of them are, and a second fsync
    /// would say yes to all: the store takes no more changes.
    pub(crate) fn sync_dir(&self, path: &Path) -> Result<(), Error> {
        self.backend.sync_dir(path).map_err(|source| {
            let error = self.error("make durable", path, source);
            let _ = self.failure.set(error.to_string());
            error
        })
    }

    /// Make a directory; `false` if there is one.
    pub(crate) fn make_dir(&self, path: &Path) -> Result<bool, Error> {
        match self.backend.make_dir(path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => match self.stat(path)? {
                Some((FileKind::Directory, _)) => Ok(false),
                _ => Err(self.error("make the directory", path, error)),
            },
            Err(source) => Err(self.error("make the directory", path, source)),
        }
    }

    pub(crate) fn remove_file(&self, path: &Path) -> Result<(), Error> {
        self.backend.remove_file(path).map_err(|source| self.error("remove", path, source))
    }

    pub(crate) fn remove_dir(&self, path: &Path) -> Result<(), Error> {
        self.backend.remove_dir(path).map_err(|source| self.error("remove the directory", path, source))
    }

    /// Remove a directory and all that is in it.
    pub(crate) fn remove_tree(&self, path: &Path) -> Result<(), Error> {
        for (name, kind) in self.list(path)? {
            let child = path.join(name);
            match kind {
                FileKind::Directory => self.remove_tree(&child)?,
                FileKind::File | FileKind::Other => self.remove_file(&child)?,
            }
        }
        self.remove_dir(path)
    }

    /// A regular file to read; `None` if there is nothing.
    pub(crate) fn open(&self, path: &Path) -> Result<Option<File>, Error> {
        match self.backend.open(path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(Error::Corrupt { path: self.full(path), reason: error.to_string() })
            }
            Err(source) => Err(self.error("open", path, source)),
        }
    }

    /// The bytes of a file of at most `limit` bytes; `None` if there is nothing.
    pub(crate) fn read(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(file) = self.open(path)? else { return Ok(None) };
        let size = file.metadata().map_err(|source| self.error("examine", path, source))?.len();
        if size > limit {
            return Err(Error::TooLarge { path: self.full(path), size, limit });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
        file.take(limit).read_to_end(&mut bytes).map_err(|source| self.error("read", path, source))?;
        Ok(Some(bytes))
    }

    pub(crate) fn list(&self, path: &Path) -> Result<Vec<(OsString, FileKind)>, Error> {
        self.backend.list(path).map_err(|source| self.error("list", path, source))
    }

    /// How much room the backend's file system has.
    pub(crate) fn space(&self) -> Result<Space, Error> {
        self.backend.space().map_err(|source| self.error("ask for the space of", Path::new(layout::ROOT), source))
    }

    /// What is at the path; `None` if nothing.
    pub(crate) fn stat(&self, path: &Path) -> Result<Option<(FileKind, u64)>, Error> {
        match self.backend.stat(path) {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(self.error("examine", path, source)),
        }
    }

    /// Move what cannot be read out of the way, to `quarantine/<n>/` and the path it had; returns where it is.
    pub(crate) fn quarantine(&self, path: &Path) -> Result<PathBuf, Error> {
        let to = self.quarantine_place(path)?;
        self.rename(path, &to)?;
        self.sync_dir(parent(&to))?;
        Ok(to)
    }

    /// Keep a damaged file in quarantine under a second name, so that the first can be replaced in one step.
    pub(crate) fn quarantine_copy(&self, path: &Path) -> Result<PathBuf, Error> {
        let to = self.quarantine_place(path)?;
        self.link(path, &to)?;
        self.sync_dir(parent(&to))?;
        Ok(to)
    }

    fn quarantine_place(&self, path: &Path) -> Result<PathBuf, Error> {
        let top = Path::new(layout::QUARANTINE);
        let mut n = self.list(top)?.len();
        while !self.make_dir(&top.join(n.to_string()))? {
            n += 1;
        }
        let to = top.join(n.to_string()).join(path);
        let mut made = Vec::new();
        for dir in ancestors_below(&to, top).into_iter().skip(1) {
            self.make_dir(&dir)?;
            made.push(dir);
        }
        for dir in made.iter().rev() {
            self.sync_dir(parent(dir))?;
        }
        self.sync_dir(top)?;
        Ok(to)
    }
}

/// The directory that holds the path's name.
pub(crate) fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new(layout::ROOT),
    }
}

/// The directories between `top` and the path's name, outermost first.
pub(crate) fn ancestors_below(path: &Path, top: &Path) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = path.ancestors().skip(1).take_while(|dir| *dir != top).map(Path::to_owned).collect();
    dirs.reverse();
    dirs
}
