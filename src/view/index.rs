//! A layer's index as bytes: its tree, and the places where its blob can be read from; pure.
//!
//! ```text
//! "snapfs index 1\n"           then numbers, little-endian
//! SHA-256 of the tar           32 bytes: the DiffID that it was held against
//! 5 × u64                      length of the tar; inodes; names; access points; bytes of text
//! inodes, names, points, text
//! SHA-256 of all before        32 bytes
//! ```
//!
//! An index can be made again, so one of another version, or with a wrong checksum, is none.

use crate::oci::{DiffId, Digest};
use crate::view::tree::{Inode, Kind, Name, Span, Tree};

const MAGIC: &[u8; 15] = b"snapfs index 1\n";
const INODE: usize = 2 + 2 + 3 * 4 + 8 + 4 + 8 + 8 + 8 + 4 + 16;
const NAME: usize = 10;
const POINT: usize = 20;

/// A place in a blob where decoding can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Point {
    /// Where it is in the tar.
    pub(crate) tar: u64,
    /// Where it is in the blob.
    pub(crate) blob: u64,
    /// CRC-32 of the tar from here to the next point.
    pub(crate) crc: u32,
}

/// What is known of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Index {
    pub(crate) diff_id: DiffId,
    pub(crate) tar_length: u64,
    pub(crate) points: Vec<Point>,
    pub(crate) tree: Tree,
}

/// The bytes of an index.
pub(crate) fn encode(index: &Index) -> Vec<u8> {
    let Index { diff_id, tar_length, points, tree } = index;
    let mut bytes = Vec::with_capacity(tree.inodes.len() * INODE + tree.names.len() * NAME + tree.text.len() + 200);
    bytes.extend_from_slice(MAGIC);
    bytes.extend_from_slice(diff_id.as_bytes());
    let counts = [tree.inodes.len(), tree.names.len(), points.len(), tree.text.len()].map(|count| count as u64);
    for number in [*tar_length].into_iter().chain(counts) {
        bytes.extend_from_slice(&number.to_le_bytes());
    }
    for inode in &tree.inodes {
        let flags = u8::from(inode.implied) | u8::from(inode.opaque) << 1;
        bytes.extend_from_slice(&[inode.kind as u8, flags]);
        bytes.extend_from_slice(&inode.mode.to_le_bytes());
        for number in [inode.uid, inode.gid, inode.nlink] {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
        bytes.extend_from_slice(&inode.mtime.0.to_le_bytes());
        bytes.extend_from_slice(&inode.mtime.1.to_le_bytes());
        bytes.extend_from_slice(&inode.size.to_le_bytes());
        let (major, minor) = inode.device;
        let numbers =
            [major, minor, inode.names, inode.target.at, inode.target.length, inode.xattrs.at, inode.xattrs.length];
        bytes.extend_from_slice(&inode.place.to_le_bytes());
        for number in numbers {
            bytes.extend_from_slice(&number.to_le_bytes());
        }
    }
    for name in &tree.names {
        bytes.extend_from_slice(&name.inode.to_le_bytes());
        bytes.extend_from_slice(&name.at.to_le_bytes());
        bytes.extend_from_slice(&name.length.to_le_bytes());
    }
    for point in points {
        bytes.extend_from_slice(&point.tar.to_le_bytes());
        bytes.extend_from_slice(&point.blob.to_le_bytes());
        bytes.extend_from_slice(&point.crc.to_le_bytes());
    }
    bytes.extend_from_slice(&tree.text);
    let checksum = Digest::of(&bytes);
    bytes.extend_from_slice(checksum.as_bytes());
    bytes
}

/// The index that [`encode`] made these bytes of; `None` if it did not.
pub(crate) fn decode(bytes: &[u8]) -> Option<Index> {
    let (content, checksum) = bytes.split_at_checked(bytes.len().checked_sub(32)?)?;
    if !content.starts_with(MAGIC) || Digest::of(content).as_bytes() != checksum {
        return None;
    }
    let mut cursor = Cursor(&content[MAGIC.len()..]);
    let diff_id = DiffId::from(cursor.array::<32>()?);
    let tar_length = cursor.u64()?;
    let mut count = || usize::try_from(cursor.u64()?).ok();
    let (inodes, names, points, text) = (count()?, count()?, count()?, count()?);
    let sizes = [inodes.checked_mul(INODE)?, names.checked_mul(NAME)?, points.checked_mul(POINT)?, text];
    if sizes.iter().try_fold(0usize, |sum, size| sum.checked_add(*size))? != cursor.0.len() {
        return None;
    }
    let mut tree = Tree { inodes: Vec::with_capacity(inodes), names: Vec::with_capacity(names), text: Vec::new() };
    for _ in 0..inodes {
        tree.inodes.push(inode(&mut cursor)?);
    }
    for _ in 0..names {
        let (inode, at) = (cursor.u32()?, cursor.u32()?);
        tree.names.push(Name { inode, at, length: u16::from_le_bytes(cursor.array()?) });
    }
    let points = (0..points)
        .map(|_| Some(Point { tar: cursor.u64()?, blob: cursor.u64()?, crc: cursor.u32()? }))
        .collect::<Option<Vec<_>>>()?;
    tree.text = cursor.0.to_vec();
    is_sound(&tree).then_some(Index { diff_id, tar_length, points, tree })
}

fn inode(cursor: &mut Cursor<'_>) -> Option<Inode> {
    let [kind, flags] = cursor.array()?;
    let mode = u16::from_le_bytes(cursor.array()?);
    let (uid, gid, nlink) = (cursor.u32()?, cursor.u32()?, cursor.u32()?);
    let mtime = (i64::from_le_bytes(cursor.array()?), cursor.u32()?);
    let (size, place) = (cursor.u64()?, cursor.u64()?);
    let device = (cursor.u32()?, cursor.u32()?);
    let names = cursor.u32()?;
    let target = Span { at: cursor.u32()?, length: cursor.u32()? };
    let xattrs = Span { at: cursor.u32()?, length: cursor.u32()? };
    Some(Inode {
        kind: Kind::of(kind)?,
        mode,
        uid,
        gid,
        nlink,
        mtime,
        size,
        device,
        implied: flags & 1 != 0,
        opaque: flags & 2 != 0,
        place,
        names,
        origin: (0, 0),
        target,
        xattrs,
    })
}

/// Whether every name leads to an inode, so that nothing below need doubt it.
fn is_sound(tree: &Tree) -> bool {
    let fits = |at: u32, length: u32| u64::from(at) + u64::from(length) <= tree.text.len() as u64;
    let root = tree.inodes.first().is_some_and(|root| root.kind == Kind::Directory);
    root && tree
        .names
        .iter()
        .all(|name| (name.inode as usize) < tree.inodes.len() && fits(name.at, u32::from(name.length)))
        && tree
            .inodes
            .iter()
            .all(|inode| fits(inode.target.at, inode.target.length) && fits(inode.xattrs.at, inode.xattrs.length))
}

struct Cursor<'bytes>(&'bytes [u8]);

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*array)
    }

    fn u32(&mut self) -> Option<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.array().map(u64::from_le_bytes)
    }
}

#[cfg(test)]
mod tests;
