//! What the tree shows, file by file, as docs/interface.md and the tables of `snapfs::tree` promise it.

mod model;
mod names;

use std::collections::BTreeMap;

use serde_json::{Value, json};
use snapfs::oci::{DiffId, Digest};
use snapfs::tree::{ContainerFile, ErrorKind, ImageFile, JobFile, Kind, LayerFile, Lifetime, RootFile};

use crate::harness::cgroup::wait_for;
use crate::harness::image::config_with;
use crate::harness::rootfs::{absent, char_device, file};
use crate::harness::world::{EPOCH, LIMIT, Setup, World};

const CREATED: &str = "2023-11-14T22:13:20Z";

/// A world with a running container of an image, committed as `registry.example/team/web:1`.
fn world() -> Option<World> {
    let world = World::with(Setup::fixed())?;
    world.overlay("web");
    world.run("web");
    // Empty, and different from each other by what comes behind their end.
    let tars = [b"bottom", b"middle"].map(|word| [&[0; 1024], &word[..]].concat()).to_vec();
    let history = json!([{ "created_by": "ADD bottom" }, { "created_by": "ENV", "empty_layer": true }]);
    let config = config_with(&tars, &[("history", history)]);
    world.engine.set_base_image_with("web", "docker.io/library/base:1", config, tars);
    let line = "registry.example/team/web:1 message=why annotation.org.example/path%2Fto=x 'annotation.a=two words'";
    world.commit("web", line).unwrap();
    Some(world)
}

const WEB: &str = "images/registry.example/team/web:1";

