//! Overlay directories, made by the kernel, against the entries they must become.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::path::{Path, PathBuf};

use snapfs::changeset::{Changes, Error, Kind, Namespace, Source, escape, scan};
use snapfs::changeset::{fingerprint, flatten};
use snapfs::progress::Progress;

use crate::harness::rootfs::{
    Item, Overlay, absent, at, char_device, dir, fifo, file, hardlink, make, opaque, rename, scratch, set_mtime,
    socket, symlink, whiteout,
};

/// One line an entry: `D`, `A` or `C` as in the `changes` file, its type, its path, and what it links to.
fn lines(changes: &Changes) -> Vec<String> {
    let line = |entry: &snapfs::changeset::Entry| {
        let kind = match &entry.kind {
            Kind::Whiteout => return format!("D /{}", escape(&entry.path)),
            Kind::Directory => "dir",
            Kind::File => "file",
            Kind::Symlink { target } => {
                return format!("{} symlink /{} -> {}", entry.letter(), escape(&entry.path), escape(target));
            }
            Kind::HardLink { to } => {
                return format!("{} link /{} -> /{}", entry.letter(), escape(&entry.path), escape(to));
            }
            Kind::CharDevice(_) => "char",
            Kind::BlockDevice(_) => "block",
            Kind::Fifo => "fifo",
        };
        format!("{} {kind} /{}", entry.letter(), escape(&entry.path))
    };
    changes.entries.iter().map(line).collect()
}

fn overlay_source(overlay: &Overlay, merged: bool, namespace: Namespace) -> Source {
    Source::Overlay {
        lower: overlay.lower.clone(),
        upper: overlay.upper.clone(),
        merged: merged.then(|| overlay.merged.clone()),
        namespace,
    }
}

/// The entries that result when `change` is done to a container with `lower` below it.
fn changed(lower: &[Item], options: &str, change: impl FnOnce(&Path)) -> Vec<String> {
    let temp = scratch();
    let below = temp.path().join("lower");
    fs::create_dir(&below).unwrap();
    make(&below, lower);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), options);
    change(&overlay.merged);
    let namespace = if options.contains("userxattr") { Namespace::User } else { Namespace::Trusted };
    let with_merged = lines(&scan(&overlay_source(&overlay, true, namespace), &[], &Progress::new()).unwrap());
    if !options.contains("redirect_dir=on") {
        let without = lines(&scan(&overlay_source(&overlay, false, namespace), &[], &Progress::new()).unwrap());
        assert_eq!(with_merged, without, "the merged view is needed only for redirects");
    }
    with_merged
}

/// The same for an upper directory made by hand, which the kernel need not have made.
fn handmade(lower: &[Item], upper: &[Item]) -> Vec<String> {
    let temp = scratch();
    let (below, above) = (temp.path().join("lower"), temp.path().join("upper"));
    for (path, items) in [(&below, lower), (&above, upper)] {
        fs::create_dir(path).unwrap();
        make(path, items);
    }
    let source = Source::Overlay { lower: vec![below], upper: above, merged: None, namespace: Namespace::Trusted };
    lines(&scan(&source, &[], &Progress::new()).unwrap())
}

const PLAIN: [&str; 4] = ["", "userxattr", "index=on", "xino=on"];

#[test]
fn nothing_changed_is_nothing() {
    for options in PLAIN {
        assert_eq!(changed(&[file("etc/a", "1")], options, |_| ()), [""; 0]);
    }
}

#[test]
fn create_modify_delete() {
    let lower = [file("etc/a", "1"), file("etc/b", "2"), file("etc/c", "3"), dir("var/empty")];
    for options in PLAIN {
        let found = changed(&lower, options, |root| {
            make(
                root,
                &[file("etc/b", "new"), absent("etc/c"), file("etc/d", "4"), dir("new/dir"), symlink("etc/e", "a")],
            );
            // Made and removed again: the whiteout that overlayfs keeps for a name without a lower file is none.
            make(root, &[file("etc/f", ""), absent("etc/f")]);
        });
        let expected = [
            "C dir /",
            "C dir /etc",
            "D /etc/c",
            "C file /etc/b",
            "A file /etc/d",
            "A symlink /etc/e -> a",
            "A dir /new",
            "A dir /new/dir",
        ];
        assert_eq!(found, expected, "{options}");
    }
}

