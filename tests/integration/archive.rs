//! Images as archives: what is taken and what is refused, what is given, and what other tools make of it.

// Archives that are damaged, two-faced, endless, or not what they seem.
mod hostile;
// Archives written to a real mount, by writers that end well and by others.
mod mounted;
// Archives of podman, docker and skopeo, and ours in their hands.
mod tools;

use std::collections::BTreeMap;
use std::io::{Read, Write};

use proptest::prelude::*;
use serde_json::{Value, json};
use snapfs::archive::{Archive, Error, Imported, Layout, import};
use snapfs::image::Image;
use snapfs::oci::{
    DiffId, Digest, ImageName, MEDIA_TYPE_CONFIG, MEDIA_TYPE_INDEX, MEDIA_TYPE_LAYER, MEDIA_TYPE_LAYER_GZIP,
    MEDIA_TYPE_LAYER_ZSTD, MEDIA_TYPE_MANIFEST,
};
use snapfs::progress::Progress;
use snapfs::store::Store;
use snapfs::sys::clock::Clock;
use tempfile::TempDir;

use crate::harness::image::{name, read_whole};
use crate::harness::scratch;

/// A tar of regular files, in this order.
fn pack(entries: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (path, bytes) in entries {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, path, &bytes[..]).unwrap();
    }
    builder.into_inner().unwrap()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::stream::encode_all(bytes, 1).unwrap()
}

/// A layer's tar: one file of so many bytes that no compressor makes much smaller.
fn layer(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1);
    let bytes = (0..size).map(|_| {
        // Knuth's constants; the upper bits are random enough.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 56) as u8
    });
    pack(&[(format!("file-{seed}"), bytes.collect())])
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": Digest::of(bytes), "size": bytes.len() })
}

fn blob_path(bytes: &[u8]) -> String {
    format!("blobs/sha256/{}", Digest::of(bytes).hex())
}

fn bytes(value: &Value) -> Vec<u8> {
    value.to_string().into_bytes()
}

fn config(tars: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<DiffId> = tars.iter().map(|tar| DiffId::of(tar)).collect();
    let history: Vec<Value> = tars.iter().map(|_| json!({ "created_by": "a test" })).collect();
    json!({
        "architecture": "amd64", "os": "linux", "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
    })
}

/// An OCI archive, to be changed before it is packed.
#[derive(Debug, Clone)]
struct Oci {
    index: Value,
    manifest: Value,
    config: Value,
    /// Media type and bytes.
    layers: Vec<(String, Vec<u8>)>,
}

impl Oci {
    /// An image of these tars: the first stored as it is, the next with gzip, then with zstd, and so on.
    fn new(name: Option<&str>, tars: &[Vec<u8>]) -> Oci {
        let encode = |(at, tar): (usize, &Vec<u8>)| match at % 3 {
            0 => (MEDIA_TYPE_LAYER.to_owned(), tar.clone()),
            1 => (MEDIA_TYPE_LAYER_GZIP.to_owned(), gzip(tar)),
            _ => (MEDIA_TYPE_LAYER_ZSTD.to_owned(), zstd(tar)),
        };
        let layers = tars.iter().enumerate().map(encode).collect();
        let mut oci = Oci { index: json!({}), manifest: json!({}), config: config(tars), layers };
        oci.describe();
        oci.index(name);
        oci
    }

    /// Make the manifest anew.
    fn describe(&mut self) {
        let layers: Vec<Value> = self.layers.iter().map(|(kind, layer)| descriptor(kind, layer)).collect();
        self.manifest = json!({
            "schemaVersion": 2, "mediaType": MEDIA_TYPE_MANIFEST,
            "config": descriptor(MEDIA_TYPE_CONFIG, &bytes(&self.config)), "layers": layers,
        });
    }

