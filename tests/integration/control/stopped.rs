//! What is cancelled leaves nothing: no name, no blob, no frozen container. And what its user has paused stays so.

use std::time::{Duration, Instant};

use snapfs::tree::ErrorKind;

use crate::control::{COMMIT, jobs};
use crate::harness::cgroup::wait_for;
use crate::harness::rootfs::file;
use crate::harness::world::{LIMIT, Setup, World};

/// Nothing is left of the newest job, which was cancelled.
fn assert_nothing_left(world: &World, names: &[&str], context: &str) {
    assert_eq!(world.line("jobs/last/state"), "cancelled", "{context}");
    let error = world.line("jobs/last/error");
    assert!(error.contains("cancelled"), "{context}: {error}");
    let last = world.last_error("web");
    assert!(last.ends_with(&format!("{error}\n")), "{context}: {last}");
    assert_eq!(world.images(), names, "{context}");
    world.assert_store_clean(context);
}

#[test]
fn a_cancelled_commit_leaves_nothing() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "kept").unwrap();
    world.run("web");
    world.make_endless("web");
    for (line, phase) in [
        ("img", "pre-copy 1"),
        ("img pause=full", "frozen"),
        ("kept pause=full", "frozen"),
        ("img pause=none", "reading"),
    ] {
        let open = world.open(COMMIT).unwrap();
        let answer = open.begin(line).unwrap();
        world.await_phase(phase);
        assert_eq!(world.group("web", |group| group.is_frozen()), phase == "frozen", "{line}");
        let since = Instant::now();
        world.echo("1", "jobs/last/cancel").unwrap();
        let error = world.wait(answer).unwrap_err();
        assert!(since.elapsed() < Duration::from_secs(5), "{line}: it took {:?} to stop", since.elapsed());
        assert_eq!(error.kind, ErrorKind::Cancelled, "{line}: {error}");
        assert!(error.message.contains("nothing of it was kept"), "{error}");
        world.assert_thawed("web", line);
        assert_nothing_left(&world, &["kept"], line);
        assert_eq!(open.write(line).unwrap_err(), error, "the same line on the same file is the same job");
    }
    // The container is as good as before.
    std::fs::remove_file(world.root_of("web").join("zzz-endless")).unwrap();
    world.commit("web", "img").unwrap();
    world.whole("img");
}

#[test]
fn a_commit_cancelled_before_it_holds_the_container_never_freezes_it() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.run("web");
    let gate = world.hold_up();
    let answer = world.open(COMMIT).unwrap().begin("img").unwrap();
    world.await_state("running");
    world.echo("1", "jobs/last/cancel").unwrap();
    drop(gate);
    assert_eq!(world.wait(answer).unwrap_err().kind, ErrorKind::Cancelled);
    assert!(world.read("jobs/last/progress").unwrap().starts_with("phase base\n"));
    assert_nothing_left(&world, &[], "cancelled early");
}

#[test]
fn a_job_that_waits_is_cancelled_at_once() {
    let Some(world) = World::with(Setup { workers: 1, ..Setup::default() }) else { return };
    world.overlay("web");
    world.overlay("db");
    let gate = world.hold_up();
    world.commit("db", "first async").unwrap();
    world.await_state("running");
    let open = world.open(COMMIT).unwrap();
    let answer = open.begin("second").unwrap();
    world.commit("db", "third async").unwrap();
    assert_eq!(["1", "2", "3"].map(|job| world.line(&format!("jobs/{job}/state"))), ["running", "queued", "queued"]);

    world.echo("1", "jobs/2/cancel").unwrap();
    let error = world.wait(answer).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Cancelled);
    assert!(error.message.contains("before it began"), "{error}");
    assert_eq!(world.line("jobs/2/wait"), "cancelled");
    assert_eq!(open.text(), format!("job=2 state=cancelled error: {error}\n"));
    let last = world.last_error("web");
    assert!(last.contains("job=2 commit second: ") && last.ends_with(&format!("{error}\n")), "{last}");
    assert_eq!(world.line("jobs/1/state"), "running", "the others go on");
    drop(gate);
    wait_for("the third job is done", LIMIT, || world.line("jobs/3/state") == "done");
    assert_eq!(world.images(), ["first", "third"]);
    world.assert_store_clean("after the queue");
}

