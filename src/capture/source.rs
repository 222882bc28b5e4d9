//! A container's root file system, in the words of the changeset.

use std::path::PathBuf;

use crate::capture::{Error, spec};
use crate::changeset::{Namespace, Source};
use crate::engine::{Container, Overlay, RootFs, USER};

pub(super) fn of(container: &Container) -> Source {
    match &container.root {
        RootFs::Directory(path) => Source::Directory(path.clone()),
        RootFs::Overlay(overlay) => Source::Overlay {
            lower: overlay.lower.clone(),
            upper: overlay.upper.clone(),
            merged: overlay.merged.clone(),
            namespace: namespace(overlay),
        },
    }
}

pub(super) fn namespace(overlay: &Overlay) -> Namespace {
    if overlay.xattr_prefix == USER { Namespace::User } else { Namespace::Trusted }
}

/// Where the container has something mounted: the runtime makes empty files and directories there.
pub(super) fn mount_points(container: &Container) -> Result<Vec<PathBuf>, Error> {
    let spec = spec::of(container)?;
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    Ok(mounts.filter_map(|mount| mount["destination"].as_str().map(PathBuf::from)).collect())
}
