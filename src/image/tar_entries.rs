//! The entries of a tar, found as its bytes go by: where a file's content begins and ends, and what its headers say.
//!
//! The tar may be ours or an engine's, so ustar, pax, GNU and the old format are read, as Go's `archive/tar` reads them.
//! What is not read ends the search: the rest of such a tar is only bytes.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::Serialize;

/// The unit of a tar.
const BLOCK: usize = 512;
/// The longest extended header: Go reads no longer one.
const LONGEST_EXTENSION: u64 = 1 << 20;
/// The most bytes before a file's content: padding, extended headers, header.
const LONGEST_HEADERS: usize = 4 << 20;
/// The keyword of an extended attribute begins so.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// The first second of the year 1, before which RFC 3339 has no times.
const YEAR_1: i64 = -62_135_596_800;

/// What the next bytes of a tar are.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Piece {
    /// Headers and padding. With the last of these bytes an entry's headers are complete, if there is one.
    Between(Option<Box<Entry>>),
    /// A file's content.
    Content {
        /// Whether it ends with them.
        is_last: bool,
    },
    /// What comes after the last entry, or cannot be read.
    Rest,
}

/// An entry, up to its content.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// All bytes since the content before: its padding, and the headers.
    pub(crate) raw: Vec<u8>,
    /// The length of the content.
    pub(crate) content: u64,
    /// What the headers say; or why that cannot be told in a table of contents.
    pub(crate) facts: Result<Facts, &'static str>,
}

/// What headers say, in the words of a table of contents.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Facts {
    #[serde(rename = "type")]
    pub(crate) kind: &'static str,
    pub(crate) name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    link_name: String,
    #[serde(skip_serializing_if = "is_zero")]
    mode: i64,
    #[serde(skip_serializing_if = "is_zero")]
    size: i64,
    #[serde(skip_serializing_if = "is_zero")]
    uid: i64,
    #[serde(skip_serializing_if = "is_zero")]
    gid: i64,
    #[serde(skip_serializing_if = "Option::is_none")]
    modtime: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    accesstime: Option<Timestamp>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changetime: Option<Timestamp>,
    #[serde(skip_serializing_if = "is_zero")]
    dev_major: i64,
    #[serde(skip_serializing_if = "is_zero")]
    dev_minor: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    xattrs: BTreeMap<String, String>,
}

impl Facts {
    /// Of nothing.
    pub(crate) const NONE: Facts = Facts {
        kind: "",
        name: String::new(),
        link_name: String::new(),
        mode: 0,
        size: 0,
        uid: 0,
        gid: 0,
        modtime: None,
        accesstime: None,
        changetime: None,
        dev_major: 0,
        dev_minor: 0,
        xattrs: BTreeMap::new(),
    };

