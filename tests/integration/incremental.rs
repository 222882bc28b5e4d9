//! Snapshots of snapshots: each is only what changed since the one before, and together they are the container's tree.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use snapfs::capture::Context;
use snapfs::commit::{Options, commit};
use snapfs::engine::Engine;
use snapfs::progress::Progress;
use snapfs::store::Store;
use snapfs::sys::clock::Clock;
use snapfs::tree::ErrorKind;

use crate::harness::backend::{Crash, CrashBackend, Plan};
use crate::harness::cgroup::wait_for;
use crate::harness::image::{Whole, name, read_whole};
use crate::harness::lab::{Bundle, Container};
use crate::harness::mount::{Place, in_lab};
use crate::harness::rootfs::{absent, dir, facts, file, hardlink, symlink};
use crate::harness::scratch;
use crate::harness::world::{LIMIT, World};
use crate::roundtrip::random::{Op, cases, op, run};
use crate::roundtrip::{check, check_umoci};

/// Until every change time has settled: see `changeset::SETTLED`.
pub(crate) fn settle() {
    std::thread::sleep(Duration::from_millis(25));
}

pub(crate) fn base_of(image: &Whole) -> &str {
    image.annotation("io.snapfs.base").unwrap()
}

/// The paths in the topmost layer.
pub(crate) fn top(image: &Whole) -> Vec<String> {
    let mut paths: Vec<String> = image.paths(image.tars.len() - 1).into_iter().map(|(path, _)| path).collect();
    paths.sort();
    paths
}

/// A world with one stopped container, `web`, with a few files, and its image `one`.
pub(crate) fn world() -> Option<World> {
    let world = World::new()?;
    world.overlay("web");
    world.make(
        "web",
        &[file("data/a", vec![1; 100_000]), file("data/b", "b"), hardlink("data/c", "data/b"), dir("empty")],
    );
    settle();
    world.commit("web", "one").unwrap();
    Some(world)
}

#[test]
fn a_snapshot_holds_what_changed_since_the_one_before() {
    let Some(world) = world() else { return };
    let one = world.whole("one");
    assert_eq!((base_of(&one), one.annotation("io.snapfs.parent")), ("image", None));
    world.make("web", &[file("data/new", "new"), absent("empty")]);
    settle();
    world.commit("web", "two message=second").unwrap();
    let two = world.whole("two");
    assert_eq!(two.tars[..one.tars.len()], one.tars);
    assert_eq!(top(&two), ["./", ".wh.empty", "data/", "data/new"]);
    assert_eq!(
        (base_of(&two), two.annotation("io.snapfs.parent")),
        ("snapshot", Some(&*world.digest("one").to_string()))
    );
    assert_eq!(world.line("images/two/parent"), world.digest("one").to_string());
    let history = two.config["history"].as_array().unwrap();
    assert_eq!((history.len(), &history[2]["comment"]), (3, &"second".into()));
    // Nothing changed, and nothing is in a layer.
    world.commit("web", "three").unwrap();
    let three = world.whole("three");
    assert_eq!((three.tars.clone(), base_of(&three)), (two.tars.clone(), "snapshot"));
    assert_eq!(three.config["history"][3]["empty_layer"], true);
    // One name of an inode stands for all of them, and attributes alone for the file.
    world.make("web", &[hardlink("data/0", "data/c"), file("data/new", "new").mode(0o640)]);
    settle();
    world.commit("web", "four").unwrap();
    assert_eq!(top(&world.whole("four")), ["./", "data/", "data/0", "data/b", "data/c", "data/new"]);
    // A directory in the place of a file, and the other way round.
    world.make(
        "web",
        &[absent("data/new"), dir("data/new"), file("data/new/in", "x"), absent("etc/new"), symlink("etc/new", "a")],
    );
    settle();
    world.commit("web", "five").unwrap();
    let five = world.whole("five");
    assert_eq!(top(&five), ["./", "data/", "data/new/", "data/new/in", "etc/", "etc/new"]);
    check("five", &five.tars, facts(&world.root_of("web")), true);
    world.assert_store_clean("after five commits");
}

