//! [`Tree`]: a file system without FUSE.
//!
//! A path becomes a node, a node bytes, a written line a command. `fuse` binds it to the kernel, tests drive it as it
//! is. What must hold: nothing here waits (what takes time is a [`Reply::Later`]); reading changes nothing; a control
//! file's errors come from the write, as a kind for errno and a sentence for `last_error`.

mod attr;
mod containers;
mod control;
mod describe;
mod file;
mod handle;
mod images;
mod import;
mod inode;
mod jobs;
mod labels;
mod later;
mod node;
mod query;
mod view;
mod written;

pub use crate::api::Archive;
pub use crate::api::{Error, ErrorKind};
pub use attr::{Access, Attr, Caller, Change, DirEntry, Kind, Lifetime, Ready, Space};
pub use control::README;
pub use file::{ContainerFile, ImageFile, JobFile, LayerFile, RootFile};
pub use import::AT_END;
pub use view::{InView, is_in_view};

use std::ffi::OsStr;
use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use crossbeam_channel::Receiver;
use parking_lot::Mutex;

use crate::api::{ImageName, Snapfs};
use handle::{Conversation, Handle, Handles, slice};
use import::Receiving;
use inode::Inodes;
use node::Node;
use written::What;

/// What an open file is to the kernel.
#[derive(Debug)]
pub enum Opened {
    /// Text fixed at open, whose length getattr need not know: direct I/O.
    Text {
        /// The handle.
        fh: u64,
    },
    /// A control file: direct I/O, no flush.
    Control {
        /// The handle.
        fh: u64,
    },
    /// A file that takes an archive: direct I/O, and every close is told of.
    Import {
        /// The handle.
        fh: u64,
    },
    /// An image as an archive: the page cache may keep it for good.
    Archive {
        /// The handle.
        fh: u64,
        /// The archive.
        archive: Arc<Archive>,
    },
    /// A stored blob: the page cache may keep it for good.
    Stored {
        /// The handle.
        fh: u64,
        /// The blob.
        file: Arc<std::fs::File>,
    },
    /// A file of an image, decoded as it is read: the page cache may keep it for good.
    Content {
        /// The handle.
        fh: u64,
        /// Whether it may be a stored file when it is opened again.
        large: bool,
    },
}

impl Opened {
    /// The handle.
    pub fn fh(&self) -> u64 {
        match self {
            Opened::Text { fh }
            | Opened::Control { fh }
            | Opened::Import { fh }
            | Opened::Stored { fh, .. }
            | Opened::Content { fh, .. }
            | Opened::Archive { fh, .. } => *fh,
        }
    }
}

/// An answer, or the promise of one.
#[derive(Debug)]
pub enum Reply<T> {
    /// The answer.
    Now(T),
    /// It will come.
    Later(Ticket<T>),
}

/// The promise of an answer; ask again after each wake-up of [`Tree::completions`].
pub struct Ticket<T> {
    check: Box<dyn FnMut() -> Option<Result<T, Error>> + Send>,
}

impl<T> fmt::Debug for Ticket<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket").finish_non_exhaustive()
    }
}

impl<T> Ticket<T> {
    /// The answer, once it is there.
    pub fn poll(&mut self) -> Option<Result<T, Error>> {
        (self.check)()
    }
}

/// The tree of one mount.
#[derive(Debug)]
pub struct Tree {
    api: Arc<Snapfs>,
    inodes: Arc<Mutex<Inodes>>,
    handles: Mutex<Handles>,
    views: Mutex<view::Numbers>,
    /// Who may read containers and images, and write to control files, besides root.
    group: u32,
    started: SystemTime,
}

impl Tree {
    /// The tree over `api`, open to root and to the group `group`.
    pub fn new(api: Arc<Snapfs>, group: u32) -> Tree {
        let started = SystemTime::from(api.clock().now());
        Tree {
            api,
            inodes: Arc::new(Mutex::new(Inodes::new())),
            handles: Mutex::default(),
            views: Mutex::default(),
            group,
            started,
        }
    }

