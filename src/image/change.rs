//! `change=`: a line of a Dockerfile, applied to an image's configuration; pure.
//!
//! The verbs are those that say something of the configuration alone, as `podman commit --change` and
//! `docker commit --change` take them, and the words are read by the Dockerfile's rules: [`words`]. Two things are stricter,
//! because they are slips: text in brackets must be a JSON array of strings, and no verb stands without an argument.

mod healthcheck;
mod signal;
mod words;

use std::fmt;

use serde_json::{Map, Value, json};

use words::{expand, key_values};

/// A configuration: the object `config` of an image's config, with fields known to us or not.
type Config = Map<String, Value>;

/// The verbs, as they are listed for who has written another.
const VERBS: &str = "CMD, ENTRYPOINT, ENV, EXPOSE, HEALTHCHECK, LABEL, ONBUILD, STOPSIGNAL, USER, VOLUME and WORKDIR";

/// What is wrong with a change.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidChange {
    /// There is no such verb.
    #[error("there is no change {0:?}; the verbs are {VERBS}, each followed by a blank and what it takes")]
    Verb(String),
    /// The verb's arguments are not what it takes.
    #[error("{verb} {text:?}: {reason}")]
    Arguments {
        /// The verb.
        verb: Verb,
        /// What follows it.
        text: String,
        /// What is wrong with that, and what would be right.
        reason: String,
    },
}

/// A verb of a Dockerfile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are the Dockerfile's")]
pub enum Verb {
    Cmd,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Label,
    OnBuild,
    StopSignal,
    User,
    Volume,
    WorkDir,
}

impl Verb {
    fn parse(word: &str) -> Option<Verb> {
        Some(match word.to_ascii_uppercase().as_str() {
            "CMD" => Verb::Cmd,
            "ENTRYPOINT" => Verb::Entrypoint,
            "ENV" => Verb::Env,
            "EXPOSE" => Verb::Expose,
            "HEALTHCHECK" => Verb::Healthcheck,
            "LABEL" => Verb::Label,
            "ONBUILD" => Verb::OnBuild,
            "STOPSIGNAL" => Verb::StopSignal,
            "USER" => Verb::User,
            "VOLUME" => Verb::Volume,
            "WORKDIR" => Verb::WorkDir,
            _ => return None,
        })
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Verb::Cmd => "CMD",
            Verb::Entrypoint => "ENTRYPOINT",
            Verb::Env => "ENV",
            Verb::Expose => "EXPOSE",
            Verb::Healthcheck => "HEALTHCHECK",
            Verb::Label => "LABEL",
            Verb::OnBuild => "ONBUILD",
            Verb::StopSignal => "STOPSIGNAL",
            Verb::User => "USER",
            Verb::Volume => "VOLUME",
            Verb::WorkDir => "WORKDIR",
        })
    }
}

/// One change: a verb, and what follows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    verb: Verb,
    text: String,
}

impl Change {
    /// `VERB ARGUMENTS`, or `VERB=ARGUMENTS` as the examples of podman-commit(1) have it.
    ///
    /// # Errors
    /// [`InvalidChange`], for all that can be told without the image: an environment variable may still make a word wrong.
    pub fn parse(line: &str) -> Result<Change, InvalidChange> {
        let line = line.trim();
        let end = line.find(char::is_whitespace).unwrap_or(line.len());
        let (word, text) = match Verb::parse(&line[..end]) {
            None if line[..end].contains('=') => line.split_once('=').unwrap_or((line, "")),
            _ => line.split_at(end),
        };
        let verb = Verb::parse(word).ok_or_else(|| InvalidChange::Verb(line.to_owned()))?;
        let change = Change { verb, text: text.trim().to_owned() };
        if change.text.is_empty() {
            return Err(change.wrong("it says nothing; write what it takes after a blank"));
        }
        if !change.text.contains('$') {
            Changed::default().take(&change, &mut Config::new())?;
        }
        Ok(change)
    }

    fn wrong(&self, reason: impl Into<String>) -> InvalidChange {
        InvalidChange::Arguments { verb: self.verb, text: self.text.clone(), reason: reason.into() }
    }

    /// The whole text as one word, variables filled in.
    fn word(&self, config: &Config) -> Result<String, InvalidChange> {
        let word = expand(&self.text, &environment(config)).map_err(|reason| self.wrong(reason))?;
        if word.is_empty() { Err(self.wrong("it comes out empty")) } else { Ok(word) }
    }

