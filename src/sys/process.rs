//! Other processes: what `/proc` says about one, and children that this one starts.

use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal};

pub use crate::sys::procfs::{Membership, Origin, has_interrupting_signal, is_dying, is_told_to_end, start_time};

/// Where programs are looked for, and the PATH that they get.
const SEARCH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// How much a child may write to either of its outputs, unless told otherwise.
const OUTPUT: usize = 1024 * 1024;
/// How long the outputs are read after the child's end, where a process that it left behind still holds them.
const GRACE: Duration = Duration::from_millis(100);
/// How long a child runs between two looks at whether it is still wanted.
const LOOK: Duration = Duration::from_millis(200);
/// How long a killed child may take to end before it is left to a thread of its own.
const DEATH: Duration = Duration::from_secs(1);
/// The longest part of a child's last line that goes into a message, in characters.
const LINE: usize = 400;

/// Why a process could not be looked at, or a child not be run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no such process or thread any more.
    #[error("process {pid} has ended")]
    Gone {
        /// The process's, or thread's, number.
        pid: u32,
    },
    /// A file of `/proc` could not be read, mostly for want of the privilege to.
    #[error("cannot read {file} of process {pid} in /proc: snapfs must run as root, with procfs mounted there")]
    Read {
        /// The process's, or thread's, number.
        pid: u32,
        /// The file's name.
        file: &'static str,
        /// The cause.
        source: io::Error,
    },
    /// A file of `/proc` does not have the form that proc(5) gives it.
    #[error("{file} of process {pid} in /proc does not have the form described in proc(5)")]
    Malformed {
        /// The process's, or thread's, number.
        pid: u32,
        /// The file's name.
        file: &'static str,
    },
    /// The program is not installed.
    #[error("{program} was not found, or is not executable, in {SEARCH}: install it")]
    Missing {
        /// The program's name or path.
        program: String,
    },
    /// The program could not be started.
    #[error("cannot start {program}")]
    Start {
        /// The program's name or path.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// The program runs, or ran, but could not be listened to; it was killed.
    #[error("cannot read the output of {program}")]
    Listen {
        /// The program's name or path.
        program: String,
        /// The cause.
        source: io::Error,
    },
    /// The program did not end in time; it and its process group were killed.
    #[error("{program} did not end within {} s and was killed; its last line was: {line}", after.as_secs_f32())]
    TimedOut {
        /// The program's name or path.
        program: String,
        /// The time that it was given.
        after: Duration,
        /// The last line of its standard error.
        line: String,
    },
    /// The program is no longer wanted; it and its process group were killed.
    #[error("{program} was killed because the job was cancelled")]
    Unwanted {
        /// The program's name or path.
        program: String,
    },
    /// The program wrote more than it may; it and its process group were killed.
    #[error("{program} wrote more than {limit} bytes and was killed")]
    TooMuchOutput {
        /// The program's name or path.
        program: String,
        /// The limit, in bytes.
        limit: usize,
    },
    /// The program ended, and said that it failed.
    #[error("{program} failed ({status}): {line}")]
    Failed {
        /// The program's name or path.
        program: String,
        /// How it ended.
        status: ExitStatus,
        /// The last line of its standard error.
        line: String,
    },
}

/// A program of the system, found, and the arguments that it will get.
///
/// It runs in `/`, with nothing on its standard input, with `PATH`, `LANG` and `HOME` and what is given here for its
/// environment, in a process group of its own, with no other open file, and not for ever.
#[derive(Debug, Clone)]
pub struct Program {
    name: String,
    path: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    most_output: usize,
    is_silent: bool,
}

/// What a program left behind.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    program: String,
    /// How it ended.
    pub status: ExitStatus,
    /// What it wrote on its standard output.
    pub stdout: Vec<u8>,
    /// What it wrote on its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// The output of a program that succeeded.
    ///
    /// # Errors
    /// [`Error::Failed`] if it did not end with the status 0.
    pub fn check(self) -> Result<Output, Error> {
        if self.status.success() {
            return Ok(self);
        }
        Err(Error::Failed { line: last_line(&self.stderr), program: self.program, status: self.status })
    }
}

