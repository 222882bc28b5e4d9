//! [`LayerWriter`]: tar bytes → diff_id → independent frames → blob, in one pass and on all processors.
//!
//! `docs/layer-format.md` has the bytes. The caller's thread only fills buffers, so that it can read files meanwhile;
//! workers encode frames; one more thread hashes tar and blob, which cannot be divided, and writes.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Write};
use std::num::NonZero;
use std::ops::Range;

use crate::image::Error;
use crate::image::chunked::{self, Why};
use crate::image::frame::{Batch, Encoded, Encoder, FRAME, Holds};
use crate::image::output::Output;
use crate::image::pipeline::{Failure, MAX_WORKERS, Pipeline};
use crate::image::retract::Retraction;
use crate::image::seek_table;
use crate::image::tar_entries::{Entries, Piece};
use crate::oci::{Descriptor, DiffId, MEDIA_TYPE_LAYER, MEDIA_TYPE_LAYER_GZIP, MEDIA_TYPE_LAYER_ZSTD};
use crate::progress::Progress;
use crate::store::{BlobWriter, Lease};

/// How a layer is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// zstd at a level from 1 (fast) to 19 (small).
    Zstd {
        /// The level.
        level: i32,
    },
    /// zstd at level 1 in podman's `zstd:chunked` format: every file has frames to itself, and a table of contents says
    /// which, so that podman fetches only files that it does not have.
    ZstdChunked,
    /// gzip, for registries and tools that know nothing else.
    Gzip,
    /// As it is.
    None,
}

/// The level if none is asked for.
pub(crate) const LEVEL: i32 = 1;

impl Default for Compression {
    /// Level 1: on two cores it keeps up with the hash, and level 3 saves 10 % of the bytes for twice the time.
    fn default() -> Compression {
        Compression::Zstd { level: LEVEL }
    }
}

impl Compression {
    /// The word of `compression=`; none for any other.
    pub fn parse(word: &str) -> Option<Compression> {
        match word {
            "none" => Some(Compression::None),
            "gzip" => Some(Compression::Gzip),
            "zstd" => Some(Compression::default()),
            "zstd:chunked" => Some(Compression::ZstdChunked),
            _ => {
                let level = word.strip_prefix("zstd:")?.parse().ok().filter(|level| (1..=19).contains(level))?;
                Some(Compression::Zstd { level })
            }
        }
    }

    /// The media type of such a layer.
    pub fn media_type(self) -> &'static str {
        match self {
            Compression::Zstd { .. } | Compression::ZstdChunked => MEDIA_TYPE_LAYER_ZSTD,
            Compression::Gzip => MEDIA_TYPE_LAYER_GZIP,
            Compression::None => MEDIA_TYPE_LAYER,
        }
    }
}

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// The blob.
    pub descriptor: Descriptor,
    /// SHA-256 of the uncompressed tar.
    pub diff_id: DiffId,
}

/// A file of this length begins a frame, so that the frame can be used again when its neighbours change.
const OWN_FRAME: u64 = 64 << 10;
/// So much tar is encoded by the thread that writes: starting others would take longer.
const ALONE: usize = 1 << 20;
/// Room for a small file's headers when it is decided whether it fits into a frame.
const HEADERS: u64 = 2 << 10;

/// With so many frames of content a table of contents would be longer than it may, and their sums take 80 MiB of memory.
const MOST_CONTENTS: usize = 1 << 20;

/// Takes a layer's tar and makes its blob; [`finish`](Self::finish) says what it became.
///
/// The blob depends on the bytes, the entries and the compression alone: not on how the bytes were cut into writes, nor
/// on the number of threads. It takes at most 64 MiB of memory, and 12 bytes for each frame. What a thread cannot do fails
/// the next write, or `finish`. Dropped, it ends its threads and leaves nothing.
pub struct LayerWriter {
    compression: Compression,
    workers: usize,
    batch: Batch,
    encoder: Encoder,
    /// What this thread encoded since it last had a blob to itself, in bytes of tar.
    alone: usize,
    position: u64,
    /// Where files begin and end, if their content is to be alone.
    entries: Option<Entries>,
    /// Frames with nothing but content.
    contents: usize,
    stage: Stage,
}

enum Stage {
    /// This thread has the blob.
    Alone(Box<Output>),
    Running(Pipeline),
    Failed(Failure),
}

impl fmt::Debug for LayerWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = f.debug_struct("LayerWriter");
        text.field("compression", &self.compression).field("position", &self.position()).finish_non_exhaustive()
    }
}

impl LayerWriter {
    /// A layer that will be `blob`, encoded on all processors.
    ///
    /// Errors: no memory for the compressor.
    pub fn new(blob: BlobWriter, compression: Compression) -> Result<LayerWriter, Error> {
        let workers = std::thread::available_parallelism().unwrap_or(NonZero::<usize>::MIN);
        LayerWriter::with_workers(blob, compression, workers)
    }

