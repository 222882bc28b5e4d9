//! A capture in whose freeze something else is done: what that makes and the files are of one moment.

use std::time::{Duration, Instant};

use crate::capture::hold::{Freezing, Held};
use crate::capture::taken::Taken;
use crate::capture::{Base, Context, Error, MOST_LAYERS, Pause, Request, Squash, seal};
use crate::engine::Container;
use crate::guard::Frozen;
use crate::image::{Compression, LayerWriter};
use crate::progress::Progress;
use crate::store::Lease;
use crate::sys::priority::Hurry;

/// What a standstill is used for, and how it ends.
pub(super) struct Still<'a> {
    /// How it is brought about.
    pub(super) freezing: &'a Freezing,
    /// Done first. It may let the container's processes be stopped by other means, as long as none of them runs.
    pub(super) during: &'a mut dyn FnMut(&Frozen) -> Result<(), Error>,
    /// Lets the container run.
    pub(super) end: &'a mut dyn FnMut(Frozen) -> Result<Held, Error>,
}

/// What to do while a container is frozen.
pub struct During<'a> {
    /// Given the frozen container and when that must have ended. Its error becomes [`Error::During`].
    pub act: &'a mut Act<'a>,
    /// How long the container may stay frozen if its user says nothing else.
    pub limit: Duration,
    /// The container is not let run: the caller gets it as it is.
    pub keep: bool,
}

/// The container's files of that moment, as the difference to its image.
#[derive(Debug)]
pub struct Moment {
    /// None if nothing differs.
    pub layer: Option<LayerWriter>,
    /// Files that somebody outside of the container wrote to.
    pub torn: usize,
    /// Sockets, which no layer can hold.
    pub skipped_sockets: u64,
    /// How often files were read before the freeze, and what was read in it.
    pub sealed: (usize, u64),
    /// What the container deleted, relative to its root: in the layer these are whiteouts.
    pub deleted: Vec<Vec<u8>>,
}

/// What is done in the freeze.
pub type Act<'a> = dyn FnMut(&Frozen, Instant) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + 'a;

impl std::fmt::Debug for During<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("During").field("limit", &self.limit).field("keep", &self.keep).finish_non_exhaustive()
    }
}

/// Does `during` in a freeze, and captures nothing.
///
/// # Errors
/// Those of [`capture_during`] that do not come from files.
pub fn hold_during(
    context: &Context<'_>,
    container: &Container,
    during: During<'_>,
    progress: &Progress,
) -> Result<(Held, Option<Frozen>), Error> {
    let freezing = freezing(context, container, &during)?;
    let mut hold = || {
        progress.enter("frozen");
        let hurry = Hurry::begin();
        let frozen = freezing.freeze(context)?;
        let until = Instant::now() + freezing.limit().mul_f32(0.8);
        (during.act)(&frozen, until).map_err(Error::During)?;
        let held = if during.keep {
            (Held::so_far(&frozen, Pause::Seal), Some(frozen))
        } else {
            (Held::of(frozen, Pause::Seal)?, None)
        };
        drop(hurry);
        Ok(held)
    };
    hold().map_err(|error: Error| error.about(&container.name))
}

fn freezing(context: &Context<'_>, container: &Container, during: &During<'_>) -> Result<Freezing, Error> {
    Freezing::of(context, container, during.limit)
        .ok_or_else(|| Error::NotRunning { name: container.name.clone(), status: container.status.as_str() })
}

/// Captures what `container` changed as of the moment in which `during` was done. A container that is to be kept comes
/// back frozen; it runs when that value is dropped.
///
/// # Errors
/// [`Error::NotRunning`], and those of [`capture`](super::capture).
pub fn capture_during(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    compression: Compression,
    during: During<'_>,
    progress: &Progress,
) -> Result<(Moment, Held, Option<Frozen>), Error> {
    let freezing = freezing(context, container, &during)?;
    let until = freezing.limit();
    let mut kept = None;
    let mut act = |frozen: &Frozen| (during.act)(frozen, Instant::now() + until.mul_f32(0.8)).map_err(Error::During);
    let mut end = |frozen: Frozen| {
        if !during.keep {
            return Held::of(frozen, Pause::Seal);
        }
        let held = Held::so_far(&frozen, Pause::Seal);
        kept = Some(frozen);
        Ok(held)
    };
    let still = Still { freezing: &freezing, during: &mut act, end: &mut end };
    let (base, volumes) = (Base::Image, []);
    let (pause, squash) = (Pause::Seal, Squash::None);
    let request = Request { pause, compression, base: &base, most_layers: MOST_LAYERS, squash, volumes: &volumes };
    let sealed = seal::seal(context, lease, container, request, still, None, progress);
    let (taken, held) = sealed.map_err(|error| error.about(&container.name))?;
    let Taken { layer, torn, skipped_sockets, sealed, deleted, .. } = taken;
    let captured = Moment { layer, torn: torn.len(), skipped_sockets, sealed: sealed.unwrap_or_default(), deleted };
    Ok((captured, held, kept))
}
