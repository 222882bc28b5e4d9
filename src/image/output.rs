//! The end of the line: the blob, and the hash of the tar that went into it.

use std::io::{self, Write};

use crate::image::frame::Batch;
use crate::image::seek_table::Frame;
use crate::oci::{DiffId, Hasher};
use crate::store::BlobWriter;

/// At first, the bytes of tar between two midstates. Hashing so much again takes half a millisecond.
const SPACING: u64 = 1 << 20;
/// With so many midstates every second one is dropped, so that a tar of any length needs 1 MiB for them.
const MAX_MIDSTATES: usize = 8 << 10;

/// The blob as far as it is written.
#[derive(Debug)]
pub(crate) struct Output {
    pub(crate) blob: BlobWriter,
    pub(crate) frames: Vec<Frame>,
    pub(crate) midstates: Midstates,
}

impl Output {
    pub(crate) fn new(blob: BlobWriter) -> Output {
        Output { blob, frames: Vec::new(), midstates: Midstates::default() }
    }

    /// Append what was encoded.
    pub(crate) fn append(&mut self, batch: &Batch) -> io::Result<()> {
        for (_, tar) in batch.frames() {
            self.midstates.update(tar);
            self.midstates.mark();
        }
        self.append_unhashed(batch)
    }

    /// Append what was encoded and is hashed elsewhere.
    pub(crate) fn append_unhashed(&mut self, batch: &Batch) -> io::Result<()> {
        self.blob.write_all(batch.packed())?;
        self.frames.extend(batch.frames().map(|(frame, _)| frame));
        Ok(())
    }
}

/// SHA-256 of the tar, with the states it had at ends of frames.
#[derive(Debug)]
pub(crate) struct Midstates {
    now: Hasher,
    /// In order of [`Hasher::length`], which is the position in the tar.
    kept: Vec<Hasher>,
    spacing: u64,
}

impl Default for Midstates {
    fn default() -> Midstates {
        Midstates { now: Hasher::new(), kept: Vec::new(), spacing: SPACING }
    }
}

impl Midstates {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.now.update(bytes);
    }

    /// The bytes of tar so far.
    pub(crate) fn position(&self) -> u64 {
        self.now.length()
    }

    /// A frame ends here.
    pub(crate) fn mark(&mut self) {
        if self.position() - self.kept.last().map_or(0, Hasher::length) < self.spacing {
            return;
        }
        self.kept.push(self.now.clone());
        if self.kept.len() > MAX_MIDSTATES {
            let mut index = 0;
            self.kept.retain(|_| {
                index += 1;
                index % 2 == 0
            });
            self.spacing *= 2;
        }
    }

    pub(crate) fn diff_id(&self) -> DiffId {
        self.now.clone().diff_id()
    }

    /// Go back to the last midstate at or before `position`.
    pub(crate) fn rewind(&mut self, position: u64) {
        let before = self.kept.partition_point(|state| state.length() <= position);
        self.kept.truncate(before);
        self.now = self.kept.last().cloned().unwrap_or_default();
    }
}
