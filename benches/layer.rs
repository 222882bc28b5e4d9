//! What a layer costs: `cargo bench --bench layer [-- DIRECTORY] [--files | --writers]`, the last table or the one before
//! alone; with `--profile` it only makes layers, for a profiler. Tables for docs/performance.md.
//!
//! Without a directory, about 500 MB of this machine's /usr are copied to one next to the build. Everything is compared
//! in one run, taking turns, because a machine's speed changes from minute to minute; `tar` and `zstd` must be installed.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout, clippy::disallowed_methods, reason = "a bench")]

use std::fs;
use std::io::Write;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use snapfs::changeset::{Namespace, flatten, tar};
use snapfs::image::{Compression, Layer, LayerWriter};
use snapfs::progress::Progress;
use snapfs::store::Store;

const TREE: u64 = 500_000_000;
const SMALL: u64 = 32 << 10;
const TURNS: usize = 7;
const MIB: f64 = 1_048_576.0;
const ZSTD: Compression = Compression::Zstd { level: 1 };

fn main() {
    let given = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let work = Path::new(env!("CARGO_TARGET_TMPDIR")).join("layer");
    let _ = fs::remove_dir_all(work.join("store"));
    fs::create_dir_all(&work).unwrap();
    let tree = given.unwrap_or_else(|| sample(&work.join("tree")));
    let store = Store::open_dir(&work.join("store")).unwrap();

    let changes = flatten(std::slice::from_ref(&tree), Namespace::Trusted, &Progress::new()).unwrap();
    let mut bytes = Vec::new();
    tar::write(&changes, &mut bytes, &Progress::new(), tar::Options::default()).unwrap();
    let entries = entries(&bytes);
    println!("{} entries, {:.0} MiB of tar, {} processors\n", entries.len(), bytes.len() as f64 / MIB, processors());

    let only = |option: &str| std::env::args().any(|argument| argument == option);
    if only("--writers") {
        return writers(&store, &bytes, &entries);
    }
    if !only("--files") && !only("--profile") {
        frame_sizes(&bytes, &entries);
        writers(&store, &bytes, &entries);
    }
    drop(bytes);
    if only("--profile") {
        return (0..TURNS).for_each(|_| layer(&store, &tree));
    }
    side_by_side(&store, &tree);
}

fn processors() -> usize {
    std::thread::available_parallelism().unwrap().get()
}

/// Files of /usr/lib and /usr/share, about 500 MB in 10,000: less of the small ones than there are in /usr, which is no
/// container's layer.
fn sample(place: &Path) -> PathBuf {
    if place.exists() {
        return place.to_owned();
    }
    let mut files = Vec::new();
    for top in ["/usr/lib", "/usr/share"] {
        walk(Path::new(top), &mut files);
    }
    let mut small = 0;
    files.retain(|(_, size)| {
        small += u32::from(*size < SMALL);
        *size >= SMALL || small % 8 == 0
    });
    let all: u64 = files.iter().map(|(_, size)| size).sum();
    let staging = place.with_extension("new");
    let _ = fs::remove_dir_all(&staging);
    let (mut seen, mut taken) = (0, 0);
    for (file, size) in files {
        seen += size;
        // In the proportion of the whole, so that large and small files are as frequent as in /usr.
        if size > TREE / 10 || taken + size > seen * TREE / all.max(TREE) {
            continue;
        }
        taken += size;
        let to = staging.join(file.strip_prefix("/").unwrap());
        fs::create_dir_all(to.parent().unwrap()).unwrap();
        fs::copy(file, to).unwrap();
    }
    fs::rename(&staging, place).unwrap();
    place.to_owned()
}

fn walk(directory: &Path, files: &mut Vec<(PathBuf, u64)>) {
    let mut found: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    found.sort();
    for path in found {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            walk(&path, files);
        } else if metadata.is_file() {
            files.push((path, metadata.len()));
        }
    }
}

