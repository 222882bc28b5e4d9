//! `zstd:chunked`, read as podman reads it, and by nothing of ours: each file alone, and the tar made again.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::process::Command;
use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use snapfs::changeset::{Namespace, flatten};
use snapfs::image::{Compression, Error, Layer, TAIL, seek_table_end};
use snapfs::oci::{DiffId, Digest};
use snapfs::progress::Progress;
use snapfs::store::{Error as StoreError, Store};

use crate::harness::backend::{CrashBackend, ENOSPC, Plan};
use crate::harness::rootfs::{Item, dir, file, hardlink, make, sparse, symlink};
use crate::harness::{have, scratch};
use crate::layer::{Coin, Made, decode, finish, seek, store, text, writer};
use crate::roundtrip::layer_of;
use ::tar::EntryType;

const CHUNKED: Compression = Compression::ZstdChunked;
const PREFIX: &str = "io.github.containers.zstd-chunked";

/// The sum that tar-split keeps.
fn crc64(bytes: &[u8]) -> u64 {
    static TABLE: LazyLock<[u64; 256]> = LazyLock::new(|| {
        let step = |r: u64, _| if r & 1 == 1 { r >> 1 ^ 0xD800_0000_0000_0000 } else { r >> 1 };
        std::array::from_fn(|byte| (0..8).fold(byte as u64, step))
    });
    let table = &*TABLE;
    !bytes.iter().fold(!0, |register: u64, byte| register >> 8 ^ table[usize::from(register as u8 ^ byte)])
}

/// One zstd stream, in any number of frames.
fn inflate(bytes: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    zstd::stream::read::Decoder::new(bytes).unwrap().read_to_end(&mut content).unwrap();
    content
}

/// What is at `OFFSET:LENGTH:UNCOMPRESSED…` of the blob, in a skippable frame; and where that begins.
fn located(made: &Made, key: &str) -> (usize, Vec<u8>, Vec<u8>) {
    let numbers: Vec<usize> =
        made.layer.descriptor.annotations[key].split(':').map(|number| number.parse().unwrap()).collect();
    let packed = &made.blob[numbers[0]..numbers[0] + numbers[1]];
    let header = [0x184D_2A50u32.to_le_bytes(), (packed.len() as u32).to_le_bytes()].concat();
    assert_eq!(made.blob[numbers[0] - 8..numbers[0]], header);
    let content = inflate(packed);
    assert_eq!(content.len(), numbers[2]);
    (numbers[0] - 8, packed.to_vec(), content)
}

/// Check everything that podman checks of a blob, and more; returns the table of contents.
pub(crate) fn verify(made: &Made, tar: &[u8]) -> Vec<Value> {
    let (blob, annotations) = (&made.blob, &made.layer.descriptor.annotations);
    assert_eq!(annotations.len(), 3, "{annotations:?}");
    assert_eq!(made.layer.diff_id, DiffId::of(tar));
    assert!(decode(CHUNKED, blob) == tar, "any decoder reads the tar");
    let (end, packed, contents) = located(made, &format!("{PREFIX}.manifest-position"));
    let (_, packed_parts, parts) = located(made, &format!("{PREFIX}.tarsplit-position"));
    assert_eq!(annotations[&format!("{PREFIX}.manifest-checksum")], Digest::of(&packed).to_string());
    assert!(annotations[&format!("{PREFIX}.manifest-position")].ends_with(":1"));

    // Who has only the blob finds the same.
    let footer: Vec<u64> =
        blob[blob.len() - 64..].chunks(8).map(|number| u64::from_le_bytes(number.try_into().unwrap())).collect();
    let [toc, toc_packed, toc_length, kind, split, split_packed, split_length, magic] = footer[..] else { panic!() };
    let key = |name: &str| annotations[&format!("{PREFIX}.{name}")].clone();
    assert_eq!(key("manifest-position"), format!("{toc}:{toc_packed}:{toc_length}:{kind}"));
    assert_eq!(key("tarsplit-position"), format!("{split}:{split_packed}:{split_length}"));
    assert_eq!(magic.to_le_bytes(), *b"GNUlInUx");
    assert_eq!(seek_table_end(&blob[blob.len() - TAIL..], blob.len() as u64), end as u64);
    assert!(seek(&blob[..end]).iter().flat_map(|(_, raw)| raw).eq(tar), "the seek table is before it");

    let contents: Value = serde_json::from_slice(&contents).unwrap();
    assert_eq!(contents["version"], 1);
    assert_eq!(contents["tarSplitDigest"], Digest::of(&packed_parts).to_string());
    let entries = contents["entries"].as_array().unwrap().clone();
    // podman makes directories when it needs them, in several threads, of which only one would succeed.
    let is_file = |entry: &&Value| entry["type"] != "dir";
    assert!(entries.iter().skip_while(|entry| !is_file(entry)).all(|entry| is_file(&entry)), "directories come first");
    let files = files(blob, &entries);
    let again = assemble(&String::from_utf8(parts).unwrap(), &files);
    assert!(again == tar, "the tar is made again from its parts");
    entries
}

