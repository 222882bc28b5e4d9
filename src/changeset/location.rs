//! [`Location`]: where something that is mounted in a container belongs in its image.
//!
//! The path is followed in the container's own tree, by its symbolic links, as its runtime followed it when it was started;
//! no file of the host is touched on the way.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::changeset::Error;
use crate::changeset::collect::{Seen, look};
use crate::changeset::cursor::join;
use crate::changeset::entry::{Entry, Kind, Metadata};
use crate::changeset::lower::{Found, Lower, Part, is_whiteout_device};
use crate::changeset::scan::{UPPER, relative};
use crate::changeset::snapshot::{Here, Snapshot};
use crate::sys::dir::FileType;

/// As many symbolic links as the kernel follows.
const MOST_LINKS: usize = 40;

/// A place in a container's tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    /// As in [`Entry::path`], without symbolic links on the way.
    pub path: Vec<u8>,
    /// The directories above it, outermost first, without the root.
    pub(crate) above: Vec<Entry>,
    /// What is to be put there is one file, and not a directory.
    is_file: bool,
    /// The tree has a directory there that may hold something.
    is_taken: bool,
}

impl Location {
    /// Whether what was put there is still in its place.
    pub fn is_same(&self, other: &Location) -> bool {
        self.path == other.path && self.is_taken == other.is_taken
    }

    /// The same if something else, of which `outer` was looked at, is put at `other` before: then directories of that are
    /// above this one.
    pub fn beneath(mut self, other: &Location, outer: &Snapshot) -> Result<Location, Error> {
        for entry in &mut self.above {
            let inside = match entry.path.strip_prefix(&other.path[..]) {
                Some([]) => Some(&outer.root),
                Some([b'/', rest @ ..]) => outer.directory(rest),
                _ => continue,
            };
            let path = entry.path.clone();
            // A symbolic link there was followed by the runtime, and leads nobody knows where.
            let seen = inside.ok_or_else(|| Error::Astray {
                path: PathBuf::from(OsString::from_vec(self.path.clone())),
                at: path.clone(),
            })?;
            *entry = directory(path, Some(seen.clone()));
        }
        Ok(self)
    }

    /// The path of what is at `path` in the volume.
    pub fn place(&self, path: &[u8]) -> Vec<u8> {
        if self.is_file || path.is_empty() { self.path.clone() } else { join(&self.path, path) }
    }

    /// A marker that nothing of the layers below shows in the directory: what was mounted over it hid that. Each name by its
    /// own whiteout would be better, and nobody has looked at the names.
    pub(crate) fn marker(&self) -> Option<Entry> {
        // The name of a whiteout gets `.wh.` in front.
        let path = join(&self.path, b".wh..opq");
        (self.is_taken && !self.is_file).then(|| Entry { kind: Kind::Whiteout, ..directory(path, None) })
    }
}

/// A directory that was passed.
struct Step {
    name: Vec<u8>,
    upper: Option<usize>,
    lower: Vec<Part>,
    /// None if the tree does not have it, or not its attributes.
    seen: Option<Seen>,
}

enum Next {
    Directory(Box<Step>),
    Link(Vec<u8>),
    Other,
}

