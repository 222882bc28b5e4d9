//! [`Weaver`]: what the plan names, copied from the layers' tars into a new one.

use std::io::{self, Write};
use std::ops::Range;

use crate::changeset::{self, Entry, Metadata, tar, xattr_name};
use crate::image::{self, Compression, Encoded, Layer, LayerWriter};
use crate::progress::Progress;
use crate::squash::Error;
use crate::squash::plan::{Node, What};
use crate::sys::dir::{Device, Time};
use crate::view::{Inode, Kind, Piece, Take, Tree, Whole};

/// The unit of a tar.
const BLOCK: u64 = 512;

/// Writes the layer.
pub(crate) struct Weaver<'a> {
    pub(crate) all: &'a Tree,
    pub(crate) compression: Compression,
    pub(crate) writer: LayerWriter,
    pub(crate) progress: &'a Progress,
}

impl Weaver<'_> {
    /// What has no content.
    pub(crate) fn entries(&mut self, nodes: &[Node]) -> Result<(), Error> {
        for node in nodes {
            self.progress.check()?;
            let headers = tar::headers(&self.entry(node))?;
            self.writer.begin_entry(0);
            self.put(&headers)?;
            self.progress.add_file();
        }
        Ok(())
    }

    /// The files of one layer, in the order of their contents.
    pub(crate) fn files(&mut self, whole: &Whole, nodes: &[Node]) -> Result<(), Error> {
        let marks = nodes.iter().filter_map(|node| {
            let What::Inode(inode) = node.what else { return None };
            let inode = self.all.inode(inode)?;
            let headers = whole.headers(inode.place, &node.path);
            let end = inode.place + inode.size.next_multiple_of(BLOCK);
            let at = headers.unwrap_or(inode.place);
            Some(Mark { at, end, content: inode.size, renamed: headers.is_none().then_some(node) })
        });
        let marks: Vec<Mark<'_>> = marks.collect();
        if marks.is_empty() {
            return Ok(());
        }
        let mut files = Files { weaver: self, marks: &marks, next: 0 };
        whole.pieces(&mut files)?;
        files.rest()
    }

    /// Write the end of the tar, and make the layer durable.
    pub(crate) fn finish(mut self) -> Result<Layer, Error> {
        self.put(&[0; 2 * BLOCK as usize])?;
        Ok(self.writer.finish_for(self.progress)?)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.writer.write_all(bytes).map_err(image::Error::Write)?;
        self.progress.add_bytes(bytes.len() as u64);
        Ok(())
    }

    /// A node as the changeset's entry that it would be.
    fn entry(&self, node: &Node) -> Entry {
        let path = node.path.to_vec();
        let (number, link) = match &node.what {
            What::Whiteout => return Entry::whiteout(path),
            What::Inode(number) => (*number, None),
            What::Link(number, to) => (*number, Some(to.to_vec())),
        };
        let Some(inode) = self.all.inode(number) else { return Entry::whiteout(path) };
        let xattrs = self.all.xattrs(number).map(|(name, value)| (xattr_name(name), value.to_vec()));
        let xattrs = if link.is_some() { Vec::new() } else { xattrs.collect() };
        let kind = match link {
            Some(to) => changeset::Kind::HardLink { to },
            None => kind(inode, self.all.target(number)),
        };
        Entry { kind, metadata: metadata(inode), xattrs, ..Entry::whiteout(path) }
    }
}

fn kind(inode: &Inode, target: &[u8]) -> changeset::Kind {
    let device = Device { major: inode.device.0, minor: inode.device.1 };
    match inode.kind {
        Kind::Directory => changeset::Kind::Directory,
        Kind::File => changeset::Kind::File,
        Kind::Symlink => changeset::Kind::Symlink { target: target.to_vec() },
        Kind::CharDevice => changeset::Kind::CharDevice(device),
        Kind::BlockDevice => changeset::Kind::BlockDevice(device),
        Kind::Fifo => changeset::Kind::Fifo,
        // A merged tree has none of these.
        Kind::Link | Kind::Whiteout | Kind::Opaque => changeset::Kind::Whiteout,
    }
}

