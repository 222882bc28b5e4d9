//! Where containers that we made of images live, until they are deleted at their engine: a directory each, beside the store.
//!
//! ```text
//! containers/NAME/note.json       what was made here, by which daemon, of what
//! containers/NAME/rootfs          an overlay of these
//!                 upper  work
//! containers/NAME/config.json     the bundle
//! containers/NAME/mounts/…        what is mounted into it, such as its /dev/shm
//! containers/NAME/dump  criu      while its processes are made: CRIU's images; CRIU's log, and what it mounts
//! roots/CHAIN/                    an image's files, unpacked once for all containers of it
//! ```
//!
//! What must hold: a directory whose note does not say that it was finished is the remains of one that was not, and
//! [`Places::sweep`] ends and removes whatever belongs to it; one that was finished stays for as long as its runtime
//! knows the container, and beyond a reboot until its user has looked at it.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::engine::Maker;
use crate::restore::options::is_name;
use crate::restore::{Error, podman};
use crate::store::{Lease, Store};
use crate::sys::ground::{put_in_place, remove_tree};
use crate::sys::process::{self, Program};
use crate::sys::{boot, mount, reap, tracer};

/// How long a runtime may take to say what it knows of a container, or to delete it.
const ASK: Duration = Duration::from_secs(20);
/// How long programs that outlived their daemon may take to end once they are killed.
const END: Duration = Duration::from_secs(3);
/// The programs that a daemon may have had at work.
const AT_WORK: [&str; 5] = ["runc", "crun", "criu", "podman", "mount"];
const NOTE: &str = "note.json";
/// The end of the name of an image that is not unpacked to its end.
const UNFINISHED: &str = ".new";
/// The end of a note's name until it is whole.
const NEW: &str = "note.json.new";

/// What a directory is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// `runc`, `crun` or `podman`.
    pub(super) engine: String,
    /// The runtime's `--root`, or podman's arguments.
    pub(super) arguments: Vec<OsString>,
    /// The boot in which it was made.
    pub(super) boot: String,
    /// The daemon that made it.
    pub(super) daemon: u32,
    /// The manifest of its image.
    pub(super) image: String,
    /// Its cgroup at the top of each hierarchy, which no other container has.
    pub(super) cgroup: String,
    /// Which of the unpacked images it stands on.
    pub(super) root: Option<String>,
    /// Images that podman was given for it, to be taken back if it comes to nothing.
    pub(super) images: Vec<String>,
    /// The container is there.
    pub(super) is_made: bool,
}

impl Note {
    pub(super) fn new(maker: &Maker, name: &str, image: String, boot: String) -> Note {
        let (engine, arguments) = match maker {
            Maker::Runtime(runtime) => {
                (runtime.name.clone(), vec!["--root".into(), runtime.root.clone().into_os_string()])
            }
            Maker::Podman(arguments) => ("podman".to_owned(), arguments.clone()),
        };
        let daemon = std::process::id();
        let unique = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
        let cgroup = format!("snapfs-{name}-{}", unique.split('-').next().unwrap_or_default());
        Note { engine, arguments, boot, daemon, image, cgroup, root: None, images: Vec::new(), is_made: false }
    }

    /// The engine's program, told where its containers are.
    pub(super) fn program(&self) -> Result<Program, Error> {
        let missing = |source| Error::Missing { program: self.engine.clone(), source };
        let program = Program::find(&self.engine).map_err(missing)?.arguments(&self.arguments);
        Ok(program.variable(tracer::MARK, mark(self.daemon)))
    }

    /// By this are the programs known that are at work on it.
    pub(super) fn mark(&self) -> String {
        mark(self.daemon)
    }

    /// Where the runtime has its state of the container `name`; none at podman.
    fn state(&self, name: &str) -> Option<PathBuf> {
        let root = self.arguments.get(1).filter(|_| self.engine != "podman")?;
        Some(Path::new(root).join(name))
    }
}

