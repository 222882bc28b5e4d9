//! The commit pipeline: container → frozen → changes → layer → config and manifest → name.
//!
//! [`commit`] is the function to read first. Each step consumes what the step before made, so that the order cannot be
//! got wrong: children are durable before parents, and the name comes last, so that visible means complete.

mod base;
mod changeset;
mod error;
mod options;
mod tar;

pub use error::Error;
pub use options::{Error as OptionsError, Options, Pause, TABLE as OPTIONS};

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::engine::{Container, Engine, Status};
use crate::guard::{Frozen, Guard};
use crate::image::{Draft, History, Layer, LayerWriter, Parent};
use crate::oci::{Descriptor, annotation};
use crate::progress::Progress;
use crate::store::{Lease, Record, Replace, Store};
use crate::sys::clock::Clock;

/// What a commit needs of its surroundings.
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
    /// How long the container may stay frozen.
    pub freeze_limit: Duration,
}

/// Snapshot the container's file system under `options.name`; returns the manifest once the image is durable and
/// visible. An error leaves nothing behind but blobs for the collector.
pub fn commit(
    context: &Context<'_>,
    container: &Container,
    options: &Options,
    progress: &Progress,
) -> Result<Descriptor, Error> {
    if options.create && context.store.record(&options.name).is_some() {
        return Err(Error::Exists(options.name.clone()));
    }
    // From here on new blobs survive a collection.
    let lease = context.store.lease()?;
    progress.enter("base");
    let parent = base::import(context, &lease, container, progress)?;

    let hold = Hold::take(context, container, options.pause, progress)?;
    let layer = capture(context, &lease, container, options, progress)?;
    let held = hold.end()?;
    progress.enter("finishing");
    let Captured { layer, torn, skipped_sockets } = layer;

    let annotations = annotations(container, &parent, options, &held, torn.len(), skipped_sockets);
    for path in torn {
        progress.log(format!("changed while it was read: {path}"));
    }
    let layer = layer.map(Unfinished::finish).transpose()?;
    let history = History {
        created: context.clock.now(),
        created_by: format!("snapfs commit of {} ({})", container.name, container.engine),
        author: options.author.clone(),
        comment: options.message.clone(),
    };
    let draft = Draft { parent: &parent, layer: layer.as_ref(), history, annotations };
    let manifest = draft.write(&lease)?;

    progress.check()?;
    let mut record = Record::new(manifest.clone(), context.clock.now(), Some("commit".to_owned()));
    record.labels = options.labels.clone();
    let replace = if options.create { Replace::Refused } else { Replace::Allowed };
    // The commit point.
    context.store.tag(&lease, &options.name, record, replace)?;
    Ok(manifest)
}
