//! Open files: text fixed at open, a control file's conversation, a stored blob, a listing.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::api::{Archive, Coming, Content, Error, EventReader, SnapfsJob};
use crate::tree::attr::{Caller, DirEntry};
use crate::tree::import::Receiving;
use crate::tree::node::Node;
use crate::tree::view::InView;
use crate::tree::written;

/// What is behind a file handle.
#[derive(Debug, Clone)]
pub(super) enum Handle {
    /// Text as it was at open.
    Text(Arc<[u8]>),
    /// Text that is being made.
    Coming(Arc<Coming<Vec<u8>>>),
    /// The state of a job once it has ended.
    Wait(Arc<SnapfsJob>),
    /// A control file.
    Control(Arc<Conversation>),
    /// A label or the policy, for writing.
    Written(Arc<written::Open>),
    /// What happens.
    Events { reader: Arc<EventReader>, nonblock: bool },
    /// An archive that is being written.
    Import(Arc<Receiving>),
    /// An image as an archive.
    Archive(Arc<Archive>),
    /// A blob.
    Stored(Arc<std::fs::File>),
    /// A file of an image.
    Content(Content),
    /// A directory of an image.
    ViewDirectory(InView),
    /// A directory as it was at open.
    Listing(Arc<[DirEntry]>),
}

/// An open control file: who opened it, and what was said on it.
#[derive(Debug)]
pub(super) struct Conversation {
    pub(super) node: Node,
    pub(super) opener: Caller,
    pub(super) talk: Mutex<Talk>,
}

/// The last command on an open control file, and what was read of its answer.
#[derive(Debug, Default)]
pub(super) struct Talk {
    pub(super) last: Option<Command>,
    pub(super) answer: Answer,
}

/// One command on an open control file.
#[derive(Debug, Clone)]
pub(super) struct Command {
    /// The line, or the bytes that are none: the same again is the same command, because clients re-send after EINTR and
    /// after an error.
    pub(super) sent: Vec<u8>,
    pub(super) outcome: Outcome,
    /// Its writer was told to end: the same again, which buffered files send when they are closed, does not wait.
    pub(super) abandoned: bool,
}

/// An answer as it is being read: one text from its beginning to its end, although the job goes on meanwhile.
#[derive(Debug)]
pub(super) struct Answer {
    /// Where it begins; `None` if wherever the next read does.
    begins: Option<u64>,
    text: Option<Vec<u8>>,
}

impl Default for Answer {
    /// Nothing was written: the file is read like any other.
    fn default() -> Answer {
        Answer { begins: Some(0), text: None }
    }
}

impl Answer {
    /// Something was written. The file position has moved past it if that succeeded, and not if it failed or was
    /// interrupted, which nobody tells us: the next read shows where it stands.
    pub(super) fn forget(&mut self) {
        *self = Answer { begins: None, text: None };
    }

    /// Up to `size` bytes at `offset` of the text that `make` made when the reading began. Reading its first byte, or
    /// seeking to before it, begins anew.
    pub(super) fn read(
        &mut self,
        offset: u64,
        size: u32,
        make: impl FnOnce() -> Result<Vec<u8>, Error>,
    ) -> Result<Vec<u8>, Error> {
        let begins = self.begins.map_or(offset, |begins| begins.min(offset));
        let text = match self.text.take() {
            Some(text) if offset > begins => text,
            _ => make()?,
        };
        self.begins = Some(begins);
        let piece = slice(&text, offset - begins, size);
        self.text = Some(text);
        Ok(piece)
    }
}

/// Up to `size` bytes of `text` at `offset`.
pub(super) fn slice(text: &[u8], offset: u64, size: u32) -> Vec<u8> {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(text.len());
    let end = start.saturating_add(size as usize).min(text.len());
    text[start..end].to_vec()
}

/// What became of a command.
#[derive(Debug, Clone)]
pub(super) enum Outcome {
    /// It was carried out, or refused, at once.
    Settled(Result<String, Error>),
    /// It is carried out beside the jobs.
    Coming(Arc<Coming<String>>),
    /// It is a job; `detached` if the writer does not wait for it.
    Job { job: Arc<SnapfsJob>, detached: bool },
}

impl Outcome {
    /// How it ended, if it has.
    pub(super) fn end(&self) -> Option<Result<String, Error>> {
        match self {
            Outcome::Settled(result) => Some(result.clone()),
            Outcome::Coming(coming) => coming.answer(),
            Outcome::Job { job, .. } => job.outcome().map(|outcome| outcome.map_err(|error| (*error).clone())),
        }
    }

    /// What a read of the same descriptor gives.
    pub(super) fn text(&self) -> String {
        let job = match self {
            Outcome::Settled(_) | Outcome::Coming(_) => String::new(),
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

    pub(super) fn remove(&mut self, fh: u64) -> Option<Handle> {
        let closed = self.open.remove(&fh);
        if let Some(Handle::Coming(coming)) = &closed {
            coming.cancel();
        }
        closed
    }
}
