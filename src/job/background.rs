//! Short work beside the jobs, for callers that must not wait: a few threads, which come when there is work and go with it.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use parking_lot::Mutex;

type Work = Box<dyn FnOnce() + Send>;

/// Does what it is given, first come, first served, on no more than so many threads.
pub struct Background(Arc<Shared>);

struct Shared {
    name: &'static str,
    threads: usize,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Work>,
    running: usize,
}

impl fmt::Debug for Background {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Background").field(&self.0.name).finish()
    }
}

impl Background {
    /// At most `threads` threads called `name`.
    pub fn new(name: &'static str, threads: usize) -> Background {
        Background(Arc::new(Shared { name, threads: threads.max(1), state: Mutex::default() }))
    }

    /// Have `work` done soon; returns at once.
    ///
    /// # Errors
    /// There is no thread and none can be started; `work` was dropped.
    pub fn run(&self, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let mut state = self.0.state.lock();
        state.waiting.push_back(Box::new(work));
        if state.running >= self.0.threads {
            return Ok(());
        }
        let shared = Arc::clone(&self.0);
        let started = thread::Builder::new().name(self.0.name.to_owned()).spawn(move || shared.work());
        match started {
            Ok(_) => state.running += 1,
            // Those that run come to it.
            Err(_) if state.running > 0 => {}
            Err(error) => {
                state.waiting.pop_back();
                return Err(error);
            }
        }
        Ok(())
    }
}

impl Shared {
    fn work(&self) {
        loop {
            let mut state = self.state.lock();
            let Some(work) = state.waiting.pop_front() else {
                state.running -= 1;
                return;
            };
            drop(state);
            // Whoever waits for the work notices that it was dropped; the thread has others to do.
            let _ = catch_unwind(AssertUnwindSafe(work));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::{bounded, unbounded};
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(10);

    #[test]
    fn all_of_it_is_done_by_so_many_threads_at_most() {
        let background = Background::new("test", 3);
        let (at_once, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (done, dones) = unbounded();
        for n in 0..100 {
            let (at_once, most, done) = (Arc::clone(&at_once), Arc::clone(&most), done.clone());
            let work = move || {
                most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                thread::sleep(Duration::from_millis(1));
                at_once.fetch_sub(1, Ordering::SeqCst);
                done.send(n).unwrap();
            };
            background.run(work).unwrap();
        }
        let mut found: Vec<i32> = (0..100).map(|_| dones.recv_timeout(SOON).unwrap()).collect();
        found.sort_unstable();
        assert_eq!(found, (0..100).collect::<Vec<_>>());
        assert!((1..=3).contains(&most.load(Ordering::SeqCst)), "{most:?}");
    }

    #[test]
    fn one_thread_keeps_the_order_and_survives_a_panic() {
        let background = Background::new("test", 1);
        let (open, gate) = bounded::<()>(0);
        let (done, dones) = unbounded();
        background.run(move || gate.recv_timeout(SOON).unwrap()).unwrap();
        background.run(|| panic!("on purpose")).unwrap();
        for n in 0..10 {
            let done = done.clone();
            background.run(move || done.send(n).unwrap()).unwrap();
        }
        open.send(()).unwrap();
        assert_eq!((0..10).map(|_| dones.recv_timeout(SOON).unwrap()).collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
    }
}
