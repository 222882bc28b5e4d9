//! One directory of plain files: blobs that all images share, and one small record for every image name.
//!
//! ```text
//! version               "snapfs-store 1"
//! lock                  held by the daemon for its life
//! blobs/sha256/<hex>    immutable
//! names/<image name>    what the name stands for; the name is the path, so a rename is one rename(2)
//! retention             the policy by which names are removed; absent if there is none
//! stage/<boot>-<n>/     a lease's unfinished files
//! cache/<kind>/<key>    facts that can be found out again
//! quarantine/<n>/…      what could not be read, under the path it had
//! ```
//!
//! What holds after a crash at any moment:
//!
//! 1. A name that can be seen stands for a whole image: every blob it needs is there, durable, with its digest.
//! 2. What [`Store::tag`], [`rename`](Store::rename) or [`remove`](Store::remove) reported as done survives a power cut.
//! 3. What was not reported as done leaves nothing but blobs without a name, which [`Store::gc`] removes.
//! 4. Collection never removes a blob that a name leads to or a [`Lease`] holds.
//! 5. A damaged file damages the images that need it, and nothing else.
//!
//! 1 and 2 come from one order: a blob's bytes are synced before it gets its name, the directory of blobs before an
//! image gets its name, and the directory of that name before success is reported. `docs/store.md` has the rest.

mod about;
mod backend;
mod blob;
mod cache;
mod census;
mod disk;
mod document;
mod error;
mod fsck;
mod gc;
mod layout;
mod lease;
mod names;
mod record;
mod relabel;
mod retention;
mod scan;
mod spool;
mod tag;
#[cfg(test)]
mod tests;
mod watch;

pub use backend::{Backend, DirBackend, FileKind, Pending};
pub use blob::BlobWriter;
pub use census::Census;
pub use document::DOCUMENT_LIMIT;
pub use error::Error;
pub use fsck::{Fault, Needed, Problem};
pub use gc::Collected;
pub use lease::Lease;
pub use names::{Conflict, Entry};
pub use record::{RECORD_LIMIT, Record};
pub use retention::RETENTION_LIMIT;
pub use spool::Spool;
pub use tag::Replace;
pub use watch::Change;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use parking_lot::{Mutex, RwLock};

use crate::oci::{Digest, ImageName};
use crate::store::disk::Disk;
use crate::store::lease::Pins;
use crate::store::names::Names;
use crate::store::scan::scan;
use crate::sys::boot;
pub use crate::sys::space::Space;

/// An open store. Clones share it, and threads may use it at once.
#[derive(Debug, Clone)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    disk: Disk,
    boot_id: String,
    /// What was not in order at the start.
    faults: Vec<Fault>,
    /// A record that is there and that the disk did not give at the start.
    unread: Option<PathBuf>,
    names: RwLock<Names>,
    /// Taken by whoever changes names, for the whole change; readers of `names` do not wait for the disk.
    turn: Mutex<Turn>,
    /// Blobs that this daemon has written or hashed.
    sound: Mutex<HashSet<Digest>>,
    pins: Pins,
    /// One collection at a time.
    collection: Mutex<()>,
    /// How many leases there were.
    leases: AtomicU64,
    /// How often names or blobs came or went.
    changes: AtomicU64,
    censuses: census::Censuses,
    watch: watch::Watch,
}

#[derive(Debug)]
struct Turn {
    /// The highest that a record has.
    generation: u64,
}

/// How much a store holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Blobs, with those that no name needs any more.
    pub blobs: u64,
    /// Their length together, in bytes.
    pub bytes: u64,
    /// Image names.
    pub names: u64,
}

impl Store {
    /// Open the store in a directory for this process alone, making it if it is missing.
    ///
    /// Errors: as [`DirBackend::open`] and [`Store::open`].
    pub fn open_dir(place: &Path) -> Result<Store, Error> {
        Store::open(Arc::new(DirBackend::open(place)?))
    }