/// The content of every file, fetched by itself, and of every chunk by itself.
fn files(blob: &[u8], entries: &[Value]) -> BTreeMap<String, Vec<u8>> {
    let number = |value: &Value| value.as_u64().unwrap_or(0) as usize;
    let mut files = BTreeMap::new();
    for (n, entry) in entries.iter().enumerate().filter(|(_, entry)| entry["type"] == "reg") {
        let (offset, end) = (number(&entry["offset"]), number(&entry["endOffset"]));
        let content = if end == 0 { Vec::new() } else { inflate(&blob[offset..end]) };
        assert_eq!(content.len(), number(&entry["size"]));
        if content.is_empty() {
            assert_eq!((offset, &entry["digest"]), (0, &Value::Null));
        } else {
            assert_eq!(entry["digest"], Digest::of(&content).to_string());
        }
        let more: Vec<&Value> = entries[n + 1..].iter().take_while(|entry| entry["type"] == "chunk").collect();
        let chunks: Vec<&Value> = if more.is_empty() { more } else { [vec![entry], more].concat() };
        let (mut at, mut place) = (0, offset);
        for (m, chunk) in chunks.iter().enumerate() {
            assert_eq!((&chunk["name"], number(&chunk["chunkOffset"])), (&entry["name"], at));
            assert_eq!(number(&chunk["offset"]), place);
            place = chunks.get(m + 1).map_or(end, |next| number(&next["offset"]));
            let part = inflate(&blob[number(&chunk["offset"])..place]);
            assert!(part.len() <= 1 << 20 && part == content[at..at + part.len()]);
            assert_eq!(number(&chunk["chunkSize"]), part.len());
            assert_eq!(chunk["chunkDigest"], Digest::of(&part).to_string());
            assert_eq!(chunk["chunkType"] == "zeros", part.iter().all(|byte| *byte == 0));
            at += part.len();
        }
        assert!(chunks.is_empty() || at == content.len());
        assert!(chunks.is_empty() == (content.len() <= 1 << 20), "one chunk has no word of it");
        files.insert(entry["name"].as_str().unwrap().to_owned(), content);
    }
    files
}

/// What tar-split makes of its list.
fn assemble(parts: &str, files: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut tar = Vec::new();
    for (n, line) in parts.lines().enumerate() {
        let part: Value = serde_json::from_str(line).unwrap();
        assert_eq!(part["position"], n);
        if part["type"] == 2 {
            tar.extend(STANDARD.decode(part["payload"].as_str().unwrap()).unwrap());
        } else if part["size"].as_u64().unwrap_or(0) > 0 {
            let content = &files[part["name"].as_str().unwrap()];
            assert_eq!(part["size"], content.len());
            assert_eq!(part["payload"], STANDARD.encode(crc64(content).to_be_bytes()));
            tar.extend(content);
        } else {
            assert_eq!(part["payload"], Value::Null);
        }
    }
    tar
}

/// All kinds of files, of all lengths that matter.
pub(crate) fn tree() -> Vec<Item> {
    let long = "a-name-that-is-rather-long/".repeat(12);
    let deep = format!("{long}file");
    let mut items = vec![
        dir("d").mode(0o700).owner(1, 2).mtime(1_000_000_000, 0),
        dir(long.trim_end_matches('/')),
        file("d/empty", ""),
        file("d/one", "1").mode(0o4755).owner(70_000, 3_000_000).mtime(1_600_000_000, 123_456_789),
        file("d/512", text(1, 512)).mtime(1_600_000_000, 0),
        file("d/block", text(2, 513)),
        file("d/chunk", text(3, 1 << 20)),
        file("d/chunk+1", text(4, (1 << 20) + 1)),
        file("d/large", [text(5, 3_000_000), Coin(5).noise(700_000)].concat()),
        file(&deep, "deep").xattr("user.colour", b"red\0\nblue").xattr("user.empty", b""),
        file("d/\u{e9}\u{2028}<&>\"\\ \n", "odd").mtime(-7, 5),
        file("d/may-ping", "x").xattr("security.capability", b"\x01\0\0\x02\0\x20\0\0\0\0\0\0\0\0\0\0\0\0\0\0"),
        sparse("d/sparse", 5_000_000, &[(2_500_000, b"island")]),
        sparse("d/zeros", 3 << 20, &[]),
        symlink("d/link", "../\u{fc}ber"),
        symlink("d/far", &deep),
        hardlink("d/hard", "d/large"),
    ];
    items.extend((0..30).map(|n| file(format!("small/{n}"), text(n, 100 * n as usize))));
    items
}

