//! A container's files as they were at one moment, as the layer of an image; and what that layer stands on.
//!
//! [`capture`] → [`Captured`]: what changed is found, read and encoded, and the container stands still
//! only while that must be. Whoever makes an image of it, a commit or a checkpoint, gives the layer its place.
//!
//! What must hold: the container runs again whatever happens here; nothing of it is changed; a capture that returns is the
//! state at one point in time, or says of which files it is not.

mod aside;
mod base;
mod error;
mod hold;
mod in_use;
mod layout;
mod rehearsal;
mod seal;
mod source;
mod spec;
mod stop;
mod torn;
mod volumes;

pub use base::import as import_base;
pub use error::Error;
pub use hold::Held;
pub use volumes::{Volume, Volumes, declared as declared_volumes, included as included_volumes};

use std::time::Duration;

use crate::changeset::{self, Changes, Location, Snapshot, escape, tar};
use crate::engine::{Container, Engine};
use crate::guard::Guard;
use crate::image::{Compression, LayerWriter};
use crate::progress::Progress;
use crate::store::{Lease, Store};
use crate::sys::clock::Clock;
use hold::{Freezing, Hold, SEAL_LIMIT};
use in_use::{InUse, Names};

/// What a capture needs of its surroundings.
#[derive(Debug)]
pub struct Context<'a> {
    /// Where the image will be.
    pub store: &'a Store,
    /// The container's engine.
    pub engine: &'a dyn Engine,
    /// Who thaws the container if we die.
    pub guard: &'a Guard,
    /// The time.
    pub clock: Clock,
    /// How long the container may stay frozen; if nothing is said, what `pause=` makes of that.
    pub freeze_limit: Option<Duration>,
}

/// How the container is held still while its files are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pause {
    /// Frozen for a moment: what changed while its files were read is captured then.
    #[default]
    Seal,
    /// Frozen for the whole read.
    Full,
    /// Not at all: files that change meanwhile are named in the image's annotations.
    None,
    /// Stopped by its engine before, and started again afterwards.
    Stop,
}

impl Pause {
    /// The word of the option.
    pub fn as_str(self) -> &'static str {
        match self {
            Pause::Seal => "seal",
            Pause::Full => "full",
            Pause::None => "none",
            Pause::Stop => "stop",
        }
    }
}

/// What to capture, and how.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// How the container is held still.
    pub pause: Pause,
    /// How the layer is stored.
    pub compression: Compression,
    /// What is captured with it, at the same moment.
    pub volumes: &'a [Volume],
}

/// Captures what `container` changed.
pub fn capture(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: Request<'_>,
    progress: &Progress,
) -> Result<(Captured, Held), Error> {
    if request.pause == Pause::Stop {
        return stop::capture_stopped(context, lease, container, request, progress)
            .map_err(|error| error.about(&container.name));
    }
    let freezing = Freezing::of(context, container, SEAL_LIMIT).filter(|_| request.pause == Pause::Seal);
    let taken = match &freezing {
        Some(freezing) => seal::seal(context, lease, container, request, freezing, progress),
        None => capture_held(context, lease, container, request, progress),
    };
    taken.map_err(|error| error.about(&container.name))
}

/// What a commit would add now: `A|C|D path`, a line each.
pub fn changes(container: &Container, progress: &Progress) -> Result<Vec<u8>, Error> {
    // Nobody may want it any more by the time that its turn comes.
    progress.check().map_err(changeset::Error::from)?;
    let source = source::of(container);
    let changes = changeset::scan(&source, &source::mount_points(container)?, progress)?;
    let mut lines = Vec::new();
    // Writing to memory cannot fail.
    let _ = changes.write_lines(&mut lines);
    Ok(lines)
}

/// The changeset as a layer whose last bytes are still to be written.
#[derive(Debug)]
pub struct Captured {
    /// None if nothing has changed since the base image.
    pub layer: Option<LayerWriter>,
    /// Files whose content is not that of one moment.
    pub torn: Vec<Vec<u8>>,
    /// Sockets, which no layer can hold.
    pub skipped_sockets: u64,
    /// How often files were read before the freeze, and what was read in it: for `pause=seal`.
    pub sealed: Option<(usize, u64)>,
    /// The volumes, each with what it holds; their layers belong on top of this one, in this order.
    pub volumes: Vec<(Volume, LayerWriter)>,
}

impl Captured {
    fn nothing(changes: &Changes) -> Captured {
        Captured { layer: None, torn: Vec::new(), skipped_sockets: changes.sockets, sealed: None, volumes: Vec::new() }
    }

