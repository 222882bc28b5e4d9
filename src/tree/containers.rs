//! `/containers/NAME/…`

use crate::api::{ContainerKey, Error, Snapfs};
use crate::tree::file::{ContainerFile, encode_name};
use crate::tree::node::Node;

const ROOTFS: &str = "rootfs";
const LABELS: &str = "labels";

pub(super) fn list(api: &Snapfs) -> Vec<(String, Node)> {
    let names = api.container_names();
    names.into_iter().filter_map(|name| Some((name.clone(), Node::Container(api.find_container(&name)?)))).collect()
}

pub(super) fn find(api: &Snapfs, name: &str) -> Option<Node> {
    api.find_container(name).map(Node::Container)
}

pub(super) fn entries(key: &ContainerKey) -> Vec<(String, Node)> {
    let files = ContainerFile::TABLE.iter();
    let mut entries: Vec<_> =
        files.map(|(file, name, _)| ((*name).to_owned(), Node::ContainerFile(key.clone(), *file))).collect();
    entries.push((ROOTFS.to_owned(), Node::ContainerRoot(key.clone())));
    entries.push((LABELS.to_owned(), Node::ContainerLabels(key.clone())));
    entries
}

pub(super) fn entry(key: &ContainerKey, name: &str) -> Option<Node> {
    match name {
        ROOTFS => Some(Node::ContainerRoot(key.clone())),
        LABELS => Some(Node::ContainerLabels(key.clone())),
        _ => ContainerFile::of(name).map(|file| Node::ContainerFile(key.clone(), file)),
    }
}

pub(super) fn labels(api: &Snapfs, key: &ContainerKey) -> Result<Vec<(String, Node)>, Error> {
    let labels = api.container_labels(key)?;
    Ok(labels.into_keys().map(|label| (encode_name(&label), Node::ContainerLabel(key.clone(), label))).collect())
}

pub(super) fn label(api: &Snapfs, key: &ContainerKey, label: &str) -> Result<Option<String>, Error> {
    Ok(api.container_labels(key)?.remove(label))
}

/// The text of a file that is made from facts; `None` for the files that are made otherwise.
pub(super) fn text(api: &Snapfs, key: &ContainerKey, file: ContainerFile) -> Result<Vec<u8>, Error> {
    if let Some(fact) = file.fact() {
        return Ok(format!("{}\n", api.fact(key, fact)?).into_bytes());
    }
    match file {
        ContainerFile::Spec => api.spec(key),
        ContainerFile::Commit | ContainerFile::Checkpoint => Ok(api.last_result(&key.to_string()).into_bytes()),
        ContainerFile::LastError => Ok(api.last_error(&key.to_string()).into_bytes()),
        _ => Err(Error::new(crate::api::ErrorKind::Io, "this file is made when it is opened")),
    }
}
