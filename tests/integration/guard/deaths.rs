//! Who thaws a container when the daemon dies, the guard, or both.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use snapfs::guard::{Frozen, Init, thaw_leftovers};
use snapfs::sys::cgroup::Version;
use snapfs::sys::process::is_dying;

use crate::guard::{BOUND, LIMIT, each, intents, report, signal, start};
use crate::harness::cgroup::{Group, cgroups, command, runs, wait_for};
use crate::harness::hung_fuse::HungFuse;

/// Deaths of a daemon for each generation of the freezer.
const DEATHS: u64 = 120;
/// What the daemon of these tests is to do: `DIRECTORY VERSION CGROUP PID WHAT`.
const DAEMON: &str = "SNAPFS_TEST_DAEMON";

/// A daemon in a process of its own, which freezes and thaws one group until it is killed.
struct Daemon(Child);

impl Daemon {
    fn start(directory: &Path, group: &Group, init: Init, what: &str) -> Daemon {
        let task = format!("{} {} {} {} {what}", directory.display(), group.version, group.path.display(), init.pid);
        let mut child = command(std::env::current_exe().unwrap())
            .args(["--exact", "guard::deaths::daemon", "--ignored", "--nocapture"])
            .env(DAEMON, task)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().ends_with("ready")), "the daemon did not start");
        Daemon(child)
    }

    fn kill(&mut self) {
        self.0.kill().unwrap();
    }

    /// The guard, its only child.
    fn guard(&self) -> u32 {
        let pid = self.0.id();
        let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let children = tasks.map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap_or_default());
        children.collect::<String>().split_whitespace().next().unwrap().parse().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
#[ignore = "not a test: the daemon that the others start and kill"]
fn daemon() {
    let Some(task) = std::env::var_os(DAEMON) else { panic!("{DAEMON} is not set") };
    let task = task.into_string().unwrap();
    let [directory, version, path, pid, what] = task.split(' ').collect::<Vec<_>>()[..] else { panic!("{task}") };
    let group = cgroups(Version::parse(version).unwrap(), Path::new(path));
    let init = Init::of(pid.parse().unwrap()).unwrap();
    let guard = start(Path::new(directory));
    let say_ready = || {
        println!("ready");
        std::io::stdout().flush().unwrap();
    };
    match what {
        "cycle" => {
            say_ready();
            for round in 0_u64.. {
                let frozen = Frozen::freeze(&guard, &group, init, LIMIT).unwrap();
                thread::sleep(Duration::from_micros(round * 37 % 500));
                frozen.thaw().unwrap();
            }
        }
        "hold" => {
            let _frozen = Frozen::freeze(&guard, &group, init, LIMIT).unwrap();
            say_ready();
            thread::sleep(Duration::from_secs(600));
        }
        // A thread that SIGKILL cannot reach, and with it the daemon's files stay open.
        file => {
            let file = file.to_owned();
            let _frozen = Frozen::freeze(&guard, &group, init, LIMIT).unwrap();
            thread::spawn(move || fs::read(file));
            thread::sleep(Duration::from_millis(100));
            say_ready();
            thread::sleep(Duration::from_secs(600));
        }
    }
}

/// How long the group stays frozen after `kill`, looked at more often than once in a millisecond, and whether it was frozen.
fn thawed_after(group: &Group, kill: impl FnOnce()) -> (Duration, bool) {
    let was_frozen = group.is_frozen();
    let start = Instant::now();
    kill();
    let mut last_frozen = Duration::ZERO;
    // It must not be frozen again by a late write.
    while start.elapsed() < last_frozen + Duration::from_millis(30) {
        let now = start.elapsed();
        if group.is_frozen() {
            last_frozen = now;
            assert!(last_frozen < Duration::from_secs(5), "frozen for ever");
        }
        thread::sleep(Duration::from_micros(300));
    }
    (last_frozen, was_frozen)
}

