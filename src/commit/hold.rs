//! Holding a container still while its files are read.

use std::time::Duration;

use crate::commit::{Context, Error, Pause};
use crate::engine::{Container, Init, Status};
use crate::guard::{self, Frozen};
use crate::sys::cgroup::Cgroups;

/// The first process of a container whose program has been started. Before that there is one, too, and it is the runtime's:
/// frozen it could not be told to start, and `podman run` would fail because of us.
fn runs(container: &Container) -> Option<Init> {
    container.init.filter(|_| container.status != Status::Created)
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
pub(super) struct Held {
    pub(super) how: &'static str,
    pub(super) frozen_for: Duration,
}

impl Hold {
    pub(super) fn take(context: &Context<'_>, container: &Container, pause: Pause) -> Result<Hold, Error> {
        let Some(init) = runs(container) else { return Ok(Hold::Stopped) };
        if pause == Pause::None {
            return Ok(Hold::Running);
        }
        let init = guard::Init { pid: init.pid, start_time: init.start_time };
        let cgroups = Cgroups { v1_freezer: container.cgroup.v1_freezer.clone(), v2: container.cgroup.v2.clone() };
        Ok(Hold::Frozen(Frozen::freeze(context.guard, &cgroups, init, context.freeze_limit)?))
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

    /// Let go. An error means that the container was not still all the time, and that what was read is worth nothing.
    pub(super) fn end(self, context: &Context<'_>, container: &Container) -> Result<Held, Error> {
        match self {
            Hold::Frozen(frozen) => {
                let how = if frozen.was_paused() { "paused" } else { Pause::Full.as_str() };
                Ok(Held { how, frozen_for: frozen.thaw()? })
            }
            Hold::Stopped => {
                let is_whole = context.engine.is_whole(container)?;
                let inventory = context.engine.list()?;
                let now = inventory.containers.iter().find(|other| other.id == container.id);
                match now.filter(|now| now.created == container.created && is_whole) {
                    // Removed, perhaps made anew under its id: its files may have gone while they were read.
                    None => Err(Error::Removed(container.name.clone())),
                    Some(now) if runs(now).is_some() => Err(Error::Started(container.name.clone())),
                    Some(_) => Ok(Held { how: "stopped", frozen_for: Duration::ZERO }),
                }
            }
            Hold::Running => Ok(Held { how: Pause::None.as_str(), frozen_for: Duration::ZERO }),
        }
    }
}
