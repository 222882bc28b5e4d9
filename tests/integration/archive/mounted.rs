//! Archives written to a real mount, by writers that end well and by others; and images read as archives.

use std::fs::{self, File};
use std::os::fd::IntoRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::close;

use super::*;
use crate::harness::lab::{attempt, run, start, text};
use crate::harness::mount::{Place as Mount, SNAPFS, can_mount, eventually};

/// An archive in a file, whose image has so many bytes.
fn file(mount: &Mount, name: &str, seed: u64, size: usize) -> (PathBuf, Oci) {
    let oci = Oci::new(Some(name), &[layer(seed, size), layer(seed + 1000, size / 4)]);
    let path = mount.other(&format!("{seed}.tar"));
    fs::write(&path, oci.pack()).unwrap();
    (path, oci)
}

fn shell(mount: &Mount, script: &str) -> crate::harness::lab::Ended {
    let script = script.replace("MNT", text(&mount.dir()));
    attempt(&["bash", "-c", &format!("set -o pipefail; {script}")])
}

fn open(mount: &Mount) -> File {
    File::options().write(true).open(mount.dir().join("import")).unwrap()
}

fn close_of(file: File) -> Result<(), Errno> {
    close(file.into_raw_fd())
}

fn errno(error: &std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap())
}

/// Nothing of an import is left in the store of a daemon that runs.
fn assert_sound(mount: &Mount, what: &str) {
    let stage = mount.other("store/stage");
    eventually("the unfinished files are gone", || fs::read_dir(&stage).unwrap().count() == 0);
    let fsck = attempt(&[SNAPFS, "fsck", "--store", text(&mount.other("store"))]);
    assert_eq!(fsck.code, 0, "{what}: {}{}", fsck.stdout, fsck.stderr);
}

#[test]
fn every_program_writes_an_archive_in_its_way() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let _daemon = mount.serve();
    let (archive, oci) = file(&mount, "web:1", 1, 3_000_000);
    let archive = text(&archive);
    let ways = [
        ("web:1", format!("cat {archive} > MNT/import")),
        ("web:1", format!("cp {archive} MNT/import")),
        ("a", format!("{{ echo as=a; cat {archive}; }} > MNT/import")),
        ("b", format!("{{ /bin/echo as=b; cat {archive}; }} > MNT/import")),
        ("c", format!("{{ echo as=c; cat {archive}; }} >> MNT/import")),
        ("d", format!("{{ echo as=d; cat {archive}; }} | dd of=MNT/import bs=1M iflag=fullblock status=none")),
        ("e", format!("{{ echo as=e; cat {archive}; }} | dd of=MNT/import bs=1000 status=none")),
        (
            "f",
            format!(
                "{{ echo as=f; dd if={archive} bs=100k count=9; dd if={archive} bs=100k skip=9; }} 2> /dev/null | cat > MNT/import"
            ),
        ),
        ("g", format!("{{ echo as=g; gzip -1 < {archive}; }} | tee MNT/import > /dev/null")),
    ];
    for (name, script) in ways {
        let ended = shell(&mount, &script);
        assert_eq!((ended.code, &*ended.stderr), (0, ""), "{script}: {}", mount.read("import"));
        assert_eq!(mount.read(&format!("images/{name}/digest")), oci.digest().to_string(), "{script}");
        assert!(
            mount.read("import").ends_with(&format!("import: {} {name}", oci.digest())),
            "{}",
            mount.read("import")
        );
        assert_eq!((mount.read("jobs/last/state"), mount.read("jobs/last/command")), ("done".into(), "import".into()));
        assert_eq!(mount.read("jobs/last/result"), format!("{} {name}", oci.digest()));
    }
    assert_sound(&mount, "many imports");
}

