use super::header::{MAGIC_GNU, MAGIC_USTAR};
use super::*;

/// A header with these fields, as the bytes that they are.
fn block(kind: u8, name: &[u8], magic: &[u8], fields: &[(usize, &[u8])]) -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| block[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name);
    put(100, b"0000644\0");
    put(156, &[kind]);
    put(257, magic);
    for (at, bytes) in fields {
        put(*at, bytes);
    }
    put(148, b"        ");
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

fn ustar(kind: u8, name: &[u8], size: u64) -> Vec<u8> {
    block(kind, name, b"ustar\x0000", &[(124, format!("{size:011o}\0").as_bytes())])
}

fn padded(data: &[u8]) -> Vec<u8> {
    let mut bytes = data.to_vec();
    bytes.resize(data.len().next_multiple_of(BLOCK), 0);
    bytes
}

fn pax(records: &[&[u8]]) -> Vec<u8> {
    let mut data = Vec::new();
    for record in records {
        let mut length = record.len() + 2;
        while format!("{length} ").len() + record.len() + 1 != length {
            length += 1;
        }
        data.extend([format!("{length} ").as_bytes(), record, b"\n"].concat());
    }
    [ustar(b'x', b"pax", data.len() as u64), padded(&data)].concat()
}

/// All entries of a tar that comes in pieces of `step` bytes, the bytes of its contents, and what `take_rest` says.
fn divide(tar: &[u8], step: usize) -> (Vec<Entry>, Vec<u8>, Result<Vec<u8>, &'static str>) {
    let (mut entries, mut found, mut contents) = (Entries::default(), Vec::new(), Vec::new());
    for mut bytes in tar.chunks(step) {
        while !bytes.is_empty() {
            let (taken, piece) = entries.next(bytes);
            assert!(taken > 0);
            match piece {
                Piece::Between(entry) => found.extend(entry.map(|entry| *entry)),
                Piece::Content { .. } => contents.extend_from_slice(&bytes[..taken]),
                Piece::Rest => {}
            }
            bytes = &bytes[taken..];
        }
    }
    let rest = entries.take_rest();
    (found, contents, rest)
}

fn facts(tar: &[u8]) -> serde_json::Value {
    let (entries, ..) = divide(tar, BLOCK);
    assert_eq!(entries.len(), 1);
    serde_json::to_value(entries[0].facts.as_ref().unwrap()).unwrap()
}

#[test]
fn a_tar_is_divided_however_it_comes() {
    let end = vec![0; 2 * BLOCK];
    let parts =
        [ustar(b'5', b"d/", 0), ustar(b'0', b"d/f", 700), padded(&[7; 700]), pax(&[b"size=3"]), ustar(b'0', b"g", 0)];
    let tar = [parts.concat(), padded(b"abc"), end.clone()].concat();
    for step in [1, 7, 511, 512, 513, 100_000] {
        let (entries, contents, rest) = divide(&tar, step);
        let names: Vec<&str> = entries.iter().map(|entry| &*entry.facts.as_ref().unwrap().name).collect();
        assert_eq!(names, ["d/", "d/f", "g"]);
        assert_eq!(entries.iter().map(|entry| entry.content).collect::<Vec<_>>(), [0, 700, 3]);
        assert_eq!(contents, [&[7; 700][..], b"abc"].concat());
        // The padding, an extended header with its data, a header.
        assert_eq!(entries[2].raw.len(), 324 + 3 * BLOCK);
        assert_eq!(rest.unwrap(), [vec![0; 509], end.clone()].concat());
        let raw: usize = entries.iter().map(|entry| entry.raw.len()).sum();
        assert_eq!(raw + contents.len() + 509 + end.len(), tar.len(), "nothing is lost");
    }
}

#[test]
fn every_dialect_says_the_same_as_in_go() {
    let found = facts(&block(
        b'2',
        b"name",
        b"ustar\x0000",
        &[(157, b"to/there"), (345, b"a/prefix"), (136, b"00000000012\0")],
    ));
    let expected = serde_json::json!({
        "type": "symlink", "name": "a/prefix/name", "linkName": "to/there", "mode": 0o644, "modtime": "1970-01-01T00:00:10Z",
    });
    assert_eq!(found, expected);
    // GNU: times instead of a prefix, binary numbers, a long name in an entry of its own.
    let long = [b"long/".repeat(40), b"name".to_vec()].concat();
    let numbers: [(usize, &[u8]); 4] = [
        (108, &[0x80, 0, 0, 0, 0xff, 0xff, 0xff, 0xfe]),
        (136, &[0xff; 12]),
        (345, b"00000000001\0"),
        (329, b"0000010\0"),
    ];
    let link = [block(b'L', b"././@LongLink", MAGIC_GNU, &[(124, b"00000000315\0")]), padded(&long)].concat();
    let found = facts(&[link, block(b'3', b"long", MAGIC_GNU, &numbers)].concat());
    assert_eq!(found["name"], String::from_utf8(long).unwrap());
    assert_eq!((&found["uid"], &found["devMajor"]), (&4_294_967_294_u64.into(), &8.into()));
    assert_eq!(found["modtime"], "1969-12-31T23:59:59Z");
    assert_eq!(
        (&found["accesstime"], &found["changetime"]),
        (&"1970-01-01T00:00:01Z".into(), &serde_json::Value::Null)
    );
    // The oldest: neither prefix nor devices, and a directory by its name alone.
    let found = facts(&block(0, b"old/", b"", &[(345, b"junk"), (329, b"0000010\0")]));
    assert_eq!((&found["type"], &found["name"]), (&"dir".into(), &"old/".into()));
    assert_eq!(found["devMajor"], serde_json::Value::Null);
}

