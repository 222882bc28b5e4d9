//! Options of `commit` that have a counterpart at the engines: `change=`, `pause=stop`, `volumes=`.

// What is mounted in a container, as a part of its image.
mod volumes;

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};
use snapfs::tree::ErrorKind;

use crate::harness::lab::{Bundle, Container, Podman, attempt, directory, run, text};
use crate::harness::mount::{Place, eventually, in_lab};
use crate::harness::rootfs::file;
use crate::harness::world::World;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// The annotations of an image.
fn annotation(image: &Path, key: &str) -> Option<String> {
    json(&image.join("manifest.json"))["annotations"][key].as_str().map(str::to_owned)
}

/// What podman's configuration and ours say in the same words: podman adds what it is and what the container was given.
fn comparable(config: &Value) -> Map<String, Value> {
    let mut config = config.as_object().unwrap().clone();
    config.retain(|_, value| !value.is_null() && *value != Value::String(String::new()));
    if let Some(labels) = config.get_mut("Labels").and_then(Value::as_object_mut) {
        labels.remove("io.buildah.version");
    }
    if let Some(list) = config.get_mut("Env").and_then(Value::as_array_mut) {
        list.retain(|entry| entry != "container=podman" && !entry.as_str().unwrap().starts_with("HOSTNAME="));
    }
    if config.get("WorkingDir").is_some_and(|directory| directory == "/") {
        config.remove("WorkingDir");
    }
    for field in ["Domainname", "Hostname", "Image", "ArgsEscaped"] {
        config.remove(field);
    }
    config.retain(|_, value| *value != Value::Bool(false) && *value != Value::Array(Vec::new()));
    config
}

/// Of the image that podman made, byte for byte: what it shows of an image is not all.
fn config_of_podman() -> Value {
    let raw = run(&["skopeo", "inspect", "--raw", "--config", "containers-storage:localhost/changed:1"]);
    serde_json::from_str::<Value>(&raw).unwrap()["config"].clone()
}

const CHANGES: [&str; 33] = [
    r#"CMD ["a", "b c"]"#,
    "CMD echo \"$HOME\"  'x y'",
    "cmd [ -f /x ] && y",
    "CMD=/bin/bash",
    r#"ENTRYPOINT ["e", "-x"]"#,
    "ENTRYPOINT foo bar",
    "ENV A=1",
    "ENV A=1 B=2",
    "ENV A 1  2",
    "ENV A='x y' B=\"q \\\"z\\\" \\\\ \\n\" C=a\\ b",
    "ENV \"A\"=\"x y\" D=''",
    "ENV PATH=/x",
    "ENV A=",
    "EXPOSE 80",
    "EXPOSE 80/udp 90 91/tcp",
    "EXPOSE 80/sctp",
    "LABEL a=b",
    "LABEL a=b \"c d\"='e f' g=",
    "LABEL a b c",
    "LABEL org.example.base=other",
    "ONBUILD RUN make all",
    "STOPSIGNAL SIGTERM",
    "STOPSIGNAL 9",
    "USER 1:2",
    "USER web",
    "VOLUME /a /b",
    r#"VOLUME ["/a", "/b c"]"#,
    "WORKDIR /x",
    "WORKDIR x/y",
    "HEALTHCHECK NONE",
    "HEALTHCHECK CMD curl -f x || exit 1",
    r#"HEALTHCHECK --interval=5s --timeout=1m30s --start-period=2s --retries=3 CMD ["a", "b"]"#,
    "WORKDIR /a/../b",
];

/// Where there are variables, `podman commit` knows none, not even the image's; `podman build` does.
const WITH_VARIABLES: [&str; 4] = [
    "ENV PATH=$PATH:/opt X=${PATH}y Z=${NO:-no} Y=\\$PATH W='$PATH' V=\"$PATH\"",
    "LABEL path=$PATH other=${PATH:+set}",
    "WORKDIR ${PATH:+/srv/x}",
    "VOLUME $PATH",
];

const REFUSED: [&str; 12] = [
    "FOO x",
    "ENV A",
    "ENV A=1 B",
    "ENV A='x",
    "LABEL x",
    "STOPSIGNAL SIGFOO",
    "VOLUME []",
    "VOLUME /a \"/b c\"",
    "ONBUILD FROM x",
    "CMD [1]",
    "HEALTHCHECK --interval=x CMD y",
    "HEALTHCHECK FOO",
];

/// What podman makes something of that nobody can have meant.
const REFUSED_BY_US: [&str; 4] = ["EXPOSE http", "CMD ['sh', '-c']", "CMD [\"sh\",]", "ONBUILD FOO x"];

