//! Files below a directory, whatever their names and what lies there say.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

/// A directory that the paths opened through it do not leave: `openat2(2)` resolves them.
#[derive(Debug)]
pub struct Inside(OwnedFd);

impl Inside {
    /// The directory at `path`, which is trusted: symbolic links in it are followed.
    pub fn open(path: &Path) -> io::Result<Inside> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Inside(rustix::fs::open(path, flags, Mode::empty())?))
    }

    /// The regular file at `path`, for reading.
    ///
    /// Symbolic links on the way are resolved as if the directory were the root; the last component must not be one.
    /// Anything but a regular file is refused with `InvalidInput` before it is opened: opening a device can do
    /// something, opening a FIFO can wait for ever.
    pub fn open_file(&self, path: &Path) -> io::Result<File> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let found = openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)?;
        if FileType::from_raw_mode(fstat(&found)?.st_mode) != FileType::RegularFile {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
        }
        // The only way from a path descriptor to one that reads, without looking the name up again: proc(5).
        File::open(format!("/proc/self/fd/{}", found.as_raw_fd()))
    }

    /// Succeeds if `path` is a directory and is reached without a symbolic link and without `..` beyond this directory.
    pub fn check_directory(&self, path: &Path) -> io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        openat2(&self.0, path, flags, Mode::empty(), ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_do_not_lead_out() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("secret"), "secret").unwrap();
        let inside = outside.path().join("inside");
        fs::create_dir_all(inside.join("real")).unwrap();
        fs::write(inside.join("real/file"), "ours").unwrap();
        symlink("/real", inside.join("absolute")).unwrap();
        symlink(outside.path(), inside.join("out")).unwrap();
        symlink("real/file", inside.join("last")).unwrap();

        let directory = Inside::open(&inside).unwrap();
        let mut text = String::new();
        directory.open_file(Path::new("absolute/file")).unwrap().read_to_string(&mut text).unwrap();
        assert_eq!(text, "ours");
        for path in ["out/secret", "../secret", "last", "real", "missing"] {
            assert!(directory.open_file(Path::new(path)).is_err(), "{path}");
        }
        directory.check_directory(Path::new("real")).unwrap();
        for path in ["absolute", "out", "..", "real/../..", "real/file"] {
            assert!(directory.check_directory(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn a_device_is_not_opened() {
        let error = Inside::open(Path::new("/dev")).unwrap().open_file(Path::new("null")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
    }
}
