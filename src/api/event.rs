//! What happens, as lines of JSON for whoever follows: a ring of the latest, numbered without a gap, that nobody can hold
//! up. Who reads too slowly is told how much is missing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Weak};
use std::thread;
use std::time::Duration;

use crossbeam_channel::Sender;
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::api::{ContainerKey, Error, ErrorKind, ImageName, Snapfs, SnapfsJob};
use crate::job::State;
use crate::store::Change;
use crate::sys::clock::Clock;

/// How many lines are kept for slow readers.
const KEPT: usize = 4096;
/// How often somebody who follows is told of containers: their engines' files are looked at, and nobody says when.
const WATCH_EVERY: Duration = Duration::from_secs(1);

/// The latest events.
#[derive(Debug)]
pub(super) struct Events {
    ring: Mutex<Ring>,
    clock: Clock,
    namespace: Option<ImageName>,
    wake: Sender<()>,
}

#[derive(Debug, Default)]
struct Ring {
    lines: VecDeque<Arc<str>>,
    /// The number of the next line; the first has 1.
    next: u64,
    readers: usize,
    /// Somebody looks at the containers.
    is_watched: bool,
}

impl Ring {
    fn first(&self) -> u64 {
        self.next - self.lines.len() as u64
    }
}

impl Events {
    pub(super) fn new(clock: Clock, namespace: Option<ImageName>, wake: Sender<()>) -> Events {
        Events { ring: Mutex::new(Ring { next: 1, ..Ring::default() }), clock, namespace, wake }
    }

    /// Add an event of the kind `event` with more `fields`.
    pub(super) fn tell(&self, event: &str, mut fields: Value) {
        let mut ring = self.ring.lock();
        fields["seq"] = ring.next.into();
        fields["time"] = self.clock.now().to_string().into();
        fields["event"] = event.into();
        ring.next += 1;
        ring.lines.push_back(Arc::from(format!("{fields}\n")));
        if ring.lines.len() > KEPT {
            ring.lines.pop_front();
        }
        let is_followed = ring.readers > 0;
        drop(ring);
        if is_followed {
            // A full channel already holds the wake-up that this one would be.
            let _ = self.wake.try_send(());
        }
    }

    pub(super) fn store_changed(&self, change: &Change) {
        let local = |name: &ImageName| match &self.namespace {
            None => Some(name.to_string()),
            Some(namespace) => Some(name.as_str().strip_prefix(namespace.as_str())?.strip_prefix('/')?.to_owned()),
        };
        match change {
            Change::Named { name, manifest, replaced } => {
                let Some(name) = local(name) else { return };
                let event = if *replaced { "image-replaced" } else { "image-created" };
                self.tell(event, json!({ "image": name, "digest": manifest.to_string() }));
            }
            Change::Removed { name } => {
                let Some(name) = local(name) else { return };
                self.tell("image-removed", json!({ "image": name }));
            }
            Change::Renamed { from, to, replaced } => {
                if let (Some(from), Some(to)) = (local(from), local(to)) {
                    self.tell("image-renamed", json!({ "image": to, "from": from, "replaced": replaced }));
                }
            }
            Change::Labelled { name, keys } => {
                let Some(name) = local(name) else { return };
                self.tell("image-labelled", json!({ "image": name, "keys": keys }));
            }
            Change::Collected { blobs, bytes } => {
                self.tell("collected", json!({ "blobs": blobs, "bytes": bytes }));
            }
        }
    }

    pub(super) fn job_changed(&self, job: &SnapfsJob) {
        let mut fields = json!({ "job": job.id.0, "command": job.brief.command, "uid": job.brief.uid });
        let state = job.state();
        fields["state"] = state.to_string().into();
        if let Some(Err(error)) = job.outcome() {
            fields["error"] = error.to_string().into();
        }
        let event = match state {
            State::Queued => "job-admitted",
            State::Running => "job-started",
            State::Done | State::Failed | State::Cancelled => "job-ended",
        };
        self.tell(event, fields);
    }
}

/// Somebody who follows, from the moment of opening on.
#[derive(Debug)]
pub struct EventReader {
    events: Arc<Events>,
    place: Mutex<Place>,
}

#[derive(Debug)]
struct Place {
    next: u64,
    /// What was begun and did not fit.
    rest: Vec<u8>,
}

impl EventReader {
    fn new(events: Arc<Events>) -> EventReader {
        let next = {
            let mut ring = events.ring.lock();
            ring.readers += 1;
            ring.next
        };
        EventReader { events, place: Mutex::new(Place { next, rest: Vec::new() }) }
    }

    /// Whether there is something to read.
    pub fn is_ready(&self) -> bool {
        let place = self.place.lock();
        !place.rest.is_empty() || place.next < self.events.ring.lock().next
    }

