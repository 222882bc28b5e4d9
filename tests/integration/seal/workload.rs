//! What a container's processes do while it is committed: this test binary, started once more in the container's cgroup.

use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{XattrFlags, lsetxattr};

use crate::harness::rootfs::rename;

/// Files that carry a number each, in the order in which they get it.
pub(crate) const STAMPED: usize = 64;

/// The shell command that starts the workload `what` on the tree `root`.
pub(crate) fn command(what: &str, root: &Path) -> String {
    let program = std::env::current_exe().unwrap();
    format!(
        "SNAPFS_WORKLOAD={what} SNAPFS_WORKLOAD_ROOT='{}' exec '{}' --exact seal::workload::runs --ignored >/dev/null 2>&1",
        root.display(),
        program.display()
    )
}

#[test]
#[ignore = "the other side of the tests here"]
fn runs() {
    let Ok(what) = std::env::var("SNAPFS_WORKLOAD") else { return };
    let root = PathBuf::from(std::env::var_os("SNAPFS_WORKLOAD_ROOT").unwrap());
    fs::write(root.join("ready"), "").unwrap();
    match &*what {
        "idle" => loop {
            thread::sleep(Duration::from_secs(60));
        },
        "append" => append(&root),
        "stamp" => stamp(&root),
        "map" => map(&root),
        "remap" => remap(&root),
        "churn" => churn(&root),
        "change" => {
            for n in 0.. {
                step(&root, n);
                thread::sleep(Duration::from_micros(300));
            }
        }
        "small" => loop {
            fs::write(root.join("d0/f0"), "changed").unwrap();
            thread::sleep(Duration::from_millis(20));
        },
        other => panic!("no workload {other}"),
    }
}

/// 20 MB/s to one file that stays open.
fn append(root: &Path) {
    let mut file = File::options().append(true).create(true).open(root.join("log")).unwrap();
    let chunk = vec![b'x'; 200_000];
    let begin = Instant::now();
    for n in 1.. {
        file.write_all(&chunk).unwrap();
        thread::sleep((begin + Duration::from_millis(10) * n).saturating_duration_since(Instant::now()));
    }
}

/// One number into all files, in their order; then the next.
fn stamp(root: &Path) {
    let files: Vec<File> = (0..STAMPED).map(|n| File::create(root.join(format!("stamp{n:02}"))).unwrap()).collect();
    for number in 1_u64.. {
        // Not always through the same descriptor, and not always at once.
        for (n, file) in files.iter().enumerate() {
            if n % 2 == 0 {
                file.write_all_at(&number.to_le_bytes(), 0).unwrap();
            } else {
                File::options()
                    .write(true)
                    .open(root.join(format!("stamp{n:02}")))
                    .unwrap()
                    .write_all_at(&number.to_le_bytes(), 0)
                    .unwrap();
            }
        }
    }
}

/// The same through a mapping, which nobody ever writes back.
fn map(root: &Path) {
    const PAGE: usize = 4096;
    let file = File::options().read(true).write(true).create(true).truncate(false).open(root.join("mapped")).unwrap();
    file.set_len((STAMPED * PAGE) as u64).unwrap();
    // SAFETY: a new mapping, of a file that nobody truncates.
    #[allow(unsafe_code)]
    let begin = unsafe {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        libc::mmap(std::ptr::null_mut(), STAMPED * PAGE, access, libc::MAP_SHARED, file.as_raw_fd(), 0)
    };
    assert_ne!(begin, libc::MAP_FAILED);
    let begin = begin.cast::<u8>();
    drop(file);
    for number in 1_u64.. {
        for n in 0..STAMPED {
            // SAFETY: within the mapping, aligned, and the only access to it.
            #[allow(unsafe_code)]
            unsafe {
                begin.add(n * PAGE).cast::<u64>().write_volatile(number);
            }
        }
    }
}

/// Of the files of [`remap`]: half of them come first in the tree, and half last.
pub(crate) fn remapped(n: usize) -> String {
    format!("{}stamp{n:02}", if n.is_multiple_of(2) { 'a' } else { 'z' })
}

