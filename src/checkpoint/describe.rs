//! What engines are told of a checkpoint: `config.dump`, `spec.dump` and the manifest's annotations; pure but for
//! [`Host::look`].
//!
//! podman reads its own `ContainerConfig` (libpod, `container_config.go`) out of `config.dump`, CRI-O and checkpointctl
//! theirs (checkpointctl, `lib/metadata.go`); no key means two things, so that one document serves all.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::engine::Container;
use crate::oci::annotation;

/// The machine and the programs on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Host {
    architecture: String,
    kernel: String,
    cgroups: &'static str,
    distribution: (String, String),
}

/// All that there is to tell.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) container: &'a Container,
    pub(super) spec: &'a Value,
    /// `podman container inspect`, for a container of podman's.
    pub(super) inspected: &'a Value,
    pub(super) runtime: &'a str,
    pub(super) runtime_version: &'a str,
    pub(super) criu_version: u32,
    pub(super) podman_version: &'a str,
    pub(super) conmon_version: &'a str,
    pub(super) host: &'a Host,
    /// The name and the id of the image that the files are the difference to.
    pub(super) base_name: &'a str,
    pub(super) base_id: &'a str,
    /// When the container was frozen.
    pub(super) at: Timestamp,
    /// Sixty-four hexadecimal digits that no other checkpoint has.
    pub(super) unique: &'a str,
}

/// A named volume of podman's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Volume {
    pub(super) name: String,
    pub(super) source: PathBuf,
    destination: String,
    options: Value,
}

impl Host {
    /// The machine that we run on.
    pub(super) fn look() -> Host {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let is_unified = fs::metadata("/sys/fs/cgroup/cgroup.controllers").is_ok();
        let release = read("/etc/os-release");
        Host {
            architecture: architecture(std::env::consts::ARCH).to_owned(),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            cgroups: if is_unified { "v2" } else { "v1" },
            distribution: (release_field(&release, "ID"), release_field(&release, "VERSION_ID")),
        }
    }
}

impl Host {
    /// As Go calls it.
    pub(super) fn architecture(&self) -> &str {
        &self.architecture
    }
}

/// The words of Go, which the specifications use.
fn architecture(rust: &str) -> &str {
    match rust {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "powerpc64" => "ppc64le",
        other => other,
    }
}

fn release_field(text: &str, key: &str) -> String {
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
    value.unwrap_or("unknown").trim_matches('"').to_owned()
}

/// The named volumes of a container of podman's.
pub(super) fn volumes(inspected: &Value) -> Vec<Volume> {
    let mounts = inspected["Mounts"].as_array().into_iter().flatten();
    let volume = |mount: &Value| {
        let text = |key: &str| mount[key].as_str().map(str::to_owned);
        let name = text("Name").filter(|name| is_volume_name(name))?;
        let source = PathBuf::from(text("Source")?);
        let options = mount["Options"].clone();
        Some(Volume { name, source, destination: text("Destination")?, options })
    };
    mounts.filter(|mount| mount["Type"] == "volume").filter_map(volume).collect()
}

/// podman's own rule, so that a name cannot lead out of `volumes/`.
fn is_volume_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'))
}

/// Where a container of podman's keeps what it shares as /dev/shm, which is no part of its dump; none for others.
pub(super) fn shared_memory(spec: &Value) -> Option<PathBuf> {
    let mounts = spec["mounts"].as_array().into_iter().flatten();
    let mut shm = mounts.filter(|mount| mount["destination"] == "/dev/shm" && mount["type"] == "bind");
    shm.next()?["source"].as_str().map(PathBuf::from)
}

