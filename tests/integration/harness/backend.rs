//! A disk that can stop, fail, or lose what was not synced.
//!
//! Every operation goes to a real directory, so that the store under test reads what it wrote, and into a model that
//! knows which bytes and which names are durable. A crash is then a directory made from the model.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::path::{Component, Path};
use std::sync::{Arc, Mutex, MutexGuard};

use snapfs::store::{Backend, DirBackend, FileKind, Pending};

/// When the disk misbehaves. Operations count from 0.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Plan {
    /// Never.
    Sound,
    /// The first `n` operations succeed and everything after them fails.
    StopAfter(usize),
    /// Operation `n` alone fails, with this errno.
    FailOnly(usize, i32),
}

/// What is left of the tree after a crash.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Crash {
    /// `kill -9`: all that was done is there.
    Kill,
    /// A power cut that loses everything that was not synced.
    PowerCut,
    /// A power cut after which some of what was not synced is there and some is not, in no order.
    PowerCutAtRandom(u64),
}

/// The disk. Clones are the same disk.
#[derive(Debug, Clone)]
pub(crate) struct CrashBackend {
    live: Arc<DirBackend>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug)]
struct State {
    plan: Plan,
    count: usize,
    inodes: Vec<Inode>,
    /// Changes of names that no sync has covered yet, oldest first.
    pending: Vec<Change>,
}

/// Entries that one operation changes together: (directory, name) and the inode it gives then.
type Change = Vec<((usize, OsString), Option<usize>)>;

#[derive(Debug, Clone)]
enum Inode {
    File { live: Vec<u8>, durable: Vec<u8> },
    Directory { live: BTreeMap<OsString, usize>, durable: BTreeMap<OsString, usize> },
}

const TOP: usize = 0;
/// input/output error: asm-generic/errno-base.h
pub(crate) const EIO: i32 = 5;
/// no space left on device: asm-generic/errno-base.h
pub(crate) const ENOSPC: i32 = 28;

impl CrashBackend {
    /// An empty disk, kept at `place`.
    pub(crate) fn new(place: &Path, plan: Plan) -> CrashBackend {
        let live = Arc::new(DirBackend::open(place).unwrap());
        let state = State { plan, count: 0, inodes: vec![Inode::directory()], pending: Vec::new() };
        CrashBackend { live, state: Arc::new(Mutex::new(state)) }
    }

    /// How many operations there were.
    pub(crate) fn count(&self) -> usize {
        self.lock().count
    }

    /// From here on, count from 0 and follow `plan`.
    pub(crate) fn set_plan(&self, plan: Plan) {
        let mut state = self.lock();
        (state.plan, state.count) = (plan, 0);
    }

    /// Write the tree as it is after `crash` into the directory `place`, which must exist.
    pub(crate) fn materialise(&self, crash: Crash, place: &Path) {
        let state = self.lock();
        let mut inodes = state.inodes.clone();
        let mut coin = match crash {
            Crash::Kill => return write_tree(&inodes, TOP, place, true),
            Crash::PowerCut => return write_tree(&inodes, TOP, place, false),
            Crash::PowerCutAtRandom(seed) => Coin(seed),
        };
        let mut survives: Vec<bool> = state.pending.iter().map(|_| coin.toss()).collect();
        // What is later at the same name cannot survive without what is earlier.
        for later in (0..survives.len()).rev() {
            if survives[later] {
                for earlier in
                    (0..later).filter(|earlier| touch_the_same(&state.pending[*earlier], &state.pending[later]))
                {
                    survives[earlier] = true;
                }
            }
        }
        for change in state.pending.iter().zip(&survives).filter(|(_, survives)| **survives).map(|(change, _)| change) {
            apply_durable(&mut inodes, change);
        }
        for inode in &mut inodes {
            if let Inode::File { live, durable } = inode
                && live != durable
                && coin.toss()
            {
                let kept = coin.below(live.len() + 1);
                *durable = live[..kept].to_vec();
            }
        }
        write_tree(&inodes, TOP, place, false);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Do `operation` on the real directory and `note` it in the model, unless the plan says otherwise.
    fn step<T>(
        &self,
        operation: impl FnOnce(&DirBackend) -> io::Result<T>,
        note: impl FnOnce(&mut State),
    ) -> io::Result<T> {
        let mut state = self.lock();
        state.count()?;
        let result = operation(&self.live)?;
        note(&mut state);
        Ok(result)
    }
}

impl State {
    fn count(&mut self) -> io::Result<()> {
        let n = self.count;
        self.count += 1;
        match self.plan {
            Plan::StopAfter(last) if n >= last => Err(io::Error::from_raw_os_error(EIO)),
            Plan::FailOnly(one, errno) if n == one => Err(io::Error::from_raw_os_error(errno)),
            Plan::Sound | Plan::StopAfter(_) | Plan::FailOnly(..) => Ok(()),
        }
    }

