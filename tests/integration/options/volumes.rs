//! Volumes and bind mounts: left out, named, or each a layer of its own that is of the same moment as the rest.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::annotation;
use crate::harness::lab::{Bundle, Container, Podman, attempt, directory, run, text};
use crate::harness::mount::{Place, eventually, in_lab};
use crate::harness::rootfs::{Fact, Facts, acl, differences, dir, facts, file, hardlink, make, sparse, symlink};

fn unpack(image: &Path) -> (tempfile::TempDir, PathBuf) {
    let directory = directory();
    let bundle = directory.path().join("bundle");
    run(&["umoci", "unpack", "--image", &format!("{}:latest", image.display()), text(&bundle)]);
    (directory, bundle.join("rootfs"))
}

fn config(image: &Path) -> Value {
    super::json(&image.join("config.json"))
}

/// What is below `path`, by paths from there on.
fn below(all: &Facts, path: &str) -> Vec<(String, Fact)> {
    let strip = |(name, fact): (&String, &Fact)| {
        let rest = name.strip_prefix(path)?;
        (path.is_empty() || rest.is_empty() || rest.starts_with('/'))
            .then(|| (rest.trim_start_matches('/').to_owned(), fact.clone()))
    };
    let mut found: Vec<_> = all.iter().filter_map(strip).collect();
    // A link is told by its first name, and that by where the tree is.
    let last = |name: String| name.rsplit('/').next().unwrap_or_default().to_owned();
    found.iter_mut().for_each(|(_, fact)| fact.link = fact.link.take().map(last));
    found
}

/// The files of a volume with everything that a layer must keep.
fn fill(place: &Path) {
    make(
        place,
        &[
            dir("d").mode(0o1770).owner(5, 6),
            file("d/file", "content").mode(0o640).owner(1000, 1001).mtime(1_000_000_000, 123_456_789),
            hardlink("d/link", "d/file"),
            symlink("soft", "d/file"),
            sparse("sparse", 3_000_000, &[(1_000_000, b"island")]),
            file("acl", "x")
                .xattr("system.posix_acl_access", acl(&[(1, 6, !0), (2, 4, 77), (4, 4, !0), (16, 4, !0), (32, 0, !0)])),
            file("coloured", "x").xattr("user.colour", "red"),
        ],
    );
}

