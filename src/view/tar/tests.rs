use super::*;
use proptest::prelude::*;

/// A header as ustar has it, with its checksum.
fn header(path: &[u8], flag: u8, size: u64, edit: impl FnOnce(&mut [u8; BLOCK])) -> Vec<u8> {
    let mut block = [0; BLOCK];
    block[..path.len()].copy_from_slice(path);
    block[100..107].copy_from_slice(b"0000644");
    block[108..115].copy_from_slice(b"0001750");
    block[116..123].copy_from_slice(b"0000144");
    block[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
    block[136..147].copy_from_slice(b"00000000012");
    block[156] = flag;
    block[257..263].copy_from_slice(b"ustar\0");
    block[263..265].copy_from_slice(b"00");
    edit(&mut block);
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    block.to_vec()
}

fn with_body(mut header: Vec<u8>, body: &[u8]) -> Vec<u8> {
    header.extend_from_slice(body);
    header.resize(header.len().next_multiple_of(BLOCK), 0);
    header
}

fn pax(records: &[(&str, &[u8])]) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        let rest = key.len() + value.len() + 3;
        let length =
            (1..).find(|digits| (rest + digits).to_string().len() == *digits).map(|digits| rest + digits).unwrap();
        body.extend_from_slice(format!("{length} {key}=").as_bytes());
        body.extend_from_slice(value);
        body.push(b'\n');
    }
    with_body(header(b"PaxHeaders/x", b'x', body.len() as u64, |_| ()), &body)
}

fn read(tar: &[u8]) -> Result<Vec<Entry>, Error> {
    let mut reader = Reader::new(tar);
    std::iter::from_fn(|| reader.entry().transpose()).collect()
}

fn refused(tar: &[u8]) -> String {
    read(tar).unwrap_err().to_string()
}

#[test]
fn an_entry_is_what_its_header_says() {
    let tar =
        [with_body(header(b"etc/passwd", b'0', 5, |_| ()), b"hello"), vec![0; 1024], b"anything".to_vec()].concat();
    let entries = read(&tar).unwrap();
    let [entry] = &*entries else { panic!("{entries:?}") };
    assert_eq!((entry.kind, &*entry.path, entry.mode), (Type::File, &b"etc/passwd"[..], 0o644));
    assert_eq!((entry.uid, entry.gid, entry.mtime), (1000, 100, (10, 0)));
    assert_eq!(&tar[entry.offset as usize..][..entry.size as usize], b"hello");
}

#[test]
fn a_long_path_comes_in_three_ways() {
    let split = header(b"file", b'0', 0, |block| block[345..350].copy_from_slice(b"a/dir"));
    assert_eq!(read(&split).unwrap()[0].path, b"a/dir/file");
    let gnu = |block: &mut [u8; BLOCK]| block[257..265].copy_from_slice(b"ustar  \0");
    let long = [with_body(header(b"././@LongLink", b'L', 6, gnu), b"longer"), header(b"short", b'0', 0, gnu)].concat();
    assert_eq!(read(&long).unwrap()[0].path, b"longer");
    let records = [pax(&[("path", b"pax\nname"), ("linkpath", b"to")]), header(b"short", b'2', 0, |_| ())].concat();
    let entry = &read(&records).unwrap()[0];
    assert_eq!((&*entry.path, &*entry.target), (&b"pax\nname"[..], &b"to"[..]));
}

#[test]
fn extended_records_are_for_one_entry_and_win_over_the_header() {
    let records = pax(&[
        ("uid", b"4294967294"),
        ("mtime", b"-1.25"),
        ("size", b"3"),
        ("SCHILY.xattr.user.b", b"\0\n"),
        ("SCHILY.xattr.user.a", b""),
        ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
        ("comment", b"anything"),
    ]);
    let tar = [records, with_body(header(b"one", b'0', 0, |_| ()), b"abc"), header(b"two", b'0', 0, |_| ())].concat();
    let entries = read(&tar).unwrap();
    assert_eq!((entries[0].uid, entries[0].mtime, entries[0].size), (4_294_967_294, (-2, 750_000_000), 3));
    assert_eq!(entries[0].xattrs, [(b"user.a".to_vec(), b"".to_vec()), (b"user.b".to_vec(), b"\0\n".to_vec())]);
    assert_eq!((entries[1].uid, entries[1].size, entries[1].xattrs.len()), (1000, 0, 0));
}

