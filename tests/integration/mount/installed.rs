//! snapfs as it is installed: mount(8), fstab(5), umount(8), and who may do what.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::lab::{Bundle, Ended, Podman, attempt, run, text};
use crate::harness::mount::{Place, eventually, in_lab, install};

/// The mount(8) of a test's own place.
fn mount(place: &Place, more: &str) -> Ended {
    let options = [&place.options(), more].join(",");
    attempt(&["mount", "-t", "snapfs", "snapfs", text(&place.dir()), "-o", options.trim_end_matches(',')])
}

/// The daemon's process number, from its own mouth.
fn pid(place: &Place) -> i32 {
    let health = place.read("health");
    health.lines().find_map(|line| line.strip_prefix("pid ")).unwrap().parse().unwrap()
}

fn has_ended(pid: i32) -> bool {
    !Path::new(&format!("/proc/{pid}")).exists()
}

/// The word is what the kernel says, not what ours parses.
fn line_of_proc_mounts(place: &Place) -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let lines: Vec<_> = mounts.lines().filter(|line| line.contains(text(&place.dir()))).collect();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines[0].to_owned()
}

#[test]
fn what_make_install_installs_is_what_mount_finds() {
    if !in_lab() {
        return;
    }
    install();
    for (path, mode) in [("/usr/bin/snapfs", 0o755), ("/usr/sbin/mount.snapfs", 0o755)] {
        assert_eq!(fs::metadata(path).unwrap().permissions().mode() & 0o7777, mode, "{path}");
    }
    assert_eq!(fs::read_link("/usr/sbin/mount.fuse.snapfs").unwrap(), PathBuf::from("mount.snapfs"));
    for path in ["system/snapfs.service", "system/snapfs-gc.service", "system/snapfs-gc.timer"] {
        assert!(Path::new("/usr/lib/systemd").join(path).exists(), "{path}");
    }
    for page in ["man8/snapfs.8", "man8/mount.snapfs.8"] {
        assert!(Path::new("/usr/share/man").join(page).exists(), "{page}");
    }

    let place = Place::new();
    let mounted = mount(&place, "");
    assert_eq!((mounted.code, mounted.stdout + &mounted.stderr), (0, String::new()));
    let line = line_of_proc_mounts(&place);
    let fields: Vec<&str> = line.split(' ').collect();
    assert_eq!((fields[0], fields[2]), ("snapfs", "fuse.snapfs"));
    let options: Vec<&str> = fields[3].split(',').collect();
    for option in ["rw", "nosuid", "nodev", "default_permissions", "allow_other"] {
        assert!(options.contains(&option), "{option} is not in {line}");
    }
    let daemon = pid(&place);
    let comm = fs::read_to_string(format!("/proc/{daemon}/comm")).unwrap();
    assert_eq!(comm.trim(), "snapfs", "however it was started");

    // A live one is refused and goes on; a dead one is replaced.
    let second = mount(&place, "");
    assert_eq!(second.code, 32, "{}", second.stderr);
    assert!(second.stderr.contains("is already mounted"), "{}", second.stderr);
    assert_eq!(pid(&place), daemon);
    kill(Pid::from_raw(daemon), Signal::SIGKILL).unwrap();
    eventually("it has ended", || has_ended(daemon));
    assert_eq!(fs::read_dir(place.dir()).unwrap_err().raw_os_error(), Some(nix::libc::ENOTCONN));
    assert_eq!(mount(&place, "").code, 0);
    assert_ne!(pid(&place), daemon);
    line_of_proc_mounts(&place);

    let daemon = pid(&place);
    run(&["umount", text(&place.dir())]);
    eventually("it has ended with its mount", || has_ended(daemon));
    assert_eq!(place.mounted(), 0);
    assert_eq!(attempt(&["umount", text(&place.dir())]).code, 32, "umount has nothing left to do");
}

#[test]
fn a_line_in_fstab() {
    if !in_lab() {
        return;
    }
    install();
    let place = Place::new();
    let table = place.other("fstab");
    // As docs/man/mount.snapfs.8 has it, with what systemd and mount(8) add.
    let options = format!("defaults,noauto,nofail,_netdev,x-systemd.automount,{}", place.options());
    fs::write(&table, format!("snapfs {} snapfs {options} 0 0\n", place.dir().display())).unwrap();
    let mount = |words: &[&str]| attempt(&[&["mount", "--fstab", text(&table)], words].concat());
    assert_eq!(mount(&["--all"]).code, 0);
    assert_eq!(place.mounted(), 0, "noauto");
    let mounted = mount(&[text(&place.dir())]);
    assert_eq!((mounted.code, mounted.stderr), (0, String::new()));
    assert_eq!(place.read("version"), env!("CARGO_PKG_VERSION"));
    let daemon = pid(&place);
    run(&["umount", text(&place.dir())]);
    eventually("it has ended with its mount", || has_ended(daemon));

    fs::write(&table, format!("snapfs {} snapfs stroe=/x 0 0\n", place.dir().display())).unwrap();
    let refused = mount(&[text(&place.dir())]);
    assert_eq!(refused.code, 1, "{}", refused.stderr);
    assert!(refused.stderr.contains("did you mean \"store\"?"), "{}", refused.stderr);
}

