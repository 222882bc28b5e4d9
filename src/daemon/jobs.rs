//! `snapfs jobs`: the jobs of a daemon as its tree shows them. Nothing here is known that `cat` would not tell.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crate::cli::JobsArgs;
use crate::daemon::{Error, mounted};

/// How often jobs are looked at when they are followed.
const TICK: Duration = Duration::from_millis(200);
/// What `snapfs jobs` ends with if a job that was asked for failed or was cancelled.
const EXIT_ENDED_BADLY: u8 = 1;
/// The bar's inside, in characters.
const BAR: usize = 24;

/// One job at one moment.
#[derive(Debug, Clone, Default, PartialEq)]
struct Seen {
    id: u64,
    state: String,
    command: String,
    error: String,
    phase: String,
    /// The other lines of `progress`.
    numbers: BTreeMap<String, f64>,
}

impl Seen {
    /// `None` if the daemon has forgotten the job meanwhile.
    fn look(dir: &Path, id: u64) -> Option<Seen> {
        let read = |file: &str| fs::read_to_string(dir.join(id.to_string()).join(file)).ok();
        let line = |file: &str| Some(read(file)?.trim_end().to_owned());
        let mut seen = Seen { id, ..Seen::default() };
        // The state first: what has ended then is complete.
        seen.state = line("state")?;
        seen.command = line("command")?;
        seen.error = line("error")?;
        for (key, value) in read("progress")?.lines().filter_map(|line| line.split_once(' ')) {
            match value.parse() {
                Ok(number) => drop(seen.numbers.insert(key.to_owned(), number)),
                Err(_) => value.clone_into(&mut seen.phase),
            }
        }
        Some(seen)
    }

    fn has_ended(&self) -> bool {
        !matches!(self.state.as_str(), "queued" | "running")
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.numbers.get(key).copied()
    }

    /// `7 running pre-copy 1 45% 12.0 MiB of 26.7 MiB, 8.1 MiB/s, 2s left: containers/web/commit img`
    fn line(&self, with_bar: bool) -> String {
        let mut text = format!("{} {}", self.id, self.state);
        if self.state == "running" && !self.phase.is_empty() {
            text.push_str(&format!(" {}", self.phase));
        }
        let bytes = self.number("bytes").unwrap_or(0.0);
        let total = self.number("bytes_total").filter(|total| *total > 0.0 && !self.has_ended());
        if let Some(total) = total {
            let share = (bytes / total).clamp(0.0, 1.0);
            if with_bar {
                text.push_str(&format!(" {}", bar(share)));
            }
            text.push_str(&format!(" {:.0}% {} of {}", share * 100.0, size(bytes), size(total)));
        } else if bytes > 0.0 {
            text.push_str(&format!(" {}", size(bytes)));
        }
        if let Some(rate) = self.number("rate") {
            text.push_str(&format!(", {}/s", size(rate)));
        }
        match (self.number("remaining"), self.number("elapsed")) {
            (Some(left), _) => text.push_str(&format!(", {left:.0}s left")),
            (None, Some(took)) if self.state != "queued" => text.push_str(&format!(", {took:.1}s")),
            _ => {}
        }
        text.push_str(&format!(": {}", self.command));
        if !self.error.is_empty() {
            text.push_str(&format!(": {}", self.error));
        }
        // What comes from a command line could hold anything; it shall not move the cursor.
        text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    }
}

fn bar(share: f64) -> String {
    let full = (0..BAR).filter(|at| (*at as f64) < share * BAR as f64).count();
    format!("[{}{}]", "#".repeat(full), ".".repeat(BAR - full))
}

fn size(bytes: f64) -> String {
    let mut value = bytes;
    for unit in ["B", "KiB", "MiB", "GiB"] {
        if value < 1024.0 {
            return if unit == "B" { format!("{value:.0} B") } else { format!("{value:.1} {unit}") };
        }
        value /= 1024.0;
    }
    format!("{value:.1} TiB")
}

