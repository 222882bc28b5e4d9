//! A changeset as a tar: [`write`](write()). The same changes always give the same bytes.
//!
//! The format is POSIX `ustar` with `pax` extended headers where a value does not fit: a long name, a time with
//! nanoseconds, before 1970 or after 2242, a large id or size, an extended attribute. Names of users and groups are empty, since the
//! image specification has readers ignore them.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ::tar::{EntryType, Header};

use crate::changeset::collect::whiteout_path;
use crate::changeset::cursor::{Cursor, split};
use crate::changeset::entry::{Changes, Entry, Kind, escape};
use crate::changeset::location::Location;
use crate::changeset::pax::{Records, decimal};
use crate::changeset::scan::UPPER;
use crate::changeset::snapshot::same;
use crate::progress::{Cancelled, Progress};
use crate::sys::dir::{Time, is_gone, next_data, stat_file};

/// The unit of a tar.
const BLOCK: usize = 512;
/// How much is read at once.
const BUFFER: usize = 1 << 20;
/// The most extended header that Go's `archive/tar`, and so every engine, reads.
const MAX_RECORDS: usize = 1 << 20;
/// The largest number that eleven octal digits hold: a size, or a time in the year 2242.
const MAX_OCTAL_11: u64 = 0o777_7777_7777;
/// The largest number that seven octal digits hold.
const MAX_OCTAL_7: u32 = 0o777_7777;

/// How to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// What to do about a file that is gone when its content is wanted.
    pub vanished: Vanished,
    /// No time later than this many seconds after the epoch is written: `SOURCE_DATE_EPOCH`.
    pub latest_mtime: Option<i64>,
}

/// What to do about a file that is gone, or no longer a regular file, when its content is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Vanished {
    /// Fail: the container was frozen, so this cannot be.
    #[default]
    Fail,
    /// Leave it out and count it as torn: the container runs.
    Skip,
}

/// What was written.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Written {
    /// Paths whose content in the tar is not the content at one point in time: the file was written to, replaced or
    /// removed meanwhile.
    pub torn: Vec<Vec<u8>>,
    /// Sockets left out of the changeset.
    pub skipped_sockets: u64,
    /// Entries, whiteouts and directories included.
    pub files: u64,
    /// Length of the tar.
    pub bytes: u64,
}

/// Why a tar could not be written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the container could not be read.
    #[error("cannot read /{} in the container", escape(path))]
    Read {
        /// The file, relative to the container's root.
        path: Vec<u8>,
        /// Why not.
        source: io::Error,
    },
    /// A file was gone although nothing should have run.
    #[error(
        "/{} is gone although the container was frozen: another process writes to its files; stop that and commit again, or commit with pause=none",
        escape(path)
    )]
    Vanished {
        /// The file.
        path: Vec<u8>,
        /// What the kernel said.
        source: io::Error,
    },
    /// More extended attributes than other programs read.
    #[error(
        "/{} has {bytes} bytes of extended attributes: readers of images take {MAX_RECORDS}; remove some and commit again",
        escape(path)
    )]
    TooManyXattrs {
        /// The file.
        path: Vec<u8>,
        /// Length of its extended header.
        bytes: usize,
    },
    /// What takes the bytes failed.
    #[error("cannot write the layer")]
    Write(#[source] io::Error),
    /// The caller asked to stop.
    #[error(transparent)]
    Cancelled(#[from] Cancelled),
}

/// Writes `changes` to `out` as a tar, reading the content of files as they are now.
///
/// A file takes exactly the bytes it had when it was scanned, whatever happens to it: one that shrank is filled up with
/// zeros, of one that grew the rest is left out, and either is in [`Written::torn`].
pub fn write(changes: &Changes, out: &mut impl Write, progress: &Progress, options: Options) -> Result<Written, Error> {
    let mut writer = Writer::new(out, changes, progress, options);
    for entry in &changes.entries {
        writer.entry(entry)?;
    }
    writer.finish()
}

/// Writes a tar entry by entry, for those who have a word in their order. A file must come before its hard links, and a
/// directory that [replaces](Entry::replaces) something before what is in it.
pub struct Writer<'a, W> {
    out: W,
    progress: &'a Progress,
    options: Options,
    trees: Vec<Cursor>,
    written: Written,
    /// Where in the layer the entries are put.
    at: Option<Location>,
    /// Files that were left out: hard links to them have nothing to link to.
    gone: HashSet<Vec<u8>>,
    /// For some of these, the link that was written as a file instead.
    instead: HashMap<Vec<u8>, Vec<u8>>,
    buffer: Vec<u8>,
    zeros: Vec<u8>,
}

