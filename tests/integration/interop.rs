//! Real containers of every engine in every state, committed by a write, and what other programs make of the images.

// Images of containers that do not stand still.
mod moments;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::harness::lab::{Bundle, Container, Podman, attempt, directory, run, text};
use crate::harness::mount::{Place, eventually, in_lab};
use crate::harness::rootfs::{
    Facts, absent, acl, at, block_device, char_device, differences, facts, file, make, socket, sparse,
};

/// What the containers do to themselves; at the end there is /srv/ready.
const CHANGE: &str = "set -e
    echo changed > /etc/os-release
    mkdir -p /srv/app/data
    echo new > /srv/app/new; chmod 640 /srv/app/new
    ln /srv/app/new /srv/app/hard; ln -s new /srv/app/soft
    rm /usr/share/demo/d2/f0
    rm -r /usr/share/demo/d3; mkdir /usr/share/demo/d3; echo only > /usr/share/demo/d3/only
    rm /usr/share/demo/d4/f1; mkdir /usr/share/demo/d4/f1
    rm -r /usr/share/demo/d5/nested; echo file > /usr/share/demo/d5/nested
    mkfifo /srv/fifo
    chmod 700 /usr/share/demo/d6
    mv /usr/share/demo/d11 /srv/moved
    touch -d '2003-03-03 03:03:03' /srv/app/new
    : > /srv/ready";

