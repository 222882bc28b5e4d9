//! The life of a mount, and what every program may expect of it.

// As it is installed.
mod installed;
// As it should not be used.
mod mistakes;
// Who reads the whole tree, and who reads while others delete.
mod readers;

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use crate::harness::hung_fuse::HungFuse;
use crate::harness::mount::{HELPER, Place, can_mount, command, eventually, in_lab, install, told};

/// What is at the top, in order.
fn top() -> Vec<&'static str> {
    let files = snapfs::tree::RootFile::TABLE.iter().map(|row| row.1).filter(|name| *name != "events");
    let mut names: Vec<_> = files.chain(["containers", "images", "jobs", "query"]).collect();
    names.sort_unstable();
    names
}

const SOON: Duration = Duration::from_secs(5);

fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().and_then(|error| error.raw_os_error()).unwrap_or(0)
}

#[test]
fn the_mount_is_seen_as_what_it_is() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.serve();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mountinfo.lines().find(|line| line.contains(place.dir().to_str().unwrap())).unwrap();
    for word in ["nosuid", "nodev", "fuse.snapfs test", "default_permissions", "allow_other"] {
        assert!(line.contains(word), "{word} is not in {line}");
    }
    let mut names: Vec<_> =
        fs::read_dir(place.dir()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, top());
    assert_eq!(fs::read_to_string(place.dir().join("version")).unwrap().trim(), env!("CARGO_PKG_VERSION"));
    let (dir, outside) = (fs::metadata(place.dir()).unwrap(), fs::metadata(place.other("store")).unwrap());
    assert_ne!(dir.dev(), outside.dev());
    let space = nix::sys::statvfs::statvfs(&place.dir()).unwrap();
    assert!(space.blocks() > 0, "df hides file systems of no size");
}

#[test]
fn nothing_can_be_made_changed_or_taken_away_and_the_errno_says_so() {
    use nix::libc::{EISDIR, ENOENT, EPERM, EROFS};
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.serve();
    for directory in ["", "images", "containers", "jobs"] {
        let dir = place.dir().join(directory);
        let new = dir.join("new");
        assert_eq!(errno(fs::create_dir(&new)), EPERM, "mkdir in {directory}");
        assert_eq!(errno(File::create(&new)), EPERM, "creat in {directory}");
        assert_eq!(errno(symlink("x", &new)), EPERM, "symlink in {directory}");
        assert_eq!(errno(fs::hard_link(place.dir().join("README"), &new)), EPERM, "link in {directory}");
        assert_eq!(errno(nix::unistd::mkfifo(&new, nix::sys::stat::Mode::S_IRWXU).map_err(Into::into)), EPERM);
        assert_eq!(errno(fs::remove_file(&new)), ENOENT);
    }
    let readme = place.dir().join("README");
    assert_eq!(errno(fs::remove_file(&readme)), EPERM);
    assert_eq!(errno(fs::remove_file(place.dir().join("images"))), EISDIR);
    assert_eq!(errno(fs::remove_dir(place.dir().join("images"))), nix::libc::ENOTEMPTY);
    assert_eq!(errno(fs::remove_dir(place.dir().join("containers"))), EPERM);
    assert_eq!(errno(rename(&readme, &place.dir().join("other"))), EPERM);
    assert_eq!(errno(fs::set_permissions(&readme, fs::Permissions::from_mode(0o777))), EPERM);
    assert_eq!(errno(OpenOptions::new().write(true).open(&readme)), EROFS);
    assert_eq!(errno(File::open(&readme).unwrap().set_len(0)), nix::libc::EINVAL, "not open for writing");
}

/// Through the system's own program: std's is reserved for the store.
fn rename(from: &Path, to: &Path) -> io::Result<()> {
    nix::fcntl::renameat(nix::fcntl::AT_FDCWD, from, nix::fcntl::AT_FDCWD, to).map_err(Into::into)
}

#[test]
fn extended_attributes_are_none_rather_than_unknown() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.serve();
    // Python has the calls, and is on every machine that this is built on.
    let script = "import os, sys\n\
        p = sys.argv[1]\n\
        print(os.listxattr(p))\n\
        for call in (lambda: os.getxattr(p, 'user.x'), lambda: os.setxattr(p, 'user.x', b''), lambda: os.removexattr(p, 'user.x')):\n\
        \x20   try: call(); print('done')\n\
        \x20   except OSError as error: print(error.errno)\n";
    let output = command("python3").args(["-c", script]).arg(place.dir().join("README")).output().unwrap();
    let expected = format!("[]\n{}\n{}\n{}\n", nix::libc::ENODATA, nix::libc::EOPNOTSUPP, nix::libc::EOPNOTSUPP);
    assert_eq!(String::from_utf8_lossy(&output.stdout), expected, "{output:?}");
}