#[test]
fn what_cannot_be_taken_fails_the_write_or_the_close() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let _daemon = mount.serve();
    let (archive, oci) = file(&mount, "web:1", 1, 3_000_000);
    let mut bytes = fs::read(&archive).unwrap();
    let archive = text(&archive);

    let ended = shell(&mount, &format!("head -c 1000000 {archive} > MNT/import"));
    assert_eq!((ended.code, ended.stderr.contains("Invalid argument")), (1, true), "{}", ended.stderr);
    eventually("it is told", || mount.read("import").contains("the archive is incomplete"));
    assert_eq!(mount.read("jobs/last/state"), "failed");

    // Two thirds of it would still be to come.
    bytes[1_000_000] ^= 1;
    let third = bytes.len() / 3;
    let file = open(&mount);
    let mut offset = 0;
    let refused = loop {
        match file.write_at(&bytes[offset..(offset + 100_000).min(bytes.len())], offset as u64) {
            Ok(count) => offset += count,
            Err(error) => break error,
        }
        assert!(offset < bytes.len(), "it was taken");
        thread::sleep(Duration::from_millis(1));
    };
    assert_eq!(errno(&refused), Errno::EINVAL);
    assert!(offset >= third, "{offset}");
    assert_eq!(close_of(file), Err(Errno::EINVAL));
    assert!(mount.read("import").contains("was damaged or tampered with"), "{}", mount.read("import"));

    // Who closes without asking is told by the last write already.
    assert_eq!(shell(&mount, &format!("cat {archive} > MNT/import")).code, 0);
    let other = Oci::new(Some("web:1"), &[layer(7, 1000)]).pack();
    let mut writer = open(&mount);
    assert_eq!(errno(&writer.write_all(&other).unwrap_err()), Errno::EEXIST);
    assert_eq!(close_of(writer), Err(Errno::EEXIST));
    assert_eq!(mount.read("images/web:1/digest"), oci.digest().to_string());
    assert!(
        mount.read("jobs/last/error").contains("an image web:1 exists already"),
        "{}",
        mount.read("jobs/last/error")
    );

    let file = open(&mount);
    assert_eq!(file.write_at(&other[..1000], 0).unwrap(), 1000);
    assert_eq!(errno(&file.write_at(&other[1000..2000], 1001).unwrap_err()), Errno::EINVAL, "no seeking");
    assert_eq!(file.write_at(&other[..1000], 0).unwrap(), 1000, "the last write once more, as after EINTR");
    drop(file);
    let ended = shell(&mount, &format!("unshare --pid --fork cat {archive} > MNT/import"));
    assert_eq!((ended.code, ended.stderr.contains("Operation not permitted")), (1, true), "{}", ended.stderr);
    let ended = shell(&mount, &format!("setpriv --reuid 65534 --clear-groups cat {archive} > MNT/import"));
    assert_eq!((ended.code, ended.stderr.contains("Operation not permitted")), (1, true), "{}", ended.stderr);
    let ended = shell(&mount, "setpriv --reuid 65534 --regid 65534 --clear-groups bash -c 'echo > MNT/import'");
    assert_eq!((ended.code, ended.stderr.contains("Permission denied")), (1, true), "{}", ended.stderr);
    assert_eq!(mount.list("images"), ["web:1"]);
    assert_sound(&mount, "refused imports");
}

#[test]
fn copies_of_the_descriptor_may_be_closed_in_any_order() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let _daemon = mount.serve();
    let (archive, oci) = file(&mount, "web:1", 1, 300_000);
    let bytes = fs::read(archive).unwrap();
    let mut writer = open(&mount);
    assert_eq!(close_of(writer.try_clone().unwrap()), Ok(()), "nothing was written yet");
    writer.write_all(b"as=mine\n").unwrap();
    assert_eq!(close_of(writer.try_clone().unwrap()), Ok(()), "nothing of the archive was written yet");
    writer.write_all(&bytes[..100_000]).unwrap();
    assert_eq!(close_of(writer.try_clone().unwrap()), Err(Errno::EINVAL), "in the middle of it");
    writer.write_all(&bytes[100_000..bytes.len() - 512]).unwrap();
    assert_eq!(mount.list("images"), [""; 0]);
    writer.write_all(&bytes[bytes.len() - 512..]).unwrap();
    assert_eq!(mount.list("images"), [""; 0], "named by the close");
    assert_eq!(close_of(writer.try_clone().unwrap()), Ok(()));
    assert_eq!(mount.read("images/mine/digest"), oci.digest().to_string());
    writer.write_all(&[0; 5000]).unwrap();
    assert_eq!(errno(&writer.write_all(b"more").unwrap_err()), Errno::EINVAL);
    assert_eq!(close_of(writer), Ok(()), "the image is there");
}

