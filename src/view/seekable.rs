//! A layer again, packed so that any place of it can be read: for a blob that a foreign program made in one piece.
//!
//! zstd frames of 256 KiB of tar, then a table of them: the points as in an index, how many they are and the length of the
//! tar (u64), the table's SHA-256, and the magic number.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use flate2::Crc;
use zstd::zstd_safe::CParameter;

use crate::oci::{DiffId, Digest, Hasher};
use crate::view::index::Point;
use crate::view::source::Source;
use crate::view::stream::{self, Packing};

const MAGIC: &[u8; 16] = b"snapfs frames 1\n";
const POINT: usize = 20;
const FOOTER: usize = 16 + 32 + 16;

/// Write the layer to `out`; returns how many bytes that were. The tar is held against its DiffID.
pub(crate) fn write(blob: &File, packing: Packing, diff_id: DiffId, out: &mut dyn Write) -> io::Result<u64> {
    let mut encoder = zstd::bulk::Compressor::new(1)?;
    encoder.set_parameter(CParameter::ChecksumFlag(true))?;
    let mut hasher = Hasher::new();
    let mut points = Vec::new();
    let (mut tar, mut written) = (0u64, 0u64);
    stream::decode(blob, packing, &mut |chunk| {
        hasher.update(&chunk);
        let mut crc = Crc::new();
        crc.update(&chunk);
        points.push(Point { tar, blob: written, crc: crc.sum() });
        let frame = encoder.compress(&chunk)?;
        out.write_all(&frame)?;
        tar += chunk.len() as u64;
        written += frame.len() as u64;
        Ok(())
    })?;
    if hasher.digest().as_bytes() != diff_id.as_bytes() {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "its tar has changed since it was indexed"));
    }
    let mut table = Vec::with_capacity(points.len() * POINT + FOOTER);
    for point in &points {
        table.extend_from_slice(&point.tar.to_le_bytes());
        table.extend_from_slice(&point.blob.to_le_bytes());
        table.extend_from_slice(&point.crc.to_le_bytes());
    }
    table.extend_from_slice(&(points.len() as u64).to_le_bytes());
    table.extend_from_slice(&tar.to_le_bytes());
    let checksum = Digest::of(&table);
    table.extend_from_slice(checksum.as_bytes());
    table.extend_from_slice(MAGIC);
    out.write_all(&table)?;
    Ok(written + table.len() as u64)
}

/// What [`write`] wrote; `None` if the file is not whole.
pub(crate) fn open(file: File, tar_length: u64) -> Option<Source> {
    let length = file.metadata().ok()?.len();
    let mut footer = [0; FOOTER];
    let footer_at = length.checked_sub(FOOTER as u64)?;
    file.read_exact_at(&mut footer, footer_at).ok()?;
    if !footer.ends_with(MAGIC) {
        return None;
    }
    let number = |at: usize| footer[at..].first_chunk().map(|bytes| u64::from_le_bytes(*bytes));
    let (count, tar) = (number(0)?, number(8)?);
    let table_length = count.checked_mul(POINT as u64)?;
    let table_at = footer_at.checked_sub(table_length)?;
    let mut table = vec![0; usize::try_from(table_length).ok()?];
    file.read_exact_at(&mut table, table_at).ok()?;
    table.extend_from_slice(&footer[..16]);
    if tar != tar_length || Digest::of(&table).as_bytes() != &footer[16..48] {
        return None;
    }
    let entries = table[..table.len() - 16].chunks_exact(POINT);
    let points = entries.map(|entry| {
        let number = |at: usize| entry[at..].first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        let crc = entry[16..].first_chunk().map_or(0, |bytes| u32::from_le_bytes(*bytes));
        Point { tar: number(0), blob: number(8), crc }
    });
    let points = points.collect();
    Some(Source::new(file, table_at, Packing::Zstd, points, tar_length))
}