/// What they cannot do themselves, done through their root file system.
fn change_from_outside(root: &Path) {
    make(
        root,
        &[
            at("srv/app/new").owner(12, 34),
            file("srv/attributes", "x").xattr("user.colour", b"red\0blue").mtime(1_000_000_000, 123_456_789),
            file("srv/acl", "x")
                .xattr("system.posix_acl_access", acl(&[(1, 6, !0), (2, 4, 77), (4, 4, !0), (16, 4, !0), (32, 0, !0)])),
            file("srv/may-ping", "x").xattr("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
            file("srv/setuid", "x").mode(0o4755),
            char_device("srv/zero", 1, 5).mode(0o600),
            block_device("srv/disk", 7, 99),
            socket("srv/socket"),
            sparse("srv/sparse", 3_000_000, &[(1_000_000, b"island")]),
            file("srv/a name\nwith a newline", "x"),
            file(b"srv/latin\xe9", "x"),
            absent("usr/share/demo/d6/f3"),
            at("usr/share/demo/d7").xattr("user.on_a_directory", "changed"),
            at("usr/share/demo/d1/soft").owner(5, 6),
        ],
    );
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

fn layers(image: &Path) -> Vec<Value> {
    json(&image.join("manifest.json"))["layers"].as_array().unwrap().clone()
}

fn unpack(image: &Path) -> Facts {
    let directory = directory();
    let bundle = directory.path().join("bundle");
    run(&["umoci", "unpack", "--image", &format!("{}:latest", image.display()), text(&bundle)]);
    facts(&bundle.join("rootfs"))
}

/// What podman makes in every container to mount its own files on, and the lab's images do not have.
const STUBS: [&str; 2] = ["etc/hosts", "run/.containerenv"];

/// Compares an image, as umoci unpacks it, with the container's own tree. `stubs` are there to be mounted on and for
/// nothing else: they are not in the image, and that they were made has changed the time of the directory they are in.
fn compare(image: &Path, root: &Path, stubs: &[&str]) {
    let (mut expected, mut found) = (facts(root), unpack(image));
    for stub in stubs {
        let fact = expected.remove(*stub).unwrap_or_else(|| panic!("there is no {stub} to be left out"));
        assert!(fact.content.is_empty());
        let parent = stub.rsplit_once('/').map_or("", |(parent, _)| parent);
        expected.get_mut(parent).unwrap().mtime = found[parent].mtime;
    }
    if root.starts_with("/var/lib/containers") {
        if diff_ids(image) == *podman_image(".RootFS.Layers").as_array().unwrap() {
            // Nothing changed. podman keeps no attributes of an image's root, which umoci takes from the first layer.
            expected.insert(String::new(), found[""].clone());
        }
        // What is older than 1970 in an image podman unpacks as of 1970; umoci does not.
        let old = found.values_mut().filter(|fact| fact.mtime.0 < 0);
        old.for_each(|fact| fact.mtime = (0, 0));
    }
    let differences = differences(&expected, &found);
    assert!(differences.is_empty(), "{}:\n{}", image.display(), differences.join("\n"));
}

/// Two encodings of one container; both are read by who can. `is_running` containers are paused while compared.
fn check(place: &Place, container: &dyn Container, is_running: bool, stubs: &[&str]) {
    let name = container.name();
    let zstd = place.commit(name, &format!("{name}-zstd"));
    let gzip = place.commit(name, &format!("{name}-gzip compression=gzip"));
    let encodings: BTreeSet<String> =
        layers(&gzip).iter().map(|layer| layer["mediaType"].as_str().unwrap().to_owned()).collect();
    assert_eq!(encodings, BTreeSet::from(["application/vnd.oci.image.layer.v1.tar+gzip".to_owned()]));
    if is_running {
        container.pause();
    }
    compare(&gzip, &container.root(), stubs);
    // A paused container is committed as it is, and stays paused.
    let again = place.commit(name, &format!("{name}-again"));
    if is_running {
        assert_eq!(place.read(&format!("containers/{name}/status")), "paused");
        container.unpause();
        eventually("it is shown as running", || place.read(&format!("containers/{name}/status")) == "running");
    }
    let (first, second) = (layers(&zstd), layers(&again));
    assert_eq!(first.len(), second.len());
    assert_eq!(first[..first.len() - 1], second[..second.len() - 1], "the base is shared");
    assert_eq!(first.last(), second.last(), "nothing changed between the two");
}

/// All other programs that read images.
fn check_tools(image: &Path) {
    let place = directory();
    let oci = format!("oci:{}", image.display());
    let copy = place.path().join("copy");
    run(&["skopeo", "copy", "--quiet", &oci, &format!("oci:{}:x", copy.display())]);
    let manifest = fs::read(image.join("manifest.json")).unwrap();
    let digest = fs::read_to_string(image.join("digest")).unwrap();
    let hex = digest.trim().strip_prefix("sha256:").unwrap();
    assert_eq!(fs::read(copy.join("blobs/sha256").join(hex)).unwrap(), manifest, "skopeo copies byte for byte");
    let inspected: Value = serde_json::from_str(&run(&["skopeo", "inspect", &oci])).unwrap();
    assert_eq!(inspected["Digest"], digest.trim());
    assert_eq!(inspected["Layers"].as_array().unwrap().len(), layers(image).len());

    let id = run(&["podman", "pull", "--quiet", &oci]);
    let look = "cat /srv/app/new /srv/app/soft /usr/share/demo/d3/only; ls /usr/share/demo/d3; test ! -e /usr/share/demo/d2/f0";
    assert_eq!(run(&["podman", "run", "--rm", &id, "sh", "-c", look]), "new\nnew\nonly\nonly");
    let working = run(&["buildah", "from", &oci]);
    let mounted = run(&["buildah", "mount", &working]);
    assert_eq!(fs::read_to_string(Path::new(&mounted).join("srv/app/hard")).unwrap(), "new\n");
    run(&["buildah", "rm", &working]);
    run(&["podman", "rmi", "--force", &id]);
}

fn diff_ids(image: &Path) -> Vec<Value> {
    json(&image.join("config.json"))["rootfs"]["diff_ids"].as_array().unwrap().clone()
}

fn podman_image(field: &str) -> Value {
    let format = format!("{{{{json {field}}}}}");
    serde_json::from_str(&run(&["podman", "image", "inspect", "localhost/app:1", "--format", &format])).unwrap()
}

#[test]
fn containers_of_podman_in_every_state() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let sleep = format!("{CHANGE}; exec sleep 1000");
    let running = podman.start("running", &["localhost/app:1", "sh", "-c", &sleep]);
    let crun = podman.start("crun", &["--runtime=crun", "localhost/app:1", "sh", "-c", &sleep]);
    let stopped = podman.start("stopped", &["localhost/app:1", "sh", "-c", CHANGE]);
    let created = podman.create("created", &["localhost/app:1", "sh", "-c", CHANGE]);
    assert_eq!(run(&["podman", "wait", "stopped"]), "0");
    for container in [&running, &crun, &stopped] {
        let root = container.root();
        eventually("the container has changed itself", || root.join("srv/ready").exists());
        change_from_outside(&root);
    }
    for (container, status) in [(&running, "running"), (&crun, "running"), (&stopped, "exited"), (&created, "created")]
    {
        assert_eq!(container.inspect(".State.Status"), status);
        let stubs: &[&str] = if status == "created" { &[] } else { &STUBS };
        check(&place, container, status == "running", stubs);
        assert_eq!(container.inspect(".State.Status"), status);
    }
    let base = podman_image(".RootFS.Layers");
    let base = base.as_array().unwrap();
    for name in ["running-zstd", "running-gzip", "stopped-zstd", "crun-again"] {
        let ids = diff_ids(&place.dir().join("images").join(name));
        assert_eq!((&ids[..base.len()], ids.len()), (&base[..], base.len() + 1), "the base is the engine's own");
    }
    check_tools(&place.dir().join("images/running-zstd"));
    check_tools(&place.dir().join("images/crun-gzip"));
}

#[test]
fn bundles_of_runc_and_crun() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let sleep = format!("{CHANGE}; exec sleep 1000");
    for (runtime, kind) in [("runc", "overlay"), ("crun", "overlay"), ("runc", "plain"), ("crun", "plain")] {
        let name = format!("{runtime}-{kind}");
        let bundle = Bundle::new(runtime, &place.other(runtime), &name, kind, &sleep);
        bundle.start();
        bundle.wait_for("srv/ready");
        change_from_outside(&bundle.root());
        assert_eq!(place.read(&format!("containers/{name}/engine")), runtime);
        check(&place, &bundle, true, &[]);
        check_tools(&place.dir().join(format!("images/{name}-zstd")));
        bundle.kill();
        assert_eq!(place.read(&format!("containers/{name}/status")), "stopped");
        let image = place.commit(&name, &format!("{name}-stopped compression=none"));
        compare(&image, &bundle.root(), &[]);
    }
    drop(podman);
}

