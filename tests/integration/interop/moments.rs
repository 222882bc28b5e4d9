//! Images of containers that work, end and come again: each shows one moment of one of them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{ErrorKind, Read};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::lab::{Bundle, Container, LIMIT, Podman, PodmanContainer, run};
use crate::harness::mount::{Place, eventually, in_lab};
use crate::interop::layers;

#[test]
fn five_at_once() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let script = |id: &str| format!("echo {id} > /id; exec sleep 1000");
    let first: Vec<PodmanContainer> =
        ["p0", "p1"].iter().map(|name| podman.start(name, &["localhost/app:1", "sh", "-c", &script(name)])).collect();
    let second: Vec<Bundle> = [("b2", "runc"), ("b3", "runc"), ("b4", "crun")]
        .iter()
        .map(|(name, runtime)| {
            let bundle = Bundle::tiny(runtime, &place.other(runtime), name, &script(name));
            bundle.start();
            bundle
        })
        .collect();
    let all: Vec<&dyn Container> =
        first.iter().map(|one| one as &dyn Container).chain(second.iter().map(|one| one as &dyn Container)).collect();
    for container in &all {
        let root = container.root();
        eventually("it has written", || fs::read(root.join("id")).is_ok_and(|id| !id.is_empty()));
    }
    let names: Vec<&str> = all.iter().map(|container| container.name()).collect();
    let place = &place;
    thread::scope(|scope| {
        for name in &names {
            scope.spawn(move || place.commit(name, &format!("of/{name} compression=none")));
        }
    });
    assert_eq!(place.list("jobs").len(), 6, "one job each, and last");
    for name in names {
        let files = files(&place.dir().join("images/of").join(name), "id");
        assert_eq!(files["id"], format!("{name}\n").as_bytes());
        assert_eq!(place.read(&format!("containers/{name}/status")), "running");
    }
}

/// The regular files of an uncompressed image whose paths begin so, the last layer's in front; whiteouts are files here.
fn files(image: &Path, prefix: &str) -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    for at in 0..layers(image).len() {
        let blob = fs::File::open(image.join(format!("layers/{at}/blob"))).unwrap();
        for entry in tar::Archive::new(blob).entries_with_seek().unwrap() {
            let mut entry = entry.unwrap();
            if entry.header().entry_type().is_file() {
                let path = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_owned();
                if path.starts_with(prefix) {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content).unwrap();
                    files.insert(path, content);
                }
            }
        }
    }
    files
}

/// How many files an instance has above and below.
const UPPER: usize = 40;
const LOWER: usize = 10;

#[test]
fn an_image_belongs_to_one_instance_of_a_container_that_is_restarted() {
    if !in_lab() {
        return;
    }
    let place = Place::new();
    let _daemon = place.serve();
    let live = |id: u64| live_and_die(&place, id);
    let images = commit_through_restarts(&place, live);
    for image in &images {
        let (lower, upper) = (parts(&place, image, "lower/"), parts(&place, image, "upper/"));
        assert_eq!((lower.len(), upper.len()), (LOWER, UPPER), "{image} is not whole");
        let ids: BTreeSet<_> = lower.into_iter().chain(upper).collect();
        assert_eq!(ids.len(), 1, "{image} is of several instances: {ids:?}");
    }
}

#[test]
fn an_image_of_podman_belongs_to_one_instance_as_well() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    // Whole directories come at one stroke, so that who sees a part of one sees them go.
    let script = |id: u64| {
        format!(
            "mkdir /lower. /upper.; cd /lower.; for f in $(seq {LOWER}); do echo {id} > $f; done; mv /lower. /lower
             cd /upper.; for f in $(seq {UPPER}); do echo {id} > $f; done; mv /upper. /upper; exec sleep 1000"
        )
    };
    let live = |id: u64| {
        let container = podman.start("web", &["localhost/app:1", "sh", "-c", &script(id)]);
        thread::sleep(Duration::from_millis(id * 37 % 200));
        if !id.is_multiple_of(3) {
            run(&["podman", "kill", "web"]);
        }
        drop(container);
    };
    let images = commit_through_restarts(&place, live);
    for image in &images {
        let (lower, upper) = (parts(&place, image, "lower/"), parts(&place, image, "upper/"));
        let stage = (lower.len(), upper.len());
        assert!([(0, 0), (LOWER, 0), (LOWER, UPPER)].contains(&stage), "{image} is not whole: {stage:?}");
        let ids: BTreeSet<_> = lower.into_iter().chain(upper).collect();
        assert!(ids.len() <= 1, "{image} is of several instances: {ids:?}");
    }
}

/// The contents of the files below `prefix`.
fn parts(place: &Place, image: &str, prefix: &str) -> Vec<Vec<u8>> {
    files(&place.dir().join("images").join(image), prefix).into_values().collect()
}

