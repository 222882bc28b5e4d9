//! Mounting, without ever asking a file system that may be dead or our own.
//!
//! What is mounted where is read from mountinfo, and a directory is named through an `O_PATH` descriptor: neither sends
//! a request to the file system mounted there.

use std::ffi::{CString, OsStr, OsString};
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::fs::{AtFlags, CWD, StatxFlags};
use rustix::mount::{MountFlags, UnmountFlags};

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number for this mount; reused after it is gone.
    pub id: u64,
    /// `major:minor` of the file system.
    pub device: String,
    /// Where it is mounted.
    pub point: PathBuf,
    /// The type, with the subtype: `fuse.snapfs`.
    pub fs_type: String,
    /// What it says it was mounted from.
    pub source: OsString,
}

/// The mounts of this process's namespace; of several on one directory the topmost comes last.
pub fn mounts() -> io::Result<Vec<Mount>> {
    Ok(parse(&fs::read("/proc/self/mountinfo")?))
}

/// proc(5): `ID PARENT MAJOR:MINOR ROOT POINT OPTIONS [TAG…] - TYPE SOURCE SUPER`, blanks and backslashes in octal.
fn parse(mountinfo: &[u8]) -> Vec<Mount> {
    let line = |line: &[u8]| {
        let fields: Vec<&[u8]> = line.split(|byte| *byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        let text = |at: usize| fields.get(at).and_then(|field| str::from_utf8(field).ok());
        Some(Mount {
            id: text(0)?.parse().ok()?,
            device: text(2)?.to_owned(),
            point: PathBuf::from(unescape(fields.get(4)?)),
            fs_type: text(dash + 1)?.to_owned(),
            source: unescape(fields.get(dash + 2)?),
        })
    };
    mountinfo.split(|byte| *byte == b'\n').filter_map(line).collect()
}

fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        let escaped = match rest {
            [b'\\', a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &rest[4..] } else { tail };
    }
    OsString::from_vec(bytes)
}

/// A directory and the mount it lies on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Absolute, without symbolic links.
    pub path: PathBuf,
    /// The mount whose root the directory is, if it is one.
    pub mounted: Option<Mount>,
}

/// Find out where `dir` is. A dead or stuck file system on the way there is felt, one mounted at `dir` itself is not.
pub fn locate(dir: &Path) -> io::Result<Place> {
    let handle = OpenOptions::new().read(true).custom_flags(libc::O_PATH | libc::O_DIRECTORY).open(dir)?;
    let fd = handle.as_raw_fd();
    let path = fs::read_link(format!("/proc/self/fd/{fd}"))?;
    let fdinfo = fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
    let id = fdinfo.lines().find_map(|line| line.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    let mounted = mounts()?.into_iter().find(|mount| Some(mount.id) == id && mount.point == path);
    Ok(Place { path, mounted })
}

/// Ask the file system mounted at `path` for a sign of life; a FUSE file system whose daemon died says `ENOTCONN`.
pub fn probe(path: &Path) -> io::Result<()> {
    rustix::fs::statx(CWD, path, AtFlags::STATX_FORCE_SYNC, StatxFlags::BASIC_STATS)?;
    Ok(())
}

/// Whether an error says that a FUSE daemon is gone.
pub fn is_dead(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENOTCONN)
}

/// The value of `call`, or `None` if it takes longer than `limit`: then a thread stays behind until the kernel lets go.
pub fn within<T: Send + 'static>(limit: Duration, call: impl FnOnce() -> T + Send + 'static) -> io::Result<Option<T>> {
    let (sender, receiver) = crossbeam_channel::bounded(1);
    let thread = thread::Builder::new().name("mount probe".into()).spawn(move || {
        let _ = sender.send(call());
    })?;
    let value = receiver.recv_timeout(limit).ok();
    if value.is_some() {
        let _ = thread.join();
    }
    Ok(value)
}