#[test]
fn whiteouts_come_before_their_siblings() {
    let found = changed(&[file("d/a", ""), file("d/z", ""), dir("d/m/n")], "", |root| {
        make(root, &[absent("d/z"), absent("d/m"), file("d/b", "")]);
    });
    assert_eq!(found, ["C dir /", "C dir /d", "D /d/m", "D /d/z", "A file /d/b"]);
}

#[test]
fn types_are_replaced_without_whiteouts() {
    let lower = [dir("a/x"), file("a/x/y", ""), file("b", ""), symlink("c", "a")];
    for options in PLAIN {
        let found = changed(&lower, options, |root| {
            make(root, &[file("a", "now a file"), absent("b"), dir("b/now"), absent("c"), dir("c/now")]);
        });
        assert_eq!(
            found,
            ["C dir /", "C file /a", "C dir /b", "A dir /b/now", "C dir /c", "A dir /c/now"],
            "{options}"
        );
    }
}

#[test]
fn a_recreated_directory_deletes_by_name_what_it_does_not_have() {
    let lower = [
        file("d/kept", "1"),
        file("d/lost", "2"),
        file("d/sub/kept", "3"),
        file("d/sub/lost", "4"),
        file("d/gone/x", ""),
    ];
    for options in PLAIN {
        let found = changed(&lower, options, |root| {
            fs::remove_dir_all(root.join("d")).unwrap();
            make(root, &[file("d/kept", "9"), file("d/sub/kept", "9"), file("d/sub/new", "9")]);
        });
        let expected = [
            "C dir /",
            "C dir /d",
            "D /d/gone",
            "D /d/lost",
            "C file /d/kept",
            "C dir /d/sub",
            "D /d/sub/lost",
            "C file /d/sub/kept",
            "A file /d/sub/new",
        ];
        assert_eq!(found, expected, "{options}");
    }
}

#[test]
fn a_new_directory_is_not_taken_for_opaque_nor_an_opaque_one_for_new() {
    assert_eq!(
        handmade(&[file("d/a", "")], &[opaque("d"), opaque("new/d")]),
        ["C dir /", "C dir /d", "D /d/a", "A dir /new", "A dir /new/d"]
    );
    assert_eq!(handmade(&[file("d/a", "")], &[dir("d").mode(0o700)]), ["C dir /", "C dir /d"]);
    assert_eq!(handmade(&[file("d", "")], &[opaque("d"), whiteout("d/x")]), ["C dir /", "C dir /d"]);
}

#[test]
fn whiteouts_of_what_is_not_below_are_nothing() {
    let below = [file("d/a", ""), file("f", "")];
    assert_eq!(handmade(&below, &[whiteout("d/b"), whiteout("x"), whiteout("f")]), ["C dir /", "D /f", "C dir /d"]);
}

#[test]
fn xattr_whiteouts_count_only_where_the_directory_says_so() {
    let lower = [file("d/a", "1"), file("e/a", "1")];
    let mark = "trusted.overlay.whiteout";
    let upper = [
        dir("d").xattr("trusted.overlay.opaque", "x"),
        file("d/a", "").xattr(mark, "y"),
        file("d/b", "").xattr(mark, "y"),
        file("d/c", "not empty").xattr(mark, "y"),
        file("e/a", "").xattr(mark, "y"),
    ];
    assert_eq!(handmade(&lower, &upper), ["C dir /", "C dir /d", "D /d/a", "A file /d/c", "C dir /e", "C file /e/a"]);
}