/// One number into all files, in their order; each is mapped for that only.
fn remap(root: &Path) {
    let paths: Vec<PathBuf> = (0..STAMPED).map(|n| root.join(remapped(n))).collect();
    paths.iter().for_each(|path| File::create(path).unwrap().set_len(8).unwrap());
    for number in 1_u64.. {
        for path in &paths {
            let file = File::options().read(true).write(true).open(path).unwrap();
            // SAFETY: a new mapping, of a file that nobody truncates, and the only access to it.
            #[allow(unsafe_code)]
            unsafe {
                let access = libc::PROT_READ | libc::PROT_WRITE;
                let begin = libc::mmap(std::ptr::null_mut(), 8, access, libc::MAP_SHARED, file.as_raw_fd(), 0);
                assert_ne!(begin, libc::MAP_FAILED);
                drop(file);
                // On a file system that wants to hear of no store, the page is mapped to be written to by the load already.
                assert!(begin.cast::<u64>().read_volatile() < number);
                begin.cast::<u64>().write_volatile(number);
                libc::munmap(begin, 8);
            }
        }
    }
}

/// Many files, each opened, written and closed.
fn churn(root: &Path) {
    fs::create_dir_all(root.join("churn")).unwrap();
    for n in 0_u64.. {
        fs::write(root.join(format!("churn/{}", n % 500)), n.to_string()).unwrap();
        thread::sleep(Duration::from_micros(200));
    }
}

/// A number that looks random and is always the same.
fn mix(n: u64) -> u64 {
    let mut x = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x5851_f42d_4c95_7f2d;
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The step `n` of a history in which every step is one change of one thing, or none. Then it is written down how far
/// the history has come.
pub(crate) fn step(root: &Path, n: u64) {
    let seed = mix(n);
    let path = |bits: u64| match bits % 3 {
        0 => root.join(format!("t{}", (bits >> 2) % 12)),
        1 => root.join(format!("d{}/t{}", (bits >> 2) % 4, (bits >> 4) % 12)),
        _ => root.join(format!("lower/t{}", (bits >> 2) % 12)),
    };
    let (one, other) = (path(seed >> 8), path(seed >> 32));
    // What cannot be done is not done, the same each time.
    let _ = match seed % 12 {
        0 | 1 => File::options().create_new(true).write(true).open(&one).map(drop),
        2 | 3 => {
            File::options().write(true).open(&one).and_then(|file| file.write_all_at(&n.to_le_bytes(), seed >> 50))
        }
        4 => fs::remove_file(&one),
        5 => rename(&one, &other),
        6 => fs::create_dir(&one),
        7 => fs::remove_dir(&one),
        8 => fs::hard_link(&one, &other),
        9 if one.symlink_metadata().is_ok_and(|metadata| !metadata.is_symlink()) => {
            fs::set_permissions(&one, fs::Permissions::from_mode(0o400 + (seed >> 40) as u32 % 0o400))
        }
        10 if one.symlink_metadata().is_ok_and(|metadata| !metadata.is_symlink()) => {
            lsetxattr(&one, "user.n", n.to_string().as_bytes(), XattrFlags::empty()).map_err(Into::into)
        }
        11 => symlink(std::ffi::OsStr::from_bytes(n.to_string().as_bytes()), &one),
        _ => Ok(()),
    };
    let counter = File::options().write(true).create(true).truncate(false).open(root.join("counter")).unwrap();
    counter.write_all_at(&(n + 1).to_le_bytes(), 0).unwrap();
}

/// What a history begins with, below.
pub(crate) fn begin(lower: &Path) {
    fs::create_dir_all(lower.join("lower")).unwrap();
    for n in 0..12 {
        fs::write(lower.join(format!("lower/t{n}")), format!("from below {n}")).unwrap();
        fs::write(lower.join(format!("t{n}")), format!("from below {n}")).unwrap();
    }
    for n in 0..4 {
        fs::create_dir_all(lower.join(format!("d{n}"))).unwrap();
        fs::write(lower.join(format!("d{n}/t1")), "from below").unwrap();
    }
}
