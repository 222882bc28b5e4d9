//! The line that may stand before an archive: `as=NAME [replace]`.
//!
//! `{ echo as=web:2; cat web.tar; } > /snap/import`: whoever writes an archive may say what to call its image. No tar of
//! an image and no compressed stream begins like such a line.

use std::io::{self, Read};

use crate::archive::Error;
use crate::oci::ImageName;

/// The longest line.
const LONGEST: usize = 4096;
/// The words that it can begin with.
const BEGINNINGS: [&[u8]; 2] = [b"as=", b"replace"];

/// What was asked for besides the archive itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Request {
    /// The name, instead of those that the archive brings.
    pub(super) name: Option<ImageName>,
    /// Names may be taken from other images.
    pub(super) replace: bool,
}

impl Request {
    /// Take the line from the beginning of the stream, if there is one.
    pub(super) fn read<R: Read>(stream: &mut Peek<R>) -> Result<Request, Error> {
        let longest = BEGINNINGS.map(<[u8]>::len).into_iter().max().unwrap_or_default();
        let begins = stream.peek(longest).map_err(Error::of_stream)?;
        if begins.is_empty() {
            return Err(Error::Truncated);
        }
        if !BEGINNINGS.iter().any(|word| begins.starts_with(word)) {
            return Ok(Request::default());
        }
        let mut wanted = 1;
        loop {
            let bytes = stream.peek(wanted).map_err(Error::of_stream)?;
            if let Some(end) = bytes.iter().position(|&byte| byte == b'\n') {
                let line = std::str::from_utf8(&bytes[..end]).map_err(|_| Error::Request("it is not text".to_owned()));
                let request = Request::parse(line?)?;
                stream.skip(end + 1);
                return Ok(request);
            }
            if bytes.len() > LONGEST {
                return Err(Error::Request(format!("it has more than {LONGEST} bytes")));
            }
            if bytes.len() < wanted {
                return Err(Error::Truncated);
            }
            wanted = bytes.len() + 1;
        }
    }

    fn parse(line: &str) -> Result<Request, Error> {
        let mut request = Request::default();
        for word in line.split_ascii_whitespace() {
            match word.strip_prefix("as=") {
                Some(name) if request.name.is_none() => request.name = Some(name.parse()?),
                None if word == "replace" => request.replace = true,
                _ => return Err(Error::Request(format!("{:?}", word.chars().take(100).collect::<String>()))),
            }
        }
        Ok(request)
    }
}

/// Whether these bytes are nothing but such a line, or the beginning of one: no byte of an archive has come yet.
pub fn is_request(bytes: &[u8]) -> bool {
    let line = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let begins = BEGINNINGS.iter().any(|word| line.starts_with(word) || word.starts_with(line));
    begins && bytes.len() <= LONGEST && !line.contains(&b'\n')
}

/// A stream whose next bytes can be looked at.
#[derive(Debug)]
pub(super) struct Peek<R> {
    head: Vec<u8>,
    reader: R,
}

impl<R: Read> Peek<R> {
    pub(super) fn new(reader: R) -> Peek<R> {
        Peek { head: Vec::new(), reader }
    }

    /// At least `count` bytes, which are still to be read; less only where the stream ends.
    pub(super) fn peek(&mut self, count: usize) -> io::Result<&[u8]> {
        while self.head.len() < count {
            let mut chunk = [0; 512];
            match self.reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(more) => self.head.extend(&chunk[..more]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(&self.head)
    }

    fn skip(&mut self, count: usize) {
        self.head.drain(..count);
    }
}

impl<R: Read> Read for Peek<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.head.is_empty() {
            return self.reader.read(buffer);
        }
        let count = self.head.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.head[..count]);
        self.skip(count);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte at a time.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let count = self.0.len().min(1).min(buffer.len());
            self.0.read(&mut buffer[..count])
        }
    }

    fn read(bytes: &[u8]) -> Result<(Request, Vec<u8>), Error> {
        let mut stream = Peek::new(Slow(bytes));
        let request = Request::read(&mut stream)?;
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).unwrap();
        Ok((request, rest))
    }

    #[test]
    fn the_line_is_taken_and_what_follows_is_left() {
        let (request, rest) = read(b"as=web:2 replace\nas=archive").unwrap();
        assert_eq!(request, Request { name: Some("web:2".parse().unwrap()), replace: true });
        assert_eq!(rest, b"as=archive");
        let (request, rest) = read(b"replace\n\0").unwrap();
        assert_eq!((request, rest), (Request { name: None, replace: true }, vec![0]));
        for no_line in [&b"assemble"[..], b"\x1f\x8b", b"abcdef0123.json\0\0", b"re"] {
            assert_eq!(read(no_line).unwrap(), (Request::default(), no_line.to_vec()));
        }
        for wrong in [&b"as=Bad\n"[..], b"as=a as=b\n", b"as=a force\n", b"as=\n", b"replaced\n", b"as=\xff\n"] {
            assert!(read(wrong).is_err(), "{wrong:?}");
        }
        assert!(matches!(read(b"as=web").unwrap_err(), Error::Truncated));
        assert!(matches!(read(b"").unwrap_err(), Error::Truncated));
        assert!(matches!(read(&[b"as=", &[b'a'; 5000][..]].concat()).unwrap_err(), Error::Request(_)));
    }

    #[test]
    fn a_line_alone_is_known() {
        for line in [&b""[..], b"as=web", b"as=web replace\n", b"a", b"replace\n"] {
            assert!(is_request(line), "{line:?}");
        }
        for more in [&b"as=web\nx"[..], b"blobs/", b"as\0"] {
            assert!(!is_request(more), "{more:?}");
        }
    }
}
