//! What the tests share.

pub mod cgroup;
pub mod hung_fuse;