    fn new(changes: &Changes, written: tar::Written, layer: LayerWriter, progress: &Progress) -> Captured {
        let mut torn = written.torn;
        torn.extend_from_slice(&changes.vanished);
        torn.sort_unstable();
        torn.dedup();
        for path in &torn {
            progress.log(format!("changed while it was read: /{}", escape(path)));
        }
        for path in &changes.mounts {
            progress.log(format!("left out, something is mounted there: /{}", escape(path)));
        }
        if changes.dropped_xattrs > 0 {
            progress.log(format!("left out extended attributes that bind to this host: {}", changes.dropped_xattrs));
        }
        Captured {
            layer: Some(layer),
            torn,
            skipped_sockets: written.skipped_sockets,
            sealed: None,
            volumes: Vec::new(),
        }
    }

    /// What was read of a volume is part of this, as a layer of its own.
    fn add(&mut self, volume: &Volume, location: &Location, of_volume: Captured) {
        self.torn.extend(of_volume.torn.iter().map(|path| location.place(path)));
        self.torn.sort_unstable();
        self.skipped_sockets += of_volume.skipped_sockets;
        self.volumes.extend(of_volume.layer.map(|layer| (volume.clone(), layer)));
    }

    fn sealed(self, rounds: usize, bytes: u64) -> Captured {
        Captured { sealed: Some((rounds, bytes)), ..self }
    }
}

/// Hold the container in the old way, and read everything meanwhile.
fn capture_held(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: Request<'_>,
    progress: &Progress,
) -> Result<(Captured, Held), Error> {
    let hold = Hold::take(context, container, request.pause)?;
    progress.enter(hold.phase());
    let captured = read_held(context, lease, container, request, &hold, progress)?;
    Ok((captured, hold.end(context, container)?))
}

/// Read everything that the container changed; all that must happen while it is held.
fn read_held(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: Request<'_>,
    hold: &Hold,
    progress: &Progress,
) -> Result<Captured, Error> {
    let source = source::of(container);
    let mut snapshot = Snapshot::take(&source, &source::mount_points(container)?, progress)?;
    let changes = snapshot.changes(progress)?;
    let in_use = InUse::of(&hold.processes()?)?;
    let reading = Reading { context, lease, request, in_use: &in_use, is_still: hold.is_still(), progress };
    let mut captured = if changes.entries.is_empty() {
        Captured::nothing(&changes)
    } else {
        reading.read(&mut snapshot, &changes, None)?
    };
    let mut before: Vec<(Location, Snapshot)> = Vec::new();
    for volume in request.volumes {
        let location = volume.locate(&snapshot, before.iter().map(|(location, snapshot)| (location, snapshot)))?;
        let (read, inner) = reading.volume(volume, &location).map_err(|error| error.of_volume(volume))?;
        captured.add(volume, &location, read);
        before.push((location, inner));
    }
    settle(&mut snapshot, &changes, container, hold, progress)?;
    Ok(captured)
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
    fn read(&self, snapshot: &mut Snapshot, changes: &Changes, location: Option<&Location>) -> Result<Captured, Error> {
        let vanished = if self.is_still { tar::Vanished::Fail } else { tar::Vanished::Skip };
        let latest_mtime = self.context.clock.source_date_epoch().map(|at| at.as_second());
        // In the same place as if the container were sealed: the same files give the same bytes.
        let mut names = Names::default();
        if !self.in_use.untraceable.is_empty() {
            names.learn(snapshot, changes);
        }
        let layer = LayerWriter::new(self.lease.blob()?, self.request.compression)?;
        let mut writer = tar::Writer::new(layer, changes, self.progress, tar::Options { vanished, latest_mtime });
        layout::put_at(location, &mut writer)?;
        layout::write(changes, &mut writer, location, |entry| names.are_in(&self.in_use.untraceable, entry))?;
        let (written, layer) = writer.into_out()?;
        Ok(Captured::new(changes, written, layer, self.progress))
    }

    fn volume(&self, volume: &Volume, location: &Location) -> Result<(Captured, Snapshot), Error> {
        let mut snapshot = Snapshot::take(&volume.source(), &[], self.progress)?;
        let changes = snapshot.changes(self.progress)?;
        Ok((self.read(&mut snapshot, &changes, Some(location))?, snapshot))
    }
}

/// Nobody can be kept from starting or removing a container without processes: that is noticed afterwards, not least that
/// files went one by one.
fn settle(
    snapshot: &mut Snapshot,
    changes: &Changes,
    container: &Container,
    hold: &Hold,
    progress: &Progress,
) -> Result<(), Error> {
    if !matches!(hold, Hold::Stopped) {
        return Ok(());
    }
    snapshot.update(false, progress)?;
    let now = snapshot.changes(progress)?;
    let is_same = now.entries.len() == changes.entries.len()
        && now.entries.iter().zip(&changes.entries).all(|(now, then)| now.is_same(then));
    if is_same && changes.vanished.is_empty() && now.vanished.is_empty() {
        return Ok(());
    }
    Err(Error::Unsettled(container.name.clone()))
}
