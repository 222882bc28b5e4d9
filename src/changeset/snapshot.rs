//! [`Snapshot`]: everything that an upper directory holds, kept so that a second look costs one system call a file.
//!
//! The first look takes everything that a changeset needs of each file; [`Snapshot::update`] looks again only at what has
//! moved. It says "not moved" of a file whose change time and attributes are what they were *and* whose change time was
//! old enough when it was looked at ([`is_settled`]): within one tick of the kernel's clock a second change leaves no trace.
//! What a second look finds is worth as much as what the first found, so that a changeset can be derived from either.

mod packed;

use std::collections::HashSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;

use crate::changeset::collect::{Seen, look};
use crate::changeset::cursor::{Cursor, join, split};
use crate::changeset::earlier::Earlier;
use crate::changeset::entry::Metadata;
use crate::changeset::lower::{Lower, is_whiteout_device, open};
use crate::changeset::scan::{MERGED, Source, UPPER, derive, relative};
use crate::changeset::settled::is_settled;
use crate::changeset::{Changes, Error, Namespace};
use crate::progress::Progress;
use crate::sys::dir::{Device, Dir, FileType, Stat, Time, is_gone, is_mount, stat_file};

/// Directories held open by a walk.
const KEEP: usize = 32;

/// The longest path taken, and the most bytes of all that a container can make large: those of a changeset.
const MAX_PATH: usize = 64 << 10;
const MAX_BYTES: u64 = 1 << 30;

/// A tree, looked at once or more often.
#[derive(Debug)]
pub struct Snapshot {
    pub(crate) upper: Arc<Dir>,
    pub(crate) namespace: Option<Namespace>,
    pub(crate) lower: Vec<PathBuf>,
    pub(crate) lower_roots: Vec<Arc<Dir>>,
    /// The container's own file system, opened when it is first needed: while it is open the overlay stays.
    pub(crate) merged: Option<Arc<Dir>>,
    pub(crate) merged_path: Option<PathBuf>,
    pub(crate) mounts: HashSet<Vec<u8>>,
    /// As in [`Source::Volume`].
    hidden: HashSet<Vec<u8>>,
    only: Option<Vec<u8>>,
    pub(crate) root: Seen,
    root_settled: bool,
    /// The first is the root. What was removed stays here without a parent.
    directories: Vec<Directory>,
    pub(crate) vanished: Vec<Vec<u8>>,
    needs_merged: bool,
    bytes: u64,
    objects: u64,
}

#[derive(Debug, Default)]
struct Directory {
    path: Vec<u8>,
    /// Sorted by name.
    children: Vec<Child>,
    /// It could not be listed when its turn came.
    lost: bool,
}

#[derive(Debug)]
pub(crate) struct Child {
    pub(crate) name: Vec<u8>,
    pub(crate) here: Here,
}

/// What is at a name.
#[derive(Debug)]
pub(crate) enum Here {
    /// The root of a mount of the host's.
    Mount,
    /// A file of any type.
    File {
        seen: Seen,
        settled: bool,
        /// The number of a directory.
        directory: Option<usize>,
        /// Whether the layers below have something here, if that was asked; not for directories.
        below: Option<bool>,
    },
}

/// Where the content of a regular file is, and which file it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Its path, as in [`Entry::path`](crate::changeset::Entry::path).
    pub path: Vec<u8>,
    /// As [`Entry::root`](crate::changeset::Entry): which of [`Changes::roots`] has it.
    pub(crate) root: usize,
    /// What it was when it was looked at.
    pub metadata: Metadata,
}

/// Opens files by their places.
#[derive(Debug)]
pub struct Reader(Vec<Cursor>);

impl Reader {
    /// The file at `place`, which may be another by now, and what it is; none if there is no regular file any more.
    pub fn open(&mut self, place: &Place) -> std::io::Result<Option<(File, Metadata)>> {
        let (dir, name) = split(&place.path);
        let Some(tree) = self.0.get_mut(place.root) else { return Ok(None) };
        let file = match tree.dir(dir).and_then(|dir| dir.open_file(name)) {
            Err(error) if is_gone(&error) || error.kind() == std::io::ErrorKind::InvalidInput => return Ok(None),
            done => done?,
        };
        // Through an overlay a file has other numbers than in its layer; it goes by those it was found under.
        let found = Metadata::from(&stat_file(&file)?);
        let Metadata { ino, device, .. } = if place.root == UPPER { found } else { place.metadata };
        Ok(Some((file, Metadata { ino, device, ..found })))
    }
}

