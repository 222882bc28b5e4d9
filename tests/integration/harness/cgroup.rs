//! Real cgroups with real tasks in them, removed with the value.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use snapfs::guard::Init;
use snapfs::sys::cgroup::{Cgroups, Version};

/// The freezers of this machine: cgroup v1, v2, or both.
pub fn versions() -> Vec<Version> {
    let versions: Vec<Version> =
        [Version::V1, Version::V2].into_iter().filter(|&version| mount(version).is_some()).collect();
    assert!(!versions.is_empty(), "no cgroup hierarchy with a freezer is mounted below /sys/fs/cgroup");
    versions
}

fn mount(version: Version) -> Option<PathBuf> {
    let candidates = match version {
        Version::V1 => vec!["/sys/fs/cgroup/freezer"],
        Version::V2 => vec!["/sys/fs/cgroup/unified", "/sys/fs/cgroup"],
    };
    candidates.into_iter().map(PathBuf::from).find(|path| path.join("cgroup.procs").exists())
}

/// A cgroup of its own for one test.
#[derive(Debug)]
pub struct Group {
    pub version: Version,
    pub path: PathBuf,
    children: Vec<Child>,
}

impl Group {
    pub fn new(version: Version) -> Group {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        loop {
            let name = format!("snapfs-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
            let path = mount(version).unwrap().join(name);
            match fs::create_dir(&path) {
                Ok(()) => return Group { version, path, children: Vec::new() },
                // What a test that was killed left, whose number we have now.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => panic!("cannot make {}: {error}", path.display()),
            }
        }
    }

    /// A group with a task that keeps a processor busy.
    pub fn busy(version: Version) -> (Group, Init) {
        let mut group = Group::new(version);
        let init = group.run("while :; do :; done");
        (group, init)
    }

    /// Run a shell script in the group.
    pub fn run(&mut self, script: &str) -> Init {
        // It waits for its place, so that all it starts is in the group too.
        let script = format!("read go; {script}");
        let mut child = command("/bin/sh").args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        let init = Init::of(child.id()).unwrap();
        self.add(init.pid);
        drop(child.stdin.take());
        self.children.push(child);
        init
    }

    pub fn add(&self, pid: u32) {
        fs::write(self.path.join("cgroup.procs"), pid.to_string()).unwrap();
    }

    pub fn cgroups(&self) -> Cgroups {
        cgroups(self.version, &self.path)
    }

    /// Freeze or thaw it as its user would.
    pub fn write(&self, frozen: bool) {
        let (file, word) = match (self.version, frozen) {
            (Version::V1, true) => ("freezer.state", "FROZEN"),
            (Version::V1, false) => ("freezer.state", "THAWED"),
            (Version::V2, true) => ("cgroup.freeze", "1"),
            (Version::V2, false) => ("cgroup.freeze", "0"),
        };
        fs::write(self.path.join(file), word).unwrap();
    }

    /// Whether a freeze of it is requested.
    pub fn is_frozen(&self) -> bool {
        let file = match self.version {
            Version::V1 => "freezer.self_freezing",
            Version::V2 => "cgroup.freeze",
        };
        fs::read_to_string(self.path.join(file)).unwrap().trim() == "1"
    }

    /// Whether all of its tasks are stopped.
    pub fn is_settled(&self) -> bool {
        match self.version {
            Version::V1 => fs::read_to_string(self.path.join("freezer.state")).unwrap().trim() == "FROZEN",
            Version::V2 => fs::read_to_string(self.path.join("cgroup.events")).unwrap().contains("frozen 1"),
        }
    }

    /// Kill what is in it, thaw it, and remove it.
    pub fn remove(&mut self) {
        for child in &mut self.children {
            // It may have ended.
            let _ = child.kill();
        }
        if self.path.exists() {
            self.write(false);
        }
        for child in &mut self.children {
            child.wait().unwrap();
        }
        self.children.clear();
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            match fs::remove_dir(&self.path) {
                Ok(()) => return,
                Err(error) if error.kind() == ErrorKind::NotFound => return,
                // A second panic would abort, and leave behind what the other tests would have taken away.
                Err(_) if Instant::now() > until && thread::panicking() => return,
                Err(error) if Instant::now() > until => panic!("cannot remove {}: {error}", self.path.display()),
                Err(_) => {
                    for pid in numbers(&self.path.join("cgroup.procs")) {
                        let pid = nix::unistd::Pid::from_raw(pid);
                        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
                    }
                    thread::sleep(Duration::from_millis(5));
                }
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.remove();
    }
}

fn numbers(file: &Path) -> Vec<i32> {
    fs::read_to_string(file).unwrap_or_default().lines().filter_map(|line| line.parse().ok()).collect()
}

/// The directory as the engines name it.
pub fn cgroups(version: Version, path: &Path) -> Cgroups {
    match version {
        Version::V1 => Cgroups { v1_freezer: Some(path.to_owned()), v2: None },
        Version::V2 => Cgroups { v1_freezer: None, v2: Some(path.to_owned()) },
    }
}

/// The processor time that the process has used, in clock ticks.
pub fn ticks(pid: u32) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// Whether the busy task `pid` gets processor time now.
pub fn runs(pid: u32) -> bool {
    let (before, until) = (ticks(pid), Instant::now() + Duration::from_secs(3));
    while Instant::now() < until {
        if ticks(pid) > before + 1 {
            return true;
        }
        thread::sleep(Duration::from_millis(5));
    }
    false
}

/// A program of the test's own, with nothing on its standard input.
#[expect(clippy::disallowed_methods, reason = "tests start what the product does not")]
pub fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(program);
    command.stdin(Stdio::null());
    command
}

/// Wait until `done`, or fail after `limit`.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) {
    let until = Instant::now() + limit;
    while !done() {
        assert!(Instant::now() < until, "{what}: not within {limit:?}");
        thread::sleep(Duration::from_millis(1));
    }
}