#[test]
fn many_write_at_once_and_each_gets_its_image() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let _daemon = mount.serve();
    let archives: Vec<_> = (0..8).map(|n| file(&mount, &format!("n{n}"), n, 500_000)).collect();
    for _ in 0..3 {
        thread::scope(|scope| {
            for (path, _) in &archives {
                let mount = &mount;
                scope.spawn(move || {
                    let ended = shell(mount, &format!("cat {} > MNT/import", text(path)));
                    assert_eq!((ended.code, &*ended.stderr), (0, ""), "{}", mount.read("import"));
                });
            }
        });
        for (n, (_, oci)) in archives.iter().enumerate() {
            assert_eq!(mount.read(&format!("images/n{n}/digest")), oci.digest().to_string());
            fs::remove_dir(mount.dir().join(format!("images/n{n}"))).unwrap();
        }
    }
    assert_sound(&mount, "imports beside each other");
    // One more than are taken at once.
    let writers: Vec<_> = (0..8)
        .map(|_| {
            let file = open(&mount);
            file.write_at(b"as=x\n", 0).unwrap();
            file
        })
        .collect();
    assert_eq!(errno(&open(&mount).write_at(b"as=x\n", 0).unwrap_err()), Errno::EBUSY);
    drop(writers);
    eventually("they have ended", || mount.read("jobs/last/state") == "failed");
}

#[test]
fn a_cancelled_import_and_a_killed_writer_leave_nothing() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let _daemon = mount.serve();
    let (archive, _) = file(&mount, "web:1", 1, 2_000_000);
    let bytes = fs::read(&archive).unwrap();
    let mut writer = open(&mount);
    writer.write_all(&bytes[..1_000_000]).unwrap();
    eventually("it has begun", || mount.read("jobs/last/state") == "running");
    eventually("progress is told", || mount.read("jobs/last/progress").contains("phase reading"));
    mount.write("jobs/last/cancel", "1").unwrap();
    eventually("it has ended", || mount.read("jobs/last/state") == "cancelled");
    assert_eq!(errno(&writer.write_all(&bytes[1_000_000..]).unwrap_err()), Errno::ECANCELED);
    assert_eq!(close_of(writer), Err(Errno::ECANCELED));

    for n in 0..10 {
        // The writer waits for more, at any point of the archive.
        let part = bytes.len() / 11 * (n + 1);
        let script = format!("head -c {part} {}; sleep 100", text(&archive));
        let target = text(&mount.dir().join("import")).to_owned();
        let job = mount.list("jobs").len();
        let writer = start(&["bash", "-c", &format!("exec > {target}; {script}")]);
        // head's own close fails, of which the shell takes no note.
        eventually("it is on its way", || mount.list("jobs").len() > job && mount.read("jobs/last/state") == "running");
        writer.signal(Signal::SIGKILL);
        drop(writer); // sleep with it
        eventually("it has ended", || mount.read("jobs/last/state") == "failed");
        assert!(mount.read("import").contains("the archive is incomplete"), "{}", mount.read("import"));
    }
    assert_eq!(mount.list("images"), [""; 0]);
    assert_sound(&mount, "imports that were not to be");
}

