//! Programs with a deadline, and the lab's real containers, which are gone when they are dropped.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;
use tempfile::TempDir;

use crate::harness::mount::{command, eventually};

/// How long a program may take unless a test says otherwise: the machine may be busy with other things.
pub(crate) const LIMIT: Duration = Duration::from_secs(60);

/// A program that runs, in a process group of its own, with nothing to read. Killed, with its group, when dropped.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    shown: String,
    // Files and not pipes: what a program leaves running behind may keep them open.
    stdout: File,
    stderr: File,
}

/// How a program ended.
#[derive(Debug)]
pub(crate) struct Ended {
    /// Its exit status; 128 and the signal's number if one ended it, as a shell has it.
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// Start a program.
pub(crate) fn start(words: &[&str]) -> Running {
    let (stdout, stderr) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let mut program = command(words[0]);
    program.args(&words[1..]).process_group(0).stdin(Stdio::null());
    program.stdout(stdout.try_clone().unwrap()).stderr(stderr.try_clone().unwrap());
    let shown = words.join(" ");
    let child = program.spawn().unwrap_or_else(|error| panic!("{shown}: {error}"));
    Running { child, shown, stdout, stderr }
}

impl Running {
    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().try_into().unwrap())
    }

    /// Send a signal to it, and to it alone.
    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).unwrap();
    }

    /// Whether it has not ended.
    pub(crate) fn runs(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Wait for its end.
    pub(crate) fn end(mut self, within: Duration) -> Ended {
        let limit = Instant::now() + within;
        while self.runs() {
            if Instant::now() > limit {
                let output = self.output();
                panic!("not ended within {within:?}: {}\n{output:?}", self.shown);
            }
            thread::sleep(Duration::from_millis(2));
        }
        let status = self.child.wait().unwrap();
        let (stdout, stderr) = self.output();
        Ended { code: status.code().or_else(|| status.signal().map(|number| 128 + number)).unwrap(), stdout, stderr }
    }

    fn output(&mut self) -> (String, String) {
        let read = |file: &mut File| {
            let mut bytes = Vec::new();
            file.seek(SeekFrom::Start(0)).unwrap();
            file.read_to_end(&mut bytes).unwrap();
            String::from_utf8_lossy(&bytes).into_owned()
        };
        (read(&mut self.stdout), read(&mut self.stderr))
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.runs() {
            // It may end at this moment.
            let _ = killpg(self.pid(), Signal::SIGKILL);
            let _ = self.child.wait();
        }
    }
}

/// Run a program to its end, whatever that is.
pub(crate) fn attempt(words: &[&str]) -> Ended {
    start(words).end(LIMIT)
}

/// Run a program that must succeed; its output, without white space around it.
pub(crate) fn run(words: &[&str]) -> String {
    let ended = attempt(words);
    assert_eq!(ended.code, 0, "{words:?}: {}{}", ended.stdout, ended.stderr);
    ended.stdout.trim().to_owned()
}

