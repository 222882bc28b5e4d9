//! [`Policy`]: which image names may go, as lines of text; pure.
//!
//! ```text
//! # the last day of each hourly snapshot, and a week of all others
//! web-*          keep=24 within=7d
//! nightly/**     within=2w
//! ```
//!
//! The first line whose pattern fits a name decides about it. The name stays if it is among the `keep=` newest of those
//! that its line decides about, or if it was given within the time `within=`; otherwise it goes. A name that no line
//! fits stays, and so does one that is protected, whatever a line says; a protected name counts among the newest.

use std::cmp::Reverse;
use std::time::Duration;

/// The label that protects a name, whatever its value is.
pub const KEEP_LABEL: &str = "io.snapfs.keep";

/// A parsed policy.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Rule {
    /// The number of its line, from 1.
    line: usize,
    pattern: String,
    keep: Option<usize>,
    within: Option<Duration>,
}

/// Why a text is not a policy.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {reason}")]
pub struct Invalid {
    /// Which line, from 1.
    pub line: usize,
    /// What is wrong with it.
    pub reason: String,
}

/// A name to decide about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// The image's name.
    pub name: &'a str,
    /// How long ago it was given.
    pub age: Duration,
    /// Higher for what was given later: times may be the same.
    pub order: u64,
    /// It never goes.
    pub is_protected: bool,
}

/// A name that goes, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Which of the candidates.
    pub at: usize,
    /// For a person.
    pub reason: String,
}

impl Policy {
    /// Read a policy; comments begin with `#`.
    pub fn parse(text: &str) -> Result<Policy, Invalid> {
        let mut rules = Vec::new();
        for (line, text) in (1..).zip(text.lines()) {
            let rule = text.split('#').next().unwrap_or_default();
            let mut words = rule.split_whitespace();
            if let Some(pattern) = words.next() {
                let rule = Rule::parse(line, pattern, words).map_err(|reason| Invalid { line, reason })?;
                rules.push(rule);
            }
        }
        Ok(Policy { rules })
    }

    /// Whether it lets everything stay.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// The names that go, the oldest first.
    pub fn judge(&self, candidates: &[Candidate<'_>]) -> Vec<Verdict> {
        let mut by_rule: Vec<Vec<usize>> = vec![Vec::new(); self.rules.len()];
        for (at, candidate) in candidates.iter().enumerate() {
            if let Some(rule) = self.rules.iter().position(|rule| fits(&rule.pattern, candidate.name)) {
                by_rule[rule].push(at);
            }
        }
        let mut verdicts = Vec::new();
        for (rule, mut names) in self.rules.iter().zip(by_rule) {
            names.sort_by_key(|at| (candidates[*at].age, Reverse(candidates[*at].order)));
            for (place, at) in names.into_iter().enumerate() {
                let candidate = candidates[at];
                let is_new = rule.keep.is_some_and(|keep| place < keep);
                let is_young = rule.within.is_some_and(|within| candidate.age <= within);
                if !is_new && !is_young && !candidate.is_protected {
                    verdicts.push(Verdict { at, reason: rule.reason(place, candidate.age) });
                }
            }
        }
        verdicts.sort_by_key(|verdict| (Reverse(candidates[verdict.at].age), candidates[verdict.at].order));
        verdicts
    }
}

impl Rule {
    fn parse<'a>(line: usize, pattern: &str, words: impl Iterator<Item = &'a str>) -> Result<Rule, String> {
        let odd = |c: char| !(c.is_ascii_alphanumeric() || "._-/:*?+".contains(c));
        if let Some(c) = pattern.chars().find(|c| odd(*c)) {
            return Err(format!("{c:?} is in no image name; a pattern holds *, ** and ? for what may differ"));
        }
        let mut rule = Rule { line, pattern: pattern.to_owned(), keep: None, within: None };
        for word in words {
            match word.split_once('=') {
                Some(("keep", value)) if rule.keep.is_none() => {
                    rule.keep =
                        Some(value.parse().map_err(|_| format!("keep={value} needs a number, such as keep=24"))?);
                }
                Some(("within", value)) if rule.within.is_none() => {
                    let wrong = || format!("within={value} needs a time, such as within=7d, 12h or 1w2d");
                    rule.within = Some(duration(value).ok_or_else(wrong)?);
                }
                Some(("keep" | "within", _)) => return Err(format!("{word} is the second of its kind")),
                _ => return Err(format!("{word:?} is neither keep=NUMBER nor within=TIME")),
            }
        }
        if rule.keep.is_none() && rule.within.is_none() {
            return Err(format!("{pattern} needs keep=NUMBER, within=TIME or both; a name that no line fits stays"));
        }
        Ok(rule)
    }

