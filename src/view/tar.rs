//! The entries of a tar, read strictly: POSIX.1-2024 `pax` (ustar headers and extended records), and of GNU's the long
//! names and binary numbers.
//!
//! Where implementations differ this follows Go's `archive/tar`, because containerd, podman, buildah and umoci unpack with
//! it: what is shown must be what they unpack. What that reader would not read, or reads in a way of its own (sparse
//! files), is refused. The bytes are hostile: nothing is believed that does not fit, and memory is bounded by
//! [`LONGEST`].

use std::collections::BTreeMap;
use std::io::{self, BufRead, Read};

/// A block of a tar.
const BLOCK: usize = 512;
/// The longest extended header or long name, in bytes: Go's limit.
const LONGEST: u64 = 1 << 20;

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Directory,
    Fifo,
}

/// One entry, with all that its headers say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) kind: Type,
    pub(crate) path: Vec<u8>,
    pub(crate) target: Vec<u8>,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds and nanoseconds since the epoch; nanoseconds count forward.
    pub(crate) mtime: (i64, u32),
    /// Length of the content; 0 for all but files.
    pub(crate) size: u64,
    /// Where its headers begin in the tar, if there is nothing else between them.
    pub(crate) start: Option<u64>,
    /// Where the content begins in the tar.
    pub(crate) offset: u64,
    /// Major and minor number of a device.
    pub(crate) device: (u32, u32),
    /// Extended attributes in the order of their names.
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Why a tar cannot be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("{0}")]
    Read(#[from] io::Error),
    #[error("at byte {at} of its tar: {reason}")]
    Malformed { at: u64, reason: String },
}

/// Reads one entry after the other; contents are passed over.
#[derive(Debug)]
pub(crate) struct Reader<R> {
    input: R,
    at: u64,
    /// Where the next header is.
    next: u64,
}

impl<R: BufRead> Reader<R> {
    pub(crate) fn new(input: R) -> Reader<R> {
        Reader { input, at: 0, next: 0 }
    }

    /// The tar behind what was read of it.
    pub(crate) fn into_input(self) -> R {
        self.input
    }

    /// The next entry; `None` after the last.
    pub(crate) fn entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut records = Records::default();
        let (mut long_path, mut long_target) = (None, None);
        let (mut start, mut is_whole) = (None, true);
        loop {
            self.skip(self.next)?;
            let at = self.at;
            let Some(header) = self.header()? else { return Ok(None) };
            let bad = |reason: &str| Error::Malformed { at, reason: reason.to_owned() };
            let size = header.number(124, 12).and_then(|size| u64::try_from(size).ok());
            let size = size.ok_or_else(|| bad("a size that is no number"))?;
            if header.flag() != b'g' {
                start = start.or(Some(at));
            }
            match header.flag() {
                b'x' => records = Records::parse(&self.special(size, at)?).map_err(|reason| bad(&reason))?,
                b'L' => long_path = Some(until_nul(&self.special(size, at)?).to_vec()),
                b'K' => long_target = Some(until_nul(&self.special(size, at)?).to_vec()),
                // Says something of all files that follow; Go's reader applies none of it.
                b'g' => {
                    drop(self.special(size, at)?);
                    is_whole = start.is_none();
                }
                _ => {
                    let entry = header.entry(records, long_path, long_target, size, self.at);
                    let (mut entry, body) = entry.map_err(|reason| Error::Malformed { at, reason })?;
                    entry.start = start.filter(|_| is_whole);
                    self.next = padded(self.at, body).ok_or_else(|| bad("a size beyond all bounds"))?;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// A header block; `None` at the end: two blocks of zeros, or where the tar is cut between entries.
    fn header(&mut self) -> Result<Option<Header>, Error> {
        let at = self.at;
        let Some(block) = self.block()? else { return Ok(None) };
        if block == [0; BLOCK] {
            return match self.block()? {
                None => Ok(None),
                Some(block) if block == [0; BLOCK] => Ok(None),
                Some(_) => Err(Error::Malformed { at, reason: "an empty header between others".to_owned() }),
            };
        }
        let header = Header(block);
        if header.is_whole() {
            Ok(Some(header))
        } else {
            Err(Error::Malformed { at, reason: "a header whose checksum is wrong".to_owned() })
        }
    }

    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, Error> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.cut()),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.at += BLOCK as u64;
        Ok(Some(block))
    }

    /// The content of an entry that says something of the next one.
    fn special(&mut self, size: u64, at: u64) -> Result<Vec<u8>, Error> {
        if size > LONGEST {
            return Err(Error::Malformed { at, reason: format!("an extended header of {size} bytes") });
        }
        let mut content = Vec::new();
        (&mut self.input).take(size).read_to_end(&mut content)?;
        if content.len() as u64 != size {
            return Err(self.cut());
        }
        self.next = padded(self.at, size).unwrap_or(u64::MAX);
        self.at += size;
        Ok(content)
    }

    fn skip(&mut self, to: u64) -> Result<(), Error> {
        while self.at < to {
            let there = match self.input.fill_buf() {
                Ok(buffer) => buffer.len() as u64,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if there == 0 {
                return Err(self.cut());
            }
            let count = there.min(to - self.at);
            self.input.consume(usize::try_from(count).unwrap_or(usize::MAX));
            self.at += count;
        }
        Ok(())
    }

    fn cut(&self) -> Error {
        Error::Malformed { at: self.at, reason: "it ends in the middle of an entry".to_owned() }
    }
}

/// Where the block after `size` bytes at `at` begins.
fn padded(at: u64, size: u64) -> Option<u64> {
    at.checked_add(size.checked_next_multiple_of(BLOCK as u64)?).filter(|end| *end < 1 << 62)
}

fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

struct Header([u8; BLOCK]);

/// Which of the tars a header is of, as far as its fields differ.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    fn field(&self, from: usize, length: usize) -> &[u8] {
        &self.0[from..from + length]
    }

