//! Root file systems as values: what to make ([`Item`]), what is there ([`facts`]), and an overlay to change it through.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::AT_FDCWD;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, UtimensatFlags, makedev, mknod, utimensat};
use nix::sys::time::TimeSpec;
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};

/// One thing to make, and its attributes.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    path: Vec<u8>,
    what: What,
    mode: Option<u32>,
    owner: Option<(u32, u32)>,
    mtime: Option<(i64, i64)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

#[derive(Debug, Clone)]
enum What {
    Existing,
    Directory,
    File(Vec<u8>),
    Sparse(u64, Vec<(u64, Vec<u8>)>),
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    Node(SFlag, u32, u32),
    Absent,
}

fn item(path: impl AsRef<[u8]>, what: What) -> Item {
    Item { path: path.as_ref().to_vec(), what, mode: None, owner: None, mtime: None, xattrs: Vec::new() }
}

/// What is there already, to set its attributes.
pub(crate) fn at(path: impl AsRef<[u8]>) -> Item {
    item(path, What::Existing)
}

/// A directory, with its parents.
pub(crate) fn dir(path: impl AsRef<[u8]>) -> Item {
    item(path, What::Directory)
}

/// A regular file, in place of whatever was there.
pub(crate) fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Item {
    item(path, What::File(content.as_ref().to_vec()))
}

/// A file of `size` bytes that has only these pieces of data.
pub(crate) fn sparse(path: impl AsRef<[u8]>, size: u64, data: &[(u64, &[u8])]) -> Item {
    item(path, What::Sparse(size, data.iter().map(|(at, bytes)| (*at, bytes.to_vec())).collect()))
}

/// A symbolic link.
pub(crate) fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Item {
    item(path, What::Symlink(target.as_ref().to_vec()))
}

