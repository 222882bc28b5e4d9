use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use crate::engine::host::{Host, NamedCgroups, carries_id, parse_stat};
use crate::engine::{CgroupPaths, Init, RootFs};

const INIT: Init = Init { pid: 42, start_time: 1000 };

/// A `/proc` with this process and one other, and a `/sys/fs/cgroup` with both versions (hybrid).
struct World {
    directory: TempDir,
}

impl World {
    fn new() -> World {
        let world = World { directory: tempfile::tempdir().unwrap() };
        world.write("cgroup/freezer/box/freezer.state", "THAWED\n");
        world.write("cgroup/unified/box/cgroup.freeze", "0\n");
        world.write("cgroup/freezer/us/x", "");
        world.host_mounts("");
        world.write("proc/self/cgroup", "1:freezer:/us\n0::/us\n");
        world.init_cgroups("1:freezer:/box\n0::/box/inner\n");
        world.write("proc/42/stat", "42 (a) b (c)) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 1000 20 21\n");
        for process in ["self", "42"] {
            fs::create_dir_all(world.path("proc").join(process).join("ns")).unwrap();
            symlink("user:[4026531837]", world.path("proc").join(process).join("ns/user")).unwrap();
        }
        world
    }

    fn path(&self, path: &str) -> PathBuf {
        self.directory.path().join(path)
    }

    fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn host_mounts(&self, lines: &str) {
        let cgroup = self.path("cgroup");
        let cgroup = cgroup.display();
        let text = format!(
            "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 0:3 / {cgroup}/freezer rw - cgroup c rw,freezer\n\
             3 1 0:4 / {cgroup}/unified rw - cgroup2 c rw\n{lines}"
        );
        self.write("proc/self/mountinfo", &text);
    }

    fn init_cgroups(&self, text: &str) {
        self.write("proc/42/cgroup", text);
    }

    fn host(&self) -> Host {
        Host::at(self.path("proc"), self.path("cgroup"))
    }

    fn cgroups(&self, freezer: &str, unified: &str) -> Result<CgroupPaths, String> {
        let named = |path: &str| (!path.is_empty()).then(|| self.path(path));
        self.check(&NamedCgroups::Absolute { freezer: named(freezer), unified: named(unified) })
    }

    fn check(&self, named: &NamedCgroups) -> Result<CgroupPaths, String> {
        self.host().look().unwrap().cgroups("box", named, INIT).map_err(|error| error.to_string())
    }

    fn root_fs(&self, rootfs: &str, init: Option<Init>) -> RootFs {
        self.host().look().unwrap().root_fs(Path::new(rootfs), init)
    }
}

#[test]
fn stat_fields_are_counted_after_the_name() {
    let rest = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 77 0";
    for name in ["sh", "a b", ") S 9", "((", "", "\n"] {
        assert_eq!(parse_stat(format!("7 ({name}) {rest}").as_bytes()), Some((b'S', 77)), "{name:?}");
    }
    for text in ["", "7", "7 (sh)", "7 (sh) S 1 2", "7 (sh) S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 x"] {
        assert_eq!(parse_stat(text.as_bytes()), None, "{text}");
    }
}

#[test]
fn a_process_is_itself_and_alive() {
    let world = World::new();
    let host = world.host();
    let view = host.look().unwrap();
    assert!(view.is_alive(INIT));
    assert!(!view.is_alive(Init { start_time: 1001, ..INIT }), "another process with that number");
    assert!(!view.is_alive(Init { pid: 43, ..INIT }));
    let stat = fs::read_to_string(world.path("proc/42/stat")).unwrap();
    for dead in ["Z", "X"] {
        world.write("proc/42/stat", &stat.replace(" S ", &format!(" {dead} ")));
        assert!(!view.is_alive(INIT), "{dead}");
    }
}

#[test]
fn cgroups_that_hold_the_process() {
    let world = World::new();
    let both =
        CgroupPaths { v1_freezer: Some(world.path("cgroup/freezer/box")), v2: Some(world.path("cgroup/unified/box")) };
    assert_eq!(world.cgroups("cgroup/freezer/box", "cgroup/unified/box"), Ok(both.clone()));
    for path in ["/box", "box"] {
        assert_eq!(world.check(&NamedCgroups::Relative(path.into())), Ok(both.clone()));
    }
    // From the process itself, if the path is the container's own.
    let own = CgroupPaths { v2: Some(world.path("cgroup/unified/box/inner")), ..both.clone() };
    fs::create_dir(world.path("cgroup/unified/box/inner")).unwrap();
    assert_eq!(world.check(&NamedCgroups::Unnamed), Ok(own));
    // Not in the v2 one, as on hosts where the engine uses v1 alone.
    world.init_cgroups("1:freezer:/box\n0::/\n");
    assert_eq!(world.check(&NamedCgroups::Relative("/box".into())), Ok(CgroupPaths { v2: None, ..both }));
    world.init_cgroups("1:freezer:/user.slice\n0::/user.slice\n");
    assert_eq!(world.check(&NamedCgroups::Unnamed), Ok(CgroupPaths::default()), "others live there, too");
}

