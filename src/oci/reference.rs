//! [`ImageName`]: a reference in the distribution specification's grammar that is safe as a relative path.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The longest name: a repository has 255 characters at most (distribution-spec, "Pulling manifests"), a tag 128.
const LONGEST: usize = 255 + 1 + 128;
/// A path component cannot be longer (`NAME_MAX`).
const LONGEST_COMPONENT: usize = 255;

/// The name of an image: `[domain[:port]/]component[/component…][:tag]`, kept as given.
///
/// No component is empty, `.` or `..`, none begins with a dot, and none holds a control byte, so the text can be used
/// as a path below a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ImageName(String);

/// Why a text is not an [`ImageName`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not an image name: {reason}")]
pub struct InvalidName {
    /// What was given, cut to a length that can be shown.
    pub name: String,
    /// What is wrong with it and what would be right.
    pub reason: &'static str,
}

impl ImageName {
    /// The whole name, as given.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The tag, if the name has one.
    pub fn tag(&self) -> Option<&str> {
        split_tag(&self.0).1
    }

    /// The components between slashes; the last one carries the tag.
    pub fn components(&self) -> impl Iterator<Item = &str> {
        self.0.split('/')
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<ImageName> for String {
    fn from(name: ImageName) -> String {
        name.0
    }
}

impl TryFrom<String> for ImageName {
    type Error = InvalidName;

    fn try_from(text: String) -> Result<ImageName, InvalidName> {
        text.parse()
    }
}

impl FromStr for ImageName {
    type Err = InvalidName;

    fn from_str(text: &str) -> Result<ImageName, InvalidName> {
        match check(text) {
            Ok(()) => Ok(ImageName(text.to_owned())),
            Err(reason) => Err(InvalidName { name: text.chars().take(100).collect(), reason }),
        }
    }
}

fn check(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.len() > LONGEST {
        return Err("it is longer than 384 characters");
    }
    if text.contains('@') {
        return Err("a name cannot promise a digest; leave out \"@\" and what follows");
    }
    let (repository, tag) = split_tag(text);
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    if repository.len() > 255 {
        return Err("the part before the tag is longer than 255 characters");
    }
    if text.split('/').any(|component| component.len() > LONGEST_COMPONENT) {
        return Err("a component between slashes is longer than 255 characters");
    }
    let mut components: Vec<&str> = repository.split('/').collect();
    if components.len() > 1 && is_domain_like(components[0]) {
        check_domain(components.remove(0))?;
    }
    components.into_iter().try_for_each(check_component)
}

/// The tag stands after the last colon, if no slash follows it (else the colon belongs to a port).
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        _ => (text, None),
    }
}

/// As every engine decides it: the first component is a registry's host if it has a dot, a port, a capital, or is `localhost`.
fn is_domain_like(component: &str) -> bool {
    component == "localhost" || component.chars().any(|c| matches!(c, '.' | ':') || c.is_ascii_uppercase())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let starts_well = tag.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_');
    let rest_is_well = tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if tag.len() <= 128 && starts_well && rest_is_well {
        return Ok(());
    }
    Err("a tag has 1 to 128 letters, digits, \"_\", \".\" and \"-\", and begins with neither \".\" nor \"-\"")
}

fn check_domain(domain: &str) -> Result<(), &'static str> {
    let (host, port) = domain.split_once(':').map_or((domain, None), |(host, port)| (host, Some(port)));
    let label_is_well = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    let port_is_well =
        port.is_none_or(|port| !port.is_empty() && port.len() <= 5 && port.chars().all(|c| c.is_ascii_digit()));
    if host.split('.').all(label_is_well) && port_is_well {
        return Ok(());
    }
    Err("the registry's host is not a domain name with an optional port")
}

fn check_component(component: &str) -> Result<(), &'static str> {
    if component.is_empty() {
        return Err("a component between slashes is empty");
    }
    if component.chars().any(|c| c.is_ascii_uppercase()) {
        return Err("a repository is in lower case; capitals may stand in the tag");
    }
    if !component.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '_' | '-')) {
        return Err("a repository has lower-case letters, digits, \".\", \"_\" and \"-\" between its slashes");
    }
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !component.starts_with(alphanumeric) || !component.ends_with(alphanumeric) {
        return Err("a component between slashes begins and ends with a letter or a digit");
    }
    // The separators of the grammar: one ".", one or two "_", any number of "-".
    let separators = component.split(alphanumeric).filter(|run| !run.is_empty());
    for run in separators {
        if !(run == "." || run == "_" || run == "__" || run.chars().all(|c| c == '-')) {
            return Err("between letters and digits stands one \".\", one or two \"_\", or dashes");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_references_and_keeps_them() {
        let names = [
            "img",
            "img:stable",
            "a/b/c",
            "registry.example/team/web:1",
            "registry.example:5000/web",
            "localhost/x:V_1.2-a",
            "my_app",
            "my__app",
            "a--b",
            "0",
            "Registry.Example/x",
        ];
        for name in names {
            assert_eq!(name.parse::<ImageName>().unwrap().as_str(), name);
        }
    }

    #[test]
    fn refuses_what_is_no_reference_or_no_safe_path() {
        let long = "a".repeat(300);
        let names = [
            "",
            ".",
            "..",
            "../x",
            "a/../b",
            "a//b",
            "/a",
            "a/",
            ".wh.x",
            "Img",
            "a b",
            "a\nb",
            "a\0b",
            "img:",
            "img:-x",
            "img@sha256:00",
            "-a",
            "a-",
            "a..b",
            "a._b",
            "a___b",
            "é",
            "host:port/x",
            "-x.y/z",
            &long,
            "a/B",
        ];
        for name in names {
            assert!(name.parse::<ImageName>().is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_tag_is_not_the_port() {
        let tag = |name: &str| name.parse::<ImageName>().unwrap().tag().map(str::to_owned);
        assert_eq!(tag("registry.example:5000/web"), None);
        assert_eq!(tag("registry.example:5000/web:2").as_deref(), Some("2"));
        assert_eq!(tag("web:2").as_deref(), Some("2"));
    }
}
