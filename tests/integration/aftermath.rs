//! What a person finds right after something ended or failed.

use std::ffi::OsStr;
use std::time::Duration;

use nix::sys::signal::Signal;
use snapfs::tree::ErrorKind;

use crate::harness::cgroup::wait_for;
use crate::harness::lab::{Bundle, Container as _, directory, run, start, text};
use crate::harness::mount::{Place, eventually, in_lab};
use crate::harness::world::{LIMIT, World, me};

#[test]
fn an_image_moved_onto_another_replaces_it_however_mv_asks() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let images = world.ino("images").unwrap();
    // coreutils' mv: renameat2("a", "b", NOREPLACE), and on EEXIST, because b is a directory, the same into b.
    for (into, no_replace) in [(false, false), (true, false), (true, true)] {
        world.commit("web", "a").unwrap();
        world.commit("web", "b message=other").unwrap();
        let a = world.digest("a");
        assert_ne!(a, world.digest("b"));
        let rename = |parent, name: &str, no_replace| {
            world.wait(world.tree.rename(images, OsStr::new("a"), parent, OsStr::new(name), no_replace, &me())?)
        };
        assert_eq!(rename(images, "b", true).unwrap_err().kind, ErrorKind::Exists);
        match into {
            false => rename(images, "b", no_replace).unwrap(),
            true => rename(world.ino("images/b").unwrap(), "a", no_replace).unwrap(),
        }
        assert_eq!((world.images(), world.digest("b")), (vec!["b".to_owned()], a), "into: {into}");
    }
}

#[test]
fn a_failed_commit_gives_its_room_back_by_itself() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    std::fs::write(world.root_of("web").join(".wh.x"), "").unwrap();
    world.commit("web", "img").unwrap_err();
    let blobs = || std::fs::read_dir(world.place.join("blobs/sha256")).unwrap().count();
    wait_for("its base layer is collected", LIMIT, || blobs() == 0);
}

#[test]
fn a_real_container_whose_commit_has_just_ended_runs_and_its_image_moves_with_mv() {
    if !in_lab() {
        return;
    }
    let states = directory();
    let place = Place::new();
    let web = Bundle::tiny("runc", states.path(), "web", "while :; do sleep 1; done");
    web.start();
    let options = format!("{},runc-root={}", place.options(), states.path().display());
    let _daemon = place.serve_with(&["-o", &options]);
    place.commit("web", "a");
    place.commit("web", "b message=other");
    let images = place.dir().join("images");
    run(&["mv", text(&images.join("a")), text(&images.join("b"))]);
    assert_eq!(place.list("images"), ["b"]);

    // Reading it takes longer than the test lasts.
    std::fs::File::create(web.root().join("endless")).unwrap().set_len(1 << 40).unwrap();
    for _ in 0..5 {
        place.write("containers/web/commit", "img pause=full async").unwrap();
        eventually("it is frozen", || place.read("jobs/last/progress").contains("phase frozen"));
        // Whether the writer is a container's is asked of a new listing, in which this one is frozen.
        place.write("jobs/last/cancel", "1").unwrap();
        assert_eq!(place.read("jobs/last/wait"), "cancelled");
        assert_eq!(place.read("containers/web/status"), "running");
    }
}

/// A container whose process has a file of another container's FUSE file system open, or of a server that went away: while
/// it is frozen nobody may wait for that.
#[test]
fn whose_open_files_are_on_a_file_system_that_does_not_answer_is_looked_at_all_the_same() {
    if !in_lab() {
        return;
    }
    let states = directory();
    let place = Place::new();
    let web = Bundle::tiny("runc", states.path(), "web", "while :; do sleep 1; done");
    web.start();
    let options = format!("{},runc-root={}", place.options(), states.path().display());
    let daemon = place.serve_with(&["-o", &options]);
    let open = place.dir().join("containers/web/commit");
    let holder = start(&["bash", "-c", &format!("exec 7>{}; echo open; exec sleep 1000", text(&open))]);
    let pid = u32::try_from(holder.pid().as_raw()).unwrap();
    let is_open = || std::fs::read_link(format!("/proc/{pid}/fd/7")).is_ok_and(|path| path == open);
    wait_for("the file is open", LIMIT, is_open);
    daemon.signal(Signal::SIGSTOP);
    let (found, looked) = std::sync::mpsc::channel();
    std::thread::spawn(move || found.send(snapfs::sys::held::held(&[pid]).map(|held| held.len())));
    let looked = looked.recv_timeout(Duration::from_secs(5));
    daemon.signal(Signal::SIGCONT);
    assert!(matches!(looked, Ok(Ok(1..))), "{looked:?}");
}
