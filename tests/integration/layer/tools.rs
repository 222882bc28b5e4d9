//! What other programs make of a layer of many frames.

use std::fs;
use std::io::Write;
use std::path::Path;

use jiff::Timestamp;
use serde_json::json;
use snapfs::image::{Compression, Draft, History, Layer, Parent};
use snapfs::oci::Descriptor;
use snapfs::store::Lease;

use crate::harness::have;
use crate::harness::lab::{directory, run, text as path_text};
use crate::layer::{ALL, finish, seek, store, text, writer};

/// A layer with these files, of which `old` has been retracted again.
fn image(lease: &Lease, compression: Compression, files: &[(&str, Vec<u8>)], place: &Path) -> Descriptor {
    let mut layer = writer(lease, compression, 2);
    let mut retracted = Vec::new();
    for (name, content) in files {
        let mut header = ::tar::Header::new_ustar();
        header.set_path(name).unwrap();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_700_000_000);
        header.set_cksum();
        let from = layer.position();
        layer.begin_entry(content.len() as u64);
        let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
        layer.write_all(&[header.as_bytes(), &content[..], &padding].concat()).unwrap();
        if *name == "old" {
            retracted.push(from..layer.position());
        }
    }
    layer.retract(retracted, lease).unwrap();
    layer.write_all(&[0; 1024]).unwrap();
    publish(lease, &layer.finish().unwrap(), place)
}

/// An image with this one layer, as an image layout has it.
pub(crate) fn publish(lease: &Lease, layer: &Layer, place: &Path) -> Descriptor {
    let parent = Parent { name: None, config: json!({}), layers: Vec::new() };
    let created = Timestamp::from_second(1_700_000_000).unwrap();
    let history = History { created, created_by: "a test".to_owned(), author: None, comment: None };
    let draft = Draft { parent: &parent, layer: Some(layer), history, annotations: Default::default() };
    let manifest = draft.write(lease).unwrap();
    let index = json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": manifest.media_type, "digest": manifest.digest, "size": manifest.size,
        "annotations": { "org.opencontainers.image.ref.name": "x" },
    }]});
    fs::write(place.join("index.json"), index.to_string()).unwrap();
    fs::write(place.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    manifest
}

#[test]
fn skopeo_podman_and_umoci_read_it() {
    if !have("lab") {
        return;
    }
    let files = [("a", text(1, 300)), ("big", text(2, 5_000_000)), ("old", text(3, 80_000)), ("z", text(4, 70_000))];
    for compression in ALL {
        let (place, store) = store();
        let lease = store.lease().unwrap();
        let layout = place.path().join("store");
        image(&lease, compression, &files, &layout);
        let source = format!("oci:{}:x", layout.display());
        let work = directory();
        run(&["skopeo", "copy", "--quiet", &source, &format!("dir:{}", work.path().join("copy").display())]);
        // umoci knows no zstd.
        if matches!(compression, Compression::Gzip | Compression::None) {
            let bundle = work.path().join("bundle");
            run(&["umoci", "unpack", "--image", &format!("{}:x", layout.display()), path_text(&bundle)]);
            check(&bundle.join("rootfs"), &files);
        }
        let id = run(&["podman", "pull", "--quiet", &source]);
        let mounted = run(&["podman", "image", "mount", &id]);
        check(Path::new(&mounted), &files);
        run(&["podman", "image", "umount", &id]);
        run(&["podman", "rmi", "--force", &id]);
    }
}

fn check(root: &Path, files: &[(&str, Vec<u8>)]) {
    for (name, content) in files {
        let found = fs::read(root.join(name)).ok();
        assert!(found.as_ref() == Some(content).filter(|_| *name != "old"), "{name} in {}", root.display());
    }
}

#[test]
fn the_zstd_program_reads_it_as_one_stream() {
    if !have("lab") {
        return;
    }
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    let mut writer = writer(&lease, ALL[0], 2);
    let tar = text(9, 5_000_000);
    writer.write_all(&tar).unwrap();
    let made = finish(&store, writer);
    assert!(seek(&made.blob).len() > 4);
    let work = directory();
    let (packed, unpacked) = (work.path().join("tar.zst"), work.path().join("tar"));
    fs::write(&packed, &made.blob).unwrap();
    run(&["zstd", "-q", "-d", path_text(&packed), "-o", path_text(&unpacked)]);
    assert!(fs::read(unpacked).unwrap() == tar);
}
