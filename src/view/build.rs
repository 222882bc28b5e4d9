//! A layer's index is made: one pass over its tar, in which the tar is held against its DiffID.

use std::fs::File;
use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::thread;

use crossbeam_channel::{Receiver, bounded};

use crate::oci::{DiffId, Hasher};
use crate::view::index::Index;
use crate::view::layer::Builder;
use crate::view::stream::{self, Packing};
use crate::view::tar::{self, Entry, Reader};

/// Why a layer has no index.
#[derive(Debug)]
pub(crate) enum Failure {
    /// No unpacker may take it.
    Refused(String),
    /// Its tar is another than its image says.
    Differs(DiffId),
    /// It cannot be read or decoded.
    Read(io::Error),
}

/// How many chunks wait for the hash and the parser.
const WAITING: usize = 8;

/// Read the whole layer. One thread decodes, one hashes, and this one reads the entries, each of which `see` sees.
pub(crate) fn build(
    blob: &File,
    packing: Packing,
    diff_id: DiffId,
    see: &mut dyn FnMut(&Entry),
) -> Result<Index, Failure> {
    let (to_hash, chunks_to_hash) = bounded::<Arc<Vec<u8>>>(WAITING);
    let (to_parse, chunks_to_parse) = bounded::<Arc<Vec<u8>>>(WAITING);
    thread::scope(|scope| {
        let decoder = scope.spawn(move || {
            let mut sink = |chunk| {
                let chunk = Arc::new(chunk);
                let closed = |_| io::Error::from(io::ErrorKind::BrokenPipe);
                to_hash.send(Arc::clone(&chunk)).map_err(closed)?;
                // The parser may have had enough: its entries are then wrong, and that is the error.
                let _ = to_parse.send(chunk);
                Ok(())
            };
            stream::decode(blob, packing, &mut sink)
        });
        let hasher = scope.spawn(move || {
            let mut hasher = Hasher::new();
            chunks_to_hash.iter().for_each(|chunk| hasher.update(&chunk));
            hasher.digest()
        });
        let tree = parse(Chunks { chunks: chunks_to_parse, chunk: Arc::default(), at: 0 }, see);
        let panicked = |_| Failure::Read(io::Error::other("a thread that reads the layer panicked"));
        let decoded = decoder.join().map_err(panicked)?;
        let digest = hasher.join().map_err(panicked)?;
        let (points, tar_length) = decoded.map_err(Failure::Read)?;
        let found = DiffId::from(*digest.as_bytes());
        if found != diff_id {
            return Err(Failure::Differs(found));
        }
        Ok(Index { diff_id, tar_length, points, tree: tree.map_err(Failure::Refused)? })
    })
}

/// The tree of a tar that is a file by itself. A file's content begins at its inode's place, see [`Inode::place`].
///
/// # Errors
/// Why no unpacker should take it.
///
/// [`Inode::place`]: crate::view::Inode::place
pub fn read_tar(tar: &File) -> Result<crate::view::tree::Tree, String> {
    let mut reader = Reader::new(io::BufReader::with_capacity(256 << 10, tar));
    let mut builder = Builder::new();
    while let Some(entry) = reader.entry().map_err(|error| error.to_string())? {
        builder.add(&entry)?;
    }
    builder.finish()
}

fn parse(chunks: Chunks, see: &mut dyn FnMut(&Entry)) -> Result<crate::view::tree::Tree, String> {
    let mut reader = Reader::new(chunks);
    let mut builder = Builder::new();
    while let Some(entry) = reader.entry().map_err(|error: tar::Error| error.to_string())? {
        builder.add(&entry)?;
        see(&entry);
    }
    // The rest is padding, which only the digest is made of.
    reader.into_input().chunks.iter().for_each(drop);
    builder.finish()
}

/// The tar, as the parser reads it.
struct Chunks {
    chunks: Receiver<Arc<Vec<u8>>>,
    chunk: Arc<Vec<u8>>,
    at: usize,
}

impl BufRead for Chunks {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        while self.at == self.chunk.len() {
            let Ok(chunk) = self.chunks.recv() else { return Ok(&[]) };
            (self.chunk, self.at) = (chunk, 0);
        }
        Ok(&self.chunk[self.at..])
    }

    fn consume(&mut self, count: usize) {
        self.at += count;
    }
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let there = self.fill_buf()?;
        let count = there.len().min(buffer.len());
        buffer[..count].copy_from_slice(&there[..count]);
        self.consume(count);
        Ok(count)
    }
}
