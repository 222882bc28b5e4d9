//! The composition root: what the daemon is made of, and its life from the command line to the last request.
//!
//! The order of starting is the order of what must not fail later: options, directory (a live mount is refused before
//! anything else is touched), the parts, the mount, the word to whoever waits. Signals end it the other way round.

mod collect;
mod jobs;
mod log_sink;
mod parts;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded, select, unbounded};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::api::Snapfs;
use crate::cli::{self, Cli, Command, EXIT_FAILURE, EXIT_SUCCESS, EXIT_USAGE, Helper, HelperError, MountArgs};
use crate::config::{self, Options};
use crate::fuse::{self, Session, Target};
use crate::store::Store;
use crate::sys::account;
use crate::sys::daemonize::{self, Outcome, Readiness, Side};
use crate::sys::memory;
use crate::sys::mount::Flags;
use crate::{guard, store};
use parts::Parts;

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
    /// The store.
    #[error(transparent)]
    Store(#[from] store::Error),
    /// The guard.
    #[error(transparent)]
    Guard(#[from] guard::Error),
    /// `gid=`
    #[error("there is no group {0:?}; make it with groupadd, or mount with another gid=")]
    NoGroup(String),
    /// An ordinary user.
    #[error("only root can mount and freeze; run it as root, or with sudo")]
    NotRoot,
    /// `SOURCE_DATE_EPOCH`
    #[error("SOURCE_DATE_EPOCH={0} is no time; give seconds since 1970, or unset it")]
    Epoch(String),
    /// What was asked of the daemon that has the store, or of its tree.
    #[error("{0}")]
    Asked(String),
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

/// An error with its causes, for a person: a cause that the message already tells is not told twice.
pub fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

impl Error {
    /// What mount(8) makes of it.
    pub fn exit_code(&self) -> u8 {
        match self {
            Error::Options(_) | Error::Helper(_) => EXIT_USAGE,
            Error::Mount(_)
            | Error::Store(_)
            | Error::Guard(_)
            | Error::NoGroup(_)
            | Error::NotRoot
            | Error::Epoch(_)
            | Error::Asked(_)
            | Error::Log { .. }
            | Error::Start(_)
            | Error::Background(_)
            | Error::Died => EXIT_FAILURE,
        }
    }
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
        Command::Gc(args) => collect::run(&args),
        Command::Jobs(args) => jobs::run(&args),
        Command::Fsck(args) => check(&args.store),
        Command::Thaw => {
            log_sink::to_stderr(0, cli::logs_to_journal());
            parts::thaw().map(|()| ExitCode::SUCCESS)
        }
    }
}

/// Where snapfs is mounted, each once.
fn mounted() -> Result<Vec<PathBuf>, Error> {
    let mounts = crate::sys::mount::mounts().map_err(Error::Start)?;
    let ours = mounts.into_iter().filter(|mount| mount.fs_type == "fuse.snapfs").map(|mount| mount.point);
    Ok(ours.collect::<std::collections::BTreeSet<PathBuf>>().into_iter().collect())
}

/// `snapfs fsck`: reads only, and may run beside a daemon. Exit code 1 if anything is wrong.
#[allow(clippy::print_stdout, reason = "it is what the command is for")]
fn check(place: &Path) -> Result<ExitCode, Error> {
    let faults = Store::fsck_dir(place)?;
    for fault in &faults {
        println!("{fault}");
    }
    println!("{}: {} faults", place.display(), faults.len());
    Ok(if faults.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(EXIT_FAULTS) })
}

/// What `snapfs fsck` ends with if it found faults.
const EXIT_FAULTS: u8 = 1;

/// Do what `mount.snapfs …` was called for.
pub fn run_helper(helper: Helper) -> Result<ExitCode, Error> {
    if helper.fake {
        return options(&helper.mount).map(|_| EXIT_SUCCESS.into());
    }
    mount(helper.mount)
}

fn options(args: &MountArgs) -> Result<Options, Error> {
    let options = Options::parse(&args.options.join(","), args.sloppy.into())?;
    Ok(Options { source_date_epoch: cli::source_date_epoch().map_err(Error::Epoch)?, ..options })
}

fn flags(options: &Options) -> Flags {
    Flags { read_only: options.read_only, no_exec: options.no_exec }
}

fn mount(args: MountArgs) -> Result<ExitCode, Error> {
    let options = options(&args)?;
    // Without asking the file system: the daemon leaves the directory it was started in.
    let dir = std::path::absolute(&args.dir).map_err(Error::Start)?;
    if options.remount {
        return Ok(fuse::remount(&dir, flags(&options)).map(|()| ExitCode::SUCCESS)?);
    }
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
                let sentence = sentence(error);
                log::error!("{sentence}");
                if let Some(readiness) = readiness {
                    let _ = readiness.failed(&sentence); // a parent that left needs no word
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
    if !account::is_root() {
        return Err(Error::NotRoot);
    }
    memory::keep_little();
    let target = Target::prepare(dir)?;
    let Parts { tree, snapfs } = parts::compose(options, dir)?;

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
    match &unmounted {
        Some(Ok(())) => drain(&signalled, &snapfs),
        Some(Err(_)) => unmount(),
        None => {
            snapfs.cancel_all();
            unmount();
        }
    }
    shut_down(signalled, &snapfs)?;
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

/// After `umount`, jobs that nobody waits for are let end, until a signal says otherwise.
fn drain(signalled: &Receiver<i32>, snapfs: &Snapfs) {
    let ended = |id| snapfs.job(id).is_none_or(|job| job.state().is_terminal());
    while !snapfs.job_ids().into_iter().all(ended) {
        match signalled.recv_timeout(Duration::from_millis(50)) {
            Ok(SIGHUP) | Err(_) => {}
            Ok(signal) => {
                log::info!("signal {signal}: cancelling what still runs");
                return;
            }
        }
    }
}

/// Cancel the jobs and wait for them. One more signal ends the daemon on the spot: what that leaves behind is what a
/// kill would, and the guard thaws.
fn shut_down(signalled: Receiver<i32>, snapfs: &Snapfs) -> Result<(), Error> {
    spawn("impatience", move || {
        if let Some(signal) = signalled.iter().find(|signal| *signal != SIGHUP) {
            log::warn!("signal {signal}: leaving jobs behind");
            std::process::exit(EXIT_USAGE.into());
        }
    })?;
    snapfs.shut_down();
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
