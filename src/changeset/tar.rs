//! A changeset as a tar: [`write`](write()). The same changes always give the same bytes.
//!
//! The format is POSIX `ustar` with `pax` extended headers where a value does not fit: a long name, a time with
//! nanoseconds, before 1970 or after 2242, a large id or size, an extended attribute. Names of users and groups are empty, since the
//! image specification has readers ignore them.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use ::tar::{EntryType, Header};

use crate::changeset::collect::whiteout_path;
use crate::changeset::cursor::{Cursor, split};
use crate::changeset::entry::{Changes, Entry, Kind, escape};
use crate::changeset::pax::{Records, decimal};
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
    let mut writer = Writer {
        out,
        progress,
        options,
        trees: changes.roots.iter().map(|root| Cursor::new(Arc::clone(root), 32)).collect(),
        written: Written { skipped_sockets: changes.sockets, ..Written::default() },
        gone: HashSet::new(),
        instead: HashMap::new(),
        buffer: vec![0; BUFFER],
        zeros: vec![0; BUFFER],
    };
    for entry in &changes.entries {
        progress.check()?;
        writer.entry(entry)?;
    }
    writer.put(&[0; 2 * BLOCK])?;
    Ok(writer.written)
}

struct Writer<'a, W> {
    out: &'a mut W,
    progress: &'a Progress,
    options: Options,
    trees: Vec<Cursor>,
    written: Written,
    /// Files that were left out: hard links to them have nothing to link to.
    gone: HashSet<&'a [u8]>,
    /// For some of these, the link that was written as a file instead.
    instead: HashMap<&'a [u8], &'a [u8]>,
    buffer: Vec<u8>,
    zeros: Vec<u8>,
}

impl<'a, W: Write> Writer<'a, W> {
    fn entry(&mut self, entry: &'a Entry) -> Result<(), Error> {
        match &entry.kind {
            Kind::File => self.file(entry, &entry.path),
            Kind::HardLink { to } if self.gone.contains(&to[..]) => match self.instead.get(&to[..]).copied() {
                Some(other) => self.header(entry, Typed::Link(other)),
                None => self.file(entry, to),
            },
            Kind::HardLink { to } => self.header(entry, Typed::Link(to)),
            Kind::Whiteout => self.header(entry, Typed::Other(EntryType::Regular)),
            Kind::Directory => self.header(entry, Typed::Other(EntryType::Directory)),
            Kind::Symlink { target } => self.header(entry, Typed::Symlink(target)),
            Kind::CharDevice(_) => self.header(entry, Typed::Other(EntryType::Char)),
            Kind::BlockDevice(_) => self.header(entry, Typed::Other(EntryType::Block)),
            Kind::Fifo => self.header(entry, Typed::Other(EntryType::Fifo)),
        }
    }

    /// Writes a regular file, the first written name of the inode that `group` stands for.
    fn file(&mut self, entry: &'a Entry, group: &'a [u8]) -> Result<(), Error> {
        let (dir, name) = split(&entry.path);
        let file = match self.trees[entry.root].dir(dir).and_then(|dir| dir.open_file(name)) {
            Ok(file) => file,
            Err(source) if is_gone(&source) || source.kind() == io::ErrorKind::InvalidInput => {
                if self.options.vanished == Vanished::Fail {
                    return Err(Error::Vanished { path: entry.path.clone(), source });
                }
                self.written.torn.push(entry.path.clone());
                self.gone.insert(group);
                return Ok(());
            }
            Err(source) => return Err(read_error(entry)(source)),
        };
        if group != entry.path {
            self.instead.insert(group, &entry.path);
        }
        let before = stat_file(&file).map_err(read_error(entry))?;
        self.header(entry, Typed::File)?;
        let complete = self.content(entry, &file)?;
        let after = stat_file(&file).map_err(read_error(entry))?;
        // Seen through an overlay a file may have another inode number than in its layer, but not another change time.
        let described = before.ino == entry.metadata.ino || before.ctime == entry.metadata.ctime;
        // Where a file ended early looks like a hole: only its size tells.
        if !complete || !described || before != after || after.size != entry.metadata.size {
            self.written.torn.push(entry.path.clone());
        }
        Ok(())
    }

    /// Writes exactly the bytes that the header promised, holes as zeros without reading them; says whether the file
    /// had all that it seemed to have.
    fn content(&mut self, entry: &Entry, file: &File) -> Result<bool, Error> {
        let size = entry.metadata.size;
        let is_sparse = entry.metadata.blocks * (BLOCK as u64) < size;
        let (mut at, mut complete) = (0, true);
        while at < size {
            let data =
                if is_sparse { next_data(file, at).map_err(read_error(entry))?.unwrap_or(size..size) } else { 0..size };
            self.fill(data.start.min(size).saturating_sub(at))?;
            at = at.max(data.start.min(size));
            while at < data.end.min(size) {
                self.progress.check()?;
                let want = usize::try_from(data.end.min(size) - at).unwrap_or(BUFFER).min(BUFFER);
                let mut buffer = std::mem::take(&mut self.buffer);
                let read = read_at(file, &mut buffer[..want], at).map_err(read_error(entry));
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
        let (header, records) = encode(entry, typed, self.options.latest_mtime);
        let records = records.encode();
        if records.len() > MAX_RECORDS {
            return Err(Error::TooManyXattrs { path: entry.path.clone(), bytes: records.len() });
        }
        if !records.is_empty() {
            self.put(extension(records.len()).as_bytes())?;
            self.put(&records)?;
            self.pad(records.len() as u64)?;
        }
        self.put(header.as_bytes())?;
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