    /// A wake-up whenever some [`Ticket`] may have become ready.
    pub fn completions(&self) -> Receiver<()> {
        self.api.ended()
    }

    /// The entry `name` of `parent`; counts one lookup.
    pub fn lookup(&self, parent: u64, name: &OsStr) -> Result<Attr, Error> {
        let parent = self.node(parent)?;
        // All names here are UTF-8: what is not, is percent-encoded.
        let child = match name.to_str() {
            Some(name) => self.child(&parent, name)?,
            None => None,
        };
        let child = child.ok_or_else(|| not_found(name))?;
        if let Node::View(key, layer) = child {
            return self.describe_view(key, layer);
        }
        let attr = self.describe(&child, 0)?;
        let ino = self.inodes.lock().look_up(child);
        Ok(Attr { ino, ..attr })
    }

    /// The kernel forgets `lookups` lookups of `ino`.
    pub fn forget(&self, ino: u64, lookups: u64) {
        self.inodes.lock().forget(ino, lookups);
    }

    /// What `ino` looks like.
    pub fn attr(&self, ino: u64) -> Result<Attr, Error> {
        self.describe(&self.node(ino)?, ino)
    }

    /// Truncating and touching a control file is what shells do before they write: accepted, and without effect.
    pub fn set_attr(&self, ino: u64, change: Change) -> Result<Attr, Error> {
        let node = self.node(ino)?;
        if What::of(&node).is_some() {
            // Editors that write a new file give it the owner and mode of the old one, which it has already.
            return self.describe(&node, ino);
        }
        if change.owner || change.mode {
            return Err(Error::new(ErrorKind::Denied, "owner and mode are fixed; set gid= when mounting"));
        }
        if !node.is_control() {
            return Err(Error::new(ErrorKind::Denied, "only control files can be written"));
        }
        self.describe(&node, ino)
    }

    /// Where the symlink `ino` points to.
    pub fn read_link(&self, ino: u64) -> Result<Vec<u8>, Error> {
        use std::os::unix::ffi::OsStringExt;
        let gone = || Error::new(ErrorKind::NotFound, "what the link pointed to is gone");
        match self.node(ino)? {
            Node::ContainerRoot(key) => Ok(self.api.root_path(&key)?.into_os_string().into_vec()),
            Node::LayerBlob(key, at) => Ok(images::layer_blob(&self.api, &key, at)?.ok_or_else(gone)?.into_bytes()),
            Node::QueryLink(target) => Ok(target.as_bytes().to_vec()),
            Node::LastJob => Ok(self.api.last_job().ok_or_else(gone)?.to_string().into_bytes()),
            _ => Err(Error::new(ErrorKind::Invalid, "not a symbolic link")),
        }
    }

    /// Open a directory: its listing stays as it was.
    pub fn open_dir(&self, ino: u64) -> Result<u64, Error> {
        let node = self.node(ino)?;
        let children = self.children(&node)?;
        let inodes = self.inodes.lock();
        let dots = [".", ".."].map(|name| DirEntry { ino, kind: Kind::Directory, name: name.into() });
        let entries = children.into_iter().map(|(name, child)| DirEntry {
            ino: inodes.hint(&child),
            kind: child.kind(),
            name: name.into(),
        });
        let listing: Arc<[DirEntry]> = dots.into_iter().chain(entries).collect();
        drop(inodes);
        Ok(self.handles.lock().insert(Handle::Listing(listing)))
    }

    /// The listing of an open directory, `.` and `..` first.
    pub fn read_dir(&self, fh: u64) -> Result<Arc<[DirEntry]>, Error> {
        match self.handle(fh)? {
            Handle::Listing(entries) => Ok(entries),
            _ => Err(Error::new(ErrorKind::NotDirectory, "not a directory")),
        }
    }

