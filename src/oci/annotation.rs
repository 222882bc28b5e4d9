//! Every annotation key that snapfs writes or reads, in one list.

/// When the image was made, RFC 3339 (image-spec `annotations.md`).
pub const CREATED: &str = "org.opencontainers.image.created";
/// Who made it.
pub const AUTHORS: &str = "org.opencontainers.image.authors";
/// What it is, for a person.
pub const DESCRIPTION: &str = "org.opencontainers.image.description";
/// The name of an entry of `index.json` (image-spec `image-layout.md`).
pub const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The whole name of an entry of `index.json`, as containerd and docker write it into archives.
pub const CONTAINERD_NAME: &str = "io.containerd.image.name";
/// The image that the container was started from.
pub const BASE_NAME: &str = "org.opencontainers.image.base.name";

/// `commit`, `checkpoint`, or absent for an image that came from elsewhere.
pub const KIND: &str = "io.snapfs.kind";
/// The container's name at its engine.
pub const CONTAINER_NAME: &str = "io.snapfs.container.name";
/// The container's id at its engine.
pub const CONTAINER_ID: &str = "io.snapfs.container.id";
/// The engine that had the container.
pub const ENGINE: &str = "io.snapfs.engine";
/// What the last layer is the difference to: `image`, the image that the container was started from, `snapshot`, one
/// made of the container before, or `none` if all is in one layer.
pub const BASE: &str = "io.snapfs.base";
/// The digest of that snapshot's manifest.
pub const PARENT: &str = "io.snapfs.parent";
/// How the container was held still: `seal`, `full`, `none`, `stop`, or `paused` when its user had paused it.
pub const PAUSE: &str = "io.snapfs.pause";
/// How long the container was frozen, in whole microseconds; left out under `SOURCE_DATE_EPOCH`.
pub const FROZEN_MICROSECONDS: &str = "io.snapfs.frozen_us";
/// How often the files were read while the container ran (`pause=seal`).
pub const ROUNDS: &str = "io.snapfs.rounds";
/// Bytes that were put aside while it was frozen (`pause=seal`): of files that changed under the reader, or that could have.
pub const FROZEN_BYTES: &str = "io.snapfs.frozen_bytes";
/// How many files changed under the reader (`pause=none`), and are therefore not as they were at any one time.
pub const TORN_FILES: &str = "io.snapfs.torn_files";
/// Their paths, a line each, as `changes` spells them; of very many the first, and how many there are more.
pub const TORN: &str = "io.snapfs.torn";
/// Where in the container its volumes were that are layers of the image, a line each (`volumes=include`).
pub const VOLUMES: &str = "io.snapfs.volumes";
/// How many sockets were left out: a layer cannot hold one, and a socket without its process is of no use.
pub const SKIPPED_SOCKETS: &str = "io.snapfs.skipped_sockets";

/// Of a checkpoint: `internal` if its network namespace is a part of the dump, `external` if it was made before.
pub const CHECKPOINT_NETWORK: &str = "io.snapfs.checkpoint.network";
/// Of a checkpoint: what becomes of open TCP connections at a restore, `established` or `close`; left out if there were none.
pub const CHECKPOINT_TCP: &str = "io.snapfs.checkpoint.tcp";
/// Of a checkpoint: `no` if the container's files are not in it.
pub const CHECKPOINT_FILES: &str = "io.snapfs.checkpoint.files";
/// Of a checkpoint: pages of memory that were written.
pub const CHECKPOINT_PAGES: &str = "io.snapfs.checkpoint.pages";
/// Of a checkpoint: how long CRIU took to write the memory, in microseconds.
pub const CHECKPOINT_MEMORY_MICROSECONDS: &str = "io.snapfs.checkpoint.memory_us";
/// Of a checkpoint: how long the processes were stopped by CRIU's own count, in microseconds.
pub const CHECKPOINT_CRIU_MICROSECONDS: &str = "io.snapfs.checkpoint.criu_us";
/// The digest of the base image's manifest.
pub const BASE_DIGEST: &str = "org.opencontainers.image.base.digest";
