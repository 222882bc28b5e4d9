//! [`Earlier::difference`] against a model: trees as maps, changesets as what the specification makes of two trees.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::sys::dir::Time;

/// A tree: the content of every path. A directory has none; a file has a number, and files of one number are one inode.
type Tree = BTreeMap<Vec<u8>, Node>;

#[derive(Debug, Clone, PartialEq, Eq)]
enum Node {
    Directory(u8),
    File(u64),
}

#[derive(Debug, Clone)]
enum Op {
    Put(Vec<u8>, u64),
    Make(Vec<u8>, u8),
    Remove(Vec<u8>),
    Link(Vec<u8>, Vec<u8>),
    Rename(Vec<u8>, Vec<u8>),
}

fn below<'a>(tree: &'a Tree, path: &'a [u8]) -> impl Iterator<Item = &'a Vec<u8>> {
    tree.keys().filter(move |other| ancestors(other).any(|above| above == path))
}

fn remove(tree: &mut Tree, path: &[u8]) {
    let all: Vec<Vec<u8>> = below(tree, path).cloned().collect();
    for path in all.iter().map(Vec::as_slice).chain([path]) {
        tree.remove(path);
    }
}

fn is_directory(tree: &Tree, path: &[u8]) -> bool {
    matches!(tree.get(path), Some(Node::Directory(_)))
}

/// What cannot be done is not.
fn run(tree: &mut Tree, op: &Op) {
    let fits = |tree: &Tree, path: &[u8]| is_directory(tree, split(path).0);
    match op {
        Op::Put(path, number) if fits(tree, path) && !is_directory(tree, path) => {
            tree.insert(path.clone(), Node::File(*number));
        }
        Op::Make(path, mode) if fits(tree, path) => {
            if !is_directory(tree, path) {
                remove(tree, path);
            }
            tree.insert(path.clone(), Node::Directory(*mode));
        }
        Op::Remove(path) => remove(tree, path),
        Op::Link(from, to) if fits(tree, to) && !tree.contains_key(to) => {
            if let Some(Node::File(number)) = tree.get(from) {
                let number = *number;
                tree.insert(to.clone(), Node::File(number));
            }
        }
        Op::Rename(from, to)
            if tree.contains_key(from)
                && fits(tree, to)
                && from != to
                && !ancestors(to).any(|above| above == from)
                && !ancestors(from).any(|above| above == to) =>
        {
            remove(tree, to);
            let moved: Vec<Vec<u8>> = below(tree, from).cloned().chain([from.clone()]).collect();
            for path in moved {
                let node = tree.remove(&path).unwrap();
                tree.insert([to, &path[from.len()..]].concat(), node);
            }
        }
        _ => {}
    }
}

/// What makes `tree` of `base`, in the order of a walk. `kept` are directories that are in it in any case.
fn changeset(base: &Tree, tree: &Tree, kept: &dyn Fn(&[u8]) -> bool) -> Changes {
    let mut changes =
        Changes { entries: Vec::new(), sockets: 0, mounts: vec![], vanished: vec![], dropped_xattrs: 0, roots: vec![] };
    let mut first: HashMap<u64, Vec<u8>> = HashMap::new();
    walk(base, tree, kept, b"", false, &mut changes.entries, &mut first);
    changes
}

fn walk(
    base: &Tree,
    tree: &Tree,
    kept: &dyn Fn(&[u8]) -> bool,
    path: &[u8],
    replaces: bool,
    entries: &mut Vec<Entry>,
    first: &mut HashMap<u64, Vec<u8>>,
) {
    let in_lower = base.contains_key(path);
    let entry = |kind, metadata, replaces| Entry {
        path: path.to_vec(),
        kind,
        in_lower,
        metadata,
        xattrs: Vec::new(),
        replaces,
        copied_up: false,
        root: 0,
    };
    match &tree[path] {
        Node::File(number) => {
            // What the base has is in no changeset: it is in no upper directory, unless it came back.
            if base.get(path) == tree.get(path) && !kept(path) {
                return;
            }
            let ctime = Time { seconds: number.cast_signed(), nanoseconds: 0 };
            let metadata = Metadata { ino: *number, ctime, ..Metadata::default() };
            let kind = match first.get(number) {
                Some(to) => Kind::HardLink { to: to.clone() },
                None => Kind::File,
            };
            first.entry(*number).or_insert_with(|| path.to_vec());
            entries.push(entry(kind, metadata, false));
        }
        Node::Directory(mode) => {
            let replaces = replaces || (in_lower && !is_directory(base, path));
            let metadata = Metadata { mode: u32::from(*mode), ..Metadata::default() };
            entries.push(entry(Kind::Directory, metadata, replaces));
            let length = entries.len();
            let child = |other: &&Vec<u8>| !other.is_empty() && split(other).0 == path;
            for gone in base.keys().filter(child).filter(|other| !tree.contains_key(*other)) {
                entries.push(Entry::whiteout(gone.clone()));
            }
            for name in tree.keys().filter(child) {
                walk(base, tree, kept, name, replaces, entries, first);
            }
            if entries.len() == length && base.get(path) == tree.get(path) && !kept(path) {
                entries.pop();
            }
        }
    }
}

