//! The members of a checkpoint, unpacked: CRIU's images, the description of the container, and what of its files differs
//! from its base. All of it is hostile but for where it came from.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::progress::Progress;
use crate::restore::{Error, spec, unpack};
use crate::sys::ground::Ground;
use crate::view::{Kind, View, Views};

/// The longest description that is read.
const LONGEST: u64 = 64 << 20;
/// What of `config.dump` podman is let read that came from elsewhere: a key that is not here could name directories,
/// sockets or containers of this host.
const HARMLESS: [&str; 19] = [
    "id",
    "name",
    "rootfsImageID",
    "rootfsImageName",
    "rootfsImage",
    "rootfsImageRef",
    "runtime",
    "createdTime",
    "checkpointedTime",
    "restoredTime",
    "restored",
    "shmSize",
    "labels",
    "command",
    "stopTimeout",
    "createNetNS",
    "networkMode",
    "orderedNetworks",
    "newNetworks",
];

/// A checkpoint on the disk.
#[derive(Debug)]
pub(super) struct Dumped {
    room: PathBuf,
    /// The specification that its container had.
    pub(super) spec: Value,
    config: Value,
}

impl Dumped {
    /// Unpack all of it into `room`, an empty directory.
    pub(super) fn unpack(views: &Views, view: &View, room: PathBuf, progress: &Progress) -> Result<Dumped, Error> {
        check_kinds(view)?;
        let ground = Ground::open(&room).map_err(Error::files("open", &room))?;
        unpack::image(views, view, "the checkpoint", &ground, progress)?;
        let read = |name: &str| parse(name, fs::File::open(room.join(name)));
        let (spec, config) = (read("spec.dump")?, read("config.dump")?);
        let dumped = Dumped { spec, config, room };
        if !dumped.images().join("inventory.img").is_file() {
            return Err(Error::Malformed("it has no checkpoint/inventory.img".to_owned()));
        }
        Ok(dumped)
    }

    /// Where CRIU's images are.
    pub(super) fn images(&self) -> PathBuf {
        self.room.join("checkpoint")
    }

    /// Make of the base's files in `root` what they were: first what was deleted goes.
    pub(super) fn apply(&self, root: &Path, progress: &Progress) -> Result<(), Error> {
        let ground = Ground::open(root).map_err(Error::files("open", root))?;
        if let Some(file) = self.member("deleted.files")? {
            for path in deleted(&parse("deleted.files", Ok(file))?)? {
                progress.check()?;
                let failed = |source| {
                    let (what, path) = ("deleted.files".to_owned(), path.clone());
                    Error::Unpack { what, path, source }
                };
                ground.remove(path.trim_start_matches('/').as_bytes()).map_err(failed)?;
            }
        }
        match self.member("rootfs-diff.tar")? {
            Some(tar) => unpack::tar(&tar, "rootfs-diff.tar", &ground, progress),
            None => Ok(()),
        }
    }

    /// The files of its /dev/shm, where that was a mount of its engine's.
    pub(super) fn shared_memory(&self) -> Result<Option<File>, Error> {
        self.member("devshm-checkpoint.tar")
    }

    /// The files of its volumes, each with the place where it was mounted.
    pub(super) fn volumes(&self) -> Result<Vec<(String, File)>, Error> {
        let volumes = self.config["namedVolumes"].as_array().into_iter().flatten();
        let mut found = Vec::new();
        for volume in volumes {
            let (Some(name), Some(destination)) = (volume["volumeName"].as_str(), volume["dest"].as_str()) else {
                continue;
            };
            if name.contains('/') {
                return Err(Error::Malformed(format!("a volume cannot be called {name:?}")));
            }
            if let Some(tar) = self.member(&format!("volumes/{name}.tar"))? {
                found.push((destination.to_owned(), tar));
            }
        }
        Ok(found)
    }

    fn member(&self, name: &str) -> Result<Option<File>, Error> {
        let path = self.room.join(name);
        match File::open(&path) {
            Ok(file) => Ok(Some(file)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::files("open", &path)(error)),
        }
    }
}

/// A checkpoint holds files and directories: anything else would lead out of the directory that it is unpacked into.
fn check_kinds(view: &View) -> Result<(), Error> {
    let tree = view.tree();
    let is_odd =
        |number: u32| tree.inode(number).is_some_and(|inode| !matches!(inode.kind, Kind::File | Kind::Directory));
    match tree.walk().find(|(_, number)| is_odd(*number)) {
        None => Ok(()),
        Some((path, _)) => {
            let path = String::from_utf8_lossy(&path).into_owned();
            Err(Error::Malformed(format!("{path:?} in it is neither a file nor a directory")))
        }
    }
}

