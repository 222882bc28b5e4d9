//! What `/proc` says about a task: proc(5). Seen by others as part of [`process`](crate::sys::process).
//!
//! Everything is read through a handle on the task's directory, on a file system verified to be procfs: a number that is
//! given to another task meanwhile cannot mix the two.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::sys::cgroup::Blocked;
use crate::sys::process::{Error, printable};

/// The signals whose arrival means that the caller no longer waits for an answer.
const INTERRUPTING: [libc::c_int; 14] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGILL,
    libc::SIGABRT,
    libc::SIGKILL,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGPIPE,
    libc::SIGALRM,
    libc::SIGTERM,
    libc::SIGXCPU,
    libc::SIGVTALRM,
    libc::SIGPROF,
];

/// A task's directory in `/proc`.
struct Task {
    pid: u32,
    directory: OwnedFd,
}

impl Task {
    fn open(pid: u32) -> Result<Task, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let open = || {
            let proc = rustix::fs::open("/proc", flags, Mode::empty())?;
            if rustix::fs::fstatfs(&proc)?.f_type != rustix::fs::PROC_SUPER_MAGIC {
                return Err(Errno::NOTSUP);
            }
            rustix::fs::openat(&proc, pid.to_string(), flags | OFlags::NOFOLLOW, Mode::empty())
        };
        match open() {
            Ok(directory) => Ok(Task { pid, directory }),
            Err(errno) => Err(unreadable(pid, "the directory", errno.into())),
        }
    }

    fn read(&self, file: &'static str) -> Result<Vec<u8>, Error> {
        let mut text = Vec::new();
        rustix::fs::openat(&self.directory, file, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())
            .map_err(io::Error::from)
            .and_then(|fd| File::from(fd).read_to_end(&mut text))
            .map_err(|source| unreadable(self.pid, file, source))?;
        Ok(text)
    }

    /// Device and inode of what the magic link leads to: namespaces(7) says that they identify it.
    fn namespace(&self, file: &'static str) -> Result<(u64, u64), Error> {
        let found = rustix::fs::statat(&self.directory, file, rustix::fs::AtFlags::empty())
            .map_err(|errno| unreadable(self.pid, file, errno.into()))?;
        Ok((found.st_dev, found.st_ino))
    }

    /// The fields of `stat` from the third, the state, on. The second is a name in parentheses, which can hold both.
    fn stat(&self) -> Result<Vec<String>, Error> {
        let text = self.read("stat")?;
        let name_end = text.iter().rposition(|&byte| byte == b')').ok_or_else(|| self.malformed("stat"))?;
        let fields = String::from_utf8_lossy(&text[name_end + 1..]);
        Ok(fields.split_ascii_whitespace().map(str::to_owned).collect())
    }

    fn malformed(&self, file: &'static str) -> Error {
        Error::Malformed { pid: self.pid, file }
    }
}

fn unreadable(pid: u32, file: &'static str, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::Gone { pid },
        _ => Error::Read { pid, file, source },
    }
}

/// When the process started, in clock ticks after the boot: with its number, its identity (field 22 of `stat`).
///
/// # Errors
/// [`Error::Gone`], [`Error::Read`] and [`Error::Malformed`].
pub fn start_time(pid: u32) -> Result<u64, Error> {
    let task = Task::open(pid)?;
    task.stat()?.get(19).and_then(|field| field.parse().ok()).ok_or_else(|| task.malformed("stat"))
}

/// Whether the thread, which waits for an answer of ours, has a signal pending that it neither blocks nor ignores and
/// that ends a process by default; or has ended. What cannot be read is taken for a thread that waits on.
pub fn has_interrupting_signal(tid: u32) -> bool {
    match Task::open(tid).and_then(|task| task.read("status")) {
        Ok(text) => Status::parse(&text).is_interrupted(),
        Err(error) => matches!(error, Error::Gone { .. }),
    }
}

/// Whether the signal pending is one that people end programs with, and not an alarm or a word between programs.
pub fn is_told_to_end(tid: u32) -> bool {
    match Task::open(tid).and_then(|task| task.read("status")) {
        Ok(text) => Status::parse(&text).is_told_to_end(),
        Err(error) => matches!(error, Error::Gone { .. }),
    }
}

/// Whether the process has ended or cannot but end: it is a zombie, dumps core, or has a SIGKILL pending that a sleep in
/// the kernel holds up. What cannot be read is taken for a process that goes on.
pub fn is_dying(pid: u32) -> bool {
    match Task::open(pid).and_then(|task| task.read("status")) {
        Ok(text) => Status::parse(&text).is_dying(),
        Err(error) => matches!(error, Error::Gone { .. }),
    }
}

