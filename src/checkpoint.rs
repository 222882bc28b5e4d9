//! The checkpoint: a running container's processes, its files and what is mounted as its /dev/shm, of one moment, as an
//! image that podman restores.
//!
//! [`checkpoint`] is the function to read first. The container is frozen by us, dumped by its own runtime with CRIU, and
//! its files are sealed by [`capture_during`] before it runs again. Nothing is packed, compressed or hashed before that.
//!
//! What must hold: whatever fails, the container runs on, is traced by nobody, and nothing of the checkpoint can be seen.

mod archive;
mod containerd;
mod criu;
mod describe;
mod dump;
mod error;
mod options;
mod pages;
mod preflight;
mod protobuf;

pub use error::Error;
pub use options::{Options, TABLE as OPTIONS, Tcp};

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::capture::{Context, During, Held, Moment, capture_during, hold_during, import_base};
use crate::engine::{Container, Engine};
use crate::guard::Frozen;
use crate::image::{Compression, Draft, History, Layer, LayerWriter, Parent, Unpublished};
use crate::oci::{Descriptor, Digest, annotation};
use crate::progress::Progress;
use crate::store::{Lease, Record, Replace, Spool};
use crate::sys::process::Program;
use archive::Members;
use criu::Dumper;
use describe::{Facts, Host};
use dump::{Dump, Stats};
use pages::Memory;

/// [`annotation::KIND`] of what this module makes.
const KIND: &str = "checkpoint";
/// How long a container may stay frozen if its user says nothing else: 64 GiB are written in less.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a program may take to say its version.
const ASK: Duration = Duration::from_secs(5);
/// The name of a base image that no engine has a name for begins with this.
const BASE_NAME: &str = "localhost/snapfs-base";

/// Checkpoint the container under `options.name`; returns the manifest once the image is durable and visible. An error
/// leaves nothing behind but blobs for the collector.
pub fn checkpoint(
    context: &Context<'_>,
    container: &Container,
    options: &Options,
    progress: &Progress,
) -> Result<Descriptor, Error> {
    let Context { store, engine, .. } = context;
    let replace = if options.create { Replace::Refused } else { Replace::Allowed };
    // Nobody's container stands still for a name that cannot be had.
    store.check_free(&options.name, replace)?;
    let init = running(container)?;
    let no_runtime = || Error::NoRuntime { name: container.name.clone() };
    let dumper = Dumper::find(&engine.runtime(container).ok_or_else(no_runtime)?, container, init)?;
    dumper.check(options)?;
    if options.containerd && options.pre_dumps > 0 {
        let why = "containerd takes memory as one piece; leave out one of pre-dump= and containerd";
        return Err(Error::Unsupported(why.to_owned()));
    }
    let lease = store.lease()?;
    progress.enter("base");
    let parent = import_base(context, &lease, container, options.compression, progress)?;
    let source = Source::read(context, container)?;
    let base = Base::of(&parent, &lease, &source)?;

    let dump = Dump { images: lease.room()?, work: lease.room()? };
    progress.enter("pre-dump");
    let earlier = pre_dump(&dumper, &dump, options, &lease)?;
    let taken = take(&Taking {
        context,
        lease: &lease,
        container,
        options,
        dumper: &dumper,
        dump: &dump,
        source: &source,
        earlier: earlier.as_ref(),
        progress,
    })?;

    progress.enter("packing");
    dump.make_portable()?;
    let host = Host::look();
    let [podman_version, conmon_version] = ["podman", "conmon"].map(version);
    let unique = Digest::of(random().as_bytes()).hex();
    let facts = Facts {
        container,
        spec: &source.spec,
        inspected: &source.inspected,
        runtime: &dumper.runtime,
        runtime_version: &dumper.runtime_version,
        criu_version: dumper.criu_version,
        podman_version: &podman_version,
        conmon_version: &conmon_version,
        host: &host,
        base_name: &base.name,
        base_id: &base.id,
        at: taken.at,
        unique: &unique,
    };
    let pack = Pack { lease: &lease, compression: options.compression, mtime: taken.at.as_second(), progress };
    let stats = dump.stats_file();
    let counted = stats.as_deref().and_then(Stats::parse).unwrap_or_default();
    let meta = pack.meta(&dump, &facts, &taken, stats.as_deref(), &counted)?;
    let key = format!("{}/{}/{}", container.engine, container.id, options.compression.media_type());
    let memory = match pages::pack(&pack, store, &key, &dump)? {
        Some(memory) => memory,
        None => Memory { maps: BTreeMap::new(), layers: pack.pages(&dump)?.into_iter().collect() },
    };
    let images = pack.images(&dump, earlier.as_ref(), &memory.maps)?;
    let layers: Vec<Layer> = [meta, images].into_iter().chain(memory.layers).collect();

    progress.enter("finishing");
    let annotations = annotations(&facts, options, &taken, &counted, &base);
    let manifest = write(&lease, layers, annotations, options, container, &facts)?;
    let containerd = match options.containerd {
        false => None,
        true => {
            let parts = containerd::Parts {
                manifest: &manifest,
                base: &base.manifest,
                base_name: &base.name,
                spec: &source.spec,
                files: taken.layer.as_ref(),
                architecture: host.architecture(),
            };
            Some(containerd::write(&pack, &dump, &parts)?)
        }
    };
    progress.check()?;
    let record = Record {
        kind: Some(KIND.to_owned()),
        labels: options.labels.clone(),
        base: Some(base.manifest),
        containerd,
        made_here: true,
        ..Record::new(manifest.clone(), context.clock.now())
    };
    // The commit point.
    store.tag(&lease, &options.name, record, replace)?;
    if let Some(frozen) = taken.frozen {
        // podman's own monitor notes the end, and podman keeps the container.
        dumper.end(frozen, container.engine != "podman")?;
    }
    Ok(manifest)
}

