//! A blob's bytes as the tar that they encode.

use std::io::{self, BufReader, Read};

use crate::oci::{MEDIA_TYPE_LAYER, MEDIA_TYPE_LAYER_GZIP, MEDIA_TYPE_LAYER_ZSTD};

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    /// Not at all.
    Plain,
    /// gzip, in any number of members.
    Gzip,
    /// zstd, in any number of frames.
    Zstd,
}

/// What a zstd decoder may ask for: windows of 128 MiB.
const LARGEST_WINDOW_LOG: u32 = 27;

impl Encoding {
    /// What the first bytes say; four suffice.
    pub fn of_bytes(first: &[u8]) -> Encoding {
        match first {
            [0x1f, 0x8b, ..] => Encoding::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Encoding::Zstd,
            _ => Encoding::Plain,
        }
    }

    /// What a layer's media type says, in the image specification's words or docker's.
    pub fn of_media_type(media_type: &str) -> Option<Encoding> {
        Some(match media_type {
            MEDIA_TYPE_LAYER
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar" => Encoding::Plain,
            MEDIA_TYPE_LAYER_GZIP
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip" => Encoding::Gzip,
            MEDIA_TYPE_LAYER_ZSTD
            | "application/vnd.docker.image.rootfs.diff.tar.zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd" => Encoding::Zstd,
            _ => return None,
        })
    }

    /// The media type of a layer that is encoded so.
    pub fn media_type(self) -> &'static str {
        match self {
            Encoding::Plain => MEDIA_TYPE_LAYER,
            Encoding::Gzip => MEDIA_TYPE_LAYER_GZIP,
            Encoding::Zstd => MEDIA_TYPE_LAYER_ZSTD,
        }
    }

    /// The bytes that `reader`'s encode. What follows the last member or frame is an error.
    ///
    /// Errors: no memory for the decoder.
    pub fn decode<'a>(self, reader: impl Read + Send + 'a) -> io::Result<Box<dyn Read + Send + 'a>> {
        const BUFFER: usize = 256 << 10;
        Ok(match self {
            Encoding::Plain => Box::new(reader),
            Encoding::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(BUFFER, reader))),
            Encoding::Zstd => {
                let mut decoder = zstd::stream::read::Decoder::with_buffer(BufReader::with_capacity(BUFFER, reader))?;
                decoder.window_log_max(LARGEST_WINDOW_LOG)?;
                Box::new(decoder)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn encoded(encoding: Encoding, bytes: &[u8]) -> Vec<u8> {
        match encoding {
            Encoding::Plain => bytes.to_vec(),
            Encoding::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(bytes).unwrap();
                encoder.finish().unwrap()
            }
            Encoding::Zstd => zstd::stream::encode_all(bytes, 1).unwrap(),
        }
    }

    #[test]
    fn what_is_encoded_is_recognised_and_decoded_in_any_number_of_pieces() {
        let bytes: Vec<u8> = (0..100_000_u32).flat_map(|n| (n / 3).to_le_bytes()).collect();
        for encoding in [Encoding::Plain, Encoding::Gzip, Encoding::Zstd] {
            let (head, tail) = bytes.split_at(77_777);
            let packed = [encoded(encoding, head), encoded(encoding, tail)].concat();
            assert_eq!(Encoding::of_bytes(&packed), encoding);
            assert_eq!(Encoding::of_media_type(encoding.media_type()), Some(encoding));
            let mut unpacked = Vec::new();
            encoding.decode(&packed[..]).unwrap().read_to_end(&mut unpacked).unwrap();
            assert!(unpacked == bytes, "{encoding:?}");
        }
        assert_eq!(Encoding::of_media_type("text/plain"), None);
    }

    #[test]
    fn what_is_cut_short_or_followed_by_something_is_an_error() {
        for encoding in [Encoding::Gzip, Encoding::Zstd] {
            let packed = encoded(encoding, &[7; 10_000]);
            let read = |bytes: &[u8]| encoding.decode(bytes).unwrap().read_to_end(&mut Vec::new());
            assert!(read(&packed).is_ok());
            assert!(read(&packed[..packed.len() - 1]).is_err(), "{encoding:?}");
            assert!(read(&[&packed[..], b"garbage"].concat()).is_err(), "{encoding:?}");
        }
    }
}
