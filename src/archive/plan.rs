//! What an archive says that it holds: its documents → images and their names. Pure.

use std::collections::{BTreeMap, BTreeSet};

use oci_spec::image as spec;
use serde_json::Value;

use crate::archive::Error;
use crate::archive::intake::Blob;
use crate::archive::json::{parse, parse_document};
use crate::archive::tar::clean;
use crate::oci::{Descriptor, Digest, ImageName, MEDIA_TYPE_INDEX, MEDIA_TYPE_MANIFEST, annotation};

/// The layout's marker.
pub(super) const OCI_LAYOUT: &str = "oci-layout";
/// The layout's index.
pub(super) const INDEX: &str = "index.json";
/// What docker has instead.
pub(super) const DOCKER_MANIFEST: &str = "manifest.json";

/// How deep indexes may nest.
const DEEPEST: usize = 4;

/// What came in.
#[derive(Debug, Default)]
pub(super) struct Content {
    /// The documents at the root, by name.
    pub(super) documents: BTreeMap<String, Vec<u8>>,
    /// Blobs, by path.
    pub(super) blobs: BTreeMap<String, Blob>,
    /// Links, with the path that each points to.
    pub(super) links: BTreeMap<String, String>,
}

/// An image of the archive.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) source: Source,
    /// What the archive calls it.
    pub(super) names: BTreeSet<ImageName>,
}

/// What tells of the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// A manifest of the archive.
    Manifest(Descriptor),
    /// docker's list: a manifest is to be made of it.
    Docker { config: Blob, layers: Vec<Blob> },
}

/// All images of an archive.
#[derive(Debug, Default)]
pub(super) struct Plan {
    pub(super) images: Vec<Planned>,
    /// What a person may want to know of how it was read.
    pub(super) notes: Vec<String>,
}

/// What `manifest.json` says of one image.
#[derive(Debug)]
struct DockerEntry {
    config: Blob,
    layers: Vec<Blob>,
    names: BTreeSet<ImageName>,
}

impl Content {
    /// The images, from the layout's index, or from docker's list where there is no layout. `read` gives a document of
    /// the archive by its descriptor.
    pub(super) fn plan(&self, read: &dyn Fn(&Descriptor) -> Result<Vec<u8>, Error>) -> Result<Plan, Error> {
        let mut plan = Plan::default();
        let docker = self.docker_entries(&mut plan.notes)?;
        let has_layout = self.documents.contains_key(OCI_LAYOUT);
        match (self.documents.get(INDEX), docker) {
            (Some(index), docker) if has_layout => {
                self.check_layout()?;
                let index = document(INDEX, index)?;
                check_index(&index, INDEX)?;
                for entry in index["manifests"].as_array().into_iter().flatten() {
                    let names = names(&entry["annotations"], &mut plan.notes);
                    let manifest = choose(entry, read, 0, &mut plan.notes)?;
                    plan.add(Source::Manifest(manifest), names);
                }
                plan.cross_check(docker.unwrap_or_default(), read)?;
            }
            (None, Some(entries)) if !has_layout => {
                for DockerEntry { config, layers, names } in entries {
                    plan.add(Source::Docker { config, layers }, names);
                }
            }
            _ => {
                let reason = "it has neither oci-layout and index.json nor manifest.json at its top";
                return Err(Error::malformed(reason));
            }
        }
        if plan.images.is_empty() {
            return Err(Error::malformed("it holds no image"));
        }
        let count: BTreeSet<_> = plan.images.iter().flat_map(|image| &image.names).collect();
        if count.len() != plan.images.iter().map(|image| image.names.len()).sum::<usize>() {
            return Err(Error::malformed("it gives one name to two images"));
        }
        Ok(plan)
    }

    /// The blob with that digest.
    pub(super) fn by_digest(&self) -> BTreeMap<Digest, &Blob> {
        self.blobs.values().map(|blob| (blob.digest, blob)).collect()
    }

