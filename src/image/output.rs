//! The end of the line: the blob, and the hash of the tar that went into it.

use std::io::{self, Write};

use crate::image::frame::{Batch, Chunk};
use crate::image::seek_table::Frame;
use crate::oci::{DiffId, Digest, Hasher};
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
    /// Of those frames that have nothing but a file's content, in order.
    pub(crate) chunks: Vec<Chunk>,
    /// The content of the file whose chunks are under way.
    pub(crate) file: Hasher,
    pub(crate) midstates: Midstates,
}

impl Output {
    pub(crate) fn new(blob: BlobWriter) -> Output {
        Output { blob, frames: Vec::new(), chunks: Vec::new(), file: Hasher::new(), midstates: Midstates::default() }
    }

    /// Append what was encoded.
    pub(crate) fn append(&mut self, batch: &Batch) -> io::Result<()> {
        let mut chunks = batch.chunks.iter();
        for (frame, tar) in batch.frames() {
            self.midstates.update(tar);
            self.midstates.mark();
            if frame.is_chunk
                && let Some(chunk) = chunks.next()
            {
                let file = self.file_digest(chunk, tar);
                self.chunks.push(Chunk { file, ..chunk.clone() });
            }
        }
        self.append_unhashed(batch)
    }

    /// The digest of a file that ends with this chunk and has others: only that needs them in order.
    fn file_digest(&mut self, chunk: &Chunk, bytes: &[u8]) -> Option<Box<Digest>> {
        if self.file.length() == 0 && chunk.is_last {
            return None;
        }
        self.file.update(bytes);
        chunk.is_last.then(|| Box::new(std::mem::take(&mut self.file).digest()))
    }

    /// Append what was encoded, is hashed elsewhere, and has no chunks.
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