/// Name and wait channel of a thread in uninterruptible sleep; nothing if it runs, sleeps otherwise, or has ended.
pub(in crate::sys) fn blocked_in(tid: u32) -> Option<Blocked> {
    let task = Task::open(tid).ok()?;
    let is_blocked = task.stat().ok()?.first().is_some_and(|state| state == "D");
    let text = |file| task.read(file).map(|text| printable(&text)).unwrap_or_default();
    is_blocked.then(|| Blocked { tid, comm: text("comm"), wchan: text("wchan") })
}

/// The lines of `/proc/PID/status` that matter here.
#[derive(Debug, Default, PartialEq, Eq)]
struct Status {
    state: u8,
    is_dumping_core: bool,
    pending: u64,
    blocked: u64,
    ignored: u64,
}

impl Status {
    fn parse(text: &[u8]) -> Status {
        let mut status = Status::default();
        for line in String::from_utf8_lossy(text).lines() {
            let Some((key, value)) = line.split_once(':') else { continue };
            let value = value.trim_start();
            let signals = || u64::from_str_radix(value, 16).unwrap_or(0);
            match key {
                "State" => status.state = value.bytes().next().unwrap_or(0),
                "CoreDumping" => status.is_dumping_core = value == "1",
                "SigPnd" | "ShdPnd" => status.pending |= signals(),
                "SigBlk" => status.blocked = signals(),
                "SigIgn" => status.ignored = signals(),
                _ => {}
            }
        }
        status
    }

    fn has_ended(&self) -> bool {
        matches!(self.state, b'Z' | b'X')
    }

    fn is_interrupted(&self) -> bool {
        let fatal = INTERRUPTING.iter().fold(0, |mask, signal| mask | bit(*signal));
        self.has_ended() || self.pending & !self.blocked & !self.ignored & fatal != 0
    }

    fn is_told_to_end(&self) -> bool {
        let ending = [libc::SIGHUP, libc::SIGINT, libc::SIGQUIT, libc::SIGTERM, libc::SIGKILL];
        let ending = ending.iter().fold(0, |mask, signal| mask | bit(*signal));
        self.has_ended() || self.pending & !self.blocked & !self.ignored & ending != 0
    }

    fn is_dying(&self) -> bool {
        self.has_ended() || self.is_dumping_core || self.pending & bit(libc::SIGKILL) != 0
    }
}

fn bit(signal: libc::c_int) -> u64 {
    1 << (signal - 1)
}

/// Where a thread belongs: asked about the caller of a control file, since the root of a container is uid 0 to a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    /// The thread shares our PID namespace.
    pub in_our_pid_namespace: bool,
    /// The thread shares our user namespace.
    pub in_our_user_namespace: bool,
    /// Its cgroups, one a hierarchy.
    pub cgroups: Vec<Membership>,
}

/// One line of `/proc/PID/cgroup`: cgroups(7).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The v1 controllers, separated by commas, or `name=…`; empty for v2.
    pub controllers: String,
    /// The group, relative to the root of our cgroup namespace.
    pub path: PathBuf,
}

impl Origin {
    /// That of the thread `tid`, which must not go away meanwhile to be told from another: one that waits for us does not.
    ///
    /// # Errors
    /// [`Error::Gone`], and [`Error::Read`] for a thread that we may not look at, which is no friend.
    pub fn of(tid: u32) -> Result<Origin, Error> {
        let task = Task::open(tid)?;
        let own = Task::open(std::process::id())?;
        Ok(Origin {
            in_our_pid_namespace: task.namespace("ns/pid")? == own.namespace("ns/pid")?,
            in_our_user_namespace: task.namespace("ns/user")? == own.namespace("ns/user")?,
            cgroups: Membership::parse(&task.read("cgroup")?),
        })
    }

    /// Whether the thread shares our namespaces. A container can be made to share them too (`--pid=host`): its cgroup
    /// tells, see [`is_in`](Self::is_in).
    pub fn is_host(&self) -> bool {
        self.in_our_pid_namespace && self.in_our_user_namespace
    }

    /// Whether the thread is in `group`, or below it, in the hierarchy of `controller` (v2: the empty string).
    pub fn is_in(&self, controller: &str, group: &Path) -> bool {
        self.cgroups
            .iter()
            .any(|cgroup| cgroup.controllers.split(',').any(|one| one == controller) && cgroup.path.starts_with(group))
    }
}

impl Membership {
    fn parse(text: &[u8]) -> Vec<Membership> {
        let line = |line: &[u8]| {
            let mut fields = line.splitn(3, |&byte| byte == b':').skip(1);
            let controllers = String::from_utf8_lossy(fields.next()?).into_owned();
            Some(Membership { controllers, path: OsString::from_vec(fields.next()?.to_vec()).into() })
        };
        text.split(|&byte| byte == b'\n').filter_map(line).collect()
    }
}

#[cfg(test)]
mod tests;
