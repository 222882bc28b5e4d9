//! The line written to `restore` → [`Options`]; pure.

use std::net::IpAddr;

use crate::line::{Error, Grammar, Row};

/// Every option of `restore`, with what it takes and what it means: the table that the parser is held against and that
/// `docs/interface.md` shows.
pub const TABLE: &[Row] = &[
    ("engine=", "runc|crun|podman", "who has the container; else the engine that the image came from"),
    ("name=", "NAME", "the container's name, in the place of the first word"),
    ("no-start", "", "make the container of a commit, and do not start it"),
    ("lazy", "", "runc and crun, of a commit: its files are read through the mount when they are needed"),
    (
        "keep-id",
        "",
        "podman, of a checkpoint: the container has the id that it had, and its name must be the one that it had",
    ),
    ("ip=", "ADDRESS", "podman, of a commit: the address in podman's network"),
    ("tcp-established", "", "connections that the checkpoint kept go on"),
    ("tcp-close", "", "connections that the checkpoint kept are closed"),
    ("async", "", "return once the job is admitted"),
];

/// The engines that a container can be made at.
const ENGINES: [&str; 3] = ["runc", "crun", "podman"];
/// The longest name: what fits a host name.
const LONGEST: usize = 63;

const GRAMMAR: Grammar = Grammar { verb: "restore", table: TABLE, repeatable: &[] };

/// What becomes of connections that the dump holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Tcp {
    /// The dump holds none.
    #[default]
    None,
    /// They go on.
    Established,
    /// They are closed.
    Close,
}

/// What a restore is to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// The container's name.
    pub name: String,
    /// Who has it.
    pub engine: Option<&'static str>,
    /// It is not started.
    pub no_start: bool,
    /// Its files are not unpacked.
    pub lazy: bool,
    /// It has the id that it had.
    pub keep_id: bool,
    /// Its address.
    pub ip: Option<IpAddr>,
    /// What becomes of its connections.
    pub tcp: Tcp,
    /// The writer does not wait for the container.
    pub detach: bool,
}

impl Options {
    /// Read a line.
    ///
    /// # Errors
    /// What is wrong with it, in a sentence.
    pub fn parse(line: &str) -> Result<Options, Error> {
        let line = line.trim_start();
        let (name, words) = GRAMMAR.split(line.strip_prefix("name=").unwrap_or(line))?;
        if !is_name(&name) {
            return Err(Error::Value { option: "name", value: name, expected: NAME });
        }
        let mut options = Options {
            name,
            engine: None,
            no_start: false,
            lazy: false,
            keep_id: false,
            ip: None,
            tcp: Tcp::None,
            detach: false,
        };
        for word in words {
            options.take(&word)?;
        }
        Ok(options)
    }

    fn take(&mut self, word: &str) -> Result<(), Error> {
        match word.split_once('=') {
            Some(("engine", value)) => {
                let known = ENGINES.into_iter().find(|engine| *engine == value);
                let other =
                    || Error::Value { option: "engine", value: value.to_owned(), expected: "runc, crun or podman" };
                self.engine = Some(known.ok_or_else(other)?);
            }
            Some(("name", _)) => return Err(Error::Twice("name".to_owned())),
            Some(("ip", value)) => {
                let other =
                    |_| Error::Value { option: "ip", value: value.to_owned(), expected: "an IPv4 or IPv6 address" };
                self.ip = Some(value.parse().map_err(other)?);
            }
            None => match word {
                "no-start" => self.no_start = true,
                "lazy" => self.lazy = true,
                "keep-id" => self.keep_id = true,
                "tcp-established" | "tcp-close" if self.tcp != Tcp::None => {
                    return Err(Error::Twice("tcp-established or tcp-close".to_owned()));
                }
                "tcp-established" => self.tcp = Tcp::Established,
                "tcp-close" => self.tcp = Tcp::Close,
                "async" => self.detach = true,
                _ => return Err(GRAMMAR.unknown(word)),
            },
            Some(_) => return Err(GRAMMAR.unknown(word)),
        }
        Ok(())
    }
}

const NAME: &str = "a letter or a digit, and up to 62 more of these and of _ . -";

/// What runc, crun and podman all take, and what is safe as one component of a path.
pub(super) fn is_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    name.len() <= LONGEST && name.starts_with(|c: char| c.is_ascii_alphanumeric()) && name.chars().all(allowed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_option_of_the_table_is_taken() {
        for (name, takes, _) in TABLE {
            let value = match *name {
                "engine=" => "crun",
                "ip=" => "10.0.0.7",
                "name=" => continue,
                _ => "",
            };
            assert_eq!(takes.is_empty(), value.is_empty(), "{name}");
            assert!(Options::parse(&format!("web2 {name}{value}")).is_ok(), "{name}");
        }
    }

    #[test]
    fn the_name_comes_first_or_as_an_option_and_once() {
        let options = Options::parse("web2 engine=podman no-start ip=::1").unwrap();
        assert_eq!((options.name.as_str(), options.engine, options.no_start), ("web2", Some("podman"), true));
        assert_eq!(Options::parse("name=web2 lazy").unwrap().name, "web2");
        assert_eq!(Options::parse("web2 name=web3"), Err(Error::Twice("name".to_owned())));
        for refused in ["", "../x", "-x", ".x", "a/b", "a b=c", "a@b", &"x".repeat(64), "a\u{e9}"] {
            assert!(Options::parse(refused).is_err(), "{refused}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_with_what_can() {
        let said = |line: &str| Options::parse(line).unwrap_err().to_string();
        assert!(said("web2 engine=docker").contains("runc, crun or podman"));
        assert!(said("web2 ip=here").contains("address"));
        assert!(
            said("web2 volumes=x").contains("there is no option \"volumes=x\"; restore takes engine=runc|crun|podman")
        );
        assert!(said("web2 tcp-close tcp-established").contains("twice"));
    }
}
