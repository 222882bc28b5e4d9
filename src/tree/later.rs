//! Files whose text takes a while: it is made beside, and the first read waits for it.

use std::sync::Arc;

use crate::api::{Error, ErrorKind};
use crate::tree::Tree;
use crate::tree::file::{ContainerFile, ImageFile, JobFile, RootFile};
use crate::tree::handle::Handle;
use crate::tree::node::Node;

/// Whether nobody knows the length of the file's text before it is read.
pub(super) fn is_made_later(node: &Node) -> bool {
    matches!(
        node,
        Node::ContainerFile(_, ContainerFile::Changes | ContainerFile::Checkpointable)
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
            Node::ContainerFile(key, ContainerFile::Changes) => Handle::Coming(self.api.changes(key.clone())?),
            Node::ContainerFile(key, ContainerFile::Checkpointable) => {
                Handle::Coming(self.api.checkpointable(key.clone())?)
            }
            // They look at every blob if the store has changed.
            Node::RootFile(RootFile::Health) => Handle::Coming(self.api.ask()?),
            Node::RootFile(RootFile::Metrics) => {
                Handle::Coming(self.api.count(|api| api.metrics().map(String::into_bytes))?)
            }
            Node::ImageFile(key, ImageFile::UniqueSize) => {
                let key = key.clone();
                Handle::Coming(self.api.count(move |api| api.unique_size(&key).map(line))?)
            }
            Node::ImageFile(key, ImageFile::UnpackedSize) => {
                let key = key.clone();
                Handle::Coming(self.api.measure(move |api| api.unpacked_size(&key).map(line))?)
            }
            Node::RootFile(RootFile::Events) => Handle::Events { reader: Arc::new(self.api.follow()?), nonblock },
            Node::JobFile(id, JobFile::Wait) => {
                let gone = || Error::new(ErrorKind::Stale, format!("job {id} is not remembered any more"));
                Handle::Wait(self.api.job(*id).ok_or_else(gone)?)
            }
            _ => return Ok(None),
        }))
    }
}
