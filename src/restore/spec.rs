//! The runtime specification of a container that is made of an image; pure.
//!
//! Of a commit there is the image's config alone: it says what is run, and the runtime's own default says with which rights.
//! A checkpoint has the specification that its container had. That of a container of this host is taken but for what cannot
//! be the same; of one from elsewhere nothing is taken that reaches out of the container.

use serde_json::{Value, json};

use crate::restore::Error;
use crate::restore::trust::Origin;

/// PATH where the image says nothing.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// File systems that show a container nothing but itself and the kernel.
const OWN_FILE_SYSTEMS: [&str; 7] = ["proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"];
/// Options of these that are taken from an image from elsewhere, as they are or with a value.
const OWN_OPTIONS: [&str; 22] = [
    "nosuid",
    "noexec",
    "nodev",
    "ro",
    "rw",
    "strictatime",
    "relatime",
    "noatime",
    "newinstance",
    "private",
    "rprivate",
    "slave",
    "rslave",
    "unbindable",
    "tmpcopyup",
    "size",
    "mode",
    "nr_inodes",
    "uid",
    "gid",
    "ptmxmode",
    "nsdelegate",
];
/// Namespaces that a container from elsewhere must have had of its own.
const OWN_NAMESPACES: [&str; 5] = ["pid", "ipc", "uts", "mount", "network"];

/// Who runs the program.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: Option<String>,
}

/// A mount whose source engines make anew for every container: a copy of it is made for this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Provided {
    /// Which of the specification's mounts.
    pub(super) at: usize,
    pub(super) destination: String,
    /// Where the original had it, if that can be looked at.
    pub(super) source: Option<String>,
}

/// Where engines mount what is theirs.
const PROVIDED: [&str; 6] =
    ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv", "/dev/shm", "/run/secrets"];

/// What can be said of every container.
#[derive(Debug, Clone, Copy)]
pub(super) struct Own<'a> {
    pub(super) name: &'a str,
    /// Its cgroup's name, at the top of each hierarchy.
    pub(super) cgroup: &'a str,
    /// Its root, as the bundle has it.
    pub(super) root: &'a str,
}

impl Own<'_> {
    fn set(self, spec: &mut Value, is_read_only: bool) {
        spec["root"] = json!({ "path": self.root, "readonly": is_read_only });
        spec["process"]["terminal"] = Value::Bool(false);
        spec["linux"]["cgroupsPath"] = json!(format!("/{}", self.cgroup));
        if let Some(spec) = spec.as_object_mut() {
            spec.remove("hooks");
        }
    }
}

/// What is run: `Entrypoint` and `Cmd`.
fn command(config: &Value) -> Vec<Value> {
    ["Entrypoint", "Cmd"].iter().flat_map(|key| config[key].as_array().into_iter().flatten()).cloned().collect()
}

/// The specification of a new container: `default` is the runtime's, `config` the image's.
pub(super) fn of_config(default: Value, config: &Value, user: &User, own: Own<'_>) -> Result<Value, Error> {
    let config = &config["config"];
    let arguments = command(config);
    if arguments.is_empty() {
        let none = "it says no command to run (Entrypoint, Cmd); commit it again with change='CMD [\"sh\"]'";
        return Err(Error::Malformed(none.to_owned()));
    }
    let mut spec = default;
    own.set(&mut spec, false);
    spec["hostname"] = json!(own.name);
    let mut environment: Vec<Value> = config["Env"].as_array().cloned().unwrap_or_default();
    let mut add = |name: &str, entry: String| {
        if !environment.iter().any(|known| known.as_str().is_some_and(|known| known.starts_with(name))) {
            environment.push(Value::String(entry));
        }
    };
    add("PATH=", PATH.to_owned());
    if let Some(home) = &user.home {
        add("HOME=", format!("HOME={home}"));
    }
    let process = &mut spec["process"];
    process["args"] = Value::Array(arguments);
    process["env"] = Value::Array(environment);
    let directory = config["WorkingDir"].as_str().filter(|directory| directory.starts_with('/')).unwrap_or("/");
    process["cwd"] = json!(directory);
    process["user"] = json!({ "uid": user.uid, "gid": user.gid, "additionalGids": user.groups });
    Ok(spec)
}

