//! [`Earlier`]: a changeset that was captured, kept so that the next one is only the difference to it. Pure.
//!
//! Both changesets, the earlier and the one now, are changes to the same layers below. The earlier one's layer on these makes
//! a tree; [`Earlier::difference`] is what must be laid on that tree to get the one of now. An entry is in it if it
//! differs; the directories above it are, as in every changeset; what is no longer there is a whiteout, if the tree has it.
//!
//! - A file is what it was if it is the same inode with the same change time, and that change time was worth something
//!   when it was captured: see [`Earlier::of`].
//! - If one name of an inode differs, all its names are written again: what unpacks a layer need not find a link's target
//!   in the layers below.
//! - What the layers below have and the earlier changeset changed cannot be brought back by a difference. Such a
//!   difference is none; whoever asked for it writes the whole changeset.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::changeset::cursor::split;
use crate::changeset::entry::{Changes, Entry, Kind, Metadata};
use crate::changeset::pack::{Packer, Unpacker};
use crate::oci::{Digest, Hasher};

/// A changeset, but for what nobody needs to compare it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Earlier(HashMap<Vec<u8>, Was>);

/// What an [`Entry`] was.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Was {
    kind: Kind,
    in_lower: bool,
    metadata: Metadata,
    /// Of the extended attributes; none if there were none.
    xattrs: Option<Digest>,
    /// Its content may be another although its attributes are not.
    is_stale: bool,
}

impl Was {
    fn of(entry: &Entry, is_stale: bool) -> Was {
        let Entry { kind, in_lower, metadata, xattrs, .. } = entry;
        // Allocated blocks are compared by nobody.
        let metadata = Metadata { blocks: 0, ..*metadata };
        Was { kind: kind.clone(), in_lower: *in_lower, metadata, xattrs: digest(xattrs), is_stale }
    }

    /// Whether the layer that holds it has what `entry` is.
    fn is_still(&self, entry: &Entry) -> bool {
        let (was, is) = (&self.metadata, &entry.metadata);
        let shown = |of: &Metadata| (of.mode, of.uid, of.gid, of.mtime);
        let content = |of: &Metadata| (of.ino, of.device, of.ctime, of.size);
        self.kind == entry.kind
            && shown(was) == shown(is)
            && self.xattrs == digest(&entry.xattrs)
            && (entry.kind != Kind::File || (!self.is_stale && content(was) == content(is)))
    }

    fn hides_what_is_below(&self) -> bool {
        self.kind != Kind::Directory
    }
}

fn digest(xattrs: &[(Vec<u8>, Vec<u8>)]) -> Option<Digest> {
    if xattrs.is_empty() {
        return None;
    }
    let mut hasher = Hasher::new();
    for text in xattrs.iter().flat_map(|(name, value)| [name, value]) {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text);
    }
    Some(hasher.digest())
}

impl Earlier {
    /// `changes` as they were captured. `is_stale` tells the entries that may change, or have changed, without another change
    /// time: it was too new to be sure to become another ([`is_settled`](crate::changeset::is_settled)), or somebody has
    /// the file mapped, or what was captured is not the file's content.
    pub fn of(changes: &Changes, is_stale: impl Fn(&Entry) -> bool) -> Earlier {
        Earlier(changes.entries.iter().map(|entry| (entry.path.clone(), Was::of(entry, is_stale(entry)))).collect())
    }

    /// Whether the tree has something else at `path` than the layers below: a directory that is as below must then be in the
    /// changeset of now all the same.
    pub(crate) fn differs_below(&self, path: &[u8]) -> bool {
        self.0.contains_key(path) || !self.shows(path)
    }

    /// What to lay on the tree that this changeset made, to get that of `now`. `None` if it cannot be told.
    pub fn difference(&self, now: &Changes) -> Option<Changes> {
        let places = now.entries.iter().enumerate().map(|(index, entry)| (&entry.path[..], index));
        let places: HashMap<&[u8], usize> = places.collect();
        let removed = self.removed(now, &places)?;
        let mut wanted = self.changed(now);
        let changed = now.entries.iter().zip(&wanted).filter(|(_, wanted)| **wanted).map(|(entry, _)| &entry.path[..]);
        let paths: Vec<&[u8]> = changed.chain(removed.iter().copied()).collect();
        for path in paths {
            let mut path = path;
            while !path.is_empty() {
                path = split(path).0;
                let directory = *places.get(path)?;
                if std::mem::replace(&mut wanted[directory], true) {
                    break; // and so are all above it, or will be when its own turn comes
                }
            }
        }
        let entries = self.entries(now, &places, &wanted, &removed);
        Some(Changes {
            entries,
            sockets: now.sockets,
            mounts: now.mounts.clone(),
            vanished: now.vanished.clone(),
            dropped_xattrs: now.dropped_xattrs,
            roots: now.roots.clone(),
        })
    }

