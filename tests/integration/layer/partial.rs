//! podman pulls a `zstd:chunked` layer from a registry: only what it does not have, if it may, and else all of it.

use std::fs;
use std::net::TcpStream;
use std::path::Path;

use serde_json::Value;
use snapfs::changeset::{Namespace, flatten};
use snapfs::image::Compression;
use snapfs::oci::Descriptor;
use snapfs::progress::Progress;
use snapfs::store::Store;

use crate::harness::have;
use crate::harness::lab::{LIMIT, Running, attempt, directory, run, start, text as path_text};
use crate::harness::mount::eventually;
use crate::harness::rootfs::{Facts, block_device, char_device, differences, facts, fifo, file, make};
use crate::layer::chunked::tree;
use crate::layer::tools::publish;
use crate::layer::{text, writer};
use crate::roundtrip::layer_of;

const ADDRESS: &str = "127.0.0.1:5071";
const REPOSITORY: &str = "127.0.0.1:5071/test";

/// A registry on the loopback device, until it is dropped.
fn registry(place: &Path) -> Running {
    let config = place.join("registry.yml");
    let (blobs, log) = (place.join("registry"), "log: { level: error }");
    let storage = format!("storage: {{ filesystem: {{ rootdirectory: {} }} }}", blobs.display());
    fs::write(&config, format!("version: 0.1\n{log}\n{storage}\nhttp: {{ addr: \"{ADDRESS}\" }}\n")).unwrap();
    let registry = start(&["docker-registry", "serve", path_text(&config)]);
    eventually("the registry listens", || TcpStream::connect(ADDRESS).is_ok());
    registry
}

/// The image of a tree, sent to the registry as it is; returns its layer.
fn push(place: &Path, root: &Path, tag: &str) -> Value {
    let layout = place.join(format!("store-{tag}"));
    let store = Store::open_dir(&layout).unwrap();
    let lease = store.lease().unwrap();
    let mut layer = writer(&lease, Compression::ZstdChunked, 2);
    let tar = layer_of(&flatten(&[root.to_owned()], Namespace::Trusted, &Progress::new()).unwrap());
    std::io::Write::write_all(&mut layer, &tar).unwrap();
    let manifest: Descriptor = publish(&lease, &layer.finish().unwrap(), &layout);
    let (from, to) = (format!("oci:{}:x", layout.display()), format!("docker://{REPOSITORY}:{tag}"));
    run(&["skopeo", "copy", "--quiet", "--dest-tls-verify=false", &from, &to]);
    let raw = run(&["skopeo", "inspect", "--raw", "--tls-verify=false", &to]);
    let sent = store.read_document(&manifest, 1 << 20).unwrap();
    assert_eq!(raw.as_bytes(), sent, "skopeo sends the manifest byte for byte");
    serde_json::from_str::<Value>(&raw).unwrap()["layers"][0].clone()
}

/// A podman with a store of its own.
struct Puller {
    config: String,
}

impl Puller {
    fn new(place: &Path, is_partial: bool) -> Puller {
        let place = place.join(format!("podman-{is_partial}"));
        let (root, run) = (place.join("root"), place.join("run"));
        fs::create_dir_all(&place).unwrap();
        let config = format!(
            "[storage]\ndriver = \"overlay\"\ngraphroot = \"{}\"\nrunroot = \"{}\"\n[storage.options.pull_options]\n\
             enable_partial_images = \"{is_partial}\"\nconvert_images = \"false\"\n",
            root.display(),
            run.display()
        );
        fs::write(place.join("storage.conf"), config).unwrap();
        Puller { config: format!("CONTAINERS_STORAGE_CONF={}", place.join("storage.conf").display()) }
    }

    fn podman(&self, words: &[&str]) -> String {
        run(&[&["env", &self.config, "podman"], words].concat())
    }

    /// Pull the image and compare it with the tree; returns podman's log.
    fn pull(&self, tag: &str, expected: &Facts) -> String {
        let mut expected = expected.clone();
        let image = format!("{REPOSITORY}:{tag}");
        let words = ["env", &self.config, "podman", "--log-level=debug", "pull", "--tls-verify=false", &image];
        let ended = start(&words).end(LIMIT);
        assert_eq!(ended.code, 0, "{}", ended.stderr);
        let mounted = self.podman(&["image", "mount", &image]);
        let mut found = facts(Path::new(&mounted));
        if ended.stderr.contains("Retrieved partial blob") {
            // It does not keep the times of directories and symbolic links then.
            for fact in expected.values_mut().chain(found.values_mut()).filter(|fact| "dl".contains(fact.kind)) {
                fact.mtime = (0, 0);
            }
        } else {
            // It keeps no attributes of an image's root, and no times before 1970.
            expected.insert(String::new(), found[""].clone());
            expected.values_mut().filter(|fact| fact.mtime.0 < 0).for_each(|fact| fact.mtime = (0, 0));
        }
        let differences = differences(&expected, &found);
        assert!(differences.is_empty(), "{}\n{}", ended.stderr, differences.join("\n"));
        self.podman(&["image", "umount", &image]);
        ended.stderr
    }
}

impl Drop for Puller {
    fn drop(&mut self) {
        attempt(&["env", &self.config, "podman", "system", "reset", "--force"]);
    }
}

#[test]
fn podman_fetches_what_it_does_not_have() {
    if !have("lab") {
        return;
    }
    let place = directory();
    let root = place.path().join("tree");
    make(&root, &tree());
    let _registry = registry(place.path());
    let (layer, first) = (push(place.path(), &root, "first"), facts(&root));
    let puller = Puller::new(place.path(), true);
    let log = puller.pull("first", &first);
    assert_eq!(layer["annotations"].as_object().unwrap().len(), 3);
    let retrieved = format!("Retrieved partial blob {}", layer["digest"].as_str().unwrap());
    assert!(log.contains(&retrieved), "{log}");

    // Of the next image it has all but two files.
    let (small, large) = (text(77, 3_000), text(78, 1_500_000));
    make(&root, &[file("d/new", &small), file("d/new too", &large)]);
    let (layer, second) = (push(place.path(), &root, "second"), facts(&root));
    let log = puller.pull("second", &second);
    assert!(log.contains(&format!("Retrieved partial blob {}", layer["digest"].as_str().unwrap())), "{log}");
    assert!(log.contains(&format!("Missing {} bytes out of ", small.len() + large.len())), "{log}");

    // One that is not asked to fetch parts reads the same blob as any zstd.
    let log = Puller::new(place.path(), false).pull("second", &second);
    assert!(!log.contains("Retrieved partial blob"), "{log}");

    // What podman would leave out, fetching files one by one, is not offered to it in that way.
    make(&root, &[fifo("d/fifo"), char_device("d/char", 1, 5), block_device("d/disk", 7, 99)]);
    let layer = push(place.path(), &root, "devices");
    assert_eq!(layer.get("annotations"), None);
    let log = puller.pull("devices", &facts(&root));
    assert!(!log.contains("Retrieved partial blob"), "{log}");
}
