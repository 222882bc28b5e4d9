//! docs/interface.md against the tables in the code.

use std::fs;
use std::path::PathBuf;

use snapfs::tree::{ContainerFile, ImageFile, JobFile, LayerFile, RootFile};
use snapfs::{checkpoint, commit, restore};

/// The tables of the code, as docs/interface.md shows them.
fn tables() -> String {
    let mut text = String::new();
    let mut section = |title: &str, rows: Vec<(&str, &str)>| {
        text.push_str(&format!("### `{title}`\n\n| file | what it is |\n|---|---|\n"));
        for (name, what) in rows {
            text.push_str(&format!("| `{name}` | {} |\n", what.replace('|', "\\|")));
        }
        text.push('\n');
    };
    section("/snap/", RootFile::TABLE.iter().map(|row| (row.1, row.2)).collect());
    section("containers/NAME/", ContainerFile::TABLE.iter().map(|row| (row.1, row.2)).collect());
    section("images/NAME/", ImageFile::TABLE.iter().map(|row| (row.1, row.2)).collect());
    section("images/NAME/layers/N/", LayerFile::TABLE.iter().map(|row| (row.1, row.2)).collect());
    section("jobs/N/", JobFile::TABLE.iter().map(|row| (row.1, row.2)).collect());
    for (verb, options) in
        [("commit", commit::OPTIONS), ("checkpoint", checkpoint::OPTIONS), ("restore", restore::OPTIONS)]
    {
        text.push_str(&format!("### Options of `{verb}`\n\n| option | meaning |\n|---|---|\n"));
        for (name, values, what) in options {
            text.push_str(&format!("| `{name}{}` | {} |\n", values.replace('|', "\\|"), what.replace('|', "\\|")));
        }
        text.push('\n');
    }
    text
}

#[test]
fn the_interface_is_described_as_it_is() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("docs/interface.md");
    let text = fs::read_to_string(path).unwrap();
    let (begin, end) = ("<!-- tables: begin -->\n", "<!-- tables: end -->");
    let shown = text.split(begin).nth(1).and_then(|rest| rest.split(end).next()).expect("the markers");
    assert_eq!(
        shown.trim(),
        tables().trim(),
        "docs/interface.md is not what the code says; it should hold:\n{}",
        tables()
    );
}
