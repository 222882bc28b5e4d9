//! `/snap/import`: the bytes of an archive on their way from whoever writes them to the job that takes them.
//!
//! The writer is as fast as the job: a few megabytes wait between the two. Nobody tells a file system that a writer is
//! done; it is told of every close of every copy of the descriptor (flush), in programs that have not begun to write as
//! well. So a flush asks: is the archive complete? Only then the job may name its images, and the flush waits for that.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::api::{Error, ErrorKind, JobId, Snapfs, SnapfsJob};
use crate::archive::{self, Imported, is_request};
use crate::job::{Brief, Finish};
use crate::progress::{Cancelled, Progress};

/// Under which last words are kept.
const SUBJECT: &str = "import";
/// How many archives are taken at once.
const AT_ONCE: usize = 8;
/// The bytes that may wait for the job.
const WAITING: usize = 8 << 20;
/// As many of the first bytes are kept as a line may have.
const HEAD: usize = 4097;
/// How soon an idle job notices that it was cancelled.
const TICK: Duration = Duration::from_millis(100);

/// An archive that is being written.
pub struct Incoming {
    state: Mutex<Buffer>,
    changed: Condvar,
    job: OnceLock<Arc<SnapfsJob>>,
    wake: Box<dyn Fn() + Send + Sync>,
}

impl std::fmt::Debug for Incoming {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Incoming").field("state", &self.state).finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Buffer {
    chunks: VecDeque<Vec<u8>>,
    queued: usize,
    received: u64,
    /// The length of the last write.
    last: u64,
    head: Vec<u8>,
    /// The job has taken everything and waits for more.
    starves: bool,
    /// The archive's end was seen.
    complete: bool,
    /// Somebody closes the file: no more may come.
    flushing: bool,
    closed: bool,
    /// The job has ended and takes nothing more.
    over: bool,
    /// Somebody waits for room or for an answer.
    watched: bool,
}

impl Incoming {
    /// How many bytes were taken so far.
    pub fn received(&self) -> u64 {
        self.state.lock().received
    }

    /// The job.
    pub fn job(&self) -> Option<&Arc<SnapfsJob>> {
        self.job.get()
    }

    /// Take `bytes`; `None` while there is no room for them.
    pub fn offer(&self, bytes: &[u8]) -> Option<Result<(), Error>> {
        let mut buffer = self.state.lock();
        if buffer.over {
            drop(buffer);
            return self.after_the_end(bytes);
        }
        if buffer.queued > 0 && buffer.queued + bytes.len() > WAITING {
            buffer.watched = true;
            return None;
        }
        let room = HEAD.saturating_sub(buffer.head.len()).min(bytes.len());
        buffer.head.extend(&bytes[..room]);
        buffer.queued += bytes.len();
        buffer.received += bytes.len() as u64;
        buffer.last = bytes.len() as u64;
        buffer.chunks.push_back(bytes.to_vec());
        (buffer.starves, buffer.flushing) = (false, false);
        self.changed.notify_one();
        Some(Ok(()))
    }

    /// The job has ended: its error, or nothing if these are the zeros that follow an archive.
    fn after_the_end(&self, bytes: &[u8]) -> Option<Result<(), Error>> {
        match self.outcome()? {
            Ok(_) if bytes.iter().all(|&byte| byte == 0) => Some(Ok(())),
            Ok(_) => {
                let reason = "the archive was complete and is imported; open the file anew for another one";
                Some(Err(Error::new(ErrorKind::Invalid, reason)))
            }
            Err(error) => Some(Err(error)),
        }
    }

    /// Whether a write of `length` bytes at `offset` is the last one once more: programs send a write again after
    /// `EINTR`.
    pub fn is_last(&self, offset: u64, length: u64) -> bool {
        let buffer = self.state.lock();
        length > 0 && buffer.last == length && offset.checked_add(length) == Some(buffer.received)
    }

    /// Once all that was written is read, and looked at if it was the archive's end: why the job failed, if it did.
    pub fn settled(&self) -> Option<Result<(), Error>> {
        if let Some(outcome) = self.outcome() {
            return Some(outcome.map(drop));
        }
        let mut buffer = self.state.lock();
        if buffer.starves {
            return Some(Ok(()));
        }
        buffer.watched = true;
        None
    }

    /// Somebody closes the file. The job's end if the archive is complete; nothing while it is being found out.
    pub fn flush(&self) -> Option<Result<(), Error>> {
        if let Some(outcome) = self.outcome() {
            return Some(outcome.map(drop));
        }
        let mut buffer = self.state.lock();
        buffer.flushing = true;
        if buffer.starves && !buffer.complete {
            buffer.flushing = false;
            if is_request(&buffer.head) {
                return Some(Ok(()));
            }
            return Some(Err(archive::Error::Truncated.into()));
        }
        buffer.watched = true;
        self.changed.notify_one();
        None
    }

    /// The last copy of the descriptor is closed.
    pub fn close(&self) {
        self.state.lock().closed = true;
        self.changed.notify_one();
    }

    fn outcome(&self) -> Option<Result<String, Error>> {
        Some(self.job.get()?.outcome()?.map_err(|error| (*error).clone()))
    }