    /// Of a further chunk of the file.
    pub(crate) fn chunk(&self) -> Facts {
        Facts { kind: "chunk", name: self.name.clone(), ..Facts::NONE }
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// Divides a tar.
#[derive(Debug)]
pub(crate) struct Entries {
    raw: Vec<u8>,
    extensions: Extensions,
    state: State,
}

#[derive(Debug)]
enum State {
    /// So many bytes up to a header.
    Padding(u64),
    /// A header, which is complete when `raw` has this length.
    Header(usize),
    /// The block after one of zeros, the same.
    HalfEnded(usize),
    /// The data of an extended header, which begins and ends there in `raw`, its padding not counted.
    Extension { kind: u8, begin: usize, end: usize },
    /// So many bytes of content, and of padding.
    Content(u64, u64),
    /// The end was found.
    Ended,
    /// This could not be read.
    Lost(&'static str),
}

/// What extended headers said of the entry to come.
#[derive(Debug, Default)]
struct Extensions {
    records: BTreeMap<Vec<u8>, Vec<u8>>,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl Default for Entries {
    fn default() -> Entries {
        Entries { raw: Vec::new(), extensions: Extensions::default(), state: State::Header(BLOCK) }
    }
}

impl Entries {
    /// How many of `bytes`, which are not empty, are the next piece of the tar.
    pub(crate) fn next(&mut self, bytes: &[u8]) -> (usize, Piece) {
        match self.state {
            State::Content(..) => {
                let (taken, is_last) = self.content(bytes.len() as u64);
                // Not more than there are bytes.
                (taken as usize, Piece::Content { is_last })
            }
            State::Ended | State::Lost(_) => (bytes.len(), Piece::Rest),
            _ => self.between(bytes),
        }
    }

    /// Pass over at most `length` bytes of content; says how many it were, and whether it ends with them.
    pub(crate) fn content(&mut self, length: u64) -> (u64, bool) {
        let State::Content(left, padding) = self.state else { return (0, false) };
        let taken = left.min(length);
        let is_last = taken == left;
        self.state = if is_last { State::Padding(padding) } else { State::Content(left - taken, padding) };
        (taken, is_last)
    }

    /// What was collected since the last entry, at the end of the tar; or why not all of its entries could be read.
    pub(crate) fn take_rest(&mut self) -> Result<Vec<u8>, &'static str> {
        match self.state {
            State::Ended => {}
            State::HalfEnded(end) if self.raw.len() == end - BLOCK => {}
            State::Padding(0) => {}
            State::Header(_) if self.raw.is_empty() => {}
            State::Lost(reason) => return Err(reason),
            _ => return Err("it ends within an entry"),
        }
        Ok(std::mem::take(&mut self.raw))
    }

    fn between(&mut self, bytes: &[u8]) -> (usize, Piece) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let goal = match self.state {
                State::Padding(0) => {
                    self.state = State::Header(self.raw.len() + BLOCK);
                    continue;
                }
                State::Padding(left) => {
                    // At most a block.
                    let taken = rest.len().min(left as usize);
                    self.raw.extend_from_slice(&rest[..taken]);
                    rest = &rest[taken..];
                    self.state = State::Padding(left - taken as u64);
                    continue;
                }
                State::Header(end) | State::HalfEnded(end) => end,
                State::Extension { end, begin, .. } => begin + (end - begin).next_multiple_of(BLOCK),
                State::Content(..) | State::Ended | State::Lost(_) => break,
            };
            let taken = rest.len().min(goal - self.raw.len());
            self.raw.extend_from_slice(&rest[..taken]);
            rest = &rest[taken..];
            if self.raw.len() == goal
                && let Some(entry) = self.complete()
            {
                return (bytes.len() - rest.len(), Piece::Between(Some(Box::new(entry))));
            }
        }
        (bytes.len() - rest.len(), Piece::Between(None))
    }

    /// A header or an extension is complete.
    fn complete(&mut self) -> Option<Entry> {
        let result = match self.state {
            State::Extension { kind, begin, end } => self.extension(kind, begin, end).map(|()| None),
            _ => self.header(),
        };
        result.unwrap_or_else(|reason| {
            self.state = State::Lost(reason);
            self.raw = Vec::new();
            None
        })
    }

    fn extension(&mut self, kind: u8, begin: usize, end: usize) -> Result<(), &'static str> {
        let data = &self.raw[begin..end];
        match kind {
            b'L' => self.extensions.long_name = text(data).to_owned(),
            b'K' => self.extensions.long_link = text(data).to_owned(),
            // The last extended header counts, with all that it has.
            _ => self.extensions.records = records(data)?,
        }
        if self.raw.len() > LONGEST_HEADERS {
            return Err("an entry's headers are too long");
        }
        self.state = State::Header(self.raw.len() + BLOCK);
        Ok(())
    }

    fn header(&mut self) -> Result<Option<Entry>, &'static str> {
        let begin = self.raw.len() - BLOCK;
        let block = &self.raw[begin..];
        let is_zero = block.iter().all(|byte| *byte == 0);
        match self.state {
            // Two blocks of zeros are the end.
            State::HalfEnded(_) if is_zero => self.state = State::Ended,
            State::HalfEnded(_) => return Err("a block of zeros is amid its entries"),
            _ if is_zero => self.state = State::HalfEnded(self.raw.len() + BLOCK),
            _ => {
                let header = Header::parse(block)?;
                if let b'x' | b'L' | b'K' = header.kind {
                    let size = u64::try_from(header.size).ok().filter(|size| *size <= LONGEST_EXTENSION);
                    let size = size.ok_or("an entry's headers are too long")? as usize;
                    let begin = self.raw.len();
                    self.state = State::Extension { kind: header.kind, begin, end: begin + size };
                    return if size == 0 { self.extension(header.kind, begin, begin).map(|()| None) } else { Ok(None) };
                }
                let (facts, content) = header.describe(std::mem::take(&mut self.extensions))?;
                let padding = content.next_multiple_of(BLOCK as u64) - content;
                self.state = if content > 0 { State::Content(content, padding) } else { State::Padding(0) };
                return Ok(Some(Entry { raw: std::mem::take(&mut self.raw), content, facts }));
            }
        }
        Ok(None)
    }
}

/// A header's fields, before extended headers have their say.
struct Header {
    kind: u8,
    name: Vec<u8>,
    link_name: Vec<u8>,
    mode: i64,
    uid: i64,
    gid: i64,
    size: i64,
    modtime: i64,
    accesstime: Option<i64>,
    changetime: Option<i64>,
    device: (i64, i64),
}

