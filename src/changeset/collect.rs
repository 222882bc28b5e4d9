//! [`Collector`]: files looked at, in; [`Changes`], out. What holds for every source of a changeset is decided here.

use std::collections::HashMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::changeset::cursor::{join, split};
use crate::changeset::entry::{Changes, Entry, Kind, Metadata, escape};
use crate::changeset::overlay::{Namespace, Xattrs, sort};
use crate::progress::{Cancelled, Progress};
use crate::sys::dir::{Device, Dir, FileType, Node, Stat};
use crate::sys::xattr;

/// What the image specification puts before the name of a deleted file.
pub(crate) const WHITEOUT_PREFIX: &[u8] = b".wh.";

/// The longest path taken: sixteen times what the kernel takes at once. A deeper one could only fill the memory.
const MAX_PATH: usize = 64 << 10;
/// The most bytes that all paths, link targets and extended attributes of a changeset may have together, for the same
/// reason.
const MAX_BYTES: u64 = 1 << 30;

/// Why a changeset could not be found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A directory given could not be opened.
    #[error("cannot open directory {} to look for changes", path.display())]
    Open {
        /// The directory, on the host.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A file of the container could not be looked at.
    #[error("cannot {step} /{} in the container", escape(path))]
    Look {
        /// What was tried.
        step: &'static str,
        /// The file, relative to the container's root.
        path: Vec<u8>,
        /// Why not.
        source: io::Error,
    },
    /// A name that a layer cannot hold: it would delete another file instead (image-spec, `layer.md`, "Whiteouts").
    #[error(
        "an image cannot hold /{}: names that begin with .wh. mark deleted files there; rename or remove it and commit again",
        escape(path)
    )]
    WhiteoutName {
        /// The file.
        path: Vec<u8>,
    },
    /// The upper directory does not say what is at a path, and the container's mounted file system is not there to ask.
    #[error(
        "/{} has an overlay {mark}: its content shows only in the mounted file system of the container; start it, or mount it, and commit again",
        escape(path)
    )]
    NoMergedView {
        /// The file or directory.
        path: Vec<u8>,
        /// `redirect` or `metacopy`.
        mark: &'static str,
    },
    /// A file with several names, of which only some were changed as far as the upper directory tells: `index=on`.
    #[error(
        "/{} has other names that the overlay option index=on keeps equal, outside of what a layer would hold; give it an inode of its own (cp -a, then mv over it) and commit again",
        escape(path)
    )]
    IndexedLink {
        /// The file.
        path: Vec<u8>,
    },
    /// A path that leads nowhere, or round in circles.
    #[error(
        "{} leads to no directory in the container: /{} is none, or a symbolic link that leads round in circles",
        path.display(), escape(at)
    )]
    Astray {
        /// The path, in the container.
        path: PathBuf,
        /// Where it ended.
        at: Vec<u8>,
    },
    /// A layer below was itself made with redirects or metadata-only copies.
    #[error(
        "/{} has an overlay {mark} in lower directory {}: such a layer cannot be read by itself; copy the tree out of a mount of it, and use the copy",
        escape(path),
        layer.display()
    )]
    LowerMark {
        /// The file or directory.
        path: Vec<u8>,
        /// `redirect` or `metacopy`.
        mark: &'static str,
        /// The lower directory, on the host.
        layer: PathBuf,
    },
    /// A path too long to be worth taking.
    #[error(
        "the directories under /{} are nested too deeply for an image: paths may have {MAX_PATH} bytes",
        escape(path)
    )]
    TooDeep {
        /// Where the path begins.
        path: Vec<u8>,
    },
    /// Too many paths, or too long ones.
    #[error(
        "too many changed files: their paths, link targets and extended attributes may have {MAX_BYTES} bytes together; remove some and commit again"
    )]
    TooMany,
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// A closure that gives an error the path and the step it belongs to.
pub(crate) fn look<'a>(step: &'static str, path: &'a [u8]) -> impl FnOnce(io::Error) -> Error + 'a {
    move |source| Error::Look { step, path: path.to_vec(), source }
}

/// A file that was looked at: all that is needed to describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) stat: Stat,
    pub(crate) xattrs: Xattrs,
    /// Of a symbolic link.
    pub(crate) target: Vec<u8>,
}

impl Seen {
    /// Looks at a file; `namespace` as for [`sort`].
    ///
    /// The attributes of which a change leaves a new change time come first: what changes later shows in them.
    pub(crate) fn new(node: Node, namespace: Option<Namespace>) -> io::Result<Seen> {
        let stat = node.stat()?;
        let xattrs = sort(xattr::all(&node)?, namespace);
        let target = if stat.file_type == FileType::Symlink { node.read_link()? } else { Vec::new() };
        Ok(Seen { stat, xattrs, target })
    }

    /// What a container can make large of it.
    pub(crate) fn bytes(&self) -> u64 {
        let attributes = self.xattrs.kept.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
        (self.target.len() + attributes) as u64
    }
}

/// Makes [`Changes`] of what a walk finds, in the order found.
#[derive(Debug)]
pub(crate) struct Collector<'a> {
    progress: &'a Progress,
    changes: Changes,
    /// The first entry of every inode that has more than one name.
    links: HashMap<(Device, u64), usize>,
    /// What counts against [`MAX_BYTES`].
    bytes: u64,
}