#[test]
fn a_daemon_killed_at_any_moment_leaves_nothing_frozen() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let directory = tempfile::tempdir_in("/run").unwrap();
        let (mut times, mut guards) = (Vec::new(), Vec::new());
        for death in 0..DEATHS {
            let mut daemon = Daemon::start(directory.path(), &group, init, "cycle");
            guards.push(daemon.guard());
            thread::sleep(Duration::from_micros(death * 7919 % 9000));
            let (after, was_frozen) = thawed_after(&group, || daemon.kill());
            assert!(after < BOUND, "death {death}: frozen for {after:?}");
            if was_frozen || !after.is_zero() {
                times.push(after);
            }
            for leftover in thaw_leftovers(directory.path()).unwrap() {
                leftover.result.unwrap();
            }
            assert_eq!(intents(directory.path()), 0);
        }
        assert!(runs(init.pid));
        assert!(times.len() as u64 > DEATHS / 10, "only {} of the deaths met a frozen group", times.len());
        report(&format!("{version}: thawed after the daemon's death"), times);
        for guard in guards {
            wait_for("the guards end", Duration::from_secs(5), || is_dying(guard));
        }
    });
}

#[test]
fn a_daemon_that_cannot_die_is_dead_to_the_guard() {
    each(|version| {
        let directory = tempfile::tempdir().unwrap();
        let runtime = tempfile::tempdir_in("/run").unwrap();
        let (group, init) = Group::busy(version);
        // Before the file system, so that it is dropped after: what waits for that cannot be killed.
        let mut daemon;
        let hung = HungFuse::mount(directory.path());
        daemon = Daemon::start(runtime.path(), &group, init, hung.file().to_str().unwrap());
        let guard = daemon.guard();
        let (after, was_frozen) = thawed_after(&group, || daemon.kill());
        assert!(was_frozen && after < BOUND, "{after:?}");
        assert!(daemon.0.try_wait().unwrap().is_none(), "the daemon could die, so that nothing was shown");
        println!("{version}: thawed {after:?} after the SIGKILL to a daemon that cannot die");
        // What its user does from then on is not undone.
        thread::sleep(Duration::from_millis(400));
        group.write(true);
        drop(hung);
        drop(daemon);
        wait_for("the guard ends", Duration::from_secs(5), || is_dying(guard));
        assert!(group.is_frozen());
    });
}

#[test]
fn what_daemon_and_guard_leave_when_killed_together_is_thawed_at_the_next_start() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let directory = tempfile::tempdir_in("/run").unwrap();
        for _ in 0..20 {
            let mut daemon = Daemon::start(directory.path(), &group, init, "hold");
            let guard = daemon.guard();
            signal(daemon.0.id(), Signal::SIGSTOP);
            signal(guard, Signal::SIGKILL);
            daemon.kill();
            daemon.0.wait().unwrap();
            assert!(group.is_frozen() && intents(directory.path()) == 1);
            let leftovers = thaw_leftovers(directory.path()).unwrap();
            assert_eq!(leftovers.len(), 1);
            assert_eq!(leftovers[0].path, group.path);
            assert!(leftovers[0].result.is_ok() && !group.is_frozen() && intents(directory.path()) == 0);
        }
        // A commit that comes before anybody looked: it is not its user's freeze.
        let mut daemon = Daemon::start(directory.path(), &group, init, "hold");
        signal(daemon.0.id(), Signal::SIGSTOP);
        signal(daemon.guard(), Signal::SIGKILL);
        daemon.kill();
        daemon.0.wait().unwrap();
        let guard = start(directory.path());
        let frozen = Frozen::freeze(&guard, &group.cgroups(), init, LIMIT).unwrap();
        assert!(!frozen.was_paused());
        frozen.thaw().unwrap();
        assert!(runs(init.pid) && intents(directory.path()) == 0);
        let pid = guard.pid().unwrap();
        drop(guard);
        wait_for("the guard ends", Duration::from_secs(5), || is_dying(pid));
    });
}

#[test]
fn a_pause_by_its_user_after_the_daemons_death_is_kept() {
    each(|version| {
        let (group, init) = Group::busy(version);
        let directory = tempfile::tempdir_in("/run").unwrap();
        let mut daemon = Daemon::start(directory.path(), &group, init, "hold");
        let guard = daemon.guard();
        daemon.kill();
        daemon.0.wait().unwrap();
        wait_for("the guard ends", Duration::from_secs(5), || is_dying(guard));
        assert!(!group.is_frozen());
        group.write(true);
        let leftovers = thaw_leftovers(directory.path()).unwrap();
        assert!(leftovers.iter().all(|leftover| leftover.result.is_ok()));
        assert!(group.is_frozen() && intents(directory.path()) == 0);
    });
}
