//! Telling somebody what changed.

use std::fmt;
use std::sync::OnceLock;

use crate::oci::{Digest, ImageName};
use crate::store::Store;

/// A change that is durable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A name was given to an image; `replaced` if it stood for one before.
    Named {
        /// The name.
        name: ImageName,
        /// The image's manifest.
        manifest: Digest,
        /// Whether it is not new.
        replaced: bool,
    },
    /// A name was removed.
    Removed {
        /// The name.
        name: ImageName,
    },
    /// An image got another name; `replaced` if that stood for one before.
    Renamed {
        /// Its name before.
        from: ImageName,
        /// Its name now.
        to: ImageName,
        /// Whether the new name is not new.
        replaced: bool,
    },
    /// Labels of a name changed.
    Labelled {
        /// The name.
        name: ImageName,
        /// Their keys.
        keys: Vec<String>,
    },
    /// A collection ended.
    Collected {
        /// How many blobs it removed.
        blobs: u64,
        /// Their length together.
        bytes: u64,
    },
}

type Told = dyn Fn(&Change) + Send + Sync;

/// Who is told; one at most.
#[derive(Default)]
pub(crate) struct Watch(OnceLock<Box<Told>>);

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

impl Watch {
    pub(crate) fn tell(&self, change: &Change) {
        if let Some(told) = self.0.get() {
            told(change);
        }
    }
}

impl Store {
    /// Have `told` called with every change from now on, in their order and by whoever makes them, who must not be kept
    /// waiting. Only the first call counts.
    pub fn watch(&self, told: impl Fn(&Change) + Send + Sync + 'static) {
        let _ = self.0.watch.0.set(Box::new(told));
    }
}