    fn check_layout(&self) -> Result<(), Error> {
        let layout = document(OCI_LAYOUT, &self.documents[OCI_LAYOUT])?;
        match layout["imageLayoutVersion"].as_str() {
            Some("1.0.0") => Ok(()),
            version => {
                let what = format!("its layout has the version {:?}", version.unwrap_or_default());
                Err(Error::Unsupported { what, remedy: "1.0.0 is the one that snapfs knows" })
            }
        }
    }

    fn docker_entries(&self, notes: &mut Vec<String>) -> Result<Option<Vec<DockerEntry>>, Error> {
        let Some(bytes) = self.documents.get(DOCKER_MANIFEST) else { return Ok(None) };
        let list = document(DOCKER_MANIFEST, bytes)?;
        let entries = list.as_array().ok_or_else(|| Error::malformed("its manifest.json is no list"))?;
        let mut read = |entry: &Value| {
            let config =
                entry["Config"].as_str().ok_or_else(|| Error::malformed("its manifest.json names no config"))?;
            let layers = texts(&entry["Layers"])?;
            Ok(DockerEntry {
                config: self.blob_at(config)?.clone(),
                layers: layers.into_iter().map(|layer| self.blob_at(layer).cloned()).collect::<Result<_, Error>>()?,
                names: texts(&entry["RepoTags"])?.into_iter().filter_map(|tag| name(tag, notes)).collect(),
            })
        };
        entries.iter().map(&mut read).collect::<Result<_, Error>>().map(Some)
    }

    /// The blob at a path, through one link.
    fn blob_at(&self, path: &str) -> Result<&Blob, Error> {
        let path = clean(path).unwrap_or_default();
        let target = self.links.get(&path).unwrap_or(&path);
        self.blobs
            .get(target)
            .ok_or_else(|| Error::malformed(format!("its manifest.json needs {path:?}, which is missing")))
    }
}

impl Plan {
    fn add(&mut self, source: Source, names: BTreeSet<ImageName>) {
        match self.images.iter_mut().find(|image| image.source == source) {
            Some(image) => image.names.extend(names),
            None => self.images.push(Planned { source, names }),
        }
    }

    /// An archive may describe its images in both ways, and then they must be the same images.
    fn cross_check(
        &mut self,
        docker: Vec<DockerEntry>,
        read: &dyn Fn(&Descriptor) -> Result<Vec<u8>, Error>,
    ) -> Result<(), Error> {
        let mut manifests = Vec::new();
        for image in &self.images {
            let Source::Manifest(descriptor) = &image.source else { continue };
            manifests.push(document("the manifest", &read(descriptor)?)?);
        }
        for entry in docker {
            let is_it = |manifest: &Value| {
                let digests = manifest["layers"].as_array().into_iter().flatten().map(|layer| layer["digest"].as_str());
                let layers: Vec<String> = entry.layers.iter().map(|layer| layer.digest.to_string()).collect();
                manifest["config"]["digest"].as_str() == Some(&entry.config.digest.to_string())
                    && digests.eq(layers.iter().map(|layer| Some(layer.as_str())))
            };
            let Some(at) = manifests.iter().position(is_it) else {
                return Err(Error::malformed("its index.json and its manifest.json tell of different images"));
            };
            if self.images[at].names.is_empty() {
                self.images[at].names = entry.names;
            }
        }
        Ok(())
    }
}

