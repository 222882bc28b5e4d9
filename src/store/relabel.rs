//! Changing the labels of a name: one more record for the same image.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::oci::ImageName;
use crate::store::disk::parent;
use crate::store::record::Record;
use crate::store::{Change, Error, Inner, Store, layout};

impl Store {
    /// Let `change` see and change the labels of a name. Changes of one name follow each other, so that two that concern
    /// different keys never lose one another; what is returned is durable. Labels that stay the same cost nothing.
    ///
    /// Errors: what `change` says; there is no such name; the labels are too much for a record; the disk is full or
    /// fails. The labels are then what they were.
    pub fn relabel<E: From<Error>>(
        &self,
        name: &ImageName,
        change: impl FnOnce(&mut BTreeMap<String, String>) -> Result<(), E>,
    ) -> Result<Arc<Record>, E> {
        let inner = &self.0;
        inner.disk.require_writable()?;
        let lease = self.lease()?;
        let mut turn = inner.turn.lock();
        let before = self.record(name).ok_or_else(|| Error::NoSuchName { name: name.clone() })?;
        let mut record = Record::clone(&before);
        change(&mut record.labels)?;
        if record.labels == before.labels {
            return Ok(before);
        }
        record.generation = turn.generation + 1;
        let staged = lease.stage(&inner.encode(name, &record)?)?;
        let path = layout::record(name);
        inner.disk.rename(&staged, &path)?;
        turn.generation = record.generation;
        let record = Arc::new(record);
        let synced = inner.disk.sync_dir(parent(&path));
        if synced.is_ok() || Inner::put_back(inner, name).is_err() {
            inner.names.write().insert(name.clone(), Arc::clone(&record));
        }
        synced?;
        let differs = |key: &&String| before.labels.get(*key) != record.labels.get(*key);
        let keys: BTreeSet<&String> = before.labels.keys().chain(record.labels.keys()).filter(differs).collect();
        let keys = keys.into_iter().cloned().collect();
        inner.watch.tell(&Change::Labelled { name: name.clone(), keys });
        Ok(record)
    }
}
