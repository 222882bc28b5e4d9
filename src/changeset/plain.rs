//! A tar that [`tar`](super::tar) wrote, without its whiteouts: for who is told of deletions in another way.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::changeset::collect::WHITEOUT_PREFIX;
use crate::changeset::cursor::split;

const BLOCK: u64 = 512;
/// The records of one entry: it has bounds of its own, this one is for a file that is no tar of ours.
const MAX_RECORDS: u64 = 64 << 20;

/// Where in `tar` the entries are that are no whiteouts, each with the extended header before it.
///
/// # Errors
/// Those of the file; and a tar that ends early, which is none of ours.
pub fn entries_without_whiteouts(tar: &File) -> io::Result<Vec<Range<u64>>> {
    let mut kept: Vec<Range<u64>> = Vec::new();
    let (mut at, mut begin) = (0, 0);
    let (mut path, mut size): (Option<Vec<u8>>, Option<u64>) = (None, None);
    loop {
        let mut header = [0; BLOCK as usize];
        tar.read_exact_at(&mut header, at)?;
        if header.iter().all(|byte| *byte == 0) {
            return Ok(kept);
        }
        let stored = octal(&header[124..136])?;
        if header[156] == b'x' {
            (path, size) = records(tar, at + BLOCK, stored)?;
            at += BLOCK + stored.next_multiple_of(BLOCK);
            continue;
        }
        let length = size.take().unwrap_or(stored).next_multiple_of(BLOCK);
        let end = at + BLOCK + length;
        let path = path.take().unwrap_or_else(|| until_zero(&header[..100]).to_vec());
        if !split(&path).1.starts_with(WHITEOUT_PREFIX) {
            match kept.last_mut() {
                Some(last) if last.end == begin => last.end = end,
                _ => kept.push(begin..end),
            }
        }
        (at, begin) = (end, end);
    }
}

/// The path and the size that the records at `at` give to the next entry.
fn records(tar: &File, at: u64, length: u64) -> io::Result<(Option<Vec<u8>>, Option<u64>)> {
    let bad = || io::Error::new(io::ErrorKind::InvalidData, "an extended header is malformed");
    if length > MAX_RECORDS {
        return Err(bad());
    }
    let mut bytes = vec![0; length as usize];
    tar.read_exact_at(&mut bytes, at)?;
    let (mut path, mut size) = (None, None);
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        let space = rest.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let whole: usize =
            std::str::from_utf8(&rest[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)?;
        let record = rest.get(space + 1..whole.checked_sub(1).ok_or_else(bad)?).ok_or_else(bad)?;
        if let Some(value) = record.strip_prefix(b"path=") {
            path = Some(value.to_vec());
        } else if let Some(value) = record.strip_prefix(b"size=") {
            size = Some(std::str::from_utf8(value).ok().and_then(|text| text.parse().ok()).ok_or_else(bad)?);
        }
        rest = rest.get(whole..).ok_or_else(bad)?;
    }
    Ok((path, size))
}

fn until_zero(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn octal(field: &[u8]) -> io::Result<u64> {
    let text = std::str::from_utf8(until_zero(field)).ok().map(str::trim);
    let number = text.and_then(|text| if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() });
    number.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a header is malformed"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::changeset::tar::{Content, Options, Writer};
    use crate::changeset::{Changes, Entry, Kind};
    use crate::progress::Progress;
    use std::io::Write;

    #[test]
    fn whiteouts_go_with_their_extended_headers_and_nothing_else_does() {
        let (progress, none) = (Progress::new(), Changes::none());
        let long = "d".repeat(150);
        let mut out = tempfile::tempfile().unwrap();
        let mut writer = Writer::new(&mut out, &none, &progress, Options::default());
        let whiteout = |path: &str| Entry { kind: Kind::Whiteout, ..Entry::made(path, Kind::File, 0, 0, 0) };
        let file = |path: &str, text: &str| Entry::made(path, Kind::File, 0o644, text.len() as u64, 1);
        writer.entry(&whiteout("gone")).unwrap();
        writer.file_from(&file("a.wh.b", "kept"), Content::Bytes(b"kept")).unwrap();
        writer.entry(&whiteout(&format!("{long}/gone"))).unwrap();
        writer.file_from(&file(&format!("{long}/x"), "also"), Content::Bytes(b"also")).unwrap();
        writer.entry(&Entry::made("dir", Kind::Directory, 0o755, 0, 1)).unwrap();
        writer.finish().unwrap();
        let kept = entries_without_whiteouts(&out).unwrap();
        assert_eq!(kept.len(), 2, "{kept:?}");
        let mut plain = Vec::new();
        for range in kept {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            out.read_exact_at(&mut bytes, range.start).unwrap();
            plain.write_all(&bytes).unwrap();
        }
        plain.extend_from_slice(&[0; 1024]);
        let mut found = Vec::new();
        for entry in ::tar::Archive::new(&plain[..]).entries().unwrap() {
            found.push(String::from_utf8(entry.unwrap().path_bytes().into_owned()).unwrap());
        }
        assert_eq!(found, ["a.wh.b".to_owned(), format!("{long}/x"), "dir/".to_owned()]);
    }

    #[test]
    fn what_is_no_tar_is_an_error() {
        let mut out = tempfile::tempfile().unwrap();
        out.write_all(&[b'x'; 700]).unwrap();
        assert!(entries_without_whiteouts(&out).is_err());
    }
}
