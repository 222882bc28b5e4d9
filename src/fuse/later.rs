//! Answers to changes that wait for the disk.

use fuser::{Errno, INodeNo, ReplyEmpty, Request};

use crate::fuse::{Fuse, answer, failed};
use crate::tree::Reply;

impl Fuse {
    /// The answer to a change of names, which waits for the disk. Who is told to end meanwhile is let go; the change goes on.
    pub(super) fn answer_later(
        &self,
        operation: &'static str,
        ino: INodeNo,
        request: &Request,
        result: Result<Reply<()>, Errno>,
        reply: ReplyEmpty,
    ) {
        self.later(operation, ino, request, result, move |result| answer(reply, result));
    }

    /// The same, whatever the answer is.
    pub(super) fn later(
        &self,
        operation: &'static str,
        ino: INodeNo,
        request: &Request,
        result: Result<Reply<()>, Errno>,
        answer: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        match result {
            Ok(Reply::Now(())) => answer(Ok(())),
            Ok(Reply::Later(mut ticket)) => self.waiters.park(
                request.pid(),
                move || Some(ticket.poll()?.map_err(|error| failed(operation, ino, &error))),
                answer,
            ),
            Err(errno) => answer(Err(errno)),
        }
    }
}
