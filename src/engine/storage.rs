//! The files of containers/storage, which podman keeps its containers, layers and images in (driver `overlay`).

use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::path::{Component, Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::bufread::MultiGzDecoder;
use jiff::Timestamp;
use serde::Deserialize;

use crate::engine::files::{self, LIST_LIMIT, STATE_LIMIT};
use crate::engine::name::is_plain_id;
use crate::engine::tar_split::TarSplit;
use crate::engine::{BaseImage, BaseLayer, Error};
use crate::oci::{DiffId, Digest};
use crate::sys::inside::Inside;

/// A store: what stays, and what is gone after a reboot.
#[derive(Debug, Clone)]
pub(crate) struct Store {
    pub(crate) graph_root: PathBuf,
    pub(crate) run_root: PathBuf,
}

/// An entry of `overlay-containers/containers.json` that podman made.
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) name: String,
    pub(crate) image_name: String,
    pub(crate) image_id: String,
    pub(crate) layer: String,
    pub(crate) created: Option<Timestamp>,
}

/// The entries of a store that are podman's.
#[derive(Debug, Default)]
pub(crate) struct Records {
    /// There is a store.
    pub(crate) present: bool,
    pub(crate) records: Vec<Record>,
    /// Why others are not among them.
    pub(crate) skipped: Vec<Error>,
}

#[derive(Deserialize)]
struct ContainerEntry {
    id: String,
    #[serde(default)]
    names: Vec<String>,
    #[serde(default)]
    image: String,
    #[serde(default)]
    layer: String,
    #[serde(default)]
    metadata: String,
    #[serde(default)]
    created: String,
}

/// The JSON in the string `metadata`. CRI-O writes it, too, with the pod's name; buildah writes none.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Metadata {
    name: String,
    #[serde(default)]
    image_name: String,
    #[serde(rename = "created-at")]
    _created_at: i64,
    #[serde(default)]
    pod_name: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct LayerEntry {
    id: String,
    #[serde(default)]
    parent: String,
    #[serde(default)]
    diff_digest: Option<String>,
    /// An object of anything.
    #[serde(default)]
    flags: serde_json::Value,
}

#[derive(Deserialize)]
struct ImageEntry {
    id: String,
    #[serde(default)]
    layer: String,
}

/// The part of an image's configuration that is compared with the layers.
#[derive(Deserialize)]
struct ImageConfig {
    rootfs: ImageRootFs,
}

#[derive(Deserialize)]
struct ImageRootFs {
    #[serde(default)]
    diff_ids: Vec<DiffId>,
}

impl Store {
    /// podman's containers.
    pub(crate) fn containers(&self) -> Result<Records, Error> {
        let mut found = Records::default();
        for directory in [self.graph_root.join("overlay-containers"), self.run_root.join("overlay-containers")] {
            for file in ["containers.json", "volatile-containers.json"] {
                let path = directory.join(file);
                let Some(entries) = files::read_json::<Vec<serde_json::Value>>(&path, STATE_LIMIT)? else { continue };
                found.present = true;
                for entry in entries {
                    match record(&path, entry) {
                        Ok(Some(record)) => found.records.push(record),
                        Ok(None) => {}
                        Err(error) => found.skipped.push(error),
                    }
                }
            }
        }
        Ok(found)
    }

    /// A directory or file of the container `id` in the part of the store that stays.
    pub(crate) fn user_data(&self, id: &str) -> PathBuf {
        self.graph_root.join("overlay-containers").join(id).join("userdata")
    }

    /// The same in the part that is gone after a reboot.
    pub(crate) fn run_data(&self, id: &str) -> PathBuf {
        self.run_root.join("overlay-containers").join(id).join("userdata")
    }

    /// The directory of a layer.
    pub(crate) fn layer(&self, layer: &str) -> PathBuf {
        self.graph_root.join("overlay").join(layer)
    }

