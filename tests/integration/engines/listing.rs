//! Several engines together: names, caching, failures.

use std::fs;
use std::thread::sleep;
use std::time::Duration;

use snapfs::engine::{self, Crun, Engines, Host, Init, Podman, Runc, Status};

use crate::harness::engine::{FakeEngine, write};

fn engines(fakes: &[&FakeEngine]) -> Engines {
    Engines::new(fakes.iter().map(|fake| Box::new(FakeEngine::clone(fake)) as Box<dyn engine::Engine>).collect())
}

#[test]
fn a_name_belongs_to_the_first_engine_that_uses_it() {
    let (first, second, third) = (FakeEngine::new("first"), FakeEngine::new("second"), FakeEngine::new("third"));
    for fake in [&first, &second, &third] {
        fake.create("web");
        fake.change("web", |container| container.id = format!("{}-0", container.engine));
    }
    second.create("db");
    let listing = engines(&[&second, &first, &third]).containers();
    assert_eq!(listing.visible_names().collect::<Vec<_>>(), ["web", "db", "web@first", "web@third"]);
    for (name, engine) in [
        ("web", "second"),
        ("web@second", "second"),
        ("web@first", "first"),
        ("web@third", "third"),
        ("third-0@third", "third"),
        ("first-0", "first"),
        ("fi", "first"),
        ("db@second", "second"),
    ] {
        assert_eq!(listing.find(name).unwrap().engine, engine, "{name}");
    }
    for name in ["", "@", "web@", "@first", "web@fourth", "db@first", "web@first@first", "x"] {
        assert!(matches!(listing.find(name), Err(engine::Error::NoContainer { .. })), "{name:?}");
    }
    first.create("web2");
    first.change("web2", |container| container.id = "first-1".to_owned());
    let listing = engines(&[&first]).containers();
    assert!(matches!(listing.find("first-"), Err(engine::Error::Ambiguous { matches: 2, .. })));
}

#[test]
fn every_name_is_a_file_name_and_every_container_is_reachable() {
    let fake = FakeEngine::new("fake");
    let names =
        ["a/b", "..", "", "a\nengine x ok", "\u{1b}[2J", "a@fake", "%2F", "é", &"long".repeat(100), "twice", "twice"];
    for (at, name) in names.iter().enumerate() {
        fake.create("new");
        fake.change("new", |container| (container.name, container.id) = (name.to_string(), format!("id{at}")));
    }
    let listing = engines(&[&fake]).containers();
    let visible: Vec<&str> = listing.visible_names().collect();
    assert_eq!(visible[..2], ["a%2Fb", "%2E%2E"]);
    assert_eq!(visible[8..], ["id8", "twice", "twice@fake"]);
    for (at, (name, container)) in listing.iter().enumerate() {
        assert!(!name.contains('/') && !name.chars().any(char::is_control) && !name.is_empty() && name.len() <= 255);
        assert_eq!(listing.find(name).unwrap().id, container.id);
        assert_eq!(container.id, format!("id{at}"));
        assert_eq!(container.name, names[at]);
    }
}

#[test]
fn a_listing_is_given_out_again_for_a_moment() {
    let fake = FakeEngine::new("fake");
    let engines = engines(&[&fake]);
    let asked = || fake.log().len();
    engines.containers();
    for _ in 0..20 {
        engines.containers();
    }
    assert!(asked() <= 2, "{:?}", fake.log());
    fake.create("new");
    sleep(Duration::from_millis(60));
    assert!(engines.containers().find("new").is_ok());
    fake.start("new", Init { pid: 1, start_time: 1 });
    let before = asked();
    assert_eq!(engines.containers_now().find("new").unwrap().status, Status::Running);
    assert_eq!(asked(), before + 1);
    assert!(fake.log().iter().all(|question| question == "list"));
}

#[test]
fn an_engine_that_fails_hides_no_other() {
    let (good, bad) = (FakeEngine::new("good"), FakeEngine::new("bad"));
    good.create("web");
    bad.create("lost");
    bad.set_failing(true);
    let engines = engines(&[&bad, &good]);
    assert_eq!(engines.containers().visible_names().collect::<Vec<_>>(), ["web"]);
    let health = engines.health();
    assert!(health[0].starts_with("engine bad error: cannot read"), "{health:?}");
    assert_eq!(health[1..], ["engine good ok"]);
    bad.set_failing(false);
    assert_eq!(engines.containers_now().visible_names().collect::<Vec<_>>(), ["lost", "web"]);
}

