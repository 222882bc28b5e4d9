//! The same checkpoint for containerd: an index that `ctr containers restore --rw --live` takes.
//!
//! containerd looks for its parts by media type (containerd, `core/images/mediatypes.go`), in this order, and applies CRIU's
//! images as a plain tar: so the memory is in it as it is, and this is made only if it is asked for.

use std::io::{Read, Write};

use serde_json::{Value, json};

use crate::checkpoint::archive::Members;
use crate::checkpoint::dump::Dump;
use crate::checkpoint::protobuf::Message;
use crate::checkpoint::{Error, Pack};
use crate::image::{self, Compression, LayerWriter, Unpublished};
use crate::oci::{Descriptor, MEDIA_TYPE_INDEX, annotation, canonical_json};

const CRIU: &str = "application/vnd.containerd.container.criu.checkpoint.criu.tar";
const CONFIG: &str = "application/vnd.containerd.container.checkpoint.config.v1+proto";
const OPTIONS: &str = "application/vnd.containerd.container.checkpoint.runtime.options+proto";
/// The types of the messages in the last two, as a protobuf `Any` names them.
const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";
const OPTIONS_TYPE: &str = "containerd.runc.v1.Options";
/// How much is copied at a time.
const CHUNK: usize = 1 << 20;

/// What goes into the index.
pub(super) struct Parts<'a> {
    /// The image for podman: first, because that is what others take who look for an image.
    pub(super) manifest: &'a Descriptor,
    pub(super) base: &'a Descriptor,
    pub(super) base_name: &'a str,
    pub(super) spec: &'a Value,
    /// The tar of what the container changed, with whiteouts.
    pub(super) files: Option<&'a Unpublished>,
    pub(super) architecture: &'a str,
}

/// Write the index and all that it names; the index's descriptor.
pub(super) fn write(pack: &Pack<'_>, dump: &Dump, parts: &Parts<'_>) -> Result<Descriptor, Error> {
    let mut criu = Members::new(pack.lease, Compression::None, pack.mtime, pack.progress)?;
    for name in dump.names()? {
        pack.add_as(&mut criu, dump, &name, &name)?;
    }
    let criu = Descriptor { media_type: CRIU.to_owned(), ..criu.finish()?.descriptor };
    let files = compressed(pack, parts.files)?;
    let put = |media_type: &str, bytes: &[u8]| {
        let (digest, size) = pack.lease.put(bytes)?;
        Ok::<_, Error>(Descriptor::new(media_type, digest, size))
    };
    let options = put(OPTIONS, &any(OPTIONS_TYPE, b""))?;
    let config = put(CONFIG, &any(SPEC_TYPE, spec_for_containerd(parts.spec).to_string().as_bytes()))?;
    let mut base = parts.base.clone();
    base.annotations.insert(annotation::CONTAINERD_NAME.to_owned(), parts.base_name.to_owned());
    let entries = [parts.manifest, &options, &files, &criu, &config, &base].map(|descriptor| {
        let mut entry = json!(descriptor);
        entry["platform"] = json!({ "architecture": parts.architecture, "os": "linux" });
        entry
    });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MEDIA_TYPE_INDEX,
        "manifests": entries,
        "annotations": {
            "io.containerd.checkpoint.runtime": "io.containerd.runc.v2",
            "io.containerd.checkpoint.snapshotter": "overlayfs",
            annotation::REF_NAME: parts.base_name,
        },
    });
    put(MEDIA_TYPE_INDEX, &canonical_json(&index).map_err(image::Error::from)?)
}

/// containerd takes a layer of this type and no other.
fn compressed(pack: &Pack<'_>, files: Option<&Unpublished>) -> Result<Descriptor, Error> {
    let mut writer = LayerWriter::new(pack.lease.blob()?, Compression::Gzip)?;
    let Some(files) = files else {
        writer.write_all(&[0; 1024]).map_err(image::Error::Write)?;
        return Ok(writer.finish()?.descriptor);
    };
    let mut tar = files.open()?;
    let mut chunk = vec![0; CHUNK];
    loop {
        pack.progress.check()?;
        match tar.read(&mut chunk).map_err(image::Error::ReadBack)? {
            0 => return Ok(writer.finish()?.descriptor),
            read => writer.write_all(&chunk[..read]).map_err(image::Error::Write)?,
        }
    }
}

/// containerd mounts the root in its own bundle, and has its own place for the cgroup.
fn spec_for_containerd(spec: &Value) -> Value {
    let mut spec = spec.clone();
    spec["root"]["path"] = json!("rootfs");
    if let Some(linux) = spec["linux"].as_object_mut() {
        linux.remove("cgroupsPath");
    }
    spec
}

/// A message of this type, as `google.protobuf.Any` wraps it.
fn any(type_url: &str, value: &[u8]) -> Vec<u8> {
    let mut any = Message::default();
    any.bytes(1, type_url.as_bytes());
    if !value.is_empty() {
        any.bytes(2, value);
    }
    any.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_decodes_has_its_form() {
        let options = any(OPTIONS_TYPE, b"");
        assert_eq!((options.len(), &options[..2]), (28, &[0x0a, 0x1a][..]));
        let config = any(SPEC_TYPE, b"{}");
        assert_eq!(&config[..2], [0x0a, 0x36]);
        assert!(config.ends_with(b"\x12\x02{}"));
    }

    #[test]
    fn the_spec_is_of_a_bundle_of_containerds() {
        let spec =
            json!({ "root": { "path": "/elsewhere", "readonly": true }, "linux": { "cgroupsPath": "/x", "a": 1 } });
        let expected = json!({ "root": { "path": "rootfs", "readonly": true }, "linux": { "a": 1 } });
        assert_eq!(spec_for_containerd(&spec), expected);
    }
}