/// What a mount is made with beyond `nosuid,nodev`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// `ro`
    pub read_only: bool,
    /// `noexec`
    pub no_exec: bool,
}

impl Flags {
    fn bits(self) -> MountFlags {
        let mut bits = MountFlags::NOSUID | MountFlags::NODEV;
        bits.set(MountFlags::RDONLY, self.read_only);
        bits.set(MountFlags::NOEXEC, self.no_exec);
        bits
    }
}

/// Mount a FUSE file system of the type `fuse.SUBTYPE` at `dir`, for all users, permissions checked by the kernel.
/// The kernel's `FUSE_INIT` is then waiting to be read from the descriptor returned.
///
/// `max_read` is in bytes. Kernel documentation: filesystems/fuse/fuse.rst, "Mount options".
pub fn mount_fuse(source: &str, subtype: &str, dir: &Path, flags: Flags, max_read: u32) -> io::Result<OwnedFd> {
    let device = File::options().read(true).write(true).open("/dev/fuse")?;
    let data = format!(
        "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other,max_read={max_read}",
        device.as_raw_fd()
    );
    let data = CString::new(data)?;
    rustix::mount::mount(source, dir, format!("fuse.{subtype}"), flags.bits(), data.as_c_str())?;
    Ok(OwnedFd::from(device))
}

/// Change the flags of the mount at `dir`.
pub fn remount(dir: &Path, flags: Flags) -> io::Result<()> {
    Ok(rustix::mount::mount_remount(dir, flags.bits(), "")?)
}

/// Take the topmost mount at `point`, and all mounts below it, out of the tree at once; open files keep it alive.
pub fn detach(point: &Path) -> io::Result<()> {
    Ok(rustix::mount::unmount(point, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW)?)
}

/// Let the kernel read ahead up to `kib` KiB on the file system `device`; FUSE's own negotiation stops at 128.
pub fn raise_read_ahead(device: &str, kib: u32) -> io::Result<()> {
    fs::write(
        Path::new("/sys/class/bdi").join(OsStr::from_bytes(device.as_bytes())).join("read_ahead_kb"),
        kib.to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mountinfo_is_read_by_its_separator() {
        let text = b"36 35 98:0 / /mnt1 rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue\n\
            101 36 0:57 / /a\\040b\\134c rw - fuse.snapfs my\\040source rw,user_id=0\n\
            garbage\n7 1 0:1 / /x rw -\n";
        let mounts = parse(text);
        assert_eq!(mounts.len(), 2);
        assert_eq!((mounts[0].id, mounts[0].fs_type.as_str(), mounts[0].device.as_str()), (36, "ext3", "98:0"));
        assert_eq!(mounts[1].point, Path::new("/a b\\c"));
        assert_eq!(mounts[1].source, "my source");
    }

    #[test]
    fn escapes_that_are_none_stay() {
        assert_eq!(unescape(b"a\\"), "a\\");
        assert_eq!(unescape(b"\\04"), "\\04");
        assert_eq!(unescape(b"\\0408"), " 8");
    }

    #[test]
    fn a_directory_is_located_through_a_symbolic_link() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().canonicalize().unwrap().join("real");
        fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, dir.path().join("link")).unwrap();
        assert_eq!(locate(&dir.path().join("link")).unwrap(), Place { path: real, mounted: None });
        assert_eq!(locate(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(dir.path().join("file"), "").unwrap();
        assert_eq!(locate(&dir.path().join("file")).unwrap_err().kind(), io::ErrorKind::NotADirectory);
        assert_eq!(locate(Path::new("/proc")).unwrap().mounted.unwrap().fs_type, "proc");
    }

    #[test]
    fn what_takes_too_long_is_left_behind() {
        assert_eq!(within(Duration::from_secs(5), || 3).unwrap(), Some(3));
        let (_hold, blocked) = crossbeam_channel::bounded::<()>(0);
        assert!(within(Duration::from_millis(20), move || blocked.recv()).unwrap().is_none());
    }
}
