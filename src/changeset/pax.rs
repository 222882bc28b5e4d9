//! Extended header records of the pax interchange format: POSIX.1-2024, `pax`, "pax Extended Header".

use crate::sys::dir::Time;

/// Records to put before one header, in an order that depends on their keywords alone.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Records(Vec<(Vec<u8>, Vec<u8>)>);

impl Records {
    /// Adds `keyword=value`. A value may hold any byte, newlines included: a record is delimited by its length.
    pub(crate) fn add(&mut self, keyword: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) {
        self.0.push((keyword.into(), value.into()));
    }

    /// Adds an extended attribute, the way star, GNU tar, libarchive and Go name it.
    ///
    /// An `=` would end the keyword, so it is written as GNU tar writes it; other readers do not decode that. A name
    /// that holds none of the sequences that GNU tar decodes is left as it is.
    pub(crate) fn add_xattr(&mut self, name: &[u8], value: &[u8]) {
        let mut keyword = b"SCHILY.xattr.".to_vec();
        if name.contains(&b'=') || name.windows(3).any(|part| part == b"%3D" || part == b"%25") {
            for &byte in name {
                match byte {
                    b'=' => keyword.extend_from_slice(b"%3D"),
                    b'%' => keyword.extend_from_slice(b"%25"),
                    other => keyword.push(other),
                }
            }
        } else {
            keyword.extend_from_slice(name);
        }
        self.add(keyword, value);
    }

    /// The records as bytes; empty if there are none.
    pub(crate) fn encode(mut self) -> Vec<u8> {
        self.0.sort();
        let mut bytes = Vec::new();
        for (keyword, value) in self.0 {
            let rest = keyword.len() + value.len() + 3; // the space, the equals sign and the newline
            let mut length = rest + 1;
            while length != rest + decimal_digits(length) {
                length = rest + decimal_digits(length);
            }
            bytes.extend_from_slice(length.to_string().as_bytes());
            bytes.push(b' ');
            bytes.extend_from_slice(&keyword);
            bytes.push(b'=');
            bytes.extend_from_slice(&value);
            bytes.push(b'\n');
        }
        bytes
    }
}

/// The attribute's name of a keyword, without what comes before it: what [`Records::add_xattr`] makes the same keyword of.
pub(crate) fn xattr_name(keyword: &[u8]) -> Vec<u8> {
    let mut name = Vec::with_capacity(keyword.len());
    let mut rest = keyword;
    while let [first, after @ ..] = rest {
        let (byte, after) = match rest {
            [b'%', b'3', b'D', after @ ..] => (b'=', after),
            [b'%', b'2', b'5', after @ ..] => (b'%', after),
            _ => (*first, after),
        };
        name.push(byte);
        rest = after;
    }
    name
}

fn decimal_digits(number: usize) -> usize {
    number.to_string().len()
}

/// `time` in decimal seconds with as many places as it needs. Before the epoch a fraction counts away from zero.
pub(crate) fn decimal(time: Time) -> String {
    let (sign, seconds, nanoseconds) = match (time.seconds < 0, time.nanoseconds) {
        (false, nanoseconds) => ("", time.seconds.unsigned_abs(), nanoseconds),
        (true, 0) => ("-", time.seconds.unsigned_abs(), 0),
        (true, nanoseconds) => ("-", time.seconds.unsigned_abs() - 1, 1_000_000_000 - nanoseconds),
    };
    if nanoseconds == 0 {
        return format!("{sign}{seconds}");
    }
    format!("{sign}{seconds}.{nanoseconds:09}").trim_end_matches('0').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        for length in 0..2000 {
            let mut records = Records::default();
            records.add("k", vec![b'\n'; length]);
            let bytes = records.encode();
            let (number, rest) = bytes.split_at(bytes.iter().position(|&byte| byte == b' ').unwrap());
            assert_eq!(std::str::from_utf8(number).unwrap().parse::<usize>().unwrap(), bytes.len());
            assert!(rest.starts_with(b" k=") && rest.ends_with(b"\n"));
        }
    }

    #[test]
    fn records_are_sorted_and_names_of_attributes_survive() {
        let mut records = Records::default();
        records.add_xattr(b"user.z", b"a\n25 path=../../etc/shadow\n");
        records.add("path", "p");
        records.add_xattr(b"user.a=b%", b"");
        records.add_xattr(b"user.100%", b"");
        let text = String::from_utf8(records.encode()).unwrap();
        assert_eq!(
            text,
            "27 SCHILY.xattr.user.100%=\n31 SCHILY.xattr.user.a%3Db%25=\n\
             51 SCHILY.xattr.user.z=a\n25 path=../../etc/shadow\n\n9 path=p\n"
        );
    }

    #[test]
    fn a_name_of_an_attribute_comes_back_from_its_keyword() {
        for name in [&b"user.plain"[..], b"user.a=b%", b"user.%3D", b"user.%25", b"user.100%", b"user.%253D="] {
            let mut records = Records::default();
            records.add_xattr(name, b"");
            let keyword = records.0[0].0.strip_prefix(b"SCHILY.xattr.").unwrap();
            assert_eq!(xattr_name(keyword), name);
        }
    }

    #[test]
    fn times_are_decimal_and_signed() {
        let text = |seconds, nanoseconds| decimal(Time { seconds, nanoseconds });
        assert_eq!(text(0, 0), "0");
        assert_eq!(text(1, 500_000_000), "1.5");
        assert_eq!(text(1, 1), "1.000000001");
        assert_eq!(text(-1, 0), "-1");
        assert_eq!(text(-1, 500_000_000), "-0.5");
        assert_eq!(text(-2, 250_000_000), "-1.75");
        assert_eq!(text(i64::MIN, 1), "-9223372036854775807.999999999");
        assert_eq!(text(8_589_934_592, 999_999_999), "8589934592.999999999");
    }
}
