//! The calling thread before all others: for what a frozen container waits for.

use rustix::process::{getpriority_process, setpriority_process};

/// The nice value that comes first: setpriority(2).
const FIRST: i32 = -20;

/// While it lives, and on the thread that made it, this thread is served before those with the usual priority.
#[derive(Debug)]
pub struct Hurry {
    before: Option<i32>,
    /// It must end on the thread that it began on.
    thread: std::marker::PhantomData<*const ()>,
}

impl Hurry {
    /// Takes effect if the process may (`CAP_SYS_NICE`), and does not matter if not.
    pub fn begin() -> Hurry {
        let before = getpriority_process(None).ok();
        let before = before.filter(|_| setpriority_process(None, FIRST).is_ok());
        Hurry { before, thread: std::marker::PhantomData }
    }
}

impl Drop for Hurry {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            // It could be raised, so it can be lowered.
            let _ = setpriority_process(None, before);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_thread_is_as_before_afterwards() {
        let before = getpriority_process(None).unwrap();
        let hurry = Hurry::begin();
        if rustix::process::geteuid().is_root() {
            assert_eq!(getpriority_process(None).unwrap(), FIRST);
            assert_eq!(std::thread::spawn(|| getpriority_process(None).unwrap()).join().unwrap(), FIRST, "inherited");
        }
        drop(hurry);
        assert_eq!(getpriority_process(None).unwrap(), before);
    }
}