    /// The archive's end was seen.
    fn complete(&self) {
        self.state.lock().complete = true;
    }

    /// The next bytes, waiting for them; none at the end.
    fn next(&self, progress: &Progress) -> Result<Option<Vec<u8>>, Cancelled> {
        let mut buffer = self.state.lock();
        loop {
            progress.check()?;
            let watched = std::mem::take(&mut buffer.watched);
            if let Some(chunk) = buffer.chunks.pop_front() {
                buffer.queued -= chunk.len();
                drop(buffer);
                if watched {
                    (self.wake)();
                }
                return Ok(Some(chunk));
            }
            if buffer.closed || (buffer.flushing && buffer.complete) {
                return Ok(None);
            }
            buffer.starves = true;
            if watched {
                (self.wake)();
            }
            self.changed.wait_for(&mut buffer, TICK);
        }
    }

    /// Nothing is taken any more.
    fn end(&self) {
        let mut buffer = self.state.lock();
        buffer.over = true;
        buffer.chunks = VecDeque::new();
    }
}

/// The job's end of it.
struct Stream<'a> {
    incoming: &'a Incoming,
    progress: &'a Progress,
    chunk: Vec<u8>,
    at: usize,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.incoming.next(self.progress).map_err(io::Error::other)? {
                Some(chunk) => (self.chunk, self.at) = (chunk, 0),
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Whatever becomes of the job, nobody waits for it afterwards.
struct Ended(Arc<Incoming>);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Snapfs {
    /// Begin to take an archive, which is a job.
    ///
    /// Errors: too many are on their way.
    pub fn receive(self: &Arc<Self>, uid: u32) -> Result<Arc<Incoming>, Error> {
        let received = self.admit_archive(uid);
        if let Err(error) = &received {
            self.record_refusal(SUBJECT, SUBJECT, uid, error);
        }
        received
    }

    fn admit_archive(self: &Arc<Self>, uid: u32) -> Result<Arc<Incoming>, Error> {
        let jobs = self.jobs.ids().into_iter().filter_map(|id| self.jobs.job(id));
        if jobs.filter(|job| job.brief.subject == SUBJECT && !job.state().is_terminal()).count() >= AT_ONCE {
            let busy = format!("{AT_ONCE} archives are being imported; wait for one of them, see jobs/");
            return Err(Error::new(ErrorKind::Busy, busy));
        }
        let waker = Arc::downgrade(self);
        let wake = Box::new(move || {
            if let Some(this) = waker.upgrade() {
                this.wake();
            }
        });
        let incoming =
            Arc::new(Incoming { state: Mutex::default(), changed: Condvar::new(), job: OnceLock::new(), wake });
        let brief = Brief { command: SUBJECT.to_owned(), subject: SUBJECT.to_owned(), uid };
        let (this, ended) = (Arc::clone(self), Ended(Arc::clone(&incoming)));
        let work = move |progress: &Progress| {
            let result = this.import(&ended.0, progress);
            this.record(SUBJECT, SUBJECT, uid, ended.0.job().map(|job| job.id), &result);
            if result.is_err() {
                this.start_collection();
            }
            drop(ended);
            match result {
                Ok(text) => Finish::Done(text),
                Err(error) if error.kind == ErrorKind::Cancelled => Finish::Cancelled(error),
                Err(error) => Finish::Failed(error),
            }
        };
        let job = self.jobs.start_apart(brief, self.clock.now(), work).map_err(|error| {
            Error::new(ErrorKind::Again, format!("no thread to import the archive with: {error}; try again"))
        })?;
        // Only this thread sets it.
        let _ = incoming.job.set(job);
        Ok(incoming)
    }

    fn import(&self, incoming: &Incoming, progress: &Progress) -> Result<String, Error> {
        let stream = Stream { incoming, progress, chunk: Vec::new(), at: 0 };
        let imported = archive::import(&self.store, self.clock.now(), stream, || incoming.complete(), progress)?;
        Ok(told(&imported))
    }

    /// What was last imported, or why not.
    pub fn last_import(&self) -> String {
        self.last_result(SUBJECT)
    }

    /// A write of an archive was refused before it became a job.
    pub fn record_import_refusal(&self, uid: u32, error: &Error) {
        self.record_refusal(SUBJECT, SUBJECT, uid, error);
    }

    /// How far a job is, in the words of a control file: `job=1 state=running `.
    pub fn job_line(&self, id: JobId) -> String {
        self.job(id).map_or_else(String::new, |job| {
            let end = match job.outcome() {
                None => String::new(),
                Some(Ok(text)) => format!(" {text}"),
                Some(Err(error)) => format!(" error: {error}"),
            };
            format!("job={id} state={}{end}\n", job.state())
        })
    }
}

/// Each image's digest, and its names.
fn told(imported: &[Imported]) -> String {
    let mut text = String::new();
    let mut last = None;
    for Imported { name, manifest } in imported {
        if last != Some(manifest) {
            let separator = if last.is_some() { "; " } else { "" };
            text += &format!("{separator}{manifest}");
            last = Some(manifest);
        }
        text += &format!(" {name}");
    }
    text
}
