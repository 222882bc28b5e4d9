//! An image of the store as an OCI layout of its own, in a directory that a program is told to read.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::image::Image;
use crate::restore::Error;
use crate::store::{Lease, Store};
use crate::sys::ground::link_file;

/// Make the layout in `room`, an empty directory of the store: its blobs are the store's own, under second names.
pub(super) fn write(store: &Store, lease: &Lease, image: &Image, room: &Path) -> Result<(), Error> {
    let blobs = room.join("blobs/sha256");
    fs::create_dir_all(&blobs).map_err(Error::files("make", &blobs))?;
    for blob in image.blobs() {
        // Held before it is looked for, so that it stays.
        lease.adopt(&blob.digest)?.ok_or(Error::NoBlob(blob.digest))?;
        let path = blobs.join(blob.digest.hex());
        if !path.exists() {
            link_file(&store.open_blob(&blob.digest)?, &path).map_err(Error::files("link", &path))?;
        }
    }
    let put = |name: &str, text: String| {
        let path = room.join(name);
        fs::write(&path, text).map_err(Error::files("write", &path))
    };
    put("oci-layout", json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
    let manifest = json!({
        "mediaType": image.manifest.media_type, "digest": image.manifest.digest.to_string(), "size": image.manifest.size,
    });
    put("index.json", json!({ "schemaVersion": 2, "manifests": [manifest] }).to_string())
}
