//! What was last said of each container and image: what `commit` and `tag` show when they are read, and `last_error`.

use std::collections::HashMap;

use jiff::Timestamp;
use parking_lot::Mutex;

use crate::api::{Error, JobId};

/// Of how many containers and images the last words are kept.
const REMEMBERED: usize = 10_000;

/// The last words of all subjects.
#[derive(Debug, Default)]
pub(super) struct Words(Mutex<HashMap<String, Last>>);

#[derive(Debug, Default)]
struct Last {
    result: String,
    error: String,
}

/// A request: the beginning of the line that tells what became of it.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) at: Timestamp,
    pub(super) uid: u32,
    /// None if it never became one.
    pub(super) job: Option<JobId>,
    /// The verb and the line.
    pub(super) command: &'a str,
}

impl Words {
    /// What was last made of `subject`, or why not: one line, or nothing.
    pub(super) fn result(&self, subject: &str) -> String {
        self.0.lock().get(subject).map(|last| last.result.clone()).unwrap_or_default()
    }

    /// The last failure on `subject`: one line, or nothing.
    pub(super) fn error(&self, subject: &str) -> String {
        self.0.lock().get(subject).map(|last| last.error.clone()).unwrap_or_default()
    }

    /// Remember what became of a request.
    pub(super) fn record(&self, subject: &str, asked: &Asked<'_>, result: &Result<String, Error>) {
        let Asked { at, uid, command, job } = asked;
        let job = job.map(|id| format!(" job={id}")).unwrap_or_default();
        let head = format!("{at} uid={uid}{job} {command}: ");
        let mut all = self.0.lock();
        if all.len() >= REMEMBERED && !all.contains_key(subject) {
            all.clear();
        }
        let last = all.entry(subject.to_owned()).or_default();
        match result {
            Ok(text) => last.result = format!("{head}{text}\n"),
            Err(error) => {
                last.error = format!("{head}{error}\n");
                last.result = last.error.clone();
                log::warn!("{subject}: {command}: {error}");
            }
        }
    }
}
