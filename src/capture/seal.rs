//! `pause=seal`: what the container's files were at one moment, with the container frozen for little more than that.
//!
//! While it runs, the regular files are read and written to the layer, and then again those that changed meanwhile. Then
//! it is frozen for a look at every file's attributes, one system call each; what differs from what was read is put
//! aside, and it runs again. What was read of a file counts only if the file
//!
//! - has the change time now that it had before it was read,
//! - had that for long enough that any later change was to get another ([`changeset::is_settled`]),
//! - was not mapped shared and not open for direct writing when the reading of that round began: such a file can change
//!   without a trace. One that is mapped later and stored to gets a change time after that moment; on a tmpfs it does
//!   not, and there nothing is read before the freeze but for a comparison in it.
//!
//! All else in the layer is written when the container runs again: [`layout`](super::layout) has the order.

mod part;

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::capture::aside::{Aside, LARGE, Late};
use crate::capture::during::Still;
use crate::capture::hold::{Freezing, Held, require_kept};
use crate::capture::in_use::{InUse, Names};
use crate::capture::layout::{self, is_early};
use crate::capture::look::Look;
use crate::capture::taken::Taken;
use crate::capture::{Context, Error, Request};
use crate::changeset::tar::{Read, Writer};
use crate::changeset::{Changes, Difference, Earlier, Entry, Kind, Location, Place, SETTLED, Snapshot, is_settled};
use crate::engine::Container;
use crate::image::LayerWriter;
use crate::progress::Progress;
use crate::store::Lease;
use crate::sys::dir::Time;
use crate::sys::priority::Hurry;
use part::Part;

/// Reads while the container runs, at most.
const ROUNDS: [&str; 3] = ["pre-copy 1", "pre-copy 2", "pre-copy 3"];
/// As much as that is put aside faster than another round finds out that there is less.
const FEW_BYTES: u64 = 4 << 20;
const FEW_FILES: usize = 200;
/// A file that is open for writing and was written to in this time will be written to again.
const BUSY: Duration = Duration::from_secs(1);
/// In this time a file that is written to at 100 MB/s grows by as much as is put aside in 5 ms.
const LONG: Duration = Duration::from_millis(100);

/// The layers of a container that is frozen for a moment, and of its volumes: what is not in the `earlier` snapshot.
pub(super) fn seal(
    context: &Context<'_>,
    lease: &Lease,
    container: &Container,
    request: Request<'_>,
    still: Still<'_>,
    earlier: Option<(Snapshot, Earlier)>,
    progress: &Progress,
) -> Result<(Taken, Held), Error> {
    let freezing = still.freezing;
    progress.enter("scanning");
    let mut parts = Part::all(context, lease, container, request, earlier, progress)?;
    for part in &mut parts {
        let rounds = part.copy.rounds(&mut part.look, &mut part.changes, freezing, progress);
        part.rounds = part.about(rounds)?;
    }
    let pending: Vec<Vec<Place>> = parts.iter().map(Part::pending).collect();
    let expected = pending.iter().flatten().map(|place| place.metadata.size).sum::<u64>() * 5 / 4;
    let mut aside = Aside::prepare(lease, expected)?;
    for (part, pending) in parts.iter().zip(&pending) {
        part.about(rehearse(&mut aside, &part.look.snapshot, pending, progress))?;
    }
    progress.enter("frozen");
    let hurry = Hurry::begin();
    let frozen = freezing.freeze(context)?;
    let at = Time::now();
    let until = Instant::now() + freezing.limit().mul_f32(0.8);
    let look = |in_use: InUse| {
        let took = parts.iter_mut().zip(&pending).try_fold(Duration::ZERO, |sum, (part, pending)| {
            let looked =
                part.copy.look(&mut part.look, pending, &in_use, (until, freezing.limit()), &mut aside, progress);
            let Looked { took, changes, is_unchanged } = part.about(looked)?;
            (part.sealed, part.is_unchanged) = (changes, is_unchanged);
            Ok::<_, Error>(sum + took)
        })?;
        Ok((in_use, took))
    };
    let done = (still.during)(&frozen);
    let processes = done.and_then(|()| Ok(frozen.processes()?));
    let looked = processes.and_then(|processes| InUse::of(&processes)).and_then(look);
    let (in_use, looked_for) = match looked {
        Ok(looked) => looked,
        // It runs again before anybody hears of the error.
        Err(error) => {
            drop(frozen);
            return Err(error);
        }
    };
    let held = (still.end)(frozen)?;
    drop(hurry);
    progress.enter("finishing");
    let objects: u64 = parts.iter().map(|part| part.look.snapshot.objects()).sum();
    log::debug!("frozen for {:?}, {looked_for:?} of it for a look at {objects} files", held.frozen_for);
    for part in parts.iter_mut().filter(|part| part.sealed.is_none()) {
        if part.is_unchanged && part.changes.vanished.is_empty() {
            continue;
        }
        let changes = part.look.changes(progress);
        part.sealed = Some(part.about(changes)?);
    }
    // What lies below was asked just now: it must not have been on its way out with the container.
    if !freezing.is_alive() {
        require_kept(context, container)?;
    }
    Part::locate_again(&mut parts)?;
    let rounds = parts.iter().map(|part| part.rounds).max().unwrap_or_default();
    let mut taken: Option<Taken> = None;
    for part in parts {
        let volume = part.volume.clone();
        let done = part.finish(lease, &mut aside, (&in_use, at), progress)?;
        match (&mut taken, volume) {
            (Some(taken), Some((volume, location))) => taken.add(volume, &location, done),
            _ => taken = Some(done),
        }
    }
    let taken = taken.ok_or_else(|| Error::Removed(container.name.clone()))?;
    Ok((Taken { sealed: Some((rounds, aside.bytes())), ..taken }, held))
}

