//! Processes that hold others by ptrace(2), and an end to them: the kernel lets go of what a dead tracer held.

use std::fs;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A variable in the environment of a program that traces for us, and of all that it starts: by it they are known when
/// nobody is left who started them.
pub const MARK: &str = "SNAPFS_TRACES_FOR";

/// The process that traces `pid`, if one does.
pub fn tracer(pid: u32) -> Option<u32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("TracerPid:"))?;
    line.trim().parse().ok().filter(|tracer| *tracer != 0)
}

/// Kill `pid` if that is the number of a process of this name; whether it was.
pub fn kill_named(pid: u32, name: &str) -> bool {
    kill_if(pid, || name_of(pid).is_some_and(|found| found == name))
}

/// The processes of one of these names that have [`MARK`] with this value in their environment.
pub fn marked(names: &[&str], value: &str) -> Vec<u32> {
    let variable = format!("{MARK}={value}");
    let is_one = |pid: &u32| {
        name_of(*pid).is_some_and(|found| names.contains(&found.as_str()))
            && fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|environment| environment.split(|byte| *byte == 0).any(|one| one == variable.as_bytes()))
    };
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).filter(is_one).collect()
}

fn name_of(pid: u32) -> Option<String> {
    Some(fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim_end().to_owned())
}

/// The number is looked at once more when it cannot become another's.
fn kill_if(pid: u32, is_it: impl Fn() -> bool) -> bool {
    let Some(number) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return false };
    let Ok(pidfd) = pidfd_open(number, PidfdFlags::empty()) else { return false };
    is_it() && pidfd_send_signal(&pidfd, Signal::KILL).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::process::Program;
    use std::time::Duration;

    #[test]
    fn nobody_traces_us_and_only_the_marked_are_killed() {
        assert_eq!(tracer(std::process::id()), None);
        let value = format!("test-{}", std::process::id());
        let sleep = |value: &str| Program::find("sleep").unwrap().argument("20").variable(MARK, value);
        let (marked, spared) = (sleep(&value), sleep("somebody else"));
        let marked = std::thread::spawn(move || marked.run(Duration::from_secs(20)).unwrap());
        let spared = std::thread::spawn(move || spared.run(Duration::from_millis(600)));
        let mut found = Vec::new();
        for _ in 0..500 {
            found = super::marked(&["sleep"], &value);
            if !found.is_empty() {
                break;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        assert_eq!(found.len(), 1);
        assert!(!kill_named(found[0], "another name") && kill_named(found[0], "sleep"));
        assert!(!marked.join().unwrap().status.success());
        assert!(spared.join().unwrap().is_err(), "it lasted until its limit");
    }
}
