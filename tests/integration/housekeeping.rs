//! What a store holds and what of it may go: sizes, events, metrics, retention and collection, jobs as they are followed.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value;
use snapfs::oci::Digest;
use snapfs::store::Store;
use snapfs::tree::{Access, Error, ErrorKind, Opened, Reply};

use crate::harness::image;
use crate::harness::lab::{Bundle, Container, Running, attempt, run, start, text};
use crate::harness::mount::{Place, SNAPFS, can_mount, eventually, in_lab};
use crate::harness::world::{LIMIT, Setup, World, me};

fn number(world: &World, path: &str) -> u64 {
    world.line(path).parse().unwrap()
}

fn health(world: &World) -> BTreeMap<String, String> {
    let text = world.read("health").unwrap();
    text.lines()
        .map(|line| line.split_once(' ').map(|(key, value)| (key.to_owned(), value.to_owned())).unwrap())
        .collect()
}

#[test]
fn sizes_say_what_is_shared_and_what_would_be_freed() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let tars = vec![vec![b'b'; 40_000]];
    world.engine.set_base_image("web", "base", tars.clone());
    world.commit("web", "one").unwrap();
    let mut more = vec![0; 30_000];
    more.iter_mut().enumerate().for_each(|(at, byte)| *byte = (at * at % 251) as u8);
    fs::write(world.root_of("web").join("more"), &more).unwrap();
    world.commit("web", "two compression=gzip").unwrap();
    world.commit("web", "three compression=none").unwrap();

    for name in ["one", "two", "three"] {
        let image = world.whole(name);
        let unpacked: u64 = image.tars.iter().map(|tar| tar.len() as u64).sum();
        assert_eq!(number(&world, &format!("images/{name}/unpacked_size")), unpacked, "{name}");
    }
    assert!(number(&world, "images/two/size") < number(&world, "images/three/size"));
    // Against a second, plain way to count.
    let blobs: BTreeMap<&str, Vec<Digest>> =
        ["one", "two", "three"].map(|name| (name, world.whole(name).blobs.into_iter().collect())).into();
    let size_of = |digest: &Digest| world.store.blob_size(digest).unwrap();
    let unique = |name: &str, names: &[&str]| -> u64 {
        let others = || names.iter().filter(|other| **other != name);
        blobs[name].iter().filter(|blob| !others().any(|other| blobs[other].contains(blob))).map(size_of).sum()
    };
    for name in ["one", "two", "three"] {
        assert_eq!(
            number(&world, &format!("images/{name}/unique_size")),
            unique(name, &["one", "two", "three"]),
            "{name}"
        );
    }
    world.echo("again", "images/one/tag").unwrap();
    assert_eq!(number(&world, "images/one/unique_size"), 0, "it has another name");
    let images = world.ino("images").unwrap();
    world.wait(world.tree.remove_dir(images, "again".as_ref(), &me()).unwrap()).unwrap();
    assert_eq!(
        number(&world, "images/one/unique_size"),
        unique("one", &["one", "two", "three"]),
        "it has not any more"
    );

    // What `unique_size` promises is what goes.
    world.store.gc().unwrap();
    let before = health(&world);
    assert_eq!(before["store_garbage_bytes"], "0");
    let usage = world.store.usage().unwrap();
    assert_eq!((&before["store_bytes"], &before["store_blobs"]), (&usage.bytes.to_string(), &usage.blobs.to_string()));
    assert!(before["store_shared_bytes"].parse::<u64>().unwrap() > 0);
    let promised = number(&world, "images/three/unique_size");
    world.store.remove(&image::name("three")).unwrap();
    assert_eq!(health(&world)["store_garbage_bytes"], promised.to_string());
    assert_eq!(world.store.gc().unwrap().bytes, promised);
    assert_eq!(world.store.usage().unwrap().bytes, usage.bytes - promised);
    assert_eq!(health(&world)["store_bytes"], (usage.bytes - promised).to_string());
}

#[test]
fn metrics_are_prometheus_lines_and_count() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.run("web");
    world.commit("web", "img").unwrap();
    world.commit("web", "img create").unwrap_err();
    let metrics = world.read("metrics").unwrap();
    let mut types: BTreeMap<&str, &str> = BTreeMap::new();
    for line in metrics.lines() {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert!(types.insert(name, kind).is_none(), "{line}");
        } else if !line.starts_with("# HELP ") {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let base = name.split('{').next().unwrap();
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| base.strip_suffix(end)).unwrap_or(base);
            assert!(types.contains_key(family) || types.contains_key(base), "{line} has no type before it");
            value.parse::<f64>().unwrap_or_else(|_| panic!("{line}"));
        }
    }
    for line in [
        "snapfs_jobs_ended_total{state=\"done\"} 1",
        "snapfs_jobs_ended_total{state=\"failed\"} 1",
        "snapfs_frozen_seconds_count 1",
        "snapfs_images 1",
        "snapfs_containers{engine=\"fake\",status=\"running\"} 1",
    ] {
        assert!(metrics.lines().any(|found| found == line), "{line} is not in\n{metrics}");
    }
}