/// Where each entry begins, its headers included, and the length of its content.
fn entries(bytes: &[u8]) -> Vec<(usize, u64)> {
    let (mut entries, mut begin, mut at) = (Vec::new(), 0, 0);
    while let Some(header) = bytes.get(at..at + 512).filter(|header| header[0] != 0) {
        let size = header[124..135].iter().fold(0, |size, digit| size * 8 + u64::from(digit - b'0'));
        at += 512 + (size as usize).next_multiple_of(512);
        if header[156] != b'x' {
            entries.push((begin, size));
            begin = at;
        }
    }
    entries
}

fn seconds(act: impl FnOnce()) -> f64 {
    let start = Instant::now();
    act();
    start.elapsed().as_secs_f64()
}

/// Processor time of this process and of its children that have ended, in seconds (proc(5): fields 14 to 17 of stat).
fn processor_time() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap();
    let fields = stat.rsplit(") ").next().unwrap().split(' ').skip(11).take(4);
    // The unit is 1/100 s on every architecture that Linux has.
    fields.map(|field| field.parse::<f64>().unwrap() / 100.0).sum()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Ratio and speed of one thread for frames of different sizes, cut as the layer writer cuts.
fn frame_sizes(bytes: &[u8], entries: &[(usize, u64)]) {
    println!("| level | frame | own frame from | frames | ratio | MiB/s, one thread |\n|---|---|---|---|---|---|");
    let sizes =
        [(256 << 10, 64 << 10), (512 << 10, 64 << 10), (1 << 20, 64 << 10), (2 << 20, 64 << 10), (4 << 20, 64 << 10)];
    let others = [(1 << 20, 256 << 10), (1 << 20, usize::MAX), (4 << 20, usize::MAX), (usize::MAX, usize::MAX)];
    for (level, (frame, own)) in
        sizes.into_iter().chain(others).map(|size| (1, size)).chain([(2, sizes[2]), (3, sizes[2])])
    {
        let mut ends = Vec::new();
        let mut begin = 0;
        for (at, size) in entries.iter().copied().chain([(bytes.len(), 0)]) {
            while at - begin > frame {
                begin += frame;
                ends.push(begin);
            }
            if at > begin && (size as usize >= own || at - begin + 2048 + size as usize > frame) {
                begin = at;
                ends.push(at);
            }
        }
        ends.push(bytes.len());
        ends.dedup();
        let mut compressor = zstd::bulk::Compressor::new(level).unwrap();
        compressor.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).unwrap();
        let mut packed = vec![0; zstd::zstd_safe::compress_bound(frame.min(bytes.len()))];
        let mut best = f64::MAX;
        let mut length = 0;
        for _ in 0..2 {
            length = 0;
            best = best.min(seconds(|| {
                let mut from = 0;
                for end in &ends {
                    length += compressor.compress_to_buffer(&bytes[from..*end], &mut packed[..]).unwrap();
                    from = *end;
                }
            }));
        }
        let show = |size: usize| if size == usize::MAX { "-".to_owned() } else { format!("{} KiB", size >> 10) };
        let (ratio, speed) = (bytes.len() as f64 / length as f64, bytes.len() as f64 / MIB / best);
        println!("| {level} | {} | {} | {} | {ratio:.3} | {speed:.0} |", show(frame), show(own), ends.len());
    }
    println!();
}

fn write(store: &Store, bytes: &[u8], entries: &[(usize, u64)], compression: Compression, workers: usize) -> Layer {
    let lease = store.lease().unwrap();
    let mut writer =
        LayerWriter::with_workers(lease.blob().unwrap(), compression, NonZero::new(workers).unwrap()).unwrap();
    for (n, (at, size)) in entries.iter().enumerate() {
        writer.begin_entry(*size);
        let end = entries.get(n + 1).map_or(bytes.len(), |next| next.0);
        bytes[*at..end].chunks(1 << 20).for_each(|chunk| writer.write_all(chunk).unwrap());
    }
    let layer = writer.finish().unwrap();
    drop(lease);
    store.gc().unwrap();
    layer
}

