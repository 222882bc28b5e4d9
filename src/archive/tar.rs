//! The outer tar of an archive: headers to write, and a strict reader of what a stream holds.
//!
//! The reader knows as much of the format as the programs that write archives use, and refuses the rest: what two
//! readers would read differently is not read at all.

use std::io::{self, Read};

use crate::archive::Error;

/// The unit of a tar.
pub(super) const BLOCK: usize = 512;
/// The most entries of an archive, those that only carry a long name included.
const MOST_ENTRIES: usize = 20_000;
/// The longest name, and the longest target of a link.
const LONGEST_NAME: usize = 512;
/// The longest extended header: there is nothing in it but a name and a size.
const LONGEST_EXTENSION: u64 = 64 << 10;
/// Zeros after the end: tar(1) fills up to its blocking factor.
const MOST_PADDING: u64 = 64 << 20;

/// The header of a regular file that anybody may read and nobody has changed since 1970.
pub(super) fn header(name: &str, size: u64) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    // All names of an archive that we write are shorter than a hundred bytes.
    put(&mut header, 0, name.as_bytes());
    put(&mut header, 100, b"0000444\0");
    put(&mut header, 108, b"0000000\x000000000\0");
    if size < 1 << 33 {
        put(&mut header, 124, format!("{size:011o}\0").as_bytes());
    } else {
        // Beyond eleven octal digits: base 256, which every reader of archives knows.
        header[124] = 0x80;
        put(&mut header, 128, &size.to_be_bytes());
    }
    put(&mut header, 136, b"00000000000\0");
    header[156] = b'0';
    put(&mut header, 257, b"ustar  \0");
    let sum = checksum(&header).0;
    put(&mut header, 148, format!("{sum:06o}\0 ").as_bytes());
    header
}

fn put(header: &mut [u8; BLOCK], at: usize, bytes: &[u8]) {
    header[at..at + bytes.len()].copy_from_slice(bytes);
}

/// What fills up a file of `size` bytes to whole blocks.
pub(super) fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK as u64) - size
}

/// The sum of a header's bytes, unsigned and, as very old programs made it, signed.
fn checksum(header: &[u8; BLOCK]) -> (u64, i64) {
    let bytes = header.iter().enumerate().map(|(at, &byte)| if (148..156).contains(&at) { b' ' } else { byte });
    bytes.fold((0, 0), |(unsigned, signed), byte| (unsigned + u64::from(byte), signed + i64::from(byte as i8)))
}

/// What an entry is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    Directory,
    /// Where it points to, relative to the root of the archive.
    Symlink(String),
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Relative to the root of the archive: components without `.` and `..`.
    pub(super) path: String,
    pub(super) kind: Kind,
    /// Of a file, in bytes.
    pub(super) size: u64,
}

/// The entries of a tar as it comes in.
#[derive(Debug)]
pub(super) struct Entries<R> {
    reader: R,
    /// Bytes of the entry at hand that were not read yet.
    left: u64,
    padding: u64,
    seen: usize,
}

/// What extended headers say of the next entry.
#[derive(Default)]
struct Extension {
    path: Option<String>,
    link: Option<String>,
    size: Option<u64>,
}

impl<R: Read> Entries<R> {
    pub(super) fn new(reader: R) -> Entries<R> {
        Entries { reader, left: 0, padding: 0, seen: 0 }
    }

    /// The next entry; `None` at the end, which is two blocks of zeros.
    pub(super) fn next(&mut self) -> Result<Option<Entry>, Error> {
        if self.left > 0 {
            let mut chunk = [0; 16 << 10];
            while self.read(&mut chunk)? > 0 {}
        }
        self.skip_padding()?;
        let mut extension = Extension::default();
        let mut extended = false;
        loop {
            let Some(header) = self.header()? else {
                return if extended { Err(malformed("it ends after a long name")) } else { Ok(None) };
            };
            let size = number(&header[124..136]).ok_or_else(|| malformed("an entry has no length"))?;
            match header[156] {
                b'x' => extension.add_records(&self.extension(size)?)?,
                b'g' => {
                    // About all that follows: a comment, as git writes it, but nothing that changes what we read.
                    let mut global = Extension::default();
                    global.add_records(&self.extension(size)?)?;
                    if global.path.is_some() || global.link.is_some() || global.size.is_some() {
                        return Err(malformed("a global header gives a name or a length"));
                    }
                    continue;
                }
                b'L' => set(&mut extension.path, c_string(&self.extension(size)?)?)?,
                b'K' => set(&mut extension.link, c_string(&self.extension(size)?)?)?,
                flag => {
                    let entry = entry(&header, flag, size, extension)?;
                    self.left = entry.size;
                    self.padding = padding(entry.size);
                    return Ok(Some(entry));
                }
            }
            extended = true;
        }
    }

