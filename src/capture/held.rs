//! Reading everything that changed while the container is held in the old way: frozen for all of it, stopped, or not at all.

use crate::capture::hold::{Held, Hold};
use crate::capture::in_use::{InUse, Names};
use crate::capture::look::Look;
use crate::capture::taken::Taken;
use crate::capture::{Context, Error, Request, Volume, layout, source};
use crate::changeset::{Changes, Earlier, Location, Snapshot, tar};
use crate::engine::Container;
use crate::image::LayerWriter;
use crate::progress::Progress;
use crate::store::Lease;
use crate::sys::dir::Time;

/// Hold the container, and read what is not in the `earlier` snapshot.
pub(super) fn read(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: Request<'_>,
    earlier: Option<(Snapshot, Earlier)>,
    progress: &Progress,
) -> Result<(Taken, Held), Error> {
    let hold = Hold::take(context, container, request.pause)?;
    progress.enter(hold.phase());
    let at = Time::now();
    let mut look = Look::begin(&source::of(container)?, &source::mount_points(container)?, earlier, progress)?;
    let changes = look.changes(progress)?;
    let in_use = InUse::of(&hold.processes()?)?;
    let reading = Reading { context, lease, request, in_use: &in_use, is_still: hold.is_still(), progress };
    let mut names = Names::default();
    let mut taken = match changes.entries.is_empty() {
        true => Taken::nothing(&changes),
        false => reading.read(&mut look.snapshot, &changes, None, &mut names)?,
    };
    let mut before: Vec<(Location, Snapshot)> = Vec::new();
    for volume in request.volumes {
        let location = volume.locate(&look.snapshot, before.iter().map(|(location, snapshot)| (location, snapshot)))?;
        let (read, inner) = reading.volume(volume, &location).map_err(|error| error.of_volume(volume))?;
        taken.add(volume, &location, read);
        before.push((location, inner));
    }
    settle(&mut look, &changes, container, &hold, progress)?;
    if hold.is_still() {
        taken.files = look.remember(&changes, &in_use, &taken.torn, &mut names, at);
    }
    Ok((taken, hold.end(context, container)?))
}

/// What it takes to read files while their container is held.
struct Reading<'a> {
    context: &'a Context<'a>,
    lease: &'a Lease,
    request: Request<'a>,
    in_use: &'a InUse,
    is_still: bool,
    progress: &'a Progress,
}

impl Reading<'_> {
    fn read(
        &self,
        snapshot: &mut Snapshot,
        changes: &Changes,
        location: Option<&Location>,
        names: &mut Names,
    ) -> Result<Taken, Error> {
        let vanished = if self.is_still { tar::Vanished::Fail } else { tar::Vanished::Skip };
        let latest_mtime = self.context.clock.source_date_epoch().map(|at| at.as_second());
        // In the same place as if the container were sealed: the same files give the same bytes.
        if !self.in_use.untraceable.is_empty() {
            names.learn(snapshot, changes);
        }
        let layer = LayerWriter::new(self.lease.blob()?, self.request.compression)?;
        let mut writer = tar::Writer::new(layer, changes, self.progress, tar::Options { vanished, latest_mtime });
        layout::put_at(location, &mut writer)?;
        layout::write(changes, &mut writer, location, |entry| names.are_in(&self.in_use.untraceable, entry))?;
        let (written, layer) = writer.into_out()?;
        Ok(Taken::new(changes, written, layer, self.progress))
    }

    fn volume(&self, volume: &Volume, location: &Location) -> Result<(Taken, Snapshot), Error> {
        let mut snapshot = Snapshot::take(&volume.source(), &[], self.progress)?;
        let changes = snapshot.changes(self.progress)?;
        Ok((self.read(&mut snapshot, &changes, Some(location), &mut Names::default())?, snapshot))
    }
}

/// Nobody can be kept from starting or removing a container without processes: that is noticed afterwards, not least that
/// files went one by one.
fn settle(
    look: &mut Look,
    changes: &Changes,
    container: &Container,
    hold: &Hold,
    progress: &Progress,
) -> Result<(), Error> {
    if !matches!(hold, Hold::Stopped) {
        return Ok(());
    }
    look.snapshot.update(false, progress)?;
    let now = look.changes(progress)?;
    let is_same = now.entries.len() == changes.entries.len()
        && now.entries.iter().zip(&changes.entries).all(|(now, then)| now.is_same(then));
    if is_same && changes.vanished.is_empty() && now.vanished.is_empty() {
        return Ok(());
    }
    Err(Error::Unsettled(container.name.clone()))
}