#[test]
fn pax_records_count_more_than_the_header() {
    let records: [&[u8]; 7] = [
        b"path=d\xc3\xa9j\xc3\xa0",
        b"uid=5000000000",
        b"mtime=-1.5",
        b"atime=3.0000000019",
        b"gid=",
        b"SCHILY.xattr.user.a=x\n=y",
        b"SCHILY.xattr.user.empty=",
    ];
    let found = facts(&[pax(&records), ustar(b'0', b"short", 0)].concat());
    let expected = serde_json::json!({
        "type": "reg", "name": "déjà", "mode": 0o644, "uid": 5_000_000_000_i64, "modtime": "1969-12-31T23:59:58.5Z",
        "accesstime": "1970-01-01T00:00:03.000000001Z", "xattrs": { "user.a": "eAo9eQ==", "user.empty": "" },
    });
    assert_eq!(found, expected);
}

#[test]
fn what_a_table_of_contents_cannot_tell_is_told_apart_entry_by_entry() {
    let cases: [(Vec<u8>, &str); 6] = [
        (ustar(b'0', b"\xff", 0), "a name is not UTF-8"),
        (block(b'2', b"l", MAGIC_USTAR, &[(157, b"\xff")]), "target is not UTF-8"),
        ([pax(&[b"SCHILY.xattr.user.\xff=1"]), ustar(b'0', b"f", 0)].concat(), "attribute's name is not UTF-8"),
        ([pax(&[b"mtime=999999999999"]), ustar(b'0', b"f", 0)].concat(), "outside of the years"),
        (ustar(b'1', b"link", 5), "has a size"),
        (ustar(b'0', b"f/", 0), "named as a directory"),
    ];
    for (tar, reason) in cases {
        let (entries, _, rest) = divide(&[tar, ustar(b'0', b"next", 0), vec![0; 2 * BLOCK]].concat(), BLOCK);
        assert!(entries[0].facts.as_ref().unwrap_err().contains(reason), "{reason}");
        assert_eq!(entries[1].facts.as_ref().unwrap().name, "next");
        rest.unwrap();
    }
}

#[test]
fn what_cannot_be_read_ends_the_search() {
    let mut wrong_sum = ustar(b'0', b"f", 0);
    wrong_sum[0] = b'g';
    let cases: [(Vec<u8>, &str); 11] = [
        (wrong_sum, "check sum"),
        (ustar(b'S', b"f", 0), "type"),
        (ustar(b'g', b"f", 0), "type"),
        (ustar(b'x', b"f", LONGEST_EXTENSION + 1), "too long"),
        ([ustar(b'x', b"f", 10), padded(b"99 path=x\n")].concat(), "extended header"),
        ([ustar(b'x', b"f", 12), padded(b"12 path=\0xx\n")].concat(), "extended header"),
        ([pax(&[b"GNU.sparse.major=1"]), ustar(b'0', b"f", 0)].concat(), "sparse"),
        ([pax(&[b"size=+1"]), ustar(b'0', b"f", 0)].concat(), "number"),
        ([vec![0; BLOCK], ustar(b'0', b"f", 0)].concat(), "zeros"),
        (ustar(b'0', b"f", 700), "within"),
        (vec![1; 100], "within"),
    ];
    for (tar, reason) in cases {
        let (entries, _, rest) = divide(&tar, 100);
        assert!(rest.as_ref().unwrap_err().contains(reason), "{reason}: {rest:?}");
        assert!(entries.iter().all(|entry| entry.facts.is_ok()), "{reason}");
    }
}

#[test]
fn hostile_headers_take_no_more_memory_than_they_may() {
    let extension = [ustar(b'L', b"long", LONGEST_EXTENSION), vec![b'x'; LONGEST_EXTENSION as usize]].concat();
    let mut entries = Entries::default();
    for _ in 0..20 {
        let mut bytes = &extension[..];
        while !bytes.is_empty() {
            let (taken, _) = entries.next(bytes);
            bytes = &bytes[taken..];
        }
        assert!(entries.raw.len() < LONGEST_HEADERS + 2 * LONGEST_EXTENSION as usize);
    }
    assert_eq!(entries.take_rest().unwrap_err(), "an entry's headers are too long");
}