/// The writer alone, fed from memory; the time includes the fsync of the blob.
fn writers(store: &Store, bytes: &[u8], entries: &[(usize, u64)]) {
    println!("| compression | workers | s | MiB/s | processor, s | ratio |\n|---|---|---|---|---|---|");
    let kinds = [
        (ZSTD, 1),
        (ZSTD, 2),
        (Compression::ZstdChunked, 2),
        (ZSTD, 3),
        (Compression::Zstd { level: 3 }, 2),
        (Compression::Gzip, 2),
        (Compression::None, 2),
    ];
    for (compression, workers) in kinds {
        let (mut times, mut size, before) = (Vec::new(), 0, processor_time());
        for _ in 0..3 {
            times.push(seconds(|| size = write(store, bytes, entries, compression, workers).descriptor.size));
        }
        let (time, length) = (median(times), bytes.len() as f64);
        println!(
            "| {compression:?} | {workers} | {time:.2} | {:.0} | {:.2} | {:.3} |",
            length / MIB / time,
            (processor_time() - before) / 3.0,
            length / size as f64
        );
    }
    println!();
}

fn shell(command: &str, tree: &Path) {
    let mut bash = Command::new("bash");
    bash.args(["-c", command, "bash"]).arg(tree).stdout(std::process::Stdio::null());
    assert!(bash.status().unwrap().success(), "{command}");
}

fn layer(store: &Store, tree: &Path) {
    let lease = store.lease().unwrap();
    let changes = flatten(&[tree.to_owned()], Namespace::Trusted, &Progress::new()).unwrap();
    let mut writer = LayerWriter::new(lease.blob().unwrap(), ZSTD).unwrap();
    tar::write(&changes, &mut writer, &Progress::new(), tar::Options::default()).unwrap();
    writer.finish().unwrap();
    drop(lease);
    store.gc().unwrap();
}

/// From files to a layer in the store, against the usual command line.
fn side_by_side(store: &Store, tree: &Path) {
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let in_memory = Store::open_dir(&memory.path().join("store")).unwrap();
    type Way<'a> = (&'a str, Box<dyn Fn() + 'a>);
    let ways: Vec<Way<'_>> = vec![
        (
            "`tar \\| zstd -1 -T0 \\| sha256sum`",
            Box::new(|| shell("tar -c -C \"$1\" . | zstd -q -1 -T0 | sha256sum", tree)),
        ),
        (
            "the same with what snapfs makes: a hash of the tar, a file",
            Box::new(|| {
                shell(
                    "tar -c -C \"$1\" . | tee >(sha256sum) | zstd -q -1 -T0 | tee \"$1.zst\" | sha256sum; sync \"$1.zst\"; rm \"$1.zst\"",
                    tree,
                );
            }),
        ),
        ("snapfs: both hashes, a durable blob", Box::new(|| layer(store, tree))),
        ("snapfs: both hashes, a blob in memory", Box::new(|| layer(&in_memory, tree))),
    ];
    let mut times: Vec<Vec<f64>> = ways.iter().map(|_| Vec::new()).collect();
    let mut loads = times.clone();
    for turn in 0..=TURNS {
        for (((_, act), times), loads) in ways.iter().zip(&mut times).zip(&mut loads) {
            let before = processor_time();
            let time = seconds(act);
            // The first turn warms the page cache.
            if turn > 0 {
                times.push(time);
                loads.push(processor_time() - before);
            }
        }
        // What one way left to write must not slow the next turn.
        std::thread::sleep(Duration::from_millis(200));
    }
    println!("| from files | wall, s | range | processor, s | wall, median of the ratios |\n|---|---|---|---|---|");
    let base = times[0].clone();
    for (((name, _), times), loads) in ways.iter().zip(times).zip(loads) {
        let ratio = median(times.iter().zip(&base).map(|(time, base)| time / base).collect());
        let range = times.iter().fold((f64::MAX, 0_f64), |(least, most), time| (least.min(*time), most.max(*time)));
        let (time, load) = (median(times), median(loads));
        println!("| {name} | {time:.2} | {:.2} - {:.2} | {load:.2} | {ratio:.2} |", range.0, range.1);
    }
}
