//! Where bytes meet the disk: ten operations, so that a crash between any two of them is a test's input.

use std::ffi::OsString;
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};

use crate::store::{Error, layout};
use crate::sys::beneath::Root;
use crate::sys::flock;
use crate::sys::space::Space;

pub use crate::sys::beneath::FileKind;

/// A directory tree that a store lives in. Paths are relative to it; `.` is the directory itself.
///
/// Nothing is durable before the file's [`Pending::sync`] and then [`sync_dir`](Backend::sync_dir) of the directory
/// that names it have returned. Each operation on names is atomic, also across a power cut, and also when it concerns
/// two directories.
pub trait Backend: Send + Sync + fmt::Debug {
    /// Where the tree is, for messages.
    fn place(&self) -> &Path;
    /// A new file, mode 0444; `AlreadyExists` if the name is taken.
    fn create(&self, path: &Path) -> io::Result<Box<dyn Pending>>;
    /// A second name for a file; `AlreadyExists` if `to` is taken.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Move a name, replacing a file at `to`.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Make the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;
    /// A new directory, mode 0700.
    fn make_dir(&self, path: &Path) -> io::Result<()>;
    /// Remove the name of what is not a directory.
    fn remove_file(&self, path: &Path) -> io::Result<()>;
    /// Remove an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;
    /// A regular file to read; `InvalidInput` for anything else.
    fn open(&self, path: &Path) -> io::Result<File>;
    /// The names in a directory, in no order.
    fn list(&self, path: &Path) -> io::Result<Vec<(OsString, FileKind)>>;
    /// The type and size in bytes of what is there; symbolic links are not followed.
    fn stat(&self, path: &Path) -> io::Result<(FileKind, u64)>;
    /// How much room there is.
    fn space(&self) -> io::Result<Space> {
        Space::of(self.place())
    }
}

/// A file that is being written.
pub trait Pending: Write + Send + fmt::Debug {
    /// Make the bytes durable. It takes the file, because a failed fsync must not be tried again: the kernel reports
    /// the loss once, and a second fsync succeeds without the bytes.
    fn sync(self: Box<Self>) -> io::Result<()>;
    /// The file itself, if it is one: for what the kernel can do between two files.
    fn file(&self) -> Option<&File> {
        None
    }
}

impl Pending for File {
    fn sync(self: Box<Self>) -> io::Result<()> {
        self.sync_all()
    }

    fn file(&self) -> Option<&File> {
        Some(self)
    }
}

/// A directory of the host's file system.
#[derive(Debug)]
pub struct DirBackend {
    place: PathBuf,
    root: Root,
    /// Held for its lock; `None` for a reader.
    _lock: Option<File>,
}

impl DirBackend {
    /// Take the directory at `place` for this process alone, making it if it is missing.
    ///
    /// Errors: another process has it, another user owns it, it holds something that is no store, or it cannot be
    /// opened.
    pub fn open(place: &Path) -> Result<DirBackend, Error> {
        let fail = |step, source| Error::io(step, place.to_owned(), source);
        match std::fs::create_dir(place) {
            Ok(()) => Root::open(place.parent().filter(|path| !path.as_os_str().is_empty()).unwrap_or(Path::new(".")))
                .and_then(|parent| parent.sync_dir(Path::new(".")))
                .map_err(|source| fail("make durable", source))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(fail("make the directory", source)),
        }
        let root = Root::open(place).map_err(|source| fail("open the directory", source))?;
        if !root.is_ours().map_err(|source| fail("examine", source))? {
            return Err(Error::ForeignOwner { place: place.to_owned() });
        }
        refuse_foreign_content(place, &root)?;
        root.close_to_others().map_err(|source| fail("set the mode of", source))?;
        let lock = lock(&root, place)?;
        Ok(DirBackend { place: place.to_owned(), root, _lock: Some(lock) })
    }

    /// The directory at `place` to read, also while a daemon has it.
    pub fn open_unlocked(place: &Path) -> Result<DirBackend, Error> {
        let root = Root::open(place).map_err(|source| Error::io("open the directory", place.to_owned(), source))?;
        Ok(DirBackend { place: place.to_owned(), root, _lock: None })
    }
}

/// A mistyped option must not scatter a store over somebody's home directory.
fn refuse_foreign_content(place: &Path, root: &Root) -> Result<(), Error> {
    let entries = root.list(Path::new(layout::ROOT)).map_err(|source| Error::io("list", place.to_owned(), source))?;
    let mut version = Vec::new();
    if let Ok(file) = root.open_file(Path::new(layout::VERSION_FILE)) {
        let _ = file.take(layout::VERSION_LIMIT).read_to_end(&mut version);
    }
    if layout::parse_version(&version).is_some() {
        return Ok(());
    }
    match entries.into_iter().find(|(name, _)| !name.to_str().is_some_and(layout::is_expected_at_top)) {
        Some((found, _)) => {
            Err(Error::NotAStore { place: place.to_owned(), found: found.to_string_lossy().into_owned() })
        }
        None => Ok(()),
    }
}

fn lock(root: &Root, place: &Path) -> Result<File, Error> {
    let fail = |source| Error::io("lock", place.join(layout::LOCK_FILE), source);
    let mut file = root.open_or_create(Path::new(layout::LOCK_FILE)).map_err(fail)?;
    if !flock::try_exclusive(&file).map_err(fail)? {
        // The number is for the message only; the lock itself is what counts.
        let mut text = String::new();
        let _ = (&mut file).take(20).read_to_string(&mut text);
        return Err(Error::Locked { place: place.to_owned(), pid: text.trim().parse().ok() });
    }
    file.set_len(0).map_err(fail)?;
    file.rewind().map_err(fail)?;
    writeln!(file, "{}", std::process::id()).map_err(fail)?;
    Ok(file)
}

impl Backend for DirBackend {
    fn place(&self) -> &Path {
        &self.place
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Pending>> {
        Ok(Box::new(self.root.create(path, 0o444)?))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.root.link(from, to)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.root.rename(from, to)
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.root.sync_dir(path)
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.root.make_dir(path)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.root.remove_file(path)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.root.remove_dir(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.root.open_file(path)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        self.root.list(path)
    }

    fn stat(&self, path: &Path) -> io::Result<(FileKind, u64)> {
        self.root.stat(path)
    }

    /// Not by the path: our own mount could lie over it, and wait for us.
    fn space(&self) -> io::Result<Space> {
        self.root.space()
    }
}
