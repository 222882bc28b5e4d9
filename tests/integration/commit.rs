//! What an image of a commit consists of: the base as it was, the layer, one more line of history, and every time the same.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::AT_FDCWD;
use nix::sys::stat::{UtimensatFlags, utimensat};
use nix::sys::time::TimeSpec;
use serde_json::{Value, json};
use snapfs::oci::{DiffId, Digest};

use crate::harness::engine::config_of;
use crate::harness::image::config_with;
use crate::harness::rootfs::{Item, absent, char_device, dir, facts, fifo, file, hardlink, sparse, symlink};
use crate::harness::world::{EPOCH, Setup, World};

const CREATED: &str = "2023-11-14T22:13:20Z";

/// The tars of a base image of two layers; the second says of `etc/base` what the containers of [`World`] have below.
fn base_tars() -> Vec<Vec<u8>> {
    let layer = |path: &str, content: &[u8]| {
        let mut builder = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_cksum();
        builder.append_data(&mut header, path, content).unwrap();
        builder.into_inner().unwrap()
    };
    vec![layer("bin/sh", &[7; 100_000]), layer("etc/base", b"from the base\n")]
}

fn diff_ids(tars: &[Vec<u8>]) -> Vec<String> {
    tars.iter().map(|tar| DiffId::of(tar).to_string()).collect()
}

#[test]
fn a_base_image_is_kept_as_it_was() {
    let Some(world) = World::with(Setup::fixed()) else { return };
    world.overlay("web");
    let tars = base_tars();
    let settings = json!({
        "Cmd": ["sh"], "Env": ["A=1"], "Healthcheck": { "Test": ["NONE"] }, "OnBuild": ["RUN x"],
        "ArgsEscaped": true, "Unknown": { "nested": [1, 2.5, null] },
    });
    let fields = [
        ("architecture", json!("riscv64")),
        ("variant", json!("v9")),
        ("os.features", json!(["x"])),
        ("config", settings),
        ("x-vendor", json!({ "deep": { "er": "\u{e9}" } })),
        ("docker_version", json!("26.1")),
        ("container", json!("0123")),
        ("container_config", json!({ "Cmd": ["secret of another"] })),
        ("created", json!("2001-01-01T00:00:00Z")),
        ("author", json!("somebody")),
        (
            "history",
            json!([{ "created_by": "ADD a", "x-unknown": 1 }, { "created_by": "ENV", "empty_layer": true }, { "created_by": "ADD b" }]),
        ),
    ];
    world.engine.set_base_image_with("web", "docker.io/library/base:1", config_with(&tars, &fields), tars.clone());
    world.commit("web", "img message=why author=operator").unwrap();
    let image = world.whole("img");

    let fields: BTreeMap<&str, Value> = fields.into();
    for (field, expected) in &fields {
        match *field {
            "container" | "container_config" => assert_eq!(image.config[field], Value::Null, "{field}"),
            "created" => assert_eq!(image.config[field], CREATED),
            "author" => assert_eq!(image.config[field], "operator"),
            "history" => assert_eq!(image.config[field].as_array().unwrap()[..3], expected.as_array().unwrap()[..]),
            _ => assert_eq!(image.config[field], *expected, "{field}"),
        }
    }
    let last = json!({
        "created": CREATED, "created_by": "snapfs commit of web (fake)", "author": "operator", "comment": "why",
    });
    assert_eq!(image.config["history"][3], last);
    // The layers below are the engine's own, byte for byte.
    assert_eq!(image.tars[..2], tars[..]);
    assert_eq!(image.tars.len(), 3);
    assert_eq!(image.annotation("org.opencontainers.image.base.name"), Some("docker.io/library/base:1"));
    let paths: BTreeSet<_> = image.paths(2).into_iter().map(|(path, _)| path).collect();
    assert_eq!(paths, ["./", "etc/", "etc/new"].map(str::to_owned).into());
    assert_eq!(image.file(2, "etc/new").unwrap(), b"of web\n");
}