    /// For each entry, whether the tree has something else there.
    fn changed(&self, now: &Changes) -> Vec<bool> {
        let is_changed = |entry: &Entry| match self.0.get(&entry.path) {
            _ if entry.kind == Kind::Whiteout => self.shows(&entry.path),
            Some(was) => !was.is_still(entry),
            None => true,
        };
        let mut changed: Vec<bool> = now.entries.iter().map(is_changed).collect();
        let inode = |entry: &Entry| match &entry.kind {
            Kind::HardLink { to } => Some(to.clone()),
            Kind::Whiteout | Kind::Directory => None,
            _ => Some(entry.path.clone()),
        };
        let linked = now.entries.iter().filter(|entry| matches!(entry.kind, Kind::HardLink { .. })).filter_map(inode);
        let linked: HashSet<Vec<u8>> = linked.collect();
        let groups = now.entries.iter().map(|entry| inode(entry).filter(|first| linked.contains(first)));
        let groups: Vec<Option<Vec<u8>>> = groups.collect();
        let moved: HashSet<&Vec<u8>> = groups
            .iter()
            .zip(&changed)
            .filter(|(_, changed)| **changed)
            .filter_map(|(group, _)| group.as_ref())
            .collect();
        for (group, changed) in groups.iter().zip(&mut changed) {
            *changed |= group.as_ref().is_some_and(|group| moved.contains(group));
        }
        changed
    }

    /// Whether the tree has what the layers below have at `path`, or something else there.
    fn shows(&self, path: &[u8]) -> bool {
        if let Some(was) = self.0.get(path) {
            return was.kind != Kind::Whiteout;
        }
        let above = ancestors(path).find_map(|path| self.0.get(path));
        !above.is_some_and(Was::hides_what_is_below)
    }

    /// The topmost paths that the tree has and `now` has not, and does not delete either.
    fn removed<'a>(&'a self, now: &Changes, places: &HashMap<&[u8], usize>) -> Option<BTreeSet<&'a [u8]>> {
        let mut missing: Vec<(&[u8], &Was)> =
            self.0.iter().map(|(path, was)| (&path[..], was)).filter(|(path, _)| !places.contains_key(path)).collect();
        // What a directory holds comes after it.
        missing.sort_unstable_by_key(|(path, _)| *path);
        let mut removed = BTreeSet::new();
        for (path, was) in missing {
            let above = ancestors(path).find_map(|path| match places.get(path) {
                Some(index) => Some(now.entries[*index].kind != Kind::Directory),
                None => removed.contains(path).then_some(true),
            });
            if above == Some(true) {
                continue;
            }
            if was.in_lower {
                return None;
            }
            removed.insert(path);
        }
        Some(removed)
    }

    fn entries(
        &self,
        now: &Changes,
        places: &HashMap<&[u8], usize>,
        wanted: &[bool],
        removed: &BTreeSet<&[u8]>,
    ) -> Vec<Entry> {
        let mut gone: HashMap<&[u8], Vec<&[u8]>> = HashMap::new();
        for path in removed {
            gone.entry(split(path).0).or_default().push(path);
        }
        let mut entries = Vec::new();
        let mut replaced = HashSet::new();
        for (entry, _) in now.entries.iter().zip(wanted).filter(|(_, wanted)| **wanted) {
            let mut entry = entry.clone();
            if entry.kind == Kind::Directory {
                let parent = split(&entry.path).0;
                let is_own = || match self.0.get(&entry.path) {
                    Some(was) => was.kind != Kind::Directory && was.kind != Kind::Whiteout,
                    None => entry.replaces && !places.get(parent).is_some_and(|index| now.entries[*index].replaces),
                };
                entry.replaces = (!entry.path.is_empty() && replaced.contains(parent)) || is_own();
                if entry.replaces {
                    replaced.insert(entry.path.clone());
                }
            }
            let whiteouts = gone.get(&entry.path[..]).into_iter().flatten().map(|path| Entry::whiteout(path.to_vec()));
            let whiteouts: Vec<Entry> = whiteouts.collect();
            entries.push(entry);
            entries.extend(whiteouts);
        }
        entries
    }

    /// As bytes, for [`unpack`](Self::unpack).
    pub(crate) fn pack(&self, packer: &mut Packer) {
        let mut paths: Vec<&Vec<u8>> = self.0.keys().collect();
        paths.sort_unstable();
        packer.number(paths.len() as u64);
        let mut last: &[u8] = b"";
        for path in paths {
            let shared = last.iter().zip(path).take_while(|(one, other)| one == other).count();
            packer.number(shared as u64);
            packer.text(&path[shared..]);
            self.0[path].pack(packer);
            last = path;
        }
    }

    pub(crate) fn unpack(unpacker: &mut Unpacker<'_>) -> Option<Earlier> {
        let count = unpacker.length()?;
        let mut entries = HashMap::with_capacity(count.min(1 << 20));
        let mut path: Vec<u8> = Vec::new();
        for _ in 0..count {
            let shared = unpacker.length()?;
            if shared > path.len() {
                return None;
            }
            path.truncate(shared);
            path.extend_from_slice(unpacker.text()?);
            entries.insert(path.clone(), Was::unpack(unpacker)?);
        }
        Some(Earlier(entries))
    }
}

