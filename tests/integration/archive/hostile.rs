//! Archives that are damaged, two-faced, endless, or not what they seem: each is refused, and leaves nothing.

use super::*;

/// What is wrong with it, and a word that its refusal has.
type Case = (&'static str, &'static str, Vec<u8>);

fn oci() -> Oci {
    Oci::new(Some("web:1"), &[layer(1, 3000), layer(2, 3000), layer(3, 3000)])
}

/// The archive after `change` to its parts.
fn changed(change: impl FnOnce(&mut Oci)) -> Vec<u8> {
    let mut oci = oci();
    change(&mut oci);
    oci.pack()
}

/// The archive after `change` to its entries.
fn edited(change: impl FnOnce(&mut Vec<(String, Vec<u8>)>)) -> Vec<u8> {
    let mut entries = oci().entries();
    change(&mut entries);
    pack(&entries)
}

/// The archive with this text for its manifest.
fn with_manifest(text: impl FnOnce(&Value) -> String) -> Vec<u8> {
    let mut oci = oci();
    let manifest = text(&oci.manifest).into_bytes();
    let entry = &mut oci.index["manifests"][0];
    entry["digest"] = json!(Digest::of(&manifest));
    entry["size"] = json!(manifest.len());
    let mut entries = oci.entries();
    entries.push((blob_path(&manifest), manifest));
    pack(&entries)
}

fn of_type(path: &str, kind: tar::EntryType, link: &str) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..path.len()].copy_from_slice(path.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_size(0);
    header.set_cksum();
    [&header.as_bytes()[..], &oci().pack()].concat()
}