#[test]
fn a_base_is_imported_once_and_shared() {
    for with_image in [true, false] {
        let Some(world) = World::new() else { return };
        world.overlay("web");
        if with_image {
            world.engine.set_base_image("web", "base", base_tars());
        }
        let log = |job: u32| world.read(&format!("jobs/{job}/log")).unwrap();
        world.commit("web", "one").unwrap();
        let (one, blobs) = (world.whole("one"), world.store.usage().unwrap().blobs);
        let base = one.tars.len() - 1;
        assert_eq!(base, if with_image { 2 } else { 1 });
        assert_eq!(blobs, base as u64 + 3);
        assert_eq!(log(1).lines().filter(|line| line.contains("base layer")).count(), base, "{}", log(1));

        world.make("web", &[file("more", "2")]);
        world.commit("web", "two base=image").unwrap();
        let two = world.whole("two");
        assert_eq!(
            one.manifest["layers"].as_array().unwrap()[..base],
            two.manifest["layers"].as_array().unwrap()[..base]
        );
        assert_eq!(world.store.usage().unwrap().blobs, blobs + 3, "a layer, a config and a manifest, and no base");
        assert_eq!(log(2), "", "nothing was imported");
        // Of another container of the same image, too, and in another encoding once more.
        world.overlay("db");
        if with_image {
            world.engine.set_base_image("db", "base", base_tars());
            world.commit("db", "three").unwrap();
            assert_eq!(log(3), "");
        }
        world.commit("web", "four compression=gzip").unwrap();
        let four = world.whole("four");
        assert_eq!(four.tars, two.tars);
        for layer in four.manifest["layers"].as_array().unwrap() {
            assert_eq!(layer["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip", "one encoding for all");
        }
        let count = world.store.usage().unwrap().blobs;
        world.commit("web", "five compression=gzip").unwrap();
        assert!(world.store.usage().unwrap().blobs <= count + 2);

        // What is remembered and not there any more is imported again.
        for image in world.images() {
            world.store.remove(&image.parse().unwrap()).unwrap();
        }
        world.store.gc().unwrap();
        world.commit("web", "six").unwrap();
        assert_eq!(world.whole("six").tars, two.tars);
        world.assert_store_clean("shared base");
    }
}

/// What lies below is looked at every time: a base that was changed is another one.
#[test]
fn a_lower_directory_that_changed_makes_another_base() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "one").unwrap();
    fs::write(world.engine.directory_of("web").join("lower/etc/base"), "patched in place").unwrap();
    world.commit("web", "two").unwrap();
    assert_eq!(world.whole("one").file(0, "etc/base").unwrap(), b"from the base\n");
    assert_eq!(world.whole("two").file(0, "etc/base").unwrap(), b"patched in place");
}

#[test]
fn a_plain_directory_is_one_layer() {
    let Some(world) = World::with(Setup::fixed()) else { return };
    world.plain("web");
    world.commit("web", "img").unwrap();
    let image = world.whole("img");
    assert_eq!(image.tars.len(), 1);
    assert_eq!(image.config["history"].as_array().unwrap().len(), 1);
    let paths: BTreeSet<_> = image.paths(0).into_iter().collect();
    assert_eq!(paths, [("./".to_owned(), '5'), ("new".to_owned(), '0')].into());
    assert_eq!(image.annotation("org.opencontainers.image.base.name"), None);
    assert_eq!((&image.config["os"], &image.config["created"]), (&json!("linux"), &json!(CREATED)));
    // Twice the same is one blob.
    world.commit("web", "other base=image").unwrap();
    assert_eq!(world.store.usage().unwrap().blobs, 3);
    assert_eq!(world.digest("img"), world.digest("other"));
}

#[test]
fn nothing_changed_is_no_layer() {
    let Some(world) = World::new() else { return };
    world.unchanged("web");
    let tars = base_tars();
    world.engine.set_base_image("web", "base", tars.clone());
    world.commit("web", "img").unwrap();
    let image = world.whole("img");
    assert_eq!(image.tars, tars);
    let history = image.config["history"].as_array().unwrap();
    assert_eq!(history.len(), 3);
    assert_eq!(history[2]["empty_layer"], json!(true));
    assert_eq!(image.config["rootfs"]["diff_ids"], json!(diff_ids(&tars)));
    // An image of nothing at all.
    world.engine.set_base_image_with("web", "scratch", config_of(&[]), Vec::new());
    world.commit("web", "none base=image").unwrap();
    assert_eq!(world.whole("none").tars.len(), 0);
}