impl Facts<'_> {
    /// Whether the network namespace was made before the container, so that it is not a part of the dump.
    fn has_external_network(&self) -> bool {
        let namespaces = self.spec["linux"]["namespaces"].as_array().into_iter().flatten();
        let mut network = namespaces.filter(|namespace| namespace["type"] == "network");
        network.next().is_some_and(|namespace| namespace["path"].as_str().is_some_and(|path| !path.is_empty()))
    }

    /// podman's ids are these digits; what others call theirs, podman would not take.
    fn id(&self) -> &str {
        let is_id = self.container.id.len() == 64 && self.container.id.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id { &self.container.id } else { self.unique }
    }

    /// `config.dump`.
    pub(super) fn config_dump(&self) -> Value {
        let created = self.container.created.unwrap_or(self.at).to_string();
        let at = self.at.to_string();
        let mut config = json!({
            "id": self.id(),
            "name": self.container.name,
            "rootfsImageID": self.base_id,
            "rootfsImageName": self.base_name,
            "rootfsImage": self.base_name,
            "runtime": self.runtime,
            "createdTime": created,
            "checkpointedTime": at,
            "restoredTime": "0001-01-01T00:00:00Z",
            "restored": false,
            "shmSize": 65_536_000,
        });
        let Some(object) = config.as_object_mut() else { return config };
        let mut set = |key: &str, value: Value| object.insert(key.to_owned(), value);
        if let Some(labels) = self.inspected["Config"]["Labels"].as_object() {
            set("labels", Value::Object(labels.clone()));
        }
        let copied = [
            ("command", &self.inspected["Config"]["Cmd"]),
            ("logDriver", &self.inspected["HostConfig"]["LogConfig"]["Type"]),
            ("privileged", &self.inspected["HostConfig"]["Privileged"]),
            ("stopTimeout", &self.inspected["Config"]["StopTimeout"]),
            ("shmSize", &self.inspected["HostConfig"]["ShmSize"]),
        ];
        for (key, value) in copied.into_iter().filter(|(_, value)| !value.is_null()) {
            set(key, value.clone());
        }
        let volumes: Vec<Value> = volumes(self.inspected)
            .into_iter()
            .map(|volume| json!({ "volumeName": volume.name, "dest": volume.destination, "options": volume.options }))
            .collect();
        if !volumes.is_empty() {
            set("namedVolumes", Value::Array(volumes));
        }
        // podman tells of no other mounts of a container than of those to these places.
        let mounts = self.inspected["Mounts"].as_array().into_iter().flatten();
        let places: Vec<Value> = mounts.map(|mount| mount["Destination"].clone()).filter(Value::is_string).collect();
        if !places.is_empty() {
            set("userVolumes", Value::Array(places));
        }
        let networks = networks(self.inspected);
        if !networks.is_empty() {
            set("createNetNS", Value::Bool(true));
            set("networkMode", Value::String("bridge".to_owned()));
            let ordered = networks.iter().map(|(name, options)| {
                let mut options = options.clone();
                options["name"] = Value::String(name.clone());
                options
            });
            // What podman 6 reads, and what podman 4 and 5 do.
            set("orderedNetworks", ordered.collect());
            set("newNetworks", Value::Object(networks));
        }
        config
    }

    /// `spec.dump`: the container's own, with what says whose it is.
    pub(super) fn spec_dump(&self) -> Value {
        let mut spec = self.spec.clone();
        let annotations = &mut spec["annotations"];
        if !annotations.is_object() {
            *annotations = json!({});
        }
        let metadata = json!({ "name": self.container.name, "attempt": 0 }).to_string();
        let missing = [
            ("io.container.manager", "libpod"),
            ("io.kubernetes.cri-o.Annotations", "{}"),
            ("io.kubernetes.cri-o.Metadata", &metadata),
        ];
        for (key, value) in missing {
            if annotations[key].is_null() {
                annotations[key] = Value::String(value.to_owned());
            }
        }
        spec
    }

    /// What other programs look for in the manifest.
    pub(super) fn annotations(&self) -> BTreeMap<String, String> {
        let criu = self.criu_version.to_string();
        let (name, base, Host { architecture, kernel, cgroups, distribution }) =
            (&self.container.name, self.base_name, self.host);
        let podman = [
            ("name", name.as_str()),
            ("rawImageName", base),
            ("rootfsImageID", self.base_id),
            ("rootfsImageName", base),
            ("podman.version", self.podman_version),
            ("criu.version", &criu),
            ("runtime.name", self.runtime),
            ("runtime.version", self.runtime_version),
            ("conmon.version", self.conmon_version),
            ("host.arch", architecture),
            ("host.kernel", kernel),
            ("cgroups.version", cgroups),
            ("distribution.version", &distribution.1),
            ("distribution.name", &distribution.0),
        ];
        let crio = [
            ("name", name.as_str()),
            ("rawImageName", base),
            ("rootfsImageID", self.base_id),
            ("rootfsImageName", base),
            ("criu.version", &criu),
        ];
        let criu = [
            ("container.name", name.as_str()),
            ("engine.name", self.container.engine),
            ("engine.version", if self.container.engine == "podman" { self.podman_version } else { "" }),
            ("rootfsImageName", base),
            ("rootfsImageUserRequested", base),
            ("rootfsImageID", self.base_id),
            ("rawImageName", base),
            ("runtime.name", self.runtime),
            ("runtime.version", self.runtime_version),
            ("criu.version", &criu),
            ("host.arch", architecture),
            ("host.kernel", kernel),
            ("cgroup.version", cgroups),
            ("distribution.name", &distribution.0),
            ("distribution.version", &distribution.1),
        ];
        let under = |prefix: &'static str, pairs: &[(&str, &str)]| {
            let pairs: Vec<_> = pairs.iter().filter(|(_, value)| !value.is_empty()).collect();
            pairs.into_iter().map(|(key, value)| (format!("{prefix}.{key}"), (*value).to_owned())).collect::<Vec<_>>()
        };
        let mut annotations: BTreeMap<String, String> = BTreeMap::new();
        annotations.extend(under("io.podman.annotations.checkpoint", &podman));
        annotations.extend(under("io.kubernetes.cri-o.annotations.checkpoint", &crio));
        annotations.extend(under("org.criu.checkpoint", &criu));
        let network = if self.has_external_network() { "external" } else { "internal" };
        annotations.insert(annotation::CHECKPOINT_NETWORK.to_owned(), network.to_owned());
        annotations.insert(annotation::CREATED.to_owned(), self.at.to_string());
        annotations
    }
}

