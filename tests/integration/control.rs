//! Control files, rule by rule, on the tree: what a write does, what it answers, and what can be read afterwards.

mod content;
mod full;
mod refused;
mod stopped;
mod writer;

use snapfs::tree::{Access, Change, ErrorKind, Reply};

use crate::harness::cgroup::wait_for;
use crate::harness::world::{LIMIT, World, me};

const COMMIT: &str = "containers/web/commit";

/// The jobs there are; `last` is not one.
fn jobs(world: &World) -> Vec<String> {
    world.list("jobs").unwrap().into_iter().filter(|name| name != "last").collect()
}

#[test]
fn a_line_is_a_command_and_its_answer_is_the_commits() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let lines: [(&[u8], &str); 6] = [
        (b"one\n", "one"),
        (b"two", "two"),
        (b"three\r\n", "three"),
        (b"  four  ", "four"),
        (b"registry.example:5000/team/web:1.0\n", "registry.example:5000/team/web:1.0"),
        (
            b"six message='it said \"no\"' description=\"a 'b'\" label.env=prod\\ 1 annotation.org.example=x\\=y\n",
            "six",
        ),
    ];
    for (count, (line, name)) in lines.into_iter().enumerate() {
        let open = world.open(COMMIT).unwrap();
        open.write(line).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(jobs(&world).len(), count + 1, "{name}: one line is one job");
        // The answer is in: it is visible, and it is whole.
        let digest = world.whole(name).blobs.into_iter().find(|digest| *digest == world.digest(name)).unwrap();
        assert_eq!(open.text(), format!("job={} state=done {digest}\n", count + 1), "{name}");
    }
    let six = world.whole("six");
    assert_eq!(six.config["history"].as_array().unwrap().last().unwrap()["comment"], "it said \"no\"");
    assert_eq!(six.annotation("org.opencontainers.image.description"), Some("a 'b'"));
    assert_eq!(six.annotation("org.example"), Some("x=y"));
    assert_eq!(world.store.record(&"six".parse().unwrap()).unwrap().labels["env"], "prod 1");
    assert_eq!(world.last_error("web"), "");
    world.assert_store_clean("after six commits");
}

#[test]
fn four_kibibytes_are_taken_whole() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let line = format!("img message={}\n", "x".repeat(4096 - "img message=\n".len()));
    assert_eq!(line.len(), 4096);
    world.open(COMMIT).unwrap().write(&line).unwrap();
    assert_eq!(world.whole("img").config["history"][1]["comment"].as_str().unwrap().len(), 4096 - 13);
}

#[test]
fn an_empty_line_is_a_successful_no_op() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let open = world.open(COMMIT).unwrap();
    for nothing in ["", "\n", "\r\n", "   \n", "\t"] {
        open.write(nothing).unwrap();
    }
    assert_eq!(open.text(), "");
    assert!(jobs(&world).is_empty() && world.images().is_empty());
    // Also while a command is being carried out.
    let gate = world.hold_up();
    let answer = open.begin("img").unwrap();
    open.write("\n").unwrap();
    drop(gate);
    world.wait(answer).unwrap();
}

#[test]
fn the_same_line_on_the_same_open_file_is_the_same_job() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let gate = world.hold_up();
    let open = world.open(COMMIT).unwrap();
    let first = open.begin("img\n").unwrap();
    let again = open.begin("img").unwrap();
    assert!(matches!((&first, &again), (Reply::Later(_), Reply::Later(_))));

    let other = open.begin("other\n").unwrap_err();
    assert_eq!(other.kind, ErrorKind::Busy);
    assert!(other.message.contains("\"img\"") && other.message.contains("open the file anew"), "{other}");
    let malformed = open.begin("img\nother\n").unwrap_err();
    assert_eq!(malformed.kind, ErrorKind::Busy, "and it must not make snapfs forget what is being carried out");
    let last = world.open(COMMIT).unwrap();
    let waiting = last.begin("img").unwrap();
    assert_eq!(jobs(&world), ["1", "2"], "another open file is another job, and the refused lines are none");
    drop(gate);
    for answer in [first, again, waiting] {
        world.wait(answer).unwrap();
    }
    // Sent again after the success, as after a signal that came with it.
    open.write("img\n").unwrap();
    assert_eq!(jobs(&world), ["1", "2"]);
    open.write("other\n").unwrap();
    assert_eq!(jobs(&world), ["1", "2", "3"]);
}