    /// Open a store and recover it: what unfinished operations left is removed, what cannot be read is moved to
    /// `quarantine/` and told by [`faults`](Self::faults). The backend must be nobody else's.
    ///
    /// Errors: a newer program wrote it, or its directories cannot be made or read.
    pub fn open(backend: Arc<dyn Backend>) -> Result<Store, Error> {
        let disk = Disk::new(backend);
        let mut faults = Vec::new();
        prepare(&disk, &mut faults)?;
        clear_stage(&disk, &mut faults);
        let (names, generation, unread) = load_names(&disk, &mut faults)?;
        let boot_id =
            boot::boot_id().map_err(|source| Error::io("read", "/proc/sys/kernel/random/boot_id".into(), source))?;
        Ok(Store(Arc::new(Inner {
            disk,
            boot_id,
            faults,
            unread,
            names: RwLock::new(names),
            turn: Mutex::new(Turn { generation }),
            sound: Mutex::default(),
            pins: Pins::default(),
            collection: Mutex::new(()),
            leases: AtomicU64::new(0),
            changes: AtomicU64::new(0),
            censuses: census::Censuses::default(),
            watch: watch::Watch::default(),
        })))
    }

    /// What was not in order when the store was opened, and what was done about it.
    pub fn faults(&self) -> &[Fault] {
        &self.0.faults
    }

    /// Why the store takes no more changes, if so: see [`Error::ReadOnly`].
    pub fn failure(&self) -> Option<&str> {
        self.0.disk.failure()
    }

    /// The store's directory, or where else it says that it is.
    pub fn place(&self) -> &Path {
        self.0.disk.place()
    }

    /// All names with their records, in order, as they are at this moment. Costs nothing.
    pub fn names(&self) -> Arc<BTreeMap<ImageName, Arc<Record>>> {
        self.0.names.read().snapshot()
    }

    /// What a name stands for.
    pub fn record(&self, name: &ImageName) -> Option<Arc<Record>> {
        self.0.names.read().get(name).cloned()
    }

    /// Whether there are images below a directory such as `registry.example/team`; the top is the empty text.
    pub fn has_children(&self, directory: &str) -> bool {
        self.0.names.read().list(directory).is_some()
    }

    /// What is in a directory of images, in order; empty if there is no such directory.
    pub fn list(&self, directory: &str) -> Vec<(String, Entry)> {
        let names = self.0.names.read();
        let entries = names.list(directory).into_iter().flatten();
        entries.map(|(name, entry)| (name.clone(), entry.clone())).collect()
    }

    /// The directory on the host for containers made of images. The store keeps nothing in it, and does not make it.
    pub fn containers(&self) -> PathBuf {
        self.0.disk.full(Path::new(layout::CONTAINERS))
    }

    /// The directory on the host for images that are unpacked. The store keeps nothing in it, and does not make it.
    pub fn roots(&self) -> PathBuf {
        self.0.disk.full(Path::new(layout::ROOTS))
    }

    /// Whether a snapshot of this store's own is the image of that manifest: no image that came from elsewhere is, whatever
    /// it says of itself.
    pub fn is_made_here(&self, manifest: &Digest) -> bool {
        self.names().values().any(|record| record.made_here && record.manifest.digest == *manifest)
    }

    /// How much room the store's file system has.
    pub fn space(&self) -> Result<Space, Error> {
        self.0.disk.space()
    }

    /// How much the store holds. Looks at every blob.
    pub fn usage(&self) -> Result<Usage, Error> {
        let mut usage = Usage { blobs: 0, bytes: 0, names: self.names().len() as u64 };
        for (file_name, _) in self.0.disk.list(Path::new(layout::BLOBS))? {
            let Some(digest) = file_name.to_str().and_then(layout::blob_digest) else { continue };
            // One that is gone was collected meanwhile.
            if let Some(size) = self.0.blob_size(&digest)? {
                usage.blobs += 1;
                usage.bytes += size;
            }
        }
        Ok(usage)
    }
}

