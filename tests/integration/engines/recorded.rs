//! runc and crun: state directories recorded from the real ones (tests/fixtures/engines), made to live as they do.

use std::fs;
use std::path::{Path, PathBuf};

use snapfs::engine::{Crun, Engine, Engines, Host, RootFs, Runc, Status};
use tempfile::TempDir;

use super::{Subject, conforms};
use crate::harness::engine::write;

/// A recorded container in a host of its own: the recorded `/proc`, and cgroups that are plain directories.
struct Recorded {
    directory: TempDir,
    recording: PathBuf,
    runtime: &'static str,
    id: &'static str,
}

impl Recorded {
    fn new(recording: &str) -> Recorded {
        let recording = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/engines").join(recording);
        let is_runc = recording.join("state/r1").is_dir();
        let (runtime, id) = if is_runc { ("runc", "r1") } else { ("crun", "c1") };
        let recorded = Recorded { directory: tempfile::tempdir().unwrap(), recording, runtime, id };
        for process in ["self", "init"] {
            for file in ["mountinfo", "cgroup"] {
                let path = format!("proc/{process}/{file}");
                recorded.copy(&path, &path);
            }
        }
        recorded
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    /// Copies a file of the recording, with the paths in it moved to where this test has them.
    fn copy(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.recording.join(from)).unwrap();
        let here = self.directory.path().display();
        let text = text.replace("/sys/fs/cgroup", &format!("{here}/cgroup")).replace("/scratch", &format!("{here}/s"));
        write(&self.path(to), text);
    }

    fn pid(&self) -> u32 {
        let stat = fs::read_to_string(self.recording.join("proc/init/stat")).unwrap();
        stat.split(' ').next().unwrap().parse().unwrap()
    }

    fn state(&self) -> PathBuf {
        self.path("state").join(self.id)
    }

    fn proc_of_init(&self) -> PathBuf {
        self.path("proc").join(self.pid().to_string())
    }

    /// The container's cgroups: v1 and v2 (hybrid), or v2 alone.
    fn cgroups(&self) -> Vec<PathBuf> {
        let is_hybrid = self.recording.to_str().unwrap().ends_with("hybrid");
        let hierarchies: &[&str] = if is_hybrid { &["cgroup/freezer", "cgroup/unified"] } else { &["cgroup"] };
        hierarchies.iter().map(|hierarchy| self.path(hierarchy).join(self.id)).collect()
    }

    /// As runc and crun do it: in v1 where there is v1.
    fn freeze(&self, frozen: bool) {
        let group = &self.cgroups()[0];
        if group.parent().unwrap().ends_with("freezer") {
            write(&group.join("freezer.state"), if frozen { "FROZEN\n" } else { "THAWED\n" });
        } else {
            write(&group.join("cgroup.freeze"), if frozen { "1\n" } else { "0\n" });
        }
    }
}

impl Subject for Recorded {
    fn engine(&self) -> Box<dyn Engine> {
        let host = Host::at(self.path("proc"), self.path("cgroup"));
        match self.runtime {
            "runc" => Box::new(Runc::new(self.path("state"), host)),
            _ => Box::new(Crun::new(self.path("state"), host)),
        }
    }

    fn create(&mut self) -> String {
        let files: &[&str] = if self.runtime == "runc" { &["state.json"] } else { &["status", "config.json"] };
        for file in files {
            let path = format!("state/{}/{file}", self.id);
            self.copy(&path, &path);
        }
        if self.runtime == "runc" {
            fs::create_dir_all(self.path("s/b")).unwrap();
            self.copy("config.json", "s/b/config.json");
        }
        write(&self.state().join("exec.fifo"), "");
        for group in self.cgroups() {
            write(&group.join("cgroup.freeze"), "0\n");
        }
        self.freeze(false);
        for file in ["mountinfo", "cgroup"] {
            write(&self.proc_of_init().join(file), fs::read(self.path("proc/init").join(file)).unwrap());
        }
        write(&self.proc_of_init().join("stat"), fs::read(self.recording.join("proc/init/stat")).unwrap());
        self.id.to_owned()
    }

