use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use crate::engine::storage::{Store, big_data_file, parse_storage_conf};

#[test]
fn storage_conf_as_distributions_write_it() {
    let text = r#"
        # graphroot = "/commented"
        graphroot = "/of no table"
        [storage]
        driver = "overlay"
        runroot = "/run/containers/storage" # a comment
        graphroot='/srv/containers = #1'
        rootless_storage_path = "$HOME/x"
        [storage.options]
        graphroot = "/of another table"
        additionalimagestores = [
        ]
    "#;
    let expected = (Some("/srv/containers = #1".into()), Some("/run/containers/storage".into()));
    assert_eq!(parse_storage_conf(text), expected);
    for text in [
        "",
        "[storage]\ngraphroot = 7",
        "[storage]\ngraphroot = \"open",
        "[storage]\ngraphroot = \"relative\"",
        "[",
        "=",
    ] {
        assert_eq!(parse_storage_conf(text), (None, None), "{text:?}");
    }
}

#[test]
fn big_data_has_the_name_that_the_library_gives_it() {
    assert_eq!(big_data_file("manifest"), "manifest");
    // As podman 5.4.2 wrote it.
    let key = "sha256:06b49d002a601aefa805a551e52141361694167971409428aa5e7b5b13e5a148";
    let file = "=c2hhMjU2OjA2YjQ5ZDAwMmE2MDFhZWZhODA1YTU1MWU1MjE0MTM2MTY5NDE2Nzk3MTQwOTQyOGFhNWU3YjViMTNlNWExNDg=";
    assert_eq!(big_data_file(key), file);
}

#[test]
fn lower_layers_come_from_short_links_of_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let store = Store { graph_root: root.to_owned(), run_root: root.join("run") };
    fs::create_dir_all(root.join("overlay/l")).unwrap();
    fs::create_dir_all(root.join("overlay/top")).unwrap();
    for (link, target) in
        [("A", "../aaa/diff"), ("B", "../bbb/diff"), ("E", "/etc"), ("U", "../../../etc"), ("D", "../../diff")]
    {
        symlink(target, root.join("overlay/l").join(link)).unwrap();
    }
    let lower = |text: &str| {
        fs::write(root.join("overlay/top/lower"), text).unwrap();
        store.lower("top").map_err(|error| error.to_string())
    };
    let diff = |layer: &str| root.join("overlay").join(layer).join("diff");
    assert_eq!(lower("l/A:l/B\n").unwrap(), [diff("aaa"), diff("bbb")]);
    assert!(lower("").unwrap().is_empty());
    for text in ["l/E", "l/U", "l/D", "l/missing", "/etc", "../aaa", "l/../aaa", "l/A:/etc", "l", "l/.", "\u{0}"] {
        let error = lower(text).unwrap_err();
        assert!(error.contains("lower"), "{error}");
    }
    assert!(fs::write(root.join("overlay/top/lower"), b"l/\xff").is_ok());
    assert!(store.lower("top").is_err());
    assert!(store.lower("bottom").unwrap().is_empty());
    assert_eq!(store.layer("top"), root.join(Path::new("overlay/top")));
}
