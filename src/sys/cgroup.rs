//! The cgroup freezer: `freezer.state` of cgroup v1, `cgroup.freeze` of cgroup v2.
//!
//! Kernel documentation: `admin-guide/cgroup-v1/freezer-subsystem.rst`, and "freeze" in `admin-guide/cgroup-v2.rst`.
//! The names of the directories come from engines' state files, which are hostile input: a directory is reached from
//! `/sys/fs/cgroup` without following a link, must lie on a cgroup file system, and every file is opened relative to it.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{FsWord, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::sys::procfs::blocked_in;
use crate::sys::switch::{THAW, is_gone, pause};

pub use crate::sys::switch::{Switch, Version};

/// Where the hierarchies are mounted on every system that snapfs runs on (systemd.io/CGROUP_DELEGATION).
const MOUNT: &str = "/sys/fs/cgroup";
/// `CGROUP_SUPER_MAGIC` and `CGROUP2_SUPER_MAGIC` of linux/magic.h.
const MAGIC_V1: FsWord = 0x27_e0_eb;
const MAGIC_V2: FsWord = 0x6367_7270;
/// A v1 group in which processes keep appearing can stay `FREEZING` for ever; a short thaw gets it over the edge (the
/// experience of runc, `fs/freezer.go`).
const SHAKE: Duration = Duration::from_millis(20);
/// How long a killed task may take to leave its group.
const DEATH: Duration = Duration::from_millis(100);
/// More groups or tasks than this below one container are an attack on our time.
const MOST_GROUPS: usize = 16 * 1024;
/// The container stands still while we look for the tasks to name.
const MOST_LOOKED_AT: usize = 1024;
const MOST_NAMED: usize = 4;

/// Why a cgroup could not be frozen, thawed or looked at.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory does not exist any more: the container ended.
    #[error("the cgroup {} is gone: its container has ended", path.display())]
    Gone {
        /// The directory.
        path: PathBuf,
    },
    /// The path is not one of a directory of a cgroup file system below `/sys/fs/cgroup`.
    #[error("{} is not a cgroup: it must be a directory below {MOUNT} with neither links nor `..` in its name", path.display())]
    NotCgroup {
        /// The path as it was given.
        path: PathBuf,
    },
    /// The group has no freezer file.
    #[error("the cgroup {} cannot be frozen: it is the root of its hierarchy, or the kernel is older than 5.2", path.display())]
    NoFreezer {
        /// The directory.
        path: PathBuf,
    },
    /// The process is in none of the groups named.
    #[error(
        "process {pid} is in none of the cgroups given for its container ({groups}): the container was moved or has ended"
    )]
    NotMember {
        /// The process looked for.
        pid: u32,
        /// The directories, separated by commas.
        groups: String,
    },
    /// The group holds a process that must go on running: this one, or its guard.
    #[error("the cgroup {} holds snapfs itself (process {pid}): refusing to freeze it; run snapfs outside of the container", path.display())]
    Own {
        /// The directory.
        path: PathBuf,
        /// The process that would have been frozen.
        pid: u32,
    },
    /// There are too many groups below this one to look at.
    #[error("the cgroup {} has more than {MOST_GROUPS} groups below it: remove some", path.display())]
    TooManyGroups {
        /// The directory.
        path: PathBuf,
    },
    /// Not all tasks stopped in time; the group runs again.
    #[error("the cgroup {} was not frozen after {} ms and runs again: {}", path.display(), waited.as_millis(), Blocked::list(blocked))]
    NotFrozen {
        /// The directory.
        path: PathBuf,
        /// How long it was tried.
        waited: Duration,
        /// Tasks that sleep uninterruptibly, and so cannot be frozen.
        blocked: Vec<Blocked>,
    },
    /// The kernel took the thaw and did not act on it.
    #[error("the cgroup {} is still frozen {} ms after it was thawed: write THAWED to its freezer.state or 0 to its cgroup.freeze", path.display(), THAW.as_millis())]
    NotThawed {
        /// The directory.
        path: PathBuf,
    },
    /// A file of the group could not be opened, read or written.
    #[error("cannot {step} {file} of the cgroup {}", path.display())]
    Io {
        /// `open`, `read` or `write`.
        step: &'static str,
        /// The file's name.
        file: &'static str,
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
}

/// The directories of one container, as absolute paths below `/sys/fs/cgroup`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cgroups {
    /// In the v1 hierarchy of the `freezer` controller.
    pub v1_freezer: Option<PathBuf>,
    /// In the v2 hierarchy, which is `/sys/fs/cgroup` itself or, on a hybrid host, `/sys/fs/cgroup/unified`.
    pub v2: Option<PathBuf>,
}