    /// The directories below a layer, top first: what its file `lower` names, short links resolved.
    pub(crate) fn lower(&self, layer: &str) -> Result<Vec<PathBuf>, Error> {
        let overlay = self.graph_root.join("overlay");
        let path = overlay.join(layer).join("lower");
        let text = files::read(&path, STATE_LIMIT)?.unwrap_or_default();
        let bad = |reason: String| Error::State { path: path.clone(), reason };
        let text = String::from_utf8(text).map_err(|error| bad(error.to_string()))?;
        let mut lower = Vec::new();
        for link in text.trim_ascii().split(':').filter(|link| !link.is_empty()) {
            let link = Path::new(link);
            let is_short = link.strip_prefix("l").is_ok_and(|name| name.to_str().is_some_and(is_plain_id));
            if !is_short {
                return Err(bad(format!("{link:?} is not a short link of this store")));
            }
            let target = fs::read_link(overlay.join(link))
                .map_err(|error| bad(format!("{link:?} cannot be read ({error}); is it in an additional store?")))?;
            let id = match target.components().collect::<Vec<_>>()[..] {
                [Component::ParentDir, Component::Normal(id), Component::Normal(diff)] if diff == "diff" => id.to_str(),
                _ => None,
            };
            let id = id.filter(|id| is_plain_id(id)).ok_or_else(|| bad(format!("{link:?} leads to {target:?}")))?;
            lower.push(overlay.join(id).join("diff"));
        }
        Ok(lower)
    }

    /// Whether layers are mounted by a program such as fuse-overlayfs, whose whiteouts the kernel's overlay does not know.
    pub(crate) fn has_mount_program(&self) -> bool {
        let mark = files::read(&self.graph_root.join("overlay/.has-mount-program"), STATE_LIMIT);
        matches!(mark, Ok(Some(bytes)) if bytes.trim_ascii() == b"true")
    }

    /// The image `id`: its configuration and its layers, checked against each other.
    pub(crate) fn image(&self, id: &str, name: Option<String>) -> Result<BaseImage, Error> {
        let bad = |reason: String| Error::Image { image: id.to_owned(), reason };
        let images: Option<Vec<ImageEntry>> =
            files::read_json(&self.graph_root.join("overlay-images/images.json"), LIST_LIMIT)?;
        let image = images.unwrap_or_default().into_iter().find(|image| image.id == id);
        let image = image.ok_or_else(|| bad("it is not in the store".to_owned()))?;
        if !is_plain_id(id) {
            return Err(bad("its id is not a plain name".to_owned()));
        }
        let key = format!("sha256:{id}");
        let path = self.graph_root.join("overlay-images").join(id).join(big_data_file(&key));
        let config = files::read(&path, STATE_LIMIT)?.ok_or_else(|| bad(format!("{path:?} is missing")))?;
        if Digest::of(&config).to_string() != key {
            return Err(bad(format!("{path:?} has another digest than its name")));
        }
        let diff_ids = files::parse_json::<ImageConfig>(&path, &config)?.rootfs.diff_ids;
        let layers = self.chain(&image.layer, diff_ids.len()).map_err(bad)?;
        if layers.len() != diff_ids.len() {
            return Err(bad(format!("it has {} layers, its configuration {}", layers.len(), diff_ids.len())));
        }
        let layers = layers.into_iter().zip(diff_ids).map(|(layer, diff_id)| {
            match layer.diff_digest.as_deref().map(str::parse::<DiffId>) {
                Some(Ok(stored)) if stored != diff_id => {
                    Err(bad(format!("layer {} has the diff id {stored}, by its configuration {diff_id}", layer.id)))
                }
                _ => Ok(self.base_layer(layer.id, diff_id)),
            }
        });
        Ok(BaseImage { name, config, layers: layers.collect::<Result<_, _>>()? })
    }

    /// The layers from the bottom up to `top`; no more than `most` and one.
    fn chain(&self, top: &str, most: usize) -> Result<Vec<LayerEntry>, String> {
        let mut entries = self.layers().map_err(|error| error.to_string())?;
        let (mut chain, mut id) = (Vec::new(), top.to_owned());
        while !id.is_empty() && chain.len() <= most {
            let at = entries.iter().position(|entry| entry.id == id && is_plain_id(&id));
            // Taken out, so that a ring of parents ends.
            let entry = entries.swap_remove(at.ok_or_else(|| format!("layer {id:?} is not in the store"))?);
            id.clone_from(&entry.parent);
            chain.push(entry);
        }
        chain.reverse();
        Ok(chain)
    }

