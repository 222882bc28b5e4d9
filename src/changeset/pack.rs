//! Values as bytes that are read again by this program only: numbers in as few bytes as they need, text by its length.
//!
//! What is read may be damaged: reading ends with `None`, whatever the bytes are.

use crate::sys::dir::{Device, Time};

/// Takes values.
#[derive(Debug, Default)]
pub(crate) struct Packer(Vec<u8>);

impl Packer {
    pub(crate) fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }

    pub(crate) fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number.to_le_bytes()[0] | 0x80);
            number >>= 7;
        }
        self.0.push(number.to_le_bytes()[0]);
    }

    /// A number that is near nought on either side.
    pub(crate) fn signed(&mut self, number: i64) {
        self.number(((number << 1) ^ (number >> 63)).cast_unsigned());
    }

    pub(crate) fn text(&mut self, text: &[u8]) {
        self.number(text.len() as u64);
        self.0.extend_from_slice(text);
    }

    /// Bytes whose number is known.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    pub(crate) fn time(&mut self, time: Time) {
        self.signed(time.seconds);
        self.number(time.nanoseconds.into());
    }

    pub(crate) fn device(&mut self, device: Device) {
        self.number(device.major.into());
        self.number(device.minor.into());
    }

    pub(crate) fn into_bytes(self) -> Vec<u8> {
        self.0
    }
}

/// Gives them back in the order they were taken in.
#[derive(Debug)]
pub(crate) struct Unpacker<'a>(&'a [u8]);

impl<'a> Unpacker<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Unpacker<'a> {
        Unpacker(bytes)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (&byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(byte)
    }

    pub(crate) fn number(&mut self) -> Option<u64> {
        let mut number = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    pub(crate) fn small(&mut self) -> Option<u32> {
        self.number()?.try_into().ok()
    }

    pub(crate) fn length(&mut self) -> Option<usize> {
        self.number()?.try_into().ok()
    }

    pub(crate) fn signed(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1).cast_signed() ^ -((number & 1).cast_signed()))
    }

    pub(crate) fn text(&mut self) -> Option<&'a [u8]> {
        let length = self.length()?;
        self.bytes(length)
    }

    pub(crate) fn bytes(&mut self, length: usize) -> Option<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(crate) fn time(&mut self) -> Option<Time> {
        let seconds = self.signed()?;
        let nanoseconds = self.small().filter(|nanoseconds| *nanoseconds < 1_000_000_000)?;
        Some(Time { seconds, nanoseconds })
    }

    pub(crate) fn device(&mut self) -> Option<Device> {
        Some(Device { major: self.small()?, minor: self.small()? })
    }

    /// Whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_goes_in_comes_out(numbers: Vec<u64>, signed: Vec<i64>, text: Vec<u8>) {
            let mut packer = Packer::default();
            numbers.iter().for_each(|number| packer.number(*number));
            signed.iter().for_each(|number| packer.signed(*number));
            packer.text(&text);
            packer.time(Time { seconds: -7, nanoseconds: 999_999_999 });
            let bytes = packer.into_bytes();
            let mut unpacker = Unpacker::new(&bytes);
            for number in numbers {
                prop_assert_eq!(unpacker.number(), Some(number));
            }
            for number in signed {
                prop_assert_eq!(unpacker.signed(), Some(number));
            }
            prop_assert_eq!(unpacker.text(), Some(&text[..]));
            prop_assert_eq!(unpacker.time(), Some(Time { seconds: -7, nanoseconds: 999_999_999 }));
            prop_assert!(unpacker.is_empty() && unpacker.byte().is_none());
        }
    }
}