/// Why the container could not be checkpointed now, each reason with its remedy; empty if nothing stands in the way.
/// Nothing is frozen, and nothing of the container is touched.
pub fn checkpointable(engine: &dyn Engine, container: &Container) -> Vec<String> {
    preflight::checkpointable(engine, container)
}

/// The first process's number, of a container that can be checkpointed.
fn running(container: &Container) -> Result<u32, Error> {
    use crate::engine::Status;
    let is_running = matches!(container.status, Status::Running | Status::Paused);
    container.init.filter(|_| is_running).map(|init| init.pid).ok_or_else(|| {
        let (name, status) = (container.name.clone(), container.status.as_str());
        Error::Capture(crate::capture::Error::NotRunning { name, status })
    })
}

/// What is known of the container beforehand.
struct Source {
    spec: Value,
    inspected: Value,
}

impl Source {
    fn read(context: &Context<'_>, container: &Container) -> Result<Source, Error> {
        let bad = |reason: String| Error::Spec { name: container.name.clone(), reason };
        let bytes = container.read_spec()?.ok_or_else(|| bad("there is none".to_owned()))?;
        let spec = serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))?;
        let inspected = context.engine.inspect(container)?.unwrap_or_default();
        Ok(Source { spec, inspected })
    }
}

/// The image that the files are the difference to.
struct Base {
    name: String,
    /// Its config's digest, without the algorithm: what podman calls an image's id.
    id: String,
    /// It, in our store.
    manifest: Descriptor,
}

impl Base {
    /// A bare bundle has no image; what lies below it becomes one, with a name that says what it is.
    fn of(parent: &Parent, lease: &Lease, source: &Source) -> Result<Base, Error> {
        let (manifest, config) = parent.write(lease)?;
        let hex = config.digest.hex();
        let text = |key: &str| source.inspected[key].as_str().filter(|text| !text.is_empty()).map(str::to_owned);
        let name =
            text("ImageName").or_else(|| parent.name.clone()).unwrap_or_else(|| format!("{BASE_NAME}:{}", &hex[..16]));
        Ok(Base { name, id: text("Image").unwrap_or(hex), manifest })
    }
}

