//! A base layer for a container that has no image: everything that its lower directories show.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use crate::changeset::Namespace;
use crate::changeset::collect::{Collector, Error, look};
use crate::changeset::cursor::{Cursor, join};
use crate::changeset::entry::Changes;
use crate::changeset::lower::{Found, Lower, Part, open};
use crate::oci::{Digest, Hasher};
use crate::progress::Progress;
use crate::sys::dir::{Dir, FileType, Stat};

/// The complete tree that `lowers` (top first) show when overlayfs merges them, as additions.
pub fn flatten(lowers: &[PathBuf], namespace: Namespace, progress: &Progress) -> Result<Changes, Error> {
    let roots = lowers.iter().map(|path| open(path)).collect::<Result<Vec<_>, _>>()?;
    let mut lower = Lower::new(lowers, &roots, namespace);
    let mut found = Collector::new(roots, progress);
    let root = lower.root()?;
    let mut stack = Vec::new();
    if !root.is_empty() {
        stack.push(add_directory(&mut lower, &mut found, Vec::new(), root)?);
    }
    while let Some((path, parts, names)) = stack.last_mut() {
        let Some(name) = names.pop_front() else {
            stack.pop();
            continue;
        };
        let child = join(path, &name);
        match lower.find(path, parts, &name)? {
            Found::Absent => found.vanished(child),
            Found::Other(layer) => {
                let seen = lower.look(layer, path, &name).map_err(look("look at", &child))?;
                if seen.xattrs.marks.metacopy || seen.xattrs.marks.redirect {
                    return Err(lower.marked(layer, child, "metacopy"));
                }
                found.add(child, seen, false, layer)?;
            }
            Found::Directory(parts) => stack.push(add_directory(&mut lower, &mut found, child, parts)?),
        }
    }
    Ok(found.finish())
}

type Level = (Vec<u8>, Vec<Part>, VecDeque<Vec<u8>>);

fn add_directory(
    lower: &mut Lower,
    found: &mut Collector<'_>,
    path: Vec<u8>,
    parts: Vec<Part>,
) -> Result<Level, Error> {
    let layer = parts.first().map_or(0, |part| part.layer);
    let seen = lower.look(layer, &path, b"").map_err(look("look at", &path))?;
    found.add(path.clone(), seen, false, layer)?;
    let names = lower.names(&path, &parts)?.into();
    Ok((path, parts, names))
}

/// A digest of every file's name and attributes in `lowers`, inode number and change time included: equal digests mean
/// that nobody has written to these directories in between, found out without reading a file.
///
/// Copying a directory changes its fingerprint; moving it within a file system, or mounting that elsewhere, does not.
pub fn fingerprint(lowers: &[PathBuf], progress: &Progress) -> Result<Digest, Error> {
    let mut hasher = Hasher::new();
    hasher.update(b"snapfs tree 1\0");
    for path in lowers {
        let root = open(path)?;
        hash_stat(&mut hasher, b"", &root.node().and_then(|node| node.stat()).map_err(look("look at", b""))?);
        hash_tree(&mut hasher, root, progress)?;
    }
    Ok(hasher.digest())
}

fn hash_tree(hasher: &mut Hasher, root: Arc<Dir>, progress: &Progress) -> Result<(), Error> {
    let mut cursor = Cursor::new(root, 32);
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let dir = cursor.dir(&path).map_err(look("open", &path))?;
        let mut names = dir.entries().map_err(look("list", &path))?;
        names.sort_unstable();
        hasher.update(&(names.len() as u64).to_le_bytes());
        let mut directories = Vec::new();
        for name in names {
            progress.check()?;
            let stat = dir.stat(&name.bytes).map_err(look("look at", &path))?;
            hash_stat(hasher, &name.bytes, &stat);
            if stat.file_type == FileType::Directory && !stat.mount_root {
                directories.push(join(&path, &name.bytes));
            }
        }
        waiting.extend(directories.into_iter().rev());
    }
    Ok(())
}

fn hash_stat(hasher: &mut Hasher, name: &[u8], stat: &Stat) {
    hasher.update(&(name.len() as u64).to_le_bytes());
    hasher.update(name);
    let numbers = [
        stat.file_type as u64,
        u64::from(stat.mode),
        u64::from(stat.uid),
        u64::from(stat.gid),
        stat.size,
        stat.ino,
        stat.mtime.seconds.cast_unsigned(),
        u64::from(stat.mtime.nanoseconds),
        stat.ctime.seconds.cast_unsigned(),
        u64::from(stat.ctime.nanoseconds),
        u64::from(stat.rdev.major),
        u64::from(stat.rdev.minor),
    ];
    let mut bytes = [0; 12 * 8];
    for (place, number) in bytes.chunks_exact_mut(8).zip(numbers) {
        place.copy_from_slice(&number.to_le_bytes());
    }
    hasher.update(&bytes);
}
