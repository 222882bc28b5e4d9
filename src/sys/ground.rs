//! Files of every kind, made below one directory and nowhere else: what unpacks an image needs no path but the image's own.
//!
//! The names and what they lead through are hostile. Every path goes through real directories below the first one only,
//! whatever symbolic links lie there: openat2(2) with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

/// What is neither a file, a directory nor a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Special {
    /// A character device with its two numbers.
    CharDevice(u32, u32),
    /// A block device with its two numbers.
    BlockDevice(u32, u32),
    /// A FIFO.
    Fifo,
}

/// What a file has beside its content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// The permission bits, with set-user-ID, set-group-ID and sticky; a symbolic link has none.
    pub mode: Option<u16>,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// Seconds since the epoch, and nanoseconds forward from there.
    pub mtime: (i64, u32),
    /// Names and values.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// An open directory. Every path given to its methods is relative to it.
#[derive(Debug)]
pub struct Ground(OwnedFd);

impl Ground {
    /// Open the directory at `path` (symbolic links are followed here, and here alone).
    pub fn open(path: &Path) -> io::Result<Ground> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Ground(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// A directory, unless it is one already; what else has the name goes.
    pub fn directory(&self, path: &[u8]) -> io::Result<()> {
        let (parent, name) = self.parent(path)?;
        match rustix::fs::mkdirat(&parent, name, Mode::RWXU) {
            Err(Errno::EXIST) if kind(&parent, name)? == FileType::Directory => Ok(()),
            Err(Errno::EXIST) => {
                rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
                Ok(rustix::fs::mkdirat(&parent, name, Mode::RWXU)?)
            }
            made => Ok(made?),
        }
    }

    /// A new, empty file to write; what has the name goes.
    pub fn file(&self, path: &[u8]) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = self.replace(path, |parent, name| rustix::fs::openat(parent, name, flags, Mode::RUSR))?;
        Ok(file.into())
    }

    /// A symbolic link; what has the name goes.
    pub fn symlink(&self, path: &[u8], target: &[u8]) -> io::Result<()> {
        self.replace(path, |parent, name| rustix::fs::symlinkat(OsStr::from_bytes(target), parent, name))
    }

    /// One more name for `existing`; what has the name goes.
    pub fn link(&self, path: &[u8], existing: &[u8]) -> io::Result<()> {
        let (from, from_name) = self.parent(existing)?;
        self.replace(path, |parent, name| rustix::fs::linkat(&from, from_name, parent, name, AtFlags::empty()))
    }

    /// A device or a FIFO; what has the name goes.
    pub fn special(&self, path: &[u8], special: Special) -> io::Result<()> {
        let (kind, major, minor) = match special {
            Special::CharDevice(major, minor) => (FileType::CharacterDevice, major, minor),
            Special::BlockDevice(major, minor) => (FileType::BlockDevice, major, minor),
            Special::Fifo => (FileType::Fifo, 0, 0),
        };
        let device = rustix::fs::makedev(major, minor);
        self.replace(path, |parent, name| rustix::fs::mknodat(parent, name, kind, Mode::RUSR, device))
    }

    /// Give what has the name its attributes; an empty path is the directory itself. Attributes that the file system does
    /// not know are left out: how many.
    pub fn set(&self, path: &[u8], attributes: &Attributes) -> io::Result<usize> {
        let node = if path.is_empty() {
            rustix::fs::openat(&self.0, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?
        } else {
            let (parent, name) = self.parent(path)?;
            rustix::fs::openat(&parent, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?
        };
        let through = format!("/proc/self/fd/{}", node.as_raw_fd());
        let (uid, gid) = (Uid::from_raw(attributes.uid), Gid::from_raw(attributes.gid));
        // A change of the owner takes rights away, so that it comes first.
        rustix::fs::chownat(&node, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)?;
        if let Some(mode) = attributes.mode {
            rustix::fs::chmod(&*through, Mode::from_raw_mode(mode.into()))?;
        }
        let mut left_out = 0;
        for (name, value) in &attributes.xattrs {
            match rustix::fs::setxattr(&*through, OsStr::from_bytes(name), value, XattrFlags::empty()) {
                Err(Errno::OPNOTSUPP | Errno::PERM) => left_out += 1,
                set => set?,
            }
        }
        let (seconds, nanoseconds) = attributes.mtime;
        let time = Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &*through, &times, AtFlags::empty())?;
        Ok(left_out)
    }

    /// Remove what has the name, with all that is in it; what is not there is no error.
    pub fn remove(&self, path: &[u8]) -> io::Result<()> {
        match self.parent(path) {
            Ok((parent, name)) => remove(&parent, name, DEEPEST),
            // It lies in what is not there, or is no directory.
            Err(error) if is_nothing(&error) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn replace<T>(&self, path: &[u8], make: impl Fn(&OwnedFd, &OsStr) -> rustix::io::Result<T>) -> io::Result<T> {
        let (parent, name) = self.parent(path)?;
        match make(&parent, name) {
            Err(Errno::EXIST) => {
                remove(&parent, name, DEEPEST)?;
                Ok(make(&parent, name)?)
            }
            made => Ok(made?),
        }
    }

    fn parent<'path>(&self, path: &'path [u8]) -> io::Result<(OwnedFd, &'path OsStr)> {
        let path = Path::new(OsStr::from_bytes(path));
        let name = path.file_name().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok((rustix::fs::openat2(&self.0, parent, flags, Mode::empty(), inside)?, name))
    }
}

/// How deep a directory may be that is removed: each level is an open file.
const DEEPEST: u32 = 4096;

fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || error.raw_os_error() == Some(Errno::LOOP.raw_os_error())
}

fn kind(parent: &OwnedFd, name: &OsStr) -> rustix::io::Result<FileType> {
    rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|stat| FileType::from_raw_mode(stat.st_mode))
}