/// What was taken while the container stood still.
struct Taken {
    at: Timestamp,
    /// The tar of what the container changed, and the same without whiteouts.
    layer: Option<Unpublished>,
    files: Option<Spool>,
    deleted: Vec<Vec<u8>>,
    torn: usize,
    skipped_sockets: u64,
    sealed: Option<(usize, u64)>,
    shared_memory: Option<Spool>,
    volumes: Vec<(String, Spool)>,
    held: Held,
    /// It does not run: it is to be ended.
    frozen: Option<Frozen>,
}

/// All that is needed to take it.
struct Taking<'a> {
    context: &'a Context<'a>,
    lease: &'a Lease,
    container: &'a Container,
    options: &'a Options,
    dumper: &'a Dumper,
    dump: &'a Dump,
    source: &'a Source,
    earlier: Option<&'a Dump>,
    progress: &'a Progress,
}

fn take(taking: &Taking<'_>) -> Result<Taken, Error> {
    let Taking { context, lease, container, options, dumper, dump, source, earlier, progress } = *taking;
    let (mut shared_memory, mut volumes, mut at) = (None, Vec::new(), context.clock.now());
    let mut act = |frozen: &Frozen, until: Instant| {
        at = context.clock.now();
        dumper.dump(dump, earlier, options, frozen, until)?;
        if let Some(path) = describe::shared_memory(&source.spec) {
            shared_memory = Some(archive::directory(&path, lease, progress)?);
        }
        if options.volumes {
            for volume in describe::volumes(&source.inspected) {
                volumes.push((volume.name, archive::directory(&volume.source, lease, progress)?));
            }
        }
        Ok::<_, Error>(())
    };
    let mut act = |frozen: &Frozen, until: Instant| act(frozen, until).map_err(Into::into);
    let during = During { act: &mut act, limit: LIMIT, keep: options.exit };
    let (captured, held, frozen) = if options.skip_files {
        let (held, frozen) = hold_during(context, container, during, progress)?;
        (None, held, frozen)
    } else {
        let compression = Compression::None;
        let (captured, held, frozen) = capture_during(context, lease, container, compression, during, progress)?;
        (Some(captured), held, frozen)
    };
    let (layer, torn, skipped_sockets, sealed, deleted) = match captured {
        Some(Moment { layer, torn, skipped_sockets, sealed, deleted }) => {
            (layer, torn, skipped_sockets, Some(sealed), deleted)
        }
        None => (None, 0, 0, None, Vec::new()),
    };
    let layer = layer.map(LayerWriter::into_unpublished).transpose()?;
    let files = layer.as_ref().map(|layer| archive::plain(layer, lease, progress)).transpose()?;
    Ok(Taken { at, layer, files, deleted, torn, skipped_sockets, sealed, shared_memory, volumes, held, frozen })
}

/// Copies of the memory while the container runs, each the difference to the one before; the last.
fn pre_dump(dumper: &Dumper, dump: &Dump, options: &Options, lease: &Lease) -> Result<Option<Dump>, Error> {
    let mut last: Option<Dump> = None;
    for _ in 0..options.pre_dumps {
        let next = Dump { images: lease.room()?, work: dump.work.clone() };
        dumper.pre_dump(&next, last.as_ref())?;
        last = Some(next);
    }
    Ok(last)
}

/// Makes the layers.
struct Pack<'a> {
    lease: &'a Lease,
    compression: Compression,
    mtime: i64,
    progress: &'a Progress,
}

