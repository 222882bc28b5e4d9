//! The real daemon on a real mount.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::Once;
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

/// Whether mounts can be made here.
pub(crate) fn can_mount() -> bool {
    crate::harness::have("fuse")
}

/// Whether this is the lab, where there are engines and files may be installed.
pub(crate) fn in_lab() -> bool {
    crate::harness::have("lab")
}

/// Install in the lab, once, what this test was built with.
pub(crate) fn install() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let built = Path::new(SNAPFS).parent().unwrap();
        let release = format!("release={}", built.display());
        let mut make = command("make");
        let output = make.args(["--directory", env!("CARGO_MANIFEST_DIR"), "install", &release]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
    });
}

/// A directory to mount on and a store, both forgotten at the end, and what is mounted there is detached.
#[derive(Debug)]
pub(crate) struct Place {
    root: TempDir,
    has_podman: bool,
}

impl Place {
    /// One whose daemon sees no container but those of the state directories `runc` and `crun` in it.
    pub(crate) fn new() -> Place {
        Place::at(tempfile::tempdir().unwrap(), false)
    }

    /// One in the lab, on a real file system, whose daemon sees podman's containers as well.
    pub(crate) fn with_podman() -> Place {
        Place::at(tempfile::tempdir_in("/scratch").unwrap(), true)
    }

    /// One in the lab, on a real file system.
    pub(crate) fn on_disk() -> Place {
        Place::at(tempfile::tempdir_in("/scratch").unwrap(), false)
    }

    fn at(root: TempDir, has_podman: bool) -> Place {
        for directory in ["mnt", "store", "runc", "crun", "podman", "podman-run"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        Place { root, has_podman }
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
        let own =
            ["store", "runc-root", "crun-root"].map(|name| format!("{name}={}", dir(name.trim_end_matches("-root"))));
        let podman = format!("podman-root={},podman-runroot={},", dir("podman"), dir("podman-run"));
        format!("{},{}log={}", own.join(","), if self.has_podman { "" } else { &podman }, dir("log"))
    }

    /// `snapfs mount ARGUMENTS -o OPTIONS test DIR`
    pub(crate) fn mount(&self, arguments: &[&str]) -> Command {
        let mut command = command(SNAPFS);
        command.arg("mount").args(arguments).args(["-o", &self.options(), "test"]).arg(self.dir());
        command
    }

    /// A daemon in the foreground, whose mount can be seen.
    pub(crate) fn serve(&self) -> Daemon {
        self.serve_with(&["-v"])
    }

    /// The same with more arguments.
    pub(crate) fn serve_with(&self, arguments: &[&str]) -> Daemon {
        // A file: nobody reads along, and a pipe would fill up.
        let log = self.other("foreground.log");
        let mut mount = self.mount(&[&["--foreground"], arguments].concat());
        let child = mount.stdin(Stdio::null()).stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut daemon = Daemon { child, log };
        // Not only that it is mounted: the dead mount of a killed daemon is that, too.
        eventually("the mount can be used", || {
            assert!(daemon.runs(), "the daemon has ended: {}", daemon.log());
            fs::read(self.dir().join("version")).is_ok()
        });
        daemon
    }

    /// A text file of the tree, without the newline at its end.
    pub(crate) fn read(&self, path: &str) -> String {
        let text = fs::read_to_string(self.dir().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
        text.strip_suffix('\n').map(str::to_owned).unwrap_or(text)
    }

    /// Write one line to a control file.
    pub(crate) fn write(&self, path: &str, line: &str) -> io::Result<()> {
        let mut file = fs::File::options().write(true).open(self.dir().join(path))?;
        // Not write_all: that would write again after an interruption.
        file.write(format!("{line}\n").as_bytes()).map(|_| ())
    }

    /// Commit a container, which must succeed; the image's name is the first word of `line`. Returns its directory.
    pub(crate) fn commit(&self, container: &str, line: &str) -> PathBuf {
        if let Err(error) = self.write(&format!("containers/{container}/commit"), line) {
            panic!(
                "commit of {container}, {line}: {error}: {}",
                self.read(&format!("containers/{container}/last_error"))
            );
        }
        self.dir().join("images").join(line.split(' ').next().unwrap())
    }

    /// The names in a directory of the tree, sorted.
    pub(crate) fn list(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.dir().join(path)).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
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

    /// All that it has logged.
    pub(crate) fn log(&mut self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
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
