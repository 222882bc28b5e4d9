//! Random trees, changed at random.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use rustix::fs::{XattrFlags, lsetxattr};
use snapfs::changeset::{Namespace, Source, flatten, scan};
use snapfs::progress::Progress;

use crate::harness::mount::in_lab;
use crate::harness::rootfs::{Facts, Overlay, facts, rename, scratch, set_mtime};
use crate::roundtrip::{check, check_umoci, layer_of, source, tar_of};

/// What a random process does.
#[derive(Debug, Clone)]
pub(crate) enum Op {
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

/// One operation; hard links only if `links`.
///
/// Times end before 2262, where umoci's count of nanoseconds in 64 bits does (it sets such a time on a directory wrongly).
pub(crate) fn op(links: bool) -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => path().prop_map(Op::Mkdir),
        8 => (path(), any::<u8>(), 0..70_000u32).prop_map(|(path, seed, length)| Op::Write(path, seed, length)),
        6 => path().prop_map(Op::Remove),
        6 => (path(), path()).prop_map(|(from, to)| Op::Rename(from, to)),
        3 => (path(), path()).prop_map(move |(from, to)| if links { Op::Link(from, to) } else { Op::Symlink(from, to) }),
        2 => (path(), path()).prop_map(|(at, to)| Op::Symlink(at, to)),
        3 => (path(), 0..0o10000u32).prop_map(|(path, mode)| Op::Chmod(path, mode)),
        2 => (path(), 0..u32::MAX).prop_map(|(path, owner)| Op::Chown(path, owner)),
        2 => (path(), -3_000_000_000..9_000_000_000i64, 0..1_000_000_000i64).prop_map(|(path, s, n)| Op::Touch(path, s, n)),
        2 => (path(), 0..3u8, any::<u8>()).prop_map(|(path, name, value)| Op::Xattr(path, name, value)),
        1 => (path(), 0..200_000u64).prop_map(|(path, length)| Op::Truncate(path, length)),
        1 => path().prop_map(Op::Fifo),
        1 => (path(), 0..300u32).prop_map(|(path, minor)| Op::Device(path, minor)),
    ]
}

/// Does what can be done; that much of it cannot is part of the game.
pub(crate) fn run(root: &Path, ops: &[Op]) {
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
        Op::Rename(from, to) => rename(root.join(from), root.join(to)),
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

/// Says whether `layers`, unpacked by some program, are the tree expected.
type Check<'a> = &'a dyn Fn(&str, &[Vec<u8>], Facts, bool);

/// What three random processes do, one after the other: to a base, to an image on it, to a container of that.
pub(crate) fn history() -> impl Strategy<Value = [Vec<Op>; 3]> {
    let ops = |most| prop::collection::vec(op(true), 0..most);
    (ops(30), ops(30), ops(40)).prop_map(|(base, image, container)| [base, image, container])
}

/// The layers of images that a history leaves, each with the tree that it is.
pub(crate) fn images_of([base, image, container]: &[Vec<Op>; 3], see: &dyn Fn(&[Vec<u8>], Facts)) {
    random_container(base, image, container, "", true, &|_, layers, facts, _| see(layers, facts));
}

/// A random base, a random layer on it, and a container on both with random changes.
fn random_container(base: &[Op], image: &[Op], container: &[Op], options: &str, links: bool, check: Check<'_>) {
    let temp = scratch();
    let [bottom, first, second] = ["bottom", "first", "second"].map(|name| temp.path().join(name));
    fs::create_dir(&bottom).unwrap();
    run(&bottom, base);
    let plain = Overlay::mount(&temp.path().join("image"), std::slice::from_ref(&bottom), first.clone(), "");
    run(&plain.merged, image);
    let middle = facts(&plain.merged);
    let mut layers = vec![
        tar_of(&scan(&Source::Directory(bottom.clone()), &[], &Progress::new()).unwrap()),
        layer_of(&scan(&source(&plain, Namespace::Trusted), &[], &Progress::new()).unwrap()),
    ];
    drop(plain);
    let overlay = Overlay::mount(&temp.path().join("container"), &[first, bottom], second, options);
    let flat = tar_of(&flatten(&overlay.lower, Namespace::Trusted, &Progress::new()).unwrap());
    check("flattened image", std::slice::from_ref(&flat), middle, links);
    run(&overlay.merged, container);
    let top = layer_of(&scan(&source(&overlay, Namespace::Trusted), &[], &Progress::new()).unwrap());
    layers.push(top.clone());
    let expected = facts(&overlay.merged);
    check("container", &layers, expected.clone(), links);
    check("container on the flattened image", &[flat, top], expected, links);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 200, ..cases(64) })]

    #[test]
    fn random_trees_survive_gnu_tar(
        base in prop::collection::vec(op(true), 0..30),
        image in prop::collection::vec(op(true), 0..30),
        container in prop::collection::vec(op(true), 0..40),
        options in prop::sample::select(vec!["", "xino=on"]),
    ) {
        random_container(&base, &image, &container, options, true, &check);
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
        random_container(&base, &image, &container, options, false, &check);
    }

    #[test]
    fn random_trees_with_redirects_keep_hard_links_of_their_own(
        base in prop::collection::vec(op(false), 0..30),
        container in prop::collection::vec(op(true), 0..40),
        options in prop::sample::select(vec!["redirect_dir=on", "metacopy=on,redirect_dir=on", "index=on"]),
    ) {
        random_container(&base, &[], &container, options, true, &check);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 50, ..cases(16) })]

    #[test]
    fn random_trees_survive_umoci(
        base in prop::collection::vec(op(true), 0..30),
        image in prop::collection::vec(op(true), 0..30),
        container in prop::collection::vec(op(true), 0..40),
    ) {
        if in_lab() {
            random_container(&base, &image, &container, "", true, &check_umoci);
        }
    }
}

/// As many cases as `PROPTEST_CASES` says, or this many.
pub(crate) fn cases(default: u32) -> ProptestConfig {
    let asked = std::env::var_os("PROPTEST_CASES").is_some();
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if asked { config } else { ProptestConfig { cases: default, ..config } }
}