    fn reason(&self, place: usize, age: Duration) -> String {
        let mut reasons = Vec::new();
        if let Some(keep) = self.keep {
            reasons.push(format!("{keep} newer ones stay, it is number {}", place + 1));
        }
        if let Some(within) = self.within {
            reasons.push(format!("it is {} old, more than {}", shown(age), shown(within)));
        }
        format!("line {}, {}: {}", self.line, self.pattern, reasons.join("; "))
    }
}

const UNITS: [(char, u64); 5] = [('w', 604_800), ('d', 86_400), ('h', 3600), ('m', 60), ('s', 1)];

/// `7d`, `1w2d`, `90m`.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut seconds = 0u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let unit = rest[digits..].chars().next()?;
        let (_, length) = UNITS.iter().find(|(known, _)| *known == unit)?;
        seconds = seconds.checked_add(rest[..digits].parse::<u64>().ok()?.checked_mul(*length)?)?;
        rest = &rest[digits + 1..];
    }
    (seconds > 0).then(|| Duration::from_secs(seconds))
}

/// The two largest units of a time.
fn shown(time: Duration) -> String {
    let mut seconds = time.as_secs();
    let mut text = String::new();
    let mut parts = 0;
    for (unit, length) in UNITS {
        if seconds >= length && parts < 2 {
            text.push_str(&format!("{}{unit}", seconds / length));
            seconds %= length;
            parts += 1;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// Whether a pattern fits a whole name: `*` any characters but `/`, `**` any, `?` one that is not `/`.
fn fits(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    // Which of the pattern's beginnings fit what was read of the name; names have 384 bytes at most.
    let mut states = vec![false; pattern.len() + 1];
    states[0] = true;
    let skip_stars = |states: &mut [bool]| {
        for at in 0..pattern.len() {
            if states[at] && pattern[at] == b'*' {
                states[at + 1] = true;
            }
        }
    };
    skip_stars(&mut states);
    for byte in name {
        let mut next = vec![false; pattern.len() + 1];
        for at in (0..pattern.len()).filter(|at| states[*at]) {
            let is_double =
                pattern[at] == b'*' && (pattern.get(at + 1) == Some(&b'*') || (at > 0 && pattern[at - 1] == b'*'));
            match pattern[at] {
                b'*' if is_double || *byte != b'/' => next[at] = true,
                b'?' if *byte != b'/' => next[at + 1] = true,
                wanted if wanted == *byte && wanted != b'*' => next[at + 1] = true,
                _ => {}
            }
        }
        skip_stars(&mut next);
        states = next;
    }
    states[pattern.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn gone(policy: &str, names: &[(&str, u32)]) -> Vec<String> {
        let candidates: Vec<Candidate<'_>> = names
            .iter()
            .map(|(name, hours)| {
                let order = u64::from(1000 - hours);
                Candidate { name, age: HOUR * *hours, order, is_protected: name.ends_with("-kept") }
            })
            .collect();
        let verdicts = Policy::parse(policy).unwrap().judge(&candidates);
        verdicts.into_iter().map(|verdict| names[verdict.at].0.to_owned()).collect()
    }

    #[test]
    fn the_first_line_that_fits_decides() {
        let names = [("web-1", 3), ("web-2", 2), ("web-3", 1), ("web-old", 30), ("db-1", 99), ("team/web-1", 99)];
        assert_eq!(gone("web-* keep=2", &names), ["web-old", "web-1"]);
        assert_eq!(gone("web-* within=1d", &names), ["web-old"]);
        assert_eq!(gone("web-* keep=1 within=2h", &names), ["web-old", "web-1"], "either lets it stay");
        assert_eq!(gone("web-old keep=1\nweb-* keep=0", &names), ["web-1", "web-2", "web-3"]);
        assert_eq!(gone("** within=4d", &names), ["db-1", "team/web-1"]);
        assert_eq!(gone("  # nothing\n\n", &names), [""; 0]);
        assert_eq!(gone("*/web-? keep=0", &names), ["team/web-1"]);
    }

    #[test]
    fn what_is_protected_stays_and_counts() {
        let names = [("web-kept", 1), ("web-2", 2), ("web-3", 3)];
        assert_eq!(gone("web-* keep=1", &names), ["web-3", "web-2"]);
        assert_eq!(gone("web-* keep=0", &names), ["web-3", "web-2"]);
    }

    #[test]
    fn of_one_second_the_later_is_the_newer() {
        let of = |name, order| Candidate { name, age: HOUR, order, is_protected: false };
        let verdicts = Policy::parse("* keep=1").unwrap().judge(&[of("a", 7), of("b", 9), of("c", 8)]);
        assert_eq!(verdicts.iter().map(|verdict| verdict.at).collect::<Vec<_>>(), [0, 2]);
    }

    #[test]
    fn a_reason_names_the_line() {
        let old = Candidate { name: "web-1", age: HOUR * 200, order: 1, is_protected: false };
        let policy = Policy::parse("# a\nweb-* keep=0 within=1w").unwrap();
        let verdicts = policy.judge(&[old]);
        assert_eq!(
            verdicts[0].reason,
            "line 2, web-*: 0 newer ones stay, it is number 1; it is 1w1d old, more than 1w"
        );
    }

    #[test]
    fn a_bad_line_is_told_by_its_number() {
        for (text, line, says) in [
            ("web-*", 1, "needs keep=NUMBER, within=TIME or both"),
            ("a keep=1\n\n# x\nb keep=x", 4, "keep=x needs a number"),
            ("a keep=-1", 1, "needs a number"),
            ("a within=7", 1, "within=7 needs a time"),
            ("a within=7y", 1, "needs a time"),
            ("a within=", 1, "needs a time"),
            ("a within=99999999999999999999w", 1, "needs a time"),
            ("a keep=1 keep=2", 1, "second of its kind"),
            ("a keep", 1, "neither keep=NUMBER nor within=TIME"),
            ("[ab]* keep=1", 1, "'[' is in no image name"),
        ] {
            let error = Policy::parse(text).expect_err(text);
            assert_eq!(error.line, line, "{text}");
            assert!(error.to_string().contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn times_are_sums() {
        assert_eq!(duration("1w2d"), Some(HOUR * 24 * 9));
        assert_eq!(duration("90m"), Some(HOUR * 3 / 2));
        assert_eq!(shown(HOUR * 49), "2d1h");
        assert_eq!(shown(Duration::ZERO), "0s");
    }

    /// As slow and plain as it gets.
    fn fits_slowly(pattern: &[u8], name: &[u8]) -> bool {
        match pattern {
            [] => name.is_empty(),
            [b'*', b'*', rest @ ..] => (0..=name.len()).any(|at| fits_slowly(rest, &name[at..])),
            [b'*', rest @ ..] => {
                let end = name.iter().position(|byte| *byte == b'/').unwrap_or(name.len());
                (0..=end).any(|at| fits_slowly(rest, &name[at..]))
            }
            [b'?', rest @ ..] => name.first().is_some_and(|byte| *byte != b'/') && fits_slowly(rest, &name[1..]),
            [byte, rest @ ..] => name.first() == Some(byte) && fits_slowly(rest, &name[1..]),
        }
    }

    proptest! {
        #[test]
        fn patterns_fit_as_they_say(pattern in "([ab/?]|\\*|\\*\\*){0,5}", name in "[ab/]{0,8}") {
            // Three stars in a row are two and one, which is two.
            prop_assume!(!pattern.contains("***"));
            prop_assert_eq!(fits(&pattern, &name), fits_slowly(pattern.as_bytes(), name.as_bytes()));
        }
    }
}
