//! Bytes from one file to another without a way through this process, and without a copy where the file system can share them.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::io::Errno;

/// Copies up to `length` bytes at `from_at` of `from` to `to_at` of `to` (`copy_file_range(2)`: shared blocks on XFS and
/// btrfs, a copy elsewhere); returns how many, 0 at the end of `from`.
pub fn copy_range(from: &File, from_at: u64, to: &File, to_at: u64, length: u64) -> io::Result<u64> {
    let (mut input, mut output) = (from_at, to_at);
    let wanted = usize::try_from(length).unwrap_or(usize::MAX);
    loop {
        match rustix::fs::copy_file_range(from, Some(&mut input), to, Some(&mut output), wanted) {
            Ok(copied) => return Ok(copied as u64),
            Err(Errno::INTR) => {}
            // Two file systems, or one that has no such call.
            Err(Errno::XDEV | Errno::INVAL | Errno::NOSYS | Errno::OPNOTSUPP | Errno::PERM) => {
                return through_memory(from, from_at, to, to_at, wanted);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn through_memory(from: &File, from_at: u64, to: &File, to_at: u64, wanted: usize) -> io::Result<u64> {
    let mut chunk = vec![0; wanted.min(1 << 20)];
    loop {
        match from.read_at(&mut chunk, from_at) {
            Ok(read) => {
                to.write_all_at(&chunk[..read], to_at)?;
                return Ok(read as u64);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
