//! The states of a job and the steps between them.

#![deny(clippy::wildcard_enum_match_arm)] // The table stays total.

use std::fmt;

/// queued → running → done | failed | cancelled; a queued job may be cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Admitted; waits for a worker or for an earlier job of its subject.
    Queued,
    /// Being worked on.
    Running,
    /// Ended well.
    Done,
    /// Ended with an error.
    Failed,
    /// Ended because it was asked to.
    Cancelled,
}

impl State {
    /// Whether the job has ended.
    pub fn is_terminal(self) -> bool {
        matches!(self, State::Done | State::Failed | State::Cancelled)
    }

    /// Whether `next` may follow.
    pub fn may_become(self, next: State) -> bool {
        match self {
            State::Queued => matches!(next, State::Running | State::Cancelled),
            State::Running => next.is_terminal(),
            State::Done | State::Failed | State::Cancelled => false,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Queued => "queued",
            State::Running => "running",
            State::Done => "done",
            State::Failed => "failed",
            State::Cancelled => "cancelled",
        })
    }
}
