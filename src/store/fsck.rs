//! The check of a whole store. It reads everything, changes nothing, reports every fault, and runs beside a daemon.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::oci::{Descriptor, Digest, ImageName};
use crate::store::backend::{DirBackend, FileKind};
use crate::store::blob::{hash_file, read_document};
use crate::store::disk::Disk;
use crate::store::document::{DEEPEST, DOCUMENT_LIMIT, children, is_document};
use crate::store::record::Record;
use crate::store::scan::scan;
use crate::store::{Error, Store, layout};

/// Something that is not as it must be, and what to do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The file or directory.
    pub path: PathBuf,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path.display(), self.problem)
    }
}

/// What can be wrong with a file of a store.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Problem {
    /// The disk does not give it.
    Unreadable {
        /// What the system says.
        reason: String,
    },
    /// The version file does not tell a version, or is missing.
    BadVersion,
    /// A directory of the store is not there.
    NoDirectory,
    /// A file below `names` is not the record of an image name.
    BadRecord {
        /// What is wrong.
        reason: String,
    },
    /// A blob's bytes are not those it is named after.
    BadBlob {
        /// Their digest; `None` if it is no regular file.
        found: Option<Digest>,
        /// Who suffers.
        needed_by: Needed,
    },
    /// A blob is missing.
    NoBlob {
        /// Who suffers.
        needed_by: Needed,
    },
    /// A blob has another length than what names it says.
    BadSize {
        /// Its length in bytes.
        found: u64,
        /// What a descriptor says.
        expected: u64,
        /// Who suffers.
        needed_by: Needed,
    },
    /// What should be a manifest or an index is neither.
    BadDocument {
        /// What is wrong.
        reason: String,
        /// Who suffers.
        needed_by: Needed,
    },
    /// The start found it unreadable and moved it there.
    Quarantined {
        /// What was wrong with it.
        problem: Box<Problem>,
        /// Where it is now.
        moved_to: PathBuf,
    },
    /// It waits in quarantine for a person.
    InQuarantine,
    /// The store knows nothing of it.
    Stray,
}

/// The images that need a blob.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Needed {
    /// One of them.
    pub first: Option<ImageName>,
    /// How many there are.
    pub count: usize,
}

impl fmt::Display for Needed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.first, self.count) {
            (None, _) => f.write_str("no image needs it: it can be deleted"),
            (Some(name), 1) => write!(f, "{name} needs it: make or fetch that image again, or remove the name"),
            (Some(name), count) => {
                write!(
                    f,
                    "{name} and {} more images need it: make or fetch one of them again, or remove the names",
                    count - 1
                )
            }
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Problem::Unreadable { reason } => {
                write!(f, "cannot be read ({reason}); check the disk and restart the daemon")
            }
            Problem::BadVersion => f.write_str("does not tell the store's version; the next start writes it anew"),
            Problem::NoDirectory => f.write_str("is missing; the next start makes it anew, empty"),
            Problem::BadRecord { reason } => {
                write!(f, "is no record of an image name ({reason}); the next start moves it to quarantine/")
            }
            Problem::BadBlob { found: Some(found), needed_by } => write!(f, "has the digest {found}; {needed_by}"),
            Problem::BadBlob { found: None, needed_by } => write!(f, "is not a regular file; {needed_by}"),
            Problem::NoBlob { needed_by } => write!(f, "is missing; {needed_by}"),
            Problem::BadSize { found, expected, needed_by } => {
                write!(f, "has {found} bytes instead of {expected}; {needed_by}")
            }
            Problem::BadDocument { reason, needed_by } => write!(f, "is no manifest or index ({reason}); {needed_by}"),
            Problem::Quarantined { problem, moved_to } => {
                write!(f, "{problem}: it is now {}; mend it and move it back, or delete it", moved_to.display())
            }
            Problem::InQuarantine => f.write_str("waits in quarantine; mend it and move it back, or delete it"),
            Problem::Stray => f.write_str("does not belong to the store; move it elsewhere"),
        }
    }
}

