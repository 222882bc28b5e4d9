//! podman: a store that the test writes as containers/storage does, run by a crun whose state the test writes as well.

use std::fs;
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use snapfs::engine::{self, BaseImage, Container, Crun, Engine, Engines, Host, Podman, RootFs, Status};
use snapfs::oci::{DiffId, Digest};
use tempfile::TempDir;

use super::{Subject, conforms};
use crate::harness::engine::{check_image, config_of, write};

const ID: &str = "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0";
const LAYERS: [&str; 2] = ["1a1a1a", "2b2b2b"];
const TOP: &str = "3c3c3c";
const PID: u32 = 4242;
const SPEC: &str = r#"{"ociVersion":"1.2.0","root":{"path":"/nowhere"}}"#;

/// A store with an image of two layers, and maybe a container.
struct Store {
    directory: TempDir,
    image_id: String,
    config: Vec<u8>,
}

impl Store {
    fn new() -> Store {
        let tars = vec![lower_tar(), upper_tar()];
        let config = config_of(&tars);
        let image_id = Digest::of(&config).hex();
        let store = Store { directory: tempfile::tempdir().unwrap(), image_id, config };
        let mut entries = Vec::new();
        for (at, (layer, tar)) in LAYERS.iter().zip(&tars).enumerate() {
            store.write_layer(layer, tar);
            let parent = at.checked_sub(1).map_or("", |below| LAYERS[below]);
            let diff_digest = DiffId::of(tar).to_string();
            entries.push(serde_json::json!({ "id": layer, "parent": parent, "diff-digest": diff_digest }));
        }
        entries.push(serde_json::json!({ "id": TOP, "parent": LAYERS[1], "names": ["box-layer"] }));
        store.write("graph/overlay-layers/layers.json", serde_json::to_vec(&entries).unwrap());
        let image = serde_json::json!([{ "id": store.image_id, "layer": LAYERS[1], "names": ["localhost/app:1"] }]);
        store.write("graph/overlay-images/images.json", image.to_string());
        fs::create_dir_all(store.config_path().parent().unwrap()).unwrap();
        fs::write(store.config_path(), &store.config).unwrap();
        store.write_containers(&[]);
        store.write_mounts(false);
        store.write("proc/self/cgroup", "0::/us\n");
        store
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn write(&self, path: &str, bytes: impl AsRef<[u8]>) {
        write(&self.path(path), bytes);
    }

    fn config_path(&self) -> PathBuf {
        let key = STANDARD.encode(format!("sha256:{}", self.image_id));
        self.path("graph/overlay-images").join(&self.image_id).join(format!("={key}"))
    }

    /// The layer's files, as far as tar-split needs them, and its list.
    fn write_layer(&self, layer: &str, tar: &[u8]) {
        let overlay = self.path("graph/overlay");
        fs::create_dir_all(overlay.join(layer).join("diff")).unwrap();
        fs::create_dir_all(overlay.join("l")).unwrap();
        symlink(format!("../{layer}/diff"), overlay.join("l").join(short(layer))).unwrap();
        let (mut list, mut end) = (String::new(), 0);
        let raw = |from: usize, to: usize, list: &mut String| {
            let line = serde_json::json!({ "type": 2, "payload": STANDARD.encode(&tar[from..to]), "position": 0 });
            list.push_str(&format!("{line}\n"));
        };
        for entry in tar::Archive::new(tar).entries().unwrap() {
            let entry = entry.unwrap();
            let (start, size) = (entry.raw_file_position() as usize, entry.size() as usize);
            raw(end, start, &mut list);
            end = start + size;
            let name = String::from_utf8(entry.path_bytes().to_vec()).unwrap();
            let content = &tar[start..end];
            let mut line = serde_json::json!({ "type": 1, "name": name, "payload": null, "position": 0 });
            if size > 0 {
                line["size"] = size.into();
                line["payload"] = STANDARD.encode(crc64(content).to_be_bytes()).into();
                write(&overlay.join(layer).join("diff").join(name.trim_start_matches('/')), content);
            }
            list.push_str(&format!("{line}\n"));
        }
        raw(end, tar.len(), &mut list);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(list.as_bytes()).unwrap();
        self.write(&format!("graph/overlay-layers/{layer}.tar-split.gz"), gzip.finish().unwrap());
    }

    fn entry(&self) -> serde_json::Value {
        let metadata = serde_json::json!({
            "image-name": "localhost/app:1", "image-id": self.image_id, "name": "box", "created-at": 981173106,
        });
        serde_json::json!({
            "id": ID, "names": ["box"], "image": self.image_id, "layer": TOP,
            "metadata": metadata.to_string(), "created": "2001-02-03T04:05:06.123456789Z",
        })
    }

    fn write_containers(&self, entries: &[serde_json::Value]) {
        self.write("graph/overlay-containers/containers.json", serde_json::to_vec(entries).unwrap());
    }

    /// The host's mounts, with the container's overlay or without.
    fn write_mounts(&self, is_mounted: bool) {
        let cgroup = self.path("cgroup");
        let mut text = format!("1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:4 / {} rw - cgroup2 c rw\n", cgroup.display());
        if is_mounted {
            let merged = self.layer_path(TOP, "merged");
            text.push_str(&format!("3 1 0:50 / {} rw - {}\n", merged.display(), self.overlay()));
        }
        self.write("proc/self/mountinfo", text);
    }

    fn layer_path(&self, layer: &str, part: &str) -> PathBuf {
        self.path("graph/overlay").join(layer).join(part)
    }

    fn overlay(&self) -> String {
        let links = self.path("graph/overlay/l");
        let lower = [LAYERS[1], LAYERS[0]].map(|layer| links.join(short(layer)).display().to_string()).join(":");
        let upper = self.layer_path(TOP, "diff");
        format!("overlay overlay rw,lowerdir={lower},upperdir={},workdir=/w,metacopy=on", upper.display())
    }

    /// The container's process, and its cgroup.
    fn write_process(&self) {
        let stat = format!("{PID} (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 777 0\n");
        self.write(&format!("proc/{PID}/stat"), stat);
        self.write(&format!("proc/{PID}/cgroup"), format!("0::/libpod-{ID}\n"));
        self.write(&format!("proc/{PID}/mountinfo"), format!("9 8 0:50 / / rw - {}\n", self.overlay()));
        self.write(&format!("cgroup/libpod-{ID}/cgroup.freeze"), "0\n");
    }

    fn host(&self) -> Host {
        Host::at(self.path("proc"), self.path("cgroup"))
    }

    fn podman(&self) -> Podman {
        Podman::new(self.path("graph"), self.path("run"), self.path("runc"), self.path("crun"), self.host())
    }

    fn container(&self) -> Container {
        let inventory = self.podman().list().unwrap();
        assert_eq!(inventory.containers.len(), 1, "{:?}", inventory.skipped);
        inventory.containers[0].clone()
    }

    fn image(&self) -> Result<BaseImage, engine::Error> {
        self.podman().base_image(&self.container()).map(|image| image.unwrap())
    }
}

/// A tar with a little of everything, some of it as podman's own layers do not write it.
fn lower_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut add = |name: &str, kind: tar::EntryType, content: &[u8], link: &str| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        if link.is_empty() {
            tar.append_data(&mut header, name, content).unwrap();
        } else {
            tar.append_link(&mut header, name, link).unwrap();
        }
    };
    add("./", tar::EntryType::Directory, b"", "");
    add("etc/", tar::EntryType::Directory, b"", "");
    add("etc/hostname", tar::EntryType::Regular, b"lab\n", "");
    add("etc/empty", tar::EntryType::Regular, b"", "");
    add("etc/hard", tar::EntryType::Link, b"", "etc/hostname");
    add("etc/soft", tar::EntryType::Symlink, b"", "/etc/hostname");
    add(&format!("{}/file", "long".repeat(60)), tar::EntryType::Regular, &[7; 512], "");
    add("big", tar::EntryType::Regular, &(0..200_001u32).map(|n| (n % 251) as u8).collect::<Vec<u8>>(), "");
    tar.into_inner().unwrap()
}

