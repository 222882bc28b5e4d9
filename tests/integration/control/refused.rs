//! What is refused: each row with its kind, which is its errno, and with a sentence that says what to do.

use snapfs::engine::Init;
use snapfs::tree::{Access, ErrorKind};

use crate::control::{COMMIT, jobs};
use crate::harness::world::{World, me};

/// A line, what it is refused as, and words that the sentence must hold.
type Row = (&'static [u8], ErrorKind, &'static [&'static str]);

const SYNTAX: &[Row] = &[
    (b"one\ntwo\n", ErrorKind::Invalid, &["one write is one command"]),
    (b"one\n\n", ErrorKind::Invalid, &["one write is one command"]),
    (b"\nimg\n", ErrorKind::Invalid, &["one write is one command"]),
    (b"img \x1b[31m\n", ErrorKind::Invalid, &["no control characters"]),
    (b"img\0\n", ErrorKind::Invalid, &["no control characters"]),
    (b"img message=\xff\n", ErrorKind::Invalid, &["UTF-8"]),
    (b"img message='open\n", ErrorKind::Invalid, &["a quote is not closed", "message='two words'"]),
    (b"message=x\n", ErrorKind::Invalid, &["write the name first"]),
    (b"img frobnicate\n", ErrorKind::Invalid, &["no option \"frobnicate\"", "create", "pause=seal|full|none"]),
    (b"img frobnicate=1\n", ErrorKind::Invalid, &["no option \"frobnicate=\"", "message="]),
    (b"img Create\n", ErrorKind::Invalid, &["no option \"Create\""]),
    (b"img create=yes\n", ErrorKind::Invalid, &["no option \"create=\""]),
    (b"img two\n", ErrorKind::Invalid, &["no option \"two\""]),
    (b"img label.=x\n", ErrorKind::Invalid, &["no option"]),
    (b"img create create\n", ErrorKind::Invalid, &["\"create\" is given twice"]),
    (b"img pause=none pause=full\n", ErrorKind::Invalid, &["\"pause\" is given twice"]),
    (b"img pause=maybe\n", ErrorKind::Invalid, &["pause= cannot be \"maybe\"", "full, none or stop"]),
    (b"img compression=zstd:99\n", ErrorKind::Invalid, &["from 1 to 19"]),
    (b"img compression=lz4\n", ErrorKind::Invalid, &["gzip or none"]),
    (b"img annotation.io.snapfs.kind=image\n", ErrorKind::Invalid, &["snapfs's own"]),
    (b"img change='FOO x'\n", ErrorKind::Invalid, &["change=", "FOO x", "the verbs are CMD"]),
    (b"img compression=zstd:chunky\n", ErrorKind::Invalid, &["zstd:chunked"]),
    (b"img volumes=all\n", ErrorKind::Invalid, &["volumes= cannot be \"all\"", "declare or include"]),
    (b"img squash=most\n", ErrorKind::Invalid, &["squash= cannot be \"most\"", "none, snapshots or all"]),
    (b"img squash=snapshots base=web\n", ErrorKind::Invalid, &["one layer on the container's image"]),
    (b"''\n", ErrorKind::Invalid, &["it is empty"]),
    (b"Img\n", ErrorKind::Invalid, &["\"Img\" is not an image name", "lower case"]),
    (b"../etc\n", ErrorKind::Invalid, &["not an image name"]),
    (b"/img\n", ErrorKind::Invalid, &["empty"]),
    (b".hidden\n", ErrorKind::Invalid, &["not an image name"]),
    (b"a//b\n", ErrorKind::Invalid, &["empty"]),
    (b"img:\n", ErrorKind::Invalid, &["tag"]),
    (b"img@sha256:00\n", ErrorKind::Invalid, &["digest"]),
    (b"host:port/img\n", ErrorKind::Invalid, &["port"]),
];

#[test]
fn what_cannot_be_understood() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let long = [b"img message=".as_slice(), &[b'x'; 4096]].concat();
    let unknown = Row::from((b"img option-", ErrorKind::Invalid, &["no option"]));
    let rows = SYNTAX.iter().copied().chain([unknown]);
    let long = (long.as_slice(), ErrorKind::Invalid, ["4096 bytes at most"].as_slice());
    for (line, kind, says) in rows.chain([long]) {
        let shown = line[..line.len().min(60)].escape_ascii();
        let open = world.open(COMMIT).unwrap();
        let error = open.write(line).unwrap_err();
        assert_eq!(error.kind, kind, "{shown}: {error}");
        for words in says {
            assert!(error.message.contains(words), "{shown}: {error}, which does not say {words:?}");
        }
        assert_eq!(open.text(), format!("error: {error}\n"), "{shown}");
        let last = world.last_error("web");
        assert!(last.contains(" uid=0 commit "), "{shown}: {last}");
        assert!(last.ends_with(&format!(": {}\n", error.message)), "{shown}: {last}");
        assert_eq!(last.lines().count(), 1, "{shown}: {last}");
        assert!(!last.trim_end().chars().any(char::is_control), "{shown}: {last:?}");
    }
    assert!(jobs(&world).is_empty(), "none of these is worth a job");
    assert!(world.images().is_empty());
}

/// A name that is taken is found out before anything is done to the container: this one cannot be frozen, and would say so.
#[test]
fn a_name_that_is_taken_costs_the_container_nothing() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "img").unwrap();
    world.commit("web", "registry.example/team/web:1").unwrap();
    world.run("web");
    let not_its_own = Init { pid: 1, start_time: 1 };
    world.change(|engine| engine.start("web", not_its_own));
    let control = world.commit("web", "free").unwrap_err();
    assert_eq!(control.kind, ErrorKind::NotFound, "whoever freezes it notices: {control}");

    let rows: [(&str, &[&str]); 6] = [
        ("img create", &["image img exists", "leave out \"create\""]),
        ("registry.example/team/web:1 create", &["registry.example/team/web:1 exists"]),
        ("registry.example/team", &["directory of images", "registry.example/team/web:1"]),
        ("img/below", &["img is an image"]),
        ("img/far/below:1 create", &["img is an image"]),
        ("registry.example/team/web:1/x", &["registry.example/team/web:1"]),
    ];
    for (line, says) in rows {
        let asked = world.engine.log().iter().filter(|question| question.starts_with("base_image")).count();
        let error = world.commit("web", line).unwrap_err();
        let expected = if line.ends_with("1/x") { ErrorKind::Invalid } else { ErrorKind::Exists };
        assert_eq!(error.kind, expected, "{line}: {error}");
        for words in says {
            assert!(error.message.contains(words), "{line}: {error}, which does not say {words:?}");
        }
        assert!(world.last_error("web").trim_end().ends_with(&error.message), "{line}");
        let questions = world.engine.log();
        assert_eq!(questions.iter().filter(|question| question.starts_with("base_image")).count(), asked, "{line}");
        world.assert_thawed("web", line);
    }
    assert_eq!(world.images(), ["img", "registry.example/team/web:1"]);
    world.assert_store_clean("after refusals");
}

