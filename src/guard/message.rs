//! What daemon and guard say to each other: one message is one line of words.

use std::fmt;
use std::time::Duration;

use crate::sys::cgroup::Version;

/// No message is longer, in bytes.
pub(crate) const LONGEST: usize = 128;

/// From the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// The first message: the daemon's process number.
    Watch { pid: u32 },
    /// A freeze is about to happen. With it come the files of the [`Switch`](crate::sys::cgroup::Switch) and the intent.
    Hold { id: u64, limit: Duration, version: Version },
    /// It was thawed.
    Release { id: u64 },
    /// The daemon lets go of it without having thawed it.
    Thaw { id: u64 },
}

/// From the guard, one for each request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reply {
    /// It is done.
    Done { id: u64 },
    /// The freeze released had been thawed at its limit.
    Late { id: u64 },
    /// There is no room for one more.
    Full { id: u64 },
    /// The request makes no sense, or could not be fulfilled yet.
    Failed { id: u64 },
}

impl Request {
    /// The number by which the reply is known.
    pub(crate) fn id(&self) -> u64 {
        match *self {
            Request::Watch { .. } => 0,
            Request::Hold { id, .. } | Request::Release { id } | Request::Thaw { id } => id,
        }
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Request> {
        let mut words = str::from_utf8(text).ok()?.split(' ');
        let verb = words.next()?;
        let number: u64 = words.next()?.parse().ok()?;
        let request = match verb {
            "watch" => Request::Watch { pid: number.try_into().ok()? },
            "hold" => {
                let limit = Duration::from_millis(words.next()?.parse().ok()?);
                Request::Hold { id: number, limit, version: Version::parse(words.next()?)? }
            }
            "release" => Request::Release { id: number },
            "thaw" => Request::Thaw { id: number },
            _ => return None,
        };
        words.next().is_none().then_some(request)
    }
}

impl fmt::Display for Request {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Request::Watch { pid } => write!(f, "watch {pid}"),
            Request::Hold { id, limit, version } => {
                // Rounded up: who asks for a limit gets all of it.
                write!(f, "hold {id} {} {version}", limit.as_nanos().div_ceil(1_000_000))
            }
            Request::Release { id } => write!(f, "release {id}"),
            Request::Thaw { id } => write!(f, "thaw {id}"),
        }
    }
}

impl Reply {
    /// The number of the request.
    pub(crate) fn id(&self) -> u64 {
        match *self {
            Reply::Done { id } | Reply::Late { id } | Reply::Full { id } | Reply::Failed { id } => id,
        }
    }

    pub(crate) fn parse(text: &[u8]) -> Option<Reply> {
        let (word, number) = str::from_utf8(text).ok()?.split_once(' ')?;
        let id = number.parse().ok()?;
        match word {
            "done" => Some(Reply::Done { id }),
            "late" => Some(Reply::Late { id }),
            "full" => Some(Reply::Full { id }),
            "failed" => Some(Reply::Failed { id }),
            _ => None,
        }
    }
}

impl fmt::Display for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reply::Done { id } => write!(f, "done {id}"),
            Reply::Late { id } => write!(f, "late {id}"),
            Reply::Full { id } => write!(f, "full {id}"),
            Reply::Failed { id } => write!(f, "failed {id}"),
        }
    }
}
