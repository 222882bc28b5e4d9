//! Contents: while others delete, when a bit is wrong, and without the cache that makes it fast.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::Barrier;
use std::thread;

use nix::sys::signal::Signal;
use snapfs::oci::Digest;
use snapfs::store::Store;

use crate::harness::mount::{Place, can_mount, eventually};
use crate::view::images::{PACKINGS, Packing, make};
use crate::view::tars::Tar;

/// Bytes that do not compress, different for each seed.
pub(super) fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    std::iter::repeat_with(next).flatten().take(length).collect()
}

#[test]
fn sixty_four_readers_of_a_deleted_image_read_to_its_end() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let files: Vec<Vec<u8>> = (0..64).map(|n| noise(n, if n % 8 == 0 { 3 << 20 } else { 40_000 })).collect();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        let tar =
            files.iter().enumerate().fold(Tar::default(), |tar, (n, file)| tar.file(&format!("d/{n}"), file)).end();
        make(&store, "own", &[&tar], PACKINGS[0]);
        make(&store, "gzip", &[&tar], Packing::Gzip);
    }
    let _daemon = place.serve();
    for image in ["own", "gzip"] {
        let dir = place.dir().join("images").join(image);
        let blob = place.other("store/blobs/sha256").join(&place.read(&format!("images/{image}/layers/0/digest"))[7..]);
        let (opened, deleted) = (Barrier::new(65), Barrier::new(65));
        thread::scope(|scope| {
            for (n, expected) in files.iter().enumerate() {
                let (opened, deleted, path) = (&opened, &deleted, dir.join(format!("rootfs/d/{n}")));
                scope.spawn(move || {
                    let mut file = File::open(path).unwrap();
                    let mut some = [0; 16];
                    file.read_exact_at(&mut some, 100).unwrap();
                    opened.wait();
                    deleted.wait();
                    let mut bytes = Vec::new();
                    file.read_to_end(&mut bytes).unwrap();
                    assert_eq!(Digest::of(&bytes), Digest::of(expected), "{image}: reader {n}");
                });
            }
            opened.wait();
            fs::remove_dir(&dir).unwrap();
            eventually("the blob is collected", || !blob.exists());
            assert!(fs::metadata(dir.join("rootfs/d/0")).is_err());
            deleted.wait();
        });
    }
}

#[test]
fn a_wrong_bit_is_an_error_for_its_file_alone() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let files: Vec<Vec<u8>> = (0..6).map(|n| noise(n, 700_000)).collect();
    let tar = files.iter().enumerate().fold(Tar::default(), |tar, (n, file)| tar.file(&n.to_string(), file)).end();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        PACKINGS.iter().enumerate().for_each(|(n, packing)| make(&store, &format!("img{n}"), &[&tar], *packing));
    }
    let rootfs = |n: usize| place.dir().join(format!("images/img{n}/rootfs"));
    {
        // Indexed when it was whole.
        let _daemon = place.serve();
        for n in 0..PACKINGS.len() {
            assert_eq!(fs::read_dir(rootfs(n)).unwrap().count(), 6);
        }
    }
    assert_eq!(nix::mount::umount2(&place.dir(), nix::mount::MntFlags::MNT_DETACH), Ok(()));
    // The middle of the blob, which is in the third or the fourth file.
    let mut blobs: Vec<_> =
        fs::read_dir(place.other("store/blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect();
    blobs.retain(|path| fs::metadata(path).unwrap().len() > 1 << 20);
    assert_eq!(blobs.len(), PACKINGS.len());
    for blob in &blobs {
        let mut permissions = fs::metadata(blob).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
        fs::set_permissions(blob, permissions).unwrap();
        let file = File::options().read(true).write(true).open(blob).unwrap();
        let at = file.metadata().unwrap().len() / 2 + 12_345;
        let mut byte = [0];
        file.read_exact_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 4], at).unwrap();
    }
    let mut daemon = place.serve();
    for (n, packing) in PACKINGS.iter().enumerate() {
        let read: Vec<_> = (0..6).map(|file| fs::read(rootfs(n).join(file.to_string()))).collect();
        let whole =
            read.iter().zip(&files).filter(|(read, file)| read.as_ref().is_ok_and(|read| read == *file)).count();
        let failed =
            read.iter().filter(|read| read.as_ref().is_err_and(|error| error.raw_os_error() == Some(nix::libc::EIO)));
        let failed = failed.count();
        // Of a layer in one piece nothing behind the damage can be had, and nothing before it is believed.
        if matches!(packing, Packing::Gzip | Packing::Zstd) {
            assert_eq!((whole, failed), (0, 6), "{packing:?}");
        } else {
            // A frame has 1 MiB here, and so parts of three files at most.
            assert!(whole + failed == 6 && (1..=3).contains(&failed), "{packing:?}: {whole} whole, {failed} failed");
        }
    }
    assert!(daemon.log().contains("is damaged"), "{}", daemon.log());
}