/// A whiteout, and more after the end than the end needs.
fn upper_tar() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [("etc/.wh.empty", &b""[..]), ("etc/hostname", b"changed")] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content).unwrap();
    }
    let mut bytes = tar.into_inner().unwrap();
    bytes.resize(bytes.len().next_multiple_of(10_240), 0);
    bytes
}

fn short(layer: &str) -> String {
    layer.to_uppercase()
}

/// CRC-64 as its definition has it: a bit at a time.
fn crc64(bytes: &[u8]) -> u64 {
    let shift = |register: u64| if register & 1 == 1 { (register >> 1) ^ (0x1b << 59) } else { register >> 1 };
    !bytes.iter().fold(!0u64, |register, byte| (0..8).fold(register ^ u64::from(*byte), |register, _| shift(register)))
}

impl Subject for Store {
    fn engine(&self) -> Box<dyn Engine> {
        Box::new(self.podman())
    }

    fn create(&mut self) -> String {
        for part in ["diff", "work", "merged"] {
            fs::create_dir_all(self.layer_path(TOP, part)).unwrap();
        }
        let lower = [LAYERS[1], LAYERS[0]].map(|layer| format!("l/{}", short(layer))).join(":");
        fs::write(self.layer_path(TOP, "lower"), lower).unwrap();
        self.write_containers(&[self.entry()]);
        "box".to_owned()
    }

