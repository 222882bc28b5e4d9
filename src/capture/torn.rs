//! The files that are not as they were at any one time, as an annotation tells of them.

use crate::capture::Captured;
use crate::changeset::escape;

impl Captured {
    /// The paths of [`torn`](Self::torn) files, a line each, as far as they are few.
    pub fn torn_text(&self) -> String {
        lines(&self.torn)
    }
}

/// Of the paths' text no more than this many bytes: an annotation is read whole by everybody who reads the manifest.
const MOST_NAMED: usize = 4096;

/// `paths`, a line each, as far as they are few.
fn lines(paths: &[Vec<u8>]) -> String {
    let mut text = String::new();
    for (at, path) in paths.iter().enumerate() {
        let line = format!("/{}\n", escape(path));
        if text.len() + line.len() > MOST_NAMED {
            return text + &format!("and {} more", paths.len() - at);
        }
        text.push_str(&line);
    }
    text.truncate(text.trim_end().len());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn torn_files_are_named_as_far_as_they_are_few() {
        assert_eq!(lines(&[b"a b".to_vec(), b"x\ny".to_vec()]), "/a b\n/x\\x0ay");
        let many: Vec<Vec<u8>> = (0..2000).map(|number| format!("f{number:04}").into_bytes()).collect();
        let text = lines(&many);
        assert!(text.len() <= MOST_NAMED + 20 && text.starts_with("/f0000\n/f0001\n"), "{text}");
        let (named, rest) = text.rsplit_once('\n').unwrap();
        assert_eq!(rest, format!("and {} more", 2000 - named.lines().count()));
    }
}
