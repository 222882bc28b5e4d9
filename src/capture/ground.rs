//! [`Ground`]: what a capture stands on. That is the container's last snapshot, if it is known what that has captured; else
//! the container's base image.
//!
//! What a snapshot has captured is remembered in the store's cache: every file's attributes, and what of the files is in
//! the image. It is believed only if nothing happened that a look at the attributes would not show: see [`Header::reason`].

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::capture::{Base, Context, Error, Request, Squash, base, source};
use crate::changeset::{self, Earlier, Snapshot};
use crate::engine::{Container, RootFs};
use crate::image::{Compression, Image, Layer, Parent};
use crate::oci::{Descriptor, Digest, ImageName, MEDIA_TYPE_MANIFEST};
use crate::progress::Progress;
use crate::squash;
use crate::store::{Lease, Store};
use crate::sys::boot::{boot_id, clock_lead};

/// History entries of an image from which on a snapshot begins anew at the base image.
const MOST_HISTORY: usize = 1000;
/// So far the clock may seem set back because it was not read at one moment; a fraction of
/// [`SETTLED`](crate::changeset::SETTLED).
const CLOCK_ERROR: i128 = 5_000_000;

/// What the new layer is laid on.
#[derive(Debug)]
pub(super) struct Ground {
    pub(super) parent: Parent,
    /// The manifest of the snapshot that the parent is; none for a base image.
    pub(super) snapshot: Option<Digest>,
    pub(super) earlier: Option<(Snapshot, Earlier)>,
    pub(super) origin: Origin,
}

/// The container's base image, as far as it is needed without asking the engine again.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Origin {
    name: Option<String>,
    config: Value,
    /// For a bare bundle, what its lower directories were.
    fingerprint: Option<Digest>,
    /// How many layers it has, or what took their place: those of snapshots come after.
    pub(super) layers: usize,
    /// One layer took their place (`squash=all`).
    pub(super) is_merged: bool,
}

/// Under what circumstances a snapshot was captured.
#[derive(Debug, Serialize, Deserialize)]
struct Header {
    /// The kernel's id of the boot. After another one files may have lost what was not yet on disk, and no change time tells.
    boot: String,
    /// [`clock_lead`]
    lead: i64,
    /// How the image's layers are stored: who cannot read one of them cannot read the image.
    encoding: String,
    /// No file's time in the image is later than that.
    latest_mtime: Option<i64>,
    origin: Origin,
}

impl Header {
    /// Why the change times may not tell what has happened since, or the same files not give the same layer.
    fn reason(&self, now: &Header) -> Option<&'static str> {
        if self.boot != now.boot {
            return Some("the host was started anew since");
        }
        if i128::from(now.lead) + CLOCK_ERROR < i128::from(self.lead) {
            return Some("the host's clock was set back since");
        }
        if self.latest_mtime != now.latest_mtime {
            return Some("SOURCE_DATE_EPOCH was another then");
        }
        (self.encoding != now.encoding).then_some("its layers are stored with another compression")
    }

    fn now(context: &Context<'_>, compression: Compression, origin: Origin) -> Option<Header> {
        Some(Header {
            encoding: base::encoding(compression).to_owned(),
            boot: boot_id().ok()?,
            lead: i64::try_from(clock_lead()).ok()?,
            latest_mtime: context.clock.source_date_epoch().map(|at| at.as_second()),
            origin,
        })
    }
}

/// Why there is no snapshot to stand on.
type Reason = &'static str;

impl Ground {
    /// The container's base image, brought into the store.
    pub(super) fn image(
        context: &Context<'_>,
        lease: &Lease,
        container: &Container,
        request: Request<'_>,
        progress: &Progress,
    ) -> Result<Ground, Error> {
        let (parent, fingerprint) = base::bring(context, lease, container, request.compression, progress)?;
        let origin = Origin {
            name: parent.name.clone(),
            config: parent.config.clone(),
            fingerprint,
            layers: parent.layers.len(),
            is_merged: false,
        };
        Ok(Ground { parent, snapshot: None, earlier: None, origin })
    }