    /// Up to `size` bytes of what has happened since the last read; `None` if nothing has.
    pub fn read(&self, size: usize) -> Option<Vec<u8>> {
        let Place { next, rest } = &mut *self.place.lock();
        let ring = self.events.ring.lock();
        let first = ring.first();
        if *next < first {
            let lost = first - *next;
            let gap =
                json!({ "event": "gap", "seq": first - 1, "lost": lost, "time": self.events.clock.now().to_string() });
            rest.extend(format!("{gap}\n").into_bytes());
            *next = first;
        }
        while *next < ring.next && rest.len() < size {
            let at = usize::try_from(*next - first).ok()?;
            rest.extend(ring.lines.get(at)?.bytes());
            *next += 1;
        }
        drop(ring);
        // Whole lines, unless not even one fits.
        let fits = rest.len().min(size);
        let end = rest[..fits].iter().rposition(|byte| *byte == b'\n').map_or(fits, |at| at + 1);
        (end > 0).then(|| rest.drain(..end).collect())
    }
}

impl Drop for EventReader {
    fn drop(&mut self) {
        self.events.ring.lock().readers -= 1;
    }
}

impl Snapfs {
    /// Follow what happens from now on.
    pub fn follow(self: &Arc<Self>) -> Result<EventReader, Error> {
        let reader = EventReader::new(Arc::clone(&self.events));
        let begins = !std::mem::replace(&mut self.events.ring.lock().is_watched, true);
        if begins {
            let (seen, this) = (self.statuses(), Arc::downgrade(self));
            let watch = move || watch_containers(&this, seen);
            let spawned = thread::Builder::new().name("events".to_owned()).spawn(watch);
            if let Err(error) = spawned {
                self.events.ring.lock().is_watched = false;
                let none = format!("no thread to look at containers with: {error}");
                return Err(Error::new(ErrorKind::Again, none));
            }
        }
        Ok(reader)
    }

    pub(super) fn statuses(&self) -> HashMap<ContainerKey, (String, &'static str)> {
        let listing = self.engines.containers();
        let statuses = listing.iter().map(|(name, container)| {
            let key = ContainerKey { engine: container.engine, id: Arc::from(container.id.as_str()) };
            let status = self.status(&key, container).as_str();
            (key, (name.to_owned(), status))
        });
        statuses.collect()
    }
}

/// Tell of containers that come, go and change, for as long as somebody follows.
fn watch_containers(snapfs: &Weak<Snapfs>, mut seen: HashMap<ContainerKey, (String, &'static str)>) {
    loop {
        thread::sleep(WATCH_EVERY);
        let Some(snapfs) = snapfs.upgrade() else { return };
        {
            let mut ring = snapfs.events.ring.lock();
            if ring.readers == 0 {
                ring.is_watched = false;
                return;
            }
        }
        let now = snapfs.statuses();
        let fields = |key: &ContainerKey, name: &str, status: &str| json!({ "container": name, "engine": key.engine, "id": &*key.id, "status": status });
        for (key, (name, status)) in &now {
            match seen.get(key) {
                None => snapfs.events.tell("container-appeared", fields(key, name, status)),
                Some((_, before)) if before != status => {
                    snapfs.events.tell("container-status", fields(key, name, status));
                }
                Some(_) => {}
            }
        }
        for (key, (name, status)) in seen.iter().filter(|(key, _)| !now.contains_key(*key)) {
            snapfs.events.tell("container-gone", fields(key, name, status));
        }
        seen = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn events() -> Arc<Events> {
        Arc::new(Events::new(Clock::fixed(0).unwrap(), None, crossbeam_channel::bounded(1).0))
    }

    fn lines(bytes: Option<Vec<u8>>) -> Vec<Value> {
        let text = String::from_utf8(bytes.unwrap_or_default()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    #[test]
    fn a_reader_gets_what_happens_after_it_came_in_order_and_once() {
        let events = events();
        events.tell("early", json!({}));
        let reader = EventReader::new(Arc::clone(&events));
        assert!(!reader.is_ready() && reader.read(100).is_none());
        for n in 0..3 {
            events.tell("late", json!({ "n": n }));
        }
        assert!(reader.is_ready());
        let read = lines(reader.read(1 << 20));
        let numbers: Vec<_> =
            read.iter().map(|line| (line["seq"].as_u64().unwrap(), line["n"].as_u64().unwrap())).collect();
        assert_eq!(numbers, [(2, 0), (3, 1), (4, 2)]);
        assert!(!reader.is_ready() && reader.read(100).is_none());
    }

    #[test]
    fn a_small_buffer_gets_it_in_pieces() {
        let events = events();
        let reader = EventReader::new(Arc::clone(&events));
        events.tell("a", json!({}));
        events.tell("b", json!({}));
        let mut all = Vec::new();
        while let Some(piece) = reader.read(7) {
            assert!(piece.len() <= 7);
            all.extend(piece);
        }
        assert_eq!(lines(Some(all)).len(), 2);
    }

    #[test]
    fn who_is_too_slow_is_told_of_the_gap() {
        let events = events();
        let reader = EventReader::new(Arc::clone(&events));
        for _ in 0..KEPT + 10 {
            events.tell("x", json!({}));
        }
        let mut read = Vec::new();
        while let Some(piece) = reader.read(1 << 16) {
            read.extend(lines(Some(piece)));
        }
        assert_eq!((read[0]["event"].as_str(), read[0]["lost"].as_u64()), (Some("gap"), Some(10)));
        let numbers: Vec<u64> = read.iter().map(|line| line["seq"].as_u64().unwrap()).collect();
        assert_eq!(numbers, (10..=KEPT as u64 + 10).collect::<Vec<_>>());
    }
}
