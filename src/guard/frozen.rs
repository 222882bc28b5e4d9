//! [`Frozen`]: a container that does not run, for as long as the value lives.

use std::time::{Duration, Instant};

use crate::guard::intent::Owner;
use crate::guard::{Error, Guard, Hold};
use crate::sys::cgroup::{self, Cgroups, Freezer};
use crate::sys::process::{self, start_time};

/// How long the tasks of a container may take to stop, if half of the freeze's limit is not less. One that waits for a device, or for a FUSE file system, may never.
const STOP: Duration = Duration::from_secs(5);

/// A container's first process, told from a later one with its number by when it started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Init {
    /// Its number.
    pub pid: u32,
    /// In clock ticks after the boot, as [`start_time`] and the runtimes' state files give it.
    pub start_time: u64,
}

impl Init {
    /// The process that has the number now.
    ///
    /// # Errors
    /// Those of [`start_time`].
    pub fn of(pid: u32) -> Result<Init, process::Error> {
        Ok(Init { pid, start_time: start_time(pid)? })
    }

    fn check(self) -> Result<(), Error> {
        match start_time(self.pid) {
            Ok(found) if found == self.start_time => Ok(()),
            Ok(_) | Err(process::Error::Gone { .. }) => Err(Error::Replaced { pid: self.pid }),
            Err(error) => Err(error.into()),
        }
    }
}

/// A container that is frozen: by us, and then it is thawed with this value, or by its user, and then it stays so.
#[derive(Debug)]
pub struct Frozen {
    freezer: Freezer,
    init: Init,
    since: Instant,
    limit: Duration,
    /// None for its user's freeze.
    hold: Option<Hold>,
}

impl Frozen {
    /// Freeze the container whose first process is `init`, in one of `cgroups`, for `limit` at the longest.
    ///
    /// # Errors
    /// Upon any the container is not frozen by us: [`Error::Replaced`], [`Error::Busy`], [`Error::Cgroup`] with
    /// [`cgroup::Error::NotFrozen`] if a task cannot be stopped, and those of [`Guard::hold`].
    pub fn freeze(guard: &Guard, cgroups: &Cgroups, init: Init, limit: Duration) -> Result<Frozen, Error> {
        init.check()?;
        let freezer = Freezer::open(cgroups, init.pid, guard.pid().as_slice())?;
        let mut hold = None;
        // An intent of a dead owner does not make it its user's freeze: to hold the cgroup settles that.
        if !freezer.is_frozen_by_user()? || guard.owner(&freezer)? != Owner::User {
            hold = Some(guard.hold(&freezer, limit)?);
            // Its user may have been faster.
            if freezer.is_frozen_by_user()? {
                release(hold.take())?;
            }
        }
        let since = Instant::now();
        // Before the guard's limit, so that it is we who give up; and a freeze needs some of its time for its purpose.
        let deadline = since + (limit / 2).min(STOP);
        let mut frozen = Frozen { freezer, init, since, limit, hold };
        if frozen.was_paused() {
            frozen.freezer.await_frozen(deadline)?;
        } else {
            // If it fails, it has thawed; if that fails, the guard thaws when the value is dropped.
            frozen.freezer.freeze(deadline)?;
        }
        // The container may have ended since, and another have taken its place.
        if let Err(error) = frozen.check() {
            frozen.let_go()?;
            return Err(error);
        }
        Ok(frozen)
    }

    fn check(&self) -> Result<(), Error> {
        self.init.check()?;
        if !self.freezer.contains(self.init.pid)? {
            return Err(Error::Replaced { pid: self.init.pid });
        }
        // A process that was itself stopped meanwhile finds that the guard has thawed.
        if self.hold.is_some() && self.since.elapsed() > self.limit {
            return Err(Error::LimitExceeded { limit: self.limit });
        }
        Ok(())
    }

    /// The processes that are frozen.
    ///
    /// # Errors
    /// [`Error::Cgroup`].
    pub fn processes(&self) -> Result<Vec<u32>, Error> {
        Ok(self.freezer.processes()?)
    }

    /// For how long it has been frozen: zero if its user froze it.
    pub fn frozen_for(&self) -> Duration {
        if self.was_paused() { Duration::ZERO } else { self.since.elapsed() }
    }

    /// Whether it was its user who froze the container, so that it stays frozen.
    pub fn was_paused(&self) -> bool {
        self.hold.is_none()
    }

    /// Whether the container is frozen now, and its first process still in it. It was so all the time if nobody but us
    /// and the guard writes to its freezer: a container that can reach its own can end a freeze and begin it again.
    ///
    /// # Errors
    /// [`Error::Cgroup`] and [`Error::Process`].
    pub fn still_frozen(&self) -> Result<bool, Error> {
        match self.init.check() {
            Ok(()) => Ok(self.freezer.stays_frozen()? && self.freezer.contains(self.init.pid)?),
            Err(Error::Replaced { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Freeze a container again that its user had frozen and that was let run by somebody since.
    ///
    /// # Errors
    /// [`Error::Cgroup`].
    pub fn restore_pause(&self) -> Result<(), Error> {
        if self.was_paused() && !self.freezer.is_frozen_by_user()? {
            self.freezer.freeze(Instant::now() + STOP)?;
        }
        Ok(())
    }

    /// Let the container run, unless its user froze it, and return for how long it did not: zero if its user froze it.
    ///
    /// # Errors
    /// The container runs in all of these cases, or is gone, and what was read meanwhile is worth nothing:
    /// [`Error::LimitExceeded`] if the guard had thawed it, [`Error::Thawed`] if somebody else had, and [`Error::Cgroup`].
    pub fn thaw(mut self) -> Result<Duration, Error> {
        let was_frozen = self.freezer.stays_frozen();
        let is_ours = self.hold.is_some();
        let frozen_for = self.let_go()?;
        if !was_frozen? {
            return Err(Error::Thawed { path: self.freezer.path().to_owned() });
        }
        Ok(if is_ours { frozen_for } else { Duration::ZERO })
    }

    fn let_go(&mut self) -> Result<Duration, Error> {
        if self.hold.is_none() {
            return Ok(Duration::ZERO);
        }
        match self.freezer.thaw() {
            Ok(()) => {}
            Err(error @ cgroup::Error::Gone { .. }) => {
                release(self.hold.take())?;
                return Err(error.into());
            }
            // The hold is dropped with this value, and then the guard thaws.
            Err(error) => return Err(error.into()),
        }
        let frozen_for = self.since.elapsed();
        release(self.hold.take())?;
        Ok(frozen_for)
    }
}

fn release(hold: Option<Hold>) -> Result<(), Error> {
    hold.map_or(Ok(()), Hold::release)
}

impl Drop for Frozen {
    fn drop(&mut self) {
        match self.let_go() {
            Ok(_) | Err(Error::Cgroup(cgroup::Error::Gone { .. })) => {}
            Err(error) => log::error!("{error}"),
        }
    }
}
