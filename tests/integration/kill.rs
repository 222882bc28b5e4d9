//! `kill -9` of the real daemon at any moment of a real commit: the container runs, the store is sound, the mount
//! comes back, and nothing is left.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use snapfs::oci::Digest;

use crate::harness::lab::{Bundle, Container, Freezer, attempt, run, text};
use crate::harness::mount::{Daemon, Place, SNAPFS, eventually, in_lab};

/// How many daemons die.
const DEATHS: u32 = 200;
/// How soon after that the container must run: docs/architecture.md, what must stay true, 1.
const BOUND: Duration = Duration::from_millis(100);
/// What the container has changed: files of a megabyte.
const MEGABYTES: usize = 20;
/// How many images stay; older ones are removed, for the disk's sake.
const KEPT: usize = 3;

#[test]
fn a_daemon_killed_at_any_moment_leaves_nothing_behind() {
    if !in_lab() {
        return;
    }
    let began = Instant::now();
    let place = Place::on_disk();
    let script = "i=0; while :; do i=$((i+1)); echo $i > /tick; sleep 0.005; done";
    let bundle = Bundle::tiny("runc", &place.other("runc"), "big", script);
    fill(&bundle.root());
    bundle.start();
    bundle.wait_for("tick");
    let freezer = Freezer::of(bundle.pid());

    let mut daemon = place.serve();
    let whole = median((0..5).map(|_| time_of_a_commit_with_its_base(&place, &mut daemon)).collect());
    let mut deaths = Deaths::default();
    for death in 0..DEATHS {
        if death % 2 == 0 {
            forget_the_base(&place, &mut daemon);
        }
        // All over the commit and a little beyond, in no order.
        let moment = whole.mul_f64(f64::from(death * 77 % DEATHS) / f64::from(DEATHS) * 1.3);
        let name = format!("death-{death}");
        let line = format!("{name}{}", if death / 2 % 2 == 0 { " pause=full" } else { "" });
        let acknowledged = thread::scope(|scope| {
            let writer = scope.spawn(|| place.write("containers/big/commit", &line).is_ok());
            // On a thread of its own, for its priority is not to be inherited by what is started later.
            scope.spawn(|| {
                // A busy machine must not keep it from looking. Without the right to it the times are longer than they are.
                let _ = rustix::process::setpriority_process(None, -20);
                thread::sleep(moment);
                deaths.witness(&freezer, &daemon);
            });
            writer.join().unwrap()
        });
        let (pid, tick) = (daemon.pid(), read_tick(&bundle));
        daemon.end(Duration::from_secs(5));
        eventually("the container does its work", || read_tick(&bundle) != tick);
        let since = Instant::now();
        eventually("the guard has ended", || guards_of(pid).is_empty());
        assert!(since.elapsed() < Duration::from_secs(1), "the guard stayed for {:?}", since.elapsed());

        assert_eq!(place.mounted(), 1, "the dead mount is still there");
        daemon = place.serve();
        assert_eq!(place.mounted(), 1);
        assert!(daemon.log().contains("detaching the dead mount"), "{}", daemon.log());
        let images = place.list("images");
        deaths.acknowledged += usize::from(acknowledged);
        deaths.visible += usize::from(images.contains(&name));
        assert!(!acknowledged || images.contains(&name), "death {death}: {name} was acknowledged and is gone");
        assert!(deaths.kept.iter().all(|kept| images.contains(kept)), "death {death}: {:?}, {images:?}", deaths.kept);
        for image in &images {
            check_image(&place, image);
        }
        let after = format!("after-{death}");
        place.commit("big", &format!("{after} compression=none"));
        let fsck = attempt(&[SNAPFS, "fsck", "--store", text(&place.other("store"))]);
        assert_eq!(fsck.code, 0, "death {death}: {}{}", fsck.stdout, fsck.stderr);
        assert_eq!(leftovers(&place), [""; 0], "death {death}");

        deaths.kept.extend([after].into_iter().chain(images.contains(&name).then_some(name)));
        for name in deaths.kept.drain(..deaths.kept.len().saturating_sub(KEPT)) {
            fs::remove_dir(place.dir().join("images").join(name)).unwrap();
        }
    }
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.end(Duration::from_secs(5)).success());
    let pid = daemon.pid();
    eventually("the guard has ended", || guards_of(pid).is_empty());
    deaths.report(whole, began.elapsed());
}

/// Twenty megabytes, half of which can be compressed.
fn fill(root: &Path) {
    fs::create_dir(root.join("data")).unwrap();
    let mut state = 1_u64;
    for n in 0..MEGABYTES {
        let bytes: Vec<u8> = (0..1 << 20)
            .map(|_| {
                // Knuth's constants; the upper bits are random enough.
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 56) as u8 & if n % 2 == 0 { 0xff } else { 0x0f }
            })
            .collect();
        fs::write(root.join("data").join(n.to_string()), bytes).unwrap();
    }
}

