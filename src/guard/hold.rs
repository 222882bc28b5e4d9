//! The daemon's end of the guard: start it, and lend it a freezer's files before each freeze.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::guard::Error;
use crate::guard::intent::{self, Intent, Owner};
use crate::guard::message::{LONGEST, Reply, Request};
use crate::sys::cgroup::{Freezer, Switch};
use crate::sys::packet::{Received, Socket};
use crate::sys::process::{Companion, Pidfd};

/// The guard's name, in ps and by which `main` knows it.
pub(crate) const NAME: &CStr = c"snapfs-guard";
/// This very program, even if another was installed in its place meanwhile.
const SELF: &str = "/proc/self/exe";
/// How long a guard may take to start, on a machine that is short of everything.
const START: Duration = Duration::from_secs(10);
/// How long it may take to answer.
const ANSWER: Duration = Duration::from_secs(2);
/// The pause between two attempts to replace a guard that has ended.
const RETRY: Duration = Duration::from_secs(1);

/// The running `snapfs-guard`. Clones share it; it ends with the last, or with this process.
///
/// A guard that ends is replaced at once, and told of every freeze that lasts.
#[derive(Debug, Clone)]
pub struct Guard(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    program: PathBuf,
    directory: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    link: Option<Link>,
    /// The last numbers given to a guard process and to a hold.
    last_link: u64,
    last_hold: u64,
    holds: BTreeMap<u64, Held>,
}

/// A guard process, for as long as nothing proves it dead.
#[derive(Debug)]
struct Link {
    number: u64,
    socket: Socket,
    process: Pidfd,
    pid: u32,
}

/// What a new guard must be told of a freeze.
#[derive(Debug)]
struct Held {
    switch: Switch,
    intent: File,
    until: Instant,
}

/// A freezer that the guard has the files of. Dropped without [`release`](Self::release), the guard thaws it at once.
#[derive(Debug)]
pub struct Hold {
    shared: Arc<Shared>,
    id: u64,
    limit: Duration,
    intent: Option<Intent>,
}

impl Guard {
    /// Start the guard: this program once more, which calls [`take_over`](crate::guard::take_over) first in `main`.
    /// `directory` is that of the intents, on a tmpfs, such as `/run/snapfs/frozen`; it is made if it is missing.
    ///
    /// # Errors
    /// [`Error::Start`], [`Error::NoAnswer`], and [`Error::Intent`] if the directory is not ours alone.
    pub fn start(directory: &Path) -> Result<Guard, Error> {
        Guard::start_from(Path::new(SELF), directory)
    }

    /// [`start`](Self::start) with another program: one whose own `main` is not that of snapfs.
    ///
    /// # Errors
    /// Those of `start`.
    pub fn start_from(program: &Path, directory: &Path) -> Result<Guard, Error> {
        intent::prepare(directory)?;
        let shared = Shared {
            program: program.to_owned(),
            directory: directory.to_owned(),
            state: Mutex::new(State::default()),
        };
        let shared = Arc::new(shared);
        let mut state = shared.state.lock();
        state.link(&shared)?;
        drop(state);
        Ok(Guard(shared))
    }

    /// The number of the guard's process, if there is one just now.
    pub fn pid(&self) -> Option<u32> {
        self.0.state.lock().link.as_ref().map(|link| link.pid)
    }

    /// Have the guard thaw `freezer` in `limit` from now, or when this process ends, whichever comes first. To be called
    /// before the freeze.
    ///
    /// # Errors
    /// [`Error::Busy`] if another snapshot holds it; [`Error::Full`], [`Error::Start`], [`Error::NoAnswer`] and
    /// [`Error::Intent`]: then it must not be frozen.
    pub fn hold(&self, freezer: &Freezer, limit: Duration) -> Result<Hold, Error> {
        let (intent, file) = intent::publish(&self.0.directory, freezer)?;
        let lend = |source| Error::NoAnswer { program: self.0.program.clone(), source };
        let held =
            Held { switch: freezer.switch().try_clone().map_err(lend)?, intent: file, until: Instant::now() + limit };
        let mut state = self.0.state.lock();
        state.last_hold += 1;
        let id = state.last_hold;
        // A guard that ended unnoticed is replaced once.
        for last in [false, true] {
            match state.link(&self.0)?.hold(id, &held) {
                Ok(Reply::Done { .. }) => {
                    state.holds.insert(id, held);
                    return Ok(Hold { shared: Arc::clone(&self.0), id, limit, intent: Some(intent) });
                }
                Ok(Reply::Full { .. }) => return Err(Error::Full),
                Ok(Reply::Late { .. } | Reply::Failed { .. }) if last => {
                    return Err(lend(io::ErrorKind::InvalidData.into()));
                }
                Err(source) if last => return Err(lend(source)),
                _ => state.unlink(),
            }
        }
        Err(lend(io::ErrorKind::NotConnected.into()))
    }

    /// Whose the present freeze of `freezer` is.
    pub(crate) fn owner(&self, freezer: &Freezer) -> Result<Owner, Error> {
        intent::owner(&self.0.directory, freezer)
    }
}