#[test]
fn walking_the_whole_tree_ends_and_changes_nothing() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.serve();
    let listing = || {
        let output = command("find").arg(place.dir()).args(["-printf", "%P %y %m %i\n"]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let before = listing();
    assert!(before.lines().count() >= 7, "{before}");
    let began = Instant::now();
    let grep = command("grep").args(["-r", "no such text anywhere"]).arg(place.dir()).output().unwrap();
    assert_eq!(told(&grep), (1, String::new()), "nothing found, nothing failed");
    assert!(began.elapsed() < SOON);
    assert_eq!(listing(), before);
}

#[test]
fn sixty_four_readers_at_once_read_the_same() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.serve();
    let expected = fs::read(place.dir().join("README")).unwrap();
    assert!(expected.len() > 100);
    thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                for _ in 0..50 {
                    let mut text = Vec::new();
                    File::open(place.dir().join("README")).unwrap().read_to_end(&mut text).unwrap();
                    assert_eq!(text, expected);
                    assert_eq!(fs::read_dir(place.dir()).unwrap().count(), top().len());
                    assert!(fs::metadata(place.dir().join("none")).is_err());
                }
            });
        }
    });
}

#[test]
fn umount_ends_the_daemon() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut daemon = place.serve();
    let held = File::open(place.dir().join("README")).unwrap();
    assert_eq!(umount2(&place.dir(), MntFlags::empty()), Err(nix::errno::Errno::EBUSY));
    assert!(daemon.runs());
    drop(held);
    eventually("the closed file is let go", || umount2(&place.dir(), MntFlags::empty()).is_ok());
    assert!(daemon.end(SOON).success());
    assert!(daemon.log().ends_with("is unmounted\n"));
}

#[test]
fn signals_unmount_save_the_one_that_terminals_send_when_they_close() {
    if !can_mount() {
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let place = Place::new();
        let mut daemon = place.serve();
        daemon.signal(Signal::SIGHUP);
        thread::sleep(Duration::from_millis(100));
        assert!(daemon.runs());
        // A working directory on the mount, as a forgotten shell has it, must not keep the daemon.
        let mut shell = command("sleep").arg("60").current_dir(place.dir()).spawn().unwrap();
        daemon.signal(signal);
        assert!(daemon.end(SOON).success(), "{signal}");
        assert_eq!(place.mounted(), 0);
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
}

#[test]
fn a_mount_of_somebody_else_on_top_stays() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut daemon = place.serve();
    let none: Option<&str> = None;
    nix::mount::mount(none, &place.dir(), Some("tmpfs"), nix::mount::MsFlags::empty(), none).unwrap();
    fs::write(place.dir().join("theirs"), "").unwrap();
    daemon.signal(Signal::SIGTERM);
    assert!(daemon.end(SOON).success());
    assert!(place.dir().join("theirs").exists());
    umount2(&place.dir(), MntFlags::empty()).unwrap();
}

#[test]
fn a_live_mount_is_refused_and_left_alone() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut daemon = place.serve();
    for arguments in [&["--foreground"][..], &[]] {
        let (code, message) = told(&place.mount(arguments).output().unwrap());
        assert_eq!(code, 32);
        assert!(message.contains("is already mounted"), "{message}");
    }
    assert!(daemon.runs());
    assert_eq!(place.mounted(), 1);
}

#[test]
fn a_mount_whose_daemon_was_killed_is_replaced() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let mut daemon = place.serve();
    daemon.signal(Signal::SIGKILL);
    daemon.end(SOON);
    assert_eq!(errno(fs::metadata(place.dir())), nix::libc::ENOTCONN);
    assert_eq!(place.mounted(), 1);
    let mut second = place.serve();
    assert_eq!(place.mounted(), 1);
    assert!(fs::read(place.dir().join("README")).is_ok());
    second.signal(Signal::SIGTERM);
    assert!(second.end(SOON).success());
    assert!(second.log().contains("detaching the dead mount"));
}

#[test]
fn in_the_background_success_means_usable() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let output = place.mount(&[]).output().unwrap();
    assert_eq!(told(&output), (0, String::new()));
    assert!(fs::read(place.dir().join("README")).is_ok());
    let log = || fs::read_to_string(place.other("log")).unwrap();
    assert!(log().contains("serving"), "{}", log());
    umount2(&place.dir(), MntFlags::empty()).unwrap();
    eventually("the daemon has ended", || log().ends_with("is unmounted\n"));
}

