//! Retraction against the model: the bytes without the ranges.

use std::io::Write;
use std::ops::Range;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any, prop_oneof, proptest};
use proptest::test_runner::Config;
use snapfs::image::{Compression, Error};
use snapfs::oci::DiffId;

use crate::layer::chunked::{entry, verify};
use crate::layer::{ALL, ZSTD, decode, finish, seek, store, text, write_entries, writer};

/// What is done to a writer.
#[derive(Debug, Clone)]
enum Act {
    /// Write an entry with so much content.
    Write(usize),
    /// Retract the entries for which this says so.
    Retract(Vec<bool>),
}

fn act() -> impl Strategy<Value = Act> {
    let length =
        prop_oneof![5 => 0..2_000usize, 5 => 0..70_000usize, 2 => 65_536..300_000usize, 1 => 1_000_000..2_500_000usize];
    prop_oneof![12 => length.prop_map(Act::Write), 1 => vec(any::<bool>(), 1..40).prop_map(Act::Retract)]
}

fn compression() -> impl Strategy<Value = Compression> {
    prop_oneof![4 => Just(ZSTD), 2 => Just(Compression::ZstdChunked), 1 => Just(Compression::Gzip), 1 => Just(Compression::None)]
}

fn check(compression: Compression, workers: usize, acts: &[Act]) {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    let mut writer = writer(&lease, compression, workers);
    let mut entries: Vec<Vec<u8>> = Vec::new();
    for (n, act) in acts.iter().enumerate() {
        match act {
            Act::Write(length) => {
                let entry = entry(n.to_string().as_bytes(), &text(n as u64, *length));
                writer.begin_entry(*length as u64);
                writer.write_all(&entry).unwrap();
                entries.push(entry);
            }
            Act::Retract(chosen) => {
                let is_chosen: Vec<bool> = (0..entries.len()).map(|n| chosen[n % chosen.len()]).collect();
                let mut at = 0;
                let mut ranges: Vec<Range<u64>> = Vec::new();
                for (entry, is_chosen) in entries.iter().zip(&is_chosen) {
                    let end = at + entry.len() as u64;
                    ranges.extend(is_chosen.then_some(at..end));
                    at = end;
                }
                writer.retract(ranges, &lease).unwrap();
                let mut is_chosen = is_chosen.into_iter();
                entries.retain(|_| !is_chosen.next().unwrap());
            }
        }
        assert_eq!(writer.position(), entries.iter().map(Vec::len).sum::<usize>() as u64);
    }
    let tar = entries.concat();
    let made = finish(&store, writer);
    assert!(decode(compression, &made.blob) == tar, "the blob is another tar");
    assert_eq!(made.layer.diff_id, DiffId::of(&tar));
    if compression == Compression::ZstdChunked {
        verify(&made, &tar);
    }
    if compression == ZSTD {
        assert!(seek(&made.blob).iter().flat_map(|(_, raw)| raw).eq(&tar));
    }
}

proptest! {
    #![proptest_config(Config { cases: 40, failure_persistence: None, ..Config::default() })]

    #[test]
    fn what_was_retracted_was_never_written(
        compression in compression(),
        workers in 1..4usize,
        acts in vec(act(), 1..80),
    ) {
        check(compression, workers, &acts);
    }
}

#[test]
fn everything_can_be_retracted() {
    for compression in ALL {
        check(compression, 2, &[Act::Write(3_000_000), Act::Write(5), Act::Retract(vec![true])]);
        check(compression, 2, &[Act::Write(3_000_000), Act::Retract(vec![true]), Act::Write(2_000_000)]);
        check(compression, 2, &[Act::Retract(vec![true])]);
    }
}

#[test]
fn untouched_frames_are_the_same_bytes() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    let lengths = [70_000, 200_000, 10, 20, 3_000_000, 90_000];
    let mut untouched = writer(&lease, ZSTD, 2);
    write_entries(&mut untouched, &lengths);
    let untouched = finish(&store, untouched);

    let mut writer = writer(&lease, ZSTD, 2);
    write_entries(&mut writer, &lengths);
    // The entry of 10 bytes, which shares its frame with its neighbours.
    let begin = 70_512 + 200_512;
    writer.retract(vec![begin..begin + 522], &lease).unwrap();
    let retracted = finish(&store, writer);
    let (before, after) = (seek(&untouched.blob), seek(&retracted.blob));
    assert_eq!(before.len(), after.len());
    let changed: Vec<usize> = (0..before.len()).filter(|n| before[*n].0 != after[*n].0).collect();
    assert_eq!(changed, [1]);
}

#[test]
fn ranges_that_are_not_in_the_layer_are_refused() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    for ranges in [[0..101, 200..300], [50..60, 10..20], [10..30, 20..40]] {
        let mut writer = writer(&lease, ZSTD, 1);
        writer.write_all(&[1; 100]).unwrap();
        let error = writer.retract(ranges.into(), &lease).unwrap_err();
        assert!(matches!(error, Error::NotInLayer { .. }), "{error}");
    }
}
