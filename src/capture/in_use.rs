//! Which of a container's files its processes can write to, and how.

use std::collections::{HashMap, HashSet};

use crate::capture::Error;
use crate::changeset::{Changes, Entry, Kind, Snapshot};
use crate::sys::dir::Device;
use crate::sys::held::{By, held};

/// A file as somebody sees it. A file of an overlay has several: those in its layer, and those that the overlay shows.
type Numbers = (Device, u64);

/// The files that processes can write to.
#[derive(Debug, Default)]
pub(super) struct InUse {
    /// Those that can change without a trace in their change time: mapped shared, or open for direct writing.
    pub(super) untraceable: HashSet<Numbers>,
    /// Those that are open for writing otherwise.
    pub(super) open: HashSet<Numbers>,
}

impl InUse {
    pub(super) fn of(pids: &[u32]) -> Result<InUse, Error> {
        let mut found = InUse::default();
        for held in held(pids).map_err(Error::InUse)? {
            let set = if held.by == By::Descriptor { &mut found.open } else { &mut found.untraceable };
            set.insert((held.device, held.ino));
        }
        Ok(found)
    }
}

/// As what the processes of a container see each of its changed files, by path.
#[derive(Debug, Default)]
pub(super) struct Names(HashMap<Vec<u8>, Vec<Numbers>>);

impl Names {
    pub(super) fn learn(&mut self, snapshot: &mut Snapshot, changes: &Changes) {
        let (below, through) = snapshot.devices();
        for entry in changes.entries.iter().filter(|entry| entry.kind == Kind::File) {
            let ino = entry.metadata.ino;
            let mut numbers = vec![(below, ino), (entry.metadata.device, ino)];
            numbers.extend(through.map(|device| (device, ino)));
            if entry.copied_up
                && let Some(seen) = snapshot.seen_through_overlay(&entry.path)
            {
                numbers.push((seen.device, seen.ino));
                numbers.extend(through.map(|device| (device, seen.ino)));
            }
            numbers.sort_unstable();
            numbers.dedup();
            self.0.insert(entry.path.clone(), numbers);
        }
    }

    /// Whether `entry` is one of these files, or cannot be told from them.
    pub(super) fn are_in(&self, files: &HashSet<Numbers>, entry: &Entry) -> bool {
        !files.is_empty()
            && entry.kind == Kind::File
            && self.0.get(&entry.path).is_none_or(|all| all.iter().any(|one| files.contains(one)))
    }
}
