//! Who reads the whole tree, and who reads while others delete.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use snapfs::oci::Digest;

use crate::harness::lab::{Bundle, Container, attempt, run, text};
use crate::harness::mount::{Place, SNAPFS, command, eventually, in_lab};
use crate::harness::rootfs::{block_device, char_device, fifo, file, make, socket};

/// What is in a directory, but for times that looking changes.
fn listing(directory: &str) -> String {
    // A store's cache is what reading may fill.
    run(&["find", directory, "-name", "cache", "-prune", "-o", "-printf", "%p %y %m %U:%G %s %n %i %T@ %l\n"])
}

/// All times of these paths, found out without reading a directory.
fn times(paths: &[PathBuf]) -> Vec<[(i64, i64); 3]> {
    let metadata = paths.iter().map(|path| fs::symlink_metadata(path).unwrap());
    let times = |at: fs::Metadata| {
        [(at.atime(), at.atime_nsec()), (at.mtime(), at.mtime_nsec()), (at.ctime(), at.ctime_nsec())]
    };
    metadata.map(times).collect()
}

#[test]
fn reading_everything_ends_and_changes_nothing() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let bundle = Bundle::new("runc", &place.other("runc"), "web", "overlay", "exec sleep 1000");
    make(
        &bundle.root(),
        &[
            fifo("srv/fifo"),
            socket("srv/socket"),
            char_device("srv/zero", 1, 5),
            // Reading it to its end would take for ever.
            char_device("srv/random", 1, 9),
            block_device("srv/disk", 7, 99),
            file("srv/a name\nof two lines", "x"),
        ],
    );
    bundle.start();
    let _daemon = place.serve();
    place.commit("web", "img");
    place.commit("web", "nested/img:1 compression=none");
    assert!(place.write("containers/web/commit", "Bad").is_err());
    let mnt = text(&place.dir()).to_owned();
    let (upper, store) = (text(&bundle.path().join("upper")).to_owned(), text(&place.other("store")).to_owned());
    let look = || {
        let tree = run(&["find", &mnt, "-printf", "%P %y %m %i\n"]);
        // What can be found out again is kept in the cache, by way of the stage.
        let is_kept = |line: &&str| !line.contains("/store/stage") && !line.contains("/store/cache");
        let kept: Vec<String> = listing(&store).lines().filter(is_kept).map(str::to_owned).collect();
        (listing(&upper), kept, place.list("jobs"), tree)
    };
    // The store remembers what it took a while to find out, the first time that somebody asks.
    run(&["find", &mnt, "-name", "unpacked_size", "-exec", "cat", "{}", "+"]);
    let before = look();
    let found = run(&["find", &upper, "-print0"]);
    let paths: Vec<PathBuf> = found.split('\0').filter(|path| !path.is_empty()).map(PathBuf::from).collect();
    // So that a reader of the container's files who does not ask to leave them alone would change them: relatime.
    for path in &paths {
        run(&["touch", "-h", "-a", "-d", "2001-01-01", text(path)]);
    }
    let times_before = times(&paths);
    for script in [
        "timeout 30 grep -r 'not to be found anywhere' MNT; test $? = 1",
        "timeout 30 find MNT -ls > /dev/null",
        // Not cf /dev/null, which tar knows, and then reads no file.
        "timeout 30 tar cf - MNT | cat > /dev/null",
        "timeout 30 find MNT -type f -exec cat {} + > /dev/null",
        "timeout 30 cp -a MNT $(mktemp -d)",
        "timeout 30 du -a MNT > /dev/null",
        "timeout 30 getfattr -hR -d -m - MNT > /dev/null",
        "timeout 30 ls -lR MNT > /dev/null",
    ] {
        let began = Instant::now();
        let ended = attempt(&["bash", "-o", "pipefail", "-c", &script.replace("MNT", &mnt)]);
        assert_eq!(
            (ended.code, ended.stderr.lines().filter(|line| !line.contains(": Removing leading ")).collect::<String>()),
            (0, String::new()),
            "{script}"
        );
        println!("{script}: {:?}", began.elapsed());
    }
    for (path, (after, before)) in paths.iter().zip(times(&paths).into_iter().zip(times_before)) {
        assert_eq!(after, before, "{}", path.display());
    }
    let after = look();
    assert_eq!(after.0, before.0, "the container's files");
    assert_eq!(after.1, before.1, "the store");
    assert_eq!((after.2, after.3), (before.2, before.3), "the tree");
}