/// The networks of a container of podman's, each with the address that it has: a restore from an image has no other way
/// to learn it.
fn networks(inspected: &Value) -> Map<String, Value> {
    let networks = inspected["NetworkSettings"]["Networks"].as_object().into_iter().flatten();
    let mut found = Map::new();
    for (at, (name, network)) in networks.filter(|(name, _)| *name != "none" && *name != "host").enumerate() {
        let mut options = json!({ "interface_name": format!("eth{at}") });
        let text = |key: &str| network[key].as_str().filter(|text| !text.is_empty());
        let addresses: Vec<&str> = ["IPAddress", "GlobalIPv6Address"].into_iter().filter_map(text).collect();
        if !addresses.is_empty() {
            options["static_ips"] = json!(addresses);
        }
        if let Some(address) = text("MacAddress") {
            options["static_mac"] = json!(address);
        }
        if let Some(aliases) = network["Aliases"].as_array() {
            options["aliases"] = json!(aliases);
        }
        found.insert(name.clone(), options);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{CgroupPaths, RootFs, Status};

    fn container(id: &str, engine: &'static str) -> Container {
        Container {
            id: id.to_owned(),
            name: "web".to_owned(),
            engine,
            runtime: Some("runc".to_owned()),
            status: Status::Running,
            frozen: false,
            init: None,
            image: None,
            created: None,
            spec: None,
            root: RootFs::Directory("/nonexistent".into()),
            cgroup: CgroupPaths::default(),
        }
    }

    fn facts<T>(container: &Container, spec: Value, inspected: Value, ask: impl FnOnce(&Facts<'_>) -> T) -> T {
        let host = Host {
            architecture: "amd64".to_owned(),
            kernel: "6.1".to_owned(),
            cgroups: "v1",
            distribution: ("debian".to_owned(), "13".to_owned()),
        };
        let (unique, base_id) = ("u".repeat(64), "b".repeat(64));
        ask(&Facts {
            container,
            spec: &spec,
            inspected: &inspected,
            runtime: "runc",
            runtime_version: "runc version 1.1",
            criu_version: 40101,
            podman_version: "5.4.2",
            conmon_version: "2",
            host: &host,
            base_name: "localhost/app:1",
            base_id: &base_id,
            at: Timestamp::from_second(1_700_000_000).unwrap(),
            unique: &unique,
        })
    }

    #[test]
    fn podman_finds_the_fourteen_annotations_and_others_theirs() {
        let annotations = facts(&container("c1", "runc"), json!({}), Value::Null, |facts| facts.annotations());
        let under = |prefix: &str| annotations.keys().filter(|key| key.starts_with(prefix)).count();
        assert_eq!(under("io.podman.annotations.checkpoint."), 14);
        assert_eq!(under("io.kubernetes.cri-o.annotations.checkpoint."), 5);
        assert_eq!(under("org.criu.checkpoint."), 14);
        assert_eq!(annotations["io.podman.annotations.checkpoint.runtime.name"], "runc");
        assert_eq!(annotations["io.podman.annotations.checkpoint.criu.version"], "40101");
        assert_eq!(annotations["io.snapfs.checkpoint.network"], "internal");
    }

    #[test]
    fn an_id_that_podman_would_refuse_becomes_another() {
        let id =
            |id: &str| facts(&container(id, "runc"), json!({}), Value::Null, |facts| facts.config_dump()["id"].clone());
        assert_eq!(id("c1"), "u".repeat(64));
        assert_eq!(id(&"0f".repeat(32)), "0f".repeat(32));
    }

    #[test]
    fn the_address_is_kept_for_podmans_of_all_versions() {
        let inspected = json!({
            "NetworkSettings": { "Networks": { "podman": { "IPAddress": "10.88.0.5", "MacAddress": "aa:bb:cc:dd:ee:ff" } } },
            "Mounts": [
                { "Type": "volume", "Name": "v1", "Source": "/v", "Destination": "/data", "Options": ["rbind"] },
                { "Type": "volume", "Name": "../up", "Source": "/v", "Destination": "/x" },
                { "Type": "bind", "Source": "/etc", "Destination": "/y" },
            ],
        });
        let config = facts(&container("c1", "podman"), json!({}), inspected, |facts| facts.config_dump());
        assert_eq!(config["newNetworks"]["podman"]["static_ips"], json!(["10.88.0.5"]));
        assert_eq!(config["orderedNetworks"][0]["name"], "podman");
        assert_eq!(config["createNetNS"], true);
        assert_eq!(config["userVolumes"], json!(["/data", "/x", "/y"]));
        assert_eq!(config["namedVolumes"], json!([{ "volumeName": "v1", "dest": "/data", "options": ["rbind"] }]));
        let none = json!({ "NetworkSettings": { "Networks": { "none": { "IPAddress": "" } } } });
        let config = facts(&container("c1", "podman"), json!({}), none, |facts| facts.config_dump());
        assert_eq!(config.get("createNetNS"), None);
    }

    #[test]
    fn the_spec_keeps_what_it_says_of_itself() {
        let spec = json!({ "annotations": { "io.container.manager": "cri-o" }, "x": 1 });
        let dump = facts(&container("c1", "podman"), spec, Value::Null, |facts| facts.spec_dump());
        assert_eq!(dump["annotations"]["io.container.manager"], "cri-o");
        assert_eq!(dump["annotations"]["io.kubernetes.cri-o.Annotations"], "{}");
        assert_eq!(dump["x"], 1);
    }

    #[test]
    fn shared_memory_is_a_mount_of_its_own_at_podmans_only() {
        let bind = json!({ "mounts": [{ "destination": "/dev/shm", "type": "bind", "source": "/s" }] });
        assert_eq!(shared_memory(&bind), Some("/s".into()));
        let tmpfs = json!({ "mounts": [{ "destination": "/dev/shm", "type": "tmpfs", "source": "shm" }] });
        assert_eq!(shared_memory(&tmpfs), None);
    }
}
