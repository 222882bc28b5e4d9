//! Bytes from one file to another without a way through this process, and without a copy where the file system can share them.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
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

/// Whether the first block of `from` can be shared with `to` (`FICLONERANGE`, ioctl_ficlonerange(2)); tried at `at` of `to`,
/// where nothing is yet.
pub fn can_share(from: &File, to: &File, at: u64) -> bool {
    /// A multiple of every file system's block.
    const BLOCK: u64 = 64 << 10;
    let range =
        libc::file_clone_range { src_fd: from.as_raw_fd().into(), src_offset: 0, src_length: BLOCK, dest_offset: at };
    // SAFETY: both descriptors are open, and the kernel only reads the structure.
    #[allow(unsafe_code)]
    let done = unsafe { libc::ioctl(to.as_raw_fd(), libc::FICLONERANGE, &raw const range) };
    done == 0
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
