//! `/images/NAME/…`

use crate::api::{Error, ImageEntry, ImageKey, Snapfs};
use crate::tree::file::{ImageFile, LayerFile, encode_name};
use crate::tree::labels::LABELS;
use crate::tree::node::Node;

const ANNOTATIONS: &str = "annotations";
const BLOBS: &str = "blobs";
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

pub(super) fn entries(key: &ImageKey) -> Vec<(String, Node)> {
    let files = ImageFile::TABLE.iter();
    let mut entries: Vec<_> =
        files.map(|(file, name, _)| ((*name).to_owned(), Node::ImageFile(key.clone(), *file))).collect();
    entries.push((ANNOTATIONS.to_owned(), Node::Annotations(key.clone())));
    entries.push((BLOBS.to_owned(), Node::Blobs(key.clone())));
    entries.push((LABELS.to_owned(), Node::Labels(key.clone())));
    entries.push((LAYERS.to_owned(), Node::Layers(key.clone())));
    entries.push((ROOTFS.to_owned(), Node::View(key.clone(), None)));
    entries
}

pub(super) fn entry(key: &ImageKey, name: &str) -> Option<Node> {
    match name {
        ANNOTATIONS => Some(Node::Annotations(key.clone())),
        BLOBS => Some(Node::Blobs(key.clone())),
        LABELS => Some(Node::Labels(key.clone())),
        LAYERS => Some(Node::Layers(key.clone())),
        ROOTFS => Some(Node::View(key.clone(), None)),
        _ => ImageFile::of(name).map(|file| Node::ImageFile(key.clone(), file)),
    }
}

pub(super) fn annotations(api: &Snapfs, key: &ImageKey) -> Result<Vec<(String, Node)>, Error> {
    let image = api.image(key)?;
    let keys = image.annotations.keys();
    Ok(keys.map(|name| (encode_name(name), Node::Annotation(key.clone(), name.clone()))).collect())
}

pub(super) fn blobs(api: &Snapfs, key: &ImageKey) -> Result<Vec<(String, Node)>, Error> {
    let image = api.image(key)?;
    let digests: std::collections::BTreeSet<_> = image.blobs().map(|blob| blob.digest).collect();
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
    let image = api.image(key)?;
    let line = |text: &str| Ok(format!("{text}\n").into_bytes());
    match file {
        ImageFile::Layout => Ok(br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec()),
        ImageFile::Index => api.index_json(key),
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
        ImageFile::Tag => Ok(api.last_result(&key.subject()).into_bytes()),
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
