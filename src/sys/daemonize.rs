//! Going to the background, and telling the one who waits how it went.

#![allow(unsafe_code)]

use std::fs::{self, File};
use std::io::{self, PipeReader, PipeWriter, Read, Write};

use nix::sys::stat::{Mode, umask};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, chdir, dup2_stderr, dup2_stdin, dup2_stdout, fork, setsid};

/// In which of the two processes [`daemonize`] returned.
#[derive(Debug)]
pub enum Side {
    /// The caller's own; the daemon reported this.
    Parent(Outcome),
    /// The daemon: a session of its own, working directory `/`, umask 022, standard files on `/dev/null`.
    Daemon(Readiness),
}

/// What became of the daemon.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It serves.
    Ready,
    /// It gave up, with this sentence.
    Failed(String),
    /// It ended without a word.
    Died,
}

/// The daemon's word to its parent: given once.
#[derive(Debug)]
pub struct Readiness(PipeWriter);

/// Ends a report; an empty one means success.
const END: u8 = 0;

impl Readiness {
    /// The daemon serves. Fails if the parent is gone: it was told to stop waiting.
    pub fn ready(self) -> io::Result<()> {
        self.send("")
    }

    /// The daemon gives up.
    pub fn failed(self, sentence: &str) -> io::Result<()> {
        self.send(if sentence.is_empty() { "unknown error" } else { sentence })
    }

    fn send(mut self, report: &str) -> io::Result<()> {
        let mut bytes: Vec<u8> = report.bytes().filter(|byte| *byte != END).collect();
        bytes.push(END);
        self.0.write_all(&bytes)
    }
}

/// Read up to [`END`], not to the end of the file: a thread that the kernel keeps would hold the pipe open.
fn outcome(mut reader: PipeReader) -> io::Result<Outcome> {
    let mut report = Vec::new();
    let mut byte = [0];
    loop {
        if reader.read(&mut byte)? == 0 {
            return Ok(Outcome::Died);
        }
        if byte == [END] {
            let text = String::from_utf8_lossy(&report).into_owned();
            return Ok(if text.is_empty() { Outcome::Ready } else { Outcome::Failed(text) });
        }
        report.extend(byte);
    }
}

/// Split into a parent that waits for the daemon's report and a daemon that nothing ties to a terminal.
///
/// Descriptors above 2 are closed first (mount(8) leaks some): call it before the process opens any. Fails if the
/// process has more than one thread, for fork(2) takes only one along.
pub fn daemonize() -> io::Result<Side> {
    if fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the process has threads already"));
    }
    // SAFETY: closes descriptors by number. By contract nothing owns one above 2 yet; the one that read_dir had is closed.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    let (reader, writer) = io::pipe()?;
    // SAFETY: there is one thread, so the child may call anything.
    match unsafe { fork() }? {
        ForkResult::Parent { child } => {
            drop(writer);
            waitpid(child, None)?;
            Ok(Side::Parent(outcome(reader)?))
        }
        ForkResult::Child => {
            drop(reader);
            Ok(Side::Daemon(Readiness(detach(writer)?)))
        }
    }
}

/// In the first child: a new session, and a second child that can never get a controlling terminal.
fn detach(writer: PipeWriter) -> io::Result<PipeWriter> {
    setsid()?;
    // SAFETY: as above, there is one thread.
    if let ForkResult::Parent { .. } = unsafe { fork() }? {
        // SAFETY: ends this process at once; the second child does all that is left.
        unsafe { libc::_exit(0) };
    }
    // Whatever it was started as, `mount.snapfs` for one: ps and pgrep find it under the product's name.
    rustix::thread::set_name(c"snapfs")?;
    chdir("/")?;
    umask(Mode::from_bits_truncate(0o022));
    let null = File::options().read(true).write(true).open("/dev/null")?;
    dup2_stdin(&null)?;
    dup2_stdout(&null)?;
    dup2_stderr(&null)?;
    Ok(writer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(send: impl FnOnce(Readiness)) -> Outcome {
        let (reader, writer) = io::pipe().unwrap();
        let kept = writer.try_clone().unwrap(); // as a stuck thread would
        send(Readiness(writer));
        let outcome = std::thread::spawn(|| outcome(reader).unwrap());
        drop(kept);
        outcome.join().unwrap()
    }

    #[test]
    fn the_three_outcomes() {
        assert_eq!(report(|daemon| daemon.ready().unwrap()), Outcome::Ready);
        assert_eq!(report(|daemon| daemon.failed("no such store").unwrap()), Outcome::Failed("no such store".into()));
        assert_eq!(report(drop), Outcome::Died);
    }

    #[test]
    fn a_parent_that_left_is_noticed() {
        let (reader, writer) = io::pipe().unwrap();
        drop(reader);
        assert_eq!(Readiness(writer).ready().unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
