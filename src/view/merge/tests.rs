use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::view::layer::tests::{layer, shown};

fn merged(layers: &[&[&str]]) -> Result<Vec<String>, String> {
    let trees: Vec<Tree> = layers.iter().map(|lines| layer(lines).unwrap()).collect();
    merge(&trees.iter().collect::<Vec<_>>()).map(|tree| shown(&tree))
}

#[test]
fn an_upper_layer_wins_and_directories_are_one() {
    assert_eq!(merged(&[&["d a", "f a/x"], &["f a/y", "p a/x"]]).unwrap(), ["d a", "p a/x", "f a/y"]);
    assert_eq!(merged(&[&["d a", "f a/x"], &["f a"]]).unwrap(), ["f a"]);
    assert_eq!(merged(&[&["f a"], &["d a", "f a/x"]]).unwrap(), ["d a", "f a/x"]);
    // What is below a file is not below what replaces the file again.
    assert_eq!(merged(&[&["d a", "f a/x"], &["f a"], &["d a"]]).unwrap(), ["d a"]);
    assert!(merged(&[]).unwrap().is_empty());
}

#[test]
fn whiteouts_hide_what_is_below_them_alone() {
    assert_eq!(merged(&[&["d a", "f a/x", "f b"], &["f .wh.a"]]).unwrap(), ["f b"]);
    assert_eq!(merged(&[&["d a", "f a/x"], &["f .wh.a", "f a/y"]]).unwrap(), ["d a", "f a/y"]);
    assert_eq!(merged(&[&["f x"], &["f .wh.x"], &["f x"]]).unwrap(), ["f x"]);
    assert_eq!(merged(&[&["f x"], &["f x", "f .wh.x"]]).unwrap(), ["f x"]);
    assert_eq!(merged(&[&["f d/x"], &["f d/.wh..wh..opq", "f d/y"]]).unwrap(), ["d d", "f d/y"]);
    assert_eq!(merged(&[&["f x"], &["f .wh..wh..opq", "f y"]]).unwrap(), ["f y"]);
    assert_eq!(merged(&[&["f d/e/x"], &["f d/.wh..wh..opq", "d d/e"]]).unwrap(), ["d d", "d d/e"]);
    assert_eq!(merged(&[&["f .wh.nothing"]]).unwrap(), [""; 0]);
}

#[test]
fn a_path_through_a_link_of_a_lower_layer_makes_a_directory() {
    // As podman and containerd do, who unpack each layer by itself.
    assert_eq!(merged(&[&["d run", "l var /run"], &["f var/x"]]).unwrap(), ["d run", "d var", "f var/x"]);
}

#[test]
fn what_a_layer_replaced_itself_hides_nothing_below() {
    // podman and containerd find the directory alone in the unpacked layer.
    assert_eq!(merged(&[&["d b", "f b/a"], &["f b", "d b"]]).unwrap(), ["d b", "f b/a"]);
}

#[test]
fn an_implied_directory_keeps_the_attributes_below() {
    let [lower, upper] = [&["d a"][..], &["f a/x"]].map(|lines| layer(lines).unwrap());
    let tree = merge(&[&lower, &upper]).unwrap();
    assert_eq!(tree.inode(tree.resolve(b"a").unwrap()).unwrap().mode, 0o640);
}

#[test]
fn a_hard_link_to_a_lower_layers_file_is_a_name_of_it() {
    assert_eq!(merged(&[&["f a"], &["h b a"]]).unwrap(), ["f2 a", "f2 b"]);
    assert_eq!(merged(&[&["f a"], &["h b a", "p a"]]).unwrap(), ["p a", "f b"]);
    assert_eq!(
        merged(&[&["d d", "f d/a", "l s /d"], &["h b s/a"], &["h c b", "f .wh.d"]]).unwrap(),
        ["f2 b", "f2 c", "l s"]
    );
    for lower in [&["d a"][..], &["f c"], &["f a", "f .wh.a"]] {
        let refused = merged(&[&["f x"], lower, &["f .wh.a"], &["h b a"]]);
        assert!(refused.unwrap_err().contains("hard link"), "{lower:?}");
    }
}

