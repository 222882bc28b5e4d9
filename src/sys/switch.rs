//! The switch of a cgroup's freezer, without the cgroup around it. Seen by others as part of [`cgroup`](crate::sys::cgroup).

use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use rustix::io::Errno;

/// Rounds that do not give up the processor: a task that runs on another one stops within some ten microseconds. To yield
/// would serve a busy stranger first, for milliseconds; who sleeps is served first afterwards.
const SPINS: u32 = 20;
/// The pause between two looks after that.
const PAUSE: Duration = Duration::from_micros(50);
/// How long a thaw may take; it is done within the write, unless the kernel misbehaves.
pub(in crate::sys) const THAW: Duration = Duration::from_secs(1);

/// The generation of the interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The `freezer` controller of cgroup v1.
    V1,
    /// The `cgroup.freeze` file of cgroup v2.
    V2,
}

impl Version {
    /// The generation that [`Display`](fmt::Display) wrote.
    pub fn parse(word: &str) -> Option<Version> {
        [Version::V1, Version::V2].into_iter().find(|version| version.to_string() == word)
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Version::V1 => "v1",
            Version::V2 => "v2",
        })
    }
}

/// The two files that request a freeze and show the request; all that another process needs to thaw.
#[derive(Debug)]
pub struct Switch {
    pub(in crate::sys) version: Version,
    /// v1: `freezer.state`; v2: `cgroup.freeze`.
    pub(in crate::sys) control: OwnedFd,
    /// v1: `freezer.self_freezing`; v2: `cgroup.freeze` once more.
    pub(in crate::sys) request: OwnedFd,
}

impl Switch {
    /// The switch that [`files`](Self::files) took apart.
    pub fn new(version: Version, control: OwnedFd, request: OwnedFd) -> Switch {
        Switch { version, control, request }
    }

    /// The same switch once more.
    ///
    /// # Errors
    /// What fcntl(2) answers: no file descriptors.
    pub fn try_clone(&self) -> io::Result<Switch> {
        Ok(Switch { version: self.version, control: self.control.try_clone()?, request: self.request.try_clone()? })
    }

    /// Its files, in the order that [`new`](Self::new) takes them, to be sent to another process.
    pub fn files(&self) -> [BorrowedFd<'_>; 2] {
        [self.control.as_fd(), self.request.as_fd()]
    }

    /// The generation of its group.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Request the freeze, or take the request back.
    pub(in crate::sys) fn set(&self, frozen: bool) -> Result<(), Errno> {
        let word: &[u8] = match (self.version, frozen) {
            (Version::V1, true) => b"FROZEN",
            (Version::V1, false) => b"THAWED",
            (Version::V2, true) => b"1",
            (Version::V2, false) => b"0",
        };
        rustix::io::retry_on_intr(|| rustix::io::pwrite(&self.control, word, 0)).map(|_| ())
    }

    /// Whether a freeze of this very group is requested. A group frozen with one of its ancestors says no.
    pub(in crate::sys) fn is_on(&self) -> Result<bool, Errno> {
        let mut byte = [0; 1];
        let read = rustix::io::retry_on_intr(|| rustix::io::pread(&self.request, &mut byte, 0))?;
        Ok(read == 1 && byte[0] == b'1')
    }

    /// Take the request back until the kernel says that there is none; `Ok(false)` if it still says so after a second.
    ///
    /// Both generations wake the tasks within the write, so that no request means running, save for an ancestor's.
    pub(in crate::sys) fn thaw(&self) -> Result<bool, Errno> {
        let until = Instant::now() + THAW;
        let mut round = 0;
        loop {
            self.set(false)?;
            if !self.is_on()? {
                return Ok(true);
            }
            if Instant::now() >= until {
                return Ok(false);
            }
            pause(&mut round, None);
        }
    }

    /// Thaw, and verify; `Ok` too if the group is gone. For the guard, which has no path to name in an error.
    pub fn thaw_if_there(&self) -> io::Result<()> {
        match self.thaw() {
            Ok(true) => Ok(()),
            Ok(false) => Err(io::ErrorKind::TimedOut.into()),
            Err(errno) if is_gone(errno) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }
}

/// ENODEV is what an open file of a removed cgroup answers, ENOENT what its name does.
pub(in crate::sys) fn is_gone(errno: Errno) -> bool {
    errno == Errno::NODEV || errno == Errno::NOENT
}

/// Spin at first, then sleep; on v2 the sleep ends early when `cgroup.events` changes. The kernel sends no more than one
/// such notice in 10 ms, so that waiting for it alone would be slow.
pub(in crate::sys) fn pause(round: &mut u32, events: Option<&OwnedFd>) {
    *round = round.wrapping_add(1);
    if *round < SPINS {
        std::hint::spin_loop();
    } else if let Some(events) = events {
        let mut files = [rustix::event::PollFd::new(events, rustix::event::PollFlags::PRI)];
        let timeout = rustix::event::Timespec { tv_sec: 0, tv_nsec: i64::from(PAUSE.subsec_nanos()) };
        // A failure means that we look again sooner.
        let _ = rustix::event::poll(&mut files, Some(&timeout));
    } else {
        thread::sleep(PAUSE);
    }
}
