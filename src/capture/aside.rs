//! [`Aside`]: the bytes of files, put aside while their container is frozen, as fast as the machine can.
//!
//! A large file that is being written to is there already when the freeze begins, and compared: see
//! [`Rehearsal`]. Of the others the first ones go to memory that was touched before the freeze; the rest to a file of the lease, where a file system
//! that shares blocks between files (XFS, btrfs) copies nothing at all.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::time::Instant;

use crate::capture::Error;
use crate::capture::rehearsal::Rehearsal;
use crate::changeset::tar::Content;
use crate::changeset::{Metadata, Place};
use crate::store::{Lease, Spool};
use crate::sys::copy::{can_share, copy_range};
use crate::sys::dir::{Device, next_data, stat_file};

/// How much memory is touched beforehand: what a busy log takes, and little against the daemon's 200 MiB.
const MEMORY: usize = 24 << 20;
/// Where a file begins in the spool: at a block of any file system that could share it.
const ALIGNMENT: u64 = 64 << 10;
/// How much is copied between two looks at the clock.
const CHUNK: u64 = 8 << 20;
/// A file of that size is copied before the freeze: to compare it then is faster than to copy it.
pub(super) const LARGE: u64 = 4 << 20;
/// How much more room in the spool a file gets than it needs: it is being written to. It costs nothing, since it is a hole.
const GROWTH: u64 = 16 << 30;
/// The more files there are, the less: all of them take no more than that, for a file of ext4 ends at 16 TiB.
const GROWTHS: u64 = 8 << 40;

/// See the head of this file.
pub(super) struct Aside {
    memory: Vec<u8>,
    used: usize,
    spool: Spool,
    end: u64,
    reader: Option<File>,
    kept: HashMap<Key, Kept>,
    rehearsed: HashMap<Key, Rehearsal>,
    bytes: u64,
}

/// Which file: the same under all of its names.
type Key = (Device, u64);

struct Kept {
    metadata: Metadata,
    place: Stored,
}

#[derive(Clone, Copy)]
enum Stored {
    Memory { start: usize, length: usize },
    Spool { base: u64 },
}

/// It is too late to go on.
pub(super) struct Late;

impl Aside {
    /// Room for about `expected` bytes, made before the freeze.
    pub(super) fn prepare(lease: &Lease, expected: u64) -> Result<Aside, Error> {
        let room = usize::try_from(expected).unwrap_or(MEMORY).saturating_add(1 << 20).min(MEMORY);
        // Not zeros: the kernel gives those without a page behind them.
        let memory = vec![1; room];
        Ok(Aside {
            memory,
            used: 0,
            spool: lease.spool()?,
            end: 0,
            reader: None,
            kept: HashMap::new(),
            rehearsed: HashMap::new(),
            bytes: 0,
        })
    }

    /// Copies all of `file`, which is `place` and may change meanwhile, before the freeze: what is the same when it is
    /// [`put`](Self::put) is not copied again. Done twice, the second time takes what has changed since the first. Where
    /// files can share blocks there is nothing to prepare.
    pub(super) fn rehearse(&mut self, place: &Place, file: &File) -> Result<(), Error> {
        let metadata = place.metadata;
        let is_sparse = metadata.blocks * 512 < metadata.size;
        let Some(spool) = self.spool.file().filter(|_| metadata.size >= LARGE && !is_sparse) else { return Ok(()) };
        let base = self.end;
        let is_new = !self.rehearsed.contains_key(&(metadata.device, metadata.ino));
        if is_new && can_share(file, spool, base) {
            return Ok(());
        }
        let rehearsal = self.rehearsed.entry((metadata.device, metadata.ino)).or_insert_with(|| {
            let room = metadata.size + growth(base);
            self.end = (base + room).next_multiple_of(ALIGNMENT);
            Rehearsal::new(base, room)
        });
        let renewed = rehearsal.renew(file, metadata.size, spool, None);
        renewed.map(|_| ()).map_err(|source| Error::Aside { path: place.path.clone(), source })
    }

