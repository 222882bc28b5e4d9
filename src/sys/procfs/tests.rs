use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Membership, Origin, Status, has_interrupting_signal, is_dying, start_time};
use crate::sys::process::{Error, Program};

fn status(text: &str) -> Status {
    Status::parse(text.as_bytes())
}

#[test]
fn a_signal_that_ends_a_process_interrupts_unless_blocked_or_ignored() {
    let pending = |own: u64, shared: u64, blocked: u64, ignored: u64| {
        let text = format!(
            "Name:\tx\nState:\tD (disk sleep)\nSigPnd:\t{own:016x}\nShdPnd:\t{shared:016x}\nSigBlk:\t{blocked:016x}\nSigIgn:\t{ignored:016x}\n"
        );
        status(&text).is_interrupted()
    };
    let bit = |signal: u32| 1_u64 << (signal - 1);
    for signal in [1, 2, 3, 4, 6, 9, 10, 12, 13, 14, 15, 24, 26, 27] {
        assert!(pending(bit(signal), 0, 0, 0) && pending(0, bit(signal), 0, 0), "{signal}");
        assert!(!pending(bit(signal), 0, bit(signal), 0) && !pending(0, bit(signal), 0, bit(signal)), "{signal}");
    }
    // SIGCHLD, SIGCONT, SIGSTOP, SIGTSTP, SIGURG, SIGWINCH, and none at all.
    for signal in [17, 18, 19, 20, 23, 28] {
        assert!(!pending(bit(signal), bit(signal), 0, 0), "{signal}");
    }
    assert!(!pending(0, 0, 0, 0));
    assert!(status("State:\tZ (zombie)\n").is_interrupted() && status("State:\tX (dead)\n").is_interrupted());
}

#[test]
fn a_process_is_dying_once_nothing_can_save_it() {
    assert!(status("State:\tZ (zombie)\n").is_dying());
    assert!(status("State:\tD (disk sleep)\nCoreDumping:\t1\n").is_dying());
    assert!(status("State:\tD (disk sleep)\nSigPnd:\t0000000000000100\n").is_dying());
    assert!(!status("State:\tD (disk sleep)\nCoreDumping:\t0\nShdPnd:\t0000000000004000\n").is_dying());
    assert!(!is_dying(std::process::id()) && is_dying(u32::MAX));
}

#[test]
fn hostile_names_do_not_confuse() {
    assert_eq!(status("Name:\tState:\\tZ\nState:\tS (sleeping)\n").state, b'S');
    assert_eq!(status("").state, 0);
    assert!(!status("SigPnd").is_interrupted() && !status("SigPnd:\tnonsense\n").is_interrupted());
}

#[test]
fn a_process_is_known_by_its_start() {
    let own = start_time(std::process::id()).unwrap();
    assert!(own > 0 && start_time(std::process::id()).unwrap() == own);
    assert!(matches!(start_time(u32::MAX), Err(Error::Gone { pid: u32::MAX })));
    assert!(has_interrupting_signal(u32::MAX) && !has_interrupting_signal(std::process::id()));
}

#[test]
fn memberships_are_read_as_they_are() {
    let text = b"12:cpu,cpuacct:/a\n1:name=systemd:/b:c\n0::/docker/0a (deleted)\n\nnonsense\n";
    let all = Membership::parse(text);
    let expected = [("cpu,cpuacct", "/a"), ("name=systemd", "/b:c"), ("", "/docker/0a (deleted)")];
    let expected = expected
        .map(|(controllers, path)| Membership { controllers: controllers.to_owned(), path: PathBuf::from(path) });
    assert_eq!(all, expected);
    let origin = Origin { in_our_pid_namespace: true, in_our_user_namespace: true, cgroups: all };
    assert!(origin.is_in("cpuacct", Path::new("/a")) && origin.is_in("", Path::new("/docker")));
    assert!(!origin.is_in("cpuacct", Path::new("/a/b")) && !origin.is_in("", Path::new("/dock")));
    assert!(!origin.is_in("freezer", Path::new("/")));
}

#[test]
fn our_own_threads_are_of_the_host() {
    let origin = Origin::of(std::process::id()).unwrap();
    assert!(origin.is_host() && !origin.cgroups.is_empty());
    assert!(matches!(Origin::of(u32::MAX), Err(Error::Gone { .. })));
}

#[test]
fn a_process_of_another_namespace_is_told_apart() {
    if !rustix::process::geteuid().is_root() {
        let required = std::env::var_os("SNAPFS_TEST_REQUIRE").unwrap_or_default();
        assert!(!required.to_string_lossy().contains("root"), "namespaces need root");
        eprintln!("SKIPPED: namespaces need root");
        return;
    }
    // The child's number as we see it is its parent's only child; it is asked for while it sleeps.
    for (option, in_pid, in_user) in [("--pid", false, true), ("--user", true, false), ("--mount", true, true)] {
        let program = Program::find("unshare").unwrap().arguments(["--fork", option, "sleep", "2.5"]);
        let run = std::thread::spawn(move || program.run(Duration::from_secs(20)).unwrap());
        let child = loop {
            let listed =
                Program::find("pgrep").unwrap().arguments(["-fx", "sleep 2.5"]).run(Duration::from_secs(5)).unwrap();
            if let Some(pid) = String::from_utf8(listed.stdout).unwrap().lines().next() {
                break pid.parse().unwrap();
            }
        };
        let origin = Origin::of(child).unwrap();
        assert_eq!((origin.in_our_pid_namespace, origin.in_our_user_namespace), (in_pid, in_user), "{option}");
        assert_eq!(origin.is_host(), in_pid && in_user);
        run.join().unwrap().check().unwrap();
    }
}
