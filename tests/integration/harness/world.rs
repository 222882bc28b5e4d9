//! All of snapfs above its rooms, without a mount: a store of its own, containers as values with real files, overlay
//! mounts, cgroups and processes behind them, a real guard, and the tree.

use std::cell::Cell;
use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use snapfs::api::{Parts, Snapfs};
use snapfs::engine::{CgroupPaths, Container, Engines, Init, RootFs};
use snapfs::guard::Guard;
use snapfs::oci::Digest;
use snapfs::store::{Backend, DirBackend, Store};
use snapfs::sys::clock::Clock;
use snapfs::tree::{Access, Attr, Caller, Change, Error, InView, Kind, Opened, Reply, Tree, is_in_view};
use tempfile::TempDir;

use crate::harness::cgroup::{Group, versions, wait_for};
use crate::harness::engine::FakeEngine;
use crate::harness::image::{Whole, name, read_whole};
use crate::harness::rootfs::{Item, Overlay, make};
use crate::harness::slow_disk::{Gate, SlowDisk};
use crate::harness::{have, scratch};

/// The longest that anything here may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(120);
/// The time at which the clock of [`Setup::fixed`] stands, in seconds after the epoch.
pub(crate) const EPOCH: i64 = 1_700_000_000;

/// What a test may want otherwise.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) clock: Clock,
    pub(crate) workers: usize,
    /// Where the store is; in memory if nothing is said.
    pub(crate) store: Option<PathBuf>,
    /// `freeze-limit=`
    pub(crate) freeze_limit: Option<Duration>,
    /// `namespace=`
    pub(crate) namespace: Option<&'static str>,
    /// Closed, the store's disk is slow.
    pub(crate) gate: Gate,
    /// `cache=` and `symlinks=`
    pub(crate) views: snapfs::api::ViewSettings,
}

impl Default for Setup {
    fn default() -> Setup {
        let (clock, freeze_limit, gate) = (Clock::system(), Some(LIMIT), Gate::default());
        Setup { clock, workers: 2, store: None, freeze_limit, namespace: None, gate, views: Default::default() }
    }
}

impl Setup {
    /// A clock that stands still.
    pub(crate) fn fixed() -> Setup {
        Setup { clock: Clock::fixed(EPOCH).unwrap(), ..Setup::default() }
    }
}

/// See the head of this file. The fields are dropped in order: users first, what they use after them.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) tree: Arc<Tree>,
    pub(crate) snapfs: Arc<Snapfs>,
    pub(crate) store: Store,
    pub(crate) guard: Arc<Guard>,
    groups: Mutex<HashMap<String, Group>>,
    overlays: Mutex<Vec<Overlay>>,
    pub(crate) engine: FakeEngine,
    /// Where the store is.
    pub(crate) place: PathBuf,
    _directory: TempDir,
}

impl World {
    /// A world without containers and images; `None`, said aloud, where this needs root and there is none.
    pub(crate) fn new() -> Option<World> {
        World::with(Setup::default())
    }

    /// The same, not as usual.
    pub(crate) fn with(setup: Setup) -> Option<World> {
        if !have("root") {
            return None;
        }
        let directory = scratch();
        let place = setup.store.unwrap_or_else(|| directory.path().join("store"));
        let backend: Arc<dyn Backend> =
            Arc::new(SlowDisk { disk: DirBackend::open(&place).unwrap(), gate: setup.gate });
        let store = Store::open(backend).unwrap();
        assert_eq!(store.faults(), []);
        let engine = FakeEngine::new("fake");
        let guard = Arc::new(start_guard(directory.path()));
        let snapfs = Snapfs::new(Parts {
            store: store.clone(),
            engines: Engines::new(vec![Box::new(engine.clone())]),
            guard: Arc::clone(&guard),
            clock: setup.clock,
            workers: setup.workers,
            freeze_limit: setup.freeze_limit,
            views: setup.views,
            namespace: setup.namespace.map(name),
            mount_point: directory.path().join("not-mounted"),
        });
        let tree = Arc::new(Tree::new(Arc::clone(&snapfs), 0));
        Some(World {
            tree,
            snapfs,
            store,
            guard,
            groups: Mutex::default(),
            overlays: Mutex::default(),
            engine,
            place,
            _directory: directory,
        })
    }

    // ---- containers

    /// A created container on a mounted overlay, whose lower directory has `etc/base`, and which added `etc/new`.
    pub(crate) fn overlay(&self, name: &str) -> Container {
        let container = self.unchanged(name);
        fs::write(self.root_of(name).join("etc/new"), format!("of {name}\n")).unwrap();
        container
    }

    /// The same, before it added anything.
    pub(crate) fn unchanged(&self, name: &str) -> Container {
        self.unchanged_on(name, |_| {})
    }

