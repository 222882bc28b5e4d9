//! What the kernel does for us; the only module with `unsafe`, and the only one that names nix, rustix or libc.

pub mod abi;
pub mod account;
pub mod beneath;
pub mod boot;
pub mod cgroup;
pub mod clock;
pub mod copy;
pub mod daemonize;
pub mod dir;
pub mod flock;
pub mod held;
pub mod inside;
pub mod mount;
pub mod packet;
pub mod process;
mod procfs;
pub mod space;
mod switch;
pub mod xattr;
