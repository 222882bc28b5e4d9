//! What a container was started from, as its engine stored it.

use std::fmt;
use std::io::Read;
use std::sync::Arc;

use crate::engine::Error;
use crate::oci::DiffId;

/// The image that a container was started from.
#[derive(Debug, Clone)]
pub struct BaseImage {
    /// The name under which the container was started, if it was started under one.
    pub name: Option<String>,
    /// The image's configuration, byte for byte: its SHA-256 is the image's id.
    pub config: Vec<u8>,
    /// The layers, bottom first: one for each entry of the configuration's `rootfs.diff_ids`.
    pub layers: Vec<BaseLayer>,
}

/// One layer of a base image.
#[derive(Clone)]
pub struct BaseLayer {
    /// The digest that the layer's tar has, as the image's configuration says: whoever reads the tar must check it.
    pub diff_id: DiffId,
    open: Arc<Open>,
}

type Open = dyn Fn() -> Result<Box<dyn Read + Send>, Error> + Send + Sync;

impl BaseLayer {
    /// A layer whose tar `open` gives.
    pub fn new(
        diff_id: DiffId,
        open: impl Fn() -> Result<Box<dyn Read + Send>, Error> + Send + Sync + 'static,
    ) -> BaseLayer {
        BaseLayer { diff_id, open: Arc::new(open) }
    }

    /// The layer's uncompressed tar, exactly as the engine got it; made again from the start at each call.
    ///
    /// An error while it is read has an [`enum@Error`] as its source.
    pub fn open(&self) -> Result<Box<dyn Read + Send>, Error> {
        (self.open)()
    }
}

impl fmt::Debug for BaseLayer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BaseLayer").field("diff_id", &self.diff_id).finish_non_exhaustive()
    }
}