/// The manifest that an index's entry stands for: itself, or the one for this machine.
fn choose(
    entry: &Value,
    read: &dyn Fn(&Descriptor) -> Result<Vec<u8>, Error>,
    depth: usize,
    notes: &mut Vec<String>,
) -> Result<Descriptor, Error> {
    let descriptor: Descriptor = serde_json::from_value(entry.clone())
        .map_err(|error| Error::malformed(format!("an entry of its index is no descriptor: {error}")))?;
    match descriptor.media_type.as_str() {
        // Its annotations, such as its name, are the entry's and not the image's.
        MEDIA_TYPE_MANIFEST => return Ok(Descriptor { annotations: BTreeMap::new(), ..descriptor }),
        MEDIA_TYPE_INDEX if depth < DEEPEST => {}
        MEDIA_TYPE_INDEX => return Err(Error::malformed(format!("its indexes are more than {DEEPEST} deep"))),
        other => {
            let what =
                format!("the archive holds {:?}, which is no OCI image", other.chars().take(200).collect::<String>());
            return Err(Error::Unsupported { what, remedy: "convert it with skopeo copy … oci-archive:FILE" });
        }
    }
    let shown = descriptor.digest.to_string();
    let index = document(&shown, &read(&descriptor)?)?;
    check_index(&index, &shown)?;
    let (os, architecture) = (spec::Os::default().to_string(), spec::Arch::default().to_string());
    let entries: Vec<&Value> = index["manifests"].as_array().into_iter().flatten().collect();
    let fits = |entry: &&&Value| {
        let platform = &entry["platform"];
        platform["os"].as_str() == Some(&os) && platform["architecture"].as_str() == Some(&architecture)
    };
    let chosen = match entries[..] {
        [only] if only["platform"].is_null() => only,
        _ => entries.iter().find(fits).copied().ok_or_else(|| Error::Unsupported {
            what: format!("the archive's image is for other platforms than {os}/{architecture}"),
            remedy: "save the one for this machine",
        })?,
    };
    if entries.len() > 1 {
        notes.push(format!(
            "of {} entries of the index {shown} the one for {os}/{architecture} was taken",
            entries.len()
        ));
    }
    choose(chosen, read, depth + 1, notes)
}

/// A list of texts, which may be absent.
fn texts(value: &Value) -> Result<Vec<&str>, Error> {
    let texts = match value {
        Value::Null => Some(Vec::new()),
        value => value.as_array().and_then(|values| values.iter().map(Value::as_str).collect()),
    };
    texts.ok_or_else(|| Error::malformed("its manifest.json has something else where a list of texts should be"))
}

fn document(what: &str, bytes: &[u8]) -> Result<Value, Error> {
    parse_document(bytes).map_err(|reason| Error::malformed(format!("{what} cannot be read: {reason}")))
}

/// A config, whose keys are its own affair as long as none stands twice.
pub(super) fn check_config(bytes: &[u8]) -> Result<(), Error> {
    parse(bytes).map(drop).map_err(|reason| Error::malformed(format!("an image's config cannot be read: {reason}")))
}

fn check_index(index: &Value, what: &str) -> Result<(), Error> {
    let wrong = |reason: &str| Err(Error::malformed(format!("{what} is no index: {reason}")));
    if index["mediaType"].as_str().is_some_and(|own| own != MEDIA_TYPE_INDEX) {
        return wrong("its media type is another");
    }
    if index.get("layers").is_some() || index.get("config").is_some() {
        return wrong("it could be taken for a manifest");
    }
    if !index["manifests"].is_array() { wrong("it has no list of manifests") } else { Ok(()) }
}

/// The name that an index's entry gives: containerd's whole name, else the specification's, of which `latest` alone says
/// nothing.
fn names(annotations: &Value, notes: &mut Vec<String>) -> BTreeSet<ImageName> {
    let whole = annotations[annotation::CONTAINERD_NAME].as_str();
    let given = whole.or_else(|| annotations[annotation::REF_NAME].as_str().filter(|name| *name != "latest"));
    given.and_then(|given| name(given, notes)).into_iter().collect()
}

fn name(text: &str, notes: &mut Vec<String>) -> Option<ImageName> {
    match text.parse() {
        Ok(name) => Some(name),
        Err(error) => {
            notes.push(format!("a name of the archive is left out: {error}"));
            None
        }
    }
}