    /// Open a file.
    pub fn open(&self, ino: u64, access: Access, caller: &Caller) -> Result<Opened, Error> {
        let node = self.node(ino)?;
        if node == Node::RootFile(RootFile::Import) {
            if access.write {
                let receiving = Receiving::new(*caller);
                return Ok(Opened::Import { fh: self.handles.lock().insert(Handle::Import(Arc::new(receiving))) });
            }
            let text = Handle::Text(self.text(&node)?.into());
            return Ok(Opened::Text { fh: self.handles.lock().insert(text) });
        }
        if node.is_control() {
            let conversation = Conversation { node, opener: *caller, talk: Mutex::default() };
            let fh = self.handles.lock().insert(Handle::Control(Arc::new(conversation)));
            return Ok(Opened::Control { fh });
        }
        if let Some(what) = What::of(&node) {
            return self.open_written(what, access, caller);
        }
        if access.write {
            return Err(Error::new(ErrorKind::ReadOnly, "only control files can be written"));
        }
        let handle = match &node {
            Node::Blob(key, digest) => {
                let file = Arc::new(self.api.open_blob(key, digest)?);
                let fh = self.handles.lock().insert(Handle::Stored(Arc::clone(&file)));
                return Ok(Opened::Stored { fh, file });
            }
            Node::ImageFile(key, ImageFile::Archive) => {
                let archive = self.api.open_archive(key)?;
                let fh = self.handles.lock().insert(Handle::Archive(Arc::clone(&archive)));
                return Ok(Opened::Archive { fh, archive });
            }
            node => match self.open_later(node, access.nonblock)? {
                Some(handle) => handle,
                None => Handle::Text(self.text(node)?.into()),
            },
        };
        Ok(Opened::Text { fh: self.handles.lock().insert(handle) })
    }

    /// Up to `size` bytes at `offset`.
    pub fn read(&self, fh: u64, offset: u64, size: u32) -> Result<Reply<Vec<u8>>, Error> {
        match self.handle(fh)? {
            Handle::Text(text) => Ok(Reply::Now(slice(&text, offset, size))),
            Handle::Coming(coming) => {
                wait_for(move || coming.answer().map(|text| text.map(|text| slice(&text, offset, size))))
            }
            Handle::Wait(job) => wait_for(move || {
                let ended = job.state().is_terminal();
                ended.then(|| Ok(slice(&jobs::text(&job, JobFile::Wait), offset, size)))
            }),
            Handle::Control(conversation) => Ok(Reply::Now(self.answer(&conversation, offset, size)?)),
            Handle::Written(open) => Ok(Reply::Now(slice(&open.text(&self.api)?, offset, size))),
            Handle::Events { reader, nonblock } => match reader.read(size as usize) {
                Some(bytes) => Ok(Reply::Now(bytes)),
                None if nonblock => Err(Error::new(ErrorKind::Again, "nothing has happened yet")),
                None => wait_for(move || reader.read(size as usize).map(Ok)),
            },
            Handle::Import(receiving) => Ok(Reply::Now(self.import_answer(&receiving, offset, size)?)),
            Handle::Archive(archive) => {
                let mut buffer = vec![0; size as usize];
                let filled = archive
                    .read_at(offset, &mut buffer)
                    .map_err(|error| Error::new(ErrorKind::Io, format!("cannot read the archive: {error}")))?;
                buffer.truncate(filled);
                Ok(Reply::Now(buffer))
            }
            Handle::Stored(file) => {
                use std::os::unix::fs::FileExt;
                let mut buffer = vec![0; size as usize];
                let mut filled = 0;
                while filled < buffer.len() {
                    match file.read_at(&mut buffer[filled..], offset + filled as u64) {
                        Ok(0) => break,
                        Ok(read) => filled += read,
                        Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                        Err(error) => return Err(Error::new(ErrorKind::Io, format!("cannot read a blob: {error}"))),
                    }
                }
                buffer.truncate(filled);
                Ok(Reply::Now(buffer))
            }
            Handle::Content(content) => {
                wait_for(move || content.read(offset, size).map(|read| read.map_err(Error::from)))
            }
            Handle::Listing(_) | Handle::ViewDirectory(_) => {
                Err(Error::new(ErrorKind::IsDirectory, "a directory is listed, not read"))
            }
        }
    }

