use super::*;
use proptest::prelude::*;

fn file(name: &str, content: &[u8]) -> Vec<u8> {
    let size = content.len() as u64;
    [&header(name, size)[..], content, &vec![0; padding(size) as usize]].concat()
}

fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// A header with another type, whose checksum is right.
fn entry_of(name: &str, flag: u8, link: &str, content: &[u8]) -> Vec<u8> {
    let mut bytes = file(name, content);
    let head: &mut [u8; BLOCK] = (&mut bytes[..BLOCK]).try_into().unwrap();
    head[156] = flag;
    put(head, 157, link.as_bytes());
    put(head, 148, b"        ");
    let sum = checksum(head).0;
    put(head, 148, format!("{sum:06o}\0 ").as_bytes());
    bytes
}

fn records(records: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (key, value) in records {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len();
        while length != rest.len() + length.to_string().len() {
            length = rest.len() + length.to_string().len();
        }
        bytes.extend(format!("{length}{rest}").bytes());
    }
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<(Entry, Vec<u8>)>, Error> {
    let mut entries = Entries::new(bytes);
    let mut found = Vec::new();
    while let Some(entry) = entries.next()? {
        let mut content = Vec::new();
        let mut chunk = [0; 100];
        loop {
            match entries.read(&mut chunk)? {
                0 => break,
                count => content.extend(&chunk[..count]),
            }
        }
        found.push((entry, content));
    }
    entries.drain()?;
    Ok(found)
}

#[test]
fn what_is_written_is_read() {
    let big = vec![7; 100_000];
    let bytes = [file("oci-layout", b"{}"), file("blobs/sha256/00", &big), file("empty", b""), end(), end()].concat();
    let found = read(&bytes).unwrap();
    let paths: Vec<_> = found.iter().map(|(entry, content)| (&*entry.path, content.len())).collect();
    assert_eq!(paths, [("oci-layout", 2), ("blobs/sha256/00", 100_000), ("empty", 0)]);
    assert!(found[1].1 == big);
}

#[test]
fn lengths_beyond_the_octal_field_are_written_and_read() {
    for size in [0, 1, (1 << 33) - 1, 1 << 33, 1 << 50] {
        let header = header("x", size);
        assert_eq!(number(&header[124..136]), Some(size));
        let mut entries = Entries::new(&header[..]);
        assert_eq!(entries.next().unwrap().unwrap().size, size);
    }
}

#[test]
fn long_names_of_both_kinds_and_links_between_layers_are_read() {
    let long = format!("{}/x", "d".repeat(120));
    let gnu = entry_of("././@LongLink", b'L', "", format!("{long}\0").as_bytes());
    let pax = entry_of("pax", b'x', "", &records(&[("path", &long), ("size", "3"), ("mtime", "1.5")]));
    let comment = entry_of("pax_global_header", b'g', "", &records(&[("comment", "x")]));
    let mut sized = file("short", b"abc");
    put((&mut sized[..BLOCK]).try_into().unwrap(), 124, b"00000000003\0");
    let bytes = [
        comment,
        [gnu, file("short", b"a")].concat(),
        [pax, sized].concat(),
        entry_of("./dir/", b'5', "", b""),
        entry_of("aa/layer.tar", b'2', "../bb/layer.tar", b""),
        end(),
    ]
    .concat();
    let found: Vec<_> = read(&bytes).unwrap().into_iter().map(|(entry, _)| (entry.path, entry.kind)).collect();
    let expected = [
        (long.clone(), Kind::File),
        (long, Kind::File),
        ("dir".to_owned(), Kind::Directory),
        ("aa/layer.tar".to_owned(), Kind::Symlink("bb/layer.tar".to_owned())),
    ];
    assert_eq!(found, expected);
}

#[test]
fn what_leads_out_or_can_be_read_in_two_ways_is_refused() {
    let pax = |list: &[(&str, &str)]| [entry_of("p", b'x', "", &records(list)), file("x", b"")].concat();
    let wrong: Vec<(&str, Vec<u8>)> = vec![
        ("absolute", file("/etc/passwd", b"x")),
        ("up", file("../x", b"x")),
        ("up within", file("a/../../x", b"x")),
        ("empty component", file("a//b", b"x")),
        ("control characters", file("a\nb", b"x")),
        ("up in pax", pax(&[("path", "../x")])),
        ("two names", pax(&[("path", "a"), ("path", "b")])),
        ("both long names", [entry_of("l", b'L', "", b"a\0"), pax(&[("path", "b")])].concat()),
        ("sparse", pax(&[("GNU.sparse.major", "1")])),
        ("a global name", [entry_of("g", b'g', "", &records(&[("path", "b")])), file("x", b"")].concat()),
        ("records that lie", [entry_of("p", b'x', "", b"8 path=a\n"), file("x", b"")].concat()),
        ("endless record", [entry_of("p", b'x', "", b"99999999999 path=a\n"), file("x", b"")].concat()),
        ("hard link", entry_of("x", b'1', "y", b"")),
        ("device", entry_of("x", b'3', "", b"")),
        ("fifo", entry_of("x", b'6', "", b"")),
        ("old sparse", entry_of("x", b'S', "", b"")),
        ("link out", entry_of("a/layer.tar", b'2', "../../x", b"")),
        ("absolute link", entry_of("a/layer.tar", b'2', "/x", b"")),
        ("directory with content", entry_of("a/", b'5', "", b"x")),
        ("name after name at the end", entry_of("l", b'L', "", b"a\0")),
        ("zeros between", [file("a", b""), vec![0; BLOCK], file("b", b"")].concat()),
        ("no header", b"x".repeat(BLOCK)),
        ("something after the end", [end(), b"x".to_vec()].concat()),
    ];
    for (what, bytes) in wrong {
        let whole = [bytes, end()].concat();
        assert!(!matches!(read(&whole).unwrap_err(), Error::Truncated), "{what}: {:?}", read(&whole));
    }
    let mut bad_sum = file("x", b"");
    bad_sum[0] = b'y';
    assert!(read(&bad_sum).is_err());
    let long = [entry_of("l", b'L', "", &b"a".repeat(1000)), file("x", b""), end()].concat();
    assert!(matches!(read(&long).unwrap_err(), Error::Limit { .. }));
    let mut huge = header("l", 1 << 40);
    huge[156] = b'x';
    put(&mut huge, 148, b"        ");
    let sum = checksum(&huge).0;
    put(&mut huge, 148, format!("{sum:06o}\0 ").as_bytes());
    assert!(matches!(read(&huge).unwrap_err(), Error::Limit { .. }), "no memory is taken for it");
    let mut many = Vec::new();
    (0..=MOST_ENTRIES).for_each(|_| many.extend(entry_of("d/", b'5', "", b"")));
    assert!(matches!(read(&many).unwrap_err(), Error::Limit { .. }));
}

#[test]
fn every_end_but_the_end_is_one_too_early() {
    let bytes = [file("a", b"12345"), file("b", b""), end()].concat();
    assert_eq!(read(&bytes).unwrap().len(), 2);
    for cut in 0..bytes.len() {
        assert!(matches!(read(&bytes[..cut]).unwrap_err(), Error::Truncated), "cut at {cut}");
    }
}

proptest! {
    /// No bytes make the reader panic, or give an entry whose path leads out.
    #[test]
    fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..3000)) {
        let _ = read(&bytes);
    }

    /// Bytes of a good archive changed in a few places: an error or a clean list, but nothing else.
    #[test]
    fn mutations_are_read_or_refused(changes in prop::collection::vec((0..6000_usize, any::<u8>()), 1..6), fix in any::<bool>()) {
        let long = entry_of("l", b'L', "", b"a/long/name\0");
        let pax = entry_of("p", b'x', "", &records(&[("path", "b/c"), ("size", "5")]));
        let mut bytes =
            [long, file("x", b"12345"), pax, file("y", b"12345"), entry_of("a/layer.tar", b'2', "../x", b""), end()].concat();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
            if fix {
                let start = at / BLOCK * BLOCK;
                let head: &mut [u8; BLOCK] = (&mut bytes[start..start + BLOCK]).try_into().unwrap();
                if head.iter().any(|&byte| byte != 0) {
                    let sum = checksum(head).0;
                    put(head, 148, format!("{sum:06o}\0 ").as_bytes());
                }
            }
        }
        if let Ok(entries) = read(&bytes) {
            for (entry, content) in entries {
                prop_assert_eq!(entry.size, content.len() as u64);
                let well = entry.path.split('/').all(|part| part != "..") && !entry.path.starts_with('/');
                prop_assert!(well, "{:?}", entry.path);
            }
        }
    }
}
