//! Images as containers: with the real runtimes and podman, and what is left of those that came to nothing.

mod failures;
mod trust;

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;

use serde_json::Value;

use crate::checkpoint::counter::{self, ask, bundle, check_runs, command};
use crate::harness::lab::{Bundle, Container, Podman, attempt, run, text};
use crate::harness::mount::{Place, eventually, in_lab};

/// Write a line to a control file of the tree, which must succeed.
fn written(place: &Place, object: &str, file: &str, line: &str) {
    if let Err(error) = place.write(&format!("{object}/{file}"), line) {
        panic!("{object}/{file}, {line}: {error}: {}", place.read(&format!("{object}/last_error")));
    }
}

/// Write a line to a control file of an image, which must fail; the error, and what `last_error` says.
fn refused(place: &Place, image: &str, line: &str) -> (nix::errno::Errno, String) {
    let error = place.write(&format!("images/{image}/restore"), line).expect_err(line);
    let number = nix::errno::Errno::from_raw(error.raw_os_error().unwrap());
    (number, place.read(&format!("images/{image}/last_error")))
}

/// A container of ours at a runtime; deleted when dropped.
struct Restored<'a> {
    place: &'a Place,
    runtime: &'static str,
    name: String,
}

/// Make a container of an image at a runtime, which must succeed.
fn restored<'a>(place: &'a Place, runtime: &'static str, image: &str, line: &str) -> Restored<'a> {
    let name = line.split(' ').next().unwrap().trim_start_matches("name=").to_owned();
    let restored = Restored { place, runtime, name };
    written(place, &format!("images/{image}"), "restore", line);
    restored
}

impl Restored<'_> {
    fn runtime(&self, words: &[&str]) -> String {
        run(&[&[self.runtime, "--root", text(&self.place.other(self.runtime))], words].concat())
    }

    fn state(&self) -> Value {
        serde_json::from_str(&self.runtime(&["state", &self.name])).unwrap()
    }

    fn pid(&self) -> u32 {
        self.state()["pid"].as_u64().unwrap().try_into().unwrap()
    }

    fn directory(&self) -> PathBuf {
        self.place.other("store/containers").join(&self.name)
    }

    fn root(&self) -> PathBuf {
        self.directory().join("rootfs")
    }
}

impl Drop for Restored<'_> {
    fn drop(&mut self) {
        attempt(&[self.runtime, "--root", text(&self.place.other(self.runtime)), "delete", "--force", &self.name]);
    }
}

/// What a daemon made for containers: directories, unpacked images, mounts.
fn left(place: &Place) -> Vec<String> {
    let names = |directory: &str| {
        let entries = fs::read_dir(place.other(directory)).into_iter().flatten().flatten();
        entries.map(|entry| entry.path().display().to_string()).collect::<Vec<_>>()
    };
    let store = place.other("store");
    let mounts = snapfs::sys::mount::mounts().unwrap().into_iter().filter(|mount| mount.point.starts_with(&store));
    let mounts = mounts.map(|mount| format!("mount {}", mount.point.display()));
    names("store/containers").into_iter().chain(names("store/roots")).chain(mounts).collect()
}

/// The cgroups of a container, in each hierarchy.
fn cgroups(container: &Restored<'_>) -> Vec<PathBuf> {
    let text = fs::read_to_string(container.directory().join("config.json")).unwrap();
    let spec: Value = serde_json::from_str(&text).unwrap();
    let name = spec["linux"]["cgroupsPath"].as_str().unwrap().trim_start_matches('/').to_owned();
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(top).unwrap().map(|entry| entry.unwrap().path()).chain([top.to_owned()]);
    hierarchies.map(|hierarchy| hierarchy.join(&name)).filter(|path| path.exists()).collect()
}

/// Nothing is left of containers, once the daemon has looked.
fn check_nothing_left(place: &Place) {
    eventually("all that was made for deleted containers is gone", || left(place).is_empty());
}

/// A checkpoint of a counter of that runtime, which is no more; what it had counted.
fn checkpoint(place: &Place, runtime: &'static str, ballast: u32) -> u64 {
    let bundle = bundle(runtime, &place.other(runtime), "counter", "0.01", ballast, true);
    bundle.start_silently();
    let said = ask(bundle.pid());
    fs::remove_file(bundle.root().join("bin/vi")).unwrap();
    written(place, "containers/counter", "checkpoint", "ck1");
    bundle.kill();
    said.counted
}

