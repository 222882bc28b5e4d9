//! A container's tree, committed and unpacked by programs that are not ours, is the container's tree.
//!
//! The base and the layer are read by GNU tar and put together by the image specification's rules, here; in the lab by
//! `umoci unpack`, from an image.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

pub(crate) mod random;

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr};
use snapfs::changeset::flatten;
use snapfs::changeset::tar::{self, Options};
use snapfs::changeset::{Changes, Entry, Kind, Namespace, Source, scan};
use snapfs::oci::{Digest, canonical_json};
use snapfs::progress::Progress;

use crate::harness::mount::in_lab;
use crate::harness::rootfs::{
    Facts, Item, Overlay, absent, acl, at, beneath, block_device, char_device, differences, dir, facts, fifo, file,
    hardlink, make, remove, rename, scratch, set_mtime, socket, sparse, symlink,
};

pub(crate) fn tar_of(changes: &Changes) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = tar::write(changes, &mut bytes, &Progress::new(), Options::default()).unwrap();
    assert_eq!(written.bytes, bytes.len() as u64);
    assert_eq!(written.torn, [b""; 0]);
    bytes
}

/// The same in the order of a commit: regular files before all else, but for directories in place of something else.
pub(crate) fn layer_of(changes: &Changes) -> Vec<u8> {
    let progress = Progress::new();
    let mut writer = tar::Writer::new(Vec::new(), changes, &progress, Options::default());
    let is_early = |entry: &&Entry| entry.kind == Kind::File || (entry.kind == Kind::Directory && entry.replaces);
    let rest = changes.entries.iter().filter(|entry| !is_early(entry));
    for entry in changes.entries.iter().filter(is_early).chain(rest) {
        writer.entry(entry).unwrap();
    }
    let (written, bytes) = writer.into_out().unwrap();
    assert_eq!(written.torn, [b""; 0]);
    bytes
}

#[allow(clippy::disallowed_methods, reason = "the product's rule is about the daemon's children")]
fn command(program: &str) -> Command {
    Command::new(program)
}

/// What GNU tar makes of a tar.
pub(crate) fn extract(tar: &[u8], into: &Path) {
    fs::create_dir_all(into).unwrap();
    let mut child = command("tar")
        .args(["--extract", "--preserve-permissions", "--same-owner", "--numeric-owner", "--delay-directory-restore"])
        .args(["--xattrs", "--xattrs-include=*", "--warning=no-timestamp", "--file=-", "--directory"])
        .arg(into)
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(tar));
        child.wait_with_output().unwrap()
    });
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && complaints.is_empty(), "tar: {complaints}");
}

/// Applies a layer to `root` as `layer.md` says: whiteouts first; a directory onto a directory changes its attributes; all
/// else replaces what is there.
fn apply(layer: &[u8], root: &Path) {
    let beside = root.with_extension("layer");
    extract(layer, &beside);
    merge(&beside, root);
}

fn merge(from: &Path, onto: &Path) {
    let metadata = fs::symlink_metadata(from).unwrap(); // before its files are moved out
    let mut names: Vec<_> = fs::read_dir(from).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    let is_whiteout = |name: &&std::ffi::OsString| name.as_bytes().starts_with(b".wh.");
    for name in names.iter().filter(is_whiteout) {
        let gone = beneath(onto, &name.as_bytes()[4..]);
        assert!(fs::symlink_metadata(&gone).is_ok(), "a whiteout of what is not there: {}", gone.display());
        remove(&gone);
    }
    for name in names.iter().filter(|name| !is_whiteout(name)) {
        let (new, old) = (from.join(name), onto.join(name));
        let is_dir = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
        if is_dir(&new) && is_dir(&old) {
            merge(&new, &old);
        } else {
            remove(&old);
            rename(&new, &old).unwrap();
        }
    }
    copy_attributes(from, &metadata, onto);
}

