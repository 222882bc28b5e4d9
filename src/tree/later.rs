//! Files whose text takes a while: it is made beside, and the first read waits for it.

use std::sync::{Arc, OnceLock};

use crate::api::{Error, ErrorKind, Snapfs};
use crate::tree::Tree;
use crate::tree::file::{ContainerFile, ImageFile, JobFile, RootFile};
use crate::tree::handle::Handle;
use crate::tree::node::Node;

/// Whether nobody knows the length of the file's text before it is read.
pub(super) fn is_made_later(node: &Node) -> bool {
    matches!(
        node,
        Node::ContainerFile(_, ContainerFile::Changes)
            | Node::JobFile(_, JobFile::Wait)
            | Node::RootFile(RootFile::Health | RootFile::Metrics | RootFile::Events)
            | Node::ImageFile(_, ImageFile::UnpackedSize | ImageFile::UniqueSize)
    )
}

impl Tree {
    /// A handle whose text comes later; `None` if the node's is made at once.
    pub(super) fn open_later(&self, node: &Node, nonblock: bool) -> Result<Option<Handle>, Error> {
        let line = |number: u64| format!("{number}\n").into_bytes();
        Ok(Some(match node {
            Node::ContainerFile(key, ContainerFile::Changes) => {
                let key = key.clone();
                self.beside("changes", move |api| api.changes(&key))?
            }
            // They look at every blob if the store has changed.
            Node::RootFile(RootFile::Health) => self.beside("health", |api| Ok(api.health().into_bytes()))?,
            Node::RootFile(RootFile::Metrics) => self.beside("metrics", |api| api.metrics().map(String::into_bytes))?,
            Node::ImageFile(key, ImageFile::UniqueSize) => {
                let key = key.clone();
                self.beside("unique", move |api| api.unique_size(&key).map(line))?
            }
            Node::ImageFile(key, ImageFile::UnpackedSize) => {
                let key = key.clone();
                self.beside("unpacked", move |api| api.unpacked_size(&key).map(line))?
            }
            Node::RootFile(RootFile::Events) => Handle::Events { reader: Arc::new(self.api.follow()?), nonblock },
            Node::JobFile(id, JobFile::Wait) => {
                let gone = || Error::new(ErrorKind::Stale, format!("job {id} is not remembered any more"));
                Handle::Wait(self.api.job(*id).ok_or_else(gone)?)
            }
            _ => return Ok(None),
        }))
    }

    fn beside(
        &self,
        name: &str,
        make: impl FnOnce(&Snapfs) -> Result<Vec<u8>, Error> + Send + 'static,
    ) -> Result<Handle, Error> {
        let coming = Arc::new(OnceLock::new());
        let (api, slot) = (Arc::clone(&self.api), Arc::clone(&coming));
        let work = move || {
            // Only this thread sets it.
            let _ = slot.set(make(&api));
            api.wake();
        };
        let spawned = std::thread::Builder::new().name(name.to_owned()).spawn(work);
        spawned.map_err(|error| Error::new(ErrorKind::Again, format!("no thread to make {name} with: {error}")))?;
        Ok(Handle::Coming(coming))
    }
}