/// What was seen while the container was frozen.
struct Looked {
    /// How long the look at the attributes took.
    took: Duration,
    /// The changes, if they had to be derived at once.
    changes: Option<Changes>,
    /// Nothing has changed since the look before.
    is_unchanged: bool,
}

/// Copies the large files that will have to be put aside, so that they need only be compared then; and once more what has
/// changed of them if that took a while.
fn rehearse(aside: &mut Aside, snapshot: &Snapshot, pending: &[Place], progress: &Progress) -> Result<(), Error> {
    let large: Vec<&Place> = pending.iter().filter(|place| place.metadata.size >= LARGE).collect();
    for _ in 0..2 {
        let since = Instant::now();
        let mut reader = snapshot.reader();
        for place in &large {
            progress.check()?;
            let opened = reader.open(place).map_err(|source| Error::Aside { path: place.path.clone(), source })?;
            if let Some((file, metadata)) = opened {
                aside.rehearse(&Place { metadata, ..(*place).clone() }, &file)?;
            }
        }
        if since.elapsed() < LONG {
            break;
        }
    }
    Ok(())
}

/// What was read while the container ran.
struct Copy<'a> {
    writer: Writer<'a, LayerWriter>,
    /// By path, what of the layer is good as far as is known.
    written: BTreeMap<Vec<u8>, (Entry, Range<u64>)>,
    /// What is not.
    stale: Vec<Range<u64>>,
    names: Names,
}

