//! A container's tree, committed and unpacked by programs that are not ours, is the container's tree.
//!
//! The base and the layer are read by GNU tar and put together by the image specification's rules, here; in the lab by
//! `umoci unpack`, from an image.

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use rustix::fs::{RenameFlags, XattrFlags, lgetxattr, llistxattr, lremovexattr, lsetxattr};
use snapfs::commit::changeset::{Changes, Namespace, Source, scan};
use snapfs::commit::flatten::flatten;
use snapfs::commit::tar::{self, Options, Vanished, Written};
use snapfs::oci::{Digest, canonical_json};
use snapfs::progress::Progress;

use crate::harness::rootfs::{
    Facts, Item, Overlay, absent, acl, at, beneath, block_device, char_device, differences, dir, facts, fifo, file,
    hardlink, make, remove, scratch, set_mtime, socket, sparse, symlink,
};

const LIVE: Options = Options { vanished: Vanished::Skip, latest_mtime: None };

fn tar_of(changes: &Changes) -> Vec<u8> {
    let mut bytes = Vec::new();
    let written = tar::write(changes, &mut bytes, &Progress::new(), Options::default()).unwrap();
    assert_eq!(written.bytes, bytes.len() as u64);
    assert_eq!(written.torn, [b""; 0]);
    bytes
}

#[allow(clippy::disallowed_methods, reason = "the product's rule is about the daemon's children")]
fn command(program: &str) -> Command {
    Command::new(program)
}

/// What GNU tar makes of a tar.
fn extract(tar: &[u8], into: &Path) {
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
            fs::rename(&new, &old).unwrap();
        }
    }
    copy_attributes(from, onto);
}

fn copy_attributes(from: &Path, onto: &Path) {
    let metadata = fs::symlink_metadata(from).unwrap();
    use std::os::unix::fs::MetadataExt;
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

fn source(overlay: &Overlay, namespace: Namespace) -> Source {
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
fn layers_of(lower: &[Item], change: impl FnOnce(&Path), options: &str) -> (Vec<Vec<u8>>, Facts) {
    let temp = scratch();
    let below = temp.path().join("lower");
    fs::create_dir(&below).unwrap();
    make(&below, lower);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), options);
    change(&overlay.merged);
    let namespace = if options.contains("userxattr") { Namespace::User } else { Namespace::Trusted };
    let base = tar_of(&flatten(&overlay.lower, namespace, &Progress::new()).unwrap());
    let layer = tar_of(&scan(&source(&overlay, namespace), &[], &Progress::new()).unwrap());
    let again = tar_of(&scan(&source(&overlay, namespace), &[], &Progress::new()).unwrap());
    assert!(layer == again, "the same tree, read twice, gives the same bytes");
    (vec![base, layer], facts(&overlay.merged))
}

/// Unpacks `layers` with GNU tar and compares.
fn check(what: &str, layers: &[Vec<u8>], expected: Facts, links: bool) {
    let temp = scratch();
    let root = temp.path().join("rootfs");
    extract(&layers[0], &root);
    for layer in &layers[1..] {
        apply(layer, &root);
        fs::remove_dir_all(root.with_extension("layer")).unwrap();
    }
    compare(what, expected, facts(&root), links);
}

const OPTIONS: [&str; 6] = ["", "userxattr", "index=on", "redirect_dir=on", "metacopy=on,redirect_dir=on", "xino=on"];

/// A named tree, and what happens to it.
struct Nasty {
    name: &'static str,
    lower: Vec<Item>,
    change: Vec<Item>,
}

