//! `/images/NAME/…`

use crate::api::{Error, ImageEntry, ImageKey, Snapfs};
use crate::tree::file::{ImageFile, LayerFile, encode_name};
use crate::tree::labels::LABELS;
use crate::tree::node::Node;

const ANNOTATIONS: &str = "annotations";
const BASE: &str = "base";
const BLOBS: &str = "blobs";
const CHECKPOINT: &str = "checkpoint";
const CONTAINERD: &str = "containerd";
const LAYERS: &str = "layers";
const BLOB: &str = "blob";
const ROOTFS: &str = "rootfs";
const TREE: &str = "tree";

pub(super) fn join(prefix: &str, name: &str) -> String {
    if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") }
}

fn node(path: &str, entry: ImageEntry) -> Node {
    match entry {
        ImageEntry::Image(key) => Node::Image(key),
        ImageEntry::Directory => Node::Images(path.to_owned()),
    }
}

pub(super) fn list(api: &Snapfs, prefix: &str) -> Vec<(String, Node)> {
    let entries = api.image_entries(prefix).into_iter();
    entries.map(|(name, entry)| (name.clone(), node(&join(prefix, &name), entry))).collect()
}

/// A colon may be written as `%3A`, for tools that split paths at one.
pub(super) fn find(api: &Snapfs, prefix: &str, name: &str) -> Option<Node> {
    let path = join(prefix, name);
    if !path.contains("%3A") {
        return api.image_entry_at(&path).map(|entry| node(&path, entry));
    }
    [path.replace("%3A", ":"), path].into_iter().find_map(|path| Some(node(&path, api.image_entry_at(&path)?)))
}

pub(super) fn entries(api: &Snapfs, key: &ImageKey) -> Vec<(String, Node)> {
    let files = ImageFile::TABLE.iter();
    let mut entries: Vec<_> =
        files.map(|(file, name, _)| ((*name).to_owned(), Node::ImageFile(key.clone(), *file))).collect();
    entries.push((ANNOTATIONS.to_owned(), Node::Annotations(key.clone())));
    if api.base_of(key).is_some() {
        entries.push((BASE.to_owned(), Node::Base(key.clone())));
    }
    entries.push((BLOBS.to_owned(), Node::Blobs(key.clone())));
    if api.containerd_of(key).is_some() {
        entries.push((CONTAINERD.to_owned(), Node::Containerd(key.clone())));
    }
    entries.push((LABELS.to_owned(), Node::Labels(key.clone())));
    entries.push((LAYERS.to_owned(), Node::Layers(key.clone())));
    let files = if is_checkpoint(api, key) { CHECKPOINT } else { ROOTFS };
    entries.push((files.to_owned(), Node::View(key.clone(), None)));
    entries
}

pub(super) fn entry(api: &Snapfs, key: &ImageKey, name: &str) -> Option<Node> {
    match name {
        CONTAINERD => api.containerd_of(key).map(|_| Node::Containerd(key.clone())),
        BASE => api.base_of(key).map(|_| Node::Base(key.clone())),
        ANNOTATIONS => Some(Node::Annotations(key.clone())),
        BLOBS => Some(Node::Blobs(key.clone())),
        LABELS => Some(Node::Labels(key.clone())),
        LAYERS => Some(Node::Layers(key.clone())),
        CHECKPOINT | ROOTFS => {
            let is_it = is_checkpoint(api, key) == (name == CHECKPOINT);
            is_it.then(|| Node::View(key.clone(), None))
        }
        _ => ImageFile::of(name).map(|file| Node::ImageFile(key.clone(), file)),
    }
}

/// The files of a checkpoint are no root of a container.
fn is_checkpoint(api: &Snapfs, key: &ImageKey) -> bool {
    api.image(key).is_ok_and(|image| image.kind() == CHECKPOINT)
}

/// The image that a checkpoint stands on, as an OCI layout: what an engine needs that does not have it.
pub(super) fn base_entries(api: &Snapfs, key: &ImageKey) -> Vec<(String, Node)> {
    const FILES: [ImageFile; 6] = [
        ImageFile::Layout,
        ImageFile::Index,
        ImageFile::Manifest,
        ImageFile::Config,
        ImageFile::Digest,
        ImageFile::Size,
    ];
    let Some(base) = api.base_of(key) else { return Vec::new() };
    let files = FILES.into_iter().map(|file| (file.name().to_owned(), Node::ImageFile(base.clone(), file)));
    files.chain([(BLOBS.to_owned(), Node::Blobs(base.clone()))]).collect()
}

