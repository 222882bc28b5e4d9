//! The tree that is mounted. This file is a stand-in with the interface that `fuse` is written against.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crossbeam_channel::{Receiver, Sender};
use parking_lot::Mutex;

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Caller {
    /// User id in the daemon's user namespace.
    pub uid: u32,
    /// Group id in the daemon's user namespace.
    pub gid: u32,
    /// Thread id in the daemon's PID namespace; 0 where it is not visible there.
    pub tid: u32,
}

/// What a node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Directory,
    /// A regular file.
    File,
    /// A symbolic link.
    Symlink,
}

/// How long the kernel may remember.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lifetime {
    /// Not at all.
    Volatile,
    /// A day.
    Immutable,
}

/// What stat(2) says of a node.
#[derive(Debug, Clone, Copy)]
pub struct Attr {
    /// Inode number.
    pub ino: u64,
    /// Its type.
    pub kind: Kind,
    /// Permission bits.
    pub mode: u16,
    /// Links.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// All three times.
    pub time: SystemTime,
    /// How long the kernel may remember.
    pub lifetime: Lifetime,
}

/// One name of a directory.
#[derive(Debug, Clone)]
pub struct DirEntry {
    /// Inode number.
    pub ino: u64,
    /// Its type.
    pub kind: Kind,
    /// Its name.
    pub name: OsString,
}

/// What an open gave.
#[derive(Debug)]
pub enum Opened {
    /// Text fixed at open.
    Text {
        /// The handle.
        fh: u64,
    },
    /// A control file.
    Control {
        /// The handle.
        fh: u64,
    },
    /// Immutable bytes that a file on disk holds.
    Stored {
        /// The handle.
        fh: u64,
        /// The file.
        file: Arc<std::fs::File>,
    },
}

/// How a file is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// For reading.
    pub read: bool,
    /// For writing.
    pub write: bool,
    /// With O_NONBLOCK.
    pub nonblock: bool,
}

/// An answer, now or later.
#[derive(Debug)]
pub enum Reply<T> {
    /// The answer.
    Now(T),
    /// What to ask again after the tree signalled.
    Later(Ticket<T>),
}

/// An answer to come.
#[derive(Debug)]
pub struct Ticket<T>(Receiver<Result<T, Error>>);

impl<T> Ticket<T> {
    /// The answer, once there is one.
    pub fn poll(&mut self) -> Option<Result<T, Error>> {
        self.0.try_recv().ok()
    }
}

/// What the store's file system holds.
#[derive(Debug, Clone, Copy)]
pub struct Space {
    /// Bytes in all.
    pub bytes: u64,
    /// Bytes free.
    pub free: u64,
    /// Inodes in all.
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
}

/// What poll(2) may report of an open file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// A read would not block.
    pub read: bool,
    /// A write would not block.
    pub write: bool,
}

/// Why an operation failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum ErrorKind {
    NotFound,
    Exists,
    NotEmpty,
    IsDirectory,
    NotDirectory,
    Invalid,
    Busy,
    Denied,
    NoAccess,
    ReadOnly,
    NoSpace,
    Unsupported,
    External,
    Interrupted,
    Cancelled,
    TimedOut,
    NameTooLong,
    TooBig,
    Again,
    Stale,
    CrossDevice,
    NoAttribute,
    Io,
}

/// An operation on the tree failed.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    /// What maps to an errno.
    pub kind: ErrorKind,
    /// The whole sentence.
    pub message: String,
}

fn error(kind: ErrorKind, message: &str) -> Error {
    Error { kind, message: message.into() }
}

/// The demonstration tree: `README`, `version`, `ctl`, `wait`, `big`, `panic`, `link`, `dir/`.
#[derive(Debug)]
pub struct Tree {
    completions: (Sender<()>, Receiver<()>),
    big: Arc<std::fs::File>,
    next: AtomicU64,
    handles: Mutex<HashMap<u64, u64>>,
    many: Arc<[DirEntry]>,
}

const BIG: u64 = 1 << 20;
const NAMES: [(&str, Kind); 8] = [
    ("README", Kind::File),
    ("version", Kind::File),
    ("ctl", Kind::File),
    ("wait", Kind::File),
    ("big", Kind::File),
    ("panic", Kind::File),
    ("link", Kind::Symlink),
    ("dir", Kind::Directory),
];

