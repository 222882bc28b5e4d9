//! Retention and collection: which names may go by the store's policy, and the blobs that nobody needs then.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::api::{Error, ErrorKind, ImageName, Snapfs, SnapfsJob};
use crate::job::{Brief, Finish};
use crate::progress::Progress;
use crate::retention::{Candidate, KEEP_LABEL, Policy};
use crate::store::{RETENTION_LIMIT, Store};

/// Under which last words of the store are kept: no container and no image has it.
pub(super) const STORE: &str = "store";

/// Whether names and blobs are removed, or only those that would be are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collect {
    /// They are.
    Now,
    /// They are not.
    DryRun,
}

/// What a policy says of a store's names.
struct Going {
    name: ImageName,
    generation: u64,
    reason: String,
}

/// Remove the names that the store's policy lets go, then the blobs that no name needs; says what and why, a line each.
/// A name whose image some operation uses stays.
pub fn collect(store: &Store, now: Timestamp, how: Collect, progress: &Progress) -> Result<String, Error> {
    let going = going(store, now)?;
    let mut said = String::new();
    let mut say = |line: String| said.push_str(&format!("{line}\n"));
    if how == Collect::DryRun {
        let names: HashSet<ImageName> = going.iter().map(|going| going.name.clone()).collect();
        let census = store.census_without(&names)?;
        for Going { name, reason, .. } in &going {
            say(format!("would remove {name}: {reason}"));
        }
        let (names, blobs, bytes) = (going.len(), census.garbage_blobs, census.garbage_bytes);
        say(format!("would remove {names} names, {blobs} blobs, {bytes} bytes"));
        return Ok(said);
    }
    progress.enter("retention");
    let mut names = 0;
    for Going { name, generation, reason } in &going {
        progress.check().map_err(|_| Error::new(ErrorKind::Cancelled, "the collection was cancelled"))?;
        // What was given to another image meanwhile, or labelled, was not judged.
        let is_same =
            |record: &crate::store::Record| record.generation == *generation && !store.is_held(&record.manifest.digest);
        if !store.record(name).is_some_and(|record| is_same(&record)) {
            continue;
        }
        store.remove(name)?;
        names += 1;
        say(format!("removed {name}: {reason}"));
    }
    progress.enter("collecting");
    let collected = store.gc()?;
    say(format!("removed {names} names, {} blobs, {} bytes", collected.blobs, collected.bytes));
    Ok(said)
}

fn going(store: &Store, now: Timestamp) -> Result<Vec<Going>, Error> {
    let policy = parse(&store.retention()?)?;
    if policy.is_empty() {
        return Ok(Vec::new());
    }
    let names = store.names();
    let records: Vec<_> = names.iter().collect();
    let candidates: Vec<Candidate<'_>> = records
        .iter()
        .map(|(name, record)| Candidate {
            name: name.as_str(),
            age: Duration::try_from(now.duration_since(record.created)).unwrap_or_default(),
            order: record.generation,
            is_protected: record.labels.contains_key(KEEP_LABEL) || store.is_held(&record.manifest.digest),
        })
        .collect();
    let verdicts = policy.judge(&candidates).into_iter();
    let going = verdicts.map(|verdict| {
        let (name, record) = records[verdict.at];
        Going { name: name.clone(), generation: record.generation, reason: verdict.reason }
    });
    Ok(going.collect())
}

fn parse(text: &[u8]) -> Result<Policy, Error> {
    let invalid = |why: String| Error::new(ErrorKind::Invalid, format!("the policy in retention is refused: {why}"));
    let text = std::str::from_utf8(text).map_err(|_| invalid("it is not UTF-8 text".to_owned()))?;
    Policy::parse(text).map_err(|error| invalid(error.to_string()))
}

impl Snapfs {
    /// The policy's text.
    pub fn retention(&self) -> Result<Vec<u8>, Error> {
        Ok(self.store.retention()?)
    }

    /// Replace the policy by what `change` makes of it, if that is one.
    pub fn set_retention(&self, change: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, Error>) -> Result<(), Error> {
        self.store.set_retention(|before| {
            let after = change(before)?;
            if after.len() as u64 > RETENTION_LIMIT {
                let long = format!("the policy would have {} bytes; {RETENTION_LIMIT} is the limit", after.len());
                return Err(Error::new(ErrorKind::TooBig, long));
            }
            parse(&after)?;
            Ok(after)
        })
    }

    /// `1` applies the policy and collects, `dry-run` tells what that would do.
    pub fn submit_gc(self: &Arc<Self>, line: &str, uid: u32) -> Result<Arc<SnapfsJob>, Error> {
        let how = match line.trim() {
            "1" => Collect::Now,
            "dry-run" => Collect::DryRun,
            other => {
                let error = Error::new(ErrorKind::Invalid, format!("write 1 or dry-run to gc, not {other:?}"));
                self.record_refusal(STORE, &format!("gc {line}"), uid, &error);
                return Err(error);
            }
        };
        let command = format!("gc {}", line.trim());
        let brief = Brief { command: command.clone(), subject: STORE.to_owned(), uid };
        let this = Arc::clone(self);
        let work = move |progress: &Progress| {
            let result = collect(&this.store, this.clock.now(), how, progress);
            // The list is the job's result; the last line is what there is to remember.
            let last = result.clone().map(|text| text.lines().last().unwrap_or_default().to_owned());
            this.record(STORE, &command, uid, None, &last);
            match result {
                Ok(text) => Finish::Done(text.trim_end().to_owned()),
                Err(error) if error.kind == ErrorKind::Cancelled => Finish::Cancelled(error),
                Err(error) => Finish::Failed(error),
            }
        };
        let full = |error: crate::job::Full| Error::new(ErrorKind::Busy, error.to_string());
        self.jobs.start(brief, self.clock.now(), work).map_err(full)
    }

    /// What was last made of a collection.
    pub fn last_collection(&self) -> String {
        self.last_result(STORE)
    }

    /// The last failed request on the store as a whole, in full.
    pub fn last_store_error(&self) -> String {
        self.last_error(STORE)
    }

    /// A write to the policy failed.
    pub fn refused_retention(&self, uid: u32, error: &Error) {
        self.record_refusal(STORE, "retention", uid, error);
    }
}
