//! A written line becomes a job; the only place where operations are wired.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::api::restore::check_label_writer;
use crate::api::words::{self, Words};
use crate::api::{ContainerKey, Error, ErrorKind, JobId, Snapfs, SnapfsJob};
use crate::capture;
use crate::checkpoint;
use crate::commit;
use crate::engine::name;
use crate::job::{self, Abandoned, Brief, Finish};
use crate::oci::{Descriptor, ImageName, annotation};
use crate::progress::Progress;
use crate::sys::clock::Clock;
use crate::sys::process::Origin;

/// What can be done to a container; the name of the control file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Snapshot the file system.
    Commit,
    /// Snapshot the processes too.
    Checkpoint,
}

/// What was asked for, understood.
enum Asked {
    Commit(commit::Options),
    Checkpoint(checkpoint::Options),
}

impl Asked {
    fn parse(verb: Verb, line: &str) -> Result<Asked, crate::line::Error> {
        Ok(match verb {
            Verb::Commit => Asked::Commit(commit::Options::parse(line)?),
            Verb::Checkpoint => Asked::Checkpoint(checkpoint::Options::parse(line)?),
        })
    }

    fn name(&mut self) -> &mut ImageName {
        match self {
            Asked::Commit(options) => &mut options.name,
            Asked::Checkpoint(options) => &mut options.name,
        }
    }

    fn labels(&self) -> &BTreeMap<String, String> {
        match self {
            Asked::Commit(options) => &options.labels,
            Asked::Checkpoint(options) => &options.labels,
        }
    }

    fn is_detached(&self) -> bool {
        match self {
            Asked::Commit(options) => options.detach,
            Asked::Checkpoint(options) => options.detach,
        }
    }
}

impl Verb {
    /// The control file's name.
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Commit => "commit",
            Verb::Checkpoint => "checkpoint",
        }
    }
}

impl Snapfs {
    /// Admit the command `line` on a container. Says whether the writer asked not to wait.
    ///
    /// What can be refused before anything begins is refused here, and stands in `last_error` as well.
    pub fn submit(
        self: &Arc<Self>,
        key: &ContainerKey,
        verb: Verb,
        line: &str,
        uid: u32,
    ) -> Result<(Arc<SnapfsJob>, bool), Error> {
        let admitted = self.admit(key, verb, line, uid);
        if let Err(error) = &admitted {
            self.record_refusal(&key.to_string(), &format!("{} {line}", verb.as_str()), uid, error);
        }
        admitted
    }

    fn admit(
        self: &Arc<Self>,
        key: &ContainerKey,
        verb: Verb,
        line: &str,
        uid: u32,
    ) -> Result<(Arc<SnapfsJob>, bool), Error> {
        let mut asked = Asked::parse(verb, line)?;
        asked.labels().keys().try_for_each(|label| check_label_writer(label, uid))?;
        let name = asked.name();
        *name = self.full_name(name)?;
        let container = self.container(key)?;
        let detach = asked.is_detached();
        let command = format!("containers/{}/{} {line}", name::encode(&container.name), verb.as_str());
        let brief = Brief { command, subject: key.to_string(), uid };
        let (this, key) = (Arc::clone(self), key.clone());
        let line = format!("{} {line}", verb.as_str());
        let work = move |progress: &Progress| {
            let result = this.snapshot(&key, &asked, progress);
            this.record(&key.to_string(), &line, uid, this.last_running(&key), &result);
            if result.is_err() {
                // What it had finished, such as a base layer, would fill the disk until the hour is over.
                this.start_collection();
            }
            match result {
                Ok(text) => Finish::Done(text),
                Err(error) if error.kind == ErrorKind::Cancelled => Finish::Cancelled(error),
                Err(error) => Finish::Failed(error),
            }
        };
        let full = |error: job::Full| Error::new(ErrorKind::Busy, error.to_string());
        Ok((self.jobs.start(brief, self.clock.now(), work).map_err(full)?, detach))
    }

    /// The container as it is when its turn comes, not as it was when it was asked for.
    fn snapshot(&self, key: &ContainerKey, asked: &Asked, progress: &Progress) -> Result<String, Error> {
        let container = self.container_now(key)?;
        let engine = self.engine(&container)?;
        let masked = self.mask_freeze(key);
        let context = capture::Context {
            store: &self.store,
            engine,
            guard: &self.guard,
            clock: self.clock,
            freeze_limit: self.freeze_limit,
        };
        let manifest = match asked {
            Asked::Commit(options) => commit::commit(&context, &container, options, progress).map_err(Error::from),
            Asked::Checkpoint(options) => {
                checkpoint::checkpoint(&context, &container, options, progress).map_err(Error::from)
            }
        };
        if let Ok(manifest) = &manifest {
            self.count_frozen(manifest);
        }
        // A listing made while the container stood still would call it paused once the mask is off.
        self.engines.containers_now();
        drop(masked);
        Ok(manifest?.digest.to_string())
    }

