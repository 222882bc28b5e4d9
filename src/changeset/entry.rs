//! What a container changed, as values: [`Changes`] is the changeset, [`Entry`] one path of it.

use std::io::{self, Write};
use std::sync::Arc;

use crate::changeset::snapshot::Place;
use crate::sys::dir::{Device, Dir, Stat, Time};

/// What the image specification (`layer.md`) calls a changeset: the paths added, modified and deleted.
///
/// It describes the files and does not hold their content: [`tar::write`](crate::changeset::tar::write) reads that through
/// the directory handles kept here.
#[derive(Debug)]
pub struct Changes {
    /// Parents before what is in them; in each directory whiteouts first, then the rest, sorted by the bytes of the name. A
    /// whiteout in the place of a socket is among the rest.
    pub entries: Vec<Entry>,
    /// Sockets left out: no layer can hold one, and a socket file without its listener is useless.
    pub sockets: u64,
    /// Paths where something is mounted on the host, left out.
    pub mounts: Vec<Vec<u8>>,
    /// Paths that went away or changed their type between being listed and being looked at: none if nothing ran meanwhile.
    pub vanished: Vec<Vec<u8>>,
    /// Extended attributes left out because other engines could not, or must not, apply them.
    pub dropped_xattrs: u64,
    /// What [`Entry::root`] counts in.
    pub(crate) roots: Vec<Arc<Dir>>,
}

/// One path of a changeset.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Relative to the container's root, without a leading slash, in the bytes of its names; empty for the root itself.
    pub path: Vec<u8>,
    /// What is there now.
    pub kind: Kind,
    /// Whether the layers below have something at this path: a change of it rather than an addition.
    pub in_lower: bool,
    /// The inode's attributes; all zero for a whiteout.
    pub metadata: Metadata,
    /// Extended attributes as a process in the container sees them, sorted by name; none for a hard link (they are its
    /// target's).
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// A directory where the layers below have something else: who unpacks what is in it before itself would find that. Or
    /// a directory in such a one: made for what is in it, it would change the time of the one that is written already.
    pub replaces: bool,
    /// Copied up from a layer below, so that the overlay may show it under another inode number.
    pub copied_up: bool,
    /// Which of [`Changes::roots`] holds the content.
    pub(crate) root: usize,
}

/// The type of an [`Entry`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: what the layers below have at this path is deleted.
    Whiteout,
    /// A directory, merged with the one below if there is one.
    Directory,
    /// A regular file of [`Metadata::size`] bytes.
    File,
    /// A symbolic link.
    Symlink {
        /// Its target, as it is stored.
        target: Vec<u8>,
    },
    /// One more name of an inode that an earlier entry describes.
    HardLink {
        /// The path of that entry.
        to: Vec<u8>,
    },
    /// A character device.
    CharDevice(Device),
    /// A block device.
    BlockDevice(Device),
    /// A FIFO.
    Fifo,
}

/// An inode's attributes. Size, times and inode number together tell whether a file is still what it was when scanned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Metadata {
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Length in bytes; what it means for other types than files is the file system's business.
    pub size: u64,
    /// Allocated blocks of 512 bytes.
    pub blocks: u64,
    /// Last change of the content.
    pub mtime: Time,
    /// Last change of the content or of the attributes.
    pub ctime: Time,
    /// Inode number.
    pub ino: u64,
    /// The device that holds the inode.
    pub device: Device,
}

impl From<&Stat> for Metadata {
    fn from(stat: &Stat) -> Metadata {
        Metadata {
            mode: stat.mode,
            uid: stat.uid,
            gid: stat.gid,
            size: stat.size,
            blocks: stat.blocks,
            mtime: stat.mtime,
            ctime: stat.ctime,
            ino: stat.ino,
            device: stat.device,
        }
    }
}

impl Changes {
    /// Nothing: for a tar of entries that come from elsewhere.
    pub fn none() -> Changes {
        Changes {
            entries: Vec::new(),
            sockets: 0,
            mounts: Vec::new(),
            vanished: Vec::new(),
            dropped_xattrs: 0,
            roots: Vec::new(),
        }
    }

