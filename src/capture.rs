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
mod ground;
mod hold;
mod in_use;
mod layout;
mod look;
mod rehearsal;
mod seal;
mod source;

pub use base::import as import_base;
pub use error::Error;
pub use ground::{Memory, forget_gone};
pub use hold::Held;

use std::time::Duration;

use crate::changeset::{self, Changes, escape, tar};
use crate::engine::{Container, Engine};
use crate::guard::Guard;
use crate::image::{Compression, LayerWriter, Parent};
use crate::oci::{Digest, ImageName};
use crate::progress::Progress;
use crate::store::{Lease, Store};
use crate::sys::clock::Clock;
use crate::sys::dir::Time;
use ground::Ground;
use hold::{Freezing, Hold, SEAL_LIMIT};
use in_use::{InUse, Names};
use look::Look;

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
}

impl Pause {
    /// The word of the option.
    pub fn as_str(self) -> &'static str {
        match self {
            Pause::Seal => "seal",
            Pause::Full => "full",
            Pause::None => "none",
        }
    }
}

/// What the layer is the difference to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Base {
    /// The container's last snapshot where that is known well enough, else its base image.
    #[default]
    Auto,
    /// The image that the container was made from.
    Image,
    /// The image of that name, which must be the container's last snapshot.
    Named(ImageName),
}

/// Layers of an image from which on a snapshot begins anew at the base image: engines mount at most 127 or 128.
pub const MOST_LAYERS: usize = 100;

/// What to capture, and how.
#[derive(Debug, Clone)]
pub struct Request {
    /// How the container is held still.
    pub pause: Pause,
    /// How the layer is stored.
    pub compression: Compression,
    /// What it is the difference to.
    pub base: Base,
    /// [`MOST_LAYERS`], or fewer.
    pub most_layers: usize,
}

/// Captures what `container` changed.
pub fn capture(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: Request,
    progress: &Progress,
) -> Result<(Captured, Held), Error> {
    let captured = capture_on_last(context, lease, container, &request, progress);
    captured.map_err(|error| error.about(&container.name))
}

fn capture_on_last(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: &Request,
    progress: &Progress,
) -> Result<(Captured, Held), Error> {
    progress.enter("base");
    if let Some(last) = Ground::last(context, lease, container, request, progress)? {
        match capture_on(last, context, lease, container, request, progress) {
            Err(Error::Apart(reason)) if request.base == Base::Auto => {
                progress.log(format!("the layer is not the difference to the last snapshot: {reason}"));
                progress.enter("base");
            }
            done => return done,
        }
    }
    let image = Ground::image(context, lease, container, request, progress)?;
    capture_on(image, context, lease, container, request, progress)
}

fn capture_on(
    mut ground: Ground,
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: &Request,
    progress: &Progress,
) -> Result<(Captured, Held), Error> {
    let earlier = ground.earlier.take();
    let freezing = Freezing::of(context, container, SEAL_LIMIT).filter(|_| request.pause == Pause::Seal);
    let (taken, held) = match &freezing {
        Some(freezing) => {
            let look = Look::begin(container, earlier, progress)?;
            seal::seal(context, lease, container, request.compression, freezing, look, progress)?
        }
        None => {
            // Held in the old way, and all is read meanwhile.
            let hold = Hold::take(context, container, request.pause)?;
            progress.enter(hold.phase());
            let at = Time::now();
            let look = Look::begin(container, earlier, progress)?;
            let taken = read_held(context, lease, container, request, &hold, (look, at), progress)?;
            (taken, hold.end(context, container)?)
        }
    };
    let Taken { layer, torn, skipped_sockets, sealed, files } = taken;
    let memory = files.and_then(|files| Memory::of(context, container, request.compression, ground.origin, &files));
    let Ground { parent, snapshot, .. } = ground;
    Ok((Captured { parent, snapshot, layer, torn: torn.len(), skipped_sockets, sealed, memory }, held))
}

/// What it changed in its image, now: `A|C|D path`, a line each.
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
    /// What the layer is laid on.
    pub parent: Parent,
    /// The manifest of the container's snapshot that this is; none if it is the base image.
    pub snapshot: Option<Digest>,
    /// None if nothing has changed since then.
    pub layer: Option<LayerWriter>,
    /// Files whose content is not that of one moment.
    pub torn: usize,
    /// Sockets, which no layer can hold.
    pub skipped_sockets: u64,
    /// How often files were read before the freeze, and what was read in it: for `pause=seal`.
    pub sealed: Option<(usize, u64)>,
    /// To keep once the image is there, so that the next capture can stand on it.
    pub memory: Option<Memory>,
}

/// What was read of a container.
struct Taken {
    layer: Option<LayerWriter>,
    torn: Vec<Vec<u8>>,
    skipped_sockets: u64,
    sealed: Option<(usize, u64)>,
    /// What [`Look::remember`] made of it.
    files: Option<Vec<u8>>,
}

impl Taken {
    fn nothing(changes: &Changes) -> Taken {
        Taken { layer: None, torn: Vec::new(), skipped_sockets: changes.sockets, sealed: None, files: None }
    }

    fn new(changes: &Changes, mut written: tar::Written, layer: LayerWriter, progress: &Progress) -> Taken {
        let mut torn = std::mem::take(&mut written.torn);
        torn.extend_from_slice(&changes.vanished);
        for path in &torn {
            progress.log(format!("changed while it was read: /{}", escape(path)));
        }
        for path in &changes.mounts {
            progress.log(format!("left out, something is mounted there: /{}", escape(path)));
        }
        if changes.dropped_xattrs > 0 {
            progress.log(format!("left out extended attributes that bind to this host: {}", changes.dropped_xattrs));
        }
        Taken { layer: Some(layer), torn, skipped_sockets: written.skipped_sockets, sealed: None, files: None }
    }
}

/// Read everything that the container changed; all that must happen while it is held. `at` it was held, and not yet looked
/// at.
fn read_held(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: &Request,
    hold: &Hold,
    (mut look, at): (Look, Time),
    progress: &Progress,
) -> Result<Taken, Error> {
    let changes = look.changes(progress)?;
    // In the same place as if the container were sealed: the same files give the same bytes.
    let (in_use, mut names) = (InUse::of(&hold.processes()?)?, Names::default());
    let mut taken = if changes.entries.is_empty() {
        settle(&mut look, &changes, container, hold, progress)?;
        Taken::nothing(&changes)
    } else {
        let vanished = if hold.is_still() { tar::Vanished::Fail } else { tar::Vanished::Skip };
        let latest_mtime = context.clock.source_date_epoch().map(|at| at.as_second());
        if !in_use.untraceable.is_empty() {
            names.learn(&mut look.snapshot, &changes);
        }
        let layer = LayerWriter::new(lease.blob()?, request.compression)?;
        let mut writer = tar::Writer::new(layer, &changes, progress, tar::Options { vanished, latest_mtime });
        layout::write(&changes, &mut writer, |entry| names.are_in(&in_use.untraceable, entry))?;
        let (written, layer) = writer.into_out()?;
        settle(&mut look, &changes, container, hold, progress)?;
        Taken::new(&changes, written, layer, progress)
    };
    if hold.is_still() {
        taken.files = look.remember(&changes, &in_use, &taken.torn, &mut names, at);
    }
    Ok(taken)
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
