//! An image as a file tree, without unpacking it: [`Views`] finds trees, [`View`] is one, [`Content`] an open file of it.
//!
//! A layer is read as a whole once: its tar is held against its DiffID, and an index of its entries and of the places where
//! decoding can begin is kept beside the store. From then on a directory is a lookup in memory, and a file a piece of the
//! layer that is decoded when it is asked for. What must hold:
//!
//! - A tree is what podman and containerd would unpack, or it is refused with a reason; nothing of a layer is believed
//!   that its tar does not say.
//! - Nothing here is needed: an index, a layer made seekable, a file unpacked, all can be lost at any time.
//! - Bytes are held against a checksum whenever they are read: a damaged one is an error for who reads it, in the log with
//!   the layer's name, and for nobody else.
//! - Whoever has a view or a content reads on to the end, whatever is deleted and collected.
//! - No call waits but those that say so: what takes time is done by threads of this room, which call `wake` when
//!   something has come.

mod build;
mod content;
mod index;
mod kept;
mod layer;
mod link;
mod lru;
mod merge;
mod seekable;
mod source;
mod stream;
mod tar;
mod tree;
mod whole;

pub use build::read_tar;
pub use content::{Content, Opened};
pub(crate) use merge::merge;
#[cfg(test)]
pub(crate) use tree::Name;
pub use tree::{Inode, Kind, Tree, Walk};
pub(crate) use whole::{Piece, Take, Whole};

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use crossbeam_channel::{Sender, unbounded};
use parking_lot::{Condvar, Mutex};

use crate::image::LayerView;
use crate::oci::{DiffId, Digest};
use crate::store::{self, Store};
use build::Failure;
use index::Index;
use kept::{Kept, Shelf};
use lru::Lru;
use source::Source;
use stream::Packing;

/// How large the cache on the disk may become unless told otherwise, in bytes.
pub const DEFAULT_CACHE: u64 = 4 << 30;

/// Trees in memory, in bytes.
const TREES: u64 = 64 << 20;
/// Layers in memory, in bytes: images have some in common.
const LAYERS: u64 = 32 << 20;
/// Decoded pieces of layers in memory, in bytes.
const CHUNKS: u64 = 64 << 20;
/// The longest index, in bytes.
const INDEX_LIMIT: u64 = 1 << 30;
/// For how long a layer that was refused is not read again.
const REFUSED_FOR: Duration = Duration::from_secs(60);

/// Why a tree cannot be shown, or a file of it not be read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The store does not give the blob.
    #[error("the layer {layer} cannot be opened: {source}")]
    Store {
        /// Its blob.
        layer: Digest,
        /// Why.
        source: Arc<store::Error>,
    },
    /// No unpacker should take it.
    #[error("the layer {layer} is refused: {reason}; no tree of an image with it is shown")]
    Refused {
        /// Its blob.
        layer: Digest,
        /// Why.
        reason: String,
    },
    /// The layers do not fit together.
    #[error("the layers cannot be put together: {0}; look at them one by one in layers/N/tree")]
    Unmergeable(String),
    /// The bytes are others than the image says.
    #[error("the layer {layer} has the DiffID {found}, and its image says {expected}; run snapfs fsck")]
    Differs {
        /// Its blob.
        layer: Digest,
        /// What its tar is.
        found: DiffId,
        /// What it should be.
        expected: DiffId,
    },
    /// The blob is damaged, or the disk failed.
    #[error("the layer {layer} cannot be read: {source}; run snapfs fsck, and see the kernel's log for the disk")]
    Read {
        /// Its blob.
        layer: Digest,
        /// Why.
        source: Arc<io::Error>,
    },
    /// There is no such inode in the tree.
    #[error("the file is not in the tree any more; look it up again")]
    NoFile,
}

/// A layer, opened.
#[derive(Debug)]
pub(crate) struct Layer {
    digest: Digest,
    diff_id: DiffId,
    source: Arc<Source>,
    /// The same in a form that can be read at any place, where the blob cannot.
    seekable: Mutex<Option<Arc<Source>>>,
    /// Held by who makes that.
    converting: Mutex<()>,
    /// How often that turned out to be damaged.
    discarded: AtomicU32,
}

/// One tree: of an image, or of one of its layers. Its blobs are open as long as it is.
#[derive(Debug)]
pub struct View {
    tree: Arc<Tree>,
    layers: Vec<Arc<Layer>>,
    /// See [`link::parents`].
    parents: OnceLock<Vec<u32>>,
}

impl View {
    /// Where a symbolic link leads to for a process whose root is the tree's, as a path for one whose root is not.
    pub fn target_in_root(&self, inode: u32) -> Vec<u8> {
        let tree = self.tree();
        link::target_in_root(tree, self.parents.get_or_init(|| link::parents(tree)), inode)
    }

    /// The tree. A layer's own has its whiteouts and its hard links to what is below, an image's has neither.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    fn weight(&self) -> u64 {
        self.tree.weight() + 1024
    }
}

/// A view, or the promise of one.
#[derive(Debug)]
pub enum Found {
    /// It is there.
    Now(Arc<View>),
    /// It is being made.
    Later(Coming),
}

