//! The store stopped after every one of its operations, and with every one of them failing alone: what can be seen
//! afterwards is whole, what was acknowledged is there, and of the rest nothing is left.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use snapfs::oci::Digest;
use snapfs::store::{Error, Replace, Store};

use crate::harness::backend::{Crash, CrashBackend, EIO, ENOSPC, Plan};
use crate::harness::image::{build, commit, digest, name, verify};
use crate::harness::scratch;

/// What the names stand for, as far as the store has said so, and the label `k` of those that have one.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Names(BTreeMap<String, Digest>, BTreeMap<String, String>);

impl Names {
    fn set(&mut self, name: &str, image: Digest) {
        self.1.remove(name);
        self.0.insert(name.to_owned(), image);
    }

    fn take(&mut self, name: &str) -> Digest {
        self.1.remove(name);
        self.0.remove(name).unwrap()
    }
}

/// One step of the life of a store, and what it makes of the names.
struct Step {
    act: fn(&Store) -> Result<(), Error>,
    effect: fn(&mut Names),
}

const BASE: &[u8] = b"the base layer, which is shared";

fn steps() -> Vec<Step> {
    vec![
        Step {
            act: |store| commit(store, "img", &[BASE, b"one"]).map(drop),
            effect: |names| names.set("img", digest(&[BASE, b"one"])),
        },
        Step {
            act: |store| commit(store, "r.example/team/web:1", &[BASE, b"two"]).map(drop),
            effect: |names| names.set("r.example/team/web:1", digest(&[BASE, b"two"])),
        },
        // One image gets a second name without a blob being written.
        Step {
            act: |store| {
                let lease = store.lease()?;
                let record = store.record(&name("img")).ok_or(Error::NoSuchName { name: name("img") })?;
                store.tag(&lease, &name("img:stable"), (*record).clone(), Replace::Allowed).map(drop)
            },
            effect: |names| names.set("img:stable", names.0["img"]),
        },
        Step {
            act: |store| relabel(store, "v"),
            effect: |names| drop(names.1.insert("img".to_owned(), "v".to_owned())),
        },
        Step {
            act: |store| relabel(store, "w"),
            effect: |names| drop(names.1.insert("img".to_owned(), "w".to_owned())),
        },
        Step { act: |store| store.remember("diff-id", "sha256:00", b"fact"), effect: |_| {} },
        // The name moves to a new image.
        Step {
            act: |store| commit(store, "img", &[BASE, b"one", b"three"]).map(drop),
            effect: |names| names.set("img", digest(&[BASE, b"one", b"three"])),
        },
        // A rename over an existing name, across directories, which leaves empty ones behind.
        Step {
            act: |store| store.rename(&name("r.example/team/web:1"), &name("img:stable"), Replace::Allowed),
            effect: |names| {
                let moved = names.take("r.example/team/web:1");
                names.set("img:stable", moved);
            },
        },
        // And one into new directories.
        Step {
            act: |store| store.rename(&name("img:stable"), &name("a/b/c"), Replace::Refused),
            effect: |names| {
                let moved = names.take("img:stable");
                names.set("a/b/c", moved);
            },
        },
        Step {
            act: |store| store.remove(&name("img")),
            effect: |names| {
                names.take("img");
            },
        },
        Step { act: |store| store.gc().map(drop), effect: |_| {} },
        // Blobs that were just collected come back.
        Step {
            act: |store| commit(store, "again", &[b"three", b"one"]).map(drop),
            effect: |names| names.set("again", digest(&[b"three", b"one"])),
        },
        // An operation that gives up leaves nothing.
        Step { act: |store| build(&store.lease()?, &[b"never named"]).map(drop), effect: |_| {} },
        Step {
            act: |store| store.remove(&name("a/b/c")),
            effect: |names| {
                names.take("a/b/c");
            },
        },
    ]
}

fn relabel(store: &Store, value: &str) -> Result<(), Error> {
    let change = |labels: &mut BTreeMap<String, String>| {
        labels.insert("k".to_owned(), value.to_owned());
        Ok(())
    };
    store.relabel(&name("img"), change).map(drop)
}

/// What the names may stand for: what was acknowledged, with or without the step that was not.
type Allowed = Vec<Names>;