    fn start(&mut self) -> u32 {
        self.write_mounts(true);
        self.write(&format!("graph/overlay-containers/{ID}/userdata/config.json"), SPEC);
        self.write_process();
        let status = serde_json::json!({
            "pid": PID, "process-start-time": 777, "cgroup-path": format!("/libpod-{ID}"),
            "rootfs": self.layer_path(TOP, "merged"), "bundle": "/b", "created": "2001-02-03T04:05:07Z",
        });
        self.write(&format!("crun/{ID}/status"), status.to_string());
        PID
    }

    fn pause(&mut self) {
        self.write(&format!("cgroup/libpod-{ID}/cgroup.freeze"), "1\n");
    }

    fn unpause(&mut self) {
        self.write(&format!("cgroup/libpod-{ID}/cgroup.freeze"), "0\n");
    }

    fn stop(&mut self) {
        fs::remove_dir_all(self.path("crun").join(ID)).unwrap();
        fs::remove_dir_all(self.path("proc").join(PID.to_string())).unwrap();
        self.write_mounts(false);
    }

    fn remove(&mut self) {
        self.write_containers(&[]);
    }

    fn spec(&self) -> Vec<u8> {
        SPEC.as_bytes().to_vec()
    }

    fn has_image_and_overlay(&self) -> (bool, bool) {
        (true, true)
    }

    fn labels_need_the_program(&self) -> bool {
        true
    }
}

#[test]
fn a_store_of_podman_conforms() {
    conforms(&mut Store::new());
}

#[test]
fn the_root_is_made_of_the_store() {
    let mut store = Store::new();
    store.create();
    let overlay = |container: Container| match container.root {
        RootFs::Overlay(overlay) => overlay,
        RootFs::Directory(path) => panic!("{path:?}"),
    };
    let created = overlay(store.container());
    assert_eq!(created.lower, [store.layer_path(LAYERS[1], "diff"), store.layer_path(LAYERS[0], "diff")]);
    assert_eq!(created.upper, store.layer_path(TOP, "diff"));
    assert_eq!((created.merged, created.options.len()), (None, 0));
    store.start();
    let running = overlay(store.container());
    assert_eq!(running.merged, Some(store.layer_path(TOP, "merged")));
    assert_eq!(running.options, ["rw", "metacopy=on"]);
    assert_eq!((running.lower, running.xattr_prefix), (created.lower, "trusted.overlay."));
    // Mounted where only the container sees it.
    store.write_mounts(false);
    assert_eq!(overlay(store.container()).merged, Some(store.path("proc").join(PID.to_string()).join("root")));
}

#[test]
fn the_base_image_is_made_again_exactly() {
    let mut store = Store::new();
    store.create();
    let image = store.image().unwrap();
    assert_eq!(check_image(&image).hex(), store.image_id);
    assert_eq!(image.config, store.config);
    assert_eq!(image.name.as_deref(), Some("localhost/app:1"));
    for (layer, tar) in image.layers.iter().zip([lower_tar(), upper_tar()]) {
        let mut bytes = Vec::new();
        layer.open().unwrap().read_to_end(&mut bytes).unwrap();
        assert!(bytes == tar, "the tars differ");
    }
}

#[test]
fn what_is_missing_or_changed_is_named() {
    let mut store = Store::new();
    store.create();
    let image = store.image().unwrap();
    let read = |at: usize| {
        let mut stream = image.layers[at].open()?;
        let copied = std::io::copy(&mut stream, &mut std::io::sink());
        Ok::<_, engine::Error>(copied.err().map(|error| error.to_string()))
    };
    fs::write(store.layer_path(LAYERS[1], "diff/etc/hostname"), "Changed").unwrap();
    let error = read(1).unwrap().unwrap();
    assert!(error.contains("etc/hostname") && error.contains(LAYERS[1]), "{error}");
    let list = store.path("graph/overlay-layers").join(format!("{}.tar-split.gz", LAYERS[1]));
    let compressed = fs::read(&list).unwrap();
    fs::write(&list, &compressed[..compressed.len() / 2]).unwrap();
    assert!(read(1).unwrap().unwrap().contains(LAYERS[1]));
    fs::remove_file(&list).unwrap();
    assert!(matches!(read(1), Err(engine::Error::NoTarSplit { layer, .. }) if layer == LAYERS[1]));
    assert_eq!(read(0).unwrap(), None);

    let layers = store.path("graph/overlay-layers/layers.json");
    let good = fs::read_to_string(&layers).unwrap();
    let other = DiffId::of(b"other").to_string();
    let bad = [
        good.replace(&format!("\"id\":\"{}\"", LAYERS[0]), "\"id\":\"another\""),
        good.replace(&format!("\"parent\":\"{}\"", LAYERS[0]), "\"parent\":\"\""),
        good.replacen("\"parent\":\"\"", &format!("\"parent\":\"{}\"", LAYERS[1]), 1),
        good.replace(&DiffId::of(&lower_tar()).to_string(), &other),
        "[]".to_owned(),
    ];
    for text in bad {
        fs::write(&layers, &text).unwrap();
        assert!(matches!(store.image(), Err(engine::Error::Image { .. })), "{text}");
    }
    fs::write(&layers, good).unwrap();
    fs::write(store.config_path(), "{}").unwrap();
    assert!(matches!(store.image(), Err(engine::Error::Image { .. })));
    let container = store.container();
    store.remove();
    assert!(matches!(store.podman().base_image(&container), Err(engine::Error::Gone { .. })));
}