impl Hold {
    /// Tell the guard that the freezer was thawed, or was never frozen.
    ///
    /// # Errors
    /// [`Error::LimitExceeded`] if the guard had thawed it before.
    pub fn release(mut self) -> Result<(), Error> {
        // First: between the two, a second daemon would find a cgroup that nobody guards and that is not frozen.
        drop(self.intent.take());
        let mut state = self.shared.state.lock();
        let is_over = state.holds.remove(&self.id).is_some_and(|held| held.until <= Instant::now());
        let is_late = match state.link.as_ref().map(|link| link.ask(Request::Release { id: self.id }, None, ANSWER)) {
            Some(Ok(Reply::Late { .. })) => true,
            Some(Ok(_)) => false,
            // The next guard would have thawed it at the same time.
            Some(Err(_)) => {
                state.unlink();
                is_over
            }
            None => is_over,
        };
        if is_late { Err(Error::LimitExceeded { limit: self.limit }) } else { Ok(()) }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut state = self.shared.state.lock();
        if state.holds.remove(&self.id).is_none() {
            return;
        }
        let asked = state.link.as_ref().map(|link| link.ask(Request::Thaw { id: self.id }, None, ANSWER));
        if !matches!(asked, Some(Ok(Reply::Done { .. } | Reply::Late { .. }))) {
            // The intent stays, for thaw_leftovers.
            std::mem::forget(self.intent.take());
        }
    }
}

impl State {
    /// The present guard, or a new one that knows all holds.
    fn link(&mut self, shared: &Arc<Shared>) -> Result<&Link, Error> {
        if self.link.is_none() {
            self.last_link += 1;
            let link = Link::start(shared, self.last_link)?;
            for (id, held) in &self.holds {
                let told = link.hold(*id, held);
                told.map_err(|source| Error::NoAnswer { program: shared.program.clone(), source })?;
            }
            self.link = Some(link);
        }
        self.link.as_ref().ok_or_else(|| Error::NoAnswer {
            program: shared.program.clone(),
            source: io::ErrorKind::NotConnected.into(),
        })
    }

    /// The present guard is of no use any more.
    fn unlink(&mut self) {
        if let Some(link) = self.link.take() {
            // It fails if the guard has ended.
            let _ = link.process.kill();
        }
    }
}

impl Link {
    fn start(shared: &Arc<Shared>, number: u64) -> Result<Link, Error> {
        let broken = |source| Error::NoAnswer { program: shared.program.clone(), source };
        let (socket, theirs) = Socket::pair().map_err(broken)?;
        let daemon = std::process::id();
        let own = Pidfd::own().map_err(broken)?;
        let name = NAME.to_string_lossy();
        // The argument is for the reader of ps, and keeps a test binary from running all its tests under this name.
        let argument = format!("--of={daemon}");
        let companion = Companion::start(&shared.program, &name, &argument, theirs.into(), own.into())
            .map_err(|source| Error::Start { source })?;
        let process = companion.pidfd().map_err(broken)?;
        let link = Link { number, socket, process, pid: companion.id() };
        if let Err(error) = link.greet(daemon) {
            // Both fail if it has ended.
            let _ = link.process.kill();
            let _ = companion.wait();
            return Err(broken(error));
        }
        let weak = Arc::downgrade(shared);
        let thread = thread::Builder::new().name("guard".to_owned());
        thread.spawn(move || replace_when_ended(companion, &weak, number)).map_err(broken)?;
        Ok(link)
    }

    fn greet(&self, daemon: u32) -> io::Result<()> {
        match self.ask(Request::Watch { pid: daemon }, None, START)? {
            Reply::Done { .. } => Ok(()),
            Reply::Late { .. } | Reply::Full { .. } | Reply::Failed { .. } => Err(io::ErrorKind::InvalidData.into()),
        }
    }

    fn hold(&self, id: u64, held: &Held) -> io::Result<Reply> {
        let limit = held.until.saturating_duration_since(Instant::now());
        self.ask(Request::Hold { id, limit, version: held.switch.version() }, Some(held), ANSWER)
    }

    fn ask(&self, request: Request, held: Option<&Held>, limit: Duration) -> io::Result<Reply> {
        let message = request.to_string();
        match held {
            None => self.socket.send(message.as_bytes(), &[])?,
            Some(held) => {
                let [control, state] = held.switch.files();
                self.socket.send(message.as_bytes(), &[control, state, held.intent.as_fd()])?;
            }
        }
        let until = Instant::now() + limit;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if !self.socket.wait(None, Some(left))?.socket {
                continue;
            }
            let mut buffer = [0; LONGEST];
            return match self.socket.receive(&mut buffer)? {
                Received::Message(length, _) => Reply::parse(&buffer[..length])
                    .filter(|reply| reply.id() == request.id())
                    .ok_or_else(|| io::ErrorKind::InvalidData.into()),
                Received::Closed => Err(io::ErrorKind::BrokenPipe.into()),
            };
        }
    }
}

/// Wait for the end of a guard process, and start the next one, unless that was done or nobody needs one.
fn replace_when_ended(companion: Companion, weak: &Weak<Shared>, number: u64) {
    // It fails if somebody else waited for it: it has ended as well.
    let _ = companion.wait();
    while let Some(shared) = weak.upgrade() {
        let mut state = shared.state.lock();
        if state.link.as_ref().is_some_and(|link| link.number != number) {
            return;
        }
        state.link = None;
        match state.link(&shared) {
            Ok(link) => {
                log::warn!("snapfs-guard ended and was started anew, as process {}", link.pid);
                return;
            }
            Err(error) => log::error!("{error}"),
        }
        drop(state);
        drop(shared);
        thread::sleep(RETRY);
    }
}
