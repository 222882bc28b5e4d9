//! Layers that want out, or want too much: each is shown within its root as podman and containerd unpack it, or refused
//! with a reason; none hurts its neighbours.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use snapfs::store::Store;

use crate::harness::mount::{Daemon, Place, can_mount, eventually};
use crate::view::images::{PACKINGS, Packing, make, make_of_blob};
use crate::view::tars::Tar;

/// The layers of an image, and the names in its root; or what the log says of it.
type Case = (&'static str, Vec<Vec<u8>>, Result<&'static [&'static str], &'static str>);

fn one(tar: Tar) -> Vec<Vec<u8>> {
    vec![tar.end()]
}

/// What containerd's `TestBreakouts`, go-archive's and umoci's tests try, and more.
fn cases() -> Vec<Case> {
    let tar = Tar::default;
    vec![
        ("parent", one(tar().file("../escaped", "x")), Err("leads out of the layer")),
        ("parent-deep", one(tar().dir("a").file("a/../../escaped", "x")), Err("leads out of the layer")),
        ("absolute", one(tar().file("/etc/x", "x")), Ok(&["etc"])),
        ("absolute-parent", one(tar().file("/../../etc/x", "x")), Ok(&["etc"])),
        ("through-link-up", one(tar().symlink("up", "../../..").file("up/in", "x")), Ok(&["in", "up"])),
        ("through-link-abs", one(tar().symlink("l", "/target").file("l/in", "x")), Ok(&["l", "target"])),
        ("through-lower-link", vec![tar().symlink("l", "/etc").end(), tar().file("l/in", "x").end()], Ok(&["l"])),
        ("link-chain", one(tar().symlink("a", "b").symlink("b", "/c").dir("c").file("a/x", "1")), Ok(&["a", "b", "c"])),
        ("link-loop", one(tar().symlink("a", "b").symlink("b", "a").file("a/x", "1")), Err("too many symbolic links")),
        ("link-self", one(tar().symlink("a", "a").file("a/x", "1")), Err("too many symbolic links")),
        ("through-file", one(tar().file("f", "x").file("f/x", "1")), Err("no directory")),
        ("hard-link-out", one(tar().link("l", "../../etc/shadow")), Err("leads out of the layer")),
        ("hard-link-abs", one(tar().file("etc/x", "1").link("l", "/etc/x")), Ok(&["etc", "l"])),
        ("hard-link-nowhere", one(tar().link("l", "/etc/shadow")), Err("no file of the layers below")),
        ("hard-link-dir", one(tar().dir("d").link("l", "d")), Err("hard link to a directory")),
        ("hard-link-self", one(tar().link("l", "l")), Err("no file of the layers below")),
        (
            "hard-link-through",
            one(tar().symlink("s", "/").link("l", "s/etc/shadow")),
            Err("no file of the layers below"),
        ),
        ("root-file", one(tar().file(".", "x")), Err("would replace the root")),
        ("root-link", one(tar().symlink("/", "/etc")), Err("would replace the root")),
        ("whiteout-root", one(tar().file("x", "1").file(".wh.", "")), Err("whiteout of nothing")),
        ("whiteout-parent", one(tar().file("a/.wh...", "")), Err("whiteout of nothing")),
        ("whiteout-below", one(tar().file(".wh.a/x", "")), Err("below a whiteout")),
        ("whiteout-own", vec![tar().file("x", "1").end(), tar().file("x", "2").file(".wh.x", "").end()], Ok(&["x"])),
        ("aufs", one(tar().dir(".wh..wh.plnk").file(".wh..wh.plnk/1.2", "x").file(".wh..wh.aufs", "")), Ok(&[])),
        ("duplicates", one(tar().dir("d").file("d/x", "1").file("d", "2").dir("d")), Ok(&["d"])),
        ("nothing", one(tar()), Ok(&[])),
        ("no-layers", vec![], Ok(&[])),
        ("long-name", one(tar().file(&"x".repeat(300), "1")), Err("more than 255 bytes")),
        ("sparse", one(tar().entry(b'S', "s", "", b"")), Err("sparse")),
        ("unknown", one(tar().entry(b'Z', "s", "", b"")), Err("unknown type")),
        ("huge-header", one(tar().entry(b'L', "l", "", &vec![b'a'; 2 << 20])), Err("extended header of")),
        ("not-a-tar", vec![vec![b'x'; 4096]], Err("checksum")),
        ("cut", vec![tar().file("f", [1; 4096]).end()[..2048].to_vec()], Err("middle of an entry")),
    ]
}

fn log_says(place: &Place, daemon: &mut Daemon, what: &str) -> bool {
    let _ = place;
    daemon.log().contains(what)
}

#[test]
fn every_hostile_layer_is_shown_within_its_root_or_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        for (at, (name, tars, _)) in cases().into_iter().enumerate() {
            make(&store, name, &tars, PACKINGS[at % PACKINGS.len()]);
        }
    }
    let mut daemon = place.serve();
    let canary = place.other("canary");
    fs::write(&canary, "untouched").unwrap();
    for (name, _, expected) in cases() {
        let began = Instant::now();
        let rootfs = place.dir().join("images").join(name).join("rootfs");
        match (fs::read_dir(&rootfs), expected) {
            (Ok(_), Ok(names)) => assert_eq!(place.list(&format!("images/{name}/rootfs")), names, "{name}"),
            (Err(error), Err(reason)) => {
                assert_eq!(error.raw_os_error(), Some(nix::libc::EIO), "{name}: {error}");
                assert!(log_says(&place, &mut daemon, reason), "{name}: {}", daemon.log());
            }
            (found, expected) => panic!("{name}: {found:?} instead of {expected:?}"),
        }
        assert!(began.elapsed() < Duration::from_secs(5), "{name} took {:?}", began.elapsed());
        // What is refused as a tree can be read as an image all the same.
        assert!(!place.read(&format!("images/{name}/digest")).is_empty());
    }
    assert_eq!(fs::read_to_string(canary).unwrap(), "untouched");
    assert!(daemon.runs());
}

