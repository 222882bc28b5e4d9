//! [`Look`]: what is in a container's files, and what of it is not in the snapshot that the capture stands on.

use std::path::PathBuf;

use crate::capture::Error;
use crate::capture::in_use::{InUse, Names};
use crate::changeset::{Changes, Earlier, Entry, Snapshot, Source, is_settled};
use crate::progress::Progress;
use crate::sys::dir::Time;

/// A snapshot of the files, and what an earlier one had of them.
pub(super) struct Look {
    pub(super) snapshot: Snapshot,
    earlier: Option<Earlier>,
    /// All changes, if [`changes`](Look::changes) gave only those since the earlier snapshot.
    all: Option<Changes>,
}

impl Look {
    pub(super) fn begin(
        source: &Source,
        mounts: &[PathBuf],
        earlier: Option<(Snapshot, Earlier)>,
        progress: &Progress,
    ) -> Result<Look, Error> {
        let Some((mut snapshot, earlier)) = earlier else {
            let snapshot = Snapshot::take(source, mounts, progress)?;
            return Ok(Look { snapshot, earlier: None, all: None });
        };
        snapshot.update(false, progress)?;
        Ok(Look { snapshot, earlier: Some(earlier), all: None })
    }

    /// Whether only what has changed since an earlier snapshot belongs into the layer.
    pub(super) fn is_difference(&self) -> bool {
        self.earlier.is_some()
    }

    /// What belongs into the layer, as of the last look.
    pub(super) fn changes(&mut self, progress: &Progress) -> Result<Changes, Error> {
        let Some(earlier) = &self.earlier else { return Ok(self.snapshot.changes(progress)?) };
        let all = self.snapshot.changes_since(earlier, progress)?;
        if self.snapshot.needs_merged() || all.needs_merged() {
            return Err(Error::Apart(
                "directories were renamed or metadata copied by the overlay (redirect_dir, metacopy)",
            ));
        }
        let changes =
            earlier.difference(&all).ok_or(Error::Apart("what it deleted or changed is as in the base image"))?;
        self.all = Some(all);
        Ok(changes)
    }

    /// All that the next capture must know to be a difference to this one, which is what was seen in the last look, at
    /// some time since `at`. `in_use` is of that time, too. None if it could not trust that.
    pub(super) fn remember(
        mut self,
        changes: &Changes,
        in_use: &InUse,
        torn: &[Vec<u8>],
        names: &mut Names,
        at: Time,
    ) -> Option<Vec<u8>> {
        let all = self.all.take();
        let all = all.as_ref().unwrap_or(changes);
        let is_sure = self.snapshot.leaves_traces() && !self.snapshot.needs_merged() && !all.needs_merged();
        if !is_sure || !all.vanished.is_empty() {
            return None;
        }
        if !in_use.untraceable.is_empty() {
            names.learn(&mut self.snapshot, all);
        }
        let is_stale = |entry: &Entry| {
            !is_settled(entry.metadata.ctime, at)
                || names.are_in(&in_use.untraceable, entry)
                || torn.contains(&entry.path)
        };
        Some(self.snapshot.remember(&Earlier::of(all, is_stale), at))
    }
}
