//! What a node looks like from outside.

use std::time::SystemTime;

use crate::api::{Error, ErrorKind};
use crate::tree::attr::{Attr, Kind, Lifetime};
use crate::tree::file::{ImageFile, RootFile};
use crate::tree::node::Node;
use crate::tree::{Tree, later};

impl Tree {
    pub(super) fn describe(&self, node: &Node, ino: u64) -> Result<Attr, Error> {
        let kind = node.kind();
        let lifetime = if node.is_immutable() { Lifetime::Immutable } else { Lifetime::Volatile };
        Ok(Attr {
            ino,
            kind,
            mode: mode(node),
            nlink: if kind == Kind::Directory { 2 } else { 1 },
            uid: 0,
            gid: self.group,
            size: self.size(node)?,
            device: (0, 0),
            time: self.time(node),
            lifetime,
        })
    }

    fn size(&self, node: &Node) -> Result<u64, Error> {
        match node {
            Node::Blob(key, digest) => {
                let blobs = self.api.blobs(key)?;
                Ok(blobs.iter().find(|blob| blob.digest == *digest).map_or(0, |blob| blob.size))
            }
            Node::ImageFile(key, ImageFile::Archive) => self.api.archive_size(key),
            node if node.is_control() || later::is_made_later(node) => Ok(0),
            node => match node.kind() {
                Kind::File => match self.text(node) {
                    Ok(text) => Ok(text.len() as u64),
                    // What is not there yet can be looked at; reading it says why.
                    Err(error) if error.kind == ErrorKind::NoAttribute => Ok(0),
                    Err(error) => Err(error),
                },
                _ => Ok(0),
            },
        }
    }

    fn time(&self, node: &Node) -> SystemTime {
        let time = match node {
            Node::Image(key) | Node::ImageFile(key, _) | Node::Labels(key) | Node::Label(key, _) => {
                self.api.named_at(&key.name)
            }
            _ => None,
        };
        time.map_or(self.started, SystemTime::from)
    }
}

/// Only root and the group see containers and images: an image's files can hold secrets.
fn mode(node: &Node) -> u16 {
    match node {
        Node::Root => 0o755,
        Node::RootFile(RootFile::Retention) => 0o660,
        Node::RootFile(RootFile::Events | RootFile::LastError) => 0o440,
        Node::RootFile(file) if !file.is_control() => 0o444,
        // An image too: who moves a directory elsewhere, or something into it, must be able to write to it.
        Node::Images(_) | Node::Image(_) | Node::Labels(_) => 0o770,
        Node::Label(..) => 0o660,
        node if node.is_control() => 0o660,
        node => match node.kind() {
            Kind::Directory => 0o750,
            Kind::Symlink => 0o777,
            _ => 0o440,
        },
    }
}
