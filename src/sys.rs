//! What the kernel does for us; the only module with `unsafe`, and the only one that names nix, rustix or libc.

pub mod cgroup;
pub mod clock;
pub mod flock;
pub mod packet;
pub mod process;
mod procfs;
