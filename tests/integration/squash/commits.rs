//! `squash=`, and what keeps a chain of snapshots short.

use std::fs;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::json;
use snapfs::capture::{Base, Context};
use snapfs::commit::{Options, commit};
use snapfs::engine::Engine;
use snapfs::progress::Progress;
use snapfs::store::Store;
use snapfs::sys::clock::Clock;
use snapfs::tree::ErrorKind;

use crate::harness::backend::{Crash, CrashBackend, Plan};
use crate::harness::image::{name, read_whole};
use crate::harness::lab::{Bundle, Container};
use crate::harness::mount::{Place, in_lab};
use crate::harness::rootfs::{absent, dir, facts, file, hardlink, scratch, symlink};
use crate::harness::world::{LIMIT, World};
use crate::incremental::{base_of, fill, read_by, settle, steps, top, world};
use crate::roundtrip::random::{Op, cases, op, run};
use crate::roundtrip::{check, check_umoci};
use crate::squash::whiteouts;

fn context<'a>(world: &'a World, store: &'a Store) -> Context<'a> {
    let clock = Clock::system();
    Context { store, engine: &world.engine, guard: &world.guard, clock, freeze_limit: Some(LIMIT) }
}

#[test]
fn all_layers_become_one() {
    let Some(world) = world() else { return };
    world.make("web", &[absent("etc/base"), file("data/new", "new"), absent("data/a"), hardlink("data/d", "data/b")]);
    settle();
    world.commit("web", "two message=second change='CMD [\"x\"]'").unwrap();
    world.make("web", &[symlink("data/link", "b"), dir("data/dir"), file("etc/new", "newer")]);
    settle();
    for compression in ["zstd:1", "gzip", "zstd:chunked", "none"] {
        let line =
            format!("all-{} squash=all message=all compression={compression}", &compression[..4].replace(':', "-"));
        let image = line.split(' ').next().unwrap().to_owned();
        world.commit("web", &line).unwrap();
        let all = world.whole(&image);
        assert_eq!((all.tars.len(), whiteouts(&all.tars[0])), (1, vec![]), "{line}");
        check(&line, &all.tars, facts(&world.root_of("web")), true);
        let keys = ["base", "parent"].map(|key| all.annotation(&format!("io.snapfs.{key}")));
        assert_eq!((keys, all.annotation("org.opencontainers.image.base.name")), ([Some("none"), None], None));
    }
    // What is stored with another compression is read from the container again, and has no history with us.
    world.commit("web", "short compression=zstd base=image").unwrap();
    world.commit("web", "long").unwrap();
    world.commit("web", "all squash=all message=all").unwrap();
    let (long, all) = (world.whole("long"), world.whole("all"));
    assert_eq!(all.config["config"], long.config["config"]);
    let (before, after) = (long.config["history"].as_array().unwrap(), all.config["history"].as_array().unwrap());
    assert_eq!(after.len(), before.len() + 1, "no entry is lost");
    for (before, after) in before.iter().zip(after) {
        assert_eq!((&before["created_by"], &after["empty_layer"]), (&after["created_by"], &json!(true)));
    }
    assert_eq!((&after[before.len()]["comment"], &after[before.len()]["empty_layer"]), (&json!("all"), &json!(null)));
    // And the next is the difference to it.
    world.make("web", &[file("data/next", "next"), absent("data/d")]);
    settle();
    world.commit("web", "next").unwrap();
    let next = world.whole("next");
    assert_eq!((base_of(&next), next.tars.len()), ("snapshot", 2));
    assert_eq!(next.tars[0], all.tars[0]);
    check("next", &next.tars, facts(&world.root_of("web")), true);
    // But it is not what the container was started from.
    world.commit("web", "snapshots squash=snapshots").unwrap();
    world.commit("web", "anew base=image").unwrap();
    assert_eq!(world.whole("snapshots").tars, world.whole("anew").tars);
    world.assert_store_clean("after squashing");
}

