//! The composition root: what the daemon is made of, and its life from the command line to the last request.
//!
//! The order of starting is the order of what must not fail later: options, directory (a live mount is refused before
//! anything else is touched), the parts, the mount, the word to whoever waits. Signals end it the other way round.

mod log_sink;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select, unbounded};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::{self, Cli, Command, EXIT_FAILURE, EXIT_SUCCESS, EXIT_USAGE, Helper, HelperError, MountArgs};
use crate::config::{self, Options};
use crate::fuse::{self, Session, Target};
use crate::sys::daemonize::{self, Outcome, Readiness, Side};
use crate::sys::mount::Flags;
use crate::tree::Tree;

/// How long the daemon serves open files after its last job, when a signal ends it; then they fail with `ENOTCONN`.
const GRACE: Duration = Duration::from_secs(1);

/// The daemon could not be started, or ended badly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The mount options.
    #[error(transparent)]
    Options(#[from] config::Error),
    /// The mount helper's arguments.
    #[error(transparent)]
    Helper(#[from] HelperError),
    /// The mount itself.
    #[error(transparent)]
    Mount(#[from] fuse::Error),
    /// The parts.
    #[error("cannot start: {0}")]
    Compose(#[source] io::Error),
    /// The log.
    #[error("cannot log to {}: {source}; choose another file with log=", path.display())]
    Log {
        /// Where to.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A thread, a pipe, or a process.
    #[error("cannot start the daemon: {0}; try `snapfs mount --foreground`")]
    Start(#[source] io::Error),
    /// The one in the background said so.
    #[error("{0}")]
    Background(String),
    /// The one in the background said nothing.
    #[error("the daemon died before it was ready; see its log, or try `snapfs mount --foreground`")]
    Died,
}

impl Error {
    /// What mount(8) makes of it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Options(_) | Error::Helper(_) => EXIT_USAGE,
            Error::Mount(_)
            | Error::Compose(_)
            | Error::Log { .. }
            | Error::Start(_)
            | Error::Background(_)
            | Error::Died => EXIT_FAILURE,
        }
    }
}

/// What serves a mount. The lifecycle knows no more of it than this.
pub struct Parts {
    /// The tree.
    pub tree: Arc<Tree>,
    /// Ask all jobs to stop. Returns at once; called from another thread, maybe more than once.
    pub cancel: Arc<dyn Fn() + Send + Sync>,
    /// Wait for all jobs to end, then close the store.
    pub finish: Box<dyn FnOnce()>,
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Parts").finish_non_exhaustive()
    }
}

/// Make the parts. Called with one thread and without `/dev/fuse` open: the guard is forked first, then all else.
fn compose(_options: &Options) -> Result<Parts, Error> {
    let tree = Arc::new(Tree::demo().map_err(Error::Compose)?);
    Ok(Parts { tree, cancel: Arc::new(|| ()), finish: Box::new(|| ()) })
}

/// Do what `snapfs …` was called for.
pub fn run(cli: Cli) -> Result<ExitCode, Error> {
    match cli.command {
        Command::Mount(args) => mount(args),
        Command::Version => {
            #[allow(clippy::print_stdout, reason = "it is what the command is for")]
            {
                println!("snapfs {}", env!("CARGO_PKG_VERSION"));
            }
            Ok(ExitCode::SUCCESS)
        }
        // To be wired to store and guard by whoever merges them.
        Command::Gc(_) | Command::Fsck(_) | Command::Thaw => Err(Error::Start(io::ErrorKind::Unsupported.into())),
    }
}

/// Do what `mount.snapfs …` was called for.
pub fn run_helper(helper: Helper) -> Result<ExitCode, Error> {
    let options = options(&helper.mount)?;
    if helper.fake {
        return Ok(EXIT_SUCCESS.into());
    }
    if options.remount {
        let dir = absolute(&helper.mount.dir)?;
        fuse::remount(&dir, flags(&options))?;
        return Ok(EXIT_SUCCESS.into());
    }
    mount(helper.mount)
}

fn options(args: &MountArgs) -> Result<Options, Error> {
    Ok(Options::parse(&args.options.join(","), args.sloppy.into())?)
}

fn flags(options: &Options) -> Flags {
    Flags { read_only: options.read_only, no_exec: options.no_exec }
}

/// Without asking the file system: the daemon leaves the directory it was started in.
fn absolute(dir: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(dir).map_err(Error::Start)
}

fn mount(args: MountArgs) -> Result<ExitCode, Error> {
    let options = options(&args)?;
    let dir = absolute(&args.dir)?;
    if args.foreground {
        log_sink::to_stderr(args.verbose, cli::logs_to_journal());
        return serve(&args, &options, &dir, None).map(|()| ExitCode::SUCCESS);
    }
    match daemonize::daemonize().map_err(Error::Start)? {
        Side::Parent(Outcome::Ready) => Ok(ExitCode::SUCCESS),
        Side::Parent(Outcome::Failed(sentence)) => Err(Error::Background(sentence)),
        Side::Parent(Outcome::Died) => Err(Error::Died),
        Side::Daemon(readiness) => {
            let mut readiness = Some(readiness);
            let served = in_background(&args, &options, &dir, &mut readiness);
            if let Err(error) = &served {
                log::error!("{error}");
                if let Some(readiness) = readiness {
                    let _ = readiness.failed(&error.to_string()); // a parent that left needs no word
                }
            }
            // Nobody reads a code or a sentence of a daemon; both were given above.
            Ok(served.map_or(ExitCode::from(EXIT_FAILURE), |()| ExitCode::SUCCESS))
        }
    }
}

fn in_background(
    args: &MountArgs,
    options: &Options,
    dir: &Path,
    readiness: &mut Option<Readiness>,
) -> Result<(), Error> {
    match &options.log {
        Some(path) => {
            log_sink::to_file(args.verbose, path).map_err(|source| Error::Log { path: path.clone(), source })?
        }
        None => log_sink::to_syslog(args.verbose),
    }
    serve(args, options, dir, Some(readiness))
}

/// Mount and serve until the mount is gone, by whatever hand.
fn serve(
    args: &MountArgs,
    options: &Options,
    dir: &Path,
    readiness: Option<&mut Option<Readiness>>,
) -> Result<(), Error> {
    let target = Target::prepare(dir)?;
    let Parts { tree, cancel, finish } = compose(options)?;

    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::Start)?;
    let (sender, signalled) = unbounded();
    spawn("signals", move || {
        for signal in signals.forever() {
            if sender.send(signal).is_err() {
                return;
            }
        }
    })?;

    let how = fuse::Options { source: args.source.clone(), flags: flags(options) };
    let session = Session::mount(tree, &target, &how)?;
    let unmounter = session.unmounter();
    let unmount = || {
        if let Err(error) = unmounter.unmount() {
            log::error!("cannot unmount {}: {error}", target.path().display());
        }
    };
    let (sender, ended) = bounded(1);
    if let Err(error) = spawn("session", move || drop(sender.send(session.run()))) {
        unmount();
        return Err(error);
    }
    log::info!("serving {}", target.path().display());
    notify(&[NotifyState::Ready]);
    if readiness.and_then(Option::take).is_some_and(|readiness| readiness.ready().is_err()) {
        log::warn!("whoever asked for the mount has left: unmounting");
        unmount();
    }

    let unmounted = until_stopped(&signalled, &ended);
    notify(&[NotifyState::Stopping]);
    if unmounted.is_none() {
        cancel();
    }
    if !matches!(unmounted, Some(Ok(()))) {
        unmount();
    }
    let patience = if unmounted.is_none() { Patience::Spent } else { Patience::Left };
    attend(&signalled, cancel, patience, finish)?;
    // What waited for a job has its answer now, and closes its file. Others, a shell's working directory for one, are
    // not waited for.
    let result = unmounted.or_else(|| ended.recv_timeout(GRACE).ok());
    log::info!("{} is unmounted{}", target.path().display(), if result.is_some() { "" } else { "; files were open" });
    Ok(result.unwrap_or(Ok(()))?)
}

/// The session's result, or `None` for a signal to stop.
fn until_stopped(signalled: &Receiver<i32>, ended: &Receiver<Served>) -> Option<Served> {
    loop {
        select! {
            recv(ended) -> result => return Some(result.unwrap_or(Ok(()))),
            recv(signalled) -> signal => match signal {
                Ok(SIGHUP) => log::info!("SIGHUP: there is nothing to reload"),
                Ok(signal) => {
                    log::info!("signal {signal}: stopping");
                    return None;
                }
                Err(_) => return ended.recv().ok(),
            },
        }
    }
}

/// How a session ended.
type Served = Result<(), fuse::Error>;

/// Whether the jobs were left to end by themselves so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Patience {
    Left,
    Spent,
}

