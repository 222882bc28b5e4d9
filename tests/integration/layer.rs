//! The layer writer: what any decoder makes of a blob, whatever was written, retracted, or went wrong.

mod chunked;
mod memory;
mod model;
mod partial;
mod tools;

use std::io::{self, Read, Write};
use std::num::NonZero;
use std::sync::{Arc, LazyLock};

use snapfs::image::{Compression, Error, Layer, LayerWriter};
use snapfs::oci::{DiffId, Digest};
use snapfs::store::{self, Lease, Store};
use tempfile::TempDir;

use crate::harness::backend::{CrashBackend, ENOSPC, Plan};
use crate::harness::scratch;

const ZSTD: Compression = Compression::Zstd { level: 1 };
const ALL: [Compression; 4] = [ZSTD, Compression::ZstdChunked, Compression::Gzip, Compression::None];

/// A store in memory.
fn store() -> (TempDir, Store) {
    let place = scratch();
    let store = Store::open_dir(&place.path().join("store")).unwrap();
    (place, store)
}

/// A layer and its blob.
#[derive(Debug, PartialEq, Eq)]
struct Made {
    layer: Layer,
    blob: Vec<u8>,
}

fn writer(lease: &Lease, compression: Compression, workers: usize) -> LayerWriter {
    LayerWriter::with_workers(lease.blob().unwrap(), compression, NonZero::new(workers).unwrap()).unwrap()
}

fn finish(store: &Store, writer: LayerWriter) -> Made {
    let layer = writer.finish().unwrap();
    let mut blob = Vec::new();
    store.open_blob(&layer.descriptor.digest).unwrap().read_to_end(&mut blob).unwrap();
    assert_eq!(layer.descriptor.digest, Digest::of(&blob));
    assert_eq!(layer.descriptor.size, blob.len() as u64);
    Made { layer, blob }
}

/// The blob as any decoder reads it.
fn decode(compression: Compression, blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    let mut decoder: Box<dyn Read> = match compression {
        Compression::Zstd { .. } | Compression::ZstdChunked => {
            Box::new(zstd::stream::read::Decoder::new(blob).unwrap())
        }
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(blob)),
        Compression::None => Box::new(blob),
    };
    decoder.read_to_end(&mut tar).unwrap();
    tar
}

/// Each frame's bytes of blob and tar, as a reader of the seekable format finds them: from the end.
pub(crate) fn seek(blob: &[u8]) -> Vec<(&[u8], Vec<u8>)> {
    let number = |at: usize| u32::from_le_bytes(blob[at..at + 4].try_into().unwrap()) as usize;
    let end = blob.len();
    assert_eq!(number(end - 4), 0x8F92_EAB1);
    assert_eq!(blob[end - 5], 0, "no checksums, no reserved bits");
    let count = number(end - 9);
    let table = end - 9 - 8 * count - 8;
    assert_eq!((number(table), number(table + 4)), (0x184D_2A5E, 8 * count + 9));
    let mut at = 0;
    let frames = (0..count).map(|n| {
        let (packed, raw) = (number(table + 8 + 8 * n), number(table + 12 + 8 * n));
        let frame = &blob[at..at + packed];
        at += packed;
        // The header gives the length, and the descriptor's third bit says that a checksum follows the frame.
        assert_eq!(zstd::zstd_safe::get_frame_content_size(frame).unwrap(), Some(raw as u64));
        assert_eq!(frame[4] & 4, 4);
        (frame, zstd::bulk::decompress(frame, raw).unwrap())
    });
    let frames: Vec<_> = frames.collect();
    assert_eq!(at, table, "frames and table fill the blob");
    frames
}

/// Bytes that compress as a container's files do, different for every seed.
pub(crate) fn text(seed: u64, length: usize) -> Vec<u8> {
    static POOL: LazyLock<Vec<u8>> = LazyLock::new(|| {
        let mut coin = Coin(1);
        let mut pool = Vec::with_capacity(POOL_SIZE + 16);
        while pool.len() < POOL_SIZE {
            match coin.next() % 3 {
                0 => pool.extend(coin.next().to_le_bytes()),
                1 => pool.extend(b"/usr/share/doc/"),
                _ => pool.extend_from_slice(&coin.next().to_string().as_bytes()[..6]),
            }
        }
        pool
    });
    const POOL_SIZE: usize = 3 << 20;
    let mut bytes = seed.to_le_bytes()[..length.min(8)].to_vec();
    bytes.extend(POOL.iter().cycle().skip(Coin(seed).next() as usize % 10_000).take(length - bytes.len()));
    bytes
}

