//! `rootfs/` is the tree that the layers were made of, however they are packed; `layers/N/tree/` is the layer.
//!
//! That other programs unpack the same tree from these layers is `roundtrip`'s.

use std::fs;
use std::path::Path;

use proptest::test_runner::{Config, TestRunner};
use snapfs::store::Store;

use crate::harness::lab::{directory, run, text};
use crate::harness::mount::{Place, can_mount, in_lab};
use crate::harness::rootfs::{Facts, differences, facts};
use crate::roundtrip::random::{history, images_of};
use crate::roundtrip::{self, Nasty};
use crate::view::images::{PACKINGS, make};
use crate::view::tars::Tar;

fn compare(what: &str, mut expected: Facts, mut found: Facts) {
    // The root's time is nobody's: an engine makes it with the directory.
    for facts in [&mut expected, &mut found] {
        facts.get_mut("").unwrap().mtime = (0, 0);
    }
    let differences = differences(&expected, &found);
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}

#[test]
fn nasty_trees_are_shown_as_they_were() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut expected = Vec::new();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        for (case, packing) in roundtrip::nasty().into_iter().zip(PACKINGS.into_iter().cycle()) {
            let Nasty { name, lower, change } = case;
            let (layers, facts) = roundtrip::layers_of(&lower, roundtrip::change_by(change), "");
            let packings = if name == "attributes" || name == "sparse" { PACKINGS.to_vec() } else { vec![packing] };
            for (number, packing) in packings.into_iter().enumerate() {
                let image = format!("{}-{number}", name.replace(' ', "-"));
                make(&store, &image, &layers, packing);
                expected.push((image, facts.clone()));
            }
        }
    }
    let _daemon = place.serve();
    for (image, facts_of_container) in expected {
        let found = facts(&place.dir().join("images").join(&image).join("rootfs"));
        compare(&image, facts_of_container, found);
    }
}

#[test]
fn random_trees_are_shown_as_they_were() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut expected = Vec::new();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        let mut runner = TestRunner::new(Config { cases: 16, failure_persistence: None, ..Config::default() });
        let images = std::cell::RefCell::new(Vec::new());
        let histories = runner.run(&history(), |history| {
            images_of(&history, &|layers, facts| images.borrow_mut().push((layers.to_vec(), facts)));
            Ok(())
        });
        histories.unwrap();
        for (number, (layers, facts)) in images.into_inner().into_iter().enumerate() {
            let packing = PACKINGS[number % PACKINGS.len()];
            make(&store, &format!("random-{number}"), &layers, packing);
            expected.push((format!("random-{number}"), facts));
        }
    }
    let _daemon = place.serve();
    for (image, facts_of_container) in expected {
        let found = facts(&place.dir().join("images").join(&image).join("rootfs"));
        compare(&image, facts_of_container, found);
    }
}

#[test]
fn a_layer_is_shown_with_its_whiteouts() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        let lower =
            Tar::default().dir("etc").file("etc/kept", "1").file("etc/gone", "2").dir("d").file("d/x", "3").end();
        let upper =
            Tar::default().file("etc/.wh.gone", "").file("d/.wh..wh..opq", "").link("etc/more", "etc/kept").end();
        make(&store, "img", &[lower, upper], PACKINGS[0]);
    }
    let _daemon = place.serve();
    let names = |path: &str| place.list(&format!("images/img/{path}"));
    assert_eq!(names("layers/0/tree"), ["d", "etc"]);
    assert_eq!(names("layers/1/tree/etc"), [".wh.gone", "more"]);
    assert_eq!(names("layers/1/tree/d"), [".wh..wh..opq"]);
    assert_eq!(fs::read(place.dir().join("images/img/layers/1/tree/etc/.wh.gone")).unwrap(), b"");
    assert_eq!(names("rootfs"), ["d", "etc"]);
    assert_eq!((names("rootfs/d"), names("rootfs/etc")), (vec![], vec!["kept".to_owned(), "more".to_owned()]));
    // The link has its file's content and number.
    let rootfs = place.dir().join("images/img/rootfs/etc");
    let number = |name: &str| std::os::unix::fs::MetadataExt::ino(&fs::metadata(rootfs.join(name)).unwrap());
    assert_eq!((fs::read(rootfs.join("more")).unwrap(), number("more")), (b"1".to_vec(), number("kept")));
}

/// What `podman` shows of an image, read from where it mounts it.
#[test]
fn a_base_image_is_what_podman_shows() {
    if !in_lab() {
        return;
    }
    let (place, podman) = (Place::on_disk(), crate::harness::lab::Podman::take());
    let _ = &podman;
    let layout = directory();
    let images = run(&["podman", "images", "--format", "{{.Repository}}:{{.Tag}}"]);
    let base = images.lines().find(|line| line.contains("app")).expect("an image of the lab").to_owned();
    let archive = layout.path().join("base");
    run(&["podman", "save", "--quiet", "--format", "oci-dir", "--output", text(&archive), &base]);
    let mounted = run(&["podman", "image", "mount", &base]);
    let expected = facts(Path::new(mounted.trim()));
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        import(&store, &archive);
    }
    let _daemon = place.serve();
    let found = facts(&place.dir().join("images/base/rootfs"));
    run(&["podman", "image", "unmount", &base]);
    let strip = |facts: &Facts| {
        let mut facts = facts.clone();
        // podman keeps no attributes of an image's root.
        facts.remove("");
        // What is older than 1970 in an image podman unpacks as of 1970.
        facts.values_mut().for_each(|fact| fact.mtime = fact.mtime.max((0, 0)));
        facts
    };
    assert!(expected.len() > 5, "{base} is empty");
    let differences = differences(&strip(&expected), &strip(&found));
    assert!(differences.is_empty(), "{base}:\n{}", differences.join("\n"));
}

/// The image of an OCI image layout, as `base`.
fn import(store: &Store, layout: &Path) {
    use snapfs::store::{Record, Replace};
    let index: serde_json::Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let lease = store.lease().unwrap();
    for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap() {
        lease.put(&fs::read(blob.unwrap().path()).unwrap()).unwrap();
    }
    let manifest = serde_json::from_value(index["manifests"][0].clone()).unwrap();
    let record = Record::new(manifest, snapfs::sys::clock::Clock::system().now());
    store.tag(&lease, &crate::harness::image::name("base"), record, Replace::Allowed).unwrap();
}
