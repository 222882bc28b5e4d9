//! The threads of a layer: workers that encode batches, and one writer that puts them in order, hashes and writes them.
//!
//! ```text
//! producer ──jobs──▶ workers ──done──▶ writer ──▶ blob
//!     ▲                                  │
//!     └────────── empty batches ─────────┘
//! ```
//!
//! There are [`Pipeline::batches`] batches and no more, so every channel has room for all of them and only the producer
//! ever waits: for the blob. Whoever fails ends, which closes its channels and so ends its neighbours.

use std::collections::BTreeMap;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::image::frame::{Batch, Encoder};
use crate::image::output::Output;
use crate::image::{Compression, Error};

/// How many threads may encode, whatever the machine: eight keep up with the one that hashes, and each has its batches.
pub(crate) const MAX_WORKERS: usize = 8;

/// How many batches the producer may be ahead beside those in use: 4 MiB of tar and more.
const AHEAD: usize = 8;

/// A batch and its place in the layer.
type Job = (u64, Batch);
type Done = (u64, io::Result<Batch>);

/// A failed write, with the blob that knows which file it was; or another failure, without.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: io::Error,
    output: Option<Box<Output>>,
}

impl Failure {
    /// A write to the output's blob failed.
    pub(crate) fn of_write(error: io::Error, output: Output) -> Failure {
        Failure { error, output: Some(Box::new(output)) }
    }

    /// A writer that gave its blob away.
    pub(crate) fn lost() -> Failure {
        io::Error::other("the layer failed before, or a thread of it died, which is a defect").into()
    }

    /// The store tells a failed write with the file's name and what to do.
    pub(crate) fn into_error(self) -> Error {
        match self.output.map(|output| output.blob.finish()) {
            Some(Err(error)) => Error::Store(error),
            Some(Ok(_)) | None => Error::Write(self.error),
        }
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure { error, output: None }
    }
}

/// Running threads. Dropped, it ends them and waits for that.
#[derive(Debug)]
pub(crate) struct Pipeline {
    jobs: Option<Sender<Job>>,
    empty: Receiver<Batch>,
    submitted: u64,
    /// Batches that can still be made.
    unmade: usize,
    abandoned: Arc<AtomicBool>,
    workers: Vec<JoinHandle<()>>,
    writer: Option<JoinHandle<Result<Output, Failure>>>,
}

impl Pipeline {
    /// How many batches exist: one in each worker's hands, one waiting for each, those of producer and writer, and some more,
    /// so that the workers have work while the producer opens many small files or looks for changes.
    fn batches(workers: usize) -> usize {
        2 * workers + 2 + AHEAD
    }

    /// Start the threads, which will append to `output`.
    pub(crate) fn start(output: Output, compression: Compression, workers: usize) -> io::Result<Pipeline> {
        let batches = Pipeline::batches(workers);
        let (jobs, queue) = bounded::<Job>(batches);
        let (done, finished) = bounded::<Done>(batches);
        let (back, empty) = bounded::<Batch>(batches);
        let abandoned = Arc::new(AtomicBool::new(false));
        // The batch that the producer fills is not counted as unmade.
        let mut pipeline = Pipeline {
            jobs: Some(jobs),
            empty,
            submitted: 0,
            unmade: batches - 1,
            abandoned: Arc::clone(&abandoned),
            workers: Vec::new(),
            writer: None,
        };
        for _ in 0..workers {
            let (queue, done, abandoned) = (queue.clone(), done.clone(), Arc::clone(&abandoned));
            let encoder = Encoder::new(compression)?;
            pipeline.workers.push(spawn("snapfs-encode", move || work(&queue, &done, encoder, &abandoned))?);
        }
        pipeline.writer = Some(spawn("snapfs-layer", move || write(&finished, &back, output, &abandoned))?);
        Ok(pipeline)
    }

    /// Hand over `batch` and get an empty one for it; `None` if a thread has failed: [`end`](Self::end) tells why.
    pub(crate) fn submit(&mut self, batch: Batch) -> Option<Batch> {
        self.jobs.as_ref()?.send((self.submitted, batch)).ok()?;
        self.submitted += 1;
        if let Ok(empty) = self.empty.try_recv() {
            return Some(empty);
        }
        if self.unmade > 0 {
            self.unmade -= 1;
            return Some(Batch::new());
        }
        self.empty.recv().ok()
    }

    /// Wait until everything submitted is written, and end the threads.
    pub(crate) fn end(mut self) -> Result<Output, Failure> {
        self.join().unwrap_or_else(|| Err(Failure::lost()))
    }

    fn join(&mut self) -> Option<Result<Output, Failure>> {
        self.jobs = None;
        let mut sound = true;
        for worker in self.workers.drain(..) {
            sound &= worker.join().is_ok();
        }
        let written = self.writer.take()?.join().unwrap_or_else(|_| Err(Failure::lost()));
        Some(if sound { written } else { Err(Failure::lost()) })
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
        self.join();
    }
}

fn spawn<T: Send + 'static>(name: &str, body: impl FnOnce() -> T + Send + 'static) -> io::Result<JoinHandle<T>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(body)
}

fn work(queue: &Receiver<Job>, done: &Sender<Done>, mut encoder: Encoder, abandoned: &AtomicBool) {
    for (place, mut batch) in queue {
        if abandoned.load(Ordering::Relaxed) {
            return;
        }
        // A place that is never filled would have everyone wait for it.
        let encoded = catch_unwind(AssertUnwindSafe(|| encoder.encode(&mut batch).map(|()| batch)));
        let encoded = encoded.unwrap_or_else(|_| Err(Failure::lost().error));
        if done.send((place, encoded)).is_err() {
            return;
        }
    }
}

fn write(
    done: &Receiver<Done>,
    back: &Sender<Batch>,
    mut output: Output,
    abandoned: &AtomicBool,
) -> Result<Output, Failure> {
    let mut early = BTreeMap::new();
    let mut next = 0;
    for (place, batch) in done {
        early.insert(place, batch);
        while let Some(batch) = early.remove(&next) {
            if abandoned.load(Ordering::Relaxed) {
                return Ok(output);
            }
            let mut batch = batch?;
            if let Err(error) = output.append(&batch) {
                return Err(Failure::of_write(error, output));
            }
            batch.clear();
            // Nobody may be waiting for it any more.
            let _ = back.send(batch);
            next += 1;
        }
    }
    Ok(output)
}