/// The declared list. What no unpacking program can make (paths above `PATH_MAX`, whiteouts of names above 251 bytes) is
/// tested without one.
fn nasty() -> Vec<Nasty> {
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
            lower: vec![file(format!("{}f", "low/".repeat(300)), "1")],
            change: vec![file(format!("{}g", "low/".repeat(300)), "2"), file(format!("{}x", "d/".repeat(1500)), "3")],
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
                sparse("hole", 64 << 20, &[]),
                sparse("middle", 40 << 20, &[(20 << 20, b"data"), (30 << 20, b"more")]),
                sparse("end", (10 << 20) + 4, &[(10 << 20, b"last")]),
                sparse("odd", 12_345_678, &[(0, b"first")]),
                file("empty", ""),
                file("512", [1; 512]),
                file("513", [1; 513]),
                file("big", vec![0xa5; (3 << 20) + 1]),
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
fn change_by(items: Vec<Item>) -> impl FnOnce(&Path) {
    move |root| make(root, &items)
}

#[test]
fn nasty_trees_survive_gnu_tar() {
    for options in OPTIONS {
        for case in nasty() {
            if options == "userxattr" && case.name == "attributes" {
                continue; // overlayfs reserves user.overlay there; `escaped_attributes_get_their_name_back` has it
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
            fs::rename(root.join("big"), root.join("moved")).unwrap();
            fs::remove_dir_all(root.join("b")).unwrap();
            fs::rename(root.join("a"), root.join("b")).unwrap();
            make(
                root,
                &[file("b/new", "n"), hardlink("outside", "b/new"), absent("b/sub/p"), dir("a"), file("a/g", "")],
            );
            fs::rename(root.join("b/sub"), root.join("a/sub")).unwrap();
        };
        let (layers, expected) = layers_of(&lower, change, options);
        check(options, &layers, expected, true);
    }
}

#[test]
fn a_file_of_nine_gigabytes_of_nothing_has_a_size_record() {
    struct Check(u64, Vec<u8>);
    impl Write for Check {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let room = 2048usize.saturating_sub(self.1.len()).min(bytes.len());
            self.1.extend_from_slice(&bytes[..room]);
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let temp = scratch();
    make(temp.path(), &[sparse("huge", 9 << 30, &[])]);
    let changes = scan(&Source::Directory(temp.path().to_path_buf()), &[], &Progress::new()).unwrap();
    assert_eq!((changes.size(), changes.allocated()), (9 << 30, 0));
    let mut out = Check(0, Vec::new());
    let written = tar::write(&changes, &mut out, &Progress::new(), Options::default()).unwrap();
    assert_eq!(written.bytes, out.0);
    assert!(out.0 > 9 << 30);
    let record = b"19 size=9663676416\n";
    assert!(out.1.windows(record.len()).any(|bytes| bytes == record), "{}", out.1.escape_ascii());
}

#[test]
fn times_are_clamped_to_source_date_epoch() {
    let temp = scratch();
    make(temp.path(), &[file("new", "").mtime(2_000_000_000, 5), file("old", "").mtime(-5, 5), at("").mtime(1, 0)]);
    let changes = scan(&Source::Directory(temp.path().to_path_buf()), &[], &Progress::new()).unwrap();
    let mut bytes = Vec::new();
    let options = Options { latest_mtime: Some(1_000_000_000), ..Options::default() };
    tar::write(&changes, &mut bytes, &Progress::new(), options).unwrap();
    let out = scratch();
    extract(&bytes, out.path());
    let found = facts(out.path());
    assert_eq!((found["new"].mtime, found["old"].mtime), ((1_000_000_000, 0), (-5, 5)));
}

#[test]
fn the_same_tree_elsewhere_gives_the_same_bytes() {
    let tar = |order: fn(&mut Vec<Item>)| {
        let temp = scratch();
        let mut items: Vec<_> = (0..200).map(|n| file(format!("d{}/f{n}", n % 7), n.to_string()).mtime(n, 1)).collect();
        order(&mut items);
        let mut last: Vec<_> = (0..7).map(|n| at(format!("d{n}")).mtime(3, 3)).collect();
        last.push(hardlink("a", "d0/f0"));
        last.push(at("").mtime(4, 4));
        make(temp.path(), &items);
        make(temp.path(), &last);
        tar_of(&scan(&Source::Directory(temp.path().to_path_buf()), &[], &Progress::new()).unwrap())
    };
    assert!(tar(|_| ()) == tar(|items| items.reverse()));
}

/// An output that does something when the tar has reached a certain length.
struct Interfering<F> {
    written: u64,
    at: u64,
    act: Option<F>,
    bytes: Vec<u8>,
}

impl<F: FnOnce()> Write for Interfering<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.written += bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        if self.written >= self.at
            && let Some(act) = self.act.take()
        {
            act();
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Changes the file `victim` of 4 MiB once the tar has `reached` bytes, and says what was written and what GNU tar reads.
fn interfere(reached: u64, options: Options, act: impl FnOnce(&Path)) -> (Result<Written, tar::Error>, Facts) {
    let (temp, out) = (scratch(), scratch());
    let root = temp.path();
    make(
        root,
        &[file("a", "before"), file("victim", vec![b'v'; 4 << 20]), hardlink("w", "victim"), file("z", "after")],
    );
    let changes = scan(&Source::Directory(root.to_path_buf()), &[], &Progress::new()).unwrap();
    let victim = root.join("victim");
    let mut target = Interfering { written: 0, at: reached, act: Some(|| act(&victim)), bytes: Vec::new() };
    let written = tar::write(&changes, &mut target, &Progress::new(), options);
    if written.is_ok() {
        extract(&target.bytes, out.path());
        return (written, facts(out.path()));
    }
    (written, Facts::new())
}

#[test]
fn a_file_that_shrinks_grows_or_changes_keeps_its_place_and_is_named() {
    let middle = 2 << 20;
    let truncate = |length: u64| {
        move |victim: &Path| fs::OpenOptions::new().write(true).open(victim).unwrap().set_len(length).unwrap()
    };
    for (what, act) in [
        ("shrinks", Box::new(truncate(1000)) as Box<dyn FnOnce(&Path)>),
        ("grows", Box::new(truncate(8 << 20))),
        (
            "changes",
            Box::new(|victim: &Path| {
                std::os::unix::fs::FileExt::write_all_at(
                    &fs::OpenOptions::new().write(true).open(victim).unwrap(),
                    b"x",
                    0,
                )
                .unwrap()
            }),
        ),
    ] {
        let (written, found) = interfere(middle, Options::default(), act);
        assert_eq!(written.unwrap().torn, [b"victim"], "{what}");
        assert_eq!(found["victim"].content.len(), 4 << 20, "{what}");
        assert_eq!(found["z"].content, b"after", "{what}");
        assert_eq!(found["victim"].content.last(), Some(if what == "shrinks" { &0 } else { &b'v' }), "{what}");
    }
}

#[test]
fn a_file_that_vanishes_is_an_error_if_frozen_and_left_out_if_live() {
    let (written, _) = interfere(1, Options::default(), |victim| fs::remove_file(victim).unwrap());
    let error = written.unwrap_err();
    assert!(matches!(&error, tar::Error::Vanished { path, .. } if path == b"victim"), "{error}");
    // Its other name takes its place.
    let (written, found) = interfere(1, LIVE, |victim| fs::remove_file(victim).unwrap());
    assert_eq!(written.unwrap().torn, [b"victim"]);
    assert!(!found.contains_key("victim"));
    assert_eq!((found["w"].content.len(), &found["z"].content[..]), (4 << 20, &b"after"[..]));
    // What takes its place is neither followed nor opened.
    for replacement in [symlink("victim", "/etc/passwd"), fifo("victim"), dir("victim")] {
        let (written, found) = interfere(1, LIVE, |victim| make(victim.parent().unwrap(), &[replacement]));
        assert_eq!(written.unwrap().torn, [b"victim"]);
        assert!(!found.contains_key("victim"));
    }
    // Another file in its place is not what the header describes.
    let (written, found) = interfere(1, LIVE, |victim| make(victim.parent().unwrap(), &[file("victim", "other")]));
    assert_eq!(written.unwrap().torn, [b"victim"]);
    assert_eq!(found["victim"].content.len(), 4 << 20);
}

/// T-01 of the threat model: a directory and a symbolic link to outside change places all the time.
#[test]
fn a_directory_swapped_for_a_link_never_leads_outside() {
    let temp = scratch();
    let (root, outside) = (temp.path().join("rootfs"), temp.path().join("outside"));
    make(&outside, &[file("secret", "CANARY-CONTENT"), dir("sub"), file("sub/secret", "CANARY-CONTENT")]);
    make(
        &root,
        &[file("d/secret", "mine"), file("d/sub/secret", "mine"), symlink("e", outside.as_os_str().as_bytes())],
    );
    let stop = AtomicBool::new(false);
    let (mut swapped, mut torn, mut seen_directory) = (0u64, 0, 0);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0u64;
            let handle = fs::File::open(&root).unwrap();
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&handle, "d", &handle, "e", RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
            }
            swaps
        });
        for _ in 0..200 {
            let changes = scan(&Source::Directory(root.clone()), &[], &Progress::new()).unwrap();
            let mut bytes = Vec::new();
            let written = tar::write(&changes, &mut bytes, &Progress::new(), LIVE).unwrap();
            torn += written.torn.len() + changes.vanished.len();
            seen_directory += u32::from(bytes.windows(4).any(|part| part == b"mine"));
            assert!(!bytes.windows(6).any(|part| part == b"CANARY"), "the content of a file outside is in the tar");
        }
        stop.store(true, Ordering::Relaxed);
        swapped = swapper.join().unwrap();
    });
    println!("{swapped} swaps, {torn} paths noticed gone, content seen {seen_directory} times");
    assert!(swapped > 200 && torn > 0 && seen_directory > 0, "the race was not run");
}

