//! [`Coming`]: an answer that is made beside whoever asked.

use std::sync::{Arc, OnceLock};

use crate::api::{Error, ErrorKind, Snapfs};
use crate::job::Background;
use crate::progress::Progress;

/// An answer that will be there; [`Snapfs::ended`] wakes who waits for it.
#[derive(Debug)]
pub struct Coming<T> {
    answer: OnceLock<Result<T, Error>>,
    progress: Progress,
}

impl<T: Clone> Coming<T> {
    /// The answer, once it is there.
    pub fn answer(&self) -> Option<Result<T, Error>> {
        self.answer.get().cloned()
    }

    /// Nobody wants it any more.
    pub fn cancel(&self) {
        self.progress.cancel();
    }
}

impl Snapfs {
    /// Have a text made that looks at every blob.
    pub fn count(
        self: &Arc<Self>,
        work: impl FnOnce(&Snapfs) -> Result<Vec<u8>, Error> + Send + 'static,
    ) -> Result<Arc<Coming<Vec<u8>>>, Error> {
        self.beside(&self.counting, move |this, _| work(this))
    }

    /// Have `health` made.
    pub fn ask(self: &Arc<Self>) -> Result<Arc<Coming<Vec<u8>>>, Error> {
        self.beside(&self.asking, |this, _| Ok(this.health().into_bytes()))
    }

    /// Have a text made that reads whole layers.
    pub fn measure(
        self: &Arc<Self>,
        work: impl FnOnce(&Snapfs) -> Result<Vec<u8>, Error> + Send + 'static,
    ) -> Result<Arc<Coming<Vec<u8>>>, Error> {
        self.beside(&self.measuring, move |this, _| work(this))
    }

    /// Have something done to names, after all that was asked for before.
    pub fn in_turn(
        self: &Arc<Self>,
        work: impl FnOnce(&Snapfs) -> Result<(), Error> + Send + 'static,
    ) -> Result<Arc<Coming<()>>, Error> {
        self.beside(&self.naming, move |this, _| work(this))
    }

    /// Have `work` done in the background. It gets a progress that is cancelled with the answer.
    pub(super) fn beside<T: Send + Sync + 'static>(
        self: &Arc<Self>,
        background: &Background,
        work: impl FnOnce(&Snapfs, &Progress) -> Result<T, Error> + Send + 'static,
    ) -> Result<Arc<Coming<T>>, Error> {
        let coming = Arc::new(Coming { answer: OnceLock::new(), progress: Progress::new() });
        let promise = Promise { snapfs: Arc::clone(self), coming: Arc::clone(&coming) };
        let run = move || {
            let answer = work(&promise.snapfs, &promise.coming.progress);
            // Only this thread sets it.
            let _ = promise.coming.answer.set(answer);
        };
        let none = |error| Error::new(ErrorKind::Again, format!("no thread to do this with: {error}; try again"));
        background.run(run).map_err(none)?;
        Ok(coming)
    }
}

/// Kept, whatever becomes of the work: who waits is not left waiting.
struct Promise<T> {
    snapfs: Arc<Snapfs>,
    coming: Arc<Coming<T>>,
}

impl<T> Drop for Promise<T> {
    fn drop(&mut self) {
        let defect = || Error::new(ErrorKind::Io, "a defect in snapfs ended this; the daemon's log says where");
        let _ = self.coming.answer.get_or_init(|| Err(defect()));
        self.snapfs.wake();
    }
}
