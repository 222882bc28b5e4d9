//! What is about to be frozen, on a tmpfs: for the day on which daemon and guard are killed together.
//!
//! One file for each cgroup that snapfs has frozen, named by the cgroup's number, so that the name is also the lock that
//! keeps two snapshots, or two daemons, from freezing one cgroup at once. A file whose owner has ended is no lock.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::guard::Error;
use crate::sys::cgroup::{self, Freezer};
use crate::sys::flock;
use crate::sys::process::{is_dying, start_time};

/// The first line; another version of the format gets another number.
const HEADING: &str = "snapfs freeze 1";
/// Appended by whoever thawed the cgroup and does not remove the file.
pub(crate) const THAWED: &str = "thawed\n";
/// Long enough for a path of PATH_MAX, and no reader's burden.
const LONGEST: u64 = 8192;

/// The file of a freeze of ours; removed when it is dropped.
#[derive(Debug)]
pub(crate) struct Intent {
    path: PathBuf,
}

impl Drop for Intent {
    fn drop(&mut self) {
        // The daemon that starts next takes it for a leftover, and finds the cgroup thawed.
        let _ = fs::remove_file(&self.path);
    }
}

/// Whose freeze it is that a cgroup is in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owner {
    /// Not snapfs's.
    User,
    /// That of a snapshot under way.
    Snapshot,
    /// That of a daemon that has ended.
    Nobody,
}

/// A cgroup that a dead daemon left frozen.
#[derive(Debug)]
pub struct Leftover {
    /// The cgroup's directory, or the intent's path if it does not name one.
    pub path: PathBuf,
    /// Whether it runs now. If not, the intent was kept, for another try.
    pub result: Result<(), Error>,
}

/// The content of an intent.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    owner: u32,
    owner_start_time: u64,
    boot: String,
    /// The cgroup's directory and its number.
    path: PathBuf,
    id: u64,
    is_thawed: bool,
}

impl Record {
    fn write(&self) -> Vec<u8> {
        let mut text = format!(
            "{HEADING}\nowner {} {}\nboot {}\ncgroup {} ",
            self.owner, self.owner_start_time, self.boot, self.id
        )
        .into_bytes();
        // The kernel allows no newline in the name of a cgroup.
        text.extend_from_slice(self.path.as_os_str().as_bytes());
        text.push(b'\n');
        text
    }

    fn parse(text: &[u8]) -> Option<Record> {
        let mut lines = text.strip_suffix(b"\n")?.split(|&byte| byte == b'\n');
        let mut word = |key: &str| lines.next()?.strip_prefix(key.as_bytes());
        word(HEADING)?;
        let (owner, owner_start_time) = str::from_utf8(word("owner ")?).ok()?.split_once(' ')?;
        let boot = str::from_utf8(word("boot ")?).ok()?.to_owned();
        let group = word("cgroup ")?;
        let space = group.iter().position(|&byte| byte == b' ')?;
        let path = OsString::from_vec(group[space + 1..].to_vec()).into();
        Some(Record {
            owner: owner.parse().ok()?,
            owner_start_time: owner_start_time.parse().ok()?,
            boot,
            path,
            id: str::from_utf8(&group[..space]).ok()?.parse().ok()?,
            is_thawed: lines.next() == Some(THAWED.trim_end().as_bytes()),
        })
    }

