//! Directories, and what they hold, by handle: the way to read files that somebody hostile writes meanwhile.
//!
//! A path is a [`Dir`] and a name beneath it. Nothing here follows a symbolic link or crosses a mount (`openat2(2)`
//! with `RESOLVE_BENEATH`, `RESOLVE_NO_SYMLINKS`, `RESOLVE_NO_XDEV`, `RESOLVE_NO_MAGICLINKS`), nothing opens what is not
//! a directory or a regular file (a FIFO would block, a device would act), and nothing leaves an access time behind.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::SystemTime;

use rustix::fs::{AtFlags, Mode, OFlags, RawDir, ResolveFlags, SeekFrom, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, OpenTreeFlags};

/// The longest path given to the kernel at once; `PATH_MAX` is 4096 with the final NUL.
const CHUNK: usize = 4000;

const BENEATH: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_XDEV)
    .union(ResolveFlags::NO_MAGICLINKS);

/// An open directory.
#[derive(Debug)]
pub struct Dir(OwnedFd);

/// A file of any type, named but not opened (`O_PATH`): its type is known before anything is done with it.
#[derive(Debug)]
pub struct Node(OwnedFd);

/// The types of file that Linux has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FileType {
    /// `S_IFREG`
    Regular,
    /// `S_IFDIR`
    Directory,
    /// `S_IFLNK`
    Symlink,
    /// `S_IFCHR`
    CharDevice,
    /// `S_IFBLK`
    BlockDevice,
    /// `S_IFIFO`
    Fifo,
    /// `S_IFSOCK`
    Socket,
}

/// Seconds and nanoseconds since the epoch; the seconds may be negative, the nanoseconds always count forward.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Time {
    /// Whole seconds, rounded towards the past.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanoseconds: u32,
}

impl Time {
    /// Now, for comparison with the times of files.
    #[allow(clippy::disallowed_methods, reason = "files know nothing of SOURCE_DATE_EPOCH")]
    pub fn now() -> Time {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Time { seconds: since.as_secs().cast_signed(), nanoseconds: since.subsec_nanos() }
    }
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Device {
    /// The driver.
    pub major: u32,
    /// The driver's instance.
    pub minor: u32,
}

/// What `statx(2)` says of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stat {
    /// The type.
    pub file_type: FileType,
    /// Permission, setuid, setgid and sticky bits: 0 to 0o7777.
    pub mode: u32,
    /// Owner, as the calling process's user namespace sees it.
    pub uid: u32,
    /// Group, likewise.
    pub gid: u32,
    /// Length in bytes.
    pub size: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the content or of the attributes; only the kernel sets it.
    pub ctime: Time,
    /// Inode number, unique on its device.
    pub ino: u64,
    /// The device that holds the file.
    pub device: Device,
    /// The device that a device file stands for.
    pub rdev: Device,
    /// Names that the inode has.
    pub nlink: u32,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// The mount it was reached through; 0 where the kernel (before 5.8) does not tell.
    pub mount_id: u64,
    /// Whether it is the root of a mount.
    pub mount_root: bool,
}

/// A name in a directory, and its type if the file system tells it without being asked for each.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name {
    /// The bytes of the name: no `/`, no NUL, neither `.` nor `..`.
    pub bytes: Vec<u8>,
    /// Whether it may be a character device: the one type whose entries a changeset must know before the others.
    pub maybe_char_device: bool,
    /// Whether it may be a regular file.
    pub maybe_regular: bool,
}

impl Dir {
    /// Open the directory at `path`, following symbolic links: for paths that come from the host, not from a container.
    pub fn open(path: &Path) -> io::Result<Dir> {
        Ok(Dir(open_without_atime(rustix::fs::CWD, path.as_os_str(), OFlags::DIRECTORY, ResolveFlags::empty())?))
    }

    /// Like [`open`](Self::open), and where the kernel allows it through a mount of its own that nobody else sees:
    /// read-only, without device files and access times, and without whatever is mounted beneath `path`.
    ///
    /// For an overlay this is the container's own overlay without its volumes: a clone of the mount (`open_tree(2)`)
    /// shares the superblock, where a second overlay on a live upper directory would be undefined.
    /// Falls back to [`open`](Self::open) without the privilege, or on a mount of another namespace; there, names that
    /// lead across a mount fail with `EXDEV`.
    pub fn open_detached(path: &Path) -> io::Result<Dir> {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let Ok(tree) = rustix::mount::open_tree(rustix::fs::CWD, path, flags) else { return Dir::open(path) };
        let dir = Dir(tree);
        if dir.node()?.stat()?.file_type != FileType::Directory {
            return Err(Errno::NOTDIR.into());
        }
        if set_mount_attributes(
            dir.0.as_fd(),
            MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOATIME,
        )
        .is_err()
        {
            return Dir::open(path);
        }
        Ok(dir)
    }