/// The promise of a view; ask again after a wake-up.
#[derive(Debug, Clone)]
pub struct Coming(Arc<OnceLock<Result<Arc<View>, Error>>>);

impl Coming {
    /// The view, once it is there.
    pub fn poll(&self) -> Option<Result<Arc<View>, Error>> {
        self.0.get().cloned()
    }
}

/// Finds trees and keeps what was used last. Clones share it.
#[derive(Debug, Clone)]
pub struct Views(Arc<Shared>);

/// A layer with its tree.
type Indexed = (Arc<Layer>, Arc<Tree>);

/// Decoded pieces, by their source and their number there.
type Chunks = Lru<(u64, usize), Arc<Vec<u8>>>;

/// What threads of this room do.
type Task = Box<dyn FnOnce(&Views) + Send>;

/// Which blobs, and whether they are merged.
type Key = (Digest, bool);

struct Shared {
    store: Store,
    wake: Box<dyn Fn() + Send + Sync>,
    kept: Kept,
    views: Mutex<Lru<Key, Arc<View>>>,
    coming: Mutex<HashMap<Key, Coming>>,
    refused: Mutex<HashMap<Key, (Instant, Error)>>,
    layers: Mutex<Lru<Digest, Indexed>>,
    /// Layers that some thread is opening.
    opening: Mutex<HashSet<Digest>>,
    opened: Condvar,
    chunks: Mutex<Chunks>,
    contents: content::Contents,
    /// To the threads that find trees, and to those that unpack.
    finders: Sender<Task>,
    unpackers: Sender<Task>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Views").finish_non_exhaustive()
    }
}

impl Views {
    /// Views of the images of `store`, with at most `cache` bytes kept on its disk. `wake` is called when something has
    /// come that somebody asked for.
    pub fn new(store: Store, cache: u64, wake: Box<dyn Fn() + Send + Sync>) -> Views {
        let (finders, to_find) = unbounded::<Task>();
        let (unpackers, to_unpack) = unbounded::<Task>();
        let views = Views(Arc::new(Shared {
            kept: Kept::new(store.clone(), cache),
            store,
            wake,
            views: Mutex::new(Lru::new(TREES)),
            coming: Mutex::default(),
            refused: Mutex::default(),
            layers: Mutex::new(Lru::new(LAYERS)),
            opening: Mutex::default(),
            opened: Condvar::new(),
            chunks: Mutex::new(Lru::new(CHUNKS)),
            contents: content::Contents::default(),
            finders,
            unpackers,
        }));
        for (name, tasks) in [("index", to_find), ("unpack", to_unpack)] {
            for _ in 0..2 {
                // They must not keep what ends them alive.
                let (weak, tasks) = (Arc::downgrade(&views.0), tasks.clone());
                let work = move || {
                    for task in tasks {
                        let Some(shared) = weak.upgrade() else { return };
                        let task = std::panic::AssertUnwindSafe(|| task(&Views(shared)));
                        if std::panic::catch_unwind(task).is_err() {
                            log::error!("a thread that reads layers panicked; what it was asked for does not come");
                        }
                    }
                };
                if let Err(error) = std::thread::Builder::new().name(name.to_owned()).spawn(work) {
                    log::warn!("no thread to read layers with: {error}");
                }
            }
        }
        views
    }

    /// The tree of an image, all its layers merged.
    pub fn image(&self, layers: &[LayerView]) -> Found {
        self.find(layers, true)
    }

    /// The tree of one layer.
    pub fn layer(&self, layer: &LayerView) -> Found {
        self.find(std::slice::from_ref(layer), false)
    }

    /// The tree of an image. Waits for it: seconds, if a large layer has no index yet.
    pub fn wait_for_image(&self, layers: &[LayerView]) -> Result<Arc<View>, Error> {
        let key = key(layers, true);
        let found = self.0.views.lock().find(&key);
        found.map_or_else(|| self.make(layers, key), Ok)
    }

    /// The tree of an image, or of one layer, if it is there already.
    pub fn peek(&self, layers: &[LayerView], merged: bool) -> Option<Arc<View>> {
        self.0.views.lock().find(&key(layers, merged))
    }

