//! A line written to `images/NAME/restore` becomes a job; and what containers of ours leave behind is removed.

use std::sync::{Arc, Weak};
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, bounded};

use crate::api::{Error, ErrorKind, ImageKey, Snapfs, SnapfsJob};
use crate::job::{self, Brief, Finish};
use crate::progress::Progress;
use crate::restore::{self, Options, Places, TRUST_LABEL};

/// How often is looked whether a container that we made was deleted at its runtime, while there is one.
const LOOK: Duration = Duration::from_secs(2);

impl Snapfs {
    /// Admit the command `line` on an image: make a container of it. Says whether the writer asked not to wait.
    ///
    /// What can be refused before anything begins is refused here, and stands in `last_error` as well.
    pub fn submit_restore(
        self: &Arc<Self>,
        key: &ImageKey,
        line: &str,
        uid: u32,
    ) -> Result<(Arc<SnapfsJob>, bool), Error> {
        let admitted = self.admit_restore(key, line, uid);
        if let Err(error) = &admitted {
            self.record_refusal(&key.subject(), &format!("restore {line}"), uid, error);
        }
        admitted
    }

    fn admit_restore(self: &Arc<Self>, key: &ImageKey, line: &str, uid: u32) -> Result<(Arc<SnapfsJob>, bool), Error> {
        let options = Options::parse(line)?;
        let detach = options.detach;
        let subject = key.subject();
        let brief = Brief { command: format!("{subject}/restore {line}"), subject: subject.clone(), uid };
        let (this, key, line) = (Arc::clone(self), key.clone(), format!("restore {line}"));
        let work = move |progress: &Progress| {
            let result = this.restore(&key, &options, progress);
            this.record(&subject, &line, uid, None, &result);
            // A look at what there is: the next one is due once a container is deleted.
            this.tend();
            match result {
                Ok(name) => Finish::Done(name),
                Err(error) if error.kind == ErrorKind::Cancelled => Finish::Cancelled(error),
                Err(error) => Finish::Failed(error),
            }
        };
        let full = |error: job::Full| Error::new(ErrorKind::Busy, error.to_string());
        Ok((self.jobs.start(brief, self.clock.now(), work).map_err(full)?, detach))
    }

    fn restore(&self, key: &ImageKey, options: &Options, progress: &Progress) -> Result<String, Error> {
        let record = self.store.record(&key.name).filter(|record| record.manifest == key.manifest);
        let gone = || Error::new(ErrorKind::NotFound, format!("{} was deleted or replaced meanwhile", key.name));
        let context = restore::Context {
            store: &self.store,
            engines: &self.engines,
            views: &self.views,
            places: &self.places,
            mount_point: &self.mount_point,
        };
        let shown = self.local_name(&key.name).unwrap_or(key.name.as_str()).to_owned();
        let name = restore::restore(&context, &shown, &*record.ok_or_else(gone)?, options, progress)?;
        // Whoever waited looks for it at once.
        self.engines.containers_now();
        Ok(name)
    }

    /// Have somebody else look whether containers of ours are gone.
    fn tend(&self) {
        // A full channel already holds the request that this one would be.
        let _ = self.tend.try_send(());
    }
}

/// Who may change the label: that which says what may run is root's.
pub(super) fn check_label_writer(label: &str, uid: u32) -> Result<(), Error> {
    if label != TRUST_LABEL || uid == 0 {
        return Ok(());
    }
    let why = format!("the label {label} says that an image from elsewhere may run, and only root may say so");
    Err(Error::new(ErrorKind::Denied, why))
}

/// Remove what was left behind, now and whenever a container of ours may be gone. Ends with the sender.
pub(super) fn start_tending(places: &Arc<Places>) -> crossbeam_channel::Sender<()> {
    let (sender, requests) = bounded(1);
    let places = Arc::downgrade(places);
    if let Err(error) = std::thread::Builder::new().name("places".to_owned()).spawn(move || tend(&places, &requests)) {
        log::warn!("what deleted containers leave behind will not be removed until the next restore: {error}");
    }
    sender
}

fn tend(places: &Weak<Places>, requests: &Receiver<()>) {
    loop {
        let Some(are_left) = places.upgrade().map(|places| places.sweep()) else { return };
        let next = match are_left {
            true => requests.recv_timeout(LOOK),
            false => requests.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        if next == Err(RecvTimeoutError::Disconnected) {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_says_what_may_run() {
        assert!(check_label_writer(TRUST_LABEL, 0).is_ok() && check_label_writer("env", 7).is_ok());
        assert_eq!(check_label_writer(TRUST_LABEL, 7).unwrap_err().kind, ErrorKind::Denied);
    }
}