fn metadata(inode: &Inode) -> Metadata {
    let (seconds, nanoseconds) = inode.mtime;
    Metadata {
        mode: inode.mode.into(),
        uid: inode.uid,
        gid: inode.gid,
        size: inode.size,
        mtime: Time { seconds, nanoseconds },
        ..Metadata::default()
    }
}

/// A file, where it is in its layer's tar.
struct Mark<'a> {
    /// Copying begins here, with the headers if they can be used.
    at: u64,
    end: u64,
    content: u64,
    /// If not, others are to be made.
    renamed: Option<&'a Node>,
}

/// Files on their way.
struct Files<'w, 'a, 'm> {
    weaver: &'w mut Weaver<'a>,
    /// In order.
    marks: &'m [Mark<'m>],
    /// The first that is not written to its end.
    next: usize,
}

impl Files<'_, '_, '_> {
    /// Whether all of the piece is copied as it is, and nothing comes between.
    fn is_whole(&self, piece: &Range<u64>) -> bool {
        let mut at = piece.start;
        for mark in &self.marks[self.next..] {
            if at >= piece.end {
                break;
            }
            if mark.at > at || (mark.renamed.is_some() && mark.at > piece.start) {
                return false;
            }
            at = mark.end;
        }
        at >= piece.end
    }

    /// Write what the piece has.
    fn put(&mut self, piece: &Piece<'_>) -> Result<(), Error> {
        let (place, marks) = (piece.place(), self.marks);
        while let Some(mark) = marks.get(self.next).filter(|mark| mark.at < place.end) {
            self.begin(mark, place.start)?;
            let (from, to) = (mark.at.max(place.start), mark.end.min(place.end));
            // Both are within the piece.
            self.weaver.put(&piece.tar[(from - place.start) as usize..(to - place.start) as usize])?;
            if mark.end > place.end {
                break;
            }
            self.next += 1;
        }
        Ok(())
    }

    /// A tar may end right behind the headers of an empty file.
    fn rest(&mut self) -> Result<(), Error> {
        let marks = self.marks;
        marks[self.next..].iter().try_for_each(|mark| self.begin(mark, mark.at))
    }

    /// What comes before a file, unless it was written with an earlier piece.
    fn begin(&mut self, mark: &Mark<'_>, piece: u64) -> Result<(), Error> {
        if mark.at < piece {
            return Ok(());
        }
        self.weaver.writer.begin_entry(mark.content);
        self.weaver.progress.add_file();
        match mark.renamed {
            Some(node) => self.weaver.put(&tar::headers(&self.weaver.entry(node))?),
            None => Ok(()),
        }
    }

    /// The same, with the frames that the piece is in.
    fn copy(&mut self, encoded: &Encoded<'_>, place: &Range<u64>) -> Result<(), Error> {
        let copied = |error: io::Error| Error::Image(image::Error::Write(error));
        let marks = self.marks;
        while let Some(mark) = marks.get(self.next).filter(|mark| mark.at < place.end) {
            self.begin(mark, place.start)?;
            if mark.end > place.end {
                break;
            }
            self.next += 1;
        }
        self.weaver.writer.copy(encoded).map_err(copied)?;
        self.weaver.progress.add_bytes(place.end - place.start);
        Ok(())
    }
}

impl Take for Files<'_, '_, '_> {
    type Error = Error;

    fn wants(&self, piece: &Range<u64>) -> bool {
        self.marks.get(self.next).is_some_and(|mark| mark.at < piece.end)
    }

    fn take(&mut self, piece: &Piece<'_>) -> Result<(), Error> {
        self.weaver.progress.check()?;
        let place = piece.place();
        if self.is_whole(&place)
            && let Some(packed) = piece.packed()
            && let Some(encoded) = Encoded::of(self.weaver.compression, piece.tar, &packed)
        {
            return self.copy(&encoded, &place);
        }
        self.put(piece)
    }
}
