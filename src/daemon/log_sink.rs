//! Where the log goes: a terminal, the journal, a file, or syslog.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::Path;

use env_logger::{Builder, Target};
use log::{Level, LevelFilter};

use crate::sys::clock::Clock;

/// A terminal gets time and level; the journal gets a priority in front of the line (sd-daemon(3)) and has the time.
pub(super) fn to_stderr(verbosity: u8, journal: bool) {
    let mut builder = builder(verbosity);
    if journal {
        builder.format(|out, record| writeln!(out, "<{}>{}", priority(record.level()), record.args()));
    } else {
        timed(&mut builder);
    }
    start(&mut builder);
}

/// Lines with time and level at the end of the file, which only root may read.
pub(super) fn to_file(verbosity: u8, path: &Path) -> io::Result<()> {
    let file = File::options().append(true).create(true).mode(0o600).open(path)?;
    let mut builder = builder(verbosity);
    timed(&mut builder);
    start(builder.target(Target::Pipe(Box::new(file))));
    Ok(())
}

/// Datagrams to /dev/log, as syslog(3) sends them; what cannot be sent is lost, for there is nobody to tell.
pub(super) fn to_syslog(verbosity: u8) {
    const DAEMON: u8 = 3 << 3;
    let pid = std::process::id();
    let mut builder = builder(verbosity);
    builder.format(move |out, record| {
        write!(out, "<{}>snapfs[{pid}]: {}", DAEMON | priority(record.level()), record.args())
    });
    start(builder.target(Target::Pipe(Box::new(Syslog::default()))));
}

fn builder(verbosity: u8) -> Builder {
    let (ours, fusers) = match verbosity {
        0 => (LevelFilter::Info, LevelFilter::Warn),
        1 => (LevelFilter::Debug, LevelFilter::Warn),
        _ => (LevelFilter::Trace, LevelFilter::Debug),
    };
    let mut builder = Builder::new();
    builder.filter_level(LevelFilter::Warn).filter_module("snapfs", ours).filter_module("fuser", fusers);
    builder
}

fn timed(builder: &mut Builder) {
    let clock = Clock::system();
    builder.format(move |out, record| writeln!(out, "{} {:5} {}", clock.now(), record.level(), record.args()));
}

fn start(builder: &mut Builder) {
    if builder.try_init().is_ok() {
        // In the background a panic's message would otherwise go to /dev/null.
        std::panic::set_hook(Box::new(|panic| log::error!("{panic}")));
    }
}

fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

/// One write is one datagram: env_logger writes a record at a time.
#[derive(Default)]
struct Syslog(Option<UnixDatagram>);

impl Syslog {
    fn send(&mut self, record: &[u8]) -> io::Result<()> {
        let socket = match self.0.take() {
            Some(socket) => socket,
            None => {
                let socket = UnixDatagram::unbound()?;
                socket.set_nonblocking(true)?; // a full syslog must not stop a request
                socket.connect("/dev/log")?;
                socket
            }
        };
        socket.send(record)?;
        self.0 = Some(socket); // after a failure a new one is made: syslog may have been restarted
        Ok(())
    }
}

impl Write for Syslog {
    fn write(&mut self, record: &[u8]) -> io::Result<usize> {
        let _ = self.send(record);
        Ok(record.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
