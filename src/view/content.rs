//! The content of a file of a view.
//!
//! A small file is decoded with its neighbours, which stay in memory for a while. A large one is at first decoded where it is
//! read; who reads on has it unpacked as a whole, reads behind the unpacker, and finds it on the disk the next time,
//! where the kernel can read it without us.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crossbeam_channel::bounded;
use parking_lot::Mutex;

use crate::oci::{Digest, Hasher};
use crate::store::Spool;
use crate::view::kept::Shelf;
use crate::view::seekable;
use crate::view::source::Source;
use crate::view::tree::Kind;
use crate::view::{Error, Layer, REFUSED_FOR, View, Views};

/// From this length on, in bytes, a file is unpacked as a whole.
const LARGE: u64 = 1 << 20;
/// Reading beyond this place of a large file has it unpacked; looking at its beginning does not.
const UNPACK_FROM: u64 = 512 << 10;
/// How often a layer is made seekable again because what was kept of it is damaged.
const DISCARDS: u32 = 4;
/// Who is no farther ahead of the unpacker than this waits for it.
const AHEAD: u64 = 16 << 20;

/// Large files that are being unpacked, and layers that are being made seekable.
#[derive(Debug, Default)]
pub(crate) struct Contents {
    unpacking: Mutex<HashMap<(Digest, u64), Arc<Unpacked>>>,
    converting: Mutex<HashMap<Digest, Converting>>,
}

/// When it was begun, and the error if it ended in one, once it has ended.
type Converting = (Instant, Arc<OnceLock<Option<Error>>>);

/// A file that is being unpacked.
#[derive(Debug, Default)]
struct Unpacked {
    file: OnceLock<File>,
    /// How much of it is there.
    length: AtomicU64,
    /// Whether it was given up.
    failed: AtomicBool,
    /// Whether somebody is to be woken.
    waited_for: AtomicBool,
}

/// An open file.
#[derive(Debug)]
pub enum Opened {
    /// Its content is a file of the disk.
    File(Arc<File>),
    /// Its content is decoded as it is read.
    Content(Content),
}

/// The content of an open file. It can be read to its end whatever is deleted.
#[derive(Debug, Clone)]
pub struct Content {
    views: Views,
    layer: Arc<Layer>,
    offset: u64,
    size: u64,
    unpacked: Arc<OnceLock<Arc<Unpacked>>>,
}

impl Views {
    /// Open a regular file. Nothing is waited for.
    pub fn open(&self, view: &View, inode: u32) -> Result<Opened, Error> {
        let content = self.content(view, inode)?;
        if content.size >= LARGE
            && let Some(file) = self.0.kept.open_content(&content.key(), content.size)
        {
            return Ok(Opened::File(Arc::new(file)));
        }
        Ok(Opened::Content(content))
    }

    fn content(&self, view: &View, inode: u32) -> Result<Content, Error> {
        let found = view.tree().inode(inode).ok_or(Error::NoFile)?;
        let layer = view.layers.get(found.origin.0 as usize).ok_or(Error::NoFile)?;
        // What is in a layer without being a file is shown as an empty one.
        let size = if found.kind == Kind::File { found.size } else { 0 };
        let (offset, layer) = (found.place, Arc::clone(layer));
        Ok(Content { views: self.clone(), layer, offset, size, unpacked: Arc::default() })
    }

    /// Write a regular file's content to `out`. Waits for the disk and the decoder.
    ///
    /// Errors: the outer one is of the layer, the inner one of `out`.
    pub fn copy(&self, view: &View, inode: u32, out: &mut dyn Write) -> Result<io::Result<()>, Error> {
        let content = self.content(view, inode)?;
        let source = content.layer.wait_for_source(self)?;
        let mut at = content.offset;
        let end = content.offset + content.size;
        while at < end {
            let chunk = self.chunk(&content.layer, &source, at, content.size < LARGE)?;
            let piece = chunk.from(at, end - at);
            if let Err(error) = out.write_all(piece) {
                return Ok(Err(error));
            }
            at += piece.len() as u64;
        }
        Ok(Ok(()))
    }

