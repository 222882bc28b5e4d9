//! What there is to know of CRIU for whoever has it run: its version, and the sentence behind its log.

mod explain;

pub use explain::explain;
