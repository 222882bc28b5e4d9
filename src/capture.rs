//! A container's files as they were at one moment, as the layer of an image; and what that layer stands on.
//!
//! [`capture`] → [`Captured`]: what changed is found, read and encoded, and the container stands still
//! only while that must be. Whoever makes an image of it, a commit or a checkpoint, gives the layer its place.
//!
//! What must hold: the container runs again whatever happens here; nothing of it is changed; a capture that returns is the
//! state at one point in time, or says of which files it is not.

mod aside;
mod base;
mod during;
mod error;
mod ground;
mod held;
mod hold;
mod in_use;
mod layout;
mod look;
mod rehearsal;
mod seal;
mod source;
mod spec;
mod stop;
mod taken;
mod torn;
mod volumes;

pub use base::import as import_base;
pub use during::{Act, During, Moment, capture_during, hold_during};
pub use error::Error;
pub use ground::{Memory, forget_gone};
pub use hold::Held;
pub use volumes::{Volume, Volumes, declared as declared_volumes, included as included_volumes};

use std::time::Duration;

use crate::changeset;
use crate::engine::{Container, Engine};
use crate::guard::Guard;
use crate::image::{Compression, LayerWriter, Parent};
use crate::oci::{Digest, ImageName};
use crate::progress::Progress;
use crate::store::{Lease, Store};
use crate::sys::boot::clock_lead;
use crate::sys::clock::Clock;
use during::Still;
use ground::Ground;
use hold::{Freezing, SEAL_LIMIT};
use taken::Taken;

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

/// Layers of an image from which on the snapshots among them are made one: engines mount at most 127 or 128.
pub const MOST_LAYERS: usize = 100;

/// Which layers the image will have as one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Squash {
    /// None of them.
    #[default]
    None,
    /// The container's snapshots, this one included.
    Snapshots,
    /// All.
    All,
}

/// What to capture, and how.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// How the container is held still.
    pub pause: Pause,
    /// How the layer is stored.
    pub compression: Compression,
    /// What it is the difference to.
    pub base: &'a Base,
    /// [`MOST_LAYERS`], or fewer.
    pub most_layers: usize,
    /// What will become of the layer and of those below.
    pub squash: Squash,
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
    let captured = match request.pause {
        Pause::Stop => stop::capture_stopped(context, lease, container, request, progress),
        Pause::Seal | Pause::Full | Pause::None => capture_on_last(context, lease, container, request, progress),
    };
    captured.map_err(|error| error.about(&container.name))
}

/// On the container's last snapshot if that can be, else on its base image.
fn capture_on_last(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: Request<'_>,
    progress: &Progress,
) -> Result<(Captured, Held), Error> {
    progress.enter("base");
    if let Some(last) = Ground::last(context, lease, container, request, progress)? {
        match capture_on(last, context, lease, container, request, progress) {
            Err(Error::Apart(reason)) if *request.base == Base::Auto => {
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
    request: Request<'_>,
    progress: &Progress,
) -> Result<(Captured, Held), Error> {
    let (earlier, lead) = (ground.earlier.take(), clock_lead());
    let freezing = Freezing::of(context, container, SEAL_LIMIT).filter(|_| request.pause == Pause::Seal);
    let (taken, held) = match &freezing {
        Some(freezing) => {
            let mut end = |frozen| Held::of(frozen, Pause::Seal);
            let still = Still { freezing, during: &mut |_| Ok(()), end: &mut end };
            seal::seal(context, lease, container, request, still, earlier, progress)?
        }
        None => held::read(context, lease, container, request, earlier, progress)?,
    };
    let Taken { layer, torn, skipped_sockets, sealed, volumes, files, deleted: _ } = taken;
    // The layers of volumes are not told of by the container's own files.
    let files = files.filter(|_| request.volumes.is_empty());
    let Ground { parent, snapshot, mut origin, .. } = ground;
    let base_layers = origin.layers;
    if request.squash == Squash::All {
        // The one layer is what later snapshots are merged above.
        (origin.layers, origin.is_merged) = (1, true);
    }
    let memory = files.and_then(|files| Memory::of(context, container, request.compression, origin, (lead, &files)));
    Ok((Captured { parent, base_layers, snapshot, layer, torn, skipped_sockets, sealed, volumes, memory }, held))
}

/// What it changed in its image, now: `A|C|D path`, a line each.
pub fn changes(container: &Container, progress: &Progress) -> Result<Vec<u8>, Error> {
    // Nobody may want it any more by the time that its turn comes.
    progress.check().map_err(changeset::Error::from)?;
    let source = source::of(container)?;
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
    /// How many of its layers are no snapshots.
    pub base_layers: usize,
    /// The manifest of the container's snapshot that this is; none if it is the base image.
    pub snapshot: Option<Digest>,
    /// None if nothing has changed since then.
    pub layer: Option<LayerWriter>,
    /// Files whose content is not that of one moment.
    pub torn: Vec<Vec<u8>>,
    /// Sockets, which no layer can hold.
    pub skipped_sockets: u64,
    /// How often files were read before the freeze, and what was read in it: for `pause=seal`.
    pub sealed: Option<(usize, u64)>,
    /// The volumes, each with what it holds; their layers belong on top of this one, in this order.
    pub volumes: Vec<(Volume, LayerWriter)>,
    /// To keep once the image is there, so that the next capture can stand on it.
    pub memory: Option<Memory>,
}