    /// Make the index anew.
    fn index(&mut self, name: Option<&str>) {
        let mut entry = descriptor(MEDIA_TYPE_MANIFEST, &bytes(&self.manifest));
        if let Some(name) = name {
            entry["annotations"] = json!({ "org.opencontainers.image.ref.name": name });
        }
        self.index = json!({ "schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": [entry] });
    }

    fn blobs(&self) -> Vec<(String, Vec<u8>)> {
        let documents = [bytes(&self.manifest), bytes(&self.config)];
        let blobs: BTreeMap<_, _> = documents
            .into_iter()
            .chain(self.layers.iter().map(|(_, layer)| layer.clone()))
            .map(|blob| (blob_path(&blob), blob))
            .collect();
        blobs.into_iter().collect()
    }

    fn entries(&self) -> Vec<(String, Vec<u8>)> {
        let mut entries = self.blobs();
        entries.push(("index.json".to_owned(), bytes(&self.index)));
        entries.push(("oci-layout".to_owned(), br#"{"imageLayoutVersion": "1.0.0"}"#.to_vec()));
        entries
    }

    fn pack(&self) -> Vec<u8> {
        pack(&self.entries())
    }

    fn digest(&self) -> Digest {
        Digest::of(&bytes(&self.manifest))
    }
}

/// An archive of docker's, with a layer in each encoding.
fn docker(tags: &[&str], tars: &[Vec<u8>]) -> Vec<(String, Vec<u8>)> {
    let config = bytes(&config(tars));
    let config_name = format!("{}.json", Digest::of(&config).hex());
    let mut entries = vec![(config_name.clone(), config)];
    let mut names = Vec::new();
    for (at, tar) in tars.iter().enumerate() {
        let stored = [<[u8]>::to_vec, gzip, zstd][at % 3](tar);
        let name = format!("{at:064}/layer.tar");
        entries.push((format!("{at:064}/VERSION"), b"1.0".to_vec()));
        entries.push((format!("{at:064}/json"), b"{}".to_vec()));
        entries.push((name.clone(), stored));
        names.push(name);
    }
    let list = json!([{ "Config": config_name, "RepoTags": tags, "Layers": names }]);
    entries.push(("manifest.json".to_owned(), bytes(&list)));
    entries.push(("repositories".to_owned(), b"{}".to_vec()));
    entries
}

/// A store in memory.
struct Place {
    store: Store,
    directory: TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = scratch();
        Place { store: Store::open_dir(&directory.path().join("store")).unwrap(), directory }
    }

    fn import(&self, archive: &[u8]) -> Result<Vec<Imported>, Error> {
        let mut complete = false;
        let now = Clock::fixed(1_700_000_000).unwrap().now();
        let imported = import(&self.store, now, archive, || complete = true, &Progress::new());
        assert!(imported.is_err() || complete, "no name is given before the archive's end was seen");
        imported
    }

    /// Import, which must succeed; the names that were given.
    fn take(&self, archive: &[u8]) -> Vec<String> {
        let imported = self.import(archive).unwrap_or_else(|error| panic!("{error}"));
        for Imported { name, manifest } in &imported {
            let record = self.store.record(name).unwrap();
            assert_eq!(record.manifest.digest, *manifest);
            read_whole(&self.store, &record);
        }
        imported.into_iter().map(|imported| imported.name.to_string()).collect()
    }

    fn names(&self) -> Vec<String> {
        self.store.names().keys().map(ImageName::to_string).collect()
    }

    /// No name, no unfinished file, and after a collection no blob.
    fn assert_empty(&self, what: &str) {
        assert_eq!(self.names(), [""; 0], "{what}");
        self.store.gc().unwrap();
        assert_eq!(self.store.usage().unwrap().blobs, 0, "{what}");
        let stage = self.directory.path().join("store/stage");
        assert_eq!(std::fs::read_dir(stage).unwrap().count(), 0, "{what}");
        assert_eq!(self.store.fsck().unwrap(), [], "{what}");
    }

    fn archive(&self, of: &str) -> Archive {
        let record = self.store.record(&name(of)).unwrap();
        let image = Image::open(&self.store, &record.manifest).unwrap();
        Archive::open(&self.store, Layout::of(&image, &name(of)).unwrap()).unwrap()
    }
}

fn read_all(archive: &Archive) -> Vec<u8> {
    let mut bytes = vec![0; archive.size() as usize + 10];
    let filled = archive.read_at(0, &mut bytes).unwrap();
    bytes.truncate(filled);
    bytes
}

fn tars() -> Vec<Vec<u8>> {
    vec![layer(1, 3000), layer(2, 200_000), layer(3, 3_000_000), layer(4, 0)]
}

#[test]
fn an_oci_archive_is_taken_byte_for_byte() {
    let place = Place::new();
    let oci = Oci::new(Some("registry.example/team/web:1"), &tars());
    assert_eq!(place.take(&oci.pack()), ["registry.example/team/web:1"]);
    let record = place.store.record(&name("registry.example/team/web:1")).unwrap();
    assert_eq!((record.manifest.digest, record.kind.as_deref()), (oci.digest(), Some("image")));
    assert_eq!(read_whole(&place.store, &record).tars, tars());
    assert_eq!(place.take(&oci.pack()), ["registry.example/team/web:1"], "once more is no other image");
    for (line, packed) in [("as=gz\n", gzip(&oci.pack())), ("as=zst\n", zstd(&oci.pack()))] {
        assert_eq!(place.take(&[line.as_bytes(), &packed].concat()), [&line[3..line.len() - 1]]);
    }
    assert_eq!(place.names(), ["gz", "registry.example/team/web:1", "zst"]);
    assert_eq!(place.store.fsck().unwrap(), []);
}

#[test]
fn an_archive_of_docker_becomes_an_oci_image_with_its_config_as_it_was() {
    let place = Place::new();
    let entries = docker(&["localhost/app:1", "localhost/app:latest"], &tars());
    assert_eq!(place.take(&pack(&entries)), ["localhost/app:1", "localhost/app:latest"]);
    let whole = read_whole(&place.store, &place.store.record(&name("localhost/app:1")).unwrap());
    assert_eq!(whole.tars, tars());
    assert_eq!(whole.manifest["config"]["digest"], json!(Digest::of(&bytes(&config(&tars())))));
    let types: Vec<_> =
        whole.manifest["layers"].as_array().unwrap().iter().map(|layer| layer["mediaType"].clone()).collect();
    assert_eq!(types, [MEDIA_TYPE_LAYER, MEDIA_TYPE_LAYER_GZIP, MEDIA_TYPE_LAYER_ZSTD, MEDIA_TYPE_LAYER]);
}

#[test]
fn a_layer_of_docker_may_be_a_link_to_another() {
    let place = Place::new();
    let tar = layer(1, 1000);
    let mut entries = docker(&["app:1"], &[tar.clone(), tar.clone()]);
    entries.retain(|(path, _)| !path.starts_with(&format!("{:064}/", 1)));
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Symlink);
    header.set_size(0);
    builder.append_link(&mut header, format!("{:064}/layer.tar", 1), format!("../{:064}/layer.tar", 0)).unwrap();
    let link = builder.into_inner().unwrap();
    let archive = [&link[..512 * (link.len() / 512 - 2)], &pack(&entries)].concat();
    assert_eq!(place.take(&archive), ["app:1"]);
    let whole = read_whole(&place.store, &place.store.record(&name("app:1")).unwrap());
    assert_eq!(whole.tars, [tar.clone(), tar]);
}

