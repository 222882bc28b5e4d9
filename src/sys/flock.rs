//! Whole-file locks that the kernel lets go of when their holder dies: flock(2).
//!
//! A lock belongs to the open file description: it ends when the last descriptor of it is closed, so a child that was
//! forked without exec keeps it (descriptors of ours are close-on-exec).

use std::fs::File;
use std::io;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

/// Take the exclusive lock on `file`; `false` if somebody else holds one.
pub fn try_exclusive(file: &File) -> io::Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

/// Lock a file or directory against everyone else who does, for as long as the value returned lives. Waits for it.
///
/// # Errors
/// What open(2) and flock(2) answer.
pub fn lock(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    rustix::io::retry_on_intr(|| flock(&file, FlockOperation::LockExclusive))?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_at_a_time() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let (first, second) = (File::open(path.path()).unwrap(), File::open(path.path()).unwrap());
        assert!(try_exclusive(&first).unwrap());
        assert!(!try_exclusive(&second).unwrap());
        drop(first);
        assert!(try_exclusive(&second).unwrap());
    }
}