    fn flag(&self) -> u8 {
        self.0[156]
    }

    /// Bytes are summed as unsigned or, by old programs, as signed numbers.
    fn is_whole(&self) -> bool {
        let Some(told) = octal(self.field(148, 8)) else { return false };
        let counted = |at: usize| if (148..156).contains(&at) { b' ' } else { self.0[at] };
        let unsigned: i64 = (0..BLOCK).map(|at| i64::from(counted(at))).sum();
        let signed: i64 = (0..BLOCK).map(|at| i64::from(counted(at).cast_signed())).sum();
        told == unsigned || told == signed
    }

    fn format(&self) -> Format {
        match (self.field(257, 6), self.field(263, 2), self.field(508, 4)) {
            (b"ustar\0", _, b"tar\0") => Format::Star,
            (b"ustar\0", ..) => Format::Ustar,
            (b"ustar ", b" \0", _) => Format::Gnu,
            _ => Format::V7,
        }
    }

    /// Octal digits, or GNU's big-endian number whose first bit is set.
    fn number(&self, from: usize, length: usize) -> Option<i64> {
        let field = self.field(from, length);
        if field[0] & 0x80 == 0 {
            return octal(field);
        }
        // Two's complement, without the first bit, which is the mark.
        let negative = field[0] & 0x40 != 0;
        let first = if negative { field[0] | 0x80 } else { field[0] & 0x7f };
        let mut number = if negative { -1i128 } else { 0 };
        for (at, byte) in field.iter().enumerate() {
            let byte = if at == 0 { first } else { *byte };
            number = (number << 8) | i128::from(byte);
            if i64::try_from(number).is_err() {
                return None;
            }
        }
        i64::try_from(number).ok()
    }

    /// The entry, and the length of the content that follows.
    fn entry(
        &self,
        mut records: Records,
        long_path: Option<Vec<u8>>,
        long_target: Option<Vec<u8>>,
        size: u64,
        offset: u64,
    ) -> Result<(Entry, u64), String> {
        let format = self.format();
        let number =
            |from, length, what: &str| self.number(from, length).ok_or_else(|| format!("{what} that is no number"));
        let id = |number: i64| u32::try_from(number).map_err(|_| format!("the user or group {number}"));
        let mut path = until_nul(self.field(0, 100)).to_vec();
        let prefix: &[u8] = match format {
            Format::Ustar => until_nul(self.field(345, 155)),
            Format::Star => until_nul(self.field(345, 131)),
            Format::Gnu | Format::V7 => b"",
        };
        if !prefix.is_empty() {
            path = [prefix, b"/", &path].concat();
        }
        if let Some(given) = records.path.take().filter(|path| !path.is_empty()) {
            path = given;
        }
        let mut target = until_nul(self.field(157, 100)).to_vec();
        if let Some(given) = records.target.take().filter(|target| !target.is_empty()) {
            target = given;
        }
        let path = long_path.filter(|path| !path.is_empty()).unwrap_or(path);
        let target = long_target.filter(|target| !target.is_empty()).unwrap_or(target);
        let kind = match self.flag() {
            // A program of before 1988 has no other way to say it.
            0 if path.ends_with(b"/") => Type::Directory,
            b'0' | 0 => Type::File,
            b'1' => Type::HardLink,
            b'2' => Type::Symlink,
            b'3' => Type::CharDevice,
            b'4' => Type::BlockDevice,
            b'5' => Type::Directory,
            b'6' => Type::Fifo,
            b'S' => return Err("a sparse file in GNU's format, which image-spec layer.md advises against".to_owned()),
            other => return Err(format!("an entry of the unknown type {:?}", char::from(other))),
        };
        if records.sparse {
            return Err("a sparse file in GNU's format, which image-spec layer.md advises against".to_owned());
        }
        let size = records.size.unwrap_or(size);
        // Only files have content, whatever the header says: Go's reader, and so every unpacker, goes on right behind it.
        let body = if matches!(self.flag(), b'1'..=b'6') { 0 } else { size };
        let device = match kind {
            Type::CharDevice | Type::BlockDevice if format != Format::V7 => {
                let part = |from| {
                    number(from, 8, "a device")
                        .and_then(|part| u32::try_from(part).map_err(|_| format!("the device number {part}")))
                };
                (part(329)?, part(337)?)
            }
            _ => (0, 0),
        };
        let mtime = match records.mtime {
            Some(time) => time,
            None => (number(136, 12, "a time")?, 0),
        };
        let entry = Entry {
            kind,
            path,
            target,
            mode: u16::try_from(number(100, 8, "a mode")? & 0o7777).unwrap_or(0),
            uid: id(records.uid.map_or_else(|| number(108, 8, "a user"), Ok)?)?,
            gid: id(records.gid.map_or_else(|| number(116, 8, "a group"), Ok)?)?,
            mtime,
            size: if kind == Type::File { size } else { 0 },
            start: None,
            offset,
            device,
            xattrs: records.xattrs.into_iter().collect(),
        };
        if entry.path.contains(&0) || entry.target.contains(&0) {
            return Err("a name that holds a zero byte".to_owned());
        }
        Ok((entry, body))
    }
}