#[test]
fn numbers_are_octal_or_binary() {
    let entry = |field: &[u8]| {
        let tar = header(b"x", b'0', 0, |block| block[136..148].copy_from_slice(field));
        read(&tar).map(|entries| entries[0].mtime.0)
    };
    assert_eq!(entry(b"         12\0").unwrap(), 10);
    assert_eq!(entry(b"\0\0\0\0\0\0\0\0\0\0\0\0").unwrap(), 0);
    assert_eq!(entry(b"\x80\0\0\0\0\0\0\x02\0\0\0\0").unwrap(), 1 << 33);
    assert_eq!(entry(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xfe").unwrap(), -2);
    assert!(entry(b"\x80\xff\0\0\0\0\0\0\0\0\0\0").is_err());
    assert!(entry(b"0000000009\0\0").is_err());
}

#[test]
fn devices_and_old_directories_are_known() {
    let device = header(b"null", b'3', 0, |block| {
        block[329..336].copy_from_slice(b"0000001");
        block[337..344].copy_from_slice(b"0000003");
    });
    assert_eq!(read(&device).unwrap()[0].device, (1, 3));
    assert_eq!(read(&header(b"old/", 0, 0, |block| block[257..265].fill(0))).unwrap()[0].kind, Type::Directory);
    // Go's reader goes on behind the header of a link, whatever size it tells of.
    let link = [header(b"link", b'1', 512, |block| block[157] = b'x'), header(b"next", b'0', 0, |_| ())].concat();
    assert_eq!(read(&link).unwrap().len(), 2);
}

#[test]
fn what_readers_could_disagree_about_is_refused() {
    let plain = || header(b"x", b'0', 0, |_| ());
    let mut broken = plain();
    broken[0] = b'y';
    assert!(refused(&broken).contains("checksum"));
    assert!(refused(&header(b"x", b'S', 0, |_| ())).contains("sparse"));
    assert!(refused(&[pax(&[("GNU.sparse.major", b"1")]), plain()].concat()).contains("sparse"));
    assert!(refused(&header(b"x", b'7', 0, |_| ())).contains("type"));
    assert!(refused(&header(b"x", b'0', 10, |_| ())).contains("middle"));
    assert!(refused(&plain()[..100]).contains("middle"));
    assert!(refused(&[vec![0; 512], plain()].concat()).contains("empty header"));
    assert!(refused(&[pax(&[("path", b"a\0b")]), plain()].concat()).contains("path"));
    assert!(refused(&[pax(&[("size", b"-1")]), plain()].concat()).contains("size"));
    assert!(refused(&[pax(&[("uid", b"4294967296")]), plain()].concat()).contains("4294967296"));
    assert!(refused(&header(b"x", b'x', 1 << 30, |_| ())).contains("extended header"));
    for garbage in [&b"5 a=b\n"[..], b"99 a=b\n", b"a", b"6 abcd\n", b"-6 a=b\n"] {
        let tar = [with_body(header(b"p", b'x', garbage.len() as u64, |_| ()), garbage), plain()].concat();
        assert!(read(&tar).is_err(), "{garbage:?}");
    }
    let huge =
        header(b"x", b'0', 0, |block| block[124..136].copy_from_slice(b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff"));
    assert!(refused(&huge).contains("bounds"));
    let many: Vec<(String, &[u8])> = (0..9000).map(|n| (format!("SCHILY.xattr.user.{n:05}"), &b""[..])).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(key, value)| (key.as_str(), *value)).collect();
    assert!(refused(&[pax(&many), plain()].concat()).contains("more extended attributes"));
}

#[test]
fn a_tar_may_end_without_its_zeros() {
    assert_eq!(read(&header(b"x", b'0', 0, |_| ())).unwrap().len(), 1);
    assert_eq!(read(&[header(b"x", b'0', 0, |_| ()), vec![0; 512]].concat()).unwrap().len(), 1);
    assert!(read(b"").unwrap().is_empty());
}

proptest! {
    #[test]
    fn never_panics(mut tar in prop::collection::vec(any::<u8>(), 0..2048), whole in any::<bool>()) {
        if whole && tar.len() >= BLOCK {
            let sum: u32 = (0..BLOCK).map(|at| if (148..156).contains(&at) { 32 } else { u32::from(tar[at]) }).sum();
            tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let _ = read(&tar);
    }

    #[test]
    fn records_never_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = Records::parse(&body);
    }
}
