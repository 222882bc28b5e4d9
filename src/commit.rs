//! The commit pipeline: container → held → captured → layer → config and manifest → name.
//!
//! [`commit`] is the function to read first. Each step consumes what the step before made, so that the order cannot be
//! got wrong: children are durable before parents, and the name comes last, so that visible means complete.

mod aside;
mod base;
mod error;
mod hold;
mod in_use;
mod layout;
mod options;
mod seal;
mod source;

pub use error::Error;
pub use options::{Error as OptionsError, Options, Pause, TABLE as OPTIONS};

use std::collections::BTreeMap;
use std::time::Duration;

use crate::changeset::{self, Changes, Snapshot, escape, tar};
use crate::engine::{Container, Engine};
use crate::guard::Guard;
use crate::image::{Draft, History, LayerWriter, Parent};
use crate::oci::{Descriptor, annotation};
use crate::progress::Progress;
use crate::store::{Lease, Record, Replace, Store};
use crate::sys::clock::Clock;
use hold::{Freezing, Held, Hold, SEAL_LIMIT};
use in_use::{InUse, Names};

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
    /// How long the container may stay frozen; if nothing is said, what `pause=` makes of that.
    pub freeze_limit: Option<Duration>,
}

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
    progress.enter("base");
    let parent = base::import(context, &lease, container, options.compression, progress)?;

    let freezing = Freezing::of(context, container, SEAL_LIMIT).filter(|_| options.pause == Pause::Seal);
    let taken = match &freezing {
        Some(freezing) => seal::seal(context, &lease, container, options.compression, freezing, progress),
        None => capture_held(context, &lease, container, options, progress),
    };
    let (captured, held) = taken.map_err(|error| error.about(&container.name))?;

    progress.enter("finishing");
    let mut annotations = annotations(container, &parent, options, &held, &captured);
    // Not the same twice, so that it has no place in an image that is to be.
    if clock.source_date_epoch().is_none() {
        let frozen = held.frozen_for.as_micros().to_string();
        annotations.insert(annotation::FROZEN_MICROSECONDS.to_owned(), frozen);
        if let Some((rounds, bytes)) = captured.sealed {
            annotations.insert(annotation::ROUNDS.to_owned(), rounds.to_string());
            annotations.insert(annotation::FROZEN_BYTES.to_owned(), bytes.to_string());
        }
    }
    let layer = captured.layer.map(LayerWriter::finish).transpose()?;
    let history = History {
        created: clock.now(),
        created_by: format!("snapfs commit of {} ({})", container.name, container.engine),
        author: options.author.clone(),
        comment: options.message.clone(),
    };
    let draft = Draft { parent: &parent, layer: layer.as_ref(), history, annotations };
    let manifest = draft.write(&lease)?;

    progress.check()?;
    let labels = options.labels.clone();
    let record = Record { kind: Some(KIND.to_owned()), labels, ..Record::new(manifest.clone(), clock.now()) };
    // The commit point.
    store.tag(&lease, &options.name, record, replace)?;
    Ok(manifest)
}

/// What a commit would add now: `A|C|D path`, a line each.
pub fn changes(container: &Container) -> Result<Vec<u8>, Error> {
    let source = source::of(container);
    let changes = changeset::scan(&source, &source::mount_points(container)?, &Progress::new())?;
    let mut lines = Vec::new();
    // Writing to memory cannot fail.
    let _ = changes.write_lines(&mut lines);
    Ok(lines)
}

/// [`annotation::KIND`] of what this module makes.
const KIND: &str = "commit";

/// The changeset as a layer whose last bytes are still to be written.
struct Captured {
    /// None if nothing has changed since the base image.
    layer: Option<LayerWriter>,
    torn: usize,
    skipped_sockets: u64,
    /// How often files were read before the freeze, and what was read in it: for `pause=seal`.
    sealed: Option<(usize, u64)>,
}

impl Captured {
    fn nothing(changes: &Changes) -> Captured {
        Captured { layer: None, torn: 0, skipped_sockets: changes.sockets, sealed: None }
    }

    fn new(changes: &Changes, written: tar::Written, layer: LayerWriter, progress: &Progress) -> Captured {
        for path in written.torn.iter().chain(&changes.vanished) {
            progress.log(format!("changed while it was read: /{}", escape(path)));
        }
        for path in &changes.mounts {
            progress.log(format!("left out, something is mounted there: /{}", escape(path)));
        }
        if changes.dropped_xattrs > 0 {
            progress.log(format!("left out extended attributes that bind to this host: {}", changes.dropped_xattrs));
        }
        let torn = written.torn.len() + changes.vanished.len();
        Captured { layer: Some(layer), torn, skipped_sockets: written.skipped_sockets, sealed: None }
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
    options: &Options,
    progress: &Progress,
) -> Result<(Captured, Held), Error> {
    let hold = Hold::take(context, container, options.pause)?;
    progress.enter(hold.phase());
    let captured = capture(context, lease, container, options, &hold, progress)?;
    Ok((captured, hold.end(context, container)?))
}

/// Read everything that the container changed; all that must happen while it is held.
fn capture(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    options: &Options,
    hold: &Hold,
    progress: &Progress,
) -> Result<Captured, Error> {
    let source = source::of(container);
    let mut snapshot = Snapshot::take(&source, &source::mount_points(container)?, progress)?;
    let changes = snapshot.changes(progress)?;
    if changes.entries.is_empty() {
        settle(&mut snapshot, &changes, container, hold, progress)?;
        return Ok(Captured::nothing(&changes));
    }
    let vanished = if hold.is_still() { tar::Vanished::Fail } else { tar::Vanished::Skip };
    let latest_mtime = context.clock.source_date_epoch().map(|at| at.as_second());
    // In the same place as if the container were sealed: the same files give the same bytes.
    let (in_use, mut names) = (InUse::of(&hold.processes()?)?, Names::default());
    if !in_use.untraceable.is_empty() {
        names.learn(&mut snapshot, &changes);
    }
    let layer = LayerWriter::new(lease.blob()?, options.compression)?;
    let mut writer = tar::Writer::new(layer, &changes, progress, tar::Options { vanished, latest_mtime });
    layout::write(&changes, &mut writer, |entry| names.are_in(&in_use.untraceable, entry))?;
    let (written, layer) = writer.into_out()?;
    settle(&mut snapshot, &changes, container, hold, progress)?;
    Ok(Captured::new(&changes, written, layer, progress))
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

fn annotations(
    container: &Container,
    parent: &Parent,
    options: &Options,
    held: &Held,
    captured: &Captured,
) -> BTreeMap<String, String> {
    let mut annotations = options.annotations.clone();
    let mut set = |key: &str, value: String| annotations.insert(key.to_owned(), value);
    set(annotation::KIND, KIND.to_owned());
    set(annotation::ENGINE, container.engine.to_owned());
    set(annotation::CONTAINER_ID, container.id.clone());
    set(annotation::CONTAINER_NAME, container.name.clone());
    set(annotation::PAUSE, held.how.to_owned());
    let counts =
        [(annotation::TORN_FILES, captured.torn as u64), (annotation::SKIPPED_SOCKETS, captured.skipped_sockets)];
    for (key, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        set(key, count.to_string());
    }
    let words = [
        (annotation::BASE_NAME, &parent.name),
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
