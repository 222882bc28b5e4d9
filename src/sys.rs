//! What the kernel does for us; the only module with `unsafe`, and the only one that names nix, rustix or libc.

pub mod beneath;
pub mod boot;
pub mod clock;
pub mod flock;
