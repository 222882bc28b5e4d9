//! The line written to `checkpoint` → [`Options`]; pure.

use std::collections::BTreeMap;

use crate::image::Compression;
use crate::line::{Error, Grammar, Row, only};
use crate::oci::ImageName;

/// Every option of `checkpoint`, with what it takes and what it means: the table that the parser is held against and that
/// `docs/interface.md` shows.
pub const TABLE: &[Row] = &[
    ("message=", "TEXT", "the comment of the history entry"),
    ("author=", "TEXT", "the image's author"),
    ("description=", "TEXT", "the annotation org.opencontainers.image.description"),
    ("label.KEY=", "VALUE", "a snapfs label on the name"),
    ("annotation.KEY=", "VALUE", "an annotation of the manifest"),
    ("compression=", "zstd[:LEVEL]|gzip|none", "how the layers are stored"),
    ("exit", "", "end the container once the image is durable; it stands still until then"),
    ("fs=", "yes|no", "whether the container's files are in it"),
    ("volumes=", "skip|include", "whether the files of podman's named volumes are in it"),
    ("tcp-established", "", "keep open TCP connections, to be restored where the address is the same"),
    ("tcp-close", "", "open TCP connections are closed when it is restored"),
    ("file-locks", "", "file locks are always kept; the word is accepted"),
    ("ext-unix-sk", "", "allow datagram sockets whose other end is outside of the container"),
    ("shell-job", "", "allow a terminal that is not the container's own"),
    ("link-remap", "", "keep open files whose names are gone and whose other names are not"),
    ("containerd", "", "keep what `ctr containers restore` takes as well: the memory once more, as it is"),
    ("pre-dump=", "N", "copy memory N times before the freeze, where the kernel tracks changes of it"),
    ("create", "", "fail with EEXIST if the name exists"),
    ("async", "", "return once the job is admitted"),
];

/// More rounds than this write more than they save.
const MOST_PRE_DUMPS: u32 = 8;

/// What to do about open TCP connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tcp {
    /// There must be none.
    #[default]
    None,
    /// They are kept.
    Established,
    /// They are kept for the dump, and closed at the restore.
    Close,
}

/// What the user asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The name of the image to make.
    pub name: ImageName,
    /// `message=`
    pub message: Option<String>,
    /// `author=`
    pub author: Option<String>,
    /// `description=`
    pub description: Option<String>,
    /// `label.KEY=`
    pub labels: BTreeMap<String, String>,
    /// `annotation.KEY=`
    pub annotations: BTreeMap<String, String>,
    /// `compression=`
    pub compression: Compression,
    /// `exit`
    pub exit: bool,
    /// `fs=no`
    pub skip_files: bool,
    /// `volumes=include`
    pub volumes: bool,
    /// `tcp-established`, `tcp-close`
    pub tcp: Tcp,
    /// `ext-unix-sk`
    pub external_sockets: bool,
    /// `shell-job`
    pub shell_job: bool,
    /// `link-remap`
    pub link_remap: bool,
    /// `pre-dump=`
    pub pre_dumps: u32,
    /// `containerd`
    pub containerd: bool,
    /// `create`
    pub create: bool,
    /// `async`
    pub detach: bool,
}

/// The commands of `checkpoint`.
const GRAMMAR: Grammar = Grammar { verb: "checkpoint", table: TABLE, repeatable: &[] };

impl Options {
    /// What is taken when the line is a name alone.
    pub fn new(name: ImageName) -> Options {
        Options {
            name,
            message: None,
            author: None,
            description: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
            compression: Compression::default(),
            exit: false,
            skip_files: false,
            volumes: false,
            tcp: Tcp::None,
            external_sockets: false,
            shell_job: false,
            link_remap: false,
            pre_dumps: 0,
            containerd: false,
            create: false,
            detach: false,
        }
    }