impl Store {
    /// Read the whole store and report every fault; an empty list is a sound store. Takes as long as reading all blobs.
    ///
    /// Errors: the store's directory or that of its names cannot be read, or a newer program wrote it.
    pub fn fsck(&self) -> Result<Vec<Fault>, Error> {
        check(&self.0.disk)
    }

    /// The same for the store in a directory, which a daemon may have in use.
    pub fn fsck_dir(place: &Path) -> Result<Vec<Fault>, Error> {
        check(&Disk::new(Arc::new(DirBackend::open_unlocked(place)?)))
    }
}

fn check(disk: &Disk) -> Result<Vec<Fault>, Error> {
    let mut faults = Vec::new();
    let mut report = |path: &Path, problem| faults.push(Fault { path: disk.full(path), problem });
    check_top(disk, &mut report)?;
    let needs = Needs::collect(disk, &mut report)?;
    // Beside a daemon an image may be removed and collected between two looks. What is missing in two walks is missing.
    if needs.faults.is_empty() {
        check_blobs(disk, &needs, &mut report);
        return Ok(faults);
    }
    let again = Needs::collect(disk, &mut |_, _| {})?;
    let confirmed: HashSet<&(Digest, Lack)> = again.faults.iter().collect();
    for fault in needs.faults.iter().filter(|fault| confirmed.contains(fault)) {
        let (digest, lack) = fault;
        report(&layout::blob(digest), lack.clone().into_problem(again.needed_by(digest)));
    }
    check_blobs(disk, &again, &mut report);
    Ok(faults)
}

/// The version, the directories, and what does not belong there.
fn check_top(disk: &Disk, report: &mut impl FnMut(&Path, Problem)) -> Result<(), Error> {
    match disk.read(Path::new(layout::VERSION_FILE), layout::VERSION_LIMIT) {
        Ok(bytes) => match bytes.as_deref().and_then(layout::parse_version) {
            Some(layout::VERSION) => {}
            Some(found) if found > layout::VERSION => {
                return Err(Error::NewerVersion { place: disk.place().to_owned(), found, known: layout::VERSION });
            }
            _ => report(Path::new(layout::VERSION_FILE), Problem::BadVersion),
        },
        Err(_) => report(Path::new(layout::VERSION_FILE), Problem::BadVersion),
    }
    for directory in layout::DIRECTORIES.map(Path::new) {
        if !matches!(disk.stat(directory), Ok(Some((FileKind::Directory, _)))) {
            report(directory, Problem::NoDirectory);
        }
    }
    for (name, _) in disk.list(Path::new(layout::ROOT))? {
        if !name.to_str().is_some_and(layout::is_expected_at_top) {
            report(Path::new(&name), Problem::Stray);
        }
    }
    let blobs = Path::new(layout::BLOBS);
    for (name, _) in disk.list(blobs.parent().unwrap_or(blobs)).unwrap_or_default() {
        let path = blobs.with_file_name(&name);
        if path != blobs {
            report(&path, Problem::Stray);
        }
    }
    for (name, _) in disk.list(Path::new(layout::QUARANTINE)).unwrap_or_default() {
        report(&Path::new(layout::QUARANTINE).join(name), Problem::InQuarantine);
    }
    Ok(())
}

/// What is wrong with a blob, seen from an image that needs it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Lack {
    Missing,
    Size { found: u64, expected: u64 },
    Document { reason: String },
}

impl Lack {
    fn into_problem(self, needed_by: Needed) -> Problem {
        match self {
            Lack::Missing => Problem::NoBlob { needed_by },
            Lack::Size { found, expected } => Problem::BadSize { found, expected, needed_by },
            Lack::Document { reason } => Problem::BadDocument { reason, needed_by },
        }
    }
}

