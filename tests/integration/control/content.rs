//! Files that a container may have, and what becomes of them: no name and no type makes a commit wait or lie.

use std::fs;
use std::os::unix::fs::{FileExt, symlink};
use std::path::Path;

use snapfs::tree::ErrorKind;

use crate::control::COMMIT;
use crate::harness::rootfs::{beneath, char_device, fifo, file, hardlink, socket, sparse};
use crate::harness::world::World;

const TORN: &str = "io.snapfs.torn_files";
const SOCKETS: &str = "io.snapfs.skipped_sockets";

#[test]
fn a_name_that_an_image_cannot_hold_is_refused_by_its_path() {
    for (path, overlay) in [(".wh.x", true), ("etc/.wh.passwd", true), ("etc/.wh..wh..opq", false), (".wh.", false)] {
        let Some(world) = World::new() else { return };
        let _ = if overlay { world.overlay("web") } else { world.plain("web") };
        world.run("web");
        world.make("web", &[file(path, "whatever")]);
        let error = world.commit("web", "img").unwrap_err();
        assert_eq!(error.kind, ErrorKind::Invalid, "{path}: {error}");
        assert!(error.message.contains(&format!("cannot hold /{path}:")), "{path}: {error}");
        assert!(error.message.contains("rename or remove it"), "{path}: {error}");
        assert!(world.last_error("web").ends_with(&format!("{}\n", error.message)));
        assert!(world.images().is_empty());
        world.assert_thawed("web", path);
        world.assert_store_clean(path);
        // The remedy is one.
        fs::rename(world.root_of("web").join(path), world.root_of("web").join("x")).unwrap();
        world.commit("web", "img").unwrap();
    }
}

#[test]
fn what_is_no_file_is_not_opened() {
    for overlay in [true, false] {
        let Some(world) = World::new() else { return };
        let _ = if overlay { world.overlay("web") } else { world.plain("web") };
        let root = world.root_of("web");
        // An unopened FIFO makes its reader wait, a tape rewinds, and nobody listens on the socket.
        let made = [
            fifo("a/fifo"),
            char_device("a/null", 1, 3),
            char_device("a/tape", 9, 0),
            socket("a/socket"),
            socket("a/other"),
            hardlink("a/fifo2", "a/fifo"),
        ];
        world.make("web", &made);
        symlink("/dev/zero", root.join("a/link")).unwrap();
        symlink("loop", root.join("a/loop")).unwrap();
        world.commit("web", "img").unwrap();
        let image = world.whole("img");
        let found: Vec<_> =
            image.paths(image.tars.len() - 1).into_iter().filter(|(path, _)| path.starts_with("a/")).collect();
        let expected = [
            ("a/", '5'),
            ("a/fifo", '6'),
            ("a/fifo2", '1'),
            ("a/link", '2'),
            ("a/loop", '2'),
            ("a/null", '3'),
            ("a/tape", '3'),
        ];
        assert_eq!(found, expected.map(|(path, flag)| (path.to_owned(), flag)));
        assert_eq!(image.annotation(SOCKETS), Some("2"));
        assert_eq!(image.annotation(TORN), None);
        let changes = world.read("containers/web/changes").unwrap();
        assert!(changes.contains("A /a/fifo\n") && !changes.contains("socket"), "{changes}");
    }
}

#[test]
fn names_are_bytes() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    let long = "n".repeat(255);
    let names: [&[u8]; 7] = [b"new\nline", b"\xff\xfe", b"A ", b"%41", b"back\\n", b"\x1b[31mred", long.as_bytes()];
    let root = world.root_of("web");
    for name in names {
        fs::write(beneath(&root, name), name).unwrap();
    }
    world.commit("web", "img").unwrap();
    let image = world.whole("img");
    let paths = image.paths(1);
    for name in names {
        let shown = name.escape_ascii().to_string();
        assert!(paths.contains(&(shown.clone(), '0')), "{shown} is not among {paths:?}");
    }
    assert_eq!(image.file(1, &long).unwrap(), long.as_bytes());
    assert_eq!(image.file(1, "new\nline").unwrap(), b"new\nline");
    // A line each, whatever is in the names, and each name told from each other.
    let changes = world.bytes("containers/web/changes").unwrap();
    let lines: Vec<_> = changes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).collect();
    let added = lines.iter().filter(|line| line.starts_with(b"A /")).count();
    assert_eq!(added, names.len() + 1, "{}", changes.escape_ascii());
    assert!(lines.iter().all(|line| !line.iter().any(u8::is_ascii_control)), "{}", changes.escape_ascii());
}