#[test]
fn what_swells_when_it_is_decoded_takes_no_memory_and_ends() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        // 256 MiB of zeros in one file, gzip in one piece.
        let tar = Tar::default().file("zeros", vec![0; 256 << 20]).file("small", "x").end();
        make(&store, "bomb", &[&tar], Packing::Gzip);
        // A window that a decoder would have to keep in memory.
        let mut encoder = zstd::stream::write::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(30).unwrap();
        std::io::Write::write_all(&mut encoder, &tar[..1 << 20]).unwrap();
        make_of_blob(&store, "window", &encoder.finish().unwrap(), &tar[..1 << 20]);
        let many = (0..30_000).fold(Tar::default(), |tar, n| tar.file(&format!("d{}/{n}", n % 7), ""));
        make(&store, "many", &[many.end()], Packing::Zstd);
    }
    let daemon = place.serve();
    let rootfs = |name: &str| place.dir().join("images").join(name).join("rootfs");
    assert_eq!(fs::metadata(rootfs("bomb").join("zeros")).unwrap().len(), 256 << 20);
    assert_eq!(fs::read(rootfs("bomb").join("small")).unwrap(), b"x");
    assert_eq!(fs::read_dir(rootfs("window")).unwrap_err().raw_os_error(), Some(nix::libc::EIO));
    let names = (0..7).map(|n| fs::read_dir(rootfs("many").join(format!("d{n}"))).unwrap().count()).sum::<usize>();
    assert_eq!(names, 30_000);
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 200 << 10, "the daemon took {peak} KiB");
}