fn copy_attributes(from: &Path, metadata: &fs::Metadata, onto: &Path) {
    let names = |path: &Path| {
        let mut list = vec![0; 64 << 10];
        let length = llistxattr(path, &mut list[..]).unwrap();
        list.truncate(length);
        list.split(|&byte| byte == 0).filter(|name| !name.is_empty()).map(<[u8]>::to_vec).collect::<Vec<_>>()
    };
    std::os::unix::fs::chown(onto, Some(metadata.uid()), Some(metadata.gid())).unwrap();
    fs::set_permissions(onto, fs::Permissions::from_mode(metadata.mode() & 0o7777)).unwrap();
    for name in names(onto) {
        lremovexattr(onto, &*name).unwrap();
    }
    for name in names(from) {
        let mut value = vec![0; 64 << 10];
        let length = lgetxattr(from, &*name, &mut value[..]).unwrap();
        lsetxattr(onto, &*name, &value[..length], XattrFlags::empty()).unwrap();
    }
    set_mtime(onto, metadata.mtime(), metadata.mtime_nsec());
}

pub(crate) fn source(overlay: &Overlay, namespace: Namespace) -> Source {
    Source::Overlay {
        lower: overlay.lower.clone(),
        upper: overlay.upper.clone(),
        merged: Some(overlay.merged.clone()),
        namespace,
    }
}

/// What two trees must have in common. The root's time is nobody's: an engine makes it with the directory.
fn compare(what: &str, mut expected: Facts, mut found: Facts, links: bool) {
    for facts in [&mut expected, &mut found] {
        facts.get_mut("").unwrap().mtime = (0, 0);
        if !links {
            facts.values_mut().for_each(|fact| fact.link = None);
        }
    }
    let differences = differences(&expected, &found);
    assert!(differences.is_empty(), "{what}:\n{}", differences.join("\n"));
}

/// Layers, bottom first, of a container made by doing `change` to `lower`, and the tree that the container sees.
pub(crate) fn layers_of(lower: &[Item], change: impl FnOnce(&Path), options: &str) -> (Vec<Vec<u8>>, Facts) {
    let temp = scratch();
    let below = temp.path().join("lower");
    fs::create_dir(&below).unwrap();
    make(&below, lower);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), options);
    change(&overlay.merged);
    let namespace = if options.contains("userxattr") { Namespace::User } else { Namespace::Trusted };
    let base = tar_of(&flatten(&overlay.lower, namespace, &Progress::new()).unwrap());
    let layer = layer_of(&scan(&source(&overlay, namespace), &[], &Progress::new()).unwrap());
    let again = layer_of(&scan(&source(&overlay, namespace), &[], &Progress::new()).unwrap());
    assert!(layer == again, "the same tree, read twice, gives the same bytes");
    (vec![base, layer], facts(&overlay.merged))
}

/// Unpacks `layers` with GNU tar and compares.
pub(crate) fn check(what: &str, layers: &[Vec<u8>], expected: Facts, links: bool) {
    let temp = scratch();
    compare(what, expected, unpack(layers, temp.path()), links);
}

/// What GNU tar makes of `layers`, in `temp`.
pub(crate) fn unpack(layers: &[Vec<u8>], temp: &Path) -> Facts {
    let root = temp.join("rootfs");
    extract(&layers[0], &root);
    for layer in &layers[1..] {
        apply(layer, &root);
        fs::remove_dir_all(root.with_extension("layer")).unwrap();
    }
    facts(&root)
}

const OPTIONS: [&str; 6] = ["", "userxattr", "index=on", "redirect_dir=on", "metacopy=on,redirect_dir=on", "xino=on"];

/// A named tree, and what happens to it.
pub(crate) struct Nasty {
    pub(crate) name: &'static str,
    pub(crate) lower: Vec<Item>,
    pub(crate) change: Vec<Item>,
}

