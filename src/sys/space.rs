//! How much room a file system has: statvfs(3).

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::fs::StatVfs;

/// A file system's size and what is free of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Its size in bytes.
    pub bytes: u64,
    /// Bytes free for everybody.
    pub free: u64,
    /// Its inodes; 0 where it makes them as they are needed.
    pub files: u64,
    /// Inodes free.
    pub files_free: u64,
}

impl Space {
    /// That of the file system that holds `path`.
    pub fn of(path: &Path) -> io::Result<Space> {
        Ok(Space::from(rustix::fs::statvfs(path)?))
    }

    /// That of the file system of an open file, whatever is mounted over its path by now.
    pub fn of_open(file: impl AsFd) -> io::Result<Space> {
        Ok(Space::from(rustix::fs::fstatvfs(file)?))
    }
}

impl From<StatVfs> for Space {
    fn from(found: StatVfs) -> Space {
        Space {
            bytes: found.f_blocks.saturating_mul(found.f_frsize),
            free: found.f_bavail.saturating_mul(found.f_frsize),
            files: found.f_files,
            files_free: found.f_favail,
        }
    }
}
