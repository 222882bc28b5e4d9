//! Freezing real cgroups, with a guard beside.

mod deaths;

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use snapfs::guard::{self, Error, Frozen, Guard, Init, thaw_leftovers};
use snapfs::sys::cgroup::{self, Cgroups, Freezer, Version};
use snapfs::sys::process::{has_interrupting_signal, is_dying};

use crate::harness::cgroup::{Group, cgroups, command, runs, ticks, versions, wait_for};
use crate::harness::have;
use crate::harness::hung_fuse::HungFuse;

/// The bound of the first thing that must stay true.
const BOUND: Duration = Duration::from_millis(100);
const LIMIT: Duration = Duration::from_secs(30);

/// A guard, and the directory of its intents.
struct Guarded {
    guard: Option<Guard>,
    directory: tempfile::TempDir,
}

impl Guarded {
    fn new() -> Guarded {
        let directory = tempfile::tempdir_in("/run").unwrap();
        Guarded { guard: Some(start(directory.path())), directory }
    }

    fn freeze(&self, group: &Group, init: Init) -> Result<Frozen, Error> {
        self.freeze_for(group, init, LIMIT)
    }

    fn freeze_for(&self, group: &Group, init: Init, limit: Duration) -> Result<Frozen, Error> {
        Frozen::freeze(self.guard(), &group.cgroups(), init, limit)
    }

    fn guard(&self) -> &Guard {
        self.guard.as_ref().unwrap()
    }

    fn pid(&self) -> u32 {
        self.guard().pid().unwrap()
    }

    fn intents(&self) -> usize {
        intents(self.directory.path())
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        let pid = self.guard.as_ref().and_then(Guard::pid);
        drop(self.guard.take());
        if let Some(pid) = pid.filter(|_| !thread::panicking()) {
            wait_for("the guard ends with its owner", Duration::from_secs(5), || is_dying(pid));
        }
    }
}

fn start(directory: &Path) -> Guard {
    Guard::start_from(Path::new(env!("CARGO_BIN_EXE_snapfs")), directory).unwrap()
}

fn intents(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

fn signal(pid: u32, signal: Signal) {
    kill(Pid::from_raw(pid.try_into().unwrap()), signal).unwrap();
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let (median, max) = (times[times.len() / 2], times[times.len() - 1]);
    println!("{what}: {} times, median {median:?}, max {max:?}", times.len());
}

/// Run the test once for each generation of the freezer that this machine has.
fn each(body: impl Fn(Version)) {
    if have("root") {
        versions().into_iter().for_each(body);
    }
}

#[test]
fn freeze_stops_the_tasks_and_thaw_lets_them_run() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        let frozen = guarded.freeze(&group, init).unwrap();
        assert!(group.is_settled() && !frozen.was_paused() && frozen.still_frozen().unwrap());
        assert_eq!(guarded.intents(), 1);
        let before = ticks(init.pid);
        thread::sleep(Duration::from_millis(50));
        assert_eq!(ticks(init.pid), before);
        let took = frozen.thaw().unwrap();
        assert!(took >= Duration::from_millis(50) && took < Duration::from_secs(5), "{took:?}");
        assert!(!group.is_frozen() && !group.is_settled() && runs(init.pid));
        assert_eq!(guarded.intents(), 0);
    });
}

#[test]
fn dropping_it_thaws() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        drop(guarded.freeze(&group, init).unwrap());
        assert!(!group.is_frozen() && guarded.intents() == 0);
    });
}

#[test]
fn what_its_user_froze_stays_frozen() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        group.write(true);
        let frozen = guarded.freeze(&group, init).unwrap();
        assert!(frozen.was_paused() && frozen.still_frozen().unwrap() && guarded.intents() == 0);
        assert_eq!(frozen.thaw().unwrap(), Duration::ZERO);
        drop(guarded.freeze(&group, init).unwrap());
        assert!(group.is_frozen() && group.is_settled());
        assert!(thaw_leftovers(guarded.directory.path()).unwrap().is_empty() && group.is_frozen());
        // And if its user lets it run meanwhile, the snapshot is told.
        let frozen = guarded.freeze(&group, init).unwrap();
        group.write(false);
        assert!(!frozen.still_frozen().unwrap());
        assert!(matches!(frozen.thaw(), Err(Error::Thawed { .. })));
    });
}

