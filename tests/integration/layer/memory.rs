//! The memory of a writer, whatever the input.

use std::io::Write;
use std::process::Command;

use snapfs::image::LayerWriter;
use snapfs::store::Store;

use crate::layer::{Coin, ZSTD, text};

const TAR: usize = 2_000_000_000;
/// What a writer may take and what a test's process has anyway, in kB.
const LIMIT: u64 = 128 << 10;

/// In a process of its own: the other tests have their memory too.
#[test]
fn two_gigabytes_take_less_than_128_mib() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "layer::memory::write_two_gigabytes", "--ignored", "--nocapture"]);
    let output = child.output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    let peak = printed.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("a layer of 2 GB took {} MiB at most", peak >> 10);
    assert!(peak < LIMIT, "{peak} kB");
}

#[test]
#[ignore = "run by two_gigabytes_take_less_than_128_mib"]
fn write_two_gigabytes() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open_dir(&place.path().join("store")).unwrap();
    let lease = store.lease().unwrap();
    let mut writer = LayerWriter::new(lease.blob().unwrap(), ZSTD).unwrap();
    // A third is noise, which fills the buffers of encoded bytes too.
    let pool = [text(1, 4 << 20), Coin(2).noise(2 << 20)].concat();
    let mut coin = Coin(3);
    let (mut at, mut last) = (0, 0..0);
    while at < TAR {
        let size = [700, 20_000, 90_000, 3_000_000][coin.next() as usize % 4];
        let from = coin.next() as usize % (pool.len() - size);
        writer.begin_entry(size as u64);
        writer.write_all(&pool[from..from + size]).unwrap();
        last = at as u64..(at + size) as u64;
        at += size;
    }
    // The one at the beginning has everything hashed again.
    writer.retract([0..700, last].into_iter().filter(|range| !range.is_empty()).collect(), &lease).unwrap();
    writer.finish().unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    // On a line of its own, whatever the test runner has printed.
    println!("\n{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
}