    /// The decoded chunk that holds a place of the tar.
    fn chunk(&self, layer: &Layer, source: &Source, at: u64, keep: bool) -> Result<Chunk, Error> {
        let damaged = |error| {
            log::error!("the layer {} is damaged: {error}", layer.digest);
            Error::Read { layer: layer.digest, source: Arc::new(error) }
        };
        let (number, begins) = source.chunk_at(at).ok_or_else(|| damaged(io::ErrorKind::UnexpectedEof.into()))?;
        let key = (source.id, number);
        if let Some(bytes) = self.0.chunks.lock().find(&key) {
            return Ok(Chunk { bytes, begins });
        }
        let bytes = Arc::new(source.decode(number).map_err(damaged)?);
        if keep {
            self.0.chunks.lock().insert(key, Arc::clone(&bytes), bytes.len() as u64);
        }
        Ok(Chunk { bytes, begins })
    }
}

struct Chunk {
    bytes: Arc<Vec<u8>>,
    /// Where in the tar.
    begins: u64,
}

impl Chunk {
    /// Up to `length` bytes from a place that is in the chunk.
    fn from(&self, at: u64, length: u64) -> &[u8] {
        let from = usize::try_from(at - self.begins).unwrap_or(usize::MAX).min(self.bytes.len());
        let rest = &self.bytes[from..];
        &rest[..usize::try_from(length).unwrap_or(usize::MAX).min(rest.len())]
    }
}

impl Layer {
    /// What the layer can be read from at any place, if that is there already.
    fn source(&self) -> Option<Arc<Source>> {
        if self.source.is_seekable() { Some(Arc::clone(&self.source)) } else { self.seekable.lock().clone() }
    }

    /// The same; made now if it is not there.
    fn wait_for_source(&self, views: &Views) -> Result<Arc<Source>, Error> {
        if let Some(source) = self.source() {
            return Ok(source);
        }
        let _turn = self.converting.lock();
        if let Some(source) = self.source() {
            return Ok(source);
        }
        let made = Arc::new(views.make_seekable(self)?);
        *self.seekable.lock() = Some(Arc::clone(&made));
        Ok(made)
    }

    /// What was made of the blob is damaged; whether it is worth making again.
    fn discard(&self, views: &Views, source: &Source) -> bool {
        if source.id == self.source.id || self.discarded.fetch_add(1, Ordering::Relaxed) >= DISCARDS {
            return false;
        }
        let mut seekable = self.seekable.lock();
        if seekable.take_if(|kept| kept.id == source.id).is_some() {
            views.0.kept.forget(Shelf::Seekable, &self.digest.hex());
        }
        true
    }
}

impl Content {
    /// Whether it may be a file of the disk when it is opened again.
    pub fn is_large(&self) -> bool {
        self.size >= LARGE
    }

