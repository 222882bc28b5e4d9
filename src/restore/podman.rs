//! A container of podman's: podman is given the image, and told to make it.

use std::time::Duration;

use crate::image::Image;
use crate::restore::options::{Options, Tcp};
use crate::restore::place::Place;
use crate::restore::{Error, layout};
use crate::store::{Lease, Store};
use crate::sys::process::{self, Program};

/// How long podman may take for what is done at once.
const ASK: Duration = Duration::from_secs(60);
/// How long it may take to take an image, or to make processes of one.
const WORK: Duration = Duration::from_secs(1800);

/// podman, and the place of a container while it is made there.
#[derive(Debug)]
pub(super) struct Podman<'a, 'p> {
    place: &'a mut Place<'p>,
    program: Program,
}

/// The ids of the containers of just that name: to `podman rm`, a name is the beginning of an id as well.
pub(super) fn containers(podman: &Program, name: &str) -> Result<Vec<String>, process::Error> {
    let filter = format!("name=^{}$", name.replace('.', "\\."));
    let words = ["ps", "--all", "--no-trunc", "--format", "{{.ID}}", "--filter", &filter];
    let output = podman.clone().arguments(words).run(ASK)?.check()?;
    Ok(String::from_utf8_lossy(&output.stdout).split_whitespace().map(str::to_owned).collect())
}

/// What podman is told of a checkpoint.
#[derive(Debug)]
pub(super) struct Restore<'a> {
    pub(super) image: &'a str,
    /// `runc` or `crun`: podman restores with no other than the one that dumped it.
    pub(super) runtime: &'a str,
    /// It is the only one of its original: it may have the original's address.
    pub(super) is_original: bool,
    /// The image holds the files of its volumes.
    pub(super) has_volumes: bool,
    pub(super) tcp: Tcp,
}

impl<'a, 'p> Podman<'a, 'p> {
    pub(super) fn new(place: &'a mut Place<'p>) -> Result<Podman<'a, 'p>, Error> {
        let program = place.note.program()?;
        Ok(Podman { place, program })
    }

    fn run(&self, words: &[&str], limit: Duration) -> Result<String, Error> {
        let output = self.program.clone().arguments(words).run(limit).and_then(process::Output::check);
        let output = output.map_err(|error| self.failed(error))?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    fn has_image(&self, name: &str) -> Result<bool, Error> {
        let missing = |source| Error::Missing { program: "podman".to_owned(), source };
        let output = self.program.clone().arguments(["image", "exists", name]).run(ASK).map_err(missing)?;
        Ok(output.status.success())
    }

    /// Whether podman has a container of that name.
    pub(super) fn has_container(&self, name: &str) -> Result<bool, Error> {
        Ok(!containers(&self.program, name).map_err(|source| self.failed(source))?.is_empty())
    }

    fn failed(&self, source: process::Error) -> Error {
        Error::Program { program: "podman".to_owned(), name: self.place.name.clone(), why: source.to_string() }
    }

    /// Have podman take an image of the store, unless it has it; its id there. The note speaks of it before.
    pub(super) fn give(&mut self, store: &Store, lease: &Lease, image: &Image) -> Result<String, Error> {
        let id = image.config.digest.hex();
        if self.has_image(&id)? {
            return Ok(id);
        }
        self.place.note.images.push(id.clone());
        self.place.write()?;
        let room = lease.room()?;
        layout::write(store, lease, image, &room)?;
        let from = format!("oci:{}", room.display());
        let said = self.run(&["pull", "--quiet", &from], WORK)?;
        if said.lines().last() != Some(id.as_str()) {
            let why = format!("it took the image as {said:?} and not as {id}");
            return Err(Error::Program { program: "podman".to_owned(), name: self.place.name.clone(), why });
        }
        // podman makes a name of the path, which is ours and soon gone.
        self.run(&["untag", &id], ASK)?;
        Ok(id)
    }

    /// Have podman know the image that a checkpoint stands on by its name; `base` is it, if the store has it.
    pub(super) fn give_base(
        &mut self,
        store: &Store,
        lease: &Lease,
        name: &str,
        base: Result<Image, Error>,
    ) -> Result<(), Error> {
        if self.has_image(name)? {
            return Ok(());
        }
        let id = self.give(store, lease, &base?)?;
        self.run(&["tag", &id, name], ASK).map(drop)
    }

    /// Make a container of an image, and start it unless it is to wait.
    pub(super) fn create(&self, image: &str, options: &Options) -> Result<(), Error> {
        let ip = options.ip.map(|ip| format!("--{}={ip}", if ip.is_ipv4() { "ip" } else { "ip6" }));
        let words = ["create", "--pull=never", "--name", &options.name].into_iter().chain(ip.as_deref()).chain([image]);
        self.run(&words.collect::<Vec<_>>(), ASK)?;
        if options.no_start { Ok(()) } else { self.run(&["start", &options.name], ASK).map(drop) }
    }

    /// Have a checkpoint go on.
    pub(super) fn restore(&self, restore: &Restore<'_>, options: &Options) -> Result<(), Error> {
        let runtime = format!("--runtime={}", restore.runtime);
        let mut words = vec![runtime.as_str(), "container", "restore"];
        if !options.keep_id {
            words.extend(["--name", &options.name]);
        }
        if !restore.is_original {
            words.extend(["--ignore-static-ip", "--ignore-static-mac"]);
        }
        if !restore.has_volumes {
            words.push("--ignore-volumes");
        }
        match restore.tcp {
            Tcp::None => {}
            Tcp::Established => words.push("--tcp-established"),
            Tcp::Close => words.push("--tcp-close"),
        }
        words.push(restore.image);
        self.run(&words, WORK).map(drop)
    }
}
