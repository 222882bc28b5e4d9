//! CRIU, asked through the container's own runtime: it alone knows which mounts, namespaces and cgroups are its doing.
//!
//! What must hold: when [`Dumper::dump`] returns, however it went, no process of the container is traced any more, no rule
//! of CRIU's is left in its network, and its freezer is as its user left it or under our hold.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::checkpoint::dump::{self, Dump};
use crate::checkpoint::{Error, Options, Tcp};
use crate::criu::explain;
use crate::engine::{Container, Runtime};
use crate::guard::Frozen;
use crate::sys::process::{self, Program};
use crate::sys::tracer;

/// How long a copy of the memory of a running container may take.
const PRE_DUMP: Duration = Duration::from_secs(600);
/// How long a program may take to say its version.
const ASK: Duration = Duration::from_secs(5);
/// How long a killed CRIU may take to let go of the processes.
const LET_GO: Duration = Duration::from_secs(2);
/// How long the runtime may take to end or delete a container.
const END: Duration = Duration::from_secs(10);
/// The oldest CRIU that both runtimes take.
const OLDEST: u32 = 31500;
/// The processes that trace for us are CRIU's.
const CRIU: &str = "criu";

/// The container's runtime, and the CRIU beside it.
#[derive(Debug)]
pub(super) struct Dumper {
    program: Program,
    /// `runc` or `crun`.
    pub(super) runtime: String,
    /// All that `--version` says.
    pub(super) runtime_version: String,
    /// As podman writes it: 40101 for 4.1.1.
    pub(super) criu_version: u32,
    /// What `checkpoint --help` says.
    help: String,
    container: String,
    name: String,
    /// The container's first process.
    init: u32,
}

impl Dumper {
    /// Find runtime and CRIU, and see that they can do what is asked.
    pub(super) fn find(runtime: &Runtime, container: &Container, init: u32) -> Result<Dumper, Error> {
        let criu_version = criu_version()?;
        let found = |source| Error::Program { program: runtime.name.clone(), source };
        let program = Program::find(&runtime.name).map_err(found)?;
        let ask = |words: &[&str]| {
            let output = program.clone().arguments(words).run(ASK).map_err(found)?;
            Ok::<_, Error>(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned())
        };
        let (runtime_version, help) = (ask(&["--version"])?, ask(&["checkpoint", "--help"])?);
        let program = program.arguments(["--root".as_ref(), runtime.root.as_os_str()]);
        Ok(Dumper {
            program,
            runtime: runtime.name.clone(),
            runtime_version,
            criu_version,
            help,
            container: container.id.clone(),
            name: container.name.clone(),
            init,
        })
    }

    /// Refuse what this runtime or this kernel cannot do, before anything happens.
    pub(super) fn check(&self, options: &Options) -> Result<(), Error> {
        self.check_build()?;
        if options.link_remap && !self.can("--link-remap") {
            return Err(Error::Unsupported(format!(
                "this {} cannot pass link-remap on to CRIU; put `link-remap` into /etc/criu/{}.conf instead",
                self.runtime, self.runtime
            )));
        }
        if options.pre_dumps > 0 && !tracks_memory()? {
            let why = "this kernel does not tell which memory changes (CONFIG_MEM_SOFT_DIRTY), so that nothing can be \
                       copied before the freeze; leave pre-dump= out";
            return Err(Error::Unsupported(why.to_owned()));
        }
        Ok(())
    }

    /// Refuse a runtime that was built without CRIU.
    pub(super) fn check_build(&self) -> Result<(), Error> {
        if self.can("--image-path") {
            return Ok(());
        }
        let reason =
            format!("this {} was built without CRIU; install one that says `checkpoint --image-path`", self.runtime);
        Err(Error::Unsupported(reason))
    }

    fn can(&self, option: &str) -> bool {
        self.help.contains(option)
    }

    /// Copy memory while the container runs, as the difference to the copy in `parent`.
    pub(super) fn pre_dump(&self, dump: &Dump, parent: Option<&Dump>) -> Result<(), Error> {
        let program = self.checkpoint(dump, parent).argument("--pre-dump").argument(&self.container);
        self.judge(program.run(PRE_DUMP), dump, &[self.init], None)
    }

