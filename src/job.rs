//! Jobs: requests in progress, one at a time for each subject, a few in all.
//!
//! This room knows nothing of what the work does: work is a closure that gets a [`Progress`] and ends as a
//! [`Finish`]. What must hold: a job has exactly one terminal state; a panic in the work is a failed job; a job that is
//! cancelled while it waits never starts.

mod background;
mod queue;
mod state;

pub use background::Background;
pub use state::State;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::progress::Progress;
use queue::Queue;

/// How many finished jobs are remembered; older ones leave `jobs/`.
const REMEMBERED: usize = 1000;

/// How many jobs may wait: more than anybody means to start, and no burden. A loop that writes `async` commands meets it.
pub const MOST_WAITING: usize = 1000;

/// So many jobs wait that no more is admitted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_WAITING} jobs wait already; wait until some have ended, or cancel some: echo 1 > jobs/N/cancel")]
pub struct Full;

/// The number of a job: counted from 1, never used twice by one daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// How work ended.
#[derive(Debug)]
pub enum Finish<E> {
    /// It is done; the text says what it made.
    Done(String),
    /// It failed.
    Failed(E),
    /// It stopped because it was asked to.
    Cancelled(E),
}

/// Why a job ended without its work saying how.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Abandoned {
    /// It was cancelled while it waited.
    Cancelled,
    /// All jobs were cancelled, or will be: [`Jobs::cancel_all`].
    Stopping,
    /// The work panicked.
    Panicked,
}

/// What a job is, before it runs.
#[derive(Debug, Clone)]
pub struct Brief {
    /// The command as the user gave it, with the verb in front: `commit img`.
    pub command: String,
    /// Jobs of one subject run one after the other.
    pub subject: String,
    /// Who asked.
    pub uid: u32,
}

/// One job.
#[derive(Debug)]
pub struct Job<E> {
    /// Its number.
    pub id: JobId,
    /// What was asked.
    pub brief: Brief,
    /// When it was admitted.
    pub admitted: Timestamp,
    /// What it has done so far, and the way to cancel it.
    pub progress: Progress,
    status: Mutex<Status<E>>,
}

#[derive(Debug)]
struct Status<E> {
    state: State,
    outcome: Option<Result<String, Arc<E>>>,
}

impl<E> Job<E> {
    /// The state now.
    pub fn state(&self) -> State {
        self.status.lock().state
    }

    /// How it ended: what it made, or why not; `None` while it has not.
    pub fn outcome(&self) -> Option<Result<String, Arc<E>>> {
        self.status.lock().outcome.clone()
    }

    fn enter(&self, state: State, outcome: Option<Result<String, Arc<E>>>) {
        let mut status = self.status.lock();
        if status.state.may_become(state) {
            *status = Status { state, outcome };
        }
    }
}

type Work<E> = Box<dyn FnOnce(&Progress) -> Finish<E> + Send>;
type Told<E> = Box<dyn Fn(&Job<E>) + Send + Sync>;
type Explain<E> = Box<dyn Fn(&Job<E>, Abandoned) -> E + Send + Sync>;

struct Shared<E> {
    queue: Queue<(Arc<Job<E>>, Work<E>)>,
    jobs: Mutex<BTreeMap<JobId, Arc<Job<E>>>>,
    on_change: Told<E>,
    explain: Explain<E>,
}

/// All jobs of a daemon.
pub struct Jobs<E: Send + Sync + 'static> {
    shared: Arc<Shared<E>>,
    workers: Mutex<Vec<thread::JoinHandle<()>>>,
}

impl<E: Send + Sync + 'static> fmt::Debug for Jobs<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Jobs").field("jobs", &self.shared.jobs.lock().len()).finish_non_exhaustive()
    }
}