#[test]
fn several_layers_below_are_seen_merged() {
    let temp = scratch();
    let layers: Vec<PathBuf> = ["top", "middle", "bottom"].iter().map(|name| temp.path().join(name)).collect();
    let items: [&[Item]; 3] = [
        &[whiteout("hidden"), opaque("o"), file("o/top", ""), file("stop", "")],
        &[file("hidden", ""), file("o/middle", ""), dir("stop"), file("m/middle", "")],
        &[file("m/bottom", ""), file("stop/bottom", ""), file("o/bottom", "")],
    ];
    for (path, items) in layers.iter().zip(items) {
        fs::create_dir(path).unwrap();
        make(path, items);
    }
    let upper = temp.path().join("upper");
    make(
        &upper,
        &[
            whiteout("hidden"),
            whiteout("o/middle"),
            whiteout("o/top"),
            whiteout("m/bottom"),
            whiteout("m/middle"),
            dir("stop"),
            whiteout("stop/bottom"),
        ],
    );
    let source = Source::Overlay { lower: layers.clone(), upper, merged: None, namespace: Namespace::Trusted };
    let found = lines(&scan(&source, &[], &Progress::new()).unwrap());
    let expected = ["C dir /", "C dir /m", "D /m/bottom", "D /m/middle", "C dir /o", "D /o/top", "C dir /stop"];
    assert_eq!(found, expected);
    let flat = flatten(&layers, Namespace::Trusted, &Progress::new()).unwrap();
    let expected =
        ["A dir /", "A dir /m", "A file /m/bottom", "A file /m/middle", "A dir /o", "A file /o/top", "A file /stop"];
    assert_eq!(lines(&flat), expected);
}

#[test]
fn a_renamed_directory_is_copied_whole() {
    let lower = [file("a/f", "1"), file("a/sub/g", "2"), file("a/sub/h", "3"), dir("b"), file("b/old", "")];
    let found = changed(&lower, "redirect_dir=on", |root| {
        fs::remove_dir_all(root.join("b")).unwrap();
        rename(root.join("a"), root.join("b")).unwrap();
        make(root, &[file("b/sub/g", "changed"), absent("b/sub/h"), file("b/new", "")]);
    });
    let expected =
        ["C dir /", "D /a", "C dir /b", "D /b/old", "A file /b/f", "A file /b/new", "A dir /b/sub", "A file /b/sub/g"];
    assert_eq!(found, expected);
}

#[test]
fn a_metadata_only_copy_is_a_file_with_its_content() {
    let found = changed(&[file("d/big", [7; 100_000])], "metacopy=on,redirect_dir=on", |root| {
        make(root, &[at("d/big").mode(0o600)]);
    });
    assert_eq!(found, ["C dir /", "C dir /d", "C file /d/big"]);
}

#[test]
fn without_the_merged_view_a_redirect_is_an_error_that_names_it() {
    let temp = scratch();
    let below = temp.path().join("lower");
    make(&below, &[file("a/f", "1"), file("m/f", "1")]);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), "metacopy=on,redirect_dir=on");
    make(&overlay.merged, &[at("m/f").mode(0o600)]);
    let error = scan(&overlay_source(&overlay, false, Namespace::Trusted), &[], &Progress::new()).unwrap_err();
    assert!(matches!(&error, Error::NoMergedView { path, mark: "metacopy" } if path == b"m/f"), "{error}");
    rename(overlay.merged.join("a"), overlay.merged.join("b")).unwrap();
    let error = scan(&overlay_source(&overlay, false, Namespace::Trusted), &[], &Progress::new()).unwrap_err();
    assert!(matches!(&error, Error::NoMergedView { path, mark: "redirect" } if path == b"b"), "{error}");
    assert!(error.to_string().contains("/b has an overlay redirect"), "{error}");
    let error = flatten(std::slice::from_ref(&overlay.upper), Namespace::Trusted, &Progress::new()).unwrap_err();
    assert!(matches!(&error, Error::LowerMark { path, .. } if path == b"b"), "{error}");
}

#[test]
fn attributes_of_directories_and_of_the_root_are_changes() {
    let lower = [dir("d/sub"), file("d/f", "")];
    assert_eq!(changed(&lower, "", |root| make(root, &[at("").mode(0o700)])), ["C dir /"]);
    assert_eq!(changed(&lower, "", |root| make(root, &[at("d").xattr("user.x", "")])), ["C dir /", "C dir /d"]);
    // Copied up with all its attributes, and nothing in it: no change.
    assert_eq!(changed(&lower, "", |root| make(root, &[at("d/sub").mode(0o700), at("d/sub").mode(0o755)])), [""; 0]);
}

