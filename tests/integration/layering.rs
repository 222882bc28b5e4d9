//! The import table of docs/architecture.md against src/: imports point down and never to a peer.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Module → what it may import, from the table in docs/architecture.md.
fn table() -> BTreeMap<String, Vec<String>> {
    let text = fs::read_to_string(root().join("docs/architecture.md")).expect("docs/architecture.md");
    let rows = text.lines().filter(|line| line.starts_with("| `"));
    let words = |cell: &str| -> Vec<String> { cell.split('`').skip(1).step_by(2).map(str::to_owned).collect() };
    let mut table = BTreeMap::new();
    for row in rows {
        let cells: Vec<&str> = row.split('|').collect();
        assert!(cells.len() >= 4, "a row of the import table has three columns: {row}");
        for module in words(cells[1]) {
            assert!(table.insert(module.clone(), words(cells[2])).is_none(), "{module} has two rows");
        }
    }
    table
}

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn sources(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The top-level module of a file below src/.
fn module(path: &Path) -> String {
    let inside = path.strip_prefix(root().join("src")).unwrap();
    let first = inside.components().next().unwrap().as_os_str().to_str().unwrap();
    first.trim_end_matches(".rs").to_owned()
}

/// The modules that a file imports: `crate::MODULE` and the members of `use crate::{…}`.
fn imports(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let names: Vec<&str> = match rest.strip_prefix('{') {
            Some(list) => list.split('}').next().unwrap_or_default().split(',').map(str::trim).collect(),
            None => vec![rest],
        };
        for name in names {
            let end = name.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(name.len());
            found.push(name[..end].to_owned());
        }
    }
    found
}

#[test]
fn imports_point_down_and_never_to_a_peer() {
    let table = table();
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    assert!(files.len() > 40, "only {} sources found", files.len());
    let mut wrong = Vec::new();
    for path in files {
        let module = module(&path);
        if module == "lib" || module == "main" {
            continue;
        }
        let allowed = table.get(&module).unwrap_or_else(|| panic!("{module} has no row in docs/architecture.md"));
        let text = fs::read_to_string(&path).unwrap();
        for import in imports(&text) {
            if import != module && !allowed.contains(&import) {
                wrong.push(format!("{}: crate::{import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "imports that the table forbids:\n{}", wrong.join("\n"));
}

#[test]
fn every_row_of_the_table_is_a_module_and_every_import_points_to_an_earlier_row() {
    let text = fs::read_to_string(root().join("docs/architecture.md")).unwrap();
    let table = table();
    let rows: Vec<&str> = text.lines().filter(|line| line.starts_with("| `")).collect();
    let order = |name: &str| {
        let first_cell = |row: &&str| row.split('|').nth(1).is_some_and(|cell| cell.contains(&format!("`{name}`")));
        rows.iter().position(first_cell)
    };
    for (module, imports) in &table {
        let file = root().join("src").join(format!("{module}.rs"));
        assert!(file.exists(), "{module} is in the table and not in src/");
        for import in imports {
            assert!(table.contains_key(import), "{module} may import {import}, which has no row");
            assert!(order(import) < order(module), "{module} may import {import}, which stands above it");
        }
    }
}

#[test]
fn only_their_room_names_the_outside_world() {
    let owners: &[(&str, &[&str])] = &[
        ("fuser::", &["fuse"]),
        ("nix::", &["sys"]),
        ("rustix::", &["sys"]),
        ("libc::", &["sys"]),
        ("zstd::", &["image", "view"]),
        ("::tar::", &["changeset"]),
        ("clap::", &["cli"]),
        ("anyhow::", &["main"]),
    ];
    let mut files = Vec::new();
    sources(&root().join("src"), &mut files);
    let mut wrong = Vec::new();
    for path in files {
        let (module, text) = (module(&path), fs::read_to_string(&path).unwrap());
        for line in text.lines().filter(|line| !line.trim_start().starts_with("//")) {
            for (name, rooms) in owners {
                let named = line
                    .match_indices(name)
                    .any(|(at, _)| !line[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':'));
                if named && !rooms.contains(&module.as_str()) {
                    wrong.push(format!("{}: {}", path.display(), line.trim()));
                }
            }
            if module != "sys" && line.contains("unsafe ") && !line.contains("unsafe_code") {
                wrong.push(format!("{}: unsafe outside sys: {}", path.display(), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "named outside their room:\n{}", wrong.join("\n"));
}

#[test]
fn every_file_says_what_it_is_and_fits_a_screenful_of_screens() {
    let mut files = Vec::new();
    for directory in ["src", "tests", "mount-helper"] {
        sources(&root().join(directory), &mut files);
    }
    let mut wrong = Vec::new();
    for path in files {
        let text = fs::read_to_string(&path).unwrap();
        if !text.starts_with("//!") && !path.ends_with("tests.rs") {
            wrong.push(format!("{}: does not begin with //!", path.display()));
        }
        if text.lines().count() > 600 {
            wrong.push(format!("{}: {} lines", path.display(), text.lines().count()));
        }
        if text.contains(concat!("super::", "super")) {
            wrong.push(format!("{}: reaches past its parent", path.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