#[test]
fn what_a_snapshot_stands_on_can_be_said() {
    let Some(world) = world() else { return };
    let layers = |image: &str| world.whole(image).tars.len();
    let first = layers("one");
    world.make("web", &[file("data/new", "new")]);
    settle();
    for (line, expected) in [
        ("two base=one", first + 1),
        ("three base=image", first),
        ("four", first),
        ("five squash=snapshots", first),
        ("six base=five", first),
        ("seven compression=gzip", first),
        ("eight compression=gzip", first),
        ("nine", first),
    ] {
        let image = line.split(' ').next().unwrap();
        world.commit("web", &format!("{line} message={image}")).unwrap();
        assert_eq!(layers(image), expected, "{line}");
        check(line, &world.whole(image).tars, facts(&world.root_of("web")), true);
    }
    assert_eq!(base_of(&world.whole("eight")), "snapshot");
    assert_eq!(base_of(&world.whole("nine")), "image", "the last one is stored as gzip");
    for (line, kind, says) in [
        ("x base=one", ErrorKind::Unsupported, "base=nine can be had"),
        ("x base=none", ErrorKind::NotFound, "there is no image none"),
        ("x base=nine compression=none", ErrorKind::Unsupported, "stored with another compression"),
    ] {
        let error = world.commit("web", line).unwrap_err();
        assert!(error.kind == kind && error.message.contains(says), "{line}: {:?} {error}", error.kind);
    }
    // Another container's image is no base either.
    world.overlay("db");
    assert!(world.commit("db", "x base=nine").unwrap_err().message.contains("it is not known"));
    assert!(world.store.record(&name("x")).is_none());
}

/// Files that were changed so that nobody can see it but by reading them.
#[test]
fn what_cannot_be_trusted_is_read_again() {
    let Some(world) = World::new() else { return };
    let container = world.overlay("web");
    let snapfs::engine::RootFs::Overlay(overlay) = &container.root else { panic!("an overlay") };
    world.make("web", &[file("data/a", "a"), file("data/b", "b")]);
    settle();
    let about = world.place.join("cache/about");
    let fact = || fs::read_dir(&about).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<PathBuf>>();
    let lay = |what: &str, base: &str| {
        world.commit("web", &format!("{what} message={what}")).unwrap();
        let whole = world.whole(what);
        assert_eq!(base_of(&whole), base, "{what}");
        check(what, &whole.tars, facts(&world.root_of("web")), true);
        whole
    };
    lay("one", "image");
    lay("two", "snapshot");
    assert_eq!(fact().len(), 1, "one for each container");
    // A damaged fact, at any byte, and none.
    let bytes = fs::read(&fact()[0]).unwrap();
    for at in [0, 80, bytes.len() / 2, bytes.len() - 1] {
        let mut damaged = fs::read(&fact()[0]).unwrap();
        damaged[at] ^= 1;
        fs::write(&fact()[0], damaged).unwrap();
        lay("damaged", "image");
    }
    fs::remove_file(&fact()[0]).unwrap();
    lay("gone", "image");
    // The image it is about was removed and collected.
    lay("last", "snapshot");
    world.store.remove(&name("last")).unwrap();
    world.store.gc().unwrap();
    assert!(fact().is_empty(), "forgotten with its image");
    lay("after", "image");
    // Only a layer of it is missing.
    let layer = world.whole("after").manifest["layers"][1]["digest"].as_str().unwrap().replace("sha256:", "");
    fs::remove_file(world.place.join("blobs/sha256").join(layer)).unwrap();
    for image in ["one", "two", "damaged", "gone", "after"] {
        let _ = world.store.remove(&name(image));
    }
    lay("whole", "image");
    // A copy in the place of the upper directory: its files are others, with change times of their own.
    lay("before", "snapshot");
    let (upper, copy) = (overlay.upper.clone(), overlay.upper.with_extension("copy"));
    crate::harness::lab::run(&["cp", "-a", upper.to_str().unwrap(), copy.to_str().unwrap()]);
    world.change(|engine| {
        engine.change("web", |container| {
            if let snapfs::engine::RootFs::Overlay(overlay) = &mut container.root {
                overlay.upper.clone_from(&copy);
            }
        });
    });
    world.commit("web", "copied").unwrap();
    assert_eq!(base_of(&world.whole("copied")), "image");
    // Another container that has its id.
    world.change(|engine| {
        engine.change("web", |container| container.created = Some("2002-02-03T04:05:06Z".parse().unwrap()));
    });
    world.commit("web", "other").unwrap();
    assert_eq!(base_of(&world.whole("other")), "image");
    assert_eq!(fact().len(), 2);
    // A collection, which follows a failure, forgets what is known of a container that is gone.
    world.commit("web", "x base=none").unwrap_err();
    wait_for("the one of before is forgotten", LIMIT, || fact().len() == 1);
    world.overlay("db");
    world.change(|engine| engine.remove("web"));
    world.commit("db", "x base=none").unwrap_err();
    wait_for("it is forgotten with its container", LIMIT, || fact().is_empty());
}