    /// Whether something of it shows only in the container's own file system.
    pub fn needs_merged(&self) -> bool {
        self.roots.len() > 1
    }

    /// Bytes of all regular files, holes included: about the length of the tar, and the time it takes to hash it.
    pub fn size(&self) -> u64 {
        self.files().map(|entry| entry.metadata.size).sum()
    }

    /// Bytes that the regular files occupy on disk. A [`size`](Self::size) far above says that they are sparse.
    pub fn allocated(&self) -> u64 {
        self.files().map(|entry| entry.metadata.blocks * 512).sum()
    }

    fn files(&self) -> impl Iterator<Item = &Entry> {
        self.entries.iter().filter(|entry| entry.kind == Kind::File)
    }

    /// Writes the lines of a container's `changes` file: `A` (added), `C` (changed) or `D` (deleted), a space, the
    /// absolute path as [`escape`] spells it.
    pub fn write_lines(&self, out: &mut impl Write) -> io::Result<()> {
        for entry in &self.entries {
            writeln!(out, "{} /{}", entry.letter(), escape(&entry.path))?;
        }
        Ok(())
    }
}

impl Entry {
    /// A file or directory of root's that no container has: its content is given when it is written.
    pub fn made(path: &str, kind: Kind, mode: u32, size: u64, mtime: i64) -> Entry {
        let mtime = Time { seconds: mtime, nanoseconds: 0 };
        // No holes are looked for in a file with as many blocks as it needs.
        let metadata = Metadata { mode, size, blocks: size.div_ceil(512), mtime, ctime: mtime, ..Metadata::default() };
        Entry {
            path: path.as_bytes().to_vec(),
            kind,
            in_lower: false,
            metadata,
            xattrs: Vec::new(),
            replaces: false,
            copied_up: false,
            root: 0,
        }
    }

    /// The deletion of `path`.
    pub(crate) fn whiteout(path: Vec<u8>) -> Entry {
        Entry {
            path,
            kind: Kind::Whiteout,
            in_lower: true,
            metadata: Metadata::default(),
            xattrs: Vec::new(),
            replaces: false,
            copied_up: false,
            root: 0,
        }
    }

    /// Whether both describe the same, so that what was written for one serves for the other. Allocated blocks do not
    /// count: they change when the kernel writes back.
    pub fn is_same(&self, other: &Entry) -> bool {
        let Entry { path, kind, in_lower, metadata, xattrs, replaces, copied_up: _, root } = self;
        let metadata = Metadata { blocks: other.metadata.blocks, ..*metadata };
        (path, kind, in_lower, &metadata, xattrs, replaces, root)
            == (&other.path, &other.kind, &other.in_lower, &other.metadata, &other.xattrs, &other.replaces, &other.root)
    }

    /// Where its content is.
    pub fn place(&self) -> Place {
        Place { path: self.path.clone(), root: self.root, metadata: self.metadata }
    }

    /// `A`, `C` or `D`, as `docker diff` and `podman diff` spell them.
    pub fn letter(&self) -> char {
        match (&self.kind, self.in_lower) {
            (Kind::Whiteout, _) => 'D',
            (_, true) => 'C',
            (_, false) => 'A',
        }
    }
}

/// `path` as one line of text that leads back to its bytes: a backslash is doubled, a control character and what is not
/// UTF-8 becomes `\xNN`.
pub fn escape(path: &[u8]) -> String {
    let mut text = String::with_capacity(path.len());
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            match character {
                '\\' => text.push_str("\\\\"),
                control if control.is_control() => {
                    let mut bytes = [0; 4];
                    for byte in control.encode_utf8(&mut bytes).bytes() {
                        text.push_str(&format!("\\x{byte:02x}"));
                    }
                }
                other => text.push(other),
            }
        }
        for byte in chunk.invalid() {
            text.push_str(&format!("\\x{byte:02x}"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_escaped_path_is_one_line_and_reversible() {
        assert_eq!(escape("etc/caf\u{e9} x".as_bytes()), "etc/caf\u{e9} x");
        assert_eq!(escape(b"a\nD /etc/passwd\\\x1b[m\xff\xc2\x85"), "a\\x0aD /etc/passwd\\\\\\x1b[m\\xff\\xc2\\x85");
    }
}