impl Snapshot {
    /// Where in the tree, as it was looked at last, the absolute path `destination` leads. What is not there yet is taken
    /// for directories that are to be made.
    pub fn locate(&self, destination: &Path, is_file: bool) -> Result<Location, Error> {
        let mut lower = self.lower();
        let root = Step { name: Vec::new(), upper: Some(0), lower: lower.root()?, seen: None };
        let mut steps: Vec<Step> = Vec::new();
        let names = |path: &[u8]| path.split(|byte| *byte == b'/').map(<[u8]>::to_vec).collect::<Vec<_>>();
        let mut names_left = VecDeque::from(names(&relative(destination)));
        let (mut links, mut is_other) = (0, false);
        let mut path = Vec::new();
        while let Some(name) = names_left.pop_front() {
            path = steps.iter().fold(Vec::new(), |path, step| join(&path, &step.name));
            let astray = |at: Vec<u8>| Error::Astray { path: destination.to_owned(), at };
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    steps.pop();
                    continue;
                }
                _ => {}
            }
            match self.step(&mut lower, &path, steps.last().unwrap_or(&root), name.clone())? {
                Next::Directory(step) => steps.push(*step),
                Next::Link(target) => {
                    links += 1;
                    if links > MOST_LINKS {
                        return Err(astray(join(&path, &name)));
                    }
                    if target.starts_with(b"/") {
                        steps.clear();
                    }
                    names(&target).into_iter().rev().for_each(|name| names_left.push_front(name));
                }
                Next::Other if names_left.is_empty() => {
                    is_other = true;
                    steps.push(Step { name, upper: None, lower: Vec::new(), seen: None });
                }
                Next::Other => return Err(astray(join(&path, &name))),
            }
        }
        let Some(last) = steps.pop() else {
            return Err(Error::Astray { path: destination.to_owned(), at: path });
        };
        if is_other && !is_file {
            return Err(Error::Astray { path: destination.to_owned(), at: join(&path, &last.name) });
        }
        let is_taken = !last.lower.is_empty() || last.upper.is_some_and(|index| !self.children(index).is_empty());
        let mut above = Vec::with_capacity(steps.len());
        let mut path = Vec::new();
        for step in steps {
            path = join(&path, &step.name);
            above.push(directory(path.clone(), step.seen));
        }
        Ok(Location { path: join(&path, &last.name), above, is_file, is_taken })
    }

    /// The directory at `path` of the upper tree.
    fn directory(&self, path: &[u8]) -> Option<&Seen> {
        let mut at = (0, None);
        for name in path.split(|byte| *byte == b'/') {
            at = match self.child(at.0, name)? {
                Here::File { seen, directory: Some(index), .. } => (*index, Some(seen)),
                Here::File { .. } | Here::Mount => return None,
            };
        }
        at.1
    }

    fn step(&self, lower: &mut Lower, path: &[u8], at: &Step, name: Vec<u8>) -> Result<Next, Error> {
        let full = join(path, &name);
        let of = |seen: &Seen| match seen.stat.file_type {
            FileType::Symlink => Next::Link(seen.target.clone()),
            _ => Next::Other,
        };
        let to = |step| Next::Directory(Box::new(step));
        let nothing = |name| to(Step { name, upper: None, lower: Vec::new(), seen: None });
        let here = at.upper.and_then(|index| self.child(index, &name));
        let (upper, seen) = match here {
            Some(Here::Mount) => return Ok(nothing(name)),
            Some(Here::File { seen, .. }) if is_whiteout_device(&seen.stat) || seen.xattrs.marks.whiteout => {
                return Ok(nothing(name));
            }
            Some(Here::File { seen, directory: Some(index), .. }) => (Some(*index), Some(seen.clone())),
            Some(Here::File { seen, .. }) => return Ok(of(seen)),
            None => (None, None),
        };
        let is_hidden = seen.as_ref().is_some_and(|seen| seen.xattrs.marks.opaque || seen.xattrs.marks.redirect);
        let below = if is_hidden { Found::Absent } else { lower.find(path, &at.lower, &name)? };
        let mut below_seen = |layer| lower.look(layer, path, &name).map_err(look("look below", &full));
        Ok(match (upper, below) {
            (Some(_), Found::Directory(parts)) => to(Step { name, upper, lower: parts, seen }),
            (Some(_), _) => to(Step { name, upper, lower: Vec::new(), seen }),
            (None, Found::Directory(parts)) => {
                let seen = parts.first().map(|part| below_seen(part.layer)).transpose()?;
                to(Step { name, upper, lower: parts, seen })
            }
            (None, Found::Other(layer)) => of(&below_seen(layer)?),
            (None, Found::Absent) => nothing(name),
        })
    }
}

