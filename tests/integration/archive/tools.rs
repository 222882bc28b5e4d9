//! Archives of podman, docker and skopeo, and ours in their hands.

use std::fs;
use std::time::Duration;

use crate::harness::lab::{Podman, attempt, run, start, text};
use crate::harness::mount::{Place, in_lab};

use super::json;

/// Write an archive to the mount's `import` under another name, as a shell does.
fn import(place: &Place, archive: &str, name: &str) {
    let command = format!("{{ echo as={name}; cat {archive}; }} > {}/import", place.dir().display());
    let ended = attempt(&["bash", "-c", &command]);
    assert_eq!(ended.code, 0, "{archive}: {}", place.read("import"));
}

fn config_digest(place: &Place, image: &str) -> String {
    let manifest = fs::read(place.dir().join("images").join(image).join("manifest.json")).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

fn inspected(image: &str) -> serde_json::Value {
    serde_json::from_str(&run(&["skopeo", "inspect", image])).unwrap()
}

#[test]
fn what_podman_and_skopeo_save_comes_in_and_goes_out_again() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::on_disk();
    let _daemon = place.serve();
    let at = |name: &str| text(&place.other(name)).to_owned();
    let id = run(&["podman", "image", "inspect", "--format", "{{.Id}}", "localhost/app:1"]);
    run(&["podman", "save", "--quiet", "--output", &at("docker.tar"), "localhost/app:1"]);
    run(&["podman", "save", "--quiet", "--format", "oci-archive", "--output", &at("oci.tar"), "localhost/app:1"]);
    run(&[
        "skopeo",
        "copy",
        "--quiet",
        "--dest-compress-format",
        "zstd",
        &format!("docker-archive:{}", at("docker.tar")),
        &format!("oci-archive:{}:app:zstd", at("zstd.tar")),
    ]);
    for kind in ["docker", "oci", "zstd"] {
        import(&place, &at(&format!("{kind}.tar")), kind);
        assert_eq!(config_digest(&place, kind), format!("sha256:{id}"), "podman's own id");
        let given = place.dir().join("images").join(kind).join("oci.tar");
        let digest = place.read(&format!("images/{kind}/digest"));
        // The tools that made it agree on what it is.
        if kind != "docker" {
            assert_eq!(inspected(&format!("oci-archive:{}", at(&format!("{kind}.tar"))))["Digest"], digest);
        }
        assert_eq!(inspected(&format!("oci-archive:{}", given.display()))["Digest"], digest);
        assert_eq!(inspected(&format!("oci:{}", place.dir().join("images").join(kind).display()))["Digest"], digest);
        let copy = at(&format!("copy-{kind}"));
        let given_as = format!("oci-archive:{}", given.display());
        run(&["skopeo", "copy", "--quiet", "--preserve-digests", &given_as, &format!("oci:{copy}:x")]);
        let manifest = fs::read(place.dir().join("images").join(kind).join("manifest.json")).unwrap();
        let hex = digest.strip_prefix("sha256:").unwrap();
        assert!(fs::read(format!("{copy}/blobs/sha256/{hex}")).unwrap() == manifest, "byte for byte");
        import(&place, text(&given), &format!("again-{kind}"));
        assert_eq!(place.read(&format!("images/again-{kind}/digest")), digest);
        for load in ["podman load --quiet --input GIVEN", "podman load --quiet < GIVEN"] {
            let told = run(&["bash", "-c", &load.replace("GIVEN", text(&given))]);
            assert!(told.ends_with(&format!("Loaded image: localhost/{kind}:latest")), "{told}");
            let name = format!("localhost/{kind}:latest");
            assert_eq!(run(&["podman", "image", "inspect", "--format", "{{.Id}}", &name]), id);
            run(&["podman", "rmi", &name]);
        }
    }
    // Both write straight to the file, and heed the errors of their writes.
    let target = place.dir().join("import").display().to_string();
    run(&["podman", "save", "--quiet", "--output", &target, "localhost/app:1"]);
    assert_eq!(place.read("images/localhost/app:1/digest"), place.read("images/docker/digest"));
    for format in ["docker-archive", "oci-archive"] {
        run(&[
            "skopeo",
            "copy",
            "--quiet",
            "containers-storage:localhost/app:1",
            &format!("{format}:{target}:{format}:1"),
        ]);
    }
    // skopeo makes a manifest of its own, of the same config.
    assert_eq!(config_digest(&place, "oci-archive:1"), format!("sha256:{id}"));
    assert_eq!(place.read("images/docker.io/library/docker-archive:1/digest"), place.read("images/docker/digest"));
    let taken =
        attempt(&["podman", "save", "--quiet", "--format", "oci-archive", "--output", &target, "localhost/app:1"]);
    assert_ne!(taken.code, 0, "another image has the name");
    assert!(place.read("import").contains("an image localhost/app:1 exists already"));
    run(&[
        "podman",
        "save",
        "--quiet",
        "--multi-image-archive",
        "--output",
        &at("multi.tar"),
        "localhost/app:1",
        "localhost/base:1",
    ]);
    run(&["bash", "-c", &format!("{{ echo replace; cat {}; }} > {target}", at("multi.tar"))]);
    assert_eq!(place.list("images/localhost"), ["app:1", "base:1"]);
    drop(podman);
}

