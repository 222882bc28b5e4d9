//! One blob as it comes in: written and hashed, and decompressed beside that only to know the digest of its tar.
//!
//! Who decompresses reads what is written already, from the blob's own file: it holds up neither the writer nor memory,
//! and several layers are decompressed at once.

use std::fs::File;
use std::io::{self, Read, Write};
use std::num::NonZero;
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use parking_lot::{Condvar, Mutex};

use crate::archive::Error;
use crate::image::Encoding;
use crate::oci::{DiffId, Digest, Hasher};
use crate::store::{BlobWriter, Lease};

/// How much is read, hashed and written at once.
pub(super) const CHUNK: usize = 1 << 20;
/// What a blob may decompress to: so much, and this many times its own length. A file of two gigabytes of zeros passes,
/// and a bomb does not keep a processor busy for the rest of the day.
const EXPANDS_TO: u64 = 4 << 30;
const EXPANDS: u64 = 200;

/// A blob that is in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Blob {
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) encoding: Encoding,
    /// SHA-256 of what it decompresses to; why it does not, if it does not.
    pub(super) diff_id: Result<DiffId, String>,
}

/// A blob that is in the store, and is perhaps still being decompressed.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) digest: Digest,
    size: u64,
    encoding: Encoding,
    inflation: Option<Inflation>,
}

/// A blob on its way into the store.
#[derive(Debug)]
pub(super) struct Intake {
    writer: BlobWriter,
    written: u64,
    encoding: Encoding,
    inflation: Option<Inflation>,
}

/// How many blobs are decompressed at once.
#[derive(Debug)]
pub(super) struct Slots {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Slots {
    /// One for each processor.
    pub(super) fn new() -> Arc<Slots> {
        let cores = thread::available_parallelism().map_or(2, NonZero::get);
        Arc::new(Slots { free: Mutex::new(cores.clamp(2, 8)), freed: Condvar::new() })
    }

    fn take(self: &Arc<Self>) -> Slot {
        let mut free = self.free.lock();
        while *free == 0 {
            self.freed.wait(&mut free);
        }
        *free -= 1;
        Slot(Arc::clone(self))
    }
}

struct Slot(Arc<Slots>);

impl Drop for Slot {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.freed.notify_one();
    }
}

/// The thread that decompresses. Dropped, it ends soon.
#[derive(Debug)]
struct Inflation {
    progress: Arc<Progress>,
    thread: Option<JoinHandle<Result<DiffId, String>>>,
}

/// How far the blob's file is written.
#[derive(Debug, Default)]
struct Progress {
    state: Mutex<Written>,
    changed: Condvar,
}

#[derive(Debug, Default, Clone, Copy)]
struct Written {
    bytes: u64,
    whole: bool,
    abandoned: bool,
}

impl Progress {
    fn change(&self, change: impl FnOnce(&mut Written)) {
        change(&mut self.state.lock());
        self.changed.notify_one();
    }
}

impl Intake {
    /// Begin a blob of `size` bytes, which begins with `first`. Waits while too many are being decompressed.
    pub(super) fn begin(lease: &Lease, slots: &Arc<Slots>, first: &[u8], size: u64) -> Result<Intake, Error> {
        let encoding = Encoding::of_bytes(first);
        let writer = lease.blob()?;
        let inflation = match encoding {
            Encoding::Plain => None,
            Encoding::Gzip | Encoding::Zstd => Some(Inflation::start(encoding, writer.reopen()?, slots.take(), size)?),
        };
        Ok(Intake { writer, written: 0, encoding, inflation })
    }

    /// More of it; `false` once it cannot be written, which [`finish`](Self::finish) explains.
    pub(super) fn add(&mut self, chunk: &[u8]) -> bool {
        if self.writer.write_all(chunk).is_err() {
            return false;
        }
        self.written += chunk.len() as u64;
        if let Some(inflation) = &self.inflation {
            inflation.progress.change(|written| written.bytes = self.written);
        }
        true
    }

    /// Make it durable.
    pub(super) fn finish(self) -> Result<Taken, Error> {
        if let Some(inflation) = &self.inflation {
            inflation.progress.change(|written| written.whole = true);
        }
        let (digest, size) = self.writer.finish()?;
        Ok(Taken { digest, size, encoding: self.encoding, inflation: self.inflation })
    }
}