fn names(table: impl Iterator<Item = &'static str>, besides: &[&'static str]) -> Vec<String> {
    let mut names: Vec<String> = table.chain(besides.iter().copied()).map(str::to_owned).collect();
    names.sort();
    names
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

#[test]
fn directories_list_their_tables_and_every_file_can_be_read() {
    let Some(world) = world() else { return };
    let root = names(
        RootFile::TABLE.iter().map(|row| row.1).filter(|name| *name != "events"),
        &["containers", "images", "jobs", "query"],
    );
    let container = names(ContainerFile::TABLE.iter().map(|row| row.1), &["labels", "rootfs"]);
    let besides = ["annotations", "blobs", "labels", "layers", "rootfs"];
    let image = names(ImageFile::TABLE.iter().map(|row| row.1), &besides);
    let layer = names(LayerFile::TABLE.iter().map(|row| row.1), &["blob", "tree"]);
    let job = names(JobFile::TABLE.iter().map(|row| row.1), &[]);
    let directories =
        [("", root), ("containers/web", container), (WEB, image), (&format!("{WEB}/layers/2"), layer), ("jobs/1", job)];
    for (directory, expected) in directories {
        assert_eq!(sorted(world.list(directory).unwrap()), expected, "{directory}");
        for name in expected {
            let path = format!("{directory}/{name}");
            let attr = world.attr(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            if attr.kind != Kind::File {
                continue;
            }
            let bytes = world.bytes(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            // What is made when it is read has no size before; a control file has none at all.
            if attr.size != 0 {
                assert_eq!(attr.size, bytes.len() as u64, "{path}");
            }
        }
    }
}

#[test]
fn the_top_says_what_this_is() {
    let Some(world) = world() else { return };
    assert_eq!(world.read("README").unwrap(), snapfs::tree::README);
    assert_eq!(world.line("version"), env!("CARGO_PKG_VERSION"));
    let health = world.read("health").unwrap();
    let mut words: BTreeMap<&str, &str> = health.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let pid = std::process::id().to_string();
    let expected = [
        ("pid", &*pid),
        ("engine", "fake ok"),
        ("store", "ok"),
        ("store_images", "1"),
        ("jobs_queued", "0"),
        ("jobs_running", "0"),
    ];
    // What these are is `housekeeping`'s.
    for size in ["store_blobs", "store_bytes", "store_shared_bytes", "store_garbage_bytes"] {
        words.remove(size).unwrap().parse::<u64>().unwrap();
    }
    assert_eq!(words, expected.into());
    assert_eq!(world.link("jobs/last").unwrap(), "1");
}

#[test]
fn a_container_is_its_facts() {
    let Some(world) = world() else { return };
    let pid = world.group("web", |group| std::fs::read_to_string(group.path.join("cgroup.procs")).unwrap());
    let facts = [
        ("id", "web-id"),
        ("name", "web"),
        ("engine", "fake"),
        ("runtime", ""),
        ("status", "running"),
        ("pid", pid.lines().next().unwrap()),
        ("image", "docker.io/library/base:1"),
        ("created", "2001-02-03T04:05:06Z"),
        ("labels/org.example.role", "test"),
    ];
    for (name, expected) in facts {
        assert_eq!(world.line(&format!("containers/web/{name}")), expected, "{name}");
    }
    let spec = std::fs::read(world.engine.directory_of("web").join("config.json")).unwrap();
    assert_eq!(world.bytes("containers/web/spec.json").unwrap(), spec);
    let merged = world.engine.directory_of("web").join("merged");
    assert_eq!(world.link("containers/web/rootfs").unwrap(), merged.to_str().unwrap());
    world.change(|engine| engine.stop("web"));
    assert_eq!((world.line("containers/web/status"), world.line("containers/web/pid")), ("stopped".into(), "0".into()));
}

#[test]
fn a_container_is_found_by_its_names() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.overlay("db");
    world.change(|engine| engine.change("db", |db| db.name = "d/b@1".to_owned()));
    assert_eq!(world.list("containers").unwrap(), ["web", "d%2Fb%401"]);
    for name in ["web", "web-id", "web-i", "w", "web@fake"] {
        assert_eq!(world.line(&format!("containers/{name}/id")), "web-id", "{name}");
    }
    assert_eq!(world.line("containers/d%2Fb%401/name"), "d/b@1");
    // Commands name it as it is listed.
    world.commit("d%2Fb%401", "img").unwrap();
    assert_eq!(world.line("jobs/1/command"), "containers/d%2Fb%401/commit img");
    world.overlay("web2");
    for name in ["we", "", "x", "%77eb"] {
        assert_eq!(world.ino(&format!("containers/{name}/id")).unwrap_err().kind, ErrorKind::NotFound, "{name}");
    }
    // One that has no spec yet can be looked at, and says so when it is read.
    world.change(|engine| engine.change("web", |web| web.spec = None));
    assert_eq!(world.attr("containers/web/spec.json").unwrap().size, 0);
    let error = world.read("containers/web/spec.json").unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoAttribute, "{error}");
}

#[test]
fn changes_are_lines() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.make("web", &[file("etc/base", "changed"), file("a b", ""), file("gone", ""), char_device("dev/null", 1, 3)]);
    world.make("web", &[absent("gone")]);
    let expected = "C /\nA /a b\nA /dev\nA /dev/null\nC /etc\nC /etc/base\nA /etc/new\n";
    assert_eq!(world.read("containers/web/changes").unwrap(), expected);
    world.make("web", &[absent("etc/base")]);
    assert!(world.read("containers/web/changes").unwrap().contains("D /etc/base\n"));
    world.plain("bare");
    assert_eq!(world.read("containers/bare/changes").unwrap(), "A /\nA /new\n");
    // Two readers, and one that comes back to the beginning, each see one text.
    let (one, two) = (world.open_read("containers/web/changes"), world.open_read("containers/web/changes"));
    let text = one.text();
    wait_for("the second is scanned", LIMIT, || world.tree.poll(two.fh).unwrap().read);
    world.make("web", &[file("later", "")]);
    assert_eq!(two.text(), text);
    one.seek(0);
    assert_eq!(one.text(), text);
    assert!(world.read("containers/web/changes").unwrap().contains("A /later\n"));
}

