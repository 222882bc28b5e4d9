//! The store on a real directory. Crashes and races are in `tests/integration`.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde_json::json;
use tempfile::TempDir;

use crate::oci::{
    Descriptor, Digest, ImageName, MEDIA_TYPE_CONFIG, MEDIA_TYPE_INDEX, MEDIA_TYPE_LAYER, MEDIA_TYPE_MANIFEST,
};
use crate::store::{
    Collected, Conflict, DOCUMENT_LIMIT, Entry, Error, Lease, Problem, RECORD_LIMIT, Record, Replace, Store, layout,
};

fn name(text: &str) -> ImageName {
    text.parse().unwrap()
}

fn descriptor(media_type: &str, bytes: &[u8]) -> Descriptor {
    Descriptor::new(media_type, Digest::of(bytes), bytes.len() as u64)
}

fn put(lease: &Lease, media_type: &str, bytes: &[u8]) -> Descriptor {
    let (digest, size) = lease.put(bytes).unwrap();
    Descriptor::new(media_type, digest, size)
}

fn put_image(lease: &Lease, layer: &[u8]) -> Descriptor {
    let layer = put(lease, MEDIA_TYPE_LAYER, layer);
    let config = put(lease, MEDIA_TYPE_CONFIG, json!({ "of": layer }).to_string().as_bytes());
    put(lease, MEDIA_TYPE_MANIFEST, json!({ "config": config, "layers": [layer] }).to_string().as_bytes())
}

fn record(manifest: Descriptor) -> Record {
    Record::new(manifest, Timestamp::from_second(1_700_000_000).unwrap())
}

fn commit(store: &Store, to: &str, layer: &[u8]) -> Descriptor {
    let lease = store.lease().unwrap();
    let manifest = put_image(&lease, layer);
    store.tag(&lease, &name(to), record(manifest.clone()), Replace::Allowed).unwrap();
    manifest
}

fn new_store() -> (TempDir, Store) {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open_dir(&place.path().join("store")).unwrap();
    (place, store)
}

fn dir(place: &TempDir) -> PathBuf {
    place.path().join("store")
}

fn blob_path(place: &TempDir, digest: &Digest) -> PathBuf {
    dir(place).join(layout::blob(digest))
}

#[test]
fn one_process_at_a_time_and_nobody_else_looks_in() {
    let (place, store) = new_store();
    match Store::open_dir(&dir(&place)) {
        Err(Error::Locked { pid, .. }) => assert_eq!(pid, Some(std::process::id())),
        other => panic!("{other:?}"),
    }
    assert_eq!(fs::metadata(dir(&place)).unwrap().permissions().mode() & 0o7777, 0o700);
    assert_eq!(Store::fsck_dir(&dir(&place)).unwrap(), [], "a check runs beside a daemon");
    drop(store);
    Store::open_dir(&dir(&place)).unwrap();
}

#[test]
fn refuses_what_is_not_its_own() {
    let place = tempfile::tempdir().unwrap();
    fs::write(place.path().join("thesis.txt"), "years of work").unwrap();
    fs::write(place.path().join("version"), "of something else").unwrap();
    assert!(matches!(Store::open_dir(place.path()), Err(Error::NotAStore { .. })));
    assert_eq!(fs::read_dir(place.path()).unwrap().count(), 2);

    let (place, store) = new_store();
    drop(store);
    fs::remove_file(dir(&place).join("version")).unwrap();
    fs::write(dir(&place).join("version"), "snapfs-store 2\n").unwrap();
    assert!(matches!(Store::open_dir(&dir(&place)), Err(Error::NewerVersion { found: 2, known: 1, .. })));
    assert!(matches!(Store::fsck_dir(&dir(&place)), Err(Error::NewerVersion { .. })));
}