    /// A layer that will be `blob`, encoded by so many threads and at most eight.
    ///
    /// Errors: no memory for the compressor.
    pub fn with_workers(
        blob: BlobWriter,
        compression: Compression,
        workers: NonZero<usize>,
    ) -> Result<LayerWriter, Error> {
        Ok(LayerWriter {
            compression,
            workers: workers.get().min(MAX_WORKERS),
            batch: Batch::new(),
            encoder: Encoder::new(compression).map_err(Error::Write)?,
            alone: 0,
            position: 0,
            entries: (compression == Compression::ZstdChunked).then(Entries::default),
            contents: 0,
            stage: Stage::Alone(Box::new(Output::new(blob))),
        })
    }

    /// The bytes of tar so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The next bytes begin an entry of the tar, its headers included, whose file has `content` bytes.
    ///
    /// A file of 64 KiB or more begins a frame; smaller ones share one. A failure is told by the next write.
    pub fn begin_entry(&mut self, content: u64) {
        if self.entries.is_some() {
            // Found from the tar itself.
            return;
        }
        let open = self.batch.open_frame() as u64;
        if open > 0 && (content >= OWN_FRAME || open + HEADERS + content > FRAME as u64) {
            let _ = self.cut(Holds::Anything);
        }
    }

    /// Append what is encoded already, as [`Compression`] of this layer does it, without doing it again.
    ///
    /// Such a layer is not for [`retract`](Self::retract).
    pub(crate) fn copy(&mut self, encoded: &Encoded<'_>) -> io::Result<()> {
        if let Stage::Failed(failure) = &self.stage {
            return Err(copy(&failure.error));
        }
        if self.batch.open_frame() > 0 {
            self.cut(Holds::Anything)?;
        }
        if !self.batch.raw.is_empty() {
            self.submit()?;
        }
        self.batch.take(encoded);
        self.position += encoded.tar.len() as u64;
        self.submit()
    }

    /// Make the layer as if `ranges` of its tar had never been written. They are in order, do not overlap, and consist of
    /// whole entries. Positions after them move down.
    ///
    /// Frames outside of the ranges are copied as they are into a new blob of `lease`. After an error the layer is lost.
    ///
    /// Errors: the disk is full or fails; the ranges are not in the layer.
    pub fn retract(&mut self, ranges: Vec<Range<u64>>, lease: &Lease) -> Result<(), Error> {
        let mut from = 0;
        for range in &ranges {
            if range.start < from || range.end < range.start || range.end > self.position() {
                return Err(Error::NotInLayer { range: range.clone(), length: self.position() });
            }
            from = range.end;
        }
        let retracted: u64 = ranges.iter().map(|range| range.end - range.start).sum();
        let ranges: Vec<_> = ranges.into_iter().filter(|range| !range.is_empty()).collect();
        if ranges.is_empty() {
            return Ok(());
        }
        let old = self.drain().map_err(Failure::into_error)?;
        let retraction = Retraction { old, ranges, compression: self.compression };
        let new = retraction.run(lease.blob()?, &mut self.encoder)?;
        self.position -= retracted;
        self.alone = 0;
        self.stage = Stage::Alone(Box::new(new));
        Ok(())
    }

    /// End the stream, make the blob durable, and say what it is.
    ///
    /// Errors: the first failure of the compressor, of a thread or of the disk.
    pub fn finish(self) -> Result<Layer, Error> {
        self.finish_for(&Progress::new())
    }

    /// The same; what there is to say of the layer goes to `progress`'s log.
    pub fn finish_for(mut self, progress: &Progress) -> Result<Layer, Error> {
        if self.position() == 0 {
            // An empty file is no zstd or gzip stream; an empty frame is.
            self.batch.cut(Holds::Anything);
        }
        let mut output = self.drain().map_err(Failure::into_error)?;
        let (mut end, mut annotations) = (Vec::new(), BTreeMap::new());
        if let Compression::Zstd { .. } | Compression::ZstdChunked = self.compression {
            end.extend(seek_table::encode(&output.frames));
        }
        if self.compression == Compression::ZstdChunked {
            let frames: u64 = output.frames.iter().map(|frame| u64::from(frame.packed)).sum();
            let table = end.iter().map(Vec::len).sum::<usize>();
            match chunked::trailer(&output, frames + table as u64) {
                Ok(trailer) => {
                    end.extend(trailer.pieces);
                    annotations = trailer.annotations;
                }
                Err(Why::Unfit(reason)) => {
                    progress.log(format!("a layer is stored as plain zstd, since {reason}"));
                }
                Err(Why::Failed(error)) => return Err(error),
            }
        }
        if let Err(error) = end.iter().try_for_each(|piece| output.blob.write_all(piece)) {
            return Err(Failure::of_write(error, output).into_error());
        }
        let (digest, size) = output.blob.finish()?;
        let descriptor = Descriptor { annotations, ..Descriptor::new(self.compression.media_type(), digest, size) };
        Ok(Layer { descriptor, diff_id: output.midstates.diff_id() })
    }

