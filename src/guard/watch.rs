//! `snapfs-guard`: the process that thaws what the daemon cannot.
//!
//! It does not touch the disk: its memory is locked, and what it writes are cgroup files and the mark on an intent, which
//! lies on a tmpfs. It holds no more than [`MOST_HOLDS`] freezes, for which it reserved room at its start.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::exit;
use std::thread;
use std::time::{Duration, Instant};

use crate::guard::hold::NAME;
use crate::guard::intent::THAWED;
use crate::guard::message::{LONGEST, Reply, Request};
use crate::sys::cgroup::Switch;
use crate::sys::packet::{Received, Socket};
use crate::sys::process::{is_dying, stand_alone};
use crate::sys::tracer::{kill_named, marked};

/// So many containers can be frozen at once: three descriptors each, of the 1024 that every process may have.
pub(crate) const MOST_HOLDS: usize = 256;
/// How often the guard looks whether the daemon is about to end, while something is frozen. The end itself it is told;
/// but a core dump, or a thread that sleeps in the kernel, delays that for as long as it takes.
const LOOK: Duration = Duration::from_millis(20);
/// How long it thaws again and again after it saw that: a thread of the daemon may be in the middle of a freeze.
const DYING: Duration = Duration::from_millis(200);
/// How long it tries to thaw what does not thaw, once the daemon has ended.
const TRY: Duration = Duration::from_secs(10);
/// The programs that a daemon may have had at work on what it froze. A CRIU that outlives its daemon freezes the container
/// again, as it found it: so it is thawed until there is none.
const TRACERS: [&str; 3] = ["runc", "crun", "criu"];
/// How long they may take to come to an end by themselves, with all that they undo then.
const PATIENCE: Duration = Duration::from_secs(3);

/// To be called first in `main`: the guard is the same program under another name. If this process was started as the
/// guard, it is that to its end, and the call does not return.
pub fn take_over() {
    if std::env::args_os().next().is_none_or(|name| name.as_encoded_bytes() != NAME.to_bytes()) {
        return;
    }
    exit(match watch() {
        Ok(()) => 0,
        // There is nobody to tell: the daemon sees that the guard has ended, and starts another.
        Err(_) => 1,
    });
}

fn watch() -> io::Result<()> {
    let [socket, daemon] = stand_alone(NAME)?;
    let mut watch = Watch {
        socket: Socket::try_from(socket)?,
        daemon,
        pid: None,
        holds: Vec::with_capacity(MOST_HOLDS),
        dying_since: None,
    };
    watch.run()
}

struct Watch {
    socket: Socket,
    /// The daemon's pidfd.
    daemon: OwnedFd,
    pid: Option<u32>,
    holds: Vec<Held>,
    dying_since: Option<Instant>,
}

struct Held {
    id: u64,
    switch: Switch,
    intent: File,
    until: Instant,
    is_late: bool,
    is_thawed: bool,
    is_marked: bool,
}

impl Held {
    fn thaw(&mut self) -> bool {
        let is_thawed = self.switch.thaw_if_there().is_ok();
        if is_thawed && !self.is_marked {
            self.is_marked = true;
            // Without the mark a later daemon thaws once more, which is harmless unless the user paused it meanwhile.
            let _ = self.intent.write_all(THAWED.as_bytes());
        }
        is_thawed
    }
}

impl Watch {
    fn run(&mut self) -> io::Result<()> {
        loop {
            let ready = self.socket.wait(Some(self.daemon.as_fd()), self.timeout())?;
            if ready.socket && !self.serve()? || ready.other {
                self.thaw_all();
                return Ok(());
            }
            self.thaw_late();
            self.thaw_of_the_dying();
        }
    }

    fn timeout(&self) -> Option<Duration> {
        let now = Instant::now();
        let next = self.holds.iter().filter(|held| !held.is_late).map(|held| held.until.saturating_duration_since(now));
        (!self.holds.is_empty()).then(|| next.min().unwrap_or(LOOK).min(LOOK))
    }

    /// Receive one request and answer it; false at the end.
    fn serve(&mut self) -> io::Result<bool> {
        let mut buffer = [0; LONGEST];
        let (length, files) = match self.socket.receive(&mut buffer) {
            Ok(Received::Message(length, files)) => (length, files),
            Ok(Received::Closed) => return Ok(false),
            // The daemon gets no answer, kills this guard, and its next one thaws what is due.
            Err(error) => return Err(error),
        };
        let Some(request) = Request::parse(&buffer[..length]) else { return Ok(true) };
        let reply = self.answer(request, files);
        match self.socket.send(reply.to_string().as_bytes(), &[]) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            sent => sent.map(|()| true),
        }
    }

    fn answer(&mut self, request: Request, files: [Option<OwnedFd>; 3]) -> Reply {
        let id = request.id();
        match request {
            Request::Watch { pid } => {
                self.pid = Some(pid);
                Reply::Done { id }
            }
            Request::Hold { .. } if self.holds.len() >= MOST_HOLDS => Reply::Full { id },
            Request::Hold { limit, version, .. } => {
                let [Some(control), Some(request), Some(intent)] = files else { return Reply::Failed { id } };
                let switch = Switch::new(version, control, request);
                let until = Instant::now() + limit;
                self.holds.push(Held {
                    id,
                    switch,
                    intent: intent.into(),
                    until,
                    is_late: false,
                    is_thawed: false,
                    is_marked: false,
                });
                Reply::Done { id }
            }
            Request::Release { .. } | Request::Thaw { .. } => {
                let Some(at) = self.holds.iter().position(|held| held.id == id) else { return Reply::Failed { id } };
                if matches!(request, Request::Thaw { .. }) && !self.holds[at].thaw() {
                    self.holds[at].until = Instant::now();
                    return Reply::Failed { id };
                }
                let held = self.holds.swap_remove(at);
                if held.is_late { Reply::Late { id } } else { Reply::Done { id } }
            }
        }
    }

    /// A freeze beyond its limit is thawed, and kept: the daemon may be about to freeze it, and end.
    fn thaw_late(&mut self) {
        let now = Instant::now();
        for held in &mut self.holds {
            if !held.is_thawed && held.until <= now {
                held.is_late = true;
                held.is_thawed = held.thaw();
            }
        }
    }

    fn thaw_of_the_dying(&mut self) {
        if self.holds.is_empty() || !self.pid.is_some_and(is_dying) {
            return;
        }
        self.thaw_each();
        let since = *self.dying_since.get_or_insert_with(Instant::now);
        if since.elapsed() > DYING {
            self.holds.retain(|held| !held.is_thawed);
        }
    }

    fn thaw_all(&mut self) {
        let started = Instant::now();
        while !self.holds.is_empty() && started.elapsed() < TRY {
            self.thaw_each();
            let tracers = self.pid.map(|pid| marked(&TRACERS, &pid.to_string())).unwrap_or_default();
            if tracers.is_empty() {
                // What the last one froze again is thawed in this round.
                self.thaw_each();
                self.holds.retain(|held| !held.is_thawed);
            } else if started.elapsed() > PATIENCE {
                let each = tracers.iter().flat_map(|pid| TRACERS.iter().map(|name| (*pid, *name)));
                each.filter(|(pid, name)| kill_named(*pid, name)).for_each(drop);
            }
            if !self.holds.is_empty() {
                thread::sleep(Duration::from_millis(10));
            }
        }
    }

    fn thaw_each(&mut self) {
        for held in &mut self.holds {
            held.is_thawed = held.thaw();
        }
    }
}
