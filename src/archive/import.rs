//! An archive as it comes in → images with names, all of them or none.

use std::collections::BTreeMap;
use std::io::Read;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::json;

use crate::archive::Error;
use crate::archive::intake::{Blob, CHUNK, Intake, Slots, Taken};
use crate::archive::plan::{Content, DOCKER_MANIFEST, INDEX, OCI_LAYOUT, Planned, Source, check_config};
use crate::archive::request::{Peek, Request};
use crate::archive::tar::{Entries, Entry, Kind};
use crate::image::{Encoding, Image};
use crate::oci::{Descriptor, DiffId, Digest, ImageName, MEDIA_TYPE_CONFIG, MEDIA_TYPE_MANIFEST, canonical_json};
use crate::progress::Progress;
use crate::store::{DOCUMENT_LIMIT, Lease, Record, Replace, Store};

/// The longest file that is passed over; archives carry some of a few bytes.
const LONGEST_SKIPPED: u64 = 16 << 20;
/// What an import leaves free.
const RESERVE: u64 = 16 << 20;

/// One name that an archive's image was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The name.
    pub name: ImageName,
    /// The image's manifest.
    pub manifest: Digest,
}

/// Take the archive that `stream` gives: an OCI archive, or one of docker's, plain or compressed with gzip or zstd.
///
/// `complete` is called when the archive's end was seen and all of it is as it should be; then the stream may end, and
/// only then. Names are given after that: until the stream has ended nothing can be seen of the images.
///
/// Errors: the archive is none, damaged or two-faced; a name is taken; the store is full or fails; it was cancelled. No
/// name is given then, and what was written is collected.
pub fn import(
    store: &Store,
    now: Timestamp,
    stream: impl Read + Send,
    complete: impl FnOnce(),
    progress: &Progress,
) -> Result<Vec<Imported>, Error> {
    progress.enter("reading");
    let mut stream = Peek::new(stream);
    let request = Request::read(&mut stream)?;
    let encoding = Encoding::of_bytes(stream.peek(4).map_err(Error::of_stream)?);
    let mut entries = Entries::new(encoding.decode(stream).map_err(Error::Stream)?);
    let lease = store.lease()?;
    let content = take(store, &lease, &mut entries, progress)?;
    progress.enter("checking");
    let named = check_all(store, &lease, &content, &request, now, progress)?;
    complete();
    entries.drain()?;
    progress.enter("naming");
    progress.check()?;
    give_names(store, &lease, &named, request.replace)?;
    Ok(named.into_iter().map(|(name, record)| Imported { name, manifest: record.manifest.digest }).collect())
}

/// Every image compared with the bytes, and the names that they are to have.
fn check_all(
    store: &Store,
    lease: &Lease,
    content: &Content,
    request: &Request,
    now: Timestamp,
    progress: &Progress,
) -> Result<Vec<(ImageName, Record)>, Error> {
    let read = |descriptor: &Descriptor| Ok(store.read_document(descriptor, DOCUMENT_LIMIT)?);
    let plan = content.plan(&read)?;
    plan.notes.iter().for_each(|note| progress.log(note));
    if request.name.is_some() && plan.images.len() > 1 {
        return Err(Error::Several { count: plan.images.len() });
    }
    let mut named = Vec::new();
    for image in &plan.images {
        progress.check()?;
        let manifest = check(store, lease, content, image)?;
        let kind = Some(Image::open(store, &manifest)?.kind().to_owned());
        let names: Vec<ImageName> = match &request.name {
            Some(name) => vec![name.clone()],
            None if image.names.is_empty() => vec![own_name(&manifest.digest)?],
            None => image.names.iter().cloned().collect(),
        };
        let record = Record { kind, ..Record::new(manifest, now) };
        named.extend(names.into_iter().map(|name| (name, record.clone())));
    }
    require_free(store, &named, request.replace)?;
    Ok(named)
}

