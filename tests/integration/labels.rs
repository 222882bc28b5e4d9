//! Labels on image names: files that are made, written, renamed and deleted one by one.

use std::collections::BTreeMap;
use std::fs;
use std::thread;

use snapfs::api::LABEL_LIMIT;
use snapfs::store::Store;
use snapfs::tree::{Access, Caller, Error, ErrorKind, Opened};

use crate::harness::cgroup::wait_for;
use crate::harness::lab::{Bundle, attempt, text};
use crate::harness::mount::{Place, in_lab};
use crate::harness::world::{LIMIT, World, me};

const DIRECTORY: &str = "images/img/labels";
const WRITE: Access = Access { read: false, write: true, nonblock: false };

fn world() -> Option<World> {
    let world = World::new()?;
    world.overlay("web");
    world.commit("web", "img label.env=prod label.a/b=c").unwrap();
    Some(world)
}

fn labels(world: &World, image: &str) -> BTreeMap<String, String> {
    world.store.record(&image.parse().unwrap()).unwrap().labels.clone()
}

fn create(world: &World, directory: &str, file: &str) -> Result<(), Error> {
    world.wait(world.tree.create(world.ino(directory)?, file.as_ref(), false, &me())?)
}

/// `echo TEXT > FILE`, as a shell asks for it.
fn echo(world: &World, text: &str, file: &str) -> Result<(), Error> {
    let fh = match world.ino(&format!("{DIRECTORY}/{file}")) {
        Ok(ino) => match world.tree.open(ino, WRITE, &me())? {
            Opened::Control { fh } => fh,
            other => panic!("{other:?}"),
        },
        Err(_) => {
            create(world, DIRECTORY, file)?;
            return echo(world, text, file);
        }
    };
    world.tree.opened_empty(fh);
    let written = world.tree.write(fh, 0, format!("{text}\n").as_bytes(), false, &me());
    let written = written.and_then(|reply| world.wait(reply)).map(drop);
    world.tree.release(fh);
    written
}

#[test]
fn a_label_is_a_file_and_a_commits_labels_are_labels() {
    let Some(world) = world() else { return };
    assert_eq!(world.list(DIRECTORY).unwrap(), ["a%2Fb", "env"]);
    assert_eq!(world.line("images/img/labels/a%2Fb"), "c");
    echo(&world, "test", "env").unwrap();
    assert_eq!(world.line("images/img/labels/env"), "test");
    assert_eq!(world.attr("images/img/labels/env").unwrap().size, 5);
    // On the way to a new value nobody sees the label without one.
    let Opened::Control { fh } = world.tree.open(world.ino("images/img/labels/env").unwrap(), WRITE, &me()).unwrap()
    else {
        panic!("not for writing")
    };
    world.tree.opened_empty(fh);
    assert_eq!(labels(&world, "img")["env"], "test");
    world.tree.release(fh);
    wait_for("it is empty once it is closed", LIMIT, || labels(&world, "img")["env"].is_empty());

    echo(&world, "new", "org.example%2Fkey").unwrap();
    assert_eq!(labels(&world, "img")["org.example/key"], "new");
    let directory = world.ino(DIRECTORY).unwrap();
    world.wait(world.tree.unlink(directory, "org.example%2Fkey".as_ref(), &me()).unwrap()).unwrap();
    world
        .wait(world.tree.rename(directory, "a%2Fb".as_ref(), directory, "moved".as_ref(), true, &me()).unwrap())
        .unwrap();
    let spared = world.tree.rename(directory, "moved".as_ref(), directory, "env".as_ref(), true, &me());
    let spared = spared.and_then(|reply| world.wait(reply));
    assert_eq!(spared.unwrap_err().kind, ErrorKind::Exists);
    assert_eq!(world.list(DIRECTORY).unwrap(), ["env", "moved"]);
    // It all holds after the daemon, and of the other files none has changed.
    let expected = labels(&world, "img");
    assert_eq!(expected["moved"], "c");
    world.assert_store_clean("after the labels");
}

