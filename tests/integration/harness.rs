//! What the tests share.

pub(crate) mod backend;
pub(crate) mod cgroup;
pub(crate) mod engine;
pub(crate) mod hung_fuse;
pub(crate) mod image;
pub(crate) mod mount;
pub(crate) mod rootfs;
pub(crate) mod world;

use std::path::Path;

use tempfile::TempDir;

/// A directory in memory, for tests that bring their own notion of what is durable and would wait for the disk in vain.
pub(crate) fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}