/// One more name of `to`.
pub(crate) fn hardlink(path: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Item {
    item(path, What::HardLink(to.as_ref().to_vec()))
}

/// A FIFO.
pub(crate) fn fifo(path: impl AsRef<[u8]>) -> Item {
    item(path, What::Node(SFlag::S_IFIFO, 0, 0))
}

/// A socket file that nobody listens on.
pub(crate) fn socket(path: impl AsRef<[u8]>) -> Item {
    item(path, What::Node(SFlag::S_IFSOCK, 0, 0))
}

/// A character device.
pub(crate) fn char_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Item {
    item(path, What::Node(SFlag::S_IFCHR, major, minor))
}

/// A block device.
pub(crate) fn block_device(path: impl AsRef<[u8]>, major: u32, minor: u32) -> Item {
    item(path, What::Node(SFlag::S_IFBLK, major, minor))
}

/// Overlayfs's mark of a deleted file, in a layer made by hand.
pub(crate) fn whiteout(path: impl AsRef<[u8]>) -> Item {
    char_device(path, 0, 0)
}

/// A directory that hides what is below, in a layer made by hand.
pub(crate) fn opaque(path: impl AsRef<[u8]>) -> Item {
    dir(path).xattr("trusted.overlay.opaque", "y")
}

/// Nothing: removes whatever is there.
pub(crate) fn absent(path: impl AsRef<[u8]>) -> Item {
    item(path, What::Absent)
}

impl Item {
    pub(crate) fn mode(mut self, mode: u32) -> Item {
        self.mode = Some(mode);
        self
    }

    pub(crate) fn owner(mut self, uid: u32, gid: u32) -> Item {
        self.owner = Some((uid, gid));
        self
    }

    pub(crate) fn mtime(mut self, seconds: i64, nanoseconds: i64) -> Item {
        self.mtime = Some((seconds, nanoseconds));
        self
    }

    pub(crate) fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Item {
        self.xattrs.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
}

/// `path` beneath `root`.
pub(crate) fn beneath(root: &Path, path: &[u8]) -> PathBuf {
    if path.is_empty() { root.to_path_buf() } else { root.join(OsStr::from_bytes(path)) }
}

/// Removes whatever is at `path`.
pub(crate) fn remove(path: &Path) {
    if let Ok(metadata) = fs::symlink_metadata(path) {
        if metadata.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }
}

/// Renames within the test's own tree.
#[allow(clippy::disallowed_methods, reason = "the rule is about publishing in the store")]
pub(crate) fn rename(from: impl AsRef<Path>, to: impl AsRef<Path>) -> std::io::Result<()> {
    fs::rename(from, to)
}

/// Makes `items` beneath `root`, in order; times come last, children before parents.
pub(crate) fn make(root: &Path, items: &[Item]) {
    for item in items {
        let path = beneath(root, &item.path);
        if !matches!(item.what, What::Existing | What::Directory) {
            remove(&path);
        }
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).unwrap();
        }
        match &item.what {
            What::Existing | What::Absent => {}
            What::Directory => {
                if fs::symlink_metadata(&path).is_ok_and(|metadata| !metadata.is_dir()) {
                    remove(&path);
                }
                fs::create_dir_all(&path).unwrap();
            }
            What::File(content) => fs::write(&path, content).unwrap(),
            What::Sparse(size, data) => {
                let file = fs::File::create(&path).unwrap();
                file.set_len(*size).unwrap();
                for (at, bytes) in data {
                    file.write_all_at(bytes, *at).unwrap();
                }
            }
            What::Symlink(target) => std::os::unix::fs::symlink(OsStr::from_bytes(target), &path).unwrap(),
            What::HardLink(to) => fs::hard_link(beneath(root, to), &path).unwrap(),
            What::Node(kind, major, minor) => {
                mknod(&path, *kind, Mode::from_bits_truncate(0o644), makedev((*major).into(), (*minor).into()))
                    .unwrap();
            }
        }
        if let Some((uid, gid)) = item.owner {
            std::os::unix::fs::lchown(&path, Some(uid), Some(gid)).unwrap();
        }
        if let Some(mode) = item.mode {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        for (name, value) in &item.xattrs {
            lsetxattr(&path, OsStr::from_bytes(name), value, XattrFlags::empty()).unwrap();
        }
    }
    for item in items.iter().rev() {
        if let Some((seconds, nanoseconds)) = item.mtime {
            set_mtime(&beneath(root, &item.path), seconds, nanoseconds);
        }
    }
}

/// Sets the time of last change of `path`, and leaves its access time.
pub(crate) fn set_mtime(path: &Path, seconds: i64, nanoseconds: i64) {
    let mtime = TimeSpec::new(seconds, nanoseconds);
    utimensat(AT_FDCWD, path, &TimeSpec::UTIME_OMIT, &mtime, UtimensatFlags::NoFollowSymlink).unwrap();
}

/// An access control list as `system.posix_acl_access` stores it: (tag, permissions, id), id !0 where it means nothing.
pub(crate) fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut bytes = 2u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// All that must survive of one path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Fact {
    pub(crate) kind: char,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: (i64, i64),
    pub(crate) rdev: u64,
    /// Content or target.
    pub(crate) content: Vec<u8>,
    /// The first path of its hard links, if it has others.
    pub(crate) link: Option<String>,
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

/// A tree by its paths, as Rust would print them.
pub(crate) type Facts = BTreeMap<String, Fact>;

/// What is beneath `root`, itself included, as somebody sees it who looks through the file system. Sockets are left out,
/// and so are the attributes that no layer is meant to hold.
pub(crate) fn facts(root: &Path) -> Facts {
    let mut facts = Facts::new();
    let mut groups: HashMap<(u64, u64), Vec<String>> = HashMap::new();
    let mut waiting = vec![Vec::new()];
    while let Some(relative) = waiting.pop() {
        let path = beneath(root, &relative);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let kind = metadata.file_type();
        if kind.is_socket() {
            continue;
        }
        let name = relative.escape_ascii().to_string();
        let (letter, content) = match () {
            () if kind.is_dir() => {
                for entry in fs::read_dir(&path).unwrap() {
                    let child = entry.unwrap().file_name();
                    let slash: &[u8] = if relative.is_empty() { b"" } else { b"/" };
                    waiting.push([&relative[..], slash, child.as_bytes()].concat());
                }
                ('d', Vec::new())
            }
            () if kind.is_symlink() => ('l', fs::read_link(&path).unwrap().as_os_str().as_bytes().to_vec()),
            () if kind.is_file() => ('f', fs::read(&path).unwrap()),
            () if kind.is_fifo() => ('p', Vec::new()),
            () if kind.is_char_device() => ('c', Vec::new()),
            () => ('b', Vec::new()),
        };
        if !kind.is_dir() {
            groups.entry((metadata.dev(), metadata.ino())).or_default().push(name.clone());
        }
        let fact = Fact {
            kind: letter,
            mode: metadata.mode() & 0o7777,
            uid: metadata.uid(),
            gid: metadata.gid(),
            mtime: (metadata.mtime(), metadata.mtime_nsec()),
            rdev: if matches!(letter, 'c' | 'b') { metadata.rdev() } else { 0 },
            content,
            link: None,
            xattrs: xattrs(&path),
        };
        facts.insert(name, fact);
    }
    for mut names in groups.into_values().filter(|names| names.len() > 1) {
        names.sort();
        for name in &names {
            facts.get_mut(name).unwrap().link = Some(names[0].clone());
        }
    }
    facts
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut list = vec![0; 64 << 10];
    let length = llistxattr(path, &mut list[..]).unwrap();
    let mut found = Vec::new();
    for name in list[..length].split(|&byte| byte == 0).filter(|name| !name.is_empty()) {
        if name.starts_with(b"trusted.") || name == b"security.selinux" {
            continue;
        }
        let mut value = vec![0; 64 << 10];
        let length = lgetxattr(path, OsStr::from_bytes(name), &mut value[..]).unwrap();
        value.truncate(length);
        found.push((name.escape_ascii().to_string(), value));
    }
    found.sort();
    found
}

/// Says how two trees differ, one line a difference; nothing if they do not.
pub(crate) fn differences(expected: &Facts, found: &Facts) -> Vec<String> {
    let mut lines = Vec::new();
    for (path, fact) in expected {
        match found.get(path) {
            None => lines.push(format!("/{path}: missing")),
            Some(other) if other != fact => {
                lines.push(format!("/{path}:\n  expected {}\n  found    {}", brief(fact), brief(other)))
            }
            Some(_) => {}
        }
    }
    lines
        .extend(found.keys().filter(|path| !expected.contains_key(*path)).map(|path| format!("/{path}: not expected")));
    lines
}

fn brief(fact: &Fact) -> String {
    let mut short = fact.clone();
    let length = short.content.len();
    short.content.truncate(40);
    format!("{short:?} ({length} bytes)")
}

/// A mounted overlay in a directory of its own, gone when dropped.
#[derive(Debug)]
pub(crate) struct Overlay {
    /// Top first.
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) upper: PathBuf,
    pub(crate) merged: PathBuf,
}

