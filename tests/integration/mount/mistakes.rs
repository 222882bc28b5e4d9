//! What an operator does by mistake, and what must not come of it.

use std::fs;
use std::os::unix::fs::symlink;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use crate::harness::lab::{attempt, run, text};
use crate::harness::mount::{Place, SNAPFS, can_mount, command, in_lab, install, told};

#[test]
fn a_store_below_the_mount_is_reached_without_the_mount() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    // As with `store=/snap` for a mount on /snap: by its path the store is our own mount from now on.
    fs::remove_dir(place.other("store")).unwrap();
    symlink(place.dir(), place.other("store")).unwrap();
    let _daemon = place.serve();
    // Children: whoever waits for a daemon that waits for itself cannot be killed.
    let children: Vec<_> = (0..16)
        .map(|_| command("stat").args(["--file-system", text(&place.dir())]).stdout(Stdio::null()).spawn().unwrap())
        .collect();
    let mut left = children;
    let limit = Instant::now() + Duration::from_secs(10);
    while !left.is_empty() && Instant::now() < limit {
        left.retain_mut(|child| child.try_wait().unwrap().is_none_or(|status| !status.success()));
        thread::sleep(Duration::from_millis(5));
    }
    if !left.is_empty() {
        abort(&place);
        panic!("{} of 16 were never told the size of the file system", left.len());
    }
}

/// Nothing else ends a daemon whose threads wait for it, SIGKILL neither.
fn abort(place: &Place) {
    let mounts = snapfs::sys::mount::mounts().unwrap();
    let device = &mounts.iter().rfind(|mount| mount.point == place.dir()).unwrap().device;
    let connection = device.split(':').next_back().unwrap();
    fs::write(format!("/sys/fs/fuse/connections/{connection}/abort"), "1").unwrap();
}

#[test]
fn collecting_in_a_directory_that_is_not_there_makes_none() {
    let directory = tempfile::tempdir().unwrap();
    let missing = directory.path().join("mistyped");
    for verb in ["gc", "fsck"] {
        let output = command(SNAPFS).args([verb, "--store", text(&missing)]).output().unwrap();
        let (code, said) = told(&output);
        assert_eq!(code, 32, "{verb}: {said}");
        assert!(said.contains("No such file or directory"), "{verb}: {said}");
        assert!(!missing.exists(), "{verb}");
    }
}

#[test]
fn the_units_start_what_was_installed_wherever_that_is() {
    if !in_lab() {
        return;
    }
    install();
    let directory = tempfile::tempdir().unwrap();
    let release = format!("release={}", std::path::Path::new(SNAPFS).parent().unwrap().display());
    let root = format!("DESTDIR={}", directory.path().display());
    run(&["make", "--directory", env!("CARGO_MANIFEST_DIR"), "install", &release, &root, "PREFIX=/usr/local"]);
    for unit in ["snapfs.service", "snapfs-gc.service"] {
        let unit = directory.path().join("usr/lib/systemd/system").join(unit);
        let lines = fs::read_to_string(&unit).unwrap();
        let programs: Vec<&str> = lines.lines().filter(|line| line.contains("bin/snapfs ")).collect();
        assert!(!programs.is_empty());
        for line in programs {
            let (_, path) = line.split_once("=").unwrap();
            let program = path.split(' ').next().unwrap();
            assert_eq!(program, "/usr/local/bin/snapfs", "{}", unit.display());
            assert!(directory.path().join(program.trim_start_matches('/')).exists());
        }
    }
    let installed = attempt(&["grep", "--count", "=/usr/bin/snapfs ", "/usr/lib/systemd/system/snapfs.service"]);
    assert_eq!(installed.stdout.trim(), "2", "without PREFIX= they stay as they are");
}
