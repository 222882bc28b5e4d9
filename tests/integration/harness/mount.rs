//! The real daemon on a real mount.

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// `snapfs`, as built for this test.
pub(crate) const SNAPFS: &str = env!("CARGO_BIN_EXE_snapfs");
/// `mount.snapfs`, under the name that Cargo allows.
pub(crate) const HELPER: &str = env!("CARGO_BIN_EXE_mount-snapfs");

/// Whether mounts can be made here. If not it says so, or fails where `SNAPFS_TEST_REQUIRE` contains `fuse`.
pub(crate) fn can_mount() -> bool {
    let can = nix::unistd::geteuid().is_root() && Path::new("/dev/fuse").exists();
    can_run(can, "fuse", "root and /dev/fuse")
}

/// Whether this is the lab, where files may be installed; said and required likewise.
pub(crate) fn in_lab() -> bool {
    can_run(std::env::var_os("SNAPFS_LAB").is_some(), "lab", "tests/lab/enter")
}

fn can_run(can: bool, requirement: &str, what: &str) -> bool {
    let required = std::env::var("SNAPFS_TEST_REQUIRE").unwrap_or_default();
    assert!(can || !required.split(',').any(|name| name == requirement), "this test needs {what}");
    if !can {
        println!("NOT TESTED: this needs {what}");
    }
    can
}

/// A directory to mount on and a store, both forgotten at the end, and what is mounted there is detached.
#[derive(Debug)]
pub(crate) struct Place {
    root: TempDir,
}

impl Place {
    pub(crate) fn new() -> Place {
        let root = tempfile::tempdir().unwrap();
        for directory in ["mnt", "store", "runc", "crun", "podman", "podman-run"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        Place { root }
    }

    /// Where the tree is.
    pub(crate) fn dir(&self) -> PathBuf {
        self.root.path().join("mnt")
    }

    /// Another path in the same temporary directory.
    pub(crate) fn other(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    /// The options that keep the daemon away from this machine's containers and store.
    pub(crate) fn options(&self) -> String {
        let dir = |name: &str| self.other(name).display().to_string();
        format!(
            "store={},runc-root={},crun-root={},podman-root={},podman-runroot={},log={}",
            dir("store"),
            dir("runc"),
            dir("crun"),
            dir("podman"),
            dir("podman-run"),
            dir("log"),
        )
    }

    /// `snapfs mount ARGUMENTS -o OPTIONS test DIR`
    pub(crate) fn mount(&self, arguments: &[&str]) -> Command {
        let mut command = command(SNAPFS);
        command.arg("mount").args(arguments).args(["-o", &self.options(), "test"]).arg(self.dir());
        command
    }

    /// A daemon in the foreground, whose mount can be seen.
    pub(crate) fn serve(&self) -> Daemon {
        // A file: a pipe that nobody reads would stop the daemon once it is full.
        let log = self.other("stderr");
        let stderr = fs::File::create(&log).unwrap();
        let child = self.mount(&["--foreground", "-v"]).stdin(Stdio::null()).stderr(stderr).spawn().unwrap();
        let daemon = Daemon { child, log };
        eventually("the daemon serves", || daemon.log().contains("serving"));
        assert_eq!(self.mounted(), 1);
        daemon
    }

    /// How many snapfs lie on the directory.
    pub(crate) fn mounted(&self) -> usize {
        let dir = self.dir();
        let mounts = snapfs::sys::mount::mounts().unwrap();
        mounts.iter().filter(|mount| mount.point == dir && mount.fs_type == "fuse.snapfs").count()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        while self.mounted() > 0 && umount2(&self.dir(), MntFlags::MNT_DETACH).is_ok() {}
    }
}

/// A daemon in the foreground; killed at the end.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id().try_into().unwrap()), signal).unwrap();
    }

    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Wait for its end.
    pub(crate) fn end(&mut self, within: Duration) -> ExitStatus {
        let limit = Instant::now() + within;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < limit, "the daemon has not ended within {within:?}");
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// All that it logged so far.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program to run.
#[allow(clippy::disallowed_methods, reason = "tests start what the product does not")]
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    Command::new(program)
}

/// Exit code and standard error.
pub(crate) fn told(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Wait for a thing that comes by itself.
pub(crate) fn eventually(what: &str, mut come: impl FnMut() -> bool) {
    let limit = Instant::now() + Duration::from_secs(10);
    while !come() {
        assert!(Instant::now() < limit, "after ten seconds it is not so that {what}");
        thread::sleep(Duration::from_millis(5));
    }
}
