//! A [`Snapshot`] as bytes, so that the first look of the next capture is a second look.

use std::path::PathBuf;

use crate::changeset::collect::Seen;
use crate::changeset::cursor::join;
use crate::changeset::overlay::{Marks, Namespace, Xattrs};
use crate::changeset::pack::{Packer, Unpacker};
use crate::changeset::scan::Source;
use crate::changeset::settled::is_settled;
use crate::changeset::snapshot::{Child, Directory, Here, Snapshot};
use crate::changeset::{Earlier, Error};
use crate::sys::dir::{FileType, Stat, Time};

/// What the bytes begin with; another number for another format.
const MAGIC: &[u8] = b"snapfs files 2\n";

const FILE_TYPES: [FileType; 7] = [
    FileType::Regular,
    FileType::Directory,
    FileType::Symlink,
    FileType::CharDevice,
    FileType::BlockDevice,
    FileType::Fifo,
    FileType::Socket,
];

impl Snapshot {
    /// The snapshot and what was captured of it, for [`recall`](Self::recall). Whose change time had not settled `at` a
    /// moment after which nothing was seen to change is looked at again as a whole.
    pub fn remember(&self, earlier: &Earlier, at: Time) -> Vec<u8> {
        let mut packer = Packer::default();
        packer.bytes(MAGIC);
        packer.byte(match self.namespace {
            None => 0,
            Some(Namespace::Trusted) => 1,
            Some(Namespace::User) => 2,
        });
        packer.number(self.lower.len() as u64);
        for path in &self.lower {
            packer.text(path.as_os_str().as_encoded_bytes());
        }
        let mut mounts: Vec<&Vec<u8>> = self.mounts.iter().collect();
        mounts.sort_unstable();
        packer.number(mounts.len() as u64);
        mounts.into_iter().for_each(|path| packer.text(path));
        pack_seen(&mut packer, &self.root);
        packer.byte(u8::from(is_settled(self.root.stat.ctime, at)));
        let mut queue = vec![0];
        let mut next = 0;
        while let Some(&index) = queue.get(next) {
            next += 1;
            let directory = &self.directories[index];
            packer.byte(u8::from(directory.lost));
            packer.number(directory.children.len() as u64);
            for Child { name, here } in &directory.children {
                packer.text(name);
                let Here::File { seen, settled: _, directory, below } = here else {
                    packer.byte(0);
                    continue;
                };
                let flags = u8::from(directory.is_some()) << 1 | u8::from(below.is_some()) << 2;
                let flags = flags | u8::from(*below == Some(true)) << 3;
                packer.byte(1 | flags | u8::from(is_settled(seen.stat.ctime, at)) << 4);
                pack_seen(&mut packer, seen);
                queue.extend(directory);
            }
        }
        earlier.pack(&mut packer);
        packer.into_bytes()
    }

    /// What [`remember`](Self::remember) made bytes of, if `source` and `mounts` are what they were then: what has changed
    /// in them [`update`](Self::update) finds. `None` for another upper directory, too, and for bytes that are damaged or of
    /// another program.
    pub fn recall(bytes: &[u8], source: &Source, mounts: &[PathBuf]) -> Result<Option<(Snapshot, Earlier)>, Error> {
        let mut snapshot = Snapshot::open(source, mounts, Time::now())?;
        let (ino, device) = (snapshot.root.stat.ino, snapshot.root.stat.device);
        let known = unpack(&mut Unpacker::new(bytes), &mut snapshot);
        let is_it = (snapshot.root.stat.ino, snapshot.root.stat.device) == (ino, device);
        Ok(known.filter(|_| is_it).map(|earlier| (snapshot, earlier)))
    }
}

