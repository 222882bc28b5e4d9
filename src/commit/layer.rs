//! A stand-in for the pipeline's `image::LayerWriter` until it is merged: the same methods, over a file.

use std::io::{self, Read, Write};
use std::ops::Range;

use crate::image::{self, Compression, Layer};
use crate::store::{Lease, Spool};

pub(super) struct LayerWriter {
    tar: Spool,
    position: u64,
    retracted: Vec<Range<u64>>,
    inner: image::LayerWriter,
}

impl LayerWriter {
    pub(super) fn new(lease: &Lease, compression: Compression) -> Result<LayerWriter, image::Error> {
        let inner = image::LayerWriter::new(lease.blob()?, compression)?;
        Ok(LayerWriter { tar: lease.spool()?, position: 0, retracted: Vec::new(), inner })
    }

    pub(super) fn position(&self) -> u64 {
        self.position
    }

    pub(super) fn begin_entry(&mut self, _content: u64) {}

    pub(super) fn retract(&mut self, ranges: Vec<Range<u64>>, _lease: &Lease) -> Result<(), image::Error> {
        self.retracted.extend(ranges);
        self.retracted.sort_by_key(|range| range.start);
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<Layer, image::Error> {
        let mut tar = io::BufReader::with_capacity(1 << 20, self.tar.open()?);
        let mut at = 0;
        self.retracted.push(self.position..self.position);
        for range in &self.retracted {
            io::copy(&mut (&mut tar).take(range.start - at), &mut self.inner).map_err(image::Error::Write)?;
            io::copy(&mut (&mut tar).take(range.end - range.start), &mut io::sink()).map_err(image::Error::Write)?;
            at = range.end;
        }
        self.inner.finish()
    }
}

impl Write for LayerWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.tar.write(bytes)?;
        self.position += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