impl<W> fmt::Debug for Writer<'_, W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").field("written", &self.written).finish_non_exhaustive()
    }
}

/// Bytes to put into a tar: all of a file, or a part of it with its holes.
#[derive(Debug, Clone, Copy)]
pub enum Content<'a> {
    /// From `base` on in a file.
    File {
        /// The file.
        file: &'a File,
        /// Where the content begins, in bytes.
        base: u64,
    },
    /// In memory.
    Bytes(&'a [u8]),
}

/// How the reading of a file went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Read {
    /// As it was described: if its change time is never another, these bytes are what it holds.
    Whole,
    /// Its attributes have changed since it was described, but not while it was read, nor its length.
    Moved,
    /// It has changed while it was read, or is another file: as many bytes as it had were written, whatever they are.
    Torn,
    /// It is gone, and nothing was written.
    Gone,
}

/// About how long the tar will be: contents, and a header with its records.
fn about(changes: &Changes) -> u64 {
    let content = |entry: &&Entry| entry.kind == Kind::File;
    let contents = changes.entries.iter().filter(content).map(|entry| entry.metadata.size);
    contents.sum::<u64>() + changes.entries.len() as u64 * 3 * BLOCK as u64
}

impl<'a, W: Write> Writer<'a, W> {
    /// Nothing written yet; contents come from beneath the roots of `changes`.
    pub fn new(out: W, changes: &Changes, progress: &'a Progress, options: Options) -> Writer<'a, W> {
        let mut writer = Writer {
            out,
            progress,
            options,
            trees: Vec::new(),
            written: Written::default(),
            at: None,
            gone: HashSet::new(),
            instead: HashMap::new(),
            buffer: vec![0; BUFFER],
            zeros: vec![0; BUFFER],
        };
        writer.read_from(changes);
        progress.expect(about(changes), changes.entries.len() as u64);
        writer
    }

    /// From now on contents come from beneath the roots of `changes`, and its sockets are those that count.
    pub fn read_from(&mut self, changes: &Changes) {
        self.trees = changes.roots.iter().map(|root| Cursor::new(Arc::clone(root), 32)).collect();
        self.written.skipped_sockets = changes.sockets;
    }

    /// From now on entries are put where a volume is in its container. If it hides something, this comes first.
    pub fn put_at(&mut self, location: &Location) -> Result<(), Error> {
        if let Some(marker) = location.marker() {
            self.header(&marker, Typed::Other(EntryType::Regular))?;
        }
        self.at = Some(location.clone());
        Ok(())
    }

    /// Writes the directories above a volume.
    pub fn above(&mut self, location: &Location) -> Result<(), Error> {
        let at = self.at.take();
        for entry in &location.above {
            self.header(entry, Typed::Other(EntryType::Directory))?;
        }
        self.at = at;
        Ok(())
    }

    /// What the bytes go to.
    pub fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// Writes any entry, and the content that goes with it.
    pub fn entry(&mut self, entry: &Entry) -> Result<(), Error> {
        self.progress.check()?;
        let group = match &entry.kind {
            Kind::File => &entry.path,
            Kind::HardLink { to } if self.gone.contains(to) => match self.instead.get(to).cloned() {
                Some(other) => return self.header(entry, Typed::Link(&other)),
                None => to,
            },
            Kind::HardLink { to } => return self.header(entry, Typed::Link(to)),
            Kind::Whiteout => return self.header(entry, Typed::Other(EntryType::Regular)),
            Kind::Directory => return self.header(entry, Typed::Other(EntryType::Directory)),
            Kind::Symlink { target } => return self.header(entry, Typed::Symlink(target)),
            Kind::CharDevice(_) => return self.header(entry, Typed::Other(EntryType::Char)),
            Kind::BlockDevice(_) => return self.header(entry, Typed::Other(EntryType::Block)),
            Kind::Fifo => return self.header(entry, Typed::Other(EntryType::Fifo)),
        };
        match self.copy(entry)? {
            Read::Whole | Read::Moved => {}
            Read::Torn => self.written.torn.push(entry.path.clone()),
            Read::Gone => {
                self.written.torn.push(entry.path.clone());
                self.gone.insert(group.clone());
                return Ok(());
            }
        }
        // The first written name of the inode that the group stands for.
        if *group != entry.path {
            self.instead.insert(group.clone(), entry.path.clone());
        }
        Ok(())
    }

    /// Writes a regular file as it is now, and leaves it to the caller what to make of a change.
    pub fn copy(&mut self, entry: &Entry) -> Result<Read, Error> {
        self.progress.check()?;
        let (dir, name) = split(&entry.path);
        let file = match self.trees[entry.root].dir(dir).and_then(|dir| dir.open_file(name)) {
            Ok(file) => file,
            Err(source) if is_gone(&source) || source.kind() == io::ErrorKind::InvalidInput => {
                if self.options.vanished == Vanished::Fail {
                    return Err(Error::Vanished { path: entry.path.clone(), source });
                }
                return Ok(Read::Gone);
            }
            Err(source) => return Err(read_error(entry)(source)),
        };
        await_write(&file).map_err(read_error(entry))?;
        let before = stat_file(&file).map_err(read_error(entry))?;
        self.header(entry, Typed::File)?;
        let complete = self.content(entry, Content::File { file: &file, base: 0 })?;
        let after = stat_file(&file).map_err(read_error(entry))?;
        // Where a file ended early looks like a hole: only its size tells.
        let described = &entry.metadata;
        // Through an overlay a file may have another inode number than in its layer, but not another change time. Elsewhere
        // that is no proof: files that were made at one tick of the clock have the same.
        let is_it = before.ino == described.ino || (entry.root != UPPER && before.ctime == described.ctime);
        if !complete || !is_it || !same(&before, &after) || after.size != described.size {
            return Ok(Read::Torn);
        }
        let is_same = (before.ctime, before.mtime) == (described.ctime, described.mtime);
        Ok(if is_same { Read::Whole } else { Read::Moved })
    }

    /// Writes a regular file whose content is elsewhere; `false` if there is less of it than the entry has, and zeros
    /// were written for the rest.
    pub fn file_from(&mut self, entry: &Entry, content: Content<'_>) -> Result<bool, Error> {
        self.progress.check()?;
        self.header(entry, Typed::File)?;
        self.content(entry, content)
    }

    /// Count a file as torn, for what was written of it is not its content at one point in time.
    pub fn torn(&mut self, path: Vec<u8>) {
        self.written.torn.push(path);
    }

    /// Writes the end of the tar.
    pub fn finish(mut self) -> Result<Written, Error> {
        self.end()?;
        Ok(self.written)
    }

    /// Writes the end of the tar, and gives back what the bytes went to.
    pub fn into_out(mut self) -> Result<(Written, W), Error> {
        self.end()?;
        Ok((self.written, self.out))
    }

    fn end(&mut self) -> Result<(), Error> {
        self.put(&[0; 2 * BLOCK])
    }

    /// Writes exactly the bytes that the header promised, holes as zeros without reading them; says whether the file
    /// had all that it seemed to have.
    fn content(&mut self, entry: &Entry, content: Content<'_>) -> Result<bool, Error> {
        let size = entry.metadata.size;
        let (file, base) = match content {
            Content::File { file, base } => (file, base),
            Content::Bytes(bytes) => {
                let have = usize::try_from(size).unwrap_or(usize::MAX).min(bytes.len());
                self.put(&bytes[..have])?;
                self.fill(size - have as u64)?;
                self.pad(size)?;
                return Ok(have as u64 == size);
            }
        };
        let is_sparse = entry.metadata.blocks * (BLOCK as u64) < size;
        let (mut at, mut complete) = (0, true);
        while at < size {
            let data = match is_sparse {
                true => next_data(file, base + at).map_err(read_error(entry))?.unwrap_or(base + size..base + size),
                false => base..base + size,
            };
            let (start, end) = (data.start.saturating_sub(base).min(size), data.end.saturating_sub(base).min(size));
            self.fill(start.saturating_sub(at))?;
            at = at.max(start);
            while at < end {
                self.progress.check()?;
                let want = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
                let mut buffer = std::mem::take(&mut self.buffer);
                let read = read_at(file, &mut buffer[..want], base + at).map_err(read_error(entry));
                let put = read.and_then(|read| self.put(&buffer[..read]).map(|()| read));
                self.buffer = buffer;
                let read = put?;
                if read == 0 {
                    self.fill(size - at)?;
                    (at, complete) = (size, false);
                }
                at += read as u64;
            }
        }
        self.pad(size)?;
        Ok(complete)
    }

    fn header(&mut self, entry: &Entry, typed: Typed<'_>) -> Result<(), Error> {
        let (header, records) = match &self.at {
            None => encode(entry, typed, self.options.latest_mtime),
            Some(at) => {
                let entry = Entry { path: at.place(&entry.path), ..entry.clone() };
                match typed {
                    Typed::Link(to) => encode(&entry, Typed::Link(&at.place(to)), self.options.latest_mtime),
                    other => encode(&entry, other, self.options.latest_mtime),
                }
            }
        };
        self.put(&assemble(entry, &header, records)?)?;
        self.written.files += 1;
        self.progress.add_file();
        Ok(())
    }

    fn pad(&mut self, length: u64) -> Result<(), Error> {
        let over = (length % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.put(&[0; BLOCK][over..]) }
    }

    fn fill(&mut self, mut length: u64) -> Result<(), Error> {
        let zeros = std::mem::take(&mut self.zeros);
        let mut done = Ok(());
        while length > 0 && done.is_ok() {
            let now = usize::try_from(length).unwrap_or(BUFFER).min(BUFFER);
            done = self.progress.check().map_err(Error::from).and_then(|()| self.put(&zeros[..now]));
            length -= now as u64;
        }
        self.zeros = zeros;
        done
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.out.write_all(bytes).map_err(Error::Write)?;
        self.written.bytes += bytes.len() as u64;
        self.progress.add_bytes(bytes.len() as u64);
        Ok(())
    }
}

/// Waits for a write to the file that is under way. Such a write has set the change time at its beginning, and what it
/// writes after a look at that would not show in it. It holds the inode's lock, which a look for data takes on ext4, btrfs
/// and tmpfs, and a read on XFS.
fn await_write(file: &File) -> io::Result<()> {
    next_data(file, 0)?;
    read_at(file, &mut [0], 0)?;
    Ok(())
}

fn read_error(entry: &Entry) -> impl FnOnce(io::Error) -> Error + '_ {
    |source| Error::Read { path: entry.path.clone(), source }
}