    fn read(path: &Path) -> Result<Option<Record>, Error> {
        let failed = |source| Error::Intent { step: "read", path: path.to_owned(), source };
        let mut text = Vec::new();
        match File::open(path).and_then(|file| file.take(LONGEST).read_to_end(&mut text)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        Record::parse(&text).map(Some).ok_or_else(|| Error::NotIntent { path: path.to_owned() })
    }

    /// Whether the daemon that wrote it may still thaw it itself.
    fn is_owned(&self) -> Result<bool, Error> {
        Ok(self.boot == boot_id()? && is_alive(self.owner, self.owner_start_time))
    }

    /// Thaw what it names, unless that is done or is another cgroup by now.
    fn thaw(&self) -> Result<(), Error> {
        if self.is_thawed || self.boot != boot_id()? {
            return Ok(());
        }
        match Freezer::at(&self.path) {
            Ok(freezer) if freezer.id() == self.id => match freezer.thaw() {
                Ok(()) | Err(cgroup::Error::Gone { .. }) => Ok(()),
                Err(error) => Err(error.into()),
            },
            Ok(_) | Err(cgroup::Error::Gone { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

fn is_alive(pid: u32, started: u64) -> bool {
    start_time(pid).is_ok_and(|time| time == started) && !is_dying(pid)
}

/// The number that the kernel gave this boot: random(4).
fn boot_id() -> Result<String, Error> {
    let path = Path::new("/proc/sys/kernel/random/boot_id");
    let text = fs::read_to_string(path);
    let text = text.map_err(|source| Error::Intent { step: "read", path: path.to_owned(), source })?;
    Ok(text.trim_end().to_owned())
}

/// Make the directory of the intents, and hold it against others' hands: what they name is thawed by root.
pub(crate) fn prepare(directory: &Path) -> Result<(), Error> {
    let failed = |step| move |source| Error::Intent { step, path: directory.to_owned(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(directory).map_err(failed("make"))?;
    let found = fs::symlink_metadata(directory).map_err(failed("read"))?;
    let own = fs::metadata("/proc/self").map_err(failed("read"))?.uid();
    if !found.is_dir() || found.uid() != own || found.mode() & 0o022 != 0 {
        return Err(failed("use")(io::ErrorKind::PermissionDenied.into()));
    }
    Ok(())
}

fn place(directory: &Path, freezer: &Freezer) -> PathBuf {
    directory.join(format!("{}-{}", freezer.version(), freezer.id()))
}

/// Whose the present freeze of the cgroup is.
pub(crate) fn owner(directory: &Path, freezer: &Freezer) -> Result<Owner, Error> {
    match Record::read(&place(directory, freezer))? {
        None => Ok(Owner::User),
        Some(record) if record.is_owned()? => Ok(Owner::Snapshot),
        // The guard was there, and whoever froze it since is not of us.
        Some(record) if record.is_thawed => Ok(Owner::User),
        Some(_) => Ok(Owner::Nobody),
    }
}

/// Say that we are about to freeze the cgroup. The file returned is for the guard's mark.
pub(crate) fn publish(directory: &Path, freezer: &Freezer) -> Result<(Intent, File), Error> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let owner = process::id();
    let record = Record {
        owner,
        owner_start_time: start_time(owner)?,
        boot: boot_id()?,
        path: freezer.path().to_owned(),
        id: freezer.id(),
        is_thawed: false,
    };
    // The name appears with the content, and only if it is free; the lock is for those who find a leftover there.
    let _lock =
        flock::lock(directory).map_err(|source| Error::Intent { step: "lock", path: directory.to_owned(), source })?;
    let draft =
        directory.join(format!(".{owner}-{}-{}", record.owner_start_time, NEXT.fetch_add(1, Ordering::Relaxed)));
    let path = place(directory, freezer);
    let failed = |source| Error::Intent { step: "write", path: path.clone(), source };
    let mut file = File::options().append(true).create_new(true).mode(0o600).open(&draft).map_err(failed)?;
    let linked = file.write_all(&record.write()).map_err(failed).and_then(|()| link(&draft, &path, freezer));
    let removed = fs::remove_file(&draft).map_err(failed);
    linked?;
    let intent = Intent { path: path.clone() };
    removed?;
    Ok((intent, file))
}

fn link(draft: &Path, path: &Path, freezer: &Freezer) -> Result<(), Error> {
    // A leftover is settled once; if there is another thing in the way after that, somebody was faster than we.
    for _ in 0..2 {
        match fs::hard_link(draft, path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(Error::Intent { step: "write", path: path.to_owned(), source }),
        }
        match Record::read(path)? {
            Some(record) if record.is_owned()? => break,
            Some(record) => settle(path, &record)?,
            None => {}
        }
    }
    Err(Error::Busy { path: freezer.path().to_owned() })
}

fn settle(path: &Path, record: &Record) -> Result<(), Error> {
    record.thaw()?;
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::Intent { step: "remove", path: path.to_owned(), source: error })
        }
        _ => Ok(()),
    }
}

/// Thaw what daemons that have ended left frozen, with their guards, as the files in `directory` say. What a daemon that
/// runs has frozen, or a user, is left as it is. To be called when a daemon starts, and when its service has stopped.
///
/// # Errors
/// [`Error::Intent`] if the directory cannot be read. A missing one is an empty one.
pub fn thaw_leftovers(directory: &Path) -> Result<Vec<Leftover>, Error> {
    let failed = |source| Error::Intent { step: "read", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    prepare(directory)?;
    let _lock = flock::lock(directory).map_err(failed)?;
    let mut leftovers = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if remove_draft(&path) {
            continue;
        }
        match Record::read(&path) {
            Ok(None) => {}
            Ok(Some(record)) => {
                if record.is_owned()? {
                    continue;
                }
                let result = settle(&path, &record);
                leftovers.push(Leftover { path: record.path, result });
            }
            Err(error) => leftovers.push(Leftover { path, result: Err(error) }),
        }
    }
    Ok(leftovers)
}

/// Whether it is an unpublished intent. Its freeze never began; one whose writer has ended is removed.
fn remove_draft(path: &Path) -> bool {
    let Some(name) = path.file_name().and_then(|name| name.to_str()?.strip_prefix('.')) else { return false };
    let mut numbers = name.split('-').map(str::parse::<u64>);
    if let (Some(Ok(pid)), Some(Ok(started))) = (numbers.next(), numbers.next())
        && !u32::try_from(pid).is_ok_and(|pid| is_alive(pid, started))
    {
        // The next start tries again.
        let _ = fs::remove_file(path);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::{LONGEST, Record, THAWED};
    use std::path::PathBuf;

    fn record(path: &str) -> Record {
        Record {
            owner: 7,
            owner_start_time: 8,
            boot: "0a-0b".to_owned(),
            path: PathBuf::from(path),
            id: u64::MAX,
            is_thawed: false,
        }
    }

    #[test]
    fn a_record_is_read_as_it_was_written() {
        for path in ["/sys/fs/cgroup/freezer/docker/0a", "/a b  c", "/"] {
            let mut text = record(path).write();
            assert_eq!(Record::parse(&text), Some(record(path)));
            text.extend_from_slice(THAWED.as_bytes());
            assert_eq!(Record::parse(&text), Some(Record { is_thawed: true, ..record(path) }));
        }
        let longest = format!("/{}", "x".repeat(4095));
        assert!((record(&longest).write().len() + THAWED.len()) as u64 <= LONGEST);
    }

    #[test]
    fn a_torn_record_is_none() {
        let text = record("/sys/fs/cgroup/freezer/docker/0a").write();
        for length in 0..text.len() {
            assert_eq!(Record::parse(&text[..length]), None, "{length}");
        }
    }
}
