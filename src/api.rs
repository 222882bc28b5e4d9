//! [`Snapfs`]: the product without a file system; its clients are the tree and the command line.
//!
//! A request comes in as words and becomes a job; a question is answered with plain data. Nothing here waits for an
//! engine, and nothing here knows of paths, inodes or descriptors.

mod coming;
mod container;
mod containerd;
mod error;
mod event;
mod facts;
mod gc;
mod image;
mod incoming;
mod label;
mod metrics;
mod namespace;
mod query;
mod request;
mod restore;
mod view;
mod words;

pub use crate::archive::Archive;
pub use crate::engine::Container;
pub use crate::image::{Image, LayerView};
pub use crate::job::JobId;
pub use crate::oci::{Digest, ImageName};
pub use crate::view::{Coming as ComingView, Content, Found, Inode, Kind as InodeKind, Opened, Tree as FileTree, View};
pub use coming::Coming;
pub use container::{ContainerKey, Fact};
pub use error::{Error, ErrorKind};
pub use event::EventReader;
pub use gc::{Collect, collect};
pub use image::{ImageEntry, ImageKey};
pub use incoming::Incoming;
pub use label::{LABEL_LIMIT, LABELS_LIMIT};
pub use query::Match;
pub use request::Verb;
pub use view::ViewSettings;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::capture;
use crate::engine::Engines;
use crate::filter::Filter;
use crate::guard::Guard;
use crate::job::{Background, Job, Jobs};
use crate::restore::Places;
use crate::store::{Census, Store};
use crate::sys::clock::Clock;
use crate::view::Views;
use words::Words;

/// A job of this product.
pub type SnapfsJob = Job<Error>;

/// What the daemon is made of, assembled by `daemon.rs`.
#[derive(Debug)]
pub struct Parts {
    /// Where images are kept.
    pub store: Store,
    /// Where containers come from.
    pub engines: Engines,
    /// Who thaws what a dead daemon left frozen.
    pub guard: Arc<Guard>,
    /// The time.
    pub clock: Clock,
    /// How many jobs run at once.
    pub workers: usize,
    /// How long a container may stay frozen, if the user says so.
    pub freeze_limit: Option<Duration>,
    /// How the trees of images are shown.
    pub views: ViewSettings,
    /// `namespace=`: only names below it are seen, and new ones are put there.
    pub namespace: Option<ImageName>,
    /// Where the tree is mounted, for programs that are told of it.
    pub mount_point: PathBuf,
}

/// The product: containers, images and jobs, and the verbs that act on them.
#[derive(Debug)]
pub struct Snapfs {
    store: Store,
    engines: Arc<Engines>,
    guard: Arc<Guard>,
    clock: Clock,
    jobs: Jobs<Error>,
    images: Mutex<HashMap<Digest, Arc<Image>>>,
    facts: facts::AllFacts,
    filters: Mutex<HashMap<String, Arc<Filter>>>,
    query_error: Mutex<String>,
    events: Arc<event::Events>,
    counters: Arc<metrics::Counters>,
    /// What is counted when somebody asks.
    counting: Background,
    is_counting: Arc<AtomicBool>,
    /// Whoever asks for health waits here for what is counted, and not for long.
    asking: Background,
    /// One layer at a time is unpacked to be measured.
    measuring: Background,
    namespace: Option<ImageName>,
    /// Archives that somebody has open: their blobs are kept open once.
    archives: Mutex<HashMap<ImageKey, Weak<Archive>>>,
    words: Arc<Words>,
    frozen_by_us: Arc<Mutex<HashSet<ContainerKey>>>,
    freeze_limit: Option<Duration>,
    views: Views,
    symlinks_in_root: bool,
    mount_point: PathBuf,
    /// Where containers that we made live.
    places: Arc<Places>,
    tend: Sender<()>,
    wake: Sender<()>,
    ended: Receiver<()>,
    collect: Sender<()>,
    /// Looks at what containers changed.
    scans: Background,
    /// Changes of names, one after the other: each waits for the disk.
    naming: Background,
}

impl Snapfs {
    /// Put the parts together and start the workers.
    pub fn new(parts: Parts) -> Arc<Snapfs> {
        let (wake, ended) = bounded(1);
        let events = Arc::new(event::Events::new(parts.clock, parts.namespace.clone(), wake.clone()));
        let counters = Arc::new(metrics::Counters::default());
        let (waker, told, counted) = (wake.clone(), Arc::clone(&events), Arc::clone(&counters));
        let on_change = Box::new(move |job: &SnapfsJob| {
            told.job_changed(job);
            counted.job_changed(job);
            // A full channel already holds the wake-up that this one would be.
            let _ = waker.try_send(());
        });
        let told = Arc::clone(&events);
        parts.store.watch(move |change| told.store_changed(change));
        let words = Arc::new(Words::default());
        let (clock, said) = (parts.clock, Arc::clone(&words));
        let abandoned = Box::new(move |job: &SnapfsJob, why| request::abandoned(&said, clock, job, why));
        let (collect, requests) = bounded(1);
        let engines = Arc::new(parts.engines);
        start_collector(parts.store.clone(), Arc::clone(&engines), requests);
        let views = view::start(parts.store.clone(), &parts.views, wake.clone());
        let places = Arc::new(Places::new(&parts.store));
        Arc::new(Snapfs {
            mount_point: parts.mount_point,
            tend: restore::start_tending(&places),
            places,
            store: parts.store,
            engines,
            guard: parts.guard,
            clock: parts.clock,
            jobs: Jobs::new(parts.workers, on_change, abandoned),
            images: Mutex::default(),
            facts: facts::AllFacts::default(),
            filters: Mutex::default(),
            query_error: Mutex::default(),
            events,
            counters,
            counting: Background::new("counting", 2),
            is_counting: Arc::default(),
            asking: Background::new("health", 2),
            measuring: Background::new("measuring", 1),
            namespace: parts.namespace,
            archives: Mutex::default(),
            words,
            frozen_by_us: Arc::default(),
            freeze_limit: parts.freeze_limit,
            views,
            symlinks_in_root: parts.views.symlinks_in_root,
            wake,
            ended,
            collect,
            scans: Background::new("changes", SCANS),
            naming: Background::new("names", 1),
        })
    }

