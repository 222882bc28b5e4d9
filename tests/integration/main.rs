//! The one integration test binary: a module is a subject.
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "clippy.toml exempts only functions marked #[test]")]
#![allow(clippy::single_range_in_vec_init, reason = "a vector of ranges is what is meant")]
#![allow(clippy::print_stdout, reason = "measurements, with --nocapture")]
// Nothing here is reached from outside, so that `pub` says who uses it: another module.
#![allow(unreachable_pub)]

// What the tests share.
mod harness;

// Images as archives: oci.tar, and what /snap/import takes.
mod archive;
// The store stopped after every one of its operations, and with every one of them failing.
mod crash_store;
// What a person finds right after something ended or failed.
mod aftermath;
// What a container changed, on real overlay mounts.
mod changeset;
// Running processes as images, and what stock engines make of them.
mod checkpoint;
// What an image of a commit consists of.
mod commit;
// Control files: every rule of docs/interface.md, on the tree.
mod control;
// A whole commit stopped after every operation of its store, and with every one of them failing.
mod crash_commit;
// docs/interface.md against the tables in the code.
mod docs;
// What every engine must do, done to the fake, to recorded state and, in the lab, to the real ones.
mod engines;
// Collection beside commits.
mod gc;
// Freezing, and who thaws when the daemon dies.
mod guard;
// Sizes, events, metrics, retention and collection, jobs as they are followed.
mod housekeeping;
// What other tools make of the images of real containers.
mod interop;
// The daemon killed at any moment of a commit.
mod kill;
// Labels on image names: their files, and what tools make of them.
mod labels;
// A layer's bytes: frames, seek table, retraction, failures, memory.
mod layer;
// Snapshots of snapshots.
mod incremental;
// The import table of docs/architecture.md against src/.
mod layering;
// The life of a mount, and what every program may expect of it.
mod mount;
// Options of a commit against the engines that have the same.
mod options;
// What filters choose.
mod query;
// A container's tree, and what independent tools make of its layers.
mod restore;
mod roundtrip;
// A hundred thousand images.
mod scale;
// A container that is frozen for a moment, with processes in it that write all the time.
mod seal;
// Control files as people write to them.
mod shells;
// Several layers made one.
mod squash;
// The units and fstab under a real systemd.
mod systemd;
// The bytes of a layer.
mod tar;
// What the tree shows, file by file, and against a model.
mod tree;
// The files of images, as trees.
mod view;
