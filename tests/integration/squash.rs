//! Several layers made one are, on what is below them, the tree that all of them made.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod commits;
mod memory;

use std::collections::BTreeSet;
use std::io::{Read, Write};

use proptest::prelude::*;
use snapfs::image::{Compression, Layer};
use snapfs::oci::DiffId;
use snapfs::progress::Progress;
use snapfs::squash::squash;
use snapfs::store::{Lease, Store};
use tempfile::TempDir;

use crate::harness::have;
use crate::harness::mount::in_lab;
use crate::harness::rootfs::{Facts, scratch};
use crate::layer::{seek, text};
use crate::roundtrip::random::{cases, history, images_of};
use crate::roundtrip::{Nasty, change_by, check, check_umoci, extract, layers_of, nasty};
use crate::view::images::{PACKINGS, Packing, put_layer};
use crate::view::tars::Tar;

struct Place {
    store: Store,
    lease: Lease,
    _directory: TempDir,
}

impl Place {
    fn new() -> Place {
        let directory = scratch();
        let store = Store::open_dir(&directory.path().join("store")).unwrap();
        let lease = store.lease().unwrap();
        Place { store, lease, _directory: directory }
    }

    fn layer(&self, tar: &[u8], packing: Packing) -> Layer {
        let descriptor = serde_json::from_value(put_layer(&self.lease, tar, packing)).unwrap();
        Layer { descriptor, diff_id: DiffId::of(tar) }
    }

    /// The tar that stands for `tars[below..]`; none if nothing is in it.
    fn squash(&self, tars: &[Vec<u8>], below: usize, packing: Packing) -> Result<Option<Vec<u8>>, String> {
        let compression = match packing {
            Packing::Own(compression) => compression,
            Packing::Gzip => Compression::Gzip,
            Packing::Zstd => Compression::default(),
        };
        let layers: Vec<Layer> = tars.iter().map(|tar| self.layer(tar, packing)).collect();
        let progress = Progress::new();
        let one = squash(&self.store, &self.lease, &layers, below, compression, &progress);
        let one = one.map_err(|error| snapfs::api::Error::from(snapfs::capture::Error::from(error)).message)?;
        Ok(one.map(|one| {
            assert_eq!(one.descriptor.media_type, compression.media_type());
            let tar = decode(compression, &self.blob(&one));
            assert_eq!(one.diff_id, DiffId::of(&tar));
            // The same layers give the same one.
            let again = squash(&self.store, &self.lease, &layers, below, compression, &progress).unwrap();
            assert_eq!(again, Some(one));
            tar
        }))
    }

    fn blob(&self, layer: &Layer) -> Vec<u8> {
        let mut blob = Vec::new();
        self.store.open_blob(&layer.descriptor.digest).unwrap().read_to_end(&mut blob).unwrap();
        assert_eq!(blob.len() as u64, layer.descriptor.size);
        blob
    }

    /// However many are merged, it is the same tree.
    fn check(&self, what: &str, tars: &[Vec<u8>], facts: &Facts, packing: Packing, umoci: bool) {
        for below in 0..tars.len() {
            let what = format!("{what}, merged above {below}, {packing:?}");
            let one = self.squash(tars, below, packing).unwrap();
            if below == 0 {
                assert_eq!(whiteouts(one.as_ref().unwrap()), [""; 0], "{what}");
            }
            let layers: Vec<Vec<u8>> = tars[..below].iter().cloned().chain(one).collect();
            check(&what, &layers, facts.clone(), true);
            if umoci {
                check_umoci(&what, &layers, facts.clone(), true);
            }
        }
    }
}

fn decode(compression: Compression, blob: &[u8]) -> Vec<u8> {
    match compression {
        Compression::None => blob.to_vec(),
        Compression::Gzip => {
            let mut tar = Vec::new();
            flate2::read::MultiGzDecoder::new(blob).read_to_end(&mut tar).unwrap();
            tar
        }
        Compression::Zstd { .. } | Compression::ZstdChunked => zstd::stream::decode_all(blob).unwrap(),
    }
}

fn paths(tar: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap();
    entries.map(|entry| entry.unwrap().path_bytes().escape_ascii().to_string()).collect()
}

fn whiteouts(tar: &[u8]) -> Vec<String> {
    paths(tar).into_iter().filter(|path| path.split('/').any(|name| name.starts_with(".wh."))).collect()
}

#[test]
fn nasty_trees_are_the_same_in_one_layer() {
    if !have("root") {
        return;
    }
    let place = Place::new();
    for (case, packing) in nasty().into_iter().zip(PACKINGS.into_iter().cycle()) {
        let Nasty { name, lower, change } = case;
        let (tars, facts) = layers_of(&lower, change_by(change), "");
        place.check(name, &tars, &facts, packing, false);
    }
}

fn random(history: &[Vec<crate::roundtrip::random::Op>; 3], packing: Packing, umoci: bool) {
    let place = Place::new();
    images_of(history, &|tars, facts| place.check("random", tars, &facts, packing, umoci));
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 60, ..cases(12) })]

    #[test]
    fn random_layers_are_the_same_in_one(history in history(), packing in prop::sample::select(PACKINGS.to_vec())) {
        if have("root") {
            random(&history, packing, false);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20, ..cases(4) })]

    #[test]
    fn random_layers_in_one_survive_umoci(history in history()) {
        if in_lab() {
            random(&history, Packing::Own(Compression::Gzip), true);
        }
    }
}

