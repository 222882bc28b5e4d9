use std::ffi::OsStr;
use std::fs;
use std::io::{Cursor, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::engine::tar_split::{TarSplit, relative};
use crate::sys::inside::Inside;

/// The textbook's way, a bit at a time.
fn slow_crc64(bytes: &[u8]) -> u64 {
    let register = bytes.iter().fold(!0u64, |register, byte| {
        (0..8)
            .fold(register ^ u64::from(*byte), |r, _| if r & 1 == 1 { r >> 1 ^ 0xD800_0000_0000_0000 } else { r >> 1 })
    });
    !register
}

fn file(name: &str, content: &[u8]) -> String {
    let sum = STANDARD.encode(slow_crc64(content).to_be_bytes());
    format!("{{\"type\":1,\"name\":{name:?},\"size\":{},\"payload\":\"{sum}\",\"position\":0}}\n", content.len())
}

fn raw(bytes: &[u8]) -> String {
    format!("{{\"type\":2,\"payload\":\"{}\",\"position\":0}}\n", STANDARD.encode(bytes))
}

fn assemble(directory: &Path, list: &str) -> Result<Vec<u8>, String> {
    let mut tar = TarSplit::new("the-layer", Cursor::new(list.as_bytes()), Inside::open(directory).unwrap());
    let mut bytes = Vec::new();
    // Small reads, so that parts end in the middle of one.
    loop {
        let mut buffer = [0; 7];
        match tar.read(&mut buffer) {
            Ok(0) => return Ok(bytes),
            Ok(count) => bytes.extend_from_slice(&buffer[..count]),
            Err(error) => {
                assert_eq!(tar.read(&mut buffer).unwrap(), 0, "nothing comes after an error");
                return Err(error.to_string());
            }
        }
    }
}

#[test]
fn parts_become_the_tar() {
    let layer = tempfile::tempdir().unwrap();
    fs::create_dir(layer.path().join("dir")).unwrap();
    fs::write(layer.path().join("dir/file"), "the content of a file").unwrap();
    let empty = "{\"type\":1,\"name\":\"dir/\",\"payload\":null,\"position\":1}\n";
    for name in ["dir/file", "./dir/file", "/dir/file"] {
        let list = [&raw(b"header, "), empty, &raw(b""), &file(name, b"the content of a file"), &raw(b", the end")];
        assert_eq!(assemble(layer.path(), &list.concat()).unwrap(), b"header, the content of a file, the end");
    }
    let name = b"not UTF-8 \xe9";
    fs::write(layer.path().join(OsStr::from_bytes(name)), "x").unwrap();
    let named_raw = file("", b"x").replace(r#""name":"""#, &format!(r#""name_raw":"{}""#, STANDARD.encode(name)));
    assert_eq!(assemble(layer.path(), &named_raw).unwrap(), b"x");
    assert_eq!(assemble(layer.path(), "").unwrap(), b"");
}

#[test]
fn what_is_not_as_it_was_is_an_error() {
    let outside = tempfile::tempdir().unwrap();
    let layer = outside.path().join("layer");
    fs::create_dir_all(layer.join("dir")).unwrap();
    for path in [outside.path().join("outside"), layer.join("file")] {
        fs::write(path, "12345678").unwrap();
    }
    std::os::unix::fs::symlink("file", layer.join("link")).unwrap();
    let table = [
        (file("file", b"1234567"), "became longer"),
        (file("file", b"123456789"), "1 bytes are missing"),
        (file("file", b"1234567x"), "another one"),
        (file("gone", b"12345678"), "No such file"),
        (file("dir", b"12345678"), "not a regular file"),
        (file("link", b"12345678"), "not a regular file"),
        (file("../outside", b"12345678"), "not the name of a file"),
        (file("/", b"12345678"), "not the name of a file"),
        (file("file", b"12345678").replace("\"file\"", "\"file\\u0000\""), "not the name of a file"),
        (file("file", b"12345678").replace("\"size\":8", "\"size\":-8"), "negative"),
        ("{\"type\":1,\"name\":\"file\",\"size\":8,\"payload\":\"AAAA\"}\n".to_owned(), "no CRC-64"),
        ("{\"type\":1,\"name\":\"file\",\"size\":8}\n".to_owned(), "no CRC-64"),
        ("{\"type\":3,\"payload\":\"\"}\n".to_owned(), "unknown type 3"),
        ("{\"type\":2,\"payload\":\"&\"}\n".to_owned(), "not base64"),
        ("not json\n".to_owned(), "expected"),
    ];
    for (list, reason) in table {
        let error = assemble(&layer, &list).unwrap_err();
        assert!(error.contains("the-layer"), "{error}");
        assert!(error.contains(reason), "{list}: {error}");
    }
}

#[test]
fn names_are_below_the_layer() {
    let table: [(&[u8], Option<&str>); 8] = [
        (b"a/b", Some("a/b")),
        (b"./a", Some("a")),
        (b"/a//b/./c", Some("a/b/c")),
        (b"a/../b", None),
        (b"..", None),
        (b"", None),
        (b"./", None),
        (b"a\0b", None),
    ];
    for (name, path) in table {
        assert_eq!(relative(name).as_deref(), path.map(Path::new), "{name:?}");
    }
}