/// The specification of a container that goes on: `dump` is the one that it had, `default` the runtime's.
pub(super) fn of_dump(
    dump: &Value,
    default: &Value,
    origin: Origin,
    own: Own<'_>,
) -> Result<(Value, Vec<Provided>), Error> {
    if !dump["process"].is_object() || !dump["linux"].is_object() {
        return Err(Error::Malformed("its spec.dump is no runtime specification for Linux".to_owned()));
    }
    if dump["process"]["terminal"] == true {
        let terminal = "its container had a terminal, which nobody here would hold; write engine=podman";
        return Err(Error::Unsupported(terminal.to_owned()));
    }
    let shared = namespaces(dump).find(|namespace| namespace["path"].as_str().is_some_and(|path| !path.is_empty()));
    if let Some(namespace) = shared {
        let kind = namespace["type"].as_str().unwrap_or_default();
        return Err(Error::Unsupported(format!(
            "its container had a {kind} namespace that was made beforehand, which runc and crun do not make; write engine=podman"
        )));
    }
    let mut spec = match origin {
        Origin::Here => dump.clone(),
        Origin::Elsewhere => of_foreign(dump, default)?,
    };
    own.set(&mut spec, dump["root"]["readonly"] == true);
    let mounts = spec["mounts"].as_array().into_iter().flatten().enumerate();
    let provided = mounts.filter(|(_, mount)| is_bind(mount)).filter_map(|(at, mount)| {
        let destination = mount["destination"].as_str().filter(|place| PROVIDED.contains(place))?.to_owned();
        let source = mount["source"].as_str().filter(|_| origin == Origin::Here).map(str::to_owned);
        Some(Provided { at, destination, source })
    });
    let provided = provided.collect();
    Ok((spec, provided))
}

fn namespaces(spec: &Value) -> impl Iterator<Item = &Value> {
    spec["linux"]["namespaces"].as_array().into_iter().flatten()
}

fn is_bind(mount: &Value) -> bool {
    let is_option = |option: &Value| option == "bind" || option == "rbind";
    mount["type"] == "bind" || mount["options"].as_array().into_iter().flatten().any(is_option)
}

/// What of a specification from elsewhere is taken: what is run, and what lies within the container.
fn of_foreign(dump: &Value, default: &Value) -> Result<Value, Error> {
    if let Some(reason) = reaches_out(dump) {
        return Err(Error::Foreign(reason));
    }
    let mut spec = default.clone();
    let strings = |value: &Value| -> Value {
        value.as_array().into_iter().flatten().filter(|v| v.is_string()).cloned().collect()
    };
    let (from, process) = (&dump["process"], &mut spec["process"]);
    process["args"] = strings(&from["args"]);
    process["env"] = strings(&from["env"]);
    process["cwd"] = from["cwd"].as_str().filter(|cwd| cwd.starts_with('/')).unwrap_or("/").into();
    let number = |value: &Value| value.as_u64().and_then(|n| u32::try_from(n).ok()).unwrap_or(0);
    process["user"] = json!({ "uid": number(&from["user"]["uid"]), "gid": number(&from["user"]["gid"]) });
    spec["hostname"] = dump["hostname"].as_str().unwrap_or("restored").into();
    let kinds = namespaces(dump).map(|namespace| json!({ "type": namespace["type"] }));
    spec["linux"]["namespaces"] = kinds.collect();
    for key in ["maskedPaths", "readonlyPaths"] {
        spec["linux"][key] = strings(&dump["linux"][key]);
    }
    let mounts = dump["mounts"].as_array().into_iter().flatten();
    spec["mounts"] = mounts
        .map(|mount| {
            let mut taken =
                json!({ "destination": mount["destination"], "type": mount["type"], "options": mount["options"] });
            taken["source"] = if is_bind(mount) { Value::Null } else { mount["type"].clone() };
            taken
        })
        .collect();
    Ok(spec)
}