    /// Dump the container, which is frozen and stays so, until `until` at the latest.
    pub(super) fn dump(
        &self,
        dump: &Dump,
        parent: Option<&Dump>,
        options: &Options,
        frozen: &Frozen,
        until: Instant,
    ) -> Result<(), Error> {
        let processes = frozen.processes().map_err(|error| Error::Capture(error.into()))?;
        let mut program = self.checkpoint(dump, parent).arguments(["--leave-running", "--file-locks"]);
        let flags = [
            (options.tcp != Tcp::None, "--tcp-established"),
            (options.external_sockets, "--ext-unix-sk"),
            (options.shell_job, "--shell-job"),
            (options.link_remap, "--link-remap"),
        ];
        for (_, flag) in flags.into_iter().filter(|(is_wanted, _)| *is_wanted) {
            program = program.argument(flag);
        }
        // Packets need no lock where there is no connection, and to make one takes longer than the dump of a small process.
        // crun before 1.22 has the option, and takes no value for it.
        if self.can("--network-lock=") && !has_connections(self.init) {
            program = program.argument("--network-lock=skip");
        }
        program = program.argument(&self.container);
        let since = Instant::now();
        let output = program.run(until.saturating_duration_since(since));
        log::debug!("{} checkpoint of {} took {:?}", self.runtime, self.name, since.elapsed());
        self.judge(output, dump, &processes, Some(frozen))
    }

    fn checkpoint(&self, dump: &Dump, parent: Option<&Dump>) -> Program {
        let program = self.program.clone().argument("checkpoint");
        let mut program = program.arguments(["--image-path".as_ref(), dump.images.as_os_str()]);
        program = program.arguments(["--work-path".as_ref(), dump.work.as_os_str()]);
        // CRIU wants it relative to the images; rooms of one lease lie side by side.
        if let Some(name) = parent.and_then(|parent| parent.images.file_name()) {
            program = program.arguments(["--parent-path".as_ref(), Path::new("..").join(name).as_os_str()]);
        }
        program.variable(tracer::MARK, std::process::id().to_string())
    }

    fn judge(
        &self,
        output: Result<process::Output, process::Error>,
        dump: &Dump,
        processes: &[u32],
        frozen: Option<&Frozen>,
    ) -> Result<(), Error> {
        let said = match output.and_then(process::Output::check) {
            Ok(_) if frozen.is_none() || dump::is_whole(&dump.images) => None,
            Ok(_) => Some(format!("{} says that it succeeded, and left no images", self.runtime)),
            Err(error) => Some(error.to_string()),
        };
        let Some(said) = said else {
            // CRIU freezes again what was frozen before it lets go.
            return match frozen.map(Frozen::still_frozen).transpose().map_err(|error| Error::Capture(error.into()))? {
                Some(false) => Err(self.moved(frozen)),
                Some(true) | None => Ok(()),
            };
        };
        self.release(processes);
        self.repair(frozen);
        let log = String::from_utf8_lossy(&dump.log()).into_owned();
        let why = explain(&log).unwrap_or_else(|| format!("{said}, and CRIU's log names no error"));
        let is_full = log.contains("No space left on device") || log.contains("Disk quota exceeded");
        let cause = is_full.then(|| std::io::Error::from(std::io::ErrorKind::StorageFull));
        Err(Error::Dump { name: self.name.clone(), why, cause })
    }

    fn moved(&self, frozen: Option<&Frozen>) -> Error {
        self.repair(frozen);
        Error::Moved { name: self.name.clone() }
    }

    /// CRIU lets a frozen container's processes out of the freezer for what they must do for it. If it died then, the
    /// freeze of the container's user is over; ours we end ourselves.
    fn repair(&self, frozen: Option<&Frozen>) {
        if let Some(frozen) = frozen
            && let Err(error) = frozen.restore_pause()
        {
            log::error!("{} was paused by its user and is not any more: {error}", self.name);
        }
    }

    /// Have nobody trace the processes any more. The runtime was killed if it was late, but crun's CRIU is in a session of
    /// its own. And take CRIU's rules out of the container's network: it had no time to.
    fn release(&self, processes: &[u32]) {
        let until = Instant::now() + LET_GO;
        while Instant::now() < until {
            let mut tracers = processes.iter().filter_map(|pid| tracer::tracer(*pid));
            if !tracers.any(|pid| tracer::kill_named(pid, CRIU)) {
                break;
            }
            thread::sleep(Duration::from_millis(2));
        }
        if !shares_our_network(self.init) {
            unlock_network(self.init);
        }
    }

