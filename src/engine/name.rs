//! Container names as file names, reversibly.

/// The longest name of a file (`NAME_MAX`).
pub const LONGEST: usize = 255;

/// `name` as it can stand in a directory: what cannot be part of a file name (`/`, control characters, a name that is `.`
/// or `..`) is percent-encoded, as are `%`, and `@`, which stands between name and engine. An empty name becomes `%`.
///
/// [`decode`] is the inverse. The names that podman, runc and crun accept stay as they are.
pub fn encode(name: &str) -> String {
    match name {
        "" => return "%".to_owned(),
        "." => return "%2E".to_owned(),
        ".." => return "%2E%2E".to_owned(),
        _ => {}
    }
    let mut encoded = String::with_capacity(name.len());
    for character in name.chars() {
        if character.is_control() || matches!(character, '/' | '%' | '@') {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        } else {
            encoded.push(character);
        }
    }
    encoded
}

/// The name that [`encode`] made `encoded` of; `None` if it made it of none.
pub fn decode(encoded: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut rest = encoded.as_bytes();
    if rest == b"%" {
        return Some(String::new());
    }
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let digits = std::str::from_utf8(rest.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &rest[2..];
        } else {
            bytes.push(byte);
        }
    }
    let name = String::from_utf8(bytes).ok()?;
    (encode(&name) == encoded).then_some(name)
}

/// Whether `id` is a plain name: what engines make and accept as an id, and safe as one component of a path.
pub fn is_plain_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'+' | b'-' | b'.');
    !id.is_empty() && id.len() <= LONGEST && id.bytes().all(allowed) && !id.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_that_need_it_are_encoded() {
        let table = [
            ("web", "web"),
            ("Web_1.2-x", "Web_1.2-x"),
            ("a/b", "a%2Fb"),
            ("a\nb", "a%0Ab"),
            ("\u{1b}[31m", "%1B[31m"),
            ("\u{85}", "%C2%85"),
            ("", "%"),
            (".", "%2E"),
            ("..", "%2E%2E"),
            ("...", "..."),
            ("%2F", "%252F"),
            ("web@podman", "web%40podman"),
            ("naïve", "naïve"),
        ];
        for (name, encoded) in table {
            assert_eq!(encode(name), encoded);
            assert_eq!(decode(encoded).as_deref(), Some(name));
        }
        for foreign in ["%2f", "%41", "%", "%zz", "a%2", "/", "%%"] {
            assert!(foreign == "%" || decode(foreign).is_none(), "{foreign}");
        }
    }

    #[test]
    fn ids_are_plain() {
        for id in ["r1", "libpod+x", "0123", "a.b"] {
            assert!(is_plain_id(id), "{id}");
        }
        for id in ["", ".", "..", "../x", "a/b", "a\nb", "a b", ".cache", "é", &"a".repeat(256)] {
            assert!(!is_plain_id(id), "{id:?}");
        }
    }

    proptest! {
        #[test]
        fn encoding_is_reversible_and_safe(name in ".*") {
            let encoded = encode(&name);
            prop_assert!(!encoded.is_empty() && encoded != "." && encoded != "..");
            prop_assert!(!encoded.contains('/') && !encoded.chars().any(char::is_control));
            prop_assert_eq!(decode(&encoded), Some(name));
        }
    }
}
