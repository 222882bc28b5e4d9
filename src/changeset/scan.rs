//! Which paths a container changed: [`scan`] turns an overlay's upper directory, or a plain directory, into [`Changes`].
//!
//! The upper directory says *which* paths, and what is there unless overlayfs has put something else in its place: a
//! directory renamed with `redirect_dir=on` still has its children below, a file touched with `metacopy=on` its content.
//! There the container's own mounted file system says *what*. The lower directories say what a whiteout would delete.
//!
//! The rules, of the image specification (`layer.md`) and of overlayfs (kernel, `overlayfs.rst`):
//!
//! - A whiteout is made only for what the merged lower directories have, each by its name, never as an opaque marker:
//!   an opaque directory becomes whiteouts of everything below that it does not have itself.
//! - "Opaque" is never taken for "new", nor its absence for "old": the lower directories are asked.
//! - A directory is an entry if its attributes changed or something in it did; so is the root.
//! - Every inode is described once, under its first name; its other names are hard links. Whiteouts, which share one
//!   inode among them, are not inodes to us.
//!
//! Not covered: with the mount option `index=on` (no engine sets it) a file that has several names below, is changed
//! through one and then loses that one, shows the change under the others and leaves no sign of it in the upper directory.
//! While it has the name it is an error ([`Error::IndexedLink`]).

use std::collections::HashMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::vec::IntoIter;

use crate::changeset::collect::{Collector, Seen, look};
use crate::changeset::cursor::{Cursor, join, split};
use crate::changeset::lower::{Found, Lower, Part, is_whiteout_device};
use crate::changeset::snapshot::{Here, Snapshot};
use crate::changeset::{Changes, Error, Namespace};
use crate::progress::Progress;
use crate::sys::dir::{Device, Dir, FileType, is_gone, is_mount};

/// Directories of the upper and of the merged tree held open.
const KEEP: usize = 32;

/// Where a container's files are, on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// A root file system in a plain directory: all of it is an addition.
    Directory(PathBuf),
    /// What the host has mounted into a container: a directory, all of it an addition, or one file.
    Volume {
        /// The directory.
        directory: PathBuf,
        /// The name in it that is all that is mounted.
        only: Option<Vec<u8>>,
        /// What does not show because something is mounted on it, relative to the directory: not looked at.
        hidden: Vec<Vec<u8>>,
    },
    /// An overlay.
    Overlay {
        /// The lower directories, top first, without data-only ones.
        lower: Vec<PathBuf>,
        /// The upper directory.
        upper: PathBuf,
        /// The mounted overlay itself, if the container has it mounted.
        merged: Option<PathBuf>,
        /// Where overlayfs keeps its marks: [`Namespace::User`] if the mount has the option `userxattr`.
        namespace: Namespace,
    },
}

/// Finds what a container changed.
///
/// `mounts` are the absolute paths, in the container, of what is mounted in it: an empty file or directory there that
/// the lower directories do not have was made by the runtime to mount upon, and is left out. A plain directory is taken
/// as it is.
///
/// The files may change meanwhile; what was gone when its turn came is in [`Changes::vanished`].
pub fn scan(source: &Source, mounts: &[PathBuf], progress: &Progress) -> Result<Changes, Error> {
    Snapshot::take(source, mounts, progress)?.changes(progress)
}

/// Makes a changeset of what was looked at.
pub(crate) fn derive(snapshot: &mut Snapshot, progress: &Progress) -> Result<Changes, Error> {
    let walk = Walk {
        found: Collector::new(vec![snapshot.upper.clone()], progress),
        merged: None,
        lower: snapshot.lower(),
        snapshot,
        indexed: HashMap::new(),
    };
    walk.run()
}

/// An absolute path of the container as an [`Entry::path`].
pub(crate) fn relative(path: &Path) -> Vec<u8> {
    path.as_os_str()
        .as_bytes()
        .split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty())
        .collect::<Vec<_>>()
        .join(&b'/')
}

/// Indices into [`Changes::roots`].
pub(crate) const UPPER: usize = 0;
pub(crate) const MERGED: usize = 1;

/// Where the names in a directory come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum View {
    /// The upper directory.
    Upper,
    /// The merged one, because the upper one is redirected; it has the attributes and content of what it holds itself.
    Both,
    /// The merged one: nothing of this is in the upper directory.
    Merged,
}

/// A directory of the walk.
#[derive(Debug)]
struct Place {
    path: Vec<u8>,
    view: View,
    /// Its number in the snapshot, if the upper directory has it.
    upper: Option<usize>,
    /// The layers below that have this directory, whether or not they show through.
    lower: Vec<Part>,
    /// Whether nothing below shows through.
    hidden: bool,
    /// See [`Entry::replaces`](crate::changeset::Entry::replaces).
    replaces: bool,
    has_xattr_whiteouts: bool,
    /// How its own entry compares with the directory below.
    same: Same,
}