    /// The text as a JSON array of strings; none if it is no array.
    fn array(&self, text: &str) -> Result<Option<Vec<String>>, InvalidChange> {
        if !text.starts_with('[') {
            return Ok(None);
        }
        match serde_json::from_str(text) {
            Ok(words) => Ok(Some(words)),
            Err(_) if serde_json::from_str::<Vec<Value>>(text).is_ok() => {
                Err(self.wrong("the array holds something else than strings; put each into double quotes"))
            }
            Err(_) if !text.ends_with(']') => Ok(None),
            Err(error) => Err(self.wrong(format!(
                "it is in brackets and no JSON array of strings such as [\"sh\", \"-c\", \"ls\"] ({error})"
            ))),
        }
    }

    /// A command: as it is (a JSON array), or for the shell of the image.
    fn command(&self, config: &Config) -> Result<Vec<String>, InvalidChange> {
        if let Some(words) = self.array(&self.text)? {
            return Ok(words);
        }
        let shell = config.get("Shell").and_then(Value::as_array).into_iter().flatten();
        let mut command: Vec<String> = shell.filter_map(|word| word.as_str().map(str::to_owned)).collect();
        if command.is_empty() {
            command = ["/bin/sh", "-c"].map(str::to_owned).into();
        }
        command.push(self.text.clone());
        Ok(command)
    }
}

/// Applies `changes` in their order to the object `config` of an image's config; what they do not speak of stays.
///
/// # Errors
/// [`InvalidChange`]; `config` is then half changed.
pub(super) fn apply(changes: &[Change], config: &mut Config) -> Result<(), InvalidChange> {
    let mut changed = Changed::default();
    changes.iter().try_for_each(|change| changed.take(change, config))
}

/// What later changes want to know of earlier ones.
#[derive(Debug, Default)]
struct Changed {
    command: bool,
}

