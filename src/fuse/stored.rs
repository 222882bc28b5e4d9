//! Files that are files on disk: read by the kernel itself where it can (passthrough), by us where not.
//!
//! The kernel wants all opens of an inode to be of one kind, passthrough with one backing file or cached, as long as
//! any of them lasts; it answers `EIO` otherwise. So the first open decides and the last close ends it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use fuser::{BackingId, Errno, FileHandle, FopenFlags, ReplyData, ReplyOpen};
use parking_lot::Mutex;

use crate::fuse::convert::CONTENT_FLAGS;
use crate::tree::Archive;

/// Below this, in bytes, passthrough costs more than it saves: registering the file is dearer than one cached read.
const PASSTHROUGH_FROM: u64 = 256 * 1024;

/// All stored files that are open.
#[derive(Debug, Default)]
pub(crate) struct Stored {
    passthrough: AtomicBool,
    open: Mutex<Open>,
}

#[derive(Debug, Default)]
struct Open {
    handles: HashMap<u64, Handle>,
    inodes: HashMap<u64, Inode>,
}

#[derive(Debug)]
struct Handle {
    /// Of a file: none of an archive, which is made of several and always read by us.
    ino: Option<u64>,
    /// `None`: the tree reads it.
    bytes: Option<Bytes>,
}

/// What is behind an open.
#[derive(Debug, Clone)]
pub(crate) enum Bytes {
    File(Arc<File>),
    Archive(Arc<Archive>),
}

#[derive(Debug)]
struct Inode {
    opens: u64,
    /// `None`: cached.
    backing: Option<BackingId>,
}

impl Stored {
    /// Whether the kernel agreed to passthrough.
    pub(crate) fn allow_passthrough(&self, allowed: bool) {
        self.passthrough.store(allowed, Ordering::Relaxed);
    }

    /// Answer an open of `ino`, whose bytes are those of `file`.
    pub(crate) fn open(&self, ino: u64, fh: u64, file: Arc<File>, reply: ReplyOpen) {
        let mut open = self.open.lock();
        let Open { handles, inodes } = &mut *open;
        let inode = inodes.entry(ino).or_insert_with(|| Inode { opens: 0, backing: self.backing(&file, &reply) });
        inode.opens += 1;
        handles.insert(fh, Handle { ino: Some(ino), bytes: Some(Bytes::File(file)) });
        let fh = FileHandle(fh);
        // Answered under the lock, lest a release drop the backing file between.
        match &inode.backing {
            Some(backing) => reply.opened_passthrough(fh, FopenFlags::FOPEN_NOFLUSH, backing),
            None => reply.opened(fh, CONTENT_FLAGS),
        }
    }

    /// Answer an open of `ino` that the tree reads, and that may be a stored file another time.
    pub(crate) fn open_other(&self, ino: u64, fh: u64, reply: ReplyOpen) {
        let mut open = self.open.lock();
        let Open { handles, inodes } = &mut *open;
        let inode = inodes.entry(ino).or_insert_with(|| Inode { opens: 0, backing: None });
        inode.opens += 1;
        handles.insert(fh, Handle { ino: Some(ino), bytes: None });
        let fh = FileHandle(fh);
        match &inode.backing {
            // Somebody opened it when it was stored: the same bytes.
            Some(backing) => reply.opened_passthrough(fh, FopenFlags::FOPEN_NOFLUSH, backing),
            None => reply.opened(fh, CONTENT_FLAGS),
        }
    }

    /// Answer an open of an image's archive. Its bytes never change.
    pub(crate) fn open_archive(&self, fh: u64, archive: Arc<Archive>, reply: ReplyOpen) {
        self.open.lock().handles.insert(fh, Handle { ino: None, bytes: Some(Bytes::Archive(archive)) });
        reply.opened(FileHandle(fh), FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH);
    }

    fn backing(&self, file: &File, reply: &ReplyOpen) -> Option<BackingId> {
        let worth_it = file.metadata().is_ok_and(|metadata| metadata.len() >= PASSTHROUGH_FROM);
        if !worth_it || !self.passthrough.load(Ordering::Relaxed) {
            return None;
        }
        match reply.open_backing(file) {
            Ok(backing) => Some(backing),
            Err(error) => {
                // ELOOP where the store is on an overlay, EPERM without CAP_SYS_ADMIN.
                log::debug!("no passthrough, the file is read through the daemon: {error}");
                None
            }
        }
    }

    /// What is behind an open, if it is a stored one.
    pub(crate) fn bytes(&self, fh: u64) -> Option<Bytes> {
        self.open.lock().handles.get(&fh)?.bytes.clone()
    }

    /// An open ends.
    pub(crate) fn release(&self, fh: u64) {
        let mut open = self.open.lock();
        let Some(handle) = open.handles.remove(&fh) else { return };
        let Some(ino) = handle.ino else { return };
        if let Some(inode) = open.inodes.get_mut(&ino) {
            inode.opens -= 1;
            if inode.opens == 0 {
                open.inodes.remove(&ino);
            }
        }
    }
}

/// Answer a read of a stored file.
pub(crate) fn read(bytes: &Bytes, offset: u64, size: u32, reply: ReplyData) {
    thread_local! {
        // One a loop thread, as large as the largest request it met.
        static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    }
    BUFFER.with_borrow_mut(|buffer| {
        let size = size as usize;
        if buffer.len() < size {
            buffer.resize(size, 0);
        }
        let part = &mut buffer[..size];
        let filled = match bytes {
            Bytes::File(file) => read_full(file, offset, part),
            Bytes::Archive(archive) => archive.read_at(offset, part),
        };
        match filled {
            Ok(count) => reply.data(&buffer[..count]),
            Err(error) => {
                log::error!("reading a stored file at {offset}: {error}");
                reply.error(Errno::EIO);
            }
        }
    });
}

/// Fill `buffer`, save at the end of the file: the kernel takes a short read for the end.
fn read_full(file: &File, offset: u64, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut count = 0;
    while count < buffer.len() {
        match file.read_at(&mut buffer[count..], offset + count as u64) {
            Ok(0) => break,
            Ok(more) => count += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_read_is_short_only_at_the_end() {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(b"0123456789", 0).unwrap();
        let mut buffer = [0; 8];
        assert_eq!(read_full(&file, 0, &mut buffer).unwrap(), 8);
        assert_eq!(read_full(&file, 6, &mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"6789");
        assert_eq!(read_full(&file, 10, &mut buffer).unwrap(), 0);
    }
}
