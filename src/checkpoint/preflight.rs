//! `checkpointable`: what a dump would fail for, told before anything is frozen.
//!
//! [`Seen`] is what `/proc` shows of the container's processes, [`reasons`] what follows from it; that is pure. What is not
//! looked at here is told by CRIU's log when it comes to it.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::OnceLock;
use std::time::Duration;

use serde_json::Value;

use crate::checkpoint::criu::{Dumper, criu_version};
use crate::checkpoint::{Error, running};
use crate::engine::{Container, Engine};
use crate::sys::cgroup::{Cgroups, Freezer};
use crate::sys::process::Program;

/// How long a program may take that tells something of the machine.
const ASK: Duration = Duration::from_secs(5);
/// More processes and files than these of one container are not looked at.
const MOST_PROCESSES: usize = 4096;
const MOST_FILES: usize = 65_536;
/// CRIU's `ghost-limit`: what it copies of a file that has no name any more.
const GHOST: u64 = 1 << 20;
/// Reasons of one kind are told so often.
const MOST_TOLD: usize = 4;
/// The first CRIU that dumps internet sockets on Linux 6.16.
const SOCKETS: u32 = 40200;
/// File systems with a server behind them; CRIU can dump none of them.
const SERVED: [&str; 6] = ["fuse", "nfs", "nfs4", "cifs", "ceph", "9p"];

/// A process, as far as it matters.
#[derive(Debug, Default, Clone)]
struct Process {
    pid: u32,
    name: String,
    /// Its parent or the leader of its session is outside of the container.
    has_outside: bool,
    files: Vec<File>,
}

/// An open file.
#[derive(Debug, Default, Clone)]
struct File {
    number: u32,
    target: String,
    kind: Kind,
    /// Whether its mount is one of the process's.
    is_inside: bool,
    size: u64,
    links: u64,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A regular file, a directory or a FIFO with a name.
    Named,
    Terminal,
    Socket(u64),
    #[default]
    Other,
}

/// All that is known of a container that runs.
#[derive(Debug, Default, Clone)]
struct Seen {
    criu: u32,
    kernel: (u32, u32),
    processes: Vec<Process>,
    /// Internet sockets of its network, and whether each is a connection.
    internet: HashMap<u64, bool>,
    /// Sockets of the host's file system whose peer is no process of the container.
    outside_peers: HashSet<u64>,
    /// Mount points and file systems that the specification does not have.
    mounts: Vec<(String, String)>,
}

/// Why the container could not be checkpointed, each with its remedy; none if nothing is known that stands in the way.
pub(super) fn checkpointable(engine: &dyn Engine, container: &Container) -> Vec<String> {
    let look = || {
        let init = running(container)?;
        let no_runtime = || Error::NoRuntime { name: container.name.clone() };
        Dumper::find(&engine.runtime(container).ok_or_else(no_runtime)?, container, init)?.check_build()?;
        see(container, init)
    };
    match look() {
        Ok(seen) => kernel_lacks().iter().cloned().chain(reasons(&seen)).collect(),
        // With its causes, as last_error would tell it.
        Err(error) => vec![std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source()).fold(
            String::new(),
            |told, cause| match cause.to_string() {
                text if told.is_empty() => text,
                text if told.contains(&text) => told,
                text => format!("{told}: {text}"),
            },
        )],
    }
}