    fn entry(&self, path: &Path) -> (usize, OsString) {
        let parent = self.inode(path.parent().unwrap());
        (parent, path.file_name().unwrap().to_owned())
    }

    fn inode(&self, path: &Path) -> usize {
        let names = path.components().filter(|component| matches!(component, Component::Normal(_)));
        names.fold(TOP, |at, name| match &self.inodes[at] {
            Inode::Directory { live, .. } => live[name.as_os_str()],
            Inode::File { .. } => panic!("{} goes through a file", path.display()),
        })
    }

    fn add(&mut self, path: &Path, inode: Inode) -> usize {
        self.inodes.push(inode);
        let at = self.inodes.len() - 1;
        let entry = self.entry(path);
        self.change(vec![(entry, Some(at))]);
        at
    }

    fn change(&mut self, change: Change) {
        for ((directory, name), inode) in &change {
            if let Inode::Directory { live, .. } = &mut self.inodes[*directory] {
                set(live, name, *inode);
            }
        }
        self.pending.push(change);
    }

    /// What touches `directory` becomes durable, and with it what came before at the same names.
    fn sync_dir(&mut self, directory: usize) {
        let mut covered: BTreeSet<usize> = BTreeSet::new();
        for at in (0..self.pending.len()).rev() {
            let touches = self.pending[at].iter().any(|((parent, _), _)| *parent == directory);
            if touches || covered.iter().any(|later| touch_the_same(&self.pending[at], &self.pending[*later])) {
                covered.insert(at);
            }
        }
        for at in &covered {
            apply_durable(&mut self.inodes, &self.pending[*at]);
        }
        let mut at = 0;
        self.pending.retain(|_| {
            at += 1;
            !covered.contains(&(at - 1))
        });
    }
}

impl Inode {
    fn directory() -> Inode {
        Inode::Directory { live: BTreeMap::new(), durable: BTreeMap::new() }
    }
}

fn set(entries: &mut BTreeMap<OsString, usize>, name: &OsString, inode: Option<usize>) {
    match inode {
        Some(inode) => entries.insert(name.clone(), inode),
        None => entries.remove(name),
    };
}

fn touch_the_same(a: &Change, b: &Change) -> bool {
    a.iter().any(|(entry, _)| b.iter().any(|(other, _)| entry == other))
}

fn apply_durable(inodes: &mut [Inode], change: &Change) {
    for ((directory, name), inode) in change {
        if let Inode::Directory { durable, .. } = &mut inodes[*directory] {
            set(durable, name, *inode);
        }
    }
}

fn write_tree(inodes: &[Inode], directory: usize, place: &Path, alive: bool) {
    let Inode::Directory { live, durable } = &inodes[directory] else { panic!("not a directory") };
    for (name, inode) in if alive { live } else { durable } {
        let path = place.join(name);
        match &inodes[*inode] {
            Inode::File { live, durable } => std::fs::write(path, if alive { live } else { durable }).unwrap(),
            Inode::Directory { .. } => {
                std::fs::create_dir(&path).unwrap();
                write_tree(inodes, *inode, &path, alive);
            }
        }
    }
}

/// SplitMix64 (Steele, Lea, Flood: "Fast splittable pseudorandom number generators").
struct Coin(u64);

impl Coin {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn toss(&mut self) -> bool {
        self.next() & 1 == 1
    }

    fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }
}

impl Backend for CrashBackend {
    fn place(&self) -> &Path {
        self.live.place()
    }

