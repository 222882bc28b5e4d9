//! Running processes as images: made of real containers, and restored by stock engines.

pub(crate) mod counter;
mod failures;

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::harness::lab::{Container, Podman, attempt, run};
use crate::harness::mount::{Place, eventually, in_lab};
use counter::{IMAGE, ask, bundle, check_runs, command};

/// Checkpoint a container, which must succeed; the image's name is the first word of `line`. Returns its directory.
fn checkpoint(place: &Place, container: &str, line: &str) -> PathBuf {
    if let Err(error) = place.write(&format!("containers/{container}/checkpoint"), line) {
        let why = place.read(&format!("containers/{container}/last_error"));
        panic!("checkpoint of {container}, {line}: {error}: {why}");
    }
    place.dir().join("images").join(line.split(' ').next().unwrap())
}

/// Give podman a checkpoint, and the image that it stands on if podman does not have that; the name there.
fn give(image: &Path, name: &str) -> String {
    let base = fs::read_to_string(image.join("annotations/org.opencontainers.image.base.name")).unwrap();
    if attempt(&["podman", "image", "exists", base.trim()]).code != 0 {
        let from = format!("oci:{}", image.join("base").display());
        run(&["skopeo", "copy", "--quiet", &from, &format!("containers-storage:{}", base.trim())]);
    }
    let name = format!("localhost/{name}:latest");
    run(&["skopeo", "copy", "--quiet", &format!("oci:{}", image.display()), &format!("containers-storage:{name}")]);
    name
}

/// A container of podman's: its first process and its root.
fn of_podman(name: &str) -> (u32, PathBuf) {
    let pid = run(&["podman", "container", "inspect", "--format", "{{.State.Pid}}", name]);
    (pid.parse().unwrap(), PathBuf::from(run(&["podman", "mount", name])))
}

fn annotation(image: &Path, key: &str) -> String {
    fs::read_to_string(image.join("annotations").join(key)).unwrap().trim().to_owned()
}

/// Nothing is left of a checkpoint in a container that goes on.
fn check_untouched(pid: u32) {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(status.contains("TracerPid:\t0\n"), "{status}");
    assert!(!crate::harness::lab::Freezer::of(pid).is_frozen());
}

#[test]
fn a_container_of_runc_goes_on_in_podman_several_times_over() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let bundle = bundle("runc", &place.other("runc"), "counter", "0.005", 0, true);
    bundle.start_silently();
    let said = ask(bundle.pid());
    let image = checkpoint(&place, "counter", "ck1 label.env=test");
    check_untouched(bundle.pid());
    check_runs(bundle.pid(), &bundle.root(), said.counted);
    assert_eq!(place.read("images/ck1/kind"), "checkpoint");
    bundle.kill();
    let processes = place.read("images/ck1/checkpoint/processes");
    assert!(
        processes.lines().nth(1).unwrap().ends_with(&command("0.005", 0).join(" ").trim_end().to_owned()),
        "{processes}"
    );
    assert!(place.read("images/ck1/checkpoint/stats").contains("frozen_us "));
    assert!(place.read("images/ck1/checkpoint/dump.log").contains("Dumping finished successfully"));
    assert!(place.list("images/ck1/checkpoint/checkpoint").contains(&"inventory.img".to_owned()));

    let inspected: Value =
        serde_json::from_str(&run(&["skopeo", "inspect", "--raw", &format!("oci:{}", image.display())])).unwrap();
    let keys = inspected["annotations"].as_object().unwrap().keys();
    assert_eq!(keys.filter(|key| key.starts_with("io.podman.annotations.checkpoint.")).count(), 14);
    let name = give(&image, "ck1");
    run(&["podman", "container", "restore", &name]);
    for copy in ["second", "third"] {
        run(&["podman", "container", "restore", "--name", copy, &name]);
    }
    for copy in ["counter", "second", "third"] {
        let (pid, root) = of_podman(copy);
        check_runs(pid, &root, said.counted);
    }
    run(&["podman", "rm", "--force", "--time", "0", "--all"]);
    drop(podman);
}

/// Bytes of all blobs in the store.
fn stored(place: &Place) -> u64 {
    let blobs = fs::read_dir(place.other("store/blobs/sha256")).unwrap();
    blobs.map(|blob| blob.unwrap().metadata().unwrap().len()).sum()
}

