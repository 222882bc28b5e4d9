//! The files of an image, as trees.

use std::sync::Arc;

use crossbeam_channel::Sender;

use crate::api::{Error, ErrorKind, ImageKey, Snapfs};
use crate::store::Store;
use crate::view::{DEFAULT_CACHE, Found, Opened, View, Views};

/// How the trees of images are shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ViewSettings {
    /// How many bytes may be kept on the store's disk to show images sooner.
    pub cache: u64,
    /// Whether symbolic links that lead out of an image are shown as if the image were all there is.
    pub symlinks_in_root: bool,
}

impl Default for ViewSettings {
    fn default() -> ViewSettings {
        ViewSettings { cache: DEFAULT_CACHE, symlinks_in_root: false }
    }
}

pub(super) fn start(store: Store, settings: &ViewSettings, wake: Sender<()>) -> Views {
    let wake = move || {
        // A full channel already holds the wake-up that this one would be.
        let _ = wake.try_send(());
    };
    Views::new(store, settings.cache, Box::new(wake))
}

impl Snapfs {
    /// The tree of an image, or of its layer with the number `layer`. Nothing is waited for: [`Snapfs::ended`] says when to
    /// ask a promise again.
    pub fn view(&self, key: &ImageKey, layer: Option<usize>) -> Result<Found, Error> {
        let image = self.image(key)?;
        let Some(at) = layer else { return Ok(self.views.image(&image.layers)) };
        let gone = || Error::new(ErrorKind::NotFound, "the image has no such layer");
        Ok(self.views.layer(image.layers.get(at).ok_or_else(gone)?))
    }

    /// The same, if it is there already: nothing is read.
    pub fn known_view(&self, key: &ImageKey, layer: Option<usize>) -> Option<Arc<View>> {
        let image = self.image(key).ok()?;
        match layer {
            None => self.views.peek(&image.layers, true),
            Some(at) => self.views.peek(image.layers.get(at..=at)?, false),
        }
    }

    /// Open a regular file of a tree.
    pub fn open_in_view(&self, view: &View, inode: u32) -> Result<Opened, Error> {
        Ok(self.views.open(view, inode)?)
    }

    /// Whether symbolic links that lead out of an image are shown as if the image were all there is.
    pub fn symlinks_in_root(&self) -> bool {
        self.symlinks_in_root
    }
}
