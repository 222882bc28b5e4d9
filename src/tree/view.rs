//! The files of images: inodes that are numbers, so that a walk over a hundred thousand of them makes no node.
//!
//! An inode number says of which tree it is, in 31 bits that come from the image's name and digest, and which inode of that
//! tree. The kernel may forget it or not: it stays the same.

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use crate::api::{
    ComingView, Digest, Error, ErrorKind, FileTree, Found, ImageKey, Inode, InodeKind, Opened as Content, View,
};
use crate::tree::handle::Handle;
use crate::tree::{Attr, Kind, Lifetime, Opened, Reply, Tree, not_found, wait_for};

/// What the number of every inode of an image's tree has.
const MARK: u64 = 1 << 63;

/// Whether the number is that of a file of an image.
pub fn is_in_view(ino: u64) -> bool {
    ino & MARK != 0 && ino != u64::MAX
}

/// The trees that the kernel was told of, by number. One costs some hundred bytes, and is kept for good.
#[derive(Debug, Default)]
pub(super) struct Numbers {
    /// With the tree itself, for as long as somebody else keeps it.
    places: HashMap<u32, (Place, Weak<View>)>,
    numbers: HashMap<Place, u32>,
}

/// Which tree: an image's, or that of one of its layers.
type Place = (ImageKey, Option<usize>);

impl Numbers {
    /// The tree's number; nearly always the same one at every mount.
    fn number(&mut self, place: Place) -> u32 {
        if let Some(number) = self.numbers.get(&place) {
            return *number;
        }
        let (key, layer) = &place;
        let text = format!("{} {} {layer:?}", key.name, key.manifest.digest);
        let digest = *Digest::of(text.as_bytes()).as_bytes();
        let mut number = u32::from_be_bytes([digest[0], digest[1], digest[2], digest[3]]) >> 1;
        while self.places.contains_key(&number) {
            number = (number + 1) % (1 << 31);
        }
        self.places.insert(number, (place.clone(), Weak::new()));
        self.numbers.insert(place, number);
        number
    }
}

/// One inode of a tree that is there.
#[derive(Debug, Clone)]
pub struct InView {
    view: Arc<View>,
    /// The number of the tree, in its place in the inode number.
    base: u64,
    inode: u32,
    in_root: bool,
}

impl InView {
    fn at(&self, inode: u32) -> InView {
        InView { inode, ..self.clone() }
    }

    fn tree(&self) -> &FileTree {
        self.view.tree()
    }

    fn inode(&self) -> Result<&Inode, Error> {
        let gone = || Error::new(ErrorKind::Stale, "the file is not known any more");
        self.tree().inode(self.inode).ok_or_else(gone)
    }

    /// What it looks like.
    pub fn attr(&self) -> Result<Attr, Error> {
        Ok(describe(self.inode()?, self.base | u64::from(self.inode)))
    }

    /// The entry `name` of this directory.
    pub fn lookup(&self, name: &std::ffi::OsStr) -> Result<Attr, Error> {
        self.at(self.tree().child(self.inode, name.as_bytes()).ok_or_else(|| not_found(name))?).attr()
    }

    /// Where the symbolic link points to.
    pub fn read_link(&self) -> Result<Vec<u8>, Error> {
        if self.inode()?.kind != InodeKind::Symlink {
            return Err(Error::new(ErrorKind::Invalid, "not a symbolic link"));
        }
        if self.in_root {
            Ok(self.view.target_in_root(self.inode))
        } else {
            Ok(self.tree().target(self.inode).to_vec())
        }
    }

    /// An extended attribute.
    pub fn xattr(&self, name: &std::ffi::OsStr) -> Result<Vec<u8>, Error> {
        let found = self.tree().xattrs(self.inode).find(|(known, _)| *known == name.as_bytes());
        let none = || Error::new(ErrorKind::NoAttribute, "the file has no such extended attribute");
        found.map(|(_, value)| value.to_vec()).ok_or_else(none)
    }

    /// The names of all extended attributes, a zero byte behind each.
    pub fn xattr_names(&self) -> Vec<u8> {
        let mut names = Vec::new();
        for (name, _) in self.tree().xattrs(self.inode) {
            names.extend_from_slice(name);
            names.push(0);
        }
        names
    }

    /// The directory's entries from the one with the number `from` on, with what they look like.
    pub fn entries(&self, from: usize) -> impl Iterator<Item = (&[u8], Attr)> {
        self.tree().children(self.inode).skip(from).filter_map(|(name, inode)| {
            let found = self.tree().inode(inode)?;
            Some((name, describe(found, self.base | u64::from(inode))))
        })
    }
}

