//! All image names as they are on the disk, sound or not.

use std::collections::HashSet;
use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::thread;

use crate::oci::ImageName;
use crate::store::backend::FileKind;
use crate::store::disk::Disk;
use crate::store::fsck::Problem;
use crate::store::record::{RECORD_LIMIT, Record};
use crate::store::{Error, layout};

/// What a walk through the names found.
#[derive(Debug, Default)]
pub(crate) struct Scan {
    /// The sound ones.
    pub(crate) images: Vec<(ImageName, Record)>,
    /// What is no record of an image name.
    pub(crate) bad: Vec<(PathBuf, Problem)>,
    /// Every directory below the top, outermost first.
    pub(crate) directories: Vec<PathBuf>,
}

impl Scan {
    /// Directories without a sound record below them, innermost first.
    pub(crate) fn idle_directories(&self) -> Vec<PathBuf> {
        let records: Vec<PathBuf> = self.images.iter().map(|(name, _)| layout::record(name)).collect();
        let needed: HashSet<&Path> = records.iter().flat_map(|path| path.ancestors().skip(1)).collect();
        self.directories.iter().rev().filter(|directory| !needed.contains(directory.as_path())).cloned().collect()
    }
}

/// Read all records. What vanishes meanwhile was removed; what cannot be read is among the bad.
///
/// Errors: the top directory cannot be listed.
pub(crate) fn scan(disk: &Disk) -> Result<Scan, Error> {
    let mut scan = Scan::default();
    let mut files = Vec::new();
    let mut open = vec![PathBuf::from(layout::NAMES)];
    while let Some(directory) = open.pop() {
        let entries = match disk.list(&directory) {
            Ok(entries) => entries,
            Err(Error::Io { source, .. }) if source.kind() == std::io::ErrorKind::NotFound => continue,
            Err(error) if directory == Path::new(layout::NAMES) => return Err(error),
            Err(error) => {
                scan.bad.push((directory, Problem::Unreadable { reason: error.to_string() }));
                continue;
            }
        };
        for (name, kind) in entries {
            let path = directory.join(name);
            match kind {
                FileKind::Directory => {
                    scan.directories.push(path.clone());
                    open.push(path);
                }
                FileKind::File => files.push(path),
                FileKind::Other => {
                    scan.bad.push((path, Problem::BadRecord { reason: "it is not a regular file".to_owned() }));
                }
            }
        }
    }
    for (path, found) in read_all(disk, files) {
        match found {
            Ok(Some(image)) => scan.images.push(image),
            Ok(None) => {}
            Err(problem) => scan.bad.push((path, problem)),
        }
    }
    Ok(scan)
}

type Found = Result<Option<(ImageName, Record)>, Problem>;

/// From so many records on they are read by several threads: a start must not wait for one after the other.
const MANY: usize = 2048;

fn read_all(disk: &Disk, files: Vec<PathBuf>) -> Vec<(PathBuf, Found)> {
    let read_some = |files: &[PathBuf]| -> Vec<Found> { files.iter().map(|path| read(disk, path)).collect() };
    let threads = if files.len() < MANY { 1 } else { thread::available_parallelism().map_or(1, NonZero::get).min(8) };
    let share = files.len().div_ceil(threads).max(1);
    let found: Vec<Found> = thread::scope(|scope| {
        let mut parts = files.chunks(share);
        let own = parts.next().unwrap_or_default();
        let others: Vec<_> = parts.map(|part| (part, scope.spawn(move || read_some(part)))).collect();
        let mut found = read_some(own);
        for (part, thread) in others {
            // One that panicked is done again by this thread, whose panic it then is.
            found.extend(thread.join().unwrap_or_else(|_| read_some(part)));
        }
        found
    });
    files.into_iter().zip(found).collect()
}

fn read(disk: &Disk, path: &Path) -> Found {
    let bad = |reason: String| Problem::BadRecord { reason };
    let bytes = match disk.read(path, RECORD_LIMIT) {
        Ok(Some(bytes)) => bytes,
        Ok(None) => return Ok(None),
        Err(error @ (Error::TooLarge { .. } | Error::Corrupt { .. })) => return Err(bad(error.to_string())),
        Err(error) => return Err(Problem::Unreadable { reason: error.to_string() }),
    };
    let name = path.strip_prefix(layout::NAMES).ok().and_then(Path::to_str).unwrap_or_default();
    let name: ImageName = name.parse().map_err(|error| bad(format!("its name is none: {error}")))?;
    Ok(Some((name, Record::decode(&bytes).map_err(bad)?)))
}
