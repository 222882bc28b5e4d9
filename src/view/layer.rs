//! A layer's entries become a [`Tree`]: what an unpacker would have made of them in an empty directory, with whiteouts
//! kept.
//!
//! So do containerd and podman, which unpack each layer by itself for overlayfs to merge: a path goes through the layer's
//! own symbolic links, within its root; a later entry replaces an earlier one of the same path, and a directory only
//! changes its attributes. What would leave the root, or what they fail on, is refused.

use std::collections::HashMap;

use crate::view::tar::{Entry, Type};
use crate::view::tree::{Inode, Kind, LINKS, Name, Tree, components};

/// The most entries of a layer.
const MOST: usize = 2_000_000;
/// The longest name (`NAME_MAX`): one that is longer makes a whole listing fail.
const LONGEST_NAME: usize = 255;
/// What begins the name of a whiteout (image-spec `layer.md`).
pub(crate) const WHITEOUT: &[u8] = b".wh.";
/// The whiteout of all that a directory has below.
const OPAQUE: &[u8] = b".wh..wh..opq";
/// What aufs keeps for itself; every unpacker passes over it.
const META: &[u8] = b".wh..wh.";

/// A tree that entries are added to.
#[derive(Debug)]
pub(crate) struct Builder {
    /// Inodes with their names and parents still elsewhere; the text is the tree's.
    tree: Tree,
    names: HashMap<(u32, Box<[u8]>), u32>,
    /// The directory that each directory is in.
    parents: HashMap<u32, u32>,
    entries: usize,
}

impl Builder {
    pub(crate) fn new() -> Builder {
        let mut tree = Tree::default();
        tree.inodes.push(Inode::implied_directory());
        Builder { tree, names: HashMap::new(), parents: [(0, 0)].into(), entries: 0 }
    }

    /// Take in the next entry.
    ///
    /// Errors: why no unpacker may take it.
    pub(crate) fn add(&mut self, entry: &Entry) -> Result<(), String> {
        let shown = || entry.path[..entry.path.len().min(200)].escape_ascii().to_string();
        self.entries += 1;
        if self.entries > MOST {
            return Err(format!("it has more than {MOST} entries"));
        }
        self.place(entry).map_err(|reason| format!("its entry \"{}\" {reason}", shown()))
    }

    fn place(&mut self, entry: &Entry) -> Result<(), String> {
        let path = clean(&entry.path)?;
        let Some((name, directories)) = path.split_last() else {
            if entry.kind != Type::Directory {
                return Err("would replace the root".to_owned());
            }
            return self.describe(0, entry);
        };
        if name.starts_with(META) && *name != OPAQUE || directories.iter().any(|name| name.starts_with(META)) {
            return Ok(());
        }
        if directories.iter().any(|name| name.starts_with(WHITEOUT)) {
            return Err("is below a whiteout".to_owned());
        }
        let parent = self.directory(directories)?;
        match name.strip_prefix(WHITEOUT) {
            _ if *name == OPAQUE => {
                self.tree.inodes[parent as usize].opaque = true;
                self.whiteout(parent, name, Kind::Opaque, entry)
            }
            Some(b"" | b"." | b"..") => Err("is a whiteout of nothing".to_owned()),
            Some(_) => self.whiteout(parent, name, Kind::Whiteout, entry),
            None => self.file(parent, name, entry),
        }
    }

    fn whiteout(&mut self, parent: u32, name: &[u8], kind: Kind, entry: &Entry) -> Result<(), String> {
        if name.len() > WHITEOUT.len() + LONGEST_NAME {
            return Err("hides a name of more than 255 bytes".to_owned());
        }
        let inode = Inode { kind, mode: entry.mode, uid: entry.uid, gid: entry.gid, ..Inode::implied_directory() };
        let inode = self.push(Inode { mtime: entry.mtime, implied: false, ..inode })?;
        self.names.insert((parent, name.into()), inode);
        Ok(())
    }

    fn file(&mut self, parent: u32, name: &[u8], entry: &Entry) -> Result<(), String> {
        if name.len() > LONGEST_NAME {
            return Err("has a name of more than 255 bytes".to_owned());
        }
        let key = (parent, Box::from(name));
        let found = self.names.get(&key).copied();
        if entry.kind == Type::Directory {
            if let Some(found) = found.filter(|found| self.is_directory(*found)) {
                return self.describe(found, entry);
            }
            let inode = self.push(Inode::implied_directory())?;
            self.parents.insert(inode, parent);
            self.describe(inode, entry)?;
            self.names.insert(key, inode);
            return Ok(());
        }
        // What lies in a directory that is replaced keeps a parent that nobody reaches.
        let inode = if entry.kind == Type::HardLink { self.link(entry)? } else { None };
        let inode = match inode {
            Some(inode) => inode,
            None => {
                let inode = self.push(Inode::implied_directory())?;
                self.describe(inode, entry)?;
                inode
            }
        };
        self.names.insert(key, inode);
        Ok(())
    }