/// The file that keeps the reader busy while the others change: hashed and compressed, half a gibibyte of zeros takes
/// hundreds of milliseconds, a change takes one.
fn busy() -> crate::harness::rootfs::Item {
    sparse("a-busy", 512 << 20, &[])
}

/// Commit with `pause=none`, and `change` the files once the reader is in the middle of the busy one.
fn commit_while(world: &World, change: impl FnOnce(&Path)) {
    let root = world.root_of("web");
    let answer = world.open(COMMIT).unwrap().begin("img pause=none").unwrap();
    world.await_phase("reading");
    change(&root);
    // Of the entries nothing but the busy file has been begun, and perhaps the root.
    let progress = world.read("jobs/last/progress").unwrap();
    let files: u64 = progress.lines().find_map(|line| line.strip_prefix("files ")?.parse().ok()).unwrap();
    assert!(files <= 2, "the change came too late to prove anything: {progress}");
    world.wait(answer).unwrap();
}

#[test]
fn files_that_change_while_they_are_read_are_counted_and_named() {
    let Some(world) = World::new() else { return };
    world.plain("web");
    world.run("web");
    let items = ["grows", "left", "shrinks", "turns", "vanishes", "written"].map(|name| file(name, [b'x'; 5000]));
    world.make("web", &items);
    world.make("web", &[busy(), hardlink("vanishes-not", "vanishes"), file("dir/gone", "gone")]);
    commit_while(&world, |root| {
        fs::write(root.join("grows"), vec![b'y'; 9000]).unwrap();
        fs::File::options().write(true).open(root.join("shrinks")).unwrap().set_len(100).unwrap();
        fs::remove_file(root.join("vanishes")).unwrap();
        fs::write(root.join("written"), vec![b'z'; 5000]).unwrap();
        fs::File::options().write(true).open(root.join("a-busy")).unwrap().write_all_at(b"!", (512 << 20) - 1).unwrap();
        fs::remove_dir_all(root.join("dir")).unwrap();
        fs::remove_file(root.join("turns")).unwrap();
        nix::unistd::mkfifo(&root.join("turns"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    });
    let image = world.whole("img");
    assert_eq!(image.annotation("io.snapfs.pause"), Some("none"));
    let log = world.read("jobs/last/log").unwrap();
    let torn: Vec<_> = log.lines().filter_map(|line| line.strip_prefix("changed while it was read: /")).collect();
    assert_eq!(torn, ["a-busy", "dir/gone", "grows", "shrinks", "turns", "vanishes"], "{log}");
    assert_eq!(image.annotation(TORN), Some("6"));
    assert_eq!(image.annotation("io.snapfs.torn"), Some("/a-busy\n/dir/gone\n/grows\n/shrinks\n/turns\n/vanishes"));
    // `written` has all of its new bytes: what was written before the reader came to it tears nothing.
    // What is in the layer has the length that its header says, so that all others can be read.
    assert_eq!(image.file(0, "grows").unwrap(), vec![b'y'; 5000]);
    assert_eq!(image.file(0, "shrinks").unwrap(), [vec![b'x'; 100], vec![0; 4900]].concat());
    assert_eq!(image.file(0, "written").unwrap(), vec![b'z'; 5000]);
    assert_eq!(image.file(0, "vanishes-not").unwrap(), vec![b'x'; 5000]);
    assert_eq!(image.file(0, "left").unwrap(), vec![b'x'; 5000]);
    assert_eq!(image.file(0, "new").unwrap(), b"of web\n");
    for gone in ["vanishes", "turns", "dir/gone"] {
        assert_eq!(image.file(0, gone), None, "{gone}");
    }
    // Quiet again, nothing is torn.
    fs::remove_file(world.root_of("web").join("a-busy")).unwrap();
    world.commit("web", "img pause=none").unwrap();
    assert_eq!(world.whole("img").annotation(TORN), None);
}
