//! `/images/NAME/labels/KEY`: the only files of the tree that are made, written and deleted one by one.
//!
//! A label is text, not a command: a write takes its place at the offset, and one newline at the end is the file's, not
//! the value's. Each write is durable when it returns. `O_TRUNC` takes effect with the first write, so that nobody sees
//! the label without either value, or with the closing of the file if nothing is written.

use std::ffi::OsStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::api::{Error, ErrorKind, ImageKey, LABEL_LIMIT, Snapfs};
use crate::tree::attr::{Access, Attr, Caller};
use crate::tree::control::check_opener;
use crate::tree::file::{decode_name, encode_name};
use crate::tree::handle::Handle;
use crate::tree::node::Node;
use crate::tree::{Opened, Tree, not_found};

/// The directory's name.
pub(super) const LABELS: &str = "labels";

/// An open label.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) key: ImageKey,
    pub(super) label: String,
    pub(super) opener: Caller,
    /// What was there does not count for the next write.
    truncated: AtomicBool,
    /// Nothing was written since, not even in vain.
    untouched: AtomicBool,
}

pub(super) fn list(api: &Snapfs, key: &ImageKey) -> Result<Vec<(String, Node)>, Error> {
    let labels = api.labels(key)?.into_keys();
    Ok(labels.map(|label| (encode_name(&label), Node::Label(key.clone(), label))).collect())
}

/// What a label's file holds.
pub(super) fn text(value: &str) -> Vec<u8> {
    format!("{value}\n").into_bytes()
}

/// The value after `bytes` were written at `offset` into the file of a label that was `before`.
fn splice(before: Option<&str>, offset: u64, bytes: &[u8]) -> Result<String, Error> {
    let mut file = before.map(text).unwrap_or_default();
    let at = usize::try_from(offset).ok().filter(|at| *at <= file.len());
    let at =
        at.ok_or_else(|| Error::new(ErrorKind::Invalid, "a label cannot have a hole; write it from its beginning"))?;
    if at + bytes.len() > LABEL_LIMIT + 1 {
        let long = format!("a label and its value have {LABEL_LIMIT} bytes together at most");
        return Err(Error::new(ErrorKind::TooBig, long));
    }
    let end = file.len().min(at + bytes.len());
    file.splice(at..end, bytes.iter().copied());
    value(file)
}

fn value(mut file: Vec<u8>) -> Result<String, Error> {
    if file.last() == Some(&b'\n') {
        file.pop();
    }
    String::from_utf8(file).map_err(|_| Error::new(ErrorKind::Invalid, "a label's value is UTF-8 text"))
}

/// The key that a new file's name stands for.
fn key_of(name: &OsStr) -> Result<String, Error> {
    let invalid = |why: String| Error::new(ErrorKind::Invalid, why);
    let text = name.to_str().ok_or_else(|| invalid("a label's key is UTF-8 text".to_owned()))?;
    let key = decode_name(text).ok_or_else(|| {
        invalid(format!("{text:?} is no label's file name: after % stand two hexadecimal digits, %25 for % itself"))
    })?;
    match encode_name(&key) {
        listed if listed == text => Ok(key),
        listed => Err(invalid(format!("the label {key:?} is the file {listed:?}; use that name"))),
    }
}

impl Tree {
    /// Make the file `name`: a label, the only thing that can be made. It is empty and durable when this returns.
    pub fn create(
        &self,
        parent: u64,
        name: &OsStr,
        exclusive: bool,
        access: Access,
        caller: &Caller,
    ) -> Result<(Attr, Opened), Error> {
        let Node::Labels(key) = self.node(parent)? else { return Err(self.refuse(parent, "create")) };
        let made = key_of(name).and_then(|label| {
            self.api.authorise(caller.tid)?;
            self.api.set_label(&key, &label, |before| match before {
                Some(_) if exclusive => Err(Error::new(ErrorKind::Exists, format!("there is a label {label:?}"))),
                before => Ok(before.unwrap_or_default().to_owned()),
            })
        });
        made.map_err(|error| self.refused_label(&key, &name.to_string_lossy(), caller, error))?;
        let attr = self.lookup(parent, name)?;
        let opened = self.open(attr.ino, access, caller)?;
        Ok((attr, opened))
    }

    pub(super) fn open_label(&self, key: ImageKey, label: String, access: Access, caller: &Caller) -> Opened {
        if !access.write {
            let text = self.api.label(&key, &label).map(|value| text(&value)).unwrap_or_default();
            return Opened::Text { fh: self.handles.lock().insert(Handle::Text(text.into())) };
        }
        let open =
            Open { key, label, opener: *caller, truncated: AtomicBool::default(), untouched: AtomicBool::default() };
        Opened::Control { fh: self.handles.lock().insert(Handle::Label(Arc::new(open))) }
    }

    /// The file was opened with `O_TRUNC`.
    pub fn opened_empty(&self, fh: u64) {
        if let Ok(Handle::Label(open)) = self.handle(fh) {
            open.truncated.store(true, Ordering::Relaxed);
            open.untouched.store(true, Ordering::Relaxed);
        }
    }

