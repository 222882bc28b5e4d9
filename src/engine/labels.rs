//! Labels that only podman's program can tell: asked for in the background, remembered for good.
//!
//! What must hold: whoever reads labels waits a moment at most, and never two readers at once, so that a podman that
//! hangs costs the mount one of its threads for that moment and no more.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use serde_json::Value;

use crate::engine::Error;
use crate::sys::process::Program;

/// A container's labels.
pub(super) type Labels = BTreeMap<String, String>;

/// How long podman may take to tell a container's labels.
const INSPECT: Duration = Duration::from_secs(2);
/// How long it may take to tell all, when somebody waits for just that.
const FULL_INSPECT: Duration = Duration::from_secs(10);
/// How long the one who waits does: podman takes 30 to 60 ms.
const PATIENCE: Duration = Duration::from_millis(500);
/// How long a failure is remembered: podman is not asked again and again for what it does not tell.
const FAILED: Duration = Duration::from_secs(10);
/// How many containers' labels are kept; they never change.
const KEPT: usize = 4096;

/// The labels of podman's containers, as far as it has told.
#[derive(Debug)]
pub(super) struct Told(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// What tells the program `podman` which store it is about.
    arguments: Vec<OsString>,
    state: Mutex<State>,
    answered: Condvar,
}

#[derive(Debug, Default)]
struct State {
    known: HashMap<String, Labels>,
    failed: HashMap<String, (Instant, String)>,
    wanted: VecDeque<String>,
    asking: bool,
    somebody_waits: bool,
}

impl Told {
    pub(super) fn new(arguments: Vec<OsString>) -> Told {
        Told(Arc::new(Shared { arguments, state: Mutex::default(), answered: Condvar::new() }))
    }

    /// What tells the program `podman` which store it is about.
    pub(super) fn arguments(&self) -> &[OsString] {
        &self.0.arguments
    }

    /// All that podman tells of the container `id`, now.
    pub(super) fn inspect(&self, id: &str) -> Result<Value, Error> {
        self.0.ask(id, FULL_INSPECT)
    }

    /// The labels of the container `id`; [`Error::NotYet`] if podman has not told them yet.
    pub(super) fn labels(&self, id: &str) -> Result<Labels, Error> {
        let shared = &self.0;
        let mut state = shared.state.lock();
        if let Some(answer) = state.answer(id) {
            return answer;
        }
        self.ask(&mut state, id);
        if !state.somebody_waits {
            state.somebody_waits = true;
            let until = Instant::now() + PATIENCE;
            while state.answer(id).is_none() && !shared.answered.wait_until(&mut state, until).timed_out() {}
            state.somebody_waits = false;
        }
        state.answer(id).unwrap_or_else(|| Err(Error::NotYet { id: id.to_owned() }))
    }

    /// One question at a time, by a thread that ends when there is none.
    fn ask(&self, state: &mut State, id: &str) {
        if !state.wanted.iter().any(|wanted| wanted == id) {
            state.wanted.push_back(id.to_owned());
        }
        if state.asking {
            return;
        }
        let shared = Arc::clone(&self.0);
        // Without a thread the next reader tries again.
        state.asking = thread::Builder::new().name("podman".to_owned()).spawn(move || shared.answer_all()).is_ok();
    }
}

impl State {
    fn answer(&self, id: &str) -> Option<Result<Labels, Error>> {
        if let Some(labels) = self.known.get(id) {
            return Some(Ok(labels.clone()));
        }
        let (at, reason) = self.failed.get(id)?;
        (at.elapsed() < FAILED).then(|| Err(Error::Untold { id: id.to_owned(), reason: reason.clone() }))
    }
}

impl Shared {
    fn answer_all(&self) {
        let mut state = self.state.lock();
        while let Some(id) = state.wanted.front().cloned() {
            drop(state);
            let told = self.inspect(&id);
            state = self.state.lock();
            state.wanted.pop_front();
            if state.known.len() + state.failed.len() >= KEPT {
                (state.known, state.failed) = Default::default();
            }
            match told {
                Ok(labels) => drop(state.known.insert(id, labels)),
                Err(error) => drop(state.failed.insert(id, (Instant::now(), error.to_string()))),
            }
            self.answered.notify_all();
        }
        state.asking = false;
    }

    fn inspect(&self, id: &str) -> Result<Labels, Error> {
        let labels: Option<Labels> = serde_json::from_value(self.ask(id, INSPECT)?["Config"]["Labels"].take())
            .map_err(|error| Error::Answer { command: command(id), reason: error.to_string() })?;
        Ok(labels.unwrap_or_default())
    }

    fn ask(&self, id: &str, limit: Duration) -> Result<Value, Error> {
        let command = command(id);
        let failed = |source| Error::Program { command: command.clone(), source };
        let unusable = |reason| Error::Answer { command: command.clone(), reason };
        let program = Program::find("podman").map_err(failed)?;
        let program = program.arguments(&self.arguments).arguments(["container", "inspect", "--format", "json", id]);
        let output = program.run(limit).and_then(|output| output.check()).map_err(failed)?;
        let answer: Vec<Value> = serde_json::from_slice(&output.stdout).map_err(|error| unusable(error.to_string()))?;
        let [inspected] = <[Value; 1]>::try_from(answer)
            .map_err(|answer| unusable(format!("it tells of {} containers", answer.len())))?;
        Ok(inspected)
    }
}

fn command(id: &str) -> String {
    format!("podman container inspect {id}")
}