    fn start(&mut self) -> u32 {
        fs::remove_file(self.state().join("exec.fifo")).unwrap();
        self.pid()
    }

    fn pause(&mut self) {
        self.freeze(true);
    }

    fn unpause(&mut self) {
        self.freeze(false);
    }

    fn stop(&mut self) {
        fs::remove_dir_all(self.proc_of_init()).unwrap();
    }

    fn remove(&mut self) {
        fs::remove_dir_all(self.state()).unwrap();
    }

    fn spec(&self) -> Vec<u8> {
        let path = if self.runtime == "runc" { self.path("s/b/config.json") } else { self.state().join("config.json") };
        fs::read(path).unwrap()
    }

    fn has_image_and_overlay(&self) -> (bool, bool) {
        // The bundles recorded are an overlay for runc and a plain directory for crun.
        (false, self.runtime == "runc")
    }
}

#[test]
fn runc_conforms_on_v1_and_v2() {
    conforms(&mut Recorded::new("runc-1.1.15-hybrid"));
}

#[test]
fn runc_conforms_on_v2() {
    conforms(&mut Recorded::new("runc-1.1.15-v2"));
}

#[test]
fn crun_conforms_on_v1_and_v2() {
    conforms(&mut Recorded::new("crun-1.21-hybrid"));
}

#[test]
fn crun_conforms_on_v2() {
    conforms(&mut Recorded::new("crun-1.21-v2"));
}

#[test]
fn facts_of_the_recordings() {
    for recording in ["runc-1.1.15-hybrid", "runc-1.1.15-v2", "crun-1.21-hybrid", "crun-1.21-v2"] {
        let mut recorded = Recorded::new(recording);
        let name = recorded.create();
        recorded.start();
        let listing = Engines::new(vec![recorded.engine()]).containers();
        let container = listing.find(&name).unwrap();
        let groups = recorded.cgroups();
        let found: Vec<PathBuf> =
            [&container.cgroup.v1_freezer, &container.cgroup.v2].into_iter().flatten().cloned().collect();
        assert_eq!(found, groups, "{recording}");
        assert_eq!(container.runtime.as_deref(), Some(container.engine));
        match &container.root {
            RootFs::Overlay(overlay) => {
                assert_eq!(overlay.lower, [recorded.path("s/b/lower2"), recorded.path("s/b/lower1")]);
                assert_eq!(overlay.upper, recorded.path("s/b/upper"));
                assert_eq!(overlay.merged, Some(recorded.path("s/b/rootfs")));
            }
            RootFs::Directory(path) => assert_eq!(*path, recorded.path("s/c/rootfs")),
        }
    }
}

#[test]
fn a_process_with_the_same_number_is_another_one() {
    let mut recorded = Recorded::new("crun-1.21-v2");
    let name = recorded.create();
    recorded.start();
    let stat = recorded.proc_of_init().join("stat");
    let text = fs::read_to_string(&stat).unwrap();
    let start_time = text.split(' ').nth(21).unwrap();
    fs::write(&stat, text.replace(start_time, "1")).unwrap();
    let listing = Engines::new(vec![recorded.engine()]).containers();
    let container = listing.find(&name).unwrap();
    assert_eq!((container.status, container.init), (Status::Stopped, None));
}

#[test]
fn a_forged_cgroup_is_refused() {
    let mut recorded = Recorded::new("runc-1.1.15-hybrid");
    recorded.create();
    let state = recorded.state().join("state.json");
    let text = fs::read_to_string(&state).unwrap();
    fs::create_dir_all(recorded.path("cgroup/freezer/victim")).unwrap();
    for forged in ["freezer/../freezer/r1", "freezer/victim", "freezer", "../../etc"] {
        let forged = text
            .replace("/cgroup/freezer/r1", &format!("/cgroup/{forged}"))
            .replace("/cgroup/unified/r1", "/cgroup/unified/victim");
        fs::write(&state, forged).unwrap();
        let listing = Engines::new(vec![recorded.engine()]).containers();
        assert_eq!(listing.visible_names().count(), 0);
        let health = listing.health();
        assert!(health[1].starts_with("engine runc skipped: cannot use container r1: "), "{health:?}");
    }
}