    /// What a hard link leads to in this layer; `None` if it must be below.
    fn link(&self, entry: &Entry) -> Result<Option<u32>, String> {
        let path = clean(&entry.target).map_err(|reason| format!("is a hard link whose target {reason}"))?;
        let Some((name, directories)) = path.split_last() else {
            return Err("is a hard link to the root".to_owned());
        };
        let Some(parent) = self.find(directories)? else { return Ok(None) };
        match self.names.get(&(parent, Box::from(*name))).copied() {
            Some(found) if self.is_directory(found) => Err("is a hard link to a directory".to_owned()),
            found => Ok(found),
        }
    }

    /// The directory that `names` lead to, if they lead to one in this layer.
    fn find(&self, names: &[&[u8]]) -> Result<Option<u32>, String> {
        let mut walk = Steps::new(names);
        let mut at = 0;
        while let Some(name) = walk.next() {
            match self.step(&mut walk, at, &name)? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The directory that `names` lead to; what is missing of it is made.
    fn directory(&mut self, names: &[&[u8]]) -> Result<u32, String> {
        let mut walk = Steps::new(names);
        let mut at = 0;
        while let Some(name) = walk.next() {
            at = match self.step(&mut walk, at, &name)? {
                Some(next) => next,
                None => {
                    if name.len() > LONGEST_NAME {
                        return Err("has a name of more than 255 bytes".to_owned());
                    }
                    let inode = self.push(Inode::implied_directory())?;
                    self.parents.insert(inode, at);
                    self.names.insert((at, name.into()), inode);
                    inode
                }
            };
        }
        Ok(at)
    }

    /// One name further from the directory `at`; `None` if there is none. A link's names go before those that are left.
    fn step(&self, walk: &mut Steps, at: u32, name: &[u8]) -> Result<Option<u32>, String> {
        if name == b".." {
            return Ok(Some(self.parents.get(&at).copied().unwrap_or(0)));
        }
        let Some(found) = self.names.get(&(at, Box::from(name))).copied() else { return Ok(None) };
        match self.tree.inodes[found as usize].kind {
            Kind::Directory => Ok(Some(found)),
            Kind::Symlink => {
                let target = self.tree.target(found);
                walk.follow(target)?;
                Ok(Some(if target.starts_with(b"/") { 0 } else { at }))
            }
            _ => Err("goes through something that is no directory".to_owned()),
        }
    }

    fn is_directory(&self, inode: u32) -> bool {
        self.tree.inodes[inode as usize].kind == Kind::Directory
    }

    fn push(&mut self, inode: Inode) -> Result<u32, String> {
        let number = u32::try_from(self.tree.inodes.len()).ok().filter(|_| self.tree.inodes.len() < 2 * MOST);
        self.tree.inodes.push(inode);
        number.ok_or_else(|| "is one too many".to_owned())
    }

    /// Give the inode the entry's attributes.
    fn describe(&mut self, inode: u32, entry: &Entry) -> Result<(), String> {
        let mut xattrs = Vec::new();
        for (name, value) in &entry.xattrs {
            let lengths = (u16::try_from(name.len()).ok(), u32::try_from(value.len()).ok());
            let (Some(name_length), Some(length)) = lengths else { continue };
            xattrs.extend_from_slice(&name_length.to_le_bytes());
            xattrs.extend_from_slice(&length.to_le_bytes());
            xattrs.extend_from_slice(name);
            xattrs.extend_from_slice(value);
        }
        let is_link = matches!(entry.kind, Type::Symlink | Type::HardLink);
        let target: &[u8] = if is_link { &entry.target } else { b"" };
        if entry.kind == Type::Symlink && (target.is_empty() || target.len() > 4095) {
            return Err("is a symbolic link that no file system takes".to_owned());
        }
        let texts = (self.tree.add_text(&xattrs), self.tree.add_text(target));
        let (Some(xattrs), Some(target)) = texts else {
            return Err("holds more names and attributes than can be kept".to_owned());
        };
        let old = self.tree.inodes[inode as usize];
        self.tree.inodes[inode as usize] = Inode {
            kind: match entry.kind {
                Type::Directory => Kind::Directory,
                Type::File => Kind::File,
                Type::Symlink => Kind::Symlink,
                Type::HardLink => Kind::Link,
                Type::CharDevice => Kind::CharDevice,
                Type::BlockDevice => Kind::BlockDevice,
                Type::Fifo => Kind::Fifo,
            },
            mode: if entry.kind == Type::Symlink { 0o777 } else { entry.mode },
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            size: if entry.kind == Type::Symlink { entry.target.len() as u64 } else { entry.size },
            device: entry.device,
            implied: false,
            place: entry.offset,
            target,
            xattrs,
            ..old
        };
        Ok(())
    }

    /// The tree, when all entries are in.
    pub(crate) fn finish(self) -> Result<Tree, String> {
        let too_much = || "it has more names and attributes than can be kept".to_owned();
        let Builder { tree: old, names, .. } = self;
        let mut by_parent: Vec<(u32, Box<[u8]>, u32)> =
            names.into_iter().map(|((parent, name), inode)| (parent, name, inode)).collect();
        by_parent.sort_unstable();
        let children = |directory: u32| {
            let first = by_parent.partition_point(|(parent, ..)| *parent < directory);
            let after = by_parent.partition_point(|(parent, ..)| *parent <= directory);
            &by_parent[first..after]
        };
        let mut tree = Tree::default();
        let mut known: HashMap<u32, u32> = HashMap::new();
        // Directories in the order in which they are met, hence before what is in them.
        let mut queue = std::collections::VecDeque::from([(0, carry(&mut tree, &old, 0).ok_or_else(too_much)?)]);
        while let Some((from, to)) = queue.pop_front() {
            let children = children(from);
            let directory = &mut tree.inodes[to as usize];
            directory.place = tree.names.len() as u64;
            directory.names = u32::try_from(children.len()).map_err(|_| too_much())?;
            for (_, name, inode) in children {
                let number = match known.get(inode) {
                    Some(number) => {
                        tree.inodes[*number as usize].nlink += 1;
                        *number
                    }
                    None => {
                        let number = carry(&mut tree, &old, *inode).ok_or_else(too_much)?;
                        known.insert(*inode, number);
                        if old.inodes[*inode as usize].kind == Kind::Directory {
                            tree.inodes[to as usize].nlink += 1;
                            queue.push_back((*inode, number));
                        }
                        number
                    }
                };
                let span = tree.add_text(name).ok_or_else(too_much)?;
                let length = u16::try_from(span.length).map_err(|_| too_much())?;
                tree.names.push(Name { inode: number, at: span.at, length });
            }
        }
        hide_below(&mut tree);
        Ok(tree)
    }
}

/// Copy an inode with its text, without its names.
pub(crate) fn carry(tree: &mut Tree, from: &Tree, inode: u32) -> Option<u32> {
    let old = from.inode(inode)?;
    let target = tree.add_text(from.piece(old.target))?;
    let xattrs = tree.add_text(from.piece(old.xattrs))?;
    let is_directory = old.kind == Kind::Directory;
    let place = if is_directory { 0 } else { old.place };
    let nlink = if is_directory { 2 } else { 1 };
    let number = u32::try_from(tree.inodes.len()).ok()?;
    tree.inodes.push(Inode { target, xattrs, place, nlink, names: 0, ..*old });
    Some(number)
}

/// A whiteout beside the directory of its name hides what is below it: the directory is as good as opaque.
fn hide_below(tree: &mut Tree) {
    let mut opaque = Vec::new();
    for directory in 0..u32::try_from(tree.inodes.len()).unwrap_or(u32::MAX) {
        for name in tree.names_of(directory) {
            if tree.inodes[name.inode as usize].kind == Kind::Whiteout
                && let Some(beside) = tree.child(directory, &tree.name(name)[WHITEOUT.len()..])
            {
                opaque.push(beside);
            }
        }
    }
    for inode in opaque {
        tree.inodes[inode as usize].opaque = true;
    }
}

/// The names of a path as Go's `filepath.Clean` leaves them, from the root.
fn clean(path: &[u8]) -> Result<Vec<&[u8]>, String> {
    let mut names = Vec::new();
    for name in components(path) {
        if name != b".." {
            names.push(name);
        } else if names.pop().is_none() && !path.starts_with(b"/") {
            return Err("leads out of the layer".to_owned());
        }
    }
    Ok(names)
}

/// Names still to go, with those of the links on the way.
struct Steps {
    rest: Vec<Vec<u8>>,
    links: usize,
}

impl Steps {
    fn new(names: &[&[u8]]) -> Steps {
        Steps { rest: names.iter().rev().map(|name| name.to_vec()).collect(), links: 0 }
    }

    fn next(&mut self) -> Option<Vec<u8>> {
        self.rest.pop()
    }

    fn follow(&mut self, target: &[u8]) -> Result<(), String> {
        self.links += 1;
        if self.links > LINKS {
            return Err("goes through too many symbolic links".to_owned());
        }
        self.rest.extend(components(target).rev().map(<[u8]>::to_vec));
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests;