#[test]
fn a_chain_of_snapshots_does_not_grow_for_ever() {
    let Some(world) = world() else { return };
    let container = world.engine.list().unwrap().containers.remove(0);
    let context = Context {
        store: &world.store,
        engine: &world.engine,
        guard: &world.guard,
        clock: Clock::system(),
        freeze_limit: Some(LIMIT),
    };
    let mut depths = Vec::new();
    for n in 0..9 {
        world.make("web", &[file(format!("data/{n}"), format!("{n}"))]);
        settle();
        let options = Options { most_layers: 5, ..Options::parse("img").unwrap() };
        commit(&context, &container, &options, &Progress::new()).unwrap();
        let whole = world.whole("img");
        check("img", &whole.tars, facts(&world.root_of("web")), true);
        depths.push(whole.tars.len());
    }
    // The snapshots of before as one, and the new one.
    assert_eq!(depths, [3, 4, 5, 3, 4, 5, 3, 4, 5]);
}

/// A chain of images of a container that changes at random, each compared as a whole.
fn random_chain(base: &[Op], steps: &[Vec<Op>], runs: bool, umoci: bool) {
    let Some(world) = World::new() else { return };
    world.unchanged_on("web", |lower| run(lower, base));
    if runs {
        world.run("web");
    }
    let mut on_snapshots = 0;
    for (n, ops) in steps.iter().enumerate() {
        run(&world.root_of("web"), ops);
        if n % 2 == 0 {
            settle();
        }
        world.commit("web", "img").unwrap();
        let whole = world.whole("img");
        on_snapshots += usize::from(base_of(&whole) == "snapshot");
        let expected = facts(&world.root_of("web"));
        check(&format!("step {n}"), &whole.tars, expected.clone(), true);
        if umoci {
            check_umoci(&format!("step {n}"), &whole.tars, expected, true);
        }
    }
    // A difference that cannot be told is rare.
    assert!(on_snapshots + 1 >= steps.len() / 2, "{on_snapshots} of {} stand on a snapshot", steps.len());
}

pub(crate) fn steps() -> impl Strategy<Value = Vec<Vec<Op>>> {
    prop::collection::vec(prop::collection::vec(op(true), 0..15), 2..5)
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 60, ..cases(24) })]

    #[test]
    fn random_chains_survive_gnu_tar(base in prop::collection::vec(op(true), 0..25), steps in steps(), runs: bool) {
        random_chain(&base, &steps, runs, false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 30, ..cases(8) })]

    #[test]
    fn random_chains_survive_umoci(base in prop::collection::vec(op(true), 0..25), steps in steps()) {
        if in_lab() {
            random_chain(&base, &steps, false, true);
        }
    }
}

