//! The one integration test binary: a module is a subject.

// clippy.toml exempts test functions; here every function is one's helper.
#![allow(clippy::unwrap_used)]

// What the tests share.
mod harness;

// The store stopped after every one of its operations, and with every one of them failing.
mod crash_store;
// Collection beside commits.
mod gc;