#[test]
fn a_name_moves_unless_create_says_that_it_must_not() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "img create").unwrap();
    let first = world.digest("img");
    world.make("web", &[crate::harness::rootfs::file("more", "2")]);
    assert_eq!(world.commit("web", "img create").unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(world.digest("img"), first);
    world.commit("web", "img").unwrap();
    assert_ne!(world.digest("img"), first);
    assert_eq!(world.images(), ["img"]);
    world.assert_store_clean("the replaced image goes");
}

#[test]
fn no_such_container() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    for name in ["nope", "web2", "WEB", "web/x", "web@other"] {
        assert_eq!(world.ino(&format!("containers/{name}/commit")).unwrap_err().kind, ErrorKind::NotFound, "{name}");
    }
    // It was there when the file was opened.
    let open = world.open(COMMIT).unwrap();
    let (last_error, again) = (world.ino("containers/web/last_error").unwrap(), world.ino(COMMIT).unwrap());
    world.change(|engine| engine.remove("web"));
    let error = open.write("img\n").unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound);
    assert!(error.message.contains("web-id") && error.message.contains("any more"), "{error}");
    assert_eq!(open.text(), format!("error: {error}\n"));
    assert_eq!(world.ino(COMMIT).unwrap_err().kind, ErrorKind::NotFound);
    // Whoever stands in its directory still learns why.
    let read = Access { read: true, write: false, nonblock: false };
    let last = world.open_ino(last_error, read, me()).unwrap().text();
    assert!(last.ends_with(&format!("{}\n", error.message)), "{last}");
    let open = world.open_ino(again, Access { write: true, ..read }, me()).unwrap();
    assert_eq!(open.write("img\n").unwrap_err().kind, ErrorKind::NotFound);
    assert!(world.images().is_empty());
}

