//! Tars of any entries, however wrong.

/// Appends entries to a tar.
#[derive(Debug, Default)]
pub(crate) struct Tar(Vec<u8>);

impl Tar {
    /// An entry with the type `flag`.
    pub(crate) fn entry(mut self, flag: u8, path: &str, target: &str, content: &[u8]) -> Tar {
        let mut block = [0; 512];
        for (long, kind) in [(path, b'L'), (target, b'K')] {
            if long.len() > 100 {
                self = self.entry(kind, "././@LongLink", "", long.as_bytes());
            }
        }
        let cut = |text: &str| text.as_bytes()[..text.len().min(100)].to_vec();
        block[..cut(path).len()].copy_from_slice(&cut(path));
        block[100..107].copy_from_slice(if flag == b'5' { b"0000755" } else { b"0000644" });
        block[108..115].copy_from_slice(b"0000000");
        block[116..123].copy_from_slice(b"0000000");
        block[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        block[136..147].copy_from_slice(b"00000001750");
        block[156] = flag;
        block[157..157 + cut(target).len()].copy_from_slice(&cut(target));
        block[257..265].copy_from_slice(b"ustar  \0");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        self.0.extend_from_slice(&block);
        self.0.extend_from_slice(content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, path: &str, content: impl AsRef<[u8]>) -> Tar {
        self.entry(b'0', path, "", content.as_ref())
    }

    /// An access control list for the next entry.
    pub(crate) fn acl(self, acl: &[u8]) -> Tar {
        let key = b" SCHILY.xattr.system.posix_acl_access=";
        let length = (1..).map(|digits| (digits, digits + key.len() + acl.len() + 1));
        let (_, length) = length.into_iter().find(|(digits, length)| length.to_string().len() == *digits).unwrap();
        let record = [length.to_string().as_bytes(), key, acl, b"\n"].concat();
        self.entry(b'x', "PaxHeaders/x", "", &record)
    }

    /// A file that its owner alone may read.
    pub(crate) fn private(self, path: &str, content: &str) -> Tar {
        let at = self.0.len();
        let mut tar = self.file(path, content);
        let header = &mut tar.0[at..at + 512];
        header[100..107].copy_from_slice(b"0000640");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar
    }

    pub(crate) fn dir(self, path: &str) -> Tar {
        self.entry(b'5', path, "", b"")
    }

    pub(crate) fn symlink(self, path: &str, target: &str) -> Tar {
        self.entry(b'2', path, target, b"")
    }

    pub(crate) fn link(self, path: &str, target: &str) -> Tar {
        self.entry(b'1', path, target, b"")
    }

    /// The bytes, with the blocks of zeros at the end.
    pub(crate) fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}
