//! Collection beside commits, removals and readers.

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use snapfs::store::{Error, Replace, Store};

use crate::harness::image::{commit, name, verify};

/// Four threads commit, rename and remove images that share layers, one collects, one reads, all at once: a name that
/// can be seen is whole whenever it is looked at, and in the end the blobs are those that the names need.
#[test]
fn races_with_four_committers() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open_dir(place.path()).unwrap();
    let stop = AtomicBool::new(false);
    let deadline = Instant::now() + Duration::from_secs(5);
    std::thread::scope(|scope| {
        let committers: Vec<_> = (0..4)
            .map(|thread| {
                let store = &store;
                scope.spawn(move || {
                    let mut n = 0u32;
                    while Instant::now() < deadline {
                        n += 1;
                        // The same few layers again and again, so that they are collected and wanted at once.
                        let layers = [format!("base {}", n % 3), format!("top {}", n % 5)];
                        let layers: Vec<&[u8]> = layers.iter().map(String::as_bytes).collect();
                        let own = format!("t{thread}/img");
                        commit(store, &own, &layers).unwrap();
                        verify(store, &store.record(&name(&own)).unwrap());
                        match n % 4 {
                            0 => store.remove(&name(&own)).unwrap(),
                            1 => store.rename(&name(&own), &name("shared"), Replace::Allowed).unwrap(),
                            2 => retag_shared(store, &format!("t{thread}/copy")),
                            _ => {}
                        }
                    }
                    n
                })
            })
            .collect();
        let collector = scope.spawn(|| {
            let mut removed = 0;
            while !stop.load(Ordering::Relaxed) {
                removed += store.gc().unwrap().blobs;
            }
            removed
        });
        let commits: Vec<_> = committers.into_iter().map(|thread| thread.join()).collect();
        stop.store(true, Ordering::Relaxed);
        let removed = collector.join().unwrap();
        let commits: u32 = commits.into_iter().map(Result::unwrap).sum();
        assert!(commits > 100 && removed > 10, "{commits} commits and {removed} removals are no race");
    });
    store.gc().unwrap();
    assert_eq!(store.gc().unwrap().blobs, 0, "one run reaches the fixed point");
    let needed: std::collections::BTreeSet<_> =
        store.names().values().flat_map(|record| verify(&store, record)).collect();
    assert_eq!(store.usage().unwrap().blobs, needed.len() as u64);
    assert_eq!(store.fsck().unwrap(), []);
}

/// Another thread may replace the image, and a collection remove it, between the look and the tag: then the tag is
/// refused, and never half an image named.
fn retag_shared(store: &Store, to: &str) {
    let Some(record) = store.record(&name("shared")) else { return };
    let lease = store.lease().unwrap();
    std::thread::yield_now();
    match store.tag(&lease, &name(to), (*record).clone(), Replace::Allowed) {
        Ok(record) => drop(verify(store, &record)),
        Err(Error::Incomplete { .. } | Error::NoSuchBlob { .. }) => {}
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_reader_keeps_what_it_opened() {
    let place = tempfile::tempdir().unwrap();
    let store = Store::open_dir(place.path()).unwrap();
    let layer = vec![7u8; 1 << 20];
    let manifest = commit(&store, "img", &[&layer]).unwrap();
    let mut open = store.open_blob(&snapfs::oci::Digest::of(&layer)).unwrap();
    store.remove(&name("img")).unwrap();
    assert_eq!(store.gc().unwrap().blobs, 3);
    assert!(matches!(store.open_blob(&manifest), Err(Error::NoSuchBlob { .. })));
    let mut bytes = Vec::new();
    open.read_to_end(&mut bytes).unwrap();
    assert!(bytes == layer);
}
