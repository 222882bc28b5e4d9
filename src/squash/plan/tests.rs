use std::collections::{BTreeMap, HashMap};

use super::*;
use crate::view::{Inode, merge};

/// A layer's tree of paths in order: `d/` is a directory, `.wh.` a whiteout, `a=b` one more name of `b`, all else a file.
fn tree(paths: &[&str]) -> Tree {
    let mut tree = Tree::default();
    tree.inodes.push(Inode { implied: paths.first() != Some(&"/"), ..Inode::implied_directory() });
    let mut numbers: HashMap<String, u32> = HashMap::from([(String::new(), 0)]);
    let mut children: BTreeMap<u32, Vec<(String, u32)>> = BTreeMap::new();
    for (at, path) in paths.iter().enumerate().filter(|(_, path)| **path != "/") {
        let (path, same) = path.split_once('=').map_or((*path, None), |(path, same)| (path, Some(same)));
        let is_directory = path.ends_with('/');
        let path = path.trim_end_matches('/');
        let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
        let number = match same {
            Some(same) => numbers[same],
            None => {
                let kind = match (is_directory, name.starts_with(".wh.")) {
                    (true, _) => Kind::Directory,
                    (_, true) => Kind::Whiteout,
                    _ => Kind::File,
                };
                // Contents in the reverse order of names, so that the two can be told apart.
                let place = 512 * (1000 - at as u64);
                tree.inodes.push(Inode { kind, place, implied: false, nlink: 1, ..Inode::implied_directory() });
                u32::try_from(tree.inodes.len() - 1).unwrap()
            }
        };
        numbers.insert(path.to_owned(), number);
        children.entry(numbers[parent]).or_default().push((name.to_owned(), number));
    }
    for (directory, mut names) in children {
        names.sort();
        let directory = directory as usize;
        (tree.inodes[directory].place, tree.inodes[directory].names) = (tree.names.len() as u64, names.len() as u32);
        for (name, inode) in names {
            let span = tree.add_text(name.as_bytes()).unwrap();
            let length = u16::try_from(span.length).unwrap();
            tree.names.push(crate::view::Name { inode, at: span.at, length });
        }
    }
    tree
}

/// The plan in words: what comes early, the files of each layer, the rest. Files have names in `own` in their headers.
fn plan(layers: &[&[&str]], below: usize) -> String {
    let trees: Vec<Tree> = layers.iter().map(|paths| tree(paths)).collect();
    let trees: Vec<&Tree> = trees.iter().collect();
    let (all, base) = (merge(&trees).unwrap(), (below > 0).then(|| merge(&trees[..below]).unwrap()));
    let is_named = |_, _, path: &[u8]| path.ends_with(b"own");
    let plan = Plan::of(&all, base.as_ref(), trees.len(), &is_named).unwrap();
    let word = |node: &Node| {
        let path = String::from_utf8(node.path.to_vec()).unwrap();
        match &node.what {
            What::Whiteout => format!("-{path}"),
            What::Link(_, to) => format!("{path}={}", String::from_utf8(to.to_vec()).unwrap()),
            What::Inode(inode) if all.inode(*inode).unwrap().kind == Kind::Directory => format!("{path}/"),
            What::Inode(_) => path,
        }
    };
    let words = |nodes: &[Node]| nodes.iter().map(word).collect::<Vec<_>>().join(" ");
    let files: Vec<String> = plan.files.iter().map(|files| words(files)).collect();
    assert_eq!(plan.is_empty(), plan == Plan { files: vec![Vec::new(); layers.len()], ..Plan::default() });
    format!("{}|{}|{}", words(&plan.early), files.join(" ; "), words(&plan.rest))
}

#[test]
fn all_layers_become_one_without_whiteouts() {
    let layers: &[&[&str]] =
        &[&["/", "d/", "d/a", "d/b", "e/", "e/x"], &["/", "d/", "d/.wh.b", "d/c"], &["/", ".wh.e", "d/", "d/a"]];
    assert_eq!(plan(layers, 0), "| ; d/c ; d/a|/ d/");
}

#[test]
fn snapshots_keep_the_whiteouts_of_what_is_below_them() {
    let base: &[&str] = &["/", "d/", "d/a", "d/b", "d/k"];
    // What one snapshot added and the next deleted leaves nothing; what both had is the upper one's.
    let one: &[&str] = &["/", "d/", "d/.wh.a", "d/new", "d/both"];
    let two: &[&str] = &["/", "d/", "d/.wh.b", "d/.wh.new", "d/both"];
    assert_eq!(plan(&[base, one, two], 1), "| ;  ; d/both|/ d/ -d/a -d/b");
    // A directory that was deleted and made again hides what the one below has.
    let again: &[&str] = &["/", "d/", "d/x"];
    assert_eq!(plan(&[base, &["/", ".wh.d"], again], 1), "| ;  ; d/x|/ d/ -d/a -d/b -d/k");
    assert_eq!(plan(&[base, &["/", ".wh.d"], &["/"]], 1), "| ;  ; |/ -d");
    // Directories above what goes are told of, others are not.
    let deep: &[&str] = &["/", "p/", "p/q/", "p/q/f", "p/r/", "p/r/g"];
    assert_eq!(plan(&[deep, &["p/", "p/q/", "p/q/.wh.f"]], 1), "| ; |/ p/ p/q/ -p/q/f");
}

#[test]
fn nothing_changed_is_nothing() {
    let base: &[&str] = &["/", "d/", "d/a"];
    assert_eq!(plan(&[base, &[]], 1), "| ; |");
}

#[test]
fn a_directory_in_the_place_of_a_file_comes_before_what_is_in_it() {
    let base: &[&str] = &["/", "f", "g/", "g/in"];
    let one: &[&str] = &["/", "f/", "f/s/", "f/s/x", "f/y"];
    let two: &[&str] = &["/", "f/", "f/y"];
    assert_eq!(plan(&[base, one, two], 1), "f/ f/s/| ; f/s/x ; f/y|/");
    // The other way round.
    assert_eq!(plan(&[base, &["/", "g"]], 1), "| ; g|/");
    // All in one layer, nothing is in its place.
    assert_eq!(plan(&[base, one, two], 0), "|g/in ; f/s/x ; f/y|/ f/ f/s/ g/");
}

#[test]
fn names_of_one_file_stay_together_and_files_come_as_they_lie() {
    let base: &[&str] = &["/", "a", "b=a", "c"];
    // One name is new: all are written, in the layer of whose file they are.
    let links: &[&str] = &["/", "m", "n=m", "zown=m"];
    assert_eq!(plan(&[base, links], 1), "| ; zown|/ m=zown n=zown");
    assert_eq!(plan(&[base, links, &["/", ".wh.zown"]], 1), "| ; m ; |/ n=m");
    // The base image's own stay below.
    assert_eq!(plan(&[base, &["/", "c"]], 1), "| ; c|/");
    // In the order of their contents, which is here that of the names from behind.
    assert_eq!(plan(&[&["/", "a", "b", "c"]], 0), "|c b a|/");
}