/// By this are the programs known that make containers for the daemon with that number.
fn mark(daemon: u32) -> String {
    format!("restore-{daemon}")
}

/// All directories of containers, and the unpacked images.
#[derive(Debug)]
pub struct Places {
    containers: PathBuf,
    roots: PathBuf,
    boot: String,
    /// What restores are at work on: how many stand on each unpacked image, or make a container of each name.
    busy: Mutex<HashMap<PathBuf, usize>>,
    /// One looks at a time: what he removes must not be made anew meanwhile.
    sweeping: Mutex<()>,
    /// The blobs of images that containers read through our mount: these outlive their names.
    lazily: Mutex<HashMap<PathBuf, Lease>>,
    /// Held by who unpacks an image: whoever wants the same one then has it.
    unpacking: Mutex<()>,
}

impl Places {
    /// Those beside a store.
    pub fn new(store: &Store) -> Places {
        Places {
            containers: store.containers(),
            roots: store.roots(),
            boot: boot::boot_id().unwrap_or_default(),
            busy: Mutex::default(),
            sweeping: Mutex::default(),
            lazily: Mutex::default(),
            unpacking: Mutex::default(),
        }
    }

    pub(super) fn boot(&self) -> String {
        self.boot.clone()
    }

    /// Begin the directory of a container of that name. It is gone again, with all that belongs to it, unless it is
    /// [kept](Place::keep).
    pub(super) fn begin(&self, name: &str, note: Note) -> Result<Place<'_>, Error> {
        self.sweep();
        let path = self.containers.join(name);
        make_private(&self.containers)?;
        let busy = self.hold(path.clone());
        match fs::create_dir(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let engine = ["runc", "crun", "podman"].into_iter().find(|engine| *engine == note.engine);
                return Err(match read(&path) {
                    Some(there) if there.boot != self.boot => Error::Left { name: name.to_owned(), path },
                    _ => Error::Taken { name: name.to_owned(), engine: engine.unwrap_or("snapfs") },
                });
            }
            made => made.map_err(Error::files("make", &path))?,
        }
        let place = Place { path, name: name.to_owned(), note, is_kept: false, busy };
        make_private(&place.path)?;
        place.write()?;
        Ok(place)
    }

    /// The directory of an unpacked image, which `unpack` fills if it is not there yet; it stays while the result lives.
    pub(super) fn root(&self, chain: &str, unpack: impl FnOnce(&Path) -> Result<(), Error>) -> Result<Root<'_>, Error> {
        let path = self.roots.join(chain);
        let busy = self.hold(path.clone());
        let _one = self.unpacking.lock();
        if !path.is_dir() {
            make_private(&self.roots)?;
            let new = self.roots.join(format!("{chain}{UNFINISHED}"));
            remove_tree(&new).map_err(Error::files("remove", &new))?;
            fs::create_dir(&new).map_err(Error::files("make", &new))?;
            let unpacked = unpack(&new).and_then(|()| put_in_place(&new, &path).map_err(Error::files("rename", &new)));
            if let Err(error) = unpacked {
                // What cannot be removed now is swept later.
                let _ = remove_tree(&new);
                return Err(error);
            }
        }
        Ok(Root { path, _busy: busy })
    }

    /// Keep what `lease` holds for as long as the container of that directory.
    pub(super) fn keep_blobs(&self, path: PathBuf, lease: Lease) {
        self.lazily.lock().insert(path, lease);
    }

    fn hold(&self, path: PathBuf) -> Busy<'_> {
        *self.busy.lock().entry(path.clone()).or_default() += 1;
        Busy { places: self, path }
    }

    fn is_busy(&self, path: &Path) -> bool {
        self.busy.lock().contains_key(path)
    }

    /// Remove what belongs to containers that were deleted at their runtime or never finished, and unpacked images that
    /// no container stands on. Returns whether there are containers of ours left.
    pub fn sweep(&self) -> bool {
        let _one = self.sweeping.lock();
        let mut are_left = false;
        for path in entries(&self.containers) {
            let Some(name) = path.file_name().and_then(|name| name.to_str()).map(str::to_owned) else { continue };
            // First this: who is done with it has written the note before.
            if self.is_busy(&path) {
                continue;
            }
            let note = read(&path);
            let is_needed = note.as_ref().is_some_and(|note| {
                let has_state = || note.state(&name).is_some_and(|state| state.exists());
                // A runtime whose state was lost does not end what it runs.
                let lives = || is_cgroup(&note.cgroup) && reap::has_processes(&note.cgroup);
                note.is_made && (note.boot != self.boot || has_state() || lives())
            });
            are_left |= is_needed;
            if is_needed {
                continue;
            }
            match undo(&path, &name, note.as_ref(), &self.boot) {
                Ok(()) => {
                    self.lazily.lock().remove(&path);
                    log::info!("removed what was left of the container {name}, which is no more");
                }
                Err(error) => log::warn!("what is left of the container {name} cannot be removed: {error}"),
            }
        }
        // Nobody takes one up meanwhile; who unpacks one looks after it himself.
        if let Some(_none_unpacks) = self.unpacking.try_lock() {
            self.sweep_roots();
        }
        are_left
    }

    fn sweep_roots(&self) {
        for path in entries(&self.roots) {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let chain = name.strip_suffix(UNFINISHED).unwrap_or(name);
            // As above: who is done with it has written its name before.
            let is_used = self.is_busy(&self.roots.join(chain))
                || entries(&self.containers).iter().filter_map(|path| read(path)?.root).any(|root| root == name);
            if !is_used && let Err(error) = remove_tree(&path) {
                log::warn!("the unpacked image {} cannot be removed: {error}", path.display());
            }
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

/// A directory that nobody but root looks into.
fn make_private(path: &Path) -> Result<(), Error> {
    use std::os::unix::fs::PermissionsExt;
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(Error::files("make", path)(error)),
        _ => {}
    }
    fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(Error::files("close", path))
}

fn read(path: &Path) -> Option<Note> {
    serde_json::from_slice(&fs::read(path.join(NOTE)).ok()?).ok()
}

/// End and remove all that a note speaks of, and the directory with it.
fn undo(path: &Path, name: &str, note: Option<&Note>, boot: &str) -> io::Result<()> {
    if let Some(note) = note.filter(|note| note.boot == boot && is_name(name) && is_cgroup(&note.cgroup)) {
        if note.daemon != std::process::id() {
            end_programs(note.daemon);
        }
        undo_container(path, name, note);
    }
    unmount(path)?;
    remove_tree(path)
}

fn undo_container(path: &Path, name: &str, note: &Note) {
    let Ok(program) = note.program() else { return };
    let run = |words: &[&str]| program.clone().arguments(words).run(ASK);
    if note.engine == "podman" {
        if !note.is_made {
            // Each fails where there is nothing to do.
            for id in podman::containers(&program, name).unwrap_or_default() {
                let _ = run(&["rm", "--force", "--ignore", "--time", "0", "--volumes", &id]);
            }
            for image in &note.images {
                let _ = run(&["rmi", image]);
            }
        }
        return;
    }
    // Of a runtime that was killed: the root that it mounted for CRIU.
    if !note.is_made
        && let Some(Err(error)) = note.state(name).map(|state| unmount(&state))
    {
        log::warn!("what {} mounted for {name} cannot be detached: {error}", note.engine);
    }
    // Not one of that name that somebody else made.
    let is_ours = |bundle: &serde_json::Value| bundle.as_str().is_some_and(|bundle| Path::new(bundle) == path);
    let state = run(&["state", name]).ok().filter(|output| output.status.success());
    let state: Option<serde_json::Value> = state.and_then(|output| serde_json::from_slice(&output.stdout).ok());
    if state.as_ref().is_some_and(|state| !is_ours(&state["bundle"])) {
        return;
    }
    if state.is_some() || !note.is_made {
        let deleted = run(&["delete", "--force", name]).and_then(process::Output::check);
        log::debug!("deleted what {} knows of {name}: {:?}", note.engine, deleted.map(|_| ()));
    }
    if !reap::end_cgroup(&note.cgroup) {
        log::warn!("processes of the container {name} do not end");
    }
}

/// The programs of a daemon that died in the middle.
fn end_programs(daemon: u32) {
    let until = Instant::now() + END;
    loop {
        let running = tracer::marked(&AT_WORK, &mark(daemon));
        if running.is_empty() || Instant::now() > until {
            return;
        }
        for pid in running {
            for name in AT_WORK {
                tracer::kill_named(pid, name);
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// As they are made: one component of a path that cannot be another program's.
fn is_cgroup(name: &str) -> bool {
    name.starts_with("snapfs-") && name.len() > "snapfs-".len() && !name.contains('/')
}

/// Detach all that is mounted in a directory.
fn unmount(path: &Path) -> io::Result<()> {
    let mounts = mount::mounts()?;
    for mounted in mounts.iter().rev().filter(|mounted| mounted.point.starts_with(path)) {
        mount::detach(&mounted.point)?;
    }
    Ok(())
}

/// Something that must not be swept.
#[derive(Debug)]
struct Busy<'a> {
    places: &'a Places,
    path: PathBuf,
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut busy = self.places.busy.lock();
        if let Some(count) = busy.get_mut(&self.path) {
            *count -= 1;
            if *count == 0 {
                busy.remove(&self.path);
            }
        }
    }
}

/// An unpacked image in use.
#[derive(Debug)]
pub(super) struct Root<'a> {
    pub(super) path: PathBuf,
    _busy: Busy<'a>,
}

/// A container's directory, while it is made.
#[derive(Debug)]
pub(super) struct Place<'a> {
    pub(super) path: PathBuf,
    pub(super) name: String,
    pub(super) note: Note,
    is_kept: bool,
    busy: Busy<'a>,
}

impl Place<'_> {
    /// Write the note as it is now.
    pub(super) fn write(&self) -> Result<(), Error> {
        let (new, path) = (self.path.join(NEW), self.path.join(NOTE));
        let write = || {
            let mut file = fs::File::create(&new)?;
            io::Write::write_all(&mut file, &serde_json::to_vec(&self.note)?)?;
            file.sync_all()?;
            put_in_place(&new, &path)
        };
        write().map_err(Error::files("write", &path))
    }

    /// A directory in it.
    pub(super) fn directory(&self, name: &str) -> Result<PathBuf, Error> {
        let path = self.path.join(name);
        fs::create_dir_all(&path).map_err(Error::files("make", &path))?;
        Ok(path)
    }

    /// A directory in it is not needed any more.
    pub(super) fn remove(&self, name: &str) -> Result<(), Error> {
        let path = self.path.join(name);
        remove_tree(&path).map_err(Error::files("remove", &path))
    }

    /// The container is there, and its directory stays as long as it.
    pub(super) fn keep(mut self) -> Result<(), Error> {
        self.note.is_made = true;
        self.write()?;
        self.is_kept = true;
        Ok(())
    }

    /// The container is there, and needs no directory of ours.
    pub(super) fn release(mut self) -> Result<(), Error> {
        self.is_kept = true;
        remove_tree(&self.path).map_err(Error::files("remove", &self.path))
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        self.note.is_made = false;
        self.busy.places.lazily.lock().remove(&self.path);
        if let Err(error) = undo(&self.path, &self.name, Some(&self.note), &self.note.boot) {
            log::error!("what there is of the container {} cannot be removed: {error}", self.name);
        }
    }
}