#[test]
fn a_base_whose_bytes_are_not_what_its_engine_says_is_refused() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let tars = base_tars();
    let mut other = tars.clone();
    other[1][0] ^= 1;
    // The configuration is that of the right tars.
    world.engine.set_base_image("web", "base", tars.clone());
    let lying = world.engine.lie_about_base("web", other);
    let error = world.commit("web", "img").unwrap_err();
    assert!(error.message.contains("is damaged") && error.message.contains("pull the image anew"), "{error}");
    assert!(error.message.contains(&lying), "{error}");
    assert!(world.images().is_empty());
    world.assert_store_clean("a lying base");
}

/// A tree with everything that could be told in two ways.
fn items() -> Vec<Item> {
    let mut items = vec![
        absent("etc/base"),
        dir("d").mode(0o1777),
        file("d/z", "z").owner(1000, 1000),
        file("d/a", "a").xattr("user.b", "2").xattr("user.a", "1"),
        hardlink("d/link", "d/z"),
        symlink("d/s", "nowhere"),
        fifo("d/p"),
        char_device("d/c", 1, 3),
        sparse("sparse", 5 << 20, &[(1 << 20, b"x"), (3 << 20, b"y")]),
        file("big", (0..300_000u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>()),
    ];
    items.extend((0..60).rev().map(|number| file(format!("many/{number}"), number.to_string())));
    items
}

/// Name → digest of the commits of three containers, one of them running, in a new world.
fn digests(workers: usize, at_once: bool, line: &str) -> Option<BTreeMap<String, Digest>> {
    let world = World::with(Setup { workers, ..Setup::fixed() })?;
    for name in ["a", "b"] {
        world.overlay(name);
        world.engine.set_base_image(name, "base", base_tars());
        world.make(name, &items());
    }
    world.plain("c");
    world.make("c", &items()[1..]);
    world.run("b");
    let open: Vec<_> = ["a", "b", "c"]
        .map(|name| {
            let open = world.open(&format!("containers/{name}/commit")).unwrap();
            let answer = open.begin(&line.replace("img", name)).unwrap();
            match at_once {
                true => (open, Some(answer)),
                false => {
                    world.wait(answer).unwrap();
                    (open, None)
                }
            }
        })
        .into();
    for (_, answer) in open {
        answer.map(|answer| world.wait(answer).unwrap());
    }
    let names = world.images();
    Some(names.into_iter().map(|name| (name.clone(), world.digest(&name))).collect())
}

#[test]
fn the_same_input_has_the_same_digest() {
    for line in [
        "img",
        "img compression=gzip",
        "img compression=none",
        "img compression=zstd:chunked",
        "img compression=zstd:7 message=x label.a=b",
    ] {
        let Some(first) = digests(1, false, line) else { return };
        assert_eq!(first.len(), 3);
        for (workers, at_once) in [(1, false), (4, true)] {
            if !at_once && line != "img" {
                continue;
            }
            assert_eq!(digests(workers, at_once, line).unwrap(), first, "{line}, {workers} workers");
        }
    }
}

#[test]
fn chunked_layers_are_described_in_the_manifest() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.engine.set_base_image("web", "base", base_tars());
    let annotated = |image: &str| -> Vec<Option<Value>> {
        let whole = world.whole(image);
        assert_eq!(whole.tars[..2], base_tars()[..]);
        whole.manifest["layers"].as_array().unwrap().iter().map(|layer| layer.get("annotations").cloned()).collect()
    };
    world.commit("web", "plain").unwrap();
    assert_eq!(annotated("plain"), [None, None, None]);
    world.commit("web", "chunked compression=zstd:chunked").unwrap();
    let first = annotated("chunked");
    for annotations in &first {
        let keys: Vec<&String> = annotations.as_ref().unwrap().as_object().unwrap().keys().collect();
        let names = ["manifest-checksum", "manifest-position", "tarsplit-position"];
        assert_eq!(keys, names.map(|name| format!("io.github.containers.zstd-chunked.{name}")).each_ref());
    }
    // What is remembered of the base is its description too; and a layer that cannot be had so is told of.
    world.make("web", &[file(b"latin\xe9", "x")]);
    world.commit("web", "again compression=zstd:chunked base=image").unwrap();
    let again = annotated("again");
    assert_eq!((&again[..2], &again[2]), (&first[..2], &None));
    let log = world.read("jobs/3/log").unwrap();
    assert_eq!(log.trim_end(), "a layer is stored as plain zstd, since a name is not UTF-8");
}

