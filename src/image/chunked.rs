//! The end of a `zstd:chunked` blob: a table of contents, and what is not content, so that the tar can be made again
//! from both. `docs/layer-format.md` has the bytes.
//!
//! Both are made when the layer is complete: headers are read again, from the frames that hold them, and what is known
//! of contents was noted as they went by. So entries that were taken back need no care, and between the two times an
//! entry takes no memory but for its sums.

use std::collections::{BTreeMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher as _};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::image::frame::{Chunk, Decoder};
use crate::image::output::Output;
use crate::image::tar_entries::{Entries, Entry, Facts, Piece};
use crate::image::{Compression, Error};
use crate::oci::{Crc64, Digest};

/// The magic number of the skippable frames.
const SKIPPABLE: [u8; 4] = 0x184D_2A50_u32.to_le_bytes();
/// A skippable frame's magic number and length.
const SKIPPABLE_HEADER: u64 = 8;
/// The last eight bytes of such a blob.
const MAGIC: [u8; 8] = *b"GNUlInUx";
/// The content of the last frame: seven numbers and the magic number.
const FOOTER: usize = 64;
/// As many bytes at the end of a blob say whether it is such a one.
pub const TAIL: usize = SKIPPABLE_HEADER as usize + FOOTER;
/// The kind of table that this is.
const CRFS: u64 = 1;
/// The longest table of contents that podman reads.
const LONGEST_TABLE: u64 = 150 << 20;
/// The most bytes in one line about what is not content.
const LONGEST_PART: usize = 1 << 20;
/// How strongly both are compressed. It does not depend on the layer's level, and takes little time.
const LEVEL: i32 = 3;

const CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";
const POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";
const TAR_SPLIT_POSITION: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// What comes after the frames and the seek table.
#[derive(Debug)]
pub(crate) struct Trailer {
    /// The three frames, in pieces.
    pub(crate) pieces: Vec<Vec<u8>>,
    /// What the layer's descriptor says of them.
    pub(crate) annotations: BTreeMap<String, String>,
}

