//! What the kernel does for us; the only module with `unsafe`, and the only one that names nix, rustix or libc.

// Files. Three ways into a directory, by whose it is: ours to change, an engine's to read (links stay inside), a
// container's to distrust (one name at a time, nothing followed).
pub mod beneath;
pub mod copy;
pub mod dir;
pub mod inside;

pub mod flock;
pub mod ground;
pub mod space;
pub mod terminal;
pub mod xattr;

// Processes, and the cgroups that hold them.
pub mod account;
pub mod cgroup;
pub mod daemonize;
pub mod held;
pub mod packet;
pub mod priority;
pub mod process;
mod procfs;
pub mod reap;
mod switch;
pub mod tracer;

// The rest of the machine.
pub mod abi;
pub mod boot;
pub mod clock;
pub mod memory;
pub mod mount;