    /// End the container for good, as its engine would: it is frozen, and dies when it is let run.
    pub(super) fn end(&self, frozen: Frozen, delete: bool) -> Result<(), Error> {
        let failed = |source| Error::NotEnded { name: self.name.clone(), source };
        let run = |words: &[&str]| self.program.clone().arguments(words).run(END).and_then(process::Output::check);
        run(&["kill", &self.container, "KILL"]).map_err(failed)?;
        if frozen.was_paused() {
            // The runtime thaws what it paused.
            run(&["resume", &self.container]).map_err(failed)?;
        }
        // The container is gone with the thaw; that its cgroup cannot be looked at any more is no error.
        drop(frozen);
        if delete {
            run(&["delete", "--force", &self.container]).map_err(failed)?;
        }
        Ok(())
    }
}

fn shares_our_network(pid: u32) -> bool {
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
    namespace(&pid.to_string()).is_none_or(|theirs| Some(theirs) == namespace("self"))
}

/// Whatever a CRIU left that was killed: its chain in iptables and ip6tables, or its tables of nftables.
fn unlock_network(pid: u32) {
    let Ok(enter) = Program::find("nsenter") else { return };
    let enter = enter.argument(format!("--net=/proc/{pid}/ns/net"));
    // Each fails where there is nothing to do, or no such program.
    for tool in ["iptables", "ip6tables"] {
        let listed = enter.clone().arguments([tool, "-w", "2", "-S"]).run(ASK).map(|output| output.stdout);
        if !listed.is_ok_and(|rules| String::from_utf8_lossy(&rules).contains("-N CRIU")) {
            continue;
        }
        for words in
            [&["-D", "INPUT", "-j", "CRIU"][..], &["-D", "OUTPUT", "-j", "CRIU"], &["-F", "CRIU"], &["-X", "CRIU"]]
        {
            let _ = enter.clone().arguments([tool, "-w", "2"]).arguments(words).run(ASK);
        }
        log::warn!("removed the network lock that a killed CRIU left in the network of process {pid}");
    }
    let tables = enter.clone().arguments(["nft", "list", "tables"]).run(ASK).map(|output| output.stdout);
    let tables = tables.unwrap_or_default();
    for line in String::from_utf8_lossy(&tables).lines() {
        if let ["table", family, table] = line.split_whitespace().collect::<Vec<_>>()[..]
            && table.starts_with("CRIU-")
        {
            let _ = enter.clone().arguments(["nft", "delete", "table", family, table]).run(ASK);
        }
    }
}

/// Whether a TCP connection is open, or being opened, in the process's network.
pub(super) fn has_connections(pid: u32) -> bool {
    const CLOSED: &str = "07";
    const LISTENS: &str = "0A";
    ["tcp", "tcp6"].iter().any(|file| {
        let Ok(text) = fs::read_to_string(format!("/proc/{pid}/net/{file}")) else { return true };
        let states = text.lines().skip(1).filter_map(|line| line.split_whitespace().nth(3));
        states.into_iter().any(|state| state != CLOSED && state != LISTENS)
    })
}

/// CRIU's version as a number: 40101 for 4.1.1.
pub(super) fn criu_version() -> Result<u32, Error> {
    let failed = |source| Error::Program { program: CRIU.to_owned(), source };
    let output = Program::find(CRIU).map_err(failed)?.argument("--version").run(ASK).and_then(|output| output.check());
    let text = String::from_utf8_lossy(&output.map_err(failed)?.stdout).into_owned();
    match parse_version(&text) {
        Some(version) if version >= OLDEST => Ok(version),
        _ => Err(Error::OldCriu { found: text.lines().next().unwrap_or_default().to_owned() }),
    }
}

fn parse_version(text: &str) -> Option<u32> {
    let version = text.lines().find_map(|line| line.strip_prefix("Version:"))?.trim();
    let mut parts = version.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse::<u32>().ok());
    let (major, minor) = (parts.next()??, parts.next()??);
    Some(major * 10_000 + minor * 100 + parts.next().flatten().unwrap_or(0))
}

/// Whether the kernel tells which pages were written to.
fn tracks_memory() -> Result<bool, Error> {
    let failed = |source| Error::Program { program: CRIU.to_owned(), source };
    let criu = Program::find(CRIU).map_err(failed)?.arguments(["check", "--feature", "mem_dirty_track"]);
    Ok(criu.run(ASK).map_err(failed)?.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_numbers_as_podman_writes_them() {
        assert_eq!(parse_version("Version: 4.1.1\nGitID: v4.1.1\n"), Some(40101));
        assert_eq!(parse_version("Version: 3.17\n"), Some(31700));
        assert_eq!(parse_version("Version: 4.0.dev-3\n"), Some(40000));
        assert_eq!(parse_version("criu: command not found"), None);
    }
}