fn parse(name: &str, file: io::Result<File>) -> Result<Value, Error> {
    use std::io::Read;
    let bad = |reason: String| Error::Malformed(format!("its {name}: {reason}"));
    let mut bytes = Vec::new();
    let read = file.and_then(|file| file.take(LONGEST + 1).read_to_end(&mut bytes));
    read.map_err(|error| bad(error.to_string()))?;
    if bytes.len() as u64 > LONGEST {
        return Err(bad("it is too long".to_owned()));
    }
    serde_json::from_slice(&bytes).map_err(|error| bad(error.to_string()))
}

/// Absolute paths, none of which is the root or leads upwards.
fn deleted(value: &Value) -> Result<Vec<String>, Error> {
    let paths = value.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned);
    let is_plain = |path: &String| {
        path.starts_with('/')
            && !path.trim_matches('/').is_empty()
            && !path.split('/').any(|part| part == ".." || part == ".")
    };
    let (plain, odd): (Vec<String>, Vec<String>) = paths.partition(is_plain);
    match odd.first() {
        None => Ok(plain),
        Some(path) => Err(Error::Malformed(format!("its deleted.files names {path:?}"))),
    }
}

/// Refuse what podman would believe of a checkpoint from elsewhere, and that reaches out of the container.
pub(super) fn check_foreign(views: &Views, view: &View) -> Result<(), Error> {
    check_kinds(view)?;
    let read = |name: &str| {
        let tree = view.tree();
        let found =
            tree.child(0, name.as_bytes()).filter(|inode| tree.inode(*inode).is_some_and(|file| file.size <= LONGEST));
        let inode = found.ok_or_else(|| Error::Malformed(format!("it has no {name}")))?;
        let mut bytes = Vec::new();
        // Writing to memory does not fail.
        let _ = views.copy(view, inode, &mut bytes)?;
        serde_json::from_slice::<Value>(&bytes).map_err(|error| Error::Malformed(format!("its {name}: {error}")))
    };
    match foreign(&read("spec.dump")?, &read("config.dump")?) {
        None => Ok(()),
        Some(reason) => {
            Err(Error::Foreign(format!("{reason}; podman container restore does it, if you trust it so far")))
        }
    }
}

fn foreign(spec: &Value, config: &Value) -> Option<String> {
    let namespaces = spec["linux"]["namespaces"].as_array().into_iter().flatten();
    let joins = |namespace: &Value| {
        namespace["type"] != "network" && namespace["path"].as_str().is_some_and(|path| !path.is_empty())
    };
    if namespaces.into_iter().any(joins) {
        return Some("a namespace of another process".to_owned());
    }
    if let Some(reason) = spec::reaches_out(spec) {
        return Some(reason);
    }
    let keys = config.as_object().into_iter().flatten().map(|(key, _)| key);
    let other = keys.into_iter().find(|key| !HARMLESS.contains(&key.as_str()));
    other.map(|key| format!("{key:?} of its config.dump"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn deleted_files_lie_within() {
        assert_eq!(deleted(&json!(["/a", "/b/c d"])).unwrap(), ["/a", "/b/c d"]);
        assert!(deleted(&Value::Null).unwrap().is_empty());
        for path in ["/", "//", "", "a", "/a/../../b", "/./"] {
            assert!(deleted(&json!(["/a", path])).is_err(), "{path}");
        }
    }

    #[test]
    fn podman_is_told_nothing_from_elsewhere_that_names_this_host() {
        let kinds = ["pid", "ipc", "uts", "mount", "network"].map(|kind| json!({ "type": kind }));
        let spec = json!({ "linux": { "namespaces": kinds }, "mounts": [] });
        let config = json!({ "id": "x", "name": "y", "rootfsImageName": "z", "networkMode": "bridge" });
        assert_eq!(foreign(&spec, &config), None);
        for key in ["rootfs", "privileged", "namedVolumes", "secrets", "staticDir", "pidNsCtr", "conmonPidFile"] {
            let mut config = config.clone();
            config[key] = json!("/");
            assert!(foreign(&spec, &config).unwrap().contains(key), "{key}");
        }
        let mut joined = spec.clone();
        joined["linux"]["namespaces"][0]["path"] = json!("/proc/1/ns/pid");
        assert!(foreign(&joined, &config).is_some());
        let mut hooked = spec.clone();
        hooked["hooks"] = json!({ "createRuntime": [{ "path": "/bin/sh" }] });
        assert!(foreign(&hooked, &config).is_some());
    }
}
