//! What can be asked of an image, and what can be done to its name.

use std::sync::{Arc, Weak};

use jiff::Timestamp;
use oci_spec::image as spec;

use crate::api::{Archive, Coming, Error, ErrorKind, Image, ImageName, Snapfs};
use crate::archive::Layout;
use crate::oci::{Descriptor, Digest, InvalidName, MEDIA_TYPE_INDEX, annotation, canonical_json};
use crate::store::{self, Record, Replace, Space};

/// An image under a name, as it was when it was looked up: whoever holds the key keeps seeing this image although the
/// name has moved on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageKey {
    /// The name it was found under.
    pub name: ImageName,
    /// Its manifest.
    pub manifest: Descriptor,
}

impl ImageKey {
    /// Under which last words are kept: no container has it, whatever the image is called.
    pub fn subject(&self) -> String {
        format!("images/{}", self.name)
    }
}

/// One entry of a directory of images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageEntry {
    /// An image.
    Image(ImageKey),
    /// More images below: names with `/` nest.
    Directory,
}

/// How many parsed manifests are kept; one costs a few KiB.
const KEPT_IMAGES: usize = 1024;

impl Snapfs {
    /// One level of the images: `prefix` is empty or names a directory of images.
    pub fn image_entries(&self, prefix: &str) -> Vec<(String, ImageEntry)> {
        let prefix = self.full_path(prefix);
        let entries = self.store.list(&prefix).into_iter();
        entries
            .filter_map(|(component, entry)| {
                let path = if prefix.is_empty() { component.clone() } else { format!("{prefix}/{component}") };
                Some((component, image_entry(&path, entry)?))
            })
            .collect()
    }

    /// What `name` is.
    pub fn image_entry_at(&self, name: &str) -> Option<ImageEntry> {
        let path = self.full_path(name);
        // Asked for each entry of a large directory: one look and nothing twice.
        if let Ok(name) = path.parse()
            && let Some(record) = self.store.record(&name)
        {
            return Some(ImageEntry::Image(ImageKey { name, manifest: record.manifest.clone() }));
        }
        self.store.has_children(&path).then_some(ImageEntry::Directory)
    }

    /// The image itself.
    pub fn image(&self, key: &ImageKey) -> Result<Arc<Image>, Error> {
        if let Some(image) = self.images.lock().get(&key.manifest.digest) {
            return Ok(Arc::clone(image));
        }
        let image = Image::open(&self.store, &key.manifest).map_err(|error| self.unless_gone(key, error.into()))?;
        let image = Arc::new(image);
        let mut images = self.images.lock();
        if images.len() >= KEPT_IMAGES {
            images.clear();
        }
        images.insert(key.manifest.digest, Arc::clone(&image));
        Ok(image)
    }

    /// The bytes of its layers when they are unpacked. Reads each layer through, once and for all, if nothing else tells.
    pub fn unpacked_size(&self, key: &ImageKey) -> Result<u64, Error> {
        let image = self.image(key)?;
        image.layers.iter().try_fold(0, |sum, layer| {
            let size = crate::image::unpacked_size(&self.store, &layer.descriptor);
            Ok(sum + size.map_err(|error| self.unless_gone(key, error.into()))?)
        })
    }

    /// The bytes that only this name needs: what removing it would free.
    pub fn unique_size(&self, key: &ImageKey) -> Result<u64, Error> {
        Ok(self.store.unique_size(&key.manifest)?)
    }

    /// `index.json` of the image as a layout of its own (image-spec `image-layout.md`): one manifest, named by its tag.
    pub fn index_json(&self, key: &ImageKey) -> Result<Vec<u8>, Error> {
        if key.manifest.media_type == MEDIA_TYPE_INDEX {
            return self.containerd_json(key);
        }
        let internal = |error: &dyn std::fmt::Display| Error::new(ErrorKind::Io, format!("index.json: {error}"));
        let digest: spec::Digest = key.manifest.digest.to_string().parse().map_err(|error| internal(&error))?;
        let tag = key.name.tag().unwrap_or("latest").to_owned();
        let mut descriptor = spec::Descriptor::new(spec::MediaType::ImageManifest, key.manifest.size, digest);
        descriptor.set_annotations(Some([(annotation::REF_NAME.to_owned(), tag)].into()));
        let index = spec::ImageIndexBuilder::default()
            .schema_version(spec::SCHEMA_VERSION)
            .media_type(spec::MediaType::ImageIndex)
            .manifests(vec![descriptor])
            .build()
            .map_err(|error| internal(&error))?;
        canonical_json(&index).map_err(|error| internal(&error))
    }

    /// The length of the image as an archive, in bytes.
    pub fn archive_size(&self, key: &ImageKey) -> Result<u64, Error> {
        Ok(Layout::of(&*self.image(key)?, &key.name)?.size())
    }

