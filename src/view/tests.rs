//! Blobs of every kind, read from their beginning and at any place.

use std::fs::File;
use std::io::{self, Write};

use proptest::prelude::*;

use super::*;
use crate::view::index::Point;

/// Bytes of which about half compress.
fn content(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_u32;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let mut bytes = Vec::with_capacity(length + 64);
    while bytes.len() < length {
        let word = next();
        if word & 1 == 0 {
            bytes.extend_from_slice(&word.to_le_bytes())
        } else {
            bytes.extend_from_slice(&[word as u8; 16])
        }
    }
    bytes.truncate(length);
    bytes
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// `tar` in frames or members of these lengths, the last one as long as it takes.
fn packed(tar: &[u8], packing: Packing, lengths: &[usize]) -> Vec<u8> {
    let mut rest = tar;
    let mut blob = Vec::new();
    for length in lengths.iter().copied().chain([usize::MAX]) {
        let (piece, after) = rest.split_at(length.min(rest.len()));
        rest = after;
        match packing {
            Packing::Zstd => blob.extend(zstd::bulk::compress(piece, 1).unwrap()),
            Packing::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(&mut blob, flate2::Compression::fast());
                encoder.write_all(piece).unwrap();
                encoder.finish().unwrap();
            }
            Packing::None => blob.extend_from_slice(piece),
        }
    }
    blob
}

fn decoded(blob: &File, packing: Packing) -> io::Result<(Vec<u8>, Vec<Point>)> {
    let mut tar = Vec::new();
    let (points, length) = stream::decode(blob, packing, &mut |chunk| {
        tar.extend(chunk);
        Ok(())
    })?;
    assert_eq!(length, tar.len() as u64);
    Ok((tar, points))
}

fn source(blob: Vec<u8>, packing: Packing) -> Source {
    let length = blob.len() as u64;
    let blob = file(&blob);
    let (tar, points) = decoded(&blob, packing).unwrap();
    Source::new(blob, length, packing, points, tar.len() as u64)
}

fn assert_every_place(source: &Source, tar: &[u8]) {
    for offset in (0..tar.len()).step_by(77_777).chain([tar.len() - 1]) {
        let (number, begins) = source.chunk_at(offset as u64).unwrap();
        let chunk = source.decode(number).unwrap();
        let from = begins as usize;
        assert!(from <= offset && offset < from + chunk.len());
        assert!(chunk == tar[from..from + chunk.len()], "the chunk at {offset}");
    }
    assert_eq!(source.chunk_at(tar.len() as u64), None);
}

#[test]
fn any_place_of_frames_and_members_can_be_read() {
    let tar = content(3_000_000);
    for packing in [Packing::Zstd, Packing::Gzip, Packing::None] {
        let blob = packed(&tar, packing, &[1, 0, 500_000, 10, 1_000_000, 200_000, 3, 700_000]);
        let whole = file(&blob);
        assert_eq!(Packing::of(&whole).unwrap(), packing);
        let source = source(blob, packing);
        assert!(source.is_seekable());
        assert_every_place(&source, &tar);
    }
}

#[test]
fn a_stream_in_one_piece_is_made_seekable() {
    let tar = content(9_000_000);
    for packing in [Packing::Zstd, Packing::Gzip] {
        let blob = packed(&tar, packing, &[]);
        let whole = source(blob.clone(), packing);
        assert!(!whole.is_seekable());
        assert!(whole.decode(0).is_err());
        let mut made = Vec::new();
        let length = seekable::write(&file(&blob), packing, DiffId::of(&tar), &mut made).unwrap();
        assert_eq!(length, made.len() as u64);
        let source = seekable::open(file(&made), tar.len() as u64).unwrap();
        assert!(source.is_seekable());
        assert_every_place(&source, &tar);
        let other = seekable::write(&file(&blob), packing, DiffId::of(b"other"), &mut Vec::new());
        assert_eq!(other.unwrap_err().kind(), io::ErrorKind::InvalidData);
        for torn in [0, 10, made.len() - 1, made.len() - 100] {
            assert!(seekable::open(file(&made[..torn]), tar.len() as u64).is_none());
        }
        let at = made.len() - 200;
        made[at] ^= 1;
        assert!(seekable::open(file(&made), tar.len() as u64).is_none(), "a wrong bit in the table");
    }
}

#[test]
fn a_change_after_indexing_is_noticed_whatever_the_packing() {
    let tar = content(1_000_000);
    for packing in [Packing::Zstd, Packing::Gzip, Packing::None] {
        let blob = packed(&tar, packing, &[300_000, 300_000]);
        let intact = source(blob.clone(), packing);
        for at in [1000, blob.len() / 2, blob.len() - 1000] {
            let mut changed = blob.clone();
            changed[at] ^= 0x10;
            let (_, points) = decoded(intact.blob(), packing).unwrap();
            let count = points.len();
            let source = Source::new(file(&changed), blob.len() as u64, packing, points, tar.len() as u64);
            let failed = (0..count).filter(|number| source.decode(*number).is_err()).count();
            assert_eq!(failed, 1, "{packing:?} at {at}");
        }
    }
}

#[test]
fn what_is_cut_or_goes_on_with_something_else_is_refused() {
    let tar = content(500_000);
    for packing in [Packing::Zstd, Packing::Gzip] {
        let blob = packed(&tar, packing, &[200_000]);
        for length in [20, blob.len() / 3, blob.len() - 1] {
            assert!(decoded(&file(&blob[..length]), packing).is_err(), "{packing:?} cut at {length}");
        }
        let more = [&blob[..], b"something else"].concat();
        assert!(decoded(&file(&more), packing).is_err(), "{packing:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn decoders_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..3000), at in any::<prop::sample::Index>(), kind in 0..4usize) {
        let packing = [Packing::Zstd, Packing::Gzip, Packing::None][kind % 3];
        if kind < 3 && !bytes.is_empty() {
            // Mostly whole, and wrong in one place.
            bytes = packed(&content(5000), packing, &[100, 2000]);
            let at = at.index(bytes.len());
            bytes[at] ^= 0x55;
        }
        let _ = decoded(&file(&bytes), packing);
        let _ = build::build(&file(&bytes), packing, DiffId::of(b""), &mut |_| {});
        let _ = seekable::open(file(&bytes), 100);
    }
}