    /// The same, on more: `prepare` fills the lower directory.
    pub(crate) fn unchanged_on(&self, name: &str, prepare: impl FnOnce(&Path)) -> Container {
        let container = self.engine.create(name);
        let directory = self.engine.directory_of(name);
        fs::create_dir(directory.join("lower/etc")).unwrap();
        fs::write(directory.join("lower/etc/base"), "from the base\n").unwrap();
        prepare(&directory.join("lower"));
        // Volatile: else each unmount waits for the whole disk.
        let overlay = Overlay::mount(&directory, &[directory.join("lower")], directory.join("upper"), "volatile");
        self.overlays.lock().unwrap().push(overlay);
        self.see();
        container
    }

    /// A created container whose root is a plain directory with one file, `new`.
    pub(crate) fn plain(&self, name: &str) -> Container {
        let mut container = self.engine.create(name);
        let root = self.engine.directory_of(name).join("lower");
        fs::write(root.join("new"), format!("of {name}\n")).unwrap();
        container.root = RootFs::Directory(root);
        self.change(|engine| engine.change(name, |found| found.root = container.root.clone()));
        container
    }

    /// Where the container's own processes see its files.
    pub(crate) fn root_of(&self, name: &str) -> PathBuf {
        PathBuf::from(self.link(&format!("containers/{name}/rootfs")).unwrap())
    }

    /// The container's processes make `items`.
    pub(crate) fn make(&self, name: &str, items: &[Item]) {
        make(&self.root_of(name), items);
    }

    /// A file that takes longer to commit than any test lasts: a commit of it runs until it is cancelled.
    pub(crate) fn make_endless(&self, name: &str) {
        let file = fs::File::create(self.root_of(name).join("zzz-endless")).unwrap();
        file.set_len(1 << 40).unwrap();
    }

    /// Its program runs: a real process in a real cgroup.
    pub(crate) fn run(&self, name: &str) -> Init {
        let mut group = Group::new(versions()[0]);
        let process = group.run("while :; do sleep 0.05; done");
        let init = Init { pid: process.pid, start_time: process.start_time };
        let cgroups = group.cgroups();
        let paths = CgroupPaths { v1_freezer: cgroups.v1_freezer, v2: cgroups.v2 };
        self.groups.lock().unwrap().insert(name.to_owned(), group);
        self.change(|engine| {
            engine.start(name, init);
            engine.change(name, |container| container.cgroup = paths);
        });
        init
    }

    /// Do something with the container's cgroup.
    pub(crate) fn group<T>(&self, name: &str, act: impl FnOnce(&mut Group) -> T) -> T {
        act(self.groups.lock().unwrap().get_mut(name).unwrap())
    }

    /// Nobody has the container frozen, and its processes do run.
    pub(crate) fn assert_thawed(&self, name: &str, context: &str) {
        self.group(name, |group| {
            assert!(!group.is_frozen(), "{context}: {name} is left frozen");
            wait_for(&format!("{context}: {name} runs again"), Duration::from_secs(2), || !group.is_settled());
        });
    }

    /// Change what is so at the engine, and let the daemon's listing, which may be 50 ms old, become stale.
    pub(crate) fn change(&self, change: impl FnOnce(&FakeEngine)) {
        change(&self.engine);
        self.see();
    }

    fn see(&self) {
        let age = self.engine.listed().map_or(Duration::MAX, |listed| listed.elapsed());
        thread::sleep(Duration::from_millis(60).saturating_sub(age));
    }