/// Check the version, make the directories, and write the version last: without it there is no store yet.
fn prepare(disk: &Disk, faults: &mut Vec<Fault>) -> Result<(), Error> {
    let path = Path::new(layout::VERSION_FILE);
    let version = match disk.read(path, layout::VERSION_LIMIT) {
        Ok(bytes) => bytes,
        Err(Error::TooLarge { .. } | Error::Corrupt { .. }) => Some(Vec::new()),
        Err(error) => return Err(error),
    };
    let known = version.as_deref().and_then(layout::parse_version);
    if let Some(found) = known.filter(|found| *found > layout::VERSION) {
        return Err(Error::NewerVersion { place: disk.place().to_owned(), found, known: layout::VERSION });
    }
    for directory in layout::DIRECTORIES.map(Path::new) {
        match disk.make_dir(directory) {
            Ok(true) => disk.sync_dir(disk::parent(directory))?,
            Ok(false) => {}
            // A file in a directory's place: out of the way with it.
            Err(_) if matches!(disk.stat(directory)?, Some((FileKind::File | FileKind::Other, _))) => {
                faults.push(set_aside(disk, directory, Problem::NoDirectory));
                disk.make_dir(directory)?;
                disk.sync_dir(disk::parent(directory))?;
            }
            Err(error) => return Err(error),
        }
    }
    if known == Some(layout::VERSION) {
        return Ok(());
    }
    let is_new = version.is_none() && disk.list(Path::new(layout::NAMES))?.is_empty();
    if version.is_some() {
        faults.push(set_aside(disk, path, Problem::BadVersion));
    } else if !is_new {
        faults.push(Fault { path: disk.full(path), problem: Problem::BadVersion });
    }
    clear_stage(disk, faults);
    let staged = Path::new(layout::STAGE).join(layout::VERSION_FILE);
    disk.write_synced(&staged, layout::version_line(layout::VERSION).as_bytes())?;
    disk.rename(&staged, path)?;
    disk.sync_dir(Path::new(layout::ROOT))
}

/// Nobody else is in the store, so everything staged was left by a daemon that died.
fn clear_stage(disk: &Disk, faults: &mut Vec<Fault>) {
    let stage = Path::new(layout::STAGE);
    let mut report = |path: &Path, error: Error| {
        faults.push(Fault { path: disk.full(path), problem: Problem::Unreadable { reason: error.to_string() } });
    };
    match disk.list(stage) {
        Ok(entries) => {
            for (name, kind) in entries {
                let path = stage.join(name);
                let removed = match kind {
                    FileKind::Directory => disk.remove_tree(&path),
                    FileKind::File | FileKind::Other => disk.remove_file(&path),
                };
                if let Err(error) = removed {
                    report(&path, error);
                }
            }
        }
        Err(error) => report(stage, error),
    }
}

/// All sound names, the highest generation, and a record that is there but that the disk did not give.
fn load_names(disk: &Disk, faults: &mut Vec<Fault>) -> Result<(Names, u64, Option<PathBuf>), Error> {
    let mut scan = scan(disk)?;
    let mut unread = None;
    for (path, problem) in std::mem::take(&mut scan.bad) {
        let fault = if matches!(problem, Problem::Unreadable { .. }) {
            // Perhaps only for the moment: it stays, and so do all blobs.
            Fault { path: disk.full(&path), problem }
        } else {
            set_aside(disk, &path, problem)
        };
        if !matches!(fault.problem, Problem::Quarantined { .. }) {
            unread = Some(disk.full(&path));
        }
        faults.push(fault);
    }
    for directory in scan.idle_directories() {
        // Not empty, if a record in it could not be moved.
        let _ = disk.remove_dir(&directory);
    }
    let mut names = Names::default();
    let mut generation = 0;
    for (name, record) in scan.images {
        generation = generation.max(record.generation);
        names.insert(name, Arc::new(record));
    }
    Ok((names, generation, unread))
}

/// Move a bad file to quarantine; if that fails too, the fault is reported as it is.
fn set_aside(disk: &Disk, path: &Path, problem: Problem) -> Fault {
    let problem = match disk.quarantine(path) {
        Ok(moved_to) => Problem::Quarantined { problem: Box::new(problem), moved_to: disk.full(&moved_to) },
        Err(_) => problem,
    };
    Fault { path: disk.full(path), problem }
}