/// A script of tests/lab.
pub(crate) fn script(name: &str) -> String {
    format!("{}/tests/lab/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A path as the tools want it.
pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A directory on a real file system, on which an overlay can be mounted.
pub(crate) fn directory() -> TempDir {
    tempfile::tempdir_in("/scratch").unwrap()
}

/// A container that runs, or ran, and whose files can be seen from here.
pub(crate) trait Container {
    /// The name at its engine.
    fn name(&self) -> &str;
    /// Its root file system on the host, without what is mounted in it.
    fn root(&self) -> PathBuf;
    /// Freeze it, as its user would.
    fn pause(&self);
    /// Let it run on.
    fn unpause(&self);
}

/// podman has one store: one test at a time. Drop it last.
#[derive(Debug)]
pub(crate) struct Podman {
    _turn: MutexGuard<'static, ()>,
}

static PODMAN: Mutex<()> = Mutex::new(());

impl Podman {
    /// The lab's podman, with the images of tests/lab/images and no container.
    pub(crate) fn take() -> Podman {
        let turn = PODMAN.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        run(&[&script("images")]);
        let podman = Podman { _turn: turn };
        podman.clear();
        podman
    }

    fn clear(&self) {
        run(&["podman", "rm", "--force", "--all", "--time", "0"]);
        run(&["podman", "volume", "prune", "--force"]);
        for image in run(&["podman", "images", "--all", "--quiet", "--filter", "dangling=true"]).lines() {
            // One that another stands on stays.
            attempt(&["podman", "rmi", "--force", image]);
        }
    }

    /// `podman run -d --name NAME WORDS`
    pub(crate) fn start(&self, name: &str, words: &[&str]) -> PodmanContainer {
        let id = run(&[&["podman", "run", "--detach", "--name", name], words].concat());
        PodmanContainer { name: name.to_owned(), id }
    }

    /// `podman create --name NAME WORDS`
    pub(crate) fn create(&self, name: &str, words: &[&str]) -> PodmanContainer {
        let id = run(&[&["podman", "create", "--name", name], words].concat());
        PodmanContainer { name: name.to_owned(), id }
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        if !thread::panicking() {
            self.clear();
        }
    }
}

/// A container of podman's, removed when dropped.
#[derive(Debug)]
pub(crate) struct PodmanContainer {
    name: String,
    pub(crate) id: String,
}

impl PodmanContainer {
    /// A field of `podman container inspect`, such as `.State.Pid`.
    pub(crate) fn inspect(&self, field: &str) -> String {
        run(&["podman", "container", "inspect", "--format", &format!("{{{{{field}}}}}"), &self.id])
    }
}

impl Container for PodmanContainer {
    fn name(&self) -> &str {
        &self.name
    }

    fn root(&self) -> PathBuf {
        // It stays mounted until the container is removed, so that the path can be used.
        PathBuf::from(run(&["podman", "mount", &self.id]))
    }

    fn pause(&self) {
        run(&["podman", "pause", &self.id]);
    }

    fn unpause(&self) {
        run(&["podman", "unpause", &self.id]);
    }
}

impl Drop for PodmanContainer {
    fn drop(&mut self) {
        attempt(&["podman", "rm", "--force", "--time", "0", "--ignore", &self.id]);
    }
}

/// A bundle of tests/lab/bundle, and a container of runc or crun in it, with state directories of the test's own.
#[derive(Debug)]
pub(crate) struct Bundle {
    directory: TempDir,
    states: PathBuf,
    runtime: &'static str,
    name: String,
    is_overlay: bool,
}

impl Bundle {
    /// Make the bundle; `kind` is `overlay` or `plain`, `script` what its shell runs. Nothing runs yet.
    pub(crate) fn new(runtime: &'static str, states: &Path, name: &str, kind: &str, shell: &str) -> Bundle {
        let directory = directory();
        let at = directory.path().join("bundle");
        run(&[&script("bundle"), text(&at), &format!("--{kind}"), "/bin/sh", "-c", shell]);
        let (states, name) = (states.to_owned(), name.to_owned());
        let bundle = Bundle { directory, states, runtime, name, is_overlay: kind == "overlay" };
        bundle.configure(|spec| spec["linux"]["cgroupsPath"] = bundle.cgroup().into());
        bundle
    }

    /// A name of its own: the runtime would take the container's, which another test's may have as well.
    fn cgroup(&self) -> String {
        format!(
            "/{}-{}",
            self.name,
            self.directory.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.')
        )
    }

    /// Make the bundle of nothing but busybox, on an overlay: an image of little weight.
    pub(crate) fn tiny(runtime: &'static str, states: &Path, name: &str, shell: &str) -> Bundle {
        let directory = directory();
        let bundle = Bundle { directory, states: states.to_owned(), runtime, name: name.to_owned(), is_overlay: true };
        let at = bundle.path();
        for part in ["lower/bin", "lower/proc", "lower/sys", "lower/dev", "lower/tmp", "upper", "work", "rootfs"] {
            fs::create_dir_all(at.join(part)).unwrap();
        }
        // Not fs::copy: a program that another test starts meanwhile would hold it open for writing, and nobody could run it.
        run(&["cp", "/bin/busybox", text(&at.join("lower/bin/busybox"))]);
        run(&["chroot", text(&at.join("lower")), "/bin/busybox", "--install", "-s", "/bin"]);
        let layers = ["lower", "upper", "work"].map(|part| format!("{part}dir={}", at.join(part).display())).join(",");
        run(&["mount", "-t", "overlay", "-o", &layers, "overlay", text(&at.join("rootfs"))]);
        run(&[runtime, "spec", "--bundle", text(&at)]);
        bundle.configure(|spec| {
            spec["linux"]["cgroupsPath"] = bundle.cgroup().into();
            spec["process"]["terminal"] = false.into();
            spec["process"]["args"] = serde_json::json!(["/bin/sh", "-c", shell]);
            spec["process"]["env"] = serde_json::json!(["PATH=/bin"]);
            spec["root"]["readonly"] = false.into();
            spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
        });
        bundle
    }

    /// A bundle on an overlay whose lower directory is `lower`, which others may share.
    pub(crate) fn on(lower: &Path, runtime: &'static str, states: &Path, name: &str) -> Bundle {
        let directory = directory();
        let bundle = Bundle { directory, states: states.to_owned(), runtime, name: name.to_owned(), is_overlay: true };
        let at = bundle.path();
        for part in ["upper", "work", "rootfs"] {
            fs::create_dir_all(at.join(part)).unwrap();
        }
        let upper = ["upper", "work"].map(|part| format!("{part}dir={}", at.join(part).display())).join(",");
        let layers = format!("lowerdir={},{upper}", lower.display());
        run(&["mount", "-t", "overlay", "-o", &layers, "overlay", text(&at.join("rootfs"))]);
        run(&[runtime, "spec", "--bundle", text(&at)]);
        bundle.configure(|spec| {
            spec["linux"]["cgroupsPath"] = bundle.cgroup().into();
            spec["process"]["terminal"] = false.into();
            spec["process"]["env"] = serde_json::json!(["PATH=/bin"]);
            spec["root"]["readonly"] = false.into();
            spec["linux"]["namespaces"].as_array_mut().unwrap().retain(|namespace| namespace["type"] != "network");
        });
        bundle
    }

    /// Change `config.json`.
    pub(crate) fn configure(&self, change: impl FnOnce(&mut serde_json::Value)) {
        let file = self.path().join("config.json");
        let mut spec = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        change(&mut spec);
        fs::write(file, serde_json::to_vec(&spec).unwrap()).unwrap();
    }

    /// The bundle's directory.
    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    /// Run the runtime with the state directories of this container.
    pub(crate) fn runtime(&self, words: &[&str]) -> String {
        run(&[&[self.runtime, "--root", text(&self.states)], words].concat())
    }

    /// Start the container.
    pub(crate) fn start(&self) {
        self.runtime(&["run", "--detach", "--bundle", text(&self.path()), &self.name]);
    }

    /// The same, with nothing that it could read from or write to: a file of the host's could not be restored.
    pub(crate) fn start_silently(&self) {
        let script = "exec \"$@\" </dev/null >/dev/null 2>&1";
        let (root, bundle) = (text(&self.states), self.path());
        let words = ["--root", root, "run", "--detach", "--bundle", text(&bundle), &self.name];
        run(&[&["sh", "-c", script, "sh", self.runtime], &words[..]].concat());
    }

    pub(crate) fn pid(&self) -> u32 {
        let state: serde_json::Value = serde_json::from_str(&self.runtime(&["state", &self.name])).unwrap();
        state["pid"].as_u64().unwrap().try_into().unwrap()
    }

    /// Kill it and wait for its end.
    pub(crate) fn kill(&self) {
        self.runtime(&["kill", &self.name, "KILL"]);
        eventually("the runtime says stopped", || self.runtime(&["state", &self.name]).contains("\"stopped\""));
    }

    /// Wait until there is `file` in the container.
    pub(crate) fn wait_for(&self, file: &str) {
        eventually("the container has got so far", || self.path().join("rootfs").join(file).exists());
    }
}

impl Container for Bundle {
    fn name(&self) -> &str {
        &self.name
    }

    fn root(&self) -> PathBuf {
        self.path().join("rootfs")
    }

    fn pause(&self) {
        self.runtime(&["pause", &self.name]);
    }

    fn unpause(&self) {
        self.runtime(&["resume", &self.name]);
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        attempt(&[self.runtime, "--root", text(&self.states), "delete", "--force", &self.name]);
        if self.is_overlay {
            attempt(&["umount", "--lazy", text(&self.path().join("rootfs"))]);
        }
    }
}

/// The switch of the freezer that a process is in, for who wants to look often.
#[derive(Debug)]
pub(crate) struct Freezer(PathBuf);

impl Freezer {
    /// That of v1 if the machine has one, which is what the engines use; else v2's.
    pub(crate) fn of(pid: u32) -> Freezer {
        let membership = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let place =
            |mark: &str| membership.lines().find_map(|line| line.split_once(mark)).map(|(_, path)| path.to_owned());
        // The kernel tells of v1 hierarchies that are mounted nowhere, too.
        if let Some(path) = place(":freezer:").filter(|_| Path::new("/sys/fs/cgroup/freezer").exists()) {
            return Freezer(PathBuf::from(format!("/sys/fs/cgroup/freezer{path}/freezer.state")));
        }
        Freezer(PathBuf::from(format!("/sys/fs/cgroup{}/cgroup.events", place("0::").unwrap())))
    }

    /// Whether its tasks are stopped, or about to be.
    pub(crate) fn is_frozen(&self) -> bool {
        let state = fs::read_to_string(&self.0).unwrap();
        state.contains("FROZEN") || state.contains("FREEZING") || state.contains("frozen 1")
    }
}
