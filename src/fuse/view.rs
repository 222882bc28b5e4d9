//! Requests that concern a file of an image: answered at once if its tree is there, else when it is.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use fuser::{
    Errno, FileHandle, INodeNo, ReplyAttr, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEntry, ReplyOpen,
    ReplyXattr, Request,
};

use crate::fuse::{Fuse, GENERATION, convert, failed};
use crate::tree::{self, ErrorKind, InView, Lifetime, Opened, Reply, Tree};

/// A reply that can say that there is none.
pub(crate) trait Refuse: Send + 'static {
    fn refuse(self, errno: Errno);
}

macro_rules! refuse {
    ($($reply:ty)*) => {
        $(impl Refuse for $reply {
            fn refuse(self, errno: Errno) {
                self.error(errno);
            }
        })*
    };
}

refuse!(ReplyEntry ReplyAttr ReplyData ReplyOpen ReplyXattr);

impl Fuse {
    /// Have `answer` called with the file, or refuse.
    fn in_view<R: Refuse>(
        &self,
        operation: &'static str,
        request: &Request,
        ino: INodeNo,
        reply: R,
        answer: impl FnOnce(&Tree, InView, R) + Send + 'static,
    ) {
        match self.call(operation, ino, |tree| tree.in_view(ino.0)) {
            Ok(Reply::Now(at)) => answer(&self.tree, at, reply),
            Ok(Reply::Later(mut ticket)) => {
                let tree = Arc::clone(&self.tree);
                self.waiters.park(
                    request.pid(),
                    move || Some(ticket.poll()?.map_err(|error| failed(operation, ino, &error))),
                    move |found| match found {
                        Ok(at) => answer(&tree, at, reply),
                        Err(errno) => reply.refuse(errno),
                    },
                );
            }
            Err(errno) => reply.refuse(errno),
        }
    }

    pub(crate) fn view_lookup(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = name.to_owned();
        self.in_view("lookup", request, parent, reply, move |_, at, reply| match at.lookup(&name) {
            Ok(attr) => reply.entry(&convert::ttl(attr.lifetime), &convert::attr(&attr), GENERATION),
            // Without a number: that there is none is as true tomorrow, and libraries are looked for in many places.
            Err(error) if error.kind == ErrorKind::NotFound => match at.attr() {
                Ok(attr) => reply.entry(
                    &convert::ttl(Lifetime::Immutable),
                    &convert::attr(&tree::Attr { ino: 0, ..attr }),
                    GENERATION,
                ),
                Err(error) => reply.error(failed("lookup", parent, &error)),
            },
            Err(error) => reply.error(failed("lookup", parent, &error)),
        });
    }

    pub(crate) fn view_attr(&self, request: &Request, ino: INodeNo, reply: ReplyAttr) {
        self.in_view("getattr", request, ino, reply, move |_, at, reply| match at.attr() {
            Ok(attr) => reply.attr(&convert::ttl(attr.lifetime), &convert::attr(&attr)),
            Err(error) => reply.error(failed("getattr", ino, &error)),
        });
    }

    pub(crate) fn view_read_link(&self, request: &Request, ino: INodeNo, reply: ReplyData) {
        self.in_view("readlink", request, ino, reply, move |_, at, reply| match at.read_link() {
            Ok(target) => reply.data(&target),
            Err(error) => reply.error(failed("readlink", ino, &error)),
        });
    }

    pub(crate) fn view_open_dir(&self, request: &Request, ino: INodeNo, reply: ReplyOpen) {
        self.in_view("opendir", request, ino, reply, |tree, at, reply| {
            let fh = tree.open_dir_in_view(at);
            reply.opened(FileHandle(fh), convert::directory_flags(Lifetime::Immutable));
        });
    }

    pub(crate) fn view_open(&self, request: &Request, ino: INodeNo, reply: ReplyOpen) {
        let stored = Arc::clone(&self.stored);
        self.in_view("open", request, ino, reply, move |tree, at, reply| match tree.open_in_view(&at) {
            Ok(Opened::Stored { fh, file }) => stored.open(ino.0, fh, file, reply),
            Ok(Opened::Content { fh, large: true }) => stored.open_other(ino.0, fh, reply),
            Ok(opened) => reply.opened(FileHandle(opened.fh()), convert::CONTENT_FLAGS),
            Err(error) => reply.error(failed("open", ino, &error)),
        });
    }

    pub(crate) fn view_xattr(&self, request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let name: OsString = name.to_owned();
        self.in_view("getxattr", request, ino, reply, move |_, at, reply| {
            answer_xattr(reply, size, ino, at.xattr(&name));
        });
    }

    pub(crate) fn view_xattr_names(&self, request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.in_view("listxattr", request, ino, reply, move |_, at, reply| {
            answer_xattr(reply, size, ino, Ok(at.xattr_names()));
        });
    }

    pub(crate) fn view_read_dir(&self, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let at = match self.call("readdir", ino, |tree| tree.dir_in_view(fh.0)) {
            Ok(at) => at,
            Err(errno) => return reply.error(errno),
        };
        for (next, name, attr) in entries(&at, ino, offset) {
            if reply.add(INodeNo(attr.ino), next, convert::kind(attr.kind), name) {
                break;
            }
        }
        reply.ok();
    }

    pub(crate) fn view_read_dir_plus(&self, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let at = match self.call("readdirplus", ino, |tree| tree.dir_in_view(fh.0)) {
            Ok(at) => at,
            Err(errno) => return reply.error(errno),
        };
        // The kernel counts lookups of what it is told here; nobody else does.
        for (next, name, attr) in entries(&at, ino, offset) {
            let ttl = convert::ttl(attr.lifetime);
            if reply.add(INodeNo(attr.ino), next, name, &ttl, &convert::attr(&attr), GENERATION) {
                break;
            }
        }
        reply.ok();
    }
}

/// The listing from `offset` on: the offset of the next entry, the name, the attributes. `.` and `..` come first.
fn entries(at: &InView, ino: INodeNo, offset: u64) -> impl Iterator<Item = (u64, &OsStr, tree::Attr)> {
    let offset = usize::try_from(offset).unwrap_or(usize::MAX);
    let own = at.attr().ok().map(|attr| tree::Attr { ino: ino.0, ..attr });
    let dots = [".", ".."].into_iter().filter_map(move |name| Some((OsStr::new(name), own.clone()?))).skip(offset);
    let files = at.entries(offset.saturating_sub(2)).map(|(name, attr)| (OsStr::from_bytes(name), attr));
    (offset as u64 + 1..).zip(dots.chain(files)).map(|(next, (name, attr))| (next, name, attr))
}

/// Without room the length is asked for; with too little there is an error.
fn answer_xattr(reply: ReplyXattr, size: u32, ino: INodeNo, value: Result<Vec<u8>, tree::Error>) {
    match value {
        Ok(value) => match u32::try_from(value.len()) {
            Ok(length) if size == 0 => reply.size(length),
            Ok(length) if length <= size => reply.data(&value),
            _ => reply.error(Errno::ERANGE),
        },
        Err(error) => reply.error(failed("getxattr", ino, &error)),
    }
}