impl Taken {
    /// All that is known of it, once it is decompressed.
    pub(super) fn settle(self) -> Blob {
        let Taken { digest, size, encoding, inflation } = self;
        let diff_id = inflation.map_or_else(|| Ok(digest.as_diff_id()), Inflation::end);
        Blob { digest, size, encoding, diff_id }
    }
}

impl Inflation {
    fn start(encoding: Encoding, file: File, slot: Slot, size: u64) -> Result<Inflation, Error> {
        let progress = Arc::new(Progress::default());
        let tail = Tail { file, progress: Arc::clone(&progress), at: 0 };
        let limit = EXPANDS_TO.saturating_add(size.saturating_mul(EXPANDS));
        let work = move || {
            let _slot = slot;
            inflate(encoding, tail, limit)
        };
        let thread = thread::Builder::new().name("inflate".to_owned()).spawn(work).map_err(Error::Thread)?;
        Ok(Inflation { progress, thread: Some(thread) })
    }

    fn end(mut self) -> Result<DiffId, String> {
        let ended = self.thread.take().map(JoinHandle::join);
        ended.and_then(Result::ok).unwrap_or_else(|| Err("a defect in snapfs; the daemon's log says where".to_owned()))
    }
}

impl Drop for Inflation {
    fn drop(&mut self) {
        self.progress.change(|written| written.abandoned = true);
    }
}

fn inflate(encoding: Encoding, stream: impl Read + Send, limit: u64) -> Result<DiffId, String> {
    let mut reader = encoding.decode(stream).map_err(|error| error.to_string())?;
    let mut hasher = Hasher::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(hasher.diff_id()),
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error.to_string()),
        }
        if hasher.length() > limit {
            return Err(format!("it decompresses to more than {limit} bytes"));
        }
    }
}

/// A file as it is being written.
struct Tail {
    file: File,
    progress: Arc<Progress>,
    at: u64,
}

impl Read for Tail {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let written = {
            let mut state = self.progress.state.lock();
            while state.bytes == self.at && !state.whole && !state.abandoned {
                self.progress.changed.wait(&mut state);
            }
            *state
        };
        if written.abandoned {
            return Err(io::Error::other("nobody wants to know any more"));
        }
        let most = usize::try_from(written.bytes - self.at).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.file.read(&mut buffer[..most])?;
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bomb_is_given_up_on() {
        let zeros = vec![0; 4 << 20];
        let bomb = zstd_of(&zeros);
        assert!(bomb.len() < 2000);
        assert_eq!(inflate(Encoding::Zstd, &bomb[..], 4 << 20), Ok(DiffId::of(&zeros)));
        let error = inflate(Encoding::Zstd, &bomb[..], (4 << 20) - 1).unwrap_err();
        assert!(error.contains("decompresses to more than"), "{error}");
    }

    /// A frame of run-length blocks, written by hand: this room names no compressor.
    fn zstd_of(zeros: &[u8]) -> Vec<u8> {
        let blocks = zeros.len() >> 17;
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0x00, 0x38];
        for at in 0..blocks {
            let header = (1_u32 << 17) << 3 | 1 << 1 | u32::from(at + 1 == blocks);
            frame.extend(&header.to_le_bytes()[..3]);
            frame.push(0);
        }
        frame
    }

    #[test]
    fn what_is_written_meanwhile_is_read_and_what_is_abandoned_ends() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("blob");
        let mut writer = File::create(&path).unwrap();
        let progress = Arc::new(Progress::default());
        let tail = || Tail { file: File::open(&path).unwrap(), progress: Arc::clone(&progress), at: 0 };
        let (mut first, mut second) = (tail(), tail());
        let reader = thread::spawn(move || {
            let mut bytes = Vec::new();
            first.read_to_end(&mut bytes).map(|_| bytes)
        });
        for _ in 0..10 {
            writer.write_all(b"0123456789").unwrap();
            progress.change(|written| written.bytes += 10);
        }
        progress.change(|written| written.whole = true);
        assert_eq!(reader.join().unwrap().unwrap(), b"0123456789".repeat(10));
        progress.change(|written| written.abandoned = true);
        assert!(second.read(&mut [0; 10]).is_err());
    }
}
