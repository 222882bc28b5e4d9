//! How long a layer is when it is unpacked.

use std::fs::File;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

use crate::image::Error;
use crate::oci::Descriptor;
use crate::store::Store;

/// What is remembered of a layer, under its digest.
const FACT: &str = "unpacked-size";
/// The last bytes of a seekable blob: count of frames, descriptor, magic number.
const FOOTER: usize = 9;
const SEEKABLE: [u8; 4] = 0x8F92_EAB1_u32.to_le_bytes();
/// The longest table that is read: 32 million frames of at least a mebibyte are more than a disk holds.
const LONGEST_TABLE: u64 = 256 << 20;

/// The bytes of a layer's tar: from the table at the end of a layer that has one, else by unpacking it, which is
/// remembered.
pub fn unpacked_size(store: &Store, layer: &Descriptor) -> Result<u64, Error> {
    let key = layer.digest.to_string();
    let remembered = store.recall(FACT, &key).and_then(|fact| String::from_utf8(fact).ok()?.parse().ok());
    if let Some(size) = remembered {
        return Ok(size);
    }
    let mut blob = store.open_blob(&layer.digest)?;
    let size = measure(&mut blob).map_err(|error| {
        let (what, reason) = ("the layer", format!("it does not unpack: {error}"));
        Error::Malformed { what, digest: layer.digest, reason }
    })?;
    // A cache that cannot be written costs time and nothing else.
    let _ = store.remember(FACT, &key, size.to_string().as_bytes());
    Ok(size)
}

fn measure(blob: &mut File) -> io::Result<u64> {
    let length = blob.metadata()?.len();
    let mut magic = [0; 4];
    let got = read_up_to(blob, &mut magic)?;
    blob.rewind()?;
    match &magic[..got] {
        [0x28, 0xB5, 0x2F, 0xFD] | [0x50..=0x5F, 0x2A, 0x4D, 0x18] => match table_sum(blob, length)? {
            Some(size) => Ok(size),
            None => {
                blob.rewind()?;
                drain(zstd::Decoder::new(&mut *blob)?)
            }
        },
        [0x1F, 0x8B, ..] => drain(flate2::read::MultiGzDecoder::new(BufReader::with_capacity(1 << 18, &mut *blob))),
        _ => Ok(length),
    }
}

fn drain(mut unpacked: impl Read) -> io::Result<u64> {
    io::copy(&mut unpacked, &mut io::sink())
}

fn read_up_to(blob: &mut File, buffer: &mut [u8]) -> io::Result<usize> {
    let mut got = 0;
    while got < buffer.len() {
        match blob.read(&mut buffer[got..])? {
            0 => break,
            count => got += count,
        }
    }
    Ok(got)
}

/// What the seek table sums up to; `None` if there is none that accounts for every byte of the blob.
fn table_sum(blob: &mut File, length: u64) -> io::Result<Option<u64>> {
    if length < (FOOTER + 8) as u64 {
        return Ok(None);
    }
    let mut footer = [0; FOOTER];
    blob.seek(SeekFrom::End(-(FOOTER as i64)))?;
    blob.read_exact(&mut footer)?;
    let [c0, c1, c2, c3, descriptor, magic @ ..] = footer;
    let has_checksums = descriptor & 0x80 != 0;
    if magic != SEEKABLE || descriptor & 0x7C != 0 {
        return Ok(None);
    }
    let entry = if has_checksums { 12 } else { 8 };
    let table = u64::from(u32::from_le_bytes([c0, c1, c2, c3])) * entry + FOOTER as u64;
    let Some(frames) = length.checked_sub(table + 8).filter(|_| table <= LONGEST_TABLE) else { return Ok(None) };
    blob.seek(SeekFrom::Start(frames + 8))?;
    let mut entries = BufReader::new(blob.take(table - FOOTER as u64));
    let (mut packed, mut raw) = (0, 0);
    let mut bytes = [0; 12];
    while packed <= frames {
        let bytes = &mut bytes[..usize::try_from(entry).unwrap_or(12)];
        match entries.read_exact(bytes) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            result => result?,
        }
        let number =
            |at: usize| u64::from(u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]));
        packed += number(0);
        raw += number(4);
    }
    Ok((packed == frames).then_some(raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn size(bytes: &[u8]) -> io::Result<u64> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        file.rewind().unwrap();
        measure(&mut file)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn seekable(frames: &[&[u8]], claim: impl Fn(usize) -> u32) -> Vec<u8> {
        let mut blob = Vec::new();
        let mut table = Vec::new();
        for frame in frames {
            let packed = zstd::encode_all(*frame, 1).unwrap();
            table.extend(u32::try_from(packed.len()).unwrap().to_le_bytes());
            table.extend(claim(frame.len()).to_le_bytes());
            blob.extend(packed);
        }
        table.extend(u32::try_from(frames.len()).unwrap().to_le_bytes());
        table.push(0);
        table.extend(SEEKABLE);
        blob.extend(0x184D_2A5E_u32.to_le_bytes());
        blob.extend(u32::try_from(table.len()).unwrap().to_le_bytes());
        blob.extend(table);
        blob
    }

    #[test]
    fn every_encoding_is_measured_by_what_it_unpacks_to() {
        let text = vec![b'x'; 300_000];
        assert_eq!(size(&text).unwrap(), 300_000);
        assert_eq!(size(b"").unwrap(), 0);
        assert_eq!(size(&gzip(&text)).unwrap(), 300_000);
        assert_eq!(size(&[gzip(&text), gzip(b"more")].concat()).unwrap(), 300_004, "each member counts");
        assert_eq!(size(&zstd::encode_all(&text[..], 1).unwrap()).unwrap(), 300_000);
        let frames: [&[u8]; 2] = [&text, b"second"];
        assert_eq!(size(&seekable(&frames, |raw| raw as u32)).unwrap(), 300_006);
        // The table is what is read, not the frames.
        assert_eq!(size(&seekable(&frames, |raw| raw as u32 + 1)).unwrap(), 300_008);
    }

    #[test]
    fn a_table_that_does_not_fit_is_none_and_damage_is_an_error() {
        let good = seekable(&[b"first", b"second"], |raw| raw as u32 + 100);
        // A frame before it that the table does not count: the frames are unpacked.
        let more = [zstd::encode_all(&b"zero"[..], 1).unwrap(), good.clone()].concat();
        assert_eq!(size(&more).unwrap(), 4 + 5 + 6);
        assert!(size(&good[..10]).is_err());
        assert!(size(&gzip(&[b'x'; 1000])[..20]).is_err());
    }
}