#[test]
fn names_are_those_of_the_archive_or_the_writers() {
    let tars = [layer(1, 100)];
    let named = |annotations: Value| {
        let mut oci = Oci::new(None, &tars);
        oci.index["manifests"][0]["annotations"] = annotations;
        Place::new().take(&oci.pack())
    };
    let (whole, short) = ("io.containerd.image.name", "org.opencontainers.image.ref.name");
    let own = [Oci::new(None, &tars).digest().hex()[..12].to_owned()];
    assert_eq!(named(json!({ whole: "docker.io/library/web:1", short: "1" })), ["docker.io/library/web:1"]);
    assert_eq!(named(json!({ short: "localhost/web:1" })), ["localhost/web:1"]);
    assert_eq!(named(json!({ short: "latest" })), own, "of what?");
    assert_eq!(named(json!({ short: "No Name" })), own);
    assert_eq!(named(json!({ whole: "../../etc/passwd" })), own);
    assert_eq!(named(json!({})), own);
    let oci = Oci::new(Some("web:1"), &tars);
    assert_eq!(Place::new().take(&[b"as=mine:2\n", &oci.pack()[..]].concat()), ["mine:2"]);
}

#[test]
fn a_name_is_taken_from_no_other_image_unless_the_writer_says_so() {
    let place = Place::new();
    let (old, new) = (Oci::new(Some("web:1"), &[layer(1, 100)]), Oci::new(Some("web:1"), &[layer(2, 100)]));
    place.take(&old.pack());
    let error = place.import(&new.pack()).unwrap_err();
    assert!(matches!(&error, Error::Exists { name } if name.as_str() == "web:1"), "{error}");
    let stands_for = || place.store.record(&name("web:1")).unwrap().manifest.digest;
    assert_eq!(stands_for(), old.digest());
    place.take(&[b"replace\n", &new.pack()[..]].concat());
    assert_eq!(stands_for(), new.digest());
    place.take(&[b"as=web:1 replace\n", &old.pack()[..]].concat());
    assert_eq!(stands_for(), old.digest());
}