    /// Whether a read of an open file would not block. Writes never would: a descriptor that must not block is answered
    /// once the job is admitted.
    pub fn poll(&self, fh: u64) -> Result<Ready, Error> {
        let read = match self.handle(fh)? {
            Handle::Coming(coming) => coming.answer().is_some(),
            Handle::Wait(job) => job.state().is_terminal(),
            Handle::Control(conversation) => {
                conversation.talk.lock().last.as_ref().is_none_or(|last| last.outcome.end().is_some())
            }
            Handle::Events { reader, .. } => reader.is_ready(),
            Handle::Text(_)
            | Handle::Written(_)
            | Handle::Stored(_)
            | Handle::Archive(_)
            | Handle::Import(_)
            | Handle::Content(_)
            | Handle::ViewDirectory(_)
            | Handle::Listing(_) => true,
        };
        Ok(Ready { read, write: true })
    }

    /// Close a file. A job goes on, but for the import of an archive that is not complete.
    pub fn release(&self, fh: u64) {
        let closed = self.handles.lock().remove(fh);
        match closed {
            Some(Handle::Written(open)) => self.close_written(open),
            Some(Handle::Import(receiving)) => receiving.close(),
            _ => {}
        }
    }

    /// Close a directory.
    pub fn release_dir(&self, fh: u64) {
        self.handles.lock().remove(fh);
    }

    /// No file of the tree can be deleted by itself, but a label.
    pub fn unlink(&self, parent: u64, name: &OsStr, caller: &Caller) -> Result<Reply<()>, Error> {
        let parent = self.node(parent)?;
        if let Node::Labels(key) = &parent
            && let Node::Label(_, label) = self.find_label(key, name)?
        {
            return self.remove_label(key, label, caller);
        }
        let found = name.to_str().map(|name| self.child(&parent, name)).transpose()?.flatten();
        match found.ok_or_else(|| not_found(name))?.kind() {
            Kind::Directory => Err(Error::new(ErrorKind::IsDirectory, "a directory: use rmdir")),
            _ => Err(fixed()),
        }
    }

    /// `rmdir images/NAME`: delete the name.
    pub fn remove_dir(&self, parent: u64, name: &OsStr, caller: &Caller) -> Result<Reply<()>, Error> {
        let parent = self.node(parent)?;
        let found = match name.to_str() {
            Some(name) => self.child(&parent, name)?,
            None => None,
        };
        match found.ok_or_else(|| not_found(name))? {
            Node::Image(key) => {
                self.api.authorise(caller.tid)?;
                let coming = self.api.remove_image(key.clone(), caller.uid)?;
                let (inodes, removed) = (Arc::clone(&self.inodes), Node::Image(key));
                wait_for(move || {
                    let answer = coming.answer();
                    if matches!(answer, Some(Ok(_))) {
                        inodes.lock().retire(&removed);
                    }
                    answer
                })
            }
            Node::Images(_) => Err(Error::new(ErrorKind::NotEmpty, "a directory of images goes with its last image")),
            node if node.kind() == Kind::Directory => Err(fixed()),
            _ => Err(Error::new(ErrorKind::NotDirectory, "not a directory")),
        }
    }

