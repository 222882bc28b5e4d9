//! What fails leaves the container as it was: running, traced by nobody, with its network, and nothing in the store.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::counter::{ask, bundle, check_log, check_runs};
use super::{check_untouched, checkpoint, give, of_podman};
use crate::harness::lab::{Bundle, Container, Podman, attempt, run, text};
use crate::harness::mount::{Daemon, Place, eventually, in_lab};

/// Programs that stand before CRIU and runc and do what a file says, to nobody but snapfs. Tests that need them hold the
/// lab's podman, so that there is one at a time.
struct Faults;

const CRIU_FAULT: &str = "/run/criu-fault";
const RUNC_FAULT: &str = "/run/runc-fault";

impl Faults {
    fn install() -> Faults {
        let program = |name: &str, text: &str| {
            let path = format!("/usr/local/sbin/{name}");
            let new = format!("{path}.new");
            fs::write(&new, text).unwrap();
            fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).unwrap();
            run(&["mv", &new, &path]);
        };
        program(
            "criu",
            "#!/bin/sh\n[ ! -e /run/criu-fault ] || export CRIU_FAULT=$(cat /run/criu-fault)\nexec /usr/sbin/criu \"$@\"\n",
        );
        program(
            "runc",
            "#!/bin/sh\nif [ -n \"$SNAPFS_TRACES_FOR\" ] && [ -e /run/runc-fault ]; then exit 127; fi\nexec /usr/sbin/runc \"$@\"\n",
        );
        Faults
    }
}

impl Drop for Faults {
    fn drop(&mut self) {
        for file in [CRIU_FAULT, RUNC_FAULT, "/usr/local/sbin/criu", "/usr/local/sbin/runc"] {
            let _ = fs::remove_file(file);
        }
    }
}

/// Write a checkpoint; how it ended.
fn try_checkpoint(place: &Place, container: &str, line: &str) -> io::Result<()> {
    place.write(&format!("containers/{container}/checkpoint"), line)
}

/// What must be so after a failure.
fn check_intact(place: &Place, bundle: &Bundle, pid: u32, from: u64) {
    check_untouched(pid);
    for tool in ["iptables", "ip6tables"] {
        let rules = attempt(&["nsenter", &format!("--net=/proc/{pid}/ns/net"), tool, "-S"]).stdout;
        assert!(!rules.contains("CRIU"), "{rules}");
    }
    check_runs(pid, &bundle.root(), from);
    check_empty(place);
}

fn check_empty(place: &Place) {
    assert_eq!(place.list("images"), [""; 0]);
    let stage = place.other("store/stage");
    eventually("nothing is left in the stage", || fs::read_dir(&stage).unwrap().count() == 0);
}

/// Processes of this name.
fn named(name: &str) -> Vec<Pid> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    let is_named = |pid: &i32| fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim() == name);
    pids.filter(is_named).map(Pid::from_raw).collect()
}

/// Kill the CRIU that is there some time after the container was frozen.
fn kill_criu(pid: u32, after: Duration) {
    let freezer = crate::harness::lab::Freezer::of(pid);
    let limit = Instant::now() + Duration::from_secs(5);
    while !freezer.is_frozen() {
        assert!(Instant::now() < limit, "it is not frozen");
        thread::sleep(Duration::from_micros(300));
    }
    thread::sleep(after);
    while Instant::now() < limit {
        let found = named("criu");
        if !found.is_empty() {
            // They may have ended.
            found.iter().for_each(|criu| kill(*criu, Signal::SIGKILL).unwrap_or(()));
            return;
        }
        thread::sleep(Duration::from_micros(300));
    }
}

fn start(place: &Place, runtime: &'static str, ballast: u32) -> (Daemon, Bundle, u32) {
    let daemon = place.serve();
    let bundle = bundle(runtime, &place.other(runtime), "counter", "0.005", ballast, true);
    bundle.start_silently();
    let pid = bundle.pid();
    ask(pid);
    (daemon, bundle, pid)
}

