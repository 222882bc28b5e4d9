//! `/images/NAME/labels/KEY`: the only files of the tree that are made, written and deleted one by one.
//!
//! One newline at the end is the file's, not the value's. How they are written to is in [`written`](super::written).

use std::ffi::OsStr;

use crate::api::{Error, ErrorKind, ImageKey, Snapfs};
use crate::tree::attr::Caller;
use crate::tree::file::{decode_name, encode_name};
use crate::tree::node::Node;
use crate::tree::{Reply, Tree, not_found, wait_for};

/// The directory's name.
pub(super) const LABELS: &str = "labels";

pub(super) fn list(api: &Snapfs, key: &ImageKey) -> Result<Vec<(String, Node)>, Error> {
    let labels = api.labels(key)?.into_keys();
    Ok(labels.map(|label| (encode_name(&label), Node::Label(key.clone(), label))).collect())
}

/// What a label's file holds.
pub(super) fn text(value: &str) -> Vec<u8> {
    format!("{value}\n").into_bytes()
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

/// The refusal stands in the image's `last_error` as well.
pub(super) fn refused(api: &Snapfs, key: &ImageKey, label: &str, uid: u32, error: Error) -> Error {
    let shown: String = label.chars().take(80).collect();
    api.record_refusal(&key.subject(), &format!("{LABELS}/{}", shown.escape_debug()), uid, &error);
    error
}

impl Tree {
    /// Make the file `name`: a label, the only thing that can be made. Look it up and open it afterwards; it is empty and
    /// durable then.
    pub fn create(&self, parent: u64, name: &OsStr, exclusive: bool, caller: &Caller) -> Result<Reply<()>, Error> {
        let Node::Labels(key) = self.node(parent)? else { return Err(self.refuse(parent, "create")) };
        let label = key_of(name).and_then(|label| self.api.authorise(caller.tid).map(|()| label));
        let shown = name.to_string_lossy();
        let label = label.map_err(|error| refused(&self.api, &key, &shown, caller.uid, error))?;
        self.change_labels(key, label, caller, move |api, key, label| {
            api.set_label(key, label, |before| match before {
                Some(_) if exclusive => Err(Error::new(ErrorKind::Exists, format!("there is a label {label:?}"))),
                before => Ok(before.unwrap_or_default().to_owned()),
            })
        })
    }

    /// A change that waits for the disk.
    fn change_labels(
        &self,
        key: ImageKey,
        label: String,
        caller: &Caller,
        change: impl FnOnce(&Snapfs, &ImageKey, &str) -> Result<(), Error> + Send + 'static,
    ) -> Result<Reply<()>, Error> {
        let may = self.api.authorise(caller.tid).and_then(|()| self.api.check_label_writer(&label, caller.uid));
        may.map_err(|error| refused(&self.api, &key, &label, caller.uid, error))?;
        let uid = caller.uid;
        let coming = self
            .api
            .in_turn(move |api| change(api, &key, &label).map_err(|error| refused(api, &key, &label, uid, error)))?;
        wait_for(move || coming.answer())
    }

    pub(super) fn remove_label(&self, key: &ImageKey, label: String, caller: &Caller) -> Result<Reply<()>, Error> {
        self.change_labels(key.clone(), label, caller, |api, key, label| api.remove_label(key, label))
    }

    pub(super) fn rename_label(
        &self,
        (key, label): (&ImageKey, &str),
        new_parent: &Node,
        new_name: &OsStr,
        replace: bool,
        caller: &Caller,
    ) -> Result<Reply<()>, Error> {
        if !matches!(new_parent, Node::Labels(target) if target.name == key.name) {
            return Err(Error::new(ErrorKind::CrossDevice, "a label stays with its image; copy it and remove it here"));
        }
        let to = key_of(new_name).and_then(|to| self.api.check_label_writer(&to, caller.uid).map(|()| to));
        let to = to.map_err(|error| refused(&self.api, key, label, caller.uid, error))?;
        self.change_labels(key.clone(), label.to_owned(), caller, move |api, key, label| {
            api.rename_label(key, label, &to, replace)
        })
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