#[test]
fn a_container_that_goes_midway() {
    let Some(world) = World::new() else { return };
    // A stopped one that its engine removes, a running one that ends, and one that is started while it is read.
    for (name, runs) in [("web", false), ("db", true)] {
        world.overlay(name);
        if runs {
            world.run(name);
        }
        let gate = world.hold_up();
        let open = world.open(&format!("containers/{name}/commit")).unwrap();
        let answer = open.begin("img\n").unwrap();
        world.await_state("running");
        if runs {
            world.group(name, |group| group.remove());
        }
        world.change(|engine| engine.remove(name));
        drop(gate);
        let error = world.wait(answer).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NotFound, "{name}: {error}");
        assert!(open.text().ends_with(&format!(" state=failed error: {error}\n")), "{name}");
        assert_eq!(world.line("jobs/last/state"), "failed");
        assert!(world.images().is_empty());
        world.assert_store_clean(name);
    }
}

#[test]
fn a_container_that_starts_while_it_is_read_as_a_stopped_one() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let gate = world.hold_up();
    let answer = world.open(COMMIT).unwrap().begin("img\n").unwrap();
    world.await_state("running");
    world.run("web");
    drop(gate);
    let error = world.wait(answer).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Busy);
    assert!(error.message.contains("web was started") && error.message.contains("again"), "{error}");
    assert!(world.images().is_empty());
    world.assert_thawed("web", "it was never frozen");
    world.commit("web", "img").unwrap();
    assert_eq!(world.whole("img").annotation("io.snapfs.pause"), Some("seal"));
}

#[test]
fn an_engine_that_fails_and_a_base_that_lies() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let open = world.open(COMMIT).unwrap();
    world.change(|engine| engine.set_failing(true));
    let health = world.read("health").unwrap();
    assert!(health.contains("engine fake error: "), "{health}");
    assert!(open.write("img\n").is_err());
    world.change(|engine| engine.set_failing(false));

    let tar = b"no tar, but bytes".to_vec();
    let config =
        serde_json::to_vec(&serde_json::json!({ "rootfs": { "diff_ids": [] }, "history": [1, 2, 3] })).unwrap();
    world.engine.set_base_image_with("web", "base", config, vec![tar]);
    let error = world.commit("web", "img").unwrap_err();
    assert_eq!(error.kind, ErrorKind::Io);
    assert!(error.message.contains("history tells of 3 layers"), "{error}");
    world.engine.set_base_image_with("web", "base", b"{".to_vec(), Vec::new());
    assert_eq!(world.commit("web", "img").unwrap_err().kind, ErrorKind::Io);
    assert!(world.images().is_empty());
    world.assert_store_clean("after failures");
}

/// `tag` and `cancel` are control files too.
#[test]
fn the_other_control_files_keep_the_same_rules() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "img").unwrap();
    world.commit("web", "dir/other").unwrap();
    let rows: [(&str, ErrorKind, &str); 6] = [
        ("Bad", ErrorKind::Invalid, "lower case"),
        ("two names", ErrorKind::Invalid, "not an image name"),
        ("a\nb", ErrorKind::Invalid, "one write is one command"),
        ("dir", ErrorKind::Exists, "directory of images"),
        ("img/x", ErrorKind::Exists, "img is an image"),
        ("dir/other/x:1", ErrorKind::Exists, "dir/other is an image"),
    ];
    for (line, kind, says) in rows {
        let open = world.open("images/img/tag").unwrap();
        let error = open.write(format!("{line}\n")).unwrap_err();
        assert_eq!(error.kind, kind, "{line}: {error}");
        assert!(error.message.contains(says), "{line}: {error}");
        assert_eq!(open.text(), format!("error: {error}\n"), "{line}");
        let last = world.read("images/img/last_error").unwrap();
        assert!(last.contains(" tag ") && last.ends_with(&format!("{}\n", error.message)), "{line}: {last}");
    }
    world.echo("", "images/img/tag").unwrap();
    assert_eq!(world.images(), ["dir/other", "img"]);
    assert_eq!(world.last_error("web"), "", "an image's errors are not a container's");

    for line in ["0", "yes", "1 2", "11"] {
        let error = world.echo(line, "jobs/1/cancel").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{line}");
        assert!(error.message.contains("write 1 to cancel job 1"), "{error}");
    }
    world.echo("1", "jobs/1/cancel").unwrap();
    assert_eq!(world.line("jobs/1/state"), "done", "what has ended stays as it ended");
}

/// An image may have the name that an engine's container has there: each has its own last words.
#[test]
fn an_image_does_not_inherit_the_words_of_a_container() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.commit("web", "fake/web-id").unwrap();
    world.commit("web", "Bad").unwrap_err();
    assert_eq!(world.read("images/fake/web-id/last_error").unwrap(), "");
    assert_eq!(world.read("images/fake/web-id/tag").unwrap(), "");
    world.echo("Worse", "images/fake/web-id/tag").unwrap_err();
    assert!(world.last_error("web").contains("\"Bad\""));
}
