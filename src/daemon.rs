//! The composition root: what the daemon is made of, and its life from the command line to the last request.
//!
//! The order of starting is the order of what must not fail later: options, directory (a live mount is refused before
//! anything else is touched), the parts, the mount, the word to whoever waits. Signals end it the other way round.

mod log_sink;
mod parts;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crossbeam_channel::{RecvTimeoutError, bounded, unbounded};
use sd_notify::NotifyState;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::cli::{self, Cli, Command, EXIT_FAILURE, EXIT_SUCCESS, EXIT_USAGE, Helper, HelperError, MountArgs};
use crate::config::{self, Options};
use crate::fuse::{self, Session, Target};
use crate::store::Store;
use crate::sys::daemonize::{self, Outcome, Readiness, Side};
use crate::sys::mount::Flags;
use crate::{guard, store};
use parts::Parts;

/// How long after a signal open files may keep the daemon, before it ends and they fail with `ENOTCONN`.
const GRACE: Duration = Duration::from_secs(10);

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
    /// `group=`
    #[error("there is no group {0:?}; make it with groupadd, or mount with another group=")]
    NoGroup(String),
    /// `SOURCE_DATE_EPOCH`
    #[error("SOURCE_DATE_EPOCH={0} is no time; give seconds since 1970, or unset it")]
    Epoch(String),
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
            | Error::Store(_)
            | Error::Guard(_)
            | Error::NoGroup(_)
            | Error::Epoch(_)
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
        Command::Gc(args) => collect(&args.store),
        Command::Fsck(args) => check(&args.store),
        Command::Thaw => {
            log_sink::to_stderr(0, cli::logs_to_journal());
            parts::thaw().map(|()| ExitCode::SUCCESS)
        }
    }
}

/// `snapfs gc`: a daemon collects by itself, so this is for a store without one.
#[allow(clippy::print_stdout, reason = "it is what the command is for")]
fn collect(place: &Path) -> Result<ExitCode, Error> {
    let collected = Store::open_dir(place)?.gc()?;
    println!("removed {} blobs, {} bytes", collected.blobs, collected.bytes);
    Ok(ExitCode::SUCCESS)
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
    let options = Options::parse(&args.options.join(","), args.sloppy.into())?;
    Ok(Options { source_date_epoch: cli::source_date_epoch().map_err(Error::Epoch)?, ..options })
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

/// What ends the daemon, or is about to.
enum Event {
    Ended(Result<(), fuse::Error>),
    Signal(i32),
}

/// Mount and serve until the mount is gone, by whatever hand.
fn serve(
    args: &MountArgs,
    options: &Options,
    dir: &Path,
    readiness: Option<&mut Option<Readiness>>,
) -> Result<(), Error> {
    let target = Target::prepare(dir)?;
    let parts = parts::compose(options)?;
    let (events, inbox) = unbounded();

    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP]).map_err(Error::Start)?;
    let sender = events.clone();
    spawn("signals", move || signals.forever().for_each(|signal| drop(sender.send(Event::Signal(signal)))))?;

    let how = fuse::Options { source: args.source.clone(), flags: flags(options) };
    let session = Session::mount(Arc::clone(&parts.tree), &target, &how)?;
    let unmounter = session.unmounter();
    let unmount = || {
        if let Err(error) = unmounter.unmount() {
            log::error!("cannot unmount {}: {error}", target.path().display());
        }
    };
    if let Err(error) = spawn("session", move || drop(events.send(Event::Ended(session.run())))) {
        unmount();
        return Err(error);
    }
    log::info!("serving {}", target.path().display());
    notify(&[NotifyState::Ready]);
    if let Some(readiness) = readiness.and_then(Option::take) {
        if readiness.ready().is_err() {
            log::warn!("whoever asked for the mount has left: unmounting");
            unmount();
        }
    }

    let ended = wait(&inbox, || {
        notify(&[NotifyState::Stopping]);
        parts.snapfs.cancel_all();
        unmount();
    });
    notify(&[NotifyState::Stopping]);
    if ended.is_err() {
        unmount();
    }
    finish(parts, &inbox);
    log::info!("{} is unmounted", target.path().display());
    Ok(ended?)
}

/// Until the session ends, or a signal came and the grace is over, or a second signal came.
fn wait(inbox: &crossbeam_channel::Receiver<Event>, stop: impl Fn()) -> Result<(), fuse::Error> {
    let mut stopping = false;
    loop {
        let event = if stopping { inbox.recv_timeout(GRACE) } else { inbox.recv().map_err(Into::into) };
        match event {
            Ok(Event::Ended(result)) => return result,
            Ok(Event::Signal(SIGHUP)) => log::info!("SIGHUP: there is nothing to reload"),
            Ok(Event::Signal(_)) if stopping => return Ok(()),
            Ok(Event::Signal(signal)) => {
                log::info!("signal {signal}: stopping");
                stopping = true;
                stop();
            }
            Err(RecvTimeoutError::Timeout) => {
                log::warn!("files are still open after {GRACE:?}: they fail from now on");
                return Ok(());
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        }
    }
}

/// Let the jobs end, and let a signal hurry them meanwhile.
fn finish(parts: Parts, inbox: &crossbeam_channel::Receiver<Event>) {
    let Parts { tree, snapfs } = parts;
    drop(tree);
    let (done, is_done) = bounded::<()>(0);
    let (inbox, hurried) = (inbox.clone(), Arc::clone(&snapfs));
    let hurry = spawn("finish", move || {
        loop {
            crossbeam_channel::select! {
                recv(inbox) -> event => match event {
                    Ok(Event::Signal(SIGTERM | SIGINT)) => hurried.cancel_all(),
                    Ok(Event::Signal(_) | Event::Ended(_)) => {}
                    Err(_) => break,
                },
                recv(is_done) -> _ => break,
            }
        }
    });
    snapfs.shut_down();
    drop(done);
    if let Ok(thread) = hurry {
        let _ = thread.join();
    }
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
