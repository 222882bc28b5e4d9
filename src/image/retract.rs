//! Taking bytes out of a layer that is being written: frames without them are copied, the others encoded again, and the
//! tar's hash is resumed from before the first of them.

use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use crate::image::frame::{Batch, Chunk, Decoder, Encoder, Holds};
use crate::image::output::{Midstates, Output};
use crate::image::pipeline::Failure;
use crate::image::seek_table::Frame;
use crate::image::{Compression, Error};
use crate::store::BlobWriter;

/// How much is copied at once.
const CHUNK: u64 = 1 << 20;
/// What happens to a frame.
struct Step {
    frame: Frame,
    /// Where it begins in the tar.
    raw: u64,
    /// Where it begins in the blob.
    packed: u64,
    /// Which of the chunks it is, if it is one.
    chunk: Option<usize>,
    /// The bytes of it that stay, counted within it.
    kept: Vec<Range<usize>>,
}

impl Step {
    /// Where the frame ends in the blob.
    fn end(&self) -> u64 {
        self.packed + u64::from(self.frame.packed)
    }

    fn is_whole(&self) -> bool {
        matches!(&self.kept[..], [kept] if kept.start == 0 && kept.end == self.frame.raw as usize)
    }
}

/// Ranges of the tar that shall not have been written.
pub(crate) struct Retraction {
    pub(crate) old: Output,
    /// In order, not empty, within the tar.
    pub(crate) ranges: Vec<Range<u64>>,
    pub(crate) compression: Compression,
}

impl Retraction {
    /// Write what stays to `blob`.
    pub(crate) fn run(self, blob: BlobWriter, encoder: &mut Encoder) -> Result<Output, Error> {
        let first = self.ranges.first().map_or(u64::MAX, |range| range.start);
        let Output { blob: old, frames, chunks, mut midstates, .. } = self.old;
        let file = old.reopen()?;
        let steps = plan(&frames, &self.ranges);
        midstates.rewind(first);
        let compression = self.compression;
        let new = Output::new(blob);
        std::thread::scope(|scope| {
            // Hashing takes as long as everything else together.
            let copying = std::thread::Builder::new()
                .name("snapfs-copy".to_owned())
                .spawn_scoped(scope, || copy(&file, &steps, &chunks, new, compression, encoder))
                .map_err(Error::Write)?;
            let hashed = hash(&file, &steps, compression, &mut midstates);
            let copied = copying.join().unwrap_or_else(|_| Err(Failure::lost().into_error()));
            hashed.and(copied).map(|new| Output { midstates, ..new })
        })
    }
}

/// What becomes of each frame.
fn plan(frames: &[Frame], ranges: &[Range<u64>]) -> Vec<Step> {
    let (mut raw, mut packed, mut chunks, mut ranges) = (0, 0, 0, ranges);
    let mut steps = Vec::with_capacity(frames.len());
    for &frame in frames {
        let end = raw + u64::from(frame.raw);
        while let [range, rest @ ..] = ranges
            && range.end <= raw
        {
            ranges = rest;
        }
        let mut kept = Vec::with_capacity(1);
        let mut at = raw;
        for range in ranges.iter().take_while(|range| range.start < end) {
            keep(&mut kept, raw, at..range.start);
            at = range.end;
        }
        keep(&mut kept, raw, at..end);
        let chunk = frame.is_chunk.then_some(chunks);
        chunks += usize::from(frame.is_chunk);
        steps.push(Step { frame, raw, packed, chunk, kept });
        raw = end;
        packed += u64::from(frame.packed);
    }
    steps
}

fn keep(kept: &mut Vec<Range<usize>>, frame: u64, range: Range<u64>) {
    if range.start < range.end {
        // A frame is at most a few MiB long.
        kept.push((range.start - frame) as usize..(range.end - frame) as usize);
    }
}

/// Reads frames of the old blob.
struct Reader<'a> {
    file: &'a File,
    decoder: Decoder,
    packed: Vec<u8>,
    raw: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(file: &'a File, compression: Compression) -> io::Result<Reader<'a>> {
        Ok(Reader { file, decoder: Decoder::new(compression)?, packed: Vec::new(), raw: Vec::new() })
    }

    /// The parts that stay.
    fn read<'b>(&'b mut self, step: &'b Step) -> io::Result<impl Iterator<Item = &'b [u8]>> {
        self.packed.resize(step.frame.packed as usize, 0);
        self.raw.resize(step.frame.raw as usize, 0);
        self.file.read_exact_at(&mut self.packed, step.packed)?;
        self.decoder.decode(&self.packed, &mut self.raw)?;
        Ok(step.kept.iter().map(|part| &self.raw[part.clone()]))
    }
}

/// Hash what stays, from where the midstates are.
fn hash(file: &File, steps: &[Step], compression: Compression, midstates: &mut Midstates) -> Result<(), Error> {
    let from = steps.partition_point(|step| step.raw < midstates.position());
    let mut reader = Reader::new(file, compression).map_err(Error::ReadBack)?;
    for step in steps[from..].iter().filter(|step| !step.kept.is_empty()) {
        reader.read(step).map_err(Error::ReadBack)?.for_each(|part| midstates.update(part));
        midstates.mark();
    }
    Ok(())
}

/// Write what stays to a new blob.
fn copy(
    file: &File,
    steps: &[Step],
    chunks: &[Chunk],
    mut new: Output,
    compression: Compression,
    encoder: &mut Encoder,
) -> Result<Output, Error> {
    let mut reader = Reader::new(file, compression).map_err(Error::ReadBack)?;
    let mut batch = Batch::new();
    let mut chunk = Vec::new();
    let remaining = steps.iter().filter(|step| !step.kept.is_empty()).collect::<Vec<_>>();
    for run in remaining.chunk_by(|one, next| one.is_whole() && next.is_whole() && one.end() == next.packed) {
        let appended = if run[0].is_whole() {
            new.frames.extend(run.iter().map(|step| step.frame));
            new.chunks.extend(run.iter().filter_map(|step| chunks.get(step.chunk?).cloned()));
            let (mut at, end) = (run[0].packed, run[run.len() - 1].end());
            loop {
                chunk.resize((end - at).min(CHUNK) as usize, 0);
                file.read_exact_at(&mut chunk, at).map_err(Error::ReadBack)?;
                let written = new.blob.write_all(&chunk);
                at += chunk.len() as u64;
                if written.is_err() || at == end {
                    break written;
                }
            }
        } else {
            reader.read(run[0]).map_err(Error::ReadBack)?.for_each(|part| batch.raw.extend_from_slice(part));
            // What is left of content would not be a file's.
            batch.cut(Holds::Anything);
            encoder.encode(&mut batch).map_err(Error::Write)?;
            let written = new.append_unhashed(&batch);
            batch.clear();
            written
        };
        if let Err(error) = appended {
            return Err(Failure::of_write(error, new).into_error());
        }
    }
    Ok(new)
}