#[test]
fn docker_loads_what_we_give_whatever_its_layers_are_and_we_take_what_docker_saves() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let dockerd = start(&["dockerd"]);
    let container = podman.start("web", &["localhost/app:1", "sh", "-c", "echo x > /srv/new; exec sleep 1000"]);
    crate::harness::mount::eventually("it has changed itself", || {
        attempt(&["podman", "exec", "web", "test", "-e", "/srv/new"]).code == 0
    });
    let limit = std::time::Instant::now() + Duration::from_secs(60);
    while attempt(&["docker", "info"]).code != 0 {
        assert!(std::time::Instant::now() < limit, "dockerd does not answer");
        std::thread::sleep(Duration::from_millis(100));
    }
    for (name, compression) in [("zstd", "zstd"), ("gzip", "gzip"), ("plain:1", "none")] {
        let image = place.commit("web", &format!("{name} compression={compression}"));
        let given = image.join("oci.tar");
        let tagged = if name.contains(':') { name.to_owned() } else { format!("{name}:latest") };
        assert_eq!(run(&["docker", "load", "--quiet", "--input", text(&given)]), format!("Loaded image: {tagged}"));
        let id = run(&["docker", "image", "inspect", "--format", "{{.Id}}", &tagged]);
        assert_eq!(id, config_digest(&place, name));
        let diff_ids: serde_json::Value =
            serde_json::from_str(&run(&["docker", "image", "inspect", "--format", "{{json .RootFS.Layers}}", &tagged]))
                .unwrap();
        let config: serde_json::Value = serde_json::from_slice(&fs::read(image.join("config.json")).unwrap()).unwrap();
        assert_eq!(diff_ids, config["rootfs"]["diff_ids"]);

        let saved = place.other("saved.tar");
        run(&["bash", "-c", &format!("docker save {tagged} > {}", saved.display())]);
        let again = format!("saved-{}", compression);
        import(&place, text(&saved), &again);
        assert_eq!(config_digest(&place, &again), id);
        let config: serde_json::Value =
            serde_json::from_slice(&fs::read(place.dir().join("images").join(&again).join("config.json")).unwrap())
                .unwrap();
        assert_eq!(config["rootfs"]["diff_ids"], diff_ids);
        let index: serde_json::Value = serde_json::from_slice(&fs::read(image.join("index.json")).unwrap()).unwrap();
        assert_eq!(index["manifests"][0]["digest"], json!(place.read(&format!("images/{name}/digest"))));
    }
    drop((container, dockerd));
}