/// What [`Snapshot::update`] found changed.
#[derive(Debug, Default)]
pub struct Difference {
    /// Regular files that are new, were changed, or may have been changed within a tick of the clock.
    pub files: Vec<Place>,
    /// Directories likewise.
    pub directories: Vec<Vec<u8>>,
    /// How many files of other types, and names that are gone.
    pub others: u64,
}

impl Difference {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.files.is_empty() && self.directories.is_empty() && self.others == 0
    }
}

impl Snapshot {
    /// Looks at all that `source` holds by itself. `mounts` as for [`scan`](crate::changeset::scan).
    pub fn take(source: &Source, mounts: &[PathBuf], progress: &Progress) -> Result<Snapshot, Error> {
        let mut snapshot = Snapshot::open(source, mounts, Time::now())?;
        let mut walk = Walk::new(&snapshot, false, progress);
        walk.directories(&mut snapshot, vec![(0, true)])?;
        Ok(snapshot)
    }

    /// Nothing looked at but the root, `at` this moment.
    fn open(source: &Source, mounts: &[PathBuf], at: Time) -> Result<Snapshot, Error> {
        let (upper, merged_path, lower, namespace) = match source {
            Source::Directory(path) | Source::Volume { directory: path, .. } => (path, None, Vec::new(), None),
            Source::Overlay { lower, upper, merged, namespace } => {
                (upper, merged.clone(), lower.clone(), Some(*namespace))
            }
        };
        let (only, hidden) = match source {
            Source::Volume { only, hidden, .. } => (only.clone(), hidden.iter().cloned().collect()),
            Source::Directory(_) | Source::Overlay { .. } => (None, HashSet::new()),
        };
        let upper = open(upper)?;
        let lower_roots = lower.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
        let root = upper.node().and_then(|node| Seen::new(node, namespace)).map_err(look("look at", b""))?;
        Ok(Snapshot {
            namespace,
            lower,
            lower_roots,
            merged: None,
            merged_path,
            // Where there is nothing below, nobody can tell what the runtime made from the /proc that was always there.
            mounts: namespace.into_iter().flat_map(|_| mounts).map(|path| relative(path)).collect(),
            hidden,
            only,
            root_settled: is_settled(root.stat.ctime, at),
            root,
            directories: vec![Directory { lost: true, ..Directory::default() }],
            vanished: Vec::new(),
            needs_merged: false,
            bytes: 0,
            objects: 0,
            upper,
        })
    }

    /// Looks again, and at more than attributes only where something has changed. With `frozen` nothing changes
    /// meanwhile, so that what is seen has settled.
    pub fn update(&mut self, frozen: bool, progress: &Progress) -> Result<Difference, Error> {
        self.vanished.clear();
        let mut walk = Walk::new(self, frozen, progress);
        let at = Time::now();
        let stat = self.upper.stat(b".").map_err(look("look at", b""))?;
        let is_same = self.root_settled && same(&stat, &self.root.stat);
        if !is_same {
            self.root =
                self.upper.node().and_then(|node| Seen::new(node, self.namespace)).map_err(look("look at", b""))?;
            self.root_settled = frozen || is_settled(self.root.stat.ctime, at);
            walk.difference.directories.push(Vec::new());
        }
        if frozen {
            walk.unmoved = self.unmoved();
        }
        walk.directories(self, vec![(0, !is_same)])?;
        Ok(walk.difference)
    }

    /// The directories in which, as far as their attributes tell, no file has changed, by their numbers: found out by two
    /// threads, for a container waits. What they cannot look at they leave to the one who can say what is wrong.
    fn unmoved(&self) -> Vec<bool> {
        let mut order = vec![0];
        let mut next = 0;
        while let Some(&index) = order.get(next) {
            next += 1;
            order.extend(self.directories[index].children.iter().filter_map(|child| match child.here {
                Here::File { directory, .. } => directory,
                Here::Mount => None,
            }));
        }
        // Neighbours share the way to them.
        order.sort_unstable_by(|one, other| self.directories[*one].path.cmp(&self.directories[*other].path));
        let half = order.iter().map(|index| self.directories[*index].children.len()).sum::<usize>() / 2;
        let mut before = 0;
        let middle = order.iter().position(|index| {
            before += self.directories[*index].children.len();
            before > half
        });
        let check = |part: &[usize]| {
            let mut cursor = Cursor::new(Arc::clone(&self.upper), KEEP);
            part.iter().copied().filter(|index| self.directories[*index].is_unmoved(&mut cursor)).collect::<Vec<_>>()
        };
        let (one, other) = order.split_at(middle.unwrap_or(order.len()));
        let found = std::thread::scope(|scope| {
            let beside = scope.spawn(|| check(one));
            let mut found = check(other);
            found.extend(beside.join().unwrap_or_default());
            found
        });
        let mut unmoved = vec![false; self.directories.len()];
        for index in found {
            unmoved[index] = true;
        }
        unmoved
    }