#[test]
fn a_daemon_that_ends_cancels_all_and_admits_no_more() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.run("web");
    world.make_endless("web");
    let (first, second) = (world.open(COMMIT).unwrap(), world.open(COMMIT).unwrap());
    let answers = [first.begin("a pause=full").unwrap(), second.begin("b pause=full").unwrap()];
    wait_for("the first job reads", LIMIT, || world.read("jobs/1/progress").unwrap().starts_with("phase frozen\n"));
    world.snapfs.shut_down();
    for answer in answers {
        assert_eq!(world.wait(answer).unwrap_err().kind, ErrorKind::Cancelled);
    }
    world.assert_thawed("web", "after the end");
    assert_eq!(["1", "2"].map(|job| world.line(&format!("jobs/{job}/state"))), ["cancelled", "cancelled"]);
    assert!(world.images().is_empty());
    world.assert_store_clean("after the end");
    // A write that comes now is not left waiting for ever.
    let late = world.commit("web", "late").unwrap_err();
    assert_eq!(late.kind, ErrorKind::Cancelled, "{late}");
}

#[test]
fn a_container_that_its_user_paused_stays_paused_and_is_committed() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.run("web");
    world.group("web", |group| {
        group.write(true);
        wait_for("it is paused", LIMIT, || group.is_settled());
    });
    world.change(|engine| engine.freeze("web", true));
    assert_eq!(world.line("containers/web/status"), "paused");
    for line in ["img", "img pause=none", "img pause=full"] {
        world.commit("web", line).unwrap();
        assert!(world.group("web", |group| group.is_frozen() && group.is_settled()), "{line}");
        assert_eq!(world.line("containers/web/status"), "paused", "{line}");
    }
    world.commit("web", "img").unwrap();
    let image = world.whole("img");
    assert_eq!(image.annotation("io.snapfs.pause"), Some("paused"));
    assert_eq!(image.annotation("io.snapfs.frozen_us"), Some("0"));
    // Cancelled, too.
    world.make_endless("web");
    let answer = world.open(COMMIT).unwrap().begin("other pause=full").unwrap();
    world.await_phase("frozen");
    world.echo("1", "jobs/last/cancel").unwrap();
    assert_eq!(world.wait(answer).unwrap_err().kind, ErrorKind::Cancelled);
    assert!(world.group("web", |group| group.is_frozen()));
}

#[test]
fn a_running_container_is_frozen_for_the_read_and_shown_as_running() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.run("web");
    world.make_endless("web");
    let answer = world.open(COMMIT).unwrap().begin("img pause=full").unwrap();
    world.await_phase("frozen");
    assert!(world.group("web", |group| group.is_settled()));
    // The engine sees a frozen cgroup; its user has not paused anything.
    world.change(|engine| engine.freeze("web", true));
    assert_eq!(world.line("containers/web/status"), "running");
    world.change(|engine| engine.freeze("web", false));
    world.echo("1", "jobs/last/cancel").unwrap();
    world.wait(answer).unwrap_err();
    world.assert_thawed("web", "cancelled");
    std::fs::remove_file(world.root_of("web").join("zzz-endless")).unwrap();

    let cases = [("img", "seal"), ("img pause=full", "full"), ("img pause=none", "none")];
    for (line, pause) in cases {
        world.make("web", &[file("more", line)]);
        world.commit("web", line).unwrap();
        world.assert_thawed("web", line);
        let image = world.whole("img");
        assert_eq!(image.annotation("io.snapfs.pause"), Some(pause));
        let frozen: u64 = image.annotation("io.snapfs.frozen_us").unwrap().parse().unwrap();
        assert_eq!(frozen > 0, pause != "none", "{line}: {frozen}");
    }
    world.change(|engine| engine.stop("web"));
    world.commit("web", "img").unwrap();
    assert_eq!(world.whole("img").annotation("io.snapfs.pause"), Some("stopped"));
    assert_eq!(jobs(&world).len(), 5);
}