#[test]
fn a_group_below_a_frozen_one_is_frozen_for_itself() {
    each(|version| {
        let above = Group::new(version);
        let path = above.path.join("below");
        fs::create_dir(&path).unwrap();
        let mut child = command("/bin/sh").args(["-c", "while :; do :; done"]).spawn().unwrap();
        fs::write(path.join("cgroup.procs"), child.id().to_string()).unwrap();
        let init = Init::of(child.id()).unwrap();
        above.write(true);
        let guarded = Guarded::new();
        let frozen = Frozen::freeze(guarded.guard(), &cgroups(version, &path), init, LIMIT).unwrap();
        assert!(!frozen.was_paused());
        above.write(false);
        assert!(frozen.still_frozen().unwrap());
        above.write(true);
        frozen.thaw().unwrap();
        assert!(above.is_settled(), "the ancestor is its user's");
        above.write(false);
        assert!(runs(init.pid));
        child.kill().unwrap();
        child.wait().unwrap();
        wait_for("the group is empty", Duration::from_secs(5), || fs::remove_dir(&path).is_ok());
    });
}

#[test]
fn a_hostile_thaw_is_noticed() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        let frozen = guarded.freeze(&group, init).unwrap();
        group.write(false);
        assert!(!frozen.still_frozen().unwrap());
        assert!(matches!(frozen.thaw(), Err(Error::Thawed { .. })));
        assert_eq!(guarded.intents(), 0);
    });
}

#[test]
fn another_process_under_the_number_is_refused() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        let other = Init { start_time: init.start_time + 1, ..init };
        assert!(matches!(guarded.freeze(&group, other), Err(Error::Replaced { .. })));
        // A process of this host that is not in the container.
        let outsider = Init::of(std::process::id()).unwrap();
        let refused = guarded.freeze(&group, outsider);
        assert!(matches!(refused, Err(Error::Cgroup(cgroup::Error::NotMember { .. }))), "{refused:?}");
        assert!(!group.is_frozen());
    });
}

#[test]
fn one_cgroup_is_frozen_once() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        let frozen = guarded.freeze(&group, init).unwrap();
        assert!(matches!(guarded.freeze(&group, init), Err(Error::Busy { .. })));
        // Nor does the start of a second daemon thaw what the first has frozen.
        assert!(thaw_leftovers(guarded.directory.path()).unwrap().is_empty());
        assert!(frozen.still_frozen().unwrap());
        frozen.thaw().unwrap();
        guarded.freeze(&group, init).unwrap().thaw().unwrap();
    });
}

#[test]
fn snapfs_does_not_freeze_itself() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        group.add(guarded.pid());
        let refused = guarded.freeze(&group, init);
        assert!(matches!(refused, Err(Error::Cgroup(cgroup::Error::Own { .. }))), "{refused:?}");
        assert!(!group.is_frozen());
    });
}