/// T-09: to open a FIFO without a writer would block for ever; to open a device may do anything.
#[test]
fn special_files_are_never_opened() {
    let temp = scratch();
    let below = temp.path().join("lower");
    make(&below, &[fifo("low")]);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), "");
    make(
        &overlay.merged,
        &[fifo("p"), socket("s"), char_device("tty", 5, 0), char_device("watchdog", 10, 130), block_device("b", 7, 0)],
    );
    let changes = scan(&source(&overlay, Namespace::Trusted), &[], &Progress::new()).unwrap();
    tar_of(&changes);
    tar_of(&flatten(&overlay.lower, Namespace::Trusted, &Progress::new()).unwrap());
    assert_eq!(changes.sockets, 1);
}

/// I13: nothing of the container changes by being read.
#[test]
fn reading_changes_nothing() {
    let temp = scratch();
    let below = temp.path().join("lower");
    make(&below, &[file("a/f", "1"), symlink("a/l", "f"), dir("a/d")]);
    let upper = temp.path().join("upper");
    let overlay = Overlay::mount(temp.path(), std::slice::from_ref(&below), upper.clone(), "redirect_dir=on");
    make(&overlay.merged, &[file("new", "2"), symlink("link", "new")]);
    fs::rename(overlay.merged.join("a"), overlay.merged.join("b")).unwrap();
    let times = |root: &Path| {
        use std::os::unix::fs::MetadataExt;
        let mut found = Vec::new();
        let mut waiting = vec![root.to_path_buf()];
        while let Some(path) = waiting.pop() {
            let m = fs::symlink_metadata(&path).unwrap();
            found.push((path.clone(), m.atime(), m.atime_nsec(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), m.ino()));
            if m.is_dir() {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        found.sort();
        found
    };
    let all = || [times(&below), times(&upper)];
    all(); // whose listing sets the access times of directories
    let before = all();
    let changes = scan(&source(&overlay, Namespace::Trusted), &[], &Progress::new()).unwrap();
    tar_of(&changes);
    tar_of(&flatten(&[below.clone()], Namespace::Trusted, &Progress::new()).unwrap());
    assert_eq!(before, all());
}

/// What a random process does.
#[derive(Debug, Clone)]
enum Op {
    Mkdir(PathBuf),
    Write(PathBuf, u8, u32),
    Remove(PathBuf),
    Rename(PathBuf, PathBuf),
    Link(PathBuf, PathBuf),
    Symlink(PathBuf, PathBuf),
    Chmod(PathBuf, u32),
    Chown(PathBuf, u32),
    Touch(PathBuf, i64, i64),
    Xattr(PathBuf, u8, u8),
    Truncate(PathBuf, u64),
    Fifo(PathBuf),
    Device(PathBuf, u32),
}

/// Few names, so that operations meet.
fn path() -> impl Strategy<Value = PathBuf> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c", "d\n"]), 1..4)
        .prop_map(|names| names.iter().collect())
}

fn op(links: bool) -> impl Strategy<Value = Op> {
    let link = if links { 3 } else { 0 };
    prop_oneof![
        6 => path().prop_map(Op::Mkdir),
        8 => (path(), any::<u8>(), 0..70_000u32).prop_map(|(path, seed, length)| Op::Write(path, seed, length)),
        6 => path().prop_map(Op::Remove),
        6 => (path(), path()).prop_map(|(from, to)| Op::Rename(from, to)),
        link => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        2 => (path(), path()).prop_map(|(at, to)| Op::Symlink(at, to)),
        3 => (path(), 0..0o10000u32).prop_map(|(path, mode)| Op::Chmod(path, mode)),
        2 => (path(), 0..u32::MAX).prop_map(|(path, owner)| Op::Chown(path, owner)),
        2 => (path(), -3_000_000_000..10_000_000_000i64, 0..1_000_000_000i64).prop_map(|(path, s, n)| Op::Touch(path, s, n)),
        2 => (path(), 0..3u8, any::<u8>()).prop_map(|(path, name, value)| Op::Xattr(path, name, value)),
        1 => (path(), 0..200_000u64).prop_map(|(path, length)| Op::Truncate(path, length)),
        1 => path().prop_map(Op::Fifo),
        1 => (path(), 0..300u32).prop_map(|(path, minor)| Op::Device(path, minor)),
    ]
}

/// Does what can be done; that much of it cannot is part of the game.
fn run(root: &Path, ops: &[Op]) {
    for op in ops {
        let _ = run_one(root, op);
    }
}

fn run_one(root: &Path, op: &Op) -> std::io::Result<()> {
    let is_file = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_file());
    match op {
        Op::Mkdir(path) => fs::create_dir_all(root.join(path)),
        Op::Write(path, seed, length) => {
            let path = root.join(path);
            if fs::symlink_metadata(&path).is_ok() && !is_file(&path) {
                return Ok(()); // a FIFO would block, a link may lead outside
            }
            fs::write(path, vec![*seed; *length as usize])
        }
        Op::Remove(path) => {
            let path = root.join(path);
            if fs::symlink_metadata(&path)?.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }
        }
        #[allow(clippy::disallowed_methods, reason = "this is the container")]
        Op::Rename(from, to) => fs::rename(root.join(from), root.join(to)),
        Op::Link(from, to) => fs::hard_link(root.join(from), root.join(to)),
        Op::Symlink(at, to) => std::os::unix::fs::symlink(to, root.join(at)),
        Op::Chmod(path, mode) => {
            let path = root.join(path);
            if fs::symlink_metadata(&path)?.is_symlink() {
                return Ok(());
            }
            fs::set_permissions(path, fs::Permissions::from_mode(*mode))
        }
        Op::Chown(path, owner) => std::os::unix::fs::lchown(root.join(path), Some(*owner), Some(owner / 2)),
        Op::Touch(path, seconds, nanoseconds) => {
            fs::symlink_metadata(root.join(path))?;
            set_mtime(&root.join(path), *seconds, *nanoseconds);
            Ok(())
        }
        Op::Xattr(path, name, value) => {
            Ok(lsetxattr(root.join(path), format!("user.{name}"), &[*value, b'\n', 0], XattrFlags::empty())?)
        }
        Op::Truncate(path, length) => {
            let path = root.join(path);
            if !is_file(&path) {
                return Ok(());
            }
            fs::OpenOptions::new().write(true).open(path)?.set_len(*length)
        }
        Op::Fifo(path) => Ok(nix::unistd::mkfifo(&root.join(path), nix::sys::stat::Mode::from_bits_truncate(0o600))?),
        Op::Device(path, minor) => {
            let device = nix::sys::stat::makedev(1, u64::from(*minor));
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
            Ok(nix::sys::stat::mknod(&root.join(path), nix::sys::stat::SFlag::S_IFCHR, mode, device)?)
        }
    }
}

