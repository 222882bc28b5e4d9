//! [`Filter`]: containerd's language for choosing images and containers, as words; pure.
//!
//! A filter is one or more alternatives separated by `;`, each of them conditions separated by `,` that must all hold:
//!
//! ```text
//! labels.env==prod                 equal
//! kind!=checkpoint                 not equal
//! name~=^registry\.example/        matches a regular expression somewhere
//! labels."a.b/c"                   the field is there
//! labels.env==prod,kind==commit    both
//! name==web;name==db               either
//! ```
//!
//! A field that is not there is not equal to anything, and empty to `!=` and `~=`.
//!
//! A value ends at a comma, a semicolon or white space, unless it is in double quotes, with backslashes as in Go and
//! C. An expression may also stand between slashes or vertical bars, where only the delimiter needs a backslash.
//! containerd takes several filters for "or"; a path is one text, so here a semicolon stands between them.

use std::borrow::Cow;
use std::iter::Peekable;
use std::str::CharIndices;

use regex::{Regex, RegexBuilder};

/// The largest compiled expression, in bytes: room for any that a person writes.
const EXPRESSION_LIMIT: usize = 1 << 20;

/// What filters are applied to.
pub trait Subject {
    /// The value of a field, such as `["labels", "env"]`; `None` if it has none.
    fn field(&self, path: &[String]) -> Option<Cow<'_, str>>;
}

/// A parsed filter.
#[derive(Debug, Clone)]
pub struct Filter {
    any: Vec<Vec<Condition>>,
}

#[derive(Debug, Clone)]
struct Condition {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug, Clone)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

/// Why a text is not a filter.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {reason}")]
pub struct Invalid {
    /// Where.
    pub at: usize,
    /// What was expected there, or what is wrong.
    pub reason: String,
}

impl Filter {
    /// Read a filter.
    pub fn parse(text: &str) -> Result<Filter, Invalid> {
        let mut scanner = Scanner { text, rest: text.char_indices().peekable() };
        let mut any = vec![vec![scanner.condition()?]];
        loop {
            let at = scanner.at();
            match (scanner.rest.next(), any.last_mut()) {
                (None, _) => return Ok(Filter { any }),
                (Some((_, ',')), Some(all)) => all.push(scanner.condition()?),
                (Some((_, ';')), _) => any.push(vec![scanner.condition()?]),
                _ => return Err(invalid(at, "expected a comma, a semicolon or the end after a condition")),
            }
        }
    }

    /// Whether the filter chooses `subject`.
    pub fn matches(&self, subject: &impl Subject) -> bool {
        self.any.iter().any(|all| all.iter().all(|condition| condition.holds(subject)))
    }

    /// The fields that it asks for.
    pub fn paths(&self) -> impl Iterator<Item = &[String]> {
        self.any.iter().flatten().map(|condition| condition.path.as_slice())
    }
}

impl Condition {
    fn holds(&self, subject: &impl Subject) -> bool {
        let value = subject.field(&self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == *wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != *unwanted,
            Test::Matches(expression) => expression.is_match(&value.unwrap_or_default()),
        }
    }
}

fn invalid(at: usize, reason: impl Into<String>) -> Invalid {
    Invalid { at, reason: reason.into() }
}

struct Scanner<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
}