#[test]
fn a_blob_is_there_once_finished_and_leaves_nothing_otherwise() {
    let (place, store) = new_store();
    let lease = store.lease().unwrap();
    let mut blob = lease.blob().unwrap();
    blob.write_all(b"half").unwrap();
    drop(blob);
    let mut blob = lease.blob().unwrap();
    blob.write_all(b"wh").unwrap();
    blob.write_all(b"ole").unwrap();
    let (digest, size) = blob.finish().unwrap();
    assert_eq!((digest, size), (Digest::of(b"whole"), 5));
    assert_eq!(lease.put(b"whole").unwrap(), (digest, 5), "twice is once");
    assert_eq!(store.blob_size(&digest).unwrap(), 5);
    assert_eq!(fs::metadata(blob_path(&place, &digest)).unwrap().permissions().mode() & 0o7777, 0o444);
    let usage = store.usage().unwrap();
    assert_eq!((usage.blobs, usage.bytes, usage.names), (1, 5, 0));
    assert_eq!(store.gc().unwrap(), Collected::default(), "the lease holds it");
    drop(lease);
    assert_eq!(fs::read_dir(dir(&place).join("stage")).unwrap().count(), 0);
    assert_eq!(store.gc().unwrap(), Collected { blobs: 1, bytes: 5 });
    assert!(matches!(store.open_blob(&digest), Err(Error::NoSuchBlob { .. })));
}

#[test]
fn a_writer_outlives_its_lease() {
    let (_place, store) = new_store();
    let lease = store.lease().unwrap();
    let mut blob = lease.blob().unwrap();
    drop(lease);
    blob.write_all(b"x").unwrap();
    let (digest, _) = blob.finish().unwrap();
    assert_eq!(store.blob_size(&digest).unwrap(), 1);
}

#[test]
fn a_damaged_blob_is_replaced_by_good_bytes_and_kept_for_a_look() {
    let (place, store) = new_store();
    let manifest = commit(&store, "img", b"layer");
    drop(store);
    let layer = Digest::of(b"layer");
    fs::remove_file(blob_path(&place, &layer)).unwrap();
    fs::write(blob_path(&place, &layer), b"lay3r").unwrap();
    let store = Store::open_dir(&dir(&place)).unwrap();
    assert_eq!(commit(&store, "img", b"layer"), manifest);
    assert_eq!(fs::read(blob_path(&place, &layer)).unwrap(), b"layer");
    assert_eq!(fs::read(dir(&place).join("quarantine/0").join(layout::blob(&layer))).unwrap(), b"lay3r");
    let problems: Vec<Problem> = store.fsck().unwrap().into_iter().map(|fault| fault.problem).collect();
    assert_eq!(problems, [Problem::InQuarantine]);
}

#[test]
fn no_name_for_half_an_image() {
    let (_place, store) = new_store();
    let lease = store.lease().unwrap();
    let tag = |manifest: &Descriptor| store.tag(&lease, &name("img"), record(manifest.clone()), Replace::Allowed);
    let absent = descriptor(MEDIA_TYPE_MANIFEST, b"absent");
    assert!(matches!(tag(&absent), Err(Error::Incomplete { missing, .. }) if missing == absent.digest));

    let config = put(&lease, MEDIA_TYPE_CONFIG, b"{}");
    let layer = descriptor(MEDIA_TYPE_LAYER, b"absent layer");
    let manifest = |config: &Descriptor, layers: &[&Descriptor]| {
        put(&lease, MEDIA_TYPE_MANIFEST, json!({ "config": config, "layers": layers }).to_string().as_bytes())
    };
    let incomplete = manifest(&config, &[&layer]);
    assert!(matches!(tag(&incomplete), Err(Error::Incomplete { missing, .. }) if missing == layer.digest));
    let index = put(&lease, MEDIA_TYPE_INDEX, json!({ "manifests": [incomplete] }).to_string().as_bytes());
    assert!(matches!(tag(&index), Err(Error::Incomplete { missing, .. }) if missing == layer.digest));
    let lying = manifest(&Descriptor { size: 3, ..config.clone() }, &[]);
    assert!(matches!(tag(&lying), Err(Error::Corrupt { .. })));
    assert!(matches!(tag(&config), Err(Error::Malformed { .. })), "a configuration is no image");
    let nonsense = put(&lease, MEDIA_TYPE_MANIFEST, b"\xef\xbb\xbf{}");
    assert!(matches!(tag(&nonsense), Err(Error::Malformed { .. })));
    let mut deep = manifest(&config, &[]);
    for _ in 0..6 {
        deep = put(&lease, MEDIA_TYPE_INDEX, json!({ "manifests": [deep] }).to_string().as_bytes());
    }
    assert!(matches!(tag(&deep), Err(Error::Malformed { .. })));
    assert!(store.names().is_empty());
}

