//! What the tests stand on: things made, things observed. No test is here.

pub(crate) mod rootfs;
