//! Holding a container still while its files are read.

use std::time::Duration;

use crate::capture::{Context, Error, Pause};
use crate::engine::{Container, Init, Status};
use crate::guard::{self, Frozen};
use crate::sys::cgroup::{Cgroups, Freezer};

/// The first process of a container whose program has been started. Before that there is one, too, and it is the runtime's:
/// frozen it could not be told to start, and `podman run` would fail because of us.
pub(super) fn runs(container: &Container) -> Option<Init> {
    container.init.filter(|_| container.status != Status::Created)
}

/// The container as its engine has it now. An error if it was removed, perhaps made anew under its id: its files may have
/// gone while they were read.
pub(super) fn require_kept(context: &Context<'_>, container: &Container) -> Result<Container, Error> {
    let is_whole = context.engine.is_whole(container)?;
    let inventory = context.engine.list()?;
    let now = inventory.containers.into_iter().find(|other| other.id == container.id);
    now.filter(|now| now.created == container.created && is_whole).ok_or_else(|| Error::Removed(container.name.clone()))
}

/// A container that does not change, as far as the user asked for that; [`end`](Self::end) lets go of it.
pub(super) enum Hold {
    /// Frozen, by us or by its user.
    Frozen(Frozen),
    /// It has no process, or none of its own yet.
    Stopped,
    /// It runs: `pause=none`.
    Running,
}

/// How it was held, for the image's annotations.
#[derive(Debug, Clone, Copy)]
pub struct Held {
    /// A word of `pause=`; or `paused`, by its user; or `stopped`.
    pub how: &'static str,
    /// How long it stood still because of us.
    pub frozen_for: Duration,
}

/// How long a container may stay frozen if its user says nothing else: longer than any read takes that is worth it …
const FULL_LIMIT: Duration = Duration::from_secs(120);
/// … and what hardly any client of the container notices.
pub(super) const SEAL_LIMIT: Duration = Duration::from_secs(2);

/// All that is needed to freeze a container.
pub(super) struct Freezing {
    cgroups: Cgroups,
    init: guard::Init,
    limit: Duration,
}

impl Freezing {
    /// None if the container has no process. `limit` holds if the user gave none.
    pub(super) fn of(context: &Context<'_>, container: &Container, limit: Duration) -> Option<Freezing> {
        let init = runs(container)?;
        let init = guard::Init { pid: init.pid, start_time: init.start_time };
        let cgroups = Cgroups { v1_freezer: container.cgroup.v1_freezer.clone(), v2: container.cgroup.v2.clone() };
        Some(Freezing { cgroups, init, limit: context.freeze_limit.unwrap_or(limit) })
    }

    /// Whether the container's first process is still there.
    pub(super) fn is_alive(&self) -> bool {
        guard::Init::of(self.init.pid).is_ok_and(|now| now == self.init)
    }

    pub(super) fn limit(&self) -> Duration {
        self.limit
    }

    /// The container's processes, while it runs.
    pub(super) fn processes(&self) -> Result<Vec<u32>, Error> {
        let freezer = Freezer::open(&self.cgroups, self.init.pid, &[]).map_err(guard::Error::Cgroup)?;
        Ok(freezer.processes().map_err(guard::Error::Cgroup)?)
    }

    pub(super) fn freeze(&self, context: &Context<'_>) -> Result<Frozen, Error> {
        Ok(Frozen::freeze(context.guard, &self.cgroups, self.init, self.limit)?)
    }
}

impl Held {
    /// Let `frozen` run.
    pub(super) fn of(frozen: Frozen, pause: Pause) -> Result<Held, Error> {
        let held = Held::so_far(&frozen, pause);
        Ok(Held { frozen_for: frozen.thaw()?, ..held })
    }

    /// While it does not.
    pub(super) fn so_far(frozen: &Frozen, pause: Pause) -> Held {
        let how = if frozen.was_paused() { "paused" } else { pause.as_str() };
        Held { how, frozen_for: frozen.frozen_for() }
    }
}

impl Hold {
    pub(super) fn take(context: &Context<'_>, container: &Container, pause: Pause) -> Result<Hold, Error> {
        if pause == Pause::None && runs(container).is_some() {
            return Ok(Hold::Running);
        }
        match Freezing::of(context, container, FULL_LIMIT) {
            Some(freezing) => Ok(Hold::Frozen(freezing.freeze(context)?)),
            None => Ok(Hold::Stopped),
        }
    }

    pub(super) fn phase(&self) -> &'static str {
        match self {
            Hold::Frozen(_) => "frozen",
            Hold::Stopped | Hold::Running => "reading",
        }
    }

    /// Whether nothing of the container runs.
    pub(super) fn is_still(&self) -> bool {
        !matches!(self, Hold::Running)
    }

    /// The processes that are frozen.
    pub(super) fn processes(&self) -> Result<Vec<u32>, Error> {
        match self {
            Hold::Frozen(frozen) => Ok(frozen.processes()?),
            Hold::Stopped | Hold::Running => Ok(Vec::new()),
        }
    }

    /// Let go. An error means that the container was not still all the time, and that what was read is worth nothing.
    pub(super) fn end(self, context: &Context<'_>, container: &Container) -> Result<Held, Error> {
        match self {
            Hold::Frozen(frozen) => Held::of(frozen, Pause::Full),
            Hold::Stopped => {
                let now = require_kept(context, container)?;
                match runs(&now) {
                    Some(_) => Err(Error::Started(container.name.clone())),
                    None => Ok(Held { how: "stopped", frozen_for: Duration::ZERO }),
                }
            }
            Hold::Running => Ok(Held { how: Pause::None.as_str(), frozen_for: Duration::ZERO }),
        }
    }
}
