//! The real runc, crun and podman, in the lab (tests/lab).

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use snapfs::engine::{self, Crun, Engine, Engines, Host, Podman, RootFs, Runc, Status};
use tempfile::TempDir;

use super::{Subject, conforms};
use crate::harness::engine::check_image;
use crate::harness::lab;
use crate::harness::mount::in_lab;

/// Runs a command to its end; its output without white space around it.
fn run<A: AsRef<OsStr>>(command: &[A]) -> String {
    let mut program = Command::new(command[0].as_ref());
    program.args(&command[1..]).stdin(Stdio::null());
    let shown = format!("{program:?}");
    let output = program.output().unwrap_or_else(|error| panic!("{shown}: {error}"));
    assert!(output.status.success(), "{shown}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// Runs a command that leaves a process behind: its output would stay open as long as that lives.
fn leave_running(command: &[&OsStr]) {
    let mut program = Command::new(command[0]);
    program.args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    assert!(program.status().unwrap().success(), "{program:?}");
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/lab").join(name)
}

fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let until = Instant::now() + Duration::from_secs(5);
    while !is_so() {
        assert!(Instant::now() < until, "still not so: {what}");
        sleep(Duration::from_millis(10));
    }
}

/// A bundle of tests/lab/bundle, and a runtime with state directories of its own.
struct Bundle {
    directory: TempDir,
    runtime: &'static str,
    kind: &'static str,
}

const BOX: &str = "box";

impl Bundle {
    fn new(runtime: &'static str, kind: &'static str) -> Bundle {
        let directory = tempfile::tempdir_in("/scratch").unwrap();
        let bundle = Bundle { directory, runtime, kind };
        let (program, path, kind) = (script("bundle"), bundle.path(), format!("--{kind}"));
        run(&[program.as_os_str(), path.as_os_str(), kind.as_ref()]);
        let config = path.join("config.json");
        let mut spec: serde_json::Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
        spec["annotations"]["org.example.role"] = "test".into();
        fs::write(config, serde_json::to_vec(&spec).unwrap()).unwrap();
        bundle
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("bundle")
    }

    fn states(&self) -> PathBuf {
        self.directory.path().join("states")
    }

    fn command(&self, words: &[&str]) -> Vec<std::ffi::OsString> {
        let mut command = vec![self.runtime.into(), "--root".into(), self.states().into()];
        command.extend(words.iter().map(Into::into));
        command
    }

    fn state(&self) -> serde_json::Value {
        serde_json::from_str(&run(&self.command(&["state", BOX]))).unwrap()
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        let command = self.command(&["delete", "-f", BOX]);
        Command::new(&command[0]).args(&command[1..]).stderr(Stdio::null()).status().ok();
        if self.kind == "overlay" {
            Command::new("umount").arg(self.path().join("rootfs")).status().ok();
        }
    }
}

impl Subject for Bundle {
    fn engine(&self) -> Box<dyn Engine> {
        match self.runtime {
            "runc" => Box::new(Runc::new(self.states(), Host::default())),
            _ => Box::new(Crun::new(self.states(), Host::default())),
        }
    }

    fn create(&mut self) -> String {
        let path = self.path();
        let command = self.command(&["create", "--bundle", path.to_str().unwrap(), BOX]);
        leave_running(&command.iter().map(AsRef::as_ref).collect::<Vec<_>>());
        BOX.to_owned()
    }

    fn start(&mut self) -> u32 {
        run(&self.command(&["start", BOX]));
        self.state()["pid"].as_u64().unwrap().try_into().unwrap()
    }

    fn pause(&mut self) {
        run(&self.command(&["pause", BOX]));
    }

    fn unpause(&mut self) {
        run(&self.command(&["resume", BOX]));
    }

    fn stop(&mut self) {
        run(&self.command(&["kill", BOX, "KILL"]));
        eventually("the runtime says stopped", || self.state()["status"] == "stopped");
    }

    fn remove(&mut self) {
        run(&self.command(&["delete", BOX]));
    }

    fn spec(&self) -> Vec<u8> {
        fs::read(self.path().join("config.json")).unwrap()
    }

    fn has_image_and_overlay(&self) -> (bool, bool) {
        (false, self.kind == "overlay")
    }
}

/// The lab's podman, with an empty list of containers.
struct RealPodman {
    runtime: &'static str,
    _turn: lab::Podman,
}

impl RealPodman {
    fn new(runtime: &'static str) -> RealPodman {
        RealPodman { runtime, _turn: lab::Podman::take() }
    }

    fn create_from(&self, name: &str, image: &str) {
        let label = "org.example.role=test";
        run(&["podman", "--runtime", self.runtime, "create", "--name", name, "--label", label, image, "sleep", "1000"]);
    }

    fn podman(&self, words: &[&str]) -> String {
        run(&[&["podman"], words].concat())
    }

    fn inspect(&self, name: &str, field: &str) -> String {
        self.podman(&["container", "inspect", "--format", &format!("{{{{{field}}}}}"), name])
    }
}

impl Subject for RealPodman {
    fn engine(&self) -> Box<dyn Engine> {
        Box::new(Podman::system())
    }

    fn create(&mut self) -> String {
        self.create_from(BOX, "localhost/app:1");
        BOX.to_owned()
    }

    fn start(&mut self) -> u32 {
        self.podman(&["start", BOX]);
        self.inspect(BOX, ".State.Pid").parse().unwrap()
    }

    fn pause(&mut self) {
        self.podman(&["pause", BOX]);
    }

    fn unpause(&mut self) {
        self.podman(&["unpause", BOX]);
    }

    fn stop(&mut self) {
        self.podman(&["stop", "--time", "0", BOX]);
    }

    fn remove(&mut self) {
        self.podman(&["rm", BOX]);
    }

    fn spec(&self) -> Vec<u8> {
        fs::read(self.inspect(BOX, ".OCIConfigPath")).unwrap()
    }

    fn has_image_and_overlay(&self) -> (bool, bool) {
        (true, true)
    }
}

#[test]
fn the_real_runc_conforms() {
    if in_lab() {
        conforms(&mut Bundle::new("runc", "overlay"));
        conforms(&mut Bundle::new("runc", "plain"));
    }
}

#[test]
fn the_real_crun_conforms() {
    if in_lab() {
        conforms(&mut Bundle::new("crun", "overlay"));
        conforms(&mut Bundle::new("crun", "plain"));
    }
}

#[test]
fn the_real_podman_conforms_with_runc() {
    if in_lab() {
        conforms(&mut RealPodman::new("runc"));
    }
}

#[test]
fn the_real_podman_conforms_with_crun() {
    if in_lab() {
        conforms(&mut RealPodman::new("crun"));
    }
}

#[test]
fn podman_says_the_same_of_its_containers() {
    if !in_lab() {
        return;
    }
    let podman = RealPodman::new("runc");
    for (name, image) in [("web", "localhost/app:1"), ("db", "localhost/base:1"), ("new", "localhost/app:1")] {
        podman.create_from(name, image);
    }
    podman.podman(&["start", "web", "db"]);
    podman.podman(&["stop", "--time", "0", "db"]);
    let mut engines = Vec::new();
    for name in engine::NAMES {
        engines.push(engine::system(name).unwrap());
    }
    let engines = Engines::new(engines);
    let listing = engines.containers();
    assert_eq!(listing.visible_names().collect::<Vec<_>>(), ["web", "db", "new"], "runc has web, too");
    for (name, status, image) in [
        ("web", Status::Running, "localhost/app:1"),
        ("db", Status::Stopped, "localhost/base:1"),
        ("new", Status::Created, "localhost/app:1"),
    ] {
        let container = listing.find(name).unwrap();
        assert_eq!((container.status, container.image.as_deref()), (status, Some(image)));
        assert_eq!(container.id, podman.inspect(name, ".Id"));
        let RootFs::Overlay(overlay) = &container.root else { panic!("{name} is on an overlay") };
        assert_eq!(overlay.upper.to_str().unwrap(), podman.inspect(name, ".GraphDriver.Data.UpperDir"));
        let lower: Vec<&str> = overlay.lower.iter().map(|path| path.to_str().unwrap()).collect();
        assert_eq!(lower.join(":"), podman.inspect(name, ".GraphDriver.Data.LowerDir"));
        assert_eq!(overlay.merged.is_some(), status == Status::Running);
        if let Some(merged) = &overlay.merged {
            assert_eq!(fs::read_to_string(merged.join("etc/app-release")).unwrap(), "app 1\n");
        }

        let engine = engines.engine_of(container).unwrap();
        let base = engine.base_image(container).unwrap().unwrap();
        let id = podman.podman(&["image", "inspect", "--format", "{{.Id}}", image]);
        assert_eq!(check_image(&base).hex(), id);
        let layers = podman.podman(&["image", "inspect", "--format", "{{range .RootFS.Layers}}{{.}} {{end}}", image]);
        let ours: Vec<String> = base.layers.iter().map(|layer| layer.diff_id.to_string()).collect();
        assert_eq!(ours, layers.split_whitespace().collect::<Vec<_>>());
        let expected: BTreeMap<String, String> =
            serde_json::from_str(&podman.inspect(name, "json .Config.Labels")).unwrap();
        assert_eq!(engine.labels(container).unwrap(), expected);
    }
    assert_eq!(engines.health()[0], "engine podman ok");
}

#[test]
fn a_root_that_podman_was_given() {
    if !in_lab() {
        return;
    }
    let podman = RealPodman::new("crun");
    let tree = tempfile::tempdir_in("/scratch").unwrap();
    let root = tree.path().join("root");
    run(&[script("images").as_os_str(), "--tree".as_ref(), root.as_os_str()]);
    let root = root.to_str().unwrap();
    for (name, rootfs) in [("plain", root.to_owned()), ("over", format!("{root}:O"))] {
        podman.podman(&["run", "--detach", "--name", name, "--rootfs", &rootfs, "sleep", "1000"]);
    }
    let listing = Engines::new(vec![podman.engine()]).containers();
    assert_eq!(listing.find("plain").unwrap().root, RootFs::Directory(root.into()));
    let RootFs::Overlay(overlay) = &listing.find("over").unwrap().root else { panic!("{listing:?}") };
    assert_eq!(overlay.lower, [PathBuf::from(root)]);
    let container = listing.find("over").unwrap();
    assert!(podman.engine().base_image(container).unwrap().is_none());
}

#[test]
fn overlays_with_odd_paths_are_read_as_the_kernel_shows_them() {
    if !in_lab() {
        return;
    }
    let directory = tempfile::tempdir_in("/scratch").unwrap();
    let at = |name: &str| directory.path().join(name);
    let (lower, upper) = (["low er", "lo,w", "lo:w", r"lo\w"].map(at), at("up per"));
    for path in lower.iter().chain([&upper, &at("work"), &at("mer ged")]) {
        fs::create_dir(path).unwrap();
    }
    let escape =
        |path: &Path, comma: &str| path.to_str().unwrap().replace('\\', r"\\").replace(':', r"\:").replace(',', comma);
    // mount(8) takes an option in double quotes as one.
    let layers = lower.iter().map(|path| escape(path, ",")).collect::<Vec<_>>().join(":");
    let options = format!("lowerdir=\"{layers}\",upperdir={},workdir={}", upper.display(), at("work").display());
    run(&["mount", "-t", "overlay", "-o", &options, "overlay", at("mer ged").to_str().unwrap()]);
    let mounts = engine::mountinfo::parse(&fs::read("/proc/self/mountinfo").unwrap());
    let found = engine::mountinfo::find(&mounts, &at("mer ged")).and_then(engine::mountinfo::Mount::overlay);
    run(&["umount", at("mer ged").to_str().unwrap()]);
    let found = found.unwrap();
    assert_eq!((found.lower, found.upper), (lower.to_vec(), upper));
}
