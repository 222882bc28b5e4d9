//! `/import`: an open file that an archive is written to, from its first byte to its last.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::api::{Error, ErrorKind, Incoming};
use crate::tree::attr::Caller;
use crate::tree::handle::{Answer, Handle};
use crate::tree::{Reply, Tree, wait_for};

/// The offset of a write to a file that was opened to append: wherever its end is.
pub const AT_END: u64 = u64::MAX;

/// The unit of a tar, which ends with two of zeros.
const BLOCK: usize = 512;

/// How many threads of a writer are remembered as allowed to write.
const THREADS: usize = 64;

/// An open file that takes an archive.
#[derive(Debug)]
pub(super) struct Receiving {
    opener: Caller,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Since the first write.
    incoming: Option<Arc<Incoming>>,
    /// To look at a thread takes longer than to take a megabyte from it.
    allowed: HashSet<u32>,
    answer: Answer,
}

impl Receiving {
    pub(super) fn new(opener: Caller) -> Receiving {
        Receiving { opener, state: Mutex::default() }
    }

    fn incoming(&self) -> Option<Arc<Incoming>> {
        self.state.lock().incoming.clone()
    }

    /// The last copy of the descriptor is closed.
    pub(super) fn close(&self) {
        if let Some(incoming) = self.incoming() {
            incoming.close();
        }
    }
}

impl Tree {
    /// More of an archive. The answer comes when there is room for it.
    pub(super) fn write_archive(
        &self,
        receiving: &Arc<Receiving>,
        offset: u64,
        bytes: &[u8],
        caller: &Caller,
    ) -> Result<Reply<u32>, Error> {
        let written = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let mut state = receiving.state.lock();
        if bytes.is_empty() {
            return Ok(Reply::Now(written));
        }
        let incoming = match &state.incoming {
            Some(incoming) => Arc::clone(incoming),
            None => Arc::clone(state.incoming.insert({
                self.allow(&receiving.opener, caller)
                    .inspect_err(|error| self.api.record_import_refusal(caller.uid, error))?;
                self.api.receive(caller.uid)?
            })),
        };
        if !state.allowed.contains(&caller.tid) || caller.uid != receiving.opener.uid {
            self.allow(&receiving.opener, caller)?;
            if state.allowed.len() >= THREADS {
                state.allowed.clear();
            }
            state.allowed.insert(caller.tid);
        }
        state.answer.forget();
        drop(state);
        let received = incoming.received();
        let is_again = offset != AT_END && incoming.is_last(offset, bytes.len() as u64);
        if offset != AT_END && offset != received && !is_again {
            let message = format!(
                "an archive is written from its beginning to its end: {received} bytes have come, and this is for \
                 offset {offset}; do not seek (cp --sparse=never)"
            );
            return Err(Error::new(ErrorKind::Invalid, message));
        }
        // Such bytes may be the end. Whoever wrote it waits until the archive was looked at: many programs heed the
        // errors of a write, and not those of a close.
        let may_end = offset != AT_END && bytes[bytes.len().saturating_sub(BLOCK)..].iter().all(|&byte| byte == 0);
        let settle = move |incoming: &Incoming| match may_end {
            true => Some(incoming.settled()?.map(|()| written)),
            false => Some(Ok(written)),
        };
        let taken = is_again
            || match incoming.offer(bytes) {
                Some(taken) => {
                    taken?;
                    true
                }
                None => false,
            };
        if taken {
            return wait_for(move || settle(&incoming));
        }
        let mut bytes = Some(bytes.to_vec());
        wait_for(move || {
            if let Some(waiting) = &bytes {
                if let Err(error) = incoming.offer(waiting)? {
                    return Some(Err(error));
                }
                bytes = None;
            }
            settle(&incoming)
        })
    }

    /// Somebody closes a copy of a descriptor. Of an archive that is complete the answer is its import's.
    pub fn flush(&self, fh: u64) -> Result<Reply<()>, Error> {
        match self.handle(fh)? {
            Handle::Import(receiving) => match receiving.incoming() {
                Some(incoming) => wait_for(move || incoming.flush()),
                None => Ok(Reply::Now(())),
            },
            _ => Ok(Reply::Now(())),
        }
    }

    /// What a read of the writer's own descriptor gives: how its archive fares.
    pub(super) fn import_answer(&self, receiving: &Receiving, offset: u64, size: u32) -> Result<Vec<u8>, Error> {
        let State { incoming, answer, .. } = &mut *receiving.state.lock();
        answer.read(offset, size, || {
            let job = incoming.as_ref().and_then(|incoming| incoming.job());
            Ok(job.map_or_else(|| self.api.last_import(), |job| self.api.job_line(job.id)).into_bytes())
        })
    }

    fn allow(&self, opener: &Caller, caller: &Caller) -> Result<(), Error> {
        self.check_opener(opener, caller)?;
        self.api.authorise(caller.tid)
    }
}
