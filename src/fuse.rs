//! The kernel's requests, one call into the [`Tree`] each.
//!
//! This file and its children are the only ones that name `fuser`. They hold no state of the tree: what they keep is
//! what the kernel's protocol asks for (which opens share a backing file, which requests wait). What must hold:
//!
//! - Every operation is answered. An `ENOSYS` would be remembered by the kernel for the whole connection, so it is
//!   given only where the kernel's own fallback is the answer we want.
//! - No loop thread blocks. What cannot be answered now is parked with [`waiters`], which also frees the callers that
//!   a signal wants back: fuser 0.18 does not serve `FUSE_INTERRUPT`.
//! - A panic below costs one request (`EIO` and a line in the log), never a thread.
//! - The daemon never touches its own mount: [`session`] mounts and unmounts by what mountinfo says.

mod convert;
mod errno;
mod later;
mod session;
mod stored;
mod view;
mod waiters;
mod writers;

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Generation, INodeNo, InitFlags, IoctlFlags,
    KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen,
    ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};

use crate::sys::abi;
use crate::sys::process::is_told_to_end;
use crate::tree::{self, Attr, Change, Kind, Opened, Reply, Tree, is_in_view};

use errno::{failed, panic_message};
pub use session::{Error, Options, Session, Target, Unmounter, remount};

/// The largest read or write in one request, in bytes: what `fs.fuse.max_pages_limit` allows by default.
const MAX_REQUEST: u32 = 1 << 20;

/// Inode numbers are never reused (the tree's promise), so the generation says nothing.
const GENERATION: Generation = Generation(0);

/// The tree, as the kernel sees it.
pub(crate) struct Fuse {
    tree: Arc<Tree>,
    waiters: waiters::Waiters,
    stored: Arc<stored::Stored>,
    writers: Arc<writers::Writers>,
}

impl fmt::Debug for Fuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fuse").finish_non_exhaustive()
    }
}

impl Fuse {
    fn new(tree: Arc<Tree>) -> io::Result<Fuse> {
        let waiters = waiters::Waiters::start(tree.completions())?;
        Ok(Fuse { tree, waiters, stored: Arc::default(), writers: Arc::default() })
    }

    /// One call into the tree, whose failures and panics become an errno.
    fn call<T>(
        &self,
        operation: &'static str,
        ino: INodeNo,
        call: impl FnOnce(&Tree) -> Result<T, tree::Error>,
    ) -> Result<T, Errno> {
        match catch_unwind(AssertUnwindSafe(|| call(&self.tree))) {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(failed(operation, ino, &error)),
            Err(panic) => {
                log::error!("{operation} of inode {ino} panicked: {}", panic_message(&*panic));
                Err(Errno::EIO)
            }
        }
    }

    /// What `name` is, under the number that this caller is to see.
    fn look_up(&self, request: &Request, parent: INodeNo, name: &OsStr) -> Result<Attr, Errno> {
        let mut attr = self.call("lookup", parent, |tree| tree.lookup(parent.0, name))?;
        if attr.kind == Kind::File {
            attr.ino = self.writers.look_up(attr.ino, request.pid());
        }
        Ok(attr)
    }

    /// Attributes under the number that they were asked for.
    fn attr(&self, ino: INodeNo) -> Result<Attr, Errno> {
        let node = self.writers.resolve(ino.0);
        self.call("getattr", ino, |tree| tree.attr(node)).map(|attr| Attr { ino: ino.0, ..attr })
    }

    fn forget_lookups(&self, ino: u64, count: u64) {
        if is_in_view(ino) {
            return;
        }
        let node = self.writers.forget(ino, count);
        let _ = self.call("forget", INodeNo(ino), |tree| {
            tree.forget(node, count);
            Ok(())
        });
    }

    fn refuse(&self, parent: INodeNo, what: &'static str) -> Errno {
        match self.call(what, parent, |tree| Err::<(), _>(tree.refuse(parent.0, what))) {
            Ok(()) => Errno::EPERM,
            Err(errno) => errno,
        }
    }
}