#[test]
fn a_daemon_killed_at_any_moment_of_an_import_leaves_the_image_or_nothing() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let mut daemon = mount.serve();
    let (archive, oci) = file(&mount, "web:1", 1, 4_000_000);
    let (mut whole, mut none) = (0, 0);
    for moment in (0..60_u64).step_by(4) {
        let script = format!("cat {} > MNT/import", text(&archive));
        let acknowledged = thread::scope(|scope| {
            let writer = scope.spawn(|| shell(&mount, &script).code == 0);
            thread::sleep(Duration::from_millis(moment));
            daemon.signal(Signal::SIGKILL);
            writer.join().unwrap()
        });
        daemon.end(Duration::from_secs(5));
        daemon = mount.serve();
        let is_there = mount.list("images") == ["web:1"];
        assert!(is_there || !acknowledged, "acknowledged and gone, after {moment} ms");
        if is_there {
            whole += 1;
            assert_eq!(mount.read("images/web:1/digest"), oci.digest().to_string());
            let blob = fs::read(mount.dir().join("images/web:1/layers/0/blob")).unwrap();
            assert!(blob == oci.layers[0].1);
            fs::remove_dir(mount.dir().join("images/web:1")).unwrap();
        } else {
            none += 1;
            assert_eq!(mount.list("images"), [""; 0]);
        }
        assert_sound(&mount, "a daemon killed");
    }
    println!("{whole} whole, {none} none");
    assert!(none > 0, "the deaths were not all over the import");
}

#[test]
fn an_image_is_read_as_an_archive_at_any_offset_and_to_its_end_although_it_is_deleted() {
    if !can_mount() {
        return;
    }
    let mount = Mount::new();
    let _daemon = mount.serve();
    let (archive, oci) = file(&mount, "web:1", 1, 6_000_000);
    assert_eq!(shell(&mount, &format!("cat {} > MNT/import", text(&archive))).code, 0);
    let path = mount.dir().join("images/web:1/oci.tar");
    let size = fs::metadata(&path).unwrap().len();
    let whole = fs::read(&path).unwrap();
    assert_eq!(whole.len() as u64, size);
    let readers: Vec<File> = (0..16).map(|_| File::open(&path).unwrap()).collect();
    let kept = File::open(&path).unwrap();
    thread::scope(|scope| {
        for (n, file) in readers.iter().enumerate() {
            let whole = &whole;
            scope.spawn(move || {
                let mut state = n as u64;
                for _ in 0..40 {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let (offset, length) = ((state >> 33) % (size + 100), ((state >> 20) % 200_000) as usize);
                    let mut part = vec![0; length];
                    let filled = read_full(file, &mut part, offset);
                    let start = (offset as usize).min(whole.len());
                    assert!(part[..filled] == whole[start..(start + length).min(whole.len())], "{length} at {offset}");
                }
            });
        }
    });
    fs::remove_dir(mount.dir().join("images/web:1")).unwrap();
    let blob = mount.other("store/blobs/sha256").join(Digest::of(&oci.layers[0].1).hex());
    eventually("its blobs are collected", || !blob.exists());
    // Not from the page cache, which may have all of it.
    nix::fcntl::posix_fadvise(&kept, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
    let mut last = vec![0; whole.len()];
    assert_eq!(read_full(&kept, &mut last, 0), whole.len());
    assert!(last == whole);
    drop((readers, kept));

    let copy = mount.other("copy.tar");
    fs::write(&copy, &whole).unwrap();
    assert_eq!(shell(&mount, &format!("cat {} > MNT/import", text(&copy))).code, 0);
    assert_eq!(mount.read("images/web:1/digest"), oci.digest().to_string());
    assert!(fs::read(&path).unwrap() == whole, "the same image gives the same bytes");
    assert!(run(&["tar", "tf", text(Path::new(&path))]).contains("oci-layout"));
}

fn read_full(file: &File, buffer: &mut [u8], offset: u64) -> usize {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], offset + filled as u64).unwrap() {
            0 => break,
            count => filled += count,
        }
    }
    filled
}