fn layouts() -> Vec<Case> {
    let nested = |depth: usize| {
        let oci = oci();
        let mut entries: BTreeMap<_, _> = oci.entries().into_iter().collect();
        let mut entry = oci.index["manifests"][0].clone();
        for _ in 0..depth {
            let index = bytes(&json!({ "schemaVersion": 2, "mediaType": MEDIA_TYPE_INDEX, "manifests": [entry] }));
            entry = descriptor(MEDIA_TYPE_INDEX, &index);
            entries.insert(blob_path(&index), index);
        }
        entries.insert("index.json".to_owned(), bytes(&json!({ "schemaVersion": 2, "manifests": [entry] })));
        pack(&entries.into_iter().collect::<Vec<_>>())
    };
    let twice = |path: &str| {
        edited(|entries| {
            let copy = entries.iter().find(|(name, _)| name.starts_with(path)).unwrap().clone();
            entries.push(copy);
        })
    };
    vec![
        ("nothing", "incomplete", Vec::new()),
        ("an empty tar", "neither", vec![0; 1024]),
        ("no tar", "tar header", vec![b'x'; 5000]),
        ("no marker", "neither", edited(|entries| entries.retain(|(path, _)| path != "oci-layout"))),
        ("no index", "neither", edited(|entries| entries.retain(|(path, _)| path != "index.json"))),
        (
            "another version",
            "1.0.0",
            edited(|entries| entries.last_mut().unwrap().1 = br#"{"imageLayoutVersion":"2.0.0"}"#.to_vec()),
        ),
        (
            "a marker that is no JSON",
            "cannot be read",
            edited(|entries| entries.last_mut().unwrap().1 = b"1.0.0".to_vec()),
        ),
        ("no image", "no image", changed(|oci| oci.index["manifests"] = json!([]))),
        ("an index that is a manifest", "taken for", changed(|oci| oci.index["layers"] = json!([]))),
        ("an index of another type", "another", changed(|oci| oci.index["mediaType"] = json!(MEDIA_TYPE_MANIFEST))),
        ("keys in another case", "taken for another", changed(|oci| oci.index["Manifests"] = json!([]))),
        (
            "an index of five megabytes",
            "document",
            changed(|oci| oci.index["annotations"] = json!({ "x": "y".repeat(5 << 20) })),
        ),
        ("indexes without end", "deep", nested(9)),
        (
            "a digest that is a path",
            "digest",
            changed(|oci| oci.index["manifests"][0]["digest"] = json!("sha256:../../../etc/passwd")),
        ),
        (
            "another algorithm",
            "digest",
            changed(|oci| oci.index["manifests"][0]["digest"] = json!(format!("sha512:{}", "0".repeat(128)))),
        ),
        (
            "an image of docker's registry",
            "skopeo",
            changed(|oci| {
                oci.index["manifests"][0]["mediaType"] = json!("application/vnd.docker.distribution.manifest.v2+json")
            }),
        ),
        ("a name for two images", "one name", two(&oci(), &Oci::new(Some("web:1"), &[layer(9, 10)]))),
        ("a blob twice", "twice", twice("blobs/")),
        ("the index twice", "twice", twice("index.json")),
        ("a link to the host", "leads out", of_type("blobs/sha256/x", tar::EntryType::Symlink, "/etc/passwd")),
        ("a link", "is a link", of_type("index.json", tar::EntryType::Symlink, "oci-layout")),
        ("a link up", "leads out", of_type("a/layer.tar", tar::EntryType::Symlink, "../../x")),
        ("a hard link", "neither a file", of_type("x", tar::EntryType::Link, "oci-layout")),
        ("a device", "neither a file", of_type("x", tar::EntryType::Char, "")),
        ("a path up", "leads out", of_type("../x", tar::EntryType::Regular, "")),
        ("an absolute path", "leads out", of_type("/etc/cron.d/x", tar::EntryType::Regular, "")),
        (
            "something large that nobody needs",
            "no image needs",
            edited(|entries| entries.push(("x".to_owned(), vec![0; 17 << 20]))),
        ),
        ("something after its end", "follows its end", [oci().pack(), b"more".to_vec()].concat()),
        (
            "a compressed stream with something after it",
            "cannot be read",
            [gzip(&oci().pack()), b"more and more and more".to_vec()].concat(),
        ),
    ]
}

fn images() -> Vec<Case> {
    let without = |at: usize| {
        edited(|entries| {
            let path =
                [blob_path(&bytes(&oci().manifest)), blob_path(&bytes(&oci().config)), blob_path(&oci().layers[1].1)];
            entries.retain(|(name, _)| *name != path[at]);
        })
    };
    let flipped = |at: usize| {
        edited(|entries| {
            let path = blob_path(&oci().layers[at].1);
            let (_, bytes) = entries.iter_mut().find(|(name, _)| *name == path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
        })
    };
    // All documents anew, so that only the change itself is wrong.
    let rebuilt = |change: fn(&mut Oci)| {
        changed(|oci| {
            change(oci);
            oci.describe();
            oci.index(Some("web:1"));
        })
    };
    let pointed = |change: fn(&mut Value)| {
        changed(|oci| {
            change(&mut oci.manifest);
            oci.index(Some("web:1"));
        })
    };
    vec![
        ("without its manifest", "no blob", without(0)),
        ("without its config", "no blob", without(1)),
        ("without a layer", "missing", without(2)),
        ("a bit of a plain layer flipped", "has the digest", flipped(0)),
        ("a bit of a gzip layer flipped", "has the digest", flipped(1)),
        ("a bit of a zstd layer flipped", "has the digest", flipped(2)),
        (
            "diff ids swapped",
            "its config says",
            rebuilt(|oci| oci.config["rootfs"]["diff_ids"].as_array_mut().unwrap().swap(0, 1)),
        ),
        (
            "a diff id too few",
            "diff_ids",
            rebuilt(|oci| drop(oci.config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop())),
        ),
        (
            "a layer of another type",
            "by its manifest",
            rebuilt(|oci| oci.layers[1].0 = MEDIA_TYPE_LAYER_ZSTD.to_owned()),
        ),
        ("a layer of no type", "of the type", rebuilt(|oci| oci.layers[1].0 = "text/plain".to_owned())),
        ("a layer cut short", "cannot be decompressed", rebuilt(|oci| oci.layers[1].1.truncate(100))),
        ("a layer with something after it", "cannot be decompressed", rebuilt(|oci| oci.layers[2].1.extend(b"more"))),
        ("a layer longer than it says", "length", pointed(|manifest| manifest["layers"][0]["size"] = json!(1))),
        ("a config longer than it says", "instead of", pointed(|manifest| manifest["config"]["size"] = json!(1))),
        (
            "an artifact",
            "artifact",
            pointed(|manifest| manifest["config"]["mediaType"] = json!("application/vnd.example.thing")),
        ),
        ("a manifest that is an index", "both", pointed(|manifest| manifest["manifests"] = json!([]))),
        ("layers twice", "twice", with_manifest(|manifest| manifest.to_string().replacen('{', r#"{"layers":[],"#, 1))),
        (
            "layers in two cases",
            "taken for another",
            with_manifest(|manifest| manifest.to_string().replacen('{', r#"{"Layers":[],"#, 1)),
        ),
        ("a manifest with something after it", "trailing", with_manifest(|manifest| format!("{manifest} {{}}"))),
        ("a config with a key twice", "twice", {
            let mut oci = oci();
            let config =
                oci.config.to_string().replacen('{', r#"{"rootfs":{"type":"layers","diff_ids":[]},"#, 1).into_bytes();
            oci.manifest["config"] = descriptor(MEDIA_TYPE_CONFIG, &config);
            oci.index(Some("web:1"));
            let mut entries = oci.entries();
            entries.push((blob_path(&config), config));
            pack(&entries)
        }),
    ]
}

fn of_docker() -> Vec<Case> {
    let entries = || docker(&["web:1"], &[layer(1, 100), layer(2, 100)]);
    let changed = |change: fn(&mut Vec<(String, Vec<u8>)>)| {
        let mut entries = entries();
        change(&mut entries);
        pack(&entries)
    };
    let list = |change: fn(&mut Value)| {
        let mut entries = entries();
        let (_, text) = entries.iter_mut().find(|(path, _)| path == "manifest.json").unwrap();
        let mut value = serde_json::from_slice(text).unwrap();
        change(&mut value);
        *text = bytes(&value);
        pack(&entries)
    };
    let both = |docker: Value| edited(|entries| entries.push(("manifest.json".to_owned(), bytes(&docker))));
    let oci = oci();
    let layers: Vec<String> = oci.layers.iter().map(|(_, layer)| blob_path(layer)).collect();
    vec![
        ("docker without a list", "neither", changed(|entries| entries.retain(|(path, _)| path != "manifest.json"))),
        (
            "docker without a layer",
            "missing",
            changed(|entries| entries.retain(|(path, _)| !path.ends_with("1/layer.tar"))),
        ),
        ("docker without a config", "missing", changed(|entries| drop(entries.remove(0)))),
        ("a config by another's name", "has the digest", changed(|entries| entries[0].1.push(b' '))),
        (
            "layers in another order",
            "its config says",
            list(|list| list[0]["Layers"].as_array_mut().unwrap().reverse()),
        ),
        ("a list that is none", "no list", list(|list| *list = json!({}))),
        ("a config that is no text", "no config", list(|list| list[0]["Config"] = json!(1))),
        ("layers that are no texts", "list of texts", list(|list| list[0]["Layers"] = json!([1]))),
        ("a layer up", "missing", list(|list| list[0]["Layers"][0] = json!("../../etc/passwd"))),
        ("an empty list", "no image", list(|list| *list = json!([]))),
        (
            "two lists that differ in a layer",
            "different images",
            both(json!([{
                "Config": blob_path(&bytes(&oci.config)), "RepoTags": ["web:1"], "Layers": [layers[0], layers[1]],
            }])),
        ),
        (
            "two lists that differ in their config",
            "different images",
            both(json!([{
                "Config": blob_path(&bytes(&oci.manifest)), "RepoTags": ["web:1"], "Layers": layers,
            }])),
        ),
    ]
}

#[test]
fn each_is_refused_with_a_reason_and_leaves_nothing() {
    let place = Place::new();
    for (what, word, archive) in [layouts(), images(), of_docker()].concat() {
        match place.import(&archive) {
            Ok(imported) => panic!("{what} was taken: {imported:?}"),
            Err(error) => assert!(error.to_string().contains(word), "{what}: {error}"),
        }
        place.assert_empty(what);
    }
    place.take(&oci().pack());
}

#[test]
fn an_archive_cut_short_anywhere_is_incomplete() {
    let place = Place::new();
    let archive = Oci::new(Some("web:1"), &[layer(1, 700), layer(2, 700)]).pack();
    // The last block of zeros and half of the one before it are the writer's padding.
    let end = archive.len() - 1;
    for cut in (0..end).step_by(97).chain([end]) {
        let error = place.import(&archive[..cut]).unwrap_err();
        assert!(matches!(error, Error::Truncated), "cut at {cut}: {error}");
    }
    place.assert_empty("archives cut short");
    for packed in [gzip(&archive), zstd(&archive)] {
        for cut in (0..packed.len() - 1).step_by(301) {
            assert!(place.import(&packed[..cut]).is_err(), "cut at {cut}");
        }
    }
    place.assert_empty("compressed archives cut short");
}

#[test]
fn a_cancelled_import_leaves_nothing() {
    let place = Place::new();
    let archive = oci().pack();
    let progress = Progress::new();
    progress.cancel();
    let now = Clock::fixed(0).unwrap().now();
    let error = import(&place.store, now, &archive[..], || panic!("not complete"), &progress).unwrap_err();
    assert!(matches!(error, Error::Cancelled(_)));
    place.assert_empty("a cancelled import");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    /// Bytes changed at random: the image comes in as it was, or not at all.
    #[test]
    fn a_changed_archive_is_the_same_image_or_none(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)) {
        let place = Place::new();
        let oci = Oci::new(Some("web:1"), &[layer(1, 700), layer(2, 700)]);
        let mut archive = oci.pack();
        for (at, byte) in changes {
            let at = at.index(archive.len());
            archive[at] = byte;
        }
        match place.import(&archive) {
            // A name may have changed, or a field of a header that nobody reads.
            Ok(imported) => prop_assert!(imported.iter().all(|imported| imported.manifest == oci.digest())),
            Err(_) => place.assert_empty("a changed archive"),
        }
    }
}
