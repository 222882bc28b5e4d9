//! The line written to `commit` → [`Options`]; pure.

use std::collections::BTreeMap;

use crate::capture::{Base, MOST_LAYERS, Pause, Squash, Volumes};
use crate::image::{Change, Compression};
use crate::line::{Error, Grammar, Row};
use crate::oci::ImageName;

/// Every option of `commit`, with what it takes and what it means: the table that the parser is held against and that
/// `docs/interface.md` shows.
pub const TABLE: &[Row] = &[
    ("message=", "TEXT", "the comment of the new history entry"),
    ("author=", "TEXT", "the image's author"),
    ("description=", "TEXT", "the annotation org.opencontainers.image.description"),
    ("label.KEY=", "VALUE", "a snapfs label on the name"),
    ("annotation.KEY=", "VALUE", "an annotation of the manifest"),
    ("change=", "'VERB ARGUMENTS'", "a line of a Dockerfile that changes the configuration; may be repeated"),
    (
        "pause=",
        "seal|full|none|stop",
        "freeze the container for a moment, while its files are read, not at all, or stop it first",
    ),
    ("compression=", "zstd[:LEVEL]|zstd:chunked|gzip|none", "how the layer is stored"),
    (
        "volumes=",
        "skip|declare|include",
        "bind mounts and volumes: leave them out, name them, or make each a layer of its own",
    ),
    ("base=", "auto|image|IMAGE", "what the layer is the difference to: the last snapshot, the container's image"),
    ("squash=", "none|snapshots|all", "make one layer of the container's snapshots and this one, or of all layers"),
    ("create", "", "fail with EEXIST if the name exists"),
    ("async", "", "return once the job is admitted"),
];

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
    /// `change=`, in their order
    pub changes: Vec<Change>,
    /// `pause=`
    pub pause: Pause,
    /// `volumes=`
    pub volumes: Volumes,
    /// `compression=`
    pub compression: Compression,
    /// `base=`
    pub base: Base,
    /// `squash=`
    pub squash: Squash,
    /// [`MOST_LAYERS`]; no word of a line changes it
    pub most_layers: usize,
    /// `create`
    pub create: bool,
    /// `async`
    pub detach: bool,
}