#[test]
fn the_same_line_after_an_error_is_the_same_error() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "img").unwrap();
    for line in ["img create\n", "img frobnicate\n", "one\ntwo\n"] {
        let open = world.open(COMMIT).unwrap();
        let first = open.write(line).unwrap_err();
        let count = jobs(&world).len();
        assert_eq!(open.write(line).unwrap_err(), first, "{line}");
        assert_eq!(jobs(&world).len(), count, "{line}: a job of its own");
        open.write("img\n").unwrap();
    }
}

#[test]
fn async_and_a_descriptor_that_must_not_block_are_answered_at_admission() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    for (number, (line, nonblock)) in [("img async", false), ("img", true)].into_iter().enumerate() {
        let job = format!("jobs/{}", number + 1);
        let gate = world.hold_up();
        let access = Access { read: true, write: true, nonblock };
        let open = world.open_as(COMMIT, access, me()).unwrap();
        let reply = open.send(line.as_bytes(), nonblock, me()).unwrap();
        assert!(matches!(reply, Reply::Now(count) if count as usize == line.len()), "{line}");

        wait_for("a worker takes it", LIMIT, || world.line(&format!("{job}/state")) == "running");
        assert_eq!(world.link("jobs/last").unwrap(), (number + 1).to_string());
        assert_eq!(world.line(&format!("{job}/command")), format!("containers/web/commit {line}"));
        assert_eq!(world.read(&format!("{job}/result")).unwrap(), "");
        assert_eq!(world.read(&format!("{job}/error")).unwrap(), "");
        assert_eq!(open.text(), format!("job={} state=running\n", number + 1));
        assert!(!world.tree.poll(open.fh).unwrap().read, "there is nothing new to read yet");
        let waiter = world.open_as(&format!("{job}/wait"), Access { write: false, ..access }, me()).unwrap();
        assert!(!world.tree.poll(waiter.fh).unwrap().read);
        assert!(matches!(world.tree.read(waiter.fh, 0, 99).unwrap(), Reply::Later(_)));
        drop(gate);
        assert_eq!(waiter.text(), "done\n");
        assert!(world.tree.poll(waiter.fh).unwrap().read && world.tree.poll(open.fh).unwrap().read);
        let digest = world.digest("img");
        assert_eq!(world.line(&format!("{job}/result")), digest.to_string());
        assert_eq!(world.line(&format!("{job}/state")), "done");
        assert!(world.read(&format!("{job}/progress")).unwrap().starts_with("phase finishing\nbytes "));
        open.seek(0);
        assert_eq!(open.text(), format!("job={} state=done {digest}\n", number + 1));
    }
    assert_eq!(jobs(&world), ["1", "2"]);
    assert_eq!(world.line("jobs/1/log").split(' ').next(), Some("made"), "what was not asked for is said");
}

/// An asynchronous job may fail after the write was answered: the sentence is where one looks for it.
#[test]
fn an_asynchronous_failure_is_told_by_the_job_and_by_last_error() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "img").unwrap();
    world.commit("web", "img create async").unwrap();
    world.await_state("failed");
    let error = world.line("jobs/last/error");
    assert!(error.contains("img") && error.contains("create"), "{error}");
    assert!(world.last_error("web").trim_end().ends_with(&error));
    assert_eq!(world.line("jobs/last/wait"), "failed");
    assert_eq!(world.read("jobs/last/result").unwrap(), "");
}

#[test]
fn a_reader_sees_one_answer_from_its_beginning_to_its_end() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let gate = world.hold_up();
    let open = world.open(COMMIT).unwrap();
    open.write("img async\n").unwrap();
    world.await_state("running");
    // read(2), read(2) until the end, while the job ends between the two.
    let piece = |at: u64, size| world.wait(world.tree.read(open.fh, at, size).unwrap()).unwrap();
    let first = piece(10, 10);
    drop(gate);
    world.await_state("done");
    let rest = piece(20, 4096);
    let text = String::from_utf8([first, rest].concat()).unwrap();
    assert_eq!(text, "job=1 state=running\n");
    // From the beginning it is the answer of now.
    let now = String::from_utf8(piece(10, 4096)).unwrap();
    assert!(now.starts_with("job=1 state=done sha256:"), "{now}");
}