/// Every entry, into the store or into memory.
fn take<R: Read>(
    store: &Store,
    lease: &Lease,
    entries: &mut Entries<R>,
    progress: &Progress,
) -> Result<Content, Error> {
    let mut content = Content::default();
    let mut blobs: BTreeMap<String, Taken> = BTreeMap::new();
    let slots = Slots::new();
    let mut buffer = vec![0; CHUNK];
    while let Some(Entry { path, kind, size }) = entries.next()? {
        progress.check()?;
        let is_known = content.documents.contains_key(&path) || blobs.contains_key(&path);
        if kind != Kind::Directory && (is_known || content.links.contains_key(&path)) {
            return Err(Error::malformed(format!("it holds {path:?} twice")));
        }
        match kind {
            Kind::Directory => {}
            Kind::Symlink(target) if path.ends_with("/layer.tar") => {
                content.links.insert(path, target);
            }
            Kind::Symlink(_) => return Err(Error::malformed(format!("{path:?} is a link"))),
            Kind::File => match role(&path) {
                Role::Document => {
                    content.documents.insert(path, document(entries, size)?);
                }
                Role::Blob(expected) => {
                    require_space(store, &path, size)?;
                    let blob = take_blob(lease, &slots, entries, size, &mut buffer, progress)?;
                    if let Some(expected) = expected.filter(|expected| *expected != blob.digest) {
                        return Err(Error::WrongDigest { path, expected, found: blob.digest });
                    }
                    blobs.insert(path, blob);
                    progress.add_file();
                }
                Role::Nothing if size > LONGEST_SKIPPED => {
                    let what = format!("{size} bytes in {path:?}");
                    return Err(Error::Limit { what });
                }
                Role::Nothing => {}
            },
        }
    }
    progress.enter("decompressing");
    for (path, blob) in blobs {
        progress.check()?;
        content.blobs.insert(path, blob.settle());
    }
    Ok(content)
}

/// What a file of an archive is by its path.
enum Role {
    /// Says what the archive holds.
    Document,
    /// Something that a document names; with the digest that its name promises.
    Blob(Option<Digest>),
    /// `repositories`, `VERSION`: for readers of ten years ago.
    Nothing,
}

fn role(path: &str) -> Role {
    let digest = |hex: &str| format!("sha256:{hex}").parse().ok();
    if [OCI_LAYOUT, INDEX, DOCKER_MANIFEST].contains(&path) {
        return Role::Document;
    }
    if let Some(hex) = path.strip_prefix("blobs/sha256/") {
        return digest(hex).map_or(Role::Nothing, |digest| Role::Blob(Some(digest)));
    }
    match path.strip_suffix(".json") {
        // docker's and podman's configs are called by their digest.
        Some(stem) if !stem.contains('/') => Role::Blob(digest(stem)),
        _ if path.ends_with(".tar") => Role::Blob(None),
        _ => Role::Nothing,
    }
}

fn require_space(store: &Store, path: &str, size: u64) -> Result<(), Error> {
    let free = store.space()?.free;
    if size.saturating_add(RESERVE) > free {
        return Err(Error::NoSpace { path: path.to_owned(), size, free });
    }
    Ok(())
}

fn document<R: Read>(entries: &mut Entries<R>, size: u64) -> Result<Vec<u8>, Error> {
    if size > DOCUMENT_LIMIT {
        return Err(Error::Limit { what: format!("a document of {size} bytes") });
    }
    let mut bytes = vec![0; size as usize];
    let mut filled = 0;
    while filled < bytes.len() {
        filled += entries.read(&mut bytes[filled..])?;
    }
    Ok(bytes)
}

fn take_blob<R: Read>(
    lease: &Lease,
    slots: &Arc<Slots>,
    entries: &mut Entries<R>,
    size: u64,
    buffer: &mut [u8],
    progress: &Progress,
) -> Result<Taken, Error> {
    let mut intake: Option<Intake> = None;
    loop {
        progress.check()?;
        let mut filled = 0;
        while filled < buffer.len() {
            match entries.read(&mut buffer[filled..])? {
                0 => break,
                count => filled += count,
            }
        }
        let chunk = &buffer[..filled];
        let mut blob = match intake {
            Some(blob) => blob,
            None => Intake::begin(lease, slots, chunk, size)?,
        };
        progress.add_bytes(filled as u64);
        if chunk.is_empty() || !blob.add(chunk) {
            return blob.finish();
        }
        intake = Some(blob);
    }
}

