//! (under construction)

pub mod changeset;
mod collect;
mod cursor;
pub mod entry;
pub mod flatten;
mod lower;
pub mod overlay;
mod pax;
pub mod tar;
