//! A whole commit, stopped after every operation of its store and with every one of them failing alone: what can be seen
//! afterwards is whole down to the unpacked layers, what was acknowledged is there, nothing else is, and the container runs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;

use snapfs::api;
use snapfs::capture::{Context, Error};
use snapfs::commit::{Options, commit};
use snapfs::engine::{Container, Engine};
use snapfs::oci::{Digest, Hasher};
use snapfs::progress::Progress;
use snapfs::store::{self, Store};
use snapfs::sys::clock::Clock;
use snapfs::tree::ErrorKind;

use crate::harness::backend::{Crash, CrashBackend, EIO, ENOSPC, Plan};
use crate::harness::image::{name, read_whole};
use crate::harness::rootfs::file;
use crate::harness::scratch;
use crate::harness::world::{EPOCH, LIMIT, World};

/// What is committed, one after the other: new names in new directories, and a name that moves.
const LINES: [&str; 3] =
    ["kept", "registry.example/team/web:1 compression=gzip pause=full", "kept message=moved label.a=b"];

/// Name → manifest.
type Names = BTreeMap<String, Digest>;

/// A container, and what it takes to commit it into any store.
struct Subject {
    world: World,
    container: Container,
}

impl Subject {
    /// On an overlay; of an image of two layers, or of none.
    fn new(with_image: bool, runs: bool) -> Option<Subject> {
        let world = World::new()?;
        world.overlay("web");
        world.make("web", &[file("big", vec![7; 300_000]), file("etc/more", "more")]);
        if with_image {
            world.engine.set_base_image("web", "base", vec![vec![1; 20_000], vec![2; 1000]]);
        }
        if runs {
            world.run("web");
        }
        let container = world.engine.list().unwrap().containers.remove(0);
        Some(Subject { world, container })
    }

    fn commit(&self, store: &Store, line: &str) -> Result<Digest, Error> {
        let context = Context {
            store,
            engine: &self.world.engine,
            guard: &self.world.guard,
            // Every run of the same commits does the same operations, and makes the same images.
            clock: Clock::fixed(EPOCH).unwrap(),
            freeze_limit: Some(LIMIT),
        };
        let options = Options::parse(line).unwrap();
        commit(&context, &self.container, &options, &Progress::new()).map(|manifest| manifest.digest)
    }

    /// The names after each of the commits, the empty store first, and how many operations all took.
    fn sound(&self) -> (Vec<Names>, usize) {
        let place = scratch();
        let disk = CrashBackend::new(place.path(), Plan::Sound);
        let store = Store::open(Arc::new(disk.clone())).unwrap();
        let mut states = vec![Names::new()];
        for line in LINES {
            self.commit(&store, line).unwrap();
            states.push(names(&store));
        }
        assert_eq!(states.iter().collect::<BTreeSet<_>>().len(), LINES.len() + 1, "each commit changes the names");
        (states, disk.count())
    }

    /// Open what is left, hold it against the promises, and go on working with it.
    fn check(&self, place: &Path, allowed: &[Names], context: &str) {
        let store = Store::open_dir(place).unwrap_or_else(|error| panic!("{context}: {error}"));
        assert_eq!(store.faults(), [], "{context}");
        let found = names(&store);
        assert!(allowed.contains(&found), "{context}: found {found:#?}, allowed {allowed:#?}");
        self.check_whole(&store, context);
        self.commit(&store, "after/the:crash").unwrap_or_else(|error| panic!("{context}: {error}"));
        read_whole(&store, &store.record(&name("after/the:crash")).unwrap());
        drop(store);
        for litter in ["stage", "quarantine"] {
            assert_eq!(fs::read_dir(place.join(litter)).unwrap().count(), 0, "{context}: {litter}");
        }
    }

    /// Every image is complete, and a collection leaves nothing that no image needs.
    fn check_whole(&self, store: &Store, context: &str) {
        store.gc().unwrap_or_else(|error| panic!("{context}: {error}"));
        let needed: BTreeSet<Digest> =
            store.names().values().flat_map(|record| read_whole(store, record).blobs).collect();
        assert_eq!(store.usage().unwrap().blobs, needed.len() as u64, "{context}: blobs that no name needs");
        assert_eq!(store.fsck().unwrap(), [], "{context}");
    }
}

fn names(store: &Store) -> Names {
    store.names().iter().map(|(name, record)| (name.to_string(), record.manifest.digest)).collect()
}

/// All paths and bytes in a directory.
fn fingerprint(directory: &Path) -> Digest {
    let (mut hasher, mut waiting) = (Hasher::new(), vec![directory.to_owned()]);
    while let Some(path) = waiting.pop() {
        hasher.update(path.strip_prefix(directory).unwrap().as_os_str().as_bytes());
        hasher.update(&[0]);
        if path.is_dir() {
            let mut inside: Vec<_> = fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            inside.sort();
            waiting.extend(inside);
        } else {
            let bytes = fs::read(&path).unwrap();
            hasher.update(&(bytes.len() as u64).to_le_bytes());
            hasher.update(&bytes);
        }
    }
    hasher.digest()
}

