//! podman pulls a `zstd:chunked` layer from a registry: only what it does not have, if it may, and else all of it.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};

use serde_json::Value;
use snapfs::changeset::{Namespace, flatten};
use snapfs::image::Compression;
use snapfs::oci::Descriptor;
use snapfs::progress::Progress;
use snapfs::store::Store;

use crate::harness::have;
use crate::harness::lab::{Container, LIMIT, Podman, Running, attempt, directory, run, start, text as path_text};
use crate::harness::mount::{Place, eventually};
use crate::harness::rootfs::{Facts, block_device, char_device, differences, facts, fifo, file, make};
use crate::layer::chunked::tree;
use crate::layer::tools::publish;
use crate::layer::{text, writer};
use crate::roundtrip::layer_of;

/// A registry on the loopback device, until it is dropped, and the repository in it.
fn registry(place: &Path, port: u16) -> (Running, String) {
    let address = format!("127.0.0.1:{port}");
    let config = place.join("registry.yml");
    let (blobs, log) = (place.join("registry"), "log: { level: error }");
    let storage = format!("storage: {{ filesystem: {{ rootdirectory: {} }} }}", blobs.display());
    fs::write(&config, format!("version: 0.1\n{log}\n{storage}\nhttp: {{ addr: \"{address}\" }}\n")).unwrap();
    let registry = start(&["docker-registry", "serve", path_text(&config)]);
    eventually("the registry listens", || TcpStream::connect(&address).is_ok());
    (registry, format!("{address}/test"))
}

/// Send an image to a repository as it is; returns its layers as the manifest there has them.
fn send(from: &str, manifest: &[u8], repository: &str, tag: &str) -> Vec<Value> {
    let to = format!("docker://{repository}:{tag}");
    run(&["skopeo", "copy", "--quiet", "--dest-tls-verify=false", from, &to]);
    let raw = run(&["skopeo", "inspect", "--raw", "--tls-verify=false", &to]);
    assert_eq!(raw.as_bytes(), manifest, "skopeo sends the manifest byte for byte");
    serde_json::from_str::<Value>(&raw).unwrap()["layers"].as_array().unwrap().clone()
}

/// What podman says when it has fetched a layer in parts.
fn retrieved(layer: &Value) -> String {
    format!("Retrieved partial blob {}", layer["digest"].as_str().unwrap())
}

/// The image of a tree, sent to a repository; returns its layer.
fn push(place: &Path, root: &Path, repository: &str, tag: &str) -> Value {
    let layout = place.join(format!("store-{tag}"));
    let store = Store::open_dir(&layout).unwrap();
    let lease = store.lease().unwrap();
    let mut layer = writer(&lease, Compression::ZstdChunked, 2);
    let tar = layer_of(&flatten(&[root.to_owned()], Namespace::Trusted, &Progress::new()).unwrap());
    std::io::Write::write_all(&mut layer, &tar).unwrap();
    let manifest: Descriptor = publish(&lease, &layer.finish().unwrap(), &layout);
    let sent = store.read_document(&manifest, 1 << 20).unwrap();
    send(&format!("oci:{}:x", layout.display()), &sent, repository, tag).remove(0)
}

/// A podman with a store of its own, and nothing that it shares with the lab's.
struct Puller {
    place: PathBuf,
    config: String,
    temporary: String,
}

impl Puller {
    fn new(place: &Path, is_partial: bool) -> Puller {
        let place = place.join(format!("podman-{is_partial}"));
        fs::create_dir_all(&place).unwrap();
        let directory = |name: &str| place.join(name).display().to_string();
        let config = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n[storage.options.pull_options]\n\
             enable_partial_images = \"{is_partial}\"\nconvert_images = \"false\"\n",
            directory("root"),
            directory("run")
        );
        fs::write(place.join("storage.conf"), config).unwrap();
        let config = format!("CONTAINERS_STORAGE_CONF={}", directory("storage.conf"));
        Puller { config, temporary: format!("--tmpdir={}", directory("tmp")), place }
    }

    fn words<'a>(&'a self, words: &[&'a str]) -> Vec<&'a str> {
        [&["env", &self.config, "podman", &self.temporary], words].concat()
    }

    fn podman(&self, words: &[&str]) -> String {
        run(&self.words(words))
    }

    /// Pull an image; returns what is in it, and podman's log.
    fn pull(&self, image: &str) -> (Facts, String) {
        let ended = start(&self.words(&["--log-level=debug", "pull", "--tls-verify=false", image])).end(LIMIT);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let mounted = self.podman(&["image", "mount", image]);
        let found = facts(Path::new(&mounted));
        self.podman(&["image", "umount", image]);
        (found, ended.stderr)
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        attempt(&self.words(&["rmi", "--all", "--force"]));
        // podman mounts it on itself, and leaves it so.
        attempt(&["umount", path_text(&self.place.join("root/overlay"))]);
    }
}