#[test]
fn a_criu_that_fails_or_is_killed_at_any_time() {
    if !in_lab() {
        return;
    }
    let _podman = Podman::take();
    let _faults = Faults::install();
    for runtime in ["runc", "crun"] {
        let place = Place::with_podman();
        let (_daemon, bundle, pid) = start(&place, runtime, 0);
        for fault in ["1", "3", "136"] {
            let from = ask(pid).counted;
            fs::write(CRIU_FAULT, fault).unwrap();
            let result = try_checkpoint(&place, "counter", "ck");
            fs::remove_file(CRIU_FAULT).unwrap();
            match result {
                Err(_) => {
                    let said = place.read("containers/counter/last_error");
                    assert!(said.contains("counter could not be dumped: "), "{said}");
                }
                // A fault of the restore, or one that CRIU survives.
                Ok(()) => {
                    assert_ne!(fault, "1");
                    run(&["rmdir", text(&place.dir().join("images/ck"))]);
                }
            }
            check_intact(&place, &bundle, pid, from);
        }
        let mut failed = 0;
        for milliseconds in [0, 15, 40] {
            let from = ask(pid).counted;
            let killer = thread::spawn(move || kill_criu(pid, Duration::from_millis(milliseconds)));
            match try_checkpoint(&place, "counter", "ck") {
                Err(_) => failed += 1,
                Ok(()) => assert!(attempt(&["rmdir", text(&place.dir().join("images/ck"))]).code == 0),
            }
            killer.join().unwrap();
            check_intact(&place, &bundle, pid, from);
        }
        assert!(failed > 0);
        // And after all that it can be done.
        let from = ask(pid).counted;
        checkpoint(&place, "counter", "ck");
        check_untouched(pid);
        check_runs(pid, &bundle.root(), from);
    }
}

#[test]
fn a_daemon_that_is_killed_while_criu_is_at_work() {
    if !in_lab() {
        return;
    }
    let _podman = Podman::take();
    let place = Place::with_podman();
    for milliseconds in [0, 10, 25] {
        let (mut daemon, bundle, pid) = start(&place, "runc", 8);
        let from = ask(pid).counted;
        let path = place.dir().join("containers/counter/checkpoint");
        let writer = crate::harness::lab::start(&["sh", "-c", &format!("echo ck > {}", path.display())]);
        eventually("CRIU is at work", || !named("criu").is_empty());
        thread::sleep(Duration::from_millis(milliseconds));
        daemon.signal(Signal::SIGKILL);
        daemon.end(Duration::from_secs(5));
        let _ = writer.end(Duration::from_secs(10));
        eventually("CRIU has ended", || named("criu").is_empty());
        eventually("it is not frozen", || !crate::harness::lab::Freezer::of(pid).is_frozen());
        thread::sleep(Duration::from_millis(50));
        run(&["umount", "--lazy", text(&place.dir())]);
        check_untouched(pid);
        check_runs(pid, &bundle.root(), from);
        bundle.kill();
        drop(bundle);
    }
    // The next daemon finds nothing of it.
    let _daemon = place.serve();
    assert!(place.list("images").is_empty());
    check_empty(&place);
}

#[test]
fn what_stands_in_the_way_is_told_and_changes_nothing() {
    if !in_lab() {
        return;
    }
    let _podman = Podman::take();
    let _faults = Faults::install();
    let place = Place::with_podman();
    // Room for the base image, and not for the memory.
    run(&["mount", "-t", "tmpfs", "-o", "size=96m", "small", text(&place.other("store"))]);
    let (daemon, bundle, pid) = start(&place, "runc", 128);
    let from = ask(pid).counted;
    let error = try_checkpoint(&place, "counter", "ck").unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{}", place.read("containers/counter/last_error"));
    check_intact(&place, &bundle, pid, from);

    fs::write(RUNC_FAULT, "").unwrap();
    let error = try_checkpoint(&place, "counter", "ck").unwrap_err();
    fs::remove_file(RUNC_FAULT).unwrap();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EREMOTEIO));
    check_intact(&place, &bundle, pid, from);

    let error = try_checkpoint(&place, "counter", "ck pre-dump=2").unwrap_err();
    if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) {
        assert!(place.read("containers/counter/last_error").contains("CONFIG_MEM_SOFT_DIRTY"));
    }
    check_intact(&place, &bundle, pid, from);

    // It dies while it is dumped.
    let dying = thread::spawn(move || {
        eventually("CRIU is at work", || !named("criu").is_empty());
        kill(Pid::from_raw(pid.try_into().unwrap()), Signal::SIGKILL).unwrap();
    });
    let result = try_checkpoint(&place, "counter", "ck fs=no");
    dying.join().unwrap();
    assert!(result.is_err());
    check_empty(&place);
    eventually("it is stopped", || place.read("containers/counter/status") == "stopped");
    assert!(place.read("containers/counter/checkpointable").contains("counter is stopped"));
    let error = try_checkpoint(&place, "counter", "ck").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(nix::libc::EINVAL));
    assert!(place.read("containers/counter/last_error").contains("counter is stopped"));
    drop(daemon);
    drop(bundle);
    run(&["umount", "--lazy", text(&place.dir())]);
    run(&["umount", "--lazy", text(&place.other("store"))]);
}