/// What follows from what was seen.
fn reasons(seen: &Seen) -> Vec<String> {
    let mut found: Vec<String> = Vec::new();
    let mut counts: HashMap<&str, usize> = HashMap::new();
    let mut tell = |kind: &'static str, reason: String| {
        let count = counts.entry(kind).or_default();
        *count += 1;
        if *count <= MOST_TOLD {
            found.push(reason);
        }
    };
    for process in &seen.processes {
        let who = format!("{} (process {})", printable(&process.name), process.pid);
        if process.has_outside {
            tell("exec", format!("{who} was started in the container by `exec`: end that session first"));
        }
        for file in &process.files {
            let (number, target) = (file.number, printable(&file.target));
            let is_nameless = file.target.ends_with(" (deleted)");
            match file.kind {
                Kind::Named if !file.is_inside => tell(
                    "outside",
                    format!(
                        "{who} has {target} open as {number}, which is a file of the host: start the container with a pipe \
                         or /dev/null instead"
                    ),
                ),
                Kind::Named if is_nameless && file.links > 0 => tell(
                    "links",
                    format!(
                        "{who} has {target} open as {number}, a deleted name of a file with others: add link-remap"
                    ),
                ),
                Kind::Named if is_nameless && file.size > GHOST => tell(
                    "ghost",
                    format!(
                        "{who} has {target} of {} bytes open as {number}, more than CRIU copies: put `ghost-limit 1G` into \
                         /etc/criu/runc.conf or crun.conf",
                        file.size
                    ),
                ),
                Kind::Terminal if !file.is_inside => tell(
                    "terminal",
                    format!(
                        "{who} has a terminal of the host open as {number}: add shell-job, or start it without one"
                    ),
                ),
                Kind::Socket(inode) => {
                    let connection = seen.internet.get(&inode);
                    if connection.is_some() && seen.kernel >= (6, 16) && seen.criu < SOCKETS {
                        tell(
                            "sockets",
                            format!(
                                "{who} has an internet socket, which CRIU before 4.2 cannot dump on Linux {}.{}: install \
                                 CRIU 4.2 or later",
                                seen.kernel.0, seen.kernel.1
                            ),
                        );
                    } else if connection == Some(&true) {
                        tell("tcp", format!("{who} has an open TCP connection: add tcp-established, or tcp-close"));
                    }
                    if seen.outside_peers.contains(&inode) {
                        tell(
                            "peers",
                            format!(
                                "{who} is connected to a program outside of the container by the socket {number}, such as \
                                 that of dbus or docker: close the connection first"
                            ),
                        );
                    }
                }
                _ if file.target == "anon_inode:[io_uring]" => tell(
                    "io_uring",
                    format!(
                        "{who} uses io_uring, which CRIU does not support: switch that off in the program, or start it with \
                         a seccomp profile that forbids io_uring_setup"
                    ),
                ),
                _ => {}
            }
        }
    }
    for (point, file_system) in &seen.mounts {
        let point = printable(point);
        tell(
            "mounts",
            format!(
                "{point} is a mount of {} made in the container, which CRIU cannot dump: unmount it",
                printable(file_system)
            ),
        );
    }
    found
}

fn printable(text: &str) -> String {
    text.chars().take(200).map(|c| if c.is_control() { '?' } else { c }).collect()
}

fn see(container: &Container, init: u32) -> Result<Seen, Error> {
    let cgroups = Cgroups { v1_freezer: container.cgroup.v1_freezer.clone(), v2: container.cgroup.v2.clone() };
    let frozen = |error| Error::Capture(crate::capture::Error::Freeze(crate::guard::Error::Cgroup(error)));
    let mut pids = Freezer::open(&cgroups, init, &[]).and_then(|freezer| freezer.processes()).map_err(frozen)?;
    pids.sort_unstable();
    pids.truncate(MOST_PROCESSES);
    let inside: HashSet<u32> = pids.iter().copied().collect();
    let mounts = mounts_of(init);
    let ids: HashSet<u64> = mounts.iter().map(|mount| mount.id).collect();
    let mut left = MOST_FILES;
    let processes: Vec<Process> = pids
        .iter()
        .filter_map(|pid| {
            let (name, parent, session) = stat(*pid)?;
            let is_outside = |other: u32| other != 0 && !inside.contains(&other);
            let has_outside = *pid != init && (is_outside(parent) || is_outside(session));
            let files = files_of(*pid, &ids, &mut left);
            Some(Process { pid: *pid, name, has_outside, files })
        })
        .collect();
    let sockets: HashSet<u64> = processes.iter().flat_map(|process| &process.files).filter_map(File::socket).collect();
    let spec: Value = container.read_spec()?.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
    Ok(Seen {
        criu: criu_version()?,
        kernel: kernel(),
        internet: internet(init),
        outside_peers: outside_peers(init, &sockets),
        mounts: served(&mounts, &spec),
        processes,
    })
}

impl File {
    fn socket(&self) -> Option<u64> {
        match self.kind {
            Kind::Socket(inode) => Some(inode),
            _ => None,
        }
    }
}

fn kernel() -> (u32, u32) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut parts = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
}

/// What `criu check` finds missing; asked once, since kernel and CRIU seldom change under a daemon.
fn kernel_lacks() -> &'static [String] {
    static LACKS: OnceLock<Vec<String>> = OnceLock::new();
    LACKS.get_or_init(|| {
        let output = Program::find("criu").and_then(|criu| criu.argument("check").run(ASK));
        let Ok(output) = output else { return Vec::new() };
        if output.status.success() {
            return Vec::new();
        }
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let line = said.lines().rfind(|line| line.contains("Error")).unwrap_or("it does not say what");
        vec![format!(
            "`criu check` fails: {}: install a newer CRIU, or a kernel with CONFIG_CHECKPOINT_RESTORE",
            printable(line)
        )]
    })
}

