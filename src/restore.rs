//! The restore: an image becomes a container. That of a commit is a new one, that of a checkpoint goes on where it stood.
//!
//! [`restore`] is the function to read first. For runc and crun we make what an engine would, a root and a bundle, in a
//! [`place`] of the container's own; podman is given the image and does the rest. What may run at all is decided in
//! [`trust`], and what an image may say about the host in [`spec`].
//!
//! What must hold: nothing is started of an image that is not trusted; whatever fails, of the container nothing is left, no
//! process, no mount, no directory; and if we die in the middle, the next daemon sees to that.

mod bundle;
mod dumped;
mod error;
mod layout;
mod options;
mod place;
mod podman;
mod spec;
mod trust;
mod unpack;
mod user;

pub use error::Error;
pub use options::{Options, TABLE as OPTIONS, Tcp};
pub use place::Places;
pub use trust::LABEL as TRUST_LABEL;

use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::engine::{Engines, Maker};
use crate::image::Image;
use crate::oci::{Hasher, annotation};
use crate::progress::Progress;
use crate::restore::bundle::Bundle;
use crate::restore::dumped::Dumped;
use crate::restore::place::{Note, Place, Root};
use crate::restore::podman::{Podman, Restore};
use crate::restore::trust::Origin;
use crate::store::{Lease, Record, Store};
use crate::sys::ground::Ground;
use crate::sys::process::Program;
use crate::view::{View, Views};

/// What a restore needs of its surroundings.
#[derive(Debug)]
pub struct Context<'a> {
    /// Where the image is.
    pub store: &'a Store,
    /// Who can have the container.
    pub engines: &'a Engines,
    /// The files of images.
    pub views: &'a Views,
    /// Where containers that we make live.
    pub places: &'a Places,
    /// Where the tree is mounted.
    pub mount_point: &'a Path,
}

/// The podman annotation by which a checkpoint is known, whoever made it: the runtime that dumped it.
const RUNTIME: &str = "io.podman.annotations.checkpoint.runtime.name";
/// And its container's name.
const NAME: &str = "io.podman.annotations.checkpoint.name";
/// Where a dump is in its container's place.
const DUMP: &str = "dump";
/// How long mount(8) may take, where nothing must be read first.
const MOUNT: Duration = Duration::from_secs(20);
/// How long it may take where the daemon must find the tree of the image first.
const MOUNT_LAZILY: Duration = Duration::from_secs(300);
/// The longest /etc/passwd that is read of an image.
const LONGEST_PASSWD: u64 = 4 << 20;

/// Make a container of the image that `name` below `images/` stands for, by its `record`; returns what it is called. An error leaves
/// nothing behind.
pub fn restore(
    context: &Context<'_>,
    name: &str,
    record: &Record,
    options: &Options,
    progress: &Progress,
) -> Result<String, Error> {
    progress.enter("image");
    let untrusted = || Error::Untrusted { image: name.to_owned(), label: trust::LABEL };
    let origin = trust::judge(context.store, record, &record.manifest.digest).ok_or_else(untrusted)?;
    let lease = context.store.lease()?;
    let image = open(context.store, &lease, &record.manifest)?;
    let runtime = image.annotations.get(RUNTIME).map(String::as_str);
    // What a user may say of a commit must not make the container's files a description of it.
    let is_checkpoint = image.kind() == "checkpoint" || (origin == Origin::Elsewhere && runtime.is_some());
    let runtime = runtime.filter(|_| is_checkpoint);
    let (engine, maker) = choose(context.engines, &image, runtime, options)?;
    check(options, is_checkpoint, engine)?;
    check_free(context.engines, engine, &maker, &options.name)?;

    let note = Note::new(&maker, &options.name, record.manifest.digest.to_string(), context.places.boot());
    let work = Work { context, lease: &lease, name, record, image: &image, options, origin, progress };
    let place = context.places.begin(&options.name, note)?;
    match (is_checkpoint, engine) {
        (false, "podman") => work.create_at_podman(place)?,
        (false, _) => work.create(place)?,
        (true, "podman") => work.go_on_at_podman(place)?,
        (true, _) => work.go_on(place)?,
    }
    Ok(options.name.clone())
}

/// Open an image and hold its blobs.
fn open(store: &Store, lease: &Lease, manifest: &crate::oci::Descriptor) -> Result<Image, Error> {
    lease.adopt(&manifest.digest)?;
    let image = Image::open(store, manifest)?;
    for blob in image.blobs() {
        lease.adopt(&blob.digest)?.ok_or(Error::NoBlob(blob.digest))?;
    }
    Ok(image)
}