fn read_at(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    loop {
        match file.read_at(buffer, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// What the header of an [`Entry`] says it is.
#[derive(Debug, Clone, Copy)]
enum Typed<'a> {
    File,
    Link(&'a [u8]),
    Symlink(&'a [u8]),
    Other(EntryType),
}

/// All that comes before the content of `entry`, as a [`Writer`] writes it.
pub(crate) fn headers(entry: &Entry) -> Result<Vec<u8>, Error> {
    let typed = match &entry.kind {
        Kind::File => Typed::File,
        Kind::HardLink { to } => Typed::Link(to),
        Kind::Symlink { target } => Typed::Symlink(target),
        Kind::Whiteout => Typed::Other(EntryType::Regular),
        Kind::Directory => Typed::Other(EntryType::Directory),
        Kind::CharDevice(_) => Typed::Other(EntryType::Char),
        Kind::BlockDevice(_) => Typed::Other(EntryType::Block),
        Kind::Fifo => Typed::Other(EntryType::Fifo),
    };
    let (header, records) = encode(entry, typed, None);
    assemble(entry, &header, records)
}

/// A header after its records, if there are any.
fn assemble(entry: &Entry, header: &Header, records: Records) -> Result<Vec<u8>, Error> {
    let records = records.encode();
    if records.len() > MAX_RECORDS {
        return Err(Error::TooManyXattrs { path: entry.path.clone(), bytes: records.len() });
    }
    let mut bytes = Vec::with_capacity(BLOCK);
    if !records.is_empty() {
        bytes.extend_from_slice(extension(records.len()).as_bytes());
        bytes.extend_from_slice(&records);
        bytes.resize(bytes.len().next_multiple_of(BLOCK), 0);
    }
    bytes.extend_from_slice(header.as_bytes());
    Ok(bytes)
}

/// The header of an entry, and the records of what does not fit into it.
fn encode(entry: &Entry, typed: Typed<'_>, latest_mtime: Option<i64>) -> (Header, Records) {
    let (mut header, mut records) = (Header::new_ustar(), Records::default());
    let metadata = &entry.metadata;
    let (entry_type, link, size) = match typed {
        Typed::File => (EntryType::Regular, None, metadata.size),
        Typed::Link(to) => (EntryType::Link, Some(to), 0),
        Typed::Symlink(target) => (EntryType::Symlink, Some(target), 0),
        Typed::Other(entry_type) => (entry_type, None, 0),
    };
    let path = if entry.kind == Kind::Whiteout {
        whiteout_path(&entry.path)
    } else if entry.kind == Kind::Directory {
        [if entry.path.is_empty() { b"." } else { &entry.path[..] }, b"/"].concat()
    } else {
        entry.path.clone()
    };
    header.set_entry_type(entry_type);
    header.set_mode(metadata.mode);
    set_path(&mut header, &mut records, &path);
    if let Some(link) = link
        && !put_name(&mut header.as_old_mut().linkname, link)
    {
        records.add("linkpath", link);
    }
    header.set_size(if size <= MAX_OCTAL_11 { size } else { 0 });
    if size > MAX_OCTAL_11 {
        records.add("size", size.to_string());
    }
    for (keyword, id) in [("uid", metadata.uid), ("gid", metadata.gid)] {
        let fits = if id <= MAX_OCTAL_7 { id } else { 0 };
        if keyword == "uid" {
            header.set_uid(fits.into())
        } else {
            header.set_gid(fits.into())
        }
        if id > MAX_OCTAL_7 {
            records.add(keyword, id.to_string());
        }
    }
    let latest = latest_mtime.map(|seconds| Time { seconds, nanoseconds: 0 });
    let mtime = latest.map_or(metadata.mtime, |latest| latest.min(metadata.mtime));
    let seconds = u64::try_from(mtime.seconds).ok().filter(|&seconds| seconds <= MAX_OCTAL_11);
    header.set_mtime(seconds.unwrap_or(0));
    if seconds.is_none() || mtime.nanoseconds != 0 {
        records.add("mtime", decimal(mtime));
    }
    if let (Kind::CharDevice(device) | Kind::BlockDevice(device), Some(ustar)) = (&entry.kind, header.as_ustar_mut()) {
        ustar.set_device_major(device.major);
        ustar.set_device_minor(device.minor);
    }
    for (name, value) in &entry.xattrs {
        records.add_xattr(name, value);
    }
    header.set_cksum();
    (header, records)
}

/// Puts `path` into the name field, or into the prefix and name fields, or into a record.
fn set_path(header: &mut Header, records: &mut Records, path: &[u8]) {
    if put_name(&mut header.as_old_mut().name, path) {
        return;
    }
    // The slash between the two fields is not stored; the trailing one of a directory belongs to its name.
    for slash in (0..path.len().saturating_sub(1)).rev().filter(|&at| path[at] == b'/') {
        let (prefix, name) = (&path[..slash], &path[slash + 1..]);
        if name.len() > 100 {
            break;
        }
        if let Some(ustar) = header.as_ustar_mut()
            && !prefix.is_empty()
            && prefix.len() <= ustar.prefix.len()
        {
            put_name(&mut ustar.prefix, prefix);
            put_name(&mut ustar.name, name);
            return;
        }
    }
    records.add("path", path);
    let beginning = path.len().min(header.as_old().name.len());
    header.as_old_mut().name[..beginning].copy_from_slice(&path[..beginning]);
}

fn put_name(field: &mut [u8], name: &[u8]) -> bool {
    let fits = name.len() <= field.len();
    if fits {
        field[..name.len()].copy_from_slice(name);
    }
    fits
}

/// The header of an extended header of `length` bytes.
fn extension(length: usize) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(EntryType::XHeader);
    put_name(&mut header.as_old_mut().name, b"PaxHeaders/entry");
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(length as u64);
    header.set_cksum();
    header
}
