//! A blob from its beginning to its end: its tar, and the places where decoding can begin again.
//!
//! What the blob is decoded with its first bytes say, as with every engine: a media type may lie. Places come from the
//! decoding itself and not from a table in the blob, which could show another layer than the tar is (eStargz,
//! zstd:chunked and our own seek table are all passed over).

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use flate2::Crc;
use flate2::bufread::GzDecoder;
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use crate::view::index::Point;

/// How much of the tar is given at a time, in bytes.
pub(crate) const CHUNK: usize = 256 << 10;
/// Points are at least so far apart in the tar, in bytes; a small frame joins the one before.
const STEP: u64 = 128 << 10;
/// The longest tar: at a gigabyte a second it is read in a quarter of an hour.
const TAR_LIMIT: u64 = 1 << 40;
/// The largest zstd window, as a power of two: what RFC 8878 wants every decoder to have is 8 MiB; this is 128 MiB.
const WINDOW_LOG: u32 = 27;

/// What a blob is packed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Packing {
    Zstd,
    Gzip,
    None,
}

impl Packing {
    pub(crate) fn of(blob: &File) -> io::Result<Packing> {
        let mut first = [0; 4];
        let count = blob.read_at(&mut first, 0)?;
        Ok(match first {
            [0x28, 0xb5, 0x2f, 0xfd] => Packing::Zstd,
            [first, 0x2a, 0x4d, 0x18] if first & 0xf0 == 0x50 => Packing::Zstd,
            [0x1f, 0x8b, 8, _] if count > 2 => Packing::Gzip,
            _ => Packing::None,
        })
    }
}

/// Decode `blob` from its beginning; `sink` gets the tar in pieces. Returns the points and the tar's length.
pub(crate) fn decode(
    blob: &File,
    packing: Packing,
    sink: &mut dyn FnMut(Vec<u8>) -> io::Result<()>,
) -> io::Result<(Vec<Point>, u64)> {
    let mut tar =
        Tar { sink, chunk: Vec::with_capacity(CHUNK), length: 0, points: vec![Point::default()], crc: Crc::new() };
    let input = Counted { input: At { file: blob, at: 0 }, at: 0 };
    let input = BufReader::with_capacity(CHUNK, input);
    match packing {
        Packing::Zstd => zstd_frames(input, &mut tar)?,
        Packing::Gzip => gzip_members(input, &mut tar)?,
        Packing::None => plain(input, &mut tar)?,
    }
    tar.finish()
}

/// A file read by its offset, since others share the descriptor.
struct At<'file> {
    file: &'file File,
    at: u64,
}

impl Read for At<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

struct Counted<R> {
    input: R,
    at: u64,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(buffer)?;
        self.at += count as u64;
        Ok(count)
    }
}

type Input<'file> = BufReader<Counted<At<'file>>>;

/// How much of the blob has been consumed.
fn position(input: &Input<'_>) -> u64 {
    input.get_ref().at - input.buffer().len() as u64
}

fn zstd_frames(mut input: Input<'_>, tar: &mut Tar<'_>) -> io::Result<()> {
    let mut decoder = Decoder::new()?;
    decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
    let mut in_frame = false;
    loop {
        let bytes = input.fill_buf()?;
        let (is_end, mut source) = (bytes.is_empty(), InBuffer::around(bytes));
        if is_end && !in_frame {
            return Ok(());
        }
        let filled = tar.chunk.len();
        tar.chunk.resize(CHUNK, 0);
        let mut out = OutBuffer::around(&mut tar.chunk[filled..]);
        let result = decoder.run(&mut source, &mut out);
        let (consumed, made) = (source.pos(), out.pos());
        tar.chunk.truncate(filled + made);
        let hint = result?;
        input.consume(consumed);
        tar.made(made)?;
        if is_end && made == 0 && hint != 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        in_frame = hint != 0;
        if hint == 0 {
            tar.boundary(position(&input));
        }
    }
}

fn gzip_members(mut input: Input<'_>, tar: &mut Tar<'_>) -> io::Result<()> {
    while !input.fill_buf()?.is_empty() {
        let mut member = GzDecoder::new(&mut input);
        loop {
            let filled = tar.chunk.len();
            tar.chunk.resize(CHUNK, 0);
            let result = member.read(&mut tar.chunk[filled..]);
            tar.chunk.truncate(filled + result.as_ref().map_or(0, |count| *count));
            match result {
                Ok(0) => break,
                Ok(count) => tar.made(count)?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        tar.boundary(position(&input));
    }
    Ok(())
}

fn plain(mut input: Input<'_>, tar: &mut Tar<'_>) -> io::Result<()> {
    loop {
        let bytes = input.fill_buf()?;
        if bytes.is_empty() {
            return Ok(());
        }
        let count = bytes.len().min(CHUNK - tar.chunk.len());
        tar.chunk.extend_from_slice(&bytes[..count]);
        input.consume(count);
        tar.made(count)?;
        tar.boundary(position(&input));
    }
}

/// The tar as it comes out.
struct Tar<'sink> {
    sink: &'sink mut dyn FnMut(Vec<u8>) -> io::Result<()>,
    chunk: Vec<u8>,
    length: u64,
    points: Vec<Point>,
    /// Of all since the last point.
    crc: Crc,
}

impl Tar<'_> {
    /// `count` bytes more are in the chunk, of which there is room for one at least afterwards.
    fn made(&mut self, count: usize) -> io::Result<()> {
        self.crc.update(&self.chunk[self.chunk.len() - count..]);
        self.length += count as u64;
        if self.length > TAR_LIMIT {
            return Err(io::Error::other("its tar has more than a terabyte"));
        }
        if self.chunk.len() == CHUNK { self.send() } else { Ok(()) }
    }

    fn send(&mut self) -> io::Result<()> {
        (self.sink)(std::mem::replace(&mut self.chunk, Vec::with_capacity(CHUNK)))
    }

    /// Decoding can begin at `blob`.
    fn boundary(&mut self, blob: u64) {
        // Farther apart in a very long tar, so that there are a few millions at most.
        let step = STEP.max(self.length >> 20);
        let Some(last) = self.points.last_mut() else { return };
        if self.length - last.tar >= step {
            last.crc = self.crc.sum();
            self.crc = Crc::new();
            self.points.push(Point { tar: self.length, blob, crc: 0 });
        }
    }

    fn finish(mut self) -> io::Result<(Vec<Point>, u64)> {
        if !self.chunk.is_empty() {
            self.send()?;
        }
        if let Some(last) = self.points.last_mut() {
            last.crc = self.crc.sum();
        }
        Ok((self.points, self.length))
    }
}
