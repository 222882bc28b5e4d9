//! What of the host its user has mounted into a container: bind mounts, and volumes, which are bind mounts of a directory
//! that the engine keeps. What the runtime mounts for itself is none of that: `/proc`, `/dev`, `/etc/hosts` and the like.
//!
//! A [`Volume`] is read where it is on the host, never through the container, whose processes could put something else in
//! the way. Of a container that runs the kernel says whether that is still what it has mounted.
//!
//! What must hold: a volume that is to be in a snapshot and cannot be is an error; `/` and whatever holds the store or the
//! container itself are never read; nothing that is mounted *on* a volume is taken for its content.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use crate::capture::hold::runs;
use crate::capture::{Context, Error, spec};
use crate::changeset::{Location, Snapshot, Source, escape};
use crate::engine::mountinfo::{self, Mount};
use crate::engine::{Container, RootFs};
use crate::progress::Progress;

/// Where runtimes mount what is theirs or the kernel's, and where engines mount secrets.
const NOT_USERS: [&str; 6] = ["/proc", "/sys", "/dev", "/run/secrets", "/var/run/secrets", "/run/.containerenv"];
/// File systems without files.
const KERNEL_S: [&str; 15] = [
    "proc",
    "sysfs",
    "devtmpfs",
    "devpts",
    "cgroup",
    "cgroup2",
    "mqueue",
    "debugfs",
    "tracefs",
    "securityfs",
    "bpf",
    "pstore",
    "configfs",
    "efivarfs",
    "binfmt_misc",
];
/// Our own mount.
const OURS: &str = "fuse.snapfs";

/// What to do about volumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Volumes {
    /// They are left out.
    #[default]
    Skip,
    /// The image says where there were some.
    Declare,
    /// The content of each is a layer of its own.
    Include,
}

/// Something of the host's that is mounted in a container, and whose content can be captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Where the container has it, as its specification says.
    pub destination: PathBuf,
    /// Where the host has it, without symbolic links.
    pub source: PathBuf,
    /// It is one file.
    pub(super) is_file: bool,
    /// What is mounted on it, relative to its root.
    hidden: Vec<Vec<u8>>,
}

impl Volume {
    /// Where it belongs in an image of the container whose root file system is `root`, on top of the volumes that come
    /// before it.
    pub(super) fn locate<'a>(
        &self,
        root: &Snapshot,
        mut outer: impl Iterator<Item = (&'a Location, &'a Snapshot)>,
    ) -> Result<Location, Error> {
        let location = root.locate(&self.destination, self.is_file)?;
        Ok(outer.try_fold(location, |location, (other, snapshot)| location.beneath(other, snapshot))?)
    }

    /// The same in the changeset's words.
    pub(super) fn source(&self) -> Source {
        let (directory, only) = match (self.source.parent(), self.source.file_name()) {
            (Some(parent), Some(name)) if self.is_file => (parent.to_owned(), Some(name.as_bytes().to_vec())),
            _ => (self.source.clone(), None),
        };
        Source::Volume { directory, only, hidden: self.hidden.clone() }
    }
}

/// One of the specification's mounts that is the user's.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Users<'a> {
    destination: PathBuf,
    kind: &'a str,
    source: &'a str,
}

/// The mounts of `spec` that are the user's, by their destinations: of two on one the last, and outer ones first.
fn users<'a>(spec: &'a Value, id: &str) -> Vec<Users<'a>> {
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    let users = mounts.filter_map(|mount| {
        let destination = tidy(Path::new(mount["destination"].as_str()?));
        let source = mount["source"].as_str().unwrap_or_default();
        let mut options = mount["options"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let is_bind = options.any(|option| option == "bind" || option == "rbind");
        let kind = if is_bind { "bind" } else { mount["type"].as_str().unwrap_or("bind") };
        // An engine keeps what it mounts for itself in a directory that is named after the container.
        let is_engine_s = Path::new(source).components().any(|part| part.as_os_str() == id);
        let is_users = ["bind", "tmpfs", "overlay"].contains(&kind)
            && !NOT_USERS.iter().any(|path| destination.starts_with(path))
            && !(kind == "bind" && is_engine_s)
            && destination != Path::new("/");
        is_users.then_some((destination.clone(), Users { destination, kind, source }))
    });
    users.collect::<BTreeMap<_, _>>().into_values().collect()
}

