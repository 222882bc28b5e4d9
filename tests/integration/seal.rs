//! `pause=seal`: the image is the container at one moment, whatever its processes do, and the moment is short.

mod traces;
pub(crate) mod workload;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use snapfs::store::DOCUMENT_LIMIT;

use crate::harness::cgroup::wait_for;
use crate::harness::image::{Whole, name};
use crate::harness::rootfs::{Facts, Overlay, differences, facts, scratch};
use crate::harness::world::{LIMIT, Setup, World};
use crate::roundtrip::unpack;
use workload::{STAMPED, begin, command, step};

/// A world with one running container, `web`, that does `what`.
fn world(what: &str, setup: Setup, prepare: impl FnOnce(&Path)) -> Option<World> {
    let world = World::with(setup)?;
    world.overlay("web");
    let root = world.root_of("web");
    prepare(&root);
    world.run("web");
    world.group("web", |group| group.run(&command(what, &root)));
    wait_for("the workload is at work", LIMIT, || root.join("ready").exists());
    Some(world)
}

fn number(world: &World, image: &str, key: &str) -> u64 {
    world.whole(image).annotation(&format!("io.snapfs.{key}")).unwrap().parse().unwrap()
}

/// The last layer's files, unpacked by GNU tar: what changed, or what was there.
fn layers(world: &World, image: &str) -> Vec<Vec<u8>> {
    world.whole(image).tars
}

#[test]
fn an_idle_container_gives_the_same_bytes_each_time_and_nothing_is_read_while_it_is_frozen() {
    let Some(world) = world("idle", Setup::default(), |root| {
        for n in 0..50 {
            fs::create_dir_all(root.join(format!("d{n}"))).unwrap();
            for m in 0..20 {
                fs::write(root.join(format!("d{n}/f{m}")), vec![m; 3000]).unwrap();
            }
        }
        fs::hard_link(root.join("d7/f7"), root.join("d3/link")).unwrap();
        fs::remove_file(root.join("etc/base")).unwrap();
        fs::create_dir(root.join("etc/base")).unwrap();
        fs::write(root.join("etc/base/inside"), "a directory where there was a file").unwrap();
    }) else {
        return;
    };
    for (image, line) in [("one", ""), ("two", ""), ("full", " pause=full"), ("fast", " pause=none")] {
        world.commit("web", &format!("{image}{line} base=image")).unwrap();
    }
    assert_eq!((number(&world, "one", "frozen_bytes"), number(&world, "one", "rounds")), (0, 1));
    println!("frozen: {} µs", number(&world, "one", "frozen_us"));
    assert_eq!(world.whole("one").annotation("io.snapfs.pause"), Some("seal"));
    for other in ["two", "full", "fast"] {
        let (one, other) = (world.whole("one"), world.whole(other));
        for (layer, tar) in one.tars.iter().enumerate() {
            let paths = |whole: &Whole| whole.paths(layer).into_iter().map(|(path, _)| path).collect::<Vec<_>>();
            let (first, second) = (paths(&one), paths(&other));
            let differs = first.iter().zip(&second).find(|(one, other)| one != other);
            assert!(*tar == other.tars[layer], "layer {layer} differs, first at {differs:?}");
        }
    }
    let paths: Vec<String> = world.whole("one").paths(1).into_iter().map(|(path, _)| path).collect();
    let at = |path: &str| paths.iter().position(|found| found == path).unwrap();
    assert!(at("etc/base/") < at("etc/base/inside"), "what replaces a file comes before what is in it");
    assert!(at("d3/link") < at("d0/") && at("d0/f0") < at("d1/f0"), "files first, by their paths");
    world.assert_thawed("web", "after the commits");
    world.assert_store_clean("after the commits");
}

/// Every few images stand on the container's image, the others each on the one before.
fn line(round: usize) -> &'static str {
    if round.is_multiple_of(4) { "img base=image" } else { "img" }
}

/// The numbers of files that get them in their order never increase: it was one moment.
fn check_stamps(what: &str, numbers: &[u64]) {
    assert_eq!(numbers.len(), STAMPED);
    assert!(numbers.is_sorted_by(|a, b| a >= b), "{what}: not one moment: {numbers:?}");
    assert!(numbers[0] - numbers[STAMPED - 1] <= 1, "{what}: not one moment: {numbers:?}");
}