/// The base layer is imported anew by the next commit.
fn forget_the_base(place: &Place, daemon: &mut Daemon) {
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.end(Duration::from_secs(5)).success());
    run(&["find", text(&place.other("store/cache")), "-type", "f", "-delete"]);
    *daemon = place.serve();
}

fn time_of_a_commit_with_its_base(place: &Place, daemon: &mut Daemon) -> Duration {
    forget_the_base(place, daemon);
    let began = Instant::now();
    let image = place.commit("big", "whole pause=full");
    let took = began.elapsed();
    fs::remove_dir(image).unwrap();
    took
}

fn read_tick(bundle: &Bundle) -> String {
    fs::read_to_string(bundle.path().join("upper/tick")).unwrap()
}

/// The numbers of the guard processes of the daemon `pid`, zombies not among them.
fn guards_of(pid: u32) -> Vec<String> {
    let argument = format!("--of={pid}");
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    let is_guard = |process: &PathBuf| {
        let line = fs::read(process.join("cmdline")).unwrap_or_default();
        line.split(|&byte| byte == 0).nth(1) == Some(argument.as_bytes())
    };
    processes.filter(is_guard).map(|process| process.display().to_string()).collect()
}

/// All blobs of an image, through the mount, by size and digest; without a word from snapfs on what it consists of.
fn check_image(place: &Place, name: &str) {
    let image = place.dir().join("images").join(name);
    let bytes = fs::read(image.join("manifest.json")).unwrap();
    assert_eq!(Digest::of(&bytes).to_string(), place.read(&format!("images/{name}/digest")));
    let manifest: Value = serde_json::from_slice(&bytes).unwrap();
    for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        let hex = blob["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let size = fs::metadata(image.join("blobs/sha256").join(hex)).unwrap().len();
        assert_eq!(size, blob["size"].as_u64().unwrap(), "{name}: {hex}");
    }
}

/// Unfinished files in the store.
fn leftovers(place: &Place) -> Vec<String> {
    let found = run(&["find", text(&place.other("store/stage")), text(&place.other("store/quarantine")), "-type", "f"]);
    found.lines().map(str::to_owned).collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

/// What was seen.
#[derive(Debug, Default)]
struct Deaths {
    /// How long the container stayed frozen, of the deaths that met it frozen.
    frozen: Vec<Duration>,
    looks: u32,
    looked: Duration,
    longest_pause: Duration,
    acknowledged: usize,
    visible: usize,
    /// Images that must be there from now on.
    kept: Vec<String>,
}

impl Deaths {
    /// Kills the daemon, and looks how long the container stays frozen.
    fn witness(&mut self, freezer: &Freezer, daemon: &Daemon) {
        let was_frozen = freezer.is_frozen();
        let start = Instant::now();
        daemon.signal(Signal::SIGKILL);
        let (mut last_look, mut last_frozen) = (start, Duration::ZERO);
        // It must not be frozen again by a late write.
        while start.elapsed() < last_frozen + Duration::from_millis(50) {
            if freezer.is_frozen() {
                last_frozen = start.elapsed();
                assert!(last_frozen < Duration::from_secs(5), "frozen for ever");
            }
            self.looks += 1;
            self.longest_pause = self.longest_pause.max(last_look.elapsed());
            last_look = Instant::now();
            thread::sleep(Duration::from_micros(300));
        }
        self.looked += start.elapsed();
        if was_frozen || !last_frozen.is_zero() {
            self.frozen.push(last_frozen);
        }
    }

    fn report(mut self, whole: Duration, took: Duration) {
        let rate = f64::from(self.looks) / self.looked.as_secs_f64();
        self.frozen.sort();
        let (median, max) = (self.frozen[self.frozen.len() / 2], self.frozen[self.frozen.len() - 1]);
        println!(
            "{DEATHS} deaths over a commit of {whole:?}: {} met a frozen container, which ran after {median:?} (median), \
             {max:?} (max), looked at {rate:.0} times a second, {:?} at most between two looks; {} commits were \
             acknowledged, {} were visible; {took:?} in all",
            self.frozen.len(),
            self.longest_pause,
            self.acknowledged,
            self.visible,
        );
        assert!(rate >= 500.0, "too few looks to say anything");
        assert!(max < BOUND, "frozen for {max:?} after the daemon's death");
        assert!(self.frozen.len() as u32 > DEATHS / 10, "too few deaths met a frozen container");
        assert!(self.acknowledged > 0 && self.visible < DEATHS as usize, "the deaths were not all over the commit");
    }
}