/// The declared list. What no unpacking program can make (paths above `PATH_MAX`, whiteouts of names above 251 bytes) is
/// tested without one.
pub(crate) fn nasty() -> Vec<Nasty> {
    let mut list = vec![
        Nasty { name: "nothing", lower: vec![dir("etc")], change: vec![] },
        Nasty {
            name: "names",
            lower: vec![file("old\nname", "1"), dir([0xff, 0xfe]), file("gone\x1b[31m", "")],
            change: vec![
                file("a\nb", "newline"),
                file([0xff, 0xfe, b'/', 0x80, b'x'], "not UTF-8"),
                file("caf\u{e9}", "UTF-8"),
                file("-rf", ""),
                file(" leading", ""),
                file("trailing ", ""),
                file("back\\slash", ""),
                file("quote'\"", ""),
                file("%2e%2e", ""),
                file(".wx", ""),
                file("wh.x", ""),
                file("...", ""),
                file("path=../../etc/shadow\n", ""),
                absent("gone\x1b[31m"),
                absent("old\nname"),
            ],
        },
        Nasty {
            name: "long names",
            lower: vec![file("w".repeat(251), "deleted")],
            change: vec![
                absent("w".repeat(251)),
                file("n".repeat(255), "255"),
                file("n".repeat(100), "100"),
                file("n".repeat(101), "101"),
                dir("d".repeat(99)),
                dir("e".repeat(100)),
                file([vec![0xff; 200], b"/".to_vec(), vec![0xfe; 255]].concat(), "long and not UTF-8"),
                file(format!("{}/{}", "p".repeat(155), "q".repeat(100)), "fits the prefix"),
                file(format!("{}/{}", "r".repeat(156), "q".repeat(99)), "does not"),
                file(format!("{}/{}/x", "s".repeat(90), "t".repeat(90)), "prefix of two"),
                dir(format!("{}/{}", "u".repeat(80), "v".repeat(99))),
                symlink("to", "t".repeat(4000)),
                symlink("to100", "t".repeat(100)),
                symlink("to-bytes", [0xff; 150]),
                hardlink("link", "n".repeat(255)),
            ],
        },
        Nasty {
            name: "deep",
            lower: vec![file(format!("{}f", "low/".repeat(150)), "1")],
            change: vec![file(format!("{}g", "low/".repeat(150)), "2"), file(format!("{}x", "d/".repeat(400)), "3")],
        },
        Nasty {
            name: "modes and owners",
            lower: vec![file("su", "").mode(0o755), dir("tmp")],
            change: vec![
                at("su").mode(0o4755),
                file("sgid", "").owner(0, 5).mode(0o2755),
                at("tmp").mode(0o1777),
                file("none", "secret").mode(0),
                dir("closed").mode(0),
                file("closed/f", "").mode(0o7777),
                file("far", "").owner(4_000_000_000, 4_294_967_294),
                file("edge", "").owner(0o777_7777, 0o1000_0000),
                symlink("link", "su").owner(3_000_000_000, 1),
                at("").mode(0o711).owner(7, 8),
            ],
        },
        Nasty {
            name: "times",
            lower: vec![file("old", "").mtime(1, 1), dir("d").mtime(0, 0)],
            change: vec![
                file("epoch", "").mtime(0, 0),
                file("before", "").mtime(-1, 0),
                file("before by half", "").mtime(-1, 500_000_000),
                file("long before", "").mtime(-2_000_000_000, 999_999_999),
                file("nano", "").mtime(1_700_000_000, 1),
                file("centi", "").mtime(1_700_000_000, 120_000_000),
                file("2242", "").mtime(8_589_934_591, 0),
                file("far", "").mtime(8_589_934_592, 5),
                file("d/touched", "").mtime(5, 0),
                at("d").mtime(9, 9),
                symlink("link", "x").mtime(1_600_000_000, 123_456_789),
                dir("dir").mtime(1_600_000_000, 987_654_321),
            ],
        },
        Nasty {
            name: "attributes",
            lower: vec![file("f", "").xattr("user.old", "1"), dir("d").xattr("user.dir", "1")],
            change: vec![
                at("f").xattr("user.new", "a\n25 path=../../etc/shadow\n"),
                file("bytes", "").xattr("user.all", (0..=255).collect::<Vec<u8>>()).xattr("user.nl\nname", "1"),
                file("large", "").xattr("user.large", vec![b'x'; 3000]),
                file("caps", "").mode(0o755).xattr("security.capability", CAPABILITY),
                file("acl", "").mode(0o640).xattr("system.posix_acl_access", acl(&ACL)),
                at("d").xattr("user.dir", "2"),
                dir("acl-dir").xattr("system.posix_acl_default", acl(&ACL)).mode(0o2775),
                file("percent", "").xattr("user.100%", "1").xattr("user.%41", "1"),
                file("overlay", "").xattr("user.overlay.opaque", "y").xattr("user.overlay.redirect", "/etc"),
            ],
        },
        Nasty {
            name: "special files",
            lower: vec![fifo("old-fifo"), char_device("old-null", 1, 3), dir("dev")],
            change: vec![
                fifo("fifo").mode(0o622).mtime(3, 3),
                char_device("dev/null", 1, 3).mode(0o666),
                char_device("dev/high", 4095, 1_048_575),
                block_device("dev/loop", 7, 259).owner(0, 6),
                socket("socket"),
                absent("old-fifo"),
                file("old-null", "now a file"),
            ],
        },
        Nasty {
            name: "links",
            lower: vec![file("l/a", "1"), hardlink("l/b", "l/a"), hardlink("m", "l/a"), symlink("s", "l/a")],
            change: vec![
                file("z", "zz"),
                hardlink("a", "z"),
                hardlink("k/deep/er", "z"),
                at("l/b").mode(0o600),
                fifo("p1"),
                hardlink("p2", "p1"),
                symlink("s1", "nowhere"),
                hardlink("s2", "s1"),
                symlink("loop", "loop"),
                symlink("up", "../../../../etc/passwd"),
                symlink("abs", "/etc/passwd"),
                char_device("c1", 1, 7),
                hardlink("c2", "c1"),
            ],
        },
        Nasty {
            name: "sparse",
            lower: vec![],
            change: vec![
                sparse("hole", 4 << 20, &[]),
                sparse("middle", 5 << 20, &[(2 << 20, b"data"), (3 << 20, b"more")]),
                sparse("end", (2 << 20) + 4, &[(2 << 20, b"last")]),
                sparse("odd", 1_234_567, &[(0, b"first")]),
                file("empty", ""),
                file("512", [1; 512]),
                file("513", [1; 513]),
                file("big", vec![0xa5; (2 << 20) + 1]),
            ],
        },
        Nasty {
            name: "replacements",
            lower: vec![
                file("d2f/x/y", "1"),
                file("f2d", "2"),
                symlink("l2d", "d2f"),
                file("same/kept", "3"),
                file("same/lost", "4"),
                file("same/sub/kept", "5"),
                dir("same/sub/lost/deeper"),
                file("whole/a/b/c", "6"),
                dir("empty"),
            ],
            change: vec![
                file("d2f", "file"),
                absent("f2d"),
                file("f2d/in", "dir"),
                absent("l2d"),
                file("l2d/in", "dir"),
                absent("same"),
                file("same/kept", "33"),
                file("same/sub/kept", "55"),
                absent("whole"),
                absent("empty"),
                dir("empty").mode(0o700),
            ],
        },
    ];
    let many = (0..500).map(|number| file(format!("many/{number}"), number.to_string())).collect();
    let gone = (0..500).step_by(3).map(|number| absent(format!("many/{number}"))).collect();
    list.push(Nasty { name: "many", lower: many, change: gone });
    list
}

