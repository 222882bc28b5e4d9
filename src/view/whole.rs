//! [`Whole`]: a layer read from its beginning to its end, for who makes another layer of its files.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::sync::Arc;

use crate::image;
use crate::oci::{DiffId, Digest, Hasher};
use crate::store::Store;
use crate::view::Error;
use crate::view::build::{self, Failure};
use crate::view::index::Index;
use crate::view::source::Source;
use crate::view::stream::{self, Packing};
use crate::view::tar::{Entry, Type};
use crate::view::tree::{Tree, components};

/// A layer whose tar has its DiffID: its tree, and where its files are.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) tree: Tree,
    layer: Digest,
    diff_id: DiffId,
    source: Source,
    /// In the order of the tar, those that a later entry replaces included.
    files: Vec<Headers>,
    hasher: RandomState,
}

/// Where a file's headers are.
#[derive(Debug)]
struct Headers {
    /// They can be used as they are; else the content begins here.
    start: u64,
    content: u64,
    /// Of the path, for a name of ours.
    path: Option<u64>,
}

/// A piece of the tar.
pub(crate) struct Piece<'a> {
    /// Where it begins.
    at: u64,
    pub(crate) tar: &'a [u8],
    /// How it is encoded in the blob, if it is by itself.
    packed: Option<(&'a Source, usize)>,
}

impl Piece<'_> {
    /// Where it is in the tar.
    pub(crate) fn place(&self) -> Range<u64> {
        self.at..self.at + self.tar.len() as u64
    }

    /// The bytes in the blob that it is encoded in, if these are whole frames.
    pub(crate) fn packed(&self) -> Option<Vec<u8>> {
        let (source, at) = self.packed?;
        source.packed(at).ok()
    }
}

/// Who is given pieces of a tar, in order.
pub(crate) trait Take {
    type Error: From<Error>;

    /// Whether it needs anything from there.
    fn wants(&self, piece: &Range<u64>) -> bool;

    fn take(&mut self, piece: &Piece<'_>) -> Result<(), Self::Error>;
}

impl Whole {
    /// Read `layer`, and hold its tar against its DiffID.
    pub(crate) fn read(store: &Store, layer: &image::Layer) -> Result<Whole, Error> {
        let digest = layer.descriptor.digest;
        let read = |source| Error::Read { layer: digest, source: Arc::new(source) };
        let blob = store.open_blob(&digest);
        let blob = blob.map_err(|source| Error::Store { layer: digest, source: Arc::new(source) })?;
        let length = blob.metadata().map_err(read)?.len();
        let packing = Packing::of(&blob).map_err(read)?;
        let (mut files, hasher) = (Vec::new(), RandomState::new());
        let mut see = |entry: &Entry| {
            if entry.kind == Type::File {
                files.push(Headers::of(entry, &hasher));
            }
        };
        let built = build::build(&blob, packing, layer.diff_id, &mut see);
        let Index { diff_id, tar_length, points, tree } = built.map_err(|failure| match failure {
            Failure::Refused(reason) => Error::Refused { layer: digest, reason },
            Failure::Differs(found) => Error::Differs { layer: digest, found, expected: layer.diff_id },
            Failure::Read(source) => read(source),
        })?;
        let source = Source::new(blob, length, packing, points, tar_length);
        Ok(Whole { tree, layer: digest, diff_id, source, files, hasher })
    }

    /// Where the headers begin of the file whose content begins at `content`; none if they are not those of a file `path`.
    pub(crate) fn headers(&self, content: u64, path: &[u8]) -> Option<u64> {
        let at = self.files.binary_search_by_key(&content, |headers| headers.content).ok()?;
        let headers = &self.files[at];
        (headers.path? == self.hasher.hash_one(path)).then_some(headers.start)
    }

    /// Give `taker` those pieces of the tar that it wants. They are still what they were when it was read.
    pub(crate) fn pieces<T: Take>(&self, taker: &mut T) -> Result<(), T::Error> {
        let read = |source| Error::Read { layer: self.layer, source: Arc::new(source) };
        if self.source.is_seekable() {
            for at in 0..self.source.len() {
                let place = self.source.place(at);
                if taker.wants(&place) {
                    let tar = self.source.decode(at).map_err(read)?;
                    taker.take(&Piece { at: place.start, tar: &tar, packed: Some((&self.source, at)) })?;
                }
            }
            return Ok(());
        }
        let (mut at, mut hasher, mut failure) = (0, Hasher::new(), None);
        let mut sink = |tar: Vec<u8>| {
            hasher.update(&tar);
            let place = at..at + tar.len() as u64;
            at = place.end;
            if taker.wants(&place)
                && let Err(error) = taker.take(&Piece { at: place.start, tar: &tar, packed: None })
            {
                failure = Some(error);
                return Err(io::ErrorKind::Other.into());
            }
            Ok(())
        };
        let decoded = stream::decode(self.source.blob(), self.source.packing(), &mut sink);
        if let Some(error) = failure {
            return Err(error);
        }
        decoded.map_err(read)?;
        let found = DiffId::from(*hasher.digest().as_bytes());
        if found != self.diff_id {
            return Err(Error::Differs { layer: self.layer, found, expected: self.diff_id }.into());
        }
        Ok(())
    }
}

impl Headers {
    fn of(entry: &Entry, hasher: &RandomState) -> Headers {
        let path = entry.path.strip_prefix(b"./").unwrap_or(&entry.path);
        let names: Vec<&[u8]> = components(path).collect();
        let is_plain = names.join(&b'/') == path && !names.contains(&&b".."[..]);
        let start = entry.start.filter(|_| is_plain);
        let hash = start.map(|_| hasher.hash_one(path));
        Headers { start: start.unwrap_or(entry.offset), content: entry.offset, path: hash }
    }
}