    /// Whether the layer is there, and being removed no more than being made: before it touches the layer's files,
    /// containers/storage marks it as incomplete.
    pub(crate) fn is_whole(&self, layer: &str) -> Result<bool, Error> {
        let found = self.layers()?.into_iter().find(|entry| entry.id == layer);
        Ok(found.is_some_and(|entry| entry.flags["incomplete"] != true))
    }

    fn layers(&self) -> Result<Vec<LayerEntry>, Error> {
        let mut entries = Vec::new();
        for file in ["layers.json", "volatile-layers.json"] {
            let path = self.graph_root.join("overlay-layers").join(file);
            entries.extend(files::read_json::<Vec<LayerEntry>>(&path, LIST_LIMIT)?.unwrap_or_default());
        }
        Ok(entries)
    }

    fn base_layer(&self, layer: String, diff_id: DiffId) -> BaseLayer {
        let list = self.graph_root.join("overlay-layers").join(format!("{layer}.tar-split.gz"));
        let files = self.layer(&layer).join("diff");
        BaseLayer::new(diff_id, move || open_layer(&layer, &list, &files))
    }
}

fn open_layer(layer: &str, list: &Path, files: &Path) -> Result<Box<dyn Read + Send>, Error> {
    let missing = |source: io::Error| Error::NoTarSplit { layer: layer.to_owned(), path: list.to_owned(), source };
    let compressed = BufReader::with_capacity(64 << 10, File::open(list).map_err(missing)?);
    let lines = BufReader::with_capacity(64 << 10, MultiGzDecoder::new(compressed));
    let files = Inside::open(files).map_err(|source| Error::Read { path: files.to_owned(), source })?;
    Ok(Box::new(TarSplit::new(layer, lines, files)))
}

/// `None` for a container that another program than podman keeps in the store.
fn record(path: &Path, entry: serde_json::Value) -> Result<Option<Record>, Error> {
    let json = |source| Error::Json { path: path.to_owned(), source };
    let entry: ContainerEntry = serde_json::from_value(entry).map_err(json)?;
    let Ok(metadata) = serde_json::from_str::<Metadata>(&entry.metadata) else { return Ok(None) };
    if metadata.pod_name.is_some() {
        return Ok(None);
    }
    for id in [&entry.id, &entry.layer] {
        if !is_plain_id(id) {
            return Err(Error::State { path: path.to_owned(), reason: format!("{id:?} is not an id") });
        }
    }
    Ok(Some(Record {
        name: entry.names.into_iter().next().unwrap_or(metadata.name),
        id: entry.id,
        image_name: metadata.image_name,
        image_id: entry.image,
        layer: entry.layer,
        created: entry.created.parse().ok(),
    }))
}

/// The file in which containers/storage keeps an image's data called `key`: the key itself if it has lower-case letters,
/// digits and dots only, else an equals sign and its base64.
fn big_data_file(key: &str) -> String {
    if key.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'.') {
        return key.to_owned();
    }
    format!("={}", STANDARD.encode(key))
}

/// `graphroot` and `runroot` of the table `[storage]` of a storage.conf. As much of TOML as that file uses: a line a
/// setting, strings in quotes, comments.
pub(crate) fn parse_storage_conf(text: &str) -> (Option<PathBuf>, Option<PathBuf>) {
    let (mut table, mut graph_root, mut run_root) = ("", None, None);
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[') {
            table = name.split(']').next().unwrap_or_default().trim();
        } else if let Some((key, value)) = line.split_once('=').filter(|_| table == "storage") {
            let value = value.trim();
            let quote = value.chars().next().filter(|quote| matches!(quote, '"' | '\''));
            let value = quote.and_then(|quote| value[1..].split_once(quote)).map(|(value, _)| PathBuf::from(value));
            let value = value.filter(|path| path.is_absolute());
            match key.trim() {
                "graphroot" => graph_root = value.or(graph_root),
                "runroot" => run_root = value.or(run_root),
                _ => {}
            }
        }
    }
    (graph_root, run_root)
}

#[cfg(test)]
mod tests;
