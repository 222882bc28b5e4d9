//! CRIU's image files: records of a length and a protobuf message (criu, `images/*.proto`), read and written as far as is
//! needed. What a dump holds was made by a container's processes: nothing here trusts a length.

/// The two numbers that a file of several kinds begins with: `IMG_COMMON_MAGIC`, `IMG_SERVICE_MAGIC`.
const COMMON: [u32; 2] = [0x5456_4319, 0x5510_5940];
/// No message of the files that are read is longer.
const LONGEST: usize = 4 << 20;

/// A field of a message: its number, and what it holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// An integer, a flag, a fixed-width number.
    Number(u64),
    /// A string, bytes, or a message.
    Bytes(&'a [u8]),
}

impl<'a> Value<'a> {
    /// The number; 0 for anything else.
    pub(super) fn number(self) -> u64 {
        match self {
            Value::Number(number) => number,
            Value::Bytes(_) => 0,
        }
    }

    /// The bytes; none for anything else.
    pub(super) fn bytes(self) -> &'a [u8] {
        match self {
            Value::Bytes(bytes) => bytes,
            Value::Number(_) => &[],
        }
    }
}

/// The fields of a message, in order, each with where it begins and ends; ends at what is no field.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    bytes: &'a [u8],
    at: usize,
}

/// One field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Field<'a> {
    pub(super) number: u64,
    pub(super) value: Value<'a>,
    /// Its bytes, key included.
    pub(super) raw: &'a [u8],
}

pub(super) fn fields(bytes: &[u8]) -> Fields<'_> {
    Fields { bytes, at: 0 }
}

/// The first field of that number.
pub(super) fn field(bytes: &[u8], number: u64) -> Option<Value<'_>> {
    fields(bytes).find(|field| field.number == number).map(|field| field.value)
}

impl<'a> Iterator for Fields<'a> {
    type Item = Field<'a>;

    fn next(&mut self) -> Option<Field<'a>> {
        let start = self.at;
        let mut at = start;
        let key = varint(self.bytes, &mut at)?;
        let value = match key & 7 {
            0 => Value::Number(varint(self.bytes, &mut at)?),
            1 => Value::Number(u64::from_le_bytes(take(self.bytes, &mut at, 8)?.try_into().ok()?)),
            5 => Value::Number(u64::from(u32::from_le_bytes(take(self.bytes, &mut at, 4)?.try_into().ok()?))),
            2 => {
                let length = usize::try_from(varint(self.bytes, &mut at)?).ok()?;
                Value::Bytes(take(self.bytes, &mut at, length)?)
            }
            _ => return None,
        };
        self.at = at;
        Some(Field { number: key >> 3, value, raw: &self.bytes[start..at] })
    }
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, length: usize) -> Option<&'a [u8]> {
    let end = at.checked_add(length)?;
    let taken = bytes.get(*at..end)?;
    *at = end;
    Some(taken)
}

fn varint(bytes: &[u8], at: &mut usize) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let byte = *bytes.get(*at)?;
        *at += 1;
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

/// A message that is being made.
#[derive(Debug, Default)]
pub(super) struct Message(pub(super) Vec<u8>);

impl Message {
    pub(super) fn number(&mut self, field: u64, value: u64) {
        self.varint(field << 3);
        self.varint(value);
    }

    pub(super) fn bytes(&mut self, field: u64, value: &[u8]) {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend_from_slice(value);
    }

    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }
}

/// A file's head, and the messages of its records. An error for what is none, with the reason.
pub(super) fn records(file: &[u8]) -> Result<(&[u8], Vec<&[u8]>), &'static str> {
    let word = |at: usize| Some(u32::from_le_bytes(file.get(at..at + 4)?.try_into().ok()?));
    let first = word(0).ok_or("it is too short")?;
    // Files of the first version had one number.
    let head = if COMMON.contains(&first) { 8 } else { 4 };
    let mut at = head;
    let mut found = Vec::new();
    while at < file.len() {
        let length = word(at).ok_or("a record is cut off")? as usize;
        at += 4;
        let end = at.checked_add(length).filter(|_| length <= LONGEST).ok_or("a record is too long")?;
        found.push(file.get(at..end).ok_or("a record is cut off")?);
        at = end;
    }
    Ok((file.get(..head).ok_or("it is too short")?, found))
}

/// A file of these records.
pub(super) fn file<'a>(head: &[u8], records: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut file = head.to_vec();
    for record in records {
        file.extend_from_slice(&(record.len() as u32).to_le_bytes());
        file.extend_from_slice(record);
    }
    file
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_written_is_read() {
        let mut message = Message::default();
        message.number(1, 300);
        message.bytes(6, b"/");
        message.number(10, 0o40555);
        let read: Vec<_> = fields(&message.0).map(|field| (field.number, field.value)).collect();
        assert_eq!(read, [(1, Value::Number(300)), (6, Value::Bytes(b"/")), (10, Value::Number(0o40555))]);
        assert_eq!(field(&message.0, 10).unwrap().number(), 0o40555);
        let head = [0x19, 0x43, 0x56, 0x54, 1, 2, 3, 4];
        let bytes = file(&head, [&message.0[..], b""]);
        assert_eq!(records(&bytes), Ok((&head[..], vec![&message.0[..], &b""[..]])));
        assert!(records(&bytes[..bytes.len() - 1]).is_err());
        assert!(records(b"").is_err());
    }

    proptest! {
        #[test]
        fn never_panics_and_always_ends(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = records(&bytes);
            let all: usize = fields(&bytes).map(|field| field.raw.len()).sum();
            prop_assert!(all <= bytes.len());
        }
    }
}