/// splitmix64.
struct Coin(u64);

impl Coin {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn noise(&mut self, length: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..length.div_ceil(8)).flat_map(|_| self.next().to_le_bytes()).collect();
        bytes.truncate(length);
        bytes
    }
}

/// Write entries: 512 bytes that stand for headers, and content.
fn write_entries(writer: &mut LayerWriter, lengths: &[usize]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (n, length) in lengths.iter().enumerate() {
        writer.begin_entry(*length as u64);
        let entry = [vec![n as u8; 512], text(n as u64, *length)].concat();
        writer.write_all(&entry).unwrap();
        tar.extend(entry);
        assert_eq!(writer.position(), tar.len() as u64);
    }
    tar
}

/// Small ones, some of which share a frame, ones at every edge, and large ones.
const LENGTHS: [usize; 16] = [
    0,
    1,
    65_535,
    65_536,
    100,
    3_000_000,
    700,
    (1 << 20) - 512,
    1 << 20,
    (1 << 20) + 1,
    0,
    60_000,
    60_000,
    200_000,
    5_000_000,
    12,
];

#[test]
fn any_decoder_reads_the_tar_and_every_frame_alone() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    for compression in ALL {
        let mut writer = writer(&lease, compression, 2);
        let tar = write_entries(&mut writer, &LENGTHS);
        let made = finish(&store, writer);
        assert_eq!(made.layer.diff_id, DiffId::of(&tar));
        assert_eq!(made.layer.descriptor.media_type, compression.media_type());
        assert!(decode(compression, &made.blob) == tar, "{compression:?}");
        if compression == ZSTD {
            let frames = seek(&made.blob);
            assert!(frames.iter().all(|(_, raw)| raw.len() <= 1 << 20 && !raw.is_empty()));
            assert!(frames.iter().flat_map(|(_, raw)| raw).eq(&tar));
        }
    }
}

#[test]
fn a_file_of_64_kib_begins_a_frame_and_smaller_ones_share() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    let mut writer = writer(&lease, ZSTD, 1);
    write_entries(&mut writer, &[10, 65_535, 65_536, 20, 65_536, 30]);
    let sizes: Vec<usize> = seek(&finish(&store, writer).blob).iter().map(|(_, raw)| raw.len()).collect();
    let shared = |lengths: &[usize]| lengths.iter().map(|length| 512 + length).sum::<usize>();
    assert_eq!(sizes, [shared(&[10, 65_535]), shared(&[65_536, 20]), shared(&[65_536, 30])]);
}

#[test]
fn small_files_fill_a_frame_and_are_not_divided() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    let mut writer = writer(&lease, ZSTD, 2);
    let tar = write_entries(&mut writer, &[9_728; 500]);
    let made = finish(&store, writer);
    let frames = seek(&made.blob);
    assert_eq!(frames.len(), tar.len().div_ceil(102 * 10_240));
    assert!(frames.iter().all(|(_, raw)| raw.len() % 10_240 == 0));
}

#[test]
fn the_blob_does_not_depend_on_threads_or_on_how_it_was_written() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    for compression in ALL {
        let made = [1, 2, 3, 8].map(|workers| {
            let mut writer = writer(&lease, compression, workers);
            write_entries(&mut writer, &LENGTHS);
            finish(&store, writer)
        });
        assert!(made.iter().all(|other| *other == made[0]), "{compression:?}");

        // Without entries, in pieces of different lengths.
        let tar = decode(compression, &made[0].blob);
        let pieces = [tar.len(), 1 << 20, 4_097, 65_536].map(|length| {
            let mut writer = writer(&lease, compression, 2);
            tar.chunks(length).for_each(|piece| writer.write_all(piece).unwrap());
            finish(&store, writer)
        });
        assert!(pieces.iter().all(|other| *other == pieces[0]), "{compression:?}");
        assert!(decode(compression, &pieces[0].blob) == tar);
    }
}

#[test]
fn an_empty_layer_is_a_stream() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    for compression in ALL {
        let made = finish(&store, writer(&lease, compression, 2));
        assert_eq!(made.layer.diff_id, DiffId::of(b""));
        assert_eq!(decode(compression, &made.blob), b"");
        assert_eq!(made.blob.is_empty(), compression == Compression::None);
    }
}