/// How the attributes of a directory compare with those of the one below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Same {
    No,
    ButForTime,
    Yes,
}

/// A [`Place`] whose names are being gone through.
#[derive(Debug)]
struct Frame {
    place: Place,
    names: IntoIter<Vec<u8>>,
    /// Entries up to and including this directory's own.
    entries: usize,
    /// A mount point was left out in it; making that has changed its time.
    lost_stub: bool,
}

struct Walk<'a> {
    snapshot: &'a mut Snapshot,
    /// The container's own view; there once it was needed.
    merged: Option<Cursor>,
    lower: Lower,
    found: Collector<'a>,
    /// Inodes that may have names elsewhere: their first path, how many names the overlay shows, how many were found.
    indexed: HashMap<(Device, u64), (Vec<u8>, u32, u32)>,
}

impl Walk<'_> {
    /// Depth first and without recursion: a container decides how deep its directories are.
    fn run(mut self) -> Result<Changes, Error> {
        let mut stack = Vec::from_iter(self.root()?);
        while let Some(frame) = stack.last_mut() {
            let Some(name) = frame.names.next() else {
                let same = frame.place.same == Same::Yes || (frame.place.same == Same::ButForTime && frame.lost_stub);
                if same && self.found.len() == frame.entries {
                    self.found.pop();
                }
                stack.pop();
                continue;
            };
            let path = join(&frame.place.path, &name);
            let Some((seen, view, upper)) = self.look(&frame.place, &name, &path)? else { continue };
            let below = self.lower.find(&frame.place.path, &frame.place.lower, &name)?;
            if below == Found::Absent
                && self.snapshot.mounts.contains(&path)
                && self.is_empty(&seen, view, upper, &path)?
            {
                frame.lost_stub = true;
                continue;
            }
            let parent = (frame.place.hidden, frame.place.replaces);
            if let Some(place) = self.describe(path, seen, (view, upper), below, parent)? {
                stack.extend(self.enter(place)?);
            }
        }
        for path in &self.snapshot.vanished {
            self.found.vanished(path.clone());
        }
        match self.indexed.into_values().filter(|(_, shown, found)| shown > found).min() {
            Some((path, ..)) => Err(Error::IndexedLink { path }),
            None => Ok(self.found.finish()),
        }
    }

    fn root(&mut self) -> Result<Option<Frame>, Error> {
        let seen = self.snapshot.root.clone();
        let lower = self.lower.root()?;
        let below = if lower.is_empty() { Found::Absent } else { Found::Directory(lower) };
        // The engine made the upper root, so its time says nothing; and overlayfs reads no marks there.
        let has_xattr_whiteouts = seen.xattrs.marks.has_xattr_whiteouts;
        let place = self.describe(Vec::new(), seen, (View::Upper, Some(0)), below, (false, false))?;
        let Some(mut place) = place else { return Ok(None) };
        place.hidden = false;
        place.view = View::Upper;
        place.has_xattr_whiteouts = has_xattr_whiteouts;
        if place.same == Same::ButForTime {
            place.same = Same::Yes;
        }
        self.enter(place)
    }

    /// What is at `name`, where it was found, and its number if it is a directory of the upper tree; none if it is gone
    /// meanwhile, or something is mounted there.
    fn look(&mut self, place: &Place, name: &[u8], path: &[u8]) -> Result<Option<(Seen, View, Option<usize>)>, Error> {
        if let Some(index) = place.upper {
            match self.snapshot.child(index, name) {
                Some(Here::Mount) => {
                    self.found.mount(path.to_vec());
                    return Ok(None);
                }
                Some(Here::File { seen, directory, .. }) if place.view == View::Upper => {
                    return Ok(Some((seen.clone(), View::Upper, *directory)));
                }
                Some(Here::File { seen, directory, .. }) if !is_whiteout_device(&seen.stat) => {
                    return Ok(Some((seen.clone(), View::Both, *directory)));
                }
                _ => {}
            }
        }
        let Some(merged) = &mut self.merged else { return Ok(None) };
        match merged.dir(&place.path).and_then(|dir| Seen::new(dir.open_node(name)?, None)) {
            Ok(seen) => Ok(Some((seen, View::Merged, None))),
            Err(error) => self.missed(error, path),
        }
    }

    fn missed<T>(&mut self, error: std::io::Error, path: &[u8]) -> Result<Option<T>, Error> {
        if is_gone(&error) {
            self.found.vanished(path.to_vec());
        } else if is_mount(&error) {
            self.found.mount(path.to_vec());
        } else {
            return Err(look("look at", path)(error));
        }
        Ok(None)
    }

    /// Adds what was seen; for a directory, says how to go on.
    fn describe(
        &mut self,
        path: Vec<u8>,
        seen: Seen,
        (view, upper): (View, Option<usize>),
        below: Found,
        (parent_hidden, parent_replaces): (bool, bool),
    ) -> Result<Option<Place>, Error> {
        let marks = seen.xattrs.marks;
        let in_lower = below != Found::Absent;
        let elsewhere = marks.redirect || marks.metacopy;
        if elsewhere && !path.is_empty() && !self.open_merged()? {
            return Err(Error::NoMergedView { path, mark: if marks.redirect { "redirect" } else { "metacopy" } });
        }
        if seen.stat.file_type != FileType::Directory {
            if marks.indexed {
                self.count_name(&path, &seen)?;
            }
            let root = if view == View::Merged || marks.metacopy { MERGED } else { UPPER };
            self.found.add(path, seen, in_lower, root)?;
            return Ok(None);
        }
        let replaces = parent_replaces || matches!(below, Found::Other(_));
        let lower = if let Found::Directory(parts) = below { parts } else { Vec::new() };
        let place = Place {
            upper,
            same: self.compare(&path, &seen, &lower)?,
            view: if view == View::Upper && marks.redirect { View::Both } else { view },
            hidden: parent_hidden || marks.opaque || marks.redirect,
            replaces,
            has_xattr_whiteouts: marks.has_xattr_whiteouts,
            lower,
            path: path.clone(),
        };
        self.found.add(path, seen, in_lower, UPPER)?;
        if replaces {
            self.found.replaces();
        }
        Ok(Some(place))
    }

    /// Opens the merged tree if that was not done; says whether there is one.
    fn open_merged(&mut self) -> Result<bool, Error> {
        if self.merged.is_none()
            && self.snapshot.open_merged()?
            && let Some(root) = &self.snapshot.merged
        {
            self.found.add_root(root.clone()); // of index MERGED
            self.merged = Some(Cursor::new(root.clone(), KEEP));
        }
        Ok(self.merged.is_some())
    }

    fn count_name(&mut self, path: &[u8], seen: &Seen) -> Result<(), Error> {
        let (dir, name) = split(path);
        self.open_merged()?;
        let shown = match &mut self.merged {
            None => u32::MAX,
            Some(merged) => match merged.dir(dir).and_then(|dir| dir.stat(name)) {
                Err(error) if is_gone(&error) => 0,
                done => done.map_err(look("look at", path))?.nlink,
            },
        };
        let inode = (seen.stat.device, seen.stat.ino);
        self.indexed.entry(inode).or_insert_with(|| (path.to_vec(), shown, 0)).2 += 1;
        Ok(())
    }

    fn compare(&mut self, path: &[u8], seen: &Seen, lower: &[Part]) -> Result<Same, Error> {
        let Some(top) = lower.first() else { return Ok(Same::No) };
        let below = self.lower.look(top.layer, path, b"").map_err(look("look below", path))?;
        let attributes = |seen: &Seen| (seen.stat.mode, seen.stat.uid, seen.stat.gid);
        if attributes(seen) != attributes(&below) || seen.xattrs.kept != below.xattrs.kept {
            return Ok(Same::No);
        }
        Ok(if seen.stat.mtime == below.stat.mtime { Same::Yes } else { Same::ButForTime })
    }

    /// Lists a directory whose entry was just added, and adds its whiteouts.
    fn enter(&mut self, place: Place) -> Result<Option<Frame>, Error> {
        let entries = self.found.len();
        let (names, mut whiteouts) = match (place.view, place.upper, &mut self.merged) {
            (View::Both | View::Merged, _, Some(merged)) => match merged.dir(&place.path).and_then(Dir::entries) {
                Ok(mut listed) => {
                    listed.sort_unstable();
                    (listed.into_iter().map(|name| name.bytes).collect::<Vec<_>>(), Vec::new())
                }
                Err(error) => return self.missed(error, &place.path),
            },
            (_, Some(index), _) => self.snapshot.partition(index, place.has_xattr_whiteouts),
            _ => (Vec::new(), Vec::new()),
        };
        if place.hidden {
            whiteouts = self.lower.names(&place.path, &place.lower)?; // none if there is no directory below
            whiteouts.retain(|name| names.binary_search(name).is_err());
        }
        for name in whiteouts {
            if place.hidden || self.lower.find(&place.path, &place.lower, &name)? != Found::Absent {
                self.found.whiteout(join(&place.path, &name))?;
            }
        }
        Ok(Some(Frame { place, names: names.into_iter(), entries, lost_stub: false }))
    }

    fn is_empty(&mut self, seen: &Seen, view: View, upper: Option<usize>, path: &[u8]) -> Result<bool, Error> {
        if seen.stat.file_type != FileType::Directory {
            return Ok(seen.stat.file_type == FileType::Regular && seen.stat.size == 0);
        }
        match (view, upper, &mut self.merged) {
            (View::Merged, _, Some(merged)) => match merged.dir(path).and_then(Dir::entries) {
                Err(error) if is_gone(&error) => Ok(false),
                done => Ok(done.map_err(look("list", path))?.is_empty()),
            },
            (_, Some(index), _) => Ok(self.snapshot.children(index).is_empty()),
            _ => Ok(false),
        }
    }
}
