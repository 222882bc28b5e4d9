//! `oci.tar`: an image as one tar that is an OCI image layout, and that `docker load` and `podman load` read as well.
//!
//! ```text
//! oci-layout  index.json        the layout (image-spec image-layout.md), with the image's name in its index
//! manifest.json                 docker's words for the same blobs: config, layers, RepoTags
//! blobs/sha256/<hex>            manifest, config and layers, each once
//! ```
//!
//! The order, the times and the owners are fixed: one image under one name always gives the same bytes.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use serde_json::json;

use crate::archive::Error;
use crate::archive::tar::{BLOCK, header, padding};
use crate::image::Image;
use crate::oci::{Digest, ImageName, MEDIA_TYPE_INDEX, annotation, canonical_json};
use crate::store::Store;

/// How many blobs are kept open for one archive: no engine runs an image of more layers.
const MOST_BLOBS: usize = 600;

/// An archive's pieces, in order; pure.
#[derive(Debug, Clone)]
pub struct Layout {
    pieces: Vec<Piece>,
    size: u64,
}

#[derive(Debug, Clone)]
enum Piece {
    Bytes(Vec<u8>),
    Blob(Digest, u64),
}

impl Layout {
    /// The archive of `image` under `name`.
    pub fn of(image: &Image, name: &ImageName) -> Result<Layout, Error> {
        let mut layout = Layout { pieces: Vec::new(), size: 0 };
        let encode = |value| canonical_json(&value).map_err(|error| Error::Image(error.into()));
        let index = json!({
            "schemaVersion": 2,
            "mediaType": MEDIA_TYPE_INDEX,
            "manifests": [{
                "mediaType": image.manifest.media_type,
                "digest": image.manifest.digest,
                "size": image.manifest.size,
                "annotations": {
                    annotation::REF_NAME: name.tag().unwrap_or("latest"),
                    annotation::CONTAINERD_NAME: name,
                },
            }],
        });
        let layers: Vec<String> = image.layers.iter().map(|layer| blob_path(&layer.descriptor.digest)).collect();
        // docker refuses a name without a tag.
        let tagged = if name.tag().is_some() { name.to_string() } else { format!("{name}:latest") };
        let docker = json!([{ "Config": blob_path(&image.config.digest), "RepoTags": [tagged], "Layers": layers }]);
        layout.add_file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
        layout.add_file("index.json", encode(index)?);
        layout.add_file("manifest.json", encode(docker)?);
        let mut seen = BTreeSet::new();
        for blob in image.blobs().filter(|blob| seen.insert(blob.digest)) {
            layout.add_bytes(header(&blob_path(&blob.digest), blob.size).to_vec());
            layout.size += blob.size;
            layout.pieces.push(Piece::Blob(blob.digest, blob.size));
            layout.add_bytes(vec![0; padding(blob.size) as usize]);
        }
        layout.add_bytes(vec![0; 2 * BLOCK]);
        Ok(layout)
    }

    /// The archive's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    fn add_file(&mut self, name: &str, bytes: Vec<u8>) {
        let size = bytes.len() as u64;
        self.add_bytes([&header(name, size)[..], &bytes, &vec![0; padding(size) as usize]].concat());
    }

    fn add_bytes(&mut self, bytes: Vec<u8>) {
        self.size += bytes.len() as u64;
        match self.pieces.last_mut() {
            Some(Piece::Bytes(last)) => last.extend(bytes),
            _ => self.pieces.push(Piece::Bytes(bytes)),
        }
    }
}

fn blob_path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// An archive to read, at any offset and by any number of threads. It holds its blobs open: what is deleted and
/// collected meanwhile can be read to its end.
#[derive(Debug)]
pub struct Archive {
    /// In order of their offsets, without gaps.
    segments: Vec<Segment>,
    size: u64,
}

#[derive(Debug)]
struct Segment {
    offset: u64,
    length: u64,
    bytes: Bytes,
}

#[derive(Debug)]
enum Bytes {
    Made(Vec<u8>),
    Stored(Digest, File),
}

impl Archive {
    /// Open every blob of a layout.
    ///
    /// Errors: a blob is not there, or has another length than the image says.
    pub fn open(store: &Store, layout: Layout) -> Result<Archive, Error> {
        let count = layout.pieces.iter().filter(|piece| matches!(piece, Piece::Blob(..))).count();
        if count > MOST_BLOBS {
            return Err(Error::ManyBlobs { count, limit: MOST_BLOBS });
        }
        let mut segments = Vec::with_capacity(layout.pieces.len());
        let mut offset = 0;
        for piece in layout.pieces {
            let (length, bytes) = match piece {
                Piece::Bytes(bytes) => (bytes.len() as u64, Bytes::Made(bytes)),
                Piece::Blob(digest, size) => {
                    let found = store.blob_size(&digest)?;
                    if found != size {
                        let reason = format!("the blob {digest} has {found} bytes, and its image says {size}");
                        return Err(Error::malformed(reason));
                    }
                    (size, Bytes::Stored(digest, store.open_blob(&digest)?))
                }
            };
            segments.push(Segment { offset, length, bytes });
            offset += length;
        }
        Ok(Archive { segments, size: layout.size })
    }

    /// The archive's length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fill `buffer` with the bytes at `offset`; less only at the end.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let first = self.segments.partition_point(|segment| segment.offset + segment.length <= offset);
        let mut filled = 0;
        for segment in &self.segments[first..] {
            if filled == buffer.len() {
                break;
            }
            let within = offset + filled as u64 - segment.offset;
            let left = segment.length - within;
            let count = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len() - filled);
            let part = &mut buffer[filled..filled + count];
            match &segment.bytes {
                Bytes::Made(bytes) => part.copy_from_slice(&bytes[within as usize..within as usize + count]),
                Bytes::Stored(digest, file) => file
                    .read_exact_at(part, within)
                    .map_err(|error| io::Error::new(error.kind(), format!("the blob {digest}: {error}")))?,
            }
            filled += count;
        }
        Ok(filled)
    }
}