/// An absolute path without `.`, `..` and doubled slashes.
fn tidy(path: &Path) -> PathBuf {
    let mut tidy = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => tidy.push(name),
            Component::ParentDir => drop(tidy.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    tidy
}

/// Where the user has something mounted, as an image's configuration names volumes: those are directories.
pub fn declared(container: &Container) -> Result<Vec<String>, Error> {
    let spec = known(container)?;
    let mut users = users(&spec, &container.id);
    users.retain(|mount| mount.kind != "bind" || fs::metadata(mount.source).map_or(true, |found| found.is_dir()));
    Ok(users.into_iter().filter_map(|mount| mount.destination.into_os_string().into_string().ok()).collect())
}

fn known(container: &Container) -> Result<Value, Error> {
    let spec = spec::of(container)?;
    if spec.is_null() { Err(Error::NoVolumes(container.name.clone())) } else { Ok(spec) }
}

/// The volumes whose content a snapshot of `container` includes, outer ones first. A tmpfs, a socket and a device, which
/// hold nothing that could be kept, are left out, and that is logged.
pub fn included(context: &Context<'_>, container: &Container, progress: &Progress) -> Result<Vec<Volume>, Error> {
    let spec = known(container)?;
    let host = Host::look(context, container)?;
    let mut volumes = Vec::new();
    for mount in users(&spec, &container.id) {
        let refuse = |reason: String| Error::Volume { destination: mount.destination.clone(), reason };
        let leave_out = |what: &str| {
            let path = escape(mount.destination.as_os_str().as_bytes());
            progress.log(format!("left out, it is {what}: {path}"));
        };
        match mount.kind {
            "bind" => {}
            "tmpfs" => {
                leave_out("a tmpfs");
                continue;
            }
            _ => return Err(refuse("it is an overlay of its engine's, whose content is in no one place".to_owned())),
        }
        let source = Path::new(mount.source);
        if host.covering(source).is_some_and(|mount| mount.file_system == OURS) {
            return Err(refuse("it is snapfs itself".to_owned()));
        }
        let source = fs::canonicalize(source)
            .map_err(|error| refuse(format!("{} cannot be found on the host: {error}", source.display())))?;
        let file_system = host.covering(&source).map_or("", |mount| mount.file_system.as_str());
        if file_system == OURS {
            return Err(refuse("it is snapfs itself".to_owned()));
        }
        if KERNEL_S.contains(&file_system) {
            leave_out(&format!("a {file_system}"));
            continue;
        }
        let file_type = fs::symlink_metadata(&source)
            .map_err(|error| refuse(format!("{} cannot be looked at: {error}", source.display())))?
            .file_type();
        if !file_type.is_dir() && !file_type.is_file() {
            leave_out("neither a directory nor a file");
            continue;
        }
        host.check(&source).map_err(refuse)?;
        let point = host.mount_point(&source, &mount.destination).map_err(refuse)?;
        let hidden = if file_type.is_dir() { host.hidden(&spec, &source, &point) } else { Vec::new() };
        let destination = mount.destination.clone();
        volumes.push(Volume { destination, source, is_file: file_type.is_file(), hidden });
    }
    Ok(volumes)
}

/// The mounts of the host and of the container.
struct Host {
    mounts: Vec<Mount>,
    /// Of a container that runs.
    inner: Option<Vec<Mount>>,
    /// What must not be read as part of a volume, and what it is.
    kept_out: Vec<(PathBuf, &'static str)>,
}

impl Host {
    fn look(context: &Context<'_>, container: &Container) -> Result<Host, Error> {
        let read = |path: String| fs::read(&path).map_err(|source| Error::Mounts { path, source });
        let mounts = mountinfo::parse(&read("/proc/self/mountinfo".to_owned())?);
        let inner = match runs(container) {
            Some(init) => Some(mountinfo::parse(&read(format!("/proc/{}/mountinfo", init.pid))?)),
            None => None,
        };
        let root = match &container.root {
            RootFs::Overlay(overlay) => &overlay.upper,
            RootFs::Directory(path) => path,
        };
        let kept_out = [(context.store.place(), "snapfs's store"), (root, "the container's own files")];
        let real = |path: &Path| fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        Ok(Host { mounts, inner, kept_out: kept_out.map(|(path, what)| (real(path), what)).into() })
    }

    /// The mount that shows at `path`.
    fn covering(&self, path: &Path) -> Option<&Mount> {
        let covering = self.mounts.iter().filter(|mount| path.starts_with(&mount.mount_point));
        covering.max_by_key(|mount| mount.mount_point.components().count())
    }

    /// An error if the volume is, holds, or lies in what must not be read.
    fn check(&self, source: &Path) -> Result<(), String> {
        if source == Path::new("/") {
            return Err("it is the host's whole file system".to_owned());
        }
        let place = mountinfo::locate(&self.mounts, source);
        for (path, what) in &self.kept_out {
            let other = mountinfo::locate(&self.mounts, path);
            let same_tree = match (&place, &other) {
                (Some((device, root)), Some((other_device, other_root))) => {
                    device == other_device && (root.starts_with(other_root) || other_root.starts_with(root))
                }
                _ => source.starts_with(path) || path.starts_with(source),
            };
            if same_tree {
                return Err(format!("{} holds {what}, or is part of that", source.display()));
            }
        }
        Ok(())
    }

    /// Where the container has `source` mounted: it may have been led to another place than `destination` by a symbolic
    /// link. An error if it is mounted nowhere in a container that runs.
    fn mount_point(&self, source: &Path, destination: &Path) -> Result<PathBuf, String> {
        let Some(inner) = &self.inner else { return Ok(destination.to_owned()) };
        let place = mountinfo::locate(&self.mounts, source);
        let is_it = |mount: &&Mount| place.as_ref() == Some(&(mount.device, mount.root.clone()));
        if mountinfo::find(inner, destination).is_some_and(|mount| is_it(&mount)) {
            return Ok(destination.to_owned());
        }
        let found = inner.iter().rev().find(is_it).map(|mount| mount.mount_point.clone());
        found.ok_or_else(|| {
            format!(
                "{} of the host is not what the running container has mounted: it was moved or replaced, or the container \
                 has unmounted it; start the container anew",
                source.display()
            )
        })
    }

    /// What is mounted on the volume that shows at `point`, in the container or on the host.
    fn hidden(&self, spec: &Value, source: &Path, point: &Path) -> Vec<Vec<u8>> {
        let beneath = |path: &Path, base: &Path| {
            let rest = path.strip_prefix(base).ok()?.as_os_str().as_bytes();
            (!rest.is_empty()).then(|| rest.to_vec())
        };
        let specified =
            spec["mounts"].as_array().into_iter().flatten().filter_map(|mount| mount["destination"].as_str());
        let specified = specified.filter_map(|path| beneath(&tidy(Path::new(path)), point));
        let inner = self.inner.iter().flatten().filter_map(|mount| beneath(&mount.mount_point, point));
        let host = self.mounts.iter().filter_map(|mount| beneath(&mount.mount_point, source));
        let mut hidden: Vec<_> = specified.chain(inner).chain(host).collect();
        hidden.sort_unstable();
        hidden.dedup();
        hidden
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_user_s_mounts_are_told_from_the_runtime_s() {
        let id = "2aa2fdbe";
        let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
        let spec = json!({ "mounts": [
            mount("/proc", "proc", "proc", &[]),
            mount("/dev", "tmpfs", "tmpfs", &[]),
            mount("/dev/shm", "bind", "/var/lib/x/2aa2fdbe/userdata/shm", &["bind"]),
            mount("/etc/hosts", "bind", "/run/x/2aa2fdbe/userdata/hosts", &["bind"]),
            mount("/etc/resolv.conf", "bind", "/home/me/resolv.conf", &["rbind"]),
            mount("/run/secrets/key", "bind", "/etc/keys", &["bind"]),
            mount("/data/sub", "bind", "/srv/sub", &["rbind", "ro"]),
            mount("/data/../data//", "none", "/srv/data", &["rbind"]),
            mount("/data", "bind", "/srv/other", &["rbind"]),
            mount("/cache", "tmpfs", "tmpfs", &["size=1m"]),
            mount("/o", "overlay", "overlay", &["lowerdir=/x"]),
            mount("/sys/fs/cgroup", "cgroup", "cgroup", &[]),
        ]});
        let found: Vec<_> =
            users(&spec, id).into_iter().map(|mount| (mount.destination, mount.kind, mount.source)).collect();
        let expected = [
            ("/cache", "tmpfs", "tmpfs"),
            ("/data", "bind", "/srv/other"),
            ("/data/sub", "bind", "/srv/sub"),
            ("/etc/resolv.conf", "bind", "/home/me/resolv.conf"),
            ("/o", "overlay", "overlay"),
        ];
        assert_eq!(found, expected.map(|(path, kind, source)| (PathBuf::from(path), kind, source)));
        assert_eq!(users(&Value::Null, id), []);
    }

    fn host(text: &str, inner: Option<&str>, kept_out: &str) -> Host {
        let inner = inner.map(|text| mountinfo::parse(text.as_bytes()));
        Host { mounts: mountinfo::parse(text.as_bytes()), inner, kept_out: vec![(kept_out.into(), "the store")] }
    }

    const MOUNTS: &str = "1 0 8:1 / / rw - ext4 /dev/a rw\n2 1 8:2 / /srv/disk rw - ext4 /dev/b rw\n\
                          3 1 8:1 /srv/data /mnt/alias rw - ext4 /dev/a rw\n";

    #[test]
    fn what_holds_the_store_is_never_read() {
        let host = host(MOUNTS, None, "/srv/data/store");
        for refused in ["/", "/srv", "/srv/data", "/srv/data/store", "/srv/data/store/blobs", "/mnt/alias"] {
            assert!(host.check(Path::new(refused)).is_err(), "{refused}");
        }
        for fine in ["/srv/data/stores", "/srv/disk", "/home"] {
            assert_eq!(host.check(Path::new(fine)), Ok(()), "{fine}");
        }
    }

    #[test]
    fn what_is_mounted_on_a_volume_is_not_its_content() {
        let inner = "9 0 0:5 / / rw - overlay o rw\n10 9 8:1 /srv /real/data rw - ext4 /dev/a rw\n\
                     11 10 8:3 / /real/data/x/y rw - ext4 /dev/c rw\n";
        let host = host(MOUNTS, Some(inner), "/store");
        let (source, destination) = (Path::new("/srv"), Path::new("/link/data"));
        let point = host.mount_point(source, destination).unwrap();
        assert_eq!(point, Path::new("/real/data"));
        let spec = json!({ "mounts": [{ "destination": "/real/data/z" }, { "destination": "/real/database" }] });
        assert_eq!(host.hidden(&spec, source, &point), [&b"disk"[..], b"x/y", b"z"]);
        assert!(host.mount_point(Path::new("/home"), destination).unwrap_err().contains("/home"));
    }
}