#[test]
fn the_snapshots_become_one() {
    let Some(world) = world() else { return };
    world.make("web", &[file("data/new", "new"), absent("etc/base")]);
    settle();
    world.commit("web", "two").unwrap();
    world.make("web", &[absent("data/new"), absent("data/c"), dir("data/a0"), file("data/a0/x", "x")]);
    settle();
    world.commit("web", "merged squash=snapshots").unwrap();
    world.commit("web", "anew base=image").unwrap();
    let (merged, anew) = (world.whole("merged"), world.whole("anew"));
    assert_eq!((merged.tars.len(), merged.tars[0].clone()), (2, anew.tars[0].clone()));
    assert_eq!(top(&merged), top(&anew), "the same paths as if all had been read again");
    assert_eq!((base_of(&merged), merged.annotation("io.snapfs.parent")), ("image", None));
    check("merged", &merged.tars, facts(&world.root_of("web")), true);
    let history = merged.config["history"].as_array().unwrap();
    let made: Vec<bool> = history.iter().map(|entry| entry["empty_layer"] != json!(true)).collect();
    assert_eq!(made, [true, false, false, true]);
}

/// A chain that changes at random, merged again and again: each image is the container's tree.
fn random_chain(base: &[Op], steps: &[Vec<Op>], umoci: bool) {
    let Some(world) = World::new() else { return };
    world.unchanged_on("web", |lower| run(lower, base));
    let container = world.engine.list().unwrap().containers.remove(0);
    let context = context(&world, &world.store);
    let take = |what: &str, line: &str, most: usize| {
        let options = Options { most_layers: 3, ..Options::parse(line).unwrap() };
        commit(&context, &container, &options, &Progress::new()).unwrap();
        let whole = world.whole("img");
        assert!(whole.tars.len() <= most, "{what}: {} layers", whole.tars.len());
        check(what, &whole.tars, facts(&world.root_of("web")), true);
        if umoci {
            check_umoci(what, &whole.tars, facts(&world.root_of("web")), true);
        }
    };
    for (n, ops) in steps.iter().chain(steps).enumerate() {
        run(&world.root_of("web"), ops);
        settle();
        take(&format!("step {n}"), "img", 3);
    }
    take("snapshots", "img squash=snapshots", 2);
    take("all", "img squash=all", 1);
    run(&world.root_of("web"), &steps[0]);
    settle();
    take("after all", "img", 2);
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 40, ..cases(8) })]

    #[test]
    fn random_chains_are_merged(base in prop::collection::vec(op(true), 0..25), steps in steps()) {
        random_chain(&base, &steps, false);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { max_shrink_iters: 20, ..cases(2) })]

    #[test]
    fn random_merged_chains_survive_umoci(base in prop::collection::vec(op(true), 0..25), steps in steps()) {
        if in_lab() {
            random_chain(&base, &steps, true);
        }
    }
}

#[test]
fn a_damaged_layer_fails_what_would_be_made_of_it() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.make("web", &[file("data/a", crate::layer::text(1, 200_000))]);
    settle();
    world.commit("web", "one").unwrap();
    world.make("web", &[file("data/b", "b")]);
    settle();
    world.commit("web", "two").unwrap();
    let digest = world.whole("one").manifest["layers"][1]["digest"].as_str().unwrap().replace("sha256:", "");
    let path = world.place.join("blobs/sha256").join(digest);
    let mut bytes = fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    // A new file: blobs are written once.
    fs::remove_file(&path).unwrap();
    fs::write(&path, bytes).unwrap();
    for line in ["bad squash=all", "bad squash=snapshots"] {
        let error = world.commit("web", line).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Io, "{line}: {error}");
        for says in ["cannot be merged", "base=image", "the layer sha256:", "snapfs fsck"] {
            assert!(error.message.contains(says), "{line}: {error}");
        }
    }
    let container = world.engine.list().unwrap().containers.remove(0);
    let options = Options { most_layers: 3, ..Options::parse("bad").unwrap() };
    let error = commit(&context(&world, &world.store), &container, &options, &Progress::new()).unwrap_err();
    assert!(error.to_string().contains("cannot be merged"), "{error}");
    assert!(world.store.record(&name("bad")).is_none());
    world.commit("web", "good base=image").unwrap();
}