#[test]
fn offsets_truncation_and_times_have_no_effect() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let ino = world.ino(COMMIT).unwrap();
    let before = world.tree.attr(ino).unwrap();
    let size = Some(12345);
    for change in [Change { size, ..Change::default() }, Change { times: true, ..Change::default() }] {
        assert_eq!(world.tree.set_attr(ino, change).unwrap(), before);
    }
    assert_eq!(before.size, 0);
    for change in [Change { mode: true, ..Change::default() }, Change { owner: true, size, ..Change::default() }] {
        assert_eq!(world.tree.set_attr(ino, change).unwrap_err().kind, ErrorKind::Denied);
    }
    // As with O_APPEND, pwrite(2), or a shell that wrote before.
    for (number, offset) in [0, 1, 4096, u64::from(u32::MAX) + 1].into_iter().enumerate() {
        let open = world.open(COMMIT).unwrap();
        open.seek(offset);
        open.write(format!("img{number}\n")).unwrap();
        assert!(open.text().starts_with(&format!("job={} state=done", number + 1)), "at {offset}");
    }
    assert_eq!(world.images(), ["img0", "img1", "img2", "img3"]);
    let files = ["containers/web/status", "images/img0/digest", "README", "jobs/1/state", "containers/web/last_error"];
    for path in files {
        let ino = world.ino(path).unwrap();
        assert_eq!(world.tree.set_attr(ino, Change { size, ..Change::default() }).unwrap_err().kind, ErrorKind::Denied);
        assert_eq!(world.open(path).unwrap_err().kind, ErrorKind::ReadOnly, "{path}");
    }
}

#[test]
fn the_open_file_gives_its_answer_and_a_new_one_the_last_result() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    assert_eq!(world.read(COMMIT).unwrap(), "", "nothing was asked yet");
    let (good, bad) = (world.open(COMMIT).unwrap(), world.open(COMMIT).unwrap());
    good.write("img\n").unwrap();
    let error = bad.write("img frobnicate\n").unwrap_err();
    // `exec 3<>commit; echo … >&3 || cat <&3`: once, and no more than that.
    assert_eq!(bad.text(), format!("error: {error}\n"));
    bad.seek(0);
    assert_eq!(bad.text(), format!("error: {error}\n"));
    let digest = world.digest("img");
    assert_eq!(good.text(), format!("job=1 state=done {digest}\n"));
    assert_eq!(good.text(), "", "the end of the file");

    let last = world.line(COMMIT);
    assert!(last.contains(" uid=0 commit img frobnicate: ") && last.ends_with(&error.message), "{last}");
    assert_eq!(world.last_error("web"), format!("{last}\n"));
    world.commit("web", "img").unwrap();
    let (last, digest) = (world.line(COMMIT), world.digest("img"));
    assert!(last.contains(" uid=0 job=2 commit img: ") && last.ends_with(&digest.to_string()), "{last}");
    assert!(world.last_error("web").contains("frobnicate"), "a success does not hide the last failure");
    // A second command on the same file, refused: its answer takes the place of the first.
    let error = good.write("one\ntwo\n").unwrap_err();
    assert_eq!(good.text(), format!("error: {error}\n"));
}

#[test]
fn jobs_of_one_container_follow_each_other_and_those_of_two_do_not() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.overlay("db");
    world.make_endless("web");
    world.commit("web", "a async").unwrap();
    world.await_phase("reading");
    world.commit("web", "b async").unwrap();
    world.commit("db", "c").unwrap();
    assert_eq!(world.line("jobs/1/state"), "running");
    assert_eq!(world.line("jobs/2/state"), "queued");
    assert_eq!(world.line("jobs/3/state"), "done");
    let health = world.read("health").unwrap();
    assert!(health.contains("jobs_queued 1\n") && health.contains("jobs_running 1\n"), "{health}");
    for job in ["2", "1"] {
        world.echo("1", &format!("jobs/{job}/cancel")).unwrap();
        assert_eq!(world.line(&format!("jobs/{job}/wait")), "cancelled");
    }
}