#[test]
fn a_change_means_what_it_means_to_podman() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let container = podman.create("changed", &["localhost/app:1"]);
    let commit = |changes: &[&str]| {
        let given = changes.iter().flat_map(|change| ["--change", change]);
        let words = ["podman", "commit", "--quiet", "--format=docker"].into_iter().chain(given);
        attempt(&words.chain([&container.id[..], "localhost/changed:1"]).collect::<Vec<_>>())
    };
    let quoted = |changes: &[&str]| {
        let words = changes.iter().map(|change| format!(" change='{}'", change.replace('\'', r"'\''")));
        format!("img{}", words.collect::<String>())
    };
    // One of each verb at a time: each has fields of its own.
    let mut batches: Vec<Vec<&str>> = Vec::new();
    for change in CHANGES {
        let verb = |change: &str| change.split([' ', '=']).next().unwrap().to_uppercase();
        match batches.iter_mut().find(|batch| !batch.iter().any(|other| verb(other) == verb(change))) {
            Some(batch) => batch.push(change),
            None => batches.push(vec![change]),
        }
    }
    for change in batches {
        let theirs = commit(&change);
        assert_eq!(theirs.code, 0, "{change:?}: {}", theirs.stderr);
        let theirs = config_of_podman();
        let ours = json(&place.commit("changed", &quoted(&change)).join("config.json"));
        assert_eq!(comparable(&ours["config"]), comparable(&theirs), "{change:?}");
    }
    let directory = directory();
    let file = directory.path().join("Dockerfile");
    fs::write(&file, format!("FROM localhost/app:1\n{}\n", WITH_VARIABLES.join("\n"))).unwrap();
    run(&["podman", "build", "--quiet", "--tag", "localhost/changed:1", text(directory.path())]);
    let theirs = config_of_podman();
    let ours = json(&place.commit("changed", &quoted(&WITH_VARIABLES)).join("config.json"));
    assert_eq!(comparable(&ours["config"]), comparable(&theirs));
    for change in REFUSED.into_iter().chain(REFUSED_BY_US) {
        assert_eq!(commit(&[change]).code == 0, REFUSED_BY_US.contains(&change), "{change}");
        let error = place.write("containers/changed/commit", &quoted(&[change])).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL), "{change}");
        let told = place.read("containers/changed/last_error");
        assert!(told.contains("change=") && told.contains(change.split(' ').next().unwrap()), "{told}");
    }
    run(&["podman", "rmi", "--force", "localhost/changed:1"]);
}

/// Ends when it is told to, and writes that down.
const ENDS: &str = "trap 'echo ended > /srv/ended; exit 0' TERM; rm -f /srv/ended; : > /srv/ready
    while :; do sleep 0.05; done";

#[test]
fn a_container_is_stopped_and_started_again() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let container = podman.start("ends", &["localhost/app:1", "sh", "-c", ENDS]);
    let root = container.root();
    eventually("it has begun", || root.join("srv/ready").exists());
    let pid = container.inspect(".State.Pid");
    let image = place.commit("ends", "stopped pause=stop");
    assert_eq!(annotation(&image, "io.snapfs.pause").as_deref(), Some("stop"));
    assert_eq!(container.inspect(".State.Status"), "running");
    assert_ne!(container.inspect(".State.Pid"), pid);
    let id = run(&["podman", "pull", "--quiet", &format!("oci:{}", image.display())]);
    assert_eq!(run(&["podman", "run", "--rm", &id, "cat", "/srv/ended"]), "ended", "its last words are in the image");

    // One that does not run is not started.
    run(&["podman", "stop", &container.id]);
    place.commit("ends", "stopped pause=stop");
    assert_eq!(container.inspect(".State.Status"), "exited");

    // What would be no more, and what cannot be stopped, is left as it is.
    let brief = podman.start("brief", &["--rm", "localhost/app:1", "sh", "-c", ENDS]);
    let error = place.write("containers/brief/commit", "no pause=stop").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EOPNOTSUPP));
    assert!(place.read("containers/brief/last_error").contains("podman run --rm"));
    assert_eq!(brief.inspect(".State.Status"), "running");
    brief.pause();
    let error = place.write("containers/brief/commit", "no pause=stop").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EBUSY));
    assert_eq!(brief.inspect(".State.Status"), "paused");
    brief.unpause();

    for runtime in ["runc", "crun"] {
        let name = format!("{runtime}-ends");
        let bundle = Bundle::tiny(runtime, &place.other(runtime), &name, &format!("mkdir /srv; {ENDS}"));
        bundle.start();
        bundle.wait_for("srv/ready");
        let image = place.commit(&name, &format!("{name} pause=stop compression=gzip"));
        assert_eq!(place.read(&format!("containers/{name}/status")), "stopped");
        assert!(place.read("jobs/last/log").contains("not started again"));
        let unpacked = directory();
        let at = unpacked.path().join("bundle");
        run(&["umoci", "unpack", "--image", &format!("{}:latest", image.display()), at.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(at.join("rootfs/srv/ended")).unwrap(), "ended\n");
    }
}

/// The engine is a fake, so that it can be asked what was asked of it.
#[test]
fn whatever_comes_of_it_a_stopped_container_is_started_again() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let asked = |from: usize| {
        let all = world.engine.log().split_off(from);
        all.into_iter().filter(|line| line.starts_with("stop") || line.starts_with("start")).collect::<Vec<_>>()
    };
    // It does not run.
    world.commit("web", "img pause=stop").unwrap();
    assert_eq!(world.whole("img").annotation("io.snapfs.pause"), Some("stopped"));
    assert_eq!(asked(0), Vec::<String>::new());
    world.run("web");
    world.commit("web", "img pause=stop").unwrap();
    assert_eq!(world.whole("img").annotation("io.snapfs.pause"), Some("stop"));
    assert_eq!(asked(0), ["stop web-id", "start web-id"]);
    assert_eq!(world.read("containers/web/status").unwrap(), "running\n");
    // A commit that fails.
    let before = world.engine.log().len();
    world.make("web", &[file(".wh.x", "")]);
    let error = world.commit("web", "other pause=stop").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
    assert_eq!(asked(before), ["stop web-id", "start web-id"]);
    assert_eq!(world.read("containers/web/status").unwrap(), "running\n");
    assert_eq!(world.images(), ["img"]);
    world.assert_thawed("web", "stopped and started");
}