impl<E: Send + Sync + 'static> Jobs<E> {
    /// `workers` jobs at once. `on_change` is told of each job that was admitted, begun or ended, on the
    /// thread that did so. `explain` makes the
    /// error of a job that ended without its work saying how, before anybody can see that it has ended.
    pub fn new(workers: usize, on_change: Told<E>, explain: Explain<E>) -> Jobs<E> {
        let shared = Arc::new(Shared { queue: Queue::new(), jobs: Mutex::new(BTreeMap::new()), on_change, explain });
        let workers = (0..workers.max(1))
            .map(|n| {
                let shared = Arc::clone(&shared);
                thread::Builder::new().name(format!("job-{n}")).spawn(move || work(&shared))
            })
            .filter_map(Result::ok)
            .collect();
        Jobs { shared, workers: Mutex::new(workers) }
    }

    /// Admit a job that runs at once on a thread of its own: one that waits for its user, and must not keep a worker
    /// from the others meanwhile. After [`cancel_all`](Self::cancel_all) it has ended when this returns.
    ///
    /// Errors: no thread.
    pub fn start_apart(
        &self,
        brief: Brief,
        now: Timestamp,
        work: impl FnOnce(&Progress) -> Finish<E> + Send + 'static,
    ) -> io::Result<Arc<Job<E>>> {
        let job = self.admit(brief, now);
        // Admitted before it is asked whether all end, so that a job which is let through is one of those cancelled.
        if self.shared.queue.is_closed() {
            self.shared.abandon(&job, Abandoned::Stopping);
            return Ok(job);
        }
        let (shared, running) = (Arc::clone(&self.shared), Arc::clone(&job));
        let run = move || carry_out(&shared, &running, Box::new(work));
        match thread::Builder::new().name(format!("job-{}", job.id)).spawn(run) {
            Ok(thread) => {
                let mut workers = self.workers.lock();
                workers.retain(|worker| !worker.is_finished());
                workers.push(thread);
                Ok(job)
            }
            Err(error) => {
                self.shared.jobs.lock().remove(&job.id);
                Err(error)
            }
        }
    }

    fn admit(&self, brief: Brief, now: Timestamp) -> Arc<Job<E>> {
        let mut jobs = self.shared.jobs.lock();
        let id = JobId(jobs.last_key_value().map_or(1, |(last, _)| last.0 + 1));
        let status = Mutex::new(Status { state: State::Queued, outcome: None });
        let job = Arc::new(Job { id, brief, admitted: now, progress: Progress::new(), status });
        jobs.insert(id, Arc::clone(&job));
        forget_old(&mut jobs);
        drop(jobs);
        (self.shared.on_change)(&job);
        job
    }

    /// Admit a job. After [`cancel_all`](Self::cancel_all) it has ended when this returns.
    ///
    /// # Errors
    /// [`Full`].
    pub fn start(
        &self,
        brief: Brief,
        now: Timestamp,
        work: impl FnOnce(&Progress) -> Finish<E> + Send + 'static,
    ) -> Result<Arc<Job<E>>, Full> {
        // Two that come at once may make it one more than that.
        if self.shared.queue.len() >= MOST_WAITING {
            return Err(Full);
        }
        let job = self.admit(brief, now);
        let subject = job.brief.subject.clone();
        if self.shared.queue.push(subject, (Arc::clone(&job), Box::new(work))).is_err() {
            self.shared.abandon(&job, Abandoned::Stopping);
        }
        Ok(job)
    }

    /// The job with that number, if it is remembered.
    pub fn job(&self, id: JobId) -> Option<Arc<Job<E>>> {
        self.shared.jobs.lock().get(&id).cloned()
    }

    /// The newest job.
    pub fn last(&self) -> Option<JobId> {
        self.shared.jobs.lock().last_key_value().map(|(id, _)| *id)
    }

    /// All remembered jobs, oldest first.
    pub fn ids(&self) -> Vec<JobId> {
        self.shared.jobs.lock().keys().copied().collect()
    }

    /// How many jobs wait and how many run.
    pub fn load(&self) -> (usize, usize) {
        let jobs = self.shared.jobs.lock();
        let count = |state| jobs.values().filter(|job| job.state() == state).count();
        (count(State::Queued), count(State::Running))
    }

    /// Ask `job` to stop; one that waits ends at once.
    pub fn cancel(&self, job: &Job<E>) {
        job.progress.cancel();
        if let Some((job, _)) = self.shared.queue.take(|(queued, _)| queued.id == job.id) {
            self.shared.abandon(&job, Abandoned::Cancelled);
        }
    }

    /// Cancel everything; what is admitted from now on never begins. Returns at once.
    pub fn cancel_all(&self) {
        for (job, _) in self.shared.queue.close() {
            self.shared.abandon(&job, Abandoned::Stopping);
        }
        for job in self.shared.jobs.lock().values() {
            job.progress.cancel();
        }
    }

    /// [Cancel everything](Self::cancel_all), and wait until the running work has ended.
    pub fn shut_down(&self) {
        self.cancel_all();
        for worker in self.workers.lock().drain(..) {
            // A worker catches what its work throws; if it died all the same there is nothing left to wait for.
            let _ = worker.join();
        }
    }
}

fn forget_old<E>(jobs: &mut BTreeMap<JobId, Arc<Job<E>>>) {
    while jobs.len() > REMEMBERED {
        let Some(oldest) = jobs.iter().find(|(_, job)| job.state().is_terminal()).map(|(id, _)| *id) else { return };
        jobs.remove(&oldest);
    }
}

fn work<E: Send + Sync>(shared: &Shared<E>) {
    while let Some((subject, (job, work))) = shared.queue.next() {
        job.enter(State::Running, None);
        (shared.on_change)(&job);
        let finish = catch_unwind(AssertUnwindSafe(|| work(&job.progress)));
        shared.queue.finished(&subject);
        conclude(shared, &job, finish);
    }
}

/// A job without a queue.
fn carry_out<E: Send + Sync>(shared: &Shared<E>, job: &Job<E>, work: Work<E>) {
    job.enter(State::Running, None);
    conclude(shared, job, catch_unwind(AssertUnwindSafe(|| work(&job.progress))));
}

fn conclude<E: Send + Sync>(shared: &Shared<E>, job: &Job<E>, finish: thread::Result<Finish<E>>) {
    match finish {
        Ok(finish) => shared.end(job, finish),
        Err(_) => shared.abandon(job, Abandoned::Panicked),
    }
}

impl<E> Shared<E> {
    fn abandon(&self, job: &Job<E>, why: Abandoned) {
        let error = (self.explain)(job, why);
        self.end(job, if why == Abandoned::Panicked { Finish::Failed(error) } else { Finish::Cancelled(error) });
    }

    fn end(&self, job: &Job<E>, finish: Finish<E>) {
        job.progress.stop();
        match finish {
            Finish::Done(text) => job.enter(State::Done, Some(Ok(text))),
            Finish::Failed(error) => job.enter(State::Failed, Some(Err(Arc::new(error)))),
            Finish::Cancelled(error) => job.enter(State::Cancelled, Some(Err(Arc::new(error)))),
        }
        (self.on_change)(job);
    }
}

#[cfg(test)]
mod tests;