impl Changed {
    fn take(&mut self, change: &Change, config: &mut Config) -> Result<(), InvalidChange> {
        match change.verb {
            Verb::Cmd => {
                let command = change.command(config)?;
                set_words(config, "Cmd", command);
                self.command = true;
            }
            Verb::Entrypoint => {
                let command = change.command(config)?;
                set_words(config, "Entrypoint", command);
                // What were its arguments were another's.
                if !self.command {
                    config.remove("Cmd");
                }
            }
            Verb::Env => {
                for (name, value) in pairs(change, config)? {
                    set_variable(config, &name, &value);
                }
            }
            Verb::Label => {
                let pairs = pairs(change, config)?;
                object(config, "Labels").extend(pairs.into_iter().map(|(key, value)| (key, Value::String(value))));
            }
            Verb::Expose => {
                let text = change.word(config)?;
                let mut ports = Vec::new();
                for word in text.split_whitespace() {
                    ports.extend(expose(word).map_err(|reason| change.wrong(reason))?);
                }
                object(config, "ExposedPorts").extend(ports.into_iter().map(|port| (port, json!({}))));
            }
            Verb::Volume => {
                let listed = change.array(&change.text)?;
                let listed =
                    listed.unwrap_or_else(|| change.text.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
                let environment = environment(config);
                let expanded = listed.iter().map(|path| expand(path, &environment)).collect::<Result<Vec<_>, _>>();
                let paths = expanded.map_err(|reason| change.wrong(reason))?;
                if paths.is_empty() || paths.iter().any(|path| path.trim().is_empty()) {
                    return Err(change.wrong("it takes paths: VOLUME /data /log, or VOLUME [\"/data\"]"));
                }
                object(config, "Volumes").extend(paths.into_iter().map(|path| (path, json!({}))));
            }
            Verb::Healthcheck => {
                let check = healthcheck::parse(change)?;
                config.insert("Healthcheck".to_owned(), check);
            }
            Verb::OnBuild => {
                let verb = change.text.split_whitespace().next().unwrap_or_default().to_ascii_uppercase();
                if ["ONBUILD", "FROM", "MAINTAINER"].contains(&verb.as_str()) {
                    return Err(change.wrong(format!("{verb} cannot wait for a build")));
                }
                if !ONBUILD.contains(&verb.as_str()) {
                    return Err(change.wrong(format!("a Dockerfile has no {verb}")));
                }
                let triggers = config.entry("OnBuild").or_insert_with(|| json!([]));
                match triggers {
                    Value::Array(triggers) => triggers.push(json!(change.text)),
                    other => *other = json!([change.text]),
                }
            }
            Verb::StopSignal => {
                let word = change.word(config)?;
                if !signal::is_one(&word) {
                    return Err(change.wrong("there is no such signal; write SIGTERM, or its number"));
                }
                config.insert("StopSignal".to_owned(), json!(word));
            }
            Verb::User => {
                let user = change.word(config)?;
                config.insert("User".to_owned(), json!(user));
            }
            Verb::WorkDir => {
                let path = change.word(config)?;
                let now = config.get("WorkingDir").and_then(Value::as_str).unwrap_or_default();
                let path = if path.starts_with('/') { path } else { join(now, &path) };
                config.insert("WorkingDir".to_owned(), json!(path));
            }
        }
        Ok(())
    }
}

/// What a Dockerfile may say of an image to be built on this one.
const ONBUILD: [&str; 15] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "HEALTHCHECK",
    "LABEL",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// `NAME=VALUE` for an image's `Env`.
fn environment(config: &Config) -> Vec<(String, String)> {
    let entries = config.get("Env").and_then(Value::as_array).into_iter().flatten();
    let pair = |entry: &Value| {
        let (name, value) = entry.as_str()?.split_once('=')?;
        Some((name.to_owned(), value.to_owned()))
    };
    entries.filter_map(pair).collect()
}

/// `NAME=VALUE …`, or `NAME VALUE`: what ENV and LABEL take.
fn pairs(change: &Change, config: &Config) -> Result<Vec<(String, String)>, InvalidChange> {
    let environment = environment(config);
    let pairs = key_values(&change.text).and_then(|pairs| {
        pairs
            .iter()
            .map(|(name, value)| Ok((expand(name, &environment)?, expand(value, &environment)?)))
            .collect::<Result<Vec<_>, String>>()
    });
    let pairs = pairs.map_err(|reason| change.wrong(reason))?;
    if pairs.iter().any(|(name, _)| name.is_empty()) {
        return Err(change.wrong("a name is empty; write NAME=VALUE"));
    }
    Ok(pairs)
}

/// The variable `name` in its place if it is there already.
fn set_variable(config: &mut Config, name: &str, value: &str) {
    let entry = json!(format!("{name}={value}"));
    let list = config.entry("Env").or_insert_with(|| json!([]));
    let Value::Array(list) = list else {
        *list = json!([entry]);
        return;
    };
    let is_it = |old: &Value| old.as_str().is_some_and(|old| old.split('=').next() == Some(name));
    match list.iter().position(is_it) {
        Some(at) => list[at] = entry,
        None => list.push(entry),
    }
}

/// A command, of which none is no field.
fn set_words(config: &mut Config, field: &str, words: Vec<String>) {
    if words.is_empty() {
        config.remove(field);
    } else {
        config.insert(field.to_owned(), json!(words));
    }
}

/// The object `field`, made if it is not there.
pub(super) fn object<'a>(config: &'a mut Config, field: &str) -> &'a mut Map<String, Value> {
    let value = config.entry(field).or_insert(Value::Null);
    if !value.is_object() {
        *value = json!({});
    }
    let Value::Object(object) = value else { unreachable!("it was made one") };
    object
}

/// `PORT[-PORT][/PROTOCOL]` as the specification's `PORT/PROTOCOL`: it knows no ranges.
fn expose(word: &str) -> Result<Vec<String>, String> {
    let expected = || format!("{word:?} is no port; write 80, 53/udp or 8000-8010/tcp");
    let (ports, protocol) = word.split_once('/').unwrap_or((word, "tcp"));
    let protocol = protocol.to_ascii_lowercase();
    if !["tcp", "udp", "sctp"].contains(&protocol.as_str()) {
        return Err(expected());
    }
    let port = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<u16>().ok().filter(|port| is_number && *port > 0).ok_or_else(expected)
    };
    let (first, last) = match ports.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(ports)?, port(ports)?),
    };
    if first > last {
        return Err(expected());
    }
    Ok((first..=last).map(|port| format!("{port}/{protocol}")).collect())
}

/// `path` from the directory `base` on, without detours.
fn join(base: &str, path: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in base.split('/').chain(path.split('/')) {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    format!("/{}", parts.join("/"))
}

#[cfg(test)]
mod tests;
