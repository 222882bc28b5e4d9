//! Stopping a container by its engine's own program.

use std::ffi::OsString;
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::host::Host;
use crate::engine::runtime::StateDirectory;
use crate::engine::{Container, Error};
use crate::sys::process::Program;

/// How long podman may take: it gives a container its own time to end, which `--stop-timeout` sets, and then kills it.
pub(super) const PODMAN: Duration = Duration::from_secs(600);
/// How long a runtime's program may take: it sends a signal.
const RUNTIME: Duration = Duration::from_secs(20);
/// How long a container of a bare runtime has to end after SIGTERM: the time that podman and docker give theirs …
const TERM: Duration = Duration::from_secs(10);
/// … and after SIGKILL.
const KILL: Duration = Duration::from_secs(10);
/// How long between two looks at whether it has ended.
const LOOK: Duration = Duration::from_millis(20);

/// Run `program OPTIONS WORDS` to its end; its failure is told in its own words.
pub(super) fn run(
    program: &str,
    options: &[OsString],
    words: &[&str],
    limit: Duration,
    wanted: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let command = format!("{program} {}", words.join(" "));
    let failed = |source| Error::Program { command, source };
    let run = |program: Program| program.arguments(options).arguments(words).run_while(limit, wanted)?.check();
    Program::find(program).and_then(run).map(drop).map_err(failed)
}

/// SIGTERM and time to end, then SIGKILL: a runtime has no `stop` of its own.
pub(super) fn with_runtime(
    states: &StateDirectory,
    host: &Host,
    container: &Container,
    wanted: &dyn Fn() -> bool,
) -> Result<(), Error> {
    let Some(init) = container.init else { return Ok(()) };
    let has_ended = || host.start_time(init.pid) != Some(init.start_time);
    let options = [OsString::from("--root"), states.root.clone().into_os_string()];
    for (signal, patience) in [("TERM", TERM), ("KILL", KILL)] {
        let sent = run(states.runtime, &options, &["kill", &container.id, signal], RUNTIME, wanted);
        // It may have ended by itself, which is what was wanted.
        if has_ended() {
            return Ok(());
        }
        sent?;
        let until = Instant::now() + patience;
        while Instant::now() < until && wanted() {
            if has_ended() {
                return Ok(());
            }
            thread::sleep(LOOK);
        }
        if !wanted() {
            break;
        }
    }
    Err(Error::StillRuns { id: container.id.clone(), pid: init.pid })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_told_in_the_program_s_words() {
        let options = [OsString::from("-c")];
        let run = |script| run("sh", &options, &[script], Duration::from_secs(20), &|| true);
        assert!(run("exit 0").is_ok());
        let error = run("echo no such container >&2; exit 125").unwrap_err();
        assert!(matches!(&error, Error::Program { source: crate::sys::process::Error::Failed { .. }, .. }));
        let source = std::error::Error::source(&error).map(ToString::to_string).unwrap();
        assert!(source.ends_with("no such container"), "{source}");
        assert!(error.to_string().starts_with("`sh echo no such container"), "{error}");
    }
}
