//! The one integration test binary.

// The exemption in clippy.toml is for functions marked as tests, not for what they share.
#![allow(clippy::unwrap_used, clippy::print_stdout)]
// Nothing here is reached from outside, so that `pub` says who uses it: another module.
#![allow(unreachable_pub)]

mod guard;
mod harness;