/// Name, parent and session: the name may hold anything, so that the rest is counted from its end.
fn stat(pid: u32) -> Option<(String, u32, u32)> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse_stat(text: &str) -> Option<(String, u32, u32)> {
    let (head, tail) = text.rsplit_once(')')?;
    let name = head.split_once('(')?.1.to_owned();
    let mut fields = tail.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    Some((name, parent, fields.nth(1)?.parse().ok()?))
}

fn files_of(pid: u32, mounts: &HashSet<u64>, left: &mut usize) -> Vec<File> {
    let mut files = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten() {
        if *left == 0 {
            break;
        }
        *left -= 1;
        let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(target) = fs::read_link(entry.path()) else { continue };
        let target = target.to_string_lossy().into_owned();
        let mut file = File { number, target, is_inside: true, ..File::default() };
        if let Some(inode) = file.target.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']')) {
            file.kind = Kind::Socket(inode.parse().unwrap_or(0));
        } else if file.target.starts_with('/') && !file.target.starts_with("/memfd:") {
            // Looked at through the descriptor: nothing is opened.
            let Ok(metadata) = fs::metadata(entry.path()) else { continue };
            let kind = metadata.file_type();
            let is_terminal = kind.is_char_device() && file.target.starts_with("/dev/pts/");
            if is_terminal {
                file.kind = Kind::Terminal;
            } else if kind.is_file() || kind.is_dir() || kind.is_fifo() {
                file.kind = Kind::Named;
            }
            (file.size, file.links) = (if kind.is_file() { metadata.len() } else { 0 }, metadata.nlink());
            file.is_inside = mount_of(pid, number).is_none_or(|mount| mounts.contains(&mount));
        }
        files.push(file);
    }
    files
}

fn mount_of(pid: u32, number: u32) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/fdinfo/{number}")).ok()?;
    text.lines().find_map(|line| line.strip_prefix("mnt_id:"))?.trim().parse().ok()
}

/// A line of mountinfo.
struct Mount {
    id: u64,
    point: String,
    file_system: String,
}

fn mounts_of(pid: u32) -> Vec<Mount> {
    let text = fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap_or_default();
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let mut before = before.split(' ');
        let id = before.next()?.parse().ok()?;
        Some(Mount { id, point: before.nth(3)?.to_owned(), file_system: after.split(' ').next()?.to_owned() })
    };
    text.lines().filter_map(mount).collect()
}

/// What the runtime mounted it can tell CRIU of, whatever it is.
fn served(mounts: &[Mount], spec: &Value) -> Vec<(String, String)> {
    let listed = spec["mounts"].as_array().into_iter().flatten();
    let known: HashSet<&str> = listed.filter_map(|mount| mount["destination"].as_str()).collect();
    let is_served = |mount: &&Mount| SERVED.contains(&mount.file_system.split('.').next().unwrap_or_default());
    let unknown = mounts.iter().filter(|mount| !known.contains(mount.point.as_str()) && mount.point != "/");
    unknown.filter(is_served).map(|mount| (mount.point.clone(), mount.file_system.clone())).collect()
}

/// The internet sockets in a process's network, by inode, and whether each is a connection.
fn internet(pid: u32) -> HashMap<u64, bool> {
    const CLOSED: &str = "07";
    const LISTENS: &str = "0A";
    let mut found = HashMap::new();
    for table in ["tcp", "tcp6", "udp", "udp6", "raw", "raw6"] {
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let (Some(state), Some(inode)) = (fields.get(3), fields.get(9).and_then(|inode| inode.parse().ok())) else {
                continue;
            };
            found.insert(inode, table.starts_with("tcp") && *state != CLOSED && *state != LISTENS);
        }
    }
    found
}

/// Of these sockets, those whose peer is none of them; nothing where `ss` is not installed.
fn outside_peers(pid: u32, inside: &HashSet<u64>) -> HashSet<u64> {
    let list = || {
        let enter = Program::find("nsenter")?.argument(format!("--net=/proc/{pid}/ns/net"));
        enter.arguments(["ss", "-xnH", "state", "connected"]).run(ASK)
    };
    list().map(|output| parse_peers(&String::from_utf8_lossy(&output.stdout), inside)).unwrap_or_default()
}

