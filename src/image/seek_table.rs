//! The seek table of the zstd seekable format (zstd's `contrib/seekable_format/zstd_seekable_compression_format.md`,
//! version 0.1.0): where each frame of a layer lies, in a frame that every decoder skips.

/// The magic number of the skippable frame.
const SKIPPABLE: u32 = 0x184D_2A5E;
/// The last four bytes of a blob that ends in a seek table.
const SEEKABLE: u32 = 0x8F92_EAB1;
/// An entry: two sizes. There are no checksums here, since each frame ends in its own.
const ENTRY: usize = 8;
/// Count, descriptor and magic number.
const FOOTER: usize = 9;
/// The most frames that the format allows.
const MAX_FRAMES: usize = 0x800_0000;

/// A frame's place is the sum of those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Frame {
    /// Bytes of the tar.
    pub(crate) raw: u32,
    /// Bytes of the blob.
    pub(crate) packed: u32,
    /// Whether it has nothing but a file's content. The table does not say so.
    pub(crate) is_chunk: bool,
}

/// The table for a blob that consists of `frames`; `None` if there are more than a table can hold.
pub(crate) fn encode(frames: &[Frame]) -> Option<Vec<u8>> {
    let count = u32::try_from(frames.len()).ok().filter(|_| frames.len() <= MAX_FRAMES)?;
    let content = u32::try_from(frames.len() * ENTRY + FOOTER).ok()?;
    let mut table = Vec::with_capacity(8 + content as usize);
    table.extend(SKIPPABLE.to_le_bytes());
    table.extend(content.to_le_bytes());
    for frame in frames {
        table.extend(frame.packed.to_le_bytes());
        table.extend(frame.raw.to_le_bytes());
    }
    table.extend(count.to_le_bytes());
    // The descriptor: no checksums, and the reserved bits are zero.
    table.push(0);
    table.extend(SEEKABLE.to_le_bytes());
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_the_specifications() {
        let table = encode(&[Frame { raw: 0x0102_0304, packed: 0x0a0b, is_chunk: false }]).unwrap();
        let expected = [
            0x5e, 0x2a, 0x4d, 0x18, 17, 0, 0, 0, // the skippable frame and its length
            0x0b, 0x0a, 0, 0, 4, 3, 2, 1, // compressed and decompressed size
            1, 0, 0, 0, 0, 0xb1, 0xea, 0x92, 0x8f, // count, descriptor, magic number
        ];
        assert_eq!(table, expected);
    }
}