    /// Some bytes of the entry at hand; none at its end.
    pub(super) fn read(&mut self, buffer: &mut [u8]) -> Result<usize, Error> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let count = loop {
            match self.reader.read(&mut buffer[..most]) {
                Ok(count) => break count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::of_stream(error)),
            }
        };
        if count == 0 {
            return Err(Error::Truncated);
        }
        self.left -= count as u64;
        Ok(count)
    }

    /// Read on after the end: there may be zeros.
    pub(super) fn drain(&mut self) -> Result<(), Error> {
        let mut chunk = [0; 16 << 10];
        let mut total = 0;
        loop {
            match self.reader.read(&mut chunk) {
                Ok(0) => return Ok(()),
                Ok(count) if chunk[..count].iter().any(|&byte| byte != 0) => {
                    return Err(malformed("something follows its end"));
                }
                Ok(count) => total += count as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::of_stream(error)),
            }
            if total > MOST_PADDING {
                return Err(malformed("zeros follow its end without end"));
            }
        }
    }

    fn skip_padding(&mut self) -> Result<(), Error> {
        let mut block = [0; BLOCK];
        let length = std::mem::take(&mut self.padding) as usize;
        self.exact(&mut block[..length])
    }

    /// The next header; `None` at the end.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        self.seen += 1;
        if self.seen > MOST_ENTRIES {
            return Err(Error::Limit { what: format!("more than {MOST_ENTRIES} entries") });
        }
        let mut header = [0; BLOCK];
        self.exact(&mut header)?;
        if header.iter().all(|&byte| byte == 0) {
            self.exact(&mut header)?;
            return match header.iter().all(|&byte| byte == 0) {
                true => Ok(None),
                false => Err(malformed("a block of zeros stands between its entries")),
            };
        }
        let (unsigned, signed) = checksum(&header);
        let said = number(&header[148..156]);
        if said != Some(unsigned) && said.and_then(|said| i64::try_from(said).ok()) != Some(signed) {
            return Err(malformed("there is no tar header where one should be"));
        }
        Ok(Some(header))
    }

    fn extension(&mut self, size: u64) -> Result<Vec<u8>, Error> {
        if size > LONGEST_EXTENSION {
            return Err(Error::Limit { what: "an extended header of more than 64 KiB".to_owned() });
        }
        let mut bytes = vec![0; size as usize];
        self.exact(&mut bytes)?;
        self.padding = padding(size);
        self.skip_padding()?;
        Ok(bytes)
    }

    fn exact(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        self.reader.read_exact(buffer).map_err(Error::of_stream)
    }
}

