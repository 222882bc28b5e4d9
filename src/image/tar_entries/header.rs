//! A header and what extended headers add to it, read as Go's `archive/tar` reads them.

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;

use crate::image::tar_entries::{Extensions, Facts};

/// The keyword of an extended attribute begins so.
const XATTR: &[u8] = b"SCHILY.xattr.";
/// The first second of the year 1, before which RFC 3339 has no times.
const YEAR_1: i64 = -62_135_596_800;

/// A header's fields, before extended headers have their say.
pub(super) struct Header {
    pub(super) kind: u8,
    name: Vec<u8>,
    link_name: Vec<u8>,
    mode: i64,
    uid: i64,
    gid: i64,
    pub(super) size: i64,
    modtime: i64,
    accesstime: Option<i64>,
    changetime: Option<i64>,
    device: (i64, i64),
}

/// In this order: POSIX; GNU, which has times where POSIX has a prefix; and the one before both, with nothing.
pub(super) const MAGIC_USTAR: &[u8] = b"ustar\0";
pub(super) const MAGIC_GNU: &[u8] = b"ustar  \0";

impl Header {
    pub(super) fn parse(block: &[u8]) -> Result<Header, &'static str> {
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
    pub(super) fn describe(self, extensions: Extensions) -> Result<(Result<Facts, &'static str>, u64), &'static str> {
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
pub(super) fn text(field: &[u8]) -> &[u8] {
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
pub(super) fn records(mut data: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>, &'static str> {
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
