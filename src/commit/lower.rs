//! [`Lower`]: what the layers below have at a path, by the rules that overlayfs merges them with.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::commit::collect::{Error, Seen, look};
use crate::commit::cursor::{Cursor, join};
use crate::commit::overlay::Namespace;
use crate::sys::dir::{Dir, FileType, Name, Stat, is_gone};
use crate::sys::xattr;

/// Directories held open in all layers together; there may be hundreds of layers.
const KEEP: usize = 512;

/// A stack of lower directories, top first.
#[derive(Debug)]
pub(crate) struct Lower {
    layers: Vec<(PathBuf, Cursor)>,
    namespace: Namespace,
}

/// One layer's part of a merged directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Part {
    /// Index of the layer.
    pub(crate) layer: usize,
    /// Whether the directory may hold whiteouts that are not devices.
    has_xattr_whiteouts: bool,
}

/// What the layers have at a path, merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Found {
    /// Nothing, or a whiteout.
    Absent,
    /// Not a directory, in the layer of this index.
    Other(usize),
    /// A directory, and the layers that it merges, top first: at least one.
    Directory(Vec<Part>),
}

impl Lower {
    /// Layers whose root directories are `roots`, top first; `paths` are their names for messages.
    pub(crate) fn new(paths: &[PathBuf], roots: &[Arc<Dir>], namespace: Namespace) -> Lower {
        let keep = (KEEP / paths.len().max(1)).clamp(2, 32);
        let layers = paths.iter().zip(roots).map(|(path, root)| (path.clone(), Cursor::new(root.clone(), keep)));
        Lower { layers: layers.collect(), namespace }
    }

    /// The root directory: every layer has a part in it.
    pub(crate) fn root(&mut self) -> Result<Vec<Part>, Error> {
        let mut parts = Vec::new();
        for layer in 0..self.layers.len() {
            let seen = self.look(layer, b"", b"").map_err(look("read", b""))?;
            parts.push(Part { layer, has_xattr_whiteouts: seen.xattrs.marks.has_xattr_whiteouts });
        }
        Ok(parts)
    }

    /// What is at `name` in the directory at `path`, which `parts` make up.
    pub(crate) fn find(&mut self, path: &[u8], parts: &[Part], name: &[u8]) -> Result<Found, Error> {
        let mut found = Vec::new();
        for part in parts {
            let stat = match self.dir(part.layer, path).and_then(|dir| dir.stat(name)) {
                Err(error) if is_gone(&error) => continue,
                done => done.map_err(look("look at", path))?,
            };
            if stat.file_type != FileType::Directory {
                let is_empty_file = stat.file_type == FileType::Regular && stat.size == 0;
                let whiteout = is_whiteout_device(&stat)
                    || (is_empty_file && part.has_xattr_whiteouts && self.is_xattr_whiteout(part.layer, path, name)?);
                if found.is_empty() && !whiteout {
                    return Ok(Found::Other(part.layer));
                }
                break;
            }
            let seen = self.look(part.layer, path, name).map_err(look("look at", path))?;
            let marks = seen.xattrs.marks;
            if marks.redirect {
                return Err(self.marked(part.layer, join(path, name), "redirect"));
            }
            found.push(Part { layer: part.layer, has_xattr_whiteouts: marks.has_xattr_whiteouts });
            if marks.opaque {
                break;
            }
        }
        Ok(if found.is_empty() { Found::Absent } else { Found::Directory(found) })
    }

    /// The names that show in the directory at `path`, which `parts` make up.
    pub(crate) fn names(&mut self, path: &[u8], parts: &[Part]) -> Result<Vec<Vec<u8>>, Error> {
        let mut names = BTreeMap::new();
        for part in parts {
            let entries = self.dir(part.layer, path).and_then(Dir::entries).map_err(look("list", path))?;
            for name in entries {
                if let Entry::Vacant(vacant) = names.entry(name.bytes.clone()) {
                    vacant.insert(!self.is_whiteout(*part, path, &name)?);
                }
            }
        }
        Ok(names.into_iter().filter_map(|(name, shows)| shows.then_some(name)).collect())
    }

    /// Looks at `name` in the directory at `path` of one layer; an empty name is that directory.
    pub(crate) fn look(&mut self, layer: usize, path: &[u8], name: &[u8]) -> io::Result<Seen> {
        let namespace = self.namespace;
        let dir = self.dir(layer, path)?;
        Seen::new(if name.is_empty() { dir.node()? } else { dir.open_node(name)? }, Some(namespace))
    }

    /// A mark that makes `path` unreadable in its layer alone.
    pub(crate) fn marked(&self, layer: usize, path: Vec<u8>, mark: &'static str) -> Error {
        Error::LowerMark { path, mark, layer: self.layers[layer].0.clone() }
    }

    fn dir(&mut self, layer: usize, path: &[u8]) -> io::Result<&Dir> {
        self.layers[layer].1.dir(path)
    }

    fn is_whiteout(&mut self, part: Part, path: &[u8], name: &Name) -> Result<bool, Error> {
        if name.maybe_char_device {
            let stat =
                self.dir(part.layer, path).and_then(|dir| dir.stat(&name.bytes)).map_err(look("look at", path))?;
            if stat.file_type == FileType::CharDevice {
                return Ok(is_whiteout_device(&stat));
            }
        }
        Ok(part.has_xattr_whiteouts && name.maybe_regular && self.is_xattr_whiteout(part.layer, path, &name.bytes)?)
    }

    fn is_xattr_whiteout(&mut self, layer: usize, path: &[u8], name: &[u8]) -> Result<bool, Error> {
        let mark = self.namespace.name("whiteout");
        let dir = self.dir(layer, path).map_err(look("look at", path))?;
        is_xattr_whiteout(dir, name, &mark).map_err(look("look at", path))
    }
}

/// Whether a file is a whiteout in the form that overlayfs itself writes: a character device 0:0.
pub(crate) fn is_whiteout_device(stat: &Stat) -> bool {
    stat.file_type == FileType::CharDevice && stat.rdev.major == 0 && stat.rdev.minor == 0
}

/// Whether `name` is a regular file of zero size with the attribute `mark`.
pub(crate) fn is_xattr_whiteout(dir: &Dir, name: &[u8], mark: &[u8]) -> io::Result<bool> {
    let node = dir.open_node(name)?;
    let stat = node.stat()?;
    Ok(stat.file_type == FileType::Regular && stat.size == 0 && xattr::get(&node, mark)?.is_some())
}

/// Opens `path`, a directory of the host.
pub(crate) fn open(path: &Path) -> Result<Arc<Dir>, Error> {
    Dir::open_detached(path).map(Arc::new).map_err(|source| Error::Open { path: path.to_path_buf(), source })
}