/// In this order: POSIX; GNU, which has times where POSIX has a prefix; and the one before both, with nothing.
const MAGIC_USTAR: &[u8] = b"ustar\0";
const MAGIC_GNU: &[u8] = b"ustar  \0";

impl Header {
    fn parse(block: &[u8]) -> Result<Header, &'static str> {
        let sum: i64 = block.iter().map(|byte| i64::from(*byte)).sum();
        // The sum's own field counts as spaces.
        let own: i64 = block[148..156].iter().map(|byte| i64::from(*byte)).sum();
        if number(&block[148..156])? != sum - own + 8 * i64::from(b' ') {
            return Err("a header's check sum is wrong");
        }
        let mut header = Header {
            kind: block[156],
            name: text(&block[..100]).to_owned(),
            link_name: text(&block[157..257]).to_owned(),
            mode: number(&block[100..108])?,
            uid: number(&block[108..116])?,
            gid: number(&block[116..124])?,
            size: number(&block[124..136])?,
            modtime: number(&block[136..148])?,
            accesstime: None,
            changetime: None,
            device: (0, 0),
        };
        let is_ustar = block[257..263] == *MAGIC_USTAR;
        if is_ustar && block[508..] == *b"tar\0" {
            return Err("it has headers of star");
        }
        if is_ustar || block[257..265] == *MAGIC_GNU {
            header.device = (number(&block[329..337])?, number(&block[337..345])?);
        }
        if is_ustar {
            let prefix = text(&block[345..500]);
            if !prefix.is_empty() {
                header.name = [prefix, b"/", &header.name].concat();
            }
        } else if block[257..265] == *MAGIC_GNU {
            let time = |field: &[u8]| if field[0] == 0 { Ok(None) } else { number(field).map(Some) };
            (header.accesstime, header.changetime) = (time(&block[345..357])?, time(&block[357..369])?);
        }
        Ok(header)
    }

    /// What this header and the extended ones before it say, and the length of the content.
    fn describe(self, extensions: Extensions) -> Result<(Result<Facts, &'static str>, u64), &'static str> {
        let Header { mut kind, mut name, mut link_name, mode, mut uid, mut gid, mut size, .. } = self;
        let at = |seconds: i64| (seconds, 0);
        let mut times = [Some(at(self.modtime)), self.accesstime.map(at), self.changetime.map(at)];
        let mut xattrs = Vec::new();
        for (keyword, value) in extensions.records {
            match &keyword[..] {
                keyword if keyword.starts_with(b"GNU.sparse.") => return Err("a file is stored as sparse"),
                keyword if keyword.starts_with(XATTR) => xattrs.push((keyword[XATTR.len()..].to_owned(), value)),
                _ if value.is_empty() => {}
                b"path" => name = value,
                b"linkpath" => link_name = value,
                b"uid" => uid = decimal(&value)?,
                b"gid" => gid = decimal(&value)?,
                b"size" => size = decimal(&value)?,
                b"mtime" => times[0] = Some(time(&value)?),
                b"atime" => times[1] = Some(time(&value)?),
                b"ctime" => times[2] = Some(time(&value)?),
                _ => {}
            }
        }
        for (long, field) in [(extensions.long_name, &mut name), (extensions.long_link, &mut link_name)] {
            if !long.is_empty() {
                *field = long;
            }
        }
        let is_named_directory = name.ends_with(b"/");
        if kind == 0 {
            kind = if is_named_directory { b'5' } else { b'0' };
        }
        let type_name = match kind {
            b'0' => "reg",
            b'1' => "hardlink",
            b'2' => "symlink",
            b'3' => "char",
            b'4' => "block",
            b'5' => "dir",
            b'6' => "fifo",
            _ => return Err("an entry's type is none that is known"),
        };
        let length = u64::try_from(size).map_err(|_| "a size is negative")?;
        let content = if kind == b'0' { length } else { 0 };
        let facts = || {
            if length != content {
                return Err("something other than a file has a size");
            }
            if kind == b'0' && is_named_directory {
                return Err("a file is named as a directory");
            }
            let name = utf8(name, "a name is not UTF-8")?;
            let link_name = utf8(link_name, "a link's target is not UTF-8")?;
            let encoded = |(key, value): (Vec<u8>, Vec<u8>)| {
                let key = utf8(key, "an extended attribute's name is not UTF-8")?;
                Ok::<_, &'static str>((key, STANDARD.encode(value)))
            };
            let xattrs = xattrs.into_iter().map(encoded).collect::<Result<_, _>>()?;
            let [modtime, accesstime, changetime] = times.map(|time| time.map(timestamp).transpose());
            let (dev_major, dev_minor) = self.device;
            let (modtime, accesstime, changetime) = (modtime?, accesstime?, changetime?);
            Ok(Facts {
                kind: type_name,
                name,
                link_name,
                mode,
                size,
                uid,
                gid,
                modtime,
                accesstime,
                changetime,
                dev_major,
                dev_minor,
                xattrs,
            })
        };
        Ok((facts(), content))
    }
}