#[test]
fn only_podmans_own_containers_are_listed() {
    let mut store = Store::new();
    store.create();
    let (mut buildah, mut crio, mut hostile) = (store.entry(), store.entry(), store.entry());
    buildah["metadata"] = "".into();
    crio["metadata"] = r#"{"pod-name":"p","name":"k8s_box","created-at":1}"#.into();
    hostile["layer"] = "../../../etc".into();
    let mut no_layer = store.entry();
    no_layer["id"] = "d0d0".into();
    no_layer["layer"] = "4d4d".into();
    store.write_containers(&[buildah, crio, hostile, serde_json::json!("x"), store.entry()]);
    let inventory = store.podman().list().unwrap();
    assert_eq!(inventory.containers.iter().map(|container| &container.id).collect::<Vec<_>>(), [ID]);
    assert_eq!(inventory.skipped.len(), 2, "{:?}", inventory.skipped);
    // A container with --rm has its entry in the other file.
    store.write_containers(&[]);
    store.write("graph/overlay-containers/volatile-containers.json", serde_json::to_vec(&[store.entry()]).unwrap());
    assert_eq!(store.container().id, ID);
}

#[test]
fn its_runtimes_state_is_not_another_container() {
    let mut store = Store::new();
    store.create();
    store.start();
    store.write("crun/bare/status", r#"{"pid":0,"process-start-time":0,"rootfs":"/r","bundle":"/b"}"#);
    let crun = || Box::new(Crun::new(store.path("crun"), store.host()));
    assert_eq!(crun().list().unwrap().containers.len(), 2);
    for engines in
        [Engines::new(vec![Box::new(store.podman()), crun()]), Engines::new(vec![crun(), Box::new(store.podman())])]
    {
        let mut names: Vec<String> = engines.containers().visible_names().map(str::to_owned).collect();
        names.sort();
        assert_eq!(names, ["bare", "box"]);
        assert_eq!(engines.containers().find(ID).unwrap().engine, "podman");
    }
}

#[test]
fn another_runtimes_process_is_found_by_its_root() {
    let mut store = Store::new();
    store.create();
    store.write_process();
    store.write(&format!("run/overlay-containers/{ID}/userdata/pidfile"), PID.to_string());
    let running = store.container();
    assert_eq!((running.status, running.init.map(|init| init.pid)), (Status::Running, Some(PID)));
    assert_eq!(running.cgroup.v2, Some(store.path("cgroup").join(format!("libpod-{ID}"))));
    assert_eq!(running.runtime, None);
    // The file outlives the process, and its number serves another.
    let mountinfo = format!("proc/{PID}/mountinfo");
    store.write(&mountinfo, "9 8 0:51 / / rw - overlay overlay rw,lowerdir=/a,upperdir=/b\n");
    assert_eq!(store.container().init, None);
}

#[test]
fn a_root_given_as_a_directory() {
    let mut store = Store::new();
    store.create();
    let mut entry = store.entry();
    entry["image"] = "".into();
    entry["metadata"] = r#"{"image-name":"","image-id":"","name":"box","created-at":1}"#.into();
    store.write_containers(&[entry]);
    let inventory = store.podman().list().unwrap();
    assert_eq!((inventory.containers.len(), inventory.skipped.len()), (0, 1), "it was never started");
    store.write(&format!("graph/overlay-containers/{ID}/userdata/config.json"), SPEC);
    let container = store.container();
    assert_eq!((&container.root, container.image.as_deref()), (&RootFs::Directory("/nowhere".into()), None));
    assert!(store.podman().base_image(&container).unwrap().is_none());
}