    /// The container's last snapshot, if the request allows for it and there is one that can be trusted.
    ///
    /// Errors: the request names an image that is not that.
    pub(super) fn last(
        context: &Context<'_>,
        lease: &Lease,
        container: &Container,
        request: Request<'_>,
        progress: &Progress,
    ) -> Result<Option<Ground>, Error> {
        let named = match request.base {
            Base::Image => return Ok(None),
            Base::Auto => None,
            Base::Named(name) => Some(name),
        };
        let record = named.map(|name| context.store.record(name).ok_or_else(|| Error::NoBase(name.clone())));
        let wanted = record.transpose()?.map(|record| record.manifest.digest);
        if !request.volumes.is_empty() {
            return none(context.store, named, None, "volumes=include asks for layers that no snapshot can stand on");
        }
        let fact = key(container).and_then(|key| context.store.recall_about(&key));
        let Some((digest, fact)) = fact else {
            return none(context.store, named, None, "it is not known what its last snapshot has captured");
        };
        if wanted.is_some_and(|wanted| wanted != digest) {
            return none(context.store, named, Some(digest), "it is not this container's last snapshot");
        }
        match Ground::of(context, lease, container, request, (digest, &fact), progress)? {
            Ok(ground) => Ok(Some(ground)),
            Err(reason) => none(context.store, named, None, reason),
        }
    }

    fn of(
        context: &Context<'_>,
        lease: &Lease,
        container: &Container,
        request: Request<'_>,
        (digest, fact): (Digest, &[u8]),
        progress: &Progress,
    ) -> Result<Result<Ground, Reason>, Error> {
        let unreadable = "what was remembered of it is of another version of snapfs";
        let Some(line) = fact.iter().position(|byte| *byte == b'\n') else { return Ok(Err(unreadable)) };
        let Ok(header) = serde_json::from_slice::<Header>(&fact[..line]) else { return Ok(Err(unreadable)) };
        let Some(now) = Header::now(context, request.compression, header.origin.clone()) else {
            return Ok(Err("the clock cannot be read"));
        };
        if let Some(reason) = header.reason(&now) {
            return Ok(Err(reason));
        }
        let origin = header.origin;
        if origin.is_merged && request.squash == Squash::Snapshots {
            return Ok(Err("its lowest layer is not one of the container's image"));
        }
        let Some(mut parent) = stored(context.store, lease, digest)? else {
            return Ok(Err("it is no longer complete in the store"));
        };
        let history = parent.config["history"].as_array().map_or(0, Vec::len);
        let is_deep = parent.layers.len() >= request.most_layers && request.squash == Squash::None;
        // Two more than the base image has: the snapshots as one, and the new one.
        if (is_deep && origin.layers + 2 > request.most_layers) || history >= MOST_HISTORY {
            return Ok(Err("it has as many layers as an image should have"));
        }
        if let (RootFs::Overlay(overlay), Some(fingerprint)) = (&container.root, origin.fingerprint)
            && changeset::fingerprint(&overlay.lower, progress)? != fingerprint
        {
            return Ok(Err("the directories below have changed since"));
        }
        let (source, mounts) = (source::of(container)?, source::mount_points(container)?);
        let Some(earlier) = Snapshot::recall(&fact[line + 1..], &source, &mounts)? else {
            return Ok(Err("the container's directories or mounts are others now"));
        };
        // All but the layers and the history is the base image's: what an earlier snapshot said of itself is not of this one.
        let history = parent.config["history"].take();
        parent.name.clone_from(&origin.name);
        parent.config.clone_from(&origin.config);
        let Some(config) = parent.config.as_object_mut() else { return Ok(Err(unreadable)) };
        config.insert("history".to_owned(), history);
        if is_deep {
            let (layers, below) = (&parent.layers, origin.layers);
            let one = squash::squash(context.store, lease, layers, below, request.compression, progress)?;
            parent = parent.merged(below, one)?;
            progress.enter("base");
        }
        Ok(Ok(Ground { parent, snapshot: Some(digest), earlier: Some(earlier), origin }))
    }
}

/// An image of the store with all its blobs held, or none if it is not whole.
fn stored(store: &Store, lease: &Lease, digest: Digest) -> Result<Option<Parent>, Error> {
    let Some(size) = lease.adopt(&digest)? else { return Ok(None) };
    let manifest = Descriptor::new(MEDIA_TYPE_MANIFEST, digest, size);
    let Ok(image) = Image::open(store, &manifest) else { return Ok(None) };
    for blob in image.blobs() {
        if lease.adopt(&blob.digest)? != Some(blob.size) {
            return Ok(None);
        }
    }
    let Ok(config) = serde_json::from_slice::<Value>(&image.config_bytes) else { return Ok(None) };
    let layers = image.layers.into_iter().map(|layer| Layer { descriptor: layer.descriptor, diff_id: layer.diff_id });
    Ok(config.is_object().then(|| Parent { name: None, config, layers: layers.collect() }))
}

