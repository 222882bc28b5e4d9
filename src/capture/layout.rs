//! The order of a layer: regular files first, in the order of their paths, then all else.
//!
//! So a layer can be begun while the container runs: of a regular file it is known what changed it. One thing comes
//! before the files: a directory in place of something else in the layers below, before what is in it, because a program
//! that unpacks the layer would find the other thing there.

use crate::capture::Error;
use crate::changeset::tar::Writer;
use crate::changeset::{Changes, Entry, Kind, Location};
use crate::image::LayerWriter;

/// Whether `entry` belongs into the first part.
pub(super) fn is_early(entry: &Entry) -> bool {
    entry.kind == Kind::File || (entry.kind == Kind::Directory && entry.replaces)
}

/// Writes `changes` in this order, reading the files as they are. Those that are `late` come with the rest, as they would
/// if the container were sealed.
pub(super) fn write(
    changes: &Changes,
    writer: &mut Writer<'_, LayerWriter>,
    location: Option<&Location>,
    late: impl Fn(&Entry) -> bool,
) -> Result<(), Error> {
    let is_first = |entry: &&Entry| is_early(entry) && !late(entry);
    let mut first = changes.entries.iter().filter(is_first);
    let mut rest = changes.entries.iter().filter(|entry| !is_first(entry));
    first.try_for_each(|entry| write_entry(entry, writer))?;
    above(location, writer)?;
    rest.try_for_each(|entry| write_entry(entry, writer))
}

fn write_entry(entry: &Entry, writer: &mut Writer<'_, LayerWriter>) -> Result<(), Error> {
    let content = if entry.kind == Kind::File { entry.metadata.size } else { 0 };
    writer.out().begin_entry(content);
    Ok(writer.entry(entry)?)
}

/// The beginning of a layer: where a volume is to be put.
pub(super) fn put_at(location: Option<&Location>, writer: &mut Writer<'_, LayerWriter>) -> Result<(), Error> {
    if let Some(location) = location {
        writer.out().begin_entry(0);
        writer.put_at(location)?;
    }
    Ok(())
}

/// The directories above a volume: between the two parts of its layer.
pub(super) fn above(location: Option<&Location>, writer: &mut Writer<'_, LayerWriter>) -> Result<(), Error> {
    if let Some(location) = location {
        writer.out().begin_entry(0);
        writer.above(location)?;
    }
    Ok(())
}