#[test]
fn a_layer_that_is_not_what_its_image_says_is_not_shown() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (one, other) = (Tar::default().file("one", "1").end(), Tar::default().file("other", "1").end());
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        make_of_blob(&store, "lie", &one, &other);
        make_of_blob(&store, "truth", &one, &one);
    }
    let mut daemon = place.serve();
    let rootfs = |name: &str| place.dir().join("images").join(name).join("rootfs");
    for _ in 0..2 {
        assert_eq!(fs::read_dir(rootfs("lie")).unwrap_err().raw_os_error(), Some(nix::libc::EIO));
        assert!(rootfs("truth").join("one").exists());
    }
    assert!(daemon.log().contains("has the DiffID"), "{}", daemon.log());
}

#[test]
fn links_lead_out_only_if_they_are_shown_raw() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let canary = place.other("canary");
    fs::write(&canary, "secret").unwrap();
    let out = canary.display().to_string();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        let tar = Tar::default()
            .file("etc/real", "inside")
            .symlink("a/b/abs", "/etc/real")
            .symlink("a/b/raw", &out)
            .symlink("a/up", &format!("{}{}", "../".repeat(40), &out[1..]))
            .symlink("var", "a/b")
            .symlink("twice", "var/../../etc/real")
            .symlink("near", "etc/real")
            .symlink("loop", "loop")
            .symlink("top", "/")
            .symlink("missing", "/a/none/../x")
            .end();
        make(&store, "img", &[tar], PACKINGS[0]);
    }
    let link = |path: &str| {
        let target = fs::read_link(place.dir().join("images/img/rootfs").join(path)).unwrap();
        target.into_os_string().into_string().unwrap()
    };
    let read = |path: &str| fs::read_to_string(place.dir().join("images/img/rootfs").join(path));
    {
        let _daemon = place.serve();
        assert_eq!((link("a/b/raw"), read("a/b/raw").unwrap()), (out.clone(), "secret".to_owned()));
    }
    eventually("the mount is gone", || {
        let _ = nix::mount::umount2(&place.dir(), nix::mount::MntFlags::MNT_DETACH);
        place.mounted() == 0
    });
    let _daemon = place.serve_with(&["-v", "-o", "symlinks=in-root"]);
    assert_eq!((link("a/b/abs"), read("a/b/abs").unwrap()), ("../../etc/real".to_owned(), "inside".to_owned()));
    assert_eq!((link("near"), link("var")), ("etc/real".to_owned(), "a/b".to_owned()));
    assert_eq!((link("twice"), read("twice").unwrap()), ("etc/real".to_owned(), "inside".to_owned()));
    assert_eq!((link("top"), link("loop"), link("missing")), (".".to_owned(), "loop".to_owned(), "a/x".to_owned()));
    for path in ["a/b/raw", "a/up"] {
        assert!(!link(path).starts_with('/'), "{}", link(path));
        assert_eq!(read(path).unwrap_err().kind(), ErrorKind::NotFound, "{path}");
    }
}

#[test]
fn set_user_id_and_devices_are_shown_and_do_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        let tar = Tar::default().entry(b'3', "device", "", b"").entry(b'6', "fifo", "", b"").file("f", "x").end();
        make(&store, "img", &[tar], PACKINGS[0]);
    }
    let _daemon = place.serve();
    let rootfs = place.dir().join("images/img/rootfs");
    assert_eq!(fs::metadata(rootfs.join("device")).unwrap().mode() & 0o170_000, 0o020_000);
    assert_eq!(fs::File::open(rootfs.join("device")).unwrap_err().kind(), ErrorKind::PermissionDenied);
    assert_eq!(fs::metadata(rootfs.join("fifo")).unwrap().mode() & 0o170_000, 0o010_000);
    for (path, change) in [("f", "write"), ("f", "remove"), ("new", "make")] {
        let path: &Path = &rootfs.join(path);
        let failed = match change {
            "remove" => fs::remove_file(path),
            _ => fs::write(path, "y"),
        };
        assert_eq!(failed.unwrap_err().raw_os_error(), Some(nix::libc::EROFS), "{change}");
    }
}