/// Lines of `TYPE STATE RECEIVED SENT PATH INODE PEER-PATH PEER-INODE`.
fn parse_peers(text: &str, inside: &HashSet<u64>) -> HashSet<u64> {
    let outside = |line: &str| {
        let numbers: Vec<u64> = line.split_whitespace().skip(4).filter_map(|word| word.parse().ok()).collect();
        let (own, peer) = (*numbers.first()?, *numbers.last()?);
        (numbers.len() >= 2 && peer != 0 && inside.contains(&own) && !inside.contains(&peer)).then_some(own)
    };
    text.lines().filter_map(outside).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(file: File) -> Seen {
        let process = Process { pid: 7, name: "web".to_owned(), has_outside: false, files: vec![file] };
        Seen { criu: 40200, kernel: (6, 18), processes: vec![process], ..Seen::default() }
    }

    fn named(target: &str) -> File {
        File { number: 1, target: target.to_owned(), kind: Kind::Named, is_inside: true, size: 0, links: 1 }
    }

    fn only(seen: &Seen) -> String {
        let reasons = reasons(seen);
        assert_eq!(reasons.len(), 1, "{reasons:?}");
        reasons[0].clone()
    }

    #[test]
    fn a_plain_program_has_nothing_against_it() {
        assert!(reasons(&with(named("/srv/log"))).is_empty());
        assert!(
            reasons(&with(File { target: "/dev/null".to_owned(), is_inside: false, ..File::default() })).is_empty()
        );
        assert!(reasons(&with(File { links: 0, size: 5, ..named("/gone (deleted)") })).is_empty());
        assert!(reasons(&with(File { kind: Kind::Terminal, ..named("/dev/pts/0") })).is_empty());
    }

    #[test]
    fn each_reason_names_the_process_and_the_remedy() {
        let outside = only(&with(File { is_inside: false, ..named("/var/log/x") }));
        assert!(outside.starts_with("web (process 7) has /var/log/x open as 1") && outside.contains("/dev/null"));
        let ghost = File { links: 0, size: 5 << 20, ..named("/gone (deleted)") };
        assert!(only(&with(ghost)).contains("ghost-limit"));
        assert!(only(&with(named("/other (deleted)"))).contains("link-remap"));
        assert!(
            only(&with(File { kind: Kind::Terminal, is_inside: false, ..named("/dev/pts/3") })).contains("shell-job")
        );
        let ring = File { target: "anon_inode:[io_uring]".to_owned(), ..File::default() };
        assert!(only(&with(ring)).contains("io_uring_setup"));
        let mut seen = with(named("/x"));
        seen.processes[0].has_outside = true;
        assert!(only(&seen).contains("exec"));
        let seen = Seen { mounts: vec![("/m".to_owned(), "fuse.sshfs".to_owned())], ..with(named("/x")) };
        assert!(only(&seen).contains("unmount"));
    }

    #[test]
    fn sockets_depend_on_kernel_and_criu() {
        let socket = File { number: 3, kind: Kind::Socket(55), ..File::default() };
        let connected = Seen { internet: [(55, true)].into(), ..with(socket.clone()) };
        assert!(only(&connected).contains("tcp-established"));
        let listening = Seen { internet: [(55, false)].into(), ..with(socket.clone()) };
        assert!(reasons(&listening).is_empty());
        let old = Seen { criu: 40101, ..listening };
        assert!(only(&old).contains("CRIU 4.2"));
        assert!(reasons(&Seen { kernel: (6, 15), ..old }).is_empty());
        let peer = Seen { outside_peers: [55].into(), ..with(socket) };
        assert!(only(&peer).contains("outside of the container"));
    }

    #[test]
    fn many_of_a_kind_are_not_all_told() {
        let mut seen = with(named("/x"));
        seen.processes[0].files = vec![File { is_inside: false, ..named("/h") }; 100];
        assert_eq!(reasons(&seen).len(), MOST_TOLD);
    }

    #[test]
    fn proc_and_ss_are_read() {
        assert_eq!(parse_stat("12 (a) b) S 1 12 9 0"), Some(("a) b".to_owned(), 1, 9)));
        let text = "u_str ESTAB 0 0 * 100 * 200\nu_str ESTAB 0 0 /run/x 101 * 102\nu_dgr ESTAB 0 0 * 103 * 0\n";
        assert_eq!(parse_peers(text, &[100, 101, 102, 103].into()), [100].into());
    }
}
