//! The files of images: `rootfs/` and `layers/N/tree/`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod figures;
mod hostile;
pub(crate) mod images;
mod reading;
mod same;
pub(crate) mod tars;
