//! [`Progress`]: all that an operation may know of its caller.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

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
    /// How many of each there will be, as far as is known; 0 if nothing is.
    total_bytes: AtomicU64,
    total_files: AtomicU64,
    began: OnceLock<Instant>,
    took: OnceLock<Duration>,
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
        self.0.began.get_or_init(Instant::now);
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

    /// About so many more bytes and files are to be processed, as a scan has found.
    pub fn expect(&self, bytes: u64, files: u64) {
        let (done_bytes, done_files) = self.counts();
        self.0.total_bytes.store(done_bytes + bytes, Ordering::Relaxed);
        self.0.total_files.store(done_files + files, Ordering::Relaxed);
    }

    /// Bytes and files that there will be, about; none if that is not known, and never less than there are.
    pub fn totals(&self) -> Option<(u64, u64)> {
        let total = (self.0.total_bytes.load(Ordering::Relaxed), self.0.total_files.load(Ordering::Relaxed));
        let done = self.counts();
        (total != (0, 0)).then(|| (total.0.max(done.0), total.1.max(done.1)))
    }

    /// The operation has ended: its time stands still.
    pub fn stop(&self) {
        let took = self.elapsed();
        self.0.took.get_or_init(|| took);
    }

    /// How long the operation has taken so far, or took.
    pub fn elapsed(&self) -> Duration {
        let so_far = || self.0.began.get().map_or(Duration::ZERO, Instant::elapsed);
        self.0.took.get().copied().unwrap_or_else(so_far)
    }

    /// Bytes a second so far; none if nothing was processed yet.
    pub fn rate(&self) -> Option<u64> {
        let (bytes, elapsed) = (self.counts().0, self.elapsed().as_millis());
        let rate = u128::from(bytes) * 1000 / elapsed.max(1);
        (bytes > 0).then(|| u64::try_from(rate).unwrap_or(u64::MAX))
    }

    /// How much longer it will take if it goes on like this; none if that cannot be told.
    pub fn remaining(&self) -> Option<Duration> {
        let rate = self.rate().filter(|rate| *rate > 0)?;
        let left = self.totals()?.0 - self.counts().0.min(self.totals()?.0);
        Some(Duration::from_secs(left.div_ceil(rate)))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn totals_are_known_after_a_scan_and_never_too_small() {
        let progress = Progress::new();
        assert_eq!((progress.totals(), progress.rate(), progress.remaining()), (None, None, None));
        progress.add_bytes(100);
        progress.expect(1000, 3);
        assert_eq!(progress.totals(), Some((1100, 3)));
        progress.add_bytes(2000);
        assert_eq!(progress.totals(), Some((2100, 3)), "what was read twice is more than was expected");
    }

    #[test]
    fn the_time_stands_still_at_the_end() {
        let progress = Progress::new();
        progress.enter("reading");
        progress.add_bytes(1 << 40);
        progress.expect(1 << 40, 1);
        std::thread::sleep(Duration::from_millis(2));
        assert!(progress.rate().unwrap() > 0 && progress.remaining().is_some());
        progress.stop();
        let took = progress.elapsed();
        assert!(took >= Duration::from_millis(2));
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(progress.elapsed(), took);
    }
}