    /// Whether a file here, whatever is done to it from now on, gets another change time. On a file system in memory a
    /// store to a mapped file leaves none; of others that are not named here it is not known.
    pub fn leaves_traces(&self) -> io::Result<bool> {
        // ext2 to ext4, XFS, btrfs, f2fs: statfs(2).
        const KNOWN: [u32; 4] = [0xef53, 0x5846_5342, 0x9123_683e, 0xf2f5_2010];
        let magic = rustix::fs::fstatfs(&self.0)?.f_type;
        Ok(KNOWN.iter().any(|known| i64::from(*known) == magic & 0xffff_ffff))
    }

    /// Whether the file system keeps its files in memory only: it lets a page that was read be stored to unnoticed.
    pub fn is_memory(&self) -> io::Result<bool> {
        // tmpfs, ramfs, hugetlbfs: statfs(2).
        const MEMORY: [u32; 3] = [0x0102_1994, 0x8584_58f6, 0x9584_58f6];
        let magic = rustix::fs::fstatfs(&self.0)?.f_type;
        Ok(MEMORY.iter().any(|known| i64::from(*known) == magic & 0xffff_ffff))
    }

    /// Open the directory `name`.
    pub fn open_dir(&self, name: &[u8]) -> io::Result<Dir> {
        Ok(Dir(open_without_atime(&self.0, OsStr::from_bytes(name), OFlags::DIRECTORY | OFlags::NOFOLLOW, BENEATH)?))
    }

    /// Open the directory at `path` beneath this one: names joined by `/`, of any length; empty for this one again.
    pub fn open_beneath(&self, path: &[u8]) -> io::Result<Dir> {
        let (first, mut rest) = chunk(path);
        let mut dir = self.open_dir(if first.is_empty() { b"." } else { first })?;
        while !rest.is_empty() {
            let (next, after) = chunk(rest);
            dir = dir.open_dir(next)?;
            rest = after;
        }
        Ok(dir)
    }

    /// The names in the directory, in the order the kernel has them.
    pub fn entries(&self) -> io::Result<Vec<Name>> {
        let dir = self.open_dir(b".")?; // a position of its own
        let mut buffer = Vec::with_capacity(64 << 10);
        let mut raw = RawDir::new(&dir.0, buffer.spare_capacity_mut());
        let mut names = Vec::new();
        while let Some(entry) = raw.next() {
            let entry = entry?;
            let bytes = entry.file_name().to_bytes();
            if bytes != b"." && bytes != b".." {
                let kind = entry.file_type();
                let unknown = kind == rustix::fs::FileType::Unknown;
                names.push(Name {
                    bytes: bytes.to_vec(),
                    maybe_char_device: unknown || kind == rustix::fs::FileType::CharacterDevice,
                    maybe_regular: unknown || kind == rustix::fs::FileType::RegularFile,
                });
            }
        }
        Ok(names)
    }

    /// The file `name`, whatever its type, without opening it.
    pub fn open_node(&self, name: &[u8]) -> io::Result<Node> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(Node(open_beneath(&self.0, OsStr::from_bytes(name), flags, BENEATH)?))
    }

    /// This directory as a [`Node`].
    pub fn node(&self) -> io::Result<Node> {
        self.open_node(b".")
    }

    /// What the kernel says of `name`, not of what a symbolic link of that name points to.
    pub fn stat(&self, name: &[u8]) -> io::Result<Stat> {
        stat(self.0.as_fd(), name, AtFlags::SYMLINK_NOFOLLOW)
    }

    /// The target of the symbolic link `name`.
    pub fn read_link(&self, name: &[u8]) -> io::Result<Vec<u8>> {
        self.open_node(name)?.read_link()
    }

    /// Open the regular file `name` for reading; `InvalidInput` for any other type, which is not opened.
    pub fn open_file(&self, name: &[u8]) -> io::Result<File> {
        self.open_node(name)?.open_file()
    }
}

impl Node {
    /// What the kernel says of the file.
    pub fn stat(&self) -> io::Result<Stat> {
        stat(self.0.as_fd(), b"", AtFlags::EMPTY_PATH)
    }

    /// The target of a symbolic link.
    pub fn read_link(&self) -> io::Result<Vec<u8>> {
        Ok(rustix::fs::readlinkat(&self.0, c"", Vec::new())?.into_bytes())
    }