impl Program {
    /// The program `name`: a name, looked for in the system's directories, or an absolute path.
    ///
    /// # Errors
    /// [`Error::Missing`].
    pub fn find(name: &str) -> Result<Program, Error> {
        let is_program =
            |path: &PathBuf| path.is_file() && rustix::fs::access(path, rustix::fs::Access::EXEC_OK).is_ok();
        let mut candidates = if name.starts_with('/') {
            vec![PathBuf::from(name)]
        } else if name.contains('/') || name.is_empty() {
            vec![]
        } else {
            SEARCH.split(':').map(|directory| Path::new(directory).join(name)).collect()
        };
        candidates.retain(is_program);
        let path = candidates.into_iter().next().ok_or_else(|| Error::Missing { program: name.to_owned() })?;
        Ok(Program {
            name: name.to_owned(),
            path,
            arguments: vec![],
            environment: vec![],
            most_output: OUTPUT,
            is_silent: false,
        })
    }

    /// One more argument.
    pub fn argument(mut self, argument: impl AsRef<OsStr>) -> Program {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// More arguments.
    pub fn arguments<A: AsRef<OsStr>>(mut self, arguments: impl IntoIterator<Item = A>) -> Program {
        self.arguments.extend(arguments.into_iter().map(|argument| argument.as_ref().to_owned()));
        self
    }

    /// One more variable of the environment, instead of the default if it has that name.
    pub fn variable(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Program {
        self.environment.push((name.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// The program may write `bytes` to each of its outputs, instead of 1 MiB.
    pub fn most_output(mut self, bytes: usize) -> Program {
        self.most_output = bytes;
        self
    }

    /// Its outputs are `/dev/null`: what it leaves running behind must not hold pipes that nobody reads.
    pub fn silent(mut self) -> Program {
        self.is_silent = true;
        self
    }

    /// Run it to its end, whatever its status is.
    ///
    /// # Errors
    /// [`Error::Start`], [`Error::TimedOut`] after `limit`, [`Error::TooMuchOutput`] and [`Error::Listen`].
    pub fn run(&self, limit: Duration) -> Result<Output, Error> {
        self.run_while(limit, &|| true)
    }

    /// The same, as long as `wanted` says so: it is asked several times a second.
    ///
    /// # Errors
    /// Those of [`run`](Self::run), and [`Error::Unwanted`].
    pub fn run_while(&self, limit: Duration, wanted: &dyn Fn() -> bool) -> Result<Output, Error> {
        let deadline = Instant::now() + limit;
        let mut child = self.start().map_err(|source| Error::Start { program: self.name.clone(), source })?;
        let mut outputs = [Vec::new(), Vec::new()];
        let ended = self.listen(&mut child, &mut outputs, deadline, wanted);
        let status = match ended {
            Ok(true) => child.wait(),
            Ok(false) => {
                end(child);
                let line = last_line(&outputs[1]);
                return Err(Error::TimedOut { program: self.name.clone(), after: limit, line });
            }
            Err(error) => {
                end(child);
                return Err(error);
            }
        };
        let [stdout, stderr] = outputs;
        let status = status.map_err(|source| Error::Listen { program: self.name.clone(), source })?;
        Ok(Output { program: self.name.clone(), status, stdout, stderr })
    }

    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    #[expect(unsafe_code, reason = "pre_exec is unsafe")]
    fn start(&self) -> io::Result<Child> {
        let home = nix::unistd::User::from_uid(nix::unistd::geteuid()).ok().flatten().map(|user| user.dir);
        let mut command = Command::new(&self.path);
        command.args(&self.arguments);
        command.env_clear().env("PATH", SEARCH).env("LANG", "C.UTF-8");
        command.env("HOME", home.unwrap_or_else(|| PathBuf::from("/")));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let output = || if self.is_silent { Stdio::null() } else { Stdio::piped() };
        command.current_dir("/").stdin(Stdio::null()).stdout(output()).stderr(output()).process_group(0);
        // SAFETY: between fork and exec the closure makes two system calls; it allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(|| {
                libc::umask(0o022);
                // Descriptors of ours are closed by exec already; those that a library opened may not be.
                if libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_int) != 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok(())
            });
        }
        command.spawn()
    }

    /// Read both outputs until the child has ended and they are closed; false if it has not ended at the deadline.
    fn listen(
        &self,
        child: &mut Child,
        outputs: &mut [Vec<u8>; 2],
        deadline: Instant,
        wanted: &dyn Fn() -> bool,
    ) -> Result<bool, Error> {
        let failed = |source: io::Error| Error::Listen { program: self.name.clone(), source };
        let pidfd = pidfd_of(child.id()).map_err(failed)?;
        let mut pipes = [child.stdout.take().map(OwnedFd::from), child.stderr.take().map(OwnedFd::from)];
        let mut ended_at: Option<Instant> = None;
        loop {
            if ended_at.is_some() && pipes.iter().all(Option::is_none) {
                return Ok(true);
            }
            let until = ended_at.map_or(deadline, |ended| deadline.min(ended + GRACE));
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(ended_at.is_some());
            }
            if ended_at.is_none() && !wanted() {
                return Err(Error::Unwanted { program: self.name.clone() });
            }
            let mut files: Vec<PollFd<'_>> =
                pipes.iter().flatten().map(|pipe| PollFd::new(pipe, PollFlags::IN)).collect();
            if ended_at.is_none() {
                files.push(PollFd::new(&pidfd, PollFlags::IN));
            }
            poll(&mut files, left.min(LOOK)).map_err(failed)?;
            let ready: Vec<bool> = files.iter().map(|file| !file.revents().is_empty()).collect();
            let mut ready = ready.into_iter();
            for (pipe, output) in pipes.iter_mut().zip(outputs.iter_mut()) {
                let Some(file) = pipe else { continue };
                if !ready.next().unwrap_or(false) {
                    continue;
                }
                let mut chunk = [0; 16 * 1024];
                match rustix::io::retry_on_intr(|| rustix::io::read(&*file, &mut chunk)) {
                    Ok(0) => *pipe = None,
                    Ok(read) => output.extend_from_slice(&chunk[..read]),
                    Err(errno) => return Err(failed(errno.into())),
                }
                if output.len() > self.most_output {
                    return Err(Error::TooMuchOutput { program: self.name.clone(), limit: self.most_output });
                }
            }
            if ended_at.is_none() && ready.next().unwrap_or(false) {
                ended_at = Some(Instant::now());
            }
        }
    }
}