    fn find(&self, layers: &[LayerView], merged: bool) -> Found {
        let key = key(layers, merged);
        if let Some(view) = self.0.views.lock().find(&key) {
            return Found::Now(view);
        }
        let mut coming = self.0.coming.lock();
        if let Some(coming) = coming.get(&key) {
            return Found::Later(coming.clone());
        }
        let promise = Coming(Arc::new(OnceLock::new()));
        if let Some(error) = self.refused(&key) {
            let _ = promise.0.set(Err(error));
            return Found::Later(promise);
        }
        coming.insert(key, promise.clone());
        let (slot, layers) = (promise.clone(), layers.to_vec());
        let task = Box::new(move |views: &Views| {
            let made = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| views.make(&layers, key)));
            let made = made.unwrap_or(Err(Error::NoFile));
            if let Err(error) = &made {
                log::warn!("{error}");
                views.0.refused.lock().insert(key, (Instant::now(), error.clone()));
            }
            let _ = slot.0.set(made); // only this thread sets it
            views.0.coming.lock().remove(&key);
            (views.0.wake)();
        });
        let _ = self.0.finders.send(task); // the threads live as long as the sender
        Found::Later(promise)
    }

    fn refused(&self, key: &Key) -> Option<Error> {
        let mut refused = self.0.refused.lock();
        refused.retain(|_, (at, _)| at.elapsed() < REFUSED_FOR);
        refused.get(key).map(|(_, error)| error.clone())
    }

    fn make(&self, layers: &[LayerView], key: Key) -> Result<Arc<View>, Error> {
        let opened = layers.iter().map(|layer| self.open_layer(layer)).collect::<Result<Vec<_>, _>>()?;
        let (layers, trees): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
        let tree = match trees.first() {
            Some(tree) if !key.1 => Arc::clone(tree),
            _ => {
                let trees: Vec<&Tree> = trees.iter().map(|tree| &**tree).collect();
                Arc::new(merge(&trees).map_err(Error::Unmergeable)?)
            }
        };
        let view = Arc::new(View { tree, layers, parents: OnceLock::new() });
        self.0.views.lock().insert(key, Arc::clone(&view), view.weight());
        Ok(view)
    }

    fn open_layer(&self, layer: &LayerView) -> Result<Indexed, Error> {
        let digest = layer.descriptor.digest;
        let mut opening = self.0.opening.lock();
        loop {
            if let Some(found) = self.0.layers.lock().find(&digest) {
                return found.0.check(layer.diff_id).map(|()| found);
            }
            if opening.insert(digest) {
                break;
            }
            self.0.opened.wait(&mut opening);
        }
        drop(opening);
        let opened = self.read_layer(layer);
        if let Ok((layer, tree)) = &opened {
            let weight = tree.weight() + layer.source.weight();
            self.0.layers.lock().insert(digest, (Arc::clone(layer), Arc::clone(tree)), weight);
        }
        self.0.opening.lock().remove(&digest);
        self.0.opened.notify_all();
        opened
    }

    fn read_layer(&self, layer: &LayerView) -> Result<Indexed, Error> {
        let digest = layer.descriptor.digest;
        let read = |source| Error::Read { layer: digest, source: Arc::new(source) };
        let blob = self.0.store.open_blob(&digest);
        let blob = blob.map_err(|source| Error::Store { layer: digest, source: Arc::new(source) })?;
        let length = blob.metadata().map_err(read)?.len();
        if length != layer.descriptor.size {
            let reason = format!("it has {length} bytes instead of {}", layer.descriptor.size);
            return Err(read(io::Error::new(io::ErrorKind::InvalidData, reason)));
        }
        let packing = Packing::of(&blob).map_err(read)?;
        let kept = self.0.kept.read(Shelf::Index, &digest.hex(), INDEX_LIMIT).and_then(|bytes| index::decode(&bytes));
        let index = match kept {
            Some(index) => index,
            None => {
                let index =
                    build::build(&blob, packing, layer.diff_id, &mut |_| {}).map_err(|failure| match failure {
                        Failure::Refused(reason) => Error::Refused { layer: digest, reason },
                        Failure::Differs(found) => Error::Differs { layer: digest, found, expected: layer.diff_id },
                        Failure::Read(source) => read(source),
                    })?;
                self.keep_index(digest, &index);
                index
            }
        };
        let Index { diff_id, tar_length, points, tree } = index;
        let source = Arc::new(Source::new(blob, length, packing, points, tar_length));
        let (seekable, converting, discarded) = (Mutex::default(), Mutex::default(), AtomicU32::new(0));
        let opened = Layer { digest, diff_id, source, seekable, converting, discarded };
        opened.check(layer.diff_id).map(|()| (Arc::new(opened), Arc::new(tree)))
    }

    /// Without it the layer is read again next time.
    fn keep_index(&self, digest: Digest, index: &Index) {
        use std::io::Write;
        let bytes = index::encode(index);
        let kept = self.0.store.lease().and_then(|lease| lease.spool()).and_then(|mut spool| {
            spool.write_all(&bytes).map_err(|error| spool.error(error))?;
            self.0.kept.keep(&spool, Shelf::Index, &digest.hex(), bytes.len() as u64);
            Ok(())
        });
        if let Err(error) = kept {
            log::warn!("the index of the layer {digest} is not kept: {error}");
        }
    }
}

impl Layer {
    /// Two images can say different things of one blob.
    fn check(&self, expected: DiffId) -> Result<(), Error> {
        if self.diff_id == expected {
            return Ok(());
        }
        Err(Error::Differs { layer: self.digest, found: self.diff_id, expected })
    }
}

fn key(layers: &[LayerView], merged: bool) -> Key {
    let mut hasher = crate::oci::Hasher::new();
    for layer in layers {
        hasher.update(layer.descriptor.digest.as_bytes());
        hasher.update(layer.diff_id.as_bytes());
    }
    (hasher.digest(), merged)
}

#[cfg(test)]
mod tests;