impl fuser::Filesystem for Fuse {
    fn init(&mut self, _: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // Not READDIRPLUS_AUTO: with cached directories it turns the first `ls -l` into one LOOKUP a name. Not
        // CACHE_SYMLINKS: jobs/last changes. Not WRITEBACK_CACHE: a write must reach us before write(2) returns.
        // ATOMIC_O_TRUNC spares the shells' `>` a SETATTR. POSIX_ACL: the files of images have some.
        for wanted in [
            InitFlags::FUSE_DO_READDIRPLUS,
            InitFlags::FUSE_PARALLEL_DIROPS,
            InitFlags::FUSE_ATOMIC_O_TRUNC,
            InitFlags::FUSE_POSIX_ACL,
            InitFlags::FUSE_PASSTHROUGH,
        ] {
            let missing = config.add_capabilities(wanted).is_err();
            if wanted == InitFlags::FUSE_PASSTHROUGH && !missing {
                // Depth 1 keeps overlayfs on top of the mount possible.
                self.stored.allow_passthrough(config.set_max_stack_depth(1).is_ok());
            }
        }
        let _ = config.set_max_write(MAX_REQUEST);
        let _ = config.set_max_background(64);
        Ok(())
    }

    fn lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        if is_in_view(parent.0) {
            return self.view_lookup(request, parent, name, reply);
        }
        match self.look_up(request, parent, name) {
            Ok(attr) => reply.entry(&convert::ttl(attr.lifetime), &convert::attr(&attr), GENERATION),
            Err(errno) => reply.error(errno),
        }
    }

    fn forget(&self, _: &Request, ino: INodeNo, count: u64) {
        self.forget_lookups(ino.0, count);
    }

    fn getattr(&self, request: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        if is_in_view(ino.0) {
            return self.view_attr(request, ino, reply);
        }
        match self.attr(ino) {
            Ok(attr) => reply.attr(&convert::ttl(attr.lifetime), &convert::attr(&attr)),
            Err(errno) => reply.error(errno),
        }
    }

    fn setattr(
        &self,
        request: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = Change {
            size,
            mode: mode.is_some(),
            owner: uid.is_some() || gid.is_some(),
            times: atime.is_some() || mtime.is_some(),
        };
        let node = self.writers.resolve(ino.0);
        let resized = self.call("setattr", ino, |tree| match size {
            Some(size) => tree.resize(node, size, &convert::caller(request)),
            None => Ok(Reply::Now(())),
        });
        let tree = Arc::clone(&self.tree);
        let set = move || tree.set_attr(node, change).map_err(|error| failed("setattr", ino, &error));
        self.later("setattr", ino, request, resized, move |resized| match resized.and_then(|()| set()) {
            Ok(attr) => reply.attr(&convert::ttl(attr.lifetime), &convert::attr(&Attr { ino: ino.0, ..attr })),
            Err(errno) => reply.error(errno),
        });
    }

    fn readlink(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        if is_in_view(ino.0) {
            return self.view_read_link(request, ino, reply);
        }
        match self.call("readlink", ino, |tree| tree.read_link(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(errno) => reply.error(errno),
        }
    }

    fn opendir(&self, request: &Request, ino: INodeNo, _: OpenFlags, reply: ReplyOpen) {
        if is_in_view(ino.0) {
            return self.view_open_dir(request, ino, reply);
        }
        let opened = self.call("opendir", ino, |tree| Ok((tree.attr(ino.0)?.lifetime, tree.open_dir(ino.0)?)));
        match opened {
            Ok((lifetime, fh)) => reply.opened(FileHandle(fh), convert::directory_flags(lifetime)),
            Err(errno) => reply.error(errno),
        }
    }

    fn readdir(&self, _: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        if is_in_view(ino.0) {
            return self.view_read_dir(ino, fh, offset, reply);
        }
        let entries = match self.call("readdir", ino, |tree| tree.read_dir(fh.0)) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        for (next, entry) in (1u64..).zip(entries.iter()).skip(offset.try_into().unwrap_or(usize::MAX)) {
            if reply.add(INodeNo(entry.ino), next, convert::kind(entry.kind), &entry.name) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, request: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        if is_in_view(ino.0) {
            return self.view_read_dir_plus(ino, fh, offset, reply);
        }
        let entries = match self.call("readdirplus", ino, |tree| tree.read_dir(fh.0)) {
            Ok(entries) => entries,
            Err(errno) => return reply.error(errno),
        };
        for (next, entry) in (1u64..).zip(entries.iter()).skip(offset.try_into().unwrap_or(usize::MAX)) {
            // The kernel takes no reference on these two, and forgets none.
            let dots = entry.name == "." || entry.name == "..";
            let attr = if dots { self.attr(INodeNo(entry.ino)) } else { self.look_up(request, ino, &entry.name) };
            let Ok(attr) = attr else { continue }; // removed since the listing was made
            let ttl = convert::ttl(attr.lifetime);
            let full = reply.add(INodeNo(attr.ino), next, &entry.name, &ttl, &convert::attr(&attr), GENERATION);
            if full {
                if !dots {
                    self.forget_lookups(attr.ino, 1);
                }
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _: &Request, ino: INodeNo, fh: FileHandle, _: OpenFlags, reply: ReplyEmpty) {
        let _ = self.call("releasedir", ino, |tree| {
            tree.release_dir(fh.0);
            Ok(())
        });
        reply.ok();
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let (access, caller) = (convert::access(flags), convert::caller(request));
        if is_in_view(ino.0) {
            return if access.write { reply.error(Errno::EROFS) } else { self.view_open(request, ino, reply) };
        }
        if access.write && self.writers.admit(ino.0, caller.tid).is_err() {
            return reply.error(Errno::ESTALE); // the kernel looks up again, and is given another number
        }
        let node = self.writers.resolve(ino.0);
        match self.call("open", ino, |tree| tree.open(node, access, &caller)) {
            Ok(Opened::Text { fh }) => reply.opened(FileHandle(fh), convert::VOLATILE_FLAGS),
            Ok(Opened::Control { fh }) => {
                if access.write {
                    self.writers.opened(ino.0, fh, caller.tid);
                }
                if convert::empties(flags) {
                    self.tree.opened_empty(fh);
                }
                reply.opened(FileHandle(fh), convert::VOLATILE_FLAGS);
            }
            Ok(Opened::Import { fh }) => {
                self.writers.opened(ino.0, fh, caller.tid);
                reply.opened(FileHandle(fh), convert::IMPORT_FLAGS);
            }
            Ok(Opened::Archive { fh, archive }) => self.stored.open_archive(fh, archive, reply),
            Ok(Opened::Stored { fh, file }) => self.stored.open(node, fh, file, reply),
            Ok(Opened::Content { fh, .. }) => reply.opened(FileHandle(fh), convert::CONTENT_FLAGS),
            Err(errno) => reply.error(errno),
        }
    }

    fn read(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        if let Some(bytes) = self.stored.bytes(fh.0) {
            return stored::read(&bytes, offset, size, reply);
        }
        match self.call("read", ino, |tree| tree.read(fh.0, offset, size)) {
            Ok(Reply::Now(bytes)) => reply.data(&bytes),
            Ok(Reply::Later(mut ticket)) => self.waiters.park(
                request.pid(),
                move || Some(ticket.poll()?.map_err(|error| failed("read", ino, &error))),
                move |result| match result {
                    Ok(bytes) => reply.data(&bytes),
                    Err(errno) => reply.error(errno),
                },
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn write(
        &self,
        request: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        _: WriteFlags,
        flags: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let nonblock = convert::access(flags).nonblock;
        let offset = if convert::appends(flags) { tree::AT_END } else { offset };
        let written =
            self.call("write", ino, |tree| tree.write(fh.0, offset, data, nonblock, &convert::caller(request)));
        match written {
            Ok(Reply::Now(count)) => reply.written(count),
            Ok(Reply::Later(mut ticket)) => {
                let (tree, tid) = (Arc::clone(&self.tree), request.pid());
                self.waiters.park(
                    tid,
                    move || Some(ticket.poll()?.map_err(|error| failed("write", ino, &error))),
                    move |result| match result {
                        Ok(count) => reply.written(count),
                        Err(errno) => {
                            // While the signal is still pending: it is gone once the caller has its answer.
                            if errno.code() == Errno::EINTR.code() && is_told_to_end(tid) {
                                tree.abandon(fh.0);
                            }
                            reply.error(errno);
                        }
                    },
                )
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, request: &Request, ino: INodeNo, fh: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        // Only of archives: a shell flushes a control file before its first write, and its errors come from write alone.
        match self.call("flush", ino, |tree| tree.flush(fh.0)) {
            Ok(Reply::Now(())) => reply.ok(),
            Ok(Reply::Later(mut ticket)) => self.waiters.park(
                request.pid(),
                move || Some(ticket.poll()?.map_err(|error| failed("flush", ino, &error))),
                move |result| answer(reply, result),
            ),
            Err(errno) => reply.error(errno),
        }
    }

    fn fsync(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        reply.ok(); // a write that returned is durable
    }

    fn release(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _: OpenFlags,
        _: Option<LockOwner>,
        _: bool,
        reply: ReplyEmpty,
    ) {
        self.stored.release(fh.0);
        self.writers.release(fh.0);
        self.waiters.forget(fh.0);
        let _ = self.call("release", ino, |tree| {
            tree.release(fh.0);
            Ok(())
        });
        reply.ok();
    }

    fn poll(
        &self,
        _: &Request,
        ino: INodeNo,
        fh: FileHandle,
        notifier: PollNotifier,
        events: PollEvents,
        flags: PollFlags,
        reply: ReplyPoll,
    ) {
        if self.stored.bytes(fh.0).is_some() {
            return reply.poll(events & (PollEvents::POLLIN | PollEvents::POLLRDNORM));
        }
        match self.call("poll", ino, |tree| tree.poll(fh.0)) {
            Ok(ready) => {
                let now = convert::poll_events(ready) & events;
                if now.is_empty() && flags.contains(PollFlags::FUSE_POLL_SCHEDULE_NOTIFY) {
                    let tree = Arc::clone(&self.tree);
                    self.waiters.watch(
                        fh.0,
                        move || match tree.poll(fh.0) {
                            Ok(ready) if (convert::poll_events(ready) & events).is_empty() => None,
                            Ok(_) | Err(_) => Some(Ok(())),
                        },
                        move |_| {
                            let _ = notifier.notify(); // fails only where nobody waits any more
                        },
                    );
                }
                reply.poll(now);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.call("unlink", parent, |tree| tree.unlink(parent.0, name, &convert::caller(request)));
        self.answer_later("unlink", parent, request, removed, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let removed = self.call("rmdir", parent, |tree| tree.remove_dir(parent.0, name, &convert::caller(request)));
        self.answer_later("rmdir", parent, request, removed, reply);
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !(flags - RenameFlags::RENAME_NOREPLACE).is_empty() {
            return reply.error(Errno::EINVAL); // rename(2): what a file system without RENAME_EXCHANGE says
        }
        let no_replace = flags.contains(RenameFlags::RENAME_NOREPLACE);
        let renamed = self.call("rename", parent, |tree| {
            tree.rename(parent.0, name, new_parent.0, new_name, no_replace, &convert::caller(request))
        });
        self.answer_later("rename", parent, request, renamed, reply);
    }

    fn create(&self, request: &Request, parent: INodeNo, name: &OsStr, _: u32, _: u32, flags: i32, reply: ReplyCreate) {
        let (flags, caller) = (OpenFlags(flags), convert::caller(request));
        let (access, exclusive) = (convert::access(flags), flags.0 & abi::O_EXCL != 0);
        let made = self.call("create", parent, |tree| tree.create(parent.0, name, exclusive, &caller));
        let (tree, writers, name) = (Arc::clone(&self.tree), Arc::clone(&self.writers), name.to_owned());
        let open = move || {
            let found = tree.lookup(parent.0, &name).and_then(|attr| Ok((tree.open(attr.ino, access, &caller)?, attr)));
            found.map_err(|error| failed("create", parent, &error))
        };
        self.later("create", parent, request, made, move |made| match made.and_then(|()| open()) {
            Ok((opened, mut attr)) => {
                let fh = opened.fh();
                attr.ino = writers.look_up(attr.ino, caller.tid);
                if access.write {
                    writers.opened(attr.ino, fh, caller.tid);
                }
                let (ttl, fh) = (convert::ttl(attr.lifetime), FileHandle(fh));
                reply.created(&ttl, &convert::attr(&attr), GENERATION, fh, convert::VOLATILE_FLAGS);
            }
            Err(errno) => reply.error(errno),
        });
    }

    fn mknod(&self, _: &Request, parent: INodeNo, _: &OsStr, _: u32, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(self.refuse(parent, "mknod"));
    }

    fn mkdir(&self, _: &Request, parent: INodeNo, _: &OsStr, _: u32, _: u32, reply: ReplyEntry) {
        reply.error(self.refuse(parent, "mkdir"));
    }

    fn symlink(&self, _: &Request, parent: INodeNo, _: &OsStr, _: &Path, reply: ReplyEntry) {
        reply.error(self.refuse(parent, "symlink"));
    }

    fn link(&self, _: &Request, _: INodeNo, parent: INodeNo, _: &OsStr, reply: ReplyEntry) {
        reply.error(self.refuse(parent, "link"));
    }

    fn statfs(&self, _: &Request, ino: INodeNo, reply: ReplyStatfs) {
        match self.call("statfs", ino, Tree::statfs) {
            Ok(space) => {
                let [blocks, free] = [space.bytes, space.free].map(|bytes| bytes / u64::from(convert::BLOCK));
                let [block, name] = [convert::BLOCK, 255];
                reply.statfs(blocks, free, free, space.files, space.files_free, block, name, block);
            }
            Err(errno) => reply.error(errno),
        }
    }

    fn access(&self, _: &Request, _: INodeNo, _: AccessFlags, reply: ReplyEmpty) {
        reply.ok(); // the kernel decides: default_permissions
    }

    fn getxattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if is_in_view(ino.0) {
            return self.view_xattr(request, ino, name, size, reply);
        }
        reply.error(Errno::ENODATA);
    }

    fn listxattr(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        if is_in_view(ino.0) {
            return self.view_xattr_names(request, ino, size, reply);
        }
        if size == 0 { reply.size(0) } else { reply.data(&[]) }
    }

    fn setxattr(&self, _: &Request, _: INodeNo, _: &OsStr, _: &[u8], _: i32, _: u32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn removexattr(&self, _: &Request, _: INodeNo, _: &OsStr, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn ioctl(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: IoctlFlags,
        _: u32,
        _: &[u8],
        _: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn fallocate(&self, _: &Request, _: INodeNo, _: FileHandle, _: u64, _: u64, _: i32, reply: ReplyEmpty) {
        reply.error(Errno::EOPNOTSUPP);
    }

    fn lseek(&self, _: &Request, _: INodeNo, _: FileHandle, _: i64, _: i32, reply: ReplyLseek) {
        reply.error(Errno::ENOSYS); // from now on the kernel answers SEEK_HOLE itself: our files have none
    }

    fn copy_file_range(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: INodeNo,
        _: FileHandle,
        _: u64,
        _: u64,
        _: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS); // from now on the kernel reads and writes instead
    }
}

fn answer(reply: ReplyEmpty, result: Result<(), Errno>) {
    match result {
        Ok(()) => reply.ok(),
        Err(errno) => reply.error(errno),
    }
}
