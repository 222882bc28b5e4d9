//! `HEALTHCHECK [--OPTION=VALUE…] CMD COMMAND`, or `HEALTHCHECK NONE`.
//!
//! The image specification has no field for it; Docker's configuration does, and engines read it from there.

use serde_json::{Map, Value, json};

use super::words::words;
use super::{Change, InvalidChange};

/// What Docker's configuration has as `Healthcheck`.
pub(super) fn parse(change: &Change) -> Result<Value, InvalidChange> {
    let takes = "it takes NONE, or [--interval=30s] [--timeout=30s] [--start-period=0s] [--start-interval=5s] \
                 [--retries=3] CMD COMMAND";
    let mut check = Map::new();
    let mut rest = change.text.as_str();
    while rest.starts_with("--") {
        let word = words(rest).first().copied().unwrap_or_default();
        rest = rest[word.len()..].trim_start();
        let (name, value) = word[2..].split_once('=').ok_or_else(|| change.wrong(takes))?;
        let field = match name {
            "interval" => "Interval",
            "timeout" => "Timeout",
            "start-period" => "StartPeriod",
            "start-interval" => "StartInterval",
            "retries" => "Retries",
            _ => return Err(change.wrong(format!("there is no --{name}; {takes}"))),
        };
        if check.contains_key(field) {
            return Err(change.wrong(format!("--{name} is given twice")));
        }
        let number = if field == "Retries" { value.parse().ok().filter(|count| *count >= 1) } else { duration(value) };
        let wrong = || {
            let right = if field == "Retries" { "a number from 1 on" } else { "a time such as 30s, 1m30s or 500ms" };
            change.wrong(format!("--{name} is {right}, not {value:?}"))
        };
        check.insert(field.to_owned(), json!(number.ok_or_else(wrong)?));
    }
    let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
    let (word, command) = (rest[..end].to_ascii_uppercase(), rest[end..].trim());
    let test = match word.as_str() {
        "NONE" if command.is_empty() && check.is_empty() => json!(["NONE"]),
        "CMD" if !command.is_empty() => match change.array(command)? {
            Some(words) if words.is_empty() => return Err(change.wrong(takes)),
            Some(words) => json!(std::iter::once("CMD".to_owned()).chain(words).collect::<Vec<_>>()),
            None => json!(["CMD-SHELL", command]),
        },
        _ => return Err(change.wrong(takes)),
    };
    check.insert("Test".to_owned(), test);
    Ok(Value::Object(check))
}

/// Go's duration in nanoseconds: `1h2m3.5s`. Docker takes 0, and from a millisecond on.
fn duration(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let (mut rest, mut total) = (text, 0.0_f64);
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let end = rest.find(|letter: char| letter.is_ascii_digit() || letter == '.').unwrap_or(rest.len());
        let unit = match &rest[..end] {
            "ns" => 1.0,
            "us" | "\u{b5}s" | "\u{3bc}s" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        total += number * unit;
        rest = &rest[end..];
    }
    let is_taken = !text.is_empty() && (total == 0.0 || (1e6..9e18).contains(&total));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "it was just looked at")]
    is_taken.then_some(total.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_go_s() {
        for (text, expected) in
            [("5s", 5_000_000_000), ("1m30s", 90_000_000_000), ("1.5ms", 1_500_000), ("0s", 0), ("0", 0)]
        {
            assert_eq!(duration(text), Some(expected), "{text}");
        }
        for wrong in ["", "5", "s", "5x", "-1s", "1us", "1e3s", "5s ", "300000h1000000h10000000h"] {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
    }
}