/// Lets one container `web` after the other live, and commits whatever is there, until there are enough of both; gives
/// the names of the images.
fn commit_through_restarts(place: &Place, live: impl Fn(u64) + Sync) -> Vec<String> {
    const INSTANCES: u64 = 10;
    const IMAGES: usize = 20;
    let (over, made) = (AtomicBool::new(false), AtomicUsize::new(0));
    let began = Instant::now();
    let (instances, (images, refused)) = thread::scope(|scope| {
        let instances = scope.spawn(|| {
            let _over = SetAtEnd(&over);
            let mut instances = 0;
            while instances < INSTANCES || made.load(Ordering::SeqCst) < IMAGES {
                assert!(began.elapsed() < LIMIT, "too few to say anything: {instances} instances, {made:?} images");
                instances += 1;
                live(instances);
            }
            instances
        });
        let images = scope.spawn(|| commit_whatever_is_there(place, &over, &made));
        (instances.join().unwrap(), images.join().unwrap())
    });
    println!("{instances} instances, {} images, refused: {refused:#?}", images.len());
    images
}

/// However it ends: the other side must not wait for ever.
struct SetAtEnd<'a>(&'a AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// One instance of the container, with its own lower and upper directory, from its start until nothing is left of it.
fn live_and_die(place: &Place, id: u64) {
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    // Below the mount, before anybody looks through it.
    for (directory, count) in [("lower", LOWER), ("upper", UPPER)] {
        let directory_of = bundle.path().join(directory).join(directory);
        fs::create_dir(&directory_of).unwrap();
        for n in 0..count {
            fs::write(directory_of.join(n.to_string()), format!("{id:08}")).unwrap();
        }
    }
    bundle.start();
    let pause = |n: u64| thread::sleep(Duration::from_millis(id * n % 200));
    pause(37);
    bundle.kill();
    pause(23);
}

/// How often an errno was the answer, and what was said the last time.
type Refused = BTreeMap<String, (usize, String)>;

/// Commits `web` again and again; the images, and what was refused.
fn commit_whatever_is_there(place: &Place, over: &AtomicBool, made: &AtomicUsize) -> (Vec<String>, Refused) {
    let (mut images, mut refused) = (Vec::new(), Refused::new());
    for n in 0.. {
        if over.load(Ordering::SeqCst) {
            break;
        }
        let name = format!("web-{n}");
        match place.write("containers/web/commit", &format!("{name} compression=none")) {
            Ok(()) => {
                images.push(name);
                made.store(images.len(), Ordering::SeqCst);
            }
            Err(error) => {
                let word = nix::errno::Errno::from_raw(error.raw_os_error().unwrap());
                // Gone between the write and this.
                let said = fs::read_to_string(place.dir().join("containers/web/last_error")).unwrap_or_default();
                let (count, last) = refused.entry(word.to_string()).or_default();
                *count += 1;
                if !said.is_empty() {
                    *last = said;
                }
                thread::sleep(Duration::from_millis(1));
            }
        }
    }
    (images, refused)
}

#[test]
fn what_was_so_a_moment_ago_does_not_matter() {
    if !in_lab() {
        return;
    }
    let place = Place::new();
    let _daemon = place.serve();
    for round in 0..10 {
        assert_eq!(place.list("containers"), Vec::<String>::new());
        let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
        place.list("containers");
        bundle.start();
        place.commit("web", "started");
        let pid = bundle.pid();
        assert_eq!(place.read("containers/web/pid"), pid.to_string());
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
        eventually("it has ended", || bundle.runtime(&["state", "web"]).contains("\"stopped\""));
        place.commit("web", "stopped");
        drop(bundle);
        if round % 2 == 0 {
            assert_eq!(place.write("containers/web/commit", "gone").unwrap_err().kind(), ErrorKind::NotFound);
        }
        eventually("it is not listed any more", || place.list("containers").is_empty());
    }
}

#[test]
fn fifty_images_of_a_writer_at_work_show_each_a_moment() {
    if !in_lab() {
        return;
    }
    let place = Place::new();
    let _daemon = place.serve();
    // Eight bytes over eight bytes: one system call, and no moment without.
    let script = "mkdir /w; i=10000000; while :; do i=$((i+1)); f=10; while [ $f -lt 74 ]; do printf $i 1<>/w/$f; f=$((f+1)); done; : > /w.ready; done";
    let bundle = Bundle::tiny("runc", &place.other("runc"), "writer", script);
    bundle.start();
    bundle.wait_for("w.ready");
    let mut moments = BTreeSet::new();
    for n in 0..50 {
        let pause = if n % 2 == 0 { "" } else { " pause=full" };
        let image = place.commit("writer", &format!("moment compression=none{pause}"));
        let numbers: Vec<u64> = files(&image, "w/")
            .iter()
            .map(|(path, content)| {
                let text = std::str::from_utf8(content).unwrap();
                text.parse().unwrap_or_else(|_| panic!("{path} is torn: {text:?}"))
            })
            .collect();
        assert_eq!(numbers.len(), 64);
        assert!(numbers.is_sorted_by(|a, b| a >= b), "commit {n} mixes moments: {numbers:?}");
        assert!(numbers[0] - numbers[63] <= 1, "commit {n} mixes moments: {numbers:?}");
        moments.insert((numbers[0], numbers.iter().filter(|number| **number == numbers[0]).count()));
    }
    println!("{} different moments in 50 commits", moments.len());
    assert!(moments.len() > 25, "the writer hardly ran");
}