    /// Parse `NAME [key=value | flag]…`; values are quoted as in a shell.
    pub fn parse(line: &str) -> Result<Options, Error> {
        let (name, words) = GRAMMAR.split(line)?;
        let mut options = Options::new(name.parse::<ImageName>()?);
        for word in &words {
            options.take(word)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<(), Error> {
        let Some((key, value)) = word.split_once('=') else {
            match word {
                "exit" => self.exit = true,
                // Closing wins: it is the narrower wish.
                "tcp-established" if self.tcp == Tcp::Close => {}
                "tcp-established" => self.tcp = Tcp::Established,
                "tcp-close" => self.tcp = Tcp::Close,
                "file-locks" => {}
                "ext-unix-sk" => self.external_sockets = true,
                "shell-job" => self.shell_job = true,
                "link-remap" => self.link_remap = true,
                "containerd" => self.containerd = true,
                "create" => self.create = true,
                "async" => self.detach = true,
                _ => return Err(GRAMMAR.unknown(word)),
            }
            return Ok(());
        };
        match key {
            "message" => self.message = Some(value.to_owned()),
            "author" => self.author = Some(value.to_owned()),
            "description" => self.description = Some(value.to_owned()),
            "compression" => self.compression = compression(value)?,
            "fs" => {
                only("fs", value, &["yes", "no"], &[])?;
                self.skip_files = value == "no";
            }
            "volumes" => {
                only("volumes", value, &["skip", "include"], &[])?;
                self.volumes = value == "include";
            }
            "pre-dump" => {
                let rounds = value.parse().ok().filter(|rounds| *rounds <= MOST_PRE_DUMPS);
                let expected = "a number from 0 to 8";
                let wrong = || Error::Value { option: "pre-dump", value: value.to_owned(), expected };
                self.pre_dumps = rounds.ok_or_else(wrong)?;
            }
            _ => match key.split_once('.') {
                Some(("label", key)) if !key.is_empty() => {
                    self.labels.insert(key.to_owned(), value.to_owned());
                }
                Some(("annotation", key)) if !key.is_empty() => {
                    self.annotations.insert(annotation_key(key)?, value.to_owned());
                }
                _ => return Err(GRAMMAR.unknown(format!("{key}="))),
            },
        }
        Ok(())
    }
}

fn compression(value: &str) -> Result<Compression, Error> {
    let expected = "zstd, zstd:LEVEL with a level from 1 to 19, gzip or none";
    let wrong = || Error::Value { option: "compression", value: value.to_owned(), expected };
    Compression::parse(value).filter(|parsed| *parsed != Compression::ZstdChunked).ok_or_else(wrong)
}

/// Engines believe what these say of a checkpoint, and so does snapfs: a user's word must not pass for that.
fn annotation_key(key: &str) -> Result<String, Error> {
    const OURS: [&str; 4] = [
        "io.snapfs.",
        "io.podman.annotations.checkpoint.",
        "io.kubernetes.cri-o.annotations.checkpoint.",
        "org.criu.checkpoint.",
    ];
    if OURS.iter().any(|prefix| key.starts_with(prefix)) {
        let expected = "a key that does not describe the checkpoint itself (io.snapfs., io.podman., io.kubernetes.cri-o., org.criu.)";
        return Err(Error::Value { option: "annotation.KEY", value: key.to_owned(), expected });
    }
    Ok(key.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Options, Error> {
        Options::parse(line)
    }

    #[test]
    fn a_name_alone_takes_the_defaults() {
        assert_eq!(parse("ck1").unwrap(), Options::new("ck1".parse().unwrap()));
    }

    #[test]
    fn every_option_is_taken() {
        let line = "ck message='two words' author=ops description=d label.env=prod annotation.org.example=x \
                    compression=zstd:7 exit fs=no volumes=include tcp-close tcp-established file-locks ext-unix-sk \
                    shell-job link-remap containerd pre-dump=3 create async";
        let options = parse(line).unwrap();
        assert_eq!(options.message.as_deref(), Some("two words"));
        assert_eq!(options.labels["env"], "prod");
        assert_eq!(options.compression, Compression::Zstd { level: 7 });
        assert_eq!((options.tcp, options.pre_dumps), (Tcp::Close, 3));
        assert!(options.exit && options.skip_files && options.volumes && options.external_sockets);
        assert!(options.containerd && options.shell_job && options.link_remap && options.create && options.detach);
        assert_eq!(parse("ck tcp-established").unwrap().tcp, Tcp::Established);
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(matches!(parse("ck pause=seal"), Err(Error::Unknown { .. })));
        assert!(matches!(parse("ck exit=1"), Err(Error::Unknown { .. })));
        assert!(matches!(parse("ck fs=maybe"), Err(Error::Value { .. })));
        assert!(matches!(parse("ck pre-dump=9"), Err(Error::Value { .. })));
        assert!(matches!(parse("ck pre-dump=-1"), Err(Error::Value { .. })));
        assert!(matches!(parse("ck exit exit"), Err(Error::Twice(_))));
        for key in ["io.snapfs.kind", "io.podman.annotations.checkpoint.name", "org.criu.checkpoint.container.name"] {
            assert!(matches!(parse(&format!("ck annotation.{key}=x")), Err(Error::Value { .. })), "{key}");
        }
    }

    #[test]
    fn every_row_of_the_table_is_known_to_the_parser() {
        for (name, values, _) in TABLE {
            let value = values.split(['|', '[']).next().unwrap();
            let result = parse(&format!("img {name}{value}"));
            assert!(!matches!(result, Err(Error::Unknown { .. })), "{name}: {result:?}");
        }
    }
}
