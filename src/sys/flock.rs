//! Whole-file locks that the kernel lets go of when their holder dies: flock(2).

use std::fs::File;
use std::io;

use rustix::fs::FlockOperation;

/// Take the exclusive lock on `file`; `false` if somebody else holds one.
///
/// The lock belongs to the open file description: it ends when the last descriptor of it is closed, so a child that
/// was forked without exec keeps it (descriptors of ours are close-on-exec).
pub fn try_exclusive(file: &File) -> io::Result<bool> {
    match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
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
