//! [`Tree`]: a file tree in three arrays, so that a hundred thousand files are a few megabytes and no pointers.
//!
//! An index of a layer and the merged tree of an image are both one. Inode 0 is the root; directories come before what is
//! in them; the names of a directory are in order of their bytes.

use std::fmt;

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u8)]
pub enum Kind {
    /// A directory.
    Directory = 0,
    /// A regular file.
    File = 1,
    /// A symbolic link.
    Symlink = 2,
    /// A character device.
    CharDevice = 3,
    /// A block device.
    BlockDevice = 4,
    /// A FIFO.
    Fifo = 5,
    /// In a layer alone: a hard link to a file that an image below must have.
    Link = 6,
    /// In a layer alone: `.wh.NAME`, which hides NAME below.
    Whiteout = 7,
    /// In a layer alone: `.wh..wh..opq`, which hides what the directory has below.
    Opaque = 8,
}

impl Kind {
    pub(crate) fn of(byte: u8) -> Option<Kind> {
        const ALL: [Kind; 9] = [
            Kind::Directory,
            Kind::File,
            Kind::Symlink,
            Kind::CharDevice,
            Kind::BlockDevice,
            Kind::Fifo,
            Kind::Link,
            Kind::Whiteout,
            Kind::Opaque,
        ];
        ALL.get(usize::from(byte)).copied()
    }
}

/// A piece of the tree's text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span {
    pub(crate) at: u32,
    pub(crate) length: u32,
}

/// A file, as stat(2) has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inode {
    /// What it is.
    pub kind: Kind,
    /// The permission bits, with set-user-ID, set-group-ID and sticky.
    pub mode: u16,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
    /// How many names it has; for a directory 2 and one for each directory in it.
    pub nlink: u32,
    /// When its content last changed: seconds since the epoch, and nanoseconds forward from there.
    pub mtime: (i64, u32),
    /// Bytes of a file's content or of a link's target.
    pub size: u64,
    /// Major and minor number of a device.
    pub device: (u32, u32),
    /// Of a directory that no entry tells of, but only something in it: its attributes are those of the directory below.
    pub(crate) implied: bool,
    /// Of a layer's directory: what is below it is hidden.
    pub(crate) opaque: bool,
    /// Of a file: where its content begins in the tar. Of a directory: its first name.
    pub(crate) place: u64,
    /// Of a directory: how many names it has.
    pub(crate) names: u32,
    /// In a merged tree: which layer it is of, and which inode there.
    pub(crate) origin: (u32, u32),
    pub(crate) target: Span,
    pub(crate) xattrs: Span,
}

impl Inode {
    /// Of a file: where its content begins in the tar.
    pub fn place(&self) -> u64 {
        self.place
    }

    /// Of a directory: nobody told of it, but only of something in it.
    pub fn is_implied(&self) -> bool {
        self.implied
    }

    /// A directory that nobody told of: what containerd makes of it.
    pub(crate) fn implied_directory() -> Inode {
        Inode {
            kind: Kind::Directory,
            mode: 0o755,
            uid: 0,
            gid: 0,
            nlink: 2,
            mtime: (0, 0),
            size: 0,
            device: (0, 0),
            implied: true,
            opaque: false,
            place: 0,
            names: 0,
            origin: (0, 0),
            target: Span::default(),
            xattrs: Span::default(),
        }
    }
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Name {
    pub(crate) inode: u32,
    pub(crate) at: u32,
    pub(crate) length: u16,
}

/// A file tree. Inodes are numbers from 0, the root, to [`len`](Tree::len).
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Tree {
    pub(crate) inodes: Vec<Inode>,
    pub(crate) names: Vec<Name>,
    pub(crate) text: Vec<u8>,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree").field("inodes", &self.inodes.len()).finish_non_exhaustive()
    }
}

impl Tree {
    /// How many inodes there are.
    pub fn len(&self) -> usize {
        self.inodes.len()
    }

    /// Whether there is not even a root, which no tree of an image is.
    pub fn is_empty(&self) -> bool {
        self.inodes.is_empty()
    }

    /// An inode's attributes.
    pub fn inode(&self, inode: u32) -> Option<&Inode> {
        self.inodes.get(inode as usize)
    }

    /// What a directory holds: names in order with their inodes; nothing for what is no directory.
    pub fn children(&self, inode: u32) -> impl ExactSizeIterator<Item = (&[u8], u32)> + Clone {
        self.names_of(inode).iter().map(|name| (self.name(name), name.inode))
    }

    /// The inode of one name in a directory.
    pub fn child(&self, directory: u32, name: &[u8]) -> Option<u32> {
        let names = self.names_of(directory);
        names.binary_search_by(|known| self.name(known).cmp(name)).ok().map(|at| names[at].inode)
    }

    /// Where a symbolic link points to.
    pub fn target(&self, inode: u32) -> &[u8] {
        self.inode(inode).map_or(b"", |inode| self.piece(inode.target))
    }