    /// What the container changed, as of the last look.
    pub fn changes(&mut self, progress: &Progress) -> Result<Changes, Error> {
        let mut changes = derive(self, &|_| false, progress)?;
        if let Some(only) = &self.only {
            changes.entries.retain(|entry| entry.path == *only);
        }
        Ok(changes)
    }

    /// The same, with all that is needed to tell the [difference](Earlier::difference) to `earlier`.
    pub fn changes_since(&mut self, earlier: &Earlier, progress: &Progress) -> Result<Changes, Error> {
        derive(self, &|path| earlier.differs_below(path), progress)
    }

    /// How many files there are, of any type.
    pub fn objects(&self) -> u64 {
        self.objects
    }

    /// Whether whatever is done to a file leaves another change time: [`Dir::leaves_traces`].
    pub fn leaves_traces(&self) -> bool {
        self.upper.leaves_traces().unwrap_or(false)
    }

    /// Whether a store to a mapped file may leave no trace however long ago it was mapped: [`Dir::is_memory`].
    pub fn is_memory(&self) -> bool {
        self.upper.is_memory().unwrap_or(true)
    }

    /// Whether [`changes`](Self::changes) must ask the container's own file system what there is, because directories
    /// were renamed (`redirect_dir`) or links are indexed: then it tells one point in time only while that is frozen.
    pub fn needs_merged(&self) -> bool {
        self.needs_merged
    }

    /// The devices that files of the tree are on: as we see them, and as a process of the container does.
    pub fn devices(&mut self) -> (Device, Option<Device>) {
        let through = match self.open_merged() {
            Ok(true) => self.merged.as_ref().and_then(|root| root.stat(b".").ok()).map(|stat| stat.device),
            _ => None,
        };
        (self.root.stat.device, through)
    }

    /// To read files with.
    pub fn reader(&self) -> Reader {
        let roots = [Some(&self.upper), self.merged.as_ref()].into_iter().flatten();
        Reader(roots.map(|root| Cursor::new(Arc::clone(root), KEEP)).collect())
    }

    /// The regular file at `path` as a process of the container sees it: its numbers differ from those in the upper
    /// directory where it was copied up. None if the container's file system is not there, or has no such file.
    pub fn seen_through_overlay(&mut self, path: &[u8]) -> Option<Metadata> {
        if !self.open_merged().ok()? {
            return None;
        }
        let (dir, name) = split(path);
        let stat = self.merged.as_ref()?.open_beneath(dir).and_then(|dir| dir.stat(name)).ok()?;
        (stat.file_type == FileType::Regular).then(|| Metadata::from(&stat))
    }

    /// Opens the merged tree if that was not done; says whether there is one.
    pub(crate) fn open_merged(&mut self) -> Result<bool, Error> {
        if self.merged.is_none()
            && let Some(path) = &self.merged_path
        {
            self.merged = Some(open(path)?);
        }
        Ok(self.merged.is_some())
    }

    pub(crate) fn children(&self, directory: usize) -> &[Child] {
        &self.directories[directory].children
    }

    pub(crate) fn child(&self, directory: usize, name: &[u8]) -> Option<&Here> {
        let children = &self.directories[directory].children;
        let at = children.binary_search_by(|child| child.name[..].cmp(name)).ok()?;
        Some(&children[at].here)
    }

    pub(crate) fn below(&self, directory: usize, name: &[u8]) -> Option<bool> {
        match self.child(directory, name) {
            Some(Here::File { below, .. }) => *below,
            _ => None,
        }
    }

    pub(crate) fn learn_below(&mut self, directory: usize, name: &[u8], found: bool) {
        let children = &mut self.directories[directory].children;
        if let Ok(at) = children.binary_search_by(|child| child.name[..].cmp(name))
            && let Here::File { below, .. } = &mut children[at].here
        {
            *below = Some(found);
        }
    }