    /// The image as an archive; it can be read to its end for as long as it is held, whatever is deleted.
    pub fn open_archive(&self, key: &ImageKey) -> Result<Arc<Archive>, Error> {
        if let Some(open) = self.archives.lock().get(key).and_then(Weak::upgrade) {
            return Ok(open);
        }
        let layout = Layout::of(&*self.image(key)?, &key.name)?;
        let opened = Archive::open(&self.store, layout).map_err(|error| self.unless_gone(key, error.into()))?;
        let archive = Arc::new(opened);
        let mut archives = self.archives.lock();
        archives.retain(|_, archive| archive.strong_count() > 0);
        archives.insert(key.clone(), Arc::downgrade(&archive));
        Ok(archive)
    }

    /// Open a blob of an image for reading; its bytes stay readable for as long as the file is open, whatever is deleted.
    pub fn open_blob(&self, key: &ImageKey, digest: &Digest) -> Result<std::fs::File, Error> {
        self.store.open_blob(digest).map_err(|error| self.unless_gone(key, error.into()))
    }

    /// `error`, unless the name stands for this image no more: then its blobs are missing because nobody needs them.
    pub(super) fn unless_gone(&self, key: &ImageKey, error: Error) -> Error {
        let is_there = self.store.record(&key.name).is_some_and(|record| record.manifest == key.manifest);
        if is_there {
            return error;
        }
        let gone = format!("the image that {} was is deleted; look the name up again", key.name);
        Error::new(ErrorKind::Stale, gone)
    }

    /// The image that a checkpoint stands on, and that its name keeps.
    pub fn base_of(&self, key: &ImageKey) -> Option<ImageKey> {
        let record = self.store.record(&key.name).filter(|record| record.manifest == key.manifest)?;
        Some(ImageKey { name: key.name.clone(), manifest: record.base.clone()? })
    }

    /// When the name was last set.
    pub fn named_at(&self, name: &ImageName) -> Option<Timestamp> {
        self.store.record(name).map(|record| record.created)
    }

    /// Delete the name; blobs that nobody refers to are collected afterwards.
    pub fn remove_image(self: &Arc<Self>, key: ImageKey, uid: u32) -> Result<Arc<Coming<()>>, Error> {
        self.beside(&self.naming, move |this, _| {
            let removed = this.store.remove(&key.name).map_err(Error::from);
            match &removed {
                Ok(()) => this.start_collection(),
                Err(error) => this.record_refusal(&key.subject(), "rmdir", uid, error),
            }
            removed
        })
    }

    /// Give the image another name below `images/`, replacing an image of that name only if `replace`.
    pub fn rename_image(
        self: &Arc<Self>,
        key: ImageKey,
        to: ImageName,
        replace: bool,
        uid: u32,
    ) -> Result<Arc<Coming<()>>, Error> {
        let to = self.full_name(&to)?;
        self.beside(&self.naming, move |this, _| {
            let replace = if replace { Replace::Allowed } else { Replace::Refused };
            let renamed = this.store.rename(&key.name, &to, replace).map_err(Error::from);
            match &renamed {
                Ok(()) => this.start_collection(),
                Err(error) => this.record_refusal(&key.subject(), &format!("mv {to}"), uid, error),
            }
            renamed
        })
    }

    /// One more name for the same image.
    pub fn tag_image(self: &Arc<Self>, key: ImageKey, line: String, uid: u32) -> Result<Arc<Coming<String>>, Error> {
        self.beside(&self.naming, move |this, _| {
            let tagged = this.tag(&key, &line);
            this.record(&key.subject(), &format!("tag {line}"), uid, None, &tagged);
            tagged
        })
    }

    fn tag(&self, key: &ImageKey, line: &str) -> Result<String, Error> {
        let name: ImageName =
            line.trim().parse().map_err(|error: InvalidName| Error::new(ErrorKind::Invalid, error.to_string()))?;
        let lease = self.store.lease()?;
        if lease.adopt(&key.manifest.digest)?.is_none() {
            let gone = format!("{} was deleted meanwhile; nothing was tagged", key.name);
            return Err(Error::new(ErrorKind::NotFound, gone));
        }
        let image = self.image(key)?;
        for blob in image.blobs() {
            lease.adopt(&blob.digest)?;
        }
        let name = self.full_name(&name)?;
        let kind = Some(image.kind().to_owned());
        // What it stands on must stay for as long as either name does.
        let base = self.base_of(key).map(|base| base.manifest);
        let containerd = self.containerd_of(key).map(|index| index.manifest);
        let made_here = self.store.is_made_here(&key.manifest.digest);
        let record =
            Record { kind, base, containerd, made_here, ..Record::new(key.manifest.clone(), self.clock.now()) };
        self.store.tag(&lease, &name, record, Replace::Allowed)?;
        Ok(line.trim().to_owned())
    }

    /// Bytes and files of the store's file system: size, free, inodes, free inodes.
    pub fn space(&self) -> Result<Space, Error> {
        Ok(self.store.space()?)
    }
}

fn image_entry(path: &str, entry: store::Entry) -> Option<ImageEntry> {
    Some(match entry {
        store::Entry::Image(record) => {
            ImageEntry::Image(ImageKey { name: path.parse().ok()?, manifest: record.manifest.clone() })
        }
        store::Entry::Directory => ImageEntry::Directory,
    })
}