/// Refuse what cannot be asked of this kind of image, or of this engine.
fn check(options: &Options, is_checkpoint: bool, engine: &str) -> Result<(), Error> {
    let of_commit = [(options.no_start, "no-start"), (options.lazy, "lazy"), (options.ip.is_some(), "ip=")];
    let of_checkpoint = [(options.keep_id, "keep-id"), (options.tcp != Tcp::None, "tcp-established and tcp-close")];
    let (wrong, kind): (&[_], _) = if is_checkpoint { (&of_commit, "commit") } else { (&of_checkpoint, "checkpoint") };
    let refuse = |why: String| Err(Error::Unsupported(why));
    if let Some((_, option)) = wrong.iter().find(|(is_given, _)| *is_given) {
        return refuse(format!("{option} is for the image of a {kind}, which this is not; leave it out"));
    }
    if engine != "podman" && (options.keep_id || options.ip.is_some()) {
        return refuse(
            "keep-id and ip= are podman's; a container of runc or crun has its name for its id, and a network \
                       of its own without an address: leave them out, or write engine=podman"
                .to_owned(),
        );
    }
    if options.lazy && engine == "podman" {
        return refuse("podman keeps an image of its own; lazy is for engine=runc and engine=crun".to_owned());
    }
    Ok(())
}

/// Who is to have the container.
fn choose(
    engines: &Engines,
    image: &Image,
    runtime: Option<&str>,
    options: &Options,
) -> Result<(&'static str, Maker), Error> {
    const ENGINES: [&str; 3] = ["runc", "crun", "podman"];
    let find = |engine: &'static str| {
        let none = |reason: String| Error::NoEngine { engine: engine.to_owned(), reason };
        let maker = engines.by_name(engine).and_then(|engine| engine.maker());
        let maker = maker.ok_or_else(|| none("snapfs was not told of it".to_owned()))?;
        Program::find(engine).map_err(|error| none(error.to_string()))?;
        Ok::<_, Error>((engine, maker))
    };
    let known = |name: &str| ENGINES.into_iter().find(|engine| *engine == name);
    let first = || ["runc", "crun"].into_iter().find_map(|engine| find(engine).ok());
    let wanted = options.engine.or_else(|| {
        let came_from = image.annotations.get(annotation::ENGINE).and_then(|engine| known(engine));
        let lazily = options.lazy && came_from == Some("podman");
        came_from.or_else(|| known(runtime?)).filter(|_| !lazily)
    });
    let chosen = match wanted {
        Some(engine) => match find(engine) {
            // Where it came from need not be here; what was asked for must.
            Err(_) if options.engine.is_none() && runtime.is_none() => first().map_or_else(|| find(engine), Ok),
            found => found,
        },
        None => first().map_or_else(|| find("runc"), Ok),
    }?;
    if let Some(runtime) = runtime.filter(|runtime| chosen.0 != "podman" && chosen.0 != *runtime) {
        return Err(Error::Unsupported(format!(
            "the processes were dumped by {runtime}, and {} would not find its mounts again; write engine={runtime} or \
             engine=podman",
            chosen.0
        )));
    }
    Ok(chosen)
}

/// Refuse a name that is another container's.
fn check_free(engines: &Engines, engine: &'static str, maker: &Maker, name: &str) -> Result<(), Error> {
    let listing = engines.containers_now();
    let is_listed = listing.iter().any(|(_, other)| other.engine == engine && (other.name == name || other.id == name));
    let has_state = match maker {
        Maker::Runtime(runtime) => runtime.root.join(name).exists(),
        Maker::Podman(_) => false,
    };
    if is_listed || has_state { Err(Error::Taken { name: name.to_owned(), engine }) } else { Ok(()) }
}

/// All that one restore is about.
struct Work<'a> {
    context: &'a Context<'a>,
    lease: &'a Lease,
    name: &'a str,
    record: &'a Record,
    image: &'a Image,
    options: &'a Options,
    origin: Origin,
    progress: &'a Progress,
}

