//! Images by their names: rename, remove, tag, and what open files and earlier look-ups show meanwhile.

use std::collections::BTreeSet;
use std::os::unix::ffi::OsStrExt;

use snapfs::tree::{Error, ErrorKind, Kind, Reply};

use crate::harness::rootfs::file;
use crate::harness::slow_disk::Gate;
use crate::harness::world::{Setup, World, me};

/// `rename("images/FROM", "images/TO")`, as renameat2(2) gives it: directory and name each.
pub(crate) fn rename(world: &World, from: &str, to: &str, no_replace: bool) -> Result<(), Error> {
    let split = |path: &str| match path.rsplit_once('/') {
        Some((directory, name)) => (format!("images/{directory}"), name.to_owned()),
        None => ("images".to_owned(), path.to_owned()),
    };
    let ((from_directory, from), (to_directory, to)) = (split(from), split(to));
    let (from_directory, to_directory) = (world.ino(&from_directory)?, world.ino(&to_directory)?);
    world.wait(world.tree.rename(from_directory, from.as_ref(), to_directory, to.as_ref(), no_replace, &me())?)
}

/// `rmdir PATH`
pub(crate) fn rmdir(world: &World, path: &str) -> Result<(), Error> {
    let (directory, name) = path.rsplit_once('/').unwrap();
    world.wait(world.tree.remove_dir(world.ino(directory)?, name.as_ref(), &me())?)
}

/// A world with a plain container and these images of it, all different.
fn with_images(images: &[&str]) -> Option<World> {
    let world = World::new()?;
    world.plain("web");
    for image in images {
        world.make("web", &[file("which", image)]);
        world.commit("web", image).unwrap();
    }
    Some(world)
}

#[test]
fn names_nest() {
    let Some(world) = with_images(&["img", "a/b:1", "a/c/d", "registry.example:5000/team/web:1.0"]) else { return };
    assert_eq!(world.list("images").unwrap(), ["a", "img", "registry.example:5000"]);
    assert_eq!(world.list("images/a").unwrap(), ["b:1", "c"]);
    assert_eq!(world.list("images/a/c").unwrap(), ["d"]);
    // With %3A for the colon, as tools need it that split a path there; it is not listed.
    let aliases = [
        ("images/a/b%3A1", "a/b:1"),
        ("images/registry.example%3A5000/team/web%3A1.0", "registry.example:5000/team/web:1.0"),
        ("images/registry.example:5000/team/web%3A1.0", "registry.example:5000/team/web:1.0"),
    ];
    for (alias, name) in aliases {
        assert_eq!(world.line(&format!("{alias}/digest")), world.digest(name).to_string(), "{alias}");
        assert_eq!(world.attr(alias).unwrap().kind, Kind::Directory);
    }
    assert_eq!(world.list("images/registry.example%3A5000").unwrap(), ["team"]);
    assert_eq!(world.list("images/registry.example%3A5000/team").unwrap(), ["web:1.0"]);
    for nothing in ["images/a/b%3a1", "images/a%2Fb:1", "images/b:1", "images/a/b", "images/img:latest", "images/..%3A"]
    {
        assert_eq!(world.ino(nothing).unwrap_err().kind, ErrorKind::NotFound, "{nothing}");
    }
    rmdir(&world, "images/a/b%3A1").unwrap();
    assert_eq!(world.list("images/a").unwrap(), ["c"]);
}

