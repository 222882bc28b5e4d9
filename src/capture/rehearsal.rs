//! [`Rehearsal`]: a large file that is being written to, copied before the freeze and compared during it.
//!
//! Nothing tells where a file was written to, only that it was: a log of gigabytes that has grown by a line would have to
//! be copied whole while its container stands still. So it is copied before, with a hash of each piece; then only the
//! pieces whose hash is another are copied again. To compare takes a third of the time of a copy, and no new pages.

use std::fs::File;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::io;
use std::os::unix::fs::FileExt;
use std::thread;
use std::time::Instant;

use twox_hash::XxHash3_128;

use crate::capture::aside::Late;

/// How much is compared at once: as much as stays in a processor's own cache between the copy and the hash.
const PIECE: usize = 256 << 10;
/// Less than that is compared sooner than a thread is started.
const ALONE: usize = 64;

/// See the head of this file.
pub(super) struct Rehearsal {
    /// Where the copy begins in the spool, and how long it may become.
    base: u64,
    room: u64,
    /// How long it is.
    size: u64,
    /// Of each piece of the copy. The seed is nobody's to know, so that no content can be made to pass for another.
    hashes: Vec<u128>,
    seed: u64,
}

impl Rehearsal {
    /// A copy of nothing, at `base` of the spool.
    pub(super) fn new(base: u64, room: u64) -> Rehearsal {
        Rehearsal { base, room, size: 0, hashes: Vec::new(), seed: RandomState::new().build_hasher().finish() }
    }

    pub(super) fn base(&self) -> u64 {
        self.base
    }

    /// Makes the copy in `spool` equal to the first `size` bytes of `file`; returns how many had to be copied, or none if the
    /// file has outgrown its place. If `file` changes meanwhile, the copy is of no use before the next time.
    pub(super) fn renew(
        &mut self,
        file: &File,
        size: u64,
        spool: &File,
        until: Option<Instant>,
    ) -> io::Result<Option<Result<u64, Late>>> {
        let Some(pieces) = usize::try_from(size.div_ceil(PIECE as u64)).ok().filter(|_| size <= self.room) else {
            return Ok(None);
        };
        self.hashes.resize(pieces, 0);
        let task = Task { file, spool, base: self.base, old: self.size, new: size, seed: self.seed, until };
        let copied = if pieces <= ALONE {
            task.run(0, &mut self.hashes)?
        } else {
            let (one, other) = self.hashes.split_at_mut(pieces / 2);
            let middle = one.len();
            thread::scope(|scope| {
                let beside = scope.spawn(|| task.run(0, one));
                let mine = task.run(middle, other);
                let theirs = beside.join().unwrap_or_else(|_| Err(io::Error::other("a thread that copies died")));
                Ok::<_, io::Error>(match (mine?, theirs?) {
                    (Ok(mine), Ok(theirs)) => Ok(mine + theirs),
                    _ => Err(Late),
                })
            })?
        };
        self.size = size;
        Ok(Some(copied))
    }
}

struct Task<'a> {
    file: &'a File,
    spool: &'a File,
    base: u64,
    /// The lengths of the copy and of the file.
    old: u64,
    new: u64,
    seed: u64,
    until: Option<Instant>,
}

impl Task<'_> {
    /// Compares the pieces from the `first` on.
    fn run(&self, first: usize, hashes: &mut [u128]) -> io::Result<Result<u64, Late>> {
        let mut buffer = vec![0; PIECE];
        let mut copied = 0;
        for (index, hash) in hashes.iter_mut().enumerate() {
            let at = (first + index) as u64 * PIECE as u64;
            let length = |size: u64| size.saturating_sub(at).min(PIECE as u64) as usize;
            let want = length(self.new);
            let read = read_full(self.file, &mut buffer[..want], at)?;
            // A file that is shorter than it was said to be: zeros, as a tar has them.
            buffer[read..want].fill(0);
            let now = XxHash3_128::oneshot_with_seed(self.seed, &buffer[..want]);
            if now != *hash || length(self.old) != want {
                self.spool.write_all_at(&buffer[..want], self.base + at)?;
                *hash = now;
                copied += want as u64;
            }
            if self.until.is_some_and(|until| Instant::now() > until) {
                return Ok(Err(Late));
            }
        }
        Ok(Ok(copied))
    }
}

fn read_full(file: &File, buffer: &mut [u8], at: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read_at(&mut buffer[filled..], at + filled as u64) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_copied_again() {
        let file = tempfile::tempfile().unwrap();
        let spool = tempfile::tempfile().unwrap();
        let base = 4096;
        let mut content: Vec<u8> = (0..PIECE * 150 + 77).map(|n| (n / 1000) as u8).collect();
        file.write_all_at(&content, 0).unwrap();
        let mut rehearsal = Rehearsal::new(base, 1 << 30);
        let mut renew = |content: &[u8]| {
            let copied = rehearsal.renew(&file, content.len() as u64, &spool, None).unwrap().unwrap().ok().unwrap();
            let mut copy = vec![0; content.len()];
            spool.read_exact_at(&mut copy, base).unwrap();
            assert!(copy == content, "the copy is the file");
            copied
        };
        assert_eq!(renew(&content), content.len() as u64);
        assert_eq!(renew(&content), 0);
        // One byte, in each thread's half; then a longer file, then a shorter one.
        for at in [3, PIECE * 149] {
            content[at] ^= 1;
            file.write_all_at(&content[at..=at], at as u64).unwrap();
        }
        assert_eq!(renew(&content), 2 * PIECE as u64);
        content.extend([7; 10]);
        file.write_all_at(&[7; 10], content.len() as u64 - 10).unwrap();
        assert_eq!(renew(&content), 87);
        content.truncate(PIECE * 3 + 5);
        file.set_len(content.len() as u64).unwrap();
        assert_eq!(renew(&content), 5);
        assert!(rehearsal.renew(&file, (1 << 30) + 1, &spool, None).unwrap().is_none());
    }
}
