//! A container's root file system, in the words of the changeset.

use std::path::PathBuf;

use crate::capture::{Error, spec};
use crate::changeset::{Namespace, Source};
use crate::engine::{Container, Overlay, RootFs, USER};
use crate::sys::mount;

/// Errors: its files lie on a mount of snapfs's, see [`Error::OnOurMount`].
pub(super) fn of(container: &Container) -> Result<Source, Error> {
    check_place(container)?;
    Ok(match &container.root {
        RootFs::Directory(path) => Source::Directory(path.clone()),
        RootFs::Overlay(overlay) => Source::Overlay {
            lower: overlay.lower.clone(),
            upper: overlay.upper.clone(),
            merged: overlay.merged.clone(),
            namespace: namespace(overlay),
        },
    })
}

/// We would wait for ourselves. Paths are compared as text: none is touched.
pub(super) fn check_place(container: &Container) -> Result<(), Error> {
    let RootFs::Overlay(overlay) = &container.root else { return Ok(()) };
    let mounts = mount::mounts().unwrap_or_default();
    let ours = || mounts.iter().filter(|mount| mount.fs_type == FS_TYPE);
    let is_ours = |path: &PathBuf| ours().any(|mount| path.starts_with(&mount.point));
    if overlay.lower.iter().any(is_ours) { Err(Error::OnOurMount(container.name.clone())) } else { Ok(()) }
}

/// The type of our mounts.
const FS_TYPE: &str = "fuse.snapfs";

pub(super) fn namespace(overlay: &Overlay) -> Namespace {
    if overlay.xattr_prefix == USER { Namespace::User } else { Namespace::Trusted }
}

/// Where the container has something mounted: the runtime makes empty files and directories there.
pub(super) fn mount_points(container: &Container) -> Result<Vec<PathBuf>, Error> {
    let spec = spec::of(container)?;
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    Ok(mounts.filter_map(|mount| mount["destination"].as_str().map(PathBuf::from)).collect())
}