#[test]
fn files_that_are_stamped_all_the_time_are_those_of_one_moment() {
    let Some(world) = world("stamp", Setup::default(), |_| {}) else { return };
    let (mut last, mut moved) = (0, 0);
    for round in 0..60 {
        world.commit("web", line(round)).unwrap();
        let whole = world.whole("img");
        let stamp = |n: usize| {
            let bytes = whole.top(&format!("stamp{n:02}")).unwrap();
            bytes.try_into().map_or(0, u64::from_le_bytes)
        };
        let stamps: Vec<u64> = (0..STAMPED).map(stamp).collect();
        check_stamps(&format!("commit {round}"), &stamps);
        assert!(stamps[0] >= last, "commit {round}: the image holds an old state");
        moved += usize::from(stamps[0] > last);
        last = stamps[0];
        assert_eq!(whole.annotation("io.snapfs.torn_files"), None);
    }
    // Now and then the process may not have had a turn. If the layers were old, only one in four would have moved.
    assert!(moved > 40, "{moved} of 60 images are newer than the one before");
    world.assert_thawed("web", "after the commits");
}

#[test]
fn stores_to_a_mapped_file_are_not_lost() {
    let Some(world) = world("map", Setup::default(), |_| {}) else { return };
    let path = world.root_of("web").join("mapped");
    wait_for("there is something to map", LIMIT, || fs::metadata(&path).is_ok_and(|metadata| metadata.len() > 0));
    let number_at = |bytes: &[u8], n: usize| u64::from_le_bytes(bytes[n * 4096..][..8].try_into().unwrap());
    for round in 0..20 {
        // Not the image before: on a busy machine the container may not have run since.
        let before = number_at(&std::fs::read(&path).unwrap(), 0);
        world.commit("web", "img").unwrap();
        let bytes = world.whole("img").top("mapped").unwrap();
        let at = |n: usize| number_at(&bytes, n);
        let numbers: Vec<u64> = (0..STAMPED).map(at).collect();
        check_stamps(&format!("commit {round}"), &numbers);
        assert!(numbers[0] >= before, "commit {round}: the image holds {}, which was {before} before it", numbers[0]);
        assert!(number(&world, "img", "frozen_bytes") >= (STAMPED * 4096) as u64);
    }
}

#[test]
fn a_tree_that_is_turned_over_all_the_time_is_that_of_one_moment() {
    let Some(world) = World::new() else { return };
    world.engine.create("web");
    let directory = world.engine.directory_of("web");
    let lower = directory.join("lower");
    begin(&lower);
    let overlay = Overlay::mount(&directory, std::slice::from_ref(&lower), directory.join("upper"), "");
    world.change(|_| {});
    let root = overlay.merged.clone();
    world.run("web");
    world.group("web", |group| group.run(&command("change", &root)));
    wait_for("the workload is at work", LIMIT, || root.join("counter").exists());
    let mut replay = Replay::new(&lower);
    let mut counter = 0;
    for round in 0..50 {
        world.commit("web", line(round)).unwrap();
        let tars = layers(&world, "img");
        let temp = scratch();
        let mut found = unpack(&tars, temp.path());
        let text = found["counter"].content.clone();
        let now = u64::from_le_bytes(text.try_into().unwrap());
        assert!(now > counter, "commit {round}: nothing happened");
        counter = now;
        // The step after may have been done, and not yet written down.
        let mut complaints = Vec::new();
        let mut is_one = false;
        for steps in [now, now + 1] {
            let mut expected = replay.until(steps);
            for facts in [&mut expected, &mut found] {
                facts.values_mut().for_each(|fact| fact.mtime = (0, 0));
                for path in ["counter", "ready"] {
                    facts.remove(path);
                }
            }
            complaints = differences(&expected, &found);
            is_one |= complaints.is_empty();
            if is_one {
                break;
            }
        }
        assert!(is_one, "commit {round}, after {now} steps:\n{}", complaints.join("\n"));
    }
}

/// The same history on another overlay.
struct Replay {
    _directory: tempfile::TempDir,
    overlay: Overlay,
    done: u64,
}

impl Replay {
    fn new(lower: &Path) -> Replay {
        let directory = scratch();
        let overlay = Overlay::mount(directory.path(), &[lower.to_owned()], directory.path().join("upper"), "");
        Replay { _directory: directory, overlay, done: 0 }
    }

    fn until(&mut self, steps: u64) -> Facts {
        while self.done < steps {
            step(&self.overlay.merged, self.done);
            self.done += 1;
        }
        facts(&self.overlay.merged)
    }
}