    /// `mv images/a images/b`: rename an image, replacing an image of the new name unless `no_replace`.
    ///
    /// mv(1) takes an existing image for a directory to move into, and asks for `b/a`. An image inside an image makes no
    /// sense, so this too replaces `b`. There is no `b/a` that `no_replace`, which coreutils' mv always says first, could
    /// protect: only `mv -T` can be told to spare `b`.
    pub fn rename(
        &self,
        parent: u64,
        name: &OsStr,
        new_parent: u64,
        new_name: &OsStr,
        no_replace: bool,
        caller: &Caller,
    ) -> Result<Reply<()>, Error> {
        let Some(name) = name.to_str() else { return Err(not_found(name)) };
        let source = self.child(&self.node(parent)?, name)?.ok_or_else(|| not_found(name.as_ref()))?;
        let source = match source {
            Node::Image(source) => source,
            Node::Label(key, label) => {
                let target = self.node(new_parent)?;
                return self.rename_label((&key, &label), &target, new_name, !no_replace, caller);
            }
            _ => return Err(fixed()),
        };
        let shown = new_name.to_string_lossy();
        let refused = |error: Error| {
            self.api.record_refusal(&source.subject(), &format!("mv {}", shown.escape_debug()), caller.uid, &error);
            error
        };
        let (target, replace) = match self.node(new_parent)? {
            Node::Images(prefix) => (images::join(&prefix, &shown), !no_replace),
            Node::Image(target) if new_name == name => (target.name.to_string(), true),
            _ => return Err(refused(Error::new(ErrorKind::Denied, "an image can be moved within images/ only"))),
        };
        // Not EINVAL, which mv(1) takes for "to a subdirectory of itself".
        let target: ImageName = target
            .parse()
            .map_err(|error| refused(Error::new(ErrorKind::Denied, format!("cannot rename: {error}"))))?;
        self.api.authorise(caller.tid)?;
        let replaced = images::find(&self.api, "", target.as_str());
        let coming = self.api.rename_image(source, target, replace, caller.uid)?;
        let inodes = Arc::clone(&self.inodes);
        wait_for(move || {
            let answer = coming.answer();
            if let (Some(Ok(_)), Some(replaced @ Node::Image(_))) = (&answer, &replaced) {
                inodes.lock().retire(replaced);
            }
            answer
        })
    }

    /// Why nothing can be made in `parent`; `what` would have been made.
    pub fn refuse(&self, parent: u64, what: &str) -> Error {
        match self.node(parent) {
            Ok(Node::Images(_)) => {
                let how = "images are made by writing a name to containers/NAME/commit";
                Error::new(ErrorKind::Denied, format!("no {what} can be made here: {how}"))
            }
            Ok(_) => fixed(),
            Err(error) => error,
        }
    }

    /// The store's file system.
    pub fn statfs(&self) -> Result<Space, Error> {
        let space = self.api.space()?;
        Ok(Space { bytes: space.bytes, free: space.free, files: space.files, files_free: space.files_free })
    }

    fn node(&self, ino: u64) -> Result<Node, Error> {
        if is_in_view(ino) {
            return Err(Error::new(ErrorKind::ReadOnly, "the files of an image cannot be changed"));
        }
        let stale = || Error::new(ErrorKind::Stale, "the file is not known any more");
        self.inodes.lock().node(ino).cloned().ok_or_else(stale)
    }

    fn handle(&self, fh: u64) -> Result<Handle, Error> {
        let stale = || Error::new(ErrorKind::Stale, "the file is not open");
        self.handles.lock().find(fh).ok_or_else(stale)
    }

    fn child(&self, parent: &Node, name: &str) -> Result<Option<Node>, Error> {
        let api = &*self.api;
        Ok(match parent {
            Node::Root if name == RootFile::Events.name() => Some(Node::RootFile(RootFile::Events)),
            Node::Containers => containers::find(api, name),
            Node::Container(key) => {
                api.container(key)?;
                containers::entry(key, name)
            }
            Node::Images(prefix) => images::find(api, prefix, name),
            Node::Image(key) => images::entry(api, key, name),
            Node::QueryRoot => query::find(api, name)?,
            Node::Query(filter) => query::entry_of(api, filter, name)?,
            Node::Jobs => jobs::find(api, name),
            _ => self.children(parent)?.into_iter().find(|(file, _)| file == name).map(|(_, node)| node),
        })
    }