#[test]
fn mv_moves_an_image_and_replaces_no_more_than_one() {
    let all = ["img", "other", "dir/a", "dir/deep/b:1"];
    /// from, to, RENAME_NOREPLACE, and the name it has then, or why not.
    type Row = (&'static str, &'static str, bool, Result<&'static str, ErrorKind>);
    let rows: [Row; 22] = [
        ("img", "new", false, Ok("new")),
        ("img", "new:2", true, Ok("new:2")),
        ("img", "dir/img", false, Ok("dir/img")),
        ("dir/deep/b:1", "b", false, Ok("b")),
        ("img", "img", false, Ok("img")),
        ("img", "other", false, Ok("other")),
        ("img", "other", true, Err(ErrorKind::Exists)),
        // mv(1) takes an image for a directory to move into; `mv -T` does not.
        ("img", "other/img", false, Ok("other")),
        ("img", "other/img", true, Ok("other")),
        ("dir/deep/b:1", "img/b:1", false, Ok("img")),
        ("dir/deep/b%3A1", "img/b%3A1", false, Ok("img")),
        ("img", "other/new", false, Err(ErrorKind::Denied)),
        // A directory of images is no image, and no image becomes one.
        ("img", "dir", false, Err(ErrorKind::Exists)),
        ("dir", "new", false, Err(ErrorKind::Denied)),
        ("dir/a", "dir/deep", false, Err(ErrorKind::Exists)),
        ("img", "nowhere/img", false, Err(ErrorKind::NotFound)),
        ("nope", "new", false, Err(ErrorKind::NotFound)),
        ("img", "Bad", false, Err(ErrorKind::Denied)),
        ("img", ".hidden", false, Err(ErrorKind::Denied)),
        ("img", "new@1", false, Err(ErrorKind::Denied)),
        ("img/layers", "new", false, Err(ErrorKind::Denied)),
        ("img", "other/layers/0", false, Err(ErrorKind::Denied)),
    ];
    for (from, to, no_replace, expected) in rows {
        let Some(world) = with_images(&all) else { return };
        let digests =
            || -> Vec<_> { world.images().into_iter().map(|name| (name.clone(), world.digest(&name))).collect() };
        let before = digests();
        let context = format!("mv {from} {to}, no replace: {no_replace}");
        let moved = rename(&world, from, to, no_replace);
        match expected {
            Ok(name) => {
                moved.unwrap_or_else(|error| panic!("{context}: {error}"));
                let source = from.replace("%3A", ":");
                let image = before.iter().find(|(name, _)| *name == source).unwrap().1;
                let mut after: Vec<_> =
                    before.into_iter().filter(|(other, _)| *other != source && other != name).collect();
                after.push((name.to_owned(), image));
                after.sort();
                assert_eq!(digests(), after, "{context}");
                assert_eq!(world.line(&format!("images/{name}/digest")), image.to_string());
            }
            Err(kind) => {
                assert_eq!(moved.unwrap_err().kind, kind, "{context}");
                assert_eq!(digests(), before, "{context}");
            }
        }
        world.assert_store_clean(&context);
    }
}

#[test]
fn only_images_can_be_moved_and_removed() {
    let Some(world) = with_images(&["img", "dir/a"]) else { return };
    let elsewhere = world.ino("containers").unwrap();
    let images = world.ino("images").unwrap();
    let moved = world.tree.rename(images, "img".as_ref(), elsewhere, "img".as_ref(), false, &me());
    assert_eq!(moved.unwrap_err().kind, ErrorKind::Denied);
    let moved = world.tree.rename(elsewhere, "web".as_ref(), images, "web".as_ref(), false, &me());
    assert_eq!(moved.unwrap_err().kind, ErrorKind::Denied);
    let rows = [
        ("images/dir", ErrorKind::NotEmpty),
        ("images/nope", ErrorKind::NotFound),
        ("images/img/layers", ErrorKind::Denied),
        ("images/img/digest", ErrorKind::NotDirectory),
        ("containers/web", ErrorKind::Denied),
        ("jobs/1", ErrorKind::Denied),
        ("/images", ErrorKind::NotEmpty),
    ];
    for (path, kind) in rows {
        assert_eq!(rmdir(&world, path).unwrap_err().kind, kind, "{path}");
    }
    for (directory, name, kind) in [
        ("images", "img", ErrorKind::IsDirectory),
        ("images/img", "digest", ErrorKind::Denied),
        ("images/img", "tag", ErrorKind::Denied),
        ("images/img/layers/0", "blob", ErrorKind::Denied),
        ("containers/web", "commit", ErrorKind::Denied),
        ("", "README", ErrorKind::Denied),
        ("", "nope", ErrorKind::NotFound),
    ] {
        let unlinked = world.tree.unlink(world.ino(directory).unwrap(), name.as_ref(), &me());
        assert_eq!(unlinked.unwrap_err().kind, kind, "{directory}/{name}");
    }
    // mkdir, mknod, ln and touch.
    let error = world.tree.refuse(images, "directory");
    assert!(error.kind == ErrorKind::Denied && error.message.contains("containers/NAME/commit"), "{error}");
    assert_eq!(world.images(), ["dir/a", "img"]);

    rmdir(&world, "images/dir/a").unwrap();
    assert_eq!(world.list("images").unwrap(), ["img"], "a directory of images goes with its last image");
    assert_eq!(world.ino("images/dir").unwrap_err().kind, ErrorKind::NotFound);
    rmdir(&world, "images/img").unwrap();
    assert_eq!(world.list("images").unwrap(), [""; 0]);
    world.store.gc().unwrap();
    assert_eq!(world.store.usage().unwrap().blobs, 0);
}

#[test]
fn a_tag_is_one_more_name_that_stays_when_the_other_moves() {
    let Some(world) = with_images(&["img"]) else { return };
    let first = world.digest("img");
    let open = world.open("images/img/tag").unwrap();
    open.write("img:stable\n").unwrap();
    assert_eq!(open.text(), "img:stable\n");
    world.echo("  registry.example/img:1  ", "images/img/tag").unwrap();
    assert!(world.line("images/img/tag").ends_with("registry.example/img:1"));
    world.make("web", &[file("which", "second")]);
    world.commit("web", "img").unwrap();
    let second = world.digest("img");
    assert_ne!(first, second);
    for name in ["img:stable", "registry.example/img:1"] {
        assert_eq!(world.digest(name), first);
        assert_eq!(world.line(&format!("images/{name}/digest")), first.to_string());
        assert_eq!(world.line(&format!("images/{name}/kind")), "commit");
    }
    // An existing name moves, and a name may be given to itself.
    world.echo("img:stable", "images/img/tag").unwrap();
    world.echo("img", "images/img/tag").unwrap();
    assert_eq!((world.digest("img:stable"), world.digest("img")), (second, second));
    world.assert_store_clean("after tags");
    // Of a name that is gone meanwhile, and its blobs with it.
    let stale = world.open("images/registry.example/img:1/tag").unwrap();
    rmdir(&world, "images/registry.example/img:1").unwrap();
    world.store.gc().unwrap();
    let error = stale.write("late\n").unwrap_err();
    assert_eq!(error.kind, ErrorKind::NotFound, "{error}");
    assert!(error.message.contains("deleted meanwhile"), "{error}");
    assert_eq!(world.images(), ["img", "img:stable"]);
}

#[test]
fn an_open_directory_lists_what_it_held_when_it_was_opened() {
    let Some(world) = with_images(&["a", "b", "c"]) else { return };
    let fh = world.tree.open_dir(world.ino("images").unwrap()).unwrap();
    let listing = || -> Vec<_> {
        let entries = world.tree.read_dir(fh).unwrap();
        entries.iter().map(|entry| entry.name.clone().into_string().unwrap()).collect()
    };
    let before = listing();
    assert_eq!(before, [".", "..", "a", "b", "c"]);
    rmdir(&world, "images/a").unwrap();
    rename(&world, "b", "d", false).unwrap();
    world.commit("web", "aa").unwrap();
    assert_eq!(listing(), before);
    assert_eq!(world.list("images").unwrap(), ["aa", "c", "d"]);
    world.tree.release_dir(fh);
    assert_eq!(world.tree.read_dir(fh).unwrap_err().kind, ErrorKind::Stale);
}

#[test]
fn an_open_blob_can_be_read_to_its_end_after_the_image_is_gone() {
    let Some(world) = with_images(&[]) else { return };
    let content: Vec<u8> =
        (0..3_000_000u32).flat_map(|number| number.wrapping_mul(0x9e37_79b9).to_le_bytes()).collect();
    world.make("web", &[file("big", &content)]);
    world.commit("web", "img compression=none").unwrap();
    let hex = world.line("images/img/layers/0/digest").replace("sha256:", "");
    let path = format!("images/img/blobs/sha256/{hex}");
    let open = world.open_read(&path);
    let beginning = world.wait(world.tree.read(open.fh, 0, 1000).unwrap()).unwrap();
    rmdir(&world, "images/img").unwrap();
    world.store.gc().unwrap();
    assert_eq!(world.store.usage().unwrap().blobs, 0);
    let bytes = open.bytes().unwrap();
    assert_eq!(bytes[..1000], beginning[..]);
    assert_eq!(snapfs::oci::Digest::of(&bytes).hex(), hex);
    assert_eq!(world.ino(&path).unwrap_err().kind, ErrorKind::NotFound);
}

/// A kernel, and a shell in the directory, hold on to numbers: they keep showing the image that was there.
#[test]
fn a_directory_that_was_looked_up_keeps_showing_its_image() {
    let Some(world) = with_images(&["img"]) else { return };
    let old = world.ino("images/img").unwrap();
    let digest = |ino: u64| {
        let file = world.tree.lookup(ino, "digest".as_ref()).unwrap().ino;
        let access = snapfs::tree::Access { read: true, write: false, nonblock: false };
        world.open_ino(file, access, me()).unwrap().text()
    };
    let (old_digest, old_file) = (digest(old), world.ino("images/img/manifest.json").unwrap());
    let old_size = world.tree.attr(old_file).unwrap().size;
    world.make("web", &[file("which", "second, and with a longer description"), file("more", "")]);
    world.commit("web", "img description=longer").unwrap();
    let new = world.ino("images/img").unwrap();
    assert_ne!(new, old);
    assert_eq!(digest(old), old_digest);
    assert_eq!(digest(new), format!("{}\n", world.digest("img")));
    assert_eq!(world.tree.attr(old_file).unwrap().size, old_size);
    // And after the blobs are collected what is known of it is still told as it was; its blobs are gone, and say so.
    world.store.gc().unwrap();
    assert_eq!(digest(old), old_digest);
    let blobs =
        world.tree.lookup(world.tree.lookup(old, "blobs".as_ref()).unwrap().ino, "sha256".as_ref()).unwrap().ino;
    let name = old_digest.trim().replace("sha256:", "");
    let blob = world.tree.lookup(blobs, name.as_ref()).unwrap().ino;
    let access = snapfs::tree::Access { read: true, write: false, nonblock: false };
    let error = world.tree.open(blob, access, &me()).unwrap_err();
    assert_eq!(error.kind, ErrorKind::Stale, "{error}");
}

#[test]
fn no_number_means_two_things() {
    let Some(world) = with_images(&["a", "b/c"]) else { return };
    let paths = [
        "",
        "README",
        "images",
        "images/a",
        "images/b",
        "images/b/c",
        "images/a/digest",
        "images/b/c/digest",
        "jobs/1",
    ];
    let numbers: Vec<u64> = paths.iter().map(|path| world.ino(path).unwrap()).collect();
    assert_eq!(numbers[0], 1);
    assert_eq!(numbers.iter().collect::<BTreeSet<_>>().len(), numbers.len());
    let again: Vec<u64> = paths.iter().map(|path| world.ino(path).unwrap()).collect();
    assert_eq!(again, numbers, "what is known keeps its number");
    // Each was looked up twice, and directories on the way more often; forgotten once, they are still known.
    let digest = numbers[6];
    world.tree.forget(digest, 1);
    assert_eq!(world.ino("images/a/digest").unwrap(), digest);
    world.tree.forget(digest, 2);
    assert_eq!(world.tree.attr(digest).unwrap_err().kind, ErrorKind::Stale);
    let new = world.ino("images/a/digest").unwrap();
    assert!(!numbers.contains(&new), "a number comes back");
    // More forgotten than was looked up, or what nobody knows, or the root: nothing happens.
    for (ino, count) in [(new, 99), (digest, 1), (u64::MAX, 1), (1, 1_000_000)] {
        world.tree.forget(ino, count);
    }
    assert_eq!(world.tree.attr(1).unwrap().kind, Kind::Directory);
    // A name that moves to another image, and one that comes back, are other things.
    let image = world.ino("images/a").unwrap();
    rename(&world, "b/c", "a", false).unwrap();
    assert_ne!(world.ino("images/a").unwrap(), image);
}

/// Invariant 4: what waits for the disk waits beside the threads that serve the kernel.
#[test]
fn a_slow_disk_holds_up_only_who_changes_names() {
    let gate = Gate::default();
    let Some(world) = World::with(Setup { gate: gate.clone(), ..Setup::default() }) else { return };
    world.plain("web");
    for image in ["a", "b"] {
        world.commit("web", image).unwrap();
    }
    let images = world.ino("images").unwrap();
    let slow = gate.close();
    let tag = world.open("images/a/tag").unwrap();
    let tagged = tag.begin("c").unwrap();
    let moved = world.tree.rename(images, "b".as_ref(), images, "d".as_ref(), false, &me()).unwrap();
    let removed = world.tree.remove_dir(images, "a".as_ref(), &me()).unwrap();
    assert!(matches!((&tagged, &moved, &removed), (Reply::Later(_), Reply::Later(_), Reply::Later(_))));
    // Reading goes on.
    assert_eq!(world.line("images/b/kind"), "commit");
    assert!(world.read("health").unwrap().contains("store ok"));
    drop(slow);
    world.wait(tagged).unwrap();
    world.wait(moved).unwrap();
    world.wait(removed).unwrap();
    assert_eq!(world.images(), ["c", "d"]);
    assert_eq!(tag.text(), "c\n");
}

#[test]
fn what_mv_and_rmdir_are_refused_is_told_by_last_error() {
    let Some(world) = with_images(&["img", "other"]) else { return };
    for to in ["Bad", "a b"] {
        assert_eq!(rename(&world, "img", to, false).unwrap_err().kind, ErrorKind::Denied);
        let told = world.line("images/img/last_error");
        assert!(told.contains(&format!("mv {to}: cannot rename: ")) && told.contains("is not an image name"), "{told}");
    }
    // Not text: mv(1) must not be told that the image is missing.
    let images = world.ino("images").unwrap();
    let name = std::ffi::OsStr::from_bytes(b"\xff");
    let refused = world.tree.rename(images, "img".as_ref(), images, name, false, &me());
    assert_eq!(refused.unwrap_err().kind, ErrorKind::Denied);
    assert_eq!(rename(&world, "img", "other", true).unwrap_err().kind, ErrorKind::Exists);
    assert!(world.line("images/img/last_error").contains("mv other: an image other exists already"));
}