    /// A wake-up after each job that ended; several ends may share one.
    pub fn ended(&self) -> Receiver<()> {
        self.ended.clone()
    }

    /// The job with that number, if it is remembered.
    pub fn job(&self, id: JobId) -> Option<Arc<SnapfsJob>> {
        self.jobs.job(id)
    }

    /// All remembered jobs, oldest first.
    pub fn job_ids(&self) -> Vec<JobId> {
        self.jobs.ids()
    }

    /// The newest job.
    pub fn last_job(&self) -> Option<JobId> {
        self.jobs.last()
    }

    /// Ask every job to stop; returns at once.
    pub fn cancel_all(&self) {
        self.jobs.cancel_all();
    }

    /// Cancel every job and wait until none runs: no container stays frozen behind a daemon that ends in order.
    pub fn shut_down(&self) {
        self.jobs.shut_down();
    }

    /// Have garbage collected soon, by somebody else.
    fn start_collection(&self) {
        // A full channel already holds the request that this one would be.
        let _ = self.collect.try_send(());
    }

    /// The store's census, unless the disk takes longer than a second.
    fn census_soon(&self) -> Option<Result<Arc<Census>, Error>> {
        if let Some(census) = self.store.census_in_memory() {
            return Some(Ok(census));
        }
        let (counted, census) = bounded(1);
        if self.is_counting.swap(true, Ordering::AcqRel) {
            return None;
        }
        let (store, is_counting) = (self.store.clone(), Arc::clone(&self.is_counting));
        let count = move || {
            let census = store.census().map_err(Error::from);
            is_counting.store(false, Ordering::Release);
            // Nobody may wait for it any more.
            let _ = counted.send(census);
        };
        if self.counting.run(count).is_err() {
            self.is_counting.store(false, Ordering::Release);
        }
        census.recv_timeout(COUNTED_WITHIN).ok()
    }

    /// The state of the daemon, one `key value` a line. Looks at every blob if the store has changed since the last time,
    /// but waits for that no longer than a second: a disk that hangs is when somebody asks.
    pub fn health(&self) -> String {
        let mut lines = vec![format!("pid {}", std::process::id())];
        lines.extend(self.engines.health());
        match self.store.failure() {
            None => lines.push("store ok".to_owned()),
            Some(reason) => lines.push(format!("store read-only: {reason}")),
        }
        lines.push(format!("store_images {}", self.store.names().len()));
        match self.census_soon() {
            Some(Ok(census)) => lines.extend([
                format!("store_blobs {}", census.blobs),
                format!("store_bytes {}", census.bytes),
                format!("store_shared_bytes {}", census.shared),
                format!("store_garbage_bytes {}", census.garbage_bytes),
            ]),
            Some(Err(error)) => lines.push(format!("store_uncounted {error}")),
            None => lines.push("store_uncounted the blobs are still being counted".to_owned()),
        }
        lines.extend(self.store.faults().iter().map(|fault| format!("store_fault {fault}")));
        let (queued, running) = self.jobs.load();
        lines.push(format!("jobs_queued {queued}"));
        lines.push(format!("jobs_running {running}"));
        lines.join("\n") + "\n"
    }
}

/// How many containers are scanned at once for those who read `changes`: each takes memory for all that a container changed.
const SCANS: usize = 4;

/// How long `health` waits for the store to be counted.
const COUNTED_WITHIN: Duration = Duration::from_secs(1);

/// How often garbage is collected although nobody removed a name: what failed jobs left is collected too.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);

/// Collect on request and every hour, away from whoever asked; ends with the [`Snapfs`] that holds the sender.
fn start_collector(store: Store, engines: Arc<Engines>, requests: Receiver<()>) {
    let collect = move || {
        loop {
            match requests.recv_timeout(COLLECT_EVERY) {
                Ok(()) | Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return,
            }
            capture::forget_gone(&store, || {
                let listing = engines.containers_now();
                listing.is_complete().then(|| listing.iter().map(|(_, container)| Arc::clone(container)).collect())
            });
            match store.gc() {
                Ok(collected) if collected.blobs == 0 => {}
                Ok(collected) => log::info!("collected {} blobs, {} bytes", collected.blobs, collected.bytes),
                Err(error) => log::warn!("garbage was not collected: {error}"),
            }
        }
    };
    if let Err(error) = std::thread::Builder::new().name("gc".to_owned()).spawn(collect) {
        log::warn!("garbage will not be collected until the next start: no thread: {error}");
    }
}