impl<'a> Collector<'a> {
    /// Nothing found yet; contents will be read beneath `roots`.
    pub(crate) fn new(roots: Vec<Arc<Dir>>, progress: &'a Progress) -> Collector<'a> {
        let changes = Changes {
            entries: Vec::new(),
            sockets: 0,
            mounts: Vec::new(),
            vanished: Vec::new(),
            dropped_xattrs: 0,
            roots,
        };
        Collector { progress, changes, links: HashMap::new(), bytes: 0 }
    }

    /// Contents will be read beneath `root` too.
    pub(crate) fn add_root(&mut self, root: Arc<Dir>) {
        self.changes.roots.push(root);
    }

    /// How many entries there are.
    pub(crate) fn len(&self) -> usize {
        self.changes.entries.len()
    }

    /// Takes back the last entry.
    pub(crate) fn pop(&mut self) {
        self.changes.entries.pop();
    }

    /// `path` is no longer there.
    pub(crate) fn vanished(&mut self, path: Vec<u8>) {
        self.changes.vanished.push(path);
    }

    /// Something of the host's is mounted at `path`.
    pub(crate) fn mount(&mut self, path: Vec<u8>) {
        self.changes.mounts.push(path);
    }

    /// `path` is deleted.
    pub(crate) fn whiteout(&mut self, path: Vec<u8>) -> Result<(), Error> {
        self.push(path, Kind::Whiteout, true, Metadata::default(), Vec::new(), 0)
    }

    /// `seen` is at `path`, and its content beneath the root of index `root`. A socket is counted and left out; what the
    /// layers below have in its place is deleted.
    pub(crate) fn add(&mut self, path: Vec<u8>, seen: Seen, in_lower: bool, root: usize) -> Result<(), Error> {
        let Seen { stat, xattrs, target } = seen;
        let kind = match stat.file_type {
            FileType::Socket => {
                self.changes.sockets += 1;
                return if in_lower { self.whiteout(path) } else { Ok(()) };
            }
            FileType::Directory => Kind::Directory,
            FileType::Regular => Kind::File,
            FileType::Symlink => Kind::Symlink { target },
            FileType::CharDevice => Kind::CharDevice(stat.rdev),
            FileType::BlockDevice => Kind::BlockDevice(stat.rdev),
            FileType::Fifo => Kind::Fifo,
        };
        let metadata = Metadata::from(&stat);
        self.changes.dropped_xattrs += xattrs.dropped;
        if kind != Kind::Directory && stat.nlink > 1 {
            // Links that lie outside the changeset are counted too, so the number only says where it is worth to look.
            let next = self.changes.entries.len();
            let first = *self.links.entry((stat.device, stat.ino)).or_insert(next);
            if first != next {
                let to = self.changes.entries[first].path.clone();
                return self.push(path, Kind::HardLink { to }, in_lower, metadata, Vec::new(), root);
            }
        }
        let copied_up = in_lower || xattrs.marks.origin;
        self.push(path, kind, in_lower, metadata, xattrs.kept, root)?;
        if let Some(entry) = self.changes.entries.last_mut() {
            entry.copied_up = copied_up;
        }
        Ok(())
    }

    fn push(
        &mut self,
        path: Vec<u8>,
        kind: Kind,
        in_lower: bool,
        metadata: Metadata,
        xattrs: Vec<(Vec<u8>, Vec<u8>)>,
        root: usize,
    ) -> Result<(), Error> {
        self.progress.check()?;
        if split(&path).1.starts_with(WHITEOUT_PREFIX) {
            return Err(Error::WhiteoutName { path });
        }
        if path.len() > MAX_PATH {
            return Err(Error::TooDeep { path: path[..64].to_vec() });
        }
        let target = match &kind {
            Kind::Symlink { target: to } | Kind::HardLink { to } => to.len(),
            _ => 0,
        };
        let attributes: usize = xattrs.iter().map(|(name, value)| name.len() + value.len()).sum();
        self.bytes += (path.len() + target + attributes) as u64;
        if self.bytes > MAX_BYTES {
            return Err(Error::TooMany);
        }
        self.changes.entries.push(Entry {
            path,
            kind,
            in_lower,
            metadata,
            xattrs,
            root,
            replaces: false,
            copied_up: false,
        });
        Ok(())
    }

    /// The last entry is a directory in place of something else below.
    pub(crate) fn replaces(&mut self) {
        if let Some(entry) = self.changes.entries.last_mut() {
            entry.replaces = true;
        }
    }

    /// The end of the walk.
    pub(crate) fn finish(self) -> Changes {
        self.changes
    }
}

/// The names of a whiteout's own path: `dir/.wh.name`.
pub(crate) fn whiteout_path(path: &[u8]) -> Vec<u8> {
    let (dir, name) = split(path);
    join(dir, &[WHITEOUT_PREFIX, name].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_a_container_can_make_large_is_counted() {
        let target = || Kind::Symlink { target: vec![b'x'; 50] };
        let attributes = || vec![(b"user.x".to_vec(), vec![0; 44])];
        for (kind, xattrs) in [(target(), Vec::new()), (Kind::File, attributes())] {
            let progress = Progress::new();
            let mut found = Collector::new(Vec::new(), &progress);
            let mut push = |path: &[u8]| {
                found.push(path.to_vec(), kind.clone(), false, Metadata::default(), xattrs.clone(), 0)?;
                found.bytes = MAX_BYTES - 51;
                Ok::<_, Error>(())
            };
            push(b"a").unwrap();
            push(b"b").unwrap();
            assert!(matches!(push(b"cd"), Err(Error::TooMany)), "{kind:?}");
        }
    }
}