/// Compare an image with the bytes of the archive; returns its manifest, which is made where docker had none.
fn check(store: &Store, lease: &Lease, content: &Content, image: &Planned) -> Result<Descriptor, Error> {
    let blobs = content.by_digest();
    let manifest = match &image.source {
        Source::Manifest(descriptor) => {
            let size = blobs.get(&descriptor.digest).map(|blob| blob.size);
            if size != Some(descriptor.size) {
                return Err(missing("manifest", &descriptor.digest));
            }
            descriptor.clone()
        }
        Source::Docker { config, layers } => {
            let config = describe(MEDIA_TYPE_CONFIG, config);
            let layers: Vec<_> = layers.iter().map(|layer| describe(layer.encoding.media_type(), layer)).collect();
            let manifest =
                json!({ "schemaVersion": 2, "mediaType": MEDIA_TYPE_MANIFEST, "config": config, "layers": layers });
            let bytes = canonical_json(&manifest).map_err(|error| Error::Image(error.into()))?;
            let (digest, size) = lease.put(&bytes)?;
            Descriptor::new(MEDIA_TYPE_MANIFEST, digest, size)
        }
    };
    let image = Image::open(store, &manifest)?;
    if image.config.media_type != MEDIA_TYPE_CONFIG {
        let what = format!("the archive holds an artifact ({:?}) and no image", image.config.media_type);
        return Err(Error::Unsupported { what, remedy: "snapfs takes images" });
    }
    check_config(&image.config_bytes)?;
    if blobs.get(&image.config.digest).map(|blob| blob.size) != Some(image.config.size) {
        return Err(missing("config", &image.config.digest));
    }
    for layer in &image.layers {
        let Descriptor { media_type, digest, size, .. } = &layer.descriptor;
        let blob = blobs.get(digest).filter(|blob| blob.size == *size).ok_or_else(|| missing("layer", digest))?;
        check_layer(media_type, blob, &layer.diff_id)?;
    }
    Ok(manifest)
}

fn check_layer(media_type: &str, blob: &Blob, diff_id: &DiffId) -> Result<(), Error> {
    let wrong = |reason: String| Err(Error::malformed(format!("its layer {} {reason}", blob.digest)));
    match Encoding::of_media_type(media_type) {
        Some(encoding) if encoding != blob.encoding => {
            return wrong(format!("is {} by its bytes, and {media_type} by its manifest", blob.encoding.media_type()));
        }
        Some(_) => {}
        None => {
            let what = format!("the archive's image has a layer of the type {media_type:?}");
            return Err(Error::Unsupported { what, remedy: "a layer is a tar, plain or compressed with gzip or zstd" });
        }
    }
    match &blob.diff_id {
        Ok(found) if found == diff_id => Ok(()),
        Ok(found) => wrong(format!("unpacks to {found}, and its config says {diff_id}")),
        Err(reason) => wrong(format!("cannot be decompressed: {reason}")),
    }
}

fn missing(what: &str, digest: &Digest) -> Error {
    Error::malformed(format!("the {what} {digest} is missing, or has another length than it says"))
}

fn describe(media_type: &str, blob: &Blob) -> Descriptor {
    Descriptor::new(media_type, blob.digest, blob.size)
}

/// An image that came without a name is called by the first twelve digits of its digest, as engines show it.
fn own_name(manifest: &Digest) -> Result<ImageName, Error> {
    Ok(manifest.hex()[..12].parse()?)
}

/// Whether the names can be given: a name that an archive brings takes none from another image.
fn require_free(store: &Store, named: &[(ImageName, Record)], replace: bool) -> Result<(), Error> {
    for (name, record) in named {
        match store.record(name) {
            Some(found) if found.manifest != record.manifest && !replace => {
                return Err(Error::Exists { name: name.clone() });
            }
            Some(_) => {}
            None => store.check_free(name, Replace::Refused)?,
        }
    }
    Ok(())
}

/// All names or none, but for a daemon that dies between two of them: then each name that is there has its whole image.
/// What stands for the same image already stays as it is.
fn give_names(store: &Store, lease: &Lease, named: &[(ImageName, Record)], replace: bool) -> Result<(), Error> {
    require_free(store, named, replace)?;
    let replace = if replace { Replace::Allowed } else { Replace::Refused };
    let before: Vec<Option<Arc<Record>>> = named.iter().map(|(name, _)| store.record(name)).collect();
    for (at, ((name, record), old)) in named.iter().zip(&before).enumerate() {
        if old.as_ref().is_some_and(|old| old.manifest == record.manifest) {
            continue;
        }
        if let Err(error) = store.tag(lease, name, record.clone(), replace) {
            for ((name, record), old) in named[..at].iter().zip(&before) {
                take_back(store, lease, name, record, old.as_deref());
            }
            return Err(match error {
                crate::store::Error::NameExists { name } => Error::Exists { name },
                error => error.into(),
            });
        }
    }
    Ok(())
}

/// The name stands for what it stood for before, unless somebody has moved it since.
fn take_back(store: &Store, lease: &Lease, name: &ImageName, record: &Record, old: Option<&Record>) {
    let is_ours = store.record(name).is_some_and(|now| now.manifest == record.manifest);
    // What fails here is the disk, which the error that brought us here tells of.
    let _ = match old {
        _ if !is_ours => Ok(()),
        Some(old) if old.manifest == record.manifest => Ok(()),
        Some(old) => store.tag(lease, name, old.clone(), Replace::Allowed).map(drop),
        None => store.remove(name),
    };
}