/// All that the images need, and what of it is lacking.
#[derive(Debug, Default)]
struct Needs {
    needed: BTreeMap<Digest, Needed>,
    faults: Vec<(Digest, Lack)>,
    known: HashSet<(Digest, Lack)>,
}

impl Needs {
    fn collect(disk: &Disk, report: &mut impl FnMut(&Path, Problem)) -> Result<Needs, Error> {
        let mut needs = Needs::default();
        let scan = scan(disk)?;
        for (path, problem) in scan.bad {
            report(&path, problem);
        }
        for (name, record) in scan.images {
            needs.walk(disk, &name, &record);
        }
        Ok(needs)
    }

    fn needed_by(&self, digest: &Digest) -> Needed {
        self.needed.get(digest).cloned().unwrap_or_default()
    }

    fn lack(&mut self, digest: Digest, lack: Lack) {
        if self.known.insert((digest, lack.clone())) {
            self.faults.push((digest, lack));
        }
    }

    fn walk(&mut self, disk: &Disk, name: &ImageName, record: &Record) {
        let mut seen = HashSet::new();
        let mut open: Vec<(Descriptor, usize)> = record.images().map(|image| (image.clone(), 0)).collect();
        if !is_document(&record.manifest.media_type) {
            let reason = format!("its media type is {}", record.manifest.media_type);
            self.lack(record.manifest.digest, Lack::Document { reason });
        }
        while let Some((blob, depth)) = open.pop() {
            if seen.insert(blob.digest) {
                let needed = self.needed.entry(blob.digest).or_default();
                needed.first.get_or_insert_with(|| name.clone());
                needed.count += 1;
            }
            match disk.stat(&layout::blob(&blob.digest)) {
                Ok(Some((FileKind::File, size))) if size == blob.size => {}
                Ok(Some((FileKind::File, found))) => {
                    self.lack(blob.digest, Lack::Size { found, expected: blob.size });
                    continue;
                }
                // Something else in its place, or a failing disk, is found with the blobs.
                Ok(Some(_)) | Err(_) => continue,
                Ok(None) => {
                    self.lack(blob.digest, Lack::Missing);
                    continue;
                }
            }
            if !is_document(&blob.media_type) {
                continue;
            }
            if depth > DEEPEST {
                self.lack(blob.digest, Lack::Document { reason: format!("it is more than {DEEPEST} indexes deep") });
                continue;
            }
            let found = match read_document(disk, &blob, DOCUMENT_LIMIT) {
                Ok(bytes) => children(&bytes, &blob.media_type),
                Err(error @ Error::TooLarge { .. }) => Err(error.to_string()),
                // Its digest is wrong, or the disk fails: found with the blobs.
                Err(_) => continue,
            };
            match found {
                Ok(found) => open.extend(found.into_iter().map(|child| (child, depth + 1))),
                Err(reason) => self.lack(blob.digest, Lack::Document { reason }),
            }
        }
    }
}

/// Hash every blob.
fn check_blobs(disk: &Disk, needs: &Needs, report: &mut impl FnMut(&Path, Problem)) {
    let directory = Path::new(layout::BLOBS);
    let entries = match disk.list(directory) {
        Ok(entries) => entries,
        Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => return,
        Err(error) => return report(directory, Problem::Unreadable { reason: error.to_string() }),
    };
    for (name, kind) in entries {
        let path = directory.join(&name);
        let Some(digest) = name.to_str().and_then(layout::blob_digest) else {
            report(&path, Problem::Stray);
            continue;
        };
        let needed_by = needs.needed_by(&digest);
        if kind != FileKind::File {
            report(&path, Problem::BadBlob { found: None, needed_by });
            continue;
        }
        match hash_file(disk, &path) {
            Ok(Some(found)) if found != digest => report(&path, Problem::BadBlob { found: Some(found), needed_by }),
            // Right, or collected meanwhile.
            Ok(_) => {}
            Err(error) => report(&path, Problem::Unreadable { reason: error.to_string() }),
        }
    }
}
