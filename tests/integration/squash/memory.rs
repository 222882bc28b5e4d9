//! The memory of a merge, whatever is merged.

use std::io::Write;
use std::process::Command;

use snapfs::image::{Compression, LayerWriter};
use snapfs::progress::Progress;
use snapfs::squash::squash;

use crate::layer::text;
use crate::squash::Place;
use crate::view::tars::Tar;

/// What a merge may take and what a test's process has anyway, in kB.
const LIMIT: u64 = 128 << 10;

/// In a process of its own: the other tests have their memory too.
#[test]
fn a_third_of_a_gigabyte_takes_less_than_128_mib() {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "squash::memory::merge_a_third_of_a_gigabyte", "--ignored", "--nocapture"]);
    let output = child.output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}");
    let peak = printed.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    println!("to merge 320 MB took {} MiB at most", peak >> 10);
    assert!(peak < LIMIT, "{peak} kB");
}

#[test]
#[ignore = "run by a_third_of_a_gigabyte_takes_less_than_128_mib"]
fn merge_a_third_of_a_gigabyte() {
    let place = Place::new();
    let content = text(1, 1 << 20);
    let layers = ["a", "b"].map(|layer| {
        let mut writer = LayerWriter::new(place.lease.blob().unwrap(), Compression::default()).unwrap();
        let mut put = |path: String, size: usize| {
            writer.begin_entry(size as u64);
            let entry = Tar::default().file(&path, &content[..size]).end();
            writer.write_all(&entry[..entry.len() - 1024]).unwrap();
        };
        for n in 0..80 {
            put(format!("{layer}/{n}"), 1 << 20);
            put(format!("{layer}/small/{n}"), 1000);
            // What both have is that of the upper one.
            put(format!("both/{n}"), 1 << 20);
        }
        writer.write_all(&[0; 1024]).unwrap();
        writer.finish().unwrap()
    });
    let one =
        squash(&place.store, &place.lease, &layers, 0, Compression::default(), &Progress::new()).unwrap().unwrap();
    assert!(one.descriptor.size < layers.iter().map(|layer| layer.descriptor.size).sum::<u64>() * 4 / 5);
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("\n{}", status.lines().find(|line| line.starts_with("VmHWM:")).unwrap());
}
