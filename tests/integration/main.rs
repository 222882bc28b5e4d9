//! The one integration test binary.

mod harness;

mod changeset;
mod roundtrip;
mod tar;