#[test]
fn a_container_of_runc_goes_on_in_containerd() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let bundle = bundle("runc", &place.other("runc"), "counter", "0.005", 0, true);
    bundle.start_silently();
    let said = ask(bundle.pid());
    let image = checkpoint(&place, "counter", "ck containerd");
    check_untouched(bundle.pid());
    bundle.kill();
    let containerd = crate::harness::lab::start(&["containerd", "--log-level", "error"]);
    eventually("containerd answers", || attempt(&["ctr", "version"]).code == 0);
    let import = format!("tar -C {} -cf - . | ctr images import -", image.join("containerd").display());
    run(&["sh", "-c", &import]);
    run(&["ctr", "containers", "restore", "--rw", "--live", "again", "localhost/ck:latest"]);
    let listed = run(&["ctr", "tasks", "list"]);
    let pid = listed.lines().find(|line| line.starts_with("again")).unwrap().split_whitespace().nth(1).unwrap();
    let pid = pid.parse().unwrap();
    check_runs(pid, &PathBuf::from(format!("/proc/{pid}/root")), said.counted);
    run(&["ctr", "tasks", "kill", "--signal", "KILL", "again"]);
    eventually("the task has ended", || attempt(&["ctr", "tasks", "delete", "again"]).code == 0);
    run(&["ctr", "containers", "delete", "again"]);
    drop(containerd);
    drop(podman);
}

#[test]
fn memory_that_did_not_change_is_stored_once() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let bundle = bundle("runc", &place.other("runc"), "counter", "0.02", 48, false);
    bundle.start_silently();
    let said = ask(bundle.pid());
    let base = stored(&place);
    checkpoint(&place, "counter", "ck1");
    let first = stored(&place);
    checkpoint(&place, "counter", "ck2");
    let second = stored(&place);
    checkpoint(&place, "counter", "ck3");
    let third = stored(&place);
    println!("stored: {} bytes, then {}, then {}", first - base, second - first, third - second);
    assert!(first - base > 48 << 20, "random bytes cannot be made smaller");
    assert!((second - first) * 20 <= first - base, "{} more than {}", second - first, first - base);
    assert!((third - second) * 20 <= first - base, "{} more than {}", third - second, first - base);
    bundle.kill();
    // Each is whole by itself, whatever becomes of the others.
    for name in ["ck1", "ck2"] {
        run(&["rmdir", place.dir().join("images").join(name).to_str().unwrap()]);
    }
    let name = give(&place.dir().join("images/ck3"), "ck3");
    run(&["podman", "container", "restore", &name]);
    let (pid, root) = of_podman("counter");
    check_runs(pid, &root, said.counted);
    run(&["podman", "rm", "--force", "--time", "0", "counter"]);
    drop(podman);
}

#[test]
fn containers_of_podman_with_all_that_is_mounted_in_them() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    counter::image();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let host = crate::harness::lab::directory();
    fs::write(host.path().join("file"), "of the host").unwrap();
    let bind = format!("--volume={}:/bound", host.path().display());
    for runtime in ["runc", "crun"] {
        let name = format!("web-{runtime}");
        let option = format!("--runtime={runtime}");
        let words = command("0.005", 0);
        let words: Vec<&str> = [option.as_str(), &bind, "--volume=kept:/kept", "--tmpfs=/fast", "--label=a=b", IMAGE]
            .into_iter()
            .chain(words.iter().map(String::as_str))
            .collect();
        let container = podman.start(&name, &words);
        run(&["podman", "exec", &name, "sh", "-c", "echo kept > /kept/file; echo fast > /fast/file"]);
        let pid: u32 = container.inspect(".State.Pid").parse().unwrap();
        let said = ask(pid);
        let image = checkpoint(&place, &name, &format!("{name}-1 volumes=include"));
        check_untouched(pid);
        check_runs(pid, &container.root(), said.counted);
        drop(container);
        run(&["podman", "volume", "rm", "kept"]);

        // A container that was restored is checkpointed again.
        let mut image = give(&image, &format!("{name}-1"));
        for round in 0..2 {
            run(&["podman", &option, "container", "restore", &image]);
            let (pid, root) = of_podman(&name);
            check_runs(pid, &root, said.counted);
            let look = "cat /kept/file /fast/file /bound/file";
            assert_eq!(run(&["podman", "exec", &name, "sh", "-c", look]), "kept\nfast\nof the host");
            if round == 0 {
                let again = checkpoint(&place, &name, &format!("{name}-2 volumes=include exit"));
                let status = || run(&["podman", "container", "inspect", "--format", "{{.State.Status}}", &name]);
                eventually("podman knows of the end", || status() == "exited");
                image = give(&again, &format!("{name}-2"));
            }
            run(&["podman", "rm", "--force", "--time", "0", "--volumes", &name]);
            attempt(&["podman", "volume", "rm", "kept"]);
        }
        assert_eq!(
            annotation(&place.dir().join(format!("images/{name}-1")), "io.podman.annotations.checkpoint.runtime.name"),
            runtime
        );
    }
}