#[test]
fn sixty_four_readers_of_an_image_that_is_deleted_read_it_to_its_end() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    run(&["dd", "status=none", "if=/dev/urandom", &format!("of={}/much", bundle.root().display()), "bs=1M", "count=8"]);
    bundle.start();
    let _daemon = place.serve();
    let image = place.commit("web", "img");
    let blob = image.join("layers/1/blob");
    let digest: Digest = place.read("images/img/layers/1/digest").parse().unwrap();
    let size = fs::metadata(&blob).unwrap().len();
    let stored = place.other("store/blobs/sha256").join(digest.hex());
    let (opened, deleted) = (Barrier::new(65), Barrier::new(65));
    thread::scope(|scope| {
        for n in 0..64_u64 {
            let (opened, deleted, blob) = (&opened, &deleted, &blob);
            scope.spawn(move || {
                let mut file = File::open(blob).unwrap();
                let mut some = [0; 4096];
                file.read_exact_at(&mut some, n * size / 64).unwrap();
                opened.wait();
                deleted.wait();
                let mut bytes = Vec::new();
                file.read_to_end(&mut bytes).unwrap();
                assert_eq!(Digest::of(&bytes), digest, "reader {n}");
            });
        }
        opened.wait();
        fs::remove_dir(&image).unwrap();
        // The collection that this asks for may not have begun yet; one from outside is refused while there is a daemon.
        thread::sleep(Duration::from_millis(300));
        assert_eq!(fs::metadata(&blob).unwrap_err().kind(), std::io::ErrorKind::NotFound);
        deleted.wait();
    });
    // Nobody reads any more. The next deletion collects what this one had to leave.
    place.commit("web", "other compression=none");
    fs::remove_dir(place.dir().join("images/other")).unwrap();
    eventually("the blob is collected", || !stored.exists());
}

#[test]
fn the_daemon_does_not_touch_its_own_mount() {
    if !in_lab() {
        return;
    }
    let place = Place::on_disk();
    let bundle = Bundle::tiny("runc", &place.other("runc"), "web", "exec sleep 1000");
    bundle.start();
    let (log, mnt) = (place.other("strace"), place.dir());
    let mut strace = command("strace");
    strace.args([
        "--follow-forks",
        "--seccomp-bpf",
        "--string-limit=4096",
        "--trace=%file,mount_setattr,fsmount",
        "--output",
    ]);
    strace.arg(&log).args([SNAPFS, "mount", "--foreground", "-o", &place.options(), "test"]).arg(&mnt);
    let mut strace = strace.stderr(File::create(place.other("foreground.log")).unwrap()).spawn().unwrap();
    eventually("the mount can be used", || fs::read(mnt.join("version")).is_ok());
    place.commit("web", "img");
    assert!(place.write("containers/web/commit", "Bad").is_err());
    attempt(&["find", text(&mnt), "-ls"]);
    attempt(&["grep", "-r", "nothing", text(&mnt)]);
    fs::remove_dir(mnt.join("images/img")).unwrap();
    let daemon: i32 = place.read("health").lines().find_map(|line| line.strip_prefix("pid ")).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(daemon), Signal::SIGTERM).unwrap();
    assert!(strace.wait().unwrap().success());
    let mut text_of_log = String::new();
    File::open(&log).unwrap().read_to_string(&mut text_of_log).unwrap();
    let calls: Vec<&str> = text_of_log.lines().filter(|line| line.contains(text(&mnt))).collect();
    let mounted = calls.iter().position(|line| line.contains("mount(\"test\"")).unwrap_or_else(|| panic!("{calls:#?}"));
    let later: Vec<_> = calls[mounted + 1..].iter().filter(|line| !line.contains("umount2(")).collect();
    assert!(later.is_empty(), "{later:#?}");
}
