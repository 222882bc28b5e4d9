//! What is asked of many images at once, remembered by the manifest's digest: a manifest never changes, so a question
//! about a hundred thousand images opens each manifest once in the daemon's life.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;

use crate::api::{Image, Snapfs};
use crate::oci::{Descriptor, Digest};

/// The part of an image that questions are about.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) created: Option<String>,
    pub(super) size: u64,
    pub(super) annotations: BTreeMap<String, String>,
}

/// All that were asked for.
#[derive(Debug, Default)]
pub(super) struct AllFacts(RwLock<HashMap<Digest, Arc<Facts>>>);

impl Snapfs {
    /// The facts of an image; `None` if it cannot be read, which whoever opens it will be told.
    pub(super) fn facts(&self, manifest: &Descriptor) -> Option<Arc<Facts>> {
        if let Some(facts) = self.facts.0.read().get(&manifest.digest) {
            return Some(Arc::clone(facts));
        }
        let image = Image::open(&self.store, manifest).ok()?;
        let size = image.size();
        let facts = Facts { created: image.created, size, annotations: image.annotations };
        let facts = Arc::new(facts);
        let mut all = self.facts.0.write();
        // Most of what a name no longer stands for goes when there is twice too much of it.
        if all.len() > 1024 && all.len() > 2 * self.store.names().len() {
            let names = self.store.names();
            let named: std::collections::HashSet<Digest> = names.values().map(|name| name.manifest.digest).collect();
            all.retain(|digest, _| named.contains(digest));
        }
        all.insert(manifest.digest, Arc::clone(&facts));
        Some(facts)
    }
}