/// Never out of `parent`: a directory is opened without following a link, and on no other file system.
fn remove(parent: &OwnedFd, name: &OsStr, depth: u32) -> io::Result<()> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(error) => return Err(error.into()),
    }
    let inside = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat2(parent, name, flags, Mode::empty(), inside)?;
    let deeper = depth.checked_sub(1).ok_or_else(|| io::Error::from(Errno::LOOP))?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            remove(&directory, name, deeper)?;
        }
    }
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

/// Remove a directory of ours with all that is in it; what is mounted in it stops that. One that is not there is no error.
///
/// # Errors
/// What the file system answers.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match Ground::open(parent) {
        Ok(ground) => remove(&ground.0, name, DEEPEST),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Give what is called `new` the name `path` in the same directory, which is durable when this returns.
///
/// # Errors
/// What rename(2) and fsync(2) answer.
pub fn put_in_place(new: &Path, path: &Path) -> io::Result<()> {
    let parent = path.parent().ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    rustix::fs::rename(new, path)?;
    Ok(rustix::fs::fsync(Ground::open(parent)?.0)?)
}

/// One more name, `path`, for an open file; it must be on the same file system, and `path` be free.
///
/// # Errors
/// What linkat(2) answers.
pub fn link_file(file: &File, path: &Path) -> io::Result<()> {
    let through = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(rustix::fs::linkat(CWD, &*through, CWD, path, AtFlags::SYMLINK_FOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, symlink};

    fn attributes(mode: Option<u16>) -> Attributes {
        let xattrs = vec![(b"trusted.x".to_vec(), b"v\0".to_vec())];
        Attributes { mode, uid: 7, gid: 8, mtime: (-5, 9), xattrs }
    }

    #[test]
    fn links_lead_nowhere() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("root/d")).unwrap();
        fs::write(top.path().join("kept"), "x").unwrap();
        symlink("..", top.path().join("root/up")).unwrap();
        symlink("/", top.path().join("root/abs")).unwrap();
        let ground = Ground::open(&top.path().join("root")).unwrap();
        for path in [&b"up/new"[..], b"abs/new", b"../new", b"d/../../new", b".."] {
            assert!(ground.file(path).is_err() && ground.directory(path).is_err(), "{path:?}");
        }
        assert!(ground.link(b"stolen", b"up/kept").is_err());
        ground.remove(b"up/kept").unwrap();
        // The link itself goes, and not what it leads to.
        ground.remove(b"up").unwrap();
        ground.directory(b"abs").unwrap();
        assert!(fs::symlink_metadata(top.path().join("root/abs")).unwrap().is_dir());
        assert_eq!(fs::read(top.path().join("kept")).unwrap(), b"x");
    }

    #[test]
    fn all_kinds_are_made_in_the_place_of_what_was_there() {
        let top = tempfile::tempdir().unwrap();
        let ground = Ground::open(top.path()).unwrap();
        for round in 0..2 {
            ground.directory(b"d").unwrap();
            ground.file(b"d/f").unwrap().write_all(b"abc").unwrap();
            ground.symlink(b"d/l", b"../nowhere").unwrap();
            ground.link(b"d/g", b"d/f").unwrap();
            ground.special(b"p", Special::Fifo).unwrap();
            assert_eq!(ground.set(b"d/f", &attributes(Some(0o4755))).unwrap(), 0);
            ground.set(b"d/l", &attributes(None)).unwrap();
            ground.set(b"d", &attributes(Some(0o1777))).unwrap();
            let file = fs::metadata(top.path().join("d/g")).unwrap();
            assert_eq!((file.mode() & 0o7777, file.uid(), file.gid(), file.nlink()), (0o4755, 7, 8, 2), "{round}");
            assert_eq!((file.mtime(), file.mtime_nsec()), (-5, 9));
            let link = fs::symlink_metadata(top.path().join("d/l")).unwrap();
            assert_eq!((link.uid(), link.mtime()), (7, -5));
            assert_eq!(fs::metadata(top.path().join("d")).unwrap().mode() & 0o7777, 0o1777);
        }
        // A directory in the place of a file, and the other way round.
        ground.file(b"d").unwrap();
        ground.directory(b"p").unwrap();
        assert!(fs::metadata(top.path().join("d")).unwrap().is_file());
        remove_tree(&top.path().join("p")).unwrap();
        remove_tree(&top.path().join("p")).unwrap();
        assert!(!top.path().join("p").exists());
    }
}