/// Run `finish`. A signal meanwhile cancels the jobs, one more ends the daemon on the spot: what that leaves behind is
/// what a kill would, and the guard thaws.
fn attend(
    signalled: &Receiver<i32>,
    cancel: Arc<dyn Fn() + Send + Sync>,
    mut patience: Patience,
    finish: Box<dyn FnOnce()>,
) -> Result<(), Error> {
    let (done, is_done) = bounded::<()>(0);
    let signalled = signalled.clone();
    let thread = spawn("finish", move || {
        loop {
            select! {
                recv(signalled) -> signal => match (signal, patience) {
                    (Ok(SIGHUP), _) => {}
                    (Ok(_), Patience::Left) => {
                        cancel();
                        patience = Patience::Spent;
                    }
                    (Ok(signal), Patience::Spent) => {
                        log::warn!("signal {signal}: leaving jobs behind");
                        std::process::exit(EXIT_USAGE.into());
                    }
                    (Err(_), _) => return,
                },
                recv(is_done) -> _ => return,
            }
        }
    })?;
    finish();
    drop(done);
    let _ = thread.join();
    Ok(())
}

fn spawn(name: &str, body: impl FnOnce() + Send + 'static) -> Result<thread::JoinHandle<()>, Error> {
    thread::Builder::new().name(name.into()).spawn(body).map_err(Error::Start)
}

/// sd_notify(3); nothing where no systemd listens.
fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        log::warn!("cannot notify systemd: {error}");
    }
}