    /// How many of `bytes` belong into the open frame, what it has with them, and whether it ends there.
    fn piece(&mut self, bytes: &[u8]) -> (usize, Holds, bool) {
        let Some(entries) = &mut self.entries else { return (bytes.len(), Holds::Anything, false) };
        match entries.next(bytes) {
            (taken, Piece::Content { is_last }) => (taken, Holds::Content { is_last }, is_last),
            (taken, Piece::Between(Some(entry))) => (taken, Holds::Anything, entry.content > 0),
            (taken, Piece::Between(None) | Piece::Rest) => (taken, Holds::Anything, false),
        }
    }

    /// End the stream, and make no blob of it: the tar as it would have been stored, to be read again for as long as the
    /// value lives.
    ///
    /// Errors: those of [`finish`](Self::finish).
    pub fn into_unpublished(mut self) -> Result<Unpublished, Error> {
        let output = self.drain().map_err(Failure::into_error)?;
        Ok(Unpublished { blob: output.blob })
    }

    /// End the open frame.
    fn cut(&mut self, holds: Holds) -> io::Result<()> {
        self.batch.cut(holds);
        if holds != Holds::Anything {
            self.contents += 1;
        }
        if self.contents >= MOST_CONTENTS {
            // Whatever comes is divided as in any other layer.
            self.entries = None;
        }
        if self.batch.is_full() { self.submit() } else { Ok(()) }
    }

    /// Send the batch on its way.
    fn submit(&mut self) -> io::Result<()> {
        let stage = self.take_stage();
        let advanced = self.advance(stage);
        advanced.map(|stage| self.stage = stage).map_err(|failure| {
            let error = copy(&failure.error);
            self.stage = Stage::Failed(failure);
            error
        })
    }

    fn advance(&mut self, stage: Stage) -> Result<Stage, Failure> {
        let mut pipeline = match stage {
            Stage::Alone(output) if self.alone + self.batch.raw.len() <= ALONE => {
                self.alone += self.batch.raw.len();
                return self.encode(*output).map(|output| Stage::Alone(Box::new(output)));
            }
            Stage::Alone(output) => Pipeline::start(*output, self.compression, self.workers)?,
            Stage::Running(pipeline) => pipeline,
            Stage::Failed(failure) => return Err(failure),
        };
        match pipeline.submit(std::mem::take(&mut self.batch)) {
            Some(empty) => self.batch = empty,
            // Without a failure the threads would still be there.
            None => return Err(pipeline.end().err().unwrap_or_else(Failure::lost)),
        }
        Ok(Stage::Running(pipeline))
    }

    /// Encode the batch in this thread.
    fn encode(&mut self, mut output: Output) -> Result<Output, Failure> {
        self.encoder.encode(&mut self.batch)?;
        let appended = output.append(&self.batch);
        self.batch.clear();
        match appended {
            Ok(()) => Ok(output),
            Err(error) => Err(Failure::of_write(error, output)),
        }
    }

    /// Write all that is left, and take the blob. The writer is of no use until it gets another one.
    fn drain(&mut self) -> Result<Output, Failure> {
        if self.batch.open_frame() > 0 {
            self.batch.cut(Holds::Anything);
        }
        let output = match self.take_stage() {
            Stage::Alone(output) => *output,
            Stage::Running(pipeline) => pipeline.end()?,
            Stage::Failed(failure) => return Err(failure),
        };
        self.encode(output)
    }

    fn take_stage(&mut self) -> Stage {
        std::mem::replace(&mut self.stage, Stage::Failed(Failure::lost()))
    }
}

/// A layer that is only to be read.
#[derive(Debug)]
pub struct Unpublished {
    blob: BlobWriter,
}

impl Unpublished {
    /// Its bytes, from the beginning.
    ///
    /// Errors: the disk's.
    pub fn open(&self) -> Result<std::fs::File, Error> {
        Ok(self.blob.reopen()?)
    }
}

/// Another error of the same kind, since an error cannot be cloned and every write after a failure tells it.
fn copy(error: &io::Error) -> io::Error {
    let described = || io::Error::new(error.kind(), error.to_string());
    error.raw_os_error().map_or_else(described, io::Error::from_raw_os_error)
}

impl Write for LayerWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Stage::Failed(failure) = &self.stage {
            return Err(copy(&failure.error));
        }
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = FRAME - self.batch.open_frame();
            let (length, holds, ends) = self.piece(&rest[..room.min(rest.len())]);
            let (piece, after) = rest.split_at(length);
            self.batch.raw.extend_from_slice(piece);
            self.position += piece.len() as u64;
            if ends || piece.len() == room {
                self.cut(holds)?;
            }
            rest = after;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