/// A random base, a random layer on it, and a container on both with random changes.
fn random_container(base: &[Op], image: &[Op], container: &[Op], options: &str, links: bool) {
    let temp = scratch();
    let [bottom, first, second] = ["bottom", "first", "second"].map(|name| temp.path().join(name));
    fs::create_dir(&bottom).unwrap();
    run(&bottom, base);
    let image_dir = temp.path().join("image");
    let plain = Overlay::mount(&image_dir, std::slice::from_ref(&bottom), first.clone(), "");
    run(&plain.merged, image);
    let middle = facts(&plain.merged);
    let mut layers = vec![
        tar_of(&scan(&Source::Directory(bottom.clone()), &[], &Progress::new()).unwrap()),
        tar_of(&scan(&source(&plain, Namespace::Trusted), &[], &Progress::new()).unwrap()),
    ];
    check("image", &layers, middle.clone(), links);
    drop(plain);
    let container_dir = temp.path().join("container");
    let overlay = Overlay::mount(&container_dir, &[first, bottom], second, options);
    let flat = tar_of(&flatten(&overlay.lower, Namespace::Trusted, &Progress::new()).unwrap());
    check("flattened image", std::slice::from_ref(&flat), middle, links);
    run(&overlay.merged, container);
    layers.push(tar_of(&scan(&source(&overlay, Namespace::Trusted), &[], &Progress::new()).unwrap()));
    let expected = facts(&overlay.merged);
    check("container", &layers, expected.clone(), links);
    check("container on the flattened image", &[flat, layers.remove(2)], expected, links);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..cases(64) })]

    #[test]
    fn random_trees_survive_gnu_tar(
        base in prop::collection::vec(op(true), 0..30),
        image in prop::collection::vec(op(true), 0..30),
        container in prop::collection::vec(op(true), 0..40),
        options in prop::sample::select(vec!["", "index=on", "xino=on"]),
    ) {
        random_container(&base, &image, &container, options, true);
    }

    /// Hard links apart: overlayfs shows a file of a renamed directory and its other name outside as one inode, and in an
    /// image they are two, since only one of them is in the layer.
    #[test]
    fn random_trees_with_redirects_survive_gnu_tar(
        base in prop::collection::vec(op(true), 0..30),
        image in prop::collection::vec(op(true), 0..30),
        container in prop::collection::vec(op(true), 0..40),
        options in prop::sample::select(vec!["redirect_dir=on", "metacopy=on,redirect_dir=on"]),
    ) {
        random_container(&base, &image, &container, options, false);
    }

    #[test]
    fn random_trees_with_redirects_keep_hard_links_of_their_own(
        base in prop::collection::vec(op(false), 0..30),
        container in prop::collection::vec(op(true), 0..40),
        options in prop::sample::select(vec!["redirect_dir=on", "metacopy=on,redirect_dir=on"]),
    ) {
        random_container(&base, &[], &container, options, true);
    }
}