#[test]
fn names_are_paths() {
    let (place, store) = new_store();
    commit(&store, "r.example/team/web:1", b"web");
    commit(&store, "img", b"img");
    let lease = store.lease().unwrap();
    let tag = |to: &str, replace| {
        let manifest = store.record(&name("img")).unwrap().manifest.clone();
        store.tag(&lease, &name(to), record(manifest), replace)
    };
    match tag("r.example/team", Replace::Allowed) {
        Err(Error::NameConflict { conflict: Conflict::Directory(holds), .. }) => {
            assert_eq!(holds, "r.example/team/web:1")
        }
        other => panic!("{other:?}"),
    }
    match tag("img/below", Replace::Allowed) {
        Err(Error::NameConflict { conflict: Conflict::Image(image), .. }) => assert_eq!(image, "img"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(tag("img", Replace::Refused), Err(Error::NameExists { .. })));
    assert!(tag("other", Replace::Refused).unwrap().generation < tag("img", Replace::Allowed).unwrap().generation);

    assert!(store.has_children("r.example") && !store.has_children("img") && !store.has_children("r.exampl"));
    assert_eq!(store.list("r.example"), [("team".to_owned(), Entry::Directory)]);
    let top: Vec<String> = store.list("").into_iter().map(|(name, _)| name).collect();
    assert_eq!(top, ["img", "other", "r.example"]);

    let rename = |from: &str, to: &str, replace| store.rename(&name(from), &name(to), replace);
    assert!(matches!(rename("absent", "x", Replace::Allowed), Err(Error::NoSuchName { .. })));
    assert!(matches!(rename("img", "other", Replace::Refused), Err(Error::NameExists { .. })));
    assert!(matches!(rename("img", "img/x", Replace::Allowed), Err(Error::NameConflict { .. })));
    rename("img", "img", Replace::Refused).unwrap();
    rename("r.example/team/web:1", "r.example/team/web:2", Replace::Refused).unwrap();
    rename("r.example/team/web:2", "web", Replace::Refused).unwrap();
    assert!(!dir(&place).join("names/r.example").exists(), "empty directories go");
    rename("web", "img", Replace::Allowed).unwrap();
    store.remove(&name("other")).unwrap();
    assert!(matches!(store.remove(&name("other")), Err(Error::NoSuchName { .. })));
    commit(&store, "deep/er/img", b"img");
    store.remove(&name("deep/er/img")).unwrap();
    assert!(!dir(&place).join("names/deep").exists());

    let before = store.names();
    drop((lease, store));
    let store = Store::open_dir(&dir(&place)).unwrap();
    assert_eq!((store.names(), store.faults()), (before, &[][..]), "a restart changes nothing");
    assert!(commit_generation(&store, "new") > store.record(&name("img")).unwrap().generation);
}

fn commit_generation(store: &Store, to: &str) -> u64 {
    commit(store, to, b"x");
    store.record(&name(to)).unwrap().generation
}

#[test]
fn a_record_has_a_limit() {
    let (_place, store) = new_store();
    let lease = store.lease().unwrap();
    let mut record = record(put_image(&lease, b"x"));
    record.labels.insert("key".to_owned(), "v".repeat(usize::try_from(RECORD_LIMIT).unwrap()));
    let refused = store.tag(&lease, &name("a/b"), record, Replace::Allowed);
    assert!(matches!(refused, Err(Error::RecordTooLarge { .. })), "{refused:?}");
    commit(&store, "a", b"x");
}

#[test]
fn documents_are_verified() {
    let (place, store) = new_store();
    let manifest = commit(&store, "img", b"layer");
    assert!(store.read_document(&manifest, DOCUMENT_LIMIT).is_ok());
    assert!(matches!(store.read_document(&manifest, 10), Err(Error::TooLarge { .. })));
    let longer = Descriptor { size: manifest.size + 1, ..manifest.clone() };
    assert!(matches!(store.read_document(&longer, DOCUMENT_LIMIT), Err(Error::Corrupt { .. })));
    let path = blob_path(&place, &manifest.digest);
    let mut bytes = fs::read(&path).unwrap();
    bytes[5] ^= 1;
    fs::write(&path, bytes).unwrap();
    let error = store.read_document(&manifest, DOCUMENT_LIMIT).unwrap_err();
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

#[test]
fn collection_follows_indexes_to_the_end_in_one_run() {
    let (_place, store) = new_store();
    let lease = store.lease().unwrap();
    let inner = put_image(&lease, b"deep");
    let index = put(&lease, MEDIA_TYPE_INDEX, json!({ "manifests": [inner] }).to_string().as_bytes());
    // As containerd's checkpoints do, the outer index names a blob that is no document.
    let dump = put(&lease, "application/vnd.example.dump", b"not JSON");
    let outer = put(&lease, MEDIA_TYPE_INDEX, json!({ "manifests": [index, dump] }).to_string().as_bytes());
    store.tag(&lease, &name("img"), record(outer), Replace::Allowed).unwrap();
    drop(lease);
    assert_eq!(store.gc().unwrap().blobs, 0);
    assert_eq!(store.fsck().unwrap(), []);
    store.remove(&name("img")).unwrap();
    assert_eq!(store.gc().unwrap().blobs, 6);
    assert_eq!(store.usage().unwrap().blobs, 0);
}

#[test]
fn facts_are_whole_or_absent() {
    let (place, store) = new_store();
    assert_eq!(store.recall("diff-id", "sha256:00"), None);
    store.remember("diff-id", "sha256:00", b"one").unwrap();
    store.remember("diff-id", "sha256:00", b"two").unwrap();
    assert_eq!(store.recall("diff-id", "sha256:00").as_deref(), Some(&b"two"[..]));
    fs::write(dir(&place).join("cache/diff-id/sha256:00"), "sha256:nonsense\ntwo").unwrap();
    assert_eq!(store.recall("diff-id", "sha256:00"), None);
    assert!(matches!(store.remember("..", "x", b""), Err(Error::InvalidKey { .. })));
    assert_eq!(store.recall("diff-id", "../../version"), None);
}

/// Every file of a store, damaged in every way: the store opens, the other image is whole, the check names the file,
/// and collection takes nothing that the damaged image could still be mended with.
#[test]
fn damage_stays_where_it_is() {
    let (model, store) = new_store();
    commit(&store, "a/sound", b"sound layer");
    commit(&store, "a/victim", b"victim layer");
    drop(store);
    let files = walk(&dir(&model));
    assert_eq!(files.len(), 10, "version, lock, two records, six blobs: {files:?}");
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        ("empty", |path| fs::write(path, b"").unwrap()),
        ("zeros", |path| fs::write(path, vec![0; fs::metadata(path).unwrap().len() as usize]).unwrap()),
        ("truncated", |path| truncate(path)),
        ("flipped", |path| flip(path)),
        ("missing", |path| fs::remove_file(path).unwrap()),
        ("directory", |path| {
            fs::remove_file(path).unwrap();
            fs::create_dir(path).unwrap();
        }),
    ];
    for file in &files {
        for (what, damage) in damages {
            let context = format!("{} {what}", file.display());
            if file == Path::new("lock") && what == "directory" {
                continue;
            }
            let place = tempfile::tempdir().unwrap();
            copy(&dir(&model), place.path());
            let is_record_lost =
                file.starts_with("names") && what == "missing" || what == "directory" && file.starts_with("names");
            damage(&place.path().join(file));
            if file != Path::new("lock") && !is_record_lost {
                assert!(!Store::fsck_dir(place.path()).unwrap().is_empty(), "{context}: not noticed");
            }
            let store = Store::open_dir(place.path()).unwrap_or_else(|error| panic!("{context}: {error}"));
            let owner_is_victim = owner(&dir(&model), file);
            let other = if owner_is_victim { "a/sound" } else { "a/victim" };
            let record = store.record(&name(other)).unwrap_or_else(|| panic!("{context}: {other} is gone"));
            read_whole(&store, &record);
            if file.starts_with("names") && what == "flipped" {
                assert_eq!(store.faults().len(), 1, "{context}");
                assert_eq!(store.gc().unwrap().blobs, 0, "{context}: the record can still be mended");
            }
            store.gc().unwrap();
            read_whole(&store, &record);
            commit(&store, "a/third", b"sound layer");
        }
    }
}

/// Whether a file belongs to the image `a/victim`.
fn owner(store: &Path, file: &Path) -> bool {
    if file == Path::new("names/a/victim") {
        return true;
    }
    let record = Record::decode(&fs::read(store.join("names/a/victim")).unwrap()).unwrap();
    let manifest = fs::read_to_string(store.join(layout::blob(&record.manifest.digest))).unwrap();
    let hex = file.file_name().unwrap().to_str().unwrap();
    file.starts_with("blobs") && (record.manifest.digest.hex() == hex || manifest.contains(hex))
}

fn read_whole(store: &Store, record: &Record) {
    let manifest = store.read_document(&record.manifest, DOCUMENT_LIMIT).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    for child in [&manifest["config"], &manifest["layers"][0]] {
        let child: Descriptor = serde_json::from_value(child.clone()).unwrap();
        let mut bytes = Vec::new();
        store.open_blob(&child.digest).unwrap().read_to_end(&mut bytes).unwrap();
        assert_eq!(Digest::of(&bytes), child.digest);
    }
}

fn truncate(path: &Path) {
    let bytes = fs::read(path).unwrap();
    fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

fn flip(path: &Path) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    fs::write(path, bytes).unwrap();
}

fn walk(top: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut open = vec![top.to_owned()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            match entry.file_type().unwrap().is_dir() {
                true => open.push(entry.path()),
                false => files.push(entry.path().strip_prefix(top).unwrap().to_owned()),
            }
        }
    }
    files.sort();
    files
}