fn utf8(bytes: Vec<u8>, reason: &'static str) -> Result<String, &'static str> {
    String::from_utf8(bytes).map_err(|_| reason)
}

/// The bytes before the first zero.
fn text(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Octal digits; or, if the highest bit is set, a binary number as GNU tar writes it.
fn number(field: &[u8]) -> Result<i64, &'static str> {
    const WRONG: &str = "a number in a header cannot be read";
    let first = field[0];
    if first & 0x80 != 0 {
        // Two's complement, the highest bit aside.
        let begin = if first & 0x40 != 0 { -1 } else { 0 };
        let (first, rest) = (i128::from(first & 0x3f), &field[1..]);
        let value = rest.iter().fold((begin << 6) | first, |value, byte| (value << 8) | i128::from(*byte));
        return i64::try_from(value).map_err(|_| WRONG);
    }
    let is_filler = |byte: &u8| matches!(byte, b' ' | 0);
    let Some(begin) = field.iter().position(|byte| !is_filler(byte)) else { return Ok(0) };
    let end = field.iter().rposition(|byte| !is_filler(byte)).map_or(field.len(), |last| last + 1);
    text(&field[begin..end]).iter().try_fold(0_i64, |value, digit| match digit {
        b'0'..=b'7' => Ok(value << 3 | i64::from(digit - b'0')),
        _ => Err(WRONG),
    })
}

/// The records of an extended header: POSIX.1-2024, `pax`, "pax Extended Header".
fn records(mut data: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, &'static str> {
    const WRONG: &str = "an extended header cannot be read";
    let mut records = BTreeMap::new();
    while !data.is_empty() {
        let space = data.iter().position(|byte| *byte == b' ').ok_or(WRONG)?;
        let length = usize::try_from(decimal(&data[..space])?).map_err(|_| WRONG)?;
        let record = data.get(space + 1..length).and_then(|record| record.strip_suffix(b"\n")).ok_or(WRONG)?;
        let equals = record.iter().position(|byte| *byte == b'=').filter(|at| *at > 0).ok_or(WRONG)?;
        let (keyword, value) = (&record[..equals], &record[equals + 1..]);
        let named = matches!(keyword, b"path" | b"linkpath" | b"uname" | b"gname");
        if if named { value } else { keyword }.contains(&0) {
            return Err(WRONG);
        }
        records.insert(keyword.to_owned(), value.to_owned());
        data = &data[length..];
    }
    Ok(records)
}

/// Digits, which a minus may precede.
fn decimal(digits: &[u8]) -> Result<i64, &'static str> {
    const WRONG: &str = "a number in an extended header cannot be read";
    let is_plain = digits.iter().enumerate().all(|(at, byte)| byte.is_ascii_digit() || (at == 0 && *byte == b'-'));
    let text = std::str::from_utf8(digits).ok().filter(|_| is_plain).ok_or(WRONG)?;
    text.parse().map_err(|_| WRONG)
}

/// Seconds and nanoseconds, which count away from zero. More than nine places are cut.
fn time(value: &[u8]) -> Result<(i64, i32), &'static str> {
    let point = value.iter().position(|byte| *byte == b'.');
    let (seconds, fraction) = point.map_or((value, &b""[..]), |at| (&value[..at], &value[at + 1..]));
    if !fraction.iter().all(u8::is_ascii_digit) {
        return Err("a time in an extended header cannot be read");
    }
    let places = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanoseconds = places.fold(0, |sum, digit| sum * 10 + i32::from(digit - b'0'));
    let is_negative = seconds.first() == Some(&b'-');
    Ok((decimal(seconds)?, if is_negative { -nanoseconds } else { nanoseconds }))
}

fn timestamp((seconds, nanoseconds): (i64, i32)) -> Result<Timestamp, &'static str> {
    let time = Timestamp::new(seconds, nanoseconds).ok().filter(|time| time.as_second() >= YEAR_1);
    time.ok_or("a time is outside of the years 1 to 9999")
}

#[cfg(test)]
mod tests;