#[test]
fn copies_of_a_checkpoint_go_on_and_are_checkpointed_again() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let _daemon = place.serve();
    let counted = checkpoint(&place, "runc", 0);
    let copies: Vec<Restored<'_>> = thread::scope(|scope| {
        let copy = |name: &'static str| {
            let place = &place;
            scope.spawn(move || restored(place, "runc", "ck1", name))
        };
        ["a", "b", "c"].map(copy).into_iter().map(|copy| copy.join().unwrap()).collect()
    });
    for copy in &copies {
        check_runs(copy.pid(), &copy.root(), counted);
        assert!(!copy.root().join("bin/vi").exists(), "what was deleted came back");
        assert_eq!(place.read(&format!("containers/{}/status", copy.name)), "running");
    }
    // One unpacked image for all.
    assert_eq!(fs::read_dir(place.other("store/roots")).unwrap().count(), 1);
    assert_eq!(refused(&place, "ck1", "a").0, nix::errno::Errno::EEXIST);
    check_runs(copies[0].pid(), &copies[0].root(), counted);

    let again = ask(copies[0].pid()).counted;
    written(&place, "containers/a", "checkpoint", "ck2");
    drop(copies);
    check_nothing_left(&place);
    let last = restored(&place, "runc", "ck2", "name=c engine=runc");
    check_runs(last.pid(), &last.root(), again);
    assert!(place.read("images/ck2/restore").ends_with(" restore name=c engine=runc: c"));
    // No descriptor of the daemon's, or of a program's that it ran, is in it.
    for entry in fs::read_dir(format!("/proc/{}/fd", last.pid())).unwrap() {
        let target = fs::read_link(entry.unwrap().path()).unwrap_or_default();
        assert!(!target.starts_with(place.other("store")), "{target:?}");
    }
    let cgroups = cgroups(&last);
    assert!(!cgroups.is_empty());
    drop(last);
    check_nothing_left(&place);
    assert!(cgroups.iter().all(|path| !path.exists()), "{cgroups:?}");
}

#[test]
fn a_checkpoint_of_crun_goes_on_at_crun() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let _daemon = place.serve();
    let counted = checkpoint(&place, "crun", 0);
    let (errno, why) = refused(&place, "ck1", "a engine=runc");
    assert_eq!(errno, nix::errno::Errno::EOPNOTSUPP);
    assert!(why.contains("engine=crun"), "{why}");
    let copy = restored(&place, "crun", "ck1", "a");
    check_runs(copy.pid(), &copy.root(), counted);
    drop(copy);
    check_nothing_left(&place);
}

#[test]
fn podman_gets_what_it_has_not_and_goes_on() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let counted = checkpoint(&place, "runc", 0);
    written(&place, "images/ck1", "restore", "second engine=podman");
    written(&place, "images/ck1", "restore", "counter engine=podman keep-id");
    for name in ["second", "counter"] {
        let pid = run(&["podman", "container", "inspect", "--format", "{{.State.Pid}}", name]);
        check_runs(pid.parse().unwrap(), &PathBuf::from(run(&["podman", "mount", name])), counted);
        assert_eq!(place.read(&format!("containers/{name}/engine")), "podman");
    }
    let (errno, why) = refused(&place, "ck1", "second engine=podman");
    assert_eq!(errno, nix::errno::Errno::EEXIST, "{why}");
    assert!(refused(&place, "ck1", "third engine=podman keep-id").1.contains("counter keep-id"));
    assert_eq!(left(&place), [""; 0]);
    run(&["podman", "rm", "--force", "--time", "0", "--all"]);
    drop(podman);
}

#[test]
fn a_container_of_podman_goes_on_with_its_mounts() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    counter::image();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let words = command("0.01", 0);
    let words: Vec<&str> = ["--runtime=runc", "--network=none", "--volume=kept:/kept", counter::IMAGE]
        .into_iter()
        .chain(words.iter().map(String::as_str))
        .collect();
    let container = podman.start("web", &words);
    run(&["podman", "exec", "web", "sh", "-c", "echo kept > /kept/file; echo of memory > /dev/shm/file"]);
    let said = ask(container.inspect(".State.Pid").parse().unwrap());
    written(&place, "containers/web", "checkpoint", "web-1 volumes=include exit");
    drop(container);
    run(&["podman", "volume", "rm", "kept"]);
    // By default at podman, where it came from.
    written(&place, "images/web-1", "restore", "web2");
    let pid = run(&["podman", "container", "inspect", "--format", "{{.State.Pid}}", "web2"]);
    check_runs(pid.parse().unwrap(), &PathBuf::from(run(&["podman", "mount", "web2"])), said.counted);
    assert_eq!(run(&["podman", "exec", "web2", "cat", "/kept/file", "/dev/shm/file"]), "kept\nof memory");
    run(&["podman", "rm", "--force", "--time", "0", "--volumes", "web2"]);
    // At runc what podman mounted is made anew, and the volume's files are its own.
    let copy = restored(&place, "runc", "web-1", "a engine=runc");
    check_runs(copy.pid(), &copy.root(), said.counted);
    let look = copy.runtime(&["exec", "a", "cat", "/kept/file", "/dev/shm/file", "/etc/hostname"]);
    assert!(look.starts_with("kept\nof memory\n"), "{look}");
    copy.runtime(&["exec", "a", "sh", "-c", "echo own > /kept/file"]);
    let volume = run(&["podman", "volume", "inspect", "--format", "{{.Mountpoint}}", "kept"]);
    assert_eq!(fs::read_to_string(Path::new(&volume).join("file")).unwrap(), "kept\n");
    drop(copy);
    check_nothing_left(&place);
    run(&["podman", "volume", "rm", "kept"]);
    drop(podman);
}

