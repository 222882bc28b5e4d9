//! Who may write: on the host, as who opened the file, and never from inside a container.

use std::process::Child;

use snapfs::tree::{Access, Caller, Error, ErrorKind};

use crate::control::{COMMIT, jobs};
use crate::harness::cgroup::{command, wait_for};
use crate::harness::world::{LIMIT, World, me};

/// Root, as the process `tid`.
fn root(tid: u32) -> Caller {
    Caller { uid: 0, gid: 0, tid }
}

/// A process that is ended with the value.
struct Task(Child);

impl Task {
    fn start(arguments: &[&str]) -> Task {
        Task(command(arguments[0]).args(&arguments[1..]).spawn().unwrap())
    }

    fn id(&self) -> u32 {
        self.0.id()
    }

    /// Its only child, once it has one.
    fn child(&self) -> u32 {
        let path = format!("/proc/{0}/task/{0}/children", self.id());
        let children = || std::fs::read_to_string(&path).unwrap();
        wait_for("a child", LIMIT, || !children().trim().is_empty());
        children().trim().parse().unwrap()
    }

    /// Wait until a namespace of `tid` is not ours.
    fn await_namespace(tid: u32, kind: &str) {
        let of = |tid: &str| std::fs::read_link(format!("/proc/{tid}/ns/{kind}")).unwrap();
        wait_for("another namespace", LIMIT, || of(&tid.to_string()) != of("self"));
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        // A child that outlives it was asked to die with it.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Everything that changes something, done by `caller`: each must be refused, or each must succeed.
fn attempt(world: &World, caller: Caller) -> Vec<(&'static str, Result<(), Error>)> {
    let access = Access { read: true, write: true, nonblock: false };
    let write = |path: &str, line: &str| {
        let open = world.open_as(path, access, caller)?;
        world.wait(open.send(line.as_bytes(), false, caller)?).map(drop)
    };
    let images = world.ino("images").unwrap();
    let rename = |from: &str, to: &str| {
        world.wait(world.tree.rename(images, from.as_ref(), images, to.as_ref(), false, &caller)?)
    };
    let labels = world.ino("images/img/labels").unwrap();
    let label = world.tree.create(labels, "k".as_ref(), false, &caller).and_then(|made| world.wait(made));
    let unlink = match world.tree.unlink(labels, "k".as_ref(), &caller).and_then(|gone| world.wait(gone)) {
        // It was never made: the refusal of that is what counts.
        Err(error) if label.is_err() && error.kind == ErrorKind::NotFound => label.clone(),
        other => other,
    };
    vec![
        ("commit", write(COMMIT, "made\n")),
        ("tag", write("images/img/tag", "tagged\n")),
        ("label", label),
        ("rm", unlink),
        ("cancel", write("jobs/1/cancel", "1\n")),
        ("mv", rename("img", "moved")),
        ("mv back", rename("moved", "img")),
        ("rmdir", world.tree.remove_dir(images, "tagged".as_ref(), &caller).and_then(|reply| world.wait(reply))),
    ]
}

fn assert_refused(world: &World, caller: Caller, says: &str, context: &str) {
    let (images, count) = (world.images(), jobs(world).len());
    for (what, done) in attempt(world, caller) {
        // What the earlier step did not make, the later one cannot find.
        let missing = matches!(what, "mv back" | "rmdir");
        let error = done.expect_err(&format!("{context}: {what} must be refused"));
        let expected = if missing { ErrorKind::NotFound } else { ErrorKind::Denied };
        assert_eq!(error.kind, expected, "{context}: {what}: {error}");
        assert!(missing || error.message.contains(says), "{context}: {what}: {error}");
    }
    assert_eq!((world.images(), jobs(world).len()), (images, count), "{context}");
}

#[test]
fn a_process_in_another_namespace_may_not_write() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "img").unwrap();
    let says = "in another pid or user namespace; write from the host";

    let user = Task::start(&["unshare", "--user", "--map-root-user", "sleep", "1000"]);
    Task::await_namespace(user.id(), "user");
    assert_refused(&world, root(user.id()), says, "another user namespace");

    let pid = Task::start(&["unshare", "--pid", "--fork", "--kill-child", "sleep", "1000"]);
    Task::await_namespace(pid.child(), "pid");
    assert_refused(&world, root(pid.child()), says, "another pid namespace");
    assert!(world.last_error("web").contains(says), "who was refused can be told why");

    // Services of the host have a mount, network or uts namespace of their own, and are no containers.
    let mount = Task::start(&["unshare", "--mount", "--net", "--uts", "--ipc", "sleep", "1000"]);
    Task::await_namespace(mount.id(), "mnt");
    for (what, done) in attempt(&world, root(mount.id())) {
        done.unwrap_or_else(|error| panic!("a service of the host: {what}: {error}"));
    }
    assert_eq!(world.images(), ["img", "made"]);
}

#[test]
fn a_process_in_the_containers_cgroup_may_not_write() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.overlay("db");
    world.commit("web", "img").unwrap();
    let init = world.run("web");
    world.run("db");
    let says = "the writer runs inside the container web; write from the host";
    assert_refused(&world, root(init.pid), says, "its first process");
    let joined = world.group("web", |group| group.run("exec sleep 1000"));
    assert_refused(&world, root(joined.pid), says, "a process that joined it, as exec does");
    let other = world.group("db", |group| group.run("exec sleep 1000"));
    assert_refused(&world, root(other.pid), "inside the container db", "another container's process");
    // A cgroup that the container made in its own.
    let path = world.group("web", |group| group.path.clone());
    let below = path.join("below");
    std::fs::create_dir(&below).unwrap();
    std::fs::write(below.join("cgroup.procs"), joined.pid.to_string()).unwrap();
    let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        assert_refused(&world, root(joined.pid), says, "a process further below");
    }));
    std::fs::write(path.join("cgroup.procs"), joined.pid.to_string()).unwrap();
    std::fs::remove_dir(&below).unwrap();
    refused.unwrap();
}

#[test]
fn a_writer_that_nobody_can_look_at_may_not_write() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "img").unwrap();
    let ended = Task::start(&["true"]).id();
    for (tid, context) in [(0, "no number in our pid namespace"), (ended, "ended"), (u32::MAX, "no number at all")] {
        assert_refused(&world, root(tid), "cannot be looked at", context);
    }
}

#[test]
fn a_descriptor_is_its_openers() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let user = Caller { uid: 1000, gid: 1000, ..me() };
    let access = Access { read: true, write: true, nonblock: false };
    // The user opens, and a program with more rights is made to write: sudo, or a setuid program's error message.
    let open = world.open_as(COMMIT, access, user).unwrap();
    let error = open.send(b"img\n", false, me()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied);
    for words in ["user 1000 opened", "user 0 writes", "open it as the user who writes"] {
        assert!(error.message.contains(words), "{error}");
    }
    let last = world.last_error("web");
    assert!(last.contains(" uid=0 commit img: ") && last.ends_with(&format!("{}\n", error.message)), "{last}");
    // And the other way round.
    let root = world.open(COMMIT).unwrap();
    assert_eq!(root.send(b"img\n", false, user).unwrap_err().kind, ErrorKind::Denied);
    assert!(jobs(&world).is_empty());
    // The mode of the file has let the group in; the job is the user's.
    world.wait(open.send(b"img\n", false, user).unwrap()).unwrap();
    assert!(world.line(COMMIT).contains(" uid=1000 job=1 commit img: "));
}
