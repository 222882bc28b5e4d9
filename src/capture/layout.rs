//! The order of a layer: regular files first, in the order of their paths, then all else.
//!
//! So a layer can be begun while the container runs: of a regular file it is known what changed it. One thing comes
//! before the files: a directory in place of something else in the layers below, before what is in it, because a program
//! that unpacks the layer would find the other thing there.

use crate::capture::Error;
use crate::changeset::tar::Writer;
use crate::changeset::{Changes, Entry, Kind};
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
    late: impl Fn(&Entry) -> bool,
) -> Result<(), Error> {
    let is_first = |entry: &&Entry| is_early(entry) && !late(entry);
    let first = changes.entries.iter().filter(is_first);
    let rest = changes.entries.iter().filter(|entry| !is_first(entry));
    for entry in first.chain(rest) {
        let content = if entry.kind == Kind::File { entry.metadata.size } else { 0 };
        writer.out().begin_entry(content);
        writer.entry(entry)?;
    }
    Ok(())
}