fn crashes(salt: usize) -> impl Iterator<Item = Crash> {
    let seeds = (0..4).map(move |seed| Crash::PowerCutAtRandom(seed * 1_000_003 + salt as u64));
    [Crash::Kill, Crash::PowerCut].into_iter().chain(seeds)
}

fn crash_after_any_operation(with_image: bool) {
    let Some(subject) = Subject::new(with_image, false) else { return };
    let (states, total) = subject.sound();
    assert!(total > 80, "{total} operations are not the commits that were meant");
    // Many operations change nothing, and many crashes lose nothing: what was checked once is not checked again.
    let mut checked = BTreeSet::new();
    for n in 0..=total {
        let place = scratch();
        let disk = CrashBackend::new(place.path(), Plan::StopAfter(n));
        let mut done = 0;
        if let Ok(store) = Store::open(Arc::new(disk.clone())) {
            done = LINES.iter().take_while(|line| subject.commit(&store, line).is_ok()).count();
        }
        // What was acknowledged, with or without the one that was not.
        let allowed = &states[done..states.len().min(done + 2)];
        for crash in crashes(n) {
            let left = scratch();
            disk.materialise(crash, left.path());
            if checked.insert((done, fingerprint(left.path()))) {
                subject.check(left.path(), allowed, &format!("stopped after {n} of {total} operations, {crash:?}"));
            }
        }
    }
}

#[test]
fn a_crash_after_any_operation_of_a_commit_of_an_image() {
    crash_after_any_operation(true);
}

#[test]
fn a_crash_after_any_operation_of_a_commit_of_a_bare_overlay() {
    crash_after_any_operation(false);
}

/// One failure, and a disk that is sound again: an error with the kind that it deserves or none at all, no half, no name of
/// what failed, no frozen container, and the next commit succeeds, in this daemon or in the next.
fn any_operation_fails_alone(errno: i32, kind: ErrorKind) {
    let Some(subject) = Subject::new(true, true) else { return };
    let (states, total) = subject.sound();
    let (mut errors, mut checked) = (0, BTreeSet::new());
    for n in 0..total {
        let context = format!("operation {n} of {total} fails with errno {errno}");
        let place = scratch();
        let disk = CrashBackend::new(place.path(), Plan::FailOnly(n, errno));
        let Ok(store) = Store::open(Arc::new(disk.clone())) else { continue };
        let (mut expected, mut with_the_failed) = (Names::new(), None);
        for (line, sound) in LINES.iter().zip(&states[1..]) {
            let name = line.split(' ').next().unwrap();
            let was_sound = store.failure().is_none();
            match subject.commit(&store, line) {
                Ok(digest) => {
                    assert!(was_sound, "{context}: {line} was acknowledged by a store that takes no changes");
                    expected.insert(name.to_owned(), digest);
                }
                Err(error) => {
                    errors += 1;
                    let is_read_only = matches!(&error, Error::Store(store::Error::ReadOnly { .. }));
                    let error = api::Error::from(error);
                    let expected_kind = if was_sound { kind } else { ErrorKind::ReadOnly };
                    assert_eq!(error.kind, expected_kind, "{context}: {line}: {error}");
                    assert_eq!(is_read_only, !was_sound, "{context}: {line}: {error}");
                    assert!(error.message.contains("; "), "{context}: {line}: {error}: and what to do about it?");
                }
            }
            subject.world.assert_thawed("web", &context);
            assert_eq!(names(&store), expected, "{context}: {line}");
            if !expected.contains_key(name) || expected[name] != sound[name] {
                match store.failure() {
                    None => {
                        let again = subject.commit(&store, line);
                        let digest = again.unwrap_or_else(|error| panic!("{context}: {line} again: {error}"));
                        expected.insert(name.to_owned(), digest);
                    }
                    // An fsync failed, and nobody knows whether its directory has the name; the image is whole either way.
                    Some(_) if was_sound => {
                        let mut names = expected.clone();
                        names.insert(name.to_owned(), sound[name]);
                        with_the_failed = Some(names);
                    }
                    Some(_) => {}
                }
            }
            assert!(store.failure().is_some() || expected[name] == sound[name], "{context}: {line} is another image");
        }
        disk.set_plan(Plan::Sound);
        if store.failure().is_none() {
            subject.check_whole(&store, &context);
        }
        drop(store);
        let maybe: Vec<Names> = [expected.clone()].into_iter().chain(with_the_failed).collect();
        for (crash, allowed) in [(Crash::Kill, &[expected][..]), (Crash::PowerCut, &maybe)] {
            let left = scratch();
            disk.materialise(crash, left.path());
            if checked.insert((allowed.to_vec(), fingerprint(left.path()))) {
                subject.check(left.path(), allowed, &format!("{context}, {crash:?}"));
            }
        }
    }
    assert!(errors > total / 2, "{errors} errors of {total} operations: most of them must matter");
}

#[test]
fn any_operation_finds_the_disk_full() {
    any_operation_fails_alone(ENOSPC, ErrorKind::NoSpace);
}

#[test]
fn any_operation_fails() {
    any_operation_fails_alone(EIO, ErrorKind::Io);
}
