//! `pause=stop`: the container is stopped by its engine, its files are read, and it is started again.

use crate::capture::hold::{Held, require_kept, runs};
use crate::capture::{Captured, Context, Error, Pause, Request, capture_held, spec};
use crate::engine::{self, Container, Status};
use crate::progress::Progress;
use crate::store::Lease;

/// What podman writes into the specification of a container that it removes when it ends.
const REMOVED_AT_END: &str = "io.podman.annotations.autoremove";

/// Captures a container that runs after it was stopped, and starts it again whatever came of that, if its engine can.
pub(super) fn capture_stopped(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: Request<'_>,
    progress: &Progress,
) -> Result<(Captured, Held), Error> {
    if runs(container).is_none() {
        return capture_held(context, lease, container, request, progress);
    }
    let name = || container.name.clone();
    if container.status == Status::Paused {
        return Err(Error::Paused(name()));
    }
    let spec = spec::of(container)?;
    if spec["annotations"][REMOVED_AT_END].as_str().is_some_and(|text| text.eq_ignore_ascii_case("true")) {
        return Err(Error::RemovedAtEnd(name()));
    }
    progress.check()?;
    progress.enter("stopping");
    let wanted = || progress.check().is_ok();
    let stopped = context.engine.stop(container, &wanted);
    let captured = stopped.map_err(Error::from).and_then(|()| {
        let now = require_kept(context, container)?;
        if runs(&now).is_some() {
            return Err(Error::Started(name()));
        }
        capture_held(context, lease, &now, request, progress)
    });
    let started = start_again(context, container, progress);
    // A job that was cancelled while the engine stopped the container says so, and not how the program died of it.
    progress.check()?;
    let (captured, held) = captured?;
    started.map_err(|cause| Error::NotStarted { name: name(), cause })?;
    Ok((captured, Held { how: Pause::Stop.as_str(), ..held }))
}

/// It may run already: the engine could not stop it, or somebody else was quicker.
fn start_again(context: &Context<'_>, container: &Container, progress: &Progress) -> Result<(), engine::Error> {
    let found = context.engine.list()?.containers.into_iter().find(|now| now.id == container.id);
    if found.is_none_or(|now| runs(&now).is_some() || now.created != container.created) {
        return Ok(());
    }
    progress.enter("starting");
    if !context.engine.start(container)? {
        progress.log(format!("stopped, and not started again: {} cannot start a container twice", container.engine));
    }
    Ok(())
}
