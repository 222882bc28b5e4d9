//! What can go wrong between an engine's files and a container.

use std::io;
use std::path::PathBuf;

use crate::sys::process;

/// A step that failed at an engine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or directory of the engine could not be read.
    #[error("cannot read {path:?}: {source}; check that the engine's directory is whole and readable")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file is larger than anything the engine writes.
    #[error("cannot use {path:?}: it has more than {limit} bytes, which no engine writes; look who made it")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read, in bytes.
        limit: u64,
    },
    /// A file is not the JSON that the engine writes.
    #[error("cannot use {path:?}: {source}; if the engine is newer than docs/engines.md says, report it")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where in it, and what was expected.
        source: serde_json::Error,
    },
    /// A file says something that must not be acted upon.
    #[error("cannot use {path:?}: {reason}; if no one wrote it by hand, report it")]
    State {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The container's cgroup is not where its state says, so it could not be frozen safely.
    #[error("cannot use container {id}: {reason}; restart the container, and start snapfs outside of it")]
    Cgroup {
        /// The container.
        id: String,
        /// What was found.
        reason: String,
    },
    /// A file of `/proc` that was there for others could not be read.
    #[error("cannot read {path:?}: {source}; snapfs needs root and the host's /proc")]
    Proc {
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The configuration names an engine that there is no adapter for.
    #[error("no engine is called {name:?}; the engines are podman, runc and crun")]
    UnknownEngine {
        /// What was given.
        name: String,
    },
    /// No container has this name, id, or prefix of an id.
    #[error("no container is called {name:?}; ls containers/ shows those that there are")]
    NoContainer {
        /// What was given.
        name: String,
    },
    /// Several containers' ids begin like this.
    #[error("{matches} containers have an id that begins with {prefix:?}; give more of the id, or the name")]
    Ambiguous {
        /// What was given.
        prefix: String,
        /// How many.
        matches: usize,
    },
    /// The container is no longer in the engine's files.
    #[error("container {id} is gone from {engine}; look whether it was removed")]
    Gone {
        /// The container's id.
        id: String,
        /// The engine that had it.
        engine: &'static str,
    },
    /// The image's record and its layers do not agree.
    #[error("cannot take over base image {image}: {reason}; try `podman system check`, or pull the image again")]
    Image {
        /// The image's id.
        image: String,
        /// What does not agree.
        reason: String,
    },
    /// A layer has no tar-split data, so its tar cannot be made again.
    #[error("layer {layer} has no tar-split data at {path:?}: {source}; pull its image again without partial pulls")]
    NoTarSplit {
        /// The layer's id at the engine.
        layer: String,
        /// Where the data should be.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A layer's tar-split data is damaged.
    #[error("cannot make the tar of layer {layer} again: {reason}; try `podman system check`, or pull the image again")]
    TarSplit {
        /// The layer's id at the engine.
        layer: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A file of a layer is not as it was when the layer was made.
    #[error("file {file:?} of layer {layer} changed since the image was pulled: {reason}; pull the image again")]
    LayerFile {
        /// The layer's id at the engine.
        layer: String,
        /// The file, as the layer's tar names it.
        file: String,
        /// What is different.
        reason: String,
    },
    /// The engine was asked and has not answered yet.
    #[error("podman has not told the labels of container {id} yet; read them again in a moment")]
    NotYet {
        /// The container.
        id: String,
    },
    /// The engine was asked a moment ago, in vain.
    #[error("the labels of container {id} are not known: {reason}")]
    Untold {
        /// The container.
        id: String,
        /// What became of the question.
        reason: String,
    },
    /// The engine's own program failed.
    #[error("`{command}` failed: {source}; run it by hand to see why")]
    Program {
        /// The command line.
        command: String,
        /// What happened to it.
        source: process::Error,
    },
    /// It was told to end, and killed, and still has processes.
    #[error("container {id} was killed and still runs; look what its first process waits for: cat /proc/{pid}/stack")]
    StillRuns {
        /// The container.
        id: String,
        /// Its first process.
        pid: u32,
    },
    /// The engine's own program gave an answer that cannot be used.
    #[error(
        "`{command}` gave an answer that cannot be used: {reason}; if it is newer than docs/engines.md says, report it"
    )]
    Answer {
        /// The command line.
        command: String,
        /// What is wrong with the answer.
        reason: String,
    },
}
