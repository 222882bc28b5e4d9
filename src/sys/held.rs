//! Which files processes can write to without leaving a trace in the change time: those mapped shared, and those open for
//! direct writing (`/proc/PID/maps`, `map_files`, `fd` and `fdinfo`: proc(5)).
//!
//! A store to a mapped page changes the file's times when the page was clean; a second store does not, and neither does
//! what becomes of the page when it is unmapped. A direct write may reach the file after the call that began it.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use crate::sys::dir::Device;

/// A regular file that a process can write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Held {
    /// The device, as `stat(2)` gives it to the process: for a file of an overlay that is the overlay's.
    pub device: Device,
    /// The inode number, likewise.
    pub ino: u64,
    /// How.
    pub by: By,
}

/// How a process can write to a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum By {
    /// A shared mapping, whatever it may be used for just now: `mprotect(2)` makes it writable, and back.
    Mapping,
    /// A descriptor open for writing with `O_DIRECT`.
    Direct,
    /// Any other descriptor open for writing: `write(2)` leaves its trace.
    Descriptor,
}

/// What the processes `pids` hold now. One that ends meanwhile holds nothing; one that runs may map a file the moment
/// after it was looked at.
///
/// # Errors
/// A process that we may not look at, or a `/proc` that is none.
pub fn held(pids: &[u32]) -> io::Result<Vec<Held>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
    if rustix::fs::fstatfs(&proc)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
        return Err(Errno::NOTSUP.into());
    }
    let mut found = Vec::new();
    for pid in pids {
        match of_process(&proc, *pid, &mut found) {
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn of_process(proc: &OwnedFd, pid: u32, found: &mut Vec<Held>) -> io::Result<()> {
    let process = open(proc, &pid.to_string(), OFlags::DIRECTORY)?;
    let maps = read(&process, "maps")?;
    if !maps.is_empty() {
        mappings(&process, &maps, found)?;
        return descriptors(&process, found);
    }
    // A first thread that has ended has neither, while the others go on.
    for name in names(&open(&process, "task", OFlags::DIRECTORY)?)? {
        let Ok(task) = open(&process, &format!("task/{name}"), OFlags::DIRECTORY) else { continue };
        let maps = read(&task, "maps").unwrap_or_default();
        if !maps.is_empty() {
            // The directory map_files is the process's, and shows nothing here: the numbers in maps must do.
            mappings(&process, &maps, found)?;
            return descriptors(&task, found);
        }
    }
    Ok(())
}

fn mappings(process: &OwnedFd, maps: &[u8], found: &mut Vec<Held>) -> io::Result<()> {
    for line in maps.split(|&byte| byte == b'\n') {
        let mut fields = line.split(|&byte| byte == b' ').filter(|field| !field.is_empty());
        let (Some(range), Some(permissions), Some(_), Some(device), Some(ino)) =
            (fields.next(), fields.next(), fields.next(), fields.next(), fields.next())
        else {
            continue;
        };
        if permissions.get(3) != Some(&b's') || ino == b"0" {
            continue;
        }
        // The kernel gives here the numbers of the file that is mapped, which may be the one below an overlay …
        if let (Some(device), Some(ino)) = (device_of(device), number(ino, 10)) {
            found.push(Held { device, ino, by: By::Mapping });
        }
        // … and there those that the process knows it by.
        let name = [b"map_files/", range].concat();
        match stat(process, &name) {
            Ok(Some((device, ino))) => found.push(Held { device, ino, by: By::Mapping }),
            Err(error) if !is_gone(&error) => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn descriptors(process: &OwnedFd, found: &mut Vec<Held>) -> io::Result<()> {
    for name in names(&open(process, "fd", OFlags::DIRECTORY)?)? {
        let path = format!("fd/{name}");
        // The link's own permissions tell how the file is open.
        let link = match rustix::fs::statat(process, &path, AtFlags::SYMLINK_NOFOLLOW) {
            Err(errno) if is_gone(&errno.into()) => continue,
            done => done?,
        };
        if link.st_mode & 0o200 == 0 {
            continue;
        }
        let (device, ino) = match stat(process, path.as_bytes()) {
            Ok(Some(numbers)) => numbers,
            Ok(None) => continue,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        let by = match read(process, &format!("fdinfo/{name}")) {
            Ok(text) if flags(&text) & u64::from(OFlags::DIRECT.bits()) != 0 => By::Direct,
            Ok(_) => By::Descriptor,
            Err(error) if is_gone(&error) => continue,
            Err(error) => return Err(error),
        };
        found.push(Held { device, ino, by });
    }
    Ok(())
}

/// Device and inode of the regular file that a magic link leads to; none if it is of another type.
///
/// As far as the kernel knows them: the file may be on a server that does not answer, or on a FUSE file system whose
/// process is itself frozen while this is asked.
fn stat(directory: &OwnedFd, name: &[u8]) -> io::Result<Option<(Device, u64)>> {
    let wanted = StatxFlags::TYPE | StatxFlags::INO;
    let stat = rustix::fs::statx(directory, name, AtFlags::STATX_DONT_SYNC, wanted)?;
    if FileType::from_raw_mode(stat.stx_mode.into()) != FileType::RegularFile {
        return Ok(None);
    }
    Ok(Some((Device { major: stat.stx_dev_major, minor: stat.stx_dev_minor }, stat.stx_ino)))
}

fn open(directory: &OwnedFd, name: &str, flags: OFlags) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(directory, name, flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?)
}

fn read(directory: &OwnedFd, name: &str) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::from(open(directory, name, OFlags::empty())?).read_to_end(&mut text)?;
    Ok(text)
}

fn names(directory: &OwnedFd) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            names.push(name);
        }
    }
    Ok(names)
}

/// The line `flags:` of a descriptor's `fdinfo`, which is octal.
fn flags(text: &[u8]) -> u64 {
    let line = text.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(b"flags:"));
    line.and_then(|digits| number(digits.trim_ascii(), 8)).unwrap_or(0)
}

fn device_of(text: &[u8]) -> Option<Device> {
    let colon = text.iter().position(|&byte| byte == b':')?;
    let part = |digits| u32::try_from(number(digits, 16)?).ok();
    Some(Device { major: part(&text[..colon])?, minor: part(&text[colon + 1..])? })
}

fn number(digits: &[u8], radix: u32) -> Option<u64> {
    u64::from_str_radix(std::str::from_utf8(digits).ok()?, radix).ok()
}

fn is_gone(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::NOENT | Errno::SRCH))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, OpenOptionsExt};

    #[test]
    fn what_this_process_holds_is_found() {
        let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        let make = |name: &str, flags: i32| {
            let mut options = File::options();
            options.create(true).read(true).write(true).truncate(false).custom_flags(flags);
            options.open(temp.path().join(name)).unwrap()
        };
        let plain = make("plain", 0);
        let direct = make("direct", libc::O_DIRECT);
        let read_only = {
            make("read", 0);
            File::open(temp.path().join("read")).unwrap()
        };
        let found = held(&[std::process::id()]).unwrap();
        let by = |file: &File| {
            let ino = file.metadata().unwrap().ino();
            found.iter().filter(|held| held.ino == ino).map(|held| held.by).collect::<Vec<_>>()
        };
        assert_eq!((by(&plain), by(&direct)), (vec![By::Descriptor], vec![By::Direct]));
        assert_eq!(by(&read_only), []);
        assert_eq!(held(&[u32::MAX / 2]).unwrap(), []);
    }
}