    /// truncate(2), which concerns labels only.
    pub fn resize(&self, ino: u64, size: u64, caller: &Caller) -> Result<(), Error> {
        let Node::Label(key, label) = self.node(ino)? else { return Ok(()) };
        let resized = self.api.authorise(caller.tid).and_then(|()| {
            self.api.set_label(&key, &label, |before| {
                let mut file = before.map(text).unwrap_or_default();
                match usize::try_from(size) {
                    Ok(size) if size <= file.len() => file.truncate(size),
                    _ => return Err(Error::new(ErrorKind::Invalid, "a label cannot have a hole")),
                }
                value(file)
            })
        });
        resized.map_err(|error| self.refused_label(&key, &label, caller, error))
    }

    pub(super) fn write_label(&self, open: &Open, offset: u64, bytes: &[u8], caller: &Caller) -> Result<(), Error> {
        open.untouched.store(false, Ordering::Relaxed);
        let written = check_opener(&open.opener, caller).and_then(|()| self.api.authorise(caller.tid)).and_then(|()| {
            self.api.set_label(&open.key, &open.label, |before| {
                let before = before.filter(|_| !open.truncated.load(Ordering::Relaxed));
                splice(before, offset, bytes)
            })
        });
        written.map_err(|error| self.refused_label(&open.key, &open.label, caller, error))?;
        open.truncated.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// The file is closed: what was truncated and never written is empty.
    pub(super) fn close_label(&self, open: &Open) {
        if open.untouched.load(Ordering::Relaxed)
            && let Err(error) = self.api.set_label(&open.key, &open.label, |_| Ok(String::new()))
        {
            log::warn!("the label {:?} of {} keeps its value: {error}", open.label, open.key.name);
        }
    }

    pub(super) fn remove_label(&self, key: &ImageKey, label: &str, caller: &Caller) -> Result<(), Error> {
        let removed = self.api.authorise(caller.tid).and_then(|()| self.api.remove_label(key, label));
        removed.map_err(|error| self.refused_label(key, label, caller, error))
    }

    pub(super) fn rename_label(
        &self,
        (key, label): (&ImageKey, &str),
        new_parent: &Node,
        new_name: &OsStr,
        replace: bool,
        caller: &Caller,
    ) -> Result<(), Error> {
        if !matches!(new_parent, Node::Labels(target) if target.name == key.name) {
            return Err(Error::new(ErrorKind::CrossDevice, "a label stays with its image; copy it and remove it here"));
        }
        let renamed = key_of(new_name).and_then(|to| {
            self.api.authorise(caller.tid)?;
            self.api.rename_label(key, label, &to, replace)
        });
        renamed.map_err(|error| self.refused_label(key, label, caller, error))
    }

    fn refused_label(&self, key: &ImageKey, label: &str, caller: &Caller, error: Error) -> Error {
        let shown: String = label.chars().take(80).collect();
        self.api.record_refusal(&key.subject(), &format!("{LABELS}/{}", shown.escape_debug()), caller.uid, &error);
        error
    }

    /// The label `name` of an image, whose file may be spelled as it is listed only.
    pub(super) fn find_label(&self, key: &ImageKey, name: &OsStr) -> Result<Node, Error> {
        let listed = list(&self.api, key)?.into_iter().find(|(listed, _)| listed.as_str() == name);
        listed.map(|(_, node)| node).ok_or_else(|| not_found(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_takes_its_place_in_the_file() {
        let after = |before, offset, bytes: &[u8]| splice(before, offset, bytes).map_err(|error| error.kind);
        assert_eq!(after(None, 0, b"x\n").unwrap(), "x");
        assert_eq!(after(None, 0, b"x").unwrap(), "x");
        assert_eq!(after(Some("x"), 1, b"y").unwrap(), "xy", "what follows an unfinished line");
        assert_eq!(after(Some("x"), 2, b"y\n").unwrap(), "x\ny", "echo y >> KEY");
        assert_eq!(after(Some("long"), 0, b"s").unwrap(), "song");
        assert_eq!(after(Some("x"), 3, b"y"), Err(ErrorKind::Invalid));
        assert_eq!(after(None, 0, b"\xff"), Err(ErrorKind::Invalid));
        assert_eq!(after(None, 0, &[b'x'; LABEL_LIMIT + 2]), Err(ErrorKind::TooBig));
        assert_eq!(after(None, u64::MAX, b"y"), Err(ErrorKind::Invalid));
    }

    #[test]
    fn a_files_name_is_the_one_that_is_listed() {
        let key = |name: &str| key_of(name.as_ref()).map_err(|error| error.message);
        assert_eq!(key("env").unwrap(), "env");
        assert_eq!(key("a.b%2Fc").unwrap(), "a.b/c");
        assert_eq!(key("%2Eswp").unwrap(), ".swp");
        assert!(key(".swp").unwrap_err().contains("%2Eswp"));
        assert!(key("100%").unwrap_err().contains("%25"));
        assert!(key("%61").unwrap_err().contains("\"a\""), "one label has one file");
    }
}
