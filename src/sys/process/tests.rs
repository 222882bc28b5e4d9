use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::{Error, Output, Program};

const LIMIT: Duration = Duration::from_secs(20);

fn shell(script: &str) -> Program {
    Program::find("sh").unwrap().argument("-c").argument(script)
}

fn said(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

#[test]
fn a_program_that_is_not_there_is_named() {
    for name in ["snapfs-no-such-program", "/bin/snapfs-no-such-program", "./sh", "bin/sh", "", "/etc/passwd", "/"] {
        let error = Program::find(name).unwrap_err();
        assert!(matches!(&error, Error::Missing { program } if program == name), "{error}");
    }
    assert!(Program::find("/bin/sh").is_ok());
}

#[test]
fn both_outputs_and_the_status_come_back() {
    let output = shell("echo one; echo two >&2; exit 3").run(LIMIT).unwrap();
    assert_eq!((said(&output), &output.stderr[..], output.status.code()), ("one\n", &b"two\n"[..], Some(3)));
    let error =
        shell("echo first >&2; printf 'a\\033[1m reason\\n\\n' >&2; exit 3").run(LIMIT).unwrap().check().unwrap_err();
    assert_eq!(error.to_string(), "sh failed (exit status: 3): a [1m reason");
    assert!(shell("true").run(LIMIT).unwrap().check().is_ok());
}

#[test]
fn the_environment_is_ours_alone() {
    let output = shell("env; pwd; cat; umask").variable("ONE", "1").variable("LANG", "C").run(LIMIT).unwrap();
    let mut lines: Vec<&str> = said(&output).lines().collect();
    // What the shell itself adds.
    lines.retain(|line| !line.starts_with("PWD=") && !line.starts_with("SHLVL=") && !line.starts_with("_="));
    let names: Vec<&str> = lines.iter().map(|line| line.split('=').next().unwrap()).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, ["/", "0022", "HOME", "LANG", "ONE", "PATH"]);
    assert!(lines.contains(&"LANG=C") && lines.contains(&"ONE=1"));
}

#[test]
fn no_open_file_is_inherited() {
    let file = tempfile::tempfile().unwrap();
    rustix::io::fcntl_setfd(&file, rustix::io::FdFlags::empty()).unwrap();
    let output = shell("ls /proc/self/fd").run(LIMIT).unwrap();
    // The fourth is the directory that ls reads.
    assert_eq!(said(&output).split_whitespace().collect::<Vec<_>>(), ["0", "1", "2", "3"]);
}

#[test]
fn a_deadline_ends_the_whole_group() {
    let start = Instant::now();
    let error = shell("echo waiting >&2; sleep 600 & echo $! >&2; wait").run(Duration::from_millis(300)).unwrap_err();
    assert!(start.elapsed() < Duration::from_secs(5));
    let Error::TimedOut { line, .. } = error else { panic!("{error}") };
    let until = Instant::now() + Duration::from_secs(5);
    while Path::new(&format!("/proc/{line}/stat")).exists() && !super::is_dying(line.parse().unwrap()) {
        assert!(Instant::now() < until, "the grandchild {line} lives");
    }
}

#[test]
fn too_much_output_is_an_error_and_much_is_none() {
    let error = shell("while :; do echo yyyyyyyyyyyyyyyyyyyyyyyyy; done").run(LIMIT).unwrap_err();
    assert!(matches!(error, Error::TooMuchOutput { limit: 1_048_576, .. }), "{error}");
    let output =
        shell("head -c 3000000 /dev/zero; head -c 1000000 /dev/zero >&2").most_output(3_000_000).run(LIMIT).unwrap();
    assert_eq!((output.stdout.len(), output.stderr.len()), (3_000_000, 1_000_000));
}

#[test]
fn a_process_that_is_left_behind_does_not_keep_us() {
    let start = Instant::now();
    let output = shell("sleep 20 & echo $!").run(LIMIT).unwrap();
    assert!(start.elapsed() < Duration::from_secs(5));
    let pid: i32 = said(&output).trim().parse().unwrap();
    assert!(fs::metadata(format!("/proc/{pid}")).is_ok(), "it was not ours to kill");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

#[test]
fn a_program_that_is_no_longer_wanted_is_killed() {
    let start = Instant::now();
    let wanted = || start.elapsed() < Duration::from_millis(100);
    let error = shell("sleep 100").run_while(LIMIT, &wanted).unwrap_err();
    assert!(matches!(&error, Error::Unwanted { program } if program == "sh"), "{error}");
    assert!(start.elapsed() < LIMIT);
}
