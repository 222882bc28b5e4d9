use super::*;

/// An entry of the kind that its `flag` tells: `d` directory, `f` file, `l` symbolic and `h` hard link, `p` FIFO.
pub(crate) fn entry(flag: char, path: &str, target: &str) -> Entry {
    let kind = match flag {
        'd' => Type::Directory,
        'f' => Type::File,
        'l' => Type::Symlink,
        'h' => Type::HardLink,
        'p' => Type::Fifo,
        _ => panic!("{flag} is no type"),
    };
    Entry {
        start: None,
        kind,
        path: path.into(),
        target: target.into(),
        mode: 0o640,
        uid: 0,
        gid: 0,
        mtime: (7, 0),
        size: if flag == 'f' { path.len() as u64 } else { 0 },
        offset: path.len() as u64 * 512,
        device: (0, 0),
        xattrs: Vec::new(),
    }
}

/// The tree of a layer, from lines `FLAG PATH [TARGET]`.
pub(crate) fn layer(lines: &[&str]) -> Result<Tree, String> {
    let mut builder = Builder::new();
    for line in lines {
        let mut words = line.split(' ');
        let (flag, path, target) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap_or_default());
        builder.add(&entry(flag.chars().next().unwrap(), path, target))?;
    }
    builder.finish()
}

/// `KIND PATH` of every name, in order; hard links with their count.
pub(crate) fn shown(tree: &Tree) -> Vec<String> {
    let walk = tree.walk().map(|(path, inode)| {
        let found = tree.inode(inode).unwrap();
        let kind = match found.kind {
            Kind::Directory => "d",
            Kind::File => "f",
            Kind::Symlink => "l",
            Kind::Fifo => "p",
            Kind::Link => "h",
            Kind::Whiteout => "w",
            Kind::Opaque => "o",
            Kind::CharDevice | Kind::BlockDevice => "c",
        };
        let links = if kind != "d" && found.nlink > 1 { found.nlink.to_string() } else { String::new() };
        format!("{kind}{links} {}", String::from_utf8(path).unwrap())
    });
    walk.collect()
}

fn made(lines: &[&str]) -> Vec<String> {
    shown(&layer(lines).unwrap())
}

#[test]
fn missing_directories_are_made_and_told_apart() {
    let tree = layer(&["f a/b/c", "d a"]).unwrap();
    assert_eq!(shown(&tree), ["d a", "d a/b", "f a/b/c"]);
    let inode = |path: &[u8]| *tree.inode(tree.resolve(path).unwrap()).unwrap();
    assert!(!inode(b"a").implied && inode(b"a/b").implied && inode(b"").implied);
    assert_eq!((inode(b"a").mode, inode(b"a/b").mode, inode(b"a").nlink), (0o640, 0o755, 3));
}

#[test]
fn paths_are_cleaned_as_go_cleans_them() {
    assert_eq!(made(&["f /etc//./x", "f a/../b", "f /../c"]), ["f b", "f c", "d etc", "f etc/x"]);
    for path in ["f ../x", "f a/../../x", "f .."] {
        assert!(layer(&[path]).unwrap_err().contains("leads out"), "{path}");
    }
    assert!(layer(&["f ."]).unwrap_err().contains("root"));
    assert!(made(&["d ./"]).is_empty());
}

#[test]
fn a_later_entry_replaces_an_earlier_one() {
    assert_eq!(made(&["d a", "f a/x", "f a"]), ["f a"]);
    assert_eq!(made(&["f a", "d a", "f a/x"]), ["d a", "f a/x"]);
    assert_eq!(made(&["d a", "f a/x", "d a"]), ["d a", "f a/x"]);
    assert_eq!(made(&["d a", "f a/x", "f a", "d a"]), ["d a"]);
}

#[test]
fn paths_go_through_the_layers_own_links_and_stay_in_it() {
    assert_eq!(made(&["d run", "l var/run /run", "f var/run/x"]), ["d run", "f run/x", "d var", "l var/run"]);
    assert_eq!(made(&["l up ../../..", "f up/x"]), ["l up", "f x"]);
    assert_eq!(made(&["l d sub", "f d/x"]), ["l d", "d sub", "f sub/x"]);
    assert!(layer(&["l a b", "l b a", "f a/x"]).unwrap_err().contains("too many"));
    assert!(layer(&["f a", "f a/x"]).unwrap_err().contains("no directory"));
    // The last name is never followed.
    assert_eq!(made(&["l a /etc/passwd", "f a"]), ["f a"]);
    assert_eq!(made(&["l a /etc", "d a", "f a/x"]), ["d a", "f a/x"]);
}

#[test]
fn hard_links_share_their_inode() {
    assert_eq!(made(&["f a", "h b a", "h c/d /b"]), ["f3 a", "f3 b", "d c", "f3 c/d"]);
    // What the link was made to stays, whatever takes its first name.
    let tree = layer(&["f a", "h b a", "p a"]).unwrap();
    assert_eq!(shown(&tree), ["p a", "f b"]);
    assert_eq!(shown(&layer(&["h b elsewhere/a"]).unwrap()), ["h b"]);
    assert!(layer(&["d a", "h b a"]).unwrap_err().contains("directory"));
    assert!(layer(&["h b ../../etc/shadow"]).unwrap_err().contains("leads out"));
    assert_eq!(made(&["l a /etc/shadow", "h b a"]), ["l2 a", "l2 b"]);
}

#[test]
fn whiteouts_are_kept_and_tricks_with_them_are_refused() {
    let tree =
        layer(&["f d/.wh..wh..opq", "f .wh.gone", "f .wh..wh.plnk", "f .wh..wh.aufs/x", "d e", "f .wh.e"]).unwrap();
    assert_eq!(shown(&tree), ["w .wh.e", "w .wh.gone", "d d", "o d/.wh..wh..opq", "d e"]);
    let inode = |path: &[u8]| *tree.inode(tree.resolve(path).unwrap()).unwrap();
    assert!(inode(b"d").opaque && inode(b"e").opaque && !inode(b"").opaque);
    for line in ["f .wh.", "f .wh..", "f .wh...", "f a/.wh.x/y", "d .wh./x"] {
        assert!(layer(&[line]).is_err(), "{line}");
    }
}

#[test]
fn names_that_a_listing_cannot_hold_are_refused() {
    let long = "x".repeat(256);
    assert!(layer(&[&format!("f {long}")]).is_err());
    assert!(layer(&[&format!("f {long}/y")]).is_err());
    assert!(layer(&[&format!("f .wh.{long}")]).is_err());
    assert!(layer(&[&format!("f .wh.{}", &long[1..])]).is_ok());
    assert!(layer(&[&format!("l a {}", "x".repeat(4096))]).is_err());
}

#[test]
fn ten_thousand_levels_are_walked_without_recursion() {
    let path = format!("f {}x", "d/".repeat(10_000));
    let tree = layer(&[&path]).unwrap();
    assert_eq!(tree.walk().count(), 10_001);
}

#[test]
fn many_names_of_one_file_are_one_inode() {
    let lines: Vec<String> =
        std::iter::once("f 0".to_owned()).chain((1..5000).map(|n| format!("h {n} {}", n - 1))).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let tree = layer(&lines).unwrap();
    assert_eq!((tree.len(), tree.inode(1).unwrap().nlink), (2, 5000));
}
