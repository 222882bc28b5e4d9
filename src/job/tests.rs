use super::*;
use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use std::time::Duration;

fn jobs(workers: usize) -> (Jobs<String>, Receiver<JobId>) {
    let (ended, ends) = unbounded();
    let on_change = Box::new(move |job: &Job<String>| {
        if job.state().is_terminal() {
            ended.send(job.id).unwrap();
        }
    });
    (Jobs::new(workers, on_change, Box::new(|_, why| format!("{why:?}"))), ends)
}

fn brief(subject: &str) -> Brief {
    Brief { command: format!("commit {subject}"), subject: subject.to_owned(), uid: 0 }
}

fn start(
    jobs: &Jobs<String>,
    subject: &str,
    work: impl FnOnce(&Progress) -> Finish<String> + Send + 'static,
) -> Arc<Job<String>> {
    jobs.start(brief(subject), Timestamp::UNIX_EPOCH, work).unwrap()
}

fn gate() -> (Sender<()>, Receiver<()>) {
    bounded(0)
}

const SOON: Duration = Duration::from_secs(10);

#[test]
fn a_job_ends_once_and_says_how() {
    let (jobs, ends) = jobs(2);
    let done = start(&jobs, "a", |_| Finish::Done("made".into()));
    let failed = start(&jobs, "b", |_| Finish::Failed("why".into()));
    for _ in 0..2 {
        ends.recv_timeout(SOON).unwrap();
    }
    assert_eq!((done.state(), done.outcome()), (State::Done, Some(Ok("made".into()))));
    assert_eq!((failed.state(), failed.outcome()), (State::Failed, Some(Err(Arc::new("why".to_owned())))));
    assert_eq!(jobs.last(), Some(failed.id));
}

#[test]
fn jobs_of_one_subject_run_one_after_the_other_and_others_beside_them() {
    let (jobs, ends) = jobs(2);
    let (open_first, first_gate) = gate();
    let first = start(&jobs, "web", move |_| {
        first_gate.recv_timeout(SOON).unwrap();
        Finish::Done(String::new())
    });
    let second = start(&jobs, "web", |_| Finish::Done(String::new()));
    let other = start(&jobs, "db", |_| Finish::Done(String::new()));
    assert_eq!(ends.recv_timeout(SOON).unwrap(), other.id);
    assert_eq!(second.state(), State::Queued);
    open_first.send(()).unwrap();
    assert_eq!(ends.recv_timeout(SOON).unwrap(), first.id);
    assert_eq!(ends.recv_timeout(SOON).unwrap(), second.id);
}

#[test]
fn cancelling_ends_a_waiting_job_at_once_and_asks_a_running_one() {
    let (jobs, ends) = jobs(1);
    let (entered, has_entered) = gate();
    let running = start(&jobs, "web", move |progress| {
        entered.send(()).unwrap();
        while progress.check().is_ok() {
            thread::sleep(Duration::from_millis(1));
        }
        Finish::Cancelled("stopped".into())
    });
    let waiting = start(&jobs, "web", |_| Finish::Done("never".into()));
    has_entered.recv_timeout(SOON).unwrap();
    jobs.cancel(&waiting);
    assert_eq!(ends.recv_timeout(SOON).unwrap(), waiting.id);
    assert_eq!(waiting.state(), State::Cancelled);
    jobs.cancel(&running);
    assert_eq!(ends.recv_timeout(SOON).unwrap(), running.id);
    assert_eq!(running.state(), State::Cancelled);
}

#[test]
fn a_panic_is_a_failed_job_and_the_worker_goes_on() {
    let (jobs, ends) = jobs(1);
    let broken = start(&jobs, "a", |_| panic!("on purpose"));
    let next = start(&jobs, "a", |_| Finish::Done(String::new()));
    assert_eq!(ends.recv_timeout(SOON).unwrap(), broken.id);
    assert_eq!(ends.recv_timeout(SOON).unwrap(), next.id);
    assert_eq!(broken.state(), State::Failed);
    assert_eq!(next.state(), State::Done);
}

#[test]
fn shutting_down_leaves_no_job_without_an_end() {
    let (jobs, _ends) = jobs(1);
    let all: Vec<_> = (0..20)
        .map(|n| {
            start(&jobs, "web", move |progress| {
                thread::sleep(Duration::from_millis(2));
                match progress.check() {
                    Ok(()) => Finish::Done(n.to_string()),
                    Err(cancelled) => Finish::Cancelled(cancelled.to_string()),
                }
            })
        })
        .collect();
    jobs.shut_down();
    assert!(all.iter().all(|job| job.state().is_terminal()));
}

#[test]
fn old_jobs_are_forgotten_but_never_their_numbers() {
    let (jobs, ends) = jobs(1);
    for _ in 0..REMEMBERED + 5 {
        start(&jobs, "a", |_| Finish::Done(String::new()));
        ends.recv_timeout(SOON).unwrap();
    }
    let last = start(&jobs, "a", |_| Finish::Done(String::new()));
    assert_eq!(last.id, JobId(REMEMBERED as u64 + 6));
    assert!(jobs.ids().len() <= REMEMBERED + 1);
    assert!(jobs.job(JobId(1)).is_none());
}

#[test]
fn so_many_jobs_may_wait_and_no_more() {
    let (jobs, ends) = jobs(1);
    let (open, opens) = gate();
    let running = start(&jobs, "web", move |_| {
        opens.recv_timeout(SOON).unwrap();
        Finish::Done(String::new())
    });
    while running.state() != State::Running {
        thread::yield_now();
    }
    for _ in 0..MOST_WAITING {
        start(&jobs, "web", |_| Finish::Done(String::new()));
    }
    let one_more = || jobs.start(brief("db"), Timestamp::UNIX_EPOCH, |_| Finish::Done(String::new()));
    assert_eq!(one_more().unwrap_err(), Full);
    assert_eq!(jobs.load(), (MOST_WAITING, 1));
    let waits = jobs.job(JobId(running.id.0 + 1)).unwrap();
    jobs.cancel(&waits);
    let admitted = one_more().unwrap();
    assert_eq!(jobs.last(), Some(admitted.id), "the number of the one that was refused is used");
    open.send(()).unwrap();
    for _ in 0..MOST_WAITING + 2 {
        ends.recv_timeout(SOON).unwrap();
    }
    assert_eq!(admitted.state(), State::Done);
}