    /// Keeps what was put aside of `file`, which was `metadata` before that, and says what it is now: nobody outside of the
    /// container can be kept from writing to its files.
    fn keep(&mut self, metadata: Metadata, file: &File, place: Stored) -> io::Result<()> {
        let Metadata { size, mtime, ctime, .. } = Metadata::from(&stat_file(file)?);
        let key = (metadata.device, metadata.ino);
        self.kept.insert(key, Kept { metadata: Metadata { size, mtime, ctime, ..metadata }, place });
        Ok(())
    }

    /// Whether the file is here, as `metadata` describes it.
    pub(super) fn has(&self, metadata: &Metadata) -> bool {
        self.kept.contains_key(&(metadata.device, metadata.ino))
    }

    /// Bytes put aside.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts all of `file`, which is `place` and does not change, aside; [`Late`] if that lasts beyond `until`.
    pub(super) fn put(&mut self, place: &Place, file: &File, until: Instant) -> Result<Result<(), Late>, Error> {
        let metadata = place.metadata;
        let read = |source| Error::Aside { path: place.path.clone(), source };
        let is_sparse = metadata.blocks * 512 < metadata.size;
        if let (Some(rehearsal), Some(spool)) =
            (self.rehearsed.get_mut(&(metadata.device, metadata.ino)), self.spool.file())
            && let Some(renewed) = rehearsal.renew(file, metadata.size, spool, Some(until)).map_err(read)?
        {
            let Ok(copied) = renewed else { return Ok(Err(Late)) };
            self.bytes += copied;
            let stored = Stored::Spool { base: rehearsal.base() };
            self.keep(metadata, file, stored).map_err(read)?;
            return Ok(Ok(()));
        }
        let fits = usize::try_from(metadata.size).ok().filter(|size| *size <= self.memory.len() - self.used);
        let stored = match fits {
            Some(size) if !is_sparse => {
                let start = self.used;
                let mut length = 0;
                while length < size {
                    let want = (size - length).min(CHUNK as usize);
                    match file.read_at(&mut self.memory[start + length..][..want], length as u64) {
                        Ok(0) => break,
                        Ok(read) => length += read,
                        Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(read(error)),
                    }
                    if Instant::now() > until {
                        return Ok(Err(Late));
                    }
                }
                self.used += length;
                self.bytes += length as u64;
                Stored::Memory { start, length }
            }
            _ => {
                let base = self.end;
                match self.spool_file(file, metadata.size, until).map_err(read)? {
                    Ok(()) => Stored::Spool { base },
                    Err(late) => return Ok(Err(late)),
                }
            }
        };
        self.keep(metadata, file, stored).map_err(read)?;
        Ok(Ok(()))
    }

    fn spool_file(&mut self, file: &File, size: u64, until: Instant) -> io::Result<Result<(), Late>> {
        let base = self.end;
        self.end = (base + size).next_multiple_of(ALIGNMENT);
        let Some(target) = self.spool.file() else {
            return self.write_through(file, size, until);
        };
        // Holes stay holes.
        target.set_len(self.end)?;
        let mut at = 0;
        while let Some(data) = next_data(file, at)?.filter(|data| data.start < size) {
            at = data.start;
            let end = data.end.min(size);
            while at < end {
                let copied = copy_range(file, at, target, base + at, (end - at).min(CHUNK))?;
                if copied == 0 {
                    return Ok(Ok(()));
                }
                at += copied;
                self.bytes += copied;
                if Instant::now() > until {
                    return Ok(Err(Late));
                }
            }
        }
        Ok(Ok(()))
    }