    /// Open a regular file for reading; `InvalidInput` for any other type, which is not opened.
    pub fn open_file(&self) -> io::Result<File> {
        if self.stat()?.file_type != FileType::Regular {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // The type of what a descriptor names cannot change, so this opens the very file that was looked at.
        let path = self.proc_path();
        let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
        Ok(File::from(open_without_atime(rustix::fs::CWD, OsStr::new(&path), flags, ResolveFlags::empty())?))
    }

    /// The name under which system calls that take no descriptor reach this very file, a symbolic link included.
    pub(crate) fn proc_path(&self) -> String {
        format!("/proc/self/fd/{}", self.0.as_raw_fd())
    }
}

/// What the kernel says of an open file.
pub fn stat_file(file: &File) -> io::Result<Stat> {
    stat(file.as_fd(), b"", AtFlags::EMPTY_PATH)
}

/// The next stretch of `file` at or after `offset` that is not a hole (`SEEK_DATA`), or none up to the end.
/// On a file system that knows no holes all of the file is data.
pub fn next_data(file: &File, offset: u64) -> io::Result<Option<Range<u64>>> {
    match rustix::fs::seek(file, SeekFrom::Data(offset)) {
        Ok(start) => {
            let end = rustix::fs::seek(file, SeekFrom::Hole(start)).unwrap_or(u64::MAX);
            // A file that changes between the two calls may report an end before the start.
            Ok(Some(start..end.max(start + 1)))
        }
        Err(Errno::NXIO) => Ok(None),
        Err(Errno::INVAL | Errno::OPNOTSUPP) => Ok(Some(offset..u64::MAX)),
        Err(error) => Err(error.into()),
    }
}

/// Whether `error` says that a name no longer leads to what it led to when it was listed: it was removed or replaced.
pub fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::STALE))
}

/// Whether `error` says that something is mounted there.
pub fn is_mount(error: &io::Error) -> bool {
    Errno::from_io_error(error) == Some(Errno::XDEV)
}

/// Splits after the last whole name that fits into one call.
fn chunk(path: &[u8]) -> (&[u8], &[u8]) {
    if path.len() <= CHUNK {
        return (path, b"");
    }
    match path[..=CHUNK].iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (path, b""), // one name of more than 4000 bytes: the kernel says ENAMETOOLONG
    }
}