fn copy(from: &Path, to: &Path) {
    for file in walk(from) {
        fs::create_dir_all(to.join(&file).parent().unwrap()).unwrap();
        fs::write(to.join(&file), fs::read(from.join(&file)).unwrap()).unwrap();
    }
}

/// A store that version 1 wrote. Empty directories are missing from it, as version control leaves them out.
#[test]
fn version_1_still_opens() {
    let place = tempfile::tempdir().unwrap();
    copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/stores/v1"), place.path());
    let store = Store::open_dir(place.path()).unwrap();
    assert_eq!(store.faults(), []);
    let names: Vec<String> = store.names().keys().map(ToString::to_string).collect();
    assert_eq!(names, ["img", "registry.example:5000/team/web:1.0"]);
    let web = store.record(&name("registry.example:5000/team/web:1.0")).unwrap();
    assert_eq!((web.kind.as_deref(), web.labels["env"].as_str(), web.generation), (Some("commit"), "prod\n", 2));
    assert_eq!(web.created.to_string(), "2023-11-14T22:13:20Z");
    store.names().values().for_each(|record| read_whole(&store, record));
    assert_eq!(store.recall("diff-id", "sha256:example").as_deref(), Some(&b"a fact"[..]));
    assert_eq!(store.gc().unwrap(), Collected::default());
    assert_eq!(store.fsck().unwrap(), []);
}

#[test]
#[ignore = "writes the specimen of a new format version; never run it for an old one"]
fn write_specimen() {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/stores/v{}", layout::VERSION));
    fs::create_dir_all(place.parent().unwrap()).unwrap();
    let store = Store::open_dir(&place).unwrap();
    commit(&store, "img", b"a layer of version 1\n");
    let lease = store.lease().unwrap();
    let mut record = record(put_image(&lease, b"another layer of version 1\n"));
    record.kind = Some("commit".to_owned());
    record.labels.insert("env".to_owned(), "prod\n".to_owned());
    store.tag(&lease, &name("registry.example:5000/team/web:1.0"), record, Replace::Refused).unwrap();
    store.remember("diff-id", "sha256:example", b"a fact").unwrap();
    drop((lease, store));
    fs::remove_file(place.join("lock")).unwrap();
}
