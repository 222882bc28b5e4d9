//! What came from elsewhere starts nothing, until root says so.

use std::fs;

use nix::errno::Errno;
use serde_json::Value;

use super::{check_nothing_left, checkpoint, commit, left, refused, restored, written};
use crate::checkpoint::counter::check_runs;
use crate::harness::lab::{attempt, run, text};
use crate::harness::mount::{Place, in_lab};

/// Take an image out of the store, and bring it back as if it came from elsewhere.
fn from_elsewhere(place: &Place, image: &str) {
    let archive = place.other("archive.tar");
    let directory = place.dir().join("images").join(image);
    run(&["cp", text(&directory.join("oci.tar")), text(&archive)]);
    fs::remove_dir(directory).unwrap();
    let script = format!("{{ echo as={image}; cat {}; }} > {}", text(&archive), text(&place.dir().join("import")));
    run(&["sh", "-c", &script]);
}

/// No program of an engine's was run.
fn check_nothing_ran(place: &Place) {
    assert_eq!(left(place), [""; 0]);
    assert_eq!(fs::read_dir(place.other("runc")).unwrap().count(), 0);
}

#[test]
fn an_image_from_elsewhere_starts_nothing_until_root_trusts_it() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let _daemon = place.serve();
    let counted = checkpoint(&place, "runc", 0);
    // One more name of an image that was made here is as good as the first.
    written(&place, "images/ck1", "tag", "ck2");
    fs::remove_dir(place.dir().join("images/ck1")).unwrap();
    drop(restored(&place, "runc", "ck2", "a"));
    check_nothing_left(&place);
    fs::rename(place.dir().join("images/ck2"), place.dir().join("images/ck1")).unwrap();

    let base = place.other("base.tar");
    run(&[
        "skopeo",
        "copy",
        "--quiet",
        &format!("oci:{}", text(&place.dir().join("images/ck1/base"))),
        &format!("oci-archive:{}:b", text(&base)),
    ]);
    from_elsewhere(&place, "ck1");
    run(&["runc", "--root", text(&place.other("runc")), "delete", "--force", "counter"]);
    for line in ["a", "a engine=runc", "a engine=crun"] {
        let (errno, why) = refused(&place, "ck1", line);
        assert_eq!(errno, Errno::EPERM, "{why}");
        let remedy = "cat images/ck1/digest > images/ck1/labels/io.snapfs.trust";
        assert!(why.contains("not made by this daemon") && why.contains(remedy), "{why}");
    }
    check_nothing_ran(&place);
    // A word is not enough: the label names one image by its digest.
    let label = "images/ck1/labels/io.snapfs.trust";
    fs::write(place.dir().join(label), "yes\n").unwrap();
    assert_eq!(refused(&place, "ck1", "a").0, Errno::EPERM);
    fs::write(place.dir().join(label), fs::read(place.dir().join("images/ck1/digest")).unwrap()).unwrap();

    // What it stands on was not in its archive.
    let (errno, why) = refused(&place, "ck1", "a");
    assert_eq!(errno, Errno::ENOENT, "{why}");
    assert!(why.contains("stands on the image"), "{why}");
    check_nothing_ran(&place);
    run(&["sh", "-c", &format!("{{ echo as=base; cat {}; }} > {}", text(&base), text(&place.dir().join("import")))]);
    let copy = restored(&place, "runc", "ck1", "a");
    check_runs(copy.pid(), &copy.root(), counted);
    let spec: Value = serde_json::from_slice(&fs::read(copy.directory().join("config.json")).unwrap()).unwrap();
    assert_eq!((spec.get("annotations"), spec.get("hooks"), spec["linux"].get("seccomp")), (None, None, None));
    drop(copy);
    check_nothing_left(&place);
}

#[test]
fn a_commit_from_elsewhere_starts_nothing_either_and_the_label_is_root_s() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let _daemon = place.serve_with(&["-v", "-o", "gid=4711"]);
    commit(&place);
    from_elsewhere(&place, "img:1");
    assert_eq!(refused(&place, "img:1", "a no-start").0, Errno::EPERM);
    let label = place.dir().join("images/img:1/labels/io.snapfs.trust");
    let script = format!("cat {0}/digest > {1}", text(&place.dir().join("images/img:1")), text(&label));
    let other = ["setpriv", "--reuid=4712", "--regid=4711", "--clear-groups", "sh", "-c"];
    run(&["chmod", "755", text(place.dir().parent().unwrap())]);
    let denied = attempt(&[&other[..], &[&script]].concat());
    assert_ne!(denied.code, 0, "{denied:?}");
    assert!(place.read("images/img:1/last_error").contains("only root"), "{denied:?}");
    // Another label, the same user may write.
    run(&[&other[..], &[&script.replace("io.snapfs.trust", "env")]].concat());
    assert_eq!(refused(&place, "img:1", "a").0, Errno::EPERM);
    run(&["sh", "-c", &script]);
    let removed = attempt(&[&other[..], &[&format!("rm {}", text(&label))]].concat());
    assert_ne!(removed.code, 0, "{removed:?}");
    drop(restored(&place, "runc", "img:1", "a"));
    check_nothing_left(&place);
}
