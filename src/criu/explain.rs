//! What CRIU wrote into its log → a sentence that names the cause and the remedy; pure. The log quotes names that a
//! container's processes chose.

/// The longest quotation of a log, in characters.
const QUOTED: usize = 200;

/// An error that CRIU reports whenever it runs in a container of limits, and goes on.
const NOISE: [&str; 2] = ["Can't setup RLIMIT_NOFILE for self", "Can't find a magic number"];

/// A part of the line, what it means, and what to do. The first that fits counts, so that what is precise comes first.
const TABLE: &[(&str, &str)] = &[
    (
        "Connected TCP socket, consider using --tcp-established",
        "a TCP connection is open; add the option tcp-established to keep it (it can only be restored where the address is \
         the same and the original is gone), or tcp-close to have it closed at the restore",
    ),
    (
        "Can't get 1:16",
        "it has an internet socket, and this CRIU cannot dump one on Linux 6.16 and later; install CRIU 4.2 or later",
    ),
    ("In-flight connection", "a TCP connection is just being made; write the command again"),
    (
        "Unsupported proto 262",
        "it uses MPTCP sockets, as Go programs since 1.24 do; start it with GODEBUG=multipathtcp=0",
    ),
    (
        "Some file locks are hold by dumping tasks",
        "it holds file locks that were not to be dumped; this is a defect of snapfs, report it with the log",
    ),
    (
        "External socket is used. Consider using --ext-unix-sk",
        "a datagram socket is connected to a program outside of the container; add the option ext-unix-sk",
    ),
    (
        "Can't dump half of stream unix connection",
        "a stream socket is connected to a program outside of the container, such as dbus or docker.sock; that cannot be \
         dumped: close the connection first",
    ),
    (
        "Can't dump ghost file",
        "a deleted file that is still open is larger than CRIU's limit; put `ghost-limit 1G` into /etc/criu/runc.conf (or \
         crun.conf)",
    ),
    (
        "Can't create link remap",
        "an open file has lost its name and has another one; add the option link-remap, or close the file",
    ),
    (
        "doesn't have a proper root mount",
        "something was mounted into it from outside that is not in its spec.json; unmount it",
    ),
    ("has unreachable sharing", "a mount shares its changes with the host; give it the propagation rprivate"),
    ("unsupported", "it holds something of a kind that CRIU does not support"),
    (
        "Can't lookup mount",
        "a file outside of the container is open in it, mostly because its output goes to a file of the host; start it with \
         a pipe or /dev/null instead",
    ),
    (
        "anon_inode:[io_uring]",
        "it uses io_uring, which CRIU does not support; switch that off in the program, or start it with a seccomp profile \
         that forbids io_uring_setup",
    ),
    (
        "fsnotify",
        "it watches a file by inotify or fanotify that CRIU cannot find again; put `force-irmap` into /etc/criu/runc.conf, \
         or keep the watched directory on a volume",
    ),
    ("Found dangling tty", "it has a terminal that is not the container's own; add the option shell-job"),
    ("Task attached to shell terminal", "it has a terminal that is not the container's own; add the option shell-job"),
    (
        "is outside of its pid namespace",
        "a process was started in it by `exec` and its session leader is outside; end the exec session first",
    ),
    (
        "Can't dump a pid namespace without the process init",
        "its first process is not the first of its pid namespace; checkpoint the container that it shares the namespace with",
    ),
    (
        "Unable to freeze cgroup",
        "a process waits for a device, a network or a FUSE file system and cannot be stopped; try again when that is over",
    ),
    (
        "Timeout reached. Try to interrupt",
        "a process waits for a device, a network or a FUSE file system and cannot be stopped; try again when that is over",
    ),
    ("iptables-restore", "CRIU found no iptables-restore to lock the network with; install iptables"),
    ("CPU capabilities do not match", "the image was made on another processor"),
    ("vdso: Unexpected rt vDSO area bounds", "CRIU is too old for this kernel; install CRIU 4.1 or later"),
    ("No space left on device", "the disk of the store is full; make room, or move the store"),
    ("Disk quota exceeded", "the disk quota of the store is used up; make room, or move the store"),
    ("soft-dirty", "this kernel does not track which memory changes (CONFIG_MEM_SOFT_DIRTY); leave pre-dump= out"),
    (
        "has bad size",
        "an open file is not as long as it was when the processes were dumped: the files belong to another moment, or another \
         image lies below them",
    ),
    (
        "has bad mode",
        "an open file has another mode than it had when the processes were dumped: another image lies below it",
    ),
    (
        "has bad build-ID",
        "a program or a library is another one than that which was dumped: another image lies below it",
    ),
    (
        "No mapping for",
        "a mount that the processes had is not there; restore them with the runtime that dumped them, and the mounts of then",
    ),
    (
        "Can't bind inet socket",
        "an address that it listened at is not here, or is taken; end what has it, or restore it where the address is the same",
    ),
    (
        "Can't connect inet socket back",
        "a TCP connection cannot go on from here, because its address is not here; add the option tcp-close",
    ),
    ("Can't set FAULT", "a fault was injected into CRIU by its environment; unset CRIU_FAULT"),
];

