//! A layer's tar, made again byte for byte from what containers/storage keeps of it: a list of its parts.
//!
//! The list is lines of JSON. `{"type":2,"payload":…}` are bytes of the tar in base64: headers, padding, the end.
//! `{"type":1,"name":…,"size":…,"payload":…}` is the content of a file, which lies in the layer's directory and whose
//! CRC-64 is the payload. The list comes from whoever made the image, so that a name is resolved inside the layer's
//! directory and only regular files are read.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use crate::engine::Error;
use crate::oci::Crc64;
use crate::sys::inside::Inside;

/// The longest line, in bytes: one holds the headers of one file, extended attributes included, which an archive's
/// writer bounds at 1 MiB each, or a stretch of padding.
const LONGEST_LINE: u64 = 32 << 20;

/// The tar of a layer, as a stream. An error names the layer and the file.
pub(crate) struct TarSplit<R> {
    layer: String,
    lines: R,
    files: Inside,
    part: Part,
}

enum Part {
    /// Between two lines.
    Next,
    /// Bytes from the list, and how many of them were given.
    Raw(Vec<u8>, usize),
    /// A file of the layer.
    Content { name: String, file: File, left: u64, sum: Crc64, expected: u64 },
    /// The list has ended, or an error was returned.
    Done,
}

#[derive(Deserialize)]
struct Line {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(default)]
    name: Option<String>,
    /// Instead of `name`, where that is not UTF-8: base64.
    #[serde(default)]
    name_raw: Option<String>,
    #[serde(default)]
    size: i64,
    #[serde(default)]
    payload: Option<String>,
}

impl<R: BufRead> TarSplit<R> {
    /// The tar of `layer`, whose list is `lines` (already decompressed) and whose files are in `files`.
    pub(crate) fn new(layer: &str, lines: R, files: Inside) -> TarSplit<R> {
        TarSplit { layer: layer.to_owned(), lines, files, part: Part::Next }
    }

    fn next_part(&mut self) -> Result<Part, Error> {
        let mut bytes = Vec::new();
        let read = (&mut self.lines).take(LONGEST_LINE).read_until(b'\n', &mut bytes);
        read.map_err(|error| self.damaged(format!("its tar-split data cannot be read: {error}")))?;
        if bytes.is_empty() {
            return Ok(Part::Done);
        }
        if bytes.len() as u64 == LONGEST_LINE {
            return Err(self.damaged(format!("a line has more than {LONGEST_LINE} bytes")));
        }
        let line: Line = serde_json::from_slice(&bytes).map_err(|error| self.damaged(error.to_string()))?;
        match line.kind {
            1 if line.size == 0 => Ok(Part::Next),
            1 => self.content(&line),
            2 => Ok(Part::Raw(self.decode(line.payload.as_deref())?, 0)),
            kind => Err(self.damaged(format!("a part has the unknown type {kind}"))),
        }
    }

    fn content(&self, line: &Line) -> Result<Part, Error> {
        let name = match (&line.name, &line.name_raw) {
            (Some(name), _) => name.clone().into_bytes(),
            (None, raw) => self.decode(raw.as_deref())?,
        };
        let shown = String::from_utf8_lossy(&name).into_owned();
        let left = u64::try_from(line.size).map_err(|_| self.damaged(format!("{shown:?} has a negative size")))?;
        let sum = <[u8; 8]>::try_from(self.decode(line.payload.as_deref())?);
        let expected = sum.map_err(|_| self.damaged(format!("{shown:?} has no CRC-64")))?;
        let path = relative(&name).ok_or_else(|| self.damaged(format!("{shown:?} is not the name of a file")))?;
        let file = self.files.open_file(&path).map_err(|error| self.changed(&shown, error.to_string()))?;
        Ok(Part::Content { name: shown, file, left, sum: Crc64::new(), expected: u64::from_be_bytes(expected) })
    }

    fn decode(&self, text: Option<&str>) -> Result<Vec<u8>, Error> {
        STANDARD
            .decode(text.unwrap_or_default())
            .map_err(|error| self.damaged(format!("a part is not base64: {error}")))
    }

    fn damaged(&self, reason: String) -> Error {
        Error::TarSplit { layer: self.layer.clone(), reason }
    }

    fn changed(&self, file: &str, reason: String) -> Error {
        Error::LayerFile { layer: self.layer.clone(), file: file.to_owned(), reason }
    }

    fn read_part(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        loop {
            let read = match &mut self.part {
                Part::Done => return Ok(0),
                Part::Next => None,
                Part::Raw(bytes, at) => {
                    let count = buffer.len().min(bytes.len() - *at);
                    buffer[..count].copy_from_slice(&bytes[*at..*at + count]);
                    *at += count;
                    (count > 0).then_some(Ok(count))
                }
                Part::Content { file, left, sum, expected, .. } => read_content(file, left, sum, *expected, buffer),
            };
            match (read, &self.part) {
                (Some(Ok(count)), _) => return Ok(count),
                (Some(Err(reason)), Part::Content { name, .. }) => return Err(self.changed(name, reason)),
                (Some(Err(reason)), _) => return Err(self.damaged(reason)),
                (None, _) => self.part = self.next_part()?,
            }
        }
    }
}

/// The next bytes of a file; `None` once it has given all and they were right.
fn read_content(
    file: &mut File,
    left: &mut u64,
    sum: &mut Crc64,
    expected: u64,
    buffer: &mut [u8],
) -> Option<Result<usize, String>> {
    if *left > 0 {
        let count = usize::try_from(*left).unwrap_or(usize::MAX).min(buffer.len());
        return match read_some(file, &mut buffer[..count]) {
            Ok(0) => Some(Err(format!("{left} bytes are missing at its end"))),
            Ok(count) => {
                sum.update(&buffer[..count]);
                *left -= count as u64;
                Some(Ok(count))
            }
            Err(error) => Some(Err(error.to_string())),
        };
    }
    match read_some(file, &mut [0]) {
        Ok(0) if sum.value() == expected => None,
        Ok(0) => Some(Err("its content is another one (CRC-64)".to_owned())),
        Ok(_) => Some(Err("it became longer".to_owned())),
        Err(error) => Some(Err(error.to_string())),
    }
}

fn read_some(file: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match file.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

impl<R: BufRead> Read for TarSplit<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        self.read_part(buffer).map_err(|error| {
            self.part = Part::Done;
            io::Error::new(io::ErrorKind::InvalidData, error)
        })
    }
}

/// A name in a tar as a path below the layer's directory: it may begin with `/` or `./`.
fn relative(name: &[u8]) -> Option<PathBuf> {
    use std::os::unix::ffi::OsStrExt;
    use std::path::Component;
    let mut path = PathBuf::new();
    for component in Path::new(std::ffi::OsStr::from_bytes(name)).components() {
        match component {
            Component::Normal(part) => path.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    (!path.as_os_str().is_empty() && !name.contains(&0)).then_some(path)
}

#[cfg(test)]
mod tests;