/// `cap_dac_override,cap_fowner=ep`: 0x0a, the newline that breaks readers of extended headers, is among the bytes.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0x0a, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
const ACL: [(u16, u16, u32); 5] = [(1, 6, !0), (2, 7, 1000), (4, 4, !0), (16, 7, !0), (32, 0, !0)];

/// What makes `change` possible where an item stands on another type.
pub(crate) fn change_by(items: Vec<Item>) -> impl FnOnce(&Path) {
    move |root| make(root, &items)
}

#[test]
fn nasty_trees_survive_gnu_tar() {
    for options in OPTIONS {
        for case in nasty() {
            if options == "userxattr" && case.name == "attributes" {
                continue; // overlayfs reserves user.overlay there; `escaped_attributes_get_their_name_back` has it
            }
            if options == "index=on" && case.name == "links" {
                continue; // an error: `a_link_kept_equal_by_an_index_is_an_error`
            }
            let (layers, expected) = layers_of(&case.lower, change_by(case.change), options);
            check(&format!("{} with {options:?}", case.name), &layers, expected, true);
        }
    }
}

#[test]
fn renamed_directories_and_metadata_only_copies_survive() {
    let lower = [
        file("a/f", "1"),
        file("a/sub/g", [7; 70_000]).xattr("user.x", "1"),
        fifo("a/sub/p"),
        symlink("a/l", "f"),
        file("b/old", "b"),
        file("big", [8; 100_000]),
    ];
    for options in ["redirect_dir=on", "metacopy=on,redirect_dir=on"] {
        let change = |root: &Path| {
            make(root, &[at("big").mode(0o4711), at("a/sub/g").owner(9, 9)]);
            rename(root.join("big"), root.join("moved")).unwrap();
            fs::remove_dir_all(root.join("b")).unwrap();
            rename(root.join("a"), root.join("b")).unwrap();
            make(
                root,
                &[file("b/new", "n"), hardlink("outside", "b/new"), absent("b/sub/p"), dir("a"), file("a/g", "")],
            );
            rename(root.join("b/sub"), root.join("a/sub")).unwrap();
        };
        let (layers, expected) = layers_of(&lower, change, options);
        check(options, &layers, expected, true);
    }
}