#[test]
fn nothing_in_the_cache_is_needed_or_believed() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let (large, small) = (noise(1, 5 << 20), noise(2, 1000));
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        let tar = Tar::default().file("large", &large).file("small", &small).end();
        make(&store, "own", &[&tar], PACKINGS[0]);
        make(&store, "gzip", &[&tar], Packing::Gzip);
    }
    let read_all = || {
        for (image, file, expected) in
            [("own", "large", &large), ("own", "small", &small), ("gzip", "large", &large), ("gzip", "small", &small)]
        {
            for turn in 0..2 {
                let found = fs::read(place.dir().join(format!("images/{image}/rootfs/{file}"))).unwrap();
                assert!(found == *expected, "{image} {file}, turn {turn}");
            }
        }
    };
    let cached = || -> Vec<std::path::PathBuf> {
        let shelves = fs::read_dir(place.other("store/cache")).unwrap().map(|entry| entry.unwrap().path());
        shelves.flat_map(|shelf| fs::read_dir(shelf).unwrap().map(|entry| entry.unwrap().path())).collect()
    };
    let restart = |mut daemon: crate::harness::mount::Daemon, change: &dyn Fn()| {
        daemon.signal(Signal::SIGKILL);
        daemon.end(std::time::Duration::from_secs(10));
        let _ = nix::mount::umount2(&place.dir(), nix::mount::MntFlags::MNT_DETACH);
        change();
        place.serve()
    };
    let daemon = place.serve();
    read_all();
    eventually("all is kept: two indexes, one layer, two files", || cached().len() == 5);
    // Torn by a power cut, or gone.
    let daemon = restart(daemon, &|| {
        for path in cached() {
            let mut bytes = fs::read(&path).unwrap();
            let middle = bytes.len() / 2;
            bytes[middle] ^= 1;
            fs::remove_file(&path).unwrap();
            fs::write(&path, bytes).unwrap();
        }
    });
    read_all();
    let daemon = restart(daemon, &|| cached().iter().for_each(|path| fs::remove_file(path).unwrap()));
    read_all();
    let daemon = restart(daemon, &|| ());
    read_all();
    drop(daemon);
    let _ = nix::mount::umount2(&place.dir(), nix::mount::MntFlags::MNT_DETACH);
    // There is room for the smallest alone.
    let _daemon = place.serve_with(&["-v", "-o", "cache=4K"]);
    read_all();
    let sizes = || cached().iter().map(|path| fs::metadata(path).map_or(0, |metadata| metadata.len())).sum::<u64>();
    eventually("the cache is small", || sizes() <= 4096);
}

#[test]
fn an_overlay_on_top_can_be_written_to() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        let lower = Tar::default().file("etc/old", "1").file("etc/gone", "2").file("etc/same", noise(1, 2 << 20)).end();
        make(&store, "img", &[lower, Tar::default().file("etc/new", "3").end()], PACKINGS[0]);
    }
    let _daemon = place.serve();
    let [upper, work, merged] = ["upper", "work", "merged"].map(|name| place.other(name));
    [&upper, &work, &merged].iter().for_each(|dir| fs::create_dir(dir).unwrap());
    let lower = place.dir().join("images/img/rootfs");
    let options = format!("lowerdir={},upperdir={},workdir={}", lower.display(), upper.display(), work.display());
    let flags = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &merged, Some("overlay"), flags, Some(options.as_str())).unwrap();
    let file = |name: &str| merged.join("etc").join(name);
    fs::write(file("old"), "changed").unwrap();
    fs::remove_file(file("gone")).unwrap();
    assert_eq!(fs::read(file("same")).unwrap(), noise(1, 2 << 20));
    fs::rename(file("same"), file("moved")).unwrap();
    let read = |name: &str| fs::read(file(name)).ok();
    assert_eq!((read("old"), read("new"), read("gone")), (Some(b"changed".to_vec()), Some(b"3".to_vec()), None));
    assert_eq!(read("moved"), Some(noise(1, 2 << 20)));
    nix::mount::umount2(&merged, nix::mount::MntFlags::MNT_DETACH).unwrap();
    assert_eq!(fs::read(lower.join("etc/old")).unwrap(), b"1");
}

#[test]
fn the_kernel_enforces_owner_mode_and_access_control_list() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    {
        let store = Store::open_dir(&place.other("store")).unwrap();
        let tar = Tar::default();
        let tar =
            tar.acl(&crate::harness::rootfs::acl(&[(1, 6, !0), (2, 4, 65_534), (4, 0, !0), (16, 4, !0), (32, 0, !0)]));
        let tar = tar.private("for-nobody", "1").private("shadow", "2").file("open", "3").end();
        make(&store, "img", &[tar], PACKINGS[0]);
    }
    let _daemon = place.serve_with(&["-v", "-o", "gid=65534"]);
    let rootfs = place.dir().join("images/img/rootfs");
    fs::read_dir(&rootfs).unwrap();
    std::os::unix::fs::chown(place.other(""), Some(65_534), Some(65_534)).unwrap();
    let read = |name: &str| {
        use std::os::unix::process::CommandExt;
        let mut cat = crate::harness::mount::command("cat");
        let output = cat.arg(rootfs.join(name)).uid(65_534).gid(65_534).output().unwrap();
        (output.status.success(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(read("open"), (true, "3".to_owned()));
    assert_eq!(read("shadow"), (false, String::new()));
    assert_eq!(read("for-nobody"), (true, "1".to_owned()));
}