/// `SOURCE_DATE_EPOCH` is later than what is older, and earlier than what is newer.
#[test]
fn a_fixed_clock_is_the_latest_time() {
    let Some(world) = World::with(Setup::fixed()) else { return };
    world.plain("web");
    world.make("web", &[file("old", "").mtime(1000, 5), file("now", ""), file("future", "").mtime(EPOCH + 1000, 1)]);
    world.commit("web", "img").unwrap();
    let tar = &world.whole("img").tars[0];
    let mut archive = tar::Archive::new(&tar[..]);
    let times: BTreeMap<_, _> = archive
        .entries()
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.path().unwrap().display().to_string(), entry.header().mtime().unwrap()))
        .collect();
    let epoch = EPOCH.unsigned_abs();
    assert_eq!((times["old"], times["now"], times["future"]), (1000, epoch, epoch));
    assert_eq!(fs::metadata(world.root_of("web").join("future")).unwrap().mtime(), EPOCH + 1000);
}

/// Everything that stat(2) says.
fn stat(path: &Path) -> [i64; 15] {
    let m = fs::symlink_metadata(path).unwrap();
    let numbers = [m.dev(), m.ino(), m.nlink(), m.rdev(), m.size(), m.blocks()].map(u64::cast_signed);
    let [device, ino, links, rdev, size, blocks] = numbers;
    let (mode, uid, gid) = (m.mode().into(), m.uid().into(), m.gid().into());
    let times = [m.atime(), m.atime_nsec(), m.mtime(), m.mtime_nsec(), m.ctime(), m.ctime_nsec()];
    let [atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns] = times;
    [device, ino, links, rdev, size, blocks, mode, uid, gid, atime, atime_ns, mtime, mtime_ns, ctime, ctime_ns]
}

fn walk(root: &Path, found: &mut Vec<PathBuf>) {
    found.push(root.to_owned());
    if fs::symlink_metadata(root).unwrap().is_dir() {
        let mut names: Vec<_> = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
        names.sort_by(|a, b| a.as_os_str().as_bytes().cmp(b.as_os_str().as_bytes()));
        names.iter().for_each(|path| walk(path, found));
    }
}

/// Not even the times of access, which any read and any listing moves forward where they lie before the last change.
#[test]
fn a_commit_leaves_the_container_as_it_was() {
    for overlay in [true, false] {
        let Some(world) = World::new() else { return };
        let _ = if overlay { world.overlay("web") } else { world.plain("web") };
        world.make("web", &items()[1..]);
        world.make("web", &[file("control", "is read by the test")]);
        world.run("web");
        let directory = world.engine.directory_of("web");
        let roots = ["lower", "upper", "merged"].map(|name| directory.join(name));
        let before_facts = roots.each_ref().map(|root| facts(root));
        let mut paths = Vec::new();
        roots.iter().for_each(|root| walk(root, &mut paths));
        let long_ago = TimeSpec::new(1_000_000, 1);
        // Through the mount it would be a change, and be copied up.
        for path in paths.iter().filter(|path| !path.starts_with(&roots[2])) {
            utimensat(AT_FDCWD, path, &long_ago, &TimeSpec::UTIME_OMIT, UtimensatFlags::NoFollowSymlink).unwrap();
        }
        let before: Vec<_> = paths.iter().map(|path| stat(path)).collect();
        let lines = ["img", "img", "img pause=none", "img pause=full compression=none"];
        for line in lines {
            world.commit("web", line).unwrap();
        }
        world.read("containers/web/changes").unwrap();
        for (path, before) in paths.iter().zip(&before) {
            assert_eq!(stat(path), *before, "{} is not as it was", path.display());
        }
        // The test can tell: a read of its own is noticed.
        let control = world.root_of("web").join("control");
        let (at, before) = paths.iter().zip(&before).find(|(path, _)| **path == control).unwrap();
        fs::read(&control).unwrap();
        assert_ne!(stat(at)[9], before[9], "this file system keeps no times of access: nothing was tested");
        let mut after = Vec::new();
        roots.iter().for_each(|root| walk(root, &mut after));
        assert!(after == paths, "files came or went");
        assert!(roots.each_ref().map(|root| facts(root)) == before_facts);
    }
}