/// List or follow.
pub(super) fn run(args: &JobsArgs) -> Result<ExitCode, Error> {
    let dir = tree(args.dir.as_deref())?.join("jobs");
    let named = args.jobs.iter().map(|job| number(&dir, job)).collect::<Result<Vec<u64>, Error>>()?;
    let look = |id: &u64| {
        let gone = || Error::Asked(format!("there is no job {id} in {}", dir.display()));
        Seen::look(&dir, *id).ok_or_else(gone)
    };
    let mut jobs: Vec<Seen> = match named.as_slice() {
        [] => all(&dir)?,
        named => named.iter().map(look).collect::<Result<_, Error>>()?,
    };
    if args.follow && named.is_empty() {
        jobs.retain(|job| !job.has_ended());
    }
    let mut screen = Screen { is_terminal: args.follow && io::stdout().is_terminal(), ..Screen::default() };
    screen.show(&jobs).map_err(Error::Start)?;
    while args.follow && jobs.iter().any(|job| !job.has_ended()) {
        thread::sleep(TICK);
        for job in jobs.iter_mut().filter(|job| !job.has_ended()) {
            match Seen::look(&dir, job.id) {
                Some(seen) => *job = seen,
                None => return Err(Error::Asked(format!("job {} is not remembered any more", job.id))),
            }
        }
        screen.show(&jobs).map_err(Error::Start)?;
    }
    let concerns_us = args.follow || !named.is_empty();
    let ended_badly = jobs.iter().any(|job| matches!(job.state.as_str(), "failed" | "cancelled"));
    Ok(if concerns_us && ended_badly { ExitCode::from(EXIT_ENDED_BADLY) } else { ExitCode::SUCCESS })
}

fn tree(dir: Option<&Path>) -> Result<PathBuf, Error> {
    if let Some(dir) = dir {
        return Ok(dir.to_owned());
    }
    match mounted()?.as_slice() {
        [] => Err(Error::Asked("no snapfs is mounted; give its directory with --dir".to_owned())),
        [one] => Ok(one.clone()),
        _ => Err(Error::Asked("more than one snapfs is mounted; choose one with --dir".to_owned())),
    }
}

fn number(dir: &Path, job: &str) -> Result<u64, Error> {
    let target = if job == "last" { fs::read_link(dir.join(job)).ok() } else { None };
    let text = target.as_deref().and_then(Path::to_str).unwrap_or(job);
    text.parse().map_err(|_| Error::Asked(format!("there is no job {job} in {}", dir.display())))
}

fn all(dir: &Path) -> Result<Vec<Seen>, Error> {
    let failed = |error: io::Error| Error::Asked(format!("cannot list {}: {error}", dir.display()));
    let entries = fs::read_dir(dir).map_err(failed)?;
    let mut ids: Vec<u64> = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    ids.sort_unstable();
    Ok(ids.into_iter().filter_map(|id| Seen::look(dir, id)).collect())
}

/// What was shown: on a terminal in place of what stood there, else a line for each step of a job.
#[derive(Default)]
struct Screen {
    is_terminal: bool,
    lines: usize,
    steps: BTreeMap<u64, (String, String)>,
}

impl Screen {
    fn show(&mut self, jobs: &[Seen]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        if self.is_terminal {
            if self.lines > 0 {
                write!(out, "\x1b[{}A\x1b[J", self.lines)?;
            }
            for job in jobs {
                // One row each, or the cursor would not come back to where it was.
                let line: String = job.line(true).chars().take(columns()).collect();
                writeln!(out, "{line}")?;
            }
            self.lines = jobs.len();
        } else {
            for job in jobs {
                let step = (job.state.clone(), job.phase.clone());
                if self.steps.insert(job.id, step.clone()) != Some(step) {
                    writeln!(out, "{}", job.line(false))?;
                }
            }
        }
        out.flush()
    }
}

/// What every terminal has.
fn columns() -> usize {
    crate::sys::terminal::columns().unwrap_or(80)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn running() -> Seen {
        let numbers =
            [("bytes", 512.0 * 1024.0), ("bytes_total", 1024.0 * 1024.0), ("rate", 2048.0), ("remaining", 3.0)];
        let numbers = numbers.map(|(key, value)| (key.to_owned(), value)).into();
        let (state, phase) = ("running".to_owned(), "pre-copy 1".to_owned());
        Seen { id: 7, state, phase, command: "containers/web/commit img".to_owned(), numbers, ..Seen::default() }
    }

    #[test]
    fn a_line_says_what_is_known() {
        assert_eq!(
            running().line(false),
            "7 running pre-copy 1 50% 512.0 KiB of 1.0 MiB, 2.0 KiB/s, 3s left: containers/web/commit img"
        );
        assert!(running().line(true).contains(" [############............] 50% "));
        let ended = Seen { state: "failed".to_owned(), error: "no\x1b[2J".to_owned(), ..running() };
        assert!(ended.line(true).ends_with(": no?[2J") && !ended.line(true).contains('%'));
    }

    #[test]
    fn bars_and_sizes() {
        assert_eq!(bar(0.0), format!("[{}]", ".".repeat(24)));
        assert_eq!(bar(1.0), format!("[{}]", "#".repeat(24)));
        assert_eq!((size(0.0), size(1536.0), size(5e15)), ("0 B".into(), "1.5 KiB".into(), "4547.5 TiB".into()));
    }
}