#[test]
fn an_image_tells_what_it_is() {
    let Some(world) = world() else { return };
    let whole = world.whole("registry.example/team/web:1");
    let digest = world.digest("registry.example/team/web:1");
    let sizes: u64 =
        whole.blobs.iter().map(|blob| world.store.open_blob(blob).unwrap().metadata().unwrap().len()).sum();
    let facts = [
        ("digest", digest.to_string()),
        ("size", sizes.to_string()),
        ("created", CREATED.to_owned()),
        ("parent", "docker.io/library/base:1".to_owned()),
        ("kind", "commit".to_owned()),
        ("annotations/org.example%2Fpath%252Fto", "x".to_owned()),
        ("annotations/a", "two words".to_owned()),
        ("annotations/io.snapfs.container.name", "web".to_owned()),
        ("layers/0/created_by", "base layer".to_owned()),
        ("layers/1/created_by", "ADD bottom".to_owned()),
        ("layers/2/created_by", "snapfs commit of web (fake)".to_owned()),
        ("layers/2/media_type", "application/vnd.oci.image.layer.v1.tar+zstd".to_owned()),
    ];
    for (name, expected) in facts {
        assert_eq!(world.line(&format!("{WEB}/{name}")), expected, "{name}");
    }
    assert_eq!(world.list(&format!("{WEB}/layers")).unwrap(), ["0", "1", "2"]);
    let annotations = world.list(&format!("{WEB}/annotations")).unwrap();
    assert_eq!(annotations.len(), whole.manifest["annotations"].as_object().unwrap().len());
    assert_eq!(world.read(&format!("{WEB}/tag")).unwrap(), "");
    assert_eq!(world.read(&format!("{WEB}/last_error")).unwrap(), "");
    for absent in ["layers/3", "layers/00", "annotations/b", "blobs/md5", "blobs/sha256/00", "README"] {
        assert_eq!(world.ino(&format!("{WEB}/{absent}")).unwrap_err().kind, ErrorKind::NotFound, "{absent}");
    }
}

/// Nothing but the image directory is used here, as by a program that knows the image specification only.
#[test]
fn an_image_is_a_layout_by_digest() {
    let Some(world) = world() else { return };
    world.echo("plain", &format!("{WEB}/tag")).unwrap();
    for (image, tag) in [(WEB, "1"), ("images/plain", "latest"), ("images/registry.example/team/web%3A1", "1")] {
        let document = |path: &str| -> Value { serde_json::from_slice(&world.bytes(path).unwrap()).unwrap() };
        assert_eq!(document(&format!("{image}/oci-layout")), json!({ "imageLayoutVersion": "1.0.0" }));
        let index = document(&format!("{image}/index.json"));
        assert_eq!(index["schemaVersion"], 2);
        assert_eq!(index["mediaType"], "application/vnd.oci.image.index.v1+json");
        let [manifest] = &index["manifests"].as_array().unwrap()[..] else { panic!("{index}") };
        assert_eq!(manifest["annotations"], json!({ "org.opencontainers.image.ref.name": tag }));

        let mut used = Vec::new();
        let mut blob = |descriptor: &Value| {
            let hex = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap().to_owned();
            let path = format!("{image}/blobs/sha256/{hex}");
            let bytes = world.bytes(&path).unwrap();
            assert_eq!(Digest::of(&bytes).hex(), hex);
            assert_eq!(json!(bytes.len()), descriptor["size"], "{path}");
            assert_eq!(world.attr(&path).unwrap().size, bytes.len() as u64);
            used.push(hex);
            bytes
        };
        let manifest_bytes = blob(manifest);
        assert_eq!(manifest_bytes, world.bytes(&format!("{image}/manifest.json")).unwrap());
        let manifest: Value = serde_json::from_slice(&manifest_bytes).unwrap();
        let config_bytes = blob(&manifest["config"]);
        assert_eq!(config_bytes, world.bytes(&format!("{image}/config.json")).unwrap());
        let config: Value = serde_json::from_slice(&config_bytes).unwrap();
        for (at, layer) in manifest["layers"].as_array().unwrap().iter().enumerate() {
            let tar = zstd::stream::decode_all(&blob(layer)[..]).unwrap();
            let diff_id = DiffId::of(&tar).to_string();
            assert_eq!(config["rootfs"]["diff_ids"][at], json!(diff_id));
            let line = |name: &str| world.line(&format!("{image}/layers/{at}/{name}"));
            assert_eq!((line("diff_id"), json!(line("digest"))), (diff_id, layer["digest"].clone()));
            assert_eq!(line("size"), layer["size"].to_string());
            // The link leads, within the image, to the blob.
            let link = world.link(&format!("{image}/layers/{at}/blob")).unwrap();
            let hex = link.strip_prefix("../../blobs/sha256/").unwrap();
            assert_eq!(layer["digest"], format!("sha256:{hex}"));
        }
        used.sort();
        assert_eq!(world.list(&format!("{image}/blobs/sha256")).unwrap(), used, "these, and no others");
    }
}