/// As many cases as `PROPTEST_CASES` says, or this many.
fn cases(default: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if asked { config } else { ProptestConfig { cases: default, ..config } }
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

/// Whether this runs in the lab; says so loudly if not, and fails if it should.
fn in_lab() -> bool {
    let in_lab = std::env::var_os("SNAPFS_LAB").is_some_and(|value| value == "1");
    if !in_lab {
        let required = std::env::var_os("SNAPFS_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.to_string_lossy().contains("lab"), "this test needs the lab: run it by tests/lab/enter");
        eprintln!("SKIPPED: this test needs the lab: run it by tests/lab/enter");
    }
    in_lab
}

/// Unpacks `layers` with umoci and compares.
fn check_umoci(what: &str, layers: &[Vec<u8>], mut expected: Facts, links: bool) {
    let temp = scratch();
    let (image, bundle) = (temp.path().join("image"), temp.path().join("bundle"));
    write_layout(&image, layers);
    let output =
        command("umoci").args(["unpack", "--image"]).arg(format!("{}:test", image.display())).arg(&bundle).output();
    let output = output.unwrap();
    assert!(output.status.success(), "{what}: umoci: {}", String::from_utf8_lossy(&output.stderr));
    let mut found = facts(&bundle.join("rootfs"));
    for facts in [&mut expected, &mut found] {
        for fact in facts.values_mut() {
            forget_what_umoci_loses(fact);
        }
    }
    compare(what, expected, found, links);
}

fn forget_what_umoci_loses(_fact: &mut crate::harness::rootfs::Fact) {}

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