fn unpack(unpacker: &mut Unpacker<'_>, snapshot: &mut Snapshot) -> Option<Earlier> {
    if unpacker.bytes(MAGIC.len())? != MAGIC {
        return None;
    }
    let namespace = match unpacker.byte()? {
        0 => None,
        1 => Some(Namespace::Trusted),
        2 => Some(Namespace::User),
        _ => return None,
    };
    let mut same = namespace == snapshot.namespace && unpacker.length()? == snapshot.lower.len();
    for path in &snapshot.lower {
        same = same && unpacker.text()? == path.as_os_str().as_encoded_bytes();
    }
    same = same && unpacker.length()? == snapshot.mounts.len();
    for _ in 0..snapshot.mounts.len() {
        same = same && snapshot.mounts.contains(unpacker.text()?);
    }
    if !same {
        return None;
    }
    snapshot.root = unpack_seen(unpacker)?;
    snapshot.root_settled = unpacker.byte()? == 1;
    snapshot.directories.clear();
    let mut paths = std::collections::VecDeque::from([Vec::new()]);
    while let Some(path) = paths.pop_front() {
        let lost = unpacker.byte()? == 1;
        let count = unpacker.length()?;
        let mut children = Vec::with_capacity(count.min(1 << 16));
        for _ in 0..count {
            let name = unpacker.text()?.to_vec();
            let flags = unpacker.byte()?;
            let mut here = Here::Mount;
            if flags & 1 != 0 {
                let seen = unpack_seen(unpacker)?;
                snapshot.bytes += seen.bytes();
                let directory = (flags & 2 != 0).then(|| {
                    paths.push_back(join(&path, &name));
                    // This one, those before it in the queue, and it.
                    snapshot.directories.len() + paths.len()
                });
                let below = (flags & 4 != 0).then_some(flags & 8 != 0);
                here = Here::File { seen, settled: flags & 16 != 0, directory, below };
            }
            // Of what is there: what is gone was counted, too, and would add up from one snapshot to the next.
            snapshot.bytes += (path.len() + name.len()) as u64;
            children.push(Child { name, here });
        }
        snapshot.objects += children.len() as u64;
        snapshot.directories.push(Directory { path, children, lost });
    }
    let earlier = Earlier::unpack(unpacker)?;
    unpacker.is_empty().then_some(earlier)
}

fn pack_seen(packer: &mut Packer, seen: &Seen) {
    let Seen { stat, xattrs: Xattrs { marks, kept, dropped }, target } = seen;
    let file_type = FILE_TYPES.iter().position(|known| *known == stat.file_type).unwrap_or_default();
    packer.byte(u8::try_from(file_type).unwrap_or_default());
    // What is not the same at the next look although nothing changed is left out: the mount it is reached through.
    for number in
        [stat.mode.into(), stat.uid.into(), stat.gid.into(), stat.size, stat.ino, stat.nlink.into(), stat.blocks]
    {
        packer.number(number);
    }
    packer.time(stat.mtime);
    packer.time(stat.ctime);
    packer.device(stat.device);
    packer.device(stat.rdev);
    let Marks { opaque, has_xattr_whiteouts, whiteout, redirect, metacopy, origin, indexed } = *marks;
    let flags = [stat.mount_root, opaque, has_xattr_whiteouts, whiteout, redirect, metacopy, origin, indexed];
    packer.byte(flags.iter().rev().fold(0, |byte, flag| byte << 1 | u8::from(*flag)));
    packer.number(kept.len() as u64);
    for text in kept.iter().flat_map(|(name, value)| [name, value]) {
        packer.text(text);
    }
    packer.number(*dropped);
    packer.text(target);
}

