//! Counters since the start, and all numbers in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::api::{Error, Snapfs, SnapfsJob};
use crate::job::State;

/// Upper bounds of the classes of frozen times, in milliseconds.
const BOUNDS: [u64; 14] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 60_000];

/// What was counted since the start.
#[derive(Debug, Default)]
pub(super) struct Counters {
    done: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    bytes: AtomicU64,
    files: AtomicU64,
    frozen: Mutex<Frozen>,
}

#[derive(Debug, Default)]
struct Frozen {
    /// How many fell in each class, the last of which has no bound.
    classes: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Counters {
    pub(super) fn job_changed(&self, job: &SnapfsJob) {
        let counter = match job.state() {
            State::Queued | State::Running => return,
            State::Done => &self.done,
            State::Failed => &self.failed,
            State::Cancelled => &self.cancelled,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        let (bytes, files) = job.progress.counts();
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.files.fetch_add(files, Ordering::Relaxed);
    }

    pub(super) fn froze(&self, time: Duration) {
        let mut frozen = self.frozen.lock();
        let class = BOUNDS.iter().position(|bound| time <= Duration::from_millis(*bound)).unwrap_or(BOUNDS.len());
        frozen.classes[class] += 1;
        frozen.sum += time;
    }

    fn write(&self, page: &mut Page) {
        let frozen = self.frozen.lock();
        page.head("frozen_seconds", "histogram", "How long containers were frozen for a snapshot.");
        let mut count = 0;
        for (class, number) in frozen.classes.iter().enumerate() {
            count += number;
            let bound = BOUNDS.get(class).map_or("+Inf".to_owned(), |bound| seconds(Duration::from_millis(*bound)));
            page.value("frozen_seconds_bucket", &[("le", &bound)], count);
        }
        page.value("frozen_seconds_sum", &[], seconds(frozen.sum));
        page.value("frozen_seconds_count", &[], count);
        drop(frozen);
        page.head("jobs_ended_total", "counter", "Jobs that have ended since the daemon was started.");
        for (state, counter) in [("done", &self.done), ("failed", &self.failed), ("cancelled", &self.cancelled)] {
            page.value("jobs_ended_total", &[("state", state)], counter.load(Ordering::Relaxed));
        }
        let totals = [
            ("read_bytes_total", "Bytes that ended jobs have read.", &self.bytes),
            ("read_files_total", "Files that ended jobs have read.", &self.files),
        ];
        for (name, help, counter) in totals {
            page.head(name, "counter", help);
            page.value(name, &[], counter.load(Ordering::Relaxed));
        }
    }
}

/// Not by way of a float, which would show its errors.
fn seconds(time: Duration) -> String {
    let text = format!("{}.{:06}", time.as_secs(), time.subsec_micros());
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[derive(Default)]
struct Page(String);

impl Page {
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to memory cannot fail.
        let _ = write!(self.0, "# HELP snapfs_{name} {help}\n# TYPE snapfs_{name} {kind}\n");
    }

    fn value(&mut self, name: &str, labels: &[(&str, &str)], value: impl std::fmt::Display) {
        let labels: Vec<String> = labels
            .iter()
            .map(|(key, value)| {
                let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
                format!("{key}=\"{value}\"")
            })
            .collect();
        let labels = if labels.is_empty() { String::new() } else { format!("{{{}}}", labels.join(",")) };
        let _ = writeln!(self.0, "snapfs_{name}{labels} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl std::fmt::Display) {
        self.head(name, "gauge", help);
        self.value(name, &[], value);
    }
}

impl Snapfs {
    /// All numbers, in Prometheus' text format. Looks at every blob if the store has changed since the last time.
    pub fn metrics(&self) -> Result<String, Error> {
        let mut page = Page::default();
        let (queued, running) = self.jobs.load();
        page.head("jobs", "gauge", "Jobs that have not ended.");
        page.value("jobs", &[("state", "queued")], queued);
        page.value("jobs", &[("state", "running")], running);
        self.counters.write(&mut page);

        let census = self.store.census()?;
        page.gauge("images", "Image names.", self.store.names().len());
        page.gauge("store_blobs", "Blobs in the store.", census.blobs);
        page.gauge("store_bytes", "Bytes of all blobs.", census.bytes);
        page.gauge("store_shared_bytes", "Bytes of blobs that more than one image name needs.", census.shared);
        page.gauge("store_garbage_bytes", "Bytes that a collection would free.", census.garbage_bytes);
        let space = self.store.space()?;
        page.gauge("store_free_bytes", "Bytes free in the store's file system.", space.free);
        page.gauge("store_writable", "1 if the store takes changes.", u8::from(self.store.failure().is_none()));

        let mut containers: BTreeMap<(&str, &str), u64> = BTreeMap::new();
        for (key, (_, status)) in self.statuses() {
            *containers.entry((key.engine, status)).or_default() += 1;
        }
        page.head("containers", "gauge", "Containers that the engines have.");
        for ((engine, status), count) in containers {
            page.value("containers", &[("engine", engine), ("status", status)], count);
        }
        page.head("info", "gauge", "The version.");
        page.value("info", &[("version", env!("CARGO_PKG_VERSION"))], 1);
        Ok(page.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_upwards() {
        let counters = Counters::default();
        for milliseconds in [1, 3, 3, 70_000] {
            counters.froze(Duration::from_millis(milliseconds));
        }
        let mut page = Page::default();
        counters.write(&mut page);
        for line in [
            "snapfs_frozen_seconds_bucket{le=\"0.001\"} 1",
            "snapfs_frozen_seconds_bucket{le=\"0.005\"} 3",
            "snapfs_frozen_seconds_bucket{le=\"60\"} 3",
            "snapfs_frozen_seconds_bucket{le=\"+Inf\"} 4",
            "snapfs_frozen_seconds_sum 70.007",
            "snapfs_frozen_seconds_count 4",
        ] {
            assert!(page.0.lines().any(|found| found == line), "{line} is not in\n{}", page.0);
        }
    }

    #[test]
    fn labels_are_escaped() {
        let mut page = Page::default();
        page.value("x", &[("a", "b\"\\\n")], 1);
        assert_eq!(page.0, "snapfs_x{a=\"b\\\"\\\\\\n\"} 1\n");
    }
}