#[test]
fn hard_links_are_found_among_what_is_emitted() {
    let lower = [file("l/a", "1"), hardlink("l/b", "l/a"), file("gone1", ""), file("gone2", "")];
    for options in PLAIN {
        let found = changed(&lower, options, |root| {
            make(root, &[file("z", "1"), hardlink("b", "z"), hardlink("c/d", "z"), absent("gone1"), absent("gone2")]);
            make(root, &[fifo("p"), hardlink("q", "p"), symlink("s", "t"), hardlink("t", "s")]);
        });
        let expected = [
            "C dir /",
            "D /gone1",
            "D /gone2",
            "A file /b",
            "A dir /c",
            "A link /c/d -> /b",
            "A fifo /p",
            "A link /q -> /p",
            "A symlink /s -> t",
            "A link /t -> /s",
            "A link /z -> /b",
        ];
        assert_eq!(found, expected, "{options}");
    }
}

#[test]
fn a_link_kept_equal_by_an_index_is_an_error() {
    let temp = scratch();
    let below = temp.path().join("lower");
    make(&below, &[file("a", "1"), hardlink("b", "a")]);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), "index=on");
    let scan = |merged| scan(&overlay_source(&overlay, merged, Namespace::Trusted), &[], &Progress::new());
    make(&overlay.merged, &[at("b").mode(0o600)]);
    for merged in [true, false] {
        let error = scan(merged).unwrap_err();
        assert!(matches!(&error, Error::IndexedLink { path } if path == b"b"), "{error}");
    }
    make(&overlay.merged, &[at("a").mode(0o600)]);
    assert_eq!(lines(&scan(true).unwrap()), ["C dir /", "C file /a", "C link /b -> /a"]);
}

#[test]
fn names_that_mean_a_whiteout_are_refused() {
    for name in [".wh.passwd", ".wh..wh..opq", ".wh."] {
        let temp = scratch();
        let below = temp.path().join("lower");
        make(&below, &[file("etc/passwd", "")]);
        let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), "");
        make(&overlay.merged, &[file(format!("etc/{name}"), "")]);
        let error = scan(&overlay_source(&overlay, true, Namespace::Trusted), &[], &Progress::new()).unwrap_err();
        assert!(matches!(&error, Error::WhiteoutName { path } if path == format!("etc/{name}").as_bytes()), "{error}");
        assert!(error.to_string().contains(&format!("/etc/{name}:")), "{error}");
    }
}

#[test]
fn sockets_are_counted_and_mount_points_left_out() {
    let temp = scratch();
    let below = temp.path().join("lower");
    make(&below, &[dir("etc").mtime(1, 0), dir("data"), file("etc/resolv.conf", "")]);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), "");
    let root = &overlay.merged;
    let etc = ["etc/hosts", "etc/hostname"].map(|path| file(path, ""));
    make(root, &etc);
    let mounts: Vec<PathBuf> =
        ["/proc", "/etc/hosts", "/etc/hostname", "/run/secrets", "/data", "/full"].iter().map(PathBuf::from).collect();
    let scan = || scan(&overlay_source(&overlay, true, Namespace::Trusted), &mounts, &Progress::new()).unwrap();
    assert_eq!(lines(&scan()), [""; 0], "stubs alone are no change, not even of their directory's time");
    make(
        root,
        &[dir("proc"), file("run/secrets", ""), socket("run/s"), file("full", "not a stub"), file("etc/new", "")],
    );
    let found = scan();
    assert_eq!(lines(&found), ["C dir /", "C dir /etc", "A file /etc/new", "A file /full", "A dir /run"]);
    assert_eq!(found.sockets, 1);
}

/// No layer can hold a socket, and what was there before it is not there.
#[test]
fn what_a_socket_took_the_place_of_is_deleted() {
    let temp = scratch();
    let below = temp.path().join("lower");
    make(&below, &[file("run/s", "old"), file("run/d/old", "old"), file("run/z", "stays")]);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), "");
    make(&overlay.merged, &[absent("run/s"), socket("run/s"), absent("run/d"), socket("run/d"), socket("run/new")]);
    let found = scan(&overlay_source(&overlay, true, Namespace::Trusted), &[], &Progress::new()).unwrap();
    assert_eq!(lines(&found), ["C dir /", "C dir /run", "D /run/d", "D /run/s"]);
    assert_eq!(found.sockets, 3);
}