#[test]
fn the_preflight_and_the_failure_say_the_same() {
    if !in_lab() {
        return;
    }
    let _podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let started = |name: &str, shell: &str| {
        let bundle = Bundle::tiny("runc", &place.other("runc"), name, shell);
        bundle.start_silently();
        bundle.wait_for("ready");
        bundle
    };
    let fine = started("fine", "exec 3>>/log; : > /ready; while :; do sleep 0.1; done");
    assert_eq!(place.read("containers/fine/checkpointable"), "yes");
    // One file of two names has lost the open one; one is larger than CRIU copies.
    let cases = [
        ("link", "echo x > /a; ln /a /b; exec 3</a; rm /a; : > /ready; while :; do sleep 0.1; done", "link-remap"),
        (
            "ghost",
            "dd if=/dev/zero of=/big bs=1M count=3; exec 3</big; rm /big; : > /ready; while :; do sleep 0.1; done",
            "ghost-limit",
        ),
    ];
    for (name, shell, remedy) in cases {
        let bundle = started(name, shell);
        let told = place.read(&format!("containers/{name}/checkpointable"));
        assert!(told.contains(remedy), "{told}");
        assert!(try_checkpoint(&place, name, &format!("{name}-ck")).is_err());
        let said = place.read(&format!("containers/{name}/last_error"));
        assert!(said.contains(remedy), "{said}");
        check_untouched(bundle.pid());
    }
    // An open file of the host, and a session that somebody opened.
    let outside = Bundle::tiny("runc", &place.other("runc"), "outside", ": > /ready; while :; do sleep 0.1; done");
    outside.start();
    outside.wait_for("ready");
    let exec =
        crate::harness::lab::start(&["runc", "--root", text(&place.other("runc")), "exec", "fine", "sleep", "30"]);
    eventually("the session is there", || place.read("containers/fine/checkpointable").contains("`exec`"));
    assert!(place.read("containers/outside/checkpointable").contains("is a file of the host"));
    assert!(try_checkpoint(&place, "outside", "ck").is_err());
    assert!(place.read("containers/outside/last_error").contains("a file outside of the container is open"));
    drop(exec);
    drop(fine);
}

#[test]
fn a_paused_container_stays_paused_and_its_copy_runs() {
    if !in_lab() {
        return;
    }
    let _podman = Podman::take();
    let place = Place::with_podman();
    let (_daemon, bundle, pid) = start(&place, "runc", 0);
    let from = ask(pid).counted;
    bundle.pause();
    let image = checkpoint(&place, "counter", "ck");
    assert_eq!(place.read("containers/counter/status"), "paused");
    assert_eq!(super::annotation(&image, "io.snapfs.pause"), "paused");
    let name = give(&image, "paused");
    bundle.unpause();
    check_runs(pid, &bundle.root(), from);
    run(&["podman", "container", "restore", &name]);
    let (pid, root) = of_podman("counter");
    check_runs(pid, &root, from);
    run(&["podman", "rm", "--force", "--time", "0", "counter"]);
    assert!(check_log(&bundle.root()) >= from);
    assert!(Path::new("/proc").join(bundle.pid().to_string()).exists());
}