#[test]
fn a_hybrid_host_uses_the_freezer_that_the_process_is_in() {
    if !have("root") || versions().len() < 2 {
        return;
    }
    let (v2, init) = Group::busy(Version::V2);
    let v1 = Group::new(Version::V1);
    let both = Cgroups { v1_freezer: Some(v1.path.clone()), v2: Some(v2.path.clone()) };
    let guarded = Guarded::new();
    let frozen = Frozen::freeze(guarded.guard(), &both, init, LIMIT).unwrap();
    assert!(v2.is_settled() && !v1.is_frozen());
    frozen.thaw().unwrap();
    v1.add(init.pid);
    let frozen = Frozen::freeze(guarded.guard(), &both, init, LIMIT).unwrap();
    assert!(v1.is_settled() && !v2.is_frozen());
    frozen.thaw().unwrap();
    // A container without a v1 group of its own: the root of the hierarchy cannot be frozen.
    fs::write("/sys/fs/cgroup/freezer/cgroup.procs", init.pid.to_string()).unwrap();
    let rootless = Cgroups { v1_freezer: Some(v1.path.parent().unwrap().to_owned()), v2: Some(v2.path.clone()) };
    let frozen = Frozen::freeze(guarded.guard(), &rootless, init, LIMIT);
    // In a cgroup namespace what looks like the root is a group that can be frozen, and we are in it.
    if fs::exists("/sys/fs/cgroup/freezer/freezer.state").unwrap() {
        assert!(matches!(frozen, Err(Error::Cgroup(cgroup::Error::Own { .. }))), "{frozen:?}");
        return;
    }
    let frozen = frozen.unwrap();
    assert!(v2.is_settled());
    frozen.thaw().unwrap();
}

#[test]
fn the_guard_thaws_at_the_limit() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        let limit = Duration::from_millis(300);
        let start = Instant::now();
        let frozen = guarded.freeze_for(&group, init, limit).unwrap();
        assert!(group.is_frozen());
        wait_for("thaw", Duration::from_secs(5), || !group.is_frozen());
        let late = start.elapsed().saturating_sub(limit);
        assert!(start.elapsed() >= limit && late < BOUND, "{late:?}");
        assert!(!frozen.still_frozen().unwrap());
        assert!(matches!(frozen.thaw(), Err(Error::LimitExceeded { .. })));
        guarded.freeze(&group, init).unwrap().thaw().unwrap();
        println!("{version}: thawed {late:?} after the limit");
    });
}

#[test]
fn a_task_that_cannot_be_stopped_is_named_and_the_rest_runs_on() {
    each(|version| {
        let directory = tempfile::tempdir().unwrap();
        let (mut group, init) = Group::busy(version);
        // After the group, so that it is dropped before: what waits for it cannot be killed.
        let hung = HungFuse::mount(directory.path());
        let reader = group.run(&format!("exec cat {}", hung.file().display()));
        wait_for("the reader sleeps", Duration::from_secs(5), || {
            fs::read_to_string(format!("/proc/{}/wchan", reader.pid)).unwrap().contains("request_wait")
        });
        let guarded = Guarded::new();
        let start = Instant::now();
        let limit = Duration::from_secs(2);
        let error = guarded.freeze_for(&group, init, limit).unwrap_err();
        assert!(start.elapsed() < limit, "{:?}", start.elapsed());
        assert!(!group.is_frozen() && runs(init.pid) && guarded.intents() == 0);
        let text = error.to_string();
        assert!(matches!(error, Error::Cgroup(cgroup::Error::NotFrozen { .. })), "{text}");
        assert!(text.contains(&format!("cat (thread {}", reader.pid)), "{text}");
        println!("{text}");
        drop(hung);
        group.remove();
    });
}

#[test]
fn a_container_that_keeps_forking_is_frozen() {
    each(|version| {
        let mut group = Group::new(version);
        let init = group.run("while :; do (:) & (:) & (:); wait; done");
        let guarded = Guarded::new();
        let mut longest = Duration::ZERO;
        for _ in 0..50 {
            let start = Instant::now();
            let frozen = guarded.freeze(&group, init).unwrap();
            longest = longest.max(start.elapsed());
            assert!(group.is_settled());
            frozen.thaw().unwrap();
        }
        println!("{version}: 50 freezes of a forking container, at most {longest:?} each");
    });
}

