//! [`Cursor`]: a place in a tree that remembers how it got there.

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;

use crate::sys::dir::Dir;

/// Opens the directories of one tree in the order a walk asks for them, holding a bounded number of them open.
///
/// The nearest ancestors stay open, so that the next directory of a walk is one call away; in a tree deeper than that the
/// way back up starts from the root again. Moving is by name from a handle, never by a path from outside the tree.
#[derive(Debug)]
pub(crate) struct Cursor {
    root: Arc<Dir>,
    path: Vec<u8>,
    /// The ancestors that are open, outermost first: the length of each one's path, and its handle.
    open: VecDeque<(usize, Dir)>,
    keep: usize,
}

impl Cursor {
    /// Stands at `root`; holds at most `keep` directories beneath it open.
    pub(crate) fn new(root: Arc<Dir>, keep: usize) -> Cursor {
        Cursor { root, path: Vec::new(), open: VecDeque::new(), keep: keep.max(1) }
    }

    /// The directory at `path` (names joined by `/`; empty is the root).
    pub(crate) fn dir(&mut self, path: &[u8]) -> io::Result<&Dir> {
        if path != self.path {
            self.go(path)?;
        }
        Ok(self.open.back().map_or(&*self.root, |(_, dir)| dir))
    }

    fn go(&mut self, path: &[u8]) -> io::Result<()> {
        while let Some(&(length, _)) = self.open.back() {
            if is_within(path, &self.path[..length]) {
                break;
            }
            self.open.pop_back();
        }
        let mut at = self.open.back().map_or(0, |&(length, _)| length);
        self.path.truncate(at);
        let rest = names_after(path, at);
        let skipped = if at == 0 { rest.len().saturating_sub(self.keep) } else { 0 };
        if skipped > 0 {
            // Far from anything that is open: all but the last few names in as few calls as possible.
            at = rest[skipped - 1];
            let dir = self.root.open_beneath(&path[..at])?;
            self.push(path, at, dir);
        }
        for &end in &rest[skipped..] {
            let start = if at == 0 { 0 } else { at + 1 };
            let dir = self.open.back().map_or(&*self.root, |(_, dir)| dir).open_dir(&path[start..end])?;
            self.push(path, end, dir);
            at = end;
        }
        Ok(())
    }

    fn push(&mut self, path: &[u8], end: usize, dir: Dir) {
        self.path.clear();
        self.path.extend_from_slice(&path[..end]);
        self.open.push_back((end, dir));
        if self.open.len() > self.keep {
            self.open.pop_front();
        }
    }
}

/// Whether `path` is `ancestor` or beneath it.
fn is_within(path: &[u8], ancestor: &[u8]) -> bool {
    path.starts_with(ancestor) && (path.len() == ancestor.len() || path[ancestor.len()] == b'/')
}

/// Where each name after the first `at` bytes of `path` ends.
fn names_after(path: &[u8], at: usize) -> Vec<usize> {
    if at == path.len() {
        return Vec::new();
    }
    let start = if at == 0 { 0 } else { at + 1 };
    let slashes = path[start..].iter().enumerate().filter(|&(_, &byte)| byte == b'/').map(|(index, _)| start + index);
    slashes.chain([path.len()]).collect()
}

/// `name` in the directory `dir`.
pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// The directory and the name that make up `path`.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn any_order_of_places_is_reached_with_few_handles() {
        let temp = tempfile::tempdir().unwrap();
        let paths =
            ["", "a", "a/b", "a/b/c", "a/b/c/d", "a/b/c/d/e", "a/x", "ab", "ab/c", "a/b/c/d/e/f/g/h", "z/y/x/w/v/u"];
        for path in paths {
            std::fs::create_dir_all(temp.path().join(path)).unwrap();
        }
        for keep in [1, 2, 32] {
            let mut cursor = Cursor::new(Arc::new(Dir::open(temp.path()).unwrap()), keep);
            for from in paths {
                for to in paths {
                    for path in [from, to] {
                        let dir = cursor.dir(path.as_bytes()).unwrap();
                        let expected = std::fs::metadata(temp.path().join(path)).unwrap().ino();
                        assert_eq!(dir.node().unwrap().stat().unwrap().ino, expected, "{path}");
                        assert!(cursor.open.len() <= keep);
                    }
                    assert!(cursor.dir(b"a/b/none/c").is_err());
                }
            }
        }
    }
}