    /// An inode's extended attributes, in the order of their names.
    pub fn xattrs(&self, inode: u32) -> impl Iterator<Item = (&[u8], &[u8])> {
        let mut rest = self.inode(inode).map_or(&b""[..], |inode| self.piece(inode.xattrs));
        std::iter::from_fn(move || {
            let (lengths, after) = rest.split_at_checked(6)?;
            let name_length = usize::from(u16::from_le_bytes([lengths[0], lengths[1]]));
            let length = u32::from_le_bytes([lengths[2], lengths[3], lengths[4], lengths[5]]) as usize;
            let (name, after) = after.split_at_checked(name_length)?;
            let (value, after) = after.split_at_checked(length)?;
            rest = after;
            Some((name, value))
        })
    }

    /// Every name of the tree but the root's, directories before what is in them: its path, and its inode. An inode with
    /// several names comes as often.
    pub fn walk(&self) -> Walk<'_> {
        Walk { tree: self, path: Vec::new(), open: vec![(0, 0, 0)] }
    }

    /// The bytes of all its files together, each counted once.
    pub fn content_size(&self) -> u64 {
        self.inodes.iter().filter(|inode| inode.kind == Kind::File).map(|inode| inode.size).sum()
    }

    /// What it takes in memory, in bytes.
    pub(crate) fn weight(&self) -> u64 {
        (size_of_val(&*self.inodes) + size_of_val(&*self.names) + self.text.len()) as u64
    }

    pub(crate) fn names_of(&self, inode: u32) -> &[Name] {
        let range = self.inode(inode).filter(|inode| inode.kind == Kind::Directory).and_then(|inode| {
            let first = usize::try_from(inode.place).ok()?;
            self.names.get(first..first.checked_add(inode.names as usize)?)
        });
        range.unwrap_or_default()
    }

    pub(crate) fn name(&self, name: &Name) -> &[u8] {
        self.piece(Span { at: name.at, length: u32::from(name.length) })
    }

    pub(crate) fn piece(&self, span: Span) -> &[u8] {
        let at = span.at as usize;
        self.text.get(at..at + span.length as usize).unwrap_or_default()
    }

    /// Keep `bytes` in the text; `None` if there is too much of it.
    pub(crate) fn add_text(&mut self, bytes: &[u8]) -> Option<Span> {
        if bytes.is_empty() {
            return Some(Span::default());
        }
        if self.text.len() + bytes.len() > TEXT_LIMIT {
            return None;
        }
        let at = u32::try_from(self.text.len()).ok()?;
        self.text.extend_from_slice(bytes);
        Some(Span { at, length: u32::try_from(bytes.len()).ok()? })
    }

    /// Follow `path`, component by component, within the tree: absolute links begin at its root, and `..` stays in it.
    /// A link in the last place is not followed.
    pub fn resolve(&self, path: &[u8]) -> Option<u32> {
        let mut parents = vec![0];
        let mut rest: Vec<&[u8]> = components(path).rev().collect();
        let mut links = 0;
        while let Some(component) = rest.pop() {
            if component == b".." {
                if parents.len() > 1 {
                    parents.pop();
                }
                continue;
            }
            let found = self.child(*parents.last()?, component)?;
            let inode = self.inode(found)?;
            if inode.kind == Kind::Symlink && !rest.is_empty() {
                links += 1;
                if links > LINKS {
                    return None;
                }
                let target = self.target(found);
                if target.starts_with(b"/") {
                    parents.truncate(1);
                }
                rest.extend(components(target).rev());
            } else {
                parents.push(found);
            }
        }
        parents.pop()
    }
}

/// The most names, targets and extended attributes of a tree together, in bytes.
pub(crate) const TEXT_LIMIT: usize = 256 << 20;
/// How many symbolic links are followed on one path: Linux's limit.
pub(crate) const LINKS: usize = 40;

/// The names of a path, without empty ones and `.`.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|name| !name.is_empty() && *name != b".")
}

/// See [`Tree::walk`].
#[derive(Debug)]
pub struct Walk<'tree> {
    tree: &'tree Tree,
    path: Vec<u8>,
    /// Directories from the root down: inode, next name, length of the path.
    open: Vec<(u32, usize, usize)>,
}

impl Iterator for Walk<'_> {
    type Item = (Vec<u8>, u32);

    fn next(&mut self) -> Option<(Vec<u8>, u32)> {
        loop {
            let (directory, next, length) = self.open.last_mut()?;
            self.path.truncate(*length);
            let Some(name) = self.tree.names_of(*directory).get(*next) else {
                self.open.pop();
                continue;
            };
            *next += 1;
            if !self.path.is_empty() {
                self.path.push(b'/');
            }
            self.path.extend_from_slice(self.tree.name(name));
            if self.tree.inode(name.inode).is_some_and(|inode| inode.kind == Kind::Directory) {
                self.open.push((name.inode, 0, self.path.len()));
            }
            return Some((self.path.clone(), name.inode));
        }
    }
}