#[test]
fn a_plain_directory_is_all_additions_and_has_no_overlay_marks() {
    let temp = scratch();
    let root = temp.path().join("rootfs");
    make(&root, &[char_device("null", 0, 0), opaque("d"), file("d/f", "").xattr("user.overlay.redirect", "/x")]);
    let found = scan(&Source::Directory(root), &[], &Progress::new()).unwrap();
    assert_eq!(lines(&found), ["A dir /", "A dir /d", "A file /d/f", "A char /null"]);
    assert_eq!(found.entries[2].xattrs, [(b"user.overlay.redirect".to_vec(), b"/x".to_vec())]);
}

#[test]
fn escaped_attributes_get_their_name_back() {
    let temp = scratch();
    let below = temp.path().join("lower");
    make(&below, &[file("f", "")]);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), "userxattr");
    make(&overlay.merged, &[at("f").xattr("user.overlay.opaque", "mine").xattr("user.plain", "1")]);
    let found = scan(&overlay_source(&overlay, false, Namespace::User), &[], &Progress::new()).unwrap();
    let pair = |name: &[u8], value: &[u8]| (name.to_vec(), value.to_vec());
    assert_eq!(found.entries[1].xattrs, [pair(b"user.overlay.opaque", b"mine"), pair(b"user.plain", b"1")]);
}

#[test]
fn a_tree_ten_thousand_deep_is_walked_with_few_descriptors() {
    let temp = scratch();
    let (below, above) = (temp.path().join("lower"), temp.path().join("upper"));
    for root in [&below, &above] {
        fs::create_dir(root).unwrap();
        let mut dir = rustix::fs::open(root, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
        for _ in 0..10_000 {
            rustix::fs::mkdirat(&dir, "d", rustix::fs::Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, "d", rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
            rustix::fs::mknodat(&dir, "f", rustix::fs::FileType::RegularFile, rustix::fs::Mode::RWXU, 0).unwrap();
        }
    }
    let source =
        Source::Overlay { lower: vec![below.clone()], upper: above, merged: None, namespace: Namespace::Trusted };
    let found = scan(&source, &[], &Progress::new()).unwrap();
    assert_eq!(found.entries.len(), 1 + 2 * 10_000);
    let mut out = std::io::sink();
    let written = snapfs::changeset::tar::write(&found, &mut out, &Progress::new(), Default::default()).unwrap();
    assert_eq!(written.files, 1 + 2 * 10_000);
    assert_eq!(flatten(&[below], Namespace::Trusted, &Progress::new()).unwrap().entries.len(), 1 + 2 * 10_000);
}

#[test]
fn a_fingerprint_notices_every_change_and_nothing_else() {
    let temp = scratch();
    let root = temp.path().join("lower");
    make(&root, &[file("a/f", "1").mtime(5, 5), symlink("l", "a"), dir("d").mtime(6, 6)]);
    let print = || fingerprint(std::slice::from_ref(&root), &Progress::new()).unwrap();
    let mut prints = vec![print()];
    assert_eq!(print(), prints[0]);
    fs::read(root.join("a/f")).unwrap();
    assert_eq!(print(), prints[0]);
    let changes: [&dyn Fn(); 4] = [
        &|| {
            fs::write(root.join("a/f"), "2").unwrap();
            set_mtime(&root.join("a/f"), 5, 5); // only the change time tells
        },
        &|| make(&root, &[at("d").xattr("user.x", "1")]),
        &|| rename(root.join("a/f"), root.join("a/g")).unwrap(),
        &|| make(&root, &[at("").mode(0o711)]),
    ];
    for change in changes {
        change();
        let now = print();
        assert!(!prints.contains(&now));
        prints.push(now);
    }
}

#[test]
fn a_cancelled_scan_stops() {
    let temp = scratch();
    make(temp.path(), &[file("f", "")]);
    let progress = Progress::new();
    progress.cancel();
    let error = scan(&Source::Directory(temp.path().to_path_buf()), &[], &progress).unwrap_err();
    assert!(matches!(error, Error::Cancelled(_)), "{error}");
}