/// A task in uninterruptible sleep.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blocked {
    /// The thread's number.
    pub tid: u32,
    /// Its name.
    pub comm: String,
    /// The kernel function that it waits in; empty where the kernel does not tell.
    pub wchan: String,
}

impl Blocked {
    fn list(blocked: &[Blocked]) -> String {
        if blocked.is_empty() {
            return "the machine is too busy, or its tasks keep being started anew; try again, or with pause=stop"
                .to_owned();
        }
        let names: Vec<String> =
            blocked.iter().map(|task| format!("{} (thread {}, in {})", task.comm, task.tid, task.wchan)).collect();
        format!("a task waits for a device, a network or FUSE file system and cannot be stopped: {}", names.join(", "))
    }
}

/// One cgroup that can be frozen.
#[derive(Debug)]
pub struct Freezer {
    path: PathBuf,
    id: u64,
    directory: OwnedFd,
    switch: Switch,
    /// v2's `cgroup.events`.
    events: Option<OwnedFd>,
}

impl Freezer {
    /// The one of a container's groups that really freezes `init`, its first process: on a hybrid host that is the v1
    /// group if the process is in it, else the v2 group. Refused if this process, or one of `spare`, is in it too.
    ///
    /// # Errors
    /// [`Error::Gone`] if no directory exists, [`Error::NotMember`] if `init` is in none, [`Error::Own`],
    /// [`Error::NotCgroup`], [`Error::NoFreezer`], [`Error::TooManyGroups`] and [`Error::Io`].
    pub fn open(cgroups: &Cgroups, init: u32, spare: &[u32]) -> Result<Freezer, Error> {
        let candidates = [&cgroups.v1_freezer, &cgroups.v2].into_iter().flatten();
        let mut names = Vec::new();
        let mut failure = None;
        for path in candidates {
            names.push(path.display().to_string());
            let freezer = match Freezer::at(path) {
                Ok(freezer) => freezer,
                // The other hierarchy may serve.
                Err(error @ (Error::Gone { .. } | Error::NoFreezer { .. })) => {
                    failure = Some(error);
                    continue;
                }
                Err(error) => return Err(error),
            };
            let members = freezer.numbers("cgroup.procs")?;
            if !members.contains(&init) {
                continue;
            }
            let own = std::process::id();
            if let Some(&pid) = spare.iter().chain([&own]).find(|pid| members.contains(pid)) {
                return Err(Error::Own { path: path.clone(), pid });
            }
            return Ok(freezer);
        }
        match failure {
            Some(failure) if names.len() == 1 => Err(failure),
            _ => Err(Error::NotMember { pid: init, groups: names.join(", ") }),
        }
    }