/// Every state that the steps go through, the empty one first.
fn states(steps: &[Step]) -> Vec<Names> {
    let mut states = vec![Names::default()];
    for step in steps {
        let mut next = states.last().unwrap().clone();
        (step.effect)(&mut next);
        states.push(next);
    }
    states
}

fn names_of(store: &Store) -> Names {
    let names = store.names();
    let label = |record: &snapfs::store::Record| record.labels.get("k").cloned();
    Names(
        names.iter().map(|(name, record)| (name.to_string(), record.manifest.digest)).collect(),
        names.iter().filter_map(|(name, record)| Some((name.to_string(), label(record)?))).collect(),
    )
}

/// Open what a crash left, and hold it against the promises.
fn check(place: &Path, allowed: &Allowed, context: &str) {
    let store = Store::open_dir(place).unwrap_or_else(|error| panic!("{context}: {error}"));
    assert_eq!(store.faults(), [], "{context}");
    let names = names_of(&store);
    assert!(allowed.contains(&names), "{context}: found {names:#?}, allowed {allowed:#?}");

    let needed: BTreeSet<Digest> = store.names().values().flat_map(|record| verify(&store, record)).collect();
    store.gc().unwrap();
    assert_eq!(files(&place.join("blobs")), needed.iter().map(Digest::hex).collect(), "{context}: blobs");
    let paths = names.0.keys().map(|name| name.rsplit('/').next().unwrap().to_owned()).collect();
    assert_eq!(files(&place.join("names")), paths, "{context}: names");
    for empty in ["stage", "quarantine"] {
        assert_eq!(std::fs::read_dir(place.join(empty)).unwrap().count(), 0, "{context}: {empty}");
    }
    assert_eq!(store.fsck().unwrap(), [], "{context}");
    // And it goes on working.
    commit(&store, "after/the:crash", &[BASE, b"one", b"two", b"after"]).unwrap();
    verify(&store, &store.record(&name("after/the:crash")).unwrap());
}

/// The names of all files below a directory; an empty directory counts as one, because none may be left.
fn files(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() {
            let below = files(&entry.path());
            if below.is_empty() && entry.file_name() != "sha256" {
                found.insert(format!("{}/", entry.path().display()));
            }
            found.extend(below);
        } else {
            found.insert(entry.file_name().into_string().unwrap());
        }
    }
    found
}

/// The three crashes, the random one as often as there are seeds.
fn crashes() -> impl Iterator<Item = Crash> {
    [Crash::Kill, Crash::PowerCut].into_iter().chain((0..4).map(Crash::PowerCutAtRandom))
}

fn salted(crash: Crash, salt: usize) -> Crash {
    match crash {
        Crash::PowerCutAtRandom(seed) => Crash::PowerCutAtRandom(seed * 1_000_003 + salt as u64),
        Crash::Kill | Crash::PowerCut => crash,
    }
}

/// How many operations the whole life takes on a sound disk.
fn operations(steps: &[Step]) -> usize {
    let place = scratch();
    let disk = CrashBackend::new(place.path(), Plan::Sound);
    let store = Store::open(Arc::new(disk.clone())).unwrap();
    for (step, state) in steps.iter().zip(&states(steps)[1..]) {
        (step.act)(&store).unwrap();
        assert_eq!(&names_of(&store), state, "the steps are what their effects say");
    }
    drop(store);
    disk.count()
}

#[test]
fn a_crash_after_any_operation() {
    let steps = steps();
    let states = states(&steps);
    let total = operations(&steps);
    assert!(total > 150, "{total} operations are not the life that was meant");
    for n in 0..=total {
        let place = scratch();
        let disk = CrashBackend::new(place.path(), Plan::StopAfter(n));
        let mut done = 0;
        if let Ok(store) = Store::open(Arc::new(disk.clone())) {
            done = steps.iter().take_while(|step| (step.act)(&store).is_ok()).count();
        }
        let allowed: Allowed = states[done..].iter().take(2).cloned().collect();
        for crash in crashes() {
            let crash = salted(crash, n);
            let left = scratch();
            disk.materialise(crash, left.path());
            check(left.path(), &allowed, &format!("stopped after {n} of {total} operations, {crash:?}"));
        }
    }
}