    /// Its length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn key(&self) -> String {
        format!("{}-{:x}", self.layer.digest.hex(), self.offset)
    }

    /// Up to `size` bytes at `offset`; `None` if they are still to come, and the views' owner will be woken.
    pub fn read(&self, offset: u64, size: u32) -> Option<Result<Vec<u8>, Error>> {
        let end = self.size.min(offset.saturating_add(u64::from(size)));
        if offset >= end {
            return Some(Ok(Vec::new()));
        }
        if self.size >= LARGE
            && end > UNPACK_FROM
            && self.views.0.kept.takes(self.size)
            && let Some(answer) = self.read_unpacked(offset, end)
        {
            return answer;
        }
        if let Some(source) = self.layer.source() {
            match self.decode(&source, offset, end) {
                Err(_) if self.layer.discard(&self.views, &source) => {}
                answer => return Some(answer),
            }
        }
        let failed = self.convert();
        match self.layer.source() {
            Some(source) => Some(self.decode(&source, offset, end)),
            None => failed.map(Err),
        }
    }

    fn decode(&self, source: &Source, offset: u64, end: u64) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(usize::try_from(end - offset).unwrap_or(0));
        while offset + (bytes.len() as u64) < end {
            let at = offset + bytes.len() as u64;
            let chunk = self.views.chunk(&self.layer, source, self.offset + at, true)?;
            bytes.extend_from_slice(chunk.from(self.offset + at, end - at));
        }
        Ok(bytes)
    }

    /// From the file that is being unpacked: the bytes, or that they will come soon; `None` if they are to be decoded.
    fn read_unpacked(&self, offset: u64, end: u64) -> Option<Option<Result<Vec<u8>, Error>>> {
        let unpacked = self.unpacked.get_or_init(|| self.start_unpacking());
        let length = || unpacked.length.load(Ordering::Acquire);
        if end > length() {
            let is_near = offset <= length() + AHEAD && unpacked.file.get().is_some();
            if unpacked.failed.load(Ordering::Acquire) || !is_near {
                return None;
            }
            unpacked.waited_for.store(true, Ordering::SeqCst);
            // It may have come, or failed, just before it could know that somebody waits.
            if end > length() {
                return if unpacked.failed.load(Ordering::SeqCst) { None } else { Some(None) };
            }
        }
        let mut bytes = vec![0; usize::try_from(end - offset).unwrap_or(0)];
        match unpacked.file.get()?.read_exact_at(&mut bytes, offset) {
            Ok(()) => Some(Some(Ok(bytes))),
            Err(error) => {
                log::error!("an unpacked file of the layer {} cannot be read: {error}", self.layer.digest);
                None
            }
        }
    }

    /// The layer is made seekable first; the error if it cannot be, `None` if that is still to be seen.
    fn convert(&self) -> Option<Error> {
        let mut converting = self.views.0.contents.converting.lock();
        // A full disk may have room again.
        let is_fresh = |begun: &Instant| begun.elapsed() < REFUSED_FOR;
        converting.retain(|_, (begun, slot)| match slot.get() {
            None => true,
            Some(ended) => ended.is_some() && is_fresh(begun),
        });
        if let Some((_, slot)) = converting.get(&self.layer.digest) {
            return slot.get().cloned().flatten();
        }
        if self.layer.source().is_some() {
            return None;
        }
        let slot = Arc::new(OnceLock::new());
        converting.insert(self.layer.digest, (Instant::now(), Arc::clone(&slot)));
        let layer = Arc::clone(&self.layer);
        let task = Box::new(move |views: &Views| {
            let _ = slot.set(layer.wait_for_source(views).err());
            (views.0.wake)();
        });
        let _ = self.views.0.unpackers.send(task);
        None
    }

    /// The file's unpacking, begun now or by somebody else.
    fn start_unpacking(&self) -> Arc<Unpacked> {
        let key = (self.layer.digest, self.offset);
        let mut unpacking = self.views.0.contents.unpacking.lock();
        if let Some(unpacked) = unpacking.get(&key) {
            return Arc::clone(unpacked);
        }
        let unpacked = Arc::new(Unpacked::default());
        unpacking.insert(key, Arc::clone(&unpacked));
        // A content that the task held would hold its views, and so itself.
        let (slot, content) = (Arc::clone(&unpacked), Content { unpacked: Arc::default(), ..self.clone() });
        let task = Box::new(move |views: &Views| {
            if let Err(error) = content.unpack(&slot) {
                slot.failed.store(true, Ordering::SeqCst);
                log::warn!("a file of {} bytes is not unpacked: {error}", content.size);
            }
            views.0.contents.unpacking.lock().remove(&key);
            (views.0.wake)();
        });
        let _ = self.views.0.unpackers.send(task);
        unpacked
    }

    fn unpack(&self, unpacked: &Unpacked) -> Result<(), Error> {
        let kept = &self.views.0.kept;
        if let Some(found) = kept.open_unverified(&self.key()) {
            if hash(&found.file, self.size).is_some_and(|digest| digest.hex() == found.digest) {
                kept.verified(&self.key());
                let _ = unpacked.file.set(found.file);
                unpacked.length.store(self.size, Ordering::Release);
                return Ok(());
            }
            kept.forget(Shelf::Content, &self.key());
        }
        let store = |source| Error::Store { layer: self.layer.digest, source: Arc::new(source) };
        let lease = self.views.0.store.lease().map_err(store)?;
        let mut spool = lease.spool().map_err(store)?;
        let _ = unpacked.file.set(spool.open().map_err(store)?);
        let digest = self.unpack_into(&mut spool, unpacked)?;
        let name = format!("{}-{}", self.key(), digest.hex());
        kept.keep(&spool, Shelf::Content, &name, self.size);
        Ok(())
    }

    /// One thread decodes, this one hashes and writes.
    fn unpack_into(&self, spool: &mut Spool, unpacked: &Unpacked) -> Result<Digest, Error> {
        let source = &*self.layer.wait_for_source(&self.views)?;
        let end = self.offset + self.size;
        let store = |source| Error::Store { layer: self.layer.digest, source: Arc::new(source) };
        thread::scope(|scope| {
            let (chunks, decoded) = bounded(4);
            scope.spawn(move || {
                let mut at = self.offset;
                while at < end {
                    let chunk = self.views.chunk(&self.layer, source, at, false);
                    if chunk.is_err() {
                        self.layer.discard(&self.views, source);
                    }
                    if let Ok(chunk) = &chunk {
                        at += chunk.from(at, end - at).len() as u64;
                    }
                    let failed = chunk.is_err();
                    if chunks.send(chunk).is_err() || failed {
                        return;
                    }
                }
            });
            let mut hasher = Hasher::new();
            let mut at = self.offset;
            for chunk in decoded {
                let chunk = chunk?;
                let piece = chunk.from(at, end - at);
                spool.write_all(piece).map_err(|error| store(spool.error(error)))?;
                hasher.update(piece);
                at += piece.len() as u64;
                unpacked.length.store(at - self.offset, Ordering::SeqCst);
                if unpacked.waited_for.swap(false, Ordering::SeqCst) {
                    (self.views.0.wake)();
                }
            }
            Ok(hasher.digest())
        })
    }
}