    /// The group at `path`, whoever is in it.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::NotCgroup`], [`Error::NoFreezer`] and [`Error::Io`].
    pub fn at(path: &Path) -> Result<Freezer, Error> {
        let (directory, version) = open_group(path)?;
        let open = |file: &'static str, flags: OFlags| match open_file(&directory, file, flags) {
            Ok(fd) => Ok(fd),
            Err(Errno::NOENT)
                if rustix::fs::statat(&directory, "cgroup.procs", rustix::fs::AtFlags::empty()).is_ok() =>
            {
                Err(Error::NoFreezer { path: path.to_owned() })
            }
            Err(errno) => Err(failed("open", file, path, errno)),
        };
        let (control, request, events) = match version {
            Version::V1 => (open("freezer.state", OFlags::RDWR)?, open("freezer.self_freezing", OFlags::RDONLY)?, None),
            Version::V2 => (
                open("cgroup.freeze", OFlags::RDWR)?,
                open("cgroup.freeze", OFlags::RDONLY)?,
                Some(open("cgroup.events", OFlags::RDONLY)?),
            ),
        };
        let id = rustix::fs::fstat(&directory).map_err(|errno| failed("open", "the directory", path, errno))?.st_ino;
        Ok(Freezer { path: path.to_owned(), id, directory, switch: Switch { version, control, request }, events })
    }

    /// The group's directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The group's number: the inode of its directory, which the kernel gives to no other group while it runs.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The generation of the group.
    pub fn version(&self) -> Version {
        self.switch.version
    }

    /// What thaws the group, to be lent to another process.
    pub fn switch(&self) -> &Switch {
        &self.switch
    }

    /// Whether `pid` is in the group or in one below it.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::TooManyGroups`] and [`Error::Io`].
    pub fn contains(&self, pid: u32) -> Result<bool, Error> {
        Ok(self.numbers("cgroup.procs")?.contains(&pid))
    }

    /// The processes in the group and in those below it, now.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::TooManyGroups`] and [`Error::Io`].
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        self.numbers("cgroup.procs")
    }

    /// Whether somebody requested a freeze of this group: asked before we do, that is its user. A freeze of an ancestor
    /// does not count, since it stands or falls without us.
    ///
    /// # Errors
    /// [`Error::Gone`] and [`Error::Io`].
    pub fn is_frozen_by_user(&self) -> Result<bool, Error> {
        self.switch.is_on().map_err(|errno| self.failed("read", errno))
    }

    /// Whether every task of the group is stopped now.
    ///
    /// # Errors
    /// [`Error::Gone`] and [`Error::Io`].
    pub fn is_frozen(&self) -> Result<bool, Error> {
        let mut text = [0; 128];
        let file = self.events.as_ref().unwrap_or(&self.switch.control);
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(file, &mut text, 0))
            .map_err(|errno| self.failed("read", errno))?;
        Ok(match self.switch.version {
            Version::V1 => text[..read].starts_with(b"FROZEN"),
            Version::V2 => text[..read].split(|&byte| byte == b'\n').any(|line| line == b"frozen 1"),
        })
    }

    /// Whether the group, once frozen, is so still. On v2 a task that is killed leaves the freeze for its way out, and the
    /// group is not frozen until it is gone; nothing but its end runs.
    ///
    /// # Errors
    /// [`Error::Gone`] and [`Error::Io`].
    pub fn stays_frozen(&self) -> Result<bool, Error> {
        if !self.is_frozen_by_user()? {
            return Ok(false);
        }
        match self.await_frozen(Instant::now() + DEATH) {
            Ok(()) => Ok(true),
            Err(Error::NotFrozen { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Stop every task of the group, and return once they all are stopped. Upon any error the group is thawed again.
    ///
    /// # Errors
    /// [`Error::NotFrozen`] if they are not at `deadline`; [`Error::Gone`], [`Error::Io`], [`Error::NotThawed`].
    pub fn freeze(&self, deadline: Instant) -> Result<(), Error> {
        let start = Instant::now();
        let done = self.request_and_await(deadline);
        // Looked for before the thaw, which wakes them all for a moment.
        let blocked = match done {
            Ok(true) => return Ok(()),
            Ok(false) => self.blocked(),
            Err(_) => Vec::new(),
        };
        self.thaw()?;
        done?;
        Err(Error::NotFrozen { path: self.path.clone(), waited: start.elapsed(), blocked })
    }

    fn request_and_await(&self, deadline: Instant) -> Result<bool, Error> {
        let set = |frozen| self.switch.set(frozen).map_err(|errno| self.failed("write", errno));
        set(true)?;
        let mut shaken = Instant::now();
        let mut round = 0;
        while !self.is_frozen()? {
            if Instant::now() >= deadline {
                return Ok(false);
            }
            pause(&mut round, self.events.as_ref());
            if self.switch.version == Version::V1 && round % 16 == 0 {
                if shaken.elapsed() >= SHAKE {
                    set(false)?;
                    thread::sleep(Duration::from_millis(1));
                    shaken = Instant::now();
                }
                set(true)?;
            }
        }
        Ok(true)
    }

    /// Wait until the group, whose freeze somebody else requested, is frozen.
    ///
    /// # Errors
    /// [`Error::NotFrozen`] if it is not at `deadline`; [`Error::Gone`] and [`Error::Io`].
    pub fn await_frozen(&self, deadline: Instant) -> Result<(), Error> {
        let start = Instant::now();
        let mut round = 0;
        while !self.is_frozen()? {
            if Instant::now() >= deadline {
                return Err(Error::NotFrozen { path: self.path.clone(), waited: start.elapsed(), blocked: Vec::new() });
            }
            pause(&mut round, self.events.as_ref());
        }
        Ok(())
    }

    /// Let the tasks run, and verify that the kernel agrees.
    ///
    /// # Errors
    /// [`Error::Gone`], [`Error::Io`] and [`Error::NotThawed`].
    pub fn thaw(&self) -> Result<(), Error> {
        match self.switch.thaw() {
            Ok(true) => Ok(()),
            Ok(false) => Err(Error::NotThawed { path: self.path.clone() }),
            Err(errno) => Err(self.failed("write", errno)),
        }
    }

    /// Some tasks of the group that sleep uninterruptibly, and not because they are frozen, which is such a sleep on v1;
    /// a description, so that what cannot be read is left out.
    fn blocked(&self) -> Vec<Blocked> {
        let file = match self.switch.version {
            Version::V1 => "tasks",
            Version::V2 => "cgroup.threads",
        };
        let tasks = self.numbers(file).unwrap_or_default();
        let is_frozen = |task: &Blocked| matches!(task.wchan.as_str(), "__refrigerator" | "" | "0");
        let blocked = tasks.into_iter().take(MOST_LOOKED_AT).filter_map(blocked_in);
        blocked.filter(|task| self.switch.version == Version::V2 || !is_frozen(task)).take(MOST_NAMED).collect()
    }

    /// The numbers in `file` of this group and of all below it.
    fn numbers(&self, file: &'static str) -> Result<Vec<u32>, Error> {
        let mut numbers = Vec::new();
        let top = open_file(&self.directory, ".", OFlags::RDONLY | OFlags::DIRECTORY)
            .map_err(|errno| failed("open", "the directory", &self.path, errno))?;
        let mut waiting = vec![top];
        let mut groups = 0;
        while let Some(group) = waiting.pop() {
            let is_top = groups == 0;
            groups += 1;
            match read_numbers(&group, file, &mut numbers) {
                Ok(()) => {}
                // A threaded group lists its processes in the domain above it only.
                Err(Errno::OPNOTSUPP) => {}
                Err(errno) if is_gone(errno) && !is_top => continue,
                Err(errno) => return Err(failed("read", file, &self.path, errno)),
            }
            let entries = match rustix::fs::Dir::read_from(&group) {
                Ok(entries) => entries,
                Err(errno) if is_gone(errno) && !is_top => continue,
                Err(errno) => return Err(failed("read", "the directory", &self.path, errno)),
            };
            for entry in entries {
                let entry = match entry {
                    Ok(entry) => entry,
                    Err(errno) if is_gone(errno) => break,
                    Err(errno) => return Err(failed("read", "the directory", &self.path, errno)),
                };
                let name = entry.file_name().to_bytes();
                if entry.file_type() != rustix::fs::FileType::Directory || name == b"." || name == b".." {
                    continue;
                }
                if groups + waiting.len() >= MOST_GROUPS {
                    return Err(Error::TooManyGroups { path: self.path.clone() });
                }
                match open_file(&group, entry.file_name(), OFlags::RDONLY | OFlags::DIRECTORY) {
                    Ok(below) => waiting.push(below),
                    Err(errno) if is_gone(errno) => {}
                    Err(errno) => return Err(failed("open", "a group below", &self.path, errno)),
                }
            }
        }
        Ok(numbers)
    }

    fn failed(&self, step: &'static str, errno: Errno) -> Error {
        let file = match self.switch.version {
            Version::V1 => "freezer.state",
            Version::V2 => "cgroup.freeze",
        };
        failed(step, file, &self.path, errno)
    }
}

fn failed(step: &'static str, file: &'static str, path: &Path, errno: Errno) -> Error {
    if is_gone(errno) {
        return Error::Gone { path: path.to_owned() };
    }
    Error::Io { step, file, path: path.to_owned(), source: errno.into() }
}

fn open_group(path: &Path) -> Result<(OwnedFd, Version), Error> {
    let not_cgroup = || Error::NotCgroup { path: path.to_owned() };
    let below = path.strip_prefix(MOUNT).map_err(|_| not_cgroup())?;
    let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    if !is_plain || below.as_os_str().is_empty() {
        return Err(not_cgroup());
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let mount = rustix::fs::open(MOUNT, flags | OFlags::NOFOLLOW, Mode::empty())
        .map_err(|errno| failed("open", "the mount", path, errno))?;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let directory = match rustix::fs::openat2(&mount, below, flags, Mode::empty(), resolve) {
        Ok(directory) => directory,
        Err(Errno::LOOP | Errno::XDEV | Errno::NOTDIR) => return Err(not_cgroup()),
        Err(errno) => return Err(failed("open", "the directory", path, errno)),
    };
    let magic = rustix::fs::fstatfs(&directory).map_err(|errno| failed("open", "the directory", path, errno))?.f_type;
    match magic {
        MAGIC_V1 => Ok((directory, Version::V1)),
        MAGIC_V2 => Ok((directory, Version::V2)),
        _ => Err(not_cgroup()),
    }
}

fn open_file<P: rustix::path::Arg>(directory: &OwnedFd, name: P, flags: OFlags) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, name, flags | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())
}

fn read_numbers(group: &OwnedFd, file: &str, numbers: &mut Vec<u32>) -> Result<(), Errno> {
    let file = open_file(group, file, OFlags::RDONLY)?;
    let mut text = Vec::new();
    let mut chunk = [0; 4096];
    loop {
        match rustix::io::retry_on_intr(|| rustix::io::read(&file, &mut chunk))? {
            0 => break,
            read => text.extend_from_slice(&chunk[..read]),
        }
    }
    // 0 stands for a process of a PID namespace that we do not see.
    let parsed = text.split(|&byte| byte == b'\n').filter_map(|line| str::from_utf8(line).ok()?.parse::<u32>().ok());
    numbers.extend(parsed.filter(|&number| number != 0));
    Ok(())
}

#[cfg(test)]
mod tests;