#[test]
fn each_volume_is_a_layer_and_nothing_else_is() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let host = directory();
    let at = |name: &str| host.path().join(name);
    for name in ["outer", "inner", "over", "led", "outer/inner"] {
        fs::create_dir(at(name)).unwrap();
        fill(&at(name));
    }
    fs::write(at("outer/inner/hidden"), "hidden by what is mounted there").unwrap();
    fs::write(at("one"), "one file\n").unwrap();
    fs::write(at("other"), "not asked for\n").unwrap();
    let bind = |name: &str, to: &str| format!("--volume={}:{to}", at(name).display());
    let ready = "echo here > /named/file; : > /srv/ready; exec sleep 1000";
    let container = podman.start(
        "volumes",
        &[
            &bind("outer", "/new/deep/outer:ro"),
            &bind("inner", "/new/deep/outer/inner"),
            &bind("over", "/usr/share/demo/d1"),
            &bind("led", "/var/led"),
            &bind("one", "/etc/one.conf:ro"),
            "--volume=snapfs-named:/named",
            "--tmpfs=/cache",
            "localhost/app:1",
            "sh",
            "-c",
            ready,
        ],
    );
    let root = container.root();
    eventually("it has begun", || root.join("srv/ready").exists());
    let volumes =
        ["/etc/one.conf", "/named", "/new/deep/outer", "/new/deep/outer/inner", "/usr/share/demo/d1", "/var/led"];

    let image = place.commit("volumes", "in volumes=include compression=gzip");
    let log = place.read("jobs/last/log");
    assert!(log.contains("left out, it is a tmpfs: /cache"), "{log}");
    assert_eq!(annotation(&image, "io.snapfs.volumes").unwrap().lines().collect::<Vec<_>>(), volumes);
    let without = place.commit("volumes", "out compression=gzip");
    assert_eq!(annotation(&without, "io.snapfs.volumes"), None);
    let ids = |image: &Path| config(image)["rootfs"]["diff_ids"].as_array().unwrap().clone();
    let (with, without) = (ids(&image), ids(&without));
    assert_eq!(with[..without.len()], without[..], "the root file system is the same layer");
    assert_eq!(with.len(), without.len() + volumes.len());
    let history = config(&image)["history"].as_array().unwrap().clone();
    assert_eq!(history.last().unwrap()["created_by"], "snapfs commit of volumes (podman): volume /var/led");
    assert_eq!(config(&image)["config"]["Volumes"], Value::Null);
    // However it is held still, and when nothing holds it because nothing runs.
    for how in ["full", "none"] {
        let again = place.commit("volumes", &format!("again volumes=include compression=gzip pause={how}"));
        assert_eq!(ids(&again), with, "pause={how}");
    }

    let (_kept, unpacked) = unpack(&image);
    let found = facts(&unpacked);
    let expect = |expected: Vec<(String, Fact)>, path: &str| {
        let found = below(&found, path);
        let names = |facts: &[(String, Fact)]| facts.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), names(&expected), "{path}");
        for (one, other) in found.iter().zip(&expected) {
            assert_eq!(one, other, "{path}");
        }
    };
    let whole = |name: &str| below(&facts(&at(name)), "");
    expect(whole("inner"), "new/deep/outer/inner");
    expect(whole("over"), "usr/share/demo/d1");
    let mut outer = whole("outer");
    outer.retain(|(path, _)| !path.starts_with("inner"));
    let mut nested: Vec<_> = whole("inner");
    nested.iter_mut().for_each(|(path, _)| *path = format!("inner/{path}").trim_end_matches('/').to_owned());
    outer.extend(nested);
    outer.sort_by(|one, other| one.0.cmp(&other.0));
    expect(outer, "new/deep/outer");
    assert_eq!(fs::read_to_string(unpacked.join("etc/one.conf")).unwrap(), "one file\n");
    assert_eq!(fs::read_to_string(unpacked.join("named/file")).unwrap(), "here\n");
    assert!(!found.contains_key("etc/other") && !found.contains_key("cache/x"));
    expect(whole("led"), "var/led");
    // What podman makes of it.
    let id = run(&["podman", "pull", "--quiet", &format!("oci:{}", image.display())]);
    let look =
        "cat /etc/one.conf /named/file /new/deep/outer/soft; ls /usr/share/demo/d1; stat -c %a:%u /usr/share/demo";
    let expected = "one file\nhere\ncontentacl\ncoloured\nd\nsoft\nsparse\n755:0";
    assert_eq!(run(&["podman", "run", "--rm", &id, "sh", "-c", look]), expected);

    // All of that in one layer.
    let one = place.commit("volumes", "one volumes=include squash=all compression=gzip");
    assert_eq!(ids(&one).len(), 1);
    let (_kept, unpacked) = unpack(&one);
    let (mut layered, mut merged) = (found.clone(), facts(&unpacked));
    // Nobody keeps the root's time.
    for facts in [&mut layered, &mut merged] {
        facts.remove("");
    }
    assert_eq!(differences(&layered, &merged), [""; 0]);
    let id = run(&["podman", "pull", "--quiet", &format!("oci:{}", one.display())]);
    assert_eq!(run(&["podman", "run", "--rm", &id, "sh", "-c", look]), expected);

    run(&["podman", "stop", "--time=0", &container.id]);
    let again = place.commit("volumes", "again volumes=include compression=gzip");
    assert_eq!(ids(&again)[without.len()..], with[without.len()..], "stopped");

    let declared = place.commit("volumes", "declared volumes=declare");
    attempt(&["podman", "commit", "--quiet", "--include-volumes", &container.id, "localhost/declared:1"]);
    let theirs = run(&["podman", "image", "inspect", "--format", "{{json .Config.Volumes}}", "localhost/declared:1"]);
    let mut theirs: Value = serde_json::from_str(&theirs).unwrap();
    // Who names a file a volume makes an image that cannot be run.
    theirs.as_object_mut().unwrap().remove("/etc/one.conf");
    let ours: Vec<String> = config(&declared)["config"]["Volumes"].as_object().unwrap().keys().cloned().collect();
    let mut theirs: Vec<String> = theirs.as_object().unwrap().keys().cloned().collect();
    theirs.sort();
    assert_eq!(ours, theirs);
    run(&["podman", "rmi", "--force", "localhost/declared:1", &id]);
}