/// What podman keeps neither if it fetches parts (the times of directories and symbolic links) nor if it does not (times
/// before 1970, the attributes of the root of an image).
fn kept(mut facts: Facts) -> Facts {
    facts.remove("");
    for fact in facts.values_mut() {
        if "dl".contains(fact.kind) || fact.mtime.0 < 0 {
            fact.mtime = (0, 0);
        }
    }
    facts
}

fn assert_same(expected: Facts, (found, log): (Facts, String)) -> String {
    let differences = differences(&kept(expected), &kept(found));
    assert!(differences.is_empty(), "{log}\n{}", differences.join("\n"));
    log
}

#[test]
fn podman_fetches_what_it_does_not_have() {
    if !have("lab") {
        return;
    }
    let place = directory();
    let root = place.path().join("tree");
    make(&root, &tree());
    let (_registry, repository) = registry(place.path(), 5071);
    let image = |tag: &str| format!("{repository}:{tag}");
    let layer = push(place.path(), &root, &repository, "first");
    assert_eq!(layer["annotations"].as_object().unwrap().len(), 3);
    let puller = Puller::new(place.path(), true);
    let log = assert_same(facts(&root), puller.pull(&image("first")));
    assert!(log.contains(&retrieved(&layer)), "{log}");

    // Of the next image it has all but two files.
    let (small, large) = (text(77, 3_000), text(78, 1_500_000));
    make(&root, &[file("d/new", &small), file("d/new too", &large)]);
    let layer = push(place.path(), &root, &repository, "second");
    let log = assert_same(facts(&root), puller.pull(&image("second")));
    assert!(log.contains(&retrieved(&layer)), "{log}");
    assert!(log.contains(&format!("Missing {} bytes out of ", small.len() + large.len())), "{log}");

    // One that is not asked to fetch parts reads the same blob as any zstd.
    let log = assert_same(facts(&root), Puller::new(place.path(), false).pull(&image("second")));
    assert!(!log.contains("Retrieved partial blob"), "{log}");

    // What podman would leave out, fetching files one by one, is not offered to it in that way.
    make(&root, &[fifo("d/fifo"), char_device("d/char", 1, 5), block_device("d/disk", 7, 99)]);
    let layer = push(place.path(), &root, &repository, "devices");
    assert_eq!(layer.get("annotations"), None);
    let log = assert_same(facts(&root), puller.pull(&image("devices")));
    assert!(!log.contains("Retrieved partial blob"), "{log}");
}

#[test]
fn a_containers_image_is_the_same_however_it_is_fetched() {
    if !have("lab") {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    // Its layers replace directories and delete files; the lowest has names and devices that podman could not fetch so.
    let script =
        "rm /etc/app-release; rm -r /usr/share/demo/d2; mkdir /usr/share/demo/d2; echo new > /usr/share/demo/d2/n
        exec sleep 1000";
    let container = podman.start("chunked", &["localhost/app:1", "sh", "-c", script]);
    eventually("it has changed its files", || container.root().join("usr/share/demo/d2/n").exists());
    let image = place.commit("chunked", "img compression=zstd:chunked");
    let (_registry, repository) = registry(&place.other("."), 5072);
    let manifest = fs::read(image.join("manifest.json")).unwrap();
    let layers = send(&format!("oci:{}", image.display()), &manifest, &repository, "img");
    let (chunked, plain): (Vec<_>, Vec<_>) = layers.iter().partition(|layer| layer.get("annotations").is_some());
    assert_eq!((chunked.len(), plain), (4, vec![&layers[0]]));
    let reference = format!("{repository}:img");
    let (whole, log) = Puller::new(&place.other("."), false).pull(&reference);
    assert!(!log.contains("Retrieved partial blob"), "{log}");
    assert_eq!(whole["usr/share/demo/d2/n"].content, b"new\n");
    assert!(!whole.contains_key("etc/app-release") && !whole.contains_key("usr/share/demo/d2/f0"));
    let log = assert_same(whole, Puller::new(&place.other("."), true).pull(&reference));
    for layer in chunked {
        assert!(log.contains(&retrieved(layer)), "{log}");
    }
    drop(container);
}
