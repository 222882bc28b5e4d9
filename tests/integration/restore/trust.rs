//! What came from elsewhere starts nothing, until root says so.

use std::fs;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use serde_json::Value;

use super::{check_nothing_left, checkpoint, commit, left, refused, restored, written};
use crate::checkpoint::counter::check_runs;
use crate::harness::lab::{Podman, attempt, run, text};
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
    let podman = Podman::take();
    let place = Place::with_podman();
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
    written(&place, "images/ck1", "restore", "b engine=podman");
    let pid = run(&["podman", "container", "inspect", "--format", "{{.State.Pid}}", "b"]);
    check_runs(pid.parse().unwrap(), &PathBuf::from(run(&["podman", "mount", "b"])), counted);

    // The same image, but for what it says of its container.
    let changes = [
        ("spec['hooks'] = {'prestart': [{'path': '/bin/touch', 'args': ['touch', '/tmp/canary']}]}", "hooks"),
        (
            "spec['mounts'].append({'destination': '/host', 'type': 'bind', 'source': '/', 'options': ['rbind']})",
            "/host",
        ),
        ("spec['mounts'].append({'destination': '/x', 'type': 'ext4', 'source': '/dev/vda'})", "ext4"),
        (
            "spec['linux']['namespaces'] = [n for n in spec['linux']['namespaces'] if n['type'] != 'pid']",
            "pid namespace",
        ),
    ];
    for (at, (change, word)) in changes.into_iter().enumerate() {
        let image = format!("evil{at}");
        let archive = changed(&place, change, &image);
        run(&["sh", "-c", &format!("cat {} > {}", text(&archive), text(&place.dir().join("import")))]);
        let directory = place.dir().join("images").join(&image);
        let label = fs::read(directory.join("digest")).unwrap();
        fs::write(directory.join("labels/io.snapfs.trust"), label).unwrap();
        for engine in ["runc", "podman"] {
            let (errno, why) = refused(&place, &image, &format!("c engine={engine}"));
            assert_eq!(errno, Errno::EPERM, "{why}");
            assert!(why.contains(word), "{engine}: {why}");
        }
    }
    assert!(!Path::new("/tmp/canary").exists());
    assert_eq!(left(&place), [""; 0]);
    assert_eq!(run(&["podman", "ps", "--all", "--quiet", "--filter", "name=^c$"]), "");
    run(&["podman", "rm", "--force", "--time", "0", "--all"]);
    drop(podman);
}

/// An archive of ck1 with another spec.dump, under another name.
fn changed(place: &Place, change: &str, name: &str) -> PathBuf {
    const SCRIPT: &str = r#"
import hashlib, io, json, subprocess, sys, tarfile
archive, changed, change, name = sys.argv[1:]
blobs = {}
with tarfile.open(archive) as tar:
    for member in tar:
        if member.isfile():
            blobs[member.name] = tar.extractfile(member).read()
def blob(digest): return blobs['blobs/sha256/' + digest.split(':')[1]]
def put(data):
    digest = hashlib.sha256(data).hexdigest()
    blobs['blobs/sha256/' + digest] = data
    return {'digest': 'sha256:' + digest, 'size': len(data)}
index = json.loads(blobs['index.json'])
manifest = json.loads(blob(index['manifests'][0]['digest']))
config = json.loads(blob(manifest['config']['digest']))
plain = subprocess.run(['zstd', '-dc'], input=blob(manifest['layers'][0]['digest']), capture_output=True, check=True).stdout
out = io.BytesIO()
with tarfile.open(fileobj=io.BytesIO(plain)) as old, tarfile.open(fileobj=out, mode='w') as new:
    for member in old:
        data = old.extractfile(member).read() if member.isfile() else None
        if member.name == 'spec.dump':
            spec = json.loads(data)
            exec(change)
            data = json.dumps(spec).encode()
            member.size = len(data)
        member.pax_headers = {}
        new.addfile(member, io.BytesIO(data) if data is not None else None)
tar = out.getvalue()
config['rootfs']['diff_ids'][0] = 'sha256:' + hashlib.sha256(tar).hexdigest()
manifest['layers'][0].update(put(tar), mediaType='application/vnd.oci.image.layer.v1.tar')
manifest['config'].update(put(json.dumps(config).encode()))
entry = index['manifests'][0]
entry.update(put(json.dumps(manifest).encode()))
entry['annotations'] = {'org.opencontainers.image.ref.name': name, 'io.containerd.image.name': name}
blobs['index.json'] = json.dumps(index).encode()
blobs.pop('manifest.json', None)
used = {entry['digest'], manifest['config']['digest']} | {layer['digest'] for layer in manifest['layers']}
with tarfile.open(changed, 'w') as tar:
    for path, data in blobs.items():
        if path.startswith('blobs/') and 'sha256:' + path.split('/')[-1] not in used:
            continue
        member = tarfile.TarInfo(path)
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
"#;
    let (archive, other) = (place.other("archive.tar"), place.other(&format!("{name}.tar")));
    run(&["python3", "-c", SCRIPT, text(&archive), text(&other), change, name]);
    other
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