/// The layer of a tar that comes in pieces.
fn layer(store: &Store, tar: &[u8], workers: usize, piece: usize) -> Made {
    let lease = store.lease().unwrap();
    let mut writer = writer(&lease, CHUNKED, workers);
    tar.chunks(piece).for_each(|piece| writer.write_all(piece).unwrap());
    finish(store, writer)
}

#[test]
fn every_file_can_be_fetched_alone_and_the_tar_made_again() {
    if !have("root") {
        return;
    }
    let (place, store) = store();
    let root = place.path().join("tree");
    make(&root, &tree());
    let tar = layer_of(&flatten(&[root], Namespace::Trusted, &Progress::new()).unwrap());
    let made = layer(&store, &tar, 2, 300_000);
    let entries = verify(&made, &tar);
    let find = |name: &str| entries.iter().find(|entry| entry["name"] == name).unwrap();
    assert_eq!((&find("d/one")["mode"], &find("d/one")["uid"]), (&0o4755.into(), &70_000.into()));
    assert_eq!(find("d/one")["modtime"], "2020-09-13T12:26:40.123456789Z");
    assert_eq!((&find("d/")["type"], &find("d/link")["type"]), (&"dir".into(), &"symlink".into()));
    let (link, file) = if find("d/hard")["type"] == "hardlink" { ("d/hard", "d/large") } else { ("d/large", "d/hard") };
    assert_eq!(find(link)["linkName"], file);
    assert_eq!(find("d/link")["linkName"], "../\u{fc}ber");
    let zeros = entries.iter().filter(|entry| entry["chunkType"] == "zeros").count();
    assert_eq!(zeros, 3 + 4, "holes need not be fetched");
    // However it is written, and by however many.
    for (workers, piece) in [(1, 511), (3, 1 << 20), (8, tar.len())] {
        assert!(layer(&store, &tar, workers, piece) == made, "{workers} workers, pieces of {piece}");
    }
}