impl<'a> Work<'a> {
    /// A new container of a runtime's.
    fn create(&self, mut place: Place<'a>) -> Result<(), Error> {
        let view = self.context.views.wait_for_image(&self.image.layers)?;
        let config = serde_json::from_slice(&self.image.config_bytes)
            .map_err(|error| Error::Malformed(format!("its config: {error}")))?;
        let user = self.user(&view, &config)?;
        let root = if self.options.lazy { None } else { Some(self.unpacked(self.image, &mut place)?) };
        let bundle = Bundle::new(&place)?;
        let spec = spec::of_config(bundle.default_spec()?, &config, &user, bundle.own())?;
        bundle.write_spec(&spec)?;
        match &root {
            Some(root) => bundle.mount(&root.path, MOUNT)?,
            None => bundle.mount(&self.on_our_mount(), MOUNT_LAZILY)?,
        }
        self.progress.check()?;
        self.progress.enter("starting");
        if self.options.lazy {
            let lease = self.context.store.lease()?;
            open(self.context.store, &lease, &self.record.manifest)?;
            self.context.places.keep_blobs(place.path.clone(), lease);
        }
        bundle.create(!self.options.no_start)?;
        place.keep()
    }

    /// Where the image's files can be read; a colon is written so that it ends no path there.
    fn on_our_mount(&self) -> PathBuf {
        self.context.mount_point.join("images").join(self.name.replace(':', "%3A")).join("rootfs")
    }

    fn user(&self, view: &View, config: &serde_json::Value) -> Result<spec::User, Error> {
        let read = |path: &[u8]| {
            let tree = view.tree();
            let found = tree.resolve(path).filter(|inode| {
                tree.inode(*inode)
                    .is_some_and(|file| file.kind == crate::view::Kind::File && file.size <= LONGEST_PASSWD)
            });
            let mut bytes = Vec::new();
            if let Some(inode) = found {
                // Writing to memory does not fail.
                let _ = self.context.views.copy(view, inode, &mut bytes)?;
            }
            Ok::<_, Error>(bytes)
        };
        let wanted = config["config"]["User"].as_str().unwrap_or_default();
        user::find(wanted, &read(b"etc/passwd")?, &read(b"etc/group")?)
    }