#[test]
fn in_the_background_failure_is_told_with_its_reason() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    fs::remove_dir(place.dir()).unwrap();
    let (code, message) = told(&place.mount(&[]).output().unwrap());
    assert_eq!(code, 32);
    assert!(message.contains("must be an existing directory"), "{message}");
    fs::write(place.dir(), "").unwrap();
    let (code, message) = told(&place.mount(&[]).output().unwrap());
    assert_eq!(code, 32);
    assert!(message.contains("Not a directory"), "{message}");
    let (code, message) = told(&place.mount(&["-o", "stroe=/x"]).output().unwrap());
    assert_eq!(code, 1);
    assert!(message.contains("did you mean \"store\"?"), "{message}");
}

#[test]
fn a_store_that_another_daemon_has_is_refused() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let _daemon = place.serve();
    let second = place.other("second");
    fs::create_dir(&second).unwrap();
    let output =
        command(crate::harness::mount::SNAPFS).args(["mount", "-o", &place.options(), "x"]).arg(&second).output();
    let (code, message) = told(&output.unwrap());
    assert_eq!(code, 32);
    assert!(message.contains(place.other("store").to_str().unwrap()), "{message}");
    assert_eq!(fs::read_dir(&second).unwrap().count(), 0);
}

#[test]
fn a_stuck_file_system_on_the_way_does_not_hang_the_start() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let hung = HungFuse::mount(&place.dir());
    let began = Instant::now();
    let mut start = command(crate::harness::mount::SNAPFS);
    start.args(["mount", "-o", &place.options(), "x"]).arg(hung.file());
    let (code, message) = told(&start.output().unwrap());
    assert_eq!(code, 32);
    assert!(message.contains("has not answered"), "{message}");
    assert!(began.elapsed() < SOON);
}

#[test]
fn the_helper_is_called_as_mount_calls_it() {
    if !can_mount() {
        return;
    }
    let place = Place::new();
    let helper = |arguments: &[&str], options: &str| {
        let options = format!("rw,nosuid,nodev,noatime,{options}");
        let mut helper = command(HELPER);
        helper.arg("any").arg(place.dir()).args(arguments).args(["-o", &options]);
        told(&helper.output().unwrap())
    };
    assert_eq!(helper(&["-f", "-n"], &place.options()), (0, String::new()), "a rehearsal");
    assert_eq!(place.mounted(), 0);
    let (code, message) = helper(&["-n"], "frobnicate");
    assert_eq!((code, message.contains("unknown mount option \"frobnicate\"")), (1, true), "{message}");
    assert_eq!(helper(&["-s", "-n"], &format!("frobnicate,{}", place.options())), (0, String::new()));
    assert_eq!(place.mounted(), 1);

    let images = place.dir().join("images/new");
    assert_eq!(helper(&["-n"], "remount,ro"), (0, String::new()));
    assert_eq!(errno(fs::create_dir(&images)), nix::libc::EROFS);
    assert_eq!(helper(&["-n"], "remount"), (0, String::new()));
    assert_eq!(errno(fs::create_dir(&images)), nix::libc::EPERM);
    umount2(&place.dir(), MntFlags::empty()).unwrap();
    let (code, message) = helper(&["-n"], "remount,ro");
    assert_eq!((code, message.contains("is a snapfs mounted there?")), (32, true), "{message}");
}

#[test]
fn mount_and_umount_find_the_helper() {
    if !can_mount() || !in_lab() {
        return;
    }
    install();
    let place = Place::new();
    let fstab = format!("any {} snapfs noauto,nofail,_netdev,user,{} 0 0\n", place.dir().display(), place.options());
    OpenOptions::new().append(true).create(true).open("/etc/fstab").unwrap().write_all(fstab.as_bytes()).unwrap();
    let run = |line: &[&str]| {
        let output = command(line[0]).args(&line[1..]).arg(place.dir()).output().unwrap();
        assert_eq!(told(&output), (0, String::new()), "{line:?}");
    };
    run(&["mount", "-t", "snapfs", "-o", &place.options(), "any"]);
    assert_eq!(place.mounted(), 1);
    run(&["mount", "-o", "remount,ro"]);
    assert_eq!(errno(fs::create_dir(place.dir().join("images/new"))), nix::libc::EROFS);
    run(&["umount"]);
    eventually("the store is free", || fs::read_to_string(place.other("log")).unwrap().ends_with("is unmounted\n"));
    run(&["mount"]);
    assert_eq!(place.mounted(), 1);
    run(&["umount"]);
    assert_eq!(place.mounted(), 0);
}
