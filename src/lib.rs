//! snapfs presents a host's containers as directories and turns a write into a snapshot.
//!
//! The library is an hourglass: a write travels down from [`fuse`] through [`tree`] and [`api`] to an operation
//! ([`commit`]), a read travels up from [`store`] through [`image`] and [`api`] to the tree, and the two meet at the
//! store alone. Imports point down and never to a peer; `docs/architecture.md` holds the table and
//! `tests/integration/layering.rs` holds the code against it.

pub mod filter;
pub mod line;
pub mod oci;
pub mod progress;
pub mod retention;

pub mod sys;

pub mod engine;
pub mod guard;
pub mod job;
pub mod store;

pub mod archive;
pub mod changeset;
pub mod image;
pub mod view;

pub mod squash;

pub mod capture;
pub mod criu;

pub mod checkpoint;
pub mod commit;
pub mod restore;

pub mod api;
pub mod tree;

pub mod fuse;

pub mod cli;
pub mod config;
pub mod daemon;
