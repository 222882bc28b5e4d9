//! A directory, and operations on paths that cannot leave it: openat2(2) with `RESOLVE_BENEATH` and `RESOLVE_NO_SYMLINKS`.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};

use crate::sys::space::Space;

/// An open directory. Every path given to its methods is relative to it, and goes through real directories of the same
/// file system only; `.` is the directory itself.
///
/// The directory stays the same one when its path is renamed or mounted over.
#[derive(Debug)]
pub struct Root(OwnedFd);

impl Root {
    /// Open the directory at `path` (symbolic links are followed here, and here alone).
    pub fn open(path: &Path) -> io::Result<Root> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Root(rustix::fs::openat(CWD, path, flags, Mode::empty())?))
    }

    /// Whether this process's effective user owns the directory.
    pub fn is_ours(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstat(&self.0)?.st_uid == rustix::process::geteuid().as_raw())
    }

    /// How much room its file system has.
    pub fn space(&self) -> io::Result<Space> {
        Space::of_open(&self.0)
    }

    /// Let nobody but the owner in: mode 0700.
    pub fn close_to_others(&self) -> io::Result<()> {
        Ok(rustix::fs::fchmod(&self.0, Mode::RWXU)?)
    }

    /// A new file to write, of `mode` whatever the umask is; fails if the name exists.
    pub fn create(&self, path: &Path, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let file = self.open_with(path, flags, Mode::RUSR)?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
        Ok(file.into())
    }

    /// An existing file to read and write, made if it is missing.
    pub fn open_or_create(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::RDWR | OFlags::CREATE;
        Ok(self.open_with(path, flags, Mode::RUSR | Mode::WUSR)?.into())
    }

    /// An existing regular file to read. Anything else is `InvalidInput`, and no FIFO or device is waited for.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        let file = self.open_with(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())?;
        if file_type(&rustix::fs::fstat(&file)?) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        Ok(file.into())
    }

    /// A second name for the file `from`; fails if `to` exists.
    pub fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from), (to_dir, to)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::linkat(from_dir, from, to_dir, to, AtFlags::empty())?)
    }

    /// Move `from` to `to`, replacing what a rename(2) can replace.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let ((from_dir, from), (to_dir, to)) = (self.parent(from)?, self.parent(to)?);
        Ok(rustix::fs::renameat(from_dir, from, to_dir, to)?)
    }

    /// A new directory, mode 0700.
    pub fn make_dir(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(rustix::fs::mkdirat(dir, name, Mode::RWXU)?)
    }

    /// Remove the name of what is not a directory.
    pub fn remove_file(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::empty())?)
    }

    /// Remove an empty directory.
    pub fn remove_dir(&self, path: &Path) -> io::Result<()> {
        let (dir, name) = self.parent(path)?;
        Ok(rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)?)
    }

    /// Wait until the directory's entries are on the disk: fsync(2).
    pub fn sync_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::fsync(self.open_with(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?)?)
    }

    /// The type and size of what the path names; a symbolic link is not followed.
    pub fn stat(&self, path: &Path) -> io::Result<(FileKind, u64)> {
        let (dir, name) = self.parent(path)?;
        let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok((file_type(&stat).into(), u64::try_from(stat.st_size).unwrap_or(0)))
    }

    /// The names in a directory with their types, in no order, without `.` and `..`.
    pub fn list(&self, path: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        let fd = self.open_with(path, OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())?;
        let mut entries = Vec::new();
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let mut kind = entry.file_type();
            if kind == FileType::Unknown {
                // Some file systems leave the type out of the directory.
                kind = file_type(&rustix::fs::statat(&fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW)?);
            }
            entries.push((name.to_owned(), kind.into()));
        }
        Ok(entries)
    }

    fn open_with(&self, path: &Path, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
        let inside =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        Ok(rustix::fs::openat2(&self.0, path, flags | OFlags::CLOEXEC, mode, inside)?)
    }

    fn parent<'path>(&self, path: &'path Path) -> io::Result<(OwnedFd, &'path OsStr)> {
        let name =
            path.file_name().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no name"))?;
        let parent = match path.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        Ok((self.open_with(parent, OFlags::PATH | OFlags::DIRECTORY, Mode::empty())?, name))
    }
}

/// What a directory entry is, as far as a tree of plain files needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link, FIFO, socket or device.
    Other,
}

impl From<FileType> for FileKind {
    fn from(file_type: FileType) -> FileKind {
        match file_type {
            FileType::RegularFile => FileKind::File,
            FileType::Directory => FileKind::Directory,
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => FileKind::Other,
        }
    }
}

fn file_type(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn never_leaves_the_directory() {
        let top = tempfile::tempdir().unwrap();
        std::fs::write(top.path().join("secret"), "x").unwrap();
        std::fs::create_dir(top.path().join("root")).unwrap();
        symlink("../secret", top.path().join("root/link")).unwrap();
        symlink("..", top.path().join("root/up")).unwrap();
        let root = Root::open(&top.path().join("root")).unwrap();
        for path in ["../secret", "link", "up/secret", "/etc/passwd"] {
            assert!(root.open_file(Path::new(path)).is_err(), "{path}");
        }
        assert!(root.rename(Path::new("link"), Path::new("up/stolen")).is_err());
        assert!(root.create(Path::new("../made"), 0o444).is_err());
        assert_eq!(root.stat(Path::new("link")).unwrap().0, FileKind::Other);
    }

    #[test]
    fn a_fifo_is_refused_and_not_waited_for() {
        let top = tempfile::tempdir().unwrap();
        rustix::fs::mknodat(CWD, top.path().join("fifo"), FileType::Fifo, Mode::RWXU, 0).unwrap();
        let error = Root::open(top.path()).unwrap().open_file(Path::new("fifo")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn files_have_the_mode_asked_for_and_names_are_listed() {
        let top = tempfile::tempdir().unwrap();
        let root = Root::open(top.path()).unwrap();
        root.make_dir(Path::new("d")).unwrap();
        root.create(Path::new("d/f"), 0o444).unwrap().write_all(b"abc").unwrap();
        root.link(Path::new("d/f"), Path::new("g")).unwrap();
        assert_eq!(root.link(Path::new("d/f"), Path::new("g")).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::metadata(top.path().join("g")).unwrap().mode() & 0o7777, 0o444);
        assert_eq!(root.stat(Path::new("g")).unwrap(), (FileKind::File, 3));
        let mut entries = root.list(Path::new(".")).unwrap();
        entries.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(entries, [("d".into(), FileKind::Directory), ("g".into(), FileKind::File)]);
        root.sync_dir(Path::new("d")).unwrap();
    }
}