fn open_beneath(dir: impl AsFd, path: &OsStr, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let dir = dir.as_fd();
    loop {
        match rustix::fs::openat2(dir, path, flags, Mode::empty(), resolve) {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Opens for reading with `O_NOATIME`, or without where the file's owner is not ours to act for (`EPERM`).
fn open_without_atime(dir: impl AsFd, path: &OsStr, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
    let dir = dir.as_fd();
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC;
    match open_beneath(dir, path, flags | OFlags::NOATIME, resolve) {
        Err(Errno::PERM) => open_beneath(dir, path, flags, resolve),
        done => done,
    }
}

fn stat(dir: BorrowedFd<'_>, name: &[u8], flags: AtFlags) -> io::Result<Stat> {
    let flags = flags | AtFlags::NO_AUTOMOUNT;
    let raw = rustix::fs::statx(dir, OsStr::from_bytes(name), flags, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)?;
    let mode = u32::from(raw.stx_mode);
    let file_type = match rustix::fs::FileType::from_raw_mode(mode) {
        rustix::fs::FileType::RegularFile => FileType::Regular,
        rustix::fs::FileType::Directory => FileType::Directory,
        rustix::fs::FileType::Symlink => FileType::Symlink,
        rustix::fs::FileType::CharacterDevice => FileType::CharDevice,
        rustix::fs::FileType::BlockDevice => FileType::BlockDevice,
        rustix::fs::FileType::Fifo => FileType::Fifo,
        rustix::fs::FileType::Socket => FileType::Socket,
        rustix::fs::FileType::Unknown => return Err(io::Error::new(io::ErrorKind::Unsupported, "unknown file type")),
    };
    let time = |raw: rustix::fs::StatxTimestamp| Time { seconds: raw.tv_sec, nanoseconds: raw.tv_nsec };
    let told = StatxFlags::from_bits_retain(raw.stx_mask).contains(StatxFlags::MNT_ID);
    Ok(Stat {
        file_type,
        mode: mode & 0o7777,
        uid: raw.stx_uid,
        gid: raw.stx_gid,
        size: raw.stx_size,
        mtime: time(raw.stx_mtime),
        ctime: time(raw.stx_ctime),
        ino: raw.stx_ino,
        device: Device { major: raw.stx_dev_major, minor: raw.stx_dev_minor },
        rdev: Device { major: raw.stx_rdev_major, minor: raw.stx_rdev_minor },
        nlink: raw.stx_nlink,
        blocks: raw.stx_blocks,
        mount_id: if told { raw.stx_mnt_id } else { 0 },
        mount_root: raw.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
    })
}

/// `mount_setattr(2)`, which neither nix nor rustix has.
#[allow(unsafe_code)]
fn set_mount_attributes(mount: BorrowedFd<'_>, attributes: MountAttrFlags) -> io::Result<()> {
    let wanted = libc::mount_attr {
        attr_set: u64::from(attributes.bits()),
        // The access-time mode is a field of its own within the flags, cleared before it is set.
        attr_clr: u64::from(MountAttrFlags::MOUNT_ATTR__ATIME.bits()),
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the descriptor is open for as long as it is borrowed, the path is a NUL-terminated constant, and the
    // kernel reads exactly the given size from `wanted` and writes nothing.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const wanted,
            size_of::<libc::mount_attr>(),
        )
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, symlink};

    #[test]
    fn a_link_is_never_followed_and_only_regular_files_open() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(temp.path().join("a/b/c")).unwrap();
        std::fs::write(temp.path().join("a/file"), b"x").unwrap();
        symlink("/etc", temp.path().join("a/out")).unwrap();
        symlink("b", temp.path().join("a/in")).unwrap();
        nix::unistd::mkfifo(&temp.path().join("a/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        for dir in [Dir::open(temp.path()).unwrap(), Dir::open_detached(temp.path()).unwrap()] {
            let a = dir.open_dir(b"a").unwrap();
            assert!(a.open_dir(b"b").is_ok());
            for refused in [&b"out"[..], b"in", b"..", b"file"] {
                assert!(a.open_dir(refused).is_err(), "{refused:?}");
            }
            assert!(dir.open_beneath(b"a/out/cron.d").is_err());
            assert!(dir.open_beneath(b"a/../..").is_err());
            assert!(dir.open_beneath(b"a/b/c").is_ok() && dir.open_beneath(b"a/in/c").is_err());
            assert_eq!(a.read_link(b"out").unwrap(), b"/etc");
            assert_eq!(a.open_file(b"fifo").unwrap_err().kind(), io::ErrorKind::InvalidInput);
            assert!(a.open_file(b"out").is_err());
            assert!(a.open_file(b"file").is_ok());
            let mut names: Vec<_> = a.entries().unwrap().into_iter().map(|name| name.bytes).collect();
            names.sort();
            assert_eq!(names, [&b"b"[..], b"fifo", b"file", b"in", b"out"]);
        }
    }

    #[test]
    fn reading_leaves_no_access_time() {
        let temp = tempfile::tempdir().unwrap();
        let (file, link) = (temp.path().join("file"), temp.path().join("link"));
        std::fs::write(&file, b"x").unwrap();
        symlink("target", &link).unwrap();
        let old = filetime(1_000_000_000);
        for path in [&file, &link, &temp.path().to_path_buf()] {
            nix::sys::stat::utimensat(
                nix::fcntl::AT_FDCWD,
                path,
                &old,
                &old,
                nix::sys::stat::UtimensatFlags::NoFollowSymlink,
            )
            .unwrap();
        }
        let dir = Dir::open_detached(temp.path()).unwrap();
        dir.entries().unwrap();
        dir.read_link(b"link").unwrap();
        io::copy(&mut dir.open_file(b"file").unwrap(), &mut io::sink()).unwrap();
        for path in [&file, &link, &temp.path().to_path_buf()] {
            assert_eq!(std::fs::symlink_metadata(path).unwrap().atime(), 1_000_000_000, "{}", path.display());
        }
    }

    fn filetime(seconds: i64) -> nix::sys::time::TimeSpec {
        nix::sys::time::TimeSpec::new(seconds, 0)
    }

    #[test]
    fn a_path_longer_than_the_kernel_takes_is_opened_in_parts() {
        let temp = tempfile::tempdir().unwrap();
        let name = "d".repeat(200);
        let (mut dir, mut path) = (Dir::open(temp.path()).unwrap(), Vec::new());
        for _ in 0..100 {
            rustix::fs::mkdirat(&dir.0, &*name, Mode::RWXU).unwrap();
            dir = dir.open_dir(name.as_bytes()).unwrap();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(name.as_bytes());
        }
        let deepest = dir.node().unwrap().stat().unwrap().ino;
        let again = Dir::open(temp.path()).unwrap().open_beneath(&path).unwrap();
        assert_eq!(again.node().unwrap().stat().unwrap().ino, deepest);
    }

    #[test]
    fn holes_are_found_without_reading() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("sparse");
        let file = File::create(&path).unwrap();
        file.set_len(64 << 20).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", 32 << 20).unwrap();
        let file = File::open(&path).unwrap();
        let data = next_data(&file, 0).unwrap().unwrap();
        assert_eq!(data.start, 32 << 20);
        assert!(data.end <= (32 << 20) + (1 << 20));
        assert_eq!(next_data(&file, data.end).unwrap(), None);
    }
}