/// Kill a child's whole process group, and leave no zombie.
fn end(mut child: Child) {
    if let Some(group) = number(child.id()) {
        // It can only be missing if it has ended.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let until = Instant::now() + DEATH;
    while let Ok(None) = child.try_wait() {
        if Instant::now() >= until {
            thread::spawn(move || child.wait());
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn number(pid: u32) -> Option<Pid> {
    i32::try_from(pid).ok().and_then(Pid::from_raw)
}

fn pidfd_of(pid: u32) -> io::Result<OwnedFd> {
    let pid = number(pid).ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

fn poll(files: &mut [PollFd<'_>], timeout: Duration) -> io::Result<()> {
    let timeout = Timespec {
        tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    match rustix::event::poll(files, Some(&timeout)) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// The last line that says something, shortened, without control characters: it goes into a message.
fn last_line(text: &[u8]) -> String {
    let line = text.split(|&byte| byte == b'\n').rfind(|line| !line.trim_ascii().is_empty());
    line.map_or_else(|| "it said nothing".to_owned(), printable)
}

pub(in crate::sys) fn printable(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text.trim_ascii());
    text.chars().take(LINE).map(|letter| if letter.is_control() { ' ' } else { letter }).collect()
}

/// A copy of this program, or another, that runs beside this process under a name of its own.
#[derive(Debug)]
pub struct Companion {
    child: Child,
}

/// A process that a [`Companion`] was started as, for whoever does not wait for it.
#[derive(Debug)]
pub struct Pidfd(OwnedFd);

impl Companion {
    /// Start `program` with `name` for its zeroth argument and `argument` for its only other one. `stdin` and `stdout`
    /// become its first two files; its standard error is discarded.
    ///
    /// # Errors
    /// [`Error::Start`].
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    pub fn start(
        program: &Path,
        name: &str,
        argument: &str,
        stdin: OwnedFd,
        stdout: OwnedFd,
    ) -> Result<Companion, Error> {
        let mut command = Command::new(program);
        command.arg0(name).arg(argument).env_clear().current_dir("/");
        command.stdin(stdin).stdout(stdout).stderr(Stdio::null());
        let start = |source| Error::Start { program: program.display().to_string(), source };
        Ok(Companion { child: command.spawn().map_err(start)? })
    }

    /// Its process number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// A handle on the process.
    ///
    /// # Errors
    /// What pidfd_open(2) answers.
    pub fn pidfd(&self) -> io::Result<Pidfd> {
        pidfd_of(self.id()).map(Pidfd)
    }

    /// Wait until it has ended.
    ///
    /// # Errors
    /// What waitpid(2) answers.
    pub fn wait(mut self) -> io::Result<ExitStatus> {
        self.child.wait()
    }
}

impl Pidfd {
    /// A handle on this process, to be handed to a companion.
    ///
    /// # Errors
    /// What pidfd_open(2) answers.
    pub fn own() -> io::Result<Pidfd> {
        pidfd_of(std::process::id()).map(Pidfd)
    }

    /// Kill the process.
    ///
    /// # Errors
    /// What pidfd_send_signal(2) answers: it has ended and was waited for.
    pub fn kill(&self) -> io::Result<()> {
        Ok(rustix::process::pidfd_send_signal(&self.0, Signal::KILL)?)
    }
}

impl AsFd for Pidfd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl From<Pidfd> for OwnedFd {
    fn from(pidfd: Pidfd) -> OwnedFd {
        pidfd.0
    }
}

/// Make this process, which [`Companion::start`] started, independent of the one that did: a session of its own, deaf to
/// the signals that ask to end, `/` for its directory, `name` for its name, no open file but the two that were handed
/// over, which are returned; and, where the kernel permits, locked in memory, the last to be killed for want of it, and
/// the first to run when there is something to do: on a loaded machine others wait for the processor for 200 ms and more.
///
/// To be called before the program opens anything and starts a thread.
///
/// # Errors
/// What fcntl(2), close_range(2) and chdir(2) answer.
#[expect(unsafe_code, reason = "signal, close_range and taking over descriptors are unsafe")]
pub fn stand_alone(name: &CStr) -> io::Result<[OwnedFd; 2]> {
    // It fails for the leader of a process group only, which a companion is not.
    let _ = rustix::process::setsid();
    for signal in
        [libc::SIGINT, libc::SIGTERM, libc::SIGHUP, libc::SIGQUIT, libc::SIGPIPE, libc::SIGUSR1, libc::SIGUSR2]
    {
        // SAFETY: SIG_IGN runs no code of ours.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
    rustix::process::chdir("/")?;
    // SAFETY: nothing was opened yet, so that no value in this process owns a descriptor from 3 on.
    if unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let handed = [io::stdin().as_fd().try_clone_to_owned()?, io::stdout().as_fd().try_clone_to_owned()?];
    let null = std::fs::File::options().read(true).write(true).open("/dev/null")?;
    for number in [0, 1] {
        // SAFETY: the two numbers stay open, and nothing but the standard library's handles names them.
        if unsafe { libc::dup2(null.as_raw_fd(), number) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    // For want of any of these the process does its work all the same, unless memory is short.
    let _ = rustix::thread::set_name(name);
    let _ = std::fs::write("/proc/self/oom_score_adj", "-1000");
    let first = libc::sched_param { sched_priority: 1 };
    // SAFETY: the call reads the structure, which outlives it.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const first) } != 0 {
        let _ = rustix::process::setpriority_process(None, -20);
    }
    // SAFETY: the call changes no memory's content.
    unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE) };
    Ok(handed)
}

#[cfg(test)]
mod tests;
