//! Requests whose answer is still to come, and the one thread that gives it.
//!
//! fuser 0.18 answers `FUSE_INTERRUPT` with `ENOSYS`, upon which the kernel never sends another and a signalled caller
//! sleeps uninterruptibly until its request is answered. So the callers are watched: every [`TICK`] the thread asks
//! the kernel whether a signal that would end the caller is pending, and answers `EINTR` if so.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, at, never, select, unbounded};
use fuser::Errno;

use crate::fuse::panic_message;
use crate::sys::process::has_interrupting_signal;

/// How often callers are asked for pending signals: an eighth of the 200 ms in which Ctrl-C must work.
const TICK: Duration = Duration::from_millis(20);

/// All requests that wait.
#[derive(Debug)]
pub(crate) struct Waiters {
    messages: Sender<Message>,
}

enum Message {
    Park(Waiter),
    Forget(u64),
}

struct Waiter {
    /// Whose signals to watch; 0 for nobody's.
    tid: u32,
    /// The open file whose readiness is watched; a newer watch takes the place of an older one.
    watch: Option<u64>,
    step: Box<dyn FnMut(Step) -> Waits + Send>,
}

#[derive(Clone, Copy)]
enum Step {
    /// Answer if there is an answer.
    Poll,
    /// Answer `EINTR`.
    Interrupt,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Waits {
    Still,
    NoMore,
}

impl Waiters {
    /// Start the thread. It polls whenever `completions` says that some answer may have come, and ends with `self`.
    pub(crate) fn start(completions: Receiver<()>) -> io::Result<Waiters> {
        let (messages, inbox) = unbounded();
        thread::Builder::new().name("waiters".into()).spawn(move || run(&inbox, completions))?;
        Ok(Waiters { messages })
    }

    /// Call `answer` once, with what `poll` gives or with `EINTR` when thread `tid` must not wait any longer.
    pub(crate) fn park<T>(
        &self,
        tid: u32,
        poll: impl FnMut() -> Option<Result<T, Errno>> + Send + 'static,
        answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
    ) {
        self.send(Message::Park(Waiter { tid, watch: None, step: step(poll, answer) }));
    }

    /// Call `answer` once `poll` gives something; `fh` has one watch at most.
    pub(crate) fn watch(
        &self,
        fh: u64,
        poll: impl FnMut() -> Option<Result<(), Errno>> + Send + 'static,
        answer: impl FnOnce(Result<(), Errno>) + Send + 'static,
    ) {
        self.send(Message::Park(Waiter { tid: 0, watch: Some(fh), step: step(poll, answer) }));
    }

    /// `fh` is closed: end its watch.
    pub(crate) fn forget(&self, fh: u64) {
        self.send(Message::Forget(fh));
    }