    /// Every commit that begins now stands still until the result is dropped.
    pub(crate) fn hold_up(&self) -> MutexGuard<'_, ()> {
        self.engine.hold_up()
    }

    // ---- the tree, by paths

    /// The inode number of a path, which is looked up component by component.
    pub(crate) fn ino(&self, path: &str) -> Result<u64, Error> {
        let mut names = path.split('/').filter(|name| !name.is_empty()).peekable();
        let mut ino = 1;
        while let Some(name) = names.next() {
            let found = match is_in_view(ino) {
                true => self.in_view(ino)?.lookup(name.as_ref())?,
                false => self.tree.lookup(ino, name.as_ref())?,
            };
            // `jobs/last/…`: the only links on the way to something lead to what is beside them.
            ino = match found.kind {
                Kind::Symlink if names.peek().is_some() => {
                    let target = std::ffi::OsString::from_vec(self.tree.read_link(found.ino)?);
                    self.tree.lookup(ino, &target)?.ino
                }
                _ => found.ino,
            };
        }
        Ok(ino)
    }

    pub(crate) fn attr(&self, path: &str) -> Result<Attr, Error> {
        let ino = self.ino(path)?;
        if is_in_view(ino) { self.in_view(ino)?.attr() } else { self.tree.attr(ino) }
    }

    pub(crate) fn link(&self, path: &str) -> Result<String, Error> {
        let ino = self.ino(path)?;
        let target = if is_in_view(ino) { self.in_view(ino)?.read_link()? } else { self.tree.read_link(ino)? };
        Ok(std::ffi::OsString::from_vec(target).into_string().unwrap())
    }

    /// `ls PATH`
    pub(crate) fn list(&self, path: &str) -> Result<Vec<String>, Error> {
        let ino = self.ino(path)?;
        if is_in_view(ino) {
            let at = self.in_view(ino)?;
            return Ok(at.entries(0).map(|(name, _)| String::from_utf8(name.to_vec()).unwrap()).collect());
        }
        let fh = self.tree.open_dir(ino)?;
        let entries = self.tree.read_dir(fh)?;
        self.tree.release_dir(fh);
        let names: Vec<String> = entries.iter().map(|entry| entry.name.clone().into_string().unwrap()).collect();
        assert_eq!(names[..2], [".", ".."]);
        let unique: BTreeSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len(), "{path} lists a name twice");
        Ok(names[2..].to_vec())
    }

    /// `cat PATH`, bytes.
    pub(crate) fn bytes(&self, path: &str) -> Result<Vec<u8>, Error> {
        let access = Access { read: true, write: false, nonblock: false };
        self.open_as(path, access, me())?.bytes()
    }

    /// `cat PATH`
    pub(crate) fn read(&self, path: &str) -> Result<String, Error> {
        self.bytes(path).map(|bytes| String::from_utf8(bytes).unwrap())
    }

    /// `cat PATH`, which must be one line.
    pub(crate) fn line(&self, path: &str) -> String {
        let text = self.read(path).unwrap_or_else(|error| panic!("{path}: {error}"));
        let line = text.strip_suffix('\n').unwrap_or_else(|| panic!("{path} has no newline at the end: {text:?}"));
        assert!(!line.contains('\n'), "{path} has more than one line: {text:?}");
        line.to_owned()
    }

    /// `echo TEXT > PATH`: open, truncate, write, close; waits for the answer.
    pub(crate) fn echo(&self, text: &str, path: &str) -> Result<(), Error> {
        let open = self.open(path)?;
        let truncate = Change { size: Some(0), ..Change::default() };
        self.tree.set_attr(self.ino(path)?, truncate)?;
        open.write(format!("{text}\n"))
    }

    /// `echo LINE > containers/NAME/commit`
    pub(crate) fn commit(&self, container: &str, line: &str) -> Result<(), Error> {
        self.echo(line, &format!("containers/{container}/commit"))
    }

    /// `cat containers/NAME/last_error`
    pub(crate) fn last_error(&self, container: &str) -> String {
        self.read(&format!("containers/{container}/last_error")).unwrap()
    }

    pub(crate) fn open(&self, path: &str) -> Result<Open<'_>, Error> {
        self.open_as(path, Access { read: true, write: true, nonblock: false }, me())
    }

    /// `exec 3< PATH`
    pub(crate) fn open_read(&self, path: &str) -> Open<'_> {
        self.open_as(path, Access { read: true, write: false, nonblock: false }, me()).unwrap()
    }

    pub(crate) fn open_as(&self, path: &str, access: Access, caller: Caller) -> Result<Open<'_>, Error> {
        self.open_ino(self.ino(path)?, access, caller)
    }

    pub(crate) fn open_ino(&self, ino: u64, access: Access, caller: Caller) -> Result<Open<'_>, Error> {
        let opened = match is_in_view(ino) {
            true => self.tree.open_in_view(&self.in_view(ino)?)?,
            false => self.tree.open(ino, access, &caller)?,
        };
        let fh = match opened {
            Opened::Text { fh } | Opened::Control { fh } | Opened::Import { fh } => fh,
            Opened::Archive { fh, .. } | Opened::Stored { fh, .. } | Opened::Content { fh, .. } => fh,
        };
        Ok(Open { world: self, fh, position: Cell::new(0) })
    }

    /// A file of an image, when its tree has come.
    fn in_view(&self, ino: u64) -> Result<InView, Error> {
        self.wait(self.tree.in_view(ino)?)
    }

    /// The answer, when it comes.
    pub(crate) fn wait<T>(&self, reply: Reply<T>) -> Result<T, Error> {
        let mut ticket = match reply {
            Reply::Now(answer) => return Ok(answer),
            Reply::Later(ticket) => ticket,
        };
        let (completions, until) = (self.tree.completions(), Instant::now() + LIMIT);
        loop {
            if let Some(answer) = ticket.poll() {
                return answer;
            }
            assert!(Instant::now() < until, "no answer within {LIMIT:?}");
            // Another test thread of this world may have taken the wake-up.
            let _ = completions.recv_timeout(Duration::from_millis(10));
        }
    }

    // ---- jobs

    /// Wait until the newest job says `state`.
    pub(crate) fn await_state(&self, state: &str) {
        wait_for(&format!("jobs/last/state is {state}"), LIMIT, || self.line("jobs/last/state") == state);
    }

    /// Wait until the newest job is in `phase` and has read some bytes in it.
    pub(crate) fn await_phase(&self, phase: &str) {
        let is_there = || {
            let progress = self.read("jobs/last/progress").unwrap();
            progress.starts_with(&format!("phase {phase}\n")) && !progress.contains("\nbytes 0\n")
        };
        wait_for(&format!("the newest job reads, in the phase {phase}"), LIMIT, is_there);
    }

    // ---- the store

    /// All image names.
    pub(crate) fn images(&self) -> Vec<String> {
        self.store.names().keys().map(ToString::to_string).collect()
    }

    /// The image, read and checked by other code than the product's.
    pub(crate) fn whole(&self, image: &str) -> Whole {
        read_whole(&self.store, &self.store.record(&name(image)).unwrap())
    }

    /// The manifest's digest.
    pub(crate) fn digest(&self, image: &str) -> Digest {
        self.store.record(&name(image)).unwrap().manifest.digest
    }

    /// Collect, and find nothing in the store but what its names need.
    pub(crate) fn assert_store_clean(&self, context: &str) {
        self.store.gc().unwrap();
        let needed: BTreeSet<Digest> =
            self.store.names().values().flat_map(|record| read_whole(&self.store, record).blobs).collect();
        assert_eq!(self.store.usage().unwrap().blobs, needed.len() as u64, "{context}: blobs that no name needs");
        assert_eq!(self.store.fsck().unwrap(), [], "{context}");
        let stage = self.place.join("stage");
        let until = Instant::now() + Duration::from_secs(2);
        // Its directory goes with the job's last breath, which may come after its answer.
        while fs::read_dir(&stage).unwrap().count() > 0 {
            assert!(Instant::now() < until, "{context}: unfinished files");
            thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // No job may outlive the mounts and cgroups that it works on.
        self.snapfs.shut_down();
    }
}