    fn create(&self, path: &Path) -> io::Result<Box<dyn Pending>> {
        let mut inode = 0;
        let live = self.step(
            |disk| disk.create(path),
            |state| inode = state.add(path, Inode::File { live: Vec::new(), durable: Vec::new() }),
        )?;
        Ok(Box::new(CrashFile { disk: self.clone(), live, inode }))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(
            |disk| disk.link(from, to),
            |state| {
                let inode = state.inode(from);
                let to = state.entry(to);
                state.change(vec![(to, Some(inode))]);
            },
        )
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.step(
            |disk| disk.rename(from, to),
            |state| {
                let inode = state.inode(from);
                let (from, to) = (state.entry(from), state.entry(to));
                state.change(vec![(from, None), (to, Some(inode))]);
            },
        )
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.step(
            |disk| disk.sync_dir(path),
            |state| {
                let directory = state.inode(path);
                state.sync_dir(directory);
            },
        )
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.step(
            |disk| disk.make_dir(path),
            |state| {
                state.add(path, Inode::directory());
            },
        )
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.step(
            |disk| disk.remove_file(path),
            |state| {
                let entry = state.entry(path);
                state.change(vec![(entry, None)]);
            },
        )
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.step(
            |disk| disk.remove_dir(path),
            |state| {
                let entry = state.entry(path);
                state.change(vec![(entry, None)]);
            },
        )
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.step(|disk| disk.open(path), |_| {})
    }

    fn list(&self, path: &Path) -> io::Result<Vec<(OsString, FileKind)>> {
        self.step(|disk| disk.list(path), |_| {})
    }

    fn stat(&self, path: &Path) -> io::Result<(FileKind, u64)> {
        self.step(|disk| disk.stat(path), |_| {})
    }
}

#[derive(Debug)]
struct CrashFile {
    disk: CrashBackend,
    live: Box<dyn Pending>,
    inode: usize,
}

impl Write for CrashFile {
    /// A disk that stops in the middle of a write has taken half of it.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.disk.lock();
        let verdict = state.count();
        let taken = if verdict.is_ok() { bytes } else { &bytes[..bytes.len() / 2] };
        self.live.write_all(taken)?;
        if let Inode::File { live, .. } = &mut state.inodes[self.inode] {
            live.extend_from_slice(taken);
        }
        verdict.map(|()| bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Pending for CrashFile {
    fn sync(self: Box<Self>) -> io::Result<()> {
        let mut state = self.disk.lock();
        state.count()?;
        if let Inode::File { live, durable } = &mut state.inodes[self.inode] {
            durable.clone_from(live);
        }
        Ok(())
    }
}

/// The model itself: the store's tests are worth what it is worth.
mod tests {
    use super::*;

    fn names(crash: Crash, disk: &CrashBackend) -> Vec<String> {
        let place = tempfile::tempdir().unwrap();
        disk.materialise(crash, place.path());
        let mut names: Vec<String> = std::fs::read_dir(place.path())
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let text = if path.is_dir() { "/".to_owned() } else { std::fs::read_to_string(&path).unwrap() };
                format!("{}={text}", path.file_name().unwrap().to_str().unwrap())
            })
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_power_cut_keeps_what_was_synced_and_no_more() {
        let place = tempfile::tempdir().unwrap();
        let disk = CrashBackend::new(place.path(), Plan::Sound);
        let (a, b, top) = (Path::new("a"), Path::new("b"), Path::new("."));
        let mut file = disk.create(a).unwrap();
        file.write_all(b"x").unwrap();
        assert_eq!(names(Crash::Kill, &disk), ["a=x"]);
        disk.sync_dir(top).unwrap();
        assert_eq!(names(Crash::PowerCut, &disk), ["a="], "the name is durable, the bytes are not");
        file.sync().unwrap();
        assert_eq!(names(Crash::PowerCut, &disk), ["a=x"]);
        disk.rename(a, b).unwrap();
        assert_eq!(names(Crash::PowerCut, &disk), ["a=x"]);
        let seen: BTreeSet<Vec<String>> = (0..20).map(|seed| names(Crash::PowerCutAtRandom(seed), &disk)).collect();
        assert_eq!(seen, BTreeSet::from([vec!["a=x".to_owned()], vec!["b=x".to_owned()]]), "a rename is one step");
        disk.sync_dir(top).unwrap();
        assert_eq!(names(Crash::PowerCut, &disk), ["b=x"]);
    }

    #[test]
    fn the_plan_is_followed() {
        let place = tempfile::tempdir().unwrap();
        let disk = CrashBackend::new(place.path(), Plan::FailOnly(1, ENOSPC));
        disk.make_dir(Path::new("a")).unwrap();
        assert_eq!(disk.make_dir(Path::new("b")).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.make_dir(Path::new("c")).unwrap();
        assert_eq!(names(Crash::Kill, &disk), ["a=/", "c=/"]);
        disk.set_plan(Plan::StopAfter(1));
        disk.make_dir(Path::new("d")).unwrap();
        assert!(disk.make_dir(Path::new("e")).is_err());
        assert!(disk.list(Path::new(".")).is_err());
        assert_eq!(disk.count(), 3);
    }
}