#[test]
fn engines_that_are_not_installed_are_absent() {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    let engines = Engines::new(vec![
        Box::new(Podman::new(at("graph"), at("run"), at("runc"), at("crun"), Host::default())),
        Box::new(Runc::new(at("runc"), Host::default())),
        Box::new(Crun::new(at("crun"), Host::default())),
    ]);
    assert_eq!(engines.containers().visible_names().count(), 0);
    assert_eq!(engines.health(), ["engine podman absent", "engine runc absent", "engine crun absent"]);
    assert!(engine::NAMES.iter().all(|name| engine::system(name).unwrap().name() == *name));
    assert!(matches!(engine::system("rkt"), Err(engine::Error::UnknownEngine { .. })));
}

#[test]
fn hostile_state_is_skipped_with_its_reason() {
    let directory = tempfile::tempdir().unwrap();
    let at = |path: &str| directory.path().join(path);
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    let state = |id: &str, rootfs: &str| {
        let config = serde_json::json!({ "rootfs": rootfs, "labels": ["bundle=/b"] });
        let state = serde_json::json!({ "id": id, "init_process_pid": 0, "init_process_start": 0, "config": config });
        state.to_string()
    };
    let runc = [
        ("ok", state("ok", "/b/rootfs")),
        ("bad.1-garbage", "{\"id\": ".to_owned()),
        ("bad.2-binary", "\0\u{1}\u{2}".to_owned()),
        ("bad.3-empty", String::new()),
        ("bad.4-deep", deep.clone()),
        ("bad.5-null", "null".to_owned()),
        ("bad.6-huge", " ".repeat((4 << 20) + 1)),
        ("bad.7-other-id", state("../../etc", "/b/rootfs")),
        ("bad.8-relative", state("bad.8-relative", "rootfs")),
        ("bad.9-dots", state("bad.9-dots", "/b/../../etc")),
        ("bad\nengine x ok", state("bad\nengine x ok", "/b/rootfs")),
        ("bad id", state("bad id", "/b/rootfs")),
    ];
    for (id, text) in &runc {
        write(&at("runc").join(id).join("state.json"), text);
    }
    let status = serde_json::json!({ "pid": -1, "process-start-time": 1, "rootfs": "rootfs", "bundle": "/b" });
    write(&at("crun/ok/status"), status.to_string());
    write(&at("crun/bad-dots/status"), status.to_string().replace("\"rootfs\":\"rootfs\"", "\"rootfs\":\"../x\""));
    write(&at("crun/bad-numbers/status"), status.to_string().replace("-1", "1e99"));
    fs::create_dir_all(at("crun/bad-directory/status")).unwrap();
    fs::create_dir_all(at("crun/being-made")).unwrap();
    write(&at("outside"), status.to_string());
    fs::create_dir_all(at("crun/bad-link")).unwrap();
    std::os::unix::fs::symlink(at("outside"), at("crun/bad-link/status")).unwrap();
    let fifo = at("crun/bad-fifo/status");
    fs::create_dir_all(fifo.parent().unwrap()).unwrap();
    let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    write(&at("graph/overlay-containers/containers.json"), deep);

    let engines = Engines::new(vec![
        Box::new(Podman::new(at("graph"), at("run"), at("none"), at("none"), Host::default())),
        Box::new(Runc::new(at("runc"), Host::default())),
        Box::new(Crun::new(at("crun"), Host::default())),
    ]);
    let listing = engines.containers();
    assert_eq!(listing.visible_names().collect::<Vec<_>>(), ["ok", "ok@crun"]);
    assert!(listing.iter().all(|(_, container)| container.status == Status::Stopped));
    let health = listing.health();
    assert!(health.iter().all(|line| !line.contains('\n')), "{health:?}");
    assert!(health[0].starts_with("engine podman error: cannot use"), "{health:?}");
    let lines = |start: &str| health.iter().filter(|line| line.starts_with(start)).count();
    assert_eq!((lines("engine runc ok"), lines("engine runc skipped: ")), (1, 6));
    assert!(health.contains(&"engine runc skipped: and 6 more".to_owned()), "{health:#?}");
    assert_eq!((lines("engine crun ok"), lines("engine crun skipped: ")), (1, 5), "{health:#?}");
}
