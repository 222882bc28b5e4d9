//! One blob as it comes in: written and hashed, and decompressed beside that only to know the digest of its tar.

use std::io::{self, Read, Write};
use std::sync::Arc;
use std::thread::{self, JoinHandle};

use crossbeam_channel::{Receiver, Sender, bounded};

use crate::archive::Error;
use crate::image::Encoding;
use crate::oci::{DiffId, Digest, Hasher};
use crate::store::{BlobWriter, Lease};

/// How much is read, hashed and written at once.
pub(super) const CHUNK: usize = 1 << 20;
/// How far decompressing may lag behind, in chunks.
const LAG: usize = 16;
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

/// A blob on its way into the store.
#[derive(Debug)]
pub(super) struct Intake {
    writer: BlobWriter,
    encoding: Encoding,
    inflation: Option<Inflation>,
}

/// The thread that decompresses.
#[derive(Debug)]
struct Inflation {
    chunks: Sender<Arc<[u8]>>,
    thread: JoinHandle<Result<DiffId, String>>,
}

impl Intake {
    /// Begin a blob of `size` bytes, which begins with `first`.
    pub(super) fn begin(lease: &Lease, first: &[u8], size: u64) -> Result<Intake, Error> {
        let encoding = Encoding::of_bytes(first);
        let inflation = match encoding {
            Encoding::Plain => None,
            Encoding::Gzip | Encoding::Zstd => Some(Inflation::start(encoding, size)?),
        };
        Ok(Intake { writer: lease.blob()?, encoding, inflation })
    }

    /// More of it; `false` once it cannot be written, which [`finish`](Self::finish) explains.
    pub(super) fn add(&mut self, chunk: &[u8]) -> bool {
        if let Some(inflation) = &self.inflation {
            // It stops listening once it has met an error, which `finish` tells.
            let _ = inflation.chunks.send(Arc::from(chunk));
        }
        self.writer.write_all(chunk).is_ok()
    }

    /// Make it durable, with all that is known of it.
    pub(super) fn finish(self) -> Result<Blob, Error> {
        let (digest, size) = self.writer.finish()?;
        let diff_id = match self.inflation {
            None => Ok(digest.as_diff_id()),
            Some(inflation) => inflation.end(),
        };
        Ok(Blob { digest, size, encoding: self.encoding, diff_id })
    }
}

impl Inflation {
    fn start(encoding: Encoding, size: u64) -> Result<Inflation, Error> {
        let (chunks, received) = bounded(LAG);
        let limit = EXPANDS_TO.saturating_add(size.saturating_mul(EXPANDS));
        let inflate = move || inflate(encoding, received, limit);
        let thread = thread::Builder::new().name("inflate".to_owned()).spawn(inflate).map_err(Error::Thread)?;
        Ok(Inflation { chunks, thread })
    }

    fn end(self) -> Result<DiffId, String> {
        drop(self.chunks);
        self.thread.join().unwrap_or_else(|_| Err("a defect in snapfs; the daemon's log says where".to_owned()))
    }
}

fn inflate(encoding: Encoding, chunks: Receiver<Arc<[u8]>>, limit: u64) -> Result<DiffId, String> {
    let mut reader =
        encoding.decode(Chunks { chunks, chunk: Arc::default(), at: 0 }).map_err(|error| error.to_string())?;
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

/// What comes through the channel, as a stream.
struct Chunks {
    chunks: Receiver<Arc<[u8]>>,
    chunk: Arc<[u8]>,
    at: usize,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.chunk.len() {
            match self.chunks.recv() {
                Ok(chunk) => (self.chunk, self.at) = (chunk, 0),
                Err(_) => return Ok(0),
            }
        }
        let count = buffer.len().min(self.chunk.len() - self.at);
        buffer[..count].copy_from_slice(&self.chunk[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}