#[test]
fn what_does_not_compress_is_stored() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    let noise = Coin(1).noise(5_000_000);
    for compression in ALL {
        let mut writer = writer(&lease, compression, 2);
        writer.write_all(&noise).unwrap();
        let made = finish(&store, writer);
        assert!(made.blob.len() < noise.len() + noise.len() / 1000, "{compression:?}: {}", made.blob.len());
        assert!(decode(compression, &made.blob) == noise);
    }
}

#[test]
fn a_full_disk_ends_every_writer_cleanly() {
    let place = scratch();
    let disk = CrashBackend::new(&place.path().join("store"), Plan::Sound);
    let store = Store::open(Arc::new(disk.clone())).unwrap();
    let mut tar = Coin(7).noise(5 << 20);
    for workers in [1, 2, 8] {
        let lease = store.lease().unwrap();
        disk.set_plan(Plan::Sound);
        let mut whole = writer(&lease, ZSTD, workers);
        whole.write_all(&tar).unwrap();
        whole.finish().unwrap();
        // The last one removes the staged name, which the lease does too.
        let operations = disk.count() - 1;
        assert!(operations > 8, "{operations}");
        for failing in 1..operations {
            // Each run has its own blob: one that is there already need not be published.
            tar[..2].copy_from_slice(&[workers as u8, failing as u8]);
            disk.set_plan(Plan::FailOnly(failing, ENOSPC));
            let mut writer = writer(&lease, ZSTD, workers);
            let written = tar.chunks(300_000).try_for_each(|piece| writer.write_all(piece));
            if let Err(error) = &written {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull, "operation {failing}");
                let again = writer.write_all(b"more").unwrap_err();
                assert_eq!(again.kind(), io::ErrorKind::StorageFull);
            }
            let error = writer.finish().expect_err("operation failed");
            assert!(matches!(error, Error::Store(store::Error::NoSpace { .. })), "operation {failing}: {error:?}");
        }
    }
    disk.set_plan(Plan::Sound);
    assert_eq!(std::fs::read_dir(place.path().join("store/stage")).unwrap().count(), 0);
}

#[test]
fn a_full_disk_ends_a_retraction_cleanly() {
    let place = scratch();
    let disk = CrashBackend::new(&place.path().join("store"), Plan::Sound);
    let store = Store::open(Arc::new(disk.clone())).unwrap();
    let lease = store.lease().unwrap();
    // Too little for threads, so that the operations always come in one order. A frame in the middle is encoded again.
    let retract = |plan: Plan| {
        let mut writer = writer(&lease, ZSTD, 2);
        write_entries(&mut writer, &[600_000, 10, 20, 100_000]);
        disk.set_plan(plan);
        let retracted = writer.retract(vec![600_512..601_034], &lease);
        if retracted.is_err() {
            assert!(writer.write_all(b"more").is_err());
            assert!(writer.finish().is_err());
        }
        retracted
    };
    retract(Plan::Sound).unwrap();
    // The last two remove the old blob and the new one, for which the lease would do.
    let operations = disk.count() - 2;
    assert!(operations >= 5, "{operations}");
    for failing in 0..operations {
        let error = retract(Plan::FailOnly(failing, ENOSPC)).expect_err("operation failed");
        assert!(matches!(error, Error::Store(store::Error::NoSpace { .. })), "operation {failing}: {error:?}");
    }
}

#[test]
fn a_writer_that_is_dropped_leaves_no_thread_and_no_file() {
    let (place, store) = store();
    let lease = store.lease().unwrap();
    let tar = text(3, 20 << 20);
    for _ in 0..5 {
        let mut writer = writer(&lease, ZSTD, 3);
        writer.write_all(&tar).unwrap();
        assert!(threads().contains(&"snapfs-layer".to_owned()));
        drop(writer);
        let staged = std::fs::read_dir(place.path().join("store/stage")).unwrap().next().unwrap().unwrap();
        assert_eq!(std::fs::read_dir(staged.path()).unwrap().count(), 0);
    }
}

/// The names of this process's threads. Other tests have theirs, so that only presence can be asserted.
fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let name = |task: io::Result<std::fs::DirEntry>| std::fs::read_to_string(task.ok()?.path().join("comm")).ok();
    tasks.filter_map(name).map(|name| name.trim_end().to_owned()).collect()
}
