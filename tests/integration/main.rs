//! The one integration test binary: a module is a subject.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "clippy.toml exempts only functions marked #[test]")]

// What the tests share.
mod harness;

// What every engine must do, done to the fake, to recorded state and, in the lab, to the real ones.
mod engines;
