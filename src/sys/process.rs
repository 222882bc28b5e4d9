//! Other processes, as /proc shows them.

use std::fs;

/// Whether a signal is pending that ends or interrupts thread `tid`, or the thread is gone.
///
/// proc(5), `/proc/TID/status`: pending of the thread or of its process, neither blocked nor ignored, and one of those
/// that end a process or that people send to interrupt one (not the likes of SIGCHLD and SIGWINCH).
pub fn has_interrupting_signal(tid: u32) -> bool {
    match fs::read_to_string(format!("/proc/{tid}/status")) {
        Ok(status) => interrupting(&status),
        Err(_) => true,
    }
}

fn interrupting(status: &str) -> bool {
    let mask = |key: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(key))?;
        u64::from_str_radix(value.trim(), 16).ok()
    };
    let [pending, shared, blocked, ignored] =
        ["SigPnd:", "ShdPnd:", "SigBlk:", "SigIgn:"].map(|key| mask(key).unwrap_or(0));
    (pending | shared) & !blocked & !ignored & INTERRUPTING != 0
}

const INTERRUPTING: u64 = {
    let signals = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGILL,
        libc::SIGABRT,
        libc::SIGKILL,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGPIPE,
        libc::SIGALRM,
        libc::SIGTERM,
        libc::SIGXCPU,
        libc::SIGVTALRM,
        libc::SIGPROF,
    ];
    let (mut mask, mut at) = (0, 0);
    while at < signals.len() {
        mask |= 1 << (signals[at] - 1);
        at += 1;
    }
    mask
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pending_and_neither_blocked_nor_ignored() {
        let status = |pnd: u64, shd: u64, blk: u64, ign: u64| {
            format!("Name:\tx\nSigPnd:\t{pnd:016x}\nShdPnd:\t{shd:016x}\nSigBlk:\t{blk:016x}\nSigIgn:\t{ign:016x}\n")
        };
        let int = 1 << 1;
        let child = 1 << 16;
        assert!(interrupting(&status(int, 0, 0, 0)));
        assert!(interrupting(&status(0, int, 0, 0)));
        assert!(!interrupting(&status(0, int, int, 0)));
        assert!(!interrupting(&status(0, int, 0, int)));
        assert!(!interrupting(&status(child, child, 0, 0)));
        assert!(!has_interrupting_signal(std::process::id()));
    }
}
