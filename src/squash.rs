//! Several layers become one, from what the store has of them: [`squash`].
//!
//! The layers' tars are read twice. The first time each is held against its DiffID and indexed; the trees are merged as for
//! `rootfs/`, and [`plan`] says what of them belongs into the one layer. The second time that is copied: headers and content as they
//! are where the file keeps its name, and whole frames without being decoded and encoded where nothing in them goes.
//!
//! What must hold: on the layers below, the one layer makes the tree that all of them made; nothing is believed of a layer
//! that has not its DiffID; the same layers give the same one.

mod plan;
mod weave;

use crate::changeset::tar;
use crate::image::{self, Compression, Layer, LayerWriter};
use crate::progress::{Cancelled, Progress};
use crate::store::{self, Lease, Store};
use crate::view::{self, Tree, Whole, merge};
use plan::Plan;
use weave::Weaver;

/// Why layers could not be made one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A layer is damaged, or is none that an unpacker takes.
    #[error("the image's layers cannot be merged; commit with base=image, or without squash=")]
    Layer(#[from] view::Error),
    /// It would take too much memory.
    #[error("the image's layers cannot be merged: the paths in them have more than {} MiB", plan::MOST_TEXT >> 20)]
    TooMuch,
    /// A file's attributes fit into no tar.
    #[error(transparent)]
    Tar(#[from] tar::Error),
    /// The layer could not be written.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// It was asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// `layers[below..]` as one layer, to be laid on `layers[..below]`. None if there would be nothing in it.
///
/// All of them are in the store and held by `lease`, stored with `compression`.
pub fn squash(
    store: &Store,
    lease: &Lease,
    layers: &[Layer],
    below: usize,
    compression: Compression,
    progress: &Progress,
) -> Result<Option<Layer>, Error> {
    progress.enter("merging layers");
    let mut wholes = Vec::with_capacity(layers.len());
    for layer in layers {
        progress.check()?;
        wholes.push(Whole::read(store, layer)?);
    }
    let trees: Vec<&Tree> = wholes.iter().map(|whole| &whole.tree).collect();
    let merged = |trees: &[&Tree]| merge(trees).map_err(view::Error::Unmergeable);
    let all = merged(&trees)?;
    let base = match below {
        0 => None,
        _ => Some(merged(&trees[..below])?),
    };
    let is_named = |layer: u32, content: u64, path: &[u8]| wholes[layer as usize].headers(content, path).is_some();
    let plan = Plan::of(&all, base.as_ref(), wholes.len(), &is_named).ok_or(Error::TooMuch)?;
    drop(base);
    if plan.is_empty() {
        return Ok(None);
    }
    let writer = LayerWriter::new(lease.blob()?, compression)?;
    let mut weaver = Weaver { all: &all, compression, writer, progress };
    weaver.entries(&plan.early)?;
    for (whole, files) in wholes.iter().zip(&plan.files) {
        weaver.files(whole, files)?;
    }
    weaver.entries(&plan.rest)?;
    let layer = weaver.finish()?;
    progress.log(format!("merged {} layers into {}", layers.len() - below, layer.diff_id));
    Ok(Some(layer))
}