/// Whatever is left of what was remembered, the next image is the container's tree.
#[test]
fn a_crash_after_any_operation_of_a_second_snapshot() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let container = world.engine.list().unwrap().containers.remove(0);
    let commit_to = |store: &Store, line: &str| {
        let clock = Clock::system();
        let context = Context { store, engine: &world.engine, guard: &world.guard, clock, freeze_limit: Some(LIMIT) };
        commit(&context, &container, &Options::parse(line).unwrap(), &Progress::new()).map(|_| ())
    };
    let mut n = 0;
    let mut on_snapshots = 0;
    loop {
        let place = scratch();
        let disk = CrashBackend::new(place.path(), Plan::StopAfter(n));
        let mut is_done = false;
        if let Ok(store) = Store::open(Arc::new(disk.clone())) {
            world.make("web", &[file("data/first", format!("{n}")), absent("data/second"), file("data/kept", "kept")]);
            settle();
            let first = commit_to(&store, "one").is_ok();
            world.make("web", &[file("data/second", format!("{n}")), absent("data/first")]);
            settle();
            is_done = first && commit_to(&store, "two").is_ok();
        }
        for crash in [Crash::Kill, Crash::PowerCutAtRandom(n as u64)] {
            let left = scratch();
            disk.materialise(crash, left.path());
            let store = Store::open_dir(left.path()).unwrap();
            store.gc().unwrap();
            commit_to(&store, "three").unwrap();
            let whole = read_whole(&store, &store.record(&name("three")).unwrap());
            on_snapshots += usize::from(base_of(&whole) == "snapshot");
            check(&format!("stopped after {n} operations, {crash:?}"), &whole.tars, facts(&world.root_of("web")), true);
        }
        if is_done {
            break;
        }
        // Most of what happens is the same for some operations on end.
        n += 3;
    }
    assert!(n > 60 && on_snapshots > 10, "{n} operations, {on_snapshots} on snapshots");
}

/// What the kernel says a process has read, from whatever file.
pub(crate) fn read_by(pid: u32) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    line.parse().unwrap()
}

pub(crate) fn fill(root: &Path, directories: usize, bytes: usize) {
    let content: Vec<u8> = (0..bytes).map(|n| (n * 7 + n / 251) as u8).collect();
    for d in 0..directories {
        fs::create_dir_all(root.join(format!("tree/d{d}"))).unwrap();
        for f in 0..100 {
            fs::write(root.join(format!("tree/d{d}/f{f}")), &content).unwrap();
        }
    }
}

/// A daemon, a container with so many files of so many bytes, and its second snapshot: what that read, and how long it took.
fn second_snapshots(directories: usize, bytes: usize, count: usize) -> Vec<(u64, Duration)> {
    let place = Place::on_disk();
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    fill(&bundle.root(), directories, bytes);
    bundle.start();
    let daemon = place.serve();
    settle();
    place.commit("web", "img");
    let measure = |n: usize| {
        fs::write(bundle.root().join("tree/d1/f1"), format!("changed for the {n}th time")).unwrap();
        settle();
        let (before, began) = (read_by(daemon.pid()), Instant::now());
        place.write("containers/web/commit", "img").unwrap();
        let took = began.elapsed();
        (read_by(daemon.pid()) - before, took)
    };
    let found = (0..count).map(measure).collect();
    assert_eq!(place.read("images/img/annotations/io.snapfs.base"), "snapshot");
    found
}

#[test]
fn an_unchanged_file_is_not_read() {
    if !in_lab() {
        return;
    }
    let found = second_snapshots(8, 100_000, 3);
    // 80 MB of files; what is read is what is remembered of them, a few hundred bytes each, and files of the kernel's.
    for (read, _) in &found {
        assert!(*read < 2_000_000, "{found:?}");
    }
}

#[test]
#[ignore = "a measurement"]
fn how_long_a_second_snapshot_takes() {
    let found = second_snapshots(90, 56_000, 10);
    println!("504 MB in 9,000 files, one changed: {found:?}");
}