/// Why there is no trailer.
#[derive(Debug)]
pub(crate) enum Why {
    /// A layer like this one cannot have it, for this reason.
    Unfit(&'static str),
    /// The blob cannot be read again, or no memory is left.
    Failed(Error),
}

impl From<io::Error> for Why {
    fn from(error: io::Error) -> Why {
        Why::Failed(Error::Write(error))
    }
}

/// The trailer of the blob that `output` is; it will be at `position` there.
pub(crate) fn trailer(output: &Output, position: u64) -> Result<Trailer, Why> {
    let read_back = |error| Why::Failed(Error::ReadBack(error));
    let file = output.blob.reopen().map_err(|error| Why::Failed(error.into()))?;
    let mut decoder = Decoder::new(Compression::ZstdChunked).map_err(read_back)?;
    let (mut packed, mut raw) = (Vec::new(), Vec::new());
    let mut table = Table::new()?;
    let (mut at, mut chunks) = (0, output.chunks.iter());
    for frame in &output.frames {
        let end = at + u64::from(frame.packed);
        if frame.is_chunk {
            let chunk = chunks.next().ok_or(Why::Unfit(MISPLACED))?;
            table.content(chunk, frame.raw, at, end)?;
        } else {
            packed.resize(frame.packed as usize, 0);
            raw.resize(frame.raw as usize, 0);
            file.read_exact_at(&mut packed, at).map_err(read_back)?;
            decoder.decode(&packed, &mut raw).map_err(read_back)?;
            table.between(&raw)?;
        }
        at = end;
    }
    table.finish(position)
}

/// Where the seek table of a zstd blob of `length` bytes ends, given the last [`TAIL`] of them, or all if there are fewer:
/// where the trailer of `zstd:chunked` begins, if it has one, or at the blob's end.
pub fn seek_table_end(tail: &[u8], length: u64) -> u64 {
    let footer = tail.strip_prefix(&SKIPPABLE).and_then(|rest| rest.strip_prefix(&(FOOTER as u32).to_le_bytes()));
    let begin = footer.filter(|footer| footer.len() == FOOTER && footer.ends_with(&MAGIC)).and_then(|footer| {
        let contents = u64::from_le_bytes(*footer.first_chunk()?);
        contents.checked_sub(SKIPPABLE_HEADER).filter(|begin| *begin < length)
    });
    begin.unwrap_or(length)
}

/// Of a tar that ends within a file; or of a defect.
const MISPLACED: &str = "not every file in it has frames to itself";

/// Both lists as far as they are made.
struct Table {
    entries: Entries,
    /// The table of contents, with directories only: podman copies files that it has beside each other, and fails if
    /// two of them are to make the same directory.
    contents: List,
    /// The other entries.
    others: List,
    parts: List,
    part: u64,
    /// What the paths of all entries hash to.
    paths: HashSet<u64>,
    open: Option<Open>,
}

/// A file whose content is under way.
struct Open {
    facts: Facts,
    size: u64,
    /// Each chunk, with its place in the blob and its length in the file.
    chunks: Vec<(Chunk, u64, u32)>,
    begin: u64,
}

impl Table {
    fn new() -> io::Result<Table> {
        let mut contents = List::new()?;
        contents.write_all(br#"{"version":1,"entries":["#)?;
        Ok(Table {
            entries: Entries::default(),
            contents,
            others: List::new()?,
            parts: List::new()?,
            part: 0,
            paths: HashSet::new(),
            open: None,
        })
    }

    /// Bytes that are not content.
    fn between(&mut self, mut bytes: &[u8]) -> Result<(), Why> {
        while !bytes.is_empty() {
            let (taken, piece) = self.entries.next(bytes);
            let (these, after) = bytes.split_at(taken);
            match piece {
                Piece::Between(Some(entry)) => self.entry(*entry)?,
                Piece::Between(None) => {}
                Piece::Content { .. } => return Err(Why::Unfit(MISPLACED)),
                Piece::Rest => self.rest(these)?,
            }
            bytes = after;
        }
        Ok(())
    }

    fn rest(&mut self, bytes: &[u8]) -> Result<(), Why> {
        let before = self.entries.take_rest().map_err(Why::Unfit)?;
        for part in [&before[..]].into_iter().chain(bytes.chunks(LONGEST_PART)).filter(|part| !part.is_empty()) {
            self.raw(part)?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: Entry) -> Result<(), Why> {
        let facts = entry.facts.map_err(Why::Unfit)?;
        if matches!(facts.kind, "char" | "block" | "fifo") {
            return Err(Why::Unfit("it has a device or a FIFO, which podman leaves out when it fetches file by file"));
        }
        if !self.paths.insert(hash(&facts.name)) {
            return Err(Why::Unfit("a path is in it twice"));
        }
        self.raw(&entry.raw)?;
        if entry.content == 0 {
            self.file(&facts.name, 0, None)?;
            return self.list(&TableEntry { facts: &facts, ..TableEntry::default() });
        }
        self.open = Some(Open { facts, size: entry.content, chunks: Vec::new(), begin: 0 });
        Ok(())
    }

    /// A frame that holds nothing but content.
    fn content(&mut self, chunk: &Chunk, length: u32, begin: u64, end: u64) -> Result<(), Why> {
        let (taken, is_last) = self.entries.content(length.into());
        let Some(open) = self.open.as_mut().filter(|_| taken == u64::from(length) && is_last == chunk.is_last) else {
            return Err(Why::Unfit(MISPLACED));
        };
        if open.chunks.is_empty() {
            open.begin = begin;
        }
        open.chunks.push((chunk.clone(), begin, length));
        if is_last && let Some(open) = self.open.take() {
            self.close(&open, end)?;
        }
        Ok(())
    }

    /// A file's content has ended.
    fn close(&mut self, open: &Open, end: u64) -> Result<(), Why> {
        let Open { facts, size, chunks, begin } = open;
        let sum = chunks
            .iter()
            .fold(Crc64::new().value(), |sum, (chunk, _, length)| Crc64::joined(sum, chunk.crc, u64::from(*length)));
        self.file(&facts.name, *size, Some(sum))?;
        let [(first, _, first_length), rest @ ..] = &chunks[..] else { return Err(Why::Unfit(MISPLACED)) };
        let whole = chunks.last().and_then(|(last, ..)| last.file.as_deref()).unwrap_or(&first.digest);
        let entry = TableEntry { facts, digest: Some(whole), offset: *begin, end_offset: end, ..TableEntry::default() };
        if rest.is_empty() {
            return self.list(&entry);
        }
        self.list(&TableEntry { chunk: PartOf::new(first, *first_length, 0), ..entry })?;
        let mut at = u64::from(*first_length);
        for (chunk, offset, length) in rest {
            let facts = &facts.chunk();
            let chunk = PartOf::new(chunk, *length, at);
            self.list(&TableEntry { facts, offset: *offset, chunk, ..TableEntry::default() })?;
            at += u64::from(*length);
        }
        Ok(())
    }

    /// A line of the table of contents.
    fn list(&mut self, entry: &TableEntry<'_>) -> Result<(), Why> {
        let list = if entry.facts.kind == "dir" { &mut self.contents } else { &mut self.others };
        if list.entries > 0 {
            list.write_all(b",")?;
        }
        list.entries += 1;
        serde_json::to_writer(list, entry).map_err(|error| Why::Failed(error.into()))?;
        if self.contents.length + self.others.length > LONGEST_TABLE {
            return Err(Why::Unfit("its table of contents would be longer than the 150 MiB that podman reads"));
        }
        Ok(())
    }

    /// A line about bytes of the tar.
    fn raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        let (bytes, part) = (STANDARD.encode(bytes), self.next_part());
        writeln!(self.parts, r#"{{"type":2,"payload":"{bytes}","position":{part}}}"#)
    }

    /// A line about a file's content.
    fn file(&mut self, name: &str, size: u64, sum: Option<u64>) -> Result<(), Why> {
        let name = serde_json::to_string(name).map_err(|error| Why::Failed(error.into()))?;
        let part = self.next_part();
        match sum {
            None => writeln!(self.parts, r#"{{"type":1,"name":{name},"payload":null,"position":{part}}}"#)?,
            Some(sum) => {
                let sum = STANDARD.encode(sum.to_be_bytes());
                writeln!(
                    self.parts,
                    r#"{{"type":1,"name":{name},"size":{size},"payload":"{sum}","position":{part}}}"#
                )?;
            }
        }
        Ok(())
    }

    fn next_part(&mut self) -> u64 {
        self.part += 1;
        self.part - 1
    }

    fn finish(mut self, position: u64) -> Result<Trailer, Why> {
        if self.open.is_some() {
            return Err(Why::Unfit(MISPLACED));
        }
        let before = self.entries.take_rest().map_err(Why::Unfit)?;
        if !before.is_empty() {
            self.raw(&before)?;
        }
        let (parts, parts_length) = self.parts.finish()?;
        if self.contents.entries > 0 && self.others.entries > 0 {
            self.contents.write_all(b",")?;
        }
        let (others, _) = self.others.finish()?;
        io::copy(&mut zstd::stream::read::Decoder::new(&others[..])?, &mut self.contents)?;
        drop(others);
        write!(self.contents, r#"],"tarSplitDigest":"{}"}}"#, Digest::of(&parts))?;
        let (contents, contents_length) = self.contents.finish()?;
        let (contents_packed, parts_packed) = (contents.len() as u64, parts.len() as u64);
        let contents_at = position + SKIPPABLE_HEADER;
        let parts_at = contents_at + contents_packed + SKIPPABLE_HEADER;
        let annotations = [
            (CHECKSUM, Digest::of(&contents).to_string()),
            (POSITION, format!("{contents_at}:{contents_packed}:{contents_length}:{CRFS}")),
            (TAR_SPLIT_POSITION, format!("{parts_at}:{parts_packed}:{parts_length}")),
        ];
        let numbers = [contents_at, contents_packed, contents_length, CRFS, parts_at, parts_packed, parts_length];
        let footer = numbers.into_iter().flat_map(u64::to_le_bytes).chain(MAGIC).collect();
        let mut pieces = Vec::new();
        for content in [contents, parts, footer] {
            let length = u32::try_from(content.len()).map_err(|_| Why::Unfit("it has too many entries"))?;
            pieces.push([SKIPPABLE, length.to_le_bytes()].concat());
            pieces.push(content);
        }
        Ok(Trailer { pieces, annotations: annotations.map(|(key, value)| (key.to_owned(), value)).into() })
    }
}

/// What a path is, whatever its dots and slashes. Two paths in a layer of which both hash to the same have it taken for
/// one with a path twice, which is then stored as plain zstd.
fn hash(path: &str) -> u64 {
    let mut names = Vec::new();
    for name in path.split('/').filter(|name| !matches!(*name, "" | ".")) {
        match name {
            ".." if names.last().is_some_and(|last| *last != "..") => drop(names.pop()),
            _ => names.push(name),
        }
    }
    // Without a seed, so that the same layer is always the same blob.
    let mut hasher = DefaultHasher::new();
    names.hash(&mut hasher);
    hasher.finish()
}

/// An element of the table of contents.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TableEntry<'a> {
    #[serde(flatten)]
    facts: &'a Facts,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<&'a Digest>,
    #[serde(skip_serializing_if = "is_zero")]
    offset: u64,
    #[serde(skip_serializing_if = "is_zero")]
    end_offset: u64,
    #[serde(flatten)]
    chunk: Option<PartOf<'a>>,
}

static NO_FACTS: Facts = Facts::NONE;

impl Default for TableEntry<'_> {
    fn default() -> Self {
        TableEntry { facts: &NO_FACTS, digest: None, offset: 0, end_offset: 0, chunk: None }
    }
}

/// A chunk of a file that has several.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct PartOf<'a> {
    chunk_size: u32,
    #[serde(skip_serializing_if = "is_zero")]
    chunk_offset: u64,
    chunk_digest: &'a Digest,
    #[serde(skip_serializing_if = "str::is_empty")]
    chunk_type: &'static str,
}

impl PartOf<'_> {
    fn new(chunk: &Chunk, length: u32, offset: u64) -> Option<PartOf<'_>> {
        let chunk_type = if chunk.is_zero { "zeros" } else { "" };
        Some(PartOf { chunk_size: length, chunk_offset: offset, chunk_digest: &chunk.digest, chunk_type })
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Text that is compressed as it is written.
struct List {
    encoder: zstd::stream::write::Encoder<'static, Vec<u8>>,
    length: u64,
    entries: u64,
}

impl List {
    fn new() -> io::Result<List> {
        Ok(List { encoder: zstd::stream::write::Encoder::new(Vec::new(), LEVEL)?, length: 0, entries: 0 })
    }

    /// The frame, and how long the text is.
    fn finish(self) -> io::Result<(Vec<u8>, u64)> {
        Ok((self.encoder.finish()?, self.length))
    }
}

impl Write for List {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.encoder.write(bytes)?;
        self.length += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
