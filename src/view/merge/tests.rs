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

/// The stupid oracle: a map of paths that each layer's lines are applied to, as `layer.md` tells it.
fn oracle(layers: &[Vec<(char, Vec<&'static str>)>]) -> BTreeMap<String, char> {
    let mut all: BTreeMap<String, char> = BTreeMap::new();
    let remove = |all: &mut BTreeMap<String, char>, path: &str, itself: bool| {
        let below = format!("{path}/");
        all.retain(|known, _| !(known.starts_with(&below) || (itself && known == path)));
    };
    for lines in layers {
        // Whiteouts are for what is below, so they come first.
        for (kind, names) in lines {
            let path = names.join("/");
            match kind {
                'w' => remove(&mut all, &path, true),
                'o' => remove(&mut all, &path, false),
                _ => {}
            }
        }
        for (kind, names) in lines {
            for length in 1..names.len() + usize::from(matches!(kind, 'd' | 'o')) {
                let parent = names[..length].join("/");
                if all.get(&parent).is_some_and(|kind| *kind != 'd') {
                    remove(&mut all, &parent, true);
                }
                all.insert(parent, 'd');
            }
            if matches!(kind, 'w') {
                continue;
            }
            let path = names.join("/");
            if matches!(kind, 'f' | 'p') {
                remove(&mut all, &path, true);
                all.insert(path, *kind);
            }
        }
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