/// What can be read of `events` at once.
fn events(world: &World, fh: u64) -> Vec<Value> {
    match world.tree.read(fh, 0, 1 << 20).unwrap() {
        Reply::Now(bytes) => {
            String::from_utf8(bytes).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        }
        Reply::Later(_) => Vec::new(),
    }
}

#[test]
fn events_tell_of_images_jobs_and_containers() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "before").unwrap();
    let follow = |nonblock| {
        let access = Access { read: true, write: false, nonblock };
        match world.tree.open(world.ino("events").unwrap(), access, &me()).unwrap() {
            Opened::Text { fh } => fh,
            other => panic!("{other:?}"),
        }
    };
    let fh = follow(false);
    assert!(!world.tree.poll(fh).unwrap().read && events(&world, fh).is_empty(), "only what comes");
    let error = world.tree.read(follow(true), 0, 100).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Again);

    world.commit("web", "img label.a=b").unwrap();
    world.commit("web", "img").unwrap();
    let images = world.ino("images").unwrap();
    world.wait(world.tree.rename(images, "img".as_ref(), images, "new".as_ref(), false, &me()).unwrap()).unwrap();
    let labels = world.ino("images/new/labels").unwrap();
    world.wait(world.tree.create(labels, "env".as_ref(), false, &me()).unwrap()).unwrap();
    world.wait(world.tree.remove_dir(images, "new".as_ref(), &me()).unwrap()).unwrap();
    world.commit("web", "bad frobnicate").unwrap_err();
    world.change(|engine| engine.remove("web"));

    let mut seen: Vec<Value> = Vec::new();
    let has = |seen: &[Value], kind: &str| seen.iter().any(|event| event["event"] == kind);
    let until = std::time::Instant::now() + LIMIT;
    while !(has(&seen, "container-gone") && has(&seen, "collected")) {
        assert!(std::time::Instant::now() < until, "{seen:?}");
        std::thread::sleep(Duration::from_millis(20));
        seen.extend(events(&world, fh));
    }
    let numbers: Vec<u64> = seen.iter().map(|event| event["seq"].as_u64().unwrap()).collect();
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    let kinds: Vec<&str> = seen
        .iter()
        .map(|event| event["event"].as_str().unwrap())
        .filter(|kind| !kind.starts_with("container-") && *kind != "collected")
        .collect();
    let job = ["job-admitted", "job-started"];
    let expected = [
        &job[..],
        &["image-created", "job-ended"],
        &job,
        &["image-replaced", "job-ended", "image-renamed", "image-labelled", "image-removed"],
    ]
    .concat();
    assert_eq!(kinds, expected);
    let of = |kind: &str| seen.iter().find(|event| event["event"] == kind).unwrap();
    assert_eq!(of("image-created")["image"], "img");
    assert_eq!((&of("image-renamed")["from"], &of("image-renamed")["image"]), (&"img".into(), &"new".into()));
    assert_eq!(of("image-labelled")["keys"], serde_json::json!(["env"]));
    assert_eq!(of("job-ended")["state"], "done");
    assert_eq!(of("container-gone")["container"], "web");
}

fn write(world: &World, path: &str, text: &str) -> Result<(), Error> {
    let open = world.open(path)?;
    world.tree.opened_empty(open.fh);
    let written = open.write(text);
    world.tree.release(open.fh);
    written
}

#[test]
fn a_policy_is_taken_whole_or_not_at_all() {
    let Some(world) = World::new() else { return };
    assert_eq!(world.read("retention").unwrap(), "");
    let policy = "# snapshots\nweb-* keep=2 within=1h\n";
    write(&world, "retention", policy).unwrap();
    assert_eq!(world.read("retention").unwrap(), policy);
    let error = write(&world, "retention", "ok keep=1\n\nbad\n").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Invalid);
    assert!(error.message.contains("line 3: bad needs keep="), "{error}");
    assert!(world.line("last_error").ends_with(&error.message));
    assert_eq!(world.read("retention").unwrap(), policy, "nothing is changed");
    // Appended, as by `echo … >> retention`.
    let open = world.open("retention").unwrap();
    open.seek(policy.len() as u64);
    open.write("db within=1d\n").unwrap();
    assert_eq!(world.read("retention").unwrap(), format!("{policy}db within=1d\n"));
    assert_eq!(fs::read_to_string(world.place.join("retention")).unwrap(), format!("{policy}db within=1d\n"));
    assert_eq!(Store::fsck_dir(&world.place).unwrap(), []);
    let error = write(&world, "gc", "2\n").unwrap_err();
    assert!(error.message.contains("dry-run"), "{error}");
}

