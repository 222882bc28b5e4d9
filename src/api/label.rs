//! The operator's labels on image names: one value a key, changed one by one.

use std::collections::BTreeMap;

use crate::api::{Error, ErrorKind, ImageKey, Snapfs, restore};

/// The longest key and value together, in bytes: what containerd takes too.
pub const LABEL_LIMIT: usize = 4096;
/// All labels of a name together, in bytes: they are held in memory.
pub const LABELS_LIMIT: usize = 64 << 10;

impl Snapfs {
    /// Refuse a change of a label that only root may change.
    pub fn check_label_writer(&self, label: &str, uid: u32) -> Result<(), Error> {
        restore::check_label_writer(label, uid)
    }

    /// The labels of the name, as they are now.
    pub fn labels(&self, key: &ImageKey) -> Result<BTreeMap<String, String>, Error> {
        let gone = || Error::new(ErrorKind::Stale, format!("there is no image {} any more", key.name));
        Ok(self.store.record(&key.name).ok_or_else(gone)?.labels.clone())
    }

    /// One label, if the name has it.
    pub fn label(&self, key: &ImageKey, label: &str) -> Option<String> {
        self.store.record(&key.name)?.labels.get(label).cloned()
    }

    /// Give a label the value that `make` makes of the one it has. Durable when it returns; the labels are as they were
    /// if it fails.
    pub fn set_label(
        &self,
        key: &ImageKey,
        label: &str,
        make: impl FnOnce(Option<&str>) -> Result<String, Error>,
    ) -> Result<(), Error> {
        self.store
            .relabel(&key.name, |labels| {
                let value = make(labels.get(label).map(String::as_str))?;
                labels.insert(label.to_owned(), value);
                check(label, labels)
            })
            .map(drop)
    }

    /// Take a label away.
    pub fn remove_label(&self, key: &ImageKey, label: &str) -> Result<(), Error> {
        let remove = |labels: &mut BTreeMap<String, String>| match labels.remove(label) {
            Some(_) => Ok(()),
            None => Err(missing(key, label)),
        };
        self.store.relabel(&key.name, remove).map(drop)
    }

    /// Give a label another key, at one stroke; a label that has it is replaced if `replace`.
    pub fn rename_label(&self, key: &ImageKey, from: &str, to: &str, replace: bool) -> Result<(), Error> {
        let rename = |labels: &mut BTreeMap<String, String>| {
            if !replace && labels.contains_key(to) {
                let exists = format!("{} has a label {to:?} already", key.name);
                return Err(Error::new(ErrorKind::Exists, exists));
            }
            let value = labels.remove(from).ok_or_else(|| missing(key, from))?;
            labels.insert(to.to_owned(), value);
            check(to, labels)
        };
        self.store.relabel(&key.name, rename).map(drop)
    }
}

fn missing(key: &ImageKey, label: &str) -> Error {
    Error::new(ErrorKind::NotFound, format!("{} has no label {label:?}", key.name))
}

/// Whether labels of which `changed` is new are within the limits.
fn check(changed: &str, labels: &BTreeMap<String, String>) -> Result<(), Error> {
    let size = |key: &str, value: &str| key.len() + value.len();
    let value = labels.get(changed).map_or("", String::as_str);
    if value.contains('\0') {
        return Err(Error::new(ErrorKind::Invalid, format!("the label {changed:?} would hold a zero byte")));
    }
    let one = size(changed, value);
    if one > LABEL_LIMIT {
        let shown: String = changed.chars().take(80).collect();
        let long = format!("the label {shown:?} and its value would have {one} bytes; {LABEL_LIMIT} is the limit");
        return Err(Error::new(ErrorKind::TooBig, long));
    }
    let all: usize = labels.iter().map(|(key, value)| size(key, value)).sum();
    if all > LABELS_LIMIT {
        let full = format!("the labels would have {all} bytes together, and {LABELS_LIMIT} is the limit; remove some");
        return Err(Error::new(ErrorKind::TooBig, full));
    }
    Ok(())
}
