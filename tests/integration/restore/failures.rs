//! A restore that fails, or whose daemon dies, leaves nothing.

use std::fs;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;

use super::{check_nothing_left, checkpoint, left, refused, restored, written};
use crate::checkpoint::counter::{bundle, check_runs};
use crate::harness::lab::{Podman, attempt, run, text};
use crate::harness::mount::{Place, eventually, in_lab};

#[test]
fn what_criu_refuses_is_told_and_leaves_nothing() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let _daemon = place.serve_with(&["-vv"]);
    let bundle = bundle("runc", &place.other("runc"), "counter", "0.01", 0, true);
    bundle.start_silently();
    bundle.wait_for("log");
    // Its open log is not what it was in the image: without the files it cannot go on.
    written(&place, "containers/counter", "checkpoint", "ck1 fs=no");
    bundle.kill();
    let (errno, why) = refused(&place, "ck1", "gone");
    assert_eq!(errno, Errno::EREMOTEIO, "{why}");
    assert!(why.contains("runc could not make the container gone") && why.contains("CRIU"), "{why}");
    assert!(why.contains("nothing of it was kept"), "{why}");
    // At once, and not only when somebody looks.
    assert_eq!(left(&place).iter().filter(|path| !path.contains("/roots/")).count(), 0, "{:?}", left(&place));
    check_nothing_left(&place);
    assert!(!place.other("runc/gone").exists());
    for line in ["", "../x", "a b=c", "a engine=docker", "a lazy", "a engine=podman lazy"] {
        let refused = place.write("images/ck1/restore", line);
        assert!(refused.is_err() || line.is_empty(), "{line}");
    }
    assert_eq!(refused(&place, "ck1", "a lazy").0, Errno::EOPNOTSUPP);
    assert_eq!(refused(&place, "ck1", "a b=c").0, Errno::EINVAL);
    assert_eq!(refused(&place, "ck1", "counter").0, Errno::EEXIST);
}

#[test]
fn a_killed_daemon_leaves_what_the_next_one_removes() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let mut daemon = place.serve_with(&["-vv"]);
    let counted = checkpoint(&place, "runc", 64);
    // It outlives the daemon: it is whole.
    let kept = restored(&place, "runc", "ck1", "b");
    // At different moments: while files are unpacked, while the processes are made, and around that.
    for delay in [60, 300, 600] {
        thread::scope(|scope| {
            let writer = scope.spawn(|| place.write("images/ck1/restore", "gone"));
            eventually("the restore has begun", || {
                place.other("store/containers/gone").exists() || writer.is_finished()
            });
            thread::sleep(Duration::from_millis(delay));
            daemon.signal(Signal::SIGKILL);
            daemon.end(Duration::from_secs(5));
            // It may have been done already.
            let _ = writer.join().unwrap();
        });
        daemon = place.serve_with(&["-vv"]);
        let is_made = || {
            let note = fs::read_to_string(place.other("store/containers/gone/note.json")).unwrap_or_default();
            note.contains("\"is_made\":true")
        };
        if is_made() {
            attempt(&["runc", "--root", text(&place.other("runc")), "delete", "--force", "gone"]);
        }
        eventually("it is gone", || !place.other("store/containers/gone").exists());
        assert!(left(&place).iter().all(|path| !path.contains("gone")), "{:?}", left(&place));
        let state = run(&["sh", "-c", &format!("ls -laR {} 2>/dev/null || true", text(&place.other("runc/gone")))]);
        assert_eq!(state, "", "{delay}: {}", daemon.log());
        check_runs(kept.pid(), &kept.root(), counted);
    }
    drop(kept);
    check_nothing_left(&place);
}

#[test]
fn a_daemon_that_is_killed_while_podman_works_leaves_nothing_there() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let mut daemon = place.serve();
    checkpoint(&place, "runc", 16);
    let images = || run(&["podman", "images", "--all", "--quiet", "--no-trunc"]);
    let before = images();
    // While it takes the images, and while it makes the processes.
    for delay in [300, 900] {
        thread::scope(|scope| {
            let writer = scope.spawn(|| place.write("images/ck1/restore", "gone engine=podman"));
            let begun = || place.other("store/containers/gone").exists() || writer.is_finished();
            eventually("the restore has begun", begun);
            thread::sleep(Duration::from_millis(delay));
            daemon.signal(Signal::SIGKILL);
            daemon.end(Duration::from_secs(5));
            // It may have been done already.
            let _ = writer.join().unwrap();
        });
        let is_done = !place.other("store/containers/gone").exists();
        daemon = place.serve();
        eventually("it is gone", || left(&place).is_empty());
        if is_done {
            break;
        }
        assert_eq!(run(&["podman", "ps", "--all", "--quiet"]), "");
        assert_eq!(images(), before);
    }
    run(&["podman", "rm", "--force", "--time", "0", "--all"]);
    drop(podman);
}
