//! Tar bytes ↔ independent frames: zstd frames, gzip members, or the bytes as they are.
//!
//! What a frame becomes depends on its bytes and the compression alone, never on the frames before it or on the thread.

use std::io;

use flate2::{Compress, Crc, Decompress, FlushCompress, FlushDecompress, Status};
use zstd::zstd_safe::CParameter;

use crate::image::Compression;
use crate::image::layer::LEVEL;
use crate::image::seek_table::Frame;
use crate::oci::{Crc64, Digest};

/// The most tar bytes in a frame. docs/performance.md has the measurement.
pub(crate) const FRAME: usize = 1 << 20;
/// A batch with so many tar bytes goes on its way at the end of its frame.
const BATCH: usize = FRAME / 2;
/// What a member begins with (RFC 1952 section 2.3): deflate, no flags, no time, unknown system. The same for all input.
const GZIP_HEADER: [u8; 10] = [0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0xff];
/// What a zstd frame that is not skipped begins with (RFC 8878 section 3.1.1).
const ZSTD_MAGIC: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
/// Checksum and length.
const GZIP_TRAILER: usize = 8;

/// The content of a frame that has nothing but a file's content, or a part of it.
#[derive(Debug, Clone)]
pub(crate) struct Chunk {
    pub(crate) digest: Digest,
    pub(crate) crc: u64,
    /// Whether it is all zeros.
    pub(crate) is_zero: bool,
    /// Whether the file ends with it.
    pub(crate) is_last: bool,
    /// The digest of the file, if it has several chunks and this is the last.
    pub(crate) file: Option<Box<Digest>>,
}

impl Chunk {
    fn of(raw: &[u8], is_last: bool) -> Chunk {
        let mut crc = Crc64::new();
        crc.update(raw);
        let is_zero = raw.iter().all(|byte| *byte == 0);
        Chunk { digest: Digest::of(raw), crc: crc.value(), is_zero, is_last, file: None }
    }
}

/// What a frame is cut for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Whatever came.
    Anything,
    /// A file's content alone, and whether its end.
    Content { is_last: bool },
}

/// One or more whole frames on their way. The buffers are used again and again.
#[derive(Default)]
pub(crate) struct Batch {
    /// Tar bytes.
    pub(crate) raw: Vec<u8>,
    /// Where frames end in `raw`, and what is in them.
    ends: Vec<(usize, Holds)>,
    /// Blob bytes, the first `packed_len` of it.
    packed: Vec<u8>,
    packed_len: usize,
    frames: Vec<Frame>,
    /// Of those frames that have one, in order.
    pub(crate) chunks: Vec<Chunk>,
    /// Nothing is left for an encoder to do.
    is_encoded: bool,
}

/// Tar bytes, and the blob bytes that they are encoded in, as whole frames.
pub(crate) struct Encoded<'a> {
    pub(crate) tar: &'a [u8],
    blob: &'a [u8],
    frames: Vec<Frame>,
}

impl<'a> Encoded<'a> {
    /// `tar` is what `blob` decodes to. None if frames of `compression` cannot be told apart in it, or are longer than those
    /// that we make.
    pub(crate) fn of(compression: Compression, tar: &'a [u8], blob: &'a [u8]) -> Option<Encoded<'a>> {
        if tar.is_empty() || tar.len() > BATCH + FRAME || blob.len() > bound(BATCH + FRAME) {
            return None;
        }
        let frames = match compression {
            Compression::Zstd { .. } => zstd_frames(blob)?,
            // Members have no length that could be known without decoding them, and no table has to list them.
            Compression::Gzip => {
                vec![Frame { raw: narrow(tar.len()).ok()?, packed: narrow(blob.len()).ok()?, is_chunk: false }]
            }
            Compression::ZstdChunked | Compression::None => return None,
        };
        let raw: usize = frames.iter().map(|frame| frame.raw as usize).sum();
        (raw == tar.len()).then_some(Encoded { tar, blob, frames })
    }
}

