//! Files that keep what is written to them: labels and the retention policy.
//!
//! Such a file is text, not a command: a write takes its place at the offset, and is durable when it returns. `O_TRUNC`
//! takes effect with the first write, so that nobody sees the file without either text, or with the closing of the file
//! if nothing is written.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::api::{Error, ErrorKind, ImageKey, LABEL_LIMIT, Snapfs};
use crate::tree::attr::{Access, Caller};
use crate::tree::file::RootFile;
use crate::tree::handle::Handle;
use crate::tree::labels;
use crate::tree::node::Node;
use crate::tree::{AT_END, Opened, Reply, Tree, wait_for};

/// What is written to.
#[derive(Debug, Clone)]
pub(super) enum What {
    Label(ImageKey, String),
    Retention,
}

/// Such a file, open for writing.
#[derive(Debug)]
pub(super) struct Open {
    what: What,
    opener: Caller,
    /// What was there does not count for the next write.
    truncated: AtomicBool,
    /// Nothing was written since, not even in vain.
    untouched: AtomicBool,
}

impl Open {
    pub(super) fn text(&self, api: &Snapfs) -> Result<Vec<u8>, Error> {
        self.what.text(api)
    }
}

impl What {
    pub(super) fn of(node: &Node) -> Option<What> {
        match node {
            Node::Label(key, label) => Some(What::Label(key.clone(), label.clone())),
            Node::RootFile(RootFile::Retention) => Some(What::Retention),
            _ => None,
        }
    }
}

/// The text after `bytes` were written at `offset`.
fn splice(mut text: Vec<u8>, offset: u64, bytes: &[u8]) -> Result<Vec<u8>, Error> {
    // O_APPEND: at the end, wherever that is.
    let offset = if offset == AT_END { text.len() as u64 } else { offset };
    let at = usize::try_from(offset).ok().filter(|at| *at <= text.len()).ok_or_else(hole)?;
    let end = text.len().min(at + bytes.len());
    text.splice(at..end, bytes.iter().copied());
    Ok(text)
}

fn hole() -> Error {
    Error::new(ErrorKind::Invalid, "there can be no hole in the file; write it from its beginning")
}

/// The value of a label whose file holds `text`: one newline at the end is the file's.
fn value(mut text: Vec<u8>) -> Result<String, Error> {
    if text.last() == Some(&b'\n') {
        text.pop();
    }
    if text.len() > LABEL_LIMIT {
        let long = format!("a label and its value have {LABEL_LIMIT} bytes together at most");
        return Err(Error::new(ErrorKind::TooBig, long));
    }
    String::from_utf8(text).map_err(|_| Error::new(ErrorKind::Invalid, "a label's value is UTF-8 text"))
}

impl Tree {
    /// Open it for reading, or for writing.
    pub(super) fn open_written(&self, what: What, access: Access, caller: &Caller) -> Result<Opened, Error> {
        if !access.write {
            let text = what.text(&self.api)?;
            return Ok(Opened::Text { fh: self.handles.lock().insert(Handle::Text(text.into())) });
        }
        let (truncated, untouched) = (AtomicBool::default(), AtomicBool::default());
        let open = Open { what, opener: *caller, truncated, untouched };
        Ok(Opened::Control { fh: self.handles.lock().insert(Handle::Written(open.into())) })
    }

    /// The file was opened with `O_TRUNC`.
    pub fn opened_empty(&self, fh: u64) {
        if let Ok(Handle::Written(open)) = self.handle(fh) {
            open.truncated.store(true, Ordering::Relaxed);
            open.untouched.store(true, Ordering::Relaxed);
        }
    }

    /// truncate(2), which concerns these files only.
    pub fn resize(&self, ino: u64, size: u64, caller: &Caller) -> Result<Reply<()>, Error> {
        let Some(what) = What::of(&self.node(ino)?) else { return Ok(Reply::Now(())) };
        let may = self.api.authorise(caller.tid).and_then(|()| what.check_writer(&self.api, caller.uid));
        may.map_err(|error| what.refused(&self.api, caller.uid, error))?;
        let uid = caller.uid;
        let coming = self.api.in_turn(move |api| {
            let resized = what.change(api, |mut text| match usize::try_from(size) {
                Ok(size) if size <= text.len() => {
                    text.truncate(size);
                    Ok(text)
                }
                _ => Err(hole()),
            });
            resized.map_err(|error| what.refused(api, uid, error))
        })?;
        wait_for(move || coming.answer())
    }