/// There is no snapshot to stand on. That is an error only if the user named one; then it says what can be named.
fn none(
    store: &Store,
    named: Option<&ImageName>,
    last: Option<Digest>,
    reason: Reason,
) -> Result<Option<Ground>, Error> {
    let Some(name) = named else {
        log::debug!("a snapshot stands on the base image: {reason}");
        return Ok(None);
    };
    let names = store.names();
    let good = names.iter().find(|(_, record)| Some(record.manifest.digest) == last).map(|(name, _)| name.clone());
    Err(Error::Base { name: name.clone(), reason, good })
}

/// Under what a container's last snapshot is remembered; none for one that cannot be told from another of its id.
fn key(container: &Container) -> Option<String> {
    let created = container.created?;
    let text = format!("{}\0{}\0{}", container.engine, container.id, created.as_nanosecond());
    Some(Digest::of(text.as_bytes()).hex())
}

/// What a capture has captured, for the next one of the container.
#[derive(Debug)]
pub struct Memory {
    key: String,
    bytes: Vec<u8>,
}

impl Memory {
    /// Of files that were remembered as `files`, by a capture at whose beginning the clock had that [lead](clock_lead).
    pub(super) fn of(
        context: &Context<'_>,
        container: &Container,
        compression: Compression,
        origin: Origin,
        (lead, files): (i128, &[u8]),
    ) -> Option<Memory> {
        let mut header = Header::now(context, compression, origin)?;
        // A clock that was set back since then is one that was set back since the files were looked at.
        header.lead = header.lead.max(lead.try_into().ok()?);
        let mut bytes = serde_json::to_vec(&header).ok()?;
        bytes.push(b'\n');
        bytes.extend_from_slice(files);
        Some(Memory { key: key(container)?, bytes })
    }

    /// Keep it, now that the captured layer is in the image whose manifest is `manifest`, on what it was captured for.
    /// Without it the next capture reads everything.
    pub fn keep(&self, store: &Store, manifest: &Digest) {
        if let Err(error) = store.remember_about(&self.key, manifest, &self.bytes) {
            log::warn!("what was captured is not remembered, and will be read again: {error}");
        }
    }
}

/// Forget what is remembered of containers that are gone. `containers` lists those that are there, and none if
/// that is not known; it is called when it is known what is remembered.
pub fn forget_gone(store: &Store, containers: impl FnOnce() -> Option<Vec<Arc<Container>>>) {
    let known = store.remembered_about();
    if known.is_empty() {
        return;
    }
    let Some(containers) = containers() else { return };
    let kept: HashSet<String> = containers.iter().filter_map(|container| key(container)).collect();
    known.iter().filter(|known| !kept.contains(*known)).for_each(|gone| store.forget_about(gone));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_boot_a_clock_set_back_and_another_epoch_are_reasons() {
        let header = |boot: &str, lead, latest_mtime| {
            let origin = Origin { name: None, config: Value::Null, fingerprint: None, layers: 0, is_merged: false };
            Header { boot: boot.to_owned(), lead, encoding: "zstd".to_owned(), latest_mtime, origin }
        };
        let then = header("a", 1_000_000_000_000, None);
        assert_eq!(then.reason(&header("a", 1_000_000_000_000, None)), None);
        assert_eq!(then.reason(&header("a", 999_999_000_000, None)), None, "as exact as two clocks are read");
        assert_eq!(then.reason(&header("a", 7_000_000_000_000, None)), None, "set forward: no time comes twice");
        assert!(then.reason(&header("a", 999_990_000_000, None)).unwrap().contains("clock"));
        assert!(then.reason(&header("b", 1_000_000_000_000, None)).unwrap().contains("started anew"));
        assert!(then.reason(&header("a", 1_000_000_000_000, Some(7))).unwrap().contains("SOURCE_DATE_EPOCH"));
        let other = Header { encoding: "zstd-chunked".to_owned(), ..header("a", 1_000_000_000_000, None) };
        assert!(then.reason(&other).unwrap().contains("compression"));
    }
}
