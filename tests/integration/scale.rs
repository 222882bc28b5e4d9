//! A hundred thousand images: how soon the daemon is ready, and how fast it lists and chooses.
//!
//! `cargo test --release --test integration -- --ignored --nocapture scale::` in the lab gives the figures that
//! docs/performance.md tells; beside other tests a tenth of it is checked for what must not depend on the machine.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::json;
use snapfs::oci::{Digest, canonical_json};
use snapfs::store::Store;

use crate::harness::image;
use crate::harness::lab::{run, text};
use crate::harness::mount::{Place, can_mount, in_lab};

/// Names that share one image, as records that a daemon would have written, a thousand a directory of images and as many
/// at the top; every hundredth has the label `env=prod`.
fn fill(store: &Path, count: usize) {
    let manifest = {
        let store = Store::open_dir(store).unwrap();
        image::commit(&store, "first", &[b"layer"]).unwrap();
        let record = store.record(&image::name("first")).unwrap();
        serde_json::to_value(&record.manifest).unwrap()
    };
    for n in 0..count {
        let mut record =
            json!({ "created": "2026-01-01T00:00:00Z", "generation": n, "kind": "commit", "manifest": manifest });
        record["labels"] = json!({ "env": if n % 100 == 0 { "prod" } else { "test" }, "n": n.to_string() });
        let bytes = canonical_json(&record).unwrap();
        let sealed = [format!("{}\n", Digest::of(&bytes)).as_bytes(), &bytes].concat();
        fs::write(store.join(format!("names/img-{n:06}")), sealed).unwrap();
    }
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() / 1024
}

struct Figures {
    ready: Duration,
    list: Duration,
    query: Duration,
    again: Duration,
    facts: Duration,
    health: Duration,
    resident: u64,
}

fn measure(count: usize) -> Figures {
    let place = Place::on_disk();
    fill(&place.other("store"), count);
    let began = Instant::now();
    let daemon = place.serve_with(&[]);
    fs::metadata(place.dir().join("images")).unwrap();
    let ready = began.elapsed();
    let dir = place.dir();
    let timed = |script: &str, expected: &str| {
        let began = Instant::now();
        let said = run(&["bash", "-c", &format!("cd {} && {script}", text(&dir))]);
        let took = began.elapsed();
        assert_eq!(said, expected, "{script}");
        took
    };
    let list = timed("ls images | wc -l", &(count + 1).to_string());
    let chosen = count.div_ceil(100).to_string();
    let query = timed("ls query/labels.env==prod | wc -l", &chosen);
    let again =
        timed("ls query/'labels.env==prod,name~=^img-00.*0$' | wc -l", &(count.min(10_000).div_ceil(100)).to_string());
    let facts = timed("ls query/'size!=0,annotations.x!=1,labels.env==prod' | wc -l", &chosen);
    let health = timed("grep -c store_images health", "1");
    let pid = place.read("health").lines().find_map(|line| line.strip_prefix("pid ")?.parse().ok()).unwrap();
    let resident = resident(pid);
    drop(daemon);
    Figures { ready, list, query, again, facts, health, resident }
}

#[test]
#[ignore = "a measurement"]
fn a_hundred_thousand_images() {
    if !in_lab() || !can_mount() {
        return;
    }
    let figures = measure(100_000);
    println!("ready {:?} (2 s)", figures.ready);
    println!("ls images | wc -l {:?} (1 s)", figures.list);
    println!("ls query/labels.env==prod {:?} (200 ms)", figures.query);
    println!("ls query/…,name~=… {:?}", figures.again);
    println!("ls query/size…,annotations… {:?}", figures.facts);
    println!("cat health {:?}", figures.health);
    println!("peak resident {} MiB (300 MiB)", figures.resident);
    assert!(figures.ready < Duration::from_secs(2) && figures.list < Duration::from_secs(1));
    assert!(figures.query < Duration::from_millis(200) && figures.resident < 300);
}

/// Nothing grows faster than the number of images: a tenth of them, with ten times the patience for a busy machine.
#[test]
fn ten_thousand_images() {
    if !in_lab() || !can_mount() {
        return;
    }
    let figures = measure(10_000);
    assert!(figures.ready < Duration::from_secs(10) && figures.list < Duration::from_secs(10), "{:?}", figures.ready);
    assert!(figures.query < Duration::from_secs(2) && figures.again < Duration::from_secs(2), "{:?}", figures.query);
    assert!(figures.resident < 300, "{}", figures.resident);
}