/// What becomes of `tree` when a layer with these entries is laid on it; fails where a layer must not be so.
fn apply(tree: &Tree, entries: &[Entry]) -> Tree {
    let mut result = tree.clone();
    for entry in entries.iter().filter(|entry| entry.kind == Kind::Whiteout) {
        assert!(result.contains_key(&entry.path), "a whiteout of what is not there: {:?}", entry.path);
        remove(&mut result, &entry.path);
    }
    let mut written: HashMap<&[u8], u64> = HashMap::new();
    for entry in entries.iter().filter(|entry| entry.kind != Kind::Whiteout) {
        if !entry.path.is_empty() {
            let above = entries.iter().find(|other| other.path == split(&entry.path).0);
            assert!(above.is_some_and(|above| above.kind == Kind::Directory), "no directory for {:?}", entry.path);
        }
        let node = match &entry.kind {
            Kind::Directory => Node::Directory(u8::try_from(entry.metadata.mode).unwrap()),
            Kind::HardLink { to } => Node::File(written[&to[..]]),
            _ => Node::File(entry.metadata.ino),
        };
        if let Node::File(number) = node {
            written.insert(&entry.path, number);
        }
        if entry.kind == Kind::Directory && !is_directory(&result, &entry.path) {
            assert!(
                !result.contains_key(&entry.path) || entry.replaces,
                "{:?} replaces something and does not say so",
                entry.path
            );
        }
        if !(entry.kind == Kind::Directory && is_directory(&result, &entry.path)) {
            remove(&mut result, &entry.path);
        }
        result.insert(entry.path.clone(), node);
    }
    result
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "a-"]), 1..4)
        .prop_map(|names| names.join("/").into_bytes())
}

fn ops(numbers: std::ops::Range<u64>) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (path(), numbers).prop_map(|(path, number)| Op::Put(path, number)),
        6 => (path(), 0..3u8).prop_map(|(path, mode)| Op::Make(path, mode)),
        4 => path().prop_map(Op::Remove),
        2 => (path(), path()).prop_map(|(from, to)| Op::Link(from, to)),
        3 => (path(), path()).prop_map(|(from, to)| Op::Rename(from, to)),
    ];
    prop::collection::vec(op, 0..25)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    /// Three snapshots, each laid on the one before.
    #[test]
    fn layers_of_differences_make_the_tree(
        base in ops(0..9), one in ops(10..19), two in ops(20..29), three in ops(30..39),
    ) {
        let mut tree = Tree::from([(Vec::new(), Node::Directory(0))]);
        base.iter().for_each(|op| run(&mut tree, op));
        let base = tree.clone();
        one.iter().for_each(|op| run(&mut tree, op));
        let mut changes = changeset(&base, &tree, &|_| false);
        let mut laid = apply(&base, &changes.entries);
        prop_assert_eq!(&laid, &tree);
        for ops in [two, three] {
            let earlier = Earlier::of(&changes, |_| false);
            let before = tree.clone();
            ops.iter().for_each(|op| run(&mut tree, op));
            let now = changeset(&base, &tree, &|path| earlier.differs_below(path));
            match earlier.difference(&now) {
                Some(difference) => {
                    laid = apply(&laid, &difference.entries);
                    prop_assert_eq!(&laid, &tree);
                    if before == tree {
                        prop_assert_eq!(&difference.entries, &[]);
                    }
                    changes = now;
                }
                // A file that the base has came back to where it was: no overlay does that, and a whole layer is made.
                None => {
                    changes = changeset(&base, &tree, &|_| false);
                    laid = apply(&base, &changes.entries);
                    prop_assert_eq!(&laid, &tree);
                }
            }
        }
    }

    #[test]
    fn what_is_remembered_is_what_was(base in ops(0..9), one in ops(0..19), stale: u8) {
        let mut tree = Tree::from([(Vec::new(), Node::Directory(0))]);
        base.iter().for_each(|op| run(&mut tree, op));
        let base = tree.clone();
        one.iter().for_each(|op| run(&mut tree, op));
        let mut changes = changeset(&base, &tree, &|_| false);
        for (n, entry) in changes.entries.iter_mut().enumerate().filter(|(_, entry)| entry.kind == Kind::File) {
            if n % 3 == 0 {
                entry.xattrs.push((b"user.x".to_vec(), vec![1, 2]));
            }
        }
        let earlier = Earlier::of(&changes, |entry| entry.path.len() % 5 == usize::from(stale % 5));
        let mut packer = Packer::default();
        earlier.pack(&mut packer);
        let bytes = packer.into_bytes();
        let mut unpacker = Unpacker::new(&bytes);
        prop_assert_eq!(Earlier::unpack(&mut unpacker), Some(earlier));
        prop_assert!(unpacker.is_empty());
        for length in 0..bytes.len() {
            prop_assert_eq!(Earlier::unpack(&mut Unpacker::new(&bytes[..length])), None);
        }
    }
}