/// A directory as it was seen, or else as a runtime makes one.
fn directory(path: Vec<u8>, seen: Option<Seen>) -> Entry {
    let (metadata, xattrs) = match seen {
        Some(seen) => (Metadata::from(&seen.stat), seen.xattrs.kept),
        None => (Metadata { mode: 0o755, ..Metadata::default() }, Vec::new()),
    };
    Entry {
        path,
        kind: Kind::Directory,
        in_lower: true,
        metadata,
        xattrs,
        replaces: false,
        copied_up: false,
        root: UPPER,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;
    use crate::changeset::Source;
    use crate::progress::Progress;

    fn look_at(path: &Path) -> Snapshot {
        Snapshot::take(&Source::Directory(path.to_owned()), &[], &Progress::new()).unwrap()
    }

    fn names(location: &Location) -> Vec<(String, u32)> {
        location
            .above
            .iter()
            .map(|entry| (String::from_utf8(entry.path.clone()).unwrap(), entry.metadata.mode))
            .collect()
    }

    #[test]
    fn links_are_followed_in_the_tree_and_never_out_of_it() {
        let top = tempfile::tempdir().unwrap();
        let root = top.path();
        for directory in ["run/lock", "srv/full", "var"] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        fs::set_permissions(root.join("srv"), fs::Permissions::from_mode(0o710)).unwrap();
        fs::write(root.join("srv/full/file"), "x").unwrap();
        for (target, link) in
            [("/run", "var/run"), ("../../../../srv", "var/up"), ("loop", "var/loop"), ("/var/run/lock/./..", "back")]
        {
            symlink(target, root.join(link)).unwrap();
        }
        let tree = look_at(root);
        let at = |path: &str| tree.locate(Path::new(path), false);
        let cases = [
            ("/var/run/data", "run/data", vec!["run"], false),
            ("/var/up/full", "srv/full", vec!["srv"], true),
            ("/back/x", "run/x", vec!["run"], false),
            ("/new/deep//tree/", "new/deep/tree", vec!["new", "new/deep"], false),
            ("/run", "run", vec![], true),
        ];
        for (path, expected, above, is_taken) in cases {
            let found = at(path).unwrap();
            assert_eq!(String::from_utf8(found.path.clone()).unwrap(), expected, "{path}");
            assert_eq!(names(&found).into_iter().map(|(name, _)| name).collect::<Vec<_>>(), above, "{path}");
            assert_eq!(found.marker().is_some(), is_taken, "{path}");
        }
        assert_eq!(names(&at("/var/up/full").unwrap()), [("srv".to_owned(), 0o710)]);
        for astray in ["/var/loop/x", "/srv/full/file/x", "/srv/full/file", "/", "/.."] {
            assert!(matches!(at(astray), Err(Error::Astray { .. })), "{astray}");
        }
        let file = tree.locate(Path::new("/srv/full/file"), true).unwrap();
        assert_eq!((file.place(b"other"), file.marker()), (b"srv/full/file".to_vec(), None));
    }

    #[test]
    fn what_is_put_on_something_else_is_in_its_directories() {
        let top = tempfile::tempdir().unwrap();
        fs::create_dir_all(top.path().join("outer/a/b")).unwrap();
        fs::set_permissions(top.path().join("outer/a"), fs::Permissions::from_mode(0o700)).unwrap();
        symlink("a", top.path().join("outer/link")).unwrap();
        fs::create_dir(top.path().join("root")).unwrap();
        let (root, outer) = (look_at(&top.path().join("root")), look_at(&top.path().join("outer")));
        let other = root.locate(Path::new("/data"), false).unwrap();
        let on = |path: &str| root.locate(Path::new(path), false).unwrap().beneath(&other, &outer);
        assert_eq!(names(&on("/data/a/b").unwrap()), [("data".to_owned(), 0o755), ("data/a".to_owned(), 0o700)]);
        assert!(matches!(on("/data/link/b"), Err(Error::Astray { .. })));
        assert_eq!(names(&on("/database/x").unwrap()), [("database".to_owned(), 0o755)]);
    }
}