/// A guard whose freeze intents are in `directory`.
pub(crate) fn start_guard(directory: &Path) -> Guard {
    Guard::start_from(Path::new(env!("CARGO_BIN_EXE_snapfs")), &directory.join("frozen")).unwrap()
}

/// Root, on this thread.
pub(crate) fn me() -> Caller {
    Caller { uid: 0, gid: 0, tid: nix::unistd::gettid().as_raw().cast_unsigned() }
}

/// An open file with a position, as the kernel keeps it: a write that fails does not move it.
#[derive(Debug)]
pub(crate) struct Open<'world> {
    pub(crate) world: &'world World,
    pub(crate) fh: u64,
    position: Cell<u64>,
}

impl Open<'_> {
    /// write(2), as the caller and with the flags that the file was not opened with.
    pub(crate) fn send(&self, bytes: &[u8], nonblock: bool, caller: Caller) -> Result<Reply<u32>, Error> {
        self.world.tree.write(self.fh, self.position.get(), bytes, nonblock, &caller)
    }

    /// write(2), which waits.
    pub(crate) fn write(&self, text: impl AsRef<[u8]>) -> Result<(), Error> {
        let bytes = text.as_ref();
        let written = self.world.wait(self.send(bytes, false, me())?)?;
        assert_eq!(written as usize, bytes.len(), "a short write");
        self.position.set(self.position.get() + u64::from(written));
        Ok(())
    }

    /// write(2), of which the answer is not waited for.
    pub(crate) fn begin(&self, text: &str) -> Result<Reply<u32>, Error> {
        self.send(text.as_bytes(), false, me())
    }

    /// read(2) to the end, in pieces that are no multiple of anything.
    pub(crate) fn bytes(&self) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::new();
        loop {
            let reply = self.world.tree.read(self.fh, self.position.get(), 4099)?;
            let piece = self.world.wait(reply)?;
            if piece.is_empty() {
                return Ok(bytes);
            }
            self.position.set(self.position.get() + piece.len() as u64);
            bytes.extend(piece);
            assert!(bytes.len() < 64 << 20, "it does not end");
        }
    }

    /// `cat <&3`
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.bytes().unwrap()).unwrap()
    }

    /// lseek(2)
    pub(crate) fn seek(&self, position: u64) {
        self.position.set(position);
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.world.tree.release(self.fh);
    }
}