    /// The names that are there, and the names that whiteouts stand for, in a directory of the upper tree.
    pub(crate) fn partition(&self, directory: usize, has_xattr_whiteouts: bool) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
        let (mut names, mut whiteouts) = (Vec::new(), Vec::new());
        for child in self.children(directory) {
            let is_whiteout = match &child.here {
                Here::File { seen, .. } if self.namespace.is_some() => {
                    is_whiteout_device(&seen.stat)
                        || (has_xattr_whiteouts
                            && seen.stat.file_type == FileType::Regular
                            && seen.stat.size == 0
                            && seen.xattrs.marks.whiteout)
                }
                _ => false,
            };
            if is_whiteout { &mut whiteouts } else { &mut names }.push(child.name.clone());
        }
        (names, whiteouts)
    }

    pub(crate) fn lower(&self) -> Lower {
        Lower::new(&self.lower, &self.lower_roots, self.namespace.unwrap_or(Namespace::Trusted))
    }
}

impl Directory {
    /// Whether all that was there when it was listed is what it was.
    fn is_unmoved(&self, cursor: &mut Cursor) -> bool {
        let Ok(dir) = cursor.dir(&self.path) else { return false };
        self.children.iter().all(|child| match &child.here {
            Here::File { seen, settled: true, .. } => dir.stat(&child.name).is_ok_and(|stat| same(&stat, &seen.stat)),
            _ => false,
        })
    }
}

/// Whether a file is still what it was. Blocks do not count: they are allocated when the kernel writes back.
pub(crate) fn same(one: &Stat, other: &Stat) -> bool {
    Stat { blocks: 0, mount_id: 0, ..*one } == Stat { blocks: 0, mount_id: 0, ..*other }
}

struct Walk<'a> {
    cursor: Cursor,
    frozen: bool,
    progress: &'a Progress,
    difference: Difference,
    /// As [`Snapshot::unmoved`] gives them; none if that was not asked.
    unmoved: Vec<bool>,
}

