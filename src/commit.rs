//! The commit pipeline: container → held → captured → layer → config and manifest → name.
//!
//! [`commit`] is the function to read first. Each step consumes what the step before made, so that the order cannot be
//! got wrong: children are durable before parents, and the name comes last, so that visible means complete.

mod options;

pub use options::{Options, TABLE as OPTIONS};

use std::collections::BTreeMap;

use crate::capture::{
    Captured, Context, Error, Held, Request, Squash, Volumes, capture, declared_volumes, included_volumes,
};
use crate::engine::Container;
use crate::image::{Draft, History, Layer};
use crate::oci::{Descriptor, annotation};
use crate::progress::Progress;
use crate::squash::squash;
use crate::store::{Record, Replace};

/// Snapshot the container's file system under `options.name`; returns the manifest once the image is durable and
/// visible. An error leaves nothing behind but blobs for the collector.
pub fn commit(
    context: &Context<'_>,
    container: &Container,
    options: &Options,
    progress: &Progress,
) -> Result<Descriptor, Error> {
    let Context { store, clock, .. } = context;
    let replace = if options.create { Replace::Refused } else { Replace::Allowed };
    // Nobody's container stands still for a name that cannot be had.
    store.check_free(&options.name, replace)?;
    // From here on new blobs survive a collection.
    let lease = store.lease()?;
    let declared = match options.volumes {
        Volumes::Declare => declared_volumes(container)?,
        Volumes::Skip | Volumes::Include => Vec::new(),
    };
    let volumes = match options.volumes {
        Volumes::Include => included_volumes(context, container, progress)?,
        Volumes::Skip | Volumes::Declare => Vec::new(),
    };
    let request = Request {
        pause: options.pause,
        compression: options.compression,
        base: &options.base,
        most_layers: options.most_layers,
        squash: options.squash,
        volumes: &volumes,
    };
    let (mut captured, held) = capture(context, &lease, container, request, progress)?;
    captured.parent.change(&options.changes, &declared)?;

    progress.enter("finishing");
    let mut annotations = annotations(container, options, &held, &captured);
    // Not the same twice, so that it has no place in an image that is to be.
    if clock.source_date_epoch().is_none() {
        let frozen = held.frozen_for.as_micros().to_string();
        annotations.insert(annotation::FROZEN_MICROSECONDS.to_owned(), frozen);
        if let Some((rounds, bytes)) = captured.sealed {
            annotations.insert(annotation::ROUNDS.to_owned(), rounds.to_string());
            annotations.insert(annotation::FROZEN_BYTES.to_owned(), bytes.to_string());
        }
    }
    let history = |of: &str| History {
        created: clock.now(),
        created_by: format!("snapfs commit of {} ({}){of}", container.name, container.engine),
        author: options.author.clone(),
        comment: options.message.clone(),
    };
    let mut parent = captured.parent;
    let (mut layer, mut entry) = (captured.layer.map(|layer| layer.finish_for(progress)).transpose()?, history(""));
    for (volume, writer) in captured.volumes {
        parent = parent.with(layer, entry)?;
        (layer, entry) =
            (Some(writer.finish_for(progress)?), history(&format!(": volume {}", volume.destination.display())));
    }
    let depth = parent.layers.len() + usize::from(layer.is_some());
    let below = match options.squash {
        Squash::All => Some(0),
        // Volumes have layers of their own, and where there are any, there are no earlier snapshots.
        Squash::Snapshots => captured.snapshot.and(Some(captured.base_layers)).filter(|below| depth > below + 1),
        Squash::None => None,
    };
    if let Some(below) = below {
        let layers: Vec<Layer> = parent.layers.iter().cloned().chain(layer).collect();
        layer = squash(store, &lease, &layers, below, options.compression, progress).map_err(Error::from)?;
        parent = parent.merged(below, None)?;
    }
    let draft = Draft { parent: &parent, layer: layer.as_ref(), history: entry, annotations };
    let manifest = draft.write(&lease)?;

    progress.check()?;
    let labels = options.labels.clone();
    let kind = Some(KIND.to_owned());
    let record = Record { kind, labels, made_here: true, ..Record::new(manifest.clone(), clock.now()) };
    // The commit point.
    store.tag(&lease, &options.name, record, replace)?;
    if let Some(memory) = captured.memory {
        memory.keep(store, &manifest.digest);
    }
    Ok(manifest)
}

/// [`annotation::KIND`] of what this module makes.
const KIND: &str = "commit";

fn annotations(container: &Container, options: &Options, held: &Held, captured: &Captured) -> BTreeMap<String, String> {
    let mut annotations = options.annotations.clone();
    let mut set = |key: &str, value: String| annotations.insert(key.to_owned(), value);
    set(annotation::KIND, KIND.to_owned());
    set(annotation::ENGINE, container.engine.to_owned());
    set(annotation::CONTAINER_ID, container.id.clone());
    set(annotation::CONTAINER_NAME, container.name.clone());
    set(annotation::PAUSE, held.how.to_owned());
    // Which layers the image has below its last one.
    let (base, parent) = match (options.squash, captured.snapshot) {
        (Squash::All, _) => ("none", None),
        (Squash::None, Some(digest)) => ("snapshot", Some(digest)),
        _ => ("image", None),
    };
    set(annotation::BASE, base.to_owned());
    if let Some(digest) = parent {
        set(annotation::PARENT, digest.to_string());
    }
    let counts =
        [(annotation::TORN_FILES, captured.torn.len() as u64), (annotation::SKIPPED_SOCKETS, captured.skipped_sockets)];
    for (key, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        set(key, count.to_string());
    }
    if !captured.volumes.is_empty() {
        let paths: Vec<_> = captured.volumes.iter().map(|(volume, _)| volume.destination.to_string_lossy()).collect();
        set(annotation::VOLUMES, paths.join("\n"));
    }
    if !captured.torn.is_empty() {
        set(annotation::TORN, captured.torn_text());
    }
    let base_name = captured.parent.name.clone().filter(|_| base != "none");
    let words = [
        (annotation::BASE_NAME, &base_name),
        (annotation::AUTHORS, &options.author),
        (annotation::DESCRIPTION, &options.description),
    ];
    for (key, text) in words {
        if let Some(text) = text {
            set(key, text.clone());
        }
    }
    annotations
}
