//! Reading an engine's files: bounded, regular files only, and never a wait.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::engine::Error;
use crate::sys::inside::Inside;

/// The most that is read of a state file, in bytes; the largest seen have 40 KiB.
pub(crate) const STATE_LIMIT: u64 = 4 << 20;
/// The most that is read of a list of images or layers, in bytes: one entry has about 1 KiB.
pub(crate) const LIST_LIMIT: u64 = 64 << 20;

/// The bytes of the regular file at `path`; `None` if there is none.
pub(crate) fn read(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, Error> {
    let failed = |source| Error::Read { path: path.to_owned(), source };
    match open(path).and_then(|file| read_bounded(file, limit)) {
        Ok(Some(bytes)) => Ok(Some(bytes)),
        Ok(None) => Err(Error::TooLarge { path: path.to_owned(), limit }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed(error)),
    }
}

/// The value in the JSON file at `path`; `None` if there is none.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path, limit: u64) -> Result<Option<T>, Error> {
    let Some(bytes) = read(path, limit)? else { return Ok(None) };
    parse_json(path, &bytes).map(Some)
}

/// The value in `bytes`, which are those of `path`.
pub(crate) fn parse_json<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|source| Error::Json { path: path.to_owned(), source })
}

/// The names in the directory at `path`, sorted; `None` if there is none.
pub(crate) fn names(path: &Path) -> Result<Option<Vec<OsString>>, Error> {
    let entries = match fs::read_dir(path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(Error::Read { path: path.to_owned(), source }),
    };
    let names: io::Result<Vec<OsString>> = entries.map(|entry| Ok(entry?.file_name())).collect();
    let mut names = names.map_err(|source| Error::Read { path: path.to_owned(), source })?;
    names.sort();
    Ok(Some(names))
}

/// All that `source` has, or `None` if that is more than `limit` bytes.
pub(crate) fn read_bounded(source: impl Read, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = Vec::new();
    source.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

fn open(path: &Path) -> io::Result<fs::File> {
    let name = path.file_name().unwrap_or(OsStr::new("."));
    Inside::open(path.parent().unwrap_or(Path::new("/")))?.open_file(Path::new(name))
}
