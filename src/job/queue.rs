//! What waits for a worker: first come, first served, but one at a time for each subject.

use std::collections::{HashSet, VecDeque};

use parking_lot::{Condvar, Mutex};

/// A queue that hands out an item only while no other item of its subject is being worked on.
#[derive(Debug)]
pub(super) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    changed: Condvar,
}

#[derive(Debug)]
struct Inner<T> {
    waiting: VecDeque<(String, T)>,
    busy: HashSet<String>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(super) fn new() -> Queue<T> {
        let inner = Inner { waiting: VecDeque::new(), busy: HashSet::new(), closed: false };
        Queue { inner: Mutex::new(inner), changed: Condvar::new() }
    }

    /// Add an item; an error gives it back, because the queue is closed.
    pub(super) fn push(&self, subject: String, item: T) -> Result<(), T> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(item);
        }
        inner.waiting.push_back((subject, item));
        self.changed.notify_one();
        Ok(())
    }

    /// The next item whose subject is free, waiting for one; `None` once the queue is closed.
    pub(super) fn next(&self) -> Option<(String, T)> {
        let mut inner = self.inner.lock();
        loop {
            if inner.closed {
                return None;
            }
            let free = inner.waiting.iter().position(|(subject, _)| !inner.busy.contains(subject));
            if let Some((subject, item)) = free.and_then(|at| inner.waiting.remove(at)) {
                inner.busy.insert(subject.clone());
                return Some((subject, item));
            }
            self.changed.wait(&mut inner);
        }
    }

    /// The item of `subject` is no longer worked on.
    pub(super) fn finished(&self, subject: &str) {
        self.inner.lock().busy.remove(subject);
        self.changed.notify_all();
    }

    /// Whether nothing more is handed out.
    pub(super) fn is_closed(&self) -> bool {
        self.inner.lock().closed
    }

    /// How many items wait.
    pub(super) fn len(&self) -> usize {
        self.inner.lock().waiting.len()
    }

    /// Take the first waiting item that `matches`.
    pub(super) fn take(&self, matches: impl Fn(&T) -> bool) -> Option<T> {
        let mut inner = self.inner.lock();
        let at = inner.waiting.iter().position(|(_, item)| matches(item))?;
        inner.waiting.remove(at).map(|(_, item)| item)
    }

    /// Hand out nothing more; returns what waited.
    pub(super) fn close(&self) -> Vec<T> {
        let mut inner = self.inner.lock();
        inner.closed = true;
        self.changed.notify_all();
        inner.waiting.drain(..).map(|(_, item)| item).collect()
    }
}