impl Views {
    /// The layer in a form that can be read at any place, from the cache or made now.
    fn make_seekable(&self, layer: &Layer) -> Result<Source, Error> {
        let key = layer.digest.hex();
        let tar_length = layer.source.tar_length();
        if let Some(file) = self.0.kept.open(Shelf::Seekable, &key) {
            if let Some(source) = seekable::open(file, tar_length) {
                return Ok(source);
            }
            self.0.kept.forget(Shelf::Seekable, &key);
        }
        let store = |source| Error::Store { layer: layer.digest, source: Arc::new(source) };
        let read = |source| Error::Read { layer: layer.digest, source: Arc::new(source) };
        let lease = self.0.store.lease().map_err(store)?;
        let mut spool = lease.spool().map_err(store)?;
        let mut out = io::BufWriter::with_capacity(1 << 20, &mut spool);
        let made = seekable::write(layer.source.blob(), layer.source.packing(), layer.diff_id, &mut out);
        let size = made.and_then(|size| out.flush().map(|()| size)).map_err(read)?;
        drop(out);
        let source = spool.open().map_err(store).map(|file| seekable::open(file, tar_length))?;
        self.0.kept.keep(&spool, Shelf::Seekable, &key, size);
        source.ok_or_else(|| read(io::ErrorKind::UnexpectedEof.into()))
    }
}

fn hash(file: &File, size: u64) -> Option<Digest> {
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        match file.read_at(&mut buffer, at) {
            Ok(0) => return (at == size).then(|| hasher.digest()),
            Ok(count) => {
                hasher.update(&buffer[..count]);
                at += count as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}