    fn send(&self, message: Message) {
        // The thread lives as long as the sender; were it gone, the dropped reply would answer EIO.
        let _ = self.messages.send(message);
    }
}

fn step<T>(
    mut poll: impl FnMut() -> Option<Result<T, Errno>> + Send + 'static,
    answer: impl FnOnce(Result<T, Errno>) + Send + 'static,
) -> Box<dyn FnMut(Step) -> Waits + Send> {
    let mut answer = Some(answer);
    Box::new(move |step| {
        let result = match step {
            Step::Poll => poll(),
            Step::Interrupt => Some(Err(Errno::EINTR)),
        };
        match (result, answer.take()) {
            (Some(result), Some(answer)) => answer(result),
            (None, unused) => {
                answer = unused;
                return Waits::Still;
            }
            (Some(_), None) => {}
        }
        Waits::NoMore
    })
}

impl Waiter {
    fn step(&mut self, step: Step) -> Waits {
        catch_unwind(AssertUnwindSafe(|| (self.step)(step))).unwrap_or_else(|panic| {
            // Dropping the waiter drops its reply, which answers EIO.
            log::error!("a waiting request panicked: {}", panic_message(&*panic));
            Waits::NoMore
        })
    }
}

fn run(inbox: &Receiver<Message>, mut completions: Receiver<()>) {
    let mut waiting: Vec<Waiter> = Vec::new();
    let mut tick = Instant::now();
    loop {
        let timer = if waiting.iter().any(|waiter| waiter.tid != 0) { at(tick) } else { never() };
        select! {
            recv(inbox) -> message => match message {
                Ok(Message::Park(mut waiter)) => {
                    if waiter.watch.is_some() {
                        waiting.retain(|other| other.watch != waiter.watch);
                    }
                    // The answer may have come between the tree's reply and now, and its wake-up with it.
                    if waiter.step(Step::Poll) == Waits::Still {
                        waiting.push(waiter);
                    }
                }
                Ok(Message::Forget(fh)) => waiting.retain(|waiter| waiter.watch != Some(fh)),
                Err(_) => return,
            },
            recv(completions) -> wake => match wake {
                Ok(()) => waiting.retain_mut(|waiter| waiter.step(Step::Poll) == Waits::Still),
                Err(_) => completions = never(),
            },
            recv(timer) -> _ => {
                waiting.retain_mut(|waiter| {
                    let stays = waiter.tid == 0 || !has_interrupting_signal(waiter.tid);
                    // An answer that is there is worth more than EINTR.
                    stays || (waiter.step(Step::Poll) == Waits::Still && waiter.step(Step::Interrupt) == Waits::Still)
                });
                tick = Instant::now() + TICK;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crossbeam_channel::bounded;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    type Answer = Result<u32, Errno>;

    fn parked(waiters: &Waiters, tid: u32) -> (Sender<Answer>, Receiver<Answer>) {
        let (job, result) = bounded::<Answer>(1);
        let (answer, answered) = bounded(1);
        waiters.park(tid, move || result.try_recv().ok(), move |result| answer.send(result).unwrap());
        (job, answered)
    }

    #[test]
    fn an_answer_travels_when_its_wake_up_comes() {
        let (wake, completions) = unbounded();
        let waiters = Waiters::start(completions).unwrap();
        let (job, answered) = parked(&waiters, 0);
        let (_other, unanswered) = parked(&waiters, 0);
        assert!(answered.recv_timeout(Duration::from_millis(50)).is_err());
        job.send(Ok(7)).unwrap();
        wake.send(()).unwrap();
        assert_eq!(answered.recv_timeout(Duration::from_secs(5)).unwrap(), Ok(7));
        assert!(unanswered.try_recv().is_err());
    }

    #[test]
    fn an_answer_that_came_before_the_parking_is_not_lost() {
        let waiters = Waiters::start(never()).unwrap();
        let (answer, answered) = bounded(1);
        waiters.park(0, || Some(Ok(1)), move |result: Answer| answer.send(result).unwrap());
        assert_eq!(answered.recv_timeout(Duration::from_secs(5)).unwrap(), Ok(1));
    }

    #[test]
    fn a_caller_that_is_gone_waits_no_longer() {
        let waiters = Waiters::start(never()).unwrap();
        let gone = u32::try_from(i32::MAX).unwrap(); // beyond pid_max
        let (_job, answered) = parked(&waiters, gone);
        assert_eq!(answered.recv_timeout(Duration::from_secs(5)).unwrap(), Err(Errno::EINTR));
    }

    #[test]
    fn a_panic_costs_its_own_request_alone() {
        let (wake, completions) = unbounded();
        let waiters = Waiters::start(completions).unwrap();
        let (job, answered) = parked(&waiters, 0);
        waiters.park(0, || -> Option<Answer> { panic!("on purpose") }, |_| {});
        job.send(Ok(3)).unwrap();
        wake.send(()).unwrap();
        assert_eq!(answered.recv_timeout(Duration::from_secs(5)).unwrap(), Ok(3));
    }

    #[test]
    fn a_newer_watch_takes_the_place_of_the_older() {
        let (wake, completions) = unbounded();
        let waiters = Waiters::start(completions).unwrap();
        let ready = Arc::new(AtomicBool::new(false));
        let (polled, polls) = unbounded();
        let (answer, answered) = unbounded();
        for n in 0..3 {
            let (ready, polled, answer) = (Arc::clone(&ready), polled.clone(), answer.clone());
            let poll = move || {
                polled.send(()).unwrap();
                ready.load(Ordering::SeqCst).then_some(Ok(()))
            };
            waiters.watch(9, poll, move |_| answer.send(n).unwrap());
        }
        (0..3).for_each(|_| polls.recv_timeout(Duration::from_secs(5)).unwrap()); // each when it was parked
        ready.store(true, Ordering::SeqCst);
        wake.send(()).unwrap();
        assert_eq!(answered.recv_timeout(Duration::from_secs(5)).unwrap(), 2);
        assert!(answered.recv_timeout(Duration::from_millis(50)).is_err());
    }
}