#[test]
fn the_end_of_the_container_is_an_error_of_its_own() {
    each(|version| {
        let (mut group, init) = Group::busy(version);
        let guarded = Guarded::new();
        let frozen = guarded.freeze(&group, init).unwrap();
        // A task that v1 froze dies when it is thawed only.
        group.remove();
        let error = frozen.thaw().unwrap_err();
        assert!(matches!(error, Error::Cgroup(cgroup::Error::Gone { .. })), "{error}");
        assert_eq!(guarded.intents(), 0);
        let error = guarded.freeze(&group, init).unwrap_err();
        assert!(matches!(error, Error::Replaced { .. }), "{error}");
        let error = Freezer::at(&group.path).unwrap_err();
        assert!(matches!(error, cgroup::Error::Gone { .. }), "{error}");
    });
}

#[test]
fn the_guard_is_a_process_apart() {
    if !have("root") {
        return;
    }
    let guarded = Guarded::new();
    let pid = guarded.pid();
    let read = |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    assert_eq!(read("comm").trim(), "snapfs-guard");
    assert!(read("cmdline").starts_with("snapfs-guard\0"));
    assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), Path::new("/"));
    let session: u32 = read("stat").rsplit(')').next().unwrap().split_whitespace().nth(3).unwrap().parse().unwrap();
    assert_eq!(session, pid);
    let mut files: Vec<String> = fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|file| fs::read_link(file.unwrap().path()).unwrap().display().to_string())
        .collect();
    files.sort();
    assert_eq!(files.len(), 5, "{files:?}");
    assert_eq!(files.iter().filter(|file| *file == "/dev/null").count(), 3, "{files:?}");
    assert!(files.iter().any(|file| file.starts_with("socket:")), "{files:?}");
    for name in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signal(pid, name);
    }
    thread::sleep(Duration::from_millis(50));
    assert!(!is_dying(pid) && guarded.pid() == pid);
}

#[test]
fn a_killed_guard_is_replaced_and_knows_what_is_frozen() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let (other, other_init) = Group::busy(version);
        let guarded = Guarded::new();
        let limit = Duration::from_millis(1500);
        let frozen = guarded.freeze_for(&group, init, limit).unwrap();
        for _ in 0..3 {
            let old = guarded.pid();
            signal(old, Signal::SIGKILL);
            // At once, before anybody could notice.
            guarded.freeze(&other, other_init).unwrap().thaw().unwrap();
            assert_ne!(guarded.pid(), old);
        }
        // And without anybody asking.
        let old = guarded.pid();
        signal(old, Signal::SIGKILL);
        wait_for("another guard", Duration::from_secs(5), || guarded.guard().pid().is_some_and(|pid| pid != old));
        assert!(frozen.still_frozen().unwrap());
        wait_for("thaw at the limit", Duration::from_secs(5), || !group.is_frozen());
        assert!(matches!(frozen.thaw(), Err(Error::LimitExceeded { .. })));
    });
}

#[test]
fn a_guard_that_hangs_is_replaced() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        let old = guarded.pid();
        signal(old, Signal::SIGSTOP);
        guarded.freeze(&group, init).unwrap().thaw().unwrap();
        assert_ne!(guarded.pid(), old);
    });
}

#[test]
fn nothing_is_frozen_without_a_guard() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let directory = tempfile::tempdir_in("/run").unwrap();
        assert!(matches!(Guard::start_from(Path::new("/bin/true"), directory.path()), Err(Error::NoAnswer { .. })));
        assert!(matches!(Guard::start_from(Path::new("/bin/nothing"), directory.path()), Err(Error::Start { .. })));
        // A program that cannot be started again.
        let program = directory.path().join("snapfs");
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_snapfs"), &program).unwrap();
        let guard = Guard::start_from(&program, &directory.path().join("frozen")).unwrap();
        fs::remove_file(&program).unwrap();
        signal(guard.pid().unwrap(), Signal::SIGKILL);
        let refused = Frozen::freeze(&guard, &group.cgroups(), init, LIMIT);
        assert!(matches!(refused, Err(Error::Start { .. })), "{refused:?}");
        assert!(!group.is_frozen() && intents(&directory.path().join("frozen")) == 0);
    });
}