/// Digits between spaces and zero bytes; nothing at all is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let blank = |byte: &u8| *byte == b' ' || *byte == 0;
    let start = field.iter().position(|byte| !blank(byte)).unwrap_or(field.len());
    let end = field.iter().rposition(|byte| !blank(byte)).map_or(start, |last| last + 1);
    let digits = until_nul(&field[start..end]);
    digits.iter().try_fold(0i64, |number, digit| match digit {
        b'0'..=b'7' => number.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
        _ => None,
    })
}

/// What an extended header says of the next entry.
#[derive(Debug, Default)]
struct Records {
    path: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<i64>,
    gid: Option<i64>,
    mtime: Option<(i64, u32)>,
    sparse: bool,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The names in `xattrs`, as listxattr(2) would give them, in bytes.
    xattr_names: usize,
}

impl Records {
    /// `LENGTH KEY=VALUE\n`, any number of them.
    fn parse(mut bytes: &[u8]) -> Result<Records, String> {
        let mut records = Records::default();
        while !bytes.is_empty() {
            let record = || {
                let space = bytes.iter().take(20).position(|byte| *byte == b' ')?;
                let length = decimal(&bytes[..space])?;
                let length = usize::try_from(length).ok().filter(|length| *length <= bytes.len())?;
                let text = bytes.get(space + 1..length)?.strip_suffix(b"\n")?;
                let equals = text.iter().position(|byte| *byte == b'=')?;
                Some((&text[..equals], &text[equals + 1..], length))
            };
            let (key, value, length) = record().ok_or("an extended header that is none")?;
            bytes = &bytes[length..];
            records.take(key, value)?;
        }
        Ok(records)
    }

    /// A record without a value takes back what an earlier one, or the header, is overridden with.
    fn take(&mut self, key: &[u8], value: &[u8]) -> Result<(), String> {
        let bad =
            || format!("the extended header {}={}", key.escape_ascii(), value[..value.len().min(40)].escape_ascii());
        if key.is_empty() || key.contains(&0) {
            return Err(bad());
        }
        let number = || if value.is_empty() { Ok(None) } else { decimal(value).map(Some).ok_or_else(bad) };
        match key {
            b"path" | b"linkpath" if value.contains(&0) => return Err(bad()),
            b"path" => self.path = Some(value.to_vec()),
            b"linkpath" => self.target = Some(value.to_vec()),
            b"size" => self.size = number()?.map(|size| u64::try_from(size).map_err(|_| bad())).transpose()?,
            b"uid" => self.uid = number()?,
            b"gid" => self.gid = number()?,
            b"mtime" if value.is_empty() => self.mtime = None,
            b"mtime" => self.mtime = Some(time(value).ok_or_else(bad)?),
            _ if key.starts_with(b"GNU.sparse.") => self.sparse = true,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    self.take_xattr(name, value)?;
                }
            }
        }
        Ok(())
    }

    fn take_xattr(&mut self, name: &[u8], value: &[u8]) -> Result<(), String> {
        // overlayfs would obey these if the tree is mounted below one.
        if name.starts_with(b"trusted.overlay.") {
            return Ok(());
        }
        // The limits of xattr(7).
        if name.is_empty() || name.len() > 255 || value.len() > 64 << 10 {
            return Err("an extended attribute that no file can have".to_owned());
        }
        if self.xattrs.insert(name.to_vec(), value.to_vec()).is_none() {
            self.xattr_names += name.len() + 1;
        }
        if self.xattr_names > 64 << 10 {
            return Err("more extended attributes than a file can have".to_owned());
        }
        Ok(())
    }
}

fn decimal(digits: &[u8]) -> Option<i64> {
    std::str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?.parse().ok()
}

/// Decimal seconds with a fraction, of which nine digits count.
fn time(text: &[u8]) -> Option<(i64, u32)> {
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &b""[..]),
    };
    let seconds = decimal(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |number, digit| number * 10 + u32::from(digit - b'0'));
    if whole.starts_with(b"-") && nanoseconds != 0 {
        // Away from zero: -1.25 is 0.75 after -2.
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds));
    }
    Some((seconds, nanoseconds))
}

#[cfg(test)]
mod tests;