#[test]
fn labels_are_the_names_and_survive_a_restart() {
    let Some(world) = world() else { return };
    world.echo("img:other", "images/img/tag").unwrap();
    echo(&world, "mine", "owner").unwrap();
    assert_eq!(labels(&world, "img:other"), BTreeMap::new(), "two names of one image have labels of their own");
    let images = world.ino("images").unwrap();
    world.wait(world.tree.rename(images, "img".as_ref(), images, "moved".as_ref(), false, &me()).unwrap()).unwrap();
    assert_eq!(world.line("images/moved/labels/owner"), "mine");
    // The records as another program finds them on the disk.
    let record = fs::read_to_string(world.place.join("names/moved")).unwrap();
    assert!(record.contains(r#""owner":"mine""#), "{record}");
    assert_eq!(Store::fsck_dir(&world.place).unwrap(), []);
}

#[test]
fn writers_of_different_keys_do_not_lose_each_others() {
    let Some(world) = world() else { return };
    thread::scope(|scope| {
        for writer in 0..8 {
            let world = &world;
            scope.spawn(move || {
                for round in 0..20 {
                    echo(world, &format!("{round}"), &format!("k{writer}-{}", round % 4)).unwrap();
                }
            });
        }
    });
    let labels = labels(&world, "img");
    assert_eq!(labels.len(), 2 + 8 * 4);
    for writer in 0..8 {
        for slot in 0..4 {
            assert_eq!(labels[&format!("k{writer}-{slot}")], (16 + slot).to_string());
        }
    }
}

#[test]
fn what_is_refused_changes_nothing_and_says_why() {
    let Some(world) = world() else { return };
    let before = labels(&world, "img");
    let long = "x".repeat(LABEL_LIMIT);
    for (value, file, kind, says) in [
        (long.as_str(), "env", ErrorKind::TooBig, "4096"),
        ("a\0b", "env", ErrorKind::Invalid, "zero byte"),
        ("x", ".swp", ErrorKind::Invalid, "%2Eswp"),
        ("x", "100%", ErrorKind::Invalid, "%25"),
    ] {
        let error = echo(&world, value, file).unwrap_err();
        assert_eq!(error.kind, kind, "{file}: {error}");
        assert!(error.message.contains(says), "{error}");
        let told = world.read("images/img/last_error").unwrap();
        assert!(told.contains(&error.message) && told.contains(" labels/"), "{told}");
    }
    // One value less than the limit of all of them.
    for count in 0..15 {
        echo(&world, &"x".repeat(LABEL_LIMIT - 3), &format!("k{count:02}")).unwrap();
    }
    let error = echo(&world, &"x".repeat(LABEL_LIMIT - 3), "k99").and_then(|()| echo(&world, &long[..4000], "z"));
    assert_eq!(error.unwrap_err().kind, ErrorKind::TooBig, "65536 bytes are the most");
    assert_eq!(labels(&world, "img")["env"], before["env"]);

    let other = Caller { uid: 1000, gid: 0, ..me() };
    let Opened::Control { fh } = world.tree.open(world.ino("images/img/labels/env").unwrap(), WRITE, &other).unwrap()
    else {
        panic!("not for writing")
    };
    let error = world.tree.write(fh, 0, b"x\n", false, &me()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Denied, "{error}");
    let directory = world.ino(DIRECTORY).unwrap();
    assert_eq!(world.tree.unlink(directory, "none".as_ref(), &me()).unwrap_err().kind, ErrorKind::NotFound);
    for elsewhere in ["images", "images/img", "containers"] {
        assert_eq!(create(&world, elsewhere, "x").unwrap_err().kind, ErrorKind::Denied, "{elsewhere}");
    }
}

/// What people and their programs do, each on a label `env` that is `prod`.
#[test]
fn the_usual_tools_work_on_labels() {
    if !in_lab() {
        return;
    }
    let place = Place::new();
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    bundle.start();
    let _daemon = place.serve();
    let image = place.commit("web", "img");
    let labels = image.join("labels");
    fs::write(place.other("value"), "copied\n").unwrap();
    let value = text(&place.other("value")).to_owned();
    for (script, expected) in [
        ("echo x > env", "env=x"),
        ("echo x >> env", "env=prod\nx"),
        ("printf x > env", "env=x"),
        ("printf 'a\\nb\\n' > env", "env=a\nb"),
        (": > env", "env="),
        ("touch env", "env=prod"),
        ("touch new", "env=prod new="),
        ("echo x > new", "env=prod new=x"),
        ("echo x | tee env > /dev/null", "env=x"),
        ("cp VALUE env", "env=copied"),
        ("cp env copy", "copy=prod env=prod"),
        ("cp VALUE 'org.example%2Fa'", "env=prod org.example%2Fa=copied"),
        ("dd if=VALUE of=env bs=3 2>/dev/null", "env=copied"),
        ("mv env other", "other=prod"),
        ("echo x > new; mv new env", "env=x"),
        ("rm env", ""),
        ("rm *", ""),
        ("sed -i s/prod/test/ env", "env=test"),
        ("truncate -s 2 env", "env=pr"),
        ("(echo one; echo two) > env", "env=one\ntwo"),
        ("exec 3> env; echo late >&3", "env=late"),
        ("python3 -c \"open('env', 'w').write('py')\"", "env=py"),
        ("python3 -c \"open('env', 'a').write('py')\"", "env=prod\npy"),
        ("set -o noclobber; echo x > fresh; ! echo y > env", "env=prod fresh=x"),
    ] {
        for old in fs::read_dir(&labels).unwrap() {
            fs::remove_file(old.unwrap().path()).unwrap();
        }
        fs::write(labels.join("env"), "prod\n").unwrap();
        let script = script.replace("VALUE", &value);
        let ended = attempt(&["bash", "-c", &format!("cd {} && {{ {script}; }} && wait", text(&labels))]);
        assert_eq!(
            (ended.code, ended.stderr.replace("bash: line 1: env: cannot overwrite existing file\n", "")),
            (0, String::new()),
            "{script}"
        );
        let shown = || {
            let mut shown: Vec<String> = fs::read_dir(&labels)
                .unwrap()
                .map(|entry| {
                    let path = entry.unwrap().path();
                    let value = fs::read_to_string(&path).unwrap();
                    format!("{}={}", path.file_name().unwrap().display(), value.strip_suffix('\n').unwrap())
                })
                .collect();
            shown.sort();
            shown.join(" ")
        };
        // `: > env` takes effect when the kernel lets go of the closed file, which close(2) does not wait for.
        crate::harness::mount::eventually(&format!("{script}: {expected:?} and not {:?}", shown()), || {
            shown() == expected
        });
    }
}
