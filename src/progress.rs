//! [`Progress`]: all that an operation may know of its caller.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::Mutex;

/// Counts and words that travel from an operation to whoever watches it, and a request to stop that travels back.
///
/// Clones share one state. Nothing here blocks: an operation can report from its innermost loop.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<State>);

#[derive(Debug, Default)]
struct State {
    bytes: AtomicU64,
    files: AtomicU64,
    cancelled: AtomicBool,
    phase: Mutex<&'static str>,
    log: Mutex<Vec<String>>,
}

/// The caller asked the operation to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cancelled")]
pub struct Cancelled;

impl Progress {
    /// Nothing done yet.
    pub fn new() -> Progress {
        Progress::default()
    }

    /// The operation enters `phase`, a word or two such as `frozen`.
    pub fn enter(&self, phase: &'static str) {
        *self.0.phase.lock() = phase;
    }

    /// The phase last entered; empty before the first.
    pub fn phase(&self) -> &'static str {
        *self.0.phase.lock()
    }

    /// `bytes` more were processed.
    pub fn add_bytes(&self, bytes: u64) {
        self.0.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// One more file was processed.
    pub fn add_file(&self) {
        self.0.files.fetch_add(1, Ordering::Relaxed);
    }

    /// Bytes and files so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.0.bytes.load(Ordering::Relaxed), self.0.files.load(Ordering::Relaxed))
    }

    /// A line for whoever reads the job's log: what was done that the user did not ask for in so many words.
    pub fn log(&self, line: impl Into<String>) {
        self.0.log.lock().push(line.into());
    }

    /// The lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.0.log.lock().clone()
    }

    /// Ask the operation to stop at its next [`check`](Self::check).
    pub fn cancel(&self) {
        self.0.cancelled.store(true, Ordering::Relaxed);
    }

    /// Whether the operation was asked to stop; called at least once a file and once a chunk.
    pub fn check(&self) -> Result<(), Cancelled> {
        if self.0.cancelled.load(Ordering::Relaxed) { Err(Cancelled) } else { Ok(()) }
    }
}