    pub(super) fn write_written(
        &self,
        open: Arc<Open>,
        offset: u64,
        bytes: &[u8],
        caller: &Caller,
    ) -> Result<Reply<u32>, Error> {
        open.untouched.store(false, Ordering::Relaxed);
        let may = self.check_opener(&open.opener, caller).and_then(|()| self.api.authorise(caller.tid));
        let may = may.and_then(|()| open.what.check_writer(&self.api, caller.uid));
        may.map_err(|error| open.what.refused(&self.api, caller.uid, error))?;
        let written = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let (bytes, uid) = (bytes.to_vec(), caller.uid);
        let coming = self.api.in_turn(move |api| {
            let changed = open.what.change(api, |text| {
                let text = if open.truncated.load(Ordering::Relaxed) { Vec::new() } else { text };
                splice(text, offset, &bytes)
            });
            changed.map_err(|error| open.what.refused(api, uid, error))?;
            open.truncated.store(false, Ordering::Relaxed);
            Ok(())
        })?;
        wait_for(move || coming.answer().map(|done| done.map(|()| written)))
    }

    /// The file is closed: what was truncated and never written is empty.
    pub(super) fn close_written(&self, open: Arc<Open>) {
        if !open.untouched.load(Ordering::Relaxed) {
            return;
        }
        let emptied = self.api.in_turn(move |api| {
            let may = open.what.check_writer(api, open.opener.uid);
            let emptied = may.and_then(|()| open.what.change(api, |_| Ok(Vec::new())));
            emptied.map_err(|error| open.what.refused(api, open.opener.uid, error))
        });
        if let Err(error) = emptied {
            log::warn!("a file that was emptied keeps its text: {error}");
        }
    }
}

impl What {
    pub(super) fn text(&self, api: &Snapfs) -> Result<Vec<u8>, Error> {
        match self {
            What::Label(key, label) => Ok(api.label(key, label).map(|value| labels::text(&value)).unwrap_or_default()),
            What::Retention => api.retention(),
        }
    }

    fn change(&self, api: &Snapfs, change: impl FnOnce(Vec<u8>) -> Result<Vec<u8>, Error>) -> Result<(), Error> {
        match self {
            What::Label(key, label) => {
                api.set_label(key, label, |before| value(change(before.map(labels::text).unwrap_or_default())?))
            }
            What::Retention => api.set_retention(change),
        }
    }

    fn check_writer(&self, api: &Snapfs, uid: u32) -> Result<(), Error> {
        match self {
            What::Label(_, label) => api.check_label_writer(label, uid),
            What::Retention => Ok(()),
        }
    }

    fn refused(&self, api: &Snapfs, uid: u32, error: Error) -> Error {
        match self {
            What::Label(key, label) => labels::refused(api, key, label, uid, error),
            What::Retention => {
                api.refused_retention(uid, &error);
                error
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_takes_its_place_in_the_file() {
        let after = |before: Option<&str>, offset, bytes: &[u8]| {
            let text = before.map(labels::text).unwrap_or_default();
            splice(text, offset, bytes).and_then(value).map_err(|error| error.kind)
        };
        assert_eq!(after(None, 0, b"x\n").unwrap(), "x");
        assert_eq!(after(None, 0, b"x").unwrap(), "x");
        assert_eq!(after(Some("x"), 1, b"y").unwrap(), "xy", "what follows an unfinished line");
        assert_eq!(after(Some("x"), 2, b"y\n").unwrap(), "x\ny", "echo y >> KEY");
        assert_eq!(after(Some("long"), 0, b"s").unwrap(), "song");
        assert_eq!(after(Some("x"), 3, b"y"), Err(ErrorKind::Invalid));
        assert_eq!(after(None, 0, b"\xff"), Err(ErrorKind::Invalid));
        assert_eq!(after(None, 0, &[b'x'; LABEL_LIMIT + 2]), Err(ErrorKind::TooBig));
        assert_eq!(after(Some("x"), u64::MAX, b"y\n").unwrap(), "x\ny", "O_APPEND");
        assert_eq!(after(None, u64::MAX - 1, b"y"), Err(ErrorKind::Invalid));
    }
}
