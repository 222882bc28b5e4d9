//! The members of a checkpoint, as podman, CRI-O and checkpointctl know them, in the layers of an image.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::changeset::tar::{Content, Options, Writer};
use crate::changeset::{self, Changes, Entry, Kind, Source, entries_without_whiteouts};
use crate::checkpoint::Error;
use crate::image::{self, Compression, Layer, LayerWriter, Unpublished};
use crate::progress::Progress;
use crate::store::{Lease, Spool};

/// How much of a file is copied between two looks at the progress.
const CHUNK: u64 = 1 << 20;
/// What a tar ends with.
const END: [u8; 1024] = [0; 1024];

/// A layer that is made of members and not of a container's files.
pub(super) struct Members<'a> {
    writer: Writer<'a, LayerWriter>,
    mtime: i64,
}

impl std::fmt::Debug for Members<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members").field("mtime", &self.mtime).finish_non_exhaustive()
    }
}

impl<'a> Members<'a> {
    pub(super) fn new(
        lease: &Lease,
        compression: Compression,
        mtime: i64,
        progress: &'a Progress,
    ) -> Result<Members<'a>, Error> {
        let layer = LayerWriter::new(lease.blob()?, compression)?;
        Ok(Members { writer: Writer::new(layer, &Changes::none(), progress, Options::default()), mtime })
    }

    pub(super) fn directory(&mut self, name: &str) -> Result<(), Error> {
        self.writer.out().begin_entry(0);
        written(self.writer.entry(&Entry::made(name, Kind::Directory, 0o700, 0, self.mtime)))
    }

    pub(super) fn bytes(&mut self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.writer.out().begin_entry(bytes.len() as u64);
        let entry = Entry::made(name, Kind::File, 0o600, bytes.len() as u64, self.mtime);
        written(self.writer.file_from(&entry, Content::Bytes(bytes))).map(drop)
    }

    /// A file that is ours and does not change.
    pub(super) fn file(&mut self, name: &str, file: &File) -> Result<(), Error> {
        let size = file.metadata().map_err(image::Error::Write)?.len();
        self.writer.out().begin_entry(size);
        let entry = Entry::made(name, Kind::File, 0o600, size, self.mtime);
        let is_whole = written(self.writer.file_from(&entry, Content::File { file, base: 0 }))?;
        if is_whole {
            return Ok(());
        }
        let cut = io::Error::new(io::ErrorKind::UnexpectedEof, format!("{name} was cut off while it was packed"));
        Err(image::Error::Write(cut).into())
    }

    pub(super) fn finish(self) -> Result<Layer, Error> {
        let (_, layer) = written(self.writer.into_out())?;
        Ok(layer.finish()?)
    }
}

fn written<T>(result: Result<T, changeset::tar::Error>) -> Result<T, Error> {
    result.map_err(|error| Error::Capture(error.into()))
}

/// The tar of what a container changed, in podman's form: files alone. What is deleted is in `deleted.files`.
pub(super) fn plain(layer: &Unpublished, lease: &Lease, progress: &Progress) -> Result<Spool, Error> {
    let read_back = |error| Error::from(image::Error::ReadBack(error));
    let tar = layer.open()?;
    let mut plain = lease.spool()?;
    let mut chunk = vec![0; CHUNK as usize];
    for range in entries_without_whiteouts(&tar).map_err(read_back)? {
        let mut at = range.start;
        while at < range.end {
            progress.check()?;
            let piece = &mut chunk[..(range.end - at).min(CHUNK) as usize];
            tar.read_exact_at(piece, at).map_err(read_back)?;
            plain.write_all(piece).map_err(|error| plain.error(error))?;
            at += piece.len() as u64;
        }
    }
    plain.write_all(&END).map_err(|error| plain.error(error))?;
    Ok(plain)
}

/// `deleted.files`: absolute paths. JSON holds no other names than those of UTF-8; how many are left out is told, too.
pub(super) fn deleted_files(deleted: &[Vec<u8>]) -> (Vec<u8>, usize) {
    let paths: Vec<String> =
        deleted.iter().filter_map(|path| Some(format!("/{}", std::str::from_utf8(path).ok()?))).collect();
    let left_out = deleted.len() - paths.len();
    (serde_json::Value::from(paths).to_string().into_bytes(), left_out)
}

/// All of a directory of the host as a tar, for what is mounted into a container that stands still.
pub(super) fn directory(path: &Path, lease: &Lease, progress: &Progress) -> Result<Spool, Error> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| Error::Mounted { path: path.to_owned(), source };
    let source = Source::Directory(path.to_owned());
    let changes = changeset::scan(&source, &[], progress).map_err(|error| failed(error.into()))?;
    let spool = lease.spool()?;
    let mut out = io::BufWriter::with_capacity(CHUNK as usize, spool);
    changeset::tar::write(&changes, &mut out, progress, Options::default()).map_err(|error| failed(error.into()))?;
    out.into_inner().map_err(|error| failed(error.into_error().into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn deleted_files_are_absolute_and_valid_json() {
        let deleted = [b"etc/a \"b\"".to_vec(), b"\xff".to_vec(), b"x".to_vec()];
        let (bytes, left_out) = deleted_files(&deleted);
        assert_eq!(serde_json::from_slice::<Vec<String>>(&bytes).unwrap(), ["/etc/a \"b\"", "/x"]);
        assert_eq!(left_out, 1);
    }
}