/// The frames that `blob` consists of, if each says how long its content is.
fn zstd_frames(blob: &[u8]) -> Option<Vec<Frame>> {
    let mut frames = Vec::new();
    let mut rest = blob;
    while !rest.is_empty() {
        let length = zstd::zstd_safe::find_frame_compressed_size(rest).ok()?;
        let (frame, after) = rest.split_at_checked(length)?;
        // Not that of a skippable frame, which is content of none.
        let content = zstd::zstd_safe::get_frame_content_size(frame).ok()??;
        if !frame.starts_with(&ZSTD_MAGIC) {
            return None;
        }
        frames.push(Frame { raw: u32::try_from(content).ok()?, packed: narrow(length).ok()?, is_chunk: false });
        rest = after;
    }
    Some(frames)
}

impl Batch {
    /// An empty one, whose memory is taken as it is filled.
    pub(crate) fn new() -> Batch {
        Batch { raw: Vec::with_capacity(BATCH + FRAME), ..Batch::default() }
    }

    /// The tar bytes of the frame that is still open.
    pub(crate) fn open_frame(&self) -> usize {
        self.raw.len() - self.ends.last().map_or(0, |(end, _)| *end)
    }

    /// End the open frame. An empty one stands for an empty tar only.
    pub(crate) fn cut(&mut self, holds: Holds) {
        self.ends.push((self.raw.len(), holds));
    }

    /// Whether no frame should be added. A batch holds less than `BATCH + FRAME` bytes of tar.
    pub(crate) fn is_full(&self) -> bool {
        self.raw.len() >= BATCH
    }

    /// Take in frames that are encoded already. There are no others in it.
    pub(crate) fn take(&mut self, encoded: &Encoded<'_>) {
        let Encoded { tar, blob, frames } = encoded;
        self.raw.extend_from_slice(tar);
        if self.packed.len() < blob.len() {
            self.packed.resize(blob.len(), 0);
        }
        self.packed[..blob.len()].copy_from_slice(blob);
        self.packed_len = blob.len();
        self.frames.extend_from_slice(frames);
        self.is_encoded = true;
    }

    /// What was encoded.
    pub(crate) fn packed(&self) -> &[u8] {
        &self.packed[..self.packed_len]
    }

    /// What became of each frame, with its tar bytes.
    pub(crate) fn frames(&self) -> impl Iterator<Item = (Frame, &[u8])> {
        // Where nothing is encoded, the bytes have moved.
        let tar = if self.raw.is_empty() { self.packed() } else { &self.raw };
        let mut rest = tar;
        self.frames.iter().map(move |frame| {
            let (bytes, after) = rest.split_at(frame.raw as usize);
            rest = after;
            (*frame, bytes)
        })
    }

    /// Ready for other bytes.
    pub(crate) fn clear(&mut self) {
        self.raw.clear();
        self.ends.clear();
        self.packed_len = 0;
        self.frames.clear();
        self.chunks.clear();
        self.is_encoded = false;
    }
}

/// Makes frames. It is used for many, since its tables cost more than a small frame.
pub(crate) enum Encoder {
    Zstd(zstd::bulk::Compressor<'static>),
    Gzip(Compress),
    None,
}

impl Encoder {
    pub(crate) fn new(compression: Compression) -> io::Result<Encoder> {
        Ok(match compression {
            Compression::Zstd { .. } | Compression::ZstdChunked => {
                let level = if let Compression::Zstd { level } = compression { level } else { LEVEL };
                let mut compressor = zstd::bulk::Compressor::new(level)?;
                compressor.set_parameter(CParameter::ContentSizeFlag(true))?;
                compressor.set_parameter(CParameter::ChecksumFlag(true))?;
                Encoder::Zstd(compressor)
            }
            Compression::Gzip => Encoder::Gzip(Compress::new(flate2::Compression::default(), false)),
            Compression::None => Encoder::None,
        })
    }

