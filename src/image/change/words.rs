//! The words of a Dockerfile line: blanks, quotes, escapes and variables.
//!
//! First [`words`] cuts at blanks that nothing protects, then [`expand`] takes quotes and escapes off and fills in
//! variables, each once: what a variable holds is not looked at again.

/// The words of `text`, each with its quotes and escapes.
pub(super) fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let (mut begin, mut quote, mut escaped) = (None, None, false);
    for (at, letter) in text.char_indices() {
        if begin.is_none() {
            if letter.is_whitespace() {
                continue;
            }
            begin = Some(at);
        }
        match (quote, letter) {
            _ if escaped => escaped = false,
            (Some('\''), '\\') => {}
            (_, '\\') => escaped = true,
            (Some(open), close) if open == close => quote = None,
            (None, '\'' | '"') => quote = Some(letter),
            (None, blank) if blank.is_whitespace() => {
                words.extend(begin.take().map(|begin| &text[begin..at]));
            }
            _ => {}
        }
    }
    words.extend(begin.map(|begin| &text[begin..]));
    words
}

/// `NAME=VALUE …`, or the old form `NAME VALUE`, which its first word tells. Neither has been expanded.
pub(super) fn key_values(text: &str) -> Result<Vec<(&str, &str)>, String> {
    let all = words(text);
    if all.first().is_some_and(|first| !first.contains('=')) {
        let end = text.find(char::is_whitespace).ok_or("it takes NAME=VALUE, or NAME VALUE")?;
        return Ok(vec![(&text[..end], text[end..].trim_start())]);
    }
    all.into_iter().map(split).collect()
}

fn split(word: &str) -> Result<(&str, &str), String> {
    word.split_once('=').ok_or_else(|| format!("{word:?} is not NAME=VALUE; put a value with blanks into quotes"))
}

/// `word` without quotes and escapes, with `$NAME`, `${NAME}`, `${NAME:-DEFAULT}` and `${NAME:+INSTEAD}` filled in from
/// `environment`; a variable that is not there is empty.
pub(super) fn expand(word: &str, environment: &[(String, String)]) -> Result<String, String> {
    let mut expansion = Expansion { rest: word.chars().collect(), at: 0, environment };
    expansion.until(None)
}

struct Expansion<'a> {
    rest: Vec<char>,
    at: usize,
    environment: &'a [(String, String)],
}

impl Expansion<'_> {
    fn peek(&self) -> Option<char> {
        self.rest.get(self.at).copied()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.peek();
        self.at += usize::from(next.is_some());
        next
    }

    /// What comes before `end`, or before the end of the text.
    fn until(&mut self, end: Option<char>) -> Result<String, String> {
        let mut out = String::new();
        loop {
            let Some(letter) = self.next() else {
                return if end.is_none() { Ok(out) } else { Err("a \"${\" is not closed".to_owned()) };
            };
            match letter {
                letter if Some(letter) == end => return Ok(out),
                '\'' => self.single(&mut out)?,
                '"' => self.double(&mut out)?,
                '$' => out.push_str(&self.variable()?),
                // The last letter of all stands for itself.
                '\\' => out.push(self.next().unwrap_or('\\')),
                letter => out.push(letter),
            }
        }
    }

    fn single(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            match self.next() {
                None => return Err("a single quote is not closed".to_owned()),
                Some('\'') => return Ok(()),
                Some(letter) => out.push(letter),
            }
        }
    }

    fn double(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            match self.next() {
                None => return Err("a double quote is not closed".to_owned()),
                Some('"') => return Ok(()),
                Some('$') => out.push_str(&self.variable()?),
                Some('\\') => match self.next() {
                    None => return Err("a double quote is not closed".to_owned()),
                    Some(letter @ ('"' | '$' | '\\')) => out.push(letter),
                    Some(letter) => out.extend(['\\', letter]),
                },
                Some(letter) => out.push(letter),
            }
        }
    }

    /// What follows a dollar.
    fn variable(&mut self) -> Result<String, String> {
        if self.peek() != Some('{') {
            let name = self.name();
            return Ok(if name.is_empty() { "$".to_owned() } else { self.value(&name).unwrap_or_default().to_owned() });
        }
        self.at += 1;
        let name = self.name();
        let bad = || format!("${{{name} is no variable; write ${{NAME}}, ${{NAME:-DEFAULT}} or ${{NAME:+INSTEAD}}");
        if name.is_empty() {
            return Err(bad());
        }
        match self.next() {
            Some('}') => Ok(self.value(&name).unwrap_or_default().to_owned()),
            Some(':') => {
                let modifier = self.next();
                let word = self.until(Some('}'))?;
                let value = self.value(&name).unwrap_or_default();
                match modifier {
                    Some('-') => Ok(if value.is_empty() { word } else { value.to_owned() }),
                    Some('+') => Ok(if value.is_empty() { String::new() } else { word }),
                    _ => Err(bad()),
                }
            }
            _ => Err(bad()),
        }
    }

    fn name(&mut self) -> String {
        let mut name = String::new();
        while let Some(letter) = self.peek().filter(|letter| letter.is_ascii_alphanumeric() || *letter == '_') {
            if name.is_empty() && letter.is_ascii_digit() {
                self.at += 1;
                return letter.to_string();
            }
            name.push(letter);
            self.at += 1;
        }
        name
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.environment.iter().rev().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_are_protected_by_quotes_and_escapes() {
        assert_eq!(
            words(r#" a='x y'  b="p \" q" c=d\ e  f='\' g"#),
            ["a='x y'", r#"b="p \" q""#, r"c=d\ e", r"f='\'", "g"]
        );
        assert_eq!(key_values("A 1  2").unwrap(), [("A", "1  2")]);
        assert_eq!(key_values("A=1 B='2 3'").unwrap(), [("A", "1"), ("B", "'2 3'")]);
        assert!(key_values("A").is_err());
        assert!(key_values("A=1 B").unwrap_err().contains("\"B\""));
    }

    #[test]
    fn variables_are_filled_in_once() {
        let environment = [("A".to_owned(), "1 $B".to_owned()), ("B".to_owned(), "b".to_owned())];
        let cases = [
            ("$A", "1 $B"),
            ("${B}x$Bx", "bx"),
            ("'$B' \"$B\" \\$B \"\\$B\"", "$B b $B $B"),
            ("${NO:-d$B} ${B:-d} ${B:+i} ${NO:+i}.", "db b i ."),
            ("\"a\\b\" a\\b a\\", "a\\b ab a\\"),
            ("$", "$"),
        ];
        for (word, expected) in cases {
            assert_eq!(expand(word, &environment).unwrap(), expected, "{word}");
        }
        for wrong in ["'x", "\"x", "${", "${B", "${B:?x}", "${}", "\"\\"] {
            assert!(expand(wrong, &environment).is_err(), "{wrong}");
        }
    }
}
