//! The end of processes that nobody else would end: those in the cgroups of one name.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// Where the hierarchies are: v2's, or one directory for each of v1's.
const CGROUPS: &str = "/sys/fs/cgroup";
/// How long killed processes may take to end.
const DEATH: Duration = Duration::from_secs(2);

/// Kill the processes in the cgroup `name` at the top of each hierarchy, and remove it; false if some do not die.
///
/// `name` is one component of a path. Frozen processes of v1 die only once they are thawed.
pub fn end_cgroup(name: &str) -> bool {
    let until = Instant::now() + DEATH;
    loop {
        let directories = directories(name);
        if directories.iter().all(|directory| end(directory)) {
            return true;
        }
        if Instant::now() > until {
            return false;
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Whether a process is in the cgroup `name` at the top of a hierarchy, or below.
pub fn has_processes(name: &str) -> bool {
    directories(name).iter().any(|directory| holds(directory))
}

fn holds(directory: &Path) -> bool {
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    !text.trim().is_empty() || below(directory).iter().any(|directory| holds(directory))
}

fn below(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn directories(name: &str) -> Vec<PathBuf> {
    let top = Path::new(CGROUPS);
    let hierarchies = fs::read_dir(top).into_iter().flatten().flatten().map(|entry| entry.path());
    let candidates = hierarchies.map(|hierarchy| hierarchy.join(name)).chain([top.join(name)]);
    candidates.filter(|directory| directory.join("cgroup.procs").is_file()).collect()
}

/// Whether the cgroup is gone now.
fn end(directory: &Path) -> bool {
    for directory in below(directory) {
        end(&directory);
    }
    // There is one of the two, or the other.
    let _ = fs::write(directory.join("freezer.state"), "THAWED");
    let _ = fs::write(directory.join("cgroup.freeze"), "0");
    let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for pid in text.lines().filter_map(|line| Pid::from_raw(line.parse().ok()?)) {
        // It may end by itself.
        let _ = kill_process(pid, Signal::KILL);
    }
    fs::remove_dir(directory).is_ok() || !directory.exists()
}