/// Files of `size` bytes each, a hundred to a directory.
fn fill(root: &Path, files: usize, size: usize) {
    let content: Vec<u8> = (0..size).map(|n| (n * 7 + n / 251) as u8).collect();
    for n in 0..files {
        let directory = root.join(format!("tree{}/d{}", n / 2000, n / 100));
        if n % 100 == 0 {
            fs::create_dir_all(&directory).unwrap();
        }
        fs::write(directory.join(format!("f{n}")), &content).unwrap();
    }
}

/// How long the container was frozen, in each of so many commits, sorted.
fn frozen_times(world: &World, commits: usize) -> Vec<Duration> {
    let mut times: Vec<Duration> = (0..commits)
        .map(|_| {
            world.commit("web", "img").unwrap();
            Duration::from_micros(annotation(world, "frozen_us"))
        })
        .collect();
    times.sort();
    times
}

/// Without a look at the layers.
fn annotation(world: &World, key: &str) -> u64 {
    let record = world.store.record(&name("img")).unwrap();
    let manifest = world.store.read_document(&record.manifest, DOCUMENT_LIMIT).unwrap();
    let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
    manifest["annotations"][format!("io.snapfs.{key}")].as_str().unwrap().parse().unwrap()
}

#[test]
fn a_hundred_thousand_files_are_looked_at_in_a_moment() {
    let files = 100_000;
    let Some(world) = world("idle", Setup::default(), |root| fill(root, files, 100)) else { return };
    let times = frozen_times(&world, 3);
    println!("frozen, {files} files: {times:?}");
    // Ten milliseconds and one microsecond a file where nothing else runs; here something does, and the code is not optimised.
    let bound = (Duration::from_millis(10) + Duration::from_micros(files as u64)) * 4;
    assert!(times[0] < bound, "{times:?}");
    assert_eq!(annotation(&world, "frozen_bytes"), 0);
}

#[test]
#[ignore = "a measurement"]
fn how_long_a_container_is_frozen() {
    for what in ["idle", "append"] {
        let Some(world) =
            world(what, Setup { store: Some("/tmp/snapfs-seal-store".into()), ..Setup::default() }, |root| {
                fill(root, 9000, 57_000)
            })
        else {
            return;
        };
        world.commit("web", "img").unwrap();
        let begin = Instant::now();
        let times = frozen_times(&world, 20);
        println!(
            "{what}: frozen, median {:?}, longest {:?}; {:?} a commit; {} bytes in the last, {} rounds; all: {times:?}",
            times[10],
            times[19],
            begin.elapsed() / 20,
            annotation(&world, "frozen_bytes"),
            annotation(&world, "rounds")
        );
        drop(world);
        fs::remove_dir_all("/tmp/snapfs-seal-store").unwrap();
    }
}

#[test]
fn many_files_that_come_and_go_do_not_stop_it() {
    let Some(world) = world("churn", Setup::default(), |_| {}) else { return };
    for _ in 0..10 {
        world.commit("web", "img").unwrap();
    }
    world.assert_thawed("web", "after the commits");
}

#[test]
fn a_container_that_ends_meanwhile_gives_no_image() {
    let Some(world) = world("idle", Setup::default(), |root| {
        fs::write(root.join("large"), vec![7; 200 << 20]).unwrap();
    }) else {
        return;
    };
    let control = world.open("containers/web/commit").unwrap();
    let reply = control.begin("img\n").unwrap();
    world.await_phase("pre-copy 1");
    world.group("web", crate::harness::cgroup::Group::remove);
    let error = world.wait(reply).unwrap_err();
    println!("{error:?}: {}", world.last_error("web"));
    assert_eq!(world.images(), [""; 0]);
    drop(control);
    world.assert_store_clean("after the container's end");
}

#[test]
fn a_freeze_that_would_last_too_long_is_given_up() {
    let setup = Setup { freeze_limit: Some(Duration::from_millis(60)), ..Setup::default() };
    let Some(world) = world("append", setup, |root| {
        fs::write(root.join("log"), vec![7; 600 << 20]).unwrap();
    }) else {
        return;
    };
    let begin = Instant::now();
    world.commit("web", "img").unwrap_err();
    println!("after {:?}: {}", begin.elapsed(), world.last_error("web"));
    assert!(world.last_error("web").contains("freeze-limit="), "{}", world.last_error("web"));
    world.assert_thawed("web", "after the failure");
    assert_eq!(world.images(), [""; 0]);
    world.assert_store_clean("after the failure");
}