/// The commands of `commit`.
const GRAMMAR: Grammar = Grammar { verb: "commit", table: TABLE, repeatable: &["change"] };

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
            changes: Vec::new(),
            pause: Pause::default(),
            volumes: Volumes::default(),
            compression: Compression::default(),
            base: Base::default(),
            squash: Squash::default(),
            most_layers: MOST_LAYERS,
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
        if let (Squash::Snapshots, Base::Named(name)) = (options.squash, &options.base) {
            let expected = "image or left out with squash=snapshots, which lays one layer on the container's image";
            return Err(Error::Value { option: "base", value: name.to_string(), expected });
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<(), Error> {
        let Some((key, value)) = word.split_once('=') else {
            match word {
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
            "change" => self.changes.push(change(value)?),
            "pause" => self.pause = pause(value)?,
            "compression" => self.compression = compression(value)?,
            "volumes" => self.volumes = volumes(value)?,
            "base" => self.base = base(value)?,
            "squash" => self.squash = squash(value)?,
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

fn base(value: &str) -> Result<Base, Error> {
    match value {
        "auto" => Ok(Base::Auto),
        "image" => Ok(Base::Image),
        _ => Ok(Base::Named(value.parse()?)),
    }
}

fn squash(value: &str) -> Result<Squash, Error> {
    match value {
        "none" => Ok(Squash::None),
        "snapshots" => Ok(Squash::Snapshots),
        "all" => Ok(Squash::All),
        _ => Err(Error::Value { option: "squash", value: value.to_owned(), expected: "none, snapshots or all" }),
    }
}

fn change(value: &str) -> Result<Change, Error> {
    Change::parse(value).map_err(|error| Error::Text { option: "change", reason: error.to_string() })
}

fn pause(value: &str) -> Result<Pause, Error> {
    match value {
        "seal" => Ok(Pause::Seal),
        "full" => Ok(Pause::Full),
        "none" => Ok(Pause::None),
        "stop" => Ok(Pause::Stop),
        _ => Err(Error::Value { option: "pause", value: value.to_owned(), expected: "seal, full, none or stop" }),
    }
}

fn volumes(value: &str) -> Result<Volumes, Error> {
    match value {
        "skip" => Ok(Volumes::Skip),
        "declare" => Ok(Volumes::Declare),
        "include" => Ok(Volumes::Include),
        _ => Err(Error::Value { option: "volumes", value: value.to_owned(), expected: "skip, declare or include" }),
    }
}

fn compression(value: &str) -> Result<Compression, Error> {
    let expected = "zstd, zstd:LEVEL with a level from 1 to 19, zstd:chunked, gzip or none";
    let wrong = || Error::Value { option: "compression", value: value.to_owned(), expected };
    Compression::parse(value).ok_or_else(wrong)
}

/// Our own annotations say what snapfs did; a user's word must not pass for that.
fn annotation_key(key: &str) -> Result<String, Error> {
    if key.starts_with("io.snapfs.") {
        let expected = "a key outside io.snapfs., which is snapfs's own";
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
        assert_eq!(parse("img").unwrap(), Options::new("img".parse().unwrap()));
        assert_eq!(parse("  img  ").unwrap().name.as_str(), "img");
    }

    #[test]
    fn every_option_is_taken() {
        let line = r#"registry.example:5000/t/web:1 change='CMD ["a b"]' change="ENV A='1 2'" message='two words' author=ops description="d d" label.env=prod
                      annotation.org.example=x pause=none compression=zstd:7 volumes=include base=image squash=none create async"#;
        let options = parse(&line.replace('\n', " ")).unwrap();
        assert_eq!(options.name.tag(), Some("1"));
        assert_eq!(options.message.as_deref(), Some("two words"));
        assert_eq!(options.description.as_deref(), Some("d d"));
        assert_eq!(options.labels["env"], "prod");
        assert_eq!(options.annotations["org.example"], "x");
        assert_eq!(options.changes, ["CMD [\"a b\"]", "ENV A='1 2'"].map(|line| Change::parse(line).unwrap()));
        assert_eq!((options.pause, options.volumes), (Pause::None, Volumes::Include));
        assert_eq!(options.compression, Compression::Zstd { level: 7 });
        assert_eq!(parse("img compression=zstd:chunked").unwrap().compression, Compression::ZstdChunked);
        assert_eq!(options.base, Base::Image);
        assert!(options.create && options.detach);
    }

    #[test]
    fn a_base_is_a_word_or_an_image_and_squashing_is_a_word() {
        let base = |line: &str| parse(&format!("img {line}")).map(|options| options.base);
        assert_eq!(base("base=auto"), Ok(Base::Auto));
        assert_eq!(base("base=team/web:1"), Ok(Base::Named("team/web:1".parse().unwrap())));
        let squash = |line: &str| parse(&format!("img {line}")).map(|options| (options.squash, options.base));
        assert_eq!(squash("squash=none"), Ok((Squash::None, Base::Auto)));
        assert_eq!(squash("squash=snapshots base=image"), Ok((Squash::Snapshots, Base::Image)));
        assert_eq!(squash("squash=all"), Ok((Squash::All, Base::Auto)));
        assert!(matches!(base("base=A"), Err(Error::Name(_))));
        assert!(matches!(base("squash=snapshots base=web"), Err(Error::Value { option: "base", .. })));
    }

    #[test]
    fn refuses_what_it_does_not_know() {
        assert!(matches!(parse("img frobnicate"), Err(Error::Unknown { .. })));
        assert!(matches!(parse("img frobnicate=1"), Err(Error::Unknown { .. })));
        assert!(matches!(parse("img label.=1"), Err(Error::Unknown { .. })));
        assert!(matches!(parse("img create=yes"), Err(Error::Unknown { .. })));
        assert!(matches!(parse("message=x"), Err(Error::NoName(_))));
        assert!(matches!(parse("img message='x"), Err(Error::Quote)));
        assert!(matches!(parse("img create create"), Err(Error::Twice(_))));
        assert!(matches!(parse("img pause=none pause=full"), Err(Error::Twice(_))));
        assert!(matches!(parse("img change='FOO x'"), Err(Error::Text { .. })));
        assert!(matches!(parse("Img"), Err(Error::Name(_))));
        assert!(matches!(parse("../../etc"), Err(Error::Name(_))));
        assert!(matches!(parse("img compression=zstd:99"), Err(Error::Value { .. })));
        assert!(matches!(parse("img squash=most"), Err(Error::Value { .. })));
        assert!(matches!(parse("img annotation.io.snapfs.kind=checkpoint"), Err(Error::Value { .. })));
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