/// What only other programs write into layers.
#[test]
fn layers_of_other_programs_are_taken() {
    if !have("root") {
        return;
    }
    let long = "l/".to_owned() + &"n".repeat(150);
    let bottom = Tar::default()
        .entry(b'g', "pax_global_header", "", b"20 comment=whatever\n")
        .file("./d/kept", "kept")
        .dir("./d")
        .file("d/twice", "first")
        .file("d/twice", "second")
        .symlink("way", "d")
        .file("way/through", "through a link")
        .file("x/../y", "around")
        .file(&long, "long")
        .dir("hidden")
        .file("hidden/h", "h")
        .file("linked", "linked")
        .end();
    let top = Tar::default()
        .file("hidden/.wh..wh..opq", "")
        .file("hidden/new", "new")
        // A name for a file of the layer below, which goes there.
        .link("other", "linked")
        .link("d/again", "d/twice")
        .file(".wh.linked", "")
        .file("d/.wh.kept", "")
        .end();
    let packings =
        [Packing::Gzip, Packing::Zstd, Packing::Own(Compression::ZstdChunked), Packing::Own(Compression::None)];
    for packing in packings {
        let place = Place::new();
        let one = place.squash(&[bottom.clone(), top.clone()], 0, packing).unwrap().unwrap();
        let mut names = paths(&one);
        names.sort();
        let expected = ["d/", "d/again", "d/through", "d/twice", "hidden/new", &long, "other", "way", "y"];
        assert_eq!(names, expected, "{packing:?}");
        let root = scratch();
        extract(&one, root.path());
        for (path, content) in [
            ("d/twice", "second"),
            ("d/through", "through a link"),
            ("y", "around"),
            ("other", "linked"),
            (&long, "long"),
        ] {
            assert_eq!(std::fs::read_to_string(root.path().join(path)).unwrap(), content, "{packing:?} {path}");
        }
        // Above the lower layer, what it has must be hidden by name, and all names of a file are written if one is.
        let one = place.squash(&[bottom.clone(), top.clone()], 1, packing).unwrap().unwrap();
        let mut names = paths(&one);
        names.sort();
        let expected =
            [".wh.linked", "d/", "d/.wh.kept", "d/again", "d/twice", "hidden/", "hidden/.wh.h", "hidden/new", "other"];
        assert_eq!(names, expected, "{packing:?}");
    }
}

#[test]
fn a_layer_that_no_unpacker_takes_is_refused() {
    let place = Place::new();
    let good = Tar::default().file("a", "a").end();
    for (bad, says) in [
        (Tar::default().file("../a", "a").end(), "leads out of the layer"),
        (Tar::default().entry(b'S', "sparse", "", b"").end(), "sparse file"),
        (Tar::default().link("b", "nowhere").end(), "no file of the layers below"),
    ] {
        let error = place.squash(&[good.clone(), bad], 0, PACKINGS[0]).unwrap_err();
        assert!(error.contains("cannot be merged") && error.contains(says), "{error}");
    }
}

/// A frame of which nothing goes is the same bytes, and who reads frames by themselves can read it.
#[test]
fn frames_of_which_nothing_goes_are_copied() {
    let content = |path: usize, version: u64| text(path as u64 * 10 + version, 2_400_000);
    let mut tar = Tar::default();
    for n in 0..8 {
        tar = tar.file(&format!("f{n}"), content(n, 0));
    }
    let lower = tar.end();
    let upper = Tar::default().file("f3", content(3, 1)).file(".wh.f5", "").end();
    for compression in [Compression::default(), Compression::Gzip] {
        let place = Place::new();
        let packing = Packing::Own(compression);
        // Cut at files, as a snapshot is.
        let mut writer = snapfs::image::LayerWriter::new(place.lease.blob().unwrap(), compression).unwrap();
        for n in 0..8 {
            let (at, length) = (n * (512 + 2_400_256), 512 + 2_400_256);
            writer.begin_entry(2_400_000);
            writer.write_all(&lower[at..at + length]).unwrap();
        }
        writer.write_all(&lower[8 * (512 + 2_400_256)..]).unwrap();
        let below = writer.finish().unwrap();
        assert_eq!(below.diff_id, DiffId::of(&lower));
        let layers = [below.clone(), place.layer(&upper, packing)];
        let one = squash(&place.store, &place.lease, &layers, 0, compression, &Progress::new()).unwrap().unwrap();
        let (old, new) = (place.blob(&below), place.blob(&one));
        let tar = decode(compression, &new);
        assert_eq!(paths(&tar), ["f0", "f1", "f2", "f4", "f6", "f7", "f3"]);
        // Six files of three frames each; with the last of them the tar ends.
        let split = |blob: &[u8]| -> BTreeSet<Vec<u8>> {
            if compression == Compression::Gzip {
                let begins = |bytes: &[u8]| bytes == [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
                let mut ends: Vec<usize> = (0..blob.len() - 9).filter(|at| begins(&blob[*at..at + 10])).collect();
                ends.push(blob.len());
                return ends.windows(2).map(|ends| blob[ends[0]..ends[1]].to_vec()).collect();
            }
            let frames = seek(blob);
            assert!(frames.iter().flat_map(|(_, tar)| tar).eq(&decode(compression, blob)));
            frames.into_iter().map(|(packed, _)| packed.to_vec()).collect()
        };
        let shared = split(&old).intersection(&split(&new)).count();
        assert!(shared >= 16, "{compression:?}: {shared} frames are the same bytes");
    }
}
