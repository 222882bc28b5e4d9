//! Open files: text fixed at open, a control file's conversation, a stored blob, a listing.

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use crate::api::{Error, SnapfsJob};
use crate::tree::attr::{Caller, DirEntry};
use crate::tree::node::Node;

/// What is behind a file handle.
#[derive(Debug, Clone)]
pub(super) enum Handle {
    /// Text as it was at open.
    Text(Arc<[u8]>),
    /// Text that is being made.
    Coming(Arc<OnceLock<Result<Vec<u8>, Error>>>),
    /// The state of a job once it has ended.
    Wait(Arc<SnapfsJob>),
    /// A control file.
    Control(Arc<Conversation>),
    /// A blob.
    Stored(Arc<std::fs::File>),
    /// A directory as it was at open.
    Listing(Arc<[DirEntry]>),
}

/// An open control file: who opened it, and the last command on it.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) node: Node,
    pub(super) opener: Caller,
    pub(super) last: parking_lot::Mutex<Option<Command>>,
}

/// One command on an open control file.
#[derive(Debug, Clone)]
pub(super) struct Command {
    /// What was written: the same again is the same command, because clients re-send after EINTR and after an error.
    pub(super) line: String,
    /// Where the first read after the write began: the file position moves with a write that succeeds and stays with one
    /// that fails, and a program may also read from the start.
    pub(super) base: Option<u64>,
    pub(super) outcome: Outcome,
}

/// What became of a command.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// It was carried out, or refused, at once.
    Settled(Result<String, Error>),
    /// It is a job; `detached` if the writer does not wait for it.
    Job { job: Arc<SnapfsJob>, detached: bool },
}

impl Outcome {
    /// How it ended, if it has.
    pub(super) fn end(&self) -> Option<Result<String, Error>> {
        match self {
            Outcome::Settled(result) => Some(result.clone()),
            Outcome::Job { job, .. } => job.outcome().map(|outcome| outcome.map_err(|error| (*error).clone())),
        }
    }

    /// What a read of the same descriptor gives.
    pub(super) fn text(&self) -> String {
        let job = match self {
            Outcome::Settled(_) => String::new(),
            Outcome::Job { job, .. } => format!("job={} state={} ", job.id, job.state()),
        };
        match self.end() {
            None => format!("{}\n", job.trim_end()),
            Some(Ok(text)) => format!("{job}{}\n", text.trim_end()),
            Some(Err(error)) => format!("{job}error: {error}\n"),
        }
    }
}

/// All open handles.
#[derive(Debug, Default)]
pub(super) struct Handles {
    open: HashMap<u64, Handle>,
    next: u64,
}

impl Handles {
    pub(super) fn insert(&mut self, handle: Handle) -> u64 {
        self.next += 1;
        self.open.insert(self.next, handle);
        self.next
    }

    pub(super) fn find(&self, fh: u64) -> Option<Handle> {
        self.open.get(&fh).cloned()
    }

    pub(super) fn remove(&mut self, fh: u64) {
        self.open.remove(&fh);
    }
}