    /// The files of an image on the disk, for all containers of it, to be left alone.
    fn unpacked(&self, image: &Image, place: &mut Place<'a>) -> Result<Root<'a>, Error> {
        self.progress.enter("unpacking");
        let mut hasher = Hasher::new();
        image.layers.iter().for_each(|layer| hasher.update(layer.diff_id.as_bytes()));
        let chain = hasher.digest().hex();
        place.note.root = Some(chain.clone());
        place.write()?;
        self.context.places.root(&chain, |directory| {
            let view = self.context.views.wait_for_image(&image.layers)?;
            let ground = Ground::open(directory).map_err(Error::files("open", directory))?;
            let plain = sys_attributes(0o755);
            ground.set(b"", &plain).map_err(Error::files("open", directory))?;
            unpack::image(self.context.views, &view, self.name, &ground, self.progress)
        })
    }

    /// A new container of podman's.
    fn create_at_podman(&self, mut place: Place<'a>) -> Result<(), Error> {
        self.progress.enter("giving the image to podman");
        let mut podman = Podman::new(&mut place)?;
        self.check_free_at_podman(&podman)?;
        let id = podman.give(self.context.store, self.lease, self.image)?;
        self.progress.check()?;
        self.progress.enter("starting");
        podman.create(&id, self.options)?;
        place.release()
    }

    fn check_free_at_podman(&self, podman: &Podman<'_, '_>) -> Result<(), Error> {
        let name = &self.options.name;
        if podman.has_container(name)? {
            return Err(Error::Taken { name: name.clone(), engine: "podman" });
        }
        Ok(())
    }

    /// What CRIU may mount in it if it is killed goes with the place.
    fn dumped(&self, place: &Place<'_>) -> Result<Dumped, Error> {
        self.progress.enter("unpacking the dump");
        let view = self.context.views.wait_for_image(&self.image.layers)?;
        Dumped::unpack(self.context.views, &view, place.directory(DUMP)?, self.progress)
    }

    /// The image that the checkpoint stands on: that which its name keeps, or else the one with the digest that it tells.
    fn base(&self) -> Result<Image, Error> {
        if let Some(base) = &self.record.base {
            return open(self.context.store, self.lease, base);
        }
        let told = |key: &str| self.image.annotations.get(key).cloned().unwrap_or_default();
        let (name, digest) = (told(annotation::BASE_NAME), told(annotation::BASE_DIGEST));
        let names = self.context.store.names();
        let found = names.values().find(|record| record.manifest.digest.to_string() == digest);
        let manifest = found.map(|record| &record.manifest).ok_or(Error::NoBase { name, digest })?;
        open(self.context.store, self.lease, manifest)
    }

    /// What becomes of connections: what is asked for now, else what was said at the checkpoint.
    fn tcp(&self) -> Tcp {
        match (self.options.tcp, self.image.annotations.get(annotation::CHECKPOINT_TCP).map(String::as_str)) {
            (Tcp::None, Some("established")) => Tcp::Established,
            (Tcp::None, Some("close")) => Tcp::Close,
            (asked, _) => asked,
        }
    }

    /// A container of a runtime's that goes on.
    fn go_on(&self, mut place: Place<'a>) -> Result<(), Error> {
        let base = self.base()?;
        let root = self.unpacked(&base, &mut place)?;
        let dumped = self.dumped(&place)?;
        let bundle = Bundle::new(&place)?;
        let default = bundle.default_spec()?;
        let (mut spec, provided) = spec::of_dump(&dumped.spec, &default, self.origin, bundle.own())?;

        self.progress.enter("files");
        bundle.mount(&root.path, MOUNT)?;
        dumped.apply(&bundle.root(), self.progress)?;
        bundle.provide(&mut spec, &provided, dumped.shared_memory()?.as_ref(), self.progress)?;
        for (destination, tar) in dumped.volumes()? {
            bundle.volume(&mut spec, &destination, &tar, self.progress)?;
        }
        let tcp = self.tcp();
        if tcp == Tcp::Close {
            bundle.close_connections(&mut spec)?;
        }
        bundle.write_spec(&spec)?;

        self.progress.check()?;
        self.progress.enter("processes");
        bundle.restore(&dumped.images(), &place.directory("criu")?, tcp)?;
        drop(dumped);
        place.remove(DUMP)?;
        place.keep()
    }

    /// A container of podman's that goes on.
    fn go_on_at_podman(&self, mut place: Place<'a>) -> Result<(), Error> {
        let told = |key: &str| self.image.annotations.get(key).map(String::as_str).unwrap_or_default();
        let runtime = ["runc", "crun"].into_iter().find(|runtime| *runtime == told(RUNTIME));
        let runtime = runtime.ok_or_else(|| Error::Malformed("it does not tell which runtime dumped it".to_owned()))?;
        let is_original = told(NAME) == self.options.name;
        if self.options.keep_id && !is_original {
            return Err(Error::Unsupported(format!(
                "with keep-id podman gives the container the name that it had; write {} keep-id",
                told(NAME)
            )));
        }
        let base_name = told(annotation::BASE_NAME);
        let view = self.context.views.wait_for_image(&self.image.layers)?;
        if self.origin == Origin::Elsewhere {
            dumped::check_foreign(self.context.views, &view)?;
        }

        self.progress.enter("giving the image to podman");
        let mut podman = Podman::new(&mut place)?;
        self.check_free_at_podman(&podman)?;
        podman.give_base(self.context.store, self.lease, base_name, self.base())?;
        let image = podman.give(self.context.store, self.lease, self.image)?;
        self.progress.check()?;
        self.progress.enter("processes");
        let has_volumes = view.tree().child(0, b"volumes").is_some();
        let restore = Restore { image: &image, runtime, is_original, has_volumes, tcp: self.tcp() };
        podman.restore(&restore, self.options)?;
        place.release()
    }
}

/// Root's, of a mode, and of no time.
fn sys_attributes(mode: u16) -> crate::sys::ground::Attributes {
    crate::sys::ground::Attributes { mode: Some(mode), uid: 0, gid: 0, mtime: (0, 0), xattrs: Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_makes_no_sense_is_refused_before_anything_is_done() {
        let said = |line: &str, is_checkpoint: bool, engine: &str| {
            let options = Options::parse(line).unwrap();
            check(&options, is_checkpoint, engine).map_err(|error| error.to_string()).err()
        };
        assert_eq!(said("web2", true, "crun"), None);
        assert_eq!(said("web2 lazy no-start", false, "runc"), None);
        assert_eq!(said("web2 ip=10.1.2.3", false, "podman"), None);
        for (line, is_checkpoint, engine, word) in [
            ("web2 lazy", true, "runc", "lazy is for the image of a commit"),
            ("web2 no-start", true, "podman", "no-start is for"),
            ("web2 tcp-close", false, "runc", "of a checkpoint"),
            ("web2 keep-id", false, "podman", "keep-id is for"),
            ("web2 keep-id", true, "crun", "engine=podman"),
            ("web2 ip=10.1.2.3", false, "runc", "engine=podman"),
            ("web2 lazy", false, "podman", "engine=runc"),
        ] {
            assert!(said(line, is_checkpoint, engine).unwrap().contains(word), "{line}");
        }
    }
}