impl Tree {
    /// The demonstration.
    pub fn demo() -> std::io::Result<Tree> {
        let mut big = tempfile()?;
        for n in 0..BIG / 8 {
            big.write_all(format!("{n:07}\n").as_bytes())?;
        }
        let dots = [(".", 9), ("..", 1)].map(|(name, ino)| DirEntry { ino, kind: Kind::Directory, name: name.into() });
        let files = (0..2000).map(|n| DirEntry { ino: 1000 + n, kind: Kind::File, name: format!("file{n}").into() });
        let many = dots.into_iter().chain(files).collect();
        Ok(Tree {
            completions: crossbeam_channel::bounded(1),
            big: Arc::new(big),
            next: AtomicU64::new(1),
            handles: Mutex::default(),
            many,
        })
    }

    fn handle(&self, ino: u64) -> u64 {
        let fh = self.next.fetch_add(1, Ordering::Relaxed);
        self.handles.lock().insert(fh, ino);
        fh
    }

    fn text(ino: u64) -> &'static [u8] {
        match ino {
            2 => b"snapfs shows containers as directories\n",
            3 => b"snapfs 0.1.0\n",
            4 => b"last result\n",
            1000.. => b"small\n",
            _ => b"",
        }
    }

    /// Attributes by name; counts one lookup.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr, Error> {
        let name = name.to_str().unwrap_or_default();
        if parent == 1 {
            if let Some(at) = NAMES.iter().position(|(known, _)| *known == name) {
                return self.attr(at as u64 + 2);
            }
        }
        if let (9, Some(Ok(n))) = (parent, name.strip_prefix("file").map(str::parse::<u64>)) {
            if n < 2000 {
                return self.attr(1000 + n);
            }
        }
        Err(error(ErrorKind::NotFound, "no such file"))
    }

    /// Undo `count` lookups.
    pub fn forget(&self, _ino: u64, _count: u64) {}

    /// Attributes.
    pub fn attr(&self, ino: u64) -> Result<Attr, Error> {
        let kind = match ino {
            1 => Kind::Directory,
            2..=9 => NAMES[ino as usize - 2].1,
            1000..3000 => Kind::File,
            _ => return Err(error(ErrorKind::Stale, "gone")),
        };
        let mode = match (kind, ino) {
            (Kind::Directory, _) => 0o755,
            (Kind::Symlink, _) => 0o777,
            (Kind::File, 4) => 0o660,
            (Kind::File, _) => 0o444,
        };
        let lifetime = if ino == 6 || ino >= 9 { Lifetime::Immutable } else { Lifetime::Volatile };
        let size = if ino == 6 { BIG } else { Tree::text(ino).len() as u64 };
        let time = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        Ok(Attr { ino, kind, mode, nlink: 1, uid: 0, gid: 0, size, time, lifetime })
    }

    /// Change attributes.
    pub fn set_attr(&self, ino: u64, change: Change) -> Result<Attr, Error> {
        match change {
            Change { mode: false, owner: false, .. } if ino == 4 => self.attr(ino),
            _ => Err(error(ErrorKind::Denied, "attributes are not for changing")),
        }
    }

    /// Target.
    pub fn read_link(&self, _ino: u64) -> Result<Vec<u8>, Error> {
        Ok(b"README".to_vec())
    }

    /// Open a directory.
    pub fn open_dir(&self, ino: u64) -> Result<u64, Error> {
        Ok(self.handle(ino))
    }

    /// All of a directory.
    pub fn read_dir(&self, fh: u64) -> Result<Arc<[DirEntry]>, Error> {
        match self.handles.lock().get(&fh) {
            Some(9) => Ok(Arc::clone(&self.many)),
            _ => {
                let dots = [".", ".."].map(|name| DirEntry { ino: 1, kind: Kind::Directory, name: name.into() });
                let names = NAMES.iter().enumerate();
                let names =
                    names.map(|(at, (name, kind))| DirEntry { ino: at as u64 + 2, kind: *kind, name: name.into() });
                Ok(dots.into_iter().chain(names).collect())
            }
        }
    }

    /// Open a file.
    pub fn open(&self, ino: u64, access: Access, _caller: &Caller) -> Result<Opened, Error> {
        match ino {
            4 => Ok(Opened::Control { fh: self.handle(ino) }),
            _ if access.write => Err(error(ErrorKind::NoAccess, "read-only")),
            6 => Ok(Opened::Stored { fh: self.handle(ino), file: Arc::clone(&self.big) }),
            _ => Ok(Opened::Text { fh: self.handle(ino) }),
        }
    }

    /// Read.
    pub fn read(&self, fh: u64, offset: u64, size: u32) -> Result<Reply<Vec<u8>>, Error> {
        let ino = self.handles.lock().get(&fh).copied().unwrap_or(0);
        if ino == 5 {
            return Ok(self.later(Duration::from_secs(3600), Ok(Vec::new())));
        }
        assert!(ino != 7, "the demonstration panics");
        let text = Tree::text(ino);
        let from = text.len().min(offset as usize);
        Ok(Reply::Now(text[from..text.len().min(from + size as usize)].to_vec()))
    }

    fn later<T: Send + 'static>(&self, after: Duration, result: Result<T, Error>) -> Reply<T> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        let signal = self.completions.0.clone();
        std::thread::spawn(move || {
            std::thread::sleep(after);
            if sender.send(result).is_ok() {
                let _ = signal.try_send(());
            }
        });
        Reply::Later(Ticket(receiver))
    }

    /// Write.
    pub fn write(&self, _: u64, _: u64, data: &[u8], nonblock: bool, _: &Caller) -> Result<Reply<u32>, Error> {
        let done = data.len() as u32;
        match String::from_utf8_lossy(data).trim().split_once(' ') {
            Some(("sleep", _)) if nonblock => Ok(Reply::Now(done)),
            Some(("sleep", seconds)) => {
                Ok(self.later(Duration::from_secs_f64(seconds.parse().unwrap_or(1.0)), Ok(done)))
            }
            Some(("fail", _)) => Err(error(ErrorKind::Busy, "busy")),
            Some(("external", _)) => Ok(self.later(Duration::from_millis(50), Err(error(ErrorKind::External, "criu")))),
            _ => Ok(Reply::Now(done)),
        }
    }

    /// Close a file.
    pub fn release(&self, fh: u64) {
        self.handles.lock().remove(&fh);
    }

    /// Close a directory.
    pub fn release_dir(&self, fh: u64) {
        self.handles.lock().remove(&fh);
    }

    /// Remove a name.
    pub fn unlink(&self, _parent: u64, _name: &OsStr, _caller: &Caller) -> Result<(), Error> {
        Err(error(ErrorKind::Denied, "not removable"))
    }

    /// Remove a directory.
    pub fn remove_dir(&self, _parent: u64, _name: &OsStr, _caller: &Caller) -> Result<(), Error> {
        Err(error(ErrorKind::Denied, "not removable"))
    }

    /// Rename.
    #[allow(clippy::too_many_arguments)]
    pub fn rename(
        &self,
        _parent: u64,
        _name: &OsStr,
        _new_parent: u64,
        _new_name: &OsStr,
        _no_replace: bool,
        _caller: &Caller,
    ) -> Result<(), Error> {
        Err(error(ErrorKind::Denied, "not renamable"))
    }

    /// Why nothing can be made in `parent`.
    pub fn refuse(&self, _parent: u64, what: &str) -> Error {
        Error { kind: ErrorKind::Denied, message: format!("no {what} here") }
    }

    /// Space.
    pub fn statfs(&self) -> Result<Space, Error> {
        Ok(Space { bytes: 1 << 40, free: 1 << 39, files: 1000, files_free: 500 })
    }

    /// Readiness.
    pub fn poll(&self, fh: u64) -> Result<Ready, Error> {
        let ino = self.handles.lock().get(&fh).copied();
        Ok(Ready { read: ino != Some(5), write: true })
    }

    /// A wake-up whenever some ticket may have become ready.
    pub fn completions(&self) -> Receiver<()> {
        self.completions.1.clone()
    }
}

/// What SETATTR asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// A new size.
    pub size: Option<u64>,
    /// Another mode.
    pub mode: bool,
    /// Another owner or group.
    pub owner: bool,
    /// Other times.
    pub times: bool,
}

fn tempfile() -> std::io::Result<std::fs::File> {
    let path = format!("/var/tmp/snapfs-demo-{}", std::process::id());
    let file = std::fs::OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&path)?;
    std::fs::remove_file(path)?;
    Ok(file)
}