/// Whatever is left when a commit that merges is stopped, the next image is the container's tree.
#[test]
fn a_crash_after_any_operation_of_a_merge() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let container = world.engine.list().unwrap().containers.remove(0);
    let commit_to = |store: &Store, line: &str| {
        let options = Options { most_layers: 3, ..Options::parse(line).unwrap() };
        commit(&context(&world, store), &container, &options, &Progress::new()).map(|_| ())
    };
    let (mut n, mut made) = (60, 0);
    loop {
        let place = scratch();
        let disk = CrashBackend::new(place.path(), Plan::StopAfter(n));
        let mut is_done = false;
        if let Ok(store) = Store::open(Arc::new(disk.clone())) {
            let mut all_done = true;
            for (step, line) in ["one", "two", "three", "all squash=all"].into_iter().enumerate() {
                world.make(
                    "web",
                    &[file("data/kept", "kept"), file(format!("data/{step}"), format!("{n}")), absent("data/9")],
                );
                world.make("web", &[absent(format!("data/{}", (step + 3) % 4))]);
                settle();
                all_done &= commit_to(&store, line).is_ok();
            }
            is_done = all_done;
        }
        let crash = if n % 2 == 0 { Crash::Kill } else { Crash::PowerCutAtRandom(n as u64) };
        let left = scratch();
        disk.materialise(crash, left.path());
        let store = Store::open_dir(left.path()).unwrap();
        store.gc().unwrap();
        for record in store.names().values() {
            made += usize::from(read_whole(&store, record).tars.len() == 1);
        }
        commit_to(&store, "next").unwrap();
        let whole = read_whole(&store, &store.record(&name("next")).unwrap());
        check(&format!("stopped after {n} operations, {crash:?}"), &whole.tars, facts(&world.root_of("web")), true);
        assert_eq!(store.fsck().unwrap(), [], "stopped after {n} operations, {crash:?}");
        if is_done {
            break;
        }
        // Most of what happens is the same for some operations on end.
        n += 7;
    }
    assert!(n > 120 && made > 0, "{n} operations, {made} images of one layer");
}

/// The content of files that did not change comes from the store.
#[test]
fn an_unchanged_file_is_not_read_to_be_merged() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    fill(&bundle.root(), 4, 200_000);
    bundle.start();
    let daemon = place.serve();
    settle();
    place.commit("web", "img");
    let read = |line: &str| {
        fs::write(bundle.root().join("tree/d1/f1"), format!("changed for {line}")).unwrap();
        settle();
        let before = read_by(daemon.pid());
        let said = place.write("containers/web/commit", line);
        assert!(said.is_ok(), "{line}: {said:?} {}", place.read("containers/web/last_error"));
        read_by(daemon.pid()) - before
    };
    // 80 MB of files, which are a few hundred kB in the store.
    let found = [read("img squash=snapshots"), read("img squash=all"), read("img base=image")];
    println!("bytes read to merge the snapshots, to merge all, and to read all anew: {found:?}");
    assert!(found[0] < 10_000_000 && found[1] < 10_000_000, "{found:?}");
    assert!(found[2] > 75_000_000, "{found:?}");
    assert_eq!(place.read("images/img/annotations/io.snapfs.base"), "image");
}

#[test]
fn a_base_that_fills_the_image_is_begun_anew() {
    let Some(world) = world() else { return };
    let container = world.engine.list().unwrap().containers.remove(0);
    let context = context(&world, &world.store);
    // One of the base, one of what changed: there is no place for a third.
    for _ in 0..3 {
        world.make("web", &[file("data/new", "new")]);
        let options = Options { most_layers: 2, base: Base::Auto, ..Options::parse("img").unwrap() };
        commit(&context, &container, &options, &Progress::new()).unwrap();
        let whole = world.whole("img");
        assert_eq!((whole.tars.len(), base_of(&whole)), (2, "image"));
    }
}
