//! What a container changed, and its tar: the image specification's "Image Layer Filesystem Changeset" (`layer.md`).
//!
//! [`scan`] finds the changes and gives them as values, [`Changes`]; [`tar::write`] encodes them, reading the content of
//! files on the way; [`flatten`] makes a whole tree of what lies below an overlay. Finding and encoding never meet, so
//! that a changeset can be looked at, compared and counted before a byte of it is read.
//!
//! What must hold: nothing outside the container's directories is opened, whatever its files are replaced by meanwhile;
//! nothing but regular files and directories is opened at all; the same changes give the same bytes.

mod collect;
mod cursor;
mod earlier;
mod entry;
mod flatten;
mod location;
mod lower;
mod overlay;
mod pack;
mod pax;
mod plain;
mod scan;
mod settled;
mod snapshot;
pub mod tar;

pub use collect::Error;
pub use earlier::Earlier;
pub use entry::{Changes, Entry, Kind, Metadata, escape};
pub use flatten::{fingerprint, flatten};
pub use location::Location;
pub use overlay::Namespace;
pub(crate) use pax::xattr_name;
pub use plain::entries_without_whiteouts;
pub use scan::{Source, scan};
pub use settled::{SETTLED, is_settled};
pub use snapshot::{Difference, Place, Reader, Snapshot};