    /// Encode the batch's frames.
    pub(crate) fn encode(&mut self, batch: &mut Batch) -> io::Result<()> {
        let Batch { raw, ends, packed, packed_len, frames, chunks, is_encoded } = batch;
        if *is_encoded {
            return Ok(());
        }
        if !matches!(self, Encoder::None) {
            let room = sizes(ends).map(bound).sum();
            if packed.len() < room {
                packed.resize(room, 0);
            }
        }
        let mut from = 0;
        for (end, holds) in ends.iter().copied() {
            let out = packed.get_mut(*packed_len..).unwrap_or_default();
            let size = match self {
                Encoder::Zstd(compressor) => compressor.compress_to_buffer(&raw[from..end], out)?,
                Encoder::Gzip(deflate) => gzip(deflate, &raw[from..end], out)?,
                Encoder::None => end - from,
            };
            *packed_len += size;
            let is_chunk = holds != Holds::Anything;
            frames.push(Frame { raw: narrow(end - from)?, packed: narrow(size)?, is_chunk });
            if let Holds::Content { is_last } = holds {
                chunks.push(Chunk::of(&raw[from..end], is_last));
            }
            from = end;
        }
        if let Encoder::None = self {
            std::mem::swap(raw, packed);
            raw.clear();
        }
        Ok(())
    }
}

/// The differences between neighbours.
fn sizes(ends: &[(usize, Holds)]) -> impl Iterator<Item = usize> {
    ends.iter().scan(0, |from, (end, _)| Some(end - std::mem::replace(from, *end)))
}

/// No encoder makes more of `raw` bytes: `ZSTD_COMPRESSBOUND`, and deflate's stored blocks of at least 16 KiB.
fn bound(raw: usize) -> usize {
    raw + (raw >> 8) + 256
}

fn narrow(size: usize) -> io::Result<u32> {
    u32::try_from(size).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

/// Write `raw` as one member; returns its length.
fn gzip(deflate: &mut Compress, raw: &[u8], out: &mut [u8]) -> io::Result<usize> {
    deflate.reset();
    let (header, body) = out.split_at_mut(GZIP_HEADER.len());
    header.copy_from_slice(&GZIP_HEADER);
    if deflate.compress(raw, body, FlushCompress::Finish)? != Status::StreamEnd {
        return Err(io::Error::other("deflate needs more room than its bound"));
    }
    let end = GZIP_HEADER.len() + usize::try_from(deflate.total_out()).map_err(io::Error::other)?;
    let mut crc = Crc::new();
    crc.update(raw);
    let mut trailer = [0; GZIP_TRAILER];
    trailer[..4].copy_from_slice(&crc.sum().to_le_bytes());
    trailer[4..].copy_from_slice(&crc.amount().to_le_bytes());
    let place = out.get_mut(end..end + GZIP_TRAILER);
    place.ok_or_else(|| io::Error::other("deflate needs more room than its bound"))?.copy_from_slice(&trailer);
    Ok(end + GZIP_TRAILER)
}

/// Takes frames apart.
pub(crate) enum Decoder {
    Zstd(zstd::bulk::Decompressor<'static>),
    Gzip(Decompress),
    None,
}

impl Decoder {
    pub(crate) fn new(compression: Compression) -> io::Result<Decoder> {
        Ok(match compression {
            Compression::Zstd { .. } | Compression::ZstdChunked => Decoder::Zstd(zstd::bulk::Decompressor::new()?),
            Compression::Gzip => Decoder::Gzip(Decompress::new(false)),
            Compression::None => Decoder::None,
        })
    }

    /// The tar bytes of one frame, into `raw`, which has their length.
    pub(crate) fn decode(&mut self, packed: &[u8], raw: &mut [u8]) -> io::Result<()> {
        let size = match self {
            Decoder::None => {
                let whole = packed.get(..raw.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                raw.copy_from_slice(whole);
                raw.len()
            }
            Decoder::Zstd(decompressor) => decompressor.decompress_to_buffer(packed, raw)?,
            Decoder::Gzip(inflate) => {
                inflate.reset(false);
                let body = packed.get(GZIP_HEADER.len()..).ok_or(io::ErrorKind::UnexpectedEof)?;
                inflate.decompress(body, raw, FlushDecompress::Finish)?;
                usize::try_from(inflate.total_out()).map_err(io::Error::other)?
            }
        };
        if size != raw.len() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "a frame of the layer has another length than when it was written",
            ));
        }
        Ok(())
    }
}
