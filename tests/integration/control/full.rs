//! A store on a file system that is full: an error with a remedy, nothing left behind, and all is well once there is room.

use std::fs;
use std::path::{Path, PathBuf};

use snapfs::tree::ErrorKind;

use crate::control::jobs;
use crate::harness::cgroup::command;
use crate::harness::have;
use crate::harness::rootfs::{file, scratch};
use crate::harness::world::{Setup, World};

/// An ext4 of 64 MiB in a file, mounted.
struct Small {
    at: PathBuf,
    _directory: tempfile::TempDir,
}

impl Small {
    fn mount() -> Small {
        let directory = scratch();
        let (image, at) = (directory.path().join("disk"), directory.path().join("at"));
        fs::File::create(&image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir(&at).unwrap();
        run("mkfs.ext4", &["-q", "-m", "0", "-b", "4096", image.to_str().unwrap()]);
        run("mount", &["-o", "loop", image.to_str().unwrap(), at.to_str().unwrap()]);
        Small { at, _directory: directory }
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        run("umount", &["--lazy", self.at.to_str().unwrap()]);
    }
}

fn run(program: &str, arguments: &[&str]) {
    let output = command(program).args(arguments).output().unwrap();
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {complaint}");
}

/// Bytes that no compressor makes shorter.
fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = || {
        // xorshift64 (Marsaglia, "Xorshift RNGs")
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    (0..length / 8).flat_map(|_| next().to_le_bytes()).collect()
}

fn free(place: &Path) -> u64 {
    let space = nix::sys::statvfs::statvfs(place).unwrap();
    space.blocks_available() * space.fragment_size()
}

#[test]
fn a_full_disk() {
    if !have("root") {
        return;
    }
    let disk = Small::mount();
    let place = disk.at.join("store");
    let Some(world) = World::with(Setup { store: Some(place.clone()), ..Setup::default() }) else { return };
    world.overlay("web");
    world.run("web");
    world.commit("web", "small").unwrap();
    let room = free(&disk.at);
    assert!(room > 30 << 20, "{room} bytes of room are not the test that was meant");

    world.make("web", &[file("big", noise(80 << 20, 1))]);
    for line in ["img", "small", "img compression=none", "img compression=gzip", "img pause=none"] {
        let error = world.commit("web", line).unwrap_err();
        assert_eq!(error.kind, ErrorKind::NoSpace, "{line}: {error}");
        // What, where, why, and what to do.
        for words in ["cannot write", "/store/stage/", "disk is full", "remove images", "more space"] {
            assert!(error.message.contains(words), "{line}: {error}, which does not say {words:?}");
        }
        assert!(world.last_error("web").ends_with(&format!("{}\n", error.message)));
        assert_eq!(world.images(), ["small"], "{line}");
        world.assert_thawed("web", line);
        world.assert_store_clean(line);
        assert!(free(&disk.at) + (1 << 20) > room, "{line}: {} of {room} bytes are free", free(&disk.at));
    }
    assert_eq!(jobs(&world).len(), 6);
    assert!(world.read("health").unwrap().contains("store ok\n"), "a full disk is no broken one");
    world.whole("small");

    // Not even a name fits.
    let filler = disk.at.join("filler");
    let of = format!("of={}", filler.display());
    // What the file system had set aside for its own book-keeping becomes free when it is written.
    for _ in 0..20 {
        let arguments = ["if=/dev/zero", "bs=4096", "oflag=append", "conv=notrunc,fsync", &of];
        assert!(!command("dd").args(arguments).output().unwrap().status.success());
        if free(&disk.at) == 0 {
            break;
        }
    }
    let error = world.commit("web", "img").unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    let error = world.echo("other", "images/small/tag").unwrap_err();
    assert_eq!(error.kind, ErrorKind::NoSpace, "{error}");
    assert!(error.message.contains("disk is full"), "{error}");
    assert_eq!(world.images(), ["small"]);
    let space = world.tree.statfs().unwrap();
    assert!(space.free < 1 << 20 && space.bytes > 40 << 20);

    // Room is made: by an administrator, and by removing what is large.
    fs::remove_file(&filler).unwrap();
    world.make("web", &[file("big", noise(16 << 20, 2))]);
    world.commit("web", "img").unwrap();
    world.whole("img");
    world.make("web", &[file("big", noise(40 << 20, 3))]);
    assert_eq!(world.commit("web", "next").unwrap_err().kind, ErrorKind::NoSpace);
    let removed = world.tree.remove_dir(world.ino("images").unwrap(), "img".as_ref(), &crate::harness::world::me());
    world.wait(removed.unwrap()).unwrap();
    world.store.gc().unwrap();
    world.commit("web", "next").unwrap();
    assert_eq!(world.whole("next").file(1, "big").unwrap().len(), 40 << 20);
    world.assert_store_clean("with room again");
}

/// What failed jobs wrote must not fill the disk until the next hourly collection.
#[test]
fn a_failed_commit_is_collected_by_itself() {
    let Some(world) = World::new() else { return };
    world.overlay("web");
    world.make("web", &[file(".wh.x", "")]);
    world.commit("web", "img").unwrap_err();
    // The base layer was finished before the failure.
    crate::harness::cgroup::wait_for("the store is empty again", crate::harness::world::LIMIT, || {
        world.store.usage().unwrap().blobs == 0
    });
}