#[test]
fn a_directory_that_others_can_write_to_is_refused() {
    if !have("root") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert!(matches!(Guard::start(directory.path()), Err(Error::Intent { .. })));
    assert!(matches!(thaw_leftovers(directory.path()), Err(Error::Intent { .. })));
    assert!(thaw_leftovers(&directory.path().join("missing")).unwrap().is_empty());
}

#[test]
fn a_file_that_is_no_intent_is_reported_and_kept() {
    if !have("root") {
        return;
    }
    let directory = tempfile::tempdir_in("/run").unwrap();
    fs::write(directory.path().join("v1-1"), "thaw /sys/fs/cgroup\n").unwrap();
    let leftovers = thaw_leftovers(directory.path()).unwrap();
    assert!(matches!(leftovers[..], [guard::Leftover { result: Err(Error::NotIntent { .. }), .. }]), "{leftovers:?}");
    assert_eq!(intents(directory.path()), 1);
}

#[test]
fn a_freeze_and_a_thaw_take_microseconds() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let freezer = Freezer::open(&group.cgroups(), init.pid, &[]).unwrap();
        let (mut freezes, mut thaws) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            let start = Instant::now();
            freezer.freeze(start + LIMIT).unwrap();
            freezes.push(start.elapsed());
            let start = Instant::now();
            freezer.thaw().unwrap();
            thaws.push(start.elapsed());
            thread::sleep(Duration::from_micros(200));
        }
        let guarded = Guarded::new();
        let (mut frozen_for, mut calls) = (Vec::new(), Vec::new());
        for _ in 0..300 {
            let start = Instant::now();
            frozen_for.push(guarded.freeze(&group, init).unwrap().thaw().unwrap());
            calls.push(start.elapsed());
            thread::sleep(Duration::from_micros(200));
        }
        frozen_for.sort();
        assert!(frozen_for[150] < Duration::from_millis(20), "{:?}", frozen_for[150]);
        report(&format!("{version}: freeze"), freezes);
        report(&format!("{version}: thaw"), thaws);
        report(&format!("{version}: stopped by an empty snapshot"), frozen_for);
        report(&format!("{version}: freeze and thaw with the guard and the intent"), calls);
    });
}

#[test]
fn a_signal_to_a_task_that_cannot_take_it_is_seen() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let guarded = Guarded::new();
        let frozen = guarded.freeze(&group, init).unwrap();
        assert!(!has_interrupting_signal(init.pid));
        signal(init.pid, Signal::SIGWINCH);
        assert!(!has_interrupting_signal(init.pid));
        signal(init.pid, Signal::SIGTERM);
        assert!(has_interrupting_signal(init.pid));
        frozen.thaw().unwrap();
        wait_for("the task ends", Duration::from_secs(5), || is_dying(init.pid));
        assert!(has_interrupting_signal(init.pid));
    });
}

#[test]
fn a_forged_path_is_refused() {
    let tmpfs = Path::new("/sys/fs/cgroup");
    if !have("root") || !versions().contains(&Version::V1) {
        return;
    }
    let (group, init) = Group::busy(Version::V1);
    let name = format!("snapfs-test-link-{}", std::process::id());
    let (link, directory) = (tmpfs.join(&name), tmpfs.join(format!("{name}-directory")));
    std::os::unix::fs::symlink("freezer", &link).unwrap();
    fs::create_dir(&directory).unwrap();
    let below = link.join(group.path.file_name().unwrap());
    assert!(below.join("freezer.state").exists());
    let refused = [&below, &link, &directory].map(|path| {
        let cgroups = Cgroups { v1_freezer: Some(path.clone()), v2: None };
        Freezer::open(&cgroups, init.pid, &[])
    });
    fs::remove_file(&link).unwrap();
    fs::remove_dir(&directory).unwrap();
    for refused in refused {
        assert!(matches!(refused, Err(cgroup::Error::NotCgroup { .. })), "{refused:?}");
    }
}