impl Extension {
    /// The records of a PAX extended header: `LENGTH KEY=VALUE\n`.
    fn add_records(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        let wrong = || malformed("an extended header is no list of records");
        while !bytes.is_empty() {
            let space = bytes.iter().take(8).position(|&byte| byte == b' ').ok_or_else(wrong)?;
            let length = decimal(&bytes[..space]).and_then(|length| usize::try_from(length).ok()).ok_or_else(wrong)?;
            let record =
                bytes.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or_else(wrong)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or_else(wrong)?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => set(&mut self.path, text(value)?)?,
                b"linkpath" => set(&mut self.link, text(value)?)?,
                b"size" => set(&mut self.size, decimal(value).ok_or_else(wrong)?)?,
                key if key.starts_with(b"GNU.sparse.") => return Err(malformed("an entry is a sparse file")),
                // Times, owners, attributes: of no concern to an archive.
                _ => {}
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }
}

fn entry(header: &[u8; BLOCK], flag: u8, size: u64, extension: Extension) -> Result<Entry, Error> {
    let path = match extension.path {
        Some(path) => path,
        None => field_path(header)?,
    };
    let shown = path.escape_debug().to_string();
    let is_directory = flag == b'5' || (matches!(flag, b'0' | 0) && path.ends_with('/'));
    let path = clean(&path).ok_or_else(|| malformed(&format!("the name {shown:?} leads out of it")))?;
    let size = extension.size.unwrap_or(size);
    let link = |field: &[u8]| extension.link.clone().map_or_else(|| text(until_nul(field)), Ok);
    let kind = match flag {
        _ if is_directory => Kind::Directory,
        b'0' | 0 => Kind::File,
        b'2' => {
            let target = link(&header[157..257])?;
            // docker and podman name a layer twice in this way; the target is an entry of the same archive.
            let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
            let resolved = resolve(parent, &target);
            Kind::Symlink(resolved.ok_or_else(|| malformed(&format!("the link {shown:?} leads out of it")))?)
        }
        _ => return Err(malformed(&format!("{shown:?} is neither a file nor a directory"))),
    };
    if kind != Kind::File && size != 0 {
        return Err(malformed(&format!("{shown:?} is no file and has a content")));
    }
    Ok(Entry { path, kind, size })
}

/// The name in a header, of which POSIX has two halves.
fn field_path(header: &[u8; BLOCK]) -> Result<String, Error> {
    let name = text(until_nul(&header[..100]))?;
    let is_posix = &header[257..263] == b"ustar\0";
    match text(until_nul(&header[345..500]))? {
        prefix if is_posix && !prefix.is_empty() => Ok(format!("{prefix}/{name}")),
        _ => Ok(name),
    }
}

/// A path without `./` before and `/` after it; `None` if it is absolute, goes up, or could be written in another way.
pub(super) fn clean(path: &str) -> Option<String> {
    let mut path = path.strip_suffix('/').unwrap_or(path);
    while let Some(rest) = path.strip_prefix("./") {
        path = rest;
    }
    if path == "." || path.is_empty() {
        return Some(String::new());
    }
    let well = path.split('/').all(|component| !matches!(component, "" | "." | ".."));
    well.then(|| path.to_owned())
}

/// A link's target from the directory `parent`; `None` if it leads out of the archive.
fn resolve(parent: &str, target: &str) -> Option<String> {
    let mut components: Vec<&str> = parent.split('/').filter(|component| !component.is_empty()).collect();
    if target.starts_with('/') || target.is_empty() {
        return None;
    }
    for component in target.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            name => components.push(name),
        }
    }
    Some(components.join("/"))
}

fn text(bytes: &[u8]) -> Result<String, Error> {
    if bytes.len() > LONGEST_NAME {
        return Err(Error::Limit { what: format!("a name of more than {LONGEST_NAME} bytes") });
    }
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => Ok(text.to_owned()),
        _ => Err(malformed("a name in it is not text")),
    }
}

fn c_string(bytes: &[u8]) -> Result<String, Error> {
    text(until_nul(bytes))
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    bytes.split(|&byte| byte == 0).next().unwrap_or_default()
}

fn set<T>(value: &mut Option<T>, to: T) -> Result<(), Error> {
    match value.replace(to) {
        None => Ok(()),
        Some(_) => Err(malformed("extended headers give an entry two names or lengths")),
    }
}

/// A numeric field: octal digits, or base 256.
fn number(field: &[u8]) -> Option<u64> {
    if field.len() > 8 && field[0] == 0x80 {
        let (high, low) = field.split_at(field.len() - 8);
        let high_is_zero = high[1..].iter().all(|&byte| byte == 0);
        return high_is_zero.then(|| u64::from_be_bytes(low.try_into().unwrap_or([0xff; 8])));
    }
    let text = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    if text.is_empty() {
        return Some(0);
    }
    let is_octal = text.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    is_octal.then(|| u64::from_str_radix(text, 8).ok())?
}

fn decimal(bytes: &[u8]) -> Option<u64> {
    let is_number = !bytes.is_empty() && bytes.iter().all(u8::is_ascii_digit);
    is_number.then(|| std::str::from_utf8(bytes).ok()?.parse().ok())?
}

fn malformed(reason: &str) -> Error {
    Error::Malformed { reason: reason.to_owned() }
}

#[cfg(test)]
mod tests;