impl<'a> Walk<'a> {
    fn new(snapshot: &Snapshot, frozen: bool, progress: &'a Progress) -> Walk<'a> {
        let cursor = Cursor::new(Arc::clone(&snapshot.upper), KEEP);
        Walk { cursor, frozen, progress, difference: Difference::default(), unmoved: Vec::new() }
    }

    /// Goes through directories and all below, without recursion: a container decides how deep they are. With each goes
    /// whether it must be listed anew.
    fn directories(&mut self, snapshot: &mut Snapshot, mut stack: Vec<(usize, bool)>) -> Result<(), Error> {
        while let Some((index, moved)) = stack.pop() {
            let mut directory = std::mem::take(&mut snapshot.directories[index]);
            let relist = moved || directory.lost;
            let below = stack.len();
            directory.lost = false;
            let done = if !relist && self.unmoved.get(index) == Some(&true) {
                let below = directory.children.iter().filter_map(|child| match child.here {
                    Here::File { directory, .. } => directory,
                    Here::Mount => None,
                });
                stack.extend(below.map(|index| (index, false)));
                Ok(())
            } else if relist {
                self.list(snapshot, &mut directory, &mut stack)
            } else {
                self.check(snapshot, &mut directory, &mut stack)
            };
            stack[below..].reverse();
            if let Err(error) = done {
                if !is_gone(&error.1) || self.frozen {
                    return Err(look("look at", &error.0)(error.1));
                }
                directory.children.clear();
                directory.lost = true;
                snapshot.vanished.push(directory.path.clone());
            }
            self.progress.check()?;
            if snapshot.bytes > MAX_BYTES {
                return Err(Error::TooMany);
            }
            snapshot.directories[index] = directory;
        }
        Ok(())
    }

    /// A directory that has the names it had.
    fn check(&mut self, snapshot: &mut Snapshot, directory: &mut Directory, stack: &mut Stack) -> Result<(), At> {
        let path = &directory.path;
        let at = Time::now();
        for child in &mut directory.children {
            let failed = |error| (path.clone(), error);
            let dir = self.cursor.dir(path).map_err(failed)?;
            if let Here::File { seen, settled: true, directory, .. } = &mut child.here {
                match dir.stat(&child.name) {
                    Ok(stat) if same(&stat, &seen.stat) => {
                        if let Some(index) = directory {
                            stack.push((*index, false));
                        }
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) if is_gone(&error) && !self.frozen => {
                        snapshot.vanished.push(join(path, &child.name));
                        self.difference.others += 1;
                        // The directory has changed since it was looked at, which the next update sees.
                        continue;
                    }
                    Err(error) => return Err((join(path, &child.name), error)),
                }
            }
            self.renew(snapshot, path, child, at, stack)?;
        }
        Ok(())
    }

    /// A directory whose names may be others.
    fn list(&mut self, snapshot: &mut Snapshot, directory: &mut Directory, stack: &mut Stack) -> Result<(), At> {
        let path = directory.path.clone();
        let at = Time::now();
        let mut names = self.cursor.dir(&path).and_then(Dir::entries).map_err(|error| (path.clone(), error))?;
        if let Some(only) = snapshot.only.as_ref().filter(|_| path.is_empty()) {
            names.retain(|name| name.bytes == *only);
        }
        names.sort_unstable();
        let mut old = std::mem::take(&mut directory.children).into_iter().peekable();
        for name in names {
            while old.next_if(|child| child.name < name.bytes).is_some() {
                self.difference.others += 1;
            }
            let mut child = match old.next_if(|child| child.name == name.bytes) {
                Some(child) => child,
                None => {
                    snapshot.bytes += (path.len() + name.bytes.len()) as u64;
                    snapshot.objects += 1;
                    Child { name: name.bytes, here: Here::Mount }
                }
            };
            if let Here::File { seen, settled: true, directory: below, .. } = &child.here {
                match self.cursor.dir(&path).and_then(|dir| dir.stat(&child.name)) {
                    Ok(stat) if same(&stat, &seen.stat) => {
                        stack.extend(below.map(|index| (index, false)));
                        directory.children.push(child);
                        continue;
                    }
                    Ok(_) => {}
                    Err(error) if is_gone(&error) && !self.frozen => {}
                    Err(error) => return Err((join(&path, &child.name), error)),
                }
            }
            if self.renew(snapshot, &path, &mut child, at, stack)? {
                directory.children.push(child);
            }
        }
        self.difference.others += old.count() as u64;
        Ok(())
    }

    /// Looks at all of a file; says whether it is there.
    fn renew(
        &mut self,
        snapshot: &mut Snapshot,
        path: &[u8],
        child: &mut Child,
        at: Time,
        stack: &mut Stack,
    ) -> Result<bool, At> {
        let full = join(path, &child.name);
        if !snapshot.hidden.is_empty() && snapshot.hidden.contains(&full) {
            child.here = Here::Mount;
            return Ok(true);
        }
        let dir = self.cursor.dir(path).map_err(|error| (path.to_vec(), error))?;
        let seen = match dir.open_node(&child.name).and_then(|node| Seen::new(node, snapshot.namespace)) {
            Ok(seen) => seen,
            Err(error) if is_mount(&error) => {
                child.here = Here::Mount;
                return Ok(true);
            }
            Err(error) if is_gone(&error) && !self.frozen => {
                snapshot.vanished.push(full);
                self.difference.others += 1;
                return Ok(false);
            }
            Err(error) => return Err((full, error)),
        };
        let marks = seen.xattrs.marks;
        snapshot.bytes += seen.bytes();
        snapshot.needs_merged |= marks.indexed || (marks.redirect && seen.stat.file_type == FileType::Directory);
        let mut directory = None;
        match seen.stat.file_type {
            FileType::Directory => {
                let index = match child.here {
                    Here::File { seen: ref old, directory: Some(index), .. }
                        if (old.stat.ino, old.stat.device) == (seen.stat.ino, seen.stat.device) =>
                    {
                        index
                    }
                    _ if full.len() > MAX_PATH => {
                        // The changeset says so when it gets there; what is below does not matter.
                        snapshot.directories.push(Directory { path: full.clone(), ..Directory::default() });
                        snapshot.directories.len() - 1
                    }
                    _ => {
                        snapshot.directories.push(Directory { path: full.clone(), lost: true, ..Directory::default() });
                        snapshot.directories.len() - 1
                    }
                };
                directory = Some(index);
                if full.len() <= MAX_PATH {
                    stack.push((index, true));
                }
                self.difference.directories.push(full);
            }
            FileType::Regular => {
                let root = if marks.metacopy { MERGED } else { UPPER };
                self.difference.files.push(Place { path: full, root, metadata: Metadata::from(&seen.stat) });
            }
            _ => self.difference.others += 1,
        }
        let settled = self.frozen || is_settled(seen.stat.ctime, at);
        child.here = Here::File { seen, settled, directory, below: None };
        Ok(true)
    }
}

type Stack = Vec<(usize, bool)>;
/// Where something failed, and how.
type At = (Vec<u8>, std::io::Error);