impl Copy<'_> {
    /// Copies until little changes meanwhile; returns how often.
    fn rounds(
        &mut self,
        look: &mut Look,
        changes: &mut Changes,
        freezing: &Freezing,
        progress: &Progress,
    ) -> Result<usize, Error> {
        let early = || changes.entries.iter().filter(|entry| is_early(entry));
        let (files, bytes) = early().fold((0, 0), |(n, sum), entry| (n + 1, sum + entry.metadata.size));
        if look.is_difference() && files <= FEW_FILES / 4 && bytes <= FEW_BYTES / 4 {
            // It takes longer to find out what changes meanwhile than to put all of it aside.
            return Ok(0);
        }
        if look.snapshot.is_memory() {
            // Whatever was read, nothing would tell whether it is still so.
            return Ok(0);
        }
        let now = Time::now();
        if early().any(|entry| !is_settled(entry.metadata.ctime, now)) {
            // Written just now. A moment later it can be told whether it is written again.
            std::thread::sleep(SETTLED * 2);
        }
        let mut last = u64::MAX;
        for (round, phase) in ROUNDS.iter().enumerate() {
            progress.enter(phase);
            let began = Time::now();
            let in_use = InUse::of(&freezing.processes()?)?;
            self.names.learn(&mut look.snapshot, changes);
            self.round(changes, &in_use, began)?;
            let difference = look.snapshot.update(false, progress)?;
            if difference.is_empty() {
                return Ok(round + 1);
            }
            *changes = look.changes(progress)?;
            let open = |entry: &&Entry| self.lacks(entry) && !self.names.are_in(&in_use.untraceable, entry);
            let (files, bytes) =
                changes.entries.iter().filter(open).fold((0, 0), |(n, sum), entry| (n + 1, sum + entry.metadata.size));
            let is_shrinking = bytes < last / 2;
            if (bytes <= FEW_BYTES && files <= FEW_FILES) || !is_shrinking || round + 1 == ROUNDS.len() {
                self.names.learn(&mut look.snapshot, changes);
                return Ok(round + 1);
            }
            last = bytes;
        }
        Ok(ROUNDS.len())
    }

    fn round(&mut self, changes: &Changes, in_use: &InUse, began: Time) -> Result<(), Error> {
        // A directory that was not written bars what is in it: see `Entry::replaces`.
        let mut barred: Option<&[u8]> = None;
        for entry in changes.entries.iter().filter(|entry| is_early(entry)) {
            if barred.is_some_and(|path| is_within(&entry.path, path)) {
                continue;
            }
            if self.written.get(&entry.path).is_some_and(|(written, _)| written.is_same(entry)) {
                continue;
            }
            self.forget(&entry.path, entry.kind == Kind::Directory);
            let is_wanted = is_settled(entry.metadata.ctime, began)
                && !self.names.are_in(&in_use.untraceable, entry)
                && !(self.names.are_in(&in_use.open, entry) && is_recent(entry.metadata.ctime, began));
            if !is_wanted {
                barred = (entry.kind == Kind::Directory).then_some(&entry.path[..]).or(barred);
                continue;
            }
            let start = self.writer.out().position();
            let read = if entry.kind == Kind::File {
                self.writer.out().begin_entry(entry.metadata.size);
                self.writer.copy(entry)?
            } else {
                self.writer.out().begin_entry(0);
                self.writer.entry(entry)?;
                Read::Whole
            };
            let range = start..self.writer.out().position();
            match read {
                Read::Whole => {
                    self.written.insert(entry.path.clone(), (entry.clone(), range));
                }
                Read::Moved | Read::Torn => self.stale.push(range),
                Read::Gone => {}
            }
        }
        Ok(())
    }

    /// Takes back what was written of `path`, and if asked of all below.
    fn forget(&mut self, path: &[u8], and_below: bool) {
        if let Some((_, range)) = self.written.remove(path) {
            self.stale.push(range);
        }
        if and_below {
            for below in self.below(path) {
                if let Some((_, range)) = self.written.remove(&below) {
                    self.stale.push(range);
                }
            }
        }
    }

    fn below(&self, path: &[u8]) -> Vec<Vec<u8>> {
        let first = [path, b"/"].concat();
        self.written
            .range(first.clone()..)
            .map(|(path, _)| path)
            .take_while(|path| path.starts_with(&first))
            .cloned()
            .collect()
    }

    /// Whether `entry` is a file whose content is still needed.
    fn lacks(&self, entry: &Entry) -> bool {
        entry.kind == Kind::File && !self.written.get(&entry.path).is_some_and(|(written, _)| written.is_same(entry))
    }

    /// All that is done while the container is frozen.
    fn look(
        &mut self,
        look: &mut Look,
        pending: &[Place],
        in_use: &InUse,
        (until, limit): (Instant, Duration),
        aside: &mut Aside,
        progress: &Progress,
    ) -> Result<Looked, Error> {
        let since = Instant::now();
        let mut wanted = Vec::new();
        if !in_use.untraceable.is_empty() {
            let written: Vec<Place> = self
                .written
                .values()
                .filter(|(entry, _)| entry.kind == Kind::File && self.names.are_in(&in_use.untraceable, entry))
                .map(|(entry, _)| entry.place())
                .collect();
            for place in written {
                self.forget(&place.path, false);
                wanted.push(place);
            }
        }
        let difference = look.snapshot.update(true, progress)?;
        let (took, is_unchanged) = (since.elapsed(), difference.is_empty());
        let Difference { files, directories, .. } = difference;
        for path in directories.iter().filter(|path| self.written.contains_key(&path[..])).cloned().collect::<Vec<_>>()
        {
            wanted.extend(
                self.below(&path).iter().filter_map(|path| self.written.get(path)).map(|(entry, _)| entry.place()),
            );
            self.forget(&path, true);
        }
        let changes = if look.snapshot.needs_merged() { Some(look.changes(progress)?) } else { None };
        let mut all: Vec<Place> = files;
        all.append(&mut wanted);
        all.extend_from_slice(pending);
        if let Some(changes) = &changes {
            all.extend(changes.entries.iter().filter(|entry| self.lacks(entry)).map(Entry::place));
        }
        let mut reader = look.snapshot.reader();
        for place in &all {
            progress.check()?;
            let opened = reader.open(place).map_err(|source| Error::Aside { path: place.path.clone(), source })?;
            // What is gone is no part of what was looked at; what took its place is.
            let Some((file, metadata)) = opened else { continue };
            if aside.has(&metadata) {
                continue;
            }
            let place = Place { metadata, ..place.clone() };
            if let Err(Late) = aside.put(&place, &file, until)? {
                return Err(Error::Late { limit, bytes: aside.bytes(), path: place.path });
            }
        }
        if Instant::now() > until {
            return Err(Error::Late { limit, bytes: aside.bytes(), path: Vec::new() });
        }
        Ok(Looked { took, changes, is_unchanged })
    }

    /// Takes back what turned out stale, and writes the rest.
    fn finish(
        mut self,
        lease: &Lease,
        changes: &Changes,
        location: Option<&Location>,
        aside: &mut Aside,
        progress: &Progress,
    ) -> Result<Taken, Error> {
        let mut good = HashSet::new();
        for entry in changes.entries.iter().filter(|entry| is_early(entry)) {
            if self.written.get(&entry.path).is_some_and(|(written, _)| written.is_same(entry)) {
                good.insert(&entry.path[..]);
            }
        }
        let mut stale = std::mem::take(&mut self.stale);
        stale.extend(
            self.written.iter().filter(|(path, _)| !good.contains(&path[..])).map(|(_, (_, range))| range.clone()),
        );
        stale.retain(|range| !range.is_empty());
        stale.sort_by_key(|range| range.start);
        if changes.entries.is_empty() {
            return Ok(Taken::nothing(changes));
        }
        if !stale.is_empty() {
            self.writer.out().retract(stale, lease)?;
        }
        self.writer.read_from(changes);
        layout::above(location, &mut self.writer)?;
        for entry in changes.entries.iter().filter(|entry| !good.contains(&entry.path[..])) {
            if entry.kind != Kind::File {
                self.writer.out().begin_entry(0);
                self.writer.entry(entry)?;
                continue;
            }
            self.writer.out().begin_entry(entry.metadata.size);
            let Some((content, found)) = aside.content(&entry.metadata)? else {
                return Err(Error::NotAside { path: entry.path.clone() });
            };
            let is_same = (found.ctime, found.mtime, found.size)
                == (entry.metadata.ctime, entry.metadata.mtime, entry.metadata.size);
            let is_whole = self.writer.file_from(entry, content)?;
            if !is_same || !is_whole {
                // Somebody outside of the container writes to its files.
                self.writer.torn(entry.path.clone());
            }
        }
        let (written, layer) = self.writer.into_out()?;
        Ok(Taken::new(changes, written, layer, progress))
    }
}

fn is_recent(ctime: Time, at: Time) -> bool {
    let nanoseconds = |time: Time| i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanoseconds);
    nanoseconds(ctime) + BUSY.as_nanos().cast_signed() > nanoseconds(at)
}

fn is_within(path: &[u8], directory: &[u8]) -> bool {
    path.strip_prefix(directory).is_some_and(|rest| rest.first() == Some(&b'/'))
}