impl Pack<'_> {
    fn members(&self) -> Result<Members<'_>, Error> {
        Members::new(self.lease, self.compression, self.mtime, self.progress)
    }

    /// All but CRIU's images.
    fn meta(
        &self,
        dump: &Dump,
        facts: &Facts<'_>,
        taken: &Taken,
        stats: Option<&[u8]>,
        counted: &Stats,
    ) -> Result<Layer, Error> {
        let json = |value: &Value| value.to_string().into_bytes();
        let mut members = self.members()?;
        members.bytes("config.dump", &json(&facts.config_dump()))?;
        members.bytes("spec.dump", &json(&facts.spec_dump()))?;
        members.bytes("network.status", b"null")?;
        members.bytes("dump.log", &dump.log())?;
        if let Some(stats) = stats {
            members.bytes("stats-dump", stats)?;
        }
        members.bytes("processes", dump.processes()?.as_bytes())?;
        members.bytes("stats", words(taken, counted).as_bytes())?;
        members.directory("artifacts")?;
        if !taken.deleted.is_empty() {
            let (bytes, left_out) = archive::deleted_files(&taken.deleted);
            if left_out > 0 {
                self.progress
                    .log(format!("{left_out} deleted files have names that are not UTF-8: a restore shows them"));
            }
            members.bytes("deleted.files", &bytes)?;
        }
        if let Some(shared_memory) = &taken.shared_memory {
            members.file("devshm-checkpoint.tar", &shared_memory.open()?)?;
        }
        if !taken.volumes.is_empty() {
            members.directory("volumes")?;
        }
        for (name, volume) in &taken.volumes {
            members.file(&format!("volumes/{name}.tar"), &volume.open()?)?;
        }
        if let Some(files) = &taken.files {
            members.file("rootfs-diff.tar", &files.open()?)?;
        }
        members.finish()
    }

    /// CRIU's images but for the memory.
    fn images(&self, dump: &Dump, earlier: Option<&Dump>, maps: &BTreeMap<String, Vec<u8>>) -> Result<Layer, Error> {
        let mut members = self.members()?;
        members.directory("checkpoint")?;
        for name in dump.names()?.iter().filter(|name| !is_pages(name)) {
            match maps.get(name) {
                Some(map) => members.bytes(&format!("checkpoint/{name}"), map)?,
                None => self.add(&mut members, dump, "checkpoint", name)?,
            }
        }
        // The copies made before are reached by a link that an image cannot hold; a directory of its name serves as well.
        let mut place = "checkpoint".to_owned();
        let mut earlier = earlier.map(|dump| dump.images.clone());
        while let Some(images) = earlier {
            place.push_str("/parent");
            members.directory(&place)?;
            let dump = Dump { images, work: dump.work.clone() };
            for name in &dump.names()? {
                self.add(&mut members, &dump, &place, name)?;
            }
            earlier = fs::canonicalize(dump.images.join("parent")).ok();
        }
        members.finish()
    }

    /// The memory.
    fn pages(&self, dump: &Dump) -> Result<Option<Layer>, Error> {
        let names: Vec<String> = dump.names()?.into_iter().filter(|name| is_pages(name)).collect();
        if names.is_empty() {
            return Ok(None);
        }
        let mut members = self.members()?;
        for name in &names {
            self.add(&mut members, dump, "checkpoint", name)?;
        }
        members.finish().map(Some)
    }

    fn add(&self, members: &mut Members<'_>, dump: &Dump, place: &str, name: &str) -> Result<(), Error> {
        self.add_as(members, dump, &format!("{place}/{name}"), name)
    }

    fn add_as(&self, members: &mut Members<'_>, dump: &Dump, path: &str, name: &str) -> Result<(), Error> {
        let file = fs::File::open(dump.images.join(name)).map_err(|source| dump.failed("open", name, source))?;
        members.file(path, &file)
    }
}

fn is_pages(name: &str) -> bool {
    name.starts_with("pages-")
}

/// What is counted, one `key value` a line.
fn words(taken: &Taken, counted: &Stats) -> String {
    let (rounds, aside) = taken.sealed.unwrap_or_default();
    let lines = [
        ("frozen_us", taken.held.frozen_for.as_micros()),
        ("criu_freezing_us", counted.freezing.into()),
        ("criu_frozen_us", counted.frozen.into()),
        ("memory_dump_us", counted.memory_dump.into()),
        ("memory_write_us", counted.memory_write.into()),
        ("pages_scanned", counted.pages_scanned.into()),
        ("pages_written", counted.pages_written.into()),
        ("memory_bytes", (counted.pages_written * dump::PAGE).into()),
        ("files_rounds", rounds as u128),
        ("files_frozen_bytes", aside.into()),
    ];
    lines.iter().map(|(key, value)| format!("{key} {value}\n")).collect()
}