#[test]
fn collection_applies_the_policy_and_spares_what_is_kept_or_used() {
    let Some(world) = World::with(Setup { workers: 2, ..Setup::default() }) else { return };
    world.overlay("web");
    for n in 0..5 {
        fs::write(world.root_of("web").join("n"), n.to_string()).unwrap();
        world.commit("web", &format!("web-{n}{}", if n == 0 { " label.io.snapfs.keep=yes" } else { "" })).unwrap();
    }
    world.commit("web", "other").unwrap();
    write(&world, "retention", "web-* keep=2\n").unwrap();
    let used = world.store.lease().unwrap();
    used.adopt(&world.digest("web-1")).unwrap();

    let ask = |line: &str| {
        let open = world.open("gc").unwrap();
        open.write(line).unwrap();
        open.text()
    };
    let said = ask("dry-run");
    assert!(
        said.contains("state=done would remove web-2: line 1, web-*: 2 newer ones stay, it is number 3\n"),
        "{said}"
    );
    assert!(said.contains("\nwould remove 1 names, "), "{said}");
    assert_eq!(world.images().len(), 6, "a dry run removes nothing");
    let (_, promise) = said.trim_end().rsplit_once("names, ").unwrap();
    let said = ask("1");
    assert!(said.contains("removed web-2: "), "{said}");
    assert!(said.trim_end().ends_with(promise), "{said} and not {promise}");
    assert_eq!(world.images(), ["other", "web-0", "web-1", "web-3", "web-4"]);
    drop(used);
    let said = ask("1\n");
    assert!(said.contains("removed web-1: "), "{said}");
    assert!(world.line("gc").contains(" gc 1: removed 1 names"), "{}", world.line("gc"));
    world.assert_store_clean("after two collections");
    for name in world.images() {
        world.whole(&name);
    }
}

#[test]
fn gc_works_with_and_without_a_daemon() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let store = place.other("store");
    {
        let store = Store::open_dir(&store).unwrap();
        for n in 0..4 {
            image::commit(&store, &format!("web-{n}"), &[format!("layer {n}").as_bytes()]).unwrap();
        }
        store.set_retention(|_| Ok::<_, snapfs::store::Error>(b"web-* keep=3\n".to_vec())).unwrap();
    }
    let gc = |more: &str| run(&["bash", "-c", &format!("{SNAPFS} gc --store {} {more}", text(&store))]);
    let dry = gc("--dry-run");
    assert!(dry.contains("would remove web-") && dry.contains("\nwould remove 1 names, 3 blobs, "), "{dry}");
    {
        let _daemon = place.serve();
        assert_eq!(gc("-n"), dry, "the daemon says the same");
        let policy = place.dir().join("retention");
        run(&["bash", "-c", &format!("echo 'web-* keep=2' > {}", text(&policy))]);
        assert!(gc("").ends_with("removed 2 names, 6 blobs, 1198 bytes") || gc("").contains("removed 0 names"));
        assert_eq!(place.list("images").len(), 2);
        let wrong = attempt(&["bash", "-c", &format!("echo 'web-*' > {}", text(&policy))]);
        assert!(wrong.code != 0 && wrong.stderr.contains("Invalid argument"), "{wrong:?}");
        assert!(place.read("last_error").contains("line 1: web-* needs"));
    }
    fs::write(store.join("retention"), "web-* keep=one\n").unwrap();
    let wrong = attempt(&[SNAPFS, "gc", "--store", text(&store)]);
    assert!(wrong.code != 0 && wrong.stderr.contains("line 1: keep=one needs a number"), "{wrong:?}");
    fs::write(store.join("retention"), "web-* keep=1\n").unwrap();
    assert!(gc("").contains("removed 1 names"));
}

/// A container whose commit takes a while, and its daemon.
fn slow(place: &Place) -> Bundle {
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    bundle.start();
    let much = bundle.root().join("much");
    run(&["bash", "-c", &format!("head -c 6000000 /dev/urandom | base64 --wrap=0 > {}", text(&much))]);
    bundle
}