/// Two images in one archive.
fn two(first: &Oci, second: &Oci) -> Vec<u8> {
    let mut entries: BTreeMap<_, _> = first.entries().into_iter().chain(second.entries()).collect();
    let mut index = first.index.clone();
    index["manifests"].as_array_mut().unwrap().push(second.index["manifests"][0].clone());
    entries.insert("index.json".to_owned(), bytes(&index));
    pack(&entries.into_iter().collect::<Vec<_>>())
}

#[test]
fn several_images_are_taken_together_or_not_at_all() {
    let place = Place::new();
    let (web, db) = (Oci::new(Some("web:1"), &[layer(1, 100)]), Oci::new(Some("db:1"), &[layer(2, 100)]));
    assert!(matches!(
        place.import(&[b"as=x\n", &two(&web, &db)[..]].concat()).unwrap_err(),
        Error::Several { count: 2 }
    ));
    // A directory of images has the second one's name.
    place.take(&Oci::new(Some("db/x"), &[]).pack());
    let blocked = Oci::new(Some("db"), &[layer(2, 100)]);
    assert!(place.import(&two(&web, &blocked)).is_err());
    assert_eq!(place.names(), ["db/x"], "neither of the two");
    let both = Place::new();
    assert_eq!(both.take(&two(&web, &db)), ["web:1", "db:1"]);
}

#[test]
fn the_image_for_this_machine_is_taken_from_an_index() {
    let place = Place::new();
    let (ours, other) = (Oci::new(None, &[layer(1, 100)]), Oci::new(None, &[layer(2, 100)]));
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let entry = |oci: &Oci, platform: Value| {
        let mut entry = oci.index["manifests"][0].clone();
        entry["platform"] = platform;
        entry
    };
    let inner = bytes(&json!({
        "schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX,
        "manifests": [
            entry(&other, json!({ "os": "linux", "architecture": "mips" })),
            entry(&ours, json!({ "os": "linux", "architecture": arch })),
            entry(&other, json!({ "os": "unknown", "architecture": "unknown" })),
        ],
    }));
    let mut outer = descriptor(MEDIA_TYPE_INDEX, &inner);
    outer["annotations"] = json!({ "org.opencontainers.image.ref.name": "web:1" });
    let mut entries: BTreeMap<_, _> = ours.entries().into_iter().chain(other.entries()).collect();
    entries.insert(blob_path(&inner), inner);
    entries.insert("index.json".to_owned(), bytes(&json!({ "schemaVersion": 2, "manifests": [outer] })));
    assert_eq!(place.take(&pack(&entries.into_iter().collect::<Vec<_>>())), ["web:1"]);
    assert_eq!(place.store.record(&name("web:1")).unwrap().manifest.digest, ours.digest());
}