/// A commit of a container that wrote something; its directory below images/.
fn commit(place: &Place) {
    let bundle = Bundle::tiny(
        "runc",
        &place.other("runc"),
        "first",
        "echo later > /later; echo kept > /tmp/kept; exec sleep 1000",
    );
    bundle.start_silently();
    bundle.wait_for("tmp/kept");
    place.commit("first", "img:1");
    bundle.kill();
}

#[test]
fn a_commit_becomes_a_new_container() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let _daemon = place.serve();
    commit(&place);
    let running = restored(&place, "runc", "img:1", "a");
    let crun = restored(&place, "crun", "img:1", "b engine=crun no-start");
    let lazy = restored(&place, "runc", "img:1", "c lazy");
    assert_eq!(place.read("containers/a/status"), "running");
    assert_eq!(place.read("containers/b/status"), "created");
    assert_eq!(place.read("containers/b/engine"), "crun");
    crun.runtime(&["start", "b"]);
    for (container, own) in [(&running, "a"), (&crun, "b"), (&lazy, "c")] {
        let script = format!("hostname; cat /tmp/kept; echo {own} > /tmp/own; rm /tmp/kept; ls /tmp");
        let said = container.runtime(&["exec", own, "sh", "-c", &script]);
        assert_eq!(said.split_whitespace().collect::<Vec<_>>(), [own, "kept", "own"]);
        // It stands on the image, and changes nothing of it.
        if own != "c" {
            let changes = place.read(&format!("containers/{own}/changes"));
            assert!(changes.contains("A /tmp/own") && changes.contains("D /tmp/kept"), "{changes}");
        }
        let spec: Value = serde_json::from_str(&place.read(&format!("containers/{own}/spec.json"))).unwrap();
        assert_eq!((&spec["process"]["terminal"], spec.get("hooks")), (&Value::Bool(false), None));
    }
    assert_eq!(fs::read_dir(place.other("store/roots")).unwrap().count(), 1);
    // What is said of a commit makes no checkpoint of it.
    place.commit("a", "spoof annotation.io.podman.annotations.checkpoint.runtime.name=runc");
    drop(restored(&place, "runc", "spoof", "d"));
    // What a container of ours wrote is committed as any other's, unless its files lie on our own mount.
    place.commit("a", "img:2");
    assert_eq!(fs::read_to_string(place.dir().join("images/img:2/rootfs/tmp/own")).unwrap(), "a\n");
    let error = place.write("containers/c/commit", "img:3").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EOPNOTSUPP as i32));
    let why = place.read("containers/c/last_error");
    assert!(why.contains("lazy"), "{why}");
    // What it stands on stays for as long as it does, whatever becomes of the name.
    for image in ["img:1", "img:2", "spoof"] {
        fs::remove_dir(place.dir().join("images").join(image)).unwrap();
    }
    place.write("gc", "1").unwrap();
    assert_eq!(lazy.runtime(&["exec", "c", "cat", "/later"]), "later");
    drop((running, crun, lazy));
    check_nothing_left(&place);
}

#[test]
fn a_commit_becomes_a_container_of_podman() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    commit(&place);
    let before = run(&["podman", "images", "--all", "--quiet"]).lines().count();
    written(&place, "images/img:1", "restore", "a engine=podman no-start");
    assert_eq!(place.read("containers/a/status"), "created");
    run(&["podman", "start", "a"]);
    written(&place, "images/img:1", "restore", "b engine=podman");
    for name in ["a", "b"] {
        assert_eq!(run(&["podman", "exec", name, "cat", "/tmp/kept"]), "kept");
    }
    assert_eq!(run(&["podman", "images", "--all", "--quiet"]).lines().count(), before + 1, "it was given once");
    // An address that cannot be had: nothing stays.
    let (errno, why) = refused(&place, "img:1", "c engine=podman ip=203.0.113.7");
    assert_eq!(errno, nix::errno::Errno::EREMOTEIO, "{why}");
    assert_eq!(run(&["podman", "ps", "--all", "--quiet", "--filter", "name=^c$"]), "");
    assert_eq!(left(&place), [""; 0]);
    run(&["podman", "rm", "--force", "--time", "0", "--all"]);
    drop(podman);
}