fn annotations(
    facts: &Facts<'_>,
    options: &Options,
    taken: &Taken,
    counted: &Stats,
    base: &Base,
) -> BTreeMap<String, String> {
    let container = facts.container;
    let mut annotations = options.annotations.clone();
    annotations.extend(facts.annotations());
    let mut set = |key: &str, value: String| annotations.insert(key.to_owned(), value);
    set(annotation::KIND, KIND.to_owned());
    set(annotation::ENGINE, container.engine.to_owned());
    set(annotation::CONTAINER_ID, container.id.clone());
    set(annotation::CONTAINER_NAME, container.name.clone());
    set(annotation::PAUSE, taken.held.how.to_owned());
    set(annotation::FROZEN_MICROSECONDS, taken.held.frozen_for.as_micros().to_string());
    set(annotation::BASE_NAME, base.name.clone());
    set(annotation::BASE_DIGEST, base.manifest.digest.to_string());
    set(annotation::CHECKPOINT_PAGES, counted.pages_written.to_string());
    set(annotation::CHECKPOINT_MEMORY_MICROSECONDS, counted.memory_write.to_string());
    set(annotation::CHECKPOINT_CRIU_MICROSECONDS, counted.frozen.to_string());
    match options.tcp {
        Tcp::None => None,
        Tcp::Established => set(annotation::CHECKPOINT_TCP, "established".to_owned()),
        Tcp::Close => set(annotation::CHECKPOINT_TCP, "close".to_owned()),
    };
    if options.skip_files {
        set(annotation::CHECKPOINT_FILES, "no".to_owned());
    }
    if let Some((rounds, bytes)) = taken.sealed {
        set(annotation::ROUNDS, rounds.to_string());
        set(annotation::FROZEN_BYTES, bytes.to_string());
    }
    let counts = [(annotation::TORN_FILES, taken.torn as u64), (annotation::SKIPPED_SOCKETS, taken.skipped_sockets)];
    for (key, count) in counts.into_iter().filter(|(_, count)| *count > 0) {
        set(key, count.to_string());
    }
    for (key, text) in [(annotation::AUTHORS, &options.author), (annotation::DESCRIPTION, &options.description)] {
        if let Some(text) = text {
            set(key, text.clone());
        }
    }
    annotations
}

/// Config and manifest. The config is unlike any other: containers/storage takes its digest for the image, and two
/// checkpoints with one config would be one image there.
fn write(
    lease: &Lease,
    layers: Vec<Layer>,
    annotations: BTreeMap<String, String>,
    options: &Options,
    container: &Container,
    facts: &Facts<'_>,
) -> Result<Descriptor, Error> {
    let what = ["description of the container, its files", "state of the processes", "memory"];
    let made_by =
        |what: &str| json!({ "created": facts.at.to_string(), "created_by": format!("snapfs checkpoint: {what}") });
    let history: Vec<Value> =
        layers.iter().enumerate().map(|(at, _)| made_by(what.get(at).unwrap_or(&"memory"))).collect();
    let config = json!({ "config": {}, "history": history });
    let parent = Parent { name: None, config, layers };
    let history = History {
        created: facts.at,
        created_by: format!("snapfs checkpoint of {} ({}) {}", container.name, container.engine, facts.unique),
        author: options.author.clone(),
        comment: options.message.clone(),
    };
    Ok(Draft { parent: &parent, layer: None, history, annotations }.write(lease)?)
}

/// The first line of `NAME --version`, or what podman writes where there is nothing to tell.
fn version(name: &str) -> String {
    let said =
        Program::find(name).and_then(|program| program.argument("--version").run(ASK)).map(|output| output.stdout);
    let text = String::from_utf8_lossy(&said.unwrap_or_default()).trim().replace('\n', ", ");
    let text = text.strip_prefix("podman version ").unwrap_or(&text).to_owned();
    if text.is_empty() { "none".to_owned() } else { text }
}

/// A number that nobody else has; the kernel makes it.
fn random() -> String {
    let uuid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    format!("{uuid}{:?}", Instant::now())
}