#[test]
fn owners_modes_times_and_lifetimes() {
    let Some(world) = world() else { return };
    let rows = [
        ("", Kind::Directory, 0o755, Lifetime::Volatile),
        ("README", Kind::File, 0o444, Lifetime::Volatile),
        ("health", Kind::File, 0o444, Lifetime::Volatile),
        ("containers", Kind::Directory, 0o750, Lifetime::Volatile),
        ("containers/web/status", Kind::File, 0o440, Lifetime::Volatile),
        ("containers/web/commit", Kind::File, 0o660, Lifetime::Volatile),
        ("containers/web/rootfs", Kind::Symlink, 0o777, Lifetime::Volatile),
        ("images", Kind::Directory, 0o770, Lifetime::Volatile),
        ("images/registry.example/team", Kind::Directory, 0o770, Lifetime::Volatile),
        (WEB, Kind::Directory, 0o770, Lifetime::Volatile),
        (&format!("{WEB}/tag"), Kind::File, 0o660, Lifetime::Volatile),
        (&format!("{WEB}/last_error"), Kind::File, 0o440, Lifetime::Volatile),
        (&format!("{WEB}/manifest.json"), Kind::File, 0o440, Lifetime::Immutable),
        (&format!("{WEB}/layers"), Kind::Directory, 0o750, Lifetime::Immutable),
        (&format!("{WEB}/layers/0/blob"), Kind::Symlink, 0o777, Lifetime::Immutable),
        ("jobs", Kind::Directory, 0o750, Lifetime::Volatile),
        ("jobs/last", Kind::Symlink, 0o777, Lifetime::Volatile),
        ("jobs/1/cancel", Kind::File, 0o660, Lifetime::Volatile),
        ("jobs/1/wait", Kind::File, 0o440, Lifetime::Volatile),
    ];
    let epoch = std::time::UNIX_EPOCH + std::time::Duration::from_secs(EPOCH.unsigned_abs());
    for (path, kind, mode, lifetime) in rows {
        let attr = world.attr(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        assert_eq!((attr.kind, attr.mode, attr.lifetime), (kind, mode, lifetime), "{path}: {:o}", attr.mode);
        assert_eq!((attr.uid, attr.gid, attr.time), (0, 0, epoch), "{path}");
        assert_eq!(attr.nlink, if kind == Kind::Directory { 2 } else { 1 }, "{path}");
    }
}

/// `find /snap -ls; grep -r x /snap`: it ends, and leaves all as it was.
#[test]
fn to_read_everything_changes_nothing() {
    let Some(world) = world() else { return };
    let state = || {
        let containers: Vec<_> = world.engine.log().into_iter().filter(|question| question != "list").collect();
        (world.store.names(), world.store.usage().unwrap(), world.list("jobs").unwrap(), containers.len())
    };
    let (names, usage, jobs, _) = state();
    let mut waiting = vec![String::new()];
    let mut seen = 0;
    while let Some(directory) = waiting.pop() {
        for name in world.list(&directory).unwrap() {
            let path = format!("{directory}/{name}");
            seen += 1;
            match world.attr(&path).unwrap().kind {
                Kind::Directory => waiting.push(path),
                Kind::Symlink => drop(world.link(&path).unwrap()),
                Kind::File => drop(world.bytes(&path).unwrap()),
                Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {}
            }
        }
    }
    assert!(seen > 80, "only {seen} entries");
    let (names_after, usage_after, jobs_after, _) = state();
    assert_eq!((names, usage, jobs), (names_after, usage_after, jobs_after));
    world.assert_thawed("web", "after reading everything");
    assert_eq!(world.last_error("web"), "");
}
