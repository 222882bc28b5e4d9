//! The tar itself: its bytes, and what becomes of them when files change, vanish or are swapped while it is written.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::RenameFlags;
use snapfs::changeset::flatten;
use snapfs::changeset::tar::{self, Options, Vanished, Written};
use snapfs::changeset::{Namespace, Source, scan};
use snapfs::progress::Progress;

use crate::harness::rootfs::{
    Facts, Item, Overlay, at, block_device, char_device, dir, facts, fifo, file, hardlink, make, rename, scratch,
    socket, sparse, symlink,
};
use crate::roundtrip::{extract, source, tar_of};

const LIVE: Options = Options { vanished: Vanished::Skip, latest_mtime: None };

#[test]
fn a_file_of_nine_gigabytes_of_nothing_has_a_size_record() {
    struct Check(u64, Vec<u8>);
    impl Write for Check {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let room = 4096usize.saturating_sub(self.1.len()).min(bytes.len());
            self.1.extend_from_slice(&bytes[..room]);
            self.0 += bytes.len() as u64;
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let temp = scratch();
    make(temp.path(), &[sparse("huge", 9 << 30, &[])]);
    let changes = scan(&Source::Directory(temp.path().to_path_buf()), &[], &Progress::new()).unwrap();
    assert_eq!((changes.size(), changes.allocated()), (9 << 30, 0));
    let mut out = Check(0, Vec::new());
    let written = tar::write(&changes, &mut out, &Progress::new(), Options::default()).unwrap();
    assert_eq!(written.bytes, out.0);
    assert!(out.0 > 9 << 30);
    let record = b"19 size=9663676416\n";
    assert!(out.1.windows(record.len()).any(|bytes| bytes == record), "{}", out.1.escape_ascii());
}

#[test]
fn times_are_clamped_to_source_date_epoch() {
    let temp = scratch();
    make(temp.path(), &[file("new", "").mtime(2_000_000_000, 5), file("old", "").mtime(-5, 5), at("").mtime(1, 0)]);
    let changes = scan(&Source::Directory(temp.path().to_path_buf()), &[], &Progress::new()).unwrap();
    let mut bytes = Vec::new();
    let options = Options { latest_mtime: Some(1_000_000_000), ..Options::default() };
    tar::write(&changes, &mut bytes, &Progress::new(), options).unwrap();
    let out = scratch();
    extract(&bytes, out.path());
    let found = facts(out.path());
    assert_eq!((found["new"].mtime, found["old"].mtime), ((1_000_000_000, 0), (-5, 5)));
}

#[test]
fn the_same_tree_elsewhere_gives_the_same_bytes() {
    let tar = |order: fn(&mut Vec<Item>)| {
        let temp = scratch();
        let mut items: Vec<_> = (0..200).map(|n| file(format!("d{}/f{n}", n % 7), n.to_string()).mtime(n, 1)).collect();
        order(&mut items);
        let mut last: Vec<_> = (0..7).map(|n| at(format!("d{n}")).mtime(3, 3)).collect();
        last.push(hardlink("a", "d0/f0"));
        last.push(at("").mtime(4, 4));
        make(temp.path(), &items);
        make(temp.path(), &last);
        tar_of(&scan(&Source::Directory(temp.path().to_path_buf()), &[], &Progress::new()).unwrap())
    };
    assert!(tar(|_| ()) == tar(|items| items.reverse()));
}

/// An output that does something when the tar has reached a certain length.
struct Interfering<F> {
    written: u64,
    at: u64,
    act: Option<F>,
    bytes: Vec<u8>,
}

impl<F: FnOnce()> Write for Interfering<F> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.written += bytes.len() as u64;
        self.bytes.extend_from_slice(bytes);
        if self.written >= self.at
            && let Some(act) = self.act.take()
        {
            act();
        }
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Changes the file `victim` of 4 MiB once the tar has `reached` bytes, and says what was written and what GNU tar reads.
fn interfere(reached: u64, options: Options, act: impl FnOnce(&Path)) -> (Result<Written, tar::Error>, Facts) {
    let (temp, out) = (scratch(), scratch());
    let root = temp.path();
    make(
        root,
        &[file("a", "before"), file("victim", vec![b'v'; 4 << 20]), hardlink("w", "victim"), file("z", "after")],
    );
    let changes = scan(&Source::Directory(root.to_path_buf()), &[], &Progress::new()).unwrap();
    let victim = root.join("victim");
    let mut target = Interfering { written: 0, at: reached, act: Some(|| act(&victim)), bytes: Vec::new() };
    let written = tar::write(&changes, &mut target, &Progress::new(), options);
    if written.is_ok() {
        extract(&target.bytes, out.path());
        return (written, facts(out.path()));
    }
    (written, Facts::new())
}

#[test]
fn a_file_that_shrinks_grows_or_changes_keeps_its_place_and_is_named() {
    let middle = 2 << 20;
    let truncate = |length: u64| {
        move |victim: &Path| fs::OpenOptions::new().write(true).open(victim).unwrap().set_len(length).unwrap()
    };
    for (what, act) in [
        ("shrinks", Box::new(truncate(1000)) as Box<dyn FnOnce(&Path)>),
        ("grows", Box::new(truncate(8 << 20))),
        (
            "changes",
            Box::new(|victim: &Path| {
                std::os::unix::fs::FileExt::write_all_at(
                    &fs::OpenOptions::new().write(true).open(victim).unwrap(),
                    b"x",
                    0,
                )
                .unwrap()
            }),
        ),
    ] {
        let (written, found) = interfere(middle, Options::default(), act);
        assert_eq!(written.unwrap().torn, [b"victim"], "{what}");
        assert_eq!(found["victim"].content.len(), 4 << 20, "{what}");
        assert_eq!(found["z"].content, b"after", "{what}");
        assert_eq!(found["victim"].content.last(), Some(if what == "shrinks" { &0 } else { &b'v' }), "{what}");
    }
}

#[test]
fn a_file_that_vanishes_is_an_error_if_frozen_and_left_out_if_live() {
    let (written, _) = interfere(1, Options::default(), |victim| fs::remove_file(victim).unwrap());
    let error = written.unwrap_err();
    assert!(matches!(&error, tar::Error::Vanished { path, .. } if path == b"victim"), "{error}");
    // Its other name takes its place.
    let (written, found) = interfere(1, LIVE, |victim| fs::remove_file(victim).unwrap());
    assert_eq!(written.unwrap().torn, [b"victim"]);
    assert!(!found.contains_key("victim"));
    assert_eq!((found["w"].content.len(), &found["z"].content[..]), (4 << 20, &b"after"[..]));
    // What takes its place is neither followed nor opened.
    for replacement in [symlink("victim", "/etc/passwd"), fifo("victim"), dir("victim")] {
        let (written, found) = interfere(1, LIVE, |victim| make(victim.parent().unwrap(), &[replacement]));
        assert_eq!(written.unwrap().torn, [b"victim"]);
        assert!(!found.contains_key("victim"));
    }
    // Another file in its place is not what the header describes.
    let (written, found) = interfere(1, LIVE, |victim| make(victim.parent().unwrap(), &[file("victim", "other")]));
    assert_eq!(written.unwrap().torn, [b"victim"]);
    assert_eq!(found["victim"].content.len(), 4 << 20);
}

/// Files that were made at one tick of the clock differ in nothing but their inode and their content.
#[test]
fn a_twin_in_another_directory_is_not_taken_for_the_file() {
    let temp = scratch();
    let root = temp.path().join("root");
    let paths = ["one/file", "two/file"].map(|path| root.join(path));
    let ctime = |path: &Path| fs::symlink_metadata(path).map(|stat| (stat.ctime(), stat.ctime_nsec())).unwrap();
    make(&root, &[dir("one"), dir("two")]);
    // Opened without a look at either between the two, which would give the second one a finer time.
    let are_twins = (0..1000).any(|_| {
        paths.iter().for_each(|path| drop(fs::remove_file(path)));
        paths.iter().for_each(|path| fs::write(path, path.parent().unwrap().file_name().unwrap().as_bytes()).unwrap());
        ctime(&paths[0]) == ctime(&paths[1])
    });
    assert!(are_twins, "no two files of one tick");
    let changes = scan(&Source::Directory(root.clone()), &[], &Progress::new()).unwrap();
    let read = || {
        let mut bytes = Vec::new();
        let written = tar::write(&changes, &mut bytes, &Progress::new(), LIVE).unwrap();
        let out = scratch();
        extract(&bytes, out.path());
        (written.torn, fs::read(out.path().join("one/file")).unwrap())
    };
    assert_eq!(read(), (vec![], b"one".to_vec()));
    rustix::fs::renameat_with(
        rustix::fs::CWD,
        root.join("one"),
        rustix::fs::CWD,
        root.join("two"),
        RenameFlags::EXCHANGE,
    )
    .unwrap();
    assert_eq!(read(), (vec![b"one/file".to_vec(), b"two/file".to_vec()], b"two".to_vec()));
}

struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// T-01 of the threat model: a directory and a symbolic link to outside change places all the time.
#[test]
fn a_directory_swapped_for_a_link_never_leads_outside() {
    let temp = scratch();
    let (root, outside) = (temp.path().join("rootfs"), temp.path().join("outside"));
    make(&outside, &[file("secret", "CANARY-CONTENT"), dir("sub"), file("sub/secret", "CANARY-CONTENT")]);
    make(
        &root,
        &[file("d/secret", "mine"), file("d/sub/secret", "mine"), symlink("e", outside.as_os_str().as_bytes())],
    );
    let stop = AtomicBool::new(false);
    let (mut swapped, mut torn, mut seen_directory) = (0u64, 0, 0);
    std::thread::scope(|scope| {
        let swapper = scope.spawn(|| {
            let mut swaps = 0u64;
            let handle = fs::File::open(&root).unwrap();
            while !stop.load(Ordering::Relaxed) {
                rustix::fs::renameat_with(&handle, "d", &handle, "e", RenameFlags::EXCHANGE).unwrap();
                swaps += 1;
            }
            swaps
        });
        let _stop = StopAtEnd(&stop); // also when an assertion fails
        // How often the swap falls between two looks depends on who has the processors.
        let mut rounds = 0;
        while rounds < 200 || (torn == 0 && rounds < 5000) {
            rounds += 1;
            let changes = scan(&Source::Directory(root.clone()), &[], &Progress::new()).unwrap();
            let mut bytes = Vec::new();
            let written = tar::write(&changes, &mut bytes, &Progress::new(), LIVE).unwrap();
            torn += written.torn.len() + changes.vanished.len();
            seen_directory += u32::from(bytes.windows(4).any(|part| part == b"mine"));
            assert!(!bytes.windows(6).any(|part| part == b"CANARY"), "the content of a file outside is in the tar");
        }
        stop.store(true, Ordering::Relaxed);
        swapped = swapper.join().unwrap();
    });
    println!("{swapped} swaps, {torn} paths noticed gone, content seen {seen_directory} times");
    assert!(swapped > 200 && torn > 0 && seen_directory > 0, "the race was not run");
}

/// T-09: to open a FIFO without a writer would block for ever; to open a device may do anything.
#[test]
fn special_files_are_never_opened() {
    let temp = scratch();
    let below = temp.path().join("lower");
    make(&below, &[fifo("low")]);
    let overlay = Overlay::mount(temp.path(), &[below], temp.path().join("upper"), "");
    make(
        &overlay.merged,
        &[fifo("p"), socket("s"), char_device("tty", 5, 0), char_device("watchdog", 10, 130), block_device("b", 7, 0)],
    );
    let changes = scan(&source(&overlay, Namespace::Trusted), &[], &Progress::new()).unwrap();
    tar_of(&changes);
    tar_of(&flatten(&overlay.lower, Namespace::Trusted, &Progress::new()).unwrap());
    assert_eq!(changes.sockets, 1);
}

/// I13: nothing of the container changes by being read.
#[test]
fn reading_changes_nothing() {
    let temp = scratch();
    let below = temp.path().join("lower");
    make(&below, &[file("a/f", "1"), symlink("a/l", "f"), dir("a/d")]);
    let upper = temp.path().join("upper");
    let overlay = Overlay::mount(temp.path(), std::slice::from_ref(&below), upper.clone(), "redirect_dir=on");
    make(&overlay.merged, &[file("new", "2"), symlink("link", "new")]);
    rename(overlay.merged.join("a"), overlay.merged.join("b")).unwrap();
    let times = |root: &Path| {
        let mut found = Vec::new();
        let mut waiting = vec![root.to_path_buf()];
        while let Some(path) = waiting.pop() {
            let m = fs::symlink_metadata(&path).unwrap();
            found.push((path.clone(), m.atime(), m.atime_nsec(), m.mtime_nsec(), m.ctime(), m.ctime_nsec(), m.ino()));
            if m.is_dir() {
                waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            }
        }
        found.sort();
        found
    };
    let all = || [times(&below), times(&upper)];
    all(); // whose listing sets the access times of directories
    let before = all();
    let changes = scan(&source(&overlay, Namespace::Trusted), &[], &Progress::new()).unwrap();
    tar_of(&changes);
    tar_of(&flatten(std::slice::from_ref(&below), Namespace::Trusted, &Progress::new()).unwrap());
    assert_eq!(before, all());
}
