//! Who needs which blob: what an image alone holds, what images share, what a collection would remove.
//!
//! Counted by names, because a name is what is removed. A census is taken once for each state of the store and then
//! read from memory; what a manifest needs never changes, so each is read once.

use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use parking_lot::Mutex;

use crate::oci::{Descriptor, Digest, ImageName};
use crate::store::blob::read_document;
use crate::store::document::{DEEPEST, DOCUMENT_LIMIT, children, is_document};
use crate::store::{Error, Inner, Store, layout};

/// The blobs of one image, each once, with their sizes in bytes.
type Blobs = Arc<[(Digest, u64)]>;

/// What is remembered between censuses.
#[derive(Debug, Default)]
pub(crate) struct Censuses {
    latest: Mutex<Option<(u64, Arc<Census>)>>,
    /// By manifest.
    blobs: Mutex<HashMap<Digest, Blobs>>,
}

/// Who needs what, at one moment.
#[derive(Debug, Default)]
pub struct Census {
    /// How many names need a blob.
    needed_by: HashMap<Digest, u32>,
    /// Blobs.
    pub blobs: u64,
    /// Their length together, in bytes.
    pub bytes: u64,
    /// Of that, what more than one name needs.
    pub shared: u64,
    /// Blobs that a collection would remove now.
    pub garbage_blobs: u64,
    /// Their length together.
    pub garbage_bytes: u64,
}

impl Store {
    /// The census of the store as it is. Looks at every blob if something has changed since the last one.
    pub fn census(&self) -> Result<Arc<Census>, Error> {
        let inner = &self.0;
        let mut latest = inner.censuses.latest.lock();
        let state = inner.changes.load(Ordering::Acquire);
        if let Some((taken, census)) = &*latest
            && *taken == state
        {
            return Ok(Arc::clone(census));
        }
        let census = Arc::new(self.count(&HashSet::new())?);
        *latest = Some((state, Arc::clone(&census)));
        Ok(census)
    }

    /// The last census, if it still holds.
    pub fn census_in_memory(&self) -> Option<Arc<Census>> {
        let latest = self.0.censuses.latest.try_lock()?;
        let (taken, census) = latest.as_ref()?;
        (*taken == self.0.changes.load(Ordering::Acquire)).then(|| Arc::clone(census))
    }

    /// What the store would hold without some of its names.
    pub fn census_without(&self, names: &HashSet<ImageName>) -> Result<Census, Error> {
        self.count(names)
    }

    /// The bytes that one image alone needs: what removing its name would let a collection free. None if it has more
    /// names than one.
    pub fn unique_size(&self, manifest: &Descriptor) -> Result<u64, Error> {
        let census = self.census()?;
        let blobs = self.0.blobs_of(manifest);
        let alone = blobs.iter().filter(|(digest, _)| census.needed_by.get(digest).is_none_or(|names| *names <= 1));
        Ok(alone.map(|(_, size)| size).sum())
    }

    /// Whether some operation holds the blob.
    pub fn is_held(&self, digest: &Digest) -> bool {
        self.0.pins.is_held(digest)
    }

    fn count(&self, without: &HashSet<ImageName>) -> Result<Census, Error> {
        let inner = &self.0;
        let names = self.names();
        let mut manifests: HashMap<Digest, (&Descriptor, u32)> = HashMap::new();
        for (_, record) in names.iter().filter(|(name, _)| !without.contains(name)) {
            for image in record.images() {
                manifests.entry(image.digest).or_insert((image, 0)).1 += 1;
            }
        }
        let mut census = Census::default();
        let mut sizes: HashMap<Digest, u64> = HashMap::new();
        for (manifest, count) in manifests.values() {
            for (digest, size) in inner.blobs_of(manifest).iter() {
                *census.needed_by.entry(*digest).or_default() += count;
                sizes.insert(*digest, *size);
            }
        }
        for (file_name, _) in inner.disk.list(Path::new(layout::BLOBS))? {
            let Some(digest) = file_name.to_str().and_then(layout::blob_digest) else { continue };
            let needed_by = census.needed_by.get(&digest).copied().unwrap_or(0);
            let size = match sizes.get(&digest) {
                Some(size) => *size,
                // One that is gone was collected meanwhile.
                None => match inner.blob_size(&digest)? {
                    Some(size) => size,
                    None => continue,
                },
            };
            census.blobs += 1;
            census.bytes += size;
            if needed_by > 1 {
                census.shared += size;
            }
            if needed_by == 0 && !inner.pins.is_held(&digest) {
                census.garbage_blobs += 1;
                census.garbage_bytes += size;
            }
        }
        inner.censuses.forget_unnamed(&manifests);
        Ok(census)
    }
}

impl Censuses {
    /// Most of what no name stands for any more goes when there is twice too much of it.
    fn forget_unnamed(&self, manifests: &HashMap<Digest, (&Descriptor, u32)>) {
        let mut blobs = self.blobs.lock();
        if blobs.len() > 1024 && blobs.len() > 2 * manifests.len() {
            blobs.retain(|digest, _| manifests.contains_key(digest));
        }
    }
}

impl Inner {
    /// All blobs of an image. Of a document that is missing or damaged only itself is known.
    fn blobs_of(&self, manifest: &Descriptor) -> Blobs {
        if let Some(blobs) = self.censuses.blobs.lock().get(&manifest.digest) {
            return Arc::clone(blobs);
        }
        let mut found: HashMap<Digest, u64> = HashMap::new();
        let mut open = vec![(manifest.clone(), 0)];
        let mut is_whole = true;
        while let Some((blob, depth)) = open.pop() {
            if found.insert(blob.digest, blob.size).is_some() || !is_document(&blob.media_type) || depth > DEEPEST {
                continue;
            }
            let below = read_document(&self.disk, &blob, DOCUMENT_LIMIT)
                .ok()
                .and_then(|bytes| children(&bytes, &blob.media_type).ok());
            is_whole &= below.is_some();
            open.extend(below.unwrap_or_default().into_iter().map(|child| (child, depth + 1)));
        }
        let blobs: Blobs = found.into_iter().collect();
        if is_whole {
            self.censuses.blobs.lock().insert(manifest.digest, Arc::clone(&blobs));
        }
        blobs
    }

    /// What a census says is not so any more.
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }
}