    /// For a store that is no directory of the host.
    fn write_through(&mut self, file: &File, size: u64, until: Instant) -> io::Result<Result<(), Late>> {
        let mut chunk = vec![0; 1 << 20];
        let padded = size.next_multiple_of(ALIGNMENT);
        let mut at = 0;
        while at < padded {
            let want = usize::try_from(padded - at).unwrap_or(chunk.len()).min(chunk.len());
            let want = if at < size { want.min(usize::try_from(size - at).unwrap_or(want)) } else { want };
            let read = if at < size { file.read_at(&mut chunk[..want], at)? } else { 0 };
            let put = if read == 0 {
                chunk[..want].fill(0);
                want
            } else {
                read
            };
            self.spool.write_all(&chunk[..put])?;
            at += put as u64;
            self.bytes += read as u64;
            if Instant::now() > until {
                return Ok(Err(Late));
            }
        }
        Ok(Ok(()))
    }

    /// The content of the file that `metadata` describes, and what it was when it had been put aside; none if it was not.
    pub(super) fn content(&mut self, metadata: &Metadata) -> Result<Option<(Content<'_>, Metadata)>, Error> {
        let Some(kept) = self.kept.get(&(metadata.device, metadata.ino)) else { return Ok(None) };
        let content = match kept.place {
            Stored::Memory { start, length } => Content::Bytes(&self.memory[start..start + length]),
            Stored::Spool { base } => {
                if self.reader.is_none() {
                    self.reader = Some(self.spool.open()?);
                }
                match &self.reader {
                    Some(file) => Content::File { file, base },
                    None => return Ok(None),
                }
            }
        };
        Ok(Some((content, kept.metadata)))
    }
}

/// How much more room a file gets that begins at `base`: of what is left, always the same part.
fn growth(base: u64) -> u64 {
    GROWTHS.saturating_sub(base) / (GROWTHS / GROWTH)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::changeset::{Snapshot, Source};
    use crate::progress::Progress;
    use crate::store::{DirBackend, Store};

    /// Files of these contents, an [`Aside`] and the places of the files.
    fn world(contents: &[&[u8]]) -> (tempfile::TempDir, Snapshot, Vec<Place>, Aside) {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("root");
        std::fs::create_dir(&root).unwrap();
        for (n, content) in contents.iter().enumerate() {
            std::fs::write(root.join(format!("{n:04}")), content).unwrap();
        }
        let mut snapshot = Snapshot::take(&Source::Directory(root), &[], &Progress::new()).unwrap();
        let changes = snapshot.changes(&Progress::new()).unwrap();
        let places = changes.entries.iter().skip(1).map(crate::changeset::Entry::place).collect();
        let store = Store::open(Arc::new(DirBackend::open(&temp.path().join("store")).unwrap())).unwrap();
        let aside = Aside::prepare(&store.lease().unwrap(), 1 << 20).unwrap();
        (temp, snapshot, places, aside)
    }

    #[test]
    fn what_was_written_to_meanwhile_shows() {
        let (temp, snapshot, places, mut aside) = world(&[b"one", b"two"]);
        let mut reader = snapshot.reader();
        for (n, place) in places.iter().enumerate() {
            let (file, metadata) = reader.open(place).unwrap().unwrap();
            if n == 1 {
                std::thread::sleep(Duration::from_millis(20));
                std::fs::write(temp.path().join("root/0001"), "2").unwrap();
            }
            let place = Place { metadata, ..place.clone() };
            assert!(aside.put(&place, &file, Instant::now() + Duration::from_secs(60)).unwrap().is_ok());
            let (_, found) = aside.content(&metadata).unwrap().unwrap();
            assert_eq!(found == metadata, n == 0, "{found:?}");
        }
    }

    #[test]
    fn any_number_of_large_files_has_room() {
        let mut end = 0;
        for n in 0..100_000 {
            let room = LARGE + growth(end);
            assert!(n > 0 || room > 15 << 30);
            assert!(n > 200 || room > 10 << 30, "{n}: {room}");
            end += room;
        }
        assert!(end < 9 << 40, "{end}");
    }
}