fn describe(inode: &Inode, ino: u64) -> Attr {
    Attr {
        ino,
        kind: match inode.kind {
            InodeKind::Directory => Kind::Directory,
            InodeKind::Symlink => Kind::Symlink,
            InodeKind::CharDevice => Kind::CharDevice,
            InodeKind::BlockDevice => Kind::BlockDevice,
            InodeKind::Fifo => Kind::Fifo,
            // What is in a layer without being a file is an empty one.
            InodeKind::File | InodeKind::Link | InodeKind::Whiteout | InodeKind::Opaque => Kind::File,
        },
        mode: inode.mode,
        nlink: inode.nlink,
        uid: inode.uid,
        gid: inode.gid,
        size: inode.size,
        device: inode.device,
        time: time(inode.mtime),
        lifetime: Lifetime::Immutable,
    }
}

/// The nearest that there is.
fn time((seconds, nanoseconds): (i64, u32)) -> SystemTime {
    let whole = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let moment = if seconds < 0 { epoch.checked_sub(whole) } else { epoch.checked_add(whole) };
    moment.and_then(|moment| moment.checked_add(Duration::from_nanos(nanoseconds.into()))).unwrap_or(epoch)
}

impl Tree {
    /// The root of a tree as its parent's listing shows it: nothing is read for that, so what it is like may not be known.
    pub(super) fn describe_view(&self, key: ImageKey, layer: Option<usize>) -> Result<Attr, Error> {
        let base = self.base(&key, layer);
        match self.api.known_view(&key, layer) {
            Some(view) => InView { view, base, inode: 0, in_root: false }.attr(),
            None => Ok(self.unknown_root(base)),
        }
    }

    fn unknown_root(&self, base: u64) -> Attr {
        Attr {
            ino: base,
            kind: Kind::Directory,
            mode: 0o750,
            nlink: 2,
            uid: 0,
            gid: self.group,
            size: 0,
            device: (0, 0),
            time: self.started,
            lifetime: Lifetime::Volatile,
        }
    }

    fn base(&self, key: &ImageKey, layer: Option<usize>) -> u64 {
        MARK | u64::from(self.views.lock().number((key.clone(), layer))) << 32
    }

    /// The inode of an image's tree, once the tree is there.
    pub fn in_view(&self, ino: u64) -> Result<Reply<InView>, Error> {
        let stale = || Error::new(ErrorKind::Stale, "the file is not known any more");
        let number = u32::try_from((ino & !MARK) >> 32).map_err(|_| stale())?;
        let ((key, layer), known) = self.views.lock().places.get(&number).cloned().ok_or_else(stale)?;
        let inode = u32::try_from(ino & u64::from(u32::MAX)).map_err(|_| stale())?;
        let (base, in_root) = (ino & !u64::from(u32::MAX), self.api.symlinks_in_root());
        let found = move |view| InView { view, base, inode, in_root };
        if let Some(view) = known.upgrade() {
            return Ok(Reply::Now(found(view)));
        }
        match self.api.view(&key, layer)? {
            Found::Now(view) => {
                if let Some((_, known)) = self.views.lock().places.get_mut(&number) {
                    *known = Arc::downgrade(&view);
                }
                Ok(Reply::Now(found(view)))
            }
            Found::Later(coming) => {
                wait_for(move || ComingView::poll(&coming).map(|made| made.map(&found).map_err(Error::from)))
            }
        }
    }

    /// Open a file of an image.
    pub fn open_in_view(&self, at: &InView) -> Result<Opened, Error> {
        match self.api.open_in_view(&at.view, at.inode)? {
            Content::File(file) => {
                let fh = self.handles.lock().insert(Handle::Stored(Arc::clone(&file)));
                Ok(Opened::Stored { fh, file })
            }
            Content::Content(content) => {
                let large = content.is_large();
                Ok(Opened::Content { fh: self.handles.lock().insert(Handle::Content(content)), large })
            }
        }
    }

    /// Open a directory of an image.
    pub fn open_dir_in_view(&self, at: InView) -> u64 {
        self.handles.lock().insert(Handle::ViewDirectory(at))
    }

    /// The directory of an image that is open.
    pub fn dir_in_view(&self, fh: u64) -> Result<InView, Error> {
        match self.handle(fh)? {
            Handle::ViewDirectory(at) => Ok(at),
            _ => Err(Error::new(ErrorKind::NotDirectory, "not a directory of an image")),
        }
    }
}
