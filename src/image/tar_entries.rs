//! The entries of a tar, found as its bytes go by: where a file's content begins and ends, and what its headers say.
//!
//! The tar may be ours or an engine's, so ustar, pax, GNU and the old format are read, as Go's `archive/tar` reads them.
//! What is not read ends the search: the rest of such a tar is only bytes.

mod header;

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::Serialize;

use header::{Header, records, text};

/// The unit of a tar.
const BLOCK: usize = 512;
/// The longest extended header: Go reads no longer one.
const LONGEST_EXTENSION: u64 = 1 << 20;
/// The most bytes before a file's content: padding, extended headers, header.
const LONGEST_HEADERS: usize = 4 << 20;

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

#[cfg(test)]
mod tests;