/// Somebody without rights, and somebody in the group.
fn as_user(group: &str, script: &str) -> Ended {
    let group = format!("--regid={group}");
    attempt(&["setpriv", "--reuid=65534", &group, "--clear-groups", "bash", "-c", script])
}

#[test]
fn users_see_nothing_but_what_is_for_all_and_the_group_does_what_root_does() {
    if !in_lab() {
        return;
    }
    install();
    let place = Place::new();
    fs::set_permissions(place.other(""), fs::Permissions::from_mode(0o755)).unwrap();
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    bundle.start();
    assert_eq!(mount(&place, "gid=4242").code, 0);
    let mnt = text(&place.dir()).to_owned();
    place.commit("web", "by-root");

    for file in ["README", "version", "health"] {
        let read = as_user("65534", &format!("cat {mnt}/{file}"));
        assert_eq!((read.code, read.stdout.is_empty()), (0, false), "{file}: {}", read.stderr);
    }
    assert_eq!(as_user("65534", &format!("ls {mnt}")).code, 0);
    for forbidden in [
        "ls MNT/containers",
        "ls MNT/images",
        "ls MNT/jobs",
        "ls MNT/containers/web",
        "cat MNT/containers/web/status",
        "cat MNT/images/by-root/manifest.json",
        "cat MNT/jobs/1/state",
        "echo img > MNT/containers/web/commit",
        "rmdir MNT/images/by-root",
        "mv MNT/images/by-root MNT/images/mine",
        "echo 1 > MNT/jobs/1/cancel",
    ] {
        let ended = as_user("65534", &forbidden.replace("MNT", &mnt));
        assert_ne!(ended.code, 0, "{forbidden}: {}", ended.stdout);
        assert!(ended.stderr.contains("Permission denied"), "{forbidden}: {}", ended.stderr);
    }
    assert_eq!(place.list("images"), ["by-root"]);

    for allowed in [
        "test \"$(ls MNT/containers)\" = web",
        "test \"$(cat MNT/containers/web/status)\" = running",
        "echo by-group > MNT/containers/web/commit",
        "cat MNT/images/by-group/blobs/sha256/* > /dev/null",
        "mv MNT/images/by-group MNT/images/moved",
        "echo more > MNT/images/moved/tag",
        "rmdir MNT/images/by-root",
    ] {
        let ended = as_user("4242", &allowed.replace("MNT", &mnt));
        assert_eq!((ended.code, ended.stderr.as_str()), (0, ""), "{allowed}");
    }
    assert_eq!(place.list("images"), ["more", "moved"]);
    // A descriptor that root opened is not a user's to write to, nor the other way round.
    let script = format!(
        "exec 3> {mnt}/containers/web/commit; setpriv --reuid=65534 --regid=65534 --clear-groups echo lent >&3"
    );
    let ended = attempt(&["bash", "-c", &script]);
    assert_ne!(ended.code, 0);
    assert!(place.read("containers/web/last_error").contains("user 0 opened the control file, and user 65534"));
    assert_eq!(place.list("images"), ["more", "moved"]);
    run(&["umount", &mnt]);
}

#[test]
fn a_process_in_a_container_commands_nothing() {
    if !in_lab() {
        return;
    }
    let podman = Podman::take();
    let place = Place::with_podman();
    let _daemon = place.serve();
    let volume = format!("{}:/snap", place.dir().display());
    let image = "localhost/base:1";
    let _web = podman.start("web", &[image, "sleep", "1000"]);
    place.commit("web", "img");
    for rights in [&["--privileged"][..], &["--privileged", "--pid=host"], &["--pid=host", "--cgroupns=host"]] {
        let _inside = podman.start("inside", &[rights, &["--volume", &volume, image, "sleep", "1000"]].concat());
        for script in [
            "echo stolen > /snap/containers/inside/commit",
            "echo stolen > /snap/containers/web/commit",
            "echo stolen > /snap/images/img/tag",
            "rmdir /snap/images/img",
            "mv /snap/images/img /snap/images/stolen",
        ] {
            let ended = attempt(&["podman", "exec", "inside", "sh", "-c", script]);
            assert_ne!(ended.code, 0, "{rights:?} {script}");
            assert!(ended.stderr.contains("Operation not permitted"), "{rights:?} {script}: {}", ended.stderr);
        }
        let said = place.read("containers/web/last_error");
        let expected = if rights.contains(&"--pid=host") { "runs inside the container inside" } else { "namespace" };
        assert!(said.contains(expected), "{rights:?}: {said}");
    }
    assert_eq!(place.list("images"), ["img"]);
    assert_eq!(place.list("jobs"), ["1", "last"]);
    drop(podman);
}