/// The directories above `path`, the nearest first, the root last.
fn ancestors(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::successors((!path.is_empty()).then(|| split(path).0), |path| (!path.is_empty()).then(|| split(path).0))
}

impl Was {
    fn pack(&self, packer: &mut Packer) {
        let kind = match self.kind {
            Kind::Whiteout => 0,
            Kind::Directory => 1,
            Kind::File => 2,
            Kind::Symlink { .. } => 3,
            Kind::HardLink { .. } => 4,
            Kind::CharDevice(_) => 5,
            Kind::BlockDevice(_) => 6,
            Kind::Fifo => 7,
        };
        let flags = u8::from(self.in_lower) | u8::from(self.is_stale) << 1 | u8::from(self.xattrs.is_some()) << 2;
        packer.byte(kind | flags << 4);
        match &self.kind {
            Kind::Whiteout => return,
            Kind::Symlink { target: text } | Kind::HardLink { to: text } => packer.text(text),
            Kind::CharDevice(device) | Kind::BlockDevice(device) => packer.device(*device),
            Kind::Directory | Kind::File | Kind::Fifo => {}
        }
        if let Some(digest) = &self.xattrs {
            packer.text(digest.hex().as_bytes());
        }
        let Metadata { mode, uid, gid, size, blocks: _, mtime, ctime, ino, device } = self.metadata;
        for number in [mode.into(), uid.into(), gid.into(), size, ino] {
            packer.number(number);
        }
        packer.time(mtime);
        packer.time(ctime);
        packer.device(device);
    }

    fn unpack(unpacker: &mut Unpacker<'_>) -> Option<Was> {
        let byte = unpacker.byte()?;
        let flag = |bit: u8| byte >> 4 & bit != 0;
        let (in_lower, is_stale) = (flag(1), flag(2));
        let kind = match byte & 0xf {
            0 => {
                let metadata = Metadata::default();
                return Some(Was { kind: Kind::Whiteout, in_lower, metadata, xattrs: None, is_stale });
            }
            1 => Kind::Directory,
            2 => Kind::File,
            3 => Kind::Symlink { target: unpacker.text()?.to_vec() },
            4 => Kind::HardLink { to: unpacker.text()?.to_vec() },
            5 => Kind::CharDevice(unpacker.device()?),
            6 => Kind::BlockDevice(unpacker.device()?),
            7 => Kind::Fifo,
            _ => return None,
        };
        let hex = |text: &[u8]| format!("sha256:{}", std::str::from_utf8(text).ok()?).parse().ok();
        let xattrs = if flag(4) { Some(hex(unpacker.text()?)?) } else { None };
        let (mode, uid, gid) = (unpacker.small()?, unpacker.small()?, unpacker.small()?);
        let (size, ino) = (unpacker.number()?, unpacker.number()?);
        let (mtime, ctime, device) = (unpacker.time()?, unpacker.time()?, unpacker.device()?);
        let metadata = Metadata { mode, uid, gid, size, blocks: 0, mtime, ctime, ino, device };
        Some(Was { kind, in_lower, metadata, xattrs, is_stale })
    }
}

#[cfg(test)]
mod tests;
