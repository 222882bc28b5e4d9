//! `/jobs/N/…`

use crate::api::{JobId, Snapfs, SnapfsJob};
use crate::tree::file::JobFile;
use crate::tree::node::Node;

/// The symlink to the newest job.
pub(super) const LAST: &str = "last";

pub(super) fn list(api: &Snapfs) -> Vec<(String, Node)> {
    let mut entries: Vec<_> = api.job_ids().into_iter().map(|id| (id.to_string(), Node::Job(id))).collect();
    if api.last_job().is_some() {
        entries.push((LAST.to_owned(), Node::LastJob));
    }
    entries
}

pub(super) fn find(api: &Snapfs, name: &str) -> Option<Node> {
    if name == LAST {
        return api.last_job().map(|_| Node::LastJob);
    }
    let id: u64 = name.parse().ok()?;
    // "07" is not the name of job 7.
    if id.to_string() != name {
        return None;
    }
    api.job(JobId(id)).map(|job| Node::Job(job.id))
}

pub(super) fn entries(id: JobId) -> Vec<(String, Node)> {
    JobFile::TABLE.iter().map(|(file, name, _)| ((*name).to_owned(), Node::JobFile(id, *file))).collect()
}

pub(super) fn text(job: &SnapfsJob, file: JobFile) -> Vec<u8> {
    match file {
        JobFile::Command => format!("{}\n", job.brief.command),
        JobFile::State | JobFile::Wait => format!("{}\n", job.state()),
        JobFile::Progress => {
            let progress = &job.progress;
            let (bytes, files) = progress.counts();
            let mut text = format!("phase {}\nbytes {bytes}\nfiles {files}\n", progress.phase());
            if let Some((bytes, files)) = progress.totals() {
                text.push_str(&format!("bytes_total {bytes}\nfiles_total {files}\n"));
            }
            if let Some(rate) = progress.rate() {
                text.push_str(&format!("rate {rate}\n"));
            }
            text.push_str(&format!("elapsed {:.3}\n", progress.elapsed().as_secs_f64()));
            if let Some(remaining) = progress.remaining().filter(|_| !job.state().is_terminal()) {
                text.push_str(&format!("remaining {}\n", remaining.as_secs()));
            }
            text
        }
        JobFile::Log => job.progress.lines().iter().map(|line| format!("{line}\n")).collect(),
        JobFile::Error => match job.outcome() {
            Some(Err(error)) => format!("{error}\n"),
            _ => String::new(),
        },
        JobFile::Result => match job.outcome() {
            Some(Ok(text)) => format!("{text}\n"),
            _ => String::new(),
        },
        JobFile::Cancel => String::new(),
    }
    .into_bytes()
}
