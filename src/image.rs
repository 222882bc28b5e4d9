//! An image in the store: to build ([`LayerWriter`], [`Draft`]) and to read ([`Image`]).

mod build;
mod change;
mod chunked;
mod decode;
mod frame;
mod layer;
mod output;
mod pipeline;
mod read;
mod retract;
mod seek_table;
mod tar_entries;
mod unpacked;

pub use build::{Draft, History, Parent};
pub use change::{Change, InvalidChange, Verb as ChangeVerb};
pub use chunked::{TAIL, seek_table_end};
pub use decode::Encoding;
pub(crate) use frame::Encoded;
pub use layer::{Compression, Layer, LayerWriter, Unpublished};
pub use read::{Image, LayerView};
pub use unpacked::unpacked_size;

use crate::oci::Digest;
use crate::store;

/// Why an image could not be built or read.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The compressor or the blob's file failed.
    #[error("cannot write the layer: {0}")]
    Write(#[source] std::io::Error),
    /// What was written of a layer could not be read again.
    #[error("cannot read the unfinished layer back: {0}; commit again, and see the kernel's log for the disk")]
    ReadBack(#[source] std::io::Error),
    /// Bytes to take out of a layer are not in it, which only a defect can cause.
    #[error("cannot take bytes {} to {} out of a layer of {length}", range.start, range.end)]
    NotInLayer {
        /// The bytes.
        range: std::ops::Range<u64>,
        /// The length of the tar, in bytes.
        length: u64,
    },
    /// A document is not what its media type says.
    #[error("{what} {digest} cannot be read: {reason}; run snapfs fsck")]
    Malformed {
        /// `the manifest`, `the image config`.
        what: &'static str,
        /// Which.
        digest: Digest,
        /// What is wrong.
        reason: String,
    },
    /// The image config of the container's base image cannot be built upon.
    #[error("the base image's config cannot be built upon: {0}")]
    BaseConfig(String),
    /// A change of the image's configuration that makes no sense for this image.
    #[error("change= cannot be applied to this image: {0}")]
    Change(#[from] InvalidChange),
    /// JSON could not be made, which only a defect can cause.
    #[error("cannot encode a document: {0}")]
    Encode(#[from] serde_json::Error),
}