/// An OCI image layout of these layers, uncompressed, as `docs` of the image specification have it.
fn write_layout(dir: &Path, layers: &[Vec<u8>]) {
    let blobs = dir.join("blobs/sha256");
    fs::create_dir_all(&blobs).unwrap();
    let put = |media_type: &str, bytes: &[u8]| {
        let digest = Digest::of(bytes);
        fs::write(blobs.join(digest.hex()), bytes).unwrap();
        serde_json::json!({ "mediaType": media_type, "digest": digest.to_string(), "size": bytes.len() })
    };
    let described: Vec<_> = layers.iter().map(|layer| put(snapfs::oci::MEDIA_TYPE_LAYER, layer)).collect();
    let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = put(snapfs::oci::MEDIA_TYPE_CONFIG, &canonical_json(&config).unwrap());
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": snapfs::oci::MEDIA_TYPE_MANIFEST, "config": config, "layers": described,
    });
    let mut manifest = put(snapfs::oci::MEDIA_TYPE_MANIFEST, &canonical_json(&manifest).unwrap());
    manifest["annotations"] = serde_json::json!({ "org.opencontainers.image.ref.name": "test" });
    let index = serde_json::json!({ "schemaVersion": 2, "manifests": [manifest] });
    fs::write(dir.join("index.json"), canonical_json(&index).unwrap()).unwrap();
    fs::write(dir.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
}

/// Unpacks `layers` with umoci and compares.
pub(crate) fn check_umoci(what: &str, layers: &[Vec<u8>], expected: Facts, links: bool) {
    let temp = scratch();
    let (image, bundle) = (temp.path().join("image"), temp.path().join("bundle"));
    write_layout(&image, layers);
    let output =
        command("umoci").args(["unpack", "--image"]).arg(format!("{}:test", image.display())).arg(&bundle).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{what}: umoci: {}", String::from_utf8_lossy(&output.stderr));
    compare(what, expected, facts(&bundle.join("rootfs")), links);
}

#[test]
fn nasty_trees_survive_umoci() {
    if !in_lab() {
        return;
    }
    for case in nasty() {
        let (layers, expected) = layers_of(&case.lower, change_by(case.change), "");
        check_umoci(case.name, &layers, expected, true);
    }
}
