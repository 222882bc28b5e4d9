//! [`Part`]: what becomes one layer, the container's root file system or one of its volumes.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::Copy;
use crate::capture::aside::Aside;
use crate::capture::in_use::{InUse, Names};
use crate::capture::layout;
use crate::capture::look::Look;
use crate::capture::taken::Taken;
use crate::capture::{Context, Error, Request, Volume, source};
use crate::changeset::tar::{Options, Vanished, Writer};
use crate::changeset::{Changes, Earlier, Entry, Location, Place, Snapshot, Source};
use crate::engine::Container;
use crate::image::LayerWriter;
use crate::progress::Progress;
use crate::store::Lease;
use crate::sys::dir::Time;

/// See the head of this file.
pub(super) struct Part<'a> {
    pub(super) look: Look,
    pub(super) copy: Copy<'a>,
    /// As of the last look while the container ran.
    pub(super) changes: Changes,
    /// As of the freeze.
    pub(super) sealed: Option<Changes>,
    /// Nothing has changed between the two.
    pub(super) is_unchanged: bool,
    /// How often files were read while the container ran.
    pub(super) rounds: usize,
    /// Of a volume, where it belongs.
    pub(super) volume: Option<(&'a Volume, Location)>,
}

impl<'a> Part<'a> {
    /// The root file system first, then the volumes as they were asked for; nothing read yet.
    pub(super) fn all(
        context: &Context<'_>,
        lease: &Lease,
        container: &Container,
        request: Request<'a>,
        earlier: Option<(Snapshot, Earlier)>,
        progress: &'a Progress,
    ) -> Result<Vec<Part<'a>>, Error> {
        let begin = |source: Source, mounts: &[PathBuf], earlier, volume: Option<(&'a Volume, Location)>| {
            let mut look = Look::begin(&source, mounts, earlier, progress)?;
            let changes = look.changes(progress)?;
            let latest_mtime = context.clock.source_date_epoch().map(|at| at.as_second());
            let options = Options { vanished: Vanished::Skip, latest_mtime };
            let layer = LayerWriter::new(lease.blob()?, request.compression)?;
            let mut writer = Writer::new(layer, &changes, progress, options);
            layout::put_at(volume.as_ref().map(|(_, location)| location), &mut writer)?;
            let copy = Copy { writer, written: BTreeMap::new(), stale: Vec::new(), names: Names::default() };
            Ok::<_, Error>(Part { look, copy, changes, sealed: None, is_unchanged: false, rounds: 0, volume })
        };
        let root = begin(source::of(container)?, &source::mount_points(container)?, earlier, None)?;
        let mut parts = vec![root];
        for volume in request.volumes {
            let location = Part::locate(volume, &parts)?;
            let part = begin(volume.source(), &[], None, Some((volume, location)));
            parts.push(part.map_err(|error| error.of_volume(volume))?);
        }
        Ok(parts)
    }

    /// An error is one about this part's files.
    pub(super) fn about<T>(&self, done: Result<T, Error>) -> Result<T, Error> {
        match &self.volume {
            Some((volume, _)) => done.map_err(|error| error.of_volume(volume)),
            None => done,
        }
    }

    /// The files that have not been read.
    pub(super) fn pending(&self) -> Vec<Place> {
        self.changes.entries.iter().filter(|entry| self.copy.lacks(entry)).map(Entry::place).collect()
    }

    /// The directories above the volumes are those of the frozen container; what was written already must be in them.
    pub(super) fn locate_again(parts: &mut [Part<'a>]) -> Result<(), Error> {
        for at in 1..parts.len() {
            let (before, part) = parts.split_at_mut(at);
            let Some((volume, location)) = &mut part[0].volume else { continue };
            let now = Part::locate(volume, before)?;
            if !now.is_same(location) {
                return Err(Error::VolumeMoved(volume.destination.clone()));
            }
            *location = now;
        }
        Ok(())
    }

    /// Where `volume` belongs, on top of what comes before it.
    fn locate(volume: &Volume, before: &[Part<'a>]) -> Result<Location, Error> {
        let outer = before.iter().filter_map(|part| Some((&part.volume.as_ref()?.1, &part.look.snapshot)));
        volume.locate(&before[0].look.snapshot, outer)
    }

    /// Writes the rest of the layer, and remembers what was seen since `at`, when `in_use` was so.
    pub(super) fn finish(
        self,
        lease: &Lease,
        aside: &mut Aside,
        (in_use, at): (&InUse, Time),
        progress: &'a Progress,
    ) -> Result<Taken, Error> {
        let Part { look, mut copy, sealed, changes, volume, .. } = self;
        let changes = sealed.unwrap_or(changes);
        let location = volume.as_ref().map(|(_, location)| location);
        let mut names = std::mem::take(&mut copy.names);
        let done = copy.finish(lease, &changes, location, aside, progress);
        match &volume {
            Some((volume, _)) => done.map_err(|error| error.of_volume(volume)),
            None => {
                let taken = done?;
                let files = look.remember(&changes, in_use, &taken.torn, &mut names, at);
                Ok(Taken { files, ..taken })
            }
        }
    }
}