fn unpack_seen(unpacker: &mut Unpacker<'_>) -> Option<Seen> {
    let file_type = *FILE_TYPES.get(usize::from(unpacker.byte()?))?;
    let (mode, uid, gid) = (unpacker.small()?, unpacker.small()?, unpacker.small()?);
    let (size, ino, nlink, blocks) = (unpacker.number()?, unpacker.number()?, unpacker.small()?, unpacker.number()?);
    let (mtime, ctime) = (unpacker.time()?, unpacker.time()?);
    let (device, rdev) = (unpacker.device()?, unpacker.device()?);
    let flags = unpacker.byte()?;
    let flag = |bit: u8| flags >> bit & 1 == 1;
    let stat = Stat {
        file_type,
        mode,
        uid,
        gid,
        size,
        mtime,
        ctime,
        ino,
        device,
        rdev,
        nlink,
        blocks,
        mount_id: 0,
        mount_root: flag(0),
    };
    let marks = Marks {
        opaque: flag(1),
        has_xattr_whiteouts: flag(2),
        whiteout: flag(3),
        redirect: flag(4),
        metacopy: flag(5),
        origin: flag(6),
        indexed: flag(7),
    };
    let count = unpacker.length()?;
    let mut kept = Vec::with_capacity(count.min(64));
    for _ in 0..count {
        kept.push((unpacker.text()?.to_vec(), unpacker.text()?.to_vec()));
    }
    let dropped = unpacker.number()?;
    let target = unpacker.text()?.to_vec();
    Some(Seen { stat, xattrs: Xattrs { marks, kept, dropped }, target })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Progress;
    use std::os::unix::fs::symlink;

    fn tree() -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        for n in 0..3 {
            std::fs::create_dir_all(temp.path().join(format!("d{n}/e/f"))).unwrap();
            std::fs::write(temp.path().join(format!("d{n}/e/file")), vec![n; 100]).unwrap();
            symlink("target", temp.path().join(format!("d{n}/link"))).unwrap();
        }
        temp
    }

    #[test]
    fn a_look_that_is_remembered_is_worth_another() {
        let temp = tree();
        let (source, progress) = (Source::Directory(temp.path().to_owned()), Progress::new());
        let mut snapshot = Snapshot::take(&source, &[], &progress).unwrap();
        let changes = snapshot.changes(&progress).unwrap();
        let later = Time { seconds: i64::MAX / 2, nanoseconds: 0 };
        let bytes = snapshot.remember(&Earlier::of(&changes, |_| false), later);
        let recall = |bytes: &[u8]| Snapshot::recall(bytes, &source, &[]).unwrap();

        let (mut again, earlier) = recall(&bytes).unwrap();
        assert!(again.update(false, &progress).unwrap().is_empty());
        assert_eq!(again.objects(), snapshot.objects());
        let now = again.changes_since(&earlier, &progress).unwrap();
        assert_eq!(now.entries, changes.entries);
        assert_eq!(earlier.difference(&now).unwrap().entries, []);
        // What had not settled is looked at again.
        let unsure = snapshot.remember(&Earlier::of(&changes, |_| false), Time::default());
        assert_eq!(recall(&unsure).unwrap().0.update(false, &progress).unwrap().files.len(), 3);

        std::fs::write(temp.path().join("d1/e/file"), "other").unwrap();
        std::fs::remove_dir_all(temp.path().join("d2")).unwrap();
        std::fs::write(temp.path().join("new"), "").unwrap();
        assert!(!again.update(false, &progress).unwrap().is_empty());
        let now = again.changes_since(&earlier, &progress).unwrap();
        let difference = earlier.difference(&now).unwrap();
        let lines: Vec<_> =
            difference.entries.iter().map(|entry| (entry.letter(), String::from_utf8_lossy(&entry.path))).collect();
        let paths: Vec<_> = lines.iter().map(|(letter, path)| format!("{letter} {path}")).collect();
        assert_eq!(paths, ["A ", "D d2", "A d1", "A d1/e", "A d1/e/file", "A new"]);

        // What is gone takes no room any more.
        let later = again.remember(&earlier, later);
        assert!(again.bytes > recall(&later).unwrap().0.bytes);
        assert_eq!(recall(&later).unwrap().0.bytes, Snapshot::take(&source, &[], &progress).unwrap().bytes);
        // Of another directory, and of any other bytes.
        let other = tree();
        assert!(Snapshot::recall(&bytes, &Source::Directory(other.path().to_owned()), &[]).unwrap().is_none());
        assert!((0..bytes.len()).all(|length| recall(&bytes[..length]).is_none()));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x81;
            drop(recall(&damaged)); // the check line is what tells; this must not end the program
        }
    }
}