#[test]
fn cgroups_that_must_not_be_frozen() {
    let world = World::new();
    symlink("box", world.path("cgroup/freezer/link")).unwrap();
    symlink(world.path("cgroup/freezer"), world.path("cgroup/alias")).unwrap();
    let table = [
        ("cgroup/freezer/../../proc", "not below"),
        ("cgroup/freezer/box/../us", "not below"),
        ("cgroup/freezer/us/../box", "not below"),
        ("elsewhere/box", "not below"),
        ("cgroup/freezer", "no cgroup of its own"),
        ("cgroup/alias/box", "no cgroup of its own"),
        ("cgroup/unified/box", "no cgroup of its own"),
        ("cgroup/freezer/us", "snapfs itself"),
        ("cgroup/freezer/other", "none of the cgroups"),
    ];
    for (path, reason) in table {
        let error = world.cgroups(path, "").unwrap_err();
        assert!(error.contains(reason), "{path}: {error}");
    }
    world.init_cgroups("1:freezer:/link\n");
    let error = world.cgroups("cgroup/freezer/link", "").unwrap_err();
    assert!(error.contains("cannot be reached"), "{error}");
    for path in ["/", "/../us", "../us", "/us"] {
        world.init_cgroups("1:freezer:/us\n0::/us\n");
        assert!(world.check(&NamedCgroups::Relative(path.into())).is_err(), "{path}");
    }
}

#[test]
fn frozen_by_either_version() {
    let world = World::new();
    let host = world.host();
    let cgroups = world.cgroups("cgroup/freezer/box", "cgroup/unified/box").unwrap();
    let is_frozen = || host.look().unwrap().is_frozen(&cgroups);
    assert!(!is_frozen());
    for word in ["FROZEN\n", "FREEZING\n"] {
        world.write("cgroup/freezer/box/freezer.state", word);
        assert!(is_frozen(), "{word}");
    }
    world.write("cgroup/freezer/box/freezer.state", "THAWED\n");
    world.write("cgroup/unified/box/cgroup.freeze", "1\n");
    assert!(is_frozen());
    assert!(!host.look().unwrap().is_frozen(&CgroupPaths::default()));
}

#[test]
fn ids_in_cgroup_names() {
    for path in ["/box", "/a/box/c", "/machine.slice/libpod-box.scope", "/docker-box", "/box.scope"] {
        assert!(carries_id(Path::new(path), "box"), "{path}");
    }
    for path in ["/", "/boxes", "/sandbox", "/box2/x"] {
        assert!(!carries_id(Path::new(path), "box"), "{path}");
    }
}

const OVERLAY: &str = "overlay overlay rw,lowerdir=/lower,upperdir=/upper,workdir=/work,userxattr";

fn overlay_at(merged: impl Into<PathBuf>) -> Option<PathBuf> {
    Some(merged.into())
}

#[test]
fn the_root_is_what_the_host_mounted() {
    let world = World::new();
    world.host_mounts(&format!("9 1 0:50 / /c/rootfs rw - {OVERLAY}\n"));
    world.write("proc/42/mountinfo", &format!("5 4 0:50 / / rw - {OVERLAY}\n"));
    for init in [None, Some(INIT)] {
        let RootFs::Overlay(overlay) = world.root_fs("/c/rootfs", init) else { panic!("it is an overlay") };
        assert_eq!((overlay.upper, overlay.merged), ("/upper".into(), overlay_at("/c/rootfs")));
        assert_eq!((overlay.lower, overlay.xattr_prefix), (vec!["/lower".into()], "user.overlay."));
    }
    // A directory, seen as one by both.
    world.host_mounts("9 1 8:2 /data /c rw - ext4 /dev/b rw\n");
    world.write("proc/42/mountinfo", "5 4 8:2 /data/rootfs / rw - ext4 /dev/b rw\n");
    for init in [None, Some(INIT)] {
        assert_eq!(world.root_fs("/c/rootfs", init), RootFs::Directory("/c/rootfs".into()));
    }
}

#[test]
fn the_root_is_what_only_the_container_sees() {
    let world = World::new();
    world.write("proc/42/mountinfo", &format!("5 4 0:50 / / rw - {OVERLAY}\n"));
    let inside = world.path("proc/42/root");
    let RootFs::Overlay(overlay) = world.root_fs("/c/rootfs", Some(INIT)) else { panic!("it is an overlay") };
    assert_eq!(overlay.merged, overlay_at(&inside));
    // In a user namespace of its own, a container can mount an overlay of any paths over its root.
    fs::remove_file(world.path("proc/42/ns/user")).unwrap();
    symlink("user:[4026539999]", world.path("proc/42/ns/user")).unwrap();
    assert_eq!(world.root_fs("/c/rootfs", Some(INIT)), RootFs::Directory(inside.clone()));
    // The host has something else there by now.
    world.host_mounts(&format!("9 1 0:51 / /c/rootfs rw - {OVERLAY}\n"));
    assert_eq!(world.root_fs("/c/rootfs", Some(INIT)), RootFs::Directory(inside));
}
