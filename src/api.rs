//! [`Snapfs`]: the product without a file system; its clients are the tree and the command line.
//!
//! A request comes in as words and becomes a job; a question is answered with plain data. Nothing here waits for an
//! engine, and nothing here knows of paths, inodes or descriptors.

mod coming;
mod container;
mod error;
mod image;
mod request;
mod view;
mod words;

pub use crate::engine::Container;
pub use crate::image::{Image, LayerView};
pub use crate::job::JobId;
pub use crate::oci::{Digest, ImageName};
pub use crate::view::{Coming as ComingView, Content, Found, Inode, Kind as InodeKind, Opened, Tree as FileTree, View};
pub use coming::Coming;
pub use container::{ContainerKey, Fact};
pub use error::{Error, ErrorKind};
pub use image::{ImageEntry, ImageKey};
pub use request::Verb;
pub use view::ViewSettings;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;

use crate::engine::Engines;
use crate::guard::Guard;
use crate::job::{Background, Job, Jobs};
use crate::store::Store;
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
}

/// The product: containers, images and jobs, and the verbs that act on them.
#[derive(Debug)]
pub struct Snapfs {
    store: Store,
    engines: Engines,
    guard: Arc<Guard>,
    clock: Clock,
    jobs: Jobs<Error>,
    images: Mutex<HashMap<Digest, Arc<Image>>>,
    words: Arc<Words>,
    frozen_by_us: Arc<Mutex<HashSet<ContainerKey>>>,
    freeze_limit: Option<Duration>,
    views: Views,
    symlinks_in_root: bool,
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
        // A full channel already holds the wake-up that this one would be.
        let waker = wake.clone();
        let on_end = Box::new(move |_| {
            let _ = waker.try_send(());
        });
        let words = Arc::new(Words::default());
        let (clock, said) = (parts.clock, Arc::clone(&words));
        let abandoned = Box::new(move |job: &SnapfsJob, why| request::abandoned(&said, clock, job, why));
        let (collect, requests) = bounded(1);
        start_collector(parts.store.clone(), requests);
        let views = view::start(parts.store.clone(), &parts.views, wake.clone());
        Arc::new(Snapfs {
            store: parts.store,
            engines: parts.engines,
            guard: parts.guard,
            clock: parts.clock,
            jobs: Jobs::new(parts.workers, on_end, abandoned),
            images: Mutex::default(),
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

    /// The state of the daemon, one `key value` a line.
    pub fn health(&self) -> String {
        let mut lines = vec![format!("pid {}", std::process::id())];
        lines.extend(self.engines.health());
        match self.store.failure() {
            None => lines.push("store ok".to_owned()),
            Some(reason) => lines.push(format!("store read-only: {reason}")),
        }
        lines.push(format!("store_images {}", self.store.names().len()));
        lines.extend(self.store.faults().iter().map(|fault| format!("store_fault {fault}")));
        let (queued, running) = self.jobs.load();
        lines.push(format!("jobs_queued {queued}"));
        lines.push(format!("jobs_running {running}"));
        lines.join("\n") + "\n"
    }
}

/// How many containers are scanned at once for those who read `changes`: each takes memory for all that a container changed.
const SCANS: usize = 4;

/// How often garbage is collected although nobody removed a name: what failed jobs left is collected too.
const COLLECT_EVERY: Duration = Duration::from_secs(3600);

/// Collect on request and every hour, away from whoever asked; ends with the [`Snapfs`] that holds the sender.
fn start_collector(store: Store, requests: Receiver<()>) {
    let collect = move || {
        loop {
            match requests.recv_timeout(COLLECT_EVERY) {
                Ok(()) | Err(crossbeam_channel::RecvTimeoutError::Timeout) => {}
                Err(crossbeam_channel::RecvTimeoutError::Disconnected) => return,
            }
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