#[test]
fn a_crash_during_recovery() {
    let steps = steps();
    let states = states(&steps);
    // A store that was stopped in the middle of its second commit: leftovers of every kind.
    for stopped_at in [45, 60, 75] {
        for n in 0..60 {
            let place = scratch();
            let disk = CrashBackend::new(place.path(), Plan::StopAfter(stopped_at));
            let store = Store::open(Arc::new(disk.clone())).unwrap();
            let done = steps.iter().take_while(|step| (step.act)(&store).is_ok()).count();
            drop(store);
            disk.set_plan(Plan::StopAfter(n));
            let _ = Store::open(Arc::new(disk.clone())).map(|store| store.gc());
            let allowed: Allowed = states[done..].iter().take(2).cloned().collect();
            for crash in crashes() {
                let left = scratch();
                disk.materialise(salted(crash, n), left.path());
                check(left.path(), &allowed, &format!("stopped at {stopped_at}, again after {n}, {crash:?}"));
            }
        }
    }
}

/// A single failure: the step that met it says so or had no need of it, the store in memory and the store on the disk
/// agree, and with the disk sound again a restart finds everything in order.
#[test]
fn any_operation_fails_alone() {
    let steps = steps();
    let total = operations(&steps);
    for errno in [ENOSPC, EIO] {
        for n in 0..total {
            let context = format!("operation {n} of {total} fails with errno {errno}");
            let place = scratch();
            let disk = CrashBackend::new(place.path(), Plan::FailOnly(n, errno));
            let mut expected = Names::default();
            let mut uncertain = Vec::new();
            if let Ok(store) = Store::open(Arc::new(disk.clone())) {
                for step in &steps {
                    let mut after = expected.clone();
                    match (step.act)(&store) {
                        Ok(()) => {
                            (step.effect)(&mut after);
                            expected = after;
                        }
                        Err(Error::NoSpace { .. }) => assert_eq!(errno, ENOSPC, "{context}"),
                        Err(Error::Io { .. }) => assert_eq!(errno, EIO, "{context}"),
                        Err(Error::ReadOnly { .. }) => assert!(store.failure().is_some(), "{context}"),
                        // A later step that builds on the one that failed.
                        Err(Error::NoSuchName { .. }) => {}
                        Err(error) => panic!("{context}: {error}"),
                    }
                    assert_eq!(names_of(&store), expected, "{context}: a failed step leaves the names as they were");
                    if store.failure().is_some() && uncertain.is_empty() {
                        // The directory's fsync failed: after a power cut both are possible.
                        let mut with = expected.clone();
                        let failed = steps.iter().position(|other| std::ptr::eq(other, step)).unwrap();
                        (steps[failed].effect)(&mut with);
                        uncertain.push(with);
                    }
                }
                for record in store.names().values() {
                    verify(&store, record);
                }
            }
            check_left(&disk, Crash::Kill, &vec![expected.clone()], &context);
            uncertain.push(expected);
            check_left(&disk, Crash::PowerCut, &uncertain, &context);
            check_left(&disk, Crash::PowerCutAtRandom(n as u64), &uncertain, &context);
        }
    }
}

fn check_left(disk: &CrashBackend, crash: Crash, allowed: &Allowed, context: &str) {
    let left = scratch();
    disk.materialise(crash, left.path());
    check(left.path(), allowed, &format!("{context}, {crash:?}"));
}

/// The disk must be able to convict: without the order law's syncs the same checks fail.
#[test]
fn the_checks_notice_a_missing_sync() {
    let place = scratch();
    let disk = CrashBackend::new(place.path(), Plan::Sound);
    let store = Store::open(Arc::new(disk.clone())).unwrap();
    let lease = store.lease().unwrap();
    let (blob, _) = lease.put(b"a blob whose name nothing has made durable").unwrap();
    let left = scratch();
    disk.materialise(Crash::PowerCut, left.path());
    assert!(!left.path().join("blobs/sha256").join(blob.hex()).exists());
    commit(&store, "img", &[b"x"]).unwrap();
    let left = scratch();
    disk.materialise(Crash::PowerCut, left.path());
    assert!(left.path().join("blobs/sha256").join(blob.hex()).exists());
}