#[test]
fn events_wake_whoever_polls_or_reads() {
    if !in_lab() {
        return;
    }
    let place = Place::new();
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    bundle.start();
    let _daemon = place.serve();
    let events = place.dir().join("events");
    let mut file = File::open(&events).unwrap();
    let ready = |file: &File, timeout: u16| {
        let mut descriptors = [PollFd::new(file.as_fd(), PollFlags::POLLIN)];
        poll(&mut descriptors, PollTimeout::from(timeout)).unwrap() == 1
    };
    assert!(!ready(&file, 50));
    let cat: Running = start(&["timeout", "--signal=INT", "60", "head", "-n", "4", text(&events)]);
    let polled = std::thread::spawn(move || {
        assert!(ready(&file, 30_000), "nothing woke the poll");
        let mut bytes = vec![0; 1 << 16];
        let count = file.read(&mut bytes).unwrap();
        String::from_utf8(bytes[..count].to_vec()).unwrap()
    });
    // Both are there before anything happens; which of them is first does not matter.
    std::thread::sleep(Duration::from_millis(300));
    place.commit("web", "img");
    let line = polled.join().unwrap();
    let first: Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!((&first["event"], &first["command"]), (&"job-admitted".into(), &"containers/web/commit img".into()));
    let ended = cat.end(Duration::from_secs(30));
    assert_eq!(ended.code, 0, "{ended:?}");
    let kinds: Vec<String> = ended
        .stdout
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap()["event"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(kinds, ["job-admitted", "job-started", "image-created", "job-ended"]);
    // Ctrl-C frees a reader.
    let reader = start(&["cat", text(&events)]);
    std::thread::sleep(Duration::from_millis(200));
    reader.signal(nix::sys::signal::Signal::SIGINT);
    reader.end(Duration::from_secs(5));
    assert!(!place.list("").contains(&"events".to_owned()), "who reads the whole tree must come to an end");
}

#[test]
fn jobs_are_listed_followed_and_their_end_is_an_exit_status() {
    if !in_lab() {
        return;
    }
    let place = Place::new();
    let _bundle = slow(&place);
    let _daemon = place.serve();
    let dir = text(&place.dir()).to_owned();
    let jobs = |more: &[&str]| attempt(&[&[SNAPFS, "jobs", "--dir", &dir], more].concat());
    assert_eq!((jobs(&[]).code, jobs(&[]).stdout), (0, String::new()));
    place.write("containers/web/commit", "img async compression=zstd:15").unwrap();
    let progress = || place.read("jobs/1/progress");
    // Not of the base image, which is read first.
    let numbers = || -> BTreeMap<String, f64> {
        let text = progress();
        let pairs = text.lines().filter_map(|line| line.split_once(' '));
        pairs.filter_map(|(key, value)| Some((key.to_owned(), value.parse().ok()?))).collect()
    };
    eventually("the total is known", || numbers().get("bytes_total").is_some_and(|total| *total >= 8_000_000.0));
    let numbers = numbers();
    assert!(numbers["files_total"] >= 1.0, "{numbers:?}");
    assert!(numbers["bytes"] <= numbers["bytes_total"] && numbers.contains_key("elapsed"), "{numbers:?}");
    let followed = jobs(&["--follow"]);
    assert_eq!(followed.code, 0, "{followed:?}");
    let last = followed.stdout.lines().last().unwrap();
    assert!(
        last.starts_with("1 done ") && last.ends_with(": containers/web/commit img async compression=zstd:15"),
        "{last}"
    );
    assert!(!followed.stdout.contains('\x1b'), "no terminal");
    assert!(!progress().contains("\nremaining "), "it has ended");

    place.write("containers/web/commit", "two async compression=zstd:19 base=image").unwrap();
    // As on a terminal, with the bar.
    let script = format!("{SNAPFS} jobs --dir {dir} --follow last");
    let on_terminal = start(&["script", "-qec", &script, "/dev/null"]);
    std::thread::sleep(Duration::from_millis(500));
    place.write("jobs/2/cancel", "1").unwrap();
    let ended = on_terminal.end(Duration::from_secs(60));
    assert_eq!(ended.code, 1, "cancelled: {ended:?}");
    assert!(ended.stdout.contains("2 running") && ended.stdout.contains("2 cancelled"), "{ended:?}");
    assert_eq!(jobs(&["1"]).code, 0);
    assert_eq!(jobs(&["last"]).code, 1);
    let none = jobs(&["99"]);
    assert!(none.code != 0 && none.stderr.contains("there is no job 99"), "{none:?}");
}
