//! The tree's words in the kernel's.

use std::time::Duration;

use fuser::{FileAttr, FileType, FopenFlags, INodeNo, OpenAccMode, OpenFlags, PollEvents, Request};

use crate::sys::abi;
use crate::tree::{Access, Attr, Caller, Kind, Lifetime, Ready};

/// The unit of statfs(2), and what stat(2) recommends for reading, in bytes.
pub(crate) const BLOCK: u32 = 4096;

/// Text and control files bypass the page cache: what is read was made at open, and a write reaches the tree as it is.
/// No flush: shells close, hence flush, before they write, so it would say nothing.
pub(crate) const VOLATILE_FLAGS: FopenFlags = FopenFlags::FOPEN_DIRECT_IO.union(FopenFlags::FOPEN_NOFLUSH);

/// As before, but every close is told of: it is when an archive's images get their names.
pub(crate) const IMPORT_FLAGS: FopenFlags = FopenFlags::FOPEN_DIRECT_IO;

/// How long the kernel may keep a name and its attributes.
pub(crate) fn ttl(lifetime: Lifetime) -> Duration {
    match lifetime {
        Lifetime::Volatile => Duration::ZERO,
        Lifetime::Immutable => Duration::from_secs(24 * 60 * 60),
    }
}

/// A listing that never changes stays in the page cache.
pub(crate) fn directory_flags(lifetime: Lifetime) -> FopenFlags {
    match lifetime {
        Lifetime::Volatile => FopenFlags::empty(),
        Lifetime::Immutable => FopenFlags::FOPEN_CACHE_DIR | FopenFlags::FOPEN_KEEP_CACHE,
    }
}

/// The type of a node.
pub(crate) fn kind(kind: Kind) -> FileType {
    match kind {
        Kind::Directory => FileType::Directory,
        Kind::File => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Fifo => FileType::NamedPipe,
    }
}

/// What stat(2) shows.
pub(crate) fn attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino),
        size: attr.size,
        blocks: attr.size.div_ceil(512),
        atime: attr.time,
        mtime: attr.time,
        ctime: attr.time,
        crtime: attr.time,
        kind: kind(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: device(attr.device),
        blksize: BLOCK,
        flags: 0,
    }
}

/// A device's numbers as the protocol has them: the kernel's `new_encode_dev`.
fn device((major, minor): (u32, u32)) -> u32 {
    (minor & 0xff) | (major << 8) | ((minor & !0xff) << 12)
}

/// A file of an image: its pages stay for good, and closing it says nothing.
pub(crate) const CONTENT_FLAGS: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

/// What open(2) was asked for.
pub(crate) fn access(flags: OpenFlags) -> Access {
    let (read, write) = match flags.acc_mode() {
        OpenAccMode::O_RDONLY => (true, false),
        OpenAccMode::O_WRONLY => (false, true),
        OpenAccMode::O_RDWR => (true, true),
    };
    Access { read, write, nonblock: flags.0 & abi::O_NONBLOCK != 0 }
}

/// Whether open(2) empties the file.
pub(crate) fn empties(flags: OpenFlags) -> bool {
    flags.0 & abi::O_TRUNC != 0
}

/// Whether a write goes to the file's end, wherever the kernel thinks that is.
pub(crate) fn appends(flags: OpenFlags) -> bool {
    flags.0 & abi::O_APPEND != 0
}

/// Who asks. `pid` of the protocol is the thread's id.
pub(crate) fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), tid: request.pid() }
}

/// What poll(2) reports.
pub(crate) fn poll_events(ready: Ready) -> PollEvents {
    let mut events = PollEvents::empty();
    events.set(PollEvents::POLLIN | PollEvents::POLLRDNORM, ready.read);
    events.set(PollEvents::POLLOUT | PollEvents::POLLWRNORM, ready.write);
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn open_flags_are_taken_apart() {
        assert_eq!(access(OpenFlags(0)), Access { read: true, write: false, nonblock: false });
        assert_eq!(access(OpenFlags(1 | abi::O_NONBLOCK)), Access { read: false, write: true, nonblock: true });
        assert_eq!(access(OpenFlags(2)), Access { read: true, write: true, nonblock: false });
    }

    #[test]
    fn blocks_cover_the_size() {
        let node = Attr {
            ino: 7,
            kind: Kind::File,
            mode: 0o444,
            nlink: 1,
            uid: 0,
            gid: 0,
            size: 513,
            device: (5, 0x1234),
            time: UNIX_EPOCH,
            lifetime: Lifetime::Volatile,
        };
        let shown = attr(&node);
        assert_eq!((shown.ino, shown.blocks, shown.perm), (INodeNo(7), 2, 0o444));
        assert_eq!(shown.rdev, 0x0120_0534);
    }

    #[test]
    fn only_the_immutable_is_cached() {
        assert_eq!(ttl(Lifetime::Volatile), Duration::ZERO);
        assert!(ttl(Lifetime::Immutable) >= Duration::from_secs(86_400));
        assert!(directory_flags(Lifetime::Volatile).is_empty());
        assert!(directory_flags(Lifetime::Immutable).contains(FopenFlags::FOPEN_CACHE_DIR));
    }

    #[test]
    fn readiness_is_told_in_both_spellings() {
        let events = poll_events(Ready { read: true, write: false });
        assert_eq!(events, PollEvents::POLLIN | PollEvents::POLLRDNORM);
    }
}