#[test]
fn what_is_mounted_in_a_container_and_what_it_was_given_at_run_time_stay_outside() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let host = directory();
    fs::write(host.path().join("file"), "secret").unwrap();
    fs::write(host.path().join("environment"), "FROM_A_FILE=hunter3\n").unwrap();
    let environment = format!("--env-file={}/environment", host.path().display());
    attempt(&["podman", "secret", "rm", "snapfs-test"]);
    run(&["podman", "secret", "create", "snapfs-test", text(&host.path().join("file"))]);
    let bind = |what: &str, at: &str| format!("--volume={}{what}:{at}", host.path().display());
    let script = "for d in /data /srv/volume /cache /usr/share/demo/d1 /new/deep/tree; do echo secret > $d/secret; done
        echo seen > /srv/seen; exec sleep 1000";
    let container = podman.start(
        "mounts",
        &[
            &bind("", "/data"),
            &bind("", "/usr/share/demo/d1"),
            &bind("", "/new/deep/tree"),
            &bind("/file", "/etc/bound"),
            &bind("/file", "/etc/app-release"),
            "--volume=named:/srv/volume",
            "--tmpfs=/cache",
            "--env=SECRET=hunter2",
            &environment,
            "--secret=snapfs-test",
            "--secret=snapfs-test,type=env,target=SECRET_TOO",
            "--env=HOME=/elsewhere",
            "--label=run.time=yes",
            "--hostname=other",
            "--workdir=/srv",
            "--user=0:7",
            "--stop-signal=INT",
            "localhost/app:1",
            "sh",
            "-c",
            script,
        ],
    );
    let root = container.root();
    eventually("it has written", || root.join("srv/seen").exists());
    let image = place.commit("mounts", "mounts compression=gzip");
    let found = unpack(&image);
    let secrets: Vec<_> = found.iter().filter(|(_, fact)| fact.content.starts_with(b"secret")).collect();
    assert!(secrets.is_empty(), "{secrets:?}");
    for stub in
        ["data", "srv/volume", "cache", "etc/bound", "etc/hosts", "run/.containerenv", "run/secrets", "new/deep/tree"]
    {
        assert!(root.join(stub).exists(), "{stub} is mounted nowhere");
        assert!(!found.contains_key(stub), "{stub} is in the image");
    }
    assert_eq!(found["srv/seen"].content, b"seen\n");
    let mounted = run(&["podman", "image", "mount", "localhost/app:1"]);
    let base = facts(Path::new(&mounted));
    run(&["podman", "image", "unmount", "localhost/app:1"]);
    for (path, fact) in
        base.iter().filter(|(path, _)| path.starts_with("usr/share/demo/d1") || *path == "etc/app-release")
    {
        assert_eq!(found.get(path), Some(fact), "{path} is the image's own, below what was mounted");
    }

    let config = json(&image.join("config.json"));
    assert_eq!(config["config"], podman_image(".Config"), "what the container was given is not the image's");
    let everything = fs::read_to_string(image.join("config.json")).unwrap()
        + &fs::read_to_string(image.join("manifest.json")).unwrap();
    for word in ["hunter", "run.time", "elsewhere", "other", "SECRET", "FROM_A_FILE", "container=podman", "HOSTNAME"] {
        assert!(!everything.contains(word), "{word} is in {everything}");
    }

    run(&["podman", "secret", "rm", "snapfs-test"]);

    // The same of a bundle.
    let bundle = Bundle::new(
        "runc",
        &place.other("runc"),
        "bound",
        "overlay",
        "echo secret > /data/secret; : > /srv/ready; exec sleep 1000",
    );
    bundle.configure(|spec| {
        let source = host.path().display().to_string();
        for at in ["/data", "/usr/share/demo/d1"] {
            let mount =
                serde_json::json!({"destination": at, "type": "bind", "source": source, "options": ["rbind", "rw"]});
            spec["mounts"].as_array_mut().unwrap().push(mount);
        }
    });
    fs::create_dir_all(bundle.root().join("srv")).unwrap();
    bundle.start();
    bundle.wait_for("srv/ready");
    let image = place.commit("bound", "bound compression=gzip");
    compare(&image, &bundle.root(), &["data"]);
}