impl Overlay {
    /// Mounts `upper` over `lower` (top first), making what is missing in `dir`.
    pub(crate) fn mount(dir: &Path, lower: &[PathBuf], upper: PathBuf, options: &str) -> Overlay {
        let (work, merged) = (dir.join("work"), dir.join("merged"));
        for path in [&upper, &work, &merged] {
            fs::create_dir_all(path).unwrap();
        }
        let joined: Vec<_> = lower.iter().map(|path| path.to_str().unwrap()).collect();
        let mut data = format!("lowerdir={},upperdir={},workdir={}", joined.join(":"), upper.display(), work.display());
        if !options.is_empty() {
            data = format!("{data},{options}");
        }
        for attempt in 0.. {
            match mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(&*data)) {
                Ok(()) => break,
                // A directory that was in another overlay is free once the last descriptor is closed: a child that another
                // test starts has them all until it executes its program.
                Err(nix::errno::Errno::EBUSY) if attempt < 500 => std::thread::sleep(Duration::from_millis(10)),
                Err(error) => panic!("mount -t overlay -o {data}: {error}"),
            }
        }
        Overlay { lower: lower.to_vec(), upper, merged }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        let _ = umount2(&self.merged, MntFlags::MNT_DETACH);
    }
}

/// A directory for a test, on a file system that an overlay's upper directory may lie on.
pub(crate) fn scratch() -> tempfile::TempDir {
    let builder = tempfile::Builder::new();
    if Path::new("/scratch").is_dir() && std::env::var_os("SNAPFS_LAB").is_some() {
        builder.tempdir_in("/scratch")
    } else {
        builder.tempdir()
    }
    .unwrap()
}