impl Scanner<'_> {
    fn at(&mut self) -> usize {
        self.rest.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    fn peek(&mut self) -> Option<char> {
        self.rest.peek().map(|(_, c)| *c)
    }

    fn condition(&mut self) -> Result<Condition, Invalid> {
        let mut path = vec![self.field()?];
        while self.rest.next_if(|(_, c)| *c == '.').is_some() {
            path.push(self.field()?);
        }
        let at = self.at();
        let test = match &self.text[at..] {
            rest if rest.starts_with("==") => Test::Equal(self.value(2, "")?),
            rest if rest.starts_with("!=") => Test::NotEqual(self.value(2, "")?),
            rest if rest.starts_with("~=") => {
                let text = self.value(2, "/|")?;
                let expression = RegexBuilder::new(&text).size_limit(EXPRESSION_LIMIT).build();
                Test::Matches(expression.map_err(|error| invalid(at + 2, last_line(&error.to_string())))?)
            }
            rest if rest.is_empty() || rest.starts_with([',', ';']) => Test::Present,
            _ => return Err(invalid(at, "expected ==, != or ~= after a field, or nothing")),
        };
        Ok(Condition { path, test })
    }

    fn field(&mut self) -> Result<String, Invalid> {
        let at = self.at();
        match self.peek() {
            Some('"') => self.quoted(),
            Some(c) if c.is_ascii_alphabetic() || c == '_' => {
                let mut field = String::new();
                while let Some((_, c)) = self.rest.next_if(|(_, c)| c.is_ascii_alphanumeric() || *c == '_') {
                    field.push(c);
                }
                Ok(field)
            }
            _ => Err(invalid(at, "expected a field: letters, digits and _, or anything in double quotes")),
        }
    }

    /// The value after an operator of `skip` bytes, which may stand in quotes or between two of `others`.
    fn value(&mut self, skip: usize, others: &str) -> Result<String, Invalid> {
        for _ in 0..skip {
            self.rest.next();
        }
        let at = self.at();
        match self.peek() {
            Some('"') => self.quoted(),
            Some(delimiter) if others.contains(delimiter) => self.delimited(delimiter),
            _ => {
                let mut value = String::new();
                while let Some((_, c)) = self.rest.next_if(|(_, c)| !c.is_whitespace() && !matches!(c, ',' | ';')) {
                    value.push(c);
                }
                if value.is_empty() { Err(invalid(at, "expected a value; \"\" is the empty one")) } else { Ok(value) }
            }
        }
    }

    fn quoted(&mut self) -> Result<String, Invalid> {
        let begin = self.at();
        self.rest.next();
        let mut text = String::new();
        while let Some((at, c)) = self.rest.next() {
            match c {
                '"' => return Ok(text),
                '\\' => text.push(self.escaped(at)?),
                c => text.push(c),
            }
        }
        Err(invalid(begin, "the quotation has no end"))
    }

    fn escaped(&mut self, at: usize) -> Result<char, Invalid> {
        let unknown = || invalid(at, r#"after \ stand one of \ " n r t, x and two, or u and four hexadecimal digits"#);
        let (_, c) = self.rest.next().ok_or_else(unknown)?;
        let digits = match c {
            '\\' | '"' => return Ok(c),
            'n' => return Ok('\n'),
            'r' => return Ok('\r'),
            't' => return Ok('\t'),
            'x' => 2,
            'u' => 4,
            _ => return Err(unknown()),
        };
        let mut code = 0;
        for _ in 0..digits {
            let digit = self.rest.next().and_then(|(_, c)| c.to_digit(16)).ok_or_else(unknown)?;
            code = code * 16 + digit;
        }
        char::from_u32(code).ok_or_else(unknown)
    }

    /// Between two delimiters, of which one that is meant has a backslash; other backslashes are the expression's.
    fn delimited(&mut self, delimiter: char) -> Result<String, Invalid> {
        let begin = self.at();
        self.rest.next();
        let mut text = String::new();
        while let Some((_, c)) = self.rest.next() {
            match c {
                c if c == delimiter => return Ok(text),
                '\\' => match self.rest.next() {
                    Some((_, c)) if c == delimiter => text.push(c),
                    Some((_, c)) => text.extend(['\\', c]),
                    None => break,
                },
                c => text.push(c),
            }
        }
        Err(invalid(begin, format!("the expression has no second {delimiter}")))
    }
}

/// Of a message with a picture of the expression in it, what is wrong.
fn last_line(message: &str) -> String {
    let line = message.lines().last().unwrap_or_default();
    format!("the regular expression: {}", line.trim_start_matches("error: "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    struct Fields(BTreeMap<String, &'static str>);

    impl Subject for Fields {
        fn field(&self, path: &[String]) -> Option<Cow<'_, str>> {
            self.0.get(&path.join("|")).map(|value| Cow::Borrowed(*value))
        }
    }

    fn subject() -> Fields {
        let pairs = [
            ("name", "registry.example/team/web:1"),
            ("kind", "commit"),
            ("labels|env", "prod"),
            ("labels|a.b/c", "x, y; \"z\""),
            ("labels|empty", ""),
        ];
        Fields(pairs.map(|(field, value)| (field.to_owned(), value)).into())
    }

    fn matches(text: &str) -> bool {
        Filter::parse(text).unwrap_or_else(|error| panic!("{text}: {error}")).matches(&subject())
    }

    #[test]
    fn conditions_hold_as_containerds_do() {
        for yes in [
            "kind==commit",
            "kind!=checkpoint",
            "labels.none!=x",
            "kind",
            "labels.empty",
            "labels.none~=^$",
            r#"labels.empty=="""#,
            "labels.env==prod,kind==commit",
            "labels.env==test;kind==commit",
            "kind==x,name==y;labels.env==prod,kind",
            "name~=^registry\\.example/",
            "name~=/team\\/w/",
            "name~=|team/w.b|",
            r#"name~="web:[0-9]$""#,
            "labels.env~=ro",
            r#"labels."a.b/c""#,
            r#"labels."a.b/c"=="x, y; \"z\"""#,
            r#""kind"=="\x63om\u006dit""#,
            "name==registry.example/team/web:1",
        ] {
            assert!(matches(yes), "{yes}");
        }
        for no in [
            "kind==Commit",
            "kind!=commit",
            "labels.none",
            "labels.none==x",
            "labels.none~=.",
            "labels.none!=\"\"",
            "labels.env==prod,kind==image",
            "labels.env==test;kind==image",
            "labels",
            "name~=^team",
        ] {
            assert!(!matches(no), "{no}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused_with_its_place() {
        for (text, at) in [
            ("", 0),
            ("==x", 0),
            ("kind=commit", 4),
            ("kind==", 6),
            ("kind==a b", 7),
            ("kind==a,", 8),
            ("kind;;name", 5),
            ("labels.", 7),
            ("labels.\"a", 7),
            (r#"kind=="\q""#, 7),
            (r#"kind=="\ud800""#, 7),
            ("name~=(", 6),
            ("name~=/x", 6),
            ("kind~=\"a\"b", 9),
            ("é==1", 0),
            ("kind commit", 4),
        ] {
            let error = Filter::parse(text).expect_err(text);
            assert_eq!(error.at, at, "{text}: {error}");
        }
        let huge = Filter::parse("name~=(a{1000}){1000}").unwrap_err();
        assert!(huge.reason.contains("size limit"), "{huge}");
    }

    #[test]
    fn the_fields_are_told() {
        let filter = Filter::parse("name==a,labels.\"x.y\";kind").unwrap();
        let paths: Vec<String> = filter.paths().map(|path| path.join("|")).collect();
        assert_eq!(paths, ["name", "labels|x.y", "kind"]);
    }

    proptest! {
        #[test]
        fn nothing_breaks_the_parser(text in "[a-z.,;=!~\"\\\\/|é x0u]{0,40}") {
            if let Ok(filter) = Filter::parse(&text) {
                filter.matches(&subject());
            }
        }

        /// What is quoted comes back as it was.
        #[test]
        fn a_quoted_value_is_taken_as_it_is(value in "[^\\x00]{0,20}") {
            let quoted = value.replace('\\', "\\\\").replace('"', "\\\"");
            let filter = Filter::parse(&format!("name==\"{quoted}\",kind")).unwrap();
            prop_assert!(matches!(&filter.any[0][0].test, Test::Equal(found) if *found == value));
        }
    }
}
