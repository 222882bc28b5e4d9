//! What the tests share.

pub(crate) mod backend;
pub(crate) mod cgroup;
pub(crate) mod engine;
pub(crate) mod hung_fuse;
pub(crate) mod image;
pub(crate) mod lab;
pub(crate) mod mount;
pub(crate) mod rootfs;
pub(crate) mod slow_disk;
pub(crate) mod world;

use std::io::Write;
use std::path::Path;

use tempfile::TempDir;

/// Whether `what` is here: `root`, `fuse` (with root), or `lab` (with both). If not, the test that asks is to return: that is said
/// where the test runner cannot keep it to itself, and is a failure where `SNAPFS_TEST_REQUIRE` contains the word.
pub(crate) fn have(what: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    let (has, advice) = match what {
        "root" => (root, "run it as root"),
        "fuse" => (root && Path::new("/dev/fuse").exists(), "it needs root and /dev/fuse"),
        "lab" => (std::env::var_os("SNAPFS_LAB").is_some(), "run it through tests/lab/enter"),
        _ => panic!("{what:?} is nothing that a test can need"),
    };
    if !has {
        let required = std::env::var("SNAPFS_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.split(',').any(|word| word == what), "this test cannot run: {advice}");
        let thread = std::thread::current();
        let line = format!("SKIPPED: {}: {advice}\n", thread.name().unwrap_or_default());
        std::io::stderr().write_all(line.as_bytes()).unwrap();
    }
    has
}

/// A directory in memory, for tests that bring their own notion of what is durable and would wait for the disk in vain.
pub(crate) fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}
