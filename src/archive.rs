//! Images as archives: a whole image as one tar to read ([`Archive`]), and an archive that is written, as images
//! ([`import`]).
//!
//! What must hold: nothing is copied to be given, and the size is known before a byte is read; what is taken is written
//! once, as it comes in, whatever its order; and no name is given before every digest, size and diff_id was compared
//! with the bytes themselves. An archive is hostile until then: its names are never paths of ours.

mod error;
mod import;
mod intake;
mod json;
mod layout;
mod plan;
mod request;
mod tar;

pub use error::Error;
pub use import::{Imported, import};
pub use layout::{Archive, Layout};
pub use request::is_request;