/// A process that counts in a volume and in the root file system, in turns: at any one moment the two are equal, or the
/// volume is one ahead.
#[test]
fn volumes_and_root_are_of_one_moment() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let _daemon = place.serve();
    let volume = directory();
    fs::write(volume.path().join("ballast"), vec![7; 20 << 20]).unwrap();
    let count = "mkdir -p /srv; cd /var/run/data; n=0; while :; do n=$((n+1)); echo $n > n.new; mv n.new n
        echo $n > /srv/n.new; mv /srv/n.new /srv/n; done";
    let bundle = Bundle::tiny("runc", &place.other("runc"), "counts", count);
    bundle.configure(|spec| {
        let mount = json!({
            "destination": "/var/run/data", "type": "bind", "source": volume.path(), "options": ["rbind", "rw"],
        });
        spec["mounts"].as_array_mut().unwrap().push(mount);
    });
    // A path that leads elsewhere, in the container and not on the host.
    make(&bundle.root(), &[dir("run"), dir("var"), symlink("var/run", "/run")]);
    bundle.start();
    bundle.wait_for("srv/n");
    for round in 0..3 {
        let image = place.commit("counts", &format!("counts{round} volumes=include compression=gzip"));
        let (_kept, root) = unpack(&image);
        let number = |path: &str| fs::read_to_string(root.join(path)).unwrap().trim().parse::<u64>().unwrap();
        let (ahead, behind) = (number("run/data/n"), number("srv/n"));
        assert!(ahead == behind || ahead == behind + 1, "{ahead} and {behind}");
        assert_eq!(fs::metadata(root.join("run/data/ballast")).unwrap().len(), 20 << 20);
        assert_eq!(fs::read_link(root.join("var/run")).unwrap(), Path::new("/run"));
        assert_eq!(annotation(&image, "io.snapfs.torn_files"), None);
    }
}

#[test]
fn a_volume_that_must_not_be_read_is_refused() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let _daemon = place.serve();
    let host = directory();
    fs::create_dir(host.path().join("moved")).unwrap();
    let refused = |source: &Path, why: &str| {
        let name = format!("refused-{}", place.list("containers").len());
        let bundle = Bundle::tiny("crun", &place.other("crun"), &name, "exec sleep 1000");
        bundle.configure(|spec| {
            let mount = json!({ "destination": "/data", "type": "bind", "source": source, "options": ["bind", "ro"] });
            spec["mounts"].as_array_mut().unwrap().push(mount);
        });
        bundle.start();
        if why.contains("moved") {
            fs::rename(source, source.with_extension("away")).unwrap();
            fs::create_dir(source).unwrap();
        }
        let error = place.write(&format!("containers/{name}/commit"), "img volumes=include").unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP), "{why}");
        let told = place.read(&format!("containers/{name}/last_error"));
        assert!(told.contains("/data") && told.contains(why), "{told}");
        // All else of it can be had.
        place.commit(&name, &format!("{name} volumes=skip"));
    };
    refused(Path::new("/"), "whole file system");
    refused(&place.other("store"), "snapfs's store");
    refused(&place.other("store").join("blobs"), "is part of that");
    refused(host.path().parent().unwrap(), "or is part");
    refused(&host.path().join("moved"), "it was moved");
    refused(&place.dir(), "snapfs itself");
    let names = place.list("images");
    assert!(!names.contains(&"img".to_owned()), "{names:?}");
}