#[test]
fn other_writers_tars_are_made_again_too() {
    let (place, store) = store();
    let root = place.path().join("tree");
    make(
        &root,
        &[dir("d"), file("d/a", text(1, 70_000)), file("d/empty", ""), symlink("d/l", "a"), hardlink("d/h", "d/a")],
    );
    let long = format!("d/{}", "n".repeat(150));
    for (format, is_long) in [("v7", false), ("oldgnu", true), ("gnu", true), ("ustar", false), ("posix", true)] {
        if is_long {
            make(&root, &[file(&long, "long")]);
        }
        let mut program = Command::new("tar");
        let output =
            program.args(["-c", "--format", format, "-C"]).arg(&root).args(["--sort=name", "."]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let entries = verify(&layer(&store, &output.stdout, 2, 10_000), &output.stdout);
        assert_eq!(entries.len(), if is_long { 7 } else { 6 }, "{format}");
        assert!(!is_long || entries.iter().any(|entry| entry["name"] == format!("./{long}")), "{format}");
        fs::remove_file(root.join(&long)).unwrap_or_default();
    }
}

/// A header and its content.
pub(crate) fn entry(name: &[u8], content: &[u8]) -> Vec<u8> {
    let mut header = ::tar::Header::new_ustar();
    header.as_old_mut().name[..name.len()].copy_from_slice(name);
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    let padding = vec![0; content.len().next_multiple_of(512) - content.len()];
    [header.as_bytes(), content, &padding].concat()
}

#[test]
fn what_podman_could_not_check_is_plain_zstd_and_says_so() {
    let (_place, store) = store();
    let lease = store.lease().unwrap();
    let good = entry(b"good", &text(1, 100_000));
    let cases: [(Vec<u8>, &str); 6] = [
        (entry(b"latin\xe9", b"x"), "not UTF-8"),
        (entry(b"./good", b"x"), "twice"),
        (entry(b"x/.././good", b"x"), "twice"),
        (vec![b'7'; 512], "check sum"),
        (entry(b"cut", &[0; 1000])[..700].to_vec(), "frames to itself"),
        (entry(b"cut", b"")[..100].to_vec(), "ends within an entry"),
    ];
    for (bad, reason) in cases {
        let tar = [&good[..], &bad].concat();
        let progress = Progress::new();
        let mut writer = writer(&lease, CHUNKED, 2);
        writer.write_all(&tar).unwrap();
        let layer = writer.finish_for(&progress).unwrap();
        assert!(progress.lines()[0].contains(reason), "{:?}", progress.lines());
        assert_plain(&store, layer, &tar);
    }
    for kind in [EntryType::Char, EntryType::Block, EntryType::Fifo] {
        let mut header = ::tar::Header::new_ustar();
        header.set_path("special").unwrap();
        header.set_entry_type(kind);
        header.set_size(0);
        header.set_cksum();
        let progress = Progress::new();
        let mut writer = writer(&lease, CHUNKED, 2);
        writer.write_all(header.as_bytes()).unwrap();
        assert_plain(&store, writer.finish_for(&progress).unwrap(), header.as_bytes());
        assert!(progress.lines()[0].contains("a device or a FIFO"));
    }
    // What has been taken back does not count.
    let mut writer = writer(&lease, CHUNKED, 2);
    let bad = entry(b"latin\xe9", &text(2, 70_000));
    let tar = [&good[..], &entry(b"next", b"n"), &[0; 1024]].concat();
    writer.write_all(&[&good[..], &bad].concat()).unwrap();
    writer.retract(vec![good.len() as u64..(good.len() + bad.len()) as u64], &lease).unwrap();
    writer.write_all(&tar[good.len()..]).unwrap();
    verify(&finish(&store, writer), &tar);
}

fn assert_plain(store: &Store, layer: Layer, tar: &[u8]) {
    let mut blob = Vec::new();
    store.open_blob(&layer.descriptor.digest).unwrap().read_to_end(&mut blob).unwrap();
    assert!(layer.descriptor.annotations.is_empty());
    assert_eq!(layer.diff_id, DiffId::of(tar));
    assert!(seek(&blob).iter().flat_map(|(_, raw)| raw).eq(tar));
    let tail = blob.len().saturating_sub(TAIL);
    assert_eq!(seek_table_end(&blob[tail..], blob.len() as u64), blob.len() as u64);
}

#[test]
fn a_full_disk_ends_it_cleanly() {
    let place = scratch();
    let disk = CrashBackend::new(&place.path().join("store"), Plan::Sound);
    let store = Store::open(Arc::new(disk.clone())).unwrap();
    let lease = store.lease().unwrap();
    // Each run has its own blob: one that is there already need not be published.
    let write = |run: usize, plan: Plan| {
        let mut writer = writer(&lease, CHUNKED, 2);
        writer.write_all(&entry(b"f", run.to_string().as_bytes())).unwrap();
        disk.set_plan(plan);
        writer.finish()
    };
    write(0, Plan::Sound).unwrap();
    // The last one removes the staged name, which the lease does too.
    let operations = disk.count() - 1;
    assert!(operations > 8, "{operations}");
    for failing in 0..operations {
        let error = write(failing + 1, Plan::FailOnly(failing, ENOSPC)).expect_err("operation failed");
        assert!(matches!(error, Error::Store(StoreError::NoSpace { .. })), "operation {failing}: {error:?}");
    }
    disk.set_plan(Plan::Sound);
    write(operations + 1, Plan::Sound).unwrap();
}

#[test]
fn a_hundred_thousand_files_take_little_memory() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "layer::chunked::write_a_hundred_thousand_files", "--ignored", "--nocapture"]);
    let output = child.output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    let peak = printed.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("a layer of 100,000 files took {} MiB at most", peak >> 10);
    assert!(peak < 128 << 10, "{peak} kB");
}

#[test]
#[ignore = "run by a_hundred_thousand_files_take_little_memory"]
fn write_a_hundred_thousand_files() {
    // On a disk: a blob in memory would count.
    let place = tempfile::tempdir().unwrap();
    let store = Store::open_dir(&place.path().join("store")).unwrap();
    let lease = store.lease().unwrap();
    let mut writer = writer(&lease, CHUNKED, 2);
    for n in 0..100_000 {
        let content = format!("{n} ").repeat(n % 100);
        writer.write_all(&entry(format!("usr/share/some/place/{n}").as_bytes(), content.as_bytes())).unwrap();
    }
    writer.write_all(&[0; 1024]).unwrap();
    let layer = writer.finish().unwrap();
    let status = fs::read_to_string("/proc/self/status").unwrap();
    println!("\n{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
    assert_eq!(layer.descriptor.annotations.len(), 3);
    println!("{} {:?}", layer.descriptor.size, layer.descriptor.annotations);
}
