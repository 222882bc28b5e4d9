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
use crate::sys::dir::{Device, next_data};

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
            let room = metadata.size + GROWTH;
            self.end = (base + room).next_multiple_of(ALIGNMENT);
            Rehearsal::new(base, room)
        });
        let renewed = rehearsal.renew(file, metadata.size, spool, None);
        renewed.map(|_| ()).map_err(|source| Error::Aside { path: place.path.clone(), source })
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
            let place = Stored::Spool { base: rehearsal.base() };
            self.kept.insert((metadata.device, metadata.ino), Kept { metadata, place });
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
        self.kept.insert((metadata.device, metadata.ino), Kept { metadata, place: stored });
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

    /// The content of the file that `metadata` describes, and what it was when it was put aside; none if it was not.
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