type Paths = BTreeMap<String, char>;

fn remove(paths: &mut Paths, path: &str, itself: bool) {
    let below = format!("{path}/");
    paths.retain(|known, _| !(known.starts_with(&below) || (itself && known == path)));
}

/// Put `kind` at a path, in place of what is no directory if it is one, and of all else if it is not.
fn put(paths: &mut Paths, path: &str, kind: char) {
    if kind != 'd' || paths.get(path).is_some_and(|there| *there != 'd') {
        remove(paths, path, true);
    }
    paths.insert(path.to_owned(), kind);
}

/// The directory of a path, with the slash behind it.
fn parent(path: &str) -> String {
    path.rfind('/').map_or(String::new(), |at| path[..=at].to_owned())
}

/// The stupid oracle: a map of paths. Each layer is unpacked by itself, its later lines over its earlier ones; then what
/// its whiteouts tell is done to the layers below, and what it holds is put over them.
fn oracle(layers: &[Vec<(char, Vec<&'static str>)>]) -> Paths {
    let mut all = Paths::new();
    for lines in layers {
        let mut own = Paths::new();
        for (kind, names) in lines {
            let directories = names.len() + usize::from(matches!(kind, 'd' | 'o'));
            (1..directories).for_each(|length| put(&mut own, &names[..length].join("/"), 'd'));
            let path = names.join("/");
            match kind {
                'f' | 'p' => put(&mut own, &path, *kind),
                // A name that no other line has, so that it is gone with its directory: a zero byte is in none.
                'w' | 'o' => put(
                    &mut own,
                    &format!("{}\0{path}", if *kind == 'o' { format!("{path}/") } else { parent(&path) }),
                    *kind,
                ),
                _ => {}
            }
        }
        for (path, kind) in &own {
            if let Some((_, hidden)) = path.split_once('\0') {
                remove(&mut all, hidden, *kind == 'w');
            }
        }
        own.iter().filter(|(path, _)| !path.contains('\0')).for_each(|(path, kind)| put(&mut all, path, *kind));
    }
    all
}

fn line() -> impl Strategy<Value = (char, Vec<&'static str>)> {
    let name = prop::sample::select(vec!["a", "b", "c"]);
    (prop::sample::select(vec!['d', 'f', 'p', 'w', 'o']), prop::collection::vec(name, 1..4))
}

proptest! {
    #[test]
    fn merging_is_what_the_specification_tells(layers in prop::collection::vec(prop::collection::vec(line(), 0..8), 0..4)) {
        // A layer of which a path goes through one of its own files is refused, and is no input.
        let trees: Result<Vec<Tree>, String> = layers.iter().map(|lines| {
            let lines: Vec<String> = lines.iter().map(|(kind, names)| {
                let (last, parents) = names.split_last().unwrap();
                let dir: String = parents.iter().map(|name| format!("{name}/")).collect();
                match kind {
                    'w' => format!("f {dir}.wh.{last}"),
                    'o' => format!("f {dir}{last}/.wh..wh..opq"),
                    kind => format!("{kind} {dir}{last}"),
                }
            }).collect();
            layer(&lines.iter().map(String::as_str).collect::<Vec<_>>())
        }).collect();
        let Ok(trees) = trees else { return Ok(()) };
        let tree = merge(&trees.iter().collect::<Vec<_>>()).unwrap();
        let found: BTreeMap<String, char> = shown(&tree).into_iter().map(|line| {
            let (kind, path) = line.split_once(' ').unwrap();
            (path.to_owned(), kind.chars().next().unwrap())
        }).collect();
        prop_assert_eq!(found, oracle(&layers));
    }
}
