//! Any place of a layer's tar, decoded from the point before it.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};

use flate2::Crc;
use flate2::bufread::MultiGzDecoder;

use crate::view::index::Point;
use crate::view::stream::Packing;

/// Points farther apart than this are no use: what lies between is decoded as a whole, in memory.
const FARTHEST: u64 = 4 << 20;

/// A blob that a layer's tar can be read from.
#[derive(Debug)]
pub(crate) struct Source {
    /// Different from that of every other source.
    pub(crate) id: u64,
    blob: File,
    blob_length: u64,
    packing: Packing,
    points: Vec<Point>,
    tar_length: u64,
}

impl Source {
    /// The first `blob_length` bytes of `blob` are packed tar.
    pub(crate) fn new(blob: File, blob_length: u64, packing: Packing, points: Vec<Point>, tar_length: u64) -> Source {
        static LAST: AtomicU64 = AtomicU64::new(0);
        let id = LAST.fetch_add(1, Ordering::Relaxed);
        Source { id, blob, blob_length, packing, points, tar_length }
    }

    pub(crate) fn blob(&self) -> &File {
        &self.blob
    }

    pub(crate) fn packing(&self) -> Packing {
        self.packing
    }

    pub(crate) fn tar_length(&self) -> u64 {
        self.tar_length
    }

    /// What it takes in memory, in bytes.
    pub(crate) fn weight(&self) -> u64 {
        size_of_val(&*self.points) as u64
    }

    /// Whether any place is near a point. Not so with a stream that a foreign program made in one piece.
    pub(crate) fn is_seekable(&self) -> bool {
        (0..self.points.len()).all(|at| {
            let (tar, blob) = self.lengths(at);
            tar <= FARTHEST && blob <= 2 * FARTHEST
        })
    }

    /// The chunk that holds a place of the tar, and where it begins.
    pub(crate) fn chunk_at(&self, offset: u64) -> Option<(usize, u64)> {
        let at = self.points.partition_point(|point| point.tar <= offset).checked_sub(1)?;
        (offset < self.tar_length).then(|| (at, self.points[at].tar))
    }

    fn lengths(&self, at: usize) -> (u64, u64) {
        let point = self.points[at];
        let end = self.points.get(at + 1).map_or((self.tar_length, self.blob_length), |next| (next.tar, next.blob));
        (end.0.saturating_sub(point.tar), end.1.saturating_sub(point.blob))
    }

    /// How many pieces there are from one point to the next.
    pub(crate) fn len(&self) -> usize {
        self.points.len()
    }

    /// Where in the tar a piece is.
    pub(crate) fn place(&self, at: usize) -> Range<u64> {
        let start = self.points.get(at).map_or(self.tar_length, |point| point.tar);
        start..start + self.lengths(at).0
    }

    /// A piece as it is in the blob.
    pub(crate) fn packed(&self, at: usize) -> io::Result<Vec<u8>> {
        let point = self.points.get(at).ok_or(io::ErrorKind::InvalidInput)?;
        let mut packed = vec![0; usize::try_from(self.lengths(at).1).map_err(io::Error::other)?];
        self.blob.read_exact_at(&mut packed, point.blob)?;
        Ok(packed)
    }

    /// The tar from one point to the next, if it still has its checksum.
    pub(crate) fn decode(&self, at: usize) -> io::Result<Vec<u8>> {
        thread_local! {
            static PACKED: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
            static ZSTD: RefCell<Option<zstd::bulk::Decompressor<'static>>> = const { RefCell::new(None) };
        }
        let Some(point) = self.points.get(at) else { return Err(io::ErrorKind::InvalidInput.into()) };
        let (tar, packed) = self.lengths(at);
        let [tar_size, packed_size] = [tar, packed].map(|length| usize::try_from(length).unwrap_or(usize::MAX));
        if tar > FARTHEST || packed > 2 * FARTHEST {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let mut bytes = vec![0; tar_size];
        if self.packing == Packing::None {
            self.blob.read_exact_at(&mut bytes, point.blob)?;
        } else {
            PACKED.with_borrow_mut(|buffer| {
                buffer.resize(packed_size, 0);
                self.blob.read_exact_at(buffer, point.blob)?;
                if self.packing == Packing::Gzip {
                    return MultiGzDecoder::new(&buffer[..]).read_exact(&mut bytes);
                }
                ZSTD.with_borrow_mut(|decoder| {
                    let decoder = match decoder {
                        Some(decoder) => decoder,
                        None => decoder.insert(zstd::bulk::Decompressor::new()?),
                    };
                    match decoder.decompress_to_buffer(&buffer[..], &mut bytes)? {
                        size if size == tar_size => Ok(()),
                        _ => Err(io::ErrorKind::UnexpectedEof.into()),
                    }
                })
            })?;
        }
        let mut crc = Crc::new();
        crc.update(&bytes);
        if crc.sum() != point.crc {
            let reason =
                format!("bytes {} to {} of its tar have changed since it was indexed", point.tar, point.tar + tar);
            return Err(io::Error::new(io::ErrorKind::InvalidData, reason));
        }
        Ok(bytes)
    }
}