    fn children(&self, node: &Node) -> Result<Vec<(String, Node)>, Error> {
        let api = &*self.api;
        match node {
            Node::Root => {
                // Whoever reads the whole tree would wait for events for ever: they are found, and not listed.
                let files = RootFile::TABLE.iter().filter(|(file, ..)| *file != RootFile::Events);
                let mut entries: Vec<_> =
                    files.map(|(file, name, _)| ((*name).to_owned(), Node::RootFile(*file))).collect();
                entries.push(("containers".to_owned(), Node::Containers));
                entries.push(("images".to_owned(), Node::Images(String::new())));
                entries.push(("jobs".to_owned(), Node::Jobs));
                entries.push((query::QUERY.to_owned(), Node::QueryRoot));
                Ok(entries)
            }
            Node::Containers => Ok(containers::list(api)),
            Node::Container(key) => {
                api.container(key)?;
                Ok(containers::entries(key))
            }
            Node::ContainerLabels(key) => containers::labels(api, key),
            Node::Images(prefix) => Ok(images::list(api, prefix)),
            Node::Image(key) => Ok(images::entries(api, key)),
            Node::Base(key) => Ok(images::base_entries(api, key)),
            Node::Containerd(key) => Ok(images::containerd_entries(api, key)),
            Node::Annotations(key) => images::annotations(api, key),
            Node::Labels(key) => labels::list(api, key),
            Node::Blobs(key) => Ok(vec![("sha256".to_owned(), Node::BlobsSha256(key.clone()))]),
            Node::BlobsSha256(key) => images::blobs(api, key),
            Node::Layers(key) => images::layers(api, key),
            Node::Layer(key, at) => Ok(images::layer_entries(key, *at)),
            Node::QueryRoot => Ok(Vec::new()),
            Node::Query(filter) => query::list(api, filter),
            Node::Jobs => Ok(jobs::list(api)),
            Node::Job(id) => Ok(jobs::entries(*id)),
            _ => Err(Error::new(ErrorKind::NotDirectory, "not a directory")),
        }
    }

    /// The text of a file that is made at once.
    fn text(&self, node: &Node) -> Result<Vec<u8>, Error> {
        let api = &*self.api;
        let gone = || Error::new(ErrorKind::Stale, "what the file told of is gone");
        match node {
            Node::RootFile(RootFile::Readme) => Ok(README.as_bytes().to_vec()),
            Node::RootFile(RootFile::Version) => Ok(concat!(env!("CARGO_PKG_VERSION"), "\n").as_bytes().to_vec()),
            Node::RootFile(RootFile::Gc) => Ok(api.last_collection().into_bytes()),
            Node::RootFile(RootFile::LastError) => Ok(api.last_store_error().into_bytes()),
            Node::RootFile(RootFile::Retention) => api.retention(),
            Node::RootFile(RootFile::Import) => Ok(api.last_import().into_bytes()),
            Node::QueryError => Ok(api.query_error().into_bytes()),
            Node::ContainerFile(key, file) => containers::text(api, key, *file),
            Node::ContainerLabel(key, label) => {
                Ok(format!("{}\n", containers::label(api, key, label)?.ok_or_else(gone)?).into_bytes())
            }
            Node::ImageFile(key, file) => images::text(api, key, *file),
            Node::Annotation(key, name) => {
                let image = api.image(key)?;
                Ok(format!("{}\n", image.annotations.get(name).ok_or_else(gone)?).into_bytes())
            }
            Node::Label(key, label) => Ok(labels::text(&api.label(key, label).ok_or_else(gone)?)),
            Node::LayerFile(key, at, file) => images::layer_text(api, key, *at, *file)?.ok_or_else(gone),
            Node::JobFile(id, file) => Ok(jobs::text(&*api.job(*id).ok_or_else(gone)?, *file)),
            _ => Err(Error::new(ErrorKind::IsDirectory, "a directory is listed, not read")),
        }
    }
}

/// The answer if it is there, else the promise of it.
fn wait_for<T>(mut check: impl FnMut() -> Option<Result<T, Error>> + Send + 'static) -> Result<Reply<T>, Error> {
    match check() {
        Some(answer) => answer.map(Reply::Now),
        None => Ok(Reply::Later(Ticket { check: Box::new(check) })),
    }
}

fn not_found(name: &OsStr) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no {}", name.display()))
}

fn fixed() -> Error {
    Error::new(ErrorKind::Denied, "this part of the tree is fixed")
}
