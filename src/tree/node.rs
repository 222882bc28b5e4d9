//! [`Node`]: every kind of node there is, in one place.

use std::sync::Arc;

use crate::api::{ContainerKey, Digest, ImageKey, JobId};
use crate::tree::attr::Kind;
use crate::tree::file::{ContainerFile, ImageFile, JobFile, LayerFile, RootFile};

/// A place in the tree. Two nodes are equal if they are the same place of the same object.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Node {
    Root,
    RootFile(RootFile),

    Containers,
    Container(ContainerKey),
    ContainerFile(ContainerKey, ContainerFile),
    /// The symlink to the live root file system.
    ContainerRoot(ContainerKey),
    ContainerLabels(ContainerKey),
    ContainerLabel(ContainerKey, String),

    /// A directory of images: the empty prefix is `images/` itself.
    Images(String),
    Image(ImageKey),
    ImageFile(ImageKey, ImageFile),
    /// The image that a checkpoint stands on; what is in it are nodes of that image.
    Base(ImageKey),
    /// A checkpoint in the form for containerd, likewise.
    Containerd(ImageKey),
    Annotations(ImageKey),
    Annotation(ImageKey, String),
    /// The labels of the name: the only directory in which files are made and deleted.
    Labels(ImageKey),
    Label(ImageKey, String),
    Blobs(ImageKey),
    BlobsSha256(ImageKey),
    Blob(ImageKey, Digest),
    Layers(ImageKey),
    Layer(ImageKey, usize),
    LayerFile(ImageKey, usize, LayerFile),
    /// The symlink to the layer's blob.
    LayerBlob(ImageKey, usize),
    /// The files of the image, or of the layer with that number: the one node that stands for a whole tree, whose inodes
    /// have numbers of their own.
    View(ImageKey, Option<usize>),

    /// `query/`, which lists nothing.
    QueryRoot,
    QueryError,
    /// A filter, as it is spelled in the path.
    Query(Arc<str>),
    /// A symlink to something that a filter chose: where it points to.
    QueryLink(Arc<str>),

    Jobs,
    Job(JobId),
    JobFile(JobId, JobFile),
    /// The symlink to the newest job.
    LastJob,
}

impl Node {
    pub(super) fn kind(&self) -> Kind {
        match self {
            Node::ContainerRoot(_) | Node::LayerBlob(..) | Node::QueryLink(_) | Node::LastJob => Kind::Symlink,
            Node::RootFile(_)
            | Node::ContainerFile(..)
            | Node::ContainerLabel(..)
            | Node::ImageFile(..)
            | Node::Annotation(..)
            | Node::Label(..)
            | Node::Blob(..)
            | Node::LayerFile(..)
            | Node::QueryError
            | Node::JobFile(..) => Kind::File,
            Node::Root
            | Node::Containers
            | Node::Container(_)
            | Node::ContainerLabels(_)
            | Node::Images(_)
            | Node::Image(_)
            | Node::Base(_)
            | Node::Containerd(_)
            | Node::Annotations(_)
            | Node::Labels(_)
            | Node::Blobs(_)
            | Node::BlobsSha256(_)
            | Node::Layers(_)
            | Node::Layer(..)
            | Node::View(..)
            | Node::QueryRoot
            | Node::Query(_)
            | Node::Jobs
            | Node::Job(_) => Kind::Directory,
        }
    }

    /// Whether the node is a part of an image, which never changes.
    pub(super) fn is_immutable(&self) -> bool {
        match self {
            Node::ImageFile(_, file) => !file.is_control() && !file.follows_the_name(),
            Node::Base(_)
            | Node::Containerd(_)
            | Node::Annotations(_)
            | Node::Annotation(..)
            | Node::Blobs(_)
            | Node::BlobsSha256(_)
            | Node::Blob(..)
            | Node::Layers(_)
            | Node::Layer(..)
            | Node::LayerFile(..)
            | Node::LayerBlob(..)
            | Node::View(..) => true,
            Node::Root
            | Node::RootFile(_)
            | Node::Containers
            | Node::Container(_)
            | Node::ContainerFile(..)
            | Node::ContainerRoot(_)
            | Node::ContainerLabels(_)
            | Node::ContainerLabel(..)
            | Node::Images(_)
            | Node::Image(_)
            | Node::Labels(_)
            | Node::Label(..)
            | Node::QueryRoot
            | Node::QueryError
            | Node::Query(_)
            | Node::QueryLink(_)
            | Node::Jobs
            | Node::Job(_)
            | Node::JobFile(..)
            | Node::LastJob => false,
        }
    }

    /// Whether a write to the node is a command.
    pub(super) fn is_control(&self) -> bool {
        match self {
            Node::RootFile(file) => file.is_control(),
            Node::ContainerFile(_, file) => file.is_control(),
            Node::ImageFile(_, file) => file.is_control(),
            Node::JobFile(_, file) => file.is_control(),
            _ => false,
        }
    }
}