/// A checkpoint as containerd takes it, as an OCI layout.
pub(super) fn containerd_entries(api: &Snapfs, key: &ImageKey) -> Vec<(String, Node)> {
    let Some(index) = api.containerd_of(key) else { return Vec::new() };
    let files = [ImageFile::Layout, ImageFile::Index];
    let files = files.into_iter().map(|file| (file.name().to_owned(), Node::ImageFile(index.clone(), file)));
    files.chain([(BLOBS.to_owned(), Node::Blobs(index.clone()))]).collect()
}

pub(super) fn annotations(api: &Snapfs, key: &ImageKey) -> Result<Vec<(String, Node)>, Error> {
    let image = api.image(key)?;
    let keys = image.annotations.keys();
    Ok(keys.map(|name| (encode_name(name), Node::Annotation(key.clone(), name.clone()))).collect())
}

pub(super) fn blobs(api: &Snapfs, key: &ImageKey) -> Result<Vec<(String, Node)>, Error> {
    let digests: std::collections::BTreeSet<_> = api.blobs(key)?.into_iter().map(|blob| blob.digest).collect();
    Ok(digests.into_iter().map(|digest| (digest.hex(), Node::Blob(key.clone(), digest))).collect())
}

pub(super) fn layers(api: &Snapfs, key: &ImageKey) -> Result<Vec<(String, Node)>, Error> {
    let count = api.image(key)?.layers.len();
    Ok((0..count).map(|at| (at.to_string(), Node::Layer(key.clone(), at))).collect())
}

pub(super) fn layer_entries(key: &ImageKey, at: usize) -> Vec<(String, Node)> {
    let files = LayerFile::TABLE.iter();
    let mut entries: Vec<_> =
        files.map(|(file, name, _)| ((*name).to_owned(), Node::LayerFile(key.clone(), at, *file))).collect();
    entries.push((BLOB.to_owned(), Node::LayerBlob(key.clone(), at)));
    entries.push((TREE.to_owned(), Node::View(key.clone(), Some(at))));
    entries
}

/// Where the symlink `layers/N/blob` points to.
pub(super) fn layer_blob(api: &Snapfs, key: &ImageKey, at: usize) -> Result<Option<String>, Error> {
    let image = api.image(key)?;
    Ok(image.layers.get(at).map(|layer| format!("../../blobs/sha256/{}", layer.descriptor.digest.hex())))
}

pub(super) fn text(api: &Snapfs, key: &ImageKey, file: ImageFile) -> Result<Vec<u8>, Error> {
    match file {
        ImageFile::Layout => return Ok(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ImageFile::Index => return api.index_json(key),
        _ => {}
    }
    let image = api.image(key)?;
    let line = |text: &str| Ok(format!("{text}\n").into_bytes());
    match file {
        // Above: there may be no image below them, but an index.
        ImageFile::Layout | ImageFile::Index => Ok(Vec::new()),
        ImageFile::Manifest => Ok(image.manifest_bytes.clone()),
        ImageFile::Config => Ok(image.config_bytes.clone()),
        ImageFile::Digest => line(&key.manifest.digest.to_string()),
        ImageFile::Size => line(&image.size().to_string()),
        ImageFile::UnpackedSize => line(&api.unpacked_size(key)?.to_string()),
        ImageFile::UniqueSize => line(&api.unique_size(key)?.to_string()),
        ImageFile::Created => line(image.created.as_deref().unwrap_or_default()),
        ImageFile::Parent => line(image.parent().unwrap_or_default()),
        ImageFile::Kind => line(image.kind()),
        ImageFile::Archive => Err(Error::new(crate::api::ErrorKind::Invalid, "an archive is not read as a text")),
        ImageFile::Restore | ImageFile::Tag => Ok(api.last_result(&key.subject()).into_bytes()),
        ImageFile::LastError => Ok(api.last_error(&key.subject()).into_bytes()),
    }
}

pub(super) fn layer_text(api: &Snapfs, key: &ImageKey, at: usize, file: LayerFile) -> Result<Option<Vec<u8>>, Error> {
    let image = api.image(key)?;
    Ok(image.layers.get(at).map(|layer| {
        let text = match file {
            LayerFile::Digest => layer.descriptor.digest.to_string(),
            LayerFile::DiffId => layer.diff_id.to_string(),
            LayerFile::Size => layer.descriptor.size.to_string(),
            LayerFile::MediaType => layer.descriptor.media_type.clone(),
            LayerFile::CreatedBy => layer.created_by.clone(),
        };
        format!("{text}\n").into_bytes()
    }))
}