/// Why a dump, or a restore, failed, by its log; none if the log names no error.
pub fn explain(log: &str) -> Option<String> {
    let errors =
        || log.lines().filter(|line| line.contains("Error (") && !NOISE.iter().any(|noise| line.contains(noise)));
    // What is known may be said in a warning, or after an error that only reports it.
    let known = |line: &str| TABLE.iter().find(|(part, _)| line.contains(part));
    let said = errors().find_map(|line| known(line).map(|(_, says)| (line, *says)));
    match said {
        Some((line, says)) => Some(format!("{says} (CRIU: {})", quote(line))),
        None => errors().next().map(|line| format!("CRIU says: {}", quote(line))),
    }
}

/// A line without its time and place.
fn quote(line: &str) -> String {
    let text = line.split_once("): ").map_or(line, |(_, text)| text);
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).take(QUOTED).collect();
    text.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOISY: &str =
        "(00.000651) Error (criu/util.c:1533): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n";

    #[test]
    fn noise_is_no_cause() {
        assert_eq!(explain(NOISY), None);
        assert_eq!(explain(""), None);
    }

    #[test]
    fn the_cause_is_told_with_what_to_do() {
        let log = format!(
            "{NOISY}(00.1) inet: \tConnected\n(00.2) Error (criu/sk-inet.c:191): inet: Connected TCP socket, consider using \
             --tcp-established option.\n(00.3) Error (criu/cr-dump.c:2128): Dumping FAILED.\n"
        );
        let said = explain(&log).unwrap();
        assert!(said.starts_with("a TCP connection is open; add the option tcp-established"), "{said}");
        assert!(
            said.ends_with("(CRIU: inet: Connected TCP socket, consider using --tcp-established option.)"),
            "{said}"
        );
    }

    #[test]
    fn what_is_not_known_is_quoted() {
        let log =
            format!("{NOISY}(00.2) Error (criu/new.c:1): a new \x1b[31mtrouble\n(00.3) Error (x): Dumping FAILED.\n");
        assert_eq!(explain(&log).unwrap(), "CRIU says: a new  [31mtrouble");
    }

    #[test]
    fn a_line_that_only_reports_is_not_preferred() {
        let log = "(1) Error (a): mnt: 12:./x doesn't have a proper root mount\n(2) Error (b): Dumping FAILED.\n";
        assert!(explain(log).unwrap().contains("spec.json"));
        let log =
            "(1) Error (a): pie: stage 1 failed\n(2) Error (b): Can't dump ghost file /x of 5 size, increase limit\n";
        assert!(explain(log).unwrap().contains("ghost-limit"));
    }

    #[test]
    fn every_row_says_what_to_do_and_is_reached() {
        for (part, says) in TABLE {
            let said = explain(&format!("(0) Error (x.c:1): before {part} after\n")).unwrap();
            assert!(said.starts_with(says), "{part}: {said}");
        }
    }
}