fn file(path: &str, ino: u64) -> Entry {
    Entry {
        kind: Kind::File,
        in_lower: false,
        metadata: Metadata { ino, ..Metadata::default() },
        ..Entry::whiteout(path.into())
    }
}

fn changes(entries: &[Entry]) -> Changes {
    let root = Entry { kind: Kind::Directory, ..Entry::whiteout(Vec::new()) };
    let entries = [&[root], entries].concat();
    Changes { entries, sockets: 0, mounts: vec![], vanished: vec![], dropped_xattrs: 0, roots: vec![] }
}

fn paths(changes: &Changes) -> Vec<&str> {
    changes.entries.iter().map(|entry| std::str::from_utf8(&entry.path).unwrap()).collect()
}

#[test]
fn a_stale_file_and_a_changed_one_are_written_with_all_their_names() {
    let link = Entry { kind: Kind::HardLink { to: b"b".to_vec() }, ..file("c", 2) };
    let all = changes(&[file("a", 1), file("b", 2), link, file("d", 3)]);
    let sure = Earlier::of(&all, |_| false);
    assert_eq!(paths(&sure.difference(&all).unwrap()), [""; 0]);
    let stale = Earlier::of(&all, |entry| entry.path == b"b");
    assert_eq!(paths(&stale.difference(&all).unwrap()), ["", "b", "c"]);
    for change in [
        |of: &mut Metadata| of.ctime.nanoseconds += 1,
        |of: &mut Metadata| of.size += 1,
        |of: &mut Metadata| of.mode += 1,
        |of: &mut Metadata| of.mtime.seconds -= 1,
        |of: &mut Metadata| of.ino += 1,
        |of: &mut Metadata| of.device.minor += 1,
    ] {
        let mut now = changes(&all.entries[1..]);
        change(&mut now.entries[4].metadata);
        assert_eq!(paths(&sure.difference(&now).unwrap()), ["", "d"]);
    }
    let mut now = changes(&all.entries[1..]);
    now.entries[1].metadata.blocks += 8;
    assert_eq!(paths(&sure.difference(&now).unwrap()), [""; 0], "blocks are allocated when the kernel writes back");
    now.entries[1].xattrs.push((b"user.a".to_vec(), b"1".to_vec()));
    assert_eq!(paths(&sure.difference(&now).unwrap()), ["", "a"]);
}

#[test]
fn what_the_base_has_again_cannot_be_told() {
    let deleted = changes(&[Entry::whiteout(b"etc".to_vec())]);
    assert!(Earlier::of(&deleted, |_| false).difference(&changes(&[])).is_none());
    let changed = changes(&[Entry { in_lower: true, ..file("etc", 1) }]);
    assert!(Earlier::of(&changed, |_| false).difference(&changes(&[])).is_none());
}
