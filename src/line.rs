//! A line written to a control file → its words; pure. What all commands have in common is decided here: quoting, options
//! that are given twice, and the sentences about what cannot be.

use crate::oci::InvalidName;

/// An option: its name with `=` if it takes a value, what it takes, what it means.
pub type Row = (&'static str, &'static str, &'static str);

/// What is wrong with a line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A quote without its partner.
    #[error("a quote is not closed; quote values as in a shell: message='two words'")]
    Quote,
    /// Options, but no name in front.
    #[error("the line begins with the option {0:?}; write the name first: NAME [OPTION…]")]
    NoName(String),
    /// The name is none.
    #[error(transparent)]
    Name(#[from] InvalidName),
    /// No such option.
    #[error("there is no option {option:?}; {verb} takes {takes}")]
    Unknown {
        /// The command.
        verb: &'static str,
        /// What was given.
        option: String,
        /// What may be given.
        takes: String,
    },
    /// The option's value is not one of its values.
    #[error("{option}= cannot be {value:?}; it is {expected}")]
    Value {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What may be given.
        expected: &'static str,
    },
    /// The option's value has a grammar of its own, by which it is wrong.
    #[error("{option}=: {reason}")]
    Text {
        /// The option's name.
        option: &'static str,
        /// What is wrong, and what would be right.
        reason: String,
    },
    /// The same option twice.
    #[error("the option {0:?} is given twice")]
    Twice(String),
    /// A value that the contract has and this version does not.
    #[error("{option}={value} is not supported by this version of snapfs; leave it out or use {option}={instead}")]
    Unsupported {
        /// The option's name.
        option: &'static str,
        /// What was given.
        value: String,
        /// What can be had.
        instead: &'static str,
    },
}

/// A command's options: what it is called, and the table of what it takes.
#[derive(Debug, Clone, Copy)]
pub struct Grammar {
    /// The control file.
    pub verb: &'static str,
    /// Every option.
    pub table: &'static [Row],
    /// The options that may be given several times.
    pub repeatable: &'static [&'static str],
}

impl Grammar {
    /// `NAME [key=value | flag]…` as the name and the options; values are quoted as in a shell.
    pub fn split(&self, line: &str) -> Result<(String, Vec<String>), Error> {
        let mut words = shlex::split(line).ok_or(Error::Quote)?.into_iter();
        let name = words.next().unwrap_or_default();
        if name.contains('=') {
            return Err(Error::NoName(name));
        }
        let options: Vec<String> = words.collect();
        let mut seen: Vec<&str> = Vec::with_capacity(options.len());
        for word in &options {
            let key = word.split_once('=').map_or(word.as_str(), |(key, _)| key);
            if seen.contains(&key) && !self.repeatable.contains(&key) {
                return Err(Error::Twice(key.to_owned()));
            }
            seen.push(key);
        }
        Ok((name, options))
    }

    /// There is no such option.
    pub fn unknown(&self, option: impl Into<String>) -> Error {
        let takes = self.table.iter().map(|(name, values, _)| format!("{name}{values}")).collect::<Vec<_>>().join(", ");
        Error::Unknown { verb: self.verb, option: option.into(), takes }
    }
}

/// Takes one of the `supported` values of `option`, the first of which is to be had instead of a `contracted` one.
pub fn only(option: &'static str, value: &str, supported: &[&'static str], contracted: &[&str]) -> Result<(), Error> {
    if supported.contains(&value) {
        return Ok(());
    }
    let instead = supported[0];
    if contracted.contains(&value) {
        return Err(Error::Unsupported { option, value: value.to_owned(), instead });
    }
    Err(Error::Value { option, value: value.to_owned(), expected: instead })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRAMMAR: Grammar =
        Grammar { verb: "do", table: &[("a=", "X", "one"), ("b", "", "two")], repeatable: &["change"] };

    #[test]
    fn a_line_is_a_name_and_its_options() {
        let (name, options) = GRAMMAR.split("img a='two words' b change=x change=y").unwrap();
        assert_eq!((name.as_str(), options.len()), ("img", 4));
        assert_eq!(options[0], "a=two words");
        assert_eq!(GRAMMAR.split("a=1"), Err(Error::NoName("a=1".to_owned())));
        assert_eq!(GRAMMAR.split("img b b"), Err(Error::Twice("b".to_owned())));
        assert_eq!(GRAMMAR.split("img a='x"), Err(Error::Quote));
        assert_eq!(GRAMMAR.unknown("c").to_string(), "there is no option \"c\"; do takes a=X, b");
    }
}