/// What in a specification reaches out of its container, if anything does.
pub(super) fn reaches_out(spec: &Value) -> Option<String> {
    let is_empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(values) => values.is_empty(),
        Value::Object(values) => values.values().all(|value| value.as_array().is_some_and(Vec::is_empty)),
        _ => false,
    };
    if !is_empty(&spec["hooks"]) {
        return Some("hooks, which are programs of the host".to_owned());
    }
    if !is_empty(&spec["linux"]["devices"]) {
        return Some("devices of the host".to_owned());
    }
    let kinds: Vec<&str> = namespaces(spec).filter_map(|namespace| namespace["type"].as_str()).collect();
    if let Some(missing) = OWN_NAMESPACES.into_iter().find(|kind| !kinds.contains(kind)) {
        return Some(format!("the host's {missing} namespace"));
    }
    if let Some(other) = kinds.into_iter().find(|kind| !OWN_NAMESPACES.contains(kind) && *kind != "cgroup") {
        return Some(format!("a namespace of the kind {other}"));
    }
    spec["mounts"].as_array().into_iter().flatten().find_map(|mount| {
        let destination = mount["destination"].as_str().unwrap_or_default();
        let is_plain = destination.starts_with('/') && !destination.split('/').any(|part| part == "..");
        if is_bind(mount) {
            return (!PROVIDED.contains(&destination)).then(|| format!("a mount of the host at {destination:?}"));
        }
        let file_system = mount["type"].as_str().unwrap_or_default();
        if !is_plain || !OWN_FILE_SYSTEMS.contains(&file_system) {
            return Some(format!("a mount of the type {file_system:?} at {destination:?}"));
        }
        let options = mount["options"].as_array().into_iter().flatten();
        let key = |option: &Value| option.as_str().unwrap_or_default().split('=').next().unwrap_or_default().to_owned();
        let other = options.map(key).find(|key| !OWN_OPTIONS.contains(&key.as_str()))?;
        Some(format!("a mount at {destination:?} with the option {other:?}"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: Own<'_> = Own { name: "web2", cgroup: "snapfs-web2-1", root: "rootfs" };

    fn default() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": { "terminal": true, "user": { "uid": 0, "gid": 0 }, "args": ["sh"], "env": ["PATH=/bin", "TERM=xterm"],
                         "cwd": "/", "capabilities": { "bounding": ["CAP_KILL"] } },
            "root": { "path": "rootfs", "readonly": true },
            "hostname": "runc",
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc" }],
            "linux": { "namespaces": [{ "type": "pid" }], "resources": { "devices": [{ "allow": false, "access": "rwm" }] } },
        })
    }

    fn dump() -> Value {
        let kinds: Vec<Value> = OWN_NAMESPACES.iter().map(|kind| json!({ "type": kind })).collect();
        json!({
            "process": { "args": ["/app"], "env": ["A=b"], "cwd": "/srv", "user": { "uid": 3, "gid": 4 },
                         "capabilities": { "bounding": ["CAP_SYS_ADMIN"] }, "apparmorProfile": "unconfined" },
            "root": { "path": "/var/lib/x", "readonly": true },
            "hostname": "web",
            "annotations": { "org.criu.config": "/tmp/x" },
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
                { "destination": "/dev/shm", "type": "bind", "source": "/var/s", "options": ["bind"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "x", "options": ["size=5k", "nodev"] },
            ],
            "linux": { "namespaces": kinds, "cgroupsPath": "/old", "maskedPaths": ["/proc/kcore"] },
        })
    }

    #[test]
    fn a_new_container_runs_what_the_image_says_with_the_default_rights() {
        let config = json!({ "config": { "Entrypoint": ["/a"], "Cmd": ["b"], "Env": ["X=1"], "WorkingDir": "/w", "User": "u" } });
        let user = User { uid: 5, gid: 6, groups: vec![7], home: Some("/home/u".to_owned()) };
        let spec = of_config(default(), &config, &user, OWN).unwrap();
        assert_eq!(spec["process"]["args"], json!(["/a", "b"]));
        assert_eq!(spec["process"]["env"], json!(["X=1", PATH, "HOME=/home/u"]));
        assert_eq!(spec["process"]["user"], json!({ "uid": 5, "gid": 6, "additionalGids": [7] }));
        assert_eq!((&spec["process"]["cwd"], &spec["process"]["terminal"]), (&json!("/w"), &json!(false)));
        assert_eq!(spec["process"]["capabilities"], default()["process"]["capabilities"]);
        assert_eq!(spec["root"], json!({ "path": "rootfs", "readonly": false }));
        assert_eq!((&spec["hostname"], &spec["linux"]["cgroupsPath"]), (&json!("web2"), &json!("/snapfs-web2-1")));
        let none = of_config(default(), &json!({ "config": {} }), &user, OWN).unwrap_err().to_string();
        assert!(none.contains("no command"), "{none}");
    }

    #[test]
    fn a_container_of_this_host_keeps_what_it_had_but_for_hooks_and_its_place() {
        let mut dump = dump();
        dump["hooks"] = json!({ "prestart": [{ "path": "/bin/evil" }] });
        dump["mounts"].as_array_mut().unwrap().push(json!({ "destination": "/d", "type": "bind", "source": "/host" }));
        let (spec, provided) = of_dump(&dump, &default(), Origin::Here, OWN).unwrap();
        assert_eq!(spec.get("hooks"), None);
        assert_eq!(spec["process"]["capabilities"], dump["process"]["capabilities"]);
        assert_eq!(spec["mounts"][3]["source"], "/host");
        assert_eq!(spec["linux"]["cgroupsPath"], "/snapfs-web2-1");
        assert_eq!(spec["root"], json!({ "path": "rootfs", "readonly": true }));
        let shm = Provided { at: 1, destination: "/dev/shm".to_owned(), source: Some("/var/s".to_owned()) };
        assert_eq!(provided, [shm]);
    }

    #[test]
    fn a_container_from_elsewhere_brings_nothing_that_reaches_out() {
        let (spec, provided) = of_dump(&dump(), &default(), Origin::Elsewhere, OWN).unwrap();
        assert_eq!(spec["process"]["args"], json!(["/app"]));
        assert_eq!(spec["process"]["capabilities"], default()["process"]["capabilities"]);
        assert_eq!(spec["linux"]["resources"], default()["linux"]["resources"]);
        assert_eq!((spec.get("annotations"), spec["process"].get("apparmorProfile")), (None, None));
        assert_eq!(spec["mounts"][1]["source"], Value::Null);
        assert_eq!((provided.len(), &provided[0].source), (1, &None));
        assert_eq!(spec["mounts"][2]["source"], "tmpfs");
    }

    #[test]
    fn what_reaches_out_is_told() {
        assert_eq!(reaches_out(&dump()), None);
        type Change = fn(&mut Value);
        let changes: [(Change, &str); 8] = [
            (|spec| spec["hooks"] = json!({ "poststop": [{ "path": "/x" }] }), "hooks"),
            (|spec| spec["linux"]["devices"] = json!([{ "path": "/dev/sda" }]), "devices"),
            (|spec| drop(spec["linux"]["namespaces"].as_array_mut().unwrap().pop()), "network namespace"),
            (|spec| spec["linux"]["namespaces"][4]["type"] = json!("user"), "network namespace"),
            (|spec| spec["mounts"][2] = json!({ "destination": "/x", "type": "ext4", "source": "/dev/sda" }), "ext4"),
            (
                |spec| spec["mounts"][2] = json!({ "destination": "/x", "source": "/", "options": ["rbind"] }),
                "of the host",
            ),
            (|spec| spec["mounts"][2]["destination"] = json!("/a/../../b"), "tmpfs"),
            (|spec| spec["mounts"][0]["options"] = json!(["shared"]), "shared"),
        ];
        for (change, word) in changes {
            let mut spec = dump();
            change(&mut spec);
            let said = reaches_out(&spec).unwrap();
            assert!(said.contains(word), "{said}");
            assert!(of_dump(&spec, &default(), Origin::Elsewhere, OWN).is_err());
        }
        let mut spec = dump();
        spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({ "type": "user" }));
        assert!(reaches_out(&spec).unwrap().contains("user"));
    }

    #[test]
    fn what_runtimes_cannot_make_is_left_to_podman() {
        let mut terminal = dump();
        terminal["process"]["terminal"] = json!(true);
        let mut network = dump();
        network["linux"]["namespaces"][4]["path"] = json!("/run/netns/x");
        for spec in [terminal, network] {
            let said = of_dump(&spec, &default(), Origin::Here, OWN).unwrap_err().to_string();
            assert!(said.contains("engine=podman"), "{said}");
        }
        assert!(of_dump(&json!([]), &default(), Origin::Here, OWN).is_err());
    }
}