#[test]
fn what_is_given_is_the_same_each_time_and_taken_again_as_the_same_image() {
    let place = Place::new();
    let oci = Oci::new(Some("web"), &tars());
    place.take(&oci.pack());
    let archive = place.archive("web");
    let given = read_all(&archive);
    assert_eq!(given.len() as u64, archive.size());
    assert!(given == read_all(&place.archive("web")));
    let mut members = tar::Archive::new(&given[..]);
    let mut paths = Vec::new();
    for entry in members.entries().unwrap() {
        let mut entry = entry.unwrap();
        let path = entry.path().unwrap().display().to_string();
        let mut content = Vec::new();
        entry.read_to_end(&mut content).unwrap();
        if path.starts_with("blobs/") {
            assert_eq!(path, blob_path(&content));
        }
        paths.push(path);
    }
    assert_eq!(paths[..3], ["oci-layout", "index.json", "manifest.json"]);
    assert_eq!(paths.len(), 3 + 2 + 4, "each blob once");
    let elsewhere = Place::new();
    assert_eq!(elsewhere.take(&given), ["web"], "the name is as it was, without a tag");
    assert_eq!(elsewhere.store.record(&name("web")).unwrap().manifest.digest, oci.digest());
    assert!(read_all(&elsewhere.archive("web")) == given);

    // Deleted and collected, it is read to its end all the same.
    place.store.remove(&name("web")).unwrap();
    assert!(place.store.gc().unwrap().blobs > 0);
    assert!(read_all(&archive) == given);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Any part of an archive is that part of the whole.
    #[test]
    fn every_offset_can_be_read(reads in prop::collection::vec((0..20_000_u64, 0..9_000_usize), 1..20)) {
        let place = Place::new();
        place.take(&Oci::new(Some("web"), &[layer(1, 700), layer(2, 5000), layer(1, 700)]).pack());
        let archive = place.archive("web");
        let whole = read_all(&archive);
        for (offset, length) in reads {
            let mut part = vec![1; length];
            let filled = archive.read_at(offset, &mut part).unwrap();
            let start = (offset as usize).min(whole.len());
            let end = (start + length).min(whole.len());
            prop_assert!(part[..filled] == whole[start..end]);
        }
    }

    /// The order of the entries says nothing, nor do the pieces in which an archive comes.
    #[test]
    fn blobs_come_in_any_order(order in Just((0..8_usize).collect::<Vec<_>>()).prop_shuffle(), cut in 1..3000_usize) {
        let place = Place::new();
        let oci = Oci::new(Some("web"), &[layer(1, 700), layer(2, 5000), layer(3, 70)]);
        let entries = oci.entries();
        let shuffled: Vec<_> = order.iter().filter_map(|&at| entries.get(at).cloned()).collect();
        prop_assert_eq!(shuffled.len(), entries.len());
        let archive = pack(&shuffled);
        let now = Clock::fixed(0).unwrap().now();
        let imported = import(&place.store, now, Pieces(&archive, cut), || {}, &Progress::new()).unwrap();
        prop_assert_eq!(imported[0].manifest, oci.digest());
    }
}

/// Gives so many bytes at a time.
struct Pieces<'a>(&'a [u8], usize);

impl Read for Pieces<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.0.len().min(self.1).min(buffer.len());
        self.0.read(&mut buffer[..count])
    }
}