    /// How long a container was frozen is written in the image.
    fn count_frozen(&self, manifest: &Descriptor) {
        let facts = self.facts(manifest);
        let time =
            facts.as_ref().and_then(|facts| facts.annotations.get(annotation::FROZEN_MICROSECONDS)?.parse().ok());
        if let Some(time) = time {
            self.counters.froze(Duration::from_micros(time));
        }
    }

    fn last_running(&self, key: &ContainerKey) -> Option<JobId> {
        let subject = key.to_string();
        let jobs = self.jobs.ids().into_iter().rev().filter_map(|id| self.jobs.job(id));
        jobs.filter(|job| job.brief.subject == subject)
            .find(|job| job.state() == crate::job::State::Running)
            .map(|job| job.id)
    }

    /// `1` cancels the job; it is not an error if it has ended meanwhile.
    pub fn cancel(&self, id: JobId, line: &str) -> Result<String, Error> {
        if line.trim() != "1" {
            return Err(Error::new(ErrorKind::Invalid, format!("write 1 to cancel job {id}, not {line:?}")));
        }
        let gone = || Error::new(ErrorKind::NotFound, format!("job {id} is not remembered any more"));
        let job = self.jobs.job(id).ok_or_else(gone)?;
        self.jobs.cancel(&job);
        Ok(format!("job {id} was asked to stop"))
    }

    /// A process inside a container never commands, whatever rights it has there.
    pub fn authorise(&self, tid: u32) -> Result<(), Error> {
        let denied = |why: String| Error::new(ErrorKind::Denied, why);
        let origin = Origin::of(tid).map_err(|error| {
            denied(format!("the writer cannot be looked at, it may be inside a container: {error}"))
        })?;
        if !origin.is_host() {
            return Err(denied("the writer is in another pid or user namespace; write from the host".to_owned()));
        }
        let listing = self.engines.containers_now();
        let home = listing.iter().find(|(_, container)| container.cgroup.hold(&origin));
        match home {
            Some((name, _)) => Err(denied(format!("the writer runs inside the container {name}; write from the host"))),
            None => Ok(()),
        }
    }

    /// The daemon's clock.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// Wake whoever waits for a ticket.
    pub fn wake(&self) {
        // A full channel already holds the wake-up that this one would be.
        let _ = self.wake.try_send(());
    }

    /// What was last made of `subject`, as a control file shows it.
    pub fn last_result(&self, subject: &str) -> String {
        self.words.result(subject)
    }

    /// The last failed request on `subject`, in full.
    pub fn last_error(&self, subject: &str) -> String {
        self.words.error(subject)
    }

    /// A request that never became a job failed.
    pub fn record_refusal(&self, subject: &str, command: &str, uid: u32, error: &Error) {
        self.record(subject, command, uid, None, &Err(error.clone()));
    }

    pub(super) fn record(
        &self,
        subject: &str,
        command: &str,
        uid: u32,
        job: Option<JobId>,
        result: &Result<String, Error>,
    ) {
        self.words.record(subject, &words::Asked { at: self.clock.now(), uid, job, command }, result);
    }

    fn mask_freeze(&self, key: &ContainerKey) -> Masked {
        self.frozen_by_us.lock().insert(key.clone());
        Masked { frozen: Arc::clone(&self.frozen_by_us), key: key.clone() }
    }
}

/// The error of a job that ended without its work saying how, told where the work would have told it.
pub(super) fn abandoned(words: &Words, clock: Clock, job: &SnapfsJob, why: Abandoned) -> Error {
    let error = match why {
        Abandoned::Cancelled => Error::new(ErrorKind::Cancelled, "the job was cancelled before it began"),
        Abandoned::Stopping => {
            Error::new(ErrorKind::Cancelled, "the daemon is stopping; write the command again when it is back")
        }
        Abandoned::Panicked => {
            Error::new(ErrorKind::Io, "a defect in snapfs ended the job; the daemon's log says where")
        }
    };
    // `containers/NAME/VERB LINE`
    let command = job.brief.command.splitn(3, '/').last().unwrap_or_default();
    let asked = words::Asked { at: clock.now(), uid: job.brief.uid, job: Some(job.id), command };
    words.record(&job.brief.subject, &asked, &Err(error.clone()));
    error
}

/// While it lives, the container is shown as running although the freezer says otherwise.
struct Masked {
    frozen: Arc<Mutex<HashSet<ContainerKey>>>,
    key: ContainerKey,
}

impl Drop for Masked {
    fn drop(&mut self) {
        self.frozen.lock().remove(&self.key);
    }
}
